//! The same commands to Holdfast and to Debian's redis-server: the same replies.
//!
//! Sequences of up to 200 commands over two connections, in RESP2 and RESP3, are random but start from a fixed seed,
//! so that a failure comes again, and are shrunk to the few commands that make the difference. `DIFFERENTIAL_CASES`
//! (sequences) goes on for longer, `DIFFERENTIAL_SEED` begins elsewhere. Everything must be equal to the byte but for
//! what `differential/explained.rs` lists with its reason. Left out is what Redis does only because it is written in
//! C: texts that end at a zero byte, hexadecimal floats.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "differential/explained.rs"]
mod explained;
mod support;
#[path = "differential/templates.rs"]
mod templates;

use std::cell::RefCell;
use std::fmt::Debug;
use std::io;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::process::Command;
use std::process::Stdio;

use holdfast::commands::table;
use holdfast::types::Millis;
use proptest::collection::vec;
use proptest::prelude::Strategy;
use proptest::prelude::any;
use proptest::sample::select;
use proptest::test_runner::Config;
use proptest::test_runner::RngAlgorithm;
use proptest::test_runner::TestCaseError;
use proptest::test_runner::TestError;
use proptest::test_runner::TestRng;
use proptest::test_runner::TestRunner;

use crate::explained::EXPLAINED;
use crate::explained::NOT_COMPARED;
use crate::explained::OWN_ROWS;
use crate::explained::is_explained;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::encode;
use crate::support::client::error;
use crate::support::client::simple;
use crate::support::node::Directory;
use crate::support::node::Guarded;
use crate::support::node::Node;
use crate::support::node::free_port;
use crate::support::number_from_env;
use crate::support::wait_for;
use crate::templates::KEYS;
use crate::templates::TEMPLATES;
use crate::templates::Word;

const CONNECTIONS: usize = 2;

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
        println!(
            "SKIPPED: redis-server is not installed, so there is nothing to compare with (.ci/setup tests)"
        );
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

/// The connections to one server.
struct Server {
    name: &'static str,
    address: SocketAddr,
    clients: [Client; CONNECTIONS],
}

impl Server {
    fn new(name: &'static str, address: SocketAddr) -> Server {
        Server { name, address, clients: std::array::from_fn(|_| Client::connect(address)) }
    }

    /// Sends commands at once and reads their replies. After a failure all connections are new.
    fn run(&mut self, connection: usize, commands: &[Vec<Word>]) -> Result<Vec<Value>, String> {
        let mut requests = Vec::new();
        for words in commands {
            encode(words.iter().map(Vec::as_slice), &mut requests);
        }
        let replies = self.exchange(connection, &requests, commands.len());
        replies.map_err(|error| format!("{} gave no reply: {error}", self.name))
    }

    fn connect_anew(&mut self) {
        self.clients = std::array::from_fn(|_| Client::connect(self.address));
    }

    fn exchange(&mut self, connection: usize, bytes: &[u8], replies: usize) -> io::Result<Vec<Value>> {
        let client = &mut self.clients[connection];
        client.try_send_raw(bytes)?;
        (0..replies).map(|_| client.try_read()).collect()
    }

    /// All keys that SCAN finds, a few at a time.
    fn scan(&mut self) -> Result<Vec<Vec<u8>>, String> {
        const PAGES_MAX: usize = 100;
        let (mut cursor, mut keys) = ("0".to_owned(), Vec::new());
        for _ in 0..PAGES_MAX {
            let reply = self.run(0, &[words(&format!("SCAN {cursor} COUNT 3"))])?.remove(0);
            let [next, found] = reply.items() else { return Err(format!("SCAN gave {reply:?}")) };
            keys.extend(found.items().iter().map(|key| match key {
                Value::Bulk(key) => key.clone(),
                other => panic!("a key is a bulk string, not {other:?}"),
            }));
            cursor = next.text();
            if cursor == "0" {
                keys.sort();
                keys.dedup();
                return Ok(keys);
            }
        }
        Err(format!("{}: SCAN did not end", self.name))
    }
}

fn words(line: &str) -> Vec<Word> {
    line.split(' ').map(|word| word.as_bytes().to_vec()).collect()
}

fn shown(command: &[Word]) -> String {
    let shown: Vec<String> = command.iter().map(|word| format!("\"{}\"", word.escape_ascii())).collect();
    shown.join(" ")
}

fn runner(cases: u64) -> TestRunner {
    let seed = number_from_env("DIFFERENTIAL_SEED", 1);
    println!("{cases} sequences from seed {seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let cases = u32::try_from(cases).unwrap();
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 6_000, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// Fails with what was different alone: the commands stand in it already, as they were sent.
fn fail_with_reason<T: Debug>(outcome: Result<(), TestError<T>>) {
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, _)) => panic!("{why}"),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn replies_are_those_of_redis() {
    let directory = Directory::new();
    let Some((_redis, address)) = start_redis(&directory) else { return };
    // Redis answers the hundredth wrong password as fast as the first.
    let node = Node::start(&["--appendfsync", "no", "--auth-failures-free", "0"]);
    let servers = RefCell::new([Server::new("Holdfast", node.address()), Server::new("Redis", address)]);
    let cases = number_from_env("DIFFERENTIAL_CASES", 400);
    let sent = RefCell::new(0);
    let outcome = runner(cases).run(&templates::sequences(), |(drafts, is_resp3)| {
        let commands = drafts.iter().enumerate().map(|(at, draft)| (draft.connection, draft.words(at)));
        let commands = without_hello_in_transactions(commands.collect());
        *sent.borrow_mut() += commands.len();
        let mut servers = servers.borrow_mut();
        let outcome = compare(&mut servers, &commands, is_resp3);
        if outcome.is_err() {
            // A reply too many would be taken for that of the next command.
            servers.iter_mut().for_each(Server::connect_anew);
        }
        outcome.map_err(TestCaseError::fail)
    });
    println!("{} commands", sent.borrow());
    fail_with_reason(outcome);
}

/// EXEC's reply is written in the protocol that holds after it; Redis writes each of its elements in the protocol of
/// that moment, so that a HELLO among them changes it in the middle. Nobody can want that, and it is left out.
fn without_hello_in_transactions(commands: Vec<(usize, Vec<Word>)>) -> Vec<(usize, Vec<Word>)> {
    let mut is_open = [false; CONNECTIONS];
    let mut is_kept = |(connection, words): &(usize, Vec<Word>)| {
        let is = |name: &str| words[0].eq_ignore_ascii_case(name.as_bytes());
        // More of an open transaction than there is does no harm.
        is_open[*connection] |= is("MULTI");
        is_open[*connection] &= !(is("EXEC") || is("RESET") && words.len() == 1);
        !(is_open[*connection] && is("HELLO"))
    };
    commands.into_iter().filter(|command| is_kept(command)).collect()
}

/// Runs the commands on both from an empty keyspace, then looks at all that is there.
fn compare(servers: &mut [Server; 2], commands: &[(usize, Vec<Word>)], is_resp3: bool) -> Result<(), String> {
    let protocol = if is_resp3 { "HELLO 3" } else { "HELLO 2" };
    for server in &mut *servers {
        for connection in 0..CONNECTIONS {
            server.run(connection, &[words("RESET"), words("FLUSHALL"), words(protocol)])?;
        }
    }
    let mut transactions: [Transaction; CONNECTIONS] = Default::default();
    let mut before = 0;
    let stands_alone = |words: &[Word]| words[0].eq_ignore_ascii_case(b"WATCH");
    let belong_together = |one: &(usize, Vec<Word>), next: &(usize, Vec<Word>)| {
        one.0 == next.0 && !stands_alone(&one.1) && !stands_alone(&next.1)
    };
    for run in commands.chunk_by(belong_together) {
        let connection = run[0].0;
        let transaction = &mut transactions[connection];
        let lines: Vec<Vec<Word>> = run.iter().map(|(_, words)| words.clone()).collect();
        let explain = |at: usize, difference: String| {
            let all: Vec<String> = commands[..=before + at]
                .iter()
                .map(|(connection, command)| format!("{connection}: {}", shown(command)))
                .collect();
            format!("{difference}\nafter {protocol} and\n{}", all.join("\n"))
        };
        let [ours, theirs] = &mut *servers;
        if stands_alone(&lines[0]) && !transaction.is_open {
            let exists = |key: &Word| vec![b"EXISTS".to_vec(), key.clone()];
            let replies = ours.run(connection, &lines[0][1..].iter().map(exists).collect::<Vec<_>>())?;
            transaction.watches_absent |= replies.contains(&Value::Integer(0));
        }
        let replies =
            ours.run(connection, &lines).and_then(|ours| Ok((ours, theirs.run(connection, &lines)?)));
        let (ours, theirs) = replies.map_err(|error| explain(lines.len() - 1, error))?;
        for (at, command) in lines.iter().enumerate() {
            if transaction.parts_ways(command, &ours[at], &theirs[at]) {
                return Ok(());
            }
            check(command, &ours[at], &theirs[at], transaction)
                .map_err(|difference| explain(at, difference))?;
        }
        before += lines.len();
    }
    compare_keyspaces(servers).map_err(|difference| {
        let all: Vec<String> = commands
            .iter()
            .map(|(connection, command)| format!("{connection}: {}", shown(command)))
            .collect();
        format!("{difference}\nat the end of\n{}", all.join("\n"))
    })
}

/// What MULTI and WATCH left on a connection.
#[derive(Default)]
struct Transaction {
    is_open: bool,
    queued: Vec<Vec<Word>>,
    /// Some of the watched keys were not there.
    watches_absent: bool,
}

impl Transaction {
    /// True when only one of the two ran the transaction, for a reason that is known: from here on they have other
    /// keys, and the sequence ends.
    fn parts_ways(&self, command: &[Word], ours: &Value, theirs: &Value) -> bool {
        if !command[0].eq_ignore_ascii_case(b"EXEC") {
            return false;
        }
        match (ours, theirs) {
            // A key that was absent when it was watched, came and is gone again: Redis lets the transaction fail, here
            // the key is as it was and the transaction runs. (A row's last change is known, that of no row is not.)
            (Value::Array(_), Value::Null | Value::NullArray) => self.watches_absent,
            // What replies might take is estimated before, and a SETRANGE that will change nothing counts as one that
            // makes a string of 512 MiB.
            (Value::Error(text), Value::Array(_)) => {
                let has_setrange = self.queued.iter().any(|words| words[0].eq_ignore_ascii_case(b"SETRANGE"));
                has_setrange && text.starts_with("EXECABORT the replies of this transaction would take")
            }
            _ => false,
        }
    }

    fn on_reply(&mut self, command: &[Word], reply: &Value) {
        let name = String::from_utf8_lossy(&command[0]).to_ascii_uppercase();
        match name.as_str() {
            _ if *reply == simple("QUEUED") => self.queued.push(command.to_vec()),
            "MULTI" if !reply.is_error() => self.is_open = true,
            // EXEC with a word too many ends the transaction all the same.
            "EXEC" if *reply != error("ERR EXEC without MULTI") => *self = Transaction::default(),
            "DISCARD" | "RESET" if !reply.is_error() => *self = Transaction::default(),
            "UNWATCH" if !reply.is_error() => self.watches_absent = false,
            _ => {}
        }
    }
}

/// Compares a reply; EXEC's element by element, with what was queued on this connection.
fn check(
    command: &[Word],
    ours: &Value,
    theirs: &Value,
    transaction: &mut Transaction,
) -> Result<(), String> {
    let name = String::from_utf8_lossy(&command[0]).to_ascii_uppercase();
    let is_same = |command: &[Word], ours: &Value, theirs: &Value| {
        ours == theirs || is_explained(command, ours, theirs)
    };
    let difference = |command: &[Word], ours: &Value, theirs: &Value| {
        Err(format!("{}\nours  {ours:?}\nRedis {theirs:?}", shown(command)))
    };
    match (ours, theirs) {
        (Value::Array(our_items), Value::Array(their_items)) if name == "EXEC" => {
            if our_items.len() != their_items.len() || our_items.len() != transaction.queued.len() {
                return difference(command, ours, theirs);
            }
            for ((ours, theirs), command) in our_items.iter().zip(their_items).zip(&transaction.queued) {
                if !is_same(command, ours, theirs) {
                    return difference(command, ours, theirs);
                }
            }
        }
        _ if !is_same(command, ours, theirs) => return difference(command, ours, theirs),
        _ => {}
    }
    transaction.on_reply(command, ours);
    Ok(())
}

fn compare_keyspaces(servers: &mut [Server; 2]) -> Result<(), String> {
    let mut commands = vec![words("RESET")];
    for db in 0..16 {
        commands.push(words(&format!("SELECT {db}")));
        commands.push(words("KEYS *"));
        let keys = KEYS.iter().filter(|_| db < 2);
        for name in ["GET", "PTTL"] {
            commands.extend(keys.clone().map(|key| vec![name.into(), key.as_bytes().to_vec()]));
        }
    }
    commands.push(words("SELECT 0"));
    let [ours, theirs] = servers;
    let (our_replies, their_replies) = (ours.run(0, &commands)?, theirs.run(0, &commands)?);
    for (at, command) in commands.iter().enumerate() {
        check(command, &our_replies[at], &their_replies[at], &mut Transaction::default())?;
    }
    let (ours, theirs) = (ours.scan()?, theirs.scan()?);
    if ours == theirs { Ok(()) } else { Err(format!("SCAN finds {ours:?}, in Redis {theirs:?}")) }
}

#[test]
fn lines_typed_by_hand_are_read_as_redis_reads_them() {
    let directory = Directory::new();
    let Some((_redis, address)) = start_redis(&directory) else { return };
    let node = Node::start(&[]);
    let line = vec(select(&b"ab \"\"'\\x4\t1n\r"[..]), 0..24);
    let line = (line, any::<bool>()).prop_map(|(line, is_carriage_return)| {
        [&b"ECHO "[..], &line, if is_carriage_return { &b"\r\n"[..] } else { b"\n" }].concat()
    });
    let servers = RefCell::new([Server::new("Holdfast", node.address()), Server::new("Redis", address)]);
    let outcome = runner(number_from_env("DIFFERENTIAL_CASES", 400)).run(&line, |line| {
        let replies = servers.borrow_mut().each_mut().map(|server| {
            let reply = server.exchange(0, &line, 1).map(|mut replies| replies.remove(0));
            let is_fatal = matches!(&reply, Ok(Value::Error(text)) if text.contains("Protocol error"));
            if is_fatal || reply.is_err() {
                server.connect_anew();
            }
            reply.map_err(|error| error.to_string())
        });
        let [ours, theirs] = replies;
        let why = format!("\"{}\": ours {ours:?}, Redis {theirs:?}", line.escape_ascii());
        if ours == theirs { Ok(()) } else { Err(TestCaseError::fail(why)) }
    });
    fail_with_reason(outcome);
}

#[test]
fn subscribers_are_answered_as_in_redis() {
    let directory = Directory::new();
    let Some((_redis, address)) = start_redis(&directory) else { return };
    let node = Node::start(&[]);
    let mut servers = [Server::new("Holdfast", node.address()), Server::new("Redis", address)];
    for (line, replies) in [
        ("UNSUBSCRIBE", 1),
        ("PUNSUBSCRIBE p", 1),
        ("UNSUBSCRIBE a b", 2),
        ("SUBSCRIBE a b a", 3),
        ("PSUBSCRIBE p* p*", 2),
        ("GET a", 1),
        ("SUBSCRIBE", 1),
        ("PING", 1),
        ("PING x", 1),
        ("PING x y", 1),
        ("MULTI", 1),
        ("CLIENT ID", 1),
        ("NOSUCH", 1),
        ("UNSUBSCRIBE a c", 2),
        ("UNSUBSCRIBE", 1),
        ("PUNSUBSCRIBE", 1),
        ("PING", 1),
        ("SUBSCRIBE a", 1),
        ("RESET", 1),
        ("ECHO free", 1),
    ] {
        let line = format!("{line}\r\n");
        let [ours, theirs] =
            servers.each_mut().map(|server| server.exchange(0, line.as_bytes(), replies).unwrap());
        assert_eq!(ours, theirs, "{line}");
    }
}

/// The names of all commands of the table, of containers with each subcommand.
fn all_commands() -> Vec<String> {
    let names = |spec: &'static holdfast::commands::spec::CommandSpec| -> Vec<String> {
        let subcommands = spec.subcommands.iter().filter(|sub| sub.name != "help");
        let mut names: Vec<String> = subcommands.map(|sub| format!("{} {}", spec.name, sub.name)).collect();
        // A container that runs by itself, as COMMAND does.
        if names.is_empty() || spec.arity == -1 {
            names.push(spec.name.to_owned());
        }
        names
    };
    table::all().flat_map(names).collect()
}

#[test]
fn every_command_is_compared_or_says_why_not() {
    let commands = all_commands();
    let is_sent = |name: &str| {
        let is_it = |template: &&str| {
            let template = template.to_ascii_lowercase();
            template == name || template.starts_with(&format!("{name} "))
        };
        let is_container = commands.iter().any(|other| other.starts_with(&format!("{name} ")));
        !is_container && TEMPLATES.iter().any(is_it)
    };
    for name in &commands {
        let is_excused = NOT_COMPARED.iter().any(|(excused, _)| excused == name);
        assert!(is_sent(name) != is_excused, "{name} is sent or excused, one of the two");
    }
    for (name, why) in NOT_COMPARED {
        assert!(commands.iter().any(|command| command == name) && !why.is_empty(), "{name}");
    }
    // LCS is no command of this version, and COMMAND comes of its subcommands' templates.
    for row in EXPLAINED.iter().filter(|row| !["LCS", "COMMAND"].contains(&row.command)) {
        assert!(!row.why.is_empty() && is_sent(&row.command.to_ascii_lowercase()), "{}", row.command);
    }
}

#[test]
fn commands_have_the_arity_and_the_keys_that_redis_tells() {
    /// Name, arity, first and last key, step, by name; nothing for an unknown command.
    fn described(reply: &Value) -> Vec<(String, [i64; 4])> {
        let Value::Array(row) = reply else { return Vec::new() };
        let number = |at: usize| row[at].integer();
        let mut all = vec![(row[0].text(), [number(1), number(3), number(4), number(5)])];
        if let Some(Value::Array(subcommands)) = row.get(9) {
            all.extend(subcommands.iter().flat_map(described));
        }
        all
    }
    let directory = Directory::new();
    let Some((_redis, address)) = start_redis(&directory) else { return };
    let node = Node::start(&[]);
    let names: Vec<&str> = table::all().map(|spec| spec.name).collect();
    let request: Vec<&str> = ["COMMAND", "INFO"].into_iter().chain(names.iter().copied()).collect();
    let (ours, theirs) = (node.client().cmd(&request), Client::connect(address).cmd(&request));
    let mut different = Vec::new();
    for (name, (ours, theirs)) in names.iter().zip(ours.items().iter().zip(theirs.items())) {
        let (ours, theirs) = (described(ours), described(theirs));
        assert!(!ours.is_empty(), "{name} describes itself");
        for (command, numbers) in
            ours.into_iter().filter(|(command, _)| !OWN_ROWS.iter().any(|(own, _)| own == command))
        {
            if let Some((_, expected)) = theirs.iter().find(|(other, _)| *other == command)
                && numbers != *expected
            {
                different.push(format!("{command}: ours {numbers:?}, Redis {expected:?}"));
            }
        }
    }
    assert!(different.is_empty(), "arity, first key, last key, step:\n{}", different.join("\n"));
}
