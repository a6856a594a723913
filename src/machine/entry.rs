//! What a log entry says: the leader's stamps and the commands of many connections.
//!
//! ```text
//! entry := version:u8 clock wall seed batch*
//! batch := flags:u8 [node epoch seq ack] user count item*                flags bit 0: the batch has a session
//! item  := 0 db:u8 argc arg*                                           a command
//!        | 1 n (db:u8 key changed+1)*  n (db:u8 argc arg*)*             a transaction: what it watched, what it does
//!        | 2 n (db:u8 key)*                         EXPIRE: end what is due of these keys; of none named, of any
//!        | 3 outage_ms databases lock_default_ttl lease_failover_grace   LEADER-START: first entry of a term
//!        | 4                                         VERIFY: compare the replicas as of this entry
//!        | 5 node nonce                              ALLOCATE-REPLICA: a replica id that was never used
//! ```
//! Numbers are varints; users, keys and arguments are length-prefixed. A batch is encoded on the connection's own
//! task; the proposer only copies bytes. Between nodes a batch travels as `user count item*`, and only with items
//! that clients cause (0 to 2, and 4): the others are the leader's own.

use bytes::Bytes;
use smallvec::SmallVec;

use crate::state::DbIndex;
use crate::state::Settings;
use crate::types::ClusterTime;
use crate::types::LogIndex;
use crate::types::Millis;
use crate::types::NodeId;
use crate::types::WallMillis;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_bytes;
use crate::types::codec::put_varint;

/// Version of the entry format; an entry of a newer one stops the node rather than being half understood.
pub const ENTRY_VERSION: u8 = 1;

const COMMAND: u8 = 0;
const TRANSACTION: u8 = 1;
const EXPIRE: u8 = 2;
const LEADER_START: u8 = 3;
const VERIFY: u8 = 4;
const ALLOCATE_REPLICA: u8 = 5;

/// In a batch's `flags`: it has a session.
const HAS_SESSION: u8 = 1;
/// Bytes of a [`SessionStamp`] at most.
const SESSION_STAMP_BYTES: usize = 40;

/// What the leader stamps on an entry (DESIGN.md D1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamps {
    /// Cluster time; every deadline is compared with it.
    pub clock: ClusterTime,
    /// Wall time, never decreasing in the log; only for absolute expiries.
    pub wall: WallMillis,
    /// For whatever chance an entry needs, so that every replica draws alike.
    pub seed: u64,
}

/// Which batch of which node it is, so that it is executed once however often it is sent (DESIGN.md D6). What the
/// numbers do stands at `state::sessions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionStamp {
    /// The node whose client sent it.
    pub node: NodeId,
    /// The life of that node: replica id << 32 | boot count.
    pub epoch: u64,
    /// Its number in that life, from 1 without gaps.
    pub seq: u64,
    /// The node has the replies of all its batches up to and including this one.
    pub ack: u64,
}

/// A key that a transaction watched, and the index of its last change then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    pub db: DbIndex,
    pub key: Box<[u8]>,
    /// `None`: the key was absent.
    pub changed: Option<LogIndex>,
}

/// A command of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    pub db: DbIndex,
    pub args: Vec<Bytes>,
}

/// Commands of one connection, in order, under one user. Every pushed item gets one reply. One without items (the
/// default) is legal: it executes nothing, but has its place in a session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    items: Vec<u8>,
    count: usize,
    user: Vec<u8>,
}

impl Batch {
    /// An empty batch of this ACL user.
    #[must_use]
    pub fn new(user: &[u8]) -> Batch {
        Batch { items: Vec::new(), count: 0, user: user.to_vec() }
    }

    /// Adds a command; its name is the first word.
    pub fn push_command<'a>(&mut self, db: DbIndex, args: impl ExactSizeIterator<Item = &'a [u8]>) {
        self.items.push(COMMAND);
        put_command(&mut self.items, db, args);
        self.count += 1;
    }

    /// Adds a transaction. Its reply is an array with the replies of its commands, or a null array when
    /// something watched has changed.
    pub fn push_transaction(&mut self, watched: &[Watched], commands: &[Queued]) {
        self.items.push(TRANSACTION);
        put_varint(&mut self.items, watched.len() as u64);
        for watch in watched {
            self.items.push(watch.db);
            put_bytes(&mut self.items, &watch.key);
            put_varint(&mut self.items, watch.changed.map_or(0, |index| index.0 + 1));
        }
        put_varint(&mut self.items, commands.len() as u64);
        for command in commands {
            put_command(&mut self.items, command.db, command.args.iter().map(Bytes::as_ref));
        }
        self.count += 1;
    }

    /// Adds an EXPIRE: what is due of these keys ends; when none is named, whatever is due, earliest first. In
    /// bounded number either way; its reply is how many items ended.
    pub fn push_expire<'a>(&mut self, db: DbIndex, keys: impl ExactSizeIterator<Item = &'a [u8]>) {
        self.items.push(EXPIRE);
        put_varint(&mut self.items, keys.len() as u64);
        for key in keys {
            self.items.push(db);
            put_bytes(&mut self.items, key);
        }
        self.count += 1;
    }

    /// Adds the LEADER-START of a new term.
    pub fn push_leader_start(&mut self, start: &LeaderStart) {
        self.items.push(LEADER_START);
        put_varint(&mut self.items, start.outage.0);
        put_varint(&mut self.items, u64::from(start.settings.databases));
        put_varint(&mut self.items, start.settings.lock_default_ttl.0);
        put_varint(&mut self.items, start.settings.lease_failover_grace.0);
        self.count += 1;
    }

    /// Adds a VERIFY: the replicas are compared as of the entry. Its reply is the entry's index.
    pub fn push_verify(&mut self) {
        self.items.push(VERIFY);
        self.count += 1;
    }

    /// Adds a question for a replica id that was never used, for a replica of `node`. Its reply is the id; the same
    /// `nonce` again gets the same one.
    pub fn push_allocate_replica(&mut self, node: NodeId, nonce: u64) {
        self.items.push(ALLOCATE_REPLICA);
        put_varint(&mut self.items, node.0);
        put_varint(&mut self.items, nonce);
        self.count += 1;
    }

    /// The batch as it travels to another node.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes());
        self.encode_content(&mut out);
        out
    }

    /// Reads what [`Batch::to_bytes`] wrote, on another node, which need not be believed: every batch that this
    /// gives can be applied. Allocates no more than the input's length.
    ///
    /// # Errors
    ///
    /// The bytes are cut short or have a tail, the count is not that of the items, or an item is not one that a
    /// client causes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Batch, CodecError> {
        let mut reader = Reader::new(bytes);
        let (user, count) = decode_user_and_count(&mut reader)?;
        let items = reader.rest();
        for _ in 0..count {
            match reader.rest().first() {
                Some(&(COMMAND | TRANSACTION | EXPIRE | VERIFY)) => skip_item(&mut reader)?,
                Some(_) => return Err(CodecError("an item that no client causes")),
                None => return Err(CodecError("cut short")),
            }
        }
        if !reader.is_empty() {
            return Err(CodecError("a batch with a tail"));
        }
        Ok(Batch { items: items.to_vec(), count, user: user.to_vec() })
    }

    /// Number of items, and of replies to come.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// True when nothing was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes it will take in an entry, nearly.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.items.len() + self.user.len() + 16
    }

    fn encode(&self, session: Option<SessionStamp>, out: &mut Vec<u8>) {
        match session {
            None => out.push(0),
            Some(session) => {
                out.push(HAS_SESSION);
                for number in [session.node.0, session.epoch, session.seq, session.ack] {
                    put_varint(out, number);
                }
            }
        }
        self.encode_content(out);
    }

    fn encode_content(&self, out: &mut Vec<u8>) {
        put_bytes(out, &self.user);
        put_varint(out, self.count as u64);
        out.extend_from_slice(&self.items);
    }
}

/// What a new leader tells the group before anything else (DESIGN.md D9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaderStart {
    /// How long no process of the group was alive, as its wall clock tells: strings age by it.
    pub outage: Millis,
    /// The cluster's settings, as this leader's file gives them; in force only when the log is new.
    pub settings: Settings,
}

fn put_command<'a>(out: &mut Vec<u8>, db: DbIndex, args: impl ExactSizeIterator<Item = &'a [u8]>) {
    out.push(db);
    put_varint(out, args.len() as u64);
    for arg in args {
        put_bytes(out, arg);
    }
}

/// Packs batches into an entry, each with its session if it has one. The iterator is walked twice: first for the
/// size.
#[must_use]
pub fn encode_entry<'a>(
    stamps: &Stamps,
    batches: impl Iterator<Item = (Option<SessionStamp>, &'a Batch)> + Clone,
) -> Vec<u8> {
    let stamp_bytes = |session: Option<SessionStamp>| session.map_or(0, |_| SESSION_STAMP_BYTES);
    let size: usize = batches.clone().map(|(session, batch)| batch.bytes() + stamp_bytes(session)).sum();
    let mut out = Vec::with_capacity(size + 32);
    out.push(ENTRY_VERSION);
    put_varint(&mut out, stamps.clock.0);
    put_varint(&mut out, stamps.wall.0);
    put_varint(&mut out, stamps.seed);
    for (session, batch) in batches {
        batch.encode(session, &mut out);
    }
    out
}

/// The words of a command, as slices of the entry.
pub type Words<'a> = SmallVec<[&'a [u8]; 8]>;

/// One item of a batch, decoded.
#[derive(Debug)]
pub enum Item<'a> {
    Command { db: DbIndex, words: Words<'a> },
    Transaction { watched: Vec<(DbIndex, &'a [u8], Option<LogIndex>)>, commands: Vec<(DbIndex, Words<'a>)> },
    Expire { keys: Vec<(DbIndex, &'a [u8])> },
    LeaderStart(LeaderStart),
    Verify,
    AllocateReplica { node: NodeId, nonce: u64 },
}

/// Reads the stamps of an entry and leaves its batches.
pub fn decode_stamps<'a>(data: &'a [u8]) -> Result<(Stamps, Reader<'a>), CodecError> {
    let mut reader = Reader::new(data);
    if reader.u8()? != ENTRY_VERSION {
        return Err(CodecError("an entry of a newer format; start a newer Holdfast"));
    }
    let stamps = Stamps {
        clock: ClusterTime(reader.varint()?),
        wall: WallMillis(reader.varint()?),
        seed: reader.varint()?,
    };
    Ok((stamps, reader))
}

/// The head of a batch: its user, how many items follow, and which batch of which node it is (`None` for one that
/// executes in any case).
pub type BatchHead<'a> = (&'a [u8], usize, Option<SessionStamp>);

/// Reads the head of the next batch and leaves its items. `None` at the end of the entry.
pub fn decode_batch_head<'a>(reader: &mut Reader<'a>) -> Result<Option<BatchHead<'a>>, CodecError> {
    if reader.is_empty() {
        return Ok(None);
    }
    let session = match reader.u8()? {
        0 => None,
        HAS_SESSION => Some(SessionStamp {
            node: NodeId(reader.varint()?),
            epoch: reader.varint()?,
            seq: reader.varint()?,
            ack: reader.varint()?,
        }),
        _ => return Err(CodecError("a batch with unknown flags")),
    };
    let (user, count) = decode_user_and_count(reader)?;
    Ok(Some((user, count, session)))
}

fn decode_user_and_count<'a>(reader: &mut Reader<'a>) -> Result<(&'a [u8], usize), CodecError> {
    let user = reader.bytes()?;
    let count = usize::try_from(reader.varint()?).map_err(|_| CodecError("count out of range"))?;
    Ok((user, count))
}

/// Reads the next item of a batch.
pub fn decode_item<'a>(reader: &mut Reader<'a>) -> Result<Item<'a>, CodecError> {
    match reader.u8()? {
        COMMAND => {
            let (db, words) = decode_command(reader)?;
            Ok(Item::Command { db, words })
        }
        TRANSACTION => decode_transaction(reader),
        EXPIRE => {
            let mut keys = Vec::new();
            for _ in 0..reader.varint()? {
                keys.push((reader.u8()?, reader.bytes()?));
            }
            Ok(Item::Expire { keys })
        }
        LEADER_START => {
            let outage = Millis(reader.varint()?);
            let settings = Settings {
                databases: u8::try_from(reader.varint()?)
                    .map_err(|_| CodecError("databases out of range"))?,
                lock_default_ttl: Millis(reader.varint()?),
                lease_failover_grace: Millis(reader.varint()?),
            };
            Ok(Item::LeaderStart(LeaderStart { outage, settings }))
        }
        VERIFY => Ok(Item::Verify),
        ALLOCATE_REPLICA => {
            Ok(Item::AllocateReplica { node: NodeId(reader.varint()?), nonce: reader.varint()? })
        }
        _ => Err(CodecError("an item of an unknown kind")),
    }
}

/// Passes over the next item: an error exactly where [`decode_item`] has one, but allocates nothing.
pub fn skip_item(reader: &mut Reader<'_>) -> Result<(), CodecError> {
    match reader.rest().first() {
        Some(&COMMAND) => {
            reader.u8()?;
            skip_command(reader)
        }
        Some(&TRANSACTION) => {
            reader.u8()?;
            for _ in 0..reader.varint()? {
                reader.u8()?;
                reader.bytes()?;
                reader.varint()?;
            }
            for _ in 0..reader.varint()? {
                skip_command(reader)?;
            }
            Ok(())
        }
        Some(&EXPIRE) => {
            reader.u8()?;
            for _ in 0..reader.varint()? {
                reader.u8()?;
                reader.bytes()?;
            }
            Ok(())
        }
        // The leader's own have nothing of variable length.
        Some(_) | None => decode_item(reader).map(|_| ()),
    }
}

fn skip_command(reader: &mut Reader<'_>) -> Result<(), CodecError> {
    reader.u8()?;
    for _ in 0..reader.varint()? {
        reader.bytes()?;
    }
    Ok(())
}

fn decode_command<'a>(reader: &mut Reader<'a>) -> Result<(DbIndex, Words<'a>), CodecError> {
    let db = reader.u8()?;
    let count = reader.varint()?;
    let mut words = Words::new();
    for _ in 0..count {
        words.push(reader.bytes()?);
    }
    Ok((db, words))
}

fn decode_transaction<'a>(reader: &mut Reader<'a>) -> Result<Item<'a>, CodecError> {
    let mut watched = Vec::new();
    for _ in 0..reader.varint()? {
        let (db, key, changed) = (reader.u8()?, reader.bytes()?, reader.varint()?);
        watched.push((db, key, changed.checked_sub(1).map(LogIndex)));
    }
    let mut commands = Vec::new();
    for _ in 0..reader.varint()? {
        commands.push(decode_command(reader)?);
    }
    Ok(Item::Transaction { watched, commands })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamps() -> Stamps {
        Stamps { clock: ClusterTime(5), wall: WallMillis(1_700_000_000_000), seed: 9 }
    }

    fn session() -> SessionStamp {
        SessionStamp { node: NodeId(3), epoch: (3 << 32) | 7, seq: 300, ack: 299 }
    }

    /// Whatever a client may cause.
    fn full_batch() -> Batch {
        let mut batch = Batch::new(b"default");
        batch.push_command(3, [&b"SET"[..], b"k", b"v"].into_iter());
        batch.push_expire(0, [&b"k"[..]].into_iter());
        let watched = [Watched { db: 0, key: (*b"w").into(), changed: None }];
        batch.push_transaction(
            &watched,
            &[Queued { db: 1, args: vec![Bytes::from_static(b"GET"), Bytes::from_static(b"k")] }],
        );
        batch
    }

    /// The whole entry as text, by `decode_item`; and `skip_item` must end where it does.
    fn unpack(data: &[u8]) -> Result<Vec<String>, CodecError> {
        let (_, mut reader) = decode_stamps(data)?;
        let mut items = Vec::new();
        while let Some((_, count, _)) = decode_batch_head(&mut reader)? {
            for _ in 0..count {
                let mut skipped = reader;
                let is_skipped = skip_item(&mut skipped);
                let item = decode_item(&mut reader);
                assert_eq!(is_skipped.err(), item.as_ref().err().copied(), "on {:?}", skipped.rest());
                items.push(format!("{:?}", item?));
                assert_eq!(skipped.rest(), reader.rest());
            }
        }
        Ok(items)
    }

    #[test]
    fn what_was_packed_is_unpacked() {
        let batch = full_batch();
        let data = encode_entry(&stamps(), [(Some(session()), &batch)].into_iter());
        let (read, mut reader) = decode_stamps(&data).unwrap();
        assert_eq!(read, stamps());
        let head = decode_batch_head(&mut reader).unwrap().unwrap();
        assert_eq!(head, (&b"default"[..], 3, Some(session())));
        assert!(
            matches!(decode_item(&mut reader).unwrap(), Item::Command { db: 3, words } if words.len() == 3)
        );
        let Item::Expire { keys } = decode_item(&mut reader).unwrap() else { panic!("an EXPIRE") };
        assert_eq!(keys, vec![(0, &b"k"[..])]);
        let Item::Transaction { watched, commands } = decode_item(&mut reader).unwrap() else {
            panic!("a transaction")
        };
        assert_eq!(watched, vec![(0, &b"w"[..], None)]);
        assert_eq!(commands.len(), 1);
        assert!(decode_batch_head(&mut reader).unwrap().is_none());
    }

    #[test]
    fn batches_with_and_without_a_session_share_an_entry() {
        let mut own = Batch::new(b"");
        own.push_verify();
        own.push_allocate_replica(NodeId(4), u64::MAX);
        let (full, void) = (full_batch(), Batch::default());
        let batches = [(None, &own), (Some(session()), &void), (Some(session()), &full), (None, &void)];
        let data = encode_entry(&stamps(), batches.into_iter());
        let (_, mut reader) = decode_stamps(&data).unwrap();
        for (stamp, batch) in batches {
            let head = decode_batch_head(&mut reader).unwrap().unwrap();
            assert_eq!((head.1, head.2), (batch.len(), stamp));
            (0..head.1).for_each(|_| skip_item(&mut reader).unwrap());
        }
        assert!(decode_batch_head(&mut reader).unwrap().is_none());
        let items = unpack(&data).unwrap();
        assert_eq!(
            items[..2],
            ["Verify", "AllocateReplica { node: NodeId(4), nonce: 18446744073709551615 }"]
        );
        assert!(data.capacity() < data.len() + 200, "the size was known before");
    }

    #[test]
    fn a_batch_travels_to_another_node_and_back() {
        for batch in [full_batch(), Batch::default(), Batch::new(b"alice")] {
            let bytes = batch.to_bytes();
            assert_eq!(Batch::from_bytes(&bytes).unwrap(), batch);
            for length in 0..bytes.len() {
                assert!(Batch::from_bytes(&bytes[..length]).is_err(), "cut at {length}");
            }
            assert!(Batch::from_bytes(&[&bytes[..], &[0]].concat()).is_err(), "with a tail");
        }
    }

    #[test]
    fn a_forged_batch_is_refused() {
        let start = LeaderStart { outage: Millis(1), settings: Settings::default() };
        let own: [fn(&mut Batch, &LeaderStart); 2] = [
            |batch, start| batch.push_leader_start(start),
            |batch, _| batch.push_allocate_replica(NodeId(1), 1),
        ];
        for push in own {
            let mut batch = full_batch();
            push(&mut batch, &start);
            assert!(Batch::from_bytes(&batch.to_bytes()).is_err(), "{batch:?}");
        }
        let good = full_batch();
        for count in [0, 1, 2, 4, usize::MAX] {
            let batch = Batch { count, ..good.clone() };
            assert!(Batch::from_bytes(&batch.to_bytes()).is_err(), "a count of {count}");
        }
        let unknown = Batch { items: vec![6], count: 1, user: Vec::new() };
        assert!(Batch::from_bytes(&unknown.to_bytes()).is_err());
        // Lengths and counts that claim more than there is.
        for items in [
            vec![COMMAND, 0, 255, 255, 255, 255, 15],
            vec![COMMAND, 0, 1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, b'x'],
            vec![EXPIRE, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0, 0],
            vec![TRANSACTION, 0, 255, 255, 3, 0, 0],
            vec![TRANSACTION, 1, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2, 0],
        ] {
            let batch = Batch { items, count: 1, user: Vec::new() };
            assert!(Batch::from_bytes(&batch.to_bytes()).is_err(), "{batch:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn random_bytes_never_panic(data in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let mut entry = vec![ENTRY_VERSION, 1, 1, 1];
            entry.extend_from_slice(&data);
            let _ = unpack(&entry);
            // A batch of one item, so that its inside is reached.
            entry.splice(4.., [0, 0, 1].into_iter().chain(data.iter().copied()));
            let _ = unpack(&entry);
        }

        #[test]
        fn a_batch_that_is_let_in_can_be_unpacked(
            at in proptest::collection::vec((proptest::num::usize::ANY, proptest::num::u8::ANY), 0..3),
            kinds in proptest::collection::vec(0..4u8, 0..8),
            tail in proptest::collection::vec(proptest::num::u8::ANY, 0..3),
        ) {
            // A good batch with a few bytes changed, and one made of small numbers: both often get through.
            let mut changed = full_batch().to_bytes();
            for (place, byte) in at {
                let place = place % changed.len();
                changed[place] = byte % 16;
            }
            let small: Vec<u8> = [0, 1].into_iter().chain(kinds).chain(tail).collect();
            for bytes in [changed, small] {
                let Ok(batch) = Batch::from_bytes(&bytes) else { continue };
                let entry = encode_entry(&stamps(), [(None, &batch)].into_iter());
                proptest::prop_assert_eq!(unpack(&entry).unwrap().len(), batch.len());
            }
        }
    }
}
