//! How many bytes of entries are on their way to each follower, and what need not be sent to it now.
//!
//! ```text
//! nothing large under way ──large append──► under way ──acknowledged, refused, link lost, too late──► nothing
//!                                             │ another one, beyond `BYTES_MAX`: not sent, raft-rs probes and waits
//!                                             │ the same again: not sent
//! ```
//! raft-rs counts messages, and a message may be one entry of many megabytes. A follower whose disk is slow would be sent
//! a window of 256 of these; and while raft-rs probes, it sends the first one again with every heartbeat that is answered.
//! Small appends are not counted: raft-rs bounds them well enough.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use raft::eraftpb::Message;

use crate::types::Boottime;
use crate::types::planted::scaled;

/// An append of fewer bytes is a small one.
const LARGE_BYTES: u64 = 512 << 10;
/// Bytes of large appends under way to a follower, beyond one of any size.
const BYTES_MAX: u64 = 64 << 20;
/// What is not acknowledged within this time, and an eighth of a second more for each megabyte, is taken for lost: a
/// follower passes over entries when it cannot take them.
const PATIENCE_NANOS: u64 = 2_000_000_000;
const NANOS_PER_BYTE: u64 = 125;
/// How long a link that took no more is left alone.
const PAUSE_NANOS: u64 = 500_000_000;

/// What becomes of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Send,
    /// It is under way already.
    Repetition,
    /// The follower has enough: it gets it when it has acknowledged something.
    TooMuch,
}

#[derive(Debug, Default)]
struct UnderWay {
    /// The last index and the bytes of each, in the order of sending.
    appends: VecDeque<(u64, u64)>,
    bytes: u64,
    until: Boottime,
}

/// By replica.
#[derive(Debug, Default)]
pub struct Flow(BTreeMap<u64, UnderWay>);

impl Flow {
    /// Judges an append that raft-rs wants to send, and remembers a large one that may go.
    pub fn judge(&mut self, append: &Message, now: Boottime) -> Verdict {
        let bytes: u64 = append.entries.iter().map(|entry| entry.data.len() as u64).sum();
        let Some(last) = append.entries.last().map(|entry| entry.index) else { return Verdict::Send };
        if bytes < scaled(LARGE_BYTES) {
            return Verdict::Send;
        }
        let known = self.0.entry(append.to).or_default();
        if now >= known.until {
            *known = UnderWay::default();
        }
        if known.appends.back().is_some_and(|(sent, _)| last <= *sent) {
            return Verdict::Repetition;
        }
        if known.bytes > 0 && known.bytes + bytes > scaled(BYTES_MAX) {
            return Verdict::TooMuch;
        }
        known.appends.push_back((last, bytes));
        known.bytes += bytes;
        known.wait(now);
        Verdict::Send
    }

    /// The follower has everything up to here.
    pub fn acknowledged(&mut self, replica: u64, index: u64, now: Boottime) {
        let Some(known) = self.0.get_mut(&replica) else { return };
        let before = known.bytes;
        while let Some((_, bytes)) = known.appends.pop_front_if(|(last, _)| *last <= index) {
            known.bytes -= bytes;
        }
        if known.appends.is_empty() {
            self.0.remove(&replica);
        } else if known.bytes < before {
            known.wait(now);
        }
    }

    /// What is under way to it was lost, or is of no use.
    pub fn forget(&mut self, replica: u64) {
        self.0.remove(&replica);
    }

    /// Another term: whatever was sent was another leader's.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Its link took no more.
    pub fn pause(&mut self, replica: u64, now: Boottime) {
        let until = Boottime(now.0 + PAUSE_NANOS);
        self.0.insert(replica, UnderWay { until, ..UnderWay::default() });
    }

    /// The followers to which something large is on its way.
    pub fn waiting(&self, now: Boottime) -> impl Iterator<Item = u64> {
        self.0.iter().filter(move |(_, known)| now < known.until).map(|(replica, _)| *replica)
    }

    /// True while a follower should be left alone but for heartbeats, unless it says something about entries.
    #[must_use]
    pub fn is_waiting(&self, replica: u64, now: Boottime) -> bool {
        self.0.get(&replica).is_some_and(|known| now < known.until)
    }
}

impl UnderWay {
    fn wait(&mut self, now: Boottime) {
        self.until = Boottime(now.0 + PATIENCE_NANOS + self.bytes * NANOS_PER_BYTE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::eraftpb::Entry;

    const NOW: Boottime = Boottime(1_000_000_000);

    fn append(last: u64, bytes: usize) -> Message {
        let entries = vec![Entry { index: last, data: vec![0; bytes], ..Entry::default() }];
        Message { to: 2, entries, ..Message::default() }
    }

    #[test]
    fn a_follower_has_a_bound_of_bytes_under_way_and_one_append_of_any_size() {
        let mut flow = Flow::default();
        assert_eq!(flow.judge(&append(5, 80 << 20), NOW), Verdict::Send);
        assert_eq!(flow.judge(&append(6, 1 << 20), NOW), Verdict::TooMuch);
        assert_eq!(flow.judge(&append(6, 1 << 10), NOW), Verdict::Send, "small ones are not counted");
        assert!(flow.is_waiting(2, NOW) && !flow.is_waiting(3, NOW));
        assert_eq!(flow.waiting(NOW).collect::<Vec<_>>(), [2]);
        flow.acknowledged(2, 4, NOW);
        assert_eq!(flow.judge(&append(6, 1 << 20), NOW), Verdict::TooMuch);
        flow.acknowledged(2, 5, NOW);
        assert!(!flow.is_waiting(2, NOW));
        for last in 6..70 {
            assert_eq!(flow.judge(&append(last, 1 << 20), NOW), Verdict::Send);
        }
        assert_eq!(flow.judge(&append(70, 1 << 20), NOW), Verdict::TooMuch);
    }

    #[test]
    fn what_is_under_way_is_not_sent_again_before_it_must_have_been_lost() {
        let mut flow = Flow::default();
        assert_eq!(flow.judge(&append(5, 60 << 20), NOW), Verdict::Send);
        assert_eq!(flow.judge(&append(5, 60 << 20), Boottime(NOW.0 + 9_000_000_000)), Verdict::Repetition);
        assert_eq!(flow.judge(&append(5, 60 << 20), Boottime(NOW.0 + 10_000_000_000)), Verdict::Send);
        flow.forget(2);
        assert_eq!(flow.judge(&append(5, 60 << 20), NOW), Verdict::Send, "its link was lost");
        flow.pause(2, NOW);
        assert!(flow.is_waiting(2, NOW) && !flow.is_waiting(2, Boottime(NOW.0 + PAUSE_NANOS)));
        assert_eq!(flow.judge(&append(5, 60 << 20), NOW), Verdict::Send, "if it must be");
    }
}
