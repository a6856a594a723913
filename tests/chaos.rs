//! Real processes under faults: nodes are killed, held, cut off from each other, lose their power, have bad disks and
//! wrong clocks, while clients use registers, counters, locks and queues; what the clients saw is checked.
//!
//! `rig.rs` tests the tests, and `everysec.rs` shows that a broken promise is seen. Long forms, by the environment:
//!
//! | variable | default | what |
//! |---|---|---|
//! | `CHAOS_MINUTES` | 0 | rounds of 100 random faults until so many minutes are over |
//! | `CHAOS_KILLS` | 5 | `kill -9` of leaders, followers and all nodes |
//! | `CHAOS_POWER` | 5 | power cuts of one node, a majority and all |
//! | `CHAOS_PARTITIONS` | 4 | cuts between nodes, and delays |
//! | `CHAOS_DISK` | 4 | slow and failing syncs, failing and short writes, no space |
//! | `CHAOS_PAUSES` | 2 | SIGSTOP for up to six seconds |
//! | `CHAOS_CLOCKS` | 2 | jumps of wall clocks, where libfaketime is installed |
//! | `CHAOS_FLIPS` | 2 | flipped bits in a file of a stopped follower |
//! | `CHAOS_LOST_DISKS` | 2 | followers that come back without their data, and lose their power while they do |
//! | `CHAOS_NODES` | 3 | nodes of the cluster |
//! | `CHAOS_POWER_TRIALS` | 2 | power cuts of all nodes, for each mode that `everysec.rs` compares |
//! | `CHAOS_SEED` | 7 | where random numbers start |
//!
//! If one of the counts is given, those that are not are 0, but for a kill of a leader and of a follower.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

mod chaos {
    mod checks;
    mod clients;
    mod everysec;
    mod history;
    mod mixture;
    mod nemesis;
    mod rig;
    mod run;

    /// Where random numbers start; a failed test has printed it.
    fn seed() -> u64 {
        let seed = crate::support::number_from_env("CHAOS_SEED", 7);
        println!("seed {seed}");
        seed
    }
}
