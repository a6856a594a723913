//! The log against a model, and against damage.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::storage::test_support::TestDir;
use crate::storage::test_support::copy_dir;

const GROUP: GroupId = GroupId(7);

fn entry(index: u64, term: u64) -> LogEntryRecord {
    let data = vec![(index * 31 + term) as u8; (index % 50) as usize * 10];
    LogEntryRecord { index, term, kind: (index % 3) as u8, data, context: vec![9; (term % 3) as usize] }
}

fn append(store: &LogStore, indices: std::ops::RangeInclusive<u64>, term: u64) {
    for index in indices {
        let mut batch = LogBatch::new();
        batch.append(GROUP, &entry(index, term));
        store.write(batch, true).unwrap();
    }
}

fn newest_wal(dir: &Path) -> PathBuf {
    let files = fs::read_dir(dir.join("log")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|end| end == "log")).max().unwrap()
}

fn indices(contents: &LogContents) -> Vec<u64> {
    contents.entries.iter().map(|entry| entry.index).collect()
}

#[test]
fn what_was_written_is_there_after_a_restart() {
    let dir = TestDir::new();
    let hard_state = HardStateRecord { term: 3, vote: 2, commit: 1 };
    {
        let store = LogStore::open(dir.path()).unwrap();
        let mut batch = LogBatch::new();
        assert!(batch.is_empty());
        batch.hard_state(GROUP, hard_state);
        batch.group_meta(GROUP, b"c", b"voters 1");
        batch.append(GROUP, &entry(1, 3));
        batch.append(GroupId(8), &entry(1, 9));
        assert!(!batch.is_empty() && batch.len_bytes() > 40);
        store.write(batch, false).unwrap();
        store.sync().unwrap();
    }
    let store = LogStore::open(dir.path()).unwrap();
    let contents = store.load(GROUP, LogIndex(0)).unwrap();
    assert_eq!(contents.hard_state, Some(hard_state));
    assert_eq!(contents.meta, BTreeMap::from([(b"c".to_vec(), b"voters 1".to_vec())]));
    assert_eq!(contents.entries, vec![entry(1, 3)]);
    assert_eq!(store.load(GroupId(6), LogIndex(0)).unwrap(), LogContents::default());
    assert_eq!(store.background_errors(), 0);
}

#[test]
fn a_suffix_is_replaced_within_one_batch() {
    let dir = TestDir::new();
    let store = LogStore::open(dir.path()).unwrap();
    append(&store, 1..=9, 1);
    let mut batch = LogBatch::new();
    batch.truncate_from(GROUP, LogIndex(4), LogIndex(9));
    batch.append(GROUP, &entry(4, 2));
    batch.truncate_from(GROUP, LogIndex(5), LogIndex(4));
    store.write(batch, true).unwrap();
    let contents = store.load(GROUP, LogIndex(3)).unwrap();
    assert_eq!(contents.entries, vec![entry(3, 1), entry(4, 2)]);
    assert_eq!(contents.first_index, Some(LogIndex(1)));
}

#[test]
fn the_last_index_there_is_can_be_truncated_and_purged() {
    let dir = TestDir::new();
    let store = LogStore::open(dir.path()).unwrap();
    append(&store, u64::MAX - 1..=u64::MAX - 1, 1);
    store.purge(GROUP, LogIndex(u64::MAX)).unwrap();
    assert_eq!(store.load(GROUP, LogIndex(0)).unwrap(), LogContents::default());
}

#[test]
fn reading_for_a_follower_stops_at_the_byte_limit_but_gives_one() {
    let dir = TestDir::new();
    let store = LogStore::open(dir.path()).unwrap();
    append(&store, 1..=20, 1);
    store.purge(GROUP, LogIndex(5)).unwrap();
    let count = |low, high, max| store.entries(GROUP, LogIndex(low), LogIndex(high), max).unwrap().len();
    assert_eq!(count(10, 15, u64::MAX), 5);
    assert_eq!(count(10, 15, 0), 1);
    assert_eq!(count(10, 15, 101 + 111), 2);
    assert_eq!(count(18, 99, u64::MAX), 3);
    assert_eq!(count(5, 15, u64::MAX), 0, "purged");
    assert_eq!(count(21, 25, u64::MAX), 0, "not written yet");
    assert_eq!(count(9, 9, u64::MAX), 0);
}

#[test]
fn a_record_that_does_not_match_its_checksum_is_noticed() {
    let dir = TestDir::new();
    let store = LogStore::open(dir.path()).unwrap();
    append(&store, 1..=3, 1);
    let right = store.db.get(entry_key(GROUP, 2)).unwrap().unwrap();
    let mut flipped = right.clone();
    flipped[0] ^= 1;
    // The second is a whole value, but another entry's.
    for wrong in [flipped, store.db.get(entry_key(GROUP, 3)).unwrap().unwrap(), vec![1], right[1..].to_vec()]
    {
        store.db.put(entry_key(GROUP, 2), wrong).unwrap();
        let error = store.load(GROUP, LogIndex(3)).unwrap_err();
        assert!(
            matches!(&error, StorageError::Corrupt { what } if what.contains("group 7, entry 2")),
            "{error}"
        );
        let error = store.entries(GROUP, LogIndex(1), LogIndex(4), u64::MAX).unwrap_err();
        assert!(matches!(error, StorageError::Corrupt { .. }));
    }
}

#[test]
fn a_hole_in_the_log_is_noticed() {
    let dir = TestDir::new();
    let store = LogStore::open(dir.path()).unwrap();
    append(&store, 1..=4, 1);
    store.db.delete(entry_key(GROUP, 2)).unwrap();
    let error = store.load(GROUP, LogIndex(4)).unwrap_err();
    assert!(matches!(&error, StorageError::Corrupt { what } if what.contains("entry 2: missing")), "{error}");
    assert!(store.entries(GROUP, LogIndex(1), LogIndex(4), u64::MAX).is_err());
}

#[test]
fn a_torn_last_write_costs_only_itself() {
    let dir = TestDir::new();
    let store = LogStore::open(dir.path()).unwrap();
    append(&store, 1..=8, 1);
    let whole = fs::metadata(newest_wal(dir.path())).unwrap().len();
    append(&store, 9..=9, 1);
    let torn = fs::metadata(newest_wal(dir.path())).unwrap().len();
    for cut in [whole + 1, whole + 6, whole + 7, whole + 8, torn - 3, torn - 1] {
        let copy = TestDir::new();
        copy_dir(dir.path(), copy.path());
        fs::OpenOptions::new().write(true).open(newest_wal(copy.path())).unwrap().set_len(cut).unwrap();
        let reopened = LogStore::open(copy.path()).unwrap();
        let contents = reopened.load(GROUP, LogIndex(0)).unwrap();
        assert_eq!(indices(&contents), (1..=8).collect::<Vec<_>>());
        // What comes next is written and found as if nothing had happened.
        append(&reopened, 9..=10, 2);
        drop(reopened);
        let again = LogStore::open(copy.path()).unwrap().load(GROUP, LogIndex(9)).unwrap();
        assert_eq!(again.entries, vec![entry(9, 2), entry(10, 2)]);
    }
}

#[test]
fn a_last_write_whose_space_came_to_the_disk_without_it_costs_only_itself() {
    let dir = TestDir::new();
    let store = LogStore::open(dir.path()).unwrap();
    append(&store, 1..=8, 1);
    let whole = fs::metadata(newest_wal(dir.path())).unwrap().len();
    let copy = TestDir::new();
    copy_dir(dir.path(), copy.path());
    let wal = fs::OpenOptions::new().write(true).open(newest_wal(copy.path())).unwrap();
    wal.set_len(whole + 200_000).unwrap();
    let contents = LogStore::open(copy.path()).unwrap().load(GROUP, LogIndex(0)).unwrap();
    assert_eq!(indices(&contents), (1..=8).collect::<Vec<_>>());
}

#[test]
fn one_flipped_bit_amid_the_log_is_refused_and_not_skipped() {
    let dir = TestDir::new();
    let store = LogStore::open(dir.path()).unwrap();
    append(&store, 1..=40, 1);
    let copy = TestDir::new();
    copy_dir(dir.path(), copy.path());
    let path = newest_wal(copy.path());
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&path, bytes).unwrap();
    let error = LogStore::open(copy.path()).unwrap_err();
    assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
    assert_eq!(error.to_string().lines().count(), 1);
    assert!(LogStore::examine(copy.path()).unwrap_err().is_damage());
}

/// One thing that happens to a log.
#[derive(Debug, Clone)]
enum Step {
    Append { count: u64 },
    Overwrite { back: u64, count: u64 },
    Purge { ahead: u64 },
    HardState { vote: u64 },
    Restart,
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u64..20).prop_map(|count| Step::Append { count }),
        2 => (1u64..15, 0u64..10).prop_map(|(back, count)| Step::Overwrite { back, count }),
        1 => (0u64..15).prop_map(|ahead| Step::Purge { ahead }),
        1 => (0u64..5).prop_map(|vote| Step::HardState { vote }),
        1 => Just(Step::Restart),
        1 => Just(Step::Kill),
    ]
}

/// The log as it should be.
#[derive(Default)]
struct Model {
    hard_state: Option<HardStateRecord>,
    entries: BTreeMap<u64, LogEntryRecord>,
    last: u64,
    term: u64,
}

impl Model {
    fn batch(&mut self, from: u64, count: u64) -> LogBatch {
        let mut batch = LogBatch::new();
        self.term += 1;
        batch.truncate_from(GROUP, LogIndex(from), LogIndex(self.last));
        self.entries.split_off(&from);
        for index in from..from + count {
            let entry = entry(index, self.term);
            batch.append(GROUP, &entry);
            self.entries.insert(index, entry);
        }
        self.last = from + count - 1;
        batch
    }

    fn compare(&self, store: &LogStore, from: u64) {
        let contents = store.load(GROUP, LogIndex(from)).unwrap();
        let expected: Vec<_> = self.entries.range(from..).map(|(_, entry)| entry.clone()).collect();
        assert_eq!(contents.entries, expected);
        assert_eq!(contents.first_index.map(|index| index.0), self.entries.keys().next().copied());
        assert_eq!(contents.hard_state, self.hard_state);
        let (low, high) = (from.max(1), self.last + 5);
        let read = store.entries(GROUP, LogIndex(low), LogIndex(high), u64::MAX).unwrap();
        let known = self.entries.contains_key(&low);
        assert_eq!(
            read,
            if known { self.entries.range(low..).map(|(_, e)| e.clone()).collect() } else { vec![] }
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_log_is_what_the_model_says(steps in prop::collection::vec((step(), 0u64..60), 1..40)) {
        let mut dirs = vec![TestDir::new()];
        let mut store = LogStore::open(dirs[0].path()).unwrap();
        // A neighbour on either side, which nothing may touch.
        let mut neighbours = LogBatch::new();
        neighbours.append(GroupId(6), &entry(u64::MAX / 2, 1));
        neighbours.append(GroupId(8), &entry(1, 1));
        store.write(neighbours, false).unwrap();
        let mut model = Model::default();
        for (step, from) in steps {
            match step {
                Step::Append { count } => {
                    let batch = model.batch(model.last + 1, count);
                    store.write(batch, true).unwrap();
                }
                Step::Overwrite { back, count } => {
                    let first = model.entries.keys().next().copied().unwrap_or(model.last + 1);
                    let batch = model.batch(model.last.saturating_sub(back).max(first), count.max(1));
                    store.write(batch, true).unwrap();
                }
                Step::Purge { ahead } => {
                    let first = model.entries.keys().next().copied().unwrap_or(0);
                    let up_to = (first + ahead).min(model.last);
                    store.purge(GROUP, LogIndex(up_to)).unwrap();
                    model.entries = model.entries.split_off(&(up_to + 1));
                }
                Step::HardState { vote } => {
                    let state = HardStateRecord { term: model.term, vote, commit: model.last };
                    let mut batch = LogBatch::new();
                    batch.hard_state(GROUP, state);
                    store.write(batch, false).unwrap();
                    model.hard_state = Some(state);
                }
                Step::Restart => {
                    drop(store);
                    store = LogStore::open(dirs[dirs.len() - 1].path()).unwrap();
                }
                Step::Kill => {
                    let next = TestDir::new();
                    copy_dir(dirs[dirs.len() - 1].path(), next.path());
                    store = LogStore::open(next.path()).unwrap();
                    dirs.push(next);
                }
            }
            model.compare(&store, from);
        }
        prop_assert_eq!(store.load(GroupId(6), LogIndex(0)).unwrap().entries, vec![entry(u64::MAX / 2, 1)]);
        prop_assert_eq!(store.load(GroupId(8), LogIndex(0)).unwrap().entries, vec![entry(1, 1)]);
    }
}

#[test]
fn only_what_was_synced_counts_as_synced_and_a_restart_finds_as_many_changes() {
    let dir = TestDir::new();
    let mut end = 0;
    for round in 0..3u64 {
        let found = LogStore::examine(dir.path()).unwrap().map_or(0, |store| store.sequence());
        assert_eq!(found, end, "in round {round}");
        let store = LogStore::open(dir.path()).unwrap();
        assert_eq!((store.sequence(), store.synced_sequence()), (end, end));
        append(&store, round * 10 + 1..=round * 10 + 5, round);
        assert_eq!(store.synced_sequence(), end + 5);
        let mut batch = LogBatch::new();
        batch.hard_state(GROUP, HardStateRecord { term: round, ..Default::default() });
        batch.truncate_from(GROUP, LogIndex(round * 10 + 4), LogIndex(round * 10 + 5));
        batch.append(GROUP, &entry(round * 10 + 4, round));
        store.write(batch, false).unwrap();
        assert_eq!((store.sequence(), store.synced_sequence()), (end + 8, end + 5));
        store.sync().unwrap();
        assert_eq!(store.synced_sequence(), end + 8);
        store.purge(GROUP, LogIndex(round * 10 + 2)).unwrap();
        if round == 1 {
            store.release_memory().unwrap();
        }
        end = store.sequence();
        assert_eq!((end, store.synced_sequence()), (round * 9 + 9, round * 9 + 8));
    }
}

#[test]
fn looking_at_a_log_changes_nothing() {
    let dir = TestDir::new();
    assert!(LogStore::examine(dir.path()).unwrap().is_none());
    append(&LogStore::open(dir.path()).unwrap(), 1..=50, 1);
    let picture = || {
        let names = fs::read_dir(dir.path().join("log")).unwrap().map(|entry| entry.unwrap().path());
        let files = names.filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with("LOG"));
        files.map(|path| (path.clone(), fs::read(path).unwrap())).collect::<BTreeMap<_, _>>()
    };
    let before = picture();
    let store = LogStore::examine(dir.path()).unwrap().unwrap();
    assert_eq!(store.load(GROUP, LogIndex(0)).unwrap().entries.len(), 50);
    let mut batch = LogBatch::new();
    batch.append(GROUP, &entry(51, 1));
    assert!(store.write(batch, true).is_err());
    drop(store);
    assert!(picture() == before);
}

#[test]
fn terms_that_go_back_are_a_suffix_that_came_back() {
    let dir = TestDir::new();
    let store = LogStore::open(dir.path()).unwrap();
    append(&store, 1..=3, 5);
    append(&store, 4..=4, 4);
    let line = store.load(GROUP, LogIndex(0)).unwrap_err().to_string();
    assert!(line.contains("entry 4") && line.contains("earlier term"), "{line}");
}
