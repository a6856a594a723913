//! At every index a lock has one holder, or several that share it and no more than its LIMIT; they are the model's.

use std::collections::BTreeMap;

use holdfast::state::locks::Mode;

use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::world::World;

/// A hold: token, owner and the end of its lease.
type Held = (u64, Vec<u8>, u64);

#[derive(Default)]
pub struct ExclusiveHolder {
    /// The ends of leases as of the last entry.
    held: BTreeMap<Vec<u8>, Vec<Held>>,
}

impl Invariant for ExclusiveHolder {
    fn name(&self) -> &'static str {
        "one holder of a lock"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let Fact::Applies { entry, is_first: true, .. } = fact else { return Ok(()) };
        for key in world.journal.locks_touched() {
            let real = world.journal.lock(&key);
            let holds: Vec<Held> = real.map_or(Vec::new(), |lock| {
                let held = lock.holds().iter();
                held.map(|it| (it.token().0, it.owner().owner.to_vec(), it.lease_until().0)).collect()
            });
            let model = world.journal.model().lock_of(0, &key);
            let wanted: Vec<Held> = model.map_or(Vec::new(), |lock| {
                lock.holds.iter().map(|hold| (hold.token, hold.owner.clone(), hold.until)).collect()
            });
            if holds != wanted {
                return Err(format!("lock {key:?} at {}: {holds:?}, expected {wanted:?}", entry.index));
            }
            if let Some(lock) = real {
                let most = match (lock.mode(), lock.limit()) {
                    (Mode::Exclusive, _) => 1,
                    (Mode::Shared, 0) => usize::MAX,
                    (Mode::Shared, limit) => limit as usize,
                };
                let mut owners: Vec<&Vec<u8>> = holds.iter().map(|(_, owner, _)| owner).collect();
                owners.sort_unstable();
                owners.dedup();
                if holds.len() > most || owners.len() != holds.len() {
                    return Err(format!(
                        "lock {key:?} at {} is held {:?} by {holds:?}",
                        entry.index,
                        lock.mode()
                    ));
                }
            }
            let clock = world.journal.model().clock();
            let before = self.held.insert(key, holds).unwrap_or_default();
            if before.iter().any(|(_, _, until)| *until <= clock) {
                world.coverage.saw("a lock's lease ends");
            }
        }
        Ok(())
    }
}
