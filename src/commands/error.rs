//! Why a command was refused. `Display` is the whole RESP error line, in Redis's words where Redis has
//! them: clients match on these texts.

use std::borrow::Cow;

use thiserror::Error;

use crate::resp::Reply;

/// Why a command was refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum CommandError {
    /// The key holds another type.
    #[error("WRONGTYPE Operation against a key holding the wrong kind of value")]
    WrongType,
    /// The key is a lock or a queue, which has verbs of its own; the text names the right one.
    #[error("WRONGTYPE {0}")]
    WrongVerb(&'static str),
    #[error("ERR syntax error")]
    Syntax,
    #[error("ERR value is not an integer or out of range")]
    NotAnInteger,
    #[error("ERR value is not a valid float")]
    NotAFloat,
    #[error("ERR increment or decrement would overflow")]
    Overflow,
    #[error("ERR no such key")]
    NoSuchKey,
    #[error("ERR index out of range")]
    OutOfRange,
    #[error("ERR offset is out of range")]
    OffsetOutOfRange,
    #[error("ERR DB index is out of range")]
    DbOutOfRange,
    #[error("ERR invalid expire time in '{0}' command")]
    InvalidExpire(&'static str),
    #[error("ERR wrong number of arguments for '{0}' command")]
    WrongArity(String),
    /// Anything else; the text starts with its code.
    #[error("{0}")]
    Other(Cow<'static, str>),
}

impl CommandError {
    /// An error with a text of its own, which starts with its code (`ERR …`).
    pub fn other(text: impl Into<Cow<'static, str>>) -> CommandError {
        CommandError::Other(text.into())
    }
}

impl From<CommandError> for Reply {
    fn from(error: CommandError) -> Reply {
        Reply::error(error.to_string())
    }
}
