//! Read barriers: who waits for one, the round under way, and whose index is known.
//!
//! ```text
//! waiting ──round begins (at most one)──► asked ──index known──► ready ──applied here──► done
//!    ▲                                      │ leader changed, link lost, no answer in time
//!    └──────────────────────────────────────┘
//! waiting for `doubt` ──► no leader with a quorum
//! ```
//! All that arrive while a round is under way share the next one: a read must not be answered from a round that
//! began before it. The leader's own readers and the nodes that ask for theirs wait side by side.

use tokio::sync::oneshot;

use crate::consensus::ProposeError;
use crate::types::Millis;
use crate::types::Monotonic;
use crate::types::NodeId;
use crate::types::planted::Bug;
use crate::types::planted::is_planted;

/// Where a local reader wants to hear of it.
pub type Done = oneshot::Sender<Result<(), ProposeError>>;

/// Who wants to read.
#[derive(Debug)]
pub enum Reader {
    Local(Done),
    /// Another node, under its own number.
    Remote(NodeId, u64),
}

/// What is to be sent to another node: the index that its reads must wait for; `None`: ask again or elsewhere.
pub type Answer = (NodeId, u64, Option<u64>);

#[derive(Debug)]
struct Round {
    context: u64,
    began: Monotonic,
    readers: Vec<(Reader, Monotonic)>,
}

/// The barriers of one group.
#[derive(Debug)]
pub struct Barriers {
    waiting: Vec<(Reader, Monotonic)>,
    round: Option<Round>,
    ready: Vec<(u64, Done, Monotonic)>,
    /// Number of the last round; never repeated while the process lives.
    context: u64,
}

impl Barriers {
    /// None yet. Numbers start after `context`, which differs from start to start of a node.
    #[must_use]
    pub fn new(context: u64) -> Barriers {
        Barriers { waiting: Vec::new(), round: None, ready: Vec::new(), context }
    }

    /// Somebody wants to read.
    pub fn push(&mut self, reader: Reader, now: Monotonic) {
        self.waiting.push((reader, now));
    }

    /// True when somebody waits for a round to begin, and none is under way.
    #[must_use]
    pub fn wants_round(&self) -> bool {
        !self.waiting.is_empty() && self.round.is_none()
    }

    /// True when no round is under way.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.round.is_none()
    }

    /// Begins a round for all that wait, and gives its number.
    pub fn begin(&mut self, now: Monotonic) -> u64 {
        self.context += u64::from(!is_planted(Bug::ReadIndexReuse));
        let readers = std::mem::take(&mut self.waiting);
        self.round = Some(Round { context: self.context, began: now, readers });
        self.context
    }

    /// The round's index is known.
    pub fn answered(&mut self, context: u64, index: u64) -> Vec<Answer> {
        match self.round.take_if(|round| round.context == context) {
            Some(round) => self.place(round.readers, index),
            None => Vec::new(),
        }
    }

    /// All that wait may read at this index: the leader's lease holds.
    pub fn grant(&mut self, index: u64) -> Vec<Answer> {
        let waiting = std::mem::take(&mut self.waiting);
        self.place(waiting, index)
    }

    fn place(&mut self, readers: Vec<(Reader, Monotonic)>, index: u64) -> Vec<Answer> {
        let mut answers = Vec::new();
        for (reader, since) in readers {
            match reader {
                Reader::Local(done) if is_planted(Bug::BarrierNotAwaited) => {
                    self.ready.push((0, done, since))
                }
                Reader::Local(done) => self.ready.push((index, done, since)),
                Reader::Remote(node, id) => answers.push((node, id, Some(index))),
            }
        }
        answers
    }

    /// The round under way will not be answered: its readers wait again.
    pub fn give_up(&mut self) {
        if let Some(round) = self.round.take() {
            let later = std::mem::replace(&mut self.waiting, round.readers);
            self.waiting.extend(later);
        }
    }

    /// This node does not lead any more: other nodes must ask elsewhere.
    pub fn send_away(&mut self) -> Vec<Answer> {
        self.give_up();
        let mut answers = Vec::new();
        for (reader, since) in std::mem::take(&mut self.waiting) {
            match reader {
                Reader::Remote(node, id) => answers.push((node, id, None)),
                Reader::Local(done) => self.waiting.push((Reader::Local(done), since)),
            }
        }
        answers
    }

    /// A round that nobody answered within `patience` begins anew; who has waited for `doubt` is told so.
    pub fn on_time(&mut self, now: Monotonic, patience: Millis, doubt: Millis) {
        if self.round.as_ref().is_some_and(|round| now.since(round.began) >= patience) {
            self.give_up();
        }
        let waiting = self.waiting.extract_if(.., |(_, since)| now.since(*since) >= doubt);
        let waiting = waiting.filter_map(|(reader, _)| match reader {
            Reader::Local(done) => Some(done),
            Reader::Remote(..) => None,
        });
        // What is known to be committed may not arrive either, while this node is cut off.
        let ready = self.ready.extract_if(.., |(_, _, since)| now.since(*since) >= doubt);
        for done in waiting.chain(ready.map(|(_, done, _)| done)) {
            // The connection may be gone; then nobody wants to know.
            let _ = done.send(Err(ProposeError::NotLeader { leader: None }));
        }
    }

    /// Everything up to here is applied.
    pub fn applied(&mut self, applied: u64) {
        for (_, done, _) in self.ready.extract_if(.., |(index, ..)| *index <= applied) {
            // The connection may be gone; then nobody wants to know.
            let _ = done.send(Ok(()));
        }
    }

    /// The node stops: nobody is answered any more.
    pub fn stop(&mut self) {
        self.give_up();
        let waiting = std::mem::take(&mut self.waiting).into_iter().filter_map(|(reader, _)| match reader {
            Reader::Local(done) => Some(done),
            Reader::Remote(..) => None,
        });
        for done in waiting.chain(std::mem::take(&mut self.ready).into_iter().map(|(_, done, _)| done)) {
            // The connection may be gone; then nobody wants to know.
            let _ = done.send(Err(ProposeError::Stopped));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Receiver = oneshot::Receiver<Result<(), ProposeError>>;

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1_000_000)
    }

    fn read(barriers: &mut Barriers, ms: u64) -> Receiver {
        let (done, receiver) = oneshot::channel();
        barriers.push(Reader::Local(done), at(ms));
        receiver
    }

    #[test]
    fn who_comes_during_a_round_is_answered_by_the_next() {
        let mut barriers = Barriers::new(0);
        let mut first = read(&mut barriers, 0);
        let round = barriers.begin(at(0));
        let mut second = read(&mut barriers, 1);
        assert!(!barriers.wants_round());
        assert!(barriers.answered(round, 5).is_empty());
        barriers.applied(4);
        assert!(first.try_recv().is_err());
        barriers.applied(5);
        assert_eq!(first.try_recv().unwrap(), Ok(()));
        assert!(second.try_recv().is_err() && barriers.wants_round());
        let next = barriers.begin(at(2));
        assert!(barriers.answered(round, 9).is_empty(), "an old answer is no answer");
        barriers.answered(next, 5);
        barriers.applied(5);
        assert_eq!(second.try_recv().unwrap(), Ok(()));
    }

    #[test]
    fn other_nodes_get_the_index_at_once_and_are_sent_away_when_the_leader_steps_down() {
        let mut barriers = Barriers::new(0);
        barriers.push(Reader::Remote(NodeId(2), 7), at(0));
        assert_eq!(barriers.grant(11), [(NodeId(2), 7, Some(11))]);
        barriers.push(Reader::Remote(NodeId(3), 8), at(0));
        barriers.begin(at(0));
        let mut own = read(&mut barriers, 0);
        assert_eq!(barriers.send_away(), [(NodeId(3), 8, None)]);
        assert!(own.try_recv().is_err() && barriers.wants_round());
    }

    #[test]
    fn a_round_without_an_answer_begins_anew_and_ends_in_an_error() {
        let mut barriers = Barriers::new(0);
        let mut reader = read(&mut barriers, 0);
        barriers.begin(at(0));
        barriers.on_time(at(100), Millis(200), Millis(1_000));
        assert!(!barriers.wants_round());
        barriers.on_time(at(200), Millis(200), Millis(1_000));
        assert!(barriers.wants_round());
        barriers.on_time(at(1_000), Millis(200), Millis(1_000));
        assert_eq!(reader.try_recv().unwrap(), Err(ProposeError::NotLeader { leader: None }));
    }
}
