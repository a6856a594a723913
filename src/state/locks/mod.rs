//! Locks: leased rights with a fencing token (COMMANDS.md 2.2).
//!
//! The decisions are in [`rules`]; here they become changes of the state: the row, the index of leases
//! and the index of owners. A free lock has no row. Tokens come from the group's counter, so that they
//! go on increasing over a lock's lives.

pub mod rules;

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::state::DbIndex;
use crate::state::Object;
use crate::state::Row;
use crate::state::State;
use crate::state::expiry::KeyName;
use crate::state::expiry::LeaseName;
use crate::state::lease_after_grace;
use crate::types::ClusterTime;
use crate::types::FencingToken;
use crate::types::Millis;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_bytes;
use crate::types::codec::put_varint;

pub use rules::Acquire;
pub use rules::ExtendOutcome;
pub use rules::LockOutcome;
pub use rules::ReleaseOutcome;

/// First byte of an encoded lock.
const FORMAT: u8 = 1;

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

/// A lock that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    owner: OwnerName,
    token: FencingToken,
    /// When the hold ends by itself.
    lease_until: ClusterTime,
    /// Where its owner last set that end; grace after a change of leader is counted from here.
    set_until: ClusterTime,
    /// When this hold began.
    since: ClusterTime,
    /// How often the owner took, re-took or extended it: tells two states of one hold apart.
    touches: u64,
}

impl Lock {
    /// A new hold.
    #[must_use]
    pub fn granted(
        owner: OwnerName,
        token: FencingToken,
        since: ClusterTime,
        lease_until: ClusterTime,
    ) -> Lock {
        Lock { owner, token, lease_until, set_until: lease_until, since, touches: 1 }
    }

    /// Who holds it.
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

    /// How often the owner took, re-took or extended this hold (from 1).
    #[must_use]
    pub fn touches(&self) -> u64 {
        self.touches
    }

    /// Bytes of memory the lock takes besides its row.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        std::mem::size_of::<Lock>() + self.owner.user.len() + self.owner.owner.len()
    }

    /// The owner sets the end of its lease.
    fn renew(&mut self, lease_until: ClusterTime) {
        self.lease_until = lease_until;
        self.set_until = lease_until;
        self.touches += 1;
    }

    /// Appends the lock to a row's value.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(FORMAT);
        put_bytes(out, &self.owner.user);
        put_bytes(out, &self.owner.owner);
        for number in [self.token.0, self.lease_until.0, self.set_until.0, self.since.0, self.touches] {
            put_varint(out, number);
        }
    }

    /// Reads what [`Lock::encode`] wrote, to the end of the value.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Lock, CodecError> {
        if reader.u8()? != FORMAT {
            return Err(CodecError("a lock of an unknown format"));
        }
        let owner = OwnerName::new(reader.bytes()?, reader.bytes()?);
        let lock = Lock {
            owner,
            token: FencingToken(reader.varint()?),
            lease_until: ClusterTime(reader.varint()?),
            set_until: ClusterTime(reader.varint()?),
            since: ClusterTime(reader.varint()?),
            touches: reader.varint()?,
        };
        if reader.is_empty() { Ok(lock) } else { Err(CodecError("a lock with a tail")) }
    }
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

    /// The owner's locks, by database and key.
    pub fn of(&self, owner: &OwnerName) -> impl Iterator<Item = &KeyName> {
        self.held.get(owner).into_iter().flatten()
    }

    /// How many locks are held.
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

/// The lock under a key: `Some(None)` when it is free, `None` when the key holds another type.
#[must_use]
pub fn lock_at<'a>(state: &'a State, db: DbIndex, key: &[u8]) -> Option<Option<&'a Lock>> {
    match state.row(db, key).map(Row::object) {
        None => Some(None),
        Some(Object::Lock(lock)) => Some(Some(lock)),
        Some(Object::String | Object::Queue(_)) => None,
    }
}

/// LOCK: takes the lock if it is free, or renews the hold of the same owner. `None` when the key holds
/// another type.
pub fn acquire(
    state: &mut State,
    db: DbIndex,
    key: &[u8],
    wanted: &Acquire,
    now: ClusterTime,
) -> Option<LockOutcome> {
    let next = state.meta.last_token.next();
    let outcome = rules::acquire(lock_at(state, db, key)?, wanted, now, next);
    match &outcome {
        LockOutcome::Granted { token, lease_until } => {
            let drawn = state.next_token();
            assert_eq!(drawn, *token, "the rules were shown the token that is drawn");
            let lock = Lock::granted(wanted.owner.clone(), drawn, now, *lease_until);
            state.insert_object(db, key, Object::Lock(Box::new(lock)));
        }
        LockOutcome::Renewed { lease_until, .. } => change(state, db, key, |lock| lock.renew(*lease_until)),
        LockOutcome::HeldBy { .. } => {}
    }
    Some(outcome)
}

/// UNLOCK: frees the lock if this owner holds it (under this token, when one is given). `None` when the
/// key holds another type.
pub fn release(
    state: &mut State,
    db: DbIndex,
    key: &[u8],
    owner: &OwnerName,
    token: Option<FencingToken>,
) -> Option<ReleaseOutcome> {
    let outcome = rules::release(lock_at(state, db, key)?, owner, token);
    if outcome == ReleaseOutcome::Released {
        state.remove(db, key);
    }
    Some(outcome)
}

/// LOCKEXTEND of one lock: sets what is left of its lease if this owner holds it. `None` when the key
/// holds another type.
pub fn extend(
    state: &mut State,
    db: DbIndex,
    key: &[u8],
    owner: &OwnerName,
    lease: Millis,
    now: ClusterTime,
) -> Option<ExtendOutcome> {
    let outcome = rules::extend(lock_at(state, db, key)?, owner, lease, now);
    if let ExtendOutcome::Extended { lease_until } = outcome {
        change(state, db, key, |lock| lock.renew(lease_until));
    }
    Some(outcome)
}

/// LOCKEXTEND without names: all locks of the owner in this database. Says how many were extended.
///
/// The command names no keys, so those among its locks that are due are expired here.
pub fn extend_all(
    state: &mut State,
    db: DbIndex,
    owner: &OwnerName,
    lease: Millis,
    now: ClusterTime,
) -> usize {
    let keys: Vec<Box<[u8]>> =
        state.lock_owners.of(owner).filter(|(of, _)| *of == db).map(|(_, key)| key.clone()).collect();
    let mut extended = 0;
    for key in keys {
        state.expire_touched(db, &key, now);
        if let Some(ExtendOutcome::Extended { .. }) = extend(state, db, &key, owner, lease, now) {
            extended += 1;
        }
    }
    extended
}

/// Ends the hold of a lock whose lease is due.
pub(crate) fn expire(state: &mut State, db: DbIndex, key: &[u8]) {
    state.remove(db, key);
}

/// A new leader stands: the hold lives at least `grace` longer, within its budget.
pub(crate) fn grant_grace(state: &mut State, db: DbIndex, key: &[u8], now: ClusterTime, grace: Millis) {
    let Some(Some(lock)) = lock_at(state, db, key) else { return };
    let lease_until = lease_after_grace(lock.lease_until, lock.set_until, now, grace);
    if lease_until != lock.lease_until {
        change(state, db, key, |lock| lock.lease_until = lease_until);
    }
}

/// Changes a held lock and keeps the index of leases in step with it.
fn change(state: &mut State, db: DbIndex, key: &[u8], change: impl FnOnce(&mut Lock)) {
    let changed = state.change_row(db, key, |row| {
        let Object::Lock(lock) = &mut row.object else { return None };
        let before = lock.lease_until;
        change(lock);
        Some((before, lock.lease_until))
    });
    if let Some(Some((before, after))) = changed
        && before != after
    {
        state.leases.remove(before, LeaseName::Lock(db, key.into()));
        state.leases.insert(after, LeaseName::Lock(db, key.into()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::test_support::TestStore;
    use crate::types::LogIndex;
    use crate::types::Term;
    use crate::types::WallMillis;

    const GRACE: Millis = Millis(3_000);

    fn owner(name: &str) -> OwnerName {
        OwnerName::new(b"default", name.as_bytes())
    }

    /// Begins the next entry, at this time.
    fn entry(state: &mut State, now: u64) -> ClusterTime {
        let index = LogIndex(state.meta.applied.0 + 1);
        state.begin_entry(index, Term(1), ClusterTime(now), WallMillis(0));
        ClusterTime(now)
    }

    /// LOCK as an entry of its own: what is due on the key ends first.
    fn lock(state: &mut State, now: u64, key: &str, who: &str, lease: u64) -> LockOutcome {
        let now = entry(state, now);
        state.expire_touched(0, key.as_bytes(), now);
        let wanted = Acquire { owner: owner(who), lease: Millis(lease) };
        acquire(state, 0, key.as_bytes(), &wanted, now).expect("the key holds a lock or nothing")
    }

    fn held<'a>(state: &'a State, key: &str) -> Option<&'a Lock> {
        lock_at(state, 0, key.as_bytes()).expect("the key holds a lock or nothing")
    }

    /// What the rows say must be what the indices say.
    fn check_indices(state: &State) {
        let mut leases = BTreeSet::new();
        let mut owners = BTreeSet::new();
        for row in state.database(0).iter() {
            let Object::Lock(lock) = row.object() else { continue };
            leases.insert((lock.lease_until, LeaseName::Lock(0, row.key().into())));
            owners.insert((lock.owner.clone(), (0, Box::from(row.key()))));
        }
        let indexed = state.leases.iter().map(|(until, name)| (until, name.clone())).collect();
        assert_eq!(leases, indexed);
        let named = |(owner, keys): (&OwnerName, &BTreeSet<KeyName>)| {
            keys.iter().map(|key| (owner.clone(), key.clone())).collect::<Vec<_>>()
        };
        assert_eq!(owners, state.lock_owners.held.iter().flat_map(named).collect());
    }

    #[test]
    fn a_lease_ends_by_time_and_the_next_hold_has_a_greater_token() {
        let mut state = State::new(1);
        let granted = |token, until| LockOutcome::Granted {
            token: FencingToken(token),
            lease_until: ClusterTime(until),
        };
        assert_eq!(lock(&mut state, 0, "k", "a", 1_000), granted(1, 1_000));
        assert_eq!(
            lock(&mut state, 999, "k", "b", 1_000),
            LockOutcome::HeldBy { owner: owner("a"), lease_until: ClusterTime(1_000) }
        );
        assert_eq!(lock(&mut state, 1_000, "k", "b", 1_000), granted(2, 2_000));
        check_indices(&state);
    }

    #[test]
    fn an_expire_entry_ends_every_hold_that_is_due() {
        let mut state = State::new(1);
        for (key, lease) in [("x", 100), ("y", 200), ("z", 300)] {
            lock(&mut state, 0, key, "a", lease);
        }
        let now = entry(&mut state, 200);
        assert!(state.anything_due(now));
        assert_eq!(state.expire_due(now, 1024), 2);
        assert_eq!(state.earliest_deadline(), ClusterTime(300));
        assert!(held(&state, "x").is_none() && held(&state, "y").is_none());
        check_indices(&state);
    }

    #[test]
    fn the_same_owner_keeps_its_token_and_gets_a_lease_from_now() {
        let mut state = State::new(1);
        lock(&mut state, 0, "k", "a", 10_000);
        let outcome = lock(&mut state, 50, "k", "a", 500);
        assert_eq!(outcome, LockOutcome::Renewed { token: FencingToken(1), lease_until: ClusterTime(550) });
        let lock = held(&state, "k").expect("it is held");
        assert_eq!((lock.since(), lock.touches()), (ClusterTime(0), 2));
        assert_eq!(state.meta.last_token, FencingToken(1));
        check_indices(&state);
    }

    #[test]
    fn grace_after_a_change_of_leader_ends_at_its_budget() {
        let mut state = State::new(1);
        lock(&mut state, 0, "short", "a", 1_000);
        lock(&mut state, 0, "long", "a", 60_000);
        let until = |state: &State, key| held(state, key).map(Lock::lease_until);
        for (now, short) in [(900, 3_900), (3_000, 6_000), (5_900, 7_000), (6_900, 7_000)] {
            let now = entry(&mut state, now);
            state.grant_grace(now);
            assert_eq!(until(&state, "short"), Some(ClusterTime(short)), "after {now:?}");
            assert_eq!(until(&state, "long"), Some(ClusterTime(60_000)));
            check_indices(&state);
        }
        // Renewing starts a new budget.
        lock(&mut state, 6_950, "short", "a", 100);
        let now = entry(&mut state, 7_000);
        state.grant_grace(now);
        assert_eq!(until(&state, "short"), Some(ClusterTime(10_000)));
        assert_eq!(state.settings().lease_failover_grace, GRACE);
    }

    #[test]
    fn grace_never_shortens_a_lease() {
        let now = ClusterTime(50_000);
        for (until, set_until, result) in
            [(1_000, 1_000, 7_000), (7_500, 1_000, 7_500), (53_001, 53_001, 53_001)]
        {
            let graced = lease_after_grace(ClusterTime(until), ClusterTime(set_until), now, GRACE);
            assert_eq!(graced, ClusterTime(result));
        }
    }

    #[test]
    fn a_key_of_another_type_is_left_alone() {
        let mut state = State::new(1);
        let now = entry(&mut state, 0);
        state.put_string(0, b"s", b"v", None);
        let wanted = Acquire { owner: owner("a"), lease: Millis(100) };
        assert_eq!(acquire(&mut state, 0, b"s", &wanted, now), None);
        assert_eq!(release(&mut state, 0, b"s", &owner("a"), None), None);
        assert_eq!(extend(&mut state, 0, b"s", &owner("a"), Millis(100), now), None);
    }

    #[test]
    fn a_lock_of_an_unknown_format_or_with_a_tail_is_refused() {
        let lock = Lock::granted(owner("a"), FencingToken(7), ClusterTime(1), ClusterTime(2));
        let mut bytes = Vec::new();
        lock.encode(&mut bytes);
        assert_eq!(Lock::decode(&mut Reader::new(&bytes)), Ok(lock));
        for end in 0..bytes.len() {
            assert!(Lock::decode(&mut Reader::new(&bytes[..end])).is_err());
        }
        bytes.push(0);
        assert!(Lock::decode(&mut Reader::new(&bytes)).is_err());
        bytes[0] = FORMAT + 1;
        assert!(Lock::decode(&mut Reader::new(&bytes)).is_err());
    }

    #[derive(Debug, Clone)]
    enum Action {
        Lock { key: u8, who: u8, lease: u64 },
        Unlock { key: u8, who: u8 },
        Extend { who: u8, lease: u64 },
        NewLeader,
        Expire,
        Reopen,
    }

    fn action() -> impl Strategy<Value = Action> {
        let (key, who, lease) = (0..3u8, 0..3u8, 100..2_000u64);
        prop_oneof![
            8 => (key.clone(), who.clone(), lease.clone()).prop_map(|(key, who, lease)| Action::Lock { key, who, lease }),
            4 => (key, who.clone()).prop_map(|(key, who)| Action::Unlock { key, who }),
            2 => (who, lease).prop_map(|(who, lease)| Action::Extend { who, lease }),
            1 => Just(Action::NewLeader),
            1 => Just(Action::Expire),
            1 => Just(Action::Reopen),
        ]
    }

    /// What the owners were told: who may believe that it holds a key, under which token, until when.
    type Beliefs = BTreeMap<u8, (u8, FencingToken, u64)>;

    fn take_action(state: &mut State, store: &TestStore, beliefs: &mut Beliefs, now: u64, action: &Action) {
        match *action {
            Action::Lock { key, who, lease } => {
                let last = state.meta.last_token;
                let outcome = lock(state, now, &key.to_string(), &who.to_string(), lease);
                let believed = beliefs.get(&key).copied().filter(|(_, _, until)| *until > now);
                match outcome {
                    LockOutcome::Granted { token, lease_until } => {
                        assert!(token > last, "tokens only grow");
                        assert_eq!(believed, None, "granted while another owner holds it");
                        beliefs.insert(key, (who, token, lease_until.0));
                    }
                    LockOutcome::Renewed { token, lease_until } => {
                        let (holder, held, _) =
                            beliefs.insert(key, (who, token, lease_until.0)).expect("held");
                        assert_eq!((holder, held), (who, token));
                    }
                    LockOutcome::HeldBy { owner: holder, .. } => assert_ne!(holder, owner(&who.to_string())),
                }
            }
            Action::Unlock { key, who } => {
                let now = entry(state, now);
                let name = key.to_string();
                state.expire_touched(0, name.as_bytes(), now);
                let outcome = release(state, 0, name.as_bytes(), &owner(&who.to_string()), None);
                if outcome == Some(ReleaseOutcome::Released) {
                    assert_eq!(beliefs.remove(&key).map(|(holder, ..)| holder), Some(who));
                }
            }
            Action::Extend { who, lease } => {
                let at = entry(state, now);
                extend_all(state, 0, &owner(&who.to_string()), Millis(lease), at);
                for (key, (holder, _, until)) in beliefs.iter_mut() {
                    // Those it lost are not extended; `held` says which it still has.
                    if *holder == who && held(state, &key.to_string()).is_some() {
                        *until = now + lease;
                    }
                }
            }
            Action::NewLeader => {
                let now = entry(state, now);
                state.grant_grace(now);
            }
            Action::Expire => {
                let now = entry(state, now);
                state.expire_due(now, 1024);
                assert!(!state.anything_due(now));
            }
            Action::Reopen => store.reopen(state),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_lock_has_at_most_one_holder_and_tokens_only_grow(
            actions in proptest::collection::vec((action(), 0..400u64), 1..120),
        ) {
            let store = TestStore::new();
            let (mut state, mut beliefs, mut now) = (State::new(1), Beliefs::new(), 0);
            for (action, passes) in actions {
                now += passes;
                take_action(&mut state, &store, &mut beliefs, now, &action);
                check_indices(&state);
                for (key, (who, token, until)) in &beliefs {
                    // A hold ends no earlier than its owner was told.
                    if *until > now {
                        let lock = held(&state, &key.to_string()).expect("it is held");
                        assert_eq!((lock.owner(), lock.token()), (&owner(&who.to_string()), *token));
                    }
                }
            }
        }
    }
}
