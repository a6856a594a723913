//! What nodes ask of each other, apart from Raft itself: the payloads of the channels Request and Control.
//!
//! ```text
//! request := version:u8 1 group epoch first_seq ack n bytes*           Propose      origin ─► leader
//!          | version:u8 2 group epoch n (seq outcome)*                 Outcomes     leader ─► origin
//!          | version:u8 3 group id                                     ReadIndex    follower ─► leader
//!          | version:u8 4 group id (0 | 1 index)                       ReadIndexReply
//!          | version:u8 5 id command                                   Admin
//!          | version:u8 6 id (0 text | 1 bytes)                        AdminReply
//! outcome := 0 bytes | 1 | 2 | 3 | 4 (0 | 1 node) | 5 text             Replies Replayed Gap Ended NotLeader Refused
//! command := 0 group (0 | 1 node) | 1 node host:text port nonce        TransferLeader Join
//!
//! control := version:u8 1 bytes                                        Formation
//!          | version:u8 2 node version:text port http_port disk_free n group* disk:u8 room                 Status
//!          | version:u8 3 group replica                                Gone
//! group   := group replica role:u8 term leader commit applied (0 | 1 index digest:u128)
//! ```
//! Numbers are varints unless said otherwise; bytes and texts have their length before them. What follows the
//! known fields is skipped, so that a later version may add some. Bytes are slices of the payload they came in.

use bytes::Bytes;

use crate::consensus::Role;
use crate::storage::disk::DiskState;
use crate::types::GroupId;
use crate::types::LogIndex;
use crate::types::NodeId;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_bool;
use crate::types::codec::put_bytes;
use crate::types::codec::put_u128;
use crate::types::codec::put_varint;

/// Version of requests; others are refused.
pub const REQUEST_VERSION: u8 = 1;
/// Version of control messages; others are refused.
pub const CONTROL_VERSION: u8 = 1;
/// Batches of one Propose. More are the sender's to divide.
pub const MAX_BATCHES: usize = 65_536;
/// Outcomes of one message. More are the sender's to divide.
pub const MAX_OUTCOMES: usize = 65_536;
/// Groups of one node.
pub const MAX_GROUPS: usize = 1024;
/// Bytes of a text: a reason, a host, a version. Longer ones are cut when they are encoded.
pub const MAX_TEXT: usize = 1024;

const PROPOSE: u8 = 1;
const OUTCOMES: u8 = 2;
const READ_INDEX: u8 = 3;
const READ_INDEX_REPLY: u8 = 4;
const ADMIN: u8 = 5;
const ADMIN_REPLY: u8 = 6;

const REPLIES: u8 = 0;
const REPLAYED: u8 = 1;
const GAP: u8 = 2;
const ENDED: u8 = 3;
const NOT_LEADER: u8 = 4;
const REFUSED: u8 = 5;

const TRANSFER_LEADER: u8 = 0;
const JOIN: u8 = 1;

const FORMATION: u8 = 1;
const STATUS: u8 = 2;
const GONE: u8 = 3;
const RAFT: u8 = 4;

/// More than a message's own numbers take.
const HEAD_BYTES: usize = 64;
/// More than the numbers of a batch, an outcome or a text take.
const ITEM_BYTES: usize = 24;
/// A sequence number and what it came to.
const OUTCOME_BYTES_MIN: usize = 2;
/// The eight fields of a group's status.
const GROUP_BYTES_MIN: usize = 8;

/// A payload of the channel Request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Batches of one origin, consecutive from `first_seq`, for the leader to propose. The sender is the origin.
    Propose {
        group: GroupId,
        /// The origin's session, as `machine::entry` names them.
        epoch: u64,
        first_seq: u64,
        /// Every batch up to and including it was answered at the origin.
        ack: u64,
        /// At most [`MAX_BATCHES`]; each an encoded batch of machine::entry without a session.
        batches: Vec<Bytes>,
    },
    /// What batches of the receiver came to.
    Outcomes {
        group: GroupId,
        epoch: u64,
        /// Sequence numbers with their outcomes, at most [`MAX_OUTCOMES`].
        outcomes: Vec<(u64, Outcome)>,
    },
    /// Asks the leader up to where to read.
    ReadIndex { group: GroupId, id: u64 },
    /// Answers it.
    ReadIndexReply {
        group: GroupId,
        id: u64,
        /// `None`: the receiver of the question does not lead, or no quorum confirmed that it does.
        index: Option<LogIndex>,
    },
    /// Asks for what only some other node can do.
    Admin { id: u64, command: AdminCommand },
    /// Answers it, with bytes that depend on the command, or with the reason why not.
    AdminReply { id: u64, result: Result<Vec<u8>, String> },
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was executed, now or before: its replies (resp::reply_codec).
    Replies(Bytes),
    /// It was executed before and its replies are forgotten.
    Replayed,
    /// Not executed: batches before it are missing.
    Gap,
    /// Not executed: its session has ended or never began.
    Ended,
    /// Not executed by this request; it may still be in a log from an earlier one.
    NotLeader {
        /// Who may lead, as far as the sender knows.
        leader: Option<NodeId>,
    },
    /// Not executed, for this reason.
    Refused(String),
}

/// What a node asks of another one on behalf of an administrator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminCommand {
    /// Hand over the lead of the group, to this node or to whom the leader finds best.
    TransferLeader { group: GroupId, to: Option<NodeId> },
    /// Take a node into the cluster.
    Join {
        node: NodeId,
        host: String,
        port: u16,
        /// Tells a repeated question from a new one.
        nonce: u64,
    },
}

/// A payload of the channel Control.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlMessage {
    /// A step of forming the cluster, opaque here.
    Formation(Bytes),
    /// How the sender is.
    Status(NodeStatus),
    /// The receiver's replica is no member of the group any more.
    Gone { group: GroupId, replica: u64 },
    /// What must not wait behind entries: an encoded batch of heartbeats and votes.
    Raft(Bytes),
}

/// How a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    pub node: NodeId,
    /// Of the program.
    pub version: String,
    /// Where clients connect.
    pub port: u16,
    pub http_port: u16,
    /// Bytes free on the disk of the data directory.
    pub disk_free: u64,
    /// At most [`MAX_GROUPS`].
    pub groups: Vec<GroupStatus>,
    /// What the free bytes mean for writes.
    pub disk: DiskState,
    /// Bytes of data that the disk still takes, as of now; `u64::MAX` without a limit.
    pub disk_room: u64,
}

/// Where a group stands on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupStatus {
    pub group: GroupId,
    /// The node's replica of the group.
    pub replica: u64,
    pub role: Role,
    pub term: u64,
    /// Replica id; 0: unknown.
    pub leader: u64,
    pub commit: u64,
    pub applied: u64,
    /// The last index with a digest of the state after it, to compare with other replicas.
    pub verified: Option<(u64, u128)>,
}

/// Encodes a [`Request::Propose`] from where the batches are, copying each once. At most [`MAX_BATCHES`].
#[must_use]
pub fn encode_propose<'a>(
    group: GroupId,
    epoch: u64,
    first_seq: u64,
    ack: u64,
    batches: impl ExactSizeIterator<Item = &'a [u8]> + Clone,
) -> Vec<u8> {
    let size: usize = batches.clone().map(|batch| batch.len() + ITEM_BYTES).sum();
    let mut out = head(REQUEST_VERSION, PROPOSE, size);
    put_varint(&mut out, u64::from(group.0));
    put_varint(&mut out, epoch);
    put_varint(&mut out, first_seq);
    put_varint(&mut out, ack);
    put_varint(&mut out, batches.len() as u64);
    for batch in batches {
        put_bytes(&mut out, batch);
    }
    out
}

impl Request {
    /// As bytes. Texts are cut to [`MAX_TEXT`]; the other bounds are the caller's to keep.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Request::Propose { group, epoch, first_seq, ack, batches } => {
                encode_propose(*group, *epoch, *first_seq, *ack, batches.iter().map(Bytes::as_ref))
            }
            Request::Outcomes { group, epoch, outcomes } => {
                let size = outcomes.iter().map(|(_, outcome)| outcome.size_at_most()).sum();
                let mut out = head(REQUEST_VERSION, OUTCOMES, size);
                put_varint(&mut out, u64::from(group.0));
                put_varint(&mut out, *epoch);
                put_varint(&mut out, outcomes.len() as u64);
                for (seq, outcome) in outcomes {
                    put_varint(&mut out, *seq);
                    outcome.put(&mut out);
                }
                out
            }
            Request::ReadIndex { group, id } => {
                let mut out = head(REQUEST_VERSION, READ_INDEX, 0);
                put_varint(&mut out, u64::from(group.0));
                put_varint(&mut out, *id);
                out
            }
            Request::ReadIndexReply { group, id, index } => {
                let mut out = head(REQUEST_VERSION, READ_INDEX_REPLY, 0);
                put_varint(&mut out, u64::from(group.0));
                put_varint(&mut out, *id);
                put_option(&mut out, index.map(|index| index.0));
                out
            }
            Request::Admin { id, command } => {
                let mut out = head(REQUEST_VERSION, ADMIN, 0);
                put_varint(&mut out, *id);
                command.put(&mut out);
                out
            }
            Request::AdminReply { id, result } => {
                let size = result.as_ref().map_or_else(String::len, Vec::len);
                let mut out = head(REQUEST_VERSION, ADMIN_REPLY, size);
                put_varint(&mut out, *id);
                put_bool(&mut out, result.is_ok());
                match result {
                    Ok(bytes) => put_bytes(&mut out, bytes),
                    Err(reason) => put_text(&mut out, reason),
                }
                out
            }
        }
    }

    /// Reads what `encode` wrote. Its bytes keep `payload` in memory.
    pub fn decode(payload: &Bytes) -> Result<Request, CodecError> {
        let mut reader = Reader::new(payload);
        check_version(&mut reader, REQUEST_VERSION)?;
        match reader.u8()? {
            PROPOSE => Ok(Request::Propose {
                group: group_id(&mut reader)?,
                epoch: reader.varint()?,
                first_seq: reader.varint()?,
                ack: reader.varint()?,
                batches: {
                    let count = reader.count(MAX_BATCHES, 1)?;
                    (0..count).map(|_| slice(&mut reader, payload)).collect::<Result<_, _>>()?
                },
            }),
            OUTCOMES => Ok(Request::Outcomes {
                group: group_id(&mut reader)?,
                epoch: reader.varint()?,
                outcomes: {
                    let count = reader.count(MAX_OUTCOMES, OUTCOME_BYTES_MIN)?;
                    let outcome = |_| Ok((reader.varint()?, Outcome::read(&mut reader, payload)?));
                    (0..count).map(outcome).collect::<Result<_, _>>()?
                },
            }),
            READ_INDEX => Ok(Request::ReadIndex { group: group_id(&mut reader)?, id: reader.varint()? }),
            READ_INDEX_REPLY => Ok(Request::ReadIndexReply {
                group: group_id(&mut reader)?,
                id: reader.varint()?,
                index: option(&mut reader)?.map(LogIndex),
            }),
            ADMIN => Ok(Request::Admin { id: reader.varint()?, command: AdminCommand::read(&mut reader)? }),
            ADMIN_REPLY => Ok(Request::AdminReply {
                id: reader.varint()?,
                result: if reader.bool()? { Ok(reader.bytes()?.to_vec()) } else { Err(text(&mut reader)?) },
            }),
            _ => Err(CodecError("a request of an unknown kind")),
        }
    }
}

impl Outcome {
    fn size_at_most(&self) -> usize {
        ITEM_BYTES
            + match self {
                Outcome::Replies(replies) => replies.len(),
                Outcome::Refused(reason) => reason.len(),
                Outcome::Replayed | Outcome::Gap | Outcome::Ended | Outcome::NotLeader { .. } => 0,
            }
    }

    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Outcome::Replies(replies) => {
                out.push(REPLIES);
                put_bytes(out, replies);
            }
            Outcome::Replayed => out.push(REPLAYED),
            Outcome::Gap => out.push(GAP),
            Outcome::Ended => out.push(ENDED),
            Outcome::NotLeader { leader } => {
                out.push(NOT_LEADER);
                put_option(out, leader.map(|leader| leader.0));
            }
            Outcome::Refused(reason) => {
                out.push(REFUSED);
                put_text(out, reason);
            }
        }
    }

    fn read(reader: &mut Reader<'_>, payload: &Bytes) -> Result<Outcome, CodecError> {
        match reader.u8()? {
            REPLIES => Ok(Outcome::Replies(slice(reader, payload)?)),
            REPLAYED => Ok(Outcome::Replayed),
            GAP => Ok(Outcome::Gap),
            ENDED => Ok(Outcome::Ended),
            NOT_LEADER => Ok(Outcome::NotLeader { leader: option(reader)?.map(NodeId) }),
            REFUSED => Ok(Outcome::Refused(text(reader)?)),
            _ => Err(CodecError("an outcome of an unknown kind")),
        }
    }
}

impl AdminCommand {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            AdminCommand::TransferLeader { group, to } => {
                out.push(TRANSFER_LEADER);
                put_varint(out, u64::from(group.0));
                put_option(out, to.map(|node| node.0));
            }
            AdminCommand::Join { node, host, port, nonce } => {
                out.push(JOIN);
                put_varint(out, node.0);
                put_text(out, host);
                put_varint(out, u64::from(*port));
                put_varint(out, *nonce);
            }
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<AdminCommand, CodecError> {
        match reader.u8()? {
            TRANSFER_LEADER => {
                Ok(AdminCommand::TransferLeader { group: group_id(reader)?, to: option(reader)?.map(NodeId) })
            }
            JOIN => Ok(AdminCommand::Join {
                node: NodeId(reader.varint()?),
                host: text(reader)?,
                port: port(reader)?,
                nonce: reader.varint()?,
            }),
            _ => Err(CodecError("an admin command of an unknown kind")),
        }
    }
}

impl ControlMessage {
    /// As bytes. Texts are cut to [`MAX_TEXT`]; that the groups are few enough is the caller's to keep.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            ControlMessage::Formation(bytes) => {
                let mut out = head(CONTROL_VERSION, FORMATION, bytes.len());
                put_bytes(&mut out, bytes);
                out
            }
            ControlMessage::Status(status) => {
                let mut out = head(CONTROL_VERSION, STATUS, status.version.len() + 64 * status.groups.len());
                status.put(&mut out);
                out
            }
            ControlMessage::Raft(batch) => {
                let mut out = head(CONTROL_VERSION, RAFT, batch.len());
                put_bytes(&mut out, batch);
                out
            }
            ControlMessage::Gone { group, replica } => {
                let mut out = head(CONTROL_VERSION, GONE, 0);
                put_varint(&mut out, u64::from(group.0));
                put_varint(&mut out, *replica);
                out
            }
        }
    }

    /// Reads what `encode` wrote. Its bytes keep `payload` in memory.
    pub fn decode(payload: &Bytes) -> Result<ControlMessage, CodecError> {
        let mut reader = Reader::new(payload);
        check_version(&mut reader, CONTROL_VERSION)?;
        match reader.u8()? {
            FORMATION => Ok(ControlMessage::Formation(slice(&mut reader, payload)?)),
            RAFT => Ok(ControlMessage::Raft(slice(&mut reader, payload)?)),
            STATUS => Ok(ControlMessage::Status(NodeStatus::read(&mut reader)?)),
            GONE => Ok(ControlMessage::Gone { group: group_id(&mut reader)?, replica: reader.varint()? }),
            _ => Err(CodecError("a control message of an unknown kind")),
        }
    }
}

impl NodeStatus {
    fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.node.0);
        put_text(out, &self.version);
        put_varint(out, u64::from(self.port));
        put_varint(out, u64::from(self.http_port));
        put_varint(out, self.disk_free);
        put_varint(out, self.groups.len() as u64);
        for group in &self.groups {
            group.put(out);
        }
        out.push(self.disk.code());
        put_varint(out, self.disk_room);
    }

    fn read(reader: &mut Reader<'_>) -> Result<NodeStatus, CodecError> {
        Ok(NodeStatus {
            node: NodeId(reader.varint()?),
            version: text(reader)?,
            port: port(reader)?,
            http_port: port(reader)?,
            disk_free: reader.varint()?,
            groups: {
                let count = reader.count(MAX_GROUPS, GROUP_BYTES_MIN)?;
                (0..count).map(|_| GroupStatus::read(reader)).collect::<Result<_, _>>()?
            },
            disk: DiskState::of(reader.u8()?),
            disk_room: reader.varint()?,
        })
    }
}

impl GroupStatus {
    fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, u64::from(self.group.0));
        put_varint(out, self.replica);
        out.push(role_code(self.role));
        put_varint(out, self.term);
        put_varint(out, self.leader);
        put_varint(out, self.commit);
        put_varint(out, self.applied);
        put_bool(out, self.verified.is_some());
        if let Some((index, digest)) = self.verified {
            put_varint(out, index);
            put_u128(out, digest);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<GroupStatus, CodecError> {
        Ok(GroupStatus {
            group: group_id(reader)?,
            replica: reader.varint()?,
            role: role(reader)?,
            term: reader.varint()?,
            leader: reader.varint()?,
            commit: reader.varint()?,
            applied: reader.varint()?,
            verified: if reader.bool()? { Some((reader.varint()?, reader.u128()?)) } else { None },
        })
    }
}

fn head(version: u8, kind: u8, more_bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + more_bytes);
    out.extend_from_slice(&[version, kind]);
    out
}

fn check_version(reader: &mut Reader<'_>, expected: u8) -> Result<(), CodecError> {
    if reader.u8()? == expected { Ok(()) } else { Err(CodecError("a payload of another version")) }
}

fn group_id(reader: &mut Reader<'_>) -> Result<GroupId, CodecError> {
    reader.varint32().map(GroupId)
}

fn port(reader: &mut Reader<'_>) -> Result<u16, CodecError> {
    u16::try_from(reader.varint()?).map_err(|_| CodecError("port out of range"))
}

/// Length-prefixed bytes as a slice of `payload`, which is what `reader` reads.
fn slice(reader: &mut Reader<'_>, payload: &Bytes) -> Result<Bytes, CodecError> {
    Ok(payload.slice_ref(reader.bytes()?))
}

fn put_option(out: &mut Vec<u8>, value: Option<u64>) {
    put_bool(out, value.is_some());
    if let Some(value) = value {
        put_varint(out, value);
    }
}

fn option(reader: &mut Reader<'_>) -> Result<Option<u64>, CodecError> {
    if reader.bool()? { reader.varint().map(Some) } else { Ok(None) }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    put_bytes(out, &text.as_bytes()[..end]);
}

fn text(reader: &mut Reader<'_>) -> Result<String, CodecError> {
    let bytes = reader.bytes()?;
    if bytes.len() > MAX_TEXT {
        return Err(CodecError("a text is too long"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| CodecError("text is not UTF-8"))?;
    Ok(text.to_owned())
}

fn role_code(role: Role) -> u8 {
    match role {
        Role::Leader => 1,
        Role::Follower => 2,
        Role::Candidate => 3,
        Role::Learner => 4,
    }
}

fn role(reader: &mut Reader<'_>) -> Result<Role, CodecError> {
    match reader.u8()? {
        1 => Ok(Role::Leader),
        2 => Ok(Role::Follower),
        3 => Ok(Role::Candidate),
        4 => Ok(Role::Learner),
        _ => Err(CodecError("an unknown role")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;
    use proptest::sample::Index;
    use proptest::sample::select;

    use super::*;

    fn any_bytes() -> impl Strategy<Value = Bytes> {
        vec(any::<u8>(), 0..100).prop_map(Bytes::from)
    }

    fn any_group() -> impl Strategy<Value = GroupId> {
        any::<u32>().prop_map(GroupId)
    }

    fn any_node() -> impl Strategy<Value = NodeId> {
        any::<u64>().prop_map(NodeId)
    }

    fn any_outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            any_bytes().prop_map(Outcome::Replies),
            Just(Outcome::Replayed),
            Just(Outcome::Gap),
            Just(Outcome::Ended),
            option::of(any_node()).prop_map(|leader| Outcome::NotLeader { leader }),
            any::<String>().prop_map(Outcome::Refused),
        ]
    }

    fn any_command() -> impl Strategy<Value = AdminCommand> {
        prop_oneof![
            (any_group(), option::of(any_node()))
                .prop_map(|(group, to)| AdminCommand::TransferLeader { group, to }),
            (any_node(), any::<String>(), any::<u16>(), any::<u64>())
                .prop_map(|(node, host, port, nonce)| AdminCommand::Join { node, host, port, nonce }),
        ]
    }

    fn any_request() -> impl Strategy<Value = Request> {
        let numbers = (any::<u64>(), any::<u64>(), any::<u64>());
        let result = prop_oneof![
            vec(any::<u8>(), 0..100).prop_map(Ok::<_, String>),
            any::<String>().prop_map(Err::<Vec<u8>, _>),
        ];
        prop_oneof![
            (any_group(), numbers, vec(any_bytes(), 0..8)).prop_map(
                |(group, (epoch, first_seq, ack), batches)| {
                    Request::Propose { group, epoch, first_seq, ack, batches }
                }
            ),
            (any_group(), any::<u64>(), vec((any::<u64>(), any_outcome()), 0..8))
                .prop_map(|(group, epoch, outcomes)| Request::Outcomes { group, epoch, outcomes }),
            (any_group(), any::<u64>()).prop_map(|(group, id)| Request::ReadIndex { group, id }),
            (any_group(), any::<u64>(), option::of(any::<u64>().prop_map(LogIndex)))
                .prop_map(|(group, id, index)| Request::ReadIndexReply { group, id, index }),
            (any::<u64>(), any_command()).prop_map(|(id, command)| Request::Admin { id, command }),
            (any::<u64>(), result).prop_map(|(id, result)| Request::AdminReply { id, result }),
        ]
    }

    fn any_group_status() -> impl Strategy<Value = GroupStatus> {
        let role = select(&[Role::Leader, Role::Follower, Role::Candidate, Role::Learner][..]);
        let numbers = proptest::array::uniform5(any::<u64>());
        (any_group(), role, numbers, option::of(any::<(u64, u128)>())).prop_map(
            |(group, role, [replica, term, leader, commit, applied], verified)| GroupStatus {
                group,
                replica,
                role,
                term,
                leader,
                commit,
                applied,
                verified,
            },
        )
    }

    fn any_control_message() -> impl Strategy<Value = ControlMessage> {
        let status = (any_node(), any::<String>(), any::<(u16, u16, u64)>(), vec(any_group_status(), 0..6))
            .prop_map(|(node, version, (port, http_port, disk_free), groups)| NodeStatus {
                node,
                version,
                port,
                http_port,
                disk_free,
                disk: DiskState::of((disk_free % 3) as u8),
                disk_room: disk_free / 2,
                groups,
            });
        prop_oneof![
            any_bytes().prop_map(ControlMessage::Formation),
            status.prop_map(ControlMessage::Status),
            (any_group(), any::<u64>()).prop_map(|(group, replica)| ControlMessage::Gone { group, replica }),
        ]
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn decoded(request: &Request) -> Request {
        Request::decode(&Bytes::from(request.encode())).unwrap()
    }

    #[test]
    fn the_bytes_of_a_propose_stay_what_they_are() {
        let request = Request::Propose {
            group: GroupId(3),
            epoch: 1 << 32 | 2,
            first_seq: 300,
            ack: 299,
            batches: vec![Bytes::from_static(b"one"), Bytes::new()],
        };
        let expected = concat!(
            "0101",         // version, Propose
            "038280808010", // group, epoch
            "ac02ab02",     // first_seq, ack
            "02036f6e6500", // two batches
        );
        assert_eq!(hex(&request.encode()), expected);
        assert_eq!(decoded(&request), request);
    }

    #[test]
    fn the_bytes_of_outcomes_stay_what_they_are() {
        let request = Request::Outcomes {
            group: GroupId(0),
            epoch: 5,
            outcomes: vec![
                (1, Outcome::Replies(Bytes::from_static(b"\x01\x00"))),
                (2, Outcome::Replayed),
                (3, Outcome::Gap),
                (4, Outcome::Ended),
                (5, Outcome::NotLeader { leader: None }),
                (6, Outcome::NotLeader { leader: Some(NodeId(9)) }),
                (7, Outcome::Refused("no".to_owned())),
            ],
        };
        let expected = concat!(
            "0102000507", // version, Outcomes, group, epoch, count
            "0100020100",
            "0201",
            "0302",
            "0403",
            "050400",
            "06040109",
            "0705026e6f",
        );
        assert_eq!(hex(&request.encode()), expected);
        assert_eq!(decoded(&request), request);
    }

    #[test]
    fn roles_keep_their_numbers() {
        for (role, code) in [(Role::Leader, 1), (Role::Follower, 2), (Role::Candidate, 3), (Role::Learner, 4)]
        {
            assert_eq!(role_code(role), code);
            assert_eq!(super::role(&mut Reader::new(&[code])), Ok(role));
        }
        assert!(super::role(&mut Reader::new(&[0])).is_err());
        assert!(super::role(&mut Reader::new(&[5])).is_err());
    }

    #[test]
    fn bytes_are_slices_of_the_payload() {
        let request = Request::Propose {
            group: GroupId(0),
            epoch: 1,
            first_seq: 1,
            ack: 0,
            batches: vec![Bytes::from_static(b"batch")],
        };
        let payload = Bytes::from(request.encode());
        let Request::Propose { batches, .. } = Request::decode(&payload).unwrap() else {
            panic!("a Propose")
        };
        assert!(payload.as_ptr_range().contains(&batches[0].as_ptr()));
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        // 1 + 2 * 512 bytes: the bound falls into the last character.
        let reason = format!("a{}", "ä".repeat(512));
        let read = decoded(&Request::AdminReply { id: 1, result: Err(reason) });
        let expected = format!("a{}", "ä".repeat(511));
        assert_eq!(read, Request::AdminReply { id: 1, result: Err(expected) });
    }

    #[test]
    fn a_text_that_is_too_long_or_no_text_is_refused() {
        let admin_reply = |text: &[u8]| {
            let mut bytes = vec![REQUEST_VERSION, ADMIN_REPLY, 1, 0];
            put_bytes(&mut bytes, text);
            Request::decode(&Bytes::from(bytes))
        };
        assert!(admin_reply(&[b'a'; MAX_TEXT]).is_ok());
        assert!(admin_reply(&[b'a'; MAX_TEXT + 1]).is_err());
        assert!(admin_reply(&[0xff]).is_err());
    }

    #[test]
    fn counts_at_their_bound_pass_and_beyond_are_refused() {
        let propose =
            |count| Bytes::from(encode_propose(GroupId(0), 1, 1, 0, vec![&b""[..]; count].into_iter()));
        assert!(Request::decode(&propose(MAX_BATCHES)).is_ok());
        assert!(Request::decode(&propose(MAX_BATCHES + 1)).is_err());

        let outcomes = |count| {
            let outcomes = vec![(1, Outcome::Gap); count];
            Bytes::from(Request::Outcomes { group: GroupId(0), epoch: 1, outcomes }.encode())
        };
        assert!(Request::decode(&outcomes(MAX_OUTCOMES)).is_ok());
        assert!(Request::decode(&outcomes(MAX_OUTCOMES + 1)).is_err());

        let status = |count| {
            let group = GroupStatus {
                group: GroupId(0),
                replica: 0,
                role: Role::Learner,
                term: 0,
                leader: 0,
                commit: 0,
                applied: 0,
                verified: None,
            };
            let status = NodeStatus {
                node: NodeId(1),
                version: String::new(),
                port: 0,
                http_port: 0,
                disk_free: 0,
                disk: DiskState::Ok,
                disk_room: 0,
                groups: vec![group; count],
            };
            Bytes::from(ControlMessage::Status(status).encode())
        };
        assert!(ControlMessage::decode(&status(MAX_GROUPS)).is_ok());
        assert!(ControlMessage::decode(&status(MAX_GROUPS + 1)).is_err());
    }

    #[test]
    fn unknown_kinds_and_versions_are_refused() {
        let request = Request::ReadIndex { group: GroupId(0), id: 1 }.encode();
        let control = ControlMessage::Gone { group: GroupId(0), replica: 1 }.encode();
        for at in [0, 1] {
            for value in [0, 99] {
                let (mut request, mut control) = (request.clone(), control.clone());
                (request[at], control[at]) = (value, value);
                assert!(Request::decode(&Bytes::from(request)).is_err());
                assert!(ControlMessage::decode(&Bytes::from(control)).is_err());
            }
        }
    }

    proptest! {
        #[test]
        fn requests_come_back_as_they_were(request in any_request(), later in vec(any::<u8>(), 0..20)) {
            let mut bytes = request.encode();
            prop_assert_eq!(&Request::decode(&Bytes::from(bytes.clone())).unwrap(), &request);
            bytes.extend(later);
            prop_assert_eq!(Request::decode(&Bytes::from(bytes)).unwrap(), request);
        }

        #[test]
        fn control_messages_come_back_as_they_were(
            message in any_control_message(),
            later in vec(any::<u8>(), 0..20),
        ) {
            let mut bytes = message.encode();
            prop_assert_eq!(&ControlMessage::decode(&Bytes::from(bytes.clone())).unwrap(), &message);
            bytes.extend(later);
            prop_assert_eq!(ControlMessage::decode(&Bytes::from(bytes)).unwrap(), message);
        }

        #[test]
        fn random_and_damaged_bytes_never_panic(
            random in vec(any::<u8>(), 0..200),
            kind in 0u8..8,
            request in any_request(),
            control in any_control_message(),
            damage in vec((any::<Index>(), any::<u8>()), 1..4),
            cut: Index,
        ) {
            let headed = Bytes::from([&[REQUEST_VERSION, kind][..], &random].concat());
            for bytes in [Bytes::from(random), headed] {
                let _ = Request::decode(&bytes);
                let _ = ControlMessage::decode(&bytes);
            }
            let (mut request, mut control) = (request.encode(), control.encode());
            for bytes in [&mut request, &mut control] {
                for (at, value) in &damage {
                    let at = at.index(bytes.len());
                    bytes[at] = *value;
                }
            }
            let (request, control) = (Bytes::from(request), Bytes::from(control));
            if let Ok(read) = Request::decode(&request) {
                prop_assert_eq!(decoded(&read), read);
            }
            if let Ok(read) = ControlMessage::decode(&control) {
                prop_assert_eq!(ControlMessage::decode(&Bytes::from(read.encode())).unwrap(), read);
            }
            let _ = Request::decode(&request.slice(..cut.index(request.len())));
            let _ = ControlMessage::decode(&control.slice(..cut.index(control.len())));
        }
    }
}
