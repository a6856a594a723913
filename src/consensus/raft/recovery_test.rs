//! A crash between every two steps of the write path, and what comes back.
//!
//! The steps are those of the driver, the applier and the flusher, in the order they keep; after each one
//! the directory is copied as a kill would leave it, opened, and replayed. What comes back must equal a
//! model that applied exactly the entries the log holds: nothing acknowledged is missing, nothing is there
//! twice, whatever had reached `data/` by then.

use std::path::Path;

use proptest::prelude::ProptestConfig;
use proptest::prelude::any;
use proptest::proptest;

use crate::machine::apply::apply_entry;
use crate::machine::entry::Batch;
use crate::machine::entry::Stamps;
use crate::machine::entry::encode_entry;
use crate::state::State;
use crate::storage::DataStore;
use crate::storage::LogBatch;
use crate::storage::LogStore;
use crate::storage::SharedCaches;
use crate::storage::test_support::TestDir;
use crate::storage::test_support::copy_dir;
use crate::types::ClusterTime;
use crate::types::GroupId;
use crate::types::LogIndex;
use crate::types::Term;
use crate::types::WallMillis;

const GROUP: GroupId = GroupId(0);

fn caches() -> SharedCaches {
    SharedCaches::new(1 << 20, 8 << 20)
}

/// An entry whose commands depend on the seed alone. Time moves on, so that keys and leases end.
fn entry(index: u64, seed: u64) -> Vec<u8> {
    let mut batch = Batch::new(b"default");
    for n in 0..4 {
        let draw =
            seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(n * 1_442_695_040_888_963_407) >> 33;
        let key = format!("k{}", draw % 7);
        let words: Vec<&str> = match draw % 11 {
            0 | 1 => vec!["SET", &key, "v"],
            2 => vec!["SET", &key, "short-lived", "PX", "300"],
            3 | 4 => vec!["INCR", "counter"],
            5 => vec!["DEL", &key],
            6 => vec!["LOCK", "lock", "owner", "PX", "200"],
            7 => vec!["QPUSH", "queue", &key],
            8 => vec!["QPOP", "LEASE", "200", "FROM", "queue"],
            9 => vec!["APPEND", "text", &key],
            _ => vec!["FLUSHDB"],
        };
        batch.push_command(0, words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>().into_iter());
    }
    let stamps = Stamps { clock: ClusterTime(index * 100), wall: WallMillis(index * 100), seed };
    encode_entry(&stamps, [(None, &batch)].into_iter())
}

/// What a start makes of a directory: the rows, then the log from there.
fn recover(dir: &Path) -> (State, u64) {
    let log = LogStore::open(dir).unwrap();
    let data = DataStore::open(dir, GROUP, &caches()).unwrap();
    let mut state = State::load(&data).unwrap();
    let applied = state.meta().applied;
    let contents = log.load(GROUP, applied.next()).unwrap();
    if let Some(first) = contents.entries.first() {
        assert_eq!(first.index, applied.0 + 1, "the log has what the rows lack");
    }
    for entry in &contents.entries {
        apply_entry(&mut state, LogIndex(entry.index), Term(entry.term), &entry.data).unwrap();
    }
    let end = state.meta().applied.0;
    (state, end)
}

struct Node {
    dir: TestDir,
    log: LogStore,
    data: DataStore,
    state: State,
    /// Digest of the model after each index.
    digests: Vec<u128>,
    model: State,
}

impl Node {
    fn new() -> Node {
        let dir = TestDir::new();
        let log = LogStore::open(dir.path()).unwrap();
        let data = DataStore::open(dir.path(), GROUP, &caches()).unwrap();
        let (state, model) = (State::new(0), State::new(0));
        let digests = vec![model.digest()];
        Node { dir, log, data, state, digests, model }
    }

    fn check(&self, step: &str) {
        let copy = TestDir::new();
        copy_dir(self.dir.path(), copy.path());
        let (state, end) = recover(copy.path());
        let written = self.digests.len() as u64 - 1;
        assert_eq!(end, written, "killed after {step}: every entry that was written is there");
        assert_eq!(state.digest(), self.digests[end as usize], "killed after {step}");
    }

    fn append(&mut self, seed: u64) {
        let index = self.digests.len() as u64;
        let data = entry(index, seed);
        let mut batch = LogBatch::new();
        batch.append_parts(GROUP, index, 1, 0, &data, b"");
        self.log.write(batch, false).unwrap();
        apply_entry(&mut self.model, LogIndex(index), Term(1), &data).unwrap();
        self.digests.push(self.model.digest());
        self.check("the append");
        apply_entry(&mut self.state, LogIndex(index), Term(1), &data).unwrap();
    }

    fn flush(&mut self, to_disk: bool, purge: bool) {
        let (changes, index) = (self.state.take_changes(), self.state.meta().applied);
        self.log.sync().unwrap();
        self.check("the sync of the log");
        self.data.write(changes.into_batch()).unwrap();
        self.check("the rows");
        if to_disk {
            self.data.flush().unwrap();
            self.check("the flush");
            if purge {
                self.log.purge(GROUP, index).unwrap();
                self.check("the purge");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]
    #[test]
    fn a_kill_between_any_two_steps_loses_nothing_and_repeats_nothing(seeds in proptest::collection::vec(any::<u64>(), 1..14)) {
        let mut node = Node::new();
        for seed in seeds {
            node.append(seed);
            if seed % 3 == 0 {
                node.flush(seed % 2 == 0, seed % 4 == 0);
            }
        }
        assert_eq!(node.state.digest(), node.model.digest());
    }
}
