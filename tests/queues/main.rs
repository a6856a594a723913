//! Queues on three nodes as processes, as their users need them: no message is lost, none is worked on twice by those
//! who ask first, whatever dies or is cut; a file for each pain that users of other systems told of.
//!
//! Each test starts a cluster alone and one runs at a time. Long forms, by the environment:
//!
//! | variable | default | what |
//! |---|---|---|
//! | `QUEUES_MESSAGES` | 20000 | messages that go through while connections are cut and nodes killed |
//! | `QUEUES_DEAD_SOCKETS` | 10 | messages that are given to clients that are gone, in each way |
//! | `QUEUES_OVERRUNS` | 50 | jobs whose first worker overruns its lease |
//! | `QUEUES_REDRIVEN` | 5000 | dead messages that are redriven |
//! | `QUEUES_RETRIED` | 400 | requests of each kind that are sent up to 20 times |
//! | `QUEUES_TRANSACTIONS` | 2000 | transactions over data, job and lock while nodes are killed |
//! | `QUEUES_HANDOFFS` | 200 | messages for a client that waits at an idle queue |
//! | `QUEUES_SEED` | 7 | where random numbers start |

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod common;
mod dual_writes;
mod handoffs;
mod lost_jobs;
mod overruns;
mod poison;
mod retries;
mod unheard;
