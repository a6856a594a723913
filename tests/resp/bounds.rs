//! How large values, replies and transactions may become.

use std::time::Duration;

use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::error;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::client::simple;
use crate::support::node::Node;

const MIB: usize = 1 << 20;
const TOO_LONG: &str = "ERR string exceeds maximum allowed size (proto-max-bulk-len)";

fn patient(node: &Node) -> Client {
    let client = node.client();
    client.set_timeout(Duration::from_secs(60));
    client
}

/// Everything between MULTI and EXEC; what EXEC answers.
fn exec(client: &mut Client, commands: &[Vec<&str>]) -> Value {
    assert_eq!(client.cmd(&["MULTI"]), ok());
    for reply in client.pipeline(commands) {
        assert_eq!(reply, simple("QUEUED"));
    }
    client.cmd(&["EXEC"])
}

fn assert_too_large(reply: &Value) {
    let text = reply.text();
    assert!(text.starts_with("ERR the reply would take "), "{text}");
    assert!(text.ends_with("Nothing was executed: ask for less, or raise the limit"), "{text}");
}

#[test]
fn a_message_that_is_too_large_for_a_reply_stays_where_it_is() {
    let node = Node::start(&["--client-output-buffer-limit", "normal", "1mb", "0", "0"]);
    let mut client = patient(&node);
    let payload = vec![b'x'; 3 * MIB];
    client.cmd_bytes(&[b"QPUSH", b"q", &payload]);
    client.cmd(&["QPUSH", "q", "behind"]);
    let refused = |reply: &Value| {
        let text = reply.text();
        assert!(text.starts_with("ERR the next message of q takes 314"), "{text}");
        assert!(text.contains("It stays where it is"), "{text}");
    };
    for words in [
        &["QPOP", "FROM", "q"][..],
        &["QPOP", "COUNT", "2", "FROM", "other", "q"],
        &["QPOP", "NOACK", "BLOCK", "0", "WITHMETA", "FROM", "q"],
    ] {
        refused(&client.cmd(words));
    }
    assert!(client.cmd(&["QPEEK", "q"]).is_error());
    assert!(exec(&mut client, &[vec!["INCR", "n"], vec!["QPOP", "FROM", "q"]]).is_error());
    assert_eq!(client.cmd(&["GET", "n"]), Value::Null);
    // Who waited is told the same, and the next in the queue as well.
    let mut waiter = patient(&node);
    waiter.send(&["QPOP", "BLOCK", "0", "FROM", "later"]);
    assert!(waiter.is_quiet());
    client.cmd_bytes(&[b"QPUSH", b"later", &payload]);
    assert!(waiter.read().text().starts_with("ERR the next message of later takes 314"));
    assert_eq!(client.cmd(&["QLEN", "later"]), int(1));
    // Whoever may take more gets it, as a first attempt, and then what is behind it.
    assert_eq!(client.cmd(&["CONFIG", "SET", "client-output-buffer-limit", "normal 64mb 0 0"]), ok());
    let popped = client.cmd(&["QPOP", "FROM", "q"]);
    assert_eq!(popped.items()[0].items()[2..], [Value::Bulk(payload), int(1)]);
    let popped = client.cmd(&["QPOP", "FROM", "q"]);
    assert_eq!(popped.items()[0].items()[2].text(), "behind");
}

#[test]
fn a_reply_above_the_limit_is_refused_and_nothing_is_changed() {
    let node = Node::start(&["--client-output-buffer-limit", "normal", "1mb", "0", "0"]);
    let mut client = patient(&node);
    let value = vec![b'x'; 2 * MIB];
    client.cmd_bytes(&[b"SET", b"big", &value]);
    for words in [
        &["GET", "big"][..],
        &["GETRANGE", "big", "0", "-2"],
        &["MGET", "none", "big"],
        &["GETEX", "big", "PX", "1"],
        &["GETSET", "big", "v"],
        &["GETDEL", "big"],
        &["SET", "big", "v", "GET"],
        &["SET", "big", "v", "NX", "GET"],
    ] {
        assert_too_large(&client.cmd(words));
    }
    assert_eq!(client.cmd(&["PTTL", "big"]), int(-1));
    assert_eq!(client.cmd(&["STRLEN", "big"]), int(2 * MIB as i64));
    // Parts of it can be had, one after the other, in one pipeline.
    let part = vec!["GETRANGE", "big", "0", "1000000"];
    for reply in client.pipeline(&vec![part; 20]) {
        assert_eq!(reply, Value::Bulk(value[..1_000_001].to_vec()));
    }
    let long = "k".repeat(60_000);
    let keys: Vec<Vec<String>> =
        (0..20).map(|n| vec!["SET".to_owned(), format!("{long}{n}"), "v".to_owned()]).collect();
    for key in &keys {
        assert_eq!(client.cmd(&key.iter().map(String::as_str).collect::<Vec<_>>()), ok());
    }
    for words in [&["KEYS", "*"][..], &["SCAN", "0", "COUNT", "100000"]] {
        assert_too_large(&client.cmd(words));
    }
    assert_eq!(client.cmd(&["KEYS", "big"]).items().len(), 1);
}

#[test]
fn what_was_accepted_can_be_read_back() {
    let node = Node::start(&[]);
    let mut client = patient(&node);
    let longest = vec![b'x'; 64 * MIB];
    client.cmd_bytes(&[b"SET", b"v", &longest]);
    let id = client.cmd_bytes(&[b"QPUSH", &[b'q'; 65_000], &longest]);
    assert!(!id.is_error());
    assert_eq!(client.pipeline(&[vec!["PING"], vec!["GET", "v"]])[1], Value::Bulk(longest.clone()));
    assert_eq!(exec(&mut client, &[vec!["GETEX", "v", "PERSIST"]]).items()[0], Value::Bulk(longest.clone()));
    let popped = client.cmd(&["QPOP", "WITHMETA", "FROM", &"q".repeat(65_000)]);
    assert_eq!(popped.items()[0].items()[2], Value::Bulk(longest));
    // The limit follows the longest argument.
    client.cmd(&["CONFIG", "SET", "proto-max-bulk-len", "70mb"]);
    let longer = vec![b'y'; 70 * MIB];
    assert_eq!(client.cmd_bytes(&[b"SET", b"v", &longer]), ok());
    assert_eq!(client.cmd(&["GET", "v"]), Value::Bulk(longer));
}

#[test]
fn no_command_makes_a_string_longer_than_an_argument_may_be() {
    let node = Node::start(&["--proto-max-bulk-len", "1mb"]);
    let mut client = patient(&node);
    let most = (MIB - 1).to_string();
    assert_eq!(client.cmd(&["SETRANGE", "a", "536870000", "Z"]), error(TOO_LONG));
    assert_eq!(client.cmd(&["SETRANGE", "a", &MIB.to_string(), "Z"]), error(TOO_LONG));
    assert_eq!(client.cmd(&["EXISTS", "a"]), int(0));
    assert_eq!(client.cmd(&["SETRANGE", "a", &most, "Z"]), int(MIB as i64));
    assert_eq!(client.cmd(&["APPEND", "a", "Z"]), error(TOO_LONG));
    // Two in one batch see each other.
    client.cmd(&["SETRANGE", "b", &(MIB - 2).to_string(), "Z"]);
    let replies = client.pipeline(&vec![vec!["APPEND", "b", "Z"]; 2]);
    assert_eq!(replies, [int(MIB as i64), error(TOO_LONG)]);
    let reply = exec(&mut client, &[vec!["APPEND", "b", "Z"], vec!["STRLEN", "b"]]);
    assert_eq!(reply, Value::Array(vec![error(TOO_LONG), int(MIB as i64)]));
    // A limit that is raised holds for what comes.
    client.cmd(&["CONFIG", "SET", "proto-max-bulk-len", "2mb"]);
    assert_eq!(client.cmd(&["APPEND", "b", "Z"]), int(MIB as i64 + 1));
}

#[test]
fn a_transaction_that_would_take_all_memory_is_ended_and_leaves_nothing() {
    let node = Node::start(&["--appendfsync", "no"]);
    let mut client = patient(&node);
    let pairs: Vec<String> = (0..60_000).flat_map(|n| [format!("key:{n}"), "v".to_owned()]).collect();
    let words: Vec<&str> = ["MSET"].into_iter().chain(pairs.iter().map(String::as_str)).collect();
    assert_eq!(client.cmd(&words), ok());
    client.cmd_bytes(&[b"SET", b"big", &vec![b'x'; 8 * MIB]]);
    client.cmd_bytes(&[b"QPUSH", b"q", &vec![b'x'; MIB]]);
    let before = node.resident_bytes();
    for heavy in [
        vec!["KEYS", "*"],
        vec!["KEYS", "none*"],
        vec!["SCAN", "0", "COUNT", "1000000"],
        vec!["LOCKS", "LIST", "0", "COUNT", "1000000"],
        vec!["QPEEK", "q"],
        vec!["GET", "big"],
        vec!["COPY", "big", "copy", "REPLACE"],
        vec!["GETEX", "big"],
        vec!["SETRANGE", "big", "60000000", "x"],
    ] {
        for first in ["INCR", "GET"] {
            let mut commands = vec![vec![first, "n"]];
            commands.extend(vec![heavy.clone(); 300]);
            let text = match exec(&mut client, &commands) {
                // It is as long as before from the second time on.
                Value::Array(replies) if heavy[0] == "SETRANGE" => {
                    assert_eq!(replies.len(), 301);
                    continue;
                }
                reply => reply.text(),
            };
            assert!(text.starts_with("EXECABORT cmd="), "{heavy:?}: {text}");
            assert!(text.contains("Nothing was executed"), "{heavy:?}: {text}");
            assert_eq!(client.cmd(&["EXISTS", "n", "copy"]), int(0), "{heavy:?}");
        }
    }
    // What the connection answers by itself keeps to the same bound, with an error in the place of what is too much.
    let reply = exec(&mut client, &vec![vec!["COMMAND", "DOCS"]; 2_000]);
    assert!(!reply.items()[0].is_error() && reply.items()[1_999].text().starts_with("ERR the reply takes "));
    let after = node.resident_bytes();
    assert!(after < before + (512 << 20), "{before} bytes grew to {after}");
    // Small ones run.
    let reply = exec(&mut client, &[vec!["INCR", "n"], vec!["KEYS", "big"], vec!["GET", "n"]]);
    assert_eq!(reply.items()[2].text(), "2");
}

#[test]
fn a_transaction_that_only_reads_leaves_nothing_in_the_log() {
    let node = Node::start(&[]);
    let (mut client, mut other) = (patient(&node), patient(&node));
    client.cmd(&["SET", "k", "v"]);
    client.cmd(&["SELECT", "1"]);
    client.cmd(&["SET", "k", "one"]);
    client.cmd(&["SELECT", "0"]);
    let proposals = |client: &mut Client| {
        let info = client.cmd(&["INFO"]).text();
        let count = info.lines().find_map(|line| line.strip_prefix("raft_proposals:")).unwrap();
        count.trim().parse::<u64>().unwrap()
    };
    let before = proposals(&mut client);
    let reads = [vec!["GET", "k"], vec!["SELECT", "1"], vec!["MGET", "k", "none"], vec!["PING"]];
    let reply = exec(&mut client, &reads);
    let values = Value::Array(vec![Value::Bulk(b"one".to_vec()), Value::Null]);
    assert_eq!(reply.items()[0].text(), "v");
    assert_eq!(reply.items()[1..], [ok(), values, simple("PONG")]);
    client.cmd(&["SELECT", "0"]);
    // An error stands among the replies; all or nothing ends with it.
    client.cmd(&["QPUSH", "q", "m"]);
    let reads = [vec!["GET", "k"], vec!["GET", "q"]];
    assert!(exec(&mut client, &reads).items()[1].text().starts_with("WRONGTYPE "));
    assert_eq!(client.cmd(&["CLIENT", "EXECMODE", "ATOMIC"]), ok());
    assert!(exec(&mut client, &reads).text().starts_with("EXECABORT cmd=2 WRONGTYPE "));
    client.cmd(&["CLIENT", "EXECMODE", "AUTO"]);
    // What was watched is compared.
    client.cmd(&["WATCH", "k"]);
    assert_eq!(exec(&mut client, &[vec!["GET", "k"]]).items().len(), 1);
    client.cmd(&["WATCH", "k"]);
    other.cmd(&["SET", "k", "w"]);
    assert_eq!(exec(&mut client, &[vec!["GET", "k"]]), Value::NullArray);
    // So is a token.
    let token = client.cmd(&["LOCK", "l", "me"]).integer().to_string();
    assert_eq!(exec(&mut client, &[vec!["FENCE", "l", &token], vec!["GET", "k"]]).items()[0], ok());
    let stale = exec(&mut client, &[vec!["GET", "k"], vec!["FENCE", "l", "7777"]]);
    assert!(stale.text().starts_with("STALETOKEN l 7777 "));
    assert_eq!(proposals(&mut client), before + 3, "the QPUSH, the SET and the LOCK");
    // What is due ends first.
    client.cmd(&["SET", "short", "v", "PX", "1"]);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(exec(&mut client, &[vec!["GET", "k"], vec!["GET", "short"]]).items()[1], Value::Null);
}
