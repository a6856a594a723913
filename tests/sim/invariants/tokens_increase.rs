//! Fencing tokens of a lock strictly increase, for ever: those that clients were given, and those in the log.

use std::collections::BTreeMap;

use holdfast::resp::Reply;

use crate::clients::Ask;
use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::world::World;

#[derive(Default)]
pub struct TokensIncrease {
    /// The last token of each lock, and whose it is.
    last: BTreeMap<Vec<u8>, (i64, Vec<u8>)>,
    /// Up to where the executed operations were looked at.
    seen: u64,
}

impl Invariant for TokensIncrease {
    fn name(&self) -> &'static str {
        "tokens increase"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let Fact::Applies { entry, is_first: true, .. } = fact else { return Ok(()) };
        if entry.index <= self.seen {
            return Ok(());
        }
        self.seen = entry.index;
        for op in world.journal.executed_at(entry.index) {
            let Ask::Write(commands) = &world.operations[op as usize].ask else { continue };
            let (_, replies) = &world.journal.executed[&op];
            for (command, reply) in commands.iter().zip(replies) {
                let (b"LOCK", Reply::Integer(token)) = (command[0].as_slice(), reply) else { continue };
                let (key, owner) = (command[1].clone(), command[2].clone());
                if let Some((last, holder)) = self.last.get(&key)
                    && (token < last || (token == last && *holder != owner))
                {
                    let key = String::from_utf8_lossy(&key).into_owned();
                    return Err(format!("lock {key} is granted with token {token} after {last}"));
                }
                self.last.insert(key, (*token, owner));
            }
        }
        Ok(())
    }
}
