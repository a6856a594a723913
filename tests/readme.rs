//! The README's first session, typed as it stands into redis-cli, answers as printed.

#![expect(clippy::unwrap_used, reason = "a test stops where a fact does not hold")]

mod support;

use std::io::Write;
use std::process::Command;
use std::process::Stdio;

use support::node::Node;

const PROMPT: &str = "127.0.0.1:6379";

/// The commands of the session, and what is printed between them.
fn session() -> (Vec<String>, Vec<String>) {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let block = readme.split("$ redis-cli\n").nth(1).unwrap().split("```").next().unwrap();
    let (mut commands, mut answers) = (Vec::new(), Vec::new());
    for line in block.lines() {
        match line.strip_prefix(PROMPT) {
            Some(rest) => commands.push(rest.trim_start_matches("(TX)").trim_start_matches("> ").to_owned()),
            None => answers.push(line.to_owned()),
        }
    }
    (commands, answers)
}

#[test]
fn the_first_session_answers_as_printed() {
    let node = Node::start(&[]);
    let (commands, answers) = session();
    assert!(commands.len() > 10, "{commands:?}");
    let mut cli = Command::new("redis-cli")
        .args(["-p", &node.port().to_string(), "--no-raw"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    cli.stdin.take().unwrap().write_all((commands.join("\n") + "\n").as_bytes()).unwrap();
    let printed = String::from_utf8(cli.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(printed.lines().collect::<Vec<_>>(), answers);
}
