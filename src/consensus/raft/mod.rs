//! Raft (Ongaro, "Consensus: Bridging Theory and Practice"), on tikv's raft-rs.
//!
//! `group_core` is pure: inputs in, outputs out. `driver` is the state behind a lock that feeds it, on
//! whichever thread has something for it; `log_writer` makes its entries durable, `applier` turns committed entries into replies, `flusher` brings changed rows to
//! disk. The rules each of them keeps are those of raft-rs that are easy to break (see the comments).

pub mod acceptable;
pub mod acked;
pub mod applier;
pub mod barriers;
pub mod driver;
pub mod flow;
pub mod flusher;
pub mod group_core;
pub mod hub;
pub mod lease;
pub mod log_cache;
pub mod log_writer;
pub mod members;
pub mod message_codec;
pub mod proposer;
pub mod pulse;
pub mod reclaimer;
pub mod replica;
pub mod requests;
pub mod restart;
pub mod room;
pub mod sent_snapshots;
pub mod session;
pub mod silence;
pub mod snapshot_io;
pub mod standstill;
pub mod transfer;

#[cfg(test)]
mod recovery_test;
#[cfg(test)]
mod sim_test;
#[cfg(test)]
mod traps_test;
