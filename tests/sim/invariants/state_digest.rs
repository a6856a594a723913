//! Replicas that applied the same index have the same state.

use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::world::World;

#[derive(Default)]
pub struct StateDigest;

impl Invariant for StateDigest {
    fn name(&self) -> &'static str {
        "equal state at an equal index"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let check = |n: usize, world: &World| {
            let Some(running) = &world.nodes[n].running else { return Ok(()) };
            let state = running.state.read();
            let index = state.meta().applied.0;
            let expected = world.journal.digest(index).or_else(|| {
                (matches!(fact, Fact::Healed) && index == world.journal.last())
                    .then(|| world.journal.state.digest())
            });
            if expected.is_some_and(|digest| digest != state.digest()) {
                return Err(format!("node {} has another state at {index}", n + 1));
            }
            Ok(())
        };
        match fact {
            Fact::Applied(n) => check(*n, world),
            Fact::Healed => (0..world.nodes.len()).try_for_each(|n| check(n, world)),
            _ => Ok(()),
        }
    }
}
