//! What this node surely synced, kept outside RocksDB.
//!
//! A log whose end was cut off at a record's border, or whose file is gone, looks whole to every recovery
//! mode (RELIABILITY.md 2b.5), and so does one whose last record has a flipped bit. `<dir>/WATERMARK` remembers how far
//! the log was on disk, so that one that ends before is noticed and never voted with. Two measures:
//!
//! - the number of the last synced *change* of the log ([`crate::storage::LogStore::synced_sequence`]), once a second
//!   and at a clean stop. It counts votes and boot records as well as entries, and only grows, whatever is truncated;
//! - (term, index) of an entry of group 0 whose rows were written: the log must reach it whatever became of the numbers.
//!
//! It is a lower bound: a write of it that does not reach the disk makes the check weaker, not wrong.
//!
//! ```text
//! two slots, at 0 and 2048, written in turn, so that a torn write leaves the other (little endian):
//! [magic 8][generation u64][term u64][index u64][change u64][zeros 20][crc32c of the 60 bytes before u32]
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;

use crate::storage::StorageError;
use crate::types::LogIndex;
use crate::types::Term;

const MAGIC: [u8; 8] = *b"HFWATER1";
const SLOT_LENGTH: usize = 64;
/// Apart, so that the slots are in different sectors of the disk.
const SLOT_OFFSETS: [u64; 2] = [0, 2048];
const FILE_LENGTH: u64 = 4096;
/// Its name in the data directory.
pub(super) const NAME: &str = "WATERMARK";

/// The open watermark file. One per process, kept by whoever syncs the log.
#[derive(Debug)]
pub struct Watermark {
    file: File,
    dir: PathBuf,
    /// The newest valid slot.
    newest: Option<Slot>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    generation: u64,
    term: Term,
    index: LogIndex,
    /// 0 before the first one was recorded.
    change: u64,
}

impl Watermark {
    /// Opens `<dir>/WATERMARK`, creating it empty. `Damaged` when it was written but no slot is readable.
    pub fn open(dir: &Path) -> Result<Watermark, StorageError> {
        let path = dir.join(NAME);
        let at = |error| StorageError::io(&path, error);
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(at)?;
        if file.metadata().map_err(at)?.len() < FILE_LENGTH {
            file.set_len(FILE_LENGTH).map_err(at)?;
            file.sync_all().map_err(at)?;
            crate::storage::sync_dir(dir)?;
        }
        let newest = read_slots(&file, &path)?;
        Ok(Watermark { file, dir: dir.to_path_buf(), newest })
    }

    /// Reads `<dir>/WATERMARK` without creating it; `None` when there is none. Errors as [`Watermark::open`].
    pub fn examine(dir: &Path) -> Result<Option<Watermark>, StorageError> {
        let path = dir.join(NAME);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|error| StorageError::io(&path, error))?,
        };
        if file.metadata().map_err(|error| StorageError::io(&path, error))?.len() < FILE_LENGTH {
            // A start that was cut off: nothing was ever recorded.
            return Ok(None);
        }
        let newest = read_slots(&file, &path)?;
        Ok(Some(Watermark { file, dir: dir.to_path_buf(), newest }))
    }

    /// The end of log that is known to have been on disk; `None` before the first `advance`.
    #[must_use]
    pub fn get(&self) -> Option<(Term, LogIndex)> {
        self.newest.map(|slot| (slot.term, slot.index))
    }

    /// The number of the last change of the log that is known to have been on disk; 0 before the first one.
    #[must_use]
    pub fn change(&self) -> u64 {
        self.newest.map_or(0, |slot| slot.change)
    }

    /// Records, durably, that the log is on disk up to this change. Does nothing, not even a sync, for one that is not
    /// later than the one recorded.
    pub fn advance_change(&mut self, change: u64) -> Result<(), StorageError> {
        if change <= self.change() {
            return Ok(());
        }
        let (term, index) = self.get().unwrap_or_default();
        let recorded = self.record(term, index, change).and_then(|()| self.file.sync_data());
        recorded.map_err(|error| self.io(error))
    }

    /// Refuses a log whose last change has a lower number than the one recorded.
    pub fn check_change(&self, end: u64) -> Result<(), StorageError> {
        let known = self.change();
        if end < known {
            return Err(StorageError::LostChanges { dir: self.dir.clone(), end, known });
        }
        Ok(())
    }

    /// Records that the log is on disk up to its entry (`term`, `index`). Call it after the sync, every now
    /// and then. Does nothing for an end that is not later than the one recorded.
    pub fn advance(&mut self, term: Term, index: LogIndex) -> Result<(), StorageError> {
        if self.get().is_some_and(|known| (term, index) <= known) {
            return Ok(());
        }
        self.record(term, index, self.change()).map_err(|error| self.io(error))
    }

    /// Takes the watermark back to (`term`, `index`), synced, if it is beyond. To be called **before** the log
    /// is truncated after that entry: a leader of a later term may replace a suffix by entries of an
    /// earlier one, and a crash between must not look like a loss.
    pub fn lower(&mut self, term: Term, index: LogIndex) -> Result<(), StorageError> {
        if self.get().is_none_or(|known| known <= (term, index)) {
            return Ok(());
        }
        let lowered = self.record(term, index, self.change()).and_then(|()| self.file.sync_data());
        lowered.map_err(|error| self.io(error))
    }

    /// Refuses a log that ends before the watermark. `end` is the (term, index) of its last entry, or of
    /// the snapshot when that is later; zeros for an empty log. Ends compare by term, then index, as in elections.
    pub fn check(&self, end: (Term, LogIndex)) -> Result<(), StorageError> {
        match self.get() {
            Some(known) if end < known => {
                Err(StorageError::BehindWatermark { dir: self.dir.clone(), end, known })
            }
            _ => Ok(()),
        }
    }

    /// Writes the slot that does not hold the newest.
    fn record(&mut self, term: Term, index: LogIndex, change: u64) -> io::Result<()> {
        let generation = self.newest.map_or(0, |slot| slot.generation) + 1;
        let slot = Slot { generation, term, index, change };
        self.file.write_all_at(&slot.encode(), SLOT_OFFSETS[(generation % 2) as usize])?;
        self.newest = Some(slot);
        Ok(())
    }

    fn io(&self, error: io::Error) -> StorageError {
        StorageError::io(&self.dir.join(NAME), error)
    }
}

/// The newest of the slots that can be read; `None` when nothing was written yet.
fn read_slots(file: &File, path: &Path) -> Result<Option<Slot>, StorageError> {
    let mut newest: Option<Slot> = None;
    let mut damaged = false;
    for offset in SLOT_OFFSETS {
        let mut bytes = [0; SLOT_LENGTH];
        file.read_exact_at(&mut bytes, offset).map_err(|error| StorageError::io(path, error))?;
        match Slot::decode(&bytes) {
            Some(slot) if newest.is_none_or(|newest| newest.generation < slot.generation) => {
                newest = Some(slot);
            }
            Some(_) => {}
            None => damaged |= bytes != [0; SLOT_LENGTH],
        }
    }
    if newest.is_none() && damaged {
        return Err(StorageError::Damaged {
            path: path.to_path_buf(),
            what: "neither of its two records can be read; without the file the node starts and cannot tell whether \
                   its log is whole"
                .to_owned(),
        });
    }
    Ok(newest)
}

impl Slot {
    fn encode(self) -> [u8; SLOT_LENGTH] {
        let mut bytes = [0; SLOT_LENGTH];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.generation.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.term.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.index.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.change.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; SLOT_LENGTH]) -> Option<Slot> {
        let number = |at: usize| {
            let field = bytes[at..at + 8].try_into().expect("the range is eight bytes long");
            u64::from_le_bytes(field)
        };
        let slot = Slot {
            generation: number(8),
            term: Term(number(16)),
            index: LogIndex(number(24)),
            change: number(32),
        };
        // Magic, reserved bytes and checksum at once.
        (slot.encode() == *bytes).then_some(slot)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::storage::test_support::TestDir;

    fn open(dir: &TestDir) -> Watermark {
        Watermark::open(dir.path()).unwrap()
    }

    fn at(term: u64, index: u64) -> (Term, LogIndex) {
        (Term(term), LogIndex(index))
    }

    #[test]
    fn the_newest_end_is_remembered_and_never_goes_back_by_itself() {
        let dir = TestDir::new();
        let mut watermark = open(&dir);
        assert_eq!(watermark.get(), None);
        for (term, index, expected) in
            [(1, 5, at(1, 5)), (1, 9, at(1, 9)), (1, 7, at(1, 9)), (2, 3, at(2, 3))]
        {
            watermark.advance(Term(term), LogIndex(index)).unwrap();
            assert_eq!(watermark.get(), Some(expected));
            assert_eq!(open(&dir).get(), Some(expected));
        }
    }

    #[test]
    fn a_log_that_ends_before_it_is_refused_in_one_line() {
        let dir = TestDir::new();
        let mut watermark = open(&dir);
        watermark.check(at(0, 0)).unwrap();
        watermark.advance(Term(2), LogIndex(10)).unwrap();
        watermark.check(at(2, 10)).unwrap();
        watermark.check(at(3, 4)).unwrap();
        for end in [at(2, 9), at(1, 50), at(0, 0)] {
            let line = watermark.check(end).unwrap_err().to_string();
            assert!(line.contains("lost synced writes") && line.contains("term 2 index 10"), "{line}");
            assert_eq!(line.lines().count(), 1);
        }
    }

    #[test]
    fn a_truncation_lowers_it_first() {
        let dir = TestDir::new();
        let mut watermark = open(&dir);
        watermark.advance(Term(6), LogIndex(8)).unwrap();
        watermark.lower(Term(6), LogIndex(9)).unwrap();
        assert_eq!(watermark.get(), Some(at(6, 8)));
        watermark.lower(Term(5), LogIndex(7)).unwrap();
        assert_eq!(open(&dir).get(), Some(at(5, 7)));
    }

    #[test]
    fn a_log_with_fewer_changes_than_were_synced_is_refused_in_one_line() {
        let dir = TestDir::new();
        assert!(Watermark::examine(dir.path()).unwrap().is_none());
        let mut watermark = open(&dir);
        watermark.check_change(0).unwrap();
        watermark.advance_change(7).unwrap();
        watermark.advance_change(5).unwrap();
        watermark.advance(Term(3), LogIndex(2)).unwrap();
        let again = Watermark::examine(dir.path()).unwrap().unwrap();
        assert_eq!((again.change(), again.get()), (7, Some(at(3, 2))));
        again.check_change(7).unwrap();
        let error = again.check_change(6).unwrap_err();
        let line = error.to_string();
        assert!(line.contains("log ends at change 6, but change 7 was on disk"), "{line}");
        assert!(line.lines().count() == 1 && error.is_damage() && error.is_loss());
        assert!(open(&dir).file.set_len(0).is_ok());
        assert!(Watermark::examine(dir.path()).unwrap().is_none(), "a start that was cut off");
    }

    #[test]
    fn a_torn_slot_leaves_the_one_before() {
        let dir = TestDir::new();
        let mut watermark = open(&dir);
        for index in 1..=3 {
            watermark.advance(Term(1), LogIndex(index)).unwrap();
        }
        let path = dir.path().join("WATERMARK");
        let whole = fs::read(&path).unwrap();
        assert_eq!(whole.len() as u64, FILE_LENGTH);
        // Generation 3 is in the second slot.
        for byte in 2048..2048 + SLOT_LENGTH {
            let mut torn = whole.clone();
            torn[byte] ^= 0x40;
            fs::write(&path, &torn).unwrap();
            assert_eq!(open(&dir).get(), Some(at(1, 2)), "byte {byte}");
            torn[30] ^= 0x40;
            fs::write(&path, &torn).unwrap();
            assert!(matches!(Watermark::open(dir.path()), Err(StorageError::Damaged { .. })));
        }
    }
}
