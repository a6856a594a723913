//! The data directory: whose it is, in which format, and that only one process uses it.
//!
//! Everything is checked before anything is created or changed, so that a refusal leaves the disk as it was.
//!
//! ```text
//! FORMAT     text: "holdfast-data 3" and "node-id 1", a line each
//! LOCK       locked while a process uses the directory; holds its process id, for people
//! WATERMARK  see watermark.rs
//! log/       see log.rs
//! data/<n>/  see data.rs
//! ```

use std::fs;
use std::fs::File;
use std::fs::TryLockError;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use crate::storage::StorageError;
use crate::types::NodeId;

/// The newest format of the data directory that this program reads, and the one it writes.
pub const FORMAT_VERSION: u32 = 4;

const FORMAT: &str = "FORMAT";
const FORMAT_NEW: &str = "FORMAT.new";
const LOCK: &str = "LOCK";
/// What may lie in a directory that is not ours yet: what a start leaves that was cut off, and what `mkfs`
/// puts into a fresh file system.
const HARMLESS: [&str; 3] = [LOCK, FORMAT_NEW, "lost+found"];
/// FORMAT is two lines; a file much longer is none of ours and need not be read whole.
const FORMAT_LENGTH_MAX: u64 = 4096;

/// Who opens a data directory. A directory belongs to one node for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The `node-id` of the configuration.
    pub node_id: NodeId,
}

/// The right to use a data directory, until it is dropped or the process ends. The stores in the directory
/// must not outlive it.
#[derive(Debug)]
pub struct DirLock {
    dir: PathBuf,
    /// The lock is the open file's.
    file: File,
}

impl DirLock {
    /// The directory as it was configured.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// False when the directory was removed or replaced under this process: what is written goes nowhere.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        let (Ok(held), Ok(found)) = (self.file.metadata(), fs::metadata(self.dir.join(LOCK))) else {
            return false;
        };
        (held.dev(), held.ino()) == (found.dev(), found.ino())
    }
}

/// Takes the data directory, creating it for this node when it is absent or empty.
///
/// Refuses, with nothing changed on disk, what is not a directory, not permitted, in use, another program's,
/// another node's, or of a newer format.
pub fn open_dir(dir: &Path, identity: Identity) -> Result<DirLock, StorageError> {
    let exists = inspect(dir, identity)?;
    if !exists {
        fs::create_dir_all(dir).map_err(|error| refused(dir, error))?;
        crate::storage::sync_parent(dir)?;
    }
    let file = lock(dir)?;
    // Again, under the lock: another process may have formatted the directory meanwhile.
    inspect(dir, identity)?;
    if !is_formatted(dir)? {
        write_format(dir, identity)?;
    }
    match note_process(&file) {
        // It is only for people, and a full disk must not keep a node from serving.
        Err(error) if error.kind() != io::ErrorKind::StorageFull => return Err(refused(dir, error)),
        _ => {}
    }
    Ok(DirLock { dir: dir.to_path_buf(), file })
}

/// Looks without touching. Returns whether the directory exists; an error if it must not be used.
fn inspect(dir: &Path, identity: Identity) -> Result<bool, StorageError> {
    match fs::metadata(dir) {
        Ok(found) if !found.is_dir() => return Err(StorageError::NotADirectory { dir: dir.to_path_buf() }),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(refused(dir, error)),
    }
    if is_formatted(dir)? {
        check_format(dir, identity)?;
        return Ok(true);
    }
    for entry in fs::read_dir(dir).map_err(|error| refused(dir, error))? {
        let name = entry.map_err(|error| refused(dir, error))?.file_name();
        let found = name.to_string_lossy();
        if !HARMLESS.contains(&&*found) {
            return Err(StorageError::NotOurs {
                dir: dir.to_path_buf(),
                found: found.escape_debug().to_string(),
            });
        }
    }
    Ok(true)
}

fn is_formatted(dir: &Path) -> Result<bool, StorageError> {
    fs::exists(dir.join(FORMAT)).map_err(|error| refused(dir, error))
}

fn check_format(dir: &Path, identity: Identity) -> Result<(), StorageError> {
    let path = dir.join(FORMAT);
    let mut text = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(FORMAT_LENGTH_MAX).read_to_end(&mut text));
    read.map_err(|error| refused(dir, error))?;
    let text = String::from_utf8_lossy(&text);
    let damaged = || StorageError::Corrupt { what: format!("{} is not readable", path.display()) };
    let mut lines = text.lines();
    // The version first, because only it says what the other lines mean.
    let found: u32 = field(lines.next(), "holdfast-data ").ok_or_else(damaged)?;
    if found > FORMAT_VERSION {
        return Err(StorageError::NewerFormat { dir: dir.to_path_buf(), found, known: FORMAT_VERSION });
    }
    if (1..FORMAT_VERSION).contains(&found) {
        return Err(StorageError::OlderFormat { dir: dir.to_path_buf(), found, known: FORMAT_VERSION });
    }
    let node_id = NodeId(field(lines.next(), "node-id ").ok_or_else(damaged)?);
    if found == 0 || lines.next().is_some() {
        return Err(damaged());
    }
    if node_id != identity.node_id {
        return Err(StorageError::OtherNode {
            dir: dir.to_path_buf(),
            found: node_id,
            wanted: identity.node_id,
        });
    }
    Ok(())
}

/// The number after `name`, if the line is that.
fn field<T: std::str::FromStr>(line: Option<&str>, name: &str) -> Option<T> {
    line?.strip_prefix(name)?.parse().ok()
}

fn lock(dir: &Path) -> Result<File, StorageError> {
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(dir.join(LOCK))
        .map_err(|error| refused(dir, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Only for the message: a file that cannot be read leaves the process unnamed.
            let _ = Read::by_ref(&mut file).take(32).read_to_string(&mut pid);
            Err(StorageError::InUse { dir: dir.to_path_buf(), pid: pid.trim().parse().ok() })
        }
        Err(TryLockError::Error(error)) => Err(StorageError::io(&dir.join(LOCK), error)),
    }
}

/// Leaves this process's id for the message of one that comes too late.
fn note_process(mut file: &File) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all(format!("{}\n", std::process::id()).as_bytes())
}

/// Writes FORMAT whole or not at all, durably.
fn write_format(dir: &Path, identity: Identity) -> Result<(), StorageError> {
    let new = dir.join(FORMAT_NEW);
    let text = format!("holdfast-data {FORMAT_VERSION}\nnode-id {}\n", identity.node_id);
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, dir.join(FORMAT))
    };
    write().map_err(|error| refused(dir, error))?;
    crate::storage::sync_dir(dir)
}

/// The line for what the system refused, with the permission cases apart: a person can mend these.
fn refused(dir: &Path, error: io::Error) -> StorageError {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            StorageError::NoPermission { dir: dir.to_path_buf() }
        }
        io::ErrorKind::NotADirectory => StorageError::NotADirectory { dir: dir.to_path_buf() },
        _ => StorageError::io(dir, error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::storage::test_support::TestDir;

    const ONE: Identity = Identity { node_id: NodeId(1) };

    /// Names and contents of all files of a directory.
    fn picture(dir: &Path) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap_or_default())
            })
            .collect();
        files.sort();
        files
    }

    #[test]
    fn an_absent_directory_is_created_and_belongs_to_its_node_from_then_on() {
        let parent = TestDir::new();
        let dir = parent.path().join("a/b");
        let lock = open_dir(&dir, ONE).unwrap();
        assert_eq!(lock.path(), dir);
        assert_eq!(fs::read_to_string(dir.join("FORMAT")).unwrap(), "holdfast-data 4\nnode-id 1\n");
        drop(lock);
        open_dir(&dir, ONE).unwrap();
    }

    #[test]
    fn a_start_that_was_cut_off_before_format_is_completed() {
        let dir = TestDir::new();
        fs::write(dir.path().join("LOCK"), "").unwrap();
        fs::write(dir.path().join("FORMAT.new"), "holdfast-da").unwrap();
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        open_dir(dir.path(), ONE).unwrap();
        open_dir(dir.path(), ONE).unwrap();
    }

    #[test]
    fn a_directory_that_must_not_be_used_is_refused_in_one_line_and_left_as_it_was() {
        let newer = "was written by a newer Holdfast (format 5; this one knows 4): start that version";
        let older = "was written by an earlier Holdfast (format 3; this one knows 4): choose an empty dir";
        let cases = [
            ("FORMAT", "holdfast-data 5\nwhatever\n", newer),
            ("FORMAT", "holdfast-data 3\nnode-id 1\n", older),
            ("FORMAT", "holdfast-data 4\nnode-id 2\n", "belongs to node 2, not node 1: set node-id 2"),
            ("FORMAT", "holdfast-data 0\nnode-id 1\n", "FORMAT is not readable"),
            ("FORMAT", "holdfast-data 4\nnode-id 1\nmore 1\n", "FORMAT is not readable"),
            ("FORMAT", "holdfast-data 4\n", "FORMAT is not readable"),
            ("FORMAT", "", "FORMAT is not readable"),
            ("dump.rdb", "REDIS0009", "not a Holdfast data directory (it holds dump.rdb)"),
        ];
        for (name, contents, expected) in cases {
            let dir = TestDir::new();
            fs::write(dir.path().join(name), contents).unwrap();
            let before = picture(dir.path());
            let line = open_dir(dir.path(), ONE).unwrap_err().to_string();
            assert!(line.contains(expected), "{line}");
            assert!(line.contains(&dir.path().display().to_string()), "{line}");
            assert_eq!(line.lines().count(), 1);
            assert_eq!(picture(dir.path()), before);
        }
    }

    #[test]
    fn a_file_in_place_of_the_directory_or_above_it_is_refused() {
        let parent = TestDir::new();
        let file = parent.path().join("file");
        fs::write(&file, "").unwrap();
        for dir in [file.clone(), file.join("below")] {
            let error = open_dir(&dir, ONE).unwrap_err();
            assert!(matches!(error, StorageError::NotADirectory { .. }), "{error}");
        }
    }

    #[test]
    fn a_directory_in_use_is_refused_with_the_process_that_uses_it() {
        let dir = TestDir::new();
        let held = open_dir(dir.path(), ONE).unwrap();
        let before = picture(dir.path());
        let line = open_dir(dir.path(), ONE).unwrap_err().to_string();
        assert!(line.contains(&format!("in use by another process (pid {})", std::process::id())), "{line}");
        assert_eq!(picture(dir.path()), before);
        drop(held);
        open_dir(dir.path(), ONE).unwrap();
    }

    #[test]
    fn a_directory_without_permission_is_refused() {
        let parent = TestDir::new();
        let dir = parent.path().join("closed");
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o500)).unwrap();
        // The superuser may write everywhere, so for it there is nothing to see here.
        if fs::write(dir.join("probe"), "").is_ok() {
            return;
        }
        for dir in [dir.clone(), dir.join("below")] {
            let error = open_dir(&dir, ONE).unwrap_err();
            assert!(matches!(error, StorageError::NoPermission { .. }), "{error}");
        }
    }
}
