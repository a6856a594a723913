//! Histories as files, and what the checkers make of them.

use crate::support::history::Answer;
use crate::support::history::Event;
use crate::support::history::Kind;
use crate::support::history::lock_operations;
use crate::support::history::pairs;
use crate::support::history::read;
use crate::support::history::string_operations;
use crate::support::history::write;
use crate::support::wgl::Command;
use crate::support::wgl::LockOutput;
use crate::support::wgl::Locks;
use crate::support::wgl::Output;
use crate::support::wgl::Strings;
use crate::support::wgl::check;

fn event(kind: Kind, time: u64, process: u64, op: &str, value: Option<&str>, reply: Option<Answer>) -> Event {
    Event {
        kind,
        time,
        process,
        node: 1 + process % 3,
        op: op.to_owned(),
        key: "k".to_owned(),
        value: value.map(str::to_owned),
        reply,
    }
}

/// A write that is done, one that is not, one of which nobody knows, one without an end, and a read.
fn sample() -> Vec<Event> {
    vec![
        event(Kind::Invoke, 1, 1, "set", Some("7"), None),
        event(Kind::Invoke, 2, 2, "set", Some("8"), None),
        event(Kind::Ok, 3, 1, "set", Some("7"), Some(Answer::Ok)),
        event(Kind::Fail, 4, 2, "set", Some("8"), Some(Answer::Error("CLUSTERDOWN \"\u{e9}\"\n".to_owned()))),
        event(Kind::Invoke, 5, 1, "get", None, None),
        event(Kind::Invoke, 6, 2, "incr", None, None),
        event(Kind::Ok, 7, 1, "get", None, Some(Answer::Value("7".to_owned()))),
        event(Kind::Info, 8, 2, "incr", None, None),
        event(Kind::Invoke, 9, 1, "append", Some("1"), None),
        event(Kind::Invoke, 10, 2, "qpush", Some("x"), None),
    ]
}

#[test]
fn what_is_written_is_read_again() {
    let mut events = sample();
    let list = Answer::List(vec![Answer::Nil, Answer::Number(-3), Answer::List(Vec::new())]);
    events.push(event(Kind::Ok, 11, 2, "qpush", Some("x"), Some(list)));
    let mut file = Vec::new();
    write(&mut file, &events).unwrap();
    let text = String::from_utf8(file).unwrap();
    assert_eq!(text.lines().count(), events.len());
    assert_eq!(
        text.lines().nth(2),
        Some(r#"{"type":"ok","time":3,"process":1,"node":2,"op":"set","key":"k","value":"7","reply":"ok"}"#)
    );
    assert_eq!(read(text.as_bytes()).unwrap(), events);
    let cut = &text[..text.len() - 9];
    let error = read(cut.as_bytes()).unwrap_err().to_string();
    assert!(error.starts_with(&format!("line {}:", events.len())), "{error}");
}

#[test]
fn events_become_operations_with_what_is_known_of_their_end() {
    let operations = string_operations(&sample()).unwrap();
    let seen: Vec<_> = operations.iter().map(|o| (o.id, o.invoked, o.returned, o.output.clone())).collect();
    let value = Output::Value("7".into());
    let expected = [
        (0, 1, Some(3), Some(Output::Ok)),
        (4, 5, Some(7), Some(value)),
        (5, 6, None, None),
        (8, 9, None, None),
    ];
    assert_eq!(seen, expected);
    assert_eq!(operations[2].input, Command::IncrBy(1));
    assert!(check(&operations, &Strings, 1_000).is_linearizable());
}

#[test]
fn locks_are_read_with_their_owners_and_tokens() {
    let events = [
        event(Kind::Invoke, 1, 1, "lock", Some("1"), None),
        event(Kind::Ok, 2, 1, "lock", Some("1"), Some(Answer::Number(1))),
        event(Kind::Invoke, 3, 2, "lock", Some("2"), None),
        event(Kind::Ok, 4, 2, "lock", Some("2"), Some(Answer::Nil)),
        event(Kind::Invoke, 5, 1, "unlock", Some("1"), None),
        event(Kind::Ok, 6, 1, "unlock", Some("1"), Some(Answer::Number(1))),
    ];
    let operations = lock_operations(&events).unwrap();
    let outputs: Vec<_> = operations.iter().map(|operation| operation.output.clone()).collect();
    let expected = [LockOutput::Granted(1), LockOutput::Held, LockOutput::Released(true)].map(Some);
    assert_eq!(outputs, expected);
    assert!(check(&operations, &Locks, 1_000).is_linearizable());
}

#[test]
fn a_history_that_cannot_be_is_refused() {
    let invoke = || event(Kind::Invoke, 5, 1, "get", None, None);
    let end = |time, op| event(Kind::Ok, time, 1, op, None, Some(Answer::Nil));
    for (what, events) in [
        ("two things at once", vec![invoke(), invoke()]),
        ("an end without a beginning", vec![end(5, "get")]),
        ("two ends", vec![invoke(), end(6, "get"), end(7, "get")]),
        ("the end of something else", vec![invoke(), end(6, "set")]),
        ("an end before its beginning", vec![invoke(), end(4, "get")]),
    ] {
        assert!(pairs(&events).is_err(), "{what}");
    }
    let nonsense = [invoke(), event(Kind::Ok, 6, 1, "get", None, Some(Answer::List(Vec::new())))];
    assert!(string_operations(&nonsense).is_err());
    let nothing_to_set = [event(Kind::Invoke, 5, 1, "set", None, None)];
    assert!(string_operations(&nothing_to_set).is_err());
}
