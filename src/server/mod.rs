//! The RESP front end: sockets, sessions, and the way of a command from bytes to bytes.
//!
//! ```text
//! listener ──► connection ──► dispatch ──► gates ──► a read guard, a batch for the log, or the session itself
//!              one task        the order    what may     transaction  session  client_command  info
//!              per client      of things    not run      config_command  admin_commands  raft_command
//! ```
//! Beside it stand what all connections share: the registry of clients, the slow log, the counters, and what is known
//! of the other members (`members`, `verify`).

mod admin_commands;
mod client_command;
pub mod clients;
mod config_command;
mod connection;
pub mod disk;
mod dispatch;
mod errors;
mod gates;
mod group_slot;
mod info;
mod listener;
pub mod lock_waits;
mod login_failures;
mod losses;
pub mod members;
pub mod pubsub;
mod raft_command;
mod reply_bounds;
mod session;
pub mod slowlog;
pub mod stats;
mod transaction;
mod verify;

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::clock::Clock;
use crate::config::Config;
use crate::config::SharedConfig;
use crate::server::clients::ClientHandle;
use crate::server::clients::Clients;
use crate::server::disk::Allowance;
use crate::server::disk::DiskGate;
use crate::server::group_slot::GroupSlot;
use crate::server::login_failures::LoginFailures;
use crate::server::login_failures::Verdict;
use crate::server::pubsub::PubSub;
use crate::server::slowlog::Slowlog;
use crate::server::stats::Stats;
use crate::storage::disk::DiskGauge;
use crate::telemetry::process;
use crate::types::ClientId;
use crate::types::Millis;
use crate::types::Monotonic;

/// How often an attack is logged.
const WARNED_EVERY: Millis = Millis(60_000);
/// How much of a stranger's user name is logged.
const SHOWN_USER_BYTES: usize = 64;

/// What all connections share.
pub struct Services {
    pub config: SharedConfig,
    pub clock: Arc<dyn Clock>,
    /// The one group of this version, once it is there.
    pub group: GroupSlot,
    pub clients: Clients,
    pub pubsub: PubSub,
    pub slowlog: Slowlog,
    pub stats: Stats,
    pub shutdown: Shutdown,
    /// How full this node's disk is.
    pub disk: Arc<DiskGauge>,
    /// How much data this node's clients may add before the next look at the disks.
    pub allowance: Allowance,
    /// Bytes of memory that the process takes, as of the last look, ten times a second.
    pub used_memory: AtomicU64,
    /// Bytes of memory that the buffers of all clients take, as of the same look.
    pub client_memory: AtomicU64,
    /// Memory that the machine, or this process's cgroup, has, in bytes; 0 is not known.
    machine_memory: u64,
    /// When the server started.
    pub started: Monotonic,
    /// 40 hexadecimal digits, new with every start.
    pub run_id: String,
    seed: AtomicU64,
    /// Tells the clients of this process from those of others with the same numbers.
    client_nonce: u32,
    is_loading: AtomicBool,
    /// The index at which this node's state was found to be wrong; 0: it was not.
    diverged_at: AtomicU64,
    /// Cross-protocol scripting, and clients that were closed for memory.
    told_of_attack: Seldom,
    told_of_eviction: Seldom,
    login_failures: Mutex<LoginFailures>,
    /// For names that strangers choose.
    hasher: RandomState,
    /// What the disks of the cluster allow, as a number.
    disk_gate: AtomicU8,
}

impl Services {
    /// Everything a server needs, with empty registries and no group yet: it loads until [`Services::set_loaded`].
    /// `shutdown` may be shared with the signal handler.
    #[must_use]
    pub fn new(config: SharedConfig, clock: Arc<dyn Clock>, shutdown: Shutdown) -> Services {
        // The standard library's hasher is seeded by the operating system: enough for names and dice.
        let random = RandomState::new();
        let word = |n: u64| random.hash_one(n);
        let run_id = format!("{:016x}{:016x}{:08x}", word(1), word(2), word(3) >> 32);
        Services {
            config,
            started: clock.monotonic(),
            group: GroupSlot::empty(&clock),
            clock,
            clients: Clients::new(),
            pubsub: PubSub::default(),
            slowlog: Slowlog::default(),
            stats: Stats::default(),
            shutdown,
            disk: Arc::default(),
            allowance: Allowance::default(),
            used_memory: AtomicU64::new(info::resident_bytes()),
            client_memory: AtomicU64::new(0),
            machine_memory: process::memory_limit_bytes(),
            run_id,
            seed: AtomicU64::new(word(4)),
            client_nonce: word(5) as u32,
            is_loading: AtomicBool::new(true),
            diverged_at: AtomicU64::new(0),
            told_of_attack: Seldom::default(),
            told_of_eviction: Seldom::default(),
            login_failures: Mutex::default(),
            disk_gate: AtomicU8::new(DiskGate::Open.code()),
            hasher: random,
        }
    }

    /// What the log calls a client of this process.
    fn client_number(&self, id: ClientId) -> u64 {
        u64::from(self.client_nonce) << 32 | (id.0 & u64::from(u32::MAX))
    }

    /// The client that the log calls so, if it is one of this process.
    fn client_of(&self, number: u64) -> Option<Arc<ClientHandle>> {
        let client = self.clients.get(ClientId(number & u64::from(u32::MAX)))?;
        (self.client_number(client.id) == number).then_some(client)
    }

    /// True when the process takes more memory than `max_memory`, which is in bytes; 0 is no bound.
    #[inline]
    fn is_memory_full(&self, max_memory: u64) -> bool {
        max_memory > 0 && self.used_memory.load(Ordering::Relaxed) > max_memory
    }

    /// What the disks of the cluster allow.
    #[inline]
    #[must_use]
    pub fn disk_gate(&self) -> DiskGate {
        DiskGate::of(self.disk_gate.load(Ordering::Relaxed))
    }

    /// The disks of the cluster allow this from now on.
    fn set_disk_gate(&self, gate: DiskGate) {
        self.disk_gate.store(gate.code(), Ordering::Relaxed);
    }

    /// True until the group is there and has what it needs to serve.
    #[inline]
    #[must_use]
    pub fn is_loading(&self) -> bool {
        self.is_loading.load(Ordering::Acquire)
    }

    /// Commands that want data are served from now on.
    pub fn set_loaded(&self) {
        self.is_loading.store(false, Ordering::Release);
    }

    /// The index at which this node's state was found to differ from the others', if it was: then it serves no data.
    #[inline]
    #[must_use]
    pub fn diverged_at(&self) -> Option<u64> {
        match self.diverged_at.load(Ordering::Relaxed) {
            0 => None,
            index => Some(index),
        }
    }

    /// This node's state is wrong as of `index`. True when that is news.
    fn note_divergence(&self, index: u64) -> bool {
        let relaxed = Ordering::Relaxed;
        self.diverged_at.compare_exchange(0, index.max(1), relaxed, relaxed).is_ok()
    }

    /// Says in the log that a browser was made to talk to this port; once a minute, since a page can do so often.
    fn warn_of_cross_protocol(&self, client: &ClientHandle) {
        if !self.told_of_attack.is_due(self.clock.monotonic(), WARNED_EVERY) {
            return;
        }
        tracing::warn!(
            addr = %client.addr,
            "Possible SECURITY ATTACK detected: somebody sends POST or Host: to this port. Most likely a web page makes \
             a browser send commands in the body of an HTTP request (cross-protocol scripting). The connection was \
             closed, and nothing that followed was executed"
        );
    }

    /// Counts a wrong password, and says what becomes of its answer. `free` is `auth-failures-free`.
    fn note_login_failure(&self, from: SocketAddr, user: &[u8], free: u32) -> Verdict {
        self.stats.auth_failures.fetch_add(1, Ordering::Relaxed);
        let (now, hash) = (self.clock.monotonic(), self.hasher.hash_one(user));
        let failure = self.login_failures.lock().note(from.ip(), hash, free, now);
        if failure.told > 0 {
            let user = user[..user.len().min(SHOWN_USER_BYTES)].escape_ascii();
            tracing::warn!(
                "wrong password: {} failed logins of user '{user}' from {from} since this was last told",
                failure.told
            );
        }
        failure.verdict
    }

    /// What the buffers of all clients may take, in bytes; `None` is no bound.
    fn client_memory_max(&self, config: &Config) -> Option<u64> {
        let whole = if config.max_memory > 0 { config.max_memory } else { self.machine_memory };
        config.max_memory_clients.bytes(whole)
    }

    /// A number for a connection's dice; no two connections get the same.
    fn next_seed(&self) -> u64 {
        self.seed.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)
    }
}

/// When something was last logged that may come often: nanoseconds of the monotonic clock; 0 is never.
#[derive(Debug, Default)]
struct Seldom(AtomicU64);

impl Seldom {
    /// True when it was not logged for so long; then it is now.
    fn is_due(&self, now: Monotonic, every: Millis) -> bool {
        let before = self.0.load(Ordering::Relaxed);
        let is_due = before == 0 || now.since(Monotonic(before)) >= every;
        if is_due {
            self.0.store(now.0.max(1), Ordering::Relaxed);
        }
        is_due
    }
}

/// The order to stop; clones share it.
#[derive(Debug, Clone)]
pub struct Shutdown {
    sender: Arc<watch::Sender<bool>>,
    /// The same, for looks that must cost nothing: every connection looks after every batch of input.
    is_requested: Arc<AtomicBool>,
}

impl Default for Shutdown {
    fn default() -> Shutdown {
        Shutdown {
            sender: Arc::new(watch::Sender::new(false)),
            is_requested: Arc::new(AtomicBool::new(false)),
        }
    }
}

impl Shutdown {
    /// Nobody asked for it yet.
    #[must_use]
    pub fn new() -> Shutdown {
        Shutdown::default()
    }

    /// Asks everybody to stop. May be called many times.
    pub fn request(&self) {
        self.is_requested.store(true, Ordering::Release);
        self.sender.send_replace(true);
    }

    /// True once it was asked for.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.is_requested.load(Ordering::Acquire)
    }

    /// Resolves once it was asked for. Cancel safe.
    pub async fn requested(&self) {
        self.subscribe().requested().await;
    }

    /// A view of its own, for loops that look again and again.
    #[must_use]
    pub fn subscribe(&self) -> Stopped {
        Stopped { receiver: self.sender.subscribe() }
    }
}

/// Waits for [`Shutdown::request`].
#[derive(Debug)]
pub struct Stopped {
    receiver: watch::Receiver<bool>,
}

impl Stopped {
    /// Resolves once a stop was asked for, also when that was before the call. Cancel safe.
    pub async fn requested(&mut self) {
        // The sender lives in the services; if it is gone, so is everything that could serve.
        let _sender_is_gone = self.receiver.wait_for(|requested| *requested).await.is_err();
    }
}

/// Serves clients on these listeners until [`Shutdown::request`]. Requests that were read by then are answered;
/// returns when all connections are closed, ten seconds later at the latest.
pub async fn serve(services: Arc<Services>, listeners: Vec<TcpListener>) {
    let mut loops = JoinSet::new();
    for listener in listeners {
        loops.spawn(listener::accept_loop(Arc::clone(&services), listener));
    }
    let caretaker = tokio::spawn(listener::look_after_node(Arc::clone(&services)));
    while let Some(ended) = loops.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "an accept loop ended");
        }
    }
    caretaker.abort();
}
