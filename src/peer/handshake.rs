//! What is said before frames: who is there, and whether they may talk. Pure.
//!
//! ```text
//! dialer                         acceptor
//!   ──── greeting ────────────────►  judges it
//!   ◄─── greeting or refusal ──────
//!   ──── confirmation or refusal ─►  the link is up on both sides, or on neither
//! ```
//! The confirmation keeps an acceptor from giving up a good link for a dialer that then refuses it.
//!
//! ```text
//! record: [magic 8][length u32][crc32c of the body u32] body of at most 4 KiB
//! body:   [kind u8][lowest wire version u8][highest u8] rest    (read only with a version in common)
//! ```

use std::net::IpAddr;

use thiserror::Error;

use crate::peer::Hello;
use crate::peer::wire;
use crate::types::GroupId;
use crate::types::Millis;
use crate::types::NodeId;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_bytes;
use crate::types::codec::put_varint;

const MAGIC: [u8; 8] = *b"HFPEER01";
/// Bytes before the body.
pub const HEAD: usize = 16;
/// Bytes of a body at most.
pub const BODY_MAX: usize = 4 << 10;
const VERSION_TEXT_MAX: usize = 64;
const REFUSAL_TEXT_MAX: usize = 512;

const GREETING: u8 = 0;
const REFUSAL: u8 = 1;
const CONFIRMATION: u8 = 2;

/// What one side says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Random, drawn at start: tells this process from another that claims the same node id.
    pub instance: u64,
    /// Whom this side believes to talk to.
    pub to: NodeId,
    /// `wire` is the highest version this side speaks; once read, the highest that both speak.
    pub hello: Hello,
}

/// One record of the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Greeting(Greeting),
    Refusal { code: u8, text: String },
    Confirmation,
}

/// Why a connection is not taken. The text goes to the other side and to the log: one line that says what to
/// do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    #[error(
        "this is the internal port of a Holdfast node, for other nodes only; clients use the port of RESP"
    )]
    Magic,
    #[error("the handshake is damaged or longer than 4096 bytes")]
    Damaged,
    #[error(
        "no wire version in common: the other side speaks {min} to {max}, this node {} to {}; bring the \
         nodes to versions that are at most one release apart",
        wire::VERSION_MIN,
        wire::VERSION_MAX
    )]
    Version { min: u8, max: u8 },
    #[error(
        "node {node} is of cluster {theirs:032x} and this node of {own:032x}: let the cluster-node lines of \
         both name the nodes of one cluster"
    )]
    OtherCluster { node: NodeId, theirs: u128, own: u128 },
    #[error(
        "node {node} is not in the peer list of node {own}: add it to the cluster, or correct its node-id"
    )]
    UnknownNode { node: NodeId, own: NodeId },
    #[error("two nodes have node-id {0}: give each its own")]
    OwnNode(NodeId),
    #[error("node {0} reached itself: a cluster-node line gives its address to another node; correct it")]
    Itself(NodeId),
    #[error(
        "node {wanted} was looked for where node {own} listens: correct the address of node {wanted} in \
         cluster-node"
    )]
    WrongNode { wanted: NodeId, own: NodeId },
    #[error(
        "node {node} must wait until node {own} dials: the lower node id dials; check the node-id of both"
    )]
    Direction { node: NodeId, own: NodeId },
    #[error(
        "node {node} presents start {boot} although its start {seen} was seen: it runs on an older copy of \
         its data directory, and must give it up and join anew"
    )]
    OldBoot { node: NodeId, boot: u64, seen: u64 },
    #[error(
        "another process with node-id {0} is connected to this node and answers: two nodes must not share a node-id. If \
         it has replaced that one, it is let in when that one is gone"
    )]
    Taken(NodeId),
    #[error(
        "protected mode: the internal port is neither encrypted nor authenticated yet; set \
         peer-protected-mode no on every node only in a network that you trust"
    )]
    Protected,
}

impl Refusal {
    /// The number that says the same to a program.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Refusal::Magic => 1,
            Refusal::Damaged => 2,
            Refusal::Version { .. } => 3,
            Refusal::OtherCluster { .. } => 4,
            Refusal::UnknownNode { .. } => 5,
            Refusal::OwnNode(_) => 6,
            Refusal::Itself(_) => 7,
            Refusal::WrongNode { .. } => 8,
            Refusal::Direction { .. } => 9,
            Refusal::OldBoot { .. } => 10,
            Refusal::Protected => 11,
            Refusal::Taken(_) => 12,
        }
    }

    /// What is sent to the other side.
    #[must_use]
    pub fn record(&self) -> Record {
        Record::Refusal { code: self.code(), text: self.to_string() }
    }
}

/// The code of [`Refusal::OldBoot`]: who is told so runs on a data directory that was put back.
pub const OLD_BOOT: u8 = 10;

/// What is known of a peer before it greets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The highest boot count that a link of a member presented, and the process that did; zeros if none.
    pub boot: u64,
    pub instance: u64,
    /// The process whose link is up, and whether it is known to be of the cluster.
    pub linked: Option<(u64, bool)>,
}

/// The refusal of an address in protected mode.
#[must_use]
pub fn judge_address(is_protected: bool, remote: IpAddr) -> Option<Refusal> {
    (is_protected && !remote.to_canonical().is_loopback()).then_some(Refusal::Protected)
}

/// Judges a greeting. `own` is what this side says; `dialed` is whom it dialed, `None` when it accepted.
/// `seen` is what is known of a peer, or `None` for a node that is no peer.
pub fn judge(
    own: &Greeting,
    dialed: Option<NodeId>,
    seen: impl Fn(NodeId) -> Option<Seen>,
    theirs: &Greeting,
) -> Result<(), Refusal> {
    let (node, own_node) = (theirs.hello.node, own.hello.node);
    if theirs.instance == own.instance && node == own_node {
        return Err(Refusal::Itself(node));
    }
    if node == own_node {
        return Err(Refusal::OwnNode(node));
    }
    if theirs.to != own_node {
        return Err(Refusal::WrongNode { wanted: theirs.to, own: own_node });
    }
    if let Some(wanted) = dialed.filter(|&wanted| wanted != node) {
        return Err(Refusal::WrongNode { wanted, own: node });
    }
    let Some(seen) = seen(node) else { return Err(Refusal::UnknownNode { node, own: own_node }) };
    if dialed.is_none() && node > own_node {
        return Err(Refusal::Direction { node, own: own_node });
    }
    let (cluster, own_cluster) = (theirs.hello.cluster, own.hello.cluster);
    if cluster != 0 && own_cluster != 0 && cluster != own_cluster {
        return Err(Refusal::OtherCluster { node, theirs: cluster, own: own_cluster });
    }
    // Without a cluster it is new, or has lost its disk and with it the count. Two processes with one count have started
    // from one directory, of which one is a copy.
    let is_copy = theirs.hello.boot == seen.boot && theirs.instance != seen.instance && seen.boot != 0;
    if cluster != 0 && (theirs.hello.boot < seen.boot || is_copy) {
        return Err(Refusal::OldBoot { node, boot: theirs.hello.boot, seen: seen.boot });
    }
    if seen.linked.is_some_and(|linked| !may_displace(linked, theirs.instance, cluster != 0)) {
        return Err(Refusal::Taken(node));
    }
    Ok(())
}

/// Whether a process may take the place of the one whose link is up under the same node id: its own older link it may,
/// and a member that of a process which only asks to become one. Another's link ends by itself once it does not answer.
pub fn may_displace((linked, is_member): (u64, bool), instance: u64, comes_as_member: bool) -> bool {
    linked == instance || (comes_as_member && !is_member)
}

/// The bytes of a record. A greeting that names too many replicas would be longer than what is read: it
/// fails.
pub fn encode(record: &Record) -> Result<Vec<u8>, CodecError> {
    let mut body = Vec::with_capacity(128);
    let kind = match record {
        Record::Greeting(_) => GREETING,
        Record::Refusal { .. } => REFUSAL,
        Record::Confirmation => CONFIRMATION,
    };
    body.extend_from_slice(&[kind, wire::VERSION_MIN, wire::VERSION_MAX]);
    match record {
        Record::Greeting(greeting) => put_greeting(&mut body, greeting),
        Record::Refusal { code, text } => {
            body.push(*code);
            put_bytes(&mut body, cut(text, REFUSAL_TEXT_MAX).as_bytes());
        }
        Record::Confirmation => {}
    }
    if body.len() > BODY_MAX {
        return Err(CodecError("a greeting longer than 4096 bytes"));
    }
    let length = u32::try_from(body.len()).expect("a body is at most 4 KiB long");
    let mut bytes = Vec::with_capacity(HEAD + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

fn put_greeting(body: &mut Vec<u8>, greeting: &Greeting) {
    let hello = &greeting.hello;
    body.extend_from_slice(&hello.cluster.to_le_bytes());
    for number in [greeting.instance, greeting.to.0, hello.node.0, hello.boot, hello.replicas.len() as u64] {
        put_varint(body, number);
    }
    for (group, replica) in &hello.replicas {
        put_varint(body, u64::from(group.0));
        put_varint(body, *replica);
    }
    put_bytes(body, cut(&hello.version, VERSION_TEXT_MAX).as_bytes());
    put_varint(body, hello.election_timeout.0);
}

fn cut(text: &str, length_max: usize) -> &str {
    let end = (0..=length_max.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

/// Length and checksum of the body that follows this head.
pub fn decode_head(head: &[u8; HEAD]) -> Result<(usize, u32), Refusal> {
    let [magic @ .., l0, l1, l2, l3, c0, c1, c2, c3] = *head;
    if magic != MAGIC {
        return Err(Refusal::Magic);
    }
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if length > BODY_MAX {
        return Err(Refusal::Damaged);
    }
    Ok((length, u32::from_le_bytes([c0, c1, c2, c3])))
}

/// The record in a body whose checksum should be `crc`. A refusal is read whatever versions its sender
/// speaks.
pub fn decode_body(body: &[u8], crc: u32) -> Result<Record, Refusal> {
    if crc32c::crc32c(body) != crc {
        return Err(Refusal::Damaged);
    }
    let mut reader = Reader::new(body);
    let mut byte = || reader.u8().map_err(|_| Refusal::Damaged);
    let (kind, min, max) = (byte()?, byte()?, byte()?);
    let highest = max.min(wire::VERSION_MAX);
    if kind != REFUSAL && highest < min.max(wire::VERSION_MIN) {
        return Err(Refusal::Version { min, max });
    }
    let record = match kind {
        GREETING => read_greeting(&mut reader, highest).map(Record::Greeting),
        REFUSAL => read_refusal(&mut reader),
        CONFIRMATION => Ok(Record::Confirmation),
        _ => Err(CodecError("a record of another kind")),
    };
    record.ok().filter(|_| reader.is_empty()).ok_or(Refusal::Damaged)
}

fn read_greeting(reader: &mut Reader<'_>, wire: u8) -> Result<Greeting, CodecError> {
    let cluster = reader.take(16)?.try_into().map_err(|_| CodecError("cut short"))?;
    let instance = reader.varint()?;
    let to = NodeId(reader.varint()?);
    let node = NodeId(reader.varint()?);
    let boot = reader.varint()?;
    let mut replicas = Vec::new();
    // Each takes two bytes at least, so the body's length bounds them.
    for _ in 0..reader.varint()? {
        replicas.push((GroupId(reader.varint32()?), reader.varint()?));
    }
    let version = one_line(reader.bytes()?, VERSION_TEXT_MAX);
    let election_timeout = Millis(reader.varint()?);
    let cluster = u128::from_le_bytes(cluster);
    let hello = Hello { cluster, node, boot, replicas, version, election_timeout, wire };
    Ok(Greeting { instance, to, hello })
}

fn read_refusal(reader: &mut Reader<'_>) -> Result<Record, CodecError> {
    let code = reader.u8()?;
    Ok(Record::Refusal { code, text: one_line(reader.bytes()?, REFUSAL_TEXT_MAX) })
}

/// Text of a peer, fit for a line of the log.
fn one_line(bytes: &[u8], length_max: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    cut(&text, length_max).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::any;
    use proptest::proptest;

    fn greeting(node: u64, to: u64) -> Greeting {
        let hello = Hello {
            cluster: 0,
            node: NodeId(node),
            boot: 7,
            replicas: vec![(GroupId(0), node), (GroupId(u32::MAX), u64::MAX)],
            version: "0.1.0".to_owned(),
            election_timeout: Millis(500),
            wire: wire::VERSION_MAX,
        };
        Greeting { instance: 1000 + node, to: NodeId(to), hello }
    }

    fn decode(bytes: &[u8]) -> Result<Record, Refusal> {
        let (head, body) = bytes.split_first_chunk().unwrap();
        let (length, crc) = decode_head(head)?;
        decode_body(body.get(..length).ok_or(Refusal::Damaged)?, crc)
    }

    fn sealed(body: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn records_round_trip_and_no_flipped_bit_goes_unseen() {
        let mut formed = greeting(1, 2);
        formed.hello.cluster = u128::MAX - 5;
        for record in [
            Record::Greeting(formed),
            Refusal::OwnNode(NodeId(3)).record(),
            Refusal::Protected.record(),
            Record::Confirmation,
        ] {
            let bytes = encode(&record).unwrap();
            assert_eq!(decode(&bytes), Ok(record));
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(decode(&flipped).is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn what_is_no_greeting_is_refused() {
        let no_version = sealed(&[GREETING, 9, 12, 1, 2, 3]);
        assert_eq!(decode(&no_version), Err(Refusal::Version { min: 9, max: 12 }));
        assert_eq!(decode(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), Err(Refusal::Magic));
        let mut long = sealed(&[GREETING, wire::VERSION_MIN, wire::VERSION_MAX]);
        long[8..12].copy_from_slice(&(BODY_MAX as u32 + 1).to_le_bytes());
        assert_eq!(decode(&long), Err(Refusal::Damaged));
        assert_eq!(
            decode(&sealed(&[CONFIRMATION, wire::VERSION_MIN, wire::VERSION_MAX, 0])),
            Err(Refusal::Damaged),
            "a byte too many"
        );
        assert_eq!(
            decode(&sealed(&[3, wire::VERSION_MIN, wire::VERSION_MAX])),
            Err(Refusal::Damaged),
            "another kind"
        );
        let mut many = greeting(1, 2);
        many.hello.replicas = vec![(GroupId(1), 1); 3000];
        assert!(encode(&Record::Greeting(many)).is_err());
    }

    #[test]
    fn the_text_of_a_peer_stays_one_line() {
        let text = "first\nsecond\u{1b}[2J\r".to_owned() + &"x".repeat(600);
        let bytes = encode(&Record::Refusal { code: 1, text }).unwrap();
        let Ok(Record::Refusal { text, .. }) = decode(&bytes) else { panic!("it decodes") };
        assert!(text.starts_with("first second [2J ") && text.len() <= REFUSAL_TEXT_MAX, "{text:?}");
    }

    proptest! {
        #[test]
        fn random_bodies_never_panic(body in vec(any::<u8>(), 0..100)) {
            let _ = decode(&sealed(&body));
            let _ = decode(&sealed(&[&[GREETING, wire::VERSION_MIN, wire::VERSION_MAX][..], &body].concat()));
        }
    }

    #[test]
    fn the_verdicts() {
        let at = |cluster, boot, from, to| {
            let mut greeting = greeting(from, to);
            greeting.hello.cluster = cluster;
            greeting.hello.boot = boot;
            greeting
        };
        let node = NodeId;
        let other = |mut greeting: Greeting| {
            greeting.instance = 55;
            greeting
        };
        let mut itself = at(0, 5, 2, 3);
        itself.instance = 1002;
        let mut namesake = at(0, 5, 2, 2);
        namesake.instance = 77;
        // This is node 2 of cluster 50. Peers are 1 (boot 5 seen) and 3 (never seen).
        let cases = [
            (None, at(50, 5, 1, 2), Ok(())),
            (None, at(0, 1, 1, 2), Ok(())),
            (Some(node(3)), at(50, 0, 3, 2), Ok(())),
            (None, itself, Err(Refusal::Itself(node(2)))),
            (None, namesake, Err(Refusal::OwnNode(node(2)))),
            (None, at(50, 5, 1, 3), Err(Refusal::WrongNode { wanted: node(3), own: node(2) })),
            (Some(node(3)), at(50, 5, 1, 2), Err(Refusal::WrongNode { wanted: node(3), own: node(1) })),
            (None, at(50, 5, 9, 2), Err(Refusal::UnknownNode { node: node(9), own: node(2) })),
            (None, at(50, 5, 3, 2), Err(Refusal::Direction { node: node(3), own: node(2) })),
            (None, at(51, 5, 1, 2), Err(Refusal::OtherCluster { node: node(1), theirs: 51, own: 50 })),
            (None, at(50, 4, 1, 2), Err(Refusal::OldBoot { node: node(1), boot: 4, seen: 5 })),
            (None, other(at(50, 5, 1, 2)), Err(Refusal::OldBoot { node: node(1), boot: 5, seen: 5 })),
            (None, other(at(50, 6, 1, 2)), Ok(())),
        ];
        let seen = |node: NodeId| {
            let seen = |boot| Seen { boot, instance: 1000 + node.0, linked: None };
            [(1, 5), (3, 0)].iter().find(|peer| peer.0 == node.0).map(|peer| seen(peer.1))
        };
        let own = at(50, 9, 2, 1);
        for (dialed, theirs, expected) in cases {
            assert_eq!(judge(&own, dialed, seen, &theirs), expected, "{theirs:?}");
        }
        // A node whose cluster is not formed talks to any.
        assert_eq!(judge(&at(0, 9, 2, 1), None, seen, &at(51, 5, 1, 2)), Ok(()));
    }

    #[test]
    fn a_living_process_keeps_its_place_and_a_member_takes_that_of_a_stranger() {
        let own = {
            let mut own = greeting(2, 1);
            own.hello.cluster = 50;
            own
        };
        let verdict = |linked, cluster, instance| {
            let mut theirs = greeting(1, 2);
            (theirs.hello.cluster, theirs.instance) = (cluster, instance);
            let seen = |_| Some(Seen { boot: 0, instance: 0, linked: Some(linked) });
            judge(&own, None, seen, &theirs)
        };
        let taken = Err(Refusal::Taken(NodeId(1)));
        for (is_member, cluster) in [(true, 50), (true, 0), (false, 50), (false, 0)] {
            assert_eq!(verdict((7, is_member), cluster, 7), Ok(()), "its own");
        }
        assert_eq!(verdict((7, true), 0, 8), taken, "a second process without data");
        assert_eq!(verdict((7, true), 50, 8), taken, "one with a copy");
        assert_eq!(verdict((7, false), 0, 8), taken);
        assert_eq!(verdict((7, false), 50, 8), Ok(()), "the one that belongs here");
    }

    #[test]
    fn protected_mode_knows_only_this_machine() {
        for (remote, is_refused) in [
            ("127.0.0.1", false),
            ("127.8.9.1", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("10.0.0.7", true),
            ("::ffff:10.0.0.7", true),
            ("2001:db8::1", true),
            ("0.0.0.0", true),
        ] {
            let remote = remote.parse().unwrap();
            assert_eq!(judge_address(true, remote).is_some(), is_refused, "{remote}");
            assert_eq!(judge_address(false, remote), None, "{remote}");
        }
        let text = Refusal::Protected.to_string();
        assert!(text.contains("peer-protected-mode no") && text.lines().count() == 1);
    }
}
