//! Decides whether what clients saw of some keys can have happened one operation after another.
//!
//! The search of J. Wing and C. Gong (Testing and Verifying Concurrent Objects, 1993) with the memory of G. Lowe
//! (Testing for Linearizability, 2017), key by key: a history over many keys is linearizable if it is so for each.
//!
//! ```text
//!   operations      |--a--|   |---c---|        events in order of time, a list that operations are taken out of:
//!                      |----b----|               call a, call b, return a, call c, return b, return c
//!
//!   Whatever is called before the first return may be next. Take one that the model allows, put it behind those that
//!   were taken before, and go on; where none is left to try, put the last one back. A state of the model that was
//!   reached with the same operations before is not tried again.
//! ```
//! An operation of unknown outcome may take effect at any time after it was sent, or never. Such operations are only
//! tried where no other can go on, and then in the shortest chain that lets one: so an unknown write costs little until
//! somebody reads it. One that was tried with fewer of them used up, in vain, is not tried with more.
//!
//! Two things more keep the search short: what changes nothing and fits is placed at once, and a state that is still
//! to be read, and that nothing could bring back, is not left (the model says what needs and makes which state).
//!
//! The time is exponential at worst, so there is a budget; [`Verdict::Unknown`] is not a pass. [`settle`] takes the
//! unknown outcomes out that the log can tell.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fmt;
use std::fmt::Debug;
use std::hash::Hash;

use bytes::Bytes;

/// One operation on one key. Times are from one clock for all clients, in any unit; moments that touch are not one
/// after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation<K, I, O> {
    /// Names it, for [`settle`].
    pub id: u64,
    pub client: u64,
    pub key: K,
    pub input: I,
    /// `None`: nobody saw what it gave.
    pub output: Option<O>,
    /// When the client sent it.
    pub invoked: u64,
    /// When it had certainly taken effect. `None`: it may do so at any later time, or never.
    pub returned: Option<u64>,
}

/// What operations on one key do.
pub trait Model {
    type State: Clone + Eq + Hash + Debug;
    type Input: Clone + PartialEq + Debug;
    type Output: Clone + Debug;

    /// The state before every operation.
    fn init(&self) -> Self::State;

    /// The state after an operation, or `None` when it cannot have given this output there. `None` as output allows
    /// any.
    fn step(
        &self,
        state: &Self::State,
        input: &Self::Input,
        output: Option<&Self::Output>,
    ) -> Option<Self::State>;

    /// The one state in which an operation can have given this output. `None`: there may be several.
    fn needs(&self, _input: &Self::Input, _output: Option<&Self::Output>) -> Option<Self::State> {
        None
    }

    /// The one state that an operation that gave this output can have changed any other to. `None`: there may be
    /// several.
    fn makes(&self, _input: &Self::Input, _output: Option<&Self::Output>) -> Option<Self::State> {
        None
    }

    /// What an operation that gave this output does, whatever the state was; makes the search faster.
    fn effect(&self, _input: &Self::Input, _output: Option<&Self::Output>) -> Effect {
        Effect::Any
    }
}

/// What an operation does to the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// It gives this output in every state, and the state after it does not depend on the one before.
    Overwrites,
    /// Anything else.
    Any,
}

/// What came of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<K> {
    /// Some order explains what was seen.
    Linearizable,
    /// No order does, for one key.
    NotLinearizable {
        key: K,
        /// The operation that cannot be placed: its position in the history. What clients had seen when it returned
        /// cannot be explained; what they had seen just before can.
        operation: usize,
        /// For people: that operation, and an order of those before it.
        what: String,
    },
    /// No order was found within the budget, after this many steps.
    Unknown { steps: u64 },
}

impl<K> Verdict<K> {
    /// Whether an order was found.
    pub fn is_linearizable(&self) -> bool {
        matches!(self, Verdict::Linearizable)
    }
}

/// Checks a history, in any order of operations. `steps_max` bounds the times that the model is asked, for each key.
pub fn check<K, M>(history: &[Operation<K, M::Input, M::Output>], model: &M, steps_max: u64) -> Verdict<K>
where
    K: Ord + Clone,
    M: Model,
{
    let mut by_key: BTreeMap<&K, Vec<usize>> = BTreeMap::new();
    for (at, operation) in history.iter().enumerate() {
        by_key.entry(&operation.key).or_default().push(at);
    }
    let mut unknown = None;
    for (key, positions) in by_key {
        let of_key: Vec<_> = positions.iter().map(|at| history[*at].clone()).collect();
        let mut search = Search::new(&of_key, model, steps_max);
        match search.run() {
            Found::Order(_) => {}
            Found::NoOrder => {
                let (operation, what) = witness(&of_key, model, steps_max);
                return Verdict::NotLinearizable { key: key.clone(), operation: positions[operation], what };
            }
            Found::NotEnoughSteps => unknown = Some(unknown.unwrap_or(0) + search.steps),
        }
    }
    unknown.map_or(Verdict::Linearizable, |steps| Verdict::Unknown { steps })
}

/// The first operation in order of returns up to which no order explains a history that none explains as a whole, and
/// an order that does so without it.
fn witness<K, M>(history: &[Operation<K, M::Input, M::Output>], model: &M, steps_max: u64) -> (usize, String)
where
    K: Clone,
    M: Model,
{
    let mut ends: Vec<usize> = (0..history.len()).filter(|at| history[*at].returned.is_some()).collect();
    ends.sort_by_key(|at| history[*at].returned);
    // As it was known after so many returns.
    let known_after = |count: usize| -> Vec<_> {
        let now = count.checked_sub(1).and_then(|last| history[ends[last]].returned);
        let mut known = history.to_vec();
        for at in &ends[count..] {
            (known[*at].returned, known[*at].output) = (None, None);
        }
        known.retain(|operation| Some(operation.invoked) <= now);
        known
    };
    let found_after = |count: usize| Search::new(&known_after(count), model, steps_max).run();
    let (mut good, mut bad) = (0, ends.len());
    while good + 1 < bad {
        let middle = good.midpoint(bad);
        match found_after(middle) {
            Found::NoOrder => bad = middle,
            Found::Order(_) | Found::NotEnoughSteps => good = middle,
        }
    }
    // Nothing that did not return needs an order, so one return at least was too many.
    let culprit = ends[bad - 1];
    let what = match found_after(bad - 1) {
        Found::Order(order) => format!("{} cannot be placed; without it: {order}", history[culprit]),
        Found::NoOrder | Found::NotEnoughSteps => format!("{} cannot be placed", history[culprit]),
    };
    (culprit, what)
}

/// Takes unknown outcomes out of a history, as far as the committed log tells: `committed_at` gives when an operation
/// was in the log for certain, or `None` when it never came there and never will.
pub fn settle<K, I, O>(
    history: Vec<Operation<K, I, O>>,
    committed_at: impl Fn(&Operation<K, I, O>) -> Option<u64>,
) -> Vec<Operation<K, I, O>> {
    let settle = |mut operation: Operation<K, I, O>| {
        if operation.returned.is_none() {
            operation.returned = Some(committed_at(&operation)?.max(operation.invoked));
        }
        Some(operation)
    };
    history.into_iter().filter_map(settle).collect()
}

// ---- the search ---------------------------------------------------------------------------------------

enum Found {
    /// For people: its end, and the state after it.
    Order(String),
    NoOrder,
    NotEnoughSteps,
}

/// Operations at the end of an order that are told.
const ORDER_SHOWN: usize = 6;

/// A set of small numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Bits(Vec<u64>);

impl Bits {
    fn has(&self, at: usize) -> bool {
        self.0.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }

    fn with(&self, at: usize) -> Bits {
        let mut bits = self.clone();
        bits.insert(at);
        bits
    }

    fn insert(&mut self, at: usize) {
        if self.0.len() <= at / 64 {
            self.0.resize(at / 64 + 1, 0);
        }
        self.0[at / 64] |= 1 << (at % 64);
    }

    fn remove(&mut self, at: usize) {
        self.0[at / 64] &= !(1 << (at % 64));
    }

    fn is_within(&self, other: &Bits) -> bool {
        let word = |at: usize| other.0.get(at).copied().unwrap_or(0);
        self.0.iter().enumerate().all(|(at, own)| own & !word(at) == 0)
    }
}

/// Which states are still needed, and what can still make them. A state that is needed, and that nothing makes any
/// more, must not be left: without this the search would learn that only from the operation that needs it, much later.
struct Supplies<S> {
    numbers: HashMap<S, usize>,
    /// Of each known operation: the state that it needs, by number.
    needs: Vec<Option<usize>>,
    makes: Vec<Makes>,
    /// Of each state: how many operations that were not placed need it, and how many make it.
    needed: Vec<usize>,
    makers: Vec<usize>,
    /// How many operations that were not placed may make any state.
    wild: usize,
    /// Of each state: the unknown operations that make it; and those that may make any.
    unknown_makers: Vec<Vec<usize>>,
    unknown_wild: Vec<usize>,
}

/// What an operation changes other states to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Makes {
    Nothing,
    /// By number.
    One(usize),
    Any,
}

impl<S: Clone + Eq + Hash + Debug> Supplies<S> {
    fn new<K, M: Model<State = S>>(
        history: &[Operation<K, M::Input, M::Output>],
        model: &M,
        known: &[usize],
        unknown: &[usize],
    ) -> Supplies<S> {
        let mut supplies = Supplies {
            numbers: HashMap::new(),
            needs: Vec::new(),
            makes: Vec::new(),
            needed: Vec::new(),
            makers: Vec::new(),
            wild: 0,
            unknown_makers: Vec::new(),
            unknown_wild: Vec::new(),
        };
        for (number, at) in known.iter().enumerate() {
            let (input, output) = (&history[*at].input, history[*at].output.as_ref());
            let needs = model.needs(input, output).map(|state| supplies.number(state));
            let makes = match model.makes(input, output) {
                _ if model.effect(input, output) == Effect::None => Makes::Nothing,
                Some(state) => Makes::One(supplies.number(state)),
                None => Makes::Any,
            };
            // What needs the state that it makes does not bring it back.
            let is_own = needs.is_some_and(|needs| makes == Makes::One(needs));
            supplies.needs.push(needs);
            supplies.makes.push(if is_own { Makes::Nothing } else { makes });
            supplies.count(number, |count| count + 1);
        }
        for (number, at) in unknown.iter().enumerate() {
            match model.makes(&history[*at].input, None).map(|state| supplies.number(state)) {
                Some(state) => supplies.unknown_makers[state].push(number),
                None => supplies.unknown_wild.push(number),
            }
        }
        supplies
    }

    fn number(&mut self, state: S) -> usize {
        let next = self.numbers.len();
        let number = *self.numbers.entry(state).or_insert(next);
        if number == next {
            self.needed.push(0);
            self.makers.push(0);
            self.unknown_makers.push(Vec::new());
        }
        number
    }

    /// A known operation is counted, or no longer.
    fn count(&mut self, number: usize, change: impl Fn(usize) -> usize) {
        if let Some(state) = self.needs[number] {
            self.needed[state] = change(self.needed[state]);
        }
        match self.makes[number] {
            Makes::Nothing => {}
            Makes::One(state) => self.makers[state] = change(self.makers[state]),
            Makes::Any => self.wild = change(self.wild),
        }
    }

    /// Whether some operation that is left needs this state, and none could bring it back.
    fn is_lost_without(&self, state: &S, used: &Bits) -> bool {
        let Some(state) = self.numbers.get(state).copied() else { return false };
        let is_left = |number: &usize| !used.has(*number);
        self.needed[state] > 0
            && self.makers[state] == 0
            && self.wild == 0
            && !self.unknown_makers[state].iter().any(is_left)
            && !self.unknown_wild.iter().any(is_left)
    }
}

/// Which operations were placed, in little room: all before the first word, and these bits from there on.
type Placed = (usize, Vec<u64>);

/// A node of the list: the call (even) or the return (odd) of an operation; the last one is the end of the list.
type Node = usize;

/// Where the search stands: what was placed before, and what was tried behind it.
struct Frame<S> {
    state: S,
    /// Unknown operations that were used up.
    used: Bits,
    /// The next call to try; the end of the list before the first.
    cursor: Node,
    /// States that unknown operations lead to from here, shortest chains first, once they are wanted.
    chains: Option<Vec<(Bits, S)>>,
    /// Which of them is tried.
    chain: usize,
    /// The operation that was placed here.
    placed: usize,
}

impl<S> Frame<S> {
    /// Everything was tried in this state. The next one is the first of these chains, or of those there are.
    fn go_on(&mut self, end: Node, chains: Option<Vec<(Bits, S)>>) {
        self.cursor = end;
        match (&self.chains, chains) {
            (None, chains) => self.chains = Some(chains.unwrap_or_default()),
            (Some(_), _) => self.chain += 1,
        }
    }
}

struct Search<'a, K, M: Model> {
    history: &'a [Operation<K, M::Input, M::Output>],
    model: &'a M,
    /// Positions in the history, by time of call: operations that must be placed, and those that may be.
    known: Vec<usize>,
    unknown: Vec<usize>,
    /// For each unknown operation the first that is like it.
    alike: Vec<usize>,
    /// What the known operations do in any state.
    effects: Vec<Effect>,
    supplies: Supplies<M::State>,
    next: Vec<Node>,
    before: Vec<Node>,
    placed: Bits,
    /// For every set of placed operations and state: which unknown ones were used up when it was tried.
    tried: HashMap<(Placed, M::State), Vec<Bits>>,
    steps: u64,
    steps_max: u64,
}

impl<'a, K, M: Model> Search<'a, K, M> {
    fn new(
        history: &'a [Operation<K, M::Input, M::Output>],
        model: &'a M,
        steps_max: u64,
    ) -> Search<'a, K, M> {
        let is_known = |at: &usize| history[*at].returned.is_some();
        let mut positions: Vec<usize> = (0..history.len()).collect();
        positions.sort_by_key(|at| history[*at].invoked);
        let (known, mut unknown): (Vec<usize>, Vec<usize>) = positions.into_iter().partition(is_known);
        unknown.retain(|at| model.effect(&history[*at].input, None) != Effect::None);
        let input = |at: &usize| &history[*at].input;
        let first_alike =
            |at: &usize| unknown.iter().position(|other| input(other) == input(at)).unwrap_or(0);
        let alike = unknown.iter().map(first_alike).collect();
        let effect = |at: &usize| model.effect(&history[*at].input, history[*at].output.as_ref());
        let effects = known.iter().map(effect).collect();
        let supplies = Supplies::new(history, model, &known, &unknown);
        let mut events: Vec<(u64, bool, Node)> = Vec::with_capacity(2 * known.len());
        for (number, at) in known.iter().enumerate() {
            let operation = &history[*at];
            let returned = operation.returned.unwrap_or(u64::MAX);
            assert!(returned >= operation.invoked, "an operation returned before it was invoked");
            events.push((operation.invoked, false, 2 * number));
            events.push((returned, true, 2 * number + 1));
        }
        // At one moment calls come before returns.
        events.sort_unstable();
        let end = events.len();
        let (mut next, mut before) = (vec![end; end + 1], vec![end; end + 1]);
        let mut last = end;
        for (_, _, node) in events {
            (next[last], before[node]) = (node, last);
            last = node;
        }
        (next[last], before[end]) = (end, last);
        Search {
            history,
            model,
            known,
            unknown,
            alike,
            effects,
            supplies,
            next,
            before,
            placed: Bits::default(),
            tried: HashMap::new(),
            steps: 0,
            steps_max,
        }
    }

    fn end(&self) -> Node {
        self.next.len() - 1
    }

    /// The first event that is left; the end of the list when everything was placed.
    fn first(&self) -> Node {
        self.next[self.end()]
    }

    fn run(&mut self) -> Found {
        let end = self.end();
        let mut stack = vec![self.frame(self.model.init(), Bits::default())];
        loop {
            if self.first() == end {
                return Found::Order(self.order(&stack));
            }
            if self.steps > self.steps_max {
                return Found::NotEnoughSteps;
            }
            let Some(frame) = stack.last_mut() else { return Found::NoOrder };
            let chain = frame.chains.as_ref().map(|chains| chains.get(frame.chain));
            let (used, state) = match chain {
                None => (&frame.used, &frame.state),
                Some(Some((used, state))) => (used, state),
                Some(None) => {
                    stack.pop();
                    if let Some(frame) = stack.last() {
                        self.put_back(frame.placed);
                    }
                    continue;
                }
            };
            if frame.cursor == end {
                let idle = self.fitting_idle(state);
                if let Some(number) = idle {
                    let next = self.frame(state.clone(), used.clone());
                    frame.placed = number;
                    frame.go_on(end, None);
                    self.take_out(number);
                    stack.push(next);
                    continue;
                }
                frame.cursor = self.first();
            }
            if !frame.cursor.is_multiple_of(2) {
                // The first return: what is called behind it may not be placed before it.
                let first_return = frame.cursor;
                if frame.chains.is_some() {
                    frame.go_on(end, None);
                } else {
                    let chains = self.chains(frame, first_return);
                    frame.go_on(end, Some(chains));
                }
                continue;
            }
            let number = frame.cursor / 2;
            frame.cursor = self.next[frame.cursor];
            // Before what overwrites everything no unknown operation is wanted.
            if frame.chains.is_some() && self.effects[number] == Effect::Overwrites {
                continue;
            }
            let operation = &self.history[self.known[number]];
            self.steps += 1;
            let Some(after) = self.model.step(state, &operation.input, operation.output.as_ref()) else {
                continue;
            };
            let (before, used) = (state.clone(), used.clone());
            self.take_out(number);
            let is_lost = after != before && self.supplies.is_lost_without(&before, &used);
            if !is_lost && self.is_new(&used, &after) {
                frame.placed = number;
                let next = self.frame(after, used);
                stack.push(next);
            } else {
                self.put_back(number);
            }
        }
    }

    fn frame(&self, state: M::State, used: Bits) -> Frame<M::State> {
        Frame { state, used, cursor: self.end(), chains: None, chain: 0, placed: 0 }
    }

    /// An operation that may be next, changes nothing in any state, and fits here: then it may as well stand here as
    /// anywhere later, and nothing else need be tried.
    fn fitting_idle(&mut self, state: &M::State) -> Option<usize> {
        let mut node = self.first();
        while node.is_multiple_of(2) {
            let operation = &self.history[self.known[node / 2]];
            if self.effects[node / 2] == Effect::None {
                self.steps += 1;
                if self.model.step(state, &operation.input, operation.output.as_ref()).is_some() {
                    return Some(node / 2);
                }
            }
            node = self.next[node];
        }
        None
    }

    /// Takes an operation out of the list.
    fn take_out(&mut self, number: usize) {
        for node in [2 * number, 2 * number + 1] {
            let (before, next) = (self.before[node], self.next[node]);
            self.next[before] = next;
            self.before[next] = before;
        }
        self.placed.insert(number);
        self.supplies.count(number, |count| count - 1);
    }

    /// Puts back the operation that was taken out last.
    fn put_back(&mut self, number: usize) {
        for node in [2 * number + 1, 2 * number] {
            let (before, next) = (self.before[node], self.next[node]);
            self.next[before] = node;
            self.before[next] = node;
        }
        self.placed.remove(number);
        self.supplies.count(number, |count| count + 1);
    }

    /// Whether this was not tried yet; it is from now on. What failed with fewer unknown operations used up fails with
    /// more.
    fn is_new(&mut self, used: &Bits, state: &M::State) -> bool {
        // The first event that is left is a call, and operations are numbered by their calls.
        let words = self.placed.0.as_slice();
        let from = (self.first() / 2 / 64).min(words.len());
        let until = words.iter().rposition(|word| *word != 0).map_or(from, |last| (last + 1).max(from));
        let key = ((from, words[from..until].to_vec()), state.clone());
        let tried = self.tried.entry(key).or_default();
        if tried.iter().any(|before| before.is_within(used)) {
            return false;
        }
        tried.push(used.clone());
        true
    }

    /// The states that unknown operations, one after another, lead to before this return, each with those used up.
    /// A state that fewer of them lead to is left out; an operation that overwrites comes first in a chain, since
    /// what came before it might as well not have been.
    fn chains(&mut self, frame: &Frame<M::State>, first_return: Node) -> Vec<(Bits, M::State)> {
        let deadline = self.history[self.known[first_return / 2]].returned.unwrap_or(u64::MAX);
        if self.supplies.is_lost_without(&frame.state, &frame.used) {
            return Vec::new();
        }
        let mut seen: HashMap<M::State, Vec<Bits>> = HashMap::new();
        seen.insert(frame.state.clone(), vec![frame.used.clone()]);
        let mut chains: Vec<(Bits, M::State)> = Vec::new();
        let mut from: Option<usize> = None;
        loop {
            let (used, state) = match from {
                None => (frame.used.clone(), frame.state.clone()),
                Some(at) if at < chains.len() => chains[at].clone(),
                Some(_) => return chains,
            };
            let mut inputs = Bits::default();
            for (number, at) in self.unknown.iter().enumerate() {
                let operation = &self.history[*at];
                if operation.invoked > deadline || self.steps > self.steps_max {
                    break;
                }
                let overwrites = self.model.effect(&operation.input, None) == Effect::Overwrites;
                // Of operations that are alike the first that is left will do.
                if used.has(number) || inputs.has(self.alike[number]) || (overwrites && from.is_some()) {
                    continue;
                }
                inputs.insert(self.alike[number]);
                self.steps += 1;
                let Some(after) = self.model.step(&state, &operation.input, None) else { continue };
                if after == state {
                    continue;
                }
                let used = used.with(number);
                let before = seen.entry(after.clone()).or_default();
                if !before.iter().any(|before| before.is_within(&used)) {
                    before.push(used.clone());
                    chains.push((used, after));
                }
            }
            from = Some(from.map_or(0, |at| at + 1));
        }
    }

    /// The end of the order that was found.
    fn order(&self, stack: &[Frame<M::State>]) -> String {
        let Some((last, before)) = stack.split_last() else { return String::new() };
        let shown = before.len().saturating_sub(ORDER_SHOWN);
        let placed = before[shown..].iter().map(|frame| self.history[self.known[frame.placed]].to_string());
        let placed: Vec<String> = (shown > 0).then(|| "...".to_owned()).into_iter().chain(placed).collect();
        format!("{} and then {:?}", placed.join(", "), last.state)
    }
}

impl<K, I: Debug, O: Debug> fmt::Display for Operation<K, I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Operation { id, client, input, invoked, .. } = self;
        write!(f, "[{id} by {client}: {input:?} gave ")?;
        match &self.output {
            Some(output) => write!(f, "{output:?}")?,
            None => write!(f, "?")?,
        }
        match self.returned {
            Some(returned) => write!(f, " in {invoked}..{returned}]"),
            None => write!(f, " in {invoked}.. unknown]"),
        }
    }
}

impl<K: Debug> fmt::Display for Verdict<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Linearizable => write!(f, "linearizable"),
            Verdict::NotLinearizable { key, what, .. } => write!(f, "key {key:?}: {what}"),
            Verdict::Unknown { steps } => write!(f, "no verdict within {steps} steps"),
        }
    }
}

// ---- models -------------------------------------------------------------------------------------------

/// A key with a string, as SET and its relatives see it. No deadlines.
#[derive(Debug, Clone, Copy, Default)]
pub struct Strings;

/// What clients do with a string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Get,
    Set(Bytes),
    /// SET with NX: gives OK, or nothing when there was a value.
    SetIfAbsent(Bytes),
    /// SET with IFEQ: gives OK, or nothing when there was another value or none.
    SetIfEqual(Bytes, Bytes),
    /// SET with GET: gives the value that was there.
    Swap(Bytes),
    GetDel,
    Del,
    IncrBy(i64),
    Append(Bytes),
}

/// What a command on a string gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    Ok,
    Nothing,
    Value(Bytes),
    Number(i64),
    /// Refused, for the value that was there.
    Refused,
}

impl Model for Strings {
    type State = Option<Bytes>;
    type Input = Command;
    type Output = Output;

    fn init(&self) -> Option<Bytes> {
        None
    }

    fn step(&self, state: &Option<Bytes>, input: &Command, output: Option<&Output>) -> Option<Option<Bytes>> {
        let old = || state.clone().map_or(Output::Nothing, Output::Value);
        let set_if = |holds: bool, value: &Bytes| match holds {
            true => (Some(value.clone()), Output::Ok),
            false => (state.clone(), Output::Nothing),
        };
        let (after, gives) = match input {
            Command::Get => (state.clone(), old()),
            Command::Set(value) => (Some(value.clone()), Output::Ok),
            Command::SetIfAbsent(value) => set_if(state.is_none(), value),
            Command::SetIfEqual(wanted, value) => set_if(state.as_ref() == Some(wanted), value),
            Command::Swap(value) => (Some(value.clone()), old()),
            Command::GetDel => (None, old()),
            Command::Del => (None, Output::Number(i64::from(state.is_some()))),
            Command::IncrBy(by) => {
                let text = state.as_deref().map_or(Some("0"), |value| std::str::from_utf8(value).ok());
                match text.and_then(|text| text.parse::<i64>().ok()).and_then(|old| old.checked_add(*by)) {
                    Some(sum) => (Some(Bytes::from(sum.to_string())), Output::Number(sum)),
                    None => (state.clone(), Output::Refused),
                }
            }
            Command::Append(value) => {
                let whole = [state.as_deref().unwrap_or_default(), value].concat();
                let length = whole.len() as i64;
                (Some(Bytes::from(whole)), Output::Number(length))
            }
        };
        output.is_none_or(|output| *output == gives).then_some(after)
    }

    fn needs(&self, input: &Command, output: Option<&Output>) -> Option<Option<Bytes>> {
        match (input, output?) {
            (Command::Get | Command::Swap(_) | Command::GetDel, Output::Value(value)) => {
                Some(Some(value.clone()))
            }
            (Command::Get | Command::Swap(_) | Command::GetDel, Output::Nothing)
            | (Command::SetIfAbsent(_), Output::Ok)
            | (Command::Del, Output::Number(0)) => Some(None),
            (Command::SetIfEqual(wanted, _), Output::Ok) => Some(Some(wanted.clone())),
            _ => None,
        }
    }

    fn makes(&self, input: &Command, output: Option<&Output>) -> Option<Option<Bytes>> {
        match (input, output) {
            (Command::Set(value) | Command::SetIfAbsent(value), _)
            | (Command::SetIfEqual(_, value) | Command::Swap(value), _) => Some(Some(value.clone())),
            (Command::GetDel | Command::Del, _) => Some(None),
            (Command::IncrBy(_), Some(Output::Number(sum))) => Some(Some(Bytes::from(sum.to_string()))),
            _ => None,
        }
    }

    fn effect(&self, input: &Command, output: Option<&Output>) -> Effect {
        match (input, output) {
            (Command::Get, _) | (_, Some(Output::Refused)) => Effect::None,
            (Command::SetIfAbsent(_) | Command::SetIfEqual(..) | Command::GetDel, Some(Output::Nothing))
            | (Command::Del, Some(Output::Number(0))) => Effect::None,
            (Command::Set(_), _) | (Command::Swap(_) | Command::GetDel | Command::Del, None) => {
                Effect::Overwrites
            }
            _ => Effect::Any,
        }
    }
}

/// A lock whose leases never end meanwhile.
#[derive(Debug, Clone, Copy, Default)]
pub struct Locks;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockCommand {
    /// By this owner. Taking it again gives the same token.
    Lock(u64),
    /// By this owner.
    Unlock(u64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockOutput {
    /// LOCK: with this token.
    Granted(u64),
    /// LOCK: another owner has it.
    Held,
    /// UNLOCK: whether this owner had it.
    Released(bool),
}

/// Who holds the lock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct LockState {
    /// The owner, and the token if somebody saw it.
    holder: Option<(u64, Option<u64>)>,
    /// No token that is given out later is as small as this.
    last_token: u64,
}

impl Model for Locks {
    type State = LockState;
    type Input = LockCommand;
    type Output = LockOutput;

    fn init(&self) -> LockState {
        LockState::default()
    }

    fn effect(&self, _input: &LockCommand, output: Option<&LockOutput>) -> Effect {
        match output {
            Some(LockOutput::Held | LockOutput::Released(false)) => Effect::None,
            Some(LockOutput::Granted(_) | LockOutput::Released(true)) | None => Effect::Any,
        }
    }

    fn step(&self, state: &LockState, input: &LockCommand, output: Option<&LockOutput>) -> Option<LockState> {
        let with_token = |owner: u64, token: u64| {
            let last_token = state.last_token.max(token);
            LockState { holder: Some((owner, Some(token))), last_token }
        };
        match (input, output, state.holder) {
            (LockCommand::Lock(owner), None | Some(LockOutput::Held), Some((holder, _)))
                if holder != *owner =>
            {
                Some(state.clone())
            }
            (LockCommand::Lock(owner), None, None) => {
                Some(LockState { holder: Some((*owner, None)), last_token: state.last_token })
            }
            (LockCommand::Lock(_), None, Some(_)) => Some(state.clone()),
            (LockCommand::Lock(owner), Some(LockOutput::Granted(token)), holder) => match holder {
                Some((holder, _)) if holder != *owner => None,
                Some((_, Some(known))) => (known == *token).then(|| state.clone()),
                // A new hold, or one of which nobody saw the token.
                Some((_, None)) | None => (*token > state.last_token).then(|| with_token(*owner, *token)),
            },
            (LockCommand::Unlock(owner), output, holder) => {
                let is_holder = holder.is_some_and(|(holder, _)| holder == *owner);
                let is_told = output.is_none_or(|output| *output == LockOutput::Released(is_holder));
                let after = LockState { holder: holder.filter(|_| !is_holder), last_token: state.last_token };
                is_told.then_some(after)
            }
            (LockCommand::Lock(_), Some(_), _) => None,
        }
    }
}
