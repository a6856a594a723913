//! Power cuts and bad disks for single nodes: a library that is preloaded into the process (`power.c`) records what
//! is durable, and after `kill -9` the files are made what a power cut may leave.
//!
//! ```text
//! node ──write, sync, rename …──► power.c ──record──► Disk::cut_power: what was not synced goes, at random
//!                                    ▲
//!                 Disk::set ──control┘  slow or failing syncs, failing or short writes, a full disk
//! ```
//!
//! A power cut leaves of each file below the root what it held when its last successful `fsync` or `fdatasync`
//! began, and a random part of what was appended later, whose last bytes may be garbage if that is asked for.
//! `sync_file_range` makes nothing durable. Of the changes to a directory (names that were added, moved or removed)
//! that came after its last sync, a random number of the last is undone; a removed or replaced file comes back with
//! what was durable of it. A move between directories is one change, durable once either of them is synced. Changes
//! to different directories are kept or undone independently, and a new file whose name was not synced may go though
//! its contents were.
//!
//! Not simulated: overwriting in place is always kept (a node does that to WATERMARK and LOCK only), a file that was
//! cut shorter stays so, the root's own name is durable, and nothing that was synced is harmed.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use crate::support::Random;
use crate::support::node::Directory;
use crate::support::node::Node;

/// What `power.c` reads and counts, as 64-bit numbers.
const CONTROL_WORDS: usize = 64;

/// What a disk can be made to do. A number in the control file; 0 is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// Every sync takes so many milliseconds longer.
    SyncDelay = 0,
    /// Syncs fail with EIO.
    FailSyncs = 1,
    /// Writes fail with EIO.
    FailWrites = 2,
    /// Only [`Setting::Budget`] bytes can be written, then there is no space left.
    HasBudget = 3,
    Budget = 4,
    /// Every write of several bytes writes half of them.
    ShortWrites = 5,
}

/// How often it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    Syncs = 16,
    Delayed = 17,
    SyncsFailed = 18,
    WritesFailed = 19,
    NoSpace = 20,
    Shortened = 21,
}

/// The library, compiled once by each test binary.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let made = directory.join(format!("power-{}.so", std::process::id()));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/power.c");
        let compilers: [&[&str]; 4] = [&["cc"], &["gcc"], &["clang"], &["c++", "-x", "c"]];
        let mut failures = Vec::new();
        for compiler in compilers {
            let mut command = Command::new(compiler[0]);
            command.args(&compiler[1..]).args(["-std=gnu11", "-O2", "-shared", "-fPIC", "-o"]);
            match command.arg(&made).arg(&source).arg("-ldl").output() {
                Ok(output) if output.status.success() => {
                    // A rename, so that another process that tests never loads half of it.
                    fs::rename(&made, directory.join("power.so")).unwrap();
                    return directory.join("power.so");
                }
                Ok(output) => failures.push(String::from_utf8_lossy(&output.stderr).into_owned()),
                Err(error) => failures.push(format!("{}: {error}", compiler[0])),
            }
        }
        panic!("no C compiler made {}: {failures:?}", source.display());
    })
}

/// What becomes of that which was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// All of it, nothing or a part is kept.
    AtRandom,
    /// Nothing is kept.
    Nothing,
    /// Some is kept, and its end is garbage.
    Garbage,
}

/// What a power cut took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loss {
    /// Bytes that had been written and not synced, but for those of RocksDB's diary.
    pub bytes: u64,
    /// Changes of directories.
    pub changes: u64,
    /// Bytes that are garbage now.
    pub garbled: u64,
}

impl Loss {
    pub fn add(&mut self, other: Loss) {
        self.bytes += other.bytes;
        self.changes += other.changes;
        self.garbled += other.garbled;
    }
}

/// The disk of one node: its data directory as the root, and beside it the record.
pub struct Disk {
    root: PathBuf,
    directory: Directory,
    control: File,
}

impl Disk {
    /// A disk that behaves, with nothing on it.
    pub fn new(root: &Path) -> Disk {
        assert!(fs::read_dir(root).map_or(0, Iterator::count) == 0, "{} is not empty", root.display());
        // The record has the paths as the process names them and as the system does: these must be the same.
        assert_eq!(fs::canonicalize(root).unwrap(), root, "a path without symbolic links is needed");
        let directory = Directory::new();
        fs::create_dir(directory.path().join("grave")).unwrap();
        fs::write(directory.path().join("control"), [0; CONTROL_WORDS * 8]).unwrap();
        let control = File::options().read(true).write(true).open(directory.path().join("control")).unwrap();
        Disk { root: root.to_owned(), directory, control }
    }

    /// The variables of a process that works on this disk, beside the library.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let path = |name: &str| self.directory.path().join(name).display().to_string();
        vec![
            ("POWER_ROOT", self.root.display().to_string()),
            ("POWER_RECORD", path("record")),
            ("POWER_GRAVE", path("grave")),
            ("POWER_CONTROL", path("control")),
        ]
    }

    /// Gives it to a node that was not started.
    pub fn give(&self, node: &mut Node) {
        node.preload(library());
        for (name, value) in self.environment() {
            node.set_env(name, &value);
        }
    }

    /// The library, for other processes than nodes.
    pub fn library() -> &'static Path {
        library()
    }

    /// Switches a fault, also while the process runs.
    pub fn set(&self, setting: Setting, value: u64) {
        self.control.write_all_at(&value.to_ne_bytes(), setting as u64 * 8).unwrap();
    }

    /// Lets it behave again.
    pub fn repair(&self) {
        use Setting::*;
        for setting in [SyncDelay, FailSyncs, FailWrites, HasBudget, Budget, ShortWrites] {
            self.set(setting, 0);
        }
    }

    /// How often a fault took effect since the disk was made.
    pub fn count(&self, count: Count) -> u64 {
        let mut bytes = [0; 8];
        self.control.read_exact_at(&mut bytes, count as u64 * 8).unwrap();
        u64::from_ne_bytes(bytes)
    }

    /// Makes the files what a power cut may leave. The process has ended.
    pub fn cut_power(&self, random: &mut Random, tail: Tail) -> Loss {
        let record = self.read_record();
        let mut loss = Loss { changes: self.undo(&record, random), ..Loss::default() };
        for path in files_below(&self.root) {
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let length = metadata.len();
            let synced = record.synced.get(&metadata.ino()).copied().unwrap_or(0).min(length);
            if synced == length {
                continue;
            }
            let mut kept =
                synced + if tail == Tail::Nothing { 0 } else { kept_part(length - synced, random) };
            let file = File::options().read(true).write(true).open(&path).unwrap();
            if is_diary(&path) {
                file.set_len(kept).unwrap();
                continue;
            }
            if tail == Tail::Garbage {
                kept = kept.max(synced + 1);
                loss.garbled += garble(&file, synced, kept, random).unwrap();
            }
            file.set_len(kept).unwrap();
            loss.bytes += length - kept;
        }
        self.settle();
        loss
    }

    /// Notes that all that is there is durable, as it is after a power cut and after the directory was emptied.
    pub fn settle(&self) {
        let mut record = Record::default();
        for path in files_below(&self.root) {
            let metadata = fs::symlink_metadata(&path).unwrap();
            record.synced.insert(metadata.ino(), metadata.len());
        }
        self.write_record(&record);
    }

    /// Shortens the record, and lets go of removed files that cannot come back. The process has ended.
    pub fn compact(&self) {
        let mut record = self.read_record();
        let mut alive: BTreeSet<u64> =
            files_below(&self.root).iter().filter_map(|path| Some(fs::metadata(path).ok()?.ino())).collect();
        let graves = record.pending.iter().filter_map(|change| change.grave.as_ref());
        alive.extend(graves.filter_map(|path| Some(fs::metadata(path).ok()?.ino())));
        record.synced.retain(|inode, _| alive.contains(inode));
        self.write_record(&record);
    }

    fn read_record(&self) -> Record {
        let text = match fs::read_to_string(self.directory.path().join("record")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read.unwrap(),
        };
        let mut record = Record::default();
        for line in text.lines() {
            record.add(line).unwrap_or_else(|| panic!("a strange line in the record: {line}"));
        }
        record
    }

    fn write_record(&self, record: &Record) {
        let kept: BTreeSet<&Path> =
            record.pending.iter().filter_map(|change| change.grave.as_deref()).collect();
        for path in files_below(&self.directory.path().join("grave")) {
            if !kept.contains(path.as_path()) {
                fs::remove_file(path).unwrap();
            }
        }
        fs::write(self.directory.path().join("record"), record.text()).unwrap();
    }

    /// Undoes changes that no sync made durable; gives their number.
    fn undo(&self, record: &Record, random: &mut Random) -> u64 {
        let mut by_directory: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (number, change) in record.pending.iter().enumerate() {
            // A move belongs to the directory that it goes to.
            by_directory.entry(*change.directories.last().expect("a directory")).or_default().push(number);
        }
        let mut undone: BTreeSet<usize> = BTreeSet::new();
        for numbers in by_directory.values() {
            let kept = random.below(numbers.len() as u64 + 1) as usize;
            undone.extend(&numbers[kept..]);
        }
        undone.iter().rev().filter(|number| record.pending[**number].undo()).count() as u64
    }
}

/// RocksDB writes for people into these files, and never syncs them: what they lose counts for nothing.
fn is_diary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("LOG"))
}

/// Everything, nothing and something, often enough each.
fn kept_part(length: u64, random: &mut Random) -> u64 {
    match random.below(4) {
        0 => 0,
        1 => length,
        _ => random.below(length + 1),
    }
}

/// Makes some of the last bytes between two places zeros, or anything; gives their number.
fn garble(file: &File, from: u64, to: u64, random: &mut Random) -> io::Result<u64> {
    let length = (to - from).min(1 + random.below(64));
    let is_zeros = random.below(2) == 0;
    for at in to - length..to {
        file.write_all_at(&[if is_zeros { 0 } else { random.next() as u8 }], at)?;
    }
    Ok(length)
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files.extend(files_below(&entry.path()));
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    files
}

/// What `power.c` noted, and what follows from it. A line of it, whose fields are parted by tabs, says:
///
/// ```text
/// S inode length                  a file was synced; so long it was when the sync began
/// F directory                     a directory was synced; it is named by its inode, here and below
/// C directory inode path          a file was created
/// L directory inode path          a file got another name
/// M directory path                a directory was made
/// X directory - path              a directory was removed
/// U directory grave path          a file was removed, and has another link as `grave`; "-" is none
/// R old-directory new-directory inode grave old new      moved; what stood at the new name is `grave` now
/// ```
#[derive(Default)]
struct Record {
    /// How much of a file is durable, by inode; nothing of one that is not here.
    synced: BTreeMap<u64, u64>,
    /// Changes of directories that are not durable yet, the oldest first.
    pending: Vec<Change>,
}

/// A change of a directory.
struct Change {
    /// The line of the record.
    line: String,
    /// Those whose sync makes it durable, by inode.
    directories: Vec<u64>,
    /// The file that lost its name by it.
    grave: Option<PathBuf>,
    kind: ChangeKind,
}

enum ChangeKind {
    Added { inode: u64, path: PathBuf },
    DirectoryMade(PathBuf),
    DirectoryRemoved(PathBuf),
    Removed(PathBuf),
    Moved { inode: u64, old: PathBuf, new: PathBuf },
}

impl Record {
    /// Takes a line; `None` when it is not understood.
    fn add(&mut self, line: &str) -> Option<()> {
        let fields: Vec<&str> = line.split('\t').collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        let path = |at: usize| Some(PathBuf::from(fields.get(at)?));
        let grave = |at: usize| Some(path(at)?).filter(|grave| grave != Path::new("-"));
        let (directories, grave, kind) = match *fields.first()? {
            "S" => {
                self.synced.insert(number(1)?, number(2)?);
                return Some(());
            }
            "F" => {
                let directory = number(1)?;
                self.pending.retain(|change| !change.directories.contains(&directory));
                return Some(());
            }
            "C" => {
                // The system gives numbers of files that are gone to new ones.
                self.synced.remove(&number(2)?);
                (vec![number(1)?], None, ChangeKind::Added { inode: number(2)?, path: path(3)? })
            }
            "L" => (vec![number(1)?], None, ChangeKind::Added { inode: number(2)?, path: path(3)? }),
            "M" => (vec![number(1)?], None, ChangeKind::DirectoryMade(path(2)?)),
            "X" => (vec![number(1)?], None, ChangeKind::DirectoryRemoved(path(3)?)),
            "U" => (vec![number(1)?], grave(2), ChangeKind::Removed(path(3)?)),
            "R" => {
                let kind = ChangeKind::Moved { inode: number(3)?, old: path(5)?, new: path(6)? };
                (vec![number(1)?, number(2)?], grave(4), kind)
            }
            _ => return None,
        };
        self.pending.push(Change { line: line.to_owned(), directories, grave, kind });
        Some(())
    }

    fn text(&self) -> String {
        // Names first: one that was added makes its file unsynced.
        let changes = self.pending.iter().map(|change| format!("{}\n", change.line));
        let synced = self.synced.iter().map(|(inode, length)| format!("S\t{inode}\t{length}\n"));
        changes.chain(synced).collect()
    }
}

impl Change {
    /// True when something was there to be undone: its directory may be gone by another change.
    fn undo(&self) -> bool {
        let is_file =
            |path: &Path, inode: u64| fs::symlink_metadata(path).is_ok_and(|found| found.ino() == inode);
        let bring_back =
            |path: &Path| self.grave.as_ref().is_some_and(|grave| fs::hard_link(grave, path).is_ok());
        match &self.kind {
            ChangeKind::Added { inode, path } => is_file(path, *inode) && fs::remove_file(path).is_ok(),
            ChangeKind::DirectoryMade(path) => fs::remove_dir_all(path).is_ok(),
            ChangeKind::DirectoryRemoved(path) => fs::create_dir(path).is_ok(),
            ChangeKind::Removed(path) => bring_back(path),
            ChangeKind::Moved { inode, old, new } => {
                let can_move = is_file(new, *inode) && fs::symlink_metadata(old).is_err();
                let is_moved = can_move && fs::rename(new, old).is_ok();
                if is_moved && self.grave.is_some() {
                    bring_back(new);
                }
                is_moved
            }
        }
    }
}
