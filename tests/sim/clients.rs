//! Simulated clients: one command batch or read at a time, on a node of their own or on all in turn.

use std::collections::VecDeque;

use holdfast::resp::Reply;
use holdfast::state::notices::ClaimEnd;

use crate::chance::Chance;
use crate::plan::Plan;

/// Words of a command.
pub type Words = Vec<Vec<u8>>;

/// What a client asks for.
#[derive(Debug, Clone)]
pub enum Ask {
    Write(Vec<Words>),
    /// The marker, and a transaction that is all or nothing.
    Atomic(Words, Vec<Words>),
    Read(Words),
}

/// What the client knows of an operation.
#[derive(Debug, Clone, PartialEq)]
pub enum Known {
    Nothing,
    Replies(Vec<Reply>),
    /// Told that nothing was executed.
    NotDone,
    /// Told that nobody knows, or gave up, or the node is gone.
    InDoubt,
}

/// One operation; its number is its place in the list of all.
#[derive(Debug, Clone)]
pub struct Operation {
    pub client: usize,
    pub ask: Ask,
    pub invoked: u64,
    /// The highest index that anybody had been told of before.
    pub told: u64,
    pub returned: Option<u64>,
    pub known: Known,
    /// The index at which it was executed, or that was read.
    pub index: Option<u64>,
    /// When it was executed first.
    pub executed: Option<u64>,
}

/// A client.
pub struct Client {
    /// Its node; none for one that roams.
    pub home: Option<usize>,
    /// What it waits for: the operation and the node.
    pub current: Option<(u64, usize)>,
    /// The lock that it waits for: the claim and the node.
    pub claim: Option<(u64, usize)>,
    owner: String,
    /// Tokens of locks that it may hold, with their keys, and receipts with their queues.
    tokens: VecDeque<(String, i64)>,
    receipts: VecDeque<(String, String)>,
    /// A named transaction that it may send again.
    last_once: Option<Vec<Words>>,
}

fn words(words: &[&str]) -> Words {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

impl Client {
    pub fn new(number: usize, home: Option<usize>, plan: &Plan) -> Client {
        Client {
            home,
            current: None,
            claim: None,
            last_once: None,
            owner: format!("owner{}", number / plan.clients_each_owner),
            tokens: VecDeque::new(),
            receipts: VecDeque::new(),
        }
    }

    /// What it wants next; `op` is the operation's number.
    pub fn ask(&mut self, op: u64, plan: &Plan, chance: &mut Chance) -> Ask {
        let key = chance.below(plan.keys);
        match chance.weighted(&plan.commands) {
            // Registers: nothing but SET, GET and DEL, for the checker of histories.
            0 => {
                let key = format!("r{key}");
                match chance.below(10) {
                    0..=4 => Ask::Read(words(&["GET", &key])),
                    5 => self.marked(op, &[words(&["DEL", &key])]),
                    _ => self.marked(op, &[words(&["SET", &key, &format!("v{op}")])]),
                }
            }
            1 => self.ask_string(op, key, chance),
            2 => {
                let key = format!("n{key}");
                match chance.below(6) {
                    0 => Ask::Read(words(&["GET", &key])),
                    1 => self.marked(op, &[words(&["INCRBY", &key, &chance.below(9).to_string()])]),
                    _ => self.marked(op, &[words(&["INCR", &key])]),
                }
            }
            3 => self.ask_lock(op, key, plan, chance),
            5 => self.ask_atomic(op, key, plan, chance),
            _ => self.ask_queue(op, key, plan, chance),
        }
    }

    /// A batch that tells its number: its first command reads a key that nobody writes.
    fn marked(&self, op: u64, commands: &[Words]) -> Ask {
        let mut all = vec![words(&["EXISTS", &format!("#op:{op}")])];
        all.extend_from_slice(commands);
        Ask::Write(all)
    }

    fn ask_string(&self, op: u64, key: u64, chance: &mut Chance) -> Ask {
        let (key, value) = (format!("s{key}"), format!("v{op}"));
        let lease = chance.between(10, 5_000).to_string();
        let command = match chance.below(12) {
            0 => words(&["SET", &key, &value, "PX", &lease]),
            1 => words(&["SET", &key, &value, "NX"]),
            2 => words(&["SET", &key, &value, "XX", "GET"]),
            3 => words(&["APPEND", &key, "x"]),
            4 => words(&["GETDEL", &key]),
            5 => words(&["PEXPIRE", &key, &lease]),
            6 => words(&["PERSIST", &key]),
            7 => words(&["DEL", &key, "s0"]),
            8 => words(&["MSET", &key, &value, "s0", &value]),
            9 => return Ask::Read(words(&["STRLEN", &key])),
            _ => return Ask::Read(words(&["GET", &key])),
        };
        let second = words(&["SET", &key, &format!("{value}b")]);
        if chance.is(200_000) { self.marked(op, &[command, second]) } else { self.marked(op, &[command]) }
    }

    fn ask_lock(&mut self, op: u64, key: u64, plan: &Plan, chance: &mut Chance) -> Ask {
        let number = key;
        let key = format!("l{number}");
        let lease = lease(chance);
        let command = match chance.below(24) {
            0..=8 => {
                let mut command = words(&["LOCK", &key, &self.owner, "PX", &lease]);
                // Mostly a lock is shared always in the same way.
                let limit = number % 3 + u64::from(chance.is(30_000));
                match chance.below(4) {
                    0 | 1 => {}
                    _ if limit == 0 => command.extend(words(&["SHARED"])),
                    _ => command.extend(words(&["SHARED", "LIMIT", &limit.to_string()])),
                }
                if !chance.is(250_000) {
                    command.extend(words(&["BLOCK", &block(chance)]));
                }
                if chance.is(150_000) {
                    command.extend(words(&["GRACE", &chance.between(100, 5_000).to_string()]));
                }
                if chance.is(100_000) {
                    command.extend(words(&["DATA", &format!("d{op}")]));
                }
                command
            }
            9..=11 => {
                let mut command = words(&["MLOCK", "2", &key]);
                let other = format!("l{}", chance.below(plan.keys + 1));
                command.extend(words(&[&other, &self.owner, "PX", &lease]));
                if chance.is(300_000) {
                    command.extend(words(&["SHARED"]));
                }
                if !chance.is(200_000) {
                    command.extend(words(&["BLOCK", &block(chance)]));
                }
                command
            }
            12 | 13 => words(&["LOCKEXTEND", &self.owner, &lease]),
            14 | 15 => words(&["UNLOCK", &key, &self.owner]),
            16 if chance.is(500_000) => words(&["LOCKS", "KILL", &key]),
            16 => words(&["LOCKS", "RELEASE", &self.owner]),
            17 => match self.tokens.front() {
                // Sent twice, as after a lost reply.
                Some((key, token)) => words(&["UNLOCK", key, &self.owner, "TOKEN", &token.to_string()]),
                None => words(&["LOCK", &key, &self.owner]),
            },
            18 | 19 => match self.tokens.front() {
                Some((lock, token)) => words(&[
                    "SET",
                    &format!("s{number}"),
                    &format!("v{op}"),
                    "FENCE",
                    lock,
                    &token.to_string(),
                ]),
                None => words(&["LOCK", &key, &self.owner, "PX", &lease]),
            },
            _ => match self.tokens.pop_front() {
                Some((key, token)) => words(&["UNLOCK", &key, &self.owner, "TOKEN", &token.to_string()]),
                None => words(&["LOCK", &key, &self.owner, "BLOCK", &block(chance)]),
            },
        };
        self.marked(op, &[command])
    }

    /// A transaction that is all or nothing, sometimes with a name and sometimes guarded.
    fn ask_atomic(&mut self, op: u64, key: u64, plan: &Plan, chance: &mut Chance) -> Ask {
        let marker = words(&["EXISTS", &format!("#op:{op}")]);
        if chance.is(300_000)
            && let Some(commands) = self.last_once.clone()
        {
            return Ask::Atomic(marker, commands);
        }
        let mut commands = Vec::new();
        let is_named = chance.is(500_000);
        if is_named {
            let kept = chance.of(&["1000", "20000", "600000"]);
            commands.push(words(&["ONCE", &format!("{}-{}", self.owner, chance.below(6)), "PX", kept]));
        }
        if let Some((lock, token)) = self.tokens.back()
            && chance.is(400_000)
        {
            commands.push(words(&["FENCE", lock, &token.to_string()]));
        }
        if let Some((queue, receipt)) = self.receipts.back()
            && chance.is(200_000)
        {
            commands.push(words(&["FENCE", queue, receipt]));
        }
        commands.push(words(&["SET", &format!("s{key}"), &format!("v{op}")]));
        for _ in 0..chance.below(4) {
            let lock = format!("l{}", chance.below(plan.keys));
            let queue = format!("q{key}");
            commands.push(match chance.below(14) {
                0 | 1 => words(&["LOCK", &lock, &self.owner, "PX", &lease(chance)]),
                2 => words(&["UNLOCK", &lock, &self.owner]),
                3 => words(&["QPUSH", &format!("q{key}"), &format!("v{op}")]),
                4 => words(&["QPOP", "LEASE", "5000", "FROM", &format!("q{key}")]),
                6 | 7 => push_to(&queue, op, chance),
                8 => words(&["QPOP", "COUNT", "3", "NOACK", "BLOCK", "100", "FROM", &queue, "qdead"]),
                9 => operate(&queue, chance),
                10 => words(&["QREDRIVE", &queue, "TO", chance.of(&["qdead", "qother"])]),
                11 => match self.receipts.front() {
                    Some((queue, receipt)) => words(&["QACK", queue, receipt]),
                    None => words(&["QDEL", &queue, "STATE", "DEAD"]),
                },
                12 => match self.receipts.back() {
                    Some((queue, receipt)) => nack(queue, receipt, op, chance),
                    None => words(&["QDEL", &queue, "ALL"]),
                },
                // This one fails.
                5 => words(&["INCR", &format!("s{key}")]),
                _ => words(&["APPEND", &format!("s{key}"), "x"]),
            });
        }
        if is_named {
            self.last_once = Some(commands.clone());
        }
        Ask::Atomic(marker, commands)
    }

    fn ask_queue(&mut self, op: u64, key: u64, plan: &Plan, chance: &mut Chance) -> Ask {
        let queue = format!("q{key}");
        if chance.is(3_000) {
            // More than end at one moment, or go at once.
            let lifetime = chance.of(&["PX", "DELAY"]);
            let push = words(&["QPUSH", &queue, &format!("v{op}"), lifetime, "2000"]);
            let mut commands = vec![push; 300];
            commands.push(words(&["QPOP", "COUNT", "1000", "LEASE", "1000", "FROM", &queue]));
            return self.marked(op, &commands);
        }
        let command = match chance.below(40) {
            0..=11 => push_to(&queue, op, chance),
            12 => words(&["QPOP", "COUNT", "2", "NOACK", "FROM", &queue]),
            13 => {
                let state = chance.of(&["READY", "DELAYED", "LEASED", "DEAD", "ALL"]);
                return Ask::Read(words(&["QLEN", &queue, state]));
            }
            14..=22 => self.pop_from(&queue, plan, chance),
            23 => operate(&queue, chance),
            24 => words(&["QREDRIVE", &queue]),
            25 => words(&["QREDRIVE", "qdead", "COUNT", "3", "TO", &queue]),
            26 if chance.is(300_000) => words(&["QDEL", &queue, "ALL"]),
            26 => words(&["QDEL", &queue, "STATE", chance.of(&["READY", "DELAYED", "LEASED", "DEAD"])]),
            27 => words(&["QPOP", "LEASE", "1000", "FROM", "qdead"]),
            kind => match self.receipts.front().cloned() {
                None => self.pop_from(&queue, plan, chance),
                // It comes again, as after a lost reply.
                Some((queue, receipt)) if kind == 28 => words(&["QACK", &queue, &receipt]),
                Some((queue, receipt)) if kind == 29 => {
                    let lease = chance.between(100, 10_000).to_string();
                    words(&["QEXTEND", &queue, &lease, &receipt])
                }
                Some((queue, receipt)) if kind == 30 => {
                    let id = receipt.split(':').next().unwrap_or_default().to_owned();
                    words(&["QDEL", &queue, "IDS", "1", &id])
                }
                Some((queue, receipt)) if kind <= 34 => {
                    self.receipts.pop_front();
                    nack(&queue, &receipt, op, chance)
                }
                // A lease may just end.
                Some(_) if kind == 35 => {
                    self.receipts.pop_front();
                    words(&["QPOP", "FROM", &queue])
                }
                Some((queue, receipt)) => {
                    if !chance.is(200_000) {
                        self.receipts.pop_front();
                    }
                    words(&["QACK", &queue, &receipt])
                }
            },
        };
        self.marked(op, &[command])
    }

    /// A consumer, mostly one that waits.
    fn pop_from(&self, queue: &str, plan: &Plan, chance: &mut Chance) -> Words {
        let mut command = words(&["QPOP"]);
        if chance.is(300_000) {
            command.extend(words(&["COUNT", chance.of(&["2", "5", "1000"])]));
        }
        match chance.below(10) {
            0 => command.extend(words(&["NOACK"])),
            1..=7 => command.extend(words(&["LEASE", &chance.between(100, 10_000).to_string()])),
            _ => {}
        }
        if chance.is(700_000) {
            command.extend(words(&["BLOCK", &block(chance)]));
        }
        if chance.is(300_000) {
            command.extend(words(&["WITHMETA", "CONSUMER", &self.owner]));
        }
        command.extend(words(&["FROM", queue]));
        if chance.is(300_000) {
            command.extend(words(&[&format!("q{}", chance.below(plan.keys)), "qdead"]));
        }
        command
    }

    /// Learns from a reply.
    pub fn hear(&mut self, ask: &Ask, replies: &[Reply]) {
        let (commands, replies) = match ask {
            Ask::Read(_) => return,
            Ask::Write(commands) => (commands, replies),
            Ask::Atomic(_, commands) => match replies.last() {
                Some(Reply::Array(replies)) => (commands, replies.as_slice()),
                _ => return,
            },
        };
        for (command, reply) in commands.iter().zip(replies) {
            let word = |at: usize| String::from_utf8_lossy(&command[at]).into_owned();
            match (command[0].as_slice(), reply) {
                (b"LOCK", Reply::Integer(token)) => self.tokens.push_back((word(1), *token)),
                (b"MLOCK", Reply::Array(tokens)) => {
                    for (at, token) in tokens.iter().enumerate() {
                        if let Reply::Integer(token) = token {
                            self.tokens.push_back((word(2 + at), *token));
                        }
                    }
                }
                (b"QPOP", reply) => collect_receipts(reply, &mut self.receipts),
                _ => {}
            }
        }
        self.tokens.truncate(8);
        self.receipts.truncate(8);
    }
}

impl Client {
    /// Learns that what it waited for is its own.
    pub fn hear_end(&mut self, end: &ClaimEnd) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match end {
            ClaimEnd::Granted(granted) => {
                let tokens = granted.grants.iter().map(|grant| (text(&grant.key), grant.token.0 as i64));
                self.tokens.extend(tokens);
            }
            ClaimEnd::Delivered(delivered) if !delivered.no_ack => {
                let messages = delivered.messages.iter();
                let receipts = messages.map(|message| (text(&message.queue), message.receipt.to_string()));
                self.receipts.extend(receipts);
            }
            ClaimEnd::Delivered(_) | ClaimEnd::Over | ClaimEnd::Failed(_) => {}
        }
    }
}

/// Mostly short; some are long enough to outlast the healing.
fn lease(chance: &mut Chance) -> String {
    let ms = if chance.is(80_000) { chance.between(60_000, 200_000) } else { chance.between(200, 20_000) };
    ms.to_string()
}

fn block(chance: &mut Chance) -> String {
    if chance.is(150_000) { "0".to_owned() } else { chance.between(1, 12_000).to_string() }
}

/// A producer.
fn push_to(queue: &str, op: u64, chance: &mut Chance) -> Words {
    let mut command = words(&["QPUSH", queue, &format!("v{op}")]);
    let is_named = chance.is(250_000);
    if is_named {
        command.extend(words(&["ID", &format!("id{}", chance.below(6))]));
    }
    if chance.is(300_000) {
        command.extend(words(&["PRIORITY", &chance.below(10).to_string()]));
    }
    if chance.is(200_000) {
        command.extend(words(&["DELAY", &chance.between(0, 5_000).to_string()]));
    }
    if is_named && chance.is(200_000) {
        command.extend(words(&["XX"]));
        return command;
    }
    if chance.is(150_000) {
        command.extend(words(&["PX", &chance.between(100, 20_000).to_string()]));
    }
    if chance.is(350_000) {
        command.extend(words(&["GROUP", &format!("g{}", chance.below(2))]));
    }
    if chance.is(100_000) {
        command.extend(words(&["MAXLEN", &chance.below(20).to_string()]));
    }
    command
}

fn nack(queue: &str, receipt: &str, op: u64, chance: &mut Chance) -> Words {
    let mut command = words(&["QNACK", queue]);
    let how = chance.of(&["", "FAIL", "SILENT", "FATAL"]);
    if !how.is_empty() {
        command.extend(words(&[how]));
    }
    if how != "FATAL" && chance.is(500_000) {
        command.extend(words(&["DELAY", &chance.between(0, 3_000).to_string()]));
    }
    if chance.is(500_000) {
        command.extend(words(&["REASON", &format!("because{op}")]));
    }
    command.extend(words(&["IDS", "1", receipt]));
    command
}

/// An operator.
fn operate(queue: &str, chance: &mut Chance) -> Words {
    let (attribute, value) = chance.of(&[
        ("PAUSE", "none"),
        ("PAUSE", "none"),
        ("PAUSE", "none"),
        ("PAUSE", "out"),
        ("PAUSE", "in"),
        ("PAUSE", "all"),
        ("MAXDELIVER", "2"),
        ("MAXDELIVER", "3"),
        ("MAXDELIVER", "0"),
        ("BACKOFF", "100 2000 1.5 0"),
        ("BACKOFF", "200 5000 2 30"),
        ("BACKOFF", "0 0 1 0"),
        ("DEADLETTER", "qdead"),
        ("DEADLETTER", "qdead"),
        ("DEADLETTER", ""),
        ("DEDUP", "0"),
        ("DEDUP", "10000"),
        ("DEDUP", "300000"),
        ("LEASE", "500"),
        ("LEASE", "5000"),
        ("MAXLEN", "0"),
        ("MAXLEN", "8"),
        ("MAXBYTES", "0"),
        ("MAXBYTES", "60"),
        ("MAXLEASED", "0"),
        ("MAXLEASED", "0"),
        ("MAXLEASED", "2"),
        ("AGING", "0"),
        ("AGING", "700"),
        ("TTL", "0"),
        ("TTL", "8000"),
    ]);
    words(&["QCONFIG", "SET", queue, attribute, value])
}

/// A message is an array of queue, id or receipt, payload and more; a reply may hold several.
fn collect_receipts(reply: &Reply, into: &mut VecDeque<(String, String)>) {
    let Reply::Array(items) = reply else { return };
    let text = |reply: &Reply| match reply {
        Reply::Bulk(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    };
    let texts: Vec<Option<String>> = items.iter().map(text).collect();
    let queue = texts.iter().flatten().find(|text| text.starts_with('q'));
    let receipt = texts.iter().flatten().find(|text| text.contains(':'));
    match (queue, receipt) {
        (Some(queue), Some(receipt)) => into.push_back((queue.clone(), receipt.clone())),
        _ => items.iter().for_each(|item| collect_receipts(item, into)),
    }
}
