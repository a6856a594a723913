//! What clients saw, as lines of JSON: a record that outlives the run, and what the checkers are fed with.
//!
//! ```text
//! {"type":"invoke","time":120,"process":3,"node":1,"op":"set","key":"k","value":"7"}
//! {"type":"ok","time":190,"process":3,"node":1,"op":"set","key":"k","value":"7","reply":"ok"}
//!
//! invoke   a client sends an operation
//! ok       it was answered with `reply`
//! fail     it was not done, for certain
//! info     whether it was done is not known
//! ```
//! A client (`process`) has one operation under way at most. One that is never completed is as if by `info`.

use std::collections::BTreeMap;
use std::io;
use std::io::BufRead;
use std::io::Write;

use bytes::Bytes;
use serde::Deserialize;
use serde::Serialize;

use crate::support::wgl::Command;
use crate::support::wgl::LockCommand;
use crate::support::wgl::LockOutput;
use crate::support::wgl::Operation;
use crate::support::wgl::Output;

/// Something that a client did or saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Nanoseconds of one clock for all clients.
    pub time: u64,
    /// The client.
    pub process: u64,
    /// The node that it talked to.
    pub node: u64,
    /// The command's name in lower case.
    pub op: String,
    pub key: String,
    /// What it was given besides the key: a value, an increment, an owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Of `ok`: what was answered; of `fail` and `info` the error, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Answer>,
}

/// What an event says about its operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Invoke,
    Ok,
    Fail,
    Info,
}

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    Ok,
    /// Null.
    Nil,
    Value(String),
    Number(i64),
    List(Vec<Answer>),
    Error(String),
}

/// Writes events, each on a line of its own.
pub fn write(mut out: impl Write, events: &[Event]) -> io::Result<()> {
    for event in events {
        serde_json::to_writer(&mut out, event)?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Reads what [`write`] wrote; empty lines are passed over. The error names the line.
pub fn read(input: impl BufRead) -> io::Result<Vec<Event>> {
    let mut events = Vec::new();
    for (number, line) in (1..).zip(input.lines()) {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let event = serde_json::from_str(&line);
        events.push(event.map_err(|error| io::Error::other(format!("line {number}: {error}")))?);
    }
    Ok(events)
}

/// An operation with its beginning and its end, if it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair<'a> {
    /// The position of its first event.
    pub id: u64,
    pub invoke: &'a Event,
    pub end: Option<&'a Event>,
}

/// Finds the end of every operation. An error tells of a client that did two things at once, or ended what it had not
/// begun.
pub fn pairs(events: &[Event]) -> Result<Vec<Pair<'_>>, String> {
    let mut all: Vec<Pair<'_>> = Vec::new();
    let mut open: BTreeMap<u64, usize> = BTreeMap::new();
    for (id, event) in (0..).zip(events) {
        match (event.kind, open.remove(&event.process)) {
            (Kind::Invoke, None) => {
                open.insert(event.process, all.len());
                all.push(Pair { id, invoke: event, end: None });
            }
            (Kind::Invoke, Some(_)) => {
                return Err(format!("process {} does two things at {id}", event.process));
            }
            (Kind::Ok | Kind::Fail | Kind::Info, Some(at))
                if all[at].invoke.op == event.op
                    && all[at].invoke.key == event.key
                    && all[at].invoke.time <= event.time =>
            {
                all[at].end = Some(event);
            }
            (Kind::Ok | Kind::Fail | Kind::Info, _) => {
                return Err(format!("process {} ends at {id} what it did not begin", event.process));
            }
        }
    }
    Ok(all)
}

/// The operations on strings of a history: `get`, `set`, `setnx`, `getset`, `getdel`, `del`, `incr`, `decr`, `incrby`,
/// `append`; `setnx` is SET with NX. Others are passed over, and what failed is left out.
pub fn string_operations(events: &[Event]) -> Result<Vec<Operation<String, Command, Output>>, String> {
    operations(events, command, |answer| {
        Some(match answer {
            Answer::Ok => Output::Ok,
            Answer::Nil => Output::Nothing,
            Answer::Value(value) => Output::Value(Bytes::copy_from_slice(value.as_bytes())),
            Answer::Number(number) => Output::Number(*number),
            Answer::Error(_) => Output::Refused,
            Answer::List(_) => return None,
        })
    })
}

/// The operations on locks of a history: `lock` and `unlock`, with the owner's number as value.
pub fn lock_operations(events: &[Event]) -> Result<Vec<Operation<String, LockCommand, LockOutput>>, String> {
    let command = |event: &Event| {
        let owner = || event.value.as_ref().and_then(|value| value.parse().ok());
        Some(match event.op.as_str() {
            "lock" => owner().map(LockCommand::Lock),
            "unlock" => owner().map(LockCommand::Unlock),
            _ => return None,
        })
    };
    // UNLOCK answers 0 or 1, LOCK a token, which is never 0: which of them it is stands with the command.
    let mut all = operations(events, command, |answer| match answer {
        Answer::Nil => Some(LockOutput::Held),
        Answer::Number(number) => Some(LockOutput::Granted(u64::try_from(*number).ok()?)),
        Answer::Ok | Answer::Value(_) | Answer::List(_) | Answer::Error(_) => None,
    })?;
    for operation in &mut all {
        if let (LockCommand::Unlock(_), Some(LockOutput::Granted(number))) =
            (&operation.input, &operation.output)
        {
            operation.output = Some(LockOutput::Released(*number == 1));
        }
    }
    Ok(all)
}

/// `command` gives `None` for what is passed over, and `Some(None)` for what it cannot read.
fn operations<I, O>(
    events: &[Event],
    command: impl Fn(&Event) -> Option<Option<I>>,
    output: impl Fn(&Answer) -> Option<O>,
) -> Result<Vec<Operation<String, I, O>>, String> {
    let mut all = Vec::new();
    for Pair { id, invoke, end } in pairs(events)? {
        let Some(input) = command(invoke) else { continue };
        let wrong = || format!("at {id}: {invoke:?} with {end:?}");
        let (seen, returned) = match end {
            Some(end) if end.kind == Kind::Fail => continue,
            Some(end) if end.kind == Kind::Ok => {
                let seen = end.reply.as_ref().and_then(&output).ok_or_else(wrong)?;
                (Some(seen), Some(end.time))
            }
            Some(_) | None => (None, None),
        };
        all.push(Operation {
            id,
            client: invoke.process,
            key: invoke.key.clone(),
            input: input.ok_or_else(wrong)?,
            output: seen,
            invoked: invoke.time,
            returned,
        });
    }
    Ok(all)
}

fn command(event: &Event) -> Option<Option<Command>> {
    let value = || event.value.as_ref().map(|value| Bytes::copy_from_slice(value.as_bytes()));
    Some(match event.op.as_str() {
        "get" => Some(Command::Get),
        "set" => value().map(Command::Set),
        "setnx" => value().map(Command::SetIfAbsent),
        "getset" => value().map(Command::Swap),
        "getdel" => Some(Command::GetDel),
        "del" => Some(Command::Del),
        "incr" => Some(Command::IncrBy(1)),
        "decr" => Some(Command::IncrBy(-1)),
        "incrby" => event.value.as_ref().and_then(|value| value.parse().ok()).map(Command::IncrBy),
        "append" => value().map(Command::Append),
        _ => return None,
    })
}
