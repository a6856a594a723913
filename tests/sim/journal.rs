//! The committed log as the world saw it, and a copy of the state that applies it once: what every node must agree
//! with, and what every client was told must agree with.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use holdfast::consensus::raft::applier::apply_one;
use holdfast::consensus::raft::replica::begin_group;
use holdfast::machine::apply::BatchOutcome;
use holdfast::machine::entry::Item;
use holdfast::machine::entry::decode_batch_head;
use holdfast::machine::entry::decode_item;
use holdfast::machine::entry::decode_stamps;
use holdfast::resp::Reply;
use holdfast::state::Membership;
use holdfast::state::State;
use holdfast::types::NodeId;
use raft::eraftpb::Entry;
use raft::eraftpb::EntryType;

use crate::clients::Known;
use crate::clients::Operation;
use crate::coverage::Coverage;
use crate::model::MARKER;
use crate::model::Model;
use crate::model::Verdict;
use crate::replay::Replay;

/// Digests are taken at every so many indices.
const DIGEST_EVERY: u64 = 64;
/// The index that the group begins with.
const FIRST: u64 = 1;

/// An entry as it was applied first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    pub term: u64,
    pub hash: u64,
}

/// What was committed.
pub struct Journal {
    records: Vec<Record>,
    /// In which term each of them was committed at the latest.
    committed_in: Vec<u64>,
    pub state: State,
    /// Applies the log to the model, and holds what clients were told against it.
    pub replay: Replay,
    /// The members from each index on.
    members: Vec<(u64, Membership)>,
    digests: BTreeMap<u64, u128>,
    /// Which replies each operation had when it was executed.
    pub executed: BTreeMap<u64, (u64, Vec<Reply>)>,
    by_index: BTreeMap<u64, Vec<u64>>,
    /// The highest index that somebody outside was shown.
    pub told: u64,
    /// Replicas that lost what they wrote.
    pub lost: BTreeSet<u64>,
}

/// A number that tells entries apart.
pub fn hash_of(entry: &Entry) -> u64 {
    let mut hash = 0xCBF2_9CE4_8422_2325_u64 ^ entry.entry_type as u64;
    for byte in entry.data.iter().chain(&entry.context) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
    }
    hash
}

impl Journal {
    pub fn new(nodes: &[NodeId]) -> Journal {
        let mut state = State::new(0);
        begin_group(&mut state, NodeId(1), 1, Some(nodes));
        let members = vec![(FIRST, state.membership().clone())];
        Journal {
            records: Vec::new(),
            committed_in: Vec::new(),
            state,
            replay: Replay::new(*State::new(0).settings()),
            members,
            digests: BTreeMap::new(),
            executed: BTreeMap::new(),
            by_index: BTreeMap::new(),
            told: 0,
            lost: BTreeSet::new(),
        }
    }

    /// True when a digest is kept of this index.
    pub fn has_digest(index: u64) -> bool {
        index.is_multiple_of(DIGEST_EVERY)
    }

    pub fn digest(&self, index: u64) -> Option<u128> {
        self.digests.get(&index).copied()
    }

    pub fn record(&self, index: u64) -> Option<Record> {
        self.records.get(usize::try_from(index.checked_sub(FIRST + 1)?).ok()?).copied()
    }

    /// The last index that was applied anywhere.
    pub fn last(&self) -> u64 {
        FIRST + self.records.len() as u64
    }

    pub fn newest_members(&self) -> &Membership {
        &self.members[self.members.len() - 1].1
    }

    /// The index of the last change of the members.
    pub fn members_since(&self) -> u64 {
        self.members[self.members.len() - 1].0
    }

    /// The members that were in force lately, the newest first.
    pub fn members(&self) -> impl Iterator<Item = &Membership> {
        self.members.iter().rev().map(|(_, members)| members)
    }

    pub fn lost_replica(&mut self, replica: Option<u64>) {
        self.lost.extend(replica);
    }

    /// The term in which an entry was committed, or a later one.
    pub fn committed_in(&self, index: u64) -> Option<u64> {
        self.committed_in.get(usize::try_from(index.checked_sub(FIRST + 1)?).ok()?).copied()
    }

    /// A node applies an entry, in a term that it knows of. True when it is the first to do so.
    ///
    /// # Errors
    /// When it is not the next one, or not what another node applied there.
    pub fn take(
        &mut self,
        entry: &Entry,
        change: Option<&Membership>,
        (now, in_term): (u64, u64),
        operations: &mut [Operation],
        coverage: &mut Coverage,
    ) -> Result<bool, String> {
        let record = Record { term: entry.term, hash: hash_of(entry) };
        if let Some(known) = self.record(entry.index) {
            if known != record {
                return Err(format!("{record:?} is applied at {}, another applied {known:?}", entry.index));
            }
            return Ok(false);
        }
        if entry.index != self.last() + 1 {
            return Err(format!("{} is applied, and nobody applied what is before it", entry.index));
        }
        self.records.push(record);
        self.committed_in.push(in_term);
        let applied = apply_one(&mut self.state, entry, change);
        if let Some(members) = change {
            if !members.voters_outgoing.is_empty() {
                coverage.saw("a joint configuration");
            }
            self.members.push((entry.index, self.state.membership().clone()));
        }
        self.ask_model(entry, &applied.outcomes)?;
        self.note_operations(entry, applied.outcomes, now, operations, coverage)?;
        if Journal::has_digest(entry.index) {
            self.digests.insert(entry.index, self.state.digest());
        }
        Ok(true)
    }

    /// The model applies it too, and must come to the same.
    fn ask_model(&mut self, entry: &Entry, outcomes: &[BatchOutcome]) -> Result<(), String> {
        let is_change = entry.get_entry_type() != EntryType::EntryNormal;
        let results = self.replay.commit(entry.index, if is_change { &[] } else { &entry.data })?;
        let expected = results.iter().map(|result| &result.verdict);
        let is_same = |(verdict, outcome): (&Verdict, &BatchOutcome)| match (verdict, outcome) {
            (Verdict::Executed(expected), BatchOutcome::Done(replies)) => expected == replies,
            (Verdict::Repeated, BatchOutcome::Repeated(_)) => true,
            (Verdict::Replayed, BatchOutcome::Replayed) => true,
            (Verdict::Gap, BatchOutcome::Gap) => true,
            (Verdict::Ended, BatchOutcome::Ended) => true,
            _ => false,
        };
        if results.len() != outcomes.len() || !expected.zip(outcomes).all(is_same) {
            return Err(format!(
                "entry {}: the model expects {results:?}, and it is {outcomes:?}",
                entry.index
            ));
        }
        Ok(())
    }

    /// The operations that were executed at an index.
    pub fn executed_at(&self, index: u64) -> Vec<u64> {
        self.by_index.get(&index).cloned().unwrap_or_default()
    }

    /// What the model holds.
    pub fn model(&self) -> &Model {
        self.replay.model()
    }

    /// Which operations the entry holds, and what came of them.
    fn note_operations(
        &mut self,
        entry: &Entry,
        outcomes: Vec<BatchOutcome>,
        now: u64,
        operations: &mut [Operation],
        coverage: &mut Coverage,
    ) -> Result<(), String> {
        let ids =
            if entry.get_entry_type() == EntryType::EntryNormal { ids_of(&entry.data) } else { Vec::new() };
        for (id, outcome) in ids.into_iter().zip(outcomes) {
            let Some(id) = id else { continue };
            let index = entry.index;
            match outcome {
                BatchOutcome::Done(replies) => {
                    let operation = &mut operations[id as usize];
                    if let Some((earlier, _)) = self.executed.insert(id, (index, replies)) {
                        return Err(format!("operation {id} is executed at {earlier} and again at {index}"));
                    }
                    if operation.known == Known::NotDone {
                        return Err(format!(
                            "operation {id} is executed at {index}, and its client was told no"
                        ));
                    }
                    if index <= operation.told {
                        let told = operation.told;
                        return Err(format!(
                            "operation {id} is executed at {index}, {told} was known before"
                        ));
                    }
                    if now < operation.invoked {
                        return Err(format!("operation {id} is executed before it was asked for"));
                    }
                    (operation.index, operation.executed) = (Some(index), Some(now));
                    self.by_index.entry(index).or_default().push(id);
                }
                BatchOutcome::Repeated(_) | BatchOutcome::Replayed => {
                    coverage.saw("a batch comes again and is not executed again");
                }
                BatchOutcome::Gap => coverage.saw("a batch comes before one that it must follow"),
                BatchOutcome::Ended => coverage.saw("a batch of a session that ended"),
            }
        }
        Ok(())
    }
}

/// The number of the operation that each batch of an entry carries.
fn ids_of(data: &[u8]) -> Vec<Option<u64>> {
    let mut ids = Vec::new();
    let Ok((_, mut reader)) = decode_stamps(data) else { return ids };
    while let Ok(Some((_, count, _))) = decode_batch_head(&mut reader) {
        let mut id = None;
        for at in 0..count {
            let Ok(item) = decode_item(&mut reader) else { return ids };
            if at == 0
                && let Item::Command { words, .. } = &item
                && let [b"EXISTS", marker] = words[..]
            {
                id = marker
                    .strip_prefix(MARKER)
                    .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
            }
        }
        ids.push(id);
    }
    ids
}
