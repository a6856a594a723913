//! COMMAND, CONFIG, INFO and the rest that operators and clients' libraries ask.

use std::sync::OnceLock;

use holdfast::types::Millis;

use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::bulk;
use crate::support::client::bulks;
use crate::support::client::error;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::node::Node;
use crate::support::wait_for;

fn node() -> &'static Node {
    static NODE: OnceLock<Node> = OnceLock::new();
    NODE.get_or_init(|| Node::start(&[]))
}

fn client() -> Client {
    node().client()
}

#[test]
fn command_tells_the_table() {
    let mut client = client();
    let count = client.cmd(&["COMMAND", "COUNT"]).integer();
    let all = client.cmd(&["COMMAND"]);
    assert_eq!(all.items().len() as i64, count);
    assert_eq!(client.cmd(&["COMMAND", "LIST"]).items().len() as i64, count);
    let infos = client.cmd(&["COMMAND", "INFO", "get", "nosuch", "LOCK"]);
    let get = infos.items()[0].items();
    assert_eq!(get[0], bulk("get"));
    assert_eq!(get[1], int(2));
    assert_eq!((&get[3], &get[4], &get[5]), (&int(1), &int(1), &int(1)));
    assert!(matches!(infos.items()[1], Value::Null | Value::NullArray));
    assert_eq!(infos.items()[2].items()[0], bulk("lock"));
    let docs = client.cmd(&["COMMAND", "DOCS", "set", "qpush"]);
    assert!(!docs.field("set").field("summary").text().is_empty());
    assert_eq!(docs.field("qpush").field("group").text(), "queues");
    let keys = client.cmd(&["COMMAND", "GETKEYS", "MSET", "a", "1", "b", "2"]);
    assert_eq!(keys, bulks(&["a", "b"]));
    assert_eq!(
        client.cmd(&["COMMAND", "GETKEYS", "QPOP", "COUNT", "1", "FROM", "q1", "q2"]),
        bulks(&["q1", "q2"])
    );
    assert_eq!(
        client.cmd(&["COMMAND", "GETKEYS", "PING", "x"]),
        error("ERR The command has no key arguments")
    );
    assert_eq!(client.cmd(&["COMMAND", "GETKEYS", "nosuch", "x"]), error("ERR Invalid command specified"));
}

#[test]
fn config_can_be_read_and_changed() {
    let node = Node::start(&["--maxclients", "123"]);
    let mut client = node.client();
    assert_eq!(client.cmd(&["CONFIG", "GET", "maxclients"]), bulks(&["maxclients", "123"]));
    // redis-benchmark asks for these two before every test.
    assert_eq!(client.cmd(&["CONFIG", "GET", "save"]), bulks(&["save", ""]));
    assert_eq!(client.cmd(&["CONFIG", "GET", "appendonly"]), bulks(&["appendonly", "yes"]));
    assert_eq!(client.cmd(&["CONFIG", "GET", "nosuch"]), Value::Array(Vec::new()));
    assert!(client.cmd(&["CONFIG", "GET", "*"]).items().len() > 40);
    assert_eq!(client.cmd(&["CONFIG", "SET", "timeout", "300", "maxclients", "200"]), ok());
    assert_eq!(client.cmd(&["CONFIG", "GET", "timeout"]), bulks(&["timeout", "300"]));
    let refused = client.cmd(&["CONFIG", "SET", "nosuch", "1"]);
    assert!(
        refused.text().starts_with("ERR Unknown option or number of arguments for CONFIG SET - 'nosuch'")
    );
    let refused = client.cmd(&["CONFIG", "SET", "timeout", "abc"]);
    assert!(refused.text().starts_with("ERR CONFIG SET failed (possibly related to argument 'timeout')"));
    assert!(client.cmd(&["CONFIG", "SET", "timeout", "1", "maxclients", "many"]).is_error());
    assert_eq!(client.cmd(&["CONFIG", "GET", "timeout"]), bulks(&["timeout", "300"]), "all or nothing");
    let refused = client.cmd(&["CONFIG", "REWRITE"]);
    assert_eq!(refused, error("ERR The server is running without a config file"));
    assert_eq!(client.cmd(&["CONFIG", "RESETSTAT"]), ok());
}

#[test]
fn info_has_what_clients_look_for() {
    let mut client = client();
    client.cmd(&["SET", "info:a", "1"]);
    let info = client.cmd(&["INFO"]).text();
    for field in [
        "redis_version:",
        "redis_mode:standalone",
        "process_id:",
        "connected_clients:",
        "blocked_clients:",
        "used_memory:",
        "maxmemory_policy:noeviction",
        "loading:0",
        "rdb_bgsave_in_progress:0",
        "aof_rewrite_in_progress:0",
        "total_connections_received:",
        "total_commands_processed:",
        "role:master",
        "cluster_enabled:0",
        "db0:keys=",
    ] {
        assert!(info.lines().any(|line| line.starts_with(field)), "{field} is not in:\n{info}");
    }
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap();
    assert!(version.split('.').all(|part| part.parse::<u32>().is_ok()), "{version}");
    let section = client.cmd(&["INFO", "clients"]).text();
    assert!(section.starts_with("# Clients\r\n") && !section.contains("# Server"), "{section}");
    client.cmd(&["HELLO", "3"]);
    assert!(matches!(client.cmd(&["INFO", "server"]), Value::Verbatim(..)));
}

#[test]
fn small_questions_are_answered() {
    let mut client = client();
    let time = client.cmd(&["TIME"]);
    assert!(time.items()[0].text().parse::<u64>().unwrap() > 1_600_000_000);
    assert!(time.items()[1].text().parse::<u64>().unwrap() < 1_000_000);
    assert!(client.cmd(&["DBSIZE"]).integer() >= 0);
    assert_eq!(client.cmd(&["WAIT", "0", "10"]), int(0));
    client.cmd(&["SET", "small:a", &"v".repeat(1000)]);
    let usage = client.cmd(&["MEMORY", "USAGE", "small:a"]).integer();
    assert!((1_000..3_000).contains(&usage), "{usage}");
    assert_eq!(client.cmd(&["MEMORY", "USAGE", "small:none"]), Value::Null);
    assert_eq!(client.cmd(&["LATENCY", "LATEST"]), Value::Array(Vec::new()));
    assert_eq!(client.cmd(&["DEBUG", "SLEEP", "0"]), ok());
}

#[test]
fn slow_commands_are_logged() {
    let node = Node::start(&["--slowlog-log-slower-than", "0", "--slowlog-max-len", "10"]);
    let mut client = node.client();
    client.cmd(&["SET", "slow", "v"]);
    let log = client.cmd(&["SLOWLOG", "GET", "10"]);
    let newest =
        log.items().iter().map(|entry| &entry.items()[3]).find(|words| words.items()[0] == bulk("SET"));
    assert_eq!(newest, Some(&bulks(&["SET", "slow", "v"])), "{log:?}");
    for _ in 0..20 {
        client.cmd(&["GET", "slow"]);
    }
    assert_eq!(client.cmd(&["SLOWLOG", "LEN"]), int(10));
    client.cmd(&["CONFIG", "SET", "slowlog-log-slower-than", "-1"]);
    assert_eq!(client.cmd(&["SLOWLOG", "RESET"]), ok());
    assert_eq!(client.cmd(&["SLOWLOG", "LEN"]), int(0));
}

#[test]
fn the_http_port_answers_probes_and_scrapes() {
    let mut client = client();
    client.cmd(&["SET", "http:a", "1"]);
    assert_eq!(node().http("/health"), (200, "ok\n".to_owned()));
    assert_eq!(node().http("/ready").0, 200);
    assert_eq!(node().http("/ready?write").0, 200);
    assert_eq!(node().http("/nothing").0, 404);
    let (status, metrics) = node().http("/metrics");
    assert_eq!(status, 200);
    for line in [
        "holdfast_raft_is_leader 1",
        "# TYPE holdfast_raft_commit_index gauge",
        "# TYPE holdfast_commands_total counter",
        "holdfast_commands_total{cmd=\"set\"} ",
        "holdfast_process_resident_memory_bytes ",
        "holdfast_raft_fsync_seconds_bucket{le=\"0.001\"} ",
    ] {
        assert!(metrics.lines().any(|found| found.starts_with(line)), "{line} is not in:\n{metrics}");
    }
    assert!(!metrics.contains("http:a"), "no key's name");
}

#[test]
fn the_log_level_can_change_while_it_runs() {
    let node = Node::start(&["--loglevel", "warning"]);
    let mut client = node.client();
    assert_eq!(client.cmd(&["CONFIG", "SET", "loglevel", "debug"]), ok());
    assert_eq!(client.cmd(&["CONFIG", "GET", "loglevel"]), bulks(&["loglevel", "debug"]));
    assert!(client.cmd(&["CONFIG", "SET", "loglevel", "loud"]).is_error());
    wait_for("the client to be let go", Millis(5_000), || Some(node.client().cmd(&["PING"])));
}

const OOM: &str = "OOM command not allowed when used memory > 'maxmemory'.";

#[test]
fn above_maxmemory_what_needs_memory_is_refused() {
    let node = Node::start(&["--maxmemory", "1mb"]);
    let (mut client, mut other) = (node.client(), node.client());
    for words in [&["SET", "k", "v"][..], &["QPUSH", "q", "m"], &["LOCK", "l", "me"], &["INCR", "n"]] {
        assert_eq!(client.cmd(words), error(OOM));
    }
    assert_eq!(client.cmd(&["GET", "k"]), Value::Null);
    assert_eq!(client.cmd(&["DEL", "k"]), int(0));
    client.cmd(&["MULTI"]);
    assert_eq!(client.cmd(&["SET", "k", "v"]), error(OOM));
    let aborted = error("EXECABORT Transaction discarded because of previous errors.");
    assert_eq!(client.cmd(&["EXEC"]), aborted);
    assert_eq!(other.cmd(&["CONFIG", "SET", "maxmemory", "0"]), ok());
    assert_eq!(client.cmd(&["SET", "k", "v"]), ok());
    client.cmd(&["MULTI"]);
    client.cmd(&["SET", "k", "w"]);
    assert_eq!(other.cmd(&["CONFIG", "SET", "maxmemory", "1mb"]), ok());
    let aborted = format!("EXECABORT Transaction discarded because of: {OOM}");
    assert_eq!(client.cmd(&["EXEC"]), error(&aborted));
    assert_eq!(client.cmd(&["GET", "k"]), bulk("v"));
    assert!(client.cmd(&["INFO", "stats"]).text().contains("total_error_replies:"));
}

#[test]
fn memory_grows_no_further_than_maxmemory() {
    let node = Node::start(&["--appendfsync", "no"]);
    let mut client = node.client();
    let used = |client: &mut Client| {
        let info = client.cmd(&["INFO", "memory"]).text();
        let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
        used.parse::<u64>().unwrap()
    };
    let limit = (used(&mut client) + (48 << 20)).to_string();
    assert_eq!(client.cmd(&["CONFIG", "SET", "maxmemory", &limit]), ok());
    let value = vec![b'x'; 1_000_000];
    let mut written = 0;
    wait_for("memory to be full", Millis(30_000), || {
        let reply = client.cmd_bytes(&[b"SET", format!("k{written}").as_bytes(), &value]);
        written += 1;
        reply.is_error().then(|| assert_eq!(reply, error(OOM)))
    });
    assert!(written > 5, "{written}");
    assert_eq!(client.cmd(&["STRLEN", "k0"]), int(1_000_000));
    assert!(used(&mut client) > limit.parse().unwrap());
}
