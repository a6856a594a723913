//! A node that cannot trust its data puts it aside and begins again with an empty disk.
//!
//! ```text
//! <dir>/REJOIN       absent ──order──► wanted ──put_aside──► moved ──finish (the node serves)──► absent
//!                                        ▲                     │ ordered again before it served: one more in a row
//!                                        └─────────────────────┘
//! <dir>/damaged-<n>/ log/ data/ WATERMARK snapshots/ incoming/ as they were; the last two such directories stay
//! ```
//! The order is durable before anything follows from it, so that from then on no start uses the data: the replica
//! whose votes and acknowledgements were in that log never speaks again. While the file is there the node takes no part
//! in forming a cluster (it has belonged to one); it only asks to be taken in.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::path::Path;

use crate::storage::StorageError;
use crate::storage::watermark;

const NAME: &str = "REJOIN";
const NEW: &str = "REJOIN.new";
/// The begin of the names of directories with data that was put aside.
const DAMAGED: &str = "damaged-";
/// How many of these stay.
const KEPT: usize = 2;
/// What is the replica's, and goes when it goes. FORMAT and LOCK are the directory's.
const PARTS: [&str; 5] = ["log", "data", watermark::NAME, "snapshots", "incoming"];
/// So many times in a row may a node begin again without serving in between.
const TIMES_MAX: u32 = 3;
/// The file is a few lines; more of it need not be read.
const LENGTH_MAX: u64 = 4096;

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The data is still in its place and must not be used.
    Wanted,
    /// The data is put aside; the node has not served since.
    Moved,
}

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejoin {
    pub stage: Stage,
    /// The how many-th time in a row without serving; from 1.
    pub times: u32,
    /// Why the data cannot be trusted, in one line.
    pub why: String,
}

/// Reads `<dir>/REJOIN`; `None` when there is none. A file that cannot be read as one is an order all the same.
pub fn read(dir: &Path) -> Result<Option<Rejoin>, StorageError> {
    let path = dir.join(NAME);
    let mut bytes = Vec::new();
    match File::open(&path).and_then(|file| file.take(LENGTH_MAX).read_to_end(&mut bytes)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|error| StorageError::io(&path, error))?,
    };
    let text = String::from_utf8_lossy(&bytes);
    Ok(Some(Rejoin::parse(&text).unwrap_or_else(|| Rejoin {
        stage: Stage::Wanted,
        times: 1,
        why: format!("{} is not readable", path.display()),
    })))
}

/// Orders, durably, that the next start puts the data aside. Counts on from what was ordered before, unless the node
/// has served since.
pub fn order(dir: &Path, why: &str) -> Result<(), StorageError> {
    let times = read(dir)?.map_or(1, |before| match before.stage {
        Stage::Moved => before.times.saturating_add(1),
        Stage::Wanted => before.times,
    });
    write(dir, &Rejoin { stage: Stage::Wanted, times, why: one_line(why) })
}

/// Carries out what was ordered, if anything was, and gives the order and the name of the directory that holds the data
/// now. May be called again after a crash at any instruction. No store of the directory may be open.
///
/// # Errors
/// `RejoinsInVain`, with nothing changed, when the node begins again and again and never serves.
pub fn put_aside(dir: &Path) -> Result<Option<(Rejoin, String)>, StorageError> {
    let Some(wanted) = read(dir)?.filter(|found| found.stage == Stage::Wanted) else { return Ok(None) };
    if wanted.times > TIMES_MAX {
        let (times, why) = (wanted.times - 1, wanted.why);
        return Err(StorageError::RejoinsInVain { dir: dir.to_path_buf(), times, why });
    }
    let mut earlier = numbers(dir)?;
    // A crash may have left a directory with some of the parts: the others go there too.
    let begun = earlier.last().copied().filter(|number| {
        let begun = dir.join(format!("{DAMAGED}{number}"));
        PARTS.iter().all(|part| !(dir.join(part).exists() && begun.join(part).exists()))
    });
    let number = begun.unwrap_or_else(|| {
        let number = earlier.last().map_or(1, |last| last + 1);
        earlier.push(number);
        number
    });
    let name = format!("{DAMAGED}{number}");
    let aside = dir.join(&name);
    crate::storage::ensure_dir(&aside)?;
    for part in PARTS {
        let from = dir.join(part);
        match fs::rename(&from, aside.join(part)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            moved => moved.map_err(|error| StorageError::io(&from, error))?,
        }
    }
    crate::storage::sync_dir(&aside)?;
    crate::storage::sync_dir(dir)?;
    for old in &earlier[..earlier.len().saturating_sub(KEPT)] {
        let old = dir.join(format!("{DAMAGED}{old}"));
        fs::remove_dir_all(&old).map_err(|error| StorageError::io(&old, error))?;
    }
    write(dir, &Rejoin { stage: Stage::Moved, ..wanted.clone() })?;
    Ok(Some((wanted, name)))
}

/// The node serves: what was ordered is done.
pub fn finish(dir: &Path) -> Result<(), StorageError> {
    let path = dir.join(NAME);
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed
            .map_err(|error| StorageError::io(&path, error))
            .and_then(|()| crate::storage::sync_dir(dir)),
    }
}

/// The numbers of the directories with data that was put aside, ascending.
fn numbers(dir: &Path) -> Result<Vec<u64>, StorageError> {
    let io = |error| StorageError::io(dir, error);
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let number: Option<u64> = name.to_str().and_then(|name| name.strip_prefix(DAMAGED)?.parse().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Writes the file whole or not at all, durably.
fn write(dir: &Path, rejoin: &Rejoin) -> Result<(), StorageError> {
    let (new, path) = (dir.join(NEW), dir.join(NAME));
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(rejoin.text().as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)
    };
    write().map_err(|error| StorageError::io(&path, error))?;
    crate::storage::sync_dir(dir)
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1_000).collect()
}

impl Rejoin {
    fn text(&self) -> String {
        let stage = match self.stage {
            Stage::Wanted => "wanted",
            Stage::Moved => "moved",
        };
        format!("holdfast-rejoin {stage}\ntimes {}\nwhy {}\n", self.times, self.why)
    }

    fn parse(text: &str) -> Option<Rejoin> {
        let mut lines = text.lines();
        let stage = match lines.next()?.strip_prefix("holdfast-rejoin ")? {
            "wanted" => Stage::Wanted,
            "moved" => Stage::Moved,
            _ => return None,
        };
        let times = lines.next()?.strip_prefix("times ")?.parse().ok().filter(|times| *times > 0)?;
        Some(Rejoin { stage, times, why: lines.next()?.strip_prefix("why ")?.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::test_support::TestDir;

    fn fill(dir: &Path, mark: &str) {
        for part in ["log", "data"] {
            fs::create_dir_all(dir.join(part)).unwrap();
            fs::write(dir.join(part).join("file"), mark).unwrap();
        }
        fs::write(dir.join("WATERMARK"), mark).unwrap();
        fs::write(dir.join("FORMAT"), "stays").unwrap();
    }

    fn aside(dir: &Path, number: u64) -> String {
        let aside = dir.join(format!("damaged-{number}"));
        let read = |name: &str| fs::read_to_string(aside.join(name)).unwrap_or_default();
        let parts = [read("log/file"), read("data/file"), read("WATERMARK")];
        assert!(parts.iter().all(|part| *part == parts[0]), "{parts:?}");
        parts[0].clone()
    }

    #[test]
    fn without_an_order_nothing_is_moved() {
        let dir = TestDir::new();
        fill(dir.path(), "good");
        assert_eq!(put_aside(dir.path()).unwrap(), None);
        assert!(dir.path().join("log/file").exists());
        finish(dir.path()).unwrap();
    }

    #[test]
    fn what_is_ordered_is_put_aside_once_and_the_last_two_stay() {
        let dir = TestDir::new();
        for round in 1..=4 {
            fill(dir.path(), &round.to_string());
            order(dir.path(), "a\nreason").unwrap();
            order(dir.path(), "a\nreason").unwrap();
            let (rejoin, name) = put_aside(dir.path()).unwrap().unwrap();
            assert_eq!(rejoin, Rejoin { stage: Stage::Wanted, times: 1, why: "a reason".to_owned() });
            assert_eq!(name, format!("damaged-{round}"));
            assert_eq!(aside(dir.path(), round), round.to_string());
            assert!(!dir.path().join("log").exists() && !dir.path().join("WATERMARK").exists());
            assert!(dir.path().join("FORMAT").exists());
            assert_eq!(put_aside(dir.path()).unwrap(), None);
            assert_eq!(read(dir.path()).unwrap().unwrap().stage, Stage::Moved);
            finish(dir.path()).unwrap();
            assert_eq!(read(dir.path()).unwrap(), None);
        }
        assert_eq!(numbers(dir.path()).unwrap(), [3, 4]);
        assert_eq!(aside(dir.path(), 3), "3");
    }

    #[test]
    fn a_crash_between_two_moves_is_gone_on_from() {
        let dir = TestDir::new();
        fill(dir.path(), "bad");
        order(dir.path(), "why").unwrap();
        fs::create_dir(dir.path().join("damaged-1")).unwrap();
        fs::rename(dir.path().join("log"), dir.path().join("damaged-1/log")).unwrap();
        put_aside(dir.path()).unwrap().unwrap();
        assert_eq!(aside(dir.path(), 1), "bad");
        assert_eq!(numbers(dir.path()).unwrap(), [1]);
    }

    #[test]
    fn a_node_that_never_serves_stops_beginning_again() {
        let dir = TestDir::new();
        for times in 1..=3 {
            fill(dir.path(), "bad");
            order(dir.path(), "the disk lies").unwrap();
            assert_eq!(put_aside(dir.path()).unwrap().unwrap().0.times, times);
        }
        fill(dir.path(), "bad");
        order(dir.path(), "the disk lies").unwrap();
        for _ in 0..2 {
            let error = put_aside(dir.path()).unwrap_err();
            let line = error.to_string();
            assert!(line.contains("3 times in a row") && line.contains("the disk lies"), "{line}");
            assert!(line.lines().count() == 1 && error.is_loss() && dir.path().join("log").exists());
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_order() {
        let dir = TestDir::new();
        for text in ["", "holdfast-rejoin", "holdfast-rejoin mo\x01ed\ntimes 1\nwhy x\n", "\u{ff}"] {
            fs::write(dir.path().join(NAME), text).unwrap();
            let found = read(dir.path()).unwrap().unwrap();
            assert_eq!((found.stage, found.times), (Stage::Wanted, 1), "{text:?}");
        }
        let rejoin = Rejoin { stage: Stage::Moved, times: 2, why: "x y".to_owned() };
        assert_eq!(Rejoin::parse(&rejoin.text()), Some(rejoin));
    }
}
