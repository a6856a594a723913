//! No receipt is given out twice: the deliveries of a message strictly increase, in whatever queue it is.

use std::collections::BTreeMap;

use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::world::World;

#[derive(Default)]
pub struct ReceiptsIncrease {
    /// The last delivery of each message.
    last: BTreeMap<String, u64>,
}

impl Invariant for ReceiptsIncrease {
    fn name(&self) -> &'static str {
        "receipts increase"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let Fact::Applies { entry, is_first: true, .. } = fact else { return Ok(()) };
        // Within an entry they are told in another order than they were handed out: replies before notices.
        let mut handed_out = world.journal.handed_out.clone();
        handed_out.sort_unstable();
        for (id, delivery) in &handed_out {
            let before = self.last.insert(id.clone(), *delivery).unwrap_or(0);
            if *delivery <= before {
                let index = entry.index;
                return Err(format!("{id} is handed out at {index} as delivery {delivery} after {before}"));
            }
        }
        Ok(())
    }
}
