//! What is applied anywhere is on the disks of a majority of the voters, whatever was told to whom.

use raft::eraftpb::EntryType;

use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::world::World;

#[derive(Default)]
pub struct CommittedOnQuorum;

impl Invariant for CommittedOnQuorum {
    fn name(&self) -> &'static str {
        "committed on a quorum"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let Fact::Applies { node, entry, is_first: true } = fact else { return Ok(()) };
        let holds = |replica: &u64| {
            // What a lost disk had counted when it was acknowledged.
            world.journal.lost.contains(replica)
                || world.nodes.iter().any(|node| {
                    let disk = &node.disk;
                    disk.replica == Some(*replica)
                        && (disk.log.lock().holds(entry.index, entry.term) || disk.rows_index >= entry.index)
                })
        };
        let is_majority = |voters: &Vec<u64>| {
            voters.is_empty() || voters.iter().filter(|replica| holds(replica)).count() * 2 > voters.len()
        };
        // A leader counts by the members as of what it has applied; a change it proposes only once the one before is
        // applied.
        let is_change = entry.get_entry_type() != EntryType::EntryNormal;
        let known = 3 - usize::from(is_change);
        let is_durable = world
            .journal
            .members()
            .take(known)
            .any(|members| is_majority(&members.voters) && is_majority(&members.voters_outgoing));
        if is_durable {
            return Ok(());
        }
        let on: Vec<u64> = world
            .nodes
            .iter()
            .filter(|node| node.disk.log.lock().holds(entry.index, entry.term))
            .filter_map(|node| node.disk.replica)
            .collect();
        Err(format!(
            "node {} applies {} of term {}, which is on {on:?} only",
            node + 1,
            entry.index,
            entry.term
        ))
    }
}
