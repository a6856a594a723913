//! The harness itself, with what one node is enough for: a cluster of one, its clients' account of their commands,
//! the recording proxy, wall clocks, and the replies it reads.

use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::thread;
use std::time::Duration;

use holdfast::types::Millis;

use crate::cluster::linearizable::record;
use crate::cluster::load::Load;
use crate::cluster::load::Plan;
use crate::support::client::Value;
use crate::support::client::bulk;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::cluster::Cluster;
use crate::support::cluster::Digests;
use crate::support::cluster::Member;
use crate::support::cluster::Proxy;
use crate::support::cluster::RaftInfo;
use crate::support::cluster::WallClocks;
use crate::support::cluster::wall_seconds;
use crate::support::linearizability::Kind;
use crate::support::linearizability::NOTHING;
use crate::support::linearizability::check;
use crate::support::wait_for;

fn cluster_of_one() -> Cluster {
    let mut cluster = Cluster::prepare(1, &["--loglevel", "verbose"]);
    cluster.start_all();
    cluster
}

fn flat(pairs: &[(&str, Value)]) -> Value {
    Value::Array(pairs.iter().flat_map(|(name, value)| [bulk(name), value.clone()]).collect())
}

#[test]
fn a_node_is_held_resumed_killed_started_and_wiped() {
    let mut cluster = cluster_of_one();
    let mut client = cluster.client(1);
    assert_eq!(client.cmd(&["SET", "kept", "value"]), ok());
    cluster.hold(1);
    assert!(cluster.running().is_empty());
    client.send(&["GET", "kept"]);
    client.set_timeout(Duration::from_millis(300));
    assert!(client.try_read().is_err(), "a held node answered");
    cluster.resume(1);
    client.set_timeout(Duration::from_secs(10));
    assert_eq!(client.read(), bulk("value"));
    cluster.kill_all();
    assert!(client.try_cmd(&["PING"]).is_err());
    assert!(cluster.running().is_empty());
    cluster.start_node(1);
    assert_eq!(cluster.client(1).cmd(&["GET", "kept"]), bulk("value"));
    cluster.kill(1);
    cluster.wipe(1);
    cluster.start_node(1);
    assert_eq!(cluster.client(1).cmd(&["GET", "kept"]), Value::Null);
    cluster.check_alive();
}

#[test]
fn a_node_that_ends_while_it_is_waited_for_fails_the_test() {
    let mut cluster = Cluster::prepare(1, &["--no-such-directive", "1"]);
    let failure = catch_unwind(AssertUnwindSafe(|| cluster.start_all())).unwrap_err();
    let message = failure.downcast_ref::<String>().unwrap();
    assert!(message.contains("node 1 ended") && message.contains("no-such-directive"), "{message}");
}

#[test]
fn a_node_alone_is_linearizable_across_kills_and_one_wrong_read_is_noticed() {
    let mut cluster = cluster_of_one();
    let mut histories = record(&mut cluster, 4_000, 4, 1, |cluster, fault| {
        if fault % 2 == 0 {
            cluster.hold(1);
            thread::sleep(Duration::from_millis(50));
            cluster.resume(1);
        } else {
            cluster.kill(1);
            cluster.start_node(1);
        }
    });
    assert!(histories.values().map(Vec::len).sum::<usize>() >= 4_000);
    for history in histories.values_mut() {
        assert_eq!(check(history), Ok(()));
        history.sort_by_key(|operation| operation.invoked);
        let reads = history.iter_mut().filter(|operation| operation.kind == Kind::Read);
        reads.last().expect("there were reads").value = NOTHING;
        assert!(check(history).is_err());
    }
    cluster.check_alive();
}

#[test]
fn clients_count_what_was_acknowledged_across_kills_and_notice_what_is_wrong() {
    let mut cluster = cluster_of_one();
    let mut load = Load::new(&cluster, Plan { clients: 3, window: 16, value_length: 40, seed: 1 });
    load.run(|progress| {
        for _ in 0..2 {
            progress.wait_for_more(500);
            cluster.kill(1);
            cluster.start_node(1);
        }
        progress.wait_for_more(500);
    });
    assert!(load.acknowledged() >= 1500 && load.in_doubt() > 0);
    load.check_no_errors();
    load.check_breaks(&[(1, 2)].into());
    let unexpected_breaks = catch_unwind(AssertUnwindSafe(|| load.check_breaks(&[(1, 1)].into())));
    assert!(unexpected_breaks.is_err());

    let mut client = cluster.client(1);
    load.check(&mut client);
    // Each kind of harm is noticed, and nothing else is: undone, all is well again.
    let value = client.cmd(&["GET", "load:0:0"]).text();
    let count = client.cmd(&["GET", "load:counter:1"]).text();
    let shared = client.cmd(&["GET", "load:counter"]).text();
    let harms: [(&[&str], &[&str]); 4] = [
        (&["DEL", "load:0:0"], &["SET", "load:0:0", &value]),
        (&["SET", "load:0:0", "4 of 0 "], &["SET", "load:0:0", &value]),
        (&["SET", "load:counter:1", "1"], &["SET", "load:counter:1", &count]),
        (&["INCRBY", "load:counter", "100000"], &["SET", "load:counter", &shared]),
    ];
    for (harm, remedy) in harms {
        client.cmd(harm);
        let checked = catch_unwind(AssertUnwindSafe(|| load.check(&mut cluster.client(1))));
        assert!(checked.is_err(), "{harm:?} was not noticed");
        client.cmd(remedy);
        load.check(&mut client);
    }
    load.check_all(&mut cluster);
    let drained = catch_unwind(AssertUnwindSafe(|| load.check_all(&mut cluster)));
    assert!(drained.is_err(), "messages that are gone were not missed");
}

#[test]
fn replies_of_raft_are_read_in_both_protocols() {
    let pairs = [
        ("role", bulk("Leader")),
        ("term", int(3)),
        ("leader", int(2)),
        ("commit", bulk("17")),
        ("applied", int(16)),
        ("lag", int(1)),
    ];
    let info = RaftInfo::read(&flat(&pairs));
    let expected = RaftInfo {
        role: "leader".to_owned(),
        term: 3,
        leader: Some(2),
        commit: 17,
        applied: 16,
        snapshots_installed: None,
    };
    assert_eq!(info, expected);
    let map = pairs.iter().map(|(name, value)| (bulk(name), value.clone())).collect();
    assert_eq!(RaftInfo::read(&Value::Map(map)), expected);

    let member = |node: i64, replica: i64, kind: &str| {
        flat(&[
            ("node", int(node)),
            ("replica", int(replica)),
            ("kind", bulk(kind)),
            ("state", bulk("ALIVE")),
        ])
    };
    let members = Member::read_all(&Value::Array(vec![member(1, 1, "voter"), member(3, 4, "learner")]));
    assert_eq!(
        members,
        [Member { node: 1, replica: 1, is_voter: true }, Member { node: 3, replica: 4, is_voter: false }]
    );

    let digests = |first: &str, second: &str| {
        let by_node = Value::Array(vec![int(1), bulk(first), bulk("2"), bulk(second)]);
        let equal = int(i64::from(first == second));
        Digests::read(&flat(&[("index", int(9)), ("equal", equal), ("digests", by_node)]))
    };
    assert!(digests("aa", "aa").is_equal && !digests("aa", "aa").differ());
    assert!(!digests("aa", "ab").is_equal && digests("aa", "ab").differ());
    assert_eq!(digests("aa", "ab").by_node.keys().copied().collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_proxy_passes_on_and_records_both_directions() {
    let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let proxy = Proxy::before(target.local_addr().unwrap().port());
    let mut dialled = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
    let (mut accepted, _) = target.accept().unwrap();
    let (mut question, mut answer) = ([0; 8], Vec::new());
    dialled.write_all(b"question").unwrap();
    accepted.read_exact(&mut question).unwrap();
    assert_eq!(&question, b"question");
    accepted.write_all(b"answer").unwrap();
    drop(accepted);
    dialled.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"answer");
    let recordings = proxy.recordings();
    assert_eq!(recordings.len(), 1);
    assert_eq!((&recordings[0].sent[..], &recordings[0].answered[..]), (&b"question"[..], &b"answer"[..]));
}

#[test]
fn a_wall_clock_is_moved_while_its_node_runs() {
    let Some(clocks) = WallClocks::find() else {
        eprintln!("NOT TESTED: libfaketime is not installed (Debian's package libfaketime)");
        return;
    };
    let mut cluster = Cluster::prepare(1, &[]);
    clocks.give(1, cluster.node_mut(1));
    cluster.start_all();
    let mut client = cluster.client(1);
    let before = wall_seconds(&mut client);
    assert_eq!(client.cmd(&["SET", "key", "value", "PX", "60000"]), ok());
    for offset in [31_536_000, -31_536_000, 3_600] {
        clocks.set(1, offset);
        wait_for("the clock to be moved", Millis(5_000), || {
            ((wall_seconds(&mut client) - before - offset).abs() < 20).then_some(())
        });
        let left = client.cmd(&["PTTL", "key"]).number();
        assert!((40_000..=60_000).contains(&left), "{left} ms left at {offset} s");
    }
    // Its monotonic clock goes on as it should.
    thread::sleep(Duration::from_millis(200));
    assert!(client.cmd(&["PTTL", "key"]).number() < 59_900);
}
