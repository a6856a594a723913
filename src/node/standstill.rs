//! A start on a disk that has no room for one: the node waits, and serves what it can without writing.
//!
//! ```text
//! room? ── yes ──► the start goes on
//!   └─ no ─► ballast off ─► room? ── yes ──► the start goes on
//!                             └─ no ─┬─ a node alone: reads are served ── room ──► the process starts over
//!                                    └─ a node with peers: LOADING      ── room ──► the start goes on
//! ```

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::clock::Clock;
use crate::config::Config;
use crate::config::SharedConfig;
use crate::consensus::Group;
use crate::consensus::raft::replica::BootError;
use crate::consensus::raft::restart;
use crate::consensus::raft::standstill;
use crate::node::adopt_cluster_settings;
use crate::node::disk;
use crate::node::recovery;
use crate::server::Services;
use crate::storage::LogStore;
use crate::storage::StorageError;
use crate::storage::damage;
use crate::storage::disk::Ballast;
use crate::storage::disk::room;
use crate::storage::geometry::Geometry;
use crate::storage::rejoin;
use crate::telemetry::process;

/// How often it is looked whether there is room.
const LOOK: Duration = Duration::from_millis(100);

/// Comes back when there is room for a start.
///
/// # Errors
/// When the system does not say how much room there is, or gives no thread.
pub fn wait_for_room(
    dir: &Path,
    config: &SharedConfig,
    clock: &Arc<dyn Clock>,
    services: &Arc<Services>,
) -> anyhow::Result<()> {
    if missing(dir)? == 0 {
        return Ok(());
    }
    Ballast::of(dir).remove()?;
    let missing_now = missing(dir)?;
    if missing_now == 0 {
        return Ok(());
    }
    tracing::error!(
        "the disk of {} is too full to start on: {missing_now} bytes more must be free. This node waits for them",
        dir.display()
    );
    if !config.get().has_peers() {
        serve_reads(dir, config, clock, services)?;
    }
    while missing(dir)? > 0 {
        if services.shutdown.is_requested() {
            tracing::info!("Told to stop before there was room");
            process::exit_now(0);
        }
        thread::sleep(LOOK);
    }
    tracing::info!("there is room to start");
    if services.group.is_set() {
        restart::start_over();
    }
    Ok(())
}

/// Bytes that must be free for the stores to be opened, beyond those that are.
fn missing(dir: &Path) -> Result<u64, StorageError> {
    let (free, total) = room(dir)?;
    // New files of records, and a little for what is small.
    let beside = Geometry::of(total).log_memtable / 4;
    Ok(LogStore::bytes_to_open(dir)?.saturating_add(beside).saturating_sub(free))
}

/// What is on disk, if a start would serve it; one that has more to look into is waited for.
fn trusted(dir: &Path, config: &Config, clock: &Arc<dyn Clock>) -> Result<Option<Group>, BootError> {
    if rejoin::read(dir)?.is_some() || damage::is_noted(dir)? {
        return Ok(None);
    }
    recovery::examine(dir)?;
    standstill::read(dir, config, clock)
}

fn serve_reads(
    dir: &Path,
    config: &SharedConfig,
    clock: &Arc<dyn Clock>,
    services: &Arc<Services>,
) -> anyhow::Result<()> {
    let group = match trusted(dir, &config.get(), clock) {
        Ok(Some(group)) => group,
        Ok(None) => return Ok(()),
        Err(error) => {
            // The start will say so again, or mend it.
            tracing::error!("nothing can be served until then: {error}");
            return Ok(());
        }
    };
    adopt_cluster_settings(config, &group);
    services.group.set(group);
    disk::watch(Arc::clone(services), dir)?;
    services.set_loaded();
    tracing::info!("Reads are served until then");
    Ok(())
}
