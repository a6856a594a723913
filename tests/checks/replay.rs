//! The replay of the log (`sim/replay.rs`): runs that are right, every way in which one can be wrong, and random runs
//! against the real machine with one answer changed.

use std::collections::BTreeMap;

use holdfast::machine::apply::BatchOutcome;
use holdfast::machine::apply::apply_entry;
use holdfast::machine::entry::Batch;
use holdfast::machine::entry::LeaderStart;
use holdfast::machine::entry::SessionStamp;
use holdfast::machine::entry::Stamps;
use holdfast::machine::entry::encode_entry;
use holdfast::resp::Reply;
use holdfast::state::Settings;
use holdfast::state::State;
use holdfast::state::locks::graph::VictimChoice;
use holdfast::types::ClusterTime;
use holdfast::types::LogIndex;
use holdfast::types::Millis;
use holdfast::types::NodeId;
use holdfast::types::Term;
use holdfast::types::WallMillis;

use crate::sim::model::Model;
use crate::sim::replay::Answer;
use crate::sim::replay::ReadAnswer;
use crate::sim::replay::Replay;
use crate::support::Random;

const SETTINGS: Settings = Settings {
    databases: 1,
    lock_default_ttl: Millis(1_000),
    lease_failover_grace: Millis(500),
    lock_deadlock_victim: VictimChoice::Requester,
    lock_graph_max: 1_000,
    lock_release_memory: 1_000,
    once_max_entries: 1_000,
    once_max_bytes: 1 << 20,
    queue_ack_memory: 1_000,
};

fn batch(id: u64, line: &str) -> Batch {
    let mut batch = Batch::new(id.to_string().as_bytes());
    push(&mut batch, line);
    batch
}

fn push(batch: &mut Batch, line: &str) {
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    batch.push_command(0, words.into_iter());
}

fn entry(clock: u64, batches: &[(Option<SessionStamp>, Batch)]) -> Vec<u8> {
    let stamps = Stamps { clock: ClusterTime(clock), wall: WallMillis(clock), seed: 0 };
    encode_entry(&stamps, batches.iter().map(|(session, batch)| (*session, batch)))
}

/// An entry of one batch without a session, at the time of its index.
fn one(index: u64, id: u64, line: &str) -> (u64, Vec<u8>) {
    (index, entry(index, &[(None, batch(id, line))]))
}

/// What the test feeds, in order.
enum Feed {
    Commit((u64, Vec<u8>)),
    Invoke(u64, u64),
    Answer(u64, u64, Answer),
    /// Operation, time, index, line, reply.
    Read(u64, u64, u64, &'static str, Reply),
}

fn feed(replay: &mut Replay, steps: &[Feed]) -> Result<(), String> {
    for step in steps {
        match step {
            Feed::Commit((index, entry)) => replay.commit(*index, entry).map(|_| ())?,
            Feed::Invoke(id, at) => replay.invoke(*id, *at)?,
            Feed::Answer(id, at, answer) => replay.answer(*id, *at, answer)?,
            Feed::Read(id, at, index, line, reply) => {
                let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
                replay.read(*id, *at, &ReadAnswer { index: *index, now: 10, db: 0, words: &words, reply })?;
            }
        }
    }
    replay.finish().map(|_| ())
}

fn run(steps: &[Feed]) -> Result<Replay, String> {
    let mut replay = Replay::new(SETTINGS);
    feed(&mut replay, steps).map(|()| replay)
}

fn ok() -> Answer {
    Answer::Replies(vec![Reply::Ok])
}

fn number(number: i64) -> Answer {
    Answer::Replies(vec![Reply::Integer(number)])
}

#[test]
fn runs_in_which_everything_fits_pass() {
    use Feed::Answer as A;
    use Feed::Commit as C;
    use Feed::Invoke as I;
    use Feed::Read as R;
    let good: Vec<(&str, Vec<Feed>)> = vec![
        ("nothing", vec![]),
        (
            "a write and a read",
            vec![
                I(7, 1),
                C(one(1, 7, "SET k v")),
                A(7, 2, ok()),
                I(8, 3),
                R(8, 4, 1, "GET k", Reply::bulk("v")),
            ],
        ),
        (
            "writes at once in the other order",
            vec![
                I(1, 1),
                I(2, 1),
                C(one(1, 2, "INCR n")),
                C(one(2, 1, "INCR n")),
                A(1, 2, number(2)),
                A(2, 3, number(1)),
            ],
        ),
        (
            "an answer at the moment of an invocation orders nothing",
            vec![
                I(1, 1),
                C(one(1, 2, "INCR n")),
                C(one(2, 1, "INCR n")),
                A(1, 5, number(2)),
                I(2, 5),
                A(2, 6, number(1)),
            ],
        ),
        (
            "a read of an older state, by one who could not know",
            vec![
                I(1, 1),
                I(2, 1),
                I(9, 1),
                C(one(1, 9, "SET k a")),
                C(one(2, 1, "SET k b")),
                A(1, 5, ok()),
                R(2, 6, 1, "GET k", Reply::bulk("a")),
            ],
        ),
        (
            "unknown and executed, unknown and not, not done",
            vec![
                I(1, 1),
                I(2, 1),
                I(3, 1),
                A(1, 2, Answer::Unknown),
                A(2, 2, Answer::Unknown),
                A(3, 2, Answer::NotDone),
                C(one(1, 1, "INCR n")),
                I(4, 3),
                C(one(2, 4, "INCR n")),
                A(4, 4, number(2)),
            ],
        ),
        (
            "executed, with replies that are forgotten",
            vec![I(1, 1), C(one(1, 1, "INCR n")), A(1, 2, Answer::Executed)],
        ),
        (
            "indices that are not ours",
            vec![
                C((1, Vec::new())),
                I(1, 1),
                C(one(5, 1, "INCR n")),
                C((6, Vec::new())),
                A(1, 2, number(1)),
                I(2, 3),
                R(2, 4, 6, "GET n", Reply::bulk("1")),
            ],
        ),
        (
            "a log that is fed first",
            vec![
                C(one(1, 1, "INCR n")),
                C(one(2, 2, "INCR n")),
                I(1, 1),
                A(1, 2, number(1)),
                I(2, 3),
                A(2, 4, number(2)),
            ],
        ),
    ];
    for (what, steps) in good {
        if let Err(violation) = run(&steps) {
            panic!("{what}: {violation}");
        }
    }
}

#[test]
fn whatever_does_not_fit_is_told() {
    use Feed::Answer as A;
    use Feed::Commit as C;
    use Feed::Invoke as I;
    use Feed::Read as R;
    let bad: Vec<(&str, Vec<Feed>)> = vec![
        ("the model", vec![I(1, 1), C(one(1, 1, "INCR n")), A(1, 2, number(2))]),
        ("executed at 1 and again at 2", vec![I(1, 1), C(one(1, 1, "INCR n")), C(one(2, 1, "INCR n"))]),
        ("not in the log", vec![I(1, 1), A(1, 2, number(1))]),
        ("not in the log", vec![I(1, 1), A(1, 2, Answer::Executed)]),
        (
            "was not done, but was executed at 1",
            vec![I(1, 1), C(one(1, 1, "INCR n")), A(1, 2, Answer::NotDone)],
        ),
        (
            "was not done, and was executed at 1",
            vec![I(1, 1), A(1, 2, Answer::NotDone), C(one(1, 1, "INCR n"))],
        ),
        ("nobody invoked", vec![C(one(1, 1, "INCR n"))]),
        (
            "invoked after 2 had been answered",
            vec![C(one(1, 2, "INCR n")), C(one(2, 1, "INCR n")), I(1, 1), A(1, 2, number(2)), I(2, 3)],
        ),
        (
            "which others had seen",
            vec![
                C(one(1, 1, "INCR n")),
                I(1, 1),
                A(1, 2, number(1)),
                I(2, 3),
                R(2, 4, 0, "GET n", Reply::Null),
            ],
        ),
        (
            "which others had seen",
            vec![
                C(one(1, 8, "INCR n")),
                C(one(2, 9, "INCR m")),
                I(1, 1),
                R(1, 2, 2, "GET n", Reply::bulk("1")),
                I(2, 3),
                R(2, 4, 1, "GET n", Reply::bulk("1")),
            ],
        ),
        ("the model", vec![C(one(1, 9, "SET k v")), I(1, 1), R(1, 2, 1, "GET k", Reply::bulk("w"))]),
        (
            "the model",
            vec![
                C(one(1, 9, "SET k v")),
                C(one(2, 8, "SET k w")),
                I(1, 1),
                R(1, 2, 1, "GET k", Reply::bulk("w")),
            ],
        ),
        ("more than is committed", vec![I(1, 1), R(1, 2, 1, "GET k", Reply::Null)]),
        ("had ended", vec![C(one(1, 9, "SET k v PX 5")), I(1, 1), R(1, 2, 1, "GET k", Reply::bulk("v"))]),
        ("no read that the model knows", vec![I(1, 1), R(1, 2, 0, "INCR k", Reply::Integer(1))]),
        ("invoked twice", vec![I(1, 1), I(1, 2)]),
        ("does not wait", vec![A(1, 2, Answer::NotDone)]),
        ("does not wait", vec![I(1, 1), A(1, 2, Answer::NotDone), A(1, 2, Answer::NotDone)]),
        ("is a read", vec![I(1, 1), R(1, 2, 0, "GET k", Reply::Null), C(one(1, 1, "INCR k"))]),
        ("is a read", vec![I(1, 1), C(one(1, 1, "INCR k")), R(1, 2, 1, "GET k", Reply::bulk("1"))]),
        ("time went back", vec![I(1, 5), I(2, 4)]),
        ("entry 1 after entry 1", vec![C((1, Vec::new())), C((1, Vec::new()))]),
        ("does not know", vec![C(one(1, 1, "FLUSHALL"))]),
    ];
    for (at, (what, steps)) in bad.iter().enumerate() {
        match run(steps) {
            Ok(_) => panic!("number {at}, {what}: it passed"),
            Err(violation) => assert!(violation.contains(what), "number {at}: {violation} instead of {what}"),
        }
    }
}

#[test]
fn a_batch_that_is_sent_again_is_executed_once() {
    let stamp = |seq, ack| Some(SessionStamp { node: NodeId(1), epoch: 1, seq, ack });
    let mut replay = Replay::new(SETTINGS);
    replay.invoke(1, 1).unwrap();
    replay.invoke(2, 1).unwrap();
    let (first, second) = (batch(1, "INCR n"), batch(2, "INCR n"));
    replay.commit(1, &entry(1, &[(stamp(2, 0), second.clone())])).unwrap();
    replay.commit(2, &entry(2, &[(stamp(1, 0), first.clone()), (stamp(2, 0), second)])).unwrap();
    replay.commit(3, &entry(3, &[(stamp(1, 0), first.clone()), (stamp(1, 1), first)])).unwrap();
    replay.answer(1, 2, &number(1)).unwrap();
    replay.answer(2, 2, &number(2)).unwrap();
    let counts = replay.finish().unwrap();
    assert_eq!((counts.executed, counts.repeated, counts.refused_by_session, counts.replies), (2, 2, 1, 2));
}

#[test]
fn a_marker_names_an_operation_of_a_user_who_comes_again() {
    let marked = |id: u64, line: &str| {
        let mut batch = Batch::new(b"alice");
        push(&mut batch, &format!("EXISTS #op:{id}"));
        push(&mut batch, line);
        entry(id, &[(None, batch)])
    };
    let mut replay = Replay::new(SETTINGS);
    for (id, line, reply) in [(1, "LOCK l me", 1), (2, "LOCK l me", 1), (3, "UNLOCK l me", 1)] {
        replay.invoke(id, 10 * id).unwrap();
        replay.commit(id, &marked(id, line)).unwrap();
        assert_eq!(replay.model().hold(0, b"l").map(|hold| hold.token), (id < 3).then_some(1));
        let replies = vec![Reply::Integer(0), Reply::Integer(reply)];
        replay.answer(id, 10 * id + 1, &Answer::Replies(replies)).unwrap();
        assert_eq!(replay.index_of(id), Some(id));
    }
    assert_eq!(replay.finish().unwrap().replies, 3);
}

#[test]
fn what_only_old_reads_could_see_is_forgotten() {
    let mut replay = Replay::new(SETTINGS);
    for index in 1..=100 {
        replay.commit(index, &one(index, index, "INCR n").1).unwrap();
        replay.invoke(index, index).unwrap();
    }
    let read = |replay: &mut Replay, id: u64, index: u64| {
        replay.invoke(id, 200).unwrap();
        let reply = Reply::text(index.to_string());
        replay.read(id, 200, &ReadAnswer { index, now: 0, db: 0, words: &[b"GET", b"n"], reply: &reply })
    };
    assert_eq!(read(&mut replay, 1_001, 50), Ok(()));
    replay.forget_before(90);
    replay.commit(101, &one(101, 101, "INCR n").1).unwrap();
    assert_eq!(read(&mut replay, 1_002, 90), Ok(()));
    assert_eq!(read(&mut replay, 1_003, 101), Ok(()));
    assert!(read(&mut replay, 1_004, 89).is_err());
}

/// What clients saw of one machine, in order of time.
enum Seen {
    Invoke(u64),
    Answer(u64, Answer),
    Read { id: u64, index: u64, now: u64, line: String, reply: Reply },
}

/// Entries by index.
type Log = Vec<(u64, Vec<u8>)>;

/// One client after another on the real machine; reads are of the newest state or of one that
/// nobody has gone past. Gives the log and what was seen, with its times.
fn recorded(seed: u64, length: u64) -> (Log, Vec<(u64, Seen)>) {
    let mut random = Random::new(seed);
    let mut state = State::new(0);
    let (mut log, mut seen) = (Vec::new(), Vec::new());
    // The model stands in for the states of the past; it is compared with the machine elsewhere.
    let mut states = vec![Model::new(Settings { databases: 0, ..SETTINGS })];
    let (mut clock, mut floor) = (0, 0);
    for id in 1..=length {
        let at = 10 * id;
        clock += random.below(40);
        let index = log.len() as u64 + 1;
        let key = random.below(3);
        seen.push((at, Seen::Invoke(id)));
        if index > 1 && random.below(3) == 0 {
            let line = match random.below(4) {
                0 => format!("GET k{key}"),
                1 => format!("QLEN q{key} ALL"),
                2 => format!("EXISTS k{key} q{key}"),
                _ => format!("PTTL k{key}"),
            };
            let index = floor + random.below(index - floor);
            let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            let past = &states[index as usize];
            let now = past.clock();
            let reply = past.read(0, &words, now).unwrap();
            floor = floor.max(index);
            seen.push((at + 5, Seen::Read { id, index, now, line, reply }));
            continue;
        }
        let line = match random.below(8) {
            0 => format!("SET k{key} v{id} PX {}", 100 + random.below(200)),
            1 => format!("SET k{key} v{id}"),
            2 => format!("APPEND k{key} x"),
            3 | 4 => format!("QPUSH q{key} m{id}"),
            5 => format!("QPOP LEASE 100 FROM q{key}"),
            6 => format!("LOCK l{key} o PX 100"),
            _ => format!("DEL k{key}"),
        };
        let mut batches = Vec::new();
        if random.below(10) == 0 || index == 1 {
            let mut start = Batch::default();
            start.push_leader_start(&LeaderStart { outage: Millis(random.below(50)), settings: SETTINGS });
            batches.push((None, start));
        }
        let mut expire = Batch::default();
        expire.push_expire(0, [].into_iter());
        batches.push((None, expire));
        batches.push((None, batch(id, &line)));
        let bytes = entry(clock, &batches);
        let applied = apply_entry(&mut state, LogIndex(index), Term(1), &bytes).unwrap();
        let mut model = states.last().unwrap().clone();
        model.apply(index, &bytes).unwrap();
        states.push(model);
        log.push((index, bytes));
        let Some(BatchOutcome::Done(replies)) = applied.outcomes.last().cloned() else {
            panic!("not executed")
        };
        match random.below(10) {
            0 => seen.push((at + 5, Seen::Answer(id, Answer::Unknown))),
            1 => seen.push((at + 5, Seen::Answer(id, Answer::Executed))),
            _ => seen.push((at + 5, Seen::Answer(id, Answer::Replies(replies)))),
        }
        if !matches!(seen.last(), Some((_, Seen::Answer(_, Answer::Unknown)))) {
            floor = index;
        }
    }
    (log, seen)
}

fn replayed(log: &[(u64, Vec<u8>)], seen: &[(u64, Seen)]) -> Result<Replay, String> {
    let mut replay = Replay::new(Settings { databases: 0, ..SETTINGS });
    for (index, entry) in log {
        replay.commit(*index, entry)?;
    }
    for (at, seen) in seen {
        match seen {
            Seen::Invoke(id) => replay.invoke(*id, *at)?,
            Seen::Answer(id, answer) => replay.answer(*id, *at, answer)?,
            Seen::Read { id, index, now, line, reply } => {
                let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
                replay.read(
                    *id,
                    *at,
                    &ReadAnswer { index: *index, now: *now, db: 0, words: &words, reply },
                )?;
            }
        }
    }
    replay.finish().map(|_| replay)
}

#[test]
fn what_the_machine_answered_passes_and_any_other_answer_does_not() {
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 1..=150 {
        let (log, mut seen) = recorded(seed, 120);
        let replay = replayed(&log, &seen).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        let counts = replay.counts();
        assert!(counts.reads > 5 && counts.replies > 20, "seed {seed}: {counts:?}");
        let mut random = Random::new(seed ^ 0x5eed);
        let at = random.below(seen.len() as u64) as usize;
        let kind = match &mut seen[at].1 {
            Seen::Invoke(_) | Seen::Answer(_, Answer::Unknown | Answer::Executed) => continue,
            Seen::Answer(_, Answer::Replies(replies)) => {
                replies[0] = Reply::text("another");
                "reply"
            }
            Seen::Answer(_, Answer::NotDone) => panic!("the machine does everything"),
            Seen::Read { reply, .. } if random.below(2) == 0 => {
                *reply = Reply::text("another");
                "read"
            }
            Seen::Read { index, .. } => {
                *index = log.len() as u64 + 1;
                "index"
            }
        };
        *kinds.entry(kind).or_default() += 1;
        assert!(replayed(&log, &seen).is_err(), "seed {seed}: a changed {kind} at {at} passed");
    }
    assert!(kinds.len() == 3 && kinds.values().all(|count| *count > 3), "{kinds:?}");
}
