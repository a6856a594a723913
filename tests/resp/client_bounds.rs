//! What clients may take of a node: memory, places, time, and guesses at its password.

use std::time::Duration;

use holdfast::types::Millis;

use crate::support::client::Client;
use crate::support::client::bulk;
use crate::support::client::error;
use crate::support::client::ok;
use crate::support::client::simple;
use crate::support::node::Node;
use crate::support::wait_for;

/// Every wait of this file is over in a few seconds; a busy machine may take longer.
const PATIENCE: Millis = Millis(60_000);

/// The number that INFO has under this name.
fn figure(client: &mut Client, name: &str) -> u64 {
    let info = client.cmd(&["INFO", "everything"]).text();
    let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("{name} is not in:\n{info}")).parse().unwrap()
}

/// Begins to send a value and never ends; the node may close the connection meanwhile.
fn send_half(client: &mut Client, bytes: usize) {
    client.send_raw(b"*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$67108864\r\n");
    let _ = client.try_send_raw(&vec![b'x'; bytes]);
}

/// A connection that asks for the password and has not given it; the node may still load.
fn stranger(node: &Node) -> Client {
    wait_for("the port to open", PATIENCE, || Client::try_connect(node.address()).ok())
}

/// A connection that has given the password `sesame`, to a node that serves.
fn member(node: &Node) -> Client {
    let mut client = stranger(node);
    assert_eq!(client.cmd(&["AUTH", "sesame"]), ok());
    wait_for("the node to serve", PATIENCE, || (client.cmd(&["PING"]) == simple("PONG")).then_some(()));
    client
}

fn with_password(args: &[&str]) -> Node {
    let mut node = Node::prepare(&[&["--requirepass", "sesame"][..], args].concat());
    node.spawn();
    node
}

#[test]
fn the_fattest_clients_go_when_all_take_too_much_together() {
    let node = Node::start(&["--maxmemory-clients", "96mb", "--maxclients", "100"]);
    let mut client = node.client();
    let before = node.resident_bytes();
    let mut protected = node.client();
    assert_eq!(protected.cmd(&["CLIENT", "NO-EVICT", "ON"]), ok());
    send_half(&mut protected, 24 << 20);
    let mut half: Vec<Client> = (0..20).map(|_| node.client()).collect();
    half.iter_mut().for_each(|client| send_half(client, 12 << 20));
    wait_for("clients to be closed", PATIENCE, || {
        let (evicted, memory) =
            (figure(&mut client, "evicted_clients"), figure(&mut client, "mem_clients_normal"));
        (evicted >= 14 && memory <= 96 << 20).then_some(())
    });
    wait_for("their memory to be given back", PATIENCE, || {
        (node.resident_bytes() < before + (160 << 20)).then_some(())
    });
    assert_eq!(client.cmd(&["SET", "k", "v"]), ok());
    // Who is protected goes on where it was, and those that take little stay whatever it takes.
    protected.send_raw(&vec![b'x'; (64 - 24) << 20]);
    protected.send_raw(b"\r\n");
    assert_eq!(protected.read(), ok());
    assert_eq!(client.cmd(&["PING"]), simple("PONG"));
    let (status, metrics) = node.http("/metrics");
    let line =
        metrics.lines().find(|line| line.contains("closed_clients_total{reason=\"maxmemory-clients\"}"));
    assert!(status == 200 && !line.unwrap().ends_with(" 0"), "{line:?}");
    assert!(node.log().contains("all together took more than maxmemory-clients"), "{}", node.log());
}

#[test]
fn memory_of_clients_that_hung_up_is_not_counted_for_long() {
    let node = Node::start(&["--maxmemory-clients", "0"]);
    let mut client = node.client();
    let most = (figure(&mut client, "used_memory") + (120 << 20)).to_string();
    assert_eq!(client.cmd(&["CONFIG", "SET", "maxmemory", &most]), ok());
    let mut half: Vec<Client> = (0..10).map(|_| node.client()).collect();
    half.iter_mut().for_each(|client| send_half(client, 24 << 20));
    wait_for("memory to be full", PATIENCE, || {
        (client.cmd(&["SET", "k", "v"]).error_code() == Some("OOM")).then_some(())
    });
    drop(half);
    wait_for("memory to be free again", PATIENCE, || (client.cmd(&["SET", "k", "v"]) == ok()).then_some(()));
}

#[test]
fn subscribers_that_do_not_read_are_cut_off_and_counted() {
    let node = Node::start(&["--client-output-buffer-limit", "pubsub 1mb 0 0"]);
    let (mut client, mut keeping_up) = (node.client(), node.client());
    let mut deaf: Vec<Client> = (0..3).map(|_| node.client()).collect();
    for subscriber in deaf.iter_mut().chain([&mut keeping_up]) {
        subscriber.send(&["PSUBSCRIBE", "__lock__:*"]);
        subscriber.read();
    }
    let key = "k".repeat(60_000);
    let mut told = 0;
    wait_for("the deaf ones to be cut off", PATIENCE, || {
        client.cmd(&["LOCK", &key, "me"]);
        assert_eq!(keeping_up.read().items()[0], bulk("pmessage"));
        client.cmd(&["UNLOCK", &key, "me"]);
        assert_eq!(keeping_up.read().items()[0], bulk("pmessage"));
        told += 1;
        (figure(&mut client, "client_output_buffer_limit_disconnections") == 3).then_some(())
    });
    assert!(told > 10, "{told}");
    wait_for("their connections to be gone", PATIENCE, || {
        (figure(&mut client, "connected_clients") == 2).then_some(())
    });
}

#[test]
fn who_does_not_log_in_is_let_go() {
    let node = with_password(&["--login-timeout", "1"]);
    let mut member = member(&node);
    let mut silent = stranger(&node);
    let mut talking = stranger(&node);
    silent.set_timeout(Duration::from_secs(60));
    assert_eq!(silent.read_to_close(), "");
    // To ask for other things is not to log in.
    wait_for("the one that talks to be closed", PATIENCE, || {
        talking.try_cmd(&["PING"]).is_err().then_some(())
    });
    assert_eq!(member.cmd(&["PING"]), simple("PONG"));
    assert_eq!(figure(&mut member, "client_login_timeout_disconnections"), 2);
}

#[test]
fn a_stranger_holds_little() {
    let node = with_password(&[]);
    let mut member = member(&node);
    let mut stranger = stranger(&node);
    // Words of the longest kind, but too many of them.
    let word = [&b"$16384\r\n"[..], &[b'x'; 16_384], b"\r\n"].concat();
    let _ = stranger.try_send_raw(&[&b"*10\r\n"[..], &word.repeat(9)].concat());
    assert_eq!(stranger.read_to_close(), "-ERR Protocol error: unauthenticated bulk length\r\n");
    assert_eq!(member.cmd(&["PING"]), simple("PONG"));
}

#[test]
fn a_request_that_does_not_get_on_is_given_up() {
    let node = Node::start(&["--request-stall-timeout", "1"]);
    let (mut client, mut idle, mut stalled) = (node.client(), node.client(), node.client());
    assert_eq!(idle.cmd(&["PING"]), simple("PONG"));
    send_half(&mut stalled, 1000);
    stalled.set_timeout(Duration::from_secs(60));
    assert_eq!(stalled.read_to_close(), "");
    assert_eq!(figure(&mut client, "client_request_stall_disconnections"), 1);
    // Nothing was begun here.
    assert_eq!(idle.cmd(&["PING"]), simple("PONG"));
}

#[test]
fn names_of_connections_are_short() {
    let node = Node::start(&[]);
    let mut client = node.client();
    let (fits, long) = ("n".repeat(256), "n".repeat(257));
    let refused = error("ERR Client names cannot be longer than 256 bytes.");
    assert_eq!(client.cmd(&["CLIENT", "SETNAME", &long]), refused);
    assert_eq!(client.cmd(&["HELLO", "2", "SETNAME", &long]), refused);
    for what in ["lib-name", "lib-ver"] {
        let refused = error(&format!("ERR {what} cannot be longer than 256 bytes."));
        assert_eq!(client.cmd(&["CLIENT", "SETINFO", what, &long]), refused);
        assert_eq!(client.cmd(&["CLIENT", "SETINFO", what, &fits]), ok());
    }
    assert_eq!(client.cmd(&["CLIENT", "SETNAME", &fits]), ok());
    assert_eq!(client.cmd(&["CLIENT", "GETNAME"]), bulk(&fits));
}

#[test]
fn guesses_at_the_password_wait_and_the_right_one_does_not() {
    let node = with_password(&["--auth-failures-free", "3"]);
    let wrong = error("WRONGPASS invalid username-password pair or user is disabled.");
    let mut guesser = stranger(&node);
    for _ in 0..3 {
        assert_eq!(guesser.cmd(&["AUTH", "wrong"]), wrong);
    }
    let is_waiting = |client: &mut Client| {
        let list = client.cmd(&["CLIENT", "LIST"]).text();
        list.lines().any(|line| line.contains(" flags=b ") && line.contains(" cmd=auth ")).then_some(())
    };
    // Ten more take half a minute.
    guesser.send_raw(&b"AUTH wrong\r\n".repeat(10));
    let mut member = member(&node);
    wait_for("an answer to wait", PATIENCE, || is_waiting(&mut member));
    assert_eq!(guesser.read(), wrong);
    // Who comes from the same address has the right one, and is in.
    wait_for("an answer to wait", PATIENCE, || is_waiting(&mut member));
    let mut other = stranger(&node);
    assert!(!other.cmd(&["HELLO", "3", "AUTH", "default", "sesame"]).is_error());
    wait_for("an answer to wait", PATIENCE, || is_waiting(&mut member));
    assert!(figure(&mut member, "acl_access_denied_auth") >= 4);
    assert!(
        node.log().contains("wrong password: 1 failed logins of user 'default' from 127.0.0.1:"),
        "{}",
        node.log()
    );
}

#[test]
fn guesses_in_a_transaction_wait_too() {
    let node = with_password(&["--auth-failures-free", "1"]);
    let (mut guesser, mut member) = (member(&node), member(&node));
    let guess = vec!["AUTH", "wrong"];
    guesser.pipeline_only(&[&[vec!["MULTI"]][..], &vec![guess; 6], &[vec!["EXEC"]]].concat());
    wait_for("the answer to wait", PATIENCE, || {
        let list = member.cmd(&["CLIENT", "LIST"]).text();
        list.lines().any(|line| line.contains(" flags=b ")).then_some(())
    });
    (0..7).for_each(|_| drop(guesser.read()));
    let answers = guesser.read();
    assert!(
        answers.items().len() == 6 && answers.items().iter().all(|answer| answer.is_error()),
        "{answers:?}"
    );
}
