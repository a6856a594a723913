//! How full the disk is, what follows from it, and the ballast that is thrown off when it is full.
//!
//! ```text
//!            free < soft              free < hard: the ballast goes
//!    Ok ───────────────► AlmostFull ───────────────► Full
//!     ◄─────────────────           ◄─────────────────
//!      free ≥ soft + margin          free ≥ hard + margin          (a step may pass over AlmostFull)
//! ```
//! A log that cannot be written ends the node, and RocksDB cannot even open on a full disk (RELIABILITY.md 2b.5), so
//! writes are refused while there is still room for deletions, compaction, votes and a start.

use std::fs;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use rustix::fs::FallocateFlags;

use crate::config::DiskSize;
use crate::storage::StorageError;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// `stat` counts blocks of this size, whatever the file system's own are.
const STAT_BLOCK: u64 = 512;
/// The name of the ballast in the data directory.
const BALLAST: &str = "ballast";
/// The automatic size of the ballast.
const BALLAST_BYTES: u64 = 256 * MIB;
/// On less than this no node can run: nothing of it would be left for data.
pub const DISK_LEAST: u64 = 64 * MIB;
/// How much more than a limit must be free before it counts as kept again: at most this, and a sixteenth of it.
const MARGIN_MAX: u64 = 256 * MIB;

/// How full a disk is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskState {
    /// There is room.
    #[default]
    Ok,
    /// Less than `disk-free-soft` is free: no more data.
    AlmostFull,
    /// Less than `disk-free-hard` is free: deletions only.
    Full,
}

impl DiskState {
    /// 0, 1 or 2, as peers and metrics have it.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            DiskState::Ok => 0,
            DiskState::AlmostFull => 1,
            DiskState::Full => 2,
        }
    }

    /// What a code stands for; one that is not known is taken for the worst.
    #[must_use]
    pub fn of(code: u8) -> DiskState {
        match code {
            0 => DiskState::Ok,
            1 => DiskState::AlmostFull,
            _ => DiskState::Full,
        }
    }

    /// As INFO says it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DiskState::Ok => "ok",
            DiskState::AlmostFull => "almost_full",
            DiskState::Full => "full",
        }
    }
}

/// Bytes that must stay free; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskLimits {
    pub soft: u64,
    pub hard: u64,
}

impl DiskLimits {
    /// The limits on a file system of `total` bytes. Automatic ones: 5 % and at least 1 GiB, but no more than 15 %;
    /// 1 % and at least 384 MiB, but no more than 7.5 %. What they must hold: [`crate::storage::geometry`].
    #[must_use]
    pub fn of(soft: DiskSize, hard: DiskSize, total: u64) -> DiskLimits {
        let automatic = |permille: u64, least: u64, permille_max: u64| {
            let part = |permille: u64| total / 1_000 * permille;
            part(permille).max(least).min(part(permille_max))
        };
        let bytes = |size: DiskSize, automatic: u64| match size {
            DiskSize::Auto => automatic,
            DiskSize::Off => 0,
            DiskSize::Bytes(bytes) => bytes,
        };
        DiskLimits {
            soft: bytes(soft, automatic(50, GIB, 150)),
            hard: bytes(hard, automatic(10, 384 * MIB, 75)),
        }
    }

    /// The state that follows `before` when so many bytes are free.
    #[must_use]
    pub fn judge(&self, before: DiskState, free: u64) -> DiskState {
        let is_below = |limit: u64, was_below: bool| {
            let margin = if was_below { margin(limit) } else { 0 };
            free < limit.saturating_add(margin)
        };
        if is_below(self.hard, before == DiskState::Full) {
            DiskState::Full
        } else if is_below(self.soft, before != DiskState::Ok) {
            DiskState::AlmostFull
        } else {
            DiskState::Ok
        }
    }
}

fn margin(limit: u64) -> u64 {
    (limit / 16).min(MARGIN_MAX)
}

/// Bytes of the ballast on a file system of `total` bytes: at most 2 % of it.
#[must_use]
pub fn ballast_bytes(size: DiskSize, total: u64) -> u64 {
    let wanted = match size {
        DiskSize::Auto => BALLAST_BYTES,
        DiskSize::Off => 0,
        DiskSize::Bytes(bytes) => bytes,
    };
    wanted.min(total / 100 * 2)
}

/// What is to be done with the ballast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BallastStep {
    Keep,
    Make,
    Remove,
}

/// Decides it. `there` and `wanted` are sizes in bytes; 0 is none.
#[must_use]
pub fn ballast_step(state: DiskState, free: u64, limits: DiskLimits, there: u64, wanted: u64) -> BallastStep {
    if there > 0 && (state == DiskState::Full || wanted == 0) {
        return BallastStep::Remove;
    }
    let limit = limits.soft.max(limits.hard);
    let room = free.saturating_add(there);
    let fits = room >= wanted.saturating_add(limit).saturating_add(margin(limit));
    if wanted > 0 && there != wanted && state == DiskState::Ok && fits {
        return BallastStep::Make;
    }
    BallastStep::Keep
}

/// What this user can have of the file system of `path`: bytes free, and bytes in all.
pub fn room(path: &Path) -> Result<(u64, u64), StorageError> {
    let found = rustix::fs::statvfs(path).map_err(|error| StorageError::io(path, error.into()))?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok((bytes(found.f_bavail), bytes(found.f_blocks)))
}

/// A file that takes room so that it can be given back.
#[derive(Debug)]
pub struct Ballast {
    path: PathBuf,
}

impl Ballast {
    /// That of this data directory.
    #[must_use]
    pub fn of(dir: &Path) -> Ballast {
        Ballast { path: dir.join(BALLAST) }
    }

    /// Bytes that it really takes; 0 when there is none. One that was only begun counts with what it has.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let found = fs::metadata(&self.path);
        found.map_or(0, |found| found.len().min(found.blocks().saturating_mul(STAT_BLOCK)).max(1))
    }

    /// Makes it, in the place of any other. What was begun goes when it cannot be finished.
    pub fn make(&self, bytes: u64) -> Result<(), StorageError> {
        self.remove()?;
        let made = File::create_new(&self.path).and_then(|file| {
            // Really taken, not only written down as a length.
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes).map_err(io::Error::from)
        });
        made.map_err(|error| {
            // It is the first error that tells what is wrong.
            let _ = self.remove();
            StorageError::io(&self.path, error)
        })
    }

    /// Throws it off.
    pub fn remove(&self) -> Result<(), StorageError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|error| StorageError::io(&self.path, error)),
        }
    }
}

/// A disk that takes so much data does not fill between two looks, whatever comes.
pub const PLENTY: u64 = 8 * GIB;

/// What the watch over the disk last found, for everybody who has to know.
#[derive(Debug, Default)]
pub struct DiskGauge {
    state: AtomicU8,
    free: AtomicU64,
    total: AtomicU64,
    ballast: AtomicU64,
    /// What it takes, less than `u64::MAX`: a new gauge knows of no limit.
    untaken: AtomicU64,
    drops_entries: AtomicBool,
    /// The limit below which entries are dropped, wherever others suffice; 0 where they do not.
    drops_below: AtomicU64,
    dir: OnceLock<PathBuf>,
}

impl DiskGauge {
    /// Says how many bytes of data the disk of `dir` still takes; `u64::MAX` without a limit.
    pub fn set_takes(&self, dir: &Path, bytes: u64) {
        self.dir.get_or_init(|| dir.to_path_buf());
        self.untaken.store(u64::MAX - bytes, Ordering::Release);
    }

    /// Bytes of data that the disk still takes; `u64::MAX` without a limit.
    #[must_use]
    pub fn takes(&self) -> u64 {
        u64::MAX - self.untaken.load(Ordering::Acquire)
    }

    /// Notes what was found.
    pub fn set(&self, state: DiskState, (free, total): (u64, u64), ballast: u64) {
        self.free.store(free, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
        self.ballast.store(ballast, Ordering::Relaxed);
        self.state.store(state.code(), Ordering::Release);
    }

    /// How full the disk is.
    #[must_use]
    pub fn state(&self) -> DiskState {
        DiskState::of(self.state.load(Ordering::Acquire))
    }

    /// Bytes free, for this user; 0 before the first look.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    /// Bytes of the file system; 0 before the first look.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Bytes of the ballast.
    #[must_use]
    pub fn ballast(&self) -> u64 {
        self.ballast.load(Ordering::Relaxed)
    }

    /// Says whether this node takes no entries from its leader, because its disk is full and the others can do without;
    /// and below how many free bytes it takes none from now on, 0 when the others could not do without.
    pub fn set_drops_entries(&self, drops: bool, below: u64) {
        self.drops_below.store(below, Ordering::Release);
        self.drops_entries.store(drops, Ordering::Release);
    }

    /// True when entries of a leader are to be dropped as if they were lost. A disk with little room is looked at each
    /// time: entries may fill it between two looks of the watch, and so may those of which `backlog` bytes are taken and
    /// not applied yet.
    #[must_use]
    pub fn drops_entries(&self, backlog: u64) -> bool {
        if self.drops_entries.load(Ordering::Acquire) {
            return true;
        }
        let below = self.drops_below.load(Ordering::Acquire);
        if below == 0 || self.takes() >= PLENTY {
            return false;
        }
        self.dir
            .get()
            .is_some_and(|dir| room(dir).is_ok_and(|(free, _)| free < below.saturating_add(backlog)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::test_support::TestDir;

    const AUTO: DiskSize = DiskSize::Auto;

    #[test]
    fn automatic_limits_follow_the_size_of_the_file_system() {
        for (total, soft, hard) in [
            (1_000 * GIB, 50 * GIB, 10 * GIB),
            (50 * GIB, 2_560 * MIB, 512 * MIB),
            (15 * GIB, GIB, 384 * MIB),
            (5 * GIB, 768 * MIB, 384 * MIB),
            (2 * GIB, 307 * MIB, 153 * MIB),
            (100 * MIB, 15 * MIB, 7 * MIB),
            (0, 0, 0),
        ] {
            let limits = DiskLimits::of(AUTO, AUTO, total);
            assert!(
                limits.soft.abs_diff(soft) < MIB && limits.hard.abs_diff(hard) < MIB,
                "{total}: {limits:?}"
            );
            assert_eq!(limits.judge(DiskState::Ok, total), DiskState::Ok, "an empty disk of {total}");
        }
        let given = DiskLimits::of(DiskSize::Bytes(7), DiskSize::Off, GIB);
        assert_eq!(given, DiskLimits { soft: 7, hard: 0 });
        assert_eq!(given.judge(DiskState::Full, 8), DiskState::Ok);
    }

    #[test]
    fn a_limit_counts_as_kept_again_only_with_a_margin() {
        use DiskState::*;
        let limits = DiskLimits { soft: 1_600, hard: 320 };
        for (before, free, after) in [
            (Ok, 1_600, Ok),
            (Ok, 1_599, AlmostFull),
            (AlmostFull, 1_699, AlmostFull),
            (AlmostFull, 1_700, Ok),
            (AlmostFull, 320, AlmostFull),
            (AlmostFull, 319, Full),
            (Ok, 319, Full),
            (Full, 339, Full),
            (Full, 340, AlmostFull),
            (Full, 1_650, AlmostFull),
            (Full, 1_700, Ok),
        ] {
            assert_eq!(limits.judge(before, free), after, "{before:?} with {free} free");
        }
        let upside_down = DiskLimits { soft: 0, hard: 320 };
        assert_eq!(upside_down.judge(Ok, 319), Full);
        assert_eq!(upside_down.judge(Full, 340), Ok);
        let large = DiskLimits { soft: 100 * GIB, hard: 0 };
        assert_eq!(large.judge(AlmostFull, 100 * GIB + 256 * MIB), Ok);
    }

    #[test]
    fn ballast_is_taken_on_with_room_and_thrown_off_without() {
        use BallastStep::*;
        let limits = DiskLimits { soft: 1_600, hard: 320 };
        for (state, free, there, wanted, step) in [
            (DiskState::Ok, 1_800, 0, 100, Make),
            (DiskState::Ok, 1_799, 0, 100, Keep),
            (DiskState::Ok, 1_800, 100, 100, Keep),
            (DiskState::AlmostFull, 1_500, 100, 100, Keep),
            (DiskState::AlmostFull, 9_999, 0, 100, Keep),
            (DiskState::Full, 300, 100, 100, Remove),
            (DiskState::Full, 300, 0, 100, Keep),
            (DiskState::Ok, 9_999, 100, 0, Remove),
            (DiskState::Ok, 9_999, 50, 100, Make),
            (DiskState::Ok, 9_999, 0, 0, Keep),
        ] {
            let found = ballast_step(state, free, limits, there, wanted);
            assert_eq!(found, step, "{state:?}, {free} free, {there} of {wanted}");
        }
        assert_eq!(ballast_bytes(AUTO, 1_000 * GIB), 256 * MIB);
        assert_eq!(ballast_bytes(AUTO, GIB), GIB / 100 * 2);
        assert_eq!(ballast_bytes(DiskSize::Off, GIB), 0);
        assert_eq!(ballast_bytes(DiskSize::Bytes(5), GIB), 5);
    }

    #[test]
    fn ballast_takes_the_room_that_it_says() {
        let dir = TestDir::new();
        let ballast = Ballast::of(dir.path());
        assert_eq!(ballast.bytes(), 0);
        ballast.remove().unwrap();
        match ballast.make(MIB) {
            Ok(()) => assert_eq!(ballast.bytes(), MIB),
            // A file system that reserves nothing has no ballast.
            Err(error) => assert_eq!(ballast.bytes(), 0, "{error}"),
        }
        fs::write(dir.path().join(BALLAST), "begun").unwrap();
        assert!(ballast.bytes() > 0 && ballast.bytes() < MIB);
        ballast.remove().unwrap();
        assert_eq!(ballast.bytes(), 0);
    }

    #[test]
    fn a_gauge_looks_again_while_there_is_little_room() {
        let dir = TestDir::new();
        let gauge = DiskGauge::default();
        assert_eq!(gauge.takes(), u64::MAX);
        gauge.set_takes(dir.path(), PLENTY - 1);
        gauge.set_drops_entries(false, 0);
        assert!(!gauge.drops_entries(0), "the others could not do without");
        gauge.set_drops_entries(false, u64::MAX);
        assert!(gauge.drops_entries(0));
        gauge.set_takes(dir.path(), PLENTY);
        assert!(!gauge.drops_entries(0));
        gauge.set_drops_entries(true, 0);
        assert!(gauge.drops_entries(0));
    }

    #[test]
    fn states_come_back_from_their_codes() {
        for state in [DiskState::Ok, DiskState::AlmostFull, DiskState::Full] {
            assert_eq!(DiskState::of(state.code()), state);
        }
        assert_eq!(DiskState::of(99), DiskState::Full);
    }
}
