//! What may be given to raft-rs of what a peer sent.
//!
//! raft-rs trusts its peers: it panics on a commit index beyond its log, on entries with holes, on a snapshot
//! without voters, on a term that overflows. One pure function stands in front of it. Nothing it refuses is ever
//! sent by a sane replica of this version.

use raft::Raft;
use raft::StateRole;
use raft::Storage;
use raft::eraftpb::ConfState;
use raft::eraftpb::Entry;
use raft::eraftpb::EntryType;
use raft::eraftpb::Message;
use raft::eraftpb::MessageType;

/// A peer's term is not further ahead than this: terms grow by elections, and overflow is a panic.
const TERM_AHEAD_MAX: u64 = 1 << 32;
/// No log is this long.
const INDEX_MAX: u64 = 1 << 62;
/// Contexts are read barriers' numbers and the name of a hand-over.
const CONTEXT_MAX: usize = 64;

/// Why a replica must not go on whose group agreed on something else than what was committed here: the others lost it.
pub const OTHER_ENTRIES: &str = "a leader's log contradicts what is committed here";
/// Why a replica must not go on whose disk lost what it had acknowledged.
pub const LOST_ENTRIES: &str = "the leader believes that this replica holds entries that it does not have";
/// Why a replica must not go on whose node has had another one since: the data directory was put back.
pub const REPLACED: &str = "the leader knows this node by a later replica than the one in its data directory";
/// Why a replica must not go on whose node has started since, on a directory that was put back meanwhile.
pub const OLD_DIRECTORY: &str =
    "the data directory is an older copy: others know of a later start of this node";

/// What is to be done with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Take,
    Drop,
    /// It shows that this replica's log is not what the group believes it to be.
    Quarantine(&'static str),
}

/// Judges a message for this replica.
#[must_use]
pub fn acceptable<S: Storage>(raft: &Raft<S>, message: &Message) -> Verdict {
    if MessageType::from_i32(message.msg_type).is_none() {
        return Verdict::Drop;
    }
    let is_addressed = message.from != 0 && message.from != raft.id && message.to == raft.id;
    let is_bounded = message.term != 0
        && message.term <= raft.term.saturating_add(TERM_AHEAD_MAX)
        && message.log_term <= message.term
        && message.index < INDEX_MAX
        && message.commit < INDEX_MAX
        && message.request_snapshot == 0
        && message.context.len() <= CONTEXT_MAX;
    if !is_addressed || !is_bounded {
        return Verdict::Drop;
    }
    if !message.entries.is_empty() && message.get_msg_type() != MessageType::MsgAppend {
        return Verdict::Drop;
    }
    let last = raft.raft_log.last_index();
    match message.get_msg_type() {
        MessageType::MsgAppend => judge_append(raft, message),
        MessageType::MsgHeartbeat if message.commit > last && message.term >= raft.term => {
            quarantine(raft, message, LOST_ENTRIES)
        }
        MessageType::MsgSnapshot => judge_snapshot(message),
        MessageType::MsgAppendResponse | MessageType::MsgHeartbeatResponse => {
            let is_beyond = message.commit > last || (!message.reject && message.index > last);
            let is_to_leader = raft.state == StateRole::Leader && message.term >= raft.term;
            drop_if(is_to_leader && (is_beyond || has_lost(raft, message)))
        }
        MessageType::MsgTimeoutNow => drop_if(message.term != raft.term || message.from != raft.leader_id),
        // Nobody can have answered yet: votes are asked for once everything before is written, and raft-rs panics when
        // a leader's log is not.
        MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse => {
            let stands = matches!(raft.state, StateRole::Candidate | StateRole::PreCandidate);
            drop_if(stands && raft.raft_log.persisted < last)
        }
        MessageType::MsgHeartbeat | MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
            Verdict::Take
        }
        // What replicas tell themselves, and what goes between nodes in other ways: proposals, read barriers,
        // hand-overs.
        _ => Verdict::Drop,
    }
}

/// True when a follower has less than it acknowledged in this term: within a term logs only grow. It must not be helped:
/// brought up to date it would go on voting as if it had never lost anything. The heartbeats tell it ([`LOST_ENTRIES`]).
fn has_lost<S: Storage>(raft: &Raft<S>, message: &Message) -> bool {
    let matched = raft.prs().get(message.from).map_or(0, |progress| progress.matched);
    message.reject && message.term == raft.term && message.reject_hint < matched
}

/// A node gives its data up for it, so only a voter's word counts.
fn quarantine<S: Storage>(raft: &Raft<S>, message: &Message, why: &'static str) -> Verdict {
    let conf = raft.prs().conf().to_conf_state();
    let is_voter = [&conf.voters, &conf.voters_outgoing].into_iter().any(|ids| ids.contains(&message.from));
    if is_voter { Verdict::Quarantine(why) } else { Verdict::Drop }
}

fn drop_if(is_wrong: bool) -> Verdict {
    if is_wrong { Verdict::Drop } else { Verdict::Take }
}

/// Entries follow `index` without holes, and their terms do not go back. What is committed is never replaced.
fn judge_append<S: Storage>(raft: &Raft<S>, message: &Message) -> Verdict {
    let mut term = message.log_term;
    for (at, entry) in (message.index + 1..).zip(&message.entries) {
        let is_known = EntryType::from_i32(entry.entry_type).is_some();
        if !is_known || entry.index != at || entry.term < term || entry.term > message.term || entry.term == 0
        {
            return Verdict::Drop;
        }
        term = entry.term;
    }
    if message.index == 0 && message.log_term != 0 {
        return Verdict::Drop;
    }
    let log = &raft.raft_log;
    if message.term < raft.term {
        return Verdict::Take;
    }
    // A majority may have lost what it had not synced, and agreed on something else in its place.
    let is_other = |entry: &Entry| {
        // Of what was purged the term is 0.
        entry.index <= log.committed
            && log.term(entry.index).is_ok_and(|term| term != 0 && term != entry.term)
    };
    if message.entries.iter().any(is_other) {
        return quarantine(raft, message, OTHER_ENTRIES);
    }
    if message.index < log.committed {
        return Verdict::Take;
    }
    // The entry before is at or after our commit: no leader's log has an older term there than what is committed.
    match log.term(log.committed) {
        Ok(committed) if message.log_term < committed => quarantine(raft, message, OTHER_ENTRIES),
        _ => Verdict::Take,
    }
}

fn judge_snapshot(message: &Message) -> Verdict {
    let meta = message.get_snapshot().get_metadata();
    let is_placed = meta.index > 0 && meta.index < INDEX_MAX && meta.term > 0 && meta.term <= message.term;
    drop_if(!is_placed || !is_consistent(meta.get_conf_state()))
}

/// True when a ConfState is one that raft-rs can be in.
#[must_use]
pub fn is_consistent(conf: &ConfState) -> bool {
    let is_set = |ids: &[u64]| {
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        sorted.windows(2).all(|pair| pair[0] != pair[1]) && !ids.contains(&0)
    };
    let all_sets = [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next];
    let is_joint = !conf.voters_outgoing.is_empty();
    let is_voter = |id: &u64| conf.voters.contains(id) || conf.voters_outgoing.contains(id);
    !conf.voters.is_empty()
        && all_sets.iter().all(|ids| is_set(ids))
        && !conf.learners.iter().any(is_voter)
        // Who becomes a learner when the joint configuration ends is a voter of the outgoing one until then.
        && conf.learners_next.iter().all(|id| conf.voters_outgoing.contains(id) && !conf.voters.contains(id))
        && (is_joint || (conf.learners_next.is_empty() && !conf.auto_leave))
}
