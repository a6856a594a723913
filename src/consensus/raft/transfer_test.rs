//! The codec against damage, and both ends over a link that loses, doubles, reorders and damages messages.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::BinaryHeap;

use proptest::prelude::*;

use super::*;

const SENDER: NodeId = NodeId(1);
/// Small, so that few bytes make many chunks.
const SMALL_CHUNK: u64 = 64;
const SMALL_WINDOW: u64 = 512;

type Files = BTreeMap<String, Vec<u8>>;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn is_one_of(&mut self, hundredths: u64) -> bool {
        self.below(100) < hundredths
    }
}

fn ms(ms: u64) -> Monotonic {
    Monotonic(ms * 1_000_000)
}

fn some_files(random: &mut Random) -> Files {
    let count = 1 + random.below(6);
    (0..count)
        .map(|number| {
            let size = [0, 1, SMALL_CHUNK, 5 * SMALL_CHUNK, 3000][random.below(5) as usize];
            (format!("{number:06}.sst"), (0..size).map(|_| random.next() as u8).collect())
        })
        .collect()
}

fn offer(transfer: u64, files: &Files) -> Offer {
    let files = files.iter().map(|(name, content)| SnapshotFile {
        name: name.clone(),
        size: content.len() as u64,
        crc: crc32c::crc32c(content),
    });
    Offer {
        transfer,
        group: GroupId(2),
        to_replica: 9,
        index: 70,
        term: 3,
        message: b"raft message".to_vec(),
        files: files.collect(),
    }
}

fn outgoing(transfer: u64, files: &Files, now: Monotonic) -> Outgoing {
    Outgoing {
        chunk: SMALL_CHUNK,
        window: SMALL_WINDOW,
        ..Outgoing::new(offer(transfer, files), now).unwrap()
    }
}

fn chunk_of(files: &Files, transfer: u64, place: ChunkPlace) -> TransferMessage {
    let content = files.values().nth(place.file as usize).unwrap();
    let data = &content[place.offset as usize..][..place.length];
    TransferMessage::Chunk {
        transfer,
        file: place.file,
        offset: place.offset,
        data: Bytes::copy_from_slice(data),
    }
}

/// A receiver with its disk.
#[derive(Default)]
struct Receiver {
    incoming: Option<Incoming>,
    disk: Files,
    finished: Vec<u64>,
    chunks: usize,
}

impl Receiver {
    fn on_message(&mut self, message: TransferMessage, now: Monotonic) -> Option<TransferMessage> {
        match message {
            TransferMessage::Offer(offer) => self.on_offer(offer, now),
            TransferMessage::Chunk { transfer, file, offset, data } => {
                self.on_chunk(transfer, file, offset, &data, now)
            }
            other => panic!("a sender said {other:?}"),
        }
    }

    fn on_offer(&mut self, offer: Offer, now: Monotonic) -> Option<TransferMessage> {
        let transfer = offer.transfer;
        if self.finished.contains(&transfer) {
            return Some(TransferMessage::Finished { transfer });
        }
        match on_offer(self.incoming.as_ref(), SENDER, &offer, now) {
            OfferOutcome::Refuse(reason) => {
                return Some(TransferMessage::Refused { transfer, reason: reason.to_owned() });
            }
            OfferOutcome::Begin => {
                self.disk = offer.files.iter().map(|file| (file.name.clone(), Vec::new())).collect();
                self.incoming = Some(Incoming::new(SENDER, offer, now));
            }
            OfferOutcome::GoOn => self.incoming.as_mut().unwrap().adopt(SENDER, offer, now),
        }
        let incoming = self.incoming.as_mut().unwrap();
        let want = incoming.want();
        self.after(Some(want))
    }

    fn on_chunk(
        &mut self,
        transfer: u64,
        file: u32,
        offset: u64,
        data: &[u8],
        now: Monotonic,
    ) -> Option<TransferMessage> {
        self.chunks += 1;
        let is_it = |incoming: &&mut Incoming| incoming.offer().transfer == transfer;
        let Some(incoming) = self.incoming.as_mut().filter(is_it) else {
            if self.finished.contains(&transfer) {
                return Some(TransferMessage::Finished { transfer });
            }
            return Some(TransferMessage::Refused { transfer, reason: "unknown".to_owned() });
        };
        let answer = match incoming.on_chunk(file, offset, data, now) {
            ChunkOutcome::Write { ends_file } => {
                let SnapshotFile { name, size, .. } = incoming.file(file).unwrap();
                let content = self.disk.get_mut(name).unwrap();
                // What a file that begins again holds is overwritten, not cut off.
                let end = offset as usize + data.len();
                content.resize(content.len().max(end), 0);
                content[offset as usize..end].copy_from_slice(data);
                assert_eq!(ends_file, end as u64 == *size);
                incoming.written()
            }
            ChunkOutcome::Answer(answer) => answer,
            ChunkOutcome::Failed => None,
        };
        self.after(answer)
    }

    fn after(&mut self, answer: Option<TransferMessage>) -> Option<TransferMessage> {
        let incoming = self.incoming.as_ref().unwrap();
        let transfer = incoming.offer().transfer;
        match incoming.state().clone() {
            IncomingState::WaitingForData => answer,
            IncomingState::Complete => {
                self.incoming = None;
                self.finished.push(transfer);
                Some(TransferMessage::Finished { transfer })
            }
            IncomingState::Failed(reason) => {
                self.incoming = None;
                Some(TransferMessage::Refused { transfer, reason })
            }
        }
    }
}

/// How bad the link is, in hundredths of messages.
#[derive(Clone, Copy)]
struct Link {
    lost: u64,
    doubled: u64,
    damaged: u64,
    delay_ms: u64,
}

/// When it arrives, its number, whether it goes to the receiver, and what it says.
type Flying = (u64, u64, bool, Vec<u8>);

struct World {
    random: Random,
    link: Link,
    now: u64,
    sequence: u64,
    /// Time, sequence, whether to the receiver, payload.
    heap: BinaryHeap<Reverse<Flying>>,
}

impl World {
    fn send(&mut self, to_receiver: bool, message: &TransferMessage) {
        let payload = message.encode();
        let copies = if self.random.is_one_of(self.link.lost) {
            0
        } else {
            1 + u64::from(self.random.is_one_of(self.link.doubled))
        };
        for _ in 0..copies {
            let mut payload = payload.clone();
            if self.random.is_one_of(self.link.damaged) {
                let at = self.random.below(payload.len() as u64) as usize;
                payload[at] ^= 1 << self.random.below(8);
            }
            self.sequence += 1;
            let at = self.now + self.random.below(self.link.delay_ms + 1);
            self.heap.push(Reverse((at, self.sequence, to_receiver, payload)));
        }
    }

    /// One transfer to its end.
    fn run(&mut self, transfer: u64, files: &Files, receiver: &mut Receiver, until: u64) -> OutgoingState {
        let mut sender = outgoing(transfer, files, ms(self.now));
        while !sender.is_over() && self.now < until {
            if sender.on_time(ms(self.now)) {
                self.send(true, &TransferMessage::Offer(sender.offer().clone()));
                sender.offer_sent(ms(self.now));
            }
            while let Some(place) = sender.next_chunk() {
                self.send(true, &chunk_of(files, transfer, place));
                sender.chunk_sent(place);
                assert!(sender.next - sender.acked <= SMALL_WINDOW && sender.next <= sender.layout.total());
            }
            self.now += 1;
            while self.heap.peek().is_some_and(|Reverse((at, ..))| *at <= self.now) {
                let Reverse((_, _, to_receiver, payload)) = self.heap.pop().unwrap();
                let Ok(message) = TransferMessage::decode(&Bytes::from(payload)) else { continue };
                if !to_receiver {
                    sender.on_message(&message, ms(self.now));
                } else if let Some(answer) = receiver.on_message(message, ms(self.now)) {
                    self.send(false, &answer);
                }
            }
        }
        sender.state().clone()
    }
}

fn world(seed: u64, link: Link) -> World {
    World { random: Random(seed), link, now: 0, sequence: 0, heap: BinaryHeap::new() }
}

const GOOD: Link = Link { lost: 0, doubled: 0, damaged: 0, delay_ms: 0 };

#[test]
fn over_any_link_the_files_arrive_equal_or_the_transfer_fails() {
    let links = [
        Link { lost: 5, doubled: 5, damaged: 2, delay_ms: 0 },
        Link { lost: 20, doubled: 20, damaged: 5, delay_ms: 40 },
        Link { lost: 60, doubled: 10, damaged: 10, delay_ms: 200 },
        Link { lost: 100, doubled: 0, damaged: 0, delay_ms: 0 },
    ];
    let mut done = [0; 4];
    for seed in 0..400 {
        let kind = (seed % 4) as usize;
        let mut world = world(seed, links[kind]);
        let files = some_files(&mut world.random);
        let mut receiver = Receiver::default();
        let state = world.run(1, &files, &mut receiver, u64::MAX);
        if !receiver.finished.is_empty() {
            assert!(receiver.disk == files, "seed {seed}");
        }
        match state {
            OutgoingState::Done => {
                assert_eq!(receiver.finished, [1], "seed {seed}");
                done[kind] += 1;
            }
            OutgoingState::Failed(reason) => {
                assert!(
                    reason.contains("no progress") && world.now >= NO_PROGRESS_MS,
                    "{reason}, seed {seed}"
                );
            }
            state => panic!("{state:?}, seed {seed}"),
        }
    }
    assert_eq!((done[0], done[3]), (100, 0), "{done:?}");
    assert!(done[1] > 90 && done[2] > 0, "{done:?}");
}

#[test]
fn over_a_good_link_nothing_is_sent_twice() {
    let mut world = world(7, GOOD);
    let files = Files::from([("a".to_owned(), vec![1; 100]), ("b".to_owned(), vec![2; 6400])]);
    let mut receiver = Receiver::default();
    assert_eq!(world.run(1, &files, &mut receiver, u64::MAX), OutgoingState::Done);
    assert!(receiver.chunks == 2 + 100 && receiver.disk == files, "{} chunks", receiver.chunks);
}

#[test]
fn a_new_transfer_of_the_same_files_goes_on_where_the_last_was_cut_off() {
    for seed in 0..50 {
        let mut world = world(seed, Link { delay_ms: 3, ..GOOD });
        let files = Files::from([("a".to_owned(), vec![1; 100]), ("b".to_owned(), vec![2; 64_000])]);
        let mut receiver = Receiver::default();
        let state = world.run(1, &files, &mut receiver, 20 + seed);
        assert!(matches!(state, OutgoingState::Streaming | OutgoingState::Offered), "{state:?}");
        let had = receiver.incoming.as_ref().map_or(0, |incoming| incoming.position);
        world.heap.clear();
        world.link = GOOD;
        receiver.chunks = 0;
        assert_eq!(world.run(2, &files, &mut receiver, u64::MAX), OutgoingState::Done, "seed {seed}");
        let missing = 64_100 - had;
        assert!(had > 0 && receiver.chunks as u64 <= missing / SMALL_CHUNK + 2, "seed {seed}");
        assert!(receiver.disk == files && receiver.finished == [2], "seed {seed}");
    }
}

#[test]
fn other_files_under_the_same_index_are_not_mixed_with_what_is_there() {
    let mut world = world(3, GOOD);
    let old = Files::from([("a".to_owned(), vec![1; 64_000])]);
    let new = Files::from([("a".to_owned(), vec![2; 64_000])]);
    let mut receiver = Receiver::default();
    world.run(1, &old, &mut receiver, 20);
    assert!(receiver.incoming.as_ref().is_some_and(|incoming| incoming.position > 0));
    world.heap.clear();
    assert_eq!(world.run(2, &new, &mut receiver, u64::MAX), OutgoingState::Done);
    assert!(receiver.disk == new, "a mix");
}

#[test]
fn a_file_that_is_not_what_was_offered_is_never_taken() {
    let mut world = world(5, GOOD);
    let offered = Files::from([("a".to_owned(), vec![1; 1000]), ("b".to_owned(), vec![1; 10])]);
    let mut sender = outgoing(1, &offered, ms(0));
    let mut sent = offered.clone();
    sent.get_mut("a").unwrap()[999] = 2;
    let mut receiver = Receiver::default();
    let mut answer = receiver.on_offer(sender.offer().clone(), ms(0));
    while let Some(message) = answer.take() {
        sender.on_message(&message, ms(world.now));
        while let (None, Some(place)) = (&answer, sender.next_chunk()) {
            sender.chunk_sent(place);
            world.now += 1;
            answer = receiver.on_message(chunk_of(&sent, 1, place), ms(world.now));
        }
    }
    let OutgoingState::Failed(reason) = sender.state() else { panic!("{:?}", sender.state()) };
    assert!(reason.contains("checksums"), "{reason}");
    assert!(receiver.finished.is_empty());
    assert_eq!(receiver.chunks, MISMATCHES_MAX as usize * 16);
}

#[test]
fn many_chunks_behind_a_lost_one_ask_once() {
    let files = Files::from([("a".to_owned(), vec![1; 1000])]);
    let mut incoming = Incoming::new(SENDER, offer(1, &files), ms(0));
    let asked: Vec<_> = (1..8).map(|n| incoming.on_chunk(0, n * SMALL_CHUNK, &[1; 64], ms(0))).collect();
    let want = TransferMessage::Want { transfer: 1, file: 0, offset: 0 };
    assert_eq!(asked[0], ChunkOutcome::Answer(Some(want)));
    assert!(asked[1..].iter().all(|answer| *answer == ChunkOutcome::Answer(None)), "{asked:?}");
}

#[test]
fn a_peer_that_says_anything_moves_nothing_out_of_its_bounds() {
    let files = Files::from([("a".to_owned(), vec![1; 1000]), ("b".to_owned(), Vec::new())]);
    for seed in 0..200 {
        let mut random = Random(seed);
        let mut sender = outgoing(1, &files, ms(0));
        let mut incoming = Incoming::new(SENDER, offer(1, &files), ms(0));
        for _ in 0..200 {
            let file = [0, 1, 2, 3, u32::MAX][random.below(5) as usize];
            let offset = [0, 1, 64, 999, 1000, 1001, u64::MAX][random.below(7) as usize];
            let message = match random.below(2) {
                0 => TransferMessage::Want { transfer: 1, file, offset },
                _ => TransferMessage::Ack { transfer: 1, file, offset },
            };
            sender.on_message(&message, ms(0));
            if let Some(place) = sender.next_chunk() {
                let end = place.offset + place.length as u64;
                assert!(place.file == 0 && end <= 1000 && place.length > 0, "{place:?}, seed {seed}");
                sender.chunk_sent(place);
            }
            let data = vec![1; 1 + random.below(1000) as usize];
            if let ChunkOutcome::Write { .. } = incoming.on_chunk(file, offset, &data, ms(0)) {
                assert!(file == 0 && offset + data.len() as u64 <= 1000, "seed {seed}");
                incoming.written();
            }
        }
    }
}

#[test]
fn a_receiver_that_always_begins_again_ends_the_transfer() {
    let files = Files::from([("a".to_owned(), vec![1; 1000])]);
    let mut sender = outgoing(1, &files, ms(0));
    let mut rounds = 0u64;
    while !sender.is_over() {
        rounds += 1;
        let now = ms(rounds);
        sender.on_message(&TransferMessage::Want { transfer: 1, file: 0, offset: 0 }, now);
        while let Some(place) = sender.next_chunk() {
            sender.chunk_sent(place);
        }
        sender.on_message(&TransferMessage::Ack { transfer: 1, file: 0, offset: 448 }, now);
        assert!(rounds * 448 < 2 * REPEATED_BYTES, "{:?}", sender.state());
    }
    assert!(matches!(sender.state(), OutgoingState::Failed(_)));
}

#[test]
fn one_snapshot_of_a_group_arrives_at_a_time() {
    let files = Files::from([("a".to_owned(), vec![1; 1000])]);
    let current = Incoming::new(SENDER, offer(1, &files), ms(0));
    let decide = |from: u64, index: u64, size: usize, at: u64| {
        let files = Files::from([("a".to_owned(), vec![1; size])]);
        on_offer(Some(&current), NodeId(from), &Offer { index, ..offer(2, &files) }, ms(at))
    };
    assert_eq!(on_offer(None, SENDER, current.offer(), ms(0)), OfferOutcome::Begin);
    assert_eq!(decide(1, 70, 1000, 0), OfferOutcome::GoOn);
    assert_eq!(decide(2, 70, 1000, 0), OfferOutcome::GoOn);
    assert_eq!(decide(2, 71, 1000, 0), OfferOutcome::Begin);
    assert_eq!(decide(1, 60, 1000, 0), OfferOutcome::Begin);
    assert!(matches!(decide(2, 60, 1000, 0), OfferOutcome::Refuse(_)));
    assert!(matches!(decide(2, 70, 999, 9_999), OfferOutcome::Refuse(_)));
    assert_eq!(decide(2, 60, 1000, 10_000), OfferOutcome::Begin);
    assert!(!current.is_abandoned(ms(KEPT_MS - 1)) && current.is_abandoned(ms(KEPT_MS)));
}

fn messages() -> Vec<TransferMessage> {
    let files = Files::from([("000001.sst".to_owned(), vec![1; 300]), ("CURRENT".to_owned(), Vec::new())]);
    let mut largest = offer(u64::MAX, &files);
    largest.message = vec![7; MESSAGE_BYTES_MAX];
    vec![
        TransferMessage::Offer(offer(1, &files)),
        TransferMessage::Offer(largest),
        TransferMessage::Want { transfer: 1, file: u32::MAX, offset: u64::MAX },
        TransferMessage::Chunk { transfer: 3, file: 1, offset: 9, data: Bytes::from_static(b"x") },
        TransferMessage::Chunk { transfer: 3, file: 1, offset: 9, data: vec![5; CHUNK_BYTES_MAX].into() },
        TransferMessage::Ack { transfer: 0, file: 0, offset: 0 },
        TransferMessage::Finished { transfer: 5 },
        TransferMessage::Refused { transfer: 5, reason: "the disk is full".to_owned() },
    ]
}

#[test]
fn messages_come_back_as_they_were() {
    for message in messages() {
        let payload = Bytes::from(message.encode());
        assert_eq!(TransferMessage::decode(&payload), Ok(message));
    }
    let long = TransferMessage::Refused { transfer: 5, reason: "é".repeat(1000) };
    let expected = TransferMessage::Refused { transfer: 5, reason: "é".repeat(128) };
    assert_eq!(TransferMessage::decode(&long.encode().into()), Ok(expected));
}

#[test]
fn a_message_of_this_version_looks_so_for_ever() {
    let want = TransferMessage::Want { transfer: 300, file: 2, offset: 5 }.encode();
    assert_eq!(want[..want.len() - 4], [1, 2, 172, 2, 2, 5]);
    let files = Files::from([("a".to_owned(), b"123456789".to_vec())]);
    let offer = TransferMessage::Offer(Offer { message: b"m".to_vec(), ..offer(1, &files) }).encode();
    let expected = [1, 1, 1, 2, 9, 70, 3, 1, b'm', 1, 1, b'a', 9, 0x83, 0x92, 0x06, 0xe3];
    assert_eq!(offer[..offer.len() - 4], expected);
}

#[test]
fn a_damaged_or_cut_message_is_refused() {
    for message in messages() {
        let payload = message.encode();
        let step = 1 + payload.len() / 500;
        for at in (0..payload.len()).step_by(step) {
            assert!(TransferMessage::decode(&Bytes::copy_from_slice(&payload[..at])).is_err());
            let mut damaged = payload.clone();
            damaged[at] ^= 0x10;
            assert!(TransferMessage::decode(&damaged.into()).is_err(), "byte {at}");
        }
    }
}

/// Bytes with the right checksum at their end, as only a peer that means it sends them.
fn sealed(body: &[u8]) -> Bytes {
    seal(body.to_vec()).into()
}

#[test]
fn an_offer_that_would_leave_its_directory_or_bounds_is_refused() {
    let file = |name: &str, size: u64| SnapshotFile { name: name.to_owned(), size, crc: 0 };
    let many = |count: usize| (0..count).map(|n| file(&format!("{n:09}"), 1)).collect::<Vec<_>>();
    let wrong = [
        (vec![file("../../etc/passwd", 1)], "plain"),
        (vec![file("a/b", 1)], "plain"),
        (vec![file("", 1)], "plain"),
        (vec![file("b", 1), file("a", 1)], "order"),
        (vec![file("a", 1), file("a", 1)], "order"),
        (vec![file("a", u64::MAX), file("b", 1)], "sizes"),
        (vec![], "number of files"),
        (many(FILES_MAX + 1), "number of files"),
    ];
    let base = offer(1, &Files::from([("a".to_owned(), Vec::new())]));
    for (files, expected) in wrong {
        let offer = Offer { files, ..base.clone() };
        let error = Outgoing::new(offer.clone(), ms(0)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        let decoded = TransferMessage::decode(&TransferMessage::Offer(offer).encode().into());
        assert!(decoded.unwrap_err().to_string().contains(expected));
    }
    assert!(Outgoing::new(Offer { files: many(FILES_MAX), ..base.clone() }, ms(0)).is_ok());
    let long = |n: usize| file(&format!("{n:0250}"), 1);
    let too_long = Offer { files: (0..FILES_MAX).map(long).collect(), ..base.clone() };
    assert!(Outgoing::new(too_long, ms(0)).is_err());
    assert!(Outgoing::new(Offer { message: vec![0; MESSAGE_BYTES_MAX + 1], ..base }, ms(0)).is_err());
    // A number of files that is only claimed allocates nothing.
    let mut body = vec![VERSION, OFFER, 1, 1, 1, 1, 1, 0];
    put_varint(&mut body, u64::MAX);
    assert!(TransferMessage::decode(&sealed(&body)).is_err());
    assert!(TransferMessage::decode(&sealed(&[VERSION, FINISHED, 1, 0])).is_err(), "bytes after the end");
    assert!(TransferMessage::decode(&sealed(&[2, FINISHED, 1])).is_err(), "another version");
    assert!(TransferMessage::decode(&sealed(&[VERSION, CHUNK, 1, 0, 0, 0])).is_err(), "an empty chunk");
}

proptest! {
    #[test]
    fn no_bytes_of_a_peer_are_a_reason_to_panic(kind in 0u8..9, body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = TransferMessage::decode(&Bytes::from(body.clone()));
        let _ = TransferMessage::decode(&sealed(&[&[VERSION, kind], &body[..]].concat()));
    }
}
