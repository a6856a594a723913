//! What waits to be proposed, and what was proposed and waits for its fate.
//!
//! ```text
//! waiting ──pack (window open)──► in flight (index, term) ──apply of index──► same term: replies
//!                                                                            other term: not done
//! ```
//! A batch that was proposed is never answered "failed" because leadership was lost: only apply knows.
//! There is no linger: while the window is full the queue grows, and that is what fills entries.

use std::collections::VecDeque;

use raft::eraftpb::Entry;

use crate::consensus::ProposeError;
use crate::consensus::ReplySender;
use crate::machine::entry::Batch;

/// Entries in flight at a time.
const WINDOW: usize = 16;
/// An entry takes no further batch once it is this large.
const ENTRY_BYTES: usize = 256 << 10;
/// Nor once it holds this many batches.
const ENTRY_BATCHES: usize = 512;
/// Bytes in flight, beyond one entry of any size.
const IN_FLIGHT_BYTES: usize = 32 << 20;

/// A batch and where its replies go; nowhere for the node's own proposals.
pub struct Submission {
    pub batch: Batch,
    pub reply: Option<ReplySender>,
}

/// Batches packed for one entry.
pub struct Packed {
    pub batches: Vec<Batch>,
    pub replies: Vec<Option<ReplySender>>,
    pub bytes: usize,
}

struct InFlight {
    index: u64,
    term: u64,
    bytes: usize,
    replies: Vec<Option<ReplySender>>,
}

/// Queue and window of one group.
#[derive(Default)]
pub struct Proposer {
    waiting: VecDeque<Submission>,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
}

impl Proposer {
    /// Adds a batch at the end of the queue.
    pub fn push(&mut self, submission: Submission) {
        self.waiting.push_back(submission);
    }

    /// Adds a batch before all that wait: LEADER-START.
    pub fn push_first(&mut self, submission: Submission) {
        self.waiting.push_front(submission);
    }

    /// Packs the next entry, if something waits and the window has room.
    pub fn pack(&mut self) -> Option<Packed> {
        let first = self.waiting.front()?.batch.bytes();
        let room = self.in_flight.len() < WINDOW
            && (self.in_flight.is_empty() || self.in_flight_bytes + first <= IN_FLIGHT_BYTES);
        if !room {
            return None;
        }
        let mut packed = Packed { batches: Vec::new(), replies: Vec::new(), bytes: 0 };
        while let Some(next) = self.waiting.front() {
            let bytes = next.batch.bytes();
            let full = packed.bytes + bytes > ENTRY_BYTES || packed.batches.len() >= ENTRY_BATCHES;
            if full && !packed.batches.is_empty() {
                break;
            }
            let next = self.waiting.pop_front().expect("it was looked at just now");
            packed.bytes += bytes;
            packed.batches.push(next.batch);
            packed.replies.push(next.reply);
        }
        Some(packed)
    }

    /// The packed entry was taken at this position.
    pub fn proposed(&mut self, index: u64, term: u64, bytes: usize, replies: Vec<Option<ReplySender>>) {
        self.in_flight_bytes += bytes;
        self.in_flight.push_back(InFlight { index, term, bytes, replies });
    }

    /// Who waits for a committed entry; nobody when it was not proposed here. Entries come in order.
    pub fn committed(&mut self, entry: &Entry) -> Vec<Option<ReplySender>> {
        while let Some(front) = self.in_flight.front() {
            if front.index > entry.index {
                break;
            }
            let front = self.in_flight.pop_front().expect("it was looked at just now");
            self.in_flight_bytes -= front.bytes;
            if front.index == entry.index && front.term == entry.term {
                return front.replies;
            }
            // Another leader's entry stands there: this one will never take effect.
            refuse(front.replies, &ProposeError::NotLeader { leader: None });
        }
        Vec::new()
    }

    /// Refuses what waits and was not proposed.
    pub fn refuse_waiting(&mut self, error: &ProposeError) -> usize {
        let refused = self.waiting.len();
        refuse(self.waiting.drain(..).map(|submission| submission.reply), error);
        refused
    }

    /// Entries proposed and not yet committed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// True when nothing waits and nothing is in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.in_flight.is_empty()
    }
}

fn refuse(replies: impl IntoIterator<Item = Option<ReplySender>>, error: &ProposeError) {
    for reply in replies.into_iter().flatten() {
        // The connection may be gone; then nobody wants to know.
        let _ = reply.send(Err(error.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    fn submission(
        bytes: usize,
    ) -> (Submission, oneshot::Receiver<Result<Vec<crate::resp::Reply>, ProposeError>>) {
        let mut batch = Batch::new(b"default");
        batch.push_command(0, [&b"SET"[..], b"k", &vec![b'x'; bytes]].into_iter());
        let (sender, receiver) = oneshot::channel();
        (Submission { batch, reply: Some(sender) }, receiver)
    }

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, ..Entry::default() }
    }

    #[test]
    fn everything_that_waits_shares_an_entry() {
        let mut proposer = Proposer::default();
        let receivers: Vec<_> = (0..10)
            .map(|_| {
                let (submission, receiver) = submission(10);
                proposer.push(submission);
                receiver
            })
            .collect();
        let packed = proposer.pack().unwrap();
        assert_eq!((packed.batches.len(), receivers.len()), (10, 10));
        assert!(proposer.pack().is_none());
    }

    #[test]
    fn the_window_closes_and_opens_again() {
        let mut proposer = Proposer::default();
        for index in 1..=WINDOW as u64 {
            proposer.push(submission(1).0);
            let packed = proposer.pack().unwrap();
            proposer.proposed(index, 1, packed.bytes, packed.replies);
        }
        proposer.push(submission(1).0);
        assert!(proposer.pack().is_none());
        assert_eq!(proposer.committed(&entry(1, 1)).len(), 1);
        assert!(proposer.pack().is_some());
    }

    #[test]
    fn a_batch_of_any_size_goes_alone() {
        let mut proposer = Proposer::default();
        proposer.push(submission(64 << 20).0);
        proposer.push(submission(1).0);
        let packed = proposer.pack().unwrap();
        assert_eq!(packed.batches.len(), 1);
        proposer.proposed(1, 1, packed.bytes, packed.replies);
        assert!(proposer.pack().is_none(), "too many bytes are in flight");
    }

    #[test]
    fn an_overwritten_entry_is_answered_as_not_done() {
        let mut proposer = Proposer::default();
        let (submission, mut receiver) = submission(1);
        proposer.push(submission);
        let packed = proposer.pack().unwrap();
        proposer.proposed(5, 1, packed.bytes, packed.replies);
        assert!(proposer.committed(&entry(5, 2)).is_empty());
        assert_eq!(receiver.try_recv().unwrap(), Err(ProposeError::NotLeader { leader: None }));
    }
}
