//! The clients of a run: some ask one node only, some roam, each one operation at a time, all the time.

use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use holdfast::clock::Clock;
use holdfast::clock::SystemClock;

use crate::chaos::history::Action;
use crate::chaos::history::Answer;
use crate::chaos::history::Journal;
use crate::chaos::history::Operation;
use crate::chaos::history::Outcome;
use crate::support::Random;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::is_garbled;
use crate::support::cluster::PATIENCE;
use crate::support::wait_for;

/// Clients of each node, and those that go from node to node.
pub const PINNED: u64 = 2;
pub const ROAMING: u64 = 2;

/// Keys of each kind; few, so that clients meet.
pub const REGISTERS: u64 = 4;
pub const COUNTERS: u64 = 2;
pub const LOCKS: u64 = 2;
pub const QUEUES: u64 = 2;

/// A client that got no reply for this long connects anew. Nodes answer with INDOUBT before.
const REPLY_WAIT: Duration = Duration::from_secs(3);

/// The longest pause between two operations of a client, in microseconds: it bounds the length of the history.
const PAUSE_MAX_US: u64 = 5_000;

/// How long locks and messages are leased. The short one ends by itself often.
const LEASES_MS: [u64; 3] = [300, 2_000, 2_000];

/// Codes of errors after which a write certainly had and will have no effect.
const NOT_EXECUTED: [&str; 6] = ["READONLY", "CLUSTERDOWN", "LOADING", "TRYAGAIN", "MISCONF", "OOM"];

/// What clients and nemesis tell each other.
pub struct Shared {
    pub clock: SystemClock,
    stop: AtomicBool,
    acknowledged: AtomicU64,
    in_doubt: AtomicU64,
    refused: AtomicU64,
    is_fault: AtomicBool,
    acknowledged_in_faults: AtomicU64,
    /// From when on a write must have been sent whose reply is waited for; 0 when it is not.
    mark: AtomicU64,
    first_after_mark: AtomicU64,
    /// Replies that no fault excuses.
    strange: Mutex<Vec<String>>,
}

impl Shared {
    pub fn new(clock: SystemClock) -> Shared {
        Shared {
            clock,
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            in_doubt: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            is_fault: AtomicBool::new(false),
            acknowledged_in_faults: AtomicU64::new(0),
            mark: AtomicU64::new(0),
            first_after_mark: AtomicU64::new(0),
            strange: Mutex::default(),
        }
    }

    /// Nanoseconds of the run.
    pub fn now(&self) -> u64 {
        self.clock.monotonic().0
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    pub fn in_doubt(&self) -> u64 {
        self.in_doubt.load(Ordering::SeqCst)
    }

    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::SeqCst)
    }

    /// A fault begins or is over.
    pub fn set_fault(&self, is_fault: bool) {
        self.is_fault.store(is_fault, Ordering::SeqCst);
    }

    pub fn acknowledged_in_faults(&self) -> u64 {
        self.acknowledged_in_faults.load(Ordering::SeqCst)
    }

    pub fn strange(&self) -> Vec<String> {
        self.strange.lock().unwrap().clone()
    }

    /// Milliseconds from a moment until a write is acknowledged that is sent from now on.
    pub fn wait_for_write(&self, since: u64) -> u64 {
        self.first_after_mark.store(0, Ordering::SeqCst);
        self.mark.store(self.now(), Ordering::SeqCst);
        let first = wait_for("a write to be acknowledged", PATIENCE, || {
            Some(self.first_after_mark.load(Ordering::SeqCst)).filter(|at| *at != 0)
        });
        self.mark.store(0, Ordering::SeqCst);
        (first - since) / 1_000_000
    }

    /// Waits until so many more operations are acknowledged.
    pub fn wait_for_more(&self, count: u64) {
        let enough = self.acknowledged() + count;
        wait_for("operations to be acknowledged", PATIENCE, || (self.acknowledged() >= enough).then_some(()));
    }

    fn on_operation(&self, operation: &Operation) {
        match &operation.outcome {
            Outcome::Fail(_) => drop(self.refused.fetch_add(1, Ordering::SeqCst)),
            Outcome::Info(_) => drop(self.in_doubt.fetch_add(1, Ordering::SeqCst)),
            Outcome::Ok(_) => {
                self.acknowledged.fetch_add(1, Ordering::SeqCst);
                if self.is_fault.load(Ordering::SeqCst) {
                    self.acknowledged_in_faults.fetch_add(1, Ordering::SeqCst);
                }
                let mark = self.mark.load(Ordering::SeqCst);
                if operation.action != Action::Get && mark != 0 && operation.invoked > mark {
                    let returned = operation.returned;
                    let _ = self.first_after_mark.compare_exchange(
                        0,
                        returned,
                        Ordering::SeqCst,
                        Ordering::SeqCst,
                    );
                }
            }
        }
    }

    fn on_strange(&self, what: String) {
        let mut strange = self.strange.lock().unwrap();
        if strange.len() < 20 {
            strange.push(what);
        }
    }
}

/// A lock that a client holds.
struct Hold {
    key: String,
    owner: String,
    /// `None` when the grant is in doubt.
    token: Option<u64>,
}

/// One client.
pub struct Actor<'a> {
    number: u64,
    /// The nodes it may ask.
    nodes: Vec<(u64, SocketAddr)>,
    at: usize,
    connection: Option<Client>,
    shared: &'a Shared,
    journal: &'a Journal,
    random: Random,
    /// Begins the names of all keys.
    part: &'a str,
    count: u64,
    holds: Vec<Hold>,
    operations: Vec<Operation>,
}

impl<'a> Actor<'a> {
    pub fn new(
        number: u64,
        nodes: Vec<(u64, SocketAddr)>,
        shared: &'a Shared,
        journal: &'a Journal,
        part: &'a str,
        seed: u64,
    ) -> Actor<'a> {
        let random = Random::new(seed ^ number << 32);
        let (holds, operations) = (Vec::new(), Vec::new());
        Actor {
            number,
            nodes,
            at: 0,
            connection: None,
            shared,
            journal,
            random,
            part,
            count: 0,
            holds,
            operations,
        }
    }

    /// Acts until it is told to stop.
    pub fn run(mut self) -> Vec<Operation> {
        while !self.shared.stop.load(Ordering::SeqCst) {
            if self.nodes.len() > 1 && self.random.below(8) == 0 {
                self.roam();
            }
            let is_done = match self.random.below(100) {
                0..45 => self.use_register(),
                45..58 => self.increment(),
                58..76 => self.use_lock(),
                _ => self.use_queue(),
            };
            match is_done {
                true => thread::sleep(Duration::from_micros(self.random.below(PAUSE_MAX_US))),
                false => {
                    thread::sleep(Duration::from_millis(10));
                    self.roam();
                }
            }
        }
        self.operations
    }

    fn roam(&mut self) {
        let at = self.random.below(self.nodes.len() as u64) as usize;
        self.go_to(at);
    }

    /// Asks another of its nodes from now on.
    pub fn go_to(&mut self, at: usize) {
        if at != self.at {
            (self.at, self.connection) = (at, None);
        }
    }

    fn key(&mut self, kind: &str, count: u64) -> String {
        key(self.part, kind, self.random.below(count))
    }

    fn unique(&mut self) -> u64 {
        self.count += 1;
        self.count * 1_000 + self.number
    }

    fn use_register(&mut self) -> bool {
        let key = self.key("register", REGISTERS);
        let action = match self.random.below(100) < 60 {
            true => Action::Get,
            false => Action::Set { value: self.unique() },
        };
        self.act(&key, action).is_some()
    }

    fn increment(&mut self) -> bool {
        let key = self.key("counter", COUNTERS);
        self.act(&key, Action::Incr).is_some()
    }

    /// Takes a lock, or gives one back; a grant in doubt is given back in any case.
    fn use_lock(&mut self) -> bool {
        let gives_back =
            self.holds.first().is_some_and(|hold| hold.token.is_none()) || self.random.below(2) == 0;
        if gives_back && !self.holds.is_empty() {
            let Hold { key, owner, token } = self.holds.remove(0);
            return self.act(&key, Action::Unlock { owner, token }).is_some();
        }
        let key = self.key("lock", LOCKS);
        let owner = format!("owner-{}", self.unique());
        let lease_ms = LEASES_MS[self.random.below(LEASES_MS.len() as u64) as usize];
        match self.act(&key, Action::Lock { owner: owner.clone(), lease_ms }) {
            None => false,
            Some(Outcome::Ok(Answer::Number(token))) => {
                self.holds.push(Hold { key, owner, token: Some(token) });
                true
            }
            Some(Outcome::Info(_)) => {
                self.holds.insert(0, Hold { key, owner, token: None });
                false
            }
            Some(outcome) => matches!(outcome, Outcome::Ok(_)),
        }
    }

    /// Pushes a message, or takes one and mostly acknowledges it.
    fn use_queue(&mut self) -> bool {
        let key = self.key("queue", QUEUES);
        if self.random.below(100) < 42 {
            let payload = self.unique().to_string();
            return self.act(&key, Action::Push { payload }).is_some();
        }
        let lease_ms = LEASES_MS[self.random.below(LEASES_MS.len() as u64) as usize];
        match self.act(&key, Action::Pop { lease_ms }) {
            Some(Outcome::Ok(Answer::Message { id, deliveries, .. })) if self.random.below(100) < 90 => {
                self.act(&key, Action::Ack { receipt: format!("{id}:{deliveries}") }).is_some()
            }
            outcome => outcome.is_some(),
        }
    }

    /// Does one operation and remembers what came of it; `None` when there was no connection to do it on.
    pub fn act(&mut self, key: &str, action: Action) -> Option<Outcome> {
        let (node, address) = self.nodes[self.at];
        if self.connection.is_none() {
            let connection = Client::try_connect(address).ok()?;
            connection.set_timeout(REPLY_WAIT);
            self.connection = Some(connection);
        }
        let connection = self.connection.as_mut().expect("it is connected");
        let invoked = self.shared.now();
        self.journal.invoked(invoked, self.number, node, key, &action);
        let words = command(key, &action);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let reply = connection.try_cmd(&words);
        let returned = self.shared.now();
        if reply.is_err() {
            self.connection = None;
        }
        let outcome = judge(&action, reply).unwrap_or_else(|strange| {
            self.shared.on_strange(format!("{words:?} at node {node}: {strange}"));
            Outcome::Info(strange)
        });
        let client = self.number;
        let key = key.to_owned();
        let operation = Operation { client, node, key, action, invoked, returned, outcome: outcome.clone() };
        self.journal.returned(&operation);
        self.shared.on_operation(&operation);
        self.operations.push(operation);
        if !matches!(outcome, Outcome::Ok(_)) {
            thread::sleep(Duration::from_millis(10));
        }
        Some(outcome)
    }

    /// Whether a queue has no message in any state, as far as the node answers.
    pub fn is_empty(&self, key: &str) -> bool {
        let answer = Client::try_connect(self.nodes[self.at].1)
            .and_then(|mut client| client.try_cmd(&["QLEN", key, "ALL"]));
        matches!(answer, Ok(Value::Integer(0)))
    }

    /// What it did so far.
    pub fn operations(self) -> Vec<Operation> {
        self.operations
    }
}

/// A key's name. Each part of a run has keys of its own.
pub fn key(part: &str, kind: &str, number: u64) -> String {
    format!("{part}:{kind}:{number}")
}

fn command(key: &str, action: &Action) -> Vec<String> {
    let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    match action {
        Action::Get => own(&["GET", key]),
        Action::Set { value } => own(&["SET", key, &value.to_string()]),
        Action::Incr => own(&["INCR", key]),
        Action::Lock { owner, lease_ms } => own(&["LOCK", key, owner, "PX", &lease_ms.to_string()]),
        Action::Unlock { owner, token: None } => own(&["UNLOCK", key, owner]),
        Action::Unlock { owner, token: Some(token) } => {
            own(&["UNLOCK", key, owner, "TOKEN", &token.to_string()])
        }
        Action::Push { payload } => own(&["QPUSH", key, payload]),
        Action::Pop { lease_ms } => own(&["QPOP", "LEASE", &lease_ms.to_string(), "FROM", key]),
        Action::Ack { receipt } => own(&["QACK", key, receipt]),
    }
}

/// What a reply means; an error is a reply that no fault excuses.
fn judge(action: &Action, reply: io::Result<Value>) -> Result<Outcome, String> {
    let is_read = *action == Action::Get;
    let reply = match reply {
        Ok(reply) => reply,
        Err(error) if is_garbled(&error) => return Err(error.to_string()),
        Err(error) if is_read => return Ok(Outcome::Fail(error.to_string())),
        Err(error) => return Ok(Outcome::Info(error.to_string())),
    };
    if let Value::Error(text) = &reply {
        let code = reply.error_code().unwrap_or_default();
        // A node whose state differs from the others' says so with MISCONF.
        let is_excused = NOT_EXECUTED.contains(&code) && !text.contains("differs");
        return match () {
            () if is_excused => Ok(Outcome::Fail(text.clone())),
            () if code == "INDOUBT" && !is_read => Ok(Outcome::Info(text.clone())),
            () => Err(text.clone()),
        };
    }
    let answer = match (action, &reply) {
        (Action::Get | Action::Lock { .. }, Value::Null) => Some(Answer::Nothing),
        (Action::Pop { .. }, Value::Null | Value::NullArray) => Some(Answer::Nothing),
        (Action::Get, Value::Bulk(_)) => reply.text().parse().ok().map(Answer::Number),
        (Action::Set { .. }, Value::Simple(_)) => Some(Answer::Done),
        (
            Action::Incr | Action::Lock { .. } | Action::Unlock { .. } | Action::Ack { .. },
            Value::Integer(number),
        ) => u64::try_from(*number).ok().map(Answer::Number),
        (Action::Push { .. }, Value::Bulk(_)) => Some(Answer::Id(reply.text())),
        (Action::Pop { .. }, Value::Array(messages)) if messages.len() == 1 => message(messages[0].items()),
        _ => None,
    };
    answer.map(Outcome::Ok).ok_or_else(|| format!("{reply:?}"))
}

fn message(fields: &[Value]) -> Option<Answer> {
    let [_, receipt, payload, deliveries] = fields else { return None };
    let receipt = receipt.text();
    let (id, count) = receipt.rsplit_once(':')?;
    let count: u64 = count.parse().ok()?;
    let is_right = deliveries.number() == count;
    is_right.then(|| Answer::Message { id: id.to_owned(), deliveries: count, payload: payload.text() })
}
