//! Raft messages as bytes between nodes.
//!
//! ```text
//! batch    := version:u8 clock (group length:u32 message)*              length is little endian
//! message  := version:u8 type:u8 to from term log_term index commit commit_term reject_hint request_snapshot
//!             priority:zigzag reject:u8 context:bytes n entry* snapshot
//! entry    := type:u8 term context:bytes data:bytes                     in an append: the index is implied
//!           | type:u8 term index context:bytes data:bytes               in any other message
//! snapshot := 0                                                         none
//!           | 1 data:bytes                                              without metadata
//!           | 2 data:bytes index term                                   metadata without a configuration
//!           | 3 data:bytes index term ids ids ids ids auto_leave:u8     voters, learners, outgoing, next
//! ```
//! Numbers are varints unless said otherwise, bytes and ids have their count before them. Types are the numbers
//! of raft-rs's protocol file. What follows the known fields of a message is skipped, so that a later version
//! may add some.
//!
//! The entries of an append follow each other from `index + 1`, so that a damaged or malicious message cannot
//! have the gaps that raft-rs panics on. Entries of other messages (a read barrier's context travels in one)
//! have no place in a log. Two deprecated fields stay away: an entry's `sync_log` and `deprecated_priority`,
//! which raft-rs reads only when `priority` is not set.

use raft::eraftpb::ConfState;
use raft::eraftpb::Entry;
use raft::eraftpb::EntryType;
use raft::eraftpb::Message;
use raft::eraftpb::MessageType;
use raft::eraftpb::Snapshot;
use raft::eraftpb::SnapshotMetadata;

use crate::types::ClusterTime;
use crate::types::GroupId;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_bool;
use crate::types::codec::put_bytes;
use crate::types::codec::put_varint;
use crate::types::codec::put_zigzag;

/// Version of a batch and of the messages in it; others are refused.
pub const RAFT_WIRE_VERSION: u8 = 1;
/// Entries of one message. [`encode_batch`] makes two appends of one that has more.
pub const MAX_ENTRIES: usize = 4096;
/// Bytes of a message's context.
pub const MAX_CONTEXT: usize = 64;
/// Bytes of an entry's context.
pub const MAX_ENTRY_CONTEXT: usize = 1024;
/// Replica ids in each list of a snapshot's configuration.
pub const MAX_REPLICAS: usize = 64;
/// Bytes in a snapshot's data: a name for what travels apart, never the rows themselves.
pub const MAX_SNAPSHOT_DATA: usize = 1024;

/// More than the varints of a message's head take.
const HEAD_BYTES: usize = 160;
/// More than an entry takes apart from context and data.
const ENTRY_HEAD_BYTES: usize = 48;
/// Type, term and two lengths.
const ENTRY_BYTES_MIN: usize = 4;

/// What one node tells another at a time: messages of any of its groups.
#[derive(Debug, Clone, PartialEq)]
pub struct RaftBatch {
    /// The sender's cluster time; 0 when it does not lead.
    pub clock: ClusterTime,
    /// In the order in which the sender's replicas spoke.
    pub messages: Vec<(GroupId, Message)>,
}

/// Encodes messages for one node. An append of more than [`MAX_ENTRIES`] entries goes as several, which say the
/// same. The other `MAX_` bounds are the caller's to keep: the receiver refuses a batch that breaks one.
#[must_use]
pub fn encode_batch(clock: ClusterTime, messages: &[(GroupId, Message)]) -> Vec<u8> {
    let size: usize = messages.iter().map(|(_, message)| size_at_most(message)).sum();
    let mut out = Vec::with_capacity(16 + size);
    out.push(RAFT_WIRE_VERSION);
    put_varint(&mut out, clock.0);
    for (group, message) in messages {
        if message.get_msg_type() == MessageType::MsgAppend && message.entries.len() > MAX_ENTRIES {
            put_divided(&mut out, *group, message);
        } else {
            put_framed(&mut out, *group, &Part::whole(message));
        }
    }
    out
}

/// Decodes what [`encode_batch`] wrote; an error spoils the whole batch. The messages are well-formed, which
/// does not mean that raft-rs may be given them.
pub fn decode_batch(payload: &[u8]) -> Result<RaftBatch, CodecError> {
    let mut reader = Reader::new(payload);
    check_version(&mut reader)?;
    let clock = ClusterTime(reader.varint()?);
    let mut messages = Vec::new();
    while !reader.is_empty() {
        let group = GroupId(reader.varint32()?);
        let length = u32::from_le_bytes(reader.take(4)?.try_into().expect("4 bytes were taken"));
        let length = usize::try_from(length).map_err(|_| CodecError("length out of range"))?;
        messages.push((group, decode_message(reader.take(length)?)?));
    }
    Ok(RaftBatch { clock, messages })
}

/// Appends one message, whose length the reader must learn elsewhere. The `MAX_` bounds are the caller's to keep.
pub fn encode_message(message: &Message, out: &mut Vec<u8>) {
    put_message(out, &Part::whole(message));
}

/// Decodes one message; `bytes` ends where it ends. Trailing bytes, of a later version, are skipped.
pub fn decode_message(bytes: &[u8]) -> Result<Message, CodecError> {
    let mut reader = Reader::new(bytes);
    check_version(&mut reader)?;
    let msg_type = MessageType::from_i32(i32::from(reader.u8()?));
    let msg_type = msg_type.ok_or(CodecError("a message of an unknown type"))?;
    let mut message = Message {
        msg_type: msg_type as i32,
        to: reader.varint()?,
        from: reader.varint()?,
        term: reader.varint()?,
        log_term: reader.varint()?,
        index: reader.varint()?,
        commit: reader.varint()?,
        commit_term: reader.varint()?,
        reject_hint: reader.varint()?,
        request_snapshot: reader.varint()?,
        priority: reader.zigzag()?,
        reject: reader.bool()?,
        context: bounded(&mut reader, MAX_CONTEXT)?,
        ..Message::default()
    };
    let implied = (msg_type == MessageType::MsgAppend).then_some(message.index);
    message.entries = decode_entries(&mut reader, implied)?;
    message.snapshot = decode_snapshot(&mut reader)?;
    Ok(message)
}

/// A message, or an append that is part of it: other entries, and the place in the log where they follow.
struct Part<'a> {
    message: &'a Message,
    log_term: u64,
    index: u64,
    entries: &'a [Entry],
}

impl<'a> Part<'a> {
    fn whole(message: &'a Message) -> Part<'a> {
        Part { message, log_term: message.log_term, index: message.index, entries: &message.entries }
    }
}

/// A follower commits no further than the last entry it was given, so every part may name the same commit.
fn put_divided(out: &mut Vec<u8>, group: GroupId, message: &Message) {
    let mut part = Part::whole(message);
    for entries in message.entries.chunks(MAX_ENTRIES) {
        part.entries = entries;
        put_framed(out, group, &part);
        if let Some(last) = entries.last() {
            (part.log_term, part.index) = (last.term, last.index);
        }
    }
}

fn put_framed(out: &mut Vec<u8>, group: GroupId, part: &Part<'_>) {
    put_varint(out, u64::from(group.0));
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    put_message(out, part);
    let length = u32::try_from(out.len() - at - 4).expect("a message fits a frame, which is far below 4 GiB");
    out[at..at + 4].copy_from_slice(&length.to_le_bytes());
}

fn put_message(out: &mut Vec<u8>, part: &Part<'_>) {
    let Part { message, log_term, index, entries } = *part;
    let msg_type = message.get_msg_type();
    out.extend_from_slice(&[RAFT_WIRE_VERSION, msg_type as u8]);
    let numbers = [
        message.to,
        message.from,
        message.term,
        log_term,
        index,
        message.commit,
        message.commit_term,
        message.reject_hint,
        message.request_snapshot,
    ];
    for number in numbers {
        put_varint(out, number);
    }
    put_zigzag(out, message.priority);
    put_bool(out, message.reject);
    put_bytes(out, &message.context);
    put_varint(out, entries.len() as u64);
    let mut follows = index;
    for entry in entries {
        out.push(entry.get_entry_type() as u8);
        put_varint(out, entry.term);
        if msg_type == MessageType::MsgAppend {
            debug_assert_eq!(
                Some(entry.index),
                follows.checked_add(1),
                "the entries of an append have no gap"
            );
            follows = entry.index;
        } else {
            put_varint(out, entry.index);
        }
        put_bytes(out, &entry.context);
        put_bytes(out, &entry.data);
    }
    put_snapshot(out, message.snapshot.as_ref());
}

fn put_snapshot(out: &mut Vec<u8>, snapshot: Option<&Snapshot>) {
    let Some(snapshot) = snapshot else {
        out.push(0);
        return;
    };
    let metadata = snapshot.metadata.as_ref();
    let conf_state = metadata.and_then(|metadata| metadata.conf_state.as_ref());
    out.push(1 + u8::from(metadata.is_some()) + u8::from(conf_state.is_some()));
    put_bytes(out, &snapshot.data);
    if let Some(metadata) = metadata {
        put_varint(out, metadata.index);
        put_varint(out, metadata.term);
    }
    if let Some(conf) = conf_state {
        for ids in [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next] {
            put_varint(out, ids.len() as u64);
            for id in ids {
                put_varint(out, *id);
            }
        }
        put_bool(out, conf.auto_leave);
    }
}

/// An upper bound of the bytes a message takes in a batch, so that its entries are copied once.
fn size_at_most(message: &Message) -> usize {
    let heads = HEAD_BYTES * message.entries.len().div_ceil(MAX_ENTRIES).max(1);
    let entry = |entry: &Entry| ENTRY_HEAD_BYTES + entry.context.len() + entry.data.len();
    let snapshot = message.snapshot.as_ref().map_or(0, |snapshot| {
        let conf = snapshot.metadata.as_ref().and_then(|metadata| metadata.conf_state.as_ref());
        let ids = conf.map_or(0, |conf| {
            conf.voters.len() + conf.learners.len() + conf.voters_outgoing.len() + conf.learners_next.len()
        });
        snapshot.data.len() + 80 + 10 * ids
    });
    heads + message.context.len() + message.entries.iter().map(entry).sum::<usize>() + snapshot
}

fn check_version(reader: &mut Reader<'_>) -> Result<(), CodecError> {
    if reader.u8()? == RAFT_WIRE_VERSION {
        Ok(())
    } else {
        Err(CodecError("Raft messages of another version"))
    }
}

fn bounded(reader: &mut Reader<'_>, max: usize) -> Result<Vec<u8>, CodecError> {
    let bytes = reader.bytes()?;
    if bytes.len() > max { Err(CodecError("a field is too long")) } else { Ok(bytes.to_vec()) }
}

/// `implied`: the index that the first entry follows, in an append.
fn decode_entries(reader: &mut Reader<'_>, implied: Option<u64>) -> Result<Vec<Entry>, CodecError> {
    let count = reader.count(MAX_ENTRIES, ENTRY_BYTES_MIN)?;
    let mut entries = Vec::with_capacity(count);
    let mut follows = implied;
    for _ in 0..count {
        let entry_type = EntryType::from_i32(i32::from(reader.u8()?));
        let entry_type = entry_type.ok_or(CodecError("an entry of an unknown type"))?;
        let term = reader.varint()?;
        let index = match &mut follows {
            Some(last) => {
                *last = last.checked_add(1).ok_or(CodecError("index out of range"))?;
                *last
            }
            None => reader.varint()?,
        };
        entries.push(Entry {
            entry_type: entry_type as i32,
            term,
            index,
            context: bounded(reader, MAX_ENTRY_CONTEXT)?,
            data: reader.bytes()?.to_vec(),
            ..Entry::default()
        });
    }
    Ok(entries)
}

fn decode_snapshot(reader: &mut Reader<'_>) -> Result<Option<Snapshot>, CodecError> {
    let parts = reader.u8()?;
    if parts > 3 {
        return Err(CodecError("a snapshot of an unknown form"));
    }
    if parts == 0 {
        return Ok(None);
    }
    let mut snapshot = Snapshot { data: bounded(reader, MAX_SNAPSHOT_DATA)?, metadata: None };
    if parts > 1 {
        let (index, term) = (reader.varint()?, reader.varint()?);
        let conf_state = if parts > 2 { Some(decode_conf_state(reader)?) } else { None };
        snapshot.metadata = Some(SnapshotMetadata { conf_state, index, term });
    }
    Ok(Some(snapshot))
}

fn decode_conf_state(reader: &mut Reader<'_>) -> Result<ConfState, CodecError> {
    Ok(ConfState {
        voters: decode_ids(reader)?,
        learners: decode_ids(reader)?,
        voters_outgoing: decode_ids(reader)?,
        learners_next: decode_ids(reader)?,
        auto_leave: reader.bool()?,
    })
}

fn decode_ids(reader: &mut Reader<'_>) -> Result<Vec<u64>, CodecError> {
    let count = reader.count(MAX_REPLICAS, 1)?;
    (0..count).map(|_| reader.varint()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    const GROUP: GroupId = GroupId(3);

    fn entry(term: u64, index: u64, data: &[u8]) -> Entry {
        Entry { term, index, data: data.to_vec(), ..Entry::default() }
    }

    /// An append of `count` small entries after index 10.
    fn append(count: u64) -> Message {
        Message {
            msg_type: MessageType::MsgAppend as i32,
            to: 2,
            from: 1,
            term: 7,
            log_term: 6,
            index: 10,
            commit: 300,
            entries: (0..count).map(|i| entry(7, 11 + i, b"d")).collect(),
            ..Message::default()
        }
    }

    fn round_trip(message: Message) {
        let batch = RaftBatch { clock: ClusterTime(9), messages: vec![(GROUP, message)] };
        let bytes = encode_batch(batch.clock, &batch.messages);
        assert_eq!(decode_batch(&bytes).unwrap(), batch);
    }

    fn refused(message: Message) {
        let bytes = encode_batch(ClusterTime(0), &[(GROUP, message)]);
        assert!(decode_batch(&bytes).is_err());
    }

    fn any_entry() -> impl Strategy<Value = Entry> {
        let entry_type = proptest::sample::select(EntryType::values());
        (entry_type, any::<u64>(), any::<u64>(), vec(any::<u8>(), 0..20), vec(any::<u8>(), 0..200)).prop_map(
            |(entry_type, term, index, context, data)| Entry {
                entry_type: entry_type as i32,
                term,
                index,
                context,
                data,
                ..Entry::default()
            },
        )
    }

    fn any_snapshot() -> impl Strategy<Value = Snapshot> {
        let ids = || vec(any::<u64>(), 0..5);
        let conf = (ids(), ids(), ids(), ids(), any::<bool>()).prop_map(
            |(voters, learners, voters_outgoing, learners_next, auto_leave)| ConfState {
                voters,
                learners,
                voters_outgoing,
                learners_next,
                auto_leave,
            },
        );
        let metadata = (option::of(conf), any::<u64>(), any::<u64>())
            .prop_map(|(conf_state, index, term)| SnapshotMetadata { conf_state, index, term });
        (vec(any::<u8>(), 0..100), option::of(metadata))
            .prop_map(|(data, metadata)| Snapshot { data, metadata })
    }

    /// Any message that raft-rs could send, and many that it could not.
    fn any_message() -> impl Strategy<Value = Message> {
        let numbers = proptest::array::uniform9(prop_oneof![0u64..300, any::<u64>()]);
        let rest = (any::<i64>(), any::<bool>(), vec(any::<u8>(), 0..=MAX_CONTEXT));
        let msg_type = proptest::sample::select(MessageType::values());
        (msg_type, numbers, rest, vec(any_entry(), 0..6), option::of(any_snapshot())).prop_map(
            |(msg_type, numbers, (priority, reject, context), mut entries, snapshot)| {
                let [to, from, term, log_term, mut index, commit, commit_term, reject_hint, request_snapshot] =
                    numbers;
                if msg_type == MessageType::MsgAppend {
                    index = index.min(u64::MAX - 6);
                    for (entry, follows) in entries.iter_mut().zip(index + 1..) {
                        entry.index = follows;
                    }
                }
                Message {
                    msg_type: msg_type as i32,
                    to,
                    from,
                    term,
                    log_term,
                    index,
                    entries,
                    commit,
                    commit_term,
                    snapshot,
                    request_snapshot,
                    reject,
                    reject_hint,
                    context,
                    deprecated_priority: 0,
                    priority,
                }
            },
        )
    }

    fn some_messages() -> impl Strategy<Value = Vec<(GroupId, Message)>> {
        vec((any::<u32>().prop_map(GroupId), any_message()), 0..5)
    }

    #[test]
    fn the_bytes_of_an_append_stay_what_they_are() {
        let mut message = append(2);
        message.entries[0].entry_type = EntryType::EntryConfChangeV2 as i32;
        message.entries[0].context = b"c".to_vec();
        message.entries[1].data = b"data".to_vec();
        let bytes = encode_batch(ClusterTime(1000), &[(GROUP, message)]);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = concat!(
            "01e807",       // version, clock 1000
            "031f000000",   // group 3, 31 bytes
            "0103",         // version, MsgAppend
            "020107060a",   // to, from, term, log_term, index
            "ac0200000000", // commit 300, commit_term, reject_hint, request_snapshot, priority
            "000002",       // reject, no context, two entries
            // configuration change of term 7, context "c", data "d"
            "020701630164",
            // normal, term 7, no context, data "data"
            "0007000464617461",
            "00", // no snapshot
        );
        assert_eq!(hex, expected);
    }

    #[test]
    fn message_and_entry_types_keep_their_numbers() {
        let types: Vec<i32> = MessageType::values().iter().map(|msg_type| *msg_type as i32).collect();
        assert_eq!(types, (0..=18).collect::<Vec<_>>());
        assert_eq!(MessageType::MsgAppend as i32, 3);
        assert_eq!(MessageType::MsgSnapshot as i32, 7);
        assert_eq!(MessageType::MsgReadIndexResp as i32, 16);
        assert_eq!(MessageType::MsgRequestPreVoteResponse as i32, 18);
        let entries: Vec<i32> = EntryType::values().iter().map(|entry_type| *entry_type as i32).collect();
        assert_eq!(entries, [0, 1, 2]);
    }

    #[test]
    fn a_read_barrier_keeps_its_entry_without_a_place_in_the_log() {
        round_trip(Message {
            msg_type: MessageType::MsgReadIndex as i32,
            index: 500,
            entries: vec![entry(0, 0, b"context")],
            ..Message::default()
        });
    }

    #[test]
    fn what_is_at_a_bound_passes_and_what_is_beyond_is_refused() {
        let with_context = |length| Message { context: vec![1; length], ..append(0) };
        round_trip(with_context(MAX_CONTEXT));
        refused(with_context(MAX_CONTEXT + 1));

        let with_entry_context = |length| {
            let mut message = append(1);
            message.entries[0].context = vec![1; length];
            message
        };
        round_trip(with_entry_context(MAX_ENTRY_CONTEXT));
        refused(with_entry_context(MAX_ENTRY_CONTEXT + 1));

        let with_snapshot_data = |length| {
            let snapshot = Snapshot { data: vec![1; length], metadata: None };
            Message { snapshot: Some(snapshot), ..append(0) }
        };
        round_trip(with_snapshot_data(MAX_SNAPSHOT_DATA));
        refused(with_snapshot_data(MAX_SNAPSHOT_DATA + 1));

        for list in 0..4 {
            let with_ids = |count: usize| {
                let mut conf = ConfState::default();
                let ids = match list {
                    0 => &mut conf.voters,
                    1 => &mut conf.learners,
                    2 => &mut conf.voters_outgoing,
                    _ => &mut conf.learners_next,
                };
                *ids = vec![u64::MAX; count];
                let metadata = Some(SnapshotMetadata { conf_state: Some(conf), index: 1, term: 1 });
                Message { snapshot: Some(Snapshot { data: Vec::new(), metadata }), ..append(0) }
            };
            round_trip(with_ids(MAX_REPLICAS));
            refused(with_ids(MAX_REPLICAS + 1));
        }
    }

    #[test]
    fn an_append_of_too_many_entries_goes_as_several() {
        let max = MAX_ENTRIES as u64;
        round_trip(append(max));
        let whole = append(2 * max + 1);
        let mut bytes = Vec::new();
        encode_message(&whole, &mut bytes);
        assert!(decode_message(&bytes).is_err());

        let batch = decode_batch(&encode_batch(ClusterTime(0), &[(GROUP, whole.clone())])).unwrap();
        let parts: Vec<Message> = batch.messages.into_iter().map(|(_, message)| message).collect();
        let places: Vec<_> =
            parts.iter().map(|part| (part.log_term, part.index, part.entries.len())).collect();
        assert_eq!(places, [(6, 10, MAX_ENTRIES), (7, 10 + max, MAX_ENTRIES), (7, 10 + 2 * max, 1)]);
        assert_eq!(parts.iter().flat_map(|part| part.entries.clone()).collect::<Vec<_>>(), whole.entries);
        for mut part in parts {
            (part.log_term, part.index) = (whole.log_term, whole.index);
            part.entries.clone_from(&whole.entries);
            assert_eq!(part, whole);
        }
    }

    #[test]
    fn entries_beyond_the_last_index_are_refused() {
        let mut message = append(1);
        (message.index, message.entries[0].index) = (u64::MAX - 1, u64::MAX);
        let mut bytes = Vec::new();
        encode_message(&message, &mut bytes);
        assert_eq!(decode_message(&bytes).unwrap(), message);
        // The lowest byte of the index: the varints before it take a byte each.
        assert_eq!(bytes[6], 0xfe);
        bytes[6] = 0xff;
        assert_eq!(decode_message(&bytes), Err(CodecError("index out of range")));
    }

    #[test]
    fn a_claimed_count_of_entries_reserves_nothing_that_is_not_there() {
        let mut bytes = Vec::new();
        encode_message(&append(0), &mut bytes);
        // The count and "no snapshot" are the last two bytes.
        bytes.truncate(bytes.len() - 2);
        bytes.extend([0xff, 0x1f]);
        assert_eq!(decode_message(&bytes), Err(CodecError("count out of range")));
    }

    #[test]
    fn unknown_types_and_versions_are_refused() {
        let bytes = encode_batch(ClusterTime(0), &[(GROUP, append(1))]);
        // Version of the batch, version of the message, its type.
        for (at, expected) in [(0, 1), (7, 1), (8, 3)] {
            assert_eq!(bytes[at], expected);
            let mut other = bytes.clone();
            other[at] = 99;
            assert!(decode_batch(&other).is_err());
        }
    }

    proptest! {
        #[test]
        fn messages_come_back_as_they_were(messages in some_messages(), clock: u64) {
            let bytes = encode_batch(ClusterTime(clock), &messages);
            let size: usize = messages.iter().map(|(_, message)| size_at_most(message)).sum();
            prop_assert!(bytes.len() <= 16 + size, "{} bytes were reserved for {}", 16 + size, bytes.len());
            let expected = RaftBatch { clock: ClusterTime(clock), messages };
            prop_assert_eq!(decode_batch(&bytes).unwrap(), expected);
        }

        #[test]
        fn fields_of_a_later_version_are_skipped(message in any_message(), later in vec(any::<u8>(), 0..50)) {
            let mut bytes = Vec::new();
            encode_message(&message, &mut bytes);
            bytes.extend(later);
            prop_assert_eq!(decode_message(&bytes).unwrap(), message);
        }

        #[test]
        fn no_cut_of_a_message_decodes(message in any_message(), at: Index) {
            let mut bytes = Vec::new();
            encode_message(&message, &mut bytes);
            prop_assert!(decode_message(&bytes[..at.index(bytes.len())]).is_err());
        }

        #[test]
        fn random_and_damaged_bytes_never_panic(
            random in vec(any::<u8>(), 0..300),
            messages in some_messages(),
            damage in vec((any::<Index>(), any::<u8>()), 1..4),
            cut: Index,
        ) {
            let _ = decode_batch(&random);
            let headed = [&[RAFT_WIRE_VERSION, 3][..], &random].concat();
            let _ = decode_message(&headed);
            let mut bytes = encode_batch(ClusterTime(5), &messages);
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Ok(batch) = decode_batch(&bytes) {
                let again = encode_batch(batch.clock, &batch.messages);
                prop_assert_eq!(decode_batch(&again).unwrap(), batch);
            }
            let _ = decode_batch(&bytes[..cut.index(bytes.len())]);
        }
    }
}
