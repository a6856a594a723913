//! Full disks in a cluster, as far as the limits say: they are set above what is free.

use crate::support::client::Client;
use crate::support::client::bulk;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::cluster::Cluster;
use crate::support::cluster::PATIENCE;
use crate::support::wait_for;

/// More than any disk has.
const EVERYTHING: &str = "8000000gb";

fn limit(cluster: &Cluster, id: u64, value: &str) {
    assert_eq!(cluster.client(id).cmd(&["CONFIG", "SET", "disk-free-hard", value]), ok());
}

/// Waits until a node says so of its disk, and of what the disks of the cluster allow.
fn wait_for_info(cluster: &Cluster, id: u64, lines: &[&str]) {
    wait_for(&format!("node {id} to say {lines:?}"), PATIENCE, || {
        let info = cluster.client(id).cmd(&["INFO", "persistence"]).text();
        lines.iter().all(|line| info.lines().any(|other| other == *line)).then_some(())
    });
}

/// Writes keys, of which each must be taken.
fn write(client: &mut Client, name: &str, count: usize) {
    for at in 0..count {
        assert_eq!(client.cmd(&["SET", &format!("{name}:{at}"), "value"]), ok(), "{name}:{at}");
    }
}

#[test]
fn a_follower_with_a_full_disk_stops_nobody_and_catches_up_when_there_is_room() {
    let mut cluster = Cluster::start(&[]);
    let full = cluster.follower();
    limit(&cluster, full, EVERYTHING);
    wait_for_info(&cluster, full, &["disk_state:full", "disk_allows:all"]);
    let leader = cluster.leader();
    let other = cluster.others(full).into_iter().find(|id| *id != leader).unwrap();
    write(&mut cluster.client(leader), "leader", 200);
    write(&mut cluster.client(other), "other", 100);
    // Any node takes any command, this one too.
    write(&mut cluster.client(full), "full", 10);
    let commit = cluster.raft_info(leader).unwrap().commit;
    let applied = cluster.raft_info(full).unwrap().applied;
    assert!(applied < commit, "its disk fills: {applied} of {commit}");
    assert_eq!(cluster.leader(), leader, "nobody else had to lead");
    assert_eq!(cluster.node(full).http("/ready").0, 503);
    limit(&cluster, full, "auto");
    cluster.wait_until_caught_up(full);
    wait_for_info(&cluster, full, &["disk_state:ok", "disk_allows:all"]);
    assert_eq!(cluster.client(full).cmd(&["GET", "leader:199"]), bulk("value"));
    cluster.check_digests();
    cluster.check_alive();
}

#[test]
fn a_leader_with_a_full_disk_lets_another_lead_and_writes_go_on() {
    let mut cluster = Cluster::start(&[]);
    let full = cluster.leader();
    write(&mut cluster.client(full), "before", 50);
    limit(&cluster, full, EVERYTHING);
    let leader =
        wait_for("another leader", PATIENCE, || cluster.leader_now().filter(|leader| *leader != full));
    for id in cluster.ids() {
        wait_for_info(&cluster, id, &["disk_allows:all"]);
        write(&mut cluster.client(id), &format!("after:{id}"), 50);
    }
    assert_eq!(cluster.leader(), leader);
    limit(&cluster, full, "auto");
    cluster.wait_until_caught_up(full);
    cluster.check_digests();
    cluster.check_alive();
}

#[test]
fn with_full_disks_at_a_majority_reads_and_deletions_go_on_everywhere() {
    let mut cluster = Cluster::start(&[]);
    write(&mut cluster.client(1), "key", 20);
    let full = [cluster.leader(), cluster.follower()];
    for id in full {
        limit(&cluster, id, EVERYTHING);
    }
    for id in cluster.ids() {
        wait_for_info(&cluster, id, &["disk_allows:deletions"]);
        let mut client = cluster.client(id);
        let refused = client.cmd(&["SET", "more", "value"]).text();
        assert!(refused.starts_with("MISCONF disk full"), "{refused}");
    }
    for id in cluster.ids() {
        let mut client = cluster.client(id);
        assert_eq!(client.cmd(&["GET", &format!("key:{id}")]), bulk("value"));
        assert_eq!(client.cmd(&["DEL", &format!("key:{id}")]), int(1));
    }
    limit(&cluster, full[0], "auto");
    for id in cluster.ids() {
        wait_for_info(&cluster, id, &["disk_allows:all"]);
    }
    write(&mut cluster.client(full[1]), "again", 20);
    limit(&cluster, full[1], "auto");
    cluster.wait_until_caught_up(full[1]);
    cluster.check_digests();
    cluster.check_alive();
}
