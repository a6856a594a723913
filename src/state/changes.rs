//! Which rows changed since the last flush to `data/` (DESIGN.md D2).
//!
//! Names only: a row that changes a thousand times between two flushes is encoded once, from what it
//! is when the flush takes it. A row knows by its `dirty` mark that it is listed already.

use crate::state::DbIndex;
use crate::state::expiry::KeyName;
use crate::state::queues::MessageId;

/// Names of the rows that the next flush writes or deletes.
#[derive(Debug, Default)]
pub struct Changes {
    /// Databases that were flushed: all their rows are deleted before the others are written.
    pub(super) flushed: Vec<DbIndex>,
    pub(super) keys: Vec<KeyName>,
    pub(super) messages: Vec<(DbIndex, Box<[u8]>, MessageId)>,
    /// About how many bytes were written to the listed rows; a row that is written twice counts twice.
    pub(super) bytes: usize,
}

impl Changes {
    /// How many rows are listed (an upper bound: some may be listed twice).
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.flushed.len() + self.keys.len() + self.messages.len()
    }
}
