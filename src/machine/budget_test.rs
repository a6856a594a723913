//! Transactions that would take more than one may.

use bytes::Bytes;

use crate::machine::apply::Applied;
use crate::machine::apply::BatchOutcome;
use crate::machine::apply::apply_entry_for;
use crate::machine::entry::Batch;
use crate::machine::entry::Queued;
use crate::machine::entry::SessionStamp;
use crate::machine::entry::Stamps;
use crate::machine::entry::encode_entry;
use crate::resp::Reply;
use crate::state::State;
use crate::state::locks::test_support::lock;
use crate::types::ClusterTime;
use crate::types::LogIndex;
use crate::types::NodeId;
use crate::types::Term;
use crate::types::WallMillis;
use crate::types::bounds::Bounds;

/// Commands written as `SET k v; GET k`, each line so often.
fn commands(lines: &[(&str, usize)]) -> Vec<Queued> {
    let args =
        |text: &str| text.split_whitespace().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
    let queued =
        |line: &str| line.split(';').map(|text| Queued { db: 0, args: args(text) }).collect::<Vec<_>>();
    lines.iter().flat_map(|(line, count)| vec![queued(line); *count].concat()).collect()
}

fn transaction(bounds: Bounds, commands: &[Queued], is_atomic: bool) -> Batch {
    let mut batch = Batch::within(b"default", bounds);
    batch.push_transaction(&[], commands, is_atomic);
    batch
}

fn entry(batches: &[(Option<SessionStamp>, Batch)]) -> Vec<u8> {
    let stamps = Stamps { clock: ClusterTime(9), wall: WallMillis(9), seed: 1 };
    encode_entry(&stamps, batches.iter().map(|(session, batch)| (*session, batch)))
}

fn apply(state: &mut State, entry: &[u8], is_wanted: bool) -> Applied {
    let index = LogIndex(state.meta().applied.0 + 1);
    apply_entry_for(state, index, Term(1), entry, |_, _| is_wanted).unwrap()
}

/// The reply to a transaction that is an entry of its own.
fn exec(state: &mut State, commands: &[Queued], is_atomic: bool) -> Reply {
    let batch = transaction(Bounds::DEFAULT, commands, is_atomic);
    let mut applied = apply(state, &entry(&[(None, batch)]), true);
    match applied.outcomes.pop() {
        Some(BatchOutcome::Done(mut replies)) if replies.len() == 1 => replies.remove(0),
        other => panic!("one reply, not {other:?}"),
    }
}

fn text(reply: Reply) -> String {
    match reply {
        Reply::Error(text) => text.into_owned(),
        other => panic!("an error, not {} bytes", other.size_hint()),
    }
}

/// A state with so many keys, and `big`, a value of a million bytes.
fn state(keys: usize) -> State {
    let mut state = State::new(16);
    (0..keys).for_each(|n| assert!(state.put_string(0, format!("key:{n}").as_bytes(), b"v", None)));
    state.put_string(0, b"big", &[b'x'; 1_000_000], None);
    state
}

#[test]
fn an_entry_of_an_older_build_that_would_take_all_memory_is_got_past() {
    let mut state = state(20_000);
    for (lines, at) in [
        (&[("SET a 1", 1), ("KEYS *", 1_000)][..], 14),
        (&[("SET a 1", 1), ("SCAN 0 COUNT 1000000", 1_000)], 14),
        (&[("SET a 1", 1), ("LOCKS LIST 0 COUNT 1000000", 1_000)], 14),
        (&[("SET a 1", 1), ("KEYS none*", 100_000)], 14),
        (&[("SET a 1", 1), ("GET big", 1_000)], 70),
        (&[("SET a 1", 1), ("MGET big big big big big", 1_000)], 15),
        (&[("SET a 1", 1), ("GETSET big 1; COPY b2 big", 1), ("GETEX big", 70_000)], 0),
        (&[("COPY big c1; COPY big c2 REPLACE", 1), ("COPY big c3 REPLACE", 1_000)], 135),
        (&[("RENAME big b2; RENAME b2 big", 50_000)], 134),
        (&[("SET a 1; SETRANGE s 1000000 x; DEL s", 1_000)], 404),
        (&[("SETRANGE s 67108863 x; SETRANGE t 67108863 x; DEL s t", 1_000)], 4),
    ] {
        for is_atomic in [true, false] {
            let before = state.digest();
            let commands = commands(lines);
            let reply = exec(&mut state, &commands, is_atomic);
            if at == 0 {
                assert!(
                    matches!(&reply, Reply::Array(replies) if replies.len() == commands.len()),
                    "{lines:?}"
                );
                continue;
            }
            let text = text(reply);
            assert!(text.starts_with(&format!("EXECABORT cmd={at} ERR ")), "{lines:?}: {text}");
            assert!(text.contains("Nothing was executed"), "{text}");
            assert_ne!(state.digest(), before, "the entry's own index counts");
            assert!(
                state.row(0, b"a").is_none() && state.row(0, b"c1").is_none() && state.row(0, b"s").is_none()
            );
            assert_eq!(
                state.row(0, b"big").and_then(|row| row.as_string()).map(<[u8]>::len),
                Some(1_000_000)
            );
        }
        for key in [&b"a"[..], b"s", b"t"] {
            state.remove(0, key);
        }
        state.put_string(0, b"big", &[b'x'; 1_000_000], None);
    }
}

#[test]
fn small_walks_run_in_a_transaction_that_writes() {
    let mut state = state(1_000);
    let reply =
        exec(&mut state, &commands(&[("SET a 1; KEYS *; SCAN 0 COUNT 10000; RANDOMKEY; DBSIZE", 20)]), false);
    let Reply::Array(replies) = reply else { panic!("{reply:?}") };
    assert_eq!(replies.len(), 100);
    assert!(matches!(&replies[1], Reply::Array(keys) if keys.len() == 1_002));
    assert!(!replies.iter().any(Reply::is_error));
    // An error of a command stands among the replies, although the commands could be taken back.
    let reply = exec(&mut state, &commands(&[("INCR big; SET b 1; KEYS b", 1)]), false);
    let Reply::Array(replies) = reply else { panic!("{reply:?}") };
    assert!(replies[0].is_error() && replies[1..] == [Reply::Ok, Reply::Array(vec![Reply::bulk("b")])]);
}

#[test]
fn messages_that_do_not_fit_the_reply_stay_where_they_are() {
    let mut state = State::new(16);
    let mut push = Batch::new(b"default");
    for _ in 0..10 {
        push.push_command(0, [&b"QPUSH"[..], b"q", &[b'm'; 7_000]].into_iter());
    }
    apply(&mut state, &entry(&[(None, push)]), true);
    let bounds = Bounds { reply: 64_000, ..Bounds::DEFAULT };
    for is_atomic in [true, false] {
        let batch = transaction(bounds, &commands(&[("INCR n", 1), ("QPOP FROM q", 10)]), is_atomic);
        let mut applied = apply(&mut state, &entry(&[(None, batch)]), true);
        let Some(BatchOutcome::Done(mut replies)) = applied.outcomes.pop() else { panic!("done") };
        let text = text(replies.remove(0));
        assert!(text.starts_with("EXECABORT cmd=10 ERR the reply would take 64"), "{text}");
        assert!(text.contains("allows 64000"), "the whole limit, not what is left of it: {text}");
        assert!(state.row(0, b"n").is_none());
    }
    let reply = exec(&mut state, &commands(&[("QPOP COUNT 10 FROM q", 1)]), true);
    let Reply::Array(replies) = reply else { panic!("{reply:?}") };
    let Reply::Array(messages) = &replies[0] else { panic!("{replies:?}") };
    let attempts: Vec<&Reply> = messages
        .iter()
        .map(|message| if let Reply::Array(fields) = message { &fields[3] } else { message })
        .collect();
    assert_eq!(attempts, [&Reply::Integer(1); 10], "no attempt was counted");
}

#[test]
fn the_bounds_of_the_batch_decide_and_not_those_of_the_replica() {
    let mut state = State::new(16);
    for (value, length) in [(1_000, None), (2_000, Some(1_500))] {
        let mut batch = Batch::within(b"default", Bounds { value, ..Bounds::DEFAULT });
        batch.push_command(0, [&b"SETRANGE"[..], b"s", b"1499", b"x"].into_iter());
        let applied = apply(&mut state, &entry(&[(None, batch)]), true);
        let [BatchOutcome::Done(replies)] = &applied.outcomes[..] else { panic!("done") };
        match length {
            Some(length) => assert_eq!(replies[..], [Reply::Integer(length)]),
            None => assert!(replies[0].is_error(), "{replies:?}"),
        }
    }
}

#[test]
fn what_an_entry_answers_as_a_whole_is_bounded() {
    let mut state = state(0);
    let large = || transaction(Bounds::DEFAULT, &commands(&[("INCR n", 1), ("GET big", 60)]), false);
    let batches: Vec<_> = (0..8).map(|_| (None, large())).collect();
    let applied = apply(&mut state, &entry(&batches), true);
    let mut bytes = 0;
    let mut refused = 0;
    for outcome in applied.outcomes {
        let BatchOutcome::Done(replies) = outcome else { panic!("done") };
        bytes += replies.iter().map(Reply::size_hint).sum::<usize>();
        refused += replies
            .iter()
            .filter(|reply| matches!(reply, Reply::Error(text) if text.starts_with("TRYAGAIN ")))
            .count();
    }
    assert!(bytes < 300_000_000 && refused == 4, "{bytes} bytes, {refused} refused");
    assert_eq!(
        state.row(0, b"n").and_then(|row| row.as_string()),
        Some(&b"4"[..]),
        "what was refused did nothing"
    );
}

/// A command of this many batches of one entry.
fn in_batches(state: &mut State, line: &str, batches: usize, each: usize) -> Vec<Reply> {
    let batch = || {
        let mut batch = Batch::new(b"default");
        for _ in 0..each {
            batch.push_command(0, line.split(' ').map(str::as_bytes).collect::<Vec<_>>().into_iter());
        }
        (None, batch)
    };
    let batches: Vec<_> = (0..batches).map(|_| batch()).collect();
    let replies =
        apply(state, &entry(&batches), true).outcomes.into_iter().flat_map(|outcome| match outcome {
            BatchOutcome::Done(replies) => replies,
            other => panic!("done, not {other:?}"),
        });
    replies.collect()
}

fn told_to_try_again(replies: &[Reply]) -> usize {
    let is_refused = |reply: &&Reply| matches!(reply, Reply::Error(text) if text.starts_with("TRYAGAIN "));
    replies.iter().filter(is_refused).count()
}

#[test]
fn what_an_entry_changes_without_naming_it_is_bounded() {
    let mut state = State::new(16);
    for n in 0..9_000 {
        lock(&mut state, 0, format!("lock:{n}").as_bytes(), "me", 3_600_000, ClusterTime(9));
    }
    let replies = in_batches(&mut state, "LOCKEXTEND me 60000", 40, 1);
    assert_eq!(told_to_try_again(&replies), 13, "27 of 9,000 and a few are 250,000");
    assert!(matches!(replies[26], Reply::Map(_)) && replies[27].is_error());
    let replies = in_batches(&mut state, "LOCKEXTEND me 60000", 1, 40);
    assert_eq!(told_to_try_again(&replies), 0, "a batch does not stand behind itself");
    let replies = in_batches(&mut state, "LOCKEXTEND me 60000 KEYS 1 lock:1", 100, 1);
    assert_eq!(told_to_try_again(&replies), 0);
    for is_atomic in [true, false] {
        let text = text(exec(&mut state, &commands(&[("LOCKEXTEND me 60000", 1_000)]), is_atomic));
        assert!(text.starts_with("EXECABORT cmd=7 ERR a transaction changes 32768 locks"), "{text}");
    }
    // Values that are copied, too.
    state.put_string(0, b"long", &vec![b'x'; 60 << 20], None);
    let replies = in_batches(&mut state, "COPY long copy REPLACE", 20, 1);
    assert_eq!(told_to_try_again(&replies), 12);
}

#[test]
fn a_database_is_flushed_in_a_transaction_that_need_not_be_taken_back() {
    let mut state = state(20_000);
    let reply = exec(&mut state, &commands(&[("KEYS none", 13), ("FLUSHDB; SET a 1; KEYS *", 1)]), false);
    let Reply::Array(replies) = reply else { panic!("{reply:?}") };
    let refused = replies[12].size_hint();
    assert!(replies[11] == Reply::Array(Vec::new()) && replies[12].is_error(), "{refused}");
    assert_eq!(replies[13..15], [Reply::Ok, Reply::Ok]);
    assert_eq!(replies[15], Reply::Array(vec![Reply::bulk("a")]), "what was refused took nothing");
    let reply = exec(&mut state, &commands(&[("SET b 1; FLUSHALL; SET a 1; KEYS *; GET a", 1)]), false);
    let keys = Reply::Array(vec![Reply::bulk("a")]);
    assert_eq!(reply, Reply::Array(vec![Reply::Ok, Reply::Ok, Reply::Ok, keys, Reply::bulk("1")]));
    let text = text(exec(&mut state, &commands(&[("FLUSHALL; KEYS *", 1)]), true));
    assert!(text.contains("not flushed all or nothing"), "{text}");
}

#[test]
fn who_waits_is_told_later_as_much_as_one_reply_may_take() {
    let mut state = state(0);
    let large = || transaction(Bounds::DEFAULT, &commands(&[("INCR n", 1), ("GET big", 60)]), false);
    let mut batches: Vec<_> = (0..4).map(|_| (None, large())).collect();
    for reply in [Bounds::DEFAULT.reply, usize::MAX] {
        let mut pop = Batch::within(b"default", Bounds { reply, ..Bounds::DEFAULT });
        pop.push_command(0, ["QPOP", "BLOCK", "0", "FROM", "q"].map(str::as_bytes).into_iter());
        batches.push((None, pop));
    }
    let outcomes = apply(&mut state, &entry(&batches), true).outcomes;
    let waiting = |reply: &Reply| matches!(reply, Reply::Waiting(_));
    let waits = |outcome: &&BatchOutcome| matches!(outcome, BatchOutcome::Done(replies) if replies.iter().all(waiting));
    assert_eq!(outcomes.iter().filter(waits).count(), 2, "however little room their entry has left");
    let most: Vec<usize> = state.pop_waits().iter().map(|wait| wait.request.reply_max).collect();
    assert_eq!(most, [Bounds::DEFAULT.reply, usize::MAX]);
}

#[test]
fn replies_that_nobody_waits_for_are_not_kept_and_change_nothing_that_is_replicated() {
    let (mut wanted, mut unwanted) = (state(100), state(100));
    let stamp = |seq| Some(SessionStamp { node: NodeId(2), epoch: 1 << 16, seq, ack: 0 });
    let batches = [
        (stamp(1), transaction(Bounds::DEFAULT, &commands(&[("INCR n", 1), ("GET big", 60)]), false)),
        (stamp(2), transaction(Bounds::DEFAULT, &commands(&[("ONCE id", 1), ("INCR n; GET big", 2)]), true)),
        (stamp(3), transaction(Bounds::DEFAULT, &commands(&[("INCR n", 1), ("KEYS *", 10)]), false)),
        (stamp(4), transaction(Bounds::DEFAULT, &commands(&[("INCR n", 1), ("GET big", 90)]), false)),
        (
            stamp(5),
            transaction(
                Bounds::DEFAULT,
                &commands(&[("INCR n", 1), ("GET big", 30), ("INCR x; INCR big", 1)]),
                true,
            ),
        ),
        (stamp(6), transaction(Bounds::DEFAULT, &commands(&[("SET a 1", 9)]), false)),
    ];
    let entry = entry(&batches);
    let (told, kept) = (apply(&mut wanted, &entry, true), apply(&mut unwanted, &entry, false));
    assert_eq!(wanted.digest(), unwanted.digest(), "what is remembered for a repetition is the same");
    assert_eq!(told.sessions, kept.sessions);
    for (told, kept) in told.outcomes.iter().zip(&kept.outcomes) {
        assert!(matches!(told, BatchOutcome::Done(replies) if replies.len() == 1));
        assert_eq!(*kept, BatchOutcome::Done(Vec::new()));
    }
    // Sent again, they are told the same wherever they come to.
    for state in [&mut wanted, &mut unwanted] {
        let again = apply(state, &entry, true);
        let is_repeated: Vec<bool> =
            again.outcomes.iter().map(|outcome| matches!(outcome, BatchOutcome::Repeated(_))).collect();
        assert_eq!(is_repeated, [false, false, true, true, true, true], "{:?}", again.outcomes.len());
    }
}
