//! What a start does before it uses the data: it looks whether all of it is there, without changing anything.
//!
//! ```text
//! full disk? ballast off ─► ordered to rejoin? data aside ─► log and rows whole, none older than known? ─► start
//!                                  ▲                              │ damaged
//!                                  └──── a node with peers ───────┤
//!                                                                 └─ a cluster of one: exit 65 or 66, one line
//! ```
//! A damaged log must never be voted with, and a node with peers does not need it: it gives up its replica and joins
//! again with an empty disk. A node alone has nothing else; there a person decides, on files that are as they were.

use std::path::Path;

use crate::config::AppendFsync;
use crate::config::Config;
use crate::consensus::raft::replica::BootError;
use crate::consensus::raft::replica::META_REPLICA;
use crate::consensus::raft::restart;
use crate::state::State;
use crate::storage::DataStore;
use crate::storage::LogStore;
use crate::storage::SharedCaches;
use crate::storage::StorageError;
use crate::storage::Watermark;
use crate::storage::damage;
use crate::storage::disk;
use crate::storage::disk::Ballast;
use crate::storage::disk::DISK_LEAST;
use crate::storage::disk::DiskLimits;
use crate::storage::disk::DiskState;
use crate::storage::record_file;
use crate::storage::rejoin;
use crate::types::GroupId;
use crate::types::LogIndex;

/// The group that carries what belongs to the node.
const GROUP: GroupId = GroupId(0);
/// Where the log of a cluster of several nodes begins.
const FIRST_OF_SEVERAL: LogIndex = LogIndex(2);
/// Where the end of a log is kept that was cut off.
const TORN_TAIL: &str = "torn-tail";

/// The exit status that goes with an error of the start.
#[must_use]
pub fn exit_status(error: &anyhow::Error) -> u8 {
    let of_storage = |error: &StorageError| restart::exit_status(error).unwrap_or(1);
    let statuses = error.chain().filter_map(|cause| {
        if let Some(error) = cause.downcast_ref::<StorageError>() {
            return Some(of_storage(error));
        }
        match cause.downcast_ref::<BootError>()? {
            BootError::Storage(error) => Some(of_storage(error)),
            BootError::Mismatch { .. } => Some(restart::EXIT_DAMAGED),
            BootError::Thread(_) => None,
        }
    });
    statuses.max().unwrap_or(1)
}

/// True when the error says that the data cannot be trusted.
pub fn is_damage(error: &anyhow::Error) -> bool {
    exit_status(error) != 1 && !matches!(error.downcast_ref(), Some(StorageError::RejoinsInVain { .. }))
}

/// Makes the directory ready for a start: whole, or empty. To be called before any of its stores is opened.
///
/// # Errors
/// One line that says what is wrong with the data. Nothing was changed then, but for the ballast.
pub fn prepare(dir: &Path, config: &Config) -> anyhow::Result<()> {
    make_room(dir, config);
    let has_peers = config.has_peers();
    if !has_peers && rejoin::read(dir)?.is_some() {
        anyhow::bail!(
            "data directory {} was given up by a node of a cluster of several nodes: give the cluster-node lines of all \
             of them, or choose another dir",
            dir.display()
        );
    }
    put_aside(dir)?;
    mend_log(dir, config)?;
    match examine(dir) {
        Err(error) if has_peers && error.is_damage() => {
            rejoin::order(dir, &error.to_string())?;
            Ok(put_aside(dir)?)
        }
        examined => {
            examined?;
            Ok(read_all_if_damaged(dir)?)
        }
    }
}

/// Reads every row, if damage was met in an earlier life: until a payload's turn comes nothing else does.
fn read_all_if_damaged(dir: &Path) -> Result<(), StorageError> {
    if !damage::is_noted(dir)? {
        return Ok(());
    }
    let caches = SharedCaches::new(1 << 20, 1 << 20);
    if let Some(data) = DataStore::examine(dir, GROUP, &caches)? {
        data.verify()?;
    }
    tracing::info!("{} is whole again", dir.display());
    damage::clear(dir)
}

/// Cuts off what was being written when the power went, as far as nobody was told of it.
fn mend_log(dir: &Path, config: &Config) -> Result<(), StorageError> {
    let log = dir.join("log");
    if !log.is_dir() {
        return Ok(());
    }
    let known = Watermark::examine(dir)?.map_or(0, |watermark| watermark.change());
    let always = config.appendfsync == AppendFsync::Always;
    record_file::cut_torn_tail(&log, always, known, &dir.join(TORN_TAIL)).map(drop)
}

/// Refuses a disk on which nothing would be left for data.
///
/// # Errors
/// One line that says how large it must be.
pub fn check_size(dir: &Path) -> Result<(), StorageError> {
    match disk::room(dir)? {
        (_, bytes) if bytes < DISK_LEAST => {
            Err(StorageError::DiskTooSmall { dir: dir.to_path_buf(), bytes, least: DISK_LEAST })
        }
        _ => Ok(()),
    }
}

/// RocksDB cannot open on a full disk.
fn make_room(dir: &Path, config: &Config) {
    let Ok((free, total)) = disk::room(dir) else { return };
    let limits = DiskLimits::of(config.disk_free_soft, config.disk_free_hard, total);
    if limits.judge(DiskState::Ok, free) != DiskState::Full {
        return;
    }
    tracing::warn!("only {free} bytes are free on the disk of {}: make room", dir.display());
    if let Err(error) = Ballast::of(dir).remove() {
        tracing::warn!("the ballast cannot be removed: {error}");
    }
}

fn put_aside(dir: &Path) -> Result<(), StorageError> {
    if let Some((rejoin, name)) = rejoin::put_aside(dir)? {
        tracing::error!(
            "THE DATA OF THIS NODE CANNOT BE TRUSTED ({}). It was put aside in {}/{name} and is not used; this node asks \
             its cluster to be taken in with an empty disk, under a new replica id",
            rejoin.why,
            dir.display()
        );
    }
    Ok(())
}

/// Looks whether log and rows are whole, as far as that shows without reading all rows, and whether the log is as long
/// as it is known to have been. Changes nothing.
///
/// # Errors
/// What is wrong with them.
pub fn examine(dir: &Path) -> Result<(), BootError> {
    let watermark = Watermark::examine(dir)?;
    let log = LogStore::examine(dir)?;
    if let Some(watermark) = &watermark {
        watermark.check_change(log.as_ref().map_or(0, LogStore::sequence))?;
    }
    let in_log = |error: StorageError| error.in_place(&dir.join("log"));
    let (markers, contents) = match &log {
        Some(log) => {
            let markers = log.install_markers().map_err(in_log)?;
            (markers, log.load(GROUP, LogIndex(u64::MAX)).map_err(in_log)?)
        }
        None => Default::default(),
    };
    if !markers.is_empty() {
        // A snapshot is half in place: the rows are whole when it is finished.
        return Ok(());
    }
    let caches = SharedCaches::new(1 << 20, 1 << 20);
    let applied = match DataStore::examine(dir, GROUP, &caches)? {
        Some(data) => State::applied_of(&data).map_err(|error| error.in_place(&dir.join("data")))?,
        None => LogIndex(0),
    };
    let mismatch = |what: String| Err(BootError::Mismatch { dir: dir.to_path_buf(), what });
    if applied > LogIndex(0) && !contents.meta.contains_key(META_REPLICA) {
        return mismatch(format!("the state ends at {applied}, and the log knows nothing of it"));
    }
    // A log of several begins at 2, and the state before it is nowhere on disk until the first rows are.
    let reach = applied.next().max(FIRST_OF_SEVERAL);
    match contents.first_index {
        Some(first) if first > reach => {
            mismatch(format!("the log starts at {first}, the state ends at {applied}"))
        }
        _ => Ok(()),
    }
}
