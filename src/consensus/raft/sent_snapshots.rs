//! The snapshots that are on their way to replicas, and which part of the log they make us keep.
//!
//! ```text
//! begun ─► moving ──all of it is there──► being put in place ──its log reaches the snapshot──► done
//!             └─ no bytes for a minute, or it failed: the log waits no longer ◄── 10 minutes ──┘
//! ```
//! Who is being sent a snapshot needs the entries behind it. How long the sending takes depends on how large it is, so
//! only a transfer that stands still is given up.

use std::collections::BTreeMap;

use crate::consensus::raft::group_core::ReplicaProgress;
use crate::types::Millis;
use crate::types::Monotonic;

/// A transfer of which nothing moved for so long keeps the log from being purged no longer.
const STANDSTILL: Millis = Millis(60_000);
/// A replica that has a snapshot is silent while it puts it in place, at most this long.
const INSTALL_TIME: Millis = Millis(600_000);

#[derive(Debug)]
struct Sent {
    index: u64,
    /// Something moved then.
    moved: Monotonic,
    has_arrived: bool,
}

/// By replica.
#[derive(Debug, Default)]
pub struct SentSnapshots(BTreeMap<u64, Sent>);

impl SentSnapshots {
    /// A snapshot of this index begins its way to a replica.
    pub fn begin(&mut self, replica: u64, index: u64, now: Monotonic) {
        self.0.insert(replica, Sent { index, moved: now, has_arrived: false });
    }

    /// Some of it moved.
    pub fn moved(&mut self, replica: u64, now: Monotonic) {
        if let Some(sent) = self.0.get_mut(&replica) {
            sent.moved = now;
        }
    }

    /// It is there, or will never be.
    pub fn ended(&mut self, replica: u64, is_there: bool, now: Monotonic) {
        if let Some(sent) = self.0.get_mut(&replica).filter(|_| is_there) {
            (sent.moved, sent.has_arrived) = (now, true);
        } else {
            self.0.remove(&replica);
        }
    }

    /// The first index of the log that somebody will need after his snapshot; `None` when nobody will.
    pub fn needed_from(&mut self, progress: &[ReplicaProgress], now: Monotonic) -> Option<u64> {
        self.0.retain(|replica, sent| {
            let patience = if sent.has_arrived { INSTALL_TIME } else { STANDSTILL };
            let known = progress.iter().find(|known| known.replica == *replica);
            known.is_some_and(|known| known.matched < sent.index) && now.since(sent.moved) < patience
        });
        self.0.values().map(|sent| sent.index + 1).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Monotonic {
        Monotonic(seconds * 1_000_000_000)
    }

    fn progress(matched: u64) -> [ReplicaProgress; 1] {
        [ReplicaProgress { replica: 3, matched, is_active: true, is_behind: true, is_voter: true }]
    }

    #[test]
    fn the_log_waits_for_a_transfer_that_moves_however_long_it_takes() {
        let mut sent = SentSnapshots::default();
        sent.begin(3, 100, at(0));
        for minute in 1..=60 {
            assert_eq!(sent.needed_from(&progress(5), at(minute * 50)), Some(101));
            sent.moved(3, at(minute * 50));
        }
        sent.ended(3, true, at(3_001));
        assert_eq!(sent.needed_from(&progress(5), at(3_500)), Some(101), "it is being put in place");
        assert_eq!(sent.needed_from(&progress(100), at(3_500)), None);
    }

    #[test]
    fn the_log_waits_no_longer_for_what_stands_still_or_failed() {
        let mut sent = SentSnapshots::default();
        sent.begin(3, 100, at(0));
        assert_eq!(sent.needed_from(&progress(5), at(59)), Some(101));
        assert_eq!(sent.needed_from(&progress(5), at(60)), None);
        sent.begin(3, 100, at(70));
        sent.ended(3, false, at(71));
        assert_eq!(sent.needed_from(&progress(5), at(71)), None);
        sent.begin(3, 100, at(80));
        assert_eq!(sent.needed_from(&[], at(81)), None, "the replica is no member any more");
    }
}
