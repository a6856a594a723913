//! Wrong passwords, by address and user: the answer to too many of them waits (OPERATE.md 2.5). Pure.
//!
//! ```text
//! level   each failure adds a minute's share of `auth-failures-free`; it sinks as time goes
//! up to a minute's worth   the answer comes at once
//! above                    it waits 0.1 s, 0.2 s, 0.4 s … up to 5 s
//! ```
//! The right password is judged first and never waits, so that behind an address that many share nobody is locked out.
//! Whoever guesses has few answers in flight instead: above a bound each further guess costs him his connection. A wait
//! counts until its time is over, whether or not its client is still there.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::net::Ipv6Addr;

use crate::types::Millis;
use crate::types::Monotonic;

/// The time that free failures are counted over.
const MINUTE: Millis = Millis(60_000);
/// The first wait, and the longest.
const WAIT_MIN: Millis = Millis(100);
const WAIT_MAX: Millis = Millis(5_000);
/// Doublings from the first wait that reach the longest.
const DOUBLINGS_MAX: u32 = 6;
/// Answers to one address that may wait.
const WAITING_MAX: usize = 64;
/// Pairs of address and user in each of two tables, and addresses that wait; the table that is older goes as a whole.
const ENTRIES_MAX: usize = 5_000;
/// How often failures of one address and user are logged, the same while their answers wait, and how often any are.
const TOLD_EVERY: Millis = Millis(60_000);
const WAITING_TOLD_EVERY: Millis = Millis(10_000);
const ANY_TOLD_EVERY: Millis = Millis(1_000);

/// What becomes of the answer to a wrong password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It comes after this time; zero is at once.
    After(Millis),
    /// It comes at once, and the connection closes.
    Close,
}

/// An address, and a hash of the user: names are as long as a stranger likes.
type Who = (IpAddr, u64);

#[derive(Debug, Clone, Copy, Default)]
struct Level {
    /// Time that it takes to sink to nothing, as of `at`.
    millis: u64,
    at: Monotonic,
    /// Failures since they were last logged, and when that was.
    untold: u64,
    told: Option<Monotonic>,
}

/// The failures of late.
#[derive(Debug, Default)]
pub struct LoginFailures {
    young: BTreeMap<Who, Level>,
    old: BTreeMap<Who, Level>,
    /// When the waits of an address end.
    waiting: BTreeMap<IpAddr, Vec<Monotonic>>,
    told: Option<Monotonic>,
}

/// What one failure leads to.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    pub verdict: Verdict,
    /// How many failures the log is to tell of now; 0 is none.
    pub told: u64,
}

impl LoginFailures {
    /// Judges a wrong password for `user`, a hash. `free` failures a minute are answered at once; 0 is all.
    pub fn note(&mut self, from: IpAddr, user: u64, free: u32, now: Monotonic) -> Failure {
        let from = network_of(from);
        let may_tell = self.told.is_none_or(|told| now.since(told) >= ANY_TOLD_EVERY);
        let level = self.level((from, user));
        level.untold += 1;
        let wait = level.rise(free, now);
        let every = if wait > Millis(0) { WAITING_TOLD_EVERY } else { TOLD_EVERY };
        let is_due = level.told.is_none_or(|told| now.since(told) >= every);
        let told = if may_tell && is_due {
            level.told = Some(now);
            std::mem::take(&mut level.untold)
        } else {
            0
        };
        if told > 0 {
            self.told = Some(now);
        }
        let verdict = if wait == Millis(0) || self.may_wait(from, now, wait) {
            Verdict::After(wait)
        } else {
            Verdict::Close
        };
        Failure { verdict, told }
    }

    fn level(&mut self, who: Who) -> &mut Level {
        if self.young.len() >= ENTRIES_MAX && !self.young.contains_key(&who) {
            self.old = std::mem::take(&mut self.young);
        }
        let known = self.old.remove(&who);
        self.young.entry(who).or_insert_with(|| known.unwrap_or_default())
    }

    /// Takes a place among the waits of the address, if one is free.
    fn may_wait(&mut self, from: IpAddr, now: Monotonic, wait: Millis) -> bool {
        if self.waiting.len() >= ENTRIES_MAX {
            self.waiting.retain(|_, ends| ends.iter().any(|end| *end > now));
        }
        if self.waiting.len() >= ENTRIES_MAX && !self.waiting.contains_key(&from) {
            return false;
        }
        let ends = self.waiting.entry(from).or_default();
        ends.retain(|end| *end > now);
        let is_free = ends.len() < WAITING_MAX;
        if is_free {
            ends.push(Monotonic(now.0.saturating_add(wait.0 * 1_000_000)));
        }
        is_free
    }
}

impl Level {
    /// One failure more; gives how long its answer waits.
    fn rise(&mut self, free: u32, now: Monotonic) -> Millis {
        if free == 0 {
            return Millis(0);
        }
        let share = (MINUTE.0 / u64::from(free)).max(1);
        let sunk = self.millis.saturating_sub(now.since(self.at).0);
        self.at = now;
        self.millis = (sunk + share).min(MINUTE.0 + share * u64::from(DOUBLINGS_MAX + 1));
        let above = self.millis.saturating_sub(share * u64::from(free)).div_ceil(share);
        match u32::try_from(above).unwrap_or(u32::MAX) {
            0 => Millis(0),
            above => Millis(WAIT_MIN.0 << (above - 1).min(DOUBLINGS_MAX)).min(WAIT_MAX),
        }
    }
}

/// The address that failures are counted by: of IPv6 the first half, since who has one address has all of them.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 7));
    const USER: u64 = 1;

    fn at(millis: u64) -> Monotonic {
        Monotonic(millis * 1_000_000)
    }

    fn after(failures: &mut LoginFailures, millis: u64) -> u64 {
        match failures.note(HERE, USER, 20, at(millis)).verdict {
            Verdict::After(wait) => wait.0,
            Verdict::Close => panic!("closed"),
        }
    }

    #[test]
    fn twenty_failures_a_minute_are_free_and_then_the_answers_wait_longer_and_longer() {
        let mut failures = LoginFailures::default();
        let waits: Vec<u64> = (0..29).map(|_| after(&mut failures, 0)).collect();
        assert_eq!(waits[..20], [0; 20]);
        assert_eq!(waits[20..], [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000]);
        // It sinks, and is forgotten after a while.
        assert_eq!(after(&mut failures, 9_000), 1_600);
        assert_eq!(after(&mut failures, 200_000), 0);
    }

    #[test]
    fn one_failure_every_three_seconds_never_waits() {
        let mut failures = LoginFailures::default();
        assert!((0..200).all(|n| after(&mut failures, n * 3_000) == 0));
    }

    #[test]
    fn addresses_and_users_are_counted_apart() {
        let mut failures = LoginFailures::default();
        (0..25).for_each(|_| _ = after(&mut failures, 0));
        let there: IpAddr = "10.0.0.8".parse().unwrap();
        assert_eq!(failures.note(there, USER, 20, at(0)).verdict, Verdict::After(Millis(0)));
        assert_eq!(failures.note(HERE, 2, 20, at(0)).verdict, Verdict::After(Millis(0)));
        let neighbours =
            ["2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1"].map(|text| text.parse().unwrap());
        let [one, same, other] = neighbours;
        (0..21).for_each(|_| _ = failures.note(one, USER, 20, at(0)));
        assert_eq!(failures.note(same, USER, 20, at(0)).verdict, Verdict::After(Millis(200)));
        assert_eq!(failures.note(other, USER, 20, at(0)).verdict, Verdict::After(Millis(0)));
    }

    #[test]
    fn few_answers_of_an_address_wait_at_a_time() {
        let mut failures = LoginFailures::default();
        let verdicts: Vec<Verdict> = (0..100).map(|_| failures.note(HERE, USER, 20, at(0)).verdict).collect();
        assert!(verdicts[..84].iter().all(|verdict| matches!(verdict, Verdict::After(_))), "{verdicts:?}");
        assert!(verdicts[84..].iter().all(|verdict| *verdict == Verdict::Close));
        assert_eq!(after(&mut failures, 5_001), 5_000);
    }

    #[test]
    fn a_test_suite_may_fail_as_often_as_it_likes() {
        let mut failures = LoginFailures::default();
        let mut note = || failures.note(HERE, USER, 0, at(0)).verdict;
        assert!((0..1_000).all(|_| note() == Verdict::After(Millis(0))));
    }

    #[test]
    fn the_table_is_bounded_whatever_names_come() {
        let mut failures = LoginFailures::default();
        (0..25).for_each(|_| _ = after(&mut failures, 0));
        for user in 0..4 * ENTRIES_MAX as u64 {
            failures.note(HERE, 1_000 + user, 20, at(0));
            assert!(failures.young.len() <= ENTRIES_MAX && failures.old.len() <= ENTRIES_MAX);
        }
    }

    #[test]
    fn the_log_tells_of_failures_once_a_minute_with_their_number() {
        let mut failures = LoginFailures::default();
        let mut told = |user: u64, millis: u64| failures.note(HERE, user, 20, at(millis)).told;
        assert_eq!((told(USER, 0), told(USER, 10), told(USER, 20)), (1, 0, 0));
        assert_eq!(told(2, 30), 0, "a second for any");
        assert_eq!(told(2, 1_100), 2);
        assert_eq!(told(USER, 60_000), 3);
        // Guesses are told of sooner.
        assert!((0..30).all(|_| told(USER, 65_000) == 0));
        assert_eq!((told(USER, 69_999), told(USER, 70_000), told(USER, 71_000)), (0, 32, 0));
    }
}
