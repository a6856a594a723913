//! What a node tells about itself: figures ([`metrics`]), lines ([`logging`]) and its share of the machine
//! ([`process`]). Nothing here decides anything.

pub mod logging;
pub mod metrics;
pub mod process;
