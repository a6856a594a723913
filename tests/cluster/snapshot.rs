//! A follower that was away for longer than the log reaches back.

use crate::cluster::load::Load;
use crate::cluster::load::Plan;
use crate::cluster::seed;
use crate::support::cluster::Cluster;
use crate::support::number_from_env;

/// What makes the log end after a megabyte.
const SHORT_LOG: [&str; 4] = ["--log-max-bytes", "1mb", "--flush-interval", "50"];

#[test]
fn a_follower_that_missed_more_than_the_log_keeps_gets_a_snapshot_under_load() {
    let writes = number_from_env("SNAPSHOT_WRITES", 30_000);
    let seed = seed();
    let mut cluster = Cluster::start(&SHORT_LOG);
    let away = cluster.follower();
    let before = cluster.raft_info(away).expect("it answers").snapshots_installed;
    let mut load = Load::new(&cluster, Plan { clients: 6, window: 64, value_length: 200, seed });
    // Its own clients wait for it; they are not in the way.
    load.books.retain(|book| book.node != away);
    load.run(|progress| {
        progress.wait_for_more(500);
        cluster.kill(away);
        let mut left = writes;
        while left > 0 {
            let share = left.min(10_000);
            progress.wait_for_more(share);
            left -= share;
        }
        cluster.start_node(away);
        cluster.wait_until_caught_up(away);
        // It is a full member again while writing goes on: its state is that of the others.
        cluster.check_digests();
    });
    println!("{} writes acknowledged in all", load.acknowledged());
    let after = cluster.raft_info(away).expect("it answers").snapshots_installed;
    let log = cluster.node(away).log().to_lowercase();
    let was_logged = log.lines().any(|line| line.contains("snapshot") && line.contains("install"));
    assert!(after > before || was_logged, "no snapshot was installed: {before:?}, {after:?}\n{log}");
    load.check_no_errors();
    load.check_breaks(&[].into());
    load.check_all(&mut cluster);
    // What came by the snapshot is on its disk.
    cluster.kill_all();
    cluster.start_all();
    cluster.check_digests();
    cluster.check_alive();
}
