//! Simulated clients: one command batch or read at a time, on a node of their own or on all in turn.

use std::collections::VecDeque;

use holdfast::resp::Reply;

use crate::chance::Chance;
use crate::plan::Plan;

/// Words of a command.
pub type Words = Vec<Vec<u8>>;

/// What a client asks for.
#[derive(Debug, Clone)]
pub enum Ask {
    Write(Vec<Words>),
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
    owner: String,
    /// Tokens of locks that it may hold, with their keys, and receipts with their queues.
    tokens: VecDeque<(String, i64)>,
    receipts: VecDeque<(String, String)>,
}

fn words(words: &[&str]) -> Words {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

impl Client {
    pub fn new(number: usize, home: Option<usize>) -> Client {
        Client {
            home,
            current: None,
            owner: format!("owner{number}"),
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
            3 => self.ask_lock(op, key, chance),
            _ => self.ask_queue(op, key, chance),
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

    fn ask_lock(&mut self, op: u64, key: u64, chance: &mut Chance) -> Ask {
        let key = format!("l{key}");
        let lease = chance.between(200, 20_000).to_string();
        let command = match chance.below(10) {
            0..=4 => words(&["LOCK", &key, &self.owner, "PX", &lease]),
            5 => words(&["LOCKEXTEND", &self.owner, &lease]),
            6 => words(&["UNLOCK", &key, &self.owner]),
            _ => match self.tokens.pop_front() {
                Some((key, token)) => words(&["UNLOCK", &key, &self.owner, "TOKEN", &token.to_string()]),
                None => words(&["LOCK", &key, &self.owner]),
            },
        };
        self.marked(op, &[command])
    }

    fn ask_queue(&mut self, op: u64, key: u64, chance: &mut Chance) -> Ask {
        let key = format!("q{key}");
        let lease = chance.between(100, 10_000).to_string();
        let command = match chance.below(10) {
            0..=3 => words(&["QPUSH", &key, &format!("v{op}")]),
            4 => words(&["QPOP", "COUNT", "2", "NOACK", "FROM", &key]),
            5 => return Ask::Read(words(&["QLEN", &key, "ALL"])),
            6 | 7 => words(&["QPOP", "LEASE", &lease, "FROM", &key]),
            _ => match self.receipts.pop_front() {
                Some((key, receipt)) => words(&["QACK", &key, &receipt]),
                None => words(&["QPOP", "LEASE", &lease, "FROM", &key, "q0"]),
            },
        };
        self.marked(op, &[command])
    }

    /// Learns from a reply.
    pub fn hear(&mut self, ask: &Ask, replies: &[Reply]) {
        let Ask::Write(commands) = ask else { return };
        for (command, reply) in commands.iter().zip(replies) {
            let word = |at: usize| String::from_utf8_lossy(&command[at]).into_owned();
            match (command[0].as_slice(), reply) {
                (b"LOCK", Reply::Integer(token)) => self.tokens.push_back((word(1), *token)),
                (b"QPOP", reply) => collect_receipts(reply, &mut self.receipts),
                _ => {}
            }
        }
        self.tokens.truncate(8);
        self.receipts.truncate(8);
    }
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
