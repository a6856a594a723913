//! The deterministic state machine: entries in, replies and changed rows out.

pub mod answers;
pub mod apply;
pub mod budget;
#[cfg(test)]
mod budget_test;
pub mod entry;
#[cfg(test)]
mod hand_over_test;
pub mod transaction;
pub mod wants;
