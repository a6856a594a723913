//! The search for an order (`support/wgl.rs`): on histories whose verdict is known, against all orders there are, and
//! against the checker of registers by zones.

use bytes::Bytes;

use crate::support::Random;
use crate::support::linearizability as zones;
use crate::support::wgl::Command;
use crate::support::wgl::LockCommand;
use crate::support::wgl::LockOutput;
use crate::support::wgl::Locks;
use crate::support::wgl::Model;
use crate::support::wgl::Operation;
use crate::support::wgl::Output;
use crate::support::wgl::Strings;
use crate::support::wgl::Verdict;
use crate::support::wgl::check;
use crate::support::wgl::settle;

type StringOperation = Operation<u64, Command, Output>;
type LockOperation = Operation<u64, LockCommand, LockOutput>;

/// Far more than any of these histories takes.
const STEPS: u64 = 10_000_000;

fn text(value: u64) -> Bytes {
    Bytes::from(value.to_string())
}

fn operation<I, O>(input: I, output: Option<O>, invoked: u64, returned: Option<u64>) -> Operation<u64, I, O> {
    Operation { id: 0, client: 0, key: 0, input, output, invoked, returned }
}

fn done(input: Command, output: Output, invoked: u64, returned: u64) -> StringOperation {
    operation(input, Some(output), invoked, Some(returned))
}

fn set(value: u64, invoked: u64, returned: u64) -> StringOperation {
    done(Command::Set(text(value)), Output::Ok, invoked, returned)
}

fn get(value: u64, invoked: u64, returned: u64) -> StringOperation {
    let output = if value == 0 { Output::Nothing } else { Output::Value(text(value)) };
    done(Command::Get, output, invoked, returned)
}

fn unknown(input: Command, invoked: u64) -> StringOperation {
    operation(input, None, invoked, None)
}

fn unknown_set(value: u64, invoked: u64) -> StringOperation {
    unknown(Command::Set(text(value)), invoked)
}

fn incr(gives: i64, invoked: u64, returned: u64) -> StringOperation {
    done(Command::IncrBy(1), Output::Number(gives), invoked, returned)
}

fn set_nx(value: u64, is_set: bool, invoked: u64, returned: u64) -> StringOperation {
    let output = if is_set { Output::Ok } else { Output::Nothing };
    done(Command::SetIfAbsent(text(value)), output, invoked, returned)
}

fn get_del(value: u64, invoked: u64, returned: u64) -> StringOperation {
    let output = if value == 0 { Output::Nothing } else { Output::Value(text(value)) };
    done(Command::GetDel, output, invoked, returned)
}

fn append(value: u64, length: i64, invoked: u64, returned: u64) -> StringOperation {
    done(Command::Append(text(value)), Output::Number(length), invoked, returned)
}

/// Whether some order explains the history of one key, by trying all of them.
fn explained<M: Model>(model: &M, history: &[Operation<u64, M::Input, M::Output>]) -> bool {
    let left: Vec<usize> = (0..history.len()).collect();
    explained_from(model, history, &left, &model.init())
}

fn explained_from<M: Model>(
    model: &M,
    history: &[Operation<u64, M::Input, M::Output>],
    left: &[usize],
    state: &M::State,
) -> bool {
    let first_return = left.iter().filter_map(|at| history[*at].returned).min();
    let Some(first_return) = first_return else { return true };
    left.iter().filter(|at| history[**at].invoked <= first_return).any(|at| {
        let rest: Vec<usize> = left.iter().copied().filter(|other| other != at).collect();
        let after = model.step(state, &history[*at].input, history[*at].output.as_ref());
        after.is_some_and(|after| explained_from(model, history, &rest, &after))
    })
}

#[test]
fn histories_that_some_order_explains_pass() {
    let good: &[(&str, &[StringOperation])] = &[
        ("nothing happened", &[]),
        ("nothing was written", &[get(0, 1, 2), get(0, 1, 5)]),
        ("one after another", &[set(1, 1, 2), get(1, 3, 4), set(2, 5, 6), get(2, 7, 8)]),
        ("in any order of lines", &[get(2, 7, 8), set(2, 5, 6), get(1, 3, 4), set(1, 1, 2)]),
        ("a read during a write sees it or not", &[set(1, 1, 10), get(0, 2, 3), get(1, 4, 5)]),
        ("two writes at once, read in either order", &[set(1, 1, 5), set(2, 1, 5), get(2, 6, 7)]),
        ("and in the other", &[set(1, 1, 5), set(2, 1, 5), get(1, 6, 7)]),
        ("the same value twice", &[set(1, 1, 2), set(2, 3, 4), set(1, 5, 6), get(1, 7, 8)]),
        ("a long read sees what was there in between", &[set(1, 1, 2), get(1, 3, 20), set(2, 5, 6)]),
        ("an unknown write may take effect at once", &[unknown_set(1, 1), get(1, 2, 3)]),
        (
            "an unknown write may take effect late, after another",
            &[unknown_set(1, 1), set(2, 3, 4), get(2, 5, 6), get(1, 90, 91), get(1, 92, 93)],
        ),
        ("an unknown write may never take effect", &[unknown_set(1, 1), set(2, 3, 4), get(2, 90, 91)]),
        ("moments that touch are not one after another", &[set(1, 1, 2), get(0, 2, 3)]),
        ("only unknown ones", &[unknown_set(1, 1), unknown(Command::Get, 1), unknown(Command::Del, 7)]),
        (
            "one creates, the other is refused",
            &[set_nx(1, true, 1, 9), set_nx(2, false, 1, 9), get(1, 10, 11)],
        ),
        ("taken out once", &[set(1, 1, 2), get_del(1, 3, 9), get_del(0, 3, 9), set_nx(2, true, 10, 11)]),
        ("counters in any order at once", &[incr(2, 1, 9), incr(3, 1, 9), incr(1, 1, 9)]),
        (
            "as many unknown increments as are seen",
            &[
                unknown(Command::IncrBy(1), 1),
                unknown(Command::IncrBy(1), 1),
                unknown(Command::IncrBy(1), 1),
                incr(3, 5, 6),
            ],
        ),
        (
            "appended in the order that lengths tell",
            &[append(22, 2, 1, 9), append(1, 3, 1, 9), get(221, 10, 11)],
        ),
        (
            "an unknown append between two",
            &[append(1, 1, 1, 2), unknown(Command::Append(text(2)), 3), append(3, 3, 4, 5), get(123, 6, 7)],
        ),
    ];
    for (what, history) in good {
        let verdict = check(history, &Strings, STEPS);
        assert!(verdict.is_linearizable(), "{what}: {verdict}");
        assert!(explained(&Strings, history), "{what}");
    }
}

#[test]
fn histories_that_no_order_explains_are_refused_with_the_operation_that_does_not_fit() {
    let bad: &[(&str, usize, &[StringOperation])] = &[
        ("a stale read", 2, &[set(1, 1, 2), set(2, 3, 4), get(1, 5, 6)]),
        ("a lost write", 1, &[set(1, 1, 2), get(0, 3, 4)]),
        ("a read of what nobody wrote", 1, &[set(1, 1, 2), get(9, 3, 4), get(1, 5, 6)]),
        ("a read from the future", 0, &[get(1, 1, 2), set(1, 3, 4)]),
        ("a read before its unknown write", 0, &[get(1, 1, 2), unknown_set(1, 3)]),
        ("back in time during a write", 2, &[set(1, 1, 20), get(1, 2, 3), get(0, 4, 5)]),
        (
            "back in time during two writes",
            4,
            &[set(1, 1, 9), set(2, 1, 9), get(2, 2, 3), get(1, 4, 5), get(2, 6, 7)],
        ),
        (
            "an unknown write that takes effect twice",
            4,
            &[unknown_set(1, 1), get(1, 2, 3), set(2, 4, 5), get(2, 6, 7), get(1, 8, 9)],
        ),
        (
            "an unknown write that must have happened and is gone",
            2,
            &[unknown_set(1, 1), get(1, 2, 3), get(0, 4, 5)],
        ),
        ("two reads in different orders", 3, &[set(1, 1, 4), set(2, 1, 4), get(1, 5, 6), get(2, 7, 8)]),
        ("a lost update", 1, &[incr(1, 1, 4), incr(1, 2, 5)]),
        ("an update that was made twice", 1, &[incr(1, 1, 4), incr(3, 5, 6)]),
        (
            "more increments than there are",
            2,
            &[unknown(Command::IncrBy(1), 1), incr(1, 2, 3), incr(4, 5, 6)],
        ),
        ("two create", 1, &[set_nx(1, true, 1, 9), set_nx(2, true, 1, 10)]),
        ("taken out twice", 2, &[set(1, 1, 2), get_del(1, 3, 9), get_del(1, 3, 10)]),
        ("an append that is lost", 2, &[append(1, 1, 1, 2), append(2, 2, 3, 4), get(2, 5, 6)]),
        ("appends that changed places", 2, &[append(1, 1, 1, 2), append(2, 2, 3, 4), get(21, 5, 6)]),
    ];
    for (what, culprit, history) in bad {
        assert!(!explained(&Strings, history), "{what}");
        match check(history, &Strings, STEPS) {
            Verdict::NotLinearizable { key: 0, operation, what: told } => {
                assert_eq!(operation, *culprit, "{what}: {told}");
                assert!(told.contains("cannot be placed"), "{told}");
            }
            other => panic!("{what}: {other}"),
        }
    }
}

#[test]
fn locks_are_held_by_one_owner_at_a_time() {
    let lock = |owner, token: u64, invoked, returned| {
        let output = if token == 0 { LockOutput::Held } else { LockOutput::Granted(token) };
        operation(LockCommand::Lock(owner), Some(output), invoked, Some(returned))
    };
    let unlock = |owner, is_released, invoked, returned| {
        operation(
            LockCommand::Unlock(owner),
            Some(LockOutput::Released(is_released)),
            invoked,
            Some(returned),
        )
    };
    let maybe = |input, invoked| operation(input, None, invoked, None);
    let histories: &[(&str, bool, &[LockOperation])] = &[
        (
            "one after another",
            true,
            &[lock(1, 5, 1, 2), lock(2, 0, 3, 4), unlock(1, true, 5, 6), lock(2, 9, 7, 8)],
        ),
        ("two holders", false, &[lock(1, 5, 1, 2), lock(2, 6, 3, 4)]),
        ("two at once", false, &[lock(1, 5, 1, 9), lock(2, 6, 1, 9)]),
        ("the same owner again", true, &[lock(1, 5, 1, 2), lock(1, 5, 3, 4)]),
        ("the same owner with another token", false, &[lock(1, 5, 1, 2), lock(1, 6, 3, 4)]),
        ("a token that is too small", false, &[lock(1, 5, 1, 2), unlock(1, true, 3, 4), lock(2, 4, 5, 6)]),
        ("refused, though free", false, &[lock(1, 0, 1, 2), lock(2, 1, 3, 4)]),
        ("released by another", false, &[lock(1, 5, 1, 2), unlock(2, true, 3, 4)]),
        ("released twice", false, &[lock(1, 5, 1, 2), unlock(1, true, 3, 9), unlock(1, true, 3, 9)]),
        ("refused by one that may hold it", true, &[maybe(LockCommand::Lock(1), 1), lock(2, 0, 2, 3)]),
        (
            "one that may hold it, and shows its token later",
            true,
            &[maybe(LockCommand::Lock(1), 1), lock(2, 0, 2, 3), lock(1, 4, 5, 6), unlock(1, true, 7, 8)],
        ),
        (
            "one that must hold it, and another that does",
            false,
            &[maybe(LockCommand::Lock(1), 1), lock(2, 0, 2, 3), lock(2, 4, 5, 6)],
        ),
        (
            "unless it may have released it",
            true,
            &[
                maybe(LockCommand::Lock(1), 1),
                lock(2, 0, 2, 3),
                maybe(LockCommand::Unlock(1), 4),
                lock(2, 4, 5, 6),
            ],
        ),
    ];
    for (what, is_good, history) in histories {
        assert_eq!(explained(&Locks, history), *is_good, "{what}");
        let verdict = check(history, &Locks, STEPS);
        assert_eq!(verdict.is_linearizable(), *is_good, "{what}: {verdict}");
    }
}

#[test]
fn keys_are_checked_alone_and_the_bad_one_is_named() {
    let at = |key: u64, operation: StringOperation| StringOperation { key, ..operation };
    let good = [at(1, set(1, 1, 2)), at(2, get(0, 3, 4)), at(1, get(1, 5, 6))];
    assert!(check(&good, &Strings, STEPS).is_linearizable());
    let bad = [at(1, set(1, 1, 2)), at(2, get(1, 3, 4)), at(3, get(0, 5, 6))];
    assert!(matches!(check(&bad, &Strings, STEPS), Verdict::NotLinearizable { key: 2, operation: 1, .. }));
}

#[test]
fn what_is_not_decided_within_the_budget_is_no_pass() {
    // Nobody saw what they gave, so every order of them must be tried.
    let sent = |value| StringOperation { output: None, ..append(value, 0, 1, 9) };
    let mut many: Vec<StringOperation> = (1..=9).map(sent).collect();
    many.push(get(7, 10, 11));
    assert!(matches!(check(&many, &Strings, 1_000), Verdict::Unknown { steps } if steps > 1_000));
    let mut with_a_bad_key = many.clone();
    with_a_bad_key.push(StringOperation { key: 1, ..get(7, 1, 2) });
    let verdict = check(&with_a_bad_key, &Strings, 1_000);
    assert!(matches!(verdict, Verdict::NotLinearizable { key: 1, .. }), "{verdict}");
}

#[test]
fn what_the_log_tells_of_unknown_outcomes_is_taken_into_the_history() {
    let named = |id: u64, operation: StringOperation| StringOperation { id, ..operation };
    let history = || {
        vec![
            named(1, set(1, 1, 2)),
            named(2, unknown_set(2, 3)),
            named(3, unknown_set(3, 3)),
            named(4, get(1, 20, 21)),
            named(5, unknown(Command::Get, 22)),
        ]
    };
    assert!(check(&history(), &Strings, STEPS).is_linearizable());
    let never = settle(history(), |_| None);
    assert_eq!(never.iter().map(|operation| operation.id).collect::<Vec<_>>(), [1, 4]);
    assert!(check(&never, &Strings, STEPS).is_linearizable());
    let late = settle(history(), |operation| (operation.id == 3).then_some(25));
    assert_eq!(late[1].returned, Some(25));
    assert!(check(&late, &Strings, STEPS).is_linearizable());
    let early = settle(history(), |operation| (operation.id == 3).then_some(1));
    assert_eq!(early[1].returned, Some(3), "not before it was sent");
    assert!(!check(&early, &Strings, STEPS).is_linearizable());
}

/// Makes histories by carrying operations out, each at a moment between its two ends.
struct Maker {
    random: Random,
    now: u64,
    written: u64,
}

/// Which commands a made history is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mix {
    /// GET, and SET of a value that is never written again.
    Register,
    /// All commands, of few values.
    Everything,
    /// INCR and GET.
    Counter,
}

impl Maker {
    fn new(seed: u64) -> Maker {
        Maker { random: Random::new(seed), now: 1, written: 0 }
    }

    fn command(&mut self, mix: Mix) -> Command {
        self.written += 1;
        let value = match mix {
            Mix::Register => text(self.written),
            Mix::Everything | Mix::Counter => text(1 + self.random.below(3)),
        };
        match (mix, self.random.below(10)) {
            (Mix::Register | Mix::Counter, 0..5) | (Mix::Everything, 0..3) => Command::Get,
            (Mix::Register, _) => Command::Set(value),
            (Mix::Counter, _) => Command::IncrBy(1),
            (Mix::Everything, 3) => Command::Set(value),
            (Mix::Everything, 4) => Command::SetIfAbsent(value),
            (Mix::Everything, 5) => Command::GetDel,
            (Mix::Everything, 6) => Command::Del,
            (Mix::Everything, 7) => Command::IncrBy(1),
            (Mix::Everything, 8) => Command::Swap(value),
            (Mix::Everything, _) => Command::Append(value),
        }
    }

    /// A history of one key that is linearizable, with about so many operations at once, and of a hundred so many of
    /// unknown outcome.
    fn make(&mut self, mix: Mix, key: u64, length: u64, at_once: u64, unknown: u64) -> Vec<StringOperation> {
        let mut moments = Vec::new();
        for id in 0..length {
            self.now += self.random.below(20);
            let input = self.command(mix);
            let takes = |random: &mut Random| random.below(10 * at_once);
            let moment = self.now + takes(&mut self.random);
            let returned = Some(moment + takes(&mut self.random));
            let made =
                StringOperation { id, client: id % at_once, ..operation(input, None, self.now, returned) };
            moments.push((moment, StringOperation { key, ..made }));
        }
        let mut state = Strings.init();
        for (moment, operation) in &mut moments {
            if self.random.below(100) < unknown {
                operation.returned = None;
                *moment = match self.random.below(3) {
                    0 => u64::MAX,
                    1 => *moment,
                    _ => *moment + self.random.below(1_000),
                };
            }
        }
        moments.sort_by_key(|(moment, operation)| (*moment, operation.id));
        for (moment, operation) in &mut moments {
            if *moment < u64::MAX {
                let (after, output) = carried_out(&state, &operation.input);
                state = after;
                operation.output = operation.returned.map(|_| output);
            }
        }
        let mut history: Vec<StringOperation> = moments.into_iter().map(|(_, operation)| operation).collect();
        history.sort_by_key(|operation| operation.id);
        history
    }

    /// Changes what one operation gave; false when there is none whose output can be changed.
    fn change_one(&mut self, history: &mut [StringOperation], mix: Mix) -> bool {
        for _ in 0..20 {
            let at = self.random.below(history.len() as u64) as usize;
            let other = match (&history[at].input, &history[at].output) {
                (Command::Get | Command::GetDel | Command::Swap(_), Some(before)) => {
                    let value = match mix {
                        Mix::Register => 1 + self.random.below(self.written),
                        Mix::Everything | Mix::Counter => 1 + self.random.below(3),
                    };
                    let other = Output::Value(text(value));
                    if other == *before { Output::Nothing } else { other }
                }
                (_, Some(Output::Number(number))) => Output::Number(number ^ 1),
                (_, Some(Output::Ok)) if matches!(history[at].input, Command::SetIfAbsent(_)) => {
                    Output::Nothing
                }
                _ => continue,
            };
            history[at].output = Some(other);
            return true;
        }
        false
    }
}

/// The state after an operation, and what it gives: the one output that the model allows.
fn carried_out(state: &Option<Bytes>, input: &Command) -> (Option<Bytes>, Output) {
    let number = |bytes: &Bytes| std::str::from_utf8(bytes).ok()?.parse::<i64>().ok();
    let mut candidates = vec![Output::Ok, Output::Nothing, Output::Refused];
    candidates.extend((0..=1).map(Output::Number));
    if let Some(value) = state {
        candidates.push(Output::Value(value.clone()));
        candidates.extend((1..=value.len() as i64 + 8).map(Output::Number));
        candidates.extend(number(value).map(|number| Output::Number(number.saturating_add(1))));
    }
    let possible = candidates.into_iter().find_map(|output| {
        let after = Strings.step(state, input, Some(&output))?;
        Some((after, output))
    });
    possible.expect("every command gives something")
}

#[test]
fn what_an_atomic_register_gave_passes() {
    for seed in 1..=300 {
        let mut maker = Maker::new(seed);
        let mix = [Mix::Register, Mix::Everything, Mix::Counter][seed as usize % 3];
        let unknown = [0, 5, 20][seed as usize / 3 % 3];
        let history = maker.make(mix, 0, 150, 1 + seed % 8, unknown);
        let verdict = check(&history, &Strings, STEPS);
        assert!(verdict.is_linearizable(), "seed {seed}, {mix:?}: {verdict}");
    }
}

#[test]
fn small_histories_have_the_verdict_that_trying_every_order_gives() {
    let (mut good, mut bad) = (0, 0);
    for seed in 1..=12_000 {
        let mut maker = Maker::new(seed);
        let mix = [Mix::Register, Mix::Everything, Mix::Counter][seed as usize % 3];
        let length = 2 + seed % 6;
        let mut history = maker.make(mix, 0, length, 1 + seed % 4, [0, 30, 60][seed as usize / 3 % 3]);
        for _ in 0..seed % 3 {
            maker.change_one(&mut history, mix);
        }
        let is_explained = explained(&Strings, &history);
        let verdict = check(&history, &Strings, STEPS);
        assert!(!matches!(verdict, Verdict::Unknown { .. }));
        assert_eq!(verdict.is_linearizable(), is_explained, "seed {seed}: {history:#?}: {verdict}");
        if let Verdict::NotLinearizable { operation, .. } = verdict {
            // Whoever leaves it out, and what came later, has nothing to complain of.
            let end = history[operation].returned;
            let before = |other: &&StringOperation| Some(other.invoked) <= end && other.returned < end;
            let still_going = |other: &&StringOperation| Some(other.invoked) <= end && !before(other);
            let mut rest: Vec<StringOperation> = history.iter().filter(before).cloned().collect();
            rest.extend(history.iter().filter(still_going).map(|other| StringOperation {
                output: None,
                returned: None,
                ..other.clone()
            }));
            assert!(explained(&Strings, &rest), "seed {seed}: {history:#?} without {operation}");
        }
        *if is_explained { &mut good } else { &mut bad } += 1;
    }
    assert!(good > 2_000 && bad > 2_000, "{good} good, {bad} bad");
}

#[test]
fn registers_have_the_verdict_that_zones_give() {
    let zone = |operation: &StringOperation| {
        let number = |value: &Bytes| std::str::from_utf8(value).unwrap().parse().unwrap();
        let (kind, value) = match (&operation.input, &operation.output) {
            (Command::Set(value), _) => (zones::Kind::Write, number(value)),
            (Command::Get, Some(Output::Value(value))) => (zones::Kind::Read, number(value)),
            (Command::Get, Some(Output::Nothing) | None) => (zones::Kind::Read, zones::NOTHING),
            other => panic!("{other:?}"),
        };
        zones::Operation { kind, value, invoked: operation.invoked, returned: operation.returned }
    };
    let (mut good, mut bad) = (0, 0);
    for seed in 1..=3_000 {
        let mut maker = Maker::new(seed);
        let mut history =
            maker.make(Mix::Register, 0, 10 + seed % 60, 1 + seed % 6, [0, 5, 30][seed as usize % 3]);
        if seed % 5 > 1 {
            maker.change_one(&mut history, Mix::Register);
        }
        let by_zones = zones::check(&history.iter().map(zone).collect::<Vec<_>>()).is_ok();
        let verdict = check(&history, &Strings, STEPS);
        assert_eq!(verdict.is_linearizable(), by_zones, "seed {seed}: {verdict}");
        *if by_zones { &mut good } else { &mut bad } += 1;
    }
    assert!(good > 500 && bad > 500, "{good} good, {bad} bad");
}

#[test]
fn a_hundred_thousand_operations_on_a_hundred_keys_take_few_steps_each() {
    let mut maker = Maker::new(7);
    let mut history = Vec::new();
    for key in 0..100 {
        maker.now = 1;
        history.append(&mut maker.make(Mix::Register, key, 1_000, 10, 5));
    }
    let unknown = history.iter().filter(|operation| operation.returned.is_none()).count();
    assert!((4_000..6_000).contains(&unknown), "{unknown}");
    let verdict = check(&history, &Strings, 200_000);
    assert!(verdict.is_linearizable(), "{verdict}");
    let last_read = history.iter().rposition(|operation| {
        operation.input == Command::Get && operation.returned.is_some() && operation.invoked > 5_000
    });
    let last_read = last_read.unwrap();
    history[last_read].output = Some(Output::Nothing);
    let verdict = check(&history, &Strings, 200_000);
    assert!(matches!(verdict, Verdict::NotLinearizable { key: 99, .. }), "{verdict}");
}
