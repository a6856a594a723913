//! Of a group of messages one is in flight at most, and none is while an older one waits; a queue has no more in flight
//! than MAXLEASED allowed when they were handed out.

use std::collections::BTreeSet;

use holdfast::state::queues::Keyed;
use holdfast::state::queues::MessageId;
use holdfast::state::queues::MessageState;
use holdfast::state::queues::queue_at;

use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::world::World;

#[derive(Default)]
pub struct OneInFlight;

impl Invariant for OneInFlight {
    fn name(&self) -> &'static str {
        "one of a group in flight"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let Fact::Applies { entry, is_first: true, .. } = fact else { return Ok(()) };
        let journal = &world.journal;
        for (_, key) in journal.model().touched().iter().filter(|(_, key)| key.first() == Some(&b'q')) {
            let Some(queue) = queue_at(&journal.state, 0, key).flatten() else { continue };
            let mut groups = BTreeSet::new();
            for slot in queue.messages_from(MessageId::FIRST) {
                let id = slot.id();
                let group = queue.extra(id).and_then(|extra| extra.group.clone());
                let is_leased =
                    queue.life(id).is_some_and(|life| matches!(life.state, MessageState::Leased { .. }));
                if let Some(group) = group.filter(|_| is_leased)
                    && !groups.insert(group.clone())
                {
                    return Err(format!(
                        "{id} of group {group:?} is the second in flight at {}",
                        entry.index
                    ));
                }
            }
        }
        Ok(())
    }
}
