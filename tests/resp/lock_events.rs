//! What clients are told of locks: `lock-lost` in RESP3, channels in both protocols.

use std::sync::OnceLock;

use holdfast::types::Millis;

use crate::resp::lock_waits::hold;
use crate::resp::lock_waits::wait_behind;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::bulk;
use crate::support::client::bulks;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::client::simple;
use crate::support::node::Node;
use crate::support::wait_for;

fn client() -> Client {
    static NODE: OnceLock<Node> = OnceLock::new();
    NODE.get_or_init(|| Node::start(&[])).client()
}

fn resp3() -> Client {
    let mut client = client();
    assert!(matches!(client.cmd(&["HELLO", "3"]), Value::Map(_)));
    client
}

fn lost(key: &str, owner: &str, token: i64, why: &str) -> Value {
    Value::Push(vec![bulk("lock-lost"), bulk(key), bulk(owner), int(token), bulk(why)])
}

#[test]
fn the_holder_is_told_that_its_lease_ended() {
    let mut holder = resp3();
    let token = holder.cmd(&["LOCK", "lost:a", "me", "PX", "100"]).integer();
    assert_eq!(holder.read(), lost("lost:a", "me", token, "EXPIRED"));
    // What it released itself is no loss.
    hold(&mut holder, "lost:a", "me");
    holder.cmd(&["UNLOCK", "lost:a", "me"]);
    assert_eq!(holder.cmd(&["PING"]), simple("PONG"));
    assert!(holder.is_quiet());
}

#[test]
fn the_holder_is_told_that_its_lock_was_broken() {
    let (mut holder, mut other) = (resp3(), client());
    let token = hold(&mut holder, "lost:b", "me");
    assert_eq!(other.cmd(&["LOCKS", "KILL", "lost:b"]), int(1));
    assert_eq!(holder.read(), lost("lost:b", "me", token, "KILLED"));
    // In a transaction as well, and to somebody who waited for it.
    let token = hold(&mut other, "lost:b", "you");
    let mut waiter = wait_behind(resp3(), &mut other, "lost:b", &[], "me");
    other.cmd(&["UNLOCK", "lost:b", "you"]);
    let next = waiter.read().integer();
    assert!(next > token);
    let exec = other.pipeline(&[vec!["MULTI"], vec!["LOCKS", "KILL", "lost:b"], vec!["EXEC"]]).pop();
    assert_eq!(exec, Some(Value::Array(vec![int(1)])));
    assert_eq!(waiter.read(), lost("lost:b", "me", next, "KILLED"));
}

#[test]
fn the_connection_that_last_set_the_lease_is_the_one_that_is_told() {
    let (mut first, mut second) = (resp3(), resp3());
    let token = hold(&mut first, "lost:c", "me");
    let extended = second.cmd(&["LOCKEXTEND", "me", "100", "KEYS", "1", "lost:c"]);
    assert_eq!(extended.field("extended"), &int(1));
    assert_eq!(second.read(), lost("lost:c", "me", token, "EXPIRED"));
    assert!(first.is_quiet());
    // RESP2 has no pushes: its client is told nothing, and not by a mistake of another's either.
    let mut old = client();
    let token = hold(&mut first, "lost:c", "me");
    assert_eq!(old.cmd(&["LOCK", "lost:c", "me", "PX", "100"]), int(token));
    wait_for("the lease to end", Millis(10_000), || {
        (first.cmd(&["EXISTS", "lost:c"]) == int(0)).then_some(())
    });
    assert!(old.is_quiet() && first.is_quiet() && second.is_quiet());
}

#[test]
fn a_loss_is_told_while_the_holder_waits_and_after_it_was_busy() {
    let mut holder = resp3();
    let mut other = client();
    hold(&mut other, "lost:wanted", "other");
    let token = hold(&mut holder, "lost:d", "me");
    let mut holder = wait_behind(holder, &mut other, "lost:wanted", &[], "me");
    assert_eq!(other.cmd(&["LOCKS", "KILL", "lost:d"]), int(1));
    assert_eq!(holder.read(), lost("lost:d", "me", token, "KILLED"), "before its reply");
    other.cmd(&["UNLOCK", "lost:wanted", "other"]);
    assert!(holder.read().integer() > token);
    // The lock is broken while the holder's connection sleeps in a command.
    let token = hold(&mut holder, "lost:d", "me");
    holder.send(&["DEBUG", "SLEEP", "0.5"]);
    other.cmd(&["LOCKS", "KILL", "lost:d"]);
    let seen = [holder.read(), holder.read()];
    assert!(seen.contains(&ok()) && seen.contains(&lost("lost:d", "me", token, "KILLED")), "{seen:?}");
}

#[test]
fn of_many_losses_at_once_a_hundred_pushes_are_told_and_the_others_are_counted() {
    let (mut holder, mut other) = (resp3(), client());
    let take = |holder: &mut Client, count: usize| {
        let keys: Vec<String> = (0..count).map(|n| format!("lost:many:{n}")).collect();
        let taken = holder.pipeline(&keys.iter().map(|key| vec!["LOCK", key, "many"]).collect::<Vec<_>>());
        assert!(taken.iter().all(|token| token.integer() > 0), "{taken:?}");
    };
    let is_count = |push: &Value| push.items().get(1) == Some(&bulk("*"));
    let counted = |push: &Value| match push.items() {
        [lost, star, count] if *lost == bulk("lock-lost") && *star == bulk("*") => count.integer() as usize,
        [lost, _, owner, _, why]
            if [lost, owner, why] == [&bulk("lock-lost"), &bulk("many"), &bulk("EXPIRED")] =>
        {
            1
        }
        _ => panic!("{push:?}"),
    };
    take(&mut holder, 500);
    assert_eq!(holder.cmd(&["LOCKEXTEND", "many", "100"]).field("extended"), &int(500));
    // Whoever only listens is told by name, and then how many there were besides.
    let mut told: Vec<Value> = Vec::new();
    while !told.last().is_some_and(is_count) {
        told.push(holder.read());
    }
    assert!(told.len() < 100 && told.iter().map(counted).sum::<usize>() <= 500, "{}", told.len());
    wait_for("all leases to end", Millis(10_000), || {
        let list = other.cmd(&["LOCKS", "LIST", "0", "OWNER", "many", "COUNT", "1000000"]);
        list.items()[1].items().is_empty().then_some(())
    });
    // Before the next reply it is told of the others, if there were more.
    let mut sum = told.iter().map(counted).sum::<usize>();
    let mut in_a_row = told.len();
    wait_for("every loss to be told or counted", Millis(10_000), || {
        holder.send(&["PING"]);
        loop {
            let next = holder.read();
            if next == simple("PONG") {
                break;
            }
            sum += counted(&next);
            in_a_row += 1;
        }
        assert!(std::mem::take(&mut in_a_row) <= 100);
        (sum >= 500).then_some(())
    });
    assert_eq!(sum, 500);
    // After a reply they have names again.
    let token = hold(&mut holder, "lost:many:0", "many");
    assert_eq!(other.cmd(&["LOCKS", "KILL", "lost:many:0"]), int(1));
    assert_eq!(holder.read(), lost("lost:many:0", "many", token, "KILLED"));
}

#[test]
fn who_took_its_locks_in_the_old_protocol_is_told_nothing_in_the_new_one() {
    let (mut holder, mut other) = (client(), client());
    hold(&mut holder, "lost:old", "me");
    assert!(matches!(holder.cmd(&["HELLO", "3"]), Value::Map(_)));
    assert_eq!(other.cmd(&["LOCKS", "KILL", "lost:old"]), int(1));
    assert!(holder.is_quiet());
    // In a transaction it takes one as well.
    let exec = holder.pipeline(&[vec!["MULTI"], vec!["LOCK", "lost:new", "me"], vec!["EXEC"]]).pop().unwrap();
    let token = exec.items()[0].integer();
    assert_eq!(other.cmd(&["LOCKS", "KILL", "lost:new"]), int(1));
    assert_eq!(holder.read(), lost("lost:new", "me", token, "KILLED"));
    assert_eq!(holder.cmd(&["RESET"]), simple("RESET"));
    assert!(matches!(holder.cmd(&["HELLO", "3"]), Value::Map(_)));
    assert!(holder.is_quiet());
}

#[test]
fn a_pattern_is_found_among_thousands_that_begin_like_it_or_otherwise() {
    let (mut reader, mut crowd, mut other) = (client(), client(), client());
    for form in ["__lock__:crowd:*%", "crowd%*", "__lock__:crow[d]:no%", "?%"] {
        let patterns: Vec<String> = (0..1_000).map(|n| form.replace('%', &n.to_string())).collect();
        let words: Vec<&str> = patterns.iter().map(String::as_str).collect();
        crowd.send(&[&["PSUBSCRIBE"], &words[..]].concat());
        (0..1_000).for_each(|_| drop(crowd.read()));
    }
    let patterns =
        ["__lock__:crowd:*", "*:crowd:x", "_?lock__:crowd:[x]", "__lock__:crowd:\\x", "__lock__:crowd:x"];
    let none = ["__lock__:crowd:y*", "*:crowd", "__lock__:crowd:x?"];
    for pattern in patterns.iter().chain(&none) {
        reader.cmd(&["PSUBSCRIBE", pattern]);
    }
    let token = hold(&mut other, "crowd:x", "me");
    let mut found: Vec<String> = patterns.iter().map(|_| reader.read().items()[1].text()).collect();
    found.sort_unstable();
    let mut wanted = patterns.map(str::to_owned);
    wanted.sort_unstable();
    assert_eq!(found, wanted);
    assert_eq!(crowd.cmd(&["PUNSUBSCRIBE", "crowd1*"]).items()[2], int(3_999));
    assert_eq!(reader.cmd(&["PUNSUBSCRIBE", patterns[0]]).items()[2], int(7));
    other.cmd(&["UNLOCK", "crowd:x", "me"]);
    let told = reader.read();
    assert_eq!(told.items()[3], bulk(&format!("RELEASED me {token}")));
    assert_ne!(told.items()[1], bulk(patterns[0]));
}

/// The search for patterns pauses after 256: whatever it has looked at by then, it goes on.
#[test]
fn patterns_that_begin_as_long_as_the_channel_is_end_the_search() {
    let (mut crowd, mut reader, mut other) = (client(), client(), client());
    reader.cmd(&["SUBSCRIBE", "__lock__:turn:y"]);
    for count in 1..=300 {
        crowd.cmd(&["PSUBSCRIBE", &format!("__lock__:turn:x?{count}")]);
        if count > 250 {
            hold(&mut other, "turn:x", "me");
            other.cmd(&["UNLOCK", "turn:x", "me"]);
        }
    }
    let token = hold(&mut other, "turn:y", "me");
    assert_eq!(reader.read().items()[2], bulk(&format!("GRANTED me {token}")));
}

#[test]
fn a_channel_tells_what_becomes_of_a_lock() {
    for protocol in ["2", "3"] {
        let (mut reader, mut other) = (client(), client());
        reader.cmd(&["HELLO", protocol]);
        let (key, other_key) = (format!("told:{protocol}"), format!("told:{protocol}:other"));
        let (channel, pattern) = (format!("__lock__:{key}"), format!("__lock__:{key}*"));
        let told = |words: Vec<Value>| if protocol == "3" { Value::Push(words) } else { Value::Array(words) };
        assert_eq!(
            reader.cmd(&["SUBSCRIBE", &channel]),
            told(vec![bulk("subscribe"), bulk(&channel), int(1)])
        );
        let message = |text: String| told(vec![bulk("message"), bulk(&channel), bulk(&text)]);
        let first = hold(&mut other, &key, "a");
        assert_eq!(reader.read(), message(format!("GRANTED a {first}")));
        let mut waiter = wait_behind(client(), &mut other, &key, &[], "b");
        assert_eq!(other.cmd(&["UNLOCK", &key, "a"]), int(1));
        let second = waiter.read().integer();
        assert_eq!(reader.read(), message(format!("RELEASED a {first}")));
        assert_eq!(reader.read(), message(format!("GRANTED b {second}")));
        assert_eq!(other.cmd(&["LOCKS", "KILL", &key]), int(1));
        assert_eq!(reader.read(), message(format!("KILLED b {second}")));
        let third = other.cmd(&["LOCK", &key, "c", "PX", "100"]).integer();
        assert_eq!(reader.read(), message(format!("GRANTED c {third}")));
        assert_eq!(reader.read(), message(format!("EXPIRED c {third}")));
        // Another key is another channel; a pattern has both.
        let fourth = hold(&mut other, &other_key, "d");
        assert!(reader.is_quiet());
        let subscribed = reader.cmd(&["PSUBSCRIBE", &pattern]);
        assert_eq!(subscribed, told(vec![bulk("psubscribe"), bulk(&pattern), int(2)]));
        other.cmd(&["UNLOCK", &other_key, "d"]);
        let text = format!("RELEASED d {fourth}");
        let words = ["pmessage", &pattern, &format!("__lock__:{other_key}"), &text].map(bulk);
        assert_eq!(reader.read(), told(words.to_vec()));
        assert_eq!(reader.cmd(&["UNSUBSCRIBE"]), told(vec![bulk("unsubscribe"), bulk(&channel), int(1)]));
        let gone = reader.cmd(&["PUNSUBSCRIBE", &pattern]);
        assert_eq!(gone, told(vec![bulk("punsubscribe"), bulk(&pattern), int(0)]));
        hold(&mut other, &key, "e");
        assert_eq!(reader.cmd(&["GET", "told:none"]), Value::Null, "it takes every command again");
        assert!(reader.is_quiet());
    }
}

#[test]
fn a_subscriber_of_resp2_takes_few_commands() {
    let mut reader = client();
    let subscribed = reader.cmd(&["SUBSCRIBE", "mode:a", "mode:b"]);
    assert_eq!(subscribed, Value::Array(vec![bulk("subscribe"), bulk("mode:a"), int(1)]));
    assert_eq!(reader.read(), Value::Array(vec![bulk("subscribe"), bulk("mode:b"), int(2)]));
    for (words, name) in [
        (&["GET", "x"][..], "get"),
        (&["LOCK", "mode:l", "me"], "lock"),
        (&["MULTI"], "multi"),
        (&["CLIENT", "ID"], "client|id"),
    ] {
        let text = format!(
            "ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context"
        );
        assert_eq!(reader.cmd(words), Value::Error(text));
    }
    assert_eq!(reader.cmd(&["PING"]), bulks(&["pong", ""]));
    assert_eq!(reader.cmd(&["PING", "x"]), bulks(&["pong", "x"]));
    assert_eq!(reader.cmd(&["RESET"]), simple("RESET"));
    assert_eq!(reader.cmd(&["GET", "x"]), Value::Null);
    let none = Value::Array(vec![bulk("unsubscribe"), Value::Null, int(0)]);
    assert_eq!(reader.cmd(&["UNSUBSCRIBE"]), none);
    // RESP3 tells messages from replies, and takes all.
    let mut reader = resp3();
    reader.cmd(&["SUBSCRIBE", "mode:a"]);
    assert_eq!(reader.cmd(&["PING"]), simple("PONG"));
    assert_eq!(reader.cmd(&["SET", "mode:x", "1"]), ok());
    assert!(reader.cmd(&["SUBSCRIBE"]).is_error());
}

#[test]
fn subscriptions_are_counted() {
    let node = Node::start(&[]);
    let mut eye = node.client();
    let mut readers: Vec<Client> = (0..3).map(|_| node.client()).collect();
    readers[0].cmd(&["SUBSCRIBE", "a"]);
    readers[1].cmd(&["SUBSCRIBE", "a"]);
    readers[1].cmd(&["SUBSCRIBE", "b"]);
    readers[2].cmd(&["PSUBSCRIBE", "p*"]);
    let mut channels: Vec<String> =
        eye.cmd(&["PUBSUB", "CHANNELS"]).items().iter().map(Value::text).collect();
    channels.sort();
    assert_eq!(channels, ["a", "b"]);
    assert_eq!(eye.cmd(&["PUBSUB", "CHANNELS", "b*"]), bulks(&["b"]));
    let counts = Value::Array(vec![bulk("a"), int(2), bulk("b"), int(1), bulk("c"), int(0)]);
    assert_eq!(eye.cmd(&["PUBSUB", "NUMSUB", "a", "b", "c"]), counts);
    assert_eq!(eye.cmd(&["PUBSUB", "NUMPAT"]), int(1));
    let list = eye.cmd(&["CLIENT", "LIST", "TYPE", "PUBSUB"]).text();
    assert_eq!(list.lines().filter(|line| line.contains(" flags=P ")).count(), 3, "{list}");
    assert!(list.lines().any(|line| line.contains(" sub=2 psub=0 ")), "{list}");
    drop(readers);
    wait_for("the subscriptions to end", Millis(10_000), || {
        let none = eye.cmd(&["PUBSUB", "CHANNELS"]) == Value::Array(Vec::new());
        (none && eye.cmd(&["PUBSUB", "NUMPAT"]) == int(0)).then_some(())
    });
}
