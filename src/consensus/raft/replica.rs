//! One group's replica on this node: boot, the handle that others hold, its threads, and the end.
//!
//! ```text
//! connections ──propose──► driver ──Persist──► log writer ──Persisted──► driver ──► apply ──► replies
//!                                                                                    └─rows─► flusher ──► data/
//! ```
//! The driver is not a thread but a state behind a lock, and whoever has something for it sweeps: a connection
//! after it proposed, the `raft` thread when a write has become durable or time has passed. Who finds the
//! lock taken leaves its event in the mailbox; whoever holds the lock looks there again after giving it back.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use parking_lot::RwLock;
use raft::eraftpb::ConfState;
use raft::eraftpb::Entry;
use raft::eraftpb::EntryType;
use raft::eraftpb::HardState;
use thiserror::Error;
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::config::AppendFsync;
use crate::config::SharedConfig;
use crate::consensus::Group;
use crate::consensus::ProposeError;
use crate::consensus::Replicator;
use crate::consensus::ReplySender;
use crate::consensus::Role;
use crate::consensus::Status;
use crate::consensus::cluster_clock::ClusterClock;
use crate::consensus::mailbox::Mailbox;
use crate::consensus::raft::applier::Applier;
use crate::consensus::raft::driver::Driver;
use crate::consensus::raft::driver::Event;
use crate::consensus::raft::flusher::Flusher;
use crate::consensus::raft::group_core::CoreOptions;
use crate::consensus::raft::group_core::GroupCore;
use crate::consensus::raft::log_cache::LogCache;
use crate::consensus::raft::log_writer;
use crate::consensus::raft::proposer::Submission;
use crate::machine::entry::Batch;
use crate::machine::entry::Stamps;
use crate::machine::entry::decode_stamps;
use crate::state::Settings;
use crate::state::State;
use crate::storage::DataStore;
use crate::storage::LogBatch;
use crate::storage::LogContents;
use crate::storage::LogEntryRecord;
use crate::storage::LogStore;
use crate::storage::StorageError;
use crate::storage::Watermark;
use crate::types::ClusterTime;
use crate::types::GroupId;
use crate::types::LogIndex;
use crate::types::Millis;
use crate::types::NodeId;
use crate::types::Term;
use crate::types::WallMillis;

/// An entry holds at most this much; one command may be nearly as large.
const ENTRY_BYTES_MAX: usize = 768 << 20;
/// Bytes that may wait to be proposed before newcomers are refused.
const WAITING_BYTES_MAX: usize = 1 << 30;
/// Exit status after a storage error or a broken invariant (EX_SOFTWARE).
const EXIT_FATAL: i32 = 70;
/// An outage longer than this is a wall clock that was set wrongly (COMMANDS.md 3.2, rule 7).
const OUTAGE_MAX: Millis = Millis(30 * 24 * 3600 * 1000);
/// Name of the record with this replica's id, in the group's part of the log.
const META_REPLICA: &[u8] = b"m";
/// The only replica of a cluster of one.
const FIRST_REPLICA: u64 = 1;

/// Ends the process with a last line that says why. For storage errors and broken invariants: what went
/// on is unknown, and going on could answer wrongly (DESIGN.md D14).
pub fn stop_process(what: &str, error: &dyn Display) -> ! {
    tracing::error!("{what}: {error}");
    eprintln!("holdfast: fatal: {what}: {error}. The node stops; what it had not answered yet is unknown.");
    std::process::exit(EXIT_FATAL);
}

/// Why a replica could not start. Nothing was served.
#[derive(Debug, Error)]
pub enum BootError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("the log and the state in {dir} do not fit each other: {what}; restore this node from a backup", dir = dir.display())]
    Mismatch { dir: std::path::PathBuf, what: String },
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Figures that several threads count.
#[derive(Debug, Default)]
pub struct Counters {
    proposals: AtomicU64,
    proposals_failed: AtomicU64,
    log_writes: AtomicU64,
    log_write_micros: AtomicU64,
    flushed: AtomicU64,
    unsynced: AtomicBool,
}

impl Counters {
    /// A write of the log took this long.
    pub fn log_written(&self, micros: u64) {
        self.log_writes.fetch_add(1, Ordering::Relaxed);
        self.log_write_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Something was written to the log without a sync.
    pub fn set_unsynced(&self) {
        self.unsynced.store(true, Ordering::Release);
    }

    /// True when something was written without a sync since the last call: the caller syncs now.
    #[must_use]
    pub fn take_unsynced(&self) -> bool {
        self.unsynced.swap(false, Ordering::AcqRel)
    }

    /// Rows up to here are in `data/`.
    pub fn set_flushed(&self, index: LogIndex) {
        self.flushed.store(index.0, Ordering::Release);
    }

    /// Batches that were refused.
    pub fn failed(&self, count: usize) {
        self.proposals_failed.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// What the threads of a replica and the holders of its handle share.
pub struct Shared {
    pub events: Mailbox<Event>,
    pub counters: Arc<Counters>,
    applied: AtomicU64,
    earliest_deadline: AtomicU64,
    role: AtomicU8,
    term: AtomicU64,
    leader: AtomicU64,
    commit: AtomicU64,
    in_flight: AtomicU64,
    log_bytes: AtomicU64,
    may_read: AtomicBool,
    stopping: AtomicBool,
    waiting_bytes: AtomicU64,
}

impl Shared {
    fn new(state: &State, counters: Arc<Counters>) -> Shared {
        Shared {
            events: Mailbox::default(),
            counters,
            applied: AtomicU64::new(state.meta().applied.0),
            earliest_deadline: AtomicU64::new(state.earliest_deadline().0),
            role: AtomicU8::new(role_code(Role::Follower)),
            term: AtomicU64::new(0),
            leader: AtomicU64::new(0),
            commit: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            log_bytes: AtomicU64::new(0),
            may_read: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            waiting_bytes: AtomicU64::new(0),
        }
    }

    /// Everything up to here is applied; `earliest` is when something ends next.
    pub fn set_applied(&self, applied: LogIndex, earliest: ClusterTime) {
        self.earliest_deadline.store(earliest.0, Ordering::Release);
        self.applied.store(applied.0, Ordering::SeqCst);
    }

    /// The applied index.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.applied.load(Ordering::SeqCst)
    }

    /// When something ends next.
    #[must_use]
    pub fn earliest_deadline(&self) -> ClusterTime {
        ClusterTime(self.earliest_deadline.load(Ordering::Acquire))
    }

    /// Says where the group stands.
    pub fn set_role(&self, role: Role, term: u64, leader: u64) {
        self.role.store(role_code(role), Ordering::Release);
        self.term.store(term, Ordering::Release);
        self.leader.store(leader, Ordering::Release);
    }

    /// Says what was committed and what is in flight.
    pub fn set_progress(&self, commit: u64, in_flight: usize) {
        self.commit.store(commit, Ordering::Release);
        self.in_flight.store(in_flight as u64, Ordering::Release);
    }

    /// Adds to the bytes of log on disk.
    pub fn add_log_bytes(&self, bytes: u64) -> u64 {
        self.log_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes
    }

    /// The log was purged.
    pub fn reset_log_bytes(&self) {
        self.log_bytes.store(0, Ordering::Release);
    }

    /// Bytes of log since the last purge.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        self.log_bytes.load(Ordering::Acquire)
    }

    /// Allows or forbids reads without a barrier.
    pub fn set_may_read(&self, may_read: bool) {
        self.may_read.store(may_read, Ordering::SeqCst);
    }

    /// These bytes do not wait any more.
    pub fn took_waiting(&self, bytes: usize) {
        self.waiting_bytes.fetch_sub(bytes as u64, Ordering::AcqRel);
    }

    fn refuse(&self, reply: ReplySender, error: ProposeError) -> bool {
        self.counters.failed(1);
        // The connection may be gone; then nobody wants to know.
        let _ = reply.send(Err(error));
        false
    }
}

impl Shared {
    fn submit(&self, batch: Batch, reply: ReplySender) -> bool {
        let bytes = batch.bytes();
        if self.stopping.load(Ordering::Acquire) {
            return self.refuse(reply, ProposeError::Stopped);
        }
        if bytes > ENTRY_BYTES_MAX {
            return self.refuse(reply, ProposeError::TooLarge { bytes, max: ENTRY_BYTES_MAX });
        }
        let waiting = self.waiting_bytes.fetch_add(bytes as u64, Ordering::AcqRel);
        if waiting > WAITING_BYTES_MAX as u64 {
            self.took_waiting(bytes);
            return self.refuse(reply, ProposeError::Overloaded);
        }
        self.counters.proposals.fetch_add(1, Ordering::Relaxed);
        self.events.post(Event::Submit(Submission { batch, reply: Some(reply) }))
    }

    fn ask_barrier(&self, done: oneshot::Sender<Result<(), ProposeError>>) {
        if self.stopping.load(Ordering::Acquire) {
            let _ = done.send(Err(ProposeError::Stopped));
        } else {
            self.events.send(Event::Barrier(done));
        }
    }

    /// Where the group stands.
    #[must_use]
    pub fn status(&self) -> Status {
        let leader = self.leader.load(Ordering::Acquire);
        Status {
            role: role_of(self.role.load(Ordering::Acquire)),
            term: Term(self.term.load(Ordering::Acquire)),
            leader: (leader != 0).then_some(NodeId(leader)),
            commit: LogIndex(self.commit.load(Ordering::Acquire)),
            applied: LogIndex(self.applied()),
            log_bytes: self.log_bytes(),
            entries_in_flight: self.in_flight.load(Ordering::Acquire),
            proposals: self.counters.proposals.load(Ordering::Relaxed),
            proposals_failed: self.counters.proposals_failed.load(Ordering::Relaxed),
            log_writes: self.counters.log_writes.load(Ordering::Relaxed),
            log_write_micros: self.counters.log_write_micros.load(Ordering::Relaxed),
            flushed: LogIndex(self.counters.flushed.load(Ordering::Acquire)),
        }
    }
}

/// The driver, and how threads take turns at it.
struct Engine {
    shared: Arc<Shared>,
    config: SharedConfig,
    driver: Mutex<Driver>,
}

impl Engine {
    /// The `raft` thread: sweeps when something became durable, and when time has passed.
    fn run(&self) {
        loop {
            let wait = {
                let mut driver = self.driver.lock();
                self.sweep_with(&mut driver);
                if driver.has_stopped() {
                    driver.finish();
                    return;
                }
                driver.time_to_wait()
            };
            self.shared.events.wait(wait);
        }
    }

    fn sweep_with(&self, driver: &mut Driver) {
        let guard = StopOnPanic;
        let mut events = Vec::new();
        self.shared.events.take(&mut events);
        driver.sweep(&mut events);
        std::mem::forget(guard);
    }
}

/// A core that panicked half way must not go on: other threads would find it half changed.
struct StopOnPanic;

impl Drop for StopOnPanic {
    fn drop(&mut self) {
        stop_process("the consensus core panicked", &"see the lines above");
    }
}

impl Replicator for Engine {
    fn propose(&self, batch: Batch, reply: ReplySender) -> bool {
        self.shared.submit(batch, reply)
    }

    fn gathering(&self) -> Option<usize> {
        let is_synced = self.config.get().appendfsync == AppendFsync::Always;
        is_synced.then(|| self.shared.events.len())
    }

    fn sweep(&self) {
        while !self.shared.events.is_empty() {
            let Some(mut driver) = self.driver.try_lock() else { return };
            self.sweep_with(&mut driver);
        }
    }

    fn barrier(&self, done: oneshot::Sender<Result<(), ProposeError>>) {
        self.shared.ask_barrier(done);
    }

    fn may_read(&self) -> bool {
        self.shared.may_read.load(Ordering::SeqCst)
    }

    fn status(&self) -> Status {
        self.shared.status()
    }
}

fn role_code(role: Role) -> u8 {
    match role {
        Role::Leader => 0,
        Role::Follower => 1,
        Role::Candidate => 2,
        Role::Learner => 3,
    }
}

fn role_of(code: u8) -> Role {
    match code {
        0 => Role::Leader,
        2 => Role::Candidate,
        3 => Role::Learner,
        _ => Role::Follower,
    }
}

/// What a replica is started with.
pub struct ReplicaParts {
    pub group: GroupId,
    pub dir: std::path::PathBuf,
    pub log: Arc<LogStore>,
    pub data: Arc<DataStore>,
    pub watermark: Watermark,
    pub config: SharedConfig,
    pub clock: Arc<dyn Clock>,
}

/// A running replica. Dropping it does not stop it; [`Replica::stop`] does.
pub struct Replica {
    shared: Arc<Shared>,
    group: Group,
    threads: Vec<JoinHandle<()>>,
}

impl Replica {
    /// Reads what is on disk, repairs what a crash may leave, and starts the threads. The group of one
    /// voter elects itself at once; reads are served once its LEADER-START is applied.
    pub fn start(parts: ReplicaParts) -> Result<Replica, BootError> {
        let config = parts.config.get();
        let state = State::load(&parts.data)?;
        let booted = Boot::read(&parts, &state)?;
        let counters = Arc::new(Counters::default());
        counters.set_flushed(state.meta().applied);
        let shared = Arc::new(Shared::new(&state, Arc::clone(&counters)));
        let clock = Arc::new(ClusterClock::starting_at(booted.last_clock, Arc::clone(&parts.clock)));
        let applied = state.meta().applied;
        let settings = Settings {
            databases: config.databases,
            lock_default_ttl: config.lock_default_ttl,
            lease_failover_grace: config.lease_failover_grace,
        };
        let state = Arc::new(RwLock::new(state));
        let (writer, flusher) = (Arc::default(), Arc::default());
        let busy = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        threads.push(
            Flusher {
                group: parts.group,
                log: Arc::clone(&parts.log),
                data: parts.data,
                watermark: parts.watermark,
                config: parts.config.clone(),
                shared: Arc::clone(&shared),
                mailbox: Arc::clone(&flusher),
                busy: Arc::clone(&busy),
                purged: applied,
                written: applied,
                idle_seconds: 0,
            }
            .start()?,
        );
        let applier = Applier {
            state: Arc::clone(&state),
            shared: Arc::clone(&shared),
            flusher,
            flusher_busy: busy,
            clock: Arc::clone(&parts.clock),
            flush_interval: config.flush_interval,
            last_flush: parts.clock.monotonic(),
            flushed: applied,
        };
        let events = Arc::clone(&shared);
        threads.push(log_writer::start(
            parts.group,
            Arc::clone(&parts.log),
            Arc::clone(&writer),
            Arc::clone(&parts.clock),
            counters,
            move |token| events.events.send(Event::Persisted(token)),
        )?);
        let outage = booted.outage(clock.wall());
        // Another seed in every life, so that no two draw the same.
        let last = Stamps { clock: booted.last_clock, wall: booted.last_wall, seed: clock.wall().0 };
        let core = booted.core(&config)?;
        let tick = Millis((config.election_timeout.0 / 10).max(1));
        let mut driver = Driver::new(
            core,
            parts.group,
            Arc::clone(&shared),
            parts.log,
            writer,
            applier,
            Arc::clone(&clock),
            parts.clock,
            parts.config.clone(),
        )
        .with_start(settings, outage, last, tick);
        driver.campaign_if_alone();
        let engine = Arc::new(Engine {
            shared: Arc::clone(&shared),
            config: parts.config.clone(),
            driver: Mutex::new(driver),
        });
        let runner = Arc::clone(&engine);
        threads.push(std::thread::Builder::new().name("raft".into()).spawn(move || runner.run())?);
        let replicator: Arc<dyn Replicator> = engine;
        Ok(Replica { group: Group::new(replicator, state, clock), shared, threads })
    }

    /// The handle.
    #[must_use]
    pub fn group(&self) -> Group {
        self.group.clone()
    }

    /// Takes no more proposals, finishes what is in flight, brings everything to disk, and ends the threads.
    pub fn stop(self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.events.send(Event::Stop);
        for thread in self.threads {
            // A thread of the replica that panicked has already ended the process.
            let _ = thread.join();
        }
    }
}

/// What was found on disk, repaired.
struct Boot {
    dir: std::path::PathBuf,
    hard_state: HardState,
    entries: Vec<Entry>,
    applied: u64,
    applied_term: u64,
    last_clock: ClusterTime,
    last_wall: WallMillis,
}

impl Boot {
    /// Repairs what a crash may leave: `commit` is not durable by itself, so it is raised to what is
    /// applied; a log that ends before the applied index was purged up to it.
    fn read(parts: &ReplicaParts, state: &State) -> Result<Boot, BootError> {
        let (applied, applied_term) = (state.meta().applied, state.meta().applied_term);
        let contents = parts.log.load(parts.group, applied.next())?;
        remember_replica(&parts.log, parts.group, &contents)?;
        let mismatch = |what: String| BootError::Mismatch { dir: parts.dir.clone(), what };
        if let Some(first) = contents.entries.first()
            && first.index != applied.0 + 1
        {
            return Err(mismatch(format!("the log starts at {}, the state ends at {applied}", first.index)));
        }
        let entries: Vec<Entry> = contents.entries.into_iter().map(to_entry).collect();
        let last = entries.last().map_or((applied_term.0, applied.0), |entry| (entry.term, entry.index));
        parts.watermark.check((Term(last.0), LogIndex(last.1)))?;
        let found = contents.hard_state.unwrap_or_default();
        let commit = found.commit.max(applied.0);
        if commit > last.1 {
            return Err(mismatch(format!("{commit} was committed, but the log ends at {}", last.1)));
        }
        let hard_state = HardState { term: found.term.max(last.0), vote: found.vote, commit };
        let stamps =
            entries.iter().rev().find_map(|entry| decode_stamps(&entry.data).ok().map(|(stamps, _)| stamps));
        let last_clock = stamps.map_or(state.meta().clock, |stamps| stamps.clock.max(state.meta().clock));
        let last_wall = stamps.map_or(state.meta().wall, |stamps| stamps.wall.max(state.meta().wall));
        let (applied, applied_term) = (applied.0, applied_term.0);
        Ok(Boot { dir: parts.dir.clone(), hard_state, entries, applied, applied_term, last_clock, last_wall })
    }

    fn core(self, config: &crate::config::Config) -> Result<GroupCore, BootError> {
        let heartbeat = (config.heartbeat_interval.0 * 10 / config.election_timeout.0.max(1)).clamp(1, 9);
        let options = CoreOptions {
            replica: FIRST_REPLICA,
            election_ticks: 10,
            heartbeat_ticks: heartbeat as usize,
            seed: self.hard_state.term,
        };
        let voters = ConfState::from((vec![FIRST_REPLICA], vec![]));
        let (dir, applied) = (self.dir, self.applied);
        let log = LogCache::new(self.hard_state, voters, applied, self.applied_term, self.entries);
        GroupCore::new(&options, log, applied)
            .map_err(|error| BootError::Mismatch { dir, what: error.to_string() })
    }

    /// How long nothing ran, by the wall clock; zero when that cannot be believed.
    fn outage(&self, wall: WallMillis) -> Millis {
        if self.last_wall == WallMillis(0) {
            return Millis(0);
        }
        let outage = Millis(wall.0.saturating_sub(self.last_wall.0));
        if outage > OUTAGE_MAX || wall < self.last_wall {
            tracing::warn!(
                "the wall clock moved from {} to {} ms while the node was down; keys with a time to live do not age by it",
                self.last_wall.0,
                wall.0
            );
            return Millis(0);
        }
        outage
    }
}

/// Writes the replica's id when the group is new. Ids are never used twice, so that a node that lost its disk
/// can never vote under its old name.
fn remember_replica(log: &LogStore, group: GroupId, contents: &LogContents) -> Result<(), StorageError> {
    if contents.meta.contains_key(META_REPLICA) {
        return Ok(());
    }
    let mut batch = LogBatch::new();
    batch.group_meta(group, META_REPLICA, &FIRST_REPLICA.to_be_bytes());
    log.write(batch, true)
}

fn to_entry(record: LogEntryRecord) -> Entry {
    Entry {
        entry_type: i32::from(record.kind),
        index: record.index,
        term: record.term,
        data: record.data,
        context: record.context,
        ..Entry::default()
    }
}

/// The entry type of a record, as the writer keeps it.
#[must_use]
pub fn kind_of(entry: &Entry) -> u8 {
    match entry.get_entry_type() {
        EntryType::EntryNormal => 0,
        EntryType::EntryConfChange => 1,
        EntryType::EntryConfChangeV2 => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::config::Config;
    use crate::resp::Reply;
    use crate::storage::SharedCaches;
    use crate::storage::test_support::TestDir;
    use std::path::Path;

    fn start(dir: &Path, appendfsync: &str) -> Replica {
        start_with(dir, appendfsync, Arc::new(SystemClock::start()))
    }

    fn start_with(dir: &Path, appendfsync: &str, clock: Arc<dyn Clock>) -> Replica {
        let args = ["--appendfsync", appendfsync].map(str::to_owned);
        let config = SharedConfig::new(Config::load(&args).unwrap().config, None);
        let parts = ReplicaParts {
            group: GroupId(0),
            dir: dir.to_path_buf(),
            log: Arc::new(LogStore::open(dir).unwrap()),
            data: Arc::new(DataStore::open(dir, GroupId(0), &SharedCaches::new(8 << 20, 64 << 20)).unwrap()),
            watermark: Watermark::open(dir).unwrap(),
            config,
            clock,
        };
        let replica = Replica::start(parts).unwrap();
        while replica.group().try_read().is_none() {
            std::thread::yield_now();
        }
        replica
    }

    fn run(replica: &Replica, commands: &[&[&str]]) -> Vec<Reply> {
        let mut batch = Batch::new(b"default");
        for command in commands {
            batch.push_command(0, command.iter().map(|word| word.as_bytes()).collect::<Vec<_>>().into_iter());
        }
        let answer = replica.group().propose(batch);
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(answer).unwrap()
    }

    fn digest(replica: &Replica) -> u128 {
        replica.group().read_applied().digest()
    }

    #[test]
    fn what_was_answered_is_there_after_a_restart_in_every_mode() {
        for mode in ["always", "everysec", "no"] {
            let dir = TestDir::new();
            let replica = start(dir.path(), mode);
            let replies = run(&replica, &[&["SET", "a", "1"], &["INCR", "n"], &["INCR", "n"], &["GET", "a"]]);
            assert_eq!(replies, vec![Reply::Ok, Reply::Integer(1), Reply::Integer(2), Reply::bulk("1")]);
            replica.stop();
            let replica = start(dir.path(), mode);
            assert_eq!(run(&replica, &[&["INCR", "n"]]), vec![Reply::Integer(3)]);
            replica.stop();
        }
    }

    #[test]
    fn a_copy_of_the_directory_taken_while_it_runs_replays_to_the_same_state() {
        let (dir, copy) = (TestDir::new(), TestDir::new());
        let replica = start(dir.path(), "always");
        for n in 0..200 {
            let (key, value) = (format!("k{}", n % 50), format!("v{n}"));
            run(
                &replica,
                &[&["SET", &key, &value], &["QPUSH", "q", &value], &["LOCK", &key.to_uppercase(), "me"]],
            );
        }
        let applied = replica.shared.applied();
        crate::storage::test_support::copy_dir(dir.path(), copy.path());
        let digest_before = digest(&replica);
        assert_eq!(replica.shared.applied(), applied, "nothing was applied meanwhile");
        let state_rows = replica.group().read_applied().database(0).len();
        replica.stop();
        let revived = start(copy.path(), "always");
        let group = revived.group();
        assert_eq!(group.read_applied().database(0).len(), state_rows);
        // The revived one has applied its own LEADER-START, which changes only the group's numbers.
        assert!(group.status().applied.0 > applied);
        assert_ne!(digest_before, 0);
        drop(group);
        revived.stop();
    }

    #[test]
    fn the_wall_stamp_of_the_log_does_not_go_back_with_a_nodes_clock() {
        let dir = TestDir::new();
        let life = |wall: u64| {
            let clock = crate::clock::ManualClock::default();
            clock.set_wall(WallMillis(wall));
            start_with(dir.path(), "always", Arc::new(clock))
        };
        let replica = life(10_000_000);
        run(&replica, &[&["SET", "a", "1"]]);
        replica.stop();
        let replica = life(5_000_000);
        let replies = run(&replica, &[&["SET", "a", "1", "PXAT", "10000500"], &["PTTL", "a"]]);
        assert_eq!(replies, vec![Reply::Ok, Reply::Integer(500)]);
        replica.stop();
    }

    #[test]
    fn a_read_barrier_is_answered() {
        let dir = TestDir::new();
        let replica = start(dir.path(), "no");
        let barrier = replica.group().barrier();
        let done = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(barrier);
        assert_eq!(done, Ok(()));
        replica.stop();
    }

    #[test]
    fn a_batch_after_the_stop_is_refused() {
        let dir = TestDir::new();
        let replica = start(dir.path(), "no");
        let group = replica.group();
        replica.stop();
        let mut batch = Batch::new(b"default");
        batch.push_expire(0, std::iter::empty());
        let answer =
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(group.propose(batch));
        assert_eq!(answer, Err(ProposeError::Stopped));
    }
}
