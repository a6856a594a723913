//! The end of a replica whose data cannot be trusted, and the begin of the next one: the process starts over in place.
//!
//! ```text
//! order to rejoin, synced ─► this program again, with the same arguments and process id ─► data put aside ─► rejoin
//! ```
//! The program is replaced at once, as a kill would end it: nothing of this replica's may be written or said any more.
//! Sockets and files are closed by the system.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::consensus::raft::replica::stop_process;
use crate::storage::rejoin;

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
    let mut arguments = std::env::args_os();
    let name = arguments.next();
    let error = match std::env::current_exe() {
        Ok(program) => Command::new(program).arg0(name.unwrap_or_default()).args(arguments).exec(),
        Err(error) => error,
    };
    // Whoever starts it next does what this process could not.
    stop_process("this node has to start over and cannot do so by itself: start it again", &error);
}
