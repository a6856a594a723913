//! How a cluster forms: by itself, once, from the `cluster-node` lines of its nodes.
//!
//! A pure state machine. It is told who is reachable and what they say, and answers what to store, to send and
//! to start. Nobody runs Raft before it says [`Output::Formed`].
//!
//! ```text
//!          the lowest listed node, when it heard all others and none is Formed, draws X and joins it;
//!          the others join what it invites them to, if the invitation names their disks
//!  Fresh ───────────────────────────────────► Joined(X) ──┐ invited again, in a later round: Joined(Y)
//!    │                                         │      ▲ ──┘
//!    │                                         │ every member said Joined(X), or one says Formed(X)
//!    │ one says Formed(X)                      ▼
//!    └──► asks for a replica id ──joined_as─► Formed(X): for ever
//! ```
//!
//! Why it is safe:
//!
//! - A *disk* is a random number that a node draws when it starts without a record, and stores with its first
//!   promise. An invitation names the members with their disks, so a node that lost its data is not taken for
//!   the one that voted: it gets a new replica id.
//! - Joined(X) is a promise, stored before it is said. Rounds only grow, so no disk returns to an earlier one.
//! - X forms only when every disk it names promised. A disk that is Formed(X) promises nothing any more, so
//!   nothing else that names it can form.
//! - Joined(Y) is left for an earlier X only when a disk that Y names is Formed(X): then Y never forms. Nobody
//!   votes in Joined, so nothing is taken back.
//!
//! One case looks odd and is harmless: X forms at fewer than a majority of its members, and all of these lose
//! their data before they told anybody. The others form Y, and X decided nothing: it never had a majority.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::types::NodeId;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_varint;

/// Members that a cluster may begin with, and `cluster-node` lines that a node may have.
pub const MEMBERS_MAX: usize = 9;
/// The highest `node-id`.
const NODE_ID_MAX: u64 = 65_535;
/// No cluster takes so many rounds; a number above it is refused, so that a later round can always follow.
const ROUND_MAX: u64 = 1 << 48;
/// The format of records and announcements.
const VERSION: u8 = 1;
/// Any odd number: rounds of one process then draw different clusters.
const CLUSTER_STEP: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;

/// A first member of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Its `node-id`, which is also its replica id.
    pub node: NodeId,
    /// The data directory that it promised with.
    pub disk: u128,
}

/// A cluster that is proposed, or was formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// From 1; a later invitation has a higher one.
    pub round: u64,
    /// The cluster's id; never 0.
    pub cluster: u128,
    /// The first members by ascending node id, from 1 to [`MEMBERS_MAX`].
    pub members: Vec<Member>,
}

/// How far a node has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Promised nothing.
    Fresh,
    /// Promised to be a member, and may still promise the same to a later invitation.
    Joined(Invitation),
    /// Belongs to this cluster for ever.
    Formed(Invitation),
}

/// What a node stores of its formation (`f` in the boot records). Without one it is Fresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// This data directory's number, which it keeps.
    pub disk: u128,
    /// The replica id: the node id of a first member, a later number of a node that rejoined.
    pub replica: u64,
    /// Joined or Formed; [`Standing::Fresh`] is not stored.
    pub standing: Standing,
}

/// What a node says of itself to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The ids of its `cluster-node` lines, ascending, with its own.
    pub listed: Vec<NodeId>,
    /// Its data directory's number.
    pub disk: u128,
    /// How far it has come.
    pub standing: Standing,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A link to this node was made. What it says comes after this.
    PeerUp(NodeId),
    /// The link is gone, and nothing of it comes any more.
    PeerDown(NodeId),
    /// A node said this on the link that is up, the latest last.
    Message {
        /// Who, by its link's handshake.
        from: NodeId,
        /// What.
        announcement: Announcement,
    },
    /// Some time passed: what was said is said again, for messages may be lost. Also the first input.
    Tick,
}

/// What to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Store and sync this before anything that follows.
    Persist(Record),
    /// Say this. It may be lost.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        announcement: Announcement,
    },
    /// Run Raft now. Given once in the life of a process.
    Formed {
        /// The cluster's id.
        cluster: u128,
        /// This node's replica id.
        replica: u64,
        /// True for a first member: the first membership is that of [`Formation::members`]. False for a node
        /// that rejoined: it begins empty and is sent everything.
        initial: bool,
    },
    /// Ask this node for a replica id in its cluster, then call [`Formation::joined_as`]. Given again, with
    /// another node, when that one is gone.
    Rejoin {
        /// The cluster's id.
        cluster: u128,
        /// A member of it.
        through: NodeId,
    },
    /// Tell the operator. The same text is not given twice in a row for the same node.
    Warn(String),
}

/// The formation of this node. It stays useful when the cluster is formed: it answers nodes that are not.
#[derive(Debug)]
pub struct Formation {
    own: NodeId,
    listed: Vec<NodeId>,
    record: Record,
    random: u128,
    /// The nodes whose links are up, and the latest that each said on this link.
    peers: BTreeMap<NodeId, Option<Announcement>>,
    rejoining: Option<(Invitation, NodeId)>,
    /// It belonged to a cluster once, and gave up what it had.
    only_rejoins: bool,
    is_formed_told: bool,
    warned: BTreeMap<NodeId, String>,
}

enum Decision {
    Stay,
    Become(Standing),
    Rejoin(Invitation, NodeId),
}

impl Invitation {
    /// True when `node` is a member with this very disk.
    #[must_use]
    pub fn names(&self, node: NodeId, disk: u128) -> bool {
        self.members.contains(&Member { node, disk })
    }

    fn is_for(&self, listed: &[NodeId]) -> bool {
        self.members.iter().map(|member| member.node).eq(listed.iter().copied())
    }
}

impl Standing {
    /// The cluster that was joined or formed.
    #[must_use]
    pub fn invitation(&self) -> Option<&Invitation> {
        match self {
            Standing::Fresh => None,
            Standing::Joined(invitation) | Standing::Formed(invitation) => Some(invitation),
        }
    }

    fn formed(&self) -> Option<&Invitation> {
        if let Standing::Formed(invitation) = self { Some(invitation) } else { None }
    }

    /// True once it belongs to a cluster for ever.
    #[must_use]
    pub fn is_formed(&self) -> bool {
        self.formed().is_some()
    }

    fn round(&self) -> u64 {
        self.invitation().map_or(0, |invitation| invitation.round)
    }
}

impl Formation {
    /// Begins. `record` is what was stored last, `listed` the ids of the `cluster-node` lines (this node's own
    /// is added when it lacks), `random` a number that no process drew before. Nothing happens before the first
    /// [`Input::Tick`].
    #[must_use]
    pub fn new(record: Option<Record>, own: NodeId, listed: &[NodeId], random: u128) -> Formation {
        let mut listed: Vec<NodeId> = listed.iter().copied().chain([own]).collect();
        listed.sort_unstable();
        listed.dedup();
        let fresh = Record { disk: random, replica: own.0, standing: Standing::Fresh };
        Formation {
            own,
            listed,
            record: record.unwrap_or(fresh),
            random,
            peers: BTreeMap::new(),
            rejoining: None,
            only_rejoins: false,
            is_formed_told: false,
            warned: BTreeMap::new(),
        }
    }

    /// For a node that gave up data of a cluster: it promises nothing and begins nothing, and waits until a node that is
    /// Formed can be asked. Otherwise nodes that gave up their data together would form an empty cluster.
    #[must_use]
    pub fn only_to_rejoin(self) -> Formation {
        Formation { only_rejoins: true, ..self }
    }

    /// Takes one input. The outputs are to be carried out in their order; a crash between any two is fine.
    #[must_use]
    pub fn step(&mut self, input: Input) -> Vec<Output> {
        let mut outputs = Vec::new();
        let was_formed = self.record.standing.is_formed();
        match input {
            Input::PeerUp(peer) => {
                self.peers.insert(peer, None);
                outputs.push(self.announce_to(peer));
            }
            Input::PeerDown(peer) => {
                self.peers.remove(&peer);
            }
            Input::Message { from, announcement } => {
                // Who is not Formed goes on saying so until it hears this.
                if was_formed && !announcement.standing.is_formed() {
                    outputs.push(self.announce_to(from));
                }
                self.peers.insert(from, Some(announcement));
            }
            Input::Tick if was_formed => {}
            Input::Tick => outputs.extend(self.announce_to_all()),
        }
        self.settle(&mut outputs);
        outputs
    }

    /// Ends a rejoin: the cluster gave this node the replica id `replica`. Nothing happens unless
    /// [`Output::Rejoin`] was given and the node is not Formed.
    #[must_use]
    pub fn joined_as(&mut self, replica: u64) -> Vec<Output> {
        let mut outputs = Vec::new();
        if let Some((invitation, _)) = self.rejoining.take() {
            self.record.replica = replica;
            self.become_standing(Standing::Formed(invitation), &mut outputs);
            self.settle(&mut outputs);
            outputs.extend(self.announce_to_all());
        }
        outputs
    }

    /// The cluster's id, once this node is Formed.
    #[must_use]
    pub fn cluster(&self) -> Option<u128> {
        self.record.standing.formed().map(|formed| formed.cluster)
    }

    /// The first members of the cluster, once this node is Formed; else none.
    #[must_use]
    pub fn members(&self) -> Vec<NodeId> {
        let formed = self.record.standing.formed();
        formed.map_or_else(Vec::new, |formed| formed.members.iter().map(|member| member.node).collect())
    }

    /// Where the formation stands, in a few words, for logs and refusals.
    #[must_use]
    pub fn describe(&self) -> String {
        if let Some(cluster) = self.cluster() {
            return format!("the cluster {cluster:032x} is formed");
        }
        if let Some((invitation, through)) = &self.rejoining {
            return format!("asking node {through} to be taken into the cluster {:032x}", invitation.cluster);
        }
        if self.only_rejoins {
            return "waiting for a node that still belongs to the cluster, to be taken in again. If none is left, start \
                    the nodes on a backup; if there never was a cluster, remove REJOIN from this node's data directory"
                .to_owned();
        }
        let silent: Vec<NodeId> = self.others().filter(|node| self.said(*node).is_none()).collect();
        if silent.is_empty() {
            return "the cluster is forming".to_owned();
        }
        let nodes = if silent.len() == 1 { "node" } else { "nodes" };
        format!("the cluster is not formed yet: waiting for {nodes} {}", list_text(&silent))
    }

    fn others(&self) -> impl Iterator<Item = NodeId> {
        self.listed.iter().copied().filter(|node| *node != self.own)
    }

    fn said(&self, node: NodeId) -> Option<&Announcement> {
        self.peers.get(&node).and_then(Option::as_ref)
    }

    /// Goes as far as what is known allows.
    fn settle(&mut self, outputs: &mut Vec<Output>) {
        let mut has_changed = false;
        loop {
            match self.decide() {
                Decision::Stay => break,
                Decision::Become(standing) => {
                    self.become_standing(standing, outputs);
                    has_changed = true;
                }
                Decision::Rejoin(invitation, through) => {
                    outputs.push(Output::Rejoin { cluster: invitation.cluster, through });
                    self.rejoining = Some((invitation, through));
                    break;
                }
            }
        }
        if let (Some(formed), false) = (self.record.standing.formed(), self.is_formed_told) {
            let initial = formed.names(self.own, self.record.disk);
            let (cluster, replica) = (formed.cluster, self.record.replica);
            outputs.push(Output::Formed { cluster, replica, initial });
            self.is_formed_told = true;
        }
        if has_changed {
            outputs.extend(self.announce_to_all());
        }
        self.warn(outputs);
    }

    fn become_standing(&mut self, standing: Standing, outputs: &mut Vec<Output>) {
        self.record.standing = standing;
        outputs.push(Output::Persist(self.record.clone()));
    }

    fn decide(&self) -> Decision {
        if self.record.standing.is_formed() || self.formed_peers_disagree() {
            return Decision::Stay;
        }
        if let Some((invitation, through)) = &self.rejoining {
            return self.rejoin_through_another(invitation, *through);
        }
        let heard = self.formed_peers().find_map(|(node, disk, formed)| self.on_formed(node, disk, formed));
        if let Some(decision) = heard {
            return decision;
        }
        if self.only_rejoins {
            return Decision::Stay;
        }
        let next = self.form().or_else(|| self.join()).or_else(|| self.draw());
        next.map_or(Decision::Stay, Decision::Become)
    }

    /// Nodes that say they are Formed, with their disks and clusters.
    fn formed_peers(&self) -> impl Iterator<Item = (NodeId, u128, &Invitation)> {
        self.peers.iter().filter_map(|(node, said)| {
            let said = said.as_ref()?;
            Some((*node, said.disk, said.standing.formed()?))
        })
    }

    fn formed_peers_disagree(&self) -> bool {
        let first = self.formed_peers().next().map(|(_, _, formed)| formed.cluster);
        self.formed_peers().any(|(_, _, formed)| Some(formed.cluster) != first)
    }

    fn rejoin_through_another(&self, invitation: &Invitation, through: NodeId) -> Decision {
        let members: Vec<(NodeId, &Invitation)> = self
            .formed_peers()
            .filter(|(_, _, formed)| formed.cluster == invitation.cluster)
            .map(|(node, _, formed)| (node, formed))
            .collect();
        // While nobody else can be asked, the last one stays the one to ask.
        match members.first() {
            Some((node, formed)) if members.iter().all(|(node, _)| *node != through) => {
                Decision::Rejoin((*formed).clone(), *node)
            }
            _ => Decision::Stay,
        }
    }

    /// What follows from `node`, with the data directory `disk`, being Formed.
    fn on_formed(&self, node: NodeId, disk: u128, formed: &Invitation) -> Option<Decision> {
        let rejoin = || Some(Decision::Rejoin(formed.clone(), node));
        match &self.record.standing {
            Standing::Joined(joined) if joined.cluster == formed.cluster => {
                Some(Decision::Become(Standing::Formed(joined.clone())))
            }
            // What this node joined can never form without that disk.
            Standing::Joined(joined) if joined.names(node, disk) => {
                // A promise that this disk does not remember was lost with what came after it.
                let is_first_member =
                    formed.names(self.own, self.record.disk) && formed.round <= joined.round;
                if !is_first_member {
                    return rejoin();
                }
                Some(Decision::Become(Standing::Formed(formed.clone())))
            }
            Standing::Joined(_) | Standing::Formed(_) => None,
            Standing::Fresh => rejoin(),
        }
    }

    /// Every member promised.
    fn form(&self) -> Option<Standing> {
        let Standing::Joined(joined) = &self.record.standing else { return None };
        let has_promised = |member: &Member| {
            // It promises only what names its disk.
            let theirs = self.said(member.node).and_then(|said| said.standing.invitation());
            theirs.is_some_and(|theirs| theirs.cluster == joined.cluster)
        };
        let have_all = joined.members.iter().all(|member| member.node == self.own || has_promised(member));
        have_all.then(|| Standing::Formed(joined.clone()))
    }

    /// The lowest node invites to a later round.
    fn join(&self) -> Option<Standing> {
        let lowest = *self.listed.first()?;
        let said = self.said(lowest).filter(|said| said.listed == self.listed)?;
        let Standing::Joined(invitation) = &said.standing else { return None };
        let is_meant = invitation.names(self.own, self.record.disk)
            && invitation.names(lowest, said.disk)
            && invitation.is_for(&self.listed)
            && self.has_kept_its_list();
        let is_later = invitation.round > self.record.standing.round();
        (is_meant && is_later).then(|| Standing::Joined(invitation.clone()))
    }

    /// This is the lowest node, it has heard all others, and has no invitation that they can all join.
    fn draw(&self) -> Option<Standing> {
        if self.listed.first() != Some(&self.own) || !self.has_kept_its_list() {
            return None;
        }
        let others: Option<Vec<(NodeId, &Announcement)>> =
            self.others().map(|node| Some((node, self.said(node)?))).collect();
        let others = others?;
        if others.iter().any(|(_, said)| said.standing.is_formed() || said.listed != self.listed) {
            return None;
        }
        if let Standing::Joined(joined) = &self.record.standing {
            let cannot_join = |(node, said): &(NodeId, &Announcement)| {
                let theirs = said.standing.invitation();
                let is_elsewhere = theirs
                    .is_some_and(|theirs| theirs.cluster != joined.cluster && theirs.round >= joined.round);
                is_elsewhere || !joined.names(*node, said.disk)
            };
            if !others.iter().any(cannot_join) {
                return None;
            }
        }
        let rounds = others.iter().map(|(_, said)| said.standing.round());
        let round = rounds.fold(self.record.standing.round(), u64::max) + 1;
        let own = Member { node: self.own, disk: self.record.disk };
        let others = others.into_iter().map(|(node, said)| Member { node, disk: said.disk });
        let members = [own].into_iter().chain(others).collect();
        let cluster = self.random.wrapping_add(CLUSTER_STEP.wrapping_mul(u128::from(round))).max(1);
        Some(Standing::Joined(Invitation { round, cluster, members }))
    }

    /// A promise was given to the nodes of these very lines, or none was given.
    fn has_kept_its_list(&self) -> bool {
        self.record.standing.invitation().is_none_or(|invitation| invitation.is_for(&self.listed))
    }

    fn announcement(&self) -> Announcement {
        let standing = self.record.standing.clone();
        Announcement { listed: self.listed.clone(), disk: self.record.disk, standing }
    }

    fn announce_to(&self, to: NodeId) -> Output {
        Output::Send { to, announcement: self.announcement() }
    }

    fn announce_to_all(&self) -> Vec<Output> {
        self.peers.keys().map(|peer| self.announce_to(*peer)).collect()
    }

    fn warn(&mut self, outputs: &mut Vec<Output>) {
        let heard = self.peers.iter().filter(|(_, said)| said.is_some()).map(|(node, _)| *node);
        let nodes: Vec<NodeId> = [self.own].into_iter().chain(heard).collect();
        for node in nodes {
            match self.warning_about(node) {
                Some(text) if self.warned.get(&node) != Some(&text) => {
                    outputs.push(Output::Warn(text.clone()));
                    self.warned.insert(node, text);
                }
                Some(_) => {}
                None => {
                    self.warned.remove(&node);
                }
            }
        }
    }

    /// What keeps this node and `node` apart, if something does and a person has to mend it.
    fn warning_about(&self, node: NodeId) -> Option<String> {
        if node == self.own {
            let joined = self.record.standing.invitation().filter(|_| self.cluster().is_none())?;
            let before: Vec<NodeId> = joined.members.iter().map(|member| member.node).collect();
            return (before != self.listed).then(|| {
                format!(
                    "the cluster-node lines of this node list the nodes {}, and listed {} when it began to form \
                     a cluster: take these lines again, or remove its data directory, which holds nothing yet",
                    list_text(&self.listed),
                    list_text(&before)
                )
            });
        }
        let said = self.said(node)?;
        if let Some(theirs) = said.standing.formed() {
            let ours = self.cluster().or(self.rejoining.as_ref().map(|(ours, _)| ours.cluster));
            let others = self.formed_peers().map(|(_, _, formed)| formed.cluster);
            let ours = ours.into_iter().chain(others).find(|cluster| *cluster != theirs.cluster)?;
            return Some(format!(
                "node {node} belongs to another cluster: {:032x}, not {ours:032x}. One of the two data directories \
                 was made for another cluster: check its dir and its cluster-node lines",
                theirs.cluster
            ));
        }
        let is_of_one_mind = self.cluster().is_some() || said.listed == self.listed;
        (!is_of_one_mind).then(|| {
            format!(
                "node {node} lists the nodes {}, this node lists {}: the cluster does not form before the \
                 cluster-node lines of all nodes name the same",
                list_text(&said.listed),
                list_text(&self.listed)
            )
        })
    }
}

/// `1, 2, 3`
fn list_text(nodes: &[NodeId]) -> String {
    let mut text = String::new();
    for node in nodes {
        let separator = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{separator}{node}");
    }
    text
}

// [version 1][standing u8][disk 16][replica varint]{[round varint][cluster 16][count][node varint, disk 16]*}
// and, for an announcement, [count][node varint]* in place of the replica.

const FRESH: u8 = 0;
const JOINED: u8 = 1;
const FORMED: u8 = 2;

impl Record {
    /// As it is stored.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = head(&self.standing, self.disk);
        put_varint(&mut out, self.replica);
        put_invitation(&mut out, &self.standing);
        out
    }

    /// Reads what [`Record::encode`] wrote.
    ///
    /// # Errors
    /// Bytes that are damaged, or of a later version.
    pub fn decode(bytes: &[u8]) -> Result<Record, CodecError> {
        let mut reader = Reader::new(bytes);
        let (kind, disk) = read_head(&mut reader)?;
        let replica = reader.varint()?;
        let standing = read_standing(&mut reader, kind)?;
        if kind == FRESH || replica == 0 {
            return Err(CodecError("a formation record without a promise"));
        }
        Ok(Record { disk, replica, standing })
    }
}

impl Announcement {
    /// As it is sent.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = head(&self.standing, self.disk);
        put_varint(&mut out, self.listed.len() as u64);
        self.listed.iter().for_each(|node| put_varint(&mut out, node.0));
        put_invitation(&mut out, &self.standing);
        out
    }

    /// Reads what [`Announcement::encode`] wrote. Any bytes may be given.
    ///
    /// # Errors
    /// Bytes that are no announcement, or of a later version.
    pub fn decode(bytes: &[u8]) -> Result<Announcement, CodecError> {
        let mut reader = Reader::new(bytes);
        let (kind, disk) = read_head(&mut reader)?;
        let listed = read_ascending(&mut reader, read_node, |node| *node)?;
        let standing = read_standing(&mut reader, kind)?;
        Ok(Announcement { listed, disk, standing })
    }
}

fn head(standing: &Standing, disk: u128) -> Vec<u8> {
    let kind = match standing {
        Standing::Fresh => FRESH,
        Standing::Joined(_) => JOINED,
        Standing::Formed(_) => FORMED,
    };
    let mut out = vec![VERSION, kind];
    out.extend_from_slice(&disk.to_be_bytes());
    out
}

fn put_invitation(out: &mut Vec<u8>, standing: &Standing) {
    let Some(invitation) = standing.invitation() else { return };
    put_varint(out, invitation.round);
    out.extend_from_slice(&invitation.cluster.to_be_bytes());
    put_varint(out, invitation.members.len() as u64);
    for member in &invitation.members {
        put_varint(out, member.node.0);
        out.extend_from_slice(&member.disk.to_be_bytes());
    }
}

fn read_head(reader: &mut Reader) -> Result<(u8, u128), CodecError> {
    if reader.u8()? != VERSION {
        return Err(CodecError("a formation message of another version"));
    }
    Ok((reader.u8()?, read_u128(reader)?))
}

/// The rest of the bytes.
fn read_standing(reader: &mut Reader, kind: u8) -> Result<Standing, CodecError> {
    let standing = match kind {
        FRESH => Standing::Fresh,
        JOINED => Standing::Joined(read_invitation(reader)?),
        FORMED => Standing::Formed(read_invitation(reader)?),
        _ => return Err(CodecError("no such standing")),
    };
    if reader.is_empty() { Ok(standing) } else { Err(CodecError("bytes after the end")) }
}

fn read_invitation(reader: &mut Reader) -> Result<Invitation, CodecError> {
    let round = reader.varint()?;
    let cluster = read_u128(reader)?;
    let read_member = |reader: &mut Reader| Ok(Member { node: read_node(reader)?, disk: read_u128(reader)? });
    let members = read_ascending(reader, read_member, |member| member.node)?;
    if cluster == 0 || !(1..=ROUND_MAX).contains(&round) {
        return Err(CodecError("an invitation out of range"));
    }
    Ok(Invitation { round, cluster, members })
}

/// From 1 to [`MEMBERS_MAX`] items whose nodes ascend.
fn read_ascending<T>(
    reader: &mut Reader,
    read: impl Fn(&mut Reader) -> Result<T, CodecError>,
    node_of: impl Fn(&T) -> NodeId,
) -> Result<Vec<T>, CodecError> {
    let count = reader.varint()?;
    if !(1..=MEMBERS_MAX as u64).contains(&count) {
        return Err(CodecError("too many nodes, or none"));
    }
    let items = (0..count).map(|_| read(reader)).collect::<Result<Vec<T>, CodecError>>()?;
    let is_ascending = items.windows(2).all(|pair| node_of(&pair[0]) < node_of(&pair[1]));
    if is_ascending { Ok(items) } else { Err(CodecError("nodes out of order")) }
}

fn read_node(reader: &mut Reader) -> Result<NodeId, CodecError> {
    let id = reader.varint()?;
    if (1..=NODE_ID_MAX).contains(&id) { Ok(NodeId(id)) } else { Err(CodecError("no node id")) }
}

fn read_u128(reader: &mut Reader) -> Result<u128, CodecError> {
    let bytes = reader.take(16)?.try_into().map_err(|_| CodecError("cut short"))?;
    Ok(u128::from_be_bytes(bytes))
}
