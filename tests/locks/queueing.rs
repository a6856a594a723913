//! A thousand who wait for one lock: they get it in the order in which they came, nobody polls, nobody is forgotten
//! (redisson#5698, consul#7523).

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast::clock::Clock;
use holdfast::clock::SystemClock;
use holdfast::types::Monotonic;

use crate::locks::common::token;
use crate::locks::common::wait_for_waiters;
use crate::locks::common::wait_until_no_lock_is_left;
use crate::locks::common::waiter;
use crate::locks::seed;
use crate::support::Random;
use crate::support::client::Client;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::cluster::Cluster;
use crate::support::micros;
use crate::support::number_from_env;
use crate::support::spread;

const LOCK: &str = "lock";
const WAITERS: u64 = 1_000;
/// These come one after the other, so that their order is known without asking.
const ONE_BY_ONE: usize = 30;
/// A hand-off that takes longer is told of.
const STALL_MICROS: u64 = 100_000;

struct Rig {
    cluster: Cluster,
    clock: SystemClock,
    random: Random,
    operator: Client,
    /// By owner. A connection does not outlive a disconnect.
    clients: BTreeMap<String, Client>,
    last_token: i64,
    hand_offs: Vec<u64>,
    gone: u64,
}

impl Rig {
    fn connect(&mut self) {
        for number in 0..WAITERS {
            let owner = format!("waiter:{number}");
            if !self.clients.contains_key(&owner) {
                self.clients.insert(owner, waiter(&self.cluster, number % 3 + 1));
            }
        }
    }

    /// All wait while somebody holds the lock; who, in which order.
    fn queue_up(&mut self) -> Vec<String> {
        let owners: Vec<String> = self.clients.keys().cloned().collect();
        let ask = |client: &mut Client, owner: &str| {
            client.send(&["LOCK", LOCK, owner, "PX", "60000", "BLOCK", "0"]);
        };
        for (place, owner) in owners[..ONE_BY_ONE].iter().enumerate() {
            ask(self.clients.get_mut(owner).unwrap(), owner);
            wait_for_waiters(&mut self.operator, LOCK, place + 1);
        }
        for owner in &owners[ONE_BY_ONE..] {
            ask(self.clients.get_mut(owner).unwrap(), owner);
        }
        let queue = wait_for_waiters(&mut self.operator, LOCK, owners.len());
        assert_eq!(queue[..ONE_BY_ONE], owners[..ONE_BY_ONE]);
        queue
    }

    /// One after the other has the lock, except those who leave.
    fn drain(&mut self, queue: &[String], mut released: Monotonic) {
        for (place, owner) in queue.iter().enumerate() {
            let behind = &queue[place + 1..];
            if self.random.below(100) == 0 && !behind.is_empty() {
                // Somebody who waits is gone without a word; every second time who would be next. (Not who has the lock
                // by now: a holder that is gone keeps it as long as its lease.)
                let is_next = self.random.below(2) == 0;
                let at = if is_next { 0 } else { self.random.below(behind.len() as u64) };
                self.gone += u64::from(self.clients.remove(&behind[at as usize]).is_some());
            }
            let Some(client) = self.clients.get_mut(owner) else { continue };
            let got = token(&client.read());
            self.hand_offs.push(micros(released, self.clock.monotonic()));
            assert!(got > self.last_token, "{owner}: {got} after {}", self.last_token);
            self.last_token = got;
            let number = got.to_string();
            assert_eq!(client.cmd(&["SET", "register", owner, "FENCE", LOCK, &number]), ok());
            released = self.clock.monotonic();
            assert_eq!(client.cmd(&["UNLOCK", LOCK, owner, "TOKEN", &number]), int(1), "{owner}");
        }
    }
}

#[test]
fn a_thousand_waiters_get_one_lock_in_the_order_in_which_they_came() {
    let hand_offs = number_from_env("LOCKS_HANDOFFS", WAITERS);
    let mut cluster = Cluster::start(&[]);
    let leader = cluster.leader();
    let mut rig = Rig {
        clock: SystemClock::start(),
        random: Random::new(seed()),
        operator: waiter(&cluster, leader),
        cluster,
        clients: BTreeMap::new(),
        last_token: 0,
        hand_offs: Vec::new(),
        gone: 0,
    };
    // What one commit takes, to compare with.
    let mut commits = Vec::new();
    for _ in 0..200 {
        let before = rig.clock.monotonic();
        assert_eq!(rig.operator.cmd(&["SET", "commit", "one"]), ok());
        commits.push(micros(before, rig.clock.monotonic()));
    }
    while (rig.hand_offs.len() as u64) < hand_offs * 95 / 100 {
        rig.connect();
        let held = token(&rig.operator.cmd(&["LOCK", LOCK, "first", "PX", "600000"]));
        assert!(held > rig.last_token, "{held} after {}", rig.last_token);
        rig.last_token = held;
        let queue = rig.queue_up();
        let released = rig.clock.monotonic();
        assert_eq!(rig.operator.cmd(&["UNLOCK", LOCK, "first", "TOKEN", &held.to_string()]), int(1));
        rig.drain(&queue, released);
        wait_until_no_lock_is_left(&mut rig.operator);
        for client in rig.clients.values_mut() {
            client.set_timeout(Duration::from_secs(60));
        }
    }
    // Nobody was told more than that it had the lock.
    for (owner, client) in rig.clients.iter_mut().take(10) {
        assert!(client.is_quiet(), "{owner}");
    }
    let stalls = rig.hand_offs.iter().filter(|took| **took > STALL_MICROS).count();
    println!(
        "{WAITERS} waiters: {} hand-offs in order, {} waiters gone, {stalls} took over 100 ms; hand-off {}; one commit {}",
        rig.hand_offs.len(),
        rig.gone,
        spread(rig.hand_offs.clone()),
        spread(commits)
    );
    rig.cluster.check_digests();
    rig.cluster.check_alive();
}
