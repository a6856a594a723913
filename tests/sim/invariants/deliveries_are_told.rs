//! In the end no message is in flight by a delivery that nobody was told of: such a message goes back to its queue. Only one
//! that was confirmed stays with a client whose process died: it may have been told. And none goes back that somebody was told
//! of. What was handed out at once, in a reply that was not written, goes back while its client's process lives.

use holdfast::state::queues::MessageId;
use holdfast::state::queues::MessageState;
use holdfast::state::queues::Receipt;
use holdfast::state::queues::queue_at;

use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::model::End;
use crate::world::Unheard;
use crate::world::World;

#[derive(Default)]
pub struct DeliveriesAreTold;

impl Invariant for DeliveriesAreTold {
    fn name(&self) -> &'static str {
        "a delivery is told"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let journal = &world.journal;
        if let Fact::Applies { entry, is_first: true, .. } = fact {
            let given_back = journal.model().given_back();
            if given_back.is_empty() {
                return Ok(());
            }
            for (claim, delivered) in &journal.delivered {
                let End::Delivered { messages, .. } = &delivered.end else { continue };
                let is_back = messages.iter().any(|it| given_back.contains(&(it.id, it.delivery)));
                if is_back && world.told_claims.contains(claim) {
                    let index = entry.index;
                    return Err(format!("{claim} was told of {messages:?}, which go back at {index}"));
                }
            }
        }
        let Fact::Healed = fact else { return Ok(()) };
        for (claim, delivered) in &journal.delivered {
            let End::Delivered { messages, .. } = &delivered.end else { continue };
            let node = (delivered.node as usize).checked_sub(1).and_then(|n| world.nodes.get(n));
            let life = node.and_then(|node| node.running.as_ref()).map(|running| running.log_life);
            let is_confirmed = journal.confirmed.contains(claim);
            if world.told_claims.contains(claim) || (is_confirmed && life != Some(delivered.life)) {
                continue;
            }
            for message in messages {
                let queue = queue_at(&journal.state, 0, &message.queue).flatten();
                let id = MessageId { index: message.id.0, n: message.id.1 };
                let life = queue.and_then(|queue| queue.life(id));
                let is_out = life.is_some_and(|life| {
                    matches!(life.state, MessageState::Leased { .. }) && life.delivery == message.delivery
                });
                if is_out {
                    return Err(format!("{claim} was given {message:?}, and nobody knows"));
                }
            }
        }
        for Unheard { node, life, message, .. } in &world.unheard {
            let Some((queue, receipt)) = message else { continue };
            let Some(receipt) = Receipt::parse(receipt) else { return Err("a malformed receipt".to_owned()) };
            let life_of =
                queue_at(&journal.state, 0, queue).flatten().and_then(|queue| queue.life(receipt.id));
            let is_out = life_of.is_some_and(|life| {
                matches!(life.state, MessageState::Leased { .. }) && life.delivery == receipt.delivery
            });
            if is_out && world.is_alive(*node, *life) {
                return Err(format!("{receipt} is out, which was given in a reply that was lost"));
            }
        }
        Ok(())
    }
}
