//! Wall clocks that jump while locks, keys and leases run: nothing ends early, and nothing stays.

use holdfast::clock::Clock;
use holdfast::clock::SystemClock;
use holdfast::types::Millis;
use holdfast::types::Monotonic;

use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::cluster::Cluster;
use crate::support::cluster::PATIENCE;
use crate::support::cluster::WallClocks;
use crate::support::cluster::wall_seconds;
use crate::support::wait_for;

const HOUR: i64 = 3_600;
const YEAR: i64 = 365 * 86_400;
const JUMPS: [i64; 4] = [HOUR, -HOUR, YEAR, -YEAR];

/// How long the long ones last. The test is over long before.
const LONG: Millis = Millis(120_000);
/// How long the short ones last.
const SHORT: Millis = Millis(1_500);
/// When the short ones must be gone: their time, twice the grace that a new leader gives, an election, and room for a
/// busy machine.
const SHORT_GONE: Millis = Millis(6_000);
/// What the cluster's clock may be behind the true one.
const LAG: Millis = Millis(3_000);

/// A key, a lock and a leased message that began together.
struct Trio {
    name: String,
    lasts: Millis,
    token: i64,
    /// Before the first of them was asked for, and after the last was there.
    begun: (Monotonic, Monotonic),
    ends_checked: bool,
}

impl Trio {
    fn begin(client: &mut Client, clock: SystemClock, name: &str, lasts: Millis) -> Trio {
        let length = lasts.0.to_string();
        let before = clock.monotonic();
        let pushed = client.cmd(&["QPUSH", &format!("{name}:queue"), "payload"]);
        assert!(!pushed.is_error(), "{pushed:?}");
        assert_eq!(client.cmd(&["SET", &format!("{name}:key"), "value", "PX", &length]), ok());
        let token = client.cmd(&["LOCK", &format!("{name}:lock"), "me", "PX", &length]).integer();
        let popped = client.cmd(&["QPOP", "LEASE", &length, "FROM", &format!("{name}:queue")]);
        assert_eq!(popped.items().len(), 1);
        let begun = (before, clock.monotonic());
        Trio { name: name.to_owned(), lasts, token, begun, ends_checked: false }
    }

    /// Which of them are still there: key, lock, lease. Nothing is changed but a lock that had ended.
    fn there(&self, client: &mut Client) -> [bool; 3] {
        let key = client.cmd(&["EXISTS", &format!("{}:key", self.name)]) == int(1);
        let lock = client.cmd(&["LOCK", &format!("{}:lock", self.name), "you", "PX", "100"]) == Value::Null;
        let leased = client.cmd(&["QLEN", &format!("{}:queue", self.name), "LEASED"]) == int(1);
        [key, lock, leased]
    }

    /// None of them ended early, as this node sees it now.
    fn check_running(&self, client: &mut Client, clock: SystemClock, when: &str) {
        let asked = clock.monotonic();
        let left = client.cmd(&["PTTL", &format!("{}:key", self.name)]).integer();
        let there = self.there(client);
        let answered = clock.monotonic();
        let age = answered.since(self.begun.0);
        if age >= self.lasts {
            return;
        }
        assert_eq!(there, [true; 3], "{} after {} ms of {} ms, {when}", self.name, age.0, self.lasts.0);
        let least = (self.lasts.0 - age.0).saturating_sub(100) as i64;
        let most = (self.lasts.0 - asked.since(self.begun.1).0 + LAG.0) as i64;
        assert!((least..=most).contains(&left), "{}: {left} ms left, {least}..={most}, {when}", self.name);
    }

    /// Waits until all have ended and fails the test if they are late.
    fn check_end(&mut self, client: &mut Client, clock: SystemClock) {
        wait_for(&format!("{} to end", self.name), PATIENCE, || {
            let asked = clock.monotonic();
            let there = self.there(client);
            if there == [false; 3] {
                return Some(());
            }
            let age = asked.since(self.begun.1);
            assert!(age <= SHORT_GONE, "{} after {} ms: key, lock, lease {there:?}", self.name, age.0);
            None
        });
        self.ends_checked = true;
    }
}

/// Moves a node's wall clock and waits until the node sees it.
fn move_clock(clocks: &WallClocks, client: &mut Client, true_wall: &dyn Fn() -> i64, id: u64, offset: i64) {
    clocks.set(id, offset);
    wait_for(&format!("node {id} to see its clock {offset} s off"), Millis(10_000), || {
        ((wall_seconds(client) - true_wall() - offset).abs() < 60).then_some(())
    });
}

#[test]
fn wall_clocks_that_jump_end_nothing_early_and_keep_nothing() {
    let Some(clocks) = WallClocks::find() else {
        eprintln!("NOT TESTED: libfaketime is not installed (Debian's package libfaketime)");
        return;
    };
    let clock = SystemClock::start();
    let true_wall = || i64::try_from(clock.wall().0 / 1_000).unwrap();
    let mut cluster = Cluster::prepare(3, &["--lease-failover-grace", "500"]);
    for id in cluster.ids() {
        clocks.give(id, cluster.node_mut(id));
    }
    cluster.start_all();
    let mut clients: Vec<Client> = cluster.ids().into_iter().map(|id| cluster.client(id)).collect();
    let long = Trio::begin(&mut clients[0], clock, "long", LONG);
    let mut shorts: Vec<Trio> = Vec::new();

    // Each node's clock in turn, the leader's among them, there and back.
    for id in cluster.ids() {
        let place = (id - 1) as usize;
        for offset in JUMPS {
            let when = format!("node {id} is {offset} s off");
            let short = Trio::begin(&mut clients[place], clock, &format!("short:{id}:{offset}"), SHORT);
            move_clock(&clocks, &mut clients[place], &true_wall, id, offset);
            for client in &mut clients {
                long.check_running(client, clock, &when);
                short.check_running(client, clock, &when);
            }
            // Begun while the clock is wrong.
            let wrong = Trio::begin(&mut clients[place], clock, &format!("wrong:{id}:{offset}"), SHORT);
            wrong.check_running(&mut clients[place], clock, &when);
            shorts.extend([short, wrong]);
            move_clock(&clocks, &mut clients[place], &true_wall, id, 0);
            long.check_running(&mut clients[place], clock, &format!("after {when}"));
            // Those whose time is over are looked at before they are late for this test's own slowness.
            for short in shorts.iter_mut().filter(|short| !short.ends_checked) {
                if clock.monotonic().since(short.begun.0) > Millis(SHORT.0 + 1_000) {
                    short.check_end(&mut clients[place], clock);
                }
            }
        }
    }
    shorts
        .iter_mut()
        .filter(|short| !short.ends_checked)
        .for_each(|short| short.check_end(&mut clients[0], clock));

    // The lead goes to a node whose clock is wrong: handed over, and by a kill.
    for (offset, is_kill) in [(YEAR, false), (-YEAR, false), (HOUR, true), (-HOUR, true)] {
        let leader = cluster.leader();
        let others = cluster.others(leader);
        let begun_at = (others[0] - 1) as usize;
        let when = format!("the lead goes from {leader} to a node that is {offset} s off, kill: {is_kill}");
        for id in &others {
            move_clock(&clocks, &mut clients[(*id - 1) as usize], &true_wall, *id, offset);
        }
        let mut short =
            Trio::begin(&mut clients[begun_at], clock, &format!("lead:{offset}:{is_kill}"), SHORT);
        if is_kill {
            cluster.kill(leader);
        } else {
            let to = others[0].to_string();
            let reply = clients[begun_at].cmd(&["RAFT", "TRANSFER", &to]);
            assert!(!reply.is_error(), "{reply:?}");
        }
        wait_for("another leader", PATIENCE, || cluster.leader_now().filter(|now| *now != leader));
        for id in &others {
            let client = &mut clients[(*id - 1) as usize];
            long.check_running(client, clock, &when);
            short.check_running(client, clock, &when);
        }
        short.check_end(&mut clients[begun_at], clock);
        for id in &others {
            move_clock(&clocks, &mut clients[(*id - 1) as usize], &true_wall, *id, 0);
        }
        if is_kill {
            cluster.start_node(leader);
            clients[(leader - 1) as usize] = cluster.client(leader);
        }
        long.check_running(&mut clients[(leader - 1) as usize], clock, &format!("after: {when}"));
    }
    let age = clock.monotonic().since(long.begun.0);
    assert!(age < LONG, "this test took {} ms and saw too little", age.0);
    // It is the same hold, not a new one.
    let token = clients[0].cmd(&["LOCK", "long:lock", "me", "PX", "1000"]).integer();
    assert_eq!(token, long.token);
    cluster.check_digests();
    cluster.check_alive();
}
