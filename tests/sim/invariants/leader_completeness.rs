//! A leader's log holds every entry that was committed in an earlier term (Raft, 5.4).

use std::collections::BTreeSet;

use raft::Storage;

use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::world::World;

#[derive(Default)]
pub struct LeaderCompleteness {
    checked: BTreeSet<u64>,
}

impl Invariant for LeaderCompleteness {
    fn name(&self) -> &'static str {
        "leader completeness"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let Fact::Swept(n) = fact else { return Ok(()) };
        let Some(running) = &world.nodes[*n].running else { return Ok(()) };
        let core = running.driver.core();
        if !core.is_leader() || !self.checked.insert(core.term()) {
            return Ok(());
        }
        let has = |index: u64, term: u64| match core.log().term(index) {
            Ok(found) => found == term,
            // Not in memory any more.
            Err(_) => world.nodes[*n].disk.log.lock().holds(index, term),
        };
        let last = world.journal.last();
        for index in (last.saturating_sub(500)..=last).filter(|index| *index > running.applied()) {
            let Some(record) = world.journal.record(index) else { continue };
            let is_earlier = world.journal.committed_in(index).is_some_and(|term| term < core.term());
            if is_earlier && !has(index, record.term) {
                return Err(format!(
                    "replica {} leads in term {} without {index} of term {}, which is committed; it has applied {}, last {}, commit {}, term there {:?}",
                    running.replica,
                    core.term(),
                    record.term,
                    running.applied(),
                    core.last_index(),
                    core.commit_index(),
                    core.log().term(index)
                ));
            }
        }
        Ok(())
    }
}
