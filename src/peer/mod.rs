//! The internal port: messages between the nodes of a cluster, in order, over one TCP connection per pair.
//!
//! ```text
//! send ──► queues, one a channel ──► frames by priority ──► socket ──► frames ──► whole payloads ──► Handler
//!          wire::Outbox             (written by the sender itself)    wire::Decoder   on the peer-io thread
//! ```
//! `wire` and `handshake` are pure. `link` is one connection; `network` dials, listens, and knows which link
//! is a peer's. The node with the lower id dials. A message is delivered at most once, whole, and in order
//! among those of its channel; it is lost when its link ends. Whoever needs more asks again.
//!
//! The port is neither encrypted nor authenticated yet, hence protected mode: loopback only, until it is
//! switched off.

pub mod handshake;
mod link;
mod network;
pub mod wire;

use bytes::Bytes;
use thiserror::Error;

pub use network::Network;

use crate::types::GroupId;
use crate::types::Millis;
use crate::types::Monotonic;
use crate::types::NodeId;

/// What a message is for, highest priority first: a frame of a higher channel goes before queued chunks of a
/// lower one. There is no order between channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Channel {
    /// Formation, status, keepalive. Payloads up to 64 KiB less one byte, 1 MiB queued.
    Control = 0,
    /// Raft messages. Payloads up to 1 GiB, 64 MiB queued.
    Raft = 1,
    /// Requests between nodes and their replies. Payloads up to 1 GiB, 64 MiB queued.
    Request = 2,
    /// Pieces of snapshots. Payloads up to 1 MiB, 8 MiB queued.
    Snapshot = 3,
}

impl Channel {
    /// Every channel, highest priority first.
    pub const ALL: [Channel; 4] = [Channel::Control, Channel::Raft, Channel::Request, Channel::Snapshot];

    /// Bytes that one payload may have on the wire.
    #[must_use]
    pub const fn payload_max(self) -> usize {
        match self {
            Channel::Control => 64 << 10,
            Channel::Raft | Channel::Request => 1 << 30,
            Channel::Snapshot => 1 << 20,
        }
    }

    /// Bytes that may be queued at a link. One payload of any size is taken while nothing is queued.
    #[must_use]
    pub const fn queue_max(self) -> usize {
        match self {
            Channel::Control => 1 << 20,
            Channel::Raft | Channel::Request => 64 << 20,
            Channel::Snapshot => 8 << 20,
        }
    }
}

/// Where a peer's internal port is. The host name is resolved anew with every dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    pub node: NodeId,
    pub host: String,
    pub port: u16,
}

/// What a peer said of itself when the link was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The cluster's id; 0 while it is not formed.
    pub cluster: u128,
    pub node: NodeId,
    /// How often the node has started, with its newest replica id above: never goes back.
    pub boot: u64,
    /// The replica ids it has, by group.
    pub replicas: Vec<(GroupId, u64)>,
    /// The program's version, for people.
    pub version: String,
    /// How long it waits for a leader before it stands for election: leases must be shorter everywhere.
    pub election_timeout: Millis,
    /// The wire version that both sides chose.
    pub wire: u8,
}

/// Takes what arrives. All calls come from the peer-io thread, one after the other, and must not block:
/// nothing is received from any peer meanwhile.
pub trait Handler: Send + Sync {
    /// A payload arrived whole. It may share memory with what arrived beside it (64 KiB): copy what is kept
    /// long.
    fn on_message(&self, from: NodeId, channel: Channel, payload: Bytes);

    /// All messages of one read were handed over: the moment to act on them together.
    fn on_idle(&self, _from: NodeId) {}

    /// A link to the peer is there; messages may be sent and will arrive. Comes before every message of the
    /// link.
    fn on_up(&self, peer: &Hello);

    /// A peer refuses this node, for it has seen a later start of it: the data directory is an older copy. Said with
    /// every attempt to make a link.
    fn on_old_directory(&self, _peer: NodeId) {}

    /// The link is gone, with whatever was queued. Comes after its last message and before the next `on_up`.
    /// Not called when the network itself is stopped.
    fn on_down(&self, peer: NodeId);
}

/// A way to the other nodes: the [`Network`], or a simulated one.
pub trait Links: Send + Sync {
    /// Queues a payload for a peer. It arrives whole and in order among those of its channel, or not at all.
    ///
    /// # Errors
    /// When there is no link, or its queue is full; nothing was queued then.
    fn send(&self, to: NodeId, channel: Channel, payload: Vec<u8>) -> Result<(), SendError>;

    /// True while there is a link to this node.
    fn is_connected(&self, node: NodeId) -> bool;
}

impl Links for Network {
    fn send(&self, to: NodeId, channel: Channel, payload: Vec<u8>) -> Result<(), SendError> {
        Network::send(self, to, channel, payload)
    }

    fn is_connected(&self, node: NodeId) -> bool {
        Network::is_connected(self, node)
    }
}

/// Why a message was not sent. In both cases nothing was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SendError {
    /// There is no link to that node now, or it is no peer.
    #[error("not connected")]
    NotConnected,
    /// The channel's queue is full: the peer does not keep up. Also a payload beyond the channel's bound,
    /// which never fits; that is logged as an error.
    #[error("the queue to this peer is full")]
    Full,
}

/// What a network needs to start.
#[derive(Clone, Debug)]
pub struct NetworkOptions {
    /// This node.
    pub node: NodeId,
    /// How often this node has started, counted from 1 and kept on disk.
    pub boot: u64,
    /// The other nodes. This node itself may be among them and is passed over.
    pub peers: Vec<PeerAddress>,
    /// A link on which nothing was sent for this long carries a ping.
    pub heartbeat_interval: Millis,
    /// A link on which nothing was heard for twice this, and for a second at least, is closed.
    pub election_timeout: Millis,
    /// Refuse and do not dial addresses other than loopback.
    pub protected: bool,
    /// The cluster's id as links say it first; 0 while it is not formed.
    pub cluster: u128,
    /// The replicas of this node as links say them first.
    pub replicas: Vec<(GroupId, u64)>,
    /// The program's version, for people; up to 64 bytes.
    pub version: String,
}

/// A peer and the figures of its links. The counters run on from link to link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    pub node: NodeId,
    pub is_connected: bool,
    /// The last measured round trip in microseconds; `None` before the first.
    pub rtt_us: Option<u64>,
    /// When any byte of it last arrived; `None` if never.
    pub last_heard: Option<Monotonic>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Links made after the first.
    pub reconnects: u64,
    /// Bytes that wait to be written.
    pub queued_bytes: u64,
    /// Messages refused because a queue was full.
    pub dropped: u64,
    /// Links closed because of what arrived: checksums, lengths, flags.
    pub errors: u64,
}
