//! Messages go from producers to consumers while connections are cut at any byte, consumers die and nodes are killed:
//! each that was pushed is processed, and what QTRACE tells is what the clients saw (sidekiq#1831, machinery#692).

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use holdfast::clock::Clock;
use holdfast::clock::SystemClock;
use holdfast::types::Millis;

use crate::common::Answer;
use crate::common::Caller;
use crate::common::Popped;
use crate::common::addresses;
use crate::common::check_sums;
use crate::common::counts;
use crate::common::delivery_of;
use crate::common::place;
use crate::common::seed;
use crate::common::trace_of;
use crate::common::watch_sums;
use crate::support::Random;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::cluster::Cluster;
use crate::support::cuts::Cuts;
use crate::support::number_from_env;

const QUEUE: &str = "jobs";
const PRODUCERS: u64 = 4;
const CONSUMERS: u64 = 8;
/// Pushes that are sent at once.
const PUSHED_AT_ONCE: u64 = 16;
/// Every so many messages one is compared with its trace.
const TRACED: u64 = 61;
/// Bytes from a client and to it before its connection is cut, on average.
const BYTES_BEFORE_CUT: u64 = 60_000;
const KILL_INTERVAL: Duration = Duration::from_millis(3_500);
const DOWN: Duration = Duration::from_millis(600);
/// Kills that the test waits for, however fast the messages go through.
const KILLS_MIN: u64 = 3;

/// What a producer knows.
#[derive(Default)]
struct Pushed {
    /// The id of each message, by its number.
    ids: BTreeMap<u64, String>,
    breaks: u64,
}

fn produce(addresses: &[SocketAddr], numbers: Vec<u64>, seed: u64) -> Pushed {
    let mut caller = Caller::new(addresses, seed);
    let mut pushed = Pushed::default();
    let mut left = numbers;
    while !left.is_empty() {
        let now: Vec<u64> = left.iter().take(PUSHED_AT_ONCE as usize).copied().collect();
        let push = |number: &u64| {
            let mut words = ["QPUSH", QUEUE, "", "ID", ""].map(str::to_owned).to_vec();
            words[2] = format!("{number}:{}", "x".repeat((number % 90) as usize));
            words[4] = format!("id:{number}");
            if number % 10 == 3 {
                words.extend(["DELAY".to_owned(), "50".to_owned()]);
            }
            words
        };
        let pushes: Vec<Vec<String>> = now.iter().map(push).collect();
        let Some(answers) = caller.pipeline(&pushes) else { continue };
        let mut unfinished = Vec::new();
        for (number, answer) in now.iter().zip(answers) {
            match answer {
                Answer::Reply(Value::Bulk(id)) => {
                    let id = String::from_utf8(id).unwrap();
                    assert!(pushed.ids.insert(*number, id).is_none(), "{number} twice");
                }
                Answer::Reply(other) => panic!("QPUSH {number}: {other:?}"),
                Answer::NotExecuted(_) | Answer::Unknown => unfinished.push(*number),
            }
        }
        unfinished.extend_from_slice(&left[now.len()..]);
        left = unfinished;
    }
    pushed.breaks = caller.breaks;
    pushed
}

/// A hand-out as its client saw it.
#[derive(Debug, Clone)]
struct Delivery {
    receipt: String,
    attempt: u64,
    consumer: String,
}

/// What a consumer saw.
#[derive(Default)]
struct Consumed {
    /// Of the messages that are traced: every hand-out that was heard of.
    heard: BTreeMap<u64, Vec<Delivery>>,
    /// Of the same: how accepted QNACKs are traced, by receipt.
    returned: BTreeMap<String, &'static str>,
    /// The receipt that finished a message, by the message's number.
    finished: Vec<(u64, String)>,
    popped: u64,
    nacked: u64,
    left_waiting: u64,
    breaks: u64,
}

fn number_of(payload: &str) -> u64 {
    let (number, rest) = payload.split_once(':').unwrap();
    let number: u64 = number.parse().unwrap();
    assert_eq!(rest.len() as u64, number % 90, "a payload that nobody pushed: {payload}");
    number
}

struct Consumer {
    caller: Caller,
    name: String,
    consumed: Consumed,
}

impl Consumer {
    fn run(mut self, done: &AtomicU64, stop: &AtomicBool) -> Consumed {
        while !stop.load(Ordering::Relaxed) {
            let pop = ["QPOP", "COUNT", "10", "BLOCK", "300", "LEASE", "2000", "CONSUMER", &self.name];
            let pop = [&pop[..], &["FROM", QUEUE]].concat();
            if self.caller.random.below(40) == 0 {
                // It dies while it waits.
                if let Some(client) = self.caller.client()
                    && client.try_send_raw(&request(&pop)).is_ok()
                {
                    self.consumed.left_waiting += 1;
                    thread::sleep(Duration::from_millis(self.caller.random.below(4)));
                }
                self.caller.leave();
                continue;
            }
            let messages = match self.caller.call(&pop) {
                Answer::Reply(reply) => Popped::read_all(&reply),
                Answer::NotExecuted(_) | Answer::Unknown => continue,
            };
            let before = self.consumed.finished.len();
            self.work(&messages);
            done.fetch_add((self.consumed.finished.len() - before) as u64, Ordering::Relaxed);
        }
        self.consumed.breaks = self.caller.breaks;
        self.consumed
    }

    fn work(&mut self, messages: &[Popped]) {
        self.consumed.popped += messages.len() as u64;
        let mut done: Vec<(u64, &str)> = Vec::new();
        for message in messages {
            let number = number_of(&message.payload);
            if number.is_multiple_of(TRACED) {
                self.consumed.heard.entry(number).or_default().push(Delivery {
                    receipt: message.receipt.clone(),
                    attempt: message.attempt,
                    consumer: self.name.clone(),
                });
            }
            match self.caller.random.below(40) {
                0 => self.give_back(number, message, &["FAIL", "DELAY", "20"], "NACKED"),
                1 => self.give_back(number, message, &["SILENT"], "RETURNED"),
                _ => done.push((number, &message.receipt)),
            }
        }
        if done.is_empty() {
            return;
        }
        let mut ack = vec!["QACK", QUEUE];
        ack.extend(done.iter().map(|(_, receipt)| *receipt));
        let all = self.caller.insist(&ack).integer();
        for (number, receipt) in &done {
            // A repeat says again what it said before, so each can be asked for by itself.
            let is_finished = all == done.len() as i64
                || match self.caller.insist(&["QACK", QUEUE, receipt]).integer() {
                    0 => false,
                    1 => true,
                    other => panic!("QACK {receipt}: {other}"),
                };
            if is_finished {
                self.consumed.finished.push((*number, (*receipt).to_owned()));
            }
        }
    }

    fn give_back(&mut self, number: u64, message: &Popped, how: &[&str], traced: &'static str) {
        let words = [&["QNACK", QUEUE][..], how, &["IDS", "1", &message.receipt]].concat();
        // A repeat finds nothing to return, so only the first answer tells.
        match self.caller.call(&words) {
            Answer::Reply(Value::Integer(accepted @ 0..=1)) => {
                self.consumed.nacked += accepted as u64;
                if accepted == 1 && number.is_multiple_of(TRACED) {
                    self.consumed.returned.insert(message.receipt.clone(), traced);
                }
            }
            Answer::Reply(other) => panic!("QNACK: {other:?}"),
            Answer::NotExecuted(_) | Answer::Unknown => {}
        }
    }
}

fn request(words: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    crate::support::client::encode(words.iter().map(|word| word.as_bytes()), &mut bytes);
    bytes
}

/// What the clients saw of one message is in its trace, in order, and nothing speaks against the rest of the trace.
fn check_trace(client: &mut Client, id: &str, heard: &[Delivery], finished: &str, all: &[Consumed]) -> u64 {
    let trace = trace_of(client, QUEUE, id);
    let of = |event: &str| trace.iter().filter(|traced| traced.event == event).collect::<Vec<_>>();
    let delivered = of("DELIVERED");
    let numbers: Vec<u64> = delivered.iter().map(|traced| traced.delivery).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "{id}: {trace:?}");
    for delivery in heard {
        let at = usize::try_from(delivery_of(&delivery.receipt)).unwrap() - 1;
        let traced = delivered.get(at).unwrap_or_else(|| panic!("{delivery:?} is not in {trace:?}"));
        assert_eq!(
            (traced.attempt, &traced.consumer),
            (delivery.attempt, &delivery.consumer),
            "{delivery:?}: {trace:?}"
        );
        if let Some(event) = all.iter().find_map(|consumed| consumed.returned.get(&delivery.receipt)) {
            let is_it = |traced: &&&crate::common::Traced| traced.delivery == at as u64 + 1;
            assert!(of(event).iter().any(|traced| is_it(&traced)), "{delivery:?} {event}: {trace:?}");
        }
    }
    // Each hand-out ended before the next one began, and the last one by the acknowledgement that was answered so.
    let ends = ["RETURNED", "NACKED", "LEASE_EXPIRED", "ACKED"];
    let steps: Vec<&str> = trace[1..].iter().map(|traced| traced.event.as_str()).collect();
    for (at, step) in steps.iter().enumerate() {
        let is_right = if at % 2 == 0 { *step == "DELIVERED" } else { ends.contains(step) };
        assert!(is_right, "{id}: {trace:?}");
    }
    let last = trace.last().unwrap();
    assert_eq!((last.event.as_str(), last.delivery), ("ACKED", delivery_of(finished)), "{id}: {trace:?}");
    assert_eq!(of("ACKED").len(), 1, "{id}: {trace:?}");
    delivered.len() as u64
}

/// Kills nodes, the leader every second time, and counts them.
fn kill_nodes(cluster: &mut Cluster, seed: u64, kills: &Cell<u64>, is_over: impl Fn() -> bool) {
    let mut random = Random::new(seed);
    while !is_over() {
        let victim = if kills.get().is_multiple_of(2) { cluster.leader() } else { random.below(3) + 1 };
        cluster.kill(victim);
        thread::sleep(DOWN);
        cluster.start_node(victim);
        kills.set(kills.get() + 1);
        let mut left = KILL_INTERVAL - DOWN;
        while !left.is_zero() && !is_over() {
            let nap = left.min(Duration::from_millis(50));
            thread::sleep(nap);
            left -= nap;
        }
    }
}

#[test]
fn every_message_that_was_pushed_is_processed_whatever_dies() {
    let count = number_from_env("QUEUES_MESSAGES", 20_000);
    let seed = seed();
    let mut cluster = Cluster::start(&[]);
    // Leases end often here, which must not put anything aside.
    let configured = cluster.client(1).cmd(&["QCONFIG", "SET", QUEUE, "MAXDELIVER", "0", "DEDUP", "3600000"]);
    assert_eq!(configured.text(), "OK");
    let direct = addresses(&cluster);
    let cuts: Vec<Cuts> = direct
        .iter()
        .zip(1..)
        .map(|(to, n)| Cuts::before(*to, seed * 10 + n, BYTES_BEFORE_CUT, BYTES_BEFORE_CUT))
        .collect();
    let through: Vec<SocketAddr> = cuts.iter().map(Cuts::address).collect();
    let clock = SystemClock::start();
    let from = clock.monotonic();
    let (done, kills) = (Arc::new(AtomicU64::new(0)), Cell::new(0));
    let stop = Arc::new(AtomicBool::new(false));

    let producers: Vec<_> = (0..PRODUCERS)
        .map(|number| {
            let through = through.clone();
            let numbers = (0..count).filter(|n| n % PRODUCERS == number).collect();
            thread::spawn(move || produce(&through, numbers, seed * 100 + number))
        })
        .collect();
    let consumers: Vec<_> = (0..CONSUMERS)
        .map(|number| {
            let consumer = Consumer {
                caller: Caller::new(&through, seed * 1_000 + number),
                name: format!("consumer-{number}"),
                consumed: Consumed::default(),
            };
            let (done, stop) = (Arc::clone(&done), Arc::clone(&stop));
            thread::spawn(move || consumer.run(&done, &stop))
        })
        .collect();
    let watcher = {
        let (direct, stop) = (direct.clone(), Arc::clone(&stop));
        thread::spawn(move || watch_sums(&direct, QUEUE, &stop))
    };
    let patience = Millis(120_000 + count * 5);
    kill_nodes(&mut cluster, seed, &kills, || {
        let is_done = done.load(Ordering::Relaxed) >= count && kills.get() >= KILLS_MIN;
        // Somebody who ended early has failed, and tells below.
        is_done
            || consumers.iter().any(thread::JoinHandle::is_finished)
            || clock.monotonic().since(from) > patience
    });
    let kills = kills.get();
    let micros = clock.monotonic().micros_since(from);
    stop.store(true, Ordering::Relaxed);
    let pushed: Vec<Pushed> = producers.into_iter().map(|producer| producer.join().unwrap()).collect();
    let consumed: Vec<Consumed> = consumers.into_iter().map(|consumer| consumer.join().unwrap()).collect();
    let looks = watcher.join().unwrap();

    let ids: BTreeMap<u64, &String> =
        pushed.iter().flat_map(|pushed| pushed.ids.iter().map(|(number, id)| (*number, id))).collect();
    assert_eq!(ids.len() as u64, count, "every push was acknowledged");
    let mut finished: BTreeMap<u64, &String> = BTreeMap::new();
    for (number, receipt) in consumed.iter().flat_map(|consumed| &consumed.finished) {
        let id = ids.get(number).unwrap_or_else(|| panic!("{number} was invented: {receipt}"));
        assert_eq!(place(receipt.split_once(':').unwrap().0), place(id), "{number}");
        let before = finished.insert(*number, receipt);
        assert!(
            before.is_none_or(|before| before == receipt),
            "{number} was finished by {before:?} and {receipt}"
        );
    }
    assert_eq!(finished.len() as u64, count, "pushed and acknowledged is processed");

    let mut observer = cluster.client(1);
    let info = observer.cmd(&["QINFO", QUEUE]);
    check_sums(&info);
    let [left, pushed_count, acked] = counts(&info, ["ready", "pushed", "acked"]);
    assert_eq!((left, pushed_count, acked), (0, count, count), "{info:?}");
    assert_eq!(counts(&info, ["delayed", "leased", "dead"]), [0; 3], "{info:?}");
    let (mut traces, mut delivered) = (0, 0);
    for number in (0..count).step_by(TRACED as usize) {
        let heard = consumed.iter().filter_map(|consumed| consumed.heard.get(&number)).flatten();
        let heard: Vec<Delivery> = heard.cloned().collect();
        delivered += check_trace(&mut observer, ids[&number], &heard, finished[&number], &consumed);
        traces += 1;
    }
    let sum = |of: fn(&Consumed) -> u64| consumed.iter().map(of).sum::<u64>();
    println!(
        "{count} messages through in {:.1} s, all processed, none invented: {} nodes killed, {} connections cut, \
         {} consumers left while they waited, {} QNACKs, {} leases ended, {} pushes repeated, {} hand-outs of which {} \
         were heard of; the counts added up {looks} times; {traces} traces with {delivered} hand-outs agree; \
         {} breaks seen",
        micros as f64 / 1e6,
        kills,
        cuts.iter().map(Cuts::count).sum::<u64>(),
        sum(|consumed| consumed.left_waiting),
        sum(|consumed| consumed.nacked),
        info.field("expired_leases").number(),
        info.field("duplicates").number(),
        info.field("delivered").number(),
        sum(|consumed| consumed.popped),
        sum(|consumed| consumed.breaks) + pushed.iter().map(|pushed| pushed.breaks).sum::<u64>(),
    );
    assert!(cuts.iter().map(Cuts::count).sum::<u64>() > 0, "nothing was cut");
    cluster.start_all();
    cluster.check_digests();
    cluster.check_alive();
}
