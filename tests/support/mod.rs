//! Starts the real binary and talks to it over a socket, as a user would.

#![allow(dead_code, reason = "each test binary uses its own share of the helpers")]
#![allow(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

pub mod client;
pub mod cluster;
pub mod cuts;
pub mod damage;
pub mod filling;
pub mod history;
pub mod linearizability;
pub mod links;
pub mod node;
pub mod power;
pub mod small_disk;
pub mod wgl;

use std::thread;
use std::time::Duration;

use holdfast::clock::Clock;
use holdfast::clock::SystemClock;
use holdfast::types::Millis;
use holdfast::types::Monotonic;

/// Tries `attempt` until it gives something; fails the test with `what` when that takes longer than `at_most`.
pub fn wait_for<T>(what: &str, at_most: Millis, mut attempt: impl FnMut() -> Option<T>) -> T {
    let clock = SystemClock::start();
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(clock.monotonic().since(Default::default()) < at_most, "waited {} ms for {what}", at_most.0);
        thread::sleep(Duration::from_millis(5));
    }
}

/// A number from the environment, for the long forms of tests.
pub fn number_from_env(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

/// The median, the 99th percentile and the worst of some lengths in microseconds, as a text.
pub fn spread(mut micros: Vec<u64>) -> String {
    micros.sort_unstable();
    let Some(worst) = micros.last() else { return "none".to_owned() };
    let at = |percent: usize| micros[(micros.len() * percent / 100).min(micros.len() - 1)] as f64 / 1000.0;
    format!("p50 {:.1} ms, p99 {:.1} ms, worst {:.1} ms", at(50), at(99), *worst as f64 / 1000.0)
}

/// Microseconds from one moment to a later one.
pub fn micros(from: Monotonic, to: Monotonic) -> u64 {
    to.0.saturating_sub(from.0) / 1_000
}

/// A small deterministic source of numbers (SplitMix64); a test prints the seed it starts from.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Sets a flag when it is dropped, however a test ends: threads that wait for it would keep a failed one from ending.
pub struct SetAtEnd<'a>(pub &'a std::sync::atomic::AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
