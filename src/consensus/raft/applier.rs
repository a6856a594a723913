//! Applies committed entries and answers whoever waits for them.
//!
//! While a node is the only voter, apply is a call of the driver's sweep. With peers it is a thread of its own:
//! heartbeats must not wait for a long command, neither to be sent nor to be heard.
//!
//! ```text
//! entries ─► state (under the writer side of its lock, given back every few milliseconds, between entries)
//!         ─► replies to clients of this node
//! now and then: changed rows ─► flusher
//! ```
//! Every node applies every entry, so each answers its own clients, whoever led when the entry was proposed. The batches
//! that this replica proposed come with their entry; those that it gave to another leader are the driver's to find, by
//! session and number.
//!
//! Nobody waits for ever. A batch in the log comes to this node as an entry, and that ends the wait; or within a
//! snapshot, and then nobody sees the entry here. A node that hears nothing for a while sends the batch again (it does
//! so at once after a snapshot). A leader that has applied it by then puts it into the log once more, as a repetition
//! that changes nothing, and tells the node what comes of it, even if that applies nothing at all, say because
//! its disk is full. What the leader has not applied yet is still on its way; if it is lost with its leader, the
//! next one is given it anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use raft::eraftpb::Entry;
use raft::eraftpb::EntryType;

use crate::clock::Clock;
use crate::consensus::ProposeError;
use crate::consensus::mailbox::Mailbox;
use crate::consensus::raft::driver::Event;
use crate::consensus::raft::flusher::CheckpointJob;
use crate::consensus::raft::flusher::FlushJob;
use crate::consensus::raft::flusher::InstallJob;
use crate::consensus::raft::proposer::Queued;
use crate::consensus::raft::proposer::ReplyTo;
use crate::consensus::raft::replica::Shared;
use crate::consensus::raft::replica::stop_process;
use crate::consensus::raft::requests::Outcome;
use crate::consensus::raft::requests::Request;
use crate::consensus::raft::restart;
use crate::machine::apply::Applied;
use crate::machine::apply::BatchOutcome;
use crate::machine::apply::apply_entry_for;
use crate::machine::apply::apply_membership;
use crate::machine::entry::SessionStamp;
use crate::machine::wants::wants;
use crate::peer::Channel;
use crate::peer::Links;
use crate::resp::Reply;
use crate::resp::reply_codec;
use crate::state::Membership;
use crate::state::Pending;
use crate::state::State;
use crate::state::Timing;
use crate::state::queues::cold::Read;
use crate::telemetry::metrics::LOCK_HOLD_SECONDS;
use crate::telemetry::metrics::LOCK_WAIT_SECONDS;
use crate::telemetry::metrics::QUEUE_WAIT_SECONDS;
use crate::types::GroupId;
use crate::types::LogIndex;
use crate::types::Millis;
use crate::types::Monotonic;
use crate::types::NodeId;
use crate::types::Term;

/// What makes a flush begin without waiting for its interval. Rows that are only listed are few, because taking
/// them keeps apply waiting; encoded ones cost nothing to take. On a small disk fewer bytes than that do.
const FLUSH_AT: Pending = Pending { encoded: 32_768, listed: 16_384, bytes: 32 << 20 };
/// What makes apply wait for the flusher: memory is bounded, and so is what a small disk is given at once.
const WAIT_AT: Pending = Pending { encoded: 262_144, listed: 131_072, bytes: 256 << 20 };
/// So many times as much is waited at as is flushed at.
const WAIT_FACTOR: usize = 8;
/// Apply gives the state's lock to readers at least this often, between entries.
const LOCK_MICROS: u64 = 2_000;
/// How many entries are looked at for what they will want from disk, each time before the lock is taken.
const ENTRIES_AHEAD: usize = 64;
/// How often it is looked whether the flusher is done.
const FLUSHER_LOOK: Duration = Duration::from_micros(200);
/// How long the thread waits for work before it looks whether a flush is due.
const FLUSH_LOOK: Duration = Duration::from_millis(50);

/// Committed entries and who waits for them.
pub struct ApplyJob {
    pub entries: Vec<Entry>,
    /// One list per entry; empty for entries that nobody here waits for.
    pub batches: Vec<Vec<Queued>>,
    /// The members after each change among the entries.
    pub changes: BTreeMap<u64, Membership>,
}

/// What the apply thread is asked to do, in order.
pub enum ApplyMessage {
    Job(ApplyJob),
    /// Make a copy of the rows, as of what is applied by then.
    Checkpoint,
    /// Put a snapshot in the place of the state.
    Install {
        token: u64,
        job: InstallJob,
    },
    Stop,
}

/// What applies, and where the changed rows go.
pub struct Applier {
    pub group: GroupId,
    pub state: Arc<RwLock<State>>,
    pub shared: Arc<Shared>,
    /// Where outcomes for other nodes go; a lone node has none.
    pub network: Option<Arc<dyn Links>>,
    pub flusher: Arc<Mailbox<FlushJob>>,
    pub flusher_busy: Arc<AtomicBool>,
    pub clock: Arc<dyn Clock>,
    pub flush_interval: Millis,
    /// Bytes of rows that are brought to disk together: a memtable of them.
    pub flush_bytes: usize,
    pub last_flush: Monotonic,
    /// The last index whose rows were handed to the flusher.
    pub flushed: LogIndex,
    /// Payloads of messages may be on disk only.
    pub has_cold: bool,
}

/// What was applied of other nodes' batches, by node and session: the last number, and the outcomes of repetitions.
type Outcomes = BTreeMap<(NodeId, u64), (u64, Vec<(u64, Outcome)>)>;

impl Applier {
    /// Applies entries and answers. When this returns they are applied.
    pub fn apply(&mut self, job: ApplyJob) {
        let ApplyJob { entries: all, batches, changes } = job;
        let mut entries = all.iter().zip(batches).enumerate().peekable();
        let mut done: Vec<(Queued, BatchOutcome)> = Vec::new();
        let epoch = self.shared.session_epoch();
        while let Some((first, _)) = entries.peek() {
            let read = if self.has_cold { self.read_ahead(&all[*first..]) } else { Read::new() };
            let started = self.clock.monotonic();
            let mut state = self.state.write();
            state.lay_ready(read);
            let mut verify = false;
            let (mut notices, mut timings, mut own) = (Vec::new(), Vec::new(), Vec::new());
            for (_, (entry, batches)) in entries.by_ref() {
                let is_wanted = |at: usize, session: Option<SessionStamp>| match batches.get(at) {
                    Some(queued) => queued.wants_replies(),
                    None => session.is_some_and(|session| session.epoch == epoch),
                };
                let applied = apply_one(&mut state, entry, changes.get(&entry.index), is_wanted);
                if batches.is_empty() {
                    own.extend(of_session(applied.sessions, applied.outcomes, epoch));
                } else {
                    done.extend(batches.into_iter().zip(applied.outcomes));
                }
                notices.extend(applied.notices);
                timings.extend(applied.timings);
                verify = applied.verify;
                if verify || self.clock.monotonic().micros_since(started) > LOCK_MICROS {
                    break;
                }
            }
            let applied = state.meta().applied;
            if let Some(error) = state.take_fault() {
                // Before anybody is told of what was made without it.
                restart::stop_on("reading a message failed", &error);
            }
            self.shared.set_applied(&state);
            self.has_cold = state.has_cold();
            drop(state);
            let mut outcomes = Outcomes::new();
            for (queued, outcome) in done.drain(..) {
                self.answer(queued, outcome, &mut outcomes);
            }
            self.send(outcomes);
            if !own.is_empty() {
                self.shared.events.post(Event::Executed { epoch, outcomes: own });
            }
            self.shared.claims.publish(&notices, self.clock.monotonic());
            timings.iter().for_each(note_timing);
            if verify {
                // Readers go on meanwhile; apply does not, so this is the state at that index.
                let digest = self.state.read().digest();
                self.shared.set_verified(applied, digest);
            }
        }
    }

    /// Reads what these entries will want from disk, while others read the state.
    fn read_ahead(&self, entries: &[Entry]) -> Read {
        let (wanted, rows) = {
            let state = self.state.read();
            let entries = entries.iter().take(ENTRIES_AHEAD);
            let commands = entries.filter(|entry| entry.get_entry_type() == EntryType::EntryNormal);
            (wants(&state, commands.map(|entry| &entry.data[..])), state.cold_rows())
        };
        match rows {
            Some(rows) if !wanted.is_empty() => wanted.read(&*rows),
            _ => Read::new(),
        }
    }

    fn answer(&self, queued: Queued, outcome: BatchOutcome, outcomes: &mut Outcomes) {
        match queued.reply_to {
            ReplyTo::Node { node, epoch, seq, is_repeat } => {
                note_of_node(outcomes, (node, epoch), seq, is_repeat, outcome);
            }
            ReplyTo::Joiner { node, nonce } => {
                if let BatchOutcome::Done(replies) = outcome
                    && let Some(Reply::Integer(replica)) = replies.first()
                {
                    let replica = u64::try_from(*replica).unwrap_or(0);
                    self.shared.events.post(Event::Allocated { node, nonce, replica });
                }
            }
            ReplyTo::Submitter => {
                let epoch = queued.stamp.map_or(0, |stamp| stamp.epoch);
                match local(outcome, queued.submission.batch.len()) {
                    Local::Replies(replies) => queued.submission.settle(Ok(replies)),
                    Local::Trouble { is_ended } => {
                        self.shared.events.post(Event::SessionTrouble { epoch, is_ended });
                    }
                }
            }
        }
    }

    fn send(&self, outcomes: Outcomes) {
        let Some(network) = &self.network else { return };
        for ((node, epoch), (last, outcomes)) in outcomes {
            self.shared.set_executed(node, epoch, last);
            if outcomes.is_empty() {
                continue;
            }
            let request = Request::Outcomes { group: self.group, epoch, outcomes };
            // Lost with the link: the origin sends the batch again when it is back, or after a while.
            let _ = network.send(node, Channel::Request, request.encode());
        }
    }

    /// Hands changed rows to the flusher when enough changed or enough time has passed.
    pub fn flush_when_due(&mut self) {
        let (pending, applied) = {
            let state = self.state.read();
            (state.pending_changes(), state.meta().applied)
        };
        if applied == self.flushed {
            return;
        }
        let now = self.clock.monotonic();
        let at = |at: Pending, bytes: usize| Pending { bytes: at.bytes.min(bytes), ..at };
        // A flusher that waits for room must not keep readers waiting; little comes then.
        let waits = pending.reaches(&at(WAIT_AT, self.flush_bytes.saturating_mul(WAIT_FACTOR)));
        while waits && self.flusher_busy.load(Ordering::Acquire) && !self.shared.is_short_of_room() {
            std::thread::sleep(FLUSHER_LOOK);
        }
        let due = pending.reaches(&at(FLUSH_AT, self.flush_bytes))
            || now.since(self.last_flush) >= self.flush_interval;
        if due && !self.flusher_busy.load(Ordering::Acquire) {
            self.flush(now);
        }
    }

    fn wait_for_flusher(&self) {
        while self.flusher_busy.load(Ordering::Acquire) {
            std::thread::sleep(FLUSHER_LOOK);
        }
    }

    fn flush(&mut self, now: Monotonic) {
        let (rows, index, term) = {
            let mut state = self.state.write();
            state.on_disk(self.shared.counters.on_disk());
            let rows = state.take_changes();
            self.has_cold = state.has_cold();
            (rows, state.meta().applied, state.meta().applied_term)
        };
        self.last_flush = now;
        self.flushed = index;
        self.flusher_busy.store(true, Ordering::Release);
        self.flusher.send(FlushJob::Rows { rows, index, term });
    }

    /// Hands everything to the flusher, and ends it.
    pub fn finish(&mut self) {
        self.flush(self.clock.monotonic());
        self.flusher.send(FlushJob::Stop);
    }

    // ---- the thread -------------------------------------------------------------------------------

    /// Does what the mailbox brings until it is told to stop. `sweep` is called after what the driver should know.
    pub fn run(mut self, mailbox: &Mailbox<ApplyMessage>, sweep: &dyn Fn()) {
        let mut messages = Vec::new();
        loop {
            mailbox.receive(&mut messages, FLUSH_LOOK);
            for message in messages.drain(..) {
                match message {
                    ApplyMessage::Job(job) => {
                        self.apply_and_tell(job);
                        sweep();
                    }
                    ApplyMessage::Checkpoint => self.checkpoint(),
                    ApplyMessage::Install { token, job } => {
                        self.install(token, job);
                        sweep();
                    }
                    ApplyMessage::Stop => {
                        self.finish();
                        return;
                    }
                }
            }
            self.flush_when_due();
        }
    }

    /// Applies entries that waited, and tells the driver.
    pub fn apply_and_tell(&mut self, job: ApplyJob) {
        let bytes = job_bytes(&job.entries);
        self.apply(job);
        self.shared.take_apply_backlog(bytes);
        self.shared.events.post(Event::Applied(self.shared.applied()));
    }

    /// Asks the flusher for a copy of the rows as of now.
    pub fn checkpoint(&mut self) {
        self.wait_for_flusher();
        self.flush(self.clock.monotonic());
        let state = self.state.read();
        let job = CheckpointJob {
            index: state.meta().applied,
            term: state.meta().applied_term,
            membership: state.membership().clone(),
        };
        self.flusher.send(FlushJob::Checkpoint(job));
    }

    /// Steps (1) to (4) of DESIGN.md D3; the flusher owns the rows, so it does what concerns them.
    fn install(&mut self, token: u64, job: InstallJob) {
        self.wait_for_flusher();
        self.discard_changes();
        let (reply, installed) = mpsc::sync_channel(1);
        self.flusher.send(FlushJob::Install { job, reply });
        let Ok(state) = installed.recv() else {
            stop_process("installing a snapshot failed", &"the flusher has ended");
        };
        self.installed(token, state);
    }

    /// What changed since the last flush belongs to a state that a snapshot takes the place of.
    pub fn discard_changes(&mut self) {
        drop(self.state.write().take_changes());
    }

    /// The snapshot is in place on disk, and this is its state.
    pub fn installed(&mut self, token: u64, mut state: Box<State>) {
        let membership = state.membership().clone();
        self.flushed = state.meta().applied;
        self.has_cold = state.has_cold();
        let old = {
            let mut current = self.state.write();
            // Who subscribed before is told of what comes after.
            state.set_interest(current.interest().clone());
            state.go_on_counting(&current);
            let old = std::mem::replace(&mut *current, *state);
            self.shared.set_applied(&current);
            self.shared.claims.reconcile(&current, self.clock.monotonic());
            old
        };
        self.last_flush = self.clock.monotonic();
        self.shared.events.post(Event::Installed { token, membership });
        drop(old);
    }
}

/// Notes what became of another node's batch.
fn note_of_node(
    outcomes: &mut Outcomes,
    session: (NodeId, u64),
    seq: u64,
    is_repeat: bool,
    outcome: BatchOutcome,
) {
    let (last, repeats) = outcomes.entry(session).or_default();
    // Also of what came behind a gap: it is not under way any more, and is to be proposed when it comes again.
    *last = seq.max(*last);
    if is_repeat {
        repeats.push((seq, for_node(outcome)));
    }
}

fn note_timing(timing: &Timing) {
    let (name, millis) = match timing {
        Timing::LockWait(millis) => (LOCK_WAIT_SECONDS, millis),
        Timing::LockHold(millis) => (LOCK_HOLD_SECONDS, millis),
        Timing::QueueWait(millis) => (QUEUE_WAIT_SECONDS, millis),
    };
    metrics::histogram!(name).record(millis.0 as f64 / 1e3);
}

/// About how much memory entries take while they wait for apply.
#[must_use]
pub fn job_bytes(entries: &[Entry]) -> u64 {
    entries.iter().map(|entry| entry.data.len() as u64 + 100).sum()
}

/// Applies one entry. `change`: the members after it, when it changes them. `is_wanted`: as [`apply_entry_for`] asks it.
pub fn apply_one(
    state: &mut State,
    entry: &Entry,
    change: Option<&Membership>,
    is_wanted: impl Fn(usize, Option<SessionStamp>) -> bool,
) -> Applied {
    let (index, term) = (LogIndex(entry.index), Term(entry.term));
    if entry.get_entry_type() != EntryType::EntryNormal {
        let known = state.membership();
        let mut membership = change.unwrap_or(known).clone();
        // These are the state's own; the core knows nothing of them.
        membership.next_replica = known.next_replica;
        membership.allocated.clone_from(&known.allocated);
        apply_membership(state, index, term, membership);
        return Applied::default();
    }
    match apply_entry_for(state, index, term, &entry.data, is_wanted) {
        Ok(applied) => applied,
        Err(error) => stop_process(&format!("entry {index} cannot be applied"), &error),
    }
}

/// The batches of one session among those of an entry.
fn of_session(
    sessions: Vec<Option<SessionStamp>>,
    outcomes: Vec<BatchOutcome>,
    epoch: u64,
) -> impl Iterator<Item = (u64, BatchOutcome)> {
    let all = sessions.into_iter().zip(outcomes);
    // No two nodes, and no two lives of a node, have a session of the same name.
    all.filter_map(move |(session, outcome)| {
        session.filter(|session| session.epoch == epoch).map(|session| (session.seq, outcome))
    })
}

/// What a batch's outcome means on the node whose client sent it.
pub enum Local {
    Replies(Vec<Reply>),
    /// Not executed: a number before it is missing, or the session ended.
    Trouble {
        is_ended: bool,
    },
}

/// The outcome of a batch of so many items, on the node whose client sent it.
#[must_use]
pub fn local(outcome: BatchOutcome, items: usize) -> Local {
    match outcome {
        BatchOutcome::Done(replies) => Local::Replies(replies),
        BatchOutcome::Repeated(bytes) => Local::Replies(decoded(&bytes, items)),
        BatchOutcome::Replayed => Local::Replies(vec![replayed(); items]),
        BatchOutcome::Gap => Local::Trouble { is_ended: false },
        BatchOutcome::Ended => Local::Trouble { is_ended: true },
    }
}

fn for_node(outcome: BatchOutcome) -> Outcome {
    match outcome {
        BatchOutcome::Done(replies) => {
            let mut bytes = Vec::with_capacity(replies.len() * 2 + 8);
            reply_codec::encode_replies(&replies, &mut bytes);
            Outcome::Replies(Bytes::from(bytes))
        }
        BatchOutcome::Repeated(bytes) => Outcome::Replies(bytes),
        BatchOutcome::Replayed => Outcome::Replayed,
        BatchOutcome::Gap => Outcome::Gap,
        BatchOutcome::Ended => Outcome::Ended,
    }
}

/// The remembered or transmitted replies of a batch with so many items; a batch whose replies cannot be told was
/// executed all the same.
#[must_use]
pub fn decoded(bytes: &[u8], items: usize) -> Vec<Reply> {
    match reply_codec::decode_replies(bytes) {
        Ok(replies) if replies.len() == items => replies,
        _ => vec![replayed(); items],
    }
}

/// The reply to what was executed, when its own reply is gone.
#[must_use]
pub fn replayed() -> Reply {
    Reply::error(
        "REPLAYED The command was executed; its reply was too large to be kept over a change of leader.",
    )
}

/// What a submitter is told about an outcome from the leader; `None` when the batch must be sent again.
pub fn settle_remote(outcome: Outcome, items: usize) -> Option<Result<Vec<Reply>, ProposeError>> {
    match outcome {
        Outcome::Replies(bytes) => Some(Ok(decoded(&bytes, items))),
        Outcome::Replayed => Some(Ok(vec![replayed(); items])),
        Outcome::Gap | Outcome::Ended | Outcome::NotLeader { .. } | Outcome::Refused(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_behind_a_gap_is_not_under_way_any_more() {
        let mut outcomes = Outcomes::new();
        let session = (NodeId(2), 7);
        let mut note =
            |seq, is_repeat, outcome| note_of_node(&mut outcomes, session, seq, is_repeat, outcome);
        note(4, false, BatchOutcome::Done(Vec::new()));
        note(9, true, BatchOutcome::Gap);
        note(12, false, BatchOutcome::Ended);
        note(5, true, BatchOutcome::Replayed);
        assert_eq!(outcomes[&session], (12, vec![(9, Outcome::Gap), (5, Outcome::Replayed)]));
    }
}
