//! What messages and their hand-outs are called (COMMANDS.md 2.0).

use std::fmt;

/// Names a message for ever, in whatever queue it is: the entry that pushed it and which of that entry's messages it
/// was. Ordered as pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId {
    /// Log index of the entry.
    pub index: u64,
    /// Counted from 0 within the entry.
    pub n: u32,
}

impl MessageId {
    /// Before all others.
    pub const FIRST: MessageId = MessageId { index: 0, n: 0 };

    /// Reads `<index>-<n>`; `None` when it is not that.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<MessageId> {
        let (index, n) = split_at(text, b'-')?;
        Some(MessageId { index: digits(index)?, n: u32::try_from(digits(n)?).ok()? })
    }

    /// The one right after it.
    #[must_use]
    pub fn next(self) -> MessageId {
        match self.n.checked_add(1) {
            Some(n) => MessageId { n, ..self },
            None => MessageId { index: self.index.saturating_add(1), n: 0 },
        }
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.index, self.n)
    }
}

/// What a consumer acknowledges: one hand-out of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Receipt {
    pub id: MessageId,
    /// Which hand-out of the message, from 1.
    pub delivery: u32,
}

impl Receipt {
    /// Reads `<id>:<delivery>`; `None` when it is not that.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Receipt> {
        let (id, delivery) = split_at(text, b':')?;
        Some(Receipt { id: MessageId::parse(id)?, delivery: u32::try_from(digits(delivery)?).ok()? })
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.id, self.delivery)
    }
}

fn split_at(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| *byte == separator)?;
    Some((&text[..at], &text[at + 1..]))
}

/// A number in plain digits: no sign, no blank, no leading zero, so that an id has one spelling.
fn digits(text: &[u8]) -> Option<u64> {
    let is_padded = text.len() > 1 && text[0] == b'0';
    if text.is_empty() || is_padded || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}
