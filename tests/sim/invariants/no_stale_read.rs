//! No read returns what was there before something that anybody had been told of when it began.

use crate::clients::Ask;
use crate::clients::Known;
use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::world::World;

#[derive(Default)]
pub struct NoStaleRead;

impl Invariant for NoStaleRead {
    fn name(&self) -> &'static str {
        "no stale read"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let Fact::Answered { op, operation } = fact else { return Ok(()) };
        let (Ask::Read(words), Known::Replies(replies)) = (&operation.ask, &operation.known) else {
            return Ok(());
        };
        let Some(index) = operation.index else { return Err(format!("read {op} read nothing")) };
        if index < operation.told {
            let told = operation.told;
            return Err(format!("read {op} sees the state of {index}; {told} was known before it began"));
        }
        // What is due is passed over by those who read; the model holds it until its entry.
        if index == world.journal.last() {
            let model = world.journal.model();
            let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
            let expected = model.read(0, &words, model.clock());
            if expected.as_ref().is_some_and(|expected| [expected.clone()] != replies[..]) {
                return Err(format!("read {op} at {index} gives {replies:?}, expected {expected:?}"));
            }
        }
        Ok(())
    }
}
