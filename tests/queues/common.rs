//! What the tests of queues share.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use crate::support::Random;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::encode;
use crate::support::client::is_garbled;
use crate::support::cluster::Cluster;
use crate::support::number_from_env;

/// Codes that say that nothing was executed and that a repeat may help.
pub const NOT_EXECUTED: [&str; 4] = ["TRYAGAIN", "CLUSTERDOWN", "READONLY", "LOADING"];

/// Reads of those who wait may take as long as this.
pub const LONG_WAIT: Duration = Duration::from_secs(60);

/// Where random numbers start; a failed test has printed it.
pub fn seed() -> u64 {
    let seed = number_from_env("QUEUES_SEED", 7);
    println!("seed {seed}");
    seed
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Reply(Value),
    /// Refused with a code that says that it was not executed.
    NotExecuted(Value),
    /// No reply, or one that says that nobody knows.
    Unknown,
}

impl Answer {
    fn of(reply: Option<Value>) -> Answer {
        match reply {
            None => Answer::Unknown,
            Some(reply) => match reply.error_code() {
                Some("INDOUBT") => Answer::Unknown,
                Some(code) if NOT_EXECUTED.contains(&code) => Answer::NotExecuted(reply),
                _ => Answer::Reply(reply),
            },
        }
    }
}

/// Somebody who talks to whichever node answers, over a connection that may break at any time.
pub struct Caller {
    addresses: Vec<SocketAddr>,
    client: Option<Client>,
    pub random: Random,
    pub breaks: u64,
    pub refusals: BTreeMap<String, u64>,
}

impl Caller {
    pub fn new(addresses: &[SocketAddr], seed: u64) -> Caller {
        Caller {
            addresses: addresses.to_vec(),
            client: None,
            random: Random::new(seed),
            breaks: 0,
            refusals: BTreeMap::new(),
        }
    }

    /// The next request goes over a new connection, to any node.
    pub fn leave(&mut self) {
        self.client = None;
    }

    /// The connection; `None` when there is none to be had now.
    pub fn client(&mut self) -> Option<&mut Client> {
        if self.client.is_none() {
            let at = usize::try_from(self.random.below(self.addresses.len() as u64)).unwrap();
            self.client = Client::try_connect(self.addresses[at]).ok();
            match &self.client {
                Some(client) => client.set_timeout(Duration::from_secs(20)),
                None => thread::sleep(Duration::from_millis(20)),
            }
        }
        self.client.as_mut()
    }

    /// Sends all these requests at once and says what became of each. `None`: none was sent.
    pub fn pipeline<W: AsRef<str>>(&mut self, commands: &[Vec<W>]) -> Option<Vec<Answer>> {
        let mut requests = Vec::new();
        for words in commands {
            encode(words.iter().map(|word| word.as_ref().as_bytes()), &mut requests);
        }
        let client = self.client()?;
        let mut replies = Vec::with_capacity(commands.len());
        let mut is_broken = client.try_send_raw(&requests).is_err();
        while !is_broken && replies.len() < commands.len() {
            match client.try_read() {
                Ok(reply) => replies.push(Some(reply)),
                // A reply that was cut in the middle of a line ends in the wrong way, and the connection with it.
                Err(error) => {
                    assert!(!is_garbled(&error) || error.to_string().contains("without CR LF"), "{error}");
                    is_broken = true;
                }
            }
        }
        if is_broken {
            self.client = None;
            self.breaks += 1;
        }
        replies.resize(commands.len(), None);
        let answers: Vec<Answer> = replies.into_iter().map(Answer::of).collect();
        for answer in &answers {
            if let Answer::NotExecuted(reply) = answer {
                *self.refusals.entry(reply.error_code().unwrap_or_default().to_owned()).or_default() += 1;
                self.client = None;
            }
        }
        if answers.iter().any(|answer| matches!(answer, Answer::NotExecuted(_))) {
            thread::sleep(Duration::from_millis(5));
        }
        Some(answers)
    }

    /// Sends one request.
    pub fn call<W: AsRef<str>>(&mut self, words: &[W]) -> Answer {
        let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
        let answers = self.pipeline(&[words]);
        answers.map_or(Answer::Unknown, |mut answers| answers.pop().unwrap())
    }

    /// Sends one request until it has a reply: only for what may be executed twice.
    pub fn insist<W: AsRef<str>>(&mut self, words: &[W]) -> Value {
        for _ in 0..100_000 {
            if let Answer::Reply(reply) = self.call(words) {
                return reply;
            }
        }
        let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
        panic!("no reply to {words:?}");
    }
}

/// The addresses of all nodes.
pub fn addresses(cluster: &Cluster) -> Vec<SocketAddr> {
    cluster.ids().into_iter().map(|id| cluster.address(id)).collect()
}

/// A message as QPOP gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Popped {
    pub queue: String,
    pub receipt: String,
    pub payload: String,
    pub attempt: u64,
}

impl Popped {
    /// Reads a reply to QPOP; none when it found nothing. Fails the test for an error.
    pub fn read_all(reply: &Value) -> Vec<Popped> {
        match reply {
            Value::NullArray => Vec::new(),
            reply => reply.items().iter().map(Popped::read).collect(),
        }
    }

    fn read(value: &Value) -> Popped {
        let [queue, receipt, payload, attempt] = value.items() else { panic!("not a message: {value:?}") };
        Popped {
            queue: queue.text(),
            receipt: receipt.text(),
            payload: payload.text(),
            attempt: attempt.number(),
        }
    }

    pub fn id(&self) -> &str {
        self.receipt.split_once(':').unwrap().0
    }

    pub fn delivery(&self) -> u64 {
        delivery_of(&self.receipt)
    }
}

/// The delivery that a receipt names.
pub fn delivery_of(receipt: &str) -> u64 {
    receipt.split_once(':').unwrap().1.parse().unwrap()
}

/// An id as its two numbers, which order as it does.
pub fn place(id: &str) -> (u64, u64) {
    let (index, n) = id.split_once('-').unwrap();
    (index.parse().unwrap(), n.parse().unwrap())
}

/// An event of QTRACE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traced {
    pub event: String,
    pub index: u64,
    pub delivery: u64,
    pub attempt: u64,
    pub consumer: String,
    pub at_ms: u64,
    pub reason: String,
}

/// What QTRACE tells of a message, which never goes back in time.
pub fn trace_of(client: &mut Client, queue: &str, id: &str) -> Vec<Traced> {
    let reply = client.cmd(&["QTRACE", queue, id]);
    let event = |event: &Value| Traced {
        event: event.field("event").text(),
        index: event.field("index").number(),
        delivery: event.field("delivery").number(),
        attempt: event.field("attempt").number(),
        consumer: event.field("consumer").text(),
        at_ms: event.field("at_ms").number(),
        reason: event.field("reason").text(),
    };
    let events: Vec<Traced> = reply.items().iter().map(event).collect();
    assert_eq!(events.first().map(|event| event.event.as_str()), Some("PUSHED"), "{queue} {id}: {events:?}");
    let is_in_order = |pair: &[Traced]| pair[0].index <= pair[1].index && pair[0].at_ms <= pair[1].at_ms;
    assert!(events.windows(2).all(is_in_order), "{queue} {id}: {events:?}");
    events
}

/// Some counts of QINFO.
pub fn counts<const N: usize>(info: &Value, names: [&str; N]) -> [u64; N] {
    names.map(|name| info.field(name).number())
}

/// Every message that came in is somewhere: fails the test when the counts of QINFO do not add up.
pub fn check_sums(info: &Value) {
    let names = ["ready", "delayed", "leased", "dead", "acked", "deleted", "moved"];
    let sum: u64 = counts(info, names).iter().sum();
    assert_eq!(sum, info.field("pushed").number(), "{info:?}");
}

/// Looks at a queue's counts again and again, through any node; tells how often.
pub fn watch_sums(addresses: &[SocketAddr], queue: &str, stop: &AtomicBool) -> u64 {
    let mut caller = Caller::new(addresses, 1);
    let mut looks = 0;
    while !stop.load(Ordering::Relaxed) {
        if let Answer::Reply(info) = caller.call(&["QINFO", queue]) {
            check_sums(&info);
            looks += 1;
        }
        if looks % 8 == 0 {
            caller.leave();
        }
        thread::sleep(Duration::from_millis(20));
    }
    looks
}
