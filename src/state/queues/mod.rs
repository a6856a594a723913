//! Queues: messages that are handed out for a while and come back unless acknowledged (COMMANDS.md 2.3).
//!
//! The decisions about one message are in [`rules`]; the orders that messages stand in are in [`queue`]; here commands
//! and time become changes of the state: the message, the group's index of deadlines, traces, the rows to write. A
//! queue's head row holds its counters and attributes; each message is a row of its own and its payload another, so
//! that a change of state writes few bytes.
//!
//! A queue without messages and configuration is no key. What is still to be told of it is at rest beside the keys, under
//! its name, and is found again when a queue of the name comes back.
//!
//! A queue belongs to the group of its name's hash slot, and nothing here knows how many groups there are.

pub mod attributes;
mod chunks;
pub mod cold;
pub mod finished;
mod ids;
pub mod pops;
pub mod queue;
#[cfg(test)]
mod queues_test;
pub mod rules;
pub mod trace;

use bytes::Bytes;
use thiserror::Error;

use crate::state::DbIndex;
use crate::state::Keyspace;
use crate::state::Object;
use crate::state::Row;
use crate::state::State;
use crate::state::Timing;
use crate::state::changes::Changes;
use crate::state::changes::LISTED;
use crate::state::confirm;
use crate::state::expiry::KeyName;
use crate::state::expiry::LeaseName;
use crate::state::expiry::Leases;
use crate::state::expiry::Track;
use crate::state::handed::HandOvers;
use crate::state::handed::Handed;
use crate::state::locks::Claim;
use crate::state::locks::ClaimId;
use crate::state::locks::WaitId;
use crate::state::notices::ClaimEnd;
use crate::state::notices::Notice;
use crate::state::notices::Origin;
use crate::state::undo::Undo;
use crate::types::ClusterTime;
use crate::types::LogIndex;
use crate::types::Millis;
use crate::types::planted::Bug;
use crate::types::planted::is_planted;

pub use attributes::Attributes;
pub use attributes::Backoff;
pub use attributes::Pause;
pub use chunks::Keyed;
pub use ids::MessageId;
pub use ids::Receipt;
pub use pops::PopRequest;
pub use pops::PopWait;
pub use pops::PopWaits;
pub use queue::Counters;
pub use queue::Dedup;
pub use queue::PRIORITIES;
pub use queue::Queue;
pub use queue::Record;
pub use queue::Slot;
pub use queue::StateName;
pub use rules::Event;
pub use rules::Life;
pub use rules::MessageState;
pub use rules::Return;
pub use rules::Step;
pub use rules::Take;

use cold::Cold;
use finished::Finish;
use finished::Finished;
use queue::DIRTY;
use queue::Extra;
use queue::Lease;
use queue::STORED;
use queue::TRACED;
use queue::Timer;
use rules::Death;
use trace::TraceEvent;
use trace::TraceKind;
use trace::Traces;

/// Longest REASON that is kept, in bytes.
pub const REASON_BYTES_MAX: usize = 512;
/// Messages that one QREDRIVE moves, and that one QDEL STATE removes, at most: others wait meanwhile.
pub const CHANGED_AT_ONCE: usize = 100_000;
/// Payloads that one QPOP hands out together, but for the first: no reply grows without bound.
pub const HANDED_OUT_BYTES: usize = 16 << 20;
/// Payloads that one QREDRIVE moves to another queue, but for the first.
const MOVED_BYTES: usize = 32 << 20;
/// Messages whose payloads are read together when they move.
const MOVED_TOGETHER: usize = 128;
/// What a reply takes besides its messages, a message besides its payload and its names, and more WITHMETA, in bytes.
const FRAME_BYTES: usize = 32;
const TOLD_BYTES: usize = 200;
const META_BYTES: usize = 600;
/// A message's hand-outs beyond this many are not in its trace.
const TRACED_DELIVERIES: u32 = 1_000;
/// QPOPs that may wait for one queue.
pub const WAITERS_MAX: usize = 10_000;

/// What QPUSH asks for.
#[derive(Debug, Clone, Default)]
pub struct PushRequest<'a> {
    pub payload: &'a [u8],
    pub id: Option<&'a [u8]>,
    pub priority: Option<u8>,
    pub delay: Option<Millis>,
    pub lifetime: Option<Millis>,
    pub group: Option<&'a [u8]>,
    pub max_len: Option<u64>,
    /// Only change a message that is there.
    pub only_update: bool,
}

/// What came of a QPUSH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pushed {
    /// A new message.
    New(MessageId),
    /// The ID was known: this one has it.
    Known(MessageId),
    /// XX, and there is nothing to change.
    Nothing,
    /// Refused, with the reason.
    Full(String),
}

/// A message that was handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Popped {
    pub queue: Box<[u8]>,
    pub receipt: Receipt,
    /// Which attempt at its work this is, from 1; 0 does not occur.
    pub attempt: u32,
    pub payload: Bytes,
    pub meta: PoppedMeta,
}

/// What WITHMETA tells of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoppedMeta {
    pub priority: u8,
    pub group: Option<Box<[u8]>>,
    pub age: Millis,
    pub lease: Millis,
    pub last_reason: Box<[u8]>,
}

/// Messages that a QPOP which waited was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    pub db: DbIndex,
    pub with_meta: bool,
    /// At most once: they cannot be given back.
    pub no_ack: bool,
    pub messages: Vec<Popped>,
}

/// Which messages QDEL and QREDRIVE mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    Ids(Vec<MessageId>),
    State(StateName),
    /// The first ones.
    Count(usize),
    All,
}

/// The key holds another type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrongType;

/// A message that whoever asks for it cannot be told of: the reply would be too large.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "ERR the next message of {queue} takes {bytes} bytes in a reply, and client-output-buffer-limit allows {max}. It \
     stays where it is: raise the limit, or take it on a node that allows more"
)]
pub struct TooLargeToTell {
    queue: String,
    bytes: usize,
    max: usize,
}

impl TooLargeToTell {
    /// Bytes that the reply would take, at least.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Why QPOP hands nothing out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PopRefusal {
    /// A key holds another type.
    WrongType,
    TooLarge(TooLargeToTell),
}

impl From<WrongType> for PopRefusal {
    fn from(_: WrongType) -> PopRefusal {
        PopRefusal::WrongType
    }
}

impl From<TooLargeToTell> for PopRefusal {
    fn from(message: TooLargeToTell) -> PopRefusal {
        PopRefusal::TooLarge(message)
    }
}

/// Where a change comes from.
#[derive(Debug, Clone, Copy)]
pub struct By<'a> {
    pub now: ClusterTime,
    /// The node whose client wants it; 0 when nobody does.
    pub node: u64,
    pub reason: &'a [u8],
}

impl By<'_> {
    /// Time itself.
    fn time(now: ClusterTime) -> By<'static> {
        By { now, node: 0, reason: b"" }
    }
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

/// The same, with a queue that is at rest: it is no key, but receipts, IDs and ids that it is asked for are known.
#[must_use]
pub fn known_at<'a>(state: &'a State, db: DbIndex, key: &[u8]) -> Option<Option<&'a Queue>> {
    queue_at(state, db, key).map(|queue| queue.or_else(|| state.queue_at_rest(db, key)))
}

fn check_type(state: &State, db: DbIndex, key: &[u8]) -> Result<(), WrongType> {
    queue_at(state, db, key).map(|_| ()).ok_or(WrongType)
}

/// The key holds a queue from now on: the one that was at rest under its name, or a new one.
fn create(state: &mut State, db: DbIndex, key: &[u8]) {
    if matches!(queue_at(state, db, key), Some(None)) && !state.wake_queue(db, key) {
        state.meta.last_queue += 1;
        let queue = Queue::new(state.meta.last_queue);
        state.insert_object(db, key, Object::Queue(Box::new(queue)));
    }
}

/// The key holds no queue any more if nothing is in it and nobody configured it, as with Redis's lists.
fn settle(state: &mut State, db: DbIndex, key: &[u8]) {
    if matches!(queue_at(state, db, key), Some(Some(queue)) if queue.is_at_rest()) {
        state.lay_queue_to_rest(db, key);
    }
}

/// QPUSH. What is due of the queue ended before.
pub fn push(
    state: &mut State,
    db: DbIndex,
    key: &[u8],
    request: &PushRequest<'_>,
    by: By<'_>,
) -> Result<Pushed, WrongType> {
    let now = by.now;
    if let Some(queue) = known_at(state, db, key).ok_or(WrongType)? {
        let known = request.id.and_then(|id| queue.dedup(id)).filter(|dedup| dedup.until > now);
        if request.only_update {
            let Some(known) = known else { return Ok(Pushed::Nothing) };
            return Ok(reschedule(state, db, key, known.id, request, by));
        }
        if let Some(known) = known {
            if let Some(mut open) = OpenQueue::new(state, db, key) {
                open.queue.counters.duplicates += 1;
                open.mark_row();
            }
            return Ok(Pushed::Known(known.id));
        }
        if let Some(reason) = why_full(queue, key, request) {
            return Ok(Pushed::Full(reason));
        }
    } else if request.only_update {
        return Ok(Pushed::Nothing);
    } else if request.max_len == Some(0) {
        return Ok(Pushed::Full(format!("QFULL {} holds 0 messages, MAXLEN 0", shown(key))));
    }
    create(state, db, key);
    let id = MessageId { index: state.meta.applied.0, n: state.pushed_in_entry };
    state.pushed_in_entry += 1;
    let Some(mut open) = OpenQueue::new(state, db, key) else { return Err(WrongType) };
    open.save(id);
    let ttl = open.queue.attributes().ttl;
    let lifetime = request.lifetime.or((ttl.0 != 0).then_some(ttl));
    let extra = Extra {
        group: request.group.map(Box::from),
        dedup: request.id.map(Box::from),
        carried: None,
        expires: lifetime.map_or(ClusterTime::NEVER, |lifetime| now.after(lifetime)),
        reason: Box::default(),
    };
    if let Some(name) = request.id {
        open.save_dedup(name);
        // It may be that of a finished message which is due and not forgotten yet.
        open.mark_dedup(name);
    }
    let life = Life::new(now, request.delay.unwrap_or(Millis(0)));
    let payload = Bytes::copy_from_slice(request.payload);
    open.queue.put_in(Record::new(id, life, request.priority.unwrap_or(0), payload, extra, now));
    open.cold.pushed(open.applied, open.queue.number(), id);
    open.queue.counters.pushed += 1;
    open.changes.bytes += request.payload.len();
    open.touch(id);
    drop(open);
    state.note_available(db, key);
    Ok(Pushed::New(id))
}

fn why_full(queue: &Queue, key: &[u8], request: &PushRequest<'_>) -> Option<String> {
    let attributes = queue.attributes();
    let (len, bytes) = (queue.live_len() as u64, queue.live_bytes());
    let of_queue = (attributes.max_len != 0).then_some(attributes.max_len);
    let at_most = [of_queue, request.max_len].into_iter().flatten().min().unwrap_or(u64::MAX);
    if attributes.pause.stops_pushes() {
        return Some(format!("QFULL {} takes no messages: PAUSE is {}", shown(key), attributes.pause.name()));
    }
    if len >= at_most {
        return Some(format!("QFULL {} holds {len} messages, MAXLEN {at_most}", shown(key)));
    }
    let after = bytes + request.payload.len() as u64;
    if attributes.max_bytes != 0 && after > attributes.max_bytes {
        let most = attributes.max_bytes;
        return Some(format!("QFULL {} would hold {after} bytes, MAXBYTES {most}", shown(key)));
    }
    None
}

fn shown(key: &[u8]) -> String {
    crate::state::locks::graph::shown(key)
}

/// QPUSH … XX: another priority or delay for a message that nobody has.
fn reschedule(
    state: &mut State,
    db: DbIndex,
    key: &[u8],
    id: MessageId,
    request: &PushRequest<'_>,
    by: By<'_>,
) -> Pushed {
    let Some(mut open) = OpenQueue::new(state, db, key) else { return Pushed::Nothing };
    let is_waiting = open
        .queue
        .life(id)
        .is_some_and(|life| matches!(life.state, MessageState::Ready | MessageState::Delayed { .. }));
    if !is_waiting {
        return Pushed::Nothing;
    }
    if let Some(delay) = request.delay {
        open.step(id, Event::Reschedule { delay }, by);
    }
    if let Some(priority) = request.priority {
        open.save(id);
        open.queue.set_priority(id, priority);
        open.touch(id);
    }
    drop(open);
    state.note_available(db, key);
    Pushed::Known(id)
}

/// QPOP: hands out messages of the queues, from left to right.
pub fn pop(
    state: &mut State,
    request: &PopRequest,
    origin: &Origin,
    now: ClusterTime,
) -> Result<Vec<Popped>, PopRefusal> {
    for key in &request.queues {
        check_type(state, request.db, key)?;
    }
    Ok(pop_available(state, request, origin, now)?)
}

/// Hands out what there is and fits the reply. A message that does not fit stays in its place, and nothing behind it is
/// handed out in its stead: whoever skips it would never know.
fn pop_available(
    state: &mut State,
    request: &PopRequest,
    origin: &Origin,
    now: ClusterTime,
) -> Result<Vec<Popped>, TooLargeToTell> {
    let mut popped = Vec::new();
    let (mut bytes, mut reply_bytes) = (0, FRAME_BYTES);
    let by = By { now, node: origin.node.0, reason: b"" };
    for key in &request.queues {
        if popped.len() >= request.count {
            break;
        }
        let Some(mut open) = OpenQueue::new(state, request.db, key) else { continue };
        while popped.len() < request.count
            && let Some(id) = open.queue.next_available(now)
        {
            bytes += open.queue.message(id).map_or(0, Slot::payload_len);
            reply_bytes += open.told_bytes(id, request.with_meta);
            if (bytes > HANDED_OUT_BYTES || reply_bytes > request.reply_max) && !popped.is_empty() {
                return Ok(popped);
            }
            if reply_bytes > request.reply_max {
                let queue = shown(key);
                return Err(TooLargeToTell { queue, bytes: reply_bytes, max: request.reply_max });
            }
            let Some(message) = open.hand_out(id, request, by) else { break };
            popped.push(message);
        }
        if open.queue.is_at_rest() {
            drop(open);
            settle(state, request.db, key);
        }
    }
    Ok(popped)
}

/// A QPOP that found nothing waits, and is told by this number how that ended. `None`: too many wait already.
pub fn wait(
    state: &mut State,
    request: PopRequest,
    origin: &Origin,
    until: ClusterTime,
    now: ClusterTime,
) -> Option<ClaimId> {
    let is_crowded = |name: KeyName| state.pop_waits.count_of(&name) >= WAITERS_MAX;
    if request.queues.iter().any(|queue| is_crowded((request.db, queue.clone()))) {
        return None;
    }
    let claim = Claim { id: state.next_claim(), origin: origin.clone(), until };
    let id = claim.id;
    state.notices.push(Notice::ClaimBegan { claim: id, origin: origin.clone() });
    state.index_claims([&claim]);
    state.pop_waits.insert(PopWait { request, claim, since: now });
    state.changes.pops.push(id);
    Some(id)
}

/// A client waits no more. False when it did not.
pub(in crate::state) fn end_wait(state: &mut State, claim: ClaimId, end: ClaimEnd, now: ClusterTime) -> bool {
    let Some(wait) = take_wait(state, claim, now) else { return false };
    state.notices.push(Notice::ClaimEnded { claim, origin: wait.claim.origin, end });
    true
}

fn take_wait(state: &mut State, claim: ClaimId, now: ClusterTime) -> Option<PopWait> {
    let wait = state.pop_waits.remove(claim)?;
    state.unindex_claims([&wait.claim]);
    state.changes.pops.push(claim);
    state.timings.push(Timing::QueueWait(wait.since.until(now)));
    Some(wait)
}

/// A client that waited gets these messages. Those that it has at most once it is told of at once: they cannot go back.
fn deliver(state: &mut State, claim: ClaimId, delivered: Delivered, now: ClusterTime) {
    if delivered.no_ack {
        end_wait(state, claim, ClaimEnd::Delivered(delivered), now);
        return;
    }
    let Some(wait) = take_wait(state, claim, now) else { return };
    let messages =
        delivered.messages.iter().map(|message| (message.queue.clone(), message.receipt)).collect();
    let (id, db) = (WaitId(claim.0), delivered.db);
    confirm::hand(state, id, db, Handed::Messages(messages), &[&wait.claim], &ClaimEnd::Delivered(delivered));
}

/// Gives what became available to those who wait, first come, first served. After every item of an entry nobody waits
/// for a queue that could serve him.
pub(crate) fn serve_waits(state: &mut State, now: ClusterTime) {
    while let Some(name) = state.available.pop_first() {
        if is_planted(Bug::QueueWakeUpLost) {
            continue;
        }
        let first = |state: &State| state.pop_waits.of_queue(&name).next();
        while let Some(claim) = first(state)
            && matches!(queue_at(state, name.0, &name.1), Some(Some(queue)) if queue.next_available(now).is_some())
        {
            let Some(wait) = state.pop_waits.get(claim).cloned() else { break };
            let messages = match pop_available(state, &wait.request, &wait.claim.origin, now) {
                Ok(messages) if messages.is_empty() => break,
                Ok(messages) => messages,
                Err(message) => {
                    end_wait(state, claim, ClaimEnd::Failed(message.to_string()), now);
                    continue;
                }
            };
            let PopRequest { db, with_meta, no_ack, .. } = wait.request;
            deliver(state, claim, Delivered { db, with_meta, no_ack, messages }, now);
        }
    }
}

/// Does something for each receipt, as `does` says, and says for how many it had an effect.
fn for_each_receipt(
    state: &mut State,
    db: DbIndex,
    key: &[u8],
    receipts: &[Receipt],
    now: ClusterTime,
    mut does: impl FnMut(&mut OpenQueue<'_>, Receipt) -> bool,
) -> Result<usize, WrongType> {
    check_type(state, db, key)?;
    let Some(mut open) = OpenQueue::new(state, db, key) else { return Ok(0) };
    let mut count = 0;
    for receipt in receipts {
        // More leases may be due than end in one entry; this one ends before its receipt is looked at.
        open.step(receipt.id, Event::TimePasses, By::time(now));
        count += usize::from(does(&mut open, *receipt));
    }
    let dying = std::mem::take(&mut open.dying);
    let is_over = open.queue.is_at_rest();
    drop(open);
    bury(state, db, key, dying, now);
    if is_over {
        settle(state, db, key);
    }
    state.note_available(db, key);
    Ok(count)
}

/// QACK: how many of these receipts are those that finished their messages, now or before.
pub fn ack(
    state: &mut State,
    db: DbIndex,
    key: &[u8],
    receipts: &[Receipt],
    by: By<'_>,
) -> Result<usize, WrongType> {
    for_each_receipt(state, db, key, receipts, by.now, |open, receipt| {
        let event = Event::Acknowledge { delivery: receipt.delivery };
        match open.step(receipt.id, event, by) {
            Taken::Finished => true,
            _ => open.finished.knows(open.queue.number(), receipt, by.now),
        }
    })
}

/// How QNACK gives messages back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nack {
    Silent {
        delay: Millis,
    },
    /// `None`: after the queue's backoff.
    Fail {
        delay: Option<Millis>,
    },
    Fatal,
}

/// QNACK: how many of these receipts were current.
pub fn nack(
    state: &mut State,
    db: DbIndex,
    key: &[u8],
    receipts: &[Receipt],
    how: Nack,
    by: By<'_>,
) -> Result<usize, WrongType> {
    for_each_receipt(state, db, key, receipts, by.now, |open, Receipt { id, delivery }| {
        let how = match how {
            Nack::Silent { delay } => Return::Silent { delay },
            Nack::Fail { delay: Some(delay) } => Return::Fail { delay },
            Nack::Fail { delay: None } => Return::Fail { delay: open.backoff(id) },
            Nack::Fatal => Return::Fatal,
        };
        !matches!(open.step(id, Event::Return { delivery, how }, by), Taken::Nothing)
    })
}

/// QEXTEND: how many of these receipts were current; their leases end after `lease` from now on.
pub fn extend(
    state: &mut State,
    db: DbIndex,
    key: &[u8],
    receipts: &[Receipt],
    lease: Millis,
    by: By<'_>,
) -> Result<usize, WrongType> {
    for_each_receipt(state, db, key, receipts, by.now, |open, Receipt { id, delivery }| {
        !matches!(open.step(id, Event::Extend { delivery, lease }, by), Taken::Nothing)
    })
}

/// QDEL: how many messages were removed. With ALL the queue goes too, with its configuration, once it is empty.
pub fn delete(
    state: &mut State,
    db: DbIndex,
    key: &[u8],
    which: &Which,
    by: By<'_>,
) -> Result<usize, WrongType> {
    let Some(queue) = queue_at(state, db, key).ok_or(WrongType)? else { return Ok(0) };
    // What a transaction may have to take back is removed one by one.
    // So is what leaves traces: what is left is removed when the command comes again.
    let is_many = *which == Which::All && queue.len() > CHANGED_AT_ONCE && state.undo.is_none() && {
        let traced = queue.messages_from(MessageId::FIRST).filter(|slot| slot.has(TRACED));
        traced.count() <= CHANGED_AT_ONCE
    };
    let ids = if is_many { Vec::new() } else { chosen(queue, which) };
    let Some(mut open) = OpenQueue::new(state, db, key) else { return Ok(0) };
    let mut removed = 0;
    if is_many {
        removed = open.clear(by);
    }
    for id in ids {
        removed += usize::from(open.delete(id, by));
    }
    if *which == Which::All && open.queue.is_empty() {
        open.queue.set_attributes(Attributes::default());
        open.mark_row();
    }
    drop(open);
    settle(state, db, key);
    state.note_available(db, key);
    Ok(removed)
}

fn chosen(queue: &Queue, which: &Which) -> Vec<MessageId> {
    match which {
        Which::Ids(ids) => ids.clone(),
        Which::State(state) => queue.ids_from(*state, MessageId::FIRST).take(CHANGED_AT_ONCE).collect(),
        Which::Count(count) => {
            let count = CHANGED_AT_ONCE.min(*count);
            queue.ids_from(StateName::Dead, MessageId::FIRST).take(count).collect()
        }
        Which::All => queue.messages_from(MessageId::FIRST).map(Keyed::id).take(CHANGED_AT_ONCE).collect(),
    }
}

/// QREDRIVE: dead messages get new attempts, here or in another queue; how many. One whose ID another message has
/// there, or had of late, stays as it is: two under one ID would do the work twice.
pub fn redrive(
    state: &mut State,
    db: DbIndex,
    key: &[u8],
    which: &Which,
    to: Option<&[u8]>,
    by: By<'_>,
) -> Result<usize, WrongType> {
    let target = to.unwrap_or(key);
    check_type(state, db, target)?;
    let Some(queue) = queue_at(state, db, key).ok_or(WrongType)? else { return Ok(0) };
    let is_dead = |id: &MessageId| queue.life(*id).is_some_and(|life| life.state == MessageState::Dead);
    let is_movable = |id: &MessageId| {
        let name = queue.extra(*id).and_then(Extra::id);
        target == key
            || name.is_none_or(|name| {
                known_under(state, db, target, name, by.now).is_none_or(|other| other == *id)
            })
    };
    let mut ids: Vec<MessageId> = match which {
        // Those that cannot go do not keep back those behind them.
        Which::Count(count) => {
            let dead = queue.ids_from(StateName::Dead, MessageId::FIRST).take(CHANGED_AT_ONCE);
            dead.filter(is_movable).take(*count).collect()
        }
        which => chosen(queue, which).into_iter().filter(is_dead).filter(is_movable).collect(),
    };
    let mut moved = 0;
    if target != key {
        let length = |id: &MessageId| queue.message(*id).map_or(0, Slot::payload_len);
        let mut bytes = 0;
        let fits = |id: &&MessageId| {
            bytes += length(id);
            bytes <= MOVED_BYTES
        };
        let count = ids.iter().take_while(fits).count();
        ids.truncate(count.max(1));
    }
    for (at, id) in ids.iter().copied().enumerate() {
        if target != key
            && at % MOVED_TOGETHER == 0
            && let Some(open) = OpenQueue::new(state, db, key)
        {
            open.cold.read_these(open.queue, &ids[at..ids.len().min(at + MOVED_TOGETHER)]);
        }
        if target == key {
            let Some(mut open) = OpenQueue::new(state, db, key) else { break };
            moved += usize::from(!matches!(open.step(id, Event::Redrive, by), Taken::Nothing));
        } else {
            moved += usize::from(move_message(state, db, key, target, id, Some(by), by.now));
        }
    }
    settle(state, db, key);
    state.note_available(db, target);
    Ok(moved)
}

/// QCONFIG SET.
pub fn configure(
    state: &mut State,
    db: DbIndex,
    key: &[u8],
    change: impl FnOnce(&Attributes) -> Attributes,
) -> Result<(), WrongType> {
    check_type(state, db, key)?;
    create(state, db, key);
    let Some(mut open) = OpenQueue::new(state, db, key) else { return Err(WrongType) };
    let attributes = change(open.queue.attributes());
    open.queue.set_attributes(attributes);
    open.mark_row();
    drop(open);
    settle(state, db, key);
    state.note_available(db, key);
    Ok(())
}

/// Ends up to `at_most` of what is due in this queue on a track, earliest first, and says how many.
pub(crate) fn expire(
    state: &mut State,
    track: Track,
    db: DbIndex,
    key: &[u8],
    now: ClusterTime,
    at_most: usize,
) -> usize {
    let Some(mut open) = OpenQueue::new(state, db, key) else { return 0 };
    let (mut ended, mut is_forgotten) = (0, false);
    while ended < at_most
        && let Some(timer) = open.queue.due(track, now)
    {
        ended += 1;
        match timer {
            Timer::Message(id) | Timer::Lifetime(id) => {
                open.step(id, Event::TimePasses, By::time(now));
            }
            Timer::Dedup(name) => {
                open.save_dedup(&name);
                open.queue.set_dedup(&name, None);
                open.mark_row();
                open.mark_dedup(&name);
            }
            Timer::Forget => {
                is_forgotten = true;
                break;
            }
        }
    }
    let dying = std::mem::take(&mut open.dying);
    drop(open);
    if is_forgotten {
        state.forget_queue(db, key);
        return ended;
    }
    bury(state, db, key, dying, now);
    settle(state, db, key);
    state.note_available(db, key);
    ended
}

/// A new leader stands: messages in flight stay with their consumers at least `grace` longer, within their budgets.
pub(crate) fn grant_grace(state: &mut State, db: DbIndex, key: &[u8], now: ClusterTime, grace: Millis) {
    let Some(mut open) = OpenQueue::new(state, db, key) else { return };
    for id in open.queue.leases_before(now.after(grace)) {
        open.step(id, Event::Grace(grace), By::time(now));
    }
}

/// Messages that died go to the queue's dead letter queue, if it has one that is a queue.
fn bury(state: &mut State, db: DbIndex, key: &[u8], dying: Vec<MessageId>, now: ClusterTime) {
    if dying.is_empty() {
        return;
    }
    let Some(Some(queue)) = queue_at(state, db, key) else { return };
    let target = queue.attributes().dead_letter.clone();
    if target.is_empty() || *target == *key || queue_at(state, db, &target).is_none() {
        return;
    }
    for id in dying {
        move_message(state, db, key, &target, id, None, now);
    }
    state.note_available(db, &target);
}

/// The message that a queue knows by this ID, or knew of late.
fn known_under(state: &State, db: DbIndex, key: &[u8], name: &[u8], now: ClusterTime) -> Option<MessageId> {
    let dedup = known_at(state, db, key).flatten()?.dedup(name)?;
    (dedup.until > now).then_some(dedup.id)
}

/// A dead message goes to another queue, where it is ready. `redriven`: by QREDRIVE.
///
/// Its ID stays known where it was for DEDUP, as that of a finished message. A dead letter queue takes it in as baggage:
/// messages of several queues may come there with the same one. Where it is redriven to it is known by it again, and so
/// it is when it dies its way back to a queue that knows it for its own.
fn move_message(
    state: &mut State,
    db: DbIndex,
    from: &[u8],
    to: &[u8],
    id: MessageId,
    redriven: Option<By<'_>>,
    now: ClusterTime,
) -> bool {
    let Some(Some(queue)) = queue_at(state, db, from) else { return false };
    if queue.life(id).is_none_or(|life| life.state != MessageState::Dead) {
        return false;
    }
    let name = queue.extra(id).and_then(Extra::id).map(Box::<[u8]>::from);
    let known_as = name.as_deref().and_then(|name| known_under(state, db, to, name, now));
    if redriven.is_some() && known_as.is_some_and(|other| other != id) {
        return false;
    }
    let is_known_by_it = redriven.is_some() || known_as == Some(id);
    let Some(mut open) = OpenQueue::new(state, db, from) else { return false };
    let payload = open.payload(id);
    let Some(mut record) = open.take_out(id, now) else { return false };
    open.changes.bytes += payload.len();
    open.queue.counters.moved += 1;
    let retain = open.queue.attributes().retain;
    open.queue.remember_until(now.after(retain));
    if let Some(name) = record.extra.as_ref().and_then(|extra| extra.dedup.as_deref()) {
        open.remember_id(name, id, now);
    }
    drop(open);
    create(state, db, to);
    let Some(mut open) = OpenQueue::new(state, db, to) else { return false };
    open.save(id);
    record.payload = Some(payload);
    record.slot.flags &= TRACED;
    if let Some(extra) = &mut record.extra {
        (extra.dedup, extra.carried) = if is_known_by_it { (name, None) } else { (None, name) };
        extra.expires = ClusterTime::NEVER;
        if let Some(name) = &extra.dedup {
            open.save_dedup(name);
            open.mark_dedup(name);
        }
    }
    open.queue.put_in(record);
    open.cold.moved(open.applied, open.queue.number(), id);
    open.queue.counters.pushed += 1;
    let life = open.queue.life(id).expect("it was put in just now");
    if let Step::Becomes(life) = rules::step(life, Event::Redrive, open.queue.policy(id), now) {
        open.set_life(id, life, None, now);
    }
    if let Some(by) = redriven {
        open.trace(id, TraceKind::Redriven, by, b"");
    }
    open.touch(id);
    true
}

/// What a step did.
enum Taken {
    Nothing,
    Changed,
    Finished,
}

/// A queue together with all that must change with it: its row's marks, the rows to write, the index of deadlines.
struct OpenQueue<'a> {
    db: DbIndex,
    key: &'a [u8],
    /// It is no key now.
    is_at_rest: bool,
    applied: LogIndex,
    ack_memory: u64,
    queue: &'a mut Queue,
    row_changed: &'a mut LogIndex,
    row_mark: &'a mut u32,
    changes: &'a mut Changes,
    leases: &'a mut Leases,
    undo: Option<&'a mut Undo>,
    traces: &'a mut Traces,
    finished: &'a mut Finished,
    cold: &'a mut Cold,
    handed: &'a HandOvers,
    /// Messages that died, to be buried.
    dying: Vec<MessageId>,
}

impl Drop for OpenQueue<'_> {
    /// The group's index knows a time that is not after the queue's first timer, on each track.
    fn drop(&mut self) {
        for track in Track::ALL {
            let earliest = self.queue.earliest_on(track);
            let known = self.queue.indexed_at[track as usize];
            if earliest < known {
                let name = LeaseName::Queue(self.db, self.key.into());
                self.leases.remove(track, known, name.clone());
                self.leases.insert(track, earliest, name);
                self.queue.indexed_at[track as usize] = earliest;
            }
        }
    }
}

impl<'a> OpenQueue<'a> {
    /// The queue of this name, also one that is at rest; `None` when there is none.
    fn new(state: &'a mut State, db: DbIndex, key: &'a [u8]) -> Option<OpenQueue<'a>> {
        state.save_row(db, key);
        let (row, is_at_rest) = match state.databases.get_mut(usize::from(db))?.get_mut(key) {
            Some(row) if matches!(row.object, Object::Queue(_)) => (row, false),
            _ => (state.resting.get_mut(usize::from(db))?.get_mut(key)?, true),
        };
        let Object::Queue(queue) = &mut row.object else { return None };
        Some(OpenQueue {
            db,
            key,
            is_at_rest,
            applied: state.meta.applied,
            ack_memory: state.meta.settings.queue_ack_memory,
            queue,
            row_changed: &mut row.changed,
            row_mark: &mut row.mark,
            changes: &mut state.changes,
            leases: &mut state.leases,
            undo: state.undo.as_deref_mut(),
            traces: &mut state.traces,
            finished: &mut state.finished,
            cold: &mut state.cold,
            handed: &state.handed,
            dying: Vec::new(),
        })
    }

    /// The payload of a message; the state is at fault from now on if it cannot be read.
    fn payload(&mut self, id: MessageId) -> Bytes {
        if let Some(payload) = self.queue.payload(id) {
            return payload.clone();
        }
        self.cold.read(self.queue, id);
        self.queue.payload(id).cloned().unwrap_or_default()
    }

    /// Bytes that a message takes in a reply, at most.
    fn told_bytes(&self, id: MessageId, with_meta: bool) -> usize {
        let payload = self.queue.message(id).map_or(0, Slot::payload_len);
        let meta = || {
            let names =
                |extra: &Extra| extra.group.as_ref().map_or(0, |group| group.len()) + extra.reason.len();
            META_BYTES + self.queue.extra(id).map_or(0, names)
        };
        TOLD_BYTES + self.key.len() + payload + if with_meta { meta() } else { 0 }
    }

    fn backoff(&self, id: MessageId) -> Millis {
        let attempt = self.queue.message(id).map_or(0, Slot::attempt);
        self.queue.attributes().backoff.wait(attempt, id, self.applied.0)
    }

    /// Hands a message out.
    fn hand_out(&mut self, id: MessageId, request: &PopRequest, by: By<'_>) -> Option<Popped> {
        let take = request.take(self.queue.attributes().lease);
        let slot = *self.queue.message(id)?;
        let extra = self.queue.extra(id).cloned().unwrap_or_default();
        let payload = self.payload(id);
        self.queue.counters.delivered += 1;
        self.queue.counters.redelivered += u64::from(slot.delivery() > 0);
        let before = self.queue.life(id)?;
        let at_once = rules::step(before, Event::HandOut(take), self.queue.policy(id), by.now);
        let life = match at_once {
            Step::Becomes(life) => {
                let lease = Lease {
                    set_until: match life.state {
                        MessageState::Leased { set_until, .. } => set_until,
                        _ => by.now,
                    },
                    since: by.now,
                    consumer: request.consumer.clone(),
                    node: by.node,
                };
                self.save(id);
                self.set_life(id, life, Some(lease), by.now);
                self.trace_as(id, TraceKind::Delivered, by, &request.consumer, b"");
                self.touch(id);
                life
            }
            Step::Finished(life) => {
                self.save(id);
                self.set_life(id, life, None, by.now);
                self.trace_as(id, TraceKind::Delivered, by, &request.consumer, b"");
                self.finish(id, by, &request.consumer);
                life
            }
            Step::Unchanged | Step::Dies(..) => return None,
        };
        Some(Popped {
            queue: self.key.into(),
            receipt: Receipt { id, delivery: life.delivery },
            attempt: life.attempt,
            payload,
            meta: PoppedMeta {
                priority: slot.priority(),
                group: extra.group,
                age: slot.pushed_at().until(by.now),
                lease: match take {
                    Take::Lease(lease) => lease,
                    Take::Remove => Millis(0),
                },
                last_reason: extra.reason,
            },
        })
    }

    /// Takes one message through one event.
    fn step(&mut self, id: MessageId, event: Event, by: By<'_>) -> Taken {
        let Some(before) = self.queue.life(id) else { return Taken::Nothing };
        let event = self.unless_unheard(id, before, event, by.now);
        let step = rules::step(before, event, self.queue.policy(id), by.now);
        match step {
            Step::Unchanged => return Taken::Nothing,
            Step::Becomes(after) => {
                self.save(id);
                let consumer = self.queue.lease(id).map(|lease| lease.consumer.clone()).unwrap_or_default();
                if event == Event::Redrive {
                    // It would die again at once of the lifetime that it died of.
                    self.queue.end_lifetime(id);
                }
                self.set_life(id, after, None, by.now);
                self.note_edge(id, before, event, &consumer, by);
            }
            Step::Dies(after, death) => {
                self.save(id);
                let consumer = self.queue.lease(id).map(|lease| lease.consumer.clone()).unwrap_or_default();
                self.note_edge(id, before, event, &consumer, by);
                self.set_life(id, after, None, by.now);
                self.queue.counters.died += 1;
                let reason = match death {
                    Death::MaxDeliver => &b"maxdeliver"[..],
                    Death::Fatal => b"fatal",
                    Death::Expired => b"expired",
                };
                // What the consumer said last is worth more than our word, but not for a lifetime.
                let is_said = self.queue.extra(id).is_some_and(|extra| !extra.reason.is_empty());
                if !is_said || death == Death::Expired {
                    self.queue.set_reason(id, reason);
                }
                let told = self.queue.extra(id).map(|extra| extra.reason.clone()).unwrap_or_default();
                self.trace_as(id, TraceKind::Dead, by, b"", &told);
                self.dying.push(id);
            }
            Step::Finished(_) => {
                self.save(id);
                let consumer = self.queue.lease(id).map(|lease| lease.consumer.clone()).unwrap_or_default();
                self.finish(id, by, &consumer);
                return Taken::Finished;
            }
        }
        self.touch(id);
        Taken::Changed
    }

    /// A lease that ends before anybody was told of the hand-out ends as if it had been given back.
    fn unless_unheard(&self, id: MessageId, life: Life, event: Event, now: ClusterTime) -> Event {
        let delivery = life.delivery;
        let is_over = matches!(life.state, MessageState::Leased { until, .. } if until <= now);
        if event == Event::TimePasses && is_over && self.handed.is_unheard_message(Receipt { id, delivery }) {
            return Event::Return { delivery, how: Return::Silent { delay: Millis(0) } };
        }
        event
    }

    /// Counts and traces what has happened to a message that goes on.
    fn note_edge(&mut self, id: MessageId, before: Life, event: Event, consumer: &[u8], by: By<'_>) {
        let kind = match event {
            Event::Return { how: Return::Silent { .. }, .. } => {
                self.queue.counters.nacked += 1;
                TraceKind::Returned
            }
            Event::Return { .. } => {
                self.queue.counters.nacked += 1;
                TraceKind::Nacked
            }
            Event::TimePasses => {
                // A delay that is over is not told.
                if !matches!(before.state, MessageState::Leased { .. }) {
                    return;
                }
                self.queue.counters.expired_leases += 1;
                TraceKind::LeaseExpired
            }
            Event::Extend { .. } => TraceKind::Extended,
            Event::Redrive => TraceKind::Redriven,
            Event::Grace(_) | Event::Reschedule { .. } | Event::HandOut(_) | Event::Acknowledge { .. } => {
                return;
            }
        };
        if !by.reason.is_empty() {
            self.queue.set_reason(id, by.reason);
        }
        self.trace_as(id, kind, by, consumer, by.reason);
    }

    /// The work of a message is done: it is gone, and what must be remembered of it is.
    fn finish(&mut self, id: MessageId, by: By<'_>, consumer: &[u8]) {
        self.trace_as(id, TraceKind::Acked, by, consumer, b"");
        let is_leased = self.queue.lease(id).is_some();
        let Some(record) = self.take_out(id, by.now) else { return };
        self.queue.counters.acked += 1;
        if let Some(name) = record.extra.as_ref().and_then(|extra| extra.dedup.as_deref()) {
            self.remember_id(name, id, by.now);
        }
        if is_leased {
            self.queue.remember_until(by.now.after(finished::KEPT));
            let receipt = Receipt { id, delivery: record.slot.delivery() };
            let finish = Finish { receipt, queue: self.queue.number(), at: by.now };
            let forgotten = self.finished.remember(finish, self.ack_memory);
            if let Some(undo) = &mut self.undo {
                undo.finished.forgot(&forgotten);
            }
        }
    }

    /// The message of an ID has left: it is known for DEDUP.
    fn remember_id(&mut self, name: &[u8], id: MessageId, now: ClusterTime) {
        let kept = self.queue.attributes().dedup;
        if kept.0 > 0 {
            self.save_dedup(name);
            self.queue.set_dedup(name, Some(Dedup { id, until: now.after(kept) }));
            self.mark_dedup(name);
        }
    }

    fn delete(&mut self, id: MessageId, by: By<'_>) -> bool {
        if self.queue.message(id).is_none() {
            return false;
        }
        self.save(id);
        self.trace(id, TraceKind::Deleted, by, by.reason);
        self.take_out(id, by.now);
        self.queue.counters.deleted += 1;
        true
    }

    /// Removes all messages together. Those that were never handed out leave no trace.
    fn clear(&mut self, by: By<'_>) -> usize {
        let traced = self.queue.messages_from(MessageId::FIRST).filter(|slot| slot.has(TRACED));
        let traced: Vec<MessageId> = traced.map(Keyed::id).collect();
        for id in traced {
            self.trace(id, TraceKind::Deleted, by, by.reason);
        }
        let removed = self.queue.clear();
        self.queue.counters.deleted += removed as u64;
        let retain = self.queue.attributes().retain;
        self.queue.remember_until(by.now.after(retain));
        self.changes.cleared.push(self.queue.number());
        self.mark_row();
        removed
    }

    /// Goes on with another life, as [`Queue::set_life`] does.
    fn set_life(&mut self, id: MessageId, life: Life, lease: Option<Lease>, now: ClusterTime) {
        self.for_group(id, now, |queue| queue.set_life(id, life, lease, now));
    }

    /// Does something to a message. Who of its group can be handed out by that has not waited before: AGING counts
    /// from now on.
    fn for_group<T>(&mut self, id: MessageId, now: ClusterTime, does: impl FnOnce(&mut Queue) -> T) -> T {
        let group = match self.queue.attributes().aging {
            Millis(0) => None,
            _ => self.queue.extra(id).and_then(|extra| extra.group.clone()),
        };
        let Some(group) = group else { return does(self.queue) };
        let before = self.queue.available_of(&group);
        let done = does(self.queue);
        if let Some(next) = self.queue.available_of(&group).filter(|next| Some(*next) != before) {
            self.save(next);
            self.queue.waits_from(next, now);
            self.touch(next);
        }
        done
    }

    /// Takes a message out, and its rows with it.
    fn take_out(&mut self, id: MessageId, now: ClusterTime) -> Option<Record> {
        self.save(id);
        if let Some(name) = self.queue.extra(id).and_then(|extra| extra.dedup.clone()) {
            self.save_dedup(&name);
        }
        let record = self.for_group(id, now, |queue| queue.take_out(id))?;
        if record.slot.has(STORED) {
            self.changes.gone.push((self.queue.number(), id));
        }
        self.mark_row();
        Some(record)
    }

    fn trace(&mut self, id: MessageId, kind: TraceKind, by: By<'_>, reason: &[u8]) {
        let consumer = self.queue.lease(id).map(|lease| lease.consumer.clone()).unwrap_or_default();
        self.trace_as(id, kind, by, &consumer, reason);
    }

    /// Adds an event to a message's trace. The first one brings PUSHED with it.
    fn trace_as(&mut self, id: MessageId, kind: TraceKind, by: By<'_>, consumer: &[u8], reason: &[u8]) {
        let Some(slot) = self.queue.message_mut(id) else { return };
        let is_end = matches!(kind, TraceKind::Acked | TraceKind::Deleted);
        if slot.delivery() > TRACED_DELIVERIES && !is_end && kind != TraceKind::Dead {
            return;
        }
        let is_first = !slot.has(TRACED);
        slot.flags |= TRACED;
        let slot = *slot;
        let queue = self.queue.number();
        let retain = self.queue.attributes().retain;
        let event = TraceEvent {
            kind,
            index: self.applied.0,
            at: by.now,
            delivery: slot.delivery(),
            attempt: slot.attempt(),
            node: by.node,
            queue,
            consumer: consumer.into(),
            reason: reason.into(),
            forget_at: if is_end { by.now.after(retain) } else { ClusterTime::NEVER },
        };
        if is_end {
            self.queue.remember_until(event.forget_at);
        }
        if is_first {
            self.traces.add(self.applied, id, &pushed_event(id, &slot, queue));
        }
        self.traces.add(self.applied, id, &event);
    }

    /// The message is about to change, or to come.
    fn save(&mut self, id: MessageId) {
        if let Some(undo) = &mut self.undo {
            undo.save_message(self.db, self.key, id, self.queue.record(id));
        }
    }

    /// What is known of an ID is about to change.
    fn save_dedup(&mut self, name: &[u8]) {
        if let Some(undo) = &mut self.undo {
            undo.save_dedup(self.db, self.key, name, self.queue.dedup(name));
        }
    }

    /// A message of the queue has changed.
    fn touch(&mut self, id: MessageId) {
        self.mark_row();
        let number = self.queue.number();
        let Some(slot) = self.queue.message_mut(id) else { return };
        if !slot.has(DIRTY) {
            slot.flags |= DIRTY;
            self.changes.messages.push((number, id));
        }
    }

    /// Lists the head row for the next flush, once.
    fn mark_row(&mut self) {
        if self.is_at_rest {
            self.changes.note_rest(self.queue, self.applied);
            return;
        }
        let is_listed = *self.row_changed > self.changes.since && *self.row_mark == LISTED;
        *self.row_changed = self.applied;
        if !is_listed {
            *self.row_mark = LISTED;
            self.changes.keys.push((self.db, self.key.into()));
        }
    }

    fn mark_dedup(&mut self, name: &[u8]) {
        self.changes.dedups.push((self.queue.number(), name.into()));
    }
}

/// The queue of a name, to be changed, whether it is a key or at rest.
pub(super) fn queue_row<'a>(
    databases: &'a mut [Keyspace],
    resting: &'a mut [Keyspace],
    db: DbIndex,
    key: &[u8],
) -> Option<&'a mut Queue> {
    let row = match databases.get_mut(usize::from(db))?.get_mut(key) {
        Some(row) if matches!(row.object, Object::Queue(_)) => row,
        _ => resting.get_mut(usize::from(db))?.get_mut(key)?,
    };
    match &mut row.object {
        Object::Queue(queue) => Some(queue),
        Object::String | Object::Lock(_) => None,
    }
}

/// How a message's trace begins.
#[must_use]
pub fn pushed_event(id: MessageId, slot: &Slot, queue: u64) -> TraceEvent {
    TraceEvent {
        kind: TraceKind::Pushed,
        index: id.index,
        at: slot.pushed_at(),
        delivery: 0,
        attempt: 0,
        node: 0,
        queue,
        consumer: Box::default(),
        reason: Box::default(),
        forget_at: ClusterTime::NEVER,
    }
}

impl State {
    /// Something may be available in this queue that was not before.
    fn note_available(&mut self, db: DbIndex, key: &[u8]) {
        if !self.pop_waits.is_empty() {
            self.available.insert((db, key.into()));
        }
    }

    /// QPOPs that wait.
    #[must_use]
    pub fn pop_waits(&self) -> &PopWaits {
        &self.pop_waits
    }

    /// The name of a queue by its number.
    #[must_use]
    pub fn queue_name(&self, number: u64) -> Option<&KeyName> {
        self.queue_names.get(&number)
    }

    /// The queue of a number.
    pub(super) fn queue_of_number(&self, number: u64) -> Option<&Queue> {
        let (db, key) = self.queue_names.get(&number)?;
        queue_at(self, *db, key).flatten().or_else(|| self.queue_at_rest(*db, key))
    }

    /// The queue of a number, to be changed.
    pub(super) fn queue_of(&mut self, number: u64) -> Option<&mut Queue> {
        let (db, key) = self.queue_names.get(&number)?;
        queue_row(&mut self.databases, &mut self.resting, *db, key)
    }

    /// The queue of a name that is at rest.
    pub(super) fn queue_at_rest(&self, db: DbIndex, key: &[u8]) -> Option<&Queue> {
        match self.resting.get(usize::from(db))?.get(key)?.object() {
            Object::Queue(queue) => Some(queue),
            Object::String | Object::Lock(_) => None,
        }
    }

    /// The key holds its queue no more, which is at rest from now on.
    pub(super) fn lay_queue_to_rest(&mut self, db: DbIndex, key: &[u8]) {
        self.save_row(db, key);
        let Some(row) = self.databases[usize::from(db)].remove(key) else { return };
        self.move_queue(db, row, true);
    }

    /// The queue that is at rest under a key comes back, in place of nothing. False when there is none.
    pub(super) fn wake_queue(&mut self, db: DbIndex, key: &[u8]) -> bool {
        self.save_row(db, key);
        let Some(row) = self.resting[usize::from(db)].remove(key) else { return false };
        self.move_queue(db, row, false);
        true
    }

    /// Both of a queue's rows change, since one is deleted and the other written; which, the flush sees.
    fn move_queue(&mut self, db: DbIndex, mut row: Box<Row>, to_rest: bool) {
        let was_pending = self.changes.has(&row);
        row.changed = self.meta.applied;
        self.changes.note(db, &mut row, was_pending);
        if let Object::Queue(queue) = &mut row.object {
            self.changes.note_rest(queue, self.meta.applied);
        }
        let spaces = if to_rest { &mut self.resting } else { &mut self.databases };
        spaces[usize::from(db)].insert_boxed(row);
    }

    /// Nothing need be told any more of a queue that is at rest.
    pub(super) fn forget_queue(&mut self, db: DbIndex, key: &[u8]) {
        self.save_row(db, key);
        let Some(mut row) = self.resting[usize::from(db)].remove(key) else { return };
        self.unindex_row(db, &row);
        if let Object::Queue(queue) = &mut row.object {
            self.changes.note_rest(queue, self.meta.applied);
            self.forget_rows_of(queue);
        }
    }

    /// Messages that were acknowledged of late.
    #[must_use]
    pub fn finished(&self) -> &Finished {
        &self.finished
    }

    /// The payloads of messages, wherever they are, read together.
    pub fn payloads(
        &self,
        queue: &Queue,
        ids: &[MessageId],
    ) -> Result<Vec<Bytes>, crate::storage::StorageError> {
        let cold: Vec<MessageId> = ids.iter().copied().filter(|id| queue.payload(*id).is_none()).collect();
        let mut read = self.cold.fetch(queue, &cold)?.into_iter();
        let payload = |id: &MessageId| {
            queue
                .payload(*id)
                .cloned()
                .or_else(|| read.next().map(|(_, payload)| payload))
                .unwrap_or_default()
        };
        Ok(ids.iter().map(payload).collect())
    }

    /// What has happened to a message, if it is or was in this queue and is remembered.
    pub fn trace(
        &self,
        queue: &Queue,
        id: MessageId,
        now: ClusterTime,
    ) -> Result<Vec<TraceEvent>, crate::storage::StorageError> {
        let row = self.cold.trace(id)?;
        let mut events = self.traces.events(id, row.as_deref()).map_err(cold::corrupt)?;
        let slot = queue.message(id);
        if let (Some(slot), true) = (slot, events.is_empty()) {
            events.push(pushed_event(id, slot, queue.number()));
        }
        let is_here = slot.is_some() || events.iter().any(|event| event.queue == queue.number());
        let is_forgotten = events.last().is_some_and(|event| event.forget_at <= now);
        if !is_here || is_forgotten {
            events.clear();
        }
        Ok(events)
    }
}
