//! The group proposes what is due once: its own entries are no more than a few for each that clients caused.

use holdfast::machine::entry::decode_batch_head;
use holdfast::machine::entry::decode_item;
use holdfast::machine::entry::decode_stamps;

use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::plan::SECOND;
use crate::world::World;

/// Entries of the group itself in a second. Clients cause far fewer deadlines than this.
const ENTRIES_MAX: u64 = 120;

#[derive(Default)]
pub struct NoFlood {
    second: u64,
    entries: u64,
}

/// True when nobody but the group itself wanted this entry.
fn is_own(data: &[u8]) -> bool {
    let Ok((_, mut reader)) = decode_stamps(data) else { return false };
    while let Ok(Some(head)) = decode_batch_head(&mut reader) {
        if head.session.is_some() || (0..head.count).any(|_| decode_item(&mut reader).is_err()) {
            return false;
        }
    }
    true
}

impl Invariant for NoFlood {
    fn name(&self) -> &'static str {
        "no flood"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let Fact::Applies { entry, is_first: true, .. } = fact else { return Ok(()) };
        let second = world.now / SECOND;
        if second != self.second {
            (self.second, self.entries) = (second, 0);
        }
        // One that leaves something due ended as much as an entry may.
        let state = &world.journal.state;
        let is_idle = is_own(&entry.data) && !state.anything_due(state.meta().clock);
        self.entries += u64::from(is_idle);
        if self.entries > ENTRIES_MAX {
            return Err(format!("{} entries that no client wanted within a second", self.entries));
        }
        Ok(())
    }
}
