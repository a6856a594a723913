//! Every node is killed at once.

use std::collections::BTreeMap;

use crate::cluster::load::Load;
use crate::cluster::load::Plan;
use crate::cluster::seed;
use crate::support::cluster::Cluster;
use crate::support::number_from_env;

#[test]
fn what_was_acknowledged_outlives_the_kill_of_all_nodes_at_once() {
    const CLIENTS: u64 = 6;
    let outages = number_from_env("OUTAGES", 2);
    let seed = seed();
    let mut cluster = Cluster::start(&[]);
    let mut load = Load::new(&cluster, Plan { clients: CLIENTS, window: 32, value_length: 64, seed });
    load.run(|progress| {
        for _ in 0..outages {
            progress.wait_for_more(3_000);
            cluster.kill_all();
            cluster.start_all();
        }
        progress.wait_for_more(1_000);
    });
    println!("{} writes acknowledged, {} in doubt", load.acknowledged(), load.in_doubt());
    let kills: BTreeMap<u64, u64> = cluster.ids().into_iter().map(|id| (id, outages)).collect();
    load.check_no_errors();
    load.check_breaks(&kills);
    load.check_all(&mut cluster);
    cluster.check_digests();
    cluster.check_alive();
}
