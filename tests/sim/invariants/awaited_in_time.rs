//! What somebody waits for ends soon after its time, whatever else is due, as long as one leader leads and no node is slow:
//! an end is an entry, and comes as late as any other.

use holdfast::state::expiry::Track;
use holdfast::types::ClusterTime;
use holdfast::types::Millis;

use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::world::World;

/// Late, by the stamps of the log: a leader that was stopped for a while stamps entries before it proposes the ends.
const LATE: Millis = Millis(1_000);
/// And for so long under one leader, in nanoseconds of the world.
const FOR: u64 = 2_000_000_000;
/// Between two entries no more than this counts: while nothing is committed nothing can end.
const BETWEEN: u64 = 300_000_000;

#[derive(Default)]
pub struct AwaitedInTime {
    /// The term of the entries after which something was late, and still is, when the last of them was applied first, and
    /// the time that counts.
    late: Option<(u64, u64, u64)>,
}

impl Invariant for AwaitedInTime {
    fn name(&self) -> &'static str {
        "what is awaited ends in time"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let Fact::Applies { entry, is_first: true, .. } = fact else { return Ok(()) };
        let state = &world.journal.state;
        let now = state.meta().clock;
        let is_late = |due: ClusterTime| due.until(now) > LATE;
        // The index may say a time that something had once: the model has looked.
        let due = match state.earliest_on(Track::Awaited) {
            due if is_late(due) => ClusterTime(world.journal.model().awaited_until()),
            due => due,
        };
        if !is_late(due) || world.was_slow() {
            self.late = None;
            return Ok(());
        }
        let (term, last, counted) = self.late.unwrap_or((entry.term, world.now, 0));
        let is_same = term == entry.term;
        let counted = if is_same { counted + (world.now - last).min(BETWEEN) } else { 0 };
        self.late = Some((entry.term, world.now, counted));
        if counted > FOR {
            return Err(format!(
                "at {} it is {now:?}, and what somebody waits for ends at {due:?}",
                entry.index
            ));
        }
        Ok(())
    }
}
