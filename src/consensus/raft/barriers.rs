//! Read barriers: who waits for one, the rounds under way, and whose index is known.
//!
//! ```text
//! waiting ──round begins──► asked ──index of this round or of a later one──► ready ──applied here──► done
//!                             └─ an answer is late, or the leader changed: a later round asks for all of them, too
//! waiting for `doubt` ──► no leader with a quorum
//! ```
//! A read must not be answered from a round that began before it: what it must see may have been committed in
//! between. A round that began after it will do, and so will an answer that comes late, whoever leads by then: its index
//! was the commit index of a leader that a quorum confirmed after the round had begun. So a slow network makes reads slow
//! and never vain. All that arrive while a round is young share the next one. The leader's own readers and the nodes that
//! ask for theirs wait side by side.

use std::collections::VecDeque;

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
    /// The rounds without an answer, the oldest first.
    rounds: VecDeque<Round>,
    /// The rounds under way may not be answered: a new one begins at once.
    is_in_doubt: bool,
    ready: Vec<(u64, Done, Monotonic)>,
    /// Number of the last round; never repeated while the process lives.
    context: u64,
}

impl Barriers {
    /// None yet. Numbers start after `context`, which differs from start to start of a node.
    #[must_use]
    pub fn new(context: u64) -> Barriers {
        let (waiting, rounds, ready) = (Vec::new(), VecDeque::new(), Vec::new());
        Barriers { waiting, rounds, is_in_doubt: false, ready, context }
    }

    /// Somebody wants to read.
    pub fn push(&mut self, reader: Reader, now: Monotonic) {
        self.waiting.push((reader, now));
    }

    /// True when a round should begin: somebody waits for one, and none began within `spacing`; or somebody waits for an
    /// answer that may not come.
    #[must_use]
    pub fn wants_round(&self, now: Monotonic, spacing: Millis) -> bool {
        let is_young = self.rounds.back().is_some_and(|round| now.since(round.began) < spacing);
        let is_anybody =
            !self.waiting.is_empty() || self.rounds.iter().any(|round| !round.readers.is_empty());
        if self.is_in_doubt { is_anybody } else { !self.waiting.is_empty() && !is_young }
    }

    /// True when nobody waits, and no round is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.rounds.is_empty()
    }

    /// True when no round is under way.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.rounds.is_empty()
    }

    /// Begins a round for all that wait, and gives its number. It serves those of earlier rounds, too.
    pub fn begin(&mut self, now: Monotonic) -> u64 {
        self.context += u64::from(!is_planted(Bug::ReadIndexReuse));
        self.is_in_doubt = false;
        let readers = std::mem::take(&mut self.waiting);
        self.rounds.push_back(Round { context: self.context, began: now, readers });
        self.context
    }

    /// The index of a round is known: it is that of all rounds before, too.
    pub fn answered(&mut self, context: u64, index: u64) -> Vec<Answer> {
        let Some(at) = self.rounds.iter().rposition(|round| round.context == context) else {
            return Vec::new();
        };
        let readers = self.rounds.drain(..=at).flat_map(|round| round.readers).collect();
        self.place(readers, index)
    }

    /// All that wait may read at this index: the leader's lease holds.
    pub fn grant(&mut self, index: u64) -> Vec<Answer> {
        let mut readers: Vec<_> = self.rounds.drain(..).flat_map(|round| round.readers).collect();
        readers.append(&mut self.waiting);
        self.is_in_doubt = false;
        self.place(readers, index)
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

    /// The rounds under way may not be answered, since the leader or the way to it changed: ask again.
    pub fn ask_again(&mut self) {
        self.is_in_doubt = true;
    }

    /// This node does not lead any more: other nodes must ask elsewhere.
    pub fn send_away(&mut self) -> Vec<Answer> {
        self.ask_again();
        let mut answers = Vec::new();
        let lists = self.rounds.iter_mut().map(|round| &mut round.readers).chain([&mut self.waiting]);
        for readers in lists {
            for (reader, _) in readers.extract_if(.., |(reader, _)| matches!(reader, Reader::Remote(..))) {
                if let Reader::Remote(node, id) = reader {
                    answers.push((node, id, None));
                }
            }
        }
        answers
    }

    /// When a round was not answered within `patience`, another begins; who has waited for `doubt` is told so, and a
    /// round as old is forgotten.
    pub fn on_time(&mut self, now: Monotonic, patience: Millis, doubt: Millis) {
        self.is_in_doubt |= self.rounds.back().is_some_and(|round| now.since(round.began) >= patience);
        let is_over = |since: Monotonic| now.since(since) >= doubt;
        let mut over = Vec::new();
        for readers in self.rounds.iter_mut().map(|round| &mut round.readers).chain([&mut self.waiting]) {
            let found = readers.extract_if(.., |(_, since)| is_over(*since));
            over.extend(found.filter_map(|(reader, _)| match reader {
                Reader::Local(done) => Some(done),
                Reader::Remote(..) => None,
            }));
        }
        // Readers are older than their round.
        self.rounds.retain(|round| !is_over(round.began));
        // What is known to be committed may not arrive either, while this node is cut off.
        over.extend(self.ready.extract_if(.., |(_, _, since)| is_over(*since)).map(|(_, done, _)| done));
        for done in over {
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
        let asked = self.rounds.drain(..).flat_map(|round| round.readers);
        let waiting = asked.chain(std::mem::take(&mut self.waiting)).filter_map(|(reader, _)| match reader {
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

    const SPACING: Millis = Millis(50);
    const NO_LEADER: Result<(), ProposeError> = Err(ProposeError::NotLeader { leader: None });

    #[test]
    fn who_comes_during_a_round_is_answered_by_the_next() {
        let mut barriers = Barriers::new(0);
        let mut first = read(&mut barriers, 0);
        let round = barriers.begin(at(0));
        let mut second = read(&mut barriers, 1);
        assert!(!barriers.wants_round(at(1), SPACING));
        assert!(barriers.answered(round, 5).is_empty());
        barriers.applied(4);
        assert!(first.try_recv().is_err());
        barriers.applied(5);
        assert_eq!(first.try_recv().unwrap(), Ok(()));
        assert!(second.try_recv().is_err() && barriers.wants_round(at(1), SPACING));
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
        assert!(own.try_recv().is_err() && barriers.wants_round(at(0), SPACING));
    }

    #[test]
    fn a_round_without_an_answer_begins_anew_and_ends_in_an_error() {
        let mut barriers = Barriers::new(0);
        let mut reader = read(&mut barriers, 0);
        barriers.begin(at(0));
        barriers.on_time(at(100), Millis(200), Millis(1_000));
        assert!(!barriers.wants_round(at(100), SPACING));
        barriers.on_time(at(200), Millis(200), Millis(1_000));
        assert!(barriers.wants_round(at(200), SPACING));
        barriers.on_time(at(1_000), Millis(200), Millis(1_000));
        assert_eq!(reader.try_recv().unwrap(), NO_LEADER);
        assert!(barriers.is_quiet() && !barriers.wants_round(at(1_000), SPACING));
    }

    #[test]
    fn an_answer_that_takes_longer_than_rounds_are_waited_for_counts() {
        let mut barriers = Barriers::new(0);
        let mut reader = read(&mut barriers, 0);
        // Each answer comes after 700 ms, and a round is waited for 500.
        let first = barriers.begin(at(0));
        barriers.on_time(at(500), Millis(500), Millis(5_000));
        assert!(barriers.wants_round(at(500), SPACING));
        let second = barriers.begin(at(500));
        let mut later = read(&mut barriers, 600);
        assert!(barriers.wants_round(at(600), SPACING), "who comes late need not wait for a slow round");
        let third = barriers.begin(at(600));
        barriers.answered(first, 7);
        barriers.applied(7);
        assert_eq!(reader.try_recv().unwrap(), Ok(()));
        barriers.answered(second, 8);
        barriers.applied(8);
        assert!(later.try_recv().is_err(), "it came after that round began");
        barriers.answered(third, 8);
        barriers.applied(8);
        assert_eq!(later.try_recv().unwrap(), Ok(()));
        assert!(barriers.is_quiet());
    }

    #[test]
    fn a_later_round_serves_those_of_earlier_ones() {
        let mut barriers = Barriers::new(0);
        let mut first = read(&mut barriers, 0);
        barriers.push(Reader::Remote(NodeId(2), 9), at(0));
        barriers.begin(at(0));
        // The question or its answer was lost.
        barriers.ask_again();
        assert!(barriers.wants_round(at(1), SPACING));
        let second = barriers.begin(at(1));
        assert!(!barriers.wants_round(at(1), SPACING));
        assert_eq!(barriers.answered(second, 4), [(NodeId(2), 9, Some(4))]);
        barriers.applied(4);
        assert_eq!(first.try_recv().unwrap(), Ok(()));
        assert!(barriers.is_quiet());
        barriers.ask_again();
        assert!(!barriers.wants_round(at(2), SPACING), "nobody waits");
    }
}
