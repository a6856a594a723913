//! What the threads that write and serve nobody do while the disk is full: they wait, as long as nothing is lost by it.
//!
//! A write that finds no room was not done. RocksDB stops the store, and takes it up by itself, a few seconds after there
//! is room again: what was not written before goes into new files, and what was asked for is asked for once more. Reads
//! go on meanwhile. Only a store that does not come back although there is room ends the process.

use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::storage::StorageError;
use crate::storage::disk;
use crate::storage::geometry::Geometry;

/// How often it is tried again.
const PAUSE: Duration = Duration::from_millis(100);
/// So often it is tried in vain with room on the disk: half a minute.
const TRIES_WITH_ROOM: u32 = 300;

/// Does this until there was room for it, or until `is_over`, on the disk of `dir`.
///
/// # Errors
/// Any other error; the want of room when it is over, or when there is room and the store does not see it.
pub fn wait_for_room<T>(
    dir: &Path,
    is_over: &dyn Fn() -> bool,
    mut work: impl FnMut() -> Result<T, StorageError>,
) -> Result<T, StorageError> {
    let mut tries_left = TRIES_WITH_ROOM;
    let mut has_waited = false;
    loop {
        match work() {
            Err(error) if error.is_no_space() && tries_left > 0 && !is_over() => {
                if !has_waited {
                    tracing::error!("{error}: nothing is written until there is room");
                }
                has_waited = true;
                thread::sleep(PAUSE);
                if disk::room(dir).is_ok_and(|(free, total)| free >= 2 * Geometry::of(total).start) {
                    tries_left -= 1;
                }
            }
            done => {
                if has_waited && done.is_ok() {
                    tracing::info!("there is room, and what waited for it is written");
                }
                return done;
            }
        }
    }
}
