//! The note that damage was met while a node without peers ran.
//!
//! ```text
//! <dir>/DAMAGE   absent ──note──► one line that says where ──clear, all data was read and is whole──► absent
//! ```
//! A start looks whether log and rows are whole without reading all rows: a payload is read when its turn comes. With the
//! note it reads them all, so that a node which refused to go on refuses to start, until the data is another's.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::path::Path;

use crate::storage::StorageError;

const NAME: &str = "DAMAGE";

/// Notes it, durably. `what` is one line for people.
pub fn note(dir: &Path, what: &str) -> Result<(), StorageError> {
    let path = dir.join(NAME);
    let write = || {
        let mut file = File::create(&path)?;
        file.write_all(format!("{what}\n").as_bytes())?;
        file.sync_all()
    };
    write().map_err(|error| StorageError::io(&path, error))?;
    crate::storage::sync_dir(dir)
}

/// True when damage was noted.
pub fn is_noted(dir: &Path) -> Result<bool, StorageError> {
    let path = dir.join(NAME);
    fs::exists(&path).map_err(|error| StorageError::io(&path, error))
}

/// The data is whole.
pub fn clear(dir: &Path) -> Result<(), StorageError> {
    let path = dir.join(NAME);
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|error| StorageError::io(&path, error)),
    }
}
