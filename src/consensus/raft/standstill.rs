//! The group of a node alone whose disk has no room for a start: it is read, and nothing is written.
//!
//! Everything in the log of a lone voter is committed, and nobody else adds to it. So the rows with the log applied to
//! them are the state that a start would come to, and reads of it are as good as any. Writes, deletions too, have to
//! wait until there is room to write at all; then the process starts over.

use std::path::Path;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::config::Config;
use crate::consensus::Group;
use crate::consensus::MemberInfo;
use crate::consensus::ProposeError;
use crate::consensus::Replicator;
use crate::consensus::ReplySender;
use crate::consensus::Role;
use crate::consensus::Status;
use crate::consensus::claims::Claims;
use crate::consensus::cluster_clock::ClusterClock;
use crate::consensus::raft::applier::apply_one;
use crate::consensus::raft::hub::META_FORMATION;
use crate::consensus::raft::replica::Boot;
use crate::consensus::raft::replica::BootError;
use crate::consensus::raft::replica::META_REPLICA;
use crate::consensus::raft::replica::begin_group;
use crate::machine::entry::Batch;
use crate::state::State;
use crate::storage::DataStore;
use crate::storage::LogStore;
use crate::storage::SharedCaches;
use crate::storage::SharedData;
use crate::storage::Watermark;
use crate::types::GroupId;
use crate::types::LogIndex;
use crate::types::Millis;
use crate::types::NodeId;
use crate::types::Term;

const GROUP: GroupId = GroupId(0);
/// Nothing is written, so this is for blocks that are read.
const CACHE_BYTES: usize = 8 << 20;

/// Reads what is on disk; `None` when there is nothing that could be served.
///
/// # Errors
/// When it is damaged, or a kill left something that has to be mended first.
pub fn read(dir: &Path, config: &Config, clock: &Arc<dyn Clock>) -> Result<Option<Group>, BootError> {
    let Some(log) = LogStore::examine(dir)? else { return Ok(None) };
    let meta = log.load(GROUP, LogIndex(u64::MAX))?.meta;
    let replica = meta.get(META_REPLICA).and_then(|id| id.as_slice().try_into().ok()).map(u64::from_be_bytes);
    let Some(replica) = replica else { return Ok(None) };
    if meta.contains_key(META_FORMATION) {
        // Not all that is in the log of a node with peers is committed.
        return Ok(None);
    }
    let mut state = State::new(0);
    if let Some(data) = DataStore::examine(dir, GROUP, &SharedCaches::new(CACHE_BYTES, CACHE_BYTES))? {
        state = State::load_without_payloads(&data)?;
        let budget = usize::try_from(config.queue_memory).unwrap_or(usize::MAX);
        state.read_cold(Arc::new(SharedData::new(data)), budget);
    }
    if state.membership().is_empty() {
        begin_group(&mut state, config.node_id, replica, None);
    }
    let contents = log.load(GROUP, state.meta().applied.next())?;
    let boot = Boot::repair(dir, replica, &state, contents)?;
    if let Some(watermark) = Watermark::examine(dir)? {
        watermark.check(boot.log_end())?;
    }
    for entry in boot.entries() {
        apply_one(&mut state, entry, None, |_, _| false);
    }
    if let Some(error) = state.take_fault() {
        return Err(error.into());
    }
    if state.databases() == 0 {
        return Ok(None);
    }
    let (term, index) = boot.log_end();
    let clock = Arc::new(ClusterClock::starting_at(boot.last_clock, Arc::clone(clock)));
    let still = Still { node: config.node_id, replica, term, index };
    Ok(Some(Group::new(
        Arc::new(still),
        Arc::new(RwLock::new(state)),
        clock,
        Arc::new(Claims::new(NodeId(0), 0)),
    )))
}

/// Answers reads and refuses everything else.
struct Still {
    node: NodeId,
    replica: u64,
    term: Term,
    index: LogIndex,
}

impl Replicator for Still {
    fn propose(&self, _batch: Batch, reply: ReplySender) -> bool {
        // The connection may be gone; then nobody wants to know.
        let _ = reply.send(Err(ProposeError::NoRoom));
        false
    }

    fn gathering(&self) -> Option<usize> {
        None
    }

    fn sweep(&self) {}

    fn barrier(&self, done: oneshot::Sender<Result<(), ProposeError>>) -> bool {
        // As above.
        let _ = done.send(Ok(()));
        false
    }

    fn may_read(&self) -> bool {
        true
    }

    fn status(&self) -> Status {
        Status {
            replica: self.replica,
            role: Role::Leader,
            term: self.term,
            leader: Some(self.node),
            commit: self.index,
            applied: self.index,
            log_bytes: 0,
            entries_in_flight: 0,
            waiting_bytes: 0,
            proposals: 0,
            proposals_failed: 0,
            log_writes: 0,
            log_write_micros: 0,
            flushed: LogIndex(0),
            leader_changes: 0,
            snapshots_installed: 0,
            verified: None,
        }
    }

    fn leader_silence(&self) -> Option<Millis> {
        Some(Millis(0))
    }

    fn leaderless(&self) -> Option<Millis> {
        Some(Millis(0))
    }

    fn members(&self) -> Vec<MemberInfo> {
        Vec::new()
    }

    fn transfer(&self, _to: Option<NodeId>, done: oneshot::Sender<Result<(), String>>) {
        // As above.
        let _ = done.send(Err("this node has no peers".to_owned()));
    }

    fn make_snapshot(&self) {}
}
