//! At most one replica leads in a term (Raft, 5.2).

use std::collections::BTreeMap;

use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::world::World;

#[derive(Default)]
pub struct ElectionSafety {
    leaders: BTreeMap<u64, u64>,
    /// Term and leader of each node, as they were told last.
    told: BTreeMap<usize, (u64, u64)>,
}

impl Invariant for ElectionSafety {
    fn name(&self) -> &'static str {
        "election safety"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let Fact::Swept(n) = fact else { return Ok(()) };
        let Some(running) = &world.nodes[*n].running else { return Ok(()) };
        let core = running.driver.core();
        if world.is_told {
            let now = (core.term(), core.leader());
            if self.told.insert(*n, now) != Some(now) {
                world.say(|| format!("node {} is in term {}, leader {}", n + 1, now.0, now.1));
            }
        }
        if !core.is_leader() {
            return Ok(());
        }
        let (term, replica) = (core.term(), running.replica);
        if !self.leaders.contains_key(&term) {
            let (last, commit) = (core.last_index(), core.commit_index());
            world.say(|| {
                format!(
                    "node {} leads as replica {replica} in term {term}: commit {commit}, last {last}",
                    n + 1
                )
            });
        }
        let known = *self.leaders.entry(term).or_insert(replica);
        if known != replica {
            return Err(format!("replicas {known} and {replica} lead in term {term}"));
        }
        let leads = |node: &crate::node::Node| {
            node.running.as_ref().is_some_and(|running| running.driver.core().is_leader())
        };
        if world.nodes.iter().filter(|node| leads(node)).count() > 1 {
            world.coverage.saw("two nodes believe that they lead");
        }
        Ok(())
    }
}
