//! Which receipts finished a message of late, so that the same QACK, sent again after a lost reply, is told the same
//! (COMMANDS.md 2.3).
//!
//! Bounded: the oldest goes first. On disk they are kept many to a row, since each is short and they go in the order
//! in which they came.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use crate::state::queues::MessageId;
use crate::state::queues::Receipt;
use crate::types::ClusterTime;
use crate::types::Millis;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_varint;

/// How long a receipt is remembered.
pub const KEPT: Millis = Millis(600_000);
/// How many are forgotten, at most, when a new one comes.
const FORGOTTEN_AT_ONCE: usize = 4;

/// A message was finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finish {
    pub receipt: Receipt,
    /// The number of its queue.
    pub queue: u64,
    pub at: ClusterTime,
}

/// The messages that were finished of late.
#[derive(Debug, Default)]
pub struct Finished {
    /// In the order in which they came.
    finishes: VecDeque<Finish>,
    /// How many were forgotten before the first: each has its number, for ever.
    first: u64,
    by_id: BTreeMap<MessageId, u64>,
    /// Numbers below this one are on their way to disk or there.
    taken: u64,
    /// The rows on disk: the number of the first in each, and the number behind the last.
    rows: VecDeque<(u64, u64)>,
}

/// What a transaction did, to be taken back.
#[derive(Debug, Default)]
pub struct FinishedBefore {
    first: u64,
    end: u64,
    forgotten: Vec<Finish>,
}

impl Finished {
    /// Remembers a finish; gives those that were forgotten for it, oldest first.
    pub fn remember(&mut self, finish: Finish, at_most: u64) -> Vec<Finish> {
        let mut forgotten = Vec::new();
        while forgotten.len() < FORGOTTEN_AT_ONCE
            && let Some(oldest) = self.finishes.front().copied()
            && (oldest.at.after(KEPT) <= finish.at || self.finishes.len() as u64 >= at_most.max(1))
        {
            self.finishes.pop_front();
            self.by_id.remove(&oldest.receipt.id);
            self.first += 1;
            forgotten.push(oldest);
        }
        self.by_id.insert(finish.receipt.id, self.end());
        self.finishes.push_back(finish);
        forgotten
    }

    /// True when this receipt finished a message of this queue of late.
    #[must_use]
    pub fn knows(&self, queue: u64, receipt: Receipt, now: ClusterTime) -> bool {
        self.by_id
            .get(&receipt.id)
            .and_then(|number| self.finishes.get((number - self.first) as usize))
            .is_some_and(|known| {
                known.receipt == receipt && known.queue == queue && known.at.after(KEPT) > now
            })
    }

    /// How many were ever forgotten; the group's numbers keep it.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.first
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Finish> {
        self.finishes.iter()
    }

    /// From here on everything can be taken back.
    #[must_use]
    pub fn before(&self) -> FinishedBefore {
        FinishedBefore { first: self.first, end: self.end(), forgotten: Vec::new() }
    }

    /// Takes everything back.
    pub fn roll_back(&mut self, before: FinishedBefore) {
        while self.end() > before.end
            && let Some(finish) = self.finishes.pop_back()
        {
            self.by_id.remove(&finish.receipt.id);
        }
        // What came since and was forgotten again never was.
        let mut forgotten = before.forgotten;
        forgotten.truncate((before.end - before.first) as usize);
        if self.finishes.is_empty() {
            self.first = before.first + forgotten.len() as u64;
        }
        for finish in forgotten.into_iter().rev() {
            self.first -= 1;
            self.by_id.insert(finish.receipt.id, self.first);
            self.finishes.push_front(finish);
        }
    }

    fn end(&self) -> u64 {
        self.first + self.finishes.len() as u64
    }

    /// The rows to write and those to delete, by their numbers.
    pub fn take(&mut self) -> Vec<(u64, Option<Vec<u8>>)> {
        let mut rows = Vec::new();
        while let Some((number, _)) = self.rows.front().copied().filter(|(_, end)| *end <= self.first) {
            self.rows.pop_front();
            rows.push((number, None));
        }
        let (start, end) = (self.taken.max(self.first), self.end());
        if start < end {
            let mut row = Vec::new();
            for finish in self.finishes.range((start - self.first) as usize..) {
                encode(finish, &mut row);
            }
            self.rows.push_back((start, end));
            rows.push((start, Some(row)));
        }
        self.taken = end;
        rows
    }

    /// Adds the finishes of a row, in the order of the rows. `first`: those below were forgotten.
    pub fn load(&mut self, number: u64, row: &[u8], first: u64) -> Result<(), CodecError> {
        let mut reader = Reader::new(row);
        let mut at = number;
        if self.finishes.is_empty() {
            self.first = first;
        }
        while !reader.is_empty() {
            let finish = decode(&mut reader)?;
            if at >= first {
                if at != self.end() {
                    return Err(CodecError("finished messages with a gap"));
                }
                self.by_id.insert(finish.receipt.id, at);
                self.finishes.push_back(finish);
            }
            at += 1;
        }
        self.rows.push_back((number, at));
        self.taken = at.max(first);
        Ok(())
    }

    /// All are read: nothing was forgotten but what `first` says.
    pub fn loaded(&mut self, first: u64) {
        self.first = first;
        self.taken = self.taken.max(first);
    }
}

impl FinishedBefore {
    /// These were forgotten since.
    pub fn forgot(&mut self, forgotten: &[Finish]) {
        self.forgotten.extend_from_slice(forgotten);
    }
}

/// Appends a finish as rows keep it.
pub fn encode(finish: &Finish, out: &mut Vec<u8>) {
    let Receipt { id, delivery } = finish.receipt;
    for number in [id.index, u64::from(id.n), u64::from(delivery), finish.queue, finish.at.0] {
        put_varint(out, number);
    }
}

fn decode(reader: &mut Reader<'_>) -> Result<Finish, CodecError> {
    let id = MessageId { index: reader.varint()?, n: reader.varint32()? };
    let receipt = Receipt { id, delivery: reader.varint32()? };
    Ok(Finish { receipt, queue: reader.varint()?, at: ClusterTime(reader.varint()?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finish(index: u64, at: u64) -> Finish {
        let receipt = Receipt { id: MessageId { index, n: 0 }, delivery: 2 };
        Finish { receipt, queue: 7, at: ClusterTime(at) }
    }

    fn knows(finished: &Finished, index: u64, now: u64) -> bool {
        finished.knows(7, finish(index, 0).receipt, ClusterTime(now))
    }

    #[test]
    fn a_receipt_is_known_for_ten_minutes_and_only_in_its_queue() {
        let mut finished = Finished::default();
        finished.remember(finish(1, 100), 10);
        assert!(knows(&finished, 1, 600_099) && !knows(&finished, 1, 600_100));
        assert!(!finished.knows(8, finish(1, 0).receipt, ClusterTime(100)));
        let other = Receipt { delivery: 1, ..finish(1, 0).receipt };
        assert!(!finished.knows(7, other, ClusterTime(100)));
        assert_eq!(finished.remember(finish(2, 600_100), 10).len(), 1, "the first is too old");
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many_and_comes_back_with_a_rollback() {
        let mut finished = Finished::default();
        (1..=3).for_each(|index| drop(finished.remember(finish(index, 0), 3)));
        let mut before = finished.before();
        for index in 4..=5 {
            let forgotten = finished.remember(finish(index, 0), 3);
            before.forgot(&forgotten);
        }
        assert!(!knows(&finished, 2, 0) && knows(&finished, 3, 0) && knows(&finished, 5, 0));
        finished.roll_back(before);
        assert!((1..=3).all(|index| knows(&finished, index, 0)) && !knows(&finished, 4, 0));
        assert_eq!(finished.first(), 0);
    }

    #[test]
    fn what_came_and_was_forgotten_since_does_not_come_back_with_a_rollback() {
        let mut finished = Finished::default();
        finished.remember(finish(1, 0), 1);
        let mut before = finished.before();
        for index in 2..=4 {
            let forgotten = finished.remember(finish(index, 0), 1);
            before.forgot(&forgotten);
        }
        finished.roll_back(before);
        assert!(finished.iter().eq([&finish(1, 0)]));
        assert!(knows(&finished, 1, 0) && !(2..=4).any(|index| knows(&finished, index, 0)));
        assert_eq!(finished.first(), 0);
    }

    #[test]
    fn rows_hold_what_is_remembered_however_often_it_is_flushed() {
        let mut finished = Finished::default();
        let mut disk = std::collections::BTreeMap::new();
        for index in 1..=100 {
            finished.remember(finish(index, 0), 10);
            if index % 7 == 0 || index == 100 {
                for (number, row) in finished.take() {
                    match row {
                        Some(row) => drop(disk.insert(number, row)),
                        None => drop(disk.remove(&number)),
                    }
                }
                let mut loaded = Finished::default();
                for (number, row) in &disk {
                    loaded.load(*number, row, finished.first()).unwrap();
                }
                loaded.loaded(finished.first());
                assert!(loaded.iter().eq(finished.iter()));
                assert_eq!((loaded.first, loaded.taken), (finished.first, finished.taken));
                assert!(disk.len() <= 3, "{}", disk.len());
            }
        }
    }
}
