//! RAFT, READONLY and READWRITE at a node alone: what three nodes answer stands in `tests/cluster`.

use std::sync::OnceLock;

use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::bulk;
use crate::support::client::error;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::client::simple;
use crate::support::node::Node;

fn node() -> &'static Node {
    static NODE: OnceLock<Node> = OnceLock::new();
    NODE.get_or_init(|| Node::start(&["--node-id", "7"]))
}

fn client() -> Client {
    node().client()
}

#[test]
fn a_node_tells_where_it_stands() {
    let mut client = client();
    for protocol in ["2", "3"] {
        client.cmd(&["HELLO", protocol]);
        let info = client.cmd(&["RAFT", "INFO"]);
        assert_eq!(matches!(info, Value::Map(_)), protocol == "3", "{info:?}");
        assert_eq!(info.field("node"), &int(7));
        assert_eq!(info.field("leader"), &int(7));
        assert_eq!(info.field("role"), &bulk("leader"));
        assert_eq!(info.field("cluster_size"), &int(1));
        assert_eq!(info.field("leader_heard_ms"), &int(0));
        assert_eq!(info.field("read_consistency"), &bulk("lease"));
        assert_eq!(info.field("diverged"), &Value::Null);
        let number = |name: &str| info.field(name).number();
        assert!(number("term") > 0 && number("replica") > 0 && number("log_bytes") > 0);
        assert!(number("applied") > 0 && number("commit") - number("applied") == number("lag"));
        for name in ["flushed", "entries_in_flight", "leader_changes", "snapshots_installed"] {
            number(name);
        }
    }
    let section = client.cmd(&["INFO", "raft"]).text();
    for line in ["# Raft", "raft_role:leader", "raft_node:7", "raft_leader:7", "raft_cluster_size:1"] {
        assert!(section.lines().any(|found| found == line), "{line} is not in:\n{section}");
    }
    for name in
        ["raft_commit_index:", "raft_applied_index:", "raft_flushed_index:", "raft_lag:", "raft_proposals:"]
    {
        assert!(section.lines().any(|found| found.starts_with(name)), "{name} is not in:\n{section}");
    }
}

#[test]
fn a_node_alone_is_the_only_member() {
    let mut client = client();
    for protocol in ["2", "3"] {
        client.cmd(&["HELLO", protocol]);
        let members = client.cmd(&["RAFT", "MEMBERS"]);
        let [own] = members.items() else { panic!("{members:?}") };
        assert_eq!(matches!(own, Value::Map(_)), protocol == "3", "{own:?}");
        for (name, expected) in [
            ("node", int(7)),
            ("voter", bulk("voter")),
            ("role", bulk("leader")),
            ("leader", int(7)),
            ("state", bulk("ALIVE")),
            ("connected", int(1)),
            ("heard_ms", int(0)),
            ("rtt_us", Value::Null),
            ("version", bulk(env!("CARGO_PKG_VERSION"))),
            ("port", int(i64::from(node().port()))),
        ] {
            assert_eq!(own.field(name), &expected, "{name}");
        }
        assert!(own.field("disk_free").number() > 0 && own.field("applied").number() > 0);
        assert!(own.field("commit").number() >= own.field("applied").number());
    }
}

#[test]
fn the_state_of_a_node_alone_equals_itself() {
    let mut client = client();
    client.cmd(&["HELLO", "3"]);
    assert_eq!(client.cmd(&["SET", "raft:verify", "1"]), ok());
    let before = client.cmd(&["RAFT", "VERIFY"]);
    assert!(matches!(before, Value::Map(_)), "{before:?}");
    assert_eq!(before.field("equal"), &int(1));
    let digest = |answer: &Value| {
        let digests = answer.field("digests").pairs();
        assert_eq!(digests.len(), 1, "{answer:?}");
        assert_eq!(digests[0].0, int(7));
        digests[0].1.text()
    };
    assert!(digest(&before).len() == 32 && digest(&before).bytes().all(|byte| byte.is_ascii_hexdigit()));
    assert_eq!(client.cmd(&["SET", "raft:verify", "2"]), ok());
    let after = client.cmd(&["RAFT", "VERIFY"]);
    assert!(after.field("index").number() > before.field("index").number());
    assert_ne!(digest(&after), digest(&before));
    // Replies around it in a pipeline keep their order.
    let commands =
        [vec!["INCR", "raft:n"], vec!["RAFT", "VERIFY"], vec!["INCR", "raft:n"], vec!["GET", "raft:n"]];
    let replies = client.pipeline(&commands);
    assert_eq!((&replies[0], &replies[2], &replies[3]), (&int(1), &int(2), &bulk("2")));
    assert_eq!(replies[1].field("equal"), &int(1));
}

#[test]
fn a_node_alone_has_nobody_to_hand_over_to() {
    let mut client = client();
    let alone = error("ERR this node is alone: there is nobody to hand the lead over to");
    assert_eq!(client.cmd(&["RAFT", "TRANSFER"]), alone);
    assert_eq!(client.cmd(&["RAFT", "TRANSFER", "7"]), alone);
    assert_eq!(client.cmd(&["RAFT", "SNAPSHOT"]), ok());
    assert_eq!(client.cmd(&["SET", "raft:after", "1"]), ok());
}

#[test]
fn wrong_usage_is_refused_in_the_words_of_redis() {
    let mut client = client();
    let arity = |name: &str| format!("ERR wrong number of arguments for '{name}' command");
    let cases: &[(&[&str], String)] = &[
        (&["RAFT"], arity("raft")),
        (&["RAFT", "INFO", "x"], arity("raft|info")),
        (&["RAFT", "MEMBERS", "x"], arity("raft|members")),
        (&["RAFT", "TRANSFER", "1", "2"], arity("raft|transfer")),
        (&["RAFT", "SNAPSHOT", "x"], arity("raft|snapshot")),
        (&["RAFT", "VERIFY", "x"], arity("raft|verify")),
        (&["RAFT", "HELP", "x"], arity("raft|help")),
        (&["RAFT", "nosuch"], "ERR unknown subcommand 'nosuch'. Try RAFT HELP.".to_owned()),
        (&["READWRITE", "x"], arity("readwrite")),
        (&["READONLY", "x"], "ERR syntax error".to_owned()),
        (&["READONLY", "MAXLAG"], "ERR syntax error".to_owned()),
        (&["READONLY", "MAXLAG", "1", "2"], "ERR syntax error".to_owned()),
        (&["READONLY", "MAXLAG", "-1"], "ERR value is not an integer or out of range".to_owned()),
        (&["READONLY", "MAXLAG", "soon"], "ERR value is not an integer or out of range".to_owned()),
    ];
    for (words, text) in cases {
        assert_eq!(client.cmd(words), error(text), "{words:?}");
    }
    let help = client.cmd(&["RAFT", "HELP"]);
    assert!(help.items()[0].text().starts_with("RAFT <subcommand> "));
    for sub in ["INFO", "MEMBERS", "SNAPSHOT", "TRANSFER [<node-id>]", "VERIFY", "HELP"] {
        assert!(help.items().contains(&simple(sub)), "{sub}");
    }
    for words in [&["RAFT", "INFO"][..], &["RAFT", "TRANSFER"], &["RAFT", "VERIFY"]] {
        client.cmd(&["MULTI"]);
        assert_eq!(client.cmd(words), error("ERR Command not allowed inside a transaction"));
        assert_eq!(client.cmd(&["EXEC"]).error_code(), Some("EXECABORT"));
    }
}

#[test]
fn clients_libraries_find_the_commands_described() {
    let mut client = client();
    let info = client.cmd(&["COMMAND", "INFO", "raft|members", "readonly", "raft|verify"]);
    let flags = |at: usize| info.items()[at].items()[2].items().iter().map(Value::text).collect::<Vec<_>>();
    assert_eq!(flags(0), ["admin", "loading", "stale", "no_multi"]);
    assert_eq!(flags(1), ["loading", "stale", "fast"]);
    assert_eq!(flags(2), ["admin", "stale", "no_multi"]);
    let docs = client.cmd(&["COMMAND", "DOCS", "raft"]);
    assert!(docs.field("raft").field("subcommands").pairs().len() >= 6);
}

#[test]
fn a_readonly_connection_reads_what_is_applied_and_writes_as_before() {
    let mut client = client();
    let flags = |client: &mut Client| {
        let info = client.cmd(&["CLIENT", "INFO"]).text();
        info.split(' ').find_map(|field| field.strip_prefix("flags=")).unwrap().to_owned()
    };
    assert_eq!(client.cmd(&["SET", "raft:readonly", "1"]), ok());
    assert_eq!(flags(&mut client), "N");
    for words in [&["READONLY"][..], &["READONLY", "MAXLAG", "0"], &["readonly", "maxlag", "60000"]] {
        assert_eq!(client.cmd(words), ok());
        assert_eq!(flags(&mut client), "r");
        assert_eq!(client.cmd(&["GET", "raft:readonly"]), bulk("1"));
    }
    assert_eq!(client.cmd(&["INCR", "raft:readonly"]), int(2));
    assert_eq!(client.cmd(&["GET", "raft:readonly"]), bulk("2"));
    assert_eq!(client.cmd(&["WATCH", "raft:readonly"]), ok());
    assert_eq!(client.cmd(&["MULTI"]), ok());
    assert_eq!(client.cmd(&["READWRITE"]), simple("QUEUED"));
    assert_eq!(client.cmd(&["GET", "raft:readonly"]), simple("QUEUED"));
    assert_eq!(client.cmd(&["EXEC"]), Value::Array(vec![ok(), bulk("2")]));
    assert_eq!(flags(&mut client), "N");
    assert_eq!(client.cmd(&["READONLY"]), ok());
    assert_eq!(client.cmd(&["RESET"]), simple("RESET"));
    assert_eq!(flags(&mut client), "N");
}

#[test]
fn keys_that_ended_are_counted_whoever_found_them_due() {
    let node = Node::start(&[]);
    let mut client = node.client();
    let expired = |client: &mut Client| {
        let info = client.cmd(&["INFO", "stats"]).text();
        info.lines().find_map(|line| line.strip_prefix("expired_keys:")).unwrap().parse::<u64>().unwrap()
    };
    // Who reads what is old ends nothing; the leader does, by itself.
    client.cmd(&["READONLY"]);
    let sets: Vec<[String; 5]> =
        (0..200).map(|n| ["SET", &format!("due:{n}"), "v", "PX", "1"].map(str::to_owned)).collect();
    client.pipeline(&sets.iter().map(|words| words.to_vec()).collect::<Vec<_>>());
    crate::support::wait_for("the keys to end", holdfast::types::Millis(10_000), || {
        (client.cmd(&["DBSIZE"]) == int(0)).then_some(())
    });
    assert_eq!(expired(&mut client), 200);
    client.cmd(&["READWRITE"]);
    client.cmd(&["SET", "due", "v", "PX", "1"]);
    crate::support::wait_for("the key to end", holdfast::types::Millis(5_000), || {
        (client.cmd(&["GET", "due"]) == Value::Null).then_some(())
    });
    // A key that is deleted or replaced did not expire.
    client.cmd(&["SET", "k", "v", "PX", "60000"]);
    client.cmd(&["SET", "k", "w", "PX", "60000"]);
    client.cmd(&["DEL", "k"]);
    assert_eq!(expired(&mut client), 201);
    let (_, metrics) = node.http("/metrics");
    assert!(metrics.lines().any(|line| line == "holdfast_keyspace_expired_total 201"), "{metrics}");
    client.cmd(&["CONFIG", "RESETSTAT"]);
    assert_eq!(expired(&mut client), 0);
}

#[test]
fn the_leaders_page_says_that_a_node_alone_leads() {
    assert_eq!(node().http("/leader"), (200, "ok\n".to_owned()));
    let (_, metrics) = node().http("/metrics");
    for line in [
        "holdfast_raft_apply_lag_entries 0",
        "holdfast_raft_state_diverged 0",
        "holdfast_raft_snapshots_installed_total 0",
        "# TYPE holdfast_raft_leader_changes_total counter",
        "holdfast_indoubt_total 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in:\n{metrics}");
    }
}
