//! Holdfast: Redis, but safe.
#![doc = include_str!("ARCHITECTURE.md")]

// In layer order: a module names only modules above it in this list (tests/architecture.rs).
pub mod types; // L0
pub mod clock; // L1
pub mod config;
pub mod resp;
pub mod telemetry;
pub mod storage; // L2
pub mod state; // L3
pub mod commands; // L4
pub mod machine; // L5
pub mod consensus; // L6
pub mod admin; // L7
pub mod server;
pub mod node; // L8
