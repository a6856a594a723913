//! The thread that watches how full the disk is, and sees to what follows from it.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;

use crate::config::Config;
use crate::server::Services;
use crate::server::disk::carry_out;
use crate::server::disk::judge;
use crate::storage::disk;
use crate::storage::disk::Ballast;
use crate::storage::disk::BallastStep;
use crate::storage::disk::DiskGauge;
use crate::storage::disk::DiskLimits;
use crate::storage::disk::DiskState;
use crate::types::Millis;
use crate::types::Monotonic;

/// How often it is looked: as often as nodes tell each other of it.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How often a log line says that a disk is not Ok.
const SAID_EVERY: Millis = Millis(60_000);
/// How often ballast is tried that could not be made.
const BALLAST_EVERY: Millis = Millis(60_000);

/// Looks once, so that the figures are there before anybody asks.
pub fn first_look(dir: &Path, config: &Config, gauge: &DiskGauge) {
    if let Ok(room) = disk::room(dir) {
        let limits = DiskLimits::of(config.disk_free_soft, config.disk_free_hard, room.1);
        gauge.set(limits.judge(DiskState::Ok, room.0), room, Ballast::of(dir).bytes());
    }
}

/// Starts the thread. It ends with the process.
///
/// # Errors
/// When the system gives no thread.
pub fn watch(services: Arc<Services>, dir: &Path) -> anyhow::Result<()> {
    let mut watch = DiskWatch { dir: dir.to_path_buf(), services, said: None, tried: None };
    let run = move || {
        while !watch.services.shutdown.is_requested() {
            watch.look();
            thread::sleep(LOOK_INTERVAL);
        }
    };
    thread::Builder::new().name("disk".to_owned()).spawn(run).context("cannot start a thread")?;
    Ok(())
}

struct DiskWatch {
    dir: PathBuf,
    services: Arc<Services>,
    /// What was last said in the log, and when.
    said: Option<(DiskState, Monotonic)>,
    /// When ballast could not be made.
    tried: Option<Monotonic>,
}

impl DiskWatch {
    fn look(&mut self) {
        let config = self.services.config.get();
        let room = match disk::room(&self.dir) {
            Ok(room) => room,
            // What was known before stays.
            Err(error) => return tracing::warn!("the room on the disk cannot be told: {error}"),
        };
        let limits = DiskLimits::of(config.disk_free_soft, config.disk_free_hard, room.1);
        let state = limits.judge(self.services.disk.state(), room.0);
        let ballast = Ballast::of(&self.dir);
        self.look_after_ballast(&config, &ballast, state, room, limits);
        self.services.disk.set(state, room, ballast.bytes());
        self.say(state, room.0, limits);
        carry_out(&self.services, judge(&self.services, state));
    }

    fn look_after_ballast(
        &mut self,
        config: &Config,
        ballast: &Ballast,
        state: DiskState,
        (free, total): (u64, u64),
        limits: DiskLimits,
    ) {
        let wanted = disk::ballast_bytes(config.disk_ballast, total);
        let now = self.services.clock.monotonic();
        let outcome = match disk::ballast_step(state, free, limits, ballast.bytes(), wanted) {
            BallastStep::Keep => return,
            BallastStep::Make if self.tried.is_some_and(|tried| now.since(tried) < BALLAST_EVERY) => return,
            BallastStep::Make => ballast.make(wanted),
            BallastStep::Remove => {
                tracing::warn!("the ballast is removed: {} bytes are room again", ballast.bytes());
                ballast.remove()
            }
        };
        self.tried = outcome.is_err().then_some(now);
        if let Err(error) = outcome {
            tracing::warn!("no change of the ballast: {error}");
        }
    }

    fn say(&mut self, state: DiskState, free: u64, limits: DiskLimits) {
        let now = self.services.clock.monotonic();
        let is_news = self.said.is_none_or(|(said, _)| said != state);
        let is_old = self.said.is_none_or(|(_, at)| now.since(at) >= SAID_EVERY);
        if state == DiskState::Ok {
            if is_news && self.said.is_some() {
                tracing::info!("there is room on the disk again: {free} bytes are free");
            }
            self.said = self.said.map(|(_, at)| (state, at));
            return;
        }
        if is_news || is_old {
            self.said = Some((state, now));
            let what = match state {
                DiskState::Full => "only deletions are written, and this node does not lead if another can",
                DiskState::Ok | DiskState::AlmostFull => "this node takes no more data",
            };
            tracing::warn!(
                "the disk is {}: {free} bytes are free (disk-free-soft {}, disk-free-hard {}); {what}",
                state.name().replace('_', " "),
                limits.soft,
                limits.hard
            );
        }
    }
}
