//! If two logs hold an entry with the same index and term, they are the same up to there (Raft, 5.3): whoever writes an
//! entry of an index and a term writes the same one, behind an entry of the same term.

use std::collections::HashMap;

use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::journal::hash_of;
use crate::world::World;

#[derive(Default)]
pub struct LogMatching {
    /// What was written first: its hash, and the term of the entry before it where that was at hand.
    written: HashMap<(u64, u64), (u64, Option<u64>)>,
}

impl Invariant for LogMatching {
    fn name(&self) -> &'static str {
        "log matching"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let Fact::Written { node, entries } = fact else { return Ok(()) };
        let log = world.nodes[*node].disk.log.lock();
        // Some were replaced by what was written together with them.
        for entry in entries.iter().filter(|entry| log.holds(entry.index, entry.term)) {
            let before = log.entries.get(&(entry.index - 1)).map(|entry| entry.term);
            let hash = hash_of(entry);
            let known = self.written.entry((entry.index, entry.term)).or_insert((hash, before));
            known.1 = known.1.or(before);
            if known.0 != hash || before.is_some_and(|before| known.1 != Some(before)) {
                return Err(format!(
                    "node {} writes {} of term {} behind term {before:?}; another wrote {known:?}",
                    node + 1,
                    entry.index,
                    entry.term
                ));
            }
        }
        Ok(())
    }
}
