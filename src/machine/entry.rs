//! What a log entry says: the leader's stamps and the commands of many connections.
//!
//! ```text
//! entry := version:u8 clock wall seed batch*
//! batch := flags:u8 user count item*
//! item  := 0 db:u8 argc arg*                                           a command
//!        | 1 n (db:u8 key changed+1)*  n (db:u8 argc arg*)*             a transaction: what it watched, what it does
//!        | 2 n (db:u8 key)*                         EXPIRE: end what is due of these keys; of none named, of any
//!        | 3 outage_ms databases lock_default_ttl lease_failover_grace   LEADER-START: first entry of a term
//! ```
//! Numbers are varints; users, keys and arguments are length-prefixed. `flags` is 0: forwarded batches
//! will carry the session they belong to behind other flags. A batch is encoded on the connection's own
//! task; the proposer only copies bytes.

use bytes::Bytes;
use smallvec::SmallVec;

use crate::state::DbIndex;
use crate::state::Settings;
use crate::types::ClusterTime;
use crate::types::LogIndex;
use crate::types::Millis;
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

/// Commands of one connection, in order, under one user. Every pushed item gets one reply.
#[derive(Debug, Default)]
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

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(0);
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

/// Packs batches into an entry.
#[must_use]
pub fn encode_entry(stamps: &Stamps, batches: &[Batch]) -> Vec<u8> {
    let size = batches.iter().map(Batch::bytes).sum::<usize>() + 32;
    let mut out = Vec::with_capacity(size);
    out.push(ENTRY_VERSION);
    put_varint(&mut out, stamps.clock.0);
    put_varint(&mut out, stamps.wall.0);
    put_varint(&mut out, stamps.seed);
    for batch in batches {
        batch.encode(&mut out);
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

/// Reads the head of the next batch: its user and how many items follow. `None` at the end of the entry.
pub fn decode_batch_head<'a>(reader: &mut Reader<'a>) -> Result<Option<(&'a [u8], usize)>, CodecError> {
    if reader.is_empty() {
        return Ok(None);
    }
    if reader.u8()? != 0 {
        return Err(CodecError("a batch with unknown flags"));
    }
    let user = reader.bytes()?;
    let count = usize::try_from(reader.varint()?).map_err(|_| CodecError("count out of range"))?;
    Ok(Some((user, count)))
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
        _ => Err(CodecError("an item of an unknown kind")),
    }
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

    #[test]
    fn what_was_packed_is_unpacked() {
        let mut batch = Batch::new(b"default");
        batch.push_command(3, [&b"SET"[..], b"k", b"v"].into_iter());
        batch.push_expire(0, [&b"k"[..]].into_iter());
        let watched = [Watched { db: 0, key: (*b"w").into(), changed: None }];
        batch.push_transaction(
            &watched,
            &[Queued { db: 1, args: vec![Bytes::from_static(b"GET"), Bytes::from_static(b"k")] }],
        );
        let data = encode_entry(&stamps(), &[batch]);
        let (read, mut reader) = decode_stamps(&data).unwrap();
        assert_eq!(read, stamps());
        let (user, count) = decode_batch_head(&mut reader).unwrap().unwrap();
        assert_eq!((user, count), (&b"default"[..], 3));
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

    proptest::proptest! {
        #[test]
        fn random_bytes_never_panic(data in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let mut entry = vec![ENTRY_VERSION, 1, 1, 1];
            entry.extend_from_slice(&data);
            let (_, mut reader) = decode_stamps(&entry).unwrap();
            while let Ok(Some((_, count))) = decode_batch_head(&mut reader) {
                for _ in 0..count.min(100) {
                    if decode_item(&mut reader).is_err() {
                        break;
                    }
                }
            }
        }
    }
}
