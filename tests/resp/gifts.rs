//! What a client is given at once, without a wait, and does not hear of: it goes back.

use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::bulk;
use crate::support::client::int;
use crate::support::client::ok;
use crate::support::node::Node;
use crate::support::wait_for;
use holdfast::types::Millis;

/// How long something may take before the test fails.
const PATIENCE: Millis = Millis(10_000);
/// A lease that no test outlives.
const LONG: &str = "86400000";

/// Sends these to the node and leaves before anything of it is done; waits until it was done.
fn send_and_leave(node: &Node, operator: &mut Client, commands: &[Vec<&str>]) {
    let done = operator.cmd(&["INCR", "done"]).integer() + 1;
    assert_eq!(operator.cmd(&["CLIENT", "PAUSE", "60000", "WRITE"]), ok());
    node.client().pipeline_only(commands);
    assert_eq!(operator.cmd(&["CLIENT", "UNPAUSE"]), ok());
    wait_for("the commands to be done", PATIENCE, || {
        (operator.cmd(&["GET", "done"]) == bulk(&done.to_string())).then_some(())
    });
}

/// Waits until the lock is nobody's, and has been somebody's.
fn until_taken_back(operator: &mut Client, key: &str) {
    wait_for(&format!("{key} to be free"), PATIENCE, || {
        (operator.cmd(&["LOCKS", "INFO", key]) == Value::Null).then_some(())
    });
}

#[test]
fn a_lock_that_was_granted_at_once_in_a_reply_that_nobody_got_is_taken_back() {
    let node = Node::start(&[]);
    let mut operator = node.client();
    for (commands, keys) in [
        (vec![vec!["INCR", "done"], vec!["LOCK", "k", "gone", "PX", LONG]], vec!["k"]),
        (
            vec![vec!["INCR", "done"], vec!["LOCK", "k", "gone", "SHARED", "LIMIT", "3", "PX", LONG]],
            vec!["k"],
        ),
        (
            vec![
                vec!["INCR", "done"],
                vec!["LOCK", "k", "gone", "PX", LONG],
                vec!["LOCK", "k", "gone", "PX", LONG],
            ],
            vec!["k"],
        ),
        (vec![vec!["INCR", "done"], vec!["MLOCK", "3", "k", "l", "k", "gone", "PX", LONG]], vec!["k", "l"]),
        (
            vec![
                vec!["MULTI"],
                vec!["LOCK", "k", "gone", "PX", LONG],
                vec!["INCR", "done"],
                vec!["MLOCK", "1", "l", "gone", "PX", LONG],
                vec!["EXEC"],
            ],
            vec!["k", "l"],
        ),
    ] {
        send_and_leave(&node, &mut operator, &commands);
        keys.iter().for_each(|key| until_taken_back(&mut operator, key));
    }
    // Every one of them was granted.
    assert_eq!(operator.cmd(&["LOCK", "k", "next"]), int(8));
}

#[test]
fn what_an_owner_held_before_stays_when_a_later_reply_is_lost() {
    let node = Node::start(&[]);
    let mut operator = node.client();
    let token = operator.cmd(&["LOCK", "k", "me", "PX", LONG]).integer();
    let shared = operator.cmd(&["LOCK", "s", "me", "SHARED", "PX", LONG]).integer();
    send_and_leave(&node, &mut operator, &[vec!["INCR", "done"], vec!["LOCK", "k", "me", "PX", LONG]]);
    send_and_leave(
        &node,
        &mut operator,
        &[vec!["INCR", "done"], vec!["LOCK", "k", "me", "SHARED", "PX", LONG]],
    );
    send_and_leave(&node, &mut operator, &[vec!["INCR", "done"], vec!["LOCK", "s", "me", "PX", LONG]]);
    // One that is new goes back after them, so they would have, too.
    send_and_leave(&node, &mut operator, &[vec!["INCR", "done"], vec!["LOCK", "new", "me", "PX", LONG]]);
    until_taken_back(&mut operator, "new");
    assert_eq!(operator.cmd(&["FENCE", "k", &token.to_string()]), ok());
    let info = operator.cmd(&["LOCKS", "INFO", "s"]);
    assert_eq!(info.field("mode"), &bulk("exclusive"), "the upgrade stays");
    assert_eq!(info.field("holders").items()[0].items()[1], int(shared + 1));
    // And so does a lock that its owner took again before it could go back.
    assert_eq!(operator.cmd(&["LOCK", "k", "me", "SHARED", "PX", LONG]), int(token));
}

#[test]
fn messages_that_a_transaction_handed_out_in_a_reply_that_nobody_got_are_ready_again() {
    let node = Node::start(&[]);
    let mut operator = node.client();
    assert_eq!(operator.cmd(&["QCONFIG", "SET", "q", "MAXDELIVER", "1"]), ok());
    for payload in ["a", "b", "c"] {
        assert!(!operator.cmd(&["QPUSH", "q", payload]).is_error());
    }
    let pop = vec!["QPOP", "COUNT", "2", "LEASE", LONG, "FROM", "q"];
    send_and_leave(
        &node,
        &mut operator,
        &[vec!["MULTI"], pop.clone(), vec!["INCR", "done"], pop, vec!["EXEC"]],
    );
    wait_for("the messages to come back", PATIENCE, || {
        (operator.cmd(&["QLEN", "q"]) == int(3)).then_some(())
    });
    let popped = operator.cmd(&["QPOP", "COUNT", "10", "FROM", "q"]);
    let attempts: Vec<i64> = popped.items().iter().map(|message| message.items()[3].integer()).collect();
    assert_eq!(attempts, [1, 1, 1], "nobody saw them before: {popped:?}");
    assert!(popped.items().iter().all(|message| message.items()[1].text().ends_with(":2")), "{popped:?}");
}

#[test]
fn a_transaction_with_a_name_keeps_what_it_was_given_for_who_sends_it_again() {
    let node = Node::start(&[]);
    let mut operator = node.client();
    assert!(!operator.cmd(&["QPUSH", "q", "m"]).is_error());
    let commands = [
        vec!["MULTI"],
        vec!["ONCE", "job-1"],
        vec!["INCR", "done"],
        vec!["LOCK", "k", "me", "PX", LONG],
        vec!["QPOP", "LEASE", LONG, "FROM", "q"],
        vec!["EXEC"],
    ];
    send_and_leave(&node, &mut operator, &commands);
    // Its reply is wanted again, and what it tells of is still so.
    let again = operator.pipeline(&commands).pop().unwrap();
    let [_, _, token, popped] = again.items() else { panic!("{again:?}") };
    assert_eq!(operator.cmd(&["FENCE", "k", &token.integer().to_string()]), ok());
    let receipt = popped.items()[0].items()[1].text();
    assert_eq!(operator.cmd(&["QACK", "q", &receipt]), int(1));
}

#[test]
fn a_client_that_wants_no_replies_keeps_what_it_takes() {
    let node = Node::start(&[]);
    let mut operator = node.client();
    let mut silent = node.client();
    silent.pipeline_only(&[
        vec!["CLIENT", "REPLY", "OFF"],
        vec!["LOCK", "k", "me", "PX", LONG],
        vec!["QUIT"],
    ]);
    drop(silent);
    wait_for("the lock to be taken", PATIENCE, || {
        (operator.cmd(&["LOCKS", "INFO", "k"]) != Value::Null).then_some(())
    });
    // What would go back goes back before this one.
    send_and_leave(&node, &mut operator, &[vec!["INCR", "done"], vec!["LOCK", "new", "me", "PX", LONG]]);
    until_taken_back(&mut operator, "new");
    assert_ne!(operator.cmd(&["LOCKS", "INFO", "k"]), Value::Null);
}
