//! Strings and counters.

use std::sync::OnceLock;

use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::bulk;
use crate::support::client::error;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::node::Node;

fn client() -> Client {
    static NODE: OnceLock<Node> = OnceLock::new();
    NODE.get_or_init(|| Node::start(&[])).client()
}

/// Runs commands written as `SET k v`, each with what it answers.
fn expect(client: &mut Client, steps: &[(&str, Value)]) {
    for (command, expected) in steps {
        let words: Vec<&str> = command.split(' ').collect();
        assert_eq!(&client.cmd(&words), expected, "{command}");
    }
}

#[test]
fn set_and_get_with_their_options() {
    expect(
        &mut client(),
        &[
            ("GET set:a", Value::Null),
            ("SET set:a 1", ok()),
            ("GET set:a", bulk("1")),
            ("SET set:a 2 NX", Value::Null),
            ("SET set:b 2 XX", Value::Null),
            ("EXISTS set:b", int(0)),
            ("SET set:a 2 XX", ok()),
            ("SET set:a 3 GET", bulk("2")),
            ("SET set:c 3 NX GET", Value::Null),
            ("SET set:c 4 NX GET", bulk("3")),
            ("GET set:c", bulk("3")),
            ("SET set:a 4 EX 100", ok()),
            ("TTL set:a", int(100)),
            ("SET set:a 5 KEEPTTL", ok()),
            ("TTL set:a", int(100)),
            ("SET set:a 6", ok()),
            ("TTL set:a", int(-1)),
            ("SET set:a 7 PX 5000000", ok()),
            ("SET set:a 7 EX 0", error("ERR invalid expire time in 'set' command")),
            ("SET set:a 7 EX abc", error("ERR value is not an integer or out of range")),
            ("SET set:a 7 EX", error("ERR syntax error")),
            ("SET set:a 7 NX XX", error("ERR syntax error")),
            ("SET set:a 7 EX 10 PX 10", error("ERR syntax error")),
            ("GET set:a", bulk("7")),
        ],
    );
}

#[test]
fn old_names_of_set_are_alive() {
    expect(
        &mut client(),
        &[
            ("SETNX old:a 1", int(1)),
            ("SETNX old:a 2", int(0)),
            ("SETEX old:b 100 v", ok()),
            ("TTL old:b", int(100)),
            ("SETEX old:b 0 v", error("ERR invalid expire time in 'setex' command")),
            ("PSETEX old:b 100000 w", ok()),
            ("GET old:b", bulk("w")),
            ("GETSET old:a 3", bulk("1")),
            ("GETSET old:none 3", Value::Null),
            ("GETDEL old:a", bulk("3")),
            ("GETDEL old:a", Value::Null),
            ("GETEX old:b PERSIST", bulk("w")),
            ("TTL old:b", int(-1)),
            ("GETEX old:b EX 50", bulk("w")),
            ("TTL old:b", int(50)),
        ],
    );
}

#[test]
fn many_keys_at_once() {
    expect(
        &mut client(),
        &[
            ("MSET many:a 1 many:b 2", ok()),
            ("MGET many:a many:none many:b", Value::Array(vec![bulk("1"), Value::Null, bulk("2")])),
            ("MSETNX many:c 3 many:a 4", int(0)),
            ("EXISTS many:c", int(0)),
            ("MSETNX many:c 3 many:d 4", int(1)),
            ("MSET many:a", error("ERR wrong number of arguments for 'mset' command")),
            ("MSET many:a 1 many:b", error("ERR wrong number of arguments for 'mset' command")),
            ("DEL many:a many:b many:c many:none", int(3)),
            ("UNLINK many:d many:d", int(1)),
        ],
    );
}

#[test]
fn parts_of_strings() {
    let mut client = client();
    expect(
        &mut client,
        &[
            ("APPEND part:a Hello", int(5)),
            ("APPEND part:a World", int(10)),
            ("STRLEN part:a", int(10)),
            ("STRLEN part:none", int(0)),
            ("GETRANGE part:a 0 4", bulk("Hello")),
            ("GETRANGE part:a -5 -1", bulk("World")),
            ("GETRANGE part:a 5 1", bulk("")),
            ("GETRANGE part:a 0 999", bulk("HelloWorld")),
            ("SUBSTR part:a 1 2", bulk("el")),
            ("SETRANGE part:a 5 Redis", int(10)),
            ("GET part:a", bulk("HelloRedis")),
            ("SETRANGE part:b -1 x", error("ERR offset is out of range")),
            ("SETRANGE part:b 3 x", int(4)),
        ],
    );
    assert_eq!(client.cmd(&["GET", "part:b"]), bulk("\0\0\0x"));
    assert_eq!(client.cmd(&["SETRANGE", "part:none", "9", ""]), int(0));
    assert_eq!(client.cmd(&["EXISTS", "part:none"]), int(0));
    let refused = client.cmd(&["SETRANGE", "part:b", "536870912", "x"]);
    assert!(refused.text().starts_with("ERR string exceeds maximum allowed size"), "{refused:?}");
}

#[test]
fn counters() {
    expect(
        &mut client(),
        &[
            ("INCR count:a", int(1)),
            ("INCRBY count:a 41", int(42)),
            ("DECR count:a", int(41)),
            ("DECRBY count:a 50", int(-9)),
            ("GET count:a", bulk("-9")),
            ("SET count:b abc", ok()),
            ("INCR count:b", error("ERR value is not an integer or out of range")),
            ("SET count:b 9223372036854775807", ok()),
            ("INCR count:b", error("ERR increment or decrement would overflow")),
            ("GET count:b", bulk("9223372036854775807")),
            ("DECRBY count:b -9223372036854775808", error("ERR decrement would overflow")),
            ("INCRBY count:a abc", error("ERR value is not an integer or out of range")),
            ("SET count:c 010", ok()),
            ("INCR count:c", error("ERR value is not an integer or out of range")),
            ("SET count:d 10.50", ok()),
            ("INCRBYFLOAT count:d 0.1", bulk("10.6")),
            ("INCRBYFLOAT count:d -5", bulk("5.6")),
            ("INCRBYFLOAT count:e 5.0e3", bulk("5000")),
            ("INCRBYFLOAT count:e abc", error("ERR value is not a valid float")),
        ],
    );
}

#[test]
fn keys_and_values_are_bytes() {
    let mut client = client();
    let key: Vec<u8> = (0..=255).collect();
    let value: Vec<u8> = (0..=255).rev().collect();
    assert_eq!(client.cmd_bytes(&[b"SET", &key, &value]), ok());
    assert_eq!(client.cmd_bytes(&[b"GET", &key]), Value::Bulk(value));
    assert_eq!(client.cmd_bytes(&[b"SET", b"", b"empty key"]), ok());
    assert_eq!(client.cmd_bytes(&[b"GET", b""]), bulk("empty key"));
}

#[test]
fn a_value_is_only_set_when_it_is_what_was_expected() {
    expect(
        &mut client(),
        &[
            ("SET if:a 1", ok()),
            ("SET if:a 2 IFEQ 0", Value::Null),
            ("SET if:a 2 IFEQ 1", ok()),
            ("SET if:a 3 IFNE 2", Value::Null),
            ("GET if:a", bulk("2")),
            ("DELEX if:a IFEQ 1", int(0)),
            ("DELEX if:a IFEQ 2", int(1)),
            ("EXISTS if:a", int(0)),
        ],
    );
}
