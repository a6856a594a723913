//! A node without a majority: writes and reads are answered in time with what happened, stale reads are served to
//! those who asked for them, and everything goes on when the others are back.

use holdfast::clock::Clock;
use holdfast::clock::SystemClock;
use holdfast::types::Millis;

use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::bulk;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::cluster::Cluster;
use crate::support::cluster::PATIENCE;
use crate::support::wait_for;

const INDOUBT_TIMEOUT: Millis = Millis(1_000);

/// No answer takes longer; twice the timeout, and room for a busy machine.
const ANSWER_WAIT: Millis = Millis(2 * INDOUBT_TIMEOUT.0 + 500);

/// What a write without a majority was answered: whether it may have been executed.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fate {
    InDoubt,
    NotExecuted,
}

fn ask(client: &mut Client, clock: SystemClock, words: &[&str]) -> Value {
    let before = clock.monotonic();
    let reply = client.cmd(words);
    let took = clock.monotonic().since(before);
    assert!(took <= ANSWER_WAIT, "{words:?} took {} ms: {reply:?}", took.0);
    reply
}

/// What the only node that is left answers, on a connection that was made before.
fn check_minority(client: &mut Client, clock: SystemClock, name: &str) -> Vec<(String, Fate)> {
    let mut fates = Vec::new();
    for n in 0..4 {
        let key = format!("{name}:{n}");
        let reply = ask(client, clock, &["SET", &key, "perhaps"]);
        let fate = match reply.error_code() {
            Some("INDOUBT") => Fate::InDoubt,
            Some("READONLY") => Fate::NotExecuted,
            _ => panic!("a write of a minority: {reply:?}"),
        };
        fates.push((key, fate));
    }
    for _ in 0..2 {
        let reply = ask(client, clock, &["GET", "before"]);
        assert_eq!(reply.error_code(), Some("CLUSTERDOWN"), "{reply:?}");
    }
    assert_eq!(ask(client, clock, &["PING"]), Value::Simple("PONG".to_owned()));
    assert_eq!(ask(client, clock, &["READONLY"]), ok());
    assert_eq!(ask(client, clock, &["GET", "before"]), bulk(name));
    // Leaderless for longer than a millisecond by now; a deposed leader soon knows.
    assert_eq!(ask(client, clock, &["READONLY", "MAXLAG", "1"]), ok());
    wait_for("MASTERDOWN", Millis(10_000), || {
        (ask(client, clock, &["GET", "before"]).error_code() == Some("MASTERDOWN")).then_some(())
    });
    assert_eq!(ask(client, clock, &["READONLY", "MAXLAG", "3600000"]), ok());
    assert_eq!(ask(client, clock, &["GET", "before"]), bulk(name));
    // Writes are refused all the same, and reads are linearizable again when that is asked for.
    let reply = ask(client, clock, &["SET", "readonly", "x"]);
    assert!(matches!(reply.error_code(), Some("READONLY" | "INDOUBT")), "{reply:?}");
    assert_eq!(ask(client, clock, &["READWRITE"]), ok());
    assert_eq!(ask(client, clock, &["GET", "before"]).error_code(), Some("CLUSTERDOWN"));
    fates
}

/// Everything works on the same connection, and what was said of the writes was true.
fn check_majority(cluster: &mut Cluster, client: &mut Client, name: &str, fates: &[(String, Fate)]) {
    wait_for("writes to be taken again", PATIENCE, || {
        let reply = client.cmd(&["SET", "after", name]);
        assert!(reply == ok() || reply.is_error());
        (reply == ok()).then_some(())
    });
    assert_eq!(client.cmd(&["GET", "after"]), bulk(name));
    assert!(client.cmd(&["LOCK", &format!("lock:{name}"), "me"]).integer() > 0);
    assert_eq!(client.cmd(&["QLEN", "queue"]), int(0));
    for (key, fate) in fates {
        let found = client.cmd(&["GET", key]);
        match fate {
            Fate::NotExecuted => assert_eq!(found, Value::Null, "{key} was said not to be executed"),
            Fate::InDoubt => assert!(found == Value::Null || found == bulk("perhaps"), "{key}: {found:?}"),
        }
        for id in cluster.ids() {
            assert_eq!(cluster.client(id).cmd(&["GET", key]), found, "{key} at node {id}");
        }
    }
    cluster.check_digests();
    println!("{name}: {fates:?}");
}

#[test]
fn a_node_without_a_majority_answers_in_time_and_recovers_on_the_same_connection() {
    let clock = SystemClock::start();
    let mut cluster = Cluster::start(&["--indoubt-timeout", &INDOUBT_TIMEOUT.0.to_string()]);

    // The leader is left: the others are killed.
    let leader = cluster.leader();
    let mut client = cluster.client(leader);
    assert_eq!(client.cmd(&["SET", "before", "leader"]), ok());
    cluster.others(leader).into_iter().for_each(|id| cluster.kill(id));
    let fates = check_minority(&mut client, clock, "leader");
    cluster.start_all();
    check_majority(&mut cluster, &mut client, "leader", &fates);

    // A follower is left: the others stand still, their connections open.
    let follower = cluster.follower();
    let mut client = cluster.client(follower);
    assert_eq!(client.cmd(&["SET", "before", "follower"]), ok());
    cluster.wait_until_caught_up(follower);
    cluster.others(follower).into_iter().for_each(|id| cluster.hold(id));
    let fates = check_minority(&mut client, clock, "follower");
    cluster.others(follower).into_iter().for_each(|id| cluster.resume(id));
    check_majority(&mut cluster, &mut client, "follower", &fates);
    cluster.check_alive();
}
