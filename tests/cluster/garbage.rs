//! Bytes of strangers at the internal port: random ones, and true conversations with mistakes in them.

use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::TcpStream;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use crate::cluster::load::Load;
use crate::cluster::load::Plan;
use crate::cluster::seed;
use crate::support::Random;
use crate::support::client::Value;
use crate::support::cluster::Cluster;
use crate::support::cluster::PATIENCE;
use crate::support::cluster::Proxy;
use crate::support::number_from_env;
use crate::support::wait_for;

/// Threads that send.
const SENDERS: u64 = 4;
/// Connections that say nothing, or stop in the middle, while the others come and go.
const SILENT: usize = 100;
/// What the nodes' memory may grow by, each: the load's own keys, buffers of connections, and nothing that lasts.
const GROWTH_MAX: u64 = 128 << 20;

/// Bytes without any sense, some of which begin like a length.
fn noise(random: &mut Random) -> Vec<u8> {
    let length = match random.below(10) {
        0 => random.below(8),
        1..=7 => random.below(512),
        8 => random.below(8 << 10),
        _ => random.below(128 << 10),
    };
    let mut bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
    let start: &[u8] = match random.below(6) {
        0 => &[0xff; 8],
        1 => &[0; 8],
        2 => &[0x7f, 0xff, 0xff, 0xff],
        3 => b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        4 => b"*1\r\n$4\r\nPING\r\n",
        _ => &[],
    };
    bytes.splice(0..0, start.iter().copied());
    bytes
}

/// A copy of one of the streams, up to some point, with some mistakes in it.
fn mutated(random: &mut Random, streams: &[Vec<u8>]) -> Vec<u8> {
    let pick = |random: &mut Random| &streams[random.below(streams.len() as u64) as usize];
    let stream = pick(random);
    let end = match random.below(3) {
        0 => random.below(512),
        1 => random.below(8 << 10),
        _ => u64::MAX,
    };
    let mut bytes = stream[..stream.len().min(usize::try_from(end).unwrap_or(usize::MAX)).max(1)].to_vec();
    for _ in 0..1 + random.below(4) {
        // Half of the mistakes are near the begin, where the handshake and the first lengths are.
        let reach = if random.below(2) == 0 { bytes.len().min(256) } else { bytes.len() };
        let at = random.below(reach.max(1) as u64) as usize;
        let to = (at + random.below(64) as usize).min(bytes.len());
        match random.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..to)),
            2 => {
                let copy = bytes[at..to].to_vec();
                bytes.splice(at..at, copy);
            }
            3 => {
                let new: Vec<u8> = (0..random.below(32)).map(|_| random.next() as u8).collect();
                bytes.splice(at..at, new);
            }
            4 => {
                let length = [0, 1, 0x7fff_ffff, u32::MAX, 1 << 20][random.below(5) as usize];
                let encoded = if random.below(2) == 0 { length.to_be_bytes() } else { length.to_le_bytes() };
                let to = (at + 4).min(bytes.len());
                bytes.splice(at..to, encoded);
            }
            5 => {
                let other = pick(random);
                let from = random.below(other.len() as u64) as usize;
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..other.len().min(from + 4_096)]);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

#[test]
fn mutations_change_what_was_recorded_in_many_ways() {
    let streams: Vec<Vec<u8>> = vec![(0..=255).cycle().take(3_000).collect(), b"another stream".to_vec()];
    let mut random = Random::new(3);
    let (mut whole, mut shorter, mut longer) = (0, 0, 0);
    for _ in 0..2_000 {
        let bytes = mutated(&mut random, &streams);
        whole += u64::from(streams.contains(&bytes));
        shorter += u64::from(bytes.len() < 100);
        longer += u64::from(bytes.len() > 3_000);
    }
    assert!(whole < 20 && shorter > 100 && longer > 100, "{whole} {shorter} {longer}");
}

/// Sends bytes to an internal port, in one piece or several, and reads a little of what comes back. Whatever becomes
/// of the connection is fine.
fn throw(port: u16, bytes: &[u8], random: &mut Random) {
    let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return };
    let _ = stream.set_read_timeout(Some(Duration::from_millis(1 + random.below(10))));
    let _ = stream.set_write_timeout(Some(Duration::from_millis(200)));
    let pieces = 1 + random.below(3) as usize;
    let mut answer = [0; 4_096];
    for piece in bytes.chunks(bytes.len().div_ceil(pieces).max(1)) {
        if stream.write_all(piece).is_err() {
            return;
        }
        let _ = stream.read(&mut answer);
    }
}

/// Every sender throws its share of `count` strings at all ports in turn.
fn throw_all(ports: &[u16], count: u64, seed: u64, make: impl Fn(&mut Random) -> Vec<u8> + Sync) {
    let next = AtomicU64::new(0);
    thread::scope(|scope| {
        for sender in 0..SENDERS {
            let (next, make) = (&next, &make);
            scope.spawn(move || {
                let mut random = Random::new(seed ^ (sender << 40));
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let bytes = make(&mut random);
                    throw(ports[(number % ports.len() as u64) as usize], &bytes, &mut random);
                }
            });
        }
    });
}

/// Connections that are left in the middle of something.
fn leave_open(ports: &[u16], streams: &[Vec<u8>], random: &mut Random) -> Vec<TcpStream> {
    let mut open = Vec::new();
    for number in 0..SILENT {
        let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, ports[number % ports.len()])) else {
            continue;
        };
        let begin = &streams[number % streams.len()];
        let length = random.below(begin.len().min(200) as u64) as usize;
        let _ = stream.write_all(&begin[..length]);
        open.push(stream);
    }
    open
}

#[test]
fn garbage_at_the_internal_port_stops_nobody() {
    let count = number_from_env("FUZZ_PORT", 2_000);
    let seed = seed();
    let mut cluster = Cluster::prepare(3, &[]);
    // The node with the lower id dials, so these see all conversations.
    let proxies: Vec<Proxy> =
        [2, 3].into_iter().map(|id| Proxy::before(cluster.node(id).peer_port())).collect();
    for (proxy, id) in proxies.iter().zip([2, 3]) {
        cluster.advertise(id, proxy.port());
    }
    cluster.start_all();
    let ports: Vec<u16> = cluster.ids().into_iter().map(|id| cluster.node(id).peer_port()).collect();
    let mut load = Load::new(&cluster, Plan { clients: 3, window: 4, value_length: 32, seed });
    load.run(|progress| {
        progress.wait_for_more(500);
        let recordings = proxies.iter().flat_map(Proxy::recordings);
        let streams: Vec<Vec<u8>> = recordings
            .flat_map(|recording| [recording.sent, recording.answered])
            .filter(|stream| stream.len() > 64)
            .collect();
        assert!(streams.len() >= 6, "three pairs talk in both directions: {} streams", streams.len());
        let before = cluster.resident_bytes();
        let open = leave_open(&ports, &streams, &mut Random::new(seed));
        throw_all(&ports, count, seed, noise);
        throw_all(&ports, count, seed + 1, |random| mutated(random, &streams));
        // Served by every node while strangers are still connected.
        for id in cluster.ids() {
            cluster.wait_until_serving(id);
        }
        progress.wait_for_more(300);
        drop(open);
        let after = cluster.resident_bytes();
        println!("memory in MiB: {:?} before, {:?} after", mebibytes(&before), mebibytes(&after));
        for (before, after) in before.iter().zip(&after) {
            assert!(*after < before + GROWTH_MAX, "a node grew from {before} to {after} bytes");
        }
    });
    let errors: Vec<_> = load.books.iter().flat_map(|book| &book.errors).collect();
    println!("{} writes acknowledged, {} in doubt, errors {errors:?}", load.acknowledged(), load.in_doubt());
    // A stranger who repeats a true handshake may cut a link for a while, which may leave a write in doubt.
    assert!(load.books.iter().all(|book| book.breaks == 0), "a client's connection broke");
    load.check_all(&mut cluster);
    cluster.check_digests();
    cluster.check_alive();
}

fn mebibytes(sizes: &[u64]) -> Vec<u64> {
    sizes.iter().map(|size| size >> 20).collect()
}

#[test]
fn a_node_that_starts_among_garbage_finds_its_cluster() {
    let seed = seed();
    let mut cluster = Cluster::start(&[]);
    let away = cluster.follower();
    cluster.kill(away);
    let port = [cluster.node(away).peer_port()];
    let mut random = Random::new(seed);
    cluster.spawn(away);
    for _ in 0..300 {
        let bytes = noise(&mut random);
        throw(port[0], &bytes, &mut random);
    }
    cluster.wait_until_serving(away);
    cluster.wait_until_caught_up(away);
    let mut client = cluster.client(away);
    wait_for("a read", PATIENCE, || (client.cmd(&["GET", "no"]) == Value::Null).then_some(()));
    cluster.check_digests();
    cluster.check_alive();
}
