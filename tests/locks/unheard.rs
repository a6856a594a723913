//! What nodes that die, stop or stand still had been given for their clients, and who waits there meanwhile: nothing stays
//! with nobody, and nobody is sent away while there is a leader.

use std::thread;

use holdfast::types::Millis;

use crate::locks::common::token;
use crate::locks::common::wait_for_waiters;
use crate::locks::common::wait_until_no_lock_is_left;
use crate::locks::common::waiter;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::bulk;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::cluster::Cluster;
use crate::support::cluster::PATIENCE;
use crate::support::wait_for;

/// Nobody gets anything by waiting for its end.
const DAY: &str = "86400000";

/// A QPOP and a LOCK that wait at a node, the lock held meanwhile. Gives the holder's token.
fn wait_at(cluster: &Cluster, home: u64, eye: &mut Client, name: &str) -> (i64, [Client; 2]) {
    let held = token(&eye.cmd(&["LOCK", name, "holder", "PX", DAY]));
    let (mut consumer, mut next) = (waiter(cluster, home), waiter(cluster, home));
    assert_eq!(eye.cmd(&["QCONFIG", "SET", &format!("q:{name}"), "MAXDELIVER", "1"]), ok());
    consumer.send(&["QPOP", "BLOCK", "0", "LEASE", DAY, "FROM", &format!("q:{name}")]);
    next.send(&["LOCK", name, "w", "PX", DAY, "GRACE", DAY, "BLOCK", "0"]);
    wait_for_waiters(eye, name, 1);
    wait_for("the consumer to wait", PATIENCE, || {
        (eye.cmd(&["QINFO", &format!("q:{name}")]).field("blocked_clients").number() == 1).then_some(())
    });
    (held, [consumer, next])
}

/// The lock and the message, which went to who waited and was not there any more, come to these.
fn take_over(cluster: &Cluster, at: u64, eye: &mut Client, name: &str, held: i64) {
    let mut heirs = [waiter(cluster, at), waiter(cluster, at)];
    heirs[0].send(&["LOCK", name, "heir", "BLOCK", "50000"]);
    heirs[1].send(&["QPOP", "BLOCK", "50000", "FROM", &format!("q:{name}")]);
    assert_eq!(token(&heirs[0].read()), held + 2, "it was handed to the first who waited");
    let popped = heirs[1].read();
    let [_, receipt, payload, attempt] = popped.items()[0].items() else { panic!("{popped:?}") };
    assert!(receipt.text().ends_with(":2"), "{popped:?}");
    assert_eq!((payload.text().as_str(), attempt), (name, &int(1)), "nobody saw it before");
    assert_eq!(eye.cmd(&["QACK", &format!("q:{name}"), &receipt.text()]), int(1));
    assert_eq!(eye.cmd(&["UNLOCK", name, "heir"]), int(1));
}

#[test]
fn what_was_handed_to_the_clients_of_a_killed_node_goes_back_when_their_waits_end() {
    let mut cluster = Cluster::start(&[]);
    let lost = cluster.follower();
    let leader = cluster.leader();
    let mut eye = cluster.client(leader);
    // Its waits end when the others have not seen it for a while, or as it comes back.
    for comes_back in [false, true] {
        let name = if comes_back { "back" } else { "gone" };
        let (held, clients) = wait_at(&cluster, lost, &mut eye, name);
        cluster.kill(lost);
        assert_eq!(eye.cmd(&["UNLOCK", name, "holder"]), int(1));
        assert!(matches!(eye.cmd(&["QPUSH", &format!("q:{name}"), name]), Value::Bulk(_)));
        if comes_back {
            cluster.start_node(lost);
        }
        take_over(&cluster, leader, &mut eye, name, held);
        if !comes_back {
            cluster.start_node(lost);
        }
        drop(clients);
    }
    wait_until_no_lock_is_left(&mut eye);
    cluster.check_digests();
    cluster.check_alive();
}

#[test]
fn a_node_that_stops_leaves_nothing_with_its_clients() {
    let mut cluster = Cluster::start(&[]);
    for round in 0..4 {
        let stops = cluster.follower();
        let other = cluster.others(stops)[0];
        let mut eye = cluster.client(other);
        let mut consumers: Vec<Client> = (0..8).map(|_| waiter(&cluster, stops)).collect();
        for consumer in &mut consumers {
            consumer.send(&["QPOP", "BLOCK", "0", "LEASE", DAY, "FROM", "jobs"]);
        }
        wait_for("the consumers to wait", PATIENCE, || {
            (eye.cmd(&["QINFO", "jobs"]).optional("blocked_clients")? == int(8)).then_some(())
        });
        // Messages come while it stops.
        let mut producer = cluster.client(other);
        let pushing = thread::spawn(move || {
            for n in 0..8 {
                assert!(matches!(producer.cmd(&["QPUSH", "jobs", &format!("{round}:{n}")]), Value::Bulk(_)));
            }
        });
        assert_eq!(cluster.node_mut(stops).stop().code(), Some(0));
        pushing.join().unwrap();
        let heard = consumers.iter_mut().filter_map(|consumer| consumer.try_read().ok()).count();
        // It has left: whatever its clients did not hear of is there at once, and nobody waits for them.
        let left = eye.cmd(&["QPOP", "COUNT", "100", "LEASE", DAY, "FROM", "jobs"]);
        let left = if left == Value::Null || left == Value::NullArray { 0 } else { left.items().len() };
        assert_eq!(heard + left, 8, "{heard} were told of, {left} were left");
        let info = eye.cmd(&["QINFO", "jobs"]);
        assert_eq!(info.field("blocked_clients"), &int(0));
        assert_eq!(eye.cmd(&["QDEL", "jobs", "ALL"]), int(8));
        assert!(!eye.cmd(&["QPUSH", "jobs", "kept"]).is_error());
        assert_eq!(eye.cmd(&["QDEL", "jobs", "ALL"]), int(1));
        cluster.start_node(stops);
    }
    cluster.check_digests();
    cluster.check_alive();
}

#[test]
fn nobody_who_waits_is_sent_away_while_there_is_a_leader() {
    const WAITERS: usize = 20;
    let mut cluster = Cluster::start(&["--cluster-node-timeout", "1500"]);
    for (round, what) in ["held for a moment", "held for long", "handed over"].into_iter().enumerate() {
        let lock = format!("lock:{round}");
        let leader = cluster.leader();
        let other = cluster.others(leader)[0];
        let mut eye = cluster.client(other);
        assert!(token(&eye.cmd(&["LOCK", &lock, "holder", "PX", DAY])) > 0);
        let mut waiters = Vec::new();
        for number in 0..WAITERS {
            let mut client = waiter(&cluster, if number % 4 == 0 { other } else { leader });
            client.send(&["LOCK", &lock, &format!("w{number}"), "PX", DAY, "BLOCK", "0"]);
            wait_for_waiters(&mut eye, &lock, number + 1);
            waiters.push(client);
        }
        // The leader has led for longer than clients wait without one.
        let led_since = std::time::Duration::from_millis(1_700);
        thread::sleep(led_since);
        match what {
            "held for a moment" | "held for long" => {
                cluster.hold(leader);
                let length = if what == "held for long" { 4_000 } else { 400 };
                thread::sleep(std::time::Duration::from_millis(length));
                cluster.resume(leader);
            }
            _ => drop(eye.cmd(&["RAFT", "TRANSFER"])),
        }
        wait_for("everybody to be served", Millis(30_000), || {
            (eye.cmd(&["UNLOCK", &lock, "holder"]) == int(1)).then_some(())
        });
        for (number, client) in waiters.iter_mut().enumerate() {
            let reply = client.read();
            assert!(matches!(reply, Value::Integer(_)), "{what}: {number} was told {reply:?}");
            assert_eq!(eye.cmd(&["UNLOCK", &lock, &format!("w{number}")]), int(1), "{what}");
        }
    }
    wait_until_no_lock_is_left(&mut cluster.client(1));
    cluster.check_digests();
    cluster.check_alive();
}

#[test]
fn a_lock_that_was_granted_at_once_over_another_node_is_taken_back_from_a_client_that_left() {
    let mut cluster = Cluster::start(&[]);
    let home = cluster.follower();
    let leader = cluster.leader();
    let mut eye = cluster.client(leader);
    let mut operator = cluster.client(home);
    let asks = [
        vec![vec!["INCR", "asked"], vec!["LOCK", "k", "gone", "PX", DAY]],
        vec![vec!["INCR", "asked"], vec!["LOCK", "k", "gone", "SHARED", "PX", DAY]],
        vec![vec!["INCR", "asked"], vec!["MLOCK", "2", "k2", "k", "gone", "PX", DAY]],
        vec![vec!["MULTI"], vec!["INCR", "asked"], vec!["LOCK", "k", "gone", "PX", DAY], vec!["EXEC"]],
    ];
    for (done, words) in (1..).zip(asks) {
        // Nobody's write gets on until the client has left.
        assert_eq!(operator.cmd(&["CLIENT", "PAUSE", "60000", "WRITE"]), ok());
        cluster.client(home).pipeline_only(&words);
        assert_eq!(operator.cmd(&["CLIENT", "UNPAUSE"]), ok());
        wait_for("the client's commands to be done", PATIENCE, || {
            (eye.cmd(&["GET", "asked"]) == bulk(&format!("{done}"))).then_some(())
        });
        let mut heir = waiter(&cluster, leader);
        assert!(token(&heir.cmd(&["LOCK", "k", "heir", "BLOCK", "50000"])) > 0, "{words:?}");
        assert_eq!(heir.cmd(&["UNLOCK", "k", "heir"]), int(1));
    }
    wait_until_no_lock_is_left(&mut eye);
    cluster.check_digests();
    cluster.check_alive();
}
