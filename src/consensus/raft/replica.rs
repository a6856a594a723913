//! One group's replica on this node: boot, the handle that others hold, its threads, and the end.
//!
//! ```text
//! connections ──propose──► driver ──Persist──► log writer ──Persisted──► driver ──► apply ──► replies
//! other nodes ──messages──►   │ ▲                                                     └─rows─► flusher ──► data/
//!                 messages ◄──┘ └── ticks (the `raft` thread)
//! ```
//! The driver is not a thread but a state behind a lock, and whoever has something for it sweeps: a connection
//! after it proposed, the log writer when a write has become durable, the apply thread, the internal port's thread,
//! and the `raft` thread when time has passed. Who finds the lock taken leaves its event in the mailbox; whoever
//! holds the lock looks there again after giving it back.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use parking_lot::RwLock;
use raft::eraftpb::Entry;
use raft::eraftpb::EntryType;
use raft::eraftpb::HardState;
use thiserror::Error;
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::config::AppendFsync;
use crate::config::SharedConfig;
use crate::consensus::Group;
use crate::consensus::LinkFigures;
use crate::consensus::MemberInfo;
use crate::consensus::ProposeError;
use crate::consensus::Replicator;
use crate::consensus::ReplySender;
use crate::consensus::Role;
use crate::consensus::Status;
use crate::consensus::claims::Claims;
use crate::consensus::cluster_clock::ClusterClock;
use crate::consensus::mailbox::Mailbox;
use crate::consensus::raft::acceptable::OTHER_ENTRIES;
use crate::consensus::raft::applier::Applier;
use crate::consensus::raft::applier::ApplyMessage;
use crate::consensus::raft::driver::ApplyBy;
use crate::consensus::raft::driver::Cluster;
use crate::consensus::raft::driver::Driver;
use crate::consensus::raft::driver::DriverParts;
use crate::consensus::raft::driver::Event;
use crate::consensus::raft::flusher::Flusher;
use crate::consensus::raft::group_core::CoreOptions;
use crate::consensus::raft::group_core::GroupCore;
use crate::consensus::raft::group_core::ReplicaProgress;
use crate::consensus::raft::hub::Hub;
use crate::consensus::raft::hub::SnapshotDoor;
use crate::consensus::raft::log_cache::LogCache;
use crate::consensus::raft::log_writer;
use crate::consensus::raft::log_writer::DriverLog;
use crate::consensus::raft::members::AdminDone;
use crate::consensus::raft::members::Members;
use crate::consensus::raft::pulse::Pulse;
use crate::consensus::raft::reclaimer::Reclaimer;
use crate::consensus::raft::requests::AdminCommand;
use crate::consensus::raft::requests::GroupStatus;
use crate::consensus::raft::session::Session;
use crate::consensus::raft::session::Submission;
use crate::consensus::raft::silence::Silence;
use crate::consensus::raft::snapshot_io;
use crate::consensus::raft::snapshot_io::SnapshotCounters;
use crate::machine::entry::Batch;
use crate::machine::entry::Stamps;
use crate::machine::entry::decode_stamps;
use crate::machine::entry::life_of;
use crate::peer::Channel;
use crate::peer::Links;
use crate::state::Membership;
use crate::state::NodeAddress;
use crate::state::Settings;
use crate::state::State;
use crate::state::expiry::Track;
use crate::state::locks::graph::VictimChoice;
use crate::storage::LogBatch;
use crate::storage::LogContents;
use crate::storage::LogEntryRecord;
use crate::storage::LogStore;
use crate::storage::SharedCaches;
use crate::storage::SharedData;
use crate::storage::StorageError;
use crate::storage::Watermark;
use crate::storage::disk::DiskGauge;
use crate::storage::geometry::Geometry;
use crate::telemetry::metrics::RAFT_FSYNC_SECONDS;
#[cfg(not(feature = "sim"))]
use crate::telemetry::process;
use crate::types::Boottime;
use crate::types::ClusterTime;
use crate::types::GroupId;
use crate::types::LogIndex;
use crate::types::Millis;
use crate::types::Monotonic;
use crate::types::NodeId;
use crate::types::Term;
use crate::types::WallMillis;
use crate::types::planted::Bug;
use crate::types::planted::is_planted;

/// What one command or transaction may bring into the log: so much, or a value of `proto-max-bulk-len` bytes if that is
/// longer, with what goes around it. Whatever is in an entry is in memory several times while it is on its way.
const ENTRY_BYTES: usize = 64 << 20;
const AROUND_VALUE_BYTES: usize = 1 << 20;
/// What is larger is proposed and sent by the `raft` thread.
pub const LARGE_BYTES: usize = 1 << 20;
/// No entry is longer, whatever the configuration says: it must fit a message to a peer.
const ENTRY_BYTES_MAX: usize = 768 << 20;
/// Bytes that may wait for their outcome before newcomers are refused.
const WAITING_BYTES_MAX: usize = 1 << 30;
/// Exit status after a storage error or a broken invariant (EX_SOFTWARE).
#[cfg(not(feature = "sim"))]
const EXIT_FATAL: i32 = 70;
/// An outage longer than this is a wall clock that was set wrongly (COMMANDS.md 3.2, rule 7).
const OUTAGE_MAX: Millis = Millis(30 * 24 * 3600 * 1000);
/// Name of the record with this replica's id, in the group's part of the log.
pub const META_REPLICA: &[u8] = b"m";
/// Name of the record with the number of this node's starts.
pub const META_BOOT: &[u8] = b"b";
/// The term that a group of several begins in: its first index is as if a snapshot had brought it.
const FIRST_TERM: u64 = 1;
/// The only replica of a cluster of one.
const FIRST_REPLICA: u64 = 1;
/// Sessions' names: replica id, starts of the node, sessions of one start.
const EPOCH_REPLICA_SHIFT: u32 = 40;
const EPOCH_BOOT_SHIFT: u32 = 16;
/// How often other nodes are told where this one stands.
const STATUS_INTERVAL: Millis = Millis(500);
/// How often, and within what time, others must say that something is missing here to be believed.
const LOSSES_BELIEVED: u32 = 3;
pub(super) const LOSSES_WITHIN: Millis = Millis(60_000);
/// A lease that does not end, of a lone voter with learners: one of them may have applied more than it.
pub const LEASE_OF_SEVERAL_MAX: Boottime = Boottime(u64::MAX - 1);
/// Snapshots that are kept for followers that may still be receiving them.
const SNAPSHOTS_KEPT: usize = 2;

/// Ends the process with a last line that says why. For storage errors and broken invariants: what went
/// on is unknown, and going on could answer wrongly (DESIGN.md D14).
pub fn stop_process(what: &str, error: &dyn Display) -> ! {
    // In a simulation a process is only a node of it.
    #[cfg(feature = "sim")]
    std::panic::panic_any(format!("{what}: {error}"));
    #[cfg(not(feature = "sim"))]
    stop_this_process(what, error)
}

#[cfg(not(feature = "sim"))]
fn stop_this_process(what: &str, error: &dyn Display) -> ! {
    tracing::error!("{what}: {error}");
    eprintln!("holdfast: fatal: {what}: {error}. The node stops; what it had not answered yet is unknown.");
    process::exit_now(EXIT_FATAL);
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

impl BootError {
    /// True when what is on disk is not what was written, or not all of it: reading it again is of no use.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            BootError::Storage(error) => error.is_damage(),
            BootError::Mismatch { .. } => true,
            BootError::Thread(_) => false,
        }
    }
}

/// Figures that several threads count.
#[derive(Debug, Default)]
pub struct Counters {
    proposals: AtomicU64,
    proposals_failed: AtomicU64,
    log_writes: AtomicU64,
    log_write_micros: AtomicU64,
    flushed: AtomicU64,
    on_disk: AtomicU64,
    snapshots_installed: AtomicU64,
    leader_changes: AtomicU64,
    unsynced: AtomicBool,
}

impl Counters {
    /// A write of the log took this long, with its sync if it had one.
    pub fn log_written(&self, micros: u64, sync: bool) {
        self.log_writes.fetch_add(1, Ordering::Relaxed);
        self.log_write_micros.fetch_add(micros, Ordering::Relaxed);
        if sync {
            metrics::histogram!(RAFT_FSYNC_SECONDS).record(micros as f64 / 1e6);
        }
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

    /// How far rows are in `data/`.
    #[must_use]
    pub fn flushed(&self) -> LogIndex {
        LogIndex(self.flushed.load(Ordering::Acquire))
    }

    /// Rows up to here are on disk for good.
    pub fn set_on_disk(&self, index: LogIndex) {
        self.on_disk.store(index.0, Ordering::Release);
    }

    /// How far rows are on disk for good, as far as is known.
    #[must_use]
    pub fn on_disk(&self) -> LogIndex {
        LogIndex(self.on_disk.load(Ordering::Acquire))
    }

    /// A snapshot took the place of log and state.
    pub fn snapshot_installed(&self) {
        self.snapshots_installed.fetch_add(1, Ordering::Relaxed);
    }

    /// Batches that were refused.
    pub fn failed(&self, count: usize) {
        self.proposals_failed.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// What the threads of a replica and the holders of its handle share.
pub struct Shared {
    pub events: Mailbox<Event>,
    /// A large event waits: it is for the `raft` thread, since the others have clients and peers to serve.
    has_large: AtomicBool,
    pub pulse: Pulse,
    pub counters: Arc<Counters>,
    replica: u64,
    applied: AtomicU64,
    /// The stamps of the last entry that was applied.
    applied_clock: AtomicU64,
    applied_wall: AtomicU64,
    /// By track.
    earliest: [AtomicU64; 2],
    role: AtomicU8,
    term: AtomicU64,
    leader: AtomicU64,
    leader_node: AtomicU64,
    /// When a leader was heard.
    pub silence: Silence,
    commit: AtomicU64,
    in_flight: AtomicU64,
    log_bytes: AtomicU64,
    /// Until when reads need no barrier, in nanoseconds of CLOCK_BOOTTIME; `u64::MAX` for a lone voter that applies in its
    /// sweeps, which nobody can have overtaken.
    lease_until: AtomicU64,
    stopping: AtomicBool,
    short_of_room: AtomicBool,
    waiting_bytes: Arc<AtomicU64>,
    apply_backlog: AtomicU64,
    /// The log on disk is needed from here on; `u64::MAX`: no further than it was flushed.
    keep_from: AtomicU64,
    epoch: AtomicU64,
    progress: Mutex<Vec<ReplicaProgress>>,
    verified: Mutex<Option<(u64, u128)>>,
    is_status_due: AtomicBool,
    /// Copies of the rows that can be sent, the newest last.
    snapshots: Mutex<Vec<(u64, PathBuf)>>,
    quarantine_warned: AtomicU64,
    /// How often others said that something is missing here, and since when.
    losses_told: Mutex<(u32, Monotonic)>,
    /// For each other node the session, and the number up to which its batches that were proposed here are applied.
    executed: Mutex<BTreeMap<NodeId, (u64, u64)>>,
    /// The clients of this node that wait for locks.
    pub claims: Arc<Claims>,
    /// The nodes, by life, whose clients wait.
    waiting_nodes: Mutex<Vec<(NodeId, u64)>>,
}

impl Shared {
    /// What a replica shares that starts with this state. `epoch` is what the names of its sessions begin with;
    /// `keep_from` as in [`Shared::set_keep_from`].
    #[must_use]
    pub fn new(
        state: &State,
        counters: Arc<Counters>,
        replica: u64,
        epoch: u64,
        keep_from: u64,
        claims: Claims,
    ) -> Shared {
        Shared {
            events: Mailbox::default(),
            has_large: AtomicBool::new(false),
            pulse: Pulse::default(),
            counters,
            replica,
            applied: AtomicU64::new(state.meta().applied.0),
            applied_clock: AtomicU64::new(state.meta().clock.0),
            applied_wall: AtomicU64::new(state.meta().wall.0),
            earliest: Track::ALL.map(|track| AtomicU64::new(state.earliest_on(track).0)),
            role: AtomicU8::new(role_code(Role::Follower)),
            term: AtomicU64::new(0),
            leader: AtomicU64::new(0),
            leader_node: AtomicU64::new(0),
            silence: Silence::default(),
            commit: AtomicU64::new(state.meta().applied.0),
            in_flight: AtomicU64::new(0),
            log_bytes: AtomicU64::new(0),
            lease_until: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            short_of_room: AtomicBool::new(false),
            waiting_bytes: Arc::default(),
            apply_backlog: AtomicU64::new(0),
            keep_from: AtomicU64::new(keep_from),
            epoch: AtomicU64::new(epoch),
            progress: Mutex::default(),
            verified: Mutex::default(),
            is_status_due: AtomicBool::new(false),
            snapshots: Mutex::default(),
            quarantine_warned: AtomicU64::new(0),
            losses_told: Mutex::default(),
            executed: Mutex::default(),
            claims: Arc::new(claims),
            waiting_nodes: Mutex::new(state.waiting_nodes().collect()),
        }
    }

    /// The state stands here: everything up to its applied index is applied.
    pub fn set_applied(&self, state: &State) {
        let meta = state.meta();
        for track in Track::ALL {
            self.earliest[track as usize].store(state.earliest_on(track).0, Ordering::Release);
        }
        self.applied_clock.store(meta.clock.0, Ordering::Release);
        self.applied_wall.store(meta.wall.0, Ordering::Release);
        let mut waiting = self.waiting_nodes.lock();
        if !waiting.is_empty() || state.waiting_nodes().next().is_some() {
            waiting.clear();
            waiting.extend(state.waiting_nodes());
        }
        drop(waiting);
        self.applied.store(meta.applied.0, Ordering::SeqCst);
    }

    /// The nodes, by life, whose clients wait for locks.
    #[must_use]
    pub fn waiting_nodes(&self) -> Vec<(NodeId, u64)> {
        self.waiting_nodes.lock().clone()
    }

    /// The applied index.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.applied.load(Ordering::SeqCst)
    }

    /// The stamps of the last entry that was applied, or later ones.
    #[must_use]
    pub fn last_stamps(&self) -> (ClusterTime, WallMillis) {
        let clock = self.applied_clock.load(Ordering::Acquire);
        (ClusterTime(clock), WallMillis(self.applied_wall.load(Ordering::Acquire)))
    }

    /// When something ends next on a track.
    #[must_use]
    pub fn earliest_on(&self, track: Track) -> ClusterTime {
        ClusterTime(self.earliest[track as usize].load(Ordering::Acquire))
    }

    /// Says where the group stands. `leader` is a replica.
    pub fn set_role(&self, role: Role, term: u64, leader: u64) {
        self.role.store(role_code(role), Ordering::Release);
        self.term.store(term, Ordering::Release);
        if self.leader.swap(leader, Ordering::AcqRel) != leader && leader != 0 {
            self.counters.leader_changes.fetch_add(1, Ordering::Relaxed);
        }
        self.is_status_due.store(true, Ordering::Release);
    }

    /// The leader's replica id; 0 when none is known.
    #[must_use]
    pub fn leader(&self) -> u64 {
        self.leader.load(Ordering::Acquire)
    }

    /// Says which node leads, as far as it is known.
    pub fn set_leader_node(&self, node: Option<NodeId>) {
        self.leader_node.store(node.map_or(0, |node| node.0), Ordering::Release);
    }

    /// The leader's node.
    #[must_use]
    pub fn leader_node(&self) -> Option<NodeId> {
        let node = self.leader_node.load(Ordering::Acquire);
        (node != 0).then_some(NodeId(node))
    }

    /// Says how far reads may go without a barrier, and what is committed.
    pub fn publish(&self, lease_until: Boottime, commit: u64) {
        self.commit.store(commit, Ordering::SeqCst);
        self.lease_until.store(lease_until.0, Ordering::SeqCst);
    }

    /// True while reads from the applied state are linearizable, given that everything committed is applied.
    #[must_use]
    pub fn holds_lease(&self, now: Boottime) -> bool {
        now.0 < self.lease_until.load(Ordering::SeqCst)
    }

    /// True while this node may answer linearizable reads from its applied state, without a barrier.
    #[must_use]
    pub fn may_read(&self, clock: &dyn Clock) -> bool {
        match self.lease_until.load(Ordering::SeqCst) {
            0 => false,
            u64::MAX => true,
            // A follower may have applied, and shown, what is committed and not applied here.
            until => {
                (clock.boottime().0 < until || is_planted(Bug::LeaseUnchecked))
                    && self.applied() >= self.commit.load(Ordering::SeqCst)
            }
        }
    }

    /// Says how many entries are in flight.
    pub fn set_in_flight(&self, in_flight: usize) {
        self.in_flight.store(in_flight as u64, Ordering::Release);
    }

    /// Adds to the bytes of log on disk.
    pub fn add_log_bytes(&self, bytes: u64) -> u64 {
        self.log_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes
    }

    /// The log is purged now: gives the bytes since the last time.
    pub fn take_log_bytes(&self) -> u64 {
        self.log_bytes.swap(0, Ordering::AcqRel)
    }

    /// Says whether the disk has less room than `disk-free-soft`.
    pub fn set_short_of_room(&self, is_short: bool) {
        self.short_of_room.store(is_short, Ordering::Release);
    }

    /// What other nodes are told has changed: they hear of it soon.
    pub fn set_status_due(&self) {
        self.is_status_due.store(true, Ordering::Release);
    }

    /// True while the disk has less room than `disk-free-soft`.
    #[must_use]
    pub fn is_short_of_room(&self) -> bool {
        self.short_of_room.load(Ordering::Acquire)
    }

    /// True once the replica was told to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Bytes of log since the last purge.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        self.log_bytes.load(Ordering::Acquire)
    }

    /// The first index that the log on disk must keep.
    #[must_use]
    pub fn keep_from(&self) -> u64 {
        self.keep_from.load(Ordering::Acquire)
    }

    /// Followers may need the log from this index on.
    pub fn set_keep_from(&self, index: u64) {
        self.keep_from.store(index, Ordering::Release);
    }

    /// Entries of these bytes wait for apply.
    pub fn add_apply_backlog(&self, bytes: u64) {
        self.apply_backlog.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Entries of these bytes are applied.
    pub fn take_apply_backlog(&self, bytes: u64) {
        self.apply_backlog.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Bytes of entries that wait for apply.
    #[must_use]
    pub fn apply_backlog(&self) -> u64 {
        self.apply_backlog.load(Ordering::Acquire)
    }

    /// What the leader knows of the others.
    pub fn set_progress_of(&self, progress: &[ReplicaProgress]) {
        let mut known = self.progress.lock();
        known.clear();
        known.extend_from_slice(progress);
    }

    /// The state had this digest at this index.
    pub fn set_verified(&self, index: LogIndex, digest: u128) {
        *self.verified.lock() = Some((index.0, digest));
        self.is_status_due.store(true, Ordering::Release);
    }

    /// The name of this node's session.
    #[must_use]
    pub fn session_epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// A name for a session of this node that no session had before.
    #[must_use]
    pub fn next_epoch(&self) -> u64 {
        self.epoch.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// A copy of the rows as of this index can be sent. Older ones go, but for the last.
    pub fn snapshot_made(&self, index: u64, path: PathBuf) {
        let mut snapshots = self.snapshots.lock();
        snapshots.retain(|(other, _)| *other != index);
        snapshots.push((index, path));
        while snapshots.len() > SNAPSHOTS_KEPT {
            remove_snapshot(&snapshots.remove(0).1);
        }
    }

    /// The log does not continue older copies than this any more: nobody can use them.
    pub fn drop_snapshots_before(&self, index: u64) {
        for (_, path) in self.snapshots.lock().extract_if(.., |(at, _)| *at < index) {
            remove_snapshot(&path);
        }
    }

    /// Where the copy of this index is.
    #[must_use]
    pub fn snapshot_path(&self, index: u64) -> Option<PathBuf> {
        self.snapshots.lock().iter().find(|(at, _)| *at == index).map(|(_, path)| path.clone())
    }

    /// The index of the newest copy; 0 when there is none.
    #[must_use]
    pub fn snapshot_index(&self) -> u64 {
        self.snapshots.lock().last().map_or(0, |(index, _)| *index)
    }

    /// A node's batches that were proposed here are applied up to this number of its session.
    pub fn set_executed(&self, node: NodeId, epoch: u64, seq: u64) {
        let mut executed = self.executed.lock();
        let known = executed.entry(node).or_default();
        *known = (*known).max((epoch, seq));
    }

    /// Up to which number of its session a node's batches that were proposed here are applied; 0 when none is.
    #[must_use]
    pub fn executed(&self, node: NodeId, epoch: u64) -> u64 {
        self.executed.lock().get(&node).filter(|(known, _)| *known == epoch).map_or(0, |(_, seq)| *seq)
    }

    /// Notes that this replica's log is not what the group believes; says so once a minute. True when it must be given
    /// up: others have said of late, more than once, that they know more of it than it does itself; or
    /// a majority lost what it had not synced, which only `is_synced` (`appendfsync always`) rules out.
    pub fn on_quarantine(&self, why: &'static str, is_synced: bool, now: Monotonic) -> bool {
        let last = self.quarantine_warned.load(Ordering::Acquire);
        if last == 0 || now.since(Monotonic(last)) >= Millis(60_000) {
            self.quarantine_warned.store(now.0.max(1), Ordering::Release);
            tracing::error!("{why}: it takes no part");
        }
        if why == OTHER_ENTRIES {
            return !is_synced;
        }
        let mut told = self.losses_told.lock();
        if told.0 == 0 || now.since(told.1) > LOSSES_WITHIN {
            *told = (0, now);
        }
        told.0 += 1;
        told.0 >= LOSSES_BELIEVED
    }

    fn refuse(&self, reply: ReplySender, error: ProposeError) -> bool {
        self.counters.failed(1);
        // The connection may be gone; then nobody wants to know.
        let _ = reply.send(Err(error));
        false
    }

    fn submit(&self, config: &SharedConfig, batch: Batch, reply: ReplySender) -> bool {
        let bytes = batch.bytes();
        if self.stopping.load(Ordering::Acquire) {
            return self.refuse(reply, ProposeError::Stopped);
        }
        if bytes > ENTRY_BYTES {
            let max = entry_bytes_max(config.get().proto_max_bulk_len);
            if bytes > max {
                return self.refuse(reply, ProposeError::TooLarge { bytes, max });
            }
        }
        if self.waiting_bytes.load(Ordering::Acquire) > WAITING_BYTES_MAX as u64 {
            return self.refuse(reply, ProposeError::Overloaded);
        }
        self.counters.proposals.fetch_add(1, Ordering::Relaxed);
        let event = Event::Submit(Submission::weighed(batch, reply, &self.waiting_bytes));
        if bytes > LARGE_BYTES {
            self.post_large(event);
            return false;
        }
        self.events.post(event)
    }

    /// Leaves an event of many bytes to the `raft` thread.
    pub fn post_large(&self, event: Event) {
        self.has_large.store(true, Ordering::SeqCst);
        self.events.send(event);
    }

    /// Where the group stands.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            replica: self.replica,
            role: role_of(self.role.load(Ordering::Acquire)),
            term: Term(self.term.load(Ordering::Acquire)),
            leader: self.leader_node(),
            commit: LogIndex(self.commit.load(Ordering::Acquire)),
            applied: LogIndex(self.applied()),
            log_bytes: self.log_bytes(),
            entries_in_flight: self.in_flight.load(Ordering::Acquire),
            waiting_bytes: self.waiting_bytes.load(Ordering::Acquire),
            proposals: self.counters.proposals.load(Ordering::Relaxed),
            proposals_failed: self.counters.proposals_failed.load(Ordering::Relaxed),
            log_writes: self.counters.log_writes.load(Ordering::Relaxed),
            log_write_micros: self.counters.log_write_micros.load(Ordering::Relaxed),
            flushed: LogIndex(self.counters.flushed.load(Ordering::Acquire)),
            leader_changes: self.counters.leader_changes.load(Ordering::Relaxed),
            snapshots_installed: self.counters.snapshots_installed.load(Ordering::Relaxed),
            verified: *self.verified.lock(),
        }
    }

    /// The same, as other nodes are told.
    #[must_use]
    pub fn group_status(&self, group: GroupId) -> GroupStatus {
        let status = self.status();
        GroupStatus {
            group,
            replica: self.replica,
            role: status.role,
            term: status.term.0,
            leader: self.leader(),
            commit: status.commit.0,
            applied: status.applied.0,
            verified: status.verified,
        }
    }
}

/// How many bytes a batch may have.
fn entry_bytes_max(bulk_len_max: usize) -> usize {
    ENTRY_BYTES.max(bulk_len_max).saturating_add(AROUND_VALUE_BYTES).min(ENTRY_BYTES_MAX)
}

fn remove_snapshot(path: &std::path::Path) {
    if let Err(error) = std::fs::remove_dir_all(path) {
        tracing::warn!("cannot remove {}: {error}", path.display());
    }
}

/// The driver, and how threads take turns at it.
pub struct Engine {
    shared: Arc<Shared>,
    config: SharedConfig,
    clock: Arc<dyn Clock>,
    hub: Option<Arc<Hub>>,
    driver: Mutex<Driver>,
}

impl Engine {
    /// The `raft` thread: sweeps when time has passed, and when something was sent for it.
    fn run(&self) {
        let mut told = Monotonic(0);
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
            if let Some(hub) = &self.hub {
                let now = self.clock.monotonic();
                let is_due = self.shared.is_status_due.swap(false, Ordering::AcqRel);
                if is_due || now.since(told) >= STATUS_INTERVAL {
                    told = now;
                    hub.broadcast_status();
                }
            }
            self.shared.events.wait(wait);
        }
    }

    fn sweep_with(&self, driver: &mut Driver) {
        let guard = StopOnPanic;
        let mut events = Vec::new();
        self.shared.events.take(&mut events);
        // One that was posted since is left to whoever comes first.
        self.shared.has_large.store(false, Ordering::SeqCst);
        driver.sweep(&mut events);
        std::mem::forget(guard);
    }

    /// Leaves an event for the next sweep.
    pub fn post(&self, event: Event) {
        self.shared.events.post(event);
    }

    /// Leaves an event of many bytes to the `raft` thread.
    pub fn post_large(&self, event: Event) {
        self.shared.post_large(event);
    }

    /// Sends overdue heartbeats again until the node stops.
    fn run_pulse(&self, network: &dyn Links) {
        while !self.shared.stopping.load(Ordering::Acquire) {
            let interval = self.config.get().heartbeat_interval;
            std::thread::sleep(std::time::Duration::from_millis((interval.0 / 2).max(1)));
            for (node, frame) in self.shared.pulse.due(self.clock.monotonic(), interval) {
                // A lost heartbeat is followed by the next.
                let _ = network.send(node, Channel::Control, frame);
            }
        }
    }

    /// Sweeps until nothing is left, unless another thread is at it, or what is there is for the `raft` thread.
    pub fn sweep_events(&self) {
        while !self.shared.events.is_empty() && !self.shared.has_large.load(Ordering::SeqCst) {
            let Some(mut driver) = self.driver.try_lock() else { return };
            self.sweep_with(&mut driver);
        }
    }
}

/// Starts a thread without which the replica cannot go on: if it panics the process ends (DESIGN.md D14).
///
/// # Errors
/// When the system gives no thread.
pub fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let guard = StopOnPanic;
        run();
        std::mem::forget(guard);
    })
}

/// A core that panicked half way must not go on: other threads would find it half changed.
struct StopOnPanic;

impl Drop for StopOnPanic {
    fn drop(&mut self) {
        stop_process("a thread of the consensus panicked", &"see the lines above");
    }
}

impl Replicator for Engine {
    fn propose(&self, batch: Batch, reply: ReplySender) -> bool {
        self.shared.submit(&self.config, batch, reply)
    }

    fn gathering(&self) -> Option<usize> {
        let is_synced = self.config.get().appendfsync == AppendFsync::Always;
        is_synced.then(|| self.shared.events.len())
    }

    fn sweep(&self) {
        self.sweep_events();
    }

    fn barrier(&self, done: oneshot::Sender<Result<(), ProposeError>>) -> bool {
        if self.shared.stopping.load(Ordering::Acquire) {
            // The connection may be gone; then nobody wants to know.
            let _ = done.send(Err(ProposeError::Stopped));
            return false;
        }
        self.shared.events.post(Event::Barrier(done))
    }

    fn may_read(&self) -> bool {
        self.shared.may_read(self.clock.as_ref())
    }

    fn status(&self) -> Status {
        self.shared.status()
    }

    fn leader_silence(&self) -> Option<Millis> {
        // Who may read without asking others leads.
        let is_leader = role_of(self.shared.role.load(Ordering::Acquire)) == Role::Leader;
        let leads = is_leader && self.shared.may_read(self.clock.as_ref());
        if leads { Some(Millis(0)) } else { self.shared.silence.since(self.clock.monotonic()) }
    }

    fn leaderless(&self) -> Option<Millis> {
        self.shared.silence.leaderless()
    }

    fn members(&self) -> Vec<MemberInfo> {
        let now = self.clock.monotonic();
        let progress = self.shared.progress.lock().clone();
        let Some(hub) = &self.hub else { return Vec::new() };
        let links = hub.network().peers();
        let statuses = hub.statuses();
        statuses
            .into_iter()
            .filter_map(|(status, heard)| {
                let group = *status.groups.first()?;
                let link = links.iter().find(|link| link.node == status.node);
                let progress = progress.iter().find(|progress| progress.replica == group.replica);
                Some(MemberInfo {
                    node: status.node,
                    replica: group.replica,
                    role: group.role,
                    term: Term(group.term),
                    leader: group.leader,
                    commit: LogIndex(group.commit),
                    applied: LogIndex(group.applied),
                    matched: progress.map(|progress| LogIndex(progress.matched)),
                    is_voter: progress.map(|progress| progress.is_voter),
                    is_connected: heard.is_none() || link.is_some_and(|link| link.is_connected),
                    heard: heard.map(|_| {
                        link.and_then(|link| link.last_heard).map_or(Millis(u64::MAX), |at| now.since(at))
                    }),
                    rtt_us: link.and_then(|link| link.rtt_us),
                    version: status.version,
                    port: status.port,
                    disk_free: status.disk_free,
                    disk: status.disk,
                    disk_room: status.disk_room,
                    verified: group.verified,
                    link: link.map(|link| LinkFigures {
                        bytes_in: link.bytes_in,
                        bytes_out: link.bytes_out,
                        reconnects: link.reconnects,
                        queued_bytes: link.queued_bytes,
                    }),
                })
            })
            .collect()
    }

    fn transfer(&self, to: Option<NodeId>, done: oneshot::Sender<Result<(), String>>) {
        let done = AdminDone::new(move |result| {
            // The connection may be gone; then nobody wants to know.
            let _ = done.send(result.map(|_| ()));
        });
        let leads = role_of(self.shared.role.load(Ordering::Acquire)) == Role::Leader;
        match (&self.hub, self.shared.leader_node()) {
            (Some(hub), Some(leader)) if !leads => {
                hub.send_admin(leader, AdminCommand::TransferLeader { group: GroupId(0), to }, done);
            }
            (Some(_), None) => done.tell(Err("no leader is known".to_owned())),
            _ => self.shared.events.send(Event::Transfer { to, done }),
        }
    }

    fn make_snapshot(&self) {
        self.shared.events.send(Event::MakeSnapshot);
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
    pub dir: PathBuf,
    pub log: Arc<LogStore>,
    pub data: SharedData,
    pub caches: SharedCaches,
    pub watermark: Watermark,
    pub config: SharedConfig,
    pub clock: Arc<dyn Clock>,
    /// `None` for a cluster of one.
    pub peers: Option<PeerParts>,
}

/// What a replica with peers needs besides.
pub struct PeerParts {
    pub node: NodeId,
    pub hub: Arc<Hub>,
    pub replica: u64,
    /// The first members, whose replica ids are their node ids; empty for a node that came later.
    pub members: Vec<NodeId>,
    /// How often this node has started.
    pub boot: u64,
    pub snapshot_counters: Arc<SnapshotCounters>,
    /// How full the disk is.
    pub disk: Arc<DiskGauge>,
    /// This node's figures for the others; the group's are added.
    pub describe: Box<dyn Fn(GroupStatus) -> crate::consensus::raft::requests::NodeStatus + Send + Sync>,
}

impl PeerParts {
    fn links(&self) -> Arc<dyn Links> {
        Arc::new(self.hub.network().clone())
    }
}

/// A running replica. Dropping it does not stop it; [`Replica::stop`] does.
pub struct Replica {
    shared: Arc<Shared>,
    group: Group,
    hub: Option<Arc<Hub>>,
    threads: Vec<JoinHandle<()>>,
}

impl Replica {
    /// Reads what is on disk, repairs what a crash may leave, and starts the threads. The group of one
    /// voter elects itself at once; reads are served once its LEADER-START is applied.
    pub fn start(parts: ReplicaParts) -> Result<Replica, BootError> {
        let config = parts.config.get();
        let mut state = State::load_without_payloads(&*parts.data.get()?)?;
        state.read_cold(
            Arc::new(parts.data.clone()),
            usize::try_from(config.queue_memory).unwrap_or(usize::MAX),
        );
        let booted = Boot::read(&parts, &mut state)?;
        let counters = Arc::new(Counters::default());
        counters.set_flushed(state.meta().applied);
        let clock = Arc::new(ClusterClock::starting_at(booted.last_clock, Arc::clone(&parts.clock)));
        let applied = state.meta().applied;
        let membership = state.membership().clone();
        let (replica, boot) = (booted.replica, parts.peers.as_ref().map_or(0, |peers| peers.boot));
        let epoch = first_epoch(replica, boot);
        let keep_from = if parts.peers.is_some() { 0 } else { u64::MAX };
        let claims = match &parts.peers {
            Some(peers) => Claims::new(peers.node, life_of(epoch)),
            None => Claims::new(NodeId(0), 0),
        };
        let shared = Arc::new(Shared::new(&state, Arc::clone(&counters), replica, epoch, keep_from, claims));
        let settings = Settings {
            databases: config.databases,
            lock_default_ttl: config.lock_default_ttl,
            lease_failover_grace: config.lease_failover_grace,
            lock_deadlock_victim: VictimChoice::of(config.lock_deadlock_victim).unwrap_or_default(),
            lock_graph_max: config.lock_graph_max,
            lock_release_memory: config.lock_release_memory,
            once_max_entries: config.once_max_entries,
            once_max_bytes: config.once_max_bytes,
            queue_ack_memory: config.queue_ack_memory,
        };
        let state = Arc::new(RwLock::new(state));
        let (writer, flusher) = (Arc::default(), Arc::default());
        let busy = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let data = parts.data.into_writable()?;
        let geometry = Geometry::at(&parts.dir);
        threads.push(
            Reclaimer {
                group: parts.group,
                dir: parts.dir.clone(),
                log: Arc::clone(&parts.log),
                data: data.clone(),
                config: parts.config.clone(),
                shared: Arc::clone(&shared),
                flusher: Arc::clone(&flusher),
                clock: Arc::clone(&parts.clock),
            }
            .start()?,
        );
        threads.push(
            Flusher {
                group: parts.group,
                log: Arc::clone(&parts.log),
                data,
                geometry,
                kept_bytes: 0,
                failures_seen: 0,
                verifying: None,
                dir: parts.dir.clone(),
                caches: parts.caches,
                watermark: parts.watermark,
                config: parts.config.clone(),
                shared: Arc::clone(&shared),
                mailbox: Arc::clone(&flusher),
                busy: Arc::clone(&busy),
                purged: applied,
                written: applied,
                unflushed_bytes: 0,
                idle_seconds: 0,
                last_second: parts.clock.monotonic(),
                clock: Arc::clone(&parts.clock),
            }
            .start()?,
        );
        let applier = Applier {
            group: parts.group,
            state: Arc::clone(&state),
            shared: Arc::clone(&shared),
            network: parts.peers.as_ref().map(|peers| peers.links()),
            flusher,
            flusher_busy: busy,
            clock: Arc::clone(&parts.clock),
            flush_interval: config.flush_interval,
            flush_bytes: usize::try_from(geometry.data_memtable).unwrap_or(usize::MAX),
            last_flush: parts.clock.monotonic(),
            flushed: applied,
            has_cold: true,
        };
        let apply_mailbox: Arc<Mailbox<ApplyMessage>> = Arc::default();
        let (apply, apply_thread) = match &parts.peers {
            None => (ApplyBy::Sweep(Box::new(applier)), None),
            Some(_) => (ApplyBy::Thread(Arc::clone(&apply_mailbox)), Some(applier)),
        };
        let cluster = parts.peers.as_ref().map(|peers| Cluster {
            node: peers.node,
            network: peers.links(),
            session: Session::new(epoch, parts.clock.monotonic()),
            members: Members::new(membership),
            snapshots: Arc::clone(&peers.hub.snapshots),
            disk: Arc::clone(&peers.disk),
        });
        let outage = booted.outage(clock.wall());
        // Another seed in every life, so that no two draw the same.
        let last = Stamps { clock: booted.last_clock, wall: booted.last_wall, seed: clock.wall().0 };
        let core = booted.core(&config, parts.clock.as_ref())?;
        let mut driver = Driver::new(DriverParts {
            core,
            group: parts.group,
            shared: Arc::clone(&shared),
            log: Arc::clone(&parts.log) as Arc<dyn DriverLog>,
            writer: Arc::clone(&writer),
            apply,
            cluster,
            cluster_clock: Arc::clone(&clock),
            clock: Arc::clone(&parts.clock),
            config: parts.config.clone(),
            settings,
            outage,
            last,
            tick: tick_of(&config),
        });
        driver.campaign_if_alone();
        let hub = parts.peers.as_ref().map(|peers| Arc::clone(&peers.hub));
        let engine = Arc::new(Engine {
            shared: Arc::clone(&shared),
            config: parts.config.clone(),
            clock: Arc::clone(&parts.clock),
            hub: hub.clone(),
            driver: Mutex::new(driver),
        });
        let persisted = Arc::clone(&engine);
        threads.push(log_writer::start(
            parts.group,
            parts.log,
            writer,
            Arc::clone(&parts.clock),
            Arc::clone(&shared),
            parts.dir.clone(),
            move |token| {
                persisted.post(Event::Persisted(token));
                persisted.sweep_events();
            },
        )?);
        if let Some(applier) = apply_thread {
            let (mailbox, sweeper) = (Arc::clone(&apply_mailbox), Arc::clone(&engine));
            let run = move || applier.run(&mailbox, &|| sweeper.sweep_events());
            threads.push(spawn("apply", run)?);
        }
        if let Some(peers) = parts.peers {
            let (beating, links) = (Arc::clone(&engine), peers.links());
            threads.push(spawn("pulse", move || beating.run_pulse(&*links))?);
            let door = Box::new(SnapshotDoor(Arc::clone(&peers.hub)));
            threads.push(snapshot_io::start(
                parts.dir,
                Arc::clone(&peers.hub.snapshots),
                Arc::clone(&parts.clock),
                peers.snapshot_counters,
                door,
            )?);
            let (status, describe, group) = (Arc::clone(&shared), peers.describe, parts.group);
            let own_status = Box::new(move || describe(status.group_status(group)));
            peers.hub.serve(Arc::clone(&engine), own_status);
            // Links that were made before this replica stood.
            peers.hub.post_links();
        }
        let runner = Arc::clone(&engine);
        threads.push(spawn("raft", move || runner.run())?);
        let replicator: Arc<dyn Replicator> = engine;
        let group = Group::new(replicator, state, clock, Arc::clone(&shared.claims));
        Ok(Replica { group, shared, hub, threads })
    }

    /// The handle.
    #[must_use]
    pub fn group(&self) -> Group {
        self.group.clone()
    }

    /// Gives the leadership away if there are peers, takes no more proposals, finishes what is in flight, brings
    /// everything to disk, and ends the threads.
    pub fn stop(self) {
        if self.hub.is_some() && self.group.status().role == Role::Leader {
            let (sender, receiver) = std::sync::mpsc::channel();
            let done = AdminDone::new(move |result| {
                // Nobody waits any more.
                let _ = sender.send(result);
            });
            self.shared.events.send(Event::Transfer { to: None, done });
            // Without a voter that could lead the others elect one when they miss this node.
            let _ = receiver.recv_timeout(std::time::Duration::from_secs(4));
        }
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.events.send(Event::Stop);
        for thread in self.threads {
            // A thread of the replica that panicked has already ended the process.
            let _ = thread.join();
        }
        if let Some(hub) = self.hub {
            hub.network().stop();
        }
    }
}

/// What the names of a start's sessions begin with: no two starts of any replica have the same.
#[must_use]
pub fn first_epoch(replica: u64, boot: u64) -> u64 {
    replica << EPOCH_REPLICA_SHIFT | boot << EPOCH_BOOT_SHIFT
}

/// Length of a tick: a tenth of the election timeout.
#[must_use]
pub fn tick_of(config: &crate::config::Config) -> Millis {
    Millis((config.election_timeout.0 / 10).max(1))
}

/// What was found on disk, repaired.
pub struct Boot {
    dir: PathBuf,
    /// This replica's id.
    pub replica: u64,
    membership: Membership,
    hard_state: HardState,
    entries: Vec<Entry>,
    applied: u64,
    applied_term: u64,
    /// The stamps that the log ends with.
    pub last_clock: ClusterTime,
    pub last_wall: WallMillis,
}

impl Boot {
    /// Repairs what a crash may leave: `commit` is not durable by itself, so it is raised to what is
    /// applied; a log that ends before the applied index was purged up to it.
    fn read(parts: &ReplicaParts, state: &mut State) -> Result<Boot, BootError> {
        let meta = parts.log.load(parts.group, LogIndex(u64::MAX))?.meta;
        let replica = remember_replica(parts, meta.get(META_REPLICA))?;
        if state.membership().is_empty() {
            let own = parts.config.get().node_id;
            begin_group(state, own, replica, parts.peers.as_ref().map(|peers| peers.members.as_slice()));
        }
        let contents = parts.log.load(parts.group, state.meta().applied.next())?;
        let booted = Boot::repair(&parts.dir, replica, state, contents)?;
        parts.watermark.check(booted.log_end())?;
        Ok(booted)
    }

    /// Brings together what the log holds behind the state's applied index, and the state.
    ///
    /// # Errors
    /// When they do not fit each other.
    pub fn repair(dir: &Path, replica: u64, state: &State, contents: LogContents) -> Result<Boot, BootError> {
        let (applied, applied_term) = (state.meta().applied, state.meta().applied_term);
        let membership = state.membership().clone();
        let mismatch = |what: String| BootError::Mismatch { dir: dir.to_path_buf(), what };
        if let Some(first) = contents.entries.first()
            && first.index != applied.0 + 1
        {
            return Err(mismatch(format!("the log starts at {}, the state ends at {applied}", first.index)));
        }
        let entries: Vec<Entry> = contents.entries.into_iter().map(to_entry).collect();
        let last = entries.last().map_or((applied_term.0, applied.0), |entry| (entry.term, entry.index));
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
        Ok(Boot {
            dir: dir.to_path_buf(),
            replica,
            membership,
            hard_state,
            entries,
            applied,
            applied_term,
            last_clock,
            last_wall,
        })
    }

    /// What the log holds behind the state's applied index.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Term and index of the last entry.
    #[must_use]
    pub fn log_end(&self) -> (Term, LogIndex) {
        let last = self.entries.last().map(|entry| (entry.term, entry.index));
        let (term, index) = last.unwrap_or((self.applied_term, self.applied));
        (Term(term), LogIndex(index))
    }

    /// The core of a replica that starts now.
    ///
    /// # Errors
    /// When the log's parts do not fit each other.
    pub fn core(self, config: &crate::config::Config, clock: &dyn Clock) -> Result<GroupCore, BootError> {
        let heartbeat = (config.heartbeat_interval.0 * 10 / config.election_timeout.0.max(1)).clamp(1, 9);
        let options = CoreOptions {
            replica: self.replica,
            election_ticks: 10,
            heartbeat_ticks: heartbeat as usize,
            first_term: if config.cluster_nodes.len() > 1 { FIRST_TERM } else { 0 },
            tick_nanos: tick_of(config).0 * 1_000_000,
            // Another one in every life: replicas that once chose alike must not do so for ever.
            seed: clock.wall().0,
        };
        let members = Members::conf_state(&self.membership);
        let (dir, applied) = (self.dir, self.applied);
        let log = LogCache::new(self.hard_state, members, applied, self.applied_term, self.entries);
        GroupCore::new(&options, log, applied, clock.boottime())
            .map_err(|error| BootError::Mismatch { dir, what: error.to_string() })
    }

    /// How long nothing ran, by the wall clock; zero when that cannot be believed.
    #[must_use]
    pub fn outage(&self, wall: WallMillis) -> Millis {
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
fn remember_replica(parts: &ReplicaParts, known: Option<&Vec<u8>>) -> Result<u64, BootError> {
    let wanted = parts.peers.as_ref().map(|peers| peers.replica);
    if let Some(bytes) = known {
        let known = bytes.as_slice().try_into().map(u64::from_be_bytes).unwrap_or(0);
        if known == 0 || wanted.is_some_and(|wanted| wanted != known) {
            let what = format!("the log is replica {known}'s, the cluster's record says {wanted:?}");
            return Err(BootError::Mismatch { dir: parts.dir.clone(), what });
        }
        return Ok(known);
    }
    let replica = wanted.unwrap_or(FIRST_REPLICA);
    let mut batch = LogBatch::new();
    batch.group_meta(parts.group, META_REPLICA, &replica.to_be_bytes());
    parts.log.write(batch, true)?;
    Ok(replica)
}

/// Sets the members that a new group begins with; the same on each of them. Where they are the configuration says.
/// `peers`: `None` for a cluster of one, empty for a replica that joins later.
pub fn begin_group(state: &mut State, own: NodeId, replica: u64, peers: Option<&[NodeId]>) {
    let of = |node: NodeId| NodeAddress { node, host: String::new(), port: 0 };
    let members: Vec<(u64, NodeAddress)> = match peers {
        None => vec![(replica, of(own))],
        Some(peers) => peers.iter().map(|node| (node.0, of(*node))).collect(),
    };
    let voters = members.iter().map(|(replica, _)| *replica).collect();
    state.set_membership(Membership {
        voters,
        nodes: members.into_iter().collect(),
        ..Membership::default()
    });
    // The first members are in no entry, so a replica that comes later must be sent a snapshot, whatever the
    // log still holds: the log of several begins behind an index that nobody can send.
    if peers.is_some_and(|peers| !peers.is_empty()) {
        state.begin_entry(LogIndex(1), Term(FIRST_TERM), ClusterTime(0), WallMillis(0));
    }
}

/// A record of the log as raft-rs has it.
#[must_use]
pub fn to_entry(record: LogEntryRecord) -> Entry {
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
    use crate::storage::DataStore;
    use crate::storage::test_support::TestDir;
    use std::path::Path;

    fn start(dir: &Path, appendfsync: &str) -> Replica {
        start_with(dir, appendfsync, Arc::new(SystemClock::start()))
    }

    fn start_with(dir: &Path, appendfsync: &str, clock: Arc<dyn Clock>) -> Replica {
        let args = ["--appendfsync", appendfsync].map(str::to_owned);
        let config = SharedConfig::new(Config::load(&args).unwrap().config, None);
        let caches = SharedCaches::new(8 << 20, 64 << 20);
        let parts = ReplicaParts {
            group: GroupId(0),
            dir: dir.to_path_buf(),
            log: Arc::new(LogStore::open(dir).unwrap()),
            data: SharedData::new(DataStore::open(dir, GroupId(0), &caches).unwrap()),
            caches,
            peers: None,
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
    fn what_is_too_large_for_an_entry_is_refused_and_nothing_of_it_is_done() {
        let dir = TestDir::new();
        let replica = start(dir.path(), "no");
        let mut batch = Batch::new(b"default");
        let value = vec![b'x'; 22 << 20];
        batch.push_command(0, [&b"MSET"[..], b"a", &value, b"b", &value, b"c", &value].into_iter());
        let answer = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(replica.group().propose(batch));
        let Err(ProposeError::TooLarge { bytes, max }) = answer else { panic!("it was taken") };
        assert!(bytes > max && max == ENTRY_BYTES + AROUND_VALUE_BYTES);
        assert_eq!(run(&replica, &[&["EXISTS", "a", "b", "c"]]), vec![Reply::Integer(0)]);
        replica.stop();
        assert_eq!(
            entry_bytes_max(512 << 20),
            (512 << 20) + AROUND_VALUE_BYTES,
            "a longer value may be stored"
        );
        assert_eq!(entry_bytes_max(usize::MAX), ENTRY_BYTES_MAX);
    }

    #[test]
    fn who_subscribes_waits_for_nobody_who_reads() {
        let dir = TestDir::new();
        let replica = start(dir.path(), "no");
        let group = replica.group();
        let reading = group.read_applied();
        let (sender, told) = std::sync::mpsc::channel();
        let other = replica.group();
        std::thread::spawn(move || {
            other.tell_lock_changes(|| true);
            sender.send(()).unwrap();
        });
        // As long as a digest of all rows may take, and longer.
        told.recv_timeout(std::time::Duration::from_secs(20)).expect("it does not wait");
        assert!(reading.interest().is_in_all());
        drop(reading);
        replica.stop();
    }

    #[test]
    fn a_lone_voter_whose_learner_may_be_ahead_reads_only_what_is_applied() {
        let state = State::new(1);
        let shared = Shared::new(&state, Arc::default(), 1, 1 << 40, 0, Claims::new(NodeId(1), 1));
        let clock = SystemClock::start();
        shared.publish(LEASE_OF_SEVERAL_MAX, LogIndex(0).0);
        assert!(shared.may_read(&clock));
        shared.publish(LEASE_OF_SEVERAL_MAX, 7);
        assert!(!shared.may_read(&clock), "a learner may have shown what is not applied here");
        shared.publish(Boottime(u64::MAX), 7);
        assert!(shared.may_read(&clock), "nobody else is there");
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
