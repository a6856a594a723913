//! At every index a lock has at most one holder, and it changes hands only through a release or the end of a lease.

use std::collections::BTreeMap;

use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::model::Hold;
use crate::world::World;

#[derive(Default)]
pub struct ExclusiveHolder {
    /// The locks that were held as of the last entry.
    held: BTreeMap<Vec<u8>, Hold>,
}

impl Invariant for ExclusiveHolder {
    fn name(&self) -> &'static str {
        "one holder of a lock"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let Fact::Applies { entry, is_first: true, .. } = fact else { return Ok(()) };
        let model = world.journal.model();
        let touched: Vec<Vec<u8>> = model
            .touched()
            .iter()
            .filter(|(_, key)| key.first() == Some(&b'l'))
            .map(|(_, key)| key.clone())
            .collect();
        for key in touched {
            let hold = model.hold(0, &key).cloned();
            let state = holdfast::state::locks::lock_at(&world.journal.state, 0, &key).flatten();
            let real = state.map(|lock| (lock.token().0, lock.lease_until().0));
            if real != hold.as_ref().map(|hold| (hold.token, hold.until)) {
                return Err(format!("lock {key:?} at {}: {real:?}, expected {hold:?}", entry.index));
            }
            let before = match &hold {
                Some(hold) => self.held.insert(key.clone(), hold.clone()),
                None => self.held.remove(&key),
            };
            if let (Some(before), Some(hold)) = (&before, &hold)
                && before.owner != hold.owner
                && hold.token <= before.token
            {
                return Err(format!("lock {key:?} passes from {before:?} to {hold:?} at {}", entry.index));
            }
            if before.is_some_and(|before| before.until <= model.clock()) {
                world.coverage.saw("a lock's lease ends");
            }
        }
        Ok(())
    }
}
