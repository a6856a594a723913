//! What apply costs: entries of many small commands, on a state with and without other keys.

use std::hint::black_box;

use criterion::BatchSize;
use criterion::Criterion;
use criterion::criterion_group;
use criterion::criterion_main;
use holdfast::machine::apply::BatchOutcome;
use holdfast::machine::apply::apply_entry;
use holdfast::machine::entry::Batch;
use holdfast::machine::entry::SessionStamp;
use holdfast::machine::entry::Stamps;
use holdfast::machine::entry::encode_entry;
use holdfast::resp::Reply;
use holdfast::state::State;
use holdfast::types::ClusterTime;
use holdfast::types::LogIndex;
use holdfast::types::NodeId;
use holdfast::types::Term;
use holdfast::types::WallMillis;

const COMMANDS: usize = 100;

fn entry(words: impl Fn(usize) -> Vec<Vec<u8>>) -> Vec<u8> {
    let mut batch = Batch::new(b"default");
    for n in 0..COMMANDS {
        let words = words(n);
        batch.push_command(0, words.iter().map(Vec::as_slice));
    }
    let stamps = Stamps { clock: ClusterTime(1), wall: WallMillis(1), seed: 1 };
    encode_entry(&stamps, [(None, &batch)].into_iter())
}

fn text(words: &[&str]) -> Vec<Vec<u8>> {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

fn filled(keys: usize) -> State {
    let mut state = State::new(16);
    for n in 0..keys {
        state.put_string(0, format!("key:{n:012}").as_bytes(), &[b'x'; 64], None);
    }
    state.take_changes();
    state
}

fn apply(c: &mut Criterion) {
    let value = "x".repeat(64);
    let cases = [
        ("set", entry(|n| text(&["SET", &format!("key:{:012}", n * 7919), &value]))),
        ("incr", entry(|n| text(&["INCR", &format!("counter:{n}")]))),
        ("lock", entry(|n| text(&["LOCK", &format!("lock:{n}"), "me", "PX", "30000"]))),
        ("qpush", entry(|_| text(&["QPUSH", "q", &value]))),
    ];
    for (name, entry) in &cases {
        let mut state = filled(1_000_000);
        let mut index = 0;
        c.bench_function(&format!("apply 100 {name}, 1M keys"), |b| {
            b.iter(|| {
                index += 1;
                black_box(apply_entry(&mut state, LogIndex(index), Term(1), entry).expect("a legal entry"))
            });
        });
    }
    let value = text(&["SET", "key:000000000000", &value]);
    for (name, has_session) in [("no session", false), ("a session", true)] {
        let mut batch = Batch::new(b"default");
        batch.push_command(0, value.iter().map(Vec::as_slice));
        let mut state = filled(1_000_000);
        let mut index = 0;
        c.bench_function(&format!("apply 100 batches of one set, {name}"), |b| {
            b.iter(|| {
                index += 1;
                // An entry carries what came since the one before, whose replies have arrived.
                let stamp = |n: u64| SessionStamp {
                    node: NodeId(1),
                    epoch: 1,
                    seq: (index - 1) * 100 + n + 1,
                    ack: (index - 1) * 100,
                };
                let batches = (0..100).map(|n| (has_session.then(|| stamp(n)), &batch));
                let entry =
                    encode_entry(&Stamps { clock: ClusterTime(1), wall: WallMillis(1), seed: 1 }, batches);
                black_box(apply_entry(&mut state, LogIndex(index), Term(1), &entry).expect("a legal entry"))
            });
        });
    }
    c.bench_function("take changes of 10,000 rows", |b| {
        b.iter_batched(
            || {
                let mut state = State::new(1);
                for n in 0..10_000 {
                    state.put_string(0, format!("key:{n}").as_bytes(), &[b'x'; 64], None);
                }
                state
            },
            |mut state| black_box(state.take_changes()),
            BatchSize::LargeInput,
        );
    });
}

fn commands(lines: impl Iterator<Item = Vec<Vec<u8>>>) -> Vec<u8> {
    let mut batch = Batch::new(b"default");
    lines.for_each(|words| batch.push_command(0, words.iter().map(Vec::as_slice)));
    encode_entry(
        &Stamps { clock: ClusterTime(1), wall: WallMillis(1), seed: 1 },
        [(None, &batch)].into_iter(),
    )
}

fn receipt(reply: &Reply) -> String {
    let Reply::Array(messages) = reply else { panic!("a message and not {reply:?}") };
    let Reply::Array(message) = &messages[0] else { panic!("a message and not {reply:?}") };
    let Reply::Bulk(receipt) = &message[1] else { panic!("a receipt and not {reply:?}") };
    String::from_utf8_lossy(receipt).into_owned()
}

/// A queue of so many waiting messages: 100 come, 100 are handed out, 100 are acknowledged.
fn queues(c: &mut Criterion) {
    let payload = "x".repeat(100);
    let pushes = |count| commands((0..count).map(|_| text(&["QPUSH", "q", &payload])));
    let (hundred, thousand) = (pushes(100), pushes(1_000));
    let pops = commands((0..100).map(|_| text(&["QPOP", "FROM", "q"])));
    for waiting in [0, 1_000_000] {
        let mut state = State::new(16);
        let mut index = 0;
        let mut next = |state: &mut State, entry: &[u8]| {
            index += 1;
            let applied = apply_entry(state, LogIndex(index), Term(1), entry).expect("a legal entry");
            if index % 16 == 0 {
                // As the flusher does, now and then.
                black_box(state.take_changes());
                state.on_disk(LogIndex(index));
            }
            applied
        };
        for _ in 0..waiting / 1_000 {
            next(&mut state, &thousand);
        }
        c.bench_function(&format!("apply 100 qpush, qpop and qack, {waiting} waiting"), |b| {
            b.iter(|| {
                next(&mut state, &hundred);
                let popped = next(&mut state, &pops);
                let BatchOutcome::Done(replies) = &popped.outcomes[0] else { panic!("it has no session") };
                let acks = commands(replies.iter().map(|reply| text(&["QACK", "q", &receipt(reply)])));
                black_box(next(&mut state, &acks))
            });
        });
    }
}

criterion_group!(benches, apply, queues);
criterion_main!(benches);
