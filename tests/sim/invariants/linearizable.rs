//! What clients saw of each register and counter can have happened one operation after another: judged by what they
//! saw alone. The log is asked only whether, and when, an operation in doubt was executed.

use bytes::Bytes;
use holdfast::resp::Reply;

use crate::clients::Ask;
use crate::clients::Known;
use crate::clients::Operation;
use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::wgl;
use crate::wgl::Command;
use crate::wgl::Output;
use crate::wgl::Verdict;
use crate::world::World;

/// The search asks the model no more often than this, for each key.
const STEPS_MAX: u64 = 20_000_000;

#[derive(Default)]
pub struct Linearizable;

type Seen = wgl::Operation<Vec<u8>, Command, Output>;

impl Invariant for Linearizable {
    fn name(&self) -> &'static str {
        "linearizable"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let Fact::Healed = fact else { return Ok(()) };
        let all = world.operations.iter().enumerate();
        let history: Vec<Seen> = all.filter_map(|(id, operation)| seen(id as u64, operation)).collect();
        let history = wgl::settle(history, |operation| {
            world
                .journal
                .executed
                .get(&operation.id)
                .and_then(|_| world.operations[operation.id as usize].executed)
        });
        match wgl::check(&history, &wgl::Strings, STEPS_MAX) {
            Verdict::Linearizable => Ok(()),
            Verdict::NotLinearizable { key, what, .. } => {
                Err(format!("{}: {what}", String::from_utf8_lossy(&key)))
            }
            Verdict::Unknown { steps } => Err(format!("not decided after {steps} steps")),
        }
    }
}

/// What a client saw of a register or counter; `None` for other keys and for what was not done.
fn seen(id: u64, operation: &Operation) -> Option<Seen> {
    let words = match &operation.ask {
        Ask::Read(words) => words,
        Ask::Write(commands) => commands.last()?,
        // Theirs are other keys.
        Ask::Atomic(..) => return None,
    };
    let key = words[1].clone();
    if !matches!(key.first(), Some(b'r' | b'n')) {
        return None;
    }
    let input = match (words[0].as_slice(), words.get(2)) {
        (b"GET", _) => Command::Get,
        (b"DEL", _) => Command::Del,
        (b"SET", Some(value)) => Command::Set(Bytes::from(value.clone())),
        (b"INCR", _) => Command::IncrBy(1),
        (b"INCRBY", Some(by)) => Command::IncrBy(std::str::from_utf8(by).ok()?.parse().ok()?),
        _ => return None,
    };
    let output = match &operation.known {
        Known::NotDone => return None,
        Known::Nothing | Known::InDoubt if input == Command::Get => return None,
        Known::Nothing | Known::InDoubt => None,
        Known::Replies(replies) => Some(match replies.last()? {
            Reply::Ok => Output::Ok,
            Reply::Integer(number) => Output::Number(*number),
            Reply::Bulk(value) => Output::Value(value.clone()),
            Reply::Null => Output::Nothing,
            _ => Output::Refused,
        }),
    };
    let returned = operation.returned.filter(|_| output.is_some());
    let (client, invoked) = (operation.client as u64, operation.invoked);
    Some(Seen { id, client, key, input, output, invoked, returned })
}
