//! Time as a parameter. Everything that needs a clock is given one; `system.rs` is the only reader
//! of the machine's clocks, `manual.rs` the clock of tests and of the simulator.

mod manual;
mod system;

pub use manual::ManualClock;
pub use system::SystemClock;

use crate::types::Boottime;
use crate::types::Monotonic;
use crate::types::WallMillis;

/// Where time comes from.
pub trait Clock: Send + Sync {
    /// This process's monotonic clock (`CLOCK_MONOTONIC`). It never goes back.
    fn monotonic(&self) -> Monotonic;

    /// The machine's clock that goes on while it sleeps (`CLOCK_BOOTTIME`). It never goes back.
    fn boottime(&self) -> Boottime;

    /// The wall clock. It may jump; nothing but absolute expiries and logs may rest on it.
    fn wall(&self) -> WallMillis;
}
