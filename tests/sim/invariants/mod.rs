//! What must hold, one property a file. Each is told of everything that happens, and looks at what concerns it.

mod acknowledged;
mod awaited_in_time;
mod committed_on_quorum;
mod deliveries_are_told;
mod election_safety;
mod exclusive_holder;
mod first_come_first_served;
mod grants_are_told;
mod indices;
mod leader_completeness;
mod lease;
mod linearizable;
mod log_matching;
mod members_agree;
mod messages_conserved;
mod no_flood;
mod no_lost_wake_up;
mod no_stale_read;
mod one_in_flight;
mod receipts_increase;
mod state_digest;
mod tokens_increase;
mod waiters_are_kept;
mod waits_of_the_gone;

use raft::eraftpb::Entry;

use crate::clients::Operation;
use crate::world::World;

/// Something that happened. Nodes by their place.
#[derive(Debug)]
pub enum Fact<'a> {
    Booted(usize),
    /// The driver has swept.
    Swept(usize),
    /// These entries are on the node's disk.
    Written {
        node: usize,
        entries: &'a [Entry],
    },
    /// The node applies an entry now; `is_first`: nobody did before. That all apply the same entries in the same
    /// order, each once, is checked by the journal.
    Applies {
        node: usize,
        entry: &'a Entry,
        is_first: bool,
    },
    /// The node has applied some.
    Applied(usize),
    /// A client was told.
    Answered {
        op: u64,
        operation: &'a Operation,
    },
    /// A client that waited was told that there is no leader.
    Refused(usize),
    /// The end: everything was healed.
    Healed,
}

/// A property that must hold at every moment.
pub trait Invariant {
    fn name(&self) -> &'static str;

    /// Something happened.
    ///
    /// # Errors
    /// When the property does not hold, with what shows it.
    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String>;
}

/// All of them.
pub fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::<election_safety::ElectionSafety>::default(),
        Box::<lease::Lease>::default(),
        Box::<log_matching::LogMatching>::default(),
        Box::<leader_completeness::LeaderCompleteness>::default(),
        Box::<committed_on_quorum::CommittedOnQuorum>::default(),
        Box::<indices::Indices>::default(),
        Box::<state_digest::StateDigest>::default(),
        Box::<members_agree::MembersAgree>::default(),
        Box::<exclusive_holder::ExclusiveHolder>::default(),
        Box::<tokens_increase::TokensIncrease>::default(),
        Box::<first_come_first_served::FirstComeFirstServed>::default(),
        Box::<no_lost_wake_up::NoLostWakeUp>::default(),
        Box::<waits_of_the_gone::WaitsOfTheGone>::default(),
        Box::<grants_are_told::GrantsAreTold>::default(),
        Box::<waiters_are_kept::WaitersAreKept>::default(),
        Box::<messages_conserved::MessagesConserved>::default(),
        Box::<receipts_increase::ReceiptsIncrease>::default(),
        Box::<one_in_flight::OneInFlight>::default(),
        Box::<deliveries_are_told::DeliveriesAreTold>::default(),
        Box::<no_stale_read::NoStaleRead>::default(),
        Box::<no_flood::NoFlood>::default(),
        Box::<awaited_in_time::AwaitedInTime>::default(),
        Box::<acknowledged::Acknowledged>::default(),
        Box::<linearizable::Linearizable>::default(),
    ]
}
