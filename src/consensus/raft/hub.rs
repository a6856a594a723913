//! What arrives from other nodes, and where it goes; what this node tells them of itself.
//!
//! ```text
//! Control   heartbeats, votes ─► the group     formation ─► formation     status ─► remembered
//! Raft      entries, acknowledgements ─► the group
//! Request   proposals, outcomes, read barriers ─► the group     admin ─► the group, and back
//! Snapshot  ─► snapshot_io
//! ```
//! Called on the thread of the internal port, which must not wait: everything becomes an event of the group's driver,
//! and the driver is swept once for all that one read brought.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Condvar;
use parking_lot::Mutex;
use tracing::warn;

use crate::clock::Clock;
use crate::consensus::formation;
use crate::consensus::formation::Formation;
use crate::consensus::mailbox::Mailbox;
use crate::consensus::raft::driver::Event;
use crate::consensus::raft::members::AdminDone;
use crate::consensus::raft::members::decode_joined;
use crate::consensus::raft::message_codec;
use crate::consensus::raft::message_codec::RaftBatch;
use crate::consensus::raft::replica::Engine;
use crate::consensus::raft::replica::LARGE_BYTES;
use crate::consensus::raft::requests::AdminCommand;
use crate::consensus::raft::requests::ControlMessage;
use crate::consensus::raft::requests::NodeStatus;
use crate::consensus::raft::requests::Request;
use crate::consensus::raft::restart;
use crate::consensus::raft::snapshot_io::SnapshotEvent;
use crate::consensus::raft::snapshot_io::SnapshotPort;
use crate::machine::entry::Batch;
use crate::peer::Channel;
use crate::peer::Handler;
use crate::peer::Hello;
use crate::peer::Network;
use crate::state::NodeAddress;
use crate::storage::LogBatch;
use crate::storage::LogStore;
use crate::types::GroupId;
use crate::types::Millis;
use crate::types::Monotonic;
use crate::types::NodeId;
use crate::types::codec::CodecError;

/// The group that carries what belongs to the node.
const GROUP: GroupId = GroupId(0);
/// Name of the record with what this node promised when the cluster formed.
pub const META_FORMATION: &[u8] = b"f";
/// How often a node that waits for its cluster says so to the others.
const FORMATION_LOOK: Duration = Duration::from_millis(200);
/// How many looks pass between two lines about it in the log.
const LOOKS_PER_LINE: u32 = 50;
/// How many looks pass between two questions for a replica id.
const LOOKS_PER_JOIN: u32 = 5;
/// The longest name of a host, in bytes: it goes into the log beside the change of members.
const HOST_MAX: usize = 255;
/// Reasons not to be taken in that are remembered, so that each is said once.
const REFUSALS_MAX: usize = 16;
/// Administrators' wishes that may wait for their answers at a time.
const ADMIN_MAX: usize = 1_000;

/// What a node learns when its cluster has formed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Formed {
    pub cluster: u128,
    /// This node's replica id.
    pub replica: u64,
    /// The first members; empty for a node that came later: it is sent everything.
    pub members: Vec<NodeId>,
}

/// What a payload is.
pub enum Arrived {
    /// For the group's driver.
    Event(Event),
    /// A piece of a snapshot, for its thread.
    Snapshot,
    Formation(formation::Announcement),
    Status(NodeStatus),
    Admin {
        id: u64,
        command: AdminCommand,
    },
    AdminReply {
        id: u64,
        result: Result<Vec<u8>, String>,
    },
    /// Of a group that is not here, or from somebody it does not belong to.
    Nothing,
}

/// Reads a payload that came from a peer.
///
/// # Errors
/// When it cannot be read.
pub fn decode(from: NodeId, channel: Channel, payload: &Bytes) -> Result<Arrived, CodecError> {
    Ok(match channel {
        Channel::Raft => raft_messages(from, message_codec::decode_batch(payload)?),
        Channel::Request => request(from, Request::decode(payload)?)?,
        Channel::Snapshot => Arrived::Snapshot,
        Channel::Control => match ControlMessage::decode(payload)? {
            ControlMessage::Raft(batch) => raft_messages(from, message_codec::decode_batch(&batch)?),
            ControlMessage::Formation(bytes) => Arrived::Formation(formation::Announcement::decode(&bytes)?),
            ControlMessage::Status(status) if status.node == from => Arrived::Status(status),
            ControlMessage::Status(_) | ControlMessage::Gone { .. } => Arrived::Nothing,
        },
    })
}

fn raft_messages(from: NodeId, batch: RaftBatch) -> Arrived {
    let own = batch.messages.into_iter().filter(|(group, _)| *group == GROUP);
    let messages: Vec<_> = own.map(|(_, message)| message).collect();
    if messages.is_empty() {
        return Arrived::Nothing;
    }
    Arrived::Event(Event::Messages { from, clock: batch.clock, messages })
}

fn request(from: NodeId, request: Request) -> Result<Arrived, CodecError> {
    let event = match request {
        Request::Propose { group: GROUP, epoch, first_seq, ack, batches } => {
            let batches: Result<Vec<Batch>, CodecError> =
                batches.iter().map(|bytes| Batch::from_bytes(bytes)).collect();
            Event::Propose { from, epoch, first_seq, ack, batches: batches? }
        }
        Request::Outcomes { group: GROUP, epoch, outcomes } => Event::Outcomes { epoch, outcomes },
        Request::ReadIndex { group: GROUP, id } => Event::ReadIndex { from, id },
        Request::ReadIndexReply { group: GROUP, id, index } => Event::ReadIndexReply { id, index },
        Request::Admin { id, command } => return Ok(Arrived::Admin { id, command }),
        Request::AdminReply { id, result } => return Ok(Arrived::AdminReply { id, result }),
        _ => return Ok(Arrived::Nothing),
    };
    Ok(Arrived::Event(event))
}

/// Says what this node's status is now.
pub type OwnStatus = Box<dyn Fn() -> NodeStatus + Send + Sync>;

struct Forming {
    formation: Formation,
    /// Names this life of the node when it asks for a replica id.
    nonce: u64,
    rejoin_through: Option<NodeId>,
    /// Why it got none: what was said in the log already.
    refusals: Vec<String>,
    formed: Option<Formed>,
}

/// The number of the last wish of an administrator, and who waits for answers of which node.
type Wishes = (u64, BTreeMap<u64, (NodeId, AdminDone)>);

/// The node's end of the internal port.
pub struct Hub {
    node: NodeId,
    network: Network,
    log: Arc<LogStore>,
    clock: Arc<dyn Clock>,
    pub snapshots: Arc<Mailbox<SnapshotEvent>>,
    engine: OnceLock<Arc<Engine>>,
    own_status: OnceLock<OwnStatus>,
    forming: Mutex<Forming>,
    has_formed: Condvar,
    statuses: Mutex<BTreeMap<NodeId, (NodeStatus, Monotonic)>>,
    admin: Mutex<Wishes>,
    refused: Mutex<(u64, Option<Monotonic>)>,
    /// The links that are up, with the election timeouts of the nodes there.
    links: Mutex<BTreeMap<NodeId, Millis>>,
}

impl Hub {
    /// The end of this network. It takes part once it is the network's handler.
    #[must_use]
    pub fn new(
        node: NodeId,
        network: Network,
        log: Arc<LogStore>,
        clock: Arc<dyn Clock>,
        formation: Formation,
    ) -> Arc<Hub> {
        Arc::new(Hub {
            node,
            network,
            log,
            clock,
            snapshots: Arc::default(),
            engine: OnceLock::new(),
            own_status: OnceLock::new(),
            forming: Mutex::new(Forming {
                formation,
                nonce: 0,
                rejoin_through: None,
                refusals: Vec::new(),
                formed: None,
            }),
            has_formed: Condvar::new(),
            statuses: Mutex::default(),
            admin: Mutex::default(),
            refused: Mutex::default(),
            links: Mutex::default(),
        })
    }

    /// The group that messages go to from now on.
    pub fn serve(&self, engine: Arc<Engine>, own_status: OwnStatus) {
        // A hub serves one replica in its life.
        let _ = self.own_status.set(own_status);
        let _ = self.engine.set(engine);
    }

    /// The network.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    // ---- formation --------------------------------------------------------------------------------

    /// Waits until the cluster has formed, or has taken this node in. `address` is where others reach this node,
    /// `nonce` a number never drawn before.
    pub fn wait_until_formed(&self, address: &NodeAddress, nonce: u64) -> Formed {
        let mut looks = 0;
        loop {
            let mut forming = self.forming.lock();
            forming.nonce = nonce;
            self.form(&mut forming, formation::Input::Tick);
            if forming.formed.is_none() {
                self.has_formed.wait_for(&mut forming, FORMATION_LOOK);
            }
            if let Some(formed) = &forming.formed {
                return formed.clone();
            }
            if looks % LOOKS_PER_LINE == LOOKS_PER_LINE - 1 {
                tracing::info!("{}", forming.formation.describe());
            }
            let through = forming.rejoin_through;
            drop(forming);
            if looks % LOOKS_PER_JOIN == 0
                && let Some(through) = through
            {
                self.ask_for_replica(through, address, nonce, looks / LOOKS_PER_JOIN);
            }
            looks += 1;
        }
    }

    /// Asks one node after the other: only the leader can say yes.
    fn ask_for_replica(&self, through: NodeId, address: &NodeAddress, nonce: u64, turn: u32) {
        let mut nodes: Vec<NodeId> =
            self.network.peers().iter().filter(|peer| peer.is_connected).map(|peer| peer.node).collect();
        nodes.retain(|node| *node != through);
        nodes.insert(0, through);
        let to = nodes[turn as usize % nodes.len()];
        let command =
            AdminCommand::Join { node: self.node, host: address.host.clone(), port: address.port, nonce };
        // The answer is taken in `on_request`: only there the formation may go on.
        self.send_admin(to, command, AdminDone::new(|_| {}));
    }

    fn form(&self, forming: &mut Forming, input: formation::Input) {
        let outputs = forming.formation.step(input);
        self.carry_out(forming, outputs);
    }

    fn carry_out(&self, forming: &mut Forming, outputs: Vec<formation::Output>) {
        for output in outputs {
            match output {
                formation::Output::Persist(record) => {
                    let mut batch = LogBatch::new();
                    batch.group_meta(GROUP, META_FORMATION, &record.encode());
                    if let Err(error) = self.log.write(batch, true) {
                        restart::stop_on("writing the log failed", &error);
                    }
                }
                formation::Output::Send { to, announcement } => {
                    let message = ControlMessage::Formation(announcement.encode().into());
                    // Said again before long.
                    let _ = self.network.send(to, Channel::Control, message.encode());
                }
                formation::Output::Formed { cluster, replica, initial } => {
                    let members = if initial { forming.formation.members() } else { Vec::new() };
                    tracing::info!("the cluster {cluster:032x} is formed; this node's replica is {replica}");
                    self.network.set_hello(cluster, vec![(GROUP, replica)]);
                    forming.formed = Some(Formed { cluster, replica, members });
                    self.has_formed.notify_all();
                }
                formation::Output::Rejoin { cluster, through } => {
                    warn!(
                        "the cluster {cluster:032x} exists already and does not know this data directory: this node \
                         asks to be taken in under a new replica id"
                    );
                    forming.rejoin_through = Some(through);
                }
                formation::Output::Warn(text) => warn!("{text}"),
            }
        }
    }

    fn joined(&self, answer: &Result<Vec<u8>, String>) {
        let mut forming = self.forming.lock();
        if forming.formed.is_some() || forming.rejoin_through.is_none() {
            return;
        }
        let nonce = forming.nonce;
        match answer.as_deref().map(|answer| decode_joined(answer, nonce)) {
            Ok(Ok(Some(replica))) => {
                let outputs = forming.formation.joined_as(replica);
                self.carry_out(&mut forming, outputs);
            }
            Ok(Ok(None)) => tracing::info!("an answer to an earlier life of this node came late"),
            Ok(Err(error)) => warn!("the answer to the request for a replica id cannot be read: {error}"),
            Err(reason) if forming.refusals.contains(reason) => {}
            Err(reason) => {
                warn!("no replica id yet: {reason}");
                forming.refusals.truncate(REFUSALS_MAX - 1);
                forming.refusals.insert(0, reason.clone());
            }
        }
    }

    // ---- administration ---------------------------------------------------------------------------

    /// Asks another node's group for something.
    pub fn send_admin(&self, to: NodeId, command: AdminCommand, done: AdminDone) {
        let mut admin = self.admin.lock();
        let oldest = if admin.1.len() >= ADMIN_MAX { admin.1.pop_first() } else { None };
        admin.0 += 1;
        let id = admin.0;
        let request = Request::Admin { id, command };
        let unsent = if self.network.send(to, Channel::Request, request.encode()).is_ok() {
            admin.1.insert(id, (to, done));
            None
        } else {
            Some(done)
        };
        drop(admin);
        drop(oldest);
        if let Some(done) = unsent {
            done.tell(Err(format!("node {to} is not reachable")));
        }
    }

    /// Tells every other node where this one stands.
    pub fn broadcast_status(&self) {
        let Some(own_status) = self.own_status.get() else { return };
        let message = ControlMessage::Status(own_status()).encode();
        for peer in self.network.peers() {
            if peer.is_connected {
                // The next one follows soon.
                let _ = self.network.send(peer.node, Channel::Control, message.clone());
            }
        }
    }

    /// This node's status, and what the others said last and when.
    #[must_use]
    pub fn statuses(&self) -> Vec<(NodeStatus, Option<Monotonic>)> {
        let own = self.own_status.get().map(|own_status| (own_status(), None));
        let others = self.statuses.lock();
        let others = others.values().map(|(status, heard)| (status.clone(), Some(*heard)));
        own.into_iter().chain(others).collect()
    }

    // ---- what arrives -----------------------------------------------------------------------------

    /// Tells the group of the links that were made before it stood.
    pub fn post_links(&self) {
        for (node, election_timeout) in self.links.lock().clone() {
            self.post(Event::PeerUp { node, election_timeout });
        }
    }

    fn post(&self, event: Event) {
        if let Some(engine) = self.engine.get() {
            engine.post(event);
        }
    }

    fn post_large(&self, event: Event) {
        if let Some(engine) = self.engine.get() {
            engine.post_large(event);
        }
    }

    fn sweep(&self) {
        if let Some(engine) = self.engine.get() {
            engine.sweep_events();
        }
    }

    fn take(&self, from: NodeId, channel: Channel, payload: &Bytes) -> Result<(), CodecError> {
        match decode(from, channel, payload)? {
            Arrived::Event(event) if payload.len() > LARGE_BYTES => self.post_large(event),
            Arrived::Event(event) => self.post(event),
            Arrived::Snapshot => {
                self.snapshots.send(SnapshotEvent::Message { from, payload: payload.clone() });
            }
            Arrived::Formation(announcement) => {
                if announcement.standing.is_formed() {
                    self.network.note_member(from);
                }
                self.form(&mut self.forming.lock(), formation::Input::Message { from, announcement });
            }
            Arrived::Status(status) => {
                self.statuses.lock().insert(from, (status, self.clock.monotonic()));
            }
            Arrived::Admin { id, command } => self.on_admin(from, id, command),
            Arrived::AdminReply { id, result } => {
                let done = {
                    let waiting = &mut self.admin.lock().1;
                    let is_asked = waiting.get(&id).is_some_and(|(asked, _)| *asked == from);
                    if is_asked { waiting.remove(&id) } else { None }
                };
                if let Some((_, done)) = done {
                    self.joined(&result);
                    done.tell(result);
                }
            }
            Arrived::Nothing => {}
        }
        Ok(())
    }

    fn on_admin(&self, from: NodeId, id: u64, command: AdminCommand) {
        let network = self.network.clone();
        let done = AdminDone::new(move |result| {
            // Who asked asks again when nothing comes.
            let _ = network.send(from, Channel::Request, Request::AdminReply { id, result }.encode());
        });
        match command {
            AdminCommand::TransferLeader { group: GROUP, to } => self.post(Event::Transfer { to, done }),
            AdminCommand::Join { node, host, port, nonce } if node == from && host.len() <= HOST_MAX => {
                self.post(Event::Join { node, nonce, address: NodeAddress { node, host, port }, done });
            }
            _ => done.tell(Err("not possible here".to_owned())),
        }
    }

    /// A payload that cannot be read is passed over; once a minute a line says so.
    fn refuse(&self, from: NodeId, channel: Channel, error: &CodecError) {
        let now = self.clock.monotonic();
        let mut refused = self.refused.lock();
        refused.0 += 1;
        if refused.1.is_none_or(|last| now.since(last).0 >= 60_000) {
            refused.1 = Some(now);
            warn!("node {from} sent what cannot be read on {channel:?}: {error} ({} so far)", refused.0);
        }
    }
}

impl Handler for Hub {
    fn on_message(&self, from: NodeId, channel: Channel, payload: Bytes) {
        if let Err(error) = self.take(from, channel, &payload) {
            self.refuse(from, channel, &error);
        }
    }

    fn on_idle(&self, _from: NodeId) {
        self.sweep();
    }

    fn on_up(&self, peer: &Hello) {
        self.form(&mut self.forming.lock(), formation::Input::PeerUp(peer.node));
        self.links.lock().insert(peer.node, peer.election_timeout);
        self.post(Event::PeerUp { node: peer.node, election_timeout: peer.election_timeout });
        self.sweep();
    }

    fn on_old_directory(&self, peer: NodeId) {
        self.post(Event::OldDirectory(peer));
        self.sweep();
    }

    fn on_down(&self, peer: NodeId) {
        self.form(&mut self.forming.lock(), formation::Input::PeerDown(peer));
        self.links.lock().remove(&peer);
        // Whatever it was asked, its answer will not come.
        let unanswered: Vec<_> = self.admin.lock().1.extract_if(.., |_, (asked, _)| *asked == peer).collect();
        for (_, (_, done)) in unanswered {
            done.tell(Err(format!("the link to node {peer} was lost")));
        }
        self.post(Event::PeerDown(peer));
        self.sweep();
    }
}

/// The snapshot thread's way out.
pub struct SnapshotDoor(pub Arc<Hub>);

impl SnapshotPort for SnapshotDoor {
    fn send(&self, to: NodeId, payload: Vec<u8>) -> bool {
        self.0.network.send(to, Channel::Snapshot, payload).is_ok()
    }

    fn moved(&self, _group: GroupId, to_replica: u64) {
        self.0.post(Event::SnapshotMoved { to: to_replica });
    }

    fn sent(&self, _group: GroupId, to_replica: u64, ok: bool) {
        self.0.post(Event::SnapshotSent { to: to_replica, ok });
        self.0.sweep();
    }

    fn received(&self, _group: GroupId, from: NodeId, message: Vec<u8>, incoming: String) {
        match message_codec::decode_message(&message) {
            Ok(message) => {
                self.0.post(Event::SnapshotReceived { message: Box::new(message), incoming });
                self.0.sweep();
            }
            Err(error) => {
                self.0.refuse(from, Channel::Snapshot, &error);
                self.0.snapshots.send(SnapshotEvent::Release { incoming_dir: incoming });
            }
        }
    }
}
