//! What the HTTP port tells about this node: probes, and the metrics of a moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use metrics::counter;
use metrics::gauge;

use crate::admin::Probes;
use crate::commands::guards;
use crate::commands::guards::REJECTED_TYPES;
use crate::consensus::Role;
use crate::server::Services;
use crate::server::disk::DiskGate;
use crate::server::members::Member;
use crate::server::members::members;
use crate::server::stats;
use crate::state::State;
use crate::state::locks::Claim;
use crate::state::queues::Counters;
use crate::state::queues::Queue;
use crate::state::queues::StateName;
use crate::storage::disk::DiskState;
use crate::telemetry::metrics as names;
use crate::telemetry::metrics::Metrics;
use crate::types::ClusterTime;
use crate::types::Millis;
use crate::types::NodeId;

/// Apply may stand still for so long, with work to do, before the process counts as broken.
const APPLY_STUCK_MS: u64 = 10_000;
/// A leader may be silent for so long, or three heartbeats if that is more, while requests are welcome here.
const READY_SILENCE_MAX: Millis = Millis(1_000);
/// And so many entries may wait to be applied here.
const READY_LAG_MAX: u64 = 10_000;

/// The callbacks of the HTTP port.
pub fn probes(services: Arc<Services>, metrics: Metrics) -> Probes {
    let [health, ready, leader] = [(); 3].map(|()| Arc::clone(&services));
    let progress = Progress::default();
    Probes {
        health: Box::new(move || progress.check(&health)),
        ready: Box::new(move |write| check_ready(&ready, write)),
        leader: Box::new(move || check_leader(&leader)),
        metrics: Box::new(move || {
            sample(&services);
            metrics.render()
        }),
    }
}

/// When apply was last seen to move.
#[derive(Default)]
struct Progress {
    applied: AtomicU64,
    since_ms: AtomicU64,
}

impl Progress {
    /// Healthy: nothing is to be applied, or something was within the last ten seconds. Independent of
    /// quorum, load and disk space.
    fn check(&self, services: &Services) -> Result<(), String> {
        let status = services.group.status();
        let now = services.clock.monotonic().0 / 1_000_000;
        let moved = self.applied.swap(status.applied.0, Ordering::AcqRel) != status.applied.0;
        if moved || status.applied >= status.commit {
            self.since_ms.store(now, Ordering::Release);
            return Ok(());
        }
        let stuck = now.saturating_sub(self.since_ms.load(Ordering::Acquire));
        if stuck > APPLY_STUCK_MS {
            return Err(format!("apply has stood at {} for {stuck} ms", status.applied));
        }
        Ok(())
    }
}

/// Why this node can serve nobody, whatever the others do.
fn check_own(services: &Services) -> Vec<String> {
    let mut reasons = Vec::new();
    if services.shutdown.is_requested() {
        reasons.push("the node is shutting down".to_owned());
    }
    if services.is_loading() {
        reasons.push("the node is loading its data, or waits for the other nodes".to_owned());
    }
    if let Some(index) = services.diverged_at() {
        reasons.push(format!("this node's state differs from the others' at index {index}"));
    }
    reasons
}

/// How long a leader may be silent. A leader without a majority counts as silent, so one that is heard has a quorum,
/// or had it a moment ago.
fn silence_max(services: &Services) -> Millis {
    let heartbeat = services.config.get().heartbeat_interval;
    READY_SILENCE_MAX.max(Millis(heartbeat.0.saturating_mul(3)))
}

/// Ready: a leader is heard, and what it does is applied here soon. Any node takes writes, so they ask for no more.
fn check_ready(services: &Services, write: bool) -> Result<(), Vec<String>> {
    let mut reasons = check_own(services);
    if services.disk.state() == DiskState::Full {
        reasons.push("the disk of this node is full".to_owned());
    }
    if write && services.disk_gate() != DiskGate::Open {
        reasons.push("the disks of the cluster have no room for more data".to_owned());
    }
    let status = services.group.status();
    if status.leader.is_none() {
        reasons.push("no leader is known".to_owned());
    }
    if services.group.members().is_empty() {
        if services.group.try_read().is_none() {
            reasons.push("the log is being replayed".to_owned());
        } else if write && status.role != Role::Leader {
            reasons.push("this node does not lead".to_owned());
        }
    } else {
        match services.group.leader_silence() {
            None => reasons.push("no leader was heard".to_owned()),
            Some(silence) if silence > silence_max(services) => {
                reasons.push(format!("no leader with a majority was heard for {} ms", silence.0));
            }
            Some(_) => {}
        }
        let lag = status.commit.0.saturating_sub(status.applied.0);
        if lag > READY_LAG_MAX {
            reasons.push(format!("{lag} entries are committed and not applied here"));
        }
    }
    if reasons.is_empty() { Ok(()) } else { Err(reasons) }
}

/// Leads, and can prove it: by its lease, or because a majority was just heard.
fn check_leader(services: &Services) -> Result<(), String> {
    if let Some(reason) = check_own(services).into_iter().next() {
        return Err(reason);
    }
    if services.group.status().role != Role::Leader {
        return Err("this node does not lead".to_owned());
    }
    match services.group.leader_silence() {
        Some(silence) if silence <= silence_max(services) => Ok(()),
        _ => Err("this node leads, and no majority was heard of late".to_owned()),
    }
}

/// Copies the counters of all parts into the metrics.
fn sample(services: &Services) {
    let status = services.group.status();
    gauge!(names::RAFT_TERM).set(status.term.0 as f64);
    gauge!(names::RAFT_IS_LEADER).set(f64::from(u8::from(status.role == Role::Leader)));
    counter!(names::RAFT_LEADER_CHANGES_TOTAL).absolute(status.leader_changes);
    counter!(names::RAFT_SNAPSHOTS_INSTALLED_TOTAL).absolute(status.snapshots_installed);
    let lag = status.commit.0.saturating_sub(status.applied.0);
    gauge!(names::RAFT_APPLY_LAG_ENTRIES).set(lag as f64);
    gauge!(names::RAFT_STATE_DIVERGED).set(f64::from(u8::from(services.diverged_at().is_some())));
    gauge!(names::RAFT_COMMIT_INDEX).set(status.commit.0 as f64);
    gauge!(names::RAFT_APPLIED_INDEX).set(status.applied.0 as f64);
    counter!(names::RAFT_PROPOSALS_TOTAL).absolute(status.proposals);
    counter!(names::RAFT_PROPOSALS_FAILED_TOTAL).absolute(status.proposals_failed);
    gauge!(names::RAFT_PROPOSALS_PENDING).set(status.entries_in_flight as f64);
    gauge!(names::RAFT_LOG_BYTES).set(status.log_bytes as f64);
    gauge!(names::DATA_FLUSHED_INDEX).set(status.flushed.0 as f64);
    gauge!(names::DISK_FREE_BYTES).set(services.disk.free() as f64);
    gauge!(names::DISK_TOTAL_BYTES).set(services.disk.total() as f64);
    gauge!(names::DISK_BALLAST_BYTES).set(services.disk.ballast() as f64);
    gauge!(names::DISK_STATE).set(f64::from(services.disk.state().code()));
    gauge!(names::DISK_GATE).set(f64::from(services.disk_gate().code()));
    sample_peers(services);
    sample_clients(services);
    sample_state(services);
}

fn sample_peers(services: &Services) {
    let own = services.config.get().node_id;
    // Of two replicas of a node the later one is alive.
    let peers: BTreeMap<NodeId, Member> =
        members(services).into_iter().map(|member| (member.node, member)).collect();
    for member in peers.values().filter(|member| member.node != own) {
        let peer = member.node.to_string();
        gauge!(names::PEER_CONNECTED, "peer" => peer.clone()).set(f64::from(u8::from(member.is_connected())));
        let Some(info) = &member.info else { continue };
        if let Some(rtt) = info.rtt_us {
            gauge!(names::PEER_RTT_SECONDS, "peer" => peer.clone()).set(rtt as f64 / 1e6);
        }
        let Some(link) = info.link else { continue };
        for (direction, bytes) in [("in", link.bytes_in), ("out", link.bytes_out)] {
            counter!(names::PEER_BYTES_TOTAL, "peer" => peer.clone(), "direction" => direction)
                .absolute(bytes);
        }
        counter!(names::PEER_RECONNECTS_TOTAL, "peer" => peer.clone()).absolute(link.reconnects);
        gauge!(names::PEER_QUEUED_BYTES, "peer" => peer).set(link.queued_bytes as f64);
    }
}

fn sample_clients(services: &Services) {
    gauge!(names::SERVER_CONNECTIONS).set(services.clients.len() as f64);
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    counter!(names::SERVER_CONNECTIONS_TOTAL).absolute(read(&services.stats.connections));
    counter!(names::SERVER_REJECTED_CONNECTIONS_TOTAL).absolute(read(&services.stats.rejected_connections));
    for (reason, count) in [
        ("maxmemory-clients", &services.stats.evicted_clients),
        ("client-output-buffer-limit", &services.stats.output_limit_disconnections),
        ("login-timeout", &services.stats.login_timeouts),
        ("request-stall-timeout", &services.stats.stalled_requests),
    ] {
        counter!(names::SERVER_CLOSED_CLIENTS_TOTAL, "reason" => reason).absolute(read(count));
    }
    gauge!(names::SERVER_CLIENT_MEMORY_BYTES).set(read(&services.client_memory) as f64);
    counter!(names::AUTH_FAILURES_TOTAL).absolute(read(&services.stats.auth_failures));
    for (row, numbers) in stats::rows().iter().zip(services.stats.commands_by_row.iter()) {
        let calls = read(&numbers.calls);
        if calls > 0 {
            counter!(names::COMMANDS_TOTAL, "cmd" => row.name).absolute(calls);
        }
    }
    let errors = services.stats.errors_by_code();
    counter!(names::INDOUBT_TOTAL).absolute(errors.get("INDOUBT").copied().unwrap_or(0));
    for (code, count) in errors {
        counter!(names::ERRORS_TOTAL, "code" => code).absolute(count);
    }
}

fn sample_state(services: &Services) {
    let state = services.group.read_applied();
    for db in 0..state.databases() {
        let number = u8::try_from(db).unwrap_or(u8::MAX);
        let keys = state.database(number).len();
        if db == 0 || keys > 0 {
            gauge!(names::KEYSPACE_KEYS, "db" => db.to_string()).set(keys as f64);
            gauge!(names::KEYSPACE_EXPIRING_KEYS, "db" => db.to_string())
                .set(state.expiring_keys(number) as f64);
        }
    }
    counter!(names::KEYSPACE_EXPIRED_TOTAL).absolute(state.keys_expired());
    let locks = state.lock_figures();
    gauge!(names::LOCKS_HELD, "mode" => "exclusive")
        .set((state.locks_held() as u64 - locks.held_shared) as f64);
    gauge!(names::LOCKS_HELD, "mode" => "shared").set(locks.held_shared as f64);
    gauge!(names::LOCK_WAITERS).set(state.waits().len() as f64);
    counter!(names::LOCK_EXPIRED_TOTAL).absolute(locks.expired);
    counter!(names::LOCK_KILLED_TOTAL).absolute(locks.killed);
    counter!(names::DEADLOCKS_TOTAL).absolute(locks.deadlocks);
    counter!(names::LEASE_GRACE_APPLIED_TOTAL).absolute(locks.graces);
    for (kind, count) in REJECTED_TYPES.into_iter().zip(guards::rejected()) {
        counter!(names::FENCE_REJECTED_TOTAL, "type" => kind).absolute(count);
    }
    let is_own = |claim: &&Claim| services.group.claims().is_own(&claim.origin);
    let for_locks = state.waits().iter().flat_map(|(_, wait)| wait.claims()).filter(is_own).count();
    let for_messages = state.pop_waits().iter().map(|wait| &wait.claim).filter(is_own).count();
    gauge!(names::BLOCKED_CLIENTS, "kind" => "lock").set(for_locks as f64);
    gauge!(names::BLOCKED_CLIENTS, "kind" => "queue").set(for_messages as f64);
    gauge!(names::ONCE_ENTRIES).set(state.once_len() as f64);
    gauge!(names::ONCE_REPLY_BYTES).set(state.once_reply_bytes() as f64);
    sample_queues(&state, services);
}

/// What a queue's metrics tell.
#[derive(Default)]
struct QueueFigures {
    messages: [usize; 4],
    oldest: [Option<ClusterTime>; 2],
    counters: Counters,
}

impl QueueFigures {
    fn add(&mut self, queue: &Queue) {
        for (sum, (_, state)) in self.messages.iter_mut().zip(StateName::ALL) {
            *sum += queue.count(state);
        }
        for (oldest, at) in self.oldest.iter_mut().zip([queue.oldest_ready(), queue.oldest_leased()]) {
            *oldest = [*oldest, at].into_iter().flatten().min();
        }
        self.counters = self.counters.plus(queue.counters());
    }

    fn show(&self, queue: &str, now: ClusterTime) {
        let label = || queue.to_owned();
        for (count, (state, _)) in self.messages.iter().zip(StateName::ALL) {
            gauge!(names::QUEUE_MESSAGES, "queue" => label(), "state" => state.to_lowercase())
                .set(*count as f64);
        }
        for (oldest, state) in self.oldest.iter().zip(["ready", "leased"]) {
            let age = oldest.map_or(0.0, |oldest| oldest.until(now).0 as f64 / 1e3);
            gauge!(names::QUEUE_OLDEST_AGE_SECONDS, "queue" => label(), "state" => state).set(age);
        }
        let counters = &self.counters;
        for (name, count) in [
            (names::QUEUE_PUSHED_TOTAL, counters.pushed),
            (names::QUEUE_DELIVERED_TOTAL, counters.delivered),
            (names::QUEUE_REDELIVERED_TOTAL, counters.redelivered),
            (names::QUEUE_ACKED_TOTAL, counters.acked),
            (names::QUEUE_NACKED_TOTAL, counters.nacked),
            (names::QUEUE_DEAD_TOTAL, counters.died),
            (names::QUEUE_DUPLICATE_TOTAL, counters.duplicates),
            (names::QUEUE_LEASE_EXPIRED_TOTAL, counters.expired_leases),
        ] {
            counter!(name, "queue" => label()).absolute(count);
        }
    }
}

/// The first queues that were created by their names, all others together. One that is at rest shows that it is empty,
/// and its counters go on when it comes back.
fn sample_queues(state: &State, services: &Services) {
    let named = services.config.get().metrics_max_queues;
    let now = state.meta().clock;
    let (mut others, mut count) = (None, 0);
    for ((db, key), queue) in state.known_queues() {
        count += 1;
        if count <= named {
            let mut figures = QueueFigures::default();
            figures.add(queue);
            let name = String::from_utf8_lossy(key);
            figures.show(&if *db == 0 { name.into_owned() } else { format!("{db}/{name}") }, now);
        } else {
            others.get_or_insert_with(QueueFigures::default).add(queue);
        }
    }
    gauge!(names::QUEUES).set(state.queues().count() as f64);
    if let Some(others) = others {
        others.show("_other", now);
    }
}
