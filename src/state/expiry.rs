//! What ends at which time: an ordered index over everything that has a deadline.
//!
//! Deadlines only ever end things through log entries (COMMANDS.md 3.2, rule 3). The index tells the
//! leader when the next EXPIRE entry is wanted, and apply which items are due.

use std::collections::BTreeSet;

use crate::state::DbIndex;
use crate::state::locks::ClaimId;
use crate::state::once::OnceName;
use crate::types::ClusterTime;
use crate::types::FencingToken;

/// Items ordered by deadline; `T` names the item.
#[derive(Debug)]
pub struct ExpiryIndex<T: Ord> {
    items: BTreeSet<(ClusterTime, T)>,
}

impl<T: Ord> Default for ExpiryIndex<T> {
    fn default() -> Self {
        ExpiryIndex { items: BTreeSet::new() }
    }
}

impl<T: Ord + Clone> ExpiryIndex<T> {
    /// Adds an item; an item with another deadline must be removed under that one first.
    pub fn insert(&mut self, deadline: ClusterTime, item: T) {
        self.items.insert((deadline, item));
    }

    /// Removes an item that was added with this deadline.
    pub fn remove(&mut self, deadline: ClusterTime, item: T) {
        self.items.remove(&(deadline, item));
    }

    /// The earliest deadline; NEVER when there is none.
    #[must_use]
    pub fn earliest(&self) -> ClusterTime {
        self.items.first().map_or(ClusterTime::NEVER, |(deadline, _)| *deadline)
    }

    /// The first item whose deadline is at or before `now`.
    #[must_use]
    pub fn first_due(&self, now: ClusterTime) -> Option<T> {
        self.items.first().filter(|(deadline, _)| *deadline <= now).map(|(_, item)| item.clone())
    }

    /// Every deadline and item, earliest first.
    pub fn iter(&self) -> impl Iterator<Item = (ClusterTime, &T)> {
        self.items.iter().map(|(deadline, item)| (*deadline, item))
    }

    /// Number of items.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// True when nothing has a deadline.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

/// A key with a time to live.
pub type KeyName = (DbIndex, Box<[u8]>);

/// Something leased for a while, whose end is not the end of a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeaseName {
    /// Somebody holds this lock, under this token.
    Hold(DbIndex, Box<[u8]>, FencingToken),
    /// Nobody gets this lock for a while.
    Delay(DbIndex, Box<[u8]>),
    /// A client waits for a lock.
    Claim(ClaimId),
    /// The name of a transaction is kept.
    Once(OnceName),
    /// Something of this queue is due, at this time or later.
    Queue(DbIndex, Box<[u8]>),
}
