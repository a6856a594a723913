//! A node whose disk is lost.

use std::collections::BTreeMap;

use crate::cluster::load::Load;
use crate::cluster::load::Plan;
use crate::cluster::seed;
use crate::support::cluster::Cluster;
use crate::support::cluster::PATIENCE;
use crate::support::wait_for;

#[test]
fn a_node_that_lost_its_disk_comes_back_under_a_new_name_and_counts_again() {
    let seed = seed();
    let mut cluster = Cluster::start(&[]);
    let lost = cluster.follower();
    let members = cluster.members();
    assert_eq!(members.iter().filter(|member| member.is_voter).count(), 3, "{members:?}");
    let old = members.iter().find(|member| member.node == lost).expect("it is a member").replica;
    let mut kills = BTreeMap::from([(lost, 1)]);
    let mut load = Load::new(&cluster, Plan { clients: 3, window: 8, value_length: 64, seed });
    load.run(|progress| {
        progress.wait_for_more(1_000);
        cluster.kill(lost);
        cluster.wipe(lost);
        progress.wait_for_more(200);
        cluster.start_node(lost);
        cluster.wait_until_caught_up(lost);
        let members = wait_for("it to be a voter again, alone under its node's id", PATIENCE, || {
            let members = cluster.members();
            let own: Vec<_> = members.iter().filter(|member| member.node == lost).collect();
            let is_back = own.len() == 1 && own[0].is_voter && own[0].replica != old;
            (is_back && members.iter().filter(|member| member.is_voter).count() == 3).then_some(members)
        });
        println!("{members:?}");
        assert!(members.iter().all(|member| member.replica != old));
        // A majority now takes the node that came back.
        let another = cluster.leader();
        let another = if another == lost { cluster.others(lost)[0] } else { another };
        cluster.kill(another);
        kills.insert(another, 1);
        progress.wait_for_more(1_000);
        cluster.start_node(another);
        cluster.wait_until_caught_up(another);
    });
    load.check_no_errors();
    load.check_breaks(&kills);
    load.check_all(&mut cluster);
    cluster.check_digests();
    cluster.check_alive();
    // And it still knows its name after a restart.
    let name = |members: Vec<crate::support::cluster::Member>| {
        members.into_iter().find(|member| member.node == lost).expect("it is a member").replica
    };
    let replica = name(cluster.members());
    cluster.kill(lost);
    cluster.start_node(lost);
    assert_eq!(name(cluster.members()), replica);
}
