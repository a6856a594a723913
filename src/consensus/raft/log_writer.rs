//! The thread that makes log entries durable: one synced write for everything that waits.
//!
//! While one sync runs, the driver goes on proposing; what it proposed meanwhile is the next write.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::Clock;
use crate::consensus::mailbox::Mailbox;
use crate::consensus::raft::group_core::Persist;
use crate::consensus::raft::replica::Counters;
use crate::consensus::raft::replica::kind_of;
use crate::consensus::raft::replica::spawn;
use crate::consensus::raft::replica::stop_process;
use crate::storage::HardStateRecord;
use crate::storage::LogBatch;
use crate::storage::LogStore;
use crate::storage::StorageError;
use crate::telemetry::metrics::RAFT_FSYNC_SECONDS;
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

/// Writes a batch and counts it.
pub fn write(
    log: &LogStore,
    batch: LogBatch,
    sync: bool,
    clock: &dyn Clock,
    counters: &Counters,
) -> Result<(), StorageError> {
    let start = clock.monotonic();
    log.write(batch, sync)?;
    let micros = clock.monotonic().micros_since(start);
    counters.log_written(micros);
    if sync {
        metrics::histogram!(RAFT_FSYNC_SECONDS).record(micros as f64 / 1e6);
    }
    Ok(())
}

/// Starts the writer. `persisted` is told the last token of each write, in order.
pub fn start(
    group: GroupId,
    log: Arc<LogStore>,
    mailbox: Arc<Mailbox<WriterJob>>,
    clock: Arc<dyn Clock>,
    counters: Arc<Counters>,
    persisted: impl Fn(u64) + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    spawn("log-writer", move || {
        let mut jobs = Vec::new();
        loop {
            mailbox.receive(&mut jobs, Duration::from_secs(3600));
            let mut batch = LogBatch::new();
            let (mut last, mut stop) = (None, false);
            for job in jobs.drain(..) {
                match job {
                    WriterJob::Persist(persist) => {
                        add_to_batch(&mut batch, group, &persist);
                        last = Some(persist.token);
                    }
                    WriterJob::Stop => stop = true,
                }
            }
            if let Some(token) = last {
                if let Err(error) = write(&log, batch, true, clock.as_ref(), &counters) {
                    stop_process("writing the log failed", &error);
                }
                persisted(token);
            }
            if stop {
                return;
            }
        }
    })
}
