//! Nobody who waits is sent away while a leader is known, or was a moment ago. Time for which a node stands still is no time
//! without a leader.

use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::plan::MILLI;
use crate::plan::SECOND;
use crate::world::World;

/// A leader is known at a node for as long as two of its election timeouts after it was heard: that is less than
/// `cluster-node-timeout` by more than this.
const KNOWN_BEFORE: u64 = SECOND;
/// A node that runs sweeps at least so often.
const SWEEP: u64 = 300 * MILLI;

#[derive(Default)]
pub struct WaitersAreKept {
    /// When each node swept last, and for how long it ran since it knew of a leader.
    nodes: Vec<(u64, u64)>,
}

impl Invariant for WaitersAreKept {
    fn name(&self) -> &'static str {
        "who waits is kept while there is a leader"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        match fact {
            Fact::Swept(n) => {
                if self.nodes.len() <= *n {
                    self.nodes.resize(*n + 1, (world.now, 0));
                }
                let (swept, without) = &mut self.nodes[*n];
                *without += (world.now - *swept).min(SWEEP);
                *swept = world.now;
                let leader = world.nodes[*n].running.as_ref().map_or(0, |it| it.driver.core().leader());
                if leader != 0 {
                    *without = 0;
                }
                Ok(())
            }
            Fact::Refused(n) => {
                let without = self.nodes.get(*n).map_or(u64::MAX, |(_, without)| *without);
                if without < KNOWN_BEFORE {
                    let without = without / MILLI;
                    return Err(format!("node {} sends a waiter away, {without} ms without a leader", n + 1));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
