//! A clock that moves only when it is told to: for tests and for the simulator.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use crate::clock::Clock;
use crate::types::Boottime;
use crate::types::Millis;
use crate::types::Monotonic;
use crate::types::WallMillis;

/// A clock that stands still until [`ManualClock::advance`] or [`ManualClock::set_wall`].
#[derive(Debug, Default)]
pub struct ManualClock {
    monotonic_ns: AtomicU64,
    wall_ms: AtomicU64,
}

impl ManualClock {
    /// Moves both clocks forward.
    pub fn advance(&self, by: Millis) {
        self.monotonic_ns.fetch_add(by.0 * 1_000_000, Ordering::SeqCst);
        self.wall_ms.fetch_add(by.0, Ordering::SeqCst);
    }

    /// Sets the wall clock alone, as an administrator or NTP would.
    pub fn set_wall(&self, to: WallMillis) {
        self.wall_ms.store(to.0, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn monotonic(&self) -> Monotonic {
        Monotonic(self.monotonic_ns.load(Ordering::SeqCst))
    }

    fn boottime(&self) -> Boottime {
        Boottime(self.monotonic_ns.load(Ordering::SeqCst))
    }

    fn wall(&self) -> WallMillis {
        WallMillis(self.wall_ms.load(Ordering::SeqCst))
    }
}
