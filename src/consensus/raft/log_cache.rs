//! The log as raft-rs sees it: entries in memory, in front of `storage::log`.
//!
//! raft-rs calls this inside `step` and `ready`, so nothing here may do I/O. Entries are readable from
//! the moment they are handed to the writer, before they are durable; what the writer has made durable is
//! told to the core by `Persisted`, never by this cache.

use std::collections::VecDeque;

use raft::Error;
use raft::GetEntriesContext;
use raft::RaftState;
use raft::Storage;
use raft::StorageError;
use raft::eraftpb::ConfState;
use raft::eraftpb::Entry;
use raft::eraftpb::HardState;
use raft::eraftpb::Snapshot;

/// Bytes an entry takes besides its data, for limits on the size of messages.
const ENTRY_OVERHEAD: u64 = 24;

/// Entries `first_index ..= last_index`, and the term of the one before.
#[derive(Debug)]
pub struct LogCache {
    hard_state: HardState,
    conf_state: ConfState,
    first_index: u64,
    /// Term of the entry at `first_index - 1`.
    term_before: u64,
    entries: VecDeque<Entry>,
    bytes: u64,
}

impl LogCache {
    /// A log whose entries up to `applied` (of `applied_term`) are not needed any more, followed by `entries`.
    #[must_use]
    pub fn new(
        hard_state: HardState,
        conf_state: ConfState,
        applied: u64,
        applied_term: u64,
        entries: Vec<Entry>,
    ) -> LogCache {
        let bytes = entries.iter().map(|entry| entry.data.len() as u64).sum();
        LogCache {
            hard_state,
            conf_state,
            first_index: applied + 1,
            term_before: applied_term,
            entries: entries.into(),
            bytes,
        }
    }

    fn last(&self) -> u64 {
        self.first_index + self.entries.len() as u64 - 1
    }

    /// Appends entries, replacing a suffix where they overlap. A hole is a broken invariant.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index >= self.first_index && first.index <= self.last() + 1,
            "entries from {} do not continue a log of {}..={}",
            first.index,
            self.first_index,
            self.last()
        );
        let keep = (first.index - self.first_index) as usize;
        self.bytes -= self.entries.range(keep..).map(|entry| entry.data.len() as u64).sum::<u64>();
        self.entries.truncate(keep);
        self.bytes += entries.iter().map(|entry| entry.data.len() as u64).sum::<u64>();
        self.entries.extend(entries.iter().cloned());
    }

    /// Remembers the hard state of a Ready.
    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// Forgets the entries up to and with `index`; it must be applied.
    pub fn compact(&mut self, index: u64) {
        let index = index.min(self.last());
        if index < self.first_index {
            return;
        }
        let count = (index + 1 - self.first_index) as usize;
        self.term_before = self.entries[count - 1].term;
        for entry in self.entries.drain(..count) {
            self.bytes -= entry.data.len() as u64;
        }
        self.first_index = index + 1;
    }

    /// Bytes of entry data held.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of entries held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when no entry is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Storage for LogCache {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first_index {
            return Err(Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last() + 1, "entries up to {high} of a log that ends at {}", self.last());
        let max_size = max_size.into().unwrap_or(u64::MAX);
        let (mut size, mut found) = (0, Vec::new());
        for entry in self.entries.range((low - self.first_index) as usize..(high - self.first_index) as usize)
        {
            size += entry.data.len() as u64 + ENTRY_OVERHEAD;
            if size > max_size && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index + 1 == self.first_index {
            return Ok(self.term_before);
        }
        if index < self.first_index {
            return Err(Error::Store(StorageError::Compacted));
        }
        let entry = self.entries.get((index - self.first_index) as usize);
        entry.map(|entry| entry.term).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first_index)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![7; 10], ..Entry::default() }
    }

    fn cache() -> LogCache {
        LogCache::new(HardState::default(), ConfState::from((vec![1], vec![])), 0, 0, Vec::new())
    }

    #[test]
    fn an_empty_log_starts_at_one() {
        assert_eq!((cache().first_index().unwrap(), cache().last_index().unwrap()), (1, 0));
        assert_eq!(cache().term(0).unwrap(), 0);
    }

    #[test]
    fn a_later_term_replaces_the_suffix_it_overlaps() {
        let mut log = cache();
        log.append(&[entry(1, 1), entry(2, 1), entry(3, 1)]);
        log.append(&[entry(2, 2)]);
        assert_eq!((log.last_index().unwrap(), log.term(2).unwrap(), log.bytes()), (2, 2, 20));
    }

    #[test]
    fn compaction_keeps_the_term_before_the_first_entry() {
        let mut log = cache();
        log.append(&[entry(1, 1), entry(2, 3), entry(3, 3)]);
        log.compact(2);
        assert_eq!((log.first_index().unwrap(), log.term(2).unwrap()), (3, 3));
        assert!(matches!(log.term(1), Err(Error::Store(StorageError::Compacted))));
        log.compact(100);
        assert_eq!((log.first_index().unwrap(), log.last_index().unwrap(), log.bytes()), (4, 3, 0));
    }

    #[test]
    fn at_least_one_entry_comes_whatever_the_limit() {
        let mut log = cache();
        log.append(&[entry(1, 1), entry(2, 1)]);
        assert_eq!(log.entries(1, 3, Some(1), GetEntriesContext::empty(false)).unwrap().len(), 1);
    }
}
