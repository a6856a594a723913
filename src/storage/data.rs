//! One group's rows: `<dir>/data/<group>/`, a RocksDB without a write-ahead log.
//!
//! The Raft log is the write-ahead log (DESIGN.md D2): a batch holds the changed rows together with the
//! index they stand for, and what a crash takes away is applied again from there. There is one column
//! family, so a batch lies in one memtable, and memtables reach the disk in order: the rows on disk are
//! always those of one index. Rows carry no checksum of ours; RocksDB's cover them.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use parking_lot::MappedRwLockReadGuard;
use parking_lot::Mutex;
use parking_lot::RwLock;
use parking_lot::RwLockReadGuard;
use rocksdb::BlockBasedOptions;
use rocksdb::BottommostLevelCompaction;
use rocksdb::Cache;
use rocksdb::CompactOptions;
use rocksdb::DB;
use rocksdb::DBCompressionType;
use rocksdb::Env;
use rocksdb::MemtableFactory;
use rocksdb::MergeOperands;
use rocksdb::ReadOptions;
use rocksdb::ReadTier;
use rocksdb::WriteBatch;
use rocksdb::WriteBufferManager;
use rocksdb::WriteOptions;
use rocksdb::compaction_filter::Decision as CompactionDecision;
use rocksdb::properties;

use crate::storage::StorageError;
use crate::storage::checkpoint;
use crate::storage::geometry::Geometry;
use crate::storage::record_file;
use crate::types::ClusterTime;
use crate::types::GroupId;

/// How much of a table a scan reads ahead.
const SCAN_READAHEAD: usize = 2 << 20;
/// No row key starts with this byte, so it ends every range.
const KEYS_END: u8 = 0xff;

/// Takes the key and the value of one row after the other; an error ends the scan.
pub type RowVisitor<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), StorageError> + 'a;

/// Row changes to be written together, in the order they were added.
#[derive(Default)]
pub struct DataBatch {
    inner: WriteBatch,
}

/// A batch of several megabytes prints as its size.
impl fmt::Debug for DataBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataBatch({} changes, {} bytes)", self.len(), self.bytes())
    }
}

/// Rows that can be read: a group's on disk, or a simulated node's.
pub trait Rows {
    /// The value of a row.
    ///
    /// # Errors
    /// When the storage fails.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError>;

    /// Visits every row whose key starts with `prefix`, in key order.
    ///
    /// # Errors
    /// When the storage fails or the visitor says so.
    fn scan(&self, prefix: &[u8], f: &mut RowVisitor<'_>) -> Result<(), StorageError>;
}

/// Rows that are on disk for good; what was written lately may be missing.
pub trait ColdRows: Send + Sync {
    /// The values of rows, in the order of their keys.
    ///
    /// # Errors
    /// When the storage fails.
    fn get_many(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, StorageError>;
}

/// Where changed rows are written to: a batch for the disk, or a simulated node's.
pub trait RowSink {
    /// Writes a row.
    fn put(&mut self, key: &[u8], value: &[u8]);

    /// Deletes a row.
    fn delete(&mut self, key: &[u8]);

    /// Deletes all rows whose key starts with `prefix`, as they are before the batch.
    fn delete_prefix(&mut self, prefix: &[u8]);

    /// Adds to the end of a row, which may be absent.
    fn append(&mut self, key: &[u8], tail: &[u8]);
}

impl RowSink for DataBatch {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        DataBatch::put(self, key, value);
    }

    fn delete(&mut self, key: &[u8]) {
        DataBatch::delete(self, key);
    }

    fn delete_prefix(&mut self, prefix: &[u8]) {
        DataBatch::delete_prefix(self, prefix);
    }

    fn append(&mut self, key: &[u8], tail: &[u8]) {
        DataBatch::append(self, key, tail);
    }
}

impl Rows for DataStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        DataStore::get(self, key)
    }

    fn scan(&self, prefix: &[u8], f: &mut RowVisitor<'_>) -> Result<(), StorageError> {
        DataStore::scan(self, prefix, f)
    }
}

impl DataBatch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> DataBatch {
        DataBatch::default()
    }

    /// Sets a row. Keys are not empty and do not start with 0xff.
    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        assert!(key.first().is_some_and(|first| *first < KEYS_END), "a row key starts with its kind");
        self.inner.put(key, value);
    }

    /// Removes a row, if it is there.
    pub fn delete(&mut self, key: &[u8]) {
        self.inner.delete(key);
    }

    /// Removes all rows whose keys start with `prefix`; an empty one removes all rows. One small record,
    /// however many rows there are, but each one slows scans until it is compacted: not for single rows.
    pub fn delete_prefix(&mut self, prefix: &[u8]) {
        self.inner.delete_range(prefix, &prefix_end(prefix));
    }

    /// Adds to the end of a row, which may be absent, without reading it.
    pub fn append(&mut self, key: &[u8], tail: &[u8]) {
        self.inner.merge(key, tail);
    }

    /// Changes in this batch.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.len()
    }

    /// True when nothing was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.is_empty()
    }

    /// Size of this batch.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.inner.size_in_bytes()
    }
}

/// Memory that the stores of all groups share. Clones share it too.
#[derive(Clone)]
pub struct SharedCaches {
    blocks: Cache,
    write_buffers: WriteBufferManager,
}

/// Prints what is in use.
impl fmt::Debug for SharedCaches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blocks = self.blocks.get_usage();
        write!(
            f,
            "SharedCaches(blocks {blocks} bytes, write buffers {} bytes)",
            self.write_buffers.get_usage()
        )
    }
}

impl SharedCaches {
    /// `block_cache_bytes` for blocks read, `write_buffer_bytes` for rows not flushed yet: near that, stores
    /// flush early; writers are not stopped. Also tells the process's compaction threads to give way to
    /// everything else.
    #[must_use]
    pub fn new(block_cache_bytes: usize, write_buffer_bytes: usize) -> SharedCaches {
        // Flushes keep their priority: a full memtable that waits stops the log writer. Where the system
        // does not let us, compaction only runs as fast as the rest.
        if let Ok(mut env) = Env::new() {
            env.lower_thread_pool_cpu_priority();
            env.lower_thread_pool_io_priority();
        }
        SharedCaches {
            blocks: Cache::new_lru_cache(block_cache_bytes),
            write_buffers: WriteBufferManager::new_write_buffer_manager(write_buffer_bytes, false),
        }
    }
}

/// The rows of one group. Shared by the background writer and by readers of cold rows.
///
/// Dropping it flushes; a crash loses what was not flushed, whole batches from the newest back.
pub struct DataStore {
    db: DB,
    without_wal: WriteOptions,
    /// What to open it with when it is only being looked at.
    read_only: Option<SharedCaches>,
    /// The cluster time, for rows that go by themselves.
    now: Arc<AtomicU64>,
}

/// Prints where it is.
impl fmt::Debug for DataStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DataStore").field(&self.db.path()).finish()
    }
}

impl DataStore {
    /// Opens `<dir>/data/<group>/`, creating it in an existing `dir`. What is found is durable.
    pub fn open(dir: &Path, group: GroupId, shared: &SharedCaches) -> Result<DataStore, StorageError> {
        let data = dir.join("data");
        crate::storage::ensure_dir(&data)?;
        DataStore::open_at(&data.join(group.0.to_string()), shared)
    }

    /// Opens the rows in a directory of any name in an existing one: a checkpoint, for instance.
    pub fn open_at(path: &Path, shared: &SharedCaches) -> Result<DataStore, StorageError> {
        crate::storage::ensure_dir(path)?;
        let now = Arc::default();
        let db = DB::open(&options(shared, &now, &Geometry::at(path)), path);
        Ok(DataStore::of(db.map_err(|error| StorageError::from(error).in_place(path))?, None, now))
    }

    /// Opens `<dir>/data/<group>/` without changing anything on disk, to read it and to see whether it is whole;
    /// `None` when there is nothing yet. Writes fail before [`DataStore::into_writable`].
    pub fn examine(
        dir: &Path,
        group: GroupId,
        shared: &SharedCaches,
    ) -> Result<Option<DataStore>, StorageError> {
        let path = dir.join("data").join(group.0.to_string());
        if !crate::storage::is_database(&path)? {
            return Ok(None);
        }
        DataStore::examine_at(&path, shared).map(Some)
    }

    /// The same for the rows in a directory of any name, which must be there.
    pub fn examine_at(path: &Path, shared: &SharedCaches) -> Result<DataStore, StorageError> {
        record_file::check_store(path)?;
        let now = Arc::default();
        let db = DB::open_for_read_only(&options(shared, &now, &Geometry::at(path)), path, false);
        let db = db.map_err(|error| StorageError::from(error).in_place(path))?;
        Ok(DataStore::of(db, Some(shared.clone()), now))
    }

    fn of(db: DB, read_only: Option<SharedCaches>, now: Arc<AtomicU64>) -> DataStore {
        let mut without_wal = WriteOptions::default();
        without_wal.disable_wal(true);
        DataStore { db, without_wal, read_only, now }
    }

    /// The same rows, to be written from now on.
    pub fn into_writable(self) -> Result<DataStore, StorageError> {
        let Some(shared) = self.read_only else { return Ok(self) };
        let path = self.db.path().to_path_buf();
        drop(self.db);
        DataStore::open_at(&path, &shared)
    }

    /// Writes a batch, all or nothing, into memory: durable after `flush`, or when RocksDB flushes by itself.
    ///
    /// # Errors
    /// What stopped the store; nothing of the batch was written then.
    pub fn write(&self, batch: DataBatch) -> Result<(), StorageError> {
        let written = self.db.write_opt(batch.inner, &self.without_wal);
        written.map_err(|error| StorageError::from(error).in_place(self.db.path()))
    }

    /// Reads one row; `None` when there is none.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        self.db.get(key).map_err(|error| StorageError::from(error).in_place(self.db.path()))
    }

    /// Gives all rows whose keys start with `prefix` to `f`, by key, as they were when the scan began. Ends
    /// with the first error. Reads ahead and leaves the block cache alone: made for whole tables at start.
    pub fn scan(&self, prefix: &[u8], f: &mut RowVisitor<'_>) -> Result<(), StorageError> {
        let mut options = ReadOptions::default();
        options.set_verify_checksums(true);
        options.fill_cache(false);
        options.set_readahead_size(SCAN_READAHEAD);
        options.set_iterate_upper_bound(prefix_end(prefix));
        let mut rows = self.db.raw_iterator_opt(options);
        rows.seek(prefix);
        while let Some((key, value)) = rows.item() {
            f(key, value)?;
            rows.next();
        }
        rows.status().map_err(|error| StorageError::from(error).in_place(self.db.path()))?;
        Ok(())
    }

    /// Reads rows, in the order of their keys, from what [`DataStore::flush`] or RocksDB brought to disk; what was
    /// written lately may be missing. Memtables are not looked at: they are not made for it.
    pub fn get_flushed(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, StorageError> {
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::Persisted);
        let place = |error| StorageError::from(error).in_place(self.db.path());
        self.db.multi_get_opt(keys, &options).into_iter().map(|row| row.map_err(place)).collect()
    }

    /// Rows that are only added to may go when the cluster time in their last eight bytes has come, from now on.
    pub fn forget(&self, now: ClusterTime) {
        self.now.store(now.0, Ordering::Relaxed);
    }

    /// Waits until everything written before is on disk.
    pub fn flush(&self) -> Result<(), StorageError> {
        self.db.flush().map_err(|error| StorageError::from(error).in_place(self.db.path()))
    }

    /// Why RocksDB stopped this store, if it did.
    pub fn probe(&self) -> Result<(), StorageError> {
        crate::storage::probe(&self.db)
    }

    /// Tables that were flushed and wait for compaction.
    #[must_use]
    pub fn level_zero_tables(&self) -> u64 {
        let name = properties::num_files_at_level(0);
        self.db.property_int_value(&name).ok().flatten().unwrap_or(0)
    }

    /// Reads every row, and with it every block of every table.
    ///
    /// # Errors
    /// Where the rows are damaged.
    pub fn verify(&self) -> Result<(), StorageError> {
        self.scan(&[], &mut |_, _| Ok(()))
    }

    /// Ranges that together hold all rows, if some of them are above the deepest level: what was deleted still takes
    /// room there. Each takes little room to compact.
    pub fn parts_to_compact(&self) -> Result<Vec<KeyRange>, StorageError> {
        let mut files = self.db.live_files()?;
        let deepest = files.iter().map(|file| file.level).max().unwrap_or(0);
        if deepest > 0 && files.iter().all(|file| file.level == deepest) {
            return Ok(Vec::new());
        }
        files.retain(|file| file.level == deepest && deepest > 0);
        files.sort_by(|a, b| a.start_key.cmp(&b.start_key));
        let starts = files.chunks(PART_TABLES).skip(1).filter_map(|part| part[0].start_key.clone());
        let borders: Vec<Option<Vec<u8>>> =
            std::iter::once(None).chain(starts.map(Some)).chain(std::iter::once(None)).collect();
        Ok(borders.windows(2).map(|border| (border[0].clone(), border[1].clone())).collect())
    }

    /// Moves what is in the range down to the deepest level, where what was deleted goes. Waits for the disk.
    pub fn compact_part(&self, (from, to): &KeyRange) {
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Skip);
        self.db.compact_range_opt(from.as_ref(), to.as_ref(), &options);
    }

    /// Makes a copy of the rows in the directory `to`, which must not exist, in one that does and on the
    /// same file system: tables are immutable, so they are linked. Everything written before is in it, and
    /// the copy is durable when this returns.
    pub fn checkpoint(&self, to: &Path) -> Result<(), StorageError> {
        checkpoint::create(&self.db, to)
    }

    /// Rough size in bytes of tables and memtables, for metrics.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        crate::storage::rough_size(&self.db)
    }

    /// Background flushes and compactions that failed since open.
    #[must_use]
    pub fn background_errors(&self) -> u64 {
        crate::storage::background_errors(&self.db)
    }
}

/// From a key, or from the first, to a key, or to the last.
pub type KeyRange = (Option<Vec<u8>>, Option<Vec<u8>>);

/// Tables of the deepest level that are compacted together when room is needed.
const PART_TABLES: usize = 8;
/// A table is compacted at least this often: six hours.
const PERIODIC_COMPACTION_SECONDS: u64 = 6 * 3_600;
/// The kind of rows that are only added to, and go by themselves.
const ADDED: u8 = b't';

/// Joins what was added to a row.
fn join(_key: &[u8], row: Option<&[u8]>, added: &MergeOperands) -> Option<Vec<u8>> {
    let mut joined = row.unwrap_or_default().to_vec();
    added.iter().for_each(|tail| joined.extend_from_slice(tail));
    Some(joined)
}

/// The rows of one group, for who writes them and for who reads what is not in memory. Clones share them.
#[derive(Debug, Clone)]
pub struct SharedData {
    /// Not there while a snapshot takes its place.
    store: Arc<RwLock<Option<DataStore>>>,
    /// What somebody who read met, and could do nothing about.
    damage: Arc<Mutex<Option<StorageError>>>,
}

impl SharedData {
    /// These rows.
    #[must_use]
    pub fn new(store: DataStore) -> SharedData {
        SharedData { store: Arc::new(RwLock::new(Some(store))), damage: Arc::default() }
    }

    /// The rows, which stay in their place meanwhile.
    pub fn get(&self) -> Result<MappedRwLockReadGuard<'_, DataStore>, StorageError> {
        RwLockReadGuard::try_map(self.store.read(), Option::as_ref)
            .map_err(|_| StorageError::Rocks("the rows are being replaced".to_owned()))
    }

    /// The damage that was met by somebody who read, once.
    pub fn take_damage(&self) -> Option<StorageError> {
        self.damage.lock().take()
    }

    /// Closes the rows.
    pub fn close(&self) {
        *self.store.write() = None;
    }

    /// Puts rows in the place of those that were closed.
    pub fn put(&self, store: DataStore) {
        *self.store.write() = Some(store);
    }

    /// To be written from now on.
    pub fn into_writable(self) -> Result<SharedData, StorageError> {
        let store = self.store.write().take();
        if let Some(store) = store {
            self.put(store.into_writable()?);
        }
        Ok(self)
    }
}

impl ColdRows for SharedData {
    fn get_many(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, StorageError> {
        self.get()?.get_flushed(keys).inspect_err(|error| {
            if error.is_damage() {
                *self.damage.lock() = Some(error.again());
            }
        })
    }
}

fn options(shared: &SharedCaches, now: &Arc<AtomicU64>, geometry: &Geometry) -> rocksdb::Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&shared.blocks);
    table.set_block_size(16 << 10);
    let mut options = crate::storage::common_options(geometry);
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_manager(&shared.write_buffers);
    // How much a flush writes at once when nobody asks earlier.
    options.set_write_buffer_size(crate::storage::size(geometry.data_memtable));
    options.set_max_bytes_for_level_base(geometry.level_base);
    options.set_level_zero_file_num_compaction_trigger(geometry.level_zero_trigger);
    options.set_max_write_buffer_number(3);
    // Rows are written in the background and read only after a flush: they need no order before it. Sorting
    // them once costs a third of inserting each in its place.
    options.set_memtable_factory(MemtableFactory::Vector);
    // One flush and one compaction at a time: the machine has better things to do.
    options.set_max_background_jobs(2);
    // Fresh tables are soon rewritten, so only what has moved down is worth compressing.
    options.set_compression_per_level(&[DBCompressionType::None, DBCompressionType::Lz4]);
    options.set_compression_type(DBCompressionType::Lz4);
    // A flush of many megabytes goes to disk in pieces and not as one burst beside the log's syncs.
    options.set_bytes_per_sync(1 << 20);
    options.set_max_open_files(512);
    options.set_merge_operator_associative("holdfast.join", join);
    let now = Arc::clone(now);
    // Rows that only go as tables are compacted must not lie for weeks in one that nothing else touches.
    options.set_periodic_compaction_seconds(PERIODIC_COMPACTION_SECONDS);
    options.set_compaction_filter("holdfast.forget", move |_level, key, value| {
        let end = value.last_chunk().map(|end| u64::from_be_bytes(*end));
        let is_over = end.is_some_and(|end| end <= now.load(Ordering::Relaxed));
        if key.first() == Some(&ADDED) && is_over {
            CompactionDecision::Remove
        } else {
            CompactionDecision::Keep
        }
    });
    options
}

/// The end of the range of keys that start with `prefix`.
fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < KEYS_END {
            end.push(last + 1);
            return end;
        }
    }
    vec![KEYS_END]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::test_support::TestDir;
    use crate::storage::test_support::copy_dir;

    const GROUP: GroupId = GroupId(0);

    fn caches() -> SharedCaches {
        SharedCaches::new(1 << 20, 16 << 20)
    }

    fn write(store: &DataStore, rows: &[(&[u8], &[u8])]) {
        let mut batch = DataBatch::new();
        for (key, value) in rows {
            batch.put(key, value);
        }
        assert_eq!(batch.len(), rows.len());
        store.write(batch).unwrap();
    }

    fn rows(store: &DataStore, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut rows = Vec::new();
        let mut collect = |key: &[u8], value: &[u8]| {
            rows.push((key.to_vec(), value.to_vec()));
            Ok(())
        };
        store.scan(prefix, &mut collect).unwrap();
        rows
    }

    #[test]
    fn a_kill_loses_what_was_not_flushed_and_nothing_else() {
        let dir = TestDir::new();
        let store = DataStore::open(dir.path(), GROUP, &caches()).unwrap();
        write(&store, &[(b"applied", b"1"), (b"k", b"one")]);
        store.flush().unwrap();
        write(&store, &[(b"applied", b"2"), (b"k", b"two")]);
        assert_eq!(store.get(b"k").unwrap(), Some(b"two".to_vec()));
        let copy = TestDir::new();
        copy_dir(dir.path(), copy.path());
        let killed = DataStore::open(copy.path(), GROUP, &caches()).unwrap();
        assert_eq!(killed.get(b"applied").unwrap(), Some(b"1".to_vec()));
        assert_eq!(killed.get(b"k").unwrap(), Some(b"one".to_vec()));
        assert_eq!(killed.background_errors(), 0);
    }

    #[test]
    fn an_orderly_end_flushes() {
        let dir = TestDir::new();
        let store = DataStore::open(dir.path(), GROUP, &caches()).unwrap();
        write(&store, &[(b"k", b"v")]);
        drop(store);
        let store = DataStore::open(dir.path(), GROUP, &caches()).unwrap();
        assert_eq!(store.get(b"k").unwrap(), Some(b"v".to_vec()));
    }

    #[test]
    fn a_scan_sees_its_prefix_in_order_and_stops_at_an_error() {
        let dir = TestDir::new();
        let store = DataStore::open(dir.path(), GROUP, &caches()).unwrap();
        write(
            &store,
            &[(&[1, 0xff, 2], b"b"), (&[1, 0xff], b"a"), (&[2], b"c"), (&[1], b"0"), (&[1, 0xfe, 9], b"1")],
        );
        let keys = |prefix: &[u8]| {
            rows(&store, prefix).into_iter().map(|(_, value)| value).collect::<Vec<_>>().concat()
        };
        assert_eq!(keys(&[1, 0xff]), b"ab");
        assert_eq!(keys(&[1]), b"01ab");
        assert_eq!(keys(&[]), b"01abc");
        assert_eq!(keys(&[3]), b"");
        let mut seen = 0;
        let result = store.scan(&[], &mut |_, _| {
            seen += 1;
            Err(StorageError::Rocks("stop".to_owned()))
        });
        assert!(result.is_err() && seen == 1);
    }

    #[test]
    fn deleting_a_prefix_takes_effect_in_the_order_of_the_batch() {
        let dir = TestDir::new();
        let store = DataStore::open(dir.path(), GROUP, &caches()).unwrap();
        write(&store, &[(b"a1", b""), (b"a2", b""), (b"b", b"")]);
        let mut batch = DataBatch::new();
        batch.delete_prefix(b"a");
        batch.put(b"a2", b"new");
        batch.delete(b"missing");
        assert!(!batch.is_empty() && batch.bytes() > 10);
        store.write(batch).unwrap();
        assert_eq!(rows(&store, b""), vec![(b"a2".to_vec(), b"new".to_vec()), (b"b".to_vec(), vec![])]);
        let mut batch = DataBatch::new();
        batch.delete_prefix(b"");
        store.write(batch).unwrap();
        assert_eq!(rows(&store, b""), vec![]);
    }

    #[test]
    fn a_checkpoint_holds_what_was_written_before_it_and_nothing_after() {
        let dir = TestDir::new();
        let caches = caches();
        let store = DataStore::open(dir.path(), GROUP, &caches).unwrap();
        write(&store, &[(b"k", b"before")]);
        let to = dir.path().join("checkpoint");
        store.checkpoint(&to).unwrap();
        write(&store, &[(b"k", b"after")]);
        assert!(store.checkpoint(&to).is_err(), "it exists");
        let copy = DataStore::open_at(&to, &caches).unwrap();
        assert_eq!(copy.get(b"k").unwrap(), Some(b"before".to_vec()));
        assert!(copy.bytes() > 0);
    }

    fn append(store: &DataStore, key: &[u8], tail: &[u8]) {
        let mut batch = DataBatch::new();
        RowSink::append(&mut batch, key, tail);
        store.write(batch).unwrap();
    }

    /// Merges all tables into one.
    fn compact(store: &DataStore) {
        store.flush().unwrap();
        store.db.compact_range(None::<&[u8]>, None::<&[u8]>);
    }

    #[test]
    fn what_is_added_to_a_row_stands_behind_it_over_flush_compaction_and_reopen() {
        let dir = TestDir::new();
        let store = DataStore::open(dir.path(), GROUP, &caches()).unwrap();
        let mut wanted = Vec::new();
        write(&store, &[(b"tput", b"start:")]);
        append(&store, b"tput", b"end");
        for round in 0..12u8 {
            let tail = vec![round; usize::from(round) * 30];
            append(&store, b"tlong", &tail);
            wanted.extend_from_slice(&tail);
            assert_eq!(store.get(b"tlong").unwrap(), Some(wanted.clone()), "round {round}");
            match round % 4 {
                1 => store.flush().unwrap(),
                3 => compact(&store),
                _ => {}
            }
        }
        assert_eq!(store.get(b"tput").unwrap(), Some(b"start:end".to_vec()));
        drop(store);
        let store = DataStore::open(dir.path(), GROUP, &caches()).unwrap();
        assert_eq!(store.get(b"tlong").unwrap(), Some(wanted.clone()));
        compact(&store);
        append(&store, b"tlong", b"last");
        wanted.extend_from_slice(b"last");
        let all = vec![(b"tlong".to_vec(), wanted), (b"tput".to_vec(), b"start:end".to_vec())];
        assert_eq!(rows(&store, b"t"), all);
    }

    #[test]
    fn reads_of_what_is_flushed_do_not_see_what_is_not() {
        let dir = TestDir::new();
        let store = DataStore::open(dir.path(), GROUP, &caches()).unwrap();
        let keys = [b"a".to_vec(), b"missing".to_vec(), b"tb".to_vec()];
        write(&store, &[(b"a", b"one")]);
        append(&store, b"tb", b"x");
        assert_eq!(store.get_flushed(&keys).unwrap(), [None, None, None]);
        store.flush().unwrap();
        let flushed = [Some(b"one".to_vec()), None, Some(b"x".to_vec())];
        assert_eq!(store.get_flushed(&keys).unwrap(), flushed);
        write(&store, &[(b"a", b"two")]);
        append(&store, b"tb", b"y");
        assert_eq!(store.get_flushed(&keys).unwrap(), flushed);
        store.flush().unwrap();
        assert_eq!(store.get_flushed(&keys).unwrap(), [Some(b"two".to_vec()), None, Some(b"xy".to_vec())]);
        let data = SharedData::new(store);
        assert_eq!(data.get_many(&keys[..1]).unwrap(), [Some(b"two".to_vec())]);
        data.close();
        assert!(data.get_many(&keys).is_err() && data.get().is_err());
        data.put(DataStore::open(dir.path(), GROUP, &caches()).unwrap());
        assert_eq!(data.get_many(&keys[2..]).unwrap(), [Some(b"xy".to_vec())]);
    }

    #[test]
    fn rows_that_are_only_added_to_go_when_their_time_has_come_and_no_others() {
        let dir = TestDir::new();
        let store = DataStore::open(dir.path(), GROUP, &caches()).unwrap();
        let due = |at: u64| [&b"event"[..], &at.to_be_bytes()].concat();
        append(&store, b"told", &due(100));
        append(&store, b"tlater", &due(100));
        append(&store, b"tlater", &due(101));
        append(&store, b"tnever", &due(u64::MAX));
        append(&store, b"tshort", b"x");
        write(&store, &[(b"other", &due(1))]);
        let left = |store: &DataStore| -> Vec<Vec<u8>> {
            // What was added becomes a row in the first, which the second looks at.
            (0..2).for_each(|_| compact(store));
            rows(store, b"").into_iter().map(|(key, _)| key).collect()
        };
        let all: Vec<Vec<u8>> = [&b"other"[..], b"tlater", b"tnever", b"told", b"tshort"]
            .into_iter()
            .map(<[u8]>::to_vec)
            .collect();
        let without = |gone: &[&[u8]]| -> Vec<Vec<u8>> {
            all.iter().filter(|key| !gone.contains(&&key[..])).cloned().collect()
        };
        assert_eq!(left(&store), all, "no time has passed");
        store.forget(ClusterTime(99));
        assert_eq!(left(&store), all);
        store.forget(ClusterTime(100));
        assert_eq!(left(&store), without(&[b"told"]));
        store.forget(ClusterTime(1_000));
        assert_eq!(left(&store), without(&[b"told", b"tlater"]));
    }

    /// Flips a bit in the first block of each table.
    fn harm(store: &DataStore) {
        for entry in std::fs::read_dir(store.db.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "sst") {
                let mut bytes = std::fs::read(&path).unwrap();
                bytes[20] ^= 0x10;
                std::fs::write(&path, bytes).unwrap();
            }
        }
    }

    #[test]
    fn damage_that_compaction_meets_in_the_background_is_told_as_damage_with_its_place() {
        let dir = TestDir::new();
        let store = DataStore::open(dir.path(), GROUP, &caches()).unwrap();
        for round in 0..2u8 {
            write(&store, &[(b"k", &[round; 5_000]), (b"l", b"v")]);
            store.flush().unwrap();
        }
        store.probe().unwrap();
        harm(&store);
        store.db.compact_range(None::<&[u8]>, None::<&[u8]>);
        assert!(store.background_errors() > 0);
        let error = store.probe().unwrap_err();
        assert!(error.is_damage() && !error.is_no_space(), "{error}");
        assert!(error.to_string().contains(".sst"), "{error}");
    }

    #[test]
    fn damage_that_a_reader_meets_is_left_for_who_can_do_something_about_it() {
        let dir = TestDir::new();
        let store = DataStore::open(dir.path(), GROUP, &caches()).unwrap();
        write(&store, &[(b"k", &[7; 5_000])]);
        store.flush().unwrap();
        harm(&store);
        let data = SharedData::new(store);
        assert!(data.take_damage().is_none());
        let read = data.get_many(&[b"k".to_vec()]).unwrap_err();
        assert!(read.is_damage(), "{read}");
        assert!(data.clone().take_damage().is_some_and(|damage| damage.to_string() == read.to_string()));
        assert!(data.take_damage().is_none(), "it is told once");
        assert!(data.get().unwrap().verify().is_err());
    }

    #[test]
    fn what_lies_above_the_deepest_level_is_compacted_in_parts_that_hold_all_of_it() {
        let dir = TestDir::new();
        let store = DataStore::open(dir.path(), GROUP, &caches()).unwrap();
        assert_eq!(store.parts_to_compact().unwrap(), [(None, None)], "nothing is deeper");
        write(&store, &[(b"a", b"1"), (b"b", b"2")]);
        store.flush().unwrap();
        let parts = store.parts_to_compact().unwrap();
        parts.iter().for_each(|part| store.compact_part(part));
        assert_eq!(store.parts_to_compact().unwrap(), []);
        let mut batch = DataBatch::new();
        batch.delete_prefix(b"");
        store.write(batch).unwrap();
        store.flush().unwrap();
        let parts = store.parts_to_compact().unwrap();
        assert_eq!(parts, [(None, None)]);
        parts.iter().for_each(|part| store.compact_part(part));
        assert_eq!(rows(&store, b""), []);
        let left: usize = store.db.live_files().unwrap().iter().map(|file| file.size).sum();
        assert_eq!(left, 0, "what was deleted is gone from the disk");
    }

    #[test]
    fn groups_share_memory_but_no_rows() {
        let dir = TestDir::new();
        let caches = caches();
        let first = DataStore::open(dir.path(), GROUP, &caches).unwrap();
        let second = DataStore::open(dir.path(), GroupId(1), &caches).unwrap();
        write(&first, &[(b"k", b"v")]);
        assert_eq!(second.get(b"k").unwrap(), None);
    }
}
