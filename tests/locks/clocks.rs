//! Wall clocks that jump by an hour and by a year, on each node in turn, while locks are held: no lease ends early, none
//! is given more time, and all end (valkey#2651, redis#7644).

use std::collections::BTreeMap;

use holdfast::clock::Clock;
use holdfast::clock::SystemClock;
use holdfast::types::Millis;
use holdfast::types::Monotonic;

use crate::locks::common::token;
use crate::locks::common::wait_until_no_lock_is_left;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::int;
use crate::support::cluster::Cluster;
use crate::support::cluster::PATIENCE;
use crate::support::cluster::WallClocks;
use crate::support::cluster::wall_seconds;
use crate::support::wait_for;

const HOUR: i64 = 3_600;
const YEAR: i64 = 365 * 86_400;
const JUMPS: [i64; 4] = [HOUR, -HOUR, YEAR, -YEAR];
/// Leases that are held at each jump.
const LEASES: [Millis; 3] = [Millis(2_000), Millis(7_000), Millis(20_000)];
/// For rounding, and for the drift of one clock against itself in another process.
const DRIFT: Millis = Millis(10);
/// What the cluster's clock may be behind the true one, and what a lease may last longer after a change of leader,
/// should there be one on a busy machine.
const LATE: Millis = Millis(9_000);

/// A lease that is held.
struct Lease {
    lock: String,
    token: i64,
    lasts: Millis,
    asked: Monotonic,
    granted: Monotonic,
    /// What was left of it at the last look at each node.
    left: BTreeMap<u64, u64>,
    is_over: bool,
}

struct Rig {
    cluster: Cluster,
    clocks: WallClocks,
    clock: SystemClock,
    clients: BTreeMap<u64, Client>,
    leases: Vec<Lease>,
    /// The term in which the first lease began.
    term: u64,
    looks: u64,
}

impl Rig {
    fn take(&mut self, id: u64, lasts: Millis) {
        let lock = format!("lock:{}", self.leases.len());
        let client = self.clients.get_mut(&id).unwrap();
        let asked = self.clock.monotonic();
        let token = token(&client.cmd(&["LOCK", &lock, "owner", "PX", &lasts.0.to_string()]));
        let granted = self.clock.monotonic();
        self.leases.push(Lease { lock, token, lasts, asked, granted, left: BTreeMap::new(), is_over: false });
    }

    /// Every lease is held as long as it lasts, at every node, and what is left of it only falls.
    fn look(&mut self, when: &str) {
        for (id, client) in &mut self.clients {
            for lease in self.leases.iter_mut().filter(|lease| !lease.is_over) {
                let before = self.clock.monotonic();
                let info = client.cmd(&["LOCKS", "INFO", &lease.lock]);
                let after = self.clock.monotonic();
                self.looks += 1;
                let age = after.since(lease.asked);
                if info == Value::Null {
                    assert!(
                        age.0 + DRIFT.0 >= lease.lasts.0,
                        "{} ended after {} ms of {} ms, seen at node {id}, {when}",
                        lease.lock,
                        age.0,
                        lease.lasts.0
                    );
                    lease.is_over = true;
                    continue;
                }
                assert_eq!(info.field("expiries"), &int(0), "{} {when}", lease.lock);
                let held = info.field("holders").items()[0].items();
                assert_eq!(held[1], int(lease.token), "{} {when}", lease.lock);
                let left = held[2].number();
                let least = lease.lasts.0.saturating_sub(age.0 + DRIFT.0);
                let age = before.since(lease.granted);
                assert!(
                    left >= least && age.0 <= lease.lasts.0 + LATE.0,
                    "{}: {left} ms left of {} ms after {} ms, seen at node {id}, {when}",
                    lease.lock,
                    lease.lasts.0,
                    age.0
                );
                let known = lease.left.insert(*id, left).unwrap_or(left);
                // A new leader gives grace; on a busy machine there may be one.
                if left > known {
                    let now = client.cmd(&["RAFT", "INFO"]).field("term").number();
                    assert!(
                        now > self.term,
                        "{}: {known} ms, then {left} ms at node {id}, {when}",
                        lease.lock
                    );
                }
            }
        }
    }

    /// Moves a node's wall clock and waits until the node sees it.
    fn move_clock(&mut self, id: u64, offset: i64) {
        self.clocks.set(id, offset);
        let (client, clock) = (self.clients.get_mut(&id).unwrap(), self.clock);
        wait_for(&format!("node {id} to see its clock {offset} s off"), Millis(10_000), || {
            let true_wall = i64::try_from(clock.wall().0 / 1_000).unwrap();
            ((wall_seconds(client) - true_wall - offset).abs() < 60).then_some(())
        });
    }
}

#[test]
fn wall_clocks_that_jump_end_no_lock_early() {
    let Some(clocks) = WallClocks::find() else {
        eprintln!("NOT TESTED: libfaketime is not installed (Debian's package libfaketime)");
        return;
    };
    let mut cluster = Cluster::prepare(3, &[]);
    for id in cluster.ids() {
        clocks.give(id, cluster.node_mut(id));
    }
    cluster.start_all();
    let ids = cluster.ids();
    let clients = ids.iter().map(|id| (*id, cluster.client(*id))).collect();
    let term = cluster.client(1).cmd(&["RAFT", "INFO"]).field("term").number();
    let clock = SystemClock::start();
    let mut rig = Rig { cluster, clocks, clock, clients, leases: Vec::new(), term, looks: 0 };
    let mut jumps = 0;
    for id in ids {
        for offset in JUMPS {
            // The longest begin before the first clocks jump, and are held through all jumps.
            let lengths = if id == 1 { &LEASES[..] } else { &LEASES[..2] };
            for (place, lasts) in lengths.iter().copied().enumerate() {
                rig.take((id + place as u64) % 3 + 1, lasts);
            }
            rig.look("before a jump");
            rig.move_clock(id, offset);
            rig.look(&format!("node {id} is {offset} s off"));
            // Taken while the clock is wrong.
            rig.take(id, LEASES[0]);
            rig.look(&format!("node {id} is still {offset} s off"));
            rig.move_clock(id, 0);
            rig.look(&format!("node {id} was {offset} s off"));
            jumps += 2;
        }
    }
    let at_once = rig.leases.iter().filter(|lease| !lease.is_over).count();
    wait_for("all leases to end", PATIENCE, || {
        rig.look("after all jumps");
        rig.leases.iter().all(|lease| lease.is_over).then_some(())
    });
    println!(
        "{jumps} jumps of wall clocks, {} leases of 2 to 20 s, {at_once} still held after the last jump, {} looks: none \
         ended early, none was given more time",
        rig.leases.len(),
        rig.looks
    );
    wait_until_no_lock_is_left(rig.clients.get_mut(&1).unwrap());
    rig.cluster.check_digests();
    rig.cluster.check_alive();
}
