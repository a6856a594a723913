//! Why a command was refused. `Display` is the whole RESP error line, in Redis's words where Redis has
//! them: clients match on these texts.

use std::borrow::Cow;

use thiserror::Error;

use crate::resp::Reply;
use crate::state::queues::TooLargeToTell;

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
    /// The reply would take at least so many bytes.
    #[error(
        "ERR the reply would take {bytes} bytes or more, and client-output-buffer-limit allows {max}. Nothing was \
         executed: ask for less, or raise the limit"
    )]
    ReplyTooLarge { bytes: usize, max: usize },
    /// The same, of one message that QPOP would hand out.
    #[error("{0}")]
    MessageTooLarge(TooLargeToTell),
    /// The command in this place, from 1, ended its transaction.
    #[error("EXECABORT cmd={at} {error}")]
    Aborted { at: usize, error: Box<CommandError> },
    /// Anything else; the text starts with its code.
    #[error("{0}")]
    Other(Cow<'static, str>),
}

impl CommandError {
    /// An error with a text of its own, which starts with its code (`ERR …`).
    pub fn other(text: impl Into<Cow<'static, str>>) -> CommandError {
        CommandError::Other(text.into())
    }

    /// The bytes that the reply would have taken, at least, when there was no room for it; `None` for any other error.
    #[must_use]
    pub fn room_wanted(&self) -> Option<usize> {
        match self {
            CommandError::ReplyTooLarge { bytes, .. } => Some(*bytes),
            CommandError::MessageTooLarge(message) => Some(message.bytes()),
            CommandError::Aborted { error, .. } => error.room_wanted(),
            _ => None,
        }
    }
}

impl From<CommandError> for Reply {
    fn from(error: CommandError) -> Reply {
        Reply::error(error.to_string())
    }
}
