//! Payloads and traces that are on disk and not in memory.
//!
//! A payload is in memory from its push until its row is on disk for good, and after that as long as the budget
//! allows. Ten million messages wait on disk; those that are handed out next are read before they are asked for, many
//! at a time. Where it is known what will be handed out ([`Wanted`]), they are read without the state's lock.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::state::DbIndex;
use crate::state::State;
use crate::state::queues::MessageId;
use crate::state::queues::Queue;
use crate::state::queues::queue_at;
use crate::state::rows;
use crate::storage::ColdRows;
use crate::storage::StorageError;
use crate::types::LogIndex;
use crate::types::codec::CodecError;

/// Messages whose payloads are read together.
const READ_AHEAD: usize = 128;
/// Bytes of payloads that are read together, but for the first.
const READ_AHEAD_BYTES: usize = 1 << 20;
/// Payloads that were read back may be listed so many times before those that are gone are taken off the list.
const TRIM_AT: usize = 65_536;
/// How far it is looked ahead for payloads to be read.
const LOOK_AHEAD: usize = 4 * READ_AHEAD;

/// What is not in memory, and what may leave it.
pub struct Cold {
    /// `None`: nothing leaves memory.
    rows: Option<Arc<dyn ColdRows>>,
    /// Bytes of payloads that stay in memory.
    budget: usize,
    /// Payloads that may not be on disk yet, in the order in which they came.
    fresh: VecDeque<(LogIndex, u64, MessageId)>,
    /// Those of them whose messages came from another queue, with their last coming: one that left and came back has
    /// a row of before, which may be deleted yet.
    moved: HashMap<(u64, MessageId), LogIndex>,
    /// Payloads that were read back, in the order in which they came.
    read_back: VecDeque<(u64, MessageId)>,
    /// It is looked through when there are more.
    trim_at: usize,
    /// Some payload may be on disk only.
    is_any: bool,
    /// What went wrong when apply read.
    fault: Mutex<Option<StorageError>>,
    in_log: bool,
}

impl fmt::Debug for Cold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cold").field("budget", &self.budget).field("fresh", &self.fresh.len()).finish()
    }
}

/// A row does not decode.
#[must_use]
pub fn corrupt(error: CodecError) -> StorageError {
    StorageError::Corrupt { what: format!("a row of data/: {error}") }
}

impl Cold {
    /// Everything stays in memory.
    #[must_use]
    pub fn none() -> Cold {
        Cold {
            rows: None,
            budget: usize::MAX,
            fresh: VecDeque::new(),
            moved: HashMap::new(),
            read_back: VecDeque::new(),
            trim_at: TRIM_AT,
            is_any: false,
            fault: Mutex::new(None),
            in_log: false,
        }
    }

    /// Payloads above `budget` bytes are read from these rows.
    #[must_use]
    pub fn of(rows: Arc<dyn ColdRows>, budget: usize) -> Cold {
        Cold { rows: Some(rows), budget, is_any: true, ..Cold::none() }
    }

    /// A payload came.
    pub fn pushed(&mut self, index: LogIndex, queue: u64, id: MessageId) {
        if self.rows.is_some() {
            self.fresh.push_back((index, queue, id));
        }
    }

    /// A payload came with its message from another queue.
    pub fn moved(&mut self, index: LogIndex, queue: u64, id: MessageId) {
        if self.rows.is_some() {
            self.fresh.push_back((index, queue, id));
            self.moved.insert((queue, id), index);
        }
    }

    /// The next payload that is on disk now, as of this index; gives its queue and its message.
    pub fn next_on_disk(&mut self, index: LogIndex) -> Option<(u64, MessageId)> {
        while let Some((came, queue, id)) = self.fresh.pop_front_if(|fresh| fresh.0 <= index) {
            match self.moved.get(&(queue, id)).copied() {
                Some(last) if last > came => continue,
                Some(_) => drop(self.moved.remove(&(queue, id))),
                None => {}
            }
            return Some((queue, id));
        }
        None
    }

    /// The payload that was read back first, and may leave memory once more.
    pub fn next_read_back(&mut self) -> Option<(u64, MessageId)> {
        loop {
            let back = self.read_back.pop_front()?;
            // What left the queue and came back may not be on disk again.
            if !self.moved.contains_key(&back) {
                return Some(back);
            }
        }
    }

    /// Forgets which payloads were read back and are gone since, when there are many.
    pub fn trim(&mut self, is_hot: impl Fn(u64, MessageId) -> bool) {
        if self.read_back.len() > self.trim_at {
            self.read_back.retain(|(queue, id)| is_hot(*queue, *id));
            self.trim_at = TRIM_AT + 2 * self.read_back.len();
        }
    }

    /// Whether some payload is on disk only.
    pub fn set_any(&mut self, is_any: bool) {
        self.is_any = is_any;
    }

    /// Bytes of payloads that stay in memory.
    #[must_use]
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// What went wrong, once.
    pub fn take_fault(&mut self) -> Option<StorageError> {
        self.fault.get_mut().take()
    }

    /// A command of the log reads: what it cannot read must not become a reply, which would differ from those of other
    /// replicas.
    pub fn reads_in_log(&mut self, in_log: bool) {
        self.in_log = in_log;
    }

    fn noted<T>(&self, read: Result<T, StorageError>) -> Result<T, StorageError> {
        read.inspect_err(|error| {
            if self.in_log {
                *self.fault.lock() = Some(error.again());
            }
        })
    }

    /// Brings the payload of a message into memory, and those of the messages that come next.
    pub fn read(&mut self, queue: &mut Queue, id: MessageId) {
        let mut wanted = vec![id];
        let mut bytes = 0;
        for next in queue.upcoming().take(LOOK_AHEAD) {
            if next == id || queue.payload(next).is_some() {
                continue;
            }
            bytes += queue.message(next).map_or(0, |slot| slot.payload_len());
            if bytes > READ_AHEAD_BYTES || wanted.len() >= READ_AHEAD {
                break;
            }
            wanted.push(next);
        }
        self.read_these(queue, &wanted);
    }

    /// Brings payloads into memory; those that are there stay.
    pub fn read_these(&mut self, queue: &mut Queue, ids: &[MessageId]) {
        let wanted: Vec<MessageId> = ids.iter().copied().filter(|id| queue.payload(*id).is_none()).collect();
        match self.fetch(queue, &wanted) {
            Ok(payloads) => {
                for (id, payload) in payloads {
                    queue.keep_payload(id, payload);
                    self.read_back.push_back((queue.number(), id));
                }
            }
            Err(error) => *self.fault.get_mut() = Some(error),
        }
    }

    /// The payloads of messages that are not in memory; each must be there.
    pub fn fetch(&self, queue: &Queue, ids: &[MessageId]) -> Result<Vec<(MessageId, Bytes)>, StorageError> {
        self.noted(self.fetch_now(queue, ids))
    }

    fn fetch_now(&self, queue: &Queue, ids: &[MessageId]) -> Result<Vec<(MessageId, Bytes)>, StorageError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let missing =
            |id| StorageError::Corrupt { what: format!("the payload of message {id} is not in data/") };
        let Some(rows) = &self.rows else { return Err(missing(ids[0])) };
        let keys: Vec<Vec<u8>> =
            ids.iter().map(|id| rows::message_key(rows::PAYLOAD, queue.number(), *id).to_vec()).collect();
        let mut payloads = Vec::with_capacity(ids.len());
        for (id, value) in ids.iter().zip(rows.get_many(&keys)?) {
            let is_whole = |value: &Vec<u8>| queue.message(*id).is_some_and(|slot| slot.is_of(value));
            let value = value.filter(is_whole).ok_or_else(|| missing(*id))?;
            payloads.push((*id, Bytes::from(value)));
        }
        Ok(payloads)
    }

    /// What is on disk of a message's trace.
    pub fn trace(&self, id: MessageId) -> Result<Option<Vec<u8>>, StorageError> {
        let Some(rows) = &self.rows else { return Ok(None) };
        let mut values = self.noted(rows.get_many(&[rows::trace_key(id).to_vec()]))?;
        Ok(values.pop().flatten())
    }
}

/// Payloads that are about to be handed out, and that are on disk only.
#[derive(Debug, Default)]
pub struct Wanted {
    ids: Vec<(u64, MessageId)>,
    bytes: usize,
    /// Queues that were looked at.
    queues: Vec<u64>,
}

/// What was read of them.
pub type Read = Vec<(u64, MessageId, Bytes)>;

impl Wanted {
    /// True when nothing need be read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Adds what comes next of a queue, once half of what is read together is used up.
    fn add(&mut self, queue: &Queue) {
        if queue.is_hot() || self.queues.contains(&queue.number()) {
            return;
        }
        self.queues.push(queue.number());
        let is_cold = |id: &MessageId| queue.payload(*id).is_none();
        if !queue.upcoming().take(READ_AHEAD / 2).any(|id| is_cold(&id)) {
            return;
        }
        for id in queue.upcoming().take(LOOK_AHEAD).filter(is_cold) {
            self.bytes += queue.message(id).map_or(0, |slot| slot.payload_len());
            if self.bytes > READ_AHEAD_BYTES && !self.ids.is_empty() {
                return;
            }
            self.ids.push((queue.number(), id));
        }
    }

    /// Reads them, without the state. What cannot be read is left to who needs it, whose fault it is then.
    #[must_use]
    pub fn read(&self, rows: &dyn ColdRows) -> Read {
        let keys: Vec<Vec<u8>> = self
            .ids
            .iter()
            .map(|(queue, id)| rows::message_key(rows::PAYLOAD, *queue, *id).to_vec())
            .collect();
        let values = rows.get_many(&keys).unwrap_or_default();
        let found = self.ids.iter().zip(values);
        found.filter_map(|((queue, id), value)| Some((*queue, *id, Bytes::from(value?)))).collect()
    }
}

impl State {
    /// True when payloads of messages may be on disk only.
    #[must_use]
    pub fn has_cold(&self) -> bool {
        self.cold.is_any
    }

    /// Where they are; `None` when everything is in memory.
    #[must_use]
    pub fn cold_rows(&self) -> Option<Arc<dyn ColdRows>> {
        self.cold.rows.clone()
    }

    /// Adds the payloads of a queue that are handed out next.
    pub fn want(&self, db: DbIndex, key: &[u8], wanted: &mut Wanted) {
        if let Some(Some(queue)) = queue_at(self, db, key) {
            wanted.add(queue);
        }
    }

    /// Payloads that were read come into memory, if their messages are there and they are theirs.
    pub fn lay_ready(&mut self, read: Read) {
        for (number, id, payload) in read {
            let Some(queue) = self.queue_of(number) else { continue };
            let is_its = queue.message(id).is_some_and(|slot| slot.is_of(&payload));
            if is_its && queue.payload(id).is_none() {
                queue.keep_payload(id, payload);
                self.cold.read_back.push_back((number, id));
            }
        }
    }
}
