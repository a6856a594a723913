//! Which rows changed since the last flush to `data/` (DESIGN.md D2).
//!
//! Apply must not stand still while a flush is prepared, so most of the work is done as rows change, when
//! they are in the processor's cache anyway:
//!
//! ```text
//! small strings    encoded at once; a further change rewrites the encoded row in its place
//! everything else  listed by name (large strings, locks, queues, messages, sessions, the membership), encoded
//!                  when the flush takes them
//! ```
//! A row that changes a thousand times between two flushes is written once either way. Taking the encoded ones
//! costs nothing: they are handed over as they are. A row's `mark` says where it stands, and is valid only
//! while the row changed after the last flush took its index; so nothing needs to be reset.

use crate::state::DbIndex;
use crate::state::expiry::KeyName;
use crate::state::keyspace::Object;
use crate::state::keyspace::Row;
use crate::state::locks::ClaimId;
use crate::state::locks::WaitId;
use crate::state::once::OnceName;
use crate::state::queues::MessageId;
use crate::state::queues::Queue;
use crate::state::queues::trace::TraceBatch;
use crate::state::rows;
use crate::storage::DataBatch;
use crate::storage::RowSink;
use crate::types::ClusterTime;
use crate::types::FencingToken;
use crate::types::LogIndex;
use crate::types::NodeId;
use crate::types::planted::Bug;
use crate::types::planted::is_planted;

/// The mark of a row that is listed by name.
pub(super) const LISTED: u32 = u32::MAX;
/// Strings with their key up to this many bytes are encoded at once. Larger ones would be copied again and
/// again by APPEND.
const SMALL_BYTES: usize = 1024;

/// Room behind an encoded row: a counter's digits and the row's index grow.
const SLACK: usize = 8;

/// What waits for the next flush.
#[derive(Debug, Default)]
pub struct Changes {
    /// The index as of which the last flush took everything.
    pub(super) since: LogIndex,
    /// Databases that were flushed: all their rows are deleted before the others are written.
    flushed: Vec<DbIndex>,
    encoded: Vec<u8>,
    slots: Vec<Slot>,
    pub(super) keys: Vec<KeyName>,
    /// Messages that came or changed, by the number of their queue.
    pub(super) messages: Vec<(u64, MessageId)>,
    /// Messages that are gone and whose rows are on disk, or on their way there.
    pub(super) gone: Vec<(u64, MessageId)>,
    /// Queues that lost all their messages, before those that are listed came.
    pub(super) cleared: Vec<u64>,
    /// IDs of finished messages.
    pub(super) dedups: Vec<(u64, Box<[u8]>)>,
    /// Queues that are at rest, or were: by number, each once.
    pub(super) resting: Vec<u64>,
    /// QPOPs that wait or waited.
    pub(super) pops: Vec<ClaimId>,
    /// Nodes whose sessions changed: as few as there are members, so looking through them costs less than a tree.
    pub(super) sessions: Vec<NodeId>,
    pub(super) membership: bool,
    /// Requests that wait, releases, named transactions: by name, some more than once.
    pub(super) waits: Vec<WaitId>,
    /// Hand-overs that came, changed or went.
    pub(super) handed: Vec<WaitId>,
    pub(super) releases: Vec<FencingToken>,
    pub(super) once: Vec<OnceName>,
    pub(super) deadlocks: bool,
    /// About how many bytes were written to the listed rows; a row that is written twice counts twice.
    pub(super) bytes: usize,
    scratch: Vec<u8>,
}

/// Where an encoded row stands in `encoded`: its key, then its value.
#[derive(Debug, Clone, Copy)]
struct Slot {
    start: u32,
    key_len: u32,
    what: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Put {
        value_len: u32,
        /// Room for the value; it may have been longer before.
        room: u32,
    },
    Delete,
    /// Superseded.
    Nothing,
}

/// How much waits for the next flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    /// Rows encoded already.
    pub encoded: usize,
    /// Rows listed by name, which cost time to take.
    pub listed: usize,
    /// About how many bytes were written.
    pub bytes: usize,
}

impl Pending {
    /// True when any part of it is at or above the other's.
    #[must_use]
    pub fn reaches(&self, bound: &Pending) -> bool {
        self.encoded >= bound.encoded || self.listed >= bound.listed || self.bytes >= bound.bytes
    }
}

/// Rows as of one index, on their way to disk.
#[derive(Debug)]
pub struct RowBatch {
    flushed: Vec<DbIndex>,
    cleared: Vec<u64>,
    encoded: Vec<u8>,
    slots: Vec<Slot>,
    listed: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// What is added to the end of rows.
    added: TraceBatch,
    meta: Vec<u8>,
    clock: ClusterTime,
}

impl Changes {
    /// Nothing has changed after this index.
    pub(super) fn after(since: LogIndex) -> Changes {
        Changes { since, ..Changes::default() }
    }

    /// How much waits.
    pub(super) fn pending(&self) -> Pending {
        let few = self.flushed.len()
            + self.sessions.len()
            + usize::from(self.membership)
            + usize::from(self.deadlocks);
        let beside = self.waits.len() + self.handed.len() + self.releases.len() + self.once.len();
        let messages = self.messages.len() + self.gone.len() + self.dedups.len();
        let queues = messages + self.resting.len() + self.pops.len();
        let listed = self.keys.len() + queues + beside + few;
        Pending { encoded: self.slots.len(), listed, bytes: self.bytes }
    }

    /// True when the row waits for the next flush already. To be asked before its `changed` is set.
    pub(super) fn has(&self, row: &Row) -> bool {
        row.changed > self.since
    }

    /// The row has changed; `was_pending` is what [`Changes::has`] said before.
    pub(super) fn note(&mut self, db: DbIndex, row: &mut Row, was_pending: bool) {
        let is_small = matches!(row.object, Object::String) && row.buffer_len() <= SMALL_BYTES;
        match was_pending.then_some(row.mark) {
            Some(LISTED) => {}
            Some(slot) if is_small => row.mark = self.encode_again(slot, db, row),
            None if is_small => row.mark = self.encode(db, row),
            slot => {
                self.supersede(slot);
                self.keys.push((db, row.key().into()));
                row.mark = LISTED;
            }
        }
    }

    /// The row is about to be listed by name, whatever was noted of it.
    pub(super) fn forget_mark(&mut self, row: &Row) {
        if self.has(row) && row.mark != LISTED {
            self.supersede(Some(row.mark));
        }
    }

    /// The row was removed.
    pub(super) fn note_removed(&mut self, db: DbIndex, row: &Row) {
        match self.has(row).then_some(row.mark) {
            // Taken by its name, it will not be found.
            Some(LISTED) => {}
            Some(slot) => self.slots[slot as usize].what = What::Delete,
            None => {
                let start = self.encoded.len();
                rows::append_head_key(db, row.key(), &mut self.encoded);
                let key_len = short(self.encoded.len() - start);
                self.slots.push(Slot { start: short(start), key_len, what: What::Delete });
            }
        }
    }

    /// A queue that is at rest has changed, or came to rest or back.
    pub(super) fn note_rest(&mut self, queue: &mut Queue, applied: LogIndex) {
        if queue.rest_noted <= self.since {
            self.resting.push(queue.number());
        }
        queue.rest_noted = applied;
    }

    /// A node's session has changed.
    pub(super) fn note_session(&mut self, node: NodeId) {
        if !self.sessions.contains(&node) {
            self.sessions.push(node);
        }
    }

    /// A database lost all rows but those that are listed again after this call.
    pub(super) fn note_flushed(&mut self, db: DbIndex) {
        for slot in &mut self.slots {
            // A head row's key starts with its kind and its database.
            if self.encoded[slot.start as usize + 1] == db {
                slot.what = What::Nothing;
            }
        }
        self.keys.retain(|(of, _)| *of != db);
        self.flushed.push(db);
    }

    fn encode(&mut self, db: DbIndex, row: &Row) -> u32 {
        let start = self.encoded.len();
        rows::append_head_key(db, row.key(), &mut self.encoded);
        let key_len = short(self.encoded.len() - start);
        let value_start = self.encoded.len();
        rows::append_row(row, &mut self.encoded);
        let value_len = short(self.encoded.len() - value_start);
        self.encoded.extend_from_slice(&[0; SLACK]);
        let what = What::Put { value_len, room: value_len + SLACK as u32 };
        self.slots.push(Slot { start: short(start), key_len, what });
        u32::try_from(self.slots.len() - 1)
            .ok()
            .filter(|slot| *slot != LISTED)
            .expect("flushes come long before")
    }

    fn encode_again(&mut self, slot: u32, db: DbIndex, row: &Row) -> u32 {
        let found = self.slots[slot as usize];
        let What::Put { room, .. } = found.what else { return self.encode(db, row) };
        self.scratch.clear();
        rows::append_row(row, &mut self.scratch);
        let value_len = short(self.scratch.len());
        if value_len > room {
            self.supersede(Some(slot));
            return self.encode(db, row);
        }
        let start = found.start as usize + found.key_len as usize;
        self.encoded[start..start + self.scratch.len()].copy_from_slice(&self.scratch);
        self.slots[slot as usize].what = What::Put { value_len, room };
        slot
    }

    fn supersede(&mut self, slot: Option<u32>) {
        if let Some(slot) = slot {
            self.slots[slot as usize].what = What::Nothing;
        }
    }

    /// What was encoded, with what the caller encoded of the rest.
    pub(super) fn into_rows(
        self,
        listed: Vec<(Vec<u8>, Option<Vec<u8>>)>,
        added: TraceBatch,
        meta: Vec<u8>,
        clock: ClusterTime,
    ) -> RowBatch {
        let (flushed, cleared) = (self.flushed, self.cleared);
        RowBatch { flushed, cleared, encoded: self.encoded, slots: self.slots, listed, added, meta, clock }
    }
}

/// Positions in `encoded`: apply waits for the flusher long before four gigabytes.
fn short(length: usize) -> u32 {
    u32::try_from(length).expect("a flush comes long before")
}

impl RowBatch {
    /// The cluster time that the rows stand for.
    #[must_use]
    pub fn clock(&self) -> ClusterTime {
        self.clock
    }

    /// As one atomic batch for `data/`. The order matters: a row that was deleted and came back under its name
    /// is put after it was deleted.
    #[must_use]
    pub fn into_batch(self) -> DataBatch {
        let mut batch = DataBatch::new();
        self.write_to(&mut batch);
        batch
    }

    /// Writes everything, which belongs together, the index last.
    pub fn write_to(self, batch: &mut impl RowSink) {
        for db in self.flushed {
            batch.delete_prefix(&[rows::HEAD, db]);
        }
        for queue in self.cleared {
            for kind in [rows::MESSAGE, rows::PAYLOAD] {
                batch.delete_prefix(&rows::queue_prefix(kind, queue));
            }
        }
        for Slot { start, key_len, what } in self.slots {
            let (key, rest) = self.encoded[start as usize..].split_at(key_len as usize);
            match what {
                What::Put { value_len, .. } => batch.put(key, &rest[..value_len as usize]),
                What::Delete => batch.delete(key),
                What::Nothing => {}
            }
        }
        for (key, value) in &self.listed {
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        for (id, events) in self.added.rows() {
            batch.append(&rows::trace_key(id), &events);
        }
        if !is_planted(Bug::RowsWithoutIndex) {
            batch.put(rows::META, &self.meta);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::ProptestConfig;
    use proptest::prelude::any;
    use proptest::proptest;

    use crate::state::State;
    use crate::state::locks;
    use crate::state::queues;
    use crate::state::test_support::TestStore;
    use crate::types::ClusterTime;
    use crate::types::LogIndex;
    use crate::types::Term;
    use crate::types::WallMillis;

    /// One change, drawn: small and large strings, names that pass from one type to another, whole databases.
    fn change(state: &mut State, draw: u64) {
        let (db, key) = ((draw >> 8) as u8 % 2, [b'a' + (draw >> 16) as u8 % 5]);
        let other = [b'a' + (draw >> 24) as u8 % 5];
        let size = [1, 40, 900, 1_100, 5_000][(draw >> 32) as usize % 5];
        let is_string =
            |state: &State, key: &[u8]| state.row(db, key).is_none_or(|row| row.as_string().is_some());
        let now = ClusterTime(0);
        match draw % 10 {
            0..=2 => {
                state.put_string(
                    db,
                    &key,
                    &vec![draw as u8; size],
                    (draw.is_multiple_of(3)).then_some(ClusterTime(draw >> 40)),
                );
            }
            3 => {
                state.append_string(db, &key, &vec![b'+'; size]);
            }
            4 => {
                state.remove(db, &key);
            }
            5 => {
                state.set_deadline(db, &key, Some(ClusterTime(draw >> 40)));
            }
            6 if is_string(state, &key) && is_string(state, &other) => {
                state.rename(db, &key, &other);
            }
            7 => {
                locks::test_support::lock(state, db, &key, "me", 1_000, now);
            }
            8 => {
                let payload = vec![b'm'; size];
                let request = queues::PushRequest { payload: &payload, ..Default::default() };
                // A key of another type is left alone.
                let _ = queues::push(state, db, &key, &request, queues::By { now, node: 0, reason: b"" });
            }
            9 if draw.is_multiple_of(7) => state.flush_database(db),
            _ => {
                state.write_string_at(db, &key, size, b"end");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
        #[test]
        fn what_is_flushed_is_what_there_is_however_changes_and_flushes_mix(
            draws in proptest::collection::vec(any::<u64>(), 1..200)
        ) {
            let store = TestStore::new();
            let mut state = State::new(16);
            for (index, draw) in (1..).zip(draws) {
                state.begin_entry(LogIndex(index), Term(1), ClusterTime(0), WallMillis(0));
                change(&mut state, draw);
                change(&mut state, draw.rotate_left(29));
                if draw % 11 == 0 {
                    // A flush whose state lives on, then one that is read back and compared.
                    store.write(&mut state);
                } else if draw % 13 == 0 {
                    store.reopen(&mut state);
                }
            }
            store.reopen(&mut state);
        }
    }

    #[test]
    fn a_row_that_changes_often_is_written_once() {
        let mut state = State::new(16);
        for index in 1..1_000 {
            state.begin_entry(LogIndex(index), Term(1), ClusterTime(0), WallMillis(0));
            state.put_string(0, b"k", b"value", None);
        }
        assert_eq!(state.pending_changes().encoded, 1);
        assert_eq!(state.take_changes().into_batch().len(), 2, "the row and the group's numbers");
    }
}
