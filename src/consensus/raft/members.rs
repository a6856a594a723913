//! Who the group's members are, and what changes that: hand-overs and nodes that come back without their disk.
//!
//! ```text
//! a node without its disk asks ─► Allocating (the log gives a replica id, never used before)
//!   ─► Adding (proposed as a learner) ─► answered ─► it catches up ─► promoted, and in the same step the old
//!      replica of that node goes (joint consensus; raft-rs leaves the joint configuration by itself)
//! ```
//! Changes are proposed by the leader, one at a time, on its ticks; a new leader goes on where the configuration
//! stands. A leader is never removed: raft-rs would panic.
//!
//! A node id is given to another replica only when the one that has it was silent for [`JOIN_SILENCE`]: a second process
//! that was started under the id of a living node by mistake must not take its place.

use std::collections::BTreeMap;
use std::sync::Arc;

use raft::eraftpb::ConfChangeSingle;
use raft::eraftpb::ConfChangeType;
use raft::eraftpb::ConfChangeV2;
use raft::eraftpb::ConfState;

use crate::consensus::raft::group_core::ReplicaProgress;
use crate::consensus::raft::session::Submission;
use crate::machine::entry::Batch;
use crate::state::Membership;
use crate::state::NodeAddress;
use crate::types::Millis;
use crate::types::Monotonic;
use crate::types::NodeId;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_bytes;
use crate::types::codec::put_varint;

/// A learner becomes a voter once it is no further behind than this.
const PROMOTE_WITHIN: u64 = 1_000;
/// A hand-over takes no longer; then the old leader goes on.
const TRANSFER_TIME: Millis = Millis(3_000);
/// A joint configuration that nobody leaves for so long is left by the leader.
const JOINT_TIME: Millis = Millis(1_000);

/// A node's replica was not heard for so long, or for four election timeouts if that is longer: then the node may have
/// another one.
pub const JOIN_SILENCE: Millis = Millis(5_000);

type Hear = Box<dyn FnOnce(Result<Vec<u8>, String>) + Send>;

/// Hears, once, what became of an administrator's wish; when it is dropped, that nothing did.
pub struct AdminDone(Option<Hear>);

impl AdminDone {
    /// Calls `hear` when it is known.
    pub fn new(hear: impl FnOnce(Result<Vec<u8>, String>) + Send + 'static) -> AdminDone {
        AdminDone(Some(Box::new(hear)))
    }

    /// This became of it.
    pub fn tell(mut self, result: Result<Vec<u8>, String>) {
        if let Some(hear) = self.0.take() {
            hear(result);
        }
    }
}

impl Drop for AdminDone {
    fn drop(&mut self) {
        if let Some(hear) = self.0.take() {
            hear(Err("a later wish took its place, or the node stops".to_owned()));
        }
    }
}

enum Stage {
    Allocating,
    Adding(u64),
}

struct Join {
    /// Names the life of the node that asks.
    nonce: u64,
    address: NodeAddress,
    stage: Stage,
    done: AdminDone,
}

struct Transfer {
    to: u64,
    since: Monotonic,
    done: AdminDone,
}

/// Where the group stands at a tick.
#[derive(Debug, Default)]
pub struct View {
    pub is_leading: bool,
    /// The leader's replica id; 0 when none is known.
    pub leader: u64,
    pub conf: ConfState,
    /// A change is pending.
    pub is_busy: bool,
    pub progress: Vec<ReplicaProgress>,
    /// The last index of the leader's log.
    pub last: u64,
}

/// The members of one group as this node knows them.
pub struct Members {
    membership: Membership,
    /// Replicas whose messages came over a node's link, while the membership does not tell yet.
    heard: BTreeMap<u64, NodeId>,
    joins: BTreeMap<NodeId, Join>,
    transfer: Option<Transfer>,
    joint_since: Option<Monotonic>,
}

/// A change to propose, and what goes with it.
pub type Proposal = (ConfChangeV2, Vec<u8>);

impl Members {
    /// Members as of the last entry that was applied.
    #[must_use]
    pub fn new(membership: Membership) -> Members {
        Members {
            membership,
            heard: BTreeMap::new(),
            joins: BTreeMap::new(),
            transfer: None,
            joint_since: None,
        }
    }

    /// raft-rs's form of a membership.
    #[must_use]
    pub fn conf_state(membership: &Membership) -> ConfState {
        ConfState {
            voters: membership.voters.clone(),
            learners: membership.learners.clone(),
            voters_outgoing: membership.voters_outgoing.clone(),
            learners_next: membership.learners_next.clone(),
            auto_leave: membership.auto_leave,
        }
    }

    /// The node of a replica.
    #[must_use]
    pub fn node_of(&self, replica: u64) -> Option<NodeId> {
        let known = self.membership.node_of(replica).map(|address| address.node);
        known.or_else(|| self.heard.get(&replica).copied())
    }

    /// The replicas of a node: more than one while one takes the place of another.
    #[must_use]
    pub fn replicas_of(&self, node: NodeId) -> Vec<u64> {
        let known = self.membership.nodes.iter().filter(|(_, address)| address.node == node);
        known.map(|(replica, _)| *replica).collect()
    }

    /// A message of this replica came over this node's link.
    pub fn heard_of(&mut self, replica: u64, node: NodeId) {
        if self.membership.node_of(replica).is_none() && self.heard.len() < 1_000 {
            self.heard.insert(replica, node);
        }
    }

    /// A change was committed; `context` is what its proposer said about a new member.
    pub fn changed(&mut self, conf: &ConfState, context: &[u8]) -> Membership {
        let membership = &mut self.membership;
        membership.voters.clone_from(&conf.voters);
        membership.learners.clone_from(&conf.learners);
        membership.voters_outgoing.clone_from(&conf.voters_outgoing);
        membership.learners_next.clone_from(&conf.learners_next);
        membership.auto_leave = conf.auto_leave;
        if let Ok((replica, address)) = decode_context(context) {
            membership.nodes.insert(replica, address);
        }
        let lists = [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next];
        membership.nodes.retain(|replica, _| lists.iter().any(|ids| ids.contains(replica)));
        membership.clone()
    }

    /// A snapshot brought this.
    pub fn restored(&mut self, membership: Membership) {
        self.membership = membership;
    }

    /// A node asks for a replica id. Gives the proposal that allocates one. `silence` is how long nothing was heard of the
    /// replicas that the node has; `patience`, how long that must be.
    pub fn join(
        &mut self,
        is_leading: bool,
        node: NodeId,
        nonce: u64,
        address: NodeAddress,
        (silence, patience): (Millis, Millis),
        done: AdminDone,
    ) -> Option<Arc<Submission>> {
        if !is_leading {
            done.tell(Err("this node does not lead".to_owned()));
            return None;
        }
        if silence < patience {
            done.tell(Err(format!(
                "node-id {node} is taken: the node that has it was heard within the last {} s. If this node lost its disk, \
                 it is taken in when the cluster has not heard its old replica for so long; if another process runs \
                 under this node-id, give this one its own",
                patience.0.div_ceil(1_000)
            )));
            return None;
        }
        // A node that asks again did not hear the answer.
        self.joins.insert(node, Join { nonce, address, stage: Stage::Allocating, done });
        let mut batch = Batch::new(b"");
        batch.push_allocate_replica(node, nonce);
        Some(Submission::new(batch, None))
    }

    /// The log gave an id. What it gave to an earlier life of the node is not this one's.
    pub fn allocated(&mut self, node: NodeId, nonce: u64, replica: u64) {
        if let Some(join) = self.joins.get_mut(&node).filter(|join| join.nonce == nonce) {
            join.stage = Stage::Adding(replica);
        }
    }

    /// Somebody wants another leader. Gives the replica that is to lead.
    pub fn transfer(
        &mut self,
        is_leading: bool,
        to: Option<NodeId>,
        progress: &[ReplicaProgress],
        done: AdminDone,
        now: Monotonic,
    ) -> Option<u64> {
        if !is_leading {
            done.tell(Err("this node does not lead".to_owned()));
            return None;
        }
        let is_wanted = |replica: &&ReplicaProgress| match to {
            Some(node) => self.node_of(replica.replica) == Some(node),
            None => true,
        };
        let able =
            progress.iter().filter(|replica| replica.is_voter && replica.is_active && !replica.is_behind);
        let Some(best) = able.filter(is_wanted).max_by_key(|replica| replica.matched) else {
            done.tell(Err("no such voter is up to date and reachable".to_owned()));
            return None;
        };
        self.transfer = Some(Transfer { to: best.replica, since: now, done });
        Some(best.replica)
    }

    /// Looks after what is under way; gives the next change to propose.
    pub fn on_tick(&mut self, view: &View, now: Monotonic) -> Option<Proposal> {
        self.look_at_transfer(view.leader, now);
        if !view.is_leading {
            for (_, join) in std::mem::take(&mut self.joins) {
                join.done.tell(Err("this node does not lead any more".to_owned()));
            }
            return None;
        }
        self.answer_joiners(&view.conf);
        if !view.conf.voters_outgoing.is_empty() {
            let since = *self.joint_since.get_or_insert(now);
            let is_stuck = !view.is_busy && now.since(since) >= JOINT_TIME;
            return is_stuck.then(|| (ConfChangeV2::default(), Vec::new()));
        }
        self.joint_since = None;
        if view.is_busy {
            return None;
        }
        self.next_learner(&view.conf).or_else(|| self.next_voter(view))
    }

    fn look_at_transfer(&mut self, leader: u64, now: Monotonic) {
        if let Some(transfer) = self.transfer.take_if(|transfer| leader == transfer.to) {
            transfer.done.tell(Ok(Vec::new()));
        }
        if let Some(transfer) = self.transfer.take_if(|transfer| now.since(transfer.since) >= TRANSFER_TIME) {
            transfer.done.tell(Err("the voter did not take over in time".to_owned()));
        }
    }

    fn answer_joiners(&mut self, conf: &ConfState) {
        let is_added = |_: &NodeId, join: &mut Join| matches!(join.stage, Stage::Adding(replica) if conf.learners.contains(&replica) || conf.voters.contains(&replica));
        for (_, join) in self.joins.extract_if(.., is_added) {
            let Stage::Adding(replica) = join.stage else { continue };
            let mut answer = Vec::new();
            put_varint(&mut answer, replica);
            put_varint(&mut answer, join.nonce);
            join.done.tell(Ok(answer));
        }
    }

    fn next_learner(&self, conf: &ConfState) -> Option<Proposal> {
        self.joins.values().find_map(|join| {
            let Stage::Adding(replica) = join.stage else { return None };
            let is_new = !conf.learners.contains(&replica) && !conf.voters.contains(&replica);
            let context = || encode_context(replica, &join.address);
            is_new.then(|| (change(&[(ConfChangeType::AddLearnerNode, replica)]), context()))
        })
    }

    /// A learner that has caught up takes the place of the replica that its node had before.
    fn next_voter(&self, view: &View) -> Option<Proposal> {
        let is_ready = |replica: &&ReplicaProgress| {
            view.conf.learners.contains(&replica.replica)
                && replica.is_active
                && !replica.is_behind
                && replica.matched + PROMOTE_WITHIN >= view.last
        };
        // Of several of one node only the newest is alive.
        let ready = view.progress.iter().filter(is_ready).max_by_key(|replica| replica.replica)?;
        let node = self.node_of(ready.replica)?;
        let older = self.replicas_of(node).into_iter().filter(|replica| *replica != ready.replica);
        let mut changes: Vec<_> = older.map(|replica| (ConfChangeType::RemoveNode, replica)).collect();
        changes.push((ConfChangeType::AddNode, ready.replica));
        Some((change(&changes), Vec::new()))
    }
}

fn change(singles: &[(ConfChangeType, u64)]) -> ConfChangeV2 {
    let single = |(kind, replica): &(ConfChangeType, u64)| {
        let mut single = ConfChangeSingle { node_id: *replica, ..ConfChangeSingle::default() };
        single.set_change_type(*kind);
        single
    };
    ConfChangeV2 { changes: singles.iter().map(single).collect(), ..ConfChangeV2::default() }
}

fn encode_context(replica: u64, address: &NodeAddress) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, replica);
    put_varint(&mut out, address.node.0);
    put_bytes(&mut out, address.host.as_bytes());
    put_varint(&mut out, u64::from(address.port));
    out
}

fn decode_context(context: &[u8]) -> Result<(u64, NodeAddress), CodecError> {
    let mut reader = Reader::new(context);
    let replica = reader.varint()?;
    let node = NodeId(reader.varint()?);
    let host = String::from_utf8_lossy(reader.bytes()?).into_owned();
    let port = u16::try_from(reader.varint()?).map_err(|_| CodecError("a port out of range"))?;
    Ok((replica, NodeAddress { node, host, port }))
}

/// Reads the answer to a node that asked for a replica id with this nonce: the id. `None` when the answer is that to
/// an earlier life of the node, whose id must not be used again.
///
/// # Errors
/// When the answer is none.
pub fn decode_joined(answer: &[u8], nonce: u64) -> Result<Option<u64>, CodecError> {
    let mut reader = Reader::new(answer);
    let replica = reader.varint()?;
    Ok((reader.varint()? == nonce).then_some(replica))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn address(node: u64) -> NodeAddress {
        NodeAddress { node: NodeId(node), host: "h".to_owned(), port: 1 }
    }

    fn members() -> Members {
        let nodes = (1..=3).map(|id| (id, address(id))).collect();
        Members::new(Membership { voters: vec![1, 2, 3], nodes, ..Membership::default() })
    }

    /// As long as it takes.
    const SILENT: (Millis, Millis) = (JOIN_SILENCE, JOIN_SILENCE);

    fn progress(replica: u64, matched: u64) -> ReplicaProgress {
        ReplicaProgress { replica, matched, is_active: true, is_behind: false, is_voter: replica < 10 }
    }

    fn done() -> (AdminDone, mpsc::Receiver<Result<Vec<u8>, String>>) {
        let (sender, receiver) = mpsc::channel();
        let done = AdminDone::new(move |result| {
            // Who waits may be gone at the end of a test.
            let _ = sender.send(result);
        });
        (done, receiver)
    }

    fn tick(members: &mut Members, conf: &ConfState, progress: &[ReplicaProgress]) -> Option<Proposal> {
        let (conf, progress) = (conf.clone(), progress.to_vec());
        let view = View { is_leading: true, leader: 1, conf, is_busy: false, progress, last: 5_000 };
        members.on_tick(&view, Monotonic(0))
    }

    #[test]
    fn a_node_without_its_disk_becomes_a_learner_and_then_takes_its_old_place() {
        let mut members = members();
        let mut conf = Members::conf_state(&members.membership);
        let (hear, heard) = done();
        assert!(members.join(true, NodeId(3), 7, address(3), SILENT, hear).is_some());
        assert_eq!(tick(&mut members, &conf, &[]), None);
        members.allocated(NodeId(3), 6, 1_000);
        assert_eq!(tick(&mut members, &conf, &[]), None, "an id of an earlier life");
        members.allocated(NodeId(3), 7, 1_001);
        let (proposed, context) = tick(&mut members, &conf, &[]).unwrap();
        assert_eq!(proposed, change(&[(ConfChangeType::AddLearnerNode, 1_001)]));
        conf.learners = vec![1_001];
        members.changed(&conf, &context);
        assert_eq!(members.node_of(1_001), Some(NodeId(3)));
        assert_eq!(tick(&mut members, &conf, &[progress(1_001, 10)]), None, "it is behind");
        assert_eq!(decode_joined(&heard.recv().unwrap().unwrap(), 7), Ok(Some(1_001)));
        let (proposed, _) = tick(&mut members, &conf, &[progress(1_001, 4_500)]).unwrap();
        assert_eq!(proposed, change(&[(ConfChangeType::RemoveNode, 3), (ConfChangeType::AddNode, 1_001)]));
        (conf.learners, conf.voters) = (vec![], vec![1, 2, 1_001]);
        assert_eq!(members.changed(&conf, &[]).nodes.keys().copied().collect::<Vec<_>>(), [1, 2, 1_001]);
        assert_eq!(tick(&mut members, &conf, &[]), None);
    }

    #[test]
    fn the_id_of_a_node_that_is_heard_is_not_given_away() {
        let mut members = members();
        let conf = Members::conf_state(&members.membership);
        let (hear, heard) = done();
        let young = (Millis(JOIN_SILENCE.0 - 1), JOIN_SILENCE);
        assert!(members.join(true, NodeId(3), 7, address(3), young, hear).is_none());
        let refusal = heard.recv().unwrap().unwrap_err();
        assert!(refusal.starts_with("node-id 3 is taken") && refusal.contains("5 s"), "{refusal}");
        members.allocated(NodeId(3), 7, 1_001);
        assert_eq!(tick(&mut members, &conf, &[]), None, "nothing is under way for it");
        let (hear, _heard) = done();
        assert!(members.join(true, NodeId(3), 7, address(3), SILENT, hear).is_some());
    }

    #[test]
    fn everybody_who_asked_is_answered_also_when_a_later_wish_takes_the_place_of_his() {
        let mut members = members();
        let all = [progress(2, 80), progress(3, 80)];
        let (first, heard_first) = done();
        let (second, heard_second) = done();
        assert_eq!(members.transfer(true, Some(NodeId(2)), &all, first, Monotonic(0)), Some(2));
        assert_eq!(members.transfer(true, Some(NodeId(3)), &all, second, Monotonic(0)), Some(3));
        assert!(heard_first.try_recv().unwrap().unwrap_err().contains("took its place"));
        let (first, heard_first) = done();
        let (again, heard_again) = done();
        members.join(true, NodeId(3), 7, address(3), SILENT, first);
        members.join(true, NodeId(3), 7, address(3), SILENT, again);
        assert!(heard_first.try_recv().unwrap().is_err());
        assert!(heard_second.try_recv().is_err() && heard_again.try_recv().is_err(), "they are under way");
        drop(members);
        assert!(heard_second.try_recv().unwrap().is_err() && heard_again.try_recv().unwrap().is_err());
    }

    #[test]
    fn only_an_active_voter_can_be_given_the_leadership() {
        let mut members = members();
        let mut behind = progress(3, 90);
        behind.is_active = false;
        let all = [progress(2, 80), behind, progress(1_001, 100)];
        let (hear, heard) = done();
        assert_eq!(members.transfer(true, Some(NodeId(3)), &all, hear, Monotonic(0)), None);
        assert!(heard.recv().unwrap().is_err());
        let (hear, heard) = done();
        assert_eq!(members.transfer(true, None, &all, hear, Monotonic(0)), Some(2));
        members.on_tick(&View { leader: 2, ..View::default() }, Monotonic(1));
        assert_eq!(heard.recv().unwrap(), Ok(Vec::new()));
    }

    #[test]
    fn a_joint_configuration_that_nobody_leaves_is_left() {
        let mut members = members();
        let mut conf = Members::conf_state(&members.membership);
        conf.voters_outgoing = vec![1, 2, 3];
        assert_eq!(tick(&mut members, &conf, &[]), None);
        let later = Monotonic(2_000_000_000);
        let view = View { is_leading: true, leader: 1, conf, ..View::default() };
        let left = members.on_tick(&view, later).unwrap();
        assert_eq!(left.0, ConfChangeV2::default());
    }
}
