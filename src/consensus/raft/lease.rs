//! The leader's lease: until when no other leader can have been elected (Ongaro's thesis, 6.4.1; as TiKV does it).
//!
//! ```text
//!           proposed(index), asked(context): remember when, before anything is sent
//! no lease ──────────────────────────────────────► quorum confirmed (committed, answered)
//!    ▲                                                        │ lease until: when it was *sent* + length
//!    └──── it runs out · a new term · a pause between ticks · renounced: never again in this term
//! ```
//! A follower that heard from the leader refuses votes for `election_ticks - 1` ticks at least (check-quorum; the
//! first tick may come right after the message). The lease is two thirds of that, which leaves room for clocks that
//! run at different speed. Times are CLOCK_BOOTTIME, which goes on while a machine sleeps.

use std::collections::VecDeque;

use crate::types::Boottime;

/// At most this many confirmations are awaited; more would only be later ones of the same.
const AWAITED_MAX: usize = 64;

/// When the lease ends, and what will lengthen it.
#[derive(Debug)]
pub struct Lease {
    length_nanos: u64,
    term: u64,
    until: Boottime,
    renounced_in: u64,
    last_tick: Option<Boottime>,
    proposals: VecDeque<(u64, Boottime)>,
    questions: VecDeque<(u64, Boottime)>,
}

impl Lease {
    /// No lease yet.
    #[must_use]
    pub fn new(election_ticks: usize, tick_nanos: u64) -> Lease {
        Lease {
            length_nanos: (election_ticks as u64).saturating_sub(1) * tick_nanos * 2 / 3,
            term: 0,
            until: Boottime(0),
            renounced_in: 0,
            last_tick: None,
            proposals: VecDeque::new(),
            questions: VecDeque::new(),
        }
    }

    /// How long a lease lasts, in nanoseconds.
    #[must_use]
    pub fn length_nanos(&self) -> u64 {
        self.length_nanos
    }

    /// When the lease of this term ends; the beginning of time when there is none.
    #[must_use]
    pub fn until(&self, term: u64) -> Boottime {
        let is_given = term == self.term && term != self.renounced_in;
        if is_given { self.until } else { Boottime(0) }
    }

    fn enter(&mut self, term: u64) {
        if term != self.term {
            self.term = term;
            self.until = Boottime(0);
            self.proposals.clear();
            self.questions.clear();
        }
    }

    /// A tick. After a pause of more than half a lease and a tick nothing that was known counts.
    pub fn tick(&mut self, now: Boottime, tick_nanos: u64) {
        let pause = self.last_tick.map_or(0, |last| now.0.saturating_sub(last.0));
        if pause > self.length_nanos / 2 + tick_nanos {
            self.until = Boottime(0);
        }
        self.last_tick = Some(now);
    }

    /// An entry was proposed, and is sent after `now`.
    pub fn proposed(&mut self, term: u64, index: u64, now: Boottime) {
        self.enter(term);
        if self.proposals.len() < AWAITED_MAX {
            self.proposals.push_back((index, now));
        }
    }

    /// A read barrier begins, and is sent after `now`.
    pub fn asked(&mut self, term: u64, context: u64, now: Boottime) {
        self.enter(term);
        if self.questions.len() < AWAITED_MAX {
            self.questions.push_back((context, now));
        }
    }

    /// Everything up to `index` is committed in this term: a quorum has answered.
    pub fn committed(&mut self, term: u64, index: u64) {
        if term == self.term {
            while let Some((_, sent)) = self.proposals.pop_front_if(|(at, _)| *at <= index) {
                self.extend(sent);
            }
        }
    }

    /// The read barrier, and all that were asked before it, was answered by a quorum.
    pub fn answered(&mut self, term: u64, context: u64) {
        if term != self.term || !self.questions.iter().any(|(asked, _)| *asked == context) {
            return;
        }
        while let Some((asked, sent)) = self.questions.pop_front() {
            self.extend(sent);
            if asked == context {
                return;
            }
        }
    }

    /// No lease for the rest of this term.
    pub fn renounce(&mut self, term: u64) {
        self.renounced_in = term;
    }

    fn extend(&mut self, sent: Boottime) {
        self.until = self.until.max(Boottime(sent.0.saturating_add(self.length_nanos)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 9 ticks of 50, two thirds: 300.
    fn lease() -> Lease {
        Lease::new(10, 50)
    }

    #[test]
    fn it_is_counted_from_the_sending_and_not_from_the_answer() {
        let mut lease = lease();
        lease.proposed(2, 7, Boottime(1_000));
        assert_eq!(lease.until(2), Boottime(0));
        lease.committed(2, 7);
        assert_eq!(lease.until(2), Boottime(1_300));
        lease.asked(2, 1, Boottime(1_100));
        lease.asked(2, 2, Boottime(1_200));
        lease.answered(2, 1);
        assert_eq!(lease.until(2), Boottime(1_400));
    }

    #[test]
    fn another_term_has_none() {
        let mut lease = lease();
        lease.proposed(2, 7, Boottime(1_000));
        lease.committed(2, 7);
        assert_eq!(lease.until(3), Boottime(0));
        lease.proposed(3, 8, Boottime(1_100));
        lease.committed(2, 8);
        assert_eq!((lease.until(2), lease.until(3)), (Boottime(0), Boottime(0)));
    }

    #[test]
    fn what_was_renounced_does_not_come_back_in_this_term() {
        let mut lease = lease();
        lease.proposed(2, 7, Boottime(1_000));
        lease.renounce(2);
        lease.committed(2, 7);
        assert_eq!(lease.until(2), Boottime(0));
        lease.proposed(3, 8, Boottime(2_000));
        lease.committed(3, 8);
        assert_eq!(lease.until(3), Boottime(2_300));
    }

    #[test]
    fn a_pause_between_ticks_ends_it() {
        let mut lease = lease();
        lease.tick(Boottime(1_000), 50);
        lease.proposed(2, 7, Boottime(1_000));
        lease.committed(2, 7);
        lease.tick(Boottime(1_060), 50);
        assert_eq!(lease.until(2), Boottime(1_300));
        lease.tick(Boottime(1_290), 50);
        assert_eq!(lease.until(2), Boottime(0));
    }

    #[test]
    fn an_answer_to_nothing_that_was_asked_gives_nothing() {
        let mut lease = lease();
        lease.asked(2, 1, Boottime(1_000));
        lease.answered(2, 9);
        assert_eq!(lease.until(2), Boottime(0));
    }
}
