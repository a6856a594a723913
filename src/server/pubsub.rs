//! Who subscribed to which channels on this node.
//!
//! What is published in this version are changes of locks, on `__lock__:<key>`: every node learns of them as it applies
//! the log, and tells its own clients, at most once each.
//!
//! Patterns are found by what they begin with, up to their first special byte. A hundred thousand that begin alike are
//! looked through in turns, between which other tasks of the thread run and subscriptions change.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;

use crate::resp::Reply;
use crate::server::clients::ClientHandle;
use crate::types::ClientId;
use crate::types::glob::matches;

/// What channels that tell of locks begin with.
pub const LOCK_CHANNEL: &[u8] = b"__lock__:";

/// Patterns that are looked at in one turn, and pushes sent, at most.
const TURN: usize = 256;

type Subscribers = BTreeMap<ClientId, Arc<ClientHandle>>;

#[derive(Default)]
struct Tables {
    channels: BTreeMap<Bytes, Subscribers>,
    patterns: Patterns,
}

/// Patterns by their literal beginnings.
#[derive(Default)]
struct Patterns {
    /// By the length of its beginning, then the beginning itself.
    by_start: BTreeMap<usize, BTreeMap<Bytes, BTreeMap<Bytes, Subscribers>>>,
    count: usize,
}

/// Where the search for the patterns that match a channel stands: behind this beginning's length and pattern.
type Place = (usize, Option<Bytes>);

/// How many bytes of a pattern stand for themselves before the first that does not.
fn literal_len(pattern: &[u8]) -> usize {
    pattern.iter().position(|byte| b"*?[\\".contains(byte)).unwrap_or(pattern.len())
}

impl Patterns {
    fn add(&mut self, pattern: &Bytes, client: &Arc<ClientHandle>) {
        let start = pattern.slice(..literal_len(pattern));
        let alike = self.by_start.entry(start.len()).or_default().entry(start).or_default();
        self.count += usize::from(!alike.contains_key(pattern));
        alike.entry(pattern.clone()).or_default().insert(client.id, Arc::clone(client));
    }

    fn remove(&mut self, pattern: &[u8], client: ClientId) {
        let start = &pattern[..literal_len(pattern)];
        let Some(starts) = self.by_start.get_mut(&start.len()) else { return };
        let Some(alike) = starts.get_mut(start) else { return };
        let Some(subscribers) = alike.get_mut(pattern) else { return };
        subscribers.remove(&client);
        if !subscribers.is_empty() {
            return;
        }
        alike.remove(pattern);
        self.count -= 1;
        if alike.is_empty() {
            starts.remove(start);
            if starts.is_empty() {
                self.by_start.remove(&start.len());
            }
        }
    }

    /// Looks at some patterns from a place on and calls `found` for each subscriber of those that match. `None`: all
    /// were looked at.
    fn turn(
        &self,
        from: Place,
        channel: &[u8],
        mut found: impl FnMut(&Bytes, &Arc<ClientHandle>),
    ) -> Option<Place> {
        let mut left = TURN;
        let (length, mut behind) = from;
        if length > channel.len() {
            return None;
        }
        for (length, starts) in self.by_start.range(length..=channel.len()) {
            let alike = starts.get(&channel[..*length]).into_iter();
            let behind = behind.take_if(|_| *length == from.0);
            let first = behind.map_or(Bound::Unbounded, Bound::Excluded);
            for (pattern, subscribers) in
                alike.flat_map(|alike| alike.range::<Bytes, _>((first.clone(), Bound::Unbounded)))
            {
                left = left.saturating_sub(1);
                if matches(pattern, channel, false) {
                    left = left.saturating_sub(subscribers.len());
                    subscribers.values().for_each(|client| found(pattern, client));
                }
                if left == 0 {
                    return Some((*length, Some(pattern.clone())));
                }
            }
            left = left.saturating_sub(1);
            if left == 0 {
                return Some((*length + 1, None));
            }
        }
        None
    }
}

/// The subscriptions of this node's clients.
#[derive(Default)]
pub struct PubSub {
    tables: RwLock<Tables>,
}

/// What one client subscribed to.
#[derive(Debug, Default)]
pub struct Subscriptions {
    pub channels: BTreeSet<Bytes>,
    pub patterns: BTreeSet<Bytes>,
}

impl Subscriptions {
    /// How many they are, as replies count them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.channels.len() + self.patterns.len()
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Tables {
    fn is_empty(&self) -> bool {
        self.channels.is_empty() && self.patterns.count == 0
    }
}

impl PubSub {
    /// Adds a subscription. True when it is the first of all.
    pub fn add(&self, client: &Arc<ClientHandle>, name: &Bytes, is_pattern: bool) -> bool {
        let mut tables = self.tables.write();
        let was_empty = tables.is_empty();
        if is_pattern {
            tables.patterns.add(name, client);
        } else {
            tables.channels.entry(name.clone()).or_default().insert(client.id, Arc::clone(client));
        }
        was_empty
    }

    /// Ends a subscription. True when none are left.
    pub fn remove(&self, client: ClientId, name: &Bytes, is_pattern: bool) -> bool {
        let mut tables = self.tables.write();
        if is_pattern {
            tables.patterns.remove(name, client);
        } else if let Some(subscribers) = tables.channels.get_mut(name) {
            subscribers.remove(&client);
            if subscribers.is_empty() {
                tables.channels.remove(name);
            }
        }
        tables.is_empty()
    }

    /// True when nobody is subscribed to anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tables.read().is_empty()
    }

    /// Sends a message to whoever subscribed to the channel; who subscribes meanwhile may miss it. Lets other tasks run
    /// while it looks through many patterns.
    pub async fn publish(&self, channel: &[u8], message: &Bytes) {
        for client in self.tables.read().channels.get(channel).into_iter().flat_map(BTreeMap::values) {
            let message = Reply::Bulk(message.clone());
            client.push(Reply::Push(vec![Reply::bulk("message"), Reply::bulk(channel), message]));
        }
        let mut place = Some((0, None));
        while let Some(from) = place {
            place = self.tables.read().patterns.turn(from, channel, |pattern, client| {
                let (pattern, message) = (Reply::Bulk(pattern.clone()), Reply::Bulk(message.clone()));
                let words = vec![Reply::bulk("pmessage"), pattern, Reply::bulk(channel), message];
                client.push(Reply::Push(words));
            });
            if place.is_some() {
                tokio::task::yield_now().await;
            }
        }
    }

    /// The channels that somebody subscribed to and that match.
    #[must_use]
    pub fn channels(&self, pattern: Option<&[u8]>) -> Vec<Bytes> {
        let tables = self.tables.read();
        let is_wanted = |channel: &&Bytes| pattern.is_none_or(|pattern| matches(pattern, channel, false));
        tables.channels.keys().filter(is_wanted).cloned().collect()
    }

    /// How many subscribed to a channel.
    #[must_use]
    pub fn subscribers(&self, channel: &[u8]) -> usize {
        self.tables.read().channels.get(channel).map_or(0, BTreeMap::len)
    }

    /// How many patterns somebody subscribed to.
    #[must_use]
    pub fn patterns(&self) -> usize {
        self.tables.read().patterns.count
    }
}
