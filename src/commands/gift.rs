//! What a reply hands out: locks under new tokens, messages under receipts. It goes back when the client does not get the
//! reply.

use bytes::Bytes;

use crate::commands::spec::Args;
use crate::commands::spec::CommandSpec;
use crate::commands::spec::Flags;
use crate::resp::Reply;

/// What one reply hands out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gift {
    /// Keys and tokens. Which of these holds are new the reply does not say, but the holds do: they have one touch.
    Locks { owner: Bytes, locks: Vec<(Bytes, u64)> },
    /// Queues and receipts.
    Messages(Vec<(Bytes, Bytes)>),
}

impl Gift {
    /// Reads it off a command's words and its reply; `None` when nothing was handed out.
    #[must_use]
    pub fn of(row: &CommandSpec, words: Args<'_>, reply: &Reply) -> Option<Gift> {
        if row.flags.has(Flags::HANDS_OUT_MESSAGES) {
            let messages: Vec<(Bytes, Bytes)> = messages_of(reply).collect();
            return (!messages.is_empty()).then_some(Gift::Messages(messages));
        }
        if !row.flags.has(Flags::HANDS_OUT_LOCKS) {
            return None;
        }
        let tokens = match reply {
            Reply::Integer(_) => std::slice::from_ref(reply),
            Reply::Array(tokens) => &tokens[..],
            _ => return None,
        };
        let keys = row.keys.positions(words);
        // The owner stands behind the last key.
        let owner = words.get(keys.last()? + 1)?;
        let lock = |(at, token): (&usize, &Reply)| match token {
            Reply::Integer(token) => Some((Bytes::copy_from_slice(words[*at]), u64::try_from(*token).ok()?)),
            _ => None,
        };
        let locks = keys.iter().zip(tokens).filter_map(lock).collect();
        Some(Gift::Locks { owner: Bytes::copy_from_slice(owner), locks })
    }
}

/// The queues and receipts in a reply to QPOP.
pub fn messages_of(reply: &Reply) -> impl Iterator<Item = (Bytes, Bytes)> {
    let messages = if let Reply::Array(messages) = reply { &messages[..] } else { &[] };
    messages.iter().filter_map(|message| match message {
        Reply::Array(fields) => match &fields[..] {
            [Reply::Bulk(queue), Reply::Bulk(receipt), ..] => Some((queue.clone(), receipt.clone())),
            _ => None,
        },
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::table;

    fn gift(line: &str, reply: &Reply) -> Option<Gift> {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        Gift::of(table::find(words[0]).unwrap(), &words, reply)
    }

    fn locks(locks: &[(&'static str, u64)]) -> Option<Gift> {
        let lock = |(key, token): &(&'static str, u64)| (Bytes::from_static(key.as_bytes()), *token);
        Some(Gift::Locks { owner: Bytes::from_static(b"me"), locks: locks.iter().map(lock).collect() })
    }

    #[test]
    fn what_is_handed_out_stands_in_the_words_and_the_reply() {
        assert_eq!(gift("LOCK k me PX 1000", &Reply::Integer(7)), locks(&[("k", 7)]));
        let tokens = Reply::Array(vec![Reply::Integer(7), Reply::Integer(8)]);
        assert_eq!(gift("mlock 2 a b me SHARED", &tokens), locks(&[("a", 7), ("b", 8)]));
        let message = ["q", "5-0:1", "payload"].map(Reply::bulk).to_vec();
        let messages = vec![(Bytes::from_static(b"q"), Bytes::from_static(b"5-0:1"))];
        let popped = Reply::Array(vec![Reply::Array(message)]);
        assert_eq!(gift("QPOP FROM q", &popped), Some(Gift::Messages(messages)));
        for (line, reply) in [
            ("LOCK k me", Reply::Null),
            ("LOCK k me", Reply::error("ERR")),
            ("MLOCK 1 k me", Reply::NullArray),
            ("QPOP FROM q", Reply::NullArray),
            ("UNLOCK k me", Reply::Integer(1)),
            ("INCR k", Reply::Integer(1)),
        ] {
            assert_eq!(gift(line, &reply), None, "{line}");
        }
    }
}
