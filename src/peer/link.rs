//! One connection to a peer, after its handshake.
//!
//! ```text
//! sending:  idle ──send──► written by the sender itself, one write ──► idle
//!                               │ the socket is full, or one sender's budget is spent
//!                               ▼
//!                          the writer goes on, on the peer-io thread, until nothing is left ──► idle
//! a link:   open ──error, silence, replaced, removed──► closed  (never open again; the first reason counts)
//! ```
//! A small message costs its sender one write and wakes nobody. The socket keeps little that is not sent yet,
//! so at most about 128 KiB stand before a heartbeat: `wire::OUTPUT_MAX` here, `NOT_SENT_MAX` in the kernel.

use std::io;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Buf;
use bytes::Bytes;
use bytes::BytesMut;
use parking_lot::Mutex;
use socket2::SockRef;
use socket2::TcpKeepalive;
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::MissedTickBehavior;

use crate::clock::Clock;
use crate::peer::Channel;
use crate::peer::Handler;
use crate::peer::SendError;
use crate::peer::wire::Decoder;
use crate::peer::wire::Outbox;
use crate::peer::wire::WireError;
use crate::types::Millis;
use crate::types::Monotonic;
use crate::types::NodeId;

/// Bytes that may stand unsent in the socket.
const NOT_SENT_MAX: u32 = 64 << 10;
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How long sent data may stay unacknowledged.
const USER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes written at a stretch while the link's lock is held.
const WRITE_BUDGET: usize = 256 << 10;
const READ_BUFFER: usize = 64 << 10;
/// Room that a read finds at least.
const READ_MIN: usize = 16 << 10;
/// Reads after which other tasks of the peer-io thread get their turn.
const READS_AT_A_STRETCH: u32 = 16;
/// A busy link carries a ping this often too, for its round trip.
const PING_INTERVAL: Millis = Millis(1000);

// The first byte of a control payload.
const PING: u8 = 0;
const PONG: u8 = 1;
const MESSAGE: u8 = 2;

/// Figures of a peer, over all of its links. Zero is "never" for the last two.
#[derive(Debug, Default)]
pub struct Figures {
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
    pub links: AtomicU64,
    pub dropped: AtomicU64,
    pub errors: AtomicU64,
    /// Nanoseconds of the monotonic clock.
    pub heard: AtomicU64,
    /// Microseconds, and at least 1.
    pub rtt_us: AtomicU64,
}

/// When a link pings, and when it gives up.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub heartbeat: Millis,
    pub silence_max: Millis,
}

/// Why a link ended.
#[derive(Debug, Error)]
pub enum LinkEnd {
    #[error("the peer closed the connection")]
    Closed,
    #[error("reading failed: {0}")]
    Read(io::Error),
    #[error("writing failed: {0}")]
    Write(io::Error),
    #[error("the peer sent {0}")]
    Wire(WireError),
    #[error("nothing was heard for {} ms", .0.0)]
    Silent(Millis),
    #[error("a newer connection of the same peer took its place")]
    Replaced,
    #[error("the node is no peer any more")]
    Removed,
    #[error("this node stops")]
    Stopped,
}

/// The sending side, shared by all threads, and what ends the connection.
pub struct Link {
    pub node: NodeId,
    write: OwnedWriteHalf,
    sender: Mutex<Sender>,
    writer_wake: Notify,
    is_closed: AtomicBool,
    end: OnceLock<LinkEnd>,
    opened: Monotonic,
    figures: Arc<Figures>,
}

struct Sender {
    outbox: Outbox,
    /// Frames, of which `written` bytes are in the socket.
    output: Vec<u8>,
    written: usize,
    /// The writer was woken and will go on by itself.
    is_writer_on: bool,
}

enum Flushed {
    All,
    /// The budget is spent.
    Some,
    /// The socket is full.
    Blocked,
}

impl Link {
    /// A link over an established connection, and its receiving side for [`Link::run`].
    pub fn new(
        node: NodeId,
        stream: TcpStream,
        figures: Arc<Figures>,
        now: Monotonic,
    ) -> (Link, OwnedReadHalf) {
        // The handshake was heard just now.
        figures.heard.store(now.0.max(1), Ordering::Relaxed);
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%error, "cannot set a socket option");
        }
        let (read, write) = stream.into_split();
        let sender =
            Sender { outbox: Outbox::default(), output: Vec::new(), written: 0, is_writer_on: false };
        let link = Link {
            node,
            write,
            sender: Mutex::new(sender),
            writer_wake: Notify::new(),
            is_closed: AtomicBool::new(false),
            end: OnceLock::new(),
            opened: now,
            figures,
        };
        (link, read)
    }

    /// Queues a message and writes what the socket takes. `Ok` is no promise that it arrives.
    pub fn send(&self, channel: Channel, payload: Vec<u8>) -> Result<(), SendError> {
        match channel {
            Channel::Control => self.send_control(MESSAGE, &payload),
            Channel::Raft | Channel::Request | Channel::Snapshot => self.push(channel, payload),
        }
    }

    fn send_control(&self, kind: u8, rest: &[u8]) -> Result<(), SendError> {
        let mut payload = Vec::with_capacity(1 + rest.len());
        payload.push(kind);
        payload.extend_from_slice(rest);
        self.push(Channel::Control, payload)
    }

    fn push(&self, channel: Channel, payload: Vec<u8>) -> Result<(), SendError> {
        let mut sender = self.sender.lock();
        if self.is_closed() {
            return Err(SendError::NotConnected);
        }
        sender.outbox.push(channel, payload)?;
        // A write that fails closes the link; the message is lost like any other that was under way.
        let _ = self.flush(&mut sender);
        Ok(())
    }

    /// Writes until all is written, the socket is full or the budget is spent; sees to it that the writer
    /// goes on.
    fn flush(&self, sender: &mut Sender) -> Flushed {
        let flushed = sender.write_to(&self.write, &self.figures).unwrap_or_else(|error| {
            self.close(LinkEnd::Write(error));
            Flushed::All
        });
        let is_over = matches!(flushed, Flushed::All);
        if !is_over && !sender.is_writer_on {
            self.writer_wake.notify_one();
        }
        sender.is_writer_on = !is_over;
        flushed
    }

    /// Bytes queued and not in the socket yet.
    #[must_use]
    pub fn queued_bytes(&self) -> u64 {
        let sender = self.sender.lock();
        (sender.outbox.bytes() + sender.output.len() - sender.written) as u64
    }

    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Why it was closed, once it is.
    #[must_use]
    pub fn end(&self) -> Option<&LinkEnd> {
        self.end.get()
    }

    /// Ends the link from any thread: nothing more is sent or handed over, and `run` returns soon.
    pub fn close(&self, end: LinkEnd) {
        let _later_reasons_do_not_count = self.end.set(end);
        if !self.is_closed.swap(true, Ordering::AcqRel) {
            // Wakes the reader with an end of file. It fails only where the connection is gone already.
            let _ = SockRef::from(self.write.as_ref()).shutdown(Shutdown::Both);
        }
    }

    /// Receives, and keeps the link alive, until it is closed.
    pub async fn run(&self, read: OwnedReadHalf, handler: &dyn Handler, timing: Timing, clock: &dyn Clock) {
        // The reader first: what has arrived counts before silence does.
        tokio::select! {
            biased;
            end = self.read_loop(read, handler, clock) => self.close(end),
            () = self.write_loop() => {}
            () = self.keep_alive(timing, clock) => {}
        }
        self.close(LinkEnd::Closed);
    }

    async fn read_loop(&self, mut read: OwnedReadHalf, handler: &dyn Handler, clock: &dyn Clock) -> LinkEnd {
        let mut decoder = Decoder::default();
        let mut buffer = BytesMut::with_capacity(READ_BUFFER);
        let mut reads = 0;
        loop {
            if buffer.capacity() - buffer.len() < READ_MIN {
                // Not more than the buffer had: then its memory is used again once its payloads are let go.
                buffer.reserve(READ_BUFFER.saturating_sub(buffer.len()).max(READ_MIN));
            }
            let count = match read.read_buf(&mut buffer).await {
                Ok(0) => return LinkEnd::Closed,
                Ok(count) => count,
                Err(error) => return LinkEnd::Read(error),
            };
            let now = clock.monotonic();
            self.figures.heard.store(now.0.max(1), Ordering::Relaxed);
            self.figures.bytes_in.fetch_add(count as u64, Ordering::Relaxed);
            if let Err(error) = self.deliver(&mut decoder, &mut buffer, handler, now) {
                self.figures.errors.fetch_add(1, Ordering::Relaxed);
                return LinkEnd::Wire(error);
            }
            reads += 1;
            if reads == READS_AT_A_STRETCH {
                reads = 0;
                // Without it a reader that always finds something leaves the writer and the pings no turn.
                yield_now().await;
            }
        }
    }

    /// Hands over every payload that is whole.
    fn deliver(
        &self,
        decoder: &mut Decoder,
        buffer: &mut BytesMut,
        handler: &dyn Handler,
        now: Monotonic,
    ) -> Result<(), WireError> {
        let mut is_any = false;
        let result = loop {
            let (channel, payload) = match decoder.next(buffer) {
                Ok(Some(arrived)) => arrived,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            };
            let message = match channel {
                Channel::Control => match self.on_control(payload, now) {
                    Ok(message) => message,
                    Err(error) => break Err(error),
                },
                Channel::Raft | Channel::Request | Channel::Snapshot => Some(payload),
            };
            if self.is_closed() {
                break Ok(());
            }
            if let Some(payload) = message {
                is_any = true;
                handler.on_message(self.node, channel, payload);
            }
        };
        if is_any {
            handler.on_idle(self.node);
        }
        result
    }

    /// Answers a ping, takes a pong, gives the payload of a message.
    fn on_control(&self, mut payload: Bytes, now: Monotonic) -> Result<Option<Bytes>, WireError> {
        let kind = payload.try_get_u8().map_err(|_| WireError::ControlKind(None))?;
        match kind {
            PING | PONG => {
                let sent = payload.try_get_u64_le().map_err(|_| WireError::ControlKind(Some(kind)))?;
                if kind == PING {
                    // If there is no room for it, the peer does not read: it will find us silent by itself.
                    let _ = self.send_control(PONG, &sent.to_le_bytes());
                } else if (self.opened.0..=now.0).contains(&sent) {
                    let rtt_us = now.micros_since(Monotonic(sent)).max(1);
                    self.figures.rtt_us.store(rtt_us, Ordering::Relaxed);
                }
                Ok(None)
            }
            MESSAGE => Ok(Some(payload)),
            _ => Err(WireError::ControlKind(Some(kind))),
        }
    }

    async fn write_loop(&self) {
        loop {
            self.writer_wake.notified().await;
            loop {
                if let Err(error) = self.write.writable().await {
                    return self.close(LinkEnd::Write(error));
                }
                let flushed = self.flush(&mut self.sender.lock());
                match flushed {
                    Flushed::All => break,
                    Flushed::Some => yield_now().await,
                    Flushed::Blocked => {}
                }
            }
        }
    }

    async fn keep_alive(&self, timing: Timing, clock: &dyn Clock) {
        let half = Duration::from_millis((timing.heartbeat.0 / 2).max(1));
        let mut ticks = tokio::time::interval(half);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sent_before = 0;
        let mut quiet_halves = 0;
        let mut pinged = None;
        let (mut looked, mut forgiven) = (clock.monotonic(), Monotonic(0));
        loop {
            ticks.tick().await;
            let now = clock.monotonic();
            if now.since(looked).0 > timing.silence_max.0 / 2 {
                // This thread had no turn, and what was said meanwhile may not be read yet.
                forgiven = now;
            }
            looked = now;
            let silence = now.since(Monotonic(self.figures.heard.load(Ordering::Relaxed)).max(forgiven));
            if silence > timing.silence_max {
                return self.close(LinkEnd::Silent(silence));
            }
            let sent = self.figures.bytes_out.load(Ordering::Relaxed);
            quiet_halves = if sent == sent_before { quiet_halves + 1 } else { 0 };
            if quiet_halves >= 2 || pinged.is_none_or(|pinged| now.since(pinged) >= PING_INTERVAL) {
                quiet_halves = 0;
                pinged = Some(now);
                let _full_or_closed = self.send_control(PING, &now.0.to_le_bytes());
            }
            sent_before = self.figures.bytes_out.load(Ordering::Relaxed);
        }
    }
}

impl Sender {
    fn write_to(&mut self, socket: &OwnedWriteHalf, figures: &Figures) -> io::Result<Flushed> {
        let mut budget = WRITE_BUDGET;
        loop {
            if self.written == self.output.len() {
                self.output.clear();
                self.written = 0;
                self.outbox.fill(&mut self.output);
                if self.output.is_empty() {
                    return Ok(Flushed::All);
                }
            }
            if budget == 0 {
                return Ok(Flushed::Some);
            }
            match socket.try_write(&self.output[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.written += count;
                    budget = budget.saturating_sub(count);
                    figures.bytes_out.fetch_add(count as u64, Ordering::Relaxed);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Flushed::Blocked),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_notsent_lowat(NOT_SENT_MAX)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3))?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}
