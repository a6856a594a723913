//! Nobody waits whose turn it is, at any index; and nobody waits who can never go on, for a deadlock is found with the
//! request that closes it.

use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::world::World;

#[derive(Default)]
pub struct NoLostWakeUp;

impl Invariant for NoLostWakeUp {
    fn name(&self) -> &'static str {
        "no lost wake-up, no deadlock"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let Fact::Applies { entry, is_first: true, .. } = fact else { return Ok(()) };
        let model = world.journal.model();
        if let Some(id) = model.forgotten_wait() {
            return Err(format!(
                "after {} it is the turn of {id}, which waits: {:?}",
                entry.index,
                model.waits()
            ));
        }
        if let Some(claim) = model.forgotten_pop() {
            let waits = model.pop_waits();
            return Err(format!(
                "after {} there is a message for {claim}, which waits: {waits:?}",
                entry.index
            ));
        }
        // The same, as the product's own queues tell it.
        let state = &world.journal.state;
        for wait in state.pop_waits().iter() {
            let mut queues = wait.request.queues.iter();
            let now = state.meta().clock;
            let has_one = |key: &[u8]| {
                let queue = holdfast::state::queues::queue_at(state, wait.request.db, key).flatten();
                queue.is_some_and(|queue| queue.next_available(now).is_some())
            };
            if let Some(key) = queues.find(|key| has_one(key)) {
                return Err(format!("after {} {key:?} has a message for {wait:?}, which waits", entry.index));
            }
        }
        let stuck = model.stuck();
        if !stuck.is_empty() {
            return Err(format!("after {} these wait for each other: {stuck:?}", entry.index));
        }
        Ok(())
    }
}
