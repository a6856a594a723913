//! Copies of a group's rows at one moment, which snapshots are sent from.

use std::path::Path;

use rocksdb::DB;
use rocksdb::checkpoint::Checkpoint;

use crate::storage::StorageError;

/// Links all tables of `db` into the new directory `to`, flushing first what is in memory only.
///
/// RocksDB builds it under another name and renames it at the end, so `to` is complete or absent.
pub(super) fn create(db: &DB, to: &Path) -> Result<(), StorageError> {
    Checkpoint::new(db)?.create_checkpoint(to)?;
    crate::storage::sync_parent(to)
}
