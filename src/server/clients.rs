//! Who is connected: the registry behind CLIENT LIST, CLIENT KILL and CLIENT PAUSE.
//!
//! A connection tells its registry entry what it does once per batch of input, by relaxed atomics; only names,
//! which change rarely, stand behind a lock. Nothing here is taken on the way of a single command but one load of
//! the pause mode.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::config::OutputLimits;
use crate::resp::Reply;
use crate::server::gates::Found;
use crate::server::losses::Losses;
use crate::server::stats;
use crate::types::ClientId;
use crate::types::Millis;
use crate::types::Monotonic;

/// What a message takes in memory besides its text.
const MESSAGE_BYTES: usize = 160;
/// An idle client keeps its buffers this long.
pub const BUFFERS_KEPT: Millis = Millis(2_000);

/// One connected client, as others see it.
#[derive(Debug)]
pub struct ClientHandle {
    pub id: ClientId,
    pub addr: SocketAddr,
    /// The same, as people read it.
    pub address: Box<str>,
    pub laddr: SocketAddr,
    /// The socket's file descriptor, for people who look at `ss` or `lsof`.
    pub fd: i32,
    pub since: Monotonic,
    /// What changes rarely.
    pub names: Mutex<Names>,
    /// Nanoseconds of the monotonic clock.
    last_active: AtomicU64,
    /// Row number plus one, and the subcommand's plus one; 0 is none.
    last_command: AtomicU32,
    pub db: AtomicU8,
    pub protocol: AtomicU8,
    /// Commands queued by MULTI; -1 outside one.
    pub queued: AtomicI64,
    /// Keys watched.
    pub watched: AtomicUsize,
    /// Memory that queued commands and watched keys take, in bytes.
    pub transaction_bytes: AtomicUsize,
    /// Bytes received and not executed yet, and free bytes of that buffer.
    pub input_bytes: AtomicUsize,
    pub input_free: AtomicUsize,
    /// Bytes of replies not sent yet.
    pub output_bytes: AtomicUsize,
    pub is_unevictable: AtomicBool,
    pub leaves_keys_untouched: AtomicBool,
    /// READONLY is on.
    pub is_readonly: AtomicBool,
    /// Waits in a command (DEBUG SLEEP) or in CLIENT PAUSE.
    pub is_blocked: AtomicBool,
    /// Waits for a lock.
    pub is_waiting: AtomicBool,
    /// Has commands under way.
    pub is_executing: AtomicBool,
    /// Holds read and write buffers, which an idle client gives back.
    pub holds_buffers: AtomicBool,
    is_doomed: AtomicBool,
    /// Since when it has had to log in and has not, in nanoseconds of the monotonic clock; 0: it need not.
    stranger_since: AtomicU64,
    /// Since when it has left more unread than the soft limit allows, as the caretaker saw it; 0: it has not.
    above_soft_since: AtomicU64,
    /// It was closed for what it left unread.
    is_overrun: AtomicBool,
    /// It took or extended a lock while it spoke RESP3.
    takes_losses: AtomicBool,
    /// It was told of losses since its last reply.
    has_losses: AtomicBool,
    /// How its wait is to end that another client ends: 0 is not at all, 1 as in time, 2 with an error.
    unblock: AtomicU8,
    /// What it is sent besides replies, and about how much memory that takes.
    inbox: Mutex<Inbox>,
    inbox_bytes: AtomicUsize,
    hard_limits: Arc<HardLimits>,
    /// Subscriptions to channels and to patterns.
    pub channels: AtomicUsize,
    pub patterns: AtomicUsize,
    /// Memory that they take.
    pub subscription_bytes: AtomicUsize,
    /// Wakes the connection when it was doomed or the node shuts down.
    pub wake: Notify,
}

/// How much a client may leave unread, in bytes, by class; the limits of the configuration as the caretaker saw them
/// last. 0 is no bound.
#[derive(Debug, Default)]
struct HardLimits {
    normal: AtomicUsize,
    pubsub: AtomicUsize,
}

/// What waits to be sent to a client besides replies.
#[derive(Debug, Default)]
struct Inbox {
    messages: Vec<Reply>,
    losses: Losses,
}

/// The names a client goes by.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// CLIENT SETNAME.
    pub name: String,
    /// The ACL user.
    pub user: String,
    pub library: String,
    pub library_version: String,
}

impl ClientHandle {
    /// Notes that the client was active, and with which command last.
    pub fn note_activity(&self, now: Monotonic, last: Option<Found>) {
        self.last_active.store(now.0, Ordering::Relaxed);
        if let Some(found) = last {
            self.last_command.store(pack_command(found), Ordering::Relaxed);
        }
    }

    /// Notes that bytes came or went.
    #[inline]
    pub fn note_transfer(&self, now: Monotonic) {
        self.last_active.store(now.0, Ordering::Relaxed);
    }

    /// Asks the connection to close: at once when it waits, else after the command that runs.
    pub fn kill(&self) {
        self.is_doomed.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// True when it speaks RESP3, as of its last batch of commands.
    pub fn speaks_resp3(&self) -> bool {
        self.protocol.load(Ordering::Relaxed) == 3
    }

    /// Sends it something besides replies. One that takes nothing is closed in the end.
    pub fn push(&self, message: Reply) {
        if self.is_doomed() {
            return;
        }
        let bytes = message.size_hint() + MESSAGE_BYTES;
        let unread = {
            let mut inbox = self.inbox.lock();
            inbox.messages.push(message);
            self.inbox_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes
        };
        let hard = if self.is_subscribed() { &self.hard_limits.pubsub } else { &self.hard_limits.normal };
        let hard = hard.load(Ordering::Relaxed);
        if hard > 0 && unread + self.output_bytes.load(Ordering::Relaxed) > hard {
            self.overrun();
        } else {
            self.wake.notify_one();
        }
    }

    fn put(&self, inbox: &mut Inbox, message: Reply) {
        self.inbox_bytes.fetch_add(message.size_hint() + MESSAGE_BYTES, Ordering::Relaxed);
        inbox.messages.push(message);
    }

    /// Closes it for what it left unread, which nobody needs any more.
    fn overrun(&self) {
        self.is_overrun.store(true, Ordering::Relaxed);
        self.kill();
        drop(self.take_inbox());
    }

    /// True when it was closed for what it left unread.
    pub fn is_overrun(&self) -> bool {
        self.is_overrun.load(Ordering::Relaxed)
    }

    /// It has to log in, since then, or `None`: it need not.
    pub fn note_stranger(&self, since: Option<Monotonic>) {
        self.stranger_since.store(since.map_or(0, |since| since.0.max(1)), Ordering::Relaxed);
    }

    /// How long it has had to log in; `None` when it need not.
    fn stranger_for(&self, now: Monotonic) -> Option<Millis> {
        let since = self.stranger_since.load(Ordering::Relaxed);
        (since > 0).then(|| now.since(Monotonic(since)))
    }

    /// Replies and messages that it has not taken, in bytes.
    pub fn unread_bytes(&self) -> usize {
        self.output_bytes.load(Ordering::Relaxed) + self.inbox_bytes.load(Ordering::Relaxed)
    }

    /// Memory that it takes, nearly, in bytes: what it sent, what it is sent, its transaction, its subscriptions.
    pub fn memory_bytes(&self) -> usize {
        let load = |bytes: &AtomicUsize| bytes.load(Ordering::Relaxed);
        let input = load(&self.input_bytes) + load(&self.input_free);
        let kept = load(&self.transaction_bytes) + load(&self.subscription_bytes);
        input + kept + self.unread_bytes() + size_of::<ClientHandle>()
    }

    /// True when it has left more than `soft` bytes unread for `soft_for`. Called every time the caretaker looks.
    fn is_above_soft(&self, soft: usize, soft_for: Millis, now: Monotonic) -> bool {
        if soft == 0 || self.unread_bytes() <= soft {
            self.above_soft_since.store(0, Ordering::Relaxed);
            return false;
        }
        match self.above_soft_since.load(Ordering::Relaxed) {
            0 => self.above_soft_since.store(now.0.max(1), Ordering::Relaxed),
            since => return now.since(Monotonic(since)) >= soft_for,
        }
        false
    }

    /// From now on it is told of the locks that it loses, or not any more.
    pub fn take_losses(&self, takes: bool) {
        self.takes_losses.store(takes, Ordering::Relaxed);
    }

    /// True when it is to be told of locks that it lost.
    pub fn wants_losses(&self) -> bool {
        self.speaks_resp3() && self.takes_losses.load(Ordering::Relaxed)
    }

    /// It lost a lock: it is told so, by name or by a count later. True when [`ClientHandle::count_losses`] is to be
    /// called once it is quiet.
    pub fn lose(&self, message: impl FnOnce() -> Reply) -> bool {
        let mut inbox = self.inbox.lock();
        self.has_losses.store(true, Ordering::Release);
        if inbox.losses.lose() {
            self.put(&mut inbox, message());
            self.wake.notify_one();
        }
        inbox.losses.wants_count()
    }

    /// Tells it how many losses it was not told of, if it is due to hear that before its next reply.
    pub fn count_losses(&self) {
        let mut inbox = self.inbox.lock();
        if let Some(message) = inbox.losses.count() {
            self.put(&mut inbox, message);
            self.wake.notify_one();
        }
    }

    /// A reply comes next: what is to be written before it.
    #[inline]
    pub fn losses_before_reply(&self) -> Option<Reply> {
        let has_losses = self.has_losses.load(Ordering::Acquire);
        has_losses.then(|| self.inbox.lock().losses.before_reply()).flatten()
    }

    /// Replies were written.
    #[inline]
    pub fn has_replied(&self) {
        if self.has_losses.load(Ordering::Relaxed) {
            let mut inbox = self.inbox.lock();
            inbox.losses.replied();
            self.has_losses.store(!inbox.losses.is_empty(), Ordering::Relaxed);
        }
    }

    /// True while it is subscribed to a channel or a pattern.
    pub fn is_subscribed(&self) -> bool {
        self.channels.load(Ordering::Relaxed) + self.patterns.load(Ordering::Relaxed) > 0
    }

    /// What it was sent since the last call.
    pub fn take_inbox(&self) -> Vec<Reply> {
        let mut inbox = self.inbox.lock();
        inbox.losses.wrote();
        self.inbox_bytes.store(0, Ordering::Relaxed);
        std::mem::take(&mut inbox.messages)
    }

    /// Ends its wait, if it waits for a lock. False when it does not.
    pub fn unblock(&self, with_error: bool) -> bool {
        if !self.is_waiting.load(Ordering::Acquire) {
            return false;
        }
        self.unblock.store(1 + u8::from(with_error), Ordering::Release);
        self.wake.notify_one();
        true
    }

    /// How its wait is to end, if another client wants it to: with an error or not.
    pub fn take_unblock(&self) -> Option<bool> {
        match self.unblock.swap(0, Ordering::AcqRel) {
            0 => None,
            how => Some(how == 2),
        }
    }

    /// True once the client was killed.
    pub fn is_doomed(&self) -> bool {
        self.is_doomed.load(Ordering::Acquire)
    }

    /// Seconds since the client connected.
    pub fn age_seconds(&self, now: Monotonic) -> u64 {
        now.since(self.since).0 / 1000
    }

    /// How long the client has sent nothing and taken nothing.
    pub fn idle(&self, now: Monotonic) -> Millis {
        now.since(Monotonic(self.last_active.load(Ordering::Relaxed)))
    }

    /// True while the client is the one who is waited for: not while it waits itself, nor while its commands are
    /// under way and none of its replies.
    fn is_its_turn(&self) -> bool {
        let is_served = self.is_executing.load(Ordering::Relaxed);
        let takes_nothing = self.output_bytes.load(Ordering::Relaxed) > 0;
        !self.is_blocked.load(Ordering::Relaxed) && (!is_served || takes_nothing)
    }

    fn last_command_name(&self) -> String {
        let packed = self.last_command.load(Ordering::Relaxed);
        let Some(row) = (packed >> 16).checked_sub(1).and_then(|row| stats::rows().get(row as usize)) else {
            return "NULL".to_owned();
        };
        match (packed & 0xffff).checked_sub(1).and_then(|sub| row.subcommands.get(sub as usize)) {
            Some(sub) => format!("{}|{}", row.name, sub.name),
            None => row.name.to_owned(),
        }
    }

    fn flags(&self) -> String {
        let mut flags = String::new();
        if self.queued.load(Ordering::Relaxed) >= 0 {
            flags.push('x');
        }
        if self.is_blocked.load(Ordering::Relaxed) {
            flags.push('b');
        }
        if self.is_subscribed() {
            flags.push('P');
        }
        if self.is_doomed() {
            flags.push('A');
        }
        if self.is_readonly.load(Ordering::Relaxed) {
            flags.push('r');
        }
        if self.is_unevictable.load(Ordering::Relaxed) {
            flags.push('e');
        }
        if self.leaves_keys_untouched.load(Ordering::Relaxed) {
            flags.push('T');
        }
        if flags.is_empty() {
            flags.push('N');
        }
        flags
    }

    /// The client's line of CLIENT LIST, with the fields of Redis 7.2.
    pub fn describe(&self, now: Monotonic) -> String {
        let names = self.names.lock().clone();
        let idle = self.idle(now).0 / 1000;
        let input = self.input_bytes.load(Ordering::Relaxed);
        let free = self.input_free.load(Ordering::Relaxed);
        let output = self.output_bytes.load(Ordering::Relaxed);
        let transaction = self.transaction_bytes.load(Ordering::Relaxed);
        let inbox = self.inbox_bytes.load(Ordering::Relaxed);
        let mut line = String::with_capacity(320);
        let _infallible = write!(
            line,
            "id={} addr={} laddr={} fd={} name={} age={} idle={idle} flags={} db={} sub={} psub={} ssub=0 multi={} \
             watch={} qbuf={input} qbuf-free={free} argv-mem=0 multi-mem={transaction} rbs=0 rbp=0 obl={output} oll=0 omem={inbox} \
             tot-mem={} events=r cmd={} user={} redir=-1 resp={} lib-name={} lib-ver={}",
            self.id.0,
            self.addr,
            self.laddr,
            self.fd,
            names.name,
            self.age_seconds(now),
            self.flags(),
            self.db.load(Ordering::Relaxed),
            self.channels.load(Ordering::Relaxed),
            self.patterns.load(Ordering::Relaxed),
            self.queued.load(Ordering::Relaxed),
            self.watched.load(Ordering::Relaxed),
            self.memory_bytes(),
            self.last_command_name(),
            names.user,
            self.protocol.load(Ordering::Relaxed),
            names.library,
            names.library_version,
        );
        line
    }
}

fn pack_command(found: Found) -> u32 {
    let number = |index: usize| u32::try_from(index + 1).unwrap_or(0) & 0xffff;
    (stats::row_index(found.row).map_or(0, number) << 16) | found.sub.map_or(0, |(at, _)| number(at))
}

/// How long clients may take; zero is for ever.
#[derive(Debug, Clone, Copy, Default)]
pub struct Patience {
    /// To send or take anything.
    pub idle: Millis,
    /// To log in.
    pub login: Millis,
    /// To send more of a request that has begun.
    pub request: Millis,
}

/// How many clients were closed because their time was over.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Impatient {
    /// Those that did not log in.
    pub strangers: u64,
    /// Those that did not go on with a request.
    pub stalled: u64,
}

/// What the buffers of all clients may take, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Together {
    pub max: u64,
    /// What each of them may take in any case; as many as may connect take no more than `max` so.
    pub share: u64,
}

impl Together {
    /// `max` for so many clients; `None` is no bound.
    #[must_use]
    pub fn new(max: Option<u64>, clients: usize) -> Together {
        let max = max.unwrap_or(u64::MAX);
        Together { max, share: max / (clients as u64).max(1) }
    }
}

/// What the buffers of all clients take together.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Bytes, without those of clients that are being closed.
    pub bytes: u64,
    /// Clients that were closed because they took most, and what they took.
    pub evicted: u64,
    pub evicted_bytes: u64,
}

/// Which commands CLIENT PAUSE holds back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Paused {
    Nothing,
    Writes,
    All,
}

#[derive(Debug)]
struct Registry {
    clients: DashMap<ClientId, Arc<ClientHandle>>,
    count: AtomicUsize,
    next_id: AtomicU64,
    /// As [`Paused`].
    paused: AtomicU8,
    paused_until: Mutex<Monotonic>,
    /// Wakes all who wait for the end of a pause.
    unpaused: Notify,
    hard_limits: Arc<HardLimits>,
}

/// All connected clients; a cheap handle.
#[derive(Debug, Clone)]
pub struct Clients {
    registry: Arc<Registry>,
}

impl Default for Clients {
    fn default() -> Clients {
        Clients::new()
    }
}

impl Clients {
    /// Nobody yet.
    #[must_use]
    pub fn new() -> Clients {
        let registry = Registry {
            clients: DashMap::new(),
            count: AtomicUsize::new(0),
            next_id: AtomicU64::new(1),
            paused: AtomicU8::new(Paused::Nothing as u8),
            paused_until: Mutex::new(Monotonic(0)),
            unpaused: Notify::new(),
            hard_limits: Arc::default(),
        };
        Clients { registry: Arc::new(registry) }
    }

    /// Enters a new client. The entry stays until [`Clients::remove`].
    pub fn add(&self, addr: SocketAddr, laddr: SocketAddr, fd: i32, now: Monotonic) -> Arc<ClientHandle> {
        let id = ClientId(self.registry.next_id.fetch_add(1, Ordering::Relaxed));
        let handle = Arc::new(ClientHandle {
            id,
            addr,
            address: addr.to_string().into(),
            laddr,
            fd,
            since: now,
            names: Mutex::new(Names { user: "default".to_owned(), ..Names::default() }),
            last_active: AtomicU64::new(now.0),
            last_command: AtomicU32::new(0),
            db: AtomicU8::new(0),
            protocol: AtomicU8::new(2),
            queued: AtomicI64::new(-1),
            watched: AtomicUsize::new(0),
            transaction_bytes: AtomicUsize::new(0),
            input_bytes: AtomicUsize::new(0),
            input_free: AtomicUsize::new(0),
            output_bytes: AtomicUsize::new(0),
            is_unevictable: AtomicBool::new(false),
            leaves_keys_untouched: AtomicBool::new(false),
            is_readonly: AtomicBool::new(false),
            is_blocked: AtomicBool::new(false),
            is_waiting: AtomicBool::new(false),
            is_executing: AtomicBool::new(false),
            holds_buffers: AtomicBool::new(true),
            is_doomed: AtomicBool::new(false),
            stranger_since: AtomicU64::new(0),
            above_soft_since: AtomicU64::new(0),
            is_overrun: AtomicBool::new(false),
            takes_losses: AtomicBool::new(false),
            has_losses: AtomicBool::new(false),
            unblock: AtomicU8::new(0),
            inbox: Mutex::default(),
            inbox_bytes: AtomicUsize::new(0),
            hard_limits: Arc::clone(&self.registry.hard_limits),
            channels: AtomicUsize::new(0),
            patterns: AtomicUsize::new(0),
            subscription_bytes: AtomicUsize::new(0),
            wake: Notify::new(),
        });
        self.registry.clients.insert(id, Arc::clone(&handle));
        self.registry.count.fetch_add(1, Ordering::Relaxed);
        handle
    }

    /// Takes a client out.
    pub fn remove(&self, id: ClientId) {
        if self.registry.clients.remove(&id).is_some() {
            self.registry.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A client.
    #[must_use]
    pub fn get(&self, id: ClientId) -> Option<Arc<ClientHandle>> {
        self.registry.clients.get(&id).map(|entry| Arc::clone(entry.value()))
    }

    /// Number of clients.
    #[must_use]
    pub fn len(&self) -> usize {
        self.registry.count.load(Ordering::Relaxed)
    }

    /// True when nobody is connected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All clients, oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<ClientHandle>> {
        let mut all: Vec<_> = self.registry.clients.iter().map(|entry| Arc::clone(entry.value())).collect();
        all.sort_by_key(|client| client.id);
        all
    }

    /// How many clients wait in a command or in a pause.
    #[must_use]
    pub fn blocked(&self) -> usize {
        self.registry.clients.iter().filter(|entry| entry.is_blocked.load(Ordering::Relaxed)).count()
    }

    /// Once a second: closes clients whose time is over, and lets those that pause give their buffers back.
    pub fn look_after_idle(&self, now: Monotonic, patience: &Patience) -> Impatient {
        let mut closed = Impatient::default();
        let is_over = |time: Millis, bound: Millis| bound.0 > 0 && time > bound;
        for client in &self.registry.clients {
            if client.is_doomed() {
                continue;
            }
            if client.stranger_for(now).is_some_and(|time| is_over(time, patience.login)) {
                client.kill();
                closed.strangers += 1;
                continue;
            }
            let idle = client.idle(now);
            if !client.is_its_turn() {
                continue;
            }
            let has_begun = client.input_bytes.load(Ordering::Relaxed) > 0;
            if has_begun && !client.is_executing.load(Ordering::Relaxed) && is_over(idle, patience.request) {
                client.kill();
                closed.stalled += 1;
            } else if is_over(idle, patience.idle) && !client.is_subscribed() {
                // Who subscribed has nothing to say.
                client.kill();
            } else if idle >= BUFFERS_KEPT && client.holds_buffers.load(Ordering::Relaxed) {
                client.wake.notify_one();
            }
        }
        closed
    }

    /// Ten times a second: closes those that leave too much unread, and those that take most while all together take
    /// more than `together` allows. Who takes no more than `together.share` stays: one that may not be closed must
    /// not cost all others their connections.
    pub fn look_after_memory(&self, now: Monotonic, limits: &OutputLimits, together: &Together) -> Memory {
        let hard_limits = &self.registry.hard_limits;
        hard_limits.normal.store(limits.normal.hard, Ordering::Relaxed);
        hard_limits.pubsub.store(limits.pubsub.hard, Ordering::Relaxed);
        let (mut found, mut sizes) = (Memory::default(), Vec::new());
        for client in &self.registry.clients {
            if client.is_doomed() {
                continue;
            }
            let limit = if client.is_subscribed() { &limits.pubsub } else { &limits.normal };
            let soft_for = Millis(u64::try_from(limit.soft_for.as_millis()).unwrap_or(u64::MAX));
            if client.is_above_soft(limit.soft, soft_for, now) {
                client.overrun();
                continue;
            }
            let bytes = client.memory_bytes() as u64;
            found.bytes += bytes;
            if bytes > together.share && !client.is_unevictable.load(Ordering::Relaxed) {
                sizes.push((bytes, client.id));
            }
        }
        if found.bytes > together.max {
            sizes.sort_unstable();
        }
        while found.bytes > together.max {
            let Some((bytes, id)) = sizes.pop() else { break };
            if let Some(client) = self.get(id) {
                client.kill();
                found.evicted += 1;
                found.evicted_bytes += bytes;
            }
            found.bytes -= bytes;
        }
        found
    }

    /// Wakes every connection, so that it sees that the node shuts down.
    pub fn wake_all(&self) {
        for entry in &self.registry.clients {
            entry.wake.notify_one();
        }
    }

    /// What is held back now, whether or not its time is over: one relaxed load.
    #[inline]
    #[must_use]
    pub fn paused(&self) -> Paused {
        match self.registry.paused.load(Ordering::Relaxed) {
            0 => Paused::Nothing,
            1 => Paused::Writes,
            _ => Paused::All,
        }
    }

    /// Holds commands back for `length`. A pause that runs already is only made wider and longer, as in Redis.
    pub fn pause(&self, what: Paused, now: Monotonic, length: Millis) {
        let mut until = self.registry.paused_until.lock();
        let end = Monotonic(now.0.saturating_add(length.0.saturating_mul(1_000_000)));
        let running = if *until > now { self.paused() } else { Paused::Nothing };
        *until = if running == Paused::Nothing { end } else { end.max(*until) };
        self.registry.paused.store(running.max(what) as u8, Ordering::Relaxed);
    }

    /// Ends the pause.
    pub fn unpause(&self) {
        let mut until = self.registry.paused_until.lock();
        *until = Monotonic(0);
        self.registry.paused.store(Paused::Nothing as u8, Ordering::Relaxed);
        self.registry.unpaused.notify_waiters();
    }

    /// How long the pause still lasts; `None`, and the pause is over, when its time has come.
    #[must_use]
    pub fn pause_left(&self, now: Monotonic) -> Option<Millis> {
        let until = self.registry.paused_until.lock();
        if *until > now {
            return Some(Millis(until.since(now).0 + 1));
        }
        self.registry.paused.store(Paused::Nothing as u8, Ordering::Relaxed);
        None
    }

    /// Resolves at the next CLIENT UNPAUSE.
    pub async fn unpaused(&self) {
        self.registry.unpaused.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::OutputLimit;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn ids_grow_and_are_not_used_again() {
        let clients = Clients::new();
        let first = clients.add(address(1), address(6379), 7, Monotonic(0)).id;
        clients.remove(first);
        let second = clients.add(address(1), address(6379), 7, Monotonic(0)).id;
        assert!(second > first);
        assert_eq!(clients.len(), 1);
    }

    #[test]
    fn a_line_of_client_list_has_the_fields_that_clients_parse() {
        let clients = Clients::new();
        let client = clients.add(address(50000), address(6379), 9, Monotonic(1_000_000_000));
        client.names.lock().name = "worker".into();
        let line = client.describe(Monotonic(4_500_000_000));
        assert!(line.starts_with(
            "id=1 addr=127.0.0.1:50000 laddr=127.0.0.1:6379 fd=9 name=worker age=3 idle=3 flags=N db=0"
        ));
        assert!(line.contains(" multi=-1 watch=0 qbuf=0 "));
        assert!(line.ends_with(" cmd=NULL user=default redir=-1 resp=2 lib-name= lib-ver="));
    }

    fn at(seconds: u64) -> Monotonic {
        Monotonic(seconds * 1_000_000_000)
    }

    fn add(clients: &Clients, port: u16) -> Arc<ClientHandle> {
        clients.add(address(port), address(6379), 7, at(0))
    }

    fn doomed<const N: usize>(clients: [&ClientHandle; N]) -> [bool; N] {
        clients.map(ClientHandle::is_doomed)
    }

    #[test]
    fn only_a_client_that_is_waited_for_is_closed_as_idle() {
        let clients = Clients::new();
        let [idle, moving, executing, unread] = [1, 2, 3, 4].map(|port| add(&clients, port));
        moving.note_transfer(at(9));
        executing.is_executing.store(true, Ordering::Relaxed);
        unread.is_executing.store(true, Ordering::Relaxed);
        unread.output_bytes.store(1, Ordering::Relaxed);
        clients.look_after_idle(at(10), &Patience { idle: Millis(5_000), ..Patience::default() });
        assert_eq!(doomed([&idle, &moving, &executing, &unread]), [true, false, false, true]);
    }

    #[test]
    fn a_request_that_does_not_get_on_is_given_up() {
        let clients = Clients::new();
        let [stalled, moving, complete, executing] = [1, 2, 3, 4].map(|port| add(&clients, port));
        for client in [&stalled, &moving, &executing] {
            client.input_bytes.store(60 << 20, Ordering::Relaxed);
        }
        moving.note_transfer(at(9));
        executing.is_executing.store(true, Ordering::Relaxed);
        let patience = Patience { request: Millis(5_000), ..Patience::default() };
        let closed = clients.look_after_idle(at(10), &patience);
        assert_eq!(closed, Impatient { stalled: 1, strangers: 0 });
        assert_eq!(doomed([&stalled, &moving, &complete, &executing]), [true, false, false, false]);
    }

    #[test]
    fn who_does_not_log_in_is_closed_however_busy() {
        let clients = Clients::new();
        let [late, early, member] = [1, 2, 3].map(|port| add(&clients, port));
        late.note_stranger(Some(at(0)));
        early.note_stranger(Some(at(8)));
        member.note_stranger(Some(at(0)));
        member.note_stranger(None);
        for client in [&late, &early, &member] {
            client.note_transfer(at(10));
        }
        let patience = Patience { login: Millis(5_000), ..Patience::default() };
        let closed = clients.look_after_idle(at(10), &patience);
        assert_eq!(closed, Impatient { strangers: 1, stalled: 0 });
        assert_eq!(doomed([&late, &early, &member]), [true, false, false]);
    }

    /// One look at the memory of all clients, at this second.
    fn look(clients: &Clients, seconds: u64, together_max: Option<u64>) -> Memory {
        let limits = OutputLimits {
            normal: OutputLimit { hard: 1_000_000, ..OutputLimit::default() },
            pubsub: OutputLimit { hard: 50_000, soft: 10_000, soft_for: Duration::from_secs(60) },
            ..OutputLimits::default()
        };
        clients.look_after_memory(at(seconds), &limits, &Together::new(together_max, 100))
    }

    #[test]
    fn the_fattest_clients_go_while_all_take_too_much() {
        let clients = Clients::new();
        let [small, middle, fat, protected, fattest] = [1, 2, 3, 4, 5].map(|port| add(&clients, port));
        small.input_bytes.store(10_000, Ordering::Relaxed);
        middle.input_free.store(20_000, Ordering::Relaxed);
        fat.transaction_bytes.store(30_000, Ordering::Relaxed);
        protected.output_bytes.store(90_000, Ordering::Relaxed);
        protected.is_unevictable.store(true, Ordering::Relaxed);
        fattest.subscription_bytes.store(40_000, Ordering::Relaxed);
        assert_eq!((look(&clients, 0, None).evicted, look(&clients, 0, Some(1 << 20)).evicted), (0, 0));
        let found = look(&clients, 0, Some(130_000));
        let all = [&small, &middle, &fat, &protected, &fattest];
        assert_eq!(all.map(|client| client.is_doomed()), [false, false, true, false, true]);
        assert_eq!((found.evicted, found.evicted_bytes > 70_000, found.bytes <= 130_000), (2, true, true));
        // Those that are going count no more, and who may stay stays.
        assert_eq!(look(&clients, 0, Some(130_000)).evicted, 0);
        // However little is allowed, who takes no more than its share stays.
        look(&clients, 0, Some(100 * 15_000));
        protected.output_bytes.store(9_000_000, Ordering::Relaxed);
        look(&clients, 0, Some(100 * 15_000));
        assert_eq!(all.map(|client| client.is_doomed()), [false, true, true, false, true]);
    }

    #[test]
    fn a_subscriber_that_takes_nothing_is_closed_at_the_hard_limit() {
        let clients = Clients::new();
        let [subscriber, other] = [1, 2].map(|port| add(&clients, port));
        subscriber.channels.store(1, Ordering::Relaxed);
        look(&clients, 0, None);
        for client in [&subscriber, &other] {
            (0..5).for_each(|_| client.push(Reply::bulk([b'm'; 9_000])));
            assert!(!client.is_doomed() && client.unread_bytes() > 45_000);
            client.push(Reply::bulk([b'm'; 9_000]));
        }
        assert_eq!(doomed([&subscriber, &other]), [true, false]);
        assert!(subscriber.is_overrun() && subscriber.unread_bytes() == 0);
        assert_eq!((other.take_inbox().len(), other.unread_bytes()), (6, 0));
    }

    #[test]
    fn the_soft_limit_is_one_that_is_passed_for_long() {
        let clients = Clients::new();
        let [lasting, passing] = [1, 2].map(|port| add(&clients, port));
        for client in [&lasting, &passing] {
            client.patterns.store(1, Ordering::Relaxed);
            client.push(Reply::bulk([b'm'; 11_000]));
        }
        look(&clients, 10, None);
        passing.take_inbox();
        look(&clients, 40, None);
        passing.push(Reply::bulk([b'm'; 11_000]));
        for (seconds, expected) in [(69, [false, false]), (70, [true, false])] {
            look(&clients, seconds, None);
            assert_eq!(doomed([&lasting, &passing]), expected, "{seconds}");
        }
    }

    #[test]
    fn memory_of_a_transaction_is_shown() {
        let clients = Clients::new();
        let client = clients.add(address(1), address(6379), 7, Monotonic(0));
        client.transaction_bytes.store(1_000, Ordering::Relaxed);
        let total = 1_000 + size_of::<ClientHandle>();
        let line = client.describe(Monotonic(0));
        assert!(line.contains(" multi-mem=1000 ") && line.contains(&format!(" tot-mem={total} ")), "{line}");
    }

    #[test]
    fn a_pause_is_only_made_wider_and_longer() {
        let clients = Clients::new();
        let at = |ms: u64| Monotonic(ms * 1_000_000);
        clients.pause(Paused::All, at(0), Millis(200));
        clients.pause(Paused::Writes, at(10), Millis(20));
        assert_eq!((clients.paused(), clients.pause_left(at(10))), (Paused::All, Some(Millis(191))));
        assert_eq!(clients.pause_left(at(200)), None);
        assert_eq!(clients.paused(), Paused::Nothing);
        clients.pause(Paused::Writes, at(300), Millis(20));
        assert_eq!(clients.paused(), Paused::Writes);
        clients.unpause();
        assert_eq!(clients.paused(), Paused::Nothing);
    }

    #[test]
    fn a_killed_client_is_marked() {
        let clients = Clients::new();
        let client = clients.add(address(1), address(6379), 7, Monotonic(0));
        client.kill();
        assert!(client.is_doomed());
        assert!(client.describe(Monotonic(0)).contains("flags=A"));
    }
}
