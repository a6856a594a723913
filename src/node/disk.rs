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
use crate::storage::disk::PLENTY;
use crate::types::Millis;
use crate::types::Monotonic;

/// How often it is looked: as often as nodes tell each other of it, with room and without.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
const SHORT_LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// What was let through shows after so many looks: at once on this disk, later in what the others say of theirs.
const WINDOW_LOOKS: u32 = 2;
const WINDOW_LOOKS_WITH_PEERS: u32 = 4;
/// How often a log line says that a disk is not Ok.
const SAID_EVERY: Millis = Millis(60_000);
/// How often ballast is tried that could not be made.
const BALLAST_EVERY: Millis = Millis(60_000);

/// Looks once, so that the figures are there before anybody asks.
pub fn first_look(dir: &Path, config: &Config, gauge: &DiskGauge) {
    if let Ok(room) = disk::room(dir) {
        let limits = DiskLimits::of(config.disk_free_soft, config.disk_free_hard, room.1);
        let state = limits.judge(DiskState::Ok, room.0);
        gauge.set(state, room, Ballast::of(dir).bytes());
        gauge.set_takes(dir, takes(state, room.0, limits, 0));
    }
}

/// Starts the thread. It ends with the process.
///
/// # Errors
/// When the system gives no thread.
pub fn watch(services: Arc<Services>, dir: &Path) -> anyhow::Result<()> {
    let mut watch = DiskWatch { dir: dir.to_path_buf(), services, said: None, tried: None, looks: 0 };
    let run = move || {
        while !watch.services.shutdown.is_requested() {
            watch.look();
            let is_short = watch.services.disk.takes() < PLENTY;
            thread::sleep(if is_short { SHORT_LOOK_INTERVAL } else { LOOK_INTERVAL });
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
    /// Looks since the window of the allowance began.
    looks: u32,
}

/// How much data the disk takes, beside what is on its way there.
fn takes(state: DiskState, free: u64, limits: DiskLimits, on_its_way: u64) -> u64 {
    match state {
        DiskState::Ok if limits.soft.max(limits.hard) == 0 => u64::MAX,
        DiskState::Ok => free.saturating_sub(limits.soft.max(limits.hard)).saturating_sub(on_its_way),
        DiskState::AlmostFull | DiskState::Full => 0,
    }
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
        // Nobody counts what goes to a disk with plenty of room.
        let on_its_way = if room.0 < 2 * PLENTY { self.on_its_way() } else { 0 };
        self.services.disk.set_takes(&self.dir, takes(state, room.0, limits, on_its_way));
        self.say(state, room.0, limits);
        let has_peers = config.cluster_nodes.len() > 1;
        let window = if has_peers { WINDOW_LOOKS_WITH_PEERS } else { WINDOW_LOOKS };
        self.looks = (self.looks + 1) % window;
        carry_out(&self.services, judge(&self.services, state), limits.hard, self.looks == 0);
    }

    /// Rows that are not written, and commands that are not in the log and will be rows.
    fn on_its_way(&self) -> u64 {
        let pending = self.services.group.read_applied().pending_changes().bytes as u64;
        pending.saturating_add(self.services.group.status().waiting_bytes.saturating_mul(2))
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
