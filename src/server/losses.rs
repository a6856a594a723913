//! How a client is told of the locks that it lost: one push for each, but not too many one after the other.
//!
//! Some client libraries read pushes by recursion, from the reply that they wait for, and break on a thousand. So at
//! most [`IN_A_ROW_MAX`] stand between two replies: nearly as many with the names of their locks, then counts. One count
//! comes when no further loss came for a while, for a client that only listens; the other just before the next reply.

use std::time::Duration;

use crate::resp::Reply;

/// Pushes between two replies.
const IN_A_ROW_MAX: usize = 100;
/// The two others may be counts.
const NAMED_MAX: usize = IN_A_ROW_MAX - 2;
/// When no further loss came for so long, those that were not named are counted.
pub const QUIET: Duration = Duration::from_millis(200);

/// What one client was told of since its last reply.
#[derive(Debug, Default)]
pub struct Losses {
    /// Pushes since the last reply, those included that are not written yet.
    in_a_row: usize,
    /// How many of these are not written yet.
    unwritten: usize,
    /// Losses that it was not told of.
    uncounted: usize,
}

impl Losses {
    /// A lock was lost: true when its name is to be pushed.
    pub fn lose(&mut self) -> bool {
        let is_named = self.in_a_row < NAMED_MAX;
        if is_named {
            self.in_a_row += 1;
            self.unwritten += 1;
        } else {
            self.uncounted += 1;
        }
        is_named
    }

    /// True when the client is to be told how many it was not told of, once it is quiet.
    #[must_use]
    pub fn wants_count(&self) -> bool {
        self.uncounted > 0 && self.in_a_row == NAMED_MAX
    }

    /// It is quiet: the push to be sent, if there is one.
    pub fn count(&mut self) -> Option<Reply> {
        if !self.wants_count() {
            return None;
        }
        self.in_a_row += 1;
        self.unwritten += 1;
        Some(self.counted())
    }

    /// The pushes so far are written.
    pub fn wrote(&mut self) {
        self.unwritten = 0;
    }

    /// A reply comes next: the push to be written before it, if there is one.
    pub fn before_reply(&mut self) -> Option<Reply> {
        (self.uncounted > 0).then(|| self.counted())
    }

    /// A reply was written; what is not written yet comes behind it.
    pub fn replied(&mut self) {
        self.in_a_row = self.unwritten;
    }

    /// True when there is nothing to remember.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.in_a_row == 0 && self.uncounted == 0
    }

    fn counted(&mut self) -> Reply {
        let count = std::mem::take(&mut self.uncounted);
        let count = Reply::Integer(i64::try_from(count).unwrap_or(i64::MAX));
        Reply::Push(vec![Reply::bulk("lock-lost"), Reply::bulk("*"), count])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count_of(push: Option<Reply>) -> i64 {
        match push {
            Some(Reply::Push(words)) => match words.last() {
                Some(Reply::Integer(count)) => *count,
                other => panic!("a count, not {other:?}"),
            },
            other => panic!("a push, not {other:?}"),
        }
    }

    #[test]
    fn at_most_a_hundred_pushes_come_before_a_reply_and_no_loss_is_left_out() {
        let mut losses = Losses::default();
        let mut pushes = (0..1_000).filter(|_| losses.lose()).count();
        assert_eq!(pushes, 98);
        assert_eq!(count_of(losses.count()), 902);
        losses.wrote();
        assert!((0..500).all(|_| !losses.lose()) && !losses.wants_count() && losses.count().is_none());
        assert_eq!(count_of(losses.before_reply()), 500);
        pushes += 2;
        assert_eq!(pushes, IN_A_ROW_MAX);
        losses.replied();
        assert!(losses.is_empty() && losses.before_reply().is_none());
        assert!(losses.lose(), "after a reply they have names again");
    }

    #[test]
    fn what_is_not_written_when_the_reply_is_counts_for_the_next_row() {
        let mut losses = Losses::default();
        assert!((0..90).all(|_| losses.lose()));
        losses.replied();
        assert_eq!((0..90).filter(|_| losses.lose()).count(), 8);
        losses.wrote();
        losses.replied();
        assert_eq!(count_of(losses.count().or(losses.before_reply())), 82);
    }
}
