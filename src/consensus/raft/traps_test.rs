//! What must not bring a core down, nor make it say something wrong: each known panic of raft-rs, each way in which
//! a proposal, a read barrier or a lease can go wrong, and messages that nobody in his senses sends.
//!
//! [`Net`] is three cores and more without time of its own: messages wait in a queue until they are delivered,
//! writes are durable and entries applied at once unless a test holds them back. After each trap the group must
//! still agree on new entries.
//!
//! `TRAPS_MESSAGES=20000000` fuzzes longer, `TRAPS_SEED=5` elsewhere.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;

use raft::StateRole;
use raft::eraftpb::ConfChange;
use raft::eraftpb::ConfChangeSingle;
use raft::eraftpb::ConfChangeTransition;
use raft::eraftpb::ConfChangeType;
use raft::eraftpb::ConfChangeV2;
use raft::eraftpb::ConfState;
use raft::eraftpb::Entry;
use raft::eraftpb::EntryType;
use raft::eraftpb::HardState;
use raft::eraftpb::Message;
use raft::eraftpb::MessageType;
use raft::eraftpb::Snapshot;

use crate::consensus::raft::group_core::Committed;
use crate::consensus::raft::group_core::CoreOptions;
use crate::consensus::raft::group_core::GroupCore;
use crate::consensus::raft::group_core::Input;
use crate::consensus::raft::group_core::Output;
use crate::consensus::raft::group_core::Persist;
use crate::consensus::raft::log_cache::LogCache;
use crate::consensus::raft::message_codec;
use crate::types::Boottime;

const TICK: u64 = 50;
const ELECTION_TICKS: usize = 10;

fn options(replica: u64) -> CoreOptions {
    CoreOptions {
        replica,
        election_ticks: ELECTION_TICKS,
        heartbeat_ticks: 2,
        first_term: 0,
        tick_nanos: TICK,
        seed: 7,
    }
}

// ---- three cores without time -----------------------------------------------------------------------

/// A core and what it left behind: on disk, applied, or told.
struct Peer {
    core: GroupCore,
    log: BTreeMap<u64, Entry>,
    hard_state: HardState,
    applied: u64,
    applied_term: u64,
    conf: ConfState,
    /// Writes and entries that were held back.
    held: VecDeque<Persist>,
    unapplied: VecDeque<Committed>,
    holds_writes: bool,
    holds_apply: bool,
    holds_install: bool,
    installing: Option<u64>,
    reads: Vec<(u64, u64)>,
    quarantined: Vec<&'static str>,
    snapshots: Vec<Message>,
    roles: Vec<(StateRole, u64)>,
}

impl Peer {
    fn new(id: u64, voters: &[u64], now: u64) -> Peer {
        let conf = ConfState { voters: voters.to_vec(), ..ConfState::default() };
        let log = LogCache::new(HardState::default(), conf.clone(), 0, 0, Vec::new());
        Peer {
            core: GroupCore::new(&options(id), log, 0, Boottime(now)).unwrap(),
            log: BTreeMap::new(),
            hard_state: HardState::default(),
            applied: 0,
            applied_term: 0,
            conf,
            held: VecDeque::new(),
            unapplied: VecDeque::new(),
            holds_writes: false,
            holds_apply: false,
            holds_install: false,
            installing: None,
            reads: Vec::new(),
            quarantined: Vec::new(),
            snapshots: Vec::new(),
            roles: Vec::new(),
        }
    }

    fn write(&mut self, persist: Persist) {
        if let Some((from, last)) = persist.replaced {
            self.log.retain(|index, _| *index < from || *index > last);
        }
        self.log.extend(persist.entries.into_iter().map(|entry| (entry.index, entry)));
        if let Some(hard_state) = persist.hard_state {
            self.hard_state = hard_state;
        }
    }
}

struct Net {
    peers: Vec<Peer>,
    now: u64,
    queue: VecDeque<Message>,
    cut: BTreeSet<(u64, u64)>,
    next_context: u64,
}

impl Net {
    fn new(count: u64) -> Net {
        let voters: Vec<u64> = (1..=count).collect();
        let peers = voters.iter().map(|id| Peer::new(*id, &voters, 1_000)).collect();
        Net { peers, now: 1_000, queue: VecDeque::new(), cut: BTreeSet::new(), next_context: 1 }
    }

    /// A group whose first replica leads and has committed something.
    fn led(count: u64) -> Net {
        let mut net = Net::new(count);
        net.step(1, Input::Campaign);
        net.run();
        net.step(1, Input::Propose(b"first".to_vec()));
        net.run();
        net.beat();
        assert!(net.core(1).is_leader() && net.peers.iter().all(|peer| peer.applied == 2));
        net
    }

    fn peer(&mut self, id: u64) -> &mut Peer {
        &mut self.peers[id as usize - 1]
    }

    fn core(&self, id: u64) -> &GroupCore {
        &self.peers[id as usize - 1].core
    }

    /// Gives an input and takes everything that follows from it; what is for whoever gave it comes back.
    fn step(&mut self, id: u64, input: Input) -> Vec<Output> {
        let mut out = self.step_only(id, input);
        out.extend(self.drain(id));
        out
    }

    /// Gives an input without a drain.
    fn step_only(&mut self, id: u64, input: Input) -> Vec<Output> {
        let now = Boottime(self.now);
        let mut out = Vec::new();
        self.peer(id).core.step(now, input, &mut out);
        out.into_iter().filter_map(|output| self.take(id, output)).collect()
    }

    fn drain(&mut self, id: u64) -> Vec<Output> {
        let mut kept = Vec::new();
        loop {
            let mut out = Vec::new();
            self.peer(id).core.drain(&mut out);
            if out.is_empty() {
                return kept;
            }
            kept.extend(out.into_iter().filter_map(|output| self.take(id, output)));
        }
    }

    fn take(&mut self, id: u64, output: Output) -> Option<Output> {
        match output {
            Output::Send(messages) => {
                let has_snapshot =
                    messages.iter().any(|message| message.get_msg_type() == MessageType::MsgSnapshot);
                assert!(!has_snapshot, "a snapshot goes with its state, or not at all");
                self.queue.extend(messages);
            }
            Output::Persist(persist) => {
                self.peer(id).held.push_back(persist);
                if !self.peer(id).holds_writes {
                    self.write_held(id);
                }
            }
            Output::Apply(committed) => {
                self.peer(id).unapplied.push_back(committed);
                if !self.peer(id).holds_apply {
                    self.apply_held(id);
                }
            }
            Output::Install(install) => {
                self.write_held(id);
                self.apply_held(id);
                let meta = install.snapshot.get_metadata();
                let peer = self.peer(id);
                peer.log.clear();
                peer.hard_state = install.hard_state.clone();
                (peer.applied, peer.applied_term) = (meta.index, meta.term);
                peer.conf = meta.get_conf_state().clone();
                peer.installing = Some(install.token);
                if !peer.holds_install {
                    self.installed(id);
                }
            }
            Output::SnapshotWanted => {
                let snapshot = self.snapshot_of(id);
                self.step_only(id, Input::SnapshotReady(Box::new(snapshot)));
            }
            Output::SendSnapshot(message) => {
                self.step_only(id, Input::SnapshotSent { to: message.to, ok: true });
                self.peer(id).snapshots.push((*message).clone());
                self.queue.push_back(*message);
            }
            Output::Fetch(fetch) => {
                let found = self.peer(id).log.range(fetch.low..fetch.high);
                let entries = found.map(|(_, entry)| entry.clone()).collect();
                self.step_only(id, Input::Fetched { fetch, entries });
            }
            Output::ReadReady { context, index } => self.peer(id).reads.push((context, index)),
            Output::Role { role, term, .. } => self.peer(id).roles.push((role, term)),
            Output::Quarantine(why) => self.peer(id).quarantined.push(why),
            Output::Proposed { .. } | Output::Dropped => return Some(output),
        }
        None
    }

    fn snapshot_of(&mut self, id: u64) -> Snapshot {
        let peer = self.peer(id);
        let mut snapshot = Snapshot::default();
        let meta = snapshot.mut_metadata();
        (meta.index, meta.term) = (peer.applied, peer.applied_term);
        meta.set_conf_state(peer.conf.clone());
        snapshot
    }

    fn write_held(&mut self, id: u64) {
        while let Some(persist) = self.peer(id).held.pop_front() {
            let token = persist.token;
            self.peer(id).write(persist);
            self.step_only(id, Input::Persisted(token));
        }
    }

    fn apply_held(&mut self, id: u64) {
        while let Some(Committed { entries, changes }) = self.peer(id).unapplied.pop_front() {
            let peer = self.peer(id);
            for entry in &entries {
                assert_eq!(entry.index, peer.applied + 1, "replica {id} applies in order");
                (peer.applied, peer.applied_term) = (entry.index, entry.term);
            }
            if let Some((_, conf)) = changes.last() {
                peer.conf = conf.clone();
            }
            let applied = peer.applied;
            self.step_only(id, Input::Applied(applied));
        }
    }

    fn installed(&mut self, id: u64) {
        if let Some(token) = self.peer(id).installing.take() {
            self.step_only(id, Input::Installed(token));
        }
    }

    /// Starts a replica again, from what it had written; applied is what it has of the state.
    fn restart(&mut self, id: u64, applied: u64) {
        let now = self.now;
        let peer = self.peer(id);
        let entries: Vec<Entry> = peer.log.range(applied + 1..).map(|(_, entry)| entry.clone()).collect();
        let term_of = |index: u64| peer.log.get(&index).map_or(0, |entry| entry.term);
        let applied_term = if applied == peer.applied { peer.applied_term } else { term_of(applied) };
        let commit = peer.hard_state.commit.max(applied);
        let hard_state = HardState { commit, ..peer.hard_state.clone() };
        let voters = ConfState { voters: vec![1, 2, 3], ..ConfState::default() };
        let conf = if applied == peer.applied { peer.conf.clone() } else { voters };
        let log = LogCache::new(hard_state, conf.clone(), applied, applied_term, entries);
        peer.core = GroupCore::new(&options(id), log, applied, Boottime(now)).unwrap();
        (peer.applied, peer.applied_term, peer.conf) = (applied, applied_term, conf);
        peer.held.clear();
        peer.unapplied.clear();
        peer.reads.clear();
    }

    /// Delivers what waits, and what follows from it.
    fn run(&mut self) {
        for _ in 0..100_000 {
            let Some(message) = self.queue.pop_front() else { return };
            self.deliver(message);
        }
        panic!("the messages never end");
    }

    fn deliver(&mut self, message: Message) {
        let (from, to) = (message.from, message.to);
        if to >= 1 && to <= self.peers.len() as u64 && !self.cut.contains(&(from, to)) {
            self.step(to, Input::Message(Box::new(message)));
        }
    }

    /// A tick on all, and the messages that follow.
    fn tick_all(&mut self) {
        self.now += TICK;
        for id in 1..=self.peers.len() as u64 {
            self.step(id, Input::Tick);
        }
        self.run();
    }

    /// Long enough for heartbeats, not for elections.
    fn beat(&mut self) {
        (0..4).for_each(|_| self.tick_all());
    }

    fn isolate(&mut self, id: u64) {
        for other in 1..=self.peers.len() as u64 {
            self.cut.extend([(id, other), (other, id)]);
        }
    }

    fn leader(&self) -> Option<u64> {
        let leads = |peer: &&Peer| peer.core.is_leader() && peer.core.has_committed_in_term();
        self.peers.iter().filter(leads).max_by_key(|peer| peer.core.term()).map(|peer| peer.core.replica())
    }

    /// The group still agrees on something new, and everybody who is a member hears of it.
    fn goes_on(&mut self) {
        self.cut.clear();
        for id in 1..=self.peers.len() as u64 {
            let peer = self.peer(id);
            (peer.holds_writes, peer.holds_apply, peer.holds_install) = (false, false, false);
            self.write_held(id);
            self.apply_held(id);
            self.installed(id);
            self.drain(id);
        }
        for _ in 0..200 {
            self.tick_all();
            let Some(leader) = self.leader() else { continue };
            let [Output::Proposed { index, .. }] = self.step(leader, Input::Propose(b"more".to_vec()))[..]
            else {
                continue;
            };
            self.run();
            self.beat();
            let conf = self.core(leader).conf_state();
            let is_member = |peer: &&Peer| {
                [&conf.voters, &conf.learners].into_iter().any(|ids| ids.contains(&peer.core.replica()))
            };
            if self.peers.iter().filter(is_member).all(|peer| peer.applied >= index) {
                return;
            }
        }
        panic!("the group does not go on");
    }

    /// Gives a replica a message that nobody sends; the group goes on.
    fn survives(mut self, to: u64, message: Message) -> Net {
        let refused = self.core(to).refused_messages();
        self.step(to, Input::Message(Box::new(message)));
        self.run();
        assert_eq!(self.core(to).refused_messages(), refused + 1, "it was refused");
        self.goes_on();
        self
    }

    fn ask(&mut self, id: u64) -> u64 {
        self.next_context += 1;
        let context = self.next_context;
        self.step(id, Input::ReadIndex(context));
        context
    }

    fn reads(&self, id: u64) -> Vec<u64> {
        self.peers[id as usize - 1].reads.iter().map(|(context, _)| *context).collect()
    }

    fn has_lease(&self, id: u64) -> bool {
        self.now < self.core(id).lease_until().0
    }

    fn change(&mut self, id: u64, singles: &[(ConfChangeType, u64)]) -> Vec<Output> {
        self.step(id, Input::ConfChange { change: change(singles), context: Vec::new() })
    }
}

fn change(singles: &[(ConfChangeType, u64)]) -> ConfChangeV2 {
    let single = |(kind, node_id): &(ConfChangeType, u64)| {
        let mut single = ConfChangeSingle { node_id: *node_id, ..ConfChangeSingle::default() };
        single.set_change_type(*kind);
        single
    };
    ConfChangeV2 { changes: singles.iter().map(single).collect(), ..ConfChangeV2::default() }
}

fn message(kind: MessageType, from: u64, to: u64, term: u64) -> Message {
    let mut message = Message { from, to, term, ..Message::default() };
    message.set_msg_type(kind);
    message
}

fn entry(index: u64, term: u64) -> Entry {
    Entry { index, term, data: b"x".to_vec(), ..Entry::default() }
}

fn is_dropped(out: &[Output]) -> bool {
    matches!(out, [Output::Dropped])
}

fn is_proposed(out: &[Output]) -> bool {
    matches!(out, [Output::Proposed { .. }])
}

// ---- what raft-rs panics on -------------------------------------------------------------------------

#[test]
fn a_commit_beyond_the_log_puts_the_replica_into_quarantine() {
    let mut net = Net::led(3);
    let mut forged = message(MessageType::MsgHeartbeat, 1, 2, 1);
    forged.commit = 99;
    net.step(2, Input::Message(Box::new(forged)));
    assert_eq!(net.peer(2).quarantined.len(), 1);
    net.goes_on();
}

#[test]
fn an_append_never_touches_what_is_committed() {
    let mut net = Net::led(3);
    let mut forged = message(MessageType::MsgAppend, 3, 2, 5);
    (forged.index, forged.log_term, forged.entries) = (1, 1, vec![entry(2, 5)]);
    net.step(2, Input::Message(Box::new(forged)));
    net.run();
    assert_eq!((net.peer(2).log[&2].term, net.core(2).commit_index()), (1, 2));
    // Others agreed on something else in its place: they lost it.
    assert_eq!(net.peer(2).quarantined.len(), 1);
    net.goes_on();
    // A stranger may say what he wants.
    let mut net = Net::led(3);
    let mut forged = message(MessageType::MsgHeartbeat, 77, 2, 5);
    forged.commit = 99;
    net.step(2, Input::Message(Box::new(forged)));
    assert!(net.peer(2).quarantined.is_empty());
    net.goes_on();
    // Its log ends at our commit with an older term: it cannot be a leader's.
    let mut net = Net::led(3);
    let mut forged = message(MessageType::MsgAppend, 3, 2, 5);
    (forged.index, forged.log_term, forged.entries) = (2, 0, vec![entry(3, 5)]);
    net.step(2, Input::Message(Box::new(forged)));
    assert_eq!(net.peer(2).quarantined.len(), 1);
    net.goes_on();
}

#[test]
fn entries_with_holes_or_of_impossible_terms_are_refused() {
    for entries in [
        vec![entry(5, 1)],
        vec![entry(2, 1)],
        vec![entry(3, 1), entry(5, 1)],
        vec![entry(3, 1), entry(3, 1)],
        vec![entry(3, 2)],
        vec![entry(3, 0)],
    ] {
        let mut forged = message(MessageType::MsgAppend, 1, 2, 1);
        (forged.index, forged.log_term, forged.entries) = (2, 1, entries);
        Net::led(3).survives(2, forged);
    }
}

#[test]
fn an_acknowledgement_beyond_the_log_is_refused() {
    for kind in [MessageType::MsgAppendResponse, MessageType::MsgHeartbeatResponse] {
        let mut forged = message(kind, 2, 1, 1);
        forged.index = 1_000;
        let mut net = Net::led(3).survives(1, forged);
        net.beat();
        assert!(net.peer(2).quarantined.is_empty(), "nobody is told of a commit that it cannot have");
        let mut forged = message(kind, 2, 1, net.core(1).term());
        forged.commit = 1_000;
        net.survives(1, forged);
    }
}

#[test]
fn who_lost_what_it_acknowledged_in_this_term_is_told_so_and_not_brought_up_to_date() {
    let mut net = Net::led(3);
    for _ in 0..3 {
        net.step(1, Input::Propose(b"acknowledged".to_vec()));
        net.run();
    }
    net.beat();
    let peer = net.peer(2);
    assert_eq!((peer.applied, peer.log.len()), (5, 5));
    // An old copy of its directory.
    peer.log.retain(|index, _| *index <= 2);
    peer.hard_state.commit = 2;
    net.restart(2, 2);
    net.step(1, Input::Unreachable(2));
    for _ in 0..20 {
        net.step(1, Input::Propose(b"more".to_vec()));
        net.run();
        net.tick_all();
    }
    assert_eq!(net.core(2).last_index(), 2);
    assert!(net.peer(2).quarantined.len() >= 3, "{:?}", net.peer(2).quarantined);
    assert!(net.core(1).is_leader() && net.peer(3).applied > 20);
}

#[test]
fn what_a_replica_tells_itself_or_a_leader_by_other_ways_is_refused_from_the_wire() {
    for kind in [
        MessageType::MsgHup,
        MessageType::MsgBeat,
        MessageType::MsgPropose,
        MessageType::MsgUnreachable,
        MessageType::MsgSnapStatus,
        MessageType::MsgCheckQuorum,
        MessageType::MsgTransferLeader,
        MessageType::MsgReadIndex,
        MessageType::MsgReadIndexResp,
    ] {
        for term in [0, 1, 2] {
            for entries in [vec![], vec![entry(3, 1)]] {
                let mut forged = message(kind, 2, 1, term);
                forged.entries = entries;
                Net::led(3).survives(1, forged);
            }
        }
    }
}

#[test]
fn a_message_from_nowhere_or_for_another_is_refused() {
    for (from, to) in [(0, 2), (2, 2), (1, 3), (1, 0)] {
        Net::led(3).survives(2, message(MessageType::MsgHeartbeat, from, to, 1));
    }
    // From somebody who is no member it is only stale.
    let mut net = Net::led(3);
    for kind in [MessageType::MsgAppendResponse, MessageType::MsgHeartbeatResponse] {
        net.step(1, Input::Message(Box::new(message(kind, 9, 1, 1))));
    }
    net.goes_on();
}

#[test]
fn a_term_near_the_end_of_numbers_is_refused() {
    for term in [u64::MAX, u64::MAX - 1, 1 << 40] {
        for kind in [MessageType::MsgAppend, MessageType::MsgRequestVote, MessageType::MsgAppendResponse] {
            let net = Net::led(3).survives(2, message(kind, 1, 2, term));
            assert!(net.peers.iter().all(|peer| peer.core.term() < 100));
        }
    }
}

#[test]
fn a_snapshot_that_cannot_be_is_refused() {
    let conf = |voters: &[u64], learners: &[u64], outgoing: &[u64], next: &[u64]| ConfState {
        voters: voters.to_vec(),
        learners: learners.to_vec(),
        voters_outgoing: outgoing.to_vec(),
        learners_next: next.to_vec(),
        auto_leave: false,
    };
    let good = conf(&[1, 2, 3], &[], &[], &[]);
    let leaving = ConfState { auto_leave: true, ..good.clone() };
    let wrong = [
        (0, 1, good.clone()),
        (50, 0, good.clone()),
        (50, 2, good.clone()),
        (u64::MAX, 1, good),
        (50, 1, conf(&[], &[], &[], &[])),
        (50, 1, conf(&[], &[2], &[], &[])),
        (50, 1, conf(&[], &[], &[1, 2, 3], &[])),
        (50, 1, conf(&[1, 2], &[2], &[], &[])),
        (50, 1, conf(&[1, 2, 2], &[], &[], &[])),
        (50, 1, conf(&[0, 1, 2], &[], &[], &[])),
        (50, 1, conf(&[1, 2, 3], &[4], &[2, 4], &[])),
        (50, 1, conf(&[1, 2, 3], &[], &[], &[3])),
        (50, 1, conf(&[1, 2, 3], &[], &[1, 2, 4], &[3])),
        (50, 1, leaving),
    ];
    for (index, term, conf) in wrong {
        let mut forged = message(MessageType::MsgSnapshot, 1, 2, 1);
        let mut snapshot = Snapshot::default();
        (snapshot.mut_metadata().index, snapshot.mut_metadata().term) = (index, term);
        snapshot.mut_metadata().set_conf_state(conf);
        forged.set_snapshot(snapshot);
        Net::led(3).survives(2, forged);
    }
    Net::led(3).survives(2, message(MessageType::MsgSnapshot, 1, 2, 1));
}

#[test]
fn a_snapshot_for_somebody_else_is_ignored() {
    let mut net = Net::led(3);
    let mut forged = message(MessageType::MsgSnapshot, 1, 2, 1);
    let mut snapshot = Snapshot::default();
    (snapshot.mut_metadata().index, snapshot.mut_metadata().term) = (50, 1);
    snapshot.mut_metadata().set_conf_state(ConfState { voters: vec![1, 3], ..ConfState::default() });
    forged.set_snapshot(snapshot);
    net.step(2, Input::Message(Box::new(forged)));
    assert!(!net.core(2).is_installing());
    net.goes_on();
}

#[test]
fn a_core_starts_only_from_parts_that_fit() {
    let start = |commit: u64, applied: u64, after: u64, entries: u64| {
        let hard_state = HardState { term: 3, vote: 0, commit };
        let conf = ConfState { voters: vec![1, 2, 3], ..ConfState::default() };
        let entries = (after + 1..=after + entries).map(|index| entry(index, 3)).collect();
        let log = LogCache::new(hard_state, conf, after, 3, entries);
        GroupCore::new(&options(1), log, applied, Boottime(0))
    };
    assert!(start(1, 3, 0, 3).is_err(), "more is applied than committed");
    assert!(start(0, 7, 7, 0).is_err(), "the snapshot is there, its commit is not");
    assert!(start(9, 7, 7, 1).is_err(), "what was committed is gone");
    let mut core = start(9, 7, 7, 3).unwrap();
    let mut out = Vec::new();
    core.drain(&mut out);
    let [Output::Apply(committed)] = &out[..] else { panic!("only what is committed, got {out:?}") };
    assert_eq!(committed.entries.iter().map(|entry| entry.index).collect::<Vec<_>>(), [8, 9]);
    assert_eq!((core.commit_index(), core.last_index()), (9, 10));
}

#[test]
fn nothing_is_heard_while_a_snapshot_is_put_in_place() {
    let mut net = Net::led(3);
    net.isolate(2);
    for _ in 0..20 {
        net.step(1, Input::Propose(b"x".to_vec()));
        net.run();
    }
    net.beat();
    let applied = net.peer(1).applied;
    net.step(1, Input::Compact(applied));
    net.peer(1).log.clear();
    net.cut.clear();
    net.peer(2).holds_install = true;
    net.beat();
    assert!(net.core(2).is_installing());
    // An election timeout in this state would look for entries that are gone.
    for _ in 0..40 {
        net.now += TICK;
        net.step(2, Input::Tick);
        net.step(2, Input::Campaign);
    }
    net.queue.clear();
    assert!(is_dropped(&net.step(2, Input::Propose(b"x".to_vec()))));
    net.installed(2);
    assert_eq!((net.core(2).is_installing(), net.core(2).commit_index()), (false, applied));
    net.goes_on();
}

#[test]
fn entries_that_come_behind_a_snapshot_in_the_same_sweep_are_not_taken_for_written() {
    let mut net = Net::led(3);
    net.isolate(2);
    for _ in 0..5 {
        net.step(1, Input::Propose(b"x".to_vec()));
        net.run();
    }
    let snapshot = net.snapshot_of(1);
    let index = snapshot.get_metadata().index;
    let mut first = message(MessageType::MsgSnapshot, 1, 2, 1);
    first.set_snapshot(snapshot);
    let mut second = message(MessageType::MsgAppend, 1, 2, 1);
    (second.index, second.log_term, second.commit) = (index, 1, index);
    second.entries = vec![entry(index + 1, 1), entry(index + 2, 1)];
    net.step_only(2, Input::Message(Box::new(first)));
    net.step_only(2, Input::Message(Box::new(second)));
    net.drain(2);
    let acknowledged = net.queue.iter().filter(|message| message.from == 2 && !message.reject);
    let acknowledged = acknowledged.map(|message| message.index).max().unwrap_or(0);
    let written = net.peer(2).log.keys().next_back().copied().unwrap_or(index);
    assert!(
        acknowledged >= index && acknowledged <= written,
        "{acknowledged} acknowledged, {written} written"
    );
}

#[test]
fn a_snapshot_of_a_leader_that_stepped_down_in_the_same_sweep_never_goes_without_its_state() {
    let mut net = Net::led(3);
    net.isolate(2);
    for _ in 0..5 {
        net.step(1, Input::Propose(b"x".to_vec()));
        net.run();
    }
    let applied = net.peer(1).applied;
    net.step(1, Input::Compact(applied));
    let snapshot = net.snapshot_of(1);
    net.step(1, Input::SnapshotReady(Box::new(snapshot)));
    let behind = message(MessageType::MsgHeartbeatResponse, 2, 1, 1);
    let mut rejected = message(MessageType::MsgAppendResponse, 2, 1, 1);
    (rejected.index, rejected.reject, rejected.reject_hint, rejected.log_term) = (applied, true, 2, 1);
    net.step_only(1, Input::Message(Box::new(behind)));
    net.step_only(1, Input::Message(Box::new(rejected)));
    net.step_only(1, Input::Message(Box::new(message(MessageType::MsgHeartbeat, 3, 1, 2))));
    // `take` refuses a snapshot among ordinary messages.
    net.drain(1);
    assert!(!net.core(1).is_leader());
}

#[test]
fn the_log_is_never_compacted_beyond_what_is_applied() {
    let mut net = Net::led(3);
    net.peer(2).holds_apply = true;
    for _ in 0..5 {
        net.step(1, Input::Propose(b"x".to_vec()));
        net.run();
    }
    net.step(2, Input::Compact(1_000));
    net.step(2, Input::Release(1_000));
    assert!(net.core(2).log().len() >= 5, "what is not applied stays in memory");
    net.isolate(1);
    for _ in 0..60 {
        net.tick_all();
    }
    net.goes_on();
}

#[test]
fn a_vote_is_asked_for_and_given_only_when_it_is_written() {
    let mut net = Net::new(3);
    for id in 1..=3 {
        net.peer(id).holds_writes = true;
    }
    for _ in 0..25 {
        net.tick_all();
    }
    let sends_votes =
        |net: &Net| net.queue.iter().any(|message| message.get_msg_type() == MessageType::MsgRequestVote);
    assert!(!sends_votes(&net) && net.leader().is_none());
    assert!(
        net.peers.iter().any(|peer| peer.core.term() == 1),
        "somebody stands, and its vote is not written"
    );
    net.goes_on();
}

#[test]
fn a_long_write_of_entries_does_not_look_like_a_dead_node() {
    let mut net = Net::led(3);
    (net.peer(2).holds_writes, net.peer(3).holds_writes) = (true, true);
    let term = net.core(1).term();
    net.step(1, Input::Propose(b"large".to_vec()));
    net.run();
    for _ in 0..5 * ELECTION_TICKS {
        net.tick_all();
    }
    assert_eq!((net.leader(), net.core(1).term(), net.peer(1).applied), (Some(1), term, 2));
    let round = net.ask(1);
    net.run();
    assert!(net.reads(1).contains(&round), "they confirm that it leads, too");
    net.goes_on();
}

#[test]
fn a_leader_stays_while_its_followers_take_in_something_large_and_no_longer() {
    let mut net = Net::led(3);
    net.step(1, Input::Propose(vec![b'x'; 1 << 20]));
    net.isolate(1);
    net.run();
    let is_leading = |net: &mut Net, are_linked: bool| {
        for _ in 0..3 * ELECTION_TICKS {
            net.now += TICK;
            let busy = net.core(1).sends_large_to();
            busy.into_iter()
                .filter(|_| are_linked)
                .for_each(|replica| drop(net.step(1, Input::Alive(replica))));
            net.step(1, Input::Tick);
        }
        net.core(1).is_leader()
    };
    assert_eq!(net.core(1).sends_large_to(), [2, 3]);
    assert!(is_leading(&mut net, true));
    assert!(!is_leading(&mut net, false));
}

#[test]
fn who_has_not_written_a_new_term_answers_no_heartbeat_of_it() {
    let mut net = Net::led(3);
    net.peer(2).holds_writes = true;
    let mut heartbeat = message(MessageType::MsgHeartbeat, 3, 2, 7);
    for _ in 0..2 {
        net.step(2, Input::Message(Box::new(heartbeat.clone())));
        assert_eq!((net.core(2).term(), net.queue.len()), (7, 0));
        heartbeat.context = 9u64.to_be_bytes().to_vec();
    }
    net.write_held(2);
    net.drain(2);
    assert_eq!(net.queue.len(), 2);
}

#[test]
fn a_vote_that_was_not_asked_for_yet_makes_nobody_a_leader() {
    let mut net = Net::led(3);
    net.peer(2).holds_writes = true;
    net.step(1, Input::Propose(b"x".to_vec()));
    net.run();
    net.step(2, Input::Message(Box::new(message(MessageType::MsgTimeoutNow, 1, 2, 1))));
    assert_eq!((net.core(2).term(), net.queue.len()), (2, 0), "it stands, and its questions wait");
    net.survives(2, message(MessageType::MsgRequestVoteResponse, 3, 2, 2));
}

#[test]
fn the_only_voter_does_not_lead_before_its_log_is_written() {
    let mut net = Net::led(3);
    // A change that only a broken leader makes: of three voters the one that has just followed stays.
    let mut forged = message(MessageType::MsgAppend, 3, 2, 2);
    (forged.index, forged.log_term, forged.commit) = (2, 1, 3);
    let data = prost::Message::encode_to_vec(&change(&[
        (ConfChangeType::RemoveNode, 1),
        (ConfChangeType::RemoveNode, 3),
    ]));
    let mut joint = Entry { data, ..entry(3, 2) };
    joint.set_entry_type(EntryType::EntryConfChangeV2);
    let mut leave = Entry { data: Vec::new(), ..entry(4, 2) };
    leave.set_entry_type(EntryType::EntryConfChangeV2);
    forged.entries = vec![joint, leave];
    net.step(2, Input::Message(Box::new(forged)));
    let mut next = message(MessageType::MsgAppend, 3, 2, 2);
    (next.index, next.log_term, next.commit, next.entries) = (4, 2, 4, vec![entry(5, 2)]);
    net.peer(2).holds_writes = true;
    net.step(2, Input::Message(Box::new(next)));
    assert!(net.core(2).is_only_voter());
    net.step(2, Input::Message(Box::new(message(MessageType::MsgTimeoutNow, 3, 2, 2))));
    for _ in 0..50 {
        net.now += TICK;
        net.step(2, Input::Tick);
        net.step(2, Input::Campaign);
    }
    assert!(!net.core(2).is_leader());
    net.write_held(2);
    net.drain(2);
    for _ in 0..50 {
        net.now += TICK;
        net.step(2, Input::Tick);
        net.write_held(2);
        net.drain(2);
    }
    assert!(net.core(2).is_leader());
}

#[test]
fn an_empty_append_in_the_queue_does_not_take_on_entries_that_do_not_follow_it() {
    // raft-rs with `batch_append` glues 2.. to a message that says "after 7", and the follower acknowledges too much.
    let mut net = Net::led(3);
    for _ in 0..5 {
        net.step(1, Input::Propose(b"x".to_vec()));
    }
    // Node 3 gets the first of them only.
    let arrives = |message: &Message| message.to == 2 || (message.to == 3 && message.index == 2);
    let arriving: Vec<Message> = net.queue.drain(..).filter(arrives).collect();
    for message in arriving {
        net.step(message.to, Input::Message(Box::new(message)));
    }
    net.queue.clear();
    let mut late = message(MessageType::MsgAppendResponse, 3, 1, 1);
    late.index = 3;
    net.step_only(1, Input::Message(Box::new(late)));
    net.step_only(1, Input::Unreachable(2));
    net.step_only(1, Input::Propose(b"y".to_vec()));
    net.drain(1);
    let appends: Vec<Message> = net.queue.drain(..).filter(|message| message.to == 2).collect();
    for append in &appends {
        assert!(append.entries.first().is_none_or(|first| first.index == append.index + 1), "{append:?}");
    }
    for message in appends {
        net.step(2, Input::Message(Box::new(message)));
    }
    let last = net.core(2).last_index();
    let told: Vec<u64> =
        net.queue.iter().filter(|message| message.from == 2).map(|message| message.index).collect();
    assert!(told.iter().all(|index| *index <= last), "the log ends at {last}, acknowledged {told:?}");
    net.goes_on();
}

// ---- members ----------------------------------------------------------------------------------------

#[test]
fn a_leader_never_proposes_its_own_end() {
    let mut net = Net::led(3);
    for kind in [ConfChangeType::RemoveNode, ConfChangeType::AddLearnerNode] {
        assert!(is_dropped(&net.change(1, &[(kind, 1)])));
        assert!(is_dropped(&net.change(1, &[(ConfChangeType::AddNode, 4), (kind, 1)])));
    }
    assert!(is_dropped(&net.change(2, &[(ConfChangeType::RemoveNode, 3)])), "a follower proposes nothing");
    net.goes_on();
}

/// A leader proposes the end of replica 1, which has the entry and becomes the leader before it is applied.
fn led_by_the_removed() -> Net {
    let mut net = Net::led(3);
    net.step(1, Input::Transfer(2));
    net.run();
    net.beat();
    assert!(net.core(2).is_leader());
    assert!(is_proposed(&net.change(2, &[(ConfChangeType::RemoveNode, 1)])));
    let appends: Vec<Message> = net.queue.drain(..).filter(|message| message.to == 1).collect();
    for message in appends {
        net.step(1, Input::Message(Box::new(message)));
    }
    net.queue.clear();
    net.isolate(2);
    for _ in 0..60 {
        net.now += TICK;
        (1..=3).for_each(|id| drop(net.step(id, Input::Tick)));
        while !net.core(1).is_leader()
            && let Some(message) = net.queue.pop_front()
        {
            net.deliver(message);
        }
        if net.core(1).is_leader() {
            break;
        }
    }
    assert!(net.core(1).is_leader());
    net
}

#[test]
fn a_leader_that_applies_its_own_end_retires_and_nothing_panics() {
    for in_flight in [false, true] {
        let mut net = led_by_the_removed();
        if in_flight {
            net.peer(1).holds_writes = true;
            for _ in 0..3 {
                net.step(1, Input::Propose(b"in flight".to_vec()));
            }
        }
        net.run();
        net.peer(1).holds_writes = false;
        net.write_held(1);
        net.drain(1);
        net.run();
        for _ in 0..30 {
            net.tick_all();
        }
        assert!(net.core(1).is_retired() && !net.core(1).is_leader());
        assert_eq!(net.core(1).lease_until(), Boottime(0));
        assert!(is_dropped(&net.step(1, Input::Propose(b"x".to_vec()))));
        assert!(is_dropped(&net.change(1, &[(ConfChangeType::AddNode, 4)])));
        net.goes_on();
        let leader = net.leader().unwrap();
        let mut voters = net.core(leader).conf_state().voters;
        voters.sort_unstable();
        assert_eq!(voters, [2, 3]);
    }
}

#[test]
fn a_replica_that_is_removed_behind_its_back_does_not_disturb() {
    let mut net = Net::led(3);
    net.isolate(3);
    assert!(is_proposed(&net.change(1, &[(ConfChangeType::RemoveNode, 3)])));
    net.run();
    net.beat();
    let term = net.core(1).term();
    for _ in 0..100 {
        net.tick_all();
    }
    net.cut.clear();
    for _ in 0..100 {
        net.tick_all();
    }
    assert!(net.core(1).is_leader() && net.core(1).term() == term, "the removed one never stands for long");
    assert!(!net.core(3).is_retired(), "nobody told it");
    net.goes_on();
}

fn with_a_learner() -> Net {
    let mut net = Net::led(3);
    // It is sent a snapshot: the log alone does not tell who the first members were.
    net.step(1, Input::Compact(2));
    net.peers.push(Peer::new(4, &[], net.now));
    assert!(is_proposed(&net.change(1, &[(ConfChangeType::AddLearnerNode, 4)])));
    net.run();
    net.beat();
    net.beat();
    assert_eq!(net.core(4).conf_state().learners, [4]);
    assert_eq!(net.peers[3].applied, net.peers[0].applied);
    net
}

#[test]
fn a_change_is_refused_while_another_is_under_way() {
    let mut net = with_a_learner();
    net.peer(1).holds_apply = true;
    assert!(is_proposed(&net.change(1, &[(ConfChangeType::RemoveNode, 3), (ConfChangeType::AddNode, 4)])));
    assert!(is_dropped(&net.change(1, &[(ConfChangeType::RemoveNode, 4)])));
    net.run();
    assert!(net.core(1).has_pending_change());
    assert!(is_dropped(&net.change(1, &[(ConfChangeType::RemoveNode, 4)])));
    net.goes_on();
}

#[test]
fn a_joint_change_survives_a_crash_of_the_leader_at_each_step() {
    for crash_after in 0..40 {
        let mut net = with_a_learner();
        assert!(is_proposed(
            &net.change(1, &[(ConfChangeType::RemoveNode, 3), (ConfChangeType::AddNode, 4)])
        ));
        for _ in 0..crash_after {
            match net.queue.pop_front() {
                Some(message) => net.deliver(message),
                None => net.tick_all(),
            }
        }
        net.queue.clear();
        let applied = net.peer(1).applied;
        net.isolate(1);
        for _ in 0..40 {
            net.tick_all();
        }
        net.cut.clear();
        net.restart(1, applied);
        net.goes_on();
        for _ in 0..80 {
            net.tick_all();
            let Some(leader) = net.leader() else { continue };
            let conf = net.core(leader).conf_state();
            let wanted = if !conf.voters_outgoing.is_empty() {
                ConfChangeV2::default()
            } else if conf.voters.contains(&3) {
                let away = if leader == 3 { 2 } else { 3 };
                change(&[(ConfChangeType::RemoveNode, away), (ConfChangeType::AddNode, 4)])
            } else {
                break;
            };
            net.step(leader, Input::ConfChange { change: wanted, context: Vec::new() });
            net.run();
        }
        net.goes_on();
        let conf = net.core(net.leader().unwrap()).conf_state();
        assert!(conf.voters_outgoing.is_empty() && conf.voters.contains(&4), "after {crash_after}: {conf:?}");
        assert_eq!(conf.voters.len(), 3, "after {crash_after}: {conf:?}");
    }
}

#[test]
fn a_joint_configuration_that_is_not_left_by_itself_is_left_by_an_empty_change() {
    let mut net = with_a_learner();
    let mut stuck = change(&[(ConfChangeType::RemoveNode, 3), (ConfChangeType::AddNode, 4)]);
    stuck.set_transition(ConfChangeTransition::Explicit);
    net.step(1, Input::ConfChange { change: stuck, context: Vec::new() });
    net.run();
    net.beat();
    assert_eq!(net.core(1).conf_state().voters_outgoing.len(), 3);
    // While joint another change makes no difference, and none is pending for ever.
    net.change(1, &[(ConfChangeType::AddLearnerNode, 5)]);
    net.run();
    net.beat();
    assert!(!net.core(1).has_pending_change() && net.core(1).conf_state().learners.is_empty());
    net.step(1, Input::ConfChange { change: ConfChangeV2::default(), context: Vec::new() });
    net.run();
    net.beat();
    let conf = net.core(1).conf_state();
    assert!(conf.voters_outgoing.is_empty() && !conf.voters.contains(&3), "{conf:?}");
    assert!(net.core(3).is_retired());
    net.goes_on();
}

#[test]
fn an_empty_change_without_a_joint_configuration_changes_nothing() {
    let mut net = Net::led(3);
    net.step(1, Input::ConfChange { change: ConfChangeV2::default(), context: Vec::new() });
    net.run();
    net.beat();
    let conf = net.core(1).conf_state();
    assert!(conf.voters.len() == 3 && conf.voters_outgoing.is_empty() && !net.core(1).has_pending_change());
    net.goes_on();
}

#[test]
fn a_change_of_a_kind_that_nobody_knows_changes_nothing() {
    let unknown = ConfChangeV2 { transition: 77, ..ConfChangeV2::default() };
    let mut strange = change(&[(ConfChangeType::RemoveNode, 2)]);
    strange.changes[0].change_type = 38;
    let single = ConfChange { change_type: 38, node_id: 2, ..ConfChange::default() };
    let changes = [
        (EntryType::EntryConfChangeV2, prost::Message::encode_to_vec(&unknown)),
        (EntryType::EntryConfChangeV2, prost::Message::encode_to_vec(&strange)),
        (EntryType::EntryConfChange, prost::Message::encode_to_vec(&single)),
        (EntryType::EntryConfChangeV2, vec![0xFF; 7]),
    ];
    let mut net = Net::led(3);
    // From a leader of the next term, of which nothing else is heard; replica 2 leads on from there.
    let mut forged = message(MessageType::MsgAppend, 3, 2, 2);
    (forged.index, forged.log_term, forged.commit) = (2, 1, 2 + changes.len() as u64);
    for (at, (kind, data)) in changes.into_iter().enumerate() {
        let mut entry = Entry { data, ..entry(3 + at as u64, 2) };
        entry.set_entry_type(kind);
        forged.entries.push(entry);
    }
    net.step(2, Input::Message(Box::new(forged)));
    assert_eq!(net.peer(2).applied, 6);
    assert_eq!(net.core(2).conf_state().voters.len(), 3);
    net.goes_on();
    assert!(net.peers.iter().all(|peer| peer.core.conf_state().voters.len() == 3));
}

#[test]
fn a_replica_that_holds_a_change_does_not_forget_that_the_one_before_it_is_committed() {
    let mut net = with_a_learner();
    let before = net.peer(2).applied;
    assert!(is_proposed(&net.change(1, &[(ConfChangeType::RemoveNode, 3), (ConfChangeType::AddNode, 4)])));
    let joint = net.core(1).last_index();
    net.run();
    assert!(net.core(2).last_index() > joint, "it holds the entry that leaves the joint configuration");
    // Its state on disk is older, as after a crash; so are the members that it counts.
    assert!(net.peer(2).hard_state.commit >= joint, "{:?}", net.peer(2).hard_state);
    let conf = ConfState { voters: vec![1, 2, 3], learners: vec![4], ..ConfState::default() };
    let peer = net.peer(2);
    let entries: Vec<Entry> = peer.log.range(before + 1..).map(|(_, entry)| entry.clone()).collect();
    let log = LogCache::new(peer.hard_state.clone(), conf, before, 1, entries);
    peer.core = GroupCore::new(&options(2), log, before, Boottime(10_000)).unwrap();
    (peer.holds_apply, peer.applied) = (true, before);
    net.now = 10_000;
    net.drain(2);
    net.isolate(1);
    net.isolate(4);
    // Replica 3 never hears of its removal in this world.
    net.restart(3, 2);
    for _ in 0..60 {
        net.tick_all();
    }
    assert!(!net.core(2).is_leader(), "2 and 3 are no majority of what 2 knows to be committed");
}

// ---- proposals --------------------------------------------------------------------------------------

#[test]
fn a_proposal_is_dropped_where_nobody_leads_or_while_the_lead_changes_hands() {
    let mut net = Net::new(3);
    assert!(is_dropped(&net.step(1, Input::Propose(b"x".to_vec()))), "nobody leads");
    let mut net = Net::led(3);
    assert!(is_dropped(&net.step(2, Input::Propose(b"x".to_vec()))), "a follower");
    assert!(net.queue.is_empty(), "it is not forwarded");
    net.isolate(2);
    net.step(1, Input::Transfer(2));
    assert!(is_dropped(&net.step(1, Input::Propose(b"x".to_vec()))), "a hand-over is under way");
    assert!(is_dropped(&net.change(1, &[(ConfChangeType::AddLearnerNode, 4)])));
    let last = net.core(1).last_index();
    for _ in 0..12 {
        net.tick_all();
    }
    assert_eq!(net.core(1).last_index(), last);
    assert!(is_proposed(&net.step(1, Input::Propose(b"x".to_vec()))), "the hand-over was given up");
    net.goes_on();
}

#[test]
fn a_proposal_is_dropped_when_too_much_is_uncommitted() {
    let mut net = Net::led(3);
    net.isolate(1);
    let mut taken = 0;
    while is_proposed(&net.step(1, Input::Propose(vec![0; 8 << 20]))) {
        taken += 1;
        assert!(taken <= 8, "64 MiB is the limit");
    }
    assert_eq!(taken, 8);
    net.queue.clear();
    net.goes_on();
}

// ---- read barriers ----------------------------------------------------------------------------------

#[test]
fn a_fresh_leader_answers_no_barrier_before_it_has_committed() {
    let mut net = Net::led(3);
    net.step(1, Input::Propose(b"acknowledged".to_vec()));
    net.run();
    let acknowledged = net.peer(1).applied;
    net.isolate(1);
    while net.leader() != Some(2) && net.leader() != Some(3) {
        let votes_only = |message: &Message| message.get_msg_type() != MessageType::MsgAppend;
        net.now += TICK;
        for id in 1..=3 {
            net.step(id, Input::Tick);
        }
        let fresh = (2..=3).find(|id| net.core(*id).is_leader());
        if let Some(fresh) = fresh {
            let early = net.ask(fresh);
            net.run();
            assert!(!net.reads(fresh).contains(&early), "it was asked before it knew what is committed");
            assert!(net.core(fresh).lease_until() == Boottime(0) || net.core(fresh).has_committed_in_term());
            break;
        }
        // One message at a time, so that the election is seen.
        while let Some(message) = net.queue.pop_front() {
            let is_vote = votes_only(&message);
            net.deliver(message);
            if is_vote && (2..=3).any(|id| net.core(id).is_leader()) {
                break;
            }
        }
    }
    net.beat();
    let leader = net.leader().filter(|leader| *leader != 1).unwrap();
    let context = net.ask(leader);
    net.run();
    let (_, index) = net.peer(leader).reads.iter().copied().find(|(known, _)| *known == context).unwrap();
    assert!(index >= acknowledged);
    net.goes_on();
}

#[test]
fn a_deposed_leader_answers_none_of_its_barriers() {
    let mut net = Net::led(3);
    net.isolate(1);
    let contexts: Vec<u64> = (0..3).map(|_| net.ask(1)).collect();
    for _ in 0..40 {
        net.tick_all();
    }
    let leader = net.leader().filter(|leader| *leader != 1).unwrap();
    net.step(leader, Input::Propose(b"newer".to_vec()));
    net.run();
    net.goes_on();
    assert!(contexts.iter().all(|context| !net.reads(1).contains(context)));
}

#[test]
fn a_context_that_is_used_again_is_answered_once() {
    let mut net = Net::led(3);
    for _ in 0..3 {
        net.step(1, Input::ReadIndex(77));
    }
    net.run();
    assert_eq!(net.reads(1), [77]);
    // Answers are cumulative.
    let (first, second) = (net.ask(1), net.ask(1));
    net.run();
    assert_eq!(net.reads(1), [77, first, second]);
    net.goes_on();
}

#[test]
fn a_follower_answers_no_barrier() {
    let mut net = Net::led(3);
    let context = net.ask(2);
    net.run();
    assert!((1..=3).all(|id| !net.reads(id).contains(&context)));
    net.goes_on();
}

// ---- the lease --------------------------------------------------------------------------------------

/// Renews the lease of replica 1 now.
fn renew(net: &mut Net) {
    net.ask(1);
    net.run();
    assert!(net.has_lease(1));
}

fn vote(from: u64, to: u64, term: u64, kind: MessageType) -> Message {
    let mut vote = message(kind, from, to, term);
    (vote.index, vote.log_term) = (1_000, term - 1);
    vote
}

fn grants(net: &mut Net, from: u64, to: u64, term: u64, kind: MessageType) -> bool {
    net.queue.clear();
    net.step(to, Input::Message(Box::new(vote(from, to, term, kind))));
    let answers = net.queue.drain(..).filter(|message| {
        let kind = message.get_msg_type();
        kind == MessageType::MsgRequestVoteResponse || kind == MessageType::MsgRequestPreVoteResponse
    });
    answers.filter(|message| !message.reject).count() > 0
}

#[test]
fn a_follower_that_starts_again_remembers_that_it_may_have_promised_something() {
    // tikv#15035: the running follower refuses, the restarted one had forgotten whom it follows.
    for kind in [MessageType::MsgRequestPreVote, MessageType::MsgRequestVote] {
        let mut net = Net::led(3);
        renew(&mut net);
        let applied = net.peer(2).applied;
        net.restart(2, applied);
        assert!(net.has_lease(1));
        assert!(!grants(&mut net, 3, 2, 2, kind), "the leader may still read without asking");
        let until = net.core(1).lease_until().0;
        net.now += TICK * ELECTION_TICKS as u64;
        assert!(net.now >= until);
        assert!(grants(&mut net, 3, 2, 2, kind), "nobody is promised anything any more");
    }
}

#[test]
fn a_fresh_group_need_not_wait_for_promises() {
    let mut net = Net::new(3);
    assert!(grants(&mut net, 3, 2, 1, MessageType::MsgRequestVote));
}

#[test]
fn a_promise_outlives_a_word_from_a_higher_term() {
    // Replica 3 stood in term 2 and nobody voted for it. Its answer to an election that replica 2 had wanted comes
    // after 2 has heard the leader again: 2 moves to term 2, and must still not vote.
    for kind in [MessageType::MsgRequestPreVoteResponse, MessageType::MsgAppendResponse] {
        let mut net = Net::led(3);
        renew(&mut net);
        let mut late = message(kind, 3, 2, 2);
        late.reject = true;
        net.step(2, Input::Message(Box::new(late)));
        assert!(net.has_lease(1));
        assert!(
            !grants(&mut net, 3, 2, 2, MessageType::MsgRequestVote),
            "the leader of term 1 may still read"
        );
        assert!(!grants(&mut net, 3, 2, 3, MessageType::MsgRequestPreVote));
        net.now += TICK * ELECTION_TICKS as u64;
        assert!(!net.has_lease(1));
        assert!(grants(&mut net, 3, 2, 3, MessageType::MsgRequestVote));
    }
}

#[test]
fn who_promised_something_does_not_stand_himself() {
    let mut net = Net::led(3);
    renew(&mut net);
    net.isolate(1);
    net.step(2, Input::Campaign);
    net.run();
    assert!(!net.core(2).is_leader() && net.has_lease(1));
    net.now += TICK * ELECTION_TICKS as u64;
    (0..ELECTION_TICKS).for_each(|_| drop(net.step(3, Input::Tick)));
    net.step(2, Input::Campaign);
    net.run();
    assert!(net.core(2).is_leader() && !net.has_lease(1));
}

#[test]
fn a_hand_over_ends_the_lease_for_the_term_even_when_it_is_given_up() {
    // raft-rs#234: the word to take over arrives long after the leader went on.
    let mut net = Net::led(3);
    renew(&mut net);
    net.step(1, Input::Transfer(2));
    assert!(!net.has_lease(1));
    let word =
        net.queue.drain(..).find(|message| message.get_msg_type() == MessageType::MsgTimeoutNow).unwrap();
    for _ in 0..12 {
        net.tick_all();
    }
    assert!(net.core(1).is_leader(), "the hand-over was given up");
    assert!(is_proposed(&net.step(1, Input::Propose(b"x".to_vec()))));
    net.ask(1);
    net.run();
    assert!(!net.has_lease(1), "not in this term");
    net.deliver(word);
    net.run();
    net.beat();
    assert_eq!(net.leader(), Some(2), "it was obeyed all the same");
    assert!(net.core(2).term() > 1 && !net.has_lease(1));
    net.ask(2);
    net.run();
    assert!(net.has_lease(2));
    net.goes_on();
}

#[test]
fn a_word_to_take_over_from_another_term_is_refused() {
    for (from, term) in [(3, 1), (1, 2)] {
        let mut net = Net::led(3);
        net.step(2, Input::Message(Box::new(message(MessageType::MsgTimeoutNow, from, 2, term))));
        net.run();
        assert!(net.core(1).is_leader() && net.core(2).term() == 1);
    }
}

#[test]
fn a_lease_ends_by_itself_when_nobody_answers() {
    let mut net = Net::led(3);
    renew(&mut net);
    net.isolate(1);
    let until = net.core(1).lease_until().0;
    assert!(until <= net.now + TICK * ELECTION_TICKS as u64 * 2 / 3);
    net.ask(1);
    net.step(1, Input::Propose(b"x".to_vec()));
    net.run();
    assert_eq!(net.core(1).lease_until().0, until, "nobody confirmed anything");
    // The others elect nobody before it has ended.
    while net.core(2).is_leader() == net.core(3).is_leader() {
        net.tick_all();
        assert!(net.now < 100_000);
    }
    assert!(!net.has_lease(1));
    net.goes_on();
}

// ---- anything at all --------------------------------------------------------------------------------

struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end.max(1)
    }

    /// Near what is real, mostly.
    fn near(&mut self, real: u64) -> u64 {
        match self.below(20) {
            0 => 0,
            1 => self.next(),
            2 => u64::MAX - self.below(3),
            3 => (1 << 62) - 2 + self.below(4),
            4..=7 => real.saturating_sub(self.below(8)),
            8..=11 => real + self.below(8),
            _ => real,
        }
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.next() as u8).collect()
    }
}

const KINDS: [MessageType; 19] = [
    MessageType::MsgHup,
    MessageType::MsgBeat,
    MessageType::MsgPropose,
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgUnreachable,
    MessageType::MsgSnapStatus,
    MessageType::MsgCheckQuorum,
    MessageType::MsgTransferLeader,
    MessageType::MsgTimeoutNow,
    MessageType::MsgReadIndex,
    MessageType::MsgReadIndexResp,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

fn draw_ids(chance: &mut Chance) -> Vec<u64> {
    (0..chance.below(5)).map(|_| chance.below(6)).collect()
}

fn draw_entry(chance: &mut Chance, index: u64, term: u64) -> Entry {
    let mut entry = Entry { index, term, data: chance.bytes(12), ..Entry::default() };
    match chance.below(8) {
        0 => entry.set_entry_type(EntryType::EntryConfChangeV2),
        1 => entry.set_entry_type(EntryType::EntryConfChange),
        2 => {
            entry.set_entry_type(EntryType::EntryConfChangeV2);
            let kinds = [ConfChangeType::AddNode, ConfChangeType::RemoveNode, ConfChangeType::AddLearnerNode];
            let singles: Vec<_> =
                (0..chance.below(4)).map(|_| (kinds[chance.below(3) as usize], chance.below(6))).collect();
            entry.data = prost::Message::encode_to_vec(&change(&singles));
        }
        _ => {}
    }
    entry
}

/// A message that a replica might get, if somebody wanted to do harm or a bit had turned over.
fn draw_message(chance: &mut Chance, net: &Net, to: u64) -> Message {
    let core = net.core(to);
    let kind = KINDS[chance.below(19) as usize];
    let from = if chance.below(10) == 0 { chance.below(6) } else { 1 + (to + chance.below(2)) % 3 };
    let (term, last, commit) = (core.term(), core.last_index(), core.commit_index());
    let mut drawn = message(kind, from, to, chance.near(term));
    let end = if chance.below(2) == 0 { last } else { commit };
    drawn.index = chance.near(end);
    let term_there = net.peers[to as usize - 1].log.get(&drawn.index).map_or(term, |entry| entry.term);
    drawn.log_term = chance.near(term_there);
    drawn.commit = chance.near(commit);
    drawn.commit_term = chance.near(term);
    drawn.reject = chance.below(3) == 0;
    drawn.reject_hint = chance.near(last);
    drawn.request_snapshot = if chance.below(20) == 0 { chance.near(last) } else { 0 };
    drawn.priority = if chance.below(10) == 0 { chance.next() as i64 } else { 0 };
    drawn.context = match chance.below(6) {
        0 => b"CampaignTransfer".to_vec(),
        1 => net.next_context.to_be_bytes().to_vec(),
        2 => chance.bytes(80),
        _ => Vec::new(),
    };
    if kind == MessageType::MsgAppend || chance.below(10) == 0 {
        let mut term = drawn.log_term;
        for at in 0..chance.below(5) {
            let index =
                if chance.below(30) == 0 { chance.near(last) } else { drawn.index.wrapping_add(at + 1) };
            term = if chance.below(3) == 0 { chance.near(drawn.term) } else { term };
            drawn.entries.push(draw_entry(chance, index, term));
        }
    }
    if kind == MessageType::MsgSnapshot || chance.below(20) == 0 {
        let mut snapshot = Snapshot { data: chance.bytes(20), ..Snapshot::default() };
        let meta = snapshot.mut_metadata();
        (meta.index, meta.term) = (chance.near(last), chance.near(term));
        let conf = if chance.below(2) == 0 {
            ConfState { voters: vec![1, 2, 3], ..ConfState::default() }
        } else {
            ConfState {
                voters: draw_ids(chance),
                learners: draw_ids(chance),
                voters_outgoing: draw_ids(chance),
                learners_next: draw_ids(chance),
                auto_leave: chance.below(2) == 0,
            }
        };
        meta.set_conf_state(conf);
        drawn.set_snapshot(snapshot);
    }
    drawn
}

/// What goes on while somebody does harm.
fn live(chance: &mut Chance, net: &mut Net) {
    let id = 1 + chance.below(3);
    match chance.below(16) {
        0..=2 => {
            net.now += TICK;
            (1..=3).for_each(|id| drop(net.step(id, Input::Tick)));
        }
        3..=5 => drop(net.step(id, Input::Propose(chance.bytes(40)))),
        6 => drop(net.ask(id)),
        7 => drop(net.step(id, Input::Transfer(1 + chance.below(3)))),
        8 => {
            let applied = net.peer(id).applied;
            net.step(id, Input::Release(applied));
        }
        9 if chance.below(4) == 0 => {
            let compacted = net.peer(id).applied.saturating_sub(chance.below(4));
            net.peer(id).log.retain(|index, _| *index > compacted);
            net.step(id, Input::Compact(compacted));
        }
        10 => drop(net.step(id, Input::Unreachable(1 + chance.below(3)))),
        11 => {
            let peer = net.peer(id);
            let holds = chance.below(3);
            (peer.holds_writes, peer.holds_apply, peer.holds_install) = (holds == 0, holds == 1, holds == 2);
            if holds != 0 {
                net.write_held(id);
            }
            if holds != 1 {
                net.apply_held(id);
            }
            if holds != 2 {
                net.installed(id);
            }
            net.drain(id);
        }
        _ => {
            for _ in 0..chance.below(30) {
                if let Some(message) = net.queue.pop_front() {
                    net.deliver(message);
                }
            }
            net.queue.truncate(200);
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs rounds of so many messages; a panic tells which round it was.
fn fuzz(mut round: impl FnMut(&mut Chance, &mut Vec<String>) -> u64) -> u64 {
    let (first, most) = (number("TRAPS_SEED", 1), number("TRAPS_MESSAGES", 200_000));
    let (mut seed, mut given) = (first, 0);
    while given < most {
        let mut last = Vec::new();
        let mut chance = Chance(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let outcome = catch_unwind(AssertUnwindSafe(|| round(&mut chance, &mut last)));
        match outcome {
            Ok(count) => given += count,
            Err(panic) => {
                for line in last.iter().rev().take(3).rev() {
                    println!("{line}");
                }
                println!("TRAPS_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
        seed += 1;
    }
    given
}

#[test]
fn no_message_brings_a_core_down() {
    let mut taken = 0;
    let given = fuzz(|chance, last| {
        let mut net = Net::led(3);
        for _ in 0..400 {
            live(chance, &mut net);
            let to = 1 + chance.below(3);
            let drawn = draw_message(chance, &net, to);
            last.push(format!("{drawn:?}"));
            let refused = net.core(to).refused_messages();
            net.step(to, Input::Message(Box::new(drawn)));
            taken += u64::from(net.core(to).refused_messages() == refused);
        }
        400
    });
    assert!(
        taken * 20 > given,
        "{taken} of {given} were given to raft-rs: the guard does not stop everything"
    );
}

/// Encodings of what a group really says, with all kinds of messages.
fn recorded() -> Vec<Vec<u8>> {
    let mut net = Net::led(3);
    let mut chance = Chance(11);
    let mut said = BTreeMap::<i32, Vec<Vec<u8>>>::new();
    for round in 0..3_000 {
        live(&mut chance, &mut net);
        if round % 300 == 0 {
            net.isolate(1 + chance.below(3));
        } else if round % 300 == 150 {
            net.cut.clear();
        }
        let snapshots: Vec<Message> =
            net.peers.iter_mut().flat_map(|peer| peer.snapshots.drain(..)).collect();
        for message in net.queue.iter().chain(&snapshots) {
            let kept = said.entry(message.msg_type).or_default();
            if kept.len() < 40 {
                let mut bytes = Vec::new();
                message_codec::encode_message(message, &mut bytes);
                kept.push(bytes);
            }
        }
    }
    assert!(said.len() >= 10, "of {} kinds", said.len());
    said.into_values().flatten().collect()
}

#[test]
fn no_damaged_encoding_brings_a_core_down() {
    let recorded = recorded();
    let (mut decoded, mut taken) = (0, 0);
    fuzz(|chance, last| {
        let mut net = Net::led(3);
        for _ in 0..400 {
            live(chance, &mut net);
            let mut bytes = recorded[chance.below(recorded.len() as u64) as usize].clone();
            for _ in 0..1 + chance.below(4) {
                let at = chance.below(bytes.len() as u64) as usize;
                match chance.below(6) {
                    0 => bytes.truncate(at.max(1)),
                    1 => bytes.insert(at, chance.next() as u8),
                    2 => bytes.extend_from_within(at..),
                    _ => bytes[at] ^= 1 << chance.below(8),
                }
            }
            last.push(format!("{bytes:?}"));
            if let Ok(message) = message_codec::decode_message(&bytes) {
                decoded += 1;
                let to = 1 + chance.below(3);
                let refused = net.core(to).refused_messages();
                net.step(to, Input::Message(Box::new(Message { to, ..message })));
                taken += u64::from(net.core(to).refused_messages() == refused);
            }
        }
        400
    });
    assert!(decoded > 1_000 && taken > 1_000, "{decoded} were decoded, {taken} given to raft-rs");
}
