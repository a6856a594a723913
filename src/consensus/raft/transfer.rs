//! A snapshot's way from one node to another: the messages on `Channel::Snapshot`, and the two ends as pure
//! state machines. No I/O and no clock; `snapshot_io` is the thread around them.
//!
//! A snapshot is a list of files, sent as one row of bytes in the order of their names. The receiver leads: it
//! says where to begin (`Want`) and how far it has written (`Ack`), and takes nothing but the next byte.
//!
//! ```text
//! sender                                                receiver
//! Offered ──Want──► Streaming ──Finished──► Done        (Offer) ──► WaitingForData ──last byte──► Complete
//!    │                  │                                               │
//!    └──────────────────┴─Refused, 10 s without progress──► Failed      └─a checksum wrong 3 times──► Failed
//!
//!     Offer  ─────────────►                              Want    "send from here", also when something
//!            ◄───────────── Want                                 else came than the next byte
//!     Chunk  ─────────────►                              Ack     "everything before this is written"
//!     Chunk  ─────────────►                              Refused "no, and do not ask again"
//!            ◄───────────── Ack                          Offer   repeated every second without progress: the
//!            ◄───────────── Finished                             answer says where the receiver stands
//! ```
//!
//! One timer serves for every lost message: the sender repeats its Offer, and the receiver answers it with
//! what it last had to say. A new transfer of the same files goes on where the last one was cut off.

use bytes::Bytes;

use crate::storage::SnapshotFile;
use crate::storage::is_plain_name;
use crate::types::GroupId;
use crate::types::Monotonic;
use crate::types::NodeId;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_bytes;
use crate::types::codec::put_varint;

/// Bytes in one chunk at most.
pub const CHUNK_BYTES_MAX: usize = 128 << 10;
/// Bytes of the encoded raft message in an offer at most.
pub const MESSAGE_BYTES_MAX: usize = 8 << 10;
/// Files of a snapshot at most.
pub const FILES_MAX: usize = 4096;
/// Bytes of any encoded message at most. An offer with very many long names may not fit.
pub const ENCODED_BYTES_MAX: usize = 512 << 10;
/// Bytes of a refusal's reason at most; a longer one is cut.
pub const REASON_BYTES_MAX: usize = 256;

/// The first byte of every message.
const VERSION: u8 = 1;
/// Every message ends with the CRC-32C of all bytes before.
const CRC_LENGTH: usize = 4;
/// Bytes sent and not acknowledged at most.
const WINDOW_BYTES: u64 = 1 << 20;
/// A transfer that made no progress for so long has failed.
const NO_PROGRESS_MS: u64 = 10_000;
/// After so long without progress the offer is repeated.
const REPEAT_MS: u64 = 1_000;
/// A receiver keeps what it has of a snapshot for so long, for a sender that comes back.
const KEPT_MS: u64 = 300_000;
/// So often may files arrive with a wrong checksum before the receiver gives up.
const MISMATCHES_MAX: u32 = 3;
/// A sender repeats at most `REPEATS` times the snapshot and `REPEATED_BYTES`: a transfer ends in any case.
const REPEATS: u64 = 4;
const REPEATED_BYTES: u64 = 64 << 20;

/// What two nodes say to each other about a snapshot. `transfer` is the sender's number for it, which means
/// nothing without knowing who the sender is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransferMessage {
    /// Sender: this is what I have for you.
    Offer(Offer),
    /// Receiver: send from here. The place after the last byte is (number of files, 0).
    Want { transfer: u64, file: u32, offset: u64 },
    /// Sender: bytes of a file, 1 to [`CHUNK_BYTES_MAX`].
    Chunk { transfer: u64, file: u32, offset: u64, data: Bytes },
    /// Receiver: everything before this place is written (not synced yet).
    Ack { transfer: u64, file: u32, offset: u64 },
    /// Receiver: all files are whole and durable, and the raft message is delivered.
    Finished { transfer: u64 },
    /// Receiver: this transfer is over. The reason is for people.
    Refused { transfer: u64, reason: String },
}

/// A snapshot as it is announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The sender's number for this transfer, never used twice by its process.
    pub transfer: u64,
    pub group: GroupId,
    /// The replica that shall install it.
    pub to_replica: u64,
    /// The last entry that is in it.
    pub index: u64,
    pub term: u64,
    /// The encoded raft message, delivered when all files are there; at most [`MESSAGE_BYTES_MAX`].
    pub message: Vec<u8>,
    /// 1 to [`FILES_MAX`] files by name, each name once.
    pub files: Vec<SnapshotFile>,
}

impl Offer {
    /// Bytes of all files together; `None` when that is no number.
    fn total(&self) -> Option<u64> {
        self.files.iter().try_fold(0u64, |sum, file| sum.checked_add(file.size))
    }

    /// Why this must not be sent nor accepted, if so.
    fn check(&self) -> Result<(), CodecError> {
        if self.message.len() > MESSAGE_BYTES_MAX {
            return Err(CodecError("message too long"));
        }
        if !(1..=FILES_MAX).contains(&self.files.len()) {
            return Err(CodecError("number of files out of range"));
        }
        if !self.files.iter().all(|file| is_plain_name(&file.name)) {
            return Err(CodecError("not a plain file name"));
        }
        if !self.files.is_sorted_by(|a, b| a.name < b.name) {
            return Err(CodecError("files out of order"));
        }
        self.total().map(|_| ()).ok_or(CodecError("sizes out of range"))
    }
}

const OFFER: u8 = 1;
const WANT: u8 = 2;
const CHUNK: u8 = 3;
const ACK: u8 = 4;
const FINISHED: u8 = 5;
const REFUSED: u8 = 6;

impl TransferMessage {
    /// The bytes for the wire.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        match self {
            TransferMessage::Offer(offer) => encode_offer(&mut out, offer),
            TransferMessage::Want { transfer, file, offset } => {
                out.push(WANT);
                encode_place(&mut out, *transfer, *file, *offset);
            }
            TransferMessage::Chunk { transfer, file, offset, data } => {
                return encode_chunk(*transfer, *file, *offset, data);
            }
            TransferMessage::Ack { transfer, file, offset } => {
                out.push(ACK);
                encode_place(&mut out, *transfer, *file, *offset);
            }
            TransferMessage::Finished { transfer } => {
                out.push(FINISHED);
                put_varint(&mut out, *transfer);
            }
            TransferMessage::Refused { transfer, reason } => {
                out.push(REFUSED);
                put_varint(&mut out, *transfer);
                put_bytes(&mut out, cut(reason, REASON_BYTES_MAX).as_bytes());
            }
        }
        seal(out)
    }

    /// Reads a message of a peer. The data of a chunk is not copied. Everything that does not depend on the
    /// transfer's state is checked here.
    pub fn decode(payload: &Bytes) -> Result<TransferMessage, CodecError> {
        if payload.len() > ENCODED_BYTES_MAX {
            return Err(CodecError("message too long"));
        }
        let split = payload.len().checked_sub(CRC_LENGTH).ok_or(CodecError("cut short"))?;
        let (body, stored) = payload.split_at(split);
        if crc32c::crc32c(body).to_le_bytes() != stored {
            return Err(CodecError("checksum mismatch"));
        }
        let mut reader = Reader::new(body);
        if reader.u8()? != VERSION {
            return Err(CodecError("unknown version"));
        }
        let message = match reader.u8()? {
            OFFER => TransferMessage::Offer(decode_offer(&mut reader)?),
            WANT => {
                let (transfer, file, offset) = decode_place(&mut reader)?;
                TransferMessage::Want { transfer, file, offset }
            }
            CHUNK => {
                let (transfer, file, offset) = decode_place(&mut reader)?;
                let data = reader.bytes()?;
                if !(1..=CHUNK_BYTES_MAX).contains(&data.len()) {
                    return Err(CodecError("length out of range"));
                }
                TransferMessage::Chunk { transfer, file, offset, data: payload.slice_ref(data) }
            }
            ACK => {
                let (transfer, file, offset) = decode_place(&mut reader)?;
                TransferMessage::Ack { transfer, file, offset }
            }
            FINISHED => TransferMessage::Finished { transfer: reader.varint()? },
            REFUSED => {
                let transfer = reader.varint()?;
                let reason = reader.bytes()?;
                if reason.len() > REASON_BYTES_MAX {
                    return Err(CodecError("length out of range"));
                }
                TransferMessage::Refused { transfer, reason: String::from_utf8_lossy(reason).into_owned() }
            }
            _ => return Err(CodecError("unknown kind")),
        };
        if reader.is_empty() { Ok(message) } else { Err(CodecError("bytes after the end")) }
    }
}

/// Encodes a chunk from borrowed data, 1 to [`CHUNK_BYTES_MAX`] bytes.
#[must_use]
pub fn encode_chunk(transfer: u64, file: u32, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() + 64);
    out.extend_from_slice(&[VERSION, CHUNK]);
    encode_place(&mut out, transfer, file, offset);
    put_bytes(&mut out, data);
    seal(out)
}

/// The beginning of `text`, at most so many bytes, without half a character.
fn cut(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    if text.len() <= bytes_max { text } else { &text[..end] }
}

fn seal(mut out: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

fn encode_place(out: &mut Vec<u8>, transfer: u64, file: u32, offset: u64) {
    put_varint(out, transfer);
    put_varint(out, u64::from(file));
    put_varint(out, offset);
}

fn decode_place(reader: &mut Reader<'_>) -> Result<(u64, u32, u64), CodecError> {
    Ok((reader.varint()?, reader.varint32()?, reader.varint()?))
}

fn encode_offer(out: &mut Vec<u8>, offer: &Offer) {
    out.push(OFFER);
    put_varint(out, offer.transfer);
    put_varint(out, u64::from(offer.group.0));
    put_varint(out, offer.to_replica);
    put_varint(out, offer.index);
    put_varint(out, offer.term);
    put_bytes(out, &offer.message);
    put_varint(out, offer.files.len() as u64);
    for file in &offer.files {
        put_bytes(out, file.name.as_bytes());
        put_varint(out, file.size);
        out.extend_from_slice(&file.crc.to_le_bytes());
    }
}

fn decode_offer(reader: &mut Reader<'_>) -> Result<Offer, CodecError> {
    let mut offer = Offer {
        transfer: reader.varint()?,
        group: GroupId(reader.varint32()?),
        to_replica: reader.varint()?,
        index: reader.varint()?,
        term: reader.varint()?,
        message: reader.bytes()?.to_vec(),
        files: Vec::new(),
    };
    let count = reader.varint()?;
    if count > FILES_MAX as u64 {
        return Err(CodecError("number of files out of range"));
    }
    for _ in 0..count {
        let name = std::str::from_utf8(reader.bytes()?).map_err(|_| CodecError("not a plain file name"))?;
        let size = reader.varint()?;
        let crc = reader.take(4)?.try_into().map_err(|_| CodecError("cut short"))?;
        offer.files.push(SnapshotFile { name: name.to_owned(), size, crc: u32::from_le_bytes(crc) });
    }
    offer.check()?;
    Ok(offer)
}

/// Places in a snapshot as numbers of bytes from its beginning. An empty file has no place of its own.
#[derive(Debug)]
struct Layout {
    /// Where each file begins, and, at last, where the last one ends.
    starts: Vec<u64>,
}

impl Layout {
    /// Of files whose sizes have a sum.
    fn new(files: &[SnapshotFile]) -> Layout {
        let mut starts = vec![0];
        let mut end = 0u64;
        starts.extend(files.iter().map(|file| {
            end = end.saturating_add(file.size);
            end
        }));
        Layout { starts }
    }

    fn total(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// `None` for a place that does not exist.
    fn position(&self, file: u32, offset: u64) -> Option<u64> {
        let start = *self.starts.get(file as usize)?;
        let end = self.starts.get(file as usize + 1).copied().unwrap_or(start);
        start.checked_add(offset).filter(|position| *position <= end)
    }

    /// The file with the byte at this position and where in it that is; the end is after the last file.
    fn place(&self, position: u64) -> (u32, u64) {
        let file = self.starts.partition_point(|start| *start <= position).saturating_sub(1);
        let start = self.starts.get(file).copied().unwrap_or(0);
        (file as u32, position.saturating_sub(start))
    }

    /// Where the file ends.
    fn end_of(&self, file: u32) -> u64 {
        self.starts.get(file as usize + 1).copied().unwrap_or_else(|| self.total())
    }
}

/// Where a sender's transfer stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutgoingState {
    /// The receiver has not answered yet.
    Offered,
    /// The receiver takes data.
    Streaming,
    /// The receiver has all of it, durably.
    Done,
    /// Over, with the reason for people.
    Failed(String),
}

/// Bytes to send next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkPlace {
    /// The number of the file in the offer.
    pub file: u32,
    pub offset: u64,
    /// At least 1, at most [`CHUNK_BYTES_MAX`].
    pub length: usize,
}

/// The sender's end of one transfer.
#[derive(Debug)]
pub struct Outgoing {
    offer: Offer,
    layout: Layout,
    state: OutgoingState,
    /// Everything before is written at the receiver.
    acked: u64,
    /// Everything before was sent; at least `acked`, at most a window beyond.
    next: u64,
    /// Bytes that were or must be sent again.
    repeated: u64,
    last_progress: Monotonic,
    /// `None` before the first.
    last_offer: Option<Monotonic>,
    chunk: u64,
    window: u64,
}

impl Outgoing {
    /// Begins a transfer. An error when the offer breaks a bound; then this snapshot cannot be sent.
    pub fn new(offer: Offer, now: Monotonic) -> Result<Outgoing, CodecError> {
        offer.check()?;
        let mut encoded = Vec::new();
        encode_offer(&mut encoded, &offer);
        // The version before, the checksum after.
        if encoded.len() + 1 + CRC_LENGTH > ENCODED_BYTES_MAX {
            return Err(CodecError("message too long"));
        }
        Ok(Outgoing {
            layout: Layout::new(&offer.files),
            offer,
            state: OutgoingState::Offered,
            acked: 0,
            next: 0,
            repeated: 0,
            last_progress: now,
            last_offer: None,
            chunk: CHUNK_BYTES_MAX as u64,
            window: WINDOW_BYTES,
        })
    }

    /// What is offered.
    #[must_use]
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> &OutgoingState {
        &self.state
    }

    /// True when nothing more will happen.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.state, OutgoingState::Done | OutgoingState::Failed(_))
    }

    /// What to send next; `None` when the window is full or there is nothing to send. The same until
    /// [`Outgoing::chunk_sent`] or a message moves it.
    #[must_use]
    pub fn next_chunk(&self) -> Option<ChunkPlace> {
        if self.state != OutgoingState::Streaming || self.next >= self.layout.total() {
            return None;
        }
        let (file, offset) = self.layout.place(self.next);
        let length = self.chunk.min(self.layout.end_of(file).saturating_sub(self.next));
        let has_room = self.next - self.acked + length <= self.window;
        has_room.then_some(ChunkPlace { file, offset, length: length as usize })
    }

    /// What `next_chunk` said was sent.
    pub fn chunk_sent(&mut self, place: ChunkPlace) {
        self.next += place.length as u64;
    }

    /// What a receiver said about this transfer. Places that do not exist are ignored.
    pub fn on_message(&mut self, message: &TransferMessage, now: Monotonic) {
        if self.is_over() {
            return;
        }
        match message {
            TransferMessage::Want { file, offset, .. } => {
                if let Some(position) = self.layout.position(*file, *offset) {
                    self.begin_at(position, now);
                }
            }
            TransferMessage::Ack { file, offset, .. } => {
                let acked = self.layout.position(*file, *offset).filter(|position| *position > self.acked);
                if let Some(acked) = acked.filter(|_| self.state == OutgoingState::Streaming) {
                    self.acked = acked;
                    self.next = self.next.max(acked);
                    self.last_progress = now;
                }
            }
            TransferMessage::Finished { .. } => self.state = OutgoingState::Done,
            TransferMessage::Refused { reason, .. } => self.fail(format!("refused: {reason}")),
            // A sender's own messages, which no receiver sends.
            TransferMessage::Offer(_) | TransferMessage::Chunk { .. } => {}
        }
    }

    /// Everything before this place is written at the receiver.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// Looks at the clock: fails a transfer without progress. True when the offer must be sent, for the first
    /// time or again; then [`Outgoing::offer_sent`].
    pub fn on_time(&mut self, now: Monotonic) -> bool {
        if self.is_over() {
            return false;
        }
        if now.since(self.last_progress).0 >= NO_PROGRESS_MS {
            self.fail(format!("no progress for {} s", NO_PROGRESS_MS / 1000));
            return false;
        }
        let is_quiet = |since: Monotonic| now.since(since).0 >= REPEAT_MS;
        self.last_offer.is_none_or(|offer| is_quiet(offer) && is_quiet(self.last_progress))
    }

    /// The offer was sent.
    pub fn offer_sent(&mut self, now: Monotonic) {
        self.last_offer = Some(now);
    }

    /// Ends the transfer for a reason outside of it.
    pub fn fail(&mut self, reason: String) {
        if !self.is_over() {
            self.state = OutgoingState::Failed(reason);
        }
    }

    /// The receiver wants to be served from here: it has more than was known, or less.
    fn begin_at(&mut self, position: u64, now: Monotonic) {
        // A receiver that only lost something is further than before all the same.
        if self.state == OutgoingState::Offered || position > self.acked {
            self.last_progress = now;
        }
        self.state = OutgoingState::Streaming;
        self.repeated = self.repeated.saturating_add(self.next.saturating_sub(position));
        (self.acked, self.next) = (position, position);
        let repeated_max = self.layout.total().saturating_mul(REPEATS).saturating_add(REPEATED_BYTES);
        if self.repeated > repeated_max {
            self.fail("too much had to be sent again".to_owned());
        }
    }
}

/// Where a receiver's transfer stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IncomingState {
    /// Not everything is there.
    WaitingForData,
    /// All files are there and have the right checksums.
    Complete,
    /// Over, with the reason for people.
    Failed(String),
}

/// What to do with a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChunkOutcome {
    /// Write it where it says it belongs; when `ends_file`, make that file durable. Then
    /// [`Incoming::written`] says what to answer.
    Write {
        /// The file is whole, and its checksum is right.
        ends_file: bool,
    },
    /// Do not write it. Answer this, if anything.
    Answer(Option<TransferMessage>),
    /// It failed; see the state.
    Failed,
}

/// The receiver's end of one transfer.
#[derive(Debug)]
pub struct Incoming {
    from: NodeId,
    offer: Offer,
    layout: Layout,
    state: IncomingState,
    /// Everything before is taken.
    position: u64,
    /// CRC-32C of the current file up to `position`.
    crc: u32,
    mismatches: u32,
    /// A Want for this position was sent: one is enough for all chunks behind a lost one.
    wanted: Option<u64>,
    last_progress: Monotonic,
}

impl Incoming {
    /// Begins a transfer, with nothing there yet.
    #[must_use]
    pub fn new(from: NodeId, offer: Offer, now: Monotonic) -> Incoming {
        let layout = Layout::new(&offer.files);
        let mut incoming = Incoming {
            from,
            offer,
            layout,
            state: IncomingState::WaitingForData,
            position: 0,
            crc: 0,
            mismatches: 0,
            wanted: None,
            last_progress: now,
        };
        incoming.written();
        incoming
    }

    /// Who sends it.
    #[must_use]
    pub fn from(&self) -> NodeId {
        self.from
    }

    /// What was offered.
    #[must_use]
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> &IncomingState {
        &self.state
    }

    /// Bytes that are still missing.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.layout.total().saturating_sub(self.position)
    }

    /// The name, size and checksum of a file.
    #[must_use]
    pub fn file(&self, file: u32) -> Option<&SnapshotFile> {
        self.offer.files.get(file as usize)
    }

    /// Says where the sender shall begin.
    pub fn want(&mut self) -> TransferMessage {
        self.wanted = Some(self.position);
        let (file, offset) = self.layout.place(self.position);
        TransferMessage::Want { transfer: self.offer.transfer, file, offset }
    }

    /// Goes on with what is there under another transfer, maybe of another sender, that offers the same files.
    pub fn adopt(&mut self, from: NodeId, offer: Offer, now: Monotonic) {
        if (self.from, self.offer.transfer) != (from, offer.transfer) {
            (self.from, self.offer, self.last_progress) = (from, offer, now);
        }
    }

    /// Decides on a chunk of this transfer. Only the next bytes of the current file are taken, and the last
    /// ones only when the file's checksum is right.
    pub fn on_chunk(&mut self, file: u32, offset: u64, data: &[u8], now: Monotonic) -> ChunkOutcome {
        if self.state != IncomingState::WaitingForData {
            return ChunkOutcome::Answer(None);
        }
        let Some(position) = self.layout.position(file, offset) else {
            return ChunkOutcome::Answer(None);
        };
        if position < self.position {
            // It was repeated; the sender missed an answer.
            return ChunkOutcome::Answer(Some(self.ack()));
        }
        if (file, offset) != self.layout.place(self.position) {
            let is_asked = self.wanted == Some(self.position);
            return ChunkOutcome::Answer((!is_asked).then(|| self.want()));
        }
        let end = self.layout.end_of(file);
        let Some(after) = position.checked_add(data.len() as u64).filter(|after| *after <= end) else {
            return self.give_up("a chunk is longer than its file");
        };
        let crc = crc32c::crc32c_append(self.crc, data);
        let ends_file = after == end;
        if ends_file && self.file(file).is_none_or(|file| file.crc != crc) {
            return self.again(position - offset);
        }
        (self.position, self.crc) = (after, if ends_file { 0 } else { crc });
        (self.wanted, self.last_progress) = (None, now);
        ChunkOutcome::Write { ends_file }
    }

    /// What was taken is written. Returns what to answer: an Ack; nothing once it is complete.
    pub fn written(&mut self) -> Option<TransferMessage> {
        if self.missing() == 0 && self.state == IncomingState::WaitingForData {
            self.state = IncomingState::Complete;
        }
        (self.state == IncomingState::WaitingForData).then(|| self.ack())
    }

    /// True when nobody has sent anything for minutes: what is there should go.
    #[must_use]
    pub fn is_abandoned(&self, now: Monotonic) -> bool {
        now.since(self.last_progress).0 >= KEPT_MS
    }

    fn is_stalled(&self, now: Monotonic) -> bool {
        now.since(self.last_progress).0 >= NO_PROGRESS_MS
    }

    fn ack(&self) -> TransferMessage {
        let (file, offset) = self.layout.place(self.position);
        TransferMessage::Ack { transfer: self.offer.transfer, file, offset }
    }

    /// The file that begins at `start` came damaged.
    fn again(&mut self, start: u64) -> ChunkOutcome {
        self.mismatches += 1;
        if self.mismatches >= MISMATCHES_MAX {
            return self.give_up("the files do not match their checksums");
        }
        (self.position, self.crc) = (start, 0);
        ChunkOutcome::Answer(Some(self.want()))
    }

    fn give_up(&mut self, reason: &str) -> ChunkOutcome {
        self.state = IncomingState::Failed(reason.to_owned());
        ChunkOutcome::Failed
    }
}

/// What to do with an offer for a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfferOutcome {
    /// Begin, after deleting what there may be of another snapshot for the group.
    Begin,
    /// The same files are on their way: [`Incoming::adopt`], then [`Incoming::want`].
    GoOn,
    /// Refuse it for this reason.
    Refuse(&'static str),
}

/// Decides on an offer, given what arrives for its group. One snapshot at a time: a newer one, or another of
/// the same sender, takes the place of the one there; so does any when that one stands still.
#[must_use]
pub fn on_offer(current: Option<&Incoming>, from: NodeId, offer: &Offer, now: Monotonic) -> OfferOutcome {
    let Some(current) = current else { return OfferOutcome::Begin };
    let there = &current.offer;
    if (there.index, there.term) == (offer.index, offer.term) && there.files == offer.files {
        return OfferOutcome::GoOn;
    }
    if offer.index > there.index || from == current.from || current.is_stalled(now) {
        return OfferOutcome::Begin;
    }
    OfferOutcome::Refuse("a snapshot that is not older is on its way already")
}

#[cfg(test)]
#[path = "transfer_test.rs"]
mod tests;
