//! Decides what happens to a message of a queue. Pure: values and time in, the next step out.
//!
//! The life of one message:
//!
//! ```text
//! states   READY                    can be handed out
//!          LEASED(delivery, until)  in flight: hidden from others until its lease ends
//!          (gone)                   no row any more
//!
//! state      event                              next state
//! -          pushed                             READY, delivery 0, attempt 0
//! READY      handed out for a while             LEASED(delivery + 1, at + lease), attempt + 1
//! READY      handed out at most once (NOACK)    gone, after delivery + 1 and attempt + 1
//! READY      acknowledged, any delivery         READY, unchanged: that lease has ended
//! LEASED(d)  acknowledged with delivery d       gone
//! LEASED(d)  acknowledged with another          LEASED(d), unchanged: a stale receipt
//! LEASED(d)  time passes `until`                READY, delivery and attempt stay
//! LEASED(d)  a new leader stands                LEASED(d), until + grace
//! ```
//!
//! Every edge is taken by a log entry. The delivery count never goes back, so a receipt that has become
//! stale stays so.

use crate::state::lease_after_grace;
use crate::types::ClusterTime;
use crate::types::Millis;

/// Where a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageState {
    /// Waiting to be handed out.
    Ready,
    /// With a consumer.
    Leased {
        /// When it goes back by itself.
        until: ClusterTime,
        /// Where the hand-out set that end; grace after a change of leader is counted from here.
        set_until: ClusterTime,
    },
}

/// Everything about a message that changes during its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    pub state: MessageState,
    /// How often it was handed out; never goes back. The last hand-out's number is in its receipt.
    pub delivery: u32,
    /// How many of these hand-outs count as attempts at the work.
    pub attempt: u32,
}

impl Life {
    /// Of a message that was just pushed.
    pub const NEW: Life = Life { state: MessageState::Ready, delivery: 0, attempt: 0 };
}

/// How QPOP takes messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// Hidden for this long, then handed out again unless acknowledged.
    Lease(Millis),
    /// Gone at once: at most once (NOACK).
    Remove,
}

/// What can happen to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A consumer takes it.
    HandOut(Take),
    /// A consumer says that the work of this delivery is done.
    Acknowledge { delivery: u32 },
    /// Time has come this far.
    TimePasses,
    /// A new leader stands.
    Grace(Millis),
}

/// What comes of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing changes.
    Unchanged,
    /// The message goes on like this.
    Becomes(Life),
    /// The message is finished, and was like this at its end.
    Finished(Life),
}

/// Decides on one event at the cluster time of its entry.
#[must_use]
pub fn step(life: Life, event: Event, at: ClusterTime) -> Step {
    match (life.state, event) {
        (MessageState::Ready, Event::HandOut(take)) => hand_out(life, take, at),
        (MessageState::Leased { .. }, Event::Acknowledge { delivery }) if delivery == life.delivery => {
            Step::Finished(life)
        }
        (MessageState::Leased { until, .. }, Event::TimePasses) if until <= at => {
            Step::Becomes(Life { state: MessageState::Ready, ..life })
        }
        (MessageState::Leased { until, set_until }, Event::Grace(grace)) => {
            let graced = lease_after_grace(until, set_until, at, grace);
            if graced == until {
                return Step::Unchanged;
            }
            Step::Becomes(Life { state: MessageState::Leased { until: graced, set_until }, ..life })
        }
        (MessageState::Ready, Event::Acknowledge { .. } | Event::TimePasses | Event::Grace(_))
        | (MessageState::Leased { .. }, Event::HandOut(_) | Event::Acknowledge { .. } | Event::TimePasses) => {
            Step::Unchanged
        }
    }
}

fn hand_out(life: Life, take: Take, at: ClusterTime) -> Step {
    // At one hand-out per lease of at least 100 ms, a counter of 32 bits lasts for thirteen years.
    let delivery = life.delivery.saturating_add(1);
    let attempt = life.attempt.saturating_add(1);
    match take {
        Take::Lease(lease) => {
            let until = at.after(lease);
            Step::Becomes(Life { state: MessageState::Leased { until, set_until: until }, delivery, attempt })
        }
        Take::Remove => Step::Finished(Life { state: MessageState::Ready, delivery, attempt }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: ClusterTime = ClusterTime(1_000);

    fn ready(delivery: u32, attempt: u32) -> Life {
        Life { state: MessageState::Ready, delivery, attempt }
    }

    fn leased(delivery: u32, attempt: u32, until: u64, set_until: u64) -> Life {
        let state = MessageState::Leased { until: ClusterTime(until), set_until: ClusterTime(set_until) };
        Life { state, delivery, attempt }
    }

    #[test]
    fn every_state_and_event_takes_its_edge() {
        let lease = Event::HandOut(Take::Lease(Millis(500)));
        let remove = Event::HandOut(Take::Remove);
        let grace = Event::Grace(Millis(3_000));
        let held = leased(3, 2, 1_500, 1_500);
        for (life, event, step_taken) in [
            (Life::NEW, lease, Step::Becomes(leased(1, 1, 1_500, 1_500))),
            (ready(3, 2), lease, Step::Becomes(leased(4, 3, 1_500, 1_500))),
            (Life::NEW, remove, Step::Finished(ready(1, 1))),
            (ready(3, 2), Event::Acknowledge { delivery: 3 }, Step::Unchanged),
            (ready(3, 2), Event::TimePasses, Step::Unchanged),
            (ready(3, 2), grace, Step::Unchanged),
            (held, lease, Step::Unchanged),
            (held, remove, Step::Unchanged),
            (held, Event::Acknowledge { delivery: 3 }, Step::Finished(held)),
            (held, Event::Acknowledge { delivery: 2 }, Step::Unchanged),
            (held, Event::Acknowledge { delivery: 4 }, Step::Unchanged),
            (held, Event::TimePasses, Step::Unchanged),
            (leased(3, 2, 1_001, 1_001), Event::TimePasses, Step::Unchanged),
            (leased(3, 2, 1_000, 1_000), Event::TimePasses, Step::Becomes(ready(3, 2))),
            (held, grace, Step::Becomes(leased(3, 2, 4_000, 1_500))),
            (leased(3, 2, 9_000, 9_000), grace, Step::Unchanged),
        ] {
            assert_eq!(step(life, event, AT), step_taken, "{life:?} {event:?}");
        }
    }

    #[test]
    fn repeated_grace_ends_at_its_budget() {
        let mut life = leased(1, 1, 1_000, 1_000);
        for now in (1_000..20_000).step_by(500) {
            if let Step::Becomes(next) = step(life, Event::Grace(Millis(3_000)), ClusterTime(now)) {
                life = next;
            }
        }
        assert_eq!(life, leased(1, 1, 7_000, 1_000));
    }
}
