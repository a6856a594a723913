//! LOCKS and the figures of locks: who holds what, who waits for whom, and what an operator breaks.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::thread;

use holdfast::types::Millis;

use crate::resp::lock_waits::hold;
use crate::resp::lock_waits::until_waiting;
use crate::resp::lock_waits::wait_behind;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::bulk;
use crate::support::client::bulks;
use crate::support::client::error;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::node::Node;
use crate::support::wait_for;

fn client() -> Client {
    static NODE: OnceLock<Node> = OnceLock::new();
    NODE.get_or_init(|| Node::start(&[])).client()
}

fn both_protocols() -> [(&'static str, Client); 2] {
    ["2", "3"].map(|protocol| {
        let mut client = client();
        client.cmd(&["HELLO", protocol]);
        (protocol, client)
    })
}

#[test]
fn info_shows_holders_waiters_and_data() {
    let mut setup = client();
    let setup_address = setup.writer().local_addr().unwrap().to_string();
    let token = setup.cmd(&["LOCK", "info:a", "me", "PX", "600000", "DATA", "http://me:80"]).integer();
    let waiter = wait_behind(client(), &mut setup, "info:a", &[], "you");
    let waiter_address = waiter.writer().local_addr().unwrap().to_string();
    for (protocol, mut client) in both_protocols() {
        let info = client.cmd(&["LOCKS", "INFO", "info:a"]);
        assert_eq!(matches!(info, Value::Map(_)), protocol == "3");
        let names: Vec<String> = info.pairs().iter().map(|(name, _)| name.text()).collect();
        assert_eq!(
            names,
            ["mode", "limit", "holders", "waiters", "grants", "expiries", "delay_ms", "data"],
            "RESP{protocol}"
        );
        assert_eq!(info.field("mode"), &bulk("exclusive"));
        assert_eq!(info.field("data"), &bulk("http://me:80"));
        let [holder] = info.field("holders").items() else { panic!("{info:?}") };
        let [owner, held, ttl, user, address, since] = holder.items() else { panic!("{holder:?}") };
        assert_eq!((owner, held, user), (&bulk("me"), &int(token), &bulk("default")));
        assert_eq!(address, &bulk(&setup_address));
        assert!((1..=600_000).contains(&ttl.integer()) && since.integer() >= 0, "{holder:?}");
        let [waiter] = info.field("waiters").items() else { panic!("{info:?}") };
        let [owner, mode, _, address] = waiter.items() else { panic!("{waiter:?}") };
        assert_eq!((owner, mode, address), (&bulk("you"), &bulk("exclusive"), &bulk(&waiter_address)));
        assert_eq!(client.cmd(&["LOCKS", "INFO", "info:none"]), Value::Null);
    }
}

#[test]
fn a_lock_with_grace_is_delayed_after_it_expired_and_not_after_unlock() {
    let mut client = client();
    client.cmd(&["LOCK", "grace:a", "me", "GRACE", "600000"]);
    assert_eq!(client.cmd(&["UNLOCK", "grace:a", "me"]), int(1));
    client.cmd(&["LOCK", "grace:a", "me", "PX", "100", "GRACE", "600000"]);
    let delay = wait_for("the lease to end", Millis(10_000), || {
        let info = client.cmd(&["LOCKS", "INFO", "grace:a"]);
        (info.field("mode") == &bulk("delayed")).then(|| info.field("delay_ms").integer())
    });
    assert!((1..=600_000).contains(&delay), "{delay}");
    assert_eq!(client.cmd(&["LOCK", "grace:a", "you"]), Value::Null);
    let mut brief = self::client();
    brief.cmd(&["LOCK", "grace:b", "me", "PX", "100", "GRACE", "200"]);
    assert!(brief.cmd(&["LOCK", "grace:b", "you", "BLOCK", "0"]).integer() > 0);
}

#[test]
fn list_finds_locks_by_pattern_and_owner() {
    let mut client = client();
    for n in 0..50 {
        hold(&mut client, &format!("list:{n}"), if n % 2 == 0 { "even" } else { "odd" });
    }
    client.cmd(&["SET", "list:string", "1"]);
    let _waiter = wait_behind(self::client(), &mut client, "list:0", &[], "list-waiter");
    let mut all = |words: &[&str]| {
        let (mut cursor, mut found) = ("0".to_owned(), BTreeSet::new());
        loop {
            let page = client.cmd(&[&["LOCKS", "LIST", &cursor], words].concat());
            found.extend(page.items()[1].items().iter().map(Value::text));
            cursor = page.items()[0].text();
            if cursor == "0" {
                return found;
            }
        }
    };
    assert_eq!(all(&["MATCH", "list:*"]).len(), 50);
    assert_eq!(all(&["MATCH", "list:*", "OWNER", "odd", "COUNT", "7"]).len(), 25);
    assert_eq!(all(&["OWNER", "list-waiter"]), BTreeSet::from(["list:0".to_owned()]));
    assert_eq!(all(&["MATCH", "nothing"]).len(), 0);
}

#[test]
fn the_graph_shows_who_waits_for_whom() {
    let mut setup = client();
    hold(&mut setup, "graph:a", "graph-h");
    let _first = wait_behind(client(), &mut setup, "graph:a", &[], "graph-w1");
    let _second = wait_behind(client(), &mut setup, "graph:a", &["graph-w1"], "graph-w\"2");
    for (protocol, mut client) in both_protocols() {
        let graph = client.cmd(&["LOCKS", "GRAPH"]);
        let [index, edges] = graph.items() else { panic!("{graph:?}") };
        assert!(index.integer() > 0);
        for edge in [["graph-w1", "graph:a", "graph-h"], ["graph-w\"2", "graph:a", "graph-w1"]] {
            assert!(edges.items().contains(&bulks(&edge)), "{edge:?} is not in {edges:?}");
        }
        assert_eq!(client.cmd(&["LOCKS", "GRAPH", "FORMAT", "LIST"]).items()[1], *edges);
        let dot = client.cmd(&["LOCKS", "GRAPH", "FORMAT", "DOT"]);
        assert_eq!(matches!(&dot, Value::Verbatim(format, _) if format == "txt"), protocol == "3", "{dot:?}");
        let text = dot.text();
        assert!(text.starts_with("// log index ") && text.ends_with("}\n"), "{text}");
        assert!(text.contains("\"graph-w1\" -> \"graph-h\" [label=\"graph:a\"];"), "{text}");
        let quoted = text.lines().find(|line| line.contains("style=dashed")).unwrap();
        assert!(quoted.contains("-> \"graph-w1\" [label=\"graph:a\""), "{text}");
    }
}

#[test]
fn a_deadlock_is_told_to_its_victim_and_remembered() {
    let node = Node::start(&[]);
    let (mut a, mut b) = (node.client(), node.client());
    hold(&mut a, "k1", "a");
    hold(&mut b, "k2", "b");
    a.send(&["LOCK", "k2", "a", "BLOCK", "0"]);
    until_waiting(&mut b, "k2", &["a"]);
    let cycle = "b -[k1]-> a -[k2]-> b";
    let told = error(&format!("DEADLOCK victim=b cycle=\"{cycle}\""));
    assert_eq!(b.cmd(&["LOCK", "k1", "b", "BLOCK", "0"]), told);
    assert_eq!(b.cmd(&["LOCK", "k1", "b"]), Value::Null, "who does not wait is in no cycle");
    assert!(a.is_quiet());
    let mut eye = node.client();
    for protocol in ["2", "3"] {
        eye.cmd(&["HELLO", protocol]);
        let known = eye.cmd(&["LOCKS", "DEADLOCKS"]);
        let [deadlock] = known.items() else { panic!("{known:?}") };
        assert_eq!(matches!(deadlock, Value::Map(_)), protocol == "3");
        assert_eq!((deadlock.field("victim"), deadlock.field("cycle")), (&bulk("b"), &bulk(cycle)));
        assert!(deadlock.field("index").integer() > 0 && deadlock.field("age_ms").integer() >= 0);
    }
    // The victim keeps what it holds; it gives that up, and tries again.
    assert_eq!(b.cmd(&["FENCE", "k2", "2"]), ok());
    b.cmd(&["UNLOCK", "k2", "b"]);
    assert!(a.read().integer() > 0);
    a.send(&["UNLOCK", "k1", "a"]);
    assert!(b.cmd(&["LOCK", "k1", "b", "BLOCK", "0"]).integer() > 0);
    assert_eq!(a.read(), int(1));
    // MLOCK of both in whatever order never is one.
    a.cmd(&["LOCKS", "RELEASE", "a"]);
    a.cmd(&["LOCKS", "RELEASE", "b"]);
    thread::scope(|scope| {
        for (mut client, owner, keys) in [(a, "a", ["k1", "k2"]), (b, "b", ["k2", "k1"])] {
            scope.spawn(move || {
                for _ in 0..50 {
                    let tokens = client.cmd(&["MLOCK", "2", keys[0], keys[1], owner, "BLOCK", "0"]);
                    assert_eq!(tokens.items().len(), 2);
                    assert_eq!(client.cmd(&["LOCKS", "RELEASE", owner]), int(2));
                }
            });
        }
    });
    assert_eq!(eye.cmd(&["LOCKS", "DEADLOCKS", "COUNT", "5"]).items().len(), 1);
}

#[test]
fn the_victim_is_whom_the_configuration_names() {
    let node = Node::start(&["--lock-deadlock-victim", "fewest-locks"]);
    let (mut a, mut b) = (node.client(), node.client());
    hold(&mut a, "k1", "a");
    hold(&mut a, "k3", "a");
    hold(&mut b, "k2", "b");
    let mut b = wait_behind(b, &mut a, "k1", &[], "b");
    a.send(&["LOCK", "k2", "a", "BLOCK", "0"]);
    assert!(b.read().text().starts_with("DEADLOCK victim=b cycle="));
    assert!(a.is_quiet());
    b.cmd(&["UNLOCK", "k2", "b"]);
    assert!(a.read().integer() > 0);
}

#[test]
fn release_and_kill_count_what_they_end() {
    let (mut client, mut other) = (client(), client());
    for key in ["end:a", "end:b"] {
        hold(&mut client, key, "end-me");
    }
    hold(&mut client, "end:c", "end-you");
    let mut waiter = wait_behind(other, &mut client, "end:c", &[], "end-me");
    assert_eq!(client.cmd(&["LOCKS", "RELEASE", "end-me"]), int(3));
    assert_eq!(client.cmd(&["LOCKS", "RELEASE", "end-me"]), int(0));
    assert_eq!(waiter.read(), Value::Null);
    other = waiter;
    assert_eq!(client.cmd(&["EXISTS", "end:a", "end:b"]), int(0));
    let tokens: Vec<String> = ["r1", "r2", "r3"]
        .map(|owner| other.cmd(&["LOCK", "end:d", owner, "SHARED"]).integer().to_string())
        .to_vec();
    assert_eq!(client.cmd(&["LOCKS", "KILL", "end:d", "OWNER", "r2", "REASON", "stuck"]), int(1));
    assert_eq!(client.cmd(&["LOCKS", "KILL", "end:d", "OWNER", "r2"]), int(0));
    assert_eq!(client.cmd(&["FENCE", "end:d", &tokens[1]]).error_code(), Some("STALETOKEN"));
    assert_eq!(client.cmd(&["FENCE", "end:d", &tokens[0]]), ok());
    assert_eq!(
        client.cmd(&["UNLOCK", "end:d", "r2", "TOKEN", &tokens[1]]),
        int(0),
        "it was broken, not released"
    );
    assert_eq!(client.cmd(&["LOCKS", "KILL", "end:d"]), int(2));
    assert_eq!(client.cmd(&["LOCKS", "KILL", "end:d"]), int(0));
}

#[test]
fn a_database_has_its_own_locks() {
    let (mut client, mut other) = (client(), client());
    other.cmd(&["SELECT", "1"]);
    hold(&mut client, "db:a", "db-me");
    hold(&mut other, "db:a", "db-you");
    assert_eq!(other.cmd(&["LOCKEXTEND", "db-me", "600000"]).field("extended"), &int(0));
    assert_eq!(other.cmd(&["LOCKS", "RELEASE", "db-me"]), int(0));
    assert_eq!(client.cmd(&["LOCKS", "INFO", "db:a"]).field("holders").items()[0].items()[0], bulk("db-me"));
}

#[test]
fn wrong_uses_are_told_and_change_nothing() {
    let integer = "ERR value is not an integer or out of range";
    let lease = "ERR lock lease must be between 100 milliseconds and 24 hours";
    let wrong_type = "WRONGTYPE Operation against a key holding the wrong kind of value";
    let node = Node::start(&[]);
    let mut client = node.client();
    client.cmd(&["SET", "s", "v"]);
    for protocol in ["2", "3"] {
        client.cmd(&["HELLO", protocol]);
        for (line, text) in [
            ("LOCK k", "ERR wrong number of arguments for 'lock' command"),
            ("MLOCK 1 k", "ERR wrong number of arguments for 'mlock' command"),
            ("LOCKS", "ERR wrong number of arguments for 'locks' command"),
            ("LOCKS INFO", "ERR wrong number of arguments for 'locks|info' command"),
            ("LOCK k o NX", "ERR syntax error: LOCK has no option 'NX'"),
            ("LOCK k o PX", "ERR syntax error: PX needs a value"),
            ("LOCK k o PX 1000 EX 1", "ERR syntax error: the lease is given twice"),
            ("LOCK k o PX ten", integer),
            ("LOCK k o PX 99", lease),
            ("LOCK k o EX 86401", lease),
            ("LOCK k o LIMIT 3", "ERR syntax error: LIMIT needs SHARED"),
            ("LOCK k o SHARED LIMIT 0", "ERR LIMIT must be between 1 and 100000"),
            ("LOCK k o BLOCK -1", "ERR BLOCK must be between 0 and 31536000000 milliseconds"),
            ("LOCK k o GRACE 86400001", "ERR GRACE must be between 0 and 86400000 milliseconds"),
            ("LOCK s o BLOCK 0", wrong_type),
            ("MLOCK 0 k o", "ERR MLOCK numkeys must be between 1 and 128"),
            ("MLOCK 2 k o", "ERR MLOCK numkeys does not match the number of keys: an owner follows them"),
            ("MLOCK 1 k o LIMIT 2", "ERR syntax error: MLOCK has no option 'LIMIT'"),
            ("MLOCK 2 k s o BLOCK 0", wrong_type),
            ("UNLOCK k o TOKEN x", integer),
            ("UNLOCK k o 7", "ERR syntax error: UNLOCK takes key, owner and TOKEN token"),
            ("LOCKEXTEND o 99", lease),
            ("LOCKEXTEND o 1000 KEYS 2 k", "ERR LOCKEXTEND numkeys does not match the number of keys"),
            ("LOCKS LIST x", "ERR invalid cursor"),
            ("LOCKS INFO s", wrong_type),
            (
                "LOCKS GRAPH FORMAT svg",
                "ERR syntax error: LOCKS GRAPH takes FORMAT LIST or FORMAT DOT, and LIMIT limit",
            ),
            ("LOCKS GRAPH LIMIT 10001", "ERR LIMIT must be between 1 and 10000"),
            ("LOCKS DEADLOCKS COUNT 129", "ERR COUNT must be between 1 and 128"),
            (
                "LOCKS KILL k OWNER a OWNER b",
                "ERR syntax error: LOCKS KILL takes OWNER owner and REASON text",
            ),
            ("LOCKS KILL s", wrong_type),
            ("FENCE k", "ERR wrong number of arguments for 'fence' command"),
            ("FENCE k 1 l", "ERR wrong number of arguments for 'fence' command"),
            ("FENCE k x", "ERR invalid token: want the number that LOCK gave, or the receipt that QPOP gave"),
            (
                "SET x 1 FENCE k x",
                "ERR invalid token: want the number that LOCK gave, or the receipt that QPOP gave",
            ),
            ("SET x 1 FENCE k", "ERR syntax error"),
            ("ONCE id", "ERR ONCE must be the first command after MULTI"),
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            assert_eq!(client.cmd(&words), error(text), "{line}");
        }
        let long = "o".repeat(257);
        for words in [
            &["LOCK", "k", ""][..],
            &["LOCK", "k", &long],
            &["UNLOCK", "k", &long],
            &["MLOCK", "1", "k", &long],
            &["LOCKEXTEND", &long, "1000"],
            &["LOCKS", "RELEASE", &long],
        ] {
            assert_eq!(client.cmd(words), error("ERR lock owner must be 1 to 256 bytes long"), "{words:?}");
        }
        let data = "d".repeat(1025);
        assert_eq!(
            client.cmd(&["LOCK", "k", "o", "DATA", &data]),
            error("ERR DATA must be at most 1024 bytes long")
        );
        assert_eq!(client.cmd(&["DBSIZE"]), int(1));
        assert_eq!(client.cmd(&["LOCKS", "LIST", "0"]).items()[1], Value::Array(Vec::new()));
    }
}

#[test]
fn the_figures_of_locks_are_on_the_metrics_page() {
    let node = Node::start(&[]);
    let mut client = node.client();
    // Held: two exclusive, two shared. Waits: one that is granted, one that goes on.
    hold(&mut client, "a", "me");
    hold(&mut client, "b", "me");
    for owner in ["r1", "r2"] {
        client.cmd(&["LOCK", "c", owner, "SHARED", "PX", "600000"]);
    }
    let mut granted = wait_behind(node.client(), &mut client, "a", &[], "you");
    client.cmd(&["UNLOCK", "a", "me"]);
    assert!(granted.read().integer() > 0);
    let _waits = wait_behind(node.client(), &mut client, "a", &[], "third");
    // One expires, two are killed, one is released: with `a` above, five holds have ended.
    client.cmd(&["LOCK", "e", "me", "PX", "100"]);
    wait_for("the lease to end", Millis(10_000), || (client.cmd(&["EXISTS", "e"]) == int(0)).then_some(()));
    for owner in ["k1", "k2"] {
        client.cmd(&["LOCK", "k", owner, "SHARED"]);
    }
    assert_eq!(client.cmd(&["LOCKS", "KILL", "k"]), int(2));
    client.cmd(&["LOCK", "u", "me"]);
    client.cmd(&["UNLOCK", "u", "me"]);
    // Three tokens of locks are refused, one of a queue and one of a string; one deadlock.
    client.cmd(&["FENCE", "a", "1"]);
    client.cmd(&["SET", "x", "1", "FENCE", "a", "1"]);
    client.pipeline(&[vec!["MULTI"], vec!["FENCE", "none", "1"], vec!["EXEC"]]);
    client.cmd(&["QPUSH", "q", "m"]);
    client.cmd(&["FENCE", "q", "1-1:1"]);
    client.cmd(&["SET", "s", "v"]);
    client.cmd(&["FENCE", "s", "1"]);
    hold(&mut granted, "d", "you");
    let _closes = wait_behind(node.client(), &mut client, "d", &[], "me");
    assert_eq!(granted.cmd(&["LOCK", "b", "you", "BLOCK", "0"]).error_code(), Some("DEADLOCK"));
    let metrics = node.http("/metrics").1;
    for line in [
        "holdfast_locks_held{mode=\"exclusive\"} 3",
        "holdfast_locks_held{mode=\"shared\"} 2",
        "holdfast_lock_waiters 2",
        "holdfast_blocked_clients{kind=\"lock\"} 2",
        "holdfast_lock_wait_seconds_count 1",
        "holdfast_lock_hold_seconds_count 5",
        "holdfast_lock_expired_total 1",
        "holdfast_lock_killed_total 2",
        "holdfast_deadlocks_total 1",
        "holdfast_fence_rejected_total{type=\"lock\"} 3",
        "holdfast_fence_rejected_total{type=\"queue\"} 1",
        "holdfast_fence_rejected_total{type=\"string\"} 1",
        "holdfast_lease_grace_applied_total 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in:\n{metrics}");
    }
}
