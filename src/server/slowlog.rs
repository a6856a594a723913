//! SLOWLOG and the latency monitor: what took long, in a bounded memory.
//!
//! Both are only written to when something was slow, so a lock per entry costs the fast path nothing.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::resp::Reply;
use crate::types::WallMillis;

/// Words of a command that an entry keeps, as in Redis.
const WORDS_MAX: usize = 32;
/// Bytes of a word that an entry keeps, as in Redis.
const WORD_BYTES_MAX: usize = 128;
/// Samples of a latency event, as in Redis.
const SAMPLES_MAX: usize = 160;

/// One slow command.
#[derive(Debug, Clone)]
pub struct SlowCommand {
    pub id: u64,
    pub at: WallMillis,
    pub micros: u64,
    pub words: Vec<Bytes>,
    pub addr: String,
    pub name: String,
}

/// The slow log of this node.
#[derive(Debug, Default)]
pub struct Slowlog {
    entries: Mutex<Entries>,
    latency: Mutex<BTreeMap<&'static str, Event>>,
}

#[derive(Debug, Default)]
struct Entries {
    next_id: u64,
    newest_first: VecDeque<SlowCommand>,
}

/// What the latency monitor saw of one kind of event.
#[derive(Debug, Default)]
struct Event {
    /// Second and milliseconds, oldest first; one sample a second, its worst.
    samples: VecDeque<(u64, u64)>,
    worst_ms: u64,
}

impl Slowlog {
    /// Adds an entry and forgets what is beyond `entries_max`.
    pub fn add<'a>(
        &self,
        at: WallMillis,
        micros: u64,
        words: impl ExactSizeIterator<Item = &'a [u8]>,
        client: (String, String),
        entries_max: usize,
    ) {
        let words = kept_words(words);
        let (addr, name) = client;
        let mut entries = self.entries.lock();
        let id = entries.next_id;
        entries.next_id += 1;
        entries.newest_first.push_front(SlowCommand { id, at, micros, words, addr, name });
        entries.newest_first.truncate(entries_max);
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.lock().newest_first.len()
    }

    /// True when nothing was slow.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all entries; their ids are not used again.
    pub fn reset(&self) {
        self.entries.lock().newest_first.clear();
    }

    /// SLOWLOG GET: the newest `at_most` entries.
    pub fn get(&self, at_most: usize) -> Reply {
        let entries = self.entries.lock();
        Reply::Array(entries.newest_first.iter().take(at_most).map(SlowCommand::to_reply).collect())
    }

    /// Notes a latency event, when it took at least `threshold_ms`; 0 turns the monitor off.
    pub fn note_latency(&self, event: &'static str, at: WallMillis, millis: u64, threshold_ms: u64) {
        if threshold_ms == 0 || millis < threshold_ms {
            return;
        }
        let second = at.0 / 1000;
        let mut latency = self.latency.lock();
        let event = latency.entry(event).or_default();
        event.worst_ms = event.worst_ms.max(millis);
        match event.samples.back_mut() {
            Some((last, worst)) if *last == second => *worst = (*worst).max(millis),
            _ => event.samples.push_back((second, millis)),
        }
        if event.samples.len() > SAMPLES_MAX {
            event.samples.pop_front();
        }
    }

    /// LATENCY LATEST: event, second, latest and worst milliseconds.
    pub fn latency_latest(&self) -> Reply {
        let latency = self.latency.lock();
        let row = |(name, event): (&&'static str, &Event)| {
            let (second, millis) = event.samples.back().copied().unwrap_or_default();
            Reply::Array(vec![Reply::bulk(name), number(second), number(millis), number(event.worst_ms)])
        };
        Reply::Array(latency.iter().map(row).collect())
    }

    /// LATENCY HISTORY: the samples of an event.
    pub fn latency_history(&self, event: &[u8]) -> Reply {
        let latency = self.latency.lock();
        let found = latency.iter().find(|(name, _)| name.as_bytes().eq_ignore_ascii_case(event));
        let samples = found.into_iter().flat_map(|(_, event)| event.samples.iter());
        Reply::Array(samples.map(|(second, ms)| Reply::Array(vec![number(*second), number(*ms)])).collect())
    }

    /// LATENCY RESET: forgets these events, or all when none is named. Says how many there were.
    pub fn latency_reset(&self, events: &[&[u8]]) -> i64 {
        let mut latency = self.latency.lock();
        let before = latency.len();
        latency.retain(|name, _| {
            !events.is_empty() && !events.iter().any(|event| name.as_bytes().eq_ignore_ascii_case(event))
        });
        i64::try_from(before - latency.len()).unwrap_or(i64::MAX)
    }

    /// LATENCY DOCTOR: what the samples say, in words.
    pub fn latency_doctor(&self) -> String {
        let latency = self.latency.lock();
        if latency.is_empty() {
            return "No latency spike was seen. (The monitor is on when latency-monitor-threshold is above 0.)\n".into();
        }
        let line = |(name, event): (&&'static str, &Event)| {
            let count = event.samples.len().max(1) as u64;
            let mean = event.samples.iter().map(|(_, ms)| ms).sum::<u64>() / count;
            format!("{name}: {count} spikes (average {mean}ms, worst {}ms).\n", event.worst_ms)
        };
        latency.iter().map(line).collect()
    }
}

impl SlowCommand {
    fn to_reply(&self) -> Reply {
        let words = self.words.iter().cloned().map(Reply::Bulk).collect();
        Reply::Array(vec![
            number(self.id),
            number(self.at.0 / 1000),
            number(self.micros),
            Reply::Array(words),
            Reply::bulk(&self.addr),
            Reply::bulk(&self.name),
        ])
    }
}

fn number(value: u64) -> Reply {
    Reply::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

/// The words an entry keeps: the first 31 and a note how many more there were; long ones are cut likewise.
fn kept_words<'a>(words: impl ExactSizeIterator<Item = &'a [u8]>) -> Vec<Bytes> {
    let count = words.len();
    let whole = if count > WORDS_MAX { WORDS_MAX - 1 } else { count };
    let mut kept: Vec<Bytes> = words.take(whole).map(kept_word).collect();
    if count > whole {
        kept.push(Bytes::from(format!("... ({} more arguments)", count - whole)));
    }
    kept
}

fn kept_word(word: &[u8]) -> Bytes {
    if word.len() <= WORD_BYTES_MAX {
        return Bytes::copy_from_slice(word);
    }
    let mut kept = word[..WORD_BYTES_MAX].to_vec();
    kept.extend_from_slice(format!("... ({} more bytes)", word.len() - WORD_BYTES_MAX).as_bytes());
    Bytes::from(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(log: &Slowlog, micros: u64, words: &[&[u8]], entries_max: usize) {
        log.add(WallMillis(5_000), micros, words.iter().copied(), ("a:1".into(), String::new()), entries_max);
    }

    #[test]
    fn the_newest_entries_are_kept_and_ids_go_on_after_a_reset() {
        let log = Slowlog::default();
        for micros in 0..5 {
            add(&log, micros, &[b"get", b"k"], 3);
        }
        assert_eq!(log.len(), 3);
        log.reset();
        add(&log, 9, &[b"get"], 3);
        let Reply::Array(entries) = log.get(10) else { panic!("an array") };
        let Reply::Array(fields) = &entries[0] else { panic!("an array") };
        assert_eq!(fields[..3], [Reply::Integer(5), Reply::Integer(5), Reply::Integer(9)]);
    }

    #[test]
    fn long_commands_are_cut_as_in_redis() {
        let log = Slowlog::default();
        let long = vec![b'x'; 200];
        let words: Vec<&[u8]> = std::iter::repeat_n(long.as_slice(), 40).collect();
        add(&log, 1, &words, 3);
        let kept = log.entries.lock().newest_first[0].words.clone();
        assert_eq!(kept.len(), 32);
        assert_eq!(kept[31], "... (9 more arguments)");
        assert!(kept[0].ends_with(b"xxx... (72 more bytes)"));
    }

    #[test]
    fn the_latency_monitor_keeps_the_worst_of_each_second() {
        let log = Slowlog::default();
        log.note_latency("command", WallMillis(1_000), 5, 0);
        assert_eq!(log.latency_latest(), Reply::Array(vec![]));
        log.note_latency("command", WallMillis(1_000), 5, 5);
        log.note_latency("command", WallMillis(1_900), 9, 5);
        log.note_latency("command", WallMillis(2_000), 6, 5);
        let pair = |a, b| Reply::Array(vec![Reply::Integer(a), Reply::Integer(b)]);
        assert_eq!(log.latency_history(b"COMMAND"), Reply::Array(vec![pair(1, 9), pair(2, 6)]));
        assert_eq!(log.latency_reset(&[b"nothing"]), 0);
        assert_eq!(log.latency_reset(&[]), 1);
    }
}
