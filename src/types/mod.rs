//! The words of Holdfast: small types that cannot be mixed up.
//!
//! A log index is not a term and a cluster time is not a length of time; the compiler keeps them
//! apart, and arithmetic between them has a name. Nothing here does I/O.

pub mod bounds;
pub mod codec;
pub mod glob;
pub mod planted;
pub mod slot;
pub mod waiting_room;

use std::fmt;

/// A process of the cluster, as `node-id` names it (from 1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

/// A Raft group, which users see as a shard (from 0; group 0 also carries the cluster's own data).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u32);

/// A client connection of this node; never used twice while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// A Raft term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Term(pub u64);

/// A position in a group's log, counted from 1; 0 means "before the first entry".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogIndex(pub u64);

/// The number that guards a resource: strictly increasing over all grants of a group, below 2^53.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FencingToken(pub u64);

/// A length of time in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Millis(pub u64);

/// The cluster clock (COMMANDS.md 3.2): milliseconds since the cluster began, stamped into every
/// entry by the leader. It never goes back and no node's wall clock is an input of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterTime(pub u64);

/// Nanoseconds of this process's monotonic clock. Means nothing in another process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Monotonic(pub u64);

/// Nanoseconds since this machine was started, its sleep included (`CLOCK_BOOTTIME`): what leases are counted in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Boottime(pub u64);

/// Milliseconds since the Unix epoch, from a wall clock. Only for absolute expiries and for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WallMillis(pub u64);

impl ClusterTime {
    /// Far future: a deadline that never comes.
    pub const NEVER: ClusterTime = ClusterTime(u64::MAX);

    /// The moment `length` later, saturating.
    #[must_use]
    pub fn after(self, length: Millis) -> ClusterTime {
        ClusterTime(self.0.saturating_add(length.0))
    }

    /// How long from `self` until `later`; zero when `later` is not later.
    #[must_use]
    pub fn until(self, later: ClusterTime) -> Millis {
        Millis(later.0.saturating_sub(self.0))
    }
}

impl Monotonic {
    /// How long from `earlier` until `self`; zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Monotonic) -> Millis {
        Millis(self.0.saturating_sub(earlier.0) / 1_000_000)
    }

    /// Microseconds from `earlier` until `self`.
    #[must_use]
    pub fn micros_since(self, earlier: Monotonic) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000
    }
}

impl LogIndex {
    /// The next position.
    #[must_use]
    pub fn next(self) -> LogIndex {
        LogIndex(self.0 + 1)
    }
}

impl FencingToken {
    /// The next token.
    #[must_use]
    pub fn next(self) -> FencingToken {
        FencingToken(self.0 + 1)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for LogIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_saturates_instead_of_wrapping() {
        assert_eq!(ClusterTime(u64::MAX - 1).after(Millis(10)), ClusterTime::NEVER);
    }

    #[test]
    fn a_past_moment_is_no_time_away() {
        assert_eq!(ClusterTime(10).until(ClusterTime(3)), Millis(0));
    }
}
