//! A node whose state is not that of the others: RAFT VERIFY finds it, and it serves no data any more.

use holdfast::storage::DataBatch;
use holdfast::storage::DataStore;
use holdfast::storage::SharedCaches;
use holdfast::types::GroupId;
use holdfast::types::Millis;

use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::bulk;
use crate::support::client::ok;
use crate::support::cluster::Cluster;
use crate::support::cluster::PATIENCE;
use crate::support::wait_for;

/// What a failing disk may do: a row is gone, and no checksum says so.
fn lose_a_row(cluster: &Cluster, id: u64, name: &str) {
    let caches = SharedCaches::new(8 << 20, 64 << 20);
    let store = DataStore::open(&cluster.node(id).data_dir(), GroupId(0), &caches).unwrap();
    let mut found = None;
    let mut look = |key: &[u8], _: &[u8]| {
        if key.windows(name.len()).any(|window| window == name.as_bytes()) {
            found = Some(key.to_vec());
        }
        Ok(())
    };
    store.scan(&[], &mut look).unwrap();
    let mut batch = DataBatch::new();
    batch.delete(&found.expect("the key's row is on disk"));
    store.write(batch).unwrap();
}

#[test]
fn a_node_with_another_state_is_found_and_serves_no_data() {
    let mut cluster = Cluster::start(&[]);
    let mut client = cluster.client(1);
    for n in 0..20 {
        assert_eq!(client.cmd(&["SET", &format!("verified:{n}:"), "value"]), ok());
    }
    // Asked at every node, whoever leads.
    for id in cluster.ids() {
        let digests = wait_for("all digests", PATIENCE, || {
            cluster.digests(id).filter(|digests| digests.by_node.len() == 3)
        });
        assert!(digests.is_equal && !digests.differ(), "{digests:?}");
    }
    let wrong = cluster.follower();
    assert!(cluster.node_mut(wrong).stop().success());
    lose_a_row(&cluster, wrong, "verified:7:");
    cluster.start_node(wrong);
    cluster.wait_until_caught_up(wrong);
    let asked = cluster.others(wrong)[0];
    let digests = wait_for("all digests", PATIENCE, || {
        cluster.digests(asked).filter(|digests| digests.by_node.len() == 3)
    });
    assert!(!digests.is_equal && digests.differ(), "{digests:?}");
    let right = &digests.by_node[&asked];
    let differing: Vec<u64> =
        digests.by_node.iter().filter(|(_, digest)| *digest != right).map(|(id, _)| *id).collect();
    assert_eq!(differing, [wrong]);

    // It notices by itself.
    let mut client = cluster.client(wrong);
    wait_for("MISCONF", Millis(10_000), || {
        (client.cmd(&["GET", "verified:7:"]).error_code() == Some("MISCONF")).then_some(())
    });
    for words in [&["SET", "k", "v"][..], &["DBSIZE"], &["LOCK", "l", "me"], &["WATCH", "k"]] {
        let reply = client.cmd(words);
        assert!(
            reply.text().starts_with("MISCONF this node's state differs from the others' at index "),
            "{reply:?}"
        );
    }
    assert_eq!(client.cmd(&["READONLY"]), ok());
    assert_eq!(client.cmd(&["GET", "verified:7:"]).error_code(), Some("MISCONF"));
    assert_eq!(client.cmd(&["PING"]), Value::Simple("PONG".to_owned()));
    assert!(client.cmd(&["RAFT", "INFO"]).field("diverged").number() > 0);
    for page in ["/ready", "/ready?write"] {
        let (status, body) = cluster.node(wrong).http(page);
        assert!(status == 503 && body.contains("differs"), "{page}: {status} {body}");
    }
    assert_eq!(cluster.node(wrong).http("/health").0, 200);
    assert!(cluster.node(wrong).http("/metrics").1.contains("holdfast_raft_state_diverged 1"));
    assert!(cluster.node(wrong).log().contains("differs from what a majority of the nodes has"));

    // The others go on, and it does not lead them for long.
    for id in cluster.others(wrong) {
        assert_eq!(cluster.client(id).cmd(&["GET", "verified:7:"]), bulk("value"));
        assert_eq!(cluster.client(id).cmd(&["RAFT", "INFO"]).field("diverged"), &Value::Null);
    }
    let _whatever = cluster.client(asked).cmd(&["RAFT", "TRANSFER", &wrong.to_string()]);
    wait_for("another node to lead", PATIENCE, || cluster.leader_now().filter(|leader| *leader != wrong));
    cluster.check_alive();
}

#[test]
fn what_a_node_does_not_answer_for_is_not_proven() {
    let mut cluster = Cluster::start(&[]);
    assert_eq!(cluster.client(1).cmd(&["SET", "k", "v"]), ok());
    let silent = cluster.follower();
    let asked = cluster.others(silent)[0];
    cluster.kill(silent);
    let answer = wait_for("the others' digests", PATIENCE, || {
        let answer = cluster.client(asked).cmd(&["RAFT", "VERIFY"]);
        (!answer.is_error() && answer.field("digests").pairs().len() == 3).then_some(answer)
    });
    assert_eq!(answer.field("equal"), &Value::Null, "{answer:?}");
    let unproven: Vec<u64> = answer.field("unproven").items().iter().map(Value::number).collect();
    assert_eq!(unproven, [silent]);
    cluster.start_node(silent);
    let proven = wait_for("all digests", PATIENCE, || {
        let answer = cluster.client(asked).cmd(&["RAFT", "VERIFY"]);
        (*answer.field("equal") == Value::Integer(1)).then_some(answer)
    });
    assert!(proven.field("unproven").items().is_empty());
    cluster.check_alive();
}

#[test]
fn a_node_that_waits_for_the_others_says_so_and_can_be_told_to_stop() {
    let mut cluster = Cluster::prepare(3, &[]);
    cluster.spawn(1);
    let mut client = wait_for("the port to open", PATIENCE, || Client::try_connect(cluster.address(1)).ok());
    for words in
        [&["PING"][..], &["GET", "k"], &["SET", "k", "v"], &["RAFT", "VERIFY"], &["RAFT", "TRANSFER"]]
    {
        assert_eq!(client.cmd(words).error_code(), Some("LOADING"), "{words:?}");
    }
    assert!(client.cmd(&["INFO", "persistence"]).text().contains("loading:1"));
    assert_eq!(client.cmd(&["RAFT", "INFO"]).field("leader").number(), 0);
    assert_eq!(client.cmd(&["RAFT", "MEMBERS"]), Value::Array(Vec::new()));
    assert_eq!(cluster.node(1).http("/health").0, 200);
    for page in ["/ready", "/ready?write", "/leader"] {
        let (status, body) = cluster.node(1).http(page);
        assert!(status == 503 && body.contains("waits for the other nodes"), "{page}: {status} {body}");
    }
    assert_eq!(cluster.node(1).http("/metrics").0, 200);
    client.send(&["SHUTDOWN"]);
    assert!(cluster.node_mut(1).wait().success());
    // The connection of a client that waits is served once the others are there.
    cluster.spawn(1);
    let mut client = wait_for("the port to open", PATIENCE, || Client::try_connect(cluster.address(1)).ok());
    assert_eq!(client.cmd(&["GET", "k"]).error_code(), Some("LOADING"));
    cluster.start_all();
    wait_for("the data", PATIENCE, || (client.cmd(&["GET", "k"]) == Value::Null).then_some(()));
    assert!(client.cmd(&["INFO", "persistence"]).text().contains("loading:0"));
    cluster.check_alive();
}
