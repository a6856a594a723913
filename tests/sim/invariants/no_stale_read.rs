//! No read returns what was there before something that anybody had been told of when it began. (What it returns is
//! held against the model by the journal.)

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

    fn on(&mut self, fact: &Fact<'_>, _world: &mut World) -> Result<(), String> {
        let Fact::Answered { op, operation } = fact else { return Ok(()) };
        let (Ask::Read(_), Known::Replies(_)) = (&operation.ask, &operation.known) else {
            return Ok(());
        };
        let Some(index) = operation.index else { return Err(format!("read {op} read nothing")) };
        if index < operation.told {
            let told = operation.told;
            return Err(format!("read {op} sees the state of {index}; {told} was known before it began"));
        }
        Ok(())
    }
}
