//! What a start makes of a disk that is not what it was: it refuses in one line, or serves what was acknowledged.
//!
//! The parts of a node below its ports, in this process. A node is stopped, or copied while it runs as a kill would leave
//! it; then one bit of a copy is flipped, somewhere in a file that belongs to the data, and the copy is opened.
//! `BIT_FLIPS=5000` for the long form, `BIT_SEED` for where chance starts.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use crate::clock::Clock;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::config::SharedConfig;
use crate::consensus::raft::replica::Replica;
use crate::machine::entry::Batch;
use crate::node::open_replica;
use crate::node::recovery::examine;
use crate::node::recovery::exit_status;
use crate::resp::Reply;
use crate::storage::DirLock;
use crate::storage::Identity;
use crate::storage::LogStore;
use crate::storage::Watermark;
use crate::storage::open_dir;
use crate::storage::test_support::TestDir;
use crate::storage::test_support::copy_dir;
use crate::types::NodeId;

const KEYS: usize = 400;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}

/// A node of a cluster of one, without its ports.
struct Open {
    replica: Replica,
    _lock: DirLock,
}

fn open_in_mode(dir: &Path, appendfsync: &str) -> anyhow::Result<Open> {
    let text = dir.to_str().unwrap();
    let args = ["--dir", text, "--appendfsync", appendfsync, "--flush-interval", "20"].map(str::to_owned);
    let config = SharedConfig::new(Config::load(&args).unwrap().config, None);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let lock = open_dir(dir, Identity { node_id: NodeId(1) })?;
    let replica = open_replica(&lock, &config, &clock, Vec::new(), &Arc::default())?;
    while replica.group().try_read().is_none() {
        std::thread::yield_now();
    }
    Ok(Open { replica, _lock: lock })
}

fn open(dir: &Path) -> anyhow::Result<Open> {
    open_in_mode(dir, "always")
}

impl Open {
    fn run(&self, commands: &[Vec<String>]) -> Vec<Reply> {
        let mut batch = Batch::new(b"default");
        for command in commands {
            let words: Vec<&[u8]> = command.iter().map(|word| word.as_bytes()).collect();
            batch.push_command(0, words.into_iter());
        }
        let answer = self.replica.group().propose(batch);
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(answer).unwrap()
    }

    fn write(&self, round: usize) {
        for at in 0..KEYS {
            let value = format!("{round}:{at}:{}", "v".repeat(at % 300));
            let mut commands = vec![words(&["SET", &format!("key{at}"), &value])];
            match at % 10 {
                0 => commands.push(words(&["QPUSH", "queue", &value])),
                1 => commands.push(words(&["LOCK", &format!("lock{at}"), &value, "PX", "600000000"])),
                2 => commands.push(words(&["DEL", &format!("key{}", at / 2)])),
                3 => commands.push(words(&["INCR", "counter"])),
                _ => {}
            }
            self.run(&commands);
        }
    }

    /// Everything that a client could ask for.
    fn contents(&self) -> String {
        let mut mget = words(&["MGET", "counter"]);
        mget.extend((0..KEYS).map(|at| format!("key{at}")));
        let mut questions = vec![mget, words(&["DBSIZE"]), words(&["QLEN", "queue", "ALL"])];
        // A lock is shown by who asks in vain; the tokens that were given show in the next one.
        questions.extend((1..KEYS).step_by(10).map(|at| words(&["LOCK", &format!("lock{at}"), "nobody"])));
        questions.push(words(&["LOCK", "another", "me"]));
        format!("{:?}", self.run(&questions))
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// All files below a directory, but for those that decide nothing: RocksDB's diary and the locks.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            found.extend(files(&path));
        } else if !name.starts_with("LOG") && !name.starts_with("LOCK") {
            let bytes = fs::read(&path).unwrap();
            found.insert(path, bytes);
        }
    }
    found
}

/// What kind of file it is, for the account.
fn kind(dir: &Path, file: &Path) -> String {
    let name = file.strip_prefix(dir).unwrap().to_str().unwrap();
    let kind: String = name.chars().filter(|c| !c.is_ascii_digit()).collect();
    kind.replace("//", "/")
}

/// A stopped node of several lives: tables and a manifest in both stores, and a log file.
fn several_lives(dir: &Path) {
    for round in 0..3 {
        let node = open(dir).unwrap();
        node.write(round);
        node.replica.stop();
    }
}

/// A stopped node of one life: what is in its log is in no table.
fn one_life(dir: &Path) {
    let node = open(dir).unwrap();
    node.write(0);
    node.replica.stop();
}

/// A node that was killed, a second or more after its last write.
fn killed(dir: &Path) {
    let running = TestDir::new();
    let node = open(running.path()).unwrap();
    node.write(0);
    loop {
        copy_dir(running.path(), dir);
        let (end, known) = ends(dir);
        assert!(known <= end, "the watermark is ahead of the log");
        if known == end {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    node.replica.stop();
}

/// The number of the log's last change, and that of the watermark.
fn ends(dir: &Path) -> (u64, u64) {
    let log = LogStore::examine(dir).unwrap().unwrap();
    (log.sequence(), Watermark::examine(dir).unwrap().unwrap().change())
}

type Prepare = fn(&Path);

#[derive(Default)]
struct Account {
    refused: u64,
    served: u64,
}

#[test]
fn with_one_flipped_bit_a_node_refuses_or_serves_exactly_what_was_acknowledged() {
    let (flips, seed) = (number("BIT_FLIPS", 150), number("BIT_SEED", 1));
    println!("BIT_FLIPS={flips} BIT_SEED={seed}");
    let mut random = Random(seed);
    let mut account: BTreeMap<String, Account> = BTreeMap::new();
    let scenarios: [(&str, Prepare); 3] =
        [("several lives", several_lives), ("one life", one_life), ("killed", killed)];
    for (which, prepare) in scenarios {
        let (template, whole) = (TestDir::new(), TestDir::new());
        prepare(template.path());
        copy_dir(template.path(), whole.path());
        let node = open(whole.path()).unwrap();
        let expected = node.contents();
        node.replica.stop();
        let candidates = files(template.path());
        let candidates: Vec<_> = candidates.iter().filter(|(_, bytes)| !bytes.is_empty()).collect();
        for _ in 0..flips.div_ceil(3) {
            let (file, bytes) = candidates[random.below(candidates.len())];
            // Ends and beginnings are where formats are delicate.
            let near = bytes.len().min(512);
            let at = match random.below(3) {
                0 => random.below(near),
                1 => bytes.len() - 1 - random.below(near),
                _ => random.below(bytes.len()),
            };
            let bit = random.below(8);
            let name = file.strip_prefix(template.path()).unwrap();
            let context = format!("{which}: bit {bit} of byte {at} of {} of {}", bytes.len(), name.display());
            println!("{context}");
            let outcome = with_flip(template.path(), name, at, bit, &expected, &context);
            let account = account.entry(kind(template.path(), file)).or_default();
            if outcome { account.served += 1 } else { account.refused += 1 }
        }
    }
    for (kind, Account { refused, served }) in &account {
        println!("{kind:30} refused {refused:5}  served {served:5}");
    }
    assert!(account.values().any(|kind| kind.refused > 0));
}

/// Flips a bit of a copy and opens it. True when it serves, rightly; false when it is refused, rightly.
fn with_flip(template: &Path, name: &Path, at: usize, bit: usize, expected: &str, context: &str) -> bool {
    let copy = TestDir::new();
    let dir = copy.path();
    copy_dir(template, dir);
    let mut bytes = fs::read(dir.join(name)).unwrap();
    bytes[at] ^= 1 << bit;
    fs::write(dir.join(name), bytes).unwrap();
    let before = files(dir);
    match open(dir) {
        Ok(node) => {
            let found = node.contents();
            node.replica.stop();
            assert!(found == expected, "{context}: served something else");
            true
        }
        Err(error) => {
            let line = format!("{error:#}");
            println!("  {}: {line}", exit_status(&error));
            assert_eq!(line.lines().count(), 1, "{context}: {line}");
            assert!(line.contains(dir.to_str().unwrap()), "{context}: {line}");
            let is_format = name == Path::new("FORMAT");
            assert!(is_format || [65, 66].contains(&exit_status(&error)), "{context}: {line}");
            // Nothing was changed, and with damaged rows the log was at most opened.
            let after = files(dir);
            for (file, bytes) in &before {
                if name.starts_with("data") && file.starts_with(dir.join("log")) {
                    continue;
                }
                assert!(after.get(file) == Some(bytes), "{context}: {} was changed", file.display());
            }
            false
        }
    }
}

#[test]
fn the_watermark_reaches_the_end_of_the_log_at_a_stop_and_under_load() {
    for mode in ["always", "everysec", "no"] {
        let (dir, copy) = (TestDir::new(), TestDir::new());
        let node = open_in_mode(dir.path(), mode).unwrap();
        let mut last = 0;
        // Twice, while writes never pause for as long as the flusher takes to look idle.
        for _ in 0..2 {
            loop {
                node.run(&[words(&["INCR", "counter"])]);
                let known = Watermark::examine(dir.path()).unwrap().map_or(0, |watermark| watermark.change());
                if known > last {
                    last = known;
                    break;
                }
            }
            copy_dir(dir.path(), copy.path());
            let (end, known) = ends(copy.path());
            assert!(known >= last && known <= end, "{mode}: {known} of {end}");
        }
        node.replica.stop();
        let (end, known) = ends(dir.path());
        assert_eq!(end, known, "{mode}");
    }
}

/// The path of the newest log file of the log.
fn newest_log_file(dir: &Path) -> PathBuf {
    let found = files(&dir.join("log"));
    let is_log = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == "log");
    found.keys().rfind(is_log).unwrap().clone()
}

#[test]
fn a_log_that_is_cut_short_emptied_or_gone_is_noticed_and_left_as_it_is() {
    let template = TestDir::new();
    several_lives(template.path());
    let harms: [fn(&Path); 5] = [
        |dir| {
            let file = newest_log_file(dir);
            let length = fs::metadata(&file).unwrap().len();
            fs::File::options().write(true).open(file).unwrap().set_len(length - 1).unwrap();
        },
        |dir| {
            let file = newest_log_file(dir);
            fs::File::options().write(true).open(file).unwrap().set_len(0).unwrap();
        },
        |dir| fs::remove_file(newest_log_file(dir)).unwrap(),
        |dir| fs::remove_dir_all(dir.join("log")).unwrap(),
        |dir| fs::remove_file(dir.join("log/CURRENT")).unwrap(),
    ];
    for (at, harm) in harms.into_iter().enumerate() {
        let copy = TestDir::new();
        copy_dir(template.path(), copy.path());
        harm(copy.path());
        let before = files(copy.path());
        let error = open(copy.path()).err().unwrap();
        let line = format!("{error:#}");
        assert!(line.contains("lost synced writes") || line.contains("is damaged"), "{at}: {line}");
        assert!([65, 66].contains(&exit_status(&error)), "{at}: {line}");
        assert!(files(copy.path()) == before, "{at}: something was changed");
        // Without the watermark the end would not be missed; the rows are.
        fs::remove_file(copy.path().join("WATERMARK")).unwrap();
        println!("{at}: {line}\n   without the watermark: {:?}", examine(copy.path()).err());
    }
}

#[test]
fn rows_that_are_gone_are_made_again_while_the_log_has_all_of_it() {
    let template = TestDir::new();
    several_lives(template.path());
    let (copy, whole) = (TestDir::new(), TestDir::new());
    copy_dir(template.path(), copy.path());
    copy_dir(template.path(), whole.path());
    fs::remove_dir_all(copy.path().join("data")).unwrap();
    let (node, other) = (open(copy.path()).unwrap(), open(whole.path()).unwrap());
    assert_eq!(node.contents(), other.contents());
    node.replica.stop();
    other.replica.stop();
    // A part of them is worse than nothing.
    let copy = TestDir::new();
    copy_dir(template.path(), copy.path());
    fs::remove_file(copy.path().join("data/0/CURRENT")).unwrap();
    // RocksDB makes no store in a directory with log files.
    assert_eq!(exit_status(&open(copy.path()).err().unwrap()), 65);
}
