//! A driver whose two peers are played by hand: what they are sent is looked at, and what they answer is made up.

use std::path::Path;
use std::sync::mpsc;

use bytes::Bytes;
use parking_lot::Mutex;
use parking_lot::RwLock;
use raft::eraftpb::Entry;

use super::*;
use crate::clock::ManualClock;
use crate::config::Config;
use crate::consensus::claims::Claims;
use crate::consensus::raft::hub;
use crate::consensus::raft::hub::Arrived;
use crate::consensus::raft::replica::Boot;
use crate::consensus::raft::replica::Counters;
use crate::consensus::raft::replica::begin_group;
use crate::consensus::raft::replica::first_epoch;
use crate::consensus::raft::replica::tick_of;
use crate::peer::SendError;
use crate::state::State;
use crate::storage::LogContents;
use crate::storage::StorageError;
use crate::types::WallMillis;

const GROUP: GroupId = GroupId(0);
const OWN: NodeId = NodeId(1);
const TICK: Millis = Millis(50);

/// What was sent.
#[derive(Default)]
struct Wire(Mutex<Vec<(Channel, Vec<u8>)>>);

impl Links for Wire {
    fn send(&self, _to: NodeId, channel: Channel, payload: Vec<u8>) -> Result<(), SendError> {
        self.0.lock().push((channel, payload));
        Ok(())
    }

    fn is_connected(&self, _node: NodeId) -> bool {
        true
    }
}

struct NoLog;

impl DriverLog for NoLog {
    fn persist(&self, _: GroupId, _: &Persist, _: bool) -> Result<(), StorageError> {
        Ok(())
    }

    fn fetch(&self, _: GroupId, _: &Fetch) -> Result<Vec<Entry>, StorageError> {
        Ok(Vec::new())
    }
}

struct Rig {
    driver: Driver,
    shared: Arc<Shared>,
    clock: Arc<ManualClock>,
    wire: Arc<Wire>,
    writer: Arc<Mailbox<WriterJob>>,
    apply: Arc<Mailbox<ApplyMessage>>,
    applier: Applier,
}

impl Rig {
    /// Node 1 of the voters 1 to 3, with these learners, which are replicas of node 4.
    fn new(learners: &[u64]) -> Rig {
        let lines =
            (1..=3).flat_map(|node| ["--cluster-node".to_owned(), node.to_string(), format!("h:{node}")]);
        let args: Vec<String> = ["--node-id".to_owned(), "1".to_owned()].into_iter().chain(lines).collect();
        let config = SharedConfig::new(Config::load(&args).unwrap().config, None);
        let mut state = State::new(0);
        begin_group(&mut state, OWN, 1, Some(&[NodeId(1), NodeId(2), NodeId(3)]));
        let mut membership = state.membership().clone();
        for learner in learners {
            let address = NodeAddress { node: NodeId(4), host: String::new(), port: 0 };
            membership.learners.push(*learner);
            membership.nodes.insert(*learner, address);
        }
        state.set_membership(membership.clone());
        let clock = Arc::new(ManualClock::default());
        clock.advance(Millis(1_000));
        let time: Arc<dyn Clock> = Arc::clone(&clock) as Arc<dyn Clock>;
        let booted = Boot::repair(Path::new("rig"), 1, &state, LogContents::default()).unwrap();
        let epoch = first_epoch(1, 1);
        let claims = Claims::new(OWN, life_of(epoch));
        let shared = Arc::new(Shared::new(&state, Arc::new(Counters::default()), 1, epoch, 0, claims));
        let wire = Arc::new(Wire::default());
        let links: Arc<dyn Links> = Arc::clone(&wire) as Arc<dyn Links>;
        let (writer, apply): (Arc<Mailbox<WriterJob>>, Arc<Mailbox<ApplyMessage>>) = Default::default();
        let applied = state.meta().applied;
        let applier = Applier {
            group: GROUP,
            state: Arc::new(RwLock::new(state)),
            shared: Arc::clone(&shared),
            network: Some(Arc::clone(&links)),
            flusher: Arc::default(),
            flusher_busy: Arc::default(),
            clock: Arc::clone(&time),
            flush_interval: Millis(1_000),
            flush_bytes: usize::MAX,
            last_flush: time.monotonic(),
            flushed: applied,
            has_cold: false,
        };
        let driver = Driver::new(DriverParts {
            core: booted.core(&config.get(), time.as_ref()).unwrap(),
            group: GROUP,
            shared: Arc::clone(&shared),
            log: Arc::new(NoLog),
            writer: Arc::clone(&writer),
            apply: ApplyBy::Thread(Arc::clone(&apply)),
            cluster: Some(Cluster {
                node: OWN,
                network: links,
                session: Session::new(epoch, time.monotonic()),
                members: Members::new(membership),
                snapshots: Arc::default(),
                disk: Arc::default(),
            }),
            cluster_clock: Arc::new(ClusterClock::starting_at(ClusterTime(0), Arc::clone(&time))),
            clock: time,
            tick: tick_of(&config.get()),
            config,
            settings: Settings { databases: 16, ..Settings::default() },
            outage: Millis(0),
            last: Stamps { clock: ClusterTime(0), wall: WallMillis(0), seed: 0 },
        });
        Rig { driver, shared, clock, wire, writer, apply, applier }
    }

    /// It leads, and its LEADER-START is applied.
    fn led() -> Rig {
        let mut rig = Rig::new(&[]);
        let vote = rig.stand();
        rig.sweep(vec![vote]);
        rig.acknowledge(2);
        rig.acknowledge(2);
        assert!(rig.driver.leading && rig.driver.serve_from.is_none());
        rig
    }

    /// Sweeps until nothing is left; what is written is durable at once. Gives the messages that were sent.
    fn sweep(&mut self, mut events: Vec<Event>) -> Vec<Message> {
        loop {
            self.driver.sweep(&mut events);
            let (mut jobs, mut messages) = (Vec::new(), Vec::new());
            self.writer.take(&mut jobs);
            for job in jobs {
                if let WriterJob::Persist(persist) = job {
                    self.shared.events.send(Event::Persisted(persist.token));
                }
            }
            self.apply.take(&mut messages);
            for message in messages {
                if let ApplyMessage::Job(job) = message {
                    self.applier.apply_and_tell(job);
                }
            }
            self.shared.events.take(&mut events);
            if events.is_empty() {
                return self.sent();
            }
        }
    }

    fn sent(&self) -> Vec<Message> {
        let sent = std::mem::take(&mut *self.wire.0.lock());
        let read =
            |(channel, payload): (Channel, Vec<u8>)| match hub::decode(OWN, channel, &Bytes::from(payload)) {
                Ok(Arrived::Event(Event::Messages { messages, .. })) => messages,
                _ => Vec::new(),
            };
        sent.into_iter().flat_map(read).collect()
    }

    fn tick(&mut self) -> Vec<Message> {
        self.clock.advance(TICK);
        self.sweep(Vec::new())
    }

    /// Lets it stand for election; gives the vote that makes it the leader.
    fn stand(&mut self) -> Event {
        for _ in 0..100 {
            let mut sent = self.tick();
            while let Some(request) = sent.pop() {
                let answer = match request.get_msg_type() {
                    MessageType::MsgRequestPreVote => MessageType::MsgRequestPreVoteResponse,
                    MessageType::MsgRequestVote => MessageType::MsgRequestVoteResponse,
                    _ => continue,
                };
                let event = said(2, message(answer, 2, request.term));
                if answer == MessageType::MsgRequestVoteResponse {
                    return event;
                }
                sent = self.sweep(vec![event]);
            }
        }
        panic!("it does not stand");
    }

    /// This replica has all entries up to here.
    fn acknowledge_to(&mut self, replica: u64, index: u64) {
        let term = self.driver.core.term();
        let mut ack = message(MessageType::MsgAppendResponse, replica, term);
        ack.index = index;
        self.sweep(vec![said(replica, ack)]);
    }

    fn acknowledge(&mut self, replica: u64) {
        self.acknowledge_to(replica, self.driver.core.last_index());
    }

    /// Entries that node 2 acknowledges.
    fn write(&mut self, count: usize) {
        for _ in 0..count {
            let mut batch = Batch::new(b"default");
            batch.push_command(0, [&b"SET"[..], b"k", b"v"].into_iter());
            self.sweep(vec![Event::Submit(Submission::new(batch, None))]);
            self.acknowledge(2);
        }
    }

    /// Node 2 answers; node 3 says nothing.
    fn pass(&mut self, time: Millis) {
        for _ in 0..time.0 / TICK.0 {
            self.tick();
            let term = self.driver.core.term();
            self.sweep(vec![said(2, message(MessageType::MsgHeartbeatResponse, 2, term))]);
        }
    }

    fn join(&mut self, node: u64) -> mpsc::Receiver<Result<Vec<u8>, String>> {
        let (sender, heard) = mpsc::channel();
        let done = AdminDone::new(move |result| {
            // Nobody may listen any more.
            let _ = sender.send(result);
        });
        let node = NodeId(node);
        let address = NodeAddress { node, host: "h".to_owned(), port: 1 };
        self.sweep(vec![Event::Join { node, nonce: 7, address, done }]);
        heard
    }
}

fn message(kind: MessageType, from: u64, term: u64) -> Message {
    let mut message = Message { from, to: 1, term, ..Message::default() };
    message.set_msg_type(kind);
    message
}

fn said(replica: u64, message: Message) -> Event {
    let from = NodeId(if replica < 1_000 { replica } else { 4 });
    Event::Messages { from, clock: ClusterTime(0), messages: vec![message] }
}

#[test]
fn reads_open_with_leader_start_and_not_with_an_entry_that_came_before_it() {
    let mut rig = Rig::new(&[1_000]);
    let vote = rig.stand();
    let epoch = rig.shared.session_epoch();
    // Nothing is proposed before the next tick.
    rig.sweep(vec![Event::SessionTrouble { epoch, is_ended: false }, vote]);
    rig.acknowledge(1_000);
    rig.acknowledge(2);
    let first = rig.driver.core.last_index();
    // The learner has caught up, and becomes a voter.
    rig.tick();
    assert_eq!(rig.driver.core.last_index(), first + 2, "the change of members and LEADER-START");
    rig.acknowledge_to(2, first + 1);
    assert_eq!(rig.shared.applied(), first + 1);
    assert!(rig.driver.serve_from.is_some(), "it does not know yet how long nothing ran");
    rig.acknowledge(2);
    rig.acknowledge(1_000);
    assert_eq!((rig.shared.applied(), rig.driver.serve_from), (first + 2, None));
}

#[test]
fn a_snapshot_that_cannot_be_sent_does_not_keep_the_log() {
    let mut rig = Rig::led();
    rig.write(5);
    let index = LogIndex(rig.shared.applied());
    let membership = rig.applier.state.read().membership().clone();
    let job = CheckpointJob { index, term: Term(rig.driver.core.term()), membership };
    rig.sweep(vec![Event::SnapshotMade { job, path: PathBuf::from("/nowhere/6-1") }, Event::Purged(index.0)]);
    rig.shared.drop_snapshots_before(index.0 + 1);
    rig.write(60);
    // Node 3 has nothing of it, and there is no log from the beginning.
    let mut rejection = message(MessageType::MsgAppendResponse, 3, rig.driver.core.term());
    (rejection.reject, rejection.index, rejection.reject_hint) = (true, 2, 1);
    rig.sweep(vec![said(3, rejection)]);
    assert!(rig.driver.core.progress().iter().any(|known| known.replica == 3 && known.matched == 0));
    // It says nothing more.
    rig.pass(Millis(1_200));
    assert!(rig.shared.keep_from() > index.0 + 1, "{} of {}", rig.shared.keep_from(), rig.shared.applied());
}

#[test]
fn a_node_id_is_given_away_only_after_a_long_silence() {
    let mut rig = Rig::led();
    rig.acknowledge(3);
    rig.pass(Millis(2_000));
    rig.sweep(vec![Event::PeerDown(NodeId(3))]);
    for node in [2, 3] {
        let refusal = rig.join(node).try_recv().unwrap().unwrap_err();
        assert!(refusal.contains(&format!("node-id {node} is taken")), "{refusal}");
    }
    rig.pass(Millis(3_100));
    assert!(rig.join(2).try_recv().unwrap().is_err(), "it was heard just now");
    let heard = rig.join(3);
    assert!(heard.try_recv().is_err(), "it is under way");
    rig.acknowledge(2);
    rig.tick();
    rig.acknowledge(2);
    rig.tick();
    assert!(heard.try_recv().unwrap().is_ok(), "it has a replica id");
}

#[test]
fn heartbeats_for_another_replica_of_this_node_are_no_sign_of_a_leader() {
    let mut rig = Rig::new(&[]);
    let mut heartbeat = message(MessageType::MsgHeartbeat, 2, 9);
    heartbeat.to = 1_001;
    let event = Event::Messages { from: NodeId(2), clock: ClusterTime(5), messages: vec![heartbeat.clone()] };
    rig.sweep(vec![event]);
    assert_eq!(rig.driver.core.term(), 1);
    assert!(rig.shared.silence.leaderless().is_none());
    heartbeat.to = 1;
    rig.sweep(vec![Event::Messages { from: NodeId(2), clock: ClusterTime(5), messages: vec![heartbeat] }]);
    assert!(rig.shared.silence.leaderless().is_some());
}
