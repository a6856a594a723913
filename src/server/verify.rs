//! RAFT VERIFY: whether the nodes have the same state, and what becomes of one that has not.
//!
//! ```text
//! an entry says VERIFY ─► every node hashes its state as of it ─► tells the others with its status
//!   ─► each compares for itself: another digest than a majority has ─► it serves no data any more
//! ```
//! The states are proven equal only if every member gave its digest: one that says nothing may be the one that differs.
//! A node notices by itself, whoever asked: the one that asked may be down, or the one whose state is wrong.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::consensus::Role;
use crate::machine::entry::Batch;
use crate::resp::Reply;
use crate::server::Services;
use crate::server::errors;
use crate::server::members::Member;
use crate::server::members::everybody;
use crate::types::Millis;
use crate::types::NodeId;

/// How long RAFT VERIFY waits for nodes that have not answered.
const WAIT: Millis = Millis(10_000);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(20);

/// What the nodes had at one index.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Comparison {
    index: u64,
    /// `None` for a node that gave no digest of this index.
    digests: BTreeMap<NodeId, Option<u128>>,
    /// The members whose state at this index is not known.
    unproven: BTreeSet<NodeId>,
    /// Nobody is waited for any more.
    is_complete: bool,
}

impl Comparison {
    /// Compares at the newest index that anybody verified, which is `from` or, when others asked as well, a later one.
    fn of(everybody: &[Member], from: u64) -> Comparison {
        let verified = |member: &Member| member.info.as_ref().and_then(|info| info.verified);
        let newest = everybody.iter().filter_map(verified).map(|(index, _)| index).max();
        let index = newest.map_or(from, |newest| newest.max(from));
        let (digests, unproven) = (BTreeMap::new(), BTreeSet::new());
        let mut comparison = Comparison { index, digests, unproven, is_complete: true };
        for member in everybody {
            let digest = verified(member).filter(|(at, _)| *at == index).map(|(_, digest)| digest);
            // Past the index without a digest: a snapshot took it there. Before all of the log: it only joins.
            let is_elsewhere = member
                .info
                .as_ref()
                .is_some_and(|info| info.applied.0 > index || (info.applied.0 == 0 && !member.is_voter));
            comparison.is_complete &= digest.is_some() || is_elsewhere || !member.is_connected();
            let known = comparison.digests.entry(member.node).or_default();
            *known = known.or(digest);
        }
        let unknown = comparison.digests.iter().filter(|(_, digest)| digest.is_none());
        comparison.unproven = unknown.map(|(node, _)| *node).collect();
        comparison
    }

    /// Whether all nodes have the same state; `None` when those that answered have, and others did not answer.
    fn is_equal(&self) -> Option<bool> {
        let mut digests = self.digests.values().flatten();
        let first = digests.next();
        if digests.any(|digest| Some(digest) != first) {
            return Some(false);
        }
        (first.is_some() && self.unproven.is_empty()).then_some(true)
    }

    fn reply(&self) -> Reply {
        let digest = |digest: &Option<u128>| {
            digest.map_or(Reply::Null, |digest| Reply::text(format!("{digest:032x}")))
        };
        let digests = self.digests.iter().map(|(node, known)| (number(node.0), digest(known)));
        Reply::Map(vec![
            (Reply::bulk("index"), number(self.index)),
            (
                Reply::bulk("equal"),
                self.is_equal().map_or(Reply::Null, |is_equal| Reply::Integer(i64::from(is_equal))),
            ),
            (
                Reply::bulk("unproven"),
                Reply::Array(self.unproven.iter().map(|node| number(node.0)).collect()),
            ),
            (Reply::bulk("digests"), Reply::Map(digests.collect())),
        ])
    }
}

fn number(value: u64) -> Reply {
    Reply::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

/// The index at which this node's state differs from one that a majority has, if there is one. `nodes` is how many
/// there are; whose state is wrong may be wrong about that as well, so it is not asked who votes.
fn own_divergence(everybody: &[Member], nodes: usize) -> Option<u64> {
    let verified = |member: &Member| member.info.as_ref().and_then(|info| info.verified);
    let (index, own) = everybody.iter().find(|member| member.is_own).and_then(verified)?;
    let mut others: BTreeMap<u128, BTreeSet<NodeId>> = BTreeMap::new();
    for member in everybody.iter().filter(|member| !member.is_own) {
        if let Some((at, digest)) = verified(member)
            && at == index
            && digest != own
        {
            others.entry(digest).or_default().insert(member.node);
        }
    }
    others.values().any(|nodes_with_it| nodes_with_it.len() > nodes / 2).then_some(index)
}

/// Looks whether this node's state is wrong; once a second, and while RAFT VERIFY waits. A node that noticed serves no
/// data from then on and gives the lead away as often as it gets it.
pub fn look(services: &Arc<Services>) {
    let status = services.group.status();
    if services.diverged_at().is_none() {
        if status.verified.is_none() {
            return;
        }
        compare(services, &everybody(services));
    }
    if services.diverged_at().is_some() && status.role == Role::Leader {
        let given_away = services.group.transfer(None);
        tokio::spawn(async move {
            if let Err(reason) = given_away.await {
                tracing::error!("this node's state is wrong and it still leads: {reason}");
            }
        });
    }
}

fn compare(services: &Services, everybody: &[Member]) {
    let known: BTreeSet<NodeId> = everybody.iter().map(|member| member.node).collect();
    let nodes = known.len().max(services.config.get().cluster_nodes.len());
    if let Some(index) = own_divergence(everybody, nodes)
        && services.note_divergence(index)
    {
        let comparison = Comparison::of(everybody, index);
        tracing::error!(
            "this node's state at index {index} differs from what a majority of the nodes has: {:x?}. It serves no data \
             from now on. Stop it, remove its data directory and start it again: it will get the others' state",
            comparison.digests
        );
    }
}

/// Answers RAFT VERIFY: proposes the entry and waits for what the nodes have there. Cancel safe: the nodes compare
/// for themselves all the same.
pub async fn run(services: &Services) -> Reply {
    let mut batch = Batch::new(b"default");
    batch.push_verify();
    let from = match services.group.propose(batch).await {
        Ok(replies) => match replies.first() {
            Some(Reply::Integer(index)) => u64::try_from(*index).unwrap_or(0),
            _ => return Reply::error("ERR the log gave no index for the comparison"),
        },
        Err(error) => return errors::propose_error(&error),
    };
    let began = services.clock.monotonic();
    loop {
        let everybody = everybody(services);
        compare(services, &everybody);
        let comparison = Comparison::of(&everybody, from);
        if comparison.is_complete || services.clock.monotonic().since(began) >= WAIT {
            return comparison.reply();
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::members::testing::member;
    use crate::types::LogIndex;

    const HERE: u64 = 50;

    /// Members 1, 2 … with these digests at these indexes; node 1 is this node. All have applied up to `HERE`.
    fn with(verified: &[Option<(u64, u128)>]) -> Vec<Member> {
        let members = verified.iter().zip(1..).map(|(verified, node)| {
            let mut member = member(node, 5);
            let info = member.info.as_mut().unwrap();
            (info.verified, info.applied) = (*verified, LogIndex(HERE));
            member
        });
        members.collect()
    }

    #[test]
    fn a_comparison_waits_for_all_that_are_connected() {
        let mut members = with(&[Some((HERE, 7)), None, Some((HERE, 7))]);
        assert!(!Comparison::of(&members, HERE).is_complete);
        members[1].info.as_mut().unwrap().verified = Some((HERE - 10, 9));
        assert!(!Comparison::of(&members, HERE).is_complete);
        // Its link is gone.
        members[1].info.as_mut().unwrap().is_connected = false;
        let comparison = Comparison::of(&members, HERE);
        assert!(comparison.is_complete && comparison.is_equal().is_none(), "it may be the one that differs");
        let digest = Reply::text(format!("{:032x}", 7));
        let digests = [(1, digest.clone()), (2, Reply::Null), (3, digest)];
        let digests = digests.map(|(node, digest)| (Reply::Integer(node), digest)).to_vec();
        let expected = vec![
            (Reply::bulk("index"), Reply::Integer(HERE as i64)),
            (Reply::bulk("equal"), Reply::Null),
            (Reply::bulk("unproven"), Reply::Array(vec![Reply::Integer(2)])),
            (Reply::bulk("digests"), Reply::Map(digests)),
        ];
        assert_eq!(comparison.reply(), Reply::Map(expected));
        // What differs needs no more witnesses.
        members[2].info.as_mut().unwrap().verified = Some((HERE, 8));
        assert_eq!(Comparison::of(&members, HERE).is_equal(), Some(false));
        let members = with(&[Some((HERE, 7)), Some((HERE, 7)), Some((HERE, 7))]);
        assert_eq!(Comparison::of(&members, HERE).is_equal(), Some(true));
    }

    #[test]
    fn a_node_that_was_taken_past_the_index_is_not_waited_for() {
        let mut members = with(&[Some((HERE, 7)), None]);
        members[1].info.as_mut().unwrap().applied = LogIndex(HERE + 1);
        let comparison = Comparison::of(&members, HERE);
        assert!(comparison.is_complete && comparison.unproven == BTreeSet::from([NodeId(2)]));
        assert_eq!(comparison.is_equal(), None, "it passed over the check");
        // What it said last may be from before its first entry; one that does not vote may only be joining.
        members[1].info.as_mut().unwrap().applied = LogIndex(0);
        assert!(!Comparison::of(&members, HERE).is_complete);
        members[1].is_voter = false;
        assert!(Comparison::of(&members, HERE).is_complete);
    }

    #[test]
    fn a_later_comparison_of_somebody_else_does_as_well() {
        let members = with(&[Some((HERE, 7)), Some((HERE, 7)), Some((HERE, 8))]);
        let comparison = Comparison::of(&members, HERE - 1);
        assert_eq!(
            (comparison.index, comparison.is_complete, comparison.is_equal()),
            (HERE, true, Some(false))
        );
        // Nobody has come to it yet.
        let comparison = Comparison::of(&members, HERE + 1);
        assert!(!comparison.is_complete && comparison.is_equal().is_none());
    }

    #[test]
    fn only_a_majority_that_agrees_puts_a_node_in_the_wrong() {
        let own = Some((HERE, 1));
        let other = Some((HERE, 2));
        let wrong: [&[Option<(u64, u128)>]; 3] =
            [&[own, other, other], &[own, other, other, other], &[own, other, own, other, other]];
        for verified in wrong {
            assert_eq!(own_divergence(&with(verified), verified.len()), Some(HERE), "{verified:?}");
        }
        let right: [&[Option<(u64, u128)>]; 9] = [
            &[own],
            &[own, own, own],
            &[own, other],
            &[own, other, None],
            &[own, own, other],
            &[None, other, other],
            &[own, other, Some((HERE, 3))],
            &[own, Some((HERE - 1, 2)), Some((HERE - 1, 2))],
            &[own, other, other, own],
        ];
        for verified in right {
            assert_eq!(own_divergence(&with(verified), verified.len()), None, "{verified:?}");
        }
    }

    #[test]
    fn a_node_of_two_replicas_counts_once_and_silent_nodes_count() {
        let mut members = with(&[Some((HERE, 1)), Some((HERE, 2)), Some((HERE, 2))]);
        assert_eq!(own_divergence(&members, 5), None);
        members[2].node = NodeId(2);
        assert_eq!(own_divergence(&members, 3), None);
        members[2].node = NodeId(3);
        // It thinks that it is alone.
        members.iter_mut().for_each(|member| member.is_voter = false);
        assert_eq!(own_divergence(&members, 3), Some(HERE));
    }
}
