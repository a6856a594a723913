//! The value a command answers with, before it becomes bytes.
//!
//! A reply does not know which protocol the client speaks: commands build the richest form (a map, a set, a
//! double) and [`render`](crate::resp::render) flattens it for RESP2.

use std::borrow::Cow;

use bytes::Bytes;

/// One reply, of any RESP2 or RESP3 type this server produces.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// `+OK`, the most frequent status.
    Ok,
    /// A status line such as `+PONG`. CR and LF become spaces when rendered.
    Simple(Cow<'static, str>),
    /// An error line with its code, e.g. `ERR syntax error`. CR and LF become spaces when rendered.
    Error(Cow<'static, str>),
    /// `:n`.
    Integer(i64),
    /// A RESP3 double; in RESP2 a bulk string with up to 17 significant digits.
    Double(f64),
    /// A RESP3 boolean; in RESP2 the integer 1 or 0.
    Boolean(bool),
    /// A binary-safe string.
    Bulk(Bytes),
    /// No value: `$-1` in RESP2, `_` in RESP3.
    Null,
    /// No array: `*-1` in RESP2, `_` in RESP3.
    NullArray,
    /// An ordered list of replies.
    Array(Vec<Reply>),
    /// Pairs of key and value; in RESP2 a flat array of twice as many elements.
    Map(Vec<(Reply, Reply)>),
    /// A set; in RESP2 an array.
    Set(Vec<Reply>),
    /// An out-of-band message; in RESP2 an array.
    Push(Vec<Reply>),
    /// A text with its three-letter format (`txt`, `mkd`); in RESP2 a bulk string without the format.
    Verbatim(&'static str, String),
    /// No reply yet: the client waits under this number. Never rendered: the reply comes in its place.
    Waiting(u64),
}

// Replies sit in vectors by the thousand; a larger variant must be boxed instead.
const _: () = assert!(size_of::<Reply>() <= 40);

impl Reply {
    /// `+OK`.
    pub const OK: Reply = Reply::Ok;

    /// A bulk string with a copy of `value`.
    pub fn bulk(value: impl AsRef<[u8]>) -> Reply {
        Reply::Bulk(Bytes::copy_from_slice(value.as_ref()))
    }

    /// A bulk string that takes over the memory of `value`.
    pub fn text(value: impl Into<String>) -> Reply {
        Reply::Bulk(Bytes::from(value.into()))
    }

    /// A status line.
    pub const fn simple(value: &'static str) -> Reply {
        Reply::Simple(Cow::Borrowed(value))
    }

    /// An error; `text` begins with its code (`ERR`, `WRONGTYPE`, …).
    pub fn error(text: impl Into<Cow<'static, str>>) -> Reply {
        Reply::Error(text.into())
    }

    /// An integer.
    pub fn integer(value: impl Into<i64>) -> Reply {
        Reply::Integer(value.into())
    }

    /// Whether this is an error line. Errors inside an array do not count, as in Redis's statistics of `EXEC`.
    pub fn is_error(&self) -> bool {
        matches!(self, Reply::Error(_))
    }

    /// An upper bound of the bytes this reply takes when rendered in either protocol; cheap for scalars,
    /// one visit per element for aggregates.
    pub fn size_hint(&self) -> usize {
        // A type byte, a number of at most 20 characters and CRLF.
        const HEADER: usize = 24;
        match self {
            Reply::Ok | Reply::Null | Reply::NullArray | Reply::Boolean(_) => 5,
            Reply::Integer(_) => HEADER,
            // `$nn`, at most 24 characters, two CRLF.
            Reply::Double(_) => 2 * HEADER,
            Reply::Simple(text) | Reply::Error(text) => text.len() + 3,
            // `$`, its length, and two CRLF.
            Reply::Bulk(value) => value.len() + 6 + value.len().checked_ilog10().unwrap_or(0) as usize,
            Reply::Waiting(_) => HEADER,
            Reply::Verbatim(_, text) => text.len() + 4 + HEADER + 2,
            Reply::Array(items) | Reply::Set(items) | Reply::Push(items) => {
                HEADER + items.iter().map(Reply::size_hint).sum::<usize>()
            }
            Reply::Map(pairs) => {
                HEADER + pairs.iter().map(|(key, value)| key.size_hint() + value.size_hint()).sum::<usize>()
            }
        }
    }
}

impl From<i64> for Reply {
    fn from(value: i64) -> Reply {
        Reply::Integer(value)
    }
}

impl From<Bytes> for Reply {
    fn from(value: Bytes) -> Reply {
        Reply::Bulk(value)
    }
}

/// Which version of the protocol a connection speaks; `HELLO 3` switches it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Protocol {
    /// RESP2, the state of every new connection.
    #[default]
    Resp2,
    /// RESP3.
    Resp3,
}
