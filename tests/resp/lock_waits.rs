//! LOCK and MLOCK with BLOCK: who waits, who gets it, and what becomes of clients that leave.

use std::io::Write;
use std::net::Shutdown;
use std::sync::OnceLock;
use std::thread;

use holdfast::types::Millis;

use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::bulk;
use crate::support::client::encode;
use crate::support::client::error;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::client::simple;
use crate::support::node::Node;
use crate::support::wait_for;

/// How long something may take before the test fails.
const PATIENCE: Millis = Millis(10_000);
/// A lease that no test outlives.
const LONG: [&str; 2] = ["PX", "600000"];

fn client() -> Client {
    static NODE: OnceLock<Node> = OnceLock::new();
    NODE.get_or_init(|| Node::start(&[])).client()
}

/// The owners in a list of LOCKS INFO, in order.
fn owners(client: &mut Client, key: &str, list: &str) -> Vec<String> {
    match client.cmd(&["LOCKS", "INFO", key]) {
        Value::Null => Vec::new(),
        info => info.field(list).items().iter().map(|one| one.items()[0].text()).collect(),
    }
}

/// Waits until exactly these owners wait for the lock.
pub fn until_waiting(client: &mut Client, key: &str, who: &[&str]) {
    wait_for(&format!("{who:?} to wait for {key}"), PATIENCE, || {
        (owners(client, key, "waiters") == who).then_some(())
    });
}

/// Waits until exactly these owners hold the lock.
pub fn until_held(client: &mut Client, key: &str, who: &[&str]) {
    wait_for(&format!("{who:?} to hold {key}"), PATIENCE, || {
        (owners(client, key, "holders") == who).then_some(())
    });
}

/// A lock with a long lease; gives its token.
pub fn hold(client: &mut Client, key: &str, owner: &str) -> i64 {
    client.cmd(&["LOCK", key, owner, LONG[0], LONG[1]]).integer()
}

/// Sends a LOCK that waits for ever, and waits until it does.
pub fn wait_behind(mut waiter: Client, eye: &mut Client, key: &str, before: &[&str], owner: &str) -> Client {
    waiter.send(&["LOCK", key, owner, LONG[0], LONG[1], "BLOCK", "0"]);
    until_waiting(eye, key, &[before, &[owner]].concat());
    waiter
}

fn id_of(client: &mut Client) -> String {
    client.cmd(&["CLIENT", "ID"]).integer().to_string()
}

#[test]
fn who_waits_is_handed_the_lock_in_the_order_of_arrival() {
    let mut holder = client();
    let first = hold(&mut holder, "wait:order", "a");
    let mut b = wait_behind(client(), &mut holder, "wait:order", &[], "b");
    let mut c = wait_behind(client(), &mut holder, "wait:order", &["b"], "c");
    assert!(b.is_quiet() && c.is_quiet());
    assert_eq!(client().cmd(&["LOCK", "wait:order", "d"]), Value::Null, "nobody passes those who wait");
    assert_eq!(holder.cmd(&["UNLOCK", "wait:order", "a"]), int(1));
    let second = b.read().integer();
    assert!(second > first && c.is_quiet());
    assert_eq!(client().cmd(&["FENCE", "wait:order", &second.to_string()]), ok());
    assert_eq!(b.cmd(&["UNLOCK", "wait:order", "b", "TOKEN", &second.to_string()]), int(1));
    assert!(c.read().integer() > second);
    assert_eq!(c.cmd(&["UNLOCK", "wait:order", "c"]), int(1));
    assert_eq!(holder.cmd(&["EXISTS", "wait:order"]), int(0), "nothing is left of it");
}

#[test]
fn a_lease_that_ends_hands_the_lock_over() {
    let (mut holder, mut waiter) = (client(), client());
    let first = holder.cmd(&["LOCK", "wait:lease", "a", "PX", "150"]).integer();
    let second = waiter.cmd(&["LOCK", "wait:lease", "b", "PX", "600000", "BLOCK", "0"]).integer();
    assert!(second > first);
    assert_eq!(holder.cmd(&["UNLOCK", "wait:lease", "a"]), int(0));
}

#[test]
fn readers_share_and_a_writer_waits_for_all_of_them() {
    let mut eye = client();
    for reader in ["r1", "r2"] {
        assert!(eye.cmd(&["LOCK", "wait:rw", reader, "SHARED"]).integer() > 0);
    }
    let mut writer = wait_behind(client(), &mut eye, "wait:rw", &[], "w");
    assert_eq!(eye.cmd(&["LOCK", "wait:rw", "r3", "SHARED"]), Value::Null, "the writer is before it");
    let mut late = client();
    late.send(&["LOCK", "wait:rw", "r3", "SHARED", "BLOCK", "0"]);
    until_waiting(&mut eye, "wait:rw", &["w", "r3"]);
    assert_eq!(eye.cmd(&["UNLOCK", "wait:rw", "r1"]), int(1));
    assert!(writer.is_quiet());
    assert_eq!(eye.cmd(&["UNLOCK", "wait:rw", "r2"]), int(1));
    let token = writer.read().integer();
    assert!(late.is_quiet());
    // A downgrade keeps the token and lets the readers in.
    assert_eq!(writer.cmd(&["LOCK", "wait:rw", "w", "SHARED"]), int(token));
    assert!(late.read().integer() > token);
    // An upgrade waits for the other reader, and has a new token.
    writer.send(&["LOCK", "wait:rw", "w", "BLOCK", "0"]);
    until_waiting(&mut eye, "wait:rw", &["w"]);
    assert_eq!(late.cmd(&["UNLOCK", "wait:rw", "r3"]), int(1));
    assert!(writer.read().integer() > token);
}

#[test]
fn a_semaphore_admits_so_many_and_then_one_for_each_that_leaves() {
    let mut eye = client();
    let place = |owner: &'static str| ["LOCK", "wait:places", owner, "SHARED", "LIMIT", "2"];
    assert!(eye.cmd(&place("a")).integer() > 0);
    assert!(eye.cmd(&place("b")).integer() > 0);
    assert_eq!(eye.cmd(&place("c")), Value::Null);
    let mut third = client();
    third.send(&[&place("c")[..], &["BLOCK", "0"]].concat());
    until_waiting(&mut eye, "wait:places", &["c"]);
    assert_eq!(eye.cmd(&["UNLOCK", "wait:places", "a"]), int(1));
    assert!(third.read().integer() > 0);
    let text = "ERR this lock is shared with LIMIT 2; ask for it with the same one";
    assert_eq!(eye.cmd(&["LOCK", "wait:places", "d", "SHARED", "LIMIT", "3"]), error(text));
}

#[test]
fn a_wait_that_is_over_is_null_as_the_protocol_writes_it() {
    let mut holder = client();
    hold(&mut holder, "wait:null", "a");
    for (protocol, lock, mlock) in [("2", "$-1\r\n", "*-1\r\n"), ("3", "_\r\n", "_\r\n")] {
        let mut waiter = client();
        waiter.cmd(&["HELLO", protocol]);
        waiter.send(&["LOCK", "wait:null", "b", "BLOCK", "50"]);
        waiter.send(&["MLOCK", "2", "wait:null", "wait:null:other", "b", "BLOCK", "50"]);
        waiter.send(&["MLOCK", "1", "wait:null", "b"]);
        waiter.send(&["QUIT"]);
        assert_eq!(waiter.read_to_close(), format!("{lock}{mlock}{mlock}+OK\r\n"));
    }
    assert_eq!(owners(&mut holder, "wait:null", "waiters"), [""; 0]);
    assert_eq!(holder.cmd(&["EXISTS", "wait:null:other"]), int(0), "a wait that is over leaves nothing");
}

#[test]
fn several_locks_are_waited_for_together() {
    let mut holder = client();
    hold(&mut holder, "wait:m:b", "a");
    let mut waiter = client();
    waiter.send(&["MLOCK", "3", "wait:m:a", "wait:m:b", "wait:m:a", "m", "PX", "600000", "BLOCK", "0"]);
    until_waiting(&mut holder, "wait:m:b", &["m"]);
    assert_eq!(owners(&mut holder, "wait:m:a", "waiters"), ["m"], "it stands in both queues");
    assert_eq!(owners(&mut holder, "wait:m:a", "holders"), [""; 0], "and holds nothing meanwhile");
    assert_eq!(holder.cmd(&["UNLOCK", "wait:m:b", "a"]), int(1));
    let tokens = waiter.read();
    let [a, b, again] = tokens.items() else { panic!("{tokens:?}") };
    assert_eq!(a, again);
    assert_ne!(a, b);
    for (key, token) in [("wait:m:a", a), ("wait:m:b", b)] {
        assert_eq!(holder.cmd(&["FENCE", key, &token.integer().to_string()]), ok());
    }
}

#[test]
fn a_pipeline_stops_at_the_lock_it_waits_for() {
    let mut holder = client();
    hold(&mut holder, "wait:pipe", "a");
    let mut waiter = client();
    let mut requests = Vec::new();
    for words in
        [&["SET", "wait:pipe:x", "1"][..], &["LOCK", "wait:pipe", "b", "BLOCK", "0"], &["GET", "wait:pipe:x"]]
    {
        encode(words.iter().map(|word| word.as_bytes()), &mut requests);
    }
    waiter.send_raw(&requests);
    assert_eq!(waiter.read(), ok(), "what stands before it is answered while it waits");
    until_waiting(&mut holder, "wait:pipe", &["b"]);
    assert!(waiter.is_quiet());
    // What is sent while it waits is read, and run afterwards.
    waiter.send(&["INCR", "wait:pipe:x"]);
    assert!(waiter.is_quiet());
    assert_eq!(holder.cmd(&["GET", "wait:pipe:x"]), bulk("1"));
    assert_eq!(holder.cmd(&["UNLOCK", "wait:pipe", "a"]), int(1));
    assert!(waiter.read().integer() > 0);
    assert_eq!((waiter.read(), waiter.read()), (bulk("1"), int(2)));
}

#[test]
fn writes_and_several_waits_in_one_packet_are_answered_in_order() {
    let mut holder = client();
    for key in ["wait:seq:a", "wait:seq:b"] {
        hold(&mut holder, key, "a");
    }
    let mut waiter = client();
    let mut requests = Vec::new();
    for words in [
        &["INCR", "wait:seq:n"][..],
        &["LOCK", "wait:seq:a", "b", "BLOCK", "0"],
        &["INCR", "wait:seq:n"],
        &["LOCK", "wait:seq:b", "b", "BLOCK", "60"],
        &["INCR", "wait:seq:n"],
    ] {
        encode(words.iter().map(|word| word.as_bytes()), &mut requests);
    }
    waiter.send_raw(&requests);
    until_waiting(&mut holder, "wait:seq:a", &["b"]);
    assert_eq!(holder.cmd(&["GET", "wait:seq:n"]), bulk("1"), "nothing behind the wait has run");
    assert_eq!(holder.cmd(&["UNLOCK", "wait:seq:a", "a"]), int(1));
    assert_eq!(waiter.read(), int(1));
    assert!(waiter.read().integer() > 0);
    assert_eq!(waiter.read(), int(2));
    assert_eq!(waiter.read(), Value::Null);
    assert_eq!(waiter.read(), int(3));
}

#[test]
fn a_client_that_leaves_while_it_waits_gives_its_place_up() {
    let mut holder = client();
    hold(&mut holder, "wait:gone", "a");
    let gone = wait_behind(client(), &mut holder, "wait:gone", &[], "b");
    let mut next = wait_behind(client(), &mut holder, "wait:gone", &["b"], "c");
    drop(gone);
    until_waiting(&mut holder, "wait:gone", &["c"]);
    assert_eq!(holder.cmd(&["UNLOCK", "wait:gone", "a"]), int(1));
    assert!(next.read().integer() > 0);
    // One that closes only its own side will not read an answer either.
    let half = wait_behind(client(), &mut holder, "wait:gone", &[], "d");
    half.writer().shutdown(Shutdown::Write).unwrap();
    until_waiting(&mut holder, "wait:gone", &[]);
}

#[test]
fn a_client_that_leaves_with_much_in_its_pipeline_gives_its_place_up() {
    let mut holder = client();
    hold(&mut holder, "wait:full", "a");
    let gone = wait_behind(client(), &mut holder, "wait:full", &[], "b");
    let mut writer = gone.writer();
    let mut request = Vec::new();
    encode([&b"SET"[..], b"wait:full:x", &[b'x'; 60_000]].into_iter(), &mut request);
    // More than is read ahead, and no more than the socket takes besides.
    for _ in 0..2 {
        writer.write_all(&request).unwrap();
    }
    drop((gone, writer));
    until_waiting(&mut holder, "wait:full", &[]);
    assert_eq!(holder.cmd(&["EXISTS", "wait:full:x"]), int(0), "nothing behind the wait has run");
}

#[test]
fn a_lock_that_was_granted_to_a_client_that_never_heard_of_it_is_taken_back() {
    let node = Node::start(&[]);
    let mut holder = node.client();
    hold(&mut holder, "undelivered", "a");
    // It reads nothing, and is sent so much that its grant cannot be written.
    let mut deaf = node.client();
    deaf.cmd(&["HELLO", "3"]);
    deaf.cmd(&["PSUBSCRIBE", "__lock__:noise*"]);
    let deaf = wait_behind(deaf, &mut holder, "undelivered", &[], "deaf");
    let noise = format!("noise{}", "x".repeat(60_000));
    let pair = [vec!["LOCK", noise.as_str(), "n"], vec!["UNLOCK", noise.as_str(), "n"]];
    for _ in 0..200 {
        holder.pipeline(&pair);
    }
    let mut next = wait_behind(node.client(), &mut holder, "undelivered", &["deaf"], "next");
    assert_eq!(holder.cmd(&["UNLOCK", "undelivered", "a"]), int(1));
    until_held(&mut holder, "undelivered", &["deaf"]);
    assert!(next.is_quiet());
    drop(deaf);
    assert!(next.read().integer() > 0);
    assert_eq!(owners(&mut holder, "undelivered", "holders"), ["next"]);
}

#[test]
fn a_client_that_leaves_just_before_its_grant_does_not_keep_the_lock() {
    let mut holder = client();
    for round in 0..200 {
        let key = format!("wait:race:{round}");
        hold(&mut holder, &key, "a");
        let gone = wait_behind(client(), &mut holder, &key, &[], "b");
        drop(gone);
        assert_eq!(holder.cmd(&["UNLOCK", &key, "a"]), int(1));
        wait_for(&format!("{key} to be free"), PATIENCE, || {
            (holder.cmd(&["EXISTS", &key]) == int(0)).then_some(())
        });
    }
}

#[test]
fn client_unblock_ends_a_wait() {
    let mut holder = client();
    hold(&mut holder, "wait:unblock", "a");
    let unblocked = error("UNBLOCKED client unblocked via CLIENT UNBLOCK");
    for (how, lock, mlock) in [
        (&[][..], Value::Null, Value::NullArray),
        (&["TIMEOUT"], Value::Null, Value::NullArray),
        (&["ERROR"], unblocked.clone(), unblocked.clone()),
    ] {
        for (words, reply) in [
            (&["LOCK", "wait:unblock", "b", "BLOCK", "0"][..], lock),
            (&["MLOCK", "1", "wait:unblock", "b", "BLOCK", "0"], mlock),
        ] {
            let mut waiter = client();
            let id = id_of(&mut waiter);
            assert_eq!(holder.cmd(&["CLIENT", "UNBLOCK", &id]), int(0), "it does not wait yet");
            waiter.send(words);
            until_waiting(&mut holder, "wait:unblock", &["b"]);
            assert_eq!(holder.cmd(&[&["CLIENT", "UNBLOCK", &id], how].concat()), int(1));
            assert_eq!(waiter.read(), reply, "{words:?} {how:?}");
            until_waiting(&mut holder, "wait:unblock", &[]);
            // The next wait is its own.
            assert_eq!(waiter.cmd(&["LOCK", "wait:unblock", "b", "BLOCK", "20"]), Value::Null);
        }
    }
    assert_eq!(owners(&mut holder, "wait:unblock", "holders"), ["a"]);
}

#[test]
fn a_waiter_that_is_killed_or_unlocked_by_others_waits_no_more() {
    let mut holder = client();
    hold(&mut holder, "wait:kill", "killed-a");
    let mut killed = client();
    let id = id_of(&mut killed);
    let mut killed = wait_behind(killed, &mut holder, "wait:kill", &[], "b");
    assert_eq!(holder.cmd(&["CLIENT", "KILL", "ID", &id]), int(1));
    assert_eq!(killed.read_to_close(), "");
    until_waiting(&mut holder, "wait:kill", &[]);
    // UNLOCK and LOCKS RELEASE by the owner's name cancel its wait, from whatever connection.
    let mut waiter = wait_behind(client(), &mut holder, "wait:kill", &[], "killed-c");
    assert_eq!(holder.cmd(&["UNLOCK", "wait:kill", "killed-c"]), int(0));
    assert_eq!(waiter.read(), Value::Null);
    let mut waiter = wait_behind(waiter, &mut holder, "wait:kill", &[], "killed-c");
    assert_eq!(holder.cmd(&["LOCKS", "RELEASE", "killed-c"]), int(1));
    assert_eq!(waiter.read(), Value::Null);
    let mut waiter = wait_behind(waiter, &mut holder, "wait:kill", &[], "killed-c");
    assert_eq!(holder.cmd(&["LOCKS", "KILL", "wait:kill", "OWNER", "killed-a", "REASON", "a test"]), int(1));
    assert!(waiter.read().integer() > 0, "breaking a hold hands it over");
}

#[test]
fn who_asks_twice_waits_once_and_both_are_told() {
    let mut holder = client();
    hold(&mut holder, "wait:twice", "a");
    let mut first = wait_behind(client(), &mut holder, "wait:twice", &[], "b");
    let mut second = client();
    second.send(&["LOCK", "wait:twice", "b", "BLOCK", "0"]);
    assert!(second.is_quiet());
    assert_eq!(
        holder.cmd(&["LOCK", "wait:twice", "b", "SHARED", "BLOCK", "0"]),
        error("ERR this owner waits for this already, in another mode")
    );
    let mut joined = client();
    assert_eq!(joined.cmd(&["LOCK", "wait:twice", "b", "BLOCK", "30"]), Value::Null, "its own time is over");
    until_waiting(&mut holder, "wait:twice", &["b"]);
    assert_eq!(holder.cmd(&["UNLOCK", "wait:twice", "a"]), int(1));
    let token = first.read();
    assert!(token.integer() > 0);
    assert_eq!(second.read(), token);
}

#[test]
fn who_asks_twice_holds_for_as_long_as_the_longer_of_both_asked() {
    let mut eye = client();
    let lease_of = |eye: &mut Client, key: &str| {
        let info = eye.cmd(&["LOCKS", "INFO", key]);
        info.field("holders").items()[0].items()[2].integer()
    };
    // The first one asks for less, and may have given up by the time.
    for (key, leaves) in [("wait:longer", false), ("wait:left", true)] {
        hold(&mut eye, key, "h");
        let (mut first, mut second) = (client(), client());
        first.send(&["LOCK", key, "me", "PX", "1000", "BLOCK", "0"]);
        until_waiting(&mut eye, key, &["me"]);
        second.send(&["LOCK", key, "me", "PX", "600000", "DATA", "second", "BLOCK", "0"]);
        assert!(second.is_quiet());
        let first = (!leaves).then_some(first);
        assert_eq!(eye.cmd(&["UNLOCK", key, "h"]), int(1));
        let token = second.read();
        assert!(token.integer() > 0);
        first.into_iter().for_each(|mut first| assert_eq!(first.read(), token));
        assert!(lease_of(&mut eye, key) > 500_000);
        assert_eq!(eye.cmd(&["LOCKS", "INFO", key]).field("data"), &bulk("second"));
    }
    // Who asked for more and left takes that along.
    hold(&mut eye, "wait:less", "h");
    let (mut first, mut second) = (client(), client());
    first.send(&["LOCK", "wait:less", "me", "PX", "5000", "BLOCK", "0"]);
    until_waiting(&mut eye, "wait:less", &["me"]);
    second.send(&["LOCK", "wait:less", "me", "PX", "600000", "BLOCK", "50"]);
    assert_eq!(second.read(), Value::Null);
    assert_eq!(eye.cmd(&["UNLOCK", "wait:less", "h"]), int(1));
    assert!(first.read().integer() > 0);
    assert!(lease_of(&mut eye, "wait:less") <= 5_000);
}

#[test]
fn a_delay_after_a_lease_is_ended_by_an_operator_or_by_who_left_it() {
    let mut eye = client();
    let delayed = |eye: &mut Client, key: &str| {
        assert!(eye.cmd(&["LOCK", key, "o", "PX", "100", "GRACE", LONG[1]]).integer() > 0);
        wait_for("the lease to end", PATIENCE, || {
            (eye.cmd(&["LOCKS", "INFO", key]).field("mode") == &bulk("delayed")).then_some(())
        });
    };
    delayed(&mut eye, "wait:delayed");
    let mut next = wait_behind(client(), &mut eye, "wait:delayed", &[], "next");
    assert!(next.is_quiet());
    assert_eq!(eye.cmd(&["LOCKS", "KILL", "wait:delayed"]), int(1));
    assert!(next.read().integer() > 0);
    delayed(&mut eye, "wait:again");
    let mut next = wait_behind(client(), &mut eye, "wait:again", &[], "next");
    assert!(hold(&mut eye, "wait:again", "o") > 0, "it passes those who wait for its own delay");
    assert_eq!(eye.cmd(&["UNLOCK", "wait:again", "o"]), int(1));
    assert!(next.read().integer() > 0, "the delay is over with its owner's return");
}

#[test]
fn those_who_wait_are_shown() {
    let node = Node::start(&[]);
    let mut holder = node.client();
    let blocked = |holder: &mut Client| {
        let info = holder.cmd(&["INFO", "clients"]).text();
        info.lines()
            .find_map(|line| line.strip_prefix("blocked_clients:").map(|n| n.trim().to_owned()))
            .unwrap()
    };
    hold(&mut holder, "shown", "a");
    assert_eq!(blocked(&mut holder), "0");
    let mut waiter = node.client();
    waiter.cmd(&["CLIENT", "SETNAME", "waits"]);
    assert_eq!(waiter.cmd(&["CLIENT", "NO-TOUCH", "ON"]), ok());
    assert_eq!(waiter.cmd(&["CLIENT", "NO-EVICT", "ON"]), ok());
    let mut waiter = wait_behind(waiter, &mut holder, "shown", &[], "b");
    let line = |holder: &mut Client| {
        let list = holder.cmd(&["CLIENT", "LIST"]).text();
        list.lines().find(|line| line.contains(" name=waits ")).unwrap().to_owned()
    };
    let shown = line(&mut holder);
    assert!(shown.contains(" flags=beT ") && shown.contains(" cmd=lock "), "{shown}");
    assert_eq!(blocked(&mut holder), "1");
    let metrics = node.http("/metrics").1;
    for wanted in ["holdfast_blocked_clients{kind=\"lock\"} 1", "holdfast_lock_waiters 1"] {
        assert!(metrics.lines().any(|line| line == wanted), "{wanted} is not in:\n{metrics}");
    }
    let info = holder.cmd(&["LOCKS", "INFO", "shown"]);
    let address = waiter.writer().local_addr().unwrap().to_string();
    assert_eq!(info.field("waiters").items()[0].items()[3], bulk(&address));
    holder.cmd(&["UNLOCK", "shown", "a"]);
    waiter.read();
    wait_for("the flag to go", PATIENCE, || line(&mut holder).contains(" flags=eT ").then_some(()));
    assert_eq!(blocked(&mut holder), "0");
}

#[test]
fn to_wait_is_not_to_be_slow() {
    let node = Node::start(&["--slowlog-log-slower-than", "0"]);
    let mut client = node.client();
    hold(&mut client, "slow", "a");
    assert_eq!(client.cmd(&["LOCK", "slow", "b", "BLOCK", "3000"]), Value::Null);
    let entries = client.cmd(&["SLOWLOG", "GET", "-1"]);
    let waited = entries.items().iter().find(|entry| entry.items()[3].items().len() == 5).unwrap();
    assert_eq!(waited.items()[3], Value::Array(["LOCK", "slow", "b", "BLOCK", "3000"].map(bulk).to_vec()));
    assert!(waited.items()[2].integer() < 3_000_000, "{waited:?}");
}

#[test]
fn waits_end_with_the_process_and_all_else_outlives_it() {
    let mut node = Node::start(&["--flush-interval", "60000"]);
    let mut client = node.client();
    let held = hold(&mut client, "kept", "a");
    let shared = client.cmd(&["LOCK", "shared", "r", "SHARED", "LIMIT", "3", "PX", "600000", "DATA", "here"]);
    let released = hold(&mut client, "released", "a").to_string();
    assert_eq!(client.cmd(&["UNLOCK", "released", "a", "TOKEN", &released]), int(1));
    let once =
        [vec!["MULTI"], vec!["ONCE", "job-1"], vec!["INCR", "n"], vec!["LOCK", "in:once", "a"], vec!["EXEC"]];
    let stored = client.pipeline(&once).pop().unwrap();
    let waiter = wait_behind(node.client(), &mut client, "kept", &[], "b");
    for end in 0..2 {
        if end == 0 {
            node.kill();
        } else {
            assert_eq!(node.stop().code(), Some(0));
        }
        node.restart();
        let mut client = node.client();
        until_waiting(&mut client, "kept", &[]);
        assert_eq!(client.cmd(&["LOCK", "kept", "a", "PX", "600000"]), int(held));
        assert_eq!(client.cmd(&["FENCE", "kept", &held.to_string()]), ok());
        let info = client.cmd(&["LOCKS", "INFO", "shared"]);
        assert_eq!((info.field("limit"), info.field("data")), (&int(3), &bulk("here")));
        assert_eq!(info.field("holders").items()[0].items()[1], shared);
        assert_eq!(client.cmd(&["UNLOCK", "released", "a", "TOKEN", &released]), int(1), "it is remembered");
        assert_eq!(client.cmd(&["UNLOCK", "released", "b", "TOKEN", &released]), int(0));
        assert_eq!(client.pipeline(&once).pop().unwrap(), stored);
        assert_eq!(client.cmd(&["GET", "n"]), bulk("1"));
    }
    drop(waiter);
    let mut client = node.client();
    assert!(client.cmd(&["LOCK", "other", "a"]).integer() > held.max(shared.integer()));
    assert_eq!(client.cmd(&["UNLOCK", "kept", "a"]), int(1));
    assert_eq!(client.cmd(&["EXISTS", "kept"]), int(0), "nobody was left who waits");
}

#[test]
fn a_pooled_client_locks_extends_and_unlocks_on_whatever_connection() {
    let workers: Vec<_> = (0..4)
        .map(|worker| {
            thread::spawn(move || {
                let mut pool: Vec<Client> = (0..3).map(|_| client()).collect();
                let owner = format!("pooled-{worker}");
                for round in 0..25 {
                    let at = |step: usize| (round + step) % 3;
                    let lock = ["LOCK", "wait:pool", &owner, "PX", "60000", "BLOCK", "0"];
                    let token = pool[at(0)].cmd(&lock).integer().to_string();
                    let extended =
                        pool[at(1)].cmd(&["LOCKEXTEND", &owner, "60000", "KEYS", "1", "wait:pool"]);
                    assert_eq!(extended.field("extended"), &int(1));
                    // The lock guards this read and write.
                    let seen = match pool[at(2)].cmd(&["GET", "wait:pool:n"]) {
                        Value::Null => 0,
                        seen => seen.number(),
                    };
                    let set = ["SET", "wait:pool:n", &(seen + 1).to_string(), "FENCE", "wait:pool", &token];
                    assert_eq!(pool[at(1)].cmd(&set), ok());
                    assert_eq!(pool[at(2)].cmd(&["UNLOCK", "wait:pool", &owner, "TOKEN", &token]), int(1));
                    assert_eq!(pool[at(0)].cmd(&["UNLOCK", "wait:pool", &owner, "TOKEN", &token]), int(1));
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    let mut client = client();
    assert_eq!(client.cmd(&["GET", "wait:pool:n"]), bulk("100"));
    assert_eq!(client.cmd(&["EXISTS", "wait:pool"]), int(0));
}

#[test]
fn nothing_remains_of_thousands_that_waited_and_left() {
    let node = Node::start(&[]);
    let mut holder = node.client();
    hold(&mut holder, "crowd", "a");
    let round = |n: usize, holder: &mut Client| {
        let crowd: Vec<Client> = (0..200)
            .map(|at| {
                let mut waiter = node.client();
                waiter.send(&[
                    "LOCK",
                    "crowd",
                    &format!("w-{n}-{at}"),
                    "DATA",
                    &"d".repeat(1024),
                    "BLOCK",
                    "0",
                ]);
                waiter
            })
            .collect();
        wait_for("the crowd to wait", Millis(30_000), || {
            (owners(holder, "crowd", "waiters").len() == 200).then_some(())
        });
        drop(crowd);
        wait_for("the crowd to leave", Millis(30_000), || {
            owners(holder, "crowd", "waiters").is_empty().then_some(())
        });
    };
    round(0, &mut holder);
    let before = node.resident_bytes();
    for n in 1..10 {
        round(n, &mut holder);
    }
    let after = node.resident_bytes();
    assert!(after < before + (32 << 20), "{before} bytes grew to {after}");
    wait_for("the connections to be gone", PATIENCE, || {
        let metrics = node.http("/metrics").1;
        let wanted = [
            "holdfast_server_connections 1",
            "holdfast_lock_waiters 0",
            "holdfast_blocked_clients{kind=\"lock\"} 0",
            "holdfast_locks_held{mode=\"exclusive\"} 1",
        ];
        wanted.iter().all(|wanted| metrics.lines().any(|line| line == *wanted)).then_some(())
    });
    assert_eq!(holder.cmd(&["UNLOCK", "crowd", "a"]), int(1));
    assert_eq!(holder.cmd(&["DBSIZE"]), int(0));
    assert_eq!(holder.cmd(&["PING"]), simple("PONG"));
}
