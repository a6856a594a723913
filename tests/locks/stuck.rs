//! A lock whose holder is gone: an operator who has nothing but RESP commands finds out whose it is and frees it
//! (redisson#4661, curator#671).

use std::os::fd::OwnedFd;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use holdfast::clock::Clock;
use holdfast::clock::SystemClock;

use crate::locks::common::check_refused;
use crate::locks::common::token;
use crate::locks::common::wait_for_waiters;
use crate::locks::common::waiter;
use crate::locks::common::write_fenced;
use crate::support::client::Value;
use crate::support::client::bulk;
use crate::support::client::bulks;
use crate::support::client::int;
use crate::support::cluster::Cluster;
use crate::support::micros;
use crate::support::spread;

const LOCK: &str = "report:{7}";
const HOLDER: &str = "worker:host-9:41";
/// The operator looks after this time.
const PAUSE: Duration = Duration::from_millis(300);
/// Two clocks that count whole milliseconds.
const ROUNDING_MS: u64 = 10;
/// And the lease would have lasted an hour.
const LEASE: &str = "3600000";

#[test]
fn an_operator_finds_the_holder_of_a_stuck_lock_and_frees_it() {
    let clock = SystemClock::start();
    let mut cluster = Cluster::start(&[]);
    // The holder's connection belongs to a process of its own, and to no other.
    let mut holder = cluster.client(1);
    let address = holder.writer().local_addr().unwrap().to_string();
    let taken = clock.monotonic();
    let held = token(&holder.cmd(&["LOCK", LOCK, HOLDER, "PX", LEASE, "DATA", "pid 41"]));
    write_fenced(&mut holder, LOCK, held, "register", "the holder's");
    let socket = OwnedFd::from(holder.writer());
    drop(holder);
    let mut process = Command::new("sleep")
        .arg("600")
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();

    let mut operator = cluster.client(2);
    let mut waiting = Vec::new();
    for (place, id) in [(0, 3), (1, 2), (2, 1)] {
        let mut client = waiter(&cluster, id);
        let owner = format!("waiter:{place}");
        client.send(&["LOCK", LOCK, &owner, "PX", "60000", "BLOCK", "0"]);
        wait_for_waiters(&mut operator, LOCK, place + 1);
        waiting.push((owner, client));
    }
    process.kill().unwrap();
    process.wait().unwrap();
    thread::sleep(PAUSE);

    // What the operator sees, at whatever node: which lock, whose, from where, since when, and who waits for it.
    for id in cluster.ids() {
        let mut operator = cluster.client(id);
        let listed = operator.cmd(&["LOCKS", "LIST", "0", "MATCH", "report:*"]);
        assert_eq!(listed.items()[1], bulks(&[LOCK]));
        assert_eq!(operator.cmd(&["LOCKS", "LIST", "0", "OWNER", HOLDER]).items()[1], bulks(&[LOCK]));
        let asked = clock.monotonic().since(taken).0;
        let info = operator.cmd(&["LOCKS", "INFO", LOCK]);
        let answered = clock.monotonic().since(taken).0;
        assert_eq!(info.field("mode"), &bulk("exclusive"));
        assert_eq!(info.field("data"), &bulk("pid 41"));
        let [found] = info.field("holders").items() else { panic!("one holder: {info:?}") };
        let [owner, token, ttl, user, from, since] = found.items() else { panic!("{found:?}") };
        assert_eq!((owner, token), (&bulk(HOLDER), &int(held)));
        assert_eq!((user, from), (&bulk("default"), &Value::Bulk(address.clone().into_bytes())));
        assert!(
            since.number() <= answered + ROUNDING_MS && since.number() + 1_000 >= asked,
            "{since:?}, {asked}..{answered}"
        );
        assert!(ttl.number() <= 3_600_000 && ttl.number() + answered + 1_000 >= 3_600_000, "{ttl:?}");
        let waiters = info.field("waiters").items();
        assert_eq!(waiters.len(), 3);
        for (shown, (owner, client)) in waiters.iter().zip(&waiting) {
            let from = client.writer().local_addr().unwrap().to_string();
            assert_eq!(shown.items()[0], bulk(owner));
            assert_eq!(shown.items()[1], bulk("exclusive"));
            assert!(shown.items()[2].number() >= PAUSE.as_millis() as u64 / 2, "{shown:?}");
            assert_eq!(shown.items()[3], bulk(&from));
        }
    }
    assert_eq!(operator.cmd(&["LOCKS", "KILL", LOCK, "OWNER", "somebody else"]), int(0));
    assert_eq!(wait_for_waiters(&mut operator, LOCK, 3)[0], "waiter:0");

    // Each in turn is killed, and the next has it.
    let mut last = held;
    let mut hand_offs = Vec::new();
    for (owner, mut client) in waiting {
        let killed = clock.monotonic();
        assert_eq!(operator.cmd(&["LOCKS", "KILL", LOCK, "REASON", "its process is gone"]), int(1));
        let next = token(&client.read());
        hand_offs.push(micros(killed, clock.monotonic()));
        assert!(next > last, "{next} after {last}");
        write_fenced(&mut client, LOCK, next, "register", &owner);
        for id in cluster.ids() {
            check_refused(&mut cluster.client(id), LOCK, last, "register");
        }
        let number = last.to_string();
        assert_eq!(operator.cmd(&["UNLOCK", LOCK, HOLDER, "TOKEN", &number]), int(0));
        last = next;
    }
    println!("a stuck lock: from LOCKS KILL to the next waiter's token {}", spread(hand_offs));
    assert_eq!(operator.cmd(&["LOCKS", "KILL", LOCK]), int(1));
    assert_eq!(operator.cmd(&["LOCKS", "INFO", LOCK]), Value::Null);
    assert_eq!(operator.cmd(&["LOCKS", "KILL", LOCK]), int(0));
    cluster.check_digests();
    cluster.check_alive();
}
