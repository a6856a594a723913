//! The thread that gives back the room of what was deleted, once the disk has little left.
//!
//! With room nobody hurries: what was deleted goes when compaction comes by. Without, writes are refused until it is
//! gone, and nothing else brings compaction about. So this thread has the log purged and its files let go, and moves the
//! rows down to the deepest level, a small part at a time: a part needs room until it is done.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::Clock;
use crate::config::SharedConfig;
use crate::consensus::mailbox::Mailbox;
use crate::consensus::raft::flusher::FlushJob;
use crate::consensus::raft::flusher::GivenBack;
use crate::consensus::raft::replica::Shared;
use crate::consensus::raft::replica::spawn;
use crate::consensus::raft::restart;
use crate::storage::LogStore;
use crate::storage::SharedData;
use crate::storage::StorageError;
use crate::storage::disk;
use crate::storage::disk::DiskLimits;
use crate::storage::disk::DiskState;
use crate::storage::disk::PLENTY;
use crate::types::GroupId;
use crate::types::LogIndex;

/// How often the disk is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// At least so many looks lie between two rounds.
const LOOKS_BETWEEN: u32 = 5;

/// State of the thread.
pub struct Reclaimer {
    pub group: GroupId,
    pub dir: PathBuf,
    pub log: Arc<LogStore>,
    pub data: SharedData,
    pub config: SharedConfig,
    pub shared: Arc<Shared>,
    pub flusher: Arc<Mailbox<FlushJob>>,
    pub clock: Arc<dyn Clock>,
}

impl Reclaimer {
    /// Starts the thread; it ends when the replica stops.
    pub fn start(self) -> std::io::Result<JoinHandle<()>> {
        spawn("reclaimer", move || {
            let mut state = DiskState::Ok;
            let (mut done_for, mut pause) = (None, 0u32);
            while !self.shared.is_stopping() {
                thread::sleep(LOOK);
                pause = pause.saturating_sub(1);
                state = self.judge(state);
                if state == DiskState::Ok {
                    done_for = None;
                    continue;
                }
                // Whatever was deleted since comes with rows.
                if pause > 0 || done_for == Some(self.shared.counters.flushed()) {
                    continue;
                }
                let started = self.clock.monotonic();
                match self.round() {
                    Ok(done) => done_for = done,
                    Err(error) if error.is_no_space() => {}
                    Err(error) => restart::stop_on("giving back room failed", &error),
                }
                // Half of the time is for others.
                let took = self.clock.monotonic().since(started).0 / LOOK.as_millis() as u64;
                pause = u32::try_from(took).unwrap_or(u32::MAX).max(LOOKS_BETWEEN);
            }
        })
    }

    fn judge(&self, before: DiskState) -> DiskState {
        let config = self.config.get();
        let Ok((free, total)) = disk::room(&self.dir) else { return before };
        let limits = DiskLimits::of(config.disk_free_soft, config.disk_free_hard, total);
        let state = limits.judge(before, free);
        self.shared.set_short_of_room(state != DiskState::Ok);
        if free < limits.soft.saturating_add(PLENTY) {
            // The others let through what this disk takes.
            self.shared.set_status_due();
        }
        state
    }

    /// Gives the index up to which the rows of all that was deleted are gone; `None` when it was cut short.
    fn round(&self) -> Result<Option<LogIndex>, StorageError> {
        let (done, answer) = mpsc::sync_channel(1);
        self.flusher.send(FlushJob::GiveBack { done });
        let GivenBack { purged, written } = loop {
            match answer.recv_timeout(LOOK) {
                Ok(given_back) => break given_back,
                Err(_) if self.shared.is_stopping() => return Ok(None),
                Err(_) => {}
            }
        };
        self.log.give_back(self.group, purged)?;
        // A snapshot may be put in place now, or wait for that until what is given back in between.
        let Ok(data) = self.data.get() else { return Ok(None) };
        let parts = data.parts_to_compact()?;
        drop(data);
        for part in &parts {
            if self.shared.is_stopping() {
                return Ok(None);
            }
            let Ok(data) = self.data.get() else { return Ok(None) };
            data.compact_part(part);
        }
        Ok(Some(written))
    }
}
