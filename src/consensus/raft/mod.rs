//! Raft (Ongaro, "Consensus: Bridging Theory and Practice"), on tikv's raft-rs.
//!
//! `group_core` is pure: inputs in, outputs out. `driver` is the thread that feeds it, `log_writer` makes
//! its entries durable, `applier` turns committed entries into replies, `flusher` brings changed rows to
//! disk. The rules each of them keeps are those of raft-rs that are easy to break (see the comments).

pub mod applier;
pub mod driver;
pub mod flusher;
pub mod group_core;
pub mod log_cache;
pub mod log_writer;
pub mod proposer;
pub mod replica;

#[cfg(test)]
mod recovery_test;
