//! Decides whether what clients saw of one register can have happened one operation after another.
//!
//! Every write writes a value of its own, so a history is a set of families: a write and the reads that returned
//! its value. In any order that explains the history a family stands together. Family A has to stand before family
//! B when some operation of A returned before some operation of B was invoked, which is to say `A.first_return <
//! B.last_invoke`. The history is linearizable if no read returned before its write was invoked and no two families
//! have to stand before each other (P. Gibbons and E. Korach, Testing Shared Memories, 1997):
//!
//! ```text
//!   first_return < last_invoke: a forward zone      first_return >= last_invoke: a backward zone
//!     |--write--|                                     |------write------|
//!               [=======zone=======]                        [==zone==]
//!                                  |--read--|               |------read------|
//!
//!   two forward zones overlap:          no order        a backward zone inside a forward zone:  no order
//! ```
//!
//! Sorting makes this n log n, where a search over orders takes exponential time. A history over many keys is
//! linearizable if it is so for each key alone.

use std::collections::BTreeMap;
use std::fmt;

/// The value of a register nobody has written.
pub const NOTHING: u64 = 0;

/// One operation on one register. Times are from one clock for all clients, in any unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    pub kind: Kind,
    /// What was written, or what the read returned; [`NOTHING`] is a read of a register without a value.
    pub value: u64,
    /// When the client sent it.
    pub invoked: u64,
    /// When the reply was there. `None`: whether it took effect is unknown, and it may still do so at any later time.
    pub returned: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
}

/// Why no order explains a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// A value that no write wrote.
    NeverWritten(Operation),
    /// A read that had returned before the write of its value was sent.
    FromTheFuture { read: Operation, write: Operation },
    /// The operations on each of two values had to stand before those on the other. One pair shows that the first
    /// value was there before the second, the other that it was there after it.
    Interleaved { first_before_second: [Operation; 2], second_before_first: [Operation; 2] },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::NeverWritten(read) => write!(f, "never written: {read}"),
            Violation::FromTheFuture { read, write } => write!(f, "{read} was over before {write}"),
            Violation::Interleaved { first_before_second: [a, b], second_before_first: [c, d] } => {
                write!(f, "{a} was over before {b}, but {c} was over before {d}")
            }
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.kind {
            Kind::Read => "read",
            Kind::Write => "write",
        };
        match self.returned {
            Some(returned) => write!(f, "[{verb} {} {}..{returned}]", self.value, self.invoked),
            None => write!(f, "[{verb} {} {}.. unknown]", self.value, self.invoked),
        }
    }
}

impl Operation {
    /// The end of an unknown operation is after everything else.
    fn end(&self) -> i128 {
        self.returned.map_or(i128::MAX, i128::from)
    }
}

/// A write and the reads of its value, by the operations that bound its place.
struct Family {
    first_to_return: Operation,
    last_invoked: Operation,
    is_initial: bool,
}

impl Family {
    fn of(write: Operation) -> Family {
        Family { first_to_return: write, last_invoked: write, is_initial: false }
    }

    /// The register without a value: written before everything.
    fn initial() -> Family {
        let write = Operation { kind: Kind::Write, value: NOTHING, invoked: 0, returned: Some(0) };
        Family { is_initial: true, ..Family::of(write) }
    }

    fn add(&mut self, read: Operation) {
        if read.end() < self.first_return() {
            self.first_to_return = read;
        }
        if i128::from(read.invoked) > self.last_invoke() {
            self.last_invoked = read;
        }
    }

    fn first_return(&self) -> i128 {
        if self.is_initial { -1 } else { self.first_to_return.end() }
    }

    fn last_invoke(&self) -> i128 {
        if self.is_initial && self.last_invoked.kind == Kind::Write {
            -1
        } else {
            i128::from(self.last_invoked.invoked)
        }
    }

    fn is_forward(&self) -> bool {
        self.first_return() < self.last_invoke()
    }

    fn must_precede(&self, other: &Family) -> bool {
        self.first_return() < other.last_invoke()
    }

    fn conflict(&self, other: &Family) -> Option<Violation> {
        (self.must_precede(other) && other.must_precede(self)).then_some(Violation::Interleaved {
            first_before_second: [self.first_to_return, other.last_invoked],
            second_before_first: [other.first_to_return, self.last_invoked],
        })
    }
}

/// Checks the history of one register, in any order of operations. Reads without a reply tell nothing and may be
/// left out; so may writes that certainly did not take effect, and then nobody may have read them.
pub fn check(history: &[Operation]) -> Result<(), Box<Violation>> {
    let mut writes: BTreeMap<u64, Operation> = BTreeMap::new();
    for write in history.iter().filter(|operation| operation.kind == Kind::Write) {
        assert!(write.value != NOTHING, "a write of nothing: {write}");
        let before = writes.insert(write.value, *write);
        assert_eq!(before, None, "a value is written once");
    }
    let mut families: BTreeMap<u64, Family> =
        writes.values().map(|write| (write.value, Family::of(*write))).collect();
    families.insert(NOTHING, Family::initial());
    for read in
        history.iter().filter(|operation| operation.kind == Kind::Read && operation.returned.is_some())
    {
        let family = families.get_mut(&read.value).ok_or_else(|| Box::new(Violation::NeverWritten(*read)))?;
        if let Some(write) = writes.get(&read.value)
            && read.end() < i128::from(write.invoked)
        {
            return Err(Box::new(Violation::FromTheFuture { read: *read, write: *write }));
        }
        family.add(*read);
    }
    let (mut forward, backward): (Vec<Family>, Vec<Family>) =
        families.into_values().partition(Family::is_forward);
    forward.sort_by_key(Family::first_return);
    for pair in forward.windows(2) {
        if let Some(violation) = pair[0].conflict(&pair[1]) {
            return Err(Box::new(violation));
        }
    }
    // Forward zones do not overlap, so the last that starts before a backward zone does is the one that reaches
    // furthest.
    for family in backward {
        let before = forward.partition_point(|zone| zone.must_precede(&family));
        if let Some(violation) = before.checked_sub(1).and_then(|last| forward[last].conflict(&family)) {
            return Err(Box::new(violation));
        }
    }
    Ok(())
}
