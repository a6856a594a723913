//! Messages that were handed out to clients which are gone: they are ready again at once, and no attempt is counted
//! (redis/go-redis#697, redix#102).

use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use holdfast::clock::Clock;
use holdfast::clock::SystemClock;
use holdfast::types::Millis;

use crate::common::LONG_WAIT;
use crate::common::Popped;
use crate::common::check_sums;
use crate::common::counts;
use crate::common::seed;
use crate::common::trace_of;
use crate::support::Random;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::bulk;
use crate::support::cluster::Cluster;
use crate::support::cluster::PATIENCE;
use crate::support::links::Links;
use crate::support::number_from_env;
use crate::support::spread;
use crate::support::wait_for;

/// The dead client's lease: nobody gets the message by waiting for its end.
const LEASE: &str = "3600000";
/// How long a reply takes from the leader to the client's node.
const LATE: Millis = Millis(250);
/// Longer than that, so that a late leader stays one.
const ELECTION_TIMEOUT: &str = "3000";

fn wait_for_blocked(client: &mut Client, queue: &str, count: u64) {
    wait_for("the client to wait", PATIENCE, || {
        (client.cmd(&["QINFO", queue]).field("blocked_clients").number() == count).then_some(())
    });
}

/// The message comes to somebody else, and its first hand-out was not counted; true when there was one.
fn take_over(heir: &mut Client, queue: &str, payload: &str) -> bool {
    heir.set_timeout(LONG_WAIT);
    let reply = heir.cmd(&["QPOP", "BLOCK", "50000", "CONSUMER", "heir", "FROM", queue]);
    let messages = Popped::read_all(&reply);
    let [message] = &messages[..] else { panic!("the message did not come back: {reply:?}") };
    assert_eq!((message.payload.as_str(), message.attempt), (payload, 1), "{message:?}");
    let trace = trace_of(heir, queue, message.id());
    let events: Vec<&str> = trace[1..].iter().map(|traced| traced.event.as_str()).collect();
    match message.delivery() {
        1 => assert_eq!(events, ["DELIVERED"], "{trace:?}"),
        2 => assert_eq!(events, ["DELIVERED", "RETURNED", "DELIVERED"], "{trace:?}"),
        _ => panic!("{trace:?}"),
    }
    assert_eq!(heir.cmd(&["QACK", queue, &message.receipt]), Value::Integer(1));
    message.delivery() == 2
}

fn check_empty(client: &mut Client, queue: &str) {
    let info = client.cmd(&["QINFO", queue]);
    check_sums(&info);
    assert_eq!(counts(&info, ["ready", "delayed", "leased", "dead", "expired_leases"]), [0; 5], "{info:?}");
}

#[test]
fn a_message_for_a_client_that_left_while_it_waited_is_ready_again_at_once() {
    let count = number_from_env("QUEUES_DEAD_SOCKETS", 10);
    let mut random = Random::new(seed());
    let clock = SystemClock::start();
    let mut cluster = Cluster::start(&[]);
    let leader = cluster.leader();
    let [home, other] = cluster.others(leader)[..] else { panic!("three nodes") };
    let mut producer = cluster.client(leader);
    let mut heir = cluster.client(other);
    let (mut times, mut handed_out) = (Vec::new(), 0);
    // The client is gone before its node hears that the message is its client's.
    for round in 0..count {
        let payload = format!("held {round}");
        let mut client = cluster.client(home);
        client.send(&["QPOP", "BLOCK", "0", "LEASE", LEASE, "CONSUMER", "gone", "FROM", "waited"]);
        wait_for_blocked(&mut producer, "waited", 1);
        cluster.hold(home);
        drop(client);
        producer.cmd(&["QPUSH", "waited", &payload]);
        cluster.resume(home);
        let from = clock.monotonic();
        assert!(take_over(&mut heir, "waited", &payload), "it was handed to the first who waited");
        times.push(clock.monotonic().micros_since(from));
    }
    // The client leaves at about the moment at which it is served.
    let mut raced = Vec::new();
    for round in 0..3 * count {
        let payload = format!("raced {round}");
        let mut client = cluster.client(home);
        client.send(&["QPOP", "BLOCK", "0", "LEASE", LEASE, "CONSUMER", "gone", "FROM", "waited"]);
        wait_for_blocked(&mut producer, "waited", 1);
        let leaver = thread::spawn({
            let nap = Duration::from_micros(random.below(1_500));
            move || {
                thread::sleep(nap);
                // Whatever was written before its node saw that is still read.
                client.writer().shutdown(Shutdown::Write).unwrap();
                client.try_read().ok()
            }
        });
        let from = clock.monotonic();
        producer.cmd(&["QPUSH", "waited", &payload]);
        let Some(reply) = leaver.join().unwrap() else {
            handed_out += u64::from(take_over(&mut heir, "waited", &payload));
            raced.push(clock.monotonic().micros_since(from));
            continue;
        };
        // It was served after all, and its message is its own.
        let [message] = &Popped::read_all(&reply)[..] else { panic!("{reply:?}") };
        assert_eq!(heir.cmd(&["QACK", "waited", &message.receipt]), Value::Integer(1));
    }
    check_empty(&mut heir, "waited");
    println!(
        "{count} messages for clients that were gone: with the next one, attempt still 1, {} after their node could see \
         it; {} more left in a race, {handed_out} of them after the hand-out, from push to the next one {}",
        spread(times),
        raced.len(),
        spread(raced)
    );
    cluster.check_digests();
    cluster.check_alive();
}

#[test]
fn a_message_in_a_reply_that_could_not_be_written_is_ready_again_at_once() {
    let count = number_from_env("QUEUES_DEAD_SOCKETS", 10);
    let clock = SystemClock::start();
    let mut cluster = Cluster::prepare(3, &["--election-timeout", ELECTION_TIMEOUT]);
    let links = Links::between(&mut cluster);
    cluster.start_all();
    let leader = cluster.leader();
    let [home, other] = cluster.others(leader)[..] else { panic!("three nodes") };
    let mut heir = cluster.client(other);
    let mut times = Vec::new();
    for round in 0..count {
        let payload = format!("late {round}");
        assert!(matches!(heir.cmd(&["QPUSH", "late", &payload]), Value::Bulk(_)));
        links.delay(leader, home, LATE, Millis(0));
        let mut client = cluster.client(home);
        // It does not wait, and behind a write that stays.
        client.pipeline_only(&[
            vec!["INCR", "asked"],
            vec!["QPOP", "LEASE", LEASE, "CONSUMER", "gone", "COUNT", "5", "FROM", "none", "late"],
        ]);
        wait_for("the message to be handed out", PATIENCE, || {
            (heir.cmd(&["QLEN", "late", "LEASED"]) == Value::Integer(1)).then_some(())
        });
        drop(client);
        let from = clock.monotonic();
        assert!(take_over(&mut heir, "late", &payload), "it was handed out before");
        times.push(clock.monotonic().micros_since(from));
        links.delay(leader, home, Millis(0), Millis(0));
    }
    assert_eq!(heir.cmd(&["GET", "asked"]), bulk(&count.to_string()));
    check_empty(&mut heir, "late");
    // Who is there gets what it asked for, one after the other and many at once.
    let mut client = cluster.client(home);
    let pushes: Vec<Vec<String>> =
        (0..300).map(|n| vec!["QPUSH".to_owned(), "late".to_owned(), format!("{n}")]).collect();
    client.pipeline(&pushes);
    let pops = vec![vec!["QPOP", "LEASE", LEASE, "FROM", "late"]; 300];
    let replies = client.pipeline(&pops);
    let got: Vec<String> = replies.iter().flat_map(Popped::read_all).map(|message| message.payload).collect();
    assert_eq!(got, (0..300).map(|n| n.to_string()).collect::<Vec<_>>());
    let info = heir.cmd(&["QINFO", "late"]);
    assert_eq!(counts(&info, ["leased", "ready"]), [300, 0], "{info:?}");
    println!(
        "{count} messages in replies that nobody was there for: with the next one {} after the client left, of which \
         the reply took {} ms to its node",
        spread(times),
        LATE.0
    );
    cluster.check_digests();
    cluster.check_alive();
}
