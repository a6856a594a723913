//! Leases while leaders change: none ends early, none lasts for ever, and a thousand that end at once stop nobody
//! (etcd#9888, #15247, #9360).

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use holdfast::clock::Clock;
use holdfast::clock::SystemClock;
use holdfast::types::Millis;

use crate::locks::common::all_locks;
use crate::locks::common::token;
use crate::locks::common::wait_until_no_lock_is_left;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::cluster::Cluster;
use crate::support::cluster::PATIENCE;
use crate::support::micros;
use crate::support::number_from_env;
use crate::support::spread;
use crate::support::wait_for;

#[test]
fn a_lease_that_nobody_renews_ends_however_often_the_lead_changes() {
    const GRACE: Millis = Millis(1_000);
    const LEASE: Millis = Millis(6_000);
    /// The leader's clock is that of the machine here; this is for rounding.
    const DRIFT: Millis = Millis(10);
    /// After the lease and twice the grace it must be gone, and so much later this test must have seen it.
    const LATE: Millis = Millis(1_000);
    let clock = SystemClock::start();
    let mut cluster = Cluster::start(&["--lease-failover-grace", &GRACE.0.to_string()]);
    let mut observer = cluster.client(1);
    let asked = clock.monotonic();
    let held = token(&observer.cmd(&["LOCK", "lock", "gone", "PX", &LEASE.0.to_string()]));
    let granted = clock.monotonic();
    let mut transfers = 0;
    let mut moved = granted;
    let (seen_at, gone_at) = loop {
        if clock.monotonic().since(moved) >= Millis(1_000) {
            moved = clock.monotonic();
            let leader = cluster.leader();
            let reply = cluster.client(leader).cmd(&["RAFT", "TRANSFER", &(leader % 3 + 1).to_string()]);
            transfers += u64::from(!reply.is_error());
        }
        let before = clock.monotonic();
        let reply = observer.cmd(&["FENCE", "lock", &held.to_string()]);
        let after = clock.monotonic();
        match reply.error_code() {
            None => assert!(
                before.since(granted).0 <= LEASE.0 + 2 * GRACE.0 + LATE.0,
                "held after {} ms, of {} ms",
                before.since(granted).0,
                LEASE.0
            ),
            Some("STALETOKEN") => break (before, after),
            // Between two leaders.
            Some("CLUSTERDOWN" | "TRYAGAIN") => {}
            Some(_) => panic!("{reply:?}"),
        }
        thread::sleep(Duration::from_millis(5));
    };
    let age = gone_at.since(asked);
    assert!(age.0 + DRIFT.0 >= LEASE.0, "gone after {} ms of {} ms", age.0, LEASE.0);
    assert!(transfers >= 3, "the lead moved {transfers} times");
    println!(
        "a lease of {} ms, grace {} ms, the lead moved {transfers} times: gone after {} ms",
        LEASE.0,
        GRACE.0,
        seen_at.since(granted).0
    );
    cluster.check_digests();
    cluster.check_alive();
}

/// Some owners at one node, each of whom renews its lock in time.
struct Renewers {
    client: Client,
    owners: Vec<(String, String)>,
    tokens: Vec<i64>,
    rounds: u64,
}

impl Renewers {
    const LEASE: &str = "3000";

    fn begin(cluster: &Cluster, id: u64, count: u64) -> Renewers {
        let owners = (0..count).map(|number| (format!("lock:{id}:{number}"), format!("owner:{id}:{number}")));
        let owners: Vec<(String, String)> = owners.collect();
        let mut client = cluster.client(id);
        let take: Vec<Vec<&str>> =
            owners.iter().map(|(lock, owner)| vec!["LOCK", lock, owner, "PX", Renewers::LEASE]).collect();
        let tokens = client.pipeline(&take).iter().map(token).collect();
        Renewers { client, owners, tokens, rounds: 0 }
    }

    fn renew(&mut self) {
        let renewals: Vec<Vec<&str>> =
            self.owners.iter().map(|(_, owner)| vec!["LOCKEXTEND", owner, Renewers::LEASE]).collect();
        for (reply, (lock, owner)) in self.client.pipeline(&renewals).iter().zip(&self.owners) {
            assert_eq!(reply.field("extended"), &int(1), "{lock} of {owner}: {reply:?}");
        }
        self.rounds += 1;
    }

    /// All are still the holds that they were.
    fn check(&mut self) {
        for ((lock, owner), held) in self.owners.iter().zip(&self.tokens) {
            let info = self.client.cmd(&["LOCKS", "INFO", lock]);
            assert_eq!(info.field("expiries"), &int(0), "{lock} of {owner}");
            assert_eq!(info.field("holders").items()[0].items()[1], int(*held), "{lock} of {owner}");
        }
    }
}

#[test]
fn a_leader_that_stood_still_ends_no_lease_that_was_renewed_meanwhile() {
    const OWNERS: u64 = 100;
    /// Twice the lease.
    const PAUSE: Millis = Millis(6_000);
    const AFTER: Millis = Millis(2_000);
    let clock = SystemClock::start();
    let mut cluster = Cluster::start(&[]);
    let leader = cluster.leader();
    let survivors = cluster.others(leader);
    let mut renewers: Vec<Renewers> =
        survivors.iter().map(|id| Renewers::begin(&cluster, *id, OWNERS)).collect();
    renewers.iter_mut().for_each(Renewers::renew);
    cluster.hold(leader);
    let held_at = clock.monotonic();
    let mut resumed = false;
    while clock.monotonic().since(held_at).0 < PAUSE.0 + AFTER.0 {
        renewers.iter_mut().for_each(Renewers::renew);
        if !resumed && clock.monotonic().since(held_at) >= PAUSE {
            cluster.resume(leader);
            resumed = true;
        }
        thread::sleep(Duration::from_millis(400));
    }
    assert!(resumed);
    renewers.iter_mut().for_each(Renewers::check);
    assert_ne!(cluster.leader(), leader, "it was not deposed, so nothing was tried");
    println!(
        "a leader stood still for {} ms, {} leases of {} ms renewed {} times meanwhile and after: none ended",
        PAUSE.0,
        2 * OWNERS,
        Renewers::LEASE,
        renewers[0].rounds
    );
    for renewer in &mut renewers {
        for (lock, owner) in &renewer.owners {
            assert_eq!(renewer.client.cmd(&["UNLOCK", lock, owner]), int(1));
        }
    }
    wait_until_no_lock_is_left(&mut renewers[0].client);
    cluster.check_digests();
    cluster.check_alive();
}

/// Writes until told to stop, and tells what each took, by when it began.
fn write_until(address: std::net::SocketAddr, clock: SystemClock, until: Millis) -> Vec<(u64, u64)> {
    let mut client = Client::connect(address);
    let mut took = Vec::new();
    while clock.monotonic().since(Default::default()) < until {
        let before = clock.monotonic();
        assert_eq!(client.cmd(&["SET", "meanwhile", "value"]), ok());
        let begun = before.since(Default::default()).0;
        took.push((begun, micros(before, clock.monotonic())));
    }
    took
}

#[test]
fn writes_are_answered_while_thousands_of_leases_end_at_once() {
    const PER_COMMAND: u64 = 100;
    let count = number_from_env("LOCKS_EXPIRIES", 5_000);
    let clock = SystemClock::start();
    let mut cluster = Cluster::start(&[]);
    let leader = cluster.leader();
    let mut client = cluster.client(leader);
    let now = || clock.monotonic().since(Default::default()).0;
    let begun = now();
    // So that the first is still held when the last is taken; all end within a second after that.
    let ends = begun + 1_500 + count / 10;
    for batch in 0..count / PER_COMMAND {
        let keys: Vec<String> =
            (0..PER_COMMAND).map(|number| format!("lease:{}", batch * PER_COMMAND + number)).collect();
        let number = PER_COMMAND.to_string();
        let within = batch * 1_000 / (count / PER_COMMAND).max(1);
        let lease = (ends + within).saturating_sub(now()).max(100).to_string();
        let owner = format!("owner:{batch}");
        let mut words = vec!["MLOCK", number.as_str()];
        words.extend(keys.iter().map(String::as_str));
        words.extend([owner.as_str(), "PX", lease.as_str()]);
        let tokens: BTreeSet<i64> = client.cmd(&words).items().iter().map(token).collect();
        assert_eq!(tokens.len() as u64, PER_COMMAND);
    }
    let taken_within = now() - begun;
    assert_eq!(all_locks(&mut client).len() as u64, count, "some ended before all were taken");
    // Another connection sees the end of the last one, while writes go on until some time later.
    let address = cluster.address(cluster.others(leader)[0]);
    let until = Millis(ends + 1_500);
    let writer = thread::spawn(move || write_until(address, clock, until));
    while now() < ends {
        thread::sleep(Duration::from_millis(10));
    }
    let last = format!("lease:{}", count - 1);
    let gone_after = wait_for("the leases to end", PATIENCE, || {
        (client.cmd(&["LOCKS", "INFO", &last]) == Value::Null).then(|| now() - ends)
    });
    let took = writer.join().unwrap();
    wait_until_no_lock_is_left(&mut client);
    let between = |from: u64, to: u64| {
        took.iter().filter(move |(at, _)| (from..to).contains(at)).map(|(_, took)| *took)
    };
    let storm: Vec<u64> = between(ends, ends + 1_100).collect();
    assert!(!storm.is_empty(), "no write was answered");
    println!(
        "{count} leases, taken within {taken_within} ms, ended within a second (all gone after {gone_after} ms): {} SET \
         meanwhile, {}; {} before, {}",
        storm.len(),
        spread(storm),
        between(0, ends).count(),
        spread(between(0, ends).collect())
    );
    cluster.check_digests();
    cluster.check_alive();
}
