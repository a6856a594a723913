//! Bad input: every malformed request gets Redis's answer, and nothing that is sent hurts the node.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::sync::OnceLock;
use std::time::Duration;

use holdfast::types::Millis;
use socket2::Domain;
use socket2::Socket;
use socket2::Type;

use crate::support::Random;
use crate::support::client::Client;
use crate::support::client::simple;
use crate::support::node::Node;
use crate::support::wait_for;

fn node() -> &'static Node {
    static NODE: OnceLock<Node> = OnceLock::new();
    NODE.get_or_init(|| Node::start(&[]))
}

/// What the node sends before it closes the connection that sent `bytes`.
fn answer_to(bytes: &[u8]) -> String {
    let mut client = node().client();
    // The node may close before all was taken: it need not listen to the rest.
    let _ = client.try_send_raw(bytes);
    client.read_to_close()
}

#[test]
fn each_malformed_request_gets_the_answer_of_redis() {
    for (sent, answer) in [
        (&b"set \"\"\"a\"\"\" b\r\n"[..], "unbalanced quotes in request"),
        (b"set 'a b\r\n", "unbalanced quotes in request"),
        (b"*3000000000\r\n", "invalid multibulk length"),
        (b"*abc\r\n", "invalid multibulk length"),
        (b"*\r\n", "invalid multibulk length"),
        (b"*1\r\n$-10\r\n", "invalid bulk length"),
        (b"*1\r\n$2000000000\r\n", "invalid bulk length"),
        (b"*1\r\n$blabla\r\n", "invalid bulk length"),
        (b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\nfooz\r\n", "expected '$', got 'f'"),
    ] {
        let expected = format!("-ERR Protocol error: {answer}\r\n");
        assert_eq!(answer_to(sent), expected, "to {:?}", String::from_utf8_lossy(sent));
    }
}

#[test]
fn a_line_without_end_is_refused() {
    let answer = answer_to(&vec![b'a'; 70_000]);
    // The rest may be underway when the node closes, which can cost the answer.
    let expected = "-ERR Protocol error: too big inline request\r\n";
    assert!(answer == expected || answer.is_empty(), "{answer}");
}

#[test]
fn a_header_without_end_is_refused() {
    for start in [&b"*"[..], b"*1\r\n$"] {
        let answer = answer_to(&[start, &vec![b'1'; 70_000]].concat());
        assert!(answer.starts_with("-ERR Protocol error: ") || answer.is_empty(), "{answer}");
    }
}

#[test]
fn empty_requests_are_ignored() {
    let mut client = node().client();
    client.send_raw(b"\r\n*0\r\n*-10\r\n\n\r\nPING\r\n");
    assert_eq!(client.read(), simple("PONG"));
    assert!(client.is_quiet());
}

#[test]
fn what_came_before_the_bad_request_is_answered_first() {
    let answer = answer_to(b"PING\r\n*2\r\n$4\r\nECHO\r\n$2\r\nhi\r\n*1\r\n$x\r\nPING\r\n");
    assert_eq!(answer, "+PONG\r\n$2\r\nhi\r\n-ERR Protocol error: invalid bulk length\r\n");
}

#[test]
fn writes_before_the_bad_request_took_effect() {
    let answer = answer_to(b"*2\r\n$4\r\nINCR\r\n$12\r\nprotocol:ctr\r\n*1\r\nfoo\r\n");
    assert_eq!(answer, ":1\r\n-ERR Protocol error: expected '$', got 'f'\r\n");
    assert_eq!(node().client().cmd(&["GET", "protocol:ctr"]).text(), "1");
}

#[test]
fn a_promised_length_costs_no_memory() {
    let node = Node::start(&[]);
    let before = node.resident_bytes();
    let waiting: Vec<Client> = (0..50)
        .map(|_| {
            let mut client = node.client();
            client.send_raw(b"*1000000\r\n$512000000\r\nabc");
            client
        })
        .collect();
    assert_eq!(node.client().cmd(&["PING"]), simple("PONG"));
    let after = node.resident_bytes();
    assert!(after < before + (64 << 20), "{before} bytes grew to {after}");
    drop(waiting);
}

#[test]
fn error_texts_stay_on_their_line() {
    let mut client = node().client();
    let answer = client.cmd(&["FOO\r\n+OK", "a\r\nb"]);
    assert!(answer.text().starts_with("ERR unknown command 'FOO"), "{answer:?}");
    assert_eq!(client.cmd(&["PING"]), simple("PONG"));
}

/// Random bytes, half of them made to look like the start of something.
fn random_bytes(random: &mut Random) -> Vec<u8> {
    const STARTS: [&[u8]; 8] = [
        b"",
        b"*3\r\n$3\r\nSET\r\n",
        b"*2\r\n$3\r\nGET\r\n$",
        b"*",
        b"$",
        b"*1\r\n$5\r\n",
        b"*2\r\n$4\r\nQPOP\r\n",
        b"EVAL \"",
    ];
    const WORDS: [&[u8]; 8] = [b"\r\n", b"$", b"*", b"\"", b"-1", b"\n", b"9223372036854775808", b" "];
    let mut bytes = STARTS[random.below(16).min(7) as usize].to_vec();
    for _ in 0..random.below(24) {
        match random.below(3) {
            0 => bytes.extend_from_slice(WORDS[random.below(8) as usize]),
            _ => bytes.push(random.next() as u8),
        }
    }
    bytes
}

/// Sends one string on a connection of its own, and waits until the node has taken all of it and closed.
///
/// A closed connection's port rests for a minute; loopback addresses taken in turn have ports enough.
fn send_alone(node: &Node, n: u64, bytes: &[u8]) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let from = Ipv4Addr::new(127, 0, 1, (1 + n % 64) as u8);
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&node.address().into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // The node may close before all was taken: it need not listen to the rest.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let ended = stream.read_to_end(&mut Vec::new());
    let is_reset = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionReset;
    assert!(ended.as_ref().err().is_none_or(is_reset), "{ended:?} after {bytes:?}");
}

/// `RANDOM_STRINGS=100000` for the long form.
#[test]
fn random_bytes_leave_the_node_serving_and_its_memory_where_it_was() {
    let count: u64 = std::env::var("RANDOM_STRINGS").map_or(20_000, |count| count.parse().unwrap());
    let seed = 0x5eed;
    println!("{count} random strings from seed {seed:#x}");
    let node = Node::start(&["--appendfsync", "no"]);
    let mut random = Random::new(seed);
    // What the allocator and the caches take once is no growth.
    (0..count / 4).for_each(|n| send_alone(&node, n, &random_bytes(&mut random)));
    let before = node.resident_bytes();
    (0..count).for_each(|n| send_alone(&node, n, &random_bytes(&mut random)));
    let mut client = wait_for("a connection", Millis(10_000), || Client::try_connect(node.address()).ok());
    client.set_timeout(Duration::from_secs(30));
    assert_eq!(client.cmd(&["PING"]), simple("PONG"));
    wait_for("the connections to be let go", Millis(20_000), || {
        let info = client.cmd(&["INFO", "clients"]).text();
        info.contains("connected_clients:1\r").then_some(())
    });
    let after = node.resident_bytes();
    println!("resident: {before} bytes before, {after} after");
    assert!(after < before + (16 << 20), "{before} bytes grew to {after}");
}

#[test]
fn an_http_request_is_closed_and_nothing_behind_it_runs() {
    let node = Node::start(&[]);
    let answer_to = |bytes: &[u8]| {
        let mut client = node.client();
        client.send_raw(bytes);
        client.read_to_close()
    };
    let answer = answer_to(b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\nSET attack 1\r\n");
    assert_eq!(answer, "");
    assert_eq!(answer_to(b"SET before 1\r\nhost: localhost\r\nSET attack 1\r\n"), "+OK\r\n");
    assert_eq!(answer_to(b"MULTI\r\npost\r\nDISCARD\r\nSET attack 1\r\n"), "+OK\r\n");
    let mut client = node.client();
    assert_eq!(client.cmd(&["EXISTS", "attack"]).integer(), 0);
    assert_eq!(client.cmd(&["EXISTS", "before"]).integer(), 1);
    let log = node.log();
    assert_eq!(log.matches("Possible SECURITY ATTACK detected").count(), 1, "once a minute:\n{log}");
}
