//! What survives: the log, the rows of the state, and the directory they live in.
//!
//! The only user of the rocksdb crate. `log` holds entries and votes, synced as asked; `data` holds one
//! group's rows without a write-ahead log of their own, because the log is theirs (DESIGN.md D2, D3).
//! Entries and rows are opaque bytes here. Every error but the want of room is final for the process: after a failed write
//! or sync it is *unknown* what is on disk (RELIABILITY.md 2b.5), so the caller stops and never answers
//! "failed"; the next start reads what is really there. What found no room was not done, and is done again.

mod checkpoint;
pub mod damage;
mod data;
pub mod disk;
mod format;
pub mod geometry;
mod log;
pub mod record_file;
pub mod rejoin;
pub mod snapshot;
mod watermark;

use std::fs;
use std::fs::File;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use rocksdb::DB;
use rocksdb::DBRecoveryMode;
use rocksdb::ErrorKind;
use rocksdb::LogLevel;
use rocksdb::Options;
use rocksdb::WriteBatch;
use rocksdb::WriteOptions;
use rocksdb::properties;
use thiserror::Error;

use crate::storage::geometry::Geometry;
use crate::types::LogIndex;
use crate::types::NodeId;
use crate::types::Term;

pub use data::ColdRows;
pub use data::DataBatch;
pub use data::DataStore;
pub use data::KeyRange;
pub use data::RowSink;
pub use data::RowVisitor;
pub use data::Rows;
pub use data::SharedCaches;
pub use data::SharedData;
pub use format::DirLock;
pub use format::FORMAT_VERSION;
pub use format::Identity;
pub use format::open_dir;
pub use log::HardStateRecord;
pub use log::LogBatch;
pub use log::LogContents;
pub use log::LogEntryRecord;
pub use log::LogStore;
pub use snapshot::FileLister;
pub use snapshot::IncomingDir;
pub use snapshot::SnapshotFile;
pub use snapshot::SnapshotReader;
pub use snapshot::finish_install;
pub use snapshot::finish_installs;
pub use snapshot::incoming_name;
pub use snapshot::is_plain_name;
pub use snapshot::list_files;
pub use snapshot::outgoing_path;
pub use snapshot::swap_in;
pub use watermark::Watermark;

/// Why the disk did not do what was asked. Each prints as one line that says what to do, where a person
/// can do something about it.
#[derive(Debug, Error)]
pub enum StorageError {
    /// The operating system refused. After a write or sync, what reached the disk is unknown.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or directory it was about.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// RocksDB refused. After a write or sync, what reached the disk is unknown.
    #[error("storage: {0}")]
    Rocks(String),
    /// What was read is not what was written. The node must not vote or serve with it.
    #[error("the data on this disk is damaged ({what}): restore this node from its peers or a backup")]
    Corrupt {
        /// Which record, and what is wrong with it.
        what: String,
    },
    /// RocksDB cannot make sense of a store, or misses files of it. Nothing of it may be served.
    #[error("{path} is damaged ({what}): restore this node's data directory from a backup", path = path.display())]
    Damaged {
        /// The directory of the store.
        path: PathBuf,
        /// RocksDB's words, which mostly name the file.
        what: String,
    },
    /// The data directory is something else than a directory.
    #[error("data directory {dir} is not a directory: choose another dir", dir = dir.display())]
    NotADirectory {
        /// The path as configured.
        dir: PathBuf,
    },
    /// This user may not read, write or create the directory.
    #[error("no permission to use data directory {dir}: give it to this user, or choose another dir", dir = dir.display())]
    NoPermission {
        /// The path as configured.
        dir: PathBuf,
    },
    /// The directory holds files, but not Holdfast's.
    #[error(
        "directory {dir} is not empty and not a Holdfast data directory (it holds {found}): choose an empty dir",
        dir = dir.display()
    )]
    NotOurs {
        /// The path as configured.
        dir: PathBuf,
        /// One of the names found there.
        found: String,
    },
    /// The directory's format is of an earlier version.
    #[error(
        "data directory {dir} was written by an earlier Holdfast (format {found}; this one knows {known}): \
         choose an empty dir",
        dir = dir.display()
    )]
    OlderFormat {
        /// The path as configured.
        dir: PathBuf,
        /// The format on disk.
        found: u32,
        /// The format this program reads.
        known: u32,
    },
    /// The directory's format is of a later version.
    #[error(
        "data directory {dir} was written by a newer Holdfast (format {found}; this one knows {known}): \
         start that version, or choose another dir",
        dir = dir.display()
    )]
    NewerFormat {
        /// The path as configured.
        dir: PathBuf,
        /// The format on disk.
        found: u32,
        /// The newest format this program reads.
        known: u32,
    },
    /// The directory belongs to another node of the cluster.
    #[error(
        "data directory {dir} belongs to node {found}, not node {wanted}: set node-id {found}, or choose another dir",
        dir = dir.display()
    )]
    OtherNode {
        /// The path as configured.
        dir: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Who asked.
        wanted: NodeId,
    },
    /// Another process has the directory open.
    #[error(
        "data directory {dir} is in use by another process{holder}: stop it, or choose another dir",
        dir = dir.display(), holder = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    InUse {
        /// The path as configured.
        dir: PathBuf,
        /// The other process, when it could be told.
        pid: Option<u32>,
    },
    /// The log lacks changes that this node is known to have synced: the disk lost writes.
    #[error(
        "data directory {dir} lost synced writes: {dir}/log ends at change {end}, but change {known} was on disk. \
         Restore it from a backup, or remove {dir}/WATERMARK to go on without what is lost",
        dir = dir.display()
    )]
    LostChanges {
        /// The path as configured.
        dir: PathBuf,
        /// The number of the log's last change.
        end: u64,
        /// The number that the watermark knows was synced.
        known: u64,
    },
    /// This node rejoined its cluster again and again, and never came to serve.
    #[error(
        "this node gave up its data {times} times in a row without serving once, last because {why}. Look at \
         the disk. To let it try again with an empty one, remove {dir}/log, {dir}/data and {dir}/WATERMARK, then {dir}/REJOIN",
        dir = dir.display()
    )]
    RejoinsInVain {
        /// The path as configured.
        dir: PathBuf,
        /// How often.
        times: u32,
        /// The reason of the last time.
        why: String,
    },
    /// The file system is smaller than anything a node could work in.
    #[error(
        "the disk of data directory {dir} has {bytes} bytes in all, and a node needs {least} at least: choose a dir on a \
         larger one",
        dir = dir.display()
    )]
    DiskTooSmall {
        /// The path as configured.
        dir: PathBuf,
        /// Bytes of the file system.
        bytes: u64,
        /// The least that would do.
        least: u64,
    },
    /// The log ends before what this node is known to have synced: the disk lost writes.
    #[error(
        "data directory {dir} lost synced writes: its log ends at term {end_term} index {end_index}, but term \
         {known_term} index {known_index} was on disk; restore this node from its peers or a backup",
        dir = dir.display(), end_term = end.0.0, end_index = end.1, known_term = known.0.0, known_index = known.1
    )]
    BehindWatermark {
        /// The path as configured.
        dir: PathBuf,
        /// Where the log ends.
        end: (Term, LogIndex),
        /// What the watermark knows was synced.
        known: (Term, LogIndex),
    },
}

impl StorageError {
    /// True when what is on disk is not what was written, or not all of it: reading it again is of no use.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        use StorageError::*;
        match self {
            Corrupt { .. } | Damaged { .. } | LostChanges { .. } | BehindWatermark { .. } => true,
            Io { .. } | Rocks(_) | NotADirectory { .. } | NoPermission { .. } | NotOurs { .. } => false,
            NewerFormat { .. }
            | OlderFormat { .. }
            | OtherNode { .. }
            | InUse { .. }
            | DiskTooSmall { .. }
            | RejoinsInVain { .. } => false,
        }
    }

    /// True when the log is shorter than what was synced, while what there is of it may be whole.
    #[must_use]
    pub fn is_loss(&self) -> bool {
        use StorageError::*;
        matches!(self, LostChanges { .. } | BehindWatermark { .. } | RejoinsInVain { .. })
    }

    /// True when there was no room on the disk: trying again is of use once there is.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            StorageError::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            StorageError::Rocks(what) => what.contains(NO_SPACE) || what.contains(NO_QUOTA),
            _ => false,
        }
    }

    /// The same once more, for somebody else who must hear of it.
    #[must_use]
    pub fn again(&self) -> StorageError {
        match self {
            StorageError::Io { path, source } => {
                let source = io::Error::new(source.kind(), source.to_string());
                StorageError::Io { path: path.clone(), source }
            }
            StorageError::Corrupt { what } => StorageError::Corrupt { what: what.clone() },
            StorageError::Damaged { path, what } => {
                StorageError::Damaged { path: path.clone(), what: what.clone() }
            }
            other => StorageError::Rocks(other.to_string()),
        }
    }

    /// Says which store it is about, where that is not said yet.
    #[must_use]
    pub fn in_place(self, path: &Path) -> StorageError {
        match self {
            StorageError::Corrupt { what } => StorageError::Damaged { path: path.to_path_buf(), what },
            // A file that the manifest names. Anything else may be the system's or this program's fault: no data is given
            // up for it.
            StorageError::Rocks(what) if what.contains("No such file or directory") => {
                StorageError::Damaged { path: path.to_path_buf(), what }
            }
            StorageError::Rocks(what) => StorageError::Rocks(format!("{}: {what}", path.display())),
            other => other,
        }
    }

    /// An operating system error about `path`.
    fn io(path: &Path, source: io::Error) -> StorageError {
        StorageError::Io { path: path.to_path_buf(), source }
    }
}

impl From<rocksdb::Error> for StorageError {
    fn from(error: rocksdb::Error) -> StorageError {
        let kind = error.kind();
        let text = error.into_string().replace(['\n', '\r'], " ");
        match kind {
            ErrorKind::Corruption => StorageError::Corrupt { what: text },
            _ => StorageError::Rocks(text),
        }
    }
}

/// What RocksDB says when the system answered ENOSPC.
const NO_SPACE: &str = "No space left on device";
const NO_QUOTA: &str = "Disk quota exceeded";

/// True when a store was made in this directory: RocksDB makes CURRENT last.
fn is_database(path: &Path) -> Result<bool, StorageError> {
    let current = path.join("CURRENT");
    fs::exists(&current).map_err(|error| StorageError::io(&current, error))
}

/// What both kinds of store want of RocksDB on a disk that is divided up so.
fn common_options(geometry: &Geometry) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_paranoid_checks(true);
    // The default, PointInTime, opens silently without everything after one flipped bit (RELIABILITY.md
    // 2b.5). This mode forgives only a record that was cut short at the end, as a power cut leaves it.
    // RocksDB allows it only while WAL files are not recycled.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_recycle_log_file_num(0);
    options.set_use_fsync(false);
    // One writer at a time per store: the machinery for parallel inserts only costs.
    options.set_allow_concurrent_memtable_write(false);
    options.set_enable_pipelined_write(false);
    options.set_level_compaction_dynamic_level_bytes(true);
    // Compaction runs at the lowest priority (see `SharedCaches::new`) and may be late on a busy machine. The
    // defaults, 20 and 36, would then slow the log writer down for it.
    options.set_level_zero_slowdown_writes_trigger(64);
    options.set_level_zero_stop_writes_trigger(128);
    // RocksDB's own diary must not grow for ever, nor wake up to write statistics.
    options.set_log_level(LogLevel::Warn);
    options.set_max_log_file_size(size(geometry.diary));
    options.set_keep_log_file_num(2);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_max_manifest_file_size(size(geometry.manifest_max));
    options.set_manifest_preallocation_size(size(geometry.manifest_step));
    options.set_target_file_size_base(geometry.table);
    // A compaction that nobody hurries takes no more room than this at once.
    options.set_max_compaction_bytes(11 * geometry.table);
    options
}

/// A size for RocksDB.
fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// What an empty write is told: why RocksDB stopped a store, if it did.
fn probe(db: &DB) -> Result<(), StorageError> {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    db.write_opt(WriteBatch::default(), &options)
        .map_err(|error| StorageError::from(error).in_place(db.path()))
}

/// Bytes in live tables and memtables; 0 where RocksDB does not say.
fn rough_size(db: &DB) -> u64 {
    [properties::LIVE_SST_FILES_SIZE, properties::CUR_SIZE_ALL_MEM_TABLES]
        .into_iter()
        .filter_map(|name| db.property_int_value(name).ok().flatten())
        .sum()
}

/// Failed flushes and compactions since open: RocksDB reports these nowhere else (RELIABILITY.md 2b.5).
fn background_errors(db: &DB) -> u64 {
    db.property_int_value(properties::BACKGROUND_ERRORS).ok().flatten().unwrap_or(0)
}

/// Creates the directory unless it is there, so that a power cut does not take it away again.
fn ensure_dir(dir: &Path) -> Result<(), StorageError> {
    match fs::create_dir(dir) {
        Ok(()) => sync_parent(dir),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(StorageError::io(dir, error)),
    }
}

/// Makes the directory's list of names durable.
fn sync_dir(dir: &Path) -> Result<(), StorageError> {
    File::open(dir).and_then(|handle| handle.sync_all()).map_err(|error| StorageError::io(dir, error))
}

/// Makes the name of `path` durable.
fn sync_parent(path: &Path) -> Result<(), StorageError> {
    match path.parent() {
        // The parent of a relative path of one part is the working directory.
        Some(parent) if parent.as_os_str().is_empty() => sync_dir(Path::new(".")),
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod test_support {
    //! Directories for tests, removed at the end.

    use std::fs;
    use std::path::Path;
    use std::path::PathBuf;
    use std::sync::atomic::AtomicU64;
    use std::sync::atomic::Ordering;

    /// An existing, empty directory of its own.
    pub struct TestDir(PathBuf);

    impl TestDir {
        pub fn new() -> TestDir {
            static NEXT: AtomicU64 = AtomicU64::new(0);
            let name = format!("holdfast-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            // A process of an earlier run may have had the same id and died.
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            TestDir(path)
        }

        pub fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for TestDir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Copies what is on disk now: what a process that is killed at this moment leaves behind. A copy during
    /// which RocksDB added, removed or changed files in the background shows no single moment, and is made again.
    pub fn copy_dir(from: &Path, to: &Path) {
        loop {
            let before = listing(from);
            let _ = fs::remove_dir_all(to);
            let is_whole = copy_files(from, to);
            if is_whole && listing(from) == before {
                return;
            }
        }
    }

    fn copy_files(from: &Path, to: &Path) -> bool {
        fs::create_dir_all(to).unwrap();
        listing(from).iter().all(|(path, _)| {
            let target = to.join(path.strip_prefix(from).unwrap());
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            match fs::copy(path, target) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
                copied => copied.is_ok(),
            }
        })
    }

    /// All files below a directory with their lengths, but for RocksDB's log lines, which decide nothing.
    fn listing(directory: &Path) -> Vec<(PathBuf, u64)> {
        let mut files = Vec::new();
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let (path, Ok(metadata)) = (entry.path(), entry.metadata()) else { continue };
            if metadata.is_dir() {
                files.extend(listing(&path));
            } else if !entry.file_name().to_string_lossy().starts_with("LOG") {
                files.push((path, metadata.len()));
            }
        }
        files.sort();
        files
    }
}
