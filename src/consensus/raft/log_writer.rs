//! The thread that makes log entries durable: one synced write for everything that waits.
//!
//! While one sync runs, the driver goes on proposing; what it proposed meanwhile is the next write.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use raft::eraftpb::Entry;

use crate::clock::Clock;
use crate::consensus::mailbox::Mailbox;
use crate::consensus::raft::group_core::Persist;
use crate::consensus::raft::log_cache::Fetch;
use crate::consensus::raft::replica::Shared;
use crate::consensus::raft::replica::kind_of;
use crate::consensus::raft::replica::spawn;
use crate::consensus::raft::replica::to_entry;
use crate::consensus::raft::restart;
use crate::consensus::raft::room::wait_for_room;
use crate::storage::HardStateRecord;
use crate::storage::LogBatch;
use crate::storage::LogStore;
use crate::storage::StorageError;
use crate::types::GroupId;
use crate::types::LogIndex;

/// What the writer is asked to do.
pub enum WriterJob {
    Persist(Persist),
    Stop,
}

/// Puts what a Ready wants durable into a batch.
pub fn add_to_batch(batch: &mut LogBatch, group: GroupId, persist: &Persist) {
    if let Some((from, last)) = persist.replaced {
        batch.truncate_from(group, LogIndex(from), LogIndex(last));
    }
    for entry in &persist.entries {
        batch.append_parts(group, entry.index, entry.term, kind_of(entry), &entry.data, &entry.context);
    }
    if let Some(hard_state) = &persist.hard_state {
        let record =
            HardStateRecord { term: hard_state.term, vote: hard_state.vote, commit: hard_state.commit };
        batch.hard_state(group, record);
    }
}

/// The log as a driver uses it: what the writer does not do for it.
pub trait DriverLog: Send + Sync {
    /// Writes at once what a Ready wants durable.
    ///
    /// # Errors
    /// When the storage fails; whether it was written is unknown then.
    fn persist(&self, group: GroupId, persist: &Persist, sync: bool) -> Result<(), StorageError>;

    /// The entries that a follower needs; none when they were purged.
    ///
    /// # Errors
    /// When the storage fails.
    fn fetch(&self, group: GroupId, fetch: &Fetch) -> Result<Vec<Entry>, StorageError>;
}

impl DriverLog for LogStore {
    fn persist(&self, group: GroupId, persist: &Persist, sync: bool) -> Result<(), StorageError> {
        let mut batch = LogBatch::new();
        add_to_batch(&mut batch, group, persist);
        self.write(batch, sync)
    }

    fn fetch(&self, group: GroupId, fetch: &Fetch) -> Result<Vec<Entry>, StorageError> {
        let records = self.entries(group, LogIndex(fetch.low), LogIndex(fetch.high), fetch.max_bytes)?;
        Ok(records.into_iter().map(to_entry).collect())
    }
}

/// Starts the writer. `persisted` is told the last token of each write, in order.
pub fn start(
    group: GroupId,
    log: Arc<LogStore>,
    mailbox: Arc<Mailbox<WriterJob>>,
    clock: Arc<dyn Clock>,
    shared: Arc<Shared>,
    dir: PathBuf,
    persisted: impl Fn(u64) + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    spawn("log-writer", move || {
        let mut jobs = Vec::new();
        loop {
            mailbox.receive(&mut jobs, Duration::from_secs(3600));
            let (mut last, mut stop) = (None, false);
            for job in &jobs {
                match job {
                    WriterJob::Persist(persist) => last = Some(persist.token),
                    WriterJob::Stop => stop = true,
                }
            }
            if let Some(token) = last {
                let start = clock.monotonic();
                let write = || {
                    let mut batch = LogBatch::new();
                    for job in &jobs {
                        if let WriterJob::Persist(persist) = job {
                            add_to_batch(&mut batch, group, persist);
                        }
                    }
                    log.write(batch, true)
                };
                match wait_for_room(&dir, &|| shared.is_stopping(), write) {
                    // Nobody is told that it was written.
                    Err(error) if error.is_no_space() && shared.is_stopping() => return,
                    Err(error) => restart::stop_on("writing the log failed", &error),
                    Ok(()) => {}
                }
                shared.counters.log_written(clock.monotonic().micros_since(start), true);
                persisted(token);
            }
            jobs.clear();
            if stop {
                return;
            }
        }
    })
}
