//! What goes wrong, and when.

use bytes::Bytes;
use holdfast::consensus::raft::driver::Event as DriverEvent;
use holdfast::consensus::raft::hub::Arrived;
use holdfast::consensus::raft::hub::decode;
use holdfast::consensus::raft::members::AdminDone;
use holdfast::peer::Channel;
use holdfast::state::State;
use holdfast::types::NodeId;
use raft::eraftpb::Message;
use raft::eraftpb::MessageType;

use crate::node::Node;
use crate::plan::FAULTS;
use crate::plan::MILLI;
use crate::plan::SECOND;
use crate::world::Event;
use crate::world::NOBODY;
use crate::world::World;

/// What a rival of the leader says about its election is heard late.
#[derive(Debug, Clone, Copy)]
pub struct Snare {
    leader: usize,
    rival: usize,
    until: u64,
    release: Option<u64>,
}

impl World {
    /// One fault, drawn; and what is over ends.
    pub fn on_chaos(&mut self) {
        self.end_cuts();
        if self.is_calm {
            return;
        }
        let gap = self.chance.between(self.plan.chaos_gap / 4, self.plan.chaos_gap * 2);
        // So that cuts end in time.
        let look = gap.min(500 * MILLI);
        if look < gap && self.chance.is(1_000_000 - 1_000_000 * look / gap) {
            return self.push(look, NOBODY, Event::Chaos);
        }
        let kind = self.chance.weighted(&self.plan.weights);
        let n = self.victim();
        self.figures.faults += 1;
        let length = self.chance.between(50 * MILLI, 8 * SECOND);
        self.say(|| format!("fault: {} of node {} for {} ms", FAULTS[kind], n + 1, length / MILLI));
        match FAULTS[kind] {
            "crash" => self.crash_soon(n, length / 4),
            "crash of several" => self.crash_several(length / 4),
            "pause" => self.pause(n, length, false),
            "suspend" => self.pause(n, length, true),
            "partition" => self.partition(length),
            "one-way cut" => self.cut_one_way(n, length),
            "bridge" => self.bridge(length),
            "swizzle" => self.swizzle(length),
            "slow node" => {
                let factor = self.chance.between(5, 40);
                self.nodes[n].slow = (factor, self.now + length);
            }
            "slow disk" => {
                self.coverage.saw("a slow disk");
                self.nodes[n].slow_disk_until = self.now + length;
            }
            "failed sync" => self.nodes[n].fails_next_write = true,
            "full disk" => {
                self.coverage.saw("a full disk");
                self.nodes[n].disk.full_until = self.now + length;
            }
            "lost disk" => self.lose_one(n),
            "lost end of the log" => self.lose_end(n),
            "wall clock jump" => self.jump_wall(n),
            "late words" => self.delay_words(),
            _ => self.hand_over(n),
        }
        self.push(look, NOBODY, Event::Chaos);
    }

    /// A leader more often than not: most mistakes are there.
    fn victim(&mut self) -> usize {
        let any = self.chance.below(self.nodes.len() as u64) as usize;
        if self.chance.is(500_000) { self.leader().unwrap_or(any) } else { any }
    }

    /// A node that believes that it leads.
    pub fn leader(&self) -> Option<usize> {
        (0..self.nodes.len()).find(|n| {
            self.nodes[*n].running.as_ref().is_some_and(|running| running.driver.core().is_leader())
        })
    }

    fn crash_soon(&mut self, n: usize, rest: u64) {
        let at = self.moment();
        self.push(at, n, Event::Crash { rest });
    }

    fn crash_several(&mut self, rest: u64) {
        let together = self.chance.is(300_000);
        if together {
            self.coverage.saw("all nodes crash at once");
        }
        for n in 0..self.nodes.len() {
            if together || self.chance.is(500_000) {
                self.crash_soon(n, rest);
            }
        }
    }

    /// A process stands still; with `suspend` its machine does, and its monotonic clock too.
    fn pause(&mut self, n: usize, length: u64, suspend: bool) {
        if self.nodes[n].paused_until > self.now || self.nodes[n].running.is_none() {
            return;
        }
        if self.leader() == Some(n) {
            self.coverage.saw("a leader is paused");
        }
        let node = &mut self.nodes[n];
        node.paused_until = self.now + length;
        if suspend {
            self.coverage.saw("a machine is suspended");
            // Counted at once: nothing looks at the clock before the pause is over, but for what ends it.
            let real = self.nodes[n].rate.real(length);
            self.nodes[n].rate.suspended += real.min(length) * 9 / 10;
        }
    }

    fn block(&mut self, from: usize, to: usize, length: u64, holds: bool) {
        if from != to {
            let until = self.now + length;
            self.cut(from, to, until, holds);
        }
    }

    fn partition(&mut self, length: u64) {
        let count = self.nodes.len();
        let sides: Vec<bool> = match (self.chance.is(400_000), self.leader()) {
            (true, Some(leader)) => (0..count).map(|n| n == leader).collect(),
            _ => (0..count).map(|_| self.chance.is(500_000)).collect(),
        };
        if self
            .leader()
            .is_some_and(|leader| sides.iter().filter(|side| **side == sides[leader]).count() * 2 < count)
        {
            self.coverage.saw("a leader is cut off with a minority");
        }
        let holds = self.chance.is(300_000);
        for from in 0..count {
            for to in (0..count).filter(|to| sides[from] != sides[*to]) {
                self.block(from, to, length, holds);
            }
        }
    }

    fn cut_one_way(&mut self, n: usize, length: u64) {
        self.coverage.saw("a cut in one direction");
        let outwards = self.chance.is(500_000);
        for other in 0..self.nodes.len() {
            if self.chance.is(700_000) {
                let (from, to) = if outwards { (n, other) } else { (other, n) };
                self.block(from, to, length, false);
            }
        }
    }

    /// Two sides that see each other only through one node.
    fn bridge(&mut self, length: u64) {
        self.coverage.saw("two sides with a bridge");
        let count = self.nodes.len();
        let middle = self.chance.below(count as u64) as usize;
        let sides: Vec<bool> = (0..count).map(|n| (n + count - middle) % count > count / 2).collect();
        for from in (0..count).filter(|n| *n != middle) {
            for to in (0..count).filter(|to| *to != middle && sides[from] != sides[*to]) {
                self.block(from, to, length, false);
            }
        }
    }

    /// Nodes are clogged one after the other, and freed in another order.
    fn swizzle(&mut self, length: u64) {
        self.coverage.saw("swizzle");
        let count = self.nodes.len();
        for n in 0..count {
            if self.chance.is(600_000) {
                let begin = self.chance.below(length);
                let until = self.now + length + self.chance.below(length);
                for other in (0..count).filter(|other| *other != n) {
                    self.push(begin, n, Event::Cut { to: other, until, holds: true });
                    self.push(begin, other, Event::Cut { to: n, until, holds: true });
                }
            }
        }
    }

    /// True when this node may lose what it wrote: every other one has its disk and is a voter, and so is it.
    fn may_lose(&self, n: usize) -> bool {
        let members = self.journal.newest_members();
        let is_settled = members.learners.is_empty() && members.voters_outgoing.is_empty();
        let is_voter = |replica: Option<u64>| replica.is_some_and(|id| members.voters.contains(&id));
        let since = self.journal.members_since();
        let knows = |node: &Node| {
            // A crash must not make it forget that the change was committed.
            let is_durable = node.disk.log.lock().hard_state.commit >= since;
            is_durable
                && node.running.as_ref().is_some_and(|running| {
                    let state = running.state.read();
                    let known = state.membership();
                    known.voters == members.voters
                        && known.voters_outgoing.is_empty()
                        && known.learners.is_empty()
                })
        };
        // While one is replaced, or not all have heard that it was, a second loss would be one too many.
        is_settled
            && self.nodes.iter().all(|node| is_voter(node.disk.replica) && knows(node))
            && n < self.nodes.len()
    }

    fn lose_one(&mut self, n: usize) {
        if self.may_lose(n) {
            self.coverage.saw("a disk is lost");
            self.lose_disk(n);
            self.push(SECOND, n, Event::AskToJoin);
        }
    }

    /// The log's file is damaged: what was synced last is gone, although it was synced.
    fn lose_end(&mut self, n: usize) {
        let Some(mark) = self.nodes[n].disk.watermark else { return };
        if !self.may_lose(n) || self.nodes[n].running.is_none() {
            return;
        }
        self.crash(n);
        // What was synced after the watermark was written last nobody can miss: that much is not lost here.
        let is_seen = State::load(&self.nodes[n].disk.flushed).is_ok_and(|state| {
            let meta = state.meta();
            (meta.applied_term.0, meta.applied.0) < mark
        });
        let first_kept = mark.1.saturating_sub(self.chance.below(20)).max(self.nodes[n].disk.purged + 1);
        let end_then = self.nodes[n]
            .disk
            .log
            .lock()
            .entries
            .range(..first_kept)
            .next_back()
            .map(|(_, e)| (e.term, e.index));
        if !is_seen || first_kept > mark.1 || end_then.is_none_or(|end| end >= mark) {
            return self.push(100 * MILLI, n, Event::Boot);
        }
        let mut log = self.nodes[n].disk.log.lock();
        let before = log.entries.len();
        log.entries.retain(|index, _| *index < first_kept);
        let is_damaged = log.entries.len() < before;
        // What the log says of itself is as old as the log.
        log.hard_state.commit = log.hard_state.commit.min(log.end().map_or(0, |(_, index)| index));
        drop(log);
        if is_damaged {
            self.coverage.saw("a log loses its end");
            self.journal.lost_replica(self.nodes[n].disk.replica);
        }
        self.push(100 * MILLI, n, Event::Boot);
    }

    /// Two followers miss their leader, and one of them stands; then the other hears the leader again, and what was
    /// said about the election arrives late. raft-rs forgets with it whom it promised not to depose.
    fn delay_words(&mut self) {
        let Some(leader) = self.leader() else { return };
        let others: Vec<usize> = (0..self.nodes.len()).filter(|n| *n != leader).collect();
        let rival = self.chance.of(&others);
        let length = self.plan.election_ms * MILLI * 6;
        // Nobody writes, or the rival's log would not be good enough.
        let quiet = 300 * MILLI;
        self.quiet_until = self.now + quiet + 2 * self.plan.election_ms * MILLI;
        let until = self.now + length;
        for other in &others {
            self.push(quiet, leader, Event::Cut { to: *other, until, holds: false });
            self.push(quiet, *other, Event::Cut { to: leader, until, holds: false });
        }
        self.snare = Some(Snare { leader, rival, until: self.now + length, release: None });
    }

    /// How much later than others these words come.
    pub fn catch(&mut self, from: usize, to: usize, channel: Channel, payload: &Bytes) -> u64 {
        let Some(snare) = self.snare.filter(|snare| snare.until > self.now && !self.is_calm) else {
            return 0;
        };
        if channel != Channel::Control || from != snare.rival || to == snare.leader {
            return 0;
        }
        let is_vote = |message: &Message| message.get_msg_type() == MessageType::MsgRequestVote;
        let stands = match decode(self.nodes[from].id, channel, payload) {
            Ok(Arrived::Event(DriverEvent::Messages { messages, .. })) => messages.iter().any(is_vote),
            _ => false,
        };
        let release = match snare.release {
            None if !stands => return 0,
            Some(release) => release,
            None => {
                // The leader is heard again by all but its rival, after they stood too, or not.
                self.coverage.saw("words about an election come late");
                let timeout = self.plan.election_ms * MILLI;
                let heard = self.chance.below(timeout);
                for other in (0..self.nodes.len()).filter(|n| *n != snare.leader && *n != snare.rival) {
                    for way in [(snare.leader, other), (other, snare.leader)] {
                        if let Some(block) = self.blocked.get_mut(&way) {
                            block.until = self.now + heard;
                        }
                    }
                }
                self.push(heard, NOBODY, Event::EndCuts);
                // Then what was said arrives, and the leader is not heard for a moment.
                let beat = self.plan.heartbeat_ms * MILLI;
                let release = self.now + heard + self.chance.between(beat, 3 * beat);
                self.quiet_until = release;
                let until = release + self.chance.between(beat, 3 * beat);
                for other in (0..self.nodes.len()).filter(|n| *n != snare.leader && *n != snare.rival) {
                    let wait = release - self.now;
                    self.push(wait, snare.leader, Event::Cut { to: other, until, holds: false });
                    self.push(wait, other, Event::Cut { to: snare.leader, until, holds: false });
                }
                self.say(|| {
                    let ms = |at: u64| (at - self.now) / MILLI;
                    let (leader, rival) = (snare.leader + 1, snare.rival + 1);
                    format!(
                        "node {rival} stands; {leader} is heard in {} ms, its words in {} ms",
                        heard / MILLI,
                        ms(release)
                    )
                });
                self.snare = Some(Snare { release: Some(release), ..snare });
                release
            }
        };
        // The request itself comes last: who hears it first still keeps the promise.
        let later = if stands { self.chance.between(2 * MILLI, 8 * MILLI) } else { 0 };
        release.saturating_sub(self.now) + later
    }

    fn jump_wall(&mut self, n: usize) {
        self.coverage.saw("a wall clock jumps");
        let by = self.chance.of(&[60_000, 3_600_000, 86_400_000, 31_536_000_000]);
        let wall = &mut self.nodes[n].rate.wall_ms;
        *wall = if self.chance.is(500_000) { *wall + by } else { wall.saturating_sub(by) };
    }

    fn hand_over(&mut self, n: usize) {
        let Some(leader) = self.leader() else { return };
        let to = (n != leader).then(|| NodeId(n as u64 + 1));
        if let Some(running) = &self.nodes[leader].running {
            let done = AdminDone::new(|_| {});
            running.shared.events.post(DriverEvent::Transfer { to, done });
            self.coverage.saw("a hand-over");
        }
    }
}
