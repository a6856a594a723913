//! Who replicates the group, and where they are: a row of the state (DESIGN.md D5).
//!
//! ```text
//! replica id   what Raft counts; given out once, never again, so that a node that lost its disk cannot vote
//!              under its old name. The replicas that form a cluster have the ids of their nodes.
//! node id      what the operator wrote into a node's configuration; its replicas come and go.
//! ```
//! Configuration changes set it in the order of the log; it is empty in a data directory that knows of no other node.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::types::NodeId;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_bytes;
use crate::types::codec::put_varint;

/// The first replica id that is given out: the initial replicas, named by their nodes, are mostly below.
pub const FIRST_ALLOCATED: u64 = 1_000;
/// Replica ids end here, since they share 64 bits with a boot count in a session's epoch.
pub const REPLICA_MAX: u64 = (1 << 24) - 1;
/// Of this many nodes the last allocation is remembered; the oldest goes first.
const ALLOCATIONS_MAX: usize = 1_024;

/// First byte of an encoded membership.
const FORMAT: u8 = 1;

/// Where a replica's node is reached by its peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAddress {
    /// The node that holds the replica.
    pub node: NodeId,
    /// A name or an address, as its operator wrote it.
    pub host: String,
    /// The port its peers connect to.
    pub port: u16,
}

/// The replicas of the group. The first five fields are Raft's own; while `voters_outgoing` is not empty, two
/// majorities decide.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership {
    /// Replicas that vote.
    pub voters: Vec<u64>,
    /// Replicas that receive the log and do not vote.
    pub learners: Vec<u64>,
    /// Voters of the configuration that is being left.
    pub voters_outgoing: Vec<u64>,
    /// Voters of that configuration that will be learners.
    pub learners_next: Vec<u64>,
    /// The leader ends a configuration with two majorities by itself.
    pub auto_leave: bool,
    /// Where each replica is.
    pub nodes: BTreeMap<u64, NodeAddress>,
    /// Above every replica id that was ever used; 0 before the first [`Membership`] was set.
    pub next_replica: u64,
    /// What each node asked for last and got: nonce and replica id.
    pub allocated: BTreeMap<NodeId, (u64, u64)>,
}

impl Membership {
    /// The replica of a node: voter or learner, in the old configuration or the new one. While one replaces the
    /// other it has two, of which the later counts. `None` when it has none.
    #[must_use]
    pub fn replica_of(&self, node: NodeId) -> Option<u64> {
        let is_of = |replica: &u64| self.nodes.get(replica).is_some_and(|address| address.node == node);
        self.replicas().filter(is_of).max()
    }

    /// The node of a replica and where it is; `None` when the replica is not known.
    #[must_use]
    pub fn node_of(&self, replica: u64) -> Option<&NodeAddress> {
        self.nodes.get(&replica)
    }

    /// True when the replica votes, in the old configuration or the new one.
    #[must_use]
    pub fn is_voter(&self, replica: u64) -> bool {
        self.voters.contains(&replica) || self.voters_outgoing.contains(&replica)
    }

    /// True when nobody is a member: the data directory is not of a cluster that knows of its nodes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.voters.is_empty()
    }

    /// Voters and learners of both configurations; some may come twice.
    fn replicas(&self) -> impl Iterator<Item = u64> {
        [&self.voters, &self.learners, &self.voters_outgoing, &self.learners_next]
            .into_iter()
            .flatten()
            .copied()
    }

    /// True when a node still has a replica or an address.
    fn names(&self, node: NodeId) -> bool {
        self.nodes.values().any(|address| address.node == node)
    }

    /// The nodes that `self` knew and `next` does not know any more.
    pub(super) fn nodes_gone(&self, next: &Membership) -> BTreeSet<NodeId> {
        self.nodes.values().map(|address| address.node).filter(|node| !next.names(*node)).collect()
    }

    /// Takes over what only the state decides (which ids were given out), and orders the lists: Raft keeps them in
    /// hash tables, whose order differs between replicas.
    pub(super) fn succeed(&mut self, before: &Membership) {
        for list in [&mut self.voters, &mut self.learners, &mut self.voters_outgoing, &mut self.learners_next]
        {
            list.sort_unstable();
            list.dedup();
        }
        self.allocated.extend(before.allocated.iter().map(|(node, allocation)| (*node, *allocation)));
        let highest = self.replicas().chain(self.nodes.keys().copied()).max().unwrap_or(0);
        self.next_replica =
            self.next_replica.max(before.next_replica).max(highest.saturating_add(1)).max(FIRST_ALLOCATED);
    }

    /// A replica id that was never used, for `node`. The same nonce again gets the same id; another one gets
    /// another id. `None` when all are used up.
    pub(super) fn allocate(&mut self, node: NodeId, nonce: u64) -> Option<u64> {
        if let Some((known, replica)) = self.allocated.get(&node)
            && *known == nonce
        {
            return Some(*replica);
        }
        let replica = self.next_replica.max(FIRST_ALLOCATED);
        if replica > REPLICA_MAX {
            return None;
        }
        self.next_replica = replica + 1;
        self.allocated.insert(node, (nonce, replica));
        if self.allocated.len() > ALLOCATIONS_MAX {
            let oldest = self.allocated.iter().min_by_key(|(_, (_, replica))| *replica);
            if let Some(oldest) = oldest.map(|(node, _)| *node) {
                self.allocated.remove(&oldest);
            }
        }
        Some(replica)
    }

    /// Appends the membership: its row, and what the context of a configuration change may carry.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(FORMAT);
        for list in [&self.voters, &self.learners, &self.voters_outgoing, &self.learners_next] {
            put_varint(out, list.len() as u64);
            list.iter().for_each(|replica| put_varint(out, *replica));
        }
        out.push(u8::from(self.auto_leave));
        put_varint(out, self.nodes.len() as u64);
        for (replica, address) in &self.nodes {
            put_varint(out, *replica);
            put_varint(out, address.node.0);
            put_bytes(out, address.host.as_bytes());
            put_varint(out, u64::from(address.port));
        }
        put_varint(out, self.next_replica);
        put_varint(out, self.allocated.len() as u64);
        for (node, (nonce, replica)) in &self.allocated {
            put_varint(out, node.0);
            put_varint(out, *nonce);
            put_varint(out, *replica);
        }
    }

    /// Reads what [`Membership::encode`] wrote.
    ///
    /// # Errors
    ///
    /// The bytes are cut short, have a tail, or are no membership of this version. Memory is bounded by their length.
    pub fn decode(bytes: &[u8]) -> Result<Membership, CodecError> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != FORMAT {
            return Err(CodecError("a membership of an unknown format"));
        }
        let mut membership = Membership {
            voters: decode_list(&mut reader)?,
            learners: decode_list(&mut reader)?,
            voters_outgoing: decode_list(&mut reader)?,
            learners_next: decode_list(&mut reader)?,
            auto_leave: match reader.u8()? {
                0 => false,
                1 => true,
                _ => return Err(CodecError("a flag that is neither 0 nor 1")),
            },
            ..Membership::default()
        };
        for _ in 0..reader.varint()? {
            let (replica, address) = (reader.varint()?, decode_address(&mut reader)?);
            membership.nodes.insert(replica, address);
        }
        membership.next_replica = reader.varint()?;
        for _ in 0..reader.varint()? {
            let (node, nonce, replica) = (NodeId(reader.varint()?), reader.varint()?, reader.varint()?);
            membership.allocated.insert(node, (nonce, replica));
        }
        if !reader.is_empty() {
            return Err(CodecError("a membership with a tail"));
        }
        Ok(membership)
    }
}

fn decode_list(reader: &mut Reader<'_>) -> Result<Vec<u64>, CodecError> {
    let mut list = Vec::new();
    for _ in 0..reader.varint()? {
        list.push(reader.varint()?);
    }
    Ok(list)
}

fn decode_address(reader: &mut Reader<'_>) -> Result<NodeAddress, CodecError> {
    let node = NodeId(reader.varint()?);
    let host = std::str::from_utf8(reader.bytes()?).map_err(|_| CodecError("a host that is no text"))?;
    let port = u16::try_from(reader.varint()?).map_err(|_| CodecError("a port out of range"))?;
    Ok(NodeAddress { node, host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_map;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::state::State;
    use crate::state::sessions::Admission;
    use crate::state::sessions::Remembered;
    use crate::state::test_support::TestStore;
    use crate::types::ClusterTime;
    use crate::types::LogIndex;
    use crate::types::Term;
    use crate::types::WallMillis;

    fn address(node: u64) -> NodeAddress {
        NodeAddress { node: NodeId(node), host: format!("node-{node}"), port: 17_000 + node as u16 }
    }

    /// Voters with their nodes.
    fn of(replicas: &[(u64, u64)]) -> Membership {
        Membership {
            voters: replicas.iter().map(|(replica, _)| *replica).collect(),
            nodes: replicas.iter().map(|(replica, node)| (*replica, address(*node))).collect(),
            ..Membership::default()
        }
    }

    fn membership() -> impl Strategy<Value = Membership> {
        let list = || vec(any::<u64>(), 0..4);
        let address = (any::<u64>(), ".{0,12}", any::<u16>()).prop_map(|(node, host, port)| NodeAddress {
            node: NodeId(node),
            host,
            port,
        });
        let allocated = btree_map(any::<u64>().prop_map(NodeId), any::<(u64, u64)>(), 0..4);
        let lists = (list(), list(), list(), list(), any::<bool>());
        (lists, btree_map(any::<u64>(), address, 0..4), any::<u64>(), allocated).prop_map(
            |(
                (voters, learners, voters_outgoing, learners_next, auto_leave),
                nodes,
                next_replica,
                allocated,
            )| {
                Membership {
                    voters,
                    learners,
                    voters_outgoing,
                    learners_next,
                    auto_leave,
                    nodes,
                    next_replica,
                    allocated,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded_and_nothing_shorter_is(membership in membership()) {
            let mut bytes = Vec::new();
            membership.encode(&mut bytes);
            prop_assert_eq!(Membership::decode(&bytes), Ok(membership));
            for length in 0..bytes.len() {
                prop_assert!(Membership::decode(&bytes[..length]).is_err(), "cut at {}", length);
            }
            bytes.push(0);
            prop_assert!(Membership::decode(&bytes).is_err());
        }

        #[test]
        fn random_bytes_are_refused_or_decoded_without_a_panic(mut bytes in vec(any::<u8>(), 0..100)) {
            let _ = Membership::decode(&bytes);
            bytes.insert(0, FORMAT);
            let _ = Membership::decode(&bytes);
        }
    }

    #[test]
    fn a_node_with_two_replicas_goes_by_the_later_one() {
        let mut membership = of(&[(1, 1), (2, 2), (1_003, 3)]);
        membership.voters_outgoing = vec![1, 2, 3];
        membership.nodes.insert(3, address(3));
        membership.nodes.insert(1_007, address(2));
        assert_eq!(membership.replica_of(NodeId(3)), Some(1_003));
        assert_eq!(membership.replica_of(NodeId(2)), Some(2), "an address alone is no replica");
        assert_eq!(membership.replica_of(NodeId(4)), None);
        membership.learners = vec![1_007];
        assert_eq!(membership.replica_of(NodeId(2)), Some(1_007));
        assert!(membership.is_voter(3) && membership.is_voter(1_003) && !membership.is_voter(1_007));
        assert_eq!(membership.node_of(1_003), Some(&address(3)));
        assert_eq!(membership.node_of(4), None);
    }

    #[test]
    fn a_replica_id_is_given_out_once_and_its_question_may_be_repeated() {
        let mut state = State::new(16);
        assert!(state.membership().is_empty());
        state.set_membership(of(&[(1, 1), (2, 2), (5_000, 5_000)]));
        assert_eq!(state.allocate_replica(NodeId(4), 77), Some(5_001));
        assert_eq!(state.allocate_replica(NodeId(4), 77), Some(5_001));
        assert_eq!(state.allocate_replica(NodeId(6), 77), Some(5_002));
        assert_eq!(state.allocate_replica(NodeId(4), 78), Some(5_003));
        // A configuration that knows nothing of ids brings none back.
        state.set_membership(of(&[(1, 1)]));
        assert_eq!(state.allocate_replica(NodeId(6), 77), Some(5_002));
        assert_eq!(state.allocate_replica(NodeId(6), 79), Some(5_004));
        state.set_membership(of(&[(REPLICA_MAX, 1)]));
        assert_eq!(state.allocate_replica(NodeId(6), 80), None);
        let mut fresh = State::new(16);
        fresh.set_membership(of(&[(1, 1)]));
        assert_eq!(fresh.allocate_replica(NodeId(1), 0), Some(FIRST_ALLOCATED));
    }

    #[test]
    fn allocations_of_ever_new_nodes_do_not_fill_the_memory() {
        let mut membership = Membership::default();
        for node in (0..2 * ALLOCATIONS_MAX as u64).rev() {
            assert!(membership.allocate(NodeId(node), 1).is_some());
        }
        assert_eq!(membership.allocated.len(), ALLOCATIONS_MAX);
        assert!(membership.allocated.contains_key(&NodeId(0)), "the latest is remembered");
    }

    #[test]
    fn membership_is_a_row_of_the_state_whatever_order_raft_gives() {
        let store = TestStore::new();
        let digests: Vec<u128> = [[3, 1, 2], [2, 3, 1]]
            .iter()
            .map(|order| {
                let mut state = State::new(16);
                let empty = state.digest();
                let replicas: Vec<(u64, u64)> = order.iter().map(|id| (*id, *id)).collect();
                state.set_membership(of(&replicas));
                assert_ne!(state.digest(), empty);
                assert_eq!(state.pending_changes().listed, 1);
                state.digest()
            })
            .collect();
        assert_eq!(digests[0], digests[1]);
        let mut state = State::new(16);
        state.set_membership(of(&[(1, 1), (2, 2)]));
        state.allocate_replica(NodeId(3), 9);
        state.begin_entry(LogIndex(1), Term(1), ClusterTime(0), WallMillis(0));
        let expected = state.membership().clone();
        store.reopen(&mut state);
        assert_eq!(state.membership(), &expected);
        assert_eq!(state.pending_changes().listed, 0);
    }

    #[test]
    fn a_node_that_left_cannot_repeat_and_its_replies_are_forgotten() {
        let mut state = State::new(16);
        state.set_membership(of(&[(1, 1), (2, 2)]));
        for node in [NodeId(1), NodeId(2), NodeId(7)] {
            assert_eq!(state.admit_batch(node, 5, 1, 0), Admission::Execute);
            state.remember_replies(node, 1, Remembered::Oks(1));
        }
        state.set_membership(of(&[(1, 1)]));
        assert!(matches!(state.admit_batch(NodeId(1), 5, 1, 0), Admission::Repeated(_)));
        assert_eq!(state.admit_batch(NodeId(2), 5, 1, 0), Admission::Replayed);
        assert!(matches!(state.admit_batch(NodeId(7), 5, 1, 0), Admission::Repeated(_)));
    }
}
