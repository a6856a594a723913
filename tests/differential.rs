//! The same commands to Holdfast and to Debian's redis-server: the same replies.
//!
//! Sequences are random but start from a fixed seed, so that a failure comes again; `DIFFERENTIAL_SEED` and
//! `DIFFERENTIAL_CASES` go further. Times to live may differ by the time between the two answers, and keys come in
//! no order; everything else must be equal to the byte. Left out is what Redis does only because it is written in C:
//! texts that end at a zero byte, hexadecimal floats.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::cell::RefCell;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::process::Command;
use std::process::Stdio;

use holdfast::types::Millis;
use proptest::collection::vec;
use proptest::prelude::Strategy;
use proptest::sample::select;
use proptest::test_runner::Config;
use proptest::test_runner::RngAlgorithm;
use proptest::test_runner::TestCaseError;
use proptest::test_runner::TestRng;
use proptest::test_runner::TestRunner;

use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::simple;
use crate::support::node::Directory;
use crate::support::node::Guarded;
use crate::support::node::Node;
use crate::support::node::free_port;
use crate::support::wait_for;

/// Commands; a one-letter word stands for one of a pool: K a key, V a value, I an integer, F a float, T a time to
/// live, O an offset, P a pattern.
const TEMPLATES: &[&str] = &[
    "GET K",
    "GET K",
    "SET K V",
    "SET K V",
    "SET K I",
    "SET K F",
    "SET K V NX",
    "SET K V XX",
    "SET K V GET",
    "SET K V NX GET",
    "SET K V XX GET",
    "SET K V EX T",
    "SET K V PX T",
    "SET K V EX T NX",
    "SET K V KEEPTTL",
    "SET K V KEEPTTL EX T",
    "SET K V EXAT 33177117420",
    "SET K V PXAT 33177117420000",
    "SET K V NX XX",
    "SETNX K V",
    "SETEX K T V",
    "PSETEX K T V",
    "GETSET K V",
    "GETDEL K",
    "GETEX K",
    "GETEX K EX T",
    "GETEX K PX T",
    "GETEX K PERSIST",
    "GETEX K EXAT 33177117420",
    "GETEX K EX T PERSIST",
    "MGET K K",
    "MGET K K K",
    "MSET K V K V",
    "MSET K I",
    "MSETNX K V K V",
    "MSETNX K V",
    "APPEND K V",
    "APPEND K I",
    "STRLEN K",
    "GETRANGE K O O",
    "SUBSTR K O O",
    "SETRANGE K O V",
    "INCR K",
    "INCR K",
    "DECR K",
    "INCRBY K I",
    "DECRBY K I",
    "INCRBYFLOAT K F",
    "INCRBYFLOAT K I",
    "DEL K",
    "DEL K K",
    "UNLINK K K",
    "EXISTS K",
    "EXISTS K K",
    "TYPE K",
    "TOUCH K K",
    "EXPIRE K T",
    "EXPIRE K T NX",
    "EXPIRE K T XX",
    "EXPIRE K T GT",
    "EXPIRE K T LT",
    "EXPIRE K T NX XX",
    "EXPIRE K T GT LT",
    "EXPIRE K T nosuch",
    "PEXPIRE K T",
    "PEXPIRE K T GT",
    "EXPIREAT K 33177117420",
    "EXPIREAT K T",
    "PEXPIREAT K 33177117420000",
    "PEXPIREAT K T",
    "TTL K",
    "PTTL K",
    "EXPIRETIME K",
    "PEXPIRETIME K",
    "PERSIST K",
    "RENAME K K",
    "RENAMENX K K",
    "COPY K K",
    "COPY K K REPLACE",
    "COPY K K DB 1",
    "COPY K K DB 1 REPLACE",
    "COPY K K DB 99",
    "MOVE K 1",
    "MOVE K I",
    "KEYS P",
    "DBSIZE",
    "FLUSHDB",
    "SELECT 0",
    "SELECT 1",
    "SELECT I",
    "OBJECT ENCODING K",
    "ECHO V",
    "PING",
    "PING V",
    "MULTI",
    "EXEC",
    "EXEC",
    "DISCARD",
    "NOSUCH K V",
    "SCAN abc",
    "SCAN 0 COUNT O",
    "LCS",
];

const KEYS: &[&str] = &["a", "b", "c", "d", "{t}e", ""];
const VALUES: &[&str] =
    &["", "v", "value", "Hello World", "3", "-7", "3.0", " 1", "1 ", "+1", "\r\n", "\0", "é"];
const INTEGERS: &[&str] = &[
    "0",
    "1",
    "-1",
    "7",
    "10",
    "-10",
    "100",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "01",
    "1.0",
    "abc",
    "-0",
];
const FLOATS: &[&str] = &[
    "0.1",
    "-0.1",
    "1.5",
    "3.0e3",
    "1e-5",
    "0",
    "-0",
    "100000000000000000000",
    "1.1234567890123456",
    "inf",
    "-inf",
    "nan",
    "abc",
    "1e5000",
    "0.5 ",
    "",
    "17179869184.25",
];
const LIFETIMES: &[&str] = &[
    "1000",
    "2000",
    "100000",
    "5000000",
    "0",
    "-1",
    "-100",
    "abc",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775",
    "1.5",
];
const OFFSETS: &[&str] = &["0", "1", "2", "5", "10", "-1", "-2", "-5", "-100", "100", "abc", "536870912"];
const PATTERNS: &[&str] = &["*", "a", "?", "[a-c]", "[^a]", "{t}*", "", "\\a", "*e", "nosuch*"];

/// One command, before its pools are drawn from.
#[derive(Debug, Clone)]
struct Draft {
    template: &'static str,
    picks: Vec<usize>,
    /// 0 drops the last word, 1 adds one, 2 spells the name otherwise; more is as it stands.
    twist: u8,
}

impl Draft {
    fn words(&self) -> Vec<String> {
        let mut picks = self.picks.iter();
        let mut pick = |pool: &[&str]| pool[picks.next().unwrap() % pool.len()].to_owned();
        let mut words: Vec<String> = self
            .template
            .split(' ')
            .map(|word| match word {
                "K" => pick(KEYS),
                "V" => pick(VALUES),
                "I" => pick(INTEGERS),
                "F" => pick(FLOATS),
                "T" => pick(LIFETIMES),
                "O" => pick(OFFSETS),
                "P" => pick(PATTERNS),
                word => word.to_owned(),
            })
            .collect();
        match self.twist {
            0 if words.len() > 1 => drop(words.pop()),
            1 => words.push("extra".to_owned()),
            2 => words[0] = words[0].to_lowercase(),
            _ => {}
        }
        words
    }
}

fn drafts() -> impl Strategy<Value = Vec<Draft>> {
    let draft = (select(TEMPLATES), vec(0_usize..1000, 6), 0_u8..30)
        .prop_map(|(template, picks, twist)| Draft { template, picks, twist });
    vec(draft, 1..40)
}

/// Redis without any disk, or `None` where it is not installed.
fn start_redis(directory: &Directory) -> Option<(Guarded, SocketAddr)> {
    let port = free_port();
    let mut command = Command::new("redis-server");
    command.args([
        "--bind",
        "127.0.0.1",
        "--port",
        &port.to_string(),
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
    ]);
    command.arg(directory.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err() {
        return None;
    }
    let process = Guarded::spawn(command, directory.path());
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    wait_for("redis-server to serve", Millis(10_000), || {
        let mut client = Client::try_connect(address).ok()?;
        (client.cmd(&["PING"]) == simple("PONG")).then_some(())
    });
    Some((process, address))
}

#[test]
fn replies_are_those_of_redis() {
    let directory = Directory::new();
    let Some((_redis, address)) = start_redis(&directory) else {
        println!(
            "SKIPPED: redis-server is not installed, so there is nothing to compare with (.ci/setup tests)"
        );
        return;
    };
    let node = Node::start(&["--appendfsync", "no"]);
    let clients = RefCell::new((node.client(), Client::connect(address)));
    let seed = from_environment("DIFFERENTIAL_SEED", 1);
    let cases = u32::try_from(from_environment("DIFFERENTIAL_CASES", 1_500)).unwrap();
    println!("{cases} sequences from seed {seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 4_000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let outcome = runner.run(&drafts(), |drafts| {
        let commands: Vec<Vec<String>> = drafts.iter().map(Draft::words).collect();
        let (ours, theirs) = &mut *clients.borrow_mut();
        compare(ours, theirs, &commands).map_err(TestCaseError::fail)
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

/// Runs the commands on both from an empty keyspace, then looks at all that is there.
fn compare(ours: &mut Client, theirs: &mut Client, commands: &[Vec<String>]) -> Result<(), String> {
    for client in [&mut *ours, &mut *theirs] {
        client.pipeline(&[words("RESET"), words("FLUSHALL")]);
    }
    let mut after = vec![words("RESET")];
    for db in ["0", "1"] {
        after.push(words(&format!("SELECT {db}")));
        after.push(words("KEYS *"));
        for key in KEYS {
            after.push(vec!["GET".to_owned(), (*key).to_owned()]);
            after.push(vec!["PTTL".to_owned(), (*key).to_owned()]);
        }
    }
    let all: Vec<Vec<String>> = commands.iter().cloned().chain(after).collect();
    let (our_replies, their_replies) = (ours.pipeline(&all), theirs.pipeline(&all));
    let mut queued: Vec<&Vec<String>> = Vec::new();
    for (at, command) in all.iter().enumerate() {
        let (our_reply, their_reply) = (&our_replies[at], &their_replies[at]);
        let name = command[0].to_ascii_uppercase();
        let same = match (our_reply, their_reply) {
            (Value::Array(ours), Value::Array(theirs)) if name == "EXEC" => {
                ours.len() == theirs.len()
                    && ours
                        .iter()
                        .zip(theirs)
                        .zip(&queued)
                        .all(|((ours, theirs), command)| equal(command, ours, theirs))
            }
            _ => equal(command, our_reply, their_reply),
        };
        if !same {
            let before: Vec<String> = all[..=at].iter().map(|command| format!("{command:?}")).collect();
            return Err(format!("ours {our_reply:?}\nRedis {their_reply:?}\nafter\n{}", before.join("\n")));
        }
        match name.as_str() {
            _ if *our_reply == simple("QUEUED") => queued.push(command),
            "EXEC" | "DISCARD" | "RESET" => queued.clear(),
            _ => {}
        }
    }
    Ok(())
}

/// Equal, but for what no two servers can answer alike.
fn equal(command: &[String], ours: &Value, theirs: &Value) -> bool {
    /// What may lie between the two answers, in milliseconds.
    const APART_MS: i64 = 3_000;
    match (command[0].to_ascii_uppercase().as_str(), ours, theirs) {
        ("TTL" | "EXPIRETIME", Value::Integer(ours), Value::Integer(theirs)) if *theirs > 0 => {
            ours.abs_diff(*theirs) <= APART_MS as u64 / 1000
        }
        ("PTTL" | "PEXPIRETIME", Value::Integer(ours), Value::Integer(theirs)) if *theirs > 0 => {
            ours.abs_diff(*theirs) <= APART_MS as u64
        }
        ("KEYS", Value::Array(ours), Value::Array(theirs)) => sorted(ours) == sorted(theirs),
        // The order of a scan is each server's own; that everything is found is tested elsewhere.
        ("SCAN", Value::Array(_), Value::Array(_)) => true,
        // How a string is kept depends in Redis on what wrote it, here on what it is.
        ("OBJECT", Value::Bulk(_), Value::Bulk(_)) => true,
        // Known to Redis and not to this version.
        ("LCS", Value::Error(_), Value::Error(_)) => true,
        (_, ours, theirs) => ours == theirs,
    }
}

fn sorted(keys: &[Value]) -> Vec<String> {
    let mut keys: Vec<String> = keys.iter().map(Value::text).collect();
    keys.sort();
    keys
}
