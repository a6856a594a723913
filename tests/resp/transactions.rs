//! MULTI, EXEC, DISCARD and WATCH.

use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

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

fn client() -> Client {
    static NODE: OnceLock<Node> = OnceLock::new();
    NODE.get_or_init(|| Node::start(&[])).client()
}

fn queued() -> Value {
    simple("QUEUED")
}

#[test]
fn exec_runs_what_was_queued_and_answers_each() {
    let mut client = client();
    assert_eq!(client.cmd(&["MULTI"]), ok());
    assert_eq!(client.cmd(&["SET", "multi:a", "1"]), queued());
    assert_eq!(client.cmd(&["INCR", "multi:a"]), queued());
    assert_eq!(client.cmd(&["GET", "multi:a"]), queued());
    assert_eq!(client.cmd(&["PING"]), queued());
    let reply = client.cmd(&["EXEC"]);
    assert_eq!(reply, Value::Array(vec![ok(), int(2), bulk("2"), simple("PONG")]));
    assert_eq!(client.cmd(&["EXEC"]), error("ERR EXEC without MULTI"));
    assert_eq!(client.cmd(&["DISCARD"]), error("ERR DISCARD without MULTI"));
    client.cmd(&["MULTI"]);
    assert_eq!(client.cmd(&["EXEC"]), Value::Array(Vec::new()));
}

#[test]
fn a_transaction_in_one_packet_is_answered_in_order() {
    let mut client = client();
    let commands = [vec!["MULTI"], vec!["SET", "packet:a", "1"], vec!["EXEC"], vec!["GET", "packet:a"]];
    let replies = client.pipeline(&commands);
    assert_eq!(replies, [ok(), queued(), Value::Array(vec![ok()]), bulk("1")]);
}

#[test]
fn discard_forgets_what_was_queued() {
    let mut client = client();
    client.cmd(&["SET", "discard:a", "1"]);
    client.cmd(&["MULTI"]);
    client.cmd(&["SET", "discard:a", "2"]);
    assert_eq!(client.cmd(&["DISCARD"]), ok());
    assert_eq!(client.cmd(&["GET", "discard:a"]), bulk("1"));
}

#[test]
fn a_command_that_cannot_be_queued_aborts_the_transaction() {
    let mut client = client();
    client.cmd(&["MULTI"]);
    assert_eq!(client.cmd(&["SET", "abort:a", "1"]), queued());
    assert!(client.cmd(&["NOSUCH"]).is_error());
    let aborted = error("EXECABORT Transaction discarded because of previous errors.");
    assert_eq!(client.cmd(&["EXEC"]), aborted);
    assert_eq!(client.cmd(&["EXISTS", "abort:a"]), int(0));
    client.cmd(&["MULTI"]);
    assert_eq!(client.cmd(&["GET"]), error("ERR wrong number of arguments for 'get' command"));
    assert_eq!(client.cmd(&["EXEC"]), aborted);
    client.cmd(&["MULTI"]);
    assert_eq!(client.cmd(&["MULTI"]), error("ERR MULTI calls can not be nested"));
    assert_eq!(client.cmd(&["WATCH", "abort:a"]), error("ERR WATCH inside MULTI is not allowed"));
    assert_eq!(client.cmd(&["DISCARD"]), ok());
}

#[test]
fn an_error_at_run_time_leaves_the_other_effects_as_in_redis() {
    let mut client = client();
    client.cmd(&["SET", "partial:a", "text"]);
    client.cmd(&["MULTI"]);
    client.cmd(&["SET", "partial:b", "1"]);
    client.cmd(&["INCR", "partial:a"]);
    client.cmd(&["INCR", "partial:b"]);
    let not_a_number = error("ERR value is not an integer or out of range");
    assert_eq!(client.cmd(&["EXEC"]), Value::Array(vec![ok(), not_a_number, int(2)]));
}

#[test]
fn exec_fails_when_a_watched_key_changed() {
    let (mut client, mut other) = (client(), client());
    client.cmd(&["SET", "watch:a", "1"]);
    assert_eq!(client.cmd(&["WATCH", "watch:a", "watch:none"]), ok());
    other.cmd(&["SET", "watch:a", "1"]);
    client.cmd(&["MULTI"]);
    client.cmd(&["SET", "watch:a", "2"]);
    assert_eq!(client.cmd(&["EXEC"]), Value::NullArray);
    assert_eq!(client.cmd(&["GET", "watch:a"]), bulk("1"));
    // The watch is spent: the same transaction goes through now.
    client.cmd(&["MULTI"]);
    client.cmd(&["SET", "watch:a", "2"]);
    assert_eq!(client.cmd(&["EXEC"]), Value::Array(vec![ok()]));
}

#[test]
fn a_watched_key_may_come_into_being_or_go_away() {
    let (mut client, mut other) = (client(), client());
    client.cmd(&["WATCH", "watch:new"]);
    other.cmd(&["SET", "watch:new", "1"]);
    client.cmd(&["MULTI"]);
    client.cmd(&["PING"]);
    assert_eq!(client.cmd(&["EXEC"]), Value::NullArray);
    client.cmd(&["WATCH", "watch:new"]);
    other.cmd(&["DEL", "watch:new"]);
    client.cmd(&["MULTI"]);
    client.cmd(&["PING"]);
    assert_eq!(client.cmd(&["EXEC"]), Value::NullArray);
    client.cmd(&["SET", "watch:short", "1", "PX", "100"]);
    client.cmd(&["WATCH", "watch:short"]);
    wait_for("the key to expire", Millis(10_000), || {
        (other.cmd(&["EXISTS", "watch:short"]) == int(0)).then_some(())
    });
    client.cmd(&["MULTI"]);
    client.cmd(&["PING"]);
    assert_eq!(client.cmd(&["EXEC"]), Value::NullArray);
}

#[test]
fn unwatch_discard_and_own_writes_before_the_watch_do_not_fail_exec() {
    let (mut client, mut other) = (client(), client());
    for forget in [["UNWATCH"].as_slice(), &["DISCARD"]] {
        client.cmd(&["WATCH", "unwatch:a"]);
        if forget == ["DISCARD"] {
            client.cmd(&["MULTI"]);
        }
        assert_eq!(client.cmd(forget), ok());
        other.cmd(&["INCR", "unwatch:a"]);
        client.cmd(&["MULTI"]);
        client.cmd(&["PING"]);
        assert_eq!(client.cmd(&["EXEC"]), Value::Array(vec![simple("PONG")]));
    }
    client.cmd(&["SET", "unwatch:b", "1"]);
    client.cmd(&["WATCH", "unwatch:b"]);
    client.cmd(&["MULTI"]);
    client.cmd(&["GET", "unwatch:b"]);
    assert_eq!(client.cmd(&["EXEC"]), Value::Array(vec![bulk("1")]));
}

#[test]
fn watch_makes_a_counter_of_get_and_set() {
    let mut setup = client();
    setup.cmd(&["SET", "cas:a", "0"]);
    let workers: Vec<_> = (0..4)
        .map(|_| {
            thread::spawn(|| {
                let mut client = client();
                let mut done = 0;
                while done < 100 {
                    client.cmd(&["WATCH", "cas:a"]);
                    let value: u64 = client.cmd(&["GET", "cas:a"]).text().parse().unwrap();
                    client.cmd(&["MULTI"]);
                    client.cmd(&["SET", "cas:a", &(value + 1).to_string()]);
                    if client.cmd(&["EXEC"]) != Value::NullArray {
                        done += 1;
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    assert_eq!(setup.cmd(&["GET", "cas:a"]), bulk("400"));
}

#[test]
fn nobody_sees_half_a_transaction() {
    let writer = thread::spawn(|| {
        let mut client = client();
        for n in 0..300 {
            let n = n.to_string();
            client.pipeline(&[
                vec!["MULTI"],
                vec!["SET", "half:a", &n],
                vec!["SET", "half:b", &n],
                vec!["EXEC"],
            ]);
        }
    });
    let mut reader = client();
    while !writer.is_finished() {
        let reply = reader.cmd(&["MGET", "half:a", "half:b"]);
        assert_eq!(reply.items()[0], reply.items()[1]);
    }
    writer.join().unwrap();
}

#[test]
fn very_many_keys_can_be_watched() {
    let (mut client, mut other) = (client(), client());
    let keys: Vec<String> = (0..300_000).map(|n| format!("watch:many:{n}")).collect();
    let words: Vec<&str> = ["WATCH"].into_iter().chain(keys.iter().map(String::as_str)).collect();
    assert_eq!(client.cmd(&words), ok());
    assert_eq!(client.cmd(&words), ok());
    assert!(client.cmd(&["CLIENT", "INFO"]).text().contains(" watch=300000 "));
    client.cmd(&["MULTI"]);
    assert_eq!(other.cmd(&["SET", "watch:many:299999", "1"]), ok());
    client.cmd(&["PING"]);
    assert_eq!(client.cmd(&["EXEC"]), Value::NullArray);
    assert!(client.cmd(&["CLIENT", "INFO"]).text().contains(" watch=0 "));
}

#[test]
fn more_keys_than_a_connection_may_watch_are_refused() {
    let node = Node::start(&[]);
    let mut client = node.client();
    client.set_timeout(Duration::from_secs(60));
    let keys: Vec<String> = (0..1_000_001).map(|n| n.to_string()).collect();
    let words: Vec<&str> = ["WATCH"].into_iter().chain(keys.iter().map(String::as_str)).collect();
    let refused = error("ERR a connection may watch 1000000 keys of 64 MiB at most");
    assert_eq!(client.cmd(&words), refused);
    assert_eq!(client.cmd(&["UNWATCH"]), ok());
    assert_eq!(client.cmd(&["WATCH", "a"]), ok());
}

#[test]
fn the_memory_of_queued_commands_is_shown() {
    let (mut client, mut other) = (client(), client());
    client.cmd(&["CLIENT", "SETNAME", "queues-much"]);
    client.cmd(&["MULTI"]);
    let commands: Vec<Vec<&str>> = (0..1_000).map(|_| vec!["PING"]).collect();
    client.pipeline(&commands);
    let bytes = wait_for("the queued commands to be shown", Millis(5_000), || {
        let list = other.cmd(&["CLIENT", "LIST"]).text();
        let line = list.lines().find(|line| line.contains(" name=queues-much "))?;
        let field = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name)).unwrap();
        let number = |name: &str| field(name).parse::<u64>().unwrap();
        (field("multi=") == "1000").then(|| (number("multi-mem="), number("tot-mem=")))
    });
    assert!(bytes.0 >= 150_000 && bytes.1 > bytes.0, "{bytes:?}");
}

#[test]
fn a_transaction_with_replies_beyond_the_output_limit_does_not_run() {
    let node = Node::start(&[]);
    let mut client = node.client();
    let value = vec![b'x'; 1_000_000];
    client.cmd_bytes(&[b"SET", b"big", &value]);
    let before = node.resident_bytes();
    let many = |first: Vec<Vec<u8>>, client: &mut Client| {
        client.cmd(&["MULTI"]);
        let words: Vec<&[u8]> = first.iter().map(Vec::as_slice).collect();
        assert_eq!(client.cmd_bytes(&words), queued());
        client.pipeline(&vec![vec!["GET", "big"]; 800]);
        client.cmd(&["EXEC"]).text()
    };
    let text = many(vec![b"INCR".to_vec(), b"ran".to_vec()], &mut client);
    assert!(text.starts_with("EXECABORT cmd=70 ERR the reply would take 69"), "{text}");
    assert!(text.contains(" bytes or more, and client-output-buffer-limit allows 68157440."), "{text}");
    assert_eq!(client.cmd(&["DEL", "big"]), int(1));
    // A value that the transaction itself brings.
    let text = many(vec![b"SET".to_vec(), b"big".to_vec(), value.clone()], &mut client);
    assert!(text.starts_with("EXECABORT cmd=70 ERR the reply would take 69"), "{text}");
    assert_eq!(client.cmd(&["EXISTS", "ran", "big"]), int(0));
    let after = node.resident_bytes();
    assert!(after < before + (128 << 20), "{before} bytes grew to {after}");
    client.cmd_bytes(&[b"SET", b"big", &value]);
    client.cmd(&["MULTI"]);
    client.pipeline(&vec![vec!["GET", "big"]; 20]);
    assert_eq!(client.cmd(&["EXEC"]), Value::Array(vec![Value::Bulk(value); 20]));
}
