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
use crate::node::cluster;
use crate::state::State;
use crate::storage::DataStore;
use crate::storage::LogStore;
use crate::storage::SharedCaches;
use crate::storage::StorageError;
use crate::storage::Watermark;
use crate::storage::disk;
use crate::storage::disk::Ballast;
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
/// Exit status when what is on disk is not what was written (EX_DATAERR).
const EXIT_DAMAGED: u8 = 65;
/// Exit status when less is on disk than was synced, or when the node gave up its data again and again (EX_NOINPUT).
const EXIT_LOST: u8 = 66;
/// Where the end of a log is kept that was cut off.
const TORN_TAIL: &str = "torn-tail";

/// The exit status that goes with an error of the start.
#[must_use]
pub fn exit_status(error: &anyhow::Error) -> u8 {
    let of_storage = |error: &StorageError| match error {
        error if error.is_loss() => EXIT_LOST,
        error if error.is_damage() => EXIT_DAMAGED,
        _ => 1,
    };
    let statuses = error.chain().filter_map(|cause| {
        if let Some(error) = cause.downcast_ref::<StorageError>() {
            return Some(of_storage(error));
        }
        match cause.downcast_ref::<BootError>()? {
            BootError::Storage(error) => Some(of_storage(error)),
            BootError::Mismatch { .. } => Some(EXIT_DAMAGED),
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
    let has_peers = cluster::has_peers(config);
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
        examined => Ok(examined?),
    }
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
