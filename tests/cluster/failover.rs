//! The leader is killed, again and again, while clients write to every node.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use holdfast::clock::Clock;
use holdfast::clock::SystemClock;

use crate::cluster::load::Load;
use crate::cluster::load::Plan;
use crate::cluster::seed;
use crate::support::Random;
use crate::support::client::Client;
use crate::support::client::ok;
use crate::support::cluster::Cluster;
use crate::support::number_from_env;

/// Writes between a leader's return and the next kill.
const WRITES_BETWEEN: u64 = 300;

/// The median and the worst of some lengths.
fn median_and_worst(mut lengths: Vec<u64>) -> (u64, u64) {
    lengths.sort_unstable();
    (lengths[lengths.len() / 2], *lengths.last().expect("there was a kill"))
}

#[test]
fn killed_leaders_cost_the_clients_of_the_others_time_and_nothing_else() {
    let failovers = number_from_env("FAILOVERS", 3);
    let clients = number_from_env("FAILOVER_CLIENTS", 6);
    let seed = seed();
    let clock = SystemClock::start();
    let mut random = Random::new(seed);
    let mut cluster = Cluster::start(&[]);
    let mut load = Load::new(&cluster, Plan { clients, window: 4, value_length: 32, seed });
    let mut kills: BTreeMap<u64, u64> = BTreeMap::new();
    let mut waits = Vec::new();
    load.run(|progress| {
        for round in 0..failovers {
            progress.wait_for_more(WRITES_BETWEEN);
            let leader = cluster.leader();
            let survivors = cluster.others(leader);
            let mut probes: Vec<Client> = survivors.iter().map(|id| cluster.client(*id)).collect();
            for probe in &mut probes {
                assert_eq!(probe.cmd(&["SET", "probe", "before"]), ok());
            }
            // Not always at the same point of an entry's way.
            thread::sleep(Duration::from_micros(random.below(5_000)));
            let killed_at = clock.monotonic();
            cluster.kill(leader);
            *kills.entry(leader).or_default() += 1;
            for (probe, id) in probes.iter_mut().zip(&survivors) {
                probe.send(&["SET", &format!("probe:{round}:{id}"), "after"]);
            }
            for (probe, id) in probes.iter_mut().zip(&survivors) {
                assert_eq!(probe.read(), ok(), "at node {id} after the kill of {leader}");
                waits.push(clock.monotonic().since(killed_at).0);
            }
            let next = cluster.leader();
            assert_ne!(next, leader);
            progress.wait_for_more(WRITES_BETWEEN);
            cluster.start_node(leader);
            cluster.wait_until_caught_up(leader);
        }
        progress.wait_for_more(WRITES_BETWEEN);
    });
    let (median, worst) = median_and_worst(waits);
    println!(
        "{failovers} leaders killed: {} writes acknowledged, {} in doubt at killed nodes, {} refused by starting \
         nodes; from the kill to the next write at another node p50 {median} ms, worst {worst} ms",
        load.acknowledged(),
        load.in_doubt(),
        load.books.iter().map(|book| book.refused).sum::<u64>()
    );
    load.check_no_errors();
    load.check_breaks(&kills);
    for book in load.books.iter().filter(|book| !kills.contains_key(&book.node)) {
        assert_eq!((book.in_doubt, book.refused), (0, 0), "client {} of node {}", book.client, book.node);
    }
    load.check_all(&mut cluster);
    cluster.check_digests();
    cluster.check_alive();
}
