//! The cluster clock as this node would stamp it (COMMANDS.md 3.2).
//!
//! A pair: the last cluster time that is known, and this process's monotonic clock when it became
//! known. The wall clock is no input of it.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering;

use crate::clock::Clock;
use crate::types::ClusterTime;
use crate::types::WallMillis;

/// Cluster time = monotonic milliseconds + an offset. What was stamped never goes back; that is for who stamps.
pub struct ClusterClock {
    clock: Arc<dyn Clock>,
    offset_ms: AtomicI64,
}

impl ClusterClock {
    /// A clock that stands at `last` now.
    #[must_use]
    pub fn starting_at(last: ClusterTime, clock: Arc<dyn Clock>) -> ClusterClock {
        let this = ClusterClock { clock, offset_ms: AtomicI64::new(0) };
        let offset = i64::try_from(last.0).unwrap_or(i64::MAX) - this.monotonic_ms();
        this.offset_ms.store(offset, Ordering::Release);
        this
    }

    /// Learns the stamp that the leader gives now. The last one counts, and not the one furthest ahead: whose clock
    /// runs fast must not run away from the leader's (COMMANDS.md 3.2, rule 2).
    pub fn follow(&self, stamp: ClusterTime) {
        let offset = i64::try_from(stamp.0).unwrap_or(i64::MAX) - self.monotonic_ms();
        self.offset_ms.store(offset, Ordering::Release);
    }

    /// Cluster time now.
    #[must_use]
    pub fn now(&self) -> ClusterTime {
        let now = self.monotonic_ms().saturating_add(self.offset_ms.load(Ordering::Acquire));
        ClusterTime(u64::try_from(now).unwrap_or(0))
    }

    /// The wall clock; for stamps of absolute expiries only.
    #[must_use]
    pub fn wall(&self) -> WallMillis {
        self.clock.wall()
    }

    fn monotonic_ms(&self) -> i64 {
        i64::try_from(self.clock.monotonic().0 / 1_000_000).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::types::Millis;

    #[test]
    fn it_goes_on_from_where_it_stood_and_never_back() {
        let machine = Arc::new(ManualClock::default());
        machine.advance(Millis(5_000));
        let clock = ClusterClock::starting_at(ClusterTime(700), Arc::clone(&machine) as Arc<dyn Clock>);
        assert_eq!(clock.now(), ClusterTime(700));
        machine.advance(Millis(50));
        machine.set_wall(WallMillis(1));
        assert_eq!(clock.now(), ClusterTime(750));
        clock.follow(ClusterTime(900));
        machine.advance(Millis(10));
        assert_eq!(clock.now(), ClusterTime(910));
        clock.follow(ClusterTime(905));
        assert_eq!(clock.now(), ClusterTime(905), "this machine's clock runs fast");
    }
}
