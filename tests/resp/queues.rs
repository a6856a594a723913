//! QPUSH, QPOP, QACK and QLEN: COMMANDS.md 2.3.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::thread;

use holdfast::types::Millis;

use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::bulk;
use crate::support::client::error;
use crate::support::client::int;
use crate::support::client::simple;
use crate::support::node::Node;
use crate::support::wait_for;

fn client() -> Client {
    static NODE: OnceLock<Node> = OnceLock::new();
    NODE.get_or_init(|| Node::start(&[])).client()
}

/// Queue, receipt, payload and attempt of one message that QPOP gave.
fn message(value: &Value) -> (String, String, String, i64) {
    let [queue, receipt, payload, attempt] = value.items() else { panic!("not a message: {value:?}") };
    (queue.text(), receipt.text(), payload.text(), attempt.integer())
}

fn pop(client: &mut Client, queue: &str) -> Option<(String, String, String, i64)> {
    match client.cmd(&["QPOP", "FROM", queue]) {
        Value::NullArray => None,
        reply => Some(message(&reply.items()[0])),
    }
}

#[test]
fn messages_come_in_order_and_go_when_acknowledged() {
    let mut client = client();
    let ids: Vec<String> = ["one", "two", "three"]
        .iter()
        .map(|payload| client.cmd(&["QPUSH", "order", payload]).text())
        .collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 3);
    assert_eq!(client.cmd(&["QLEN", "order"]), int(3));
    assert_eq!(client.cmd(&["TYPE", "order"]), simple("queue"));
    let (queue, receipt, payload, attempt) = pop(&mut client, "order").unwrap();
    assert_eq!((queue.as_str(), payload.as_str(), attempt), ("order", "one", 1));
    assert_eq!(receipt, format!("{}:1", ids[0]));
    assert_eq!(client.cmd(&["QLEN", "order"]), int(2));
    assert_eq!(client.cmd(&["QLEN", "order", "LEASED"]), int(1));
    assert_eq!(client.cmd(&["QLEN", "order", "ALL"]), int(3));
    assert_eq!(client.cmd(&["QACK", "order", &receipt]), int(1));
    assert_eq!(client.cmd(&["QLEN", "order", "ALL"]), int(2));
    let reply = client.cmd(&["QPOP", "COUNT", "10", "FROM", "order"]);
    let rest: Vec<_> = reply.items().iter().map(message).collect();
    assert_eq!(rest.iter().map(|(_, _, payload, _)| payload.as_str()).collect::<Vec<_>>(), ["two", "three"]);
    let acked = client.cmd(&["QACK", "order", &rest[0].1, &rest[1].1, "999999-0:1"]);
    assert_eq!(acked, int(2));
    assert_eq!(pop(&mut client, "order"), None);
}

#[test]
fn a_message_is_delivered_again_when_its_lease_ends() {
    let mut client = client();
    client.cmd(&["QPUSH", "again", "work"]);
    let first = client.cmd(&["QPOP", "LEASE", "100", "FROM", "again"]);
    let (_, stale, _, attempt) = message(&first.items()[0]);
    assert_eq!(attempt, 1);
    let (_, receipt, payload, attempt) =
        wait_for("the redelivery", Millis(10_000), || pop(&mut client, "again"));
    assert_eq!((payload.as_str(), attempt), ("work", 2));
    assert_ne!(receipt, stale);
    assert_eq!(client.cmd(&["QACK", "again", &stale]), int(0), "who lost the lease finishes nothing");
    assert_eq!(client.cmd(&["QLEN", "again", "LEASED"]), int(1));
    assert_eq!(client.cmd(&["QACK", "again", &receipt]), int(1));
    assert_eq!(client.cmd(&["QLEN", "again", "ALL"]), int(0));
}

#[test]
fn a_message_without_acknowledgement_is_gone_at_delivery() {
    let mut client = client();
    client.cmd(&["QPUSH", "noack", "m"]);
    let reply = client.cmd(&["QPOP", "NOACK", "FROM", "noack"]);
    assert_eq!(message(&reply.items()[0]).2, "m");
    assert_eq!(client.cmd(&["QLEN", "noack", "ALL"]), int(0));
}

#[test]
fn queues_are_looked_at_from_left_to_right() {
    let mut client = client();
    client.cmd(&["QPUSH", "jobs:low", "low"]);
    client.cmd(&["QPUSH", "jobs:high", "high"]);
    let reply = client.cmd(&["QPOP", "COUNT", "5", "FROM", "jobs:none", "jobs:high", "jobs:low"]);
    let got: Vec<_> =
        reply.items().iter().map(message).map(|(queue, _, payload, _)| (queue, payload)).collect();
    let expected = [("jobs:high", "high"), ("jobs:low", "low")].map(|(q, p)| (q.to_owned(), p.to_owned()));
    assert_eq!(got, expected);
    assert_eq!(client.cmd(&["QPOP", "FROM", "jobs:none"]), Value::NullArray);
    client.cmd(&["HELLO", "3"]);
    assert_eq!(client.cmd(&["QPOP", "FROM", "jobs:none"]), Value::Null);
}

#[test]
fn each_message_goes_to_one_of_many_consumers() {
    let mut producer = client();
    let pushes: Vec<Vec<String>> =
        (0..400).map(|n| vec!["QPUSH".to_owned(), "fan".to_owned(), format!("m{n}")]).collect();
    producer.pipeline(&pushes);
    let consumers: Vec<_> = (0..4)
        .map(|_| {
            thread::spawn(|| {
                let mut client = client();
                let mut payloads = Vec::new();
                while let Value::Array(messages) = client.cmd(&["QPOP", "COUNT", "7", "FROM", "fan"]) {
                    for (_, receipt, payload, _) in messages.iter().map(message) {
                        assert_eq!(client.cmd(&["QACK", "fan", &receipt]), int(1));
                        payloads.push(payload);
                    }
                }
                payloads
            })
        })
        .collect();
    let all: Vec<String> = consumers.into_iter().flat_map(|consumer| consumer.join().unwrap()).collect();
    assert_eq!(all.len(), 400);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 400, "no message twice");
}

#[test]
fn a_queue_is_no_other_type() {
    let mut client = client();
    client.cmd(&["QPUSH", "type:queue", "m"]);
    client.cmd(&["SET", "type:text", "v"]);
    for command in [
        &["GET", "type:queue"][..],
        &["DEL", "type:queue"],
        &["EXPIRE", "type:queue", "1"],
        &["LOCK", "type:queue", "me"],
        &["QPUSH", "type:text", "m"],
        &["QPOP", "FROM", "type:text"],
        &["QLEN", "type:text"],
    ] {
        assert!(client.cmd(command).text().starts_with("WRONGTYPE "), "{command:?}");
    }
}

#[test]
fn payloads_are_bytes_and_what_is_not_a_queue_command_is_refused() {
    let mut client = client();
    let payload: Vec<u8> = (0..=255).collect();
    client.cmd_bytes(&[b"QPUSH", b"bytes", &payload]);
    let reply = client.cmd(&["QPOP", "FROM", "bytes"]);
    assert_eq!(reply.items()[0].items()[2], Value::Bulk(payload));
    assert_eq!(client.cmd(&["QPOP", "bytes"]), error("ERR wrong number of arguments for 'qpop' command"));
    assert_eq!(client.cmd(&["QPOP", "COUNT", "1", "bytes"]), error("ERR syntax error"));
    assert!(client.cmd(&["QPOP", "COUNT", "1001", "FROM", "bytes"]).is_error());
    assert!(client.cmd(&["QACK", "bytes", "not-a-receipt"]).is_error());
    assert!(
        client.cmd(&["QPUSH", "bytes", "m", "DELAY", "5"]).text().contains("not supported by this version")
    );
    assert_eq!(client.cmd(&["QLEN", "nothing"]), int(0));
    assert_eq!(client.cmd(&["QLEN", "bytes", "SOME"]), error("ERR syntax error"));
}

#[test]
fn a_push_and_a_lock_can_be_one_transaction() {
    let mut client = client();
    client.cmd(&["MULTI"]);
    client.cmd(&["SET", "both:state", "paid"]);
    client.cmd(&["QPUSH", "both:mail", "receipt"]);
    let reply = client.cmd(&["EXEC"]);
    assert_eq!(reply.items().len(), 2);
    assert_eq!(client.cmd(&["GET", "both:state"]), bulk("paid"));
    assert_eq!(client.cmd(&["QLEN", "both:mail"]), int(1));
}
