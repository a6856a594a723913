//! Clients that write to all nodes, keep account of what was answered, and check it afterwards.
//!
//! Each command ends in one of three ways: *acknowledged*; *in doubt*, because its connection broke or the reply was
//! INDOUBT; or *not executed*, when an error code said so. What was acknowledged must be there once, what is in doubt
//! may be there once, and nothing else may be there.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use crate::support::Random;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::encode;
use crate::support::client::is_garbled;
use crate::support::client::ok;
use crate::support::cluster::Cluster;
use crate::support::cluster::PATIENCE;
use crate::support::wait_for;

/// A client that got no reply for this long takes the node for hung.
const REPLY_WAIT: Duration = Duration::from_secs(30);

/// Codes of errors after which a command certainly was not executed.
const NOT_EXECUTED: [&str; 7] =
    ["READONLY", "CLUSTERDOWN", "LOADING", "TRYAGAIN", "MISCONF", "MASTERDOWN", "OOM"];

/// Messages that are taken out at once while checking.
const DRAINED: &str = "500";

/// What clients do.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub clients: u64,
    /// The most commands a client has underway.
    pub window: u64,
    /// Bytes of each value and message.
    pub value_length: usize,
    pub seed: u64,
}

/// Clients, spread over the nodes, and what each knows of its commands.
pub struct Load {
    plan: Plan,
    pub books: Vec<Book>,
}

/// How far the clients of a [`Load`] are.
#[derive(Default)]
pub struct Progress {
    stop: AtomicBool,
    acknowledged: AtomicU64,
}

impl Progress {
    /// Commands that were acknowledged since the clients began.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until `count` more commands are acknowledged.
    pub fn wait_for_more(&self, count: u64) {
        let enough = self.acknowledged() + count;
        wait_for("writes to be acknowledged", PATIENCE, || (self.acknowledged() >= enough).then_some(()));
    }
}

/// Ends the clients however the test ends; a failed one would wait for them for ever.
struct StopAtEnd<'a>(&'a Progress);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

impl Load {
    pub fn new(cluster: &Cluster, plan: Plan) -> Load {
        let nodes = cluster.ids();
        let books = (0..plan.clients).zip(nodes.iter().cycle()).map(|(client, node)| Book {
            client,
            node: *node,
            address: Some(cluster.address(*node)),
            ..Book::default()
        });
        Load { plan, books: books.collect() }
    }

    /// Lets the clients write while `during` runs.
    pub fn run<R>(&mut self, during: impl FnOnce(&Progress) -> R) -> R {
        let progress = Progress::default();
        let plan = self.plan;
        thread::scope(|scope| {
            let _end = StopAtEnd(&progress);
            for book in &mut self.books {
                let progress = &progress;
                scope.spawn(move || book.write(plan, progress));
            }
            during(&progress)
        })
    }

    pub fn acknowledged(&self) -> u64 {
        self.books.iter().map(|book| book.acknowledged).sum()
    }

    pub fn in_doubt(&self) -> u64 {
        self.books.iter().map(|book| book.in_doubt).sum()
    }

    /// No client saw an error line on a connection that had worked.
    pub fn check_no_errors(&self) {
        for book in &self.books {
            let errors = &book.errors;
            assert!(errors.is_empty(), "client {} of node {} saw {errors:?}", book.client, book.node);
        }
    }

    /// Connections broke at these nodes only, and for each client not more often than given here.
    pub fn check_breaks(&self, kills: &BTreeMap<u64, u64>) {
        for book in &self.books {
            let most = kills.get(&book.node).copied().unwrap_or(0);
            assert!(
                book.breaks <= most,
                "{} connections of client {} broke, its node {} was killed {most} times",
                book.breaks,
                book.client,
                book.node
            );
        }
    }

    /// Everything acknowledged is there and nothing else is, asked of one node; takes nothing out.
    pub fn check(&self, client: &mut Client) {
        self.books.iter().for_each(|book| book.check(client));
        let least: u64 = self.books.iter().map(|book| book.shared.acknowledged).sum();
        let doubt: u64 = self.books.iter().map(|book| book.shared.in_doubt).sum();
        let value = counter(client, SHARED_COUNTER);
        assert!(
            (least..=least + doubt).contains(&value),
            "{SHARED_COUNTER}: {value}, {least} + {doubt} in doubt"
        );
        let mut answers = BTreeSet::new();
        for answer in self.books.iter().flat_map(|book| &book.shared_answers) {
            assert!(answers.insert(*answer), "{SHARED_COUNTER} was {answer} twice");
            assert!(*answer <= value, "{SHARED_COUNTER}: {value} after {answer}");
        }
        let mut ids = BTreeSet::new();
        assert!(
            self.books.iter().flat_map(|book| book.pushes.keys()).all(|id| ids.insert(id)),
            "an id twice"
        );
    }

    /// As [`Load::check`] of every node; then takes all messages out, each through another node.
    pub fn check_all(&self, cluster: &mut Cluster) {
        let mut clients: Vec<Client> = cluster.running().into_iter().map(|id| cluster.client(id)).collect();
        clients.iter_mut().for_each(|client| self.check(client));
        for (number, book) in self.books.iter().enumerate() {
            let place = number % clients.len();
            book.drain(&mut clients[place]);
        }
    }
}

/// What one client did and what it knows of it. Commands are numbered from 0; a number's command never changes.
#[derive(Default)]
pub struct Book {
    pub client: u64,
    pub node: u64,
    address: Option<SocketAddr>,
    sent: u64,
    pub acknowledged: u64,
    pub in_doubt: u64,
    /// Commands that were not executed, on connections that had not worked yet: a node that starts says so.
    pub refused: u64,
    /// Connections that broke after they had worked.
    pub breaks: u64,
    /// Error lines on connections that had worked before.
    pub errors: Vec<String>,
    sets: Vec<u64>,
    unknown_sets: Vec<u64>,
    own: Counter,
    shared: Counter,
    shared_answers: Vec<u64>,
    pushes: BTreeMap<String, u64>,
    unknown_pushes: BTreeSet<u64>,
}

#[derive(Default)]
struct Counter {
    acknowledged: u64,
    in_doubt: u64,
}

const SHARED_COUNTER: &str = "load:counter";

impl Book {
    fn command(&self, n: u64, length: usize) -> Vec<String> {
        match n % 4 {
            0 => vec!["SET".to_owned(), self.set_key(n), self.value(n, length)],
            1 => vec!["INCR".to_owned(), self.counter_key()],
            2 => vec!["INCR".to_owned(), SHARED_COUNTER.to_owned()],
            _ => vec!["QPUSH".to_owned(), self.queue(), self.value(n, length)],
        }
    }

    fn set_key(&self, n: u64) -> String {
        format!("load:{}:{n}", self.client)
    }

    fn counter_key(&self) -> String {
        format!("load:counter:{}", self.client)
    }

    fn queue(&self) -> String {
        format!("load:queue:{}", self.client)
    }

    /// Starts with the command's number and has at least the length.
    fn value(&self, n: u64, length: usize) -> String {
        format!("{:_<length$}", format!("{n} of {} ", self.client))
    }

    /// The number of the command that wrote this.
    fn written_by(&self, value: &str) -> u64 {
        let number = value.split(' ').next().and_then(|word| word.parse().ok());
        number.filter(|n| value.starts_with(&self.value(*n, 0))).unwrap_or_else(|| {
            panic!("client {} did not write {value:?}", self.client);
        })
    }

    /// Writes, and connects again when the connection breaks, until it is told to stop.
    fn write(&mut self, plan: Plan, progress: &Progress) {
        let mut random = Random::new(plan.seed ^ (self.client << 32));
        let address = self.address.expect("a client has an address");
        while !progress.stop.load(Ordering::Relaxed) {
            match Client::try_connect(address) {
                Ok(client) => {
                    client.set_timeout(REPLY_WAIT);
                    self.write_while_connected(client, plan, &mut random, progress);
                }
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn write_while_connected(
        &mut self,
        mut client: Client,
        plan: Plan,
        random: &mut Random,
        progress: &Progress,
    ) {
        let mut has_worked = false;
        while !progress.stop.load(Ordering::Relaxed) {
            let window = self.sent..self.sent + 1 + random.below(plan.window);
            self.sent = window.end;
            let mut requests = Vec::new();
            for n in window.clone() {
                let words = self.command(n, plan.value_length);
                encode(words.iter().map(|word| word.as_bytes()), &mut requests);
            }
            // What was sent in part may have been taken in part: replies are looked for all the same.
            let was_sent = client.try_send_raw(&requests).is_ok();
            if !was_sent {
                client.set_timeout(Duration::from_millis(100));
            }
            let (mut broken, mut was_refused) = (None, false);
            for n in window {
                if broken.is_some() {
                    self.on_doubt(n);
                    continue;
                }
                match client.try_read() {
                    Ok(Value::Error(text)) => {
                        self.on_error(n, text, has_worked);
                        was_refused = true;
                    }
                    Ok(reply) => {
                        has_worked = true;
                        self.on_acknowledged(n, reply);
                        progress.acknowledged.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => {
                        assert!(!is_garbled(&error), "{error}");
                        self.on_doubt(n);
                        broken = Some(error);
                    }
                }
            }
            let is_hung = broken.as_ref().is_some_and(|error| was_sent && is_timeout(error));
            if is_hung {
                self.errors.push(format!("no reply in {REPLY_WAIT:?}"));
                return;
            }
            if !was_sent || broken.is_some() {
                self.breaks += u64::from(has_worked);
                return;
            }
            if was_refused {
                thread::sleep(Duration::from_millis(20));
            }
        }
    }

    fn on_acknowledged(&mut self, n: u64, reply: Value) {
        self.acknowledged += 1;
        match n % 4 {
            0 => {
                assert_eq!(reply, ok());
                self.sets.push(n);
            }
            1 => {
                self.own.acknowledged += 1;
                let Counter { acknowledged, in_doubt } = self.own;
                let value = reply.number();
                assert!(
                    (acknowledged..=acknowledged + in_doubt).contains(&value),
                    "INCR of {} answered {value} after {acknowledged} and {in_doubt} in doubt",
                    self.counter_key()
                );
            }
            2 => {
                self.shared.acknowledged += 1;
                self.shared_answers.push(reply.number());
            }
            _ => {
                let before = self.pushes.insert(reply.text(), n);
                assert_eq!(before, None, "id {reply:?} twice");
            }
        }
    }

    fn on_error(&mut self, n: u64, text: String, has_worked: bool) {
        let code = text.split(' ').next().unwrap_or_default();
        let was_executed_perhaps = !NOT_EXECUTED.contains(&code);
        if was_executed_perhaps {
            self.on_doubt(n);
        }
        if was_executed_perhaps || has_worked {
            self.errors.push(text);
        } else {
            self.refused += 1;
        }
    }

    fn on_doubt(&mut self, n: u64) {
        self.in_doubt += 1;
        match n % 4 {
            0 => self.unknown_sets.push(n),
            1 => self.own.in_doubt += 1,
            2 => self.shared.in_doubt += 1,
            _ => drop(self.unknown_pushes.insert(n)),
        }
    }

    fn check(&self, client: &mut Client) {
        for (n, reply) in self.get(client, &self.sets) {
            let Value::Bulk(value) = reply else { panic!("acknowledged {}: {reply:?}", self.set_key(n)) };
            assert_eq!(self.written_by(&String::from_utf8_lossy(&value)), n);
        }
        for (n, reply) in self.get(client, &self.unknown_sets) {
            if reply != Value::Null {
                assert_eq!(self.written_by(&reply.text()), n);
            }
        }
        let Counter { acknowledged: least, in_doubt } = self.own;
        let value = counter(client, &self.counter_key());
        assert!(
            (least..=least + in_doubt).contains(&value),
            "{}: {value}, {least} acknowledged and {in_doubt} in doubt",
            self.counter_key()
        );
        let messages = client.cmd(&["QLEN", &self.queue(), "ALL"]).number();
        let (least, in_doubt) = (self.pushes.len() as u64, self.unknown_pushes.len() as u64);
        assert!(
            (least..=least + in_doubt).contains(&messages),
            "{messages} messages in {}, {least} acknowledged and {in_doubt} in doubt",
            self.queue()
        );
    }

    fn get(&self, client: &mut Client, numbers: &[u64]) -> Vec<(u64, Value)> {
        let mut replies = Vec::with_capacity(numbers.len());
        for numbers in numbers.chunks(500) {
            let commands: Vec<Vec<String>> =
                numbers.iter().map(|n| vec!["GET".to_owned(), self.set_key(*n)]).collect();
            replies.extend(numbers.iter().copied().zip(client.pipeline(&commands)));
        }
        replies
    }

    /// Takes every message out: each that was acknowledged comes once, under its id.
    fn drain(&self, client: &mut Client) {
        let queue = self.queue();
        let (mut ids, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        loop {
            let popped = client.cmd(&["QPOP", "COUNT", DRAINED, "LEASE", "3600000", "FROM", &queue]);
            let Value::Array(messages) = popped else { break };
            let mut ack = vec!["QACK".to_owned(), queue.clone()];
            for message in &messages {
                let receipt = message.items()[1].text();
                let id = receipt.split(':').next().unwrap().to_owned();
                let n = self.written_by(&message.items()[2].text());
                match self.pushes.get(&id) {
                    Some(pushed) => assert_eq!(*pushed, n, "message {id}"),
                    None => assert!(self.unknown_pushes.contains(&n), "message {n} was never pushed"),
                }
                assert!(ids.insert(id), "an id twice: {receipt}");
                assert!(numbers.insert(n), "message {n} twice: {receipt}");
                ack.push(receipt);
            }
            let words: Vec<&str> = ack.iter().map(String::as_str).collect();
            assert_eq!(client.cmd(&words).number(), messages.len() as u64);
        }
        let lost: Vec<_> = self.pushes.keys().filter(|id| !ids.contains(*id)).take(5).collect();
        assert!(lost.is_empty(), "acknowledged messages that are not there: {lost:?} …");
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn counter(client: &mut Client, key: &str) -> u64 {
    match client.cmd(&["GET", key]) {
        Value::Null => 0,
        value => value.number(),
    }
}
