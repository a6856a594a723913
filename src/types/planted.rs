//! Bugs that are planted on purpose, to prove that the simulator finds them, and bounds that are small there, so that
//! what happens rarely happens often. Only a build with the feature `sim` can have any: in every other build
//! [`is_planted`] is the constant `false` and [`scaled`] gives what it got, and nothing of it is left in the binary.

#[cfg(feature = "sim")]
use std::cell::Cell;

/// A known mistake, most of them made by some replicated system before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A follower acknowledges one entry more than it has: the leader's count of copies is off by one.
    CommitOffByOne,
    /// Rows reach the disk without the index as of which they hold (etcd 3.5.0).
    RowsWithoutIndex,
    /// What is being written counts as written.
    AckBeforePersist,
    /// Rounds of read barriers share a number (etcd, all versions until 2026).
    ReadIndexReuse,
    /// A lease counts for as long as the leader believes that it leads.
    LeaseUnchecked,
    /// A replica that gets a snapshot keeps the members that it knew before.
    SnapshotMembersIgnored,
    /// A log that ends before the watermark is taken for whole.
    WatermarkUnchecked,
    /// DEL of any key begins the fencing tokens anew.
    TokenResetByDel,
    /// How often a message was delivered is forgotten with the process.
    DeliveriesNotKept,
    /// A forwarded batch that comes again is executed again.
    RepeatedExecuted,
    /// A replica forgets its promise to the leader with any word of a higher term, as raft-rs does.
    PromiseForgotten,
    /// Votes and terms are not written.
    VoteNotWritten,
    /// A follower's read does not wait until its index is applied.
    BarrierNotAwaited,
    /// What is due is proposed again until it is applied (Holdfast, found by the simulator).
    ExpireFlood,
    /// A lock is handed to the second that waits.
    HandOverSkipsFirst,
    /// Nobody looks for deadlocks.
    DeadlockUnnoticed,
    /// What is taken back does not bring locks back.
    RollBackForgetsLocks,
    /// Any fencing token is good enough.
    FenceUnchecked,
    /// The names of transactions are not kept.
    OnceForgotten,
    /// A grant that nobody hears of is left as it is.
    GrantUnheard,
    /// Who waits for a queue is not looked at when a message comes.
    QueueWakeUpLost,
    /// A message that comes back SILENT has used up an attempt.
    SilentReturnCounts,
    /// A delayed message of a group lets the next one pass.
    GroupPassesDelayed,
    /// The IDs of finished messages are forgotten with the process.
    DedupNotKept,
    /// QPOPs that wait are forgotten with the process.
    PopWaitsNotKept,
    /// What is taken back does not bring messages back.
    RollBackForgetsMessages,
    /// Who joins a wait gets the lease of who waited before (Holdfast, found by its users).
    JoinAsksForNothing,
    /// What was handed to the clients of a node that is gone stays theirs (Holdfast, found by its users).
    HandedToTheGone,
    /// What is handed out at once, in a reply that cannot be written, is left as it is.
    GivenUnheard,
    /// A leader that is deposed counts the time that it led as time without a leader.
    OwnLeadIsSilence,
    /// What somebody waits for ends behind whatever else is due.
    AwaitedEndsLast,
}

impl Bug {
    /// Every bug, in the order above.
    pub const ALL: [Bug; 31] = [
        Bug::CommitOffByOne,
        Bug::RowsWithoutIndex,
        Bug::AckBeforePersist,
        Bug::ReadIndexReuse,
        Bug::LeaseUnchecked,
        Bug::SnapshotMembersIgnored,
        Bug::WatermarkUnchecked,
        Bug::TokenResetByDel,
        Bug::DeliveriesNotKept,
        Bug::RepeatedExecuted,
        Bug::PromiseForgotten,
        Bug::VoteNotWritten,
        Bug::BarrierNotAwaited,
        Bug::ExpireFlood,
        Bug::HandOverSkipsFirst,
        Bug::DeadlockUnnoticed,
        Bug::RollBackForgetsLocks,
        Bug::FenceUnchecked,
        Bug::OnceForgotten,
        Bug::GrantUnheard,
        Bug::QueueWakeUpLost,
        Bug::SilentReturnCounts,
        Bug::GroupPassesDelayed,
        Bug::DedupNotKept,
        Bug::PopWaitsNotKept,
        Bug::RollBackForgetsMessages,
        Bug::JoinAsksForNothing,
        Bug::HandedToTheGone,
        Bug::GivenUnheard,
        Bug::OwnLeadIsSilence,
        Bug::AwaitedEndsLast,
    ];
}

#[cfg(feature = "sim")]
thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

#[cfg(feature = "sim")]
thread_local! {
    static SCALE: Cell<u64> = const { Cell::new(1) };
}

/// Makes the bounds of this thread so many times smaller.
#[cfg(feature = "sim")]
pub fn scale_down(by: u64) {
    SCALE.set(by.max(1));
}

/// A bound, from 1: smaller in a simulation that wants it so.
#[cfg(feature = "sim")]
#[must_use]
pub fn scaled(bound: u64) -> u64 {
    (bound / SCALE.get()).max(1)
}

/// The bound itself.
#[cfg(not(feature = "sim"))]
#[inline(always)]
#[must_use]
pub fn scaled(bound: u64) -> u64 {
    bound
}

/// Plants a bug in this thread, or takes it out.
#[cfg(feature = "sim")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// True when this bug is planted in this thread.
#[cfg(feature = "sim")]
#[must_use]
pub fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Never: this build has no planted bugs.
#[cfg(not(feature = "sim"))]
#[inline(always)]
#[must_use]
pub fn is_planted(_: Bug) -> bool {
    false
}
