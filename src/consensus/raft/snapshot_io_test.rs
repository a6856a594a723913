//! Threads on both ends of a link in memory, with real files.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use parking_lot::Condvar;
use parking_lot::Mutex;

use super::*;
use crate::clock::ManualClock;
use crate::storage::SnapshotFile;
use crate::storage::test_support::TestDir;
use crate::types::Millis;

const GROUP: GroupId = GroupId(5);
const REPLICA: u64 = 42;
const SENDER: NodeId = NodeId(1);
const RECEIVER: NodeId = NodeId(2);

type Boxes = BTreeMap<NodeId, Arc<Mailbox<SnapshotEvent>>>;

/// What happened on either node.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Sent { ok: bool },
    Received { from: NodeId, message: Vec<u8>, incoming_dir: String },
}

/// The link, and what the ports were told.
struct Link {
    boxes: Boxes,
    /// One of so many messages is lost on the way, as its number decides; 0 for none.
    lose_one_of: u64,
    messages: AtomicU64,
    /// The link takes no messages beyond this number.
    cut_after: AtomicU64,
    /// Whether the next `Finished` is lost.
    lose_finished: AtomicBool,
    told: Mutex<Vec<Told>>,
    changed: Condvar,
}

struct Port {
    own: NodeId,
    link: Arc<Link>,
}

impl Port {
    fn tell(&self, told: Told) {
        self.link.told.lock().push(told);
        self.link.changed.notify_all();
    }
}

impl SnapshotPort for Port {
    fn send(&self, to: NodeId, payload: Vec<u8>) -> bool {
        let number = self.link.messages.fetch_add(1, Ordering::SeqCst) + 1;
        if number > self.link.cut_after.load(Ordering::SeqCst) {
            return false;
        }
        let message = TransferMessage::decode(&Bytes::copy_from_slice(&payload));
        if matches!(message, Ok(TransferMessage::Finished { .. }))
            && self.link.lose_finished.swap(false, Ordering::SeqCst)
        {
            return true;
        }
        let hash = u64::from(crc32c::crc32c(&number.to_le_bytes()));
        if self.link.lose_one_of == 0 || !hash.is_multiple_of(self.link.lose_one_of) {
            let event = SnapshotEvent::Message { from: self.own, payload: payload.into() };
            self.link.boxes[&to].send(event);
        }
        true
    }

    fn moved(&self, group: GroupId, to_replica: u64) {
        assert_eq!((group, to_replica), (GROUP, REPLICA));
    }

    fn sent(&self, group: GroupId, to_replica: u64, ok: bool) {
        assert_eq!((group, to_replica), (GROUP, REPLICA));
        self.tell(Told::Sent { ok });
    }

    fn received(&self, group: GroupId, from: NodeId, message: Vec<u8>, incoming_dir: String) {
        assert_eq!(group, GROUP);
        self.tell(Told::Received { from, message, incoming_dir });
    }
}

/// Two nodes.
struct Pair {
    dirs: BTreeMap<NodeId, TestDir>,
    counters: BTreeMap<NodeId, Arc<SnapshotCounters>>,
    threads: Vec<JoinHandle<()>>,
    link: Arc<Link>,
    clock: Arc<ManualClock>,
}

impl Pair {
    fn start(lose_one_of: u64) -> Pair {
        let boxes: Boxes = [SENDER, RECEIVER].map(|node| (node, Arc::default())).into();
        let link = Arc::new(Link {
            boxes,
            lose_one_of,
            messages: AtomicU64::new(0),
            cut_after: AtomicU64::new(u64::MAX),
            lose_finished: AtomicBool::new(false),
            told: Mutex::default(),
            changed: Condvar::new(),
        });
        let clock = Arc::new(ManualClock::default());
        let (mut dirs, mut counters, mut threads) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for (node, mailbox) in &link.boxes {
            let dir = TestDir::new();
            let counts = Arc::new(SnapshotCounters::default());
            let port = Box::new(Port { own: *node, link: Arc::clone(&link) });
            let (path, mailbox) = (dir.path().to_path_buf(), Arc::clone(mailbox));
            threads.push(start(path, mailbox, Arc::clone(&clock) as _, Arc::clone(&counts), port).unwrap());
            dirs.insert(*node, dir);
            counters.insert(*node, counts);
        }
        Pair { dirs, counters, threads, link, clock }
    }

    fn dir(&self, node: NodeId) -> &Path {
        self.dirs[&node].path()
    }

    fn tell(&self, node: NodeId, event: SnapshotEvent) {
        self.link.boxes[&node].send(event);
    }

    /// Asks the sender to send the checkpoint that `make_checkpoint` made.
    fn send(&self) {
        let checkpoint = self.dir(SENDER).join("snapshots/5-70");
        let event = SnapshotEvent::Send {
            to: RECEIVER,
            to_replica: REPLICA,
            group: GROUP,
            index: 70,
            term: 3,
            checkpoint,
            message: b"raft message".to_vec(),
        };
        self.tell(SENDER, event);
    }

    /// Waits for what is looked for in what the ports were told; the clock runs meanwhile.
    fn wait<T>(&self, mut look: impl FnMut(&[Told]) -> Option<T>) -> T {
        let mut told = self.link.told.lock();
        for _ in 0..5_000 {
            if let Some(found) = look(&told) {
                return found;
            }
            self.link.changed.wait_for(&mut told, Duration::from_millis(20));
            self.clock.advance(Millis(50));
        }
        panic!("it did not happen; told: {told:?}");
    }

    /// Waits until a `Send` is over.
    fn outcome(&self) -> bool {
        let ok = self.wait(|told| {
            told.iter().find_map(|told| match told {
                Told::Sent { ok } => Some(*ok),
                Told::Received { .. } => None,
            })
        });
        self.link.told.lock().retain(|told| !matches!(told, Told::Sent { .. }));
        ok
    }

    fn received(&self) -> Vec<Told> {
        self.link.told.lock().iter().filter(|told| matches!(told, Told::Received { .. })).cloned().collect()
    }

    fn bytes(&self, node: NodeId) -> (u64, u64) {
        let counters = &self.counters[&node];
        (counters.bytes_sent.load(Ordering::SeqCst), counters.bytes_received.load(Ordering::SeqCst))
    }

    fn incoming(&self) -> std::path::PathBuf {
        self.dir(RECEIVER).join("incoming/5-70-3")
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for node in [SENDER, RECEIVER] {
            self.tell(node, SnapshotEvent::Stop);
        }
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a thread panicked");
        }
    }
}

/// Files of several sizes, one of them empty. Returns how many bytes they have.
fn make_checkpoint(pair: &Pair, large: usize) -> u64 {
    let checkpoint = pair.dir(SENDER).join("snapshots/5-70");
    fs::create_dir_all(&checkpoint).unwrap();
    let large: Vec<u8> = (0..large).map(|n| (n * n / 7) as u8).collect();
    for (name, content) in [
        ("000007.sst", &large[..]),
        ("000009.log", b""),
        ("CURRENT", b"MANIFEST-000004\n"),
        ("a.b", &[7; 200_000]),
    ] {
        fs::write(checkpoint.join(name), content).unwrap();
    }
    large.len() as u64 + 16 + 200_000
}

fn assert_same_files(left: &Path, right: &Path) {
    let files = crate::storage::list_files(left).unwrap();
    assert_eq!(files.len(), 4);
    assert_eq!(crate::storage::list_files(right).unwrap(), files);
}

fn one_received() -> Vec<Told> {
    let incoming_dir = "5-70-3".to_owned();
    vec![Told::Received { from: SENDER, message: b"raft message".to_vec(), incoming_dir }]
}

#[test]
fn a_snapshot_arrives_whole_and_is_reported_once_on_both_sides() {
    let pair = Pair::start(0);
    let bytes = make_checkpoint(&pair, 5 << 20);
    pair.send();
    assert!(pair.outcome());
    assert_eq!(pair.received(), one_received());
    assert_same_files(&pair.dir(SENDER).join("snapshots/5-70"), &pair.incoming());
    assert_eq!((pair.bytes(SENDER), pair.bytes(RECEIVER)), ((bytes, 0), (0, bytes)));
}

#[test]
fn a_snapshot_arrives_over_a_link_that_loses_messages() {
    for lose_one_of in [3, 10] {
        let pair = Pair::start(lose_one_of);
        make_checkpoint(&pair, 2 << 20);
        // A transfer may fail; Raft asks again then.
        let mut attempts = 0;
        while pair.received().is_empty() {
            attempts += 1;
            assert!(attempts < 50, "losing one of {lose_one_of} messages");
            pair.send();
            pair.outcome();
        }
        assert_eq!(pair.received(), one_received(), "losing one of {lose_one_of} messages");
        assert_same_files(&pair.dir(SENDER).join("snapshots/5-70"), &pair.incoming());
    }
}

#[test]
fn a_transfer_after_a_broken_link_goes_on_where_it_was() {
    let pair = Pair::start(0);
    let bytes = make_checkpoint(&pair, 32 << 20);
    pair.link.cut_after.store(100, Ordering::SeqCst);
    pair.send();
    let messages = &pair.link.messages;
    pair.wait(|_| (messages.load(Ordering::SeqCst) > 100).then_some(()));
    pair.tell(SENDER, SnapshotEvent::PeerDown(RECEIVER));
    pair.tell(RECEIVER, SnapshotEvent::PeerDown(SENDER));
    assert!(!pair.outcome());
    assert!(pair.received().is_empty());
    pair.link.cut_after.store(u64::MAX, Ordering::SeqCst);
    pair.send();
    assert!(pair.outcome());
    assert_eq!(pair.received(), one_received());
    assert_same_files(&pair.dir(SENDER).join("snapshots/5-70"), &pair.incoming());
    assert_eq!(pair.bytes(RECEIVER).1, bytes, "nothing was written twice");
    assert!(pair.bytes(SENDER).0 <= bytes + (1 << 20), "no more than what was under way is sent again");
}

#[test]
fn a_sender_that_missed_the_end_asks_and_is_told() {
    let pair = Pair::start(0);
    make_checkpoint(&pair, 1000);
    pair.link.lose_finished.store(true, Ordering::SeqCst);
    pair.send();
    assert!(pair.outcome());
    assert_eq!(pair.received(), one_received());
    assert!(!pair.link.lose_finished.load(Ordering::SeqCst));
}

#[test]
fn a_peer_that_is_away_fails_the_transfer_after_a_while() {
    let pair = Pair::start(0);
    make_checkpoint(&pair, 1000);
    pair.link.cut_after.store(0, Ordering::SeqCst);
    pair.send();
    assert!(!pair.outcome());
    assert_eq!(pair.counters[&SENDER].failed.load(Ordering::SeqCst), 1);
}

#[test]
fn a_cancelled_transfer_is_reported_as_not_sent() {
    let pair = Pair::start(0);
    make_checkpoint(&pair, 1000);
    pair.link.cut_after.store(0, Ordering::SeqCst);
    pair.send();
    pair.tell(SENDER, SnapshotEvent::Cancel { to_replica: REPLICA });
    assert!(!pair.outcome());
}

#[test]
fn a_checkpoint_that_cannot_be_read_fails_the_transfer() {
    let pair = Pair::start(0);
    pair.send();
    assert!(!pair.outcome());
    make_checkpoint(&pair, 1000);
    fs::create_dir(pair.dir(SENDER).join("snapshots/5-70/strange")).unwrap();
    pair.send();
    assert!(!pair.outcome());
}

#[test]
fn a_disk_that_refuses_ends_the_transfer_and_not_the_node() {
    let pair = Pair::start(0);
    make_checkpoint(&pair, 1000);
    let incoming = pair.dir(RECEIVER).join("incoming");
    fs::write(&incoming, "in the way").unwrap();
    pair.send();
    assert!(!pair.outcome());
    fs::remove_file(&incoming).unwrap();
    pair.send();
    assert!(pair.outcome());
}

#[test]
fn a_snapshot_that_was_handed_over_is_left_alone_until_it_is_released() {
    let pair = Pair::start(0);
    make_checkpoint(&pair, 1000);
    pair.send();
    assert!(pair.outcome());
    let mark = pair.incoming().join("mark");
    fs::write(&mark, "being installed").unwrap();
    pair.send();
    assert!(!pair.outcome());
    assert!(mark.exists());
    pair.tell(RECEIVER, SnapshotEvent::Release { incoming_dir: "5-70-3".to_owned() });
    pair.tell(RECEIVER, SnapshotEvent::Release { incoming_dir: "../snapshots".to_owned() });
    pair.send();
    assert!(pair.outcome());
    assert!(!mark.exists());
    assert_eq!(pair.received().len(), 2);
}

#[test]
fn an_offer_larger_than_the_disk_is_refused_and_nonsense_is_ignored() {
    let pair = Pair::start(0);
    let mailbox = Arc::new(Mailbox::default());
    // The answers come to this test in the sender's place.
    let link = Arc::new(Link {
        boxes: [(SENDER, Arc::clone(&mailbox))].into(),
        lose_one_of: 0,
        messages: AtomicU64::new(0),
        cut_after: AtomicU64::new(u64::MAX),
        lose_finished: AtomicBool::new(false),
        told: Mutex::default(),
        changed: Condvar::new(),
    });
    let dir = TestDir::new();
    let own = Arc::new(Mailbox::default());
    let port = Box::new(Port { own: RECEIVER, link });
    let thread =
        start(dir.path().into(), Arc::clone(&own), pair.clock.clone(), Arc::default(), port).unwrap();
    let files = vec![SnapshotFile { name: "a".to_owned(), size: 1 << 60, crc: 0 }];
    let offer =
        Offer { transfer: 8, group: GROUP, to_replica: 1, index: 7, term: 1, message: Vec::new(), files };
    for payload in [
        b"nonsense".to_vec(),
        TransferMessage::Ack { transfer: 1, file: 0, offset: 0 }.encode(),
        transfer::encode_chunk(9, 0, 0, b"x"),
        TransferMessage::Offer(offer).encode(),
    ] {
        own.send(SnapshotEvent::Message { from: SENDER, payload: payload.into() });
    }
    own.send(SnapshotEvent::Stop);
    thread.join().unwrap();
    let mut events = Vec::new();
    mailbox.take(&mut events);
    let answers: Vec<_> = events
        .iter()
        .map(|event| match event {
            SnapshotEvent::Message { payload, .. } => TransferMessage::decode(payload).unwrap(),
            event => panic!("{event:?}"),
        })
        .collect();
    let [
        TransferMessage::Refused { transfer: 9, reason: over },
        TransferMessage::Refused { transfer: 8, reason },
    ] = &answers[..]
    else {
        panic!("{answers:?}")
    };
    assert!(over.contains("over") && reason.contains("too many"), "{over}; {reason}");
    assert!(!dir.path().join("incoming").exists());
}
