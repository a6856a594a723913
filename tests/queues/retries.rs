//! Requests that are repeated because their replies were lost: each has its effect once, and an error that says that
//! nothing was executed is right (valkey#1087, redis/jedis#3187).

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use crate::common::Answer;
use crate::common::Caller;
use crate::common::LONG_WAIT;
use crate::common::Popped;
use crate::common::addresses;
use crate::common::check_sums;
use crate::common::counts;
use crate::common::seed;
use crate::support::Random;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::int;
use crate::support::cluster::Cluster;
use crate::support::cuts::Cuts;
use crate::support::number_from_env;

const WORKERS: u64 = 8;
const SENT_MAX: u64 = 20;
/// Bytes of replies before the cut, on average: of some replies to one command, and to a transaction.
const REPLIED: u64 = 150;
const REPLIED_TO_EXEC: u64 = 700;
/// And of requests.
const REQUESTED: u64 = 4_000;
const PAUSE: Duration = Duration::from_millis(700);
const DOWN: Duration = Duration::from_millis(1_200);

/// What the clients heard of one request.
#[derive(Debug, Default, Clone)]
struct Heard {
    /// Every reply that tells that it was executed, now or before.
    done: Vec<Value>,
    refused: u64,
    unknown: u64,
}

impl Heard {
    fn add(&mut self, answer: Answer) {
        match answer {
            Answer::Reply(reply) => self.done.push(reply),
            Answer::NotExecuted(_) => self.refused += 1,
            Answer::Unknown => self.unknown += 1,
        }
    }

    /// Nothing but refusals were heard, and it was heard of every time that it was sent.
    fn is_denied(&self) -> bool {
        self.done.is_empty() && self.unknown == 0
    }
}

/// Sends each request 1 to 20 times, by several workers over connections that are cut, while leaders are killed.
fn send_all(
    cluster: &mut Cluster,
    seed: u64,
    count: u64,
    replied: u64,
    send: impl Fn(&mut Caller, u64) -> Option<Answer> + Clone + Send + 'static,
) -> (BTreeMap<u64, Heard>, String) {
    let nodes = addresses(cluster).into_iter().zip(1..);
    let cuts: Vec<Cuts> =
        nodes.map(|(node, n)| Cuts::before(node, seed * 10 + n, REQUESTED, replied)).collect();
    let through: Vec<SocketAddr> = cuts.iter().map(Cuts::address).collect();
    let done = Arc::new(AtomicU64::new(0));
    let workers: Vec<_> = (0..WORKERS)
        .map(|worker| {
            let (through, send, done) = (through.clone(), send.clone(), Arc::clone(&done));
            thread::spawn(move || {
                let mut caller = Caller::new(&through, seed * 1_000 + worker);
                let mut all = BTreeMap::new();
                // Others send some of the same requests, perhaps at the same time.
                let mine = (0..count).filter(|n| n % WORKERS == worker || n % 16 == worker);
                for number in mine {
                    let mut heard = Heard::default();
                    let is_sent_once = caller.random.below(3) == 0;
                    let repeats = if is_sent_once { 0 } else { caller.random.below(SENT_MAX) };
                    for _ in 0..=repeats {
                        if caller.random.below(4) == 0 {
                            caller.leave();
                        }
                        let answer = send(&mut caller, number);
                        if !matches!(answer, Some(Answer::Reply(_))) {
                            // Time for what is wrong to become another wrong.
                            thread::sleep(Duration::from_millis(caller.random.below(20)));
                        }
                        answer.into_iter().for_each(|answer| heard.add(answer));
                    }
                    all.insert(number, heard);
                }
                done.fetch_add(1, Ordering::Relaxed);
                (all, caller.refusals)
            })
        })
        .collect();
    let mut kills = 0;
    while done.load(Ordering::Relaxed) < WORKERS && !workers.iter().all(thread::JoinHandle::is_finished) {
        let leader = cluster.leader();
        cluster.kill(leader);
        // Who is left alone every second time must refuse, or say that it does not know.
        let other = (kills % 2 == 0).then(|| cluster.others(leader)[0]);
        other.into_iter().for_each(|other| cluster.kill(other));
        thread::sleep(DOWN);
        cluster.start_all();
        kills += 1;
        thread::sleep(PAUSE);
    }
    let (mut all, mut refusals) = (BTreeMap::<u64, Heard>::new(), BTreeMap::<String, u64>::new());
    for worker in workers {
        let (heard, refused) = worker.join().unwrap();
        for (number, heard) in heard {
            let known = all.entry(number).or_default();
            known.done.extend(heard.done);
            known.refused += heard.refused;
            known.unknown += heard.unknown;
        }
        refused.into_iter().for_each(|(code, count)| *refusals.entry(code).or_default() += count);
    }
    let sum = |of: fn(&Heard) -> u64| all.values().map(of).sum::<u64>();
    let told = format!(
        "{} answers, {} times none, {} refusals {refusals:?}, {kills} leaders killed (every second one with a follower), {} connections cut",
        sum(|heard| heard.done.len() as u64),
        sum(|heard| heard.unknown),
        sum(|heard| heard.refused),
        cuts.iter().map(Cuts::count).sum::<u64>(),
    );
    assert!(sum(|heard| heard.unknown) > 0, "no reply was lost: {told}");
    cluster.settle();
    (all, told)
}

/// What every request came to must agree with what was heard of it: the number of those that were executed.
fn check(all: &BTreeMap<u64, Heard>, executed: &BTreeSet<u64>) -> (usize, usize) {
    let (mut denied, mut open) = (0, 0);
    for (number, heard) in all {
        let is_done = executed.contains(number);
        assert!(is_done || heard.done.is_empty(), "{number} was answered and is not there: {heard:?}");
        assert!(!is_done || !heard.is_denied(), "{number} was denied and is there: {heard:?}");
        denied += usize::from(heard.is_denied());
        open += usize::from(heard.done.is_empty() && heard.unknown > 0);
    }
    assert!(executed.iter().all(|number| all.contains_key(number)), "something was invented");
    (denied, open)
}

/// What the last command of a pipeline with a transaction came to.
fn outcome_of(answers: Vec<Answer>) -> Answer {
    let refusal = answers.iter().find(|answer| matches!(answer, Answer::NotExecuted(_))).cloned();
    match answers.into_iter().next_back().unwrap() {
        Answer::Reply(Value::Error(text)) => {
            let code = text.split(' ').next().unwrap_or_default().to_owned();
            // The transaction was refused as a whole, or never begun, for a reason that one of its commands was told.
            let is_void = code == "EXECABORT" || text == "ERR EXEC without MULTI";
            match refusal {
                Some(refusal) if is_void => refusal,
                _ => panic!("EXEC: {text}"),
            }
        }
        answer => answer,
    }
}

/// Sends it until it is executed, over connections that stay.
fn insist(caller: &mut Caller, send: &impl Fn(&mut Caller, u64) -> Option<Answer>, number: u64) -> Value {
    loop {
        if let Some(Answer::Reply(reply)) = send(caller, number) {
            return reply;
        }
    }
}

fn number_at(client: &mut Client, key: &str) -> Option<u64> {
    match client.cmd(&["GET", key]) {
        Value::Null => None,
        value => Some(value.number()),
    }
}

#[test]
fn a_transaction_with_once_counts_once_however_often_it_is_sent() {
    let count = number_from_env("QUEUES_RETRIED", 400);
    let seed = seed();
    let mut cluster = Cluster::start(&[]);
    let send = |caller: &mut Caller, number: u64| {
        let (once, mark) = (format!("once-{number}"), format!("mark:{number}"));
        let words =
            [vec!["MULTI"], vec!["ONCE", &once], vec!["INCR", "counter"], vec!["INCR", &mark], vec!["EXEC"]];
        caller.pipeline(&words).map(outcome_of)
    };
    let (all, told) = send_all(&mut cluster, seed, count, REPLIED_TO_EXEC, send);
    let mut client = cluster.client(1);
    let marks: BTreeMap<u64, u64> = (0..count)
        .filter_map(|number| Some((number, number_at(&mut client, &format!("mark:{number}"))?)))
        .collect();
    assert!(marks.values().all(|mark| *mark == 1), "executed twice: {marks:?}");
    let executed: BTreeSet<u64> = marks.into_keys().collect();
    let (denied, open) = check(&all, &executed);
    assert_eq!(number_at(&mut client, "counter").unwrap_or(0), executed.len() as u64);
    // Each repeat was answered with the first one's reply.
    let mut values = BTreeSet::new();
    for (number, heard) in &all {
        assert!(heard.done.windows(2).all(|pair| pair[0] == pair[1]), "{number}: {heard:?}");
        if let Some(reply) = heard.done.first() {
            let [Value::Simple(once), Value::Integer(counter), Value::Integer(1)] = reply.items() else {
                panic!("{number}: {reply:?}")
            };
            assert_eq!(once, "OK");
            assert!(values.insert(*counter), "two had the counter at {counter}");
        }
    }
    let mut caller = Caller::new(&addresses(&cluster), seed);
    (0..count).for_each(|number| drop(insist(&mut caller, &send, number)));
    assert_eq!(number_at(&mut client, "counter"), Some(count), "the number of distinct ids");
    println!(
        "{count} transactions under ONCE, each sent up to {SENT_MAX} times: {told}; {denied} were denied and are not there, {open} open and settled"
    );
    cluster.check_digests();
    cluster.check_alive();
}

#[test]
fn a_push_with_an_id_and_its_acknowledgement_count_once_however_often_they_are_sent() {
    let count = number_from_env("QUEUES_RETRIED", 400);
    let seed = seed();
    let mut cluster = Cluster::start(&[]);
    let push = |caller: &mut Caller, number: u64| {
        let (payload, id) = (number.to_string(), format!("id-{number}"));
        let answers = caller.pipeline(&[vec!["QPUSH", "jobs", &payload, "ID", &id]]);
        answers.map(|mut answers| answers.pop().unwrap())
    };
    let (all, told) = send_all(&mut cluster, seed, count, REPLIED, push);
    let mut client = cluster.client(1);
    client.set_timeout(LONG_WAIT);
    let mut popped: Vec<Popped> = Vec::new();
    loop {
        let reply = client.cmd(&["QPOP", "COUNT", "1000", "LEASE", "3600000", "FROM", "jobs"]);
        if reply == Value::NullArray {
            break;
        }
        popped.extend(Popped::read_all(&reply));
    }
    let executed: BTreeSet<u64> = popped.iter().map(|message| message.payload.parse().unwrap()).collect();
    assert_eq!(executed.len(), popped.len(), "a message was pushed twice");
    let (denied, open) = check(&all, &executed);
    for message in &popped {
        let heard = &all[&message.payload.parse().unwrap()];
        assert!(heard.done.iter().all(|reply| reply.text() == message.id()), "{message:?}: {heard:?}");
    }
    println!(
        "{count} pushes with an ID, each sent up to {SENT_MAX} times: {told}; {denied} were denied and are not there, {open} open"
    );

    let mut random = Random::new(seed);
    let receipts: Arc<Vec<String>> = Arc::new(popped.iter().map(|message| message.receipt.clone()).collect());
    let held = receipts.len() as u64;
    let ack = {
        let receipts = Arc::clone(&receipts);
        move |caller: &mut Caller, number: u64| {
            let receipt = &receipts[usize::try_from(number).unwrap()];
            let answers = caller.pipeline(&[vec!["QACK", "jobs", receipt]]);
            answers.map(|mut answers| answers.pop().unwrap())
        }
    };
    let (all, told) = send_all(&mut cluster, seed + 1, held, REPLIED, ack.clone());
    for (number, heard) in &all {
        assert!(heard.done.iter().all(|reply| *reply == int(1)), "{number}: {heard:?}");
    }
    let mut client = cluster.client(random.below(3) + 1);
    let is_gone =
        |client: &mut Client, receipt: &str| client.cmd(&["QEXTEND", "jobs", "3600000", receipt]) == int(0);
    let acked: BTreeSet<u64> = (0..held)
        .filter(|number| is_gone(&mut client, &receipts[usize::try_from(*number).unwrap()]))
        .collect();
    let (denied, open) = check(&all, &acked);
    let info = client.cmd(&["QINFO", "jobs"]);
    check_sums(&info);
    let counted = counts(&info, ["pushed", "acked", "leased", "expired_leases"]);
    assert_eq!(counted, [held, acked.len() as u64, held - acked.len() as u64, 0], "{info:?}");
    let mut caller = Caller::new(&addresses(&cluster), seed);
    for number in 0..held {
        assert_eq!(insist(&mut caller, &ack, number), int(1), "{number}");
    }
    let info = client.cmd(&["QINFO", "jobs"]);
    assert_eq!(counts(&info, ["acked", "leased"]), [held, 0], "{info:?}");
    println!(
        "{held} acknowledgements, each sent up to {SENT_MAX} times: {told}; {denied} were denied and had no effect, {open} open and settled"
    );
    cluster.check_digests();
    cluster.check_alive();
}
