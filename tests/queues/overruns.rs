//! Workers that overrun their lease: the job is another's by then, and nothing that they do late has an effect
//! (celery#3270, bull#308, bullmq#3183); and delays that are longer than leases (celery's ETA loops, kombu#337).

use std::collections::BTreeMap;

use crate::common::LONG_WAIT;
use crate::common::Popped;
use crate::common::check_sums;
use crate::common::counts;
use crate::common::seed;
use crate::common::trace_of;
use crate::support::Random;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::bulk;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::cluster::Cluster;
use crate::support::number_from_env;

const QUEUE: &str = "jobs";
const LEASE: &str = "300";
/// Jobs that are under way at the same time.
const TOGETHER: u64 = 25;
/// Batches of jobs between two changes of the leader while workers overrun.
const BATCHES_PER_KILL: u64 = 4;

/// MULTI with these commands: what EXEC answers.
fn exec(client: &mut Client, commands: &[&[&str]]) -> Value {
    let mut words = vec![vec!["MULTI"]];
    words.extend(commands.iter().map(|command| command.to_vec()));
    words.push(vec!["EXEC"]);
    let mut replies = client.pipeline(&words);
    for reply in &replies[1..replies.len() - 1] {
        assert_eq!(reply.text(), "QUEUED");
    }
    replies.pop().unwrap()
}

/// The transaction that writes a job's result and finishes it.
fn finish(client: &mut Client, job: &str, receipt: &str, worker: &str) -> Value {
    let (result, runs) = (format!("result:{job}"), format!("runs:{job}"));
    let commands: [&[&str]; 4] =
        [&["FENCE", QUEUE, receipt], &["SET", &result, worker], &["INCR", &runs], &["QACK", QUEUE, receipt]];
    exec(client, &commands)
}

/// Everything that the first worker does is refused, in each form.
fn check_late(client: &mut Client, job: &str, receipt: &str, current: &str) {
    assert_eq!(client.cmd(&["QACK", QUEUE, receipt]), int(0), "{job}");
    assert_eq!(client.cmd(&["QEXTEND", QUEUE, "60000", receipt]), int(0), "{job}");
    assert_eq!(client.cmd(&["QNACK", QUEUE, "FATAL", "IDS", "1", receipt]), int(0), "{job}");
    let stale = format!("STALETOKEN {QUEUE} {receipt} current={current}");
    assert_eq!(client.cmd(&["FENCE", QUEUE, receipt]).text(), stale);
    assert_eq!(finish(client, job, receipt, "late").text(), stale);
}

fn pop(client: &mut Client, lease: &str, worker: &str, count: u64) -> Vec<Popped> {
    let count = count.to_string();
    let words =
        ["QPOP", "COUNT", &count, "BLOCK", "50000", "LEASE", lease, "CONSUMER", worker, "FROM", QUEUE];
    Popped::read_all(&client.cmd(&words))
}

#[test]
fn a_worker_that_overran_its_lease_has_no_effect() {
    let count = number_from_env("QUEUES_OVERRUNS", 50);
    let mut random = Random::new(seed());
    let mut cluster = Cluster::start(&["--lease-failover-grace", "500"]);
    let (mut checked, mut batches, mut kills, mut hand_outs) = (0, 0, 0, 0);
    while checked < count {
        let jobs: Vec<String> =
            (checked..count.min(checked + TOGETHER)).map(|number| format!("job-{number}")).collect();
        let killed = (batches % BATCHES_PER_KILL == 1).then(|| cluster.leader());
        // Both workers are where no node is killed.
        let homes: Vec<u64> = cluster.ids().into_iter().filter(|id| Some(*id) != killed).collect();
        let mut home = || homes[usize::try_from(random.below(homes.len() as u64)).unwrap()];
        let (mut first, mut second) = (cluster.client(home()), cluster.client(home()));
        first.set_timeout(LONG_WAIT);
        second.set_timeout(LONG_WAIT);
        let pushes: Vec<Vec<&str>> = jobs.iter().map(|job| vec!["QPUSH", QUEUE, job]).collect();
        let ids: Vec<String> = first.pipeline(&pushes).iter().map(Value::text).collect();
        let mut late: BTreeMap<String, String> = BTreeMap::new();
        while late.len() < jobs.len() {
            for message in pop(&mut first, LEASE, "first", TOGETHER) {
                late.insert(message.payload, message.receipt);
            }
        }
        if let Some(killed) = killed {
            assert_eq!(cluster.kill_leader(), killed, "it led until now");
            kills += 1;
        }
        // The leases end, and the second worker gets each job.
        let mut current: BTreeMap<String, String> = BTreeMap::new();
        while current.len() < jobs.len() {
            for message in pop(&mut second, "600000", "second", TOGETHER) {
                assert!(message.delivery() > 1, "{message:?}");
                let receipt = message.receipt.clone();
                assert!(
                    current.insert(message.payload.clone(), receipt).is_none(),
                    "twice at once: {message:?}"
                );
            }
        }
        for (job, id) in jobs.iter().zip(&ids) {
            let (stale, receipt) = (&late[job], &current[job]);
            check_late(&mut first, job, stale, receipt);
            assert_eq!(second.cmd(&["FENCE", QUEUE, receipt]), ok());
            assert_eq!(second.cmd(&["QEXTEND", QUEUE, "600000", receipt]), int(1));
            let finished = finish(&mut second, job, receipt, "second");
            assert_eq!(finished, Value::Array(vec![ok(), ok(), int(1), int(1)]), "{job}");
            // A repeat is told the same, and the first one is still too late.
            assert_eq!(second.cmd(&["QACK", QUEUE, receipt]), int(1));
            check_late(&mut first, job, stale, "none");
            assert_eq!(first.cmd(&["GET", &format!("result:{job}")]), bulk("second"));
            assert_eq!(first.cmd(&["GET", &format!("runs:{job}")]), bulk("1"), "the result is written once");
            // The trace is what the two saw.
            let trace = trace_of(&mut first, QUEUE, id);
            let told: Vec<(&str, &str)> =
                trace[1..].iter().map(|event| (event.event.as_str(), event.consumer.as_str())).collect();
            let deliveries = told.iter().filter(|(event, _)| *event == "DELIVERED").count();
            assert_eq!(format!("{id}:{deliveries}"), *receipt, "{trace:?}");
            let tail = [
                ("LEASE_EXPIRED", "first"),
                ("DELIVERED", "second"),
                ("EXTENDED", "second"),
                ("ACKED", "second"),
            ];
            assert_eq!(told[told.len() - 4..], tail, "{trace:?}");
            assert!(told[..told.len() - 4].iter().all(|(_, consumer)| *consumer == "first"), "{trace:?}");
            hand_outs += deliveries;
        }
        if let Some(killed) = killed {
            cluster.start_node(killed);
        }
        checked += jobs.len() as u64;
        batches += 1;
    }
    let info = cluster.client(1).cmd(&["QINFO", QUEUE]);
    check_sums(&info);
    assert_eq!(counts(&info, ["acked", "pushed", "ready", "leased"]), [count, count, 0, 0], "{info:?}");
    println!(
        "{count} jobs whose first worker overran its lease, {kills} leaders killed meanwhile, {hand_outs} hand-outs: \
         nothing of the first worker's had an effect, every result was written once"
    );
    cluster.check_digests();
    cluster.check_alive();
}

#[test]
fn a_delay_that_is_longer_than_the_lease_delivers_once() {
    const DELAY: u64 = 5_000;
    let mut cluster = Cluster::start(&[]);
    let mut client = cluster.client(1);
    client.set_timeout(LONG_WAIT);
    let delay = DELAY.to_string();
    let pushes: Vec<Vec<String>> = (0..100)
        .map(|number| ["QPUSH", QUEUE, &format!("eta {number}"), "DELAY", &delay].map(str::to_owned).to_vec())
        .collect();
    let ids: Vec<String> = client.pipeline(&pushes).iter().map(Value::text).collect();
    // Half the delay passes with a leader that is no more.
    cluster.kill_leader();
    cluster.start_all();
    let mut client = cluster.client(1);
    client.set_timeout(LONG_WAIT);
    let mut got = Vec::new();
    while got.len() < ids.len() {
        for message in pop(&mut client, "1000", "worker", 10) {
            assert_eq!((message.delivery(), message.attempt), (1, 1), "{message:?}");
            assert_eq!(client.cmd(&["QACK", QUEUE, &message.receipt]), int(1), "{message:?}");
            got.push(message.receipt);
        }
    }
    let all: Vec<String> = ids.iter().map(|id| format!("{id}:1")).collect();
    assert_eq!(got, all, "each once, in order");
    for id in &ids {
        let trace = trace_of(&mut client, QUEUE, id);
        let events: Vec<&str> = trace.iter().map(|event| event.event.as_str()).collect();
        assert_eq!(events, ["PUSHED", "DELIVERED", "ACKED"], "{trace:?}");
        assert!(trace[1].at_ms - trace[0].at_ms >= DELAY, "too early: {trace:?}");
    }
    let info = client.cmd(&["QINFO", QUEUE]);
    assert_eq!(counts(&info, ["delivered", "acked", "expired_leases"]), [100, 100, 0], "{info:?}");
    println!(
        "100 messages with DELAY {DELAY} and LEASE 1000, and a leader killed meanwhile: each was delivered once"
    );
    cluster.check_digests();
    cluster.check_alive();
}
