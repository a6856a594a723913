//! The checker of histories, on histories whose verdict is known and against a search over all orders.

use crate::support::Random;
use crate::support::linearizability::Kind;
use crate::support::linearizability::NOTHING;
use crate::support::linearizability::Operation;
use crate::support::linearizability::Violation;
use crate::support::linearizability::check;

fn write(value: u64, invoked: u64, returned: u64) -> Operation {
    Operation { kind: Kind::Write, value, invoked, returned: Some(returned) }
}

fn read(value: u64, invoked: u64, returned: u64) -> Operation {
    Operation { kind: Kind::Read, value, invoked, returned: Some(returned) }
}

fn unknown_write(value: u64, invoked: u64) -> Operation {
    Operation { kind: Kind::Write, value, invoked, returned: None }
}

#[test]
fn histories_that_some_order_explains_pass() {
    let good: &[(&str, &[Operation])] = &[
        ("nothing happened", &[]),
        ("nothing was written", &[read(NOTHING, 1, 2), read(NOTHING, 1, 5)]),
        ("one after another", &[write(1, 1, 2), read(1, 3, 4), write(2, 5, 6), read(2, 7, 8)]),
        ("a read during a write sees it or not", &[write(1, 1, 10), read(NOTHING, 2, 3), read(1, 4, 5)]),
        ("two writes at once, read in either order", &[write(1, 1, 5), write(2, 1, 5), read(2, 6, 7)]),
        ("a long read sees what was there in between", &[write(1, 1, 2), read(1, 3, 20), write(2, 5, 6)]),
        ("an unknown write may take effect at once", &[unknown_write(1, 1), read(1, 2, 3)]),
        (
            "an unknown write may take effect late, after another",
            &[unknown_write(1, 1), write(2, 3, 4), read(2, 5, 6), read(1, 90, 91), read(1, 92, 93)],
        ),
        ("an unknown write may never take effect", &[unknown_write(1, 1), write(2, 3, 4), read(2, 90, 91)]),
        ("moments that touch are not one after another", &[write(1, 1, 2), read(NOTHING, 2, 3)]),
    ];
    for (what, history) in good {
        assert_eq!(check(history), Ok(()), "{what}");
        assert!(explained(history), "{what}");
    }
}

#[test]
fn histories_that_no_order_explains_are_refused() {
    let bad: &[(&str, &[Operation])] = &[
        ("a stale read", &[write(1, 1, 2), write(2, 3, 4), read(1, 5, 6)]),
        ("a lost write", &[write(1, 1, 2), read(NOTHING, 3, 4)]),
        ("a read of what nobody wrote", &[write(1, 1, 2), read(9, 3, 4)]),
        ("a read before its write", &[read(1, 1, 2), write(1, 3, 4)]),
        ("a read before its unknown write", &[read(1, 1, 2), unknown_write(1, 3)]),
        ("back in time during a write", &[write(1, 1, 20), read(1, 2, 3), read(NOTHING, 4, 5)]),
        (
            "back in time during two writes",
            &[write(1, 1, 9), write(2, 1, 9), read(2, 2, 3), read(1, 4, 5), read(2, 6, 7)],
        ),
        (
            "an unknown write that takes effect twice",
            &[unknown_write(1, 1), read(1, 2, 3), write(2, 4, 5), read(2, 6, 7), read(1, 8, 9)],
        ),
        ("a read long after another write", &[write(1, 1, 2), write(2, 4, 5), read(1, 6, 9)]),
    ];
    for (what, history) in bad {
        let verdict = check(history);
        assert!(verdict.is_err(), "{what} passed");
        assert!(!explained(history), "{what}");
        assert!(!verdict.unwrap_err().to_string().is_empty());
    }
}

#[test]
fn a_refusal_names_the_operations() {
    let stale = read(1, 5, 6);
    let history = [write(1, 1, 2), write(2, 3, 4), stale];
    let Violation::Interleaved { first_before_second, second_before_first } = *check(&history).unwrap_err()
    else {
        panic!("refused for another reason");
    };
    assert_eq!(first_before_second, [history[0], history[1]]);
    assert_eq!(second_before_first, [history[1], stale]);
}

/// Whether some order explains the history, by trying them all.
fn explained(history: &[Operation]) -> bool {
    fn go(history: &[Operation], done: u32, value: u64) -> bool {
        let is_open = |i: usize| done & (1 << i) == 0;
        let open = || (0..history.len()).filter(|i| is_open(*i));
        if open().all(|i| history[i].returned.is_none()) {
            return true;
        }
        let first_return = open().filter_map(|i| history[i].returned).min().unwrap_or(u64::MAX);
        open().filter(|i| history[*i].invoked <= first_return).any(|i| {
            let operation = history[i];
            match operation.kind {
                Kind::Write => go(history, done | (1 << i), operation.value),
                Kind::Read => operation.value == value && go(history, done | (1 << i), value),
            }
        })
    }
    go(history, 0, NOTHING)
}

#[test]
fn the_verdict_is_that_of_a_search_over_all_orders() {
    const HISTORIES: u32 = 60_000;
    let seed = 11;
    let mut random = Random::new(seed);
    let mut explained_count = 0;
    for number in 0..HISTORIES {
        let length = 2 + random.below(6);
        let mut history = Vec::new();
        let mut written = 0;
        for _ in 0..length {
            let invoked = random.below(16);
            let returned = Some(invoked + random.below(8));
            if random.below(2) == 0 {
                written += 1;
                let returned = returned.filter(|_| random.below(4) > 0);
                history.push(Operation { kind: Kind::Write, value: written, invoked, returned });
            } else {
                let value = random.below(written + 2);
                history.push(Operation { kind: Kind::Read, value, invoked, returned });
            }
        }
        let expected = explained(&history);
        explained_count += u32::from(expected);
        assert_eq!(check(&history).is_ok(), expected, "history {number} of seed {seed}: {history:?}");
    }
    // A comparison in which one verdict hardly occurs would compare little.
    assert!((HISTORIES / 10..HISTORIES * 9 / 10).contains(&explained_count), "{explained_count}");
}

/// A history of a real register: every operation takes effect at some moment between its invocation and its return.
fn long_history(random: &mut Random, length: u64) -> Vec<Operation> {
    let mut history = Vec::new();
    let mut value = NOTHING;
    for n in 1..=length {
        let moment = n * 10;
        let (invoked, returned) = (moment.saturating_sub(random.below(200)), moment + random.below(200));
        if random.below(3) == 0 {
            value = n;
            let returned = Some(returned).filter(|_| random.below(50) > 0);
            history.push(Operation { kind: Kind::Write, value, invoked, returned });
        } else {
            history.push(read(value, invoked, returned));
        }
    }
    history
}

#[test]
fn a_long_history_passes_and_one_stale_read_in_it_does_not() {
    let mut random = Random::new(5);
    let mut history = long_history(&mut random, 100_000);
    assert_eq!(check(&history), Ok(()));
    let old = history[40_000..].iter().find(|operation| operation.kind == Kind::Read).copied().unwrap();
    let place = 60_000 + history[60_000..].iter().position(|operation| operation.kind == Kind::Read).unwrap();
    history[place].value = old.value;
    assert!(matches!(*check(&history).unwrap_err(), Violation::Interleaved { .. }));
}
