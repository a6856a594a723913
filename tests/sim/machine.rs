//! What a simulated machine has besides a disk: clocks of its own, and links to the others.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use holdfast::clock::Clock;
use holdfast::peer::Channel;
use holdfast::peer::Links;
use holdfast::peer::SendError;
use holdfast::types::Boottime;
use holdfast::types::Monotonic;
use holdfast::types::NodeId;
use holdfast::types::WallMillis;
use parking_lot::Mutex;

use crate::chance::PPM;

/// Clocks that run too fast or too slow, and one that jumps.
#[derive(Default)]
pub struct SimClock {
    monotonic: AtomicU64,
    boottime: AtomicU64,
    wall: AtomicU64,
}

/// How a machine's clocks stand to the world's.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    pub offset: u64,
    /// Parts of a million too fast.
    pub drift: i64,
    /// How long it was suspended: CLOCK_MONOTONIC stood still meanwhile.
    pub suspended: u64,
    pub wall_ms: u64,
}

impl Rate {
    fn passed(&self, now: u64) -> u64 {
        let drift = i128::from(now) * i128::from(self.drift) / i128::from(PPM);
        self.offset + (i128::from(now) + drift) as u64
    }

    /// How long a length of its clocks really takes.
    pub fn real(&self, length: u64) -> u64 {
        (u128::from(length) * u128::from(PPM) / (i128::from(PPM) + i128::from(self.drift)) as u128) as u64
    }

    /// Sets the clocks to what they show at this time of the world.
    pub fn set(&self, clock: &SimClock, now: u64) {
        let passed = self.passed(now);
        clock.boottime.store(passed, Ordering::Relaxed);
        // It stands still while the machine is suspended.
        clock.monotonic.fetch_max(passed - self.suspended, Ordering::Relaxed);
        clock.wall.store(self.wall_ms + passed / 1_000_000, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn monotonic(&self) -> Monotonic {
        Monotonic(self.monotonic.load(Ordering::Relaxed))
    }

    fn boottime(&self) -> Boottime {
        Boottime(self.boottime.load(Ordering::Relaxed))
    }

    fn wall(&self) -> WallMillis {
        WallMillis(self.wall.load(Ordering::Relaxed))
    }
}

/// A payload on its way: to whom, on which channel.
pub type Mail = (NodeId, Channel, Vec<u8>);

/// A node's links: which are up, and what was sent and not taken by the world yet.
#[derive(Default)]
pub struct SimLinks {
    up: AtomicU64,
    sent: Mutex<Vec<Mail>>,
}

impl SimLinks {
    pub fn set(&self, node: NodeId, is_up: bool) {
        let bit = 1 << node.0;
        let up = self.up.load(Ordering::Relaxed);
        self.up.store(if is_up { up | bit } else { up & !bit }, Ordering::Relaxed);
    }

    pub fn take(&self) -> Vec<Mail> {
        std::mem::take(&mut *self.sent.lock())
    }
}

impl Links for SimLinks {
    fn send(&self, to: NodeId, channel: Channel, payload: Vec<u8>) -> Result<(), SendError> {
        if !self.is_connected(to) {
            return Err(SendError::NotConnected);
        }
        self.sent.lock().push((to, channel, payload));
        Ok(())
    }

    fn is_connected(&self, node: NodeId) -> bool {
        self.up.load(Ordering::Relaxed) & (1 << node.0) != 0
    }
}
