//! LOCK, UNLOCK and LOCKEXTEND without waits: COMMANDS.md 2.2.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::thread;

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

#[test]
fn a_lock_has_one_owner_and_a_token() {
    let (mut client, mut other) = (client(), client());
    let token = client.cmd(&["LOCK", "lock:a", "alice"]).integer();
    assert!(token > 0);
    assert_eq!(other.cmd(&["LOCK", "lock:a", "bob"]), Value::Null);
    assert_eq!(client.cmd(&["LOCK", "lock:a", "alice", "PX", "60000"]), int(token), "the same hold");
    assert_eq!(other.cmd(&["LOCK", "lock:a", "alice"]), int(token), "an owner is not a connection");
    assert_eq!(client.cmd(&["TYPE", "lock:a"]), simple("lock"));
    assert_eq!(client.cmd(&["EXISTS", "lock:a"]), int(1));
    assert_eq!(other.cmd(&["UNLOCK", "lock:a", "bob"]), int(0));
    assert_eq!(client.cmd(&["UNLOCK", "lock:a", "alice", "TOKEN", "1"]), int(i64::from(token == 1)));
    assert_eq!(client.cmd(&["UNLOCK", "lock:a", "alice", "TOKEN", &token.to_string()]), int(1));
    assert_eq!(client.cmd(&["UNLOCK", "lock:a", "alice"]), int(0));
    let next = other.cmd(&["LOCK", "lock:a", "bob"]).integer();
    assert!(next > token, "{next} after {token}");
}

#[test]
fn a_lease_that_ends_frees_the_lock_for_a_greater_token() {
    let (mut client, mut other) = (client(), client());
    let token = client.cmd(&["LOCK", "lock:lease", "alice", "PX", "100"]).integer();
    let next = wait_for("the lease to end", Millis(10_000), || {
        match other.cmd(&["LOCK", "lock:lease", "bob", "EX", "30"]) {
            Value::Integer(next) => Some(next),
            _ => None,
        }
    });
    assert!(next > token, "{next} after {token}");
    assert_eq!(client.cmd(&["UNLOCK", "lock:lease", "alice"]), int(0));
    assert_eq!(
        client.cmd(&["LOCKEXTEND", "alice", "1000", "KEYS", "1", "lock:lease"]).field("extended"),
        &int(0)
    );
}

#[test]
fn all_locks_of_an_owner_are_extended_at_once() {
    let mut client = client();
    let held: Vec<i64> = ["extend:a", "extend:b", "extend:c"]
        .iter()
        .map(|key| client.cmd(&["LOCK", key, "extender", "PX", "200"]).integer())
        .collect();
    let reply = client.cmd(&["LOCKEXTEND", "extender", "60000"]);
    assert_eq!(reply.field("extended"), &int(3));
    assert_eq!(reply.field("lost"), &Value::Array(Vec::new()));
    let named = client.cmd(&["LOCKEXTEND", "extender", "60000", "KEYS", "2", "extend:b", "extend:none"]);
    assert_eq!(named.field("extended"), &int(1));
    assert_eq!(named.field("lost"), &Value::Array(vec![bulk("extend:none")]));
    assert_eq!(client.cmd(&["LOCK", "extend:c", "extender"]), int(held[2]), "never granted anew");
    client.cmd(&["HELLO", "3"]);
    assert!(matches!(client.cmd(&["LOCKEXTEND", "nobody", "1000"]), Value::Map(_)));
}

#[test]
fn many_who_want_a_lock_get_it_one_after_another() {
    let workers: Vec<_> = (0..4)
        .map(|worker| {
            thread::spawn(move || {
                let mut client = client();
                let owner = format!("worker-{worker}");
                let mut tokens = Vec::new();
                while tokens.len() < 25 {
                    let Value::Integer(token) = client.cmd(&["LOCK", "lock:many", &owner, "EX", "60"]) else {
                        continue;
                    };
                    // The lock guards this read and write; without it updates would be lost.
                    let seen: i64 = match client.cmd(&["GET", "lock:many:count"]) {
                        Value::Null => 0,
                        count => count.text().parse().unwrap(),
                    };
                    assert_eq!(client.cmd(&["SET", "lock:many:count", &(seen + 1).to_string()]), ok());
                    assert_eq!(
                        client.cmd(&["UNLOCK", "lock:many", &owner, "TOKEN", &token.to_string()]),
                        int(1)
                    );
                    tokens.push(token);
                }
                assert!(tokens.is_sorted_by(|a, b| a < b));
                tokens
            })
        })
        .collect();
    let tokens: Vec<i64> = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
    assert_eq!(tokens.iter().collect::<BTreeSet<_>>().len(), 100, "no token twice");
    assert_eq!(client().cmd(&["GET", "lock:many:count"]), bulk("100"));
}

#[test]
fn a_lock_is_no_other_type() {
    let mut client = client();
    client.cmd(&["LOCK", "type:lock", "me"]);
    client.cmd(&["SET", "type:string", "v"]);
    for command in [
        &["GET", "type:lock"][..],
        &["INCR", "type:lock"],
        &["DEL", "type:lock"],
        &["EXPIRE", "type:lock", "1"],
        &["RENAME", "type:lock", "type:other"],
        &["QPUSH", "type:lock", "m"],
        &["LOCK", "type:string", "me"],
        &["UNLOCK", "type:string", "me"],
    ] {
        assert!(client.cmd(command).text().starts_with("WRONGTYPE "), "{command:?}");
    }
    assert!(client.cmd(&["DEL", "type:lock"]).text().contains("UNLOCK"), "the text names the right verb");
    assert_eq!(client.cmd(&["UNLOCK", "type:lock", "me"]), int(1));
    assert_eq!(client.cmd(&["TYPE", "type:lock"]), simple("none"));
}

#[test]
fn what_is_not_a_lock_command_is_refused() {
    let mut client = client();
    assert_eq!(client.cmd(&["LOCK", "bad:a"]), error("ERR wrong number of arguments for 'lock' command"));
    assert_eq!(client.cmd(&["LOCK", "bad:a", "me", "PX"]), error("ERR syntax error: PX needs a value"));
    assert_eq!(
        client.cmd(&["LOCK", "bad:a", "me", "PX", "x"]),
        error("ERR value is not an integer or out of range")
    );
    for lease in ["0", "99", "86400001", "-5"] {
        assert!(client.cmd(&["LOCK", "bad:a", "me", "PX", lease]).is_error(), "{lease}");
    }
    assert!(client.cmd(&["LOCK", "bad:a", &"o".repeat(257)]).is_error());
    assert_eq!(client.cmd(&["EXISTS", "bad:a"]), int(0));
}
