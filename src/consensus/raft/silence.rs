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

/// When a leader was heard. All times are in nanoseconds of the monotonic clock.
#[derive(Debug, Default)]
pub struct Silence {
    /// 0 is never.
    heard: AtomicU64,
    /// When time last passed here.
    ticked: AtomicU64,
    /// For how long this process stood still since the leader was heard.
    paused: AtomicU64,
}

impl Silence {
    /// A leader that leads was heard at this time.
    pub fn heard(&self, at: Monotonic) {
        if self.heard.fetch_max(at.0.max(1), Ordering::AcqRel) < at.0 {
            self.paused.store(0, Ordering::Release);
            self.ticked.fetch_max(at.0, Ordering::AcqRel);
        }
    }

    /// Time passes, as it should at least every `longest`.
    pub fn tick(&self, now: Monotonic, longest: Millis) {
        let before = self.ticked.load(Ordering::Acquire);
        let paused = now.0.saturating_sub(before).saturating_sub(longest.0.saturating_mul(1_000_000));
        if before != 0 && paused > 0 {
            self.paused.fetch_add(paused, Ordering::AcqRel);
        }
        self.ticked.fetch_max(now.0, Ordering::AcqRel);
    }

    /// How long ago a leader was heard; `None`: never.
    #[must_use]
    pub fn since(&self, now: Monotonic) -> Option<Millis> {
        let heard = self.heard.load(Ordering::Acquire);
        (heard != 0).then(|| now.since(Monotonic(heard)))
    }

    /// The same without the time for which this process stood still, as of the last tick.
    #[must_use]
    pub fn leaderless(&self) -> Option<Millis> {
        let heard = self.heard.load(Ordering::Acquire);
        let counted = heard.saturating_add(self.paused.load(Ordering::Acquire));
        (heard != 0).then(|| Monotonic(self.ticked.load(Ordering::Acquire)).since(Monotonic(counted)))
    }
}

/// When a majority of these voters was heard last; `None` when that never was.
#[must_use]
pub fn majority_heard(voters: &[u64], heard: impl Fn(u64) -> Option<Monotonic>) -> Option<Monotonic> {
    let mut heard: Vec<Option<Monotonic>> = voters.iter().map(|replica| heard(*replica)).collect();
    // Those that were never heard come last.
    heard.sort_unstable_by(|a, b| b.cmp(a));
    heard.get(heard.len() / 2).copied().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1_000_000)
    }

    #[test]
    fn a_process_that_stood_still_did_not_miss_its_leader_meanwhile() {
        let silence = Silence::default();
        assert_eq!((silence.since(at(5)), silence.leaderless()), (None, None));
        silence.heard(at(1_000));
        for now in (1_050..=1_500).step_by(50) {
            silence.tick(at(now), Millis(100));
        }
        assert_eq!(silence.leaderless(), Some(Millis(500)));
        // It stands still for ten seconds. Before the next tick the time does not count at all.
        assert_eq!(silence.leaderless(), Some(Millis(500)));
        silence.tick(at(11_500), Millis(100));
        assert_eq!(silence.since(at(11_500)), Some(Millis(10_500)));
        assert_eq!(silence.leaderless(), Some(Millis(600)));
        silence.tick(at(11_550), Millis(100));
        assert_eq!(silence.leaderless(), Some(Millis(650)));
        silence.heard(at(11_560));
        silence.tick(at(11_600), Millis(100));
        assert_eq!(silence.leaderless(), Some(Millis(40)));
    }

    #[test]
    fn what_arrives_first_after_a_standstill_ends_it() {
        let silence = Silence::default();
        silence.heard(at(1_000));
        silence.tick(at(1_050), Millis(100));
        silence.heard(at(60_000));
        silence.tick(at(60_050), Millis(100));
        assert_eq!(silence.leaderless(), Some(Millis(50)));
    }

    #[test]
    fn an_older_word_takes_nothing_back() {
        let silence = Silence::default();
        silence.heard(at(2_000));
        silence.heard(at(1_000));
        assert_eq!(silence.since(at(2_500)), Some(Millis(500)));
    }

    #[test]
    fn a_leader_is_heard_while_a_majority_is() {
        let heard = |others: &[u64]| {
            let voters: Vec<u64> = (0..=others.len() as u64).collect();
            majority_heard(&voters, |replica| match replica.checked_sub(1) {
                None => Some(at(99)),
                Some(other) => Some(others[other as usize]).filter(|ms| *ms > 0).map(at),
            })
        };
        assert_eq!(heard(&[]), Some(at(99)));
        assert_eq!(heard(&[7]), Some(at(7)), "two of two");
        assert_eq!(heard(&[0, 30]), Some(at(30)));
        assert_eq!(heard(&[0, 0]), None);
        assert_eq!(heard(&[9, 70, 80, 7]), Some(at(70)));
    }
}
