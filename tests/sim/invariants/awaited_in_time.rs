//! What somebody waits for ends soon after its time, whatever else is due, as long as one leader leads.

use holdfast::state::expiry::Track;
use holdfast::types::Millis;

use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::world::World;

/// Late, by the stamps of the log: a leader that was stopped for a while stamps entries before it proposes the ends.
const LATE: Millis = Millis(1_000);
/// And for so long under one leader, in nanoseconds of the world: what a leader stamped while it was cut off is committed
/// all at once.
const FOR: u64 = 2_000_000_000;

#[derive(Default)]
pub struct AwaitedInTime {
    /// The term of the first entry after which something was late, and still is, and when it was applied first.
    since: Option<(u64, u64)>,
}

impl Invariant for AwaitedInTime {
    fn name(&self) -> &'static str {
        "what is awaited ends in time"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let Fact::Applies { entry, is_first: true, .. } = fact else { return Ok(()) };
        let state = &world.journal.state;
        let (now, due) = (state.meta().clock, state.earliest_on(Track::Awaited));
        if due.until(now) <= LATE {
            self.since = None;
            return Ok(());
        }
        let (_, since) = *match &mut self.since {
            Some(since) if since.0 == entry.term => since,
            since => since.insert((entry.term, world.now)),
        };
        if world.now - since > FOR {
            return Err(format!(
                "at {} it is {now:?}, and what somebody waits for ends at {due:?}",
                entry.index
            ));
        }
        Ok(())
    }
}
