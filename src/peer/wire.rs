//! Frames: how payloads of several channels share one stream of bytes. Pure.
//!
//! ```text
//! [length u32][crc32c u32 of all that follows] [version u8][channel u8][flags u8][FIRST: total u32] chunk
//!  of all that follows the checksum            little endian; a chunk is at most 32 KiB
//!
//! a channel's payload:  none ──FIRST──► growing ──LAST──► whole     FIRST and LAST together: whole at once
//! ```
//! Chunks of different channels interleave, so that a heartbeat waits for one chunk and not for a large
//! entry. Whatever breaks these rules ends the connection: after it, nothing in the stream can be believed.

use std::collections::VecDeque;

use bytes::Buf;
use bytes::Bytes;
use bytes::BytesMut;
use thiserror::Error;

use crate::peer::Channel;
use crate::peer::SendError;

/// Frame versions that this node understands, lowest and highest.
pub const VERSION_MIN: u8 = 2;
pub const VERSION_MAX: u8 = 2;

/// Payload bytes in one frame.
pub const CHUNK_MAX: usize = 32 << 10;
/// Length and checksum.
const PREFIX: usize = 8;
/// Version, channel and flags.
const FIXED: usize = 3;
/// The total length, in a first frame.
const TOTAL: usize = 4;
const BODY_MAX: usize = FIXED + TOTAL + CHUNK_MAX;
/// What `Outbox::fill` brings together for one write: two full frames.
pub const OUTPUT_MAX: usize = 2 * (PREFIX + BODY_MAX);

const FIRST: u8 = 1;
const LAST: u8 = 2;

/// What a queued payload costs beside its bytes, so that a queue of empty payloads is bounded too.
const PAYLOAD_COST: usize = 32;
/// Bytes after which a payload has shown that it comes, and what it is given room for then.
const HAS_BEGUN: usize = 1 << 20;
const ROOM_MAX: usize = 128 << 20;
/// Room a payload gets before it has shown that it is as long as it says.
const GROW_MIN: usize = 256 << 10;

/// A violation of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    #[error("a frame of {0} bytes")]
    Length(u32),
    #[error("a wrong checksum")]
    Checksum,
    #[error("frame version {0}")]
    Version(u8),
    #[error("channel {0}")]
    Channel(u8),
    #[error("flags {0:#04x}")]
    Flags(u8),
    #[error("a payload of {total} bytes on channel {channel:?}")]
    TooLarge { channel: Channel, total: u32 },
    #[error("a chunk of no payload on channel {0:?}")]
    NotBegun(Channel),
    #[error("a payload within another on channel {0:?}")]
    NotEnded(Channel),
    #[error("a payload on channel {0:?} that is not as long as announced")]
    NotAsAnnounced(Channel),
    #[error("a control message of kind {0:?}")]
    ControlKind(Option<u8>),
}

/// What waits to be sent on one link.
#[derive(Debug, Default)]
pub struct Outbox {
    queues: [Queue; 4],
}

#[derive(Debug, Default)]
struct Queue {
    payloads: VecDeque<Vec<u8>>,
    /// Bytes of the front payload that are in frames already.
    framed: usize,
    /// Bytes that are not, and `PAYLOAD_COST` a payload.
    cost: usize,
}

impl Outbox {
    /// Queues a payload; `Full` if it is too large for its channel, or does not fit behind what is queued.
    pub fn push(&mut self, channel: Channel, payload: Vec<u8>) -> Result<(), SendError> {
        let queue = &mut self.queues[channel as usize];
        let cost = payload.len() + PAYLOAD_COST;
        let is_full = !queue.payloads.is_empty() && queue.cost + cost > channel.queue_max();
        if is_full || payload.len() > channel.payload_max() {
            return Err(SendError::Full);
        }
        queue.cost += cost;
        queue.payloads.push_back(payload);
        Ok(())
    }

    /// Appends the next frames by priority, until `out` has `OUTPUT_MAX` bytes or nothing is left.
    pub fn fill(&mut self, out: &mut Vec<u8>) {
        for channel in Channel::ALL {
            let queue = &mut self.queues[channel as usize];
            while let Some(payload) = queue.payloads.front() {
                let rest = &payload[queue.framed..];
                let chunk = &rest[..rest.len().min(CHUNK_MAX)];
                if out.len() + PREFIX + FIXED + TOTAL + chunk.len() > OUTPUT_MAX {
                    return;
                }
                let is_last = chunk.len() == rest.len();
                let total = (queue.framed == 0).then_some(payload.len());
                put_frame(out, channel, total, is_last, chunk);
                queue.framed += chunk.len();
                queue.cost -= chunk.len();
                if is_last {
                    queue.payloads.pop_front();
                    queue.framed = 0;
                    queue.cost -= PAYLOAD_COST;
                }
            }
        }
    }

    /// Payload bytes that are in no frame yet.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.queues.iter().map(|queue| queue.cost - queue.payloads.len() * PAYLOAD_COST).sum()
    }
}

fn put_frame(out: &mut Vec<u8>, channel: Channel, total: Option<usize>, is_last: bool, chunk: &[u8]) {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX]);
    let first = if total.is_some() { FIRST } else { 0 };
    let last = if is_last { LAST } else { 0 };
    out.extend_from_slice(&[VERSION_MAX, channel as u8, first | last]);
    if let Some(total) = total {
        let total = u32::try_from(total).expect("a payload is at most 1 GiB long");
        out.extend_from_slice(&total.to_le_bytes());
    }
    out.extend_from_slice(chunk);
    let body = start + PREFIX;
    let length = u32::try_from(out.len() - body).expect("a frame is little more than 32 KiB long");
    let crc = crc32c::crc32c(&out[body..]);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..body].copy_from_slice(&crc.to_le_bytes());
}

/// Makes payloads whole again. After an error it is of no use any more.
#[derive(Debug, Default)]
pub struct Decoder {
    growing: [Option<Growing>; 4],
}

#[derive(Debug)]
struct Growing {
    total: usize,
    bytes: Vec<u8>,
}

struct Frame {
    channel: Channel,
    total: Option<u32>,
    is_last: bool,
    chunk: BytesMut,
}

impl Decoder {
    /// Takes frames off the front of `buffer` until a payload is whole; `None` when more bytes are needed.
    pub fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<(Channel, Bytes)>, WireError> {
        while let Some(frame) = next_frame(buffer)? {
            let channel = frame.channel;
            if let Some(payload) = self.take(frame)? {
                return Ok(Some((channel, payload)));
            }
        }
        Ok(None)
    }

    fn take(&mut self, frame: Frame) -> Result<Option<Bytes>, WireError> {
        let Frame { channel, total, is_last, chunk } = frame;
        let growing = &mut self.growing[channel as usize];
        if let Some(total) = total {
            if growing.is_some() {
                return Err(WireError::NotEnded(channel));
            }
            let length = total as usize;
            if length > channel.payload_max() {
                return Err(WireError::TooLarge { channel, total });
            }
            if is_last && chunk.len() == length {
                return Ok(Some(chunk.freeze()));
            }
            *growing = Some(Growing { total: length, bytes: Vec::new() });
        }
        let payload = growing.as_mut().ok_or(WireError::NotBegun(channel))?;
        // An empty chunk would bring a payload no further.
        let missing = payload.total - payload.bytes.len();
        if chunk.is_empty() || chunk.len() > missing || is_last != (chunk.len() == missing) {
            return Err(WireError::NotAsAnnounced(channel));
        }
        payload.extend(&chunk);
        Ok(if is_last { growing.take().map(|whole| Bytes::from(whole.bytes)) } else { None })
    }
}

impl Growing {
    /// Memory grows with what has arrived, at most twofold, and not beyond what was announced. What has begun to come
    /// gets room at once, so that it is not copied again and again as it grows.
    fn extend(&mut self, chunk: &[u8]) {
        if self.bytes.capacity() - self.bytes.len() < chunk.len() {
            let missing = self.total - self.bytes.len();
            let has_begun = self.bytes.len() >= HAS_BEGUN && missing <= ROOM_MAX;
            let room = if has_begun { missing } else { self.bytes.len().max(GROW_MIN) };
            self.bytes.reserve_exact(room.min(missing).max(chunk.len()));
        }
        self.bytes.extend_from_slice(chunk);
    }
}

fn next_frame(buffer: &mut BytesMut) -> Result<Option<Frame>, WireError> {
    let Some(&[l0, l1, l2, l3, c0, c1, c2, c3]) = buffer.first_chunk::<PREFIX>() else { return Ok(None) };
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    let body_length = length as usize;
    if !(FIXED..=BODY_MAX).contains(&body_length) {
        return Err(WireError::Length(length));
    }
    if buffer.len() < PREFIX + body_length {
        return Ok(None);
    }
    buffer.advance(PREFIX);
    let mut body = buffer.split_to(body_length);
    if crc32c::crc32c(&body) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(WireError::Checksum);
    }
    let (version, channel, flags) = (body.get_u8(), body.get_u8(), body.get_u8());
    if !(VERSION_MIN..=VERSION_MAX).contains(&version) {
        return Err(WireError::Version(version));
    }
    let channel = Channel::ALL.get(usize::from(channel)).copied().ok_or(WireError::Channel(channel))?;
    if flags & !(FIRST | LAST) != 0 {
        return Err(WireError::Flags(flags));
    }
    let total = match flags & FIRST {
        0 => None,
        _ => Some(body.try_get_u32_le().map_err(|_| WireError::Length(length))?),
    };
    // A frame without a total is shorter by it.
    if body.len() > CHUNK_MAX {
        return Err(WireError::Length(length));
    }
    Ok(Some(Frame { channel, total, is_last: flags & LAST != 0, chunk: body }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::Strategy;
    use proptest::prelude::any;
    use proptest::prop_oneof;
    use proptest::proptest;

    fn payload(seed: usize, length: usize) -> Vec<u8> {
        (0..length)
            .map(|at| (at.wrapping_mul(31).wrapping_add(at >> 8).wrapping_add(seed * 7)) as u8)
            .collect()
    }

    fn stream_of(payloads: &[(Channel, Vec<u8>)]) -> BytesMut {
        let mut outbox = Outbox::default();
        let mut stream = BytesMut::new();
        for (channel, payload) in payloads {
            outbox.push(*channel, payload.clone()).unwrap();
            drain(&mut outbox, &mut stream);
        }
        stream
    }

    fn drain(outbox: &mut Outbox, stream: &mut BytesMut) {
        loop {
            let mut out = Vec::new();
            outbox.fill(&mut out);
            if out.is_empty() {
                return;
            }
            stream.extend_from_slice(&out);
        }
    }

    /// Everything that can be had, and the error that ended it.
    fn decode(stream: &[u8]) -> (Vec<(Channel, Bytes)>, Option<WireError>) {
        let mut decoder = Decoder::default();
        let mut buffer = BytesMut::from(stream);
        let mut whole = Vec::new();
        loop {
            match decoder.next(&mut buffer) {
                Ok(Some(payload)) => whole.push(payload),
                Ok(None) => return (whole, None),
                Err(error) => return (whole, Some(error)),
            }
        }
    }

    /// A frame with a right checksum, whatever is in it.
    fn frame(body: &[u8]) -> Vec<u8> {
        let mut frame = (body.len() as u32).to_le_bytes().to_vec();
        frame.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
        frame.extend_from_slice(body);
        frame
    }

    fn lengths() -> impl Strategy<Value = usize> {
        prop_oneof![0..200usize, 30_000..34_000usize, 0..140_000usize]
    }

    proptest! {
        #[test]
        fn payloads_come_out_whole_and_in_order_however_they_are_cut(
            sends in vec((0..4usize, lengths(), any::<bool>()), 1..40),
            cuts in vec(1..50_000usize, 1..20),
        ) {
            let mut outbox = Outbox::default();
            let mut stream = Vec::new();
            let mut sent: [Vec<Vec<u8>>; 4] = Default::default();
            for (at, (channel, length, is_filled)) in sends.into_iter().enumerate() {
                let channel = Channel::ALL[channel];
                let payload = payload(at, length.min(channel.payload_max()));
                match outbox.push(channel, payload.clone()) {
                    Ok(()) => sent[channel as usize].push(payload),
                    Err(error) => assert_eq!((error, channel), (SendError::Full, Channel::Control)),
                }
                if is_filled {
                    let mut out = Vec::new();
                    outbox.fill(&mut out);
                    stream.extend_from_slice(&out);
                }
            }
            let mut rest = BytesMut::new();
            drain(&mut outbox, &mut rest);
            stream.extend_from_slice(&rest);
            assert_eq!(outbox.bytes(), 0);

            let mut decoder = Decoder::default();
            let mut received: [Vec<Vec<u8>>; 4] = Default::default();
            let mut buffer = BytesMut::new();
            let mut cuts = cuts.into_iter().cycle();
            while !stream.is_empty() {
                let cut = cuts.next().unwrap().min(stream.len());
                buffer.extend_from_slice(&stream[..cut]);
                stream.drain(..cut);
                while let Some((channel, payload)) = decoder.next(&mut buffer).unwrap() {
                    received[channel as usize].push(payload.to_vec());
                }
            }
            assert!(buffer.is_empty());
            assert!(sent == received);
        }

        #[test]
        fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..300), body in vec(any::<u8>(), 3..40)) {
            decode(&bytes);
            // With a right checksum the inner checks are reached.
            decode(&frame(&body));
        }
    }

    #[test]
    fn a_flipped_bit_costs_its_message_and_all_after_it_but_changes_none() {
        let first = (Channel::Raft, payload(1, 50));
        let second = (Channel::Request, payload(2, 40));
        let third = (Channel::Raft, payload(3, 70_000));
        let start = stream_of(std::slice::from_ref(&first)).len();
        let end = stream_of(&[first.clone(), second.clone()]).len();
        let stream = stream_of(&[first.clone(), second, third]);
        assert_eq!(decode(&stream).0.len(), 3);
        for bit in start * 8..end * 8 {
            let mut flipped = stream.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let (whole, _) = decode(&flipped);
            assert_eq!(whole, [(first.0, Bytes::from(first.1.clone()))], "bit {bit}");
        }
    }

    #[test]
    fn a_control_payload_goes_before_the_rest_of_a_large_entry() {
        let mut outbox = Outbox::default();
        outbox.push(Channel::Raft, payload(1, 10 << 20)).unwrap();
        let mut written = Vec::new();
        outbox.fill(&mut written);
        assert!(written.len() <= OUTPUT_MAX);
        outbox.push(Channel::Control, b"ping".to_vec()).unwrap();
        let mut next = Vec::new();
        outbox.fill(&mut next);
        let whole = decode(&next[..PREFIX + FIXED + TOTAL + 4]).0;
        assert_eq!(whole, [(Channel::Control, Bytes::from_static(b"ping"))]);
        // And the entry goes on behind it.
        let mut stream = BytesMut::from(&written[..]);
        stream.extend_from_slice(&next);
        drain(&mut outbox, &mut stream);
        assert_eq!(decode(&stream).0[1], (Channel::Raft, Bytes::from(payload(1, 10 << 20))));
    }

    #[test]
    fn a_queue_is_bounded_but_takes_one_payload_of_any_size() {
        for (channel, piece) in
            [(Channel::Control, 1000), (Channel::Control, 0), (Channel::Snapshot, 1 << 20)]
        {
            let mut outbox = Outbox::default();
            let mut count = 0;
            while outbox.push(channel, vec![0; piece]).is_ok() {
                count += 1;
            }
            let queued = count * (piece + PAYLOAD_COST);
            assert!(queued <= channel.queue_max() && queued + piece + PAYLOAD_COST > channel.queue_max());
        }
        let mut outbox = Outbox::default();
        outbox.push(Channel::Raft, vec![0; 65 << 20]).unwrap();
        assert_eq!(outbox.push(Channel::Raft, vec![0]), Err(SendError::Full));
        outbox.push(Channel::Request, vec![0]).unwrap();
        let too_large = vec![0; Channel::Snapshot.payload_max() + 1];
        assert_eq!(outbox.push(Channel::Snapshot, too_large), Err(SendError::Full));
    }

    #[test]
    fn violations_are_refused_by_name() {
        let raft = Channel::Raft;
        let long = [&[VERSION_MAX, 1, 0][..], &[0; CHUNK_MAX + 1]].concat();
        let cases: Vec<(Vec<u8>, WireError)> = vec![
            (vec![2, 0, 0, 0, 0, 0, 0, 0], WireError::Length(2)),
            (vec![0, 0, 0, 9, 0, 0, 0, 0], WireError::Length(9 << 24)),
            (frame(&long), WireError::Length(long.len() as u32)),
            (frame(&[VERSION_MAX, 1, FIRST, 0, 0, 0]), WireError::Length(6)),
            (frame(&[VERSION_MAX + 1, 1, FIRST | LAST, 0, 0, 0, 0]), WireError::Version(VERSION_MAX + 1)),
            (frame(&[VERSION_MAX, 4, FIRST | LAST, 0, 0, 0, 0]), WireError::Channel(4)),
            (frame(&[VERSION_MAX, 1, 7, 0, 0, 0, 0]), WireError::Flags(7)),
            (
                frame(&[VERSION_MAX, 0, FIRST, 1, 0, 1, 0, 9]),
                WireError::TooLarge { channel: Channel::Control, total: 65_537 },
            ),
            (frame(&[VERSION_MAX, 1, LAST, 9]), WireError::NotBegun(raft)),
            (
                [
                    frame(&[VERSION_MAX, 1, FIRST, 2, 0, 0, 0, 9]),
                    frame(&[VERSION_MAX, 1, FIRST, 2, 0, 0, 0, 9]),
                ]
                .concat(),
                WireError::NotEnded(raft),
            ),
            (frame(&[VERSION_MAX, 1, FIRST | LAST, 2, 0, 0, 0, 9]), WireError::NotAsAnnounced(raft)),
            (frame(&[VERSION_MAX, 1, FIRST, 1, 0, 0, 0, 9]), WireError::NotAsAnnounced(raft)),
            (frame(&[VERSION_MAX, 1, FIRST, 1, 0, 0, 0, 9, 9]), WireError::NotAsAnnounced(raft)),
            (frame(&[VERSION_MAX, 1, FIRST, 1, 0, 0, 0]), WireError::NotAsAnnounced(raft)),
        ];
        for (stream, error) in cases {
            assert_eq!(decode(&stream), (Vec::new(), Some(error)));
        }
    }

    #[test]
    fn an_announced_gigabyte_takes_memory_only_as_it_arrives() {
        let mut decoder = Decoder::default();
        let total = (1u32 << 30).to_le_bytes();
        let begin = [&[VERSION_MAX, 1, FIRST][..], &total, &[7; 1000]].concat();
        let mut buffer = BytesMut::from(&frame(&begin)[..]);
        assert_eq!(decoder.next(&mut buffer), Ok(None));
        let growing = decoder.growing[Channel::Raft as usize].as_ref().unwrap();
        assert!(growing.bytes.capacity() <= 2 * GROW_MIN, "{}", growing.bytes.capacity());
    }
}
