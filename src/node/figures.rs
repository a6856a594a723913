//! What the HTTP port tells about this node: probes, and the metrics of a moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use metrics::counter;
use metrics::gauge;

use crate::admin::Probes;
use crate::consensus::Role;
use crate::server::Services;
use crate::server::stats;
use crate::telemetry::metrics as names;
use crate::telemetry::metrics::Metrics;

/// Apply may stand still for so long, with work to do, before the process counts as broken.
const APPLY_STUCK_MS: u64 = 10_000;

/// The callbacks of the HTTP port.
pub fn probes(services: Arc<Services>, metrics: Metrics) -> Probes {
    let (health, ready) = (Arc::clone(&services), Arc::clone(&services));
    let progress = Progress::default();
    Probes {
        health: Box::new(move || progress.check(&health)),
        ready: Box::new(move |write| check_ready(&ready, write)),
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

fn check_ready(services: &Services, write: bool) -> Result<(), Vec<String>> {
    let mut reasons = Vec::new();
    if services.shutdown.is_requested() {
        reasons.push("the node is shutting down".to_owned());
    }
    let status = services.group.status();
    if status.leader.is_none() {
        reasons.push("no leader is known".to_owned());
    }
    if services.group.try_read().is_none() {
        reasons.push("the log is being replayed".to_owned());
    } else if write && status.role != Role::Leader {
        reasons.push("this node does not lead".to_owned());
    }
    if reasons.is_empty() { Ok(()) } else { Err(reasons) }
}

/// Copies the counters of all parts into the metrics.
fn sample(services: &Services) {
    let status = services.group.status();
    gauge!(names::RAFT_TERM).set(status.term.0 as f64);
    gauge!(names::RAFT_IS_LEADER).set(f64::from(u8::from(status.role == Role::Leader)));
    gauge!(names::RAFT_COMMIT_INDEX).set(status.commit.0 as f64);
    gauge!(names::RAFT_APPLIED_INDEX).set(status.applied.0 as f64);
    counter!(names::RAFT_PROPOSALS_TOTAL).absolute(status.proposals);
    counter!(names::RAFT_PROPOSALS_FAILED_TOTAL).absolute(status.proposals_failed);
    gauge!(names::RAFT_PROPOSALS_PENDING).set(status.entries_in_flight as f64);
    gauge!(names::RAFT_LOG_BYTES).set(status.log_bytes as f64);
    gauge!(names::DATA_FLUSHED_INDEX).set(status.flushed.0 as f64);
    gauge!(names::DISK_FREE_BYTES).set(free_bytes(&services.config.get().dir) as f64);
    sample_clients(services);
    sample_state(services);
}

fn sample_clients(services: &Services) {
    gauge!(names::SERVER_CONNECTIONS).set(services.clients.len() as f64);
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    counter!(names::SERVER_CONNECTIONS_TOTAL).absolute(read(&services.stats.connections));
    counter!(names::SERVER_REJECTED_CONNECTIONS_TOTAL).absolute(read(&services.stats.rejected_connections));
    for (row, numbers) in stats::rows().iter().zip(services.stats.commands_by_row.iter()) {
        let calls = read(&numbers.calls);
        if calls > 0 {
            counter!(names::COMMANDS_TOTAL, "cmd" => row.name).absolute(calls);
        }
    }
    for (code, count) in services.stats.errors_by_code() {
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
    gauge!(names::LOCKS_HELD, "mode" => "exclusive").set(state.locks_held() as f64);
    let mut messages = BTreeMap::from([("ready", 0), ("leased", 0)]);
    let mut queues = 0;
    for (_, queue) in state.queues() {
        queues += 1;
        *messages.entry("ready").or_default() += queue.ready_count();
        *messages.entry("leased").or_default() += queue.leased_count();
    }
    gauge!(names::QUEUES).set(f64::from(queues));
    for (name, count) in messages {
        gauge!(names::QUEUE_MESSAGES, "state" => name).set(count as f64);
    }
}

/// Bytes free for this user on the data directory's file system; 0 when that cannot be told.
pub fn free_bytes(dir: &std::path::Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(0, |fs| fs.f_bavail.saturating_mul(fs.f_frsize))
}
