//! HELLO, SELECT, CLIENT and their like: what a connection is and what clients do first.

use std::net::Shutdown;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use holdfast::types::Millis;

use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::bulk;
use crate::support::client::bulks;
use crate::support::client::encode;
use crate::support::client::error;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::client::simple;
use crate::support::node::Node;
use crate::support::wait_for;

fn client() -> Client {
    static NODE: OnceLock<Node> = OnceLock::new();
    NODE.get_or_init(|| Node::start(&[])).client()
}

#[test]
fn ping_and_echo_answer() {
    let mut client = client();
    assert_eq!(client.cmd(&["PING"]), simple("PONG"));
    assert_eq!(client.cmd(&["ping", "hello"]), bulk("hello"));
    assert_eq!(client.cmd(&["ECHO", "a\r\nb\0c"]), bulk("a\r\nb\0c"));
    assert_eq!(client.cmd(&["ECHO"]), error("ERR wrong number of arguments for 'echo' command"));
    assert_eq!(client.cmd(&["PING", "a", "b"]), error("ERR wrong number of arguments for 'ping' command"));
}

#[test]
fn hello_switches_the_protocol_and_tells_who_serves() {
    let mut client = client();
    let greeting = client.cmd(&["HELLO"]);
    assert!(matches!(greeting, Value::Array(_)));
    assert_eq!(greeting.field("proto"), &int(2));
    assert_eq!(greeting.field("server"), &bulk("redis"));
    let greeting = client.cmd(&["HELLO", "3", "SETNAME", "worker-1"]);
    assert!(matches!(greeting, Value::Map(_)));
    assert_eq!(greeting.field("proto"), &int(3));
    assert_eq!(greeting.field("role"), &bulk("master"));
    assert_eq!(greeting.field("mode"), &bulk("standalone"));
    assert_eq!(greeting.field("modules"), &Value::Array(Vec::new()));
    // Clients take the version apart: digits and dots only.
    assert!(greeting.field("version").text().split('.').all(|part| part.parse::<u32>().is_ok()));
    assert_eq!(client.cmd(&["CLIENT", "GETNAME"]), bulk("worker-1"));
    assert_eq!(client.cmd(&["GET", "connection:missing"]), Value::Null);
    assert!(matches!(client.cmd(&["CONFIG", "GET", "maxclients"]), Value::Map(_)));
    assert!(matches!(client.cmd(&["HELLO", "2"]), Value::Array(_)));
    assert!(matches!(client.cmd(&["CONFIG", "GET", "maxclients"]), Value::Array(_)));
}

#[test]
fn hello_refuses_in_the_words_of_redis() {
    let mut client = client();
    assert_eq!(client.cmd(&["HELLO", "4"]), error("NOPROTO unsupported protocol version"));
    let not_a_number = error("ERR Protocol version is not an integer or out of range");
    assert_eq!(client.cmd(&["HELLO", "three"]), not_a_number);
    assert_eq!(client.cmd(&["HELLO", "3", "NAME"]), error("ERR Syntax error in HELLO option 'NAME'"));
    // Without a password any is right for HELLO, and none for AUTH.
    assert!(!client.cmd(&["HELLO", "3", "AUTH", "default", "needless"]).is_error());
    assert!(
        client
            .cmd(&["AUTH", "needless"])
            .text()
            .starts_with("ERR AUTH <password> called without any password")
    );
}

#[test]
fn a_pipeline_of_ten_thousand_commands_is_answered_in_order() {
    for protocol in ["2", "3"] {
        let mut client = client();
        client.cmd(&["HELLO", protocol]);
        let key = format!("connection:pipeline:{protocol}");
        let commands: Vec<Vec<String>> = (0..10_000)
            .map(|n| match n % 2 {
                0 => vec!["SET".to_owned(), key.clone(), n.to_string()],
                _ => vec!["GET".to_owned(), key.clone()],
            })
            .collect();
        for (n, reply) in client.pipeline(&commands).into_iter().enumerate() {
            let expected = if n % 2 == 0 { ok() } else { bulk(&(n - 1).to_string()) };
            assert_eq!(reply, expected, "command {n}");
        }
    }
}

#[test]
fn a_read_sees_the_writes_before_it_in_its_pipeline() {
    let mut client = client();
    client.cmd(&["DEL", "connection:counter"]);
    let commands: Vec<Vec<&str>> = (0..500)
        .flat_map(|_| [vec!["INCR", "connection:counter"], vec!["GET", "connection:counter"]])
        .collect();
    for (n, pair) in client.pipeline(&commands).chunks(2).enumerate() {
        assert_eq!(pair, [int(n as i64 + 1), bulk(&(n + 1).to_string())]);
    }
}

#[test]
fn a_value_that_arrives_byte_by_byte_is_one_request() {
    let mut client = client();
    for byte in b"*3\r\n$3\r\nSET\r\n$14\r\nconnection:bit\r\n$5\r\nval\r\n\r\n" {
        client.send_raw(&[*byte]);
    }
    assert_eq!(client.read(), ok());
    assert_eq!(client.cmd(&["GET", "connection:bit"]), bulk("val\r\n"));
}

#[test]
fn a_large_value_in_small_pieces_comes_back_whole() {
    let mut client = client();
    let value: Vec<u8> = (0..8_000_000_u32).map(|n| (n % 251) as u8).collect();
    client.send_raw(format!("*3\r\n$3\r\nSET\r\n$16\r\nconnection:large\r\n${}\r\n", value.len()).as_bytes());
    for piece in value.chunks(1_000) {
        client.send_raw(piece);
    }
    client.send_raw(b"\r\n");
    assert_eq!(client.read(), ok());
    assert_eq!(client.cmd(&["GET", "connection:large"]), Value::Bulk(value));
    client.cmd(&["DEL", "connection:large"]);
}

#[test]
fn databases_are_apart() {
    let mut client = client();
    assert_eq!(client.cmd(&["SET", "connection:db", "zero"]), ok());
    assert_eq!(client.cmd(&["SELECT", "9"]), ok());
    assert_eq!(client.cmd(&["GET", "connection:db"]), Value::Null);
    assert_eq!(client.cmd(&["SET", "connection:db", "nine"]), ok());
    assert_eq!(client.cmd(&["SELECT", "0"]), ok());
    assert_eq!(client.cmd(&["GET", "connection:db"]), bulk("zero"));
    assert_eq!(client.cmd(&["SELECT", "16"]), error("ERR DB index is out of range"));
    assert_eq!(client.cmd(&["SELECT", "-1"]), error("ERR DB index is out of range"));
    assert_eq!(client.cmd(&["SELECT", "one"]), error("ERR value is not an integer or out of range"));
}

#[test]
fn reset_makes_a_connection_new() {
    let mut client = client();
    client.cmd(&["HELLO", "3", "SETNAME", "named"]);
    client.cmd(&["SELECT", "3"]);
    client.cmd(&["MULTI"]);
    assert_eq!(client.cmd(&["RESET"]), simple("RESET"));
    assert_eq!(client.cmd(&["EXEC"]), error("ERR EXEC without MULTI"));
    assert_eq!(client.cmd(&["CLIENT", "GETNAME"]), Value::Null);
    assert!(client.cmd(&["CLIENT", "INFO"]).text().contains(" db=0 "));
    assert!(matches!(client.cmd(&["HELLO"]), Value::Array(_)));
}

#[test]
fn quit_answers_and_closes() {
    let mut client = client();
    client.send_raw(b"QUIT\r\nPING\r\n");
    assert_eq!(client.read_to_close(), "+OK\r\n");
}

#[test]
fn clients_can_be_named_and_listed() {
    let mut client = client();
    let id = client.cmd(&["CLIENT", "ID"]).integer();
    assert!(id > 0);
    assert_eq!(client.cmd(&["CLIENT", "GETNAME"]), Value::Null);
    assert_eq!(client.cmd(&["CLIENT", "SETNAME", "connection-listed"]), ok());
    assert_eq!(client.cmd(&["CLIENT", "GETNAME"]), bulk("connection-listed"));
    let refused = client.cmd(&["CLIENT", "SETNAME", "with blank"]);
    assert_eq!(refused, error("ERR Client names cannot contain spaces, newlines or special characters."));
    assert_eq!(client.cmd(&["CLIENT", "SETINFO", "LIB-NAME", "lib"]), ok());
    assert_eq!(client.cmd(&["CLIENT", "SETINFO", "LIB-VER", "1.2"]), ok());
    let info = client.cmd(&["CLIENT", "INFO"]).text();
    assert!(info.starts_with(&format!("id={id} addr=127.0.0.1:")), "{info}");
    assert!(info.contains(" name=connection-listed "), "{info}");
    let list = client.cmd(&["CLIENT", "LIST"]).text();
    assert_eq!(list.lines().filter(|line| line.contains("name=connection-listed")).count(), 1, "{list}");
    let list = client.cmd(&["CLIENT", "LIST", "ID", &id.to_string()]).text();
    assert_eq!(list.lines().count(), 1, "{list}");
    let refused = client.cmd(&["CLIENT", "NOTHING"]);
    assert_eq!(refused, error("ERR unknown subcommand 'NOTHING'. Try CLIENT HELP."));
}

#[test]
fn a_client_can_be_killed() {
    let (mut killer, mut victim) = (client(), client());
    let id = victim.cmd(&["CLIENT", "ID"]).integer().to_string();
    assert_eq!(killer.cmd(&["CLIENT", "KILL", "ID", &id]), int(1));
    assert_eq!(victim.read_to_close(), "");
    assert_eq!(killer.cmd(&["CLIENT", "KILL", "ID", &id]), int(0));
    assert_eq!(killer.cmd(&["CLIENT", "KILL", "127.0.0.1:1"]), error("ERR No such client"));
}

#[test]
fn a_client_can_do_without_replies() {
    let mut client = client();
    client.send(&["CLIENT", "REPLY", "OFF"]);
    client.send(&["SET", "connection:silent", "1"]);
    client.send(&["CLIENT", "REPLY", "ON"]);
    assert_eq!(client.read(), ok());
    assert_eq!(client.cmd(&["GET", "connection:silent"]), bulk("1"));
    client.send(&["CLIENT", "REPLY", "SKIP"]);
    client.send(&["SET", "connection:silent", "2"]);
    assert_eq!(client.cmd(&["GET", "connection:silent"]), bulk("2"));
}

#[test]
fn paused_writes_wait_and_reads_do_not() {
    let node = Node::start(&[]);
    let (mut pauser, mut other) = (node.client(), node.client());
    assert_eq!(pauser.cmd(&["CLIENT", "PAUSE", "60000", "WRITE"]), ok());
    assert_eq!(other.cmd(&["GET", "k"]), Value::Null);
    other.send(&["SET", "k", "v"]);
    assert!(other.is_quiet());
    assert_eq!(pauser.cmd(&["GET", "k"]), Value::Null);
    assert_eq!(pauser.cmd(&["CLIENT", "UNPAUSE"]), ok());
    assert_eq!(other.read(), ok());
    assert_eq!(pauser.cmd(&["GET", "k"]), bulk("v"));
}

#[test]
fn a_password_is_asked_for() {
    let mut node = Node::prepare(&["--requirepass", "sesame"]);
    node.spawn();
    let address = node.address();
    let mut client = wait_for("the port to open", Millis(30_000), || Client::try_connect(address).ok());
    let refused = error("NOAUTH Authentication required.");
    assert_eq!(client.cmd(&["GET", "k"]), refused);
    assert_eq!(client.cmd(&["PING"]), refused);
    let wrong = client.cmd(&["AUTH", "wrong"]);
    assert_eq!(wrong, error("WRONGPASS invalid username-password pair or user is disabled."));
    assert!(
        client.cmd(&["HELLO", "3"]).text().starts_with("NOAUTH HELLO must be called with the client already")
    );
    assert_eq!(client.cmd(&["AUTH", "sesame"]), ok());
    wait_for("the node to have loaded", Millis(30_000), || {
        let reply = client.cmd(&["PING"]);
        assert!(reply == simple("PONG") || reply.error_code() == Some("LOADING"), "{reply:?}");
        (reply == simple("PONG")).then_some(())
    });
    let mut other = node.client();
    assert!(matches!(other.cmd(&["HELLO", "3", "AUTH", "default", "sesame"]), Value::Map(_)));
    assert_eq!(other.cmd(&["CONFIG", "SET", "requirepass", ""]), ok());
    assert_eq!(node.client().cmd(&["PING"]), simple("PONG"));
}

#[test]
fn an_unauthenticated_client_may_send_little() {
    let mut node = Node::prepare(&["--requirepass", "sesame"]);
    node.spawn();
    let address = node.address();
    let connect = || wait_for("the port to open", Millis(30_000), || Client::try_connect(address).ok());
    let mut client = connect();
    client.send_raw(b"*11\r\n");
    assert_eq!(client.read_to_close(), "-ERR Protocol error: unauthenticated multibulk length\r\n");
    let mut client = connect();
    client.send_raw(b"*2\r\n$4\r\nECHO\r\n$16385\r\n");
    assert_eq!(client.read_to_close(), "-ERR Protocol error: unauthenticated bulk length\r\n");
}

#[test]
fn one_client_too_many_is_refused() {
    let node = Node::start(&["--maxclients", "3"]);
    let mut clients: Vec<Client> = (0..3)
        .map(|_| {
            wait_for("a place", Millis(5_000), || {
                let mut client = node.client();
                (client.cmd(&["PING"]) == simple("PONG")).then_some(client)
            })
        })
        .collect();
    let refused = node.client().read_to_close();
    assert_eq!(refused, "-ERR max number of clients reached\r\n");
    assert_eq!(clients[0].cmd(&["PING"]), simple("PONG"));
    drop(clients.pop());
    wait_for("the place of who left", Millis(5_000), || {
        let mut client = node.client();
        client.send(&["PING"]);
        matches!(client.try_read(), Ok(Value::Simple(_))).then_some(())
    });
}

/// Everything that a fresh connection is answered that sends these lines and is done with asking then.
fn all_answers(client: &mut Client, lines: &[&str]) -> String {
    client.send_raw((lines.join("\r\n") + "\r\n").as_bytes());
    client.writer().shutdown(Shutdown::Write).unwrap();
    client.read_to_close()
}

#[test]
fn replies_are_left_out_as_redis_leaves_them_out() {
    // Byte for byte what redis-server 7.0.15 answers.
    let subscribed = |kind: &str, name: &str, count: u64| {
        format!("*3\r\n${}\r\n{kind}\r\n${}\r\n{name}\r\n:{count}\r\n", kind.len(), name.len())
    };
    let (a, b) = (subscribed("subscribe", "a", 1), subscribed("subscribe", "b", 2));
    for (lines, answers) in [
        (&["CLIENT REPLY SKIP", "RESET", "PING"][..], "+PONG\r\n".to_owned()),
        (&["CLIENT REPLY OFF", "RESET", "PING"], "+RESET\r\n+PONG\r\n".to_owned()),
        (
            &["CLIENT REPLY SKIP", "SUBSCRIBE a b", "UNSUBSCRIBE a", "PING"],
            format!("{a}{b}{}*2\r\n$4\r\npong\r\n$0\r\n\r\n", subscribed("unsubscribe", "a", 1)),
        ),
        (
            &["CLIENT REPLY OFF", "SUBSCRIBE a b", "PING", "PSUBSCRIBE p*", "UNSUBSCRIBE a", "RESET"],
            format!(
                "{a}{b}{}{}+RESET\r\n",
                subscribed("psubscribe", "p*", 3),
                subscribed("unsubscribe", "a", 2)
            ),
        ),
        (
            &["CLIENT REPLY OFF", "PSUBSCRIBE p*", "PUNSUBSCRIBE", "PING", "CLIENT REPLY ON"],
            format!("{}{}+OK\r\n", subscribed("psubscribe", "p*", 1), subscribed("punsubscribe", "p*", 0)),
        ),
        (
            &["CLIENT REPLY SKIP", "UNSUBSCRIBE", "PING x"],
            "*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n$1\r\nx\r\n".to_owned(),
        ),
        (&["CLIENT REPLY SKIP", "CLIENT REPLY ON", "PING"], "+OK\r\n+PONG\r\n".to_owned()),
        (&["CLIENT REPLY SKIP", "CLIENT REPLY SKIP", "PING 1", "PING 2"], "$1\r\n2\r\n".to_owned()),
        (&["CLIENT REPLY OFF", "CLIENT REPLY SKIP", "PING 1", "CLIENT REPLY ON"], "+OK\r\n".to_owned()),
        (&["CLIENT REPLY SKIP", "CLIENT REPLY foo", "PING"], "+PONG\r\n".to_owned()),
        (&["CLIENT REPLY SKIP", "nosuch", "PING"], "+PONG\r\n".to_owned()),
        (&["CLIENT REPLY SKIP", "EXEC", "PING"], "+PONG\r\n".to_owned()),
        (
            &["CLIENT REPLY SKIP", "MULTI", "SET connection:skip 1", "EXEC", "PING"],
            "+QUEUED\r\n*1\r\n+OK\r\n+PONG\r\n".to_owned(),
        ),
        (
            &["CLIENT REPLY OFF", "MULTI", "SET connection:skip 1", "EXEC", "CLIENT REPLY ON"],
            "+OK\r\n".to_owned(),
        ),
    ] {
        assert_eq!(all_answers(&mut client(), lines), answers, "{lines:?}");
    }
    let mut client = client();
    client.cmd(&["HELLO", "3"]);
    let lines =
        ["CLIENT REPLY SKIP", "SUBSCRIBE a", "CLIENT REPLY OFF", "SUBSCRIBE b", "PING", "CLIENT REPLY ON"];
    assert_eq!(all_answers(&mut client, &lines), format!("{a}{b}+OK\r\n").replace("*3", ">3"));
}

#[test]
fn a_transaction_is_not_left_without_its_reply() {
    for mode in ["OFF", "SKIP"] {
        let mut client = client();
        client.cmd(&["DEL", "connection:silent"]);
        assert_eq!(client.cmd(&["MULTI"]), ok());
        assert_eq!(client.cmd(&["SET", "connection:silent", "1"]), simple("QUEUED"));
        let why =
            "ERR CLIENT REPLY OFF and SKIP are not allowed inside a transaction: send them before MULTI";
        assert_eq!(client.cmd(&["CLIENT", "REPLY", mode]), error(why));
        let aborted = "EXECABORT Transaction discarded because of previous errors.";
        assert_eq!(client.cmd(&["EXEC"]), error(aborted));
        assert_eq!(client.cmd(&["EXISTS", "connection:silent"]), int(0));
    }
    let mut client = client();
    client.send(&["CLIENT", "REPLY", "OFF"]);
    client.pipeline_only(&[vec!["MULTI"], vec!["CLIENT", "REPLY", "ON"], vec!["PING"], vec!["EXEC"]]);
    assert_eq!(client.read(), Value::Array(vec![ok(), simple("PONG")]), "ON stands in a transaction, too");
}

/// Stops the node, so that it sees what is done meanwhile at one moment.
fn at_one_moment(node: &Node, does: impl FnOnce()) {
    node.signal("STOP");
    wait_for("the node to stand still", Millis(10_000), || node.stands_still().then_some(()));
    does();
    node.signal("CONT");
}

#[test]
fn who_is_done_with_asking_gets_all_replies_and_keeps_what_was_handed_out() {
    let node = Node::start(&[]);
    let mut other = node.client();
    other.cmd(&["QPUSH", "half", "work"]);
    other.cmd(&["QPUSH", "half", "more"]);
    let mut client = node.client();
    let asked = [
        vec!["SET", "a", "1"],
        vec!["QPOP", "LEASE", "3600000", "FROM", "half"],
        vec!["LOCK", "l", "me", "PX", "3600000", "BLOCK", "1000"],
        vec!["QPOP", "BLOCK", "0", "LEASE", "3600000", "FROM", "half"],
        vec!["GET", "a"],
    ];
    at_one_moment(&node, || {
        client.pipeline_only(&asked);
        client.writer().shutdown(Shutdown::Write).unwrap();
    });
    assert_eq!(client.read(), ok());
    let receipt = |reply: Value| reply.items()[0].items()[1].text();
    let first = receipt(client.read());
    assert!(client.read().integer() > 0);
    let second = receipt(client.read());
    assert_eq!(client.read(), bulk("1"));
    assert_eq!(client.read_to_close(), "");
    // Nobody took them back: both are still this hand-out's.
    assert_eq!(other.cmd(&["QINFO", "half"]).field("nacked"), &int(0));
    assert_eq!(other.cmd(&["QACK", "half", &first, &second]), int(2));
    assert_eq!(other.cmd(&["LOCK", "l", "you"]), Value::Null);
}

#[test]
fn who_closed_the_socket_whole_keeps_nothing_that_was_handed_out() {
    let node = Node::start(&[]);
    let mut other = node.client();
    for round in 0..5 {
        other.cmd(&["QPUSH", "half", "work"]);
        let mut client = node.client();
        let asked = [vec!["INCR", "asked"], vec!["QPOP", "LEASE", "3600000", "FROM", "half"]];
        at_one_moment(&node, || {
            client.pipeline_only(&asked);
            drop(client);
        });
        wait_for("what it asked for to be done", Millis(10_000), || {
            (other.cmd(&["GET", "asked"]) == bulk(&(round + 1).to_string())).then_some(())
        });
        let again = other.cmd(&["QPOP", "BLOCK", "9000", "LEASE", "3600000", "FROM", "half"]);
        let [_, receipt, payload, attempt] = again.items()[0].items() else { panic!("{again:?}") };
        assert_eq!((payload, attempt), (&bulk("work"), &int(1)), "round {round}");
        assert_eq!(other.cmd(&["QACK", "half", &receipt.text()]), int(1));
    }
}

#[test]
fn an_idle_client_is_closed_when_asked_for() {
    let node = Node::start(&["--timeout", "1"]);
    let mut client = node.client();
    assert_eq!(client.cmd(&["PING"]), simple("PONG"));
    client.set_timeout(Duration::from_secs(20));
    assert_eq!(client.read_to_close(), "");
}

#[test]
fn a_client_that_does_not_read_costs_a_bounded_amount() {
    let node = Node::start(&[]);
    let mut client = node.client();
    let value = vec![b'x'; 1_000_000];
    client.cmd_bytes(&[b"SET", b"big", &value]);
    let before = node.resident_bytes();
    let mut greedy: Vec<Client> = (0..4).map(|_| node.client()).collect();
    for slow in &mut greedy {
        slow.send_raw(&b"*2\r\n$3\r\nGET\r\n$3\r\nbig\r\n".repeat(200));
    }
    // It is served no further than the socket and a little more take; others are.
    for _ in 0..100 {
        assert_eq!(client.cmd(&["STRLEN", "big"]), int(1_000_000));
    }
    let after = node.resident_bytes();
    assert!(after < before + (64 << 20), "{before} bytes grew to {after}");
    for slow in &mut greedy {
        for _ in 0..200 {
            assert_eq!(slow.read(), Value::Bulk(value.clone()));
        }
    }
}

/// Waits until the node has replies for the client of this name that its socket does not take.
fn wait_until_full(client: &mut Client, name: &str) {
    wait_for("the client's socket to be full", Millis(20_000), || {
        let list = client.cmd(&["CLIENT", "LIST"]).text();
        let line = list.lines().find(|line| line.contains(&format!(" name={name} ")))?;
        (!line.contains(" obl=0 ")).then_some(())
    });
}

#[test]
fn writes_that_return_a_large_value_cost_a_bounded_amount() {
    let node = Node::start(&[]);
    let mut client = node.client();
    let value = vec![b'x'; 1_000_000];
    client.cmd_bytes(&[b"SET", b"big", &value]);
    let before = node.resident_bytes();
    for (name, words) in [
        ("getex", vec!["GETEX", "big"]),
        ("set-get", vec!["SET", "big", "v", "IFEQ", "other", "GET"]),
        ("getex-persist", vec!["GETEX", "big", "PERSIST"]),
    ] {
        let mut greedy = node.client();
        greedy.cmd(&["CLIENT", "SETNAME", name]);
        let mut request = Vec::new();
        for _ in 0..500 {
            encode(words.iter().map(|word| word.as_bytes()), &mut request);
        }
        greedy.send_raw(&request);
        wait_until_full(&mut client, name);
        let after = node.resident_bytes();
        assert!(after < before + (128 << 20), "{name}: {before} bytes grew to {after}");
        for _ in 0..500 {
            assert_eq!(greedy.read(), Value::Bulk(value.clone()));
        }
    }
}

#[test]
fn mget_beyond_the_output_limit_is_refused() {
    let node = Node::start(&[]);
    let mut client = node.client();
    let value = vec![b'x'; 1_000_000];
    client.cmd_bytes(&[b"SET", b"big", &value]);
    let words: Vec<&str> = ["MGET"].into_iter().chain(vec!["big"; 100]).collect();
    let text = client.cmd(&words).text();
    assert!(text.starts_with("ERR the reply would take 69001136 bytes or more, "), "{text}");
    assert_eq!(client.cmd(&words[..61]), Value::Array(vec![Value::Bulk(value); 60]));
    client.cmd(&["CONFIG", "SET", "client-output-buffer-limit", "normal 0 0 0"]);
    assert_eq!(client.cmd(&words).items().len(), 100);
}

#[test]
fn replies_of_one_batch_beyond_the_output_limit_arrive() {
    let node = Node::start(&[]);
    let mut client = node.client();
    let payload = vec![b'x'; 1_000_000];
    for _ in 0..100 {
        client.cmd_bytes(&[b"QPUSH", b"queue", &payload]);
    }
    let commands = vec![vec!["QPOP", "FROM", "queue"]; 100];
    for reply in client.pipeline(&commands) {
        assert_eq!(reply.items()[0].items()[2], Value::Bulk(payload.clone()));
    }
}

#[test]
fn a_client_that_sends_slowly_is_not_idle() {
    let node = Node::start(&["--timeout", "1"]);
    let mut client = node.client();
    for byte in b"*2\r\n$4\r\nECHO\r\n$9\r\n" {
        client.send_raw(&[*byte]);
    }
    for byte in b"slow word\r\n" {
        client.send_raw(&[*byte]);
        thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(client.read(), bulk("slow word"));
}

#[test]
fn a_client_that_takes_its_replies_slowly_is_not_idle() {
    let node = Node::start(&["--timeout", "1"]);
    let mut client = node.client();
    let value = vec![b'x'; 1_000_000];
    client.cmd_bytes(&[b"SET", b"big", &value]);
    client.send_raw(&b"*2\r\n$3\r\nGET\r\n$3\r\nbig\r\n".repeat(120));
    for n in 0..120 {
        assert_eq!(client.read(), Value::Bulk(value.clone()), "reply {n}");
        thread::sleep(Duration::from_millis(40));
    }
}

#[test]
fn a_client_that_takes_nothing_is_idle() {
    let node = Node::start(&["--timeout", "1"]);
    let mut client = node.client();
    client.cmd_bytes(&[b"SET", b"big", &vec![b'x'; 1_000_000]]);
    client.send_raw(&b"*2\r\n$3\r\nGET\r\n$3\r\nbig\r\n".repeat(100));
    wait_for("the client to be let go", Millis(20_000), || {
        let info = node.client().cmd(&["INFO", "clients"]).text();
        info.contains("connected_clients:1\r").then_some(())
    });
}

#[test]
fn what_a_pause_holds_back_is_answered_before_the_node_ends() {
    for mode in ["ALL", "WRITE"] {
        let mut node = Node::start(&[]);
        let (mut pauser, mut other) = (node.client(), node.client());
        assert_eq!(pauser.cmd(&["CLIENT", "PAUSE", "60000", mode]), ok());
        other.send(&["SET", "k", "v"]);
        assert!(other.is_quiet());
        node.signal("TERM");
        assert_eq!(other.read(), ok(), "{mode}");
        assert_eq!(other.read_to_close(), "");
        assert_eq!(node.wait().code(), Some(0));
        node.restart();
        assert_eq!(node.client().cmd(&["GET", "k"]), bulk("v"));
    }
}

#[test]
fn invalidations_are_off() {
    let mut client = client();
    assert_eq!(client.cmd(&["CLIENT", "TRACKING", "OFF"]), ok());
    let refused = error("ERR CLIENT TRACKING ON is not supported by this version yet");
    assert_eq!(client.cmd(&["CLIENT", "TRACKING", "ON"]), refused);
    let info = client.cmd(&["CLIENT", "TRACKINGINFO"]);
    assert_eq!(info.field("flags"), &bulks(&["off"]));
    assert_eq!(info.field("redirect"), &int(-1));
    assert_eq!(info.field("prefixes"), &Value::Array(Vec::new()));
    client.cmd(&["HELLO", "3"]);
    let info = client.cmd(&["CLIENT", "TRACKINGINFO"]);
    assert_eq!(info.field("flags"), &Value::Set(vec![bulk("off")]));
    let refused = client.cmd(&["CLIENT", "TRACKING"]);
    assert_eq!(refused, error("ERR wrong number of arguments for 'client|tracking' command"));
}

#[test]
fn unknown_commands_and_wrong_arity_are_named() {
    let mut client = client();
    let unknown = client.cmd(&["FOO", "bar", "baz"]);
    assert_eq!(unknown, error("ERR unknown command 'FOO', with args beginning with: 'bar' 'baz' "));
    let unknown = client.cmd(&["client2"]);
    assert_eq!(unknown, error("ERR unknown command 'client2', with args beginning with: "));
    assert_eq!(client.cmd(&["GET"]), error("ERR wrong number of arguments for 'get' command"));
    assert_eq!(client.cmd(&["SET", "k"]), error("ERR wrong number of arguments for 'set' command"));
    let refused = client.cmd(&["CONFIG", "GET"]);
    assert_eq!(refused, error("ERR wrong number of arguments for 'config|get' command"));
}

#[test]
fn inline_commands_are_words_and_quotes() {
    let mut client = client();
    client.send_raw(b"PING\r\nset connection:inline \"a b\\x41\\n\"\nGET connection:inline\r\n");
    assert_eq!(client.read(), simple("PONG"));
    assert_eq!(client.read(), ok());
    assert_eq!(client.read(), bulk("a bA\n"));
    client.send_raw(b"MGET 'connection:inline' \t connection:none\r\n");
    assert_eq!(client.read(), Value::Array(vec![bulk("a bA\n"), Value::Null]));
    client.send_raw(b"CONFIG GET save\r\n");
    assert_eq!(client.read(), bulks(&["save", ""]));
}
