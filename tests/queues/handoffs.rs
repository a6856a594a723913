//! How long a message takes from its push to a client that waits at an idle queue. Told, not judged.

use std::sync::mpsc;
use std::thread;

use holdfast::clock::Clock;
use holdfast::clock::SystemClock;
use holdfast::types::Monotonic;

use crate::common::LONG_WAIT;
use crate::common::Popped;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::cluster::Cluster;
use crate::support::cluster::PATIENCE;
use crate::support::micros;
use crate::support::node::Node;
use crate::support::number_from_env;
use crate::support::spread;
use crate::support::wait_for;

/// Microseconds from the push to the consumer's reply, round by round.
fn hand_over(mut producer: Client, mut consumer: Client) -> Vec<u64> {
    let rounds = number_from_env("QUEUES_HANDOFFS", 200);
    let clock = SystemClock::start();
    let (sender, replies) = mpsc::channel::<(Monotonic, Vec<Popped>)>();
    consumer.set_timeout(LONG_WAIT);
    let waiter = thread::spawn(move || {
        for _ in 0..rounds {
            let reply = consumer.cmd(&["QPOP", "BLOCK", "50000", "FROM", "idle"]);
            let at = clock.monotonic();
            let messages = Popped::read_all(&reply);
            assert_eq!(consumer.cmd(&["QACK", "idle", &messages[0].receipt]), Value::Integer(1));
            sender.send((at, messages)).unwrap();
        }
    });
    let mut times = Vec::new();
    for round in 0..rounds {
        wait_for("the client to wait", PATIENCE, || {
            let info = producer.cmd(&["QINFO", "idle"]);
            (info.field("blocked_clients").number() == 1).then_some(())
        });
        let from = clock.monotonic();
        producer.cmd(&["QPUSH", "idle", &round.to_string()]);
        let (at, messages) = replies.recv().unwrap();
        assert_eq!(messages.len(), 1, "{messages:?}");
        assert_eq!((messages[0].payload.as_str(), messages[0].attempt), (&*round.to_string(), 1));
        times.push(micros(from, at));
    }
    waiter.join().unwrap();
    times
}

#[test]
fn a_message_goes_to_who_waits_for_it_on_one_node() {
    let node = Node::start(&[]);
    let times = hand_over(node.client(), node.client());
    // Who waits in vain is told as who did not wait.
    let in_vain = node.client().cmd(&["QPOP", "BLOCK", "20", "FROM", "idle"]);
    assert_eq!(in_vain, Value::NullArray);
    println!("blocking QPOP on one node, from the send of QPUSH to the consumer's reply: {}", spread(times));
}

#[test]
fn a_message_goes_to_who_waits_for_it_on_three_nodes() {
    let mut cluster = Cluster::start(&[]);
    let leader = cluster.leader();
    let [one, two] = cluster.others(leader)[..] else { panic!("three nodes") };
    for (name, producer, consumer) in [("the leader", leader, leader), ("two followers", one, two)] {
        let times = hand_over(cluster.client(producer), cluster.client(consumer));
        println!(
            "blocking QPOP on three nodes, clients at {name}, from the send of QPUSH to the consumer's reply: {}",
            spread(times)
        );
    }
    cluster.check_alive();
}
