//! The rig can tell a node that syncs from one that does not: with `appendfsync everysec` a power cut of all nodes
//! takes what was acknowledged, with `always` it takes nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use crate::chaos::seed;
use crate::support::Random;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::ok;
use crate::support::cluster::Cluster;
use crate::support::number_from_env;
use crate::support::power::Disk;
use crate::support::power::Loss;
use crate::support::power::Tail;

/// Writes that a client has underway.
const WINDOW: u64 = 16;
/// Keys of one client in one trial that can be read with one command.
const CHUNK: u64 = 500;

/// Writes until the node is gone; gives the number of acknowledged writes, whose keys count from 0.
fn write_until_killed(address: SocketAddr, name: &str) -> u64 {
    let mut client = Client::connect(address);
    let mut acknowledged = 0;
    loop {
        let mut requests = Vec::new();
        for n in acknowledged..acknowledged + WINDOW {
            let key = format!("{name}:{n}");
            crate::support::client::encode([&b"SET"[..], key.as_bytes(), b"here"].into_iter(), &mut requests);
        }
        if client.try_send_raw(&requests).is_err() {
            return acknowledged;
        }
        for _ in 0..WINDOW {
            match client.try_read() {
                Ok(reply) if reply == ok() => acknowledged += 1,
                _ => return acknowledged,
            }
        }
    }
}

/// Keys below `count` that are not there.
fn count_missing(client: &mut Client, name: &str, count: u64) -> u64 {
    let mut missing = 0;
    for first in (0..count).step_by(CHUNK as usize) {
        let mut words = vec!["MGET".to_owned()];
        words.extend((first..count.min(first + CHUNK)).map(|n| format!("{name}:{n}")));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let found = client.cmd(&words);
        missing += found.items().iter().filter(|value| **value == Value::Null).count() as u64;
    }
    missing
}

/// Cuts the power of all nodes while clients write; gives what was acknowledged, what of it is lost, and what the
/// cuts took of the files.
fn cut_power_of_all(mode: &str, trials: u64, seed: u64) -> (u64, u64, Loss) {
    let mut random = Random::new(seed);
    let mut cluster = Cluster::prepare(3, &["--appendfsync", mode]);
    let mut disks = BTreeMap::new();
    for id in cluster.ids() {
        let disk = Disk::new(&cluster.node(id).data_dir());
        disk.give(cluster.node_mut(id));
        disks.insert(id, disk);
    }
    let (mut acknowledged, mut lost, mut loss) = (0, 0, Loss::default());
    cluster.start_all();
    for trial in 0..trials {
        let names: Vec<(SocketAddr, String)> =
            cluster.ids().into_iter().map(|id| (cluster.address(id), format!("{trial}:{id}"))).collect();
        let counts: Vec<u64> = thread::scope(|scope| {
            let threads: Vec<_> = names
                .iter()
                .map(|(address, name)| scope.spawn(move || write_until_killed(*address, name)))
                .collect();
            thread::sleep(Duration::from_millis(100 + random.below(400)));
            cluster.kill_all();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        // Where not all lose the same, one is ahead of the majority that goes on, and has to notice it.
        let tail = if trial % 2 == 0 { Tail::Nothing } else { Tail::AtRandom };
        disks.values().for_each(|disk| loss.add(disk.cut_power(&mut random, tail)));
        cluster.start_all();
        let mut client = cluster.client(1 + random.below(3));
        for ((_, name), count) in names.iter().zip(&counts) {
            lost += count_missing(&mut client, name, *count);
        }
        acknowledged += counts.iter().sum::<u64>();
    }
    cluster.check_digests();
    cluster.check_alive();
    println!("{mode}: {trials} power cuts, {acknowledged} acknowledged, {lost} lost, {loss:?}");
    (acknowledged, lost, loss)
}

#[test]
fn a_power_cut_of_all_nodes_takes_acknowledged_writes_with_everysec_and_none_with_always() {
    let trials = number_from_env("CHAOS_POWER_TRIALS", 2);
    let seed = seed();
    let (acknowledged, lost, loss) = cut_power_of_all("everysec", trials, seed);
    assert!(acknowledged > 0 && loss.bytes > 0, "the power cuts took nothing: {loss:?}");
    assert!(lost > 0, "{acknowledged} writes were acknowledged without a sync and all are there");
    let (acknowledged, lost, _) = cut_power_of_all("always", trials, seed);
    assert!(acknowledged > 0);
    assert_eq!(lost, 0, "of {acknowledged} writes");
}
