//! QPOP with BLOCK: who waits, who is served, and what becomes of clients that leave (COMMANDS.md 2.3, 2.6).

use std::net::Shutdown;
use std::sync::OnceLock;

use holdfast::types::Millis;

use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::bulk;
use crate::support::client::error;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::client::simple;
use crate::support::node::Node;
use crate::support::wait_for;

/// How long something may take before the test fails.
const PATIENCE: Millis = Millis(10_000);

fn client() -> Client {
    static NODE: OnceLock<Node> = OnceLock::new();
    NODE.get_or_init(|| Node::start(&[])).client()
}

fn run(client: &mut Client, line: &str) -> Value {
    client.cmd(&line.split(' ').collect::<Vec<_>>())
}

fn send(client: &mut Client, line: &str) {
    client.send(&line.split(' ').collect::<Vec<_>>());
}

/// Waits until so many clients wait for a queue.
fn until_waiting(eye: &mut Client, queue: &str, count: i64) {
    wait_for(&format!("{count} to wait for {queue}"), PATIENCE, || {
        (*eye.cmd(&["QINFO", queue]).field("blocked_clients") == int(count)).then_some(())
    });
}

/// A client whose QPOP waits; `before` wait already.
fn waiting(eye: &mut Client, queue: &str, before: i64, line: &str) -> Client {
    let mut waiter = client();
    send(&mut waiter, line);
    until_waiting(eye, queue, before + 1);
    waiter
}

/// Payload and attempt of the one message of a reply.
fn one(reply: &Value) -> (String, i64) {
    let [message] = reply.items() else { panic!("not one message: {reply:?}") };
    let fields = message.items();
    (fields[2].text(), fields[3].integer())
}

fn receipt(reply: &Value) -> String {
    reply.items()[0].items()[1].text()
}

fn id_of(client: &mut Client) -> String {
    client.cmd(&["CLIENT", "ID"]).integer().to_string()
}

#[test]
fn a_wait_that_is_over_is_null_as_the_protocol_writes_it() {
    let mut waiter = client();
    assert_eq!(run(&mut waiter, "QPOP BLOCK 50 FROM over:a over:b"), Value::NullArray);
    waiter.cmd(&["HELLO", "3"]);
    assert_eq!(run(&mut waiter, "QPOP BLOCK 50 COUNT 3 FROM over:a"), Value::Null);
    assert_eq!(run(&mut waiter, "EXISTS over:a over:b"), int(0), "waiting creates nothing");
    until_waiting(&mut waiter, "over:a", 0);
}

#[test]
fn a_push_serves_who_waits_first() {
    let mut eye = client();
    let mut first = waiting(&mut eye, "order", 0, "QPOP BLOCK 0 FROM order");
    let mut second = waiting(&mut eye, "order", 1, "QPOP BLOCK 60000 COUNT 5 FROM order");
    let mut third = waiting(&mut eye, "order", 2, "QPOP BLOCK 0 NOACK FROM order");
    assert!(first.is_quiet() && second.is_quiet() && third.is_quiet());
    for (payload, waiter) in [("one", &mut first), ("two", &mut second), ("three", &mut third)] {
        run(&mut eye, &format!("QPUSH order {payload}"));
        assert_eq!(one(&waiter.read()), (payload.to_owned(), 1));
    }
    until_waiting(&mut eye, "order", 0);
    assert_eq!(run(&mut eye, "QLEN order LEASED"), int(2), "the third takes it for good");
    assert_eq!(run(&mut eye, "QLEN order"), int(0));
}

#[test]
fn a_waiter_takes_as_many_as_an_entry_brings_and_the_rest_serve_the_next() {
    let mut eye = client();
    let mut first = waiting(&mut eye, "many", 0, "QPOP BLOCK 0 COUNT 2 FROM many");
    let mut second = waiting(&mut eye, "many", 1, "QPOP BLOCK 0 COUNT 2 FROM many");
    run(&mut eye, "MULTI");
    for payload in ["a", "b", "c"] {
        run(&mut eye, &format!("QPUSH many {payload}"));
    }
    assert_eq!(run(&mut eye, "EXEC").items().len(), 3);
    let texts = |reply: Value| -> Vec<String> {
        reply.items().iter().map(|message| message.items()[2].text()).collect()
    };
    assert_eq!((texts(first.read()), texts(second.read())), (vec!["a".into(), "b".into()], vec!["c".into()]));
}

#[test]
fn whoever_waits_for_several_queues_is_served_by_any_and_waits_for_none_after_that() {
    let mut eye = client();
    let mut waiter = client();
    waiter.cmd(&["HELLO", "3"]);
    send(&mut waiter, "QPOP BLOCK 0 WITHMETA CONSUMER me FROM any:a any:b any:c");
    for queue in ["any:a", "any:b", "any:c"] {
        until_waiting(&mut eye, queue, 1);
    }
    run(&mut eye, "QPUSH any:b m PRIORITY 3");
    let reply = waiter.read();
    let [queue, _, payload, attempt, meta] = reply.items()[0].items() else { panic!("{reply:?}") };
    assert_eq!((queue, payload, attempt), (&bulk("any:b"), &bulk("m"), &int(1)));
    assert!(matches!(meta, Value::Map(_)) && *meta.field("priority") == int(3), "{meta:?}");
    for queue in ["any:a", "any:b", "any:c"] {
        until_waiting(&mut eye, queue, 0);
    }
    run(&mut eye, "QPUSH any:a left");
    assert!(waiter.is_quiet());
    assert_eq!(run(&mut eye, "QLEN any:a"), int(1));
}

#[test]
fn a_key_that_is_not_there_can_be_waited_for_whatever_it_is_meanwhile() {
    let mut eye = client();
    let mut waiter = waiting(&mut eye, "absent", 0, "QPOP BLOCK 0 FROM absent");
    assert_eq!(run(&mut eye, "EXISTS absent"), int(0));
    assert_eq!(run(&mut eye, "SET absent text"), ok());
    assert!(waiter.is_quiet());
    assert_eq!(run(&mut eye, "DEL absent"), int(1));
    run(&mut eye, "QPUSH absent m");
    assert_eq!(one(&waiter.read()), ("m".to_owned(), 1));
}

#[test]
fn messages_that_come_back_reach_who_waits() {
    let mut eye = client();
    // By the end of a lease.
    run(&mut eye, "QPUSH back leased");
    assert_eq!(one(&run(&mut eye, "QPOP LEASE 200 FROM back")), ("leased".to_owned(), 1));
    let mut waiter = waiting(&mut eye, "back", 0, "QPOP BLOCK 0 FROM back");
    let reply = waiter.read();
    assert_eq!(one(&reply), ("leased".to_owned(), 2));
    assert_eq!(run(&mut eye, &format!("QACK back {}", receipt(&reply))), int(1));
    // By the end of a delay.
    run(&mut eye, "QPUSH back delayed DELAY 200");
    let reply = run(&mut waiter, "QPOP BLOCK 0 LEASE 60000 FROM back");
    assert_eq!(one(&reply), ("delayed".to_owned(), 1));
    // By a QNACK, of which SILENT counts no attempt.
    let mut next = waiting(&mut eye, "back", 0, "QPOP BLOCK 0 FROM back");
    assert_eq!(run(&mut eye, &format!("QNACK back SILENT IDS 1 {}", receipt(&reply))), int(1));
    let reply = next.read();
    assert_eq!(one(&reply), ("delayed".to_owned(), 1));
    let mut next = waiting(&mut eye, "back", 0, "QPOP BLOCK 0 FROM back");
    assert_eq!(run(&mut eye, &format!("QNACK back DELAY 100 IDS 1 {}", receipt(&reply))), int(1));
    let reply = next.read();
    assert_eq!(one(&reply), ("delayed".to_owned(), 2));
    // By QREDRIVE.
    assert_eq!(run(&mut eye, &format!("QNACK back FATAL IDS 1 {}", receipt(&reply))), int(1));
    let mut next = waiting(&mut eye, "back", 0, "QPOP BLOCK 0 FROM back");
    assert_eq!(run(&mut eye, "QREDRIVE back"), int(1));
    assert_eq!(one(&next.read()), ("delayed".to_owned(), 1));
    // By the end of a pause.
    run(&mut eye, "QCONFIG SET back PAUSE out");
    run(&mut eye, "QPUSH back paused");
    let mut next = waiting(&mut eye, "back", 0, "QPOP BLOCK 0 FROM back");
    assert!(next.is_quiet());
    run(&mut eye, "QCONFIG SET back PAUSE none");
    assert_eq!(one(&next.read()), ("paused".to_owned(), 1));
}

#[test]
fn client_unblock_ends_a_wait_with_null_or_an_error() {
    let (mut eye, mut waiter) = (client(), client());
    let id = id_of(&mut waiter);
    assert_eq!(eye.cmd(&["CLIENT", "UNBLOCK", &id]), int(0));
    for (how, reply) in [
        (&[][..], Value::NullArray),
        (&["TIMEOUT"], Value::NullArray),
        (&["ERROR"], error("UNBLOCKED client unblocked via CLIENT UNBLOCK")),
    ] {
        send(&mut waiter, "QPOP BLOCK 0 FROM unblock");
        until_waiting(&mut eye, "unblock", 1);
        assert_eq!(eye.cmd(&[&["CLIENT", "UNBLOCK", &id], how].concat()), int(1));
        assert_eq!(waiter.read(), reply);
        until_waiting(&mut eye, "unblock", 0);
    }
    run(&mut eye, "QPUSH unblock m");
    assert_eq!(one(&run(&mut waiter, "QPOP BLOCK 0 FROM unblock")), ("m".to_owned(), 1));
}

#[test]
fn who_leaves_while_it_waits_is_passed_over() {
    let mut eye = client();
    let gone = waiting(&mut eye, "leaves", 0, "QPOP BLOCK 0 FROM leaves");
    let mut next = waiting(&mut eye, "leaves", 1, "QPOP BLOCK 0 FROM leaves");
    gone.writer().shutdown(Shutdown::Both).unwrap();
    drop(gone);
    until_waiting(&mut eye, "leaves", 1);
    run(&mut eye, "QPUSH leaves m");
    assert_eq!(one(&next.read()), ("m".to_owned(), 1));
}

#[test]
fn a_message_for_a_client_that_is_gone_comes_back_and_no_attempt_is_counted() {
    let mut eye = client();
    for round in 0..40 {
        let gone = waiting(&mut eye, "gone", 0, "QPOP BLOCK 0 FROM gone");
        // Whether the node hears of the end before the message is handed over is left to chance.
        if round % 2 == 0 {
            gone.writer().shutdown(Shutdown::Both).unwrap();
            drop(gone);
            run(&mut eye, &format!("QPUSH gone m{round}"));
        } else {
            send(&mut eye, &format!("QPUSH gone m{round}"));
            gone.writer().shutdown(Shutdown::Both).unwrap();
            drop(gone);
            assert!(eye.read().text().contains('-'));
        }
        let reply = run(&mut eye, "QPOP BLOCK 9000 FROM gone");
        // The reply may have been written before the client left: then its lease runs.
        if reply == Value::NullArray {
            assert_eq!(run(&mut eye, "QLEN gone LEASED"), int(1));
            assert_eq!(run(&mut eye, "QDEL gone ALL"), int(1));
            continue;
        }
        assert_eq!(one(&reply), (format!("m{round}"), 1));
        assert_eq!(run(&mut eye, &format!("QACK gone {}", receipt(&reply))), int(1));
        until_waiting(&mut eye, "gone", 0);
    }
}

#[test]
fn a_transaction_never_waits() {
    let (mut eye, mut waiter) = (client(), client());
    run(&mut waiter, "MULTI");
    run(&mut waiter, "QPOP BLOCK 0 FROM multi");
    run(&mut waiter, "SET multi:after 1");
    assert_eq!(run(&mut waiter, "EXEC"), Value::Array(vec![Value::NullArray, ok()]));
    until_waiting(&mut eye, "multi", 0);
    run(&mut eye, "QPUSH multi m");
    run(&mut waiter, "MULTI");
    run(&mut waiter, "QPOP BLOCK 0 FROM multi");
    assert_eq!(one(&run(&mut waiter, "EXEC").items()[0]), ("m".to_owned(), 1));
    // What a transaction takes back serves nobody.
    let mut behind = waiting(&mut eye, "multi:b", 0, "QPOP BLOCK 0 FROM multi:b");
    run(&mut eye, "SET multi:text v");
    run(&mut eye, "MULTI");
    run(&mut eye, "QPUSH multi:b m");
    run(&mut eye, "INCR multi:text");
    assert!(run(&mut eye, "EXEC").text().starts_with("EXECABORT cmd=2 "));
    assert!(behind.is_quiet());
    run(&mut eye, "QPUSH multi:b n");
    assert_eq!(one(&behind.read()), ("n".to_owned(), 1));
}

#[test]
fn what_stands_behind_a_qpop_that_waits_is_done_after_it() {
    let mut eye = client();
    let mut waiter = waiting(&mut eye, "pipeline", 0, "QPOP BLOCK 0 NOACK FROM pipeline");
    send(&mut waiter, "PING");
    send(&mut waiter, "QPOP BLOCK 0 NOACK FROM pipeline");
    assert!(waiter.is_quiet());
    run(&mut eye, "QPUSH pipeline one");
    assert_eq!(one(&waiter.read()), ("one".to_owned(), 1));
    assert_eq!(waiter.read(), simple("PONG"));
    until_waiting(&mut eye, "pipeline", 1);
    run(&mut eye, "QPUSH pipeline two");
    assert_eq!(one(&waiter.read()), ("two".to_owned(), 1));
}
