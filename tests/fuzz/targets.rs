//! What is fuzzed: one function for each format and parser that reads bytes of a client, a peer, a disk or a person.
//!
//! Each takes any bytes and fails by a panic. `tests/fuzz.rs` runs them all with what `make test` has time for,
//! `make fuzz` runs one under libFuzzer; both include this file.
//!
//! ```text
//! bytes ──► decode ──► an error        allowed, whatever the bytes
//!              │
//!              └─────► a value ──► encode ──► decode ──► must be the same value
//!                         │
//!                         └──► what the product does with it must not panic, and two replicas must agree
//! ```
//! Where a checksum stands in front of a format, the bytes are also sealed with the right one: else nothing behind
//! it would ever be reached. ACL rules, Lua scripts and PBFT messages are not in the product yet and have no target.

#![allow(dead_code, reason = "a libFuzzer target uses one of these functions")]

use std::fmt::Debug;
use std::path::PathBuf;

use bytes::Bytes;
use bytes::BytesMut;
use holdfast::commands::long_double::LongDouble;
use holdfast::commands::spec::CommandSpec;
use holdfast::commands::table;
use holdfast::config::Config;
use holdfast::config::DIRECTIVES;
use holdfast::config::parse;
use holdfast::consensus::formation;
use holdfast::consensus::raft::message_codec;
use holdfast::consensus::raft::requests;
use holdfast::consensus::raft::transfer;
use holdfast::consensus::raft::transfer::ChunkOutcome;
use holdfast::consensus::raft::transfer::Incoming;
use holdfast::consensus::raft::transfer::OfferOutcome;
use holdfast::consensus::raft::transfer::Outgoing;
use holdfast::consensus::raft::transfer::TransferMessage;
use holdfast::machine::apply;
use holdfast::machine::apply::BatchOutcome;
use holdfast::machine::entry;
use holdfast::machine::entry::Batch;
use holdfast::machine::entry::Item;
use holdfast::machine::entry::Queued;
use holdfast::machine::entry::SessionStamp;
use holdfast::machine::entry::Stamps;
use holdfast::machine::entry::Watched;
use holdfast::peer::Channel;
use holdfast::peer::handshake;
use holdfast::peer::wire;
use holdfast::peer::wire::WireError;
use holdfast::resp::Limits;
use holdfast::resp::Protocol;
use holdfast::resp::ProtocolError;
use holdfast::resp::Reply;
use holdfast::resp::RequestReader;
use holdfast::resp::arguments::parse_i64;
use holdfast::resp::render;
use holdfast::resp::reply_codec;
use holdfast::state::Membership;
use holdfast::state::State;
use holdfast::storage::Watermark;
use holdfast::types::ClusterTime;
use holdfast::types::LogIndex;
use holdfast::types::Monotonic;
use holdfast::types::NodeId;
use holdfast::types::Term;
use holdfast::types::WallMillis;
use holdfast::types::codec::CodecError;
use holdfast::types::glob;

/// One target.
pub struct Target {
    /// As `make fuzz TARGET=` and its directory of the corpus call it.
    pub name: &'static str,
    /// Fails by a panic.
    pub run: fn(&[u8]),
    /// How many inputs of the cheapest target take as long as one of this, roughly.
    pub cost: u64,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "resp_stream", run: resp_stream, cost: 2 },
    Target { name: "resp_roundtrip", run: resp_roundtrip, cost: 2 },
    Target { name: "inline_command", run: inline_command, cost: 1 },
    Target { name: "reply_codec", run: reply_codec, cost: 1 },
    Target { name: "peer_frame", run: peer_frame, cost: 4 },
    Target { name: "handshake", run: handshake, cost: 1 },
    Target { name: "raft_message", run: raft_message, cost: 1 },
    Target { name: "request", run: request, cost: 1 },
    Target { name: "snapshot_chunk", run: snapshot_chunk, cost: 3 },
    Target { name: "log_entry", run: log_entry, cost: 1 },
    Target { name: "log_apply", run: log_apply, cost: 100 },
    Target { name: "commands", run: commands, cost: 200 },
    Target { name: "membership", run: membership, cost: 4 },
    Target { name: "watermark", run: watermark, cost: 100 },
    Target { name: "config_file", run: config_file, cost: 150 },
    Target { name: "glob", run: glob, cost: 10 },
    Target { name: "long_double", run: long_double, cost: 20 },
];

/// Bytes as a source of choices. Zeros follow its end.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn number(&mut self) -> u64 {
        self.take(8).iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// A number below 2^64 that is mostly small: its first byte says how many bytes it has.
    fn small(&mut self) -> u64 {
        let length = usize::from(self.byte() % 9);
        self.take(length).iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn take(&mut self, length: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(length.min(self.0.len()));
        self.0 = tail;
        head
    }

    /// Bytes with their length, up to 255, before them.
    fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte());
        self.take(length)
    }

    /// What is left, cut into parts that each have their length, up to 65,535, before them.
    fn parts(&mut self) -> Vec<&'a [u8]> {
        let mut parts = Vec::new();
        while !self.is_empty() {
            let length = usize::from(self.byte()) | usize::from(self.byte()) << 8;
            parts.push(self.take(length));
        }
        parts
    }
}

/// Cuts bytes into pieces of lengths that follow from `seed`; some have no byte at all.
fn pieces(mut bytes: &[u8], mut seed: u64) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let length_max = [1, 3, 17, 200, 70_000][(seed >> 60) as usize % 5];
        let (piece, rest) = bytes.split_at(((seed >> 33) as usize % (length_max + 1)).min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}

/// Fails unless a value survives being encoded and decoded.
fn check_round_trip<T: PartialEq + Debug, E: Debug>(
    value: &T,
    encode: impl Fn(&T) -> Vec<u8>,
    decode: impl Fn(&[u8]) -> Result<T, E>,
) {
    let bytes = encode(value);
    let again = decode(&bytes).unwrap_or_else(|error| panic!("{value:?} became {bytes:?}: {error:?}"));
    assert!(again == *value, "{value:?} came back as {again:?}");
    assert_eq!(encode(&again), bytes, "the same value has the same bytes");
}

// ---- RESP ---------------------------------------------------------------------------------------------

/// The arguments of each request, and why the stream ended early if it did.
type Requests = (Vec<Vec<Vec<u8>>>, Option<ProtocolError>);

fn read_requests(pieces: &[&[u8]], limits: &Limits) -> Requests {
    const WANTED_MAX: usize = 1 << 20;
    let (mut reader, mut buffer, mut requests) = (RequestReader::new(), BytesMut::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match reader.next(&mut buffer, limits) {
                Ok(Some(request)) => {
                    assert!(!request.is_empty(), "a request has a name");
                    requests.push(request.args().map(<[u8]>::to_vec).collect());
                }
                Ok(None) => break,
                Err(error) => return (requests, Some(error)),
            }
        }
        assert_eq!(reader.pending_bytes(), buffer.len());
        assert!(reader.wanted() <= buffer.len().max(WANTED_MAX), "what is asked for is bounded by what came");
    }
    (requests, None)
}

/// A stream of requests: the same requests and the same error, however it is cut into reads.
pub fn resp_stream(data: &[u8]) {
    let mut input = Input(data);
    let choice = usize::from(input.byte());
    let limits = Limits {
        max_bulk_len: [4, 100, 20_000, 512 << 20][choice % 4],
        max_inline: [16, 64, 64 << 10][choice / 4 % 3],
        max_multibulk: [3, 50, 1 << 20][choice / 12 % 3],
        unauthenticated: choice >= 128,
    };
    let seed = input.number();
    let stream = input.take(data.len());
    let whole = read_requests(&[stream], &limits);
    assert_eq!(whole, read_requests(&pieces(stream, seed), &limits));
}

/// Arguments that are encoded come back; replies become exactly one value of either protocol.
pub fn resp_roundtrip(data: &[u8]) {
    let mut input = Input(data);
    let seed = input.number();
    let args: Vec<&[u8]> = (0..input.byte() % 8).map(|_| input.bytes()).collect();
    if !args.is_empty() {
        let mut stream = format!("*{}\r\n", args.len()).into_bytes();
        for arg in &args {
            stream.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
            stream.extend_from_slice(arg);
            stream.extend_from_slice(b"\r\n");
        }
        let (requests, error) = read_requests(&pieces(&stream, seed), &Limits::default());
        assert_eq!(error, None);
        assert_eq!(requests, [args]);
    }
    if let Ok(replies) = reply_codec::decode_replies(input.take(data.len())) {
        replies.iter().for_each(check_rendered);
    }
}

/// A reply is one value on the wire, no longer than was announced.
fn check_rendered(reply: &Reply) {
    for (protocol, types) in [(Protocol::Resp2, &b"+-:$*"[..]), (Protocol::Resp3, b"+-:$*_#,%~>=")] {
        let mut out = BytesMut::new();
        render(reply, protocol, &mut out);
        assert_eq!(value_end(&out, types), Some(out.len()), "{reply:?} in {protocol:?}: {out:?}");
        assert!(reply.size_hint() >= out.len(), "{reply:?} takes more than {} bytes", reply.size_hint());
    }
}

/// Where the first RESP value ends; `None` when it is cut short, broken or not of these types.
fn value_end(bytes: &[u8], types: &[u8]) -> Option<usize> {
    let line_end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let (kind, line) = bytes[..line_end].split_first()?;
    let is_clean = !line.iter().any(|byte| matches!(byte, b'\r' | b'\n'));
    if !types.contains(kind) || !is_clean {
        return None;
    }
    let mut end = line_end + 2;
    let count = || parse_i64(line);
    match kind {
        b'+' | b'-' => Some(end),
        b':' => count().map(|_| end),
        b'_' => line.is_empty().then_some(end),
        b'#' => (line == b"t" || line == b"f").then_some(end),
        b',' => std::str::from_utf8(line).ok()?.parse::<f64>().ok().map(|_| end),
        b'$' | b'*' if count()? == -1 => (!types.contains(&b'_')).then_some(end),
        b'$' | b'=' => {
            let text_end = end.checked_add(usize::try_from(count()?).ok()?)?;
            (bytes.get(text_end..text_end + 2)? == b"\r\n").then_some(text_end + 2)
        }
        _ => {
            let items = usize::try_from(count()?).ok()? * if *kind == b'%' { 2 } else { 1 };
            for _ in 0..items {
                end += value_end(&bytes[end..], types)?;
            }
            Some(end)
        }
    }
}

/// A line of words, against Redis's own `sdssplitargs`, written down again from its C.
pub fn inline_command(data: &[u8]) {
    let line: Vec<u8> = data.iter().copied().filter(|byte| *byte != b'\n').collect();
    if line.first() != Some(&b'*') {
        let expected = split_as_redis(line.strip_suffix(b"\r").unwrap_or(&line));
        let stream = [&line[..], b"\n"].concat();
        let (requests, error) =
            read_requests(&[&stream], &Limits { max_inline: 1 << 20, ..Limits::default() });
        match expected {
            None => assert_eq!(error, Some(ProtocolError::UnbalancedQuotes)),
            Some(words) if words.is_empty() => assert!(requests.is_empty() && error.is_none()),
            Some(words) => assert_eq!((requests, error), (vec![words], None)),
        }
    }
    // Lines of a configuration file are split by the same rules. They are text, and what C's isspace and its end of
    // a string make of these three does not occur in them.
    let Ok(text) = str::from_utf8(&line) else { return };
    if text.contains(['\0', '\x0b', '\x0c']) {
        return;
    }
    let expected = split_as_redis(&line).and_then(|words| {
        let texts: Result<Vec<String>, _> = words.into_iter().map(String::from_utf8).collect();
        texts.ok()
    });
    assert_eq!(parse::split_words(text).ok(), expected, "{text:?}");
}

/// `sdssplitargs` of Redis 7.0, but that a zero byte is one like others. `None`: unbalanced quotes.
fn split_as_redis(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t'..=b'\r');
    let (mut at, mut words) = (0, Vec::new());
    loop {
        at += line[at..].iter().take_while(|byte| is_space(byte)).count();
        if at == line.len() {
            return Some(words);
        }
        let (mut word, mut quote) = (Vec::new(), None);
        loop {
            let Some(&byte) = line.get(at) else {
                if quote.is_some() {
                    return None;
                }
                break;
            };
            let next = line.get(at + 1);
            at += 1;
            match quote {
                None if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') => break,
                None if byte == b'"' || byte == b'\'' => quote = Some(byte),
                None => word.push(byte),
                Some(quote) if byte == quote => {
                    if next.is_some_and(|next| !is_space(next)) {
                        return None;
                    }
                    break;
                }
                Some(b'\'') if byte == b'\\' && next == Some(&b'\'') => {
                    word.push(b'\'');
                    at += 1;
                }
                Some(b'"') if byte == b'\\' => match line.get(at..) {
                    Some(&[b'x', high, low, ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                        let digit = |digit: u8| char::from(digit).to_digit(16).unwrap_or(0) as u8;
                        word.push(digit(high) << 4 | digit(low));
                        at += 3;
                    }
                    Some(&[escaped, ..]) => {
                        let plain = b"nrtba".iter().position(|letter| *letter == escaped);
                        word.push(plain.map_or(escaped, |letter| b"\n\r\t\x08\x07"[letter]));
                        at += 1;
                    }
                    _ => word.push(byte),
                },
                Some(_) => word.push(byte),
            }
        }
        words.push(word);
    }
}

/// Replies between nodes and in the rows of sessions.
pub fn reply_codec(data: &[u8]) {
    let Ok(replies) = reply_codec::decode_replies(data) else { return };
    let encode = |replies: &[Reply]| {
        let mut out = Vec::new();
        reply_codec::encode_replies(replies, &mut out);
        out
    };
    // Not values but bytes are compared: a double that is no number equals nothing, not even itself.
    let bytes = encode(&replies);
    let again = reply_codec::decode_replies(&bytes).expect("what was encoded decodes");
    assert_eq!(encode(&again), bytes);
    assert!(bytes.len() <= data.len(), "nothing is written longer than it came");
}

// ---- peers --------------------------------------------------------------------------------------------

type Payloads = (Vec<(Channel, Bytes)>, Option<WireError>);

fn read_frames(pieces: &[&[u8]]) -> Payloads {
    let (mut decoder, mut buffer, mut payloads) = (wire::Decoder::default(), BytesMut::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.next(&mut buffer) {
                Ok(Some((channel, payload))) => {
                    assert!(payload.len() <= channel.payload_max());
                    payloads.push((channel, payload));
                }
                Ok(None) => break,
                Err(error) => return (payloads, Some(error)),
            }
        }
    }
    (payloads, None)
}

/// Frames of the internal port: however they are cut, the same payloads, which can be sent on.
pub fn peer_frame(data: &[u8]) {
    let mut input = Input(data);
    let seed = input.number();
    let raw = input.0;
    assert_eq!(read_frames(&[raw]), read_frames(&pieces(raw, seed)));
    let mut sealed = Vec::new();
    for body in input.parts() {
        sealed.extend_from_slice(&(body.len() as u32).to_le_bytes());
        sealed.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
        sealed.extend_from_slice(body);
    }
    let whole = read_frames(&[&sealed]);
    assert_eq!(whole, read_frames(&pieces(&sealed, seed)));
    let mut outbox = wire::Outbox::default();
    let mut sent = Vec::new();
    for (channel, payload) in whole.0 {
        // A channel that is full refuses; the others go on.
        if outbox.push(channel, payload.to_vec()).is_ok() {
            sent.push((channel, payload));
        }
    }
    let mut stream = Vec::new();
    while outbox.bytes() > 0 || stream.is_empty() {
        let mut out = Vec::new();
        outbox.fill(&mut out);
        assert!(out.len() <= wire::OUTPUT_MAX);
        stream.extend_from_slice(&out);
        if out.is_empty() {
            break;
        }
    }
    // Empty payloads count no bytes.
    outbox.fill(&mut stream);
    let (received, error) = read_frames(&[&stream]);
    assert_eq!(error, None);
    for channel in Channel::ALL {
        let of = |all: &[(Channel, Bytes)]| -> Vec<Bytes> {
            all.iter().filter(|(of, _)| *of == channel).map(|(_, payload)| payload.clone()).collect()
        };
        assert_eq!(of(&received), of(&sent), "{channel:?}");
    }
}

/// What is said before frames.
pub fn handshake(data: &[u8]) {
    if let Some(head) = data.first_chunk::<{ handshake::HEAD }>()
        && let Ok((length, crc)) = handshake::decode_head(head)
    {
        assert!(length <= handshake::BODY_MAX);
        let body = &data[handshake::HEAD..];
        let _ = handshake::decode_body(&body[..length.min(body.len())], crc);
    }
    let body = &data[..data.len().min(handshake::BODY_MAX)];
    let Ok(record) = handshake::decode_body(body, crc32c::crc32c(body)) else { return };
    // A refusal's text is made one line when it is read, and cut when it is written: the second time it is as it is.
    let Ok(bytes) = handshake::encode(&record) else { return };
    let decode = |bytes: &[u8]| {
        let (head, body) = bytes.split_first_chunk().expect("a record has a head");
        let (length, crc) = handshake::decode_head(head)?;
        assert_eq!(length, body.len());
        handshake::decode_body(body, crc)
    };
    let settled = decode(&bytes).expect("what was encoded decodes");
    check_round_trip(&settled, |record| handshake::encode(record).expect("it was encoded before"), decode);
    if let handshake::Record::Greeting(theirs) = settled {
        let mut own = theirs.clone();
        own.hello.node = NodeId(u64::from(data.first().copied().unwrap_or(0)));
        for dialed in [None, Some(theirs.hello.node), Some(own.hello.node)] {
            let seen = |node: NodeId| {
                let linked = (!node.0.is_multiple_of(3)).then_some((node.0, node.0.is_multiple_of(2)));
                (node.0 < 9).then_some(handshake::Seen { boot: node.0, instance: node.0, linked })
            };
            let verdict = handshake::judge(&own, dialed, seen, &theirs);
            if let Err(refusal) = verdict {
                assert!(handshake::encode(&refusal.record()).is_ok());
            }
        }
    }
}

/// Batches of Raft messages, and single ones.
pub fn raft_message(data: &[u8]) {
    if let Ok(batch) = message_codec::decode_batch(data) {
        check_round_trip(
            &batch,
            |batch| message_codec::encode_batch(batch.clock, &batch.messages),
            message_codec::decode_batch,
        );
    }
    if let Ok(message) = message_codec::decode_message(data) {
        let encode = |message: &_| {
            let mut out = Vec::new();
            message_codec::encode_message(message, &mut out);
            out
        };
        check_round_trip(&message, encode, message_codec::decode_message);
    }
}

/// What nodes ask of each other, and the steps of forming a cluster.
pub fn request(data: &[u8]) {
    let payload = Bytes::copy_from_slice(data);
    if let Ok(request) = requests::Request::decode(&payload) {
        let decode = |bytes: &[u8]| requests::Request::decode(&Bytes::copy_from_slice(bytes));
        check_round_trip(&request, requests::Request::encode, decode);
        if let requests::Request::Propose { batches, .. } = &request {
            for batch in batches.iter().filter_map(|batch| Batch::from_bytes(batch).ok()) {
                check_round_trip(&batch, Batch::to_bytes, Batch::from_bytes);
            }
        }
    }
    if let Ok(message) = requests::ControlMessage::decode(&payload) {
        let decode = |bytes: &[u8]| requests::ControlMessage::decode(&Bytes::copy_from_slice(bytes));
        check_round_trip(&message, requests::ControlMessage::encode, decode);
    }
    if let Ok(record) = formation::Record::decode(data) {
        check_round_trip(&record, formation::Record::encode, formation::Record::decode);
    }
    if let Ok(announcement) = formation::Announcement::decode(data) {
        check_round_trip(&announcement, formation::Announcement::encode, formation::Announcement::decode);
    }
}

/// The messages that carry a snapshot, and what the two ends make of any sequence of them.
pub fn snapshot_chunk(data: &[u8]) {
    let decode = |bytes: &[u8]| TransferMessage::decode(&Bytes::copy_from_slice(bytes));
    let _ = decode(data);
    let mut input = Input(data);
    let mut now = Monotonic(input.number() % (1 << 40));
    let (mut incoming, mut outgoing): (Option<Incoming>, Option<Outgoing>) = (None, None);
    for part in input.parts() {
        let Some((step, body)) = part.split_first() else { continue };
        now = Monotonic(now.0 + u64::from(*step) * 100_000_000);
        let sealed = [body, &crc32c::crc32c(body).to_le_bytes()].concat();
        let Ok(message) = decode(&sealed) else { continue };
        // The reason of a refusal is read leniently and may be cut when it is written again.
        let message = decode(&message.encode()).expect("what was encoded decodes");
        check_round_trip(&message, TransferMessage::encode, decode);
        receive(&mut incoming, &message, now);
        if let (TransferMessage::Offer(offer), None) = (&message, &outgoing) {
            outgoing = Outgoing::new(offer.clone(), now).ok();
        }
        let Some(outgoing) = &mut outgoing else { continue };
        outgoing.on_message(&message, now);
        if outgoing.on_time(now) {
            outgoing.offer_sent(now);
        }
        // Several windows, so that what comes after a full one is seen.
        for _ in 0..20 {
            let Some(place) = outgoing.next_chunk() else { break };
            let size = outgoing.offer().files[place.file as usize].size;
            assert!((1..=transfer::CHUNK_BYTES_MAX).contains(&place.length), "{place:?}");
            assert!(place.offset + place.length as u64 <= size, "{place:?} of {size} bytes");
            outgoing.chunk_sent(place);
        }
    }
}

fn receive(incoming: &mut Option<Incoming>, message: &TransferMessage, now: Monotonic) {
    match message {
        TransferMessage::Offer(offer) => match transfer::on_offer(incoming.as_ref(), NodeId(2), offer, now) {
            OfferOutcome::Begin => *incoming = Some(Incoming::new(NodeId(2), offer.clone(), now)),
            OfferOutcome::GoOn => {
                let current = incoming.as_mut().expect("there is one to go on with");
                current.adopt(NodeId(3), offer.clone(), now);
                current.want();
            }
            OfferOutcome::Refuse(_) => {}
        },
        TransferMessage::Chunk { file, offset, data, .. } => {
            let Some(incoming) = incoming else { return };
            let missing = incoming.missing();
            match incoming.on_chunk(*file, *offset, data, now) {
                ChunkOutcome::Write { .. } => {
                    let size = incoming.file(*file).expect("only files of the offer are written").size;
                    assert!(offset + data.len() as u64 <= size);
                    assert_eq!(incoming.missing(), missing - data.len() as u64);
                    incoming.written();
                }
                // A file whose checksum is wrong is asked for again from its beginning.
                ChunkOutcome::Answer(_) => assert!(incoming.missing() >= missing),
                ChunkOutcome::Failed => {}
            }
        }
        _ => {}
    }
    if let Some(incoming) = incoming {
        let _ = incoming.is_abandoned(now);
    }
}

// ---- the log and the state ----------------------------------------------------------------------------

/// An entry as it was decoded.
#[derive(Debug, PartialEq)]
struct Entry {
    stamps: Stamps,
    batches: Vec<(Option<SessionStamp>, Batch)>,
    /// The items as they show themselves: they borrow from the entry and cannot be compared.
    shown: String,
    /// One of its commands would make a string of many megabytes, which takes time and proves nothing.
    is_huge: bool,
}

fn is_huge(words: &[&[u8]]) -> bool {
    let is_setrange = words.first().is_some_and(|name| name.eq_ignore_ascii_case(b"setrange"));
    let offset = words.get(2).and_then(|offset| parse_i64(offset)).unwrap_or(0);
    is_setrange && (1 << 16..1 << 30).contains(&offset)
}

/// Decodes an entry. `None` in place of a batch's twin: it holds an item that no `push_` function makes.
fn decode_entry(data: &[u8]) -> Result<Option<Entry>, CodecError> {
    let (stamps, mut reader) = entry::decode_stamps(data)?;
    let mut decoded = Entry { stamps, batches: Vec::new(), shown: String::new(), is_huge: false };
    let mut is_plain = true;
    while let Some(head) = entry::decode_batch_head(&mut reader)? {
        let (count, session) = (head.count, head.session);
        let mut batch = Batch::new(head.user);
        if let Some((client, address)) = head.client {
            batch.name_client(client, address);
        }
        for _ in 0..count {
            let mut skipped = reader;
            let skip = entry::skip_item(&mut skipped);
            let item = entry::decode_item(&mut reader);
            assert_eq!(skip.is_ok(), item.is_ok(), "skipping fails where decoding does");
            let item = item?;
            assert_eq!(skipped.rest().len(), reader.rest().len(), "skipping ends where decoding does");
            decoded.shown.push_str(&format!("{item:?}\n"));
            decoded.is_huge |= match &item {
                Item::Command { words, .. } => is_huge(words),
                Item::Transaction { commands, .. } => commands.iter().any(|(_, words)| is_huge(words)),
                _ => false,
            };
            is_plain &= push_item(&mut batch, &item);
        }
        decoded.batches.push((session, batch));
    }
    Ok(is_plain.then_some(decoded))
}

/// Puts an item into a batch again; false for an EXPIRE that names keys of several databases.
fn push_item(batch: &mut Batch, item: &Item<'_>) -> bool {
    match item {
        Item::Command { db, words } => batch.push_command(*db, words.iter().copied()),
        Item::Transaction { watched, commands, is_atomic } => {
            let watched: Vec<Watched> = watched
                .iter()
                .map(|(db, key, changed)| Watched { db: *db, key: (*key).into(), changed: *changed })
                .collect();
            let commands: Vec<Queued> = commands
                .iter()
                .map(|(db, words)| Queued {
                    db: *db,
                    args: words.iter().map(|word| Bytes::copy_from_slice(word)).collect(),
                })
                .collect();
            batch.push_transaction(&watched, &commands, *is_atomic);
        }
        Item::Expire { keys } => {
            let db = keys.first().map_or(0, |(db, _)| *db);
            if keys.iter().any(|(other, _)| *other != db) {
                return false;
            }
            batch.push_expire(db, keys.iter().map(|(_, key)| *key).collect::<Vec<_>>().into_iter());
        }
        Item::LeaderStart(start) => batch.push_leader_start(start),
        Item::Verify => batch.push_verify(),
        Item::AllocateReplica { node, nonce } => batch.push_allocate_replica(*node, *nonce),
        Item::Cancel { claims } => batch.push_cancel(claims),
        Item::TakeBack { db, owner, grants } => {
            batch.push_take_back(*db, owner, grants.iter().copied());
        }
        Item::EndClaims { node, life } => batch.push_end_claims(*node, *life),
        Item::Confirm { claims } => batch.push_confirm(claims),
    }
    true
}

fn encode_entry(decoded: &Entry) -> Vec<u8> {
    entry::encode_entry(&decoded.stamps, decoded.batches.iter().map(|(session, batch)| (*session, batch)))
}

/// Entries of the log: what is read is what was written.
pub fn log_entry(data: &[u8]) {
    if let Ok(batch) = Batch::from_bytes(data) {
        check_round_trip(&batch, Batch::to_bytes, Batch::from_bytes);
    }
    let Ok(Some(decoded)) = decode_entry(data) else { return };
    let bytes = encode_entry(&decoded);
    let again = decode_entry(&bytes).expect("what was encoded decodes").expect("it was plain before");
    assert!(again == decoded, "{decoded:?} came back as {again:?}");
    assert_eq!(encode_entry(&again), bytes);
}

/// Any sequence of entries that decode can be applied, and two replicas come to the same.
pub fn log_apply(data: &[u8]) {
    let mut replicas = [State::new(16), State::new(16)];
    for (index, part) in (1..).zip(Input(data).parts()) {
        // Half of a part's bytes would be spent on finding the version.
        let mut bytes = vec![entry::ENTRY_VERSION];
        bytes.extend_from_slice(part);
        let Ok(decoded) = decode_entry(&bytes) else { continue };
        if decoded.is_none_or(|decoded| decoded.is_huge) {
            continue;
        }
        apply_to_both(&mut replicas, index, &bytes);
    }
    check_replicas(&mut replicas);
}

fn apply_to_both(replicas: &mut [State; 2], index: u64, bytes: &[u8]) -> Vec<Reply> {
    let [first, second] = replicas;
    let apply = |state: &mut State| {
        let applied = apply::apply_entry(state, LogIndex(index), Term(1), bytes);
        applied.unwrap_or_else(|error| panic!("an entry that decodes was refused: {error}"))
    };
    let applied = apply(first);
    let again = apply(second);
    // By their text, since a double that is no number is not equal to itself.
    assert_eq!(format!("{applied:?}"), format!("{again:?}"));
    let done = |outcome: BatchOutcome| match outcome {
        BatchOutcome::Done(replies) => replies,
        _ => Vec::new(),
    };
    applied.outcomes.into_iter().flat_map(done).collect()
}

fn check_replicas(replicas: &mut [State; 2]) {
    assert_eq!(replicas[0].digest(), replicas[1].digest());
    for state in replicas {
        let digest = state.digest();
        let _ = state.earliest_deadline();
        drop(state.take_changes().into_batch());
        assert_eq!(state.digest(), digest, "a flush changes nothing");
        // Whatever is left can end.
        while state.expire_due(ClusterTime(u64::MAX - 1)) > 0 {}
    }
}

/// Words that commands know, and values at the edges of what they take.
pub const WORDS: &[&str] = &[
    "a",
    "b",
    "c",
    "",
    "0",
    "1",
    "-1",
    "2",
    "3",
    "10",
    "100",
    "1000",
    "60000",
    "86400000",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "1.5",
    "1e400",
    "-inf",
    "nan",
    "0x10",
    "NX",
    "XX",
    "GT",
    "LT",
    "EX",
    "PX",
    "EXAT",
    "PXAT",
    "KEEPTTL",
    "PERSIST",
    "GET",
    "IFEQ",
    "IFNE",
    "MATCH",
    "COUNT",
    "TYPE",
    "DB",
    "REPLACE",
    "FROM",
    "LEASE",
    "NOACK",
    "TOKEN",
    "KEYS",
    "READY",
    "LEASED",
    "DEAD",
    "ALL",
    "ASYNC",
    "SAMPLES",
    "*",
    "[a-",
    "?",
    "string",
    "lock",
    "queue",
    "help",
    "1-0:1",
    "1-1:1",
    "2-0:1",
    "1-0",
    "\u{e9}",
    "me",
    "ID",
    "PRIORITY",
    "DELAY",
    "GROUP",
    "MAXLEN",
    "BLOCK",
    "CONSUMER",
    "WITHMETA",
    "SILENT",
    "FAIL",
    "FATAL",
    "REASON",
    "IDS",
    "STATE",
    "CURSOR",
    "TO",
    "DELAYED",
    "FULL",
    "MAXDELIVER",
    "BACKOFF",
    "DEADLETTER",
    "DEDUP",
    "MAXBYTES",
    "MAXLEASED",
    "AGING",
    "RETAIN",
    "PAUSE",
    "out",
    "TTL",
    "2-0",
    "1-0:2",
    "2-0:2",
    "1-1",
    "5 50 2 20",
];

/// Any words to any command of the table: no panic, a reply that can be sent and kept, and replicas that agree.
pub fn commands(data: &[u8]) {
    let specs: Vec<&CommandSpec> = table::all().collect();
    let mut input = Input(data);
    let mut replicas = [State::new(16), State::new(16)];
    let (mut clock, mut index) = (0u64, 0u64);
    while !input.is_empty() {
        index += 1;
        clock += [0, 1, 100, 5_000][usize::from(input.byte() % 4)];
        let stamps = Stamps { clock: ClusterTime(clock), wall: WallMillis(1 << 40 | clock), seed: index };
        let mut batch = Batch::new(b"default");
        let mut queued = Vec::new();
        let (count, is_transaction) = (1 + input.byte() % 3, input.byte() % 8 == 0);
        for _ in 0..count {
            let (db, words) = (input.byte() % 3, command_words(&specs, &mut input));
            let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
            if is_huge(&words) {
                continue;
            }
            if is_transaction {
                queued.push(Queued {
                    db,
                    args: words.iter().map(|word| Bytes::copy_from_slice(word)).collect(),
                });
            } else {
                batch.push_command(db, words.into_iter());
            }
        }
        if is_transaction {
            batch.push_transaction(&[], &queued, index.is_multiple_of(2));
        }
        let bytes = entry::encode_entry(&stamps, [(None, &batch)].into_iter());
        let replies = apply_to_both(&mut replicas, index, &bytes);
        assert_eq!(replies.len(), batch.len());
        replies.iter().for_each(check_reply);
    }
    check_replicas(&mut replicas);
}

fn command_words(specs: &[&CommandSpec], input: &mut Input<'_>) -> Vec<Vec<u8>> {
    let spec = specs[usize::from(input.byte()) % specs.len()];
    let mut words = vec![spec.name.as_bytes().to_vec()];
    if !spec.subcommands.is_empty() {
        words.push(spec.subcommands[usize::from(input.byte()) % spec.subcommands.len()].name.into());
    }
    for _ in 0..input.byte() % 8 {
        let choice = usize::from(input.byte());
        words.push(WORDS.get(choice).map_or_else(|| input.bytes().to_vec(), |word| word.as_bytes().to_vec()));
    }
    words
}

fn check_reply(reply: &Reply) {
    check_rendered(reply);
    if let Reply::Error(text) = reply {
        let code = text.split(' ').next().unwrap_or_default();
        assert!(
            !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_uppercase()),
            "{text:?} has a code"
        );
    }
    let mut bytes = Vec::new();
    reply_codec::encode_replies(std::slice::from_ref(reply), &mut bytes);
    let again = reply_codec::decode_replies(&bytes).expect("what was encoded decodes");
    assert_eq!(format!("{:?}", [reply]), format!("{again:?}"));
}

/// The row that says who replicates the group.
pub fn membership(data: &[u8]) {
    let Ok(membership) = Membership::decode(data) else { return };
    let encode = |membership: &Membership| {
        let mut out = Vec::new();
        membership.encode(&mut out);
        out
    };
    check_round_trip(&membership, encode, Membership::decode);
    let mut replicas = [State::new(16), State::new(16)];
    for state in &mut replicas {
        apply::apply_membership(state, LogIndex(1), Term(1), membership.clone());
        let next = state.membership().next_replica;
        let nonce = membership.allocated.get(&NodeId(7)).map_or(1, |(nonce, _)| nonce.wrapping_add(1));
        let replica = state.allocate_replica(NodeId(7), nonce);
        assert!(replica.is_none_or(|replica| replica >= next), "no replica id is given out twice");
        let _ = (state.membership().replica_of(NodeId(1)), state.membership().node_of(1));
        apply::apply_membership(state, LogIndex(2), Term(1), Membership::default());
        drop(state.take_changes().into_batch());
    }
    assert_eq!(replicas[0].digest(), replicas[1].digest());
}

// ---- files --------------------------------------------------------------------------------------------

/// A directory of this thread, removed at the end of the input.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let thread = format!("{:?}", std::thread::current().id());
        let thread: String = thread.chars().filter(char::is_ascii_digit).collect();
        let name = format!("holdfast-fuzz-{name}-{}-{thread}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("the directory for temporary files can be written");
        Scratch(path)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).expect("the directory for temporary files can be written");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The file that knows what this node synced: any bytes are read or refused, and what is written is read.
pub fn watermark(data: &[u8]) {
    const SLOT: usize = 60;
    const SLOTS: [usize; 2] = [0, 2048];
    let scratch = Scratch::new("watermark");
    let mut input = Input(data);
    let (choice, term, index) = (input.byte(), Term(input.small()), LogIndex(input.small()));
    let mut file = vec![0; 4096];
    for (slot, offset) in SLOTS.into_iter().enumerate() {
        let bytes = input.take(SLOT);
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        if choice >> slot & 1 == 1 {
            file[offset..offset + 8].copy_from_slice(b"HFWATER1");
            // No node writes so often that the generation overflows.
            file[offset + 15] = 0;
            file[offset + 32..offset + SLOT].fill(0);
        }
        if choice >> (2 + slot) & 1 == 1 {
            let crc = crc32c::crc32c(&file[offset..offset + SLOT]);
            file[offset + SLOT..offset + SLOT + 4].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let rest = input.take(4096);
    if choice >> 4 & 1 == 1 {
        let start = usize::from(choice) * 16;
        let end = (start + rest.len()).min(file.len());
        file[start..end].copy_from_slice(&rest[..end - start]);
    }
    scratch.write("WATERMARK", &file);
    let open = || Watermark::open(&scratch.0);
    let Ok(mut mark) = open() else { return };
    let before = mark.get();
    mark.advance(term, index).expect("the file can be written");
    let after = before.max(Some((term, index)));
    assert_eq!(mark.get(), after);
    assert_eq!(open().expect("it was just written").get(), after);
    let check = mark.check((term, index));
    assert_eq!(check.is_ok(), after <= Some((term, index)));
    // Taking it back waits for the disk, so not every input does.
    if choice >= 240 {
        mark.lower(Term(0), LogIndex(1)).expect("the file can be written");
        assert_eq!(open().expect("it was just written").get(), mark.get());
        assert!(mark.get() <= Some((Term(0), LogIndex(1))));
    }
}

/// Configuration files and the words of single directives.
pub fn config_file(data: &[u8]) {
    for line in data.split(|byte| *byte == b'\n').filter_map(|line| str::from_utf8(line).ok()) {
        let word = line.trim_end_matches('\r');
        let quoted = parse::quote(word);
        assert!(!quoted.contains('\n'));
        assert_eq!(parse::split_words(&quoted), Ok(vec![word.to_owned()]), "{quoted:?}");
        let Ok(words) = parse::split_words(line) else { continue };
        let Some((name, given)) = words.split_first() else { continue };
        let named = DIRECTIVES.iter().find(|directive| directive.name.eq_ignore_ascii_case(name));
        for directive in named.into_iter().chain(DIRECTIVES.iter().step_by(7)) {
            let default = directive.default_value();
            let Ok(value) = directive.kind.parse(given, &default) else { continue };
            let lines = value.file_lines(directive.kind);
            // Several lines say it together: those of a class of limits, or those that add up.
            let mut again = default;
            let mut all: Vec<String> = Vec::new();
            for line in &lines {
                let words = parse::split_words(line).expect("a line that was written can be read");
                all.extend(words.iter().cloned());
                again = directive.kind.parse(&words, &again).expect("a value that was written can be read");
            }
            if lines.len() > 1 && !matches!(value, parse::Value::Limits(_)) {
                again = directive.kind.parse(&all, &again).expect("a value that was written can be read");
            }
            assert_eq!(again, value, "{} {lines:?}", directive.name);
        }
    }
    // An include may name any file of this machine.
    let text = String::from_utf8_lossy(data).to_ascii_lowercase();
    if text.contains("include") || text.contains('\\') {
        return;
    }
    let scratch = Scratch::new("config");
    let path = scratch.write("holdfast.conf", data);
    let path = path.to_str().expect("the path is text").to_owned();
    match Config::load(std::slice::from_ref(&path)) {
        Ok(loaded) => assert!(!format!("{:?}", loaded.config).is_empty()),
        Err(error) => assert_eq!(error.to_string().lines().count(), 1, "an error is one line: {error}"),
    }
}

// ---- pure functions -----------------------------------------------------------------------------------

/// Patterns: the same verdict as a plain dynamic program, and an end. The bound of the work is that of the input: a
/// matcher that tries all ways never comes back from 500 bytes.
pub fn glob(data: &[u8]) {
    const SIDE_MAX: usize = 64;
    let mut input = Input(data);
    let nocase = input.byte() % 2 == 1;
    let pattern_length = usize::from(input.byte()) | usize::from(input.byte()) << 8;
    let pattern = input.take(pattern_length.min(8 << 10));
    let text = input.take(8 << 10);
    let found = glob::matches(pattern, text, nocase);
    if pattern.len() <= SIDE_MAX && text.len() <= SIDE_MAX {
        assert_eq!(found, glob_model(pattern, text, nocase), "{pattern:?} {text:?} {nocase}");
    }
    if !pattern.iter().any(|byte| b"*?[\\".contains(byte)) {
        let is_same = if nocase { pattern.eq_ignore_ascii_case(text) } else { pattern == text };
        assert_eq!(found, is_same, "{pattern:?} {text:?}");
    }
}

/// Whether every suffix of the text matches every suffix of the pattern, from the shortest on.
fn glob_model(pattern: &[u8], text: &[u8], nocase: bool) -> bool {
    let (rows, columns) = (pattern.len() + 1, text.len() + 1);
    let mut is_match = vec![vec![false; columns]; rows];
    let stars = |at: usize| pattern[at..].iter().take_while(|byte| **byte == b'*').count();
    for p in (0..rows).rev() {
        for t in (0..columns).rev() {
            is_match[p][t] = match (pattern.get(p), text.get(t)) {
                (None, None) => true,
                (None, Some(_)) | (Some(_), None) => false,
                (Some(b'*'), Some(_)) => {
                    let rest = p + stars(p);
                    rest == pattern.len() || (t..text.len()).any(|t| is_match[rest][t])
                }
                (Some(_), Some(&byte)) => match glob_one(&pattern[p..], byte, nocase) {
                    // Once the text is used up, stars that follow are nothing; before, an empty text matches none.
                    Some(taken) if t + 1 == text.len() => p + taken + stars(p + taken) == pattern.len(),
                    Some(taken) => is_match[p + taken][t + 1],
                    None => false,
                },
            };
        }
    }
    is_match[0][0]
}

/// How many bytes of the pattern match this one byte; `None` when they do not. The pattern begins with no star.
fn glob_one(pattern: &[u8], byte: u8, nocase: bool) -> Option<usize> {
    let fold = |byte: u8| if nocase { byte.to_ascii_lowercase() } else { byte };
    match pattern {
        [b'?', ..] => Some(1),
        [b'[', ..] => {
            let is_negated = pattern.get(1) == Some(&b'^');
            let (mut at, mut is_in) = (1 + usize::from(is_negated), false);
            while at < pattern.len() && pattern[at] != b']' {
                match pattern[at..] {
                    [b'\\', literal, ..] => {
                        is_in |= literal == byte;
                        at += 2;
                    }
                    [start, b'-', end, ..] => {
                        let (start, end) = (start as i8, end as i8);
                        let (low, high) = (start.min(end) as u8, start.max(end) as u8);
                        let (low, high, byte) = (fold(low) as i8, fold(high) as i8, fold(byte) as i8);
                        is_in |= low <= byte && byte <= high;
                        at += 3;
                    }
                    _ => {
                        is_in |= fold(pattern[at]) == fold(byte);
                        at += 1;
                    }
                }
            }
            (is_in != is_negated).then_some((at + 1).min(pattern.len()))
        }
        [b'\\', literal, ..] => (fold(*literal) == fold(byte)).then_some(2),
        [literal, ..] => (fold(*literal) == fold(byte)).then_some(1),
        [] => None,
    }
}

/// INCRBYFLOAT's numbers: close to the machine's own, and with the laws of addition.
pub fn long_double(data: &[u8]) {
    let cut = data.iter().position(|byte| *byte == b' ').unwrap_or(data.len());
    let numbers = [&data[..cut], data.get(cut + 1..).unwrap_or_default()].map(LongDouble::parse);
    for (number, text) in numbers.iter().zip([&data[..cut], data.get(cut + 1..).unwrap_or_default()]) {
        let Some(number) = *number else { continue };
        check_number(number, text);
    }
    let [Some(left), Some(right)] = numbers else { return };
    // As they are printed: zeros of different signs add up to one of either sign.
    let print = |sum: Option<LongDouble>| sum.map(LongDouble::format);
    assert_eq!(print(left.plus(right)), print(right.plus(left)), "{left:?} + {right:?}");
    if let Some(text) = left.plus(right).and_then(LongDouble::format) {
        assert!(!text.is_empty() && text != "-0");
        let (a, b, sum) = (to_f64(left), to_f64(right), text.parse::<f64>());
        let sum = sum.expect("what is printed is a number");
        // The text has 17 decimals, the machine's sum 53 bits.
        let tolerance = 1e-16 + (a.abs() + b.abs()) * 4.0 * f64::EPSILON;
        assert!((sum - (a + b)).abs() <= tolerance || !(a + b).is_finite(), "{left:?} + {right:?} = {text}");
    }
}

fn check_number(number: LongDouble, text: &[u8]) {
    let LongDouble::Finite { negative, significand, exponent } = number else {
        assert_eq!(number.format(), None);
        return;
    };
    let theirs: f64 = str::from_utf8(text).expect("a number is ASCII").parse().expect("Rust reads it too");
    let ours = to_f64(number);
    let tolerance = (theirs.abs() * 2.0 * f64::EPSILON).max(f64::from_bits(2));
    assert!((ours - theirs).abs() <= tolerance || ours == theirs, "{text:?}: {ours:e} {theirs:e}");
    let printed = number.format().expect("it is finite");
    let read = LongDouble::parse(printed.as_bytes()).expect("what is printed can be read");
    assert_eq!(read.format().as_ref(), Some(&printed), "printed, read and printed again");
    assert_eq!(number.plus(LongDouble::ZERO).and_then(LongDouble::format), Some(printed));
    let opposite = LongDouble::Finite { negative: !negative, significand, exponent };
    assert_eq!(number.plus(opposite).and_then(LongDouble::format).as_deref(), Some("0"));
}

/// The nearest `f64`, or one beside it.
fn to_f64(number: LongDouble) -> f64 {
    let LongDouble::Finite { negative, significand, exponent } = number else { return f64::INFINITY };
    // In two steps: the power alone may be out of range.
    let half = exponent / 2;
    let size = significand as f64 * 2f64.powi(half) * 2f64.powi(exponent - half);
    if negative { -size } else { size }
}
