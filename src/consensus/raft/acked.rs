//! Leaves out acknowledgements of entries that say nothing new.
//!
//! raft-rs answers every append, also one without entries that only tells of a commit; there is one for each entry
//! when clients wait for it. The leader does nothing with what it knows already, but the frame wakes a thread there.

use raft::eraftpb::Message;
use raft::eraftpb::MessageType;

use crate::types::Millis;
use crate::types::Monotonic;

/// The last acknowledgement that was sent.
#[derive(Debug, Default)]
pub struct Acked {
    to: u64,
    term: u64,
    index: u64,
    at: Monotonic,
}

impl Acked {
    /// True for a message that says only what its receiver was told just now. Within a term a log that was acknowledged
    /// stays. What was said may be lost with a link, so after `again_after` it is said once more: a leader that waits
    /// for it asks again with its heartbeats.
    pub fn is_repetition(&mut self, message: &Message, now: Monotonic, again_after: Millis) -> bool {
        if message.get_msg_type() != MessageType::MsgAppendResponse || message.reject {
            return false;
        }
        let is_known = (self.to, self.term) == (message.to, message.term) && message.index <= self.index;
        if is_known && now.since(self.at) < again_after {
            return true;
        }
        *self = Acked { to: message.to, term: message.term, index: message.index, at: now };
        false
    }

    /// A link was lost or made: nobody knows what arrived.
    pub fn forget(&mut self) {
        *self = Acked::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGAIN: Millis = Millis(100);

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1_000_000)
    }

    fn ack(to: u64, term: u64, index: u64) -> Message {
        let mut message = Message { to, term, index, ..Message::default() };
        message.set_msg_type(MessageType::MsgAppendResponse);
        message
    }

    #[test]
    fn only_what_was_said_just_now_to_the_same_leader_is_left_out() {
        let mut acked = Acked::default();
        for (message, ms, is_repetition) in [
            (ack(1, 1, 5), 0, false),
            (ack(1, 1, 5), 1, true),
            (ack(1, 1, 4), 1, true),
            (ack(1, 1, 6), 2, false),
            (ack(1, 1, 6), 101, true),
            (ack(1, 1, 6), 102, false),
            (ack(1, 1, 6), 103, true),
            (ack(1, 2, 6), 103, false),
            (ack(2, 2, 6), 103, false),
            (Message { reject: true, ..ack(2, 2, 6) }, 103, false),
        ] {
            assert_eq!(acked.is_repetition(&message, at(ms), AGAIN), is_repetition, "{message:?} at {ms}");
        }
        acked.forget();
        assert!(!acked.is_repetition(&ack(2, 2, 6), at(103), AGAIN));
    }

    #[test]
    fn other_messages_are_never_left_out() {
        let mut acked = Acked::default();
        let mut heartbeat = ack(1, 1, 5);
        heartbeat.set_msg_type(MessageType::MsgHeartbeatResponse);
        for _ in 0..2 {
            assert!(!acked.is_repetition(&heartbeat, at(0), AGAIN));
        }
    }
}
