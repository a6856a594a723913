//! Replies as bytes between nodes: a write that another node executed is answered here.
//!
//! ```text
//! replies := count reply*
//! reply   := 0                       OK, the most frequent
//!          | 1 text | 2 text         a status line, an error line
//!          | 3 zigzag | 4 u64        an integer, the bits of a double (little endian)
//!          | 5 | 6                   false, true
//!          | 7 bytes                 a bulk string
//!          | 8 | 9                   null, null array
//!          | 10 n reply*             an array
//!          | 11 n (reply reply)*     a map
//!          | 12 n reply* | 13 n reply*           a set, a push
//!          | 14 format:u8 text       a verbatim string; format 0 is txt, 1 is mkd
//!          | 15 number               not yet: the client waits under this number
//! ```
//! Counts and lengths are varints. Not RESP itself, because RESP2 loses what RESP3 tells and which of them the
//! client speaks is known only where it is connected. There is no version: these bytes are also kept with the
//! sessions, which are replicated, so a tag never changes its meaning.

use std::borrow::Cow;

use bytes::Bytes;

use crate::resp::Reply;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_bytes;
use crate::types::codec::put_varint;
use crate::types::codec::put_zigzag;

/// How many aggregates may stand inside each other.
pub const MAX_LEVELS: usize = 32;

const OK: u8 = 0;
const SIMPLE: u8 = 1;
const ERROR: u8 = 2;
const INTEGER: u8 = 3;
const DOUBLE: u8 = 4;
const FALSE: u8 = 5;
const TRUE: u8 = 6;
const BULK: u8 = 7;
const NULL: u8 = 8;
const NULL_ARRAY: u8 = 9;
const ARRAY: u8 = 10;
const MAP: u8 = 11;
const SET: u8 = 12;
const PUSH: u8 = 13;
const VERBATIM: u8 = 14;
const WAITING: u8 = 15;

/// Formats of verbatim strings; the position is the code. What is not here travels as the first.
const FORMATS: [&str; 2] = ["txt", "mkd"];

/// Appends the replies of a batch, in order. Lossless, but for an aggregate deeper than [`MAX_LEVELS`], in
/// whose place an error goes, and a verbatim string of a format other than `txt` and `mkd`, which becomes `txt`.
pub fn encode_replies(replies: &[Reply], out: &mut Vec<u8>) {
    put_varint(out, replies.len() as u64);
    for reply in replies {
        put_reply(out, reply, 0);
    }
}

/// Reads what [`encode_replies`] wrote, and refuses anything else, trailing bytes too. Takes memory in
/// proportion to the bytes that are there, whatever counts they claim.
pub fn decode_replies(bytes: &[u8]) -> Result<Vec<Reply>, CodecError> {
    let mut decoder = Decoder { reader: Reader::new(bytes), owed: 0 };
    let count = decoder.claim(1)?;
    let replies = decoder.replies(count, 0)?;
    if !decoder.reader.is_empty() {
        return Err(CodecError("bytes after the last reply"));
    }
    Ok(replies)
}

/// `level` is how many aggregates the reply stands in.
fn put_reply(out: &mut Vec<u8>, reply: &Reply, level: usize) {
    match reply {
        Reply::Ok => out.push(OK),
        Reply::Simple(text) => put_tagged(out, SIMPLE, text.as_bytes()),
        Reply::Error(text) => put_tagged(out, ERROR, text.as_bytes()),
        Reply::Integer(value) => {
            out.push(INTEGER);
            put_zigzag(out, *value);
        }
        Reply::Double(value) => {
            out.push(DOUBLE);
            out.extend_from_slice(&value.to_bits().to_le_bytes());
        }
        Reply::Boolean(false) => out.push(FALSE),
        Reply::Boolean(true) => out.push(TRUE),
        Reply::Bulk(value) => put_tagged(out, BULK, value),
        Reply::Null => out.push(NULL),
        Reply::NullArray => out.push(NULL_ARRAY),
        Reply::Array(_) | Reply::Map(_) | Reply::Set(_) | Reply::Push(_) if level >= MAX_LEVELS => {
            put_tagged(out, ERROR, b"ERR the reply is nested too deeply");
        }
        Reply::Array(items) => put_items(out, ARRAY, items, level),
        Reply::Map(pairs) => {
            out.push(MAP);
            put_varint(out, pairs.len() as u64);
            for (key, value) in pairs {
                put_reply(out, key, level + 1);
                put_reply(out, value, level + 1);
            }
        }
        Reply::Set(items) => put_items(out, SET, items, level),
        Reply::Push(items) => put_items(out, PUSH, items, level),
        Reply::Waiting(number) => {
            out.push(WAITING);
            put_varint(out, *number);
        }
        Reply::Verbatim(format, text) => {
            let code = FORMATS.iter().position(|known| known == format).unwrap_or(0);
            out.extend_from_slice(&[VERBATIM, code as u8]);
            put_bytes(out, text.as_bytes());
        }
    }
}

fn put_tagged(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    put_bytes(out, bytes);
}

fn put_items(out: &mut Vec<u8>, tag: u8, items: &[Reply], level: usize) {
    out.push(tag);
    put_varint(out, items.len() as u64);
    for item in items {
        put_reply(out, item, level + 1);
    }
}

struct Decoder<'a> {
    reader: Reader<'a>,
    /// Replies that counts have claimed and that were not read yet. Each takes a byte at least, so there are
    /// never more than bytes left, and all counts together claim no more replies than there were bytes.
    owed: usize,
}

impl Decoder<'_> {
    /// Reads a count of things of `replies_each` replies.
    fn claim(&mut self, replies_each: usize) -> Result<usize, CodecError> {
        let left = self.reader.rest().len();
        let count = self.reader.count(left, replies_each)?;
        self.owed += count * replies_each;
        if self.owed > self.reader.rest().len() {
            return Err(CodecError("count out of range"));
        }
        Ok(count)
    }

    fn replies(&mut self, count: usize, level: usize) -> Result<Vec<Reply>, CodecError> {
        let mut replies = Vec::with_capacity(count);
        for _ in 0..count {
            replies.push(self.reply(level)?);
        }
        Ok(replies)
    }

    fn reply(&mut self, level: usize) -> Result<Reply, CodecError> {
        self.owed -= 1;
        let reply = match self.reader.u8()? {
            OK => Reply::Ok,
            SIMPLE => Reply::Simple(Cow::Owned(self.text()?)),
            ERROR => Reply::Error(Cow::Owned(self.text()?)),
            INTEGER => Reply::Integer(self.reader.zigzag()?),
            DOUBLE => {
                let bits = self.reader.take(8)?.try_into().expect("8 bytes were taken");
                Reply::Double(f64::from_bits(u64::from_le_bytes(bits)))
            }
            FALSE => Reply::Boolean(false),
            TRUE => Reply::Boolean(true),
            BULK => Reply::Bulk(Bytes::copy_from_slice(self.reader.bytes()?)),
            NULL => Reply::Null,
            NULL_ARRAY => Reply::NullArray,
            ARRAY => Reply::Array(self.items(level)?),
            MAP => Reply::Map(self.pairs(level)?),
            SET => Reply::Set(self.items(level)?),
            PUSH => Reply::Push(self.items(level)?),
            VERBATIM => {
                let code = usize::from(self.reader.u8()?);
                let format = FORMATS.get(code).ok_or(CodecError("a verbatim string of unknown format"))?;
                Reply::Verbatim(format, self.text()?)
            }
            WAITING => Reply::Waiting(self.reader.varint()?),
            _ => return Err(CodecError("a reply of an unknown kind")),
        };
        Ok(reply)
    }

    fn items(&mut self, level: usize) -> Result<Vec<Reply>, CodecError> {
        check_level(level)?;
        let count = self.claim(1)?;
        self.replies(count, level + 1)
    }

    fn pairs(&mut self, level: usize) -> Result<Vec<(Reply, Reply)>, CodecError> {
        check_level(level)?;
        let count = self.claim(2)?;
        let mut pairs = Vec::with_capacity(count);
        for _ in 0..count {
            pairs.push((self.reply(level + 1)?, self.reply(level + 1)?));
        }
        Ok(pairs)
    }

    fn text(&mut self) -> Result<String, CodecError> {
        let text = std::str::from_utf8(self.reader.bytes()?).map_err(|_| CodecError("text is not UTF-8"))?;
        Ok(text.to_owned())
    }
}

/// An aggregate that stands in `level` others may be there.
fn check_level(level: usize) -> Result<(), CodecError> {
    if level < MAX_LEVELS { Ok(()) } else { Err(CodecError("replies nested too deeply")) }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn encoded(replies: &[Reply]) -> Vec<u8> {
        let mut out = Vec::new();
        encode_replies(replies, &mut out);
        out
    }

    /// `inner` in `levels` arrays.
    fn nested(inner: Reply, levels: usize) -> Reply {
        (0..levels).fold(inner, |reply, _| Reply::Array(vec![reply]))
    }

    fn any_reply() -> impl Strategy<Value = Reply> {
        let leaf = prop_oneof![
            Just(Reply::Ok),
            any::<String>().prop_map(|text| Reply::Simple(Cow::Owned(text))),
            any::<String>().prop_map(|text| Reply::Error(Cow::Owned(text))),
            any::<i64>().prop_map(Reply::Integer),
            any::<f64>().prop_filter("equal to itself", |value| !value.is_nan()).prop_map(Reply::Double),
            any::<bool>().prop_map(Reply::Boolean),
            vec(any::<u8>(), 0..200).prop_map(|value| Reply::Bulk(Bytes::from(value))),
            Just(Reply::Null),
            Just(Reply::NullArray),
            (proptest::sample::select(&FORMATS[..]), any::<String>())
                .prop_map(|(format, text)| Reply::Verbatim(format, text)),
        ];
        leaf.prop_recursive(5, 64, 8, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..8).prop_map(Reply::Array),
                vec((inner.clone(), inner.clone()), 0..4).prop_map(Reply::Map),
                vec(inner.clone(), 0..8).prop_map(Reply::Set),
                vec(inner, 0..8).prop_map(Reply::Push),
            ]
        })
    }

    #[test]
    fn the_bytes_of_every_kind_stay_what_they_are() {
        let replies = [
            Reply::Ok,
            Reply::simple("A"),
            Reply::error("E"),
            Reply::Integer(-2),
            Reply::Double(1.5),
            Reply::Boolean(false),
            Reply::Boolean(true),
            Reply::bulk([0xff]),
            Reply::Null,
            Reply::NullArray,
            Reply::Array(vec![Reply::Ok]),
            Reply::Map(vec![(Reply::Null, Reply::Ok)]),
            Reply::Set(vec![]),
            Reply::Push(vec![Reply::Ok]),
            Reply::Verbatim("mkd", "t".to_owned()),
        ];
        let expected: Vec<u8> = [
            &[15, 0, 1, 1, b'A', 2, 1, b'E', 3, 3][..],
            &[4, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f],
            &[5, 6, 7, 1, 0xff, 8, 9],
            &[10, 1, 0, 11, 1, 8, 0, 12, 0, 13, 1, 0, 14, 1, 1, b't'],
        ]
        .concat();
        assert_eq!(encoded(&replies), expected);
        assert_eq!(decode_replies(&expected).unwrap(), replies);
    }

    #[test]
    fn a_double_keeps_its_bits() {
        for value in [0.0, -0.0, f64::NAN, -f64::NAN, f64::INFINITY, f64::MIN_POSITIVE / 2.0] {
            let read = decode_replies(&encoded(&[Reply::Double(value)])).unwrap();
            let [Reply::Double(read)] = read[..] else { panic!("a double, not {read:?}") };
            assert_eq!(read.to_bits(), value.to_bits());
        }
    }

    #[test]
    fn a_verbatim_string_of_an_unknown_format_becomes_plain_text() {
        let read = decode_replies(&encoded(&[Reply::Verbatim("xml", "a".to_owned())])).unwrap();
        assert_eq!(read, [Reply::Verbatim("txt", "a".to_owned())]);
    }

    #[test]
    fn what_is_nested_too_deeply_is_an_error_reply() {
        let deepest = nested(Reply::Integer(1), MAX_LEVELS);
        assert_eq!(decode_replies(&encoded(std::slice::from_ref(&deepest))).unwrap(), [deepest]);
        let error = Reply::error("ERR the reply is nested too deeply");
        for too_deep in [Reply::Array(vec![]), Reply::Map(vec![]), nested(Reply::Ok, 1000)] {
            let read = decode_replies(&encoded(&[nested(too_deep, MAX_LEVELS)])).unwrap();
            assert_eq!(read, [nested(error.clone(), MAX_LEVELS)]);
        }
    }

    #[test]
    fn bytes_that_nest_too_deeply_are_refused() {
        let mut bytes = vec![1];
        for _ in 0..100_000 {
            bytes.extend([ARRAY, 1]);
        }
        bytes.push(OK);
        assert_eq!(decode_replies(&bytes), Err(CodecError("replies nested too deeply")));
    }

    #[test]
    fn counts_together_claim_no_more_replies_than_there_are_bytes() {
        assert!(decode_replies(&[3, OK, OK]).is_err());
        assert!(decode_replies(&[1, ARRAY, 3, OK, OK]).is_err());
        assert!(decode_replies(&[1, MAP, 1, OK]).is_err());
        // Each count alone would fit the bytes after it, but the outer array still wants one more.
        let bytes = [1, ARRAY, 2, ARRAY, 2, OK, OK];
        let mut decoder = Decoder { reader: Reader::new(&bytes), owed: 0 };
        decoder.claim(1).unwrap();
        assert_eq!(decoder.reply(0), Err(CodecError("count out of range")));
        assert!(decode_replies(&[&bytes[..], &[OK]].concat()).is_ok());
    }

    #[test]
    fn what_follows_the_last_reply_is_refused() {
        assert!(decode_replies(&[1, OK]).is_ok());
        assert!(decode_replies(&[1, OK, OK]).is_err());
        assert!(decode_replies(&[1, 15]).is_err());
        assert!(decode_replies(&[1, SIMPLE, 1, 0xff]).is_err());
        assert!(decode_replies(&[]).is_err());
    }

    proptest! {
        #[test]
        fn replies_come_back_as_they_were(replies in vec(any_reply(), 0..8)) {
            prop_assert_eq!(decode_replies(&encoded(&replies)).unwrap(), replies);
        }

        #[test]
        fn no_cut_of_valid_bytes_decodes(replies in vec(any_reply(), 1..4), at: proptest::sample::Index) {
            let bytes = encoded(&replies);
            prop_assert!(decode_replies(&bytes[..at.index(bytes.len())]).is_err());
        }

        #[test]
        fn random_and_damaged_bytes_never_panic(
            random in vec(0u8..20, 0..200),
            replies in vec(any_reply(), 0..4),
            damage in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let _ = decode_replies(&random);
            let mut bytes = encoded(&replies);
            for (at, value) in damage {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Ok(read) = decode_replies(&bytes) {
                // Through the bytes again, since NaN is not equal to itself.
                let again = encoded(&read);
                prop_assert_eq!(encoded(&decode_replies(&again).unwrap()), again);
            }
        }
    }
}
