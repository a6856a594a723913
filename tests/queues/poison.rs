//! Messages that cannot be worked on: they are tried so often, at growing intervals, and then put aside where an
//! operator finds them and gives them back (nats#5564, disque#170, aws/aws-sdk#228).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;

use crate::common::LONG_WAIT;
use crate::common::Popped;
use crate::common::Traced;
use crate::common::addresses;
use crate::common::check_sums;
use crate::common::counts;
use crate::common::place;
use crate::common::trace_of;
use crate::common::watch_sums;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::cluster::Cluster;
use crate::support::number_from_env;

/// The first wait after a failure, in milliseconds; each failure doubles it.
const BACKOFF_MIN: u64 = 200;
const BACKOFF_MAX: u64 = 700;
const JITTER_PERCENT: u64 = 20;
/// What a hand-out may come later than its backoff: by the leader's look at the time, and two commits on a machine
/// that has other work.
const SLACK_MS: u64 = 5_000;
const GROUPS: u64 = 100;

fn pop(client: &mut Client, queue: &str, count: u64) -> Vec<Popped> {
    let count = count.to_string();
    Popped::read_all(
        &client.cmd(&["QPOP", "COUNT", &count, "BLOCK", "50000", "CONSUMER", "w", "FROM", queue]),
    )
}

fn configure(client: &mut Client, queue: &str, attributes: &[&str]) {
    assert_eq!(client.cmd(&[&["QCONFIG", "SET", queue], attributes].concat()), ok());
}

fn fail(client: &mut Client, queue: &str, message: &Popped, reason: &str) {
    let reply = client.cmd(&["QNACK", queue, "FAIL", "REASON", reason, "IDS", "1", &message.receipt]);
    assert_eq!(reply, int(1), "{message:?}");
}

/// All messages in a state, as QPEEK tells them: id, payload, attempt, last reason.
fn peek_all(client: &mut Client, queue: &str, state: &str) -> Vec<(String, String, u64, String)> {
    let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
    loop {
        let page = client.cmd(&["QPEEK", queue, "STATE", state, "COUNT", "500", "CURSOR", &cursor]);
        let [next, messages] = page.items() else { panic!("not a page: {page:?}") };
        found.extend(messages.items().iter().map(|message| {
            let [id, payload, attempt, _, _, reason] = message.items() else { panic!("{message:?}") };
            (id.text(), payload.text(), attempt.number(), reason.text())
        }));
        cursor = next.text();
        if cursor == "0" {
            return found;
        }
    }
}

fn check_gaps(trace: &[Traced]) {
    let pairs = trace.windows(2).filter(|pair| pair[0].event == "NACKED" && pair[1].event == "DELIVERED");
    for pair in pairs {
        let wait = (BACKOFF_MIN << (pair[0].attempt - 1)).min(BACKOFF_MAX);
        let spread = wait * JITTER_PERCENT / 100;
        let gap = pair[1].at_ms - pair[0].at_ms;
        assert!(
            (wait - spread..=wait + spread + SLACK_MS).contains(&gap),
            "{gap} ms after {wait}: {trace:?}"
        );
    }
}

#[test]
fn what_always_fails_is_tried_so_often_and_then_put_aside_with_its_reason() {
    const TRIES: u64 = 5;
    const JOBS: u64 = 20;
    let mut cluster = Cluster::start(&[]);
    let mut client = cluster.client(1);
    client.set_timeout(LONG_WAIT);
    let (tries, backoff) = (TRIES.to_string(), format!("{BACKOFF_MIN} {BACKOFF_MAX} 2 {JITTER_PERCENT}"));
    configure(&mut client, "poison", &["MAXDELIVER", &tries, "BACKOFF", &backoff]);
    let ids: Vec<String> =
        (0..JOBS).map(|n| client.cmd(&["QPUSH", "poison", &format!("job {n}")]).text()).collect();
    let mut delivered: BTreeMap<String, u64> = BTreeMap::new();
    let mut is_killed = false;
    while delivered.values().sum::<u64>() < TRIES * JOBS {
        for message in pop(&mut client, "poison", 10) {
            let count = delivered.entry(message.id().to_owned()).or_default();
            *count += 1;
            assert_eq!((message.attempt, message.delivery()), (*count, *count), "{message:?}");
            fail(&mut client, "poison", &message, &format!("boom {count}"));
        }
        check_sums(&client.cmd(&["QINFO", "poison"]));
        if !is_killed && delivered.values().sum::<u64>() > TRIES * JOBS / 2 {
            is_killed = true;
            // What was waited for goes on under another leader.
            let killed = cluster.kill_leader();
            cluster.start_node(killed);
            client = cluster.client(1);
            client.set_timeout(LONG_WAIT);
        }
    }
    assert_eq!(client.cmd(&["QLEN", "poison", "DEAD"]), int(JOBS as i64));
    assert_eq!(client.cmd(&["QPOP", "FROM", "poison"]), Value::NullArray, "a dead one is not handed out");
    let expected: Vec<_> = ids
        .iter()
        .enumerate()
        .map(|(n, id)| (id.clone(), format!("job {n}"), TRIES, format!("boom {TRIES}")))
        .collect();
    assert_eq!(peek_all(&mut client, "poison", "DEAD"), expected);
    for id in &ids {
        let trace = trace_of(&mut client, "poison", id);
        let events: Vec<&str> = trace.iter().map(|event| event.event.as_str()).collect();
        let mut all = vec!["PUSHED"];
        (0..TRIES).for_each(|_| all.extend(["DELIVERED", "NACKED"]));
        all.push("DEAD");
        assert_eq!(events, all, "{trace:?}");
        let reasons: Vec<&str> =
            trace.iter().filter(|event| event.event == "NACKED").map(|event| event.reason.as_str()).collect();
        assert_eq!(reasons, ["boom 1", "boom 2", "boom 3", "boom 4", "boom 5"], "{trace:?}");
        check_gaps(&trace);
    }
    // Given back they begin anew, but for their deliveries; an old receipt stays stale.
    assert_eq!(client.cmd(&["QREDRIVE", "poison", "COUNT", "1"]), int(1));
    let again = pop(&mut client, "poison", 10).remove(0);
    assert_eq!((again.id(), again.attempt, again.delivery()), (ids[0].as_str(), 1, TRIES + 1));
    assert_eq!(client.cmd(&["QACK", "poison", &format!("{}:{TRIES}", ids[0])]), int(0));
    assert_eq!(client.cmd(&["QACK", "poison", &again.receipt]), int(1));
    println!(
        "{JOBS} messages that always fail: {TRIES} hand-outs each, gaps as BACKOFF says, then dead with reasons"
    );
    cluster.check_digests();
    cluster.check_alive();
}

#[test]
fn another_maxdeliver_and_a_dead_letter_queue_apply_to_the_next_failure() {
    let mut cluster = Cluster::start(&[]);
    let mut client = cluster.client(1);
    client.set_timeout(LONG_WAIT);
    configure(&mut client, "live", &["MAXDELIVER", "3", "BACKOFF", "0 0 1 0"]);
    let ids: Vec<String> = ["one", "two", "three"]
        .iter()
        .map(|payload| client.cmd(&["QPUSH", "live", payload]).text())
        .collect();
    for attempt in 1..=2 {
        for message in pop(&mut client, "live", 3) {
            assert_eq!(message.attempt, attempt);
            fail(&mut client, "live", &message, "as it was");
        }
    }
    // The third would have been the last one.
    let held = pop(&mut client, "live", 3);
    assert_eq!(held.len(), 3);
    configure(&mut client, "live", &["MAXDELIVER", "4"]);
    fail(&mut client, "live", &held[0], "one more");
    configure(&mut client, "live", &["MAXDELIVER", "2"]);
    fail(&mut client, "live", &held[1], "no more");
    assert_eq!(
        peek_all(&mut client, "live", "READY"),
        [(ids[0].clone(), "one".to_owned(), 3, "one more".to_owned())]
    );
    assert_eq!(
        peek_all(&mut client, "live", "DEAD"),
        [(ids[1].clone(), "two".to_owned(), 3, "no more".to_owned())]
    );
    configure(&mut client, "live", &["DEADLETTER", "graveyard"]);
    fail(&mut client, "live", &held[2], "elsewhere");
    let info = client.cmd(&["QINFO", "live"]);
    check_sums(&info);
    assert_eq!(counts(&info, ["ready", "dead", "died", "moved", "leased"]), [1, 1, 2, 1, 0], "{info:?}");
    let buried = (ids[2].clone(), "three".to_owned(), 0, "elsewhere".to_owned());
    assert_eq!(peek_all(&mut client, "graveyard", "READY"), [buried]);
    let trace = trace_of(&mut client, "graveyard", &ids[2]);
    let last = trace.last().unwrap();
    assert_eq!((last.event.as_str(), last.reason.as_str()), ("DEAD", "elsewhere"), "{trace:?}");
    // An operator sends one after it, and both go on with their names and their deliveries.
    assert_eq!(client.cmd(&["QREDRIVE", "live", "IDS", "1", &ids[1], "TO", "graveyard"]), int(1));
    let both = pop(&mut client, "graveyard", 10);
    let told: Vec<_> = both.iter().map(|message| (message.receipt.as_str(), message.attempt)).collect();
    assert_eq!(told, [(&*format!("{}:4", ids[1]), 1), (&*format!("{}:4", ids[2]), 1)]);
    for message in &both {
        assert_eq!(client.cmd(&["QACK", "graveyard", &message.receipt]), int(1));
    }
    let survivors: Vec<Popped> = pop(&mut client, "live", 10);
    assert_eq!(survivors.len(), 1);
    // Beyond a maximum that came later, the next failure is the last one.
    fail(&mut client, "live", &survivors[0], "too many");
    for (queue, moved) in [("live", 3), ("graveyard", 0)] {
        let info = client.cmd(&["QINFO", queue]);
        check_sums(&info);
        assert_eq!(counts(&info, ["moved", "pushed"]), [moved, 3], "{info:?}");
    }
    cluster.check_digests();
    cluster.check_alive();
}

#[test]
fn many_dead_messages_are_redriven_with_their_names_and_the_order_of_their_groups() {
    let count = number_from_env("QUEUES_REDRIVEN", 5_000);
    let mut cluster = Cluster::start(&[]);
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = {
        let (addresses, stop) = (addresses(&cluster), Arc::clone(&stop));
        thread::spawn(move || watch_sums(&addresses, "many", &stop))
    };
    let mut client = cluster.client(1);
    client.set_timeout(LONG_WAIT);
    let group_of = |number: u64| number * 7 % GROUPS;
    let mut ids: Vec<String> = Vec::new();
    for from in (0..count).step_by(500) {
        let pushes: Vec<Vec<String>> = (from..count.min(from + 500))
            .map(|n| {
                ["QPUSH", "many", &n.to_string(), "GROUP", &format!("g{}", group_of(n))]
                    .map(str::to_owned)
                    .to_vec()
            })
            .collect();
        ids.extend(client.pipeline(&pushes).iter().map(Value::text));
    }
    let mut dead = 0;
    while dead < count {
        let messages = pop(&mut client, "many", 1_000);
        let number = messages.len().to_string();
        let mut words = vec!["QNACK", "many", "FATAL", "REASON", "no good", "IDS", &number];
        words.extend(messages.iter().map(|message| message.receipt.as_str()));
        assert_eq!(client.cmd(&words), int(messages.len() as i64));
        dead += messages.len() as u64;
    }
    let peeked: Vec<String> =
        peek_all(&mut client, "many", "DEAD").into_iter().map(|message| message.0).collect();
    assert_eq!(peeked, ids);
    // Some in parts, and the rest at once; a leader falls between.
    let some = count / 10;
    for _ in 0..3 {
        assert_eq!(client.cmd(&["QREDRIVE", "many", "COUNT", &some.to_string()]), int(some as i64));
    }
    let killed = cluster.kill_leader();
    cluster.start_node(killed);
    let mut client = cluster.client(1);
    client.set_timeout(LONG_WAIT);
    assert_eq!(client.cmd(&["QREDRIVE", "many"]), int((count - 3 * some) as i64));
    assert_eq!(client.cmd(&["QLEN", "many"]), int(count as i64));
    let peeked: Vec<String> =
        peek_all(&mut client, "many", "READY").into_iter().map(|message| message.0).collect();
    assert_eq!(peeked, ids, "their names and their order");
    let mut by_group: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let mut done = 0;
    while done < count {
        let messages = pop(&mut client, "many", 1_000);
        for message in &messages {
            let number: u64 = message.payload.parse().unwrap();
            assert_eq!(message.id(), ids[usize::try_from(number).unwrap()]);
            assert_eq!((message.attempt, message.delivery()), (1, 2), "{message:?}");
            let last = by_group.insert(group_of(number), place(message.id()));
            assert!(
                last.is_none_or(|last| last < place(message.id())),
                "its group is out of order: {message:?}"
            );
        }
        let mut words = vec!["QACK", "many"];
        words.extend(messages.iter().map(|message| message.receipt.as_str()));
        assert_eq!(client.cmd(&words), int(messages.len() as i64));
        done += messages.len() as u64;
    }
    stop.store(true, Ordering::Relaxed);
    let looks = watcher.join().unwrap();
    assert!(looks > 0, "nobody looked");
    let info = client.cmd(&["QINFO", "many"]);
    assert_eq!(counts(&info, ["pushed", "acked", "dead", "ready"]), [count, count, 0, 0], "{info:?}");
    let trace = trace_of(&mut client, "many", &ids[0]);
    let events: Vec<&str> = trace.iter().map(|event| event.event.as_str()).collect();
    assert_eq!(
        events,
        ["PUSHED", "DELIVERED", "NACKED", "DEAD", "REDRIVEN", "DELIVERED", "ACKED"],
        "{trace:?}"
    );
    println!(
        "{count} dead messages redriven with their ids, in order in {GROUPS} groups; the counts added up {looks} times"
    );
    cluster.check_digests();
    cluster.check_alive();
}
