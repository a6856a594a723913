//! The replicated data: deterministic, in memory, changed only by apply.
//!
//! Nothing here reads a clock, draws a random number or does I/O, but for rows that are written into a batch and payloads
//! that are read back from disk (`queues::cold`):
//! replicas that applied the same entries hold the same state (DESIGN.md D12). Every change of a row
//! goes through a method of [`State`], because a change means four things at once: the row, the index
//! of its last change, its place in the expiry indices, and the list of rows to write.

mod changes;
pub mod confirm;
pub mod expiry;
pub mod handed;
mod keyspace;
pub mod locks;
pub mod membership;
pub mod notices;
pub mod once;
pub mod queues;
mod rows;
pub mod sessions;
mod undo;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_128;

use crate::state::changes::Changes;
use crate::state::expiry::ExpiryIndex;
use crate::state::expiry::KeyName;
use crate::state::expiry::LeaseName;
use crate::state::expiry::Leases;
use crate::state::expiry::Track;
use crate::state::handed::HandOver;
use crate::state::handed::HandOvers;
use crate::state::locks::Claim;
use crate::state::locks::ClaimId;
use crate::state::locks::LockFigures;
use crate::state::locks::LockOwners;
use crate::state::locks::OwnerName;
use crate::state::locks::Wait;
use crate::state::locks::Waits;
use crate::state::locks::graph::VictimChoice;
use crate::state::locks::releases::Release;
use crate::state::locks::releases::Releases;
use crate::state::notices::Interest;
use crate::state::notices::Notice;
use crate::state::once::OnceName;
use crate::state::once::OnceRecord;
use crate::state::once::OnceRecords;
use crate::state::queues::Keyed;
use crate::state::queues::MessageId;
use crate::state::queues::PopWait;
use crate::state::queues::PopWaits;
use crate::state::queues::Record;
use crate::state::queues::cold::Cold;
use crate::state::queues::finished::Finished;
use crate::state::queues::queue::DIRTY;
use crate::state::queues::queue::STORED;
use crate::state::queues::trace::Traces;
use crate::state::sessions::Admission;
use crate::state::sessions::Remembered;
use crate::state::sessions::Session;
use crate::state::sessions::Sessions;
use crate::state::undo::Undo;
use crate::storage::ColdRows;
use crate::storage::Rows;
use crate::storage::StorageError;
use crate::types::ClusterTime;
use crate::types::FencingToken;
use crate::types::LogIndex;
use crate::types::Millis;
use crate::types::NodeId;
use crate::types::Term;
use crate::types::WallMillis;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_varint;
use crate::types::planted::Bug;
use crate::types::planted::is_planted;
use crate::types::planted::scaled;

pub use changes::Pending;
pub use changes::RowBatch;
pub use keyspace::Form;
pub use keyspace::Keyspace;
pub use keyspace::Object;
pub use keyspace::PARTS;
pub use keyspace::Row;
pub use membership::Membership;
pub use membership::NodeAddress;

/// A database number, as SELECT takes it (0 to `databases` − 1, below 256).
pub type DbIndex = u8;

/// At most this many items end in one EXPIRE (COMMANDS.md 3.2, rule 3, allows 1024): a hundred thousand leases that end
/// at once must not hold up what stands behind them in the log.
pub const EXPIRE_AT_MOST: usize = 64;
/// Beside what somebody waits for, an EXPIRE ends this part of them of other items: few, so that it is done soon, but
/// some, so that they do not pile up for ever.
const EXPIRE_BESIDE_PART: usize = 4;
/// Smaller bounds of the simulator do not go below this: it has an eye on how many EXPIREs there are.
const EXPIRE_SCALED_MIN: u64 = 4;

/// [`EXPIRE_AT_MOST`], and less in a simulation that wants it so.
#[must_use]
pub fn expire_at_most() -> usize {
    let scaled = scaled(EXPIRE_AT_MOST as u64).max(EXPIRE_SCALED_MIN);
    usize::try_from(scaled).unwrap_or(EXPIRE_AT_MOST)
}

/// Directives of scope `cluster`: part of the state, the same on every replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How many databases SELECT can choose from; 0 before the first LEADER-START of a new log.
    pub databases: u8,
    /// Lease of a LOCK that names none.
    pub lock_default_ttl: Millis,
    /// How long leases live at least after a change of leader.
    pub lease_failover_grace: Millis,
    /// Whom a deadlock costs its wait.
    pub lock_deadlock_victim: VictimChoice,
    /// Edges of the wait-for graph that one search looks at, at most.
    pub lock_graph_max: u64,
    /// Releases that are remembered, at most.
    pub lock_release_memory: u64,
    /// Named transactions that are remembered, at most.
    pub once_max_entries: u64,
    /// Bytes of their replies that are kept, at most.
    pub once_max_bytes: u64,
    /// Acknowledged receipts that are remembered, at most.
    pub queue_ack_memory: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            databases: 0,
            lock_default_ttl: Millis(30_000),
            lease_failover_grace: Millis(3_000),
            lock_deadlock_victim: VictimChoice::Requester,
            lock_graph_max: 100_000,
            lock_release_memory: 1_000_000,
            once_max_entries: 1_000_000,
            once_max_bytes: 256 << 20,
            queue_ack_memory: 1_000_000,
        }
    }
}

impl Settings {
    /// Appends the settings, as rows and LEADER-START keep them.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for number in [
            u64::from(self.databases),
            self.lock_default_ttl.0,
            self.lease_failover_grace.0,
            u64::from(self.lock_deadlock_victim.code()),
            self.lock_graph_max,
            self.lock_release_memory,
            self.once_max_entries,
            self.once_max_bytes,
            self.queue_ack_memory,
        ] {
            put_varint(out, number);
        }
    }

    /// Reads what [`Settings::encode`] wrote.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Settings, CodecError> {
        Ok(Settings {
            databases: u8::try_from(reader.varint()?).map_err(|_| CodecError("databases out of range"))?,
            lock_default_ttl: Millis(reader.varint()?),
            lease_failover_grace: Millis(reader.varint()?),
            lock_deadlock_victim: u8::try_from(reader.varint()?)
                .ok()
                .and_then(VictimChoice::of)
                .ok_or(CodecError("an unknown choice of a deadlock's victim"))?,
            lock_graph_max: reader.varint()?,
            lock_release_memory: reader.varint()?,
            once_max_entries: reader.varint()?,
            once_max_bytes: reader.varint()?,
            queue_ack_memory: reader.varint()?,
        })
    }
}

/// Numbers of the group itself; written with every batch of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Meta {
    /// The last entry that was applied.
    pub applied: LogIndex,
    /// Its term.
    pub applied_term: Term,
    /// The cluster time of the last entry.
    pub clock: ClusterTime,
    /// The wall stamp of the last entry.
    pub wall: WallMillis,
    /// How far key time is ahead of cluster time: total outages, during which leases stand still but
    /// strings go on ageing (COMMANDS.md 3.2, rule 7).
    pub key_clock_ahead: Millis,
    /// The last fencing token that was given out.
    pub last_token: FencingToken,
    /// The last claim of a client that waits.
    pub last_claim: u64,
    /// The number of the queue that was created last.
    pub last_queue: u64,
    /// How many receipts of finished messages were remembered and forgotten.
    pub finished_first: u64,
    pub settings: Settings,
}

/// A deadlock that was resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadlockRecord {
    /// The entry that closed the cycle.
    pub index: LogIndex,
    pub at: ClusterTime,
    pub victim: Box<[u8]>,
    /// Victim and cycle, as the victim's client was told.
    pub text: Box<str>,
}

impl DeadlockRecord {
    /// The cycle alone, as LOCKS DEADLOCKS shows it.
    #[must_use]
    pub fn cycle(&self) -> &str {
        let cycle = self.text.split_once("cycle=\"").map(|(_, cycle)| cycle);
        cycle.and_then(|cycle| cycle.strip_suffix('"')).unwrap_or(&self.text)
    }
}

/// Deadlocks that are remembered.
pub const DEADLOCKS_KEPT: usize = 128;

/// How long something took that has just ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timing {
    /// A request was granted after it had waited.
    LockWait(Millis),
    /// A hold ended.
    LockHold(Millis),
    /// A QPOP that waited ended.
    QueueWait(Millis),
}

/// The state of one group.
#[derive(Debug)]
pub struct State {
    pub(crate) meta: Meta,
    databases: Vec<Keyspace>,
    /// Queues that are at rest, by database: no keys, but remembered under their names.
    resting: Vec<Keyspace>,
    changes: Changes,
    /// Keys with a time to live, in key time.
    expiring: ExpiryIndex<KeyName>,
    /// Everything else that ends by time, in cluster time.
    leases: Leases,
    /// Which locks an owner holds.
    lock_owners: LockOwners,
    /// Requests that wait for locks.
    waits: Waits,
    /// What was handed to those who waited, and is not confirmed.
    handed: HandOvers,
    /// Releases of locks that may be asked for again.
    releases: Releases,
    /// Named transactions.
    once: OnceRecords,
    /// The last deadlocks, the newest last.
    deadlocks: VecDeque<DeadlockRecord>,
    /// What the entry that is being applied brought about.
    notices: Vec<Notice>,
    timings: Vec<Timing>,
    interest: Interest,
    lock_figures: LockFigures,
    /// Keys that ended because their time had come, since the process started; no part of the state.
    keys_expired: u64,
    /// How to take back what the transaction did that is being applied.
    undo: Option<Box<Undo>>,
    /// The queues there are, also those at rest, by their numbers.
    queue_names: BTreeMap<u64, KeyName>,
    /// QPOPs that wait.
    pop_waits: PopWaits,
    /// Queues in which messages may have become available that somebody waits for.
    available: BTreeSet<KeyName>,
    /// Messages that were acknowledged of late.
    finished: Finished,
    traces: Traces,
    /// What is on disk and not in memory.
    cold: Cold,
    /// What each node has had executed.
    sessions: Sessions,
    membership: Membership,
    /// How many messages the entry that is being applied has pushed; part of their ids.
    pushed_in_entry: u32,
    /// How many keys have a deadline, by database (INFO's keyspace section).
    expiring_by_db: Vec<usize>,
}

impl State {
    /// An empty state with this many databases; 0 until the log says how many.
    ///
    /// A keyspace for every number there can be is held: an empty one costs nothing, and no start with
    /// another configuration can meet a row or an entry that has no place.
    #[must_use]
    pub fn new(databases: u8) -> State {
        State {
            meta: Meta { settings: Settings { databases, ..Settings::default() }, ..Meta::default() },
            databases: (0..=DbIndex::MAX).map(|_| Keyspace::default()).collect(),
            resting: (0..=DbIndex::MAX).map(|_| Keyspace::default()).collect(),
            changes: Changes::default(),
            expiring: ExpiryIndex::default(),
            leases: Leases::default(),
            lock_owners: LockOwners::default(),
            waits: Waits::default(),
            handed: HandOvers::default(),
            releases: Releases::default(),
            once: OnceRecords::default(),
            deadlocks: VecDeque::new(),
            notices: Vec::new(),
            timings: Vec::new(),
            interest: Interest::default(),
            lock_figures: LockFigures::default(),
            keys_expired: 0,
            undo: None,
            queue_names: BTreeMap::new(),
            pop_waits: PopWaits::default(),
            available: BTreeSet::new(),
            finished: Finished::default(),
            traces: Traces::default(),
            cold: Cold::none(),
            sessions: Sessions::default(),
            membership: Membership::default(),
            pushed_in_entry: 0,
            expiring_by_db: vec![0; usize::from(DbIndex::MAX) + 1],
        }
    }

    // ---- reading ----------------------------------------------------------------------------------

    /// The group's own numbers.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Directives of scope `cluster`.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.meta.settings
    }

    /// Number of databases.
    #[must_use]
    pub fn databases(&self) -> usize {
        usize::from(self.meta.settings.databases)
    }

    /// One database.
    #[must_use]
    pub fn database(&self, db: DbIndex) -> &Keyspace {
        &self.databases[usize::from(db)]
    }

    /// The row of a key, whether or not it is due.
    #[must_use]
    pub fn row(&self, db: DbIndex, key: &[u8]) -> Option<&Row> {
        self.databases.get(usize::from(db))?.get(key)
    }

    /// Key time at a cluster time: what a key's deadline is compared with.
    #[must_use]
    pub fn key_now(&self, now: ClusterTime) -> ClusterTime {
        now.after(self.meta.key_clock_ahead)
    }

    /// How many keys of a database have a deadline.
    #[must_use]
    pub fn expiring_keys(&self, db: DbIndex) -> usize {
        self.expiring_by_db.get(usize::from(db)).copied().unwrap_or(0)
    }

    /// The earliest cluster time at which something ends: a key, a lock's lease, a message's lease.
    #[must_use]
    pub fn earliest_deadline(&self) -> ClusterTime {
        self.earliest_on(Track::Awaited).min(self.earliest_on(Track::Idle))
    }

    /// The same of one track.
    #[must_use]
    pub fn earliest_on(&self, track: Track) -> ClusterTime {
        let leases = self.leases.on(track).earliest();
        if track == Track::Idle { leases.min(self.earliest_key()) } else { leases }
    }

    /// The earliest cluster time at which a key ends.
    fn earliest_key(&self) -> ClusterTime {
        match self.expiring.earliest() {
            ClusterTime::NEVER => ClusterTime::NEVER,
            ClusterTime(at) => ClusterTime(at.saturating_sub(self.meta.key_clock_ahead.0)),
        }
    }

    /// True when something is due that has not been expired yet.
    #[must_use]
    pub fn anything_due(&self, now: ClusterTime) -> bool {
        self.earliest_deadline() <= now
    }

    /// True when this key, its lock, or something of its queue is due.
    #[must_use]
    pub fn is_due(&self, db: DbIndex, key: &[u8], now: ClusterTime) -> bool {
        let Some(row) = self.row(db, key) else {
            return self.queue_at_rest(db, key).is_some_and(|queue| queue.earliest_timer() <= now);
        };
        match row.object() {
            Object::String => row.deadline <= self.key_now(now),
            Object::Lock(lock) => locks::is_due(self, db, key, lock, now),
            Object::Queue(queue) => queue.earliest_timer() <= now,
        }
    }

    /// How many locks an owner holds and waits for, in all databases.
    #[must_use]
    pub fn locks_of(&self, owner: &locks::OwnerName) -> usize {
        self.lock_owners.count_of(owner).saturating_add(self.waits.of(owner).count())
    }

    /// How many locks are held.
    #[must_use]
    pub fn locks_held(&self) -> usize {
        self.lock_owners.len()
    }

    /// Who waits for locks.
    #[must_use]
    pub fn waits(&self) -> &Waits {
        &self.waits
    }

    /// True while a client waits under this number: for locks, for messages, or for word that it may be told of them.
    #[must_use]
    pub fn is_waiting(&self, claim: ClaimId) -> bool {
        self.waits.of_claim(claim).is_some()
            || self.pop_waits.get(claim).is_some()
            || self.handed.of_claim(claim).is_some()
    }

    /// Every client that waits for locks or messages.
    pub fn claims(&self) -> impl Iterator<Item = &Claim> {
        let locks = self.waits.iter().flat_map(|(_, wait)| wait.claims());
        locks.chain(self.pop_waits.iter().map(|wait| &wait.claim))
    }

    /// The nodes, by life, whose clients wait, or did not confirm what they were handed; some twice.
    pub fn waiting_nodes(&self) -> impl Iterator<Item = (NodeId, u64)> {
        self.waits.nodes().chain(self.pop_waits.nodes()).chain(self.handed.nodes())
    }

    /// Which locks each owner holds.
    #[must_use]
    pub fn lock_owners(&self) -> &LockOwners {
        &self.lock_owners
    }

    /// What happened to locks since the process started.
    #[must_use]
    pub fn lock_figures(&self) -> LockFigures {
        self.lock_figures
    }

    /// Keys that ended here because their time had come, since the process started.
    #[must_use]
    pub fn keys_expired(&self) -> u64 {
        self.keys_expired
    }

    /// This state takes the place of another one in the same process, whose counts go on.
    pub(crate) fn go_on_counting(&mut self, before: &State) {
        self.keys_expired = before.keys_expired;
        let held_shared = self.lock_figures.held_shared;
        self.lock_figures = LockFigures { held_shared, ..before.lock_figures };
    }

    /// The last deadlocks, the newest last.
    pub fn deadlocks(&self) -> impl DoubleEndedIterator<Item = &DeadlockRecord> {
        self.deadlocks.iter()
    }

    /// What is kept of a named transaction; what is due is not.
    #[must_use]
    pub fn once(&self, name: &OnceName, now: ClusterTime) -> Option<&OnceRecord> {
        self.once.get(name).filter(|record| record.until > now)
    }

    /// How many named transactions are kept.
    #[must_use]
    pub fn once_len(&self) -> usize {
        self.once.len()
    }

    /// Bytes of the replies to named transactions that are kept.
    #[must_use]
    pub fn once_reply_bytes(&self) -> u64 {
        self.once.reply_bytes()
    }

    /// The queues there are, with their names.
    pub fn queues(&self) -> impl Iterator<Item = (&KeyName, &queues::Queue)> {
        self.queue_names.values().filter_map(|name| match self.row(name.0, &name.1).map(Row::object) {
            Some(Object::Queue(queue)) => Some((name, queue.as_ref())),
            _ => None,
        })
    }

    /// The same, with those at rest, in the order in which they were created.
    pub fn known_queues(&self) -> impl Iterator<Item = (&KeyName, &queues::Queue)> {
        self.queue_names.iter().filter_map(|(number, name)| Some((name, self.queue_of_number(*number)?)))
    }

    /// What each node has had executed, and which replies are remembered.
    #[must_use]
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Who replicates the group; empty in a data directory that knows of no other node.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    // ---- changing: sessions and membership --------------------------------------------------------

    /// Decides on one batch of a node's session, as [`Sessions::admit`] does.
    pub fn admit_batch(&mut self, node: NodeId, epoch: u64, seq: u64, ack: u64) -> Admission {
        let admission = self.sessions.admit(node, epoch, seq, ack);
        if admission != Admission::Ended {
            self.changes.note_session(node);
        }
        admission
    }

    /// Keeps what came of the batch that was admitted last.
    pub fn remember_replies(&mut self, node: NodeId, seq: u64, replies: Remembered) {
        self.sessions.remember(node, seq, replies);
        self.changes.note_session(node);
    }

    /// Sets who replicates the group. Which replica ids were given out stays known, whatever `membership` says of
    /// it; what is remembered for nodes that are gone is forgotten.
    pub fn set_membership(&mut self, mut membership: Membership) {
        membership.succeed(&self.membership);
        for node in self.membership.nodes_gone(&membership) {
            self.sessions.forget_replies(node);
            self.changes.note_session(node);
        }
        self.membership = membership;
        self.changes.membership = true;
    }

    /// A replica id that was never used, for a replica of `node`. The same `nonce` again gets the same id. `None`
    /// when all are used up.
    pub fn allocate_replica(&mut self, node: NodeId, nonce: u64) -> Option<u64> {
        self.changes.membership = true;
        self.membership.allocate(node, nonce)
    }

    // ---- changing: what stands beside the rows ----------------------------------------------------

    /// What the entries since the last call brought about.
    pub fn take_notices(&mut self) -> (Vec<Notice>, Vec<Timing>) {
        (std::mem::take(&mut self.notices), std::mem::take(&mut self.timings))
    }

    /// Who wants notices; nothing that is replicated.
    #[must_use]
    pub fn interest(&self) -> &Interest {
        &self.interest
    }

    /// Takes the place of a state that had this interest.
    pub fn set_interest(&mut self, interest: Interest) {
        self.interest = interest;
    }

    /// Keeps a named transaction. Older ones lose their replies for it when there are too many bytes of them.
    pub(crate) fn remember_once(&mut self, name: OnceName, record: OnceRecord) {
        self.forget_once(&name);
        self.leases.insert(Track::Idle, record.until, LeaseName::Once(name.clone()));
        self.changes.once.push(name.clone());
        self.changes.bytes += record.reply.as_ref().map_or(0, |reply| reply.len());
        self.once.insert(name, record);
        while let Some(name) = self.once.drop_oldest_reply(self.meta.settings.once_max_bytes) {
            self.changes.once.push(name);
        }
    }

    fn forget_once(&mut self, name: &OnceName) {
        if let Some(record) = self.once.remove(name) {
            self.leases.remove(Track::Idle, record.until, LeaseName::Once(name.clone()));
            self.changes.once.push(name.clone());
        }
    }

    fn note_deadlock(&mut self, victim: &OwnerName, text: &str) {
        self.save_deadlocks();
        self.lock_figures.deadlocks += 1;
        let (index, at) = (self.meta.applied, self.meta.clock);
        self.deadlocks.push_back(DeadlockRecord {
            index,
            at,
            victim: victim.owner.clone(),
            text: text.into(),
        });
        if self.deadlocks.len() > DEADLOCKS_KEPT {
            self.deadlocks.pop_front();
        }
        self.changes.deadlocks = true;
    }

    /// A release was remembered, and others were forgotten for it.
    fn note_release(&mut self, token: FencingToken, forgotten: &[(FencingToken, Release)]) {
        self.save_release(token, None);
        self.changes.releases.push(token);
        for (token, release) in forgotten {
            self.save_release(*token, Some(*release));
            self.changes.releases.push(*token);
        }
    }

    fn note_wait_ended(&mut self, since: ClusterTime, now: ClusterTime) {
        self.timings.push(Timing::LockWait(since.until(now)));
    }

    fn note_hold_ended(&mut self, since: ClusterTime, now: ClusterTime) {
        self.timings.push(Timing::LockHold(since.until(now)));
    }

    fn next_claim(&mut self) -> ClaimId {
        self.meta.last_claim += 1;
        ClaimId(self.meta.last_claim)
    }

    /// Enters when these clients wait no more.
    fn index_claims<'a>(&mut self, claims: impl IntoIterator<Item = &'a Claim>) {
        for claim in claims.into_iter().filter(|claim| claim.until != ClusterTime::NEVER) {
            self.leases.insert(Track::Awaited, claim.until, LeaseName::Claim(claim.id));
        }
    }

    fn unindex_claims<'a>(&mut self, claims: impl IntoIterator<Item = &'a Claim>) {
        for claim in claims {
            self.leases.remove(Track::Awaited, claim.until, LeaseName::Claim(claim.id));
        }
    }

    // ---- changing: rows ---------------------------------------------------------------------------

    /// Sets a string, with or without a deadline (key time). False, and nothing changed, when the key is a lock or
    /// a queue, which only their own verbs may end.
    pub fn put_string(
        &mut self,
        db: DbIndex,
        key: &[u8],
        value: &[u8],
        deadline: Option<ClusterTime>,
    ) -> bool {
        self.save_row(db, key);
        let wanted = deadline.unwrap_or(ClusterTime::NEVER);
        let space = &mut self.databases[usize::from(db)];
        let old = match space.get_mut(key) {
            Some(row) if !matches!(row.object, Object::String) => return false,
            Some(row) => {
                let was_pending = self.changes.has(row);
                row.changed = self.meta.applied;
                row.replace_string(value);
                let old = std::mem::replace(&mut row.deadline, wanted);
                self.changes.note(db, row, was_pending);
                old
            }
            None => {
                let mut row = Row::string(key, value);
                row.changed = self.meta.applied;
                row.deadline = wanted;
                self.changes.note(db, &mut row, false);
                space.insert_new(row);
                ClusterTime::NEVER
            }
        };
        self.changes.bytes += key.len() + value.len();
        if old != wanted {
            self.move_deadline(db, key, old, wanted);
        }
        true
    }

    /// Appends to a string. Gives the new length; `None` when the key holds no string.
    pub fn append_string(&mut self, db: DbIndex, key: &[u8], value: &[u8]) -> Option<usize> {
        self.change_string(db, key, value.len(), |row| row.append_string(value))
    }

    /// Writes into a string at an offset, filling a gap with zero bytes. Gives the new length; `None` when the
    /// key holds no string.
    pub fn write_string_at(&mut self, db: DbIndex, key: &[u8], offset: usize, value: &[u8]) -> Option<usize> {
        self.change_string(db, key, offset + value.len(), |row| row.write_string_at(offset, value))
    }

    /// Replaces a string and keeps its deadline. `None` when the key holds no string.
    pub fn replace_string(&mut self, db: DbIndex, key: &[u8], value: &[u8]) -> Option<()> {
        self.change_string(db, key, value.len(), |row| row.replace_string(value)).map(|_| ())
    }

    /// A string was computed as text, and is told as such. Does nothing when the key holds no string.
    pub fn set_text(&mut self, db: DbIndex, key: &[u8]) {
        self.change_string(db, key, 0, |row| row.set_form(Form::Text));
    }

    fn change_string(
        &mut self,
        db: DbIndex,
        key: &[u8],
        bytes: usize,
        change: impl FnOnce(&mut Row),
    ) -> Option<usize> {
        self.row(db, key)?.as_string()?;
        self.changes.bytes += bytes;
        self.change_row(db, key, |row| {
            change(row);
            row.string_bytes().len()
        })
    }

    /// Changes a row's content: marked as changed now, and waiting for the next flush. `None` when it is not there.
    pub(crate) fn change_row<T>(
        &mut self,
        db: DbIndex,
        key: &[u8],
        change: impl FnOnce(&mut Row) -> T,
    ) -> Option<T> {
        self.save_row(db, key);
        let row = self.databases[usize::from(db)].get_mut(key)?;
        let was_pending = self.changes.has(row);
        row.changed = self.meta.applied;
        let result = change(row);
        self.changes.note(db, row, was_pending);
        Some(result)
    }

    /// Puts a row of another type under a key that must not be there.
    pub(crate) fn insert_object(&mut self, db: DbIndex, key: &[u8], object: Object) {
        self.insert_row(db, Row::with_object(key, object));
    }

    /// The same, for what is in the indices already.
    fn insert_unindexed(&mut self, db: DbIndex, key: &[u8], object: Object) {
        self.save_row(db, key);
        let mut row = Row::with_object(key, object);
        row.changed = self.meta.applied;
        self.changes.note(db, &mut row, false);
        self.databases[usize::from(db)].insert_new(row);
    }

    fn insert_row(&mut self, db: DbIndex, mut row: Row) {
        self.save_row(db, row.key());
        row.changed = self.meta.applied;
        self.changes.note(db, &mut row, false);
        self.index_row(db, &row);
        self.databases[usize::from(db)].insert_new(row);
    }

    /// Removes a key with everything that hangs on it. False when it was not there.
    pub fn remove(&mut self, db: DbIndex, key: &[u8]) -> bool {
        if is_planted(Bug::TokenResetByDel) {
            self.meta.last_token = FencingToken(0);
        }
        self.save_row(db, key);
        let Some(row) = self.databases[usize::from(db)].remove(key) else { return false };
        self.changes.note_removed(db, &row);
        self.unindex_row(db, &row);
        if let Object::Queue(queue) = &row.object {
            self.forget_rows_of(queue);
        }
        true
    }

    /// A queue is gone for good: so are the rows of its messages and IDs.
    fn forget_rows_of(&mut self, queue: &queues::Queue) {
        let stored = queue.messages_from(MessageId::FIRST).filter(|slot| slot.has(STORED));
        self.changes.gone.extend(stored.map(|slot| (queue.number(), slot.id())));
        let names = queue.finished_dedups().map(|(name, _)| (queue.number(), name.into()));
        self.changes.dedups.extend(names);
    }

    /// Sets or clears a key's deadline (key time). False when the key is not there.
    pub fn set_deadline(&mut self, db: DbIndex, key: &[u8], deadline: Option<ClusterTime>) -> bool {
        let wanted = deadline.unwrap_or(ClusterTime::NEVER);
        let change = |row: &mut Row| std::mem::replace(&mut row.deadline, wanted);
        let Some(old) = self.change_row(db, key, change) else { return false };
        if old != wanted {
            self.move_deadline(db, key, old, wanted);
        }
        true
    }

    /// Gives a string another name, over whatever string was there; its deadline goes with it.
    pub fn rename(&mut self, db: DbIndex, from: &[u8], to: &[u8]) -> bool {
        if from == to {
            return self.change_row(db, from, |_| ()).is_some();
        }
        self.save_row(db, from);
        let Some(row) = self.databases[usize::from(db)].remove(from) else { return false };
        self.changes.note_removed(db, &row);
        self.unindex_row(db, &row);
        self.remove(db, to);
        self.insert_row(db, row.renamed(to));
        true
    }

    /// Copies a string with its deadline, over whatever string was there. False when `from` is no string.
    pub fn copy(&mut self, from_db: DbIndex, from: &[u8], to_db: DbIndex, to: &[u8]) -> bool {
        let Some(row) = self.row(from_db, from) else { return false };
        let (Some(value), deadline) = (row.as_string().map(<[u8]>::to_vec), row.deadline()) else {
            return false;
        };
        let form = row.form();
        let is_put = self.put_string(to_db, to, &value, deadline);
        if is_put && form != Form::Value {
            self.change_string(to_db, to, 0, |row| row.set_form(form));
        }
        is_put
    }

    /// Removes Redis's own types from a database; locks and queues stay (COMMANDS.md 2.0).
    pub fn flush_database(&mut self, db: DbIndex) {
        let space = &mut self.databases[usize::from(db)];
        let mut expired = Vec::new();
        space.take_unless(
            |row| !matches!(row.object, Object::String),
            |row| {
                if row.deadline != ClusterTime::NEVER {
                    expired.push((row.deadline, Box::from(row.key())));
                }
            },
        );
        let mut kept: Vec<Box<[u8]>> = space.iter().map(|row| row.key().into()).collect();
        // So are those of queues that came to rest since the last flush, which would not be listed when they come back.
        let rests = self.resting[usize::from(db)].iter().filter(|row| self.changes.has(row));
        kept.extend(rests.map(|row| Box::from(row.key())));
        for (deadline, key) in expired {
            self.expiring.remove(deadline, (db, key));
        }
        self.expiring_by_db[usize::from(db)] = 0;
        // The flush deletes every head row of the database first, so those that stay are written again.
        self.changes.note_flushed(db);
        self.changes.keys.extend(kept.into_iter().map(|key| (db, key)));
    }

    fn move_deadline(&mut self, db: DbIndex, key: &[u8], old: ClusterTime, new: ClusterTime) {
        if old != ClusterTime::NEVER {
            self.expiring.remove(old, (db, key.into()));
            self.expiring_by_db[usize::from(db)] -= 1;
        }
        if new != ClusterTime::NEVER {
            self.expiring.insert(new, (db, key.into()));
            self.expiring_by_db[usize::from(db)] += 1;
        }
    }

    /// Enters a row's deadlines into the indices.
    fn index_row(&mut self, db: DbIndex, row: &Row) {
        if row.deadline != ClusterTime::NEVER {
            self.move_deadline(db, row.key(), ClusterTime::NEVER, row.deadline);
        }
        if let Object::Lock(lock) = &row.object {
            self.move_lock(db, row.key(), None, lock.deadline());
            lock.holds().iter().for_each(|hold| self.lock_owners.insert(hold.owner(), db, row.key()));
            self.lock_figures.held_shared += lock.shared_holds();
        }
        if let Object::Queue(queue) = &row.object {
            self.queue_names.insert(queue.number(), (db, row.key().into()));
            // The queue is entered as it is opened, or by `index_queue`.
        }
    }

    fn unindex_row(&mut self, db: DbIndex, row: &Row) {
        if row.deadline != ClusterTime::NEVER {
            self.move_deadline(db, row.key(), row.deadline, ClusterTime::NEVER);
        }
        if let Object::Lock(lock) = &row.object {
            self.move_lock(db, row.key(), lock.deadline(), None);
            lock.holds().iter().for_each(|hold| self.lock_owners.remove(hold.owner(), db, row.key()));
            self.lock_figures.held_shared -= lock.shared_holds();
        }
        if let Object::Queue(queue) = &row.object {
            self.queue_names.remove(&queue.number());
            for track in Track::ALL {
                let name = LeaseName::Queue(db, row.key().into());
                self.leases.remove(track, queue.indexed_at[track as usize], name);
            }
        }
    }

    // ---- changing: time ---------------------------------------------------------------------------

    /// Ends what is due of this key, before a command runs that names it (DESIGN.md D9), and says how many
    /// items ended. Of a queue's leases no more than [`EXPIRE_AT_MOST`].
    pub fn expire_touched(&mut self, db: DbIndex, key: &[u8], now: ClusterTime) -> usize {
        if self.is_due(db, key, now) { self.expire_key(db, key, now, expire_at_most()) } else { 0 }
    }

    /// Ends what is due, and says how many items: the work of an EXPIRE that names no key.
    ///
    /// What somebody waits for goes first, up to [`EXPIRE_AT_MOST`] items of it, and then up to a quarter as many others;
    /// when nobody waits for anything that is due, as many. On a track the earliest goes first.
    pub fn expire_due(&mut self, now: ClusterTime) -> usize {
        let most = expire_at_most();
        if is_planted(Bug::AwaitedEndsLast) {
            let idle = self.expire_track(Track::Idle, now, most);
            return idle + self.expire_track(Track::Awaited, now, most - idle);
        }
        let awaited = self.expire_track(Track::Awaited, now, most);
        let beside = if awaited > 0 { most / EXPIRE_BESIDE_PART } else { most };
        awaited + self.expire_track(Track::Idle, now, beside)
    }

    fn expire_track(&mut self, track: Track, now: ClusterTime, at_most: usize) -> usize {
        let mut ended = 0;
        while ended < at_most {
            let left = at_most - ended;
            let is_keys_turn =
                track == Track::Idle && self.earliest_key() <= now.min(self.leases.on(track).earliest());
            if is_keys_turn && let Some((db, key)) = self.expiring.first_due(self.key_now(now)) {
                ended += self.expire_key(db, &key, now, left);
                continue;
            }
            let Some(lease) = self.leases.on(track).first_due(now) else { break };
            ended += match lease {
                LeaseName::Lock(db, key) => {
                    locks::end_first(self, db, &key, now);
                    1
                }
                LeaseName::Claim(claim) => usize::from(locks::end_claim(self, claim, now)),
                LeaseName::Once(name) => {
                    self.forget_once(&name);
                    1
                }
                LeaseName::Queue(db, key) => self.expire_queue(track, db, &key, now, left),
            };
        }
        ended
    }

    fn expire_key(&mut self, db: DbIndex, key: &[u8], now: ClusterTime, at_most: usize) -> usize {
        match self.row(db, key).map(Row::object) {
            Some(Object::String) => {
                self.remove(db, key);
                self.keys_expired += 1;
                1
            }
            Some(Object::Lock(_)) => locks::expire(self, db, key, now, at_most),
            Some(Object::Queue(_)) | None => Track::ALL
                .into_iter()
                .fold(0, |ended, track| ended + queues::expire(self, track, db, key, now, at_most - ended)),
        }
    }

    /// Ends what is due of a queue that stands first on this track. The index may know it under a time before its first
    /// timer; then it only moves to its place, so that replicas end the same things in the same order.
    fn expire_queue(
        &mut self,
        track: Track,
        db: DbIndex,
        key: &[u8],
        now: ClusterTime,
        at_most: usize,
    ) -> usize {
        let name: KeyName = (db, key.into());
        if self.index_queue_on(track, &name) { 0 } else { queues::expire(self, track, db, key, now, at_most) }
    }

    /// Moves a queue to its places in the index of deadlines.
    fn index_queue(&mut self, name: &KeyName) {
        for track in Track::ALL {
            self.index_queue_on(track, name);
        }
    }

    /// Moves a queue to its place on one track; false when it stands there.
    fn index_queue_on(&mut self, track: Track, name: &KeyName) -> bool {
        let Some(queue) = queues::queue_row(&mut self.databases, &mut self.resting, name.0, &name.1) else {
            return false;
        };
        let earliest = queue.earliest_on(track);
        let known = std::mem::replace(&mut queue.indexed_at[track as usize], earliest);
        if known == earliest {
            return false;
        }
        let lease = || LeaseName::Queue(name.0, name.1.clone());
        self.leases.remove(track, known, lease());
        if earliest != ClusterTime::NEVER {
            self.leases.insert(track, earliest, lease());
        }
        true
    }

    /// Begins an entry: its index and its stamps.
    pub(crate) fn begin_entry(&mut self, index: LogIndex, term: Term, clock: ClusterTime, wall: WallMillis) {
        self.meta.applied = index;
        self.meta.applied_term = term;
        self.meta.clock = self.meta.clock.max(clock);
        self.meta.wall = self.meta.wall.max(wall);
        self.pushed_in_entry = 0;
    }

    /// Moves key time ahead by the length of a total outage.
    pub(crate) fn advance_key_clock(&mut self, by: Millis) {
        self.meta.key_clock_ahead = Millis(self.meta.key_clock_ahead.0.saturating_add(by.0));
    }

    /// A new leader stands: leases whose holders could not renew live on for a while (COMMANDS.md 3.2, rule 5).
    pub(crate) fn grant_grace(&mut self, now: ClusterTime) {
        let grace = self.meta.settings.lease_failover_grace;
        let soon: Vec<LeaseName> = Track::ALL
            .into_iter()
            .flat_map(|track| self.leases.on(track).iter().take_while(|(until, _)| *until < now.after(grace)))
            .map(|(_, name)| name.clone())
            .collect();
        for name in soon {
            match name {
                LeaseName::Lock(db, key) => locks::grant_grace(self, db, &key, now, grace),
                LeaseName::Claim(_) | LeaseName::Once(_) => {}
                LeaseName::Queue(db, key) => queues::grant_grace(self, db, &key, now, grace),
            }
        }
    }

    pub(crate) fn set_settings(&mut self, settings: Settings) {
        self.meta.settings = settings;
    }

    /// The next fencing token; every call gives a greater one.
    pub(crate) fn next_token(&mut self) -> FencingToken {
        self.meta.last_token = self.meta.last_token.next();
        self.meta.last_token
    }

    // ---- rows on disk -----------------------------------------------------------------------------

    /// How much waits for the next flush.
    #[must_use]
    pub fn pending_changes(&self) -> Pending {
        let pending = self.changes.pending();
        // An event is copied, which costs about a tenth of listing a row.
        Pending { listed: pending.listed + self.traces.untaken() / 8, ..pending }
    }

    /// Takes everything that changed since the last call, as of now, with the group's numbers.
    pub fn take_changes(&mut self) -> RowBatch {
        let mut changes = std::mem::replace(&mut self.changes, Changes::after(self.meta.applied));
        let mut listed = Vec::with_capacity(changes.keys.len() + 2 * changes.messages.len());
        for (db, key) in std::mem::take(&mut changes.keys) {
            let row = self.databases[usize::from(db)].get_mut(&key);
            // A row that came back as a small string is among the encoded ones.
            if row.as_ref().is_some_and(|row| changes.has(row) && row.mark != changes::LISTED) {
                continue;
            }
            let (mut row_key, mut value) = (Vec::new(), Vec::new());
            rows::encode_head_key(db, &key, &mut row_key);
            let value = row.map(|row| {
                if let Object::Queue(queue) = &mut row.object {
                    queue.give_memory_back();
                }
                rows::encode_row(row, &mut value);
                value
            });
            listed.push((row_key, value));
        }
        for number in std::mem::take(&mut changes.resting) {
            listed.push((rows::resting_key(number).to_vec(), self.take_resting(number)));
        }
        self.take_messages(&mut changes, &mut listed);
        for node in std::mem::take(&mut changes.sessions) {
            if let Some(session) = self.sessions.get(node) {
                let mut value = Vec::new();
                session.encode(&mut value);
                listed.push((rows::session_key(node).to_vec(), Some(value)));
            }
        }
        // Some are named for every change.
        changes.waits.sort_unstable();
        changes.waits.dedup();
        changes.releases.sort_unstable();
        changes.releases.dedup();
        changes.once.sort_unstable();
        changes.once.dedup();
        changes.pops.sort_unstable();
        changes.pops.dedup();
        for claim in std::mem::take(&mut changes.pops) {
            let value = self.pop_waits.get(claim).map(|wait| encoded(|out| wait.encode(out)));
            listed.push((rows::pop_wait_key(claim).to_vec(), value));
        }
        for (number, row) in self.finished.take() {
            listed.push((rows::finished_key(number).to_vec(), row));
        }
        let added = self.traces.take();
        for id in std::mem::take(&mut changes.waits) {
            let value = self.waits.get(id).map(|wait| encoded(|out| wait.encode(out)));
            listed.push((rows::wait_key(id).to_vec(), value));
        }
        changes.handed.sort_unstable();
        changes.handed.dedup();
        for id in std::mem::take(&mut changes.handed) {
            let value = self.handed.get(id).map(|hand_over| encoded(|out| hand_over.encode(out)));
            listed.push((rows::handed_key(id).to_vec(), value));
        }
        for token in std::mem::take(&mut changes.releases) {
            let value =
                self.releases.get(token).map(|release| encoded(|out| rows::encode_release(release, out)));
            listed.push((rows::release_key(token).to_vec(), value));
        }
        for name in std::mem::take(&mut changes.once) {
            let value = self.once.get(&name).map(|record| encoded(|out| record.encode(out)));
            listed.push((rows::once_key(&name), value));
        }
        if changes.deadlocks {
            let value = encoded(|out| rows::encode_deadlocks(&self.deadlocks, out));
            listed.push((rows::DEADLOCKS.to_vec(), Some(value)));
        }
        if changes.membership {
            let mut value = Vec::new();
            self.membership.encode(&mut value);
            listed.push((rows::MEMBERSHIP.to_vec(), Some(value)));
        }
        self.meta.finished_first = self.finished.first();
        let mut meta = Vec::new();
        self.meta.encode(&mut meta);
        changes.into_rows(listed, added, meta, self.meta.clock)
    }

    /// The row of a queue that is at rest; `None` when it is not, or gone for good.
    fn take_resting(&mut self, number: u64) -> Option<Vec<u8>> {
        let (db, key) = self.queue_names.get(&number)?;
        let row = self.resting[usize::from(*db)].get_mut(key)?;
        let Object::Queue(queue) = &mut row.object else { return None };
        queue.give_memory_back();
        Some(encoded(|out| rows::encode_resting(*db, key, queue, out)))
    }

    fn take_messages(&mut self, changes: &mut Changes, listed: &mut Vec<(Vec<u8>, Option<Vec<u8>>)>) {
        for (number, id) in std::mem::take(&mut changes.gone) {
            // It may have come back.
            if self.queue_of(number).is_some_and(|queue| queue.message(id).is_some()) {
                continue;
            }
            for kind in [rows::MESSAGE, rows::PAYLOAD] {
                listed.push((rows::message_key(kind, number, id).to_vec(), None));
            }
        }
        for (number, id) in std::mem::take(&mut changes.messages) {
            let Some(queue) = self.queue_of(number) else { continue };
            let Some(slot) = queue.message_mut(id).filter(|slot| slot.has(DIRTY)) else { continue };
            let is_stored = slot.has(STORED);
            slot.flags = (slot.flags & !DIRTY) | STORED;
            let value = encoded(|out| queue.encode_message(id, out));
            listed.push((rows::message_key(rows::MESSAGE, number, id).to_vec(), Some(value)));
            if !is_stored && let Some(payload) = queue.payload(id) {
                let payload = payload.to_vec();
                listed.push((rows::message_key(rows::PAYLOAD, number, id).to_vec(), Some(payload)));
            }
        }
        changes.dedups.sort_unstable();
        changes.dedups.dedup();
        for (number, name) in std::mem::take(&mut changes.dedups) {
            let dedup = self.queue_of(number).and_then(|queue| queue.dedup(&name));
            // Those of messages that are there stand in their rows.
            let dedup = dedup.filter(|dedup| dedup.until != ClusterTime::NEVER);
            let value = dedup.map(|dedup| encoded(|out| rows::encode_dedup(dedup, out)));
            listed.push((rows::dedup_key(number, &name), value));
        }
    }

    /// What is up to this index in the rows is on disk for good, and can be read back: it may leave memory.
    pub fn on_disk(&mut self, index: LogIndex) {
        self.traces.on_disk(index);
        let mut hot: usize = self.queues().map(|(_, queue)| queue.hot_bytes()).sum();
        let budget = self.cold.budget();
        while let Some((number, id)) = self.cold.next_on_disk(index) {
            // The newest go: what waits longest is wanted first.
            if hot > budget {
                hot -= self.let_go(number, id);
            }
        }
        // What was read back for a consumer who returned it is read once more when its turn comes.
        while hot > budget
            && let Some((number, id)) = self.cold.next_read_back()
        {
            hot -= self.let_go(number, id);
        }
        let mut cold = std::mem::replace(&mut self.cold, Cold::none());
        cold.trim(|number, id| self.queue_of_number(number).is_some_and(|queue| queue.payload(id).is_some()));
        cold.set_any(self.queues().any(|(_, queue)| !queue.is_hot()));
        self.cold = cold;
    }

    /// Lets go of a payload's memory; says how much that was.
    fn let_go(&mut self, number: u64, id: MessageId) -> usize {
        let Some(queue) = self.queue_of(number) else { return 0 };
        let before = queue.hot_bytes();
        drop(queue.drop_payload(id));
        before - queue.hot_bytes()
    }

    /// From now on payloads above `budget` bytes and traces are read from these rows, which hold this state.
    pub fn read_cold(&mut self, rows: Arc<dyn ColdRows>, budget: usize) {
        self.cold = Cold::of(rows, budget);
    }

    /// A command of the log reads, and what it cannot read ends the process.
    pub(crate) fn reads_in_log(&mut self, in_log: bool) {
        self.cold.reads_in_log(in_log);
    }

    /// What went wrong when apply read from disk: the process must end.
    pub fn take_fault(&mut self) -> Option<StorageError> {
        self.cold.take_fault()
    }

    /// The applied index that rows stand for; 0 for an empty store.
    pub fn applied_of(store: &dyn Rows) -> Result<LogIndex, StorageError> {
        let corrupt = queues::cold::corrupt;
        match store.get(rows::META)? {
            Some(value) => Ok(Meta::decode(&mut Reader::new(&value)).map_err(corrupt)?.applied),
            None => Ok(LogIndex(0)),
        }
    }

    /// Reads a group's state from its rows, with all payloads and traces. An empty store gives an empty state.
    pub fn load(store: &dyn Rows) -> Result<State, StorageError> {
        let mut state = State::load_without_payloads(store)?;
        store.scan(&[rows::PAYLOAD], &mut |row_key, value| {
            let (number, id) = rows::decode_message_key(row_key).map_err(queues::cold::corrupt)?;
            let payload = Bytes::copy_from_slice(value);
            match state.queue_of(number).filter(|queue| queue.message(id).is_some()) {
                Some(queue) => queue.keep_payload(id, payload),
                None => return Err(queues::cold::corrupt(CodecError("a payload without its message"))),
            }
            Ok(())
        })?;
        store.scan(&[rows::TRACE], &mut |row_key, value| {
            let id = rows::decode_trace_key(row_key).map_err(queues::cold::corrupt)?;
            state.traces.load(id, value);
            Ok(())
        })?;
        Ok(state)
    }

    /// The same, but for payloads and traces: [`State::read_cold`] says where they are.
    pub fn load_without_payloads(store: &dyn Rows) -> Result<State, StorageError> {
        let mut state = State::new(0);
        let corrupt = queues::cold::corrupt;
        if let Some(value) = store.get(rows::META)? {
            state.meta = Meta::decode(&mut Reader::new(&value)).map_err(corrupt)?;
            state.changes = Changes::after(state.meta.applied);
        }
        store.scan(&[rows::HEAD], &mut |row_key, value| {
            let (db, key) = rows::decode_head_key(row_key).map_err(corrupt)?;
            let row = rows::decode_row(key, value).map_err(corrupt)?;
            state.databases[usize::from(db)].insert_new(row);
            Ok(())
        })?;
        store.scan(&[rows::RESTING], &mut |_, value| {
            let (db, row) = rows::decode_resting(value).map_err(corrupt)?;
            state.resting[usize::from(db)].insert_new(row);
            Ok(())
        })?;
        state.load_queues(store)?;
        store.scan(&[rows::SESSION], &mut |row_key, value| {
            let node = rows::decode_session_key(row_key).map_err(corrupt)?;
            state.sessions.insert(node, Session::decode(value).map_err(corrupt)?);
            Ok(())
        })?;
        store.scan(&[rows::WAIT], &mut |row_key, value| {
            let id = rows::decode_wait_key(row_key).map_err(corrupt)?;
            state.waits.insert(id, Wait::decode(&mut Reader::new(value)).map_err(corrupt)?);
            Ok(())
        })?;
        locks::queue_up(&mut state).map_err(corrupt)?;
        store.scan(&[rows::HANDED], &mut |row_key, value| {
            let id = rows::decode_handed_key(row_key).map_err(corrupt)?;
            state.handed.insert(id, HandOver::decode(&mut Reader::new(value)).map_err(corrupt)?);
            Ok(())
        })?;
        store.scan(&[rows::RELEASE], &mut |row_key, value| {
            let (token, release) = rows::decode_release(row_key, value).map_err(corrupt)?;
            state.releases.insert(token, release);
            Ok(())
        })?;
        store.scan(&[rows::ONCE], &mut |row_key, value| {
            let name = rows::decode_once_key(row_key).map_err(corrupt)?;
            let record = OnceRecord::decode(value).map_err(corrupt)?;
            state.leases.insert(Track::Idle, record.until, LeaseName::Once(name.clone()));
            state.once.insert(name, record);
            Ok(())
        })?;
        if let Some(value) = store.get(rows::DEADLOCKS)? {
            state.deadlocks = rows::decode_deadlocks(&value).map_err(corrupt)?;
        }
        if let Some(value) = store.get(rows::MEMBERSHIP)? {
            state.membership = Membership::decode(&value).map_err(corrupt)?;
        }
        state.index_everything();
        Ok(state)
    }

    /// Reads messages, IDs of finished ones, receipts, and QPOPs that wait. The head rows are there.
    fn load_queues(&mut self, store: &dyn Rows) -> Result<(), StorageError> {
        let corrupt = queues::cold::corrupt;
        for db in 0..=DbIndex::MAX {
            let rows = self.databases[usize::from(db)].iter().chain(self.resting[usize::from(db)].iter());
            let queues = rows.filter_map(|row| match &row.object {
                Object::Queue(queue) => Some((queue.number(), (db, Box::from(row.key())))),
                _ => None,
            });
            self.queue_names.extend(queues);
        }
        store.scan(&[rows::MESSAGE], &mut |row_key, value| {
            let (number, id) = rows::decode_message_key(row_key).map_err(corrupt)?;
            let record = Record::decode(id, &mut Reader::new(value)).map_err(corrupt)?;
            let queue = self.queue_of(number);
            queue.ok_or_else(|| corrupt(CodecError("a message without its queue")))?.put_in(record);
            Ok(())
        })?;
        store.scan(&[rows::DEDUP], &mut |row_key, value| {
            if is_planted(Bug::DedupNotKept) {
                return Ok(());
            }
            let (number, name) = rows::decode_dedup_key(row_key).map_err(corrupt)?;
            let dedup = rows::decode_dedup(value).map_err(corrupt)?;
            let queue = self.queue_of(number);
            let queue = queue.ok_or_else(|| corrupt(CodecError("an ID without its queue")))?;
            // A message that is there has it.
            if queue.dedup(name).is_none() {
                queue.set_dedup(name, Some(dedup));
            }
            Ok(())
        })?;
        let first = self.meta.finished_first;
        store.scan(&[rows::FINISHED], &mut |row_key, value| {
            let number = rows::decode_finished_key(row_key).map_err(corrupt)?;
            self.finished.load(number, value, first).map_err(corrupt)
        })?;
        self.finished.loaded(first);
        store.scan(&[rows::POP_WAIT], &mut |row_key, value| {
            if is_planted(Bug::PopWaitsNotKept) {
                return Ok(());
            }
            let claim = rows::decode_pop_wait_key(row_key).map_err(corrupt)?;
            let wait = PopWait::decode(claim, &mut Reader::new(value)).map_err(corrupt)?;
            self.index_claims([&wait.claim]);
            self.pop_waits.insert(wait);
            Ok(())
        })
    }

    fn index_everything(&mut self) {
        for db in 0..self.databases.len() {
            let space = std::mem::take(&mut self.databases[db]);
            let db = u8::try_from(db).expect("there are at most 255 databases");
            for row in space.iter() {
                self.index_row(db, row);
            }
            self.databases[usize::from(db)] = space;
        }
        let names: Vec<KeyName> = self.queue_names.values().cloned().collect();
        for name in names {
            self.index_queue(&name);
        }
    }

    /// A digest of everything that replicas must agree on. Rows are hashed one by one and summed up, so
    /// the order in which a hash table holds them does not matter.
    #[must_use]
    pub fn digest(&self) -> u128 {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        let mut sum = 0u128;
        let mut add = |key: &[u8], value: &[u8]| {
            let mut record = Vec::with_capacity(key.len() + value.len() + 10);
            put_varint(&mut record, key.len() as u64);
            record.extend_from_slice(key);
            record.extend_from_slice(value);
            sum = sum.wrapping_add(xxh3_128(&record));
        };
        for (db, space) in self.databases.iter().enumerate() {
            let db = u8::try_from(db).expect("there are at most 255 databases");
            for row in space.iter() {
                rows::encode_head_key(db, row.key(), &mut key);
                rows::encode_row(row, &mut value);
                add(&key, &value);
            }
        }
        for ((db, key), queue) in self.known_queues() {
            for slot in queue.messages_from(MessageId::FIRST) {
                value.clear();
                queue.encode_message(slot.id(), &mut value);
                add(&rows::message_key(rows::MESSAGE, queue.number(), slot.id()), &value);
            }
            for (name, dedup) in queue.finished_dedups() {
                let value = encoded(|out| rows::encode_dedup(dedup, out));
                add(&rows::dedup_key(queue.number(), name), &value);
            }
            if self.resting[usize::from(*db)].get(key).is_some() {
                let value = encoded(|out| rows::encode_resting(*db, key, queue, out));
                add(&rows::resting_key(queue.number()), &value);
            }
        }
        for (node, session) in self.sessions.iter() {
            value.clear();
            session.encode(&mut value);
            add(&rows::session_key(node), &value);
        }
        for (id, wait) in self.waits.iter() {
            add(&rows::wait_key(id), &encoded(|out| wait.encode(out)));
        }
        for (id, hand_over) in self.handed.iter() {
            add(&rows::handed_key(id), &encoded(|out| hand_over.encode(out)));
        }
        for wait in self.pop_waits.iter() {
            add(&rows::pop_wait_key(wait.claim.id), &encoded(|out| wait.encode(out)));
        }
        for finish in self.finished.iter() {
            add(&[rows::FINISHED], &encoded(|out| queues::finished::encode(finish, out)));
        }
        for (token, release) in self.releases.iter() {
            add(&rows::release_key(token), &encoded(|out| rows::encode_release(release, out)));
        }
        for (name, record) in self.once.iter() {
            add(&rows::once_key(name), &encoded(|out| record.encode(out)));
        }
        add(rows::DEADLOCKS, &encoded(|out| rows::encode_deadlocks(&self.deadlocks, out)));
        value.clear();
        self.membership.encode(&mut value);
        add(rows::MEMBERSHIP, &value);
        value.clear();
        Meta { finished_first: self.finished.first(), ..self.meta }.encode(&mut value);
        add(rows::META, &value);
        sum
    }
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out);
    out
}

/// When a lease ends after a change of leader at `now`: not before `now + grace`, but at most `2 · grace`
/// after `set_until`, where its holder set that end, so that elections that follow one another cannot
/// keep a dead holder's lease alive for ever (COMMANDS.md 3.2, rule 5). Never earlier than it would.
pub(crate) fn lease_after_grace(
    lease_until: ClusterTime,
    set_until: ClusterTime,
    now: ClusterTime,
    grace: Millis,
) -> ClusterTime {
    let budget_end = set_until.after(grace).after(grace);
    lease_until.max(now.after(grace).min(budget_end))
}

impl Meta {
    fn encode(&self, out: &mut Vec<u8>) {
        for number in [
            self.applied.0,
            self.applied_term.0,
            self.clock.0,
            self.wall.0,
            self.key_clock_ahead.0,
            self.last_token.0,
            self.last_claim,
            self.last_queue,
            self.finished_first,
        ] {
            put_varint(out, number);
        }
        self.settings.encode(out);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Meta, CodecError> {
        Ok(Meta {
            applied: LogIndex(reader.varint()?),
            applied_term: Term(reader.varint()?),
            clock: ClusterTime(reader.varint()?),
            wall: WallMillis(reader.varint()?),
            key_clock_ahead: Millis(reader.varint()?),
            last_token: FencingToken(reader.varint()?),
            last_claim: reader.varint()?,
            last_queue: reader.varint()?,
            finished_first: reader.varint()?,
            settings: Settings::decode(reader)?,
        })
    }
}

#[cfg(test)]
impl State {
    /// Fails unless everything that ends by time stands where it should in the index of deadlines; queues may stand
    /// before their place.
    pub(crate) fn check_deadlines(&self) {
        let mut wanted: BTreeSet<(Track, ClusterTime, LeaseName)> = BTreeSet::new();
        for (db, space) in (0..).zip(&self.databases).chain((0..).zip(&self.resting)) {
            for row in space.iter() {
                let key = || Box::from(row.key());
                match &row.object {
                    Object::String => {}
                    Object::Lock(lock) => {
                        wanted.extend(
                            lock.deadline().map(|(track, at)| (track, at, LeaseName::Lock(db, key()))),
                        );
                        let due: Vec<ClaimId> =
                            self.waits.due(db, row.key(), ClusterTime(u64::MAX - 1)).collect();
                        let waits = lock.waiters().filter_map(|id| self.waits.get(id));
                        let claims = waits.flat_map(|wait| wait.claims());
                        let ends = claims.filter(|claim| claim.until != ClusterTime::NEVER);
                        let mut ends: Vec<_> = ends.map(|claim| (claim.until, claim.id)).collect();
                        ends.sort_unstable();
                        assert_eq!(due, ends.into_iter().map(|(_, id)| id).collect::<Vec<_>>());
                    }
                    Object::Queue(queue) => {
                        for track in Track::ALL {
                            let at = queue.indexed_at[track as usize];
                            assert!(at <= queue.earliest_on(track));
                            wanted.extend(
                                (at != ClusterTime::NEVER).then(|| (track, at, LeaseName::Queue(db, key()))),
                            );
                        }
                    }
                }
            }
        }
        let claims = self.claims().filter(|claim| claim.until != ClusterTime::NEVER);
        wanted.extend(claims.map(|claim| (Track::Awaited, claim.until, LeaseName::Claim(claim.id))));
        wanted.extend(
            self.once.iter().map(|(name, once)| (Track::Idle, once.until, LeaseName::Once(name.clone()))),
        );
        let on = |track| self.leases.on(track).iter().map(move |(at, name)| (track, at, name.clone()));
        assert_eq!(wanted, Track::ALL.into_iter().flat_map(on).collect());
        for track in Track::ALL {
            let first = self.leases.on(track).iter().next().map_or(ClusterTime::NEVER, |(at, _)| at);
            assert_eq!(self.leases.on(track).earliest(), first);
        }
    }
}

#[cfg(test)]
pub(crate) mod test_support {
    //! A real row store in a directory of its own, removed at the end.

    use std::path::PathBuf;
    use std::sync::atomic::AtomicU64;
    use std::sync::atomic::Ordering;

    use super::State;
    use crate::storage::DataStore;
    use crate::storage::SharedCaches;

    pub struct TestStore {
        store: Option<DataStore>,
        path: PathBuf,
    }

    impl TestStore {
        pub fn new() -> TestStore {
            static NEXT: AtomicU64 = AtomicU64::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("holdfast-state-{}-{number}", std::process::id()));
            // A process of an earlier run may have had the same id and died.
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(&path).unwrap();
            let store = DataStore::open_at(&path.join("rows"), &SharedCaches::new(1 << 20, 8 << 20)).unwrap();
            TestStore { store: Some(store), path }
        }

        /// Writes what changed.
        pub fn write(&self, state: &mut State) {
            let store = self.store.as_ref().expect("it is open until it is dropped");
            store.write(state.take_changes().into_batch()).unwrap();
        }

        /// Writes what changed and goes on with what the rows say, which must be the same.
        pub fn reopen(&self, state: &mut State) {
            let store = self.store.as_ref().expect("it is open until it is dropped");
            store.write(state.take_changes().into_batch()).unwrap();
            let loaded = State::load(store).unwrap();
            assert_eq!(loaded.digest(), state.digest());
            *state = loaded;
        }

        /// The same, with all payloads left on disk.
        pub fn reopen_cold(&self, state: &mut State) {
            let store = self.store.as_ref().expect("it is open until it is dropped");
            store.write(state.take_changes().into_batch()).unwrap();
            *state = State::load_without_payloads(store).unwrap();
        }
    }

    impl Drop for TestStore {
        fn drop(&mut self) {
            drop(self.store.take());
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grace_over_many_elections_never_passes_the_budget() {
        // Elections every 100 ms for a minute keep a dead holder's lock no longer than twice the grace.
        let mut state = State::new(16);
        state.begin_entry(LogIndex(1), Term(1), ClusterTime(0), WallMillis(0));
        locks::test_support::lock(&mut state, 0, b"l", "dead", 1_000, ClusterTime(0));
        let mut ended = None;
        for n in 1..600 {
            let now = ClusterTime(n * 100);
            state.begin_entry(LogIndex(n + 1), Term(n), now, WallMillis(0));
            state.grant_grace(now);
            if state.expire_due(now) > 0 {
                ended = Some(now);
                break;
            }
        }
        let budget = 2 * state.settings().lease_failover_grace.0;
        assert_eq!(ended, Some(ClusterTime(1_000 + budget)));
    }
}
