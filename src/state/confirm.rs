//! Hands locks and messages to clients that waited, and does what their nodes make of it: CONFIRM, CANCEL, END-CLAIMS. The
//! table of it is in [`handed`](crate::state::handed).

use crate::state::DbIndex;
use crate::state::Object;
use crate::state::Row;
use crate::state::State;
use crate::state::handed::Event;
use crate::state::handed::HandOver;
use crate::state::handed::Handed;
use crate::state::handed::Step;
use crate::state::handed::step;
use crate::state::locks;
use crate::state::locks::Claim;
use crate::state::locks::ClaimId;
use crate::state::locks::OwnerName;
use crate::state::locks::WaitId;
use crate::state::notices::ClaimEnd;
use crate::state::notices::Notice;
use crate::state::notices::Origin;
use crate::state::queues;
use crate::state::queues::By;
use crate::state::queues::MessageState;
use crate::state::queues::Nack;
use crate::state::queues::Receipt;
use crate::types::ClusterTime;
use crate::types::FencingToken;
use crate::types::Millis;

impl State {
    /// What was handed to clients that did not confirm yet.
    #[must_use]
    pub fn handed(&self) -> &crate::state::handed::HandOvers {
        &self.handed
    }

    /// A hand-over is about to come, to change or to go.
    fn change_handed(&mut self, id: WaitId) {
        self.save_handed(id);
        self.changes.handed.push(id);
    }

    /// The hold under this token goes back with no hand-over that there is.
    fn release_from_handed(&mut self, token: FencingToken) {
        if let Some(id) = self.handed.answering(token) {
            self.change_handed(id);
            self.handed.release(token);
        }
    }
}

/// The wait of this number ended with something for its clients. `end` is what each of them will be told.
pub(in crate::state) fn hand(
    state: &mut State,
    id: WaitId,
    db: DbIndex,
    handed: Handed,
    claims: &[&Claim],
    end: &ClaimEnd,
) {
    for claim in claims {
        let (claim, origin) = (claim.id, claim.origin.clone());
        state.notices.push(Notice::ClaimHanded { claim, origin, end: end.clone() });
    }
    let clients = claims.iter().map(|claim| (claim.id, claim.origin.clone())).collect();
    if let Handed::Locks { locks, .. } = &handed {
        for lock in locks.iter().filter(|lock| lock.touches > 0) {
            // Of several hand-overs of one hold the newest answers for it.
            state.release_from_handed(lock.token);
        }
    }
    if !claims.is_empty() {
        state.change_handed(id);
        state.handed.insert(id, HandOver { db, handed, clients, is_known: false });
    }
}

/// A client's node confirms: the client will be told of what it was handed, if that is still given. False when it is
/// not, or nothing was handed to this claim, or it was confirmed before.
pub(crate) fn confirm(state: &mut State, claim: ClaimId, now: ClusterTime) -> bool {
    let Some(id) = state.handed.of_claim(claim) else { return false };
    let until = state.handed.get(id).and_then(|hand_over| given_until(state, hand_over, now));
    let event = if until.is_some() { Event::Confirmed } else { Event::Lost };
    if let (Some(until), Some(origin)) = (until, origin_of(state, id, claim)) {
        state.notices.push(Notice::ClaimConfirmed { claim, origin, until });
    }
    take(state, id, claim, event, now);
    until.is_some()
}

/// A client that something was handed to waits no more, and did not confirm. False when there is none of this claim.
pub(in crate::state) fn leave(state: &mut State, claim: ClaimId, now: ClusterTime) -> bool {
    let Some(id) = state.handed.of_claim(claim) else { return false };
    take(state, id, claim, Event::Left, now);
    true
}

fn origin_of(state: &State, id: WaitId, claim: ClaimId) -> Option<Origin> {
    state.handed.get(id)?.clients.get(&claim).cloned()
}

fn take(state: &mut State, id: WaitId, claim: ClaimId, event: Event, now: ClusterTime) {
    let Some(hand_over) = state.handed.get(id) else { return };
    let step = step(hand_over.is_known, hand_over.clients.len(), event);
    match step {
        Step::GoBack => {
            let hand_over = hand_over.clone();
            return go_back(state, id, &hand_over, now);
        }
        Step::TellOver => {
            if let Some(origin) = origin_of(state, id, claim) {
                tell_over(state, claim, origin);
            }
        }
        Step::Tell => {
            let tokens: Vec<FencingToken> = match &hand_over.handed {
                Handed::Locks { locks, .. } => locks.iter().map(|lock| lock.token).collect(),
                Handed::Messages(_) => Vec::new(),
            };
            tokens.into_iter().for_each(|token| state.release_from_handed(token));
        }
    }
    state.change_handed(id);
    if step == Step::Tell {
        state.handed.set_known(id);
    }
    state.handed.remove_client(id, claim);
}

fn tell_over(state: &mut State, claim: ClaimId, origin: Origin) {
    state.notices.push(Notice::ClaimEnded { claim, origin, end: ClaimEnd::Over });
}

/// Nobody was told of it: whoever stands behind gets it.
fn go_back(state: &mut State, id: WaitId, hand_over: &HandOver, now: ClusterTime) {
    for (claim, origin) in &hand_over.clients {
        tell_over(state, *claim, origin.clone());
    }
    // It is forgotten at the end: a lease that is over meanwhile ends as that of something which nobody heard of.
    match &hand_over.handed {
        Handed::Locks { owner, locks } => {
            for lock in locks.iter().filter(|lock| lock.touches > 0) {
                let grant = (&*lock.key, lock.token, lock.touches);
                locks::take_back(state, hand_over.db, owner, grant, now);
            }
        }
        Handed::Messages(messages) => {
            let node = hand_over.clients.values().next().map_or(0, |origin| origin.node.0);
            let by = By { now, node, reason: b"" };
            for (queue, receipt) in messages {
                let silent = Nack::Silent { delay: Millis(0) };
                // The name may be that of something else by now; then the message is gone.
                let _ = queues::nack(state, hand_over.db, queue, &[*receipt], silent, by);
            }
        }
    }
    state.change_handed(id);
    state.handed.remove(id);
}

/// Until when all of it is given, as it is now; `None` when something is not given any more.
fn given_until(state: &State, hand_over: &HandOver, now: ClusterTime) -> Option<ClusterTime> {
    match &hand_over.handed {
        Handed::Locks { owner, locks } => {
            let held = |lock: &crate::state::handed::HandedLock| {
                held_until(state, hand_over.db, &lock.key, owner, lock.token, now)
            };
            earliest(locks.iter().map(held))
        }
        Handed::Messages(messages) => earliest(
            messages.iter().map(|(queue, receipt)| leased_until(state, hand_over.db, queue, *receipt, now)),
        ),
    }
}

/// Until when all that a client would be told of is given; `None` when something is not given any more, or nothing was.
#[must_use]
pub fn end_given_until(state: &State, end: &ClaimEnd, now: ClusterTime) -> Option<ClusterTime> {
    match end {
        ClaimEnd::Granted(granted) => {
            let grants = granted.grants.iter();
            earliest(
                grants
                    .map(|grant| held_until(state, granted.db, &grant.key, &granted.owner, grant.token, now)),
            )
        }
        ClaimEnd::Delivered(delivered) => {
            let messages = delivered.messages.iter();
            earliest(
                messages
                    .map(|message| leased_until(state, delivered.db, &message.queue, message.receipt, now)),
            )
        }
        ClaimEnd::Over | ClaimEnd::Failed(_) => None,
    }
}

fn earliest(mut ends: impl Iterator<Item = Option<ClusterTime>>) -> Option<ClusterTime> {
    ends.try_fold(ClusterTime::NEVER, |earliest, end| end.map(|end| earliest.min(end)))
}

fn held_until(
    state: &State,
    db: DbIndex,
    key: &[u8],
    owner: &OwnerName,
    token: FencingToken,
    now: ClusterTime,
) -> Option<ClusterTime> {
    let hold = locks::lock_at(state, db, key).flatten()?.hold_under(token)?;
    (hold.owner() == owner && hold.lease_until() > now).then(|| hold.lease_until())
}

fn leased_until(
    state: &State,
    db: DbIndex,
    queue: &[u8],
    receipt: Receipt,
    now: ClusterTime,
) -> Option<ClusterTime> {
    let Some(Object::Queue(queue)) = state.row(db, queue).map(Row::object) else { return None };
    let life = queue.life(receipt.id).filter(|life| life.delivery == receipt.delivery)?;
    match life.state {
        MessageState::Leased { until, .. } if until > now => Some(until),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod test_support {
    use super::*;

    /// Confirms what was handed over, as the nodes do whose clients are there.
    pub(crate) fn confirm_handed(state: &mut State, notices: &[Notice]) {
        let now = state.meta().clock;
        for notice in notices {
            if let Notice::ClaimHanded { claim, .. } = notice {
                confirm(state, *claim, now);
            }
        }
    }
}
