//! Well-formed inputs for the targets: what mutation starts from. Each is built by the product's own encoders, so
//! that a change of a format changes them too; the files of `corpus/` stay as they are, and hold older forms.

use bytes::Bytes;
use holdfast::commands::table;
use holdfast::consensus::Role;
use holdfast::consensus::formation;
use holdfast::consensus::raft::message_codec;
use holdfast::consensus::raft::requests;
use holdfast::consensus::raft::requests::AdminCommand;
use holdfast::consensus::raft::requests::ControlMessage;
use holdfast::consensus::raft::requests::GroupStatus;
use holdfast::consensus::raft::requests::NodeStatus;
use holdfast::consensus::raft::requests::Outcome;
use holdfast::consensus::raft::transfer::Offer;
use holdfast::consensus::raft::transfer::TransferMessage;
use holdfast::machine::entry;
use holdfast::machine::entry::Batch;
use holdfast::machine::entry::LeaderStart;
use holdfast::machine::entry::Queued;
use holdfast::machine::entry::SessionStamp;
use holdfast::machine::entry::Stamps;
use holdfast::machine::entry::Watched;
use holdfast::peer::Channel;
use holdfast::peer::Hello;
use holdfast::peer::handshake;
use holdfast::peer::wire;
use holdfast::resp::Reply;
use holdfast::resp::reply_codec;
use holdfast::state::Membership;
use holdfast::state::NodeAddress;
use holdfast::state::Settings;
use holdfast::storage::SnapshotFile;
use holdfast::storage::disk::DiskState;
use holdfast::types::ClusterTime;
use holdfast::types::GroupId;
use holdfast::types::LogIndex;
use holdfast::types::Millis;
use holdfast::types::NodeId;
use holdfast::types::WallMillis;
use raft::eraftpb::ConfState;
use raft::eraftpb::Entry;
use raft::eraftpb::EntryType;
use raft::eraftpb::Message;
use raft::eraftpb::MessageType;
use raft::eraftpb::Snapshot;
use raft::eraftpb::SnapshotMetadata;

use crate::targets::WORDS;

/// The inputs for a target; empty for an unknown name.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "resp_stream" => resp_streams(),
        "resp_roundtrip" => resp_round_trips(),
        "inline_command" => texts(INLINE),
        "reply_codec" => vec![encoded_replies(&replies())],
        "peer_frame" => peer_frames(),
        "handshake" => handshakes(),
        "raft_message" => raft_messages(),
        "request" => node_requests(),
        "snapshot_chunk" => snapshot_chunks(),
        "log_entry" => log_entries(),
        "log_apply" => vec![parts(log_entries().iter().map(|entry| entry[1..].to_vec()))],
        "commands" => commands(),
        "membership" => {
            vec![encoded_membership(&some_membership()), encoded_membership(&Membership::default())]
        }
        "watermark" => watermarks(),
        "config_file" => config_files(),
        "glob" => globs(),
        "long_double" => texts(NUMBERS),
        _ => Vec::new(),
    }
}

const INLINE: &[&str] = &[
    "PING",
    "  set  a\tb \r",
    r#"set "a b" 'c d'"#,
    r#"x "\x41\x7fz" "\n\r\t\b\a\q\"\\""#,
    r"x 'it\'s' '\n'",
    r#"set """a""" b"#,
    r#""foo"#,
    r#"foo"bar" x"#,
];

const NUMBERS: &[&str] = &[
    "0.1 0.2",
    "3.0e3 -5",
    "-0 0.5",
    "1e-4950 1e4932",
    "99999999999999999999.5 1e-17",
    "inf -inf",
    "18446744073709551616 -18446744073709551615",
    "0.00000000000000001 0.000000000000000005",
    "1.18973149535723176502e+4932 1e4932",
];

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Each with its length in two bytes before it.
fn parts(parts: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let with_length = |part: Vec<u8>| [&(part.len() as u16).to_le_bytes()[..], &part].concat();
    parts.into_iter().flat_map(with_length).collect()
}

fn resp_streams() -> Vec<Vec<u8>> {
    let streams: &[&[u8]] = &[
        b"*1\r\n$4\r\nPING\r\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\n\r\n*1\n\r\n",
        b"PING\r\n*-10\r\n\r\nset \"a b\" c\r\n*0\r\n*2\r\n$3\r\nGET\r\n$0\r\n\r\n",
        b"*2\r\n$3\r\nGET\r\n$100000000000\r\n",
        b"*1048577\r\n",
        b"*3\r\n$3\r\nSET\r\n:1\r\n",
        b"*12\r\n$20000\r\n",
        b"*5\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n$1\r\nd\r\n$1\r\ne\r\n*007\r\n",
    ];
    let with_head = |(at, stream): (usize, &&[u8])| {
        let choice = [3, 11, 35, 139][at % 4];
        [&[choice, 1, 2, 3, 4, 5, 6, 7, at as u8][..], stream].concat()
    };
    streams.iter().enumerate().map(with_head).collect()
}

fn replies() -> Vec<Reply> {
    vec![
        Reply::Ok,
        Reply::simple("PONG"),
        Reply::error("ERR a\r\nb"),
        Reply::Integer(-1),
        Reply::Double(1.5),
        Reply::Double(f64::NAN),
        Reply::Boolean(true),
        Reply::bulk(b"\xff\r\n"),
        Reply::Null,
        Reply::NullArray,
        Reply::Map(vec![(Reply::bulk("k"), Reply::Array(vec![Reply::Integer(1), Reply::Null]))]),
        Reply::Set(vec![Reply::Ok]),
        Reply::Push(vec![Reply::bulk("message")]),
        Reply::Verbatim("txt", "a text".to_owned()),
    ]
}

fn encoded_replies(replies: &[Reply]) -> Vec<u8> {
    let mut out = Vec::new();
    reply_codec::encode_replies(replies, &mut out);
    out
}

fn resp_round_trips() -> Vec<Vec<u8>> {
    let args = [&[7; 8][..], &[3, 3], b"SET", &[1], b"k", &[4], b"\r\n$1"].concat();
    vec![[args, encoded_replies(&replies())].concat(), [vec![0; 9], encoded_replies(&replies())].concat()]
}

fn peer_frames() -> Vec<Vec<u8>> {
    let mut outbox = wire::Outbox::default();
    let (mut stream, mut bodies) = (vec![9; 8], vec![9; 8]);
    for (channel, length) in
        [(Channel::Control, 3), (Channel::Raft, 40_000), (Channel::Request, 0), (Channel::Snapshot, 200)]
    {
        outbox.push(channel, vec![length as u8; length]).expect("the queues are empty");
    }
    outbox.fill(&mut stream);
    // version, channel, flags: 1 begins a payload, 2 ends it.
    for body in [
        &[1, 0, 3, 2, 0, 0, 0, 7, 7][..],
        &[1, 1, 1, 4, 0, 0, 0, 1, 2],
        &[1, 1, 0, 3],
        &[1, 1, 2, 4],
        &[1, 2, 3, 0, 0, 0, 0],
    ] {
        bodies.extend(parts([body.to_vec()]));
    }
    vec![stream, bodies]
}

fn handshakes() -> Vec<Vec<u8>> {
    let hello = Hello {
        cluster: 7 << 64 | 9,
        node: NodeId(2),
        boot: 1 << 40,
        replicas: vec![(GroupId(0), 2), (GroupId(1), 1_001)],
        version: "0.1.0".to_owned(),
        election_timeout: Millis(1_000),
        wire: wire::VERSION_MAX,
    };
    let records = [
        handshake::Record::Greeting(handshake::Greeting { instance: 77, to: NodeId(1), hello }),
        handshake::Record::Refusal { code: 5, text: "node 4 is not in the peer list".to_owned() },
        handshake::Record::Confirmation,
    ];
    let bytes = |record| handshake::encode(record).expect("it is short");
    let whole = records.iter().map(bytes);
    // The target seals bodies itself.
    whole.clone().chain(whole.map(|bytes| bytes[handshake::HEAD..].to_vec())).collect()
}

fn raft_messages() -> Vec<Vec<u8>> {
    let head = |msg_type: MessageType| Message {
        msg_type: msg_type as i32,
        to: 2,
        from: 1,
        term: 5,
        log_term: 4,
        index: 10,
        commit: 9,
        ..Message::default()
    };
    let entry = |index, data: &[u8]| Entry {
        entry_type: EntryType::EntryNormal as i32,
        term: 5,
        index,
        data: data.to_vec(),
        ..Entry::default()
    };
    let conf = ConfState { voters: vec![1, 2, 3], learners: vec![1_000], ..ConfState::default() };
    let messages = [
        Message { entries: vec![entry(11, b"one"), entry(12, b"")], ..head(MessageType::MsgAppend) },
        Message { reject: true, reject_hint: 7, ..head(MessageType::MsgAppendResponse) },
        Message { context: vec![1; 16], ..head(MessageType::MsgHeartbeat) },
        Message { priority: -1, ..head(MessageType::MsgRequestPreVote) },
        Message { entries: vec![entry(0, b"read")], ..head(MessageType::MsgReadIndex) },
        Message {
            snapshot: Some(Snapshot {
                data: b"name".to_vec(),
                metadata: Some(SnapshotMetadata { conf_state: Some(conf), index: 10, term: 4 }),
            }),
            ..head(MessageType::MsgSnapshot)
        },
    ];
    let mut inputs: Vec<Vec<u8>> = messages
        .iter()
        .map(|message| {
            let mut out = Vec::new();
            message_codec::encode_message(message, &mut out);
            out
        })
        .collect();
    let all: Vec<(GroupId, Message)> = messages.into_iter().map(|message| (GroupId(0), message)).collect();
    inputs.push(message_codec::encode_batch(ClusterTime(1_234), &all));
    inputs
}

fn node_requests() -> Vec<Vec<u8>> {
    let (group, node) = (GroupId(0), NodeId(3));
    let mut batch = Batch::new(b"default");
    batch.push_command(0, [&b"INCR"[..], b"n"].into_iter());
    let status = GroupStatus {
        group,
        replica: 3,
        role: Role::Follower,
        term: 5,
        leader: 1,
        commit: 100,
        applied: 99,
        verified: Some((90, 1 << 100)),
    };
    let requests = [
        requests::Request::Propose {
            group,
            epoch: 3 << 32,
            first_seq: 1,
            ack: 0,
            batches: vec![Bytes::from(batch.to_bytes()), Bytes::new()],
        },
        requests::Request::Outcomes {
            group,
            epoch: 3 << 32,
            outcomes: vec![
                (1, Outcome::Replies(Bytes::from(encoded_replies(&[Reply::Ok])))),
                (2, Outcome::Replayed),
                (3, Outcome::Gap),
                (4, Outcome::Ended),
                (5, Outcome::NotLeader { leader: Some(node) }),
                (6, Outcome::Refused("why".to_owned())),
            ],
        },
        requests::Request::ReadIndex { group, id: 8 },
        requests::Request::ReadIndexReply { group, id: 8, index: Some(LogIndex(100)) },
        requests::Request::Admin { id: 9, command: AdminCommand::TransferLeader { group, to: Some(node) } },
        requests::Request::Admin {
            id: 9,
            command: AdminCommand::Join { node, host: "b.example".to_owned(), port: 17_000, nonce: 4 },
        },
        requests::Request::AdminReply { id: 9, result: Ok(vec![1]) },
        requests::Request::AdminReply { id: 9, result: Err("no".to_owned()) },
    ];
    let controls = [
        ControlMessage::Formation(Bytes::from_static(b"step")),
        ControlMessage::Status(NodeStatus {
            node,
            version: "0.1.0".to_owned(),
            port: 6_379,
            http_port: 8_080,
            disk_free: 1 << 40,
            groups: vec![status],
            disk: DiskState::AlmostFull,
            disk_room: 0,
        }),
        ControlMessage::Gone { group, replica: 3 },
        ControlMessage::Raft(Bytes::from_static(b"batch")),
    ];
    // Fresh; and invited in round 1 to a cluster of two, with what follows for a record and for an announcement.
    let invited = [&[1, 0][..], &[7; 16], &[0, 1], &[8; 16], &[2, 1], &[7; 16], &[2], &[9; 16]].concat();
    let formation =
        [[&[1, 0][..], &[7; 16], &[0]].concat(), invited.clone(), [&invited[..], &[1, 2]].concat()];
    let is_formation = |bytes: &Vec<u8>| {
        formation::Record::decode(bytes).is_ok() || formation::Announcement::decode(bytes).is_ok()
    };
    let formation = formation.into_iter().filter(is_formation);
    let requests = requests.iter().map(requests::Request::encode);
    requests.chain(controls.iter().map(ControlMessage::encode)).chain(formation).collect()
}

fn snapshot_chunks() -> Vec<Vec<u8>> {
    let contents: [&[u8]; 3] = [b"first file", b"", b"second"];
    let file = |(at, bytes): (usize, &&[u8])| SnapshotFile {
        name: format!("00000{at}.sst"),
        size: bytes.len() as u64,
        crc: crc32c::crc32c(bytes),
    };
    let offer = Offer {
        transfer: 4,
        group: GroupId(0),
        to_replica: 2,
        index: 100,
        term: 5,
        message: vec![1, 2, 3],
        files: contents.iter().enumerate().map(file).collect(),
    };
    let chunk = |file: u32, offset: u64, data: &'static [u8]| TransferMessage::Chunk {
        transfer: 4,
        file,
        offset,
        data: Bytes::from_static(data),
    };
    let messages = [
        TransferMessage::Offer(offer),
        TransferMessage::Want { transfer: 4, file: 0, offset: 0 },
        chunk(0, 0, b"first"),
        chunk(0, 5, b" file"),
        TransferMessage::Ack { transfer: 4, file: 2, offset: 0 },
        chunk(2, 0, b"wrong!"),
        chunk(2, 0, b"second"),
        TransferMessage::Finished { transfer: 4 },
        TransferMessage::Refused { transfer: 4, reason: "no room".to_owned() },
    ];
    let body = |message: &TransferMessage| {
        let bytes = message.encode();
        [&[1][..], &bytes[..bytes.len() - 4]].concat()
    };
    let all = [vec![0; 8], parts(messages.iter().map(body))].concat();
    messages.iter().map(TransferMessage::encode).chain([all]).collect()
}

fn log_entries() -> Vec<Vec<u8>> {
    let push = |batch: &mut Batch, line: &str| {
        batch.push_command(0, line.split(' ').map(str::as_bytes).collect::<Vec<_>>().into_iter());
    };
    let mut start = Batch::new(b"");
    start.push_leader_start(&LeaderStart {
        outage: Millis(1_000),
        settings: Settings { databases: 16, ..Settings::default() },
    });
    let mut plain = Batch::new(b"default");
    for line in
        ["SET k v PX 1000", "LOCK l me PX 1000", "QPUSH q payload", "QPOP LEASE 1000 FROM q", "QACK q 1-0:1"]
    {
        push(&mut plain, line);
    }
    for line in [
        "QPUSH q payload ID x PRIORITY 3 DELAY 10 GROUP g PX 5000",
        "QCONFIG SET q DEADLETTER d MAXDELIVER 1 AGING 5",
        "QPOP COUNT 2 LEASE 100 WITHMETA CONSUMER w FROM q",
        "QNACK q FATAL REASON why IDS 1 2-5:1",
        "QREDRIVE d TO q",
        "QPOP BLOCK 0 FROM none",
    ] {
        push(&mut plain, line);
    }
    plain.push_expire(0, [&b"k"[..], b"l"].into_iter());
    plain.push_expire(0, std::iter::empty());
    plain.push_verify();
    plain.push_allocate_replica(NodeId(4), 7);
    let mut transaction = Batch::new(b"default");
    let words = |line: &str| line.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
    transaction.push_transaction(
        &[
            Watched { db: 0, key: (*b"k").into(), changed: Some(LogIndex(1)) },
            Watched { db: 3, key: (*b"n").into(), changed: None },
        ],
        &[Queued { db: 0, args: words("INCR n") }, Queued { db: 1, args: words("MSET a 1 b 2") }],
        false,
    );
    let mut atomic = Batch::new(b"default");
    atomic.name_client(3, "127.0.0.1:5000");
    for line in ["LOCK l me PX 1000", "LOCK l you PX 1000 BLOCK 5000", "MLOCK 2 l m us SHARED BLOCK 0"] {
        push(&mut atomic, line);
    }
    atomic.push_transaction(
        &[],
        &[
            Queued { db: 0, args: words("ONCE name PX 5000") },
            Queued { db: 0, args: words("FENCE l 1") },
            Queued { db: 0, args: words("QPUSH q payload") },
            Queued { db: 0, args: words("LOCK l you") },
        ],
        true,
    );
    atomic.push_cancel(&[1, 2]);
    atomic.push_take_back(0, b"me", [(&b"l"[..], 1, 1)].into_iter());
    atomic.push_end_claims(NodeId(2), 1);
    let session = |seq| Some(SessionStamp { node: NodeId(2), epoch: 1, seq, ack: seq - 1 });
    let entry = |clock, batches: &[(Option<SessionStamp>, &Batch)]| {
        let stamps =
            Stamps { clock: ClusterTime(clock), wall: WallMillis(1_700_000_000_000 + clock), seed: 3 };
        entry::encode_entry(&stamps, batches.iter().copied())
    };
    vec![
        entry(0, &[(None, &start)]),
        entry(10, &[(None, &plain), (session(1), &transaction)]),
        entry(2_000, &[(session(1), &plain), (session(2), &plain), (session(4), &transaction)]),
        entry(10, &[(session(1), &atomic), (None, &atomic)]),
        entry(2_000, &[]),
    ]
}

/// Command numbers and words as the target reads them; which commands these are depends on the table.
fn commands() -> Vec<Vec<u8>> {
    let one = |command: u8, words: &[u8]| [&[2, 0, 1, 0, command, words.len() as u8][..], words].concat();
    let each = (0..120).flat_map(|command| one(command, &[0, 5, 2]));
    let with_options = (0..120).flat_map(|command| one(command, &[0, 5, 28, 11, 23]));
    let queues = QUEUE_LINES.iter().flat_map(|line| command_line(line));
    vec![each.collect(), with_options.collect(), queues.collect()]
}

/// Lives of messages: ids are those of the entries.
const QUEUE_LINES: &[&str] = &[
    "QPUSH a b ID me PRIORITY 3",
    "QPUSH a c DELAY 100 GROUP b",
    "QCONFIG SET a DEADLETTER b MAXDELIVER 2",
    "QPOP LEASE 100 WITHMETA FROM a",
    "QNACK a FAIL IDS 1 1-0:1",
    "QPOP BLOCK 0 FROM a c",
    "QPOP COUNT 3 FROM a",
    "QNACK a FATAL IDS 1 1-0:2",
    "QREDRIVE b TO a",
    "QTRACE a 1-0",
    "QPEEK a STATE READY",
    "QINFO a FULL",
    "QDEL a STATE DEAD",
    "QACK a 2-0:1 2-0:2",
];

/// A line as an entry of its own, of words that the target knows.
fn command_line(line: &str) -> Vec<u8> {
    let mut words = line.split(' ');
    let name = words.next().expect("a line has a name");
    let number =
        table::all().position(|spec| spec.name.eq_ignore_ascii_case(name)).expect("it is in the table");
    let mut input = vec![0, 0, 1, 0, number as u8];
    let spec = table::all().nth(number).expect("it was found just now");
    if !spec.subcommands.is_empty() {
        let word = words.next().expect("a subcommand");
        let at = spec.subcommands.iter().position(|spec| spec.name.eq_ignore_ascii_case(word));
        input.push(at.expect("it is in the table") as u8);
    }
    let words: Vec<&str> = words.collect();
    input.push(words.len() as u8);
    for word in words {
        let known = WORDS.iter().position(|known| *known == word);
        input.push(known.unwrap_or_else(|| panic!("{word} is none of the target's words")) as u8);
    }
    input
}

fn some_membership() -> Membership {
    let address = |node, port| NodeAddress { node: NodeId(node), host: format!("node-{node}"), port };
    Membership {
        voters: vec![1, 2, 1_000],
        learners: vec![1_001],
        voters_outgoing: vec![3],
        learners_next: vec![3],
        auto_leave: true,
        nodes: [(1, address(1, 17_000)), (2, address(2, 17_001)), (1_000, address(3, 17_002))].into(),
        next_replica: 1_002,
        allocated: [(NodeId(3), (5, 1_001))].into(),
    }
}

fn encoded_membership(membership: &Membership) -> Vec<u8> {
    let mut out = Vec::new();
    membership.encode(&mut out);
    out
}

fn watermarks() -> Vec<Vec<u8>> {
    let slot = |generation: u64, term: u64, index: u64| {
        let mut slot = [0; 60];
        for (at, number) in [(8, generation), (16, term), (24, index)] {
            slot[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        slot
    };
    let file = |choice: u8| [&[choice, 1, 5, 1, 90][..], &slot(4, 5, 70), &slot(5, 5, 80)].concat();
    vec![file(0b1111), file(0b0111), file(0b0011), vec![0, 1, 1, 1, 1]]
}

fn config_files() -> Vec<Vec<u8>> {
    texts(&[
        "# A node\nport 7000\nbind 127.0.0.1 -::1\nsave 900 1\nsave 300 10\nrequirepass \"a b\"\n",
        "client-output-buffer-limit normal 1mb 512kb 60\nmaxmemory 1gb\nappendfsync always\n",
        "cluster-node 1 a.example 17000\ncluster-node 2 b.example 17000\nnode-id 1\n",
        "port 'x\n",
        "election-timeout 1000\nheartbeat-interval 900\n",
    ])
}

fn globs() -> Vec<Vec<u8>> {
    let glob = |nocase: u8, pattern: &str, text: &str| {
        [&[nocase][..], &(pattern.len() as u16).to_le_bytes(), pattern.as_bytes(), text.as_bytes()].concat()
    };
    vec![
        glob(0, "h[a-e]l*o\\?", "hello?"),
        glob(1, "*A*b?[^c-]", "xxaxxBzz"),
        glob(0, "[^", "x"),
        glob(0, &"a*".repeat(500), &"a".repeat(500)),
        glob(0, &format!("{}b", "*a".repeat(1_500)), &"a".repeat(4_000)),
    ]
}
