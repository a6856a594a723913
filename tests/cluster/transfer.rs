//! What an operator asks of the group: to hand the lead over, to make a snapshot, who belongs to it, who leads.

use holdfast::types::Millis;

use crate::cluster::load::Load;
use crate::cluster::load::Plan;
use crate::cluster::seed;
use crate::support::cluster::Cluster;
use crate::support::cluster::PATIENCE;
use crate::support::wait_for;

/// The leader's page says so at this node only, and all nodes are ready.
fn check_pages(cluster: &Cluster, leader: u64) {
    wait_for(&format!("/leader of all nodes to show {leader}"), Millis(10_000), || {
        let says = |id: u64| cluster.node(id).http("/leader").0;
        let all: Vec<u16> = cluster.ids().into_iter().map(says).collect();
        let expected: Vec<u16> =
            cluster.ids().into_iter().map(|id| if id == leader { 200 } else { 503 }).collect();
        (all == expected).then_some(())
    });
    for id in cluster.ids() {
        for page in ["/ready", "/ready?write", "/health"] {
            wait_for(&format!("{page} of node {id} to be 200"), Millis(10_000), || {
                (cluster.node(id).http(page).0 == 200).then_some(())
            });
        }
    }
}

#[test]
fn the_lead_is_handed_over_under_load_and_no_client_notices() {
    const ROUNDS: u64 = 6;
    let seed = seed();
    let mut cluster = Cluster::start(&[]);
    let mut load = Load::new(&cluster, Plan { clients: 6, window: 8, value_length: 32, seed });
    load.run(|progress| {
        for round in 0..ROUNDS {
            progress.wait_for_more(300);
            let leader = cluster.leader();
            let target = leader % 3 + 1;
            // Asked at every kind of node: the leader, the target and the third.
            let asked = (leader + round) % 3 + 1;
            let reply = cluster.client(asked).cmd(&["RAFT", "TRANSFER", &target.to_string()]);
            assert!(!reply.is_error(), "TRANSFER {target} at node {asked}: {reply:?}");
            wait_for(&format!("node {target} to lead after {leader}"), PATIENCE, || {
                (cluster.leader_now() == Some(target)).then_some(())
            });
            wait_for("all nodes to know the leader", PATIENCE, || {
                let knows = |id: u64| cluster.raft_info(id).and_then(|info| info.leader) == Some(target);
                cluster.ids().into_iter().all(knows).then_some(())
            });
            check_pages(&cluster, target);
        }
        progress.wait_for_more(300);
    });
    println!("{} writes acknowledged while the lead moved {ROUNDS} times", load.acknowledged());
    load.check_no_errors();
    load.check_breaks(&[].into());
    assert_eq!(load.in_doubt(), 0);
    load.check_all(&mut cluster);
    cluster.check_digests();
    cluster.check_alive();
}

#[test]
fn every_node_tells_the_members_and_makes_a_snapshot() {
    let mut cluster = Cluster::start(&[]);
    let leader = cluster.leader();
    let members = cluster.members();
    let known: Vec<(u64, u64, bool)> =
        members.iter().map(|member| (member.node, member.replica, member.is_voter)).collect();
    assert_eq!(known, [(1, 1, true), (2, 2, true), (3, 3, true)]);
    let infos: Vec<_> =
        cluster.ids().into_iter().map(|id| cluster.raft_info(id).expect("it answers")).collect();
    for (info, id) in infos.iter().zip(1..) {
        assert_eq!(info.leader, Some(leader), "at node {id}");
        assert_eq!(info.role == "leader", id == leader, "at node {id}: {info:?}");
        assert!(info.applied <= info.commit && info.commit > 0, "{info:?}");
    }
    for id in cluster.ids() {
        let reply = cluster.client(id).cmd(&["RAFT", "SNAPSHOT"]);
        assert!(!reply.is_error(), "at node {id}: {reply:?}");
        let reply = cluster.client(id).cmd(&["RAFT", "TRANSFER", "99"]);
        assert!(reply.is_error(), "at node {id}: {reply:?}");
        cluster.wait_until_serving(id);
    }
    let leader = cluster.leader();
    check_pages(&cluster, leader);
    cluster.check_digests();
    cluster.check_alive();
}

#[test]
fn pages_of_a_node_without_a_majority_say_so() {
    let mut cluster = Cluster::start(&[]);
    let alone = cluster.leader();
    cluster.others(alone).into_iter().for_each(|id| cluster.kill(id));
    for page in ["/leader", "/ready", "/ready?write"] {
        wait_for(&format!("{page} to be 503"), Millis(20_000), || {
            (cluster.node(alone).http(page).0 == 503).then_some(())
        });
    }
    // The process itself is well.
    assert_eq!(cluster.node(alone).http("/health").0, 200);
    cluster.start_all();
    for page in ["/ready", "/ready?write"] {
        wait_for(&format!("{page} to be 200"), PATIENCE, || {
            (cluster.node(alone).http(page).0 == 200).then_some(())
        });
    }
    cluster.check_alive();
}
