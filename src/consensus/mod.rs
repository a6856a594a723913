//! Agreement: what everybody else knows of it.
//!
//! A [`Group`] is the handle of one replicated state on this node: propose commands, read what was
//! applied, learn where the group stands. Behind it is a [`Replicator`]; Raft is the first.

pub mod claims;
pub mod cluster_clock;
pub mod formation;
#[cfg(test)]
mod formation_test;
pub mod mailbox;
pub mod raft;

use std::future::Future;
use std::sync::Arc;

use parking_lot::RwLock;
use parking_lot::RwLockReadGuard;
use thiserror::Error;
use tokio::sync::oneshot;

use crate::consensus::claims::Claims;
use crate::consensus::cluster_clock::ClusterClock;
use crate::machine::apply::BatchReplies;
use crate::machine::entry::Batch;
use crate::resp::Reply;
use crate::state::State;
use crate::state::notices::Interest;
use crate::storage::disk::DiskState;
use crate::types::ClusterTime;
use crate::types::LogIndex;
use crate::types::Millis;
use crate::types::NodeId;
use crate::types::Term;
use crate::types::WallMillis;

/// Why a proposal or a barrier has no outcome to show.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProposeError {
    /// Nothing was executed; this node does not lead the group.
    #[error("this node does not lead the group")]
    NotLeader { leader: Option<NodeId> },
    /// The entry may still commit. Repeat only what may happen twice, or read first.
    #[error("the outcome is unknown; the commands may still take effect")]
    OutcomeUnknown,
    /// Nothing was executed; too much waits already. Try again a little later.
    #[error("too many proposals are waiting")]
    Overloaded,
    /// Nothing was executed; the commands would not fit one entry.
    #[error(
        "the command or transaction takes {bytes} bytes, and at most {max} bytes may change at once: send it in smaller \
         parts, or raise proto-max-bulk-len on every node"
    )]
    TooLarge { bytes: usize, max: usize },
    /// Nothing was executed; the node has no room to write at all.
    #[error("the disk is full")]
    NoRoom,
    /// Nothing was executed; the node is going down.
    #[error("the node is shutting down")]
    Stopped,
}

/// Where a proposer wants its replies.
pub type ReplySender = oneshot::Sender<Result<BatchReplies, ProposeError>>;

/// What this node is in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Leader,
    Follower,
    Candidate,
    Learner,
}

impl Role {
    /// As INFO and the metrics say it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::Learner => "learner",
        }
    }
}

/// Where a group stands on this node.
#[derive(Debug, Clone, Copy)]
pub struct Status {
    /// This node's replica id in the group.
    pub replica: u64,
    pub role: Role,
    pub term: Term,
    pub leader: Option<NodeId>,
    pub commit: LogIndex,
    pub applied: LogIndex,
    /// Bytes of log on disk, nearly.
    pub log_bytes: u64,
    /// Entries proposed and not applied yet.
    pub entries_in_flight: u64,
    /// Bytes of batches of this node's clients that wait for their outcome.
    pub waiting_bytes: u64,
    /// Batches proposed since the start.
    pub proposals: u64,
    /// Batches that were refused or whose outcome stayed unknown.
    pub proposals_failed: u64,
    /// Synced (or, without fsync, plain) writes of the log since the start.
    pub log_writes: u64,
    /// Microseconds those took together.
    pub log_write_micros: u64,
    /// The last entry whose rows are in `data/`.
    pub flushed: LogIndex,
    /// How often another replica became leader since the start.
    pub leader_changes: u64,
    /// Snapshots that took the place of log and state since the start.
    pub snapshots_installed: u64,
    /// The last index at which the state was hashed (RAFT VERIFY), and the digest.
    pub verified: Option<(u64, u128)>,
}

/// What this node knows of a member of the group: itself, or what another said last.
#[derive(Debug, Clone)]
pub struct MemberInfo {
    pub node: NodeId,
    pub replica: u64,
    pub role: Role,
    pub term: Term,
    /// The replica it takes for the leader; 0 when it knows none.
    pub leader: u64,
    pub commit: LogIndex,
    pub applied: LogIndex,
    /// Its log equals the leader's up to here; known to the leader only.
    pub matched: Option<LogIndex>,
    /// It votes; known to the leader only, of others.
    pub is_voter: Option<bool>,
    pub is_connected: bool,
    /// How long ago it was heard; `None` for this node itself.
    pub heard: Option<Millis>,
    /// Last round trip on the link.
    pub rtt_us: Option<u64>,
    pub version: String,
    /// Its port for clients.
    pub port: u16,
    pub disk_free: u64,
    /// What that means for writes.
    pub disk: DiskState,
    /// Bytes of data that its disk still takes; `u64::MAX` without a limit.
    pub disk_room: u64,
    pub verified: Option<(u64, u128)>,
    /// The figures of this node's links to it; `None` for this node itself.
    pub link: Option<LinkFigures>,
}

/// What went over this node's links to another one since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkFigures {
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Links made after the first.
    pub reconnects: u64,
    /// Bytes that wait to be written now.
    pub queued_bytes: u64,
}

/// One engine of agreement for one group.
pub trait Replicator: Send + Sync {
    /// Takes a batch; the replies come after apply. Never waits. True when nothing waited before: then the
    /// caller must call [`Replicator::sweep`] soon, for itself and all that come meanwhile.
    #[must_use]
    fn propose(&self, batch: Batch, reply: ReplySender) -> bool;
    /// How many wait to be swept, when it pays to let more come first: a sync costs the same for one and for
    /// many. `None` when it does not.
    fn gathering(&self) -> Option<usize>;
    /// Gets under way what was proposed, on this thread, unless another one is at it. Never waits for peers; for
    /// the disk only where nobody else waits for this node.
    fn sweep(&self);
    /// Asks for a read barrier: answered when everything that was acknowledged before the call is applied here.
    /// True as for [`Replicator::propose`].
    #[must_use]
    fn barrier(&self, done: oneshot::Sender<Result<(), ProposeError>>) -> bool;
    /// True while reads from the applied state are linearizable without a barrier.
    fn may_read(&self) -> bool;
    /// Where the group stands.
    fn status(&self) -> Status;
    /// How long ago this node heard of a leader that leads; for the leader itself, when it last heard a majority, and zero
    /// while its lease holds. `None`: never.
    fn leader_silence(&self) -> Option<Millis>;
    /// The same for those who wait: time for which this process itself stood still does not count, since whoever does not
    /// run hears nobody.
    fn leaderless(&self) -> Option<Millis>;
    /// The members that this node has heard of, itself first; none without peers.
    fn members(&self) -> Vec<MemberInfo>;
    /// Gives the leadership to this node, or to the voter that is best; `done` hears when it leads.
    fn transfer(&self, to: Option<NodeId>, done: oneshot::Sender<Result<(), String>>);
    /// Makes a snapshot of what is applied, for followers that will need one.
    fn make_snapshot(&self);
}

/// A read borrow of the applied state.
pub type StateGuard<'a> = RwLockReadGuard<'a, State>;

/// The duty to sweep, of who proposed first. Done when this is dropped, so that a connection that ends leaves
/// nobody waiting.
struct Turn {
    replicator: Arc<dyn Replicator>,
}

impl Turn {
    /// Lets the tasks that are ready add theirs: what they propose shares the entry and the sync.
    async fn gather(self) {
        let mut seen = 0;
        loop {
            tokio::task::yield_now().await;
            match self.replicator.gathering() {
                Some(waiting) if waiting > seen => seen = waiting,
                _ => return,
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.replicator.sweep();
    }
}

/// Handle of one group on this node; cheap to clone.
#[derive(Clone)]
pub struct Group {
    replicator: Arc<dyn Replicator>,
    state: Arc<RwLock<State>>,
    clock: Arc<ClusterClock>,
    claims: Arc<Claims>,
    interest: Interest,
}

impl Group {
    /// Puts a handle together.
    #[must_use]
    pub fn new(
        replicator: Arc<dyn Replicator>,
        state: Arc<RwLock<State>>,
        clock: Arc<ClusterClock>,
        claims: Arc<Claims>,
    ) -> Group {
        let interest = state.read().interest().clone();
        Group { replicator, state, clock, claims, interest }
    }

    /// Proposes a batch; resolves after it was applied, with one reply per item. Cancel safe in the sense
    /// that dropping the future takes nothing back: the commands may still take effect.
    pub fn propose(
        &self,
        batch: Batch,
    ) -> impl Future<Output = Result<Vec<Reply>, ProposeError>> + Send + use<> {
        let (sender, receiver) = oneshot::channel();
        let is_first = self.replicator.propose(batch, sender);
        let turn = is_first.then(|| Turn { replicator: Arc::clone(&self.replicator) });
        async move {
            if let Some(turn) = turn {
                turn.gather().await;
            }
            receiver.await.unwrap_or(Err(ProposeError::OutcomeUnknown))
        }
    }

    /// The applied state, if this node may answer linearizable reads from it right now.
    #[must_use]
    pub fn try_read(&self) -> Option<StateGuard<'_>> {
        self.replicator.may_read().then(|| self.state.read())
    }

    /// The applied state, however old it is.
    pub fn read_applied(&self) -> StateGuard<'_> {
        self.state.read()
    }

    /// Waits until everything acknowledged before the call is applied here.
    pub fn barrier(&self) -> impl Future<Output = Result<(), ProposeError>> + Send + use<> {
        let (sender, receiver) = oneshot::channel();
        let is_first = self.replicator.barrier(sender);
        let turn = is_first.then(|| Turn { replicator: Arc::clone(&self.replicator) });
        async move {
            if let Some(turn) = turn {
                turn.gather().await;
            }
            receiver.await.unwrap_or(Err(ProposeError::Stopped))
        }
    }

    /// The clients of this node that wait for locks.
    #[must_use]
    pub fn claims(&self) -> &Arc<Claims> {
        &self.claims
    }

    /// Whether every change of a lock is told to whoever listens to the claims, or only what a holder loses. Of two who
    /// change it at once the later answer stands. Waits neither for readers of the state nor for apply.
    pub fn tell_lock_changes(&self, all: impl Fn() -> bool) {
        self.interest.set(all);
    }

    /// See [`Replicator::leader_silence`].
    #[must_use]
    pub fn leader_silence(&self) -> Option<Millis> {
        self.replicator.leader_silence()
    }

    /// See [`Replicator::leaderless`].
    #[must_use]
    pub fn leaderless(&self) -> Option<Millis> {
        self.replicator.leaderless()
    }

    /// The members that this node has heard of, itself first; none without peers.
    #[must_use]
    pub fn members(&self) -> Vec<MemberInfo> {
        self.replicator.members()
    }

    /// Gives the leadership to this node, or to the voter that is best; resolves when it leads.
    pub fn transfer(&self, to: Option<NodeId>) -> impl Future<Output = Result<(), String>> + Send + use<> {
        let (sender, receiver) = oneshot::channel();
        self.replicator.transfer(to, sender);
        async move { receiver.await.unwrap_or_else(|_| Err("the node is shutting down".to_owned())) }
    }

    /// Makes a snapshot of what is applied, for followers that will need one.
    pub fn make_snapshot(&self) {
        self.replicator.make_snapshot();
    }

    /// The cluster clock, as this node would stamp it now.
    #[must_use]
    pub fn now(&self) -> ClusterTime {
        self.clock.now()
    }

    /// This node's wall clock.
    #[must_use]
    pub fn wall(&self) -> WallMillis {
        self.clock.wall()
    }

    /// Where the group stands.
    #[must_use]
    pub fn status(&self) -> Status {
        self.replicator.status()
    }
}
