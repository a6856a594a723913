//! What a client of any node sees while nothing goes wrong.

use std::collections::BTreeMap;

use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::bulk;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::cluster::Cluster;

/// Rounds of a test that looks for a read which is too early.
const ROUNDS: u64 = 200;

#[test]
fn a_write_at_one_node_is_read_at_the_others_at_once() {
    let mut cluster = Cluster::start(&[]);
    let mut clients: Vec<Client> = cluster.ids().into_iter().map(|id| cluster.client(id)).collect();
    for round in 0..ROUNDS {
        let writer = (round % 3) as usize;
        let (value, lock, queue) = (round.to_string(), format!("lock:{round}"), format!("queue:{round}"));
        assert_eq!(clients[writer].cmd(&["SET", "key", &value]), ok());
        for client in &mut clients {
            assert_eq!(client.cmd(&["GET", "key"]), bulk(&value));
        }
        let token = clients[writer].cmd(&["LOCK", &lock, "me", "PX", "60000"]).integer();
        let id = clients[writer].cmd(&["QPUSH", &queue, &value]).text();
        for client in &mut clients {
            assert_eq!(client.cmd(&["LOCK", &lock, "you"]), Value::Null);
            assert_eq!(client.cmd(&["LOCK", &lock, "me", "PX", "60000"]), int(token));
            assert_eq!(client.cmd(&["QLEN", &queue]), int(1));
        }
        // Taken at the second, acknowledged at the third.
        let popped = clients[(writer + 1) % 3].cmd(&["QPOP", "LEASE", "60000", "FROM", &queue]);
        let message = popped.items()[0].items();
        assert_eq!((&message[1], &message[2]), (&bulk(&format!("{id}:1")), &bulk(&value)));
        assert_eq!(clients[writer].cmd(&["QPOP", "FROM", &queue]), Value::NullArray);
        assert_eq!(clients[(writer + 2) % 3].cmd(&["QACK", &queue, &format!("{id}:1")]), int(1));
        assert_eq!(clients[writer].cmd(&["QLEN", &queue, "ALL"]), int(0));
    }
    cluster.check_digests();
    cluster.check_alive();
}

#[test]
fn the_first_session_goes_alike_at_every_node() {
    let mut cluster = Cluster::start(&[]);
    let mut newest_token = 0;
    for id in cluster.ids() {
        let mut client = cluster.client(id);
        let name = |what: &str| format!("{what}:{id}");
        let (greeting, mail, job, visits) = (name("greeting"), name("mail"), name("job"), name("visits"));
        assert_eq!(client.cmd(&["SET", &greeting, "hello"]), ok());
        assert_eq!(client.cmd(&["GET", &greeting]), bulk("hello"));
        let message = client.cmd(&["QPUSH", &mail, "to: ann"]).text();
        let receipt = format!("{message}:1");
        let popped = client.cmd(&["QPOP", "LEASE", "600000", "FROM", &mail]);
        let expected = vec![bulk(&mail), bulk(&receipt), bulk("to: ann"), int(1)];
        assert_eq!(popped, Value::Array(vec![Value::Array(expected)]));
        assert_eq!(client.cmd(&["QACK", &mail, &receipt]), int(1));
        assert_eq!(client.cmd(&["QLEN", &mail, "ALL"]), int(0));
        let first = client.cmd(&["LOCK", &job, "web-1", "PX", "600000"]).integer();
        assert_eq!(client.cmd(&["LOCK", &job, "web-2", "PX", "600000"]), Value::Null);
        assert_eq!(client.cmd(&["UNLOCK", &job, "web-1"]), int(1));
        let second = client.cmd(&["LOCK", &job, "web-2", "PX", "600000"]).integer();
        assert!(newest_token < first && first < second, "{newest_token}, {first}, {second}");
        newest_token = second;
        assert_eq!(client.cmd(&["MULTI"]), ok());
        assert_eq!(client.cmd(&["INCR", &visits]).text(), "QUEUED");
        assert_eq!(client.cmd(&["SET", &greeting, "goodbye", "EX", "3600"]).text(), "QUEUED");
        assert_eq!(client.cmd(&["EXEC"]), Value::Array(vec![int(1), ok()]));
        // Errors are those of a node alone.
        assert_eq!(client.cmd(&["INCR", &greeting]).error_code(), Some("ERR"));
        assert_eq!(client.cmd(&["GET", &job]).error_code(), Some("WRONGTYPE"));
        assert_eq!(client.cmd(&["NOSUCH"]).error_code(), Some("ERR"));
    }
    cluster.check_alive();
}

#[test]
fn a_pipeline_of_reads_and_writes_keeps_its_order_at_every_node() {
    const STEPS: i64 = 300;
    let mut cluster = Cluster::start(&[]);
    cluster.leader();
    for id in cluster.ids() {
        let key = format!("steps:{id}");
        let (mut commands, mut expected) = (Vec::new(), Vec::new());
        let mut add = |words: &[&str], reply: Value| {
            commands.push(words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
            expected.push(reply);
        };
        for n in 1..=STEPS {
            let number = n.to_string();
            add(&["INCR", &key], int(n));
            add(&["GET", &key], bulk(&number));
            match n % 10 {
                0 => add(&["PING"], Value::Simple("PONG".to_owned())),
                1 => add(&["APPEND", &format!("{key}:text"), "x"], int(1 + n / 10)),
                2 => add(&["STRLEN", &format!("{key}:text")], int(1 + n / 10)),
                3 => add(&["SET", &format!("{key}:{n}"), &number, "GET"], Value::Null),
                4 => add(&["GET", &format!("{key}:{}", n - 1)], bulk(&(n - 1).to_string())),
                5 => {
                    add(&["MULTI"], ok());
                    add(&["GET", &key], Value::Simple("QUEUED".to_owned()));
                    add(&["STRLEN", &key], Value::Simple("QUEUED".to_owned()));
                    add(&["EXEC"], Value::Array(vec![bulk(&number), int(number.len() as i64)]));
                }
                _ => {}
            }
        }
        assert_eq!(cluster.client(id).pipeline(&commands), expected, "at node {id}");
    }
    cluster.check_alive();
}

#[test]
fn a_watch_at_one_node_notices_a_write_at_another() {
    let mut cluster = Cluster::start(&[]);
    let mut clients: BTreeMap<u64, Client> =
        cluster.ids().into_iter().map(|id| (id, cluster.client(id))).collect();
    for id in cluster.ids() {
        let other = id % 3 + 1;
        for is_disturbed in [true, false] {
            let client = clients.get_mut(&id).unwrap();
            assert_eq!(client.cmd(&["WATCH", "watched"]), ok());
            if is_disturbed {
                clients.get_mut(&other).unwrap().cmd(&["INCR", "watched"]);
            }
            let client = clients.get_mut(&id).unwrap();
            assert_eq!(client.cmd(&["MULTI"]), ok());
            assert_eq!(client.cmd(&["SET", "result", "done"]).text(), "QUEUED");
            let expected = if is_disturbed { Value::NullArray } else { Value::Array(vec![ok()]) };
            assert_eq!(client.cmd(&["EXEC"]), expected, "at node {id}");
        }
    }
    cluster.check_alive();
}
