//! One client's socket: reads a batch of input, lets the pipeline run, writes all replies at once.
//!
//! One task per connection. It reads nothing while it writes, so a client that does not take its replies is not
//! served further, and its memory stays bounded.

use std::io;
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Buf;
use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::machine::entry::Batch;
use crate::resp::Limits;
use crate::resp::Protocol;
use crate::resp::ProtocolError;
use crate::resp::Reply;
use crate::resp::RequestReader;
use crate::resp::render;
use crate::server::Services;
use crate::server::clients::BUFFERS_KEPT;
use crate::server::clients::ClientHandle;
use crate::server::dispatch::FLUSH_BYTES;
use crate::server::dispatch::Pipeline;
use crate::server::dispatch::Step;
use crate::server::errors;
use crate::server::lock_waits;
use crate::server::lock_waits::ClientWait;
use crate::server::lock_waits::Undelivered;
use crate::server::raft_command;
use crate::server::raft_command::Later;
use crate::server::reply_bounds;
use crate::server::session::Replies;
use crate::server::session::Session;
use crate::server::transaction::Plan;
use crate::state::locks::ClaimId;
use crate::state::notices::ClaimEnd;

/// The least free space that a read is given, in bytes.
const READ_BYTES: usize = 16 << 10;
/// The same for a client that has to log in, and how much of one request of his is held: two words of the longest kind.
const STRANGER_READ_BYTES: usize = 1 << 10;
const STRANGER_BYTES_MAX: usize = 32 << 10;
/// Requests taken from the buffer at a time.
const REQUESTS_MAX: usize = 1024;
/// What a client sends while it waits for a lock is read up to so many bytes.
const READ_AHEAD_BYTES: usize = 1 << 20;
/// How often a client that waits looks for a leader.
const LEADER_LOOK: Duration = Duration::from_millis(500);
/// A buffer that grew beyond this for one large reply is not kept.
const KEPT_BYTES: usize = 256 << 10;
/// How long a closed connection may still send what nobody reads: closing a socket with unread input would reset it,
/// and the client might never see its last replies.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 1 << 20;
/// How long a client that closed its side has to acknowledge the messages that it was sent.
const HEARD_WAIT: Duration = Duration::from_secs(2);
/// How often it is looked whether it has, after a while.
const HEARD_LOOK_MAX: Duration = Duration::from_millis(50);

/// One client's connection.
pub struct Connection {
    stream: TcpStream,
    services: Arc<Services>,
    session: Session,
    reader: RequestReader,
    input: BytesMut,
    output: BytesMut,
    pipeline: Pipeline,
    /// Something came while the client waited for a lock, and was not looked at yet.
    has_read_ahead: bool,
}

/// Ends a client's wait; the end comes as every wait's does, unless it was granted meanwhile. False when this was refused.
async fn cancel(services: &Services, claim: ClaimId) -> bool {
    let mut batch = Batch::new(b"");
    batch.push_cancel(&[claim.0]);
    services.group.propose(batch).await.is_ok()
}

/// A client that waits for a lock, as others see it.
struct Waiting<'a>(&'a ClientHandle);

impl Waiting<'_> {
    fn new(client: &ClientHandle) -> Waiting<'_> {
        client.take_unblock();
        client.is_blocked.store(true, Ordering::Relaxed);
        client.is_waiting.store(true, Ordering::Release);
        Waiting(client)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.is_waiting.store(false, Ordering::Release);
        self.0.is_blocked.store(false, Ordering::Relaxed);
    }
}

/// Why no more input comes.
enum Input {
    Arrived,
    /// The connection was woken for something else.
    Woken,
    Closed,
}

impl Connection {
    /// A connection of a client that was entered into the registry.
    pub fn new(stream: TcpStream, client: Arc<ClientHandle>, services: Arc<Services>) -> Connection {
        let seed = services.next_seed();
        Connection {
            stream,
            session: Session::new(client, &services),
            services,
            reader: RequestReader::new(),
            input: BytesMut::new(),
            output: BytesMut::new(),
            pipeline: Pipeline::new(seed),
            has_read_ahead: false,
        }
    }

    /// Serves the client until it leaves, is killed or misbehaves, or the node shuts down.
    pub async fn run(mut self) {
        let served = self.serve().await;
        self.session.end_subscriptions(&self.services);
        if self.session.client.is_overrun() {
            self.note_overrun();
        }
        if served.is_ok() && self.pipeline.has_doubted() && self.was_heard().await {
            self.pipeline.forget_doubted();
        }
        for lost in self.pipeline.unheard(&self.session) {
            self.services.group.claims().give_back(lost);
        }
        match served {
            Ok(()) if !self.session.client.is_doomed() => self.linger().await,
            Ok(()) => {}
            Err(error) => tracing::debug!(client = self.session.client.id.0, %error, "connection lost"),
        }
    }

    async fn serve(&mut self) -> io::Result<()> {
        let mut has_arrived = false;
        loop {
            self.session.refresh_config(&self.services);
            let decoded = self.decode();
            if !self.pipeline.requests.is_empty() {
                self.execute().await?;
            } else if has_arrived {
                // A long value arrives in pieces: its sender is not idle.
                self.session.client.note_transfer(self.services.clock.monotonic());
            }
            if let Err(error) = &decoded
                && !self.session.is_closing
            {
                self.refuse(error);
            }
            self.flush().await?;
            if self.session.is_closing || decoded.is_err() || self.is_stopped() {
                return Ok(());
            }
            if matches!(decoded, Ok(Decoded::More)) || std::mem::take(&mut self.has_read_ahead) {
                continue;
            }
            let input = self.receive().await?;
            has_arrived = matches!(input, Input::Arrived);
            match input {
                Input::Arrived => self.count_input()?,
                Input::Woken if self.is_stopped() => return Ok(()),
                Input::Woken => {
                    self.take_inbox();
                    self.give_buffers_back();
                }
                Input::Closed => return Ok(()),
            }
        }
    }

    fn is_stopped(&self) -> bool {
        self.session.client.is_doomed() || self.services.shutdown.is_requested()
    }

    // ---- input ------------------------------------------------------------------------------------

    /// Takes whole requests from the buffer. While the client has not logged in they are taken one by one, since
    /// the first may be the login that lifts the limits for the second.
    fn decode(&mut self) -> Result<Decoded, ProtocolError> {
        let must_log_in = self.session.must_log_in();
        let limits = Limits {
            max_bulk_len: self.session.config.proto_max_bulk_len,
            unauthenticated: must_log_in,
            ..Limits::default()
        };
        let at_most = if must_log_in { 1 } else { REQUESTS_MAX };
        while let Some(request) = self.reader.next(&mut self.input, &limits)? {
            self.pipeline.requests.push(request);
            if self.pipeline.requests.len() == at_most {
                return Ok(Decoded::More);
            }
        }
        if must_log_in && self.input.len() > STRANGER_BYTES_MAX {
            return Err(ProtocolError::UnauthenticatedBulkLength);
        }
        Ok(Decoded::All)
    }

    async fn receive(&mut self) -> io::Result<Input> {
        let wake = &self.session.client.wake;
        if !self.session.client.holds_buffers.load(Ordering::Relaxed) {
            tokio::select! {
                biased;
                ready = self.stream.readable() => ready?,
                () = wake.notified() => return Ok(Input::Woken),
            }
            self.session.client.holds_buffers.store(true, Ordering::Relaxed);
        }
        let least = if self.session.must_log_in() { STRANGER_READ_BYTES } else { READ_BYTES };
        self.input.reserve(self.reader.wanted().max(least));
        self.show_input();
        tokio::select! {
            biased;
            count = self.stream.read_buf(&mut self.input) => match count? {
                0 => Ok(Input::Closed),
                count => {
                    self.services.stats.input_bytes.fetch_add(count as u64, Ordering::Relaxed);
                    Ok(Input::Arrived)
                }
            },
            () = wake.notified() => Ok(Input::Woken),
        }
    }

    /// Shows others how much was received and is not answered. While requests are executed their bytes stay in it.
    fn show_input(&self) {
        let client = &self.session.client;
        client.input_bytes.store(self.input.len(), Ordering::Relaxed);
        client.input_free.store(self.input.capacity() - self.input.len(), Ordering::Relaxed);
    }

    fn count_input(&self) -> io::Result<()> {
        let client = &self.session.client;
        self.show_input();
        if self.input.len() <= self.session.config.query_buffer_limit {
            return Ok(());
        }
        tracing::warn!(client = client.id.0, "closed: more input than client-query-buffer-limit");
        Err(io::Error::other("query buffer limit"))
    }

    /// An idle client needs no buffers; ten thousand of them would hold much memory.
    fn give_buffers_back(&mut self) {
        let client = &self.session.client;
        let is_idle = client.idle(self.services.clock.monotonic()) >= BUFFERS_KEPT;
        if is_idle && self.input.is_empty() && self.output.is_empty() {
            self.input = BytesMut::new();
            self.output = BytesMut::new();
            self.pipeline.requests = Vec::new();
            client.input_free.store(0, Ordering::Relaxed);
            client.holds_buffers.store(false, Ordering::Relaxed);
        }
    }

    /// Takes what was sent to the client besides replies.
    fn take_inbox(&mut self) {
        let messages = self.session.client.take_inbox();
        if self.session.protocol == Protocol::Resp2 && self.session.subscriptions.is_empty() {
            // Too late: it would be taken for a reply.
            return;
        }
        for message in messages {
            render(&message, self.session.protocol, &mut self.output);
        }
    }

    fn refuse(&mut self, error: &ProtocolError) {
        let text = format!("ERR {error}");
        self.services.stats.note_error(&text);
        self.session.emit(&Reply::error(text), &mut self.output);
    }

    // ---- running ----------------------------------------------------------------------------------

    async fn execute(&mut self) -> io::Result<()> {
        let now = self.services.clock.monotonic();
        self.session.client.note_transfer(now);
        self.session.client.is_executing.store(true, Ordering::Relaxed);
        if let Some(losses) = self.session.client.losses_before_reply()
            && self.session.protocol == Protocol::Resp3
        {
            render(&losses, self.session.protocol, &mut self.output);
        }
        self.pipeline.begin(now);
        loop {
            let step = self.pipeline.advance(&mut self.session, &self.services, &mut self.output);
            if !self.session.held_back.is_zero() {
                self.hold_back().await?;
            }
            match step {
                Step::Done => break,
                Step::Flush => self.flush().await?,
                Step::Propose => self.propose().await?,
                Step::Barrier => {
                    let outcome = self.services.group.barrier().await;
                    self.pipeline.on_barrier(&mut self.session, &self.services, outcome, &mut self.output);
                }
                Step::Expire => self.expire().await,
                Step::Paused => self.wait_for_pause().await?,
                Step::Exec(plan) => self.exec(plan).await?,
                Step::Wait(length, reply) => self.wait(length, &reply).await?,
                Step::Later(later) => self.later(later).await?,
            }
        }
        self.pipeline.finish(&self.session, &self.services);
        if self.session.replies == Replies::On {
            self.session.client.has_replied();
        }
        self.session.client.is_executing.store(false, Ordering::Relaxed);
        Ok(())
    }

    async fn propose(&mut self) -> io::Result<()> {
        let Some(batch) = self.pipeline.take_batch() else { return Ok(()) };
        let from = self.services.clock.monotonic();
        let mut outcome = self.services.group.propose(batch).await;
        // To wait for a lock is not to be slow.
        let micros = self.services.clock.monotonic().micros_since(from);
        let services = Arc::clone(&self.services);
        let mut undelivered = None;
        if let Ok(replies) = &mut outcome
            && let Some(Reply::Waiting(claim)) = replies.last()
        {
            let (reply, grant) = self.wait_for_lock(&services, ClaimId(*claim)).await?;
            replies.pop();
            replies.push(reply);
            undelivered = grant;
        }
        self.pipeline.on_proposed(&mut self.session, &self.services, outcome, micros, &mut self.output);
        if let Some(grant) = undelivered {
            // A client that does not get to know of its lock must not keep it, nor a message.
            self.pipeline.forget_given();
            self.flush().await?;
            grant.delivered();
            return Ok(());
        }
        self.check_given();
        Ok(())
    }

    /// Whether what was given reaches a client that closed its side is known at the connection's end: the first write
    /// would seem to succeed, also to a socket that is closed whole.
    fn check_given(&mut self) {
        if self.pipeline.has_given() && self.has_left() {
            self.pipeline.doubt_given();
        }
    }

    /// Waits for a lock, and tells how it ended. The client may leave meanwhile, or another one may end its wait.
    async fn wait_for_lock<'a>(
        &mut self,
        services: &'a Services,
        claim: ClaimId,
    ) -> io::Result<(Reply, Option<Undelivered<'a>>)> {
        let is_array = self.pipeline.awaits_array();
        let mut wait = ClientWait::new(services, claim);
        let client = Arc::clone(&self.session.client);
        let _waiting = Waiting::new(&client);
        self.pipeline.show_last(&self.session, services);
        let gone = || io::Error::from(ErrorKind::ConnectionAborted);
        let (mut unblocked, mut cancels, mut was_over) = (false, false, false);
        let mut look = tokio::time::interval(LEADER_LOOK);
        loop {
            self.flush().await?;
            let has_room = self.input.len() < READ_AHEAD_BYTES;
            tokio::select! {
                biased;
                ready = self.stream.readable(), if has_room => {
                    ready?;
                    self.read_ahead()?;
                }
                outcome = wait.end() => {
                    let ends = outcome.as_ref().map(|told| (&told.end, told.until));
                    let is_granted = matches!(ends, Some((ClaimEnd::Granted(_) | ClaimEnd::Delivered(_), _)));
                    if ends.is_some_and(|(_, until)| until <= services.group.now()) {
                        // This node stood still: what its client was given is not its own any more.
                        drop(Undelivered::new(services, claim, outcome));
                        return Ok((lock_waits::null(is_array), None));
                    }
                    let reply = match lock_waits::reply_of(&outcome, is_array) {
                        Reply::Null | Reply::NullArray if unblocked => {
                            Reply::error("UNBLOCKED client unblocked via CLIENT UNBLOCK")
                        }
                        reply => reply,
                    };
                    let grant = is_granted.then(|| Undelivered::new(services, claim, outcome));
                    if grant.is_some() && self.has_left() {
                        return Err(gone());
                    }
                    return Ok((reply, grant));
                }
                () = client.wake.notified() => {
                    if self.is_stopped() {
                        return Err(gone());
                    }
                    if let Some(with_error) = client.take_unblock() {
                        unblocked = with_error;
                        cancels = !cancel(services, claim).await;
                    }
                    self.take_inbox();
                }
                _ = look.tick() => {
                    if !has_room && self.is_hung_up().await? {
                        return Err(gone());
                    }
                    let patience = self.services.config.get().cluster_node_timeout;
                    if services.group.leaderless().is_none_or(|leaderless| leaderless > patience) {
                        return Ok((errors::wait_without_leader(), None));
                    }
                    cancels = cancels && !cancel(services, claim).await;
                    // Its end may have been told before anybody claimed it, and be forgotten.
                    let is_over = lock_waits::is_over(services, claim);
                    if is_over && was_over {
                        return Ok((lock_waits::reply_of(&None, is_array), None));
                    }
                    was_over = is_over;
                }
            }
        }
    }

    /// Whether the client closed its side. Asks the system itself: the runtime may not have been told yet, and the first
    /// write after such an end seems to succeed.
    fn has_left(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        match SockRef::from(&self.stream).peek(&mut byte) {
            Ok(count) => count == 0,
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }

    /// Whether a client that closed its side got everything that was written. It may have closed its socket whole, or
    /// only be done with asking: the one answers our last word with a reset, the other acknowledges it, and only then
    /// has the connection no peer any more.
    async fn was_heard(&self) -> bool {
        if SockRef::from(&self.stream).shutdown(Shutdown::Write).is_err() {
            return false;
        }
        let ended = async {
            let mut nap = Duration::from_millis(1);
            while self.stream.peer_addr().is_ok() {
                tokio::time::sleep(nap).await;
                nap = (2 * nap).min(HEARD_LOOK_MAX);
            }
        };
        tokio::time::timeout(HEARD_WAIT, ended).await.is_ok() && matches!(self.stream.take_error(), Ok(None))
    }

    /// Whether the client closed its side, behind whatever of its input is not read yet.
    async fn is_hung_up(&self) -> io::Result<bool> {
        tokio::select! {
            biased;
            ready = self.stream.ready(Interest::READABLE) => Ok(ready?.is_read_closed()),
            () = std::future::ready(()) => Ok(false),
        }
    }

    /// Reads what the client sends while it waits, and learns whether it is still there.
    fn read_ahead(&mut self) -> io::Result<()> {
        self.input.reserve(READ_BYTES);
        match self.stream.try_read_buf(&mut self.input) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                self.has_read_ahead = true;
                self.show_input();
                self.services.stats.input_bytes.fetch_add(count as u64, Ordering::Relaxed);
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn expire(&mut self) {
        let batch = self.pipeline.expire_batch(&self.session);
        let outcome = self.services.group.propose(batch).await;
        self.pipeline.on_expired(&mut self.session, &self.services, outcome, &mut self.output);
    }

    async fn exec(&mut self, plan: Plan) -> io::Result<()> {
        let from = self.services.clock.monotonic();
        let bounds = reply_bounds::of(&self.session.config);
        let mut batch = Batch::within(&self.session.user, bounds);
        if plan.names_client {
            let client = &self.session.client;
            batch.name_client(self.services.client_number(client.id), &client.address);
        }
        let is_atomic = self.session.exec_mode.unwrap_or(plan.is_atomic);
        batch.push_transaction(&plan.watched, &plan.commands, is_atomic);
        let replies = self.services.group.propose(batch).await;
        let outcome = replies.map(|replies| replies.into_iter().next().expect("a transaction has one reply"));
        let micros = self.services.clock.monotonic().micros_since(from);
        self.pipeline.on_executed(&mut self.session, &self.services, plan, outcome, micros, &mut self.output);
        self.check_given();
        self.hold_back().await
    }

    /// Waits as long as the replies to wrong passwords in a transaction have to.
    async fn hold_back(&mut self) -> io::Result<()> {
        match std::mem::take(&mut self.session.held_back) {
            Duration::ZERO => Ok(()),
            wait => self.block(tokio::time::sleep(wait), Self::is_stopped).await,
        }
    }

    async fn wait(&mut self, length: Duration, reply: &Reply) -> io::Result<()> {
        let from = self.services.clock.monotonic();
        self.block(tokio::time::sleep(length), Self::is_stopped).await?;
        let micros = self.services.clock.monotonic().micros_since(from);
        self.pipeline.on_waited(&mut self.session, &self.services, reply, micros, &mut self.output);
        Ok(())
    }

    async fn later(&mut self, later: Later) -> io::Result<()> {
        self.flush().await?;
        let from = self.services.clock.monotonic();
        let reply = self.block(raft_command::run_later(&self.services, later), Self::is_stopped).await?;
        let micros = self.services.clock.monotonic().micros_since(from);
        self.pipeline.on_waited(&mut self.session, &self.services, &reply, micros, &mut self.output);
        Ok(())
    }

    async fn wait_for_pause(&mut self) -> io::Result<()> {
        self.flush().await?;
        let clients = self.services.clients.clone();
        let Some(left) = clients.pause_left(self.services.clock.monotonic()) else { return Ok(()) };
        // The pause may end between the look and the wait; short sleeps make a missed call harmless.
        let nap = Duration::from_millis(left.0.min(100));
        let end = async {
            tokio::select! {
                () = clients.unpaused() => {}
                () = tokio::time::sleep(nap) => {}
            }
        };
        // A stop of the node ends the pause: what was held back is answered.
        self.block(end, |connection| connection.session.client.is_doomed()).await
    }

    /// Waits, shown as blocked, until `is_over` when the connection is woken: then it ends.
    async fn block<T>(
        &self,
        waited: impl Future<Output = T>,
        is_over: impl Fn(&Connection) -> bool,
    ) -> io::Result<T> {
        let client = &self.session.client;
        client.is_blocked.store(true, Ordering::Relaxed);
        tokio::pin!(waited);
        let mut woken = false;
        let outcome = loop {
            tokio::select! {
                outcome = &mut waited => break Ok(outcome),
                () = client.wake.notified() => {
                    if is_over(self) {
                        break Err(io::Error::from(ErrorKind::ConnectionAborted));
                    }
                    woken = true;
                }
            }
        };
        client.is_blocked.store(false, Ordering::Relaxed);
        if woken {
            // What it was woken for is looked at where input is waited for.
            client.wake.notify_one();
        }
        outcome
    }

    // ---- output -----------------------------------------------------------------------------------

    /// Sends all replies; one system call when the client keeps up.
    async fn flush(&mut self) -> io::Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        let hard = self.session.config.output_limits.normal.hard;
        // No single reply is larger, and little stands before it.
        if hard > 0 && self.output.len() > hard.saturating_add(FLUSH_BYTES) {
            self.note_overrun();
            return Err(io::Error::other("output buffer limit"));
        }
        self.services.stats.output_bytes.fetch_add(self.output.len() as u64, Ordering::Relaxed);
        // A client that keeps up needs no look at the clock: the end of its batch is noted anyway.
        let mut has_waited = false;
        while !self.output.is_empty() {
            match self.stream.try_write(&self.output) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.output.advance(count);
                    self.pipeline.note_written(count);
                    if has_waited {
                        self.session.client.note_transfer(self.services.clock.monotonic());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !has_waited {
                        has_waited = true;
                        self.session.client.note_transfer(self.services.clock.monotonic());
                    }
                    self.until_writable().await?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.output.capacity() > KEPT_BYTES {
            self.output = BytesMut::new();
        } else {
            self.output.clear();
        }
        Ok(())
    }

    /// The client is closed for what it left unread.
    fn note_overrun(&self) {
        self.services.stats.output_limit_disconnections.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            client = self.session.client.id.0,
            addr = %self.session.client.addr,
            "closed: more replies and messages than client-output-buffer-limit"
        );
    }

    async fn until_writable(&self) -> io::Result<()> {
        let client = &self.session.client;
        client.output_bytes.store(self.output.len(), Ordering::Relaxed);
        let mut woken = false;
        let outcome = loop {
            tokio::select! {
                ready = self.stream.writable() => break ready,
                () = client.wake.notified() => {
                    if client.is_doomed() {
                        break Err(io::Error::from(ErrorKind::ConnectionAborted));
                    }
                    woken = true;
                }
            }
        };
        client.output_bytes.store(0, Ordering::Relaxed);
        if woken {
            client.wake.notify_one();
        }
        outcome
    }

    /// Closes our side and reads what the client still sends, for a short while.
    async fn linger(&mut self) {
        if self.stream.shutdown().await.is_err() {
            return;
        }
        let drain = async {
            let mut bin = [0; 4096];
            let mut count = 0;
            while count < LINGER_BYTES {
                match self.stream.read(&mut bin).await {
                    Ok(0) | Err(_) => break,
                    Ok(read) => count += read,
                }
            }
        };
        // A client that goes on sending, or never closes, has had its time.
        let _ended = tokio::time::timeout(LINGER, drain).await;
    }
}

/// Whether the buffer may hold further whole requests.
enum Decoded {
    All,
    More,
}
