//! Time as a parameter. Everything that needs a clock is given one; `system.rs` is the only reader
//! of the machine's clocks, `manual.rs` the clock of tests and of the simulator.

mod manual;
mod system;

pub use manual::ManualClock;
pub use system::SystemClock;

use crate::types::Monotonic;
use crate::types::WallMillis;

/// Where time comes from.
pub trait Clock: Send + Sync {
    /// This process's monotonic clock (`CLOCK_MONOTONIC`). It never goes back.
    fn monotonic(&self) -> Monotonic;

    /// The wall clock. It may jump; nothing but absolute expiries and logs may rest on it.
    fn wall(&self) -> WallMillis;
}
