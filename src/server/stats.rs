//! What this node's clients did, in numbers: INFO and the metrics read them.
//!
//! A connection counts a batch of input by itself and adds it here once at its end, so that two processors do not
//! pass a cache line back and forth for every command.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::commands::spec::CommandSpec;
use crate::commands::table;
use crate::server::errors;

/// Kinds of error that are told apart; a bound, since a client can make commands fail in many ways.
const ERROR_CODES_MAX: usize = 128;

static ROWS: LazyLock<Vec<&'static CommandSpec>> = LazyLock::new(|| table::all().collect());
static INDEX: LazyLock<HashMap<&'static str, usize>> =
    LazyLock::new(|| ROWS.iter().enumerate().map(|(index, row)| (row.name, index)).collect());

/// All commands; their places are the row numbers of [`Stats::commands_by_row`].
pub fn rows() -> &'static [&'static CommandSpec] {
    &ROWS
}

/// The number of a command's row.
pub fn row_index(row: &CommandSpec) -> Option<usize> {
    INDEX.get(row.name).copied()
}

/// Numbers of one command.
#[derive(Debug, Default)]
pub struct CommandStats {
    /// How often it ran.
    pub calls: AtomicU64,
    /// Microseconds it took, its share of its batch of input.
    pub micros: AtomicU64,
    /// How often it was refused before it ran.
    pub rejected: AtomicU64,
    /// How often it answered an error.
    pub failed: AtomicU64,
}

/// Counters since the start, or since CONFIG RESETSTAT.
#[derive(Debug)]
pub struct Stats {
    pub commands: AtomicU64,
    /// Commands of the last whole second.
    pub commands_per_second: AtomicU64,
    pub connections: AtomicU64,
    /// Connections refused, at `maxclients` or by protected mode.
    pub rejected_connections: AtomicU64,
    pub input_bytes: AtomicU64,
    pub output_bytes: AtomicU64,
    /// Error replies.
    pub errors: AtomicU64,
    pub keyspace_hits: AtomicU64,
    pub keyspace_misses: AtomicU64,
    /// What the state's count of expired keys was when these were reset.
    pub keys_expired_before: AtomicU64,
    /// Clients closed because their replies passed `client-output-buffer-limit`.
    pub output_limit_disconnections: AtomicU64,
    /// Clients closed because all together took more than `maxmemory-clients`.
    pub evicted_clients: AtomicU64,
    /// Clients closed because they did not log in, or did not go on with a request.
    pub login_timeouts: AtomicU64,
    pub stalled_requests: AtomicU64,
    /// Wrong passwords.
    pub auth_failures: AtomicU64,
    /// Clients closed because of a panic while they were served: each is a bug.
    pub panics: AtomicU64,
    /// In the order of [`rows`].
    pub commands_by_row: Vec<CommandStats>,
    errors_by_code: Mutex<BTreeMap<String, u64>>,
}

impl Default for Stats {
    fn default() -> Stats {
        Stats {
            commands: AtomicU64::new(0),
            commands_per_second: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            rejected_connections: AtomicU64::new(0),
            input_bytes: AtomicU64::new(0),
            output_bytes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            keyspace_hits: AtomicU64::new(0),
            keyspace_misses: AtomicU64::new(0),
            keys_expired_before: AtomicU64::new(0),
            output_limit_disconnections: AtomicU64::new(0),
            evicted_clients: AtomicU64::new(0),
            login_timeouts: AtomicU64::new(0),
            stalled_requests: AtomicU64::new(0),
            auth_failures: AtomicU64::new(0),
            panics: AtomicU64::new(0),
            commands_by_row: rows().iter().map(|_| CommandStats::default()).collect(),
            errors_by_code: Mutex::new(BTreeMap::new()),
        }
    }
}

impl Stats {
    /// Counts an error reply by its code.
    pub fn note_error(&self, text: &str) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        let code = errors::code(text);
        let mut by_code = self.errors_by_code.lock();
        if let Some(count) = by_code.get_mut(code) {
            *count += 1;
        } else if by_code.len() < ERROR_CODES_MAX {
            by_code.insert(code.to_owned(), 1);
        }
    }

    /// Error replies by code.
    pub fn errors_by_code(&self) -> BTreeMap<String, u64> {
        self.errors_by_code.lock().clone()
    }

    /// Counts a command that was refused before it ran.
    pub fn note_rejected(&self, row: &CommandSpec) {
        if let Some(command) = row_index(row).and_then(|index| self.commands_by_row.get(index)) {
            command.rejected.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// CONFIG RESETSTAT. `keys_expired`: the state's count now.
    pub fn reset(&self, keys_expired: u64) {
        let counters = [
            &self.commands,
            &self.connections,
            &self.rejected_connections,
            &self.input_bytes,
            &self.output_bytes,
            &self.errors,
            &self.keyspace_hits,
            &self.keyspace_misses,
            &self.output_limit_disconnections,
            &self.evicted_clients,
            &self.login_timeouts,
            &self.stalled_requests,
            &self.auth_failures,
        ];
        let by_row =
            self.commands_by_row.iter().flat_map(|row| [&row.calls, &row.micros, &row.rejected, &row.failed]);
        for counter in counters.into_iter().chain(by_row) {
            counter.store(0, Ordering::Relaxed);
        }
        self.keys_expired_before.store(keys_expired, Ordering::Relaxed);
        self.errors_by_code.lock().clear();
    }
}

/// One connection's counts of the batch of input it works on.
#[derive(Default)]
pub struct Tally {
    rows: SmallVec<[Count; 4]>,
    pub hits: u64,
    pub misses: u64,
}

struct Count {
    row: &'static CommandSpec,
    calls: u64,
    failed: u64,
}

impl Tally {
    /// Counts a command that ran.
    #[inline]
    pub fn add(&mut self, row: &'static CommandSpec, is_error: bool) {
        let failed = u64::from(is_error);
        if let Some(count) = self.rows.iter_mut().find(|count| std::ptr::eq(count.row, row)) {
            count.calls += 1;
            count.failed += failed;
        } else {
            self.rows.push(Count { row, calls: 1, failed });
        }
    }

    /// Adds everything to the node's counters and starts anew. Each command is given its share of the time.
    pub fn flush(&mut self, stats: &Stats, micros: u64) {
        let total: u64 = self.rows.iter().map(|count| count.calls).sum();
        if total == 0 {
            return;
        }
        stats.commands.fetch_add(total, Ordering::Relaxed);
        for count in self.rows.drain(..) {
            let Some(row) = row_index(count.row).and_then(|index| stats.commands_by_row.get(index)) else {
                continue;
            };
            row.calls.fetch_add(count.calls, Ordering::Relaxed);
            row.micros.fetch_add(micros * count.calls / total, Ordering::Relaxed);
            if count.failed > 0 {
                row.failed.fetch_add(count.failed, Ordering::Relaxed);
            }
        }
        if self.hits > 0 {
            stats.keyspace_hits.fetch_add(self.hits, Ordering::Relaxed);
        }
        if self.misses > 0 {
            stats.keyspace_misses.fetch_add(self.misses, Ordering::Relaxed);
        }
        (self.hits, self.misses) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_counted_once_and_its_time_is_shared_out() {
        let (stats, mut tally) = (Stats::default(), Tally::default());
        let (get, set) = (table::find(b"get").unwrap(), table::find(b"set").unwrap());
        for _ in 0..3 {
            tally.add(get, false);
        }
        tally.add(set, true);
        tally.flush(&stats, 400);
        tally.flush(&stats, 400);
        let of = |row| &stats.commands_by_row[row_index(row).unwrap()];
        assert_eq!(stats.commands.load(Ordering::Relaxed), 4);
        assert_eq!(of(get).calls.load(Ordering::Relaxed), 3);
        assert_eq!(of(get).micros.load(Ordering::Relaxed), 300);
        assert_eq!(of(set).failed.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn errors_are_counted_by_their_code() {
        let stats = Stats::default();
        stats.note_error("ERR a");
        stats.note_error("ERR b");
        stats.note_error("WRONGTYPE c");
        let expected = BTreeMap::from([("ERR".to_owned(), 2), ("WRONGTYPE".to_owned(), 1)]);
        assert_eq!(stats.errors_by_code(), expected);
        stats.reset(0);
        assert!(stats.errors_by_code().is_empty());
    }
}
