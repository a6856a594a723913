//! Clients whose connections come and go: pools that use another connection for each command, nodes that die or are cut
//! off while their clients wait (pgbouncer#617, authentik#23876).

use std::time::Duration;

use holdfast::clock::Clock;
use holdfast::clock::SystemClock;
use holdfast::types::Millis;

use crate::locks::common::check_refused;
use crate::locks::common::token;
use crate::locks::common::wait_for_waiters;
use crate::locks::common::wait_until_no_lock_is_left;
use crate::locks::common::waiter;
use crate::locks::common::waiters_of;
use crate::locks::common::write_fenced;
use crate::support::client::Client;
use crate::support::client::int;
use crate::support::cluster::Cluster;
use crate::support::cluster::PATIENCE;
use crate::support::links::Links;
use crate::support::wait_for;

/// When a node tells those who wait that it is cut off.
const NODE_TIMEOUT: &str = "2000";

fn unlock(client: &mut Client, lock: &str, owner: &str, token: i64) {
    assert_eq!(client.cmd(&["UNLOCK", lock, owner, "TOKEN", &token.to_string()]), int(1), "{lock} {owner}");
}

#[test]
fn a_lock_is_taken_extended_used_and_released_over_different_connections() {
    let mut cluster = Cluster::start(&[]);
    for round in 0..9 {
        let at = |step: u64| cluster.client((round + step) % 3 + 1);
        let (lock, owner) = (format!("lock:{round}"), format!("owner:{round}"));
        let held = token(&at(0).cmd(&["LOCK", &lock, &owner, "PX", "2000"]));
        // Asking again is no second hold.
        assert_eq!(token(&at(1).cmd(&["LOCK", &lock, &owner, "PX", "2000"])), held);
        assert_eq!(at(2).cmd(&["LOCKEXTEND", &owner, "60000"]).field("extended"), &int(1));
        write_fenced(&mut at(1), &lock, held, &format!("register:{round}"), &owner);
        let mut next = waiter(&cluster, round % 3 + 1);
        next.send(&["LOCK", &lock, "next", "BLOCK", "0"]);
        wait_for_waiters(&mut at(0), &lock, 1);
        unlock(&mut at(2), &lock, &owner, held);
        // A repetition, because the reply was lost, is told the same.
        unlock(&mut at(1), &lock, &owner, held);
        let after = token(&next.read());
        check_refused(&mut at(1), &lock, held, &format!("register:{round}"));
        unlock(&mut at(0), &lock, "next", after);
    }
    wait_until_no_lock_is_left(&mut cluster.client(1));
    cluster.check_digests();
    cluster.check_alive();
}

#[test]
fn those_who_wait_at_other_nodes_do_not_notice_that_the_leader_dies() {
    const WAITERS: u64 = 20;
    let mut cluster = Cluster::start(&[]);
    let leader = cluster.leader();
    let survivors = cluster.others(leader);
    let mut holder = cluster.client(survivors[0]);
    let held = token(&holder.cmd(&["LOCK", "lock", "holder", "PX", "60000"]));
    let mut waiting = Vec::new();
    for number in 0..WAITERS {
        let mut client = waiter(&cluster, survivors[(number % 2) as usize]);
        let owner = format!("waiter:{number}");
        client.send(&["LOCK", "lock", &owner, "PX", "60000", "BLOCK", "0"]);
        wait_for_waiters(&mut holder, "lock", number as usize + 1);
        waiting.push((owner, client));
    }
    let killed = cluster.kill_leader();
    assert_eq!(killed, leader);
    let owners: Vec<String> = waiting.iter().map(|(owner, _)| owner.clone()).collect();
    assert_eq!(waiters_of(&mut holder, "lock"), owners);
    unlock(&mut holder, "lock", "holder", held);
    let mut last = held;
    for (owner, client) in &mut waiting {
        let got = token(&client.read());
        assert!(got > last, "{owner}: {got} after {last}");
        last = got;
        unlock(client, "lock", owner, got);
    }
    wait_until_no_lock_is_left(&mut holder);
    println!("a leader died: {WAITERS} waiters at the other nodes had the lock in order, without an error");
    cluster.start_node(killed);
    cluster.check_digests();
    cluster.check_alive();
}

#[test]
fn waits_at_nodes_that_die_or_are_cut_off_end() {
    let clock = SystemClock::start();
    let mut cluster = Cluster::prepare(3, &["--cluster-node-timeout", NODE_TIMEOUT]);
    let links = Links::between(&mut cluster);
    cluster.start_all();
    let mut holder = {
        let leader = cluster.leader();
        cluster.client(leader)
    };
    let lost = cluster.follower();
    let ids = cluster.ids();
    let heirs_node = ids.into_iter().find(|id| *id != lost).unwrap();

    // Cut off: who waits there is told so.
    let begin = |cluster: &Cluster, holder: &mut Client, lock: &str, lease: &str| {
        let held = token(&holder.cmd(&["LOCK", lock, "holder", "PX", "120000"]));
        let mut cut_off = waiter(cluster, lost);
        cut_off.send(&["LOCK", lock, "lost", "PX", lease, "BLOCK", "0"]);
        wait_for_waiters(holder, lock, 1);
        let mut heir = waiter(cluster, heirs_node);
        heir.send(&["LOCK", lock, "heir", "PX", "60000", "BLOCK", "0"]);
        assert_eq!(wait_for_waiters(holder, lock, 2), ["lost", "heir"]);
        (held, cut_off, heir)
    };
    let (held, mut cut_off, mut heir) = begin(&cluster, &mut holder, "cut", "60000");
    // And one whose lock becomes free while the wait of who is cut off is still there: it is granted to nobody who
    // hears of it, and taken back when the node returns.
    let (early, mut cut_off_early, mut early_heir) = begin(&cluster, &mut holder, "early", "60000");
    let cut_at = clock.monotonic();
    for other in cluster.others(lost) {
        links.cut(lost, other);
        links.cut(other, lost);
    }
    unlock(&mut holder, "early", "holder", early);
    for client in [&mut cut_off, &mut cut_off_early] {
        let told = client.read();
        assert_eq!(told.error_code(), Some("CLUSTERDOWN"), "{told:?}");
    }
    let told_after = clock.monotonic().since(cut_at).0;
    // The majority forgets who waits there, so that the lock does not go there.
    wait_for("the wait at the node that is cut off to end", PATIENCE, || {
        (waiters_of(&mut holder, "cut") == ["heir"]).then_some(())
    });
    let forgotten_after = clock.monotonic().since(cut_at).0;
    unlock(&mut holder, "cut", "holder", held);
    let got = token(&heir.read());
    unlock(&mut heir, "cut", "heir", got);
    for other in cluster.others(lost) {
        links.heal(lost, other);
        links.heal(other, lost);
        links.break_connections(lost, other);
    }
    let healed_at = clock.monotonic();
    let got = token(&early_heir.read());
    let taken_back_after = clock.monotonic().since(healed_at).0;
    unlock(&mut early_heir, "early", "heir", got);
    cluster.wait_until_serving(lost);
    wait_until_no_lock_is_left(&mut holder);
    drop((cut_off, cut_off_early));

    // Dead: the same, only that nobody is told.
    let (held, _gone, mut heir) = begin(&cluster, &mut holder, "dead", "60000");
    // This one is granted to a client of the dead node, which has it as long as its lease.
    let (early, _gone_too, mut early_heir) = begin(&cluster, &mut holder, "dead:early", "1000");
    let killed_at = clock.monotonic();
    cluster.kill(lost);
    unlock(&mut holder, "dead:early", "holder", early);
    let got = token(&early_heir.read());
    unlock(&mut early_heir, "dead:early", "heir", got);
    wait_for("the wait at the dead node to end", Millis(30_000), || {
        (waiters_of(&mut holder, "dead") == ["heir"]).then_some(())
    });
    let ended_after = clock.monotonic().since(killed_at).0;
    assert!(heir.is_quiet());
    heir.set_timeout(Duration::from_secs(60));
    unlock(&mut holder, "dead", "holder", held);
    let got = token(&heir.read());
    unlock(&mut heir, "dead", "heir", got);
    wait_until_no_lock_is_left(&mut holder);
    println!(
        "a node cut off told its waiters CLUSTERDOWN after {told_after} ms, the majority forgot them after \
         {forgotten_after} ms, and what one was granted meanwhile went on {taken_back_after} ms after the node was \
         back; the waits of a dead node ended after {ended_after} ms"
    );
    cluster.start_node(lost);
    cluster.check_digests();
    cluster.check_alive();
}
