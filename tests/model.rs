//! The model of the state machine (`sim/model.rs`) against the real one: random entries, and every reply, every verdict
//! and the whole state compared. A difference is a mistake of one of them.
//!
//! | variable | default | what |
//! |---|---|---|
//! | `MODEL_SEQUENCES` | 2000 | random sequences of entries |
//! | `MODEL_SEED` | 1 | the first of their seeds |

mod sim {
    pub mod comparison;
    pub mod model;
}
mod support;

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast::commands::spec::Execute;
use holdfast::commands::spec::ReadContext;
use holdfast::commands::table;
use holdfast::machine::apply::BatchOutcome;
use holdfast::machine::apply::apply_entry;
use holdfast::machine::entry::Batch;
use holdfast::machine::entry::LeaderStart;
use holdfast::machine::entry::Queued;
use holdfast::machine::entry::SessionStamp;
use holdfast::machine::entry::Stamps;
use holdfast::machine::entry::Watched;
use holdfast::machine::entry::decode_batch_head;
use holdfast::machine::entry::decode_item;
use holdfast::machine::entry::decode_stamps;
use holdfast::machine::entry::encode_entry;
use holdfast::resp::Reply;
use holdfast::resp::reply_codec::encode_replies;
use holdfast::state::Object;
use holdfast::state::Settings;
use holdfast::state::State;
use holdfast::state::locks::Hold;
use holdfast::state::locks::Lock;
use holdfast::state::locks::Mode;
use holdfast::state::locks::graph::VictimChoice;
use holdfast::types::ClusterTime;
use holdfast::types::LogIndex;
use holdfast::types::Millis;
use holdfast::types::NodeId;
use holdfast::types::Term;
use holdfast::types::WallMillis;
use holdfast::types::bounds::Bounds;

use sim::comparison::confirmed;
use sim::comparison::difference;
use sim::comparison::end_of;
use sim::comparison::hand_over;
use sim::comparison::pop_wait;
use sim::model::End;
use sim::model::Model;
use sim::model::Place;
use sim::model::Thing;
use sim::model::Verdict;
use sim::model::Wait;
use support::Random;
use support::number_from_env;

const DATABASES: u8 = 2;
const NODES: u64 = 3;

/// An entry as it stands in the log, with what is asked of the state behind it.
#[derive(Clone)]
struct Step {
    index: u64,
    entry: Vec<u8>,
    reads: Vec<(u64, u8, Line)>,
}

/// A command's words.
type Line = Vec<Vec<u8>>;

/// Both machines, and what came of every batch of a session.
struct Pair {
    state: State,
    model: Model,
    done: BTreeMap<(NodeId, u64, u64), Vec<Reply>>,
}

impl Pair {
    fn new() -> Pair {
        let settings = Settings { databases: 0, ..Settings::default() };
        Pair { state: State::new(0), model: Model::new(settings), done: BTreeMap::new() }
    }

    /// Applies an entry to both, gives the replies, or says where they differ.
    fn apply(&mut self, index: u64, entry: &[u8]) -> Result<Vec<Vec<Reply>>, String> {
        let real =
            apply_entry(&mut self.state, LogIndex(index), Term(1), entry).map_err(|e| e.to_string())?;
        let results = self.model.apply(index, entry)?;
        if real.outcomes.len() != results.len() {
            return Err(format!(
                "entry {index}: {} outcomes, {} of the model",
                real.outcomes.len(),
                results.len()
            ));
        }
        let notices: Vec<(u64, u64, u64, End)> = real.notices.iter().filter_map(end_of).collect();
        let ended = self.model.ended().iter();
        let ended = ended.map(|ended| (ended.claim, ended.node, ended.life, ended.end.clone()));
        if !ended.eq(notices.iter().cloned()) {
            return Err(format!("entry {index} ends {notices:?}, the model {:?}", self.model.ended()));
        }
        let notices: Vec<(u64, u64)> = real.notices.iter().filter_map(confirmed).collect();
        if notices != self.model.confirmed() {
            return Err(format!(
                "entry {index} confirms {notices:?}, the model {:?}",
                self.model.confirmed()
            ));
        }
        let mut replies = Vec::new();
        for (at, (outcome, result)) in real.outcomes.into_iter().zip(results).enumerate() {
            let is_equal = match (&outcome, &result.verdict) {
                (BatchOutcome::Done(real), Verdict::Executed(model)) => real == model,
                (BatchOutcome::Repeated(bytes), Verdict::Repeated) => {
                    let before = result.session.and_then(|session| self.done.get(&session));
                    before.is_some_and(|replies| encoded(replies) == *bytes)
                }
                (BatchOutcome::Replayed, Verdict::Replayed)
                | (BatchOutcome::Gap, Verdict::Gap)
                | (BatchOutcome::Ended, Verdict::Ended) => true,
                _ => false,
            };
            if !is_equal {
                return Err(format!(
                    "entry {index}, batch {at}: {outcome:?}, the model {:?}",
                    result.verdict
                ));
            }
            if let BatchOutcome::Done(done) = outcome {
                if let Some(session) = result.session {
                    self.done.insert(session, done.clone());
                }
                replies.push(done);
            }
        }
        Ok(replies)
    }

    /// What a reading command replies outside of the log.
    fn read(&self, now: u64, db: u8, line: &Line) -> Result<(), String> {
        let words: Vec<&[u8]> = line.iter().map(Vec::as_slice).collect();
        let spec = table::find(words[0]).ok_or("an unknown command")?;
        let Execute::Read(read) = spec.execute else { return Err("a command that does not read".to_owned()) };
        let context = ReadContext {
            state: &self.state,
            db,
            user: b"default",
            now: ClusterTime(now),
            wall: self.state.meta().wall,
            seed: 0,
            bounds: Bounds::DEFAULT,
        };
        let real = read(&context, &words).unwrap_or_else(Reply::from);
        let model = self.model.read(db, &words, now);
        if model.as_ref() == Some(&real) {
            return Ok(());
        }
        Err(format!("after {}: {} replies {real:?}, the model {model:?}", self.model.index(), shown(&words)))
    }

    /// Compares everything there is.
    fn compare(&self) -> Result<(), String> {
        let index = self.model.index();
        let mut count = 0;
        for db in 0..=u8::MAX {
            for row in self.state.database(db).iter() {
                count += 1;
                let differs = |what: &str| {
                    let thing = self.model.thing(db, row.key());
                    Err(format!("after {index}: {db} {:?}: {what}: {row:?}, the model {thing:?}", row.key()))
                };
                if self.model.changed(db, row.key()) != Some(row.changed().0) {
                    return differs("changed");
                }
                let is_equal = match (row.object(), self.model.thing(db, row.key())) {
                    (Object::String, Some(Thing::String(value, deadline))) => {
                        row.as_string() == Some(&value[..]) && row.deadline().map(|at| at.0) == *deadline
                    }
                    (Object::Lock(lock), Some(Thing::Lock(model))) => is_same_lock(lock, model),
                    (Object::Queue(queue), Some(Thing::Queue(model))) => match difference(queue, model) {
                        Some(what) => return differs(&what),
                        None => self.is_same_info(db, row.key(), model)?,
                    },
                    _ => false,
                };
                if !is_equal {
                    return differs("content");
                }
            }
        }
        if count != self.model.things().count() {
            return Err(format!("after {index}: {count} keys, {} of the model", self.model.things().count()));
        }
        for (_, key, thing) in self.model.things() {
            let Thing::Queue(sim::model::Queue { messages, totals, .. }) = thing else { continue };
            if totals.pushed != totals.acked + totals.deleted + totals.moved + messages.len() as u64 {
                return Err(format!("after {index}: the model lost messages of {key:?}: {totals:?}"));
            }
        }
        let meta = self.state.meta();
        let real = (meta.clock.0, meta.key_clock_ahead.0, meta.last_token.0, meta.settings);
        let model = (self.model.clock(), self.model.ahead(), self.model.last_token(), *self.model.settings());
        if real != model {
            return Err(format!("after {index}: {real:?}, the model {model:?}"));
        }
        let real: Vec<(u64, Vec<(u64, u64)>)> = self
            .state
            .waits()
            .iter()
            .map(|(id, wait)| (id.0, wait.claims().map(|claim| (claim.id.0, claim.until.0)).collect()))
            .collect();
        let claims = |wait: &Wait| wait.claims.iter().map(|claim| (claim.id, claim.until)).collect();
        let model: Vec<(u64, Vec<(u64, u64)>)> =
            self.model.waits().iter().map(|(id, wait)| (*id, claims(wait))).collect();
        if real != model {
            return Err(format!("after {index}: {real:?} wait, of the model {model:?}"));
        }
        let real: BTreeMap<u64, _> = self.state.handed().iter().map(|(id, it)| hand_over(id, it)).collect();
        if real != *self.model.handed() {
            let model = self.model.handed();
            return Err(format!("after {index}: {real:?} is handed over, of the model {model:?}"));
        }
        let real: Vec<sim::model::PopWait> = self.state.pop_waits().iter().map(pop_wait).collect();
        if real != self.model.pop_waits() {
            let model = self.model.pop_waits();
            return Err(format!("after {index}: {real:?} wait for messages, of the model {model:?}"));
        }
        if let Some(claim) = self.model.forgotten_pop() {
            return Err(format!("after {index}: {claim} waits for messages that are there"));
        }
        if let Some(id) = self.model.forgotten_wait() {
            return Err(format!("after {index}: it is the turn of {id}, which waits"));
        }
        let stuck = self.model.stuck();
        if !stuck.is_empty() {
            return Err(format!("after {index}: {stuck:?} are in a deadlock"));
        }
        for node in (0..=NODES).map(NodeId) {
            let real = self.state.sessions().get(node).map(|s| (s.epoch(), s.last(), s.remembered()));
            if real != self.model.session(node) {
                return Err(format!("after {index}: node {node}: {real:?}, {:?}", self.model.session(node)));
            }
        }
        Ok(())
    }
}

impl Pair {
    /// QINFO counts as the model does.
    fn is_same_info(&self, db: u8, key: &[u8], model: &sim::model::Queue) -> Result<bool, String> {
        let words = [&b"QINFO"[..], key];
        let spec = table::find(words[0]).ok_or("an unknown command")?;
        let Execute::Read(read) = spec.execute else { return Err("a command that does not read".to_owned()) };
        let now = ClusterTime(self.model.clock());
        let wall = self.state.meta().wall;
        let context = ReadContext {
            state: &self.state,
            db,
            user: b"default",
            now,
            wall,
            seed: 0,
            bounds: Bounds::DEFAULT,
        };
        let Ok(Reply::Map(fields)) = read(&context, &words) else { return Ok(false) };
        let [ready, delayed, leased, dead] = model.counts().map(|count| count as u64);
        let age = |is_meant: fn(&Place) -> bool| {
            let oldest = model.messages.iter().find(|message| is_meant(&message.place));
            oldest.map_or(0, |message| now.0.saturating_sub(message.pushed_at))
        };
        let waits = self.model.pop_waits().iter();
        let blocked = waits.filter(|wait| wait.pop.db == db && wait.pop.queues.iter().any(|it| it == key));
        let totals = &model.totals;
        let wanted = [
            ("ready", ready),
            ("delayed", delayed),
            ("leased", leased),
            ("dead", dead),
            ("bytes", model.messages.iter().map(|message| message.payload.len() as u64).sum()),
            ("oldest_ready_ms", age(|place| *place == Place::Ready)),
            ("oldest_leased_ms", age(|place| matches!(place, Place::Leased(..)))),
            ("pushed", totals.pushed),
            ("delivered", totals.delivered),
            ("redelivered", totals.redelivered),
            ("acked", totals.acked),
            ("nacked", totals.nacked),
            ("expired_leases", totals.expired_leases),
            ("duplicates", totals.duplicates),
            ("died", totals.died),
            ("deleted", totals.deleted),
            ("moved", totals.moved),
            ("blocked_clients", blocked.count() as u64),
        ];
        let is_there = |(name, value): &(&str, u64)| {
            let known = fields.iter().find(|(known, _)| *known == Reply::bulk(name));
            known.is_some_and(|(_, known)| i64::try_from(*value).is_ok_and(|v| *known == Reply::Integer(v)))
        };
        match wanted.iter().find(|field| !is_there(field)) {
            Some(field) => Err(format!("QINFO of {key:?} replies {fields:?}, the model {field:?}")),
            None => Ok(true),
        }
    }
}

fn is_same_lock(lock: &Lock, model: &sim::model::Lock) -> bool {
    let is_same = |(hold, model): (&Hold, &sim::model::Hold)| {
        *hold.owner().user == *model.user
            && *hold.owner().owner == *model.owner
            && hold.token().0 == model.token
            && hold.lease_until().0 == model.until
            && hold.since().0 == model.since
            && hold.touches() == model.touches
            && hold.data() == model.data.as_deref()
    };
    let mode = |is_shared: bool| if is_shared { Mode::Shared } else { Mode::Exclusive };
    lock.holds().len() == model.holds.len()
        && lock.holds().iter().zip(&model.holds).all(is_same)
        && lock.waiters().map(|id| id.0).eq(model.queue.iter().copied())
        && lock.delayed_until().0 == model.delayed_until
        && lock.delayed_by().map(|by| (by.user.to_vec(), by.owner.to_vec())) == model.delayed_by
        && (model.holds.is_empty() || (lock.mode(), lock.limit()) == (mode(model.is_shared), model.limit))
}

fn encoded(replies: &[Reply]) -> Bytes {
    let mut out = Vec::new();
    encode_replies(replies, &mut out);
    Bytes::from(out)
}

fn shown(words: &[&[u8]]) -> String {
    words
        .iter()
        .map(|word| word[..word.len().min(80)].escape_ascii().to_string())
        .collect::<Vec<_>>()
        .join(" ")
}

/// An entry as text.
fn unpacked(step: &Step) -> String {
    let Ok((stamps, mut reader)) = decode_stamps(&step.entry) else { return "malformed".to_owned() };
    let mut text = format!("{}: clock {} wall {}", step.index, stamps.clock.0, stamps.wall.0);
    while let Ok(Some(head)) = decode_batch_head(&mut reader) {
        let (user, count, session) = (head.user, head.count, head.session);
        let stamp = session.map(|s| format!(" {}.{}.{} ack {}", s.node, s.epoch, s.seq, s.ack));
        text.push_str(&format!("\n    {}{}", user.escape_ascii(), stamp.unwrap_or_default()));
        for _ in 0..count {
            match decode_item(&mut reader) {
                Ok(holdfast::machine::entry::Item::Command { db, words }) => {
                    text.push_str(&format!("\n      {db} {}", shown(&words)));
                }
                item => text.push_str(&format!("\n      {item:?}")),
            }
        }
    }
    text
}

/// Runs the steps from the beginning.
fn run(steps: &[Step]) -> Result<(), String> {
    let mut pair = Pair::new();
    for step in steps {
        pair.apply(step.index, &step.entry)?;
        for (now, db, line) in &step.reads {
            pair.read(*now, *db, line)?;
        }
        pair.compare()?;
    }
    Ok(())
}

/// Leaves out steps, half of them at first, as long as the machines still differ.
fn shrunk(mut steps: Vec<Step>) -> Vec<Step> {
    let mut length = steps.len() / 2;
    while length > 0 {
        let mut from = 0;
        while from < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(from..(from + length).min(steps.len()));
            if run(&fewer).is_err() { steps = fewer } else { from += length }
        }
        length /= 2;
    }
    steps
}

/// Makes entries out of random numbers, and of what earlier ones replied.
struct Maker {
    random: Random,
    index: u64,
    clock: u64,
    wall: u64,
    receipts: Vec<(usize, Vec<u8>)>,
    /// Of each node: its epoch, the last batch it made, and what it acknowledges.
    origins: Vec<(u64, u64, u64)>,
    /// Batches that were made, which may come again.
    made: Vec<(SessionStamp, Batch)>,
    victim: VictimChoice,
    last_token: u64,
}

impl Maker {
    fn new(seed: u64) -> Maker {
        Maker {
            random: Random::new(seed),
            index: 0,
            clock: 0,
            wall: 1_700_000_000_000,
            receipts: Vec::new(),
            origins: vec![(1, 0, 0); NODES as usize + 1],
            made: Vec::new(),
            victim: VictimChoice::ALL[seed as usize % 3].1,
            last_token: 0,
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random.below(bound)
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    fn pick(&mut self, words: &[&str]) -> Vec<u8> {
        words[self.below(words.len() as u64) as usize].as_bytes().to_vec()
    }

    /// A key that mostly holds this kind of thing.
    fn key(&mut self, kind: &str) -> Vec<u8> {
        let kind = if self.one_in(25) { self.pick(&["s", "n", "l", "q"]) } else { kind.as_bytes().to_vec() };
        [kind, self.below(3).to_string().into_bytes()].concat()
    }

    fn number(&mut self) -> Vec<u8> {
        match self.below(12) {
            0 => self.pick(&[
                "x",
                "",
                "01",
                "+1",
                "-0",
                "1.5",
                "9223372036854775807",
                "-9223372036854775808",
                "0",
            ]),
            1 => format!("-{}", self.below(100)).into_bytes(),
            _ => self.below(100).to_string().into_bytes(),
        }
    }

    /// A length of time in milliseconds, in range or not.
    fn millis(&mut self) -> Vec<u8> {
        match self.below(20) {
            0 => self.number(),
            1 => self.pick(&["99", "86400000", "86400001", "0", "-5", "9223372036854775807"]),
            2..=8 => (100 + self.below(200)).to_string().into_bytes(),
            9..=15 => (100 + self.below(3_000)).to_string().into_bytes(),
            _ => (100 + self.below(20_000)).to_string().into_bytes(),
        }
    }

    fn value(&mut self) -> Vec<u8> {
        match self.below(6) {
            0 => self.number(),
            1 => Vec::new(),
            2 if self.one_in(40) => vec![b'v'; 65_400 + self.below(300) as usize],
            _ => format!("v{}", self.below(5)).into_bytes(),
        }
    }

    fn set(&mut self) -> Line {
        let mut line = vec![b"SET".to_vec(), self.key("s"), self.value()];
        while self.one_in(2) {
            match self.below(16) {
                0 | 1 => line.push(b"NX".to_vec()),
                2 | 3 => line.push(b"XX".to_vec()),
                4..=6 => line.push(b"get".to_vec()),
                7 => line.push(b"KEEPTTL".to_vec()),
                8 => line.extend([b"EX".to_vec(), self.number()]),
                9 => {
                    let at = self.wall.saturating_add(self.below(5_000)).saturating_sub(500);
                    line.extend([b"PXAT".to_vec(), at.to_string().into_bytes()]);
                }
                10 => {
                    let at = self.wall / 1000 + self.below(10);
                    line.extend([b"EXAT".to_vec(), at.to_string().into_bytes()]);
                }
                11 => line.extend([self.pick(&["IFEQ", "IFNE"]), self.value()]),
                12 => line.push(self.pick(&["FENCE", "EX", "what", ""])),
                _ => line.extend([b"PX".to_vec(), self.millis()]),
            }
        }
        line
    }

    fn lock_line(&mut self) -> Line {
        let owner = match self.below(30) {
            0 => Vec::new(),
            1 => vec![b'o'; 256 + self.below(2) as usize],
            _ => self.pick(&["o1", "o2", "o3"]),
        };
        match self.below(12) {
            0..=5 => {
                let mut line = vec![self.pick(&["LOCK", "lock"]), self.key("l"), owner];
                match self.below(10) {
                    0 => {}
                    1 => line.extend([b"EX".to_vec(), self.number()]),
                    2 => line.push(self.pick(&["SHARED", "LIMIT", "BLOCK", "GRACE", "DATA", "PX", "what"])),
                    _ => line.extend([b"PX".to_vec(), self.millis()]),
                }
                if self.one_in(30) {
                    line.extend([b"PX".to_vec(), self.millis()]);
                }
                if self.one_in(3) {
                    line.push(b"SHARED".to_vec());
                    if self.one_in(2) {
                        line.extend([b"LIMIT".to_vec(), self.pick(&["2", "2", "2", "1", "0", "x"])]);
                    }
                }
                if !self.one_in(3) {
                    line.extend([
                        b"BLOCK".to_vec(),
                        self.pick(&["0", "100", "1000", "20000", "20000", "-1"]),
                    ]);
                }
                if self.one_in(4) {
                    line.extend([b"GRACE".to_vec(), self.pick(&["0", "100", "2000"])]);
                }
                if self.one_in(4) {
                    line.extend([b"DATA".to_vec(), self.value()]);
                }
                line
            }
            6 => {
                let count = self.below(4);
                let mut line = vec![b"MLOCK".to_vec(), count.to_string().into_bytes()];
                for _ in 0..count {
                    let key = self.key("l");
                    line.push(key);
                }
                line.push(owner);
                if self.one_in(3) {
                    line.push(b"SHARED".to_vec());
                }
                if !self.one_in(3) {
                    line.extend([b"BLOCK".to_vec(), self.pick(&["0", "1000", "20000"])]);
                }
                line
            }
            7 => match self.below(3) {
                0 => vec![b"LOCKS".to_vec(), b"RELEASE".to_vec(), owner],
                1 => vec![b"LOCKS".to_vec(), b"KILL".to_vec(), self.key("l")],
                _ => vec![b"LOCKS".to_vec(), b"KILL".to_vec(), self.key("l"), b"OWNER".to_vec(), owner],
            },
            8 => match self.below(2) {
                0 => vec![b"FENCE".to_vec(), self.key("l"), self.token()],
                _ => vec![
                    b"SET".to_vec(),
                    self.key("s"),
                    self.value(),
                    b"FENCE".to_vec(),
                    self.key("l"),
                    self.token(),
                ],
            },
            9 | 10 => {
                let mut line = vec![b"UNLOCK".to_vec(), self.key("l"), owner];
                match self.below(8) {
                    0 | 1 => line.extend([b"TOKEN".to_vec(), self.number()]),
                    4..=6 => line.extend([b"TOKEN".to_vec(), self.token()]),
                    2 => line.extend([
                        b"TOKEN".to_vec(),
                        self.pick(&["0", "9007199254740992", "9007199254740991"]),
                    ]),
                    3 => line.push(self.pick(&["TOKEN", "what"])),
                    _ => {}
                }
                line
            }
            _ => {
                let mut line = vec![b"LOCKEXTEND".to_vec(), owner, self.millis()];
                if self.one_in(2) {
                    let count = self.below(5);
                    let said = if self.one_in(8) { self.number() } else { count.to_string().into_bytes() };
                    line.extend([self.pick(&["KEYS", "keys"]), said]);
                    for _ in 0..count {
                        let key = self.key("l");
                        line.push(key);
                    }
                }
                line
            }
        }
    }

    /// Mostly one that was given out of late.
    fn token(&mut self) -> Vec<u8> {
        let token = self.last_token.saturating_sub(self.below(5)).max(1);
        if self.one_in(10) { self.pick(&["0", "x", "1-1:1", "7:"]) } else { token.to_string().into_bytes() }
    }

    fn queue_line(&mut self) -> Line {
        if self.one_in(3) {
            return self.operator_line();
        }
        match self.below(10) {
            0..=3 => {
                let mut line = vec![b"QPUSH".to_vec(), self.key("q"), self.value()];
                while self.one_in(3) {
                    match self.below(14) {
                        0..=3 => line.extend([b"ID".to_vec(), self.pick(&["a", "b", "c", "d"])]),
                        4 | 5 => line.extend([b"PRIORITY".to_vec(), self.pick(&["0", "1", "5", "9", "9"])]),
                        6 | 7 => line.extend([b"DELAY".to_vec(), self.millis()]),
                        8 => line.extend([b"PX".to_vec(), self.millis()]),
                        9 => line.extend([b"EX".to_vec(), self.number()]),
                        10 => line.extend([b"GROUP".to_vec(), self.pick(&["g", "h"])]),
                        11 => line.extend([b"MAXLEN".to_vec(), self.number()]),
                        12 => line.extend([b"XX".to_vec(), b"ID".to_vec(), self.pick(&["a", "b", "c", "d"])]),
                        _ => {
                            line.push(self.pick(&[
                                "ID", "PRIORITY", "DELAY", "EX", "PX", "GROUP", "MAXLEN", "XX", "what",
                            ]))
                        }
                    }
                }
                line
            }
            4..=6 => {
                let mut line = vec![b"QPOP".to_vec()];
                while self.one_in(3) {
                    match self.below(12) {
                        0..=3 => {
                            line.extend([b"COUNT".to_vec(), (1 + self.below(3)).to_string().into_bytes()])
                        }
                        4 => line.extend([b"count".to_vec(), self.pick(&["0", "1000", "1001", "x", "FROM"])]),
                        5..=8 => line.extend([b"LEASE".to_vec(), self.millis()]),
                        9 => line.push(b"NOACK".to_vec()),
                        10 => line.extend([b"BLOCK".to_vec(), self.pick(&["x", "-1", "31536000001"])]),
                        _ => {
                            line.extend([b"CONSUMER".to_vec(), self.pick(&["w1", "w2", ""])]);
                            line.push(self.pick(&["WITHMETA", "WITHMETA", "what", "LEASE", "COUNT"]));
                        }
                    }
                }
                if self.one_in(2) {
                    let block = self.pick(&["0", "100", "1000", "20000", "20000"]);
                    line.extend([b"BLOCK".to_vec(), block]);
                }
                if !self.one_in(30) {
                    line.push(b"FROM".to_vec());
                }
                for _ in 0..1 + self.below(3) * self.below(2) {
                    let key = self.key("q");
                    line.push(key);
                }
                line
            }
            7 | 8 => {
                let mut line = vec![b"QACK".to_vec(), self.key("q")];
                for _ in 0..1 + self.below(2) {
                    let wrong = [
                        "1-0:1",
                        "1-0",
                        "x",
                        "1-0:01",
                        "+1-0:1",
                        "1-0:1:1",
                        "1-0-0:1",
                        "99999999999999999999-0:1",
                    ];
                    match self.receipts.len() {
                        0 => line.push(self.pick(&wrong)),
                        _ if self.one_in(20) => line.push(self.pick(&wrong)),
                        known => {
                            // Mostly of late, and mostly with its own queue.
                            let back =
                                (self.below(known as u64) * self.below(known as u64) / known as u64) as usize;
                            let (queue, receipt) = self.receipts[known - 1 - back].clone();
                            if !self.one_in(10) {
                                line[1] = format!("q{queue}").into_bytes();
                            }
                            line.push(receipt);
                        }
                    }
                }
                line
            }
            _ => {
                let mut line = vec![b"QLEN".to_vec(), self.key("q")];
                if self.one_in(2) {
                    line.push(self.pick(&["READY", "leased", "ALL", "DEAD", "DELAYED", "what"]));
                }
                line
            }
        }
    }

    /// QNACK, QEXTEND and what operators do.
    fn operator_line(&mut self) -> Line {
        let words = |text: &str| -> Line { text.split(' ').map(|word| word.as_bytes().to_vec()).collect() };
        let (queue, receipt) = self.receipts.last().cloned().unwrap_or((0, b"1-0:1".to_vec()));
        let back = self.below(self.receipts.len().clamp(1, 8) as u64) as usize;
        let (queue, receipt) = self
            .receipts
            .len()
            .checked_sub(1 + back)
            .map_or((queue, receipt), |at| self.receipts[at].clone());
        let queue = if self.one_in(12) { self.key("q") } else { format!("q{queue}").into_bytes() };
        let id = receipt.split(|byte| *byte == b':').next().unwrap_or_default().to_vec();
        match self.below(12) {
            0..=4 => {
                let mut line = vec![b"QNACK".to_vec(), queue];
                if !self.one_in(3) {
                    line.push(self.pick(&["SILENT", "FAIL", "FATAL", "FATAL"]));
                }
                if self.one_in(3) {
                    line.extend([b"DELAY".to_vec(), self.pick(&["0", "0", "300", "-1"])]);
                }
                if self.one_in(3) {
                    line.extend([b"REASON".to_vec(), self.value()]);
                }
                line.extend([b"IDS".to_vec(), self.pick(&["1", "1", "1", "1", "2", "0"]), receipt]);
                line
            }
            5 => vec![b"QEXTEND".to_vec(), queue, self.millis(), receipt],
            6 => {
                let rest = self.pick(&["ALL", "STATE DEAD", "STATE READY", "STATE what", "IDS 1"]);
                let rest = String::from_utf8(rest).expect("it is ASCII");
                let mut line = [vec![b"QDEL".to_vec(), queue], words(&rest)].concat();
                if rest.starts_with("IDS") {
                    line.push(id);
                }
                line
            }
            7 | 8 => {
                let mut line = vec![b"QREDRIVE".to_vec(), queue];
                match self.below(4) {
                    0 => line.extend([b"IDS".to_vec(), b"1".to_vec(), id]),
                    1 => line.extend([b"COUNT".to_vec(), self.number()]),
                    _ => {}
                }
                if self.one_in(3) {
                    line.extend([b"TO".to_vec(), self.key("q")]);
                }
                line
            }
            _ => {
                let rest = self.pick(&[
                    "MAXDELIVER 2",
                    "MAXDELIVER 0",
                    "DEADLETTER q1",
                    "DEADLETTER q2",
                    "DEDUP 500",
                    "DEDUP 0",
                    "MAXLEN 5",
                    "MAXLEN 0",
                    "MAXBYTES 60",
                    "MAXBYTES 0",
                    "MAXLEASED 2",
                    "MAXLEASED 0",
                    "AGING 200",
                    "AGING 0",
                    "RETAIN 500",
                    "PAUSE in",
                    "PAUSE out",
                    "PAUSE ALL",
                    "PAUSE none",
                    "PAUSE none",
                    "PAUSE none",
                    "PAUSE what",
                    "TTL 2000",
                    "TTL 0",
                    "LEASE 400",
                    "LEASE 5",
                    "COLOUR red",
                    "LEASE 200 PAUSE what",
                ]);
                let rest = String::from_utf8(rest).expect("it is ASCII");
                let mut line = [vec![b"QCONFIG".to_vec(), b"SET".to_vec(), queue], words(&rest)].concat();
                if self.one_in(4) {
                    let backoff = self.pick(&["0 0 1 0", "100 2000 2 20", "50 50 1.5 100", "1 400 3 0%"]);
                    line.extend([b"BACKOFF".to_vec(), backoff]);
                }
                line
            }
        }
    }

    fn reading_line(&mut self) -> Line {
        let name = self.pick(&["GET", "STRLEN", "PTTL", "TYPE", "EXISTS", "MGET", "QLEN"]);
        let kind = String::from_utf8(self.pick(&["s", "n", "l", "q"])).expect("they are ASCII");
        let is_many = name == b"EXISTS" || name == b"MGET";
        let mut line = vec![name];
        for _ in 0..if is_many { 1 + self.below(4) } else { 1 } {
            let key = self.key(&kind);
            line.push(key);
        }
        line
    }

    fn string_line(&mut self) -> Line {
        match self.below(20) {
            0..=4 => self.set(),
            5 => vec![b"GETDEL".to_vec(), self.key("s")],
            6 => {
                let mut line = vec![self.pick(&["DEL", "UNLINK"])];
                for _ in 0..1 + self.below(3) {
                    let key = self.key("s");
                    line.push(key);
                }
                line
            }
            7 | 8 => vec![self.pick(&["INCR", "DECR", "incr"]), self.key("n")],
            9 => vec![b"INCRBY".to_vec(), self.key("n"), self.number()],
            10 => vec![b"APPEND".to_vec(), self.key("s"), self.value()],
            11 => {
                let mut line = vec![b"MSET".to_vec()];
                for _ in 0..1 + self.below(3) {
                    let (key, value) = (self.key("s"), self.value());
                    line.extend([key, value]);
                }
                if self.one_in(15) {
                    line.push(b"odd".to_vec());
                }
                line
            }
            12 | 13 => {
                let mut line = vec![b"PEXPIRE".to_vec(), self.key("s"), self.millis()];
                while self.one_in(3) {
                    line.push(self.pick(&["NX", "XX", "GT", "LT", "gt", "what"]));
                }
                line
            }
            14 => vec![b"PERSIST".to_vec(), self.key("s")],
            15 => vec![self.pick(&["SETNX", "GETSET"]), self.key("s"), self.value()],
            16 => vec![b"SET".to_vec(), self.key("n"), self.number()],
            _ => self.reading_line(),
        }
    }

    fn line(&mut self) -> Line {
        let mut line = match self.below(10) {
            0..=3 => self.string_line(),
            4..=6 => self.lock_line(),
            _ => self.queue_line(),
        };
        if self.one_in(200) {
            line.pop();
        }
        line
    }

    fn db(&mut self) -> u8 {
        if self.one_in(60) { DATABASES + self.below(3) as u8 } else { u8::from(self.one_in(10)) }
    }

    fn push_item(&mut self, batch: &mut Batch, state: &State) {
        match self.below(40) {
            0 | 1 => {
                let mut keys = Vec::new();
                for _ in 0..self.below(4) {
                    let kind = String::from_utf8(self.pick(&["s", "l", "q"])).expect("they are ASCII");
                    let key = self.key(&kind);
                    keys.push(key);
                }
                batch.push_expire(0, keys.iter().map(Vec::as_slice));
            }
            2..=4 => {
                let mut watched = Vec::new();
                for _ in 0..self.below(3) {
                    let kind = String::from_utf8(self.pick(&["s", "l", "q"])).expect("they are ASCII");
                    let (db, key) = (self.db(), self.key(&kind));
                    let mut changed = state.row(db, &key).map(|row| row.changed());
                    if self.one_in(8) {
                        changed = Some(LogIndex(self.index.saturating_sub(self.below(3))));
                    }
                    watched.push(Watched { db, key: key.into(), changed });
                }
                let mut commands = Vec::new();
                if self.one_in(4) {
                    let mut line = vec![b"ONCE".to_vec(), self.pick(&["n1", "n2", "n3", "n4"])];
                    if self.one_in(2) {
                        line.extend([b"PX".to_vec(), self.pick(&["10", "1000", "20000", "0"])]);
                    }
                    commands.push(Queued { db: 0, args: line.into_iter().map(Bytes::from).collect() });
                }
                for _ in 0..self.below(4) {
                    let (db, line) = (self.db(), self.line());
                    commands.push(Queued { db, args: line.into_iter().map(Bytes::from).collect() });
                }
                let is_atomic = self.one_in(2);
                batch.push_transaction(&watched, &commands, is_atomic);
            }
            5 if self.one_in(3) => batch.push_verify(),
            7 => {
                let claims: Vec<u64> = (0..1 + self.below(3)).map(|_| self.claim(state)).collect();
                batch.push_cancel(&claims);
            }
            10 | 11 => {
                let claims: Vec<u64> = (0..1 + self.below(3)).map(|_| self.claim(state)).collect();
                batch.push_confirm(&claims);
            }
            8 => {
                let grants: Vec<(Vec<u8>, u64, u64)> = (0..1 + self.below(2))
                    .map(|_| {
                        (self.key("l"), self.last_token.saturating_sub(self.below(4)), 1 + self.below(2))
                    })
                    .collect();
                let owner = self.pick(&["o1", "o2", "o3"]);
                let grants: Vec<(&[u8], u64, u64)> =
                    grants.iter().map(|(key, token, touches)| (key.as_slice(), *token, *touches)).collect();
                batch.push_take_back(0, &owner, grants.into_iter());
            }
            9 if self.one_in(4) => {
                let node = 1 + self.below(NODES);
                batch.push_end_claims(NodeId(node), (self.origins[node as usize].0 >> 16) + self.below(2));
            }
            6 if self.one_in(3) => batch.push_allocate_replica(NodeId(self.below(3)), self.below(3)),
            _ => {
                let (db, line) = (self.db(), self.line());
                batch.push_command(db, line.iter().map(Vec::as_slice));
            }
        }
    }

    /// One that waits, or waited.
    fn claim(&mut self, state: &State) -> u64 {
        let locks = state.waits().iter().flat_map(|(_, wait)| wait.claims());
        let pops = state.pop_waits().iter().map(|wait| &wait.claim);
        let handed = state.handed().iter().flat_map(|(_, hand_over)| &hand_over.clients);
        let waiting = locks.chain(pops).map(|claim| claim.id.0);
        let waiting: Vec<u64> = waiting.chain(handed.map(|(claim, _)| claim.0)).collect();
        let at = self.below(waiting.len() as u64 + 1) as usize;
        waiting.get(at).copied().unwrap_or(1)
    }

    /// A batch, new or made before, with the session that it is sent in.
    fn batch(&mut self, state: &State) -> (Option<SessionStamp>, Batch) {
        if !self.made.is_empty() && self.one_in(6) {
            let known = self.made.len() as u64;
            let back = self.below(known) * self.below(known) / known;
            let (mut stamp, batch) = self.made[(known - 1 - back) as usize].clone();
            if self.one_in(4) {
                stamp.ack = self.below(stamp.seq + 2);
            }
            return (Some(stamp), batch);
        }
        let user = self.pick(&["alice", "bob", "7"]);
        let mut batch = Batch::new(&user);
        for _ in 0..1 + self.below(3) * self.below(2) {
            self.push_item(&mut batch, state);
        }
        if self.one_in(2) {
            return (None, batch);
        }
        let node = 1 + self.below(NODES);
        let (mut epoch, mut last, mut ack) = self.origins[node as usize];
        if self.one_in(25) {
            // Sometimes the process is another one, too.
            (epoch, last, ack) = (epoch + if self.one_in(2) { 1 } else { 1 << 16 }, 0, 0);
        }
        // Now and then one is left out.
        last += 1 + u64::from(self.one_in(40));
        if self.one_in(4) {
            ack = last.saturating_sub(1 + self.below(4)).max(ack);
        }
        self.origins[node as usize] = (epoch, last, ack);
        let stamp = SessionStamp { node: NodeId(node), epoch, seq: last, ack };
        self.made.push((stamp, batch.clone()));
        (Some(stamp), batch)
    }

    fn leader_start(&mut self) -> Batch {
        let mut batch = Batch::default();
        let settings = Settings {
            databases: DATABASES,
            lock_default_ttl: Millis(1_000),
            lease_failover_grace: Millis(400),
            lock_deadlock_victim: self.victim,
            lock_release_memory: 6,
            once_max_entries: 8,
            once_max_bytes: 48,
            queue_ack_memory: 12,
            ..Settings::default()
        };
        let outage = Millis(if self.one_in(2) { 0 } else { self.below(5_000) });
        batch.push_leader_start(&LeaderStart { outage, settings });
        batch
    }

    fn step(&mut self, state: &State) -> Step {
        self.last_token = state.meta().last_token.0;
        self.index += 1 + u64::from(self.one_in(20));
        let passed = match self.below(20) {
            0..=9 => self.below(10),
            10..=17 => self.below(200),
            18 => self.below(2_000),
            _ if self.one_in(10) => self.below(8_000_000),
            _ => self.below(30_000),
        };
        self.clock += passed;
        self.wall += if self.one_in(20) { self.below(10_000) } else { passed };
        // A leader may stamp times that are behind.
        let clock = if self.one_in(30) { self.clock.saturating_sub(self.below(500)) } else { self.clock };
        let wall = if self.one_in(30) { self.wall - self.below(5_000) } else { self.wall };
        let mut batches = Vec::new();
        if self.index < 3 || self.one_in(25) {
            batches.push((None, self.leader_start()));
        }
        for _ in 0..1 + self.below(3) * self.below(2) {
            let batch = self.batch(state);
            batches.push(batch);
        }
        let stamps = Stamps { clock: ClusterTime(clock), wall: WallMillis(wall), seed: self.below(100) };
        let entry = match self.one_in(60) {
            true => Vec::new(),
            false => encode_entry(&stamps, batches.iter().map(|(session, batch)| (*session, batch))),
        };
        let mut reads = Vec::new();
        for _ in 0..self.below(3) {
            let (line, now) = (self.reading_line(), self.clock + self.below(300));
            reads.push((now, u8::from(self.one_in(10)), line));
        }
        Step { index: self.index, entry, reads }
    }

    /// Remembers the receipts among the replies.
    fn learn(&mut self, reply: &Reply) {
        let Reply::Array(all) = reply else { return };
        match &all[..] {
            [Reply::Bulk(queue), Reply::Bulk(receipt), Reply::Bulk(_), Reply::Integer(_), ..] => {
                self.learn_receipt(queue, receipt.to_vec());
            }
            all => all.iter().for_each(|reply| self.learn(reply)),
        }
    }

    fn learn_receipt(&mut self, queue: &[u8], receipt: Vec<u8>) {
        let queue = queue.last().map_or(0, |digit| usize::from(digit.wrapping_sub(b'0')));
        self.receipts.push((queue, receipt));
    }

    /// Remembers the receipts that somebody who waited was given.
    fn learn_end(&mut self, end: &End) {
        let End::Delivered { messages, .. } = end else { return };
        for message in messages {
            let receipt = format!("{}-{}:{}", message.id.0, message.id.1, message.delivery);
            self.learn_receipt(&message.queue, receipt.into_bytes());
        }
    }
}

/// Runs random entries through both machines and gives how often each kind of reply was seen.
fn run_random(seed: u64, length: u64, kinds: &mut BTreeMap<String, u64>) {
    let (mut maker, mut pair, mut steps) = (Maker::new(seed), Pair::new(), Vec::new());
    for _ in 0..length {
        let step = maker.step(&pair.state);
        steps.push(step.clone());
        let outcome = pair.apply(step.index, &step.entry).and_then(|replies| {
            step.reads.iter().try_for_each(|(now, db, line)| pair.read(*now, *db, line))?;
            if steps.len().is_multiple_of(8) {
                pair.compare()?;
            }
            Ok(replies)
        });
        match outcome {
            Ok(replies) => {
                for reply in replies.iter().flatten() {
                    maker.learn(reply);
                    *kinds.entry(kind(reply)).or_default() += 1;
                }
                for ended in pair.model.ended() {
                    maker.learn_end(&ended.end);
                    *kinds.entry(kind_of_end(&ended.end)).or_default() += 1;
                }
            }
            Err(difference) => {
                let few = shrunk(steps);
                let text: Vec<String> = few.iter().map(unpacked).collect();
                let last = run(&few).err().unwrap_or_else(|| difference.clone());
                panic!("seed {seed}: {difference}\nshrunk: {last}\n{}", text.join("\n"));
            }
        }
    }
    pair.compare().unwrap_or_else(|difference| panic!("seed {seed}: {difference}"));
}

fn kind(reply: &Reply) -> String {
    match reply {
        Reply::Error(text) => text.chars().take(40).collect(),
        Reply::Integer(number) => if *number > 0 { "positive" } else { "integer" }.to_owned(),
        Reply::Bulk(_) => "bulk".to_owned(),
        Reply::Array(_) => "array".to_owned(),
        Reply::Map(_) => "map".to_owned(),
        Reply::Waiting(_) => "waiting".to_owned(),
        other => format!("{other:?}"),
    }
}

fn kind_of_end(end: &End) -> String {
    match end {
        End::Granted { .. } => "a wait is granted".to_owned(),
        End::Delivered { .. } => "a QPOP that waits is served".to_owned(),
        End::Over => "a wait is over".to_owned(),
        End::Failed(text) => format!("a wait fails: {}", text.chars().take(40).collect::<String>()),
    }
}

#[test]
fn the_model_and_the_machine_agree_on_random_entries() {
    let sequences = number_from_env("MODEL_SEQUENCES", 2_000);
    let first = number_from_env("MODEL_SEED", 1);
    println!("seeds {first} to {}", first + sequences - 1);
    let mut kinds = BTreeMap::new();
    for seed in first..first + sequences {
        run_random(seed, 150, &mut kinds);
    }
    println!("{kinds:#?}");
    assert!(sequences < 100 || kinds.len() > 25, "hardly anything was tried: {kinds:#?}");
}

/// An entry of these lines at this time, each batch in the session or without one.
fn lines(clock: u64, session: Option<SessionStamp>, lines: &[String]) -> Vec<u8> {
    let mut batch = Batch::new(b"default");
    for line in lines {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        batch.push_command(0, words.into_iter());
    }
    let stamps = Stamps { clock: ClusterTime(clock), wall: WallMillis(clock), seed: 1 };
    encode_entry(&stamps, [(session, &batch)].into_iter())
}

fn started() -> Pair {
    let mut pair = Pair::new();
    let mut batch = Batch::default();
    let settings = Settings { databases: DATABASES, ..Settings::default() };
    batch.push_leader_start(&LeaderStart { outage: Millis(0), settings });
    let stamps = Stamps { clock: ClusterTime(0), wall: WallMillis(0), seed: 1 };
    pair.apply(1, &encode_entry(&stamps, [(None, &batch)].into_iter())).expect("it begins");
    pair
}

fn expire(clock: u64, keys: &[&str]) -> Vec<u8> {
    let mut batch = Batch::default();
    batch.push_expire(0, keys.iter().map(|key| key.as_bytes()));
    let stamps = Stamps { clock: ClusterTime(clock), wall: WallMillis(clock), seed: 1 };
    encode_entry(&stamps, [(None, &batch)].into_iter())
}

#[test]
fn a_difference_is_found_and_shrunk_to_few_entries() {
    let mut maker = Maker::new(1);
    let mut pair = Pair::new();
    let mut steps = Vec::new();
    for _ in 0..60 {
        let step = maker.step(&pair.state);
        pair.apply(step.index, &step.entry).expect("they agree");
        steps.push(step);
    }
    let lock =
        |index| Step { index, entry: lines(900_000, None, &["LOCK new me".to_owned()]), reads: Vec::new() };
    steps.push(lock(1_000));
    // The same command again, of which only the real machine hears.
    let index = 1_001;
    let difference = |steps: &[Step]| {
        let mut pair = Pair::new();
        for step in steps {
            pair.apply(step.index, &step.entry)?;
        }
        let unheard = lines(900_001, None, &["INCR unheard".to_owned()]);
        apply_entry(&mut pair.state, LogIndex(index), Term(1), &unheard)
            .map_err(|error| error.to_string())?;
        pair.apply(index + 1, &lines(900_002, None, &["INCR unheard".to_owned()]))
    };
    let found = difference(&steps).expect_err("the model did not hear of it");
    assert!(found.contains("entry 1002"), "{found}");
    // And one that stands in the log: the model takes no command that it does not know.
    steps.push(Step {
        index: 1_003,
        entry: lines(900_003, None, &["FLUSHALL".to_owned()]),
        reads: Vec::new(),
    });
    let few = shrunk(steps);
    assert!(few.len() <= 2, "{}", few.iter().map(unpacked).collect::<Vec<_>>().join("\n"));
    assert!(run(&few).expect_err("they still differ").contains("FLUSHALL"));
}

#[test]
fn more_that_is_due_than_one_entry_ends_ends_in_the_same_order() {
    for seed in 1..=6 {
        let mut random = Random::new(seed);
        let mut pair = started();
        let mut index = 1;
        let mut apply = |pair: &mut Pair, entry: &[u8]| {
            index += 1;
            let replies = pair.apply(index, entry).and_then(|replies| pair.compare().map(|()| replies));
            replies.unwrap_or_else(|difference| panic!("seed {seed}: {difference}"))
        };
        for round in 0..12 {
            let mut all = Vec::new();
            for number in 0..250 {
                let lease = 100 + random.below(300);
                all.push(match random.below(4) {
                    0 => format!("SET s{round}:{number} v PX {lease}"),
                    1 => format!("LOCK l{round}:{number} me PX {lease}"),
                    _ => format!("QPUSH q{} m", random.below(3)),
                });
            }
            all.push(format!("QPOP COUNT 1000 LEASE {} FROM q0 q1 q2", 100 + random.below(300)));
            apply(&mut pair, &lines(round, None, &all));
        }
        // All of it is due, and more of one queue than one command ends.
        let mut clock = 1_000;
        apply(&mut pair, &lines(clock, None, &["QLEN q0 LEASED".to_owned(), "QPOP FROM q1".to_owned()]));
        for step in 0..8 {
            clock += random.below(2);
            let entry = match step % 4 {
                1 => expire(clock, &["q1", "q0", "nothing"]),
                2 => lines(clock, None, &["LOCKEXTEND me 100".to_owned()]),
                _ => expire(clock, &[]),
            };
            apply(&mut pair, &entry);
        }
        let mut start = Batch::default();
        start.push_leader_start(&LeaderStart { outage: Millis(7), settings: Settings::default() });
        let stamps = Stamps { clock: ClusterTime(clock), wall: WallMillis(clock), seed: 1 };
        apply(&mut pair, &encode_entry(&stamps, [(None, &start)].into_iter()));
        for _ in 0..4 {
            clock += 2_500;
            apply(&mut pair, &expire(clock, &[]));
        }
    }
}

#[test]
fn a_receipt_whose_lease_is_due_behind_many_others_finishes_nothing() {
    let mut pair = started();
    let pushes: Vec<String> = (0..1_500).map(|number| format!("QPUSH q m{number}")).collect();
    pair.apply(2, &lines(0, None, &pushes)).expect("they agree");
    let pops = ["QPOP COUNT 1000 LEASE 100 FROM q".to_owned(), "QPOP COUNT 1000 LEASE 100 FROM q".to_owned()];
    pair.apply(3, &lines(0, None, &pops)).expect("they agree");
    let acks = ["QACK q 2-1499:1 2-1498:1 2-1498:1".to_owned(), "QLEN q".to_owned()];
    let replies = pair.apply(4, &lines(100, None, &acks)).expect("they agree");
    assert_eq!(replies[0][0], Reply::Integer(0));
    pair.compare().expect("they agree");
}

#[test]
fn replies_are_remembered_up_to_the_same_size() {
    let mut pair = started();
    let mut index = 1;
    let mut apply = |pair: &mut Pair, seq: u64, lines_of: &[String]| {
        index += 1;
        let stamp = SessionStamp { node: NodeId(1), epoch: 1, seq, ack: 0 };
        let replies = pair.apply(index, &lines(0, Some(stamp), lines_of));
        replies
            .and_then(|replies| pair.compare().map(|()| replies))
            .unwrap_or_else(|difference| panic!("{difference}"))
    };
    let mut seq = 0;
    for length in (65_520..65_545).chain([100, 127, 128, 129]) {
        let value = "v".repeat(length);
        for of in [vec![format!("SET k {value}")], vec!["GET k".to_owned()], vec!["MGET k k".to_owned()]] {
            seq += 1;
            apply(&mut pair, seq, &of);
            apply(&mut pair, seq, &of);
        }
    }
    for count in [1, 127, 128, 4_095, 4_096, 4_097, 70_000] {
        let of: Vec<String> = vec!["SET k v".to_owned(); count];
        let mixed: Vec<String> = of.iter().cloned().chain(["STRLEN k".to_owned()]).collect();
        for of in [of, mixed] {
            seq += 1;
            apply(&mut pair, seq, &of);
            apply(&mut pair, seq, &of);
        }
    }
    // More than a session keeps.
    let value = format!("SET k {}", "v".repeat(65_000));
    seq += 1;
    apply(&mut pair, seq, &[value]);
    let first = seq + 1;
    for _ in 0..600 {
        seq += 1;
        apply(&mut pair, seq, &["GET k".to_owned()]);
    }
    assert_eq!(apply(&mut pair, first, &["GET k".to_owned()]), Vec::<Vec<Reply>>::new());
    for _ in 0..2_000 {
        seq += 1;
        apply(&mut pair, seq, &["INCR n".to_owned()]);
    }
}
