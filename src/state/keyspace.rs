//! The rows of one database, in memory.
//!
//! Why many small hash tables and not one: a table that doubles rehashes everything it holds at
//! once, which at ten million keys is a stall of seconds. With 16384 parts each growth touches a
//! sixteen-thousandth of the keys, and SCAN gets a cursor that survives growth for nothing: a key
//! never changes its part, so the part's number is the cursor.
//!
//! Why key and string value share one buffer: most rows are short strings, and a second allocation
//! would cost each of them more than its key.

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

use crate::state::locks::Lock;
use crate::state::queues::Queue;
use crate::types::ClusterTime;
use crate::types::LogIndex;

/// Parts of a database; SCAN's cursor runs over them.
pub const PARTS: usize = 1 << 14;

/// What a queue takes in the indices of numbers and of deadlines, besides its name, which stands in both.
const INDEXED_BYTES: usize = 128;

/// What a row holds besides its key.
#[derive(Debug)]
pub enum Object {
    /// A string; its bytes follow the key in the row's buffer.
    String,
    /// A lock (COMMANDS.md 2.2).
    Lock(Box<Lock>),
    /// A queue (COMMANDS.md 2.3); its messages are rows of their own on disk.
    Queue(Box<Queue>),
}

impl Object {
    /// What TYPE answers.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Object::String => "string",
            Object::Lock(_) => "lock",
            Object::Queue(_) => "queue",
        }
    }
}

/// How a string came to be, as far as OBJECT ENCODING tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// Set as a whole: a number is told as a number.
    #[default]
    Value,
    /// Computed as text: a number is told as text.
    Text,
    /// Changed in its place.
    Changed,
}

impl Form {
    const ALL: [Form; 3] = [Form::Value, Form::Text, Form::Changed];
}

/// The length of a key, and beside it the form of a string: keys are bounded far below 1 GiB.
#[derive(Debug, Clone, Copy)]
struct KeyLen(u32);

impl KeyLen {
    const FORM_AT: u32 = 30;

    fn new(len: usize) -> KeyLen {
        let len = u32::try_from(len).ok().filter(|len| len >> KeyLen::FORM_AT == 0);
        KeyLen(len.expect("keys are bounded far below 1 GiB"))
    }

    fn len(self) -> usize {
        (self.0 & ((1 << KeyLen::FORM_AT) - 1)) as usize
    }

    fn form(self) -> Form {
        Form::ALL[(self.0 >> KeyLen::FORM_AT) as usize]
    }

    fn set_form(&mut self, form: Form) {
        self.0 = self.len() as u32 | (form as u32) << KeyLen::FORM_AT;
    }
}

/// A key and what it holds.
#[derive(Debug)]
pub struct Row {
    /// The key, then (for strings) the value.
    buffer: Vec<u8>,
    key_len: KeyLen,
    /// Where the row stands among the changes that wait for the next flush (see `changes`).
    pub(super) mark: u32,
    /// The index of the entry that changed the row last (WATCH compares it).
    pub(super) changed: LogIndex,
    /// When the key expires, in key time (see [`crate::state::State::key_now`]); NEVER for most.
    pub(super) deadline: ClusterTime,
    pub(super) object: Object,
}

impl Row {
    pub(super) fn string(key: &[u8], value: &[u8]) -> Row {
        let mut buffer = Vec::with_capacity(key.len() + value.len());
        buffer.extend_from_slice(key);
        buffer.extend_from_slice(value);
        Row::new(buffer, key.len(), Object::String)
    }

    pub(super) fn with_object(key: &[u8], object: Object) -> Row {
        Row::new(key.to_vec(), key.len(), object)
    }

    fn new(buffer: Vec<u8>, key_len: usize, object: Object) -> Row {
        let key_len = KeyLen::new(key_len);
        Row { buffer, key_len, mark: 0, changed: LogIndex(0), deadline: ClusterTime::NEVER, object }
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.buffer[..self.key_len.len()]
    }

    /// The string's bytes; `None` when the row is of another type.
    #[must_use]
    pub fn as_string(&self) -> Option<&[u8]> {
        matches!(self.object, Object::String).then(|| self.string_bytes())
    }

    /// Length of the key and the string together.
    pub(super) fn buffer_len(&self) -> usize {
        self.buffer.len()
    }

    pub(super) fn string_bytes(&self) -> &[u8] {
        &self.buffer[self.key_len.len()..]
    }

    /// How the string came to be.
    #[must_use]
    pub fn form(&self) -> Form {
        self.key_len.form()
    }

    pub(super) fn set_form(&mut self, form: Form) {
        self.key_len.set_form(form);
    }

    /// What the row holds.
    #[must_use]
    pub fn object(&self) -> &Object {
        &self.object
    }

    /// The index of the entry that changed this row last.
    #[must_use]
    pub fn changed(&self) -> LogIndex {
        self.changed
    }

    /// When the key expires, in key time; `None` when it does not.
    #[must_use]
    pub fn deadline(&self) -> Option<ClusterTime> {
        (self.deadline != ClusterTime::NEVER).then_some(self.deadline)
    }

    /// Bytes of memory this row takes, without its share of the hash table.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let object = match &self.object {
            Object::String => 0,
            Object::Lock(lock) => lock.memory_bytes(),
            Object::Queue(queue) => queue.memory_bytes() + INDEXED_BYTES + 2 * self.key_len.len(),
        };
        std::mem::size_of::<Row>() + self.buffer.capacity() + object
    }

    pub(super) fn replace_string(&mut self, value: &[u8]) {
        let key_len = self.key_len.len();
        let needed = key_len + value.len();
        if self.buffer.capacity() > 2 * needed + 64 || self.buffer.capacity() < needed {
            let mut buffer = Vec::with_capacity(needed);
            buffer.extend_from_slice(&self.buffer[..key_len]);
            self.buffer = buffer;
        }
        self.buffer.truncate(key_len);
        self.buffer.extend_from_slice(value);
        self.set_form(Form::Value);
    }

    pub(super) fn append_string(&mut self, value: &[u8]) {
        self.buffer.extend_from_slice(value);
        self.set_form(Form::Changed);
    }

    pub(super) fn write_string_at(&mut self, offset: usize, value: &[u8]) {
        self.set_form(Form::Changed);
        let start = self.key_len.len() + offset;
        let end = start + value.len();
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        self.buffer[start..end].copy_from_slice(value);
    }

    /// The same content under another name.
    pub(super) fn renamed(mut self, key: &[u8]) -> Row {
        if matches!(self.object, Object::String) {
            let mut renamed = Row::string(key, self.string_bytes());
            renamed.set_form(self.form());
            renamed.deadline = self.deadline;
            return renamed;
        }
        self.buffer = key.to_vec();
        self.key_len = KeyLen::new(key.len());
        self.changed = LogIndex(0);
        self
    }
}

/// The rows of one database.
#[derive(Debug, Default)]
pub struct Keyspace {
    /// Empty until the first key comes, so that unused databases cost nothing.
    parts: Vec<HashTable<Box<Row>>>,
    len: usize,
}

fn hash(key: &[u8]) -> u64 {
    xxh3_64(key)
}

/// The part is taken from the middle of the hash: hashbrown uses both ends within a table.
fn part_of(hash: u64) -> usize {
    (hash >> 24) as usize & (PARTS - 1)
}

impl Keyspace {
    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The row of a key.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&Row> {
        let hash = hash(key);
        self.parts.get(part_of(hash))?.find(hash, |row| row.key() == key).map(Box::as_ref)
    }

    pub(super) fn get_mut(&mut self, key: &[u8]) -> Option<&mut Row> {
        let hash = hash(key);
        self.parts.get_mut(part_of(hash))?.find_mut(hash, |row| row.key() == key).map(Box::as_mut)
    }

    /// Puts a row whose key must not be there yet, and gives it back for further changes.
    pub(super) fn insert_new(&mut self, row: Row) -> &mut Row {
        self.insert_boxed(Box::new(row))
    }

    /// The same.
    pub(super) fn insert_boxed(&mut self, row: Box<Row>) -> &mut Row {
        if self.parts.is_empty() {
            self.parts.resize_with(PARTS, HashTable::new);
        }
        let hash = hash(row.key());
        self.len += 1;
        let part = &mut self.parts[part_of(hash)];
        part.insert_unique(hash, row, |row| xxh3_64(row.key())).into_mut()
    }

    pub(super) fn remove(&mut self, key: &[u8]) -> Option<Box<Row>> {
        let hash = hash(key);
        let entry = self.parts.get_mut(part_of(hash))?.find_entry(hash, |row| row.key() == key).ok()?;
        self.len -= 1;
        Some(entry.remove().0)
    }

    /// The rows of one part, in no meaningful order.
    pub fn part(&self, part: usize) -> impl Iterator<Item = &Row> {
        self.parts.get(part).into_iter().flat_map(|table| table.iter().map(Box::as_ref))
    }

    /// Every row, in no meaningful order.
    pub fn iter(&self) -> impl Iterator<Item = &Row> {
        self.parts.iter().flat_map(|table| table.iter().map(Box::as_ref))
    }

    /// Removes every row for which `keep` is false and hands it out.
    pub(super) fn take_unless(&mut self, keep: impl Fn(&Row) -> bool, mut taken: impl FnMut(Box<Row>)) {
        for part in &mut self.parts {
            for row in part.extract_if(|row| !keep(row)) {
                self.len -= 1;
                taken(row);
            }
            part.shrink_to_fit(|row| xxh3_64(row.key()));
        }
    }
}
