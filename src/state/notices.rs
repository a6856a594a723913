//! What an entry brought about besides its replies: who waits no more, and what became of locks.
//!
//! Every replica makes the same ones; each node passes on those that concern its own clients. They are not part of the
//! state: an entry that is applied again after a restart makes them again, and nobody is there who waits for them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use crate::state::DbIndex;
use crate::state::locks::ClaimId;
use crate::state::locks::OwnerName;
use crate::state::queues::Delivered;
use crate::types::ClusterTime;
use crate::types::FencingToken;
use crate::types::NodeId;

/// Where a request came from: the process of a node, and its client there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// Node 0 is a cluster of one.
    pub node: NodeId,
    /// Which life of the node's process, rising.
    pub life: u64,
    /// The client's number in that life; 0 is none.
    pub client: u64,
    /// Its address, as people read it.
    pub address: Box<str>,
}

/// Whether somebody on this node wants to know of every change of a lock, or only of what a holder loses. It stands beside
/// the state, so that who subscribes waits neither for apply nor for long reads.
#[derive(Debug, Clone, Default)]
pub struct Interest(Arc<(Mutex<()>, AtomicBool)>);

impl Interest {
    /// True when every change is wanted.
    #[must_use]
    pub fn is_in_all(&self) -> bool {
        self.0.1.load(Ordering::SeqCst)
    }

    /// Asks `all` and takes its answer; of two who do so at once the later answer stands.
    pub fn set(&self, all: impl Fn() -> bool) {
        let _turn = self.0.0.lock();
        self.0.1.store(all(), Ordering::SeqCst);
    }
}

/// A lock that a request was granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub key: Box<[u8]>,
    pub token: FencingToken,
    /// Tells whether the owner touched the hold since. 0 is never right: it is not taken back.
    pub touches: u64,
}

/// Everything that a request was granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    pub db: DbIndex,
    pub owner: OwnerName,
    /// Each lock once.
    pub grants: Vec<Grant>,
    /// For a request of several locks the place in `grants` of each key that it named.
    pub order: Option<Vec<u32>>,
}

/// How a wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimEnd {
    Granted(Granted),
    /// Messages for a QPOP.
    Delivered(Delivered),
    /// BLOCK is over, or the client or its owner wants it no more: null.
    Over,
    /// An error line.
    Failed(String),
}

/// What became of a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockChange {
    Granted,
    Released,
    Expired,
    Killed,
}

impl LockChange {
    /// As clients read it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            LockChange::Granted => "GRANTED",
            LockChange::Released => "RELEASED",
            LockChange::Expired => "EXPIRED",
            LockChange::Killed => "KILLED",
        }
    }
}

/// Something that clients may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A client's request waits.
    ClaimBegan { claim: ClaimId, origin: Origin },
    /// It was handed something, which its node must confirm before the client is told.
    ClaimHanded { claim: ClaimId, origin: Origin, end: ClaimEnd },
    /// The client is to be told of what it was handed, and has it until then.
    ClaimConfirmed { claim: ClaimId, origin: Origin, until: ClusterTime },
    /// It waits no more.
    ClaimEnded { claim: ClaimId, origin: Origin, end: ClaimEnd },
    /// A lock passed from hand to hand. `origin` is where its hold was last set from.
    Lock {
        db: DbIndex,
        key: Box<[u8]>,
        owner: OwnerName,
        token: FencingToken,
        change: LockChange,
        origin: Origin,
    },
}
