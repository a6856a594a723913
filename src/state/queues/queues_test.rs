//! Queues as a part of the state: what is written and read back, taken back, handed over; nothing lost or invented.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::state::confirm::confirm;
use crate::state::test_support::TestStore;
use crate::storage::DataStore;
use crate::storage::SharedCaches;
use crate::storage::SharedData;
use crate::storage::test_support::TestDir;
use crate::types::NodeId;
use crate::types::Term;
use crate::types::WallMillis;
use crate::types::bounds::Bounds;

/// The queues of these tests; what dies in the first may go to the second.
const NAMES: [&[u8]; 2] = [b"q", b"r"];

/// Begins the next entry, at this time, and ends what is due in the queues.
fn entry(state: &mut State, now: u64) -> ClusterTime {
    let index = LogIndex(state.meta.applied.0 + 1);
    let now = ClusterTime(now);
    state.begin_entry(index, Term(1), now, WallMillis(0));
    for name in NAMES {
        state.expire_touched(0, name, now);
    }
    now
}

fn by(now: ClusterTime) -> By<'static> {
    By { now, node: 1, reason: b"" }
}

fn origin() -> Origin {
    Origin { node: NodeId(1), life: 1, client: 1, address: "x".into() }
}

fn request(queues: &[&[u8]], count: usize, take: Take) -> PopRequest {
    let (lease, no_ack) = match take {
        Take::Lease(lease) => (Some(lease), false),
        Take::Remove => (None, true),
    };
    let queues = queues.iter().map(|name| Box::from(*name)).collect();
    let (consumer, reply_max) = ((*b"w").into(), Bounds::DEFAULT.reply);
    PopRequest { db: 0, queues, count, lease, no_ack, with_meta: false, consumer, reply_max }
}

fn push_at(state: &mut State, now: u64, payload: &str) -> MessageId {
    let now = entry(state, now);
    let request = PushRequest { payload: payload.as_bytes(), ..PushRequest::default() };
    match push(state, 0, b"q", &request, by(now)) {
        Ok(Pushed::New(id)) => id,
        other => panic!("{other:?}"),
    }
}

fn pop_at(state: &mut State, now: u64, count: usize, take: Take) -> Vec<Popped> {
    let now = entry(state, now);
    pop(state, &request(&[b"q"], count, take), &origin(), now).expect("the key holds a queue or nothing")
}

fn ack_at(state: &mut State, now: u64, receipts: &[Receipt]) -> usize {
    let now = entry(state, now);
    ack(state, 0, b"q", receipts, by(now)).expect("the key holds a queue or nothing")
}

fn named<'a>(state: &'a State, name: &[u8]) -> Option<&'a Queue> {
    queue_at(state, 0, name).expect("the key holds a queue or nothing")
}

fn known<'a>(state: &'a State, name: &[u8]) -> Option<&'a Queue> {
    known_at(state, 0, name).expect("the key holds a queue or nothing")
}

fn payloads(popped: &[Popped]) -> Vec<&str> {
    popped.iter().map(|popped| std::str::from_utf8(&popped.payload).unwrap()).collect()
}

const LEASE: Take = Take::Lease(Millis(1_000));

/// Every queue is in order, and the index of deadlines knows each at its first timer or before.
fn check(state: &State) {
    let mut indexed = BTreeSet::new();
    for ((db, key), queue) in state.known_queues() {
        queue.check();
        let is_key = matches!(queue_at(state, *db, key), Some(Some(queue)) if !queue.is_at_rest());
        assert_eq!(is_key, !queue.is_at_rest(), "{key:?} is a key unless it is at rest");
        for slot in queue.messages_from(MessageId::FIRST) {
            let Some(name) = queue.extra(slot.id()).and_then(|extra| extra.dedup.as_deref()) else {
                continue;
            };
            let known = queue.dedup(name).map(|dedup| (dedup.id, dedup.until));
            assert_eq!(known, Some((slot.id(), ClusterTime::NEVER)), "two messages under one ID");
        }
        for track in Track::ALL {
            let at = queue.indexed_at[track as usize];
            assert!(at <= queue.earliest_on(track), "{key:?} would be looked at too late");
            if at != ClusterTime::NEVER {
                indexed.insert((track, at, LeaseName::Queue(*db, key.clone())));
            }
        }
        assert_eq!(state.queue_name(queue.number()), Some(&(*db, key.clone())));
    }
    let of_queues = |name: &LeaseName| matches!(name, LeaseName::Queue(..));
    let on = |track| state.leases.on(track).iter().map(move |(at, name)| (track, at, name.clone()));
    let known = Track::ALL.into_iter().flat_map(on).filter(|(_, _, name)| of_queues(name));
    assert_eq!(indexed, known.collect());
}

#[test]
fn an_expire_entry_returns_every_message_that_is_due() {
    let mut state = State::new(1);
    for payload in ["one", "two", "three"] {
        push_at(&mut state, 0, payload);
    }
    for lease in [100, 200, 300] {
        pop_at(&mut state, 0, 1, Take::Lease(Millis(lease)));
    }
    let now = ClusterTime(250);
    state.begin_entry(LogIndex(100), Term(1), now, WallMillis(0));
    assert!(state.anything_due(now));
    assert_eq!(state.expire_due(now), 2);
    assert!(!state.anything_due(now));
    let queue = named(&state, b"q").unwrap();
    assert_eq!((queue.count(StateName::Ready), queue.count(StateName::Leased)), (2, 1));
    assert_eq!(queue.counters().expired_leases, 2);
    check(&state);
}

#[test]
fn more_than_one_entry_may_end_is_left_for_the_next() {
    let mut state = State::new(1);
    for _ in 0..200 {
        push_at(&mut state, 0, "m");
    }
    pop_at(&mut state, 0, 200, Take::Lease(Millis(100)));
    let now = ClusterTime(100);
    state.begin_entry(LogIndex(5_000), Term(1), now, WallMillis(0));
    for (ended, left) in [(64, 136), (64, 72), (64, 8), (8, 0), (0, 0)] {
        assert_eq!(state.expire_due(now), ended);
        assert_eq!(named(&state, b"q").map(|queue| queue.count(StateName::Leased)), Some(left));
        check(&state);
    }
}

#[test]
fn grace_keeps_messages_with_their_consumers_within_its_budget() {
    let mut state = State::new(1);
    push_at(&mut state, 0, "one");
    pop_at(&mut state, 0, 1, LEASE);
    for (now, until) in [(500, 3_500), (3_400, 6_400), (6_000, 7_000), (6_900, 7_000)] {
        let now = entry(&mut state, now);
        state.grant_grace(now);
        assert_eq!(named(&state, b"q").map(Queue::earliest_timer), Some(ClusterTime(until)));
        check(&state);
    }
    assert_eq!(payloads(&pop_at(&mut state, 7_000, 1, Take::Remove)), ["one"]);
}

#[test]
fn a_message_that_changes_often_is_written_once() {
    let store = TestStore::new();
    let mut state = State::new(1);
    push_at(&mut state, 0, "one");
    for now in 0..5 {
        pop_at(&mut state, now * 100, 1, Take::Lease(Millis(100)));
    }
    assert_eq!(state.changes.messages.len(), 1);
    assert_eq!(state.changes.pending().listed, 2);
    store.write(&mut state);
    pop_at(&mut state, 500, 1, Take::Lease(Millis(100)));
    assert_eq!(state.changes.messages.len(), 1);
    // Finished, it is named once more, to be deleted; the next one never reached the disk.
    let id = push_at(&mut state, 500, "two");
    let popped = pop_at(&mut state, 500, 1, Take::Remove);
    assert_eq!(popped[0].receipt.id, id);
    assert_eq!(state.changes.gone.len(), 0);
    let first = named(&state, b"q").and_then(|queue| queue.leases().next().map(|(id, _)| id)).unwrap();
    assert_eq!(ack_at(&mut state, 500, &[Receipt { id: first, delivery: 6 }]), 1);
    assert_eq!(state.changes.gone.len(), 1);
    store.reopen(&mut state);
    assert!(named(&state, b"q").is_none());
    assert_eq!(known(&state, b"q").map(Queue::len), Some(0));
}

#[test]
fn popping_from_a_queue_with_nothing_ready_changes_nothing() {
    let mut state = State::new(1);
    push_at(&mut state, 0, "one");
    pop_at(&mut state, 0, 1, LEASE);
    let changed = state.row(0, b"q").map(Row::changed);
    assert!(pop_at(&mut state, 10, 1, LEASE).is_empty());
    assert_eq!(ack_at(&mut state, 10, &[Receipt { id: MessageId { index: 1, n: 0 }, delivery: 9 }]), 0);
    assert_eq!(state.row(0, b"q").map(Row::changed), changed);
    assert!(pop_at(&mut state, 10, 1, LEASE).is_empty());
    assert!(named(&state, b"r").is_none());
}

#[test]
fn a_queue_goes_with_its_messages_and_their_leases() {
    let store = TestStore::new();
    let mut state = State::new(1);
    push_at(&mut state, 0, "one");
    push_at(&mut state, 0, "two");
    pop_at(&mut state, 0, 1, LEASE);
    store.reopen(&mut state);
    assert!(state.remove(0, b"q"));
    check(&state);
    // A new queue of the name must not see the rows of the old one.
    push_at(&mut state, 0, "three");
    store.reopen(&mut state);
    assert_eq!(named(&state, b"q").map(Queue::len), Some(1));
    check(&state);
}

#[test]
fn a_queue_at_rest_is_written_as_such_and_comes_back_with_all_that_is_known_of_it() {
    let store = TestStore::new();
    let mut state = State::new(1);
    let receipt = |popped: &[Popped]| popped[0].receipt;
    push_at(&mut state, 0, "one");
    let first = receipt(&pop_at(&mut state, 0, 1, LEASE));
    store.write(&mut state);
    assert_eq!(ack_at(&mut state, 5, &[first]), 1);
    let number = known(&state, b"q").map(Queue::number);
    // At rest on disk, beside a string that has its name, and back with the next message.
    for step in 0..6 {
        assert!(named(&state, b"q").is_none() && known(&state, b"q").map(Queue::number) == number);
        assert_eq!(ack_at(&mut state, 5, &[first]), 1);
        match step {
            0 | 3 => store.reopen(&mut state),
            1 => store.write(&mut state),
            2 => {
                entry(&mut state, 5);
                state.put_string(0, b"q", b"text", None);
                store.reopen(&mut state);
                check(&state);
                entry(&mut state, 5);
                state.flush_database(0);
            }
            _ => {}
        }
        push_at(&mut state, 5, "two");
        if step % 2 == 0 {
            store.reopen(&mut state);
        }
        assert_eq!(named(&state, b"q").map(Queue::number), number);
        check(&state);
        let second = receipt(&pop_at(&mut state, 5, 1, LEASE));
        assert_eq!(ack_at(&mut state, 5, &[second]), 1);
        check(&state);
    }
    assert_eq!(known(&state, b"q").map(|queue| queue.counters().acked), Some(7));
    // Nothing of it is left when its time is over.
    entry(&mut state, 3_600_005);
    assert!(known(&state, b"q").is_none());
    store.reopen(&mut state);
    assert!(state.queue_names.is_empty() && state.leases.iter().next().is_none());
    push_at(&mut state, 3_600_005, "three");
    assert_ne!(named(&state, b"q").map(Queue::number), number);
}

#[test]
fn a_flush_of_the_database_between_rest_and_return_loses_no_queue() {
    let store = TestStore::new();
    let mut state = State::new(1);
    push_at(&mut state, 0, "one");
    pop_at(&mut state, 0, 1, Take::Remove);
    entry(&mut state, 0);
    state.flush_database(0);
    push_at(&mut state, 0, "two");
    store.reopen(&mut state);
    assert_eq!(payloads(&pop_at(&mut state, 0, 9, Take::Remove)), ["two"]);
}

#[test]
fn a_flush_of_the_database_keeps_queues() {
    let store = TestStore::new();
    let mut state = State::new(1);
    push_at(&mut state, 0, "one");
    state.put_string(0, b"s", b"v", None);
    store.reopen(&mut state);
    entry(&mut state, 1);
    state.flush_database(0);
    store.reopen(&mut state);
    assert_eq!(payloads(&pop_at(&mut state, 2, 9, Take::Remove)), ["one"]);
}

#[test]
fn a_key_of_another_type_is_left_alone() {
    let mut state = State::new(1);
    let now = entry(&mut state, 0);
    state.put_string(0, b"q", b"v", None);
    let before = state.digest();
    let push_request = PushRequest { payload: b"p", ..PushRequest::default() };
    assert_eq!(push(&mut state, 0, b"q", &push_request, by(now)), Err(WrongType));
    assert_eq!(
        pop(&mut state, &request(&[b"r", b"q"], 1, Take::Remove), &origin(), now),
        Err(PopRefusal::WrongType)
    );
    assert_eq!(ack(&mut state, 0, b"q", &[], by(now)), Err(WrongType));
    assert_eq!(nack(&mut state, 0, b"q", &[], Nack::Fatal, by(now)), Err(WrongType));
    assert_eq!(extend(&mut state, 0, b"q", &[], Millis(1), by(now)), Err(WrongType));
    assert_eq!(delete(&mut state, 0, b"q", &Which::All, by(now)), Err(WrongType));
    assert_eq!(redrive(&mut state, 0, b"q", &Which::All, None, by(now)), Err(WrongType));
    assert_eq!(redrive(&mut state, 0, b"r", &Which::All, Some(b"q"), by(now)), Err(WrongType));
    assert_eq!(configure(&mut state, 0, b"q", Attributes::clone), Err(WrongType));
    assert_eq!(state.digest(), before);
}

#[test]
fn messages_of_one_entry_have_ids_of_their_own() {
    let mut state = State::new(1);
    state.begin_entry(LogIndex(8), Term(1), ClusterTime(0), WallMillis(0));
    for id in ["8-0", "8-1"] {
        let request = PushRequest { payload: b"p", ..PushRequest::default() };
        let pushed = push(&mut state, 0, b"q", &request, by(ClusterTime(0))).unwrap();
        assert_eq!(pushed, Pushed::New(MessageId::parse(id.as_bytes()).unwrap()));
    }
}

#[test]
fn ids_and_receipts_read_what_they_write_and_nothing_else() {
    let id = MessageId { index: 84_213, n: 7 };
    let receipt = Receipt { id, delivery: 3 };
    assert_eq!(receipt.to_string(), "84213-7:3");
    assert_eq!(Receipt::parse(b"84213-7:3"), Some(receipt));
    assert_eq!(MessageId::parse(b"84213-7"), Some(id));
    for text in ["", "-", "1", "1-", "-1", "1-2-3", "+1-2", "01-2", "1-02", " 1-2", "1-2 ", "1-4294967296"] {
        assert_eq!(MessageId::parse(text.as_bytes()), None, "{text:?}");
    }
    for text in ["", ":", "1-2", "1-2:", ":1", "1-2:x", "1-2:3:4", "1-2:+3", "1-2:4294967296"] {
        assert_eq!(Receipt::parse(text.as_bytes()), None, "{text:?}");
    }
    assert!(id < id.next() && MessageId { index: 1, n: u32::MAX }.next() == MessageId { index: 2, n: 0 });
}

#[test]
fn rows_of_an_unknown_format_or_with_a_tail_are_refused() {
    use crate::types::codec::Reader;
    let mut state = State::new(1);
    let now = entry(&mut state, 5);
    let push_request = PushRequest {
        payload: b"p",
        id: Some(b"x"),
        group: Some(b"g"),
        lifetime: Some(Millis(9_000)),
        priority: Some(3),
        ..PushRequest::default()
    };
    let Ok(Pushed::New(id)) = push(&mut state, 0, b"q", &push_request, by(now)) else { panic!("it is new") };
    let popped = pop(&mut state, &request(&[b"q"], 1, LEASE), &origin(), now).unwrap();
    let how = Nack::Silent { delay: Millis(0) };
    nack(&mut state, 0, b"q", &[popped[0].receipt], how, By { reason: b"why", ..by(now) }).unwrap();
    pop(&mut state, &request(&[b"q"], 1, LEASE), &origin(), now).unwrap();
    let queue = named(&state, b"q").unwrap();
    let (mut message, mut head) = (Vec::new(), Vec::new());
    queue.encode_message(id, &mut message);
    queue.encode(&mut head);
    let record = Record::decode(id, &mut Reader::new(&message)).unwrap();
    assert_eq!((record.slot.delivery(), record.slot.attempt(), record.slot.priority()), (2, 1, 3));
    assert_eq!(record.lease.as_ref(), queue.lease(id));
    assert_eq!(record.extra.as_deref(), queue.extra(id));
    assert_eq!(record.extra.map(|extra| extra.reason), Some((*b"why").into()));
    assert!(record.slot.is_of(b"p") && !record.slot.is_of(b"P"));
    let decoded = Queue::decode(&mut Reader::new(&head)).unwrap();
    assert_eq!((decoded.counters(), decoded.number()), (queue.counters(), queue.number()));
    for end in 0..message.len() {
        assert!(Record::decode(id, &mut Reader::new(&message[..end])).is_err());
    }
    for end in 0..head.len() {
        assert!(Queue::decode(&mut Reader::new(&head[..end])).is_err());
    }
    for bytes in [&mut message, &mut head] {
        bytes.push(0);
        assert!(Record::decode(id, &mut Reader::new(bytes)).is_err());
        assert!(Queue::decode(&mut Reader::new(bytes)).is_err());
        bytes.pop();
        bytes[0] = bytes[0].wrapping_add(1);
        assert!(Record::decode(id, &mut Reader::new(bytes)).is_err());
        assert!(Queue::decode(&mut Reader::new(bytes)).is_err());
    }
}

// ---- random operations -----------------------------------------------------------------------------

/// Something that is done to the queues. Numbers choose among what there is.
#[derive(Debug, Clone)]
enum Action {
    Push {
        to: usize,
        delay: u64,
        lifetime: u64,
        priority: u8,
        group: u8,
        id: u8,
        xx: bool,
        max_len: u8,
    },
    Pop {
        from: usize,
        count: usize,
        lease: u64,
        no_ack: bool,
    },
    /// The same, and it waits if there is nothing.
    Wait {
        from: usize,
        count: usize,
        no_ack: bool,
        block: u64,
    },
    Ack {
        receipts: Vec<usize>,
    },
    Nack {
        receipt: usize,
        how: u8,
        delay: u64,
    },
    Extend {
        receipt: usize,
        lease: u64,
    },
    Delete {
        from: usize,
        which: u8,
        message: usize,
    },
    Redrive {
        from: usize,
        which: u8,
        message: usize,
        is_moved: bool,
    },
    Configure {
        of: usize,
        what: u8,
        value: u64,
    },
    EndWait {
        which: usize,
    },
    NewLeader,
    Expire,
}

#[derive(Debug, Clone)]
enum Step {
    Does(Action),
    /// In one entry, and then it is taken back.
    TakesBack(Vec<Action>),
    FlushesDatabase,
    Reopens,
}

fn action() -> impl Strategy<Value = Action> {
    let queue = || prop_oneof![3 => Just(0usize), 1 => Just(1usize)];
    let delay = || prop_oneof![3 => Just(0u64), 1 => 1..600u64];
    prop_oneof![
        8 => (queue(), delay(), delay(), 0..10u8, 0..6u8, 0..8u8, any::<u8>()).prop_map(
            |(to, delay, lifetime, priority, group, id, draw)| Action::Push {
                to, delay, lifetime, priority, group, id, xx: draw < 40, max_len: draw % 32,
            }
        ),
        6 => (queue(), 1..5usize, 100..900u64, 0..6u8).prop_map(|(from, count, lease, draw)| Action::Pop {
            from, count, lease, no_ack: draw == 0,
        }),
        3 => (queue(), 1..4usize, 0..4u8, 0..900u64).prop_map(|(from, count, draw, block)| Action::Wait {
            from, count, no_ack: draw == 0, block,
        }),
        4 => proptest::collection::vec(any::<usize>(), 1..4).prop_map(|receipts| Action::Ack { receipts }),
        5 => (any::<usize>(), 0..4u8, delay()).prop_map(|(receipt, how, delay)| Action::Nack { receipt, how, delay }),
        1 => (any::<usize>(), 100..900u64).prop_map(|(receipt, lease)| Action::Extend { receipt, lease }),
        1 => (queue(), 0..7u8, any::<usize>()).prop_map(|(from, which, message)| Action::Delete {
            from, which, message,
        }),
        2 => (queue(), 0..3u8, any::<usize>(), any::<bool>()).prop_map(|(from, which, message, is_moved)| {
            Action::Redrive { from, which, message, is_moved }
        }),
        2 => (queue(), 0..11u8, any::<u64>()).prop_map(|(of, what, value)| Action::Configure { of, what, value }),
        1 => any::<usize>().prop_map(|which| Action::EndWait { which }),
        1 => Just(Action::NewLeader),
        2 => Just(Action::Expire),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => action().prop_map(Step::Does),
        4 => proptest::collection::vec(action(), 1..6).prop_map(Step::TakesBack),
        1 => Just(Step::FlushesDatabase),
        3 => Just(Step::Reopens),
    ]
}

/// Mostly short, at times beyond every memory that queues have.
fn passes() -> impl Strategy<Value = u64> {
    prop_oneof![20 => 0..200u64, 2 => 200..40_000u64, 1 => Just(700_000u64), 1 => Just(4_000_000u64)]
}

/// What clients saw.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// Payload and last delivery of every message that is not finished.
    unfinished: BTreeMap<MessageId, (Vec<u8>, u32)>,
    receipts: Vec<Receipt>,
    /// Which receipt finished a message.
    finished: BTreeSet<Receipt>,
    pushes: u64,
}

impl Seen {
    fn hand_outs(&mut self, popped: &[Popped], no_ack: bool) {
        for Popped { receipt, attempt, payload, .. } in popped {
            let known = self.unfinished.get_mut(&receipt.id).expect("only unfinished messages come");
            assert_eq!(known.0, payload[..], "the payload of another message");
            assert!(receipt.delivery > known.1, "a receipt that was there before");
            assert!((1..=receipt.delivery).contains(attempt));
            known.1 = receipt.delivery;
            self.receipts.push(*receipt);
            if no_ack {
                self.unfinished.remove(&receipt.id);
            }
        }
    }

    fn receipt(&self, draw: usize) -> Option<Receipt> {
        let back = draw % self.receipts.len().clamp(1, 12);
        self.receipts.iter().rev().nth(back).copied()
    }

    /// The messages that are there now are those that are not finished, each in one queue.
    fn check(&self, state: &State) {
        let there: Vec<MessageId> = state
            .queues()
            .flat_map(|(_, queue)| queue.messages_from(MessageId::FIRST).map(Keyed::id))
            .collect();
        let all: BTreeSet<MessageId> = there.iter().copied().collect();
        assert_eq!(all.len(), there.len(), "a message in two queues");
        assert!(
            all.iter().eq(self.unfinished.keys()),
            "lost or invented: {all:?}, seen {:?}",
            self.unfinished
        );
    }

    /// What waits were given, and what of it is confirmed.
    fn ends(&mut self, state: &mut State) {
        let now = state.meta().clock;
        for notice in state.take_notices().0 {
            match notice {
                Notice::ClaimEnded { end: ClaimEnd::Delivered(delivered), .. } => {
                    self.hand_outs(&delivered.messages, delivered.no_ack);
                }
                Notice::ClaimHanded { claim, end: ClaimEnd::Delivered(delivered), .. } => {
                    self.hand_outs(&delivered.messages, delivered.no_ack);
                    assert!(confirm(state, claim, now));
                }
                _ => {}
            }
        }
        // That they are confirmed.
        state.take_notices();
    }

    fn act(&mut self, state: &mut State, now: ClusterTime, action: &Action) {
        match action {
            Action::Push { to, delay, lifetime, priority, group, id, xx, max_len } => {
                self.pushes += 1;
                let payload =
                    format!("{}:{}", self.pushes, "x".repeat(usize::from(*priority) * 7)).into_bytes();
                let (group_name, id_name) = ([b'g', *group], [b'i', *id]);
                let request = PushRequest {
                    payload: &payload,
                    id: (*id < 4).then_some(&id_name[..]),
                    priority: (*priority > 2).then_some(*priority),
                    delay: Some(Millis(*delay)),
                    lifetime: (*lifetime > 0 && !xx).then_some(Millis(*lifetime)),
                    group: (*group < 2 && !xx).then_some(&group_name[..]),
                    max_len: (*max_len < 8).then_some(u64::from(*max_len)),
                    only_update: *xx && *id < 4,
                };
                match push(state, 0, NAMES[*to], &request, by(now)).expect("it is a queue") {
                    Pushed::New(id) => {
                        assert_eq!(self.unfinished.insert(id, (payload, 0)), None, "an id that is used");
                    }
                    Pushed::Known(_) => assert!(request.id.is_some()),
                    Pushed::Nothing => assert!(request.only_update),
                    Pushed::Full(text) => assert!(text.starts_with("QFULL ")),
                }
            }
            Action::Pop { from, count, lease, no_ack } => {
                let take = if *no_ack { Take::Remove } else { Take::Lease(Millis(*lease)) };
                let queues = [NAMES[*from], NAMES[1 - from]];
                let popped = pop(state, &request(&queues[..1 + count % 2], *count, take), &origin(), now);
                self.hand_outs(&popped.expect("they are queues"), *no_ack);
            }
            Action::Wait { from, count, no_ack, block } => {
                let take = if *no_ack { Take::Remove } else { LEASE };
                let queues = [NAMES[*from], NAMES[1 - from]];
                let request = request(&queues[..1 + count % 2], *count, take);
                let popped = pop(state, &request, &origin(), now).expect("they are queues");
                self.hand_outs(&popped, *no_ack);
                if popped.is_empty() {
                    let until = if *block == 0 { ClusterTime::NEVER } else { now.after(Millis(*block)) };
                    assert!(wait(state, request, &origin(), until, now).is_some());
                }
            }
            Action::Ack { receipts } => {
                let receipts: Vec<Receipt> = receipts.iter().filter_map(|draw| self.receipt(*draw)).collect();
                for receipt in receipts {
                    for name in NAMES {
                        let leased =
                            named(state, name).and_then(|queue| queue.life(receipt.id)).is_some_and(|life| {
                                life.delivery == receipt.delivery
                                    && matches!(life.state, MessageState::Leased { .. })
                            });
                        let finished = ack(state, 0, name, &[receipt], by(now)).expect("they are queues");
                        if leased {
                            assert_eq!(finished, 1);
                            let (_, delivery) = self.unfinished.remove(&receipt.id).expect("it was there");
                            assert_eq!(delivery, receipt.delivery, "finished by its last delivery, once");
                            self.finished.insert(receipt);
                        } else {
                            assert!(finished == 0 || self.finished.contains(&receipt), "a stale receipt");
                        }
                    }
                }
            }
            Action::Nack { receipt, how, delay } => {
                let Some(receipt) = self.receipt(*receipt) else { return };
                let how = match how {
                    0 => Nack::Silent { delay: Millis(*delay) },
                    1 => Nack::Fail { delay: Some(Millis(*delay)) },
                    2 => Nack::Fail { delay: None },
                    _ => Nack::Fatal,
                };
                for name in NAMES {
                    let by = By { reason: b"because", ..by(now) };
                    nack(state, 0, name, &[receipt], how, by).expect("they are queues");
                }
            }
            Action::Extend { receipt, lease } => {
                let Some(receipt) = self.receipt(*receipt) else { return };
                for name in NAMES {
                    extend(state, 0, name, &[receipt], Millis(*lease), by(now)).expect("they are queues");
                }
            }
            Action::Delete { from, which, message } => {
                let name = NAMES[*from];
                let Some(queue) = named(state, name) else { return };
                let ids: Vec<MessageId> = queue.messages_from(MessageId::FIRST).map(Keyed::id).collect();
                let (which, chosen): (Which, Vec<MessageId>) = match which {
                    0..=1 => (Which::All, ids),
                    2 => (
                        Which::State(StateName::Dead),
                        queue.ids_from(StateName::Dead, MessageId::FIRST).collect(),
                    ),
                    3 => (
                        Which::State(StateName::Ready),
                        queue.ids_from(StateName::Ready, MessageId::FIRST).collect(),
                    ),
                    _ => {
                        let Some(id) = ids.get(message % ids.len().max(1)).copied() else { return };
                        (Which::Ids(vec![id, id, MessageId::FIRST]), vec![id])
                    }
                };
                assert_eq!(delete(state, 0, name, &which, by(now)), Ok(chosen.len()));
                chosen.iter().for_each(|id| assert!(self.unfinished.remove(id).is_some()));
            }
            Action::Redrive { from, which, message, is_moved } => {
                let name = NAMES[*from];
                let Some(queue) = named(state, name) else { return };
                let dead: Vec<MessageId> = queue.ids_from(StateName::Dead, MessageId::FIRST).collect();
                let (which, wanted) = match which {
                    0 => (Which::State(StateName::Dead), dead.len()),
                    1 => (Which::Count(2), dead.len().min(2)),
                    _ => {
                        let Some(id) = dead.get(message % dead.len().max(1)).copied() else { return };
                        (Which::Ids(vec![id, id]), 1)
                    }
                };
                let to = is_moved.then_some(NAMES[1 - from]);
                let moved = redrive(state, 0, name, &which, to, by(now)).expect("they are queues");
                // One whose ID another one has there stays.
                assert!(moved == wanted || *is_moved && moved < wanted, "{moved} of {wanted}");
            }
            Action::Configure { of, what, value } => {
                let change = |old: &Attributes| {
                    let mut new = old.clone();
                    match what {
                        0 => new.max_deliver = (*value % 4) as u32,
                        1 => {
                            new.dead_letter =
                                if value % 2 == 0 { NAMES[1 - of].into() } else { Box::default() }
                        }
                        2 => new.dedup = Millis(value % 1_000),
                        3 => new.max_len = value % 12,
                        4 => new.max_bytes = value % 400,
                        5 => new.max_leased = value % 4,
                        6 => new.aging = Millis(value % 300),
                        7 => new.pause = Pause::NAMES[(value % 4) as usize].1,
                        8 => new.ttl = Millis(value % 800),
                        9 => new.retain = Millis(value % 800),
                        _ => new = Attributes::default(),
                    }
                    new
                };
                configure(state, 0, NAMES[*of], change).expect("it is a queue");
            }
            Action::EndWait { which } => {
                let claims: Vec<ClaimId> = state.pop_waits().iter().map(|wait| wait.claim.id).collect();
                if let Some(claim) = claims.get(which % claims.len().max(1)) {
                    assert!(end_wait(state, *claim, ClaimEnd::Over, now));
                }
            }
            Action::NewLeader => state.grant_grace(now),
            Action::Expire => {
                while state.expire_due(now) > 0 {}
                assert!(!state.anything_due(now));
            }
        }
    }
}

/// Nobody waits for a queue that could serve him.
fn check_waits(state: &State, now: ClusterTime) {
    for (name, queue) in state.queues() {
        let is_served = queue.next_available(now).is_none() || state.pop_waits().count_of(name) == 0;
        assert!(is_served, "{name:?} has a message that somebody waits for");
    }
}

/// Digest of everything but the numbers that only rise.
fn digest(state: &State) -> u128 {
    assert!(state.available.is_empty());
    state.digest()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_message_is_in_one_state_until_it_is_finished_once(
        steps in proptest::collection::vec((step(), passes()), 1..160),
    ) {
        let store = TestStore::new();
        let (mut state, mut seen, mut now) = (State::new(1), Seen::default(), 0);
        state.meta.settings.queue_ack_memory = 8;
        for (step, passes) in steps {
            now += passes;
            let at = entry(&mut state, now);
            serve_waits(&mut state, at);
            match step {
                Step::Does(action) => {
                    seen.ends(&mut state);
                    seen.act(&mut state, at, &action);
                    serve_waits(&mut state, at);
                    check_waits(&state, at);
                    seen.ends(&mut state);
                }
                Step::TakesBack(actions) => {
                    seen.ends(&mut state);
                    let (before, traced) = (digest(&state), state.traces.len());
                    let mut forgotten = seen.clone();
                    state.begin_undo();
                    // A transaction neither waits nor is an entry of another kind.
                    let is_command = |action: &&Action| !matches!(
                        action, Action::Wait { .. } | Action::EndWait { .. } | Action::Expire | Action::NewLeader
                    );
                    actions.iter().filter(is_command).for_each(|action| forgotten.act(&mut state, at, action));
                    state.roll_back();
                    serve_waits(&mut state, at);
                    prop_assert_eq!(digest(&state), before);
                    prop_assert_eq!(state.traces.len(), traced);
                    prop_assert!(state.take_notices().0.is_empty());
                }
                Step::FlushesDatabase => {
                    seen.ends(&mut state);
                    state.flush_database(0);
                }
                Step::Reopens => {
                    seen.ends(&mut state);
                    store.reopen(&mut state);
                }
            }
            check(&state);
            seen.check(&state);
        }
        // Whatever is left comes out: nothing is stuck.
        for name in NAMES {
            entry(&mut state, now);
            configure(&mut state, 0, name, |_| Attributes { max_deliver: 0, ..Attributes::default() }).unwrap();
        }
        for _ in 0..4 {
            now += 400_000;
            let at = entry(&mut state, now);
            while state.expire_due(at) > 0 {}
            serve_waits(&mut state, at);
            seen.ends(&mut state);
            for name in NAMES {
                redrive(&mut state, 0, name, &Which::State(StateName::Dead), None, by(at)).unwrap();
            }
            serve_waits(&mut state, at);
            seen.ends(&mut state);
            loop {
                let popped = pop(&mut state, &request(&NAMES, 1_000, Take::Remove), &origin(), at).unwrap();
                if popped.is_empty() { break }
                seen.hand_outs(&popped, true);
            }
            seen.check(&state);
        }
        let left = |name| named(&state, name).is_some_and(|queue| queue.len() > queue.count(StateName::Dead));
        prop_assert!(!left(NAMES[0]) && !left(NAMES[1]), "some never came");
    }
}

// ---- what is on disk and not in memory -------------------------------------------------------------

/// A state that keeps nothing in memory that is on disk, and one that keeps everything.
struct Twins {
    cold: State,
    hot: State,
    data: SharedData,
    /// As of which index the rows were written, and brought to disk.
    written: LogIndex,
    durable: LogIndex,
    left_memory: bool,
}

impl Twins {
    fn new(dir: &TestDir) -> Twins {
        let store =
            DataStore::open_at(&dir.path().join("rows"), &SharedCaches::new(1 << 20, 8 << 20)).unwrap();
        let mut twins = Twins {
            cold: State::new(1),
            hot: State::new(1),
            data: SharedData::new(store),
            written: LogIndex(0),
            durable: LogIndex(0),
            left_memory: false,
        };
        twins.cold.read_cold(Arc::new(twins.data.clone()), 0);
        twins
    }

    /// As the applier does: what is on disk by now may leave memory; then what changed is written.
    fn write(&mut self) {
        self.cold.on_disk(self.durable);
        let hot: usize = self.cold.queues().map(|(_, queue)| queue.hot_bytes()).sum();
        self.left_memory |= hot == 0 && self.cold.queues().any(|(_, queue)| queue.bytes() > 0);
        let rows = self.cold.take_changes();
        let store = self.data.get().unwrap();
        store.forget(rows.clock());
        store.write(rows.into_batch()).unwrap();
        self.written = self.cold.meta.applied;
    }

    fn sync(&mut self) {
        self.data.get().unwrap().flush().unwrap();
        self.durable = self.written;
    }

    fn reopen(&mut self) {
        self.write();
        self.sync();
        let loaded = State::load_without_payloads(&*self.data.get().unwrap()).unwrap();
        assert_eq!(loaded.digest(), self.cold.digest());
        self.cold = loaded;
        self.cold.read_cold(Arc::new(self.data.clone()), 0);
    }

    /// Both tell the same of every message, whether or not it is there.
    fn compare(&mut self, ids: &BTreeSet<MessageId>, now: ClusterTime) {
        assert_eq!(self.cold.digest(), self.hot.digest());
        for name in NAMES {
            let (Some(cold), Some(hot)) = (known(&self.cold, name), known(&self.hot, name)) else { continue };
            for id in hot.messages_from(MessageId::FIRST).map(Keyed::id) {
                let (cold, hot) =
                    (self.cold.payloads(cold, &[id]).unwrap(), self.hot.payloads(hot, &[id]).unwrap());
                assert_eq!(cold, hot);
            }
            for id in ids {
                assert_eq!(
                    self.cold.trace(cold, *id, now).unwrap(),
                    self.hot.trace(hot, *id, now).unwrap(),
                    "{id}"
                );
            }
        }
        assert!(self.cold.take_fault().is_none());
    }
}

#[derive(Debug, Clone)]
enum ColdStep {
    Does(Action),
    Write,
    Sync,
    Reopen,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_left_memory_comes_back_as_it_was(
        steps in proptest::collection::vec((prop_oneof![
            12 => action().prop_map(ColdStep::Does),
            4 => Just(ColdStep::Write),
            3 => Just(ColdStep::Sync),
            1 => Just(ColdStep::Reopen),
        ], 0..300u64), 1..120),
    ) {
        let dir = TestDir::new();
        let mut twins = Twins::new(&dir);
        let (mut seen, mut other, mut now) = (Seen::default(), Seen::default(), 0);
        let mut ids = BTreeSet::new();
        for (step, passes) in steps {
            now += passes;
            match step {
                // A state that is loaded has no wait that ended, so both must have told it before.
                ColdStep::Does(action) => {
                    for (state, seen) in [(&mut twins.cold, &mut seen), (&mut twins.hot, &mut other)] {
                        let at = entry(state, now);
                        serve_waits(state, at);
                        seen.ends(state);
                        seen.act(state, at, &action);
                        serve_waits(state, at);
                        seen.ends(state);
                    }
                }
                ColdStep::Write => twins.write(),
                ColdStep::Sync => twins.sync(),
                ColdStep::Reopen => twins.reopen(),
            }
            ids.extend(seen.unfinished.keys().copied());
            twins.compare(&ids, ClusterTime(now));
            prop_assert_eq!(&seen.receipts, &other.receipts);
        }
    }
}

#[test]
fn payloads_leave_memory_when_they_are_on_disk_and_are_read_ahead() {
    let dir = TestDir::new();
    let mut twins = Twins::new(&dir);
    for number in 0..1_000 {
        push_at(&mut twins.cold, 0, &format!("payload {number}"));
    }
    let hot = |twins: &Twins| named(&twins.cold, b"q").map_or(0, Queue::hot_bytes);
    let all = hot(&twins);
    assert!(all > 8_000);
    twins.write();
    twins.write();
    assert_eq!(hot(&twins), all, "it was written, but is not on disk");
    twins.sync();
    twins.write();
    assert_eq!(hot(&twins), 0);
    assert!(twins.left_memory);
    let popped = pop_at(&mut twins.cold, 1, 1, Take::Remove);
    assert_eq!(payloads(&popped), ["payload 0"]);
    let ahead = hot(&twins);
    assert!(ahead > 0 && ahead < all / 2, "those that come next are read with it: {ahead}");
    let popped = pop_at(&mut twins.cold, 1, 999, Take::Remove);
    assert!(popped.iter().zip(1..).all(|(popped, number)| popped.payload == format!("payload {number}")));
    assert!(twins.cold.take_fault().is_none());
    // A budget keeps what was there first.
    twins.cold.read_cold(Arc::new(twins.data.clone()), 500);
    for number in 0..10 {
        push_at(&mut twins.cold, 2, &format!("payload {number}"));
    }
    twins.write();
    twins.sync();
    twins.write();
    assert!((1..=500).contains(&hot(&twins)), "{}", hot(&twins));
}

/// A disk that is gone.
struct NoRows;

impl crate::storage::ColdRows for NoRows {
    fn get_many(&self, _: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, crate::storage::StorageError> {
        Err(crate::storage::StorageError::Corrupt { what: "it is gone".to_owned() })
    }
}

#[test]
fn what_was_laid_ready_is_handed_out_without_the_disk() {
    let dir = TestDir::new();
    let mut twins = Twins::new(&dir);
    for number in 0..300 {
        push_at(&mut twins.cold, 0, &format!("payload {number}"));
    }
    let wanted = |state: &State| {
        let mut wanted = cold::Wanted::default();
        state.want(0, b"q", &mut wanted);
        wanted
    };
    assert!(wanted(&twins.cold).is_empty(), "all is in memory");
    twins.write();
    twins.sync();
    twins.write();
    assert!(twins.cold.has_cold());
    let read = wanted(&twins.cold).read(&twins.data);
    assert_eq!(read.len(), 300);
    assert!(wanted(&twins.cold).read(&NoRows).is_empty());
    // What does not belong to its message, or to none, is passed over.
    let (number, id, _) = read[0].clone();
    let wrong = [
        (number, id, Bytes::from_static(b"wrong")),
        (99, id, Bytes::new()),
        (number, MessageId::FIRST, Bytes::new()),
    ];
    twins.cold.lay_ready(wrong.to_vec());
    assert_eq!(named(&twins.cold, b"q").map(Queue::hot_bytes), Some(0));
    let digest = twins.cold.digest();
    twins.cold.lay_ready(read);
    assert_eq!(twins.cold.digest(), digest, "it is no part of the state");
    assert!(wanted(&twins.cold).is_empty());
    twins.cold.read_cold(Arc::new(NoRows), 0);
    let popped = pop_at(&mut twins.cold, 1, 300, Take::Remove);
    assert!(popped.iter().zip(0..).all(|(popped, number)| popped.payload == format!("payload {number}")));
    assert!(twins.cold.take_fault().is_none());
}

#[test]
fn a_message_that_left_a_queue_and_came_back_keeps_its_payload() {
    let dir = TestDir::new();
    let mut twins = Twins::new(&dir);
    let id = push_at(&mut twins.cold, 0, "payload");
    twins.write();
    let popped = pop_at(&mut twins.cold, 0, 1, LEASE);
    let now = entry(&mut twins.cold, 0);
    nack(&mut twins.cold, 0, b"q", &[popped[0].receipt], Nack::Fatal, by(now)).unwrap();
    assert_eq!(redrive(&mut twins.cold, 0, b"q", &Which::All, Some(b"r"), by(now)), Ok(1));
    // Its row in the first queue was brought to disk meanwhile, and is deleted by what is written now.
    twins.sync();
    let durable = twins.durable;
    twins.durable = LogIndex(0);
    twins.write();
    let now = entry(&mut twins.cold, 0);
    let popped = pop(&mut twins.cold, &request(&[b"r"], 1, LEASE), &origin(), now).unwrap();
    nack(&mut twins.cold, 0, b"r", &[popped[0].receipt], Nack::Fatal, by(now)).unwrap();
    assert_eq!(redrive(&mut twins.cold, 0, b"r", &Which::All, Some(b"q"), by(now)), Ok(1));
    twins.durable = durable;
    twins.write();
    assert_eq!(
        named(&twins.cold, b"q").and_then(|queue| queue.payload(id)).map(|payload| &payload[..]),
        Some(&b"payload"[..])
    );
    twins.reopen();
    assert_eq!(payloads(&pop_at(&mut twins.cold, 0, 1, Take::Remove)), ["payload"]);
    assert!(twins.cold.take_fault().is_none());
}

#[test]
fn a_payload_that_is_not_there_is_a_fault_and_no_other_payload() {
    let dir = TestDir::new();
    let mut twins = Twins::new(&dir);
    push_at(&mut twins.cold, 0, "payload");
    twins.reopen();
    let queue = named(&twins.cold, b"q").unwrap();
    let (id, number) = (MessageId { index: 1, n: 0 }, queue.number());
    assert_eq!(twins.cold.payloads(queue, &[id]).unwrap(), ["payload"]);
    let mut batch = crate::storage::DataBatch::new();
    batch.put(&crate::state::rows::message_key(crate::state::rows::PAYLOAD, number, id), b"another");
    twins.data.get().unwrap().write(batch).unwrap();
    twins.sync();
    let queue = named(&twins.cold, b"q").unwrap();
    assert!(twins.cold.payloads(queue, &[id]).is_err());
    assert!(twins.cold.take_fault().is_none());
    pop_at(&mut twins.cold, 0, 1, LEASE);
    assert!(twins.cold.take_fault().is_some());
}

#[test]
fn the_id_of_a_finished_message_that_is_due_and_pushed_again_leaves_nothing_behind() {
    let store = TestStore::new();
    let mut state = State::new(1);
    let named = |state: &mut State, now| {
        let request = PushRequest { payload: b"p", id: Some(b"name"), ..PushRequest::default() };
        push(state, 0, b"q", &request, by(now))
    };
    let start = entry(&mut state, 0);
    assert!(matches!(named(&mut state, start), Ok(Pushed::New(_))));
    let popped = pop_at(&mut state, 0, 1, Take::Lease(Millis(1_000)));
    let end = entry(&mut state, 0);
    assert_eq!(ack(&mut state, 0, b"q", &[popped[0].receipt], by(end)), Ok(1));
    store.write(&mut state);
    // So much is due that this ID is not forgotten yet.
    let later = ClusterTime(Attributes::default().dedup.0);
    state.begin_entry(LogIndex(9), Term(1), later, WallMillis(0));
    let Ok(Pushed::New(again)) = named(&mut state, later) else { panic!("a new message") };
    store.reopen(&mut state);
    assert_eq!(named(&mut state, later), Ok(Pushed::Known(again)));
    let which = Which::Ids(vec![again]);
    assert_eq!(delete(&mut state, 0, b"q", &which, by(later)), Ok(1));
    store.reopen(&mut state);
    assert_eq!(queue_at(&state, 0, b"q").flatten().and_then(|queue| queue.dedup(b"name")), None);
}

#[test]
fn what_is_too_large_to_be_handed_out_together_comes_one_by_one() {
    let mut state = State::new(1);
    let large = "x".repeat(HANDED_OUT_BYTES / 2 + 1);
    for payload in [&*large, &large, "small"] {
        push_at(&mut state, 0, payload);
    }
    let popped = |state: &mut State| pop_at(state, 0, 9, Take::Remove).len();
    assert_eq!((popped(&mut state), popped(&mut state), popped(&mut state)), (1, 2, 0));
}
