//! The leader's heartbeats while its driver is busy.
//!
//! Heartbeats are sent by sweeps of the driver, one at a time. A sweep that moves an entry of many megabytes takes longer
//! than followers wait for a leader, on a machine that is busy anyway. So each heartbeat is remembered, and when none
//! followed for too long a thread that does nothing else sends it again. That is harmless whatever became of the
//! leader: the network may deliver a message late and twice as well, and the lease does not grow by it. A driver that
//! hangs for good must not keep the others from electing another leader, so that ends after a while.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use crate::types::Millis;
use crate::types::Monotonic;
use crate::types::NodeId;

/// For so long after the driver's last heartbeat it is sent again.
const REPEATED_FOR: Millis = Millis(10_000);

/// The last heartbeats, as they were sent.
#[derive(Debug, Default)]
pub struct Pulse {
    frames: Mutex<BTreeMap<NodeId, Vec<u8>>>,
    /// When the driver sent them, and when they were sent last, in nanoseconds of the monotonic clock.
    beat_at: AtomicU64,
    sent_at: AtomicU64,
}

impl Pulse {
    /// This heartbeat was sent.
    pub fn sent(&self, node: NodeId, frame: &[u8], now: Monotonic) {
        let mut frames = self.frames.lock();
        let known = frames.entry(node).or_default();
        known.clear();
        known.extend_from_slice(frame);
        self.beat_at.store(now.0, Ordering::Release);
        self.sent_at.store(now.0, Ordering::Release);
    }

    /// This node does not lead.
    pub fn end(&self) {
        self.frames.lock().clear();
    }

    /// What is to be sent again: the last heartbeats, when half an interval has passed beyond the one they should have
    /// been followed in.
    pub fn due(&self, now: Monotonic, interval: Millis) -> Vec<(NodeId, Vec<u8>)> {
        let sent_at = Monotonic(self.sent_at.load(Ordering::Acquire));
        let beat_at = Monotonic(self.beat_at.load(Ordering::Acquire));
        if now.since(sent_at).0 < interval.0 + interval.0 / 2 || now.since(beat_at) > REPEATED_FOR {
            return Vec::new();
        }
        let frames = self.frames.lock();
        if !frames.is_empty() {
            self.sent_at.store(now.0, Ordering::Release);
        }
        frames.iter().map(|(node, frame)| (*node, frame.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1_000_000)
    }

    #[test]
    fn heartbeats_that_are_overdue_are_sent_again_while_the_node_leads() {
        let pulse = Pulse::default();
        let interval = Millis(100);
        assert!(pulse.due(at(1_000), interval).is_empty(), "it never led");
        pulse.sent(NodeId(2), b"old", at(1_000));
        pulse.sent(NodeId(2), b"beat", at(1_100));
        pulse.sent(NodeId(3), b"beat", at(1_100));
        assert!(pulse.due(at(1_200), interval).is_empty());
        let both = [(NodeId(2), b"beat".to_vec()), (NodeId(3), b"beat".to_vec())];
        assert_eq!(pulse.due(at(1_250), interval), both);
        assert!(pulse.due(at(1_300), interval).is_empty(), "they were sent just now");
        assert_eq!(pulse.due(at(1_400), interval), both);
        assert_eq!(pulse.due(at(11_100), interval), both);
        assert!(pulse.due(at(11_300), interval).is_empty(), "the driver hangs");
        pulse.sent(NodeId(2), b"beat", at(11_400));
        pulse.end();
        assert!(pulse.due(at(12_000), interval).is_empty(), "it leads no more");
    }
}
