//! What was handed to those who waited, and what becomes of it, entry by entry.

use crate::machine::apply::BatchOutcome;
use crate::machine::apply::apply_entry;
use crate::machine::entry::Batch;
use crate::machine::entry::Queued;
use crate::machine::entry::SessionStamp;
use crate::machine::entry::Stamps;
use crate::machine::entry::encode_entry;
use crate::resp::Reply;
use crate::state::State;
use crate::state::notices::ClaimEnd;
use crate::state::notices::LockChange;
use crate::state::notices::Notice;
use crate::state::test_support::TestStore;
use crate::types::ClusterTime;
use crate::types::LogIndex;
use crate::types::NodeId;
use crate::types::Term;
use crate::types::WallMillis;

/// A state that is read back from its rows after every entry, and what entries brought about.
struct Bench {
    state: State,
    store: TestStore,
    /// Batches of each node so far.
    sent: [u64; 4],
    told: Vec<String>,
}

impl Bench {
    fn new() -> Bench {
        Bench { state: State::new(16), store: TestStore::new(), sent: [0; 4], told: Vec::new() }
    }

    fn apply(&mut self, node: u64, now: u64, fill: impl FnOnce(&mut Batch)) -> Vec<Reply> {
        let mut batch = Batch::new(b"default");
        fill(&mut batch);
        let seq = &mut self.sent[node as usize];
        *seq += 1;
        let session =
            (node > 0).then_some(SessionStamp { node: NodeId(node), epoch: 1 << 16, seq: *seq, ack: 0 });
        let stamps = Stamps { clock: ClusterTime(now), wall: WallMillis(now), seed: 1 };
        let entry = encode_entry(&stamps, [(session, &batch)].into_iter());
        let index = self.state.meta().applied.next();
        let applied = apply_entry(&mut self.state, index, Term(1), &entry).unwrap();
        self.told.extend(applied.notices.iter().filter_map(told));
        self.store.reopen(&mut self.state);
        assert_eq!(self.state.meta().applied, LogIndex(index.0));
        match &applied.outcomes[..] {
            [BatchOutcome::Done(replies)] => replies.clone(),
            other => panic!("one batch that is done, not {other:?}"),
        }
    }

    /// Runs commands of a client of this node, as an entry; node 0 is nobody's. Gives the last reply.
    fn run(&mut self, node: u64, now: u64, lines: &str) -> Reply {
        let replies = self.apply(node, now, |batch| {
            for line in lines.split("; ") {
                batch.push_command(0, line.split(' ').map(str::as_bytes).collect::<Vec<_>>().into_iter());
            }
        });
        replies.last().expect("a command").clone()
    }

    fn confirm(&mut self, now: u64, claims: &[u64]) -> i64 {
        integer(&self.apply(0, now, |batch| batch.push_confirm(claims)))
    }

    fn cancel(&mut self, now: u64, claims: &[u64]) -> i64 {
        integer(&self.apply(0, now, |batch| batch.push_cancel(claims)))
    }

    fn end_claims(&mut self, now: u64, node: u64) -> i64 {
        integer(&self.apply(0, now, |batch| batch.push_end_claims(NodeId(node), u64::MAX)))
    }

    fn expire(&mut self, now: u64) -> i64 {
        integer(&self.apply(0, now, |batch| batch.push_expire(0, std::iter::empty())))
    }

    /// What was told since the last call.
    fn told(&mut self) -> String {
        std::mem::take(&mut self.told).join(", ")
    }

    /// The token under which a lock is held; 0: it is not.
    fn token(&self, key: &str) -> u64 {
        let lock = crate::state::locks::lock_at(&self.state, 0, key.as_bytes()).flatten();
        lock.and_then(|lock| lock.holds().first()).map_or(0, |hold| hold.token().0)
    }
}

fn integer(replies: &[Reply]) -> i64 {
    match replies {
        [Reply::Integer(number)] => *number,
        other => panic!("a number, not {other:?}"),
    }
}

fn told(notice: &Notice) -> Option<String> {
    let (claim, what) = match notice {
        Notice::ClaimHanded { claim, end: ClaimEnd::Granted(granted), .. } => {
            (claim, format!("handed {}", granted.grants[0].token.0))
        }
        Notice::ClaimHanded { claim, end: ClaimEnd::Delivered(delivered), .. } => {
            let message = &delivered.messages[0];
            (claim, format!("handed {} attempt {}", message.receipt, message.attempt))
        }
        Notice::ClaimHanded { claim, .. } => (claim, "handed nothing".to_owned()),
        Notice::ClaimConfirmed { claim, until, .. } => (claim, format!("has it until {}", until.0)),
        Notice::ClaimEnded { claim, end: ClaimEnd::Over, .. } => (claim, "over".to_owned()),
        Notice::ClaimEnded { claim, .. } => (claim, "ended".to_owned()),
        Notice::Lock { change: LockChange::Killed, token, .. } => return Some(format!("killed {}", token.0)),
        Notice::ClaimBegan { .. } | Notice::Lock { .. } => return None,
    };
    Some(format!("{} {what}", claim.0))
}

#[test]
fn who_was_not_told_of_a_lock_is_not_told_that_it_was_broken() {
    let mut bench = Bench::new();
    bench.run(1, 0, "LOCK l h");
    for (now, is_confirmed, told) in [(1, false, ""), (11, true, "killed 4")] {
        bench.run(2, now, "LOCK l w PX 5000 BLOCK 0");
        bench.run(1, now + 1, "UNLOCK l h");
        let claim = bench.state.handed().iter().next().map(|(id, _)| id.0).expect("it was handed over");
        if is_confirmed {
            bench.confirm(now + 2, &[claim]);
        }
        bench.told();
        assert_eq!(bench.run(0, now + 3, "LOCKS KILL l"), Reply::Integer(1));
        assert_eq!(bench.told(), told);
        bench.confirm(now + 4, &[claim]);
        bench.run(1, now + 5, "LOCK l h");
    }
}

#[test]
fn a_lock_is_handed_over_confirmed_and_then_not_taken_back() {
    let mut bench = Bench::new();
    bench.run(1, 0, "LOCK l h");
    assert_eq!(bench.run(2, 1, "LOCK l w PX 5000 BLOCK 0"), Reply::Waiting(1));
    bench.run(1, 2, "UNLOCK l h");
    assert_eq!(bench.told(), "1 handed 2");
    assert_eq!(bench.confirm(3, &[1, 7]), 1, "nobody has the other claim");
    assert_eq!(bench.told(), "1 has it until 5002");
    assert_eq!((bench.confirm(4, &[1]), bench.cancel(4, &[1]), bench.end_claims(4, 2)), (0, 0, 0));
    assert_eq!((bench.token("l"), bench.told().as_str()), (2, ""));
    assert!(bench.state.handed().iter().next().is_none());
}

#[test]
fn what_the_clients_of_a_dead_node_were_handed_goes_back_and_to_who_stands_behind() {
    let mut bench = Bench::new();
    bench.run(1, 0, "LOCK l h; QCONFIG SET q MAXDELIVER 1");
    bench.run(2, 1, "LOCK l w PX 86400000 GRACE 86400000 BLOCK 0");
    bench.run(2, 1, "QPOP LEASE 86400000 BLOCK 0 FROM q");
    bench.run(3, 1, "LOCK l next BLOCK 0");
    bench.run(1, 2, "UNLOCK l h; QPUSH q m");
    assert_eq!(bench.told(), "1 handed 2, 2 handed 5-0:1 attempt 1");
    assert_eq!(bench.end_claims(10_000, 2), 2);
    assert_eq!(bench.told(), "1 over, 3 handed 3, 2 over");
    assert_eq!(bench.confirm(10_001, &[3]), 1);
    // Nobody saw the message: it has its one attempt still.
    let Reply::Array(popped) = bench.run(1, 10_002, "QPOP FROM q") else { panic!("a message") };
    let Reply::Array(fields) = &popped[0] else { panic!("a message") };
    assert_eq!(fields[1..], [Reply::bulk("5-0:2"), Reply::bulk("m"), Reply::Integer(1)]);
}

#[test]
fn a_node_that_comes_back_with_a_new_life_ends_what_its_clients_were_handed_in_the_one_before() {
    let mut bench = Bench::new();
    bench.run(1, 0, "LOCK l h");
    bench.run(2, 1, "LOCK l w BLOCK 0");
    bench.run(1, 2, "UNLOCK l h");
    let stamps = Stamps { clock: ClusterTime(3), wall: WallMillis(3), seed: 1 };
    let session = SessionStamp { node: NodeId(2), epoch: 2 << 16, seq: 1, ack: 0 };
    let entry = encode_entry(&stamps, [(Some(session), &Batch::default())].into_iter());
    apply_entry(&mut bench.state, LogIndex(4), Term(1), &entry).unwrap();
    assert_eq!(bench.token("l"), 0);
}

#[test]
fn a_hold_that_its_owner_touched_meanwhile_does_not_go_back() {
    let mut bench = Bench::new();
    for (key, line) in [("l", "LOCK l w"), ("m", "LOCKEXTEND w 9000 KEYS 1 m")] {
        bench.run(1, 0, &format!("LOCK {key} h"));
        let Reply::Waiting(claim) = bench.run(2, 1, &format!("LOCK {key} w BLOCK 0")) else {
            panic!("waits")
        };
        bench.run(1, 2, &format!("UNLOCK {key} h; {line}"));
        assert_eq!(bench.cancel(3, &[claim]), 1);
        assert_ne!(bench.token(key), 0, "{key}");
    }
}

#[test]
fn what_is_not_given_any_more_when_it_is_confirmed_is_over_and_the_rest_goes_back() {
    let mut bench = Bench::new();
    bench.run(1, 0, "MLOCK 2 a b h; LOCK c h");
    bench.run(2, 1, "MLOCK 2 a b w BLOCK 0");
    bench.run(2, 1, "LOCK c w PX 100 GRACE 86400000 BLOCK 0");
    bench.run(2, 1, "QPOP COUNT 2 BLOCK 0 FROM q");
    bench.run(1, 2, "LOCKS RELEASE h");
    bench.run(1, 2, "QPUSH q m");
    bench.run(1, 3, "LOCKS KILL a; QDEL q ALL");
    // A lease that ends before anybody knew of it leaves no delay behind.
    assert_eq!(bench.expire(102), 1);
    bench.told();
    assert_eq!(bench.confirm(103, &[1, 2, 3]), 0);
    assert_eq!(bench.told(), "1 over, 2 over, 3 over");
    assert_eq!([bench.token("a"), bench.token("b"), bench.token("c")], [0; 3]);
    assert_eq!(bench.run(1, 104, "LOCK c other"), Reply::Integer(7));
}

#[test]
fn a_lease_that_ends_before_anybody_knew_of_the_message_counts_no_attempt() {
    let mut bench = Bench::new();
    bench.run(1, 0, "QCONFIG SET q MAXDELIVER 1");
    bench.run(2, 0, "QPOP LEASE 100 BLOCK 0 FROM q");
    bench.run(1, 1, "QPUSH q m");
    assert_eq!(bench.expire(101), 1);
    assert_eq!(bench.told(), "1 handed 3-0:1 attempt 1");
    let Reply::Array(popped) = bench.run(1, 102, "QPOP LEASE 100 FROM q") else { panic!("a message") };
    let Reply::Array(fields) = &popped[0] else { panic!("a message") };
    assert_eq!(fields[3], Reply::Integer(1));
    // That one is known, and its end counts.
    assert_eq!(bench.expire(202), 1);
    assert_eq!(bench.run(1, 203, "QLEN q DEAD"), Reply::Integer(1));
    assert_eq!(bench.confirm(204, &[1]), 0);
}

#[test]
fn a_grant_of_several_clients_goes_back_only_when_none_of_them_was_told() {
    for confirms in [true, false] {
        let mut bench = Bench::new();
        bench.run(1, 0, "LOCK l h");
        bench.run(2, 1, "LOCK l w BLOCK 0");
        bench.run(3, 1, "LOCK l w BLOCK 0");
        bench.run(1, 2, "UNLOCK l h");
        assert_eq!(bench.confirm(3, &[2]), 1);
        assert_eq!(bench.told(), "1 handed 2, 2 handed 2, 2 has it until 30002");
        if confirms {
            assert_eq!(bench.confirm(4, &[1]), 1);
        } else {
            assert_eq!(bench.end_claims(4, 2), 1);
            assert_eq!(bench.told(), "1 over");
        }
        assert_eq!(bench.token("l"), 2);
        assert!(bench.state.handed().iter().next().is_none());
    }
    let mut bench = Bench::new();
    bench.run(1, 0, "LOCK l h");
    bench.run(2, 1, "LOCK l w BLOCK 0");
    bench.run(3, 1, "LOCK l w BLOCK 0");
    bench.run(1, 2, "UNLOCK l h");
    assert_eq!((bench.cancel(3, &[1]), bench.token("l")), (1, 2));
    assert_eq!((bench.cancel(4, &[2]), bench.token("l")), (1, 0));
}

#[test]
fn one_hold_that_several_requests_of_its_owner_were_handed_goes_back_with_the_newest() {
    let start = || {
        let mut bench = Bench::new();
        bench.run(1, 0, "LOCK l h");
        bench.run(2, 1, "LOCK l w BLOCK 0");
        bench.run(3, 1, "MLOCK 1 l w BLOCK 0");
        bench.run(1, 2, "UNLOCK l h");
        assert_eq!(bench.told(), "1 handed 2, 2 handed 2");
        bench
    };
    let mut bench = start();
    assert_eq!((bench.end_claims(3, 2), bench.token("l")), (1, 2));
    assert_eq!((bench.end_claims(4, 3), bench.token("l")), (1, 0));
    // Once one of them was told of it, it stays.
    for told in [1, 2] {
        let mut bench = start();
        assert_eq!(bench.confirm(3, &[told]), 1);
        assert_eq!((bench.cancel(4, &[3 - told]), bench.token("l")), (1, 2), "{told}");
    }
}

#[test]
fn an_upgrade_that_nobody_hears_of_keeps_what_its_owner_had() {
    let mut bench = Bench::new();
    bench.run(1, 0, "LOCK l h SHARED; LOCK l w SHARED");
    bench.run(2, 1, "LOCK l w BLOCK 0");
    bench.run(1, 2, "UNLOCK l h");
    assert_eq!(bench.told(), "1 handed 3");
    assert_eq!((bench.end_claims(3, 2), bench.token("l")), (1, 3));
    // Neither does TAKE-BACK end it, whose owner did not get a new lock.
    let grants = || [(&b"l"[..], 3, 1)].into_iter();
    assert_eq!(integer(&bench.apply(0, 4, |batch| batch.push_take_back(0, b"w", grants()))), 0);
}

#[test]
fn a_transaction_that_comes_to_nothing_hands_nothing_over() {
    let mut bench = Bench::new();
    bench.run(1, 0, "LOCK l h");
    bench.run(2, 1, "LOCK l w BLOCK 0");
    let queued = |line: &str| Queued {
        db: 0,
        args: line.split(' ').map(|word| bytes::Bytes::copy_from_slice(word.as_bytes())).collect(),
    };
    let commands = ["UNLOCK l h", "INCRBY n x"].map(queued);
    let replies = bench.apply(1, 2, |batch| batch.push_transaction(&[], &commands, true));
    assert!(replies[0].is_error());
    assert_eq!((bench.told().as_str(), bench.state.waits().len(), bench.token("l")), ("", 1, 1));
    assert!(bench.state.handed().iter().next().is_none());
    let commands = ["UNLOCK l h"].map(queued);
    bench.apply(1, 3, |batch| batch.push_transaction(&[], &commands, true));
    assert_eq!((bench.told().as_str(), bench.confirm(4, &[1])), ("1 handed 2", 1));
}
