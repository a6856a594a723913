//! What a client was told is what was executed: an answer with replies has its place in the log, with those replies.

use crate::clients::Ask;
use crate::clients::Known;
use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::world::World;

#[derive(Default)]
pub struct Acknowledged;

impl Invariant for Acknowledged {
    fn name(&self) -> &'static str {
        "what was acknowledged was executed"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        match fact {
            Fact::Answered { op, operation } => {
                let (Ask::Write(_) | Ask::Atomic(..), known) = (&operation.ask, &operation.known) else {
                    return Ok(());
                };
                let executed = world.journal.executed.get(op);
                match (known, executed) {
                    (Known::Replies(replies), Some((_, executed))) if replies == executed => Ok(()),
                    (Known::Replies(replies), executed) => {
                        Err(format!("operation {op} was answered {replies:?}; executed: {executed:?}"))
                    }
                    (Known::NotDone, Some((index, _))) => {
                        Err(format!("operation {op} was executed at {index} and answered as not done"))
                    }
                    _ => Ok(()),
                }
            }
            Fact::Healed => {
                let in_doubt = world.operations.iter().enumerate().filter(|(_, operation)| {
                    operation.known == Known::InDoubt && !matches!(operation.ask, Ask::Read(_))
                });
                for (op, _) in in_doubt {
                    world.coverage.saw(if world.journal.executed.contains_key(&(op as u64)) {
                        "an operation in doubt was executed"
                    } else {
                        "an operation in doubt was not executed"
                    });
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
