//! Looks through RocksDB's files of records, write-ahead log and manifest, before RocksDB reads them.
//!
//! RocksDB's own reader cannot be trusted with a damaged file: at a record whose type says that the file was recycled,
//! one flipped bit away from an ordinary one, it goes round for ever (11.8.1, `log_reader.cc`, which returns `kBadRecord`
//! there without taking anything from its buffer). And what it says of damage names neither the file nor the place.
//!
//! ```text
//! blocks of 32 KiB:  record*, then fewer than 7 bytes that say nothing
//! record:            [masked crc32c of what follows the length u32][length u16][type u8][bytes]        little endian
//! ```
//! A record that is cut off by the end of the file is what a power cut leaves, and no damage: whether it was ever synced,
//! the watermark tells.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::path::Path;
use std::path::PathBuf;

use crate::storage::StorageError;

const BLOCK: usize = 32 << 10;
const HEADER: usize = 7;
/// The checksum begins with the type.
const TYPE_AT: usize = 6;
/// What RocksDB adds to a checksum, so that one of data that holds checksums is no special case.
const MASK: u32 = 0xa282_ead8;
/// The types of records in recycled files, which this program never writes (`recycle_log_file_num` is 0).
const RECYCLED: [u8; 6] = [5, 6, 7, 8, 11, 131];
/// The file with the manifest's name; it is the name and a line feed.
const CURRENT: &str = "CURRENT";
const CURRENT_LENGTH_MAX: u64 = 256;

/// Checks the manifest in use and the log files of a store.
///
/// # Errors
/// `Damaged`, with file and offset.
pub fn check_store(dir: &Path) -> Result<(), StorageError> {
    let current = dir.join(CURRENT);
    let mut name = String::new();
    let read = File::open(&current).and_then(|file| file.take(CURRENT_LENGTH_MAX).read_to_string(&mut name));
    match read {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
        read => drop(read.map_err(|error| StorageError::io(&current, error))?),
    }
    let is_name = |name: &&str| {
        name.strip_prefix("MANIFEST-").is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let Some(name) = name.strip_suffix('\n').filter(is_name) else {
        return Err(damaged(&current, "it names no manifest"));
    };
    let manifest = dir.join(name);
    if !fs::exists(&manifest).map_err(|error| StorageError::io(&manifest, error))? {
        return Err(damaged(&manifest, "CURRENT names it, and it is not there"));
    }
    check_file(&manifest)?;
    let logs = log_files(dir)?;
    for (at, path) in logs.iter().enumerate() {
        let is_newest = at + 1 == logs.len();
        match check_file(path) {
            // RocksDB knows whether it still needs an older one, which a power cut may have brought back half.
            Err(error) if error.is_damage() && !is_newest && torn_tail(path)?.is_some_and(Torn::is_end) => {}
            checked => checked?,
        }
    }
    Ok(())
}

/// The write-ahead logs of a store, the oldest first.
fn log_files(dir: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| StorageError::io(dir, error))? {
        let path = entry.map_err(|error| StorageError::io(dir, error))?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            found.push(path);
        }
    }
    // Their numbers have leading zeros.
    found.sort_by_key(|path| (path.as_os_str().len(), path.clone()));
    Ok(found)
}

/// Bytes of all of them.
pub fn log_bytes(dir: &Path) -> Result<u64, StorageError> {
    let length = |path: PathBuf| {
        fs::metadata(&path).map(|found| found.len()).map_err(|error| StorageError::io(&path, error))
    };
    log_files(dir)?.into_iter().map(length).sum()
}

/// Where a log stops being whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Torn {
    offset: u64,
    /// The number of the last change before it.
    change: u64,
    /// A whole record comes after it.
    is_followed: bool,
    /// It is no record of this program.
    is_foreign: bool,
}

impl Torn {
    /// True when it looks like the end of what was being written when the power went.
    fn is_end(self) -> bool {
        !self.is_followed && !self.is_foreign
    }
}

/// Cuts off what was being written to the newest log of a store when the power went: part of it reached the disk. With
/// `always` that is one record, and nothing whole comes after it; otherwise it is whatever comes after the change
/// `known`, the last one that is known to have been synced. What is cut off is kept in `kept`. True when there was
/// such a tail.
///
/// # Errors
/// When the disk fails.
pub fn cut_torn_tail(dir: &Path, always: bool, known: u64, kept: &Path) -> Result<bool, StorageError> {
    let Some(path) = log_files(dir)?.pop() else { return Ok(false) };
    let Some(torn) = torn_tail(&path)? else { return Ok(false) };
    let is_tail = torn.change >= known && !torn.is_foreign && (torn.is_end() || !always);
    if !is_tail {
        return Ok(false);
    }
    let cut = || {
        let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
        file.seek(io::SeekFrom::Start(torn.offset))?;
        let mut copy = File::create(kept)?;
        io::copy(&mut file, &mut copy)?;
        copy.sync_all()?;
        file.set_len(torn.offset)?;
        file.sync_all()
    };
    cut().map_err(|error| StorageError::io(&path, error))?;
    tracing::warn!(
        "{}: the last write was cut off at offset {} when this node stopped; it is kept in {}",
        path.display(),
        torn.offset,
        kept.display()
    );
    Ok(true)
}

/// Finds the first place of a log that is not whole; a record that the end of the file cuts off is none.
fn torn_tail(path: &Path) -> Result<Option<Torn>, StorageError> {
    let mut file = File::open(path).map_err(|error| StorageError::io(path, error))?;
    let mut block = vec![0; BLOCK];
    let (mut offset, mut change, mut torn, mut hole) = (0u64, 0u64, None::<Torn>, None::<u64>);
    loop {
        let length = fill(&mut file, &mut block).map_err(|error| StorageError::io(path, error))?;
        let block = &block[..length];
        if let Some(torn) = &mut torn {
            // Every block begins with a record.
            torn.is_followed |= whole_record(block).is_some();
        } else if let Some(hole) = hole {
            if block.iter().any(|byte| *byte != 0) {
                let is_followed = whole_record(block).is_some();
                torn = Some(Torn { offset: hole, change, is_followed, is_foreign: false });
            }
        } else {
            let mut at = 0;
            while let Some(record) = whole_record(&block[at..]) {
                if let (Some(number), 1 | 2) = (change_of(record), record[TYPE_AT]) {
                    change = change.max(number);
                }
                at += record.len();
            }
            match check_block(block) {
                Ok(false) => {}
                Ok(true) => hole = Some(offset + at as u64),
                Err((wrong, _)) => {
                    let is_followed = (wrong + 1..length).any(|from| whole_record(&block[from..]).is_some());
                    let is_foreign = block.get(wrong + TYPE_AT).is_some_and(|kind| RECYCLED.contains(kind));
                    torn = Some(Torn { offset: offset + wrong as u64, change, is_followed, is_foreign });
                }
            }
        }
        if length < BLOCK {
            return Ok(torn);
        }
        offset += length as u64;
    }
}

/// What a record says of itself.
struct Header {
    stored: u32,
    length: usize,
    kind: u8,
}

impl Header {
    /// The header that these bytes begin with; `None` when they are too few.
    fn of(bytes: &[u8]) -> Option<Header> {
        let header: &[u8; HEADER] = bytes.first_chunk()?;
        let stored = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let length = usize::from(u16::from_le_bytes([header[4], header[5]]));
        Some(Header { stored, length, kind: header[TYPE_AT] })
    }

    /// True when the checksum is that of the type and the bytes behind it.
    fn covers(&self, record: &[u8]) -> bool {
        masked(crc32c::crc32c(&record[TYPE_AT..])) == self.stored
    }
}

/// The record that these bytes begin with, header included, if it is whole.
fn whole_record(bytes: &[u8]) -> Option<&[u8]> {
    let header = Header::of(bytes).filter(|header| matches!(header.kind, 1..=4))?;
    bytes.get(..HEADER + header.length).filter(|record| header.covers(record))
}

/// The number of the last change that a batch of RocksDB makes, whose first record this is: the batch begins with the
/// number of its first change and how many there are.
fn change_of(record: &[u8]) -> Option<u64> {
    let first: &[u8; 8] = record.get(HEADER..)?.first_chunk()?;
    let count: &[u8; 4] = record.get(HEADER + 8..)?.first_chunk()?;
    Some((u64::from_le_bytes(*first) + u64::from(u32::from_le_bytes(*count))).saturating_sub(1))
}

/// Checks one file, from front to end.
fn check_file(path: &Path) -> Result<(), StorageError> {
    let mut file = File::open(path).map_err(|error| StorageError::io(path, error))?;
    let mut block = vec![0; BLOCK];
    let (mut offset, mut is_over) = (0u64, false);
    loop {
        let length = fill(&mut file, &mut block).map_err(|error| StorageError::io(path, error))?;
        if is_over && block[..length].iter().any(|byte| *byte != 0) {
            return Err(damaged(
                path,
                &format!("there are records behind an empty one before offset {offset}"),
            ));
        }
        is_over |= check_block(&block[..length])
            .map_err(|(at, why)| damaged(path, &format!("{why} at offset {}", offset + at as u64)))?;
        if length < BLOCK {
            return Ok(());
        }
        offset += length as u64;
    }
}

/// Reads a block; a shorter one is the last.
fn fill(file: &mut File, block: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < block.len() {
        match file.read(&mut block[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Checks a block; one that is shorter than others is the end of the file. True when it ends with room that was never
/// written. The error is where something is wrong, and what.
fn check_block(block: &[u8]) -> Result<bool, (usize, &'static str)> {
    let mut at = 0;
    while let Some(header) = Header::of(&block[at..]) {
        if header.kind == 0 && header.length == 0 {
            let is_empty = block[at..].iter().all(|byte| *byte == 0);
            return if is_empty { Ok(true) } else { Err((at, "a record without a type")) };
        }
        if RECYCLED.contains(&header.kind) {
            return Err((at, "a record of a type that is not written here"));
        }
        let Some(record) = block[at..].get(..HEADER + header.length) else {
            let is_end = block.len() < BLOCK;
            return if is_end { Ok(false) } else { Err((at, "a record that is too long for its block")) };
        };
        if !header.covers(record) {
            return Err((at, "checksum mismatch"));
        }
        at += record.len();
    }
    Ok(false)
}

fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(MASK)
}

fn damaged(path: &Path, what: &str) -> StorageError {
    StorageError::Damaged { path: path.to_path_buf(), what: what.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::LogBatch;
    use crate::storage::LogEntryRecord;
    use crate::storage::LogStore;
    use crate::storage::test_support::TestDir;
    use crate::types::GroupId;

    /// A log with records of all lengths, some over several blocks.
    fn fill_log(dir: &Path) {
        let store = LogStore::open(dir).unwrap();
        for index in 1..=60u64 {
            let mut batch = LogBatch::new();
            let data = vec![index as u8; (index * index * index % 70_000) as usize];
            batch.append(GroupId(0), &LogEntryRecord { index, term: 1, data, ..Default::default() });
            store.write(batch, index % 7 == 0).unwrap();
        }
        store.sync().unwrap();
    }

    fn only_log_file(dir: &Path) -> std::path::PathBuf {
        let files = fs::read_dir(dir.join("log")).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|found| found == "log")).max().unwrap()
    }

    #[test]
    fn what_rocksdb_wrote_passes_and_so_does_a_tail_that_was_cut_off_or_never_written() {
        let dir = TestDir::new();
        fill_log(dir.path());
        check_store(&dir.path().join("log")).unwrap();
        let path = only_log_file(dir.path());
        let whole = fs::read(&path).unwrap();
        assert!(whole.len() > 3 * BLOCK);
        for length in [whole.len() - 1, whole.len() / 2, 2 * BLOCK + 3, 5, 0] {
            fs::write(&path, &whole[..length]).unwrap();
            check_file(&path).unwrap();
        }
        fs::write(&path, [&whole[..], &vec![0; 3 * BLOCK]].concat()).unwrap();
        check_file(&path).unwrap();
    }

    /// The log with its last record damaged from some byte on, as a power cut leaves one that was being written.
    fn tear(whole: &[u8], seed: u64) -> Vec<u8> {
        let mut torn = whole.to_vec();
        let keep = whole.len() - 1 - (seed * 37 % 9_000) as usize;
        torn[keep..].fill((seed % 3) as u8 * 0x5A);
        torn
    }

    #[test]
    fn a_write_that_the_power_cut_off_is_cut_off_the_log_and_what_was_before_is_there() {
        for seed in 0..40 {
            let dir = TestDir::new();
            let log = dir.path().join("log");
            {
                let store = LogStore::open(dir.path()).unwrap();
                for index in 1..=30u64 {
                    let mut batch = LogBatch::new();
                    let data = vec![index as u8; if index == 30 { 20_000 } else { 1_500 }];
                    batch.append(GroupId(0), &LogEntryRecord { index, term: 1, data, ..Default::default() });
                    store.write(batch, true).unwrap();
                }
            }
            let path = only_log_file(dir.path());
            let whole = fs::read(&path).unwrap();
            fs::write(&path, tear(&whole, seed)).unwrap();
            let kept = dir.path().join("torn-tail");
            // Whether it is a tail is not asked where it is known that it was synced.
            assert!(!cut_torn_tail(&log, true, 1_000, &kept).unwrap());
            cut_torn_tail(&log, true, 10, &kept).unwrap();
            check_store(&log).unwrap();
            let store = LogStore::open(dir.path()).unwrap();
            let entries = store.load(GroupId(0), crate::types::LogIndex(1)).unwrap().entries;
            assert_eq!(entries.len(), 29, "seed {seed}");
        }
    }

    #[test]
    fn damage_before_whole_records_is_no_torn_tail() {
        let dir = TestDir::new();
        fill_log(dir.path());
        let (log, kept) = (dir.path().join("log"), dir.path().join("torn-tail"));
        let path = only_log_file(dir.path());
        let mut damaged = fs::read(&path).unwrap();
        damaged[HEADER + 20] ^= 1;
        fs::write(&path, &damaged).unwrap();
        assert!(!cut_torn_tail(&log, true, 0, &kept).unwrap());
        assert!(!kept.exists() && check_store(&log).is_err());
        // Where nothing was synced, nothing that was promised is lost with it.
        assert!(!cut_torn_tail(&log, false, 1, &kept).unwrap());
        assert!(cut_torn_tail(&log, false, 0, &kept).unwrap());
        check_store(&log).unwrap();
    }

    #[test]
    fn a_flipped_bit_in_a_record_is_told_with_its_place() {
        let dir = TestDir::new();
        fill_log(dir.path());
        let path = only_log_file(dir.path());
        let whole = fs::read(&path).unwrap();
        // Every bit of the first header, and bits everywhere; the last block's lengths look like a torn tail.
        let of_header = (0..HEADER * 8).collect::<Vec<_>>();
        let elsewhere = (0..200).map(|at| at * 8 * (2 * BLOCK / 200) + at % 8);
        let mut refused = 0;
        for bit in of_header.into_iter().chain(elsewhere) {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &damaged).unwrap();
            if let Err(error) = check_file(&path) {
                let line = error.to_string();
                assert!(line.contains(path.to_str().unwrap()) && line.contains("offset"), "{line}");
                refused += 1;
            }
        }
        // Nothing tells of the few bytes at the end of a block.
        assert!(refused >= 250, "{refused}");
    }

    #[test]
    fn the_bit_that_sends_rocksdb_round_and_round_is_refused() {
        let dir = TestDir::new();
        fill_log(dir.path());
        let path = only_log_file(dir.path());
        let whole = fs::read(&path).unwrap();
        let second = HEADER + usize::from(u16::from_le_bytes([whole[4], whole[5]]));
        let mut damaged = whole.clone();
        assert_eq!(damaged[second + TYPE_AT], 1);
        damaged[second + TYPE_AT] ^= 4;
        fs::write(&path, &damaged).unwrap();
        let line = LogStore::examine(dir.path()).unwrap_err().to_string();
        assert!(line.contains(&format!("at offset {second}")), "{line}");
    }

    #[test]
    fn records_behind_an_empty_one_and_a_name_that_is_none_are_refused() {
        let dir = TestDir::new();
        fill_log(dir.path());
        let path = only_log_file(dir.path());
        let whole = fs::read(&path).unwrap();
        let mut holed = whole.clone();
        holed[BLOCK..2 * BLOCK].fill(0);
        fs::write(&path, &holed).unwrap();
        let line = check_file(&path).unwrap_err().to_string();
        assert!(line.contains("behind an empty one"), "{line}");
        let log = dir.path().join("log");
        for name in ["", "MANIFEST-", "MANIFEST-000004", "MANIFEST-0x0004\n", "../etc\n"] {
            fs::write(log.join(CURRENT), name).unwrap();
            assert!(check_store(&log).unwrap_err().is_damage(), "{name:?}");
        }
    }
}
