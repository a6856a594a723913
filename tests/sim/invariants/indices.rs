//! Indices are in order (purged, flushed, applied, committed, last), and terms, votes and applied indices never go back.

use std::collections::BTreeMap;

use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::world::World;

#[derive(Default)]
pub struct Indices {
    /// By replica: term and vote as they were written, and what was applied in its life.
    known: BTreeMap<u64, Known>,
}

#[derive(Default, Clone, Copy)]
struct Known {
    life: u64,
    term: u64,
    vote: u64,
    applied: u64,
    commit: u64,
}

impl Invariant for Indices {
    fn name(&self) -> &'static str {
        "indices in order"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let n = match fact {
            Fact::Swept(n) | Fact::Written { node: n, .. } | Fact::Booted(n) => *n,
            _ => return Ok(()),
        };
        let node = &world.nodes[n];
        let Some(running) = &node.running else { return Ok(()) };
        let core = running.driver.core();
        let (applied, commit, last) = (running.applied(), core.commit_index(), core.last_index());
        let installing = running.installing.is_some() || core.is_installing();
        let in_order = node.disk.purged <= applied && applied <= commit && commit <= last;
        if !installing && !in_order {
            return Err(format!(
                "node {}: purged {}, applied {applied}, committed {commit}, last {last}",
                n + 1,
                node.disk.purged
            ));
        }
        let log = node.disk.log.lock();
        let (term, vote) = (log.hard_state.term, log.hard_state.vote);
        let known = self.known.entry(running.replica).or_default();
        if known.life != node.life {
            *known = Known { life: node.life, applied: 0, commit: 0, ..*known };
        }
        if core.term() < term || term < known.term {
            return Err(format!("node {}: term {} after {term} and {}", n + 1, core.term(), known.term));
        }
        if term == known.term && known.vote != 0 && vote != known.vote {
            return Err(format!("node {} voted for {} and for {vote} in term {term}", n + 1, known.vote));
        }
        if applied < known.applied || commit < known.commit {
            return Err(format!(
                "node {}: applied {applied} after {}, committed {commit} after {}",
                n + 1,
                known.applied,
                known.commit
            ));
        }
        *known = Known { life: node.life, term, vote, applied, commit };
        if node.disk.purged > 0 {
            world.coverage.saw("a log is purged");
        }
        Ok(())
    }
}
