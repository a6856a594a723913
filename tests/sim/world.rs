//! The discrete-event loop: nodes, network, clients and time in one thread, from one seed.
//!
//! ```text
//!  queue of (time, event) ──► one node ──► sweep of its driver ──► what follows ──► queue
//!     wake · deliver · written · applied · flushed · boot · link · client · fault
//! ```
//! What runs are the product's own driver (Raft core, proposer, sessions, barriers, members), applier, state machine
//! and codecs; the threads around them are events here. A second of the world takes about a millisecond. Whatever
//! happens is told to the invariants as a [`Fact`].

use std::any::Any;
use std::cmp::Ordering;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::BinaryHeap;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic;

use bytes::Bytes;
use holdfast::clock::Clock;
use holdfast::commands::gift::Gift;
use holdfast::commands::spec::Execute;
use holdfast::commands::spec::ReadContext;
use holdfast::commands::table;
use holdfast::consensus::ProposeError;
use holdfast::consensus::claims;
use holdfast::consensus::claims::Lost;
use holdfast::consensus::claims::Told;
use holdfast::consensus::raft::applier::ApplyJob;
use holdfast::consensus::raft::applier::ApplyMessage;
use holdfast::consensus::raft::driver::Event as DriverEvent;
use holdfast::consensus::raft::flusher::FlushJob;
use holdfast::consensus::raft::flusher::InstallJob;
use holdfast::consensus::raft::hub::Arrived;
use holdfast::consensus::raft::hub::decode;
use holdfast::consensus::raft::log_writer::WriterJob;
use holdfast::consensus::raft::members::AdminDone;
use holdfast::consensus::raft::members::decode_joined;
use holdfast::consensus::raft::message_codec;
use holdfast::consensus::raft::requests::AdminCommand;
use holdfast::consensus::raft::requests::Request;
use holdfast::consensus::raft::session::Submission;
use holdfast::consensus::raft::snapshot_io::SnapshotEvent;
use holdfast::machine::entry::Batch;
use holdfast::machine::entry::Queued;
use holdfast::peer::Channel;
use holdfast::peer::Links;
use holdfast::resp::Reply;
use holdfast::state::NodeAddress;
use holdfast::state::State;
use holdfast::state::locks::ClaimId;
use holdfast::state::notices::ClaimEnd;
use holdfast::types::Millis;
use holdfast::types::NodeId;
use holdfast::types::bounds::Bounds;
use holdfast::types::planted;
use holdfast::types::planted::Bug;
use raft::eraftpb::Entry;
use tokio::sync::oneshot;

use crate::chance::Chance;
use crate::clients::Ask;
use crate::clients::Client;
use crate::clients::Known;
use crate::clients::Operation;
use crate::clients::Words;
use crate::coverage::Coverage;
use crate::disk::Disk;
use crate::disk::RowMap;
use crate::faults::Snare;
use crate::invariants;
use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::journal::Journal;
use crate::machine::Rate;
use crate::node::BootFailure;
use crate::node::LockWait;
use crate::node::Node;
use crate::node::Waiting;
use crate::node::config_of;
use crate::plan::MICRO;
use crate::plan::MILLI;
use crate::plan::Plan;
use crate::plan::SECOND;
use crate::replay::Answer;
use crate::replay::ReadAnswer;

/// How long a link takes to notice that nothing comes through.
const LINK_NOTICES: u64 = 1_100 * MILLI;
/// A client waits no longer than this for one operation.
const PATIENCE: u64 = 10 * SECOND;
/// After everything was healed the group stands within this time.
const HEALED_WITHIN: u64 = 30 * SECOND;
/// However slow a node is, it has written by then: one that writes longer than the group heals stands behind at the end.
const WRITTEN_WITHIN: u64 = 10 * SECOND;
/// How often a node looks for work that waits leave behind.
const LOOK_AFTER: u64 = 500 * MILLI;
/// Events belong to no node.
pub const NOBODY: usize = usize::MAX;

/// What happens at a time.
pub enum Event {
    Wake,
    Deliver {
        from: usize,
        channel: Channel,
        payload: Bytes,
    },
    Written,
    JobDone,
    FlushDone,
    InstallDone {
        token: u64,
        job: Box<InstallJob>,
    },
    EverySecond,
    Boot,
    LinkUp(usize),
    LinkDown(usize),
    /// Nothing came through for long.
    LinkSilent(usize),
    EndCuts,
    SnapshotArrives {
        from: usize,
        from_life: u64,
        to_replica: u64,
        message: Vec<u8>,
        rows: Box<RowMap>,
    },
    AskToJoin,
    Client(usize),
    /// The node proposes what waits leave behind.
    LookAfter,
    /// A client waits for a lock no more.
    Leave(usize, u64),
    GiveUp(usize, u64),
    Chaos,
    Crash {
        rest: u64,
    },
    Cut {
        to: usize,
        until: u64,
        holds: bool,
    },
    /// For the driver.
    Tell(Box<DriverEvent>),
}

struct Item {
    at: u64,
    seq: u64,
    node: usize,
    life: u64,
    event: Event,
}

impl PartialEq for Item {
    fn eq(&self, other: &Item) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Item {}

impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Item) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Item {
    fn cmp(&self, other: &Item) -> Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

/// A cut way from one node to another.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    pub until: u64,
    /// What is sent meanwhile comes afterwards; otherwise it is lost.
    pub holds: bool,
}

/// What a run did.
#[derive(Debug, Default, Clone, Copy)]
pub struct Figures {
    pub events: u64,
    pub messages: u64,
    pub operations: u64,
    pub faults: u64,
}

/// Something that a client was given at once, in a reply that did not reach it.
#[derive(Debug)]
pub struct Unheard {
    pub node: usize,
    /// Of the node, as the log names it.
    pub life: u64,
    /// A lock and its token.
    pub lock: Option<(Vec<u8>, u64)>,
    /// A queue and a receipt.
    pub message: Option<(Vec<u8>, Vec<u8>)>,
}

/// A cluster and everything around it.
pub struct World {
    pub plan: Plan,
    pub chance: Chance,
    pub now: u64,
    seq: u64,
    queue: BinaryHeap<Reverse<Item>>,
    pub nodes: Vec<Node>,
    pub blocked: BTreeMap<(usize, usize), Block>,
    pub snare: Option<Snare>,
    /// Until then clients ask for nothing.
    pub quiet_until: u64,
    pub clients: Vec<Client>,
    pub operations: Vec<Operation>,
    pub journal: Journal,
    invariants: Vec<Box<dyn Invariant>>,
    /// Claims whose clients were told that they hold now.
    pub told_claims: BTreeSet<u64>,
    pub unheard: Vec<Unheard>,
    pub coverage: Coverage,
    pub is_calm: bool,
    /// Nobody asks for anything new.
    is_closing: bool,
    /// How often a reply is lost that hands something out, of a million.
    loses_gifts: u64,
    trace: u64,
    pub figures: Figures,
    pub failure: Option<String>,
    next_name: u64,
    /// Somebody wants to read the story.
    pub is_told: bool,
}

/// A client's batch.
fn batch_of(c: usize, ask: &Ask) -> Batch {
    let mut batch = Batch::new(b"default");
    batch.name_client(c as u64 + 1, "simulated");
    let mut push = |command: &Words| {
        batch.push_command(0, command.iter().map(Vec::as_slice).collect::<Vec<_>>().into_iter());
    };
    match ask {
        Ask::Write(commands) => commands.iter().for_each(push),
        Ask::Atomic(marker, commands) => {
            push(marker);
            let args = |words: &Words| words.iter().map(|word| Bytes::copy_from_slice(word)).collect();
            let queued = |words: &Words| Queued { db: 0, args: args(words) };
            let queued: Vec<Queued> = commands.iter().map(queued).collect();
            batch.push_transaction(&[], &queued, true);
        }
        Ask::Read(_) => unreachable!("reads are no batches"),
    }
    batch
}

/// What the replies to an operation hand out at once. A transaction with a name gives its reply again.
fn gifts_of(ask: &Ask, replies: &[Reply]) -> Vec<Gift> {
    let (commands, replies) = match (ask, replies.last()) {
        (Ask::Write(commands), _) => (commands, replies),
        (Ask::Atomic(_, commands), Some(Reply::Array(replies))) if commands[0][0] != b"ONCE" => {
            (commands, replies.as_slice())
        }
        _ => return Vec::new(),
    };
    let gift = |(command, reply): (&Words, &Reply)| {
        let words: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
        Gift::of(table::find(words[0])?, &words, reply)
    };
    commands.iter().zip(replies).filter_map(gift).collect()
}

fn mix(into: u64, value: u64) -> u64 {
    (into ^ value).wrapping_mul(0x0100_0000_01B3).rotate_left(23)
}

/// What came of a run.
pub struct Outcome {
    pub trace: u64,
    pub figures: Figures,
    pub failure: Option<String>,
    pub coverage: Coverage,
}

/// Runs a seed: faults for so many simulated seconds, then healing.
pub fn run(seed: u64, seconds: u64, bug: Option<Bug>, is_told: bool) -> Outcome {
    planted::plant(bug);
    let mut world = World::new(seed);
    world.is_told = is_told;
    world.say(|| format!("{:?}", world.plan));
    planted::scale_down(world.plan.scale);
    let result = catch_unwind(AssertUnwindSafe(|| {
        world.run_until(seconds * SECOND);
        world.heal();
    }));
    planted::plant(None);
    planted::scale_down(1);
    if let Err(panic) = result {
        let what = text_of(panic.as_ref());
        world.fail(&format!("panic: {what}"));
    }
    Outcome {
        trace: world.trace,
        figures: world.figures,
        failure: world.failure.take(),
        coverage: world.coverage,
    }
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

impl World {
    fn new(seed: u64) -> World {
        let mut chance = Chance::new(seed);
        let plan = Plan::draw(&mut chance);
        let members: Vec<NodeId> = (1..=plan.nodes as u64).map(NodeId).collect();
        let mut world = World {
            chance,
            now: 0,
            seq: 0,
            queue: BinaryHeap::new(),
            nodes: Vec::new(),
            blocked: BTreeMap::new(),
            snare: None,
            quiet_until: 0,
            clients: Vec::new(),
            operations: Vec::new(),
            journal: Journal::new(&members),
            invariants: invariants::all(),
            told_claims: BTreeSet::new(),
            unheard: Vec::new(),
            coverage: Coverage::default(),
            is_calm: false,
            is_closing: false,
            loses_gifts: 30_000,
            trace: seed,
            figures: Figures::default(),
            failure: None,
            next_name: 0,
            is_told: false,
            plan,
        };
        for id in &members {
            world.add_node(*id);
        }
        for number in 0..world.plan.clients {
            let home = world.chance.is(700_000).then(|| number % world.nodes.len());
            let client = Client::new(number, home, &world.plan);
            world.clients.push(client);
            let at = SECOND + world.chance.below(world.plan.client_gap);
            world.push(at, NOBODY, Event::Client(number));
        }
        world.push(3 * SECOND, NOBODY, Event::Chaos);
        world
    }

    fn add_node(&mut self, id: NodeId) {
        let drift = self.chance.between(0, 2 * self.plan.drift) as i64 - self.plan.drift as i64;
        let offset = self.chance.between(1_000 * SECOND, 100_000 * SECOND);
        self.nodes.push(Node {
            id,
            disk: Disk::new(Some(id.0)),
            clock: Default::default(),
            rate: Rate { offset, drift, suspended: 0, wall_ms: 1_700_000_000_000 },
            links: Default::default(),
            running: None,
            life: 0,
            paused_until: 0,
            slow: (1, 0),
            slow_disk_until: 0,
            fails_next_write: false,
            config: config_of(id.0, &self.plan),
        });
        let at = self.chance.below(300 * MILLI);
        self.push(at, self.nodes.len() - 1, Event::Boot);
    }

    pub fn push(&mut self, delay: u64, node: usize, event: Event) {
        self.seq += 1;
        let life = self.nodes.get(node).map_or(0, |node| node.life);
        self.queue.push(Reverse(Item { at: self.now + delay, seq: self.seq, node, life, event }));
    }

    pub fn fail(&mut self, what: &str) {
        if self.failure.is_none() {
            self.failure = Some(format!("at {} ms: {what}", self.now / MILLI));
        }
    }

    /// Tells who reads the story of one seed.
    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.is_told {
            println!("{:10.3} s  {}", self.now as f64 / SECOND as f64, what());
        }
    }

    /// Tells the invariants.
    pub fn tell(&mut self, fact: &Fact<'_>) {
        let mut all = std::mem::take(&mut self.invariants);
        for invariant in &mut all {
            if let Err(what) = invariant.on(fact, self) {
                let what = format!("{}: {what}", invariant.name());
                self.fail(&what);
            }
        }
        self.invariants = all;
    }

    fn run_until(&mut self, end: u64) {
        while self.failure.is_none() && self.queue.peek().is_some_and(|item| item.0.at <= end) {
            let Some(Reverse(item)) = self.queue.pop() else { return };
            self.now = item.at;
            self.take(item);
        }
        self.now = self.now.max(end);
    }

    fn take(&mut self, item: Item) {
        self.figures.events += 1;
        let n = item.node;
        if let Some(node) = self.nodes.get(n) {
            let is_of_world = matches!(item.event, Event::Crash { .. } | Event::Cut { .. });
            let is_for_any_life = is_of_world
                || matches!(item.event, Event::Boot | Event::AskToJoin | Event::SnapshotArrives { .. });
            let is_for_joiner = matches!(item.event, Event::Deliver { .. }) && node.disk.replica.is_none();
            if !is_for_any_life && !is_for_joiner && (item.life != node.life || node.running.is_none()) {
                return;
            }
            if node.paused_until > self.now && !is_of_world {
                self.queue.push(Reverse(Item { at: node.paused_until, ..item }));
                return;
            }
            node.set_clock(self.now);
        }
        self.trace = mix(mix(self.trace, item.at), n as u64);
        match item.event {
            Event::Wake => self.on_wake(n),
            Event::Deliver { from, channel, payload } => self.on_deliver(n, from, channel, &payload),
            Event::Written => self.on_written(n),
            Event::JobDone => self.on_job_done(n),
            Event::FlushDone => self.on_flush_done(n),
            Event::InstallDone { token, job } => self.on_install_done(n, token, &job),
            Event::EverySecond => self.on_second(n),
            Event::Boot => self.boot(n),
            Event::LinkUp(other) => self.set_link(n, other, true),
            Event::LinkDown(other) => self.set_link(n, other, false),
            Event::LinkSilent(other) if self.is_cut(n, other) => self.set_link(n, other, false),
            Event::LinkSilent(_) => {}
            Event::EndCuts => self.end_cuts(),
            Event::SnapshotArrives { from, from_life, to_replica, message, rows } => {
                let is_there = item.life == self.nodes[n].life && self.nodes[n].running.is_some();
                self.on_snapshot_arrives(n, (from, from_life), is_there, to_replica, &message, *rows);
            }
            Event::AskToJoin => self.ask_to_join(n),
            Event::Client(client) => self.on_client(client),
            Event::LookAfter => self.look_after(n),
            Event::Leave(client, claim) => self.leave(client, claim),
            Event::GiveUp(client, op) => self.give_up(client, op),
            Event::Chaos => self.on_chaos(),
            Event::Crash { rest } => self.crash_for(n, rest),
            Event::Cut { to, until, holds } => self.cut(n, to, until, holds),
            Event::Tell(event) => self.post(n, *event),
        }
    }

    // ---- lives ------------------------------------------------------------------------------------

    fn boot(&mut self, n: usize) {
        let now = self.now;
        let node = &mut self.nodes[n];
        if node.running.is_some() {
            return;
        }
        if node.disk.full_until > now {
            let wait = node.disk.full_until - now;
            return self.push(wait, n, Event::Boot);
        }
        if node.disk.replica.is_none() {
            return self.push(100 * MILLI, n, Event::AskToJoin);
        }
        node.set_clock(now);
        let is_first = node.id.0 == node.disk.replica.unwrap_or(0);
        let members: Vec<NodeId> = self.nodes.iter().map(|node| node.id).filter(|_| is_first).collect();
        match self.nodes[n].boot(&members) {
            Ok(running) => {
                self.say(|| {
                    let core = running.driver.core();
                    let (term, last, commit) = (core.term(), core.last_index(), core.commit_index());
                    let applied = running.applied();
                    format!("node {} starts as replica {}: term {term}, applied {applied}, commit {commit}, last {last}, {:?}", n + 1, running.replica, core.conf_state())
                });
                self.nodes[n].running = Some(running);
            }
            Err(BootFailure::Damaged) => {
                self.coverage.saw("a log that ends before its watermark is not used any more");
                self.lose_disk(n);
                return self.push(100 * MILLI, n, Event::AskToJoin);
            }
            Err(BootFailure::Wrong(what)) => {
                return self.fail(&format!("node {} cannot start: {what}", n + 1));
            }
        }
        self.tell(&Fact::Booted(n));
        let tick = self.chance.below(50 * MILLI);
        self.push(tick, n, Event::Wake);
        self.push(SECOND, n, Event::EverySecond);
        self.push(LOOK_AFTER, n, Event::LookAfter);
        self.connect(n);
    }

    /// Links to all that can be reached come up.
    fn connect(&mut self, n: usize) {
        for other in 0..self.nodes.len() {
            let is_linked = self.nodes[n].links.is_connected(self.nodes[other].id)
                && self.nodes[other].links.is_connected(self.nodes[n].id);
            if other != n && !is_linked && !self.is_cut(n, other) {
                let (at, later) = (self.chance.between(MILLI, 200 * MILLI), self.chance.below(5 * MILLI));
                self.push(at, n, Event::LinkUp(other));
                self.push(at + later, other, Event::LinkUp(n));
            }
        }
    }

    pub fn is_cut(&self, a: usize, b: usize) -> bool {
        self.blocked.contains_key(&(a, b)) || self.blocked.contains_key(&(b, a))
    }

    fn set_link(&mut self, n: usize, other: usize, is_up: bool) {
        let id = self.nodes[other].id;
        let election_timeout = Millis(self.plan.election_ms);
        let is_there = self.nodes[other].running.is_some() || self.nodes[other].disk.replica.is_none();
        if is_up && (!is_there || self.is_cut(n, other)) {
            return;
        }
        let node = &self.nodes[n];
        if node.links.is_connected(id) == is_up {
            return;
        }
        node.links.set(id, is_up);
        let event = if is_up {
            DriverEvent::PeerUp { node: id, election_timeout }
        } else {
            DriverEvent::PeerDown(id)
        };
        self.post(n, event);
    }

    /// The process ends. Of what was being written a part is there.
    pub fn crash(&mut self, n: usize) {
        let Some(running) = self.nodes[n].running.take() else { return };
        self.nodes[n].life += 1;
        self.say(|| format!("node {} crashes", n + 1));
        if running.driver.core().is_leader() {
            self.coverage.saw("a leader crashes");
        }
        let kept = {
            let mut log = self.nodes[n].disk.log.lock();
            let writing = std::mem::take(&mut log.writing);
            let kept = self.chance.below(writing.len() as u64 + 1) as usize;
            if kept < writing.len() {
                self.coverage.saw("a crash loses what was being written");
            }
            writing.into_iter().take(kept).for_each(|persist| log.write(persist));
            kept
        };
        self.trace = mix(self.trace, kept as u64);
        for job in &running.flush_jobs {
            // Rows that were handed over may have reached the disk by themselves.
            if let FlushJob::Rows { .. } = job {
                self.coverage.saw("a crash loses rows that were being written");
            }
        }
        if let Some(name) = &running.installing {
            self.coverage.saw("a crash while a snapshot is put in place");
            self.nodes[n].disk.incoming.remove(name);
        }
        for (op, _) in running.waiting {
            self.settle(op, Known::InDoubt, None);
        }
        for wait in running.lock_waits {
            self.end_lock_wait(wait.client);
        }
        let node = &mut self.nodes[n];
        node.disk.incoming.clear();
        node.disk.copies.clear();
        node.paused_until = 0;
        for other in 0..self.nodes.len() {
            let id = self.nodes[other].id;
            self.nodes[n].links.set(id, false);
            if other != n {
                let delay = self.chance.below(5 * MILLI);
                self.push(delay, other, Event::LinkDown(n));
            }
        }
        self.nodes[n].links.take();
    }

    fn crash_for(&mut self, n: usize, rest: u64) {
        self.crash(n);
        self.push(rest, n, Event::Boot);
    }

    /// Everything on the disk is gone. It comes back under another replica id.
    pub fn lose_disk(&mut self, n: usize) {
        self.crash(n);
        let boots = self.nodes[n].disk.boots;
        self.journal.lost_replica(self.nodes[n].disk.replica);
        self.nodes[n].disk = Disk::new(None);
        // Names of sessions begin with the replica, so counting may begin anew; nonces must differ.
        self.nodes[n].disk.boots = boots;
    }

    fn ask_to_join(&mut self, n: usize) {
        let node = &self.nodes[n];
        if node.disk.replica.is_some() || node.running.is_some() {
            return;
        }
        let candidates: Vec<usize> = (0..self.nodes.len())
            .filter(|other| *other != n && self.nodes[*other].running.is_some() && !self.is_cut(n, *other))
            .collect();
        self.push(SECOND, n, Event::AskToJoin);
        if candidates.is_empty() {
            return;
        }
        let to = self.chance.of(&candidates);
        let command = AdminCommand::Join {
            node: self.nodes[n].id,
            host: "h".to_owned(),
            port: 1,
            nonce: self.nodes[n].life,
        };
        let payload = Request::Admin { id: self.nodes[n].life, command }.encode();
        let delay = self.chance.tail(self.plan.delay);
        self.push(delay, to, Event::Deliver { from: n, channel: Channel::Request, payload: payload.into() });
    }

    // ---- a node at work ---------------------------------------------------------------------------

    fn post(&mut self, n: usize, event: DriverEvent) {
        if let Some(running) = &self.nodes[n].running {
            running.shared.events.post(event);
            self.sweep(n);
        }
    }

    /// Sweeps the driver and does what follows, until nothing is left.
    fn sweep(&mut self, n: usize) {
        loop {
            let Some(running) = &mut self.nodes[n].running else { return };
            let mut events = Vec::new();
            running.shared.events.take(&mut events);
            let swept = catch_unwind(AssertUnwindSafe(|| running.driver.sweep(&mut events)));
            if let Err(panic) = swept {
                let what = text_of(panic.as_ref());
                return self.fail(&format!("node {} stops: {what}", n + 1));
            }
            self.send_mail(n);
            self.take_jobs(n);
            self.tell(&Fact::Swept(n));
            self.settle_waiting(n);
            self.settle_lock_waits(n);
            self.confirm(n);
            let Some(running) = &self.nodes[n].running else { return };
            if running.shared.events.is_empty() || self.failure.is_some() {
                return;
            }
        }
    }

    fn on_wake(&mut self, n: usize) {
        self.sweep(n);
        self.flush_when_due(n);
        if let Some(running) = &self.nodes[n].running {
            let wait = running.driver.time_to_wait().as_nanos() as u64;
            let real = self.nodes[n].rate.real(wait).max(MILLI);
            self.push(real, n, Event::Wake);
        }
    }

    fn slowness(&self, n: usize) -> u64 {
        let (factor, until) = self.nodes[n].slow;
        if until > self.now { factor } else { 1 }
    }

    /// True while a node is slow, or may still be at what it began then.
    pub fn was_slow(&self) -> bool {
        self.nodes.iter().any(|node| node.slow.1.max(node.slow_disk_until) + WRITTEN_WITHIN > self.now)
    }

    fn take_jobs(&mut self, n: usize) {
        let Some(running) = &mut self.nodes[n].running else { return };
        let (mut persists, mut jobs, mut snapshots) = (Vec::new(), Vec::new(), Vec::new());
        if !running.is_writing {
            running.writer.take(&mut persists);
        }
        running.apply.take(&mut jobs);
        running.jobs.extend(jobs);
        running.snapshots.take(&mut snapshots);
        let writing: Vec<_> = persists
            .into_iter()
            .filter_map(|job| match job {
                WriterJob::Persist(persist) => Some(persist),
                WriterJob::Stop => None,
            })
            .collect();
        if !writing.is_empty() {
            running.is_writing = true;
            self.nodes[n].disk.log.lock().writing = writing;
            let mut delay = (self.chance.tail(self.plan.sync) * self.slowness(n)).min(WRITTEN_WITHIN);
            if self.nodes[n].slow_disk_until > self.now {
                delay += self.chance.between(50 * MILLI, 600 * MILLI);
            }
            self.push(delay, n, Event::Written);
        }
        self.work(n);
        for event in snapshots {
            self.on_snapshot_event(n, event);
        }
    }

    fn on_written(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if node.fails_next_write || node.disk.full_until > self.now {
            // Whether it was written nobody knows: the process ends.
            node.fails_next_write = false;
            self.coverage.saw("a failed write ends a process");
            let rest = self.chance.between(100 * MILLI, 3 * SECOND);
            return self.crash_for(n, rest);
        }
        let mut log = node.disk.log.lock();
        let writing = std::mem::take(&mut log.writing);
        let token = writing.last().map(|persist| persist.token);
        let mut written: Vec<Entry> = Vec::new();
        for persist in writing {
            if persist.replaced.is_some() {
                self.coverage.saw("entries that were not committed are replaced");
            }
            written.extend(persist.entries.iter().cloned());
            log.write(persist);
        }
        drop(log);
        if let Some(running) = &mut self.nodes[n].running {
            running.is_writing = false;
        }
        self.tell(&Fact::Written { node: n, entries: &written });
        if let Some(token) = token {
            self.post(n, DriverEvent::Persisted(token));
        }
    }

    /// What the flusher does every second: the log's end becomes the watermark.
    fn on_second(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if let Some(end) = node.disk.log.lock().end() {
            node.disk.watermark = node.disk.watermark.max(Some(end));
        }
        self.connect(n);
        self.push(SECOND, n, Event::EverySecond);
    }

    // ---- the apply thread -------------------------------------------------------------------------

    fn work(&mut self, n: usize) {
        let slowness = self.slowness(n);
        let Some(running) = &mut self.nodes[n].running else { return };
        if !running.is_applying && !running.jobs.is_empty() {
            running.is_applying = true;
            let delay = self.chance.tail(self.plan.apply) * slowness;
            self.push(delay, n, Event::JobDone);
        }
    }

    fn on_job_done(&mut self, n: usize) {
        let Some(running) = &mut self.nodes[n].running else { return };
        running.is_applying = false;
        let waits = matches!(
            running.jobs.front(),
            Some(ApplyMessage::Checkpoint | ApplyMessage::Install { .. }) if running.is_flusher_busy()
        );
        if waits {
            return self.work(n);
        }
        match running.jobs.pop_front() {
            Some(ApplyMessage::Job(job)) => {
                self.apply(n, job);
                // What came meanwhile is mostly done in one go.
                while self.chance.is(900_000)
                    && let Some(running) = &mut self.nodes[n].running
                    && let Some(ApplyMessage::Job(job)) =
                        running.jobs.pop_front_if(|job| matches!(job, ApplyMessage::Job(_)))
                {
                    self.apply(n, job);
                }
            }
            Some(ApplyMessage::Checkpoint) => running.applier.checkpoint(),
            Some(ApplyMessage::Install { token, job }) => {
                running.applier.discard_changes();
                running.installing = Some(job.incoming.clone());
                running.is_applying = true;
                let delay = self.chance.tail(20 * MILLI);
                self.push(delay, n, Event::InstallDone { token, job: Box::new(job) });
            }
            Some(ApplyMessage::Stop) | None => {}
        }
        self.flush_when_due(n);
        self.work(n);
        self.sweep(n);
    }

    /// Applies a job, or a part of it: readers see what is applied while the rest is under way.
    fn apply(&mut self, n: usize, mut job: ApplyJob) {
        let all = job.entries.len();
        let mut count =
            if self.chance.is(800_000) { all } else { self.chance.between(1, all as u64) as usize };
        // Digests are compared where the journal has one.
        let applied = self.nodes[n].running.as_ref().map_or(0, |running| running.applied());
        if let Some(stop) = (1..=count as u64).find(|more| Journal::has_digest(applied + more)) {
            count = stop as usize;
        }
        let (entries, batches) = (job.entries.split_off(count), job.batches.split_off(count));
        let rest = ApplyJob { entries, batches, changes: job.changes.clone() };
        let in_term = self.nodes[n].running.as_ref().map_or(0, |running| running.driver.core().term());
        for entry in &job.entries {
            self.trace = mix(mix(mix(self.trace, n as u64), entry.index), entry.term);
            let change = job.changes.get(&entry.index);
            let is_first = match self.journal.take(
                entry,
                change,
                (self.now, in_term),
                &mut self.operations,
                &mut self.coverage,
            ) {
                Ok(is_first) => is_first,
                Err(what) => return self.fail(&what),
            };
            self.tell(&Fact::Applies { node: n, entry, is_first });
        }
        let Some(running) = &mut self.nodes[n].running else { return };
        running.applier.apply_and_tell(job);
        if !rest.entries.is_empty() {
            running.jobs.push_front(ApplyMessage::Job(rest));
        }
        self.tell(&Fact::Applied(n));
        let slowest = self.applied().into_iter().flatten().min().unwrap_or(0);
        self.journal.replay.forget_before(slowest);
    }

    // ---- the flusher ------------------------------------------------------------------------------

    fn flush_when_due(&mut self, n: usize) {
        let Some(running) = &mut self.nodes[n].running else { return };
        if !running.is_flusher_busy() && running.installing.is_none() {
            running.applier.flush_when_due();
        }
        let mut jobs = Vec::new();
        running.flusher.take(&mut jobs);
        running.flush_jobs.extend(jobs);
        self.flush(n);
    }

    fn flush(&mut self, n: usize) {
        let Some(running) = &mut self.nodes[n].running else { return };
        if !running.is_flushing && !running.flush_jobs.is_empty() {
            running.is_flushing = true;
            let delay = self.chance.tail(self.plan.sync);
            self.push(delay, n, Event::FlushDone);
        }
    }

    fn on_flush_done(&mut self, n: usize) {
        let is_written_out = self.chance.is(300_000);
        self.next_name += 1;
        let name = format!("/nowhere/{}", self.next_name);
        let node = &mut self.nodes[n];
        let Some(running) = &mut node.running else { return };
        running.is_flushing = false;
        let disk = &mut node.disk;
        match running.flush_jobs.pop_front() {
            Some(FlushJob::Rows { rows, index, .. }) => {
                rows.write_to(&mut disk.rows);
                disk.rows_index = index.0;
                running.shared.counters.set_flushed(index);
                running.flusher_busy.store(false, atomic::Ordering::Relaxed);
                let purges = index.0 - disk.purged >= self.plan.purge_entries;
                if purges || is_written_out {
                    // Sometimes memory goes to disk by itself.
                    disk.flushed = disk.rows.clone();
                }
                if purges {
                    let up_to = index.0.min(running.shared.keep_from().saturating_sub(1));
                    if up_to > disk.purged {
                        running.shared.events.post(DriverEvent::Purged(up_to));
                        disk.log.lock().entries.retain(|at, _| *at > up_to);
                        disk.purged = up_to;
                    }
                }
            }
            Some(FlushJob::Checkpoint(job)) => {
                disk.copies.push_back((name.clone(), disk.rows.clone()));
                if disk.copies.len() > 3 {
                    disk.copies.pop_front();
                }
                let path = PathBuf::from(name);
                running.shared.events.post(DriverEvent::SnapshotMade { job, path });
            }
            Some(FlushJob::Install { .. } | FlushJob::GiveBack { .. } | FlushJob::Stop) | None => {}
        }
        self.flush(n);
        self.sweep(n);
    }

    fn on_install_done(&mut self, n: usize, token: u64, job: &InstallJob) {
        let vote = (job.hard_state.term, job.hard_state.vote, job.hard_state.commit);
        self.nodes[n].install(&job.incoming, job.index.0, job.term.0, vote);
        let rows = self.nodes[n].disk.rows.clone();
        let state = match State::load(&rows) {
            Ok(state) if state.meta().applied == job.index => state,
            Ok(state) => {
                let found = state.meta().applied;
                return self.fail(&format!("a snapshot of index {} holds rows of {found}", job.index));
            }
            Err(error) => return self.fail(&format!("a snapshot cannot be loaded: {error}")),
        };
        self.coverage.saw("a snapshot is put in place");
        self.say(|| format!("node {} has put a snapshot of {} in place", n + 1, job.index));
        let Some(running) = &mut self.nodes[n].running else { return };
        running.shared.counters.set_flushed(job.index);
        running.installing = None;
        running.is_applying = false;
        running.applier.installed(token, Box::new(state));
        self.tell(&Fact::Applied(n));
        self.work(n);
        self.sweep(n);
    }

    fn on_snapshot_event(&mut self, n: usize, event: SnapshotEvent) {
        match event {
            SnapshotEvent::Send { to, to_replica, checkpoint, message, .. } => {
                let path = checkpoint.to_string_lossy().into_owned();
                let copy = self.nodes[n].disk.copies.iter().find(|(name, _)| *name == path);
                let rows = copy.map(|(_, rows)| rows.clone());
                self.say(|| {
                    format!(
                        "node {} sends replica {to_replica} the snapshot {path}, there: {}",
                        n + 1,
                        rows.is_some()
                    )
                });
                let to = to.0 as usize - 1;
                let is_lost = self.chance.is(100_000);
                match rows {
                    Some(rows) if !is_lost && !self.is_cut(n, to) => {
                        let delay = self.chance.between(MILLI, 300 * MILLI);
                        let (from_life, rows) = (self.nodes[n].life, Box::new(rows));
                        let event = Event::SnapshotArrives { from: n, from_life, to_replica, message, rows };
                        self.push(delay, to, event);
                    }
                    _ => {
                        self.coverage.saw("a snapshot is not sent to its end");
                        if let Some(running) = &self.nodes[n].running {
                            running
                                .shared
                                .events
                                .post(DriverEvent::SnapshotSent { to: to_replica, ok: false });
                        }
                    }
                }
            }
            SnapshotEvent::Release { incoming_dir } => {
                self.nodes[n].disk.incoming.remove(&incoming_dir);
            }
            SnapshotEvent::Message { .. }
            | SnapshotEvent::PeerDown(_)
            | SnapshotEvent::Cancel { .. }
            | SnapshotEvent::Stop => {}
        }
    }

    fn on_snapshot_arrives(
        &mut self,
        n: usize,
        (from, from_life): (usize, u64),
        is_there: bool,
        to_replica: u64,
        message: &[u8],
        rows: RowMap,
    ) {
        let is_whole = is_there && !self.is_cut(n, from);
        self.say(|| format!("a snapshot of node {} arrives at node {}, whole: {is_whole}", from + 1, n + 1));
        if is_whole {
            self.next_name += 1;
            let incoming = format!("in{}", self.next_name);
            self.nodes[n].disk.incoming.insert(incoming.clone(), rows);
            match message_codec::decode_message(message) {
                Ok(message) => {
                    let message = Box::new(message);
                    self.post(n, DriverEvent::SnapshotReceived { message, incoming });
                }
                Err(error) => return self.fail(&format!("the message of a snapshot: {error}")),
            }
        }
        if self.nodes[from].life == from_life {
            let event = Box::new(DriverEvent::SnapshotSent { to: to_replica, ok: is_whole });
            self.push(0, from, Event::Tell(event));
        }
    }

    // ---- the network ------------------------------------------------------------------------------

    fn send_mail(&mut self, n: usize) {
        for (to, channel, payload) in self.nodes[n].links.take() {
            self.figures.messages += 1;
            let to = to.0 as usize - 1;
            let mut delay = self.chance.tail(self.plan.delay) * self.slowness(n);
            if let Some(block) = self.blocked.get(&(n, to)) {
                if !block.holds {
                    continue;
                }
                delay += block.until.saturating_sub(self.now);
            }
            if self.chance.is(self.plan.loss) {
                continue;
            }
            let payload = Bytes::from(payload);
            delay += self.catch(n, to, channel, &payload);
            if self.chance.is(self.plan.twice) {
                let later = delay + self.chance.tail(20 * self.plan.delay);
                self.push(later, to, Event::Deliver { from: n, channel, payload: payload.clone() });
            }
            self.push(delay, to, Event::Deliver { from: n, channel, payload });
        }
    }

    fn on_deliver(&mut self, n: usize, from: usize, channel: Channel, payload: &Bytes) {
        let sender = self.nodes[from].id;
        match decode(sender, channel, payload) {
            Ok(Arrived::Event(event)) => self.post(n, event),
            Ok(Arrived::Admin { id, command }) => self.on_admin(n, from, id, command),
            Ok(Arrived::AdminReply { result, .. }) => self.on_joined(n, &result),
            Ok(_) => {}
            Err(error) => self.fail(&format!("node {} cannot read what {sender} sent: {error}", n + 1)),
        }
    }

    fn on_admin(&mut self, n: usize, from: usize, id: u64, command: AdminCommand) {
        let AdminCommand::Join { node, host, port, nonce } = command else { return };
        let links = Arc::clone(&self.nodes[n].links);
        let to = self.nodes[from].id;
        let done = AdminDone::new(move |result| {
            // Who was refused asks again; and a node that ends says nothing more.
            if result.is_err() {
                return;
            }
            // Over a link of a node that is not up yet.
            links.set(to, true);
            let sent = links.send(to, Channel::Request, Request::AdminReply { id, result }.encode());
            assert!(sent.is_ok(), "the link was made just now");
        });
        let address = NodeAddress { node, host, port };
        self.post(n, DriverEvent::Join { node, nonce, address, done });
    }

    /// The answer reaches a process that is not the replica yet.
    fn on_joined(&mut self, n: usize, result: &Result<Vec<u8>, String>) {
        let node = &mut self.nodes[n];
        if node.running.is_some() || node.disk.replica.is_some() {
            return;
        }
        if let Ok(answer) = result
            && let Ok(Some(replica)) = decode_joined(answer, node.life)
        {
            node.disk.replica = Some(replica);
            self.coverage.saw("a node without its disk gets a new replica id");
            self.push(MILLI, n, Event::Boot);
        }
    }

    /// Cuts the way from one node to another.
    pub fn cut(&mut self, from: usize, to: usize, until: u64, holds: bool) {
        if self.is_calm || until <= self.now {
            return;
        }
        self.blocked.insert((from, to), Block { until, holds });
        if until - self.now > LINK_NOTICES {
            self.push(LINK_NOTICES, from, Event::LinkSilent(to));
            self.push(LINK_NOTICES, to, Event::LinkSilent(from));
        }
    }

    /// Cuts that are over end, and links come back.
    pub fn end_cuts(&mut self) {
        let (now, is_calm) = (self.now, self.is_calm);
        let over: Vec<(usize, usize)> = self
            .blocked
            .iter()
            .filter(|(_, block)| is_calm || block.until <= now)
            .map(|(way, _)| *way)
            .collect();
        for (from, to) in over {
            self.blocked.remove(&(from, to));
            if !self.is_cut(from, to) {
                let at = self.chance.between(MILLI, 500 * MILLI);
                self.push(at, from, Event::LinkUp(to));
                self.push(at + MILLI, to, Event::LinkUp(from));
            }
        }
    }

    // ---- clients ----------------------------------------------------------------------------------

    fn on_client(&mut self, c: usize) {
        if self.is_closing || self.clients[c].current.is_some() || self.clients[c].claim.is_some() {
            return;
        }
        if self.quiet_until > self.now {
            let wait = self.quiet_until - self.now;
            return self.push(wait, NOBODY, Event::Client(c));
        }
        let gap = self.plan.client_gap;
        let n = match self.clients[c].home {
            Some(home) => home,
            None => self.chance.below(self.nodes.len() as u64) as usize,
        };
        if self.nodes[n].running.is_none() || self.nodes[n].paused_until > self.now {
            let gap = self.chance.between(gap / 2, gap * 2);
            return self.push(gap, NOBODY, Event::Client(c));
        }
        self.begin(c, n);
    }

    /// A client asks a node for something.
    fn begin(&mut self, c: usize, n: usize) {
        let op = self.operations.len() as u64;
        let ask = self.clients[c].ask(op, &self.plan, &mut self.chance);
        self.figures.operations += 1;
        self.operations.push(Operation {
            client: c,
            ask: ask.clone(),
            invoked: self.now,
            told: self.journal.told,
            returned: None,
            known: Known::Nothing,
            index: None,
            executed: None,
        });
        self.clients[c].current = Some((op, n));
        if let Err(what) = self.journal.replay.invoke(op, self.now) {
            self.fail(&what);
        }
        self.push(PATIENCE, NOBODY, Event::GiveUp(c, op));
        self.nodes[n].set_clock(self.now);
        let clock = Arc::clone(&self.nodes[n].clock);
        let Some(running) = &mut self.nodes[n].running else { return };
        match ask {
            Ask::Write(_) | Ask::Atomic(..) => {
                let batch = batch_of(c, &ask);
                let (sender, receiver) = oneshot::channel();
                running.waiting.push((op, Waiting::Write(receiver)));
                self.post(n, DriverEvent::Submit(Submission::new(batch, Some(sender))));
            }
            Ask::Read(_) if running.shared.may_read(clock.as_ref()) => {
                self.coverage.saw("a read under the lease");
                self.read(n, op);
            }
            Ask::Read(_) => {
                let (sender, receiver) = oneshot::channel();
                running.waiting.push((op, Waiting::Barrier(receiver)));
                self.post(n, DriverEvent::Barrier(sender));
            }
        }
    }

    // ---- clients that wait for locks and messages ------------------------------------------------------------------

    /// The client of an operation was told that it waits.
    fn begin_lock_wait(&mut self, c: usize, n: usize, claim: u64) {
        let Some(running) = &mut self.nodes[n].running else { return };
        let receiver = running.shared.claims.claim(ClaimId(claim));
        running.lock_waits.push(LockWait { client: c, claim: ClaimId(claim), receiver });
        self.clients[c].claim = Some((claim, n));
        if self.chance.is(200_000) {
            let after = self.chance.below(8 * SECOND);
            self.push(after, NOBODY, Event::Leave(c, claim));
        }
    }

    /// Its connection ends, and its node notices.
    fn leave(&mut self, c: usize, claim: u64) {
        let Some((_, n)) = self.clients[c].claim.filter(|(of, _)| *of == claim) else { return };
        if let Some(running) = &mut self.nodes[n].running {
            for mut wait in running.lock_waits.extract_if(.., |wait| wait.claim.0 == claim) {
                running.shared.claims.abandon(wait.claim, &mut wait.receiver);
            }
        }
        self.end_lock_wait(c);
    }

    fn end_lock_wait(&mut self, c: usize) {
        self.clients[c].claim = None;
        let gap = self.chance.between(self.plan.client_gap / 2, self.plan.client_gap * 2);
        self.push(gap, NOBODY, Event::Client(c));
    }

    /// Proposes at once what wants to be confirmed, as the task does that looks after waits.
    fn confirm(&mut self, n: usize) {
        let now = self.nodes[n].clock.monotonic();
        let Some(running) = &self.nodes[n].running else { return };
        for batch in running.shared.claims.confirmations(now) {
            let event = DriverEvent::Submit(Submission::new(batch, None));
            let delay = self.chance.below(MILLI);
            self.push(delay, n, Event::Tell(Box::new(event)));
        }
    }

    /// True while this life of a node goes on, as the log names it.
    pub fn is_alive(&self, n: usize, life: u64) -> bool {
        let running = self.nodes.get(n).and_then(|node| node.running.as_ref());
        running.is_some_and(|running| running.log_life == life)
    }

    /// Who waits at a node that hears of no leader for long is told so, as its connection does.
    fn refuse_waits(&mut self, n: usize) {
        let patience = self.nodes[n].config.get().cluster_node_timeout;
        let Some(running) = &mut self.nodes[n].running else { return };
        let is_known = running.shared.silence.leaderless().is_some_and(|it| it <= patience);
        if is_known || running.lock_waits.is_empty() {
            return;
        }
        let claims = Arc::clone(&running.shared.claims);
        for mut wait in std::mem::take(&mut running.lock_waits) {
            claims.abandon(wait.claim, &mut wait.receiver);
            self.end_lock_wait(wait.client);
        }
        self.coverage.saw("who waits is refused for want of a leader");
        self.tell(&Fact::Refused(n));
    }

    /// What replies to an operation handed out that its client does not get: its node takes it back.
    fn lose_replies(&mut self, n: usize, op: u64, replies: &[Reply]) -> bool {
        let gifts = gifts_of(&self.operations[op as usize].ask, replies);
        let Some(running) = &self.nodes[n].running else { return false };
        let (node, life) = (n, running.log_life);
        for gift in &gifts {
            match gift {
                Gift::Locks { owner, locks } => {
                    let touched = locks.iter().map(|(key, token)| (key.clone(), *token, 1));
                    running.shared.claims.give_back(Lost::locks(0, b"default", owner, touched));
                    let lock = |(key, token): &(Bytes, u64)| Some((key.to_vec(), *token));
                    let unheard = |lock| Unheard { node, life, lock, message: None };
                    self.unheard.extend(locks.iter().map(lock).map(unheard));
                }
                Gift::Messages(messages) => {
                    for (queue, receipt) in messages {
                        let mut lost = claims::Unheard::new(0);
                        lost.add(queue.clone(), receipt.clone());
                        running.shared.claims.give_back(Lost::Messages(lost));
                        let message = Some((queue.to_vec(), receipt.to_vec()));
                        self.unheard.push(Unheard { node, life, lock: None, message });
                    }
                }
            }
        }
        !gifts.is_empty()
    }

    /// Tells clients whose wait is over, as their connections do, and what was taken back.
    fn settle_lock_waits(&mut self, n: usize) {
        let Some(running) = &mut self.nodes[n].running else { return };
        let mut over = Vec::new();
        let mut at = 0;
        while at < running.lock_waits.len() {
            match running.lock_waits[at].receiver.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => at += 1,
                outcome => over.push((running.lock_waits.remove(at), outcome.ok().flatten())),
            }
        }
        let claims = Arc::clone(&running.shared.claims);
        running.take_backs.retain_mut(|(claim, receiver)| match receiver.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => true,
            Ok(Ok(_)) => {
                claims.taken_back(*claim);
                false
            }
            // What is refused is proposed again.
            Ok(Err(_)) | Err(oneshot::error::TryRecvError::Closed) => false,
        });
        let now = running.cluster_clock.now();
        for (wait, outcome) in over {
            if let Some(Told { end: end @ (ClaimEnd::Granted(_) | ClaimEnd::Delivered(_)), until }) = outcome
            {
                if until <= now {
                    self.coverage.saw("a grant is not told since its lease is over");
                    claims.take_back(wait.claim, &end);
                } else if self.chance.is(100_000) {
                    // Its connection broke just before it was told.
                    self.coverage.saw(match &end {
                        ClaimEnd::Delivered(_) => "a delivery goes to nobody",
                        _ => "a wait is granted to nobody",
                    });
                    claims.take_back(wait.claim, &end);
                } else {
                    self.told_claims.insert(wait.claim.0);
                    self.clients[wait.client].hear_end(&end);
                }
            }
            self.end_lock_wait(wait.client);
        }
    }

    fn look_after(&mut self, n: usize) {
        self.refuse_waits(n);
        let now = self.nodes[n].clock.monotonic();
        let Some(running) = &mut self.nodes[n].running else { return };
        let mut submissions = Vec::new();
        for (claim, batch) in running.shared.claims.on_time(now) {
            let (sender, receiver) = oneshot::channel();
            if let Some(claim) = claim {
                running.take_backs.push((claim, receiver));
            }
            submissions.push(Submission::new(batch, Some(sender)));
        }
        for submission in submissions {
            self.post(n, DriverEvent::Submit(submission));
        }
        let wait = self.nodes[n].rate.real(LOOK_AFTER);
        self.push(wait, n, Event::LookAfter);
    }

    fn settle_waiting(&mut self, n: usize) {
        let Some(running) = &mut self.nodes[n].running else { return };
        let mut at = 0;
        let mut settled = Vec::new();
        while at < running.waiting.len() {
            let known = match &mut running.waiting[at].1 {
                Waiting::Write(receiver) => match receiver.try_recv() {
                    Err(oneshot::error::TryRecvError::Empty) => None,
                    Err(oneshot::error::TryRecvError::Closed) => Some(Known::InDoubt),
                    Ok(Ok(replies)) => Some(Known::Replies(replies)),
                    Ok(Err(ProposeError::OutcomeUnknown)) => Some(Known::InDoubt),
                    Ok(Err(_)) => Some(Known::NotDone),
                },
                Waiting::Barrier(receiver) => match receiver.try_recv() {
                    Err(oneshot::error::TryRecvError::Empty) => None,
                    Ok(Ok(())) => Some(Known::Nothing),
                    _ => Some(Known::NotDone),
                },
            };
            match known {
                None => at += 1,
                Some(known) => settled.push((running.waiting.remove(at).0, known)),
            }
        }
        for (op, mut known) in settled {
            if let Known::Replies(replies) = &known
                && self.chance.is(self.loses_gifts)
                && self.lose_replies(n, op, replies)
            {
                self.coverage.saw("what was given at once goes to nobody");
                known = Known::InDoubt;
            }
            if known == Known::Nothing {
                let is_leading =
                    self.nodes[n].running.as_ref().is_some_and(|it| it.driver.core().is_leader());
                let what = if is_leading { "a barrier at the leader" } else { "a barrier at a follower" };
                self.coverage.saw(what);
                self.read(n, op);
            } else {
                self.settle(op, known, None);
            }
        }
    }

    /// Reads from what is applied at a node, as its connections do.
    fn read(&mut self, n: usize, op: u64) {
        let Ask::Read(words) = self.operations[op as usize].ask.clone() else { return };
        let client = self.operations[op as usize].client;
        if self.clients[client].current.is_none_or(|(current, _)| current != op) {
            // Its client gave up.
            return;
        }
        let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        let Some(running) = &self.nodes[n].running else { return };
        let state = running.state.read();
        let now = running.cluster_clock.now();
        if state.is_due(0, words[1], now) {
            drop(state);
            self.coverage.saw("a read meets a key that is due");
            return self.settle(op, Known::NotDone, None);
        }
        let context = ReadContext {
            state: &state,
            db: 0,
            user: b"default",
            now,
            wall: running.cluster_clock.wall(),
            seed: 0,
            bounds: Bounds::DEFAULT,
        };
        let spec = table::find(words[0]).expect("clients know the commands");
        let Execute::Read(execute) = spec.execute else { panic!("it is a read") };
        let reply = execute(&context, &words).unwrap_or_else(|error| Reply::error(error.to_string()));
        let index = state.meta().applied.0;
        drop(state);
        let answer = ReadAnswer { index, now: now.0, db: 0, words: &words, reply: &reply };
        let is_right = self.journal.replay.read(op, self.now, &answer);
        self.settle(op, Known::Replies(vec![reply]), Some(index));
        if let Err(what) = is_right {
            self.fail(&what);
        }
    }

    fn give_up(&mut self, c: usize, op: u64) {
        if self.clients[c].current.is_some_and(|(current, _)| current == op) {
            self.settle(op, Known::InDoubt, None);
        }
    }

    /// A client learns what became of its operation.
    fn settle(&mut self, op: u64, known: Known, read_at: Option<u64>) {
        let operation = &mut self.operations[op as usize];
        let c = operation.client;
        if self.clients[c].current.is_none_or(|(current, _)| current != op) {
            return;
        }
        let n = self.clients[c].current.take().map_or(NOBODY, |(_, n)| n);
        operation.known = known;
        operation.returned = Some(self.now);
        if read_at.is_some() {
            operation.index = read_at;
        }
        match &operation.known {
            Known::Replies(replies) => self.clients[c].hear(&operation.ask, replies),
            Known::NotDone => self.coverage.saw("a client is told that nothing was done"),
            Known::InDoubt => self.coverage.saw("a client is left in doubt"),
            Known::Nothing => {}
        }
        let answer = match &operation.known {
            Known::Replies(replies) if read_at.is_none() => Some(Answer::Replies(replies.clone())),
            Known::NotDone => Some(Answer::NotDone),
            Known::InDoubt => Some(Answer::Unknown),
            Known::Replies(_) | Known::Nothing => None,
        };
        let operation = operation.clone();
        if let Some(Err(what)) = answer.map(|answer| self.journal.replay.answer(op, self.now, &answer)) {
            self.fail(&what);
        }
        self.tell(&Fact::Answered { op, operation: &operation });
        if let (Known::Replies(_), Some(index)) = (&operation.known, self.operations[op as usize].index) {
            self.journal.told = self.journal.told.max(index);
        }
        let claim = match &operation.known {
            Known::Replies(replies) => replies.iter().find_map(|reply| match reply {
                Reply::Waiting(claim) => Some(*claim),
                _ => None,
            }),
            Known::Nothing | Known::NotDone | Known::InDoubt => None,
        };
        if let Some(claim) = claim {
            return self.begin_lock_wait(c, n, claim);
        }
        let gap = self.chance.between(self.plan.client_gap / 2, self.plan.client_gap * 2);
        self.push(gap, NOBODY, Event::Client(c));
    }

    // ---- healing ----------------------------------------------------------------------------------

    /// Every fault ends; within a while all nodes stand at the same index, and every node serves.
    fn heal(&mut self) {
        if self.failure.is_some() {
            return;
        }
        self.is_calm = true;
        self.end_cuts();
        for n in 0..self.nodes.len() {
            let node = &mut self.nodes[n];
            (node.slow.1, node.slow_disk_until) = (0, 0);
            (node.fails_next_write, node.disk.full_until) = (false, 0);
            self.push(MILLI, n, Event::Boot);
        }
        (self.plan.loss, self.plan.twice) = (0, 0);
        // What is lost now must be back at the end.
        self.loses_gifts = 200_000;
        let end = self.now + HEALED_WITHIN;
        while self.failure.is_none() && self.now < end - 5 * SECOND {
            self.run_until(self.now + SECOND);
        }
        self.is_closing = true;
        self.run_until(end);
        // The group itself still proposes now and then.
        let mut patience = 50;
        while patience > 0 && self.failure.is_none() && !self.is_even() {
            patience -= 1;
            self.run_until(self.now + 20 * MILLI);
        }
        if self.failure.is_some() {
            return;
        }
        if !self.is_even() {
            let (newest, applied) = (self.journal.last(), self.applied());
            let what = format!("not healed: {newest} is applied somewhere, the nodes stand at {applied:?}");
            return self.fail(&what);
        }
        let open: Vec<u64> =
            self.clients.iter().filter_map(|client| client.current).map(|(op, _)| op).collect();
        if !open.is_empty() {
            return self.fail(&format!("not healed: operations {open:?} have no answer"));
        }
        self.loses_gifts = 0;
        self.serve_everywhere();
        if let Err(what) = self.journal.replay.finish() {
            self.fail(&what);
        }
        // The waits of serving clients end, too.
        self.is_closing = true;
        self.run_until(self.now + 5 * SECOND);
        self.tell(&Fact::Healed);
    }

    fn applied(&self) -> Vec<Option<u64>> {
        let applied = |node: &Node| node.running.as_ref().map(|running| running.applied());
        self.nodes.iter().map(applied).collect()
    }

    /// True when every node has applied everything.
    fn is_even(&self) -> bool {
        self.applied().iter().all(|applied| *applied == Some(self.journal.last()))
    }

    /// A write and a read at each node.
    fn serve_everywhere(&mut self) {
        self.is_closing = false;
        for n in 0..self.nodes.len() {
            let before = self.operations.len();
            let mut left = 6;
            while left > 0 && self.failure.is_none() {
                left -= 1;
                if let Some((claim, _)) = self.clients[0].claim {
                    self.leave(0, claim);
                }
                self.begin(0, n);
                self.is_closing = true;
                self.run_until(self.now + 2 * SECOND);
                self.is_closing = false;
            }
            let asked = &self.operations[before..];
            let is_served =
                |operation: &Operation| !matches!(operation.known, Known::InDoubt | Known::Nothing);
            if self.failure.is_none() && !asked.iter().all(is_served) {
                let what = format!("not healed: node {} does not serve: {asked:?}", n + 1);
                return self.fail(&what);
            }
        }
    }

    /// A short time.
    pub fn moment(&mut self) -> u64 {
        self.chance.between(100 * MICRO, 20 * MILLI)
    }
}
