//! A second process under the node id of a living node: a configuration that was copied and started once more.

use crate::support::client::ok;
use crate::support::cluster::Cluster;
use crate::support::cluster::PATIENCE;
use crate::support::node::Node;
use crate::support::wait_for;

/// The configuration of a node, started elsewhere, on an empty directory.
fn twin_of(cluster: &Cluster, id: u64) -> Node {
    let mut args = vec!["--node-id".to_owned(), id.to_string()];
    for other in cluster.ids() {
        let port = cluster.node(other).peer_port();
        args.extend(["--cluster-node".to_owned(), other.to_string(), format!("127.0.0.1:{port}")]);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut twin = Node::prepare(&args);
    twin.spawn();
    twin
}

#[test]
fn a_second_process_under_the_id_of_a_living_node_takes_nothing_from_it() {
    let mut cluster = Cluster::start(&[]);
    if cluster.leader() != 3 {
        assert_eq!(cluster.client(1).cmd(&["RAFT", "TRANSFER", "3"]), ok());
    }
    let before = cluster.members();
    let mut twin = twin_of(&cluster, 2);
    wait_for("the twin to be told why", PATIENCE, || {
        twin.log()
            .contains("another process with node-id 2 is connected to this node and answers")
            .then_some(())
    });
    // It goes on trying, and the other one does not notice.
    let mut client = cluster.client(2);
    for at in 0..200 {
        assert_eq!(client.cmd(&["SET", &format!("key:{at}"), "value"]), ok());
        assert_eq!(client.cmd(&["DEL", &format!("key:{at}")]).number(), 1);
    }
    assert_eq!(cluster.members(), before);
    assert_eq!(cluster.node(2).http("/ready?write").0, 200);
    assert!(!cluster.node(3).log().contains("a newer connection of the same peer took its place"));
    cluster.check_digests();

    // A short absence of the other one gives it a link, and not the id.
    cluster.hold(2);
    wait_for("the twin to ask", PATIENCE, || twin.log().contains("node-id 2 is taken").then_some(()));
    cluster.resume(2);
    wait_for("the member to be linked again", PATIENCE, || {
        let (term, leader) = (cluster.raft_info(3)?.term, cluster.raft_info(2)?);
        (leader.term == term && leader.leader == Some(3)).then_some(())
    });
    assert_eq!(client.cmd(&["SET", "still", "here"]), ok());
    assert_eq!(cluster.members(), before);
    twin.kill();
    cluster.check_digests();
    cluster.check_alive();
}
