//! The real state beside the model's: how each says the same thing, and what differs between two queues.

use holdfast::state::handed::HandOver;
use holdfast::state::handed::Handed;
use holdfast::state::handed::HandedLock;
use holdfast::state::locks::WaitId;
use holdfast::state::notices::ClaimEnd;
use holdfast::state::notices::Grant;
use holdfast::state::notices::Notice;
use holdfast::state::queues::Attributes;
use holdfast::state::queues::Backoff;
use holdfast::state::queues::Counters;
use holdfast::state::queues::Delivered;
use holdfast::state::queues::MessageId;
use holdfast::state::queues::MessageState;
use holdfast::state::queues::PopWait;
use holdfast::state::queues::Popped;
use holdfast::state::queues::Queue;
use holdfast::state::queues::queue::Extra;

use super::model;
use super::model::End;
use super::model::Place;

/// The claim that was confirmed, and until when its client has what it was handed.
pub fn confirmed(notice: &Notice) -> Option<(u64, u64)> {
    match notice {
        Notice::ClaimConfirmed { claim, until, .. } => Some((claim.0, until.0)),
        _ => None,
    }
}

/// What was handed over.
pub fn hand_over(id: WaitId, hand_over: &HandOver) -> (u64, model::HandOver) {
    let mut seen = model::HandOver { db: hand_over.db, is_known: hand_over.is_known, ..Default::default() };
    let clients = hand_over.clients.iter();
    seen.clients = clients.map(|(claim, origin)| (claim.0, origin.node.0, origin.life)).collect();
    match &hand_over.handed {
        Handed::Locks { owner, locks } => {
            seen.who = (owner.user.to_vec(), owner.owner.to_vec());
            let lock = |lock: &HandedLock| (lock.key.to_vec(), lock.token.0, lock.touches);
            seen.locks = locks.iter().map(lock).collect();
        }
        Handed::Messages(messages) => {
            let messages = messages.iter();
            seen.messages =
                messages.map(|(queue, it)| (queue.to_vec(), (it.id.index, it.id.n), it.delivery)).collect();
        }
    }
    (id.0, seen)
}

/// The end of a client's wait, or what it was handed, as the model tells it: claim, node, life and end.
pub fn end_of(notice: &Notice) -> Option<(u64, u64, u64, End)> {
    let (Notice::ClaimHanded { claim, origin, end } | Notice::ClaimEnded { claim, origin, end }) = notice
    else {
        return None;
    };
    let end = match end {
        ClaimEnd::Granted(granted) => {
            let grant = |grant: &Grant| (grant.key.to_vec(), grant.token.0, grant.touches);
            End::Granted { grants: granted.grants.iter().map(grant).collect(), order: granted.order.clone() }
        }
        ClaimEnd::Delivered(Delivered { db, with_meta, no_ack, messages }) => End::Delivered {
            db: *db,
            with_meta: *with_meta,
            no_ack: *no_ack,
            messages: messages.iter().map(popped).collect(),
        },
        ClaimEnd::Over => End::Over,
        ClaimEnd::Failed(text) => End::Failed(text.clone()),
    };
    Some((claim.0, origin.node.0, origin.life, end))
}

fn popped(popped: &Popped) -> model::Popped {
    let Popped { queue, receipt, attempt, payload, meta } = popped;
    model::Popped {
        queue: queue.to_vec(),
        id: (receipt.id.index, receipt.id.n),
        delivery: receipt.delivery,
        attempt: *attempt,
        payload: payload.clone(),
        priority: meta.priority,
        group: meta.group.as_ref().map(|group| group.to_vec()),
        age: meta.age.0,
        lease: meta.lease.0,
        reason: meta.last_reason.to_vec(),
    }
}

/// A QPOP that waits.
pub fn pop_wait(wait: &PopWait) -> model::PopWait {
    let (request, claim) = (&wait.request, &wait.claim);
    model::PopWait {
        pop: model::Pop {
            db: request.db,
            queues: request.queues.iter().map(|queue| queue.to_vec()).collect(),
            count: request.count,
            lease: request.lease.map(|lease| lease.0),
            no_ack: request.no_ack,
            with_meta: request.with_meta,
        },
        claim: model::Claim {
            id: claim.id.0,
            until: claim.until.0,
            node: claim.origin.node.0,
            life: claim.origin.life,
        },
    }
}

fn totals(counters: &Counters) -> model::Totals {
    let Counters { pushed, delivered, redelivered, acked, nacked, expired_leases, .. } = *counters;
    let Counters { duplicates, died, deleted, moved, .. } = *counters;
    model::Totals {
        pushed,
        delivered,
        redelivered,
        acked,
        nacked,
        expired_leases,
        duplicates,
        died,
        deleted,
        moved,
    }
}

fn config(attributes: &Attributes) -> model::Config {
    let Backoff { min, max, factor_percent, jitter_percent } = attributes.backoff;
    model::Config {
        lease: attributes.lease.0,
        max_deliver: u64::from(attributes.max_deliver),
        backoff: (min, max, factor_percent, jitter_percent),
        dead_letter: attributes.dead_letter.to_vec(),
        dedup: attributes.dedup.0,
        max_len: attributes.max_len,
        max_bytes: attributes.max_bytes,
        max_leased: attributes.max_leased,
        aging: attributes.aging.0,
        retain: attributes.retain.0,
        pause: attributes.pause.name().to_owned(),
        ttl: attributes.ttl.0,
    }
}

/// What differs between a queue and the model's.
pub fn difference(real: &Queue, model: &model::Queue) -> Option<String> {
    let counters = totals(real.counters());
    if counters != model.totals {
        return Some(format!("{counters:?}, the model {:?}", model.totals));
    }
    let config = config(real.attributes());
    if config != model.config {
        return Some(format!("{config:?}, the model {:?}", model.config));
    }
    let earliest = model.earliest(true).min(model.earliest(false));
    if (real.number(), real.earliest_timer().0) != (model.number, earliest) {
        let (number, timer) = (real.number(), real.earliest_timer());
        return Some(format!("{number} until {timer:?}, the model {} {earliest}", model.number));
    }
    if real.len() != model.messages.len() {
        return Some(format!("{} messages, the model {:?}", real.len(), model.messages));
    }
    for message in &model.messages {
        let id = MessageId { index: message.id.0, n: message.id.1 };
        let (Some(life), Some(slot)) = (real.life(id), real.message(id)) else {
            return Some(format!("{message:?} is missing"));
        };
        let none = Extra::default();
        let Extra { group, dedup, carried, expires, reason } = real.extra(id).unwrap_or(&none);
        let seen = model::Message {
            id: message.id,
            payload: real.payload(id).cloned().unwrap_or_default(),
            priority: slot.priority(),
            group: group.as_ref().map(|group| group.to_vec()),
            name: dedup.as_ref().map(|name| name.to_vec()),
            carried: carried.as_ref().map(|name| name.to_vec()),
            expires: expires.0,
            reason: reason.to_vec(),
            pushed_at: slot.pushed_at().0,
            since: slot.waits_since().map_or(message.since, |since| since.0),
            place: match life.state {
                MessageState::Delayed { due } => Place::Delayed(due.0),
                MessageState::Ready => Place::Ready,
                MessageState::Leased { until, set_until } => Place::Leased(until.0, set_until.0),
                MessageState::Dead => Place::Dead,
            },
            delivery: life.delivery,
            attempt: life.attempt,
        };
        if seen != *message {
            return Some(format!("{seen:?}, the model {message:?}"));
        }
    }
    let finished = real.finished_dedups();
    let finished: Vec<_> =
        finished.map(|(name, it)| (name.to_vec(), (it.id.index, it.id.n), it.until.0)).collect();
    let mut known = model.finished_ids.clone();
    known.sort_unstable();
    (finished != known).then(|| format!("the IDs {finished:?} are remembered, by the model {known:?}"))
}
