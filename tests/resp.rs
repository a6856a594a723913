//! Black box: what a client sees over a real socket, a file per family of commands.
//!
//! Expectations are Redis 7.0.15's where Redis has the command, and COMMANDS.md's where it has not. Tests of a file
//! share a node and keep to keys of their own; who changes more than keys starts a node alone.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

mod resp {
    mod bounds;
    mod client_bounds;
    mod connection;
    mod disk;
    mod gifts;
    mod guards;
    mod keys;
    mod lock_admin;
    mod lock_events;
    mod lock_waits;
    mod locks;
    mod operations;
    mod protocol;
    mod queue_waits;
    mod queues;
    mod raft;
    mod recovery;
    mod redis_rs;
    mod server;
    mod small_disks;
    mod strings;
    mod transactions;
}
