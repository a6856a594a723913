//! One replica of one group: raft-rs wrapped into a pure state machine.
//!
//! No clock, no chance, no threads, no I/O. [`GroupCore::step`] takes one input, [`GroupCore::drain`]
//! collects what is to be done; both only give outputs. `step` many inputs and `drain` once: that is where
//! batching comes from.
//!
//! The order of a Ready's parts, which raft-rs demands (raft_rs raw_node.rs, and TiKV does the same):
//!
//! ```text
//! ready()  ─► messages of a leader            may leave at once: it replicates while it syncs
//!          ─► persisted messages (acks, votes) wait until this Ready is durable
//!          ─► committed entries               to apply; they are durable here already
//!          ─► entries, hard state             readable through the cache before advance_append_async
//! must_sync     ─► Persist{token}, the messages wait under that token
//! not must_sync ─► the messages wait behind the youngest Persist, or leave when none is under way
//! Persisted(token) ─► messages up to it leave; on_persist_ready(everything before the next that waits)
//! ```

use std::collections::VecDeque;

use raft::Config;
use raft::RawNode;
use raft::StateRole;
use raft::eraftpb::Entry;
use raft::eraftpb::HardState;
use raft::eraftpb::Message;
use raft::eraftpb::MessageType;

use crate::consensus::raft::log_cache::LogCache;

/// How a group elects and how much it moves at a time.
#[derive(Debug, Clone, Copy)]
pub struct CoreOptions {
    /// This replica's id in the group: from 1, never used twice.
    pub replica: u64,
    /// Ticks without a leader before a replica stands for election (to twice as many).
    pub election_ticks: usize,
    /// Ticks between heartbeats; fewer than `election_ticks`.
    pub heartbeat_ticks: usize,
    /// Drives the choice of election timeouts, so that a run can be repeated exactly.
    pub seed: u64,
}

/// What can happen to a replica.
#[derive(Debug)]
pub enum Input {
    /// One tick of time has passed.
    Tick,
    /// A message from another replica.
    Message(Box<Message>),
    /// An entry's data, to be agreed on. Only a leader takes it.
    Propose(Vec<u8>),
    /// Everything up to this token is durable.
    Persisted(u64),
    /// Everything up to this index is applied.
    Applied(u64),
    /// A read barrier under this number, never used before.
    ReadIndex(u64),
    /// Stand for election now.
    Campaign,
    /// Forget entries up to this index, as far as they are applied.
    Compact(u64),
}

/// What is to be made durable before [`Input::Persisted`] comes with its token; tokens in order.
#[derive(Debug)]
pub struct Persist {
    pub token: u64,
    /// They replace whatever the log holds from the first one's index on.
    pub entries: Vec<Entry>,
    pub hard_state: Option<HardState>,
}

/// What is to be done.
#[derive(Debug)]
pub enum Output {
    /// Send these now.
    Send(Vec<Message>),
    /// Make this durable.
    Persist(Persist),
    /// Apply these, in order.
    Apply(Vec<Entry>),
    /// The proposal stands at this position; its fate is known when that index is applied.
    Proposed { index: u64, term: u64 },
    /// The proposal was not taken, and never will be.
    Dropped,
    /// The read barrier holds once `index` is applied.
    ReadReady { context: u64, index: u64 },
    /// Role, term or leader changed. Leader 0: unknown.
    Role { role: StateRole, term: u64, leader: u64 },
}

/// One replica of one group.
pub struct GroupCore {
    node: RawNode<LogCache>,
    seed: u64,
    /// Messages that wait for their Ready's token to become durable.
    waiting: VecDeque<(u64, Vec<Message>)>,
    last_number: u64,
}

impl GroupCore {
    /// A replica that starts with this log, of which everything up to `applied` is applied.
    ///
    /// # Errors
    /// When the log's parts do not fit each other (raft-rs checks them).
    pub fn new(options: &CoreOptions, log: LogCache, applied: u64) -> raft::Result<GroupCore> {
        let config = Config {
            id: options.replica,
            election_tick: options.election_ticks,
            heartbeat_tick: options.heartbeat_ticks,
            applied,
            check_quorum: true,
            pre_vote: true,
            max_inflight_msgs: 256,
            max_size_per_msg: 1 << 20,
            max_uncommitted_size: 64 << 20,
            max_committed_size_per_ready: 16 << 20,
            // true commits without a quorum (raft-rs 0.7.0, `try_batching`): never.
            batch_append: false,
            skip_bcast_commit: false,
            ..Config::default()
        };
        assert!(!config.batch_append, "batch_append commits without a quorum");
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&config, log, &logger)?;
        let mut core = GroupCore { node, seed: options.seed, waiting: VecDeque::new(), last_number: 0 };
        core.fix_timeout();
        Ok(core)
    }

    /// raft-rs draws the timeout from the thread's generator; replace it by a function of what is known.
    fn fix_timeout(&mut self) {
        let raft = &mut self.node.raft;
        let base = raft.election_timeout() as u64;
        let mixed = (self.seed
            ^ raft.id.wrapping_mul(0x9E37_79B9_7F4A_7C15)
            ^ raft.term.wrapping_mul(0xD1B5_4A32_D192_ED03)
            ^ ((raft.state as u64) << 7))
            .wrapping_mul(0xBF58_476D_1CE4_E5B9);
        raft.set_randomized_election_timeout((base + (mixed >> 33) % base) as usize);
    }

    /// True while this replica leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// True when this replica leads and has committed an entry of its own term.
    #[must_use]
    pub fn has_committed_in_term(&self) -> bool {
        self.is_leader() && self.node.raft.commit_to_current_term()
    }

    /// True when this replica is the only voter: nobody else can be elected or commit anything.
    #[must_use]
    pub fn is_only_voter(&self) -> bool {
        let voters = self.node.raft.prs().conf().to_conf_state();
        voters.voters == [self.node.raft.id] && voters.voters_outgoing.is_empty()
    }

    /// The current term.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.node.raft.term
    }

    /// The commit index.
    #[must_use]
    pub fn commit_index(&self) -> u64 {
        self.node.raft.raft_log.committed
    }

    /// The last index of the log, durable or not.
    #[must_use]
    pub fn last_index(&self) -> u64 {
        self.node.raft.raft_log.last_index()
    }

    /// What the log cache holds: entries and bytes.
    #[must_use]
    pub fn cached(&self) -> (usize, u64) {
        (self.node.store().len(), self.node.store().bytes())
    }

    /// Takes one input. [`GroupCore::drain`] tells what follows from it.
    pub fn step(&mut self, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Tick => {
                self.node.tick();
                self.fix_timeout();
            }
            Input::Message(message) => {
                if acceptable(&message) {
                    // Errors say that the message is stale or from a stranger: nothing to do.
                    let _ = self.node.step(*message);
                    self.fix_timeout();
                }
            }
            Input::Propose(data) => out.push(self.propose(data)),
            Input::Persisted(token) => self.on_persisted(token, out),
            Input::Applied(index) => self.node.advance_apply_to(index),
            Input::ReadIndex(context) => self.node.read_index(context.to_be_bytes().to_vec()),
            Input::Campaign => {
                // Refused only when there is nothing to stand for; the next tick tries again.
                let _ = self.node.campaign();
                self.fix_timeout();
            }
            Input::Compact(index) => {
                let applied = self.node.raft.raft_log.applied;
                self.node.mut_store().compact(index.min(applied));
            }
        }
    }

    /// A follower must not propose: raft-rs would forward it, and nobody would know its position.
    fn propose(&mut self, data: Vec<u8>) -> Output {
        if !self.is_leader() || self.node.propose(Vec::new(), data).is_err() {
            return Output::Dropped;
        }
        let raft = &self.node.raft;
        Output::Proposed { index: raft.raft_log.last_index(), term: raft.term }
    }

    fn on_persisted(&mut self, token: u64, out: &mut Vec<Output>) {
        while self.waiting.front().is_some_and(|(number, _)| *number <= token) {
            let (_, messages) = self.waiting.pop_front().expect("it was looked at just now");
            if !messages.is_empty() {
                out.push(Output::Send(messages));
            }
        }
        let durable = self.waiting.front().map_or(self.last_number, |(number, _)| number - 1);
        self.node.on_persist_ready(durable);
    }

    /// Collects everything that is to be done.
    pub fn drain(&mut self, out: &mut Vec<Output>) {
        while self.node.has_ready() {
            self.drain_one(out);
        }
    }

    fn drain_one(&mut self, out: &mut Vec<Output>) {
        let mut ready = self.node.ready();
        if let Some(soft) = ready.ss() {
            let (role, leader) = (soft.raft_state, soft.leader_id);
            out.push(Output::Role { role, term: self.node.raft.term, leader });
        }
        for state in ready.take_read_states() {
            if let Ok(context) = <[u8; 8]>::try_from(state.request_ctx.as_slice()) {
                out.push(Output::ReadReady { context: u64::from_be_bytes(context), index: state.index });
            }
        }
        let messages = ready.take_messages();
        if !messages.is_empty() {
            out.push(Output::Send(messages));
        }
        let committed = ready.take_committed_entries();
        let entries = ready.take_entries();
        let hard_state = ready.hs().cloned();
        let (must_sync, number) = (ready.must_sync(), ready.number());
        let persisted_messages = ready.take_persisted_messages();
        let store = self.node.mut_store();
        store.append(&entries);
        if let Some(hard_state) = &hard_state {
            store.set_hard_state(hard_state.clone());
        }
        self.node.advance_append_async(ready);
        self.last_number = number;
        if must_sync {
            self.waiting.push_back((number, persisted_messages));
            out.push(Output::Persist(Persist { token: number, entries, hard_state }));
        } else if let Some((_, waiting)) = self.waiting.back_mut() {
            // An acknowledgement must not overtake the sync of what it acknowledges.
            waiting.extend(persisted_messages);
        } else {
            self.node.on_persist_ready(number);
            if !persisted_messages.is_empty() {
                out.push(Output::Send(persisted_messages));
            }
        }
        if !committed.is_empty() {
            out.push(Output::Apply(committed));
        }
    }
}

/// True for a message that a peer may send at all; raft-rs panics on some that it may not.
fn acceptable(message: &Message) -> bool {
    let kind = message.get_msg_type();
    !raft::raw_node::is_local_msg(kind) && kind != MessageType::MsgPropose && message.from != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::eraftpb::ConfState;

    fn core(replica: u64, voters: &[u64]) -> GroupCore {
        let log =
            LogCache::new(HardState::default(), ConfState::from((voters.to_vec(), vec![])), 0, 0, Vec::new());
        GroupCore::new(&CoreOptions { replica, election_ticks: 10, heartbeat_ticks: 2, seed: 7 }, log, 0)
            .unwrap()
    }

    /// Persists at once, delivers at once, applies at once, until nothing is left to do.
    fn settle(cores: &mut [GroupCore]) -> Vec<(u64, u64)> {
        let mut applied = Vec::new();
        loop {
            let mut busy = false;
            for at in 0..cores.len() {
                let mut out = Vec::new();
                cores[at].drain(&mut out);
                busy |= !out.is_empty();
                for output in out {
                    settle_one(cores, at, output, &mut applied);
                }
            }
            if !busy {
                return applied;
            }
        }
    }

    fn settle_one(cores: &mut [GroupCore], at: usize, output: Output, applied: &mut Vec<(u64, u64)>) {
        let mut more = Vec::new();
        match output {
            Output::Send(messages) => {
                for message in messages {
                    let to = message.to as usize - 1;
                    cores[to].step(Input::Message(Box::new(message)), &mut Vec::new());
                }
            }
            Output::Persist(persist) => cores[at].step(Input::Persisted(persist.token), &mut more),
            Output::Apply(entries) => {
                let last = entries.last().unwrap();
                cores[at].step(Input::Applied(last.index), &mut Vec::new());
                applied.extend(entries.iter().map(|entry| (at as u64 + 1, entry.index)));
            }
            _ => {}
        }
        for output in more {
            settle_one(cores, at, output, applied);
        }
    }

    #[test]
    fn a_single_voter_leads_and_commits_by_itself() {
        let mut cores = [core(1, &[1])];
        cores[0].step(Input::Campaign, &mut Vec::new());
        settle(&mut cores);
        assert!(cores[0].is_leader() && cores[0].is_only_voter() && cores[0].has_committed_in_term());
        let mut out = Vec::new();
        cores[0].step(Input::Propose(b"x".to_vec()), &mut out);
        assert!(matches!(out[..], [Output::Proposed { index: 2, term: 1 }]));
        assert_eq!(settle(&mut cores), vec![(1, 2)]);
    }

    #[test]
    fn nothing_commits_before_it_is_durable() {
        let mut cores = [core(1, &[1])];
        cores[0].step(Input::Campaign, &mut Vec::new());
        settle(&mut cores);
        let mut out = Vec::new();
        cores[0].step(Input::Propose(b"x".to_vec()), &mut out);
        out.clear();
        cores[0].drain(&mut out);
        let [Output::Persist(persist)] = &out[..] else { panic!("only a Persist, got {out:?}") };
        let token = persist.token;
        out.clear();
        cores[0].drain(&mut out);
        assert!(out.is_empty(), "no Apply before the entry is durable");
        cores[0].step(Input::Persisted(token), &mut out);
        cores[0].drain(&mut out);
        assert!(out.iter().any(|output| matches!(output, Output::Apply(entries) if entries.len() == 1)));
    }

    #[test]
    fn a_follower_drops_a_proposal_instead_of_forwarding_it() {
        let mut follower = core(2, &[1, 2, 3]);
        let mut out = Vec::new();
        follower.step(Input::Propose(b"x".to_vec()), &mut out);
        assert!(matches!(out[..], [Output::Dropped]));
    }

    #[test]
    fn three_replicas_elect_one_and_all_apply() {
        let mut cores = [core(1, &[1, 2, 3]), core(2, &[1, 2, 3]), core(3, &[1, 2, 3])];
        cores[1].step(Input::Campaign, &mut Vec::new());
        settle(&mut cores);
        assert!(cores[1].is_leader() && !cores[1].is_only_voter());
        cores[1].step(Input::Propose(b"x".to_vec()), &mut Vec::new());
        let mut applied = settle(&mut cores);
        applied.sort_unstable();
        assert_eq!(applied, vec![(1, 2), (2, 2), (3, 2)]);
    }

    #[test]
    fn a_read_barrier_is_answered_with_an_index() {
        let mut cores = [core(1, &[1])];
        cores[0].step(Input::Campaign, &mut Vec::new());
        settle(&mut cores);
        let mut out = Vec::new();
        cores[0].step(Input::ReadIndex(42), &mut out);
        cores[0].drain(&mut out);
        assert!(matches!(out[..], [Output::ReadReady { context: 42, index: 1 }]));
    }
}
