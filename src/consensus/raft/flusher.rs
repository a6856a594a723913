//! The thread that brings changed rows to `data/` and lets go of the log they came from.
//!
//! Order, which is what makes a crash at any instruction recoverable (DESIGN.md D2):
//!
//! ```text
//! log durable through i  ─►  rows and applied index i written to data/ (memory)
//!                        ─►  data/ flushed: rows through i on disk  ─►  log purged through i
//! ```

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::Clock;
use crate::config::AppendFsync;
use crate::config::SharedConfig;
use crate::consensus::mailbox::Mailbox;
use crate::consensus::raft::driver::Event;
use crate::consensus::raft::replica::Shared;
use crate::consensus::raft::replica::spawn;
use crate::consensus::raft::replica::stop_process;
use crate::consensus::raft::restart;
use crate::consensus::raft::room::wait_for_room;
use crate::state::Membership;
use crate::state::RowBatch;
use crate::state::State;
use crate::storage::DataStore;
use crate::storage::HardStateRecord;
use crate::storage::LogBatch;
use crate::storage::LogStore;
use crate::storage::SharedCaches;
use crate::storage::SharedData;
use crate::storage::StorageError;
use crate::storage::Watermark;
use crate::storage::geometry::Geometry;
use crate::storage::snapshot;
use crate::telemetry::process;
use crate::types::GroupId;
use crate::types::LogIndex;
use crate::types::Millis;
use crate::types::Monotonic;
use crate::types::Term;
use crate::types::codec::put_varint;

/// The log is purged after this many entries, whatever their size.
const PURGE_ENTRIES: u64 = 100_000;
/// How often the state of the stores is looked at.
const SECOND: Millis = Millis(1_000);
/// A node without writes for about this many seconds brings its memory to disk: the next start has nothing
/// to replay, and RocksDB's memory is free.
const IDLE_SECONDS: u32 = 2;
/// But not for less than this: a few small entries now and then are not worth tables of their own.
const IDLE_PURGE_ENTRIES: u64 = 1_000;
const IDLE_PURGE_BYTES: u64 = 1 << 20;

/// Rows of so many bytes are brought to disk together: payloads and traces stay in memory until then.
const ON_DISK_AFTER_BYTES: u64 = 32 << 20;

/// How long, and how often, it is waited for compaction before rows are written all the same.
const COMPACTION_LOOK: Duration = Duration::from_millis(5);
const COMPACTION_LOOKS: u32 = 2_000;

/// What the flusher is asked to do.
pub enum FlushJob {
    /// Rows as of an index.
    Rows { rows: RowBatch, index: LogIndex, term: Term },
    /// Copy the rows as they are now, for a follower.
    Checkpoint(CheckpointJob),
    /// Put a snapshot in the place of log and rows, and give the state that it holds.
    Install { job: InstallJob, reply: mpsc::SyncSender<Box<State>> },
    /// Let go of as much of the log as can be, and say how far that is.
    GiveBack { done: mpsc::SyncSender<GivenBack> },
    /// Flush everything and end.
    Stop,
}

/// How far log and rows were brought to disk.
#[derive(Debug, Clone, Copy)]
pub struct GivenBack {
    /// The log begins after this index.
    pub purged: LogIndex,
    /// Rows up to here are on disk.
    pub written: LogIndex,
}

/// What a copy of the rows will hold.
#[derive(Debug)]
pub struct CheckpointJob {
    pub index: LogIndex,
    pub term: Term,
    pub membership: Membership,
}

/// What is to be written while a snapshot is put in place.
#[derive(Debug)]
pub struct InstallJob {
    /// Name of its directory below `incoming/`.
    pub incoming: String,
    pub index: LogIndex,
    pub term: Term,
    pub hard_state: HardStateRecord,
}

/// State of the flusher thread.
pub struct Flusher {
    pub group: GroupId,
    pub log: Arc<LogStore>,
    /// There but for the moment in which a snapshot takes its place.
    pub data: SharedData,
    pub dir: PathBuf,
    pub caches: SharedCaches,
    pub watermark: Watermark,
    pub config: SharedConfig,
    pub shared: Arc<Shared>,
    pub mailbox: Arc<Mailbox<FlushJob>>,
    /// True while rows wait here or are being written; the applier gives no more meanwhile.
    pub busy: Arc<AtomicBool>,
    /// Everything up to here was purged from the log.
    pub purged: LogIndex,
    /// Rows up to here were written.
    pub written: LogIndex,
    /// Bytes of rows written since they were last brought to disk.
    pub unflushed_bytes: usize,
    /// Bytes of log that purges left to followers, nearly.
    pub kept_bytes: u64,
    /// How the disk is divided up.
    pub geometry: Geometry,
    /// Failed background writes that were looked into.
    pub failures_seen: u64,
    /// Reads a snapshot before anybody is sent it.
    pub verifying: Option<JoinHandle<()>>,
    /// Seconds since rows came.
    pub idle_seconds: u32,
    pub clock: Arc<dyn Clock>,
    /// When the work of every second was last done.
    pub last_second: Monotonic,
}

impl Flusher {
    /// Starts the thread.
    pub fn start(mut self) -> std::io::Result<JoinHandle<()>> {
        spawn("flusher", move || {
            let mut jobs = Vec::new();
            loop {
                self.mailbox.receive(&mut jobs, Duration::from_secs(1));
                // Under load jobs come all the time.
                let now = self.clock.monotonic();
                if jobs.is_empty() || now.since(self.last_second) >= SECOND {
                    self.last_second = now;
                    self.check(Flusher::every_second);
                }
                for job in jobs.drain(..) {
                    match job {
                        FlushJob::Rows { rows, index, term } => {
                            self.check(|this| this.write_rows(rows, index, term));
                            self.busy.store(false, Ordering::Release);
                        }
                        FlushJob::Checkpoint(job) => self.check(|this| this.checkpoint(job)),
                        FlushJob::Install { job, reply } => {
                            self.check(|this| match this.install(&job) {
                                Ok(state) => {
                                    // The apply thread waits for it, unless the process ends.
                                    let _ = reply.send(Box::new(state));
                                    Ok(())
                                }
                                // The next start puts it in place.
                                Err(error) if error.is_no_space() && this.shared.is_stopping() => {
                                    process::exit_now(0)
                                }
                                Err(error) => Err(error),
                            });
                        }
                        FlushJob::GiveBack { done } => self.check(|this| {
                            this.purge(this.written)?;
                            // The thread that asked may have ended.
                            let _ = done.send(GivenBack { purged: this.purged, written: this.written });
                            Ok(())
                        }),
                        FlushJob::Stop => {
                            if let Some(thread) = self.verifying.take() {
                                // It has ended the process if it panicked.
                                let _ = thread.join();
                            }
                            self.check(Flusher::flush_all);
                            return;
                        }
                    }
                }
            }
        })
    }

    fn check(&mut self, work: impl FnOnce(&mut Flusher) -> Result<(), StorageError>) {
        match work(self) {
            Err(error) if error.is_no_space() && self.shared.is_stopping() => {
                tracing::warn!("writing the state failed: {error}. The next start makes it from the log");
            }
            Err(error) => restart::stop_on("writing the state failed", &error),
            Ok(()) => {}
        }
    }

    /// Works on the rows as soon as there is room to.
    fn with_room<T>(
        &self,
        mut work: impl FnMut(&DataStore) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let data = self.data.get()?;
        wait_for_room(&self.dir, &|| self.shared.is_stopping(), || work(&data))
    }

    fn sync_log(&self) -> Result<(), StorageError> {
        wait_for_room(&self.dir, &|| self.shared.is_stopping(), || self.log.sync())
    }

    /// Rows that wait for compaction take room twice. RocksDB has such a brake of its own, but that one holds up flushes
    /// too, without end where compaction finds no room.
    fn wait_for_compaction(&self, data: &DataStore) {
        for _ in 0..COMPACTION_LOOKS {
            if data.level_zero_tables() < self.geometry.level_zero_max || self.shared.is_stopping() {
                return;
            }
            std::thread::sleep(COMPACTION_LOOK);
        }
    }

    /// RocksDB tells of failed background work only when asked, and why it failed only when it stopped the store for it.
    /// Compaction that found no room is tried again by itself, and a flush of rows by who waits for it.
    fn look_into_failures(&mut self) -> Result<(), StorageError> {
        if let Some(damage) = self.data.take_damage() {
            return Err(damage);
        }
        let failed = self.log.background_errors() + self.data.get()?.background_errors();
        let is_news = failed > self.failures_seen;
        // A store that was opened anew counts from 0.
        self.failures_seen = failed;
        if !is_news {
            return Ok(());
        }
        // Who writes next waits for room.
        for probed in [self.log.probe(), self.data.get()?.probe()] {
            probed.or_else(|error| if error.is_no_space() { Ok(()) } else { Err(error) })?;
        }
        tracing::warn!("{failed} background writes of the stores found no room since the start");
        Ok(())
    }

    /// In `everysec`, whatever was written is synced within about a second. The watermark follows what is synced, by
    /// whomever.
    fn every_second(&mut self) -> Result<(), StorageError> {
        self.look_into_failures()?;
        if self.config.get().appendfsync == AppendFsync::EverySec && self.shared.counters.take_unsynced() {
            self.sync_log()?;
        }
        self.watermark.advance_change(self.log.synced_sequence())?;
        self.idle_seconds = self.idle_seconds.saturating_add(1);
        let entries = self.written.0 - self.purged.0;
        let is_worth_it = entries >= IDLE_PURGE_ENTRIES || self.shared.log_bytes() >= IDLE_PURGE_BYTES;
        if self.idle_seconds == IDLE_SECONDS && entries > 0 && is_worth_it {
            self.purge(self.written)?;
            self.log.release_memory()?;
        }
        Ok(())
    }

    /// Flushes the rows and lets go of the log that they came from, but for what followers may still need. With little
    /// room they get no more than a part of it: who needs more is sent a snapshot, which takes no room here.
    fn purge(&mut self, index: LogIndex) -> Result<(), StorageError> {
        self.flush_rows()?;
        let wanted = LogIndex(self.shared.keep_from().saturating_sub(1));
        self.kept_bytes = self.kept_bytes.saturating_add(self.shared.take_log_bytes());
        let is_too_much = self.shared.is_short_of_room() && self.kept_bytes > self.geometry.log_max;
        let index = if is_too_much { index } else { index.min(wanted) };
        let (entries, kept) = (self.written.0 - self.purged.0, self.written.0 - index.0.max(self.purged.0));
        self.kept_bytes = self.kept_bytes / entries.max(1) * kept;
        if index > self.purged {
            self.shared.events.send(Event::Purged(index.0));
            let is_over = || self.shared.is_stopping();
            wait_for_room(&self.dir, &is_over, || self.log.purge(self.group, index))?;
            self.purged = index;
            if self.geometry.is_small() {
                // Tables of what is purged wait for compaction, too.
                wait_for_room(&self.dir, &is_over, || self.log.give_back(self.group, index))?;
            }
        }
        Ok(())
    }

    fn checkpoint(&mut self, job: CheckpointJob) -> Result<(), StorageError> {
        let path = snapshot::outgoing_path(&self.dir, self.group, job.index)?;
        if path.exists() {
            std::fs::remove_dir_all(&path)
                .map_err(|error| StorageError::Io { path: path.clone(), source: error })?;
        }
        self.with_room(|data| data.checkpoint(&path))?;
        let shared = Arc::clone(&self.shared);
        // No other node may be given damage, and a copy that is read whole is the surest way to find it.
        let verify = move || match verify_copy(&path, &|| shared.is_stopping()) {
            Ok(()) => shared.events.send(Event::SnapshotMade { job, path }),
            Err(_) if shared.is_stopping() => {}
            Err(error) => restart::stop_on("a snapshot cannot be made", &error),
        };
        let thread =
            spawn("verify", verify).map_err(|source| StorageError::Io { path: self.dir.clone(), source })?;
        self.verifying = Some(thread);
        Ok(())
    }

    /// DESIGN.md D3: the log first, with a marker; then the directories; then the marker goes.
    fn install(&mut self, job: &InstallJob) -> Result<State, StorageError> {
        // Before anything is given up for it. The next start throws it away.
        let look = || {
            let rows = DataStore::open_at(&snapshot::incoming_path(&self.dir, &job.incoming), &self.caches)?;
            rows.verify()?;
            State::applied_of(&rows)
        };
        let applied = match look() {
            Err(error) if error.is_damage() => stop_process("the snapshot that came is not whole", &error),
            applied => applied?,
        };
        if applied != job.index {
            let what = format!("a snapshot of index {} holds rows of {applied}", job.index);
            return Err(StorageError::Corrupt { what });
        }
        let mut batch = LogBatch::new();
        batch.clear_entries(self.group);
        batch.hard_state(self.group, job.hard_state);
        let mut meta = Vec::new();
        put_varint(&mut meta, job.index.0);
        put_varint(&mut meta, job.term.0);
        batch.snapshot_meta(self.group, &meta);
        batch.install_marker(self.group, &job.incoming);
        // A watermark of an older term may be above the snapshot.
        self.watermark.lower(job.term, job.index)?;
        self.log.write(batch, true)?;
        self.data.close();
        snapshot::finish_install(&self.dir, &self.log, self.group, &job.incoming)?;
        let data = DataStore::open(&self.dir, self.group, &self.caches)?;
        let mut state = State::load_without_payloads(&data)?;
        self.data.put(data);
        let budget = usize::try_from(self.config.get().queue_memory).unwrap_or(usize::MAX);
        state.read_cold(Arc::new(self.data.clone()), budget);
        self.shared.counters.set_on_disk(job.index);
        self.watermark.advance(job.term, job.index)?;
        self.shared.counters.set_flushed(job.index);
        self.shared.counters.snapshot_installed();
        (self.purged, self.written, self.idle_seconds) = (job.index, job.index, 0);
        Ok(state)
    }

    fn write_rows(&mut self, rows: RowBatch, index: LogIndex, term: Term) -> Result<(), StorageError> {
        // The state must never be ahead of the durable log, in no mode.
        if self.shared.counters.take_unsynced() {
            self.sync_log()?;
        }
        let clock = rows.clock();
        let batch = rows.into_batch();
        self.unflushed_bytes += batch.bytes();
        self.with_room(DataStore::probe)?;
        let data = self.data.get()?;
        self.wait_for_compaction(&data);
        data.write(batch)?;
        // The log tells this time again after a crash.
        data.forget(clock);
        drop(data);
        self.watermark.advance(term, index)?;
        self.shared.counters.set_flushed(index);
        (self.written, self.idle_seconds) = (index, 0);
        let entries = index.0 - self.purged.0;
        if entries >= PURGE_ENTRIES || self.shared.log_bytes() >= self.log_max() {
            self.purge(index)?;
        } else if self.unflushed_bytes as u64 >= ON_DISK_AFTER_BYTES.min(self.geometry.log_memtable) {
            self.flush_rows()?;
        }
        Ok(())
    }

    /// How long the log may become before it is purged.
    fn log_max(&self) -> u64 {
        let geometry = &self.geometry;
        if self.shared.is_short_of_room() {
            return geometry.log_memtable;
        }
        geometry.log_max.min(self.config.get().log_max_bytes)
    }

    /// Brings the rows to disk: what was only kept in memory because it was not there may go.
    fn flush_rows(&mut self) -> Result<(), StorageError> {
        self.with_room(DataStore::flush)?;
        self.unflushed_bytes = 0;
        self.shared.counters.set_on_disk(self.written);
        Ok(())
    }

    fn flush_all(&mut self) -> Result<(), StorageError> {
        self.log.sync()?;
        match self.data.get()?.flush() {
            Err(error) if error.is_no_space() => {
                tracing::warn!(
                    "{error}: what is not in the data files is in the log, and is read from there"
                );
            }
            flushed => flushed?,
        }
        self.watermark.advance_change(self.log.synced_sequence())
    }
}

/// Reads all of a copy of the rows, or until `is_over`, which is an error.
fn verify_copy(path: &Path, is_over: &dyn Fn() -> bool) -> Result<(), StorageError> {
    const CACHE_BYTES: usize = 1 << 20;
    let rows = DataStore::examine_at(path, &SharedCaches::new(CACHE_BYTES, CACHE_BYTES))?;
    rows.scan(&[], &mut |_, _| match is_over() {
        true => Err(StorageError::Rocks("the node stops".to_owned())),
        false => Ok(()),
    })
}
