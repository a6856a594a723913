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
        let stuck = model.stuck();
        if !stuck.is_empty() {
            return Err(format!("after {} these wait for each other: {stuck:?}", entry.index));
        }
        Ok(())
    }
}
