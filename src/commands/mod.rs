//! What each command is and does: a row and a function (DESIGN.md D1).

pub mod command_docs;
pub mod error;
pub mod gift;
pub mod guards;
pub mod keys;
pub mod lock_admin;
pub mod locks;
pub mod long_double;
pub mod queue_admin;
#[cfg(test)]
mod queue_errors_test;
pub mod queues;
#[cfg(test)]
mod queues_test;
pub mod session;
pub mod spec;
pub mod strings;
pub mod table;
pub mod weights;
