//! Decides from what the clients saw whether the cluster kept its promises. Registers are checked by the checker of
//! the cluster tests; what is said here of the others holds for each key alone:
//!
//! - A counter's replies differ, follow each other in time, and its end is what was acknowledged and some of what is
//!   in doubt.
//! - A lock's tokens differ and grow in time. From the reply to a grant until the owner gives it back, or its lease may
//!   end, nobody else has it; until then it can be given back.
//! - A message is delivered, if its push was acknowledged, and under one id only; by each owner for the length of its
//!   lease alone, with a delivery count that grows in time; never after its acknowledgement; first deliveries of one
//!   producer come in order. Nothing else is delivered.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;

use crate::chaos::history::Action;
use crate::chaos::history::Answer;
use crate::chaos::history::Operation;
use crate::support::linearizability;
use crate::support::linearizability::Kind;
use crate::support::linearizability::NOTHING;

/// By how much the replicated clock may seem to run ahead, in nanoseconds: it counts whole milliseconds.
const CLOCK_GRAIN: u64 = 5_000_000;

const MILLISECOND: u64 = 1_000_000;

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Something that was acknowledged is not there.
    pub is_loss: bool,
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Everything that is wrong with a history whose queues were drained at the end.
pub fn check(operations: &[Operation]) -> Vec<Violation> {
    let mut by_key: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        by_key.entry(&operation.key).or_default().push(operation);
    }
    let mut found = Vec::new();
    for (key, operations) in &mut by_key {
        operations.sort_by_key(|operation| operation.invoked);
        let mut report = Report { key, found: &mut found };
        let is = |kind: fn(&Action) -> bool| operations.iter().any(|operation| kind(&operation.action));
        if is(|action| matches!(action, Action::Incr)) {
            check_counter(operations, &mut report);
        } else if is(|action| matches!(action, Action::Lock { .. })) {
            check_lock(operations, &mut report);
        } else if is(|action| matches!(action, Action::Push { .. } | Action::Pop { .. })) {
            check_queue(operations, &mut report);
        } else {
            check_register(operations, &mut report);
        }
    }
    found
}

struct Report<'a> {
    key: &'a str,
    found: &'a mut Vec<Violation>,
}

impl Report<'_> {
    fn wrong(&mut self, text: impl fmt::Display) {
        self.found.push(Violation { is_loss: false, text: format!("{}: {text}", self.key) });
    }

    fn lost(&mut self, text: impl fmt::Display) {
        self.found.push(Violation { is_loss: true, text: format!("{}: {text}", self.key) });
    }
}

fn check_register(operations: &[&Operation], report: &mut Report<'_>) {
    let mut history = Vec::new();
    for operation in operations.iter().filter(|operation| operation.may_count()) {
        let returned = (!operation.is_in_doubt()).then_some(operation.returned);
        let (kind, value) = match operation.action {
            Action::Set { value } => (Kind::Write, value),
            _ => (Kind::Read, operation.number().unwrap_or(NOTHING)),
        };
        history.push(linearizability::Operation { kind, value, invoked: operation.invoked, returned });
    }
    if let Err(violation) = linearizability::check(&history) {
        // An old value that comes back is a new one that was lost, unless it is a read of an old leader's.
        report.lost(violation);
    }
}

fn check_counter(operations: &[&Operation], report: &mut Report<'_>) {
    let (mut acknowledged, mut in_doubt) = (0, 0);
    let mut answers = BTreeSet::new();
    for operation in operations.iter().filter(|operation| operation.action == Action::Incr) {
        in_doubt += u64::from(operation.is_in_doubt());
        if let Some(answer) = operation.number() {
            acknowledged += 1;
            if !answers.insert(answer) {
                report.wrong(format!("INCR answered {answer} twice"));
            }
        }
    }
    let greatest = answers.last().copied().unwrap_or(0);
    if greatest > acknowledged + in_doubt {
        report.wrong(format!("INCR answered {greatest} after {acknowledged} and {in_doubt} in doubt"));
    }
    in_order(
        operations,
        |operation| operation.number().filter(|_| operation.action == Action::Incr),
        |a, b| {
            report.lost(format!("INCR answered {b} after {a} had been answered"));
        },
    );
    for last in operations.iter().filter(|operation| operation.action == Action::Get) {
        let Some(value) = last.number() else { continue };
        if value < greatest.max(acknowledged) {
            report.lost(format!(
                "{value} at node {}, {acknowledged} were acknowledged up to {greatest}",
                last.node
            ));
        }
        if value > acknowledged + in_doubt {
            report.wrong(format!(
                "{value} at node {}, {acknowledged} were acknowledged and {in_doubt} are in doubt",
                last.node
            ));
        }
    }
}

/// Tells of each operation whose number is not above the greatest of those that had returned before it was invoked.
/// `operations` are sorted by invocation.
fn in_order(
    operations: &[&Operation],
    number: impl Fn(&Operation) -> Option<u64>,
    mut wrong: impl FnMut(u64, u64),
) {
    let numbered = |operation: &&Operation| Some((operation.invoked, operation.returned, number(operation)?));
    let by_invocation: Vec<(u64, u64, u64)> = operations.iter().filter_map(numbered).collect();
    let mut by_return = by_invocation.clone();
    by_return.sort_by_key(|(_, returned, _)| *returned);
    let mut returned = by_return.iter().peekable();
    let mut greatest = None;
    for (invoked, _, number) in &by_invocation {
        while let Some((_, _, before)) = returned.next_if(|(_, at, _)| at < invoked) {
            greatest = greatest.max(Some(*before));
        }
        if let Some(greatest) = greatest.filter(|greatest| greatest >= number) {
            wrong(greatest, *number);
        }
    }
}

/// A grant whose owner was told.
struct Grant<'a> {
    owner: &'a str,
    token: u64,
    invoked: u64,
    /// When the owner knew.
    granted: u64,
    /// Until then the lease runs for certain.
    leased_until: u64,
    /// Until then nobody else may have the lock.
    held_until: u64,
}

fn check_lock(operations: &[&Operation], report: &mut Report<'_>) {
    let mut grants: Vec<Grant<'_>> = Vec::new();
    for operation in operations {
        let Action::Lock { owner, lease_ms } = &operation.action else { continue };
        let Some(Answer::Number(token)) = operation.answer() else { continue };
        let leased_until = operation.invoked + lease_ms * MILLISECOND;
        let (invoked, granted) = (operation.invoked, operation.returned);
        grants.push(Grant { owner, token: *token, invoked, granted, leased_until, held_until: leased_until });
    }
    let mut tokens = BTreeSet::new();
    for grant in &grants {
        if !tokens.insert(grant.token) {
            report.wrong(format!("token {} was granted twice", grant.token));
        }
    }
    in_order(
        operations,
        |operation| {
            operation.number().filter(|token| *token > 0 && matches!(operation.action, Action::Lock { .. }))
        },
        |before, token| report.wrong(format!("token {token} was granted after {before}")),
    );
    let owners: BTreeMap<&str, usize> = grants.iter().map(|grant| grant.owner).zip(0..).collect();
    for operation in operations {
        let Action::Unlock { owner, .. } = &operation.action else { continue };
        let Some(grant) = owners.get(owner.as_str()).map(|at| &mut grants[*at]) else { continue };
        let is_lost = operation.number() == Some(0) && operation.returned + CLOCK_GRAIN < grant.leased_until;
        if is_lost {
            report.lost(format!("{owner} could not give back token {} while its lease ran", grant.token));
        }
        if operation.may_count() {
            grant.held_until = grant.held_until.min(operation.invoked);
        }
    }
    grants.sort_by_key(|grant| grant.granted);
    let mut last: Option<&Grant<'_>> = None;
    for grant in grants.iter().filter(|grant| grant.granted < grant.held_until) {
        if let Some(last) = last.filter(|last| grant.granted + CLOCK_GRAIN < last.held_until) {
            report.wrong(format!(
                "{} was granted token {} (asked at {}) while {} held it by token {} until {}",
                grant.owner, grant.token, grant.invoked, last.owner, last.token, last.held_until
            ));
        }
        if last.is_none_or(|last| last.held_until < grant.held_until) {
            last = Some(grant);
        }
    }
}

/// A delivery that a consumer was told of.
struct Delivery<'a> {
    id: &'a str,
    count: u64,
    payload: &'a str,
    invoked: u64,
    returned: u64,
    leased_until: u64,
}

fn check_queue(operations: &[&Operation], report: &mut Report<'_>) {
    let mut deliveries: BTreeMap<&str, Vec<Delivery<'_>>> = BTreeMap::new();
    for operation in operations {
        let Action::Pop { lease_ms } = operation.action else { continue };
        let Some(Answer::Message { id, deliveries: count, payload }) = operation.answer() else { continue };
        let (invoked, returned) = (operation.invoked, operation.returned);
        let leased_until = invoked + lease_ms * MILLISECOND;
        let delivery = Delivery { id, count: *count, payload, invoked, returned, leased_until };
        deliveries.entry(payload).or_default().push(delivery);
    }
    check_pushes(operations, &deliveries, report);
    for deliveries in deliveries.values_mut() {
        deliveries.sort_by_key(|delivery| delivery.count);
        for pair in deliveries.windows(2) {
            let [a, b] = pair else { continue };
            if a.id != b.id {
                report.wrong(format!("{} came as {} and as {}", a.payload, a.id, b.id));
            } else if a.count == b.count {
                report.wrong(format!("{}:{} was delivered twice", a.id, a.count));
            } else if b.returned + CLOCK_GRAIN < a.leased_until {
                report.wrong(format!("{}:{} was delivered while {} was leased", b.id, b.count, a.count));
            }
        }
    }
    check_acknowledgements(operations, &deliveries, report);
}

/// Whatever was acknowledged came, nothing else did, and the first deliveries of a producer in its order.
fn check_pushes(
    operations: &[&Operation],
    deliveries: &BTreeMap<&str, Vec<Delivery<'_>>>,
    report: &mut Report<'_>,
) {
    let mut pushed = BTreeSet::new();
    let mut last_of: BTreeMap<u64, &Delivery<'_>> = BTreeMap::new();
    for operation in operations.iter().filter(|operation| operation.may_count()) {
        let Action::Push { payload } = &operation.action else { continue };
        pushed.insert(payload.as_str());
        let Some(delivered) = deliveries.get(payload.as_str()) else {
            if let Some(Answer::Id(id)) = operation.answer() {
                report.lost(format!("{payload}, acknowledged as {id}, never came"));
            }
            continue;
        };
        for delivery in delivered {
            if delivery.returned < operation.invoked {
                report.wrong(format!("{payload} came before it was pushed"));
            }
            if operation.answer().is_some_and(|answer| *answer != Answer::Id(delivery.id.to_owned())) {
                report.wrong(format!("{payload}, {:?}, came as {}", operation.answer(), delivery.id));
            }
        }
        // A push in doubt may have taken effect later than its successor.
        let Some(first) = delivered.iter().find(|delivery| delivery.count == 1 && !operation.is_in_doubt())
        else {
            continue;
        };
        if let Some(before) = last_of.insert(operation.client, first)
            && first.returned < before.invoked
        {
            report.wrong(format!("{} came before {} of the same producer", first.payload, before.payload));
        }
    }
    for payload in deliveries.keys().filter(|payload| !pushed.contains(*payload)) {
        report.wrong(format!("{payload} came and was never pushed"));
    }
}

/// What was acknowledged does not come again; what nobody acknowledged is there at the end.
fn check_acknowledgements(
    operations: &[&Operation],
    deliveries: &BTreeMap<&str, Vec<Delivery<'_>>>,
    report: &mut Report<'_>,
) {
    let mut acknowledgements: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in operations.iter().filter(|operation| operation.may_count()) {
        let Action::Ack { receipt } = &operation.action else { continue };
        let id = receipt.rsplit_once(':').map_or("", |(id, _)| id);
        acknowledgements.entry(id).or_default().push(operation);
    }
    for delivered in deliveries.values() {
        let Some(last) = delivered.last() else { continue };
        let Some(tried) = acknowledgements.get(last.id) else {
            report.lost(format!("{} ({}) was never acknowledged and is gone", last.id, last.payload));
            continue;
        };
        let finished: Vec<_> = tried.iter().filter(|operation| operation.number() == Some(1)).collect();
        if finished.len() > 1 {
            report.wrong(format!("{} was acknowledged {} times", last.id, finished.len()));
        }
        for done in &finished {
            if let Some(late) = delivered.iter().find(|delivery| delivery.invoked > done.returned) {
                report.wrong(format!("{}:{} was delivered after its acknowledgement", late.id, late.count));
            }
        }
        let may_be_done =
            tried.iter().any(|operation| operation.is_in_doubt() || operation.number() == Some(1));
        if !may_be_done {
            report.lost(format!("{} ({}) is gone though no acknowledgement counted", last.id, last.payload));
        }
    }
}
