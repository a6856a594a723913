//! Three nodes as processes on loopback: what clients see while nodes are killed, held, wiped, lied to about the
//! time and fed with garbage.
//!
//! Each test starts a cluster alone and one runs at a time. `harness.rs` and `checker.rs` test the tests. Long forms,
//! by the environment:
//!
//! | variable | default | what |
//! |---|---|---|
//! | `FAILOVERS` | 3 | leaders that are killed |
//! | `FAILOVER_CLIENTS` | 6 | clients meanwhile |
//! | `OUTAGES` | 2 | times that all nodes are killed at once |
//! | `SNAPSHOT_WRITES` | 30000 | writes that a follower misses |
//! | `CHECK_OPS` | 20000 | operations whose history is checked, for each way of reading |
//! | `FUZZ_PORT` | 2000 | random strings, and mutated streams, that the internal ports get |
//! | `CLUSTER_SEED` | 7 | where random numbers start |

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

mod cluster {
    mod bounds;
    mod checker;
    mod clocks;
    mod damage;
    mod disk;
    mod failover;
    mod garbage;
    mod harness;
    mod large;
    mod linearizable;
    mod load;
    mod membership;
    mod minority;
    mod outage;
    mod serving;
    mod small_disks;
    mod snapshot;
    mod transfer;
    mod twin;
    mod verify;
    mod wan;

    /// Where random numbers start; a failed test has printed it.
    fn seed() -> u64 {
        let seed = crate::support::number_from_env("CLUSTER_SEED", 7);
        println!("seed {seed}");
        seed
    }
}
