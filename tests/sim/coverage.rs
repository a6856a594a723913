//! What must happen sometimes: a simulation in which something never happens proves nothing about it.

use std::collections::BTreeMap;

/// Everything that a thousand seeds must have seen.
pub const SOMETIMES: [&str; 71] = [
    "a leader crashes",
    "a crash loses what was being written",
    "a crash loses rows that were being written",
    "a crash while a snapshot is put in place",
    "a failed write ends a process",
    "a log that ends before its watermark is not used any more",
    "a node without its disk gets a new replica id",
    "entries that were not committed are replaced",
    "a snapshot is put in place",
    "a snapshot is not sent to its end",
    "a read under the lease",
    "a barrier at the leader",
    "a barrier at a follower",
    "a read meets a key that is due",
    "a client is told that nothing was done",
    "a client is left in doubt",
    "all nodes crash at once",
    "a leader is paused",
    "a machine is suspended",
    "a leader is cut off with a minority",
    "a cut in one direction",
    "two sides with a bridge",
    "swizzle",
    "a slow disk",
    "a full disk",
    "a disk is lost",
    "a log loses its end",
    "a wall clock jumps",
    "a hand-over",
    "a batch comes again and is not executed again",
    "a batch comes before one that it must follow",
    "a batch of a session that ended",
    "an operation in doubt was executed",
    "an operation in doubt was not executed",
    "a lock's lease ends",
    "a message is delivered again",
    "a joint configuration",
    "a new voter takes the place of an old one",
    "two nodes believe that they lead",
    "a log is purged",
    "words about an election come late",
    "a wait is granted",
    "a wait is granted to nobody",
    "a wait times out",
    "a wait is cancelled",
    "a deadlock is found",
    "an upgrade",
    "a request for several locks waits and gets them",
    "a grant that nobody heard of is taken back",
    "a fenced write is refused",
    "an atomic transaction is rolled back",
    "a named transaction is answered again",
    "waits of a node's earlier life end",
    "a message dies",
    "a dead message goes to its dead letter queue",
    "dead messages are redriven",
    "a queue is gone when nothing is in it",
    "a push is a duplicate",
    "a group holds a message back",
    "a message's lease is extended",
    "a message is acknowledged again",
    "a QPOP waits and is served",
    "a QPOP is served by another leader than the one it began to wait under",
    "a delivery goes to nobody",
    "a delivery is returned since its client is gone",
    "a wait is joined",
    "a hand-over is confirmed",
    "a hand-over goes back",
    "a grant is not told since its lease is over",
    "what was given at once goes to nobody",
    "who waits is refused for want of a leader",
];

/// How often each of them was seen.
#[derive(Debug, Default, Clone)]
pub struct Coverage(BTreeMap<&'static str, u64>);

impl Coverage {
    /// It happened. The name is one of [`SOMETIMES`].
    pub fn saw(&mut self, what: &'static str) {
        debug_assert!(SOMETIMES.contains(&what), "{what}");
        *self.0.entry(what).or_default() += 1;
    }

    pub fn add(&mut self, other: &Coverage) {
        for (what, count) in &other.0 {
            *self.0.entry(what).or_default() += count;
        }
    }

    /// What was never seen.
    pub fn missing(&self) -> Vec<&'static str> {
        SOMETIMES.into_iter().filter(|what| !self.0.contains_key(what)).collect()
    }

    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        SOMETIMES.into_iter().map(|what| (what, self.0.get(what).copied().unwrap_or(0))).collect()
    }
}
