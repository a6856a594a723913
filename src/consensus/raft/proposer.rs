//! What waits to be proposed, and what was proposed and waits for its fate.
//!
//! ```text
//! waiting ──pack (window open)──► in flight (index, term) ──commit of index──► same term: to apply, which replies
//!    │ leadership lost: let go                                               other term: not done
//! ```
//! A batch that was proposed is never answered "failed" because leadership was lost: only apply knows.
//! There is no linger: while the window is full the queue grows, and that is what fills entries.

use std::collections::VecDeque;
use std::sync::Arc;

use raft::eraftpb::Entry;

use crate::consensus::ProposeError;
use crate::consensus::raft::session::Submission;
use crate::machine::entry::SessionStamp;
use crate::types::NodeId;

/// Entries in flight at a time.
const WINDOW: usize = 16;
/// An entry takes no further batch once it is this large.
const ENTRY_BYTES: usize = 256 << 10;
/// Nor once it holds this many batches.
const ENTRY_BATCHES: usize = 512;
/// Bytes in flight, beyond one entry of any size.
const IN_FLIGHT_BYTES: usize = 32 << 20;
/// A batch of so many bytes is a large one: so many small ones of other nodes may go before it, which are looked for so
/// far behind it.
const LARGE_BYTES: usize = 2 << 20;
const OVERTAKEN_MAX: u32 = 256;
const LOOK_BEHIND: usize = 64;

/// Who wants the replies of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyTo {
    /// Whoever waits for the submission.
    Submitter,
    /// Another node, which knows the batch by this session and number. It applies the entry as well, and need not be
    /// told; but if it sends the batch again after that was applied here, it is.
    Node { node: NodeId, epoch: u64, seq: u64, is_repeat: bool },
    /// A node that waits for a replica id.
    Joiner { node: NodeId, nonce: u64 },
}

/// A batch that wants to be in the log.
#[derive(Debug)]
pub struct Queued {
    pub submission: Arc<Submission>,
    pub stamp: Option<SessionStamp>,
    pub reply_to: ReplyTo,
}

impl Queued {
    /// True when its replies are told to somebody, and not only remembered.
    #[must_use]
    pub fn wants_replies(&self) -> bool {
        match self.reply_to {
            ReplyTo::Submitter | ReplyTo::Joiner { .. } => true,
            ReplyTo::Node { is_repeat, .. } => is_repeat,
        }
    }
}

/// Batches packed for one entry.
pub struct Packed {
    pub batches: Vec<Queued>,
    pub bytes: usize,
}

struct InFlight {
    index: u64,
    term: u64,
    bytes: usize,
    batches: Vec<Queued>,
}

/// Queue and window of one group.
#[derive(Default)]
pub struct Proposer {
    waiting: VecDeque<Queued>,
    /// How many went before a large one that waits.
    overtaken: u32,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
}

impl Proposer {
    /// Adds a batch at the end of the queue.
    pub fn push(&mut self, queued: Queued) {
        self.waiting.push_back(queued);
    }

    /// Adds a batch before all that wait: LEADER-START.
    pub fn push_first(&mut self, queued: Queued) {
        self.waiting.push_front(queued);
    }

    /// Packs the next entry, if something waits and the window has room.
    pub fn pack(&mut self) -> Option<Packed> {
        let first = self.waiting.get(self.next())?.submission.batch.bytes();
        let room = self.in_flight.len() < WINDOW
            && (self.in_flight.is_empty() || self.in_flight_bytes + first <= IN_FLIGHT_BYTES);
        if !room {
            return None;
        }
        let mut packed = Packed { batches: Vec::new(), bytes: 0 };
        while let Some(next) = self.waiting.get(self.next()) {
            let bytes = next.submission.batch.bytes();
            let full = packed.bytes + bytes > ENTRY_BYTES || packed.batches.len() >= ENTRY_BATCHES;
            if full && !packed.batches.is_empty() {
                break;
            }
            packed.bytes += bytes;
            let at = self.next();
            self.overtaken = if at == 0 { 0 } else { self.overtaken + 1 };
            packed.batches.extend(self.waiting.remove(at));
        }
        Some(packed)
    }

    /// The place in the queue of what goes next: the front, unless that is large and something small waits behind it of
    /// a node that has nothing before it.
    fn next(&self) -> usize {
        let is_small = |queued: &Queued| queued.submission.batch.bytes() < LARGE_BYTES;
        if self.waiting.front().is_none_or(is_small) || self.overtaken >= OVERTAKEN_MAX {
            return 0;
        }
        let origin = |queued: &Queued| queued.stamp.map(|stamp| stamp.node);
        let is_first = |at: usize| {
            let before = self.waiting.range(..at).map(origin);
            before.into_iter().all(|other| other != origin(&self.waiting[at]))
        };
        let look = 1..self.waiting.len().min(LOOK_BEHIND);
        look.into_iter().find(|at| is_small(&self.waiting[*at]) && is_first(*at)).unwrap_or(0)
    }

    /// The packed entry was taken at this position.
    pub fn proposed(&mut self, index: u64, term: u64, packed: Packed) {
        self.in_flight_bytes += packed.bytes;
        let Packed { batches, bytes } = packed;
        self.in_flight.push_back(InFlight { index, term, bytes, batches });
    }

    /// What a committed entry holds, if it was proposed here. Entries come in order.
    pub fn committed(&mut self, entry: &Entry) -> Vec<Queued> {
        while let Some(front) = self.in_flight.pop_front_if(|front| front.index <= entry.index) {
            self.in_flight_bytes -= front.bytes;
            if front.index == entry.index && front.term == entry.term {
                return front.batches;
            }
            // Another leader's entry stands there: this one will never take effect. Batches of a session are sent
            // again by their origin.
            front.batches.iter().filter(|queued| queued.stamp.is_none()).for_each(not_done);
        }
        Vec::new()
    }

    /// Lets go of what waits and was not proposed; origins send again what belongs to a session.
    pub fn clear_waiting(&mut self) -> usize {
        let cleared = self.waiting.len();
        self.waiting.drain(..).filter(|queued| queued.stamp.is_none()).for_each(|queued| not_done(&queued));
        cleared
    }

    /// This replica leads anew, and its own entries begin at `index`: what was in flight there in an earlier term will
    /// never take effect.
    pub fn forget_from(&mut self, index: u64) {
        while let Some(back) = self.in_flight.pop_back_if(|back| back.index >= index) {
            self.in_flight_bytes -= back.bytes;
            back.batches.iter().filter(|queued| queued.stamp.is_none()).for_each(not_done);
        }
    }

    /// A snapshot took the place of everything in flight: nobody here knows its fate.
    pub fn forget_in_flight(&mut self) {
        self.in_flight.clear();
        self.in_flight_bytes = 0;
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

fn not_done(queued: &Queued) {
    queued.submission.settle(Err(ProposeError::NotLeader { leader: None }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::entry::Batch;
    use tokio::sync::oneshot;

    type Receiver = oneshot::Receiver<Result<Vec<crate::resp::Reply>, ProposeError>>;

    fn submission(bytes: usize) -> (Queued, Receiver) {
        let mut batch = Batch::new(b"default");
        batch.push_command(0, [&b"SET"[..], b"k", &vec![b'x'; bytes]].into_iter());
        let (sender, receiver) = oneshot::channel();
        let submission = Submission::new(batch, Some(sender));
        (Queued { submission, stamp: None, reply_to: ReplyTo::Submitter }, receiver)
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
            proposer.proposed(index, 1, packed);
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
        proposer.proposed(1, 1, packed);
        assert!(proposer.pack().is_none(), "too many bytes are in flight");
    }

    #[test]
    fn a_large_batch_lets_small_ones_of_other_nodes_go_first_and_those_of_its_own_wait() {
        let mut proposer = Proposer::default();
        for (node, seq, bytes) in
            [(2, 1, 5 << 20), (2, 2, 1), (3, 1, 4 << 20), (1, 1, 1), (1, 2, 1), (3, 2, 1)]
        {
            let stamp = Some(SessionStamp { node: NodeId(node), epoch: 1, seq, ack: 0 });
            proposer.push(Queued { stamp, ..submission(bytes).0 });
        }
        let mut entries = Vec::new();
        while let Some(packed) = proposer.pack() {
            let names = packed.batches.iter().filter_map(|queued| queued.stamp);
            entries.push(names.map(|stamp| (stamp.node.0, stamp.seq)).collect::<Vec<_>>());
        }
        assert_eq!(entries, [vec![(1, 1), (1, 2)], vec![(2, 1)], vec![(2, 2)], vec![(3, 1)], vec![(3, 2)]]);
    }

    #[test]
    fn an_overwritten_entry_is_answered_as_not_done() {
        let mut proposer = Proposer::default();
        let (submission, mut receiver) = submission(1);
        proposer.push(submission);
        let packed = proposer.pack().unwrap();
        proposer.proposed(5, 1, packed);
        assert!(proposer.committed(&entry(5, 2)).is_empty());
        assert_eq!(receiver.try_recv().unwrap(), Err(ProposeError::NotLeader { leader: None }));
    }
}
