//! Which holds were released under their token of late, so that the same UNLOCK, sent again after a lost reply, is
//! told the same (COMMANDS.md 2.2).
//!
//! Bounded: the oldest goes first. What is older than [`KEPT`] does not count, and is forgotten as new ones come.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use xxhash_rust::xxh3::xxh3_64;

use crate::state::DbIndex;
use crate::state::locks::OwnerName;
use crate::types::ClusterTime;
use crate::types::FencingToken;
use crate::types::Millis;
use crate::types::codec::put_bytes;

/// How long a release is remembered.
pub const KEPT: Millis = Millis(600_000);
/// How many are forgotten, at most, when a new one comes.
const FORGOTTEN_AT_ONCE: usize = 4;

/// A release: when, and a hash of who released what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    pub at: ClusterTime,
    pub who: u64,
}

/// The releases of late.
#[derive(Debug, Default)]
pub struct Releases {
    by_token: BTreeMap<FencingToken, Release>,
    by_time: BTreeSet<(ClusterTime, FencingToken)>,
}

fn hash(db: DbIndex, key: &[u8], owner: &OwnerName) -> u64 {
    let mut bytes = vec![db];
    put_bytes(&mut bytes, key);
    put_bytes(&mut bytes, &owner.user);
    put_bytes(&mut bytes, &owner.owner);
    xxh3_64(&bytes)
}

impl Releases {
    /// Remembers a release; gives those that were forgotten for it.
    pub fn remember(
        &mut self,
        token: FencingToken,
        db: DbIndex,
        key: &[u8],
        owner: &OwnerName,
        at: ClusterTime,
        at_most: u64,
    ) -> Vec<(FencingToken, Release)> {
        self.insert(token, Release { at, who: hash(db, key, owner) });
        let mut forgotten = Vec::new();
        while forgotten.len() < FORGOTTEN_AT_ONCE
            && let Some((oldest, token)) = self.by_time.first().copied()
            && (oldest.after(KEPT) <= at || self.by_token.len() as u64 > at_most)
        {
            forgotten.extend(self.remove(token).map(|release| (token, release)));
        }
        forgotten
    }

    /// True when this owner released this lock under this token of late.
    #[must_use]
    pub fn knows(
        &self,
        token: FencingToken,
        db: DbIndex,
        key: &[u8],
        owner: &OwnerName,
        now: ClusterTime,
    ) -> bool {
        self.by_token
            .get(&token)
            .is_some_and(|known| known.at.after(KEPT) > now && known.who == hash(db, key, owner))
    }

    /// The release under a token.
    #[must_use]
    pub fn get(&self, token: FencingToken) -> Option<Release> {
        self.by_token.get(&token).copied()
    }

    /// Every release, by token.
    pub fn iter(&self) -> impl Iterator<Item = (FencingToken, Release)> {
        self.by_token.iter().map(|(token, release)| (*token, *release))
    }

    pub(crate) fn insert(&mut self, token: FencingToken, release: Release) {
        self.by_token.insert(token, release);
        self.by_time.insert((release.at, token));
    }

    pub(crate) fn remove(&mut self, token: FencingToken) -> Option<Release> {
        let release = self.by_token.remove(&token)?;
        self.by_time.remove(&(release.at, token));
        Some(release)
    }
}
