//! The end of a replica whose data cannot be trusted, and the begin of the next one: the process starts over in place.
//!
//! ```text
//! damage ─┬─ a node with peers: order to rejoin, synced ─► this program again, with the same arguments and process id
//!         │                                               ─► data put aside ─► rejoin
//!         └─ a node alone: noted in the directory ─► exit 65, or 66; the next start reads all data before it uses it
//! no room ── this program again; a start waits for room, and a node alone serves reads meanwhile
//! ```
//! The program is replaced at once, as a kill would end it: nothing of this replica's may be written or said any more.
//! Sockets and files are closed by the system.

use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use crate::consensus::raft::replica::stop_process;
use crate::storage::StorageError;
use crate::storage::damage;
use crate::storage::rejoin;
use crate::telemetry::process;

/// Exit status when what is on disk is not what was written (EX_DATAERR).
pub const EXIT_DAMAGED: u8 = 65;
/// Exit status when less is on disk than was synced, or when the node gave up its data again and again (EX_NOINPUT).
pub const EXIT_LOST: u8 = 66;

/// What this process works on. A process has one data directory, and its end is the process's.
static GROUND: OnceLock<Ground> = OnceLock::new();

struct Ground {
    dir: PathBuf,
    has_peers: bool,
}

/// Says once which directory this process's data is in, and whether others have it too.
pub fn stand_on(dir: &Path, has_peers: bool) {
    GROUND.get_or_init(|| Ground { dir: dir.to_path_buf(), has_peers });
}

/// The exit status that says what is wrong with the data; `None` for an error that is no damage.
#[must_use]
pub fn exit_status(error: &StorageError) -> Option<u8> {
    match error {
        error if error.is_loss() => Some(EXIT_LOST),
        error if error.is_damage() => Some(EXIT_DAMAGED),
        _ => None,
    }
}

/// The end of a node whose store failed. Damage ends the replica, or is a person's to look at; after anything else what
/// is on disk is unknown, and the next start sees what it is. If only room was wanting, that start is at once.
pub fn stop_on(what: &str, error: &StorageError) -> ! {
    let Some(ground) = GROUND.get() else { stop_process(what, error) };
    if error.is_no_space() && !cfg!(feature = "sim") {
        tracing::error!("{what}: {error}. The node starts over; what it had not answered yet is unknown");
        start_over();
    }
    let Some(status) = exit_status(error) else { stop_process(what, error) };
    let error = error.again().in_place(&ground.dir);
    if ground.has_peers {
        rejoin(&ground.dir, &format!("{what}: {error}"));
    }
    // Without the note the next start would serve until somebody reads the same place again.
    if let Err(trouble) = damage::note(&ground.dir, &error.to_string()) {
        tracing::warn!("the damage cannot be noted: {trouble}");
    }
    tracing::error!("{what}: {error}");
    eprintln!("holdfast: fatal: {what}: {error}");
    process::exit_now(i32::from(status));
}

/// Gives up this replica and its data: the node joins its cluster again under a new replica id. `why` is one line.
pub fn rejoin(dir: &Path, why: &str) -> ! {
    if cfg!(feature = "sim") {
        // A simulated node has no process of its own.
        stop_process("this replica gives up its data", &why);
    }
    if let Err(error) = rejoin::order(dir, why) {
        stop_process("this node's data cannot be trusted, and that could not be noted", &error);
    }
    tracing::error!(
        "{why}: this node starts over, puts the data in {} aside and joins its cluster again under a new replica id",
        dir.display()
    );
    start_over()
}

/// Begins this process anew, as if it had been killed and started.
pub fn start_over() -> ! {
    let mut arguments = std::env::args_os();
    let name = arguments.next();
    let replaced: std::io::Result<Infallible> = std::env::current_exe()
        .and_then(|program| Err(Command::new(program).arg0(name.unwrap_or_default()).args(arguments).exec()));
    let Err(error) = replaced;
    // Whoever starts it next does what this process could not.
    stop_process("this node has to start over and cannot do so by itself: start it again", &error);
}
