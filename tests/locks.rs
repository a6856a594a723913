//! Locks on three nodes as processes, as their users need them: nobody holds what another holds, whatever dies, stands
//! still or has a wrong clock; a file for each pain that users of other systems told of.
//!
//! Each test starts a cluster alone and one runs at a time. Long forms, by the environment:
//!
//! | variable | default | what |
//! |---|---|---|
//! | `LOCKS_SECONDS` | 17 | seconds in which 64 owners take 16 locks while leaders are killed |
//! | `LOCKS_ZOMBIES` | 20 | holders that sleep beyond their lease and write then |
//! | `LOCKS_EXPIRIES` | 5000 | leases that end in one second |
//! | `LOCKS_CYCLES` | 1 | times that each length of a deadlock is tried; beyond 1 all of 2 to 32 |
//! | `LOCKS_HANDOFFS` | 1000 | times that one lock goes from one of 1000 waiters to the next |
//! | `LOCKS_SEED` | 7 | where random numbers start |

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

mod locks {
    mod clocks;
    mod common;
    mod deadlocks;
    mod failover;
    mod leases;
    mod poolers;
    mod queueing;
    mod stuck;
    mod unheard;
    mod zombies;

    /// Where random numbers start; a failed test has printed it.
    fn seed() -> u64 {
        let seed = crate::support::number_from_env("LOCKS_SEED", 7);
        println!("seed {seed}");
        seed
    }
}
