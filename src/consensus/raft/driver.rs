//! Drives a group's core: everything that arrived, then one drain, then what follows from it.
//!
//! One sweep: take all events ─► step the core ─► pack and propose what waits, as far as the window is open
//! ─► drain ─► hand entries to the log, apply committed ones. A lone voter writes the log here, synced when
//! `appendfsync` says so; with peers only what goes unsynced, to the page cache, is written here.
//!
//! A sweep runs on whichever thread has something for it ([`crate::consensus::raft::replica`]): waking
//! another thread costs more than the sweep itself.

use std::sync::Arc;
use std::time::Duration;

use raft::StateRole;
use raft::eraftpb::Entry;
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::config::AppendFsync;
use crate::config::SharedConfig;
use crate::consensus::ProposeError;
use crate::consensus::Role;
use crate::consensus::cluster_clock::ClusterClock;
use crate::consensus::mailbox::Mailbox;
use crate::consensus::raft::applier::Applier;
use crate::consensus::raft::applier::ApplyJob;
use crate::consensus::raft::group_core::GroupCore;
use crate::consensus::raft::group_core::Input;
use crate::consensus::raft::group_core::Output;
use crate::consensus::raft::group_core::Persist;
use crate::consensus::raft::log_writer;
use crate::consensus::raft::log_writer::WriterJob;
use crate::consensus::raft::proposer::Proposer;
use crate::consensus::raft::proposer::Submission;
use crate::consensus::raft::replica::Shared;
use crate::consensus::raft::replica::stop_process;
use crate::machine::entry::Batch;
use crate::machine::entry::LeaderStart;
use crate::machine::entry::Stamps;
use crate::machine::entry::encode_entry;
use crate::state::Settings;
use crate::storage::LogBatch;
use crate::storage::LogStore;
use crate::types::ClusterTime;
use crate::types::GroupId;
use crate::types::Millis;
use crate::types::Monotonic;
use crate::types::WallMillis;

/// The log cache is compacted when the applied entries in it exceed this many bytes.
const CACHE_BYTES: u64 = 8 << 20;
/// Or this many entries.
const CACHE_ENTRIES: usize = 4096;
/// While anything has a deadline, the log gets a stamp at least this often: after a total outage the
/// cluster clock goes on from the last stamp, so leases are late by no more than this.
const STAMP_INTERVAL: Millis = Millis(10_000);

type Done = oneshot::Sender<Result<(), ProposeError>>;

/// What can arrive.
pub enum Event {
    Submit(Submission),
    Persisted(u64),
    Barrier(Done),
    Stop,
}

/// Read barriers: those that arrived, those of the round under way, those whose index is known.
#[derive(Default)]
struct Barriers {
    waiting: Vec<Done>,
    round: Option<(u64, Vec<Done>)>,
    ready: Vec<(u64, Done)>,
    /// Number of the last round; never repeated in this process.
    context: u64,
}

/// What one sweep after the other works on.
pub struct Driver {
    core: GroupCore,
    /// The only voter: nobody waits for heartbeats or acknowledgements while this thread syncs.
    is_alone: bool,
    group: GroupId,
    shared: Arc<Shared>,
    log: Arc<LogStore>,
    writer: Arc<Mailbox<WriterJob>>,
    applier: Applier,
    cluster_clock: Arc<ClusterClock>,
    clock: Arc<dyn Clock>,
    config: SharedConfig,
    proposer: Proposer,
    barriers: Barriers,
    /// The last token given to the log writer and not answered yet. Tokens complete in order, so nothing is
    /// written past it.
    writer_owes: Option<u64>,
    last_stamp: Stamps,
    last_proposal: Monotonic,
    /// This replica leads and has queued its LEADER-START.
    leading: bool,
    /// Reads are served from the state once this index is applied; none while not leader.
    serve_from: Option<u64>,
    expire_pending: bool,
    start: LeaderStart,
    tick: Millis,
    next_tick: Monotonic,
    stopping: bool,
    out: Vec<Output>,
}

impl Driver {
    /// A driver for this core. [`Driver::with_start`] says what its first term begins with.
    #[expect(clippy::too_many_arguments, reason = "the parts are wired in one place")]
    pub fn new(
        core: GroupCore,
        group: GroupId,
        shared: Arc<Shared>,
        log: Arc<LogStore>,
        writer: Arc<Mailbox<WriterJob>>,
        applier: Applier,
        cluster_clock: Arc<ClusterClock>,
        clock: Arc<dyn Clock>,
        config: SharedConfig,
    ) -> Driver {
        let now = clock.monotonic();
        Driver {
            is_alone: core.is_only_voter(),
            core,
            group,
            shared,
            log,
            writer,
            applier,
            cluster_clock,
            clock,
            config,
            proposer: Proposer::default(),
            barriers: Barriers::default(),
            writer_owes: None,
            last_stamp: Stamps { clock: ClusterTime(0), wall: WallMillis(0), seed: 0 },
            last_proposal: now,
            leading: false,
            serve_from: None,
            expire_pending: false,
            start: LeaderStart { outage: Millis(0), settings: Settings::default() },
            tick: Millis(50),
            next_tick: now,
            stopping: false,
            out: Vec::new(),
        }
    }

    /// What the first LEADER-START says, which stamps the log ends with, and how long a tick is.
    #[must_use]
    pub fn with_start(mut self, settings: Settings, outage: Millis, last: Stamps, tick: Millis) -> Driver {
        self.start = LeaderStart { outage, settings };
        self.last_stamp = last;
        self.tick = tick;
        self
    }

    /// A group of one voter need not wait for anybody to stand for election.
    pub fn campaign_if_alone(&mut self) {
        if self.is_alone {
            self.step(Input::Campaign);
        }
    }

    /// True once a stop was asked for and everything proposed before has its outcome.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.stopping && self.proposer.is_idle()
    }

    /// Hands everything on that goes to disk, and ends the threads that do it.
    pub fn finish(&mut self) {
        self.writer.send(WriterJob::Stop);
        self.applier.finish();
    }

    /// How long nothing needs to be done unless something arrives.
    #[must_use]
    pub fn time_to_wait(&self) -> Duration {
        let now = self.clock.monotonic();
        let tick = self.next_tick.since(now);
        let deadline = if self.expire_pending || !self.leading {
            tick
        } else {
            self.cluster_clock.now().until(self.shared.earliest_deadline())
        };
        Duration::from_millis(tick.min(deadline).0.clamp(1, self.tick.0))
    }

    /// Takes what arrived and does what follows. `events` is empty afterwards.
    pub fn sweep(&mut self, events: &mut Vec<Event>) {
        for event in events.drain(..) {
            self.on_event(event);
        }
        self.on_time();
        self.round_of_barriers();
        loop {
            self.propose_waiting();
            let mut out = std::mem::take(&mut self.out);
            self.core.drain(&mut out);
            let idle = out.is_empty();
            for output in out.drain(..) {
                self.on_output(output);
            }
            if self.out.is_empty() {
                self.out = out;
            }
            if idle {
                break;
            }
        }
        self.applier.flush_when_due();
        self.shared.set_progress(self.core.commit_index(), self.proposer.in_flight());
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Submit(submission) => self.proposer.push(submission),
            Event::Persisted(token) => {
                self.writer_owes = self.writer_owes.filter(|last| token < *last);
                self.step(Input::Persisted(token));
            }
            Event::Barrier(done) => self.barriers.waiting.push(done),
            Event::Stop => {
                self.stopping = true;
            }
        }
    }

    fn step(&mut self, input: Input) {
        self.core.step(input, &mut self.out);
    }

    fn on_time(&mut self) {
        let now = self.clock.monotonic();
        if now >= self.next_tick {
            // After a pause one tick is enough: a burst of ticks would start elections.
            self.next_tick = Monotonic(now.0 + self.tick.0 * 1_000_000);
            self.step(Input::Tick);
        }
        if !self.leading || self.expire_pending || self.stopping {
            return;
        }
        let earliest = self.shared.earliest_deadline();
        let due = earliest <= self.cluster_clock.now();
        let stamp_old = earliest != ClusterTime::NEVER && now.since(self.last_proposal) >= STAMP_INTERVAL;
        if due || stamp_old {
            let mut batch = Batch::new(b"");
            batch.push_expire(0, std::iter::empty());
            self.expire_pending = true;
            self.proposer.push(Submission { batch, reply: None });
        }
    }

    // ---- proposing --------------------------------------------------------------------------------

    fn propose_waiting(&mut self) {
        if !self.leading {
            if self.stopping {
                self.shared.counters.failed(self.proposer.refuse_waiting(&ProposeError::Stopped));
            }
            return;
        }
        while let Some(packed) = self.proposer.pack() {
            self.last_stamp = self.stamp();
            self.last_proposal = self.clock.monotonic();
            let data = encode_entry(&self.last_stamp, &packed.batches);
            self.shared.took_waiting(waiting_bytes(&packed.batches, &packed.replies));
            let before = self.out.len();
            self.core.step(Input::Propose(data), &mut self.out);
            match self.out.split_off(before).pop() {
                Some(Output::Proposed { index, term }) => {
                    self.proposer.proposed(index, term, packed.bytes, packed.replies);
                }
                _ => {
                    for reply in packed.replies.into_iter().flatten() {
                        self.shared.counters.failed(1);
                        let _ = reply.send(Err(ProposeError::NotLeader { leader: None }));
                    }
                }
            }
        }
    }

    fn stamp(&self) -> Stamps {
        Stamps {
            clock: self.cluster_clock.now().max(self.last_stamp.clock),
            wall: self.cluster_clock.wall().max(self.last_stamp.wall),
            seed: self
                .last_stamp
                .seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(self.core.term() | 1),
        }
    }

    // ---- outputs ----------------------------------------------------------------------------------

    fn on_output(&mut self, output: Output) {
        match output {
            Output::Persist(persist) => self.persist(persist),
            Output::Apply(entries) => self.apply(entries),
            Output::Role { role, term, leader } => self.on_role(role, term, leader),
            Output::ReadReady { context, index } => self.on_read_ready(context, index),
            // A cluster of one has nobody to send to; the peers' links come with the internal port.
            Output::Send(messages) => debug_assert!(messages.is_empty()),
            Output::Proposed { .. } | Output::Dropped => {}
        }
    }

    fn persist(&mut self, persist: Persist) {
        let bytes: u64 = persist.entries.iter().map(|entry| entry.data.len() as u64 + 40).sum();
        self.shared.add_log_bytes(bytes);
        // Votes are always synced.
        let sync = persist.entries.is_empty() || self.config.get().appendfsync == AppendFsync::Always;
        if self.writer_owes.is_some() || (sync && !self.is_alone) {
            self.writer_owes = Some(persist.token);
            self.writer.send(WriterJob::Persist(persist));
            return;
        }
        let mut batch = LogBatch::new();
        log_writer::add_to_batch(&mut batch, self.group, &persist);
        if let Err(error) =
            log_writer::write(&self.log, batch, sync, self.clock.as_ref(), &self.shared.counters)
        {
            stop_process("writing the log failed", &error);
        }
        if !sync {
            self.shared.counters.set_unsynced();
        }
        self.step(Input::Persisted(persist.token));
    }

    fn apply(&mut self, entries: Vec<Entry>) {
        let replies = entries.iter().map(|entry| self.proposer.committed(entry)).collect::<Vec<_>>();
        if replies.iter().flatten().any(Option::is_none) {
            self.expire_pending = false;
        }
        self.applier.apply(ApplyJob { entries, replies });
        let applied = self.shared.applied();
        self.step(Input::Applied(applied));
        let (entries, bytes) = self.core.cached();
        if entries > CACHE_ENTRIES || bytes > CACHE_BYTES {
            self.step(Input::Compact(applied));
        }
        if self.serve_from.is_some_and(|index| applied >= index) && self.is_alone {
            self.serve_from = None;
            self.shared.set_may_read(true);
        }
        self.answer_barriers(applied);
    }

    fn on_role(&mut self, role: StateRole, term: u64, leader: u64) {
        let role = match role {
            StateRole::Leader => Role::Leader,
            StateRole::Follower => Role::Follower,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
        };
        self.shared.set_role(role, term, leader);
        self.leading = role == Role::Leader;
        if role != Role::Leader {
            self.serve_from = None;
            self.shared.set_may_read(false);
            return;
        }
        tracing::info!("leading the group in term {term}");
        let mut batch = Batch::new(b"");
        batch.push_leader_start(&self.start);
        // Only the first leader after a total outage may age the keys by it.
        self.start.outage = Millis(0);
        self.proposer.push_first(Submission { batch, reply: None });
        self.expire_pending = true;
        // raft's own empty entry comes first, LEADER-START behind it.
        self.serve_from = Some(self.core.last_index() + 1);
    }

    // ---- read barriers ----------------------------------------------------------------------------

    /// At most one round is under way; all that arrive meanwhile share the next.
    fn round_of_barriers(&mut self) {
        if self.barriers.waiting.is_empty() || self.barriers.round.is_some() {
            return;
        }
        if !self.core.has_committed_in_term() {
            // raft-rs drops such requests silently. The next tick tries again.
            return;
        }
        self.barriers.context += 1;
        let waiting = std::mem::take(&mut self.barriers.waiting);
        self.barriers.round = Some((self.barriers.context, waiting));
        self.step(Input::ReadIndex(self.barriers.context));
    }

    fn on_read_ready(&mut self, context: u64, index: u64) {
        if let Some((under_way, _)) = &self.barriers.round
            && *under_way == context
            && let Some((_, waiting)) = self.barriers.round.take()
        {
            self.barriers.ready.extend(waiting.into_iter().map(|done| (index, done)));
            self.answer_barriers(self.shared.applied());
        }
    }

    fn answer_barriers(&mut self, applied: u64) {
        for (_, done) in self.barriers.ready.extract_if(.., |(index, _)| *index <= applied) {
            // The connection may be gone; then nobody wants to know.
            let _ = done.send(Ok(()));
        }
    }
}

fn waiting_bytes(batches: &[Batch], replies: &[Option<crate::consensus::ReplySender>]) -> usize {
    batches.iter().zip(replies).filter(|(_, reply)| reply.is_some()).map(|(batch, _)| batch.bytes()).sum()
}
