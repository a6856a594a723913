//! RAFT: who belongs to the cluster, who leads, and what operators ask of it. Answered by any node.

use std::time::Duration;

use crate::consensus::Role;
use crate::consensus::Status;
use crate::resp::Reply;
use crate::resp::Request;
use crate::resp::arguments::parse_i64;
use crate::server::Services;
use crate::server::client_command::help;
use crate::server::members::Liveness;
use crate::server::members::Member;
use crate::server::members::highest_commit;
use crate::server::members::members;
use crate::server::session::Answer;
use crate::server::verify;
use crate::types::LogIndex;
use crate::types::Millis;
use crate::types::NodeId;

/// How long RAFT TRANSFER waits; the leader itself gives up earlier.
const TRANSFER_WAIT: Duration = Duration::from_secs(5);

const HELP: &[&str] = &[
    "RAFT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "INFO",
    "    Return where this node stands: role, leader, commit and applied index.",
    "MEMBERS",
    "    Return the members of the cluster and what this node knows of each.",
    "SNAPSHOT",
    "    Let this node make a snapshot for nodes that are far behind.",
    "TRANSFER [<node-id>]",
    "    Hand the lead over to <node-id>, or to the node that is most up to date.",
    "VERIFY",
    "    Compare the states of all nodes as of one place in the log.",
    "HELP",
    "    Print this help.",
];

/// What takes its time: the connection waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Later {
    /// Hand the lead over to this node, or to whoever is best.
    Transfer(Option<NodeId>),
    /// Compare the nodes' states.
    Verify,
}

/// Runs the subcommand `sub`.
pub fn run(services: &Services, sub: &str, request: &Request) -> Answer {
    match sub {
        "info" => Reply::Map(named(info(services))).into(),
        "members" => {
            let members = members(services);
            let commit = highest_commit(&members);
            let election_timeout = services.config.get().election_timeout;
            Reply::Array(members.iter().map(|member| row(member, commit, election_timeout)).collect()).into()
        }
        "transfer" => transfer(services, request),
        "snapshot" => {
            services.group.make_snapshot();
            Reply::Ok.into()
        }
        "verify" => Answer::Later(Later::Verify),
        "help" => help(HELP).into(),
        _ => Reply::error("ERR this version does not know that RAFT subcommand").into(),
    }
}

/// Does what takes its time. Dropping it takes nothing back.
pub async fn run_later(services: &Services, later: Later) -> Reply {
    match later {
        Later::Verify => verify::run(services).await,
        Later::Transfer(to) => {
            let failed = |why: &str| Reply::error(format!("ERR the lead was not handed over: {why}"));
            match tokio::time::timeout(TRANSFER_WAIT, services.group.transfer(to)).await {
                Ok(Ok(())) => Reply::Ok,
                Ok(Err(why)) => failed(&why),
                Err(_elapsed) => failed("nobody answered in time"),
            }
        }
    }
}

/// The node that leads as far as this one knows. A lone node is known to the log by its replica only.
pub fn leader(services: &Services, status: &Status) -> Option<NodeId> {
    if status.role == Role::Leader { Some(services.config.get().node_id) } else { status.leader }
}

/// Names and values of RAFT INFO.
pub fn info(services: &Services) -> Vec<(&'static str, Reply)> {
    let (group, config) = (&services.group, services.config.get());
    let status = group.status();
    let membership = group.read_applied().membership().clone();
    let is_voter = membership.is_voter(status.replica);
    let role = if is_voter || membership.is_empty() { status.role } else { Role::Learner };
    vec![
        ("node", number(config.node_id.0)),
        ("replica", number(status.replica)),
        ("role", Reply::bulk(role.name())),
        ("term", number(status.term.0)),
        ("leader", number(leader(services, &status).map_or(0, |leader| leader.0))),
        ("leader_heard_ms", maybe(services.group.leader_silence().map(|silence| silence.0))),
        ("commit", number(status.commit.0)),
        ("applied", number(status.applied.0)),
        ("lag", number(status.commit.0.saturating_sub(status.applied.0))),
        ("flushed", number(status.flushed.0)),
        ("log_bytes", number(status.log_bytes)),
        ("entries_in_flight", number(status.entries_in_flight)),
        ("leader_changes", number(status.leader_changes)),
        ("snapshots_installed", number(status.snapshots_installed)),
        ("read_consistency", Reply::text(config.shown("read-consistency").unwrap_or_default())),
        ("cluster_size", number(membership.voters.len() as u64)),
        ("cluster_time_ms", number(group.now().0)),
        ("verified", maybe(status.verified.map(|(index, _)| index))),
        ("diverged", maybe(services.diverged_at())),
    ]
}

fn row(member: &Member, commit: LogIndex, election_timeout: Millis) -> Reply {
    let info = member.info.as_ref();
    let role = member.role().map_or(Reply::Null, |role| Reply::bulk(role.name()));
    let applied = info.map(|info| info.applied.0);
    let heard = member.heard();
    Reply::Map(named(vec![
        ("node", number(member.node.0)),
        ("replica", number(member.replica)),
        ("voter", Reply::bulk(if member.is_voter { "voter" } else { "learner" })),
        ("role", role),
        ("term", maybe(info.map(|info| info.term.0))),
        ("leader", maybe(info.map(|_| member.leader.map_or(0, |leader| leader.0)))),
        ("commit", maybe(info.map(|info| info.commit.0))),
        ("applied", maybe(applied)),
        ("lag", maybe(applied.map(|applied| commit.0.saturating_sub(applied)))),
        ("state", Reply::bulk(Liveness::after(heard, election_timeout).name())),
        ("connected", Reply::Integer(i64::from(member.is_connected()))),
        ("heard_ms", maybe(heard.map(|heard| heard.0))),
        ("rtt_us", maybe(info.and_then(|info| info.rtt_us))),
        ("version", info.map_or(Reply::Null, |info| Reply::text(info.version.clone()))),
        ("port", maybe(info.map(|info| u64::from(info.port)))),
        ("disk_free", maybe(info.map(|info| info.disk_free))),
    ]))
}

fn transfer(services: &Services, request: &Request) -> Answer {
    if request.len() > 3 {
        return Reply::error("ERR wrong number of arguments for 'raft|transfer' command").into();
    }
    let members = members(services);
    if members.len() < 2 {
        return Reply::error("ERR this node is alone: there is nobody to hand the lead over to").into();
    }
    let Some(word) = request.get(2) else { return Answer::Later(Later::Transfer(None)) };
    match target(word, &members, leader(services, &services.group.status())) {
        Ok(Some(node)) => Answer::Later(Later::Transfer(Some(node))),
        Ok(None) => Reply::Ok.into(),
        Err(refusal) => refusal.into(),
    }
}

/// The node that is to lead; `None` when it leads already.
fn target(word: &[u8], members: &[Member], leader: Option<NodeId>) -> Result<Option<NodeId>, Reply> {
    let node = parse_i64(word).and_then(|node| u64::try_from(node).ok()).map(NodeId);
    let Some(node) = node else { return Err(Reply::error("ERR node-id is not an integer or out of range")) };
    match members.iter().filter(|member| member.node == node).map(|member| member.is_voter).max() {
        None => Err(Reply::error(format!("ERR node {node} is no member of this cluster"))),
        Some(false) => Err(Reply::error(format!("ERR node {node} is a learner and cannot lead"))),
        Some(true) => Ok((leader != Some(node)).then_some(node)),
    }
}

fn number(value: u64) -> Reply {
    Reply::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

fn maybe(value: Option<u64>) -> Reply {
    value.map_or(Reply::Null, number)
}

fn named(pairs: Vec<(&'static str, Reply)>) -> Vec<(Reply, Reply)> {
    pairs.into_iter().map(|(name, value)| (Reply::bulk(name), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::members::testing::member;

    fn field(row: &Reply, name: &str) -> Reply {
        let Reply::Map(pairs) = row else { panic!("{row:?}") };
        let found = pairs.iter().find(|(key, _)| *key == Reply::bulk(name));
        found.unwrap_or_else(|| panic!("no {name}")).1.clone()
    }

    fn told(member: &Member) -> Reply {
        row(member, LogIndex(25), Millis(500))
    }

    #[test]
    fn a_member_tells_where_it_stands() {
        let row = told(&member(3, 1_200));
        for (name, expected) in [
            ("node", Reply::Integer(3)),
            ("voter", Reply::bulk("voter")),
            ("role", Reply::bulk("follower")),
            ("leader", Reply::Integer(2)),
            ("lag", Reply::Integer(15)),
            ("state", Reply::bulk("SUSPECTED")),
            ("connected", Reply::Integer(1)),
            ("heard_ms", Reply::Integer(1_200)),
            ("rtt_us", Reply::Integer(150)),
        ] {
            assert_eq!(field(&row, name), expected, "{name}");
        }
        assert_eq!(field(&told(&member(1, 0)), "heard_ms"), Reply::Integer(0));
    }

    #[test]
    fn a_member_that_was_never_heard_has_a_row() {
        let row = told(&Member { info: None, is_voter: false, ..member(4, 0) });
        assert_eq!(field(&row, "node"), Reply::Integer(4));
        assert_eq!(field(&row, "voter"), Reply::bulk("learner"));
        assert_eq!(field(&row, "state"), Reply::bulk("DEAD"));
        assert_eq!(field(&row, "connected"), Reply::Integer(0));
        for name in ["role", "term", "leader", "commit", "applied", "lag", "heard_ms", "version"] {
            assert_eq!(field(&row, name), Reply::Null, "{name}");
        }
    }

    #[test]
    fn the_lead_goes_to_voters_only() {
        let learner = Member { is_voter: false, ..member(3, 5) };
        let members = [member(1, 0), member(2, 5), learner];
        let target = |word: &[u8]| target(word, &members, Some(NodeId(1)));
        assert_eq!(target(b"2"), Ok(Some(NodeId(2))));
        assert_eq!(target(b"1"), Ok(None));
        for (word, why) in [
            (&b"3"[..], "ERR node 3 is a learner and cannot lead"),
            (b"99", "ERR node 99 is no member of this cluster"),
            (b"two", "ERR node-id is not an integer or out of range"),
            (b"-1", "ERR node-id is not an integer or out of range"),
        ] {
            assert_eq!(target(word), Err(Reply::error(why)));
        }
    }
}
