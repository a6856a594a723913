//! File descriptors: as many as clients may come, and always enough for the storage.
//!
//! A node that ran out of them could not open its own tables, and that would be fatal. So the limit is
//! raised at the start, and where it cannot be, fewer clients are let in.

use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::getrlimit;
use rustix::process::setrlimit;

use crate::config::SharedConfig;

/// What is not a client: tables of the stores (512 + 256 at most), HTTP (128), listeners, logs, pipes.
const RESERVED: u64 = 1_024;

/// Raises the limit of open files to what `maxclients` wants, or lowers `maxclients` to what the limit allows.
///
/// # Errors
/// One line, when the limit leaves no room for any client.
pub fn make_room_for_clients(config: &SharedConfig) -> anyhow::Result<()> {
    let wanted = config.get().max_clients as u64 + RESERVED;
    let allowed = raise_to(wanted);
    if allowed >= wanted {
        return Ok(());
    }
    let clients = allowed.saturating_sub(RESERVED);
    if clients == 0 {
        anyhow::bail!(
            "only {allowed} files may be open, and Holdfast wants {RESERVED} for itself: raise the limit (ulimit -n)"
        );
    }
    tracing::warn!(
        "only {allowed} files may be open: maxclients is {clients} instead of {}. Raise the limit (ulimit -n) for more",
        config.get().max_clients
    );
    config.config_set(&[("maxclients", &clients.to_string())])?;
    Ok(())
}

/// Gives the limit that holds afterwards.
fn raise_to(wanted: u64) -> u64 {
    let now = getrlimit(Resource::Nofile);
    let current = now.current.unwrap_or(u64::MAX);
    if current >= wanted {
        return current;
    }
    let within = now.maximum.unwrap_or(u64::MAX).min(wanted);
    // Beyond the hard limit only a privileged process may go.
    let tries = [(wanted, Some(wanted)), (within, now.maximum)];
    for (current, maximum) in tries {
        if setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum }).is_ok() {
            return current;
        }
    }
    current
}
