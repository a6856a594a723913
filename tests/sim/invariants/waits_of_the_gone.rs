//! In the end nobody waits for a client that is gone, and nothing is handed to one: every claim in the state is that of a
//! client that still waits.

use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::world::World;

#[derive(Default)]
pub struct WaitsOfTheGone;

impl Invariant for WaitsOfTheGone {
    fn name(&self) -> &'static str {
        "no wait of a client that is gone"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let Fact::Healed = fact else { return Ok(()) };
        let waiting: Vec<u64> =
            world.clients.iter().filter_map(|client| client.claim).map(|(id, _)| id).collect();
        let state = &world.journal.state;
        for (id, wait) in state.waits().iter() {
            if let Some(claim) = wait.claims().find(|claim| !waiting.contains(&claim.id.0)) {
                return Err(format!("{claim:?} of {id:?} is nobody's; clients wait for {waiting:?}"));
            }
        }
        if let Some(wait) = state.pop_waits().iter().find(|wait| !waiting.contains(&wait.claim.id.0)) {
            return Err(format!("{wait:?} is nobody's; clients wait for {waiting:?}"));
        }
        for (id, hand_over) in state.handed().iter() {
            if let Some(claim) = hand_over.clients.keys().find(|claim| !waiting.contains(&claim.0)) {
                return Err(format!("{claim:?} of {id:?} is nobody's; clients wait for {waiting:?}"));
            }
        }
        let lost = waiting.iter().find(|claim| !state.is_waiting(holdfast::state::locks::ClaimId(**claim)));
        match lost {
            Some(claim) => Err(format!("a client waits for {claim}, which is over")),
            None => Ok(()),
        }
    }
}
