//! What ends at which time: an ordered index over everything that has a deadline.
//!
//! Deadlines only ever end things through log entries (COMMANDS.md 3.2, rule 3). The index tells the
//! leader when the next EXPIRE entry is wanted, and apply which items are due.
//!
//! ```text
//! track      what ends                                                          who notices that it is late
//! Awaited    a client's wait; a lock that others wait for (its leases, its      somebody who waits for it now
//!            delay); a message's lease, delay or backoff
//! Idle       keys; locks that nobody waits for; lifetimes of messages, IDs of   whoever names it next, and then it
//!            finished ones, empty queues; names of transactions                 ends at once
//! ```
//! What is awaited goes first: a million keys that end together must not keep a lock's queue waiting.

use std::collections::BTreeSet;

use crate::state::DbIndex;
use crate::state::locks::ClaimId;
use crate::state::once::OnceName;
use crate::types::ClusterTime;

/// Items ordered by deadline; `T` names the item.
#[derive(Debug)]
pub struct ExpiryIndex<T: Ord> {
    items: BTreeSet<(ClusterTime, T)>,
    /// Of the first item; NEVER when there is none. Every command asks for it.
    earliest: ClusterTime,
}

impl<T: Ord> Default for ExpiryIndex<T> {
    fn default() -> Self {
        ExpiryIndex { items: BTreeSet::new(), earliest: ClusterTime::NEVER }
    }
}

impl<T: Ord + Clone> ExpiryIndex<T> {
    /// Adds an item; an item with another deadline must be removed under that one first.
    pub fn insert(&mut self, deadline: ClusterTime, item: T) {
        self.earliest = self.earliest.min(deadline);
        self.items.insert((deadline, item));
    }

    /// Removes an item that was added with this deadline.
    pub fn remove(&mut self, deadline: ClusterTime, item: T) {
        if self.items.remove(&(deadline, item)) && deadline == self.earliest {
            self.earliest = self.items.first().map_or(ClusterTime::NEVER, |(deadline, _)| *deadline);
        }
    }

    /// The earliest deadline; NEVER when there is none.
    #[must_use]
    pub fn earliest(&self) -> ClusterTime {
        self.earliest
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
    /// Of this lock a hold or a delay ends. It stands under the earliest of them.
    Lock(DbIndex, Box<[u8]>),
    /// A client waits, for locks or for messages.
    Claim(ClaimId),
    /// The name of a transaction is kept.
    Once(OnceName),
    /// Something of this queue is due, at this time or later.
    Queue(DbIndex, Box<[u8]>),
}

/// Whether somebody waits for the end of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Track {
    /// Somebody does: it goes first.
    Awaited,
    /// Nobody does.
    Idle,
}

impl Track {
    /// Both, the first first.
    pub const ALL: [Track; 2] = [Track::Awaited, Track::Idle];
}

/// Everything that is leased, on its track.
#[derive(Debug, Default)]
pub struct Leases {
    tracks: [ExpiryIndex<LeaseName>; 2],
}

impl Leases {
    /// What is on a track.
    #[must_use]
    pub fn on(&self, track: Track) -> &ExpiryIndex<LeaseName> {
        &self.tracks[track as usize]
    }

    /// Adds an item to a track.
    pub fn insert(&mut self, track: Track, deadline: ClusterTime, name: LeaseName) {
        self.tracks[track as usize].insert(deadline, name);
    }

    /// Removes an item that was added to this track with this deadline.
    pub fn remove(&mut self, track: Track, deadline: ClusterTime, name: LeaseName) {
        self.tracks[track as usize].remove(deadline, name);
    }

    /// Every deadline and item, track by track, earliest first.
    pub fn iter(&self) -> impl Iterator<Item = (ClusterTime, &LeaseName)> {
        self.tracks.iter().flat_map(ExpiryIndex::iter)
    }
}
