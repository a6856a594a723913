//! Every message that was pushed is in exactly one place at every index: waiting, in flight, dead, or finished, deleted or
//! moved to another queue, and nothing is there that nobody pushed. It is all as the model has it. In the end every push
//! that a client was told of is still there, or was finished or deleted.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use holdfast::resp::Reply;
use holdfast::state::queues::Counters;
use holdfast::state::queues::Keyed;
use holdfast::state::queues::MessageId;
use holdfast::state::queues::StateName;
use holdfast::state::queues::known_at;
use holdfast::state::queues::queue_at;

use crate::clients::Ask;
use crate::clients::Known;
use crate::comparison::difference;
use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::model::Place;
use crate::world::World;

#[derive(Default)]
pub struct MessagesConserved {
    /// Every message there is.
    live: BTreeSet<MessageId>,
    /// Every message that was finished or deleted.
    over: BTreeSet<MessageId>,
    /// Entries in which a message came and went.
    brief: BTreeSet<u64>,
    pushed: u64,
    /// What happened in each queue, by its number: pushed, acknowledged, deleted, moved.
    counts: BTreeMap<u64, [u64; 4]>,
}

impl Invariant for MessagesConserved {
    fn name(&self) -> &'static str {
        "messages are conserved"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        match fact {
            Fact::Applies { entry, is_first: true, .. } => self.on_entry(entry.index, world),
            Fact::Healed => self.on_end(world),
            _ => Ok(()),
        }
    }
}

impl MessagesConserved {
    fn on_entry(&mut self, index: u64, world: &mut World) -> Result<(), String> {
        let journal = &world.journal;
        let touched = journal.model().touched().iter().filter(|(_, key)| key.first() == Some(&b'q'));
        let keys: BTreeSet<&Vec<u8>> = touched.map(|(_, key)| key).collect();
        if keys.is_empty() {
            return Ok(());
        }
        let (mut is_redelivered, mut is_held) = (false, false);
        for key in keys {
            let shown = String::from_utf8_lossy(key);
            let is_key = queue_at(&journal.state, 0, key).flatten().is_some();
            if is_key != journal.model().queue_of(0, key).is_some() {
                return Err(format!("queue {shown} at {index}: that it is a key is {is_key}"));
            }
            let real = known_at(&journal.state, 0, key).flatten();
            let (Some(queue), Some(model)) = (real, journal.model().known_queue(0, key)) else {
                if real.is_some() || journal.model().known_queue(0, key).is_some() {
                    return Err(format!("queue {shown} at {index}: {real:?}"));
                }
                continue;
            };
            let Counters { pushed, acked, deleted, moved, .. } = *queue.counters();
            let there: usize = StateName::ALL.iter().map(|(_, state)| queue.count(*state)).sum();
            if pushed != acked + deleted + moved + there as u64 || queue.len() != there {
                let counters = queue.counters();
                return Err(format!("queue {shown} at {index}: {counters:?}, {there} are there"));
            }
            if let Some(what) = difference(queue, model) {
                return Err(format!("queue {shown} at {index}: {what}"));
            }
            self.counts.insert(queue.number(), [pushed, acked, deleted, moved]);
            is_redelivered |= queue.counters().expired_leases > 0;
            is_held |= model.messages.iter().any(|it| it.place == Place::Ready && model.is_held_back(it));
        }
        let mut live = BTreeSet::new();
        for ((_, key), queue) in journal.state.queues() {
            for slot in queue.messages_from(MessageId::FIRST) {
                if !live.insert(slot.id()) {
                    return Err(format!("{} is in {key:?} at {index}, and elsewhere", slot.id()));
                }
            }
        }
        if let Some(id) = live.difference(&self.live).find(|id| id.index != index) {
            return Err(format!("{id} is there at {index}, and nobody pushed it"));
        }
        let came = live.difference(&self.live).count() as u64;
        self.over.extend(self.live.difference(&live).copied());
        self.live = live;
        let sum = |at: usize| self.counts.values().map(|counts| counts[at]).sum::<u64>();
        // What one queue moves away another counts as pushed.
        let (pushed, over) = (sum(0) - sum(3), sum(1) + sum(2));
        if pushed != over + self.live.len() as u64 {
            return Err(format!(
                "{pushed} were pushed up to {index}, {over} are over, {} left",
                self.live.len()
            ));
        }
        if pushed - self.pushed > came {
            self.brief.insert(index);
        }
        self.pushed = pushed;
        if is_redelivered {
            world.coverage.saw("a message is delivered again");
        }
        if is_held {
            world.coverage.saw("a group holds a message back");
        }
        Ok(())
    }

    /// Nothing that somebody was told of is lost.
    fn on_end(&self, world: &World) -> Result<(), String> {
        for operation in &world.operations {
            let (Ask::Write(commands), Known::Replies(replies)) = (&operation.ask, &operation.known) else {
                continue;
            };
            for (command, reply) in commands.iter().zip(replies) {
                let (b"QPUSH", Reply::Bulk(id)) = (&command[0][..], reply) else { continue };
                let id = MessageId::parse(id).ok_or_else(|| format!("{id:?} is no id"))?;
                let index = operation.index;
                let is_known =
                    self.live.contains(&id) || self.over.contains(&id) || self.brief.contains(&id.index);
                if !is_known {
                    return Err(format!("{id} was acknowledged at {index:?}, and is lost"));
                }
            }
        }
        Ok(())
    }
}
