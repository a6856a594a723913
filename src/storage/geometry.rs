//! How the stores divide up a disk: the less of it there is, the smaller are their pieces.
//!
//! Beside its data a store needs room for what is under way: the log that is not purged yet, memtables that become tables,
//! tables that are being compacted into others. All of it is a multiple of a few sizes, and these follow from the
//! automatic limits of the disk (S is `disk-free-soft`, H is `disk-free-hard`), so that it fits below them:
//!
//! ```text
//! once no data is added (less than S is free), and deletions go on:
//!   log    4 memtables of H/12, as files of the log or as tables                                  4/12 H
//!   rows   2 memtables of H/24 that become tables                                                 2/24 H
//!          level 0 into the next, 4 memtables and H/8; or a table of H/40 into ten of a level     7/24 H
//!                                                                             together less than 3/4 H
//! a start: what the log's memtables held becomes tables, and there is a new file of the log            H/2
//! while data is added: tables of level 0 that wait for compaction, each at least 1 MiB            (S-H)/2
//! ```
//! On large disks the sizes are what is fast, and the same everywhere.

use std::path::Path;

use crate::config::DiskSize;
use crate::storage::disk;
use crate::storage::disk::DiskLimits;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Sizes of the pieces, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// A memtable of the log, and a file of its write-ahead log.
    pub log_memtable: u64,
    /// A memtable of the rows.
    pub data_memtable: u64,
    /// The first level below level 0 holds so much.
    pub level_base: u64,
    /// A table that compaction writes.
    pub table: u64,
    /// Tables of level 0 at which compaction begins.
    pub level_zero_trigger: i32,
    /// Tables of level 0 at which whoever writes rows waits for compaction.
    pub level_zero_max: u64,
    /// A manifest is begun anew when it is longer.
    pub manifest_max: u64,
    /// How much room a manifest takes at once.
    pub manifest_step: u64,
    /// One of RocksDB's diaries.
    pub diary: u64,
    /// The log is purged when it has grown by this much, if `log-max-bytes` is not less.
    pub log_max: u64,
    /// With less than this free a start may fail.
    pub start: u64,
}

impl Geometry {
    /// For a file system of so many bytes.
    #[must_use]
    pub fn of(total: u64) -> Geometry {
        let DiskLimits { soft, hard } = DiskLimits::of(DiskSize::Auto, DiskSize::Auto, total);
        let log_memtable = (hard / 12).clamp(256 * KIB, 32 * MIB);
        let data_memtable = (hard / 24).clamp(128 * KIB, 32 * MIB);
        let level_zero_max = (soft.saturating_sub(hard) / 2 / data_memtable.max(MIB)).clamp(4, 128);
        Geometry {
            log_memtable,
            data_memtable,
            level_base: (hard / 8).clamp(512 * KIB, 256 * MIB),
            table: (hard / 40).clamp(64 * KIB, 64 * MIB),
            level_zero_trigger: if level_zero_max < 8 { 2 } else { 4 },
            level_zero_max,
            manifest_max: (hard / 6).clamp(256 * KIB, 1024 * MIB),
            manifest_step: (hard / 96).clamp(16 * KIB, 4 * MIB),
            diary: (hard / 48).clamp(32 * KIB, MIB),
            log_max: (hard / 6).max(512 * KIB),
            start: hard / 2,
        }
    }

    /// True where room matters more than speed.
    #[must_use]
    pub fn is_small(&self) -> bool {
        self.log_memtable < 32 * MIB
    }

    /// For the file system of a directory; that of a large one where the system does not say.
    #[must_use]
    pub fn at(dir: &Path) -> Geometry {
        Geometry::of(disk::room(dir).map_or(u64::MAX / 128, |(_, total)| total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn what_is_under_way_fits_below_the_limits_on_a_disk_of_any_size() {
        for total in [64 * MIB, 100 * MIB, 120 * MIB, 200 * MIB, 500 * MIB, 2 * GIB, 10 * GIB, 1_000 * GIB] {
            let of = Geometry::of(total);
            let DiskLimits { soft, hard } = DiskLimits::of(DiskSize::Auto, DiskSize::Auto, total);
            let log = 4 * of.log_memtable;
            let compaction = (4 * of.data_memtable + of.level_base).max(11 * of.table);
            let under_way = log + 2 * of.data_memtable + compaction;
            assert!(under_way <= hard, "{under_way} of {hard} on {total}");
            assert!(of.start <= hard && of.log_memtable * 2 <= of.start, "{total}");
            let late = of.level_zero_max * of.data_memtable;
            assert!(late <= soft - hard, "{late} of {soft} less {hard} on {total}");
        }
    }

    #[test]
    fn a_large_disk_has_the_pieces_that_are_fast() {
        let of = Geometry::of(1_000 * GIB);
        assert_eq!((of.log_memtable, of.data_memtable), (32 * MIB, 32 * MIB));
        assert_eq!((of.level_base, of.table, of.level_zero_max), (256 * MIB, 64 * MIB, 128));
        assert!(of.log_max > 256 * MIB && !of.is_small() && Geometry::of(2 * GIB).is_small());
    }
}
