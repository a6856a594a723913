//! The deterministic state machine: entries in, replies and changed rows out.

pub mod apply;
pub mod entry;
pub mod transaction;
