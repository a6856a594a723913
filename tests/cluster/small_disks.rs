//! Three nodes on disks of their own that are filled as far as the limits allow, emptied, and filled again.
//!
//! `SMALL_DISK_MB=500` for disks of other sizes.

use std::net::SocketAddr;

use crate::support::client::bulk;
use crate::support::client::ok;
use crate::support::cluster::Cluster;
use crate::support::cluster::PATIENCE;
use crate::support::filling::Reader;
use crate::support::filling::empty;
use crate::support::filling::fill;
use crate::support::filling::wait_until_taken;
use crate::support::number_from_env;
use crate::support::small_disk::SmallDisk;
use crate::support::small_disk::with_mounts;
use crate::support::wait_for;

const MIB: u64 = 1 << 20;

#[test]
fn small_disks_are_filled_and_emptied_and_all_nodes_outlive_it() {
    with_mounts(
        "cluster::small_disks::small_disks_are_filled_and_emptied_and_all_nodes_outlive_it",
        fill_and_empty,
    );
}

fn fill_and_empty() {
    let megabytes = number_from_env("SMALL_DISK_MB", 120);
    let mut cluster = Cluster::prepare(3, &[]);
    let disks: Vec<SmallDisk> =
        cluster.ids().iter().map(|id| SmallDisk::give(cluster.node(*id), megabytes * MIB)).collect();
    cluster.start_all();
    let nodes: Vec<SocketAddr> = cluster.ids().iter().map(|id| cluster.address(*id)).collect();
    for round in 0..2 {
        assert_eq!(cluster.client(1).cmd(&["SET", "kept", "value"]), ok());
        let reader = Reader::start(nodes[0], "kept", "value");
        let filled = fill(&nodes, round);
        assert!(reader.stop() > 0);
        println!("round {round}: {filled:?} on three disks of {megabytes} MB");
        // Half of a disk, at the least, is for data; room for more comes back as compaction goes.
        let least = if round == 0 { megabytes * MIB / 2 } else { 0 };
        assert!(filled.refused > 0 && filled.bytes > least, "{filled:?}");
        cluster.check_alive();
        // All at once, as when the power goes.
        cluster.kill_all();
        cluster.ids().into_iter().for_each(|id| cluster.spawn(id));
        for id in cluster.ids() {
            wait_for(&format!("node {id} to serve reads"), PATIENCE, || {
                let mut client = crate::support::client::Client::try_connect(cluster.address(id)).ok()?;
                (client.try_cmd(&["GET", "kept"]).ok()? == bulk("value")).then_some(())
            });
        }
        let mut client = cluster.client(2);
        assert_eq!(client.cmd(&["QLEN", "queue"]).number(), filled.messages);
        empty(nodes[round % 3]);
        nodes.iter().for_each(|node| wait_until_taken(*node));
        for id in cluster.ids() {
            cluster.wait_until_caught_up(id);
        }
        cluster.check_digests();
        cluster.check_alive();
    }
    drop(cluster);
    drop(disks);
}
