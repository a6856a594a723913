//! Drives a group's core: everything that arrived, then one drain, then what follows from it.
//!
//! ```text
//! events ─► step the core ─► session: waiting batches to the leader, here or there ─► pack and propose
//!        ─► drain ─► publish lease and commit ─► messages to peers ─► log ─► apply
//! ```
//! A lone voter writes the log here, synced when `appendfsync` says so, and applies here; with peers only what goes
//! unsynced, to the page cache, is written here. What peers are told never comes before what readers of this
//! node must know: lease and commit are published first.
//!
//! A sweep runs on whichever thread has something for it ([`crate::consensus::raft::replica`]): waking
//! another thread costs more than the sweep itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use raft::StateRole;
use raft::eraftpb::Message;
use raft::eraftpb::MessageType;
use raft::eraftpb::Snapshot;

use crate::clock::Clock;
use crate::config::AppendFsync;
use crate::config::ReadConsistency;
use crate::config::SharedConfig;
use crate::consensus::ProposeError;
use crate::consensus::Role;
use crate::consensus::cluster_clock::ClusterClock;
use crate::consensus::mailbox::Mailbox;
use crate::consensus::raft::acceptable::OLD_DIRECTORY;
use crate::consensus::raft::acceptable::REPLACED;
use crate::consensus::raft::acked::Acked;
use crate::consensus::raft::applier::Applier;
use crate::consensus::raft::applier::ApplyJob;
use crate::consensus::raft::applier::ApplyMessage;
use crate::consensus::raft::applier::Local;
use crate::consensus::raft::applier::job_bytes;
use crate::consensus::raft::applier::local;
use crate::consensus::raft::applier::settle_remote;
use crate::consensus::raft::barriers::Answer;
use crate::consensus::raft::barriers::Barriers;
use crate::consensus::raft::barriers::Done;
use crate::consensus::raft::barriers::Reader;
use crate::consensus::raft::flusher::CheckpointJob;
use crate::consensus::raft::flusher::InstallJob;
use crate::consensus::raft::group_core::Committed;
use crate::consensus::raft::group_core::GroupCore;
use crate::consensus::raft::group_core::Input;
use crate::consensus::raft::group_core::Install;
use crate::consensus::raft::group_core::Output;
use crate::consensus::raft::group_core::Persist;
use crate::consensus::raft::group_core::ReplicaProgress;
use crate::consensus::raft::log_cache::Fetch;
use crate::consensus::raft::log_writer::DriverLog;
use crate::consensus::raft::log_writer::WriterJob;
use crate::consensus::raft::members::AdminDone;
use crate::consensus::raft::members::JOIN_SILENCE;
use crate::consensus::raft::members::Members;
use crate::consensus::raft::members::View;
use crate::consensus::raft::message_codec;
use crate::consensus::raft::proposer::Proposer;
use crate::consensus::raft::proposer::Queued;
use crate::consensus::raft::proposer::ReplyTo;
use crate::consensus::raft::replica::LEASE_OF_SEVERAL_MAX;
use crate::consensus::raft::replica::LOSSES_WITHIN;
use crate::consensus::raft::replica::Shared;
use crate::consensus::raft::replica::stop_process;
use crate::consensus::raft::requests;
use crate::consensus::raft::requests::ControlMessage;
use crate::consensus::raft::requests::Outcome;
use crate::consensus::raft::requests::Request;
use crate::consensus::raft::restart;
use crate::consensus::raft::sent_snapshots::SentSnapshots;
use crate::consensus::raft::session::Numbered;
use crate::consensus::raft::session::Session;
use crate::consensus::raft::session::Submission;
use crate::consensus::raft::session::Target;
use crate::consensus::raft::silence::Moment;
use crate::consensus::raft::silence::majority_heard;
use crate::consensus::raft::snapshot_io::SnapshotEvent;
use crate::machine::apply::BatchOutcome;
use crate::machine::entry::Batch;
use crate::machine::entry::LeaderStart;
use crate::machine::entry::SessionStamp;
use crate::machine::entry::Stamps;
use crate::machine::entry::decode_stamps;
use crate::machine::entry::encode_entry;
use crate::machine::entry::life_of;
use crate::peer::Channel;
use crate::peer::Links;
use crate::peer::SendError;
use crate::state::Membership;
use crate::state::NodeAddress;
use crate::state::Settings;
use crate::state::expiry::Track;
use crate::storage::HardStateRecord;
use crate::storage::disk::DiskGauge;
use crate::types::Boottime;
use crate::types::ClusterTime;
use crate::types::GroupId;
use crate::types::LogIndex;
use crate::types::Millis;
use crate::types::Monotonic;
use crate::types::NodeId;
use crate::types::Term;
use crate::types::planted::Bug;
use crate::types::planted::is_planted;
use crate::types::planted::scaled;

/// The log cache lets applied entries go when they exceed this many bytes.
const CACHE_BYTES: u64 = 8 << 20;
/// Or this many entries.
const CACHE_ENTRIES: u64 = 4096;
/// For followers that are a little behind more is kept, up to this many bytes.
const CACHE_BYTES_MAX: u64 = 64 << 20;
/// Entries that stay on disk after they were flushed, for a follower that is a little behind a new leader: twice what
/// a leader has in flight.
const TAIL_ENTRIES: u64 = 32;
/// A follower that is further behind than this does not keep the log from being purged: it gets a snapshot.
const WAIT_FOR_ENTRIES: u64 = 200_000;
/// Reads of the log for followers in one sweep, and bytes after which none follows.
const FETCHES: u32 = 4;
const FETCHED_BYTES_MAX: u64 = 4 << 20;
/// A follower takes no more entries while this many bytes wait for its apply.
const APPLY_BACKLOG_MAX: u64 = 256 << 20;
/// A sweep looks at the time again when it proposed and sent so many bytes.
const MOVED_MAX: usize = 4 << 20;
/// Batches of one frame to the leader, in bytes.
const FRAME_BYTES: usize = 1 << 20;
/// The clients of a node that was not reachable for so long wait no more.
const NODE_LEASE: Millis = Millis(10_000);
/// A tick that comes later than so many of them was late because the process stood still.
const TICKS_LATE: u64 = 4;
/// While anything has a deadline, the log gets a stamp at least this often: after a total outage the
/// cluster clock goes on from the last stamp, so leases are late by no more than this.
const STAMP_INTERVAL: Millis = Millis(10_000);
/// Between two EXPIREs other commands have their turn, unless somebody waits for what is due.
const EXPIRE_PAUSE: Millis = Millis(2);
/// When something is due for longer than this, ends come faster than EXPIREs with pauses can take them away. There is
/// no pause then, and each entry holds this many EXPIREs: what is due must not pile up for ever.
const EXPIRE_LATE: Millis = Millis(3_000);
/// The same for what somebody waits for.
const AWAITED_LATE: Millis = Millis(20);
const EXPIRES_WHEN_LATE: usize = 4;

/// What can arrive.
pub enum Event {
    Submit(Arc<Submission>),
    Persisted(u64),
    /// With peers: the apply thread is done up to here.
    Applied(u64),
    Barrier(Done),
    /// The log on disk begins after this index.
    Purged(u64),
    Stop,
    /// A batch of this session was not executed: a number before it is missing, or the session ended.
    SessionTrouble {
        epoch: u64,
        is_ended: bool,
    },
    PeerUp {
        node: NodeId,
        election_timeout: Millis,
    },
    PeerDown(NodeId),
    /// A peer has seen a later start of this node than the one that its data directory knows of.
    OldDirectory(NodeId),
    /// From a peer. `clock`: the leader's cluster time when it sent.
    Messages {
        from: NodeId,
        clock: ClusterTime,
        messages: Vec<Message>,
    },
    /// Another node's batches, for the leader.
    Propose {
        from: NodeId,
        epoch: u64,
        first_seq: u64,
        ack: u64,
        batches: Vec<Batch>,
    },
    /// What another node says became of this node's batches.
    Outcomes {
        epoch: u64,
        outcomes: Vec<(u64, Outcome)>,
    },
    /// This node applied batches of its own that it had not proposed itself.
    Executed {
        epoch: u64,
        outcomes: Vec<(u64, BatchOutcome)>,
    },
    ReadIndex {
        from: NodeId,
        id: u64,
    },
    ReadIndexReply {
        id: u64,
        index: Option<LogIndex>,
    },
    /// Give the leadership away, to this node or to whoever is best.
    Transfer {
        to: Option<NodeId>,
        done: AdminDone,
    },
    /// A node that lost its disk wants to be a member again.
    Join {
        node: NodeId,
        nonce: u64,
        address: NodeAddress,
        done: AdminDone,
    },
    /// The state gave a replica id for a node that joins.
    Allocated {
        node: NodeId,
        nonce: u64,
        replica: u64,
    },
    /// Make a snapshot now.
    MakeSnapshot,
    SnapshotMade {
        job: CheckpointJob,
        path: PathBuf,
    },
    /// Some of the snapshot for this replica moved.
    SnapshotMoved {
        to: u64,
    },
    SnapshotSent {
        to: u64,
        ok: bool,
    },
    /// A snapshot is complete below `incoming/`; this is the message that goes with it.
    SnapshotReceived {
        message: Box<Message>,
        incoming: String,
    },
    Installed {
        token: u64,
        membership: Membership,
    },
}

/// What a node with peers has besides.
pub struct Cluster {
    pub node: NodeId,
    pub network: Arc<dyn Links>,
    pub session: Session,
    pub members: Members,
    pub snapshots: Arc<Mailbox<SnapshotEvent>>,
    pub disk: Arc<DiskGauge>,
}

/// Where committed entries go.
pub enum ApplyBy {
    /// This node is the only voter: applied in the sweep.
    Sweep(Box<Applier>),
    /// A thread of its own.
    Thread(Arc<Mailbox<ApplyMessage>>),
}

/// Messages for one node.
#[derive(Default)]
struct Mail {
    bulk: Vec<(GroupId, Message)>,
    /// What must not wait behind entries.
    urgent: Vec<(GroupId, Message)>,
}

/// When a replica was last heard, and whether its link has been up since.
struct Heard {
    when: Moment,
    is_linked: bool,
}

/// [`Driver::serve_from`] while LEADER-START is not proposed.
const NOT_PROPOSED: u64 = u64::MAX;

/// What one sweep after the other works on.
pub struct Driver {
    core: GroupCore,
    group: GroupId,
    shared: Arc<Shared>,
    log: Arc<dyn DriverLog>,
    writer: Arc<Mailbox<WriterJob>>,
    apply: ApplyBy,
    cluster: Option<Cluster>,
    cluster_clock: Arc<ClusterClock>,
    clock: Arc<dyn Clock>,
    config: SharedConfig,
    proposer: Proposer,
    barriers: Barriers,
    /// The last token given to the log writer and not answered yet. Tokens complete in order, so nothing is
    /// written past it.
    writer_owes: Option<u64>,
    last_stamp: Stamps,
    last_proposal: Monotonic,
    /// This replica leads and has queued its LEADER-START.
    leading: bool,
    leads_since: Monotonic,
    /// Reads are served from the state once this index is applied, which is LEADER-START's; none while not leader.
    serve_from: Option<u64>,
    /// Since when nobody proposes: raft refused, until the next tick.
    is_held_back: bool,
    /// Bytes proposed and sent since it last looked at the time.
    moved: usize,
    expire_pending: bool,
    /// When it last proposed an EXPIRE.
    last_expire: Option<Monotonic>,
    /// The node's own proposal is committed up to here and not applied yet.
    expires_at: Option<u64>,
    start: LeaderStart,
    tick: Millis,
    next_tick: Monotonic,
    stopping: bool,
    out: Vec<Output>,
    acked: Acked,
    /// Messages of this sweep, by node.
    outbox: BTreeMap<NodeId, Mail>,
    /// What each other node may propose next, in this term.
    origins: BTreeMap<NodeId, (u64, u64)>,
    /// A copy of the rows is being made.
    is_making_snapshot: bool,
    /// The complete snapshot that raft was told of, and the install that waits for the log writer.
    incoming: Option<String>,
    install: Option<Box<Install>>,
    heard: BTreeMap<u64, Heard>,
    /// Who has seen a later start of this node, and when it said so last.
    outdated_for: BTreeMap<NodeId, Monotonic>,
    sending: SentSnapshots,
    /// Reads of the log that were put off to the next sweep, and how many this one may still do.
    fetches: Vec<Fetch>,
    fetches_left: u32,
    /// The shortest election timeout among the nodes that were linked with this one.
    shortest_timeout: Millis,
    /// What the log ended with when the node started.
    log_end_at_start: u64,
    /// The directory that is being put in place.
    installing_dir: Option<String>,
    /// Nodes whose clients wait for locks and that are not reachable, and since when.
    unreachable: BTreeMap<NodeId, Monotonic>,
}

/// What a driver is made of.
pub struct DriverParts {
    pub core: GroupCore,
    pub group: GroupId,
    pub shared: Arc<Shared>,
    pub log: Arc<dyn DriverLog>,
    pub writer: Arc<Mailbox<WriterJob>>,
    pub apply: ApplyBy,
    pub cluster: Option<Cluster>,
    pub cluster_clock: Arc<ClusterClock>,
    pub clock: Arc<dyn Clock>,
    pub config: SharedConfig,
    /// What the first LEADER-START says.
    pub settings: Settings,
    pub outage: Millis,
    /// The stamps that the log ends with.
    pub last: Stamps,
    pub tick: Millis,
}

impl Driver {
    /// A driver for this core.
    pub fn new(parts: DriverParts) -> Driver {
        let now = parts.clock.monotonic();
        let shortest_timeout = parts.config.get().election_timeout;
        let log_end_at_start = parts.core.last_index();
        Driver {
            core: parts.core,
            group: parts.group,
            shared: parts.shared,
            log: parts.log,
            writer: parts.writer,
            apply: parts.apply,
            cluster: parts.cluster,
            cluster_clock: parts.cluster_clock,
            barriers: Barriers::new(parts.clock.wall().0 << 20),
            clock: parts.clock,
            config: parts.config,
            proposer: Proposer::default(),
            writer_owes: None,
            last_stamp: parts.last,
            last_proposal: now,
            leading: false,
            leads_since: now,
            serve_from: None,
            is_held_back: false,
            moved: 0,
            expire_pending: false,
            last_expire: None,
            expires_at: None,
            start: LeaderStart { outage: parts.outage, settings: parts.settings },
            tick: parts.tick,
            next_tick: now,
            stopping: false,
            out: Vec::new(),
            acked: Acked::default(),
            outbox: BTreeMap::new(),
            origins: BTreeMap::new(),
            is_making_snapshot: false,
            incoming: None,
            install: None,
            heard: BTreeMap::new(),
            outdated_for: BTreeMap::new(),
            sending: SentSnapshots::default(),
            fetches: Vec::new(),
            fetches_left: FETCHES,
            shortest_timeout,
            log_end_at_start,
            installing_dir: None,
            unreachable: BTreeMap::new(),
        }
    }

    /// The core, to look at.
    #[must_use]
    pub fn core(&self) -> &GroupCore {
        &self.core
    }

    fn is_alone(&self) -> bool {
        self.cluster.is_none()
    }

    /// A group of one voter need not wait for anybody to stand for election.
    pub fn campaign_if_alone(&mut self) {
        if self.is_alone() {
            self.step(Input::Campaign);
        }
    }

    /// True once a stop was asked for and everything proposed before has its outcome.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.stopping && (!self.is_alone() || self.proposer.is_idle())
    }

    /// Hands everything on that goes to disk, and ends the threads that do it.
    pub fn finish(&mut self) {
        self.writer.send(WriterJob::Stop);
        match &mut self.apply {
            ApplyBy::Sweep(applier) => applier.finish(),
            ApplyBy::Thread(mailbox) => mailbox.send(ApplyMessage::Stop),
        }
        if let Some(cluster) = &mut self.cluster {
            cluster.session.stop();
            cluster.snapshots.send(SnapshotEvent::Stop);
        }
        self.barriers.stop();
    }

    /// How long nothing needs to be done unless something arrives.
    #[must_use]
    pub fn time_to_wait(&self) -> Duration {
        let now = self.clock.monotonic();
        let tick = self.next_tick.since(now);
        let deadline = if self.expire_pending || !self.leading {
            tick
        } else {
            let left = |track| self.cluster_clock.now().until(self.shared.earliest_on(track));
            left(Track::Awaited).min(left(Track::Idle).max(self.pause_left(now)))
        };
        Duration::from_millis(tick.min(deadline).0.clamp(1, self.tick.0))
    }

    /// Takes what arrived and does what follows. `events` is empty afterwards.
    pub fn sweep(&mut self, events: &mut Vec<Event>) {
        let now = self.clock.monotonic();
        self.shared.silence.pass(now, Millis(self.tick.0.saturating_mul(TICKS_LATE)));
        for event in events.drain(..) {
            self.on_event(event);
        }
        self.fetches_left = FETCHES;
        for fetch in std::mem::take(&mut self.fetches) {
            self.on_output(Output::Fetch(fetch));
        }
        self.on_time();
        self.find_leader();
        self.round_of_barriers();
        loop {
            self.dispatch();
            self.propose_waiting();
            let mut out = std::mem::take(&mut self.out);
            self.core.drain(&mut out);
            let idle = out.is_empty();
            self.publish();
            for output in out.drain(..) {
                self.on_output(output);
            }
            self.send_messages();
            if self.out.is_empty() {
                self.out = out;
            }
            if idle {
                break;
            }
            if self.moved > MOVED_MAX {
                // Heartbeats do not wait until all that is large is on its way.
                self.on_time();
            }
        }
        self.install_when_ready();
        self.discard_unused_snapshot();
        if let ApplyBy::Sweep(applier) = &mut self.apply {
            applier.flush_when_due();
        }
        self.shared.set_in_flight(self.proposer.in_flight());
    }

    /// Tells readers of this node where they stand. Before peers are told anything that follows from it: a follower
    /// that applies what this node has not applied yet must find that this node knows of the commit.
    fn publish(&self) {
        let may_serve = self.leading && self.serve_from.is_none();
        let wants_lease = self.is_alone() || self.config.get().read_consistency == ReadConsistency::Lease;
        let until = if may_serve && wants_lease { self.core.lease_until() } else { Boottime(0) };
        // Only who applies before he tells anybody of a commit need not look how far he has applied.
        let until =
            if matches!(self.apply, ApplyBy::Sweep(_)) { until } else { until.min(LEASE_OF_SEVERAL_MAX) };
        // Followers keep to their own timeouts: the shortest one counts.
        let own = self.config.get().election_timeout;
        let shorter = own.0.saturating_sub(self.shortest_timeout.0) * 1_000_000;
        let until = if shorter == 0 { until } else { Boottime(until.0.saturating_sub(shorter)) };
        self.shared.publish(until, self.core.commit_index());
    }

    // ---- events -----------------------------------------------------------------------------------

    fn step(&mut self, input: Input) {
        self.core.step(self.clock.boottime(), input, &mut self.out);
    }

    fn on_event(&mut self, event: Event) {
        let now = self.clock.monotonic();
        match event {
            Event::Submit(submission) => self.on_submit(submission, now),
            Event::Persisted(token) => {
                self.writer_owes = self.writer_owes.filter(|last| token < *last);
                self.step(Input::Persisted(token));
            }
            Event::Applied(index) => self.on_applied(index),
            Event::Barrier(done) => self.on_barrier(done, now),
            Event::Purged(index) => {
                self.step(Input::Compact(index));
                self.shared.drop_snapshots_before(index);
            }
            Event::Stop => {
                self.stopping = true;
                if let Some(cluster) = &mut self.cluster {
                    cluster.session.stop();
                }
            }
            Event::MakeSnapshot => self.make_snapshot(),
            Event::SnapshotMade { job, path } => self.on_snapshot_made(&job, path),
            Event::SnapshotMoved { to } => self.sending.moved(to, now),
            Event::SnapshotSent { to, ok } => self.on_snapshot_sent(to, ok, now),
            Event::SnapshotReceived { message, incoming } => self.on_snapshot(message, incoming),
            Event::Installed { token, membership } => self.on_installed(token, membership),
            Event::Messages { from, clock, messages } => self.on_messages(from, clock, messages, now),
            Event::Propose { from, epoch, first_seq, ack, batches } => {
                self.on_propose(from, epoch, first_seq, ack, batches);
            }
            Event::Outcomes { epoch, outcomes } => self.on_outcomes(epoch, outcomes, now),
            Event::Executed { epoch, outcomes } => self.on_executed(epoch, outcomes, now),
            Event::SessionTrouble { epoch, is_ended } => self.on_session_trouble(epoch, is_ended, now),
            Event::ReadIndex { from, id } => {
                if self.leading {
                    self.barriers.push(Reader::Remote(from, id), now);
                } else {
                    self.answer_readers(vec![(from, id, None)]);
                }
            }
            // Without an index the tick asks again; at once would be in vain.
            Event::ReadIndexReply { id, index } => {
                if let Some(index) = index {
                    let answers = self.barriers.answered(id, index.0);
                    self.answer_readers(answers);
                    self.barriers.applied(self.shared.applied());
                }
            }
            Event::PeerUp { node, election_timeout } => {
                self.shortest_timeout = self.shortest_timeout.min(election_timeout);
                self.on_peer_up(node, now);
            }
            Event::PeerDown(node) => self.on_peer_down(node),
            Event::OldDirectory(peer) => self.on_old_directory(peer, now),
            Event::Transfer { to, done } => self.on_transfer(to, done, now),
            Event::Join { node, nonce, address, done } => {
                let is_leading = self.leading;
                let silence = self.silence_of(node, now);
                let patience = JOIN_SILENCE.max(Millis(4 * self.config.get().election_timeout.0));
                let Some(cluster) = &mut self.cluster else { return };
                let submission =
                    cluster.members.join(is_leading, node, nonce, address, (silence, patience), done);
                if let Some(submission) = submission {
                    self.proposer.push(Queued {
                        submission,
                        stamp: None,
                        reply_to: ReplyTo::Joiner { node, nonce },
                    });
                }
            }
            Event::Allocated { node, nonce, replica } => {
                if let Some(cluster) = &mut self.cluster {
                    cluster.members.allocated(node, nonce, replica);
                }
            }
        }
    }

    fn on_submit(&mut self, submission: Arc<Submission>, now: Monotonic) {
        match &mut self.cluster {
            None => {
                let reply_to = ReplyTo::Submitter;
                self.proposer.push(Queued { submission, stamp: None, reply_to });
            }
            Some(_) if self.stopping => submission.settle(Err(ProposeError::Stopped)),
            Some(cluster) => {
                // Once it is certain that there is no quorum, nobody need wait to be told.
                let doubt = self.config.get().indoubt_timeout;
                if cluster.session.nowhere_since().is_some_and(|since| now.since(since) >= doubt) {
                    submission.settle(Err(ProposeError::NotLeader { leader: None }));
                } else {
                    cluster.session.push(submission, now);
                }
            }
        }
    }

    fn on_barrier(&mut self, done: Done, now: Monotonic) {
        let doubt = self.config.get().indoubt_timeout;
        let nowhere = self.cluster.as_ref().and_then(|cluster| cluster.session.nowhere_since());
        if nowhere.is_some_and(|since| now.since(since) >= doubt) {
            // The connection may be gone; then nobody wants to know.
            let _ = done.send(Err(ProposeError::NotLeader { leader: None }));
        } else {
            self.barriers.push(Reader::Local(done), now);
        }
    }

    fn on_applied(&mut self, applied: u64) {
        if self.expires_at.take_if(|index| applied >= *index).is_some() {
            self.expire_pending = false;
        }
        self.step(Input::Applied(applied));
        if applied > self.log_end_at_start && !self.leading {
            // Another leader's entry: the outage, if there was one, is over and counted.
            self.start.outage = Millis(0);
        }
        self.let_go_of_entries(applied);
        if self.serve_from.is_some_and(|index| applied >= index) && self.leading {
            self.serve_from = None;
            self.start.outage = Millis(0);
            self.shared.claims.open();
        }
        self.barriers.applied(applied);
        if let Some(cluster) = &mut self.cluster {
            cluster.session.settle(self.clock.monotonic());
        }
    }

    fn on_messages(&mut self, from: NodeId, clock: ClusterTime, messages: Vec<Message>, now: Monotonic) {
        let own = self.core.replica();
        let is_from_leader = |message: &Message| {
            matches!(message.get_msg_type(), MessageType::MsgAppend | MessageType::MsgHeartbeat)
                && message.term >= self.core.term()
                && message.to == own
        };
        if clock != ClusterTime(0) && messages.iter().any(is_from_leader) {
            self.cluster_clock.follow(clock);
            self.shared.silence.heard(self.shared.silence.moment(now));
        }
        if let (Some(cluster), Some(message)) = (&mut self.cluster, messages.first()) {
            cluster.members.heard_of(message.from, from);
        }
        // Ids only grow. It is for a replica that this node had after this one: the data directory is from before.
        if messages.iter().any(|message| message.to > own && self.core.is_voter(message.from)) {
            self.give_up_if(REPLACED);
        }
        let backlog = self.shared.apply_backlog();
        let drops_entries = self.cluster.as_ref().is_some_and(|cluster| cluster.disk.drops_entries(backlog));
        let is_full = drops_entries || backlog > APPLY_BACKLOG_MAX;
        for message in messages {
            // As if it were lost: the leader sends it again. Snapshots come another way, with their rows.
            let kind = message.get_msg_type();
            if (is_full && kind == MessageType::MsgAppend) || kind == MessageType::MsgSnapshot {
                continue;
            }
            self.heard.insert(message.from, Heard { when: self.shared.silence.moment(now), is_linked: true });
            self.step(Input::Message(Box::new(message)));
        }
    }

    fn on_peer_up(&mut self, node: NodeId, now: Monotonic) {
        self.acked.forget();
        let Some(cluster) = &mut self.cluster else { return };
        if matches!(cluster.session.target(), Target::There(leader, _) if leader == node) {
            cluster.session.rewind(now);
            self.barriers.ask_again();
        }
    }

    fn on_peer_down(&mut self, node: NodeId) {
        let Some(cluster) = &mut self.cluster else { return };
        cluster.snapshots.send(SnapshotEvent::PeerDown(node));
        for replica in cluster.members.replicas_of(node) {
            if let Some(heard) = self.heard.get_mut(&replica) {
                heard.is_linked = false;
            }
            self.step(Input::Unreachable(replica));
        }
    }

    /// How long no replica of this node was heard. A new leader begins to listen when it leads.
    fn silence_of(&self, node: NodeId, now: Monotonic) -> Millis {
        let Some(cluster) = &self.cluster else { return Millis(u64::MAX) };
        let heard = cluster.members.replicas_of(node).into_iter().map(|replica| {
            let at = self.heard.get(&replica).map_or(self.leads_since, |heard| heard.when.at);
            now.since(at.max(self.leads_since))
        });
        heard.min().unwrap_or(Millis(u64::MAX))
    }

    /// A peer has seen a later start of this node. One alone may have seen that of a copy.
    fn on_old_directory(&mut self, peer: NodeId, now: Monotonic) {
        self.outdated_for.insert(peer, now);
        self.outdated_for.retain(|_, at| now.since(*at) <= LOSSES_WITHIN);
        let peers = self.config.get().cluster_nodes.len().saturating_sub(1);
        if self.outdated_for.len() * 2 > peers {
            self.give_up_if(OLD_DIRECTORY);
        }
    }

    /// Gives up this replica's data once this was said often enough.
    fn give_up_if(&mut self, why: &'static str) {
        let config = self.config.get();
        let is_synced = config.appendfsync == AppendFsync::Always;
        if self.shared.on_quarantine(why, is_synced, self.clock.monotonic()) && !self.stopping {
            restart::rejoin(&config.dir, why);
        }
    }

    fn on_transfer(&mut self, to: Option<NodeId>, done: AdminDone, now: Monotonic) {
        let progress = self.progress(now);
        let is_leading = self.leading;
        let Some(cluster) = &mut self.cluster else {
            return done.tell(Err("this node has no peers".to_owned()));
        };
        if let Some(replica) = cluster.members.transfer(is_leading, to, &progress, done, now) {
            self.step(Input::Transfer(replica));
        }
    }

    // ---- time -------------------------------------------------------------------------------------

    fn on_time(&mut self) {
        let now = self.clock.monotonic();
        self.moved = 0;
        if now >= self.next_tick {
            // After a pause one tick is enough: a burst of ticks would start elections.
            self.next_tick = Monotonic(now.0 + self.tick.0 * 1_000_000);
            self.note_own_lead(now);
            self.note_busy_followers();
            self.step(Input::Tick);
            self.on_tick(now);
        }
        if !self.leading || self.expire_pending || self.stopping {
            return;
        }
        let cluster_now = self.cluster_clock.now();
        let (awaited, idle) = (self.shared.earliest_on(Track::Awaited), self.shared.earliest_on(Track::Idle));
        let is_late = awaited.until(cluster_now) > AWAITED_LATE || idle.until(cluster_now) > EXPIRE_LATE;
        let is_idle_due = idle <= cluster_now && (is_late || self.pause_left(now) == Millis(0));
        let due = awaited <= cluster_now || is_idle_due;
        let has_deadlines = awaited.min(idle) != ClusterTime::NEVER;
        let stamp_old = has_deadlines && now.since(self.last_proposal) >= STAMP_INTERVAL;
        if due || stamp_old {
            let mut batch = Batch::new(b"");
            for _ in 0..if is_late { EXPIRES_WHEN_LATE } else { 1 } {
                batch.push_expire(0, std::iter::empty());
            }
            self.expire_pending = true;
            self.last_expire = Some(now);
            self.proposer.push(own(batch));
        }
    }

    /// Who takes in a large entry may be too busy to answer heartbeats in time. Its link shows that it lives.
    fn note_busy_followers(&mut self) {
        let Some(cluster) = self.cluster.as_ref().filter(|_| self.leading) else { return };
        let is_linked = |replica: &u64| {
            cluster.members.node_of(*replica).is_some_and(|node| cluster.network.is_connected(node))
        };
        let busy: Vec<u64> = self.core.sends_large_to().into_iter().filter(is_linked).collect();
        busy.into_iter().for_each(|replica| self.step(Input::Alive(replica)));
    }

    /// How long no EXPIRE follows the last one.
    fn pause_left(&self, now: Monotonic) -> Millis {
        let passed = self.last_expire.map_or(EXPIRE_PAUSE, |last| now.since(last));
        Millis(EXPIRE_PAUSE.0.saturating_sub(passed.0))
    }

    /// While this node leads, a leader is heard as long as a majority is: nobody else can lead then.
    fn note_own_lead(&self, now: Monotonic) {
        if !self.leading || is_planted(Bug::OwnLeadIsSilence) {
            return;
        }
        let (conf, own) = (self.core.conf_state(), self.core.replica());
        let now = self.shared.silence.moment(now);
        let of = |replica| {
            if replica == own { Some(now) } else { self.heard.get(&replica).map(|heard| heard.when) }
        };
        let outgoing = match conf.voters_outgoing.is_empty() {
            true => Some(now),
            false => majority_heard(&conf.voters_outgoing, of),
        };
        if let (Some(heard), Some(outgoing)) = (majority_heard(&conf.voters, of), outgoing) {
            self.shared.silence.heard(heard.min(outgoing));
        }
    }

    fn on_tick(&mut self, now: Monotonic) {
        self.is_held_back = false;
        let Some(cluster) = &self.cluster else { return };
        // Only members are of interest, and some that nobody knows yet.
        self.heard.retain(|replica, _| cluster.members.node_of(*replica).is_some());
        if self.is_alone() {
            return;
        }
        let config = self.config.get();
        self.barriers.on_time(now, config.election_timeout, config.indoubt_timeout);
        if self.leading && config.read_consistency == ReadConsistency::Lease && self.barriers.is_quiet() {
            // Keeps the lease while nobody writes.
            let left = self.core.lease_until().0.saturating_sub(self.clock.boottime().0);
            if left < 4 * self.tick.0 * 1_000_000 && self.core.has_committed_in_term() {
                let context = self.barriers.begin(now);
                self.step(Input::ReadIndex(context));
            }
        }
        self.look_after_waits(now);
        let progress = self.progress(now);
        let keep_from = self.keep_from(&progress, now);
        self.shared.set_keep_from(keep_from);
        self.shared.set_progress_of(&progress);
        let view = View {
            is_leading: self.leading,
            leader: self.shared.leader(),
            conf: self.core.conf_state(),
            is_busy: self.core.has_pending_change(),
            progress,
            last: self.core.last_index(),
        };
        let Some(cluster) = &mut self.cluster else { return };
        cluster.session.on_time(now, config.indoubt_timeout);
        if let Some((change, context)) = cluster.members.on_tick(&view, now) {
            self.step(Input::ConfChange { change, context });
        }
    }

    /// Nobody waits for a client whose process is gone.
    fn look_after_waits(&mut self, now: Monotonic) {
        let waiting = self.shared.waiting_nodes();
        let Some(cluster) = &mut self.cluster else { return };
        self.unreachable.retain(|node, _| waiting.iter().any(|(waiting, _)| waiting == node));
        for (node, life) in waiting {
            if node == cluster.node {
                // An earlier life's end with the first batch of this one, whatever it says.
                if life < life_of(cluster.session.epoch()) && cluster.session.is_unused() {
                    cluster.session.push(Submission::new(Batch::default(), None), now);
                }
                continue;
            }
            if cluster.network.is_connected(node) {
                self.unreachable.remove(&node);
                continue;
            }
            let since = *self.unreachable.entry(node).or_insert(now);
            if self.leading && now.since(since) >= NODE_LEASE {
                self.unreachable.insert(node, now);
                let mut batch = Batch::new(b"");
                batch.push_end_claims(node, u64::MAX);
                self.proposer.push(own(batch));
            }
        }
    }

    /// From which index on the log on disk is still needed.
    fn keep_from(&mut self, progress: &[ReplicaProgress], now: Monotonic) -> u64 {
        let applied = self.shared.applied();
        // A disk that is nearly full keeps none: snapshots, too, go only with the log they are of.
        let tail = if self.shared.is_short_of_room() { 0 } else { scaled(TAIL_ENTRIES) };
        let tail = applied.saturating_sub(tail) + 1;
        let sending = self.sending.needed_from(progress, now).into_iter();
        let near = progress.iter().filter(|known| {
            known.is_active
                && !known.is_behind
                && applied.saturating_sub(known.matched) <= scaled(WAIT_FOR_ENTRIES)
        });
        sending.chain(near.map(|known| known.matched + 1)).min().unwrap_or(tail).min(tail)
    }

    /// What raft-rs knows of the others, with our own idea of who is active: raft-rs's is forgotten at every check of
    /// the quorum.
    fn progress(&self, now: Monotonic) -> Vec<ReplicaProgress> {
        let patience = Millis(2 * self.config.get().election_timeout.0);
        let mut progress = self.core.progress();
        for known in &mut progress {
            let heard = self.heard.get(&known.replica);
            known.is_active =
                heard.is_some_and(|heard| heard.is_linked && now.since(heard.when.at) < patience);
        }
        progress
    }

    // ---- where writes go --------------------------------------------------------------------------

    fn find_leader(&mut self) {
        let (leader, term, is_leading) = (self.core.leader(), self.core.term(), self.leading);
        let Some(cluster) = &mut self.cluster else { return };
        let node = cluster.members.node_of(leader);
        self.shared.set_leader_node(node);
        let target = match node {
            _ if is_leading => Target::Here(term),
            Some(node) if node != cluster.node && cluster.network.is_connected(node) => {
                Target::There(node, term)
            }
            _ => Target::Nowhere,
        };
        let before = cluster.session.target();
        if target != before {
            cluster.session.set_target(target, self.clock.monotonic());
            self.barriers.ask_again();
        }
    }

    /// Gives the session's batches to the leader: to the proposer here, or to the node that leads.
    fn dispatch(&mut self) {
        let Some(cluster) = &mut self.cluster else { return };
        if self.is_held_back {
            return;
        }
        let epoch = cluster.session.epoch();
        match cluster.session.target() {
            Target::Nowhere => {}
            Target::Here(_) => {
                while let Some(Numbered { seq, ack, submission }) = cluster.session.give() {
                    let stamp = SessionStamp { node: cluster.node, epoch, seq, ack };
                    let reply_to = ReplyTo::Submitter;
                    self.proposer.push(Queued { submission, stamp: Some(stamp), reply_to });
                }
            }
            Target::There(node, _) => loop {
                let (mut batches, mut first, mut ack, mut bytes) = (Vec::new(), 0, 0, 0);
                while bytes < FRAME_BYTES
                    && let Some(numbered) = cluster.session.give()
                {
                    if batches.is_empty() {
                        (first, ack) = (numbered.seq, numbered.ack);
                    }
                    let batch = numbered.submission.batch.to_bytes();
                    bytes += batch.len();
                    batches.push(batch);
                }
                if batches.is_empty() {
                    return;
                }
                let slices = batches.iter().map(Vec::as_slice);
                let frame = requests::encode_propose(self.group, epoch, first, ack, slices);
                if cluster.network.send(node, Channel::Request, frame).is_err() {
                    cluster.session.rewind(self.clock.monotonic());
                    self.is_held_back = true;
                    return;
                }
            },
        }
    }

    /// Another node's batches, numbered from `first_seq`. A hole refuses all that follow: the origin sends again.
    fn on_propose(&mut self, from: NodeId, epoch: u64, first_seq: u64, ack: u64, batches: Vec<Batch>) {
        let refuse = |driver: &Driver, outcome: Outcome| {
            let outcomes = vec![(first_seq, outcome)];
            driver.send_request(from, &Request::Outcomes { group: driver.group, epoch, outcomes });
        };
        if !self.leading || self.is_held_back {
            let leader = self.shared.leader_node();
            return refuse(self, Outcome::NotLeader { leader });
        }
        let known = self.origins.get(&from).filter(|(known, _)| *known == epoch).map(|(_, next)| *next);
        if known.is_some_and(|next| first_seq > next) {
            // Whatever it sends again is a new beginning; the state machine has the last word.
            self.origins.remove(&from);
            return refuse(self, Outcome::Gap);
        }
        let next = first_seq.saturating_add(batches.len() as u64).max(known.unwrap_or(0));
        self.origins.insert(from, (epoch, next));
        // What is under way here needs no second copy; what was applied is answered again by the state machine.
        let (executed, known) = (self.shared.executed(from, epoch), known.unwrap_or(0));
        for (seq, batch) in (first_seq..).zip(batches).filter(|(seq, _)| *seq >= known || *seq <= executed) {
            let stamp = SessionStamp { node: from, epoch, seq, ack };
            let submission = Submission::new(batch, None);
            let reply_to = ReplyTo::Node { node: from, epoch, seq, is_repeat: seq <= executed };
            self.proposer.push(Queued { submission, stamp: Some(stamp), reply_to });
        }
    }

    fn on_outcomes(&mut self, epoch: u64, outcomes: Vec<(u64, Outcome)>, now: Monotonic) {
        let mut trouble = None;
        let Some(cluster) = &mut self.cluster else { return };
        if cluster.session.epoch() != epoch {
            return;
        }
        for (seq, outcome) in outcomes {
            match &outcome {
                Outcome::Ended => trouble = Some(true),
                Outcome::Gap => trouble = trouble.or(Some(false)),
                Outcome::NotLeader { .. } | Outcome::Refused(_) => {
                    cluster.session.rewind(now);
                    self.is_held_back = true;
                }
                Outcome::Replies(_) | Outcome::Replayed => {}
            }
            let Some(submission) = cluster.session.pending(seq) else { continue };
            if let Some(result) = settle_remote(outcome, submission.batch.len()) {
                submission.settle(result);
            }
        }
        cluster.session.settle(now);
        if let Some(is_ended) = trouble {
            self.on_session_trouble(epoch, is_ended, now);
        }
    }

    /// Entries with batches of this node's session were applied here, whoever proposed them.
    fn on_executed(&mut self, epoch: u64, outcomes: Vec<(u64, BatchOutcome)>, now: Monotonic) {
        let mut trouble = None;
        let Some(cluster) = &mut self.cluster else { return };
        if cluster.session.epoch() != epoch {
            return;
        }
        if outcomes.iter().any(|(seq, _)| !cluster.session.has_given(*seq)) && !self.stopping {
            // This session's name was used up in a life that the data directory does not remember.
            restart::rejoin(&self.config.get().dir, OLD_DIRECTORY);
        }
        for (seq, outcome) in outcomes {
            let Some(submission) = cluster.session.pending(seq) else { continue };
            match local(outcome, submission.batch.len()) {
                Local::Replies(replies) => submission.settle(Ok(replies)),
                Local::Trouble { is_ended } => trouble = Some(is_ended || trouble == Some(true)),
            }
        }
        cluster.session.settle(now);
        if let Some(is_ended) = trouble {
            self.on_session_trouble(epoch, is_ended, now);
        }
    }

    fn on_session_trouble(&mut self, epoch: u64, is_ended: bool, now: Monotonic) {
        let Some(cluster) = &mut self.cluster else { return };
        if cluster.session.epoch() != epoch {
            return;
        }
        cluster.session.settle(now);
        if is_ended {
            let next = self.shared.next_epoch();
            tracing::warn!("this node's session ended; what was on its way is in doubt");
            cluster.session.renew(next, now);
        } else {
            cluster.session.rewind(now);
            self.is_held_back = true;
        }
    }

    // ---- proposing --------------------------------------------------------------------------------

    fn propose_waiting(&mut self) {
        if !self.leading {
            if self.stopping && self.is_alone() {
                self.shared.counters.failed(self.proposer.clear_waiting());
            }
            return;
        }
        while !self.is_held_back
            && let Some(packed) = self.proposer.pack()
        {
            self.last_stamp = self.stamp();
            self.last_proposal = self.clock.monotonic();
            let batches = packed.batches.iter().map(|queued| (queued.stamp, &queued.submission.batch));
            let data = encode_entry(&self.last_stamp, batches);
            self.moved += data.len();
            let before = self.out.len();
            self.step(Input::Propose(data));
            match self.out.split_off(before).pop() {
                Some(Output::Proposed { index, term }) => {
                    if self.serve_from == Some(NOT_PROPOSED) {
                        // LEADER-START is the first that waits.
                        self.serve_from = Some(index);
                    }
                    self.proposer.proposed(index, term, packed);
                }
                _ => self.on_dropped(),
            }
        }
    }

    /// Raft takes nothing now: a hand-over is under way, or too much is uncommitted. What belongs to a session is
    /// given again after the next tick; the node's own proposals come again by themselves.
    fn on_dropped(&mut self) {
        assert!(!self.is_alone(), "a lone voter takes whatever its window lets through");
        self.is_held_back = true;
        self.expire_pending = false;
        self.proposer.clear_waiting();
        self.origins.clear();
        if let Some(cluster) = &mut self.cluster {
            cluster.session.rewind(self.clock.monotonic());
        }
        if self.serve_from == Some(NOT_PROPOSED) {
            self.queue_leader_start();
        }
    }

    fn stamp(&self) -> Stamps {
        Stamps {
            clock: self.cluster_clock.now().max(self.last_stamp.clock),
            wall: self.cluster_clock.wall().max(self.last_stamp.wall),
            seed: self
                .last_stamp
                .seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(self.core.term() | 1),
        }
    }

    // ---- outputs ----------------------------------------------------------------------------------

    fn on_output(&mut self, output: Output) {
        match output {
            Output::Send(messages) => self.post(messages),
            Output::Persist(persist) => {
                // A leader's followers write while it writes itself.
                self.send_messages();
                self.persist(persist);
            }
            Output::Apply(committed) => self.apply(committed),
            Output::Role { role, term, leader } => self.on_role(role, term, leader),
            Output::ReadReady { context, index } => {
                let answers = self.barriers.answered(context, index);
                self.answer_readers(answers);
                self.barriers.applied(self.shared.applied());
            }
            Output::SnapshotWanted => self.make_snapshot(),
            Output::SendSnapshot(message) => self.send_snapshot(&message),
            Output::Install(install) => self.install = Some(install),
            Output::Fetch(fetch) => match self.fetches_left.checked_sub(1) {
                Some(left) => {
                    self.fetches_left = left;
                    self.fetch(fetch);
                }
                // Ticks and messages have their turn first.
                None => self.fetches.push(fetch),
            },
            Output::Quarantine(why) => self.give_up_if(why),
            Output::Proposed { .. } | Output::Dropped => {}
        }
    }

    fn persist(&mut self, mut persist: Persist) {
        if is_planted(Bug::VoteNotWritten)
            && let Some(hard_state) = &mut persist.hard_state
        {
            hard_state.vote = 0;
        }
        let bytes: u64 = persist.entries.iter().map(|entry| entry.data.len() as u64 + 40).sum();
        self.shared.add_log_bytes(bytes);
        // Votes are always synced.
        let sync = persist.entries.is_empty() || self.config.get().appendfsync == AppendFsync::Always;
        if self.writer_owes.is_some() || (sync && !self.is_alone()) {
            let token = persist.token;
            self.writer_owes = Some(token);
            self.writer.send(WriterJob::Persist(persist));
            if is_planted(Bug::AckBeforePersist) {
                self.step(Input::Persisted(token));
            }
            return;
        }
        let start = self.clock.monotonic();
        if let Err(error) = self.log.persist(self.group, &persist, sync) {
            restart::stop_on("writing the log failed", &error);
        }
        self.shared.counters.log_written(self.clock.monotonic().micros_since(start), sync);
        if !sync {
            self.shared.counters.set_unsynced();
        }
        self.step(Input::Persisted(persist.token));
    }

    fn apply(&mut self, committed: Committed) {
        let Committed { entries, changes } = committed;
        let batches: Vec<Vec<Queued>> = entries.iter().map(|entry| self.proposer.committed(entry)).collect();
        if batches.iter().flatten().any(|queued| queued.stamp.is_none()) {
            // Until it is applied what is due is still there, and must not be proposed again and again.
            self.expires_at = entries.last().map(|entry| entry.index);
            self.expire_pending &= !is_planted(Bug::ExpireFlood);
        }
        let mut members = BTreeMap::new();
        if let Some(cluster) = &mut self.cluster {
            for (index, conf) in &changes {
                let context = entries.iter().find(|entry| entry.index == *index).map(|entry| &entry.context);
                let membership = cluster.members.changed(conf, context.map_or(&[], Vec::as_slice));
                members.insert(*index, membership);
            }
            if self.core.is_retired() {
                stop_process(
                    "this node's replica was removed from the cluster",
                    &"another one has taken its place; remove the data directory to let it join again",
                );
            }
        }
        let job = ApplyJob { entries, batches, changes: members };
        match &mut self.apply {
            ApplyBy::Sweep(applier) => {
                applier.apply(job);
                let applied = self.shared.applied();
                self.on_applied(applied);
            }
            ApplyBy::Thread(mailbox) => {
                self.shared.add_apply_backlog(job_bytes(&job.entries));
                mailbox.send(ApplyMessage::Job(job));
            }
        }
    }

    /// Lets applied entries go from memory, but for those that followers which are up to date have not got yet.
    fn let_go_of_entries(&mut self, applied: u64) {
        let (entries, bytes) = (self.core.log().len(), self.core.log().bytes());
        if entries as u64 <= scaled(CACHE_ENTRIES) && bytes <= CACHE_BYTES {
            return;
        }
        let progress = self.progress(self.clock.monotonic());
        let needed = progress.iter().filter(|known| known.is_active && !known.is_behind);
        let matched = needed.map(|progress| progress.matched).min().unwrap_or(applied);
        let up_to = if bytes > scaled(CACHE_BYTES_MAX) { applied } else { applied.min(matched) };
        self.step(Input::Release(up_to));
    }

    fn on_role(&mut self, role: StateRole, term: u64, leader: u64) {
        let role = match role {
            StateRole::Leader => Role::Leader,
            StateRole::Follower => Role::Follower,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
        };
        let was_leading = self.leading;
        self.leading = role == Role::Leader;
        self.shared.set_role(role, term, leader);
        // A lone replica is its own node's.
        self.shared.set_leader_node((leader != 0).then(|| self.config.get().node_id));
        self.find_leader();
        if !self.leading {
            self.serve_from = None;
            self.origins.clear();
            self.shared.pulse.end();
            if was_leading {
                tracing::info!("not leading any more, term {term}");
                self.shared.counters.failed(self.proposer.clear_waiting());
                let answers = self.barriers.send_away();
                self.answer_readers(answers);
            }
            return;
        }
        tracing::info!("leading the group in term {term}");
        if !was_leading {
            self.leads_since = self.clock.monotonic();
        }
        self.note_own_lead(self.clock.monotonic());
        // raft-rs has appended its own empty entry.
        self.proposer.forget_from(self.core.last_index());
        self.take_over_stamps();
        self.queue_leader_start();
    }

    fn queue_leader_start(&mut self) {
        let mut batch = Batch::new(b"");
        batch.push_leader_start(&self.start);
        if self.is_alone() {
            // Whoever waited did so in an earlier life of this process.
            batch.push_end_claims(NodeId(0), u64::MAX);
        }
        self.proposer.push_first(own(batch));
        self.expire_pending = true;
        self.serve_from = Some(NOT_PROPOSED);
    }

    /// Stamps never go back in the log: the new leader goes on from the last ones, whoever gave them.
    fn take_over_stamps(&mut self) {
        let newest = self.core.log().newest().find_map(|entry| decode_stamps(&entry.data).ok());
        let applied = self.shared.last_stamps();
        for stamps in
            [newest.map(|(stamps, _)| (stamps.clock, stamps.wall)), Some(applied)].into_iter().flatten()
        {
            self.last_stamp.clock = self.last_stamp.clock.max(stamps.0);
            self.last_stamp.wall = self.last_stamp.wall.max(stamps.1);
        }
    }

    // ---- read barriers ----------------------------------------------------------------------------

    fn round_of_barriers(&mut self) {
        if self.barriers.is_idle() {
            return;
        }
        let now = self.clock.monotonic();
        // On a network whose round trips are longer than a tick, several rounds are under way.
        if !self.barriers.wants_round(now, self.tick) {
            return;
        }
        if self.leading {
            if self.shared.holds_lease(self.clock.boottime()) {
                let answers = self.barriers.grant(self.core.commit_index());
                self.answer_readers(answers);
                self.barriers.applied(self.shared.applied());
            } else if self.core.has_committed_in_term() && self.serve_from.is_none() {
                let context = self.barriers.begin(now);
                self.step(Input::ReadIndex(context));
            }
            // Before that raft-rs drops such requests silently. The next tick tries again.
            return;
        }
        let Some(cluster) = &self.cluster else { return };
        if let Target::There(node, _) = cluster.session.target() {
            let id = self.barriers.begin(now);
            self.send_request(node, &Request::ReadIndex { group: self.group, id });
        }
    }

    fn answer_readers(&self, answers: Vec<Answer>) {
        for (node, id, index) in answers {
            let index = index.map(LogIndex);
            self.send_request(node, &Request::ReadIndexReply { group: self.group, id, index });
        }
    }

    // ---- peers ------------------------------------------------------------------------------------

    fn send_request(&self, to: NodeId, request: &Request) {
        if let Some(cluster) = &self.cluster {
            // Lost with the link: whoever waits for it asks again.
            let _ = cluster.network.send(to, Channel::Request, request.encode());
        }
    }

    fn post(&mut self, messages: Vec<Message>) {
        let (now, again_after) = (self.clock.monotonic(), self.config.get().heartbeat_interval);
        let Some(cluster) = &self.cluster else { return };
        for message in messages {
            if self.acked.is_repetition(&message, now, again_after) {
                continue;
            }
            let Some(node) = cluster.members.node_of(message.to) else { continue };
            let mail = self.outbox.entry(node).or_default();
            let is_bulk =
                matches!(message.get_msg_type(), MessageType::MsgAppend | MessageType::MsgAppendResponse);
            if is_bulk { &mut mail.bulk } else { &mut mail.urgent }.push((self.group, message));
        }
    }

    /// Messages leave in one frame for each node and channel; heartbeats and votes go before entries.
    fn send_messages(&mut self) {
        let Some(cluster) = &self.cluster else { return };
        let clock = if self.leading { self.cluster_clock.now() } else { ClusterTime(0) };
        let is_heartbeat =
            |(_, message): &(GroupId, Message)| message.get_msg_type() == MessageType::MsgHeartbeat;
        for (node, Mail { urgent, .. }) in &mut self.outbox {
            if !urgent.is_empty() {
                let frame = ControlMessage::Raft(message_codec::encode_batch(clock, urgent).into()).encode();
                if self.leading && urgent.iter().any(is_heartbeat) {
                    self.shared.pulse.sent(*node, &frame, self.clock.monotonic());
                }
                // A lost heartbeat is followed by the next.
                let _ = cluster.network.send(*node, Channel::Control, frame);
                urgent.clear();
            }
        }
        let mut lost = Vec::new();
        for (node, Mail { bulk, .. }) in &mut self.outbox {
            if !bulk.is_empty() {
                let frame = message_codec::encode_batch(clock, bulk);
                self.moved += frame.len();
                if let Err(error) = cluster.network.send(*node, Channel::Raft, frame) {
                    lost.extend(bulk.iter().map(|(_, message)| (message.to, error)));
                }
                bulk.clear();
            }
        }
        for (replica, error) in lost {
            self.acked.forget();
            self.step(match error {
                SendError::NotConnected => Input::Unreachable(replica),
                SendError::Full => Input::NotTaken(replica),
            });
        }
    }

    /// A follower needs entries that only the disk has. They were written lately, so they are in the system's memory.
    fn fetch(&mut self, fetch: Fetch) {
        match self.log.fetch(self.group, &fetch) {
            Ok(entries) => {
                let bytes: u64 = entries.iter().map(|entry| entry.data.len() as u64).sum();
                if bytes >= FETCHED_BYTES_MAX {
                    self.fetches_left = 0;
                }
                self.step(Input::Fetched { fetch, entries });
            }
            Err(error) => restart::stop_on("reading the log failed", &error),
        }
    }

    // ---- snapshots --------------------------------------------------------------------------------

    fn make_snapshot(&mut self) {
        if let ApplyBy::Thread(mailbox) = &self.apply
            && !self.is_making_snapshot
        {
            self.is_making_snapshot = true;
            mailbox.send(ApplyMessage::Checkpoint);
        }
    }

    fn on_snapshot_made(&mut self, job: &CheckpointJob, path: PathBuf) {
        self.is_making_snapshot = false;
        tracing::info!("made a snapshot of index {}", job.index);
        let mut snapshot = Snapshot::default();
        let meta = snapshot.mut_metadata();
        meta.index = job.index.0;
        meta.term = job.term.0;
        meta.set_conf_state(Members::conf_state(&job.membership));
        self.shared.snapshot_made(job.index.0, path);
        self.step(Input::SnapshotReady(Box::new(snapshot)));
    }

    fn send_snapshot(&mut self, message: &Message) {
        let meta = message.get_snapshot().get_metadata();
        let (to, index, term) = (message.to, meta.index, meta.term);
        let (checkpoint, now) = (self.shared.snapshot_path(index), self.clock.monotonic());
        self.sending.begin(to, index, now);
        let Some(cluster) = &self.cluster else { return };
        let (Some(node), Some(checkpoint)) = (cluster.members.node_of(to), checkpoint) else {
            return self.on_snapshot_sent(to, false, now);
        };
        tracing::info!("sending node {node} a snapshot of index {index}");
        let mut bytes = Vec::new();
        message_codec::encode_message(message, &mut bytes);
        cluster.snapshots.send(SnapshotEvent::Send {
            to: node,
            to_replica: to,
            group: self.group,
            index,
            term,
            checkpoint,
            message: bytes,
        });
    }

    fn on_snapshot_sent(&mut self, to: u64, ok: bool, now: Monotonic) {
        // The log waits only for those who take their snapshot.
        self.sending.ended(to, ok, now);
        self.step(Input::SnapshotSent { to, ok });
    }

    /// The log writer must be done with what came before: the snapshot takes the place of the whole log.
    fn install_when_ready(&mut self) {
        if self.writer_owes.is_some() {
            return;
        }
        let Some(install) = self.install.take() else { return };
        let meta = install.snapshot.get_metadata();
        let Some(incoming) = self.incoming.take() else {
            stop_process("a snapshot cannot be installed", &"its rows are not there");
        };
        tracing::info!("installing a snapshot of index {}", meta.index);
        self.proposer.forget_in_flight();
        self.installing_dir = Some(incoming.clone());
        let hard_state = &install.hard_state;
        let job = InstallJob {
            incoming,
            index: LogIndex(meta.index),
            term: Term(meta.term),
            hard_state: HardStateRecord {
                term: hard_state.term,
                vote: hard_state.vote,
                commit: hard_state.commit.max(meta.index),
            },
        };
        if let ApplyBy::Thread(mailbox) = &self.apply {
            mailbox.send(ApplyMessage::Install { token: install.token, job });
        }
    }

    /// One at a time: what comes while another is on its way is sent again if it is still wanted.
    fn on_snapshot(&mut self, mut message: Box<Message>, incoming: String) {
        if is_planted(Bug::SnapshotMembersIgnored) && !self.core.conf_state().voters.is_empty() {
            message.mut_snapshot().mut_metadata().set_conf_state(self.core.conf_state());
        }
        if self.incoming.is_none() && self.install.is_none() && !self.core.is_installing() {
            self.incoming = Some(incoming);
            self.step(Input::Message(message));
        } else if let Some(cluster) = &self.cluster {
            cluster.snapshots.send(SnapshotEvent::Release { incoming_dir: incoming });
        }
    }

    /// Raft did not want the snapshot that came: it has overtaken it.
    fn discard_unused_snapshot(&mut self) {
        if self.install.is_none()
            && !self.core.is_installing()
            && let (Some(incoming_dir), Some(cluster)) = (self.incoming.take(), &self.cluster)
        {
            cluster.snapshots.send(SnapshotEvent::Release { incoming_dir });
        }
    }

    fn on_installed(&mut self, token: u64, membership: Membership) {
        let now = self.clock.monotonic();
        if let Some(cluster) = &mut self.cluster {
            cluster.members.restored(membership);
            // Whatever of it is in the snapshot was applied, and nobody here saw what came of it.
            cluster.session.rewind(now);
            if let Some(incoming_dir) = self.installing_dir.take() {
                cluster.snapshots.send(SnapshotEvent::Release { incoming_dir });
            }
        }
        self.step(Input::Installed(token));
        let applied = self.shared.applied();
        tracing::info!("installed a snapshot; applied up to {applied}");
        self.barriers.applied(applied);
    }
}

/// A proposal of the node itself.
fn own(batch: Batch) -> Queued {
    Queued { submission: Submission::new(batch, None), stamp: None, reply_to: ReplyTo::Submitter }
}

#[cfg(test)]
#[path = "driver_test.rs"]
mod tests;
