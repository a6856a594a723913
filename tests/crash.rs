//! What was acknowledged is there after `kill -9`, once: SET, INCR, LOCK and QPUSH from four connections while the
//! node is killed ten times at random moments.
//!
//! Every command that was sent is in one of two states here: acknowledged, with its reply, or unknown, because the
//! connection broke first. An acknowledged effect must be there and an unknown one may be; nothing may be there
//! twice. `CRASH_WRITES=1000000` for the long form.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use holdfast::clock::Clock;
use holdfast::clock::SystemClock;

use crate::support::Random;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::ok;
use crate::support::node::Node;

const WORKERS: u64 = 4;
const KILLS: u64 = 10;
/// Counters of each worker.
const COUNTERS: u64 = 16;
/// The most commands a worker has underway.
const WINDOW: u64 = 64;

/// What a worker did and what it knows of it. Commands are numbered from 0; a number's command never changes.
#[derive(Default)]
struct Book {
    worker: u64,
    sent: u64,
    sets: Vec<u64>,
    unknown_sets: Vec<u64>,
    /// Acknowledged and unknown increments of each counter, and the last value that was answered.
    counters: BTreeMap<u64, Counter>,
    locks: Vec<(u64, i64)>,
    pushes: BTreeMap<String, String>,
    unknown_pushes: BTreeSet<String>,
    /// Least and greatest token of the life of the node that is being written to.
    tokens: Option<(i64, i64)>,
}

#[derive(Default)]
struct Counter {
    acknowledged: i64,
    unknown: i64,
    last: i64,
}

impl Book {
    fn command(&self, n: u64) -> Vec<String> {
        let worker = self.worker;
        match n % 4 {
            0 => vec!["SET".to_owned(), self.set_key(n), self.set_value(n)],
            1 => vec!["INCR".to_owned(), self.counter_key(counter_of(n))],
            2 => [&["LOCK".to_owned(), self.lock_key(n)][..], &self.lock_terms(n)].concat(),
            _ => vec!["QPUSH".to_owned(), format!("queue:{worker}"), format!("{worker}:{n}")],
        }
    }

    fn set_key(&self, n: u64) -> String {
        format!("set:{}:{n}", self.worker)
    }

    fn set_value(&self, n: u64) -> String {
        format!("{:_<64}", format!("{}:{n}", self.worker))
    }

    fn counter_key(&self, counter: u64) -> String {
        format!("counter:{}:{counter}", self.worker)
    }

    fn lock_key(&self, n: u64) -> String {
        format!("lock:{}:{n}", self.worker)
    }

    fn lock_terms(&self, n: u64) -> [String; 3] {
        [format!("owner-{n}"), "EX".to_owned(), "86400".to_owned()]
    }

    fn acknowledged(&mut self, n: u64, reply: Value) {
        match n % 4 {
            0 => {
                assert_eq!(reply, ok());
                self.sets.push(n);
            }
            1 => {
                let counter = self.counters.entry(counter_of(n)).or_default();
                counter.acknowledged += 1;
                assert!(reply.integer() > counter.last, "INCR answered {reply:?} after {}", counter.last);
                counter.last = reply.integer();
            }
            2 => {
                let token = reply.integer();
                let newest = self.locks.last().map_or(0, |(_, token)| *token);
                assert!(token > newest, "token {token} after {newest}");
                self.locks.push((n, token));
                self.tokens = Some((self.tokens.map_or(token, |(least, _)| least), token));
            }
            _ => {
                let Value::Bulk(id) = reply else { panic!("QPUSH answered {reply:?}") };
                let id = String::from_utf8(id).unwrap();
                let replaced = self.pushes.insert(id.clone(), format!("{}:{n}", self.worker));
                assert_eq!(replaced, None, "id {id} twice");
            }
        }
    }

    fn unknown(&mut self, n: u64) {
        match n % 4 {
            0 => self.unknown_sets.push(n),
            1 => self.counters.entry(counter_of(n)).or_default().unknown += 1,
            // A lock that may be held is not asked for again; its token is nobody's.
            2 => {}
            _ => drop(self.unknown_pushes.insert(format!("{}:{n}", self.worker))),
        }
    }

    /// Writes until `quota` commands were sent or the connection breaks.
    fn write(&mut self, mut client: Client, quota: u64, random: &mut Random, done: &AtomicU64) {
        while self.sent < quota {
            let window = self.sent..(self.sent + 1 + random.below(WINDOW)).min(quota);
            self.sent = window.end;
            let mut requests = Vec::new();
            for n in window.clone() {
                let words = self.command(n);
                support::client::encode(words.iter().map(|word| word.as_bytes()), &mut requests);
            }
            let mut broken = client.try_send_raw(&requests).is_err();
            for n in window {
                // What was sent in part may have been taken in part: replies are looked for all the same.
                match client.try_read() {
                    Ok(reply) => {
                        self.acknowledged(n, reply);
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(_) => {
                        broken = true;
                        self.unknown(n);
                    }
                }
            }
            if broken {
                return;
            }
        }
    }

    /// Everything that was acknowledged is there and nothing else is.
    fn check(&self, client: &mut Client) {
        for (n, reply) in self.ask(client, &self.sets, |n| vec!["GET".to_owned(), self.set_key(n)]) {
            assert_eq!(
                reply,
                Value::Bulk(self.set_value(n).into_bytes()),
                "acknowledged {}",
                self.set_key(n)
            );
        }
        for (n, reply) in self.ask(client, &self.unknown_sets, |n| vec!["GET".to_owned(), self.set_key(n)]) {
            let written = Value::Bulk(self.set_value(n).into_bytes());
            assert!(reply == Value::Null || reply == written, "{}: {reply:?}", self.set_key(n));
        }
        for (counter, known) in &self.counters {
            let key = self.counter_key(*counter);
            let value: i64 = match client.cmd(&["GET", &key]) {
                Value::Null => 0,
                value => value.text().parse().unwrap(),
            };
            let most = known.acknowledged + known.unknown;
            assert!(
                (known.acknowledged..=most).contains(&value),
                "{key}: {value} not in {}..={most}",
                known.acknowledged
            );
            assert!(value >= known.last, "{key}: {value} after {} was answered", known.last);
        }
        // Its owner asks again and must be told the same token: the hold is there and is the same hold.
        let (numbers, tokens): (Vec<u64>, Vec<i64>) = self.locks.iter().copied().unzip();
        for ((n, reply), token) in self.ask(client, &numbers, |n| self.command(n)).into_iter().zip(tokens) {
            assert_eq!(reply, Value::Integer(token), "{}", self.lock_key(n));
        }
        let ready = client.cmd(&["QLEN", &format!("queue:{}", self.worker), "ALL"]).integer();
        let (least, unknown) = (self.pushes.len() as i64, self.unknown_pushes.len() as i64);
        assert!(
            (least..=least + unknown).contains(&ready),
            "{ready} messages, {least} to {least} + {unknown} pushed"
        );
    }

    fn ask(
        &self,
        client: &mut Client,
        numbers: &[u64],
        command: impl Fn(u64) -> Vec<String>,
    ) -> Vec<(u64, Value)> {
        let mut replies = Vec::with_capacity(numbers.len());
        for numbers in numbers.chunks(500) {
            let commands: Vec<Vec<String>> = numbers.iter().map(|n| command(*n)).collect();
            replies.extend(numbers.iter().copied().zip(client.pipeline(&commands)));
        }
        replies
    }

    /// Takes every message out: each that was acknowledged comes once, under its id.
    fn drain(&self, client: &mut Client) -> u64 {
        let queue = format!("queue:{}", self.worker);
        let (mut ids, mut payloads) = (BTreeSet::new(), BTreeSet::new());
        while let Value::Array(messages) =
            client.cmd(&["QPOP", "COUNT", "500", "LEASE", "3600000", "FROM", &queue])
        {
            let mut ack = vec!["QACK".to_owned(), queue.clone()];
            for message in &messages {
                let receipt = message.items()[1].text();
                let id = receipt.split(':').next().unwrap().to_owned();
                let payload = message.items()[2].text();
                if let Some(pushed) = self.pushes.get(&id) {
                    assert_eq!(*pushed, payload, "message {id}");
                } else {
                    assert!(self.unknown_pushes.contains(&payload), "{payload} was never pushed");
                }
                assert!(ids.insert(id), "an id twice: {receipt}");
                assert!(payloads.insert(payload), "a message twice: {receipt}");
                ack.push(receipt);
            }
            let words: Vec<&str> = ack.iter().map(String::as_str).collect();
            assert_eq!(client.cmd(&words), Value::Integer(messages.len() as i64));
        }
        let lost: Vec<_> = self.pushes.keys().filter(|id| !ids.contains(*id)).take(5).collect();
        assert!(lost.is_empty(), "acknowledged messages that are not there: {lost:?} …");
        ids.len() as u64
    }
}

fn counter_of(n: u64) -> u64 {
    n / 4 % COUNTERS
}

/// Lets every worker write to the node until it is killed, after `kill_after` commands were acknowledged in all.
fn write_until_killed(
    node: &mut Node,
    books: &mut [Book],
    quota: u64,
    seed: u64,
    kill_after: Option<u64>,
    done: &AtomicU64,
) {
    let clients: Vec<Client> = books.iter().map(|_| node.client()).collect();
    thread::scope(|scope| {
        let workers: Vec<_> = books
            .iter_mut()
            .zip(clients)
            .map(|(book, client)| {
                let mut random = Random::new(seed ^ book.worker);
                scope.spawn(move || book.write(client, quota, &mut random, done))
            })
            .collect();
        if let Some(kill_after) = kill_after {
            while done.load(Ordering::Relaxed) < kill_after
                && workers.iter().any(|worker| !worker.is_finished())
            {
                thread::sleep(Duration::from_micros(100));
            }
            // Not at the end of a window, nor at the start of a sync.
            thread::sleep(Duration::from_micros(Random::new(seed).below(3_000)));
            node.kill();
        }
    });
}

/// Tokens of the life that just ended are all greater than those of the lives before.
fn check_tokens(books: &mut [Book], newest: i64) -> i64 {
    let spans: Vec<(i64, i64)> = books.iter_mut().filter_map(|book| book.tokens.take()).collect();
    for (least, _) in &spans {
        assert!(*least > newest, "token {least} was granted after {newest} in an earlier life");
    }
    spans.iter().map(|(_, greatest)| *greatest).max().unwrap_or(newest)
}

#[test]
fn acknowledged_writes_are_there_once_after_ten_kills() {
    let writes: u64 = std::env::var("CRASH_WRITES").map_or(60_000, |count| count.parse().unwrap());
    let seed: u64 = std::env::var("CRASH_SEED").map_or(7, |seed| seed.parse().unwrap());
    println!("{writes} writes, {KILLS} kills, seed {seed}");
    let clock = SystemClock::start();
    let mut random = Random::new(seed);
    let mut node = Node::start(&["--appendfsync", "always"]);
    let mut books: Vec<Book> = (0..WORKERS).map(|worker| Book { worker, ..Book::default() }).collect();
    let done = AtomicU64::new(0);
    let (mut newest, mut slowest_restart) = (0, 0);
    for life in 0..=KILLS {
        // A random moment in each share of the writes; the last life ends by itself.
        let share = writes / (KILLS + 1);
        let kill_after = (life < KILLS).then(|| life * share + share / 4 + random.below(share));
        write_until_killed(&mut node, &mut books, writes.div_ceil(WORKERS), random.next(), kill_after, &done);
        newest = check_tokens(&mut books, newest);
        node.kill();
        let before = clock.monotonic();
        node.restart();
        slowest_restart = slowest_restart.max(clock.monotonic().since(before).0);
        let mut client = node.client();
        books.iter().for_each(|book| book.check(&mut client));
    }
    let mut client = node.client();
    let messages: u64 = books.iter().map(|book| book.drain(&mut client)).sum();
    let mut ids = BTreeSet::new();
    let mut tokens = BTreeSet::new();
    for book in &books {
        assert!(book.pushes.keys().all(|id| ids.insert(id)), "an id was given to two messages");
        assert!(book.locks.iter().all(|(_, token)| tokens.insert(token)), "a token was granted twice");
    }
    let acknowledged = done.load(Ordering::Relaxed);
    let unknown: u64 = books.iter().map(|book| book.sent).sum::<u64>() - acknowledged;
    println!(
        "{acknowledged} acknowledged, {unknown} unknown, {} locks, {messages} messages, greatest token {newest}; \
         slowest restart {slowest_restart} ms; {} ms in all",
        tokens.len(),
        clock.monotonic().since(Default::default()).0
    );
    assert!(acknowledged > writes * 9 / 10, "the kills left too little to look at");
}
