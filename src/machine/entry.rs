//! What a log entry says: the leader's stamps and the commands of many connections.
//!
//! ```text
//! entry := version:u8 clock wall seed batch*
//! batch := flags:u8 [node epoch seq ack] [client address] [value reply] user count item*
//!          flags bit 0: the batch has a session; bit 1: its client is named; bit 2: its bounds are not the usual ones
//! item  := 0 db:u8 argc arg*                                           a command
//!        | 1 n (db:u8 key changed+1)*  n (db:u8 argc arg*)*             a transaction: what it watched, what it does
//!        | 2 n (db:u8 key)*                         EXPIRE: end what is due of these keys; of none named, of any
//!        | 3 outage_ms settings                      LEADER-START: first entry of a term
//!        | 4                                         VERIFY: compare the replicas as of this entry
//!        | 5 node nonce                              ALLOCATE-REPLICA: a replica id that was never used
//!        | 6 as 1                                    a transaction that is all or nothing
//!        | 7 n claim*                                CANCEL: these clients wait no more
//!        | 8 db owner n (key token touches)*         TAKE-BACK: grants that their client never heard of
//!        | 9 node life                               END-CLAIMS: clients of this node before that life are gone
//!        | 10 n claim*                               CONFIRM: these clients will be told of what they were handed
//! ```
//! Numbers are varints; users, keys and arguments are length-prefixed. A batch is encoded on the connection's own
//! task; the proposer only copies bytes. Between nodes a batch travels without its session, and only with items
//! that clients cause (0 to 2, 4, 6 to 8, and 10): the others are the leader's own.

use bytes::Bytes;
use smallvec::SmallVec;

use crate::state::DbIndex;
use crate::state::Settings;
use crate::types::ClusterTime;
use crate::types::LogIndex;
use crate::types::Millis;
use crate::types::NodeId;
use crate::types::WallMillis;
use crate::types::bounds::Bounds;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_bytes;
use crate::types::codec::put_varint;

/// Version of the entry format; an entry of a newer one stops the node rather than being half understood.
pub const ENTRY_VERSION: u8 = 2;

const COMMAND: u8 = 0;
const TRANSACTION: u8 = 1;
const EXPIRE: u8 = 2;
const LEADER_START: u8 = 3;
const VERIFY: u8 = 4;
const ALLOCATE_REPLICA: u8 = 5;
const ATOMIC_TRANSACTION: u8 = 6;
const CANCEL: u8 = 7;
const TAKE_BACK: u8 = 8;
const END_CLAIMS: u8 = 9;
const CONFIRM: u8 = 10;

/// In a batch's `flags`: it has a session.
const HAS_SESSION: u8 = 1;
/// And its client is named.
const HAS_CLIENT: u8 = 2;
/// And how large its values and replies may become.
const HAS_BOUNDS: u8 = 4;
/// The names of sessions that one life of a node uses differ in this many low bits.
const LIFE_SHIFT: u32 = 16;
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
    /// The session's name: replica id << 40 | boot count << 16 | sessions of that boot.
    pub epoch: u64,
    /// Its number in that life, from 1 without gaps.
    pub seq: u64,
    /// The node has the replies of all its batches up to and including this one.
    pub ack: u64,
}

/// The life of a node's process that uses this name of a session. Later lives have greater ones.
#[must_use]
pub fn life_of(epoch: u64) -> u64 {
    epoch >> LIFE_SHIFT
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
    /// Its number on its node, and its address.
    client: Option<(u64, String)>,
    bounds: Bounds,
}

impl Batch {
    /// An empty batch of this ACL user.
    #[must_use]
    pub fn new(user: &[u8]) -> Batch {
        Batch::within(user, Bounds::DEFAULT)
    }

    /// The same, for commands whose values and replies may become so large.
    #[must_use]
    pub fn within(user: &[u8], bounds: Bounds) -> Batch {
        Batch { items: Vec::new(), count: 0, user: user.to_vec(), client: None, bounds }
    }

    /// Names the client: for commands whose row says [`ORIGIN`](crate::commands::spec::Flags::ORIGIN).
    pub fn name_client(&mut self, number: u64, address: &str) {
        if self.client.is_none() {
            self.client = Some((number, address.to_owned()));
        }
    }

    /// Adds a command; its name is the first word.
    pub fn push_command<'a>(&mut self, db: DbIndex, args: impl ExactSizeIterator<Item = &'a [u8]>) {
        self.items.push(COMMAND);
        put_command(&mut self.items, db, args);
        self.count += 1;
    }

    /// Adds a transaction. Its reply is an array with the replies of its commands, or a null array when
    /// something watched has changed.
    ///
    /// When it is atomic and a command fails, nothing was done, and its reply is the error.
    pub fn push_transaction(&mut self, watched: &[Watched], commands: &[Queued], is_atomic: bool) {
        self.items.push(if is_atomic { ATOMIC_TRANSACTION } else { TRANSACTION });
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
        start.settings.encode(&mut self.items);
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

    /// Adds a CANCEL: the clients with these claims wait no more. Its reply is how many waited.
    pub fn push_cancel(&mut self, claims: &[u64]) {
        self.items.push(CANCEL);
        put_varint(&mut self.items, claims.len() as u64);
        claims.iter().for_each(|claim| put_varint(&mut self.items, *claim));
        self.count += 1;
    }

    /// Adds a TAKE-BACK of grants (key, token, touches) that their client never heard of, unless the owner touched them
    /// since. Its reply is how many ended.
    pub fn push_take_back<'a>(
        &mut self,
        db: DbIndex,
        owner: &[u8],
        grants: impl ExactSizeIterator<Item = (&'a [u8], u64, u64)>,
    ) {
        self.items.push(TAKE_BACK);
        self.items.push(db);
        put_bytes(&mut self.items, owner);
        put_varint(&mut self.items, grants.len() as u64);
        for (key, token, touches) in grants {
            put_bytes(&mut self.items, key);
            put_varint(&mut self.items, token);
            put_varint(&mut self.items, touches);
        }
        self.count += 1;
    }

    /// Adds an END-CLAIMS: the clients of a node in lives before this one are gone. Its reply is how many waited.
    pub fn push_end_claims(&mut self, node: NodeId, life: u64) {
        self.items.push(END_CLAIMS);
        put_varint(&mut self.items, node.0);
        put_varint(&mut self.items, life);
        self.count += 1;
    }

    /// Adds a CONFIRM: the clients with these claims will be told of what they were handed. Its reply is for how many all
    /// of it is still given.
    pub fn push_confirm(&mut self, claims: &[u64]) {
        self.items.push(CONFIRM);
        put_varint(&mut self.items, claims.len() as u64);
        claims.iter().for_each(|claim| put_varint(&mut self.items, *claim));
        self.count += 1;
    }

    /// The batch as it travels to another node.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes());
        self.encode(None, &mut out);
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
        let Some(head) = decode_batch_head(&mut reader)? else { return Err(CodecError("cut short")) };
        if head.session.is_some() {
            return Err(CodecError("a batch that names its own session"));
        }
        let (user, count, bounds) = (head.user.to_vec(), head.count, head.bounds);
        let client = head.client.map(|(number, address)| (number, address.to_owned()));
        let items = reader.rest();
        for _ in 0..count {
            match reader.rest().first() {
                Some(
                    &(COMMAND | TRANSACTION | EXPIRE | VERIFY | ATOMIC_TRANSACTION | CANCEL | TAKE_BACK
                    | CONFIRM),
                ) => {
                    skip_item(&mut reader)?;
                }
                Some(_) => return Err(CodecError("an item that no client causes")),
                None => return Err(CodecError("cut short")),
            }
        }
        if !reader.is_empty() {
            return Err(CodecError("a batch with a tail"));
        }
        Ok(Batch { items: items.to_vec(), count, user, client, bounds })
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
        let client = self.client.as_ref().map_or(0, |(_, address)| address.len() + 12);
        self.items.len() + self.user.len() + client + 36
    }

    fn encode(&self, session: Option<SessionStamp>, out: &mut Vec<u8>) {
        let has = |is: bool, flag: u8| if is { flag } else { 0 };
        let has_bounds = self.bounds != Bounds::DEFAULT;
        let flags = has(session.is_some(), HAS_SESSION) | has(self.client.is_some(), HAS_CLIENT);
        out.push(flags | has(has_bounds, HAS_BOUNDS));
        if let Some(session) = session {
            for number in [session.node.0, session.epoch, session.seq, session.ack] {
                put_varint(out, number);
            }
        }
        if let Some((number, address)) = &self.client {
            put_varint(out, *number);
            put_bytes(out, address.as_bytes());
        }
        if has_bounds {
            put_varint(out, self.bounds.value as u64);
            put_varint(out, self.bounds.reply as u64);
        }
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
    Command {
        db: DbIndex,
        words: Words<'a>,
    },
    Transaction {
        watched: Vec<(DbIndex, &'a [u8], Option<LogIndex>)>,
        commands: Vec<(DbIndex, Words<'a>)>,
        is_atomic: bool,
    },
    Expire {
        keys: Vec<(DbIndex, &'a [u8])>,
    },
    LeaderStart(LeaderStart),
    Verify,
    AllocateReplica {
        node: NodeId,
        nonce: u64,
    },
    Cancel {
        claims: Vec<u64>,
    },
    /// Grants as (key, token, touches).
    TakeBack {
        db: DbIndex,
        owner: &'a [u8],
        grants: Vec<(&'a [u8], u64, u64)>,
    },
    EndClaims {
        node: NodeId,
        life: u64,
    },
    Confirm {
        claims: Vec<u64>,
    },
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

/// The head of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHead<'a> {
    pub user: &'a [u8],
    /// How many items follow.
    pub count: usize,
    /// Which batch of which node it is; `None` for one that executes in any case.
    pub session: Option<SessionStamp>,
    /// The number of its client on its node, and its address.
    pub client: Option<(u64, &'a str)>,
    /// What its commands may make and answer.
    pub bounds: Bounds,
}

/// Reads the head of the next batch and leaves its items. `None` at the end of the entry.
pub fn decode_batch_head<'a>(reader: &mut Reader<'a>) -> Result<Option<BatchHead<'a>>, CodecError> {
    if reader.is_empty() {
        return Ok(None);
    }
    let flags = reader.u8()?;
    if flags & !(HAS_SESSION | HAS_CLIENT | HAS_BOUNDS) != 0 {
        return Err(CodecError("a batch with unknown flags"));
    }
    let mut session = None;
    if flags & HAS_SESSION != 0 {
        let (node, epoch) = (NodeId(reader.varint()?), reader.varint()?);
        session = Some(SessionStamp { node, epoch, seq: reader.varint()?, ack: reader.varint()? });
    }
    let mut client = None;
    if flags & HAS_CLIENT != 0 {
        let number = reader.varint()?;
        let address = std::str::from_utf8(reader.bytes()?);
        client = Some((number, address.map_err(|_| CodecError("an address is not UTF-8"))?));
    }
    let mut bounds = Bounds::DEFAULT;
    if flags & HAS_BOUNDS != 0 {
        let size = |number: u64| usize::try_from(number).map_err(|_| CodecError("a bound out of range"));
        bounds = Bounds { value: size(reader.varint()?)?, reply: size(reader.varint()?)? };
    }
    let user = reader.bytes()?;
    let count = usize::try_from(reader.varint()?).map_err(|_| CodecError("count out of range"))?;
    Ok(Some(BatchHead { user, count, session, client, bounds }))
}

/// Reads the next item of a batch.
pub fn decode_item<'a>(reader: &mut Reader<'a>) -> Result<Item<'a>, CodecError> {
    match reader.u8()? {
        COMMAND => {
            let (db, words) = decode_command(reader)?;
            Ok(Item::Command { db, words })
        }
        TRANSACTION => decode_transaction(reader, false),
        ATOMIC_TRANSACTION => decode_transaction(reader, true),
        EXPIRE => {
            let mut keys = Vec::new();
            for _ in 0..reader.varint()? {
                keys.push((reader.u8()?, reader.bytes()?));
            }
            Ok(Item::Expire { keys })
        }
        LEADER_START => {
            let outage = Millis(reader.varint()?);
            let settings = Settings::decode(reader)?;
            Ok(Item::LeaderStart(LeaderStart { outage, settings }))
        }
        VERIFY => Ok(Item::Verify),
        ALLOCATE_REPLICA => {
            Ok(Item::AllocateReplica { node: NodeId(reader.varint()?), nonce: reader.varint()? })
        }
        CANCEL => Ok(Item::Cancel { claims: decode_claims(reader)? }),
        CONFIRM => Ok(Item::Confirm { claims: decode_claims(reader)? }),
        TAKE_BACK => {
            let (db, owner) = (reader.u8()?, reader.bytes()?);
            let mut grants = Vec::new();
            for _ in 0..reader.varint()? {
                grants.push((reader.bytes()?, reader.varint()?, reader.varint()?));
            }
            Ok(Item::TakeBack { db, owner, grants })
        }
        END_CLAIMS => Ok(Item::EndClaims { node: NodeId(reader.varint()?), life: reader.varint()? }),
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
        Some(&(TRANSACTION | ATOMIC_TRANSACTION)) => {
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
        Some(&(CANCEL | CONFIRM)) => {
            reader.u8()?;
            for _ in 0..reader.varint()? {
                reader.varint()?;
            }
            Ok(())
        }
        Some(&TAKE_BACK) => {
            reader.u8()?;
            reader.u8()?;
            reader.bytes()?;
            for _ in 0..reader.varint()? {
                reader.bytes()?;
                reader.varint()?;
                reader.varint()?;
            }
            Ok(())
        }
        // The others have nothing of variable length.
        Some(_) | None => decode_item(reader).map(|_| ()),
    }
}

fn decode_claims(reader: &mut Reader<'_>) -> Result<Vec<u64>, CodecError> {
    let mut claims = Vec::new();
    for _ in 0..reader.varint()? {
        claims.push(reader.varint()?);
    }
    Ok(claims)
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

fn decode_transaction<'a>(reader: &mut Reader<'a>, is_atomic: bool) -> Result<Item<'a>, CodecError> {
    let mut watched = Vec::new();
    for _ in 0..reader.varint()? {
        let (db, key, changed) = (reader.u8()?, reader.bytes()?, reader.varint()?);
        watched.push((db, key, changed.checked_sub(1).map(LogIndex)));
    }
    let mut commands = Vec::new();
    for _ in 0..reader.varint()? {
        commands.push(decode_command(reader)?);
    }
    Ok(Item::Transaction { watched, commands, is_atomic })
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
            true,
        );
        batch.push_cancel(&[7, 9]);
        batch.push_take_back(2, b"owner", [(&b"l"[..], 5, 1)].into_iter());
        batch.push_confirm(&[8]);
        batch.name_client(12, "127.0.0.1:4000");
        batch.bounds = BOUNDS;
        batch
    }

    const BOUNDS: Bounds = Bounds { value: 7 << 20, reply: usize::MAX };

    /// The whole entry as text, by `decode_item`; and `skip_item` must end where it does.
    fn unpack(data: &[u8]) -> Result<Vec<String>, CodecError> {
        let (_, mut reader) = decode_stamps(data)?;
        let mut items = Vec::new();
        while let Some(head) = decode_batch_head(&mut reader)? {
            for _ in 0..head.count {
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
        let client = Some((12, "127.0.0.1:4000"));
        assert_eq!(
            head,
            BatchHead { user: b"default", count: 6, session: Some(session()), client, bounds: BOUNDS }
        );
        assert!(
            matches!(decode_item(&mut reader).unwrap(), Item::Command { db: 3, words } if words.len() == 3)
        );
        let Item::Expire { keys } = decode_item(&mut reader).unwrap() else { panic!("an EXPIRE") };
        assert_eq!(keys, vec![(0, &b"k"[..])]);
        let Item::Transaction { watched, commands, is_atomic: true } = decode_item(&mut reader).unwrap()
        else {
            panic!("a transaction")
        };
        assert_eq!(watched, vec![(0, &b"w"[..], None)]);
        assert_eq!(commands.len(), 1);
        let items: Vec<Item<'_>> = (0..3).map(|_| decode_item(&mut reader).unwrap()).collect();
        let told = "[Cancel { claims: [7, 9] }, TakeBack { db: 2, owner: [111, 119, 110, 101, 114], grants: [([108], 5, 1)] }, \
                    Confirm { claims: [8] }]";
        assert_eq!(format!("{items:?}"), told);
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
            assert_eq!((head.count, head.session), (batch.len(), stamp));
            (0..head.count).for_each(|_| skip_item(&mut reader).unwrap());
        }
        assert!(decode_batch_head(&mut reader).unwrap().is_none());
        let items = unpack(&data).unwrap();
        assert_eq!(
            items[..2],
            ["Verify", "AllocateReplica { node: NodeId(4), nonce: 18446744073709551615 }"]
        );
        assert!(data.capacity() < data.len() + 280, "the size was known before");
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
        let own: [fn(&mut Batch, &LeaderStart); 3] = [
            |batch, start| batch.push_leader_start(start),
            |batch, _| batch.push_allocate_replica(NodeId(1), 1),
            |batch, _| batch.push_end_claims(NodeId(1), 1),
        ];
        for push in own {
            let mut batch = full_batch();
            push(&mut batch, &start);
            assert!(Batch::from_bytes(&batch.to_bytes()).is_err(), "{batch:?}");
        }
        let good = full_batch();
        for count in [0, 1, 5, 7, usize::MAX] {
            let batch = Batch { count, ..good.clone() };
            assert!(Batch::from_bytes(&batch.to_bytes()).is_err(), "a count of {count}");
        }
        let unknown = Batch { items: vec![99], count: 1, ..Batch::default() };
        assert!(Batch::from_bytes(&unknown.to_bytes()).is_err());
        // Lengths and counts that claim more than there is.
        for items in [
            vec![COMMAND, 0, 255, 255, 255, 255, 15],
            vec![COMMAND, 0, 1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, b'x'],
            vec![EXPIRE, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0, 0],
            vec![TRANSACTION, 0, 255, 255, 3, 0, 0],
            vec![CANCEL, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0],
            vec![CONFIRM, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0],
            vec![TAKE_BACK, 0, 0, 255, 255, 255, 255, 15, 0],
            vec![TRANSACTION, 1, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2, 0],
        ] {
            let batch = Batch { items, count: 1, ..Batch::default() };
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
