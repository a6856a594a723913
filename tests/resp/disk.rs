//! A disk that is full, as far as the limits say: they are set above what is free.

use std::fs;

use holdfast::types::Millis;

use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::bulk;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::node::Node;
use crate::support::wait_for;

/// More than any disk has.
const EVERYTHING: &str = "8000000gb";
const PATIENCE: Millis = Millis(20_000);

fn set(client: &mut Client, directive: &str, value: &str) {
    assert_eq!(client.cmd(&["CONFIG", "SET", directive, value]), ok());
}

fn wait_until_disk_is(client: &mut Client, state: &str) {
    wait_for(&format!("the disk to be {state}"), PATIENCE, || {
        let info = client.cmd(&["INFO", "persistence"]).text();
        let is_so = |line: &str| info.lines().any(|other| other == line);
        let allows = match state {
            "ok" => "all",
            "almost_full" => "no_growth",
            _ => "deletions",
        };
        (is_so(&format!("disk_state:{state}")) && is_so(&format!("disk_allows:{allows}"))).then_some(())
    });
}

fn assert_refused(answer: &Value, with: &str) {
    let text = answer.text();
    assert!(text.starts_with(&format!("MISCONF {with}: ")) && text.contains("not executed"), "{text}");
}

#[test]
fn commands_that_add_data_are_refused_before_the_disk_is_full_and_taken_again_when_there_is_room() {
    let node = Node::start(&[]);
    let mut client = node.client();
    assert_eq!(client.cmd(&["MSET", "kept", "value", "gone", "value"]), ok());
    assert_eq!(client.cmd(&["LOCK", "lock", "me"]), int(1));
    let id = client.cmd(&["QPUSH", "queue", "payload"]).text();
    client.cmd(&["QPOP", "LEASE", "600000", "FROM", "queue"]);
    set(&mut client, "disk-free-soft", EVERYTHING);
    wait_until_disk_is(&mut client, "almost_full");
    let almost = "disk almost full";
    assert_refused(&client.cmd(&["SET", "more", "value"]), almost);
    assert_refused(&client.cmd(&["QPUSH", "queue", "more"]), almost);
    assert_refused(&client.cmd(&["LOCK", "other", "me"]), almost);
    assert_eq!(client.cmd(&["MULTI"]), ok());
    assert_refused(&client.cmd(&["SET", "more", "value"]), almost);
    assert_eq!(client.cmd(&["EXEC"]).error_code(), Some("EXECABORT"));
    assert_eq!(client.cmd(&["GET", "kept"]), bulk("value"));
    assert_eq!(client.cmd(&["DEL", "gone"]), int(1));
    assert_eq!(client.cmd(&["EXPIRE", "kept", "10000"]), int(1));
    assert_eq!(client.cmd(&["QACK", "queue", &format!("{id}:1")]), int(1));
    assert_eq!(client.cmd(&["UNLOCK", "lock", "me"]), int(1));
    assert_eq!(node.http("/health").0, 200);
    assert_eq!(node.http("/ready").0, 200);
    let (status, body) = node.http("/ready?write");
    assert!(status == 503 && body.contains("no room for more data"), "{body}");
    let metrics = node.http("/metrics").1;
    for line in ["holdfast_disk_state 1", "holdfast_disk_gate 1"] {
        assert!(metrics.lines().any(|other| other == line), "{line} is not in:\n{metrics}");
    }
    set(&mut client, "disk-free-soft", "no");
    wait_until_disk_is(&mut client, "ok");
    assert_eq!(client.cmd(&["SET", "more", "value"]), ok());
    assert_eq!(node.http("/ready?write").0, 200);
}

#[test]
fn with_a_full_disk_only_deletions_are_written() {
    let node = Node::start(&[]);
    let mut client = node.client();
    assert_eq!(client.cmd(&["MSET", "kept", "value", "gone", "value", "queued", "value"]), ok());
    // Begun while there was room.
    let mut other = node.client();
    for queued in [&["MULTI"][..], &["EXPIRE", "kept", "100"]] {
        other.cmd(queued);
    }
    set(&mut client, "disk-free-hard", EVERYTHING);
    wait_until_disk_is(&mut client, "full");
    let full = "disk full";
    assert_refused(&client.cmd(&["SET", "more", "value"]), full);
    assert_refused(&client.cmd(&["EXPIRE", "kept", "10000"]), full);
    let aborted = other.cmd(&["EXEC"]).text();
    assert!(aborted.starts_with("EXECABORT ") && aborted.contains("disk full"), "{aborted}");
    assert_eq!(client.cmd(&["GET", "kept"]), bulk("value"));
    assert_eq!(client.cmd(&["DEL", "gone"]), int(1));
    client.cmd(&["MULTI"]);
    client.cmd(&["DEL", "queued"]);
    assert_eq!(client.cmd(&["EXEC"]), Value::Array(vec![int(1)]));
    assert_eq!(node.http("/health").0, 200);
    let (status, body) = node.http("/ready");
    assert!(status == 503 && body.contains("disk of this node is full"), "{body}");
    set(&mut client, "disk-free-hard", "auto");
    wait_until_disk_is(&mut client, "ok");
    assert_eq!(client.cmd(&["EXPIRE", "kept", "10000"]), int(1));
    assert!(node.log().contains("the disk is full: "), "{}", node.log());
}

#[test]
fn ballast_is_taken_on_thrown_off_when_the_disk_is_full_and_taken_on_again() {
    let node = Node::start(&[]);
    let mut client = node.client();
    let ballast = node.data_dir().join("ballast");
    assert!(!ballast.exists(), "tests start nodes without");
    let wait_for_ballast = |bytes: Option<u64>| {
        wait_for("the ballast", PATIENCE, || {
            let found = fs::metadata(&ballast).ok().map(|found| found.len());
            (found == bytes).then_some(())
        });
    };
    set(&mut client, "disk-ballast", "1mb");
    wait_for_ballast(Some(1 << 20));
    set(&mut client, "disk-free-hard", EVERYTHING);
    wait_for_ballast(None);
    set(&mut client, "disk-free-hard", "auto");
    wait_for_ballast(Some(1 << 20));
    set(&mut client, "disk-ballast", "no");
    wait_for_ballast(None);
    assert_eq!(client.cmd(&["SET", "key", "value"]), ok());
}

#[test]
fn limits_on_disk_are_sizes_or_words() {
    let node = Node::start(&[]);
    let mut client = node.client();
    for (given, shown) in [("1gb", "1073741824"), ("NO", "no"), ("Auto", "auto"), ("0", "0")] {
        set(&mut client, "disk-free-soft", given);
        assert_eq!(client.cmd(&["CONFIG", "GET", "disk-free-soft"]).items()[1], bulk(shown));
    }
    for given in ["-1", "much", "5%", ""] {
        let answer = client.cmd(&["CONFIG", "SET", "disk-free-soft", given]).text();
        assert!(answer.contains("must be a memory value or one of auto, no"), "{answer}");
    }
}
