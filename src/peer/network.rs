//! All links of this node: who is a peer, dialing, listening, and which connection counts.
//!
//! ```text
//! a peer with a higher id:  dialing ──handshake──► up ──link ends──► pause (50 ms to 1 s) ──► dialing
//! a peer with a lower id:   waiting ──accepted───► up ──link ends──► waiting
//!                                   up ──accepted anew──► down, then up: the same process, whose older may be half open
//!                                   up ──another process──► refused, while the link is up; it ends when nobody answers
//! ```
//! Everything here but `send` runs on one thread, peer-io, so the calls of a handler never overlap and a
//! link's messages lie between its `on_up` and its `on_down`.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use parking_lot::RwLock;
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::sync::oneshot;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use crate::clock::Clock;
use crate::peer::Channel;
use crate::peer::Handler;
use crate::peer::Hello;
use crate::peer::LinkStatus;
use crate::peer::NetworkOptions;
use crate::peer::PeerAddress;
use crate::peer::SendError;
use crate::peer::handshake;
use crate::peer::handshake::Greeting;
use crate::peer::handshake::Record;
use crate::peer::handshake::Refusal;
use crate::peer::handshake::Seen;
use crate::peer::link::Figures;
use crate::peer::link::Link;
use crate::peer::link::LinkEnd;
use crate::peer::link::Timing;
use crate::peer::wire;
use crate::types::GroupId;
use crate::types::Millis;
use crate::types::Monotonic;
use crate::types::NodeId;
use crate::types::waiting_room::WaitingRoom;

/// For resolving a name, for connecting to one address, and for a handshake.
const STEP_TIMEOUT: Duration = Duration::from_secs(3);
/// Addresses of one host name that are tried.
const ADDRESSES_MAX: usize = 4;
/// Accepted connections whose handshake is not done; one more takes the place of the oldest silent one.
const PENDING_MAX: usize = 64;
/// What a refused connection may still send before it is cut off.
const LINGER_BYTES: u64 = 64 << 10;
/// Pause after an accept that failed for want of something, such as file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const BACKOFF_MIN: Millis = Millis(50);
const BACKOFF_MAX: Millis = Millis(1000);
const SILENCE_MIN: Millis = Millis(1000);
/// Name look-ups that may hang at a time.
const LOOKUPS_MAX: usize = 4;
/// How often the same line is logged, and how many lines are remembered for that.
const SAID_EVERY: Millis = Millis(60_000);
const SAID_MAX: usize = 256;

/// The internal port of a node. Clones are handles of one network, which lives until [`Network::stop`].
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

struct Inner {
    options: NetworkOptions,
    instance: u64,
    clock: Arc<dyn Clock>,
    /// Cluster and replicas as the next links say them.
    hello: Mutex<(u128, Vec<(GroupId, u64)>)>,
    /// Every node that was ever a peer.
    peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
    handler: Mutex<Option<Arc<dyn Handler>>>,
    /// Until there is a handler.
    listeners: Mutex<Vec<TcpListener>>,
    /// Accepted connections whose handshake is not done. Dropping a sender ends its connection.
    pending: Mutex<WaitingRoom<oneshot::Sender<()>>>,
    is_protected: AtomicBool,
    is_stopped: AtomicBool,
    said: Mutex<BTreeMap<String, Monotonic>>,
    random: RandomState,
    draws: AtomicU64,
    tasks: Handle,
    runtime: Mutex<Option<Runtime>>,
}

struct Peer {
    node: NodeId,
    state: Mutex<PeerState>,
    /// The address changed.
    changed: Notify,
    is_dialed: AtomicBool,
    figures: Arc<Figures>,
}

#[derive(Default)]
struct PeerState {
    /// `None` while the node is no peer.
    address: Option<PeerAddress>,
    /// The highest boot count that a link presented, and the process that did.
    boot: u64,
    boot_of: u64,
    link: Option<Arc<Link>>,
    /// The process at the other end of the link, and whether it is known to be of the cluster.
    linked: (u64, bool),
}

impl PeerState {
    fn seen(&self) -> Seen {
        let is_up = self.link.as_ref().is_some_and(|link| !link.is_closed());
        Seen { boot: self.boot, instance: self.boot_of, linked: is_up.then_some(self.linked) }
    }
}

/// Why a connection did not become a link.
#[derive(Debug, Error)]
enum ConnectError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("no answer in time")]
    TimedOut(#[from] Elapsed),
    #[error("the host name has no address")]
    NoAddress,
    #[error("refused here: {0}")]
    Refused(#[from] Refusal),
    #[error("refused by the other side: {text}")]
    RefusedThere { code: u8, text: String },
}

impl Network {
    /// Starts the peer-io thread. Nothing is dialed or accepted before [`Network::set_handler`].
    ///
    /// # Errors
    /// The thread cannot be made, or a listener cannot be watched.
    pub fn start(
        options: NetworkOptions,
        listeners: Vec<std::net::TcpListener>,
        clock: Arc<dyn Clock>,
    ) -> io::Result<Network> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(LOOKUPS_MAX)
            .thread_name("peer-io")
            .enable_all()
            .build()?;
        let listeners = {
            let _entered = runtime.enter();
            let watch = |listener: std::net::TcpListener| {
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener)
            };
            listeners.into_iter().map(watch).collect::<io::Result<Vec<_>>>()
        };
        let listeners = match listeners {
            Ok(listeners) => listeners,
            Err(error) => {
                runtime.shutdown_background();
                return Err(error);
            }
        };
        // The standard library's hasher is seeded by the operating system: enough to tell processes apart.
        let random = RandomState::new();
        let network = Network {
            inner: Arc::new(Inner {
                instance: random.hash_one(options.node),
                clock,
                hello: Mutex::new((options.cluster, options.replicas.clone())),
                peers: RwLock::default(),
                handler: Mutex::new(None),
                listeners: Mutex::new(listeners),
                pending: Mutex::new(WaitingRoom::new(PENDING_MAX)),
                is_protected: AtomicBool::new(options.protected),
                is_stopped: AtomicBool::new(false),
                said: Mutex::default(),
                random,
                draws: AtomicU64::new(0),
                tasks: runtime.handle().clone(),
                runtime: Mutex::new(Some(runtime)),
                options,
            }),
        };
        network.set_peers(network.inner.options.peers.clone());
        Ok(network)
    }

    /// Says who takes the messages, and begins to dial and to accept. Only the first call counts.
    pub fn set_handler(&self, handler: Arc<dyn Handler>) {
        let inner = &self.inner;
        {
            let mut place = inner.handler.lock();
            if place.is_some() || inner.is_stopped() {
                return;
            }
            *place = Some(handler);
        }
        for listener in inner.listeners.lock().drain(..) {
            inner.tasks.spawn(accept_loop(Arc::clone(inner), listener));
        }
        inner.start_dialing();
    }

    /// Sends a message to a peer, from any thread, without ever blocking. `Ok`: it is queued or written, and
    /// arrives unless the link ends before.
    ///
    /// # Errors
    /// See [`SendError`]; nothing was queued then.
    pub fn send(&self, to: NodeId, channel: Channel, payload: Vec<u8>) -> Result<(), SendError> {
        let peer = self.inner.peer(to).ok_or(SendError::NotConnected)?;
        let link = peer.link().ok_or(SendError::NotConnected)?;
        let bytes = payload.len() + usize::from(channel == Channel::Control);
        let sent = link.send(channel, payload);
        if sent == Err(SendError::Full) {
            peer.figures.dropped.fetch_add(1, Ordering::Relaxed);
            if bytes > channel.payload_max() {
                tracing::error!(
                    node = to.0,
                    ?channel,
                    bytes,
                    "a message is too large for its channel and was not sent"
                );
            }
        }
        sent
    }

    /// True while a link to the node is up.
    #[must_use]
    pub fn is_connected(&self, node: NodeId) -> bool {
        self.inner.peer(node).and_then(|peer| peer.link()).is_some()
    }

    /// When any byte of the node last arrived; `None` if never. Kept when a link ends.
    #[must_use]
    pub fn last_heard(&self, node: NodeId) -> Option<Monotonic> {
        self.inner.peer(node)?.last_heard()
    }

    /// The node has said that it is of this cluster, which it may not have been when its link was made.
    pub fn note_member(&self, node: NodeId) {
        if let Some(peer) = self.inner.peer(node) {
            peer.state.lock().linked.1 = true;
        }
    }

    /// What links made from now on say of this node.
    pub fn set_hello(&self, cluster: u128, replicas: Vec<(GroupId, u64)>) {
        *self.inner.hello.lock() = (cluster, replicas);
    }

    /// Replaces the list of peers. Links to nodes that are not in it are closed, and what was known of these
    /// nodes' boots is forgotten; a new address counts from the next dial.
    pub fn set_peers(&self, peers: Vec<PeerAddress>) {
        let own = self.inner.options.node;
        let mut wanted: BTreeMap<NodeId, PeerAddress> =
            peers.into_iter().filter(|peer| peer.node != own).map(|peer| (peer.node, peer)).collect();
        let mut table = self.inner.peers.write();
        for peer in table.values() {
            peer.set_address(wanted.remove(&peer.node));
        }
        for (node, address) in wanted {
            let peer = Peer {
                node,
                state: Mutex::new(PeerState { address: Some(address), ..PeerState::default() }),
                changed: Notify::new(),
                is_dialed: AtomicBool::new(false),
                figures: Arc::default(),
            };
            table.insert(node, Arc::new(peer));
        }
        drop(table);
        self.inner.start_dialing();
    }

    /// Turns protected mode on or off for connections made from now on.
    pub fn set_protected(&self, is_protected: bool) {
        self.inner.is_protected.store(is_protected, Ordering::Relaxed);
    }

    /// The peers and their figures, by node id.
    #[must_use]
    pub fn peers(&self) -> Vec<LinkStatus> {
        let peers: Vec<Arc<Peer>> = self.inner.peers.read().values().cloned().collect();
        peers.iter().filter_map(|peer| peer.status()).collect()
    }

    /// Ends all links and the thread. May be called from anywhere, more than once. `on_down` is not called
    /// for it, and a call of the handler that is under way may outlast it.
    pub fn stop(&self) {
        let inner = &self.inner;
        inner.is_stopped.store(true, Ordering::SeqCst);
        for peer in inner.peers.read().values() {
            if let Some(link) = peer.state.lock().link.take() {
                link.close(LinkEnd::Stopped);
            }
        }
        inner.listeners.lock().clear();
        let handler = inner.handler.lock().take();
        // It may own this network: let it go without the lock.
        drop(handler);
        if let Some(runtime) = inner.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A runtime that is dropped inside another one's task would panic.
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }
}

impl Peer {
    fn link(&self) -> Option<Arc<Link>> {
        self.state.lock().link.clone().filter(|link| !link.is_closed())
    }

    fn address(&self) -> Option<PeerAddress> {
        self.state.lock().address.clone()
    }

    fn set_address(&self, address: Option<PeerAddress>) {
        let mut state = self.state.lock();
        if state.address == address {
            return;
        }
        state.address = address;
        if state.address.is_none() {
            (state.boot, state.boot_of) = (0, 0);
            if let Some(link) = &state.link {
                link.close(LinkEnd::Removed);
            }
        }
        self.changed.notify_one();
    }

    fn last_heard(&self) -> Option<Monotonic> {
        Some(self.figures.heard.load(Ordering::Relaxed)).filter(|&heard| heard != 0).map(Monotonic)
    }

    fn status(&self) -> Option<LinkStatus> {
        self.address()?;
        let link = self.link();
        let figure = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let figures = &self.figures;
        Some(LinkStatus {
            node: self.node,
            is_connected: link.is_some(),
            rtt_us: Some(figure(&figures.rtt_us)).filter(|&rtt_us| rtt_us != 0),
            last_heard: self.last_heard(),
            bytes_in: figure(&figures.bytes_in),
            bytes_out: figure(&figures.bytes_out),
            reconnects: figure(&figures.links).saturating_sub(1),
            queued_bytes: link.map_or(0, |link| link.queued_bytes()),
            dropped: figure(&figures.dropped),
            errors: figure(&figures.errors),
        })
    }
}

impl Inner {
    fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::SeqCst)
    }

    fn peer(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.peers.read().get(&node).cloned()
    }

    fn refuses(&self, remote: IpAddr) -> Option<Refusal> {
        handshake::judge_address(self.is_protected.load(Ordering::Relaxed), remote)
    }

    /// Logs a line unless the same was logged within a minute.
    fn warn(&self, line: String) {
        let now = self.clock.monotonic();
        let mut said = self.said.lock();
        said.retain(|_, at| now.since(*at) < SAID_EVERY);
        if said.len() < SAID_MAX && !said.contains_key(&line) {
            tracing::warn!("internal port: {line}");
            said.insert(line, now);
        }
    }

    fn timing(&self) -> Timing {
        let silence_max = Millis(self.options.election_timeout.0.saturating_mul(2)).max(SILENCE_MIN);
        Timing { heartbeat: self.options.heartbeat_interval, silence_max }
    }

    fn greeting(&self, to: NodeId) -> Greeting {
        let (cluster, replicas) = self.hello.lock().clone();
        // A node that lost its disk counts its starts anew, under a higher replica id.
        let newest = replicas.iter().map(|(_, replica)| *replica).max().unwrap_or(0);
        let hello = Hello {
            cluster,
            node: self.options.node,
            boot: newest << 32 | self.options.boot,
            replicas,
            version: self.options.version.clone(),
            election_timeout: self.options.election_timeout,
            wire: wire::VERSION_MAX,
        };
        Greeting { instance: self.instance, to, hello }
    }

    fn judge(&self, own: &Greeting, dialed: Option<NodeId>, theirs: &Greeting) -> Result<(), Refusal> {
        let seen = |node| {
            let peer = self.peer(node)?;
            let state = peer.state.lock();
            state.address.as_ref().map(|_| state.seen())
        };
        handshake::judge(own, dialed, seen, theirs)
    }

    /// A dialer for each peer with a higher id that has none yet, once there is a handler.
    fn start_dialing(self: &Arc<Inner>) {
        if self.handler.lock().is_none() {
            return;
        }
        for peer in self.peers.read().values() {
            if peer.node > self.options.node && !peer.is_dialed.swap(true, Ordering::SeqCst) {
                self.tasks.spawn(dial_loop(Arc::clone(self), Arc::clone(peer)));
            }
        }
    }

    /// Resolves and connects, and shakes hands.
    async fn dial(&self, address: &PeerAddress) -> Result<(TcpStream, Greeting), ConnectError> {
        let lookup = tokio::net::lookup_host((address.host.as_str(), address.port));
        let targets = timeout(STEP_TIMEOUT, lookup).await??;
        let mut failure = ConnectError::NoAddress;
        for target in targets.take(ADDRESSES_MAX) {
            match self.dial_address(address.node, target).await {
                Ok(connected) => return Ok(connected),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn dial_address(
        &self,
        node: NodeId,
        target: SocketAddr,
    ) -> Result<(TcpStream, Greeting), ConnectError> {
        if let Some(refusal) = self.refuses(target.ip()) {
            return Err(refusal.into());
        }
        let mut stream = timeout(STEP_TIMEOUT, TcpStream::connect(target)).await??;
        let greeting = timeout(STEP_TIMEOUT, self.greet_acceptor(&mut stream, node)).await??;
        Ok((stream, greeting))
    }

    async fn greet_acceptor(&self, stream: &mut TcpStream, node: NodeId) -> Result<Greeting, ConnectError> {
        let own = self.greeting(node);
        write_record(stream, &Record::Greeting(own.clone())).await?;
        let judged = match read_record(stream).await {
            Ok(Record::Greeting(theirs)) => self.judge(&own, Some(node), &theirs).map(|()| theirs),
            Ok(Record::Refusal { code, text }) => return Err(ConnectError::RefusedThere { code, text }),
            Ok(Record::Confirmation) => Err(Refusal::Damaged),
            Err(ConnectError::Refused(refusal)) => Err(refusal),
            Err(error) => return Err(error),
        };
        let answer = judged.as_ref().map_or_else(Refusal::record, |_| Record::Confirmation);
        write_record(stream, &answer).await?;
        Ok(judged?)
    }

    async fn greet_dialer(
        &self,
        stream: &mut TcpStream,
        remote: IpAddr,
        number: u64,
    ) -> Result<Greeting, ConnectError> {
        if let Some(refusal) = self.refuses(remote) {
            return Err(refusal.into());
        }
        let first = read_record(stream).await?;
        self.pending.lock().speak(number);
        let theirs = match first {
            Record::Greeting(theirs) => theirs,
            Record::Refusal { code, text } => return Err(ConnectError::RefusedThere { code, text }),
            Record::Confirmation => return Err(Refusal::Damaged.into()),
        };
        let own = self.greeting(theirs.hello.node);
        self.judge(&own, None, &theirs)?;
        write_record(stream, &Record::Greeting(own)).await?;
        match read_record(stream).await? {
            Record::Confirmation => Ok(theirs),
            Record::Refusal { code, text } => {
                self.note_refusal(theirs.hello.node, code);
                Err(ConnectError::RefusedThere { code, text })
            }
            Record::Greeting(_) => Err(Refusal::Damaged.into()),
        }
    }

    /// Shakes hands with whoever connected, and waits under this number; `None` when it may not come in, which it was told.
    async fn admit(&self, stream: &mut TcpStream, remote: IpAddr, number: u64) -> Option<Greeting> {
        match self.greet_dialer(stream, remote, number).await {
            Ok(greeting) => return Some(greeting),
            Err(ConnectError::Refused(refusal)) => {
                self.warn(format!("a connection from {remote} was refused: {refusal}"));
                if let Err(error) = turn_away(stream, &refusal).await {
                    tracing::debug!(%remote, %error, "a refused connection broke off");
                }
            }
            Err(ConnectError::RefusedThere { text, .. }) => {
                self.warn(format!("a node at {remote} dialed this node and refused it: {text}"));
            }
            Err(error) => tracing::debug!(%remote, %error, "a handshake was not completed"),
        }
        None
    }

    fn note_refusal(&self, peer: NodeId, code: u8) {
        let handler = self.handler.lock().clone();
        if let Some(handler) = handler.filter(|_| code == handshake::OLD_BOOT) {
            handler.on_old_directory(peer);
        }
    }

    /// Makes the connection the peer's link and runs it until it ends.
    async fn serve(self: Arc<Inner>, stream: TcpStream, greeting: Greeting) {
        let hello = &greeting.hello;
        let Some(peer) = self.peer(hello.node) else { return };
        let Some(handler) = self.handler.lock().clone() else { return };
        let now = self.clock.monotonic();
        let (link, read) = Link::new(peer.node, stream, Arc::clone(&peer.figures), now);
        let up = UpLink { inner: Arc::clone(&self), peer, link: Arc::new(link), handler };
        if !up.install(&greeting) {
            return;
        }
        tracing::info!(
            node = hello.node.0,
            boot = hello.boot,
            version = hello.version,
            "a peer is connected"
        );
        up.link.run(read, &*up.handler, self.timing(), &*self.clock).await;
        if let Some(end) = up.link.end().filter(|_| !self.is_stopped()) {
            tracing::info!(node = hello.node.0, reason = %end, "a peer is disconnected");
            if matches!(end, LinkEnd::Wire(_)) {
                self.warn(format!("node {} broke the protocol, so its link was closed: {end}", hello.node));
            }
        }
    }
}

/// A link while its task lives. Dropping it, in whatever way the task ends, takes it out of the peer.
struct UpLink {
    inner: Arc<Inner>,
    peer: Arc<Peer>,
    link: Arc<Link>,
    handler: Arc<dyn Handler>,
}

impl UpLink {
    /// Puts the link in the place of an older one and tells the handler. False if the peer, or this network,
    /// may not have it any more.
    fn install(&self, greeting: &Greeting) -> bool {
        let (hello, instance, is_member) = (&greeting.hello, greeting.instance, greeting.hello.cluster != 0);
        let admits = |state: &PeerState| {
            let is_late = is_member && hello.boot < state.boot;
            let linked = state.seen().linked;
            let is_free = linked.is_none_or(|linked| handshake::may_displace(linked, instance, is_member));
            state.address.is_some() && !is_late && is_free && !self.inner.is_stopped()
        };
        let older = {
            let mut state = self.peer.state.lock();
            if !admits(&state) {
                return false;
            }
            state.link.take()
        };
        if let Some(older) = older {
            older.close(LinkEnd::Replaced);
            self.handler.on_down(self.peer.node);
        }
        {
            let mut state = self.peer.state.lock();
            if !admits(&state) {
                return false;
            }
            if is_member {
                (state.boot, state.boot_of) = (hello.boot, instance);
            }
            state.linked = (instance, is_member);
            state.link = Some(Arc::clone(&self.link));
        }
        self.peer.figures.links.fetch_add(1, Ordering::Relaxed);
        self.handler.on_up(hello);
        true
    }
}

impl Drop for UpLink {
    fn drop(&mut self) {
        self.link.close(LinkEnd::Closed);
        let mut state = self.peer.state.lock();
        if state.link.take_if(|link| Arc::ptr_eq(link, &self.link)).is_some() {
            drop(state);
            if !self.inner.is_stopped() {
                self.handler.on_down(self.peer.node);
            }
        }
    }
}

/// Dials whenever there is no link, for as long as the network lives.
async fn dial_loop(inner: Arc<Inner>, peer: Arc<Peer>) {
    let mut failures = 0;
    loop {
        let Some(address) = peer.address() else {
            peer.changed.notified().await;
            continue;
        };
        let mut lived = Millis(0);
        match inner.dial(&address).await {
            Ok((stream, greeting)) => {
                let since = inner.clock.monotonic();
                // A task of its own, so that a panic of the handler does not end the dialing.
                if let Err(error) = tokio::spawn(Arc::clone(&inner).serve(stream, greeting)).await {
                    tracing::error!(%error, "the task of a peer's link ended");
                }
                lived = inner.clock.monotonic().since(since);
            }
            Err(error) => {
                let PeerAddress { node, host, port } = address;
                inner.warn(format!("no link to node {node} at {host}:{port}: {error}"));
                if let ConnectError::RefusedThere { code, .. } = error {
                    inner.note_refusal(node, code);
                }
            }
        }
        failures = if lived >= BACKOFF_MAX { 0 } else { failures + 1 };
        let draw = inner.random.hash_one(inner.draws.fetch_add(1, Ordering::Relaxed));
        tokio::select! {
            () = tokio::time::sleep(backoff(failures, draw)) => {}
            () = peer.changed.notified() => {}
        }
    }
}

/// The pause before a dial: it doubles with every failure, and half of it is left to `draw`.
fn backoff(failures: u32, draw: u64) -> Duration {
    let pause_ms = (BACKOFF_MIN.0 << failures.min(10)).min(BACKOFF_MAX.0);
    let half_ms = (pause_ms / 2).max(BACKOFF_MIN.0);
    Duration::from_millis(half_ms + draw % (pause_ms - half_ms + 1))
}

async fn accept_loop(inner: Arc<Inner>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                let (place, displaced) = oneshot::channel();
                // A peer that has to go dials again.
                let (number, _displaces) = inner.pending.lock().enter(place);
                let inner = Arc::clone(&inner);
                tokio::spawn(async move {
                    let mut stream = stream;
                    let admitted = tokio::select! {
                        admitted = timeout(STEP_TIMEOUT, inner.admit(&mut stream, remote.ip(), number)) => admitted,
                        _ = displaced => Ok(None),
                    };
                    drop(inner.pending.lock().leave(number));
                    if let Ok(Some(greeting)) = admitted {
                        inner.serve(stream, greeting).await;
                    }
                });
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a peer");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted)
}

async fn write_record(stream: &mut TcpStream, record: &Record) -> io::Result<()> {
    let bytes = handshake::encode(record).map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))?;
    stream.write_all(&bytes).await
}

async fn read_record(stream: &mut TcpStream) -> Result<Record, ConnectError> {
    let mut head = [0; handshake::HEAD];
    stream.read_exact(&mut head).await?;
    let (length, crc) = handshake::decode_head(&head)?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(handshake::decode_body(&body, crc)?)
}

/// Says why, and reads on until the other side hangs up: a connection closed with bytes unread is reset, and
/// the refusal might be lost.
async fn turn_away(stream: &mut TcpStream, refusal: &Refusal) -> io::Result<()> {
    write_record(stream, &refusal.record()).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(LINGER_BYTES), &mut tokio::io::sink()).await.map(|_| ())
}

#[cfg(test)]
#[path = "network_test.rs"]
mod tests;
