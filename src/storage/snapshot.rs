//! Snapshots on disk: the files of one that is sent, the directory of one that arrives, and its install.
//!
//! ```text
//! <dir>/snapshots/<group>-<index>/         sent from: a checkpoint, links to the tables of data/<group>/
//! <dir>/incoming/<group>-<index>-<term>/   arriving; whole and synced before anybody hears of it
//! <dir>/data/<group>/                      the rows in use
//! <dir>/data/<group>.old/                  the rows before an install, on their way out
//! ```
//!
//! An install must not be half done after a crash at any instruction, and it spans two RocksDB instances
//! (DESIGN.md D3). The batch of `log/` that holds the install marker is the moment at which it happens;
//! everything after it is repeated until it is done:
//!
//! ```text
//! incoming/<name> synced ─► log batch: meta, hard state, ─► data/<g> moved to ─► incoming/<name> ─► <g>.old ─► marker
//!                           no entries, marker (synced)     data/<g>.old         moved to data/<g>   deleted    cleared
//!   a crash here: the                    a crash here: `finish_installs` goes on from what it finds
//!   old state goes on
//! ```

use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;

use crate::storage::LogBatch;
use crate::storage::LogStore;
use crate::storage::StorageError;
use crate::types::GroupId;
use crate::types::LogIndex;
use crate::types::Term;

const SNAPSHOTS: &str = "snapshots";
const INCOMING: &str = "incoming";
const DATA: &str = "data";
/// What follows the group's name in the name of rows that were replaced.
const OLD: &str = ".old";
/// A file name has at most so many bytes in every file system we meet.
const NAME_LENGTH_MAX: usize = 255;
/// How much is read at once to compute a checksum.
const READ_BYTES: usize = 256 << 10;

/// One file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotFile {
    /// A plain name, see [`is_plain_name`].
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// CRC-32C of the content.
    pub crc: u32,
}

/// What every instruction of an install is announced to before it runs; an error stops there. Only tests
/// have a use for it: it is how they crash between any two of them.
type Steps<'a> = dyn FnMut() -> Result<(), StorageError> + 'a;

/// True for a name that cannot lead out of its directory: 1 to 255 letters, digits, `-`, `_` and `.`, not
/// starting with `.`. All names that RocksDB gives are such.
#[must_use]
pub fn is_plain_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=NAME_LENGTH_MAX).contains(&name.len()) && name.bytes().all(is_plain) && !name.starts_with('.')
}

/// The path for [`crate::storage::DataStore::checkpoint`] of this group at this index. Makes the directory
/// above it.
pub fn outgoing_path(dir: &Path, group: GroupId, index: LogIndex) -> Result<PathBuf, StorageError> {
    let snapshots = dir.join(SNAPSHOTS);
    crate::storage::ensure_dir(&snapshots)?;
    Ok(snapshots.join(format!("{}-{index}", group.0)))
}

/// Where a snapshot that has arrived is.
#[must_use]
pub fn incoming_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(INCOMING).join(name)
}

/// The name below `<dir>/incoming/` of a snapshot that arrives.
#[must_use]
pub fn incoming_name(group: GroupId, index: LogIndex, term: Term) -> String {
    format!("{}-{index}-{}", group.0, term.0)
}

/// The files of a checkpoint by name, with their checksums. Reads all of them: see [`FileLister`] for a
/// thread with other work. Anything but regular files with plain names is refused.
pub fn list_files(checkpoint: &Path) -> Result<Vec<SnapshotFile>, StorageError> {
    let mut lister = FileLister::new(checkpoint)?;
    while !lister.step(u64::MAX)? {}
    Ok(lister.into_files())
}

/// Lists the files of a checkpoint in steps, because checksums of gigabytes take their time.
#[derive(Debug)]
pub struct FileLister {
    dir: PathBuf,
    files: Vec<SnapshotFile>,
    /// The file whose checksum is being computed.
    at: usize,
    /// That file, and how much of it was read.
    open: Option<(File, u64)>,
    buffer: Vec<u8>,
}

impl FileLister {
    /// Reads the names and sizes.
    pub fn new(checkpoint: &Path) -> Result<FileLister, StorageError> {
        let io = |error| StorageError::io(checkpoint, error);
        let mut files = Vec::new();
        for entry in fs::read_dir(checkpoint).map_err(io)? {
            let entry = entry.map_err(io)?;
            let metadata = entry.metadata().map_err(io)?;
            let name = entry.file_name().into_string().ok().filter(|name| is_plain_name(name));
            match name {
                Some(name) if metadata.is_file() => {
                    files.push(SnapshotFile { name, size: metadata.len(), crc: 0 });
                }
                _ => return Err(invalid(&entry.path(), "not a file that belongs into a snapshot")),
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let dir = checkpoint.to_path_buf();
        Ok(FileLister { dir, files, at: 0, open: None, buffer: vec![0; READ_BYTES] })
    }

    /// Reads about `bytes_max` bytes on. True when all checksums are computed.
    pub fn step(&mut self, bytes_max: u64) -> Result<bool, StorageError> {
        let mut done = 0u64;
        while let Some(file) = self.files.get_mut(self.at) {
            if done >= bytes_max {
                return Ok(false);
            }
            let path = self.dir.join(&file.name);
            let io = |error| StorageError::io(&path, error);
            let (open, total) = match &mut self.open {
                Some(open) => open,
                none => none.insert((File::open(&path).map_err(io)?, 0)),
            };
            let read = open.read(&mut self.buffer).map_err(io)?;
            file.crc = crc32c::crc32c_append(file.crc, &self.buffer[..read]);
            *total += read as u64;
            done = done.saturating_add(read as u64);
            if read == 0 {
                if *total != file.size {
                    return Err(invalid(&path, "the file changed while it was read"));
                }
                (self.open, self.at) = (None, self.at + 1);
            }
        }
        Ok(true)
    }

    /// The files; their checksums are right once `step` has returned true.
    #[must_use]
    pub fn into_files(self) -> Vec<SnapshotFile> {
        self.files
    }
}

/// Reads pieces of the files of a checkpoint. Keeps the last file open: it is read from front to end.
#[derive(Debug)]
pub struct SnapshotReader {
    dir: PathBuf,
    open: Option<(String, File)>,
}

impl SnapshotReader {
    /// For the files in this directory. Opens nothing yet.
    #[must_use]
    pub fn new(checkpoint: &Path) -> SnapshotReader {
        SnapshotReader { dir: checkpoint.to_path_buf(), open: None }
    }

    /// Reads exactly `length` bytes at `offset`; a file that ends before is an error.
    pub fn read_at(&mut self, name: &str, offset: u64, length: usize) -> Result<Vec<u8>, StorageError> {
        let path = plain_path(&self.dir, name)?;
        let io = |error| StorageError::io(&path, error);
        let file = match self.open.take() {
            Some((open, file)) if open == name => file,
            _ => File::open(&path).map_err(io)?,
        };
        let mut data = vec![0; length];
        file.read_exact_at(&mut data, offset).map_err(io)?;
        self.open = Some((name.to_owned(), file));
        Ok(data)
    }
}

/// The directory of a snapshot that arrives, `<dir>/incoming/<name>/`.
#[derive(Debug)]
pub struct IncomingDir {
    path: PathBuf,
    open: Option<(String, File)>,
}

impl IncomingDir {
    /// Makes it, empty, whatever was there under this name.
    pub fn create(dir: &Path, name: &str) -> Result<IncomingDir, StorageError> {
        let incoming = dir.join(INCOMING);
        crate::storage::ensure_dir(&incoming)?;
        let path = plain_path(&incoming, name)?;
        remove_tree(&path, &mut || Ok(()))?;
        crate::storage::ensure_dir(&path)?;
        Ok(IncomingDir { path, open: None })
    }

    /// Deletes `<dir>/incoming/<name>/`, if it is there.
    pub fn remove(dir: &Path, name: &str) -> Result<(), StorageError> {
        remove_tree(&plain_path(&dir.join(INCOMING), name)?, &mut || Ok(()))
    }

    /// Writes at an offset of a file, which is created when it is not there. Not synced.
    pub fn write_at(&mut self, name: &str, offset: u64, data: &[u8]) -> Result<(), StorageError> {
        let path = plain_path(&self.path, name)?;
        let io = |error| StorageError::io(&path, error);
        let file = match self.open.take() {
            Some((open, file)) if open == name => file,
            _ => File::options().write(true).create(true).truncate(false).open(&path).map_err(io)?,
        };
        file.write_all_at(data, offset).map_err(io)?;
        self.open = Some((name.to_owned(), file));
        Ok(())
    }

    /// Makes a file durable, creating it when nothing was ever written to it, and closes it.
    pub fn sync_file(&mut self, name: &str) -> Result<(), StorageError> {
        self.write_at(name, 0, &[])?;
        let synced = self.open.take().map_or(Ok(()), |(_, file)| file.sync_all());
        synced.map_err(|error| StorageError::io(&self.path.join(name), error))
    }

    /// Closes the file that was written last; nothing is lost.
    pub fn close(&mut self) {
        self.open = None;
    }

    /// Makes the names durable: of the files, and of the directory. After this, and `sync_file` of each file,
    /// the snapshot is whole.
    pub fn sync(&self) -> Result<(), StorageError> {
        crate::storage::sync_dir(&self.path)?;
        crate::storage::sync_parent(&self.path)
    }
}

/// Puts `<dir>/incoming/<incoming>/` in the place of `<dir>/data/<group>/` and deletes what was there.
///
/// The group's [`crate::storage::DataStore`] must be closed, and the install marker on disk. May be called
/// again after a crash at any instruction: it goes on from what it finds. `Corrupt` when neither the snapshot
/// nor rows are there. After any other error it is unknown how far it came, and the process must stop.
pub fn swap_in(dir: &Path, group: GroupId, incoming: &str) -> Result<(), StorageError> {
    swap_in_by_steps(dir, group, incoming, &mut || Ok(()))
}

/// Finishes an install whose marker is on disk: [`swap_in`], then clears the marker, synced. For a running
/// node; a start calls [`finish_installs`].
pub fn finish_install(
    dir: &Path,
    log: &LogStore,
    group: GroupId,
    incoming: &str,
) -> Result<(), StorageError> {
    finish_install_by_steps(dir, log, group, incoming, &mut || Ok(()))
}

/// Finishes every install whose marker is on disk, and returns their groups. Then deletes what transfers and
/// installs left behind: all of `incoming/` and `snapshots/`, and replaced rows. To be called at start, before
/// anything else looks at the log or the rows.
pub fn finish_installs(dir: &Path, log: &LogStore) -> Result<Vec<GroupId>, StorageError> {
    finish_installs_by_steps(dir, log, &mut || Ok(()))
}

fn finish_installs_by_steps(
    dir: &Path,
    log: &LogStore,
    step: &mut Steps<'_>,
) -> Result<Vec<GroupId>, StorageError> {
    let mut groups = Vec::new();
    for (group, incoming) in log.install_markers()? {
        finish_install_by_steps(dir, log, group, &incoming, step)?;
        groups.push(group);
    }
    for name in [INCOMING, SNAPSHOTS] {
        remove_entries(&dir.join(name), |_| true, step)?;
    }
    remove_entries(&dir.join(DATA), |name| name.ends_with(OLD), step)?;
    Ok(groups)
}

fn finish_install_by_steps(
    dir: &Path,
    log: &LogStore,
    group: GroupId,
    incoming: &str,
    step: &mut Steps<'_>,
) -> Result<(), StorageError> {
    swap_in_by_steps(dir, group, incoming, step)?;
    step()?;
    let mut batch = LogBatch::new();
    batch.clear_install_marker(group);
    log.write(batch, true)
}

fn swap_in_by_steps(
    dir: &Path,
    group: GroupId,
    incoming: &str,
    step: &mut Steps<'_>,
) -> Result<(), StorageError> {
    let data = dir.join(DATA);
    let arrived = plain_path(&dir.join(INCOMING), incoming)?;
    let current = data.join(group.0.to_string());
    let old = data.join(format!("{}{OLD}", group.0));
    crate::storage::ensure_dir(&data)?;
    if exists(&arrived)? {
        if exists(&current)? {
            // Of an install before this one, whose last step was cut off.
            remove_tree(&old, step)?;
            rename(&current, &old, step)?;
            // A power cut must not bring the new rows here and leave the old ones too.
            sync(&data, step)?;
        }
        rename(&arrived, &current, step)?;
    } else if !exists(&current)? {
        let what = format!("group {}: a snapshot was to be installed, but {incoming} is missing", group.0);
        return Err(StorageError::Corrupt { what });
    }
    // Also when an earlier call moved it: that one may have died before it synced.
    sync(&data, step)?;
    if exists(&dir.join(INCOMING))? {
        sync(&dir.join(INCOMING), step)?;
    }
    remove_tree(&old, step)?;
    sync(&data, step)
}

fn rename(from: &Path, to: &Path, step: &mut Steps<'_>) -> Result<(), StorageError> {
    step()?;
    fs::rename(from, to).map_err(|error| StorageError::io(from, error))
}

fn sync(dir: &Path, step: &mut Steps<'_>) -> Result<(), StorageError> {
    step()?;
    crate::storage::sync_dir(dir)
}

/// Deletes a directory and all in it; nothing when it is not there.
fn remove_tree(path: &Path, step: &mut Steps<'_>) -> Result<(), StorageError> {
    if !exists(path)? {
        return Ok(());
    }
    remove_entries(path, |_| true, step)?;
    step()?;
    fs::remove_dir(path).map_err(|error| StorageError::io(path, error))
}

/// Deletes what is in a directory, as far as its names are `wanted`; nothing when the directory is not there.
fn remove_entries(
    dir: &Path,
    wanted: impl Fn(&str) -> bool,
    step: &mut Steps<'_>,
) -> Result<(), StorageError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|error| StorageError::io(dir, error))?,
    };
    for entry in entries {
        let entry = entry.map_err(|error| StorageError::io(dir, error))?;
        if !wanted(&entry.file_name().to_string_lossy()) {
            continue;
        }
        step()?;
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_dir { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        removed.map_err(|error| StorageError::io(&entry.path(), error))?;
    }
    Ok(())
}

fn exists(path: &Path) -> Result<bool, StorageError> {
    fs::exists(path).map_err(|error| StorageError::io(path, error))
}

/// `dir/name`, if the name is one that stays inside.
fn plain_path(dir: &Path, name: &str) -> Result<PathBuf, StorageError> {
    if is_plain_name(name) { Ok(dir.join(name)) } else { Err(invalid(dir, "not a plain file name")) }
}

fn invalid(path: &Path, why: &'static str) -> StorageError {
    StorageError::io(path, io::Error::new(io::ErrorKind::InvalidData, why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::DataBatch;
    use crate::storage::DataStore;
    use crate::storage::HardStateRecord;
    use crate::storage::LogEntryRecord;
    use crate::storage::SharedCaches;
    use crate::storage::test_support::TestDir;
    use crate::storage::test_support::copy_dir;

    const GROUP: GroupId = GroupId(3);
    const OTHER: GroupId = GroupId(4);
    const OLD_STATE: HardStateRecord = HardStateRecord { term: 2, vote: 1, commit: 4 };
    const NEW_STATE: HardStateRecord = HardStateRecord { term: 5, vote: 0, commit: 90 };
    const META: &[u8] = b"index 90 term 5 voters 1 2 3";

    fn caches() -> SharedCaches {
        SharedCaches::new(1 << 20, 16 << 20)
    }

    fn put(store: &DataStore, rows: &[(&str, &str)]) {
        let mut batch = DataBatch::new();
        rows.iter().for_each(|(key, value)| batch.put(key.as_bytes(), value.as_bytes()));
        store.write(batch).unwrap();
    }

    fn rows(path: &Path) -> Vec<(String, String)> {
        let mut rows = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let mut collect = |key: &[u8], value: &[u8]| {
            rows.push((text(key), text(value)));
            Ok(())
        };
        DataStore::open_at(path, &caches()).unwrap().scan(b"", &mut collect).unwrap();
        rows
    }

    fn append(batch: &mut LogBatch, group: GroupId) {
        for index in 1..=4 {
            batch.append(group, &LogEntryRecord { index, term: 2, data: vec![7; 9], ..Default::default() });
        }
    }

    /// A node with old rows and entries, and a whole snapshot that waits in `incoming/`.
    fn before_install(dir: &Path) -> String {
        put(&DataStore::open(dir, GROUP, &caches()).unwrap(), &[("applied", "4"), ("old", "row")]);
        put(&DataStore::open(dir, OTHER, &caches()).unwrap(), &[("applied", "4")]);
        let log = LogStore::open(dir).unwrap();
        let mut batch = LogBatch::new();
        for group in [GROUP, OTHER] {
            batch.hard_state(group, OLD_STATE);
            batch.group_meta(group, b"b", b"boot");
            batch.group_meta(group, b"m", b"replica");
            append(&mut batch, group);
        }
        log.write(batch, true).unwrap();
        let name = incoming_name(GROUP, LogIndex(90), Term(5));
        let source = TestDir::new();
        let store = DataStore::open(source.path(), GROUP, &caches()).unwrap();
        put(&store, &[("applied", "90"), ("new", "row")]);
        let checkpoint = outgoing_path(source.path(), GROUP, LogIndex(90)).unwrap();
        store.checkpoint(&checkpoint).unwrap();
        let mut reader = SnapshotReader::new(&checkpoint);
        let mut incoming = IncomingDir::create(dir, &name).unwrap();
        for file in list_files(&checkpoint).unwrap() {
            let content = reader.read_at(&file.name, 0, file.size as usize).unwrap();
            assert_eq!(crc32c::crc32c(&content), file.crc);
            incoming.write_at(&file.name, 0, &content).unwrap();
            incoming.sync_file(&file.name).unwrap();
        }
        incoming.sync().unwrap();
        name
    }

    /// The install as a running node does it.
    fn install(dir: &Path, name: &str, step: &mut Steps<'_>) -> Result<(), StorageError> {
        let log = LogStore::open(dir)?;
        let mut batch = LogBatch::new();
        batch.snapshot_meta(GROUP, META);
        batch.hard_state(GROUP, NEW_STATE);
        batch.clear_entries(GROUP);
        batch.install_marker(GROUP, name);
        step()?;
        log.write(batch, true)?;
        finish_install_by_steps(dir, &log, GROUP, name, step)?;
        step()
    }

    /// A hook that keeps a picture of the disk as of step `at` and stops there.
    fn crash_at<'a>(
        at: usize,
        dir: &'a Path,
        picture: &'a Path,
    ) -> impl FnMut() -> Result<(), StorageError> + 'a {
        let mut seen = 0;
        move || {
            seen += 1;
            if seen == at {
                copy_dir(dir, picture);
                return Err(StorageError::Rocks("crash".to_owned()));
            }
            Ok(())
        }
    }

    fn is_crash<T>(result: &Result<T, StorageError>) -> bool {
        matches!(result, Err(StorageError::Rocks(text)) if text == "crash")
    }

    /// True for the new state, false for the old one; anything else is a mix.
    fn is_installed(dir: &Path, context: &str) -> bool {
        let log = LogStore::open(dir).unwrap();
        assert_eq!(log.install_markers().unwrap(), vec![], "{context}");
        let other = log.load(OTHER, LogIndex(0)).unwrap();
        assert_eq!((other.entries.len(), other.hard_state), (4, Some(OLD_STATE)), "{context}");
        assert_eq!(rows(&dir.join("data/4")), [("applied".to_owned(), "4".to_owned())]);
        let contents = log.load(GROUP, LogIndex(0)).unwrap();
        assert_eq!(contents.meta.get(&b"b"[..]).map(Vec::as_slice), Some(&b"boot"[..]), "{context}");
        let mut left: Vec<_> =
            fs::read_dir(dir.join("data")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["3", "4"], "{context}");
        for name in [INCOMING, SNAPSHOTS] {
            assert_eq!(fs::read_dir(dir.join(name)).map_or(0, Iterator::count), 0, "{context}: {name}");
        }
        let rows = rows(&dir.join("data/3"));
        let text = |rows: &[(&str, &str)]| -> Vec<(String, String)> {
            rows.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        if contents.snapshot_meta().is_some() {
            assert_eq!(contents.snapshot_meta(), Some(META), "{context}");
            assert_eq!((contents.entries.len(), contents.first_index), (0, None), "{context}");
            assert_eq!(contents.hard_state, Some(NEW_STATE), "{context}");
            assert_eq!(rows, text(&[("applied", "90"), ("new", "row")]), "{context}");
            return true;
        }
        assert_eq!((contents.entries.len(), contents.hard_state), (4, Some(OLD_STATE)), "{context}");
        assert_eq!(rows, text(&[("applied", "4"), ("old", "row")]), "{context}");
        false
    }

    #[test]
    fn a_crash_at_any_step_of_an_install_leaves_the_old_state_or_the_new_one() {
        let template = TestDir::new();
        let name = before_install(template.path());
        let mut outcomes = Vec::new();
        for at in 1.. {
            let (node, after_crash) = (TestDir::new(), TestDir::new());
            copy_dir(template.path(), node.path());
            let crashed = install(node.path(), &name, &mut crash_at(at, node.path(), after_crash.path()));
            if !is_crash(&crashed) {
                crashed.unwrap();
                assert!(is_installed(node.path(), "without a crash"));
                break;
            }
            // The start after it may crash as well, at any of its steps.
            for again in (1..).step_by(3) {
                let (started, after_second) = (TestDir::new(), TestDir::new());
                copy_dir(after_crash.path(), started.path());
                let result = {
                    let log = LogStore::open(started.path()).unwrap();
                    let mut hook = crash_at(again, started.path(), after_second.path());
                    finish_installs_by_steps(started.path(), &log, &mut hook)
                };
                let context = format!("step {at}, then step {again}");
                if is_crash(&result) {
                    let log = LogStore::open(after_second.path()).unwrap();
                    finish_installs(after_second.path(), &log).unwrap();
                    drop(log);
                    assert_eq!(is_installed(after_second.path(), &context), at > 1, "{context}");
                    continue;
                }
                result.unwrap();
                outcomes.push(is_installed(started.path(), &context));
                break;
            }
        }
        assert!(outcomes.len() > 10, "{outcomes:?}");
        assert_eq!(outcomes.iter().filter(|is_new| !**is_new).count(), 1, "{outcomes:?}");
        assert!(!outcomes[0], "{outcomes:?}");
    }

    #[test]
    fn what_an_earlier_install_left_does_not_stop_the_next() {
        let dir = TestDir::new();
        let name = before_install(dir.path());
        fs::create_dir(dir.path().join("data/3.old")).unwrap();
        fs::write(dir.path().join("data/3.old/000009.sst"), "half deleted").unwrap();
        install(dir.path(), &name, &mut || Ok(())).unwrap();
        assert!(is_installed(dir.path(), ""));
    }

    #[test]
    fn a_node_without_rows_installs_too() {
        let dir = TestDir::new();
        let name = before_install(dir.path());
        fs::remove_dir_all(dir.path().join("data/3")).unwrap();
        install(dir.path(), &name, &mut || Ok(())).unwrap();
        assert!(is_installed(dir.path(), ""));
    }

    #[test]
    fn a_snapshot_that_vanished_is_noticed() {
        let dir = TestDir::new();
        let name = before_install(dir.path());
        let log = LogStore::open(dir.path()).unwrap();
        let mut batch = LogBatch::new();
        batch.install_marker(GROUP, &name);
        batch.install_marker(GroupId(u32::MAX), "x");
        log.write(batch, true).unwrap();
        let markers = log.install_markers().unwrap();
        assert_eq!(markers, vec![(GROUP, name.clone()), (GroupId(u32::MAX), "x".to_owned())]);
        fs::remove_dir_all(dir.path().join(INCOMING).join(&name)).unwrap();
        fs::remove_dir_all(dir.path().join("data/3")).unwrap();
        let error = finish_installs(dir.path(), &log).unwrap_err().to_string();
        assert!(error.contains(&name), "{error}");
        assert!(dir.path().join("data/4").exists());
    }

    #[test]
    fn a_start_without_a_marker_deletes_what_transfers_left() {
        let dir = TestDir::new();
        before_install(dir.path());
        let store = DataStore::open(dir.path(), GROUP, &caches()).unwrap();
        store.checkpoint(&outgoing_path(dir.path(), GROUP, LogIndex(4)).unwrap()).unwrap();
        drop(store);
        fs::create_dir_all(dir.path().join("data/9.old")).unwrap();
        let log = LogStore::open(dir.path()).unwrap();
        assert_eq!(finish_installs(dir.path(), &log).unwrap(), vec![]);
        drop(log);
        assert!(!is_installed(dir.path(), ""));
    }

    #[test]
    fn only_plain_names_are_file_names() {
        for name in ["CURRENT", "MANIFEST-000005", "000012.sst", "a", &"x".repeat(255)] {
            assert!(is_plain_name(name), "{name}");
        }
        for name in ["", ".", "..", "../a", "a/b", "/etc", "a\\b", "a\0", "é", ".hidden", &"x".repeat(256)] {
            assert!(!is_plain_name(name), "{name:?}");
            let dir = TestDir::new();
            assert!(IncomingDir::create(dir.path(), name).is_err(), "{name:?}");
            assert!(SnapshotReader::new(dir.path()).read_at(name, 0, 0).is_err(), "{name:?}");
            assert!(swap_in(dir.path(), GROUP, name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn files_are_listed_by_name_with_their_checksums() {
        let dir = TestDir::new();
        for (name, content) in [("b", "123456789".repeat(100_000)), ("a", String::new())] {
            fs::write(dir.path().join(name), content).unwrap();
        }
        let whole = crc32c::crc32c("123456789".repeat(100_000).as_bytes());
        let expected = [("a", 0, 0), ("b", 900_000, whole)].map(|(name, size, crc)| SnapshotFile {
            name: name.to_owned(),
            size,
            crc,
        });
        assert_eq!(list_files(dir.path()).unwrap(), expected);
        let mut lister = FileLister::new(dir.path()).unwrap();
        let mut steps = 1;
        while !lister.step(300_000).unwrap() {
            steps += 1;
        }
        assert_eq!((lister.into_files(), steps), (expected.to_vec(), 3));
        fs::create_dir(dir.path().join("c")).unwrap();
        assert!(list_files(dir.path()).is_err());
    }

    #[test]
    fn a_checkpoint_without_a_log_of_its_own_holds_everything_written_before() {
        let dir = TestDir::new();
        let store = DataStore::open(dir.path(), GROUP, &caches()).unwrap();
        let mut expected = Vec::new();
        for number in 0..500 {
            let (key, value) = (format!("key{number:04}"), "v".repeat(number));
            put(&store, &[(&key, &value)]);
            expected.push((key, value));
            if number == 200 {
                store.flush().unwrap();
            }
        }
        let checkpoint = outgoing_path(dir.path(), GROUP, LogIndex(500)).unwrap();
        store.checkpoint(&checkpoint).unwrap();
        put(&store, &[("later", "row")]);
        // As a receiver gets it: nothing but the listed files.
        let copy = TestDir::new();
        for file in list_files(&checkpoint).unwrap() {
            fs::copy(checkpoint.join(&file.name), copy.path().join(&file.name)).unwrap();
        }
        assert_eq!(rows(copy.path()), expected);
    }
}
