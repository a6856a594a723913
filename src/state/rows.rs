//! How rows are written to `data/`: every key prefix and value format, in one place.
//!
//! ```text
//! 'a'                                            the group's own numbers (applied index, clocks, counters)
//! 'k' db:u8 key                                  head row: string, lock, queue
//! 'q' queue:u64be                                a queue that is at rest: no key, but remembered
//! 'm' queue:u64be index:u64be n:u32be            a message of a queue, without its payload
//! 'p' queue:u64be index:u64be n:u32be            a message's payload
//! 't' index:u64be n:u32be                        a message's trace; it is only added to, and may go when its last
//!                                                eight bytes, a cluster time, have passed
//! 'u' queue:u64be name                           the ID of a finished message
//! 'f' number:u64be                               messages that were finished of late, from this number on
//! 'v' claim:u64be                                a QPOP that waits
//! 's' node:u64be                                 the session of a node: epoch, last, remembered replies
//! 'c'                                            the membership
//! 'w' id:u64be                                   a request that waits for locks
//! 'h' id:u64be                                   what the wait of this number was handed, and nobody confirmed
//! 'r' token:u64be                                a lock was released under this token
//! 'o' user_len:u32be user name                   a named transaction
//! 'd'                                            the last deadlocks
//! ```

use std::collections::VecDeque;

use crate::state::DbIndex;
use crate::state::DeadlockRecord;
use crate::state::keyspace::Form;
use crate::state::keyspace::Object;
use crate::state::keyspace::Row;
use crate::state::locks::ClaimId;
use crate::state::locks::Lock;
use crate::state::locks::WaitId;
use crate::state::locks::releases::Release;
use crate::state::once::OnceName;
use crate::state::queues::Dedup;
use crate::state::queues::MessageId;
use crate::state::queues::Queue;
use crate::types::ClusterTime;
use crate::types::FencingToken;
use crate::types::LogIndex;
use crate::types::NodeId;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_bytes;
use crate::types::codec::put_varint;

/// Key of the row with the group's own numbers.
pub const META: &[u8] = b"a";
/// First byte of head rows.
pub const HEAD: u8 = b'k';
/// First byte of the rows of queues that are at rest.
pub const RESTING: u8 = b'q';
/// First byte of message rows.
pub const MESSAGE: u8 = b'm';
/// First byte of the rows of payloads.
pub const PAYLOAD: u8 = b'p';
/// First byte of the rows of traces.
pub const TRACE: u8 = b't';
/// First byte of the rows of IDs of finished messages.
pub const DEDUP: u8 = b'u';
/// First byte of the rows of finished messages.
pub const FINISHED: u8 = b'f';
/// First byte of the rows of QPOPs that wait.
pub const POP_WAIT: u8 = b'v';
/// First byte of session rows.
pub const SESSION: u8 = b's';
/// Key of the row with the membership.
pub const MEMBERSHIP: &[u8] = b"c";

/// First byte of the rows of requests that wait for locks.
pub const WAIT: u8 = b'w';
/// First byte of the rows of hand-overs.
pub const HANDED: u8 = b'h';
/// First byte of the rows of releases.
pub const RELEASE: u8 = b'r';
/// First byte of the rows of named transactions.
pub const ONCE: u8 = b'o';
/// Key of the row with the last deadlocks.
pub const DEADLOCKS: &[u8] = b"d";

const TYPE_STRING: u8 = 0;
const TYPE_LOCK: u8 = 1;
const TYPE_QUEUE: u8 = 2;
const TYPE_TEXT: u8 = 3;
const TYPE_CHANGED: u8 = 4;

/// Writes the row key of a key's head row.
pub fn encode_head_key(db: DbIndex, key: &[u8], out: &mut Vec<u8>) {
    out.clear();
    append_head_key(db, key, out);
}

/// [`encode_head_key`] behind what is there.
pub fn append_head_key(db: DbIndex, key: &[u8], out: &mut Vec<u8>) {
    out.push(HEAD);
    out.push(db);
    out.extend_from_slice(key);
}

/// Splits what [`encode_head_key`] wrote.
pub fn decode_head_key(row_key: &[u8]) -> Result<(DbIndex, &[u8]), CodecError> {
    match row_key {
        [HEAD, db, key @ ..] => Ok((*db, key)),
        _ => Err(CodecError("not a head row")),
    }
}

/// The row key of a queue that is at rest.
#[must_use]
pub fn resting_key(number: u64) -> [u8; 9] {
    numbered(RESTING, number)
}

/// Writes a queue that is at rest, with its name.
pub fn encode_resting(db: DbIndex, key: &[u8], queue: &Queue, out: &mut Vec<u8>) {
    out.push(db);
    put_bytes(out, key);
    queue.encode(out);
}

/// Reads what [`encode_resting`] wrote.
pub fn decode_resting(value: &[u8]) -> Result<(DbIndex, Row), CodecError> {
    let mut reader = Reader::new(value);
    let db = reader.u8()?;
    let key = reader.bytes()?;
    let queue = Queue::decode(&mut reader)?;
    Ok((db, Row::with_object(key, Object::Queue(Box::new(queue)))))
}

/// The row key of a message (`MESSAGE`) or of its payload (`PAYLOAD`).
#[must_use]
pub fn message_key(kind: u8, queue: u64, id: MessageId) -> [u8; 21] {
    let mut key = [kind; 21];
    key[1..9].copy_from_slice(&queue.to_be_bytes());
    key[9..17].copy_from_slice(&id.index.to_be_bytes());
    key[17..].copy_from_slice(&id.n.to_be_bytes());
    key
}

/// What the row keys of a queue's messages or payloads start with.
#[must_use]
pub fn queue_prefix(kind: u8, queue: u64) -> [u8; 9] {
    numbered(kind, queue)
}

/// Reads what [`message_key`] made: the queue's number and the message's id.
pub fn decode_message_key(row_key: &[u8]) -> Result<(u64, MessageId), CodecError> {
    let key: &[u8; 21] = row_key.try_into().map_err(|_| CodecError("a message row with a wrong name"))?;
    let number = |bytes: &[u8]| bytes.iter().fold(0u64, |value, byte| (value << 8) | u64::from(*byte));
    Ok((number(&key[1..9]), MessageId { index: number(&key[9..17]), n: number(&key[17..]) as u32 }))
}

/// The row key of a message's trace.
#[must_use]
pub fn trace_key(id: MessageId) -> [u8; 13] {
    let mut key = [TRACE; 13];
    key[1..9].copy_from_slice(&id.index.to_be_bytes());
    key[9..].copy_from_slice(&id.n.to_be_bytes());
    key
}

/// Reads what [`trace_key`] made.
pub fn decode_trace_key(row_key: &[u8]) -> Result<MessageId, CodecError> {
    let key: &[u8; 13] =
        row_key.try_into().map_err(|_| CodecError("the row of a trace with a wrong name"))?;
    let number = |bytes: &[u8]| bytes.iter().fold(0u64, |value, byte| (value << 8) | u64::from(*byte));
    Ok(MessageId { index: number(&key[1..9]), n: number(&key[9..]) as u32 })
}

/// The row key of the ID of a finished message.
#[must_use]
pub fn dedup_key(queue: u64, name: &[u8]) -> Vec<u8> {
    [&[DEDUP], &queue.to_be_bytes()[..], name].concat()
}

/// Reads what [`dedup_key`] made.
pub fn decode_dedup_key(row_key: &[u8]) -> Result<(u64, &[u8]), CodecError> {
    let mut reader = Reader::new(row_key);
    reader.u8()?;
    let queue = u64::from_be_bytes(reader.take(8)?.try_into().expect("eight were taken"));
    Ok((queue, reader.rest()))
}

/// Writes the ID of a finished message.
pub fn encode_dedup(dedup: Dedup, out: &mut Vec<u8>) {
    for number in [dedup.id.index, u64::from(dedup.id.n), dedup.until.0] {
        put_varint(out, number);
    }
}

/// Reads what [`encode_dedup`] wrote.
pub fn decode_dedup(value: &[u8]) -> Result<Dedup, CodecError> {
    let mut reader = Reader::new(value);
    let id = MessageId { index: reader.varint()?, n: reader.varint32()? };
    Ok(Dedup { id, until: ClusterTime(reader.varint()?) })
}

/// The row key of messages that were finished of late.
#[must_use]
pub fn finished_key(number: u64) -> [u8; 9] {
    numbered(FINISHED, number)
}

/// Reads what [`finished_key`] made.
pub fn decode_finished_key(row_key: &[u8]) -> Result<u64, CodecError> {
    decode_numbered(FINISHED, row_key)
}

/// The row key of a QPOP that waits.
#[must_use]
pub fn pop_wait_key(claim: ClaimId) -> [u8; 9] {
    numbered(POP_WAIT, claim.0)
}

/// Reads what [`pop_wait_key`] made.
pub fn decode_pop_wait_key(row_key: &[u8]) -> Result<ClaimId, CodecError> {
    decode_numbered(POP_WAIT, row_key).map(ClaimId)
}

/// The row key of a node's session.
#[must_use]
pub fn session_key(node: NodeId) -> [u8; 9] {
    numbered(SESSION, node.0)
}

/// Reads what [`session_key`] made.
pub fn decode_session_key(row_key: &[u8]) -> Result<NodeId, CodecError> {
    decode_numbered(SESSION, row_key).map(NodeId)
}

/// The row key of a request that waits.
#[must_use]
pub fn wait_key(id: WaitId) -> [u8; 9] {
    numbered(WAIT, id.0)
}

/// Reads what [`wait_key`] made.
pub fn decode_wait_key(row_key: &[u8]) -> Result<WaitId, CodecError> {
    decode_numbered(WAIT, row_key).map(WaitId)
}

/// The row key of a hand-over.
#[must_use]
pub fn handed_key(id: WaitId) -> [u8; 9] {
    numbered(HANDED, id.0)
}

/// Reads what [`handed_key`] made.
pub fn decode_handed_key(row_key: &[u8]) -> Result<WaitId, CodecError> {
    decode_numbered(HANDED, row_key).map(WaitId)
}

/// The row key of a release.
#[must_use]
pub fn release_key(token: FencingToken) -> [u8; 9] {
    numbered(RELEASE, token.0)
}

/// Writes a release.
pub fn encode_release(release: Release, out: &mut Vec<u8>) {
    put_varint(out, release.at.0);
    put_varint(out, release.who);
}

/// Reads what [`release_key`] and [`encode_release`] wrote.
pub fn decode_release(row_key: &[u8], value: &[u8]) -> Result<(FencingToken, Release), CodecError> {
    let token = decode_numbered(RELEASE, row_key).map(FencingToken)?;
    let mut reader = Reader::new(value);
    Ok((token, Release { at: ClusterTime(reader.varint()?), who: reader.varint()? }))
}

/// The row key of a named transaction.
#[must_use]
pub fn once_key((user, name): &OnceName) -> Vec<u8> {
    let length = u32::try_from(user.len()).expect("users are bounded").to_be_bytes();
    [&[ONCE], &length[..], user, name].concat()
}

/// Reads what [`once_key`] made.
pub fn decode_once_key(row_key: &[u8]) -> Result<OnceName, CodecError> {
    let mut reader = Reader::new(row_key);
    if reader.u8()? != ONCE {
        return Err(CodecError("not the row of a named transaction"));
    }
    let length = reader.take(4)?.iter().fold(0usize, |value, byte| (value << 8) | usize::from(*byte));
    Ok((reader.take(length)?.into(), reader.rest().into()))
}

/// Writes the last deadlocks.
pub fn encode_deadlocks(deadlocks: &VecDeque<DeadlockRecord>, out: &mut Vec<u8>) {
    put_varint(out, deadlocks.len() as u64);
    for deadlock in deadlocks {
        put_varint(out, deadlock.index.0);
        put_varint(out, deadlock.at.0);
        put_bytes(out, &deadlock.victim);
        put_bytes(out, deadlock.text.as_bytes());
    }
}

/// Reads what [`encode_deadlocks`] wrote.
pub fn decode_deadlocks(value: &[u8]) -> Result<VecDeque<DeadlockRecord>, CodecError> {
    let mut reader = Reader::new(value);
    let mut deadlocks = VecDeque::new();
    for _ in 0..reader.varint()? {
        let (index, at) = (LogIndex(reader.varint()?), ClusterTime(reader.varint()?));
        let victim = reader.bytes()?.into();
        let text = std::str::from_utf8(reader.bytes()?).map_err(|_| CodecError("text is not UTF-8"))?;
        deadlocks.push_back(DeadlockRecord { index, at, victim, text: text.into() });
    }
    Ok(deadlocks)
}

fn numbered(kind: u8, number: u64) -> [u8; 9] {
    let mut key = [kind; 9];
    key[1..].copy_from_slice(&number.to_be_bytes());
    key
}

fn decode_numbered(kind: u8, row_key: &[u8]) -> Result<u64, CodecError> {
    let wrong = CodecError("a row with a wrong name");
    match row_key.split_first() {
        Some((first, number)) if *first == kind => {
            number.try_into().map(u64::from_be_bytes).map_err(|_| wrong)
        }
        _ => Err(wrong),
    }
}

/// Writes a head row's value. The deadline is kept plus one, so that 0 means "none".
pub fn encode_row(row: &Row, out: &mut Vec<u8>) {
    out.clear();
    append_row(row, out);
}

/// [`encode_row`] behind what is there.
pub fn append_row(row: &Row, out: &mut Vec<u8>) {
    let tag = match row.object {
        Object::String => match row.form() {
            Form::Value => TYPE_STRING,
            Form::Text => TYPE_TEXT,
            Form::Changed => TYPE_CHANGED,
        },
        Object::Lock(_) => TYPE_LOCK,
        Object::Queue(_) => TYPE_QUEUE,
    };
    out.push(tag);
    put_varint(out, row.changed.0);
    put_varint(out, row.deadline.0.wrapping_add(1));
    match &row.object {
        Object::String => out.extend_from_slice(row.string_bytes()),
        Object::Lock(lock) => lock.encode(out),
        Object::Queue(queue) => queue.encode(out),
    }
}

/// Reads what [`encode_row`] wrote.
pub fn decode_row(key: &[u8], value: &[u8]) -> Result<Row, CodecError> {
    let mut reader = Reader::new(value);
    let tag = reader.u8()?;
    let changed = LogIndex(reader.varint()?);
    let deadline = ClusterTime(reader.varint()?.wrapping_sub(1));
    let mut row = match tag {
        TYPE_STRING | TYPE_TEXT | TYPE_CHANGED => {
            let mut row = Row::string(key, reader.rest());
            row.set_form(match tag {
                TYPE_TEXT => Form::Text,
                TYPE_CHANGED => Form::Changed,
                _ => Form::Value,
            });
            row
        }
        TYPE_LOCK => Row::with_object(key, Object::Lock(Box::new(Lock::decode(&mut reader)?))),
        TYPE_QUEUE => Row::with_object(key, Object::Queue(Box::new(Queue::decode(&mut reader)?))),
        _ => return Err(CodecError("a row of an unknown type")),
    };
    row.changed = changed;
    row.deadline = deadline;
    Ok(row)
}
