//! While a leader's lease holds, nobody commits anything in a later term: what it reads from memory is the newest.

use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::world::World;

#[derive(Default)]
pub struct Lease;

impl Invariant for Lease {
    fn name(&self) -> &'static str {
        "one lease"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let Fact::Applies { node: by, entry, is_first: true } = fact else { return Ok(()) };
        for (n, node) in world.nodes.iter().enumerate() {
            // One that stands still serves nobody.
            let Some(running) = node.running.as_ref().filter(|_| node.paused_until <= world.now) else {
                continue;
            };
            node.set_clock(world.now);
            if running.driver.core().term() < entry.term && running.shared.may_read(node.clock.as_ref()) {
                return Err(format!(
                    "node {} reads under its lease of term {}; node {} applies {} of term {}",
                    n + 1,
                    running.driver.core().term(),
                    by + 1,
                    entry.index,
                    entry.term
                ));
            }
        }
        Ok(())
    }
}
