//! Starts that meet what another start left, and a node whose ground is pulled away.

use std::fs;
use std::path::PathBuf;

use crate::support::client::bulk;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::damage::harm_tables;
use crate::support::node::Node;
use crate::support::node::free_port;
use crate::support::node::run_to_end;

/// A node that writes no rows by itself for a minute, so that a restart has the log alone.
const NO_FLUSH: [&str; 2] = ["--flush-interval", "60000"];

#[test]
fn fewer_databases_in_the_file_hide_nothing_that_was_acknowledged() {
    let mut node = Node::start(&NO_FLUSH);
    let mut client = node.client();
    assert_eq!(client.cmd(&["SELECT", "10"]), ok());
    assert_eq!(client.cmd(&["SET", "kept", "value"]), ok());
    node.kill();
    node.set_args(&["--databases", "4"]);
    for _ in 0..2 {
        node.restart();
        let mut client = node.client();
        assert_eq!(client.cmd(&["CONFIG", "GET", "databases"]).items()[1], bulk("16"));
        assert_eq!(client.cmd(&["SELECT", "10"]), ok());
        assert_eq!(client.cmd(&["GET", "kept"]), bulk("value"));
        assert!(node.log().contains("databases is 16"), "{}", node.log());
        assert_eq!(node.stop().code(), Some(0));
    }
}

#[test]
fn a_lock_and_a_message_in_flight_outlive_a_kill_with_their_token_and_receipt() {
    let mut node = Node::start(&NO_FLUSH);
    let mut client = node.client();
    let token = client.cmd(&["LOCK", "lock", "me", "PX", "600000"]).integer();
    let id = client.cmd(&["QPUSH", "queue", "payload"]).text();
    client.cmd(&["QPOP", "LEASE", "600000", "FROM", "queue"]);
    node.kill();
    node.restart();
    let mut client = node.client();
    assert_eq!(client.cmd(&["LOCK", "lock", "me"]), int(token), "the same holder, the same token");
    assert_eq!(client.cmd(&["QLEN", "queue", "LEASED"]), int(1));
    assert_eq!(client.cmd(&["QACK", "queue", &format!("{id}:1")]), int(1));
    assert!(client.cmd(&["LOCK", "other", "me"]).integer() > token);
}

/// Starts a stopped node that must refuse, and gives its status and what it said.
fn refusal(node: &Node) -> (Option<i32>, String) {
    let data = node.data_dir();
    let ports: Vec<String> = (0..2).map(|_| free_port().to_string()).collect();
    let args = ["--dir", data.to_str().unwrap(), "--port", &ports[0], "--http-port", &ports[1], "--logfile"];
    let log = data.with_extension("log");
    let output = run_to_end(&[&args[..], &[log.to_str().unwrap()]].concat());
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// The newest file of the log.
fn log_file(node: &Node) -> PathBuf {
    let files = fs::read_dir(node.data_dir().join("log")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|found| found == "log")).max().unwrap()
}

#[test]
fn a_damaged_or_shortened_log_is_refused_in_one_line_with_a_status_of_its_own() {
    let mut node = Node::start(&[]);
    let mut client = node.client();
    let sets: Vec<Vec<String>> =
        (0..2_000).map(|n| ["SET", &format!("key{n}"), "value"].map(str::to_owned).to_vec()).collect();
    // Several writes of the log, each a record.
    sets.chunks(10).for_each(|sets| drop(client.pipeline(sets)));
    assert_eq!(node.stop().code(), Some(0));
    let file = log_file(&node);
    let whole = fs::read(&file).unwrap();

    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 0x08;
    fs::write(&file, &damaged).unwrap();
    let (status, line) = refusal(&node);
    assert_eq!(status, Some(65), "{line}");
    let place = node.data_dir().join("log");
    assert!(line.lines().count() == 1 && line.contains(place.to_str().unwrap()), "{line}");
    assert!(line.contains("is damaged") && line.contains("backup"), "{line}");

    // The last record but one bit is what a power cut may leave; that it was synced is known.
    for length in [whole.len() - 1, whole.len() / 2, 0] {
        fs::write(&file, &whole[..length]).unwrap();
        let (status, line) = refusal(&node);
        assert_eq!(status, Some(66), "{line}");
        assert!(line.lines().count() == 1 && line.contains("lost synced writes"), "{line}");
        assert!(line.contains(place.to_str().unwrap()) && line.contains("backup"), "{line}");
        assert_eq!(fs::read(&file).unwrap(), &whole[..length], "it is left as it is");
    }
    fs::write(&file, &whole).unwrap();
    node.restart();
    assert_eq!(node.client().cmd(&["DBSIZE"]), int(2_000));
}

#[test]
fn a_data_directory_that_is_removed_ends_the_node_instead_of_its_promises() {
    let mut node = Node::start(&[]);
    assert_eq!(node.client().cmd(&["SET", "a", "1"]), ok());
    fs::remove_dir_all(node.data_dir()).unwrap();
    assert_eq!(node.wait().code(), Some(70));
    assert!(node.log().contains("the data directory is gone"), "{}", node.log());
}

#[test]
fn many_keys_and_leases_that_end_at_once_keep_nobody_waiting_for_long() {
    let node = Node::start(&["--appendfsync", "no"]);
    let mut client = node.client();
    let sets: Vec<Vec<String>> = (0..20_000)
        .map(|n| ["SET", &format!("short:{n}"), "v", "PX", "300"].map(str::to_owned).to_vec())
        .collect();
    client.pipeline(&sets);
    let pushes: Vec<Vec<&str>> = (0..5_000).map(|_| vec!["QPUSH", "queue", "payload"]).collect();
    client.pipeline(&pushes);
    for _ in 0..5 {
        client.cmd(&["QPOP", "COUNT", "1000", "LEASE", "2000", "FROM", "queue"]);
    }
    crate::support::wait_for("everything to end", holdfast::types::Millis(30_000), || {
        let ready = client.cmd(&["QLEN", "queue"]).integer();
        (client.cmd(&["DBSIZE"]) == int(1) && ready == 5_000).then_some(())
    });
    // Nothing was ended twice, and every message is handed out again under its next delivery.
    let again = client.cmd(&["QPOP", "LEASE", "60000", "FROM", "queue"]);
    assert!(again.items()[0].items()[1].text().ends_with(":2"), "{again:?}");
}

/// A node that has pushed payloads which are on disk and not in memory.
fn with_cold_payloads() -> Node {
    let mut node = Node::start(&["--queue-memory", "1mb", "--flush-interval", "20"]);
    let mut client = node.client();
    let payload = "p".repeat(2_000);
    for _ in 0..40 {
        let pushes: Vec<Vec<&str>> = (0..100).map(|_| vec!["QPUSH", "queue", &payload]).collect();
        client.pipeline(&pushes);
    }
    // A stop brings all to disk, and a start reads no payloads.
    assert_eq!(node.stop().code(), Some(0));
    node.restart();
    node
}

#[test]
fn a_payload_that_is_damaged_while_a_node_alone_runs_ends_it_and_its_starts_with_the_place_and_a_status_of_its_own()
 {
    // Read by an entry of the log, and by a command that is not in the log.
    let reads: [&[&str]; 2] =
        [&["QPOP", "COUNT", "1000", "FROM", "queue"], &["QPEEK", "queue", "COUNT", "1000"]];
    for read in reads {
        let mut node = with_cold_payloads();
        let tables = node.data_dir().join("data/0");
        let whole: Vec<(PathBuf, Vec<u8>)> = fs::read_dir(&tables)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|found| found == "sst"))
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect();
        assert!(harm_tables(&node.data_dir()) > 0);
        // The answer may be lost with the node.
        let _ = node.client().try_cmd(read);
        assert_eq!(node.wait().code(), Some(65));
        let log = node.log();
        let line = log.lines().find(|line| line.starts_with("holdfast: fatal: ")).unwrap();
        assert!(line.contains("is damaged") && line.contains(".sst") && line.contains("backup"), "{line}");
        for _ in 0..2 {
            let (status, line) = refusal(&node);
            assert_eq!(status, Some(65), "{line}");
            assert!(line.lines().count() == 1 && line.contains(".sst") && line.contains("backup"), "{line}");
        }
        whole.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
        node.restart();
        let answer = node.client().cmd(read);
        assert!(!answer.is_error(), "{answer:?}");
        assert_eq!(node.stop().code(), Some(0));
    }
}
