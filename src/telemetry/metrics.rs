//! Every metric once: its name, kind, unit and what it says.
//!
//! A recorder call costs a look-up by name, so the way of a command never makes one. Modules count in atomics of
//! their own, and whoever answers a scrape copies them here (`gauge!(RAFT_TERM).set(…)`,
//! `counter!(COMMANDS_TOTAL, "cmd" => name).absolute(…)`); only what happens once a batch, such as a sync of the
//! log, is recorded as it happens. Labels have few values, and never a key's name.

use std::io;
use std::thread;
use std::time::Duration;

use metrics_exporter_prometheus::Matcher;
use metrics_exporter_prometheus::PrometheusBuilder;
use metrics_exporter_prometheus::PrometheusHandle;
use metrics_util::MetricKindMask;
use thiserror::Error;

use crate::telemetry::process;

/// How a metric moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while the process lives; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution, in buckets.
    Histogram,
}

/// One metric as `/metrics` shows it.
#[derive(Clone, Copy, Debug)]
pub struct MetricSpec {
    pub name: &'static str,
    pub kind: Kind,
    /// The base unit: `seconds`, `bytes`, `messages` …
    pub unit: &'static str,
    /// The labels it comes with; empty for most.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
}

const fn counter(name: &'static str, unit: &'static str, help: &'static str) -> MetricSpec {
    MetricSpec { name, kind: Kind::Counter, unit, labels: &[], help }
}

const fn gauge(name: &'static str, unit: &'static str, help: &'static str) -> MetricSpec {
    MetricSpec { name, kind: Kind::Gauge, unit, labels: &[], help }
}

const fn histogram(name: &'static str, unit: &'static str, help: &'static str) -> MetricSpec {
    MetricSpec { name, kind: Kind::Histogram, unit, labels: &[], help }
}

impl MetricSpec {
    const fn by(self, labels: &'static [&'static str]) -> MetricSpec {
        MetricSpec { labels, ..self }
    }
}

pub const RAFT_TERM: &str = "holdfast_raft_term";
pub const RAFT_IS_LEADER: &str = "holdfast_raft_is_leader";
pub const RAFT_LEADER_CHANGES_TOTAL: &str = "holdfast_raft_leader_changes_total";
pub const RAFT_COMMIT_INDEX: &str = "holdfast_raft_commit_index";
pub const RAFT_APPLIED_INDEX: &str = "holdfast_raft_applied_index";
pub const RAFT_APPLY_LAG_ENTRIES: &str = "holdfast_raft_apply_lag_entries";
pub const RAFT_SNAPSHOTS_INSTALLED_TOTAL: &str = "holdfast_raft_snapshots_installed_total";
pub const RAFT_STATE_DIVERGED: &str = "holdfast_raft_state_diverged";
pub const RAFT_PROPOSALS_TOTAL: &str = "holdfast_raft_proposals_total";
pub const RAFT_PROPOSALS_FAILED_TOTAL: &str = "holdfast_raft_proposals_failed_total";
pub const RAFT_PROPOSALS_PENDING: &str = "holdfast_raft_proposals_pending";
pub const RAFT_FSYNC_SECONDS: &str = "holdfast_raft_fsync_seconds";
pub const RAFT_LOG_BYTES: &str = "holdfast_raft_log_bytes";

pub const PEER_CONNECTED: &str = "holdfast_peer_connected";
pub const PEER_RTT_SECONDS: &str = "holdfast_peer_rtt_seconds";
pub const PEER_BYTES_TOTAL: &str = "holdfast_peer_bytes_total";
pub const PEER_RECONNECTS_TOTAL: &str = "holdfast_peer_reconnects_total";
pub const PEER_QUEUED_BYTES: &str = "holdfast_peer_queued_bytes";

pub const PROCESS_CPU_SECONDS_TOTAL: &str = "holdfast_process_cpu_seconds_total";
pub const PROCESS_RESIDENT_MEMORY_BYTES: &str = "holdfast_process_resident_memory_bytes";
pub const PROCESS_VIRTUAL_MEMORY_BYTES: &str = "holdfast_process_virtual_memory_bytes";
pub const PROCESS_OPEN_FDS: &str = "holdfast_process_open_fds";
pub const PROCESS_MAX_FDS: &str = "holdfast_process_max_fds";
pub const PROCESS_START_TIME_SECONDS: &str = "holdfast_process_start_time_seconds";

pub const DISK_FREE_BYTES: &str = "holdfast_disk_free_bytes";
pub const DISK_TOTAL_BYTES: &str = "holdfast_disk_total_bytes";
pub const DISK_BALLAST_BYTES: &str = "holdfast_disk_ballast_bytes";
pub const DISK_STATE: &str = "holdfast_disk_state";
pub const DISK_GATE: &str = "holdfast_disk_gate";
pub const DATA_FLUSHED_INDEX: &str = "holdfast_data_flushed_index";

pub const SERVER_CONNECTIONS: &str = "holdfast_server_connections";
pub const SERVER_CONNECTIONS_TOTAL: &str = "holdfast_server_connections_total";
pub const SERVER_REJECTED_CONNECTIONS_TOTAL: &str = "holdfast_server_rejected_connections_total";
pub const SERVER_CLOSED_CLIENTS_TOTAL: &str = "holdfast_server_closed_clients_total";
pub const SERVER_CLIENT_MEMORY_BYTES: &str = "holdfast_server_client_memory_bytes";
pub const AUTH_FAILURES_TOTAL: &str = "holdfast_auth_failures_total";
pub const COMMANDS_TOTAL: &str = "holdfast_commands_total";
pub const ERRORS_TOTAL: &str = "holdfast_errors_total";
pub const INDOUBT_TOTAL: &str = "holdfast_indoubt_total";

pub const KEYSPACE_KEYS: &str = "holdfast_keyspace_keys";
pub const KEYSPACE_EXPIRING_KEYS: &str = "holdfast_keyspace_expiring_keys";
pub const KEYSPACE_EXPIRED_TOTAL: &str = "holdfast_keyspace_expired_total";
pub const KEYSPACE_BYTES: &str = "holdfast_keyspace_bytes";
pub const LOCKS_HELD: &str = "holdfast_locks_held";
pub const LOCK_WAITERS: &str = "holdfast_lock_waiters";
pub const LOCK_WAIT_SECONDS: &str = "holdfast_lock_wait_seconds";
pub const LOCK_HOLD_SECONDS: &str = "holdfast_lock_hold_seconds";
pub const LOCK_EXPIRED_TOTAL: &str = "holdfast_lock_expired_total";
pub const LOCK_KILLED_TOTAL: &str = "holdfast_lock_killed_total";
pub const DEADLOCKS_TOTAL: &str = "holdfast_deadlocks_total";
pub const FENCE_REJECTED_TOTAL: &str = "holdfast_fence_rejected_total";
pub const LEASE_GRACE_APPLIED_TOTAL: &str = "holdfast_lease_grace_applied_total";
pub const BLOCKED_CLIENTS: &str = "holdfast_blocked_clients";
pub const ONCE_ENTRIES: &str = "holdfast_once_entries";
pub const ONCE_REPLY_BYTES: &str = "holdfast_once_reply_bytes";
pub const QUEUE_WAIT_SECONDS: &str = "holdfast_queue_wait_seconds";
pub const QUEUES: &str = "holdfast_queues";
pub const QUEUE_MESSAGES: &str = "holdfast_queue_messages";
pub const QUEUE_OLDEST_AGE_SECONDS: &str = "holdfast_queue_oldest_age_seconds";
pub const QUEUE_PUSHED_TOTAL: &str = "holdfast_queue_pushed_total";
pub const QUEUE_DELIVERED_TOTAL: &str = "holdfast_queue_delivered_total";
pub const QUEUE_REDELIVERED_TOTAL: &str = "holdfast_queue_redelivered_total";
pub const QUEUE_ACKED_TOTAL: &str = "holdfast_queue_acked_total";
pub const QUEUE_NACKED_TOTAL: &str = "holdfast_queue_nacked_total";
pub const QUEUE_DEAD_TOTAL: &str = "holdfast_queue_dead_total";
pub const QUEUE_DUPLICATE_TOTAL: &str = "holdfast_queue_duplicate_total";
pub const QUEUE_LEASE_EXPIRED_TOTAL: &str = "holdfast_queue_lease_expired_total";

/// The table. A name that is not in it has no help text on `/metrics`.
pub const METRICS: &[MetricSpec] = &[
    gauge(RAFT_TERM, "terms", "The current Raft term."),
    gauge(RAFT_IS_LEADER, "boolean", "1 while this node leads the group, else 0."),
    counter(
        RAFT_LEADER_CHANGES_TOTAL,
        "changes",
        "How often the group's leader changed, as this node saw it.",
    ),
    gauge(RAFT_COMMIT_INDEX, "entries", "The highest log index known to be committed."),
    gauge(RAFT_APPLIED_INDEX, "entries", "The highest log index applied to the state."),
    gauge(RAFT_APPLY_LAG_ENTRIES, "entries", "Entries that are committed and not applied here."),
    counter(
        RAFT_SNAPSHOTS_INSTALLED_TOTAL,
        "snapshots",
        "Snapshots of other nodes that took the place of this node's log and state.",
    ),
    gauge(
        RAFT_STATE_DIVERGED,
        "boolean",
        "1 when this node's state was found to differ from the others': it serves no data. Else 0.",
    ),
    counter(RAFT_PROPOSALS_TOTAL, "proposals", "Commands that were proposed here."),
    counter(RAFT_PROPOSALS_FAILED_TOTAL, "proposals", "Proposals that were refused or got no outcome."),
    gauge(RAFT_PROPOSALS_PENDING, "proposals", "Proposals that wait for their outcome now."),
    histogram(RAFT_FSYNC_SECONDS, "seconds", "How long the synced writes of the log took."),
    gauge(RAFT_LOG_BYTES, "bytes", "Size of the log on disk."),
    gauge(PEER_CONNECTED, "boolean", "1 while there is a link to the node, else 0.").by(&["peer"]),
    gauge(PEER_RTT_SECONDS, "seconds", "The last round trip on the link to the node.").by(&["peer"]),
    counter(PEER_BYTES_TOTAL, "bytes", "Bytes that went over links to the node, in or out.")
        .by(&["peer", "direction"]),
    counter(PEER_RECONNECTS_TOTAL, "links", "Links to the node that were made after the first.")
        .by(&["peer"]),
    gauge(PEER_QUEUED_BYTES, "bytes", "Bytes that wait to be sent to the node.").by(&["peer"]),
    counter(PROCESS_CPU_SECONDS_TOTAL, "seconds", "Processor time used, in user and system mode together."),
    gauge(PROCESS_RESIDENT_MEMORY_BYTES, "bytes", "Resident memory."),
    gauge(PROCESS_VIRTUAL_MEMORY_BYTES, "bytes", "Virtual memory."),
    gauge(PROCESS_OPEN_FDS, "descriptors", "Open file descriptors."),
    gauge(PROCESS_MAX_FDS, "descriptors", "How many file descriptors may be open."),
    gauge(PROCESS_START_TIME_SECONDS, "seconds", "When the process started, since the Unix epoch."),
    gauge(DISK_FREE_BYTES, "bytes", "Free space where the data directory is."),
    gauge(DISK_TOTAL_BYTES, "bytes", "Size of the file system where the data directory is."),
    gauge(DISK_BALLAST_BYTES, "bytes", "Size of the ballast file."),
    gauge(
        DISK_STATE,
        "state",
        "0 while there is room on this node's disk, 1 below disk-free-soft, 2 below disk-free-hard.",
    ),
    gauge(
        DISK_GATE,
        "state",
        "What the disks of the cluster allow: 0 all commands, 1 none that add data, 2 no writes but deletions.",
    ),
    gauge(DATA_FLUSHED_INDEX, "entries", "The log index up to which the state is on disk."),
    gauge(SERVER_CONNECTIONS, "connections", "Clients connected now."),
    counter(SERVER_CONNECTIONS_TOTAL, "connections", "Clients that were accepted."),
    counter(
        SERVER_REJECTED_CONNECTIONS_TOTAL,
        "connections",
        "Clients that were refused because of maxclients.",
    ),
    counter(
        SERVER_CLOSED_CLIENTS_TOTAL,
        "connections",
        "Clients that were closed for a bound they passed, by bound.",
    )
    .by(&["reason"]),
    gauge(SERVER_CLIENT_MEMORY_BYTES, "bytes", "Memory that requests, replies and messages of clients take."),
    counter(AUTH_FAILURES_TOTAL, "logins", "Wrong passwords."),
    counter(COMMANDS_TOTAL, "commands", "Commands that ran, by name.").by(&["cmd"]),
    counter(ERRORS_TOTAL, "errors", "Error replies, by code.").by(&["code"]),
    counter(INDOUBT_TOTAL, "replies", "Replies that had to leave open whether the command executed."),
    gauge(KEYSPACE_KEYS, "keys", "Keys, by database.").by(&["db"]),
    gauge(KEYSPACE_EXPIRING_KEYS, "keys", "Keys with a time to live, by database.").by(&["db"]),
    counter(KEYSPACE_EXPIRED_TOTAL, "keys", "Keys that ended because their time had come, applied here."),
    gauge(KEYSPACE_BYTES, "bytes", "Memory that keys and values take."),
    gauge(LOCKS_HELD, "holds", "Holds of locks now, by mode.").by(&["mode"]),
    gauge(LOCK_WAITERS, "requests", "Requests that wait for locks."),
    histogram(LOCK_WAIT_SECONDS, "seconds", "How long requests waited for locks that they were granted."),
    histogram(LOCK_HOLD_SECONDS, "seconds", "How long locks were held."),
    counter(LOCK_EXPIRED_TOTAL, "holds", "Holds that ended by time."),
    counter(LOCK_KILLED_TOTAL, "holds", "Holds that LOCKS KILL broke."),
    counter(DEADLOCKS_TOTAL, "deadlocks", "Deadlocks that were found and resolved."),
    counter(FENCE_REJECTED_TOTAL, "tokens", "Tokens that FENCE refused on this node, by type of the key.")
        .by(&["type"]),
    counter(LEASE_GRACE_APPLIED_TOTAL, "leases", "Leases of locks that a change of leader made longer."),
    gauge(BLOCKED_CLIENTS, "clients", "Clients that wait, by what they wait for.").by(&["kind"]),
    gauge(ONCE_ENTRIES, "names", "Transactions whose names are kept."),
    gauge(ONCE_REPLY_BYTES, "bytes", "Replies to named transactions that are kept."),
    histogram(QUEUE_WAIT_SECONDS, "seconds", "How long QPOPs waited for messages."),
    gauge(QUEUES, "queues", "Queues that exist."),
    gauge(QUEUE_MESSAGES, "messages", "Messages, by queue and state.").by(&["queue", "state"]),
    gauge(QUEUE_OLDEST_AGE_SECONDS, "seconds", "Time since the oldest message of a state was pushed.")
        .by(&["queue", "state"]),
    counter(QUEUE_PUSHED_TOTAL, "messages", "Messages that came into a queue.").by(&["queue"]),
    counter(QUEUE_DELIVERED_TOTAL, "messages", "Hand-outs of messages, repeated ones included.")
        .by(&["queue"]),
    counter(QUEUE_REDELIVERED_TOTAL, "messages", "Hand-outs of messages that had been handed out before.")
        .by(&["queue"]),
    counter(QUEUE_ACKED_TOTAL, "messages", "Messages that were finished.").by(&["queue"]),
    counter(QUEUE_NACKED_TOTAL, "messages", "Hand-outs that consumers gave back.").by(&["queue"]),
    counter(QUEUE_DEAD_TOTAL, "messages", "Messages that died.").by(&["queue"]),
    counter(QUEUE_DUPLICATE_TOTAL, "messages", "Pushes whose ID was known.").by(&["queue"]),
    counter(QUEUE_LEASE_EXPIRED_TOTAL, "leases", "Leases of messages that ended by time.").by(&["queue"]),
];

/// Upper bounds of the histogram buckets, in seconds: from a write that only reached the page cache to a disk
/// that hangs.
const SECONDS_BUCKETS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    10.0,
];

/// The same for locks: from a hand-over at once to a lock that is held for a day.
const LOCK_BUCKETS: &[f64] = &[
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0, 600.0, 3_600.0, 86_400.0,
];

/// How often recorded histogram values are moved into their buckets; until then each takes memory of its own.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// A metric that was not set for so long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// Why metrics are not there.
#[derive(Debug, Error)]
pub enum MetricsError {
    #[error("metrics cannot be set up: {0}")]
    Recorder(#[from] metrics_exporter_prometheus::BuildError),
    #[error("the metrics thread cannot be started: {0}")]
    Thread(#[from] io::Error),
}

/// The recorder's reading end.
#[derive(Clone, Debug)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl Metrics {
    /// Makes the recorder that this process's metrics go to. It lives as long as the process, as does the thread
    /// that keeps it small. A second call in one process is refused.
    pub fn install() -> Result<Metrics, MetricsError> {
        let handle = builder()?.install_recorder()?;
        describe();
        let upkeep = handle.clone();
        thread::Builder::new().name("metrics".to_owned()).spawn(move || {
            loop {
                thread::sleep(UPKEEP_EVERY);
                upkeep.run_upkeep();
            }
        })?;
        Ok(Metrics { handle })
    }

    /// All metrics in Prometheus's text format, version 0.0.4. The process's own figures are read for it; the rest
    /// is as fresh as the caller made it.
    #[must_use]
    pub fn render(&self) -> String {
        record_process();
        self.handle.render()
    }
}

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

fn builder() -> Result<PrometheusBuilder, MetricsError> {
    Ok(PrometheusBuilder::new()
        // A queue that is gone is not told of for ever. What is told is set with each scrape.
        .idle_timeout(MetricKindMask::GAUGE | MetricKindMask::COUNTER, Some(FORGOTTEN_AFTER))
        .set_buckets_for_metric(Matcher::Full(RAFT_FSYNC_SECONDS.to_owned()), SECONDS_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(LOCK_WAIT_SECONDS.to_owned()), LOCK_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(QUEUE_WAIT_SECONDS.to_owned()), LOCK_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(LOCK_HOLD_SECONDS.to_owned()), LOCK_BUCKETS)?)
}

fn describe() {
    for metric in METRICS {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
}

fn record_process() {
    let usage = process::usage();
    metrics::counter!(PROCESS_CPU_SECONDS_TOTAL).absolute(usage.cpu_seconds as u64);
    metrics::gauge!(PROCESS_RESIDENT_MEMORY_BYTES).set(usage.resident_bytes as f64);
    metrics::gauge!(PROCESS_VIRTUAL_MEMORY_BYTES).set(usage.virtual_bytes as f64);
    metrics::gauge!(PROCESS_OPEN_FDS).set(usage.open_fds as f64);
    metrics::gauge!(PROCESS_MAX_FDS).set(usage.max_fds as f64);
    metrics::gauge!(PROCESS_START_TIME_SECONDS).set(usage.start_time_seconds);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_named_once_and_by_the_rule() {
        let mut seen = std::collections::BTreeSet::new();
        for metric in METRICS {
            assert!(seen.insert(metric.name), "{} is there twice", metric.name);
            assert!(metric.name.starts_with("holdfast_"), "{}", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
            if metric.unit == "seconds" || metric.unit == "bytes" {
                assert!(metric.name.trim_end_matches("_total").ends_with(metric.unit), "{}", metric.name);
            }
        }
    }

    #[test]
    fn what_is_recorded_is_rendered_with_its_help_and_its_buckets() {
        let recorder = builder().unwrap().build_recorder();
        let metrics = Metrics { handle: recorder.handle() };
        let text = metrics::with_local_recorder(&recorder, || {
            describe();
            metrics::gauge!(RAFT_TERM).set(3.0);
            metrics::counter!(COMMANDS_TOTAL, "cmd" => "get").absolute(7);
            metrics::histogram!(RAFT_FSYNC_SECONDS).record(0.000_3);
            metrics.render()
        });
        for line in [
            "# HELP holdfast_raft_term The current Raft term.",
            "# TYPE holdfast_raft_term gauge",
            "holdfast_raft_term 3",
            "holdfast_commands_total{cmd=\"get\"} 7",
            "holdfast_raft_fsync_seconds_bucket{le=\"0.0002\"} 0",
            "holdfast_raft_fsync_seconds_bucket{le=\"0.0005\"} 1",
            "holdfast_raft_fsync_seconds_count 1",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in:\n{text}");
        }
        assert!(text.contains("holdfast_process_resident_memory_bytes "));
    }
}
