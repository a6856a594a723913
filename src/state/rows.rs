//! How rows are written to `data/`: every key prefix and value format, in one place.
//!
//! ```text
//! 'a'                                            the group's own numbers (applied index, clocks, counters)
//! 'k' db:u8 key                                  head row: string, lock, queue
//! 'm' db:u8 key_len:u32be key index:u64be n:u32be  a message of a queue
//! 's' node:u64be                                 the session of a node: epoch, last, remembered replies
//! 'c'                                            the membership
//! ```

use crate::state::DbIndex;
use crate::state::keyspace::Object;
use crate::state::keyspace::Row;
use crate::state::locks::Lock;
use crate::state::queues::MessageId;
use crate::state::queues::Queue;
use crate::types::ClusterTime;
use crate::types::LogIndex;
use crate::types::NodeId;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_varint;

/// Key of the row with the group's own numbers.
pub const META: &[u8] = b"a";
/// First byte of head rows.
pub const HEAD: u8 = b'k';
/// First byte of message rows.
pub const MESSAGE: u8 = b'm';
/// First byte of session rows.
pub const SESSION: u8 = b's';
/// Key of the row with the membership.
pub const MEMBERSHIP: &[u8] = b"c";

const TYPE_STRING: u8 = 0;
const TYPE_LOCK: u8 = 1;
const TYPE_QUEUE: u8 = 2;

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

/// Writes the row key of a message.
pub fn encode_message_key(db: DbIndex, queue: &[u8], id: MessageId, out: &mut Vec<u8>) {
    out.clear();
    out.push(MESSAGE);
    out.push(db);
    out.extend_from_slice(&u32::try_from(queue.len()).expect("keys are bounded").to_be_bytes());
    out.extend_from_slice(queue);
    out.extend_from_slice(&id.index.to_be_bytes());
    out.extend_from_slice(&id.n.to_be_bytes());
}

/// Splits what [`encode_message_key`] wrote.
pub fn decode_message_key(row_key: &[u8]) -> Result<(DbIndex, &[u8], MessageId), CodecError> {
    let mut reader = Reader::new(row_key);
    if reader.u8()? != MESSAGE {
        return Err(CodecError("not a message row"));
    }
    let db = reader.u8()?;
    let fixed = |bytes: &[u8]| bytes.iter().fold(0u64, |value, byte| (value << 8) | u64::from(*byte));
    let length = fixed(reader.take(4)?) as usize;
    let queue = reader.take(length)?;
    let index = fixed(reader.take(8)?);
    let n = fixed(reader.take(4)?) as u32;
    if !reader.is_empty() {
        return Err(CodecError("a message key with a tail"));
    }
    Ok((db, queue, MessageId { index, n }))
}

/// The row key of a node's session.
#[must_use]
pub fn session_key(node: NodeId) -> [u8; 9] {
    let mut key = [SESSION; 9];
    key[1..].copy_from_slice(&node.0.to_be_bytes());
    key
}

/// Reads what [`session_key`] made.
pub fn decode_session_key(row_key: &[u8]) -> Result<NodeId, CodecError> {
    match row_key.split_first() {
        Some((&SESSION, node)) => {
            let node = node.try_into().map_err(|_| CodecError("a session row with a wrong name"))?;
            Ok(NodeId(u64::from_be_bytes(node)))
        }
        _ => Err(CodecError("not a session row")),
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
        Object::String => TYPE_STRING,
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
        TYPE_STRING => Row::string(key, reader.rest()),
        TYPE_LOCK => Row::with_object(key, Object::Lock(Box::new(Lock::decode(&mut reader)?))),
        TYPE_QUEUE => Row::with_object(key, Object::Queue(Box::new(Queue::decode(&mut reader)?))),
        _ => return Err(CodecError("a row of an unknown type")),
    };
    row.changed = changed;
    row.deadline = deadline;
    Ok(row)
}
