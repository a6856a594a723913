//! Keys of any type: expiry, names, SCAN.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use holdfast::types::Millis;

use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::bulk;
use crate::support::client::bulks;
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
fn a_key_with_a_time_to_live_goes_away_by_itself() {
    let mut client = client();
    assert_eq!(client.cmd(&["SET", "keys:short", "v", "PX", "50"]), ok());
    assert_eq!(client.cmd(&["SET", "keys:lasting", "v"]), ok());
    wait_for("the key to expire", Millis(10_000), || {
        (client.cmd(&["GET", "keys:short"]) == Value::Null).then_some(())
    });
    assert_eq!(client.cmd(&["EXISTS", "keys:short"]), int(0));
    assert_eq!(client.cmd(&["TTL", "keys:short"]), int(-2));
    assert_eq!(client.cmd(&["TYPE", "keys:short"]), simple("none"));
    assert_eq!(client.cmd(&["TTL", "keys:lasting"]), int(-1));
}

#[test]
fn untouched_keys_expire_too() {
    let node = Node::start(&[]);
    let mut client = node.client();
    for n in 0..500 {
        client.cmd(&["SET", &format!("k{n}"), "v", "PX", "20"]);
    }
    // DBSIZE touches no key: it falls only when the node itself ends what is due.
    wait_for("the keys to go", Millis(10_000), || (client.cmd(&["DBSIZE"]) == int(0)).then_some(()));
}

#[test]
fn lifetimes_can_be_set_read_and_taken_away() {
    let mut client = client();
    client.cmd(&["SET", "ttl:a", "v"]);
    assert_eq!(client.cmd(&["EXPIRE", "ttl:none", "10"]), int(0));
    assert_eq!(client.cmd(&["EXPIRE", "ttl:a", "100"]), int(1));
    assert_eq!(client.cmd(&["TTL", "ttl:a"]), int(100));
    let left = client.cmd(&["PTTL", "ttl:a"]).integer();
    assert!((90_000..=100_000).contains(&left), "{left}");
    assert_eq!(client.cmd(&["EXPIRE", "ttl:a", "200", "NX"]), int(0));
    assert_eq!(client.cmd(&["EXPIRE", "ttl:a", "50", "GT"]), int(0));
    assert_eq!(client.cmd(&["EXPIRE", "ttl:a", "200", "GT"]), int(1));
    assert_eq!(client.cmd(&["EXPIRE", "ttl:a", "150", "LT"]), int(1));
    assert_eq!(client.cmd(&["EXPIRE", "ttl:a", "170", "XX"]), int(1));
    let refused = client.cmd(&["EXPIRE", "ttl:a", "1", "NX", "XX"]);
    assert_eq!(refused, error("ERR NX and XX, GT or LT options at the same time are not compatible"));
    assert_eq!(client.cmd(&["EXPIRE", "ttl:a", "1", "YY"]), error("ERR Unsupported option YY"));
    let refused = client.cmd(&["EXPIRE", "ttl:a", "9223372036854775807"]);
    assert_eq!(refused, error("ERR invalid expire time in 'expire' command"));
    assert_eq!(client.cmd(&["PERSIST", "ttl:a"]), int(1));
    assert_eq!(client.cmd(&["PERSIST", "ttl:a"]), int(0));
    assert_eq!(client.cmd(&["EXPIRETIME", "ttl:a"]), int(-1));
    let now: i64 = client.cmd(&["TIME"]).items()[0].text().parse().unwrap();
    assert_eq!(client.cmd(&["EXPIREAT", "ttl:a", &(now + 500).to_string()]), int(1));
    let at = client.cmd(&["EXPIRETIME", "ttl:a"]).integer();
    assert!((at - now - 500).abs() <= 2, "{at} for {now} + 500");
    assert_eq!(client.cmd(&["PEXPIREAT", "ttl:a", "1"]), int(1));
    assert_eq!(client.cmd(&["EXISTS", "ttl:a"]), int(0));
    client.cmd(&["SET", "ttl:a", "v"]);
    assert_eq!(client.cmd(&["EXPIRE", "ttl:a", "-1"]), int(1));
    assert_eq!(client.cmd(&["EXISTS", "ttl:a"]), int(0));
}

#[test]
fn keys_can_be_renamed_and_copied() {
    let mut client = client();
    client.cmd(&["MSET", "name:a", "1", "name:b", "2"]);
    client.cmd(&["EXPIRE", "name:a", "100"]);
    assert_eq!(client.cmd(&["RENAME", "name:none", "name:x"]), error("ERR no such key"));
    assert_eq!(client.cmd(&["RENAMENX", "name:a", "name:b"]), int(0));
    assert_eq!(client.cmd(&["RENAME", "name:a", "name:b"]), ok());
    assert_eq!(client.cmd(&["GET", "name:b"]), bulk("1"));
    assert_eq!(client.cmd(&["TTL", "name:b"]), int(100));
    assert_eq!(client.cmd(&["COPY", "name:b", "name:c"]), int(1));
    assert_eq!(client.cmd(&["COPY", "name:b", "name:c"]), int(0));
    assert_eq!(client.cmd(&["SET", "name:b", "3"]), ok());
    assert_eq!(client.cmd(&["COPY", "name:b", "name:c", "REPLACE"]), int(1));
    assert_eq!(client.cmd(&["GET", "name:c"]), bulk("3"));
    assert_eq!(client.cmd(&["COPY", "name:b", "name:d", "DB", "5"]), int(1));
    assert_eq!(client.cmd(&["MOVE", "name:b", "5"]), int(1));
    assert_eq!(client.cmd(&["EXISTS", "name:b"]), int(0));
    client.cmd(&["SELECT", "5"]);
    assert_eq!(client.cmd(&["MGET", "name:d", "name:b"]), bulks(&["3", "3"]));
    assert_eq!(client.cmd(&["TOUCH", "name:d", "name:none"]), int(1));
    assert_eq!(client.cmd(&["TYPE", "name:d"]), simple("string"));
    assert_eq!(client.cmd(&["OBJECT", "ENCODING", "name:d"]), bulk("int"));
}

/// All keys a SCAN loop gives, once each, and how many calls it took.
fn scan(client: &mut Client, options: &[&str]) -> (BTreeSet<String>, usize) {
    let (mut cursor, mut found, mut calls) = ("0".to_owned(), BTreeSet::new(), 0);
    loop {
        let words: Vec<&str> = ["SCAN", &cursor].into_iter().chain(options.iter().copied()).collect();
        let reply = client.cmd(&words);
        calls += 1;
        found.extend(reply.items()[1].items().iter().map(Value::text));
        cursor = reply.items()[0].text();
        if cursor == "0" {
            return (found, calls);
        }
        assert!(calls < 10_000, "SCAN does not end");
    }
}

#[test]
fn scan_gives_every_key_that_was_there_all_the_time() {
    let node = Node::start(&[]);
    let mut client = node.client();
    assert_eq!(client.cmd(&["SCAN", "0"]), Value::Array(vec![bulk("0"), Value::Array(Vec::new())]));
    let sets: Vec<Vec<String>> =
        (0..5_000).map(|n| vec!["SET".to_owned(), format!("key:{n}"), "v".to_owned()]).collect();
    client.pipeline(&sets);
    assert_eq!(client.cmd(&["DBSIZE"]), int(5_000));
    let (found, calls) = scan(&mut client, &["COUNT", "100"]);
    assert_eq!(found.len(), 5_000);
    assert!(calls > 10, "{calls} calls");
    let (found, _) = scan(&mut client, &["MATCH", "key:*77", "COUNT", "1000"]);
    assert_eq!(found.len(), 50);
    client.cmd(&["LOCK", "a-lock", "me"]);
    client.cmd(&["QPUSH", "a-queue", "m"]);
    assert_eq!(scan(&mut client, &["TYPE", "lock"]).0, BTreeSet::from(["a-lock".to_owned()]));
    assert_eq!(scan(&mut client, &["TYPE", "queue"]).0, BTreeSet::from(["a-queue".to_owned()]));
    assert_eq!(scan(&mut client, &["TYPE", "string"]).0.len(), 5_000);

    // Keys come and go while somebody scans: what stays is seen.
    let (mut cursor, mut seen, mut step) = ("0".to_owned(), BTreeSet::new(), 0);
    loop {
        let reply = client.cmd(&["SCAN", &cursor, "COUNT", "50"]);
        seen.extend(reply.items()[1].items().iter().map(Value::text));
        cursor = reply.items()[0].text();
        if cursor == "0" {
            break;
        }
        for n in 0..50 {
            client.cmd(&["SET", &format!("new:{step}:{n}"), "v"]);
            client.cmd(&["DEL", &format!("key:{}", 2_500 + (step * 50 + n) % 2_500)]);
        }
        step += 1;
    }
    assert!((0..2_500).all(|n| seen.contains(&format!("key:{n}"))));
    assert_eq!(client.cmd(&["SCAN", "abc"]), error("ERR invalid cursor"));
    assert_eq!(client.cmd(&["SCAN", "0", "COUNT", "0"]), error("ERR syntax error"));
}

#[test]
fn keys_takes_a_pattern() {
    let node = Node::start(&[]);
    let mut client = node.client();
    client.cmd(&["MSET", "hello", "1", "hallo", "2", "hxllo", "3", "other", "4"]);
    let mut matching = |pattern: &str| {
        let reply = client.cmd(&["KEYS", pattern]);
        reply.items().iter().map(Value::text).collect::<BTreeSet<String>>()
    };
    let set = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<BTreeSet<String>>();
    assert_eq!(matching("h?llo"), set(&["hello", "hallo", "hxllo"]));
    assert_eq!(matching("h[ae]llo"), set(&["hello", "hallo"]));
    assert_eq!(matching("h[^e]llo"), set(&["hallo", "hxllo"]));
    assert_eq!(matching("*").len(), 4);
    assert_eq!(matching("none*").len(), 0);
    assert!(matching("*").contains(&client.cmd(&["RANDOMKEY"]).text()));
}

#[test]
fn a_flush_spares_locks_and_queues() {
    let node = Node::start(&[]);
    let mut client = node.client();
    assert_eq!(client.cmd(&["RANDOMKEY"]), Value::Null);
    client.cmd(&["MSET", "a", "1", "b", "2"]);
    let token = client.cmd(&["LOCK", "job", "me"]).integer();
    client.cmd(&["QPUSH", "jobs", "payload"]);
    client.cmd(&["SELECT", "1"]);
    client.cmd(&["SET", "c", "3"]);
    assert_eq!(client.cmd(&["FLUSHDB"]), ok());
    assert_eq!(client.cmd(&["DBSIZE"]), int(0));
    client.cmd(&["SET", "c", "3"]);
    client.cmd(&["SELECT", "0"]);
    assert_eq!(client.cmd(&["GET", "a"]), bulk("1"));
    assert_eq!(client.cmd(&["FLUSHALL"]), ok());
    assert_eq!(client.cmd(&["EXISTS", "a", "b"]), int(0));
    assert_eq!(client.cmd(&["LOCK", "job", "me"]), int(token));
    assert_eq!(client.cmd(&["QLEN", "jobs"]), int(1));
    client.cmd(&["SELECT", "1"]);
    assert_eq!(client.cmd(&["EXISTS", "c"]), int(0));
}

#[test]
fn cursors_and_small_integers_are_read_as_in_redis() {
    let mut client = client();
    let done = Value::Array(vec![bulk("0"), Value::Array(Vec::new())]);
    assert_eq!(client.cmd(&["SCAN", "-1"]), done);
    assert_eq!(client.cmd(&["SCAN", "18446744073709551615"]), done);
    assert_eq!(client.cmd(&["SCAN", "18446744073709551616"]), error("ERR invalid cursor"));
    client.cmd(&["MSET", "shared:small", "9999", "shared:large", "10000"]);
    assert_eq!(client.cmd(&["OBJECT", "REFCOUNT", "shared:small"]), int(2_147_483_647));
    assert_eq!(client.cmd(&["OBJECT", "REFCOUNT", "shared:large"]), int(1));
}
