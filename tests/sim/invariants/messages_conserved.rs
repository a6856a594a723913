//! Every message that was pushed is in exactly one place at every index: waiting, in flight, or finished.

use holdfast::state::queues::queue_at;

use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::world::World;

#[derive(Default)]
pub struct MessagesConserved;

impl Invariant for MessagesConserved {
    fn name(&self) -> &'static str {
        "messages are conserved"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let Fact::Applies { entry, is_first: true, .. } = fact else { return Ok(()) };
        let journal = &world.journal;
        let mut is_redelivered = false;
        for (_, key) in journal.model().touched().iter().filter(|(_, key)| key.first() == Some(&b'q')) {
            let Some(queue) = queue_at(&journal.state, 0, key).flatten() else { continue };
            let counters = queue.counters();
            let there = (queue.ready_count() + queue.leased_count()) as u64;
            if counters.pushed != counters.acked + there || queue.len() as u64 != there {
                let key = String::from_utf8_lossy(key).into_owned();
                return Err(format!("queue {key} at {}: {counters:?}, {there} are there", entry.index));
            }
            is_redelivered |= counters.expired_leases > 0;
        }
        if is_redelivered {
            world.coverage.saw("a message is delivered again");
        }
        Ok(())
    }
}
