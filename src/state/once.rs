//! Transactions that carry a name and are executed once, however often they are sent (ONCE, COMMANDS.md 2.1).
//!
//! Names are kept for their time whatever happens: one that was forgotten would be executed again. Replies are a
//! convenience, and bounded in bytes together: the oldest go first, by the entry that executed them, which is the same
//! on every replica.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use bytes::Bytes;

use crate::types::ClusterTime;
use crate::types::LogIndex;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_bool;
use crate::types::codec::put_bytes;
use crate::types::codec::put_u128;
use crate::types::codec::put_varint;

/// A name, within its ACL user.
pub type OnceName = (Box<[u8]>, Box<[u8]>);

/// What is kept of a named transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnceRecord {
    /// A hash of its commands: the name must not be used for others.
    pub commands: u128,
    /// The entry that executed it.
    pub index: LogIndex,
    /// When the name may be used again.
    pub until: ClusterTime,
    /// Its reply, as `resp::reply_codec` encodes it; `None`: too large to be kept, or gone for newer ones.
    pub reply: Option<Bytes>,
}

impl OnceRecord {
    /// Appends the record as its row keeps it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_u128(out, self.commands);
        put_varint(out, self.index.0);
        put_varint(out, self.until.0);
        put_bool(out, self.reply.is_some());
        if let Some(reply) = &self.reply {
            put_bytes(out, reply);
        }
    }

    /// Reads what [`OnceRecord::encode`] wrote.
    pub fn decode(value: &[u8]) -> Result<OnceRecord, CodecError> {
        let mut reader = Reader::new(value);
        let record = OnceRecord {
            commands: reader.u128()?,
            index: LogIndex(reader.varint()?),
            until: ClusterTime(reader.varint()?),
            reply: if reader.bool()? { Some(Bytes::copy_from_slice(reader.bytes()?)) } else { None },
        };
        if reader.is_empty() { Ok(record) } else { Err(CodecError("a named transaction with a tail")) }
    }
}

/// The transactions whose names are kept.
#[derive(Debug, Default)]
pub struct OnceRecords {
    records: BTreeMap<OnceName, OnceRecord>,
    /// Those whose replies are kept, the oldest first.
    replies: BTreeSet<(LogIndex, OnceName)>,
    reply_bytes: u64,
}

impl OnceRecords {
    /// What is kept of a name.
    #[must_use]
    pub fn get(&self, name: &OnceName) -> Option<&OnceRecord> {
        self.records.get(name)
    }

    /// How many names are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// True when none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes of all replies that are kept.
    #[must_use]
    pub fn reply_bytes(&self) -> u64 {
        self.reply_bytes
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&OnceName, &OnceRecord)> {
        self.records.iter()
    }

    /// Keeps a transaction in the place of one of the same name.
    pub fn insert(&mut self, name: OnceName, record: OnceRecord) {
        self.remove(&name);
        if let Some(reply) = &record.reply {
            self.replies.insert((record.index, name.clone()));
            self.reply_bytes += reply.len() as u64;
        }
        self.records.insert(name, record);
    }

    /// Forgets a name; gives what was kept of it.
    pub fn remove(&mut self, name: &OnceName) -> Option<OnceRecord> {
        let record = self.records.remove(name)?;
        if let Some(reply) = &record.reply {
            self.replies.remove(&(record.index, name.clone()));
            self.reply_bytes -= reply.len() as u64;
        }
        Some(record)
    }

    /// Lets go of the oldest reply while they take more than `bytes_max` together; gives whose it was.
    pub fn drop_oldest_reply(&mut self, bytes_max: u64) -> Option<OnceName> {
        if self.reply_bytes <= bytes_max {
            return None;
        }
        let (_, name) = self.replies.pop_first()?;
        let record = self.records.get_mut(&name).expect("a reply that is kept has a record");
        self.reply_bytes -= record.reply.take().map_or(0, |reply| reply.len() as u64);
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Settings;
    use crate::state::State;
    use crate::state::test_support::TestStore;
    use crate::types::Term;
    use crate::types::WallMillis;

    fn name(n: u64) -> OnceName {
        (b"default".as_slice().into(), n.to_string().as_bytes().into())
    }

    /// One entry with a transaction whose reply takes so many bytes.
    fn execute(state: &mut State, index: u64, reply_bytes: usize, until: u64) {
        state.begin_entry(LogIndex(index), Term(1), ClusterTime(index), WallMillis(0));
        let reply = Some(Bytes::from(vec![b'r'; reply_bytes]));
        let record = OnceRecord { commands: 7, index: LogIndex(index), until: ClusterTime(until), reply };
        state.remember_once(name(index), record);
    }

    fn has_reply(state: &State, n: u64) -> bool {
        let record = state.once(&name(n), ClusterTime(0)).expect("names are kept for their time");
        assert_eq!((record.commands, record.index), (7, LogIndex(n)));
        record.reply.is_some()
    }

    #[test]
    fn the_oldest_replies_go_when_all_take_too_much_and_stay_gone() {
        let store = TestStore::new();
        let mut state = State::new(16);
        state.set_settings(Settings { databases: 16, once_max_bytes: 100, ..Settings::default() });
        for n in 1..=5 {
            execute(&mut state, n, 30, 1_000);
        }
        for _ in 0..2 {
            assert_eq!([1, 2, 3, 4, 5].map(|n| has_reply(&state, n)), [false, false, true, true, true]);
            assert_eq!((state.once_len(), state.once_reply_bytes()), (5, 90));
            store.reopen(&mut state);
        }
        execute(&mut state, 6, 70, 1_000);
        store.reopen(&mut state);
        assert_eq!([3, 4, 5, 6].map(|n| has_reply(&state, n)), [false, false, true, true]);
    }

    #[test]
    fn a_name_that_ends_gives_its_bytes_back() {
        let mut state = State::new(16);
        state.set_settings(Settings { databases: 16, once_max_bytes: 100, ..Settings::default() });
        execute(&mut state, 1, 60, 10);
        execute(&mut state, 2, 30, 1_000);
        assert_eq!(state.expire_due(ClusterTime(10)), 1);
        assert_eq!((state.once_len(), state.once_reply_bytes()), (1, 30));
        execute(&mut state, 3, 70, 1_000);
        assert!(has_reply(&state, 2) && has_reply(&state, 3));
    }
}
