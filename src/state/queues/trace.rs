//! What has happened to each message (QTRACE), told to operators long after the message is gone.
//!
//! Traces live on disk only: events are added to a message's row there and never read by apply. Here are those that
//! may not be on disk yet. A row goes by itself some time after its last event's `forget_at`; until then that time
//! decides what is told, so all replicas tell the same.
//!
//! ```text
//! row   := event*
//! event := length:varint kind index at delivery attempt node queue consumer reason forget_at:u64be
//! ```
//! So the last eight bytes of a row say when it may go, which the store looks at as it compacts.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::ops::Range;

use crate::state::queues::MessageId;
use crate::types::ClusterTime;
use crate::types::LogIndex;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_bytes;
use crate::types::codec::put_varint;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceKind {
    Pushed,
    Delivered,
    /// Given back without counting.
    Returned,
    Extended,
    LeaseExpired,
    Nacked,
    Acked,
    Dead,
    Redriven,
    Deleted,
}

impl TraceKind {
    const ALL: [(TraceKind, &'static str); 10] = [
        (TraceKind::Pushed, "PUSHED"),
        (TraceKind::Delivered, "DELIVERED"),
        (TraceKind::Returned, "RETURNED"),
        (TraceKind::Extended, "EXTENDED"),
        (TraceKind::LeaseExpired, "LEASE_EXPIRED"),
        (TraceKind::Nacked, "NACKED"),
        (TraceKind::Acked, "ACKED"),
        (TraceKind::Dead, "DEAD"),
        (TraceKind::Redriven, "REDRIVEN"),
        (TraceKind::Deleted, "DELETED"),
    ];

    /// As QTRACE names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        TraceKind::ALL[self as usize].1
    }
}

/// One event of a message's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceEvent {
    pub kind: TraceKind,
    /// The entry that brought it about.
    pub index: u64,
    pub at: ClusterTime,
    pub delivery: u32,
    pub attempt: u32,
    /// The node whose client did it; 0 when nobody did.
    pub node: u64,
    /// The number of the queue that it happened in.
    pub queue: u64,
    pub consumer: Box<[u8]>,
    pub reason: Box<[u8]>,
    /// When the trace may be forgotten; NEVER while the message is there.
    pub forget_at: ClusterTime,
}

impl TraceEvent {
    /// Appends the event as rows keep it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut body = Vec::with_capacity(48);
        body.push(self.kind as u8);
        for number in
            [self.index, self.at.0, u64::from(self.delivery), u64::from(self.attempt), self.node, self.queue]
        {
            put_varint(&mut body, number);
        }
        put_bytes(&mut body, &self.consumer);
        put_bytes(&mut body, &self.reason);
        body.extend_from_slice(&self.forget_at.0.to_be_bytes());
        put_bytes(out, &body);
    }

    fn decode(body: &[u8]) -> Result<TraceEvent, CodecError> {
        let mut reader = Reader::new(body);
        let kind = TraceKind::ALL.get(usize::from(reader.u8()?));
        let event = TraceEvent {
            kind: kind.ok_or(CodecError("an unknown event of a trace"))?.0,
            index: reader.varint()?,
            at: ClusterTime(reader.varint()?),
            delivery: reader.varint32()?,
            attempt: reader.varint32()?,
            node: reader.varint()?,
            queue: reader.varint()?,
            consumer: reader.bytes()?.into(),
            reason: reader.bytes()?.into(),
            forget_at: ClusterTime(u64::from_be_bytes(reader.take(8)?.try_into().expect("eight were taken"))),
        };
        if reader.is_empty() { Ok(event) } else { Err(CodecError("an event of a trace with a tail")) }
    }
}

/// Reads a trace's row.
pub fn decode_trace(row: &[u8]) -> Result<Vec<TraceEvent>, CodecError> {
    let mut reader = Reader::new(row);
    let mut events = Vec::new();
    while !reader.is_empty() {
        events.push(TraceEvent::decode(reader.bytes()?)?);
    }
    Ok(events)
}

/// Events on their way to disk, as they came.
#[derive(Debug, Default)]
pub struct TraceBatch {
    bytes: Vec<u8>,
    events: Vec<(MessageId, Range<usize>)>,
}

impl TraceBatch {
    /// What is to be added to each row, all of a message together.
    #[must_use]
    pub fn rows(mut self) -> Vec<(MessageId, Vec<u8>)> {
        self.events.sort_by_key(|(id, _)| *id);
        let of_one = self.events.chunk_by(|one, next| one.0 == next.0);
        let joined = |events: &[(MessageId, Range<usize>)]| {
            events.iter().flat_map(|(_, range)| &self.bytes[range.clone()]).copied().collect()
        };
        of_one.map(|events| (events[0].0, joined(events))).collect()
    }
}

/// An event that may not be on disk.
#[derive(Debug)]
struct Fresh {
    index: LogIndex,
    id: MessageId,
    event: Box<[u8]>,
}

/// Events that may not be on disk, in order.
#[derive(Debug, Default)]
pub struct Traces {
    fresh: VecDeque<Fresh>,
    /// How many of them, from the front, were given to a flush.
    taken: usize,
    /// What was read back at start, where nothing can be read later.
    loaded: BTreeMap<MessageId, Vec<u8>>,
}

impl Traces {
    /// Something happened.
    pub fn add(&mut self, index: LogIndex, id: MessageId, event: &TraceEvent) {
        let mut bytes = Vec::with_capacity(64);
        event.encode(&mut bytes);
        self.fresh.push_back(Fresh { index, id, event: bytes.into() });
    }

    /// How many events there are; for [`Traces::truncate`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.fresh.len()
    }

    /// True when everything is on disk.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.fresh.is_empty()
    }

    /// Events that no flush was given yet.
    #[must_use]
    pub fn untaken(&self) -> usize {
        self.fresh.len() - self.taken
    }

    /// Forgets the last events: what they tell was taken back.
    pub fn truncate(&mut self, len: usize) {
        self.fresh.truncate(len);
    }

    /// What is to be added to the rows.
    pub fn take(&mut self) -> TraceBatch {
        let mut batch = TraceBatch::default();
        for fresh in self.fresh.range(self.taken..) {
            let start = batch.bytes.len();
            batch.bytes.extend_from_slice(&fresh.event);
            batch.events.push((fresh.id, start..batch.bytes.len()));
        }
        self.taken = self.fresh.len();
        batch
    }

    /// Everything up to this index is on disk, and can be read there.
    pub fn on_disk(&mut self, index: LogIndex) {
        while self.taken > 0 && self.fresh.front().is_some_and(|fresh| fresh.index <= index) {
            self.fresh.pop_front();
            self.taken -= 1;
        }
    }

    /// Keeps a row that was read at start.
    pub fn load(&mut self, id: MessageId, row: &[u8]) {
        self.loaded.insert(id, row.to_vec());
    }

    /// The events of a message: those on disk, which `row` gives, and those that are not there yet.
    pub fn events(&self, id: MessageId, row: Option<&[u8]>) -> Result<Vec<TraceEvent>, CodecError> {
        let known = row.or_else(|| self.loaded.get(&id).map(Vec::as_slice)).unwrap_or_default();
        let mut events = decode_trace(known)?;
        // Rows hold whole entries, and a message's last event there is of the last of them.
        let on_disk = LogIndex(events.last().map_or(0, |event| event.index));
        for fresh in self.fresh.iter().filter(|fresh| fresh.id == id && fresh.index > on_disk) {
            events.extend(decode_trace(&fresh.event)?);
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: MessageId = MessageId { index: 3, n: 0 };

    fn event(kind: TraceKind, index: u64) -> TraceEvent {
        TraceEvent {
            kind,
            index,
            at: ClusterTime(index * 10),
            delivery: 2,
            attempt: 1,
            node: 3,
            queue: 9,
            consumer: (*b"worker").into(),
            reason: (*b"no luck").into(),
            forget_at: ClusterTime::NEVER,
        }
    }

    #[test]
    fn events_come_back_from_their_row_and_a_cut_one_does_not() {
        let all: Vec<TraceEvent> =
            TraceKind::ALL.iter().zip(1..).map(|((kind, _), index)| event(*kind, index)).collect();
        let mut row = Vec::new();
        all.iter().for_each(|event| event.encode(&mut row));
        assert_eq!(decode_trace(&row), Ok(all));
        assert!(decode_trace(&row[..row.len() - 1]).is_err());
        assert_eq!(row[row.len() - 8..], u64::MAX.to_be_bytes());
        for (at, (kind, _)) in TraceKind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, at);
        }
    }

    #[test]
    fn what_is_on_disk_is_told_once_and_what_is_not_is_told_too() {
        let mut traces = Traces::default();
        let (first, second) = (event(TraceKind::Pushed, 3), event(TraceKind::Delivered, 5));
        traces.add(LogIndex(3), ID, &first);
        let rows = traces.take().rows();
        traces.add(LogIndex(5), ID, &second);
        let both = vec![first, second];
        let row = rows[0].1.clone();
        assert_eq!(traces.events(ID, Some(&row)), Ok(both.clone()));
        traces.on_disk(LogIndex(9));
        assert_eq!((traces.len(), traces.untaken()), (1, 1), "the second was not written");
        assert_eq!(traces.events(ID, Some(&row)), Ok(both));
        assert_eq!(traces.take().rows().len(), 1);
        traces.on_disk(LogIndex(5));
        assert!(traces.is_empty());
    }
}
