//! The group's place, before the group is there: clients are let in while the node loads its data, or waits for the
//! other nodes.
//!
//! ```text
//! empty ──set──► the group       empty: nothing is known, and everything that is asked for is refused
//! ```
//! Commands that want data do not come this far before (the gates refuse them); what is left is INFO and its like.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::OnceLock;

use parking_lot::RwLock;
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::consensus::Group;
use crate::consensus::MemberInfo;
use crate::consensus::ProposeError;
use crate::consensus::Replicator;
use crate::consensus::ReplySender;
use crate::consensus::Role;
use crate::consensus::Status;
use crate::consensus::claims::Claims;
use crate::consensus::cluster_clock::ClusterClock;
use crate::machine::entry::Batch;
use crate::state::State;
use crate::types::ClusterTime;
use crate::types::LogIndex;
use crate::types::Millis;
use crate::types::NodeId;
use crate::types::Term;

/// The group, or what stands in for it.
pub struct GroupSlot {
    group: OnceLock<Group>,
    absent: Group,
}

impl GroupSlot {
    /// Without a group.
    #[must_use]
    pub fn empty(clock: &Arc<dyn Clock>) -> GroupSlot {
        let state = Arc::new(RwLock::new(State::new(0)));
        let clock = Arc::new(ClusterClock::starting_at(ClusterTime(0), Arc::clone(clock)));
        GroupSlot {
            group: OnceLock::new(),
            absent: Group::new(Arc::new(Absent), state, clock, Arc::new(Claims::new(NodeId(0), 0))),
        }
    }

    /// The group is there. It is set once.
    pub fn set(&self, group: Group) {
        // A node has one group; a second one would be a bug that changes nothing.
        let _ = self.group.set(group);
    }

    /// True once it is there.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.group.get().is_some()
    }
}

impl Deref for GroupSlot {
    type Target = Group;

    #[inline]
    fn deref(&self) -> &Group {
        self.group.get().unwrap_or(&self.absent)
    }
}

/// Knows nothing and does nothing.
struct Absent;

impl Replicator for Absent {
    fn propose(&self, _batch: Batch, reply: ReplySender) -> bool {
        // The connection may be gone; then nobody wants to know.
        let _ = reply.send(Err(ProposeError::NotLeader { leader: None }));
        false
    }

    fn gathering(&self) -> Option<usize> {
        None
    }

    fn sweep(&self) {}

    fn barrier(&self, done: oneshot::Sender<Result<(), ProposeError>>) -> bool {
        // The connection may be gone; then nobody wants to know.
        let _ = done.send(Err(ProposeError::NotLeader { leader: None }));
        false
    }

    fn may_read(&self) -> bool {
        false
    }

    fn status(&self) -> Status {
        Status {
            replica: 0,
            role: Role::Follower,
            term: Term(0),
            leader: None,
            commit: LogIndex(0),
            applied: LogIndex(0),
            log_bytes: 0,
            entries_in_flight: 0,
            waiting_bytes: 0,
            proposals: 0,
            proposals_failed: 0,
            log_writes: 0,
            log_write_micros: 0,
            flushed: LogIndex(0),
            leader_changes: 0,
            snapshots_installed: 0,
            verified: None,
        }
    }

    fn leader_silence(&self) -> Option<Millis> {
        None
    }

    fn leaderless(&self) -> Option<Millis> {
        None
    }

    fn members(&self) -> Vec<MemberInfo> {
        Vec::new()
    }

    fn transfer(&self, _to: Option<NodeId>, done: oneshot::Sender<Result<(), String>>) {
        // The connection may be gone; then nobody wants to know.
        let _ = done.send(Err("the node is loading".to_owned()));
    }

    fn make_snapshot(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn an_empty_slot_knows_nothing_and_refuses() {
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::default());
        let slot = GroupSlot::empty(&clock);
        assert!(!slot.is_set() && slot.try_read().is_none() && slot.members().is_empty());
        assert_eq!((slot.status().leader, slot.leader_silence()), (None, None));
        assert_eq!(slot.read_applied().databases(), 0);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let refused = Err(ProposeError::NotLeader { leader: None });
            assert_eq!(slot.propose(Batch::new(b"default")).await, refused);
            assert!(slot.barrier().await.is_err() && slot.transfer(None).await.is_err());
        });
    }
}
