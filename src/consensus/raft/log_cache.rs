//! The log as raft-rs sees it: entries in memory, in front of `storage::log`.
//!
//! ```text
//!  disk_first ............ memory_first ............ last
//!  │ on disk only: terms here, │ in memory: read at once,
//!  │ entries are fetched       │ also before they are durable
//! ```
//! raft-rs calls this inside `step` and `ready`, so nothing here may do I/O. Entries are readable from
//! the moment they are handed to the writer; what the writer has made durable is told to the core by
//! `Persisted`, never by this cache. Entries that were released from memory are fetched by the driver when a
//! follower needs them; what is not on disk any more is sent as a snapshot.

use std::cell::Cell;
use std::cell::RefCell;
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
use raft::eraftpb::SnapshotMetadata;

/// Bytes an entry takes besides its data, for limits on the size of messages.
const ENTRY_OVERHEAD: u64 = 24;
/// Bytes that one fetch from disk brings, beyond one entry of any size.
const FETCH_BYTES: u64 = 1 << 20;

/// Entries that a follower needs and that are on disk only.
#[derive(Debug)]
pub struct Fetch {
    /// The first index.
    pub low: u64,
    /// One past the last index.
    pub high: u64,
    /// Bytes that suffice.
    pub max_bytes: u64,
    context: GetEntriesContext,
}

impl Fetch {
    /// raft-rs's note of whom they are for.
    pub(super) fn into_context(self) -> GetEntriesContext {
        self.context
    }
}

/// The entries on disk and in memory, and the snapshot that can be sent.
#[derive(Debug)]
pub struct LogCache {
    hard_state: HardState,
    conf_state: ConfState,
    disk_first: u64,
    memory_first: u64,
    /// The terms of the entries from `disk_first - 1` to `memory_first - 1`: where each begins, and the term.
    terms: VecDeque<(u64, u64)>,
    entries: VecDeque<Entry>,
    bytes: u64,
    /// What the driver fetched last.
    fetched: VecDeque<Entry>,
    fetches: RefCell<Vec<Fetch>>,
    /// The snapshot that followers get.
    offered: Option<Snapshot>,
    is_snapshot_wanted: Cell<bool>,
}

/// What an append replaced: the indices of entries that are on disk and not valid any more.
pub type Replaced = Option<(u64, u64)>;

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
            disk_first: applied + 1,
            memory_first: applied + 1,
            terms: VecDeque::from([(applied, applied_term)]),
            entries: entries.into(),
            bytes,
            fetched: VecDeque::new(),
            fetches: RefCell::default(),
            offered: None,
            is_snapshot_wanted: Cell::new(false),
        }
    }

    fn last(&self) -> u64 {
        self.memory_first + self.entries.len() as u64 - 1
    }

    /// Appends entries, replacing a suffix where they overlap; says what was replaced. A hole is a broken invariant.
    pub fn append(&mut self, entries: &[Entry]) -> Replaced {
        let first = entries.first()?;
        let last = self.last();
        assert!(
            first.index >= self.memory_first && first.index <= last + 1,
            "entries from {} do not continue a log of {}..={last}",
            first.index,
            self.memory_first,
        );
        let keep = (first.index - self.memory_first) as usize;
        self.bytes -= self.entries.range(keep..).map(|entry| entry.data.len() as u64).sum::<u64>();
        self.entries.truncate(keep);
        self.bytes += entries.iter().map(|entry| entry.data.len() as u64).sum::<u64>();
        self.entries.extend(entries.iter().cloned());
        (first.index <= last).then_some((first.index, last))
    }

    /// Remembers the hard state of a Ready.
    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// The voters and learners as of the last applied change.
    pub fn set_conf_state(&mut self, conf_state: ConfState) {
        self.conf_state = conf_state;
    }

    /// Forgets from memory the entries up to and with `index`; they must be applied and durable.
    pub fn release(&mut self, index: u64) {
        let index = index.min(self.last());
        if index < self.memory_first {
            return;
        }
        for entry in self.entries.drain(..(index + 1 - self.memory_first) as usize) {
            self.bytes -= entry.data.len() as u64;
            if self.terms.back().is_none_or(|(_, term)| *term != entry.term) {
                self.terms.push_back((entry.index, entry.term));
            }
        }
        self.memory_first = index + 1;
    }

    /// The entries up to and with `index` are not on disk any more; they are released as well.
    pub fn compact(&mut self, index: u64) {
        self.release(index);
        let index = index.min(self.memory_first - 1);
        if index < self.disk_first {
            return;
        }
        while self.terms.get(1).is_some_and(|(from, _)| *from <= index) {
            self.terms.pop_front();
        }
        if let Some((from, _)) = self.terms.front_mut() {
            *from = index;
        }
        self.disk_first = index + 1;
        self.fetched.clear();
        if self.offered.as_ref().is_some_and(|snapshot| snapshot.get_metadata().index < index) {
            self.offered = None;
        }
    }

    /// The log is replaced by a snapshot.
    pub fn restore(&mut self, meta: &SnapshotMetadata) {
        self.entries.clear();
        self.bytes = 0;
        self.terms = VecDeque::from([(meta.index, meta.term)]);
        (self.disk_first, self.memory_first) = (meta.index + 1, meta.index + 1);
        self.conf_state = meta.get_conf_state().clone();
        self.fetched.clear();
        self.offered = None;
    }

    /// A snapshot can be sent now.
    pub fn offer(&mut self, snapshot: Snapshot) {
        if snapshot.get_metadata().index + 1 >= self.disk_first {
            self.offered = Some(snapshot);
        }
    }

    /// True once after a follower needed a snapshot and there was none.
    pub fn take_snapshot_wanted(&self) -> bool {
        self.is_snapshot_wanted.take()
    }

    /// What followers need from disk.
    pub fn take_fetches(&self) -> Vec<Fetch> {
        self.fetches.take()
    }

    /// Brings what was fetched, for the next look.
    pub fn set_fetched(&mut self, entries: Vec<Entry>) {
        self.fetched = entries.into();
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

    /// The entries in memory, the newest first.
    pub fn newest(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().rev()
    }

    fn term_of(&self, index: u64) -> raft::Result<u64> {
        if index + 1 < self.disk_first {
            return Err(Error::Store(StorageError::Compacted));
        }
        if index >= self.memory_first {
            let entry = self.entries.get((index - self.memory_first) as usize);
            return entry.map(|entry| entry.term).ok_or(Error::Store(StorageError::Unavailable));
        }
        let run = self.terms.partition_point(|(from, _)| *from <= index);
        Ok(self.terms[run - 1].1)
    }

    /// Entries that are on disk only: what was fetched for this look, or a wish to fetch them.
    fn on_disk(&self, low: u64, high: u64, max: u64, context: GetEntriesContext) -> raft::Result<Vec<Entry>> {
        if self.fetched.front().is_some_and(|entry| entry.index == low) {
            let entries = self.fetched.iter().take((high - low) as usize);
            return Ok(fitting(entries, max));
        }
        assert!(context.can_async(), "entries from {low} are applied and needed at once");
        let high = high.min(self.memory_first);
        self.fetches.borrow_mut().push(Fetch { low, high, max_bytes: max.min(FETCH_BYTES), context });
        Err(Error::Store(StorageError::LogTemporarilyUnavailable))
    }
}

/// As many of the entries as fit, one at least.
fn fitting<'a>(entries: impl Iterator<Item = &'a Entry>, max: u64) -> Vec<Entry> {
    let (mut size, mut found) = (0, Vec::new());
    for entry in entries {
        size += entry.data.len() as u64 + ENTRY_OVERHEAD;
        if size > max && !found.is_empty() {
            break;
        }
        found.push(entry.clone());
    }
    found
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
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.disk_first {
            return Err(Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last() + 1, "entries up to {high} of a log that ends at {}", self.last());
        let max_size = max_size.into().unwrap_or(u64::MAX);
        if low < self.memory_first {
            return self.on_disk(low, high, max_size, context);
        }
        let range = (low - self.memory_first) as usize..(high - self.memory_first) as usize;
        Ok(fitting(self.entries.range(range), max_size))
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.term_of(index)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.disk_first)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let fits = |snapshot: &&Snapshot| {
            let meta = snapshot.get_metadata();
            let conf = meta.get_conf_state();
            let knows = |ids: &[u64]| ids.contains(&to);
            meta.index >= request_index
                && meta.index + 1 >= self.disk_first
                && (knows(&conf.voters) || knows(&conf.learners) || knows(&conf.voters_outgoing))
        };
        if let Some(snapshot) = self.offered.as_ref().filter(fits) {
            return Ok(snapshot.clone());
        }
        self.is_snapshot_wanted.set(true);
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

    fn snapshot(index: u64) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = index;
        snapshot.mut_metadata().term = 1;
        snapshot.mut_metadata().set_conf_state(ConfState::from((vec![1, 2], vec![])));
        snapshot
    }

    #[test]
    fn an_empty_log_starts_at_one() {
        assert_eq!((cache().first_index().unwrap(), cache().last_index().unwrap()), (1, 0));
        assert_eq!(cache().term(0).unwrap(), 0);
    }

    #[test]
    fn a_later_term_replaces_the_suffix_it_overlaps() {
        let mut log = cache();
        assert_eq!(log.append(&[entry(1, 1), entry(2, 1), entry(3, 1)]), None);
        assert_eq!(log.append(&[entry(2, 2)]), Some((2, 3)));
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
        assert_eq!(log.term(3).unwrap(), 3);
    }

    #[test]
    fn the_terms_of_released_entries_stay_known() {
        let mut log = cache();
        let terms = [1, 1, 2, 2, 2, 5, 5];
        log.append(&(1..=7).map(|at| entry(at, terms[at as usize - 1])).collect::<Vec<_>>());
        log.release(6);
        for compacted in 0..=6 {
            log.compact(compacted);
            for at in compacted.max(1)..=7 {
                assert_eq!(log.term(at).unwrap(), terms[at as usize - 1], "{at} after {compacted}");
            }
        }
    }

    #[test]
    fn what_is_on_disk_only_is_fetched_once_and_then_served() {
        let mut log = cache();
        log.append(&[entry(1, 1), entry(2, 1), entry(3, 1)]);
        log.release(2);
        let look = |log: &LogCache| log.entries(1, 4, None, GetEntriesContext::empty(true));
        assert!(matches!(look(&log), Err(Error::Store(StorageError::LogTemporarilyUnavailable))));
        let fetch = log.take_fetches().remove(0);
        assert_eq!((fetch.low, fetch.high), (1, 3));
        log.set_fetched(vec![entry(1, 1), entry(2, 1)]);
        assert_eq!(look(&log).unwrap().len(), 2);
    }

    #[test]
    fn a_snapshot_is_asked_for_once_and_given_to_members_only() {
        let mut log = cache();
        log.append(&[entry(1, 1), entry(2, 1), entry(3, 1)]);
        assert!(log.snapshot(1, 2).is_err());
        assert!(log.take_snapshot_wanted() && !log.take_snapshot_wanted());
        log.offer(snapshot(2));
        assert_eq!(log.snapshot(1, 2).unwrap().get_metadata().index, 2);
        assert!(log.snapshot(1, 9).is_err() && log.snapshot(3, 2).is_err());
        log.compact(3);
        assert!(log.snapshot(1, 2).is_err(), "the log does not continue it any more");
    }

    #[test]
    fn at_least_one_entry_comes_whatever_the_limit() {
        let mut log = cache();
        log.append(&[entry(1, 1), entry(2, 1)]);
        assert_eq!(log.entries(1, 3, Some(1), GetEntriesContext::empty(false)).unwrap().len(), 1);
    }
}
