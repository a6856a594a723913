//! Decides what LOCK, UNLOCK and LOCKEXTEND do. Pure: values and time in, an outcome out.
//!
//! The life of one lock, which is exclusive so far:
//!
//! ```text
//! states   FREE                             no row
//!          HELD(owner, token, lease_until)  a row; `lease_until` is cluster time
//!
//! state    event                            next state                        reply
//! FREE     LOCK by a                        HELD(a, next token, at + lease)   the token
//! FREE     UNLOCK, LOCKEXTEND               FREE                              0, lost
//! HELD(a)  LOCK by a                        HELD(a, same token, at + lease)   the same token
//! HELD(a)  LOCK by b                        HELD(a), unchanged                null
//! HELD(a)  UNLOCK by a [with its token]     FREE                              1
//! HELD(a)  UNLOCK by b, or another token    HELD(a), unchanged                0
//! HELD(a)  LOCKEXTEND by a                  HELD(a, same token, at + lease)   extended
//! HELD(a)  LOCKEXTEND by b                  HELD(a), unchanged                lost
//! HELD(a)  its lease ends (EXPIRE)          FREE                              -
//! HELD(a)  a new leader stands              HELD(a), lease_until + grace      -
//! ```
//!
//! A hold that is due was expired before the command ran (DESIGN.md D9). Where one is met all the same,
//! the rules stay on the safe side: nobody else gets the lock, and its lease is not extended.

use crate::state::locks::Lock;
use crate::state::locks::OwnerName;
use crate::types::ClusterTime;
use crate::types::FencingToken;
use crate::types::Millis;

/// What LOCK asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acquire {
    /// Who wants the lock.
    pub owner: OwnerName,
    /// For how long from now.
    pub lease: Millis,
}

/// What came of a LOCK. A refusal is an outcome, not an error: it was agreed on, like a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockOutcome {
    /// The lock was free; the token is new.
    Granted { token: FencingToken, lease_until: ClusterTime },
    /// The owner held it already: the token stays, the lease starts again.
    Renewed { token: FencingToken, lease_until: ClusterTime },
    /// Somebody else holds it; nothing changed.
    HeldBy { owner: OwnerName, lease_until: ClusterTime },
}

/// What came of an UNLOCK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseOutcome {
    /// The lock is free now.
    Released,
    /// This owner does not hold it, or holds it under another token; nothing changed.
    NotHeld,
}

/// What came of a LOCKEXTEND, for one lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtendOutcome {
    /// The lease ends then.
    Extended { lease_until: ClusterTime },
    /// This owner does not hold the lock; extending never takes it again.
    Lost,
}

/// Decides on one LOCK, given who holds the lock now.
///
/// `at` is the time stamped in the log entry, so every replica decides alike; `next` is the token that
/// a new hold gets.
#[must_use]
pub fn acquire(held: Option<&Lock>, wanted: &Acquire, at: ClusterTime, next: FencingToken) -> LockOutcome {
    let lease_until = at.after(wanted.lease);
    match held {
        None => LockOutcome::Granted { token: next, lease_until },
        Some(lock) if lock.owner == wanted.owner => LockOutcome::Renewed { token: lock.token, lease_until },
        Some(lock) => LockOutcome::HeldBy { owner: lock.owner.clone(), lease_until: lock.lease_until },
    }
}

/// Decides on one UNLOCK; `token` is the hold it means, `None` for whichever the owner has.
#[must_use]
pub fn release(held: Option<&Lock>, owner: &OwnerName, token: Option<FencingToken>) -> ReleaseOutcome {
    match held {
        Some(lock) if lock.owner == *owner && token.is_none_or(|token| token == lock.token) => {
            ReleaseOutcome::Released
        }
        Some(_) | None => ReleaseOutcome::NotHeld,
    }
}

/// Decides on one lock of a LOCKEXTEND. The lease may also become shorter: it is set, not added to.
#[must_use]
pub fn extend(held: Option<&Lock>, owner: &OwnerName, lease: Millis, at: ClusterTime) -> ExtendOutcome {
    match held {
        Some(lock) if lock.owner == *owner && lock.lease_until > at => {
            ExtendOutcome::Extended { lease_until: at.after(lease) }
        }
        Some(_) | None => ExtendOutcome::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(name: &str) -> OwnerName {
        OwnerName::new(b"default", name.as_bytes())
    }

    fn held_by(name: &str, token: u64, until: u64) -> Lock {
        Lock::granted(owner(name), FencingToken(token), ClusterTime(0), ClusterTime(until))
    }

    #[test]
    fn lock_follows_its_table() {
        let held = held_by("a", 7, 30_000);
        let granted = LockOutcome::Granted { token: FencingToken(9), lease_until: ClusterTime(1_100) };
        let renewed = LockOutcome::Renewed { token: FencingToken(7), lease_until: ClusterTime(1_100) };
        let refused = LockOutcome::HeldBy { owner: owner("a"), lease_until: ClusterTime(30_000) };
        for (held, who, outcome) in
            [(None, "b", granted), (Some(&held), "a", renewed), (Some(&held), "b", refused)]
        {
            let wanted = Acquire { owner: owner(who), lease: Millis(100) };
            assert_eq!(acquire(held, &wanted, ClusterTime(1_000), FencingToken(9)), outcome, "by {who}");
        }
    }

    #[test]
    fn unlock_follows_its_table() {
        let held = held_by("a", 7, 30_000);
        for (held, who, token, outcome) in [
            (None, "a", None, ReleaseOutcome::NotHeld),
            (Some(&held), "a", None, ReleaseOutcome::Released),
            (Some(&held), "a", Some(7), ReleaseOutcome::Released),
            (Some(&held), "a", Some(6), ReleaseOutcome::NotHeld),
            (Some(&held), "a", Some(8), ReleaseOutcome::NotHeld),
            (Some(&held), "b", None, ReleaseOutcome::NotHeld),
            (Some(&held), "b", Some(7), ReleaseOutcome::NotHeld),
        ] {
            let token = token.map(FencingToken);
            assert_eq!(release(held, &owner(who), token), outcome, "by {who} with {token:?}");
        }
    }

    #[test]
    fn lockextend_follows_its_table() {
        let held = held_by("a", 7, 30_000);
        let extended = |lease_until| ExtendOutcome::Extended { lease_until: ClusterTime(lease_until) };
        for (held, who, at, outcome) in [
            (None, "a", 10, ExtendOutcome::Lost),
            (Some(&held), "a", 10, extended(510)),
            (Some(&held), "a", 29_999, extended(30_499)),
            (Some(&held), "a", 30_000, ExtendOutcome::Lost),
            (Some(&held), "b", 10, ExtendOutcome::Lost),
        ] {
            assert_eq!(extend(held, &owner(who), Millis(500), ClusterTime(at)), outcome, "by {who} at {at}");
        }
    }

    #[test]
    fn the_same_owner_name_of_another_user_is_somebody_else() {
        let held = held_by("a", 7, 30_000);
        let other = OwnerName::new(b"mallory", b"a");
        assert_eq!(release(Some(&held), &other, Some(FencingToken(7))), ReleaseOutcome::NotHeld);
    }
}
