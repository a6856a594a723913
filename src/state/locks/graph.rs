//! The wait-for graph: who waits for whom, and the search for a cycle in it (a deadlock).
//!
//! The graph is not kept, it is read off the locks: keys are its nodes as well, so a change of hands costs nothing
//! however many wait. A request waits for
//!
//! - every hold that stands in its way; of a lock that is only full ([`Mode::Shared`] with a LIMIT), for any one of
//!   them;
//! - the request before it in the same queue, since nobody passes by.
//!
//! An owner is stuck when something that it waits for can never come. Without alternatives that is a cycle, found by a
//! depth-first search; with them an owner is free as soon as one alternative is free, so the search first finds what
//! can still go on (the largest set that finishes, as for Dijkstra's banker), and looks for the cycle in the rest.
//!
//! Whoever waits for nothing can go on, so the search looks only at owners that wait: of a lock with many holders it
//! asks for those of the few who wait that hold it.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::fmt::Write;

use crate::state::State;
use crate::state::locks::Hold;
use crate::state::locks::Holds;
use crate::state::locks::Lock;
use crate::state::locks::Mode;
use crate::state::locks::OwnerName;
use crate::state::locks::Wait;
use crate::state::locks::WaitId;
use crate::state::locks::lock_at;
use crate::state::locks::rules;
use crate::types::FencingToken;

/// A cycle's description is cut at about this many bytes.
const TEXT_BYTES_MAX: usize = 4096;
/// And an owner or a key within it at this many.
const NAME_BYTES_MAX: usize = 256;

/// Whom a deadlock costs its wait (`lock-deadlock-victim`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VictimChoice {
    /// Whoever closed the cycle.
    #[default]
    Requester,
    /// Whoever began last: its oldest hold is the youngest.
    Youngest,
    /// Whoever holds the fewest locks.
    FewestLocks,
}

impl VictimChoice {
    /// All, in the order of their codes.
    pub const ALL: [(&'static str, VictimChoice); 3] = [
        ("requester", VictimChoice::Requester),
        ("youngest", VictimChoice::Youngest),
        ("fewest-locks", VictimChoice::FewestLocks),
    ];

    /// As the log keeps it.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// Reads what [`VictimChoice::code`] gave.
    #[must_use]
    pub fn of(code: u8) -> Option<VictimChoice> {
        VictimChoice::ALL.get(usize::from(code)).map(|(_, choice)| *choice)
    }
}

/// Somebody waits for somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    pub waiter: OwnerName,
    pub key: Box<[u8]>,
    /// Who holds the key, or waits for it before.
    pub holder: OwnerName,
    /// It holds the key.
    pub is_held: bool,
}

/// A lock as one request sees it: who must go first.
struct Blockers<'a> {
    /// Each of these.
    all: Vec<&'a OwnerName>,
    /// One of these, if there are any.
    any: Vec<&'a OwnerName>,
    /// How many owners were looked at.
    looked_at: usize,
}

/// Those who wait themselves; whoever does not is in nobody's way for ever.
fn blockers<'a>(state: &'a State, lock: &'a Lock, id: WaitId, wait: &Wait) -> Blockers<'a> {
    let mut blockers = Blockers { all: Vec::new(), any: Vec::new(), looked_at: 1 };
    if rules::stand_in_the_way(lock, &wait.wanted) {
        let holds = lock.holds();
        let is_waiting = |hold: &&Hold| state.waits.of(hold.owner()).next().is_some();
        let mut waiting: Vec<&Hold> = if state.waits.owners().len() < holds.len() {
            state.waits.owners().filter_map(|owner| holds.of(owner)).collect()
        } else {
            holds.iter().filter(is_waiting).collect()
        };
        blockers.looked_at += state.waits.owners().len().min(holds.len());
        waiting.sort_unstable_by_key(|hold| hold.token());
        let are_all = waiting.len() == holds.len();
        let others = waiting.into_iter().map(Hold::owner).filter(|owner| **owner != wait.owner);
        if lock.mode() == Mode::Exclusive || wait.wanted.mode == Mode::Exclusive {
            blockers.all.extend(others);
        } else if are_all {
            blockers.any.extend(others);
        }
    }
    blockers.all.extend(before(state, lock, id, wait));
    blockers
}

/// Who waits before a request, if that is somebody else.
fn before<'a>(state: &'a State, lock: &Lock, id: WaitId, wait: &Wait) -> Option<&'a OwnerName> {
    let before = lock.before(id).and_then(|before| state.waits.get(before)).map(|before| &before.owner);
    before.filter(|before| **before != wait.owner)
}

/// Everybody who waits, and for whom: direct edges, in a fixed order. As many are looked for as are taken.
pub fn edges(state: &State) -> impl Iterator<Item = Edge> {
    let keys = state.waits.iter().flat_map(|(id, wait)| wait.keys.iter().map(move |key| (id, wait, key)));
    keys.flat_map(move |(id, wait, key)| {
        let edge = move |holder: &OwnerName, is_held| Edge {
            waiter: wait.owner.clone(),
            key: key.key.clone(),
            holder: holder.clone(),
            is_held,
        };
        let lock = lock_at(state, wait.db, &key.key).flatten();
        let holds = lock.filter(|lock| rules::stand_in_the_way(lock, &wait.wanted)).map(Lock::holds);
        let holders = holds.into_iter().flat_map(Holds::iter).map(Hold::owner);
        let held = holders.filter(|holder| **holder != wait.owner).map(move |holder| edge(holder, true));
        let before = lock.and_then(|lock| {
            before(state, lock, id, wait).map(|before| edge(before, lock.hold_of(before).is_some()))
        });
        held.chain(before)
    })
}

/// False when nobody can be waiting for this request's owner, so that no cycle can go through it. Cheap, and true of
/// most requests.
pub(super) fn may_close_a_cycle(state: &State, id: WaitId, wait: &Wait) -> bool {
    let waits_elsewhere = state.waits.of(&wait.owner).any(|other| other != id);
    if waits_elsewhere || state.lock_owners.count_of(&wait.owner) == 0 {
        return waits_elsewhere;
    }
    let lock = |db, key| lock_at(state, db, key).flatten();
    if state.waits.len() < state.lock_owners.count_of(&wait.owner) {
        let mut keys =
            state.waits.iter().flat_map(|(_, wait)| wait.keys.iter().map(|key| (wait.db, &key.key)));
        return keys.any(|(db, key)| lock(db, key).is_some_and(|lock| lock.hold_of(&wait.owner).is_some()));
    }
    let mut held = state.lock_owners.of(&wait.owner);
    held.any(|(db, key)| lock(*db, key).is_some_and(Lock::is_waited_for))
}

/// The graph is larger than `lock-graph-max`.
#[derive(Debug)]
pub(super) struct TooLarge;

/// One of these must go on before the owner can.
struct Need<'a> {
    wait: WaitId,
    key: &'a [u8],
    of: Vec<usize>,
    is_met: bool,
}

struct Node<'a> {
    owner: &'a OwnerName,
    needs: Vec<Need<'a>>,
    unmet: usize,
    /// Whose needs name this one.
    wanted_by: Vec<(usize, usize)>,
    is_free: bool,
}

/// Owners that wait for each other in a ring: each for the next, the last for the first.
#[derive(Debug)]
pub(super) struct Cycle {
    steps: Vec<Step>,
}

/// An owner of a cycle, and what it waits for.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub owner: OwnerName,
    pub wait: WaitId,
    key: Box<[u8]>,
}

/// The cycle through this owner, if its waits closed one.
pub(super) fn find_cycle<'a>(
    state: &'a State,
    requester: &OwnerName,
    edges_max: u64,
) -> Result<Option<Cycle>, TooLarge> {
    let mut nodes: Vec<Node<'a>> = Vec::new();
    let mut known: BTreeMap<&'a OwnerName, usize> = BTreeMap::new();
    let mut edges = 0;
    let start = state.waits.of(requester).find_map(|id| state.waits.get(id)).map(|wait| &wait.owner);
    let Some(start) = start else { return Ok(None) };
    node_of(&mut nodes, &mut known, start);
    // Everybody that can be reached, breadth first; the list grows as it is walked.
    let mut at = 0;
    while at < nodes.len() {
        for id in state.waits.of(nodes[at].owner) {
            let Some(wait) = state.waits.get(id) else { continue };
            for key in &wait.keys {
                let Some(Some(lock)) = lock_at(state, wait.db, &key.key) else { continue };
                let blockers = blockers(state, lock, id, wait);
                edges += blockers.looked_at as u64;
                if edges > edges_max {
                    return Err(TooLarge);
                }
                let alone = blockers.all.into_iter().map(|owner| vec![owner]);
                for owners in alone.chain((!blockers.any.is_empty()).then_some(blockers.any)) {
                    let of: Vec<usize> =
                        owners.into_iter().map(|owner| node_of(&mut nodes, &mut known, owner)).collect();
                    let need = nodes[at].needs.len();
                    for other in &of {
                        nodes[*other].wanted_by.push((at, need));
                    }
                    nodes[at].needs.push(Need { wait: id, key: &key.key, of, is_met: false });
                    nodes[at].unmet += 1;
                }
            }
        }
        at += 1;
    }
    if nodes[0].wanted_by.is_empty() {
        return Ok(None);
    }
    set_free(&mut nodes);
    Ok(ring_of(&nodes))
}

fn node_of<'a>(
    nodes: &mut Vec<Node<'a>>,
    known: &mut BTreeMap<&'a OwnerName, usize>,
    owner: &'a OwnerName,
) -> usize {
    *known.entry(owner).or_insert_with(|| {
        nodes.push(Node { owner, needs: Vec::new(), unmet: 0, wanted_by: Vec::new(), is_free: false });
        nodes.len() - 1
    })
}

/// Marks who can go on: first those who wait for nobody, then whoever needs only such.
fn set_free(nodes: &mut [Node<'_>]) {
    let mut free: VecDeque<usize> = (0..nodes.len()).filter(|at| nodes[*at].unmet == 0).collect();
    while let Some(at) = free.pop_front() {
        if std::mem::replace(&mut nodes[at].is_free, true) {
            continue;
        }
        for (other, need) in std::mem::take(&mut nodes[at].wanted_by) {
            let node = &mut nodes[other];
            if !std::mem::replace(&mut node.needs[need].is_met, true) {
                node.unmet -= 1;
                if node.unmet == 0 {
                    free.push_back(other);
                }
            }
        }
    }
}

/// A way from the first node back to it, depth first, through what can never come.
fn ring_of(nodes: &[Node<'_>]) -> Option<Cycle> {
    let stuck = |at: usize| nodes[at].needs.iter().filter(|need| !need.is_met);
    let mut seen = vec![false; nodes.len()];
    // A node on the way, which of its needs was taken, and which of that need's owners.
    let mut way: Vec<(usize, usize, usize)> = vec![(0, 0, 0)];
    seen[0] = true;
    while let Some((at, need, of)) = way.last_mut() {
        let Some(found) = stuck(*at).nth(*need) else {
            way.pop();
            continue;
        };
        let Some(next) = found.of.get(*of).copied() else {
            (*need, *of) = (*need + 1, 0);
            continue;
        };
        *of += 1;
        if next == 0 {
            let step = |(at, need, _): &(usize, usize, usize)| {
                let found = stuck(*at).nth(*need)?;
                Some(Step { owner: nodes[*at].owner.clone(), wait: found.wait, key: found.key.into() })
            };
            return way.iter().map(step).collect::<Option<Vec<Step>>>().map(|steps| Cycle { steps });
        }
        if !std::mem::replace(&mut seen[next], true) {
            way.push((next, 0, 0));
        }
    }
    None
}

impl Cycle {
    /// Whose wait ends, as `lock-deadlock-victim` says. Of several alike the one nearest to the requester.
    pub(super) fn victim(&self, state: &State) -> Step {
        let holds = |step: &Step| state.lock_owners.of(&step.owner).count();
        let began = |step: &Step| {
            let token = |(db, key): &(u8, Box<[u8]>)| {
                let lock = lock_at(state, *db, key).flatten()?;
                lock.hold_of(&step.owner).map(Hold::token)
            };
            state.lock_owners.of(&step.owner).filter_map(token).min().unwrap_or(FencingToken(u64::MAX))
        };
        let steps = self.steps.iter();
        let chosen = match state.settings().lock_deadlock_victim {
            VictimChoice::Requester => steps.take(1).next(),
            VictimChoice::Youngest => steps.rev().max_by_key(|step| began(step)),
            VictimChoice::FewestLocks => steps.min_by_key(|step| holds(step)),
        };
        chosen.cloned().expect("a cycle has owners")
    }

    /// As the error and LOCKS DEADLOCKS tell it.
    pub(super) fn describe(&self, victim: &OwnerName) -> String {
        let mut text = format!("victim={} cycle=\"", shown(&victim.owner));
        for step in &self.steps {
            if text.len() > TEXT_BYTES_MAX {
                text.push_str("... ");
                break;
            }
            let _infallible = write!(text, "{} -[{}]-> ", shown(&step.owner.owner), shown(&step.key));
        }
        let first = self.steps.first().map_or_else(String::new, |step| shown(&step.owner.owner));
        text + &first + "\""
    }
}

/// A name that a client chose, for people to read.
#[must_use]
pub fn shown(name: &[u8]) -> String {
    name[..name.len().min(NAME_BYTES_MAX)].escape_ascii().to_string()
}
