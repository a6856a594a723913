//! Decides what happens to one lock. Pure: the lock, a request and the time in, a verdict out.
//!
//! The life of one lock:
//!
//! ```text
//! states   FREE                      no hold; no row if nobody waits either
//!          EXCLUSIVE(a)              one hold
//!          SHARED(a b …, limit)      one hold or more, up to `limit` (0: any number)
//!          DELAYED(until, a)         nobody but a gets it before `until`: a's hold with GRACE ended by time; not even a
//!                                    when another's hold ended so as well
//! and a queue of waiting requests, first come first served whatever their modes
//!
//! state             event                                  next state, and what the client gets
//! FREE              LOCK a, nobody waits                   held by a under the next token: the token
//! any               LOCK b, somebody waits, or it is held  b waits at the end of the queue; without BLOCK null
//!                   in a mode that does not go with b's
//! SHARED            LOCK b SHARED, nobody waits, room      b holds too, under the next token
//! SHARED(limit n)   LOCK b SHARED LIMIT other than n       unchanged: an error
//! held by a         LOCK a in the same mode                its lease starts again: the same token
//! EXCLUSIVE(a)      LOCK a SHARED (downgrade)              SHARED(a): the same token
//! SHARED(a)         LOCK a exclusive (upgrade)             EXCLUSIVE(a): the next token
//! SHARED(a b)       LOCK a exclusive (upgrade)             a waits before all others, still holding
//! held by a         UNLOCK a [its token]                   the hold ends; hand-over
//! held by a         LOCKEXTEND a                           its lease is set anew: the same token
//! held by a         its lease ends (EXPIRE)                the hold ends; DELAYED if it had GRACE; hand-over
//! held by a, who    its lease ends (EXPIRE)                the hold ends as if it had been released; hand-over
//! was not told yet
//! held by a         KILL                                   the hold ends, its token is void; hand-over
//! held by a         a new leader stands                    lease_until + grace, within its budget
//! DELAYED           its time comes (EXPIRE), or KILL       hand-over
//! DELAYED by a      LOCK a                                 held by a under the next token, whoever waits; the delay is over
//! b waits           BLOCK is over, cancelled, a deadlock   b waits no more; hand-over, since others waited behind it
//! hand-over         the first that waits is admitted       it holds, in the entry that made room; then the next one
//! ```
//!
//! A request for several locks (MLOCK) waits in the queue of each, holds none meanwhile, and is admitted when it is
//! the first everywhere and each lock admits it.
//!
//! An upgrade goes before all others because they wait for the very hold that it keeps. A lease starts when it is
//! granted, not when it was asked for. Nobody passes by somebody who waits, also when the lock is free and the first
//! waits for another one: otherwise a request for several would starve.

use crate::state::locks::Lock;
use crate::state::locks::OwnerName;
use crate::types::ClusterTime;
use crate::types::Millis;

/// How a lock is held, or wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// By one owner alone.
    Exclusive,
    /// By several at a time.
    Shared,
}

impl Mode {
    /// As replies name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mode::Exclusive => "exclusive",
            Mode::Shared => "shared",
        }
    }
}

/// What a request asks of each of its locks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub mode: Mode,
    /// How many may share it; 0 is any number, and goes with every exclusive request.
    pub limit: u32,
    /// For how long, from the grant on.
    pub lease: Millis,
    /// How long nobody else gets the lock after this hold ended by time.
    pub grace: Millis,
    /// Shown to whoever looks at the lock.
    pub data: Option<Box<[u8]>>,
}

/// What is to be done with a request for one lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A new hold, under the next token.
    Grant,
    /// The owner's hold goes on, with a new lease.
    Renew,
    /// The owner's exclusive hold becomes a shared one.
    Downgrade,
    /// The owner's shared hold becomes an exclusive one, under the next token.
    Upgrade,
    /// Not now; an upgrade waits before all others.
    Wait { is_upgrade: bool },
    /// The lock is shared by up to another number of holders.
    LimitDiffers { limit: u32 },
}

/// Decides on a LOCK that came just now: whoever waits already goes before it.
#[must_use]
pub fn decide(lock: Option<&Lock>, owner: &OwnerName, wanted: &Wanted, at: ClusterTime) -> Verdict {
    let Some(lock) = lock else { return Verdict::Grant };
    let verdict = admit(lock, owner, wanted, at);
    // Those who wait do so for the end of its delay.
    let is_back = lock.delayed_until() > at && lock.delayed_by() == Some(owner);
    if verdict == Verdict::Grant && lock.is_waited_for() && !is_back {
        return Verdict::Wait { is_upgrade: false };
    }
    verdict
}

/// Decides on a request whose turn it is.
#[must_use]
pub fn admit(lock: &Lock, owner: &OwnerName, wanted: &Wanted, at: ClusterTime) -> Verdict {
    let own = lock.hold_of(owner);
    let others = lock.holds().len() - usize::from(own.is_some());
    match (own, lock.mode(), wanted.mode) {
        (Some(_), Mode::Exclusive, Mode::Exclusive) => Verdict::Renew,
        (Some(_), Mode::Shared, Mode::Shared) if wanted.limit == lock.limit() => Verdict::Renew,
        (Some(_), Mode::Shared, Mode::Shared) => Verdict::LimitDiffers { limit: lock.limit() },
        (Some(_), Mode::Exclusive, Mode::Shared) => Verdict::Downgrade,
        (Some(_), Mode::Shared, Mode::Exclusive) if others == 0 => Verdict::Upgrade,
        (Some(_), Mode::Shared, Mode::Exclusive) => Verdict::Wait { is_upgrade: true },
        (None, _, _) if lock.delayed_until() > at && lock.delayed_by() != Some(owner) => {
            Verdict::Wait { is_upgrade: false }
        }
        (None, _, _) if others == 0 => Verdict::Grant,
        (None, Mode::Shared, Mode::Shared) if wanted.limit != lock.limit() => {
            Verdict::LimitDiffers { limit: lock.limit() }
        }
        (None, Mode::Shared, Mode::Shared) if lock.has_room() => Verdict::Grant,
        (None, _, _) => Verdict::Wait { is_upgrade: false },
    }
}

/// True when the holds of others stand in the way of the request: nobody is admitted beside them, or they take the
/// places of a lock that several may share.
#[must_use]
pub fn stand_in_the_way(lock: &Lock, wanted: &Wanted) -> bool {
    lock.mode() == Mode::Exclusive || wanted.mode == Mode::Exclusive || !lock.has_room()
}
