//! Networks on loopback, and strangers at their ports.

use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::thread;

use bytes::Bytes;
use parking_lot::Condvar;

use super::*;
use crate::clock::SystemClock;

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq)]
enum Event {
    Up(u64, u64),
    Down(u64),
    Old,
    Message(u64, Channel, Bytes),
    Idle(u64),
}

/// A handler that remembers everything.
#[derive(Default)]
struct Recorder {
    events: Mutex<Vec<Event>>,
    changed: Condvar,
}

impl Recorder {
    fn note(&self, event: Event) {
        self.events.lock().push(event);
        self.changed.notify_all();
    }

    /// Waits until the events so far say enough.
    fn wait<T>(&self, what: &str, enough: impl Fn(&[Event]) -> Option<T>) -> T {
        let mut events = self.events.lock();
        loop {
            if let Some(found) = enough(&events) {
                return found;
            }
            let is_over = self.changed.wait_for(&mut events, PATIENCE).timed_out();
            assert!(!is_over, "waited in vain for {what}; {} events", events.len());
        }
    }

    /// Waits for so many calls of `on_up` and `on_down` about a peer, and gives them.
    fn wait_links(&self, node: u64, count: usize) -> Vec<Event> {
        self.wait("links to come and go", |events| {
            let is_link = |event: &&Event| matches!(event, Event::Up(n, _) | Event::Down(n) if *n == node);
            let found: Vec<Event> = events.iter().filter(is_link).cloned().collect();
            (found.len() >= count).then_some(found)
        })
    }

    fn wait_messages(&self, from: u64, channel: Channel, count: usize) -> Vec<Bytes> {
        self.wait("messages", |events| {
            let payload = |event: &Event| match event {
                Event::Message(n, c, payload) if (*n, *c) == (from, channel) => Some(payload.clone()),
                _ => None,
            };
            let found: Vec<Bytes> = events.iter().filter_map(payload).collect();
            (found.len() >= count).then_some(found)
        })
    }
}

impl Handler for Recorder {
    fn on_message(&self, from: NodeId, channel: Channel, payload: Bytes) {
        self.note(Event::Message(from.0, channel, payload));
    }

    fn on_idle(&self, from: NodeId) {
        self.note(Event::Idle(from.0));
    }

    fn on_up(&self, peer: &Hello) {
        // Above it stands the replica id.
        self.note(Event::Up(peer.node.0, peer.boot & 0xffff_ffff));
    }

    fn on_old_directory(&self, _peer: NodeId) {
        self.note(Event::Old);
    }

    fn on_down(&self, peer: NodeId) {
        self.note(Event::Down(peer.0));
    }
}

struct Node {
    network: Network,
    seen: Arc<Recorder>,
    port: u16,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.network.stop();
    }
}

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn peers(ports: &[(u64, u16)]) -> Vec<PeerAddress> {
    let address =
        |&(node, port): &(u64, u16)| PeerAddress { node: NodeId(node), host: "127.0.0.1".to_owned(), port };
    ports.iter().map(address).collect()
}

fn options(node: u64, ports: &[(u64, u16)]) -> NetworkOptions {
    NetworkOptions {
        node: NodeId(node),
        boot: 5,
        peers: peers(ports),
        heartbeat_interval: Millis(50),
        // Longer than a loaded machine may stop a thread.
        election_timeout: Millis(30_000),
        protected: true,
        cluster: 0,
        replicas: vec![(GroupId(0), node)],
        version: "test".to_owned(),
    }
}

fn start(options: NetworkOptions, listener: TcpListener) -> Node {
    let port = listener.local_addr().unwrap().port();
    let network = Network::start(options, vec![listener], Arc::new(SystemClock::start())).unwrap();
    let seen = Arc::new(Recorder::default());
    network.set_handler(Arc::clone(&seen) as Arc<dyn Handler>);
    Node { network, seen, port }
}

/// Listens again where a network was stopped just now.
fn listen_again(port: u16) -> TcpListener {
    let mut found = None;
    until("the port is free", || {
        found = TcpListener::bind(("127.0.0.1", port)).ok();
        found.is_some()
    });
    found.unwrap()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let clock = SystemClock::start();
    while !holds() {
        assert!(clock.monotonic().since(Monotonic(0)).0 < PATIENCE.as_millis() as u64, "in vain: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn payload(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(seed + 3) >> 2) as u8).collect()
}

fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Two nodes that are connected: 1, which dials, and 2.
fn pair() -> (Node, Node) {
    let ((one, port_one), (two, port_two)) = (listener(), listener());
    let ports = [(1, port_one), (2, port_two)];
    let (one, two) = (start(options(1, &ports), one), start(options(2, &ports), two));
    one.seen.wait_links(2, 1);
    two.seen.wait_links(1, 1);
    (one, two)
}

/// A peer made by hand, that dials.
fn greeting(node: u64, to: u64) -> Greeting {
    let hello = Hello {
        cluster: 0,
        node: NodeId(node),
        boot: 5,
        replicas: Vec::new(),
        version: "by hand".to_owned(),
        election_timeout: Millis(500),
        wire: wire::VERSION_MAX,
    };
    Greeting { instance: 1, to: NodeId(to), hello }
}

/// Sends a record and gives the answer; fails when others took its place meanwhile.
fn dial(port: u16, record: &Record) -> io::Result<(TcpStream, Record)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&handshake::encode(record).unwrap())?;
    let mut head = [0; handshake::HEAD];
    stream.read_exact(&mut head)?;
    let (length, crc) = handshake::decode_head(&head).unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok((stream, handshake::decode_body(&body, crc).unwrap()))
}

fn join(port: u16, greeting: Greeting) -> io::Result<TcpStream> {
    let (mut stream, answer) = dial(port, &Record::Greeting(greeting))?;
    assert!(matches!(answer, Record::Greeting(_)), "{answer:?}");
    stream.write_all(&handshake::encode(&Record::Confirmation).unwrap())?;
    Ok(stream)
}

/// Node 9, for the peers 1 and 3, made by hand.
fn alone(change: impl FnOnce(&mut NetworkOptions)) -> Node {
    let (listener, _) = listener();
    let mut options = options(9, &[(1, 1), (3, 1)]);
    change(&mut options);
    start(options, listener)
}

#[test]
fn three_nodes_exchange_messages_of_all_sizes_in_order() {
    let listeners: Vec<(TcpListener, u16)> = (0..3).map(|_| listener()).collect();
    let ports: Vec<(u64, u16)> = (1..).zip(&listeners).map(|(node, (_, port))| (node, *port)).collect();
    let begin = |(node, (listener, _))| {
        let mut options = options(node, &ports);
        // No ping but the first, so that what a sender could not write is written by the writer alone.
        options.heartbeat_interval = Millis(200_000);
        start(options, listener)
    };
    let nodes: Vec<Node> = (1..).zip(listeners).map(begin).collect();
    let pairs = || (1..=3u64).flat_map(|from| (1..=3u64).map(move |to| (from, to))).filter(|(a, b)| a != b);
    let node = |id: u64| &nodes[id as usize - 1];
    for (from, to) in pairs() {
        assert_eq!(node(from).seen.wait_links(to, 1), [Event::Up(to, 5)]);
    }
    let sizes = [0, 1, 100, wire::CHUNK_MAX - 1, wire::CHUNK_MAX, wire::CHUNK_MAX + 1, 1 << 20, 20 << 20, 7];
    let small = [0, 1, 60_000, (64 << 10) - 1, 3];
    for (from, to) in pairs() {
        let send = |channel, length: usize| {
            let payload = payload((from * 10 + to) as usize, length);
            assert_eq!(node(from).network.send(NodeId(to), channel, payload), Ok(()));
        };
        sizes.iter().for_each(|&length| send(Channel::Raft, length));
        sizes.iter().for_each(|&length| send(Channel::Request, length));
        small.iter().for_each(|&length| send(Channel::Snapshot, length));
        small.iter().for_each(|&length| send(Channel::Control, length));
    }
    for (from, to) in pairs() {
        for (channel, lengths) in [
            (Channel::Raft, &sizes[..]),
            (Channel::Request, &sizes),
            (Channel::Snapshot, &small),
            (Channel::Control, &small),
        ] {
            let received = node(to).seen.wait_messages(from, channel, lengths.len());
            let sent = lengths.iter().map(|&length| payload((from * 10 + to) as usize, length));
            assert!(received.into_iter().eq(sent), "{from} to {to}, {channel:?}");
        }
        let ended = |events: &[Event]| matches!(events.last(), Some(Event::Idle(_))).then_some(());
        node(to).seen.wait("the end of a read", ended);
    }
    until("a round trip is measured", || node(1).network.peers().iter().all(|peer| peer.rtt_us.is_some()));
    for status in node(1).network.peers() {
        assert!(
            status.is_connected && status.bytes_in > 41 << 20 && status.bytes_out > 41 << 20,
            "{status:?}"
        );
        assert_eq!((status.reconnects, status.dropped, status.errors, status.queued_bytes), (0, 0, 0, 0));
        assert!(status.last_heard.is_some() && status.last_heard <= node(1).network.last_heard(status.node));
    }
    assert_eq!(node(1).network.send(NodeId(4), Channel::Raft, Vec::new()), Err(SendError::NotConnected));
}

#[test]
fn many_threads_send_at_once_and_nothing_is_lost_or_reordered() {
    const THREADS: usize = 6;
    const COUNT: usize = 400;
    let (one, two) = pair();
    let message = |sender: usize, number: usize| {
        let mut message = vec![sender as u8, (number >> 8) as u8, number as u8];
        message.resize(3 + if number.is_multiple_of(10) { 150_000 } else { number }, 7);
        message
    };
    thread::scope(|scope| {
        for sender in 0..THREADS {
            let network = &one.network;
            scope.spawn(move || {
                for number in 0..COUNT {
                    until("there is room", || {
                        network.send(NodeId(2), Channel::Raft, message(sender, number)).is_ok()
                    });
                }
            });
        }
    });
    let mut next = [0; THREADS];
    for received in two.seen.wait_messages(1, Channel::Raft, THREADS * COUNT) {
        let sender = received[0] as usize;
        assert_eq!(received, message(sender, next[sender]));
        next[sender] += 1;
    }
    assert_eq!(next, [COUNT; THREADS]);
}

#[test]
fn a_node_that_stops_is_noticed_and_linked_again_when_it_is_back() {
    let (mut stays, mut leaves) = pair();
    // First the one that is dialed, then the one that dials.
    for round in 1..=2u64 {
        let (here, there) = (stays.network.inner.options.node, leaves.network.inner.options.node);
        leaves.network.stop();
        assert_eq!(leaves.network.send(here, Channel::Raft, vec![1]), Err(SendError::NotConnected));
        stays.seen.wait("it is gone", |events| events.contains(&Event::Down(there.0)).then_some(()));
        assert_eq!(stays.network.send(there, Channel::Raft, vec![1]), Err(SendError::NotConnected));
        let mut options = options(there.0, &[(here.0, stays.port)]);
        options.boot = 5 + round;
        leaves = start(options, listen_again(leaves.port));
        let is_down_first = stays.seen.wait("it is back", |events| {
            let at = events.iter().position(|event| *event == Event::Up(there.0, 5 + round))?;
            Some(events[..at].contains(&Event::Down(there.0)))
        });
        assert!(is_down_first);
        leaves.seen.wait_links(here.0, 1);
        stays.network.send(there, Channel::Request, b"again".to_vec()).unwrap();
        assert_eq!(leaves.seen.wait_messages(here.0, Channel::Request, 1), ["again"]);
        assert_eq!(stays.network.peers()[0].reconnects, 1);
        (stays, leaves) = (leaves, stays);
    }
}

#[test]
fn who_may_not_come_in_is_told_why() {
    let node = alone(|options| options.cluster = 50);
    let mut newer = greeting(1, 9);
    (newer.hello.cluster, newer.hello.boot) = (50, 6);
    let _link = join(node.port, newer).unwrap();
    node.seen.wait_links(1, 1);
    let change = |change: fn(&mut Greeting)| {
        let mut greeting = greeting(1, 9);
        (greeting.hello.cluster, greeting.hello.boot) = (50, 6);
        change(&mut greeting);
        Record::Greeting(greeting)
    };
    for (record, code) in [
        (change(|greeting| greeting.hello.cluster = 51), 4),
        (change(|greeting| greeting.hello.node = NodeId(4)), 5),
        (change(|greeting| greeting.hello.node = NodeId(9)), 6),
        (change(|greeting| greeting.to = NodeId(8)), 8),
        (change(|greeting| greeting.hello.boot = 5), 10),
        (Record::Confirmation, 2),
    ] {
        let (mut stream, answer) = dial(node.port, &record).unwrap();
        assert!(matches!(&answer, Record::Refusal { code: c, .. } if *c == code), "{record:?}: {answer:?}");
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    assert_eq!(node.seen.wait_links(1, 1), [Event::Up(1, 6)], "the good link is not disturbed");
    assert!(node.network.is_connected(NodeId(1)));
}

#[test]
fn a_newer_connection_takes_the_place_of_the_older() {
    let node = alone(|_| {});
    let mut older = join(node.port, greeting(1, 9)).unwrap();
    node.seen.wait_links(1, 1);
    let mut newer = join(node.port, greeting(1, 9)).unwrap();
    assert_eq!(node.seen.wait_links(1, 3), [Event::Up(1, 5), Event::Down(1), Event::Up(1, 5)]);
    io::copy(&mut older, &mut io::sink()).unwrap();
    node.network.send(NodeId(1), Channel::Request, b"to the newer".to_vec()).unwrap();
    let mut buffer = bytes::BytesMut::new();
    let mut decoder = wire::Decoder::default();
    loop {
        let mut bytes = [0; 1000];
        let count = newer.read(&mut bytes).unwrap();
        buffer.extend_from_slice(&bytes[..count]);
        match decoder.next(&mut buffer).unwrap() {
            Some((Channel::Request, payload)) => break assert_eq!(payload, "to the newer"),
            // Pings.
            _ => assert_ne!(count, 0, "the link was closed"),
        }
    }
}

#[test]
fn another_process_does_not_take_the_place_of_one_that_answers() {
    let node = alone(|options| options.cluster = 50);
    let member = {
        let mut member = greeting(1, 9);
        (member.hello.cluster, member.hello.boot) = (50, 6);
        member
    };
    let mut twin = greeting(1, 9);
    twin.instance = 2;
    let first = join(node.port, member.clone()).unwrap();
    node.seen.wait_links(1, 1);
    let (_, answer) = dial(node.port, &Record::Greeting(twin.clone())).unwrap();
    assert!(matches!(&answer, Record::Refusal { code: 12, .. }), "{answer:?}");
    assert_eq!(node.seen.wait_links(1, 1), [Event::Up(1, 6)]);
    // When it is gone there is room, until it is back.
    drop(first);
    node.seen.wait_links(1, 2);
    let mut second = join(node.port, twin).unwrap();
    node.seen.wait_links(1, 3);
    let _first = join(node.port, member).unwrap();
    assert_eq!(node.seen.wait_links(1, 5)[3..], [Event::Down(1), Event::Up(1, 6)]);
    io::copy(&mut second, &mut io::sink()).unwrap();
}

#[test]
fn who_was_seen_on_a_later_start_is_told_that_its_directory_is_old() {
    let ((one, port_one), (two, port_two)) = (listener(), listener());
    let ports = [(1, port_one), (2, port_two)];
    let member = |node| {
        let mut options = options(node, &ports);
        options.cluster = 50;
        options
    };
    let (dials, stays) = (start(member(1), one), start(member(2), two));
    stays.seen.wait_links(1, 1);
    drop(dials);
    stays.seen.wait_links(1, 2);
    // The same start of another process: one of the two runs on a copy.
    let again = start(member(1), listen_again(port_one));
    again.seen.wait("to be told", |events| events.contains(&Event::Old).then_some(()));
    assert_eq!(stays.seen.wait_links(1, 2).len(), 2, "it was not let in");
}

#[test]
fn a_silent_peer_is_given_up() {
    let node = alone(|options| options.election_timeout = Millis(1));
    let mut silent = join(node.port, greeting(1, 9)).unwrap();
    assert_eq!(node.seen.wait_links(1, 2), [Event::Up(1, 5), Event::Down(1)]);
    io::copy(&mut silent, &mut io::sink()).unwrap();
    assert!(node.network.last_heard(NodeId(1)).is_some());
}

#[test]
fn a_node_that_is_no_peer_any_more_is_cut_off_until_it_is_one_again() {
    let (one, two) = pair();
    one.network.set_peers(Vec::new());
    assert_eq!(one.seen.wait_links(2, 2), [Event::Up(2, 5), Event::Down(2)]);
    assert!(one.network.peers().is_empty());
    two.seen.wait_links(1, 2);
    one.network.set_peers(peers(&[(2, two.port)]));
    assert_eq!(one.seen.wait_links(2, 3)[2], Event::Up(2, 5));
    two.seen.wait_links(1, 3);
}

#[test]
fn a_peer_that_does_not_read_fills_its_queue_and_no_more() {
    let node = alone(|_| {});
    let _deaf = join(node.port, greeting(1, 9)).unwrap();
    node.seen.wait_links(1, 1);
    let piece = Channel::Snapshot.payload_max();
    let mut sent = 0;
    while node.network.send(NodeId(1), Channel::Snapshot, vec![1; piece]).is_ok() {
        sent += piece;
        assert!(sent < 64 << 20, "the kernel takes a few megabytes, the queue eight");
    }
    let refused = node.network.send(NodeId(1), Channel::Snapshot, vec![1; piece]);
    assert_eq!(refused, Err(SendError::Full));
    // The other channels have queues of their own.
    node.network.send(NodeId(1), Channel::Raft, vec![1; piece]).unwrap();
    let status = &node.network.peers()[0];
    assert!(status.dropped >= 2 && status.queued_bytes < 10 << 20, "{status:?}");
}

#[test]
fn silent_connections_do_not_keep_a_peer_out() {
    let node = alone(|_| {});
    let silent: Vec<TcpStream> =
        (0..300).map(|_| TcpStream::connect(("127.0.0.1", node.port)).unwrap()).collect();
    let _peer = join(node.port, greeting(1, 9)).unwrap();
    assert_eq!(node.seen.wait_links(1, 1), [Event::Up(1, 5)]);
    // Those that had to go were closed, the newest are still there.
    let mut oldest = &silent[0];
    oldest.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(oldest.read(&mut [0]).unwrap_or(0), 0);
}

#[test]
fn garbage_at_the_port_changes_nothing() {
    let seed = 0x5EED_1234_ABCD_0001;
    println!("seed {seed:#x}");
    let mut random = seed;
    let node = alone(|_| {});
    let mut good = join(node.port, greeting(1, 9)).unwrap();
    node.seen.wait_links(1, 1);
    let (mut held, mut broken) = (Vec::new(), 0);
    for round in 0..2000 {
        let length = xorshift(&mut random) % 300;
        let mut bytes: Vec<u8> = (0..length).map(|_| xorshift(&mut random) as u8).collect();
        if round % 40 == 0 {
            // A peer until the handshake is done.
            let mut stream = None;
            until("there is a place", || {
                stream = join(node.port, greeting(3, 9)).ok();
                stream.is_some()
            });
            let mut stream = stream.unwrap();
            bytes.resize(bytes.len() + wire::OUTPUT_MAX, 0xA5);
            // Either fails when it was cut off before it had said all.
            let _ = stream.write_all(&bytes);
            let _ = io::copy(&mut stream, &mut io::sink());
            broken += 1;
            until("it is counted", || node.network.peers()[1].errors == broken);
            continue;
        }
        if round % 40 < 20 {
            let length = (xorshift(&mut random) % 5000) as u32;
            bytes.splice(0..0, [&b"HFPEER01"[..], &length.to_le_bytes(), b"hash"].concat());
        }
        let mut stream = TcpStream::connect(("127.0.0.1", node.port)).unwrap();
        // It may be closed already.
        let _ = stream.write_all(&bytes);
        // Some stay, and say nothing more.
        if round % 25 == 3 {
            held.push(stream);
            held.drain(..held.len().saturating_sub(30));
        }
    }
    drop(held);
    until("all are gone", || node.network.inner.pending.lock().is_empty());
    assert!(node.network.inner.said.lock().len() <= SAID_MAX);
    // The good link never noticed.
    assert_eq!(node.seen.wait_links(1, 1), [Event::Up(1, 5)]);
    let mut out = Vec::new();
    let mut outbox = wire::Outbox::default();
    outbox.push(Channel::Raft, b"still here".to_vec()).unwrap();
    outbox.fill(&mut out);
    good.write_all(&out).unwrap();
    assert_eq!(node.seen.wait_messages(1, Channel::Raft, 1), ["still here"]);
}

#[test]
fn pauses_double_up_to_a_second_and_vary() {
    let range = |failures| {
        let longest = (0..2000).map(|draw| backoff(failures, draw)).max().unwrap();
        (backoff(failures, 0).as_millis(), longest.as_millis())
    };
    let ranges = [0, 1, 2, 3, 4, 5, 40, u32::MAX].map(range);
    assert_eq!(ranges[..5], [(50, 50), (50, 100), (100, 200), (200, 400), (400, 800)]);
    assert_eq!(ranges[5..], [(500, 1000); 3]);
}
