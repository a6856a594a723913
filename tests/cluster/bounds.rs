//! Entries that would take all the memory there is, on several nodes and at their next start.

use std::time::Duration;

use crate::support::client::Value;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::cluster::Cluster;

/// Keys that the transaction makes itself: nobody can know before it runs that its walks are long.
const KEYS: usize = 40_000;

#[test]
fn every_node_gets_past_an_entry_that_would_take_all_memory() {
    let mut cluster = Cluster::start(&[]);
    for id in cluster.ids() {
        let mut client = cluster.client(id);
        client.set_timeout(Duration::from_secs(60));
        client.cmd_bytes(&[b"SET", b"big", &vec![b'x'; 1 << 20]]);
        let pairs: Vec<String> = (0..KEYS).flat_map(|n| [format!("key:{n}"), "v".to_owned()]).collect();
        let mut commands =
            vec![["MSET"].into_iter().chain(pairs.iter().map(String::as_str)).collect::<Vec<_>>()];
        commands.extend(vec![vec!["KEYS", "*"]; 900]);
        let keys = client.cmd(&["DBSIZE"]).integer();
        let mut exec = |commands: &[Vec<&str>]| {
            assert_eq!(client.cmd(&["MULTI"]), ok());
            client.pipeline(commands);
            client.cmd(&["EXEC"])
        };
        let text = exec(&commands).text();
        assert!(text.starts_with("EXECABORT cmd=8 ERR a transaction looks at "), "{text}");
        // Messages are not known before either.
        let push = vec![vec!["QPUSH", "q", "m"]; 3];
        assert!(exec(&push).items().len() == 3);
        let mut many = vec![vec!["QPOP", "FROM", "q"], vec!["COPY", "big", "copy"]];
        many.extend(vec![vec!["GET", "copy"]; 60]);
        assert_eq!(exec(&many).items().len(), 62);
        assert_eq!(client.cmd(&["DEL", "copy"]), int(1));
        client.cmd(&["QDEL", "q", "ALL"]);
        let left = client.cmd(&["DBSIZE"]).integer();
        assert!((keys..=keys + 1).contains(&left), "{keys} keys, now {left}: the queue may be there");
        assert_eq!(client.cmd(&["QLEN", "q", "ALL"]), int(0));
    }
    cluster.check_digests();
    // All of it is in the log, and is applied once more.
    cluster.kill_all();
    cluster.start_all();
    cluster.check_digests();
    let mut client = cluster.client(1);
    assert_eq!(client.cmd(&["STRLEN", "big"]), int(1 << 20));
    assert_eq!(client.cmd(&["GET", "key:1"]), Value::Null);
}
