//! How long no leader that leads was heard.
//!
//! ```text
//! a message of a leader of this term arrives           heard now
//! this node leads, and time passes                     heard when it last heard a majority: nobody else can lead then
//! it leads no more                                     heard until then
//! time passes later than it should                     the process stood still for what is more than that
//! ```
//! Two questions are asked. How old may the state be that this node has? Then all time counts. Is there no leader? Then the
//! time for which this process stood still does not: whoever does not run hears nobody.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use crate::types::Millis;
use crate::types::Monotonic;

/// A moment on two clocks, of which the second stands while the process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    pub at: Monotonic,
    running: Monotonic,
}

/// When a leader was heard. All times are in nanoseconds of the monotonic clock.
#[derive(Debug, Default)]
pub struct Silence {
    /// 0 is never.
    heard: AtomicU64,
    /// The same on the clock that stands while this process does.
    heard_running: AtomicU64,
    /// When time last passed here.
    passed: AtomicU64,
    /// For how long this process stood still until then.
    stood: AtomicU64,
}

impl Silence {
    /// Time passes, as it should at least every `longest`.
    pub fn pass(&self, now: Monotonic, longest: Millis) {
        let before = self.passed.fetch_max(now.0, Ordering::AcqRel);
        let stood = now.0.saturating_sub(before).saturating_sub(longest.0.saturating_mul(1_000_000));
        if before != 0 && stood > 0 {
            self.stood.fetch_add(stood, Ordering::AcqRel);
        }
    }

    /// This moment, after time has passed up to it.
    #[must_use]
    pub fn moment(&self, now: Monotonic) -> Moment {
        Moment { at: now, running: Monotonic(now.0.saturating_sub(self.stood.load(Ordering::Acquire))) }
    }

    /// A leader that leads was heard at this moment.
    pub fn heard(&self, moment: Moment) {
        self.heard_running.fetch_max(moment.running.0, Ordering::AcqRel);
        self.heard.fetch_max(moment.at.0.max(1), Ordering::AcqRel);
    }

    /// How long ago a leader was heard; `None`: never.
    #[must_use]
    pub fn since(&self, now: Monotonic) -> Option<Millis> {
        let heard = self.heard.load(Ordering::Acquire);
        (heard != 0).then(|| now.since(Monotonic(heard)))
    }

    /// The same without the time for which this process stood still, until time passed last.
    #[must_use]
    pub fn leaderless(&self) -> Option<Millis> {
        let is_heard = self.heard.load(Ordering::Acquire) != 0;
        let running = self.moment(Monotonic(self.passed.load(Ordering::Acquire))).running;
        is_heard.then(|| running.since(Monotonic(self.heard_running.load(Ordering::Acquire))))
    }
}

/// When a majority of these voters was heard last; `None` when that never was.
#[must_use]
pub fn majority_heard(voters: &[u64], heard: impl Fn(u64) -> Option<Moment>) -> Option<Moment> {
    let mut heard: Vec<Option<Moment>> = voters.iter().map(|replica| heard(*replica)).collect();
    // Those that were never heard come last.
    heard.sort_unstable_by(|a, b| b.cmp(a));
    heard.get(heard.len() / 2).copied().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Millis = Millis(100);

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1_000_000)
    }

    /// Time passes up to this one, and a leader is heard.
    fn hear(silence: &Silence, ms: u64) {
        silence.pass(at(ms), LONGEST);
        silence.heard(silence.moment(at(ms)));
    }

    #[test]
    fn a_process_that_stood_still_did_not_miss_its_leader_meanwhile() {
        let silence = Silence::default();
        assert_eq!((silence.since(at(5)), silence.leaderless()), (None, None));
        hear(&silence, 1_000);
        for now in (1_050..=1_500).step_by(50) {
            silence.pass(at(now), LONGEST);
        }
        assert_eq!(silence.leaderless(), Some(Millis(500)));
        // It stands still for ten seconds. Before time passes here again that does not count at all.
        assert_eq!(silence.leaderless(), Some(Millis(500)));
        silence.pass(at(11_500), LONGEST);
        assert_eq!(silence.since(at(11_500)), Some(Millis(10_500)));
        assert_eq!(silence.leaderless(), Some(Millis(600)));
        silence.pass(at(11_550), LONGEST);
        assert_eq!(silence.leaderless(), Some(Millis(650)));
        hear(&silence, 11_560);
        silence.pass(at(11_600), LONGEST);
        assert_eq!(silence.leaderless(), Some(Millis(40)));
    }

    #[test]
    fn what_arrives_first_after_a_standstill_ends_it() {
        let silence = Silence::default();
        hear(&silence, 1_000);
        silence.pass(at(1_050), LONGEST);
        hear(&silence, 60_000);
        silence.pass(at(60_050), LONGEST);
        assert_eq!(silence.leaderless(), Some(Millis(50)));
    }

    #[test]
    fn what_was_heard_before_a_standstill_and_is_told_after_it_leaves_it_uncounted() {
        let silence = Silence::default();
        hear(&silence, 1_000);
        silence.pass(at(1_050), LONGEST);
        let before = silence.moment(at(1_050));
        silence.pass(at(9_050), LONGEST);
        silence.heard(before);
        assert_eq!(silence.since(at(9_050)), Some(Millis(8_000)));
        assert_eq!(silence.leaderless(), Some(LONGEST));
    }

    #[test]
    fn an_older_word_takes_nothing_back() {
        let silence = Silence::default();
        let older = silence.moment(at(1_000));
        hear(&silence, 2_000);
        silence.heard(older);
        assert_eq!(silence.since(at(2_500)), Some(Millis(500)));
    }

    #[test]
    fn a_leader_is_heard_while_a_majority_is() {
        let moment = |ms| Silence::default().moment(at(ms));
        let heard = |others: &[u64]| {
            let voters: Vec<u64> = (0..=others.len() as u64).collect();
            let heard = majority_heard(&voters, |replica| match replica.checked_sub(1) {
                None => Some(moment(99)),
                Some(other) => Some(others[other as usize]).filter(|ms| *ms > 0).map(moment),
            });
            heard.map(|moment| moment.at)
        };
        assert_eq!(heard(&[]), Some(at(99)));
        assert_eq!(heard(&[7]), Some(at(7)), "two of two");
        assert_eq!(heard(&[0, 30]), Some(at(30)));
        assert_eq!(heard(&[0, 0]), None);
        assert_eq!(heard(&[9, 70, 80, 7]), Some(at(70)));
    }
}
