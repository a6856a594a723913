//! The entries and votes of all groups of this node, in one RocksDB with a write-ahead log.
//!
//! One store for all groups, so that one sync serves everything that arrived meanwhile. Keys sort as
//! the log does (big endian):
//!
//! ```text
//! [group u32][0x00]'h'         hard state: term, vote, commit
//! [group u32][0x00]'s'         snapshot meta: where the log begins after a snapshot was installed
//! [group u32][0x00]'i'         install marker: the directory of a snapshot whose install has begun
//! [group u32][0x00]<name>      whatever else the consensus layer keeps for the group
//! [group u32][0x01][index u64] entry: term, kind, context, data
//! ```
//!
//! Each value ends with the CRC-32C of its key and itself: RocksDB's checksums end at its own borders, and
//! a value under the wrong key must not pass either. There is no prefix extractor: without Bloom filters
//! it would decide nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use rocksdb::BlockBasedOptions;
use rocksdb::Cache;
use rocksdb::DB;
use rocksdb::DBCompressionType;
use rocksdb::DBRawIterator;
use rocksdb::ReadOptions;
use rocksdb::WriteBatch;
use rocksdb::WriteOptions;

use crate::storage::StorageError;
use crate::storage::geometry::Geometry;
use crate::storage::record_file;
use crate::types::GroupId;
use crate::types::LogIndex;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_bytes;
use crate::types::codec::put_varint;

/// The directory below the data directory.
const LOG: &str = "log";
/// Under this byte a group's hard state and meta records.
const META: u8 = 0x00;
/// Under this byte a group's entries.
const ENTRY: u8 = 0x01;
/// One past the last kind of record: ends a scan of a group's entries.
const AFTER_ENTRY: u8 = 0x02;
/// The name of the hard state among the meta records.
const HARD_STATE: &[u8] = b"h";
/// The name of the snapshot meta among the meta records.
const SNAPSHOT_META: &[u8] = b"s";
/// The name of the install marker among the meta records.
const INSTALL_MARKER: &[u8] = b"i";
/// Length of a record's checksum.
const CRC_LENGTH: usize = 4;
/// Memtables at most: one that fills and three that wait for a slow disk.
const MEMTABLES_MAX: i32 = 4;
/// Reads of the log are rare (a slow follower, a start), so the cache is small.
const CACHE_BYTES: usize = 8 << 20;
/// Tables kept open; there are few.
const OPEN_FILES_MAX: i32 = 256;
/// How much unsynced log the kernel may gather before it starts to write, so that one sync a second
/// (`appendfsync everysec`) does not find a second's worth at once.
const WAL_BYTES_PER_SYNC: u64 = 1 << 20;

/// One entry of a group's log, opaque to the storage.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogEntryRecord {
    /// Position, counted from 1.
    pub index: u64,
    /// Term in which it was proposed.
    pub term: u64,
    /// What the consensus layer calls its entry type.
    pub kind: u8,
    /// The proposed bytes.
    pub data: Vec<u8>,
    /// What the proposer added for itself; mostly empty.
    pub context: Vec<u8>,
}

/// What a group's replica must never forget about elections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HardStateRecord {
    /// Newest term seen.
    pub term: u64,
    /// Replica voted for in that term; 0 is nobody.
    pub vote: u64,
    /// Highest index known to be committed.
    pub commit: u64,
}

/// What a group's log held when it was opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogContents {
    /// `None` in a group that never voted nor appended.
    pub hard_state: Option<HardStateRecord>,
    /// The group's other records by name.
    pub meta: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Lowest index on disk, which may be below `entries`; `None` in an empty log.
    pub first_index: Option<LogIndex>,
    /// The entries from the asked index on, without holes.
    pub entries: Vec<LogEntryRecord>,
}

impl LogContents {
    /// What [`LogBatch::snapshot_meta`] wrote last; `None` when no snapshot was ever installed.
    #[must_use]
    pub fn snapshot_meta(&self) -> Option<&[u8]> {
        self.meta.get(SNAPSHOT_META).map(Vec::as_slice)
    }
}

/// Changes to be written together, for any number of groups, in the order they were added.
#[derive(Default)]
pub struct LogBatch {
    inner: WriteBatch,
    scratch: Vec<u8>,
}

/// A batch of several megabytes prints as its size.
impl fmt::Debug for LogBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogBatch({} changes, {} bytes)", self.inner.len(), self.inner.size_in_bytes())
    }
}

impl LogBatch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> LogBatch {
        LogBatch::default()
    }

    /// Adds an entry, in place of whatever stood at its index.
    pub fn append(&mut self, group: GroupId, entry: &LogEntryRecord) {
        self.append_parts(group, entry.index, entry.term, entry.kind, &entry.data, &entry.context);
    }

    /// Adds an entry that is kept in other shape, without a copy of its bytes in between.
    pub fn append_parts(
        &mut self,
        group: GroupId,
        index: u64,
        term: u64,
        kind: u8,
        data: &[u8],
        context: &[u8],
    ) {
        let key = entry_key(group, index);
        self.scratch.clear();
        put_varint(&mut self.scratch, term);
        self.scratch.push(kind);
        put_bytes(&mut self.scratch, context);
        self.scratch.extend_from_slice(data);
        seal(&key, &mut self.scratch);
        self.inner.put(key, &self.scratch);
    }

    /// Removes the entries `from..=old_last`: a suffix that a new leader overwrites. To be added before the
    /// entries that take its place.
    pub fn truncate_from(&mut self, group: GroupId, from: LogIndex, old_last: LogIndex) {
        // RocksDB refuses a range that ends before it begins.
        if from <= old_last {
            self.inner.delete_range(entry_key(group, from.0).as_slice(), &entry_key_after(group, old_last.0));
        }
    }

    /// Replaces the group's hard state.
    pub fn hard_state(&mut self, group: GroupId, state: HardStateRecord) {
        self.scratch.clear();
        put_varint(&mut self.scratch, state.term);
        put_varint(&mut self.scratch, state.vote);
        put_varint(&mut self.scratch, state.commit);
        self.put_meta(&meta_key(group, HARD_STATE));
    }

    /// Replaces one of the group's other records. The name `h` is the hard state's.
    pub fn group_meta(&mut self, group: GroupId, key: &[u8], value: &[u8]) {
        assert!(key != HARD_STATE, "the hard state has a method of its own");
        self.scratch.clear();
        self.scratch.extend_from_slice(value);
        self.put_meta(&meta_key(group, key));
    }

    /// Removes one of the group's other records, if it is there. The hard state stays for ever.
    pub fn remove_group_meta(&mut self, group: GroupId, key: &[u8]) {
        assert!(key != HARD_STATE, "a group never forgets its votes");
        self.inner.delete(meta_key(group, key));
    }

    /// Removes all entries of the group: a snapshot takes their place. To be added before entries that
    /// follow the snapshot.
    pub fn clear_entries(&mut self, group: GroupId) {
        self.inner.delete_range(entry_key(group, 0).as_slice(), entries_end(group).as_slice());
    }

    /// Replaces the group's snapshot meta, opaque to the storage.
    pub fn snapshot_meta(&mut self, group: GroupId, value: &[u8]) {
        self.group_meta(group, SNAPSHOT_META, value);
    }

    /// Notes that the snapshot in `<dir>/incoming/<name>/` is the group's state from now on (DESIGN.md D3,
    /// install step 3). Belongs into the batch that holds the snapshot's meta and hard state and clears the
    /// entries. See [`crate::storage::finish_install`].
    pub fn install_marker(&mut self, group: GroupId, name: &str) {
        self.group_meta(group, INSTALL_MARKER, name.as_bytes());
    }

    /// Removes the install marker: the snapshot's rows are in `<dir>/data/<group>/`.
    pub fn clear_install_marker(&mut self, group: GroupId) {
        self.remove_group_meta(group, INSTALL_MARKER);
    }

    /// Bytes this batch will add to the log file.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.inner.size_in_bytes()
    }

    /// True when nothing was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.is_empty()
    }

    /// Forgets what was added.
    pub fn clear(&mut self) {
        self.inner.clear();
    }

    fn put_meta(&mut self, key: &[u8]) {
        seal(key, &mut self.scratch);
        self.inner.put(key, &self.scratch);
    }
}

/// The log of all groups, `<dir>/log/`. Shared by the writer thread and by readers.
pub struct LogStore {
    db: DB,
    synced: WriteOptions,
    unsynced: WriteOptions,
    /// RocksDB's sequence number of the last change that is known to be on disk.
    synced_through: AtomicU64,
}

/// Prints where it is.
impl fmt::Debug for LogStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogStore").field(&self.db.path()).finish()
    }
}

impl LogStore {
    /// Opens `<dir>/log/`, creating it in an existing `dir`. A record cut short at the very end is dropped,
    /// as a power cut leaves it; any other damage is `Corrupt`. What is found is durable.
    pub fn open(dir: &Path) -> Result<LogStore, StorageError> {
        let path = dir.join(LOG);
        crate::storage::ensure_dir(&path)?;
        let db = DB::open(&options(&Geometry::at(&path)), &path)
            .map_err(|error| StorageError::from(error).in_place(&path))?;
        Ok(LogStore::of(db))
    }

    /// Opens `<dir>/log/` without changing anything on disk, to look whether it is whole; `None` when there is none
    /// yet. What is found is what [`LogStore::open`] would find. Writes to it fail.
    pub fn examine(dir: &Path) -> Result<Option<LogStore>, StorageError> {
        let path = dir.join(LOG);
        if !crate::storage::is_database(&path)? {
            return Ok(None);
        }
        record_file::check_store(&path)?;
        let db = DB::open_for_read_only(&options(&Geometry::at(&path)), &path, false);
        Ok(Some(LogStore::of(db.map_err(|error| StorageError::from(error).in_place(&path))?)))
    }

    /// Bytes that opening `<dir>/log/` may write: what is in its write-ahead log becomes tables, before it goes.
    pub fn bytes_to_open(dir: &Path) -> Result<u64, StorageError> {
        let path = dir.join(LOG);
        if crate::storage::is_database(&path)? { record_file::log_bytes(&path) } else { Ok(0) }
    }

    fn of(db: DB) -> LogStore {
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        let synced_through = AtomicU64::new(db.latest_sequence_number());
        LogStore { db, synced, unsynced: WriteOptions::default(), synced_through }
    }

    /// The number of the last change in the log, synced or not. Every change of the log has one, whatever it is about,
    /// and each a higher one than those before it; a log that lost its end comes back with a lower one.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.db.latest_sequence_number()
    }

    /// The number of the last change that is surely on disk.
    #[must_use]
    pub fn synced_sequence(&self) -> u64 {
        self.synced_through.load(Ordering::Acquire)
    }

    /// Writes a batch, all or nothing. With `sync`, it and everything written before is on disk when this
    /// returns; without, it is safe from the end of this process only. After an error nobody knows which.
    pub fn write(&self, batch: LogBatch, sync: bool) -> Result<(), StorageError> {
        // The batch gets numbers after this one, and its sync covers everything that was written before it.
        let through = self.db.latest_sequence_number() + batch.inner.len() as u64;
        self.db.write_opt(batch.inner, if sync { &self.synced } else { &self.unsynced })?;
        if sync {
            self.synced_through.fetch_max(through, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Waits until everything written before is on disk.
    pub fn sync(&self) -> Result<(), StorageError> {
        let through = self.db.latest_sequence_number();
        self.db.flush_wal(true)?;
        self.synced_through.fetch_max(through, Ordering::AcqRel);
        Ok(())
    }

    /// Reads a group back at start. Entries below `from_index` are checked, not returned: pass the applied
    /// index to get the entry there, for its term, and all that follow. Holes and damage are `Corrupt`.
    pub fn load(&self, group: GroupId, from_index: LogIndex) -> Result<LogContents, StorageError> {
        let mut contents = LogContents::default();
        self.load_meta(group, &mut contents)?;
        let (mut expected, mut term) = (None, 0);
        let mut rows = self.scan(entry_key(group, 0).to_vec(), entries_end(group));
        while let Some((key, value)) = rows.item() {
            let index = entry_index(key)?;
            if expected.is_some_and(|expected| expected != index) {
                return Err(hole(group, expected.unwrap_or_default()));
            }
            contents.first_index.get_or_insert(LogIndex(index));
            let body = unseal(key, value)?;
            // A suffix that was replaced, and came back.
            let before = std::mem::replace(&mut term, entry_term(key, body)?);
            if before > term {
                return Err(damaged(key, "it is of an earlier term than the entry before it"));
            }
            if index >= from_index.0 {
                contents.entries.push(decode_entry(key, index, body)?);
            }
            expected = index.checked_add(1);
            rows.next();
        }
        rows.status().map_err(|error| StorageError::from(error).in_place(self.db.path()))?;
        Ok(contents)
    }

    /// Reads entries `low..high`, for a follower that is behind: at least one if there is one, then as many
    /// as fit `max_bytes` of data and context. Empty when `low` is not on disk: purged, or not written yet.
    pub fn entries(
        &self,
        group: GroupId,
        low: LogIndex,
        high: LogIndex,
        max_bytes: u64,
    ) -> Result<Vec<LogEntryRecord>, StorageError> {
        let mut entries = Vec::new();
        if low >= high {
            return Ok(entries);
        }
        let mut bytes = 0u64;
        let mut expected = low.0;
        let mut rows = self.scan(entry_key(group, low.0).to_vec(), entry_key(group, high.0).to_vec());
        while let Some((key, value)) = rows.item() {
            let index = entry_index(key)?;
            if index != expected {
                return if entries.is_empty() { Ok(entries) } else { Err(hole(group, expected)) };
            }
            let entry = decode_entry(key, index, unseal(key, value)?)?;
            bytes = bytes.saturating_add((entry.data.len() + entry.context.len()) as u64);
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(entry);
            // The key is below that of `high`, so there is a next index.
            expected = index + 1;
            rows.next();
        }
        rows.status().map_err(|error| StorageError::from(error).in_place(self.db.path()))?;
        Ok(entries)
    }

    /// Removes the entries up to and including `up_to`, which the state on disk no longer needs. Not
    /// synced: after a power cut they may be back. The caller keeps the tail that followers need, and the
    /// term of `up_to`. Cheap, but meant for thousands of entries at a time.
    pub fn purge(&self, group: GroupId, up_to: LogIndex) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        batch.delete_range(entry_key(group, 0).as_slice(), &entry_key_after(group, up_to.0));
        self.db.write_opt(batch, &self.unsynced)?;
        Ok(())
    }

    /// Moves what memory holds to tables, where purged entries cost nothing: for times without load.
    pub fn release_memory(&self) -> Result<(), StorageError> {
        self.db.flush()?;
        Ok(())
    }

    /// Gives back the room of the entries up to `up_to`, which were purged. Waits for the disk.
    pub fn give_back(&self, group: GroupId, up_to: LogIndex) -> Result<(), StorageError> {
        self.db.flush()?;
        self.db.compact_range(Some(entry_key(group, 0)), Some(entry_key_after(group, up_to.0)));
        Ok(())
    }

    /// Why RocksDB stopped this store, if it did.
    pub fn probe(&self) -> Result<(), StorageError> {
        crate::storage::probe(&self.db)
    }

    /// All groups whose install was begun and is not known to be finished, with the names of the directories.
    pub fn install_markers(&self) -> Result<Vec<(GroupId, String)>, StorageError> {
        let mut found = Vec::new();
        // Groups are few and their entries many: a seek a group passes over the entries.
        let mut rows = self.scan(meta_key(GroupId(0), INSTALL_MARKER), vec![u8::MAX; 6]);
        while let Some((key, value)) = rows.item() {
            let group = key.get(..4).and_then(|group| group.try_into().ok()).map(u32::from_be_bytes);
            let group = group.ok_or_else(|| damaged(key, "the key has a wrong length"))?;
            let marker = meta_key(GroupId(group), INSTALL_MARKER);
            if key == marker {
                let name =
                    std::str::from_utf8(unseal(key, value)?).map_err(|_| damaged(key, "not a name"))?;
                found.push((GroupId(group), name.to_owned()));
            }
            if key < marker.as_slice() {
                rows.seek(marker);
            } else if let Some(next) = group.checked_add(1) {
                rows.seek(meta_key(GroupId(next), INSTALL_MARKER));
            } else {
                break;
            }
        }
        rows.status().map_err(|error| StorageError::from(error).in_place(self.db.path()))?;
        Ok(found)
    }

    /// Rough size in bytes of tables and memtables, for metrics. Lags behind purges.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        crate::storage::rough_size(&self.db)
    }

    /// Background flushes and compactions that failed since open. Above 0, the process should stop.
    #[must_use]
    pub fn background_errors(&self) -> u64 {
        crate::storage::background_errors(&self.db)
    }

    fn load_meta(&self, group: GroupId, contents: &mut LogContents) -> Result<(), StorageError> {
        let mut rows = self.scan(meta_key(group, b""), entry_key(group, 0).to_vec());
        while let Some((key, value)) = rows.item() {
            let body = unseal(key, value)?;
            match &key[5..] {
                HARD_STATE => contents.hard_state = Some(decode_hard_state(key, body)?),
                name => {
                    contents.meta.insert(name.to_vec(), body.to_vec());
                }
            }
            rows.next();
        }
        rows.status().map_err(|error| StorageError::from(error).in_place(self.db.path()))?;
        Ok(())
    }

    /// An iterator that stands on the first record of `from..to`.
    fn scan(&self, from: Vec<u8>, to: Vec<u8>) -> DBRawIterator<'_> {
        let mut options = ReadOptions::default();
        options.set_verify_checksums(true);
        options.fill_cache(false);
        options.set_iterate_upper_bound(to);
        let mut rows = self.db.raw_iterator_opt(options);
        rows.seek(from);
        rows
    }
}

fn options(geometry: &Geometry) -> rocksdb::Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(CACHE_BYTES));
    table.set_block_size(64 << 10);
    let mut options = crate::storage::common_options(geometry);
    options.set_block_based_table_factory(&table);
    // Large, because a log is mostly deleted before anybody reads it: entries that are purged while in memory never cost
    // a table.
    options.set_write_buffer_size(crate::storage::size(geometry.log_memtable));
    options.set_max_bytes_for_level_base(4 * geometry.log_memtable);
    options.set_max_write_buffer_number(MEMTABLES_MAX);
    options.set_compression_type(DBCompressionType::None);
    options.set_manual_wal_flush(false);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_wal_bytes_per_sync(WAL_BYTES_PER_SYNC);
    // Files that are full are noted in the manifest: one that is gone or shorter is noticed. The last one is the
    // watermark's.
    options.set_track_and_verify_wals_in_manifest(true);
    options
}

fn meta_key(group: GroupId, name: &[u8]) -> Vec<u8> {
    let mut key = group.0.to_be_bytes().to_vec();
    key.push(META);
    key.extend_from_slice(name);
    key
}

fn entry_key(group: GroupId, index: u64) -> [u8; 13] {
    let mut key = [0; 13];
    key[..4].copy_from_slice(&group.0.to_be_bytes());
    key[4] = ENTRY;
    key[5..].copy_from_slice(&index.to_be_bytes());
    key
}

/// The end of a range that includes `index`.
fn entry_key_after(group: GroupId, index: u64) -> Vec<u8> {
    match index.checked_add(1) {
        Some(next) => entry_key(group, next).to_vec(),
        None => entries_end(group),
    }
}

/// The end of a range that includes all entries of the group.
fn entries_end(group: GroupId) -> Vec<u8> {
    let mut key = group.0.to_be_bytes().to_vec();
    key.push(AFTER_ENTRY);
    key
}

fn entry_index(key: &[u8]) -> Result<u64, StorageError> {
    let index = key.get(5..).and_then(|index| index.try_into().ok());
    index.map(u64::from_be_bytes).ok_or_else(|| damaged(key, "the key has a wrong length"))
}

/// Ends a value with the checksum of its key and itself.
fn seal(key: &[u8], value: &mut Vec<u8>) {
    let crc = crc32c::crc32c_append(crc32c::crc32c(key), value);
    value.extend_from_slice(&crc.to_le_bytes());
}

/// The value without its checksum, once that was found right.
fn unseal<'a>(key: &[u8], value: &'a [u8]) -> Result<&'a [u8], StorageError> {
    let split = value.len().checked_sub(CRC_LENGTH).ok_or_else(|| damaged(key, "cut short"))?;
    let (body, stored) = value.split_at(split);
    let crc = crc32c::crc32c_append(crc32c::crc32c(key), body);
    if crc.to_le_bytes() == stored { Ok(body) } else { Err(damaged(key, "checksum mismatch")) }
}

fn decode_entry(key: &[u8], index: u64, body: &[u8]) -> Result<LogEntryRecord, StorageError> {
    let decode = || {
        let mut reader = Reader::new(body);
        let term = reader.varint()?;
        let kind = reader.u8()?;
        let context = reader.bytes()?.to_vec();
        Ok(LogEntryRecord { index, term, kind, data: reader.rest().to_vec(), context })
    };
    decode().map_err(|CodecError(why)| damaged(key, why))
}

fn entry_term(key: &[u8], body: &[u8]) -> Result<u64, StorageError> {
    Reader::new(body).varint().map_err(|CodecError(why)| damaged(key, why))
}

fn decode_hard_state(key: &[u8], body: &[u8]) -> Result<HardStateRecord, StorageError> {
    let decode = || {
        let mut reader = Reader::new(body);
        Ok(HardStateRecord { term: reader.varint()?, vote: reader.varint()?, commit: reader.varint()? })
    };
    decode().map_err(|CodecError(why)| damaged(key, why))
}

/// Names the record that is damaged, as far as its key tells.
fn damaged(key: &[u8], why: &str) -> StorageError {
    let group = key.get(..4).and_then(|group| group.try_into().ok()).map_or(0, u32::from_be_bytes);
    let record = match (key.get(4), key.get(5..).and_then(|index| index.try_into().ok())) {
        (Some(&ENTRY), Some(index)) => format!("entry {}", u64::from_be_bytes(index)),
        _ => format!("record {}", key.get(5..).unwrap_or_default().escape_ascii()),
    };
    StorageError::Corrupt { what: format!("log of group {group}, {record}: {why}") }
}

fn hole(group: GroupId, index: u64) -> StorageError {
    StorageError::Corrupt { what: format!("log of group {}, entry {index}: missing", group.0) }
}

#[cfg(test)]
#[path = "log_test.rs"]
mod tests;
