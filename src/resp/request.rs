//! Bytes to requests: cuts whole requests off the front of what a connection has received.
//!
//! The reader remembers where it stopped, so a value that arrives in many small reads is never looked at twice.
//! It finds every argument's place while it checks the bounds, and a request keeps these places as ranges of the
//! received bytes: no copy and no allocation per argument. To have the redis-protocol crate find the same ranges
//! once more makes decoding take 2.3 times as long (`benches/decode.rs`), so it serves as the oracle of the tests.
//!
//! Nothing is allocated because a client announced it. A header may promise 512 MB; memory follows the bytes that
//! have arrived.

use bytes::Buf;
use bytes::Bytes;
use bytes::BytesMut;
use smallvec::SmallVec;

use crate::resp::arguments::parse_i64;
use crate::resp::inline;

/// Where a request's arguments start and end in its bytes. Six fit without an allocation: `SET key value PX n NX`.
pub(super) type Ranges = SmallVec<[(u32, u32); 6]>;

/// The least an argument takes on the wire: `$0`, CRLF, nothing, CRLF.
const ARGUMENT_BYTES_MIN: usize = 6;

/// How far [`RequestReader::wanted`] goes ahead of what has arrived, in bytes.
const WANTED_MAX: usize = 1 << 20;

/// One complete request: a command's name and its arguments, as ranges of the received bytes.
///
/// It shares the connection's read buffer, so whoever keeps an argument for long must copy it.
#[derive(Debug, Clone, Default)]
pub struct Request {
    raw: Bytes,
    args: Ranges,
}

impl Request {
    /// Builds a request from its arguments, the command's name first; for tests and for commands made inside.
    ///
    /// The arguments may take up to 4 GiB together; more is a mistake of the caller and panics.
    pub fn from_args(args: &[&[u8]]) -> Request {
        let mut raw = Vec::with_capacity(args.iter().map(|arg| arg.len()).sum());
        let mut ranges = Ranges::with_capacity(args.len());
        for arg in args {
            let start = raw.len();
            raw.extend_from_slice(arg);
            ranges.push((offset(start), offset(raw.len())));
        }
        Request { raw: Bytes::from(raw), args: ranges }
    }

    /// How many arguments there are, the command's name included. A request that was received has at least one.
    pub fn len(&self) -> usize {
        self.args.len()
    }

    /// Whether there is not even a name; never so for a request that was received.
    pub fn is_empty(&self) -> bool {
        self.args.is_empty()
    }

    /// The argument at `index`; 0 is the command's name. Panics if there is none: check the arity first.
    #[inline]
    pub fn arg(&self, index: usize) -> &[u8] {
        let (start, end) = self.args[index];
        &self.raw[start as usize..end as usize]
    }

    /// The argument at `index`, or `None` if there are fewer.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        (index < self.args.len()).then(|| self.arg(index))
    }

    /// All arguments in order, the command's name first.
    pub fn args(&self) -> impl ExactSizeIterator<Item = &[u8]> + Clone {
        self.args.iter().map(|(start, end)| &self.raw[*start as usize..*end as usize])
    }

    /// The command's name as it was sent, in any case; empty if there is none.
    pub fn name(&self) -> &[u8] {
        self.get(0).unwrap_or_default()
    }

    /// The argument at `index` as a shared view of the received bytes, which stay in memory as long as it lives.
    /// Panics if there is none.
    pub fn arg_bytes(&self, index: usize) -> Bytes {
        let (start, end) = self.args[index];
        self.raw.slice(start as usize..end as usize)
    }

    /// The bytes that hold the arguments: the request as it was received, with the words of an inline command
    /// unquoted in place.
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }
}

/// What a client may send. All lengths are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest argument (`proto-max-bulk-len`).
    pub max_bulk_len: usize,
    /// The longest inline command, and the longest header line.
    pub max_inline: usize,
    /// The most arguments of one request.
    pub max_multibulk: usize,
    /// Whether the client has yet to authenticate: then at most 10 arguments of at most 16 KiB each.
    pub unauthenticated: bool,
}

impl Limits {
    const UNAUTHENTICATED_MULTIBULK_MAX: usize = 10;
    const UNAUTHENTICATED_BULK_MAX: usize = 16 * 1024;
}

impl Default for Limits {
    /// Redis's limits: 512 MB an argument, 64 KiB a line, 1,048,576 arguments, authenticated.
    fn default() -> Limits {
        Limits {
            max_bulk_len: 512 * 1024 * 1024,
            max_inline: 64 * 1024,
            max_multibulk: 1024 * 1024,
            unauthenticated: false,
        }
    }
}

/// What cannot be a request, in Redis 7.0's words; sent as `-ERR` and this text. The bytes that follow have no
/// meaning any more, so the connection must close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// `*` is not followed by an integer, or by one above [`Limits::max_multibulk`].
    #[error("Protocol error: invalid multibulk length")]
    InvalidMultibulkLength,
    /// `$` is not followed by an integer from 0 to [`Limits::max_bulk_len`], or the request as a whole would pass
    /// 4 GiB.
    #[error("Protocol error: invalid bulk length")]
    InvalidBulkLength,
    /// An argument begins with this byte.
    #[error("Protocol error: expected '$', got '{}'", char::from(*.0))]
    ExpectedBulk(u8),
    /// The line after `*` has no end within [`Limits::max_inline`].
    #[error("Protocol error: too big mbulk count string")]
    TooBigMultibulkCount,
    /// The line of an argument's length has no end within [`Limits::max_inline`].
    #[error("Protocol error: too big bulk count string")]
    TooBigBulkCount,
    /// An inline command is longer than [`Limits::max_inline`].
    #[error("Protocol error: too big inline request")]
    TooBigInline,
    /// An inline command has a quote without its end, or text right behind one.
    #[error("Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
    /// More than 10 arguments before authentication.
    #[error("Protocol error: unauthenticated multibulk length")]
    UnauthenticatedMultibulkLength,
    /// An argument of more than 16 KiB before authentication.
    #[error("Protocol error: unauthenticated bulk length")]
    UnauthenticatedBulkLength,
}

/// Cuts requests off a connection's buffer; one per connection.
///
/// The buffer must only grow at its end between calls: offsets into it are what is remembered of a request that
/// has not arrived as a whole.
#[derive(Debug, Default)]
pub struct RequestReader {
    /// Where the next header or argument starts in the buffer, whose first byte is the request's first.
    position: usize,
    /// No line end lies before this offset.
    scanned: usize,
    /// Arguments that are still to come; 0 while no request has begun.
    missing: usize,
    /// The length of the argument at `position`, once its header was read.
    bulk: Option<usize>,
    args: Ranges,
    /// The buffer's length when the last call had to wait.
    pending: usize,
}

impl RequestReader {
    /// A reader at the start of a connection.
    pub fn new() -> RequestReader {
        RequestReader::default()
    }

    /// Takes the next whole request off the front of `buffer`; `None` until more bytes have arrived.
    ///
    /// Requests without arguments (an empty line, `*0`, `*-10`) are taken off and skipped. After an error the
    /// reader and its buffer are of no more use; requests before the broken one have been returned by then.
    pub fn next(&mut self, buffer: &mut BytesMut, limits: &Limits) -> Result<Option<Request>, ProtocolError> {
        loop {
            if self.missing > 0 {
                if !self.read_arguments(buffer, limits)? {
                    return Ok(self.wait(buffer));
                }
                return Ok(Some(self.finish(buffer)));
            }
            match buffer.first() {
                Some(b'*') => {
                    if !self.read_count(buffer, limits)? {
                        return Ok(self.wait(buffer));
                    }
                }
                Some(_) => {
                    if !self.read_line(buffer, limits)? {
                        return Ok(self.wait(buffer));
                    }
                    if !self.args.is_empty() {
                        return Ok(Some(self.finish(buffer)));
                    }
                    self.skip(buffer);
                }
                None => return Ok(self.wait(buffer)),
            }
        }
    }

    /// How many more bytes the argument that is arriving needs, so that the buffer can grow once; 0 if that is not
    /// known. A long argument is asked for in parts, at most 1 MiB or as much as has arrived, whichever is more.
    pub fn wanted(&self) -> usize {
        match self.bulk {
            Some(length) => {
                let end = self.position + length + 2;
                end.saturating_sub(self.pending).min(self.pending.max(WANTED_MAX))
            }
            None => 0,
        }
    }

    /// How many bytes of an unfinished request were in the buffer when the last call had to wait; 0 if it did not.
    pub fn pending_bytes(&self) -> usize {
        self.pending
    }

    fn wait(&mut self, buffer: &BytesMut) -> Option<Request> {
        self.pending = buffer.len();
        None
    }

    /// Hands out the request that ends at `position`.
    #[inline]
    fn finish(&mut self, buffer: &mut BytesMut) -> Request {
        let raw = buffer.split_to(self.position).freeze();
        let args = std::mem::take(&mut self.args);
        self.restart();
        Request { raw, args }
    }

    /// Drops the bytes up to `position`, which ask for nothing.
    fn skip(&mut self, buffer: &mut BytesMut) {
        buffer.advance(self.position);
        self.restart();
    }

    fn restart(&mut self) {
        (self.position, self.scanned, self.pending) = (0, 0, 0);
    }

    /// Reads `*count`; false if the line is incomplete.
    fn read_count(&mut self, buffer: &mut BytesMut, limits: &Limits) -> Result<bool, ProtocolError> {
        let Some(header) = self.header(buffer, limits, ProtocolError::TooBigMultibulkCount)? else {
            return Ok(false);
        };
        let count = header.value.ok_or(ProtocolError::InvalidMultibulkLength)?;
        // A count below zero asks for as little as zero does.
        let count = usize::try_from(count).unwrap_or(0);
        if count > limits.max_multibulk {
            return Err(ProtocolError::InvalidMultibulkLength);
        }
        if limits.unauthenticated && count > Limits::UNAUTHENTICATED_MULTIBULK_MAX {
            return Err(ProtocolError::UnauthenticatedMultibulkLength);
        }
        self.position = header.end;
        if count == 0 {
            self.skip(buffer);
            return Ok(true);
        }
        self.missing = count;
        if count > self.args.inline_size() {
            // The arguments that have arrived bound the reservation, whatever the client announced.
            self.args.reserve(count.min(buffer.len() / ARGUMENT_BYTES_MIN));
        }
        Ok(true)
    }

    /// Reads arguments until none is missing; false if the bytes end before.
    #[inline]
    fn read_arguments(&mut self, bytes: &[u8], limits: &Limits) -> Result<bool, ProtocolError> {
        while self.missing > 0 {
            let length = match self.bulk {
                Some(length) => length,
                None => match self.read_length(bytes, limits)? {
                    Some(length) => length,
                    None => return Ok(false),
                },
            };
            let end = self.position + length;
            // The two bytes behind an argument are skipped unseen, as in Redis.
            if bytes.len() < end + 2 {
                return Ok(false);
            }
            self.args.push((self.position as u32, end as u32));
            self.position = end + 2;
            self.bulk = None;
            self.missing -= 1;
        }
        Ok(true)
    }

    /// Reads `$length`; `None` if the line is incomplete.
    #[inline]
    fn read_length(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, ProtocolError> {
        let Some(header) = self.header(bytes, limits, ProtocolError::TooBigBulkCount)? else {
            return Ok(None);
        };
        if bytes[self.position] != b'$' {
            return Err(ProtocolError::ExpectedBulk(bytes[self.position]));
        }
        let length = header.value.and_then(|value| usize::try_from(value).ok());
        let length = length.filter(|length| *length <= limits.max_bulk_len);
        let length = length.ok_or(ProtocolError::InvalidBulkLength)?;
        if limits.unauthenticated && length > Limits::UNAUTHENTICATED_BULK_MAX {
            return Err(ProtocolError::UnauthenticatedBulkLength);
        }
        // Ranges are 32 bits wide. Redis closes the connection at 1 GB of query buffer, long before.
        if header.end.saturating_add(length) > u32::MAX as usize - 2 {
            return Err(ProtocolError::InvalidBulkLength);
        }
        self.position = header.end;
        self.bulk = Some(length);
        Ok(Some(length))
    }

    /// Reads an inline command into `args`; false if the line is incomplete.
    fn read_line(&mut self, buffer: &mut BytesMut, limits: &Limits) -> Result<bool, ProtocolError> {
        let Some(newline) = self.find(buffer, b'\n', limits, ProtocolError::TooBigInline)? else {
            return Ok(false);
        };
        let line = &mut buffer[..newline];
        let line = match line.split_last_mut() {
            Some((b'\r', before)) => before,
            _ => &mut buffer[..newline],
        };
        self.args = inline::split(line).map_err(|_| ProtocolError::UnbalancedQuotes)?;
        self.position = newline + 1;
        Ok(true)
    }

    /// Reads the line of a type byte and a number at `position`; `None` if it is incomplete.
    #[inline]
    fn header(
        &mut self,
        bytes: &[u8],
        limits: &Limits,
        too_long: ProtocolError,
    ) -> Result<Option<Header>, ProtocolError> {
        if let Some(header) = short_header(bytes, self.position) {
            return Ok(Some(header));
        }
        self.any_header(bytes, limits, too_long)
    }

    /// The way for what is long, negative, broken or incomplete.
    #[cold]
    fn any_header(
        &mut self,
        bytes: &[u8],
        limits: &Limits,
        too_long: ProtocolError,
    ) -> Result<Option<Header>, ProtocolError> {
        let Some(line_end) = self.find(bytes, b'\r', limits, too_long)? else {
            return Ok(None);
        };
        // Redis waits for the byte behind CR and does not look at it.
        if bytes.len() < line_end + 2 {
            return Ok(None);
        }
        let number = bytes.get(self.position + 1..line_end).unwrap_or_default();
        Ok(Some(Header { value: parse_i64(number), end: line_end + 2 }))
    }

    /// Where the line that starts at `position` ends; `None` if it does not yet, an error if it is too long.
    fn find(
        &mut self,
        bytes: &[u8],
        end: u8,
        limits: &Limits,
        too_long: ProtocolError,
    ) -> Result<Option<usize>, ProtocolError> {
        let from = self.scanned.max(self.position);
        let found = bytes[from..].iter().position(|byte| *byte == end);
        self.scanned = found.map_or(bytes.len(), |index| from + index);
        // A line that came with its end is measured too, so that the verdict does not depend on how the bytes were
        // cut into reads.
        if self.scanned - self.position > limits.max_inline {
            return Err(too_long);
        }
        Ok(found.map(|_| self.scanned))
    }
}

/// A line of a type byte and a number.
struct Header {
    /// The number, `None` if it is none.
    value: Option<i64>,
    /// The offset behind the line's CRLF.
    end: usize,
}

/// The line at `position` if it is complete and its number has one to eight digits, as almost all have.
#[inline]
fn short_header(bytes: &[u8], position: usize) -> Option<Header> {
    const DIGITS_MAX: usize = 8;
    let line = bytes.get(position + 1..)?;
    let mut value = 0i64;
    for (index, byte) in line.iter().take(DIGITS_MAX + 1).enumerate() {
        let digit = byte.wrapping_sub(b'0');
        if digit < 10 {
            value = value * 10 + i64::from(digit);
            continue;
        }
        let has_leading_zero = index > 1 && line[0] == b'0';
        if *byte != b'\r' || index == 0 || has_leading_zero || line.len() < index + 2 {
            return None;
        }
        return Some(Header { value: Some(value), end: position + 1 + index + 2 });
    }
    None
}

/// An offset in a request that was made inside.
fn offset(value: usize) -> u32 {
    u32::try_from(value).expect("a request that is made inside is shorter than 4 GiB")
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use redis_protocol::resp2::decode::decode_range;
    use redis_protocol::resp2::types::RangeFrame;

    use super::*;

    type Args = Vec<Vec<u8>>;

    fn owned(request: &Request) -> Args {
        request.args().map(<[u8]>::to_vec).collect()
    }

    /// Feeds `pieces` one after the other: the requests, and the error if there was one.
    fn feed<'a>(
        pieces: impl IntoIterator<Item = &'a [u8]>,
        limits: &Limits,
    ) -> (Vec<Args>, Option<ProtocolError>) {
        let (mut reader, mut buffer) = (RequestReader::new(), BytesMut::new());
        let (mut requests, mut arrived, mut taken) = (Vec::new(), 0, 0);
        for piece in pieces {
            buffer.extend_from_slice(piece);
            arrived += piece.len();
            loop {
                match reader.next(&mut buffer, limits) {
                    Ok(Some(request)) => {
                        assert!(!request.is_empty());
                        assert_eq!(request.args.len(), request.args().len());
                        taken += request.raw().len();
                        requests.push(owned(&request));
                    }
                    Ok(None) => break,
                    Err(error) => return (requests, Some(error)),
                }
            }
            assert!(taken + buffer.len() <= arrived);
            assert_eq!(reader.pending_bytes(), buffer.len());
            assert!(reader.args.capacity() <= 6 + 2 * arrived / ARGUMENT_BYTES_MIN);
        }
        (requests, None)
    }

    fn at_once(input: &[u8]) -> (Vec<Args>, Option<ProtocolError>) {
        feed([input], &Limits::default())
    }

    fn text(args: &[&str]) -> Args {
        args.iter().map(|arg| arg.as_bytes().to_vec()).collect()
    }

    fn encoded(requests: &[Args]) -> Vec<u8> {
        let mut out = Vec::new();
        for request in requests {
            out.extend_from_slice(format!("*{}\r\n", request.len()).as_bytes());
            for arg in request {
                out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
                out.extend_from_slice(arg);
                out.extend_from_slice(b"\r\n");
            }
        }
        out
    }

    /// What the redis-protocol crate reads from the same bytes.
    fn decoded_by_the_oracle(mut input: &[u8]) -> Vec<Args> {
        let mut requests = Vec::new();
        while !input.is_empty() {
            let (frame, length) = decode_range(input).unwrap().unwrap();
            let RangeFrame::Array(items) = frame else { panic!("{frame:?} is no request") };
            let arg = |item: &RangeFrame| match item {
                RangeFrame::BulkString((start, end)) => input[*start..*end].to_vec(),
                other => panic!("{other:?} is no argument"),
            };
            requests.push(items.iter().map(arg).collect());
            input = &input[length..];
        }
        requests
    }

    #[test]
    fn bad_input_gets_the_words_of_redis() {
        let long = "1".repeat(64 * 1024 + 1);
        let cases: Vec<(String, &str)> = vec![
            ("set \"\"\"a\"\"\" b\r\n".to_owned(), "unbalanced quotes in request"),
            ("'\r\n".to_owned(), "unbalanced quotes in request"),
            (long.clone(), "too big inline request"),
            (format!("{long}\r\n"), "too big inline request"),
            ("*3000000000\r\n".to_owned(), "invalid multibulk length"),
            ("*1048577\r\n".to_owned(), "invalid multibulk length"),
            ("*abc\r\n".to_owned(), "invalid multibulk length"),
            ("*\r\n".to_owned(), "invalid multibulk length"),
            ("*01\r\n".to_owned(), "invalid multibulk length"),
            ("*+1\r\n".to_owned(), "invalid multibulk length"),
            ("* 1\r\n".to_owned(), "invalid multibulk length"),
            ("*-0\r\n".to_owned(), "invalid multibulk length"),
            ("*99999999999999999999\r\n".to_owned(), "invalid multibulk length"),
            ("*1\r\n$-10\r\n".to_owned(), "invalid bulk length"),
            ("*1\r\n$-1\r\n".to_owned(), "invalid bulk length"),
            ("*1\r\n$2000000000\r\n".to_owned(), "invalid bulk length"),
            ("*1\r\n$536870913\r\n".to_owned(), "invalid bulk length"),
            ("*1\r\n$blabla\r\n".to_owned(), "invalid bulk length"),
            ("*1\r\n$\r\n".to_owned(), "invalid bulk length"),
            ("*1\r\n$00\r\n".to_owned(), "invalid bulk length"),
            ("*3\r\n$3\r\nSET\r\n$1\r\nx\r\nfooz\r\n".to_owned(), "expected '$', got 'f'"),
            ("*1\r\n\r\n".to_owned(), "expected '$', got '\r'"),
            ("*1\r\n*1\r\n".to_owned(), "expected '$', got '*'"),
            (format!("*{long}"), "too big mbulk count string"),
            (format!("*1\r\n${long}"), "too big bulk count string"),
            (format!("*1\r\nx{long}"), "too big bulk count string"),
        ];
        for (input, expected) in cases {
            let shown = &input[..input.len().min(40)];
            let (requests, error) = at_once(input.as_bytes());
            assert_eq!(requests.len(), 0, "{shown:?}");
            assert_eq!(error.unwrap().to_string(), format!("Protocol error: {expected}"), "{shown:?}");
            // The verdict is the same however the bytes arrive.
            assert_eq!(feed(input.as_bytes().chunks(1), &Limits::default()).1, error, "{shown:?}");
        }
    }

    #[test]
    fn an_unauthenticated_client_may_send_little() {
        let limits = Limits { unauthenticated: true, ..Limits::default() };
        let error = |input: &[u8]| feed([input], &limits).1.map(|error| error.to_string());
        assert_eq!(error(b"*11\r\n").unwrap(), "Protocol error: unauthenticated multibulk length");
        assert_eq!(error(b"*10\r\n"), None);
        assert_eq!(error(b"*1\r\n$16385\r\n").unwrap(), "Protocol error: unauthenticated bulk length");
        assert_eq!(error(b"*1\r\n$16384\r\n"), None);
        assert_eq!(error(b"*3000000000\r\n").unwrap(), "Protocol error: invalid multibulk length");
    }

    #[test]
    fn requests_that_ask_for_nothing_are_skipped() {
        let input = b"\r\n\n   \r\n*0\r\n*-10\r\n*-1\r\nPING\r\n*0\r\n*1\r\n$4\r\nECHO\r\n\r\n";
        assert_eq!(at_once(input), (vec![text(&["PING"]), text(&["ECHO"])], None));
        assert_eq!(feed(input.chunks(1), &Limits::default()), at_once(input));
    }

    #[test]
    fn requests_before_a_broken_one_are_answered_first() {
        let (requests, error) =
            at_once(b"*1\r\n$4\r\nPING\r\nPING x\r\n*1\r\n$4\r\nPING\r\n*abc\r\nPING\r\n");
        assert_eq!(requests, [text(&["PING"]), text(&["PING", "x"]), text(&["PING"])]);
        assert_eq!(error, Some(ProtocolError::InvalidMultibulkLength));
    }

    #[test]
    fn arguments_are_ranges_of_the_received_bytes() {
        let mut buffer = BytesMut::from(&b"*3\r\n$3\r\nSET\r\n$3\r\nk\r\n\r\n$0\r\n\r\nPI"[..]);
        let request = RequestReader::new().next(&mut buffer, &Limits::default()).unwrap().unwrap();
        assert_eq!(owned(&request), text(&["SET", "k\r\n", ""]));
        assert_eq!((request.len(), request.name(), request.get(3)), (3, &b"SET"[..], None));
        assert_eq!(request.arg_bytes(1).as_ptr(), request.raw()[17..].as_ptr());
        assert_eq!(&buffer[..], b"PI");
    }

    #[test]
    fn a_request_can_be_made_of_its_arguments() {
        let request = Request::from_args(&[b"SET", b"", b"v"]);
        assert_eq!(owned(&request), text(&["SET", "", "v"]));
        assert_eq!(Request::from_args(&[]).name(), b"");
    }

    #[test]
    fn a_quoted_inline_command_is_unquoted() {
        let (requests, error) = at_once(b"SET \"a b\" 'c' \"\\x00\\n\"\nGET x\r\n");
        assert_eq!(requests, [text(&["SET", "a b", "c", "\0\n"]), text(&["GET", "x"])]);
        assert_eq!(error, None);
    }

    #[test]
    fn an_announced_length_is_asked_for_in_parts() {
        let (mut reader, limits) = (RequestReader::new(), Limits::default());
        let mut buffer = BytesMut::from(&b"*1\r\n$100\r\nabc"[..]);
        assert!(reader.next(&mut buffer, &limits).unwrap().is_none());
        assert_eq!(reader.wanted(), 100 - 3 + 2);
        let mut reader = RequestReader::new();
        let mut buffer = BytesMut::from(&b"*1048576\r\n$536870912\r\n"[..]);
        assert!(reader.next(&mut buffer, &limits).unwrap().is_none());
        assert_eq!(reader.wanted(), WANTED_MAX);
        assert!(reader.args.capacity() <= 6, "nothing is allocated because it was announced");
        buffer.extend_from_slice(&vec![0; 3 * WANTED_MAX]);
        assert!(reader.next(&mut buffer, &limits).unwrap().is_none());
        assert_eq!(reader.wanted(), buffer.len());
        assert_eq!(reader.pending_bytes(), buffer.len());
    }

    #[test]
    fn a_long_value_in_small_reads_is_not_read_again_from_its_start() {
        let request = vec![text(&["SET", "key"]).into_iter().chain([vec![b'\r'; 3_000_000]]).collect()];
        let input = encoded(&request);
        assert_eq!(feed(input.chunks(7), &Limits::default()), (request, None));
    }

    /// Arguments of all lengths around a header's digits, with bytes that could be taken for protocol.
    fn some_requests() -> impl Strategy<Value = Vec<Args>> {
        let byte = prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'$'), Just(b'*'), any::<u8>()];
        let arg = prop_oneof![vec(byte, 0..12), (95usize..105).prop_map(|length| vec![b'x'; length])];
        vec(vec(arg, 1..14), 0..6)
    }

    proptest! {
        #[test]
        fn requests_cut_anywhere_are_what_another_implementation_decodes(
            requests in some_requests(),
            cuts in vec(any::<proptest::sample::Index>(), 0..8),
        ) {
            let input = encoded(&requests);
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
            ends.extend([0, input.len()]);
            ends.sort_unstable();
            let (read, error) = feed(ends.windows(2).map(|pair| &input[pair[0]..pair[1]]), &Limits::default());
            prop_assert_eq!(error, None);
            prop_assert_eq!(&read, &decoded_by_the_oracle(&input));
            prop_assert_eq!(read, requests);
        }

        #[test]
        fn random_bytes_neither_panic_nor_depend_on_how_they_are_cut(
            input in prop_oneof![
                vec(any::<u8>(), 0..200),
                // Dense in what means something, so that deep states are reached.
                vec(proptest::sample::select(&b"**$$\r\n\r\n\r\n0123-a \"'\\x"[..]), 0..200),
            ],
            size in 1usize..9,
        ) {
            prop_assert_eq!(feed(input.chunks(size), &Limits::default()), at_once(&input));
        }
    }
}
