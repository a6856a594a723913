//! The network between the nodes of a cluster, as far as a user's process can be one: a proxy for each pair of nodes,
//! whose two directions can be cut and slowed down independently.
//!
//! ```text
//! node a ──► reader ──► queue ──► writer ──► node b      a dials b: the lower id dials the higher
//! node a ◄── writer ◄── queue ◄── reader ◄── node b
//!                                   └─ holds what it has while its direction is cut
//! ```
//!
//! A cut direction is what TCP makes of a network that loses everything: what was sent is held, and arrives after the
//! direction is healed, unless the connection is broken first. A connection that is made during a cut of either
//! direction hangs. What was held is counted, so that a test can tell that the cut took effect.

use std::collections::BTreeMap;
use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::Shutdown;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use holdfast::clock::Clock;
use holdfast::clock::SystemClock;
use holdfast::types::Millis;
use holdfast::types::Monotonic;

use crate::support::Random;
use crate::support::cluster::Cluster;

/// How often a writer that must wait looks again.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// Pieces that a direction of a connection holds before it reads no more.
const PIECES_MAX: usize = 256;

/// One direction between two nodes.
#[derive(Default)]
struct Way {
    is_cut: AtomicBool,
    delay_ms: AtomicU64,
    jitter_ms: AtomicU64,
    held: AtomicU64,
    delayed: AtomicU64,
}

/// Two nodes.
struct Pair {
    port: u16,
    target: u16,
    clock: SystemClock,
    /// Connections that began before the number changed are broken.
    life: AtomicU64,
    /// Both ends of those that pass something on, by a number of their own.
    connections: Mutex<BTreeMap<u64, [TcpStream; 2]>>,
    made: AtomicU64,
    /// From the side that dials, and to it.
    ways: [Way; 2],
}

/// All links of a cluster. Their listening threads end with the process.
pub struct Links {
    /// By the lower and the higher id.
    pairs: BTreeMap<(u64, u64), Arc<Pair>>,
}

impl Links {
    /// Puts a proxy between each two nodes of a cluster that was not started.
    pub fn between(cluster: &mut Cluster) -> Links {
        let ids = cluster.ids();
        let mut pairs = BTreeMap::new();
        for (low, high) in ids.iter().flat_map(|low| ids.iter().map(move |high| (*low, *high))) {
            if low < high {
                let pair = listen(cluster.node(high).peer_port());
                cluster.advertise_to(low, high, pair.port);
                pairs.insert((low, high), pair);
            }
        }
        Links { pairs }
    }

    /// Where the node with the lower id finds the other.
    pub fn port(&self, low: u64, high: u64) -> u16 {
        self.pairs[&(low, high)].port
    }

    fn way(&self, from: u64, to: u64) -> &Way {
        let pair = &self.pairs[&(from.min(to), from.max(to))];
        &pair.ways[usize::from(from > to)]
    }

    /// Lets nothing through from one node to another.
    pub fn cut(&self, from: u64, to: u64) {
        self.way(from, to).is_cut.store(true, Ordering::SeqCst);
    }

    /// Lets everything through again, what was held first.
    pub fn heal(&self, from: u64, to: u64) {
        self.way(from, to).is_cut.store(false, Ordering::SeqCst);
    }

    /// Breaks the connections between two nodes; what was held on them is lost.
    pub fn break_connections(&self, a: u64, b: u64) {
        let pair = &self.pairs[&(a.min(b), a.max(b))];
        pair.life.fetch_add(1, Ordering::SeqCst);
        let connections: Vec<u64> = pair.connections.lock().unwrap().keys().copied().collect();
        connections.into_iter().for_each(|number| pair.close(number));
    }

    /// Lets everything arrive later by `delay` and at random up to `jitter` more.
    pub fn delay(&self, from: u64, to: u64, delay: Millis, jitter: Millis) {
        let way = self.way(from, to);
        way.delay_ms.store(delay.0, Ordering::SeqCst);
        way.jitter_ms.store(jitter.0, Ordering::SeqCst);
    }

    /// Pieces and connections that a cut held back since the begin.
    pub fn held(&self, from: u64, to: u64) -> u64 {
        self.way(from, to).held.load(Ordering::SeqCst)
    }

    /// Pieces that a delay made late since the begin.
    pub fn delayed(&self, from: u64, to: u64) -> u64 {
        self.way(from, to).delayed.load(Ordering::SeqCst)
    }
}

/// A proxy before a port.
fn listen(target: u16) -> Arc<Pair> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let pair = Arc::new(Pair {
        port,
        target,
        clock: SystemClock::start(),
        life: AtomicU64::new(0),
        connections: Mutex::default(),
        made: AtomicU64::new(0),
        ways: Default::default(),
    });
    let shared = Arc::clone(&pair);
    thread::spawn(move || {
        for dialled in listener.incoming().flatten() {
            let pair = Arc::clone(&shared);
            thread::spawn(move || pair.serve(dialled));
        }
    });
    pair
}

impl Pair {
    /// Connects through and copies both directions until either side closes.
    fn serve(self: Arc<Pair>, dialled: TcpStream) {
        let life = self.life.load(Ordering::SeqCst);
        for way in &self.ways {
            if !self.wait_until_open(way, life) {
                return;
            }
        }
        // A target that is down is a connection that closes at once.
        let Ok(target) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.target)) else { return };
        let _ = dialled.set_nodelay(true);
        let _ = target.set_nodelay(true);
        // A socket that cannot be named twice is a connection that closes at once, too.
        let (Ok(dialled_too), Ok(target_too)) = (dialled.try_clone(), target.try_clone()) else { return };
        let Some(ends) = dialled.try_clone().ok().zip(target.try_clone().ok()) else { return };
        let number = self.made.fetch_add(1, Ordering::SeqCst);
        self.connections.lock().unwrap().insert(number, ends.into());
        for (way, from, to) in [(0, dialled, target), (1, target_too, dialled_too)] {
            let pair = Arc::clone(&self);
            thread::spawn(move || pair.pass_on(way, from, to, life, number));
        }
    }

    /// Closes both ends.
    fn close(&self, number: u64) {
        let ends = self.connections.lock().unwrap().remove(&number);
        for end in ends.into_iter().flatten() {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// False when the connection was broken meanwhile.
    fn wait_until_open(&self, way: &Way, life: u64) -> bool {
        if way.is_cut.load(Ordering::SeqCst) {
            way.held.fetch_add(1, Ordering::SeqCst);
        }
        while way.is_cut.load(Ordering::SeqCst) && self.life.load(Ordering::SeqCst) == life {
            thread::sleep(LOOK_INTERVAL);
        }
        self.life.load(Ordering::SeqCst) == life
    }

    fn pass_on(self: Arc<Pair>, way: usize, mut from: TcpStream, mut to: TcpStream, life: u64, number: u64) {
        let (sender, pieces) = mpsc::sync_channel::<(Monotonic, Vec<u8>)>(PIECES_MAX);
        let pair = Arc::clone(&self);
        thread::spawn(move || {
            let mut random = Random::new(life);
            for (read_at, bytes) in pieces {
                if !pair.wait_for_turn(way, read_at, life, &mut random) || to.write_all(&bytes).is_err() {
                    break;
                }
            }
            pair.close(number);
        });
        let mut bytes = vec![0; 1 << 16];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            if sender.send((self.clock.monotonic(), bytes[..count].to_vec())).is_err() {
                break;
            }
        }
    }

    /// Waits as long as the direction demands for a piece; false when the connection was broken meanwhile.
    fn wait_for_turn(&self, way: usize, read_at: Monotonic, life: u64, random: &mut Random) -> bool {
        let way = &self.ways[way];
        let (delay, jitter) = (way.delay_ms.load(Ordering::SeqCst), way.jitter_ms.load(Ordering::SeqCst));
        if delay + jitter > 0 {
            way.delayed.fetch_add(1, Ordering::SeqCst);
            let late = Millis(delay + random.below(jitter + 1));
            while self.clock.monotonic().since(read_at) < late {
                thread::sleep(LOOK_INTERVAL);
            }
        }
        self.wait_until_open(way, life)
    }
}
