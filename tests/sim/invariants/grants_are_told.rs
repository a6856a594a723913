//! In the end no lock is held by a grant that nobody was told of: such a grant goes back, unless its owner set it anew, or
//! several clients asked for it and another may have been told. Only a grant that was confirmed stays with a client whose
//! process died: it may have been told. Nothing is told that was not confirmed, and none is taken back that somebody was told
//! of. What was granted at once, in a reply that was not written, is taken back while its client's process lives.

use holdfast::types::FencingToken;

use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::model::End;
use crate::model::Ended;
use crate::world::Unheard;
use crate::world::World;

#[derive(Default)]
pub struct GrantsAreTold;

impl Invariant for GrantsAreTold {
    fn name(&self) -> &'static str {
        "a grant is told"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        if let Fact::Applies { entry, is_first: true, .. } = fact {
            let taken = world.journal.model().taken_back();
            let is_taken = |(claim, granted): &(&u64, &Ended)| {
                let End::Granted { grants, .. } = &granted.end else { return false };
                world.told_claims.contains(claim) && grants.iter().any(|(_, token, _)| taken.contains(token))
            };
            if !taken.is_empty()
                && let Some((claim, granted)) = world.journal.granted.iter().find(is_taken)
            {
                let index = entry.index;
                return Err(format!("{claim} was told of {granted:?}, and it is taken back at {index}"));
            }
        }
        let Fact::Healed = fact else { return Ok(()) };
        for (claim, granted) in &world.journal.granted {
            let End::Granted { grants, .. } = &granted.end else { continue };
            let node = (granted.node as usize).checked_sub(1).and_then(|n| world.nodes.get(n));
            let life = node.and_then(|node| node.running.as_ref()).map(|running| running.log_life);
            let is_confirmed = world.journal.confirmed.contains(claim);
            if world.told_claims.contains(claim) {
                if !is_confirmed {
                    return Err(format!("{claim} was told of {granted:?}, and it was not confirmed"));
                }
                continue;
            }
            if is_confirmed && life != Some(granted.life) {
                continue;
            }
            for (key, token, touches) in grants {
                let hold = world.journal.lock(key).and_then(|lock| lock.hold_under(FencingToken(*token)));
                if hold.is_some_and(|hold| hold.touches() == *touches) {
                    return Err(format!("{claim} was granted {key:?} under {token}, and nobody knows"));
                }
            }
        }
        for Unheard { node, life, lock, .. } in &world.unheard {
            let Some((key, token)) = lock else { continue };
            let hold = world.journal.lock(key).and_then(|lock| lock.hold_under(FencingToken(*token)));
            if world.is_alive(*node, *life) && hold.is_some_and(|hold| hold.touches() == 1) {
                return Err(format!(
                    "{key:?} is held under {token}, which was given in a reply that was lost"
                ));
            }
        }
        Ok(())
    }
}
