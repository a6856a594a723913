//! One group's rows: `<dir>/data/<group>/`, a RocksDB without a write-ahead log.
//!
//! The Raft log is the write-ahead log (DESIGN.md D2): a batch holds the changed rows together with the
//! index they stand for, and what a crash takes away is applied again from there. There is one column
//! family, so a batch lies in one memtable, and memtables reach the disk in order: the rows on disk are
//! always those of one index. Rows carry no checksum of ours; RocksDB's cover them.

use std::fmt;
use std::path::Path;

use rocksdb::BlockBasedOptions;
use rocksdb::Cache;
use rocksdb::DB;
use rocksdb::DBCompressionType;
use rocksdb::Env;
use rocksdb::MemtableFactory;
use rocksdb::ReadOptions;
use rocksdb::WriteBatch;
use rocksdb::WriteBufferManager;
use rocksdb::WriteOptions;

use crate::storage::StorageError;
use crate::storage::checkpoint;
use crate::storage::record_file;
use crate::types::GroupId;

/// Size of one group's memtable: how much a flush writes at once when nobody asks earlier.
const MEMTABLE_BYTES: usize = 32 << 20;
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

/// Where changed rows are written to: a batch for the disk, or a simulated node's.
pub trait RowSink {
    /// Writes a row.
    fn put(&mut self, key: &[u8], value: &[u8]);

    /// Deletes a row.
    fn delete(&mut self, key: &[u8]);

    /// Deletes all rows whose key starts with `prefix`, as they are before the batch.
    fn delete_prefix(&mut self, prefix: &[u8]);
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
        let db =
            DB::open(&options(shared), path).map_err(|error| StorageError::from(error).in_place(path))?;
        Ok(DataStore::of(db, None))
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
        record_file::check_store(&path)?;
        let db = DB::open_for_read_only(&options(shared), &path, false);
        let db = db.map_err(|error| StorageError::from(error).in_place(&path))?;
        Ok(Some(DataStore::of(db, Some(shared.clone()))))
    }

    fn of(db: DB, read_only: Option<SharedCaches>) -> DataStore {
        let mut without_wal = WriteOptions::default();
        without_wal.disable_wal(true);
        DataStore { db, without_wal, read_only }
    }

    /// The same rows, to be written from now on.
    pub fn into_writable(self) -> Result<DataStore, StorageError> {
        let Some(shared) = self.read_only else { return Ok(self) };
        let path = self.db.path().to_path_buf();
        drop(self.db);
        DataStore::open_at(&path, &shared)
    }

    /// Writes a batch, all or nothing, into memory: durable after `flush`, or when RocksDB flushes by itself.
    pub fn write(&self, batch: DataBatch) -> Result<(), StorageError> {
        self.db.write_opt(batch.inner, &self.without_wal)?;
        Ok(())
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

    /// Waits until everything written before is on disk.
    pub fn flush(&self) -> Result<(), StorageError> {
        self.db.flush()?;
        Ok(())
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

    /// Background flushes and compactions that failed since open. Above 0, the process should stop.
    #[must_use]
    pub fn background_errors(&self) -> u64 {
        crate::storage::background_errors(&self.db)
    }
}

fn options(shared: &SharedCaches) -> rocksdb::Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&shared.blocks);
    table.set_block_size(16 << 10);
    let mut options = crate::storage::common_options();
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_manager(&shared.write_buffers);
    options.set_write_buffer_size(MEMTABLE_BYTES);
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
