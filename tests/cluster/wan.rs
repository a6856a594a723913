//! Nodes that are far apart: a round trip longer than a leader's lease.

use holdfast::types::Millis;

use crate::support::client::bulk;
use crate::support::client::ok;
use crate::support::cluster::Cluster;
use crate::support::links::Links;

/// One way; reads at a follower ask the leader, which asks a majority: twice there and back is longer than an election
/// timeout.
const DELAY: Millis = Millis(160);

#[test]
fn reads_are_answered_on_every_node_when_a_round_trip_is_longer_than_the_lease() {
    let mut cluster = Cluster::prepare(3, &["--election-timeout", "500"]);
    let links = Links::between(&mut cluster);
    cluster.start_all();
    for from in cluster.ids() {
        for to in cluster.others(from) {
            links.delay(from, to, DELAY, Millis(0));
        }
    }
    let leader = cluster.leader();
    for round in 0..3 {
        for id in cluster.ids() {
            let mut client = cluster.client(id);
            let value = format!("{round} of {id}");
            assert_eq!(client.cmd(&["SET", "far", &value]), ok(), "at node {id}, {leader} leads");
            for reader in cluster.ids() {
                let read = cluster.client(reader).cmd(&["GET", "far"]);
                assert_eq!(read, bulk(&value), "at node {reader}, {leader} leads");
            }
        }
    }
    let ids = cluster.ids();
    let delayed =
        ids.iter().flat_map(|from| ids.iter().map(move |to| (*from, *to))).filter(|(from, to)| from != to);
    assert!(delayed.into_iter().all(|(from, to)| links.delayed(from, to) > 0), "the delays took effect");
    cluster.check_alive();
}
