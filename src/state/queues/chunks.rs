//! Ordered by id, many to a piece of memory: ten million messages must fit (a tree of single items takes twice as much).
//!
//! Messages mostly come at the end and go at the front, so pieces are full but for the first and the last.

use std::collections::BTreeMap;

use crate::state::queues::MessageId;

/// Items of a piece, at most.
const CHUNK: usize = 64;
/// Room of a piece that is alone, at first: most queues are short.
const ALONE: usize = 4;

/// Something that stands under an id.
pub trait Keyed: Copy {
    /// Its id.
    fn id(&self) -> MessageId;
}

/// Items in the order of their ids.
#[derive(Debug)]
pub struct Chunks<T> {
    /// By an id that is at or below all of the piece and above all of the pieces before. No piece is empty.
    chunks: BTreeMap<MessageId, Vec<T>>,
    len: usize,
}

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Chunks { chunks: BTreeMap::new(), len: 0 }
    }
}

impl<T: Keyed> Chunks<T> {
    /// How many items there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first item.
    #[must_use]
    pub fn first(&self) -> Option<&T> {
        self.chunks.first_key_value().and_then(|(_, chunk)| chunk.first())
    }

    /// The item of an id.
    #[must_use]
    pub fn get(&self, id: MessageId) -> Option<&T> {
        let (_, chunk) = self.chunks.range(..=id).next_back()?;
        place(chunk, id).ok().map(|at| &chunk[at])
    }

    /// The same, to be changed; its id must stay.
    pub fn get_mut(&mut self, id: MessageId) -> Option<&mut T> {
        let (_, chunk) = self.chunks.range_mut(..=id).next_back()?;
        place(chunk, id).ok().map(|at| &mut chunk[at])
    }

    /// Adds an item; gives the one that it takes the place of.
    pub fn insert(&mut self, item: T) -> Option<T> {
        let id = item.id();
        let Some(key) = self.chunks.range(..=id).next_back().map(|(key, _)| *key) else {
            // Before all others.
            self.len += 1;
            match self.chunks.pop_first() {
                Some((_, mut chunk)) if chunk.len() < CHUNK => {
                    chunk.insert(0, item);
                    self.chunks.insert(id, chunk);
                }
                first => {
                    let room = if first.is_some() { CHUNK } else { ALONE };
                    self.chunks.extend(first);
                    self.chunks.insert(id, piece(item, room));
                }
            }
            return None;
        };
        let is_last = self.chunks.last_key_value().is_some_and(|(last, _)| *last == key);
        let chunk = self.chunks.get_mut(&key).expect("its key was found just now");
        let at = match place(chunk, id) {
            Ok(at) => return Some(std::mem::replace(&mut chunk[at], item)),
            Err(at) => at,
        };
        self.len += 1;
        if chunk.len() < CHUNK {
            chunk.insert(at, item);
        } else if is_last && at == CHUNK {
            self.chunks.insert(id, piece(item, CHUNK));
        } else {
            let mut tail = Vec::with_capacity(CHUNK);
            tail.extend(chunk.drain(CHUNK / 2..));
            if at < CHUNK / 2 {
                chunk.insert(at, item);
            } else {
                tail.insert(at - CHUNK / 2, item);
            }
            self.chunks.insert(tail[0].id(), tail);
        }
        None
    }

    /// Takes an item out.
    pub fn remove(&mut self, id: MessageId) -> Option<T> {
        let (key, chunk) = self.chunks.range_mut(..=id).next_back()?;
        let (key, at) = (*key, place(chunk, id).ok()?);
        let item = chunk.remove(at);
        self.len -= 1;
        let left = chunk.len();
        if left == 0 {
            self.chunks.remove(&key);
        } else if left < CHUNK / 4 {
            self.join_with_next(key, left);
        }
        Some(item)
    }

    /// What is left of a piece and the piece behind it become one, if that is still less than half full.
    fn join_with_next(&mut self, key: MessageId, left: usize) {
        let next = self.chunks.range(key.next()..).next();
        let Some(next) = next.filter(|(_, next)| next.len() + left <= CHUNK / 2).map(|(next, _)| *next)
        else {
            return;
        };
        let tail = self.chunks.remove(&next).expect("its key was found just now");
        self.chunks.get_mut(&key).expect("it is there").extend(tail);
    }

    /// Every item from this id on, in order.
    pub fn from(&self, id: MessageId) -> impl Iterator<Item = &T> {
        let start = self.chunks.range(..=id).next_back().map_or(id, |(key, _)| *key);
        self.chunks.range(start..).flat_map(|(_, chunk)| chunk).skip_while(move |item| item.id() < id)
    }

    /// Every item, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.values().flatten()
    }

    /// About how many bytes of memory it takes: told from the number of items alone, so that replicas tell the same.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let pieces = self.len.div_ceil(CHUNK);
        let room = if pieces == 1 { self.len.next_power_of_two().max(ALONE) } else { pieces * CHUNK };
        room * size_of::<T>() + tree_bytes(pieces, size_of::<(MessageId, Vec<T>)>())
    }
}

/// About how many bytes a tree of the standard library takes with so many items of this size: its nodes have eleven
/// places, of which six to eight are taken, but for the only one of a small tree.
#[must_use]
pub fn tree_bytes(items: usize, item: usize) -> usize {
    const PLACES: usize = 11;
    let nodes = if items <= PLACES { items.min(1) } else { items.div_ceil(7) };
    nodes * (PLACES * item + 16)
}

fn piece<T>(item: T, room: usize) -> Vec<T> {
    let mut chunk = Vec::with_capacity(room);
    chunk.push(item);
    chunk
}

fn place<T: Keyed>(chunk: &[T], id: MessageId) -> Result<usize, usize> {
    // Most come at the end.
    match chunk.last() {
        Some(last) if last.id() < id => Err(chunk.len()),
        _ => chunk.binary_search_by_key(&id, Keyed::id),
    }
}

/// An id in twelve bytes.
#[derive(Debug, Clone, Copy)]
#[repr(C, packed(4))]
pub struct PackedId {
    index: u64,
    n: u32,
}

impl From<MessageId> for PackedId {
    fn from(id: MessageId) -> PackedId {
        PackedId { index: id.index, n: id.n }
    }
}

impl Keyed for PackedId {
    fn id(&self) -> MessageId {
        MessageId { index: self.index, n: self.n }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::any;
    use proptest::proptest;

    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Item(MessageId, u64);

    impl Keyed for Item {
        fn id(&self) -> MessageId {
            self.0
        }
    }

    fn check(chunks: &Chunks<Item>, model: &BTreeMap<MessageId, u64>) {
        assert!(chunks.iter().map(|item| (item.0, item.1)).eq(model.iter().map(|(id, value)| (*id, *value))));
        assert_eq!((chunks.len(), chunks.is_empty()), (model.len(), model.is_empty()));
        assert_eq!(chunks.first().map(|item| item.0), model.keys().next().copied());
        assert!(chunks.chunks.values().all(|chunk| !chunk.is_empty() && chunk.len() <= CHUNK));
    }

    proptest! {
        #[test]
        fn it_is_an_ordered_map(draws in proptest::collection::vec(any::<u64>(), 1..3_000)) {
            let (mut chunks, mut model) = (Chunks::default(), BTreeMap::new());
            let mut end = 1_000;
            for draw in draws {
                let some = MessageId { index: 800 + (draw >> 8) % 700, n: (draw >> 40) as u32 % 3 };
                match draw % 8 {
                    0..=2 => {
                        end += 1;
                        let id = MessageId { index: end, n: 0 };
                        let old = chunks.insert(Item(id, draw)).map(|item| item.1);
                        assert_eq!(old, model.insert(id, draw));
                    }
                    3 => {
                        let old = chunks.insert(Item(some, draw)).map(|item| item.1);
                        assert_eq!(old, model.insert(some, draw));
                    }
                    4 => assert_eq!(chunks.remove(some).map(|item| item.1), model.remove(&some)),
                    5 => {
                        let first = model.keys().next().copied();
                        if let Some(id) = first {
                            assert_eq!(chunks.remove(id).map(|item| item.1), model.remove(&id));
                        }
                    }
                    6 => {
                        if let Some(item) = chunks.get_mut(some) {
                            item.1 = draw;
                            model.insert(some, draw);
                        }
                    }
                    _ => {
                        assert_eq!(chunks.get(some).map(|item| item.1), model.get(&some).copied());
                        let rest: Vec<u64> = chunks.from(some).map(|item| item.1).collect();
                        assert!(rest.iter().eq(model.range(some..).map(|(_, value)| value)));
                    }
                }
            }
            check(&chunks, &model);
        }
    }

    #[test]
    fn what_is_pushed_at_the_end_fills_its_pieces() {
        let mut chunks = Chunks::default();
        for index in 0..64_000 {
            chunks.insert(Item(MessageId { index, n: 0 }, index));
        }
        assert_eq!(chunks.chunks.len(), 1_000);
        assert!(chunks.memory_bytes() < 64_000 * (size_of::<Item>() + 2));
    }
}
