//! Locks: leased rights with a fencing token (COMMANDS.md 2.2).
//!
//! The decisions are in [`rules`]; here they become changes of the state: the row, the index of leases, the index of
//! owners, the queue of those who wait. A lock that nobody holds or waits for has no row. Tokens come from the group's
//! counter, so that they go on increasing over a lock's lives.
//!
//! Whatever makes room hands the lock over in the same entry ([`hand_over`]).

pub mod graph;
pub mod holds;
pub mod releases;
pub mod rules;
pub mod waits;

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::state::DbIndex;
use crate::state::Object;
use crate::state::Row;
use crate::state::State;
use crate::state::confirm;
use crate::state::expiry::KeyName;
use crate::state::expiry::LeaseName;
use crate::state::expiry::Track;
use crate::state::handed::Handed;
use crate::state::handed::HandedLock;
use crate::state::lease_after_grace;
use crate::state::notices::ClaimEnd;
use crate::state::notices::Grant;
use crate::state::notices::Granted;
use crate::state::notices::LockChange;
use crate::state::notices::Notice;
use crate::state::notices::Origin;
use crate::state::queues;
use crate::types::ClusterTime;
use crate::types::FencingToken;
use crate::types::Millis;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_bool;
use crate::types::codec::put_bytes;
use crate::types::codec::put_varint;
use crate::types::planted::Bug;
use crate::types::planted::is_planted;

pub use holds::Holds;
pub use rules::Mode;
pub use rules::Verdict;
pub use rules::Wanted;
pub use waits::Claim;
pub use waits::ClaimId;
pub use waits::Wait;
pub use waits::WaitId;
pub use waits::Waits;

use waits::Asker;
use waits::Part;
use waits::WaitKey;

/// First byte of an encoded lock.
const FORMAT: u8 = 3;
/// At most this many requests wait for a lock.
pub const WAITERS_MAX: usize = 10_000;
/// At most this many share a lock.
pub const HOLDERS_MAX: usize = 100_000;
/// Locks that one command extends or releases, at most: others wait meanwhile.
pub const CHANGED_AT_ONCE: usize = 10_000;

/// Who holds a lock: an owner as the client names it, within its ACL user, so that nobody unlocks by
/// guessing another user's owners.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnerName {
    /// The ACL user.
    pub user: Box<[u8]>,
    /// The client's own name for the holder, 1 to 256 bytes.
    pub owner: Box<[u8]>,
}

impl OwnerName {
    /// The owner of this name within this user.
    #[must_use]
    pub fn new(user: &[u8], owner: &[u8]) -> OwnerName {
        OwnerName { user: user.into(), owner: owner.into() }
    }
}

/// What one owner has of a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    owner: OwnerName,
    token: FencingToken,
    /// When it ends by itself.
    lease_until: ClusterTime,
    /// Where its owner last set that end; grace after a change of leader is counted from here.
    set_until: ClusterTime,
    since: ClusterTime,
    touches: u64,
    grace: Millis,
    data: Option<Box<[u8]>>,
    /// Where it was last set from.
    origin: Origin,
}

impl Hold {
    /// Who holds.
    #[must_use]
    pub fn owner(&self) -> &OwnerName {
        &self.owner
    }

    /// The token of this hold.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// When the hold ends by itself, in cluster time.
    #[must_use]
    pub fn lease_until(&self) -> ClusterTime {
        self.lease_until
    }

    /// When this hold began, in cluster time; taking it again or extending it does not change that.
    #[must_use]
    pub fn since(&self) -> ClusterTime {
        self.since
    }

    /// How often the owner took, re-took or extended this hold (from 1): tells two states of one hold apart.
    #[must_use]
    pub fn touches(&self) -> u64 {
        self.touches
    }

    /// What the owner says of itself.
    #[must_use]
    pub fn data(&self) -> Option<&[u8]> {
        self.data.as_deref()
    }

    /// Where it was last set from.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    fn renew(&mut self, lease_until: ClusterTime, origin: &Origin) {
        self.lease_until = lease_until;
        self.set_until = lease_until;
        self.touches += 1;
        self.origin.clone_from(origin);
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, &self.owner.user);
        put_bytes(out, &self.owner.owner);
        for number in
            [self.token.0, self.lease_until.0, self.set_until.0, self.since.0, self.touches, self.grace.0]
        {
            put_varint(out, number);
        }
        waits::encode_data(self.data.as_deref(), out);
        waits::encode_origin(&self.origin, out);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Hold, CodecError> {
        Ok(Hold {
            owner: OwnerName::new(reader.bytes()?, reader.bytes()?),
            token: FencingToken(reader.varint()?),
            lease_until: ClusterTime(reader.varint()?),
            set_until: ClusterTime(reader.varint()?),
            since: ClusterTime(reader.varint()?),
            touches: reader.varint()?,
            grace: Millis(reader.varint()?),
            data: waits::decode_data(reader)?,
            origin: waits::decode_origin(reader)?,
        })
    }
}

/// Place in a lock's queue: upgrades first, then as they came.
type Place = (bool, WaitId);

/// A lock that somebody holds or waits for, or that is delayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    mode: Mode,
    limit: u32,
    holds: Holds,
    /// Rows of their own on disk.
    waiters: BTreeSet<Place>,
    delayed_until: ClusterTime,
    /// Whose hold ended by time and left the delay; `None` also when several did.
    delayed_by: Option<OwnerName>,
    grants: u64,
    expiries: u64,
}

impl Default for Lock {
    fn default() -> Lock {
        Lock {
            mode: Mode::Exclusive,
            limit: 0,
            holds: Holds::default(),
            waiters: BTreeSet::new(),
            delayed_until: ClusterTime(0),
            delayed_by: None,
            grants: 0,
            expiries: 0,
        }
    }
}

impl Lock {
    /// How it is held.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// How many may share it; 0 is any number.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Who holds it, by their tokens.
    #[must_use]
    pub fn holds(&self) -> &Holds {
        &self.holds
    }

    /// The hold of an owner.
    #[must_use]
    pub fn hold_of(&self, owner: &OwnerName) -> Option<&Hold> {
        self.holds.of(owner)
    }

    /// The hold under a token.
    #[must_use]
    pub fn hold_under(&self, token: FencingToken) -> Option<&Hold> {
        self.holds.under(token)
    }

    /// True when one more may share it.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let most = if self.limit == 0 { HOLDERS_MAX } else { self.limit as usize };
        self.holds.len() < most
    }

    /// Who waits for it, in order.
    pub fn waiters(&self) -> impl Iterator<Item = WaitId> {
        self.waiters.iter().map(|(_, id)| *id)
    }

    /// True when somebody waits for it.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        !self.waiters.is_empty()
    }

    /// Until when nobody gets it; 0 when it is not delayed.
    #[must_use]
    pub fn delayed_until(&self) -> ClusterTime {
        self.delayed_until
    }

    /// Who may take it all the same: whoever left the delay, if it was one owner.
    #[must_use]
    pub fn delayed_by(&self) -> Option<&OwnerName> {
        self.delayed_by.as_ref()
    }

    /// This owner's hold ended by time, and the owner may still be at work.
    fn delay(&mut self, owner: &OwnerName, grace: Millis, now: ClusterTime) {
        // Of two who may both be at work neither goes before the other.
        let is_others = self.delayed_until > now && self.delayed_by.as_ref() != Some(owner);
        self.delayed_by = (!is_others).then(|| owner.clone());
        self.delayed_until = self.delayed_until.max(now.after(grace));
    }

    fn end_delay(&mut self) {
        (self.delayed_until, self.delayed_by) = (ClusterTime(0), None);
    }

    /// How often it was granted, and how often a hold ended by time, since it has a row.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.grants, self.expiries)
    }

    /// Bytes of memory the lock takes besides its row.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let of = |hold: &Hold| {
            size_of::<Hold>()
                + hold.owner.user.len()
                + hold.owner.owner.len()
                + hold.data.as_ref().map_or(0, |data| data.len())
                + hold.origin.address.len()
        };
        size_of::<Lock>()
            + self.holds.iter().map(of).sum::<usize>()
            + self.waiters.len() * size_of::<Place>() * 3 / 2
    }

    /// The request that comes before this one in the queue.
    fn before(&self, id: WaitId) -> Option<WaitId> {
        let place = (!self.waiters.contains(&(false, id)), id);
        self.waiters.range(..place).next_back().map(|(_, before)| *before)
    }

    /// How many holds it has while it is shared.
    pub(super) fn shared_holds(&self) -> u64 {
        if self.mode == Mode::Shared { self.holds.len() as u64 } else { 0 }
    }

    fn is_unused(&self) -> bool {
        self.holds.is_empty() && self.waiters.is_empty() && self.delayed_until == ClusterTime(0)
    }

    /// What of it ends by time first, but for the claims of those who wait; a hold before a delay.
    fn first_end(&self) -> Option<(ClusterTime, End)> {
        let hold = self.holds.first_end().map(|(until, token)| (until, End::Hold(token)));
        let delay = (self.delayed_until != ClusterTime(0)).then_some((self.delayed_until, End::Delay));
        [hold, delay].into_iter().flatten().min_by_key(|(until, _)| *until)
    }

    /// Where it stands among the deadlines of the group: it moves as the first begins to wait and as the last leaves.
    pub(super) fn deadline(&self) -> Option<(Track, ClusterTime)> {
        let track = if self.is_waited_for() { Track::Awaited } else { Track::Idle };
        self.first_end().map(|(until, _)| (track, until))
    }

    /// Appends the lock to a row's value.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(FORMAT);
        out.push(u8::from(self.mode == Mode::Shared));
        for number in
            [u64::from(self.limit), self.delayed_until.0, self.grants, self.expiries, self.holds.len() as u64]
        {
            put_varint(out, number);
        }
        put_bool(out, self.delayed_by.is_some());
        if let Some(owner) = &self.delayed_by {
            put_bytes(out, &owner.user);
            put_bytes(out, &owner.owner);
        }
        self.holds.iter().for_each(|hold| hold.encode(out));
    }

    /// Reads what [`Lock::encode`] wrote, to the end of the value; those who wait follow from rows of their own.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Lock, CodecError> {
        if reader.u8()? != FORMAT {
            return Err(CodecError("a lock of an unknown format"));
        }
        let mut lock = Lock {
            mode: if reader.bool()? { Mode::Shared } else { Mode::Exclusive },
            limit: reader.varint32()?,
            delayed_until: ClusterTime(reader.varint()?),
            grants: reader.varint()?,
            expiries: reader.varint()?,
            ..Lock::default()
        };
        let holds = reader.varint()?;
        if reader.bool()? {
            lock.delayed_by = Some(OwnerName::new(reader.bytes()?, reader.bytes()?));
        }
        let mut is_whole = true;
        for _ in 0..holds {
            let hold = Hold::decode(reader)?;
            is_whole &= lock.holds.last().is_none_or(|last| last.token < hold.token);
            is_whole &= lock.holds.of(&hold.owner).is_none();
            lock.holds.push(hold);
        }
        if is_whole && reader.is_empty() { Ok(lock) } else { Err(CodecError("a lock is not whole")) }
    }
}

/// Something of a lock that ends by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Hold(FencingToken),
    Delay,
}

/// Which locks each owner holds, in a fixed order.
#[derive(Debug, Default)]
pub struct LockOwners {
    held: BTreeMap<OwnerName, BTreeSet<KeyName>>,
    count: usize,
}

impl LockOwners {
    /// The owner holds this lock now.
    pub fn insert(&mut self, owner: &OwnerName, db: DbIndex, key: &[u8]) {
        let name = (db, key.into());
        let is_new = match self.held.get_mut(owner) {
            Some(locks) => locks.insert(name),
            None => self.held.insert(owner.clone(), BTreeSet::from([name])).is_none(),
        };
        self.count += usize::from(is_new);
    }

    /// The owner no longer holds this lock.
    pub fn remove(&mut self, owner: &OwnerName, db: DbIndex, key: &[u8]) {
        let Some(locks) = self.held.get_mut(owner) else { return };
        self.count -= usize::from(locks.remove(&(db, key.into())));
        if locks.is_empty() {
            self.held.remove(owner);
        }
    }

    /// The owner's locks in a database, by key.
    pub fn of_db(&self, owner: &OwnerName, db: DbIndex) -> impl Iterator<Item = &[u8]> {
        let locks = self.held.get(owner).map(|locks| locks.range((db, Box::default())..));
        locks.into_iter().flatten().take_while(move |(of, _)| *of == db).map(|(_, key)| &**key)
    }

    /// The owner's locks, by database and key.
    pub fn of(&self, owner: &OwnerName) -> impl Iterator<Item = &KeyName> {
        self.held.get(owner).into_iter().flatten()
    }

    /// How many locks the owner holds.
    #[must_use]
    pub fn count_of(&self, owner: &OwnerName) -> usize {
        self.held.get(owner).map_or(0, BTreeSet::len)
    }

    /// How many holds there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// True when no lock is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

/// What happened to locks since the process started: for the metrics, and no part of the state.
#[derive(Debug, Clone, Copy, Default)]
pub struct LockFigures {
    pub held_shared: u64,
    pub expired: u64,
    pub killed: u64,
    pub deadlocks: u64,
    pub graces: u64,
}

/// A request for one lock or several.
#[derive(Debug, Clone, Copy)]
pub struct LockRequest<'a> {
    pub db: DbIndex,
    /// Each once.
    pub keys: &'a [&'a [u8]],
    /// For a request of several locks the place in `keys` of each key that it named.
    pub order: Option<&'a [u32]>,
    pub owner: &'a OwnerName,
    pub wanted: &'a Wanted,
    /// Until when the client waits; `None`: not at all.
    pub until: Option<ClusterTime>,
    pub origin: &'a Origin,
}

/// What came of a request. A refusal is an outcome, not an error: it was agreed on, like a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acquired {
    /// All are held now.
    Held(Vec<Grant>),
    /// Somebody else's turn; nothing changed. The key, who holds it first, and for how long.
    Taken { key: Box<[u8]>, holder: Option<(OwnerName, ClusterTime)> },
    /// The client waits under this number.
    Waiting(ClaimId),
    /// One of the keys holds another type.
    WrongType,
    /// The lock is shared by up to another number of holders.
    LimitDiffers { limit: u32 },
    /// The owner waits for these locks already, in another mode.
    OtherMode,
    /// To wait would close this cycle; the requester is the victim.
    Deadlock(String),
    /// Too many wait for one of the locks.
    TooMany,
    /// The graph of those who wait is too large to be searched.
    GraphTooLarge,
}

/// The lock under a key: `Some(None)` when it has no row, `None` when the key holds another type.
#[must_use]
pub fn lock_at<'a>(state: &'a State, db: DbIndex, key: &[u8]) -> Option<Option<&'a Lock>> {
    match state.row(db, key).map(Row::object) {
        None => Some(None),
        Some(Object::Lock(lock)) => Some(Some(lock)),
        Some(Object::String | Object::Queue(_)) => None,
    }
}

/// LOCK and MLOCK. What is due of the keys ended before.
pub fn acquire(state: &mut State, request: &LockRequest<'_>, now: ClusterTime) -> Acquired {
    let (owner, wanted) = (request.owner, request.wanted);
    let mut firsts = Vec::with_capacity(request.keys.len());
    let (mut taken, mut makes_room, mut is_in_the_way) = (None, false, false);
    for key in request.keys {
        let Some(lock) = lock_at(state, request.db, key) else { return Acquired::WrongType };
        match rules::decide(lock, owner, wanted, now) {
            Verdict::LimitDiffers { limit } => return Acquired::LimitDiffers { limit },
            Verdict::Wait { .. } => taken = taken.or(Some(*key)),
            Verdict::Downgrade => makes_room = true,
            Verdict::Upgrade => is_in_the_way = true,
            // Who comes back ends the delay for all, and goes before those who wait for it.
            Verdict::Grant => {
                makes_room |= lock.is_some_and(|lock| lock.delayed_until > now);
                is_in_the_way |= lock.is_some_and(Lock::is_waited_for);
            }
            Verdict::Renew => {}
        }
        // Whoever holds a lock, in whatever mode, waits for more of it before all others.
        firsts.push(lock.is_some_and(|lock| lock.hold_of(owner).is_some()));
    }
    let Some(taken) = taken else {
        let grant = |key: &&[u8]| grant_one(state, request.db, key, owner, wanted, request.origin, now);
        let grants = request.keys.iter().map(grant).collect();
        for key in request.keys.iter().filter(|_| makes_room) {
            hand_over(state, request.db, key, now);
        }
        if is_in_the_way {
            resolve_deadlocks_of(state, owner, now);
        }
        return Acquired::Held(grants);
    };
    let Some(until) = request.until else {
        let lock = lock_at(state, request.db, taken).flatten();
        let hold = lock.and_then(|lock| lock.holds.first());
        let holder = hold.map(|hold| (hold.owner.clone(), hold.lease_until));
        return Acquired::Taken { key: taken.into(), holder };
    };
    let keys = || request.keys.iter().zip(&firsts);
    let is_crowded = |key: &&[u8]| {
        let lock = lock_at(state, request.db, key).flatten();
        lock.is_some_and(|lock| lock.waiters.len() >= WAITERS_MAX)
    };
    let joined = state.waits.of(owner).find(|id| {
        // The replies to LOCK and MLOCK differ, and those to locks that are named in another order.
        let is_same =
            |wait: &Wait| wait.order.as_deref() == request.order && wait.is_for(request.db, request.keys);
        state.waits.get(*id).is_some_and(is_same)
    });
    if let Some(id) = joined {
        let known = state.waits.get(id).expect("it was found just now");
        if known.wanted.mode != wanted.mode || known.wanted.limit != wanted.limit {
            return Acquired::OtherMode;
        }
        if known.askers.len() >= WAITERS_MAX {
            return Acquired::TooMany;
        }
        return Acquired::Waiting(join(state, id, request, until));
    }
    if request.keys.iter().any(is_crowded) {
        return Acquired::TooMany;
    }
    let claim = state.next_claim();
    let id = WaitId(claim.0);
    let wait = Wait {
        owner: owner.clone(),
        db: request.db,
        keys: keys().map(|(key, is_first)| WaitKey { key: (*key).into(), is_first: *is_first }).collect(),
        order: request.order.map(<[u32]>::to_vec),
        wanted: wanted.clone(),
        since: now,
        askers: vec![Asker {
            claim: Claim { id: claim, origin: request.origin.clone(), until },
            part: Part::of(wanted),
        }],
    };
    enter(state, id, wait);
    if let Some(refused) = resolve_deadlocks(state, id, now) {
        return refused;
    }
    Acquired::Waiting(claim)
}

/// Another client waits for a request that waits already.
fn join(state: &mut State, id: WaitId, request: &LockRequest<'_>, until: ClusterTime) -> ClaimId {
    let claim = Claim { id: state.next_claim(), origin: request.origin.clone(), until };
    let number = claim.id;
    begin_claim(state, &claim);
    state.waits.add(id, Asker { claim, part: Part::of(request.wanted) });
    state.changes.waits.push(id);
    number
}

/// This client waits from now on.
fn begin_claim(state: &mut State, claim: &Claim) {
    state.index_claims([claim]);
    state.notices.push(Notice::ClaimBegan { claim: claim.id, origin: claim.origin.clone() });
}

/// Puts a request into the queues of its locks.
fn enter(state: &mut State, id: WaitId, wait: Wait) {
    wait.claims().for_each(|claim| begin_claim(state, claim));
    for WaitKey { key, is_first } in &wait.keys {
        change_lock(state, wait.db, key, |lock| lock.waiters.insert((!is_first, id)));
    }
    state.waits.insert(id, wait);
    state.changes.waits.push(id);
}

/// Takes a request out of the queues of its locks, where it leaves room that nobody has taken yet.
fn leave(state: &mut State, id: WaitId) -> Option<Wait> {
    state.save_wait(id);
    let wait = state.waits.remove(id)?;
    state.unindex_claims(wait.claims());
    for WaitKey { key, is_first } in &wait.keys {
        change_lock(state, wait.db, key, |lock| lock.waiters.remove(&(!is_first, id)));
    }
    state.changes.waits.push(id);
    Some(wait)
}

/// Ends a wait for all who wait with it; those behind it move up.
fn end_wait(state: &mut State, id: WaitId, end: &ClaimEnd, now: ClusterTime) {
    if let Some(wait) = leave_and_tell(state, id, end) {
        hand_over_all(state, &wait, now);
    }
}

/// A request waits no more: whoever stood behind it moves up.
fn hand_over_all(state: &mut State, wait: &Wait, now: ClusterTime) {
    for WaitKey { key, .. } in &wait.keys {
        hand_over(state, wait.db, key, now);
    }
}

fn tell_claims<'a>(state: &mut State, claims: impl IntoIterator<Item = &'a Claim>, end: &ClaimEnd) {
    for claim in claims {
        let (claim, origin) = (claim.id, claim.origin.clone());
        state.notices.push(Notice::ClaimEnded { claim, origin, end: end.clone() });
    }
}

/// One client waits no more; with the last one the request is gone. What it was handed and did not confirm goes back.
/// False when it did not wait.
pub(crate) fn end_claim(state: &mut State, claim: ClaimId, now: ClusterTime) -> bool {
    let Some(id) = state.waits.of_claim(claim) else {
        return queues::end_wait(state, claim, ClaimEnd::Over, now) || confirm::leave(state, claim, now);
    };
    if state.waits.get(id).is_some_and(|wait| wait.askers.len() == 1) {
        end_wait(state, id, &ClaimEnd::Over, now);
        return true;
    }
    state.save_wait(id);
    if let Some(claim) = state.waits.remove_claim(claim) {
        state.unindex_claims([&claim]);
        tell_claims(state, [&claim], &ClaimEnd::Over);
        state.changes.waits.push(id);
    }
    true
}

/// The clients of a node in lives before this one are gone: they wait no more, and what they were handed and did not
/// confirm goes back. Says how many there were.
pub(crate) fn end_claims_before(
    state: &mut State,
    node: crate::types::NodeId,
    life: u64,
    now: ClusterTime,
) -> usize {
    let mut claims = state.waits.claims_before(node, life);
    claims.extend(state.pop_waits.claims_before(node, life));
    if !is_planted(Bug::HandedToTheGone) {
        claims.extend(state.handed.claims_before(node, life));
    }
    claims.into_iter().filter(|claim| end_claim(state, *claim, now)).count()
}

/// Whether the request closes a cycle, and what becomes of it then: the reply, if it is the victim.
fn resolve_deadlocks(state: &mut State, id: WaitId, now: ClusterTime) -> Option<Acquired> {
    loop {
        let wait = state.waits.get(id)?;
        if is_planted(Bug::DeadlockUnnoticed) {
            return None;
        }
        if !graph::may_close_a_cycle(state, id, wait) {
            return None;
        }
        let Ok(cycle) = graph::find_cycle(state, &wait.owner, state.meta.settings.lock_graph_max) else {
            withdraw(state, id, now);
            return Some(Acquired::GraphTooLarge);
        };
        let (victim, error) = victim_of(state, &cycle?);
        if victim == id {
            withdraw(state, id, now);
            return Some(Acquired::Deadlock(error));
        }
        end_wait(state, victim, &ClaimEnd::Failed(error), now);
    }
}

/// An owner was given at once what others wait for from now on: it made its shared hold exclusive, or came back to a
/// lock that was delayed for it. If that closes a cycle it goes through another wait of the owner.
fn resolve_deadlocks_of(state: &mut State, owner: &OwnerName, now: ClusterTime) {
    while state.waits.of(owner).next().is_some()
        && !is_planted(Bug::DeadlockUnnoticed)
        && let Ok(Some(cycle)) = graph::find_cycle(state, owner, state.meta.settings.lock_graph_max)
    {
        let (victim, error) = victim_of(state, &cycle);
        end_wait(state, victim, &ClaimEnd::Failed(error), now);
    }
}

/// Which wait a cycle costs, and what its clients are told. The deadlock is noted.
fn victim_of(state: &mut State, cycle: &graph::Cycle) -> (WaitId, String) {
    let victim = cycle.victim(state);
    let text = cycle.describe(&victim.owner);
    state.note_deadlock(&victim.owner, &text);
    (victim.wait, format!("DEADLOCK {text}"))
}

/// A request that came just now does not wait after all. Nobody need be told.
fn withdraw(state: &mut State, id: WaitId, now: ClusterTime) {
    let Some(wait) = leave(state, id) else { return };
    let is_of_it = |notice: &Notice| match notice {
        Notice::ClaimBegan { claim, .. } => wait.claims().any(|known| known.id == *claim),
        Notice::ClaimHanded { .. }
        | Notice::ClaimConfirmed { .. }
        | Notice::ClaimEnded { .. }
        | Notice::Lock { .. } => false,
    };
    state.notices.retain(|notice| !is_of_it(notice));
    hand_over_all(state, &wait, now);
}

/// UNLOCK: ends the owner's hold (under this token, when one is given), and without a token its waits for this lock,
/// those for several included. `None` when the key holds another type; else whether a hold ended, or had been ended by this token before.
pub fn release(
    state: &mut State,
    db: DbIndex,
    key: &[u8],
    owner: &OwnerName,
    token: Option<FencingToken>,
    now: ClusterTime,
) -> Option<bool> {
    let lock = lock_at(state, db, key)?;
    let hold = lock.and_then(|lock| lock.hold_of(owner)).map(Hold::token);
    let is_held = hold.is_some_and(|held| token.is_none_or(|token| token == held));
    if token.is_none() {
        let ids: Vec<WaitId> = state.waits.of(owner).collect();
        for id in ids {
            if state.waits.get(id).is_some_and(|wait| wait.is_for_one(db, key)) {
                end_wait(state, id, &ClaimEnd::Over, now);
            }
        }
    }
    match (hold.filter(|_| is_held), token) {
        (Some(held), _) => {
            end_hold(state, db, key, held, LockChange::Released, now);
            if token.is_some() {
                let at_most = state.meta.settings.lock_release_memory;
                let forgotten = state.releases.remember(held, db, key, owner, now, at_most);
                state.note_release(held, &forgotten);
            }
            Some(true)
        }
        (None, Some(token)) => Some(state.releases.knows(token, db, key, owner, now)),
        (None, None) => Some(false),
    }
}

/// LOCKEXTEND of one lock: sets what is left of its lease if this owner holds it. `None` when the key holds another
/// type; else whether it was held.
pub fn extend(
    state: &mut State,
    db: DbIndex,
    key: &[u8],
    owner: &OwnerName,
    lease: Millis,
    origin: &Origin,
    now: ClusterTime,
) -> Option<bool> {
    let hold = lock_at(state, db, key)?.and_then(|lock| lock.hold_of(owner));
    // One that is due and did not end yet is not extended.
    let Some(token) = hold.filter(|hold| hold.lease_until > now).map(Hold::token) else { return Some(false) };
    change_hold(state, db, key, token, |hold| hold.renew(now.after(lease), origin));
    Some(true)
}

/// LOCKEXTEND without names: all locks of the owner in this database. Says how many were extended; `None`, and nothing
/// was, when they are more than [`CHANGED_AT_ONCE`].
///
/// The command names no keys, so those among its locks that are due are expired here.
pub fn extend_all(
    state: &mut State,
    db: DbIndex,
    owner: &OwnerName,
    lease: Millis,
    origin: &Origin,
    now: ClusterTime,
) -> Option<usize> {
    let keys = held_keys(state, db, owner, CHANGED_AT_ONCE + 1);
    if keys.len() > CHANGED_AT_ONCE {
        return None;
    }
    let mut extended = 0;
    for key in keys {
        state.expire_touched(db, &key, now);
        extended += usize::from(extend(state, db, &key, owner, lease, origin, now) == Some(true));
    }
    Some(extended)
}

/// Up to `at_most` locks of an owner.
fn held_keys(state: &State, db: DbIndex, owner: &OwnerName, at_most: usize) -> Vec<Box<[u8]>> {
    state.lock_owners.of_db(owner, db).map(Box::from).take(at_most).collect()
}

/// LOCKS RELEASE: ends the waits and holds of an owner in this database, [`CHANGED_AT_ONCE`] at most, waits first, and
/// says how many.
pub fn release_all(state: &mut State, db: DbIndex, owner: &OwnerName, now: ClusterTime) -> usize {
    let mut ended = 0;
    let is_here = |id: &WaitId| state.waits.get(*id).is_some_and(|wait| wait.db == db);
    let waits: Vec<WaitId> = state.waits.of(owner).filter(is_here).take(CHANGED_AT_ONCE).collect();
    for id in waits {
        // It may have been granted when another one made room.
        if state.waits.get(id).is_some() {
            end_wait(state, id, &ClaimEnd::Over, now);
            ended += 1;
        }
    }
    for key in held_keys(state, db, owner, CHANGED_AT_ONCE - ended) {
        state.expire_touched(db, &key, now);
        ended += usize::from(release(state, db, &key, owner, None, now) == Some(true));
    }
    ended
}

/// LOCKS KILL: breaks the holds of a lock, or those of the owners of this name, and says how many. The delay that such a
/// hold left ends as well; when there was nothing else, that counts as one. `None` when the key holds another type.
pub fn kill(
    state: &mut State,
    db: DbIndex,
    key: &[u8],
    owner: Option<&[u8]>,
    now: ClusterTime,
) -> Option<usize> {
    let Some(lock) = lock_at(state, db, key)? else { return Some(0) };
    let is_meant = |hold: &&Hold| owner.is_none_or(|owner| *hold.owner.owner == *owner);
    let tokens: Vec<FencingToken> = lock.holds.iter().filter(is_meant).map(Hold::token).collect();
    let is_left_by = |name: &[u8]| lock.delayed_by.as_ref().is_some_and(|by| *by.owner == *name);
    let ends_delay = lock.delayed_until != ClusterTime(0) && owner.is_none_or(is_left_by);
    // All of them before anybody else gets the lock.
    for token in &tokens {
        let Some(hold) = remove_hold(state, db, key, *token) else { continue };
        state.lock_figures.killed += 1;
        state.note_hold_ended(hold.since, now);
        // Whoever was not told of it has lost nothing.
        let is_unheard = state.handed.is_unheard(*token, hold.touches);
        tell(state, db, key, hold, if is_unheard { LockChange::Released } else { LockChange::Killed });
    }
    if ends_delay {
        change_lock(state, db, key, Lock::end_delay);
    }
    if ends_delay || !tokens.is_empty() {
        hand_over(state, db, key, now);
    }
    Some(tokens.len().max(usize::from(ends_delay)))
}

/// Takes a grant back that its client never heard of, unless the owner touched the hold since.
pub(crate) fn take_back(
    state: &mut State,
    db: DbIndex,
    owner: &OwnerName,
    grant: (&[u8], FencingToken, u64),
    now: ClusterTime,
) -> bool {
    let (key, token, touches) = grant;
    let Some(Some(lock)) = lock_at(state, db, key) else { return false };
    let hold = lock.hold_under(token);
    if hold.is_none_or(|hold| hold.owner != *owner || hold.touches != touches) {
        return false;
    }
    end_hold(state, db, key, token, LockChange::Released, now);
    true
}

/// Ends what is due of this lock, and says how many items; at most about `at_most`.
pub(crate) fn expire(state: &mut State, db: DbIndex, key: &[u8], now: ClusterTime, at_most: usize) -> usize {
    let Some(Some(lock)) = lock_at(state, db, key) else { return 0 };
    let claims: Vec<ClaimId> = state.waits.due(db, key, now).take(at_most).collect();
    let holds = lock.holds.ending_before(now.after(Millis(1)), at_most.saturating_sub(claims.len()));
    let is_delay_over = (1..=now.0).contains(&lock.delayed_until.0);
    let mut ended = claims.into_iter().filter(|claim| end_claim(state, *claim, now)).count();
    if is_delay_over {
        end_delay(state, db, key, now);
        ended += 1;
    }
    for token in holds {
        end_hold(state, db, key, token, LockChange::Expired, now);
        ended += 1;
    }
    ended
}

/// True when something of this lock is due, those who wait for it included.
pub(super) fn is_due(state: &State, db: DbIndex, key: &[u8], lock: &Lock, now: ClusterTime) -> bool {
    lock.first_end().is_some_and(|(until, _)| until <= now)
        || (lock.is_waited_for() && state.waits.due(db, key, now).next().is_some())
}

/// Ends what of this lock ends first.
pub(crate) fn end_first(state: &mut State, db: DbIndex, key: &[u8], now: ClusterTime) {
    let first = lock_at(state, db, key).flatten().and_then(Lock::first_end);
    match first.map(|(_, end)| end) {
        Some(End::Hold(token)) => end_hold(state, db, key, token, LockChange::Expired, now),
        Some(End::Delay) => end_delay(state, db, key, now),
        None => {}
    }
}

fn end_delay(state: &mut State, db: DbIndex, key: &[u8], now: ClusterTime) {
    change_lock(state, db, key, Lock::end_delay);
    hand_over(state, db, key, now);
}

/// A new leader stands: the lock's holds live at least `grace` longer, within their budgets.
pub(crate) fn grant_grace(state: &mut State, db: DbIndex, key: &[u8], now: ClusterTime, grace: Millis) {
    let Some(Some(lock)) = lock_at(state, db, key) else { return };
    let graced = |token: FencingToken| {
        let hold = lock.hold_under(token)?;
        let lease_until = lease_after_grace(hold.lease_until, hold.set_until, now, grace);
        (lease_until != hold.lease_until).then_some((token, lease_until))
    };
    let soon = lock.holds.ending_before(now.after(grace), usize::MAX);
    let longer: Vec<(FencingToken, ClusterTime)> = soon.into_iter().filter_map(graced).collect();
    for (token, lease_until) in longer {
        state.lock_figures.graces += 1;
        change_hold(state, db, key, token, |hold| hold.lease_until = lease_until);
    }
}

/// Ends a hold, and hands the lock over.
fn end_hold(
    state: &mut State,
    db: DbIndex,
    key: &[u8],
    token: FencingToken,
    change: LockChange,
    now: ClusterTime,
) {
    let Some(hold) = remove_hold(state, db, key, token) else { return };
    // Whoever was not told of it is not at work, and has lost nothing.
    let is_unheard = change == LockChange::Expired && state.handed.is_unheard(token, hold.touches);
    let change = if is_unheard { LockChange::Released } else { change };
    state.note_hold_ended(hold.since, now);
    if change == LockChange::Expired {
        state.lock_figures.expired += 1;
        change_lock(state, db, key, |lock| {
            lock.expiries += 1;
            if hold.grace.0 > 0 {
                lock.delay(&hold.owner, hold.grace, now);
            }
        });
    }
    tell(state, db, key, hold, change);
    hand_over(state, db, key, now);
}

fn tell(state: &mut State, db: DbIndex, key: &[u8], hold: Hold, change: LockChange) {
    let is_loss = matches!(change, LockChange::Expired | LockChange::Killed);
    if is_loss || state.interest.is_in_all() {
        let (owner, token, origin) = (hold.owner, hold.token, hold.origin);
        state.notices.push(Notice::Lock { db, key: key.into(), owner, token, change, origin });
    }
}

/// Takes a hold out of its lock and the indices.
fn remove_hold(state: &mut State, db: DbIndex, key: &[u8], token: FencingToken) -> Option<Hold> {
    let lock = lock_at(state, db, key).flatten()?;
    let is_shared = lock.mode == Mode::Shared;
    lock.hold_under(token)?;
    let hold = change_lock(state, db, key, |lock| lock.holds.remove(token))??;
    state.lock_owners.remove(&hold.owner, db, key);
    state.lock_figures.held_shared -= u64::from(is_shared);
    Some(hold)
}

/// Gives the lock to those whose turn it is, as far as it goes, and forgets it when nobody is left. A grant may make
/// room in the queues of other locks; they are looked at, too.
fn hand_over(state: &mut State, db: DbIndex, key: &[u8], now: ClusterTime) {
    let mut keys: Vec<Box<[u8]>> = vec![key.into()];
    while let Some(key) = keys.pop() {
        while let Some(wait) = take_turn(state, db, &key, now) {
            keys.extend(wait.keys.into_iter().map(|other| other.key).filter(|other| *other != key));
        }
    }
}

/// Ends the wait of the first that waits, if it is its turn or its time is over; gives the request that waits no more.
fn take_turn(state: &mut State, db: DbIndex, key: &[u8], now: ClusterTime) -> Option<Wait> {
    loop {
        let lock = lock_at(state, db, key).flatten()?;
        let Some(id) = first_of(lock) else {
            if lock.is_unused() {
                state.remove(db, key);
            }
            return None;
        };
        let wait = state.waits.get(id)?;
        match turn(state, id, wait, now) {
            Turn::NotYet => return None,
            Turn::Due(claims) if claims.len() < wait.askers.len() => {
                for claim in claims {
                    end_claim(state, claim, now);
                }
            }
            Turn::Due(_) => return leave_and_tell(state, id, &ClaimEnd::Over),
            Turn::LimitDiffers(limit) => {
                return leave_and_tell(state, id, &ClaimEnd::Failed(limit_differs(limit)));
            }
            Turn::Now => return grant_wait(state, db, id, now),
        }
    }
}

fn leave_and_tell(state: &mut State, id: WaitId, end: &ClaimEnd) -> Option<Wait> {
    let wait = leave(state, id)?;
    tell_claims(state, wait.claims(), end);
    Some(wait)
}

/// Gives a request all its locks, which admit it.
fn grant_wait(state: &mut State, db: DbIndex, id: WaitId, now: ClusterTime) -> Option<Wait> {
    let wait = leave(state, id)?;
    state.note_wait_ended(wait.since, now);
    let origin = wait.claims().next_back().map(|claim| claim.origin.clone()).unwrap_or_default();
    let (owner, wanted) = (&wait.owner, &wait.wanted);
    let (mut grants, mut locks) = (Vec::new(), Vec::new());
    for WaitKey { key, .. } in &wait.keys {
        let own = lock_at(state, db, key).flatten().and_then(|lock| lock.hold_of(owner));
        let is_new = own.is_none();
        // What was held before stays held, unless nobody was told of that either.
        let goes_back = own.is_none_or(|own| state.handed.is_unheard(own.token, own.touches));
        let mut grant = grant_one(state, db, key, owner, wanted, &origin, now);
        let touches = if goes_back { grant.touches } else { 0 };
        locks.push(HandedLock { key: key.clone(), token: grant.token, touches });
        // What one of its clients does not hear, another may.
        if !is_new || wait.askers.len() > 1 {
            grant.touches = 0;
        }
        grants.push(grant);
    }
    let (owner, order) = (wait.owner.clone(), wait.order.clone());
    let end = ClaimEnd::Granted(Granted { db, owner: owner.clone(), grants, order });
    let claims: Vec<&Claim> = wait.claims().collect();
    confirm::hand(state, id, db, Handed::Locks { owner, locks }, &claims, &end);
    Some(wait)
}

/// Whose turn it is.
fn first_of(lock: &Lock) -> Option<WaitId> {
    if is_planted(Bug::HandOverSkipsFirst) && lock.waiters.len() > 1 {
        return lock.waiters().nth(1);
    }
    lock.waiters().next()
}

/// The error of a request that shares a lock with another LIMIT.
#[must_use]
pub fn limit_differs(limit: u32) -> String {
    match limit {
        0 => "ERR this lock is shared without a LIMIT; ask for it without one".to_owned(),
        limit => format!("ERR this lock is shared with LIMIT {limit}; ask for it with the same one"),
    }
}

/// Whether it is the turn of the first that waits.
enum Turn {
    NotYet,
    Now,
    /// Time is over for these of its clients.
    Due(Vec<ClaimId>),
    LimitDiffers(u32),
}

fn turn(state: &State, id: WaitId, wait: &Wait, now: ClusterTime) -> Turn {
    for WaitKey { key, .. } in &wait.keys {
        let Some(Some(lock)) = lock_at(state, wait.db, key) else { return Turn::NotYet };
        if first_of(lock) != Some(id) {
            return Turn::NotYet;
        }
        match rules::admit(lock, &wait.owner, &wait.wanted, now) {
            Verdict::Wait { .. } => return Turn::NotYet,
            Verdict::LimitDiffers { limit } => return Turn::LimitDiffers(limit),
            Verdict::Grant | Verdict::Renew | Verdict::Downgrade | Verdict::Upgrade => {}
        }
    }
    let due: Vec<ClaimId> = wait.claims().filter(|claim| claim.until <= now).map(|claim| claim.id).collect();
    if due.is_empty() { Turn::Now } else { Turn::Due(due) }
}

/// Gives one lock, which admits the owner.
fn grant_one(
    state: &mut State,
    db: DbIndex,
    key: &[u8],
    owner: &OwnerName,
    wanted: &Wanted,
    origin: &Origin,
    now: ClusterTime,
) -> Grant {
    let own =
        lock_at(state, db, key).flatten().and_then(|lock| lock.hold_of(owner).map(|hold| (lock.mode, hold)));
    let lease_until = now.after(wanted.lease);
    match own.map(|(mode, hold)| (mode, hold.token, hold.touches)) {
        Some((mode, token, touches)) if mode == wanted.mode || wanted.mode == Mode::Shared => {
            if mode != wanted.mode {
                change_lock(state, db, key, |lock| (lock.mode, lock.limit) = (Mode::Shared, wanted.limit));
                state.lock_figures.held_shared += 1;
            }
            change_hold(state, db, key, token, |hold| {
                hold.renew(lease_until, origin);
                hold.grace = wanted.grace;
                if wanted.data.is_some() {
                    hold.data.clone_from(&wanted.data);
                }
            });
            Grant { key: key.into(), token, touches: touches + 1 }
        }
        own => {
            // An upgrade ends the shared hold; its token is void from here on. The owner touched a lock that it had: only
            // a hold that is new has one touch, and is taken back if nobody hears of it.
            let touches = own.map_or(1, |(_, _, touches)| touches + 1);
            let since =
                own.and_then(|(_, token, _)| remove_hold(state, db, key, token)).map(|hold| hold.data);
            let token = state.next_token();
            let hold = Hold {
                owner: owner.clone(),
                token,
                lease_until,
                set_until: lease_until,
                since: now,
                touches,
                grace: wanted.grace,
                data: wanted.data.clone().or(since.flatten()),
                origin: origin.clone(),
            };
            state.lock_owners.insert(owner, db, key);
            state.lock_figures.held_shared += u64::from(wanted.mode == Mode::Shared);
            if state.interest.is_in_all() {
                tell(state, db, key, hold.clone(), LockChange::Granted);
            }
            change_lock(state, db, key, |lock| {
                (lock.mode, lock.limit) = (wanted.mode, wanted.limit);
                lock.grants += 1;
                if lock.delayed_by.as_ref() == Some(owner) {
                    lock.end_delay();
                }
                lock.holds.push(hold);
            });
            Grant { key: key.into(), token, touches }
        }
    }
}

/// Changes a lock, whose row is made when there is none, and keeps its deadline in step; the index of owners is the
/// caller's.
fn change_lock<T>(
    state: &mut State,
    db: DbIndex,
    key: &[u8],
    change: impl FnOnce(&mut Lock) -> T,
) -> Option<T> {
    if state.row(db, key).is_none() {
        let mut lock = Lock::default();
        let result = change(&mut lock);
        let deadline = lock.deadline();
        state.insert_unindexed(db, key, Object::Lock(Box::new(lock)));
        state.move_lock(db, key, None, deadline);
        return Some(result);
    }
    let (before, result, after) = state.change_row(db, key, |row| {
        let Object::Lock(lock) = &mut row.object else { return None };
        let before = lock.deadline();
        let result = change(lock);
        Some((before, result, lock.deadline()))
    })??;
    state.move_lock(db, key, before, after);
    Some(result)
}

/// Changes a hold and keeps its lock's deadline in step.
fn change_hold(
    state: &mut State,
    db: DbIndex,
    key: &[u8],
    token: FencingToken,
    change: impl FnOnce(&mut Hold),
) {
    let changed = state.change_row(db, key, |row| {
        let Object::Lock(lock) = &mut row.object else { return None };
        let before = lock.deadline();
        lock.holds.change(token, change)?;
        Some((before, lock.deadline()))
    });
    if let Some(Some((before, after))) = changed {
        state.move_lock(db, key, before, after);
    }
}

impl State {
    /// Enters what of a lock ends first under another deadline.
    pub(super) fn move_lock(
        &mut self,
        db: DbIndex,
        key: &[u8],
        before: Option<(Track, ClusterTime)>,
        after: Option<(Track, ClusterTime)>,
    ) {
        if before == after {
            return;
        }
        let name = || LeaseName::Lock(db, key.into());
        if let Some((track, until)) = before {
            self.leases.remove(track, until, name());
        }
        if let Some((track, until)) = after {
            self.leases.insert(track, until, name());
        }
    }
}

/// Puts those who wait into the queues of their locks, after the rows were read.
pub(super) fn queue_up(state: &mut State) -> Result<(), CodecError> {
    let places: Vec<(DbIndex, Box<[u8]>, Place)> = state
        .waits
        .iter()
        .flat_map(|(id, wait)| {
            wait.keys.iter().map(move |key| (wait.db, key.key.clone(), (!key.is_first, id)))
        })
        .collect();
    for (db, key, place) in places {
        let row = state.databases[usize::from(db)].get_mut(&key);
        let Some(Object::Lock(lock)) = row.map(|row| &mut row.object) else {
            return Err(CodecError("somebody waits for a lock that is not there"));
        };
        lock.waiters.insert(place);
    }
    let claims: Vec<Claim> = state.waits.iter().flat_map(|(_, wait)| wait.claims().cloned()).collect();
    state.index_claims(&claims);
    Ok(())
}

#[cfg(test)]
pub(crate) mod test_support {
    //! Locks, in few words.

    use super::*;

    /// An exclusive LOCK that does not wait.
    pub(crate) fn lock(
        state: &mut State,
        db: DbIndex,
        key: &[u8],
        who: &str,
        lease: u64,
        now: ClusterTime,
    ) -> Acquired {
        let wanted =
            Wanted { mode: Mode::Exclusive, limit: 0, lease: Millis(lease), grace: Millis(0), data: None };
        let owner = OwnerName::new(b"default", who.as_bytes());
        let (keys, origin) = ([key], Origin::default());
        let request = LockRequest {
            db,
            keys: &keys,
            order: None,
            owner: &owner,
            wanted: &wanted,
            until: None,
            origin: &origin,
        };
        acquire(state, &request, now)
    }
}
