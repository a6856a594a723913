//! Data, the job that belongs to it and the lock that guards both are changed by one transaction: whoever looks sees all
//! of it or nothing, whatever dies (Hangfire#1175, kvrocks#3555).
//!
//! Each chain is a row of steps. At step n its register holds n, its queue holds one message with payload n, which is
//! leased to the chain's worker, and its lock is held by the owner of step n. One transaction takes it to n + 1:
//! `MULTI FENCE queue receipt, SET register, QACK queue receipt, QPUSH queue n+1, UNLOCK lock step-n, LOCK lock step-n+1`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use crate::common::Answer;
use crate::common::Caller;
use crate::common::Popped;
use crate::common::addresses;
use crate::common::check_sums;
use crate::common::seed;
use crate::support::Random;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::bulk;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::cluster::Cluster;
use crate::support::number_from_env;

const CHAINS: u64 = 6;
const LONG_LEASE: &str = "3600000";
const PAUSE: Duration = Duration::from_millis(500);
const DOWN: Duration = Duration::from_millis(250);
/// Every so many steps one is tried first with a last command that fails.
const FAILING: u64 = 4;
/// Bytes of a large transaction.
const LARGE_BYTES: usize = 4 << 20;
const LARGE_KEYS: usize = 1_024;

/// The names of a chain's register, queue and lock.
struct Chain {
    register: String,
    queue: String,
    lock: String,
}

impl Chain {
    fn new(number: u64) -> Chain {
        let name = |what: &str| format!("{what}:{number}");
        Chain { register: name("register"), queue: name("queue"), lock: name("lock") }
    }

    fn begin(&self, client: &mut Client) {
        assert_eq!(client.cmd(&["SET", &self.register, "0"]), ok());
        assert!(matches!(client.cmd(&["QPUSH", &self.queue, "0"]), Value::Bulk(_)));
        let token = client.cmd(&["LOCK", &self.lock, "step-0", "PX", LONG_LEASE]);
        assert!(matches!(token, Value::Integer(_)), "{token:?}");
    }

    /// All of it at one index.
    fn look(&self) -> Vec<Vec<&str>> {
        vec![
            vec!["MULTI"],
            vec!["GET", &self.register],
            vec!["QPEEK", &self.queue, "COUNT", "10"],
            vec!["LOCKS", "INFO", &self.lock],
            vec!["QINFO", &self.queue],
            vec!["EXEC"],
        ]
    }

    /// The step that it is at; fails the test when its parts disagree.
    fn step_in(&self, seen: &Value) -> u64 {
        let [register, page, lock, info] = seen.items() else { panic!("{seen:?}") };
        let step = register.number();
        let messages = page.items()[1].items();
        let payloads: Vec<u64> = messages.iter().map(|message| message.items()[1].number()).collect();
        assert_eq!(payloads, [step], "register and queue: {seen:?}");
        let holders = lock.field("holders").items();
        let owners: Vec<String> = holders.iter().map(|holder| holder.items()[0].text()).collect();
        assert_eq!(owners, [format!("step-{step}")], "register and lock: {seen:?}");
        check_sums(info);
        assert_eq!(info.field("pushed").number(), step + 1, "{seen:?}");
        assert_eq!(info.field("acked").number(), step, "{seen:?}");
        step
    }

    fn observe(&self, caller: &mut Caller) -> u64 {
        loop {
            match caller.pipeline(&self.look()).and_then(|mut answers| answers.pop()) {
                Some(Answer::Reply(seen @ Value::Array(_))) => return self.step_in(&seen),
                Some(Answer::Reply(Value::Error(text))) if !text.starts_with("EXECABORT") => panic!("{text}"),
                _ => {}
            }
        }
    }
}

/// Takes a chain from step to step.
fn work(chain: &Chain, mut caller: Caller, steps: u64, count: &AtomicU64) -> u64 {
    let mut failures = 0;
    let mut receipt = String::new();
    let (mut step, mut failed) = (0, None);
    while step < steps {
        if receipt.is_empty() {
            let pop = ["QPOP", "LEASE", LONG_LEASE, "FROM", &chain.queue];
            match caller.call(&pop) {
                Answer::Reply(reply) => match &Popped::read_all(&reply)[..] {
                    [message] => {
                        assert_eq!(message.payload, step.to_string());
                        receipt.clone_from(&message.receipt);
                    }
                    // It was handed out and the reply was lost.
                    [] => receipt = current_receipt(chain, &mut caller),
                    more => panic!("{more:?}"),
                },
                Answer::NotExecuted(_) | Answer::Unknown => {}
            }
            continue;
        }
        let (before, after) = (format!("step-{step}"), format!("step-{}", step + 1));
        let next = (step + 1).to_string();
        let all = vec![
            vec!["MULTI"],
            vec!["FENCE", &chain.queue, &receipt],
            vec!["SET", &chain.register, &next],
            vec!["QACK", &chain.queue, &receipt],
            vec!["QPUSH", &chain.queue, &next],
            vec!["UNLOCK", &chain.lock, &before],
            vec!["LOCK", &chain.lock, &after, "PX", LONG_LEASE],
            vec!["EXEC"],
        ];
        // Before the first send: of one whose reply was lost nobody knows when it has its effect.
        if step % FAILING == 0 && failed.replace(step) != Some(step) {
            failures += fail(chain, &all, &mut caller, step);
        }
        match caller.pipeline(&all).and_then(|mut answers| answers.pop()) {
            Some(Answer::Reply(Value::Array(replies))) => {
                let [fence, set, acked, id, unlocked, token] = &replies[..] else { panic!("{replies:?}") };
                assert_eq!([fence, set, acked, unlocked], [&ok(), &ok(), &int(1), &int(1)], "{replies:?}");
                assert!(matches!((id, token), (Value::Bulk(_), Value::Integer(_))), "{replies:?}");
                step += 1;
            }
            Some(Answer::Reply(Value::Error(text))) => {
                let is_repeat = text.starts_with("STALETOKEN");
                assert!(is_repeat || text.starts_with("EXECABORT"), "{text}");
                let seen = chain.observe(&mut caller);
                assert!(seen == step || (is_repeat && seen == step + 1), "{seen} after {step}: {text}");
                step = seen;
            }
            // Not executed, or nobody knows: a repeat is fenced by the receipt.
            _ => continue,
        }
        receipt.clear();
        count.fetch_add(1, Ordering::Relaxed);
    }
    failures
}

/// The receipt of the message that is leased, for who did not hear it.
fn current_receipt(chain: &Chain, caller: &mut Caller) -> String {
    let page = caller.insist(&["QPEEK", &chain.queue, "STATE", "LEASED"]);
    let [message] = page.items()[1].items() else {
        // It went back meanwhile: its node saw that nobody got it.
        return String::new();
    };
    let id = message.items()[0].text();
    let trace = caller.insist(&["QTRACE", &chain.queue, &id]);
    let last = trace.items().iter().rfind(|event| event.field("event").text() == "DELIVERED").unwrap();
    format!("{id}:{}", last.field("delivery").number())
}

/// The same transaction with a last command that fails: nothing of it is done. How often it was told so.
fn fail(chain: &Chain, all: &[Vec<&str>], caller: &mut Caller, step: u64) -> u64 {
    let last: [(Vec<&str>, &str); 4] = [
        (vec!["INCR", "text"], "EXECABORT cmd="),
        (vec!["QPUSH", &chain.queue, "too much", "MAXLEN", "1"], "QFULL "),
        (vec!["LOCK", "taken", "somebody"], "LOCKED taken "),
        (vec!["FENCE", "taken", "999999999"], "STALETOKEN taken 999999999 "),
    ];
    let mut told = 0;
    for (command, refusal) in last {
        let mut with_failure = all[..all.len() - 1].to_vec();
        with_failure.extend([command, vec!["EXEC"]]);
        match caller.pipeline(&with_failure).and_then(|mut answers| answers.pop()) {
            Some(Answer::Reply(Value::Error(text))) if text.starts_with(refusal) => told += 1,
            // Its own first guard may be gone: another send of the step before was executed late.
            Some(Answer::Reply(Value::Error(text))) if text.starts_with("EXECABORT") => {}
            Some(Answer::Reply(other)) => panic!("{other:?} and not {refusal}"),
            _ => {}
        }
        assert_eq!(chain.observe(caller), step, "a transaction that failed had an effect");
    }
    told
}

fn watch(chains: &[Chain], addresses: &[SocketAddr], seed: u64, stop: &AtomicBool) -> u64 {
    let mut caller = Caller::new(addresses, seed);
    let mut steps = vec![0; chains.len()];
    let mut looks = 0;
    while !stop.load(Ordering::Relaxed) {
        for (chain, last) in chains.iter().zip(&mut steps) {
            let step = chain.observe(&mut caller);
            assert!(step >= *last, "{} went from {last} to {step}", chain.queue);
            *last = step;
            looks += 1;
        }
        caller.leave();
    }
    looks
}

#[test]
fn data_and_job_and_lock_change_together_or_not_at_all() {
    let steps = number_from_env("QUEUES_TRANSACTIONS", 2_000) / CHAINS;
    let seed = seed();
    let mut cluster = Cluster::start(&[]);
    let mut client = cluster.client(1);
    assert_eq!(client.cmd(&["SET", "text", "no number"]), ok());
    assert!(matches!(client.cmd(&["LOCK", "taken", "another", "PX", LONG_LEASE]), Value::Integer(_)));
    let chains: Arc<Vec<Chain>> = Arc::new((0..CHAINS).map(Chain::new).collect());
    chains.iter().for_each(|chain| chain.begin(&mut client));
    let nodes = addresses(&cluster);
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let watchers: Vec<_> = (0..2)
        .map(|number| {
            let (chains, nodes, stop) = (Arc::clone(&chains), nodes.clone(), Arc::clone(&stop));
            thread::spawn(move || watch(&chains, &nodes, seed + number, &stop))
        })
        .collect();
    let workers: Vec<_> = (0..CHAINS)
        .map(|number| {
            let (chains, done) = (Arc::clone(&chains), Arc::clone(&done));
            let caller = Caller::new(&nodes, seed * 100 + number);
            thread::spawn(move || work(&chains[usize::try_from(number).unwrap()], caller, steps, &done))
        })
        .collect();
    let mut random = Random::new(seed);
    let mut kills = 0;
    while !workers.iter().all(thread::JoinHandle::is_finished) {
        let victim = if random.below(2) == 0 { cluster.leader() } else { random.below(3) + 1 };
        thread::sleep(Duration::from_micros(random.below(20_000)));
        cluster.kill(victim);
        thread::sleep(DOWN);
        cluster.start_node(victim);
        kills += 1;
        thread::sleep(PAUSE);
    }
    let failures: u64 = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
    stop.store(true, Ordering::Relaxed);
    let looks: u64 = watchers.into_iter().map(|watcher| watcher.join().unwrap()).sum();
    assert!(looks > 0, "nobody looked");
    assert!(failures > 0, "nothing failed");

    // A snapshot keeps it, whether it is loaded at a start or sent to a node that has nothing.
    for id in cluster.ids() {
        assert_eq!(cluster.client(id).cmd(&["RAFT", "SNAPSHOT"]), ok());
    }
    cluster.kill_all();
    cluster.start_all();
    let check = |cluster: &Cluster| {
        for id in cluster.ids() {
            let mut caller = Caller::new(&[cluster.address(id)], seed);
            assert!(chains.iter().all(|chain| chain.observe(&mut caller) == steps), "node {id}");
        }
    };
    check(&cluster);
    let follower = cluster.follower();
    cluster.kill(follower);
    cluster.wipe(follower);
    cluster.start_node(follower);
    cluster.wait_until_caught_up(follower);
    check(&cluster);
    println!(
        "{} transactions over data, job and lock, {failures} that failed at their last command, {kills} nodes killed: all \
         or nothing at {looks} looks, and after a restart and a lost disk",
        done.load(Ordering::Relaxed)
    );
    cluster.check_digests();
    cluster.check_alive();
}

/// What is there of a large transaction of this number: none or all of its keys and its message.
fn large_parts(client: &mut Client, number: u64) -> usize {
    let keys: Vec<String> = (0..LARGE_KEYS).map(|key| format!("large:{number}:{key}")).collect();
    let mut words = vec!["EXISTS"];
    words.extend(keys.iter().map(String::as_str));
    let count = client.cmd(&words).number() + client.cmd(&["QLEN", &format!("large:{number}")]).number();
    usize::try_from(count).unwrap()
}

#[test]
fn a_transaction_of_four_mebibytes_is_done_or_refused_before_any_effect() {
    const ROUNDS: u64 = 4;
    let mut cluster = Cluster::start(&[]);
    let value = "v".repeat(LARGE_BYTES / LARGE_KEYS);
    let (mut done, mut refused, mut open) = (0, 0, 0);
    for round in 0..ROUNDS {
        let leader = cluster.leader();
        let home = if round % 3 == 2 { leader } else { cluster.others(leader)[0] };
        let mut caller = Caller::new(&[cluster.address(home)], round);
        let mut words = vec![vec!["MULTI".to_owned()]];
        for key in 0..LARGE_KEYS {
            words.push(vec!["SET".to_owned(), format!("large:{round}:{key}"), value.clone()]);
        }
        words.push(["QPUSH", &format!("large:{round}"), "all of it"].map(str::to_owned).to_vec());
        words.push(vec!["EXEC".to_owned()]);
        let sent = thread::spawn(move || caller.pipeline(&words).and_then(|mut answers| answers.pop()));
        // Without a fault first, then with one at some moment.
        let is_killed = round > 0;
        if is_killed {
            thread::sleep(Duration::from_millis(10 * round));
            cluster.kill(leader);
        }
        let answer = sent.join().unwrap();
        if is_killed {
            cluster.start_node(leader);
        }
        cluster.settle();
        let parts: Vec<usize> =
            cluster.ids().into_iter().map(|id| large_parts(&mut cluster.client(id), round)).collect();
        let is_there = parts == [LARGE_KEYS + 1; 3];
        assert!(is_there || parts == [0; 3], "a part of it: {parts:?} {answer:?}");
        match answer {
            Some(Answer::Reply(Value::Array(replies))) => {
                assert!(is_there && replies.len() == LARGE_KEYS + 1, "it was answered: {parts:?}");
                done += 1;
            }
            Some(Answer::Reply(Value::Error(_)) | Answer::NotExecuted(_)) => {
                assert!(!is_there, "it was refused");
                refused += 1;
            }
            Some(Answer::Unknown) | None => open += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(done > 0, "four mebibytes are not too much without a fault: {refused} refused, {open} open");
    let mut client = cluster.client(1);
    println!(
        "{ROUNDS} transactions of 4 MiB, leaders killed: {done} done, {refused} refused, {open} open, none in part"
    );
    assert_eq!(client.cmd(&["GET", "large:0:0"]), bulk(&value));
    cluster.check_digests();
    cluster.check_alive();
}
