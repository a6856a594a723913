//! Fencing tokens of a lock strictly increase, for ever: every new hold of a lock has a greater token than any before.

use std::collections::BTreeMap;

use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::world::World;

#[derive(Default)]
pub struct TokensIncrease {
    /// The last token of each lock.
    last: BTreeMap<Vec<u8>, u64>,
    /// The tokens that are in force.
    held: BTreeMap<Vec<u8>, Vec<u64>>,
}

impl Invariant for TokensIncrease {
    fn name(&self) -> &'static str {
        "tokens increase"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let Fact::Applies { entry, is_first: true, .. } = fact else { return Ok(()) };
        for key in world.journal.locks_touched() {
            let lock = world.journal.lock(&key);
            let tokens: Vec<u64> =
                lock.map_or(Vec::new(), |lock| lock.holds().iter().map(|hold| hold.token().0).collect());
            let before = self.held.insert(key.clone(), tokens.clone()).unwrap_or_default();
            let last = self.last.entry(key.clone()).or_default();
            for token in tokens.into_iter().filter(|token| !before.contains(token)) {
                if token <= *last {
                    let key = String::from_utf8_lossy(&key).into_owned();
                    let index = entry.index;
                    return Err(format!("lock {key} is granted at {index} with token {token} after {last}"));
                }
                *last = token;
            }
        }
        Ok(())
    }
}
