//! Holdfast: Redis, but safe.
#![doc = include_str!("ARCHITECTURE.md")]

// In layer order: a module names only modules of the groups above its own (tests/architecture.rs).

pub mod types;

pub mod clock;
pub mod config;
pub mod resp;
pub mod telemetry;

pub mod storage;

pub mod peer;

pub mod state;

pub mod commands;

pub mod machine;

pub mod consensus;

pub mod admin;
pub mod server;

pub mod node;
