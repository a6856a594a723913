//! A simulated disk: what survives a crash, and what is on its way there.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;

use holdfast::consensus::raft::group_core::Persist;
use holdfast::consensus::raft::log_cache::Fetch;
use holdfast::consensus::raft::log_writer::DriverLog;
use holdfast::consensus::raft::replica::kind_of;
use holdfast::storage::HardStateRecord;
use holdfast::storage::LogContents;
use holdfast::storage::LogEntryRecord;
use holdfast::storage::RowSink;
use holdfast::storage::RowVisitor;
use holdfast::storage::Rows;
use holdfast::storage::StorageError;
use holdfast::types::GroupId;
use holdfast::types::LogIndex;
use parking_lot::Mutex;
use raft::eraftpb::Entry;
use raft::eraftpb::HardState;

/// The log of one group.
#[derive(Debug, Default)]
pub struct Log {
    pub entries: BTreeMap<u64, Entry>,
    pub hard_state: HardState,
    /// What the log writer is writing now, whole persists in order.
    pub writing: Vec<Persist>,
}

impl Log {
    /// Writes what a Ready wanted durable.
    pub fn write(&mut self, persist: Persist) {
        if let Some((from, last)) = persist.replaced {
            self.entries.retain(|index, _| *index < from || *index > last);
        }
        self.entries.extend(persist.entries.into_iter().map(|entry| (entry.index, entry)));
        if let Some(hard_state) = persist.hard_state {
            self.hard_state = hard_state;
        }
    }

    /// True when the entry of this term is there.
    pub fn holds(&self, index: u64, term: u64) -> bool {
        self.entries.get(&index).is_some_and(|entry| entry.term == term)
    }

    /// Term and index of the last entry.
    pub fn end(&self) -> Option<(u64, u64)> {
        self.entries.last_key_value().map(|(index, entry)| (entry.term, *index))
    }
}

/// The log as a driver reaches it.
pub struct SimLog(pub Arc<Mutex<Log>>);

impl DriverLog for SimLog {
    fn persist(&self, _group: GroupId, persist: &Persist, _sync: bool) -> Result<(), StorageError> {
        self.0.lock().write(Persist {
            token: persist.token,
            entries: persist.entries.clone(),
            replaced: persist.replaced,
            hard_state: persist.hard_state.clone(),
        });
        Ok(())
    }

    fn fetch(&self, _group: GroupId, fetch: &Fetch) -> Result<Vec<Entry>, StorageError> {
        let log = self.0.lock();
        let (mut found, mut bytes) = (Vec::new(), 0);
        for (index, entry) in log.entries.range(fetch.low..fetch.high) {
            bytes += entry.data.len() as u64;
            if *index != fetch.low + found.len() as u64 || (bytes > fetch.max_bytes && !found.is_empty()) {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }
}

/// Rows in memory.
#[derive(Debug, Default, Clone)]
pub struct RowMap(pub BTreeMap<Vec<u8>, Vec<u8>>);

impl Rows for RowMap {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, prefix: &[u8], f: &mut RowVisitor<'_>) -> Result<(), StorageError> {
        let from = self.0.range(prefix.to_vec()..);
        from.take_while(|(key, _)| key.starts_with(prefix)).try_for_each(|(key, value)| f(key, value))
    }
}

impl RowSink for RowMap {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.0.insert(key.to_vec(), value.to_vec());
    }

    fn delete(&mut self, key: &[u8]) {
        self.0.remove(key);
    }

    fn append(&mut self, key: &[u8], tail: &[u8]) {
        self.0.entry(key.to_vec()).or_default().extend_from_slice(tail);
    }

    fn delete_prefix(&mut self, prefix: &[u8]) {
        self.0.retain(|key, _| !key.starts_with(prefix));
    }
}

/// A node's disk.
pub struct Disk {
    pub log: Arc<Mutex<Log>>,
    /// Rows as they were written; without a log of their own, they survive a crash only once they are flushed.
    pub rows: RowMap,
    pub flushed: RowMap,
    /// The index as of which `rows` and `flushed` are.
    pub rows_index: u64,
    pub purged: u64,
    /// Copies of the rows by path, the newest last.
    pub copies: VecDeque<(String, RowMap)>,
    /// Snapshots that arrived, by name.
    pub incoming: BTreeMap<String, RowMap>,
    /// The last end of the log that was known to be written.
    pub watermark: Option<(u64, u64)>,
    /// This node's replica; none before it has joined.
    pub replica: Option<u64>,
    pub boots: u64,
    /// Until then nothing can be written.
    pub full_until: u64,
}

impl Disk {
    /// An empty disk.
    pub fn new(replica: Option<u64>) -> Disk {
        Disk {
            log: Arc::default(),
            rows: RowMap::default(),
            flushed: RowMap::default(),
            rows_index: 0,
            purged: 0,
            copies: VecDeque::new(),
            incoming: BTreeMap::new(),
            watermark: None,
            replica,
            boots: 0,
            full_until: 0,
        }
    }

    /// What a start reads of the log behind an index.
    pub fn contents(&self, after: u64) -> LogContents {
        let log = self.log.lock();
        let hard_state = &log.hard_state;
        LogContents {
            entries: log.entries.range(after + 1..).map(|(_, entry)| record(entry)).collect(),
            hard_state: Some(HardStateRecord {
                term: hard_state.term,
                vote: hard_state.vote,
                commit: hard_state.commit,
            }),
            meta: BTreeMap::new(),
            first_index: log.entries.keys().next().map(|index| LogIndex(*index)),
        }
    }
}

fn record(entry: &Entry) -> LogEntryRecord {
    LogEntryRecord {
        kind: kind_of(entry),
        index: entry.index,
        term: entry.term,
        data: entry.data.clone(),
        context: entry.context.clone(),
    }
}
