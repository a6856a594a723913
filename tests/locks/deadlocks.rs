//! Owners who wait for each other in a ring: whoever closes it is told so, and nobody else, on whatever nodes they are
//! and whichever leads (redisson#1160, node-redlock#305).

use std::thread;

use crate::locks::common::all_locks;
use crate::locks::common::graph_of_all;
use crate::locks::common::token;
use crate::locks::common::wait_until_no_lock_is_left;
use crate::locks::common::waiter;
use crate::locks::seed;
use crate::support::Random;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::int;
use crate::support::cluster::Cluster;
use crate::support::cluster::PATIENCE;
use crate::support::micros;
use crate::support::number_from_env;
use crate::support::spread;
use crate::support::wait_for;

use holdfast::clock::Clock;
use holdfast::clock::SystemClock;

const LENGTHS: [usize; 8] = [2, 3, 4, 5, 8, 13, 21, 32];
/// As the last command of a wait.
const PATIENT: [&str; 4] = ["PX", "120000", "BLOCK", "0"];

/// What the tests found.
#[derive(Default)]
struct Found {
    cycles: usize,
    closing: Vec<u64>,
}

/// Owners in a ring, each of whom holds its own key and wants the next one's.
struct Ring {
    name: String,
    /// By owner: does it share its own key, does it want to share the next one's.
    modes: Vec<(bool, bool)>,
    clients: Vec<Client>,
    tokens: Vec<i64>,
}

impl Ring {
    fn key(&self, of: usize) -> String {
        format!("{}:key:{}", self.name, of % self.modes.len())
    }

    fn owner(&self, number: usize) -> String {
        format!("{}:owner:{number}", self.name)
    }

    /// All hold their own, clients spread over these nodes.
    fn begin(cluster: &Cluster, nodes: &[u64], name: String, length: usize, random: &mut Random) -> Ring {
        // Two who share do not wait for each other, so one of the two modes at a key is exclusive.
        let shares: Vec<u64> = (0..length).map(|_| random.below(3)).collect();
        let modes = (0..length).map(|at| (shares[at] == 1, shares[(at + 1) % length] == 2)).collect();
        let clients = (0..length).map(|at| waiter(cluster, nodes[at % nodes.len()])).collect();
        let mut ring = Ring { name, modes, clients, tokens: Vec::new() };
        for at in 0..length {
            let (key, owner) = (ring.key(at), ring.owner(at));
            let mut words = vec!["LOCK", &key, &owner];
            words.extend(ring.modes[at].0.then_some("SHARED"));
            words.extend(["PX", "120000"]);
            let held = token(&ring.clients[at].cmd(&words));
            ring.tokens.push(held);
        }
        ring
    }

    fn ask(&mut self, at: usize) {
        let (key, owner) = (self.key(at + 1), self.owner(at));
        let mut words = vec!["LOCK", &key, &owner];
        words.extend(self.modes[at].1.then_some("SHARED"));
        words.extend(PATIENT);
        self.clients[at].send(&words);
    }

    /// All but the last wait for the next.
    fn all_but_one_wait(&mut self, operators: &mut [Client]) {
        let last = self.modes.len() - 1;
        (0..last).for_each(|at| self.ask(at));
        let mut expected: Vec<_> =
            (0..last).map(|at| (self.owner(at), self.key(at + 1), self.owner(at + 1))).collect();
        expected.sort();
        wait_for("all but one to wait", PATIENCE, || {
            let mut graph = graph_of_all(operators);
            graph.sort();
            (graph == expected).then_some(())
        });
    }

    /// The last closes the ring and is the only one who is told; when it gives way all get what they want.
    fn close(mut self, operators: &mut [Client], clock: SystemClock, found: &mut Found) {
        let last = self.modes.len() - 1;
        let known = deadlocks(&mut operators[0]);
        let before = clock.monotonic();
        self.ask(last);
        let told = self.clients[last].read();
        found.closing.push(micros(before, clock.monotonic()));
        found.cycles += 1;
        assert_eq!(told.error_code(), Some("DEADLOCK"), "{told:?}");
        let text = told.text();
        let victim = self.owner(last);
        assert!(text.contains(&format!("victim={victim} ")), "{text}");
        for at in 0..=last {
            let step =
                format!("{} -[{}]-> {}", self.owner(at), self.key(at + 1), self.owner((at + 1) % (last + 1)));
            assert!(text.contains(&step), "no {step} in {text}");
        }
        // It is in the history once, on every node.
        for operator in operators.iter_mut() {
            let now = deadlocks(operator);
            assert_eq!(now.iter().filter(|deadlock| !known.contains(deadlock)).count(), 1, "{now:?}");
            let (_, newest, cycle) = &now[0];
            assert_eq!((newest, &format!("DEADLOCK victim={newest} cycle=\"{cycle}\"")), (&victim, &text));
        }
        // The victim kept its own lock until now. What the others are told first must be a token.
        let unlock = |client: &mut Client, key: &str, owner: &str, token: i64| {
            assert_eq!(
                client.cmd(&["UNLOCK", key, owner, "TOKEN", &token.to_string()]),
                int(1),
                "{owner} {key}"
            );
        };
        let (key, owner) = (self.key(last), self.owner(last));
        unlock(&mut self.clients[last], &key, &owner, self.tokens[last]);
        for at in (0..last).rev() {
            let (own, next, owner) = (self.key(at), self.key(at + 1), self.owner(at));
            let got = token(&self.clients[at].read());
            assert!(got > self.tokens[at + 1], "{owner}");
            unlock(&mut self.clients[at], &next, &owner, got);
            unlock(&mut self.clients[at], &own, &owner, self.tokens[at]);
        }
        assert_eq!(graph_of_all(operators), []);
        assert_eq!(all_locks(&mut operators[0]), Vec::<String>::new());
    }
}

/// The deadlocks that were found, newest first: index, victim, cycle.
fn deadlocks(client: &mut Client) -> Vec<(u64, String, String)> {
    let known = client.cmd(&["LOCKS", "DEADLOCKS"]);
    let read = |deadlock: &Value| {
        (deadlock.field("index").number(), deadlock.field("victim").text(), deadlock.field("cycle").text())
    };
    known.items().iter().map(read).collect()
}

fn operators_at(cluster: &Cluster, ids: &[u64]) -> Vec<Client> {
    ids.iter().map(|id| cluster.client(*id)).collect()
}

/// `count` owners share a lock, and each wants it for itself: the first to ask waits, all others are refused.
fn upgrade(cluster: &Cluster, operators: &mut [Client], name: &str, count: usize, found: &mut Found) {
    let mut clients: Vec<Client> = (0..count).map(|at| waiter(cluster, at as u64 % 3 + 1)).collect();
    let owner = |at: usize| format!("{name}:owner:{at}");
    let held: Vec<i64> = (0..count)
        .map(|at| token(&clients[at].cmd(&["LOCK", name, &owner(at), "SHARED", "PX", "120000"])))
        .collect();
    let patient = |client: &mut Client, owner: &str| {
        client.send(&["LOCK", name, owner, "PX", "120000", "BLOCK", "0"]);
    };
    patient(&mut clients[0], &owner(0));
    wait_for("the first to wait", PATIENCE, || (graph_of_all(operators).len() == count - 1).then_some(()));
    for (client, at) in clients.iter_mut().zip(0..).skip(1) {
        patient(client, &owner(at));
        let told = client.read();
        assert_eq!(told.error_code(), Some("DEADLOCK"), "{told:?}");
        assert!(told.text().contains(&format!("victim={} ", owner(at))), "{told:?}");
        found.cycles += 1;
    }
    assert!(clients[0].is_quiet());
    for at in 1..count {
        let released = clients[at].cmd(&["UNLOCK", name, &owner(at), "TOKEN", &held[at].to_string()]);
        assert_eq!(released, int(1));
    }
    let got = token(&clients[0].read());
    assert!(got > held[count - 1]);
    assert_eq!(clients[0].cmd(&["UNLOCK", name, &owner(0), "TOKEN", &got.to_string()]), int(1));
    assert_eq!(all_locks(&mut operators[0]), Vec::<String>::new());
}

/// Owners who cannot wait for each other in a ring: half of them take keys in their order one by one, the others any
/// of other keys at once with MLOCK. So nobody may be told of a deadlock and all must come through. (Both on the same
/// keys could: MLOCK waits in the queue of a key that is free, before somebody who holds another that it wants.)
fn without_cycles(cluster: &Cluster, seed: u64, rounds: u64) -> u64 {
    const OWNERS: u64 = 12;
    const KEYS: u64 = 6;
    let addresses: Vec<_> = cluster.ids().into_iter().map(|id| cluster.address(id)).collect();
    let workers: Vec<_> = (0..OWNERS)
        .map(|number| {
            let address = addresses[(number % 3) as usize];
            thread::spawn(move || {
                let mut random = Random::new(seed + number);
                let mut client = Client::connect(address);
                client.set_timeout(crate::locks::common::LONG_WAIT);
                let owner = format!("owner:{number}");
                let kind = if number.is_multiple_of(2) { "at once" } else { "in order" };
                for _ in 0..rounds {
                    let mut keys: Vec<String> =
                        (0..2 + random.below(3)).map(|_| format!("{kind}:{}", random.below(KEYS))).collect();
                    if kind == "at once" {
                        // In whatever order, some twice.
                        let count = keys.len().to_string();
                        let mut words = vec!["MLOCK", &count];
                        words.extend(keys.iter().map(String::as_str));
                        words.push(&owner);
                        words.extend((random.below(3) == 0).then_some("SHARED"));
                        words.extend(PATIENT);
                        let reply = client.cmd(&words);
                        assert_eq!(reply.items().len(), keys.len(), "{words:?}: {reply:?}");
                    } else {
                        keys.sort();
                        keys.dedup();
                        for key in &keys {
                            let mut words = vec!["LOCK", key, &owner];
                            words.extend((random.below(3) == 0).then_some("SHARED"));
                            words.extend(PATIENT);
                            token(&client.cmd(&words));
                        }
                    }
                    keys.sort();
                    keys.dedup();
                    for key in &keys {
                        assert_eq!(client.cmd(&["UNLOCK", key, &owner]), int(1), "{owner} {key}");
                    }
                }
            })
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    OWNERS * rounds
}

#[test]
fn every_ring_of_owners_has_one_victim_and_nothing_else_has_one() {
    let rounds = number_from_env("LOCKS_CYCLES", 1);
    let seed = seed();
    let clock = SystemClock::start();
    let mut random = Random::new(seed);
    let mut cluster = Cluster::start(&[]);
    let mut operators = operators_at(&cluster, &[1, 2, 3]);
    let mut found = Found::default();
    for round in 0..rounds {
        let lengths: Vec<usize> = if rounds > 1 { (2..=32).collect() } else { LENGTHS.to_vec() };
        for length in lengths {
            let name = format!("ring:{round}:{length}");
            let mut ring = Ring::begin(&cluster, &[1, 2, 3], name, length, &mut random);
            ring.all_but_one_wait(&mut operators);
            ring.close(&mut operators, clock, &mut found);
        }
        for count in [2, 5] {
            upgrade(&cluster, &mut operators, &format!("upgrade:{round}:{count}"), count, &mut found);
        }
    }
    let known = deadlocks(&mut operators[0]);
    assert_eq!(known.len(), found.cycles.min(128));
    let free = without_cycles(&cluster, seed, 20 * rounds);
    assert_eq!(deadlocks(&mut operators[0]), known, "a deadlock without a cycle");
    wait_until_no_lock_is_left(&mut operators[0]);
    println!(
        "{} cycles of 2 to 32 owners, one victim each, none missed; {free} rounds of owners without a cycle and no \
         victim; from the closing LOCK to DEADLOCK {}",
        found.cycles,
        spread(found.closing)
    );
    cluster.check_digests();
    cluster.check_alive();
}

#[test]
fn a_ring_that_is_closed_after_a_change_of_leader_is_found() {
    let clock = SystemClock::start();
    let mut random = Random::new(seed());
    let mut cluster = Cluster::start(&[]);
    let mut found = Found::default();
    for length in [2, 5, 32] {
        let leader = cluster.leader();
        let survivors = cluster.others(leader);
        let mut operators = operators_at(&cluster, &survivors);
        let mut ring = Ring::begin(&cluster, &survivors, format!("ring:{length}"), length, &mut random);
        ring.all_but_one_wait(&mut operators);
        let before = graph_of_all(&mut operators);
        let killed = cluster.kill_leader();
        assert_eq!(graph_of_all(&mut operators), before);
        ring.close(&mut operators, clock, &mut found);
        cluster.start_node(killed);
        cluster.wait_until_caught_up(killed);
        let [here, there] = [killed, survivors[0]].map(|id| deadlocks(&mut cluster.client(id)));
        assert_eq!(here, there);
    }
    println!(
        "{} cycles closed after the leader was killed: one victim each; {}",
        found.cycles,
        spread(found.closing)
    );
    cluster.check_digests();
    cluster.check_alive();
}
