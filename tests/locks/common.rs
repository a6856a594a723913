//! What the tests of locks share.

use std::time::Duration;

use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::bulk;
use crate::support::cluster::Cluster;
use crate::support::cluster::PATIENCE;
use crate::support::wait_for;

/// Reads of those who wait may take as long as a whole test.
pub const LONG_WAIT: Duration = Duration::from_secs(60);

/// A connection to a node for somebody who waits long.
pub fn waiter(cluster: &Cluster, id: u64) -> Client {
    let client = cluster.client(id);
    client.set_timeout(LONG_WAIT);
    client
}

/// A token; fails the test for anything else.
pub fn token(reply: &Value) -> i64 {
    match reply {
        Value::Integer(token) if *token > 0 => *token,
        other => panic!("not a token: {other:?}"),
    }
}

/// Who waits for a lock, in order, as LOCKS INFO tells it.
pub fn waiters_of(client: &mut Client, key: &str) -> Vec<String> {
    match client.cmd(&["LOCKS", "INFO", key]) {
        Value::Null => Vec::new(),
        info => info.field("waiters").items().iter().map(|waiter| waiter.items()[0].text()).collect(),
    }
}

/// Waits until so many wait for a lock, and tells who.
pub fn wait_for_waiters(client: &mut Client, key: &str, count: usize) -> Vec<String> {
    wait_for(&format!("{count} to wait for {key}"), PATIENCE, || {
        let waiters = waiters_of(client, key);
        (waiters.len() == count).then_some(waiters)
    })
}

/// All locks that have a row.
pub fn all_locks(client: &mut Client) -> Vec<String> {
    let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
    loop {
        let page = client.cmd(&["LOCKS", "LIST", &cursor, "COUNT", "1000"]);
        let [next, keys] = page.items() else { panic!("not a page: {page:?}") };
        found.extend(keys.items().iter().map(Value::text));
        cursor = next.text();
        if cursor == "0" {
            return found;
        }
    }
}

/// Waits until no lock has a row.
pub fn wait_until_no_lock_is_left(client: &mut Client) {
    let mut left = Vec::new();
    for _ in 0..600 {
        left = all_locks(client);
        if left.is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let shown: Vec<Value> = left.iter().take(3).map(|key| client.cmd(&["LOCKS", "INFO", key])).collect();
    panic!("{} locks are left: {left:?} {shown:?}", left.len());
}

/// Who waits for whom, as every node tells it at one index.
pub fn graph_of_all(clients: &mut [Client]) -> Vec<(String, String, String)> {
    wait_for("all nodes to tell of one index", PATIENCE, || {
        let graphs: Vec<Value> = clients.iter_mut().map(|client| client.cmd(&["LOCKS", "GRAPH"])).collect();
        let index = &graphs[0].items()[0];
        if graphs.iter().any(|graph| graph.items()[0] != *index) {
            return None;
        }
        assert!(graphs.iter().all(|graph| *graph == graphs[0]), "at one index: {graphs:?}");
        let edge = |edge: &Value| {
            let [waiter, key, holder] = edge.items() else { panic!("not an edge: {edge:?}") };
            (waiter.text(), key.text(), holder.text())
        };
        Some(graphs[0].items()[1].items().iter().map(edge).collect())
    })
}

/// A write that is guarded by a token that is not current is refused, in each form, and changes nothing.
pub fn check_refused(client: &mut Client, lock: &str, token: i64, register: &str) {
    let before = client.cmd(&["GET", register]);
    let token = token.to_string();
    let stale = |reply: &Value| {
        assert_eq!(reply.error_code(), Some("STALETOKEN"), "{lock} {token}: {reply:?}");
    };
    stale(&client.cmd(&["FENCE", lock, &token]));
    stale(&client.cmd(&["SET", register, "stale", "FENCE", lock, &token]));
    assert_eq!(client.cmd(&["MULTI"]).text(), "OK");
    for words in [&["FENCE", lock, &token][..], &["SET", register, "stale"], &["INCR", "stale:effects"]] {
        assert_eq!(client.cmd(words).text(), "QUEUED");
    }
    stale(&client.cmd(&["EXEC"]));
    assert_eq!(client.cmd(&["GET", register]), before, "{lock} {token}");
    assert_eq!(client.cmd(&["GET", "stale:effects"]), Value::Null, "{lock} {token}");
}

/// A write that is guarded by the current token is made.
pub fn write_fenced(client: &mut Client, lock: &str, token: i64, register: &str, value: &str) {
    let reply = client.cmd(&["SET", register, value, "FENCE", lock, &token.to_string()]);
    assert_eq!(reply, Value::Simple("OK".to_owned()), "{lock} {token}");
    assert_eq!(client.cmd(&["GET", register]), bulk(value));
}
