//! The members of the cluster as this node sees them: who belongs to it, what each said last, who still lives.
//!
//! Membership is what the log says, so it is a row of the applied state; everything else is hearsay, and may be old.
//!
//! ```text
//! heard ─► ALIVE ──2 x election-timeout──► SUSPECTED ──10 s──► DEAD      silence; heard again: ALIVE at once
//! ```

use crate::consensus::MemberInfo;
use crate::consensus::Role;
use crate::consensus::Status;
use crate::server::Services;
use crate::state::Membership;
use crate::types::LogIndex;
use crate::types::Millis;
use crate::types::NodeId;

/// A member that was silent for longer counts as dead, unless two election timeouts are more.
const DEAD_AFTER: Millis = Millis(10_000);

/// One replica of the membership.
#[derive(Debug, Clone)]
pub struct Member {
    pub node: NodeId,
    pub replica: u64,
    pub is_voter: bool,
    /// It is this node.
    pub is_own: bool,
    /// Whom it takes for the leader; `None` when it knows none, or was never heard.
    pub leader: Option<NodeId>,
    /// What it said last; `None` when it was never heard under this replica id.
    pub info: Option<MemberInfo>,
}

/// How long ago a member was heard, in three words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    Alive,
    Suspected,
    Dead,
}

impl Liveness {
    /// Judges a silence; `None` is one without end.
    #[must_use]
    pub fn after(silence: Option<Millis>, election_timeout: Millis) -> Liveness {
        let alive = Millis(election_timeout.0.saturating_mul(2));
        match silence {
            Some(silence) if silence <= alive => Liveness::Alive,
            Some(silence) if silence <= DEAD_AFTER => Liveness::Suspected,
            Some(_) | None => Liveness::Dead,
        }
    }

    /// As RAFT MEMBERS says it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Liveness::Alive => "ALIVE",
            Liveness::Suspected => "SUSPECTED",
            Liveness::Dead => "DEAD",
        }
    }
}

impl Member {
    /// How long ago it was heard; zero for this node itself, `None` when never.
    #[must_use]
    pub fn heard(&self) -> Option<Millis> {
        if self.is_own {
            return Some(Millis(0));
        }
        self.info.as_ref()?.heard.filter(|heard| *heard < Millis(u64::MAX))
    }

    /// True for this node, and for one with a link.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.is_own || self.info.as_ref().is_some_and(|info| info.is_connected)
    }

    /// Its role, if it was heard. Raft itself takes a learner for a follower.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        let role = self.info.as_ref()?.role;
        Some(if self.is_voter { role } else { Role::Learner })
    }
}

/// The members in the order of their nodes, this node always among them. A node has two replicas while one takes the
/// place of the other.
#[must_use]
pub fn members(services: &Services) -> Vec<Member> {
    let (membership, own, infos) = gather(services);
    join(&membership, own, &infos, false)
}

/// The members, and nodes that were heard without being any as far as this node's state goes: that may be wrong.
#[must_use]
pub fn everybody(services: &Services) -> Vec<Member> {
    let (membership, own, infos) = gather(services);
    join(&membership, own, &infos, true)
}

fn gather(services: &Services) -> (Membership, NodeId, Vec<MemberInfo>) {
    let membership = services.group.read_applied().membership().clone();
    let infos = services.group.members();
    let infos = if infos.is_empty() && services.group.is_set() {
        vec![own_info(services, &services.group.status())]
    } else {
        infos
    };
    (membership, services.config.get().node_id, infos)
}

fn join(membership: &Membership, own: NodeId, infos: &[MemberInfo], with_strangers: bool) -> Vec<Member> {
    let of_log = membership.nodes.iter().map(|(replica, address)| {
        let is_it = |info: &&MemberInfo| info.node == address.node && info.replica == *replica;
        (address.node, *replica, infos.iter().find(is_it))
    });
    let is_member =
        |info: &MemberInfo| membership.node_of(info.replica).is_some_and(|address| address.node == info.node);
    let is_shown = |info: &&MemberInfo| !is_member(info) && (with_strangers || info.node == own);
    let strangers = infos.iter().filter(is_shown).map(|info| (info.node, info.replica, Some(info)));
    let member = |(node, replica, info): (NodeId, u64, Option<&MemberInfo>)| Member {
        node,
        replica,
        is_voter: membership.is_voter(replica),
        // Of two replicas of this node the other one is gone: it says nothing.
        is_own: node == own && info.is_some(),
        leader: info.and_then(|info| membership.node_of(info.leader)).map(|leader| leader.node),
        info: info.cloned(),
    };
    let mut members: Vec<Member> = of_log.chain(strangers).map(member).collect();
    members.sort_by_key(|member| (member.node, member.replica));
    members
}

/// What a lone node knows of itself.
fn own_info(services: &Services, status: &Status) -> MemberInfo {
    let config = services.config.get();
    MemberInfo {
        node: config.node_id,
        replica: status.replica,
        role: status.role,
        term: status.term,
        leader: if status.role == Role::Leader { status.replica } else { 0 },
        commit: status.commit,
        applied: status.applied,
        matched: None,
        is_voter: None,
        is_connected: true,
        heard: None,
        rtt_us: None,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        port: config.port,
        disk_free: services.disk.free(),
        disk: services.disk.state(),
        disk_room: services.disk.takes(),
        verified: status.verified,
        link: None,
    }
}

/// The highest commit index that anybody spoke of.
#[must_use]
pub fn highest_commit(members: &[Member]) -> LogIndex {
    let known = members.iter().filter_map(|member| member.info.as_ref());
    known.map(|info| info.commit).max().unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod testing {
    //! Members as a test wants them.

    use super::*;
    use crate::storage::disk::DiskState;
    use crate::types::Term;

    /// A voter whose replica id is its node id, heard so many milliseconds ago; node 1 is this node.
    pub(crate) fn member(node: u64, heard: u64) -> Member {
        let info = MemberInfo {
            node: NodeId(node),
            replica: node,
            role: Role::Follower,
            term: Term(3),
            leader: 2,
            commit: LogIndex(10 + node),
            applied: LogIndex(10),
            matched: None,
            is_voter: None,
            is_connected: true,
            heard: (node != 1).then_some(Millis(heard)),
            rtt_us: Some(150),
            version: "0.1.0".to_owned(),
            port: 6379,
            disk_free: 1 << 30,
            disk: DiskState::Ok,
            disk_room: u64::MAX,
            verified: None,
            link: None,
        };
        Member {
            node: NodeId(node),
            replica: node,
            is_voter: true,
            is_own: node == 1,
            leader: Some(NodeId(2)),
            info: Some(info),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::member;
    use super::*;
    use crate::state::NodeAddress;

    #[test]
    fn silence_is_judged_in_three_steps() {
        let after = |silence| Liveness::after(silence, Millis(500));
        assert_eq!(after(Some(Millis(1_000))), Liveness::Alive);
        assert_eq!(after(Some(Millis(1_001))), Liveness::Suspected);
        assert_eq!(after(Some(Millis(10_000))), Liveness::Suspected);
        assert_eq!(after(Some(Millis(10_001))), Liveness::Dead);
        assert_eq!(after(None), Liveness::Dead);
        assert_eq!(Liveness::after(Some(Millis(15_000)), Millis(8_000)), Liveness::Alive);
    }

    #[test]
    fn members_are_those_of_the_log_with_what_they_said() {
        let address = |node| NodeAddress { node: NodeId(node), host: String::new(), port: 0 };
        let nodes = [(1, address(1)), (2, address(2)), (3, address(3)), (1_000, address(2))];
        let membership = Membership {
            voters: vec![1, 2, 3],
            learners: vec![1_000],
            nodes: nodes.into_iter().collect(),
            ..Membership::default()
        };
        let mut infos: Vec<MemberInfo> = [1, 2, 9].map(|node| member(node, 5).info.unwrap()).into();
        infos[1].replica = 1_000;
        infos[0].leader = 1_000;
        let members = join(&membership, NodeId(1), &infos, false);
        let told: Vec<_> = members
            .iter()
            .map(|member| {
                (member.node.0, member.replica, member.is_voter, member.role(), member.is_connected())
            })
            .collect();
        assert_eq!(
            told,
            [
                (1, 1, true, Some(Role::Follower), true),
                (2, 2, true, None, false),
                (2, 1_000, false, Some(Role::Learner), true),
                (3, 3, true, None, false),
            ]
        );
        assert_eq!((members[0].heard(), members[3].heard()), (Some(Millis(0)), None));
        assert_eq!((members[0].leader, members[3].leader), (Some(NodeId(2)), None));
        assert_eq!(highest_commit(&members), LogIndex(12));
        let nodes = |own, with_strangers| {
            let members = join(&membership, NodeId(own), &infos, with_strangers);
            members.iter().map(|member| member.node.0).collect::<Vec<_>>()
        };
        assert_eq!(nodes(1, true), [1, 2, 2, 3, 9]);
        // A node that its own state does not name.
        assert_eq!(nodes(9, false), [1, 2, 2, 3, 9]);
    }
}
