//! One replica of one group: raft-rs wrapped into a pure state machine.
//!
//! No clock, no chance, no threads, no I/O. [`GroupCore::step`] takes one input, [`GroupCore::drain`]
//! collects what is to be done; both only give outputs. `step` many inputs and `drain` once: that is where
//! batching comes from.
//!
//! The order of a Ready's parts, which raft-rs demands (raft_rs raw_node.rs, and TiKV does the same):
//!
//! ```text
//! ready()  ─► messages of a leader            may leave at once: it replicates while it syncs
//!          ─► persisted messages (acks, votes) wait until this Ready is durable; answers to heartbeats only for a
//!                                             term or a vote that is not
//!          ─► committed entries               to apply; they are durable here already
//!          ─► entries, hard state             readable through the cache before advance_append_async
//! must_sync     ─► Persist{token}, the messages wait under that token
//! not must_sync ─► the messages wait behind the youngest Persist, or leave when none is under way
//! Persisted(token) ─► messages up to it leave; on_persist_ready(everything before the next that waits)
//! snapshot      ─► Install{token}; nothing else is stepped until Installed(token)
//! ```
//!
//! Three guards stand around raft-rs: [`acceptable`] in front of every message, because it panics on some that only a
//! broken or hostile peer sends; the **vote guard**, because raft-rs forgets whom a replica promised not to depose,
//! when it starts again (tikv#15035) and when it hears of a higher term from anybody; and the **lease**
//! ([`crate::consensus::raft::lease`]).

use std::collections::VecDeque;

use prost::Message as _;
use raft::Config;
use raft::ProgressState;
use raft::RawNode;
use raft::SnapshotStatus;
use raft::StateRole;
use raft::Storage;
use raft::eraftpb::ConfChange;
use raft::eraftpb::ConfChangeSingle;
use raft::eraftpb::ConfChangeTransition;
use raft::eraftpb::ConfChangeType;
use raft::eraftpb::ConfChangeV2;
use raft::eraftpb::ConfState;
use raft::eraftpb::Entry;
use raft::eraftpb::EntryType;
use raft::eraftpb::HardState;
use raft::eraftpb::Message;
use raft::eraftpb::MessageType;
use raft::eraftpb::Snapshot;

use crate::consensus::raft::acceptable::Verdict;
use crate::consensus::raft::acceptable::acceptable;
use crate::consensus::raft::flow::Flow;
use crate::consensus::raft::flow::Verdict as FlowVerdict;
use crate::consensus::raft::lease::Lease;
use crate::consensus::raft::log_cache::Fetch;
use crate::consensus::raft::log_cache::LogCache;
use crate::consensus::raft::log_cache::Replaced;
use crate::types::Boottime;
use crate::types::planted::Bug;
use crate::types::planted::is_planted;

/// The context of votes that a leader asked for: they go through the guards.
const CAMPAIGN_TRANSFER: &[u8] = b"CampaignTransfer";

/// How a group elects and how much it moves at a time.
#[derive(Debug, Clone, Copy)]
pub struct CoreOptions {
    /// This replica's id in the group: from 1, never used twice.
    pub replica: u64,
    /// Ticks without a leader before a replica stands for election (to twice as many).
    pub election_ticks: usize,
    /// Ticks between heartbeats; fewer than `election_ticks`.
    pub heartbeat_ticks: usize,
    /// The term that the group began in: a replica that is still in it has promised nothing to anybody.
    pub first_term: u64,
    /// Length of a tick in nanoseconds.
    pub tick_nanos: u64,
    /// Drives the choice of election timeouts, so that a run can be repeated exactly.
    pub seed: u64,
}

/// What can happen to a replica.
#[derive(Debug)]
pub enum Input {
    /// One tick of time has passed.
    Tick,
    /// A message from another replica.
    Message(Box<Message>),
    /// An entry's data, to be agreed on. Only a leader takes it.
    Propose(Vec<u8>),
    /// A change of the members, with what the state wants to know about it. Only a leader takes it.
    ConfChange { change: ConfChangeV2, context: Vec<u8> },
    /// Everything up to this token is durable.
    Persisted(u64),
    /// Everything up to this index is applied.
    Applied(u64),
    /// A read barrier under this number, never used before. Only a leader takes it.
    ReadIndex(u64),
    /// Give the leadership to this voter.
    Transfer(u64),
    /// The link to this replica is gone, with what was on it.
    Unreachable(u64),
    /// The node of this replica is linked and alive, however long it takes to answer: a leader does not give up for its
    /// sake.
    Alive(u64),
    /// A message to this replica was not sent: its link takes no more now.
    NotTaken(u64),
    /// A snapshot of this state can be sent.
    SnapshotReady(Box<Snapshot>),
    /// The snapshot for this replica arrived there, or did not.
    SnapshotSent { to: u64, ok: bool },
    /// The snapshot of [`Output::Install`] is in place: log, state and applied index.
    Installed(u64),
    /// What [`Output::Fetch`] asked for; empty when it is not on disk any more.
    Fetched { fetch: Fetch, entries: Vec<Entry> },
    /// Stand for election now, unless a leader was heard lately.
    Campaign,
    /// Forget from memory entries up to this index, as far as they are applied.
    Release(u64),
    /// The entries up to this index are not on disk any more.
    Compact(u64),
}

/// What is to be made durable before [`Input::Persisted`] comes with its token; tokens in order.
#[derive(Debug)]
pub struct Persist {
    pub token: u64,
    /// They replace whatever the log holds from the first one's index on.
    pub entries: Vec<Entry>,
    /// Indices on disk that are not valid any more; to be removed before the entries are written.
    pub replaced: Replaced,
    pub hard_state: Option<HardState>,
}

/// A snapshot that takes the place of log and state.
#[derive(Debug)]
pub struct Install {
    pub token: u64,
    pub snapshot: Snapshot,
    /// Its commit is at or after the snapshot's index.
    pub hard_state: HardState,
}

/// Committed entries, and the members after each change among them.
#[derive(Debug)]
pub struct Committed {
    pub entries: Vec<Entry>,
    /// (index, members from there on), in log order.
    pub changes: Vec<(u64, ConfState)>,
}

/// What is to be done.
#[derive(Debug)]
pub enum Output {
    /// Send these now.
    Send(Vec<Message>),
    /// Make this durable.
    Persist(Persist),
    /// Put this snapshot in place; until [`Input::Installed`] nothing else is stepped.
    Install(Box<Install>),
    /// Apply these, in order.
    Apply(Committed),
    /// The proposal stands at this position; its fate is known when that index is applied.
    Proposed { index: u64, term: u64 },
    /// The proposal was not taken, and never will be.
    Dropped,
    /// The read barrier holds once `index` is applied.
    ReadReady { context: u64, index: u64 },
    /// Role, term or leader changed. Leader 0: unknown.
    Role { role: StateRole, term: u64, leader: u64 },
    /// A follower needs a snapshot: make one, and give it as [`Input::SnapshotReady`].
    SnapshotWanted,
    /// Bring the state of this snapshot to the replica, then this message, then tell [`Input::SnapshotSent`].
    SendSnapshot(Box<Message>),
    /// Read these from disk.
    Fetch(Fetch),
    /// This replica lost what it had acknowledged, or its log is not the leader's: it must not go on.
    Quarantine(&'static str),
}

/// What a leader knows of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaProgress {
    pub replica: u64,
    /// Its log equals ours up to here.
    pub matched: u64,
    /// It answered within the last election timeout.
    pub is_active: bool,
    /// It is being sent a snapshot.
    pub is_behind: bool,
    pub is_voter: bool,
}

/// One replica of one group.
pub struct GroupCore {
    node: RawNode<LogCache>,
    seed: u64,
    tick_nanos: u64,
    /// Messages that wait for their Ready's token to become durable.
    waiting: VecDeque<(u64, Vec<Message>)>,
    last_number: u64,
    /// The term and the vote that were handed out last to be written, and the token until which they are not durable.
    promised: (u64, u64),
    promised_at: Option<u64>,
    flow: Flow,
    /// The time of the last input.
    now: Boottime,
    /// Until then no vote is given, unless the leader itself asked for the election: an election timeout after the
    /// start, a tick less after every word from a leader, so that who missed it longer than others finds voters.
    guard_until: Option<Boottime>,
    promise_nanos: u64,
    lease: Lease,
    /// The token and the index of the snapshot that is being put in place.
    installing: Option<(u64, u64)>,
    /// This replica is no member any more; raft-rs would panic at its next commit.
    is_retired: bool,

    refused_messages: u64,
}

impl GroupCore {
    /// A replica that starts now with this log, of which everything up to `applied` is applied.
    ///
    /// # Errors
    /// When the log's parts do not fit each other: what is committed must be there, what is applied committed.
    pub fn new(options: &CoreOptions, log: LogCache, applied: u64, now: Boottime) -> raft::Result<GroupCore> {
        let hard_state = log.initial_state()?.hard_state;
        let (commit, last) = (hard_state.commit, log.last_index()?);
        let promised = (hard_state.term, hard_state.vote);
        if applied > commit || commit > last {
            let what = format!("{applied} is applied, {commit} committed, and the log ends at {last}");
            return Err(raft::Error::ConfigInvalid(what));
        }
        let config = Config {
            id: options.replica,
            election_tick: options.election_ticks,
            heartbeat_tick: options.heartbeat_ticks,
            applied,
            check_quorum: true,
            pre_vote: true,
            max_inflight_msgs: 256,
            max_size_per_msg: 1 << 20,
            max_uncommitted_size: 64 << 20,
            max_committed_size_per_ready: 16 << 20,
            // true commits without a quorum (raft-rs 0.7.0, `try_batching`): never.
            batch_append: false,
            skip_bcast_commit: false,
            ..Config::default()
        };
        assert!(!config.batch_append, "batch_append commits without a quorum");
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&config, log, &logger)?;
        let election_nanos = options.election_ticks as u64 * options.tick_nanos;
        // A replica of a fresh group has promised nothing to anybody.
        let guard_until = (node.raft.term > options.first_term).then(|| Boottime(now.0 + election_nanos));
        let mut core = GroupCore {
            node,
            seed: options.seed,
            tick_nanos: options.tick_nanos,
            waiting: VecDeque::new(),
            last_number: 0,
            promised,
            promised_at: None,
            flow: Flow::default(),
            now,
            guard_until,
            promise_nanos: election_nanos - options.tick_nanos,
            lease: Lease::new(options.election_ticks, options.tick_nanos),
            installing: None,
            is_retired: false,

            refused_messages: 0,
        };
        core.fix_timeout();
        Ok(core)
    }

    /// raft-rs draws the timeout from the thread's generator; replace it by a function of what is known.
    fn fix_timeout(&mut self) {
        let raft = &mut self.node.raft;
        let base = raft.election_timeout() as u64;
        let mixed = (self.seed
            ^ raft.id.wrapping_mul(0x9E37_79B9_7F4A_7C15)
            ^ raft.term.wrapping_mul(0xD1B5_4A32_D192_ED03)
            ^ ((raft.state as u64) << 7))
            .wrapping_mul(0xBF58_476D_1CE4_E5B9);
        raft.set_randomized_election_timeout((base + (mixed >> 33) % base) as usize);
    }

    // ---- looking ----------------------------------------------------------------------------------

    /// This replica's id.
    #[must_use]
    pub fn replica(&self) -> u64 {
        self.node.raft.id
    }

    /// True while this replica leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader && !self.is_retired
    }

    /// The leader's replica id; 0 when none is known.
    #[must_use]
    pub fn leader(&self) -> u64 {
        self.node.raft.leader_id
    }

    /// True when this replica leads and has committed an entry of its own term.
    #[must_use]
    pub fn has_committed_in_term(&self) -> bool {
        self.is_leader() && self.node.raft.commit_to_current_term()
    }

    /// True when this replica is the only voter: nobody else can be elected or commit anything.
    #[must_use]
    pub fn is_only_voter(&self) -> bool {
        let conf = self.conf_state();
        conf.voters == [self.node.raft.id] && conf.voters_outgoing.is_empty()
    }

    /// True when this replica votes, as of the last committed change.
    #[must_use]
    pub fn is_voter(&self, replica: u64) -> bool {
        let conf = self.conf_state();
        conf.voters.contains(&replica) || conf.voters_outgoing.contains(&replica)
    }

    /// The members, as of the last committed change.
    #[must_use]
    pub fn conf_state(&self) -> ConfState {
        self.node.raft.prs().conf().to_conf_state()
    }

    /// True while a change of the members is committed or proposed, and not applied.
    #[must_use]
    pub fn has_pending_change(&self) -> bool {
        self.node.raft.has_pending_conf()
    }

    /// The current term.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.node.raft.term
    }

    /// The commit index.
    #[must_use]
    pub fn commit_index(&self) -> u64 {
        self.node.raft.raft_log.committed
    }

    /// The last index of the log, durable or not.
    #[must_use]
    pub fn last_index(&self) -> u64 {
        self.node.raft.raft_log.last_index()
    }

    /// The log behind this core.
    #[must_use]
    pub fn log(&self) -> &LogCache {
        self.node.store()
    }

    /// Messages that were refused since the start because no sane peer sends them.
    #[must_use]
    pub fn refused_messages(&self) -> u64 {
        self.refused_messages
    }

    /// True while a snapshot is being put in place.
    #[must_use]
    pub fn is_installing(&self) -> bool {
        self.installing.is_some()
    }

    /// True when this replica was removed from the group: it takes no part any more.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.is_retired
    }

    /// Until when reads from the applied state are linearizable without a barrier, given that everything committed
    /// before this term is applied: while this replica leads and a quorum has promised to elect nobody else.
    #[must_use]
    pub fn lease_until(&self) -> Boottime {
        if !self.has_committed_in_term() || self.node.raft.lead_transferee.is_some() {
            return Boottime(0);
        }
        if self.is_only_voter() { Boottime(u64::MAX) } else { self.lease.until(self.term()) }
    }

    /// What a leader knows of the other replicas; empty on others.
    #[must_use]
    pub fn progress(&self) -> Vec<ReplicaProgress> {
        if !self.is_leader() {
            return Vec::new();
        }
        let conf = self.conf_state();
        let is_voter = |id: &u64| conf.voters.contains(id) || conf.voters_outgoing.contains(id);
        let others = self.node.raft.prs().iter().filter(|(id, _)| **id != self.node.raft.id);
        let mut found: Vec<ReplicaProgress> = others
            .map(|(id, progress)| ReplicaProgress {
                replica: *id,
                matched: progress.matched,
                is_active: progress.recent_active,
                is_behind: progress.state == ProgressState::Snapshot,
                is_voter: is_voter(id),
            })
            .collect();
        found.sort_by_key(|progress| progress.replica);
        found
    }

    /// The replicas to which a leader has something large under way.
    #[must_use]
    pub fn sends_large_to(&self) -> Vec<u64> {
        self.flow.waiting(self.now).collect()
    }

    /// What this replica promised is something else than it believes: a mistake that the simulation must find.
    #[cfg(test)]
    pub(super) fn set_promise(&mut self, until: Boottime) {
        self.guard_until = Some(until);
    }

    // ---- stepping ---------------------------------------------------------------------------------

    /// Takes one input. [`GroupCore::drain`] tells what follows from it.
    pub fn step(&mut self, now: Boottime, input: Input, out: &mut Vec<Output>) {
        self.now = now;
        if self.is_retired {
            if matches!(input, Input::Propose(_) | Input::ConfChange { .. }) {
                out.push(Output::Dropped);
            }
            return;
        }

        if let Some((token, index)) = self.installing {
            return self.step_while_installing(input, token, index, out);
        }
        match input {
            Input::Tick => {
                self.lease.tick(now, self.tick_nanos);
                if self.may_stand() {
                    self.node.tick();
                    self.fix_timeout();
                }
            }
            Input::Message(message) => self.receive(now, *message, out),
            Input::Propose(data) => {
                let output = self.propose(data);
                if let Output::Proposed { index, term } = output {
                    self.lease.proposed(term, index, now);
                }
                out.push(output);
            }
            Input::ConfChange { change, context } => out.push(self.propose_change(change, context)),
            Input::Persisted(token) => self.on_persisted(token, out),
            Input::Applied(index) => self.on_applied(index),
            Input::ReadIndex(context) => {
                if self.is_leader() {
                    self.lease.asked(self.node.raft.term, context, now);
                    self.node.read_index(context.to_be_bytes().to_vec());
                }
            }
            Input::Transfer(to) => {
                if self.is_leader() {
                    self.node.transfer_leader(to);
                }
            }
            Input::Unreachable(replica) => {
                self.flow.forget(replica);
                self.node.report_unreachable(replica);
            }
            Input::Alive(replica) => {
                if let Some(progress) = self.node.raft.mut_prs().get_mut(replica) {
                    progress.recent_active = true;
                }
            }
            Input::NotTaken(replica) => {
                self.flow.pause(replica, now);
                self.node.report_unreachable(replica);
            }
            Input::SnapshotReady(snapshot) => self.node.mut_store().offer(*snapshot),
            Input::SnapshotSent { to, ok } => {
                let status = if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
                self.node.report_snapshot(to, status);
            }
            Input::Installed(_) => {}
            Input::Fetched { fetch, entries } => {
                if entries.is_empty() {
                    self.node.mut_store().compact(fetch.high - 1);
                } else {
                    self.node.mut_store().set_fetched(entries);
                }
                self.node.on_entries_fetched(fetch.into_context());
                self.node.mut_store().set_fetched(Vec::new());
            }
            Input::Campaign => {
                // Who stands votes for himself.
                if self.may_stand() && (!self.has_promised(now) || self.is_only_voter()) {
                    // Refused only when there is nothing to stand for; the next tick tries again.
                    let _ = self.node.campaign();
                    self.fix_timeout();
                }
            }
            Input::Release(index) => {
                let applied = self.node.raft.raft_log.applied;
                self.node.mut_store().release(index.min(applied));
            }
            Input::Compact(index) => {
                let applied = self.node.raft.raft_log.applied;
                self.node.mut_store().compact(index.min(applied));
            }
        }
    }

    /// Between the Ready with a snapshot and its being in place raft-rs must hear of nothing else, not even of a
    /// tick; of what was under way before it only the durable tokens count.
    fn step_while_installing(&mut self, input: Input, token: u64, index: u64, out: &mut Vec<Output>) {
        match input {
            Input::Persisted(older) if older < token => self.on_persisted(older, out),
            Input::Installed(installed) if installed == token => {
                self.installing = None;
                self.on_persisted(token, out);
                self.node.advance_apply_to(index);
            }
            Input::Propose(_) | Input::ConfChange { .. } => out.push(Output::Dropped),
            _ => {}
        }
    }

    fn receive(&mut self, now: Boottime, message: Message, out: &mut Vec<Output>) {
        match acceptable(&self.node.raft, &message) {
            Verdict::Take => {}
            Verdict::Drop => {
                self.refused_messages += 1;
                return;
            }
            Verdict::Quarantine(why) => {
                self.refused_messages += 1;

                out.push(Output::Quarantine(why));
                return;
            }
        }
        let kind = message.get_msg_type();
        let is_vote = matches!(kind, MessageType::MsgRequestVote | MessageType::MsgRequestPreVote);
        if is_vote && message.context != CAMPAIGN_TRANSFER && self.has_promised(now) {
            return;
        }
        if kind == MessageType::MsgTimeoutNow && !self.may_stand() {
            return;
        }
        if is_from_leader(kind) && message.term >= self.node.raft.term && !is_planted(Bug::PromiseForgotten) {
            // The leader counts on it. raft-rs keeps the promise only while it knows the leader, which it forgets
            // with any word of a higher term, such as a late answer to an election of long ago.
            self.guard_until = self.guard_until.max(Some(Boottime(now.0 + self.promise_nanos)));
        }
        self.step_message(message, now);
        self.fix_timeout();
        if self.node.snap().is_some() {
            // Its Ready must hold nothing else: entries that came behind it would be taken for durable once the
            // snapshot is in place, and were never written.
            self.drain(out);
        }
    }

    /// Gives raft-rs a message. The answer to a heartbeat lets it send again what it probes with, although a large append
    /// to that replica is under way: then it must believe for a moment that the replica waits for a snapshot.
    fn step_message(&mut self, message: Message, now: Boottime) {
        let (kind, from) = (message.get_msg_type(), message.from);
        if kind == MessageType::MsgAppendResponse {
            match message.reject {
                true => self.flow.forget(from),
                false => self.flow.acknowledged(from, message.index, now),
            }
        }
        let is_probed = |raft: &raft::Raft<LogCache>| {
            raft.prs().get(from).is_some_and(|progress| progress.state == ProgressState::Probe)
        };
        let is_quiet = kind == MessageType::MsgHeartbeatResponse
            && self.flow.is_waiting(from, now)
            && message.term == self.node.raft.term
            && is_probed(&self.node.raft);
        if is_quiet && let Some(progress) = self.node.raft.mut_prs().get_mut(from) {
            progress.state = ProgressState::Snapshot;
        }
        // Errors say that the message is stale or from a stranger: nothing to do.
        let _ = self.node.step(message);
        if is_quiet && let Some(progress) = self.node.raft.mut_prs().get_mut(from) {
            progress.state = ProgressState::Probe;
            progress.pause();
        }
    }

    /// False while an election would be won at once, without anybody being asked, by a replica whose log is not written:
    /// raft-rs panics then. It is the only voter, and somebody else led.
    fn may_stand(&self) -> bool {
        let raft = &self.node.raft;
        if raft.state == StateRole::Leader || raft.raft_log.persisted == raft.raft_log.last_index() {
            return true;
        }
        let conf = self.conf_state();
        conf.voters != [raft.id] || conf.voters_outgoing.iter().any(|id| *id != raft.id)
    }

    /// True while a leader may count on this replica to elect nobody else.
    fn has_promised(&self, now: Boottime) -> bool {
        self.guard_until.is_some_and(|until| now < until)
    }

    /// A follower must not propose: raft-rs would forward it, and nobody would know its position.
    fn propose(&mut self, data: Vec<u8>) -> Output {
        if !self.is_leader() || self.node.propose(Vec::new(), data).is_err() {
            return Output::Dropped;
        }
        self.position()
    }

    fn position(&self) -> Output {
        let raft = &self.node.raft;
        Output::Proposed { index: raft.raft_log.last_index(), term: raft.term }
    }

    /// A change that removes the leader or takes its vote is refused: raft-rs panics when a leader applies its own
    /// removal. So is one while another is under way: raft-rs would take it and make nothing of it.
    fn propose_change(&mut self, change: ConfChangeV2, context: Vec<u8>) -> Output {
        let own = self.node.raft.id;
        let takes_vote = |kind| kind != ConfChangeType::AddNode;
        let is_own_end =
            change.changes.iter().any(|single| single.node_id == own && takes_vote(single.get_change_type()));
        let is_refused = !self.is_leader() || is_own_end || self.has_pending_change();
        if is_refused || self.node.propose_conf_change(context, change).is_err() {
            return Output::Dropped;
        }
        self.position()
    }

    fn on_persisted(&mut self, token: u64, out: &mut Vec<Output>) {
        while self.waiting.front().is_some_and(|(number, _)| *number <= token) {
            let (_, messages) = self.waiting.pop_front().expect("it was looked at just now");
            self.send(messages, out);
        }
        self.promised_at = self.promised_at.filter(|number| *number > token);
        let durable = self.waiting.front().map_or(self.last_number, |(number, _)| number - 1);
        self.node.on_persist_ready(durable);
    }

    /// Applied indices come in order; one from before a snapshot was put in place says nothing new.
    fn on_applied(&mut self, index: u64) {
        if index > self.node.raft.raft_log.applied {
            self.node.advance_apply_to(index);
        }
    }

    // ---- draining ---------------------------------------------------------------------------------

    /// Collects everything that is to be done.
    pub fn drain(&mut self, out: &mut Vec<Output>) {
        while !self.is_retired && self.installing.is_none() && self.node.has_ready() {
            self.drain_one(out);
        }
        if self.node.store().take_snapshot_wanted() {
            out.push(Output::SnapshotWanted);
        }
        out.extend(self.node.store().take_fetches().into_iter().map(Output::Fetch));
    }

    fn drain_one(&mut self, out: &mut Vec<Output>) {
        let mut ready = self.node.ready();
        if let Some(soft) = ready.ss() {
            let (role, leader) = (soft.raft_state, soft.leader_id);
            self.flow.clear();
            out.push(Output::Role { role, term: self.node.raft.term, leader });
        }
        for state in ready.take_read_states() {
            if let Ok(context) = <[u8; 8]>::try_from(state.request_ctx.as_slice()) {
                let context = u64::from_be_bytes(context);
                self.lease.answered(self.node.raft.term, context);
                out.push(Output::ReadReady { context, index: state.index });
            }
        }
        let messages = ready.take_messages();
        let committed = ready.take_committed_entries();
        let entries = ready.take_entries();
        let hard_state = ready.hs().cloned();
        let snapshot = (!ready.snapshot().is_empty()).then(|| ready.snapshot().clone());
        let (must_sync, number) = (ready.must_sync(), ready.number());
        let mut persisted_messages = ready.take_persisted_messages();
        let store = self.node.mut_store();
        if let Some(snapshot) = &snapshot {
            store.restore(snapshot.get_metadata());
        }
        let replaced = store.append(&entries);
        if let Some(hard_state) = &hard_state {
            store.set_hard_state(hard_state.clone());
        }
        self.node.advance_append_async(ready);
        self.last_number = number;
        self.send(messages, out);
        let raft = &self.node.raft;
        if self.promised != (raft.term, raft.vote) {
            self.promised = (raft.term, raft.vote);
            self.promised_at = Some(number);
        }
        if self.promised_at.is_none() {
            // They speak of the term alone, and that is on disk: a long write of entries must not look like a dead node.
            let is_pulse =
                |message: &mut Message| message.get_msg_type() == MessageType::MsgHeartbeatResponse;
            let pulse = persisted_messages.extract_if(.., is_pulse).collect();
            self.send(pulse, out);
        }
        if let Some(snapshot) = snapshot {
            self.waiting.push_back((number, persisted_messages));
            self.installing = Some((number, snapshot.get_metadata().index));
            let hard_state = self.node.raft.hard_state();
            out.push(Output::Install(Box::new(Install { token: number, snapshot, hard_state })));
        } else if must_sync {
            self.waiting.push_back((number, persisted_messages));
            // The commit index too, although raft-rs does not ask for it: a Ready that only moved it was not written.
            // A replica that holds a change of the members must not forget that the one before it is committed: it
            // would stand for election among members of long ago, and two groups would go on side by side.
            let hard_state = Some(self.node.raft.hard_state());
            out.push(Output::Persist(Persist { token: number, entries, replaced, hard_state }));
        } else if let Some((_, waiting)) = self.waiting.back_mut() {
            // An acknowledgement must not overtake the sync of what it acknowledges.
            waiting.extend(persisted_messages);
        } else {
            self.node.on_persist_ready(number);
            self.send(persisted_messages, out);
        }
        if !committed.is_empty() {
            self.lease.committed(self.node.raft.term, self.commit_index());
            let changes = self.take_changes(&committed);
            out.push(Output::Apply(Committed { entries: committed, changes }));
        }
    }

    /// Lets messages go; snapshots go another way.
    fn send(&mut self, mut messages: Vec<Message>, out: &mut Vec<Output>) {
        if is_planted(Bug::CommitOffByOne) {
            let is_ack = |message: &&mut Message| message.get_msg_type() == MessageType::MsgAppendResponse;
            messages
                .iter_mut()
                .filter(is_ack)
                .for_each(|message| message.index += u64::from(!message.reject));
        }
        let is_snapshot = |message: &Message| message.get_msg_type() == MessageType::MsgSnapshot;
        let is_handover = |message: &Message| message.get_msg_type() == MessageType::MsgTimeoutNow;
        if messages.iter().any(is_handover) {
            // Voters will pass over the lease for its receiver, however late it arrives (raft-rs#234).
            self.lease.renounce(self.node.raft.term);
        }
        self.hold_back(&mut messages);
        if !messages.iter().any(is_snapshot) {
            if !messages.is_empty() {
                out.push(Output::Send(messages));
            }
            return;
        }
        let (snapshots, others): (Vec<_>, Vec<_>) = messages.into_iter().partition(is_snapshot);
        if !others.is_empty() {
            out.push(Output::Send(others));
        }
        out.extend(snapshots.into_iter().map(|message| Output::SendSnapshot(Box::new(message))));
    }

    /// Takes out the appends that a follower has on its way to it, and those beyond what it may have.
    fn hold_back(&mut self, messages: &mut Vec<Message>) {
        messages.retain(|message| {
            if message.get_msg_type() != MessageType::MsgAppend {
                return true;
            }
            let verdict = self.flow.judge(message, self.now);
            if verdict == FlowVerdict::TooMuch
                && let Some(progress) = self.node.raft.mut_prs().get_mut(message.to)
                && progress.state == ProgressState::Replicate
            {
                progress.become_probe();
                progress.pause();
            }
            verdict == FlowVerdict::Send
        });
    }

    /// Takes the changes of the members among committed entries, in log order. What cannot be read, or is refused,
    /// is so on every replica, and changes nothing.
    fn take_changes(&mut self, entries: &[Entry]) -> Vec<(u64, ConfState)> {
        let mut changes = Vec::new();
        for entry in entries {
            let Some(change) = change_of(entry) else { continue };
            let Ok(conf) = self.node.apply_conf_change(&change) else { continue };
            self.node.mut_store().set_conf_state(conf.clone());
            let own = self.node.raft.id;
            let is_member = [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next]
                .into_iter()
                .any(|ids| ids.contains(&own));
            self.is_retired |= !is_member;
            changes.push((entry.index, conf));
        }
        changes
    }
}

fn is_from_leader(kind: MessageType) -> bool {
    matches!(kind, MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot)
}

/// The change of members that an entry holds; `None` for other entries and for what cannot be read. A peer may have
/// sent it: raft-rs panics on kinds of change that it does not know.
fn change_of(entry: &Entry) -> Option<ConfChangeV2> {
    let change = match entry.get_entry_type() {
        EntryType::EntryNormal => return None,
        // Without data: leave the joint configuration.
        EntryType::EntryConfChangeV2 => ConfChangeV2::decode(entry.data.as_slice()).ok()?,
        EntryType::EntryConfChange => {
            let single = ConfChange::decode(entry.data.as_slice()).ok()?;
            ConfChangeType::from_i32(single.change_type)?;
            raft_proto::ConfChangeI::into_v2(single)
        }
    };
    let is_known = |single: &ConfChangeSingle| ConfChangeType::from_i32(single.change_type).is_some();
    let is_sane =
        ConfChangeTransition::from_i32(change.transition).is_some() && change.changes.iter().all(is_known);
    is_sane.then_some(change)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: u64 = 50;
    const NOW: Boottime = Boottime(1_000);

    fn core(replica: u64, voters: &[u64]) -> GroupCore {
        let log =
            LogCache::new(HardState::default(), ConfState::from((voters.to_vec(), vec![])), 0, 0, Vec::new());
        let options = CoreOptions {
            replica,
            election_ticks: 10,
            heartbeat_ticks: 2,
            first_term: 0,
            tick_nanos: TICK,
            seed: 7,
        };
        GroupCore::new(&options, log, 0, NOW).unwrap()
    }

    /// Persists at once, delivers at once, applies at once, until nothing is left to do.
    fn settle(cores: &mut [GroupCore]) -> Vec<(u64, u64)> {
        let mut applied = Vec::new();
        loop {
            let mut busy = false;
            for at in 0..cores.len() {
                let mut out = Vec::new();
                cores[at].drain(&mut out);
                busy |= !out.is_empty();
                for output in out {
                    settle_one(cores, at, output, &mut applied);
                }
            }
            if !busy {
                return applied;
            }
        }
    }

    fn settle_one(cores: &mut [GroupCore], at: usize, output: Output, applied: &mut Vec<(u64, u64)>) {
        let mut more = Vec::new();
        match output {
            Output::Send(messages) => {
                for message in messages {
                    let to = message.to as usize - 1;
                    cores[to].step(NOW, Input::Message(Box::new(message)), &mut Vec::new());
                }
            }
            Output::Persist(persist) => cores[at].step(NOW, Input::Persisted(persist.token), &mut more),
            Output::Apply(Committed { entries, .. }) => {
                let last = entries.last().unwrap();
                cores[at].step(NOW, Input::Applied(last.index), &mut Vec::new());
                applied.extend(entries.iter().map(|entry| (at as u64 + 1, entry.index)));
            }
            _ => {}
        }
        for output in more {
            settle_one(cores, at, output, applied);
        }
    }

    #[test]
    fn a_single_voter_leads_and_commits_by_itself() {
        let mut cores = [core(1, &[1])];
        cores[0].step(NOW, Input::Campaign, &mut Vec::new());
        settle(&mut cores);
        assert!(cores[0].is_leader() && cores[0].is_only_voter() && cores[0].has_committed_in_term());
        let mut out = Vec::new();
        cores[0].step(NOW, Input::Propose(b"x".to_vec()), &mut out);
        assert!(matches!(out[..], [Output::Proposed { index: 2, term: 1 }]));
        assert_eq!(settle(&mut cores), vec![(1, 2)]);
    }

    #[test]
    fn nothing_commits_before_it_is_durable() {
        let mut cores = [core(1, &[1])];
        cores[0].step(NOW, Input::Campaign, &mut Vec::new());
        settle(&mut cores);
        let mut out = Vec::new();
        cores[0].step(NOW, Input::Propose(b"x".to_vec()), &mut out);
        out.clear();
        cores[0].drain(&mut out);
        let [Output::Persist(persist)] = &out[..] else { panic!("only a Persist, got {out:?}") };
        let token = persist.token;
        out.clear();
        cores[0].drain(&mut out);
        assert!(out.is_empty(), "no Apply before the entry is durable");
        cores[0].step(NOW, Input::Persisted(token), &mut out);
        cores[0].drain(&mut out);
        assert!(
            out.iter()
                .any(|output| matches!(output, Output::Apply(committed) if committed.entries.len() == 1))
        );
    }

    #[test]
    fn a_follower_drops_a_proposal_instead_of_forwarding_it() {
        let mut follower = core(2, &[1, 2, 3]);
        let mut out = Vec::new();
        follower.step(NOW, Input::Propose(b"x".to_vec()), &mut out);
        assert!(matches!(out[..], [Output::Dropped]));
    }

    #[test]
    fn three_replicas_elect_one_and_all_apply() {
        let mut cores = [core(1, &[1, 2, 3]), core(2, &[1, 2, 3]), core(3, &[1, 2, 3])];
        cores[1].step(NOW, Input::Campaign, &mut Vec::new());
        settle(&mut cores);
        assert!(cores[1].is_leader() && !cores[1].is_only_voter());
        cores[1].step(NOW, Input::Propose(b"x".to_vec()), &mut Vec::new());
        let mut applied = settle(&mut cores);
        applied.sort_unstable();
        assert_eq!(applied, vec![(1, 2), (2, 2), (3, 2)]);
    }

    #[test]
    fn a_read_barrier_is_answered_with_an_index() {
        let mut cores = [core(1, &[1])];
        cores[0].step(NOW, Input::Campaign, &mut Vec::new());
        settle(&mut cores);
        let mut out = Vec::new();
        cores[0].step(NOW, Input::ReadIndex(42), &mut out);
        cores[0].drain(&mut out);
        assert!(matches!(out[..], [Output::ReadReady { context: 42, index: 1 }]));
    }
}
