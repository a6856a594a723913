//! Who subscribed to which channels on this node.
//!
//! What is published in this version are changes of locks, on `__lock__:<key>`: every node learns of them as it applies
//! the log, and tells its own clients, at most once each.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;

use crate::resp::Reply;
use crate::server::clients::ClientHandle;
use crate::types::ClientId;
use crate::types::glob::matches;

/// What channels that tell of locks begin with.
pub const LOCK_CHANNEL: &[u8] = b"__lock__:";

type Subscribers = BTreeMap<ClientId, Arc<ClientHandle>>;

#[derive(Default)]
struct Tables {
    channels: BTreeMap<Bytes, Subscribers>,
    patterns: BTreeMap<Bytes, Subscribers>,
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

fn table(tables: &mut Tables, is_pattern: bool) -> &mut BTreeMap<Bytes, Subscribers> {
    if is_pattern { &mut tables.patterns } else { &mut tables.channels }
}

impl PubSub {
    /// Adds a subscription. True when it is the first of all.
    pub fn add(&self, client: &Arc<ClientHandle>, name: &Bytes, is_pattern: bool) -> bool {
        let mut tables = self.tables.write();
        let was_empty = tables.channels.is_empty() && tables.patterns.is_empty();
        let subscribers = table(&mut tables, is_pattern).entry(name.clone()).or_default();
        subscribers.insert(client.id, Arc::clone(client));
        was_empty
    }

    /// Ends a subscription. True when none are left.
    pub fn remove(&self, client: ClientId, name: &Bytes, is_pattern: bool) -> bool {
        let mut tables = self.tables.write();
        let table = table(&mut tables, is_pattern);
        if let Some(subscribers) = table.get_mut(name) {
            subscribers.remove(&client);
            if subscribers.is_empty() {
                table.remove(name);
            }
        }
        tables.channels.is_empty() && tables.patterns.is_empty()
    }

    /// True when nobody is subscribed to anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let tables = self.tables.read();
        tables.channels.is_empty() && tables.patterns.is_empty()
    }

    /// Sends a message to whoever subscribed to the channel.
    pub fn publish(&self, channel: &[u8], message: &Bytes) {
        let tables = self.tables.read();
        let bulk = |bytes: &[u8]| Reply::bulk(bytes);
        for client in tables.channels.get(channel).into_iter().flat_map(BTreeMap::values) {
            let message = Reply::Bulk(message.clone());
            client.push(Reply::Push(vec![bulk(b"message"), bulk(channel), message]));
        }
        for (pattern, subscribers) in &tables.patterns {
            if matches(pattern, channel, false) {
                for client in subscribers.values() {
                    let message = Reply::Bulk(message.clone());
                    client.push(Reply::Push(vec![bulk(b"pmessage"), bulk(pattern), bulk(channel), message]));
                }
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
        self.tables.read().patterns.len()
    }
}
