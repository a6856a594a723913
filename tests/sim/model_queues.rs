//! The queues of the model: messages in one list by id, and QPOPs that wait in another. Written from COMMANDS.md 2.3 and
//! 2.6 and the table of `state::queues::rules`, slowly: whatever is asked is looked for among everything there is.
//!
//! Only the chance in BACKOFF's jitter is drawn as the product draws it, by its public function.

use holdfast::state::queues::Backoff;

use super::locks::Claim;
use super::locks::Who;
use super::*;

/// Never, as a time.
const NEVER: u64 = u64::MAX;
/// How long a receipt that finished a message is remembered.
const FINISHES_KEPT: u64 = 600_000;
/// QPOPs that may wait for one queue.
const WAITERS_MAX: usize = 10_000;
/// Longest time of a message, in milliseconds.
const YEAR: i64 = 365 * 86_400_000;
/// Longest time that something finished is remembered.
const MONTH: i64 = 30 * 86_400_000;
/// Largest number that clients have exactly.
const MOST: i64 = (1 << 53) - 1;
/// What errors add to a length of time.
const MILLIS: &str = " milliseconds";

/// The index of its entry and its place there.
pub type MessageId = (u64, u32);

/// Everything that has happened in a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    pub pushed: u64,
    /// Hand-outs, repeated ones included.
    pub delivered: u64,
    pub redelivered: u64,
    /// Finished, by QACK or NOACK.
    pub acked: u64,
    pub nacked: u64,
    /// Leases that ended by time.
    pub expired_leases: u64,
    pub duplicates: u64,
    pub died: u64,
    pub deleted: u64,
    /// Went to another queue.
    pub moved: u64,
}

/// Where a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Delayed(u64),
    Ready,
    /// Until when, and where that was set.
    Leased(u64, u64),
    Dead,
}

/// A message of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub id: MessageId,
    pub payload: Bytes,
    pub priority: u8,
    pub group: Option<Vec<u8>>,
    /// The ID that it is known by where it is.
    pub name: Option<Vec<u8>>,
    /// The one that it was known by before it died its way here.
    pub carried: Option<Vec<u8>>,
    pub expires: u64,
    pub reason: Vec<u8>,
    pub pushed_at: u64,
    /// Since when it waits to be handed out; means nothing while it does not.
    pub since: u64,
    pub place: Place,
    /// How often it was handed out.
    pub delivery: u32,
    /// How often that counts.
    pub attempt: u32,
}

/// What QCONFIG sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub lease: u64,
    pub max_deliver: u64,
    /// Smallest, largest, factor in hundredths, jitter in hundredths.
    pub backoff: (u64, u64, u64, u64),
    pub dead_letter: Vec<u8>,
    pub dedup: u64,
    pub max_len: u64,
    pub max_bytes: u64,
    pub max_leased: u64,
    pub aging: u64,
    pub retain: u64,
    pub pause: String,
    pub ttl: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            lease: 30_000,
            max_deliver: 20,
            backoff: (1_000, 300_000, 200, 20),
            dead_letter: Vec::new(),
            dedup: 300_000,
            max_len: 0,
            max_bytes: 0,
            max_leased: 0,
            aging: 0,
            retain: 3_600_000,
            pause: "none".to_owned(),
            ttl: 0,
        }
    }
}

/// A queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queue {
    /// Never that of another.
    pub number: u64,
    /// By id.
    pub messages: Vec<Message>,
    /// IDs of finished messages, and until when they are remembered.
    pub finished_ids: Vec<(Vec<u8>, MessageId, u64)>,
    pub config: Config,
    pub totals: Totals,
    /// Until when something is to be told of messages that are gone, besides their IDs.
    pub remembered: u64,
    /// The messages of groups that can be handed out, by their groups.
    available: Vec<(Vec<u8>, MessageId)>,
}

/// What happens in a queue by time, in the order in which it happens at one moment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Message(MessageId),
    Lifetime(MessageId),
    Name(Vec<u8>),
    Forget,
}

/// What QPOP asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pop {
    pub db: u8,
    pub queues: Vec<Vec<u8>>,
    pub count: usize,
    /// `None`: as the queue says.
    pub lease: Option<u64>,
    pub no_ack: bool,
    pub with_meta: bool,
}

/// A QPOP that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PopWait {
    pub pop: Pop,
    pub claim: Claim,
}

/// A message that was handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Popped {
    pub queue: Vec<u8>,
    pub id: MessageId,
    pub delivery: u32,
    pub attempt: u32,
    pub payload: Bytes,
    pub priority: u8,
    pub group: Option<Vec<u8>>,
    pub age: u64,
    pub lease: u64,
    pub reason: Vec<u8>,
}

/// A message was finished by this receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finish {
    queue: u64,
    id: MessageId,
    delivery: u32,
    at: u64,
}

/// How a message is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nack {
    Silent(u64),
    Fail(Option<u64>),
    Fatal,
}

impl Queue {
    pub fn message(&self, id: MessageId) -> Option<&Message> {
        self.messages.iter().find(|message| message.id == id)
    }

    fn message_mut(&mut self, id: MessageId) -> Option<&mut Message> {
        self.messages.iter_mut().find(|message| message.id == id)
    }

    fn count(&self, is_it: impl Fn(Place) -> bool) -> usize {
        self.messages.iter().filter(|message| is_it(message.place)).count()
    }

    /// Ready, delayed, leased and dead.
    pub fn counts(&self) -> [usize; 4] {
        [
            self.count(|place| place == Place::Ready),
            self.count(|place| matches!(place, Place::Delayed(_))),
            self.count(|place| matches!(place, Place::Leased(..))),
            self.count(|place| place == Place::Dead),
        ]
    }

    fn put(&mut self, message: Message) {
        let at = self.messages.iter().filter(|other| other.id < message.id).count();
        self.messages.insert(at, message);
    }

    fn take(&mut self, id: MessageId) -> Option<Message> {
        let at = self.messages.iter().position(|message| message.id == id)?;
        Some(self.messages.remove(at))
    }

    /// A message that is ready and waits only for another one of its group.
    pub fn is_held_back(&self, message: &Message) -> bool {
        let Some(group) = &message.group else { return false };
        let of_group = |other: &&Message| other.group.as_ref() == Some(group) && other.place != Place::Dead;
        let mut others = self.messages.iter().filter(of_group);
        others.any(|other| other.id < message.id || matches!(other.place, Place::Leased(..)))
    }

    /// The message that goes next.
    pub fn next(&self, now: u64) -> Option<MessageId> {
        let [_, _, leased, _] = self.counts();
        let is_busy = self.config.max_leased != 0 && leased as u64 >= self.config.max_leased;
        if is_busy || matches!(self.config.pause.as_str(), "out" | "all") {
            return None;
        }
        let mut best: Option<(u64, MessageId)> = None;
        let mut seen = Vec::new();
        for message in &self.messages {
            // The first of a priority stands for it.
            if message.place != Place::Ready || seen.contains(&message.priority) || self.is_held_back(message)
            {
                continue;
            }
            seen.push(message.priority);
            let waited = now.saturating_sub(message.since).checked_div(self.config.aging).unwrap_or(0);
            let rank = u64::from(message.priority) + waited;
            if best.is_none_or(|(known, _)| rank > known) {
                best = Some((rank, message.id));
            }
        }
        best.map(|(_, id)| id)
    }

    /// Who of a group can be handed out only from now on has not waited before.
    fn note_available(&mut self, now: u64) {
        let can_go = |message: &&Message| message.place == Place::Ready && !self.is_held_back(message);
        let firsts = self.messages.iter().filter(can_go);
        let firsts: Vec<_> = firsts.filter_map(|it| Some((it.group.clone()?, it.id))).collect();
        if self.config.aging != 0 {
            let new = firsts.iter().filter(|first| !self.available.contains(first));
            let new: Vec<MessageId> = new.map(|(_, id)| *id).collect();
            self.messages.iter_mut().filter(|it| new.contains(&it.id)).for_each(|it| it.since = now);
        }
        self.available = firsts;
    }

    fn remember_until(&mut self, until: u64) {
        self.remembered = self.remembered.max(until);
    }

    /// The message that is known by an ID, also one that is gone.
    fn known_by(&self, name: &[u8], now: u64) -> Option<MessageId> {
        let here = self.messages.iter().find(|it| it.name.as_deref() == Some(name));
        let mut gone = self.finished_ids.iter();
        let gone = gone.find(|(known, _, until)| known == name && *until > now);
        here.map(|message| message.id).or(gone.map(|(_, id, _)| *id))
    }

    /// The message of an ID has left.
    fn remember_id(&mut self, name: Vec<u8>, id: MessageId, now: u64) {
        if self.config.dedup > 0 {
            let until = now.saturating_add(self.config.dedup);
            self.finished_ids.retain(|(known, _, _)| *known != name);
            self.finished_ids.push((name, id, until));
        }
    }

    /// Nothing is in it, and nobody configured it.
    fn is_at_rest(&self) -> bool {
        self.messages.is_empty() && self.config == Config::default()
    }

    fn timers(&self) -> Vec<(u64, Timer)> {
        let mut timers = Vec::new();
        for message in &self.messages {
            match message.place {
                Place::Delayed(at) | Place::Leased(at, _) => timers.push((at, Timer::Message(message.id))),
                Place::Ready | Place::Dead => {}
            }
            let is_mortal = matches!(message.place, Place::Delayed(_) | Place::Ready);
            if is_mortal && message.expires != NEVER {
                timers.push((message.expires, Timer::Lifetime(message.id)));
            }
        }
        for (name, _, until) in &self.finished_ids {
            timers.push((*until, Timer::Name(name.clone())));
        }
        if timers.is_empty() && self.is_at_rest() {
            timers.push((self.remembered, Timer::Forget));
        }
        timers
    }

    /// When the next thing happens by time that somebody waits for, or that nobody does: consumers wait for messages.
    pub fn earliest(&self, is_awaited: bool) -> u64 {
        let is_meant = |(_, timer): &(u64, Timer)| matches!(timer, Timer::Message(_)) == is_awaited;
        self.timers().into_iter().filter(is_meant).map(|(at, _)| at).min().unwrap_or(NEVER)
    }
}

impl Config {
    fn wait(&self, attempt: u32, id: MessageId, seed: u64) -> u64 {
        let (min, max, factor, jitter) = self.backoff;
        let mut wait = u128::from(min.min(max));
        if factor > 100 {
            for _ in 1..attempt {
                if wait >= u128::from(max) {
                    break;
                }
                let grown = wait * u128::from(factor) / 100;
                wait = if grown == wait { wait + 1 } else { grown };
            }
        }
        let wait = wait.min(u128::from(max)) as u64;
        if jitter == 0 {
            return wait;
        }
        let id = holdfast::state::queues::MessageId { index: id.0, n: id.1 };
        let backoff = Backoff { min: wait, max: wait, factor_percent: 100, jitter_percent: jitter };
        backoff.wait(1, id, seed).0
    }
}

fn syntax(what: &str) -> Cow<'static, str> {
    format!("ERR syntax error: {what}").into()
}

fn number(word: &[u8], name: &str, min: i64, max: i64, unit: &str) -> Result<u64, Cow<'static, str>> {
    let number = integer_or_error(word)?;
    if !(min..=max).contains(&number) {
        return Err(format!("ERR {name} must be between {min} and {max}{unit}").into());
    }
    Ok(number as u64)
}

fn receipts_of(words: &[&[u8]]) -> Result<Vec<(MessageId, u32)>, Cow<'static, str>> {
    let one = |word: &&[u8]| {
        receipt(word).ok_or_else(|| {
            let shown = word[..word.len().min(64)].escape_ascii();
            format!("ERR invalid receipt '{shown}': want <id>:<delivery>").into()
        })
    };
    words.iter().map(one).collect()
}

fn ids_of(words: &[&[u8]]) -> Result<Vec<MessageId>, Cow<'static, str>> {
    let one = |word: &&[u8]| {
        receipt(&[word, &b":0"[..]].concat()).map(|(id, _)| id).ok_or_else(|| {
            let shown = word[..word.len().min(64)].escape_ascii();
            format!("ERR invalid id '{shown}': want <index>-<n>").into()
        })
    };
    words.iter().map(one).collect()
}

/// Options that were given, and what stands behind each.
type Given<'a> = Vec<(&'static str, Value<'a>)>;

/// What stands behind an option.
#[derive(Debug, Clone, Copy)]
enum Form<'a> {
    Nothing,
    /// A number in this range, and the unit that the error names.
    Number(i64, i64, &'static str),
    /// 1 to 256 bytes.
    Name,
    /// At most so many bytes.
    Word(usize),
    /// The name of a state.
    State,
    /// One of PAUSE's words.
    Pause,
    /// The name of a queue other than this one.
    QueueBut(&'a [u8]),
    /// How many, and then so many receipts.
    Receipts,
    /// The same with ids.
    Ids,
    /// All that is left.
    Rest,
}

/// What was read there.
#[derive(Debug, Clone)]
enum Value<'a> {
    Nothing,
    Number(u64),
    Word(&'a [u8]),
    Receipts(Vec<(MessageId, u32)>),
    Ids(Vec<MessageId>),
    Rest(&'a [&'a [u8]]),
}

/// Reads options from left to right, each at most once.
fn options<'a>(
    verb: &str,
    mut words: &'a [&'a [u8]],
    known: &[(&'static str, Form<'_>)],
) -> Result<Given<'a>, Cow<'static, str>> {
    let mut found: Given<'a> = Vec::new();
    while let [word, rest @ ..] = words {
        words = rest;
        let Some((name, form)) = known.iter().find(|(name, _)| is(word, name)).copied() else {
            let shown = word[..word.len().min(64)].escape_ascii();
            return Err(syntax(&format!("{verb} has no option '{shown}'")));
        };
        if found.iter().any(|(known, _)| *known == name) {
            return Err(syntax(&format!("{name} is given twice")));
        }
        let value = match form {
            Form::Nothing => Value::Nothing,
            Form::Rest => Value::Rest(std::mem::take(&mut words)),
            _ => {
                let [word, rest @ ..] = words else {
                    return Err(syntax(&format!("{name} needs a value")));
                };
                words = rest;
                value(name, form, word, &mut words)?
            }
        };
        found.push((name, value));
    }
    Ok(found)
}

fn value<'a>(
    name: &str,
    form: Form<'_>,
    word: &'a [u8],
    words: &mut &'a [&'a [u8]],
) -> Result<Value<'a>, Cow<'static, str>> {
    Ok(match form {
        Form::Nothing | Form::Rest => Value::Nothing,
        Form::Number(min, max, unit) => Value::Number(number(word, name, min, max, unit)?),
        Form::Name if word.is_empty() || word.len() > 256 => {
            return Err(format!("ERR {name} must be 1 to 256 bytes long").into());
        }
        Form::Word(max) if word.len() > max => {
            return Err(format!("ERR {name} must be at most {max} bytes long").into());
        }
        Form::State if !["READY", "DELAYED", "LEASED", "DEAD"].iter().any(|name| is(word, name)) => {
            return Err(no_state(word));
        }
        Form::Pause if !["none", "in", "out", "all"].iter().any(|name| is(word, name)) => {
            return Err("ERR PAUSE must be none, in, out or all".into());
        }
        Form::QueueBut(own) if word == own => return Err(format!("ERR {name} must be another queue").into()),
        Form::Name | Form::Word(_) | Form::State | Form::Pause | Form::QueueBut(_) => Value::Word(word),
        Form::Receipts | Form::Ids => {
            let count = number(word, name, 1, (1 << 53) - 1, "")? as usize;
            let Some((counted, rest)) = words.split_at_checked(count) else {
                return Err(syntax(&format!("{name} {count} is followed by {} words", words.len())));
            };
            *words = rest;
            match form {
                Form::Ids => Value::Ids(ids_of(counted)?),
                _ => Value::Receipts(receipts_of(counted)?),
            }
        }
    })
}

pub(super) fn no_state(word: &[u8]) -> Cow<'static, str> {
    let shown = word[..word.len().min(64)].escape_ascii();
    syntax(&format!("'{shown}' is no state: want READY, DELAYED, LEASED or DEAD"))
}

/// Options that exclude each other.
fn only_one_of(verb: &str, given: &Given<'_>, names: &[&str]) -> Result<(), Cow<'static, str>> {
    let both: Vec<&&str> = names.iter().filter(|name| has(given, name)).collect();
    match both[..] {
        [one, other, ..] => Err(syntax(&format!("{verb} takes either {one} or {other}"))),
        _ => Ok(()),
    }
}

fn find<'g, 'a>(given: &'g Given<'a>, name: &str) -> Option<&'g Value<'a>> {
    given.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
}

fn has(given: &Given<'_>, name: &str) -> bool {
    find(given, name).is_some()
}

fn number_in(given: &Given<'_>, name: &str) -> Option<u64> {
    match find(given, name)? {
        Value::Number(number) => Some(*number),
        _ => None,
    }
}

fn word_in<'a>(given: &Given<'a>, name: &str) -> Option<&'a [u8]> {
    match find(given, name)? {
        Value::Word(word) => Some(word),
        _ => None,
    }
}

fn text_of(id: MessageId) -> String {
    format!("{}-{}", id.0, id.1)
}

impl Popped {
    fn reply(&self, with_meta: bool) -> Reply {
        let mut fields = vec![
            Reply::bulk(&self.queue),
            Reply::text(format!("{}:{}", text_of(self.id), self.delivery)),
            Reply::Bulk(self.payload.clone()),
            Reply::Integer(i64::from(self.attempt)),
        ];
        if with_meta {
            fields.push(Reply::Map(vec![
                (Reply::bulk("id"), Reply::text(text_of(self.id))),
                (Reply::bulk("priority"), Reply::Integer(i64::from(self.priority))),
                (Reply::bulk("group"), self.group.as_ref().map_or(Reply::Null, Reply::bulk)),
                (Reply::bulk("age_ms"), count_reply(self.age as usize)),
                (Reply::bulk("lease_ms"), count_reply(self.lease as usize)),
                (Reply::bulk("last_reason"), Reply::bulk(&self.reason)),
            ]));
        }
        Reply::Array(fields)
    }
}

impl Model {
    // ---- questions ------------------------------------------------------------------------------------

    /// The queue under a key, as of the last entry.
    pub fn queue_of(&self, db: u8, key: &[u8]) -> Option<&Queue> {
        match self.thing(db, key)? {
            Thing::Queue(queue) => Some(queue),
            Thing::String(..) | Thing::Lock(_) => None,
        }
    }

    /// The same, or one of the name that is at rest.
    pub fn known_queue(&self, db: u8, key: &[u8]) -> Option<&Queue> {
        self.queue_of(db, key).or_else(|| self.resting.get(&(db, key.to_vec())))
    }

    /// Everybody who waits for messages, in order.
    pub fn pop_waits(&self) -> &[PopWait] {
        &self.pop_waits
    }

    /// The receipts that the group itself gave back in the last entry, since nobody heard of them.
    pub fn given_back(&self) -> &[(MessageId, u32)] {
        &self.given_back
    }

    /// The first that waits for messages although one of his queues has one for him.
    pub fn forgotten_pop(&self) -> Option<u64> {
        let has_one = |wait: &&PopWait| {
            let mut queues = wait.pop.queues.iter().filter_map(|key| self.queue_of(wait.pop.db, key));
            queues.any(|queue| queue.next(self.clock).is_some())
        };
        self.pop_waits.iter().find(has_one).map(|wait| wait.claim.id)
    }

    // ---- rows -------------------------------------------------------------------------------------------

    /// The queue under a key; an error when it is something else.
    fn queue_or_error(&self, db: u8, key: &[u8]) -> Result<Option<&Queue>, Cow<'static, str>> {
        match self.thing(db, key) {
            None => Ok(None),
            Some(Thing::Queue(queue)) => Ok(Some(queue)),
            Some(Thing::String(..) | Thing::Lock(_)) => Err(WRONG_TYPE.into()),
        }
    }

    /// A queue that changes now: it comes back when it is at rest, and is a new one when there is none.
    fn queue_mut(&mut self, db: u8, key: &[u8]) -> &mut Queue {
        if self.slot(db, key).is_none() {
            let queue = self.resting.remove(&(db, key.to_vec())).unwrap_or_else(|| {
                self.last_queue += 1;
                Queue { number: self.last_queue, ..Queue::default() }
            });
            self.put(db, key, Thing::Queue(queue));
        }
        match self.slot_mut(db, key).map(|slot| &mut slot.thing) {
            Some(Thing::Queue(queue)) => queue,
            _ => unreachable!("it was looked at before"),
        }
    }

    /// A queue that changes now, and stays at rest if it is.
    fn known_queue_mut(&mut self, db: u8, key: &[u8]) -> Option<&mut Queue> {
        if self.queue_of(db, key).is_some() {
            return Some(self.queue_mut(db, key));
        }
        self.touched.push((db, key.to_vec()));
        self.resting.get_mut(&(db, key.to_vec()))
    }

    /// A queue in which nothing is left, and that nobody configured, is no key any more.
    fn settle(&mut self, db: u8, key: &[u8]) {
        if !self.queue_of(db, key).is_some_and(Queue::is_at_rest) {
            return;
        }
        let slot = self.databases.get_mut(&db).and_then(|slots| slots.remove(key));
        if let Some(Slot { thing: Thing::Queue(queue), .. }) = slot {
            self.tally.rested += 1;
            self.resting.insert((db, key.to_vec()), queue);
            self.touched.push((db, key.to_vec()));
        }
    }

    // ---- the life of a message ----------------------------------------------------------------------------

    fn set_place(&mut self, db: u8, key: &[u8], id: MessageId, place: Place) {
        let now = self.clock;
        let queue = self.queue_mut(db, key);
        if let Some(message) = queue.message_mut(id) {
            if message.place != Place::Ready {
                message.since = now;
            }
            message.place = place;
        }
        queue.note_available(now);
    }

    fn waiting(&self, delay: u64) -> Place {
        if delay == 0 { Place::Ready } else { Place::Delayed(self.clock.saturating_add(delay)) }
    }

    /// It is put aside, and goes to the dead letter queue when `bury` is told of it.
    fn die(&mut self, db: u8, key: &[u8], id: MessageId, why: &str, dying: &mut Vec<MessageId>) {
        self.tally.died += 1;
        let now = self.clock;
        let queue = self.queue_mut(db, key);
        queue.totals.died += 1;
        if let Some(message) = queue.message_mut(id) {
            message.place = Place::Dead;
            if message.reason.is_empty() || why == "expired" {
                message.reason = why.as_bytes().to_vec();
            }
        }
        queue.note_available(now);
        dying.push(id);
    }

    /// Time comes to a message.
    fn time_passes(&mut self, db: u8, key: &[u8], id: MessageId, dying: &mut Vec<MessageId>) {
        let now = self.clock;
        let Some(queue) = self.queue_of(db, key) else { return };
        let Some(message) = queue.message(id) else { return };
        let is_last = queue.config.max_deliver != 0 && u64::from(message.attempt) >= queue.config.max_deliver;
        let is_over = message.expires <= now;
        match message.place {
            Place::Leased(until, _) if until <= now && self.is_unheard_message(id, message.delivery) => {
                let delivery = message.delivery;
                self.come_back(db, key, id, delivery, 0, dying);
            }
            Place::Leased(until, _) if until <= now => {
                self.queue_mut(db, key).totals.expired_leases += 1;
                match (is_over, is_last) {
                    (true, _) => self.die(db, key, id, "expired", dying),
                    (false, true) => self.die(db, key, id, "maxdeliver", dying),
                    (false, false) => self.set_place(db, key, id, Place::Ready),
                }
            }
            Place::Delayed(_) | Place::Ready if is_over => self.die(db, key, id, "expired", dying),
            Place::Delayed(due) if due <= now => self.set_place(db, key, id, Place::Ready),
            _ => {}
        }
    }

    /// A hand-out does not count: the message waits again, unless its lifetime is over.
    fn come_back(
        &mut self,
        db: u8,
        key: &[u8],
        id: MessageId,
        delivery: u32,
        delay: u64,
        dying: &mut Vec<MessageId>,
    ) {
        let now = self.clock;
        let queue = self.queue_mut(db, key);
        queue.totals.nacked += 1;
        let Some(message) = queue.message_mut(id) else { return };
        if message.expires <= now {
            return self.die(db, key, id, "expired", dying);
        }
        message.attempt -= 1;
        self.set_place(db, key, id, self.waiting(delay));
        self.tally.given_back += 1;
        self.given_back.push((id, delivery));
    }

    /// Nobody was told of this hand-out, and nobody will be.
    pub(super) fn return_silently(&mut self, db: u8, key: &[u8], id: MessageId, delivery: u32) {
        let mut dying = Vec::new();
        if !matches!(self.thing(db, key), Some(Thing::Queue(_))) {
            return;
        }
        self.time_passes(db, key, id, &mut dying);
        if self.is_current(db, key, id, delivery) {
            self.come_back(db, key, id, delivery, 0, &mut dying);
        }
        self.bury(db, key, dying);
    }

    /// Dead messages go where their queue sends them.
    fn bury(&mut self, db: u8, key: &[u8], dying: Vec<MessageId>) {
        let Some(queue) = self.queue_of(db, key) else { return };
        let target = queue.config.dead_letter.clone();
        if target.is_empty() || target == key || self.queue_or_error(db, &target).is_err() {
            return;
        }
        for id in dying {
            if self.move_dead(db, key, &target, id, false) {
                self.tally.buried += 1;
            }
        }
    }

    /// An ID stays known where it was, and is known again where its message is redriven to, unless another has it there.
    fn move_dead(&mut self, db: u8, from: &[u8], to: &[u8], id: MessageId, is_redriven: bool) -> bool {
        let now = self.clock;
        let Some(message) = self.queue_of(db, from).and_then(|queue| queue.message(id)) else { return false };
        if message.place != Place::Dead {
            return false;
        }
        let name = message.name.clone().or(message.carried.clone());
        let there = name.as_ref().and_then(|name| self.known_queue(db, to)?.known_by(name, now));
        if is_redriven && there.is_some_and(|other| other != id) {
            return false;
        }
        let is_known_by_it = is_redriven || there == Some(id);
        let queue = self.queue_mut(db, from);
        queue.totals.moved += 1;
        let Some(message) = queue.take(id) else { return false };
        queue.remember_until(now.saturating_add(queue.config.retain));
        if let Some(name) = message.name.clone() {
            queue.remember_id(name, id, now);
        }
        let queue = self.queue_mut(db, to);
        queue.totals.pushed += 1;
        let (name, carried) = if is_known_by_it { (name, None) } else { (None, name) };
        queue.finished_ids.retain(|(known, _, _)| Some(known) != name.as_ref());
        queue.put(Message {
            place: Place::Ready,
            since: now,
            attempt: 0,
            name,
            carried,
            expires: NEVER,
            ..message
        });
        queue.note_available(now);
        true
    }

    /// A message is finished: its ID is remembered, and its receipt if it had been leased.
    fn finish(&mut self, db: u8, key: &[u8], id: MessageId, is_leased: bool) {
        let (now, at_most) = (self.clock, self.settings.queue_ack_memory.max(1));
        let queue = self.queue_mut(db, key);
        let Some(message) = queue.take(id) else { return };
        queue.totals.acked += 1;
        queue.note_available(now);
        queue.remember_until(now.saturating_add(queue.config.retain));
        if let Some(name) = message.name {
            queue.remember_id(name, id, now);
        }
        let number = queue.number;
        if is_leased {
            queue.remember_until(now.saturating_add(FINISHES_KEPT));
            // A few of the oldest make room.
            for _ in 0..4 {
                let is_over = |oldest: &Finish| oldest.at.saturating_add(FINISHES_KEPT) <= now;
                if self.finishes.first().is_some_and(is_over) || self.finishes.len() as u64 >= at_most {
                    self.finishes.remove(0);
                }
            }
            self.finishes.push(Finish { queue: number, id, delivery: message.delivery, at: now });
        }
    }

    fn is_current(&self, db: u8, key: &[u8], id: MessageId, delivery: u32) -> bool {
        let message = self.queue_of(db, key).and_then(|queue| queue.message(id));
        message.is_some_and(|it| matches!(it.place, Place::Leased(..)) && it.delivery == delivery)
    }

    /// Ends what is due of a queue, earliest first: what consumers wait for, or the rest.
    pub(super) fn end_due_of_queue(&mut self, db: u8, key: &[u8], is_awaited: bool, at_most: usize) -> usize {
        let now = self.clock;
        let (mut ended, mut dying) = (0, Vec::new());
        while ended < at_most {
            let timers = self.known_queue(db, key).map(Queue::timers).unwrap_or_default();
            let is_meant =
                |(at, timer): &(u64, Timer)| *at <= now && matches!(timer, Timer::Message(_)) == is_awaited;
            let Some((_, timer)) = timers.into_iter().filter(is_meant).min() else { break };
            ended += 1;
            match timer {
                Timer::Message(id) | Timer::Lifetime(id) => self.time_passes(db, key, id, &mut dying),
                Timer::Name(name) => {
                    if let Some(queue) = self.known_queue_mut(db, key) {
                        queue.finished_ids.retain(|(known, _, _)| *known != name);
                    }
                }
                Timer::Forget => {
                    self.resting.remove(&(db, key.to_vec()));
                    self.touched.push((db, key.to_vec()));
                    return ended;
                }
            }
        }
        self.bury(db, key, dying);
        self.settle(db, key);
        ended
    }

    /// A new leader stands.
    pub(super) fn grace_of_queue(queue: &mut Queue, with_grace: impl Fn(u64, u64) -> u64) -> bool {
        let mut is_changed = false;
        for message in &mut queue.messages {
            if let Place::Leased(until, set_until) = message.place {
                let graced = with_grace(until, set_until);
                is_changed |= graced != until;
                message.place = Place::Leased(graced, set_until);
            }
        }
        is_changed
    }

    // ---- verbs ------------------------------------------------------------------------------------------

    pub(super) fn qpush(&mut self, call: &Call<'_>) -> Outcome {
        let (db, key, now) = (call.db, call.words[1], self.clock);
        let known_options = [
            ("ID", Form::Name),
            ("PRIORITY", Form::Number(0, 9, "")),
            ("DELAY", Form::Number(0, YEAR, MILLIS)),
            ("EX", Form::Number(1, YEAR / 1_000, "")),
            ("PX", Form::Number(1, YEAR, MILLIS)),
            ("GROUP", Form::Name),
            ("MAXLEN", Form::Number(0, MOST, "")),
            ("XX", Form::Nothing),
        ];
        let given = options("QPUSH", &call.words[3..], &known_options)?;
        only_one_of("QPUSH", &given, &["EX", "PX"])?;
        let (name, is_update) = (word_in(&given, "ID"), has(&given, "XX"));
        let (priority, delay) = (number_in(&given, "PRIORITY"), number_in(&given, "DELAY"));
        let (seconds, millis) = (number_in(&given, "EX"), number_in(&given, "PX"));
        let max_len = number_in(&given, "MAXLEN");
        if is_update && name.is_none() {
            return Err(syntax("XX needs the ID of the message"));
        }
        if is_update && let Some(name) = ["EX", "PX", "GROUP", "MAXLEN"].iter().find(|name| has(&given, name))
        {
            return Err(syntax(&format!("XX changes PRIORITY and DELAY only, not {name}")));
        }
        self.queue_or_error(db, key)?;
        let known = name.and_then(|name| self.known_queue(db, key)?.known_by(name, now));
        if is_update {
            let message = known.and_then(|id| self.queue_of(db, key)?.message(id));
            let Some(message) = message else { return Ok(Reply::Null) };
            if matches!(message.place, Place::Leased(..) | Place::Dead) {
                return Ok(Reply::Null);
            }
            let id = message.id;
            if let Some(delay) = delay {
                self.set_place(db, key, id, self.waiting(delay));
            }
            if let Some(priority) = priority
                && let Some(message) = self.queue_mut(db, key).message_mut(id)
            {
                message.priority = priority as u8;
            }
            return Ok(Reply::text(text_of(id)));
        }
        if let Some(id) = known {
            self.tally.duplicates += 1;
            if let Some(queue) = self.known_queue_mut(db, key) {
                queue.totals.duplicates += 1;
            }
            return Ok(Reply::text(text_of(id)));
        }
        self.check_full(db, key, call.words[2].len() as u64, max_len)?;
        let id = (self.index, self.pushed_in_entry);
        self.pushed_in_entry += 1;
        let place = self.waiting(delay.unwrap_or(0));
        let queue = self.queue_mut(db, key);
        queue.finished_ids.retain(|(known, _, _)| name != Some(&known[..]));
        let ttl = Some(queue.config.ttl).filter(|ttl| *ttl != 0);
        let lifetime = millis.or(seconds.map(|seconds| seconds * 1_000)).or(ttl);
        queue.totals.pushed += 1;
        queue.put(Message {
            id,
            payload: Bytes::copy_from_slice(call.words[2]),
            priority: priority.unwrap_or(0) as u8,
            group: word_in(&given, "GROUP").map(<[u8]>::to_vec),
            name: name.map(<[u8]>::to_vec),
            carried: None,
            expires: lifetime.map_or(NEVER, |lifetime| now.saturating_add(lifetime)),
            reason: Vec::new(),
            pushed_at: now,
            since: now,
            place,
            delivery: 0,
            attempt: 0,
        });
        queue.note_available(now);
        Ok(Reply::text(text_of(id)))
    }

    fn check_full(
        &self,
        db: u8,
        key: &[u8],
        more: u64,
        wanted: Option<u64>,
    ) -> Result<(), Cow<'static, str>> {
        let none = Queue::default();
        let queue = self.queue_of(db, key).unwrap_or(&none);
        let shown = key[..key.len().min(256)].escape_ascii();
        if matches!(queue.config.pause.as_str(), "in" | "all") {
            let pause = &queue.config.pause;
            return Err(format!("QFULL {shown} takes no messages: PAUSE is {pause}").into());
        }
        let live: Vec<&Message> = queue.messages.iter().filter(|it| it.place != Place::Dead).collect();
        let own = Some(queue.config.max_len).filter(|most| *most != 0);
        if let Some(most) = own.into_iter().chain(wanted).min()
            && live.len() as u64 >= most
        {
            return Err(format!("QFULL {shown} holds {} messages, MAXLEN {most}", live.len()).into());
        }
        let after = live.iter().map(|message| message.payload.len() as u64).sum::<u64>() + more;
        let most = queue.config.max_bytes;
        if most != 0 && after > most {
            return Err(format!("QFULL {shown} would hold {after} bytes, MAXBYTES {most}").into());
        }
        Ok(())
    }

    pub(super) fn qpop(&mut self, call: &Call<'_>) -> Outcome {
        let known_options = [
            ("FROM", Form::Rest),
            ("COUNT", Form::Number(1, 1_000, "")),
            ("BLOCK", Form::Number(0, YEAR, MILLIS)),
            ("LEASE", Form::Number(100, 86_400_000, MILLIS)),
            ("CONSUMER", Form::Name),
            ("NOACK", Form::Nothing),
            ("WITHMETA", Form::Nothing),
        ];
        let given = options("QPOP", &call.words[1..], &known_options)?;
        only_one_of("QPOP", &given, &["LEASE", "NOACK"])?;
        let block = number_in(&given, "BLOCK");
        let mut pop = Pop {
            db: call.db,
            queues: Vec::new(),
            count: number_in(&given, "COUNT").unwrap_or(1) as usize,
            lease: number_in(&given, "LEASE"),
            no_ack: has(&given, "NOACK"),
            with_meta: has(&given, "WITHMETA"),
        };
        if let Some(Value::Rest(queues)) = find(&given, "FROM") {
            for queue in *queues {
                if !pop.queues.iter().any(|known| known == queue) {
                    pop.queues.push(queue.to_vec());
                }
            }
        }
        if pop.queues.is_empty() {
            return Err(syntax("QPOP ends with FROM queue [queue ...]"));
        }
        for key in &pop.queues {
            self.queue_or_error(call.db, key)?;
        }
        let popped = self.hand_out(&pop);
        if !popped.is_empty() {
            return Ok(Reply::Array(popped.iter().map(|it| it.reply(pop.with_meta)).collect()));
        }
        let Some(block) = block.filter(|_| !call.in_transaction) else { return Ok(Reply::NullArray) };
        let waits_for =
            |wait: &&PopWait, key: &Vec<u8>| wait.pop.db == pop.db && wait.pop.queues.contains(key);
        let crowd = |key: &Vec<u8>| self.pop_waits.iter().filter(|wait| waits_for(wait, key)).count();
        if pop.queues.iter().any(|key| crowd(key) >= WAITERS_MAX) {
            return Err("TRYAGAIN too many clients wait for this queue".into());
        }
        self.last_claim += 1;
        let until = if block == 0 { NEVER } else { self.clock.saturating_add(block) };
        let claim = Claim { id: self.last_claim, until, node: call.node, life: call.life };
        self.pop_waits.push(PopWait { pop, claim });
        Ok(Reply::Waiting(self.last_claim))
    }

    fn hand_out(&mut self, pop: &Pop) -> Vec<Popped> {
        let (db, now) = (pop.db, self.clock);
        let mut popped = Vec::new();
        for key in &pop.queues {
            while popped.len() < pop.count {
                let Some(id) = self.queue_of(db, key).and_then(|queue| queue.next(now)) else { break };
                let queue = self.queue_mut(db, key);
                let lease = if pop.no_ack { 0 } else { pop.lease.unwrap_or(queue.config.lease) };
                let Some(message) = queue.message_mut(id) else { break };
                let is_again = message.delivery > 0;
                message.delivery += 1;
                message.attempt += 1;
                let until = now.saturating_add(lease);
                message.place = if pop.no_ack { Place::Ready } else { Place::Leased(until, until) };
                popped.push(Popped {
                    queue: key.clone(),
                    id,
                    delivery: message.delivery,
                    attempt: message.attempt,
                    payload: message.payload.clone(),
                    priority: message.priority,
                    group: message.group.clone(),
                    age: now.saturating_sub(message.pushed_at),
                    lease,
                    reason: message.reason.clone(),
                });
                queue.totals.delivered += 1;
                queue.totals.redelivered += u64::from(is_again);
                queue.note_available(now);
                if pop.no_ack {
                    self.finish(db, key, id, false);
                }
            }
            self.settle(db, key);
        }
        popped
    }

    /// Whoever waits for a queue that has a message gets it; who came first goes first. Queues in order of their names.
    pub(super) fn serve_pops(&mut self) {
        if self.pop_waits.is_empty() {
            return;
        }
        loop {
            let has_one = |(_, _, thing): &(u8, &[u8], &Thing)| match thing {
                Thing::Queue(queue) => queue.next(self.clock).is_some(),
                Thing::String(..) | Thing::Lock(_) => false,
            };
            let waiter = |(db, key, _): (u8, &[u8], &Thing)| {
                let is_meant =
                    |wait: &PopWait| wait.pop.db == db && wait.pop.queues.iter().any(|it| it == key);
                self.pop_waits.iter().position(is_meant)
            };
            let Some(at) = self.things().filter(has_one).find_map(waiter) else { return };
            let wait = self.pop_waits.remove(at);
            let messages = self.hand_out(&wait.pop);
            let (db, with_meta, no_ack) = (wait.pop.db, wait.pop.with_meta, wait.pop.no_ack);
            if !no_ack {
                let handed = messages.iter().map(|it| (it.queue.clone(), it.id, it.delivery)).collect();
                let who = (Vec::new(), Vec::new());
                let claims = std::slice::from_ref(&wait.claim);
                self.hand(
                    wait.claim.id,
                    claims,
                    HandOver { db, who, messages: handed, ..HandOver::default() },
                );
            }
            self.tell_pop(wait, false, End::Delivered { db, with_meta, no_ack, messages });
        }
    }

    fn tell_pop(&mut self, wait: PopWait, is_time_out: bool, end: End) {
        let Claim { id, node, life, .. } = wait.claim;
        let who: Who = (Vec::new(), Vec::new());
        self.ended.push(Ended { claim: id, node, life, who, keys: wait.pop.queues, is_time_out, end });
    }

    /// A client waits for messages no more. False when it did not.
    pub(super) fn end_pop(&mut self, claim: u64) -> bool {
        let Some(at) = self.pop_waits.iter().position(|wait| wait.claim.id == claim) else { return false };
        let wait = self.pop_waits.remove(at);
        let is_time_out = wait.claim.until <= self.clock;
        self.tell_pop(wait, is_time_out, End::Over);
        true
    }

    pub(super) fn qack(&mut self, call: &Call<'_>) -> Outcome {
        let (db, key, now) = (call.db, call.words[1], self.clock);
        let receipts = receipts_of(&call.words[2..])?;
        self.queue_or_error(db, key)?;
        let Some(number) = self.known_queue(db, key).map(|queue| queue.number) else {
            return Ok(Reply::Integer(0));
        };
        let (mut finished, mut dying) = (0, Vec::new());
        for (id, delivery) in receipts {
            self.time_passes(db, key, id, &mut dying);
            let is_it = |it: &Finish| {
                (it.queue, it.id, it.delivery) == (number, id, delivery)
                    && it.at.saturating_add(FINISHES_KEPT) > now
            };
            if self.is_current(db, key, id, delivery) {
                self.finish(db, key, id, true);
                finished += 1;
            } else if self.finishes.iter().any(is_it) {
                finished += 1;
                self.tally.acked_again += 1;
            }
        }
        self.bury(db, key, dying);
        self.settle(db, key);
        Ok(count_reply(finished))
    }

    pub(super) fn qnack(&mut self, call: &Call<'_>) -> Outcome {
        let (db, key, now) = (call.db, call.words[1], self.clock);
        let known_options = [
            ("SILENT", Form::Nothing),
            ("FAIL", Form::Nothing),
            ("FATAL", Form::Nothing),
            ("DELAY", Form::Number(0, YEAR, MILLIS)),
            ("REASON", Form::Word(512)),
            ("IDS", Form::Receipts),
        ];
        let given = options("QNACK", &call.words[2..], &known_options)?;
        only_one_of("QNACK", &given, &["SILENT", "FAIL", "FATAL"])?;
        only_one_of("QNACK", &given, &["FATAL", "DELAY"])?;
        let (delay, reason) = (number_in(&given, "DELAY"), word_in(&given, "REASON").unwrap_or_default());
        let Some(Value::Receipts(receipts)) = find(&given, "IDS").cloned() else {
            return Err(syntax("QNACK needs IDS n receipt [receipt ...]"));
        };
        let how = match () {
            () if has(&given, "SILENT") => Nack::Silent(delay.unwrap_or(0)),
            () if has(&given, "FATAL") => Nack::Fatal,
            () => Nack::Fail(delay),
        };
        self.queue_or_error(db, key)?;
        let (mut accepted, mut dying) = (0, Vec::new());
        for (id, delivery) in receipts {
            self.time_passes(db, key, id, &mut dying);
            if !self.is_current(db, key, id, delivery) {
                continue;
            }
            accepted += 1;
            let seed = self.index;
            let queue = self.queue_mut(db, key);
            queue.totals.nacked += 1;
            let config = queue.config.clone();
            let Some(message) = queue.message_mut(id) else { continue };
            if !reason.is_empty() {
                message.reason = reason.to_vec();
            }
            let is_last = config.max_deliver != 0 && u64::from(message.attempt) >= config.max_deliver;
            let is_over = message.expires <= now;
            match how {
                Nack::Fatal => self.die(db, key, id, "fatal", &mut dying),
                Nack::Fail(_) if is_last => self.die(db, key, id, "maxdeliver", &mut dying),
                Nack::Silent(_) | Nack::Fail(_) if is_over => self.die(db, key, id, "expired", &mut dying),
                Nack::Silent(delay) => {
                    message.attempt -= 1;
                    self.set_place(db, key, id, self.waiting(delay));
                    // The group itself has no user.
                    if call.user.is_empty() {
                        self.tally.given_back += 1;
                        self.given_back.push((id, delivery));
                    }
                }
                Nack::Fail(delay) => {
                    let delay = delay.unwrap_or_else(|| config.wait(message.attempt, id, seed));
                    self.set_place(db, key, id, self.waiting(delay));
                }
            }
        }
        self.bury(db, key, dying);
        Ok(count_reply(accepted))
    }

    pub(super) fn qextend(&mut self, call: &Call<'_>) -> Outcome {
        let (db, key) = (call.db, call.words[1]);
        let lease = number(call.words[2], "the lease", 100, 86_400_000, MILLIS)?;
        let receipts = receipts_of(&call.words[3..])?;
        self.queue_or_error(db, key)?;
        let (mut extended, mut dying) = (0, Vec::new());
        for (id, delivery) in receipts {
            self.time_passes(db, key, id, &mut dying);
            if self.is_current(db, key, id, delivery) {
                let until = self.clock.saturating_add(lease);
                self.set_place(db, key, id, Place::Leased(until, until));
                self.tally.extended += 1;
                extended += 1;
            }
        }
        self.bury(db, key, dying);
        Ok(count_reply(extended))
    }

    pub(super) fn qdel(&mut self, call: &Call<'_>) -> Outcome {
        let (db, key) = (call.db, call.words[1]);
        // One of them, and then nothing.
        let form = if is(call.words[2], "STATE") { Form::State } else { Form::Ids };
        let known_options = [("IDS", form), ("STATE", form), ("ALL", Form::Nothing)];
        let length = match call.words.get(3).and_then(|word| integer(word)) {
            _ if is(call.words[2], "ALL") => 3,
            _ if is(call.words[2], "STATE") => 4,
            Some(count) => usize::try_from(count).unwrap_or(0).saturating_add(4),
            None => 4,
        };
        let (words, more) = call.words.split_at(length.min(call.words.len()));
        let given = options("QDEL", &words[2..], &known_options)?;
        if let Some(word) = more.first() {
            let shown = word[..word.len().min(64)].escape_ascii();
            let text = format!("QDEL takes IDS, STATE or ALL, and then nothing like '{shown}'");
            return Err(syntax(&text));
        }
        let ids = match &given[..] {
            [(_, Value::Ids(ids))] => ids.clone(),
            given => {
                let state = given.iter().find_map(|(_, value)| match value {
                    Value::Word(state) => Some(*state),
                    _ => None,
                });
                let is_meant = |message: &&Message| state.is_none_or(|state| is_in(message.place, state));
                let queue = self.queue_or_error(db, key)?;
                queue.map_or(Vec::new(), |queue| {
                    queue.messages.iter().filter(is_meant).map(|message| message.id).collect()
                })
            }
        };
        self.queue_or_error(db, key)?;
        let mut removed = 0;
        for id in ids {
            if self.queue_of(db, key).is_some_and(|queue| queue.message(id).is_some()) {
                let now = self.clock;
                let queue = self.queue_mut(db, key);
                queue.take(id);
                queue.totals.deleted += 1;
                queue.remember_until(now.saturating_add(queue.config.retain));
                queue.note_available(now);
                removed += 1;
            }
        }
        let is_empty = self.queue_of(db, key).is_some_and(|queue| queue.messages.is_empty());
        if has(&given, "ALL") && is_empty {
            self.queue_mut(db, key).config = Config::default();
        }
        self.settle(db, key);
        Ok(count_reply(removed))
    }

    pub(super) fn qredrive(&mut self, call: &Call<'_>) -> Outcome {
        let (db, key) = (call.db, call.words[1]);
        let known_options =
            [("IDS", Form::Ids), ("COUNT", Form::Number(1, MOST, "")), ("TO", Form::Word(usize::MAX))];
        let given = options("QREDRIVE", &call.words[2..], &known_options)?;
        only_one_of("QREDRIVE", &given, &["IDS", "COUNT"])?;
        let count = number_in(&given, "COUNT");
        let ids = find(&given, "IDS").and_then(|value| match value {
            Value::Ids(ids) => Some(ids.clone()),
            _ => None,
        });
        let target = word_in(&given, "TO").unwrap_or(key);
        self.queue_or_error(db, target)?;
        let Some(queue) = self.queue_or_error(db, key)? else { return Ok(Reply::Integer(0)) };
        let is_movable = |message: &&Message| {
            let name = message.name.as_ref().or(message.carried.as_ref());
            let there = name.and_then(|name| self.known_queue(db, target)?.known_by(name, self.clock));
            target == key || there.is_none_or(|other| other == message.id)
        };
        let dead = queue.messages.iter().filter(|message| message.place == Place::Dead).take(100_000);
        let dead = dead
            .filter(is_movable)
            .map(|message| message.id)
            .take(count.map_or(100_000, |count| count as usize));
        let mut redriven = 0;
        for id in ids.unwrap_or_else(|| dead.collect()) {
            let message = self.queue_of(db, key).and_then(|queue| queue.message(id));
            if message.is_none_or(|message| message.place != Place::Dead) {
                continue;
            }
            if target != key {
                redriven += usize::from(self.move_dead(db, key, target, id, true));
                continue;
            }
            self.set_place(db, key, id, Place::Ready);
            if let Some(message) = self.queue_mut(db, key).message_mut(id) {
                (message.attempt, message.expires) = (0, NEVER);
            }
            redriven += 1;
        }
        self.settle(db, key);
        self.tally.redriven += redriven as u64;
        Ok(count_reply(redriven))
    }

    /// QCONFIG SET.
    pub(super) fn qconfig(&mut self, call: &Call<'_>) -> Outcome {
        let (db, key) = (call.db, call.words[2]);
        if !is(call.words[1], "SET") {
            return Err("ERR the model knows QCONFIG SET only".into());
        }
        let mut config = self.queue_or_error(db, key)?.map(|queue| queue.config.clone()).unwrap_or_default();
        let known_options = [
            ("LEASE", Form::Number(100, 86_400_000, MILLIS)),
            ("MAXDELIVER", Form::Number(0, 1_000_000, "")),
            ("BACKOFF", Form::Word(usize::MAX)),
            ("DEADLETTER", Form::QueueBut(key)),
            ("DEDUP", Form::Number(0, MONTH, MILLIS)),
            ("MAXLEN", Form::Number(0, MOST, "")),
            ("MAXBYTES", Form::Number(0, MOST, "")),
            ("MAXLEASED", Form::Number(0, MOST, "")),
            ("AGING", Form::Number(0, YEAR, MILLIS)),
            ("RETAIN", Form::Number(0, MONTH, MILLIS)),
            ("PAUSE", Form::Pause),
            ("TTL", Form::Number(0, YEAR, MILLIS)),
        ];
        for (name, value) in options("QCONFIG SET", &call.words[3..], &known_options)? {
            match (name, value) {
                ("LEASE", Value::Number(value)) => config.lease = value,
                ("MAXDELIVER", Value::Number(value)) => config.max_deliver = value,
                ("DEDUP", Value::Number(value)) => config.dedup = value,
                ("MAXLEN", Value::Number(value)) => config.max_len = value,
                ("MAXBYTES", Value::Number(value)) => config.max_bytes = value,
                ("MAXLEASED", Value::Number(value)) => config.max_leased = value,
                ("AGING", Value::Number(value)) => config.aging = value,
                ("RETAIN", Value::Number(value)) => config.retain = value,
                ("TTL", Value::Number(value)) => config.ttl = value,
                ("BACKOFF", Value::Word(value)) => {
                    let text = String::from_utf8_lossy(value).into_owned();
                    let words: Vec<f64> =
                        text.split(' ').filter_map(|word| word.trim_end_matches('%').parse().ok()).collect();
                    let [min, max, factor, jitter] = words[..] else { return Err(syntax("BACKOFF")) };
                    config.backoff = (min as u64, max as u64, (factor * 100.0).round() as u64, jitter as u64);
                }
                ("DEADLETTER", Value::Word(value)) => config.dead_letter = value.to_vec(),
                (_, Value::Word(value)) => {
                    config.pause = String::from_utf8_lossy(value).to_ascii_lowercase();
                }
                (name, _) => return Err(syntax(name)),
            }
        }
        self.queue_mut(db, key).config = config;
        self.settle(db, key);
        Ok(Reply::Ok)
    }
}

fn is_in(place: Place, state: &[u8]) -> bool {
    match place {
        Place::Ready => is(state, "READY"),
        Place::Delayed(_) => is(state, "DELAYED"),
        Place::Leased(..) => is(state, "LEASED"),
        Place::Dead => is(state, "DEAD"),
    }
}
