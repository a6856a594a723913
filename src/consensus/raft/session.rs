//! What this node's clients wrote and was not answered yet: the origin's side of "once" (DESIGN.md D6).
//!
//! ```text
//! waiting ──given a number, sent to the leader──► pending ──outcome──► answered
//!    │                                               │  leader changed, link lost, gap, silence: all of it again, in order
//!    │ no leader for `doubt`:                        │ no outcome for `doubt` and no leader: INDOUBT; its number is kept
//!    ▼ refused, not executed                         ▼ by a void batch, which ends the doubt later
//! ```
//! Numbers have no gaps; the state machine executes each once, whoever leads when it comes. Only what was never
//! sent can be refused. A number once sent is sent until it is answered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use crate::consensus::ProposeError;
use crate::consensus::ReplySender;
use crate::machine::apply::BatchReplies;
use crate::machine::entry::Batch;
use crate::types::Millis;
use crate::types::Monotonic;
use crate::types::NodeId;

/// Batches that may be on their way to the leader at a time.
const PENDING_MAX: usize = 4096;
/// And their bytes, beyond one batch of any size.
const PENDING_BYTES: usize = 32 << 20;
/// A batch of so many bytes is a large one, and so many small ones may go before it.
const LARGE_BYTES: usize = 2 << 20;
const OVERTAKEN_MAX: u32 = 256;
/// Without any outcome for so long, everything is sent again; what is large takes its time.
const SILENCE: Millis = Millis(1_000);
const BYTES_PER_MILLI: usize = 8 << 10;

/// A batch and where its replies go; nowhere for the node's own proposals.
#[derive(Debug)]
pub struct Submission {
    pub batch: Batch,
    reply: Mutex<Option<ReplySender>>,
    is_settled: AtomicBool,
    /// Its bytes are counted here while it lives.
    weight: Option<Arc<AtomicU64>>,
}

impl Drop for Submission {
    fn drop(&mut self) {
        if let Some(weight) = &self.weight {
            weight.fetch_sub(self.batch.bytes() as u64, Ordering::AcqRel);
        }
    }
}

impl Submission {
    /// A batch somebody waits for, or nobody.
    #[must_use]
    pub fn new(batch: Batch, reply: Option<ReplySender>) -> Arc<Submission> {
        let is_settled = AtomicBool::new(false);
        Arc::new(Submission { batch, reply: Mutex::new(reply), is_settled, weight: None })
    }

    /// A client's batch, whose bytes are added to `weight` while it lives.
    #[must_use]
    pub fn weighed(batch: Batch, reply: ReplySender, weight: &Arc<AtomicU64>) -> Arc<Submission> {
        weight.fetch_add(batch.bytes() as u64, Ordering::AcqRel);
        let (reply, is_settled) = (Mutex::new(Some(reply)), AtomicBool::new(false));
        Arc::new(Submission { batch, reply, is_settled, weight: Some(Arc::clone(weight)) })
    }

    /// Its fate is known; whoever waits is told.
    pub fn settle(&self, outcome: Result<BatchReplies, ProposeError>) {
        self.answer(outcome);
        self.is_settled.store(true, Ordering::Release);
    }

    /// Gives an outcome to who waits, once. What it stands for is not settled by that.
    pub fn answer(&self, outcome: Result<BatchReplies, ProposeError>) {
        if let Some(reply) = self.reply.lock().take() {
            // The connection may be gone; then nobody wants to know.
            let _ = reply.send(outcome);
        }
    }

    /// True when its fate is known.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.is_settled.load(Ordering::Acquire)
    }
}

/// Where the leader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Not known, or not reachable.
    Nowhere,
    /// This node leads in this term.
    Here(u64),
    /// This node leads in this term.
    There(NodeId, u64),
}

/// A numbered batch on its way.
#[derive(Debug, Clone)]
pub struct Numbered {
    pub seq: u64,
    /// Everything up to here was answered.
    pub ack: u64,
    pub submission: Arc<Submission>,
}

#[derive(Debug)]
struct Pending {
    /// What is sent: the batch, or a void one in its place.
    submission: Arc<Submission>,
    /// The batch itself, once a void one stands in its place: a copy may still be on its way.
    replaced: Option<Arc<Submission>>,
    bytes: usize,
    since: Monotonic,
}

impl Pending {
    fn is_settled(&self) -> bool {
        self.submission.is_settled() || self.replaced.as_ref().is_some_and(|batch| batch.is_settled())
    }
}

/// The writes of this node's clients in one group.
#[derive(Debug)]
pub struct Session {
    epoch: u64,
    target: Target,
    waiting: VecDeque<(Arc<Submission>, Monotonic)>,
    /// Numbered `acked + 1`, `acked + 2` and so on.
    pending: VecDeque<Pending>,
    pending_bytes: usize,
    /// How many went before a large one that waits.
    overtaken: u32,
    acked: u64,
    /// How many of `pending` the present target was given.
    given: usize,
    /// When an outcome came last.
    heard: Monotonic,
    /// When everything was given again last.
    rewound: Monotonic,
    /// Since when there is no leader.
    nowhere_since: Option<Monotonic>,
}

impl Session {
    /// A session that nobody knows yet; `epoch` was never used before.
    #[must_use]
    pub fn new(epoch: u64, now: Monotonic) -> Session {
        Session {
            epoch,
            target: Target::Nowhere,
            waiting: VecDeque::new(),
            pending: VecDeque::new(),
            pending_bytes: 0,
            overtaken: 0,
            acked: 0,
            given: 0,
            heard: now,
            rewound: now,
            nowhere_since: Some(now),
        }
    }

    /// The session's name, with the node.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Where batches go now.
    #[must_use]
    pub fn target(&self) -> Target {
        self.target
    }

    /// Batches that wait or are on their way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len() + self.pending.len()
    }

    /// True when nothing was given to it yet.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        self.acked == 0 && self.is_empty()
    }

    /// True when everything has its outcome.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Since when no leader is known; `None` while one is.
    #[must_use]
    pub fn nowhere_since(&self) -> Option<Monotonic> {
        self.nowhere_since
    }

    /// Takes a batch.
    pub fn push(&mut self, submission: Arc<Submission>, now: Monotonic) {
        self.waiting.push_back((submission, now));
    }

    /// The leader is there now. A new one is given everything again.
    pub fn set_target(&mut self, target: Target, now: Monotonic) {
        if target == self.target {
            return;
        }
        self.target = target;
        self.rewind(now);
        self.nowhere_since = match target {
            Target::Nowhere => self.nowhere_since.or(Some(now)),
            Target::Here(_) | Target::There(..) => None,
        };
    }

    /// What was given may be lost: all of it again.
    pub fn rewind(&mut self, now: Monotonic) {
        self.given = 0;
        self.rewound = now;
    }

    /// The next batch for the target; `None` when there is none, or enough is on its way.
    pub fn give(&mut self) -> Option<Numbered> {
        if self.target == Target::Nowhere {
            return None;
        }
        if self.given == self.pending.len() {
            let is_full = self.pending.len() >= PENDING_MAX || self.pending_bytes >= PENDING_BYTES;
            if is_full {
                return None;
            }
            let (submission, since) = self.next_waiting()?;
            let bytes = submission.batch.bytes();
            self.pending_bytes += bytes;
            self.pending.push_back(Pending { submission, replaced: None, bytes, since });
        }
        let submission = Arc::clone(&self.pending[self.given].submission);
        self.given += 1;
        Some(Numbered { seq: self.acked + self.given as u64, ack: self.acked, submission })
    }

    /// The oldest that waits; of what is large others do not wait for more than one. They have no numbers yet, and no
    /// client has two on their way, so their order is free.
    fn next_waiting(&mut self) -> Option<(Arc<Submission>, Monotonic)> {
        let is_small =
            |(submission, _): &(Arc<Submission>, Monotonic)| submission.batch.bytes() < LARGE_BYTES;
        if self.waiting.front().is_none_or(is_small) || self.overtaken >= OVERTAKEN_MAX {
            self.overtaken = 0;
            return self.waiting.pop_front();
        }
        let first_small = self.waiting.iter().position(is_small);
        self.overtaken = if first_small.is_some() { self.overtaken + 1 } else { 0 };
        self.waiting.remove(first_small.unwrap_or(0))
    }

    /// The batch under this number, if it has no outcome yet.
    #[must_use]
    pub fn pending(&self, seq: u64) -> Option<&Arc<Submission>> {
        let at = usize::try_from(seq.checked_sub(self.acked + 1)?).ok()?;
        self.pending.get(at).map(|pending| &pending.submission)
    }

    /// True when this number was given to a batch in this process.
    #[must_use]
    pub fn has_given(&self, seq: u64) -> bool {
        seq <= self.acked + self.pending.len() as u64
    }

    /// Forgets what was answered, as far as nothing before it waits; gives the bytes that it took.
    pub fn settle(&mut self, now: Monotonic) -> usize {
        let mut settled = 0;
        while let Some(pending) = self.pending.pop_front_if(|pending| pending.is_settled()) {
            settled += pending.bytes;
            self.acked += 1;
            self.given = self.given.saturating_sub(1);
        }
        if settled > 0 {
            self.pending_bytes -= settled;
            self.heard = now;
        }
        settled
    }

    /// The state machine does not know this session any more, or never did: what was sent is in doubt, and the
    /// rest goes on under another name.
    pub fn renew(&mut self, epoch: u64, now: Monotonic) {
        for pending in self.pending.drain(..) {
            pending.submission.answer(Err(ProposeError::OutcomeUnknown));
        }
        (self.pending_bytes, self.acked, self.epoch) = (0, 0, epoch);
        self.rewind(now);
    }

    /// Looks at the time. True when everything should be given again, because nothing was heard for long.
    pub fn on_time(&mut self, now: Monotonic, doubt: Millis) -> bool {
        // While there is a leader, what is large takes its time.
        let time_for_large = if self.nowhere_since.is_none() { self.time_for_large() } else { 0 };
        let is_deaf = now.since(self.heard).0 >= doubt.0 + time_for_large;
        let is_nowhere = self.nowhere_since.is_some_and(|since| now.since(since) >= doubt);
        // What was never sent is refused: there is no leader, or one that gets nothing done.
        while let Some((submission, _)) =
            self.waiting.pop_front_if(|(_, since)| is_nowhere || (is_deaf && now.since(*since) >= doubt))
        {
            submission.answer(Err(ProposeError::NotLeader { leader: None }));
        }
        for pending in &mut self.pending {
            if !is_deaf || now.since(pending.since) < doubt {
                break;
            }
            if pending.replaced.is_none() {
                pending.submission.answer(Err(ProposeError::OutcomeUnknown));
                // The number stands for nothing now: what was not executed yet never will be.
                let void = Submission::new(Batch::new(b""), None);
                pending.replaced = Some(std::mem::replace(&mut pending.submission, void));
            }
        }
        // What is here is not lost.
        let is_sent = matches!(self.target, Target::There(..)) && self.given > 0;
        let oldest = self.pending.front().filter(|_| is_sent).map(|pending| pending.since);
        let patience = Millis(SILENCE.0 + self.time_for_large());
        let is_silent = oldest.is_some_and(|since| {
            [since, self.heard, self.rewound].into_iter().all(|then| now.since(then) >= patience)
        });
        if is_silent {
            self.rewind(now);
        }
        is_silent
    }

    /// Milliseconds that what is on its way may take because of its bytes.
    fn time_for_large(&self) -> u64 {
        (self.pending_bytes / BYTES_PER_MILLI) as u64
    }

    /// Refuses what was not sent, and leaves the rest in doubt: the node stops.
    pub fn stop(&mut self) {
        for (submission, _) in self.waiting.drain(..) {
            submission.answer(Err(ProposeError::Stopped));
        }
        for pending in self.pending.drain(..) {
            pending.submission.answer(Err(ProposeError::OutcomeUnknown));
        }
        (self.pending_bytes, self.given) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    type Receiver = oneshot::Receiver<Result<BatchReplies, ProposeError>>;
    const DOUBT: Millis = Millis(5_000);

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1_000_000)
    }

    fn push(session: &mut Session, ms: u64) -> Receiver {
        let (sender, receiver) = oneshot::channel();
        let mut batch = Batch::new(b"default");
        batch.push_command(0, [&b"INCR"[..], b"n"].into_iter());
        session.push(Submission::new(batch, Some(sender)), at(ms));
        receiver
    }

    fn given(session: &mut Session) -> Vec<u64> {
        std::iter::from_fn(|| session.give()).map(|numbered| numbered.seq).collect()
    }

    fn settle(session: &mut Session, seq: u64, ms: u64) {
        session.pending(seq).unwrap().settle(Ok(Vec::new()));
        session.settle(at(ms));
    }

    #[test]
    fn a_new_leader_is_given_everything_that_has_no_outcome_in_order() {
        let mut session = Session::new(1, at(0));
        let receivers: Vec<_> = (0..4).map(|_| push(&mut session, 0)).collect();
        assert!(given(&mut session).is_empty(), "there is no leader");
        session.set_target(Target::There(NodeId(2), 1), at(1));
        assert_eq!(given(&mut session), [1, 2, 3, 4]);
        settle(&mut session, 2, 2);
        settle(&mut session, 1, 2);
        session.set_target(Target::There(NodeId(3), 2), at(3));
        let again = session.give().unwrap();
        assert_eq!((again.seq, again.ack), (3, 2));
        assert_eq!(given(&mut session), [4]);
        assert!(session.has_given(1) && session.has_given(4) && !session.has_given(5));
        assert_eq!((session.len(), receivers.len()), (2, 4));
    }

    #[test]
    fn what_was_never_sent_is_refused_and_what_was_sent_is_in_doubt() {
        let mut session = Session::new(1, at(0));
        session.set_target(Target::There(NodeId(2), 1), at(0));
        let mut sent = push(&mut session, 0);
        assert_eq!(given(&mut session), [1]);
        session.set_target(Target::Nowhere, at(10));
        let mut unsent = push(&mut session, 10);
        session.on_time(at(4_900), DOUBT);
        assert!(sent.try_recv().is_err() && unsent.try_recv().is_err());
        session.on_time(at(5_010), DOUBT);
        assert_eq!(sent.try_recv().unwrap(), Err(ProposeError::OutcomeUnknown));
        assert_eq!(unsent.try_recv().unwrap(), Err(ProposeError::NotLeader { leader: None }));
    }

    #[test]
    fn a_number_in_doubt_stays_in_the_row_as_a_void_batch() {
        let mut session = Session::new(1, at(0));
        session.set_target(Target::There(NodeId(2), 1), at(0));
        let _first = push(&mut session, 0);
        given(&mut session);
        session.set_target(Target::Nowhere, at(10));
        session.on_time(at(6_000), DOUBT);
        session.settle(at(6_000));
        let _second = push(&mut session, 6_000);
        session.set_target(Target::There(NodeId(3), 2), at(6_001));
        let void = session.give().unwrap();
        assert_eq!((void.seq, void.submission.batch.len()), (1, 0));
        assert_eq!(given(&mut session), [2]);
    }

    #[test]
    fn silence_makes_it_send_again_and_outcomes_do_not() {
        let mut session = Session::new(1, at(0));
        session.set_target(Target::There(NodeId(2), 1), at(0));
        let _receivers = [push(&mut session, 0), push(&mut session, 0)];
        given(&mut session);
        assert!(!session.on_time(at(900), DOUBT));
        assert!(session.on_time(at(1_000), DOUBT));
        assert_eq!(given(&mut session), [1, 2]);
        settle(&mut session, 1, 1_900);
        assert!(!session.on_time(at(2_100), DOUBT));
        assert!(given(&mut session).is_empty());
    }

    #[test]
    fn small_batches_go_before_large_ones_that_wait_but_not_for_ever() {
        let mut session = Session::new(1, at(0));
        session.set_target(Target::Here(1), at(0));
        let mut push = |bytes: usize| {
            let mut batch = Batch::new(b"default");
            batch.push_command(0, [&b"SET"[..], b"k", &vec![b'x'; bytes]].into_iter());
            session.push(Submission::new(batch, None), at(0));
        };
        [3 << 20, 4 << 20].into_iter().for_each(&mut push);
        (0..300).for_each(|_| push(1));
        let given = std::iter::from_fn(|| session.give()).map(|numbered| numbered.submission.batch.bytes());
        let given: Vec<bool> = given.map(|bytes| bytes >= LARGE_BYTES).collect();
        let large: Vec<usize> = (0..given.len()).filter(|at| given[*at]).collect();
        assert_eq!((given.len(), large), (302, vec![256, 301]));
    }

    #[test]
    fn what_is_large_is_not_sent_again_before_it_can_have_arrived() {
        let mut session = Session::new(1, at(0));
        session.set_target(Target::There(NodeId(2), 1), at(0));
        let mut batch = Batch::new(b"default");
        batch.push_command(0, [&b"SET"[..], b"k", &vec![b'x'; 16 << 20]].into_iter());
        session.push(Submission::new(batch, None), at(0));
        assert_eq!(given(&mut session), [1]);
        assert!(!session.on_time(at(3_000), Millis(60_000)));
        assert!(session.on_time(at(3_100), Millis(60_000)));
    }

    #[test]
    fn the_window_closes_and_opens_again() {
        let mut session = Session::new(1, at(0));
        session.set_target(Target::Here(1), at(0));
        let _receivers: Vec<_> = (0..PENDING_MAX + 10).map(|_| push(&mut session, 0)).collect();
        assert_eq!(given(&mut session).len(), PENDING_MAX);
        (1..=5).for_each(|seq| settle(&mut session, seq, 1));
    }

    #[test]
    fn a_session_that_ended_leaves_doubt_and_goes_on_under_another_name() {
        let mut session = Session::new(1, at(0));
        session.set_target(Target::Here(1), at(0));
        let mut sent = push(&mut session, 0);
        given(&mut session);
        session.renew(2, at(1));
        assert_eq!(sent.try_recv().unwrap(), Err(ProposeError::OutcomeUnknown));
        let _next = push(&mut session, 1);
        assert_eq!((given(&mut session), session.epoch()), (vec![1], 2));
    }
}
