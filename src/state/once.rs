//! Transactions that carry a name and are executed once, however often they are sent (ONCE, COMMANDS.md 2.1).

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::types::ClusterTime;
use crate::types::LogIndex;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_bool;
use crate::types::codec::put_bytes;
use crate::types::codec::put_u128;
use crate::types::codec::put_varint;

/// A name, within its ACL user.
pub type OnceName = (Box<[u8]>, Box<[u8]>);

/// What is kept of a named transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnceRecord {
    /// A hash of its commands: the name must not be used for others.
    pub commands: u128,
    /// The entry that executed it.
    pub index: LogIndex,
    /// When the name may be used again.
    pub until: ClusterTime,
    /// Its reply, as `resp::reply_codec` encodes it; `None`: too large to be kept.
    pub reply: Option<Bytes>,
}

impl OnceRecord {
    /// Appends the record as its row keeps it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_u128(out, self.commands);
        put_varint(out, self.index.0);
        put_varint(out, self.until.0);
        put_bool(out, self.reply.is_some());
        if let Some(reply) = &self.reply {
            put_bytes(out, reply);
        }
    }

    /// Reads what [`OnceRecord::encode`] wrote.
    pub fn decode(value: &[u8]) -> Result<OnceRecord, CodecError> {
        let mut reader = Reader::new(value);
        let record = OnceRecord {
            commands: reader.u128()?,
            index: LogIndex(reader.varint()?),
            until: ClusterTime(reader.varint()?),
            reply: if reader.bool()? { Some(Bytes::copy_from_slice(reader.bytes()?)) } else { None },
        };
        if reader.is_empty() { Ok(record) } else { Err(CodecError("a named transaction with a tail")) }
    }
}

/// The transactions whose names are kept.
pub type OnceRecords = BTreeMap<OnceName, OnceRecord>;
