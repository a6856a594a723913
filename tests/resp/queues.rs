//! The queue verbs over the wire, in both protocols (COMMANDS.md 2.3). QPOPs that wait are in `queue_waits`.

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
    assert_eq!(
        client.cmd(&["QPOP", "COUNT", "1", "bytes"]),
        error("ERR syntax error: QPOP has no option 'bytes'")
    );
    assert!(client.cmd(&["QPOP", "COUNT", "1001", "FROM", "bytes"]).is_error());
    assert!(client.cmd(&["QACK", "bytes", "not-a-receipt"]).is_error());
    assert_eq!(client.cmd(&["QLEN", "nothing"]), int(0));
    let no_state = "ERR syntax error: 'SOME' is no state: want READY, DELAYED, LEASED or DEAD";
    assert_eq!(client.cmd(&["QLEN", "bytes", "SOME"]), error(no_state));
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

/// A connection that speaks this protocol.
fn speaking(protocol: &str) -> Client {
    let mut client = client();
    client.cmd(&["HELLO", protocol]);
    client
}

fn run(client: &mut Client, line: &str) -> Value {
    client.cmd(&line.split(' ').collect::<Vec<_>>())
}

#[test]
fn a_life_with_every_verb_reads_alike_in_both_protocols() {
    for protocol in ["2", "3"] {
        let mut client = speaking(protocol);
        let q = format!("life:{protocol}");
        let mut run = |line: &str| run(&mut client, &line.replace("{q}", &q));
        assert_eq!(run("QCONFIG SET {q} MAXDELIVER 3 DEADLETTER {q}:dead LEASE 60000"), simple("OK"));
        let config = run("QCONFIG GET {q}");
        assert_eq!(config.pairs().len(), 12);
        assert_eq!(matches!(config, Value::Map(_)), protocol == "3");
        assert_eq!(
            (config.field("LEASE"), config.field("BACKOFF")),
            (&bulk("60000"), &bulk("1000 300000 2 20"))
        );
        let id = run("QPUSH {q} work ID job PRIORITY 5 GROUP g").text();
        assert_eq!(run("QPUSH {q} again ID job"), bulk(&id));
        assert_eq!(run("QPUSH {q} none ID other XX"), Value::Null);
        let later = run("QPUSH {q} later DELAY 600000").text();
        let popped = run("QPOP WITHMETA CONSUMER w1 FROM {q}");
        let [queue, receipt, payload, attempt, meta] = popped.items()[0].items() else {
            panic!("{popped:?}")
        };
        assert_eq!((queue, payload, attempt), (&bulk(&q), &bulk("work"), &int(1)));
        assert_eq!((meta.field("id"), meta.field("priority")), (&bulk(&id), &int(5)));
        assert_eq!((meta.field("group"), meta.field("lease_ms")), (&bulk("g"), &int(60_000)));
        assert_eq!(matches!(meta, Value::Map(_)), protocol == "3");
        let receipt = receipt.text();
        assert_eq!(run(&format!("QEXTEND {{q}} 30000 {receipt}")), int(1));
        assert_eq!(run(&format!("QNACK {{q}} FAIL DELAY 0 REASON flaky IDS 1 {receipt}")), int(1));
        assert_eq!(run(&format!("QACK {{q}} {receipt}")), int(0));
        let peeked = run("QPEEK {q} COUNT 1");
        assert_eq!(peeked.items()[0], bulk(&later));
        let first = peeked.items()[1].items()[0].items();
        assert_eq!(first, [bulk(&id), bulk("work"), int(1), int(5), int(0), bulk("flaky")]);
        let again = message(&run("QPOP FROM {q}").items()[0]);
        assert_eq!((again.1.as_str(), again.3), (&*format!("{id}:2"), 2));
        assert_eq!(run(&format!("QNACK {{q}} FATAL IDS 1 {}", again.1)), int(1));
        assert_eq!((run("QLEN {q} ALL"), run("QLEN {q}:dead")), (int(1), int(1)));
        let dead = message(&run("QPOP FROM {q}:dead").items()[0]);
        assert_eq!((dead.1.as_str(), dead.2.as_str(), dead.3), (&*format!("{id}:3"), "work", 1));
        assert_eq!(run(&format!("QNACK {{q}}:dead FATAL IDS 1 {id}:3")), int(1));
        assert_eq!(run("QREDRIVE {q}:dead TO {q}"), int(1));
        assert_eq!(message(&run("QPOP FROM {q}").items()[0]).1, format!("{id}:4"));
        assert_eq!(run(&format!("FENCE {{q}} {id}:4")), simple("OK"));
        assert!(run(&format!("FENCE {{q}} {id}:3")).text().starts_with("STALETOKEN "));
        assert_eq!(run(&format!("QACK {{q}} {id}:4 {id}:4")), int(2));
        let trace = run(&format!("QTRACE {{q}} {id}"));
        let events: Vec<String> = trace.items().iter().map(|event| event.field("event").text()).collect();
        let told = "PUSHED DELIVERED EXTENDED NACKED DELIVERED NACKED DEAD DELIVERED NACKED DEAD REDRIVEN DELIVERED ACKED";
        assert_eq!(events.join(" "), told);
        assert_eq!(trace.items()[1].field("consumer"), &bulk("w1"));
        assert_eq!(trace.items()[3].field("reason"), &bulk("flaky"));
        let info = run("QINFO {q} FULL");
        assert_eq!(
            (info.field("delayed"), info.field("acked"), info.field("moved")),
            (&int(1), &int(1), &int(1))
        );
        assert_eq!((info.field("pushed"), info.field("duplicates")), (&int(3), &int(1)));
        assert_eq!(info.field("priorities").items().len(), 10);
        assert_eq!(run(&format!("QDEL {{q}} IDS 1 {later}")), int(1));
        assert_eq!(run("QDEL {q} ALL"), int(0));
        assert_eq!(run("QDEL {q}:dead STATE DEAD"), int(0));
    }
}

#[test]
fn what_is_wrong_is_told_alike_in_both_protocols() {
    let integer = "ERR value is not an integer or out of range";
    let wrong_type = "WRONGTYPE Operation against a key holding the wrong kind of value";
    client().cmd(&["SET", "wrong:text", "v"]);
    for protocol in ["2", "3"] {
        let mut client = speaking(protocol);
        run(&mut client, "QPUSH wrong:q m");
        for (line, text) in [
            ("QPUSH wrong:q", "ERR wrong number of arguments for 'qpush' command"),
            ("QPUSH wrong:q m PRIORITY 10", "ERR PRIORITY must be between 0 and 9"),
            ("QPUSH wrong:q m EX 1 PX 1", "ERR syntax error: QPUSH takes either EX or PX"),
            ("QPUSH wrong:q m XX", "ERR syntax error: XX needs the ID of the message"),
            ("QPUSH wrong:q m MAXLEN 1", "QFULL wrong:q holds 1 messages, MAXLEN 1"),
            ("QPUSH wrong:text m", wrong_type),
            ("QPOP FROM", "ERR wrong number of arguments for 'qpop' command"),
            ("QPOP COUNT 0 FROM wrong:q", "ERR COUNT must be between 1 and 1000"),
            ("QPOP BLOCK never FROM wrong:q", integer),
            ("QPOP BLOCK -1 FROM wrong:q", "ERR BLOCK must be between 0 and 31536000000 milliseconds"),
            ("QPOP LEASE 1000 NOACK FROM wrong:q", "ERR syntax error: QPOP takes either LEASE or NOACK"),
            ("QPOP BLOCK 0 FROM wrong:none wrong:text", wrong_type),
            ("QACK wrong:q 1-0", "ERR invalid receipt '1-0': want <id>:<delivery>"),
            (
                "QNACK wrong:q SILENT FATAL IDS 1 1-0:1",
                "ERR syntax error: QNACK takes either SILENT or FATAL",
            ),
            ("QNACK wrong:q IDS 2 1-0:1", "ERR syntax error: IDS 2 is followed by 1 words"),
            ("QEXTEND wrong:q 5 1-0:1", "ERR the lease must be between 100 and 86400000 milliseconds"),
            (
                "QLEN wrong:q SOME",
                "ERR syntax error: 'SOME' is no state: want READY, DELAYED, LEASED or DEAD",
            ),
            ("QINFO wrong:q PART", "ERR syntax error: QINFO takes a queue and FULL"),
            ("QPEEK wrong:q CURSOR x", "ERR invalid id 'x': want <index>-<n>"),
            ("QTRACE wrong:q", "ERR wrong number of arguments for 'qtrace' command"),
            (
                "QDEL wrong:q IDS 1 1-0 ALL",
                "ERR syntax error: QDEL takes IDS, STATE or ALL, and then nothing like 'ALL'",
            ),
            ("QREDRIVE wrong:q COUNT 1 IDS 1 1-0", "ERR syntax error: QREDRIVE takes either IDS or COUNT"),
            ("QREDRIVE wrong:q TO wrong:text", wrong_type),
            ("QCONFIG SET wrong:q LEASE", "ERR wrong number of arguments for 'qconfig|set' command"),
            ("QCONFIG SET wrong:q PAUSE maybe", "ERR PAUSE must be none, in, out or all"),
            ("QCONFIG SET wrong:q DEADLETTER wrong:q", "ERR DEADLETTER must be another queue"),
            ("QCONFIG GET wrong:text", wrong_type),
        ] {
            assert_eq!(run(&mut client, line), error(text), "{line}");
        }
        assert!(run(&mut client, "QCONFIG FORGET wrong:q").text().starts_with("ERR unknown subcommand"));
        assert_eq!(run(&mut client, "QDEL wrong:q ALL"), int(1), "nothing came of all that");
    }
}

#[test]
fn a_queue_with_nothing_in_it_is_no_key_and_is_found_again_over_a_restart() {
    let mut node = Node::start(&[]);
    let mut client = node.client();
    let id = run(&mut client, "QPUSH gone work ID job").text();
    let receipt = pop(&mut client, "gone").unwrap().1;
    assert_eq!(run(&mut client, &format!("QACK gone {receipt}")), int(1));
    assert_eq!(run(&mut client, "QCONFIG SET kept PAUSE out"), simple("OK"));
    assert!(matches!(run(&mut client, "QPUSH kept m"), Value::Bulk(_)));
    for _ in 0..2 {
        assert_eq!(run(&mut client, "EXISTS gone"), int(0));
        assert_eq!(run(&mut client, "TYPE gone"), simple("none"));
        assert_eq!(run(&mut client, &format!("QACK gone {receipt}")), int(1), "the reply was lost");
        assert_eq!(run(&mut client, "QPUSH gone work ID job"), bulk(&id), "it was done already");
        assert_eq!(run(&mut client, "SET gone text"), simple("OK"));
        assert!(run(&mut client, &format!("QTRACE gone {id}")).text().starts_with("WRONGTYPE "));
        assert!(node.stop().success());
        node.restart();
        client = node.client();
        assert_eq!(run(&mut client, "GETDEL gone"), bulk("text"));
        assert_eq!(run(&mut client, &format!("QTRACE gone {id}")).items().len(), 3);
    }
    assert_eq!(run(&mut client, "QDEL kept ALL"), int(1));
    assert_eq!(run(&mut client, "EXISTS kept"), int(0));
    assert_eq!(run(&mut client, "QCONFIG GET kept").field("PAUSE"), &bulk("none"));
    let other = run(&mut client, "QPUSH gone next").text();
    assert_ne!(other, id);
    assert_eq!(run(&mut client, "QINFO gone").field("pushed"), &int(2));
    wait_for("the metrics to tell", Millis(30_000), || {
        let (_, metrics) = node.http("/metrics");
        let shows = |line: &str| metrics.lines().any(|told| told == line);
        (shows("holdfast_queue_messages{queue=\"gone\",state=\"ready\"} 1")
            && shows("holdfast_queue_messages{queue=\"kept\",state=\"ready\"} 0")
            && shows("holdfast_queues 1"))
        .then_some(())
    });
}

#[test]
fn many_names_of_queues_cost_little_once_they_are_empty() {
    const NAMES: usize = 30_000;
    let node = Node::start(&[]);
    let mut client = node.client();
    let mut cost = |lines: &[&str], name: &str| {
        let before = node.resident_bytes();
        for first in (0..NAMES).step_by(1_000) {
            let names = first..first + 1_000;
            let commands =
                names.flat_map(|n| lines.iter().map(move |line| line.replace("{q}", &format!("{name}:{n}"))));
            let commands: Vec<Vec<String>> =
                commands.map(|line| line.split(' ').map(str::to_owned).collect()).collect();
            assert!(client.pipeline(&commands).iter().all(|reply| !reply.is_error()));
        }
        node.resident_bytes().saturating_sub(before) / NAMES as u64
    };
    let used = cost(&["QPUSH {q} m", "QPOP NOACK FROM {q}"], "used");
    let configured = cost(&["QCONFIG SET {q} LEASE 5000"], "configured");
    println!("a name that was used takes {used} bytes, a configured queue {configured}");
    // Table, log and what is not flushed yet are in it.
    assert!(used < 4_000 && configured < 3_000, "{used} and {configured} bytes for each");
    assert_eq!(run(&mut client, "DBSIZE"), int(NAMES as i64));
    let told = run(&mut client, "MEMORY USAGE configured:7").number();
    assert!(told * 2 > configured, "{told} are told");
}
