//! The replies of a batch, as far as somebody wants them.
//!
//! Every replica executes every command, but only one node has the client. The others keep replies no further than is
//! needed to remember them for a repetition, which is a bounded number of bytes; how many there were is counted on all
//! of them, since what is remembered must be the same everywhere.

use crate::resp::Reply;
use crate::state::sessions::HINT_BYTES_MAX;

/// Replies in the order of their commands.
#[derive(Debug)]
pub struct Answers {
    replies: Vec<Reply>,
    bytes: usize,
    is_wanted: bool,
}

impl Answers {
    /// For so many commands. `is_wanted`: a client of this node waits for them.
    #[must_use]
    pub fn new(count: usize, is_wanted: bool) -> Answers {
        Answers { replies: Vec::with_capacity(count.min(4096)), bytes: 0, is_wanted }
    }

    /// Adds the next one, which takes so many bytes by [`Reply::size_hint`]; parts of it may be left out already.
    #[inline]
    pub fn push(&mut self, reply: Reply, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.is_wanted || self.bytes <= HINT_BYTES_MAX {
            self.replies.push(reply);
        } else {
            self.replies = Vec::new();
        }
    }

    /// Bytes that all of them take, those that were left out included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of them; none when nobody wants them and they would not be remembered either.
    #[must_use]
    pub fn into_replies(self) -> Vec<Reply> {
        self.replies
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_wants_is_kept_as_long_as_it_may_be_remembered() {
        for (is_wanted, kept) in [(true, 3), (false, 0)] {
            let mut answers = Answers::new(3, is_wanted);
            let reply = Reply::bulk(vec![0; HINT_BYTES_MAX / 2]);
            answers.push(reply.clone(), reply.size_hint());
            assert_eq!(answers.replies.len(), 1);
            answers.push(reply.clone(), reply.size_hint());
            answers.push(Reply::Ok, Reply::Ok.size_hint());
            assert_eq!(answers.bytes(), 2 * reply.size_hint() + 5);
            assert_eq!(answers.into_replies().len(), kept, "wanted: {is_wanted}");
        }
    }
}
