//! One queue in memory: its messages and the orders they stand in. Nothing here knows of rows or of the log.
//!
//! A message is a [`Slot`] of 48 bytes and, while it is ready, an id of twelve in the order of its priority. What few
//! messages have is kept beside: a lease while in flight; group, ID, lifetime and reason where there are any; the
//! payload while it is in memory.
//!
//! ```text
//! READY, no group, or first of its group and none of it in flight    levels[priority]   can be handed out
//! READY, behind another one of its group                             held
//! LEASED                                                             leases, timers
//! DELAYED                                                            delayed, timers
//! DEAD                                                               dead
//! ```

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::state::expiry::Track;
use crate::state::queues::Attributes;
use crate::state::queues::Life;
use crate::state::queues::MessageId;
use crate::state::queues::MessageState;
use crate::state::queues::chunks::Chunks;
use crate::state::queues::chunks::Keyed;
use crate::state::queues::chunks::PackedId;
use crate::state::queues::chunks::tree_bytes;
use crate::state::queues::rules::Policy;
use crate::types::ClusterTime;
use crate::types::LogIndex;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_bool;
use crate::types::codec::put_bytes;
use crate::types::codec::put_varint;
use crate::types::planted::Bug;
use crate::types::planted::is_planted;

/// What a payload in memory takes besides its bytes: its place in the tree, its allocation, and where it is listed until
/// it is on disk.
const HOT_OVERHEAD: usize = 128;

/// First byte of an encoded queue head and of an encoded message.
const FORMAT: u8 = 2;

/// Priorities there are, 0 to 9.
pub const PRIORITIES: usize = 10;

const DELAYED: u8 = 0;
const READY: u8 = 1;
const LEASED: u8 = 2;
const DEAD: u8 = 3;

/// The message is listed in the changes that wait for the next flush.
pub(in crate::state) const DIRTY: u8 = 1;
/// Its rows are on disk, or on their way there.
pub(in crate::state) const STORED: u8 = 2;
/// Its trace has begun.
pub(in crate::state) const TRACED: u8 = 4;

/// What every message has, in memory.
#[derive(Debug, Clone, Copy)]
#[repr(C, packed(4))]
pub struct Slot {
    index: u64,
    /// When it is due, or when its lease ends; of a message that is ready, since when it waits to be handed out.
    at: u64,
    pushed_at: u64,
    n: u32,
    delivery: u32,
    attempt: u32,
    len: u32,
    hash: u32,
    state: u8,
    priority: u8,
    pub(in crate::state) flags: u8,
}

impl Keyed for Slot {
    fn id(&self) -> MessageId {
        MessageId { index: self.index, n: self.n }
    }
}

impl Slot {
    /// Length of the payload, in bytes.
    #[must_use]
    pub fn payload_len(&self) -> usize {
        self.len as usize
    }

    /// When it was pushed.
    #[must_use]
    pub fn pushed_at(&self) -> ClusterTime {
        ClusterTime(self.pushed_at)
    }

    /// 0 to 9; higher ones go first.
    #[must_use]
    pub fn priority(&self) -> u8 {
        self.priority
    }

    /// Since when it can be handed out, if it can: AGING counts from here.
    #[must_use]
    pub fn waits_since(&self) -> Option<ClusterTime> {
        (self.state == READY).then_some(ClusterTime(self.at))
    }

    /// How often it was handed out.
    #[must_use]
    pub fn delivery(&self) -> u32 {
        self.delivery
    }

    /// How many of these count.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    pub(in crate::state) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// True when these are the bytes that were pushed, as far as a short hash can tell.
    pub(super) fn is_of(&self, payload: &[u8]) -> bool {
        self.len as usize == payload.len() && self.hash == hash(payload)
    }
}

fn hash(payload: &[u8]) -> u32 {
    xxh3_64(payload) as u32
}

/// What a message in flight has besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Where the hand-out or its consumer set the end.
    pub set_until: ClusterTime,
    /// When it was handed out.
    pub since: ClusterTime,
    /// As QPOP named it; may be empty.
    pub consumer: Box<[u8]>,
    /// The node whose client has it.
    pub node: u64,
}

/// What some messages have besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extra {
    pub group: Option<Box<[u8]>>,
    /// The ID that it is known by in its queue.
    pub dedup: Option<Box<[u8]>>,
    /// The ID that it was known by where it died. In a dead letter queue it is not: others may come there with the
    /// same one.
    pub carried: Option<Box<[u8]>>,
    /// When its lifetime is over; NEVER when it has none.
    pub expires: ClusterTime,
    /// Why it came back or died last.
    pub reason: Box<[u8]>,
}

impl Default for Extra {
    fn default() -> Extra {
        Extra { group: None, dedup: None, carried: None, expires: ClusterTime::NEVER, reason: Box::default() }
    }
}

impl Extra {
    /// Its ID, whether or not it is known by it where it is.
    #[must_use]
    pub fn id(&self) -> Option<&[u8]> {
        self.dedup.as_deref().or(self.carried.as_deref())
    }
}

/// A message with everything it has.
#[derive(Debug, Clone)]
pub struct Record {
    pub(in crate::state) slot: Slot,
    pub(in crate::state) lease: Option<Lease>,
    pub(in crate::state) extra: Option<Box<Extra>>,
    /// `None`: on disk only.
    pub(in crate::state) payload: Option<Bytes>,
}

impl Record {
    /// A message that is pushed now.
    pub(super) fn new(
        id: MessageId,
        life: Life,
        priority: u8,
        payload: Bytes,
        extra: Extra,
        now: ClusterTime,
    ) -> Record {
        let slot = Slot {
            index: id.index,
            at: now.0,
            pushed_at: now.0,
            n: id.n,
            delivery: 0,
            attempt: 0,
            len: u32::try_from(payload.len()).expect("arguments are bounded"),
            hash: hash(&payload),
            state: READY,
            priority,
            flags: 0,
        };
        let extra = (extra != Extra::default()).then(|| Box::new(extra));
        let mut record = Record { slot, lease: None, extra, payload: Some(payload) };
        record.slot.set_life(life, now);
        record
    }

    /// Reads what [`Queue::encode_message`] wrote, to the end of the value. The payload is elsewhere.
    pub fn decode(id: MessageId, reader: &mut Reader<'_>) -> Result<Record, CodecError> {
        if reader.u8()? != FORMAT {
            return Err(CodecError("a message of an unknown format"));
        }
        let (delivery, attempt, pushed_at) = (reader.varint32()?, reader.varint32()?, reader.varint()?);
        let (len, hash) = (reader.varint32()?, reader.varint32()?);
        let (priority, state, is_traced) = (reader.u8()?, reader.u8()?, reader.bool()?);
        if usize::from(priority) >= PRIORITIES || state > DEAD {
            return Err(CodecError("a message in an unknown state"));
        }
        let at = reader.varint()?;
        let lease = match state {
            LEASED => Some(Lease {
                set_until: ClusterTime(reader.varint()?),
                since: ClusterTime(reader.varint()?),
                node: reader.varint()?,
                consumer: reader.bytes()?.into(),
            }),
            _ => None,
        };
        let extra = if reader.bool()? {
            let mut optional = || -> Result<Option<Box<[u8]>>, CodecError> {
                Ok(if reader.bool()? { Some(reader.bytes()?.into()) } else { None })
            };
            let (group, dedup, carried) = (optional()?, optional()?, optional()?);
            let expires = ClusterTime(reader.varint()?);
            Some(Box::new(Extra { group, dedup, carried, expires, reason: reader.bytes()?.into() }))
        } else {
            None
        };
        if !reader.is_empty() {
            return Err(CodecError("a message with a tail"));
        }
        let flags = STORED | if is_traced { TRACED } else { 0 };
        let MessageId { index, n } = id;
        let slot = Slot { index, at, pushed_at, n, delivery, attempt, len, hash, state, priority, flags };
        Ok(Record { slot, lease, extra, payload: None })
    }
}

impl Slot {
    fn set_life(&mut self, life: Life, now: ClusterTime) {
        (self.delivery, self.attempt) = (life.delivery, life.attempt);
        (self.state, self.at) = match life.state {
            MessageState::Delayed { due } => (DELAYED, due.0),
            MessageState::Ready => (READY, self.waits_since().unwrap_or(now).0),
            MessageState::Leased { until, .. } => (LEASED, until.0),
            MessageState::Dead => (DEAD, 0),
        };
    }
}

/// What has happened in a queue since it was created. `pushed` is what is there, acknowledged, deleted and moved away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Messages that came: pushed, or moved here.
    pub pushed: u64,
    /// Hand-outs, repeated ones included.
    pub delivered: u64,
    /// Hand-outs of messages that had been handed out before.
    pub redelivered: u64,
    /// Messages finished, by QACK or by NOACK.
    pub acked: u64,
    /// Hand-outs that consumers gave back by QNACK.
    pub nacked: u64,
    /// Leases that ended by time.
    pub expired_leases: u64,
    /// QPUSHes whose ID was known.
    pub duplicates: u64,
    /// Messages that died here.
    pub died: u64,
    /// Messages deleted by QDEL.
    pub deleted: u64,
    /// Messages that went to another queue.
    pub moved: u64,
}

impl Counters {
    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Counters) -> Counters {
        Counters {
            pushed: self.pushed + other.pushed,
            delivered: self.delivered + other.delivered,
            redelivered: self.redelivered + other.redelivered,
            acked: self.acked + other.acked,
            nacked: self.nacked + other.nacked,
            expired_leases: self.expired_leases + other.expired_leases,
            duplicates: self.duplicates + other.duplicates,
            died: self.died + other.died,
            deleted: self.deleted + other.deleted,
            moved: self.moved + other.moved,
        }
    }

    fn all(&self) -> [u64; 10] {
        let c = self;
        [
            c.pushed,
            c.delivered,
            c.redelivered,
            c.acked,
            c.nacked,
            c.expired_leases,
            c.duplicates,
            c.died,
            c.deleted,
            c.moved,
        ]
    }
}

/// Something that happens in a queue by time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// A message's delay or its lease ends.
    Message(MessageId),
    /// A message's lifetime ends.
    Lifetime(MessageId),
    /// The ID of a finished message may be used again.
    Dedup(Box<[u8]>),
    /// Nothing need be remembered of a queue that is gone.
    Forget,
}

impl Timer {
    /// Whether somebody waits for it. Messages come back, and come due, for consumers; that something is forgotten, or
    /// put aside before anybody had it, can wait.
    fn track(&self) -> Track {
        match self {
            Timer::Message(_) => Track::Awaited,
            Timer::Lifetime(_) | Timer::Dedup(_) | Timer::Forget => Track::Idle,
        }
    }
}

/// What happens in a queue by time, by track, earliest first.
#[derive(Debug, Default, PartialEq, Eq)]
struct Timers {
    tracks: [BTreeSet<(ClusterTime, Timer)>; 2],
}

impl Timers {
    fn on(&self, track: Track) -> &BTreeSet<(ClusterTime, Timer)> {
        &self.tracks[track as usize]
    }

    fn insert(&mut self, at: ClusterTime, timer: Timer) {
        self.tracks[timer.track() as usize].insert((at, timer));
    }

    fn remove(&mut self, at: ClusterTime, timer: Timer) {
        self.tracks[timer.track() as usize].remove(&(at, timer));
    }

    fn len(&self) -> usize {
        self.tracks.iter().map(BTreeSet::len).sum()
    }
}

/// The ID of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dedup {
    pub id: MessageId,
    /// Until when it is remembered; NEVER while the message is there.
    pub until: ClusterTime,
}

/// Messages that go one after the other.
#[derive(Debug, Default)]
struct Group {
    /// Those that are not dead.
    members: BTreeSet<MessageId>,
    in_flight: u32,
    /// The one that stands in `levels`.
    available: Option<MessageId>,
}

/// The states, for counting and listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateName {
    Ready,
    Delayed,
    Leased,
    Dead,
}

impl StateName {
    /// Every state, as commands name it.
    pub const ALL: [(&'static str, StateName); 4] = [
        ("READY", StateName::Ready),
        ("DELAYED", StateName::Delayed),
        ("LEASED", StateName::Leased),
        ("DEAD", StateName::Dead),
    ];

    /// As commands name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        StateName::ALL.iter().find(|(_, state)| *state == self).map_or("", |(name, _)| name)
    }
}

/// Messages that can be handed out, by priority: as many levels as there ever were.
#[derive(Debug, Default)]
struct Levels(Vec<Chunks<PackedId>>);

impl Levels {
    fn insert(&mut self, priority: u8, id: MessageId) {
        let priority = usize::from(priority);
        if self.0.len() <= priority {
            self.0.reserve_exact(priority + 1 - self.0.len());
            self.0.resize_with(priority + 1, Chunks::default);
        }
        self.0[priority].insert(id.into());
    }

    fn remove(&mut self, priority: u8, id: MessageId) {
        if let Some(level) = self.0.get_mut(usize::from(priority)) {
            level.remove(id);
        }
    }

    /// From the lowest priority on, with it.
    fn iter(&self) -> impl DoubleEndedIterator<Item = (usize, &Chunks<PackedId>)> {
        self.0.iter().enumerate()
    }

    fn len(&self) -> usize {
        self.0.iter().map(Chunks::len).sum()
    }
}

/// A queue with its messages.
///
/// One without messages and configuration is *at rest*: it is no key, and what is still to be told of it (its IDs, its
/// traces, its receipts, its counters) stays under its number until its time is over or a queue of its name comes back.
#[derive(Debug)]
pub struct Queue {
    /// Names the queue for ever: another one of the same name has another.
    number: u64,
    messages: Chunks<Slot>,
    levels: Levels,
    held: BTreeSet<MessageId>,
    delayed: BTreeSet<MessageId>,
    dead: BTreeSet<MessageId>,
    leases: BTreeMap<MessageId, Lease>,
    extras: BTreeMap<MessageId, Box<Extra>>,
    groups: BTreeMap<Box<[u8]>, Group>,
    dedup: BTreeMap<Box<[u8]>, Dedup>,
    finished_dedups: usize,
    timers: Timers,
    /// Payloads that are in memory.
    payloads: BTreeMap<MessageId, Bytes>,
    /// Bytes of them.
    hot_bytes: usize,
    /// Bytes of the payloads of messages that are not dead, wherever they are.
    live_bytes: u64,
    /// Of all.
    bytes: u64,
    pub(in crate::state) counters: Counters,
    attributes: Attributes,
    /// Until when something is to be told of messages that are gone, besides their IDs.
    remembered_until: ClusterTime,
    /// The entry in which it was listed as one that is at rest, or was; see `changes`.
    pub(in crate::state) rest_noted: LogIndex,
    /// Where the group's index of deadlines has the queue, by track: at its first timer or before.
    pub(in crate::state) indexed_at: [ClusterTime; 2],
}

impl Queue {
    /// An empty queue.
    #[must_use]
    pub fn new(number: u64) -> Queue {
        Queue {
            number,
            messages: Chunks::default(),
            levels: Levels::default(),
            held: BTreeSet::new(),
            delayed: BTreeSet::new(),
            dead: BTreeSet::new(),
            leases: BTreeMap::new(),
            extras: BTreeMap::new(),
            groups: BTreeMap::new(),
            dedup: BTreeMap::new(),
            finished_dedups: 0,
            timers: Timers::default(),
            payloads: BTreeMap::new(),
            hot_bytes: 0,
            live_bytes: 0,
            bytes: 0,
            counters: Counters::default(),
            attributes: Attributes::default(),
            remembered_until: ClusterTime(0),
            rest_noted: LogIndex(0),
            indexed_at: [ClusterTime::NEVER; 2],
        }
    }

    // ---- looking ----------------------------------------------------------------------------------

    /// Names the queue for ever.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

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

    /// True when there is nothing but what is remembered: no message, no configuration.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.messages.is_empty() && self.attributes == Attributes::default()
    }

    /// Messages in a state.
    #[must_use]
    pub fn count(&self, state: StateName) -> usize {
        match state {
            StateName::Ready => self.levels.len() + self.held.len(),
            StateName::Delayed => self.delayed.len(),
            StateName::Leased => self.leases.len(),
            StateName::Dead => self.dead.len(),
        }
    }

    /// Messages that are not dead.
    #[must_use]
    pub fn live_len(&self) -> usize {
        self.len() - self.dead.len()
    }

    /// Bytes of all payloads.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of the payloads of messages that are not dead.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// What has happened so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What QCONFIG set.
    #[must_use]
    pub fn attributes(&self) -> &Attributes {
        &self.attributes
    }

    /// One message.
    #[must_use]
    pub fn message(&self, id: MessageId) -> Option<&Slot> {
        self.messages.get(id)
    }

    pub(in crate::state) fn message_mut(&mut self, id: MessageId) -> Option<&mut Slot> {
        self.messages.get_mut(id)
    }

    /// Every message from this id on.
    pub fn messages_from(&self, id: MessageId) -> impl Iterator<Item = &Slot> {
        self.messages.from(id)
    }

    /// The messages of a state from this id on, in order.
    pub fn ids_from<'a>(
        &'a self,
        state: StateName,
        id: MessageId,
    ) -> Box<dyn Iterator<Item = MessageId> + 'a> {
        match state {
            StateName::Ready => {
                Box::new(self.messages.from(id).filter(|slot| slot.state == READY).map(Keyed::id))
            }
            StateName::Delayed => Box::new(self.delayed.range(id..).copied()),
            StateName::Leased => Box::new(self.leases.range(id..).map(|(id, _)| *id)),
            StateName::Dead => Box::new(self.dead.range(id..).copied()),
        }
    }

    /// A message's state and counts.
    #[must_use]
    pub fn life(&self, id: MessageId) -> Option<Life> {
        let slot = self.messages.get(id)?;
        let at = ClusterTime(slot.at);
        let state = match slot.state {
            DELAYED => MessageState::Delayed { due: at },
            LEASED => {
                let set_until = self.leases.get(&id).map_or(at, |lease| lease.set_until);
                MessageState::Leased { until: at, set_until }
            }
            DEAD => MessageState::Dead,
            _ => MessageState::Ready,
        };
        Some(Life { state, delivery: slot.delivery, attempt: slot.attempt })
    }

    /// Who has a message.
    #[must_use]
    pub fn lease(&self, id: MessageId) -> Option<&Lease> {
        self.leases.get(&id)
    }

    /// Every message in flight.
    pub fn leases(&self) -> impl Iterator<Item = (MessageId, &Lease)> {
        self.leases.iter().map(|(id, lease)| (*id, lease))
    }

    /// What a message has besides.
    #[must_use]
    pub fn extra(&self, id: MessageId) -> Option<&Extra> {
        self.extras.get(&id).map(Box::as_ref)
    }

    /// What is laid down for a message.
    #[must_use]
    pub fn policy(&self, id: MessageId) -> Policy {
        let expires = self.extra(id).map_or(ClusterTime::NEVER, |extra| extra.expires);
        Policy { max_deliver: self.attributes.max_deliver, expires }
    }

    /// The message with this ID, or that had it and is remembered.
    #[must_use]
    pub fn dedup(&self, name: &[u8]) -> Option<Dedup> {
        self.dedup.get(name).copied()
    }

    /// The IDs of finished messages that are remembered.
    pub fn finished_dedups(&self) -> impl Iterator<Item = (&[u8], Dedup)> {
        self.dedup
            .iter()
            .filter(|(_, dedup)| dedup.until != ClusterTime::NEVER)
            .map(|(name, d)| (&**name, *d))
    }

    /// Ready messages of each priority, those that can be handed out only.
    #[must_use]
    pub fn by_priority(&self) -> [usize; PRIORITIES] {
        std::array::from_fn(|priority| self.levels.0.get(priority).map_or(0, Chunks::len))
    }

    /// The payload of a message, if it is in memory.
    #[must_use]
    pub fn payload(&self, id: MessageId) -> Option<&Bytes> {
        self.payloads.get(&id)
    }

    /// True when all payloads are in memory.
    #[must_use]
    pub fn is_hot(&self) -> bool {
        self.payloads.len() == self.messages.len()
    }

    /// When the next thing happens by time; NEVER when nothing does.
    #[must_use]
    pub fn earliest_timer(&self) -> ClusterTime {
        self.earliest_on(Track::Awaited).min(self.earliest_on(Track::Idle))
    }

    /// The same of one track.
    #[must_use]
    pub fn earliest_on(&self, track: Track) -> ClusterTime {
        match self.timers.on(track).first() {
            Some((at, _)) => *at,
            None if track == Track::Idle && self.is_at_rest() => self.remembered_until,
            None => ClusterTime::NEVER,
        }
    }

    /// What is due first on a track.
    #[must_use]
    pub(super) fn due(&self, track: Track, now: ClusterTime) -> Option<Timer> {
        if self.earliest_on(track) > now {
            return None;
        }
        Some(self.timers.on(track).first().map_or(Timer::Forget, |(_, timer)| timer.clone()))
    }

    /// Messages in flight whose lease ends before this time.
    pub(super) fn leases_before(&self, end: ClusterTime) -> Vec<MessageId> {
        let soon = self.timers.on(Track::Awaited).iter().take_while(|(at, _)| *at < end);
        let leased = soon.filter_map(|(_, timer)| match timer {
            Timer::Message(id) if self.leases.contains_key(id) => Some(*id),
            _ => None,
        });
        leased.collect()
    }

    /// The message that is handed out next, if one can be.
    #[must_use]
    pub fn next_available(&self, now: ClusterTime) -> Option<MessageId> {
        let attributes = &self.attributes;
        let is_busy = attributes.max_leased != 0 && self.leases.len() as u64 >= attributes.max_leased;
        if attributes.pause.stops_pops() || is_busy {
            return None;
        }
        let mut firsts = self
            .levels
            .iter()
            .rev()
            .filter_map(|(priority, level)| level.first().map(|first| (priority as u64, first.id())));
        if attributes.aging.0 == 0 {
            return firsts.next().map(|(_, id)| id);
        }
        // Within a priority ids decide, whoever waits longer: the first stands for its priority.
        let rank = |(priority, id): (u64, MessageId)| {
            let since = self.messages.get(id).and_then(Slot::waits_since).unwrap_or(now);
            (priority + since.until(now).0 / attributes.aging.0, std::cmp::Reverse(id))
        };
        firsts.max_by_key(|first| rank(*first)).map(|(_, id)| id)
    }

    /// Messages that are likely to be handed out next, in order.
    pub fn upcoming(&self) -> impl Iterator<Item = MessageId> {
        self.levels.iter().rev().flat_map(|(_, level)| level.iter()).map(Keyed::id)
    }

    /// The message of a group that can be handed out, if one can.
    #[must_use]
    pub fn available_of(&self, group: &[u8]) -> Option<MessageId> {
        self.groups.get(group)?.available
    }

    /// When the oldest message that is ready was pushed.
    #[must_use]
    pub fn oldest_ready(&self) -> Option<ClusterTime> {
        let firsts = self.levels.iter().filter_map(|(_, level)| level.first().map(Keyed::id));
        let first = firsts.chain(self.held.first().copied()).min()?;
        self.messages.get(first).map(Slot::pushed_at)
    }

    /// When the oldest message in flight was pushed.
    #[must_use]
    pub fn oldest_leased(&self) -> Option<ClusterTime> {
        let (first, _) = self.leases.first_key_value()?;
        self.messages.get(*first).map(Slot::pushed_at)
    }

    /// About how many bytes the queue and its messages take besides its row and its key, payloads included wherever
    /// they are. Told from what it holds alone, not from what happens to be in memory: the same on every replica.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        const NAME: usize = 32;
        let id = size_of::<MessageId>();
        let highest = self.levels.iter().rev().find(|(_, level)| !level.is_empty());
        let levels = highest.map_or(0, |(priority, level)| (priority + 1) * size_of_val(level));
        let ready: usize = self.levels.iter().map(|(_, level)| level.memory_bytes()).sum();
        let orders = [self.held.len(), self.delayed.len(), self.dead.len()];
        let members: usize = self.groups.values().map(|group| tree_bytes(group.members.len(), id)).sum();
        let payloads = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        size_of::<Queue>()
            + self.messages.memory_bytes()
            + levels
            + ready
            + orders.into_iter().map(|items| tree_bytes(items, id)).sum::<usize>()
            + tree_bytes(self.leases.len(), size_of::<(MessageId, Lease)>())
            + tree_bytes(self.extras.len(), size_of::<(MessageId, Box<Extra>)>())
            + self.extras.len() * (size_of::<Extra>() + NAME)
            + tree_bytes(self.groups.len(), size_of::<(Box<[u8]>, Group)>() + NAME)
            + members
            + tree_bytes(self.dedup.len(), size_of::<(Box<[u8]>, Dedup)>())
            + self.dedup.len() * NAME
            + tree_bytes(self.timers.len(), size_of::<(ClusterTime, Timer)>())
            + self.finished_dedups * NAME
            + tree_bytes(self.len(), size_of::<(MessageId, Bytes)>())
            + self.len() * NAME
            + payloads
    }

    // ---- changing ---------------------------------------------------------------------------------

    /// Adds a message, in the place of one of the same id if there is one.
    pub(in crate::state) fn put_in(&mut self, record: Record) {
        let Record { slot, lease, extra, payload } = record;
        let id = slot.id();
        self.take_out(id);
        self.bytes += u64::from(slot.len);
        self.messages.insert(slot);
        if let Some(lease) = lease {
            self.leases.insert(id, lease);
        }
        if let Some(extra) = extra {
            if let Some(name) = &extra.dedup {
                self.set_dedup(name, Some(Dedup { id, until: ClusterTime::NEVER }));
            }
            self.extras.insert(id, extra);
        }
        if let Some(payload) = payload {
            self.keep_payload(id, payload);
        }
        self.enter(id);
    }

    /// Puts a message back as it was, and lists it for the next flush: the caller does.
    pub(in crate::state) fn restore(&mut self, mut record: Record) {
        record.slot.flags |= DIRTY;
        self.put_in(record);
    }

    /// Takes a message out, with everything it has.
    pub(in crate::state) fn take_out(&mut self, id: MessageId) -> Option<Record> {
        self.messages.get(id)?;
        self.leave(id);
        let slot = self.messages.remove(id)?;
        self.bytes -= u64::from(slot.len);
        let extra = self.extras.remove(&id);
        if let Some(name) = extra.as_ref().and_then(|extra| extra.dedup.as_deref())
            && self.dedup.get(name).is_some_and(|dedup| dedup.id == id)
        {
            self.set_dedup(name, None);
        }
        let lease = self.leases.remove(&id);
        let payload = self.drop_payload(id);
        Some(Record { slot, lease, extra, payload })
    }

    /// Takes all messages out and forgets what they had; says how many there were.
    pub(in crate::state) fn clear(&mut self) -> usize {
        let finished = self.finished_dedups().map(|(name, dedup)| (Box::from(name), dedup)).collect();
        let removed = self.len();
        let empty = Queue::new(self.number);
        let old = std::mem::replace(self, empty);
        self.counters = old.counters;
        self.remembered_until = old.remembered_until;
        (self.indexed_at, self.rest_noted) = (old.indexed_at, old.rest_noted);
        let finished: Vec<(Box<[u8]>, Dedup)> = finished;
        for (name, dedup) in finished {
            self.set_dedup(&name, Some(dedup));
        }
        self.set_attributes(old.attributes);
        removed
    }

    /// A message with everything it has.
    pub(in crate::state) fn record(&self, id: MessageId) -> Option<Record> {
        Some(Record {
            slot: *self.messages.get(id)?,
            lease: self.leases.get(&id).cloned(),
            extra: self.extras.get(&id).cloned(),
            payload: self.payloads.get(&id).cloned(),
        })
    }

    /// Goes on with another life from now on. `lease`: of a message that was handed out just now.
    pub(super) fn set_life(&mut self, id: MessageId, life: Life, lease: Option<Lease>, now: ClusterTime) {
        self.leave(id);
        let Some(slot) = self.messages.get_mut(id) else { return };
        slot.set_life(life, now);
        match life.state {
            MessageState::Leased { set_until, .. } => {
                if let Some(lease) = lease {
                    self.leases.insert(id, lease);
                } else if let Some(lease) = self.leases.get_mut(&id) {
                    lease.set_until = set_until;
                }
            }
            _ => drop(self.leases.remove(&id)),
        }
        self.enter(id);
    }

    /// A message that is ready has waited since now.
    pub(super) fn waits_from(&mut self, id: MessageId, now: ClusterTime) {
        if let Some(slot) = self.messages.get_mut(id).filter(|slot| slot.state == READY) {
            slot.at = now.0;
        }
    }

    pub(super) fn set_priority(&mut self, id: MessageId, priority: u8) {
        self.leave(id);
        if let Some(slot) = self.messages.get_mut(id) {
            slot.priority = priority;
        }
        self.enter(id);
    }

    /// Changes what a message has besides. Group, ID and lifetime must stay.
    pub(super) fn set_reason(&mut self, id: MessageId, reason: &[u8]) {
        self.extras.entry(id).or_default().reason = reason.into();
    }

    /// The lifetime of a dead message is not counted any more.
    pub(super) fn end_lifetime(&mut self, id: MessageId) {
        if let Some(extra) = self.extras.get_mut(&id) {
            extra.expires = ClusterTime::NEVER;
        }
    }

    pub(in crate::state) fn set_dedup(&mut self, name: &[u8], dedup: Option<Dedup>) {
        let is_finished = |dedup: &Dedup| dedup.until != ClusterTime::NEVER;
        let old = match dedup {
            Some(dedup) => self.dedup.insert(name.into(), dedup),
            None => self.dedup.remove(name),
        };
        if let Some(old) = old.filter(is_finished) {
            self.timers.remove(old.until, Timer::Dedup(name.into()));
            self.finished_dedups -= 1;
        }
        if let Some(new) = dedup.filter(is_finished) {
            self.timers.insert(new.until, Timer::Dedup(name.into()));
            self.finished_dedups += 1;
        }
    }

    pub(in crate::state) fn set_attributes(&mut self, attributes: Attributes) {
        self.attributes = attributes;
    }

    /// Until when something is to be told of messages that are gone, besides their IDs.
    #[must_use]
    pub fn remembered_until(&self) -> ClusterTime {
        self.remembered_until
    }

    pub(in crate::state) fn set_remembered_until(&mut self, until: ClusterTime) {
        self.remembered_until = until;
    }

    /// Something is to be told until then.
    pub(super) fn remember_until(&mut self, until: ClusterTime) {
        self.remembered_until = self.remembered_until.max(until);
    }

    /// Gives the memory back that an empty queue held for messages. Nothing else changes.
    pub(in crate::state) fn give_memory_back(&mut self) {
        if !self.messages.is_empty() {
            return;
        }
        self.messages = Chunks::default();
        self.levels = Levels::default();
        for order in [&mut self.held, &mut self.delayed, &mut self.dead] {
            *order = BTreeSet::new();
        }
        self.leases = BTreeMap::new();
        self.extras = BTreeMap::new();
        self.groups = BTreeMap::new();
        self.payloads = BTreeMap::new();
        if self.dedup.is_empty() {
            self.dedup = BTreeMap::new();
            self.timers = Timers::default();
        }
    }

    /// Keeps a payload in memory.
    pub(in crate::state) fn keep_payload(&mut self, id: MessageId, payload: Bytes) {
        self.hot_bytes += payload.len() + HOT_OVERHEAD;
        if let Some(old) = self.payloads.insert(id, payload) {
            self.hot_bytes -= old.len() + HOT_OVERHEAD;
        }
    }

    /// Lets go of the memory of a payload.
    pub(in crate::state) fn drop_payload(&mut self, id: MessageId) -> Option<Bytes> {
        let payload = self.payloads.remove(&id)?;
        self.hot_bytes -= payload.len() + HOT_OVERHEAD;
        Some(payload)
    }

    /// About how much memory the payloads take that are in memory.
    pub(in crate::state) fn hot_bytes(&self) -> usize {
        self.hot_bytes
    }

    /// Puts a message into the orders of its state.
    fn enter(&mut self, id: MessageId) {
        let Some(slot) = self.messages.get(id).copied() else { return };
        if slot.state != DEAD {
            self.live_bytes += u64::from(slot.len);
        }
        let group = self.extras.get(&id).and_then(|extra| extra.group.clone());
        match slot.state {
            READY if group.is_none() => self.levels.insert(slot.priority, id),
            READY => drop(self.held.insert(id)),
            DELAYED => drop(self.delayed.insert(id)),
            DEAD => drop(self.dead.insert(id)),
            _ => {}
        }
        for (at, timer) in self.timers_of(&slot).into_iter().flatten() {
            self.timers.insert(at, timer);
        }
        if let Some(name) = group.filter(|_| slot.state != DEAD) {
            let group = self.groups.entry(name.clone()).or_default();
            group.members.insert(id);
            group.in_flight += u32::from(slot.state == LEASED);
            self.refresh_group(&name);
        }
    }

    /// Takes a message out of the orders of its state.
    fn leave(&mut self, id: MessageId) {
        let Some(slot) = self.messages.get(id).copied() else { return };
        if slot.state != DEAD {
            self.live_bytes -= u64::from(slot.len);
        }
        match slot.state {
            READY => {
                self.levels.remove(slot.priority, id);
                self.held.remove(&id);
            }
            DELAYED => drop(self.delayed.remove(&id)),
            DEAD => drop(self.dead.remove(&id)),
            _ => {}
        }
        for (at, timer) in self.timers_of(&slot).into_iter().flatten() {
            self.timers.remove(at, timer);
        }
        let group = self.extras.get(&id).and_then(|extra| extra.group.clone());
        if let Some(name) = group.filter(|_| slot.state != DEAD)
            && let Some(group) = self.groups.get_mut(&name)
        {
            group.members.remove(&id);
            group.in_flight -= u32::from(slot.state == LEASED);
            if group.available == Some(id) {
                group.available = None;
            }
            self.refresh_group(&name);
        }
    }

    /// What happens to a message by time. Its lifetime does not end while it is in flight; it is looked at afterwards.
    fn timers_of(&self, slot: &Slot) -> [Option<(ClusterTime, Timer)>; 2] {
        let id = slot.id();
        let end = matches!(slot.state, DELAYED | LEASED);
        let expires = self.extras.get(&id).map_or(ClusterTime::NEVER, |extra| extra.expires);
        let is_mortal = expires != ClusterTime::NEVER && matches!(slot.state, DELAYED | READY);
        [
            end.then_some((ClusterTime(slot.at), Timer::Message(id))),
            is_mortal.then_some((expires, Timer::Lifetime(id))),
        ]
    }

    /// Which message of a group can be handed out: its first, if that is ready and none is in flight.
    fn refresh_group(&mut self, name: &[u8]) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let Some(mut first) = group.members.first().copied() else {
            self.groups.remove(name);
            return;
        };
        if is_planted(Bug::GroupPassesDelayed) {
            let is_ready = |id: &&MessageId| self.messages.get(**id).is_some_and(|slot| slot.state == READY);
            first = group.members.iter().find(is_ready).copied().unwrap_or(first);
        }
        let slot = self.messages.get(first).filter(|slot| slot.state == READY && group.in_flight == 0);
        let wanted = slot.map(|slot| (slot.id(), slot.priority));
        let old = std::mem::replace(&mut group.available, wanted.map(|(id, _)| id));
        if old == wanted.map(|(id, _)| id) {
            return;
        }
        if let Some(old) = old
            && let Some(slot) = self.messages.get(old)
        {
            self.levels.remove(slot.priority, old);
            self.held.insert(old);
        }
        if let Some((id, priority)) = wanted {
            self.held.remove(&id);
            self.levels.insert(priority, id);
        }
    }

    // ---- rows -------------------------------------------------------------------------------------

    /// Appends the head to a row's value. Messages and IDs are rows of their own.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(FORMAT);
        put_varint(out, self.number);
        put_varint(out, self.remembered_until.0);
        self.counters.all().into_iter().for_each(|number| put_varint(out, number));
        self.attributes.encode(out);
    }

    /// Reads what [`Queue::encode`] wrote, to the end of the value.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Queue, CodecError> {
        if reader.u8()? != FORMAT {
            return Err(CodecError("a queue of an unknown format"));
        }
        let (number, remembered_until) = (reader.varint()?, ClusterTime(reader.varint()?));
        let counters = Counters {
            pushed: reader.varint()?,
            delivered: reader.varint()?,
            redelivered: reader.varint()?,
            acked: reader.varint()?,
            nacked: reader.varint()?,
            expired_leases: reader.varint()?,
            duplicates: reader.varint()?,
            died: reader.varint()?,
            deleted: reader.varint()?,
            moved: reader.varint()?,
        };
        let attributes = Attributes::decode(reader)?;
        if !reader.is_empty() {
            return Err(CodecError("a queue with a tail"));
        }
        Ok(Queue { counters, attributes, remembered_until, ..Queue::new(number) })
    }

    /// Appends a message as its row keeps it, without its payload.
    pub fn encode_message(&self, id: MessageId, out: &mut Vec<u8>) {
        let Some(slot) = self.messages.get(id).copied() else { return };
        out.push(FORMAT);
        let is_forgotten = is_planted(Bug::DeliveriesNotKept);
        put_varint(out, if is_forgotten { 0 } else { u64::from(slot.delivery) });
        for number in [u64::from(slot.attempt), slot.pushed_at, u64::from(slot.len), u64::from(slot.hash)] {
            put_varint(out, number);
        }
        out.push(slot.priority);
        out.push(slot.state);
        put_bool(out, slot.has(TRACED));
        put_varint(out, slot.at);
        if let Some(lease) = self.leases.get(&id) {
            for number in [lease.set_until.0, lease.since.0, lease.node] {
                put_varint(out, number);
            }
            put_bytes(out, &lease.consumer);
        }
        let extra = self.extras.get(&id);
        put_bool(out, extra.is_some());
        if let Some(extra) = extra {
            for optional in [&extra.group, &extra.dedup, &extra.carried] {
                put_bool(out, optional.is_some());
                optional.iter().for_each(|bytes| put_bytes(out, bytes));
            }
            put_varint(out, extra.expires.0);
            put_bytes(out, &extra.reason);
        }
    }
}

#[cfg(test)]
impl Queue {
    /// Fails unless every message is in exactly the orders of its state.
    pub(crate) fn check(&self) {
        let mut again = Queue::new(self.number);
        for slot in self.messages.iter() {
            again.put_in(self.record(slot.id()).expect("it is there"));
        }
        for (name, dedup) in self.finished_dedups() {
            again.set_dedup(name, Some(dedup));
        }
        again.set_attributes(self.attributes.clone());
        let levels = |queue: &Queue| -> Vec<MessageId> { queue.upcoming().collect() };
        assert_eq!(levels(self), levels(&again));
        assert_eq!((&self.held, &self.delayed, &self.dead), (&again.held, &again.delayed, &again.dead));
        assert_eq!(self.timers, again.timers);
        assert_eq!((self.bytes, self.live_bytes), (again.bytes, again.live_bytes));
        assert_eq!((self.hot_bytes, self.dedup.len()), (again.hot_bytes, again.dedup.len()));
        let counters = &self.counters;
        let gone = counters.acked + counters.deleted + counters.moved;
        assert_eq!(counters.pushed, gone + self.len() as u64);
    }
}
