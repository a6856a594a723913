//! What the system allows the process: file descriptors, as many as clients may come and always enough for the storage,
//! and address space.
//!
//! A node that ran out of descriptors could not open its own tables, and that would be fatal. So the limit is
//! raised at the start, and where it cannot be, fewer clients are let in. Without address space RocksDB and the
//! allocator abort in the middle of the start and say nothing, so a node with little of it does not start.

use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::getrlimit;
use rustix::process::setrlimit;

use crate::config::SharedConfig;

/// What is not a client: tables of the stores (512 + 256 at most), HTTP (128), listeners, logs, pipes.
const RESERVED: u64 = 1_024;

/// Address space of a node that holds nothing (1.9 GB: the allocator reserves a gigabyte, each thread its stack and an
/// arena), with room to begin; and what each thread that serves clients adds.
const ADDRESS_SPACE_MIN: u64 = 2_560 << 20;
const ADDRESS_SPACE_PER_THREAD: u64 = 128 << 20;

/// Looks whether there is address space for a node with so many threads that serve clients.
///
/// # Errors
/// One line, when there is not.
pub fn check_address_space(threads: usize) -> anyhow::Result<()> {
    check_space(getrlimit(Resource::As).current, threads)
}

/// `allowed` is in bytes; `None` is no limit.
fn check_space(allowed: Option<u64>, threads: usize) -> anyhow::Result<()> {
    let wanted = ADDRESS_SPACE_MIN + ADDRESS_SPACE_PER_THREAD * threads as u64;
    match allowed.filter(|allowed| *allowed < wanted) {
        None => Ok(()),
        Some(allowed) => anyhow::bail!(
            "only {} MiB of address space are allowed, and Holdfast reserves {} MiB before it holds anything: raise the \
             limit (ulimit -v), and bound its memory by a cgroup or by maxmemory",
            allowed >> 20,
            wanted >> 20
        ),
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_address_space_is_one_line_with_what_is_wanted() {
        assert!(check_space(None, 64).is_ok());
        assert!(check_space(Some(2_688 << 20), 1).is_ok());
        let refusal = check_space(Some(2_687 << 20), 1).unwrap_err().to_string();
        assert!(refusal.contains("only 2687 MiB") && refusal.contains("2688 MiB"), "{refusal}");
        assert!(check_space(Some(2_688 << 20), 2).is_err());
    }
}
