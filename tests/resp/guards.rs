//! FENCE, ONCE, and transactions that are all or nothing: COMMANDS.md 2.1.

use std::sync::OnceLock;

use holdfast::types::Millis;

use crate::resp::lock_waits::hold;
use crate::resp::lock_waits::wait_behind;
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

/// Sends these lines between MULTI and EXEC, each of which is queued, and gives EXEC's reply.
fn exec(client: &mut Client, lines: &[&str]) -> Value {
    let commands = lines.iter().map(|line| line.split(' ').collect());
    let commands: Vec<Vec<&str>> =
        [vec!["MULTI"]].into_iter().chain(commands).chain([vec!["EXEC"]]).collect();
    let mut replies = client.pipeline(&commands);
    let reply = replies.pop().unwrap();
    assert_eq!(replies.remove(0), ok());
    assert!(replies.iter().all(|reply| *reply == simple("QUEUED")), "{replies:?}");
    reply
}

fn array(items: &[Value]) -> Value {
    Value::Array(items.to_vec())
}

#[test]
fn fence_says_whether_tokens_are_current() {
    let mut client = client();
    let a = hold(&mut client, "fence:a", "me").to_string();
    let b = hold(&mut client, "fence:b", "me").to_string();
    assert_eq!(client.cmd(&["FENCE", "fence:a", &a]), ok());
    assert_eq!(client.cmd(&["FENCE", "fence:a", &a, "fence:b", &b]), ok());
    assert_eq!(
        client.cmd(&["FENCE", "fence:a", &a, "fence:b", &a]),
        error(&format!("STALETOKEN fence:b {a} current={b}"))
    );
    client.cmd(&["UNLOCK", "fence:a", "me"]);
    assert_eq!(client.cmd(&["FENCE", "fence:a", &a]), error(&format!("STALETOKEN fence:a {a} current=none")));
    let next = hold(&mut client, "fence:a", "you");
    assert_eq!(
        client.cmd(&["FENCE", "fence:a", &a]),
        error(&format!("STALETOKEN fence:a {a} current={next}"))
    );
    assert_eq!(client.cmd(&["FENCE", "fence:none", "1"]), error("STALETOKEN fence:none 1 current=none"));
}

#[test]
fn a_lease_that_ended_fences_off_its_holder() {
    let mut client = client();
    let token = client.cmd(&["LOCK", "fence:lease", "me", "PX", "100"]).integer();
    wait_for("the lease to end", Millis(10_000), || {
        let reply = client.cmd(&["FENCE", "fence:lease", &token.to_string()]);
        (reply == error(&format!("STALETOKEN fence:lease {token} current=none"))).then_some(())
    });
    let set = format!("SET fence:lease:x 1 FENCE fence:lease {token}");
    let stale = exec(&mut client, &[&format!("FENCE fence:lease {token}"), "SET fence:lease:x 1"]);
    assert_eq!(stale.error_code(), Some("STALETOKEN"));
    assert_eq!(client.cmd(&set.split(' ').collect::<Vec<_>>()).error_code(), Some("STALETOKEN"));
    assert_eq!(client.cmd(&["EXISTS", "fence:lease:x"]), int(0));
}

#[test]
fn a_receipt_is_a_token_too() {
    let mut client = client();
    client.cmd(&["QPUSH", "fence:q", "payload"]);
    let popped = client.cmd(&["QPOP", "LEASE", "60000", "FROM", "fence:q"]);
    let receipt = popped.items()[0].items()[1].text();
    assert_eq!(client.cmd(&["FENCE", "fence:q", &receipt]), ok());
    let id = receipt.strip_suffix(":1").unwrap();
    assert_eq!(
        client.cmd(&["FENCE", "fence:q", &format!("{id}:2")]),
        error(&format!("STALETOKEN fence:q {id}:2 current={receipt}"))
    );
    let done = exec(
        &mut client,
        &[&format!("FENCE fence:q {receipt}"), "SET fence:q:done 1", &format!("QACK fence:q {receipt}")],
    );
    assert_eq!(done, array(&[ok(), ok(), int(1)]));
    // Sent again it does nothing: the message is finished.
    let again = exec(
        &mut client,
        &[&format!("FENCE fence:q {receipt}"), "SET fence:q:done 2", &format!("QACK fence:q {receipt}")],
    );
    assert_eq!(again, error(&format!("STALETOKEN fence:q {receipt} current=none")));
    assert_eq!(client.cmd(&["GET", "fence:q:done"]), bulk("1"));
}

#[test]
fn a_fence_in_a_transaction_stands_before_all_effects() {
    let mut client = client();
    let token = hold(&mut client, "fence:tx", "me");
    let fence = format!("FENCE fence:tx {token}");
    let done = exec(&mut client, &["SET fence:tx:x 1", &fence, "INCR fence:tx:x"]);
    assert_eq!(done, array(&[ok(), ok(), int(2)]));
    // The guard is looked at first: that the transaction itself releases the lock before it does not matter.
    let released = exec(&mut client, &["UNLOCK fence:tx me", &fence]);
    assert_eq!(released, array(&[int(1), ok()]));
    let stale = exec(&mut client, &["SET fence:tx:x 9", "LOCK fence:tx:other me", &fence]);
    assert_eq!(stale, error(&format!("STALETOKEN fence:tx {token} current=none")));
    assert_eq!(client.cmd(&["GET", "fence:tx:x"]), bulk("2"));
    assert_eq!(client.cmd(&["EXISTS", "fence:tx:other"]), int(0));
}

#[test]
fn a_set_with_a_fence_is_refused_without_the_lock() {
    let mut client = client();
    let token = hold(&mut client, "set:lock", "me").to_string();
    assert_eq!(client.cmd(&["SET", "set:x", "1", "FENCE", "set:lock", &token]), ok());
    assert_eq!(
        client.cmd(&["SET", "set:x", "2", "EX", "100", "XX", "GET", "FENCE", "set:lock", &token]),
        bulk("1")
    );
    let stale = error(&format!("STALETOKEN set:lock 999 current={token}"));
    assert_eq!(client.cmd(&["SET", "set:x", "3", "FENCE", "set:lock", "999"]), stale);
    assert_eq!(exec(&mut client, &["SET set:y 1", "SET set:x 3 FENCE set:lock 999"]), stale);
    assert_eq!(client.cmd(&["GET", "set:x"]), bulk("2"));
    assert_eq!(client.cmd(&["EXISTS", "set:y"]), int(0));
    assert_eq!(client.cmd(&["SET", "set:x", "3", "FENCE", "set:lock"]), error("ERR syntax error"));
}

#[test]
fn a_lock_that_is_not_to_be_had_aborts_the_transaction() {
    let mut client = client();
    hold(&mut client, "multi:held", "somebody");
    for line in
        ["LOCK multi:held me", "LOCK multi:held me BLOCK 0", "MLOCK 2 multi:free multi:held me BLOCK 0"]
    {
        let reply =
            exec(&mut client, &["SET multi:x 1", "LOCK multi:mine me", line, "QPUSH multi:q m"]).text();
        let ttl =
            reply.strip_prefix("LOCKED multi:held holder=somebody ttl=").unwrap_or_else(|| panic!("{reply}"));
        assert!((1..=600_000).contains(&ttl.parse::<u64>().unwrap()), "{reply}");
        assert_eq!(client.cmd(&["EXISTS", "multi:x", "multi:mine", "multi:free", "multi:q"]), int(0));
        assert_eq!(client.cmd(&["LOCKS", "INFO", "multi:held"]).field("waiters"), &array(&[]));
    }
    let done =
        exec(&mut client, &["LOCK multi:mine me", "MLOCK 2 multi:free multi:mine me", "SET multi:x 1"]);
    let [mine, both, set] = done.items() else { panic!("{done:?}") };
    assert_eq!((&both.items()[1], set), (mine, &ok()));
}

#[test]
fn an_error_in_an_atomic_transaction_names_the_command_as_it_was_sent() {
    let mut client = client();
    client.cmd(&["SET", "abort:text", "text"]);
    let not_a_number = "ERR value is not an integer or out of range";
    for (lines, n) in [
        (&["FENCE abort:l {t}", "INCR abort:text"][..], 2),
        (&["PING", "FENCE abort:l {t}", "ECHO x", "SET abort:x 1", "PING", "INCR abort:text"], 6),
        (&["QPUSH abort:q m", "ECHO x", "INCR abort:text", "INCR abort:text"], 3),
        (&["INCR abort:text", "PING", "LOCK abort:new me"], 1),
        (&["ONCE abort-id", "PING", "INCR abort:text"], 3),
    ] {
        let token = hold(&mut client, "abort:l", "me").to_string();
        let lines: Vec<String> = lines.iter().map(|line| line.replace("{t}", &token)).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_eq!(
            exec(&mut client, &lines),
            error(&format!("EXECABORT cmd={n} {not_a_number}")),
            "{lines:?}"
        );
        assert_eq!(client.cmd(&["EXISTS", "abort:x", "abort:q", "abort:new"]), int(0), "{lines:?}");
    }
    // What failed is not remembered: the name is free.
    assert_eq!(exec(&mut client, &["ONCE abort-id", "PING"]), array(&[ok(), simple("PONG")]));
    let flush = exec(&mut client, &["LOCK abort:new me", "FLUSHALL"]).text();
    assert!(flush.starts_with("EXECABORT cmd=2 ERR "), "{flush}");
    assert_eq!(client.cmd(&["GET", "abort:text"]), bulk("text"));
}

#[test]
fn a_transaction_that_fails_leaves_no_trace() {
    let node = Node::start(&[]);
    let mut client = node.client();
    client.cmd(&["SET", "text", "old", "PX", "600000"]);
    client.cmd(&["SET", "gone", "x"]);
    client.cmd(&["SET", "n", "7"]);
    let held = hold(&mut client, "held", "me");
    let shared = client.cmd(&["LOCK", "shared", "r", "SHARED", "LIMIT", "2", "PX", "600000"]);
    let id = client.cmd(&["QPUSH", "queue", "first"]).text();
    client.cmd(&["QPUSH", "flight", "second"]);
    let popped = client.cmd(&["QPOP", "LEASE", "600000", "FROM", "flight"]);
    let receipt = popped.items()[0].items()[1].text();
    let mut waiter = wait_behind(node.client(), &mut client, "held", &[], "w");
    let look = |client: &mut Client| {
        let mut seen = vec![client.cmd(&["DBSIZE"])];
        for key in ["text", "gone", "n", "new"] {
            seen.push(client.cmd(&["GET", key]));
        }
        for (key, state) in [("queue", "READY"), ("queue", "LEASED"), ("flight", "LEASED"), ("pushed", "ALL")]
        {
            seen.push(client.cmd(&["QLEN", key, state]));
        }
        for key in ["held", "shared", "new:lock"] {
            let info = client.cmd(&["LOCKS", "INFO", key]);
            if info == Value::Null {
                seen.push(info);
                continue;
            }
            for name in ["mode", "limit", "grants", "expiries", "data"] {
                seen.push(info.field(name).clone());
            }
            // Owner and token; the rest are times.
            let holder = |holder: &Value| Value::Array(holder.items()[..2].to_vec());
            seen.push(Value::Array(info.field("holders").items().iter().map(holder).collect()));
            let waiter = |waiter: &Value| Value::Array(waiter.items()[..2].to_vec());
            seen.push(Value::Array(info.field("waiters").items().iter().map(waiter).collect()));
        }
        seen
    };
    let before = look(&mut client);
    let lines = [
        "SET text new",
        "PEXPIRE n 1000",
        "INCR n",
        "DEL gone",
        "RENAME n new",
        "QPUSH pushed m",
        "QPOP FROM queue",
        &format!("QACK flight {receipt}"),
        "UNLOCK held me",
        "LOCKEXTEND r 100",
        "LOCK shared r2 SHARED LIMIT 2 DATA d",
        "LOCK new:lock me",
        "LOCKS KILL shared",
        "PING",
        "APPEND text er",
        "INCR text",
    ];
    for end in ["EXECABORT cmd=16 ERR value is not an integer or out of range", ""] {
        let tail: &[&str] = if end.is_empty() { &["LOCK locked me"] } else { &[] };
        if end.is_empty() {
            hold(&mut client, "locked", "somebody");
        }
        let all: Vec<&str> = match tail {
            [] => lines.to_vec(),
            tail => lines[..15].iter().chain(tail).copied().collect(),
        };
        let reply = exec(&mut client, &all).text();
        assert!(if tail.is_empty() { reply == end } else { reply.starts_with("LOCKED locked ") }, "{reply}");
        if !tail.is_empty() {
            client.cmd(&["UNLOCK", "locked", "somebody"]);
        }
        assert_eq!(look(&mut client), before);
        assert!(waiter.is_quiet(), "the lock was never handed over");
    }
    let ttl = client.cmd(&["PTTL", "text"]).integer();
    assert!((1_000..=600_000).contains(&ttl), "{ttl}");
    assert_eq!(client.cmd(&["PTTL", "n"]), int(-1));
    let ttl = client.cmd(&["LOCKS", "INFO", "shared"]).field("holders").items()[0].items()[2].integer();
    assert!(ttl > 1_000, "{ttl}");
    // Everything goes on as if nothing had been tried: tokens, receipts, the wait.
    assert_eq!(client.cmd(&["FENCE", "held", &held.to_string()]), ok());
    assert_eq!(client.cmd(&["FENCE", "shared", &shared.integer().to_string()]), ok());
    let popped = client.cmd(&["QPOP", "FROM", "queue"]);
    assert_eq!(popped, array(&[array(&[bulk("queue"), bulk(&format!("{id}:1")), bulk("first"), int(1)])]));
    assert_eq!(client.cmd(&["QACK", "flight", &receipt]), int(1));
    assert_eq!(client.cmd(&["UNLOCK", "held", "me"]), int(1));
    assert!(waiter.read().integer() > held);
}

#[test]
fn a_transaction_hands_locks_over_as_it_commits() {
    let mut client = client();
    hold(&mut client, "commit:l", "me");
    let mut waiter = wait_behind(self::client(), &mut client, "commit:l", &[], "w");
    let done = exec(&mut client, &["SET commit:x 1", "UNLOCK commit:l me", "LOCK commit:m me"]);
    assert_eq!(done.items()[..2], [ok(), int(1)]);
    assert!(waiter.read().integer() > 0);
}

#[test]
fn a_connection_chooses_whether_its_transactions_are_atomic() {
    let mut client = client();
    client.cmd(&["SET", "mode:text", "text"]);
    let plain = ["INCR mode:n", "INCR mode:text"];
    let guarded = ["INCR mode:n", "LOCK mode:l me", "INCR mode:text"];
    let not_a_number = error("ERR value is not an integer or out of range");
    let aborted = |n: u8| error(&format!("EXECABORT cmd={n} ERR value is not an integer or out of range"));
    for (mode, plain_fails, guarded_fails) in
        [("AUTO", false, true), ("ATOMIC", true, true), ("COMPAT", false, false), ("auto", false, true)]
    {
        client.cmd(&["DEL", "mode:n"]);
        client.cmd(&["UNLOCK", "mode:l", "me"]);
        assert_eq!(client.cmd(&["CLIENT", "EXECMODE", mode]), ok());
        let reply = exec(&mut client, &plain);
        let expected = if plain_fails { aborted(2) } else { array(&[int(1), not_a_number.clone()]) };
        assert_eq!(reply, expected, "{mode}");
        client.cmd(&["DEL", "mode:n"]);
        let reply = exec(&mut client, &guarded);
        assert_eq!(reply == aborted(3), guarded_fails, "{mode}: {reply:?}");
        assert_eq!(
            client.cmd(&["EXISTS", "mode:n", "mode:l"]),
            int(if guarded_fails { 0 } else { 2 }),
            "{mode}"
        );
    }
    assert!(client.cmd(&["CLIENT", "EXECMODE", "maybe"]).is_error());
    assert!(client.cmd(&["CLIENT", "EXECMODE"]).is_error());
    // RESET puts the default back.
    client.cmd(&["CLIENT", "EXECMODE", "ATOMIC"]);
    client.cmd(&["RESET"]);
    assert_eq!(exec(&mut client, &plain).items().len(), 2);
}

#[test]
fn watched_keys_are_looked_at_before_guards() {
    let (mut client, mut other) = (client(), client());
    let token = hold(&mut client, "watch:l", "me");
    let fence = format!("FENCE watch:l {token}");
    client.cmd(&["WATCH", "watch:x"]);
    assert_eq!(exec(&mut client, &[&fence, "SET watch:x 1"]), array(&[ok(), ok()]));
    client.cmd(&["WATCH", "watch:x"]);
    other.cmd(&["SET", "watch:x", "2"]);
    assert_eq!(exec(&mut client, &["FENCE watch:l 1", "SET watch:x 3"]), Value::NullArray);
    assert_eq!(client.cmd(&["GET", "watch:x"]), bulk("2"));
    // A lock is watched like any key.
    client.cmd(&["WATCH", "watch:l"]);
    other.cmd(&["LOCKEXTEND", "me", "600000"]);
    assert_eq!(exec(&mut client, &["SET watch:x 4"]), Value::NullArray);
    // What was rolled back did not change.
    client.cmd(&["WATCH", "watch:x"]);
    assert_eq!(exec(&mut other, &[&fence, "SET watch:x 5", "INCR watch:l"]).error_code(), Some("EXECABORT"));
    assert_eq!(exec(&mut client, &["GET watch:x"]), array(&[bulk("2")]));
}

#[test]
fn once_is_executed_once_whoever_sends_it_again() {
    let (mut client, mut other) = (client(), client());
    let order = ["ONCE order-1", "INCR once:n", "LOCK once:l me", "QPUSH once:q m", "GET once:none"];
    let first = exec(&mut client, &order);
    assert_eq!(first.items()[..2], [ok(), int(1)]);
    assert_eq!(exec(&mut client, &order), first);
    assert_eq!(exec(&mut other, &order), first);
    let longer = [&["ONCE order-1 PX 1000"], &order[1..]].concat();
    assert_eq!(exec(&mut other, &longer), first, "how long it is kept is not what is done");
    assert_eq!(client.cmd(&["GET", "once:n"]), bulk("1"));
    assert_eq!(client.cmd(&["QLEN", "once:q"]), int(1));
    let reused = error("ERR ONCE id reused with a different transaction");
    assert_eq!(exec(&mut other, &["ONCE order-1", "INCR once:n"]), reused);
    assert_eq!(exec(&mut other, &["ONCE order-2", "INCR once:n"]), array(&[ok(), int(2)]));
    // The database is part of it.
    other.cmd(&["SELECT", "1"]);
    assert_eq!(exec(&mut other, &order), reused);
    other.cmd(&["HELLO", "3"]);
    other.cmd(&["SELECT", "0"]);
    assert_eq!(exec(&mut other, &order), first, "a reply is kept as such, not as it was written");
}

#[test]
fn what_did_not_happen_is_not_remembered() {
    let (mut client, mut other) = (client(), client());
    hold(&mut client, "forget:l", "other");
    let tried = ["ONCE forget-1", "LOCK forget:l me", "INCR forget:n"];
    assert_eq!(exec(&mut client, &tried).error_code(), Some("LOCKED"));
    client.cmd(&["UNLOCK", "forget:l", "other"]);
    assert_eq!(exec(&mut client, &tried).items()[2], int(1));
    client.cmd(&["WATCH", "forget:w"]);
    other.cmd(&["SET", "forget:w", "1"]);
    let watched = ["ONCE forget-2", "INCR forget:n"];
    assert_eq!(exec(&mut client, &watched), Value::NullArray);
    assert_eq!(exec(&mut client, &watched), array(&[ok(), int(2)]));
    assert_eq!(
        exec(&mut client, &["ONCE forget-3", "FENCE forget:l 999", "PING"]).error_code(),
        Some("STALETOKEN")
    );
    assert_eq!(exec(&mut client, &["ONCE forget-3", "PING"]), array(&[ok(), simple("PONG")]));
}

#[test]
fn a_name_is_forgotten_in_time() {
    let mut client = client();
    assert_eq!(exec(&mut client, &["ONCE brief PX 100", "INCR brief:n"]), array(&[ok(), int(1)]));
    wait_for("the name to be forgotten", Millis(10_000), || {
        let reply = exec(&mut client, &["ONCE brief PX 600000", "INCR brief:n"]);
        (reply == array(&[ok(), int(2)])).then_some(())
    });
    assert_eq!(exec(&mut client, &["ONCE brief PX 600000", "INCR brief:n"]), array(&[ok(), int(2)]));
}

#[test]
fn a_reply_that_is_too_large_is_kept_as_a_mark() {
    let mut client = client();
    client.cmd(&["SET", "large:v", &"v".repeat(100 << 10)]);
    let large = ["ONCE large", "INCR large:n", "GET large:v"];
    assert_eq!(exec(&mut client, &large).items()[1], int(1));
    let again = exec(&mut client, &large).text();
    let index =
        again.strip_prefix("REPLAYED ").and_then(|rest| rest.split(' ').next()).map(str::parse::<u64>);
    assert!(matches!(index, Some(Ok(1..))), "{again}");
    assert_eq!(client.cmd(&["GET", "large:n"]), bulk("1"));
    client.cmd(&["SET", "large:v", &"v".repeat(60 << 10)]);
    let fits = ["ONCE fits", "GET large:v"];
    let first = exec(&mut client, &fits);
    client.cmd(&["DEL", "large:v"]);
    assert_eq!(exec(&mut client, &fits), first);
}

#[test]
fn once_has_its_place() {
    let mut client = client();
    let must = error("ERR ONCE must be the first command after MULTI");
    assert_eq!(client.cmd(&["ONCE", "id"]), must);
    for before in [&["SET", "place:x", "1"][..], &["PING"]] {
        client.cmd(&["MULTI"]);
        assert_eq!(client.cmd(before), simple("QUEUED"));
        assert_eq!(client.cmd(&["ONCE", "id"]), must);
        assert_eq!(
            client.cmd(&["EXEC"]),
            error("EXECABORT Transaction discarded because of previous errors.")
        );
    }
    assert_eq!(client.cmd(&["EXISTS", "place:x"]), int(0));
    for (line, text) in [
        (format!("ONCE {}", "i".repeat(257)), "ERR ONCE id must be 1 to 256 bytes long"),
        ("ONCE id PX 0".to_owned(), "ERR ONCE PX must be between 1 and 604800000 milliseconds"),
        ("ONCE id PX 604800001".to_owned(), "ERR ONCE PX must be between 1 and 604800000 milliseconds"),
        ("ONCE id EX 1".to_owned(), "ERR syntax error: ONCE takes id and PX milliseconds"),
    ] {
        assert_eq!(exec(&mut client, &[&line, "SET place:x 1"]), error(text), "{line}");
        assert_eq!(client.cmd(&["EXISTS", "place:x"]), int(0));
    }
    assert_eq!(client.cmd(&["PING"]), simple("PONG"));
}

#[test]
fn once_is_refused_when_its_table_is_full() {
    let node = Node::start(&["--once-max-entries", "2"]);
    let mut client = node.client();
    for id in ["a", "b"] {
        assert!(matches!(exec(&mut client, &[&format!("ONCE {id}"), "INCR n"]), Value::Array(_)));
    }
    assert_eq!(exec(&mut client, &["ONCE c", "INCR n"]).error_code(), Some("OOM"));
    assert_eq!(exec(&mut client, &["ONCE a", "INCR n"]), array(&[ok(), int(1)]), "what is known is answered");
    assert_eq!(client.cmd(&["GET", "n"]), bulk("2"));
}

#[test]
fn old_replies_of_once_go_for_new_ones_and_nothing_is_executed_again() {
    let mut node = Node::start(&["--once-max-bytes", "1mb"]);
    let mut client = node.client();
    client.cmd(&["SET", "v", &"v".repeat(60_000)]);
    let transaction = |id: usize| [format!("ONCE id-{id}"), format!("INCR n{id}"), "GET v".to_owned()];
    let run = |client: &mut Client, id: usize| {
        let lines = transaction(id);
        exec(client, &[&lines[0], &lines[1], &lines[2]])
    };
    let firsts: Vec<Value> = (0..20).map(|id| run(&mut client, id)).collect();
    // 17 of them fit.
    for _ in 0..2 {
        let mut client = node.client();
        for (id, first) in firsts.iter().enumerate() {
            let again = run(&mut client, id);
            if id < 3 {
                assert_eq!(again.error_code(), Some("REPLAYED"), "{id}");
            } else {
                assert_eq!(again, *first, "{id}");
            }
            assert_eq!(client.cmd(&["GET", &format!("n{id}")]), bulk("1"));
        }
        node.stop();
        node.restart();
    }
}
