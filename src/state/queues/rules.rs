//! Decides what happens to a message of a queue. Pure: values and time in, the next step out.
//!
//! The life of one message (COMMANDS.md 2.3):
//!
//! ```text
//! states   DELAYED(due)             not to be handed out yet
//!          READY                    can be handed out
//!          LEASED(until)            in flight: hidden from others until its lease ends
//!          DEAD                     will not be handed out again by itself
//!          (gone)                   finished, or deleted: no row any more
//!
//! state      event                              next state
//! -          pushed                             READY, delivery 0, attempt 0
//! -          pushed with a delay                DELAYED(at + delay)
//! DELAYED    time passes `due`                  READY
//! READY      handed out for a while             LEASED(at + lease), delivery + 1, attempt + 1
//! READY      handed out at most once (NOACK)    gone, after delivery + 1 and attempt + 1
//! LEASED     acknowledged                       gone
//! LEASED     returned SILENT [after a delay]    READY or DELAYED(at + delay), attempt − 1
//! LEASED     returned FAIL, attempts are left   DELAYED(at + delay or backoff); READY if that is nothing
//! LEASED     returned FAIL, none is left        DEAD
//! LEASED     returned FATAL                     DEAD
//! LEASED     extended                           LEASED(at + lease)
//! LEASED     time passes `until`, attempts left READY
//! LEASED     the same, none is left             DEAD
//! LEASED     the same, its lifetime is over     DEAD
//! LEASED     a new leader stands                LEASED(until + grace)
//! DELAYED, READY   its lifetime is over         DEAD
//! DELAYED, READY   pushed again with XX         DELAYED(at + delay) or READY
//! DEAD       redriven                           READY, attempt 0, and no lifetime any more
//! any        deleted                            gone
//! ```
//! Whoever acknowledges, returns or extends names the delivery by its receipt; one that is not the current delivery of
//! a leased message changes nothing. Every edge is taken by a log entry. The count of deliveries never goes back, so a
//! receipt that has become stale stays so. *Delivery* counts hand-outs; *attempt* counts those that are held against
//! the message.

use crate::state::lease_after_grace;
use crate::types::ClusterTime;
use crate::types::Millis;
use crate::types::planted::Bug;
use crate::types::planted::is_planted;

/// Where a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageState {
    /// Waiting for its time.
    Delayed {
        /// When it is ready.
        due: ClusterTime,
    },
    /// Waiting to be handed out.
    Ready,
    /// With a consumer.
    Leased {
        /// When it goes back by itself.
        until: ClusterTime,
        /// Where the hand-out or its consumer set that end; grace after a change of leader is counted from here.
        set_until: ClusterTime,
    },
    /// Put aside.
    Dead,
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
    /// Of a message that is pushed at this time, with a delay.
    #[must_use]
    pub fn new(at: ClusterTime, delay: Millis) -> Life {
        Life { state: waiting(at, delay), delivery: 0, attempt: 0 }
    }
}

/// How QPOP takes messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// Hidden for this long, then handed out again unless acknowledged.
    Lease(Millis),
    /// Gone at once: at most once (NOACK).
    Remove,
}

/// How QNACK gives a message back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// The hand-out does not count as an attempt.
    Silent { delay: Millis },
    /// The attempt failed: after `delay` comes the next one, if one is left.
    Fail { delay: Millis },
    /// No further attempt has a chance.
    Fatal,
}

/// What can happen to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A consumer takes it.
    HandOut(Take),
    /// A consumer says that the work of this delivery is done.
    Acknowledge { delivery: u32 },
    /// A consumer gives this delivery back.
    Return { delivery: u32, how: Return },
    /// A consumer needs this delivery for so much longer from now on.
    Extend { delivery: u32, lease: Millis },
    /// Time has come this far.
    TimePasses,
    /// A new leader stands.
    Grace(Millis),
    /// It is pushed again by XX: ready after this delay from now on.
    Reschedule { delay: Millis },
    /// An operator gives it new attempts.
    Redrive,
}

/// What the queue lays down for its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Attempts a message has; 0 is any number.
    pub max_deliver: u32,
    /// When the message's lifetime is over; NEVER when it has none.
    pub expires: ClusterTime,
}

/// Why a message was put aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// Its last attempt failed, or its lease ended in it.
    MaxDeliver,
    /// A consumer said so.
    Fatal,
    /// Its lifetime is over.
    Expired,
}

/// What comes of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing changes.
    Unchanged,
    /// The message goes on like this.
    Becomes(Life),
    /// It is put aside.
    Dies(Life, Death),
    /// The message is finished, and was like this at its end.
    Finished(Life),
}

/// Decides on one event at the cluster time of its entry.
#[must_use]
pub fn step(life: Life, event: Event, policy: Policy, at: ClusterTime) -> Step {
    let becomes = |state| Step::Becomes(Life { state, ..life });
    let dies = |death| Step::Dies(Life { state: MessageState::Dead, ..life }, death);
    let is_last = policy.max_deliver != 0 && life.attempt >= policy.max_deliver;
    let is_over = policy.expires <= at;
    match (life.state, event) {
        (MessageState::Ready, Event::HandOut(take)) => hand_out(life, take, at),
        (MessageState::Leased { .. }, Event::Acknowledge { delivery }) if delivery == life.delivery => {
            Step::Finished(life)
        }
        (MessageState::Leased { .. }, Event::Return { delivery, how }) if delivery == life.delivery => {
            match how {
                Return::Fatal => dies(Death::Fatal),
                Return::Fail { .. } if is_last => dies(Death::MaxDeliver),
                Return::Fail { .. } | Return::Silent { .. } if is_over => dies(Death::Expired),
                Return::Fail { delay } => becomes(waiting(at, delay)),
                Return::Silent { delay } => Step::Becomes(Life {
                    state: waiting(at, delay),
                    attempt: life.attempt.saturating_sub(u32::from(!is_planted(Bug::SilentReturnCounts))),
                    ..life
                }),
            }
        }
        (MessageState::Leased { .. }, Event::Extend { delivery, lease }) if delivery == life.delivery => {
            let until = at.after(lease);
            becomes(MessageState::Leased { until, set_until: until })
        }
        (MessageState::Leased { until, .. }, Event::TimePasses) if until <= at => {
            if is_over {
                dies(Death::Expired)
            } else if is_last {
                dies(Death::MaxDeliver)
            } else {
                becomes(MessageState::Ready)
            }
        }
        (MessageState::Delayed { .. } | MessageState::Ready, Event::TimePasses) if is_over => {
            dies(Death::Expired)
        }
        (MessageState::Delayed { due }, Event::TimePasses) if due <= at => becomes(MessageState::Ready),
        (MessageState::Leased { until, set_until }, Event::Grace(grace)) => {
            let graced = lease_after_grace(until, set_until, at, grace);
            if graced == until {
                return Step::Unchanged;
            }
            becomes(MessageState::Leased { until: graced, set_until })
        }
        (MessageState::Delayed { .. } | MessageState::Ready, Event::Reschedule { delay }) => {
            becomes(waiting(at, delay))
        }
        (MessageState::Dead, Event::Redrive) => {
            Step::Becomes(Life { state: MessageState::Ready, attempt: 0, ..life })
        }
        _ => Step::Unchanged,
    }
}

fn waiting(at: ClusterTime, delay: Millis) -> MessageState {
    if delay.0 == 0 { MessageState::Ready } else { MessageState::Delayed { due: at.after(delay) } }
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
    const POLICY: Policy = Policy { max_deliver: 3, expires: ClusterTime::NEVER };

    fn ready(delivery: u32, attempt: u32) -> Life {
        Life { state: MessageState::Ready, delivery, attempt }
    }

    fn delayed(delivery: u32, attempt: u32, due: u64) -> Life {
        Life { state: MessageState::Delayed { due: ClusterTime(due) }, delivery, attempt }
    }

    fn leased(delivery: u32, attempt: u32, until: u64, set_until: u64) -> Life {
        let state = MessageState::Leased { until: ClusterTime(until), set_until: ClusterTime(set_until) };
        Life { state, delivery, attempt }
    }

    fn dead(delivery: u32, attempt: u32) -> Life {
        Life { state: MessageState::Dead, delivery, attempt }
    }

    #[test]
    fn every_state_and_event_takes_its_edge() {
        let lease = Event::HandOut(Take::Lease(Millis(500)));
        let remove = Event::HandOut(Take::Remove);
        let grace = Event::Grace(Millis(3_000));
        let again = |ms| Event::Reschedule { delay: Millis(ms) };
        let give = |delivery, how| Event::Return { delivery, how };
        let fail = |ms| Return::Fail { delay: Millis(ms) };
        let silent = |ms| Return::Silent { delay: Millis(ms) };
        let extend = |delivery| Event::Extend { delivery, lease: Millis(700) };
        let ack = |delivery| Event::Acknowledge { delivery };
        let fresh = Life::new(AT, Millis(0));
        let held = leased(3, 2, 1_500, 1_500);
        let last = leased(7, 3, 1_000, 1_000);
        let (unchanged, becomes) = (Step::Unchanged, Step::Becomes);
        for (life, event, step_taken) in [
            (fresh, lease, becomes(leased(1, 1, 1_500, 1_500))),
            (ready(3, 2), lease, becomes(leased(4, 3, 1_500, 1_500))),
            (fresh, remove, Step::Finished(ready(1, 1))),
            (ready(3, 2), ack(3), unchanged),
            (ready(3, 2), give(3, Return::Fatal), unchanged),
            (ready(3, 2), extend(3), unchanged),
            (ready(3, 2), Event::TimePasses, unchanged),
            (ready(3, 2), grace, unchanged),
            (ready(3, 2), again(5), becomes(delayed(3, 2, 1_005))),
            (ready(3, 2), Event::Redrive, unchanged),
            (delayed(3, 2, 1_001), Event::TimePasses, unchanged),
            (delayed(3, 2, 1_000), Event::TimePasses, becomes(ready(3, 2))),
            (delayed(3, 2, 1_000), lease, unchanged),
            (delayed(3, 2, 1_000), ack(3), unchanged),
            (delayed(3, 2, 1_500), again(0), becomes(ready(3, 2))),
            (delayed(3, 2, 1_500), Event::Redrive, unchanged),
            (held, lease, unchanged),
            (held, remove, unchanged),
            (held, again(5), unchanged),
            (held, ack(3), Step::Finished(held)),
            (held, ack(2), unchanged),
            (held, ack(4), unchanged),
            (held, extend(3), becomes(leased(3, 2, 1_700, 1_700))),
            (held, extend(2), unchanged),
            (held, give(2, Return::Fatal), unchanged),
            (held, give(3, Return::Fatal), Step::Dies(dead(3, 2), Death::Fatal)),
            (held, give(3, fail(9)), becomes(delayed(3, 2, 1_009))),
            (held, give(3, fail(0)), becomes(ready(3, 2))),
            (held, give(3, silent(0)), becomes(ready(3, 1))),
            (held, give(3, silent(9)), becomes(delayed(3, 1, 1_009))),
            (last, give(7, fail(9)), Step::Dies(dead(7, 3), Death::MaxDeliver)),
            (last, give(7, silent(0)), becomes(ready(7, 2))),
            (last, Event::TimePasses, Step::Dies(dead(7, 3), Death::MaxDeliver)),
            (held, Event::TimePasses, unchanged),
            (leased(3, 2, 1_001, 1_001), Event::TimePasses, unchanged),
            (leased(3, 2, 1_000, 1_000), Event::TimePasses, becomes(ready(3, 2))),
            (held, grace, becomes(leased(3, 2, 4_000, 1_500))),
            (leased(3, 2, 9_000, 9_000), grace, unchanged),
            (dead(7, 3), lease, unchanged),
            (dead(7, 3), ack(7), unchanged),
            (dead(7, 3), Event::TimePasses, unchanged),
            (dead(7, 3), again(0), unchanged),
            (dead(7, 3), Event::Redrive, becomes(ready(7, 0))),
        ] {
            assert_eq!(step(life, event, POLICY, AT), step_taken, "{life:?} {event:?}");
        }
    }

    #[test]
    fn a_lifetime_ends_a_message_where_nobody_has_it() {
        let over = Policy { max_deliver: 3, expires: AT };
        let dies = |life| Step::Dies(life, Death::Expired);
        let fail = Event::Return { delivery: 2, how: Return::Fail { delay: Millis(1) } };
        for (life, event, step_taken) in [
            (ready(2, 2), Event::TimePasses, dies(dead(2, 2))),
            (delayed(2, 2, 9_000), Event::TimePasses, dies(dead(2, 2))),
            (leased(2, 2, 1_001, 1_001), Event::TimePasses, Step::Unchanged),
            (leased(2, 2, 1_000, 1_000), Event::TimePasses, dies(dead(2, 2))),
            (leased(2, 2, 1_500, 1_500), fail, dies(dead(2, 2))),
            (leased(2, 2, 1_500, 1_500), Event::Acknowledge { delivery: 2 }, {
                Step::Finished(leased(2, 2, 1_500, 1_500))
            }),
        ] {
            assert_eq!(step(life, event, over, AT), step_taken, "{life:?} {event:?}");
        }
    }

    #[test]
    fn without_a_maximum_attempts_never_end() {
        let policy = Policy { max_deliver: 0, ..POLICY };
        let life = leased(9, 1_000_000, 1_000, 1_000);
        assert_eq!(step(life, Event::TimePasses, policy, AT), Step::Becomes(ready(9, 1_000_000)));
    }

    #[test]
    fn repeated_grace_ends_at_its_budget() {
        let mut life = leased(1, 1, 1_000, 1_000);
        for now in (1_000..20_000).step_by(500) {
            if let Step::Becomes(next) = step(life, Event::Grace(Millis(3_000)), POLICY, ClusterTime(now)) {
                life = next;
            }
        }
        assert_eq!(life, leased(1, 1, 7_000, 1_000));
    }
}
