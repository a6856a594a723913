//! The members that the Raft core counts with are those that the state holds, once what is committed is applied.

use std::collections::BTreeMap;

use crate::invariants::Fact;
use crate::invariants::Invariant;
use crate::world::World;

#[derive(Default)]
pub struct MembersAgree {
    /// What was looked at last: by replica, its life and what it had applied.
    checked: BTreeMap<u64, (u64, u64)>,
    voters: Vec<u64>,
}

impl Invariant for MembersAgree {
    fn name(&self) -> &'static str {
        "one idea of the members"
    }

    fn on(&mut self, fact: &Fact<'_>, world: &mut World) -> Result<(), String> {
        let Fact::Swept(n) = fact else { return Ok(()) };
        let Some(running) = &world.nodes[*n].running else { return Ok(()) };
        let core = running.driver.core();
        if core.is_installing() || running.applied() != core.commit_index() || core.is_retired() {
            return Ok(());
        }
        let at = (world.nodes[*n].life, running.applied());
        if self.checked.insert(running.replica, at) == Some(at) {
            return Ok(());
        }
        let sorted = |ids: &[u64]| {
            let mut ids = ids.to_vec();
            ids.sort_unstable();
            ids
        };
        let conf = core.conf_state();
        let state = running.state.read();
        let members = state.membership();
        if sorted(&conf.voters) != sorted(&members.voters)
            || sorted(&conf.voters_outgoing) != sorted(&members.voters_outgoing)
            || sorted(&conf.learners) != sorted(&members.learners)
        {
            return Err(format!("node {} counts with {conf:?}, its state says {members:?}", n + 1));
        }
        let voters = sorted(&world.journal.newest_members().voters);
        if !self.voters.is_empty() && self.voters != voters {
            world.coverage.saw("a new voter takes the place of an old one");
        }
        if self.voters != voters {
            world.say(|| format!("members: {:?}", world.journal.newest_members().voters));
        }
        self.voters = voters;
        Ok(())
    }
}
