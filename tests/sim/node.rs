//! A simulated node: a disk, clocks, links, and while it runs the product's own driver, applier and state.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use holdfast::clock::Clock;
use holdfast::config::Config;
use holdfast::config::SharedConfig;
use holdfast::consensus::ProposeError;
use holdfast::consensus::claims::Claims;
use holdfast::consensus::claims::WaitOutcome;
use holdfast::consensus::cluster_clock::ClusterClock;
use holdfast::consensus::mailbox::Mailbox;
use holdfast::consensus::raft::applier::Applier;
use holdfast::consensus::raft::applier::ApplyMessage;
use holdfast::consensus::raft::driver::ApplyBy;
use holdfast::consensus::raft::driver::Cluster;
use holdfast::consensus::raft::driver::Driver;
use holdfast::consensus::raft::driver::DriverParts;
use holdfast::consensus::raft::flusher::FlushJob;
use holdfast::consensus::raft::log_writer::WriterJob;
use holdfast::consensus::raft::members::Members;
use holdfast::consensus::raft::replica::Boot;
use holdfast::consensus::raft::replica::Counters;
use holdfast::consensus::raft::replica::Shared;
use holdfast::consensus::raft::replica::begin_group;
use holdfast::consensus::raft::replica::first_epoch;
use holdfast::consensus::raft::replica::tick_of;
use holdfast::consensus::raft::session::Session;
use holdfast::consensus::raft::snapshot_io::SnapshotEvent;
use holdfast::machine::apply::BatchReplies;
use holdfast::machine::entry::Stamps;
use holdfast::machine::entry::life_of;
use holdfast::peer::Links;
use holdfast::state::Settings;
use holdfast::state::State;
use holdfast::state::locks::ClaimId;
use holdfast::state::locks::graph::VictimChoice;
use holdfast::types::GroupId;
use holdfast::types::Millis;
use holdfast::types::NodeId;
use holdfast::types::planted::Bug;
use holdfast::types::planted::is_planted;
use parking_lot::RwLock;
use tokio::sync::oneshot;

use crate::disk::Disk;
use crate::disk::SimLog;
use crate::machine::Rate;
use crate::machine::SimClock;
use crate::machine::SimLinks;

pub const GROUP: GroupId = GroupId(0);

/// What a client of this node waits for.
pub enum Waiting {
    Write(oneshot::Receiver<Result<BatchReplies, ProposeError>>),
    Barrier(oneshot::Receiver<Result<(), ProposeError>>),
}

/// A client that waits for a lock.
pub struct LockWait {
    pub client: usize,
    pub claim: ClaimId,
    pub receiver: oneshot::Receiver<WaitOutcome>,
}

/// The process of a node.
pub struct Running {
    pub driver: Driver,
    pub shared: Arc<Shared>,
    pub applier: Applier,
    pub state: Arc<RwLock<State>>,
    pub cluster_clock: Arc<ClusterClock>,
    pub writer: Arc<Mailbox<WriterJob>>,
    pub apply: Arc<Mailbox<ApplyMessage>>,
    pub flusher: Arc<Mailbox<FlushJob>>,
    pub flusher_busy: Arc<AtomicBool>,
    pub snapshots: Arc<Mailbox<SnapshotEvent>>,
    /// What the apply thread has before it, and whether it is at it.
    pub jobs: VecDeque<ApplyMessage>,
    pub is_applying: bool,
    pub flush_jobs: VecDeque<FlushJob>,
    pub is_flushing: bool,
    pub is_writing: bool,
    /// Operations by number.
    pub waiting: Vec<(u64, Waiting)>,
    /// Clients of this node that wait for a lock.
    pub lock_waits: Vec<LockWait>,
    /// TAKE-BACKs that were proposed.
    pub take_backs: Vec<(ClaimId, oneshot::Receiver<Result<BatchReplies, ProposeError>>)>,
    /// Which life of the node it is, as the log names it.
    pub log_life: u64,
    /// A snapshot that is being put in place: its name.
    pub installing: Option<String>,
    pub replica: u64,
}

/// A node.
pub struct Node {
    pub id: NodeId,
    pub disk: Disk,
    pub clock: Arc<SimClock>,
    pub rate: Rate,
    pub links: Arc<SimLinks>,
    pub running: Option<Running>,
    /// Counts starts and ends; events of an earlier life are void.
    pub life: u64,
    pub paused_until: u64,
    /// Everything takes that many times as long until then.
    pub slow: (u64, u64),
    pub slow_disk_until: u64,
    /// Its next write fails.
    pub fails_next_write: bool,
    pub config: SharedConfig,
}

impl Node {
    pub fn set_clock(&self, now: u64) {
        self.rate.set(&self.clock, now);
    }

    /// Starts the replica from what is on the disk, as the product does.
    ///
    /// # Errors
    /// `Damaged` when the disk is not what it was; anything else is a violation.
    pub fn boot(&mut self, members: &[NodeId]) -> Result<Running, BootFailure> {
        let replica = self.disk.replica.ok_or_else(|| BootFailure::Wrong("it has no replica".to_owned()))?;
        self.disk.boots += 1;
        self.disk.rows = self.disk.flushed.clone();
        let wrong = |error: &dyn std::fmt::Display| BootFailure::Wrong(error.to_string());
        let config = self.config.get();
        let mut state = State::load(&self.disk.rows).map_err(|error| wrong(&error))?;
        if state.membership().is_empty() {
            begin_group(&mut state, self.id, replica, Some(members));
        }
        self.disk.rows_index = state.meta().applied.0;
        let contents = self.disk.contents(state.meta().applied.0);
        let booted =
            Boot::repair(Path::new("sim"), replica, &state, contents).map_err(|error| wrong(&error))?;
        let end = booted.log_end();
        let is_behind = self.disk.watermark.is_some_and(|mark| (end.0.0, end.1.0) < mark);
        if is_behind && !is_planted(Bug::WatermarkUnchecked) {
            return Err(BootFailure::Damaged);
        }
        let clock: Arc<dyn Clock> = Arc::clone(&self.clock) as Arc<dyn Clock>;
        let cluster_clock = Arc::new(ClusterClock::starting_at(booted.last_clock, Arc::clone(&clock)));
        let counters = Arc::new(Counters::default());
        let applied = state.meta().applied;
        counters.set_flushed(applied);
        let membership = state.membership().clone();
        let epoch = first_epoch(replica, self.disk.boots);
        let claims = Claims::new(self.id, life_of(epoch));
        let shared = Arc::new(Shared::new(&state, counters, replica, epoch, 0, claims));
        let settings = Settings {
            databases: config.databases,
            lock_default_ttl: config.lock_default_ttl,
            lease_failover_grace: config.lease_failover_grace,
            lock_deadlock_victim: VictimChoice::of(config.lock_deadlock_victim).unwrap_or_default(),
            lock_graph_max: config.lock_graph_max,
            lock_release_memory: config.lock_release_memory,
            once_max_entries: config.once_max_entries,
            once_max_bytes: config.once_max_bytes,
            queue_ack_memory: config.queue_ack_memory,
        };
        let state = Arc::new(RwLock::new(state));
        let (writer, flusher): (Arc<Mailbox<WriterJob>>, Arc<Mailbox<FlushJob>>) = Default::default();
        let flusher_busy = Arc::new(AtomicBool::new(false));
        let links: Arc<dyn Links> = Arc::clone(&self.links) as Arc<dyn Links>;
        let applier = Applier {
            group: GROUP,
            state: Arc::clone(&state),
            shared: Arc::clone(&shared),
            network: Some(Arc::clone(&links)),
            flusher: Arc::clone(&flusher),
            flusher_busy: Arc::clone(&flusher_busy),
            clock: Arc::clone(&clock),
            flush_interval: config.flush_interval,
            flush_bytes: usize::MAX,
            last_flush: clock.monotonic(),
            flushed: applied,
            has_cold: true,
        };
        let apply: Arc<Mailbox<ApplyMessage>> = Arc::default();
        let snapshots: Arc<Mailbox<SnapshotEvent>> = Arc::default();
        let cluster = Cluster {
            node: self.id,
            network: links,
            session: Session::new(epoch, clock.monotonic()),
            members: Members::new(membership),
            snapshots: Arc::clone(&snapshots),
            disk: Arc::default(),
        };
        let outage = booted.outage(clock.wall());
        let last = Stamps { clock: booted.last_clock, wall: booted.last_wall, seed: clock.wall().0 };
        let core = booted.core(&config, clock.as_ref()).map_err(|error| wrong(&error))?;
        let driver = Driver::new(DriverParts {
            core,
            group: GROUP,
            shared: Arc::clone(&shared),
            log: Arc::new(SimLog(Arc::clone(&self.disk.log))),
            writer: Arc::clone(&writer),
            apply: ApplyBy::Thread(Arc::clone(&apply)),
            cluster: Some(cluster),
            cluster_clock: Arc::clone(&cluster_clock),
            clock,
            config: self.config.clone(),
            settings,
            outage,
            last,
            tick: tick_of(&config),
        });
        Ok(Running {
            driver,
            shared,
            applier,
            state,
            cluster_clock,
            writer,
            apply,
            flusher,
            flusher_busy,
            snapshots,
            jobs: VecDeque::new(),
            is_applying: false,
            flush_jobs: VecDeque::new(),
            is_flushing: false,
            is_writing: false,
            waiting: Vec::new(),
            lock_waits: Vec::new(),
            take_backs: Vec::new(),
            log_life: life_of(epoch),
            installing: None,
            replica,
        })
    }

    /// A snapshot takes the place of log and rows, in one step as its marker makes it.
    pub fn install(&mut self, incoming: &str, index: u64, term: u64, vote: (u64, u64, u64)) {
        let rows = self.disk.incoming.get(incoming).cloned().unwrap_or_default();
        self.disk.flushed = rows.clone();
        self.disk.rows = rows;
        (self.disk.rows_index, self.disk.purged) = (index, index);
        self.disk.watermark = Some((term, index));
        let mut log = self.disk.log.lock();
        log.entries.clear();
        let (term, vote, commit) = vote;
        log.hard_state = raft::eraftpb::HardState { term, vote, commit };
    }
}

impl Running {
    /// True while the flusher has rows that apply must not overtake.
    pub fn is_flusher_busy(&self) -> bool {
        self.flusher_busy.load(Ordering::Relaxed)
    }

    pub fn applied(&self) -> u64 {
        self.shared.applied()
    }
}

/// Why a node does not start.
#[derive(Debug)]
pub enum BootFailure {
    /// Something that was written is not there any more.
    Damaged,
    Wrong(String),
}

/// The configuration of a node of this plan.
pub fn config_of(node: u64, plan: &crate::plan::Plan) -> SharedConfig {
    let mut args: Vec<String> = Vec::new();
    let mut set = |name: &str, value: &str| {
        args.push(format!("--{name}"));
        args.extend(value.split(' ').map(str::to_owned));
    };
    set("node-id", &node.to_string());
    for other in 1..=plan.nodes as u64 {
        set("cluster-node", &format!("{other} 127.0.0.1:{}", 17_000 + other));
    }
    set("appendfsync", if plan.always { "always" } else { "everysec" });
    set("read-consistency", if plan.read_index { "readindex" } else { "lease" });
    set("election-timeout", &plan.election_ms.to_string());
    set("heartbeat-interval", &plan.heartbeat_ms.to_string());
    set("lock-deadlock-victim", plan.deadlock_victim);
    let mut config = Config::load(&args).expect("these directives are right").config;
    config.flush_interval = Millis(plan.flush_ms);
    config.queue_ack_memory = plan.ack_memory;
    SharedConfig::new(config, None)
}
