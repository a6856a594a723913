//! Reads and writes of a few keys through all nodes, while leaders are killed and held: what the clients saw can have
//! happened one operation after another.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use holdfast::clock::Clock;
use holdfast::clock::SystemClock;

use crate::cluster::seed;
use crate::support::Random;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::is_garbled;
use crate::support::cluster::Cluster;
use crate::support::cluster::PATIENCE;
use crate::support::linearizability::Kind;
use crate::support::linearizability::NOTHING;
use crate::support::linearizability::Operation;
use crate::support::linearizability::check;
use crate::support::number_from_env;
use crate::support::wait_for;

/// Clients of each node.
const CLIENTS: u64 = 4;
const KEYS: u64 = 4;
/// Reads out of a hundred operations.
const READS: u64 = 60;
/// Operations for each thing that goes wrong.
const OPERATIONS_A_FAULT: u64 = 2_500;

/// Codes of errors after which a write certainly had and will have no effect.
const NOT_EXECUTED: [&str; 4] = ["READONLY", "CLUSTERDOWN", "LOADING", "TRYAGAIN"];

/// Operations by key.
pub type Histories = BTreeMap<u64, Vec<Operation>>;

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    completed: AtomicU64,
}

struct StopAtEnd<'a>(&'a Shared);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// One client: an operation at a time, on a connection that is made again whenever it breaks.
struct Actor<'a> {
    number: u64,
    address: SocketAddr,
    clock: SystemClock,
    shared: &'a Shared,
    random: Random,
    written: u64,
    histories: Histories,
}

impl Actor<'_> {
    fn run(mut self) -> Histories {
        let mut client = None;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let Some(connected) = client.take().or_else(|| Client::try_connect(self.address).ok()) else {
                thread::sleep(Duration::from_millis(5));
                continue;
            };
            client = self.act(connected);
        }
        self.histories
    }

    /// One operation; gives the connection back unless it broke.
    fn act(&mut self, mut client: Client) -> Option<Client> {
        let key = self.random.below(KEYS);
        let name = format!("register:{key}");
        let is_read = self.random.below(100) < READS;
        let value = if is_read { NOTHING } else { self.next_value() };
        let invoked = self.clock.monotonic().0;
        let reply = match is_read {
            true => client.try_cmd(&["GET", &name]),
            false => client.try_cmd(&["SET", &name, &value.to_string()]),
        };
        let returned = Some(self.clock.monotonic().0);
        let history = self.histories.entry(key).or_default();
        let write = Operation { kind: Kind::Write, value, invoked, returned };
        match &reply {
            Ok(Value::Error(_)) if is_read => {}
            Ok(read @ (Value::Null | Value::Bulk(_))) if is_read => {
                let value = if *read == Value::Null { NOTHING } else { read.number() };
                history.push(Operation { kind: Kind::Read, value, invoked, returned });
            }
            Ok(Value::Simple(_)) if !is_read => history.push(write),
            Ok(refused @ Value::Error(_)) => {
                let code = refused.error_code().unwrap_or_default();
                if !NOT_EXECUTED.contains(&code) {
                    assert_eq!(code, "INDOUBT", "{refused:?}");
                    history.push(Operation { returned: None, ..write });
                }
            }
            Err(error) if is_garbled(error) => panic!("{name}: {error}"),
            Err(_) if is_read => {}
            Err(_) => history.push(Operation { returned: None, ..write }),
            Ok(other) => panic!("{name}: {other:?}"),
        }
        if matches!(reply, Ok(Value::Error(_))) {
            thread::sleep(Duration::from_millis(10));
        } else if reply.is_ok() {
            self.shared.completed.fetch_add(1, Ordering::Relaxed);
        }
        reply.is_ok().then_some(client)
    }

    /// A value nobody else writes.
    fn next_value(&mut self) -> u64 {
        self.written += 1;
        self.written * 1_000 + self.number
    }
}

/// Kills or holds the leader, now and then another node, and lets it come back.
fn disturb(cluster: &mut Cluster, number: u64, random: &mut Random) {
    let leader = cluster.leader();
    let victim = if number % 5 == 4 { leader % 3 + 1 } else { leader };
    // Shorter and longer than an election takes.
    let pause = Duration::from_millis(200 + random.below(1_800));
    if number.is_multiple_of(2) {
        cluster.hold(victim);
        thread::sleep(pause);
        cluster.resume(victim);
    } else {
        cluster.kill(victim);
        thread::sleep(pause / 2);
        cluster.start_node(victim);
    }
}

/// What clients of all nodes see until so many operations were answered, while `disturb` does something that many
/// times, with numbers from 0.
pub fn record(
    cluster: &mut Cluster,
    operations: u64,
    faults: u64,
    seed: u64,
    mut disturb: impl FnMut(&mut Cluster, u64),
) -> Histories {
    let clock = SystemClock::start();
    let nodes = cluster.ids();
    let shared = Shared::default();
    let wait_for_operations = |count: u64| {
        wait_for(&format!("{count} operations"), PATIENCE, || {
            (shared.completed.load(Ordering::Relaxed) >= count).then_some(())
        });
    };
    thread::scope(|scope| {
        let end = StopAtEnd(&shared);
        let mut actors = Vec::new();
        for (node, number) in nodes.iter().cycle().zip(0..CLIENTS * nodes.len() as u64) {
            let actor = Actor {
                number,
                address: cluster.address(*node),
                clock,
                shared: &shared,
                random: Random::new(seed ^ (number << 32)),
                written: 0,
                histories: Histories::new(),
            };
            actors.push(scope.spawn(move || actor.run()));
        }
        for fault in 0..faults {
            wait_for_operations(operations * (fault + 1) / (faults + 1));
            disturb(cluster, fault);
        }
        wait_for_operations(operations);
        drop(end);
        let mut histories = Histories::new();
        for actor in actors {
            for (key, mut history) in actor.join().unwrap() {
                histories.entry(key).or_default().append(&mut history);
            }
        }
        histories
    })
}

fn check_histories(mode: &str) {
    let operations = number_from_env("CHECK_OPS", 20_000);
    let faults = (operations / OPERATIONS_A_FAULT).clamp(4, 100);
    let seed = seed();
    let mut random = Random::new(seed);
    let mut cluster = Cluster::start(&["--read-consistency", mode]);
    let leader = cluster.leader();
    let first_term = cluster.raft_info(leader).expect("the leader answers").term;
    let histories = record(&mut cluster, operations, faults, seed, |cluster, fault| {
        disturb(cluster, fault, &mut random);
    });
    let all = histories.values().flatten();
    let unknown = all.clone().filter(|operation| operation.returned.is_none()).count();
    let reads = all.clone().filter(|operation| operation.kind == Kind::Read).count();
    println!("{mode}: {} operations, {reads} reads, {unknown} unknown writes, {faults} faults", all.count());
    for (key, history) in &histories {
        if let Err(violation) = check(history) {
            panic!("register:{key} with {mode}, seed {seed}: {violation}");
        }
    }
    let leader = cluster.leader();
    let last_term = cluster.raft_info(leader).expect("the leader answers").term;
    assert!(last_term > first_term, "leadership never changed");
    cluster.check_digests();
    cluster.check_alive();
}

#[test]
fn reads_by_lease_are_linearizable() {
    check_histories("lease");
}

#[test]
fn reads_by_asking_a_majority_are_linearizable() {
    check_histories("readindex");
}
