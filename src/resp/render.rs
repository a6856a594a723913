//! Replies to bytes, in RESP2 or RESP3.
//!
//! Memory is reserved once per reply, from its size hint; what is written then is small pieces, and the frequent
//! headers (a status, `$3`, `:1`) are one piece each.

use bytes::BytesMut;

use crate::resp::arguments::format_g17;
use crate::resp::reply::Protocol;
use crate::resp::reply::Reply;

/// Appends `reply` to `out` in the given protocol. Types that RESP2 does not have become their nearest RESP2 type.
pub fn render(reply: &Reply, protocol: Protocol, out: &mut BytesMut) {
    out.reserve(reply.size_hint());
    write(reply, protocol, out);
}

fn write(reply: &Reply, protocol: Protocol, out: &mut BytesMut) {
    let is_resp3 = protocol == Protocol::Resp3;
    match reply {
        Reply::Ok => out.extend_from_slice(b"+OK\r\n"),
        Reply::Simple(text) => line(b'+', text, out),
        Reply::Error(text) => line(b'-', text, out),
        Reply::Integer(value) => match u64::try_from(*value) {
            Ok(value) => header(b':', value, out),
            Err(_) => number(b':', *value, out),
        },
        Reply::Double(value) if is_resp3 => line(b',', &double_text(*value), out),
        Reply::Double(value) => bulk(double_text(*value).as_bytes(), out),
        Reply::Boolean(value) if is_resp3 => {
            out.extend_from_slice(if *value { b"#t\r\n" } else { b"#f\r\n" })
        }
        Reply::Boolean(value) => header(b':', u64::from(*value), out),
        Reply::Bulk(value) => bulk(value, out),
        Reply::Null | Reply::NullArray if is_resp3 => out.extend_from_slice(b"_\r\n"),
        Reply::Null => out.extend_from_slice(b"$-1\r\n"),
        Reply::NullArray => out.extend_from_slice(b"*-1\r\n"),
        Reply::Array(items) => list(b'*', items, protocol, out),
        Reply::Set(items) => list(if is_resp3 { b'~' } else { b'*' }, items, protocol, out),
        Reply::Push(items) => list(if is_resp3 { b'>' } else { b'*' }, items, protocol, out),
        Reply::Map(pairs) => {
            if is_resp3 {
                header(b'%', pairs.len() as u64, out);
            } else {
                header(b'*', 2 * pairs.len() as u64, out);
            }
            for (key, value) in pairs {
                write(key, protocol, out);
                write(value, protocol, out);
            }
        }
        Reply::Verbatim(format, text) if is_resp3 => {
            header(b'=', (format.len() + 1 + text.len()) as u64, out);
            out.extend_from_slice(format.as_bytes());
            out.extend_from_slice(b":");
            out.extend_from_slice(text.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        Reply::Verbatim(_, text) => bulk(text.as_bytes(), out),
        // Whoever waits renders the reply that comes in its place.
        Reply::Waiting(_) => render(&Reply::Null, protocol, out),
    }
}

fn list(kind: u8, items: &[Reply], protocol: Protocol, out: &mut BytesMut) {
    header(kind, items.len() as u64, out);
    for item in items {
        write(item, protocol, out);
    }
}

fn bulk(value: &[u8], out: &mut BytesMut) {
    header(b'$', value.len() as u64, out);
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// A type byte, a count and CRLF. One and two digits, the most frequent, are written as one piece.
#[inline]
fn header(kind: u8, value: u64, out: &mut BytesMut) {
    match value {
        0..=9 => out.extend_from_slice(&[kind, b'0' + value as u8, b'\r', b'\n']),
        10..=99 => {
            let (tens, ones) = ((value / 10) as u8, (value % 10) as u8);
            out.extend_from_slice(&[kind, b'0' + tens, b'0' + ones, b'\r', b'\n']);
        }
        _ => number(kind, value, out),
    }
}

fn number(kind: u8, value: impl itoa::Integer, out: &mut BytesMut) {
    out.extend_from_slice(&[kind]);
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// A line of text. A CR or LF in it would end the line early and shift every later reply of the connection; both
/// become spaces, as in Redis.
fn line(kind: u8, text: &str, out: &mut BytesMut) {
    out.extend_from_slice(&[kind]);
    let start = out.len();
    out.extend_from_slice(text.as_bytes());
    for byte in &mut out[start..] {
        if matches!(byte, b'\r' | b'\n') {
            *byte = b' ';
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Redis 7.0's text of a double. Whole numbers, the usual scores, skip the floating-point formatter.
fn double_text(value: f64) -> String {
    // Every whole number below 2^53 is exact; minus zero keeps its sign and goes the long way.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() < EXACT && !(value == 0.0 && value.is_sign_negative()) {
        return itoa::Buffer::new().format(value as i64).to_owned();
    }
    format_g17(value)
}

#[cfg(test)]
mod tests {
    use redis_protocol::resp2;
    use redis_protocol::resp2::types::BytesFrame as Frame2;
    use redis_protocol::resp3;
    use redis_protocol::resp3::types::BytesFrame as Frame3;

    use super::*;

    fn rendered(reply: &Reply, protocol: Protocol) -> BytesMut {
        let mut out = BytesMut::new();
        render(reply, protocol, &mut out);
        out
    }

    /// One row per form: the reply, its RESP2 bytes, its RESP3 bytes.
    fn golden() -> Vec<(Reply, &'static str, &'static str)> {
        let one_two = || vec![Reply::Integer(1), Reply::bulk("b")];
        vec![
            (Reply::OK, "+OK\r\n", "+OK\r\n"),
            (Reply::simple("PONG"), "+PONG\r\n", "+PONG\r\n"),
            (Reply::error("ERR a\r\nb"), "-ERR a  b\r\n", "-ERR a  b\r\n"),
            (Reply::Simple("a\nb".into()), "+a b\r\n", "+a b\r\n"),
            (Reply::Integer(0), ":0\r\n", ":0\r\n"),
            (Reply::integer(9i32), ":9\r\n", ":9\r\n"),
            (Reply::Integer(10), ":10\r\n", ":10\r\n"),
            (Reply::Integer(99), ":99\r\n", ":99\r\n"),
            (Reply::Integer(100), ":100\r\n", ":100\r\n"),
            (Reply::Integer(-1), ":-1\r\n", ":-1\r\n"),
            (Reply::Integer(i64::MAX), ":9223372036854775807\r\n", ":9223372036854775807\r\n"),
            (Reply::Integer(i64::MIN), ":-9223372036854775808\r\n", ":-9223372036854775808\r\n"),
            (Reply::Double(3.0), "$1\r\n3\r\n", ",3\r\n"),
            (Reply::Double(-0.0), "$2\r\n-0\r\n", ",-0\r\n"),
            (Reply::Double(0.1), "$19\r\n0.10000000000000001\r\n", ",0.10000000000000001\r\n"),
            (Reply::Double(f64::INFINITY), "$3\r\ninf\r\n", ",inf\r\n"),
            (Reply::Double(f64::NEG_INFINITY), "$4\r\n-inf\r\n", ",-inf\r\n"),
            (Reply::Boolean(true), ":1\r\n", "#t\r\n"),
            (Reply::Boolean(false), ":0\r\n", "#f\r\n"),
            (Reply::bulk(""), "$0\r\n\r\n", "$0\r\n\r\n"),
            (Reply::bulk("a\r\nb"), "$4\r\na\r\nb\r\n", "$4\r\na\r\nb\r\n"),
            (Reply::text("0123456789"), "$10\r\n0123456789\r\n", "$10\r\n0123456789\r\n"),
            (Reply::Null, "$-1\r\n", "_\r\n"),
            (Reply::NullArray, "*-1\r\n", "_\r\n"),
            (Reply::Array(vec![]), "*0\r\n", "*0\r\n"),
            (Reply::Array(one_two()), "*2\r\n:1\r\n$1\r\nb\r\n", "*2\r\n:1\r\n$1\r\nb\r\n"),
            (Reply::Set(one_two()), "*2\r\n:1\r\n$1\r\nb\r\n", "~2\r\n:1\r\n$1\r\nb\r\n"),
            (Reply::Push(one_two()), "*2\r\n:1\r\n$1\r\nb\r\n", ">2\r\n:1\r\n$1\r\nb\r\n"),
            (
                Reply::Map(vec![(Reply::bulk("k"), Reply::Boolean(true))]),
                "*2\r\n$1\r\nk\r\n:1\r\n",
                "%1\r\n$1\r\nk\r\n#t\r\n",
            ),
            (Reply::Verbatim("txt", "hi".to_owned()), "$2\r\nhi\r\n", "=6\r\ntxt:hi\r\n"),
            (
                Reply::Array(vec![Reply::Array(vec![Reply::Null]), Reply::error("ERR x")]),
                "*2\r\n*1\r\n$-1\r\n-ERR x\r\n",
                "*2\r\n*1\r\n_\r\n-ERR x\r\n",
            ),
        ]
    }

    #[test]
    fn every_type_has_its_bytes_in_both_protocols() {
        for (reply, resp2, resp3) in golden() {
            assert_eq!(
                rendered(&reply, Protocol::Resp2).escape_ascii().to_string(),
                resp2.escape_default().to_string()
            );
            assert_eq!(
                rendered(&reply, Protocol::Resp3).escape_ascii().to_string(),
                resp3.escape_default().to_string()
            );
        }
    }

    #[test]
    fn the_size_hint_is_never_too_small() {
        for (reply, resp2, resp3) in golden() {
            assert!(reply.size_hint() >= resp2.len().max(resp3.len()), "{reply:?}");
        }
    }

    #[test]
    fn not_a_number_is_lower_case_nan() {
        assert_eq!(&rendered(&Reply::Double(f64::NAN), Protocol::Resp2)[..], b"$3\r\nnan\r\n");
        assert_eq!(&rendered(&Reply::Double(f64::NAN), Protocol::Resp3)[..], b",nan\r\n");
    }

    #[test]
    fn another_implementation_reads_resp2_as_it_was_meant() {
        for (reply, ..) in golden() {
            let bytes = rendered(&reply, Protocol::Resp2).freeze();
            let (frame, length) = resp2::decode::decode_bytes(&bytes).unwrap().unwrap();
            assert_eq!(length, bytes.len(), "{reply:?}");
            assert_eq!(frame, meant_in_resp2(&reply));
        }
    }

    #[test]
    fn another_implementation_reads_resp3_as_it_was_meant() {
        for (reply, ..) in golden() {
            let bytes = rendered(&reply, Protocol::Resp3).freeze();
            let (frame, length) = resp3::decode::complete::decode_bytes(&bytes).unwrap().unwrap();
            assert_eq!(length, bytes.len(), "{reply:?}");
            assert!(is_meant_in_resp3(&reply, &frame), "{reply:?} was read as {frame:?}");
        }
    }

    fn one_line(text: &str) -> String {
        text.replace(['\r', '\n'], " ")
    }

    fn meant_in_resp2(reply: &Reply) -> Frame2 {
        let bulk = |text: &str| Frame2::BulkString(text.as_bytes().to_vec().into());
        let all = |items: &[Reply]| Frame2::Array(items.iter().map(meant_in_resp2).collect());
        match reply {
            Reply::Ok => Frame2::SimpleString("OK".into()),
            Reply::Simple(text) => Frame2::SimpleString(one_line(text).into()),
            Reply::Error(text) => Frame2::Error(one_line(text).into()),
            Reply::Integer(value) => Frame2::Integer(*value),
            Reply::Double(value) => bulk(&format_g17(*value)),
            Reply::Boolean(value) => Frame2::Integer(i64::from(*value)),
            Reply::Bulk(value) => Frame2::BulkString(value.clone()),
            Reply::Null | Reply::NullArray => Frame2::Null,
            Reply::Array(items) | Reply::Set(items) | Reply::Push(items) => all(items),
            Reply::Map(pairs) => Frame2::Array(
                pairs.iter().flat_map(|(k, v)| [meant_in_resp2(k), meant_in_resp2(v)]).collect(),
            ),
            Reply::Verbatim(_, text) => bulk(text),
            Reply::Waiting(_) => Frame2::Null,
        }
    }

    fn is_meant_in_resp3(reply: &Reply, frame: &Frame3) -> bool {
        let all = |items: &[Reply], data: &[Frame3]| {
            items.len() == data.len()
                && items.iter().zip(data).all(|(item, frame)| is_meant_in_resp3(item, frame))
        };
        match (reply, frame) {
            (Reply::Ok, Frame3::SimpleString { data, .. }) => &data[..] == b"OK",
            (Reply::Simple(text), Frame3::SimpleString { data, .. }) => data == one_line(text).as_bytes(),
            (Reply::Error(text), Frame3::SimpleError { data, .. }) => **data == *one_line(text),
            (Reply::Integer(value), Frame3::Number { data, .. }) => data == value,
            (Reply::Double(value), Frame3::Double { data, .. }) => data == value,
            (Reply::Boolean(value), Frame3::Boolean { data, .. }) => data == value,
            (Reply::Bulk(value), Frame3::BlobString { data, .. }) => data == value,
            (Reply::Null | Reply::NullArray, Frame3::Null) => true,
            (Reply::Array(items), Frame3::Array { data, .. }) => all(items, data),
            (Reply::Push(items), Frame3::Push { data, .. }) => all(items, data),
            // The other implementation forgets the order of sets and maps; one pair needs none.
            (Reply::Set(items), Frame3::Set { data, .. }) => {
                items.len() == data.len()
                    && items.iter().all(|i| data.iter().any(|f| is_meant_in_resp3(i, f)))
            }
            (Reply::Map(pairs), Frame3::Map { data, .. }) => {
                pairs.len() == data.len()
                    && pairs.iter().zip(data).all(|((k, v), (key, value))| {
                        is_meant_in_resp3(k, key) && is_meant_in_resp3(v, value)
                    })
            }
            (Reply::Verbatim(_, text), Frame3::VerbatimString { data, .. }) => data == text.as_bytes(),
            _ => false,
        }
    }
}
