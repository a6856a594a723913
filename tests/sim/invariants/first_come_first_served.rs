//! A grant never passes by somebody who waited for the same lock before, but for an upgrade, which goes before all.

use std::collections::BTreeMap;

use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::model::End;
use crate::world::World;

#[derive(Default)]
pub struct FirstComeFirstServed {
    /// The requests that wait for each lock, in order, as of the last entry.
    queues: BTreeMap<Vec<u8>, Vec<u64>>,
    /// Which request each claim is of.
    claims: BTreeMap<u64, u64>,
}

impl Invariant for FirstComeFirstServed {
    fn name(&self) -> &'static str {
        "first come, first served"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let Fact::Applies { entry, is_first: true, .. } = fact else { return Ok(()) };
        let journal = &world.journal;
        for ended in &journal.ended {
            let End::Granted { grants, .. } = &ended.end else { continue };
            let request = self.claims.get(&ended.claim).copied().unwrap_or(ended.claim);
            for (key, _, _) in grants {
                let before = self.queues.get(key).map_or(&[][..], Vec::as_slice);
                let Some(place) = before.iter().position(|id| *id == request) else { continue };
                let left: Vec<u64> =
                    journal.lock(key).map_or(Vec::new(), |lock| lock.waiters().map(|id| id.0).collect());
                if let Some(passed) = before[..place].iter().find(|id| left.contains(id)) {
                    let index = entry.index;
                    return Err(format!("{key:?} goes to {request} at {index}, and {passed} waited before"));
                }
            }
        }
        for key in journal.locks_touched() {
            let queue: Vec<u64> =
                journal.lock(&key).map_or(Vec::new(), |lock| lock.waiters().map(|id| id.0).collect());
            self.queues.insert(key, queue);
        }
        let claims = journal.state.waits().iter();
        self.claims =
            claims.flat_map(|(id, wait)| wait.claims().map(move |claim| (claim.id.0, id.0))).collect();
        Ok(())
    }
}
