//! Applies committed entries, in order, answers those who wait for them, and hands changed rows to the flusher.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::RwLock;
use raft::eraftpb::Entry;

use crate::clock::Clock;
use crate::consensus::ReplySender;
use crate::consensus::mailbox::Mailbox;
use crate::consensus::raft::flusher::FlushJob;
use crate::consensus::raft::replica::Shared;
use crate::consensus::raft::replica::stop_process;
use crate::machine::apply::BatchReplies;
use crate::machine::apply::apply_entry;
use crate::state::Pending;
use crate::state::State;
use crate::types::LogIndex;
use crate::types::Millis;
use crate::types::Monotonic;
use crate::types::Term;

/// What makes a flush begin without waiting for its interval. Rows that are only listed are few, because taking
/// them keeps apply waiting; encoded ones cost nothing to take.
const FLUSH_AT: Pending = Pending { encoded: 32_768, listed: 16_384, bytes: 32 << 20 };
/// What makes apply wait for the flusher: memory is bounded.
const WAIT_AT: Pending = Pending { encoded: 262_144, listed: 131_072, bytes: 256 << 20 };
/// Apply gives the state's lock to readers at least this often, between entries.
const LOCK_MICROS: u64 = 2_000;

/// Committed entries and who waits for them.
pub struct ApplyJob {
    pub entries: Vec<Entry>,
    /// One list per entry; empty for entries that nobody here waits for.
    pub replies: Vec<Vec<Option<ReplySender>>>,
}

/// What applies, and where the changed rows go.
pub struct Applier {
    pub state: Arc<RwLock<State>>,
    pub shared: Arc<Shared>,
    pub flusher: Arc<Mailbox<FlushJob>>,
    pub flusher_busy: Arc<AtomicBool>,
    pub clock: Arc<dyn Clock>,
    pub flush_interval: Millis,
    pub last_flush: Monotonic,
    /// The last index whose rows were handed to the flusher.
    pub flushed: LogIndex,
}

impl Applier {
    /// Applies entries and answers. When this returns they are applied.
    pub fn apply(&mut self, job: ApplyJob) {
        let mut entries = job.entries.iter().zip(job.replies).peekable();
        let mut done: Vec<(ReplySender, BatchReplies)> = Vec::new();
        while entries.peek().is_some() {
            let started = self.clock.monotonic();
            let mut state = self.state.write();
            for (entry, replies) in entries.by_ref() {
                let (index, term) = (LogIndex(entry.index), Term(entry.term));
                let answers = match apply_entry(&mut state, index, term, &entry.data) {
                    Ok(answers) => answers,
                    Err(error) => stop_process(&format!("entry {index} cannot be applied"), &error),
                };
                let waiting = replies.into_iter().zip(answers);
                done.extend(waiting.filter_map(|(reply, answers)| reply.map(|reply| (reply, answers))));
                if self.clock.monotonic().micros_since(started) > LOCK_MICROS {
                    break;
                }
            }
            self.shared.set_applied(state.meta().applied, state.earliest_deadline());
            drop(state);
            for (reply, answers) in done.drain(..) {
                // The connection may be gone; then nobody wants to know.
                let _ = reply.send(Ok(answers));
            }
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
        if pending.reaches(&WAIT_AT) {
            while self.flusher_busy.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        let due = pending.reaches(&FLUSH_AT) || now.since(self.last_flush) >= self.flush_interval;
        if due && !self.flusher_busy.load(Ordering::Acquire) {
            self.flush(now);
        }
    }

    fn flush(&mut self, now: Monotonic) {
        let (rows, index, term) = {
            let mut state = self.state.write();
            let rows = state.take_changes();
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
}
