//! Queues: messages that are handed out for a while and come back unless acknowledged (COMMANDS.md 2.3).
//!
//! The decisions are in [`rules`]; here they become changes of the state: the message, the queue's own
//! orders, the index of leases, and the rows to write. A queue's head row holds its counters only; each
//! message is a row of its own, so a push writes one message and not the queue.
//!
//! Why ready messages stand in a set by id and not in a list: a message whose lease ends goes back to
//! its old place, ahead of everything that was pushed after it.

pub mod rules;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;

use crate::state::DbIndex;
use crate::state::Object;
use crate::state::Row;
use crate::state::State;
use crate::state::changes::Changes;
use crate::state::changes::LISTED;
use crate::state::expiry::ExpiryIndex;
use crate::state::expiry::LeaseName;
use crate::state::undo::Undo;
use crate::types::ClusterTime;
use crate::types::LogIndex;
use crate::types::Millis;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_bytes;
use crate::types::codec::put_varint;
use crate::types::planted::Bug;
use crate::types::planted::is_planted;

pub use rules::Event;
pub use rules::Life;
pub use rules::MessageState;
pub use rules::Step;
pub use rules::Take;

/// First byte of an encoded queue head and of an encoded message.
const FORMAT: u8 = 1;

const STATE_READY: u8 = 0;
const STATE_LEASED: u8 = 1;

/// Names a message for ever: the entry that pushed it and which of that entry's messages it was.
/// Ordered as pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId {
    /// Log index of the entry.
    pub index: u64,
    /// Counted from 0 within the entry.
    pub n: u32,
}

impl MessageId {
    /// Reads `<index>-<n>`; `None` when it is not that.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<MessageId> {
        let (index, n) = split_at(text, b'-')?;
        Some(MessageId { index: digits(index)?, n: u32::try_from(digits(n)?).ok()? })
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.index, self.n)
    }
}

/// What a consumer acknowledges: one hand-out of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Receipt {
    pub id: MessageId,
    /// Which hand-out of the message, from 1.
    pub delivery: u32,
}

impl Receipt {
    /// Reads `<id>:<delivery>`; `None` when it is not that.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Receipt> {
        let (id, delivery) = split_at(text, b':')?;
        Some(Receipt { id: MessageId::parse(id)?, delivery: u32::try_from(digits(delivery)?).ok()? })
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.id, self.delivery)
    }
}

fn split_at(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| *byte == separator)?;
    Some((&text[..at], &text[at + 1..]))
}

/// A number in plain digits: no sign, no blank, no leading zero, so that an id has one spelling.
fn digits(text: &[u8]) -> Option<u64> {
    let is_padded = text.len() > 1 && text[0] == b'0';
    if text.is_empty() || is_padded || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A message of a queue.
#[derive(Debug, Clone)]
pub struct Message {
    payload: Box<[u8]>,
    life: Life,
    /// Listed in the changes that wait for the next flush.
    pub(super) dirty: bool,
}

impl Message {
    /// A message that was just pushed.
    #[must_use]
    pub fn new(payload: &[u8]) -> Message {
        Message { payload: payload.into(), life: Life::NEW, dirty: false }
    }

    /// What was pushed.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Its state and its counts.
    #[must_use]
    pub fn life(&self) -> &Life {
        &self.life
    }

    /// Appends the message to a row's value.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(FORMAT);
        let is_forgotten = is_planted(Bug::DeliveriesNotKept);
        put_varint(out, if is_forgotten { 0 } else { u64::from(self.life.delivery) });
        put_varint(out, u64::from(self.life.attempt));
        match self.life.state {
            MessageState::Ready => out.push(STATE_READY),
            MessageState::Leased { until, set_until } => {
                out.push(STATE_LEASED);
                put_varint(out, until.0);
                put_varint(out, set_until.0);
            }
        }
        put_bytes(out, &self.payload);
    }

    /// Reads what [`Message::encode`] wrote, to the end of the value.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Message, CodecError> {
        if reader.u8()? != FORMAT {
            return Err(CodecError("a message of an unknown format"));
        }
        let (delivery, attempt) = (reader.varint32()?, reader.varint32()?);
        let state = match reader.u8()? {
            STATE_READY => MessageState::Ready,
            STATE_LEASED => MessageState::Leased {
                until: ClusterTime(reader.varint()?),
                set_until: ClusterTime(reader.varint()?),
            },
            _ => return Err(CodecError("a message in an unknown state")),
        };
        let message = Message {
            payload: reader.bytes()?.into(),
            life: Life { state, delivery, attempt },
            dirty: false,
        };
        if reader.is_empty() { Ok(message) } else { Err(CodecError("a message with a tail")) }
    }
}

/// What has happened in a queue since it was created; a queue that runs empty starts again at zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Messages pushed.
    pub pushed: u64,
    /// Hand-outs, repeated ones included.
    pub delivered: u64,
    /// Messages finished, by QACK or by NOACK.
    pub acked: u64,
    /// Leases that ended by time.
    pub expired_leases: u64,
}

/// A queue with its messages. Each message is in exactly one of `ready` and `leases`.
#[derive(Debug, Default)]
pub struct Queue {
    messages: BTreeMap<MessageId, Message>,
    ready: BTreeSet<MessageId>,
    leases: BTreeSet<(ClusterTime, MessageId)>,
    payload_bytes: usize,
    counters: Counters,
}

impl Queue {
    /// Number of messages in any state.
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// True when there is no message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Messages that can be handed out now.
    #[must_use]
    pub fn ready_count(&self) -> usize {
        self.ready.len()
    }

    /// Messages in flight.
    #[must_use]
    pub fn leased_count(&self) -> usize {
        self.leases.len()
    }

    /// What has happened so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// One message.
    #[must_use]
    pub fn message(&self, id: MessageId) -> Option<&Message> {
        self.messages.get(&id)
    }

    pub(super) fn message_mut(&mut self, id: MessageId) -> Option<&mut Message> {
        self.messages.get_mut(&id)
    }

    /// Every message's id, as pushed.
    pub fn message_ids(&self) -> impl Iterator<Item = MessageId> {
        self.messages.keys().copied()
    }

    /// The messages in flight, by the end of their lease.
    pub fn message_leases(&self) -> impl Iterator<Item = (ClusterTime, MessageId)> {
        self.leases.iter().copied()
    }

    /// When the next lease ends; NEVER when nothing is in flight.
    #[must_use]
    pub fn earliest_lease(&self) -> ClusterTime {
        self.leases.first().map_or(ClusterTime::NEVER, |(until, _)| *until)
    }

    /// Bytes of memory the queue and its messages take besides its row; the trees' nodes are estimated.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        // B-tree nodes are about two thirds full.
        let message = (size_of::<MessageId>() + size_of::<Message>()) * 3 / 2;
        let ready = size_of::<MessageId>() * 3 / 2;
        // A lease stands in the queue's order and, with the queue's name, in the group's.
        let lease = (size_of::<(ClusterTime, MessageId)>() + size_of::<(ClusterTime, LeaseName)>()) * 3 / 2;
        size_of::<Queue>()
            + self.payload_bytes
            + self.messages.len() * message
            + self.ready.len() * ready
            + self.leases.len() * lease
    }

    /// Appends the head to a row's value: the counters. Messages are rows of their own.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(FORMAT);
        let counters = &self.counters;
        for number in [counters.pushed, counters.delivered, counters.acked, counters.expired_leases] {
            put_varint(out, number);
        }
    }

    /// Reads what [`Queue::encode`] wrote, to the end of the value; the messages follow by
    /// [`Queue::load_message`].
    pub fn decode(reader: &mut Reader<'_>) -> Result<Queue, CodecError> {
        if reader.u8()? != FORMAT {
            return Err(CodecError("a queue of an unknown format"));
        }
        let counters = Counters {
            pushed: reader.varint()?,
            delivered: reader.varint()?,
            acked: reader.varint()?,
            expired_leases: reader.varint()?,
        };
        if !reader.is_empty() {
            return Err(CodecError("a queue with a tail"));
        }
        Ok(Queue { counters, ..Queue::default() })
    }

    /// Adds a message that was read from its row.
    pub fn load_message(&mut self, id: MessageId, message: Message) {
        self.enter(id, message.life.state);
        self.payload_bytes += message.payload.len();
        self.messages.insert(id, message);
    }

    pub(super) fn set_counters(&mut self, counters: Counters) {
        self.counters = counters;
    }

    /// Puts a message in the place of another one or of none; gives the end of the old one's lease and of the new one's.
    pub(super) fn replace_message(
        &mut self,
        id: MessageId,
        message: Option<Message>,
    ) -> (Option<ClusterTime>, Option<ClusterTime>) {
        let lease = |message: &Message| match message.life.state {
            MessageState::Ready => None,
            MessageState::Leased { until, .. } => Some(until),
        };
        let old = self.messages.remove(&id);
        if let Some(old) = &old {
            self.leave(id, old.life.state);
            self.payload_bytes -= old.payload.len();
        }
        let leases = (old.as_ref().and_then(lease), message.as_ref().and_then(lease));
        if let Some(message) = message {
            self.load_message(id, Message { dirty: true, ..message });
        }
        leases
    }

    /// Puts a message into the order of its state.
    fn enter(&mut self, id: MessageId, state: MessageState) {
        match state {
            MessageState::Ready => self.ready.insert(id),
            MessageState::Leased { until, .. } => self.leases.insert((until, id)),
        };
    }

    /// Takes a message out of the order of its state.
    fn leave(&mut self, id: MessageId, state: MessageState) {
        match state {
            MessageState::Ready => self.ready.remove(&id),
            MessageState::Leased { until, .. } => self.leases.remove(&(until, id)),
        };
    }
}

/// A message that was handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Popped {
    pub receipt: Receipt,
    /// Which attempt at its work this is, from 1.
    pub attempt: u32,
    pub payload: Bytes,
}

/// The queue under a key: `Some(None)` when there is none, `None` when the key holds another type.
#[must_use]
pub fn queue_at<'a>(state: &'a State, db: DbIndex, key: &[u8]) -> Option<Option<&'a Queue>> {
    match state.row(db, key).map(Row::object) {
        None => Some(None),
        Some(Object::Queue(queue)) => Some(Some(queue)),
        Some(Object::String | Object::Lock(_)) => None,
    }
}

/// QPUSH: appends a message, and creates the queue on first use. `None` when the key holds another type.
pub fn push(state: &mut State, db: DbIndex, key: &[u8], payload: &[u8]) -> Option<MessageId> {
    if queue_at(state, db, key)?.is_none() {
        state.insert_object(db, key, Object::Queue(Box::default()));
    }
    let id = MessageId { index: state.meta.applied.0, n: state.pushed_in_entry };
    state.pushed_in_entry += 1;
    let mut open = OpenQueue::new(state, db, key)?;
    open.save(id);
    open.queue.load_message(id, Message::new(payload));
    open.queue.counters.pushed += 1;
    open.mark_row();
    open.mark_message(id);
    Some(id)
}

/// QPOP of one queue: hands out up to `count` messages that are ready, oldest first. `None` when the key
/// holds another type.
pub fn pop(
    state: &mut State,
    db: DbIndex,
    key: &[u8],
    count: usize,
    take: Take,
    now: ClusterTime,
) -> Option<Vec<Popped>> {
    let Some(queue) = queue_at(state, db, key)? else { return Some(Vec::new()) };
    let chosen: Vec<MessageId> = queue.ready.iter().take(count).copied().collect();
    let Some(mut open) = OpenQueue::new(state, db, key) else { return Some(Vec::new()) };
    let mut popped = Vec::with_capacity(chosen.len());
    for id in chosen {
        let (life, payload) = match open.step(id, Event::HandOut(take), now) {
            Taken::Nothing => continue,
            Taken::Changed(life) => (life, Bytes::copy_from_slice(open.payload(id))),
            Taken::Finished(life, payload) => {
                open.queue.counters.acked += 1;
                (life, Bytes::from(payload))
            }
        };
        open.queue.counters.delivered += 1;
        let receipt = Receipt { id, delivery: life.delivery };
        popped.push(Popped { receipt, attempt: life.attempt, payload });
    }
    remove_if_empty(state, db, key);
    Some(popped)
}

/// QACK: finishes the messages whose current hand-out these receipts name, and says how many. `None`
/// when the key holds another type.
pub fn ack(
    state: &mut State,
    db: DbIndex,
    key: &[u8],
    receipts: &[Receipt],
    now: ClusterTime,
) -> Option<usize> {
    queue_at(state, db, key)?;
    let Some(mut open) = OpenQueue::new(state, db, key) else { return Some(0) };
    let mut finished = 0;
    for Receipt { id, delivery } in receipts {
        // More leases may be due than end in one entry; this one ends before its receipt is looked at.
        open.end_lease_if_due(*id, now);
        if let Taken::Finished(..) = open.step(*id, Event::Acknowledge { delivery: *delivery }, now) {
            open.queue.counters.acked += 1;
            finished += 1;
        }
    }
    remove_if_empty(state, db, key);
    Some(finished)
}

/// Ends up to `at_most` leases of this queue that are due, earliest first, and says how many: the messages are
/// ready again, at their old place.
pub(crate) fn expire_leases(
    state: &mut State,
    db: DbIndex,
    key: &[u8],
    now: ClusterTime,
    at_most: usize,
) -> usize {
    let Some(mut open) = OpenQueue::new(state, db, key) else { return 0 };
    let mut ended = 0;
    while ended < at_most
        && let Some((_, id)) = open.queue.leases.first().filter(|(until, _)| *until <= now).copied()
    {
        open.end_lease_if_due(id, now);
        ended += 1;
    }
    ended
}

/// A new leader stands: this message stays with its consumer at least `grace` longer, within its budget.
pub(crate) fn grant_grace(
    state: &mut State,
    db: DbIndex,
    key: &[u8],
    id: MessageId,
    now: ClusterTime,
    grace: Millis,
) {
    if let Some(mut open) = OpenQueue::new(state, db, key) {
        open.step(id, Event::Grace(grace), now);
    }
}

/// A queue without messages has no row.
fn remove_if_empty(state: &mut State, db: DbIndex, key: &[u8]) {
    if queue_at(state, db, key).flatten().is_some_and(Queue::is_empty) {
        state.remove(db, key);
    }
}

/// What a step did.
enum Taken {
    Nothing,
    Changed(Life),
    Finished(Life, Box<[u8]>),
}

/// A queue together with all that must change with it: its row's marks, the rows to write, the leases.
struct OpenQueue<'a> {
    db: DbIndex,
    key: &'a [u8],
    applied: LogIndex,
    queue: &'a mut Queue,
    row_changed: &'a mut LogIndex,
    row_mark: &'a mut u32,
    changes: &'a mut Changes,
    leases: &'a mut ExpiryIndex<LeaseName>,
    undo: Option<&'a mut Undo>,
}

impl<'a> OpenQueue<'a> {
    /// `None` when the key holds no queue.
    fn new(state: &'a mut State, db: DbIndex, key: &'a [u8]) -> Option<OpenQueue<'a>> {
        state.save_row(db, key);
        let row = state.databases.get_mut(usize::from(db))?.get_mut(key)?;
        let Object::Queue(queue) = &mut row.object else { return None };
        Some(OpenQueue {
            db,
            key,
            applied: state.meta.applied,
            queue,
            row_changed: &mut row.changed,
            row_mark: &mut row.mark,
            changes: &mut state.changes,
            leases: &mut state.leases,
            undo: state.undo.as_deref_mut(),
        })
    }

    fn payload(&self, id: MessageId) -> &[u8] {
        self.queue.message(id).map_or(&[], Message::payload)
    }

    fn end_lease_if_due(&mut self, id: MessageId, now: ClusterTime) {
        if let Taken::Changed(_) = self.step(id, Event::TimePasses, now) {
            self.queue.counters.expired_leases += 1;
        }
    }

    /// Takes one message through one event.
    fn step(&mut self, id: MessageId, event: Event, now: ClusterTime) -> Taken {
        let Some(before) = self.queue.message(id).map(|message| message.life) else { return Taken::Nothing };
        let step = rules::step(before, event, now);
        if step != Step::Unchanged {
            self.save(id);
        }
        match step {
            Step::Unchanged => Taken::Nothing,
            Step::Becomes(after) => {
                self.move_message(id, before.state, Some(after.state));
                let message = self.queue.messages.get_mut(&id).expect("it was read just now");
                message.life = after;
                Taken::Changed(after)
            }
            Step::Finished(last) => {
                self.move_message(id, before.state, None);
                let message = self.queue.messages.remove(&id).expect("it was read just now");
                self.queue.payload_bytes -= message.payload.len();
                Taken::Finished(last, message.payload)
            }
        }
    }

    /// The message is about to change.
    fn save(&mut self, id: MessageId) {
        if let Some(undo) = &mut self.undo {
            undo.save_message(self.db, self.key, id, self.queue.message(id));
        }
    }

    /// Takes a message from the order of one state to that of the next, and marks it as changed.
    fn move_message(&mut self, id: MessageId, from: MessageState, to: Option<MessageState>) {
        self.mark_row();
        self.mark_message(id);
        self.queue.leave(id, from);
        if let MessageState::Leased { until, .. } = from {
            self.leases.remove(until, LeaseName::Message(self.db, self.key.into(), id));
        }
        let Some(to) = to else { return };
        self.queue.enter(id, to);
        if let MessageState::Leased { until, .. } = to {
            self.leases.insert(until, LeaseName::Message(self.db, self.key.into(), id));
        }
    }

    /// Lists the head row for the next flush, once.
    fn mark_row(&mut self) {
        let is_listed = *self.row_changed > self.changes.since && *self.row_mark == LISTED;
        *self.row_changed = self.applied;
        if !is_listed {
            *self.row_mark = LISTED;
            self.changes.keys.push((self.db, self.key.into()));
        }
    }

    /// Lists the message's row for the next flush, once.
    fn mark_message(&mut self, id: MessageId) {
        let Some(message) = self.queue.messages.get_mut(&id) else { return };
        if !std::mem::replace(&mut message.dirty, true) {
            self.changes.messages.push((self.db, self.key.into(), id));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::test_support::TestStore;
    use crate::types::Term;
    use crate::types::WallMillis;

    /// Begins the next entry, at this time, and ends what is due in the queue.
    fn entry(state: &mut State, now: u64) -> ClusterTime {
        let index = LogIndex(state.meta.applied.0 + 1);
        let now = ClusterTime(now);
        state.begin_entry(index, Term(1), now, WallMillis(0));
        state.expire_touched(0, b"q", now);
        now
    }

    fn push_at(state: &mut State, now: u64, payload: &str) -> MessageId {
        entry(state, now);
        push(state, 0, b"q", payload.as_bytes()).expect("the key holds a queue or nothing")
    }

    fn pop_at(state: &mut State, now: u64, count: usize, take: Take) -> Vec<Popped> {
        let now = entry(state, now);
        pop(state, 0, b"q", count, take, now).expect("the key holds a queue or nothing")
    }

    fn ack_at(state: &mut State, now: u64, receipts: &[Receipt]) -> usize {
        let now = entry(state, now);
        ack(state, 0, b"q", receipts, now).expect("the key holds a queue or nothing")
    }

    fn queue(state: &State) -> Option<&Queue> {
        queue_at(state, 0, b"q").expect("the key holds a queue or nothing")
    }

    fn payloads(popped: &[Popped]) -> Vec<&str> {
        popped.iter().map(|popped| std::str::from_utf8(&popped.payload).unwrap()).collect()
    }

    /// Every message is in exactly one order, by its state; counts add up; the index of leases agrees.
    fn check(state: &State) {
        let mut leases = BTreeSet::new();
        if let Some(queue) = queue(state) {
            assert!(!queue.is_empty(), "a queue without messages has no row");
            let (mut ready, mut leased, mut bytes) = (BTreeSet::new(), BTreeSet::new(), 0);
            for (id, message) in &queue.messages {
                bytes += message.payload.len();
                match message.life.state {
                    MessageState::Ready => ready.insert(*id),
                    MessageState::Leased { until, .. } => leased.insert((until, *id)),
                };
            }
            assert_eq!((&ready, &leased), (&queue.ready, &queue.leases));
            assert_eq!(queue.payload_bytes, bytes);
            assert_eq!(queue.counters.pushed, queue.counters.acked + queue.len() as u64);
            leases = leased
                .into_iter()
                .map(|(until, id)| (until, LeaseName::Message(0, (*b"q").into(), id)))
                .collect();
        }
        let indexed = state.leases.iter().map(|(until, name)| (until, name.clone())).collect();
        assert_eq!(leases, indexed);
    }

    #[test]
    fn a_message_whose_lease_ends_goes_back_to_its_place() {
        let mut state = State::new(1);
        for payload in ["one", "two", "three"] {
            push_at(&mut state, 0, payload);
        }
        let first = pop_at(&mut state, 0, 2, Take::Lease(Millis(1_000)));
        assert_eq!(payloads(&first), ["one", "two"]);
        assert_eq!(ack_at(&mut state, 999, &[first[1].receipt]), 1);
        check(&state);
        let again = pop_at(&mut state, 1_000, 9, Take::Lease(Millis(1_000)));
        assert_eq!(payloads(&again), ["one", "three"]);
        assert_eq!((again[0].attempt, again[0].receipt.delivery), (2, 2));
        assert_eq!(ack_at(&mut state, 1_000, &[first[0].receipt]), 0, "a stale receipt");
        assert_eq!(queue(&state).map(|queue| queue.counters.expired_leases), Some(1));
        check(&state);
        assert_eq!(ack_at(&mut state, 1_001, &[again[0].receipt, again[1].receipt]), 2);
        assert!(queue(&state).is_none());
        check(&state);
    }

    #[test]
    fn a_receipt_whose_lease_has_ended_finishes_nothing() {
        let mut state = State::new(1);
        push_at(&mut state, 0, "one");
        let popped = pop_at(&mut state, 0, 1, Take::Lease(Millis(1_000)));
        assert_eq!(ack_at(&mut state, 1_000, &[popped[0].receipt]), 0);
        assert_eq!(queue(&state).map(Queue::ready_count), Some(1));
    }

    #[test]
    fn an_expire_entry_returns_every_message_that_is_due() {
        let mut state = State::new(1);
        for payload in ["one", "two", "three"] {
            push_at(&mut state, 0, payload);
        }
        for lease in [100, 200, 300] {
            pop_at(&mut state, 0, 1, Take::Lease(Millis(lease)));
        }
        let now = ClusterTime(250);
        state.begin_entry(LogIndex(100), Term(1), now, WallMillis(0));
        state.expire_due(now, 1024);
        assert!(!state.anything_due(now));
        let counts = queue(&state).map(|queue| (queue.ready_count(), queue.leased_count()));
        assert_eq!(counts, Some((2, 1)));
        check(&state);
    }

    #[test]
    fn grace_keeps_messages_with_their_consumers_within_its_budget() {
        let mut state = State::new(1);
        push_at(&mut state, 0, "one");
        pop_at(&mut state, 0, 1, Take::Lease(Millis(1_000)));
        for (now, until) in [(500, 3_500), (3_400, 6_400), (6_000, 7_000), (6_900, 7_000)] {
            let now = entry(&mut state, now);
            state.grant_grace(now);
            assert_eq!(queue(&state).map(Queue::earliest_lease), Some(ClusterTime(until)));
            check(&state);
        }
        assert_eq!(payloads(&pop_at(&mut state, 7_000, 1, Take::Remove)), ["one"]);
    }

    #[test]
    fn a_message_that_changes_often_is_written_once() {
        let mut state = State::new(1);
        push_at(&mut state, 0, "one");
        for now in 0..5 {
            pop_at(&mut state, now * 100, 1, Take::Lease(Millis(100)));
        }
        assert_eq!(state.changes.messages.len(), 1);
        assert_eq!(state.pending_changes().listed, 2);
        state.take_changes();
        pop_at(&mut state, 500, 1, Take::Lease(Millis(100)));
        assert_eq!(state.changes.messages.len(), 1);
    }

    #[test]
    fn popping_from_a_queue_with_nothing_ready_changes_nothing() {
        let mut state = State::new(1);
        push_at(&mut state, 0, "one");
        pop_at(&mut state, 0, 1, Take::Lease(Millis(1_000)));
        let changed = state.row(0, b"q").map(Row::changed);
        assert!(pop_at(&mut state, 10, 1, Take::Lease(Millis(1_000))).is_empty());
        assert_eq!(ack_at(&mut state, 10, &[Receipt { id: MessageId { index: 1, n: 0 }, delivery: 9 }]), 0);
        assert_eq!(state.row(0, b"q").map(Row::changed), changed);
    }

    #[test]
    fn a_queue_goes_with_its_messages_and_their_leases() {
        let store = TestStore::new();
        let mut state = State::new(1);
        push_at(&mut state, 0, "one");
        push_at(&mut state, 0, "two");
        pop_at(&mut state, 0, 1, Take::Lease(Millis(1_000)));
        reopen(&mut state, &store);
        assert!(state.remove(0, b"q"));
        check(&state);
        // A new queue of the name must not see the rows of the old one.
        push_at(&mut state, 0, "three");
        reopen(&mut state, &store);
        assert_eq!(queue(&state).map(Queue::len), Some(1));
    }

    #[test]
    fn a_flush_of_the_database_keeps_queues() {
        let store = TestStore::new();
        let mut state = State::new(1);
        push_at(&mut state, 0, "one");
        state.put_string(0, b"s", b"v", None);
        reopen(&mut state, &store);
        entry(&mut state, 1);
        state.flush_database(0);
        reopen(&mut state, &store);
        assert_eq!(payloads(&pop_at(&mut state, 2, 9, Take::Remove)), ["one"]);
    }

    #[test]
    fn a_key_of_another_type_is_left_alone() {
        let mut state = State::new(1);
        let now = entry(&mut state, 0);
        state.put_string(0, b"q", b"v", None);
        assert_eq!(push(&mut state, 0, b"q", b"p"), None);
        assert_eq!(pop(&mut state, 0, b"q", 1, Take::Remove, now), None);
        assert_eq!(ack(&mut state, 0, b"q", &[], now), None);
    }

    #[test]
    fn ids_and_receipts_read_what_they_write_and_nothing_else() {
        let id = MessageId { index: 84_213, n: 7 };
        let receipt = Receipt { id, delivery: 3 };
        assert_eq!(receipt.to_string(), "84213-7:3");
        assert_eq!(Receipt::parse(b"84213-7:3"), Some(receipt));
        assert_eq!(MessageId::parse(b"84213-7"), Some(id));
        for text in
            ["", "-", "1", "1-", "-1", "1-2-3", "+1-2", "01-2", "1-02", " 1-2", "1-2 ", "1-4294967296"]
        {
            assert_eq!(MessageId::parse(text.as_bytes()), None, "{text:?}");
        }
        for text in ["", ":", "1-2", "1-2:", ":1", "1-2:x", "1-2:3:4", "1-2:+3", "1-2:4294967296"] {
            assert_eq!(Receipt::parse(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn rows_of_an_unknown_format_or_with_a_tail_are_refused() {
        let leased = MessageState::Leased { until: ClusterTime(9), set_until: ClusterTime(7) };
        let life = Life { state: leased, delivery: 2, attempt: 1 };
        let (mut message, mut head) = (Vec::new(), Vec::new());
        Message { payload: (*b"p").into(), life, dirty: false }.encode(&mut message);
        let counters = Counters { pushed: 4, delivered: 3, acked: 2, expired_leases: 1 };
        Queue { counters, ..Queue::default() }.encode(&mut head);
        let decoded = Message::decode(&mut Reader::new(&message)).unwrap();
        assert_eq!((decoded.payload(), *decoded.life()), (&b"p"[..], life));
        assert_eq!(*Queue::decode(&mut Reader::new(&head)).unwrap().counters(), counters);
        for end in 0..message.len() {
            assert!(Message::decode(&mut Reader::new(&message[..end])).is_err());
        }
        for end in 0..head.len() {
            assert!(Queue::decode(&mut Reader::new(&head[..end])).is_err());
        }
        for bytes in [&mut message, &mut head] {
            bytes.push(0);
            assert!(Message::decode(&mut Reader::new(bytes)).is_err());
            assert!(Queue::decode(&mut Reader::new(bytes)).is_err());
            bytes.pop();
            bytes[0] = FORMAT + 1;
            assert!(Message::decode(&mut Reader::new(bytes)).is_err());
            assert!(Queue::decode(&mut Reader::new(bytes)).is_err());
        }
    }

    fn reopen(state: &mut State, store: &TestStore) {
        store.reopen(state);
        check(state);
    }

    #[derive(Debug, Clone)]
    enum Action {
        Push { messages: usize },
        Pop { count: usize, lease: u64 },
        PopAtMostOnce { count: usize },
        Ack { receipts: Vec<usize> },
        NewLeader,
        Expire,
        Reopen,
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            4 => (1..4usize).prop_map(|messages| Action::Push { messages }),
            4 => (1..4usize, 100..1_000u64).prop_map(|(count, lease)| Action::Pop { count, lease }),
            1 => (1..3usize).prop_map(|count| Action::PopAtMostOnce { count }),
            4 => proptest::collection::vec(0..1_000usize, 1..4).prop_map(|receipts| Action::Ack { receipts }),
            1 => Just(Action::NewLeader),
            1 => Just(Action::Expire),
            1 => Just(Action::Reopen),
        ]
    }

    /// What clients saw of one queue.
    #[derive(Default)]
    struct Seen {
        unfinished: BTreeMap<MessageId, u32>,
        receipts: Vec<Receipt>,
    }

    impl Seen {
        fn hand_outs(&mut self, popped: &[Popped], is_finished: bool) {
            assert!(popped.is_sorted_by_key(|popped| popped.receipt.id), "oldest first");
            for Popped { receipt, attempt, .. } in popped {
                let delivery = self.unfinished.get_mut(&receipt.id).expect("only unfinished messages come");
                assert!(receipt.delivery > *delivery, "deliveries only grow");
                assert_eq!(receipt.delivery, *attempt);
                *delivery = receipt.delivery;
                self.receipts.push(*receipt);
                if is_finished {
                    self.unfinished.remove(&receipt.id);
                }
            }
        }

        fn take_action(&mut self, state: &mut State, store: &TestStore, now: u64, action: &Action) {
            match action {
                Action::Push { messages } => {
                    entry(state, now);
                    for _ in 0..*messages {
                        let id = push(state, 0, b"q", b"payload").expect("it is a queue");
                        assert_eq!(self.unfinished.insert(id, 0), None, "ids are never used twice");
                    }
                }
                Action::Pop { count, lease } => {
                    let popped = pop_at(state, now, *count, Take::Lease(Millis(*lease)));
                    self.hand_outs(&popped, false);
                }
                Action::PopAtMostOnce { count } => {
                    let popped = pop_at(state, now, *count, Take::Remove);
                    self.hand_outs(&popped, true);
                }
                Action::Ack { receipts } => {
                    let Some(last) = self.receipts.len().checked_sub(1) else { return };
                    for receipt in receipts.iter().map(|at| self.receipts[at % (last + 1)]) {
                        let finished = ack_at(state, now, &[receipt]);
                        if finished == 1 {
                            let delivery = self.unfinished.remove(&receipt.id);
                            assert_eq!(
                                delivery,
                                Some(receipt.delivery),
                                "finished by its last delivery, once"
                            );
                        }
                    }
                }
                Action::NewLeader => {
                    let now = entry(state, now);
                    state.grant_grace(now);
                }
                Action::Expire => {
                    let now = entry(state, now);
                    state.expire_due(now, 1024);
                    assert!(!state.anything_due(now));
                }
                Action::Reopen => reopen(state, store),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_message_is_in_one_state_until_it_is_finished_once(
            actions in proptest::collection::vec((action(), 0..300u64), 1..120),
        ) {
            let store = TestStore::new();
            let (mut state, mut seen, mut now) = (State::new(1), Seen::default(), 0);
            for (action, passes) in actions {
                now += passes;
                seen.take_action(&mut state, &store, now, &action);
                check(&state);
                let ids: Vec<MessageId> = queue(&state).map(|queue| queue.message_ids().collect()).unwrap_or_default();
                assert_eq!(ids, seen.unfinished.keys().copied().collect::<Vec<_>>(), "nothing lost or invented");
            }
        }
    }
}
