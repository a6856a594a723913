//! The only reader of the machine's clocks.

use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use rustix::time::ClockId;
use rustix::time::clock_gettime;

use crate::clock::Clock;
use crate::types::Boottime;
use crate::types::Monotonic;
use crate::types::WallMillis;

/// The machine's clocks.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts at zero now.
    #[must_use]
    pub fn start() -> SystemClock {
        #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the machine's clock")]
        SystemClock { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Monotonic {
        #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the machine's clock")]
        let elapsed = Instant::now().duration_since(self.start);
        Monotonic(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
    }

    fn boottime(&self) -> Boottime {
        let now = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        Boottime(seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0))
    }

    fn wall(&self) -> WallMillis {
        #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the machine's clock")]
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        WallMillis(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
    }
}
