//! Starting, stopping and refusing to start: what an operator sees.

use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::process::Output;

use holdfast::storage::FORMAT_VERSION;

use crate::support::client::Value;
use crate::support::client::bulk;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::node::Directory;
use crate::support::node::Node;
use crate::support::node::free_port;
use crate::support::node::run_to_end;

/// One line on standard error that says all of `words`, and exit status 1.
fn assert_refused(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

#[test]
fn sigterm_answers_what_is_in_flight_and_keeps_the_data() {
    for appendfsync in ["always", "everysec", "no"] {
        let mut node = Node::start(&["--appendfsync", appendfsync]);
        let mut client = node.client();
        client.cmd(&["SET", "kept", "value"]);
        client.cmd(&["SET", "leased", "value", "EX", "1000"]);
        let token = client.cmd(&["LOCK", "lock", "me", "EX", "600"]).integer();
        client.cmd(&["QPUSH", "queue", "message"]);
        let commands: Vec<Vec<&str>> = (0..5_000).map(|_| vec!["INCR", "counter"]).collect();
        let replies = client.pipeline(&commands);
        assert_eq!(replies.last(), Some(&int(5_000)));
        let status = node.stop();
        assert_eq!(status.code(), Some(0), "{}", node.log());
        assert_eq!(client.read_to_close(), "");
        node.restart();
        let mut client = node.client();
        assert_eq!(client.cmd(&["GET", "kept"]), bulk("value"), "{appendfsync}");
        assert_eq!(client.cmd(&["GET", "counter"]), bulk("5000"), "{appendfsync}");
        assert!((900..=1000).contains(&client.cmd(&["TTL", "leased"]).integer()), "{appendfsync}");
        assert_eq!(client.cmd(&["LOCK", "lock", "other"]), Value::Null, "{appendfsync}");
        assert_eq!(client.cmd(&["LOCK", "lock", "me"]), int(token), "{appendfsync}");
        assert_eq!(client.cmd(&["QLEN", "queue"]), int(1), "{appendfsync}");
    }
}

#[test]
fn the_shutdown_command_ends_the_node_in_order() {
    let mut node = Node::start(&[]);
    let mut client = node.client();
    assert_eq!(client.cmd(&["SET", "kept", "value"]), ok());
    client.send(&["SHUTDOWN"]);
    assert_eq!(client.read_to_close(), "");
    assert_eq!(node.wait().code(), Some(0));
    node.restart();
    assert_eq!(node.client().cmd(&["GET", "kept"]), bulk("value"));
}

#[test]
fn acknowledged_writes_survive_kill_nine() {
    let mut node = Node::start(&["--appendfsync", "always"]);
    for round in 1..=3 {
        let mut client = node.client();
        assert_eq!(client.cmd(&["INCR", "rounds"]), int(round));
        assert_eq!(client.cmd(&["SET", &format!("round:{round}"), "v"]), ok());
        node.kill();
        node.restart();
    }
    let mut client = node.client();
    assert_eq!(client.cmd(&["EXISTS", "round:1", "round:2", "round:3"]), int(3));
}

#[test]
fn a_node_alone_may_have_any_port_that_leaves_room_for_http() {
    let output = run_to_end(&["--port", "63535", "--check-config"]);
    assert!(output.status.success(), "{output:?}");
    let output = run_to_end(&["--port", "63536", "--check-config"]);
    assert_refused(&output, &["http-port would be 63536 + 2000", "set http-port too"]);
    let cluster = ["--cluster-node", "1 127.0.0.1:1 2 127.0.0.1:2"];
    let output = run_to_end(&[&["--port", "55536", "--check-config"][..], &cluster].concat());
    assert_refused(&output, &["peer-port would be 55536 + 10000", "set peer-port too"]);
}

#[test]
fn too_little_address_space_is_one_clear_line() {
    let directory = Directory::new();
    let dir = directory.path().join("data");
    let [port, http] = [free_port(), free_port()].map(|port| port.to_string());
    let command = "ulimit -v 1000000; exec \"$@\"";
    let output = Command::new("sh")
        .args([
            "-c",
            command,
            "sh",
            env!("CARGO_BIN_EXE_holdfast"),
            "--port",
            &port,
            "--http-port",
            &http,
            "--dir",
        ])
        .arg(&dir)
        .output()
        .unwrap();
    assert_refused(&output, &["address space", "ulimit -v"]);
    assert_eq!(fs::read_dir(dir).unwrap().count(), 0, "nothing was changed on disk");
}

#[test]
fn a_wrong_directive_is_one_clear_line() {
    let output = run_to_end(&["--nosuch-directive", "1"]);
    assert_refused(&output, &["nosuch-directive"]);
    let output = run_to_end(&["--port", "many"]);
    assert_refused(&output, &["port"]);
    let directory = Directory::new();
    let file = directory.path().join("bad.conf");
    fs::write(&file, "# fine\nport 7000\nmaxclients few\n").unwrap();
    let path = file.to_str().unwrap();
    assert_refused(&run_to_end(&[path]), &["bad.conf", "3", "maxclients"]);
    assert_refused(&run_to_end(&[path, "--check-config"]), &["maxclients"]);
}

#[test]
fn an_unreadable_file_is_one_clear_line() {
    let directory = Directory::new();
    let missing = directory.path().join("missing.conf");
    assert_refused(&run_to_end(&[missing.to_str().unwrap()]), &["missing.conf"]);
    let folder = directory.path().to_str().unwrap();
    assert_refused(&run_to_end(&[folder]), &[folder]);
}

#[test]
fn a_port_in_use_is_one_clear_line() {
    let directory = Directory::new();
    let dir = directory.path().join("data");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().map(|at| (taken, at.port().to_string())).unwrap();
    let [free, other] = [free_port(), free_port()].map(|port| port.to_string());
    let dir = dir.to_str().unwrap();
    let output = run_to_end(&["--port", &taken.1, "--http-port", &free, "--peer-port", &other, "--dir", dir]);
    assert_refused(&output, &[&taken.1, "in use"]);
    let output = run_to_end(&["--port", &free, "--http-port", &taken.1, "--peer-port", &other, "--dir", dir]);
    assert_refused(&output, &[&taken.1, "in use"]);
    assert_eq!(fs::read_dir(dir).unwrap().count(), 0, "nothing was changed on disk");
}

#[test]
fn a_data_directory_of_a_newer_format_is_refused_and_left_alone() {
    let mut node = Node::start(&[]);
    assert_eq!(node.stop().code(), Some(0));
    let format = node.data_dir().join("FORMAT");
    let text = fs::read_to_string(&format).unwrap();
    fs::write(&format, text.replacen(&format!("holdfast-data {FORMAT_VERSION}"), "holdfast-data 99", 1))
        .unwrap();
    let [port, http, peer] = [free_port(), free_port(), free_port()].map(|port| port.to_string());
    let dir = node.data_dir();
    let dir = dir.to_str().unwrap();
    let args = ["--port", &port, "--http-port", &http, "--peer-port", &peer, "--dir", dir];
    assert_refused(&run_to_end(&args), &["newer", "99"]);
    fs::write(&format, text).unwrap();
    node.restart();
}

#[test]
fn a_data_directory_is_used_by_one_process() {
    let node = Node::start(&[]);
    let [port, http, peer] = [free_port(), free_port(), free_port()].map(|port| port.to_string());
    let dir = node.data_dir();
    let dir = dir.to_str().unwrap();
    let output = run_to_end(&["--port", &port, "--http-port", &http, "--peer-port", &peer, "--dir", dir]);
    assert_refused(&output, &["in use by another process"]);
    assert_eq!(node.client().cmd(&["SET", "a", "1"]), ok());
}

#[test]
fn help_version_and_check_config_end_well() {
    let output = run_to_end(&["--version"]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains(env!("CARGO_PKG_VERSION")));
    let output = run_to_end(&["--help"]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("appendfsync"));
    let directory = Directory::new();
    let file = directory.path().join("good.conf");
    fs::write(&file, format!("port 7000\ndir {}\n", directory.path().join("unused").display())).unwrap();
    let output = run_to_end(&[file.to_str().unwrap(), "--check-config"]);
    assert!(output.status.success(), "{output:?}");
    assert!(!directory.path().join("unused").exists());
}
