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
use holdfast::state::locks::Lock;
use holdfast::state::locks::lock_at;
use holdfast::state::notices::ClaimEnd;
use holdfast::state::notices::Notice;
use holdfast::state::queues::Delivered;
use holdfast::types::NodeId;
use raft::eraftpb::Entry;
use raft::eraftpb::EntryType;

use crate::clients::Known;
use crate::clients::Operation;
use crate::comparison::confirmed;
use crate::comparison::end_of;
use crate::comparison::hand_over;
use crate::comparison::pop_wait;
use crate::coverage::Coverage;
use crate::model::End;
use crate::model::Ended;
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
    /// The last entry holds a named transaction that came again, so its replies are those of an earlier one.
    is_answered_again: bool,
    /// The highest index that somebody outside was shown.
    pub told: u64,
    /// Whose waits the last entry ended.
    pub ended: Vec<Ended>,
    /// What was granted to those who waited: by claim.
    pub granted: BTreeMap<u64, Ended>,
    /// What was delivered to those who waited: by claim.
    pub delivered: BTreeMap<u64, Ended>,
    /// The claims that were confirmed.
    pub confirmed: BTreeSet<u64>,
    /// The term in which each wait for messages began.
    began: BTreeMap<u64, u64>,
    /// What the last entry handed out, as its replies and notices tell it: message and delivery.
    pub handed_out: Vec<(String, u64)>,
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
            is_answered_again: false,
            told: 0,
            ended: Vec::new(),
            granted: BTreeMap::new(),
            delivered: BTreeMap::new(),
            confirmed: BTreeSet::new(),
            began: BTreeMap::new(),
            handed_out: Vec::new(),
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
        let applied = apply_one(&mut self.state, entry, change, |_, _| true);
        if let Some(members) = change {
            if !members.voters_outgoing.is_empty() {
                coverage.saw("a joint configuration");
            }
            self.members.push((entry.index, self.state.membership().clone()));
        }
        self.ask_model(entry, &applied.outcomes, coverage)?;
        self.note_hand_outs(&applied.outcomes, &applied.notices);
        self.compare_waits(entry, &applied.notices, coverage)?;
        self.note_operations(entry, applied.outcomes, now, operations, coverage)?;
        if Journal::has_digest(entry.index) {
            self.digests.insert(entry.index, self.state.digest());
        }
        Ok(true)
    }

    /// The model applies it too, and must come to the same.
    fn ask_model(
        &mut self,
        entry: &Entry,
        outcomes: &[BatchOutcome],
        coverage: &mut Coverage,
    ) -> Result<(), String> {
        let before = self.model().tally();
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
        self.is_answered_again = self.model().tally().answered_again != before.answered_again;
        if results.len() != outcomes.len() || !expected.zip(outcomes).all(is_same) {
            return Err(format!(
                "entry {}: the model expects {results:?}, and it is {outcomes:?}",
                entry.index
            ));
        }
        let after = self.model().tally();
        for (what, before, after) in [
            ("an upgrade", before.upgrades, after.upgrades),
            ("a deadlock is found", before.deadlocks, after.deadlocks),
            ("a fenced write is refused", before.stale_tokens, after.stale_tokens),
            ("an atomic transaction is rolled back", before.rollbacks, after.rollbacks),
            ("a named transaction is answered again", before.answered_again, after.answered_again),
            ("waits of a node's earlier life end", before.lives_ended, after.lives_ended),
            ("a grant that nobody heard of is taken back", before.taken_back, after.taken_back),
            ("a message dies", before.died, after.died),
            ("a dead message goes to its dead letter queue", before.buried, after.buried),
            ("dead messages are redriven", before.redriven, after.redriven),
            ("a queue is gone when nothing is in it", before.rested, after.rested),
            ("a push is a duplicate", before.duplicates, after.duplicates),
            ("a message's lease is extended", before.extended, after.extended),
            ("a message is acknowledged again", before.acked_again, after.acked_again),
            ("a delivery is returned since its client is gone", before.given_back, after.given_back),
            ("a wait is joined", before.joined, after.joined),
            ("a hand-over goes back", before.handed_back, after.handed_back),
        ] {
            if before != after {
                coverage.saw(what);
            }
        }
        Ok(())
    }

    /// The same waits end in the same way and order, and the same are left.
    fn compare_waits(
        &mut self,
        entry: &Entry,
        notices: &[Notice],
        coverage: &mut Coverage,
    ) -> Result<(), String> {
        let index = entry.index;
        for notice in notices {
            if let Notice::ClaimBegan { claim, .. } = notice {
                self.began.insert(claim.0, entry.term);
            }
        }
        let ended: Vec<(u64, u64, u64, End)> = notices.iter().filter_map(end_of).collect();
        let model = self.replay.model();
        let wanted = model.ended().iter();
        if !wanted.map(|it| (it.claim, it.node, it.life, it.end.clone())).eq(ended.iter().cloned()) {
            return Err(format!("entry {index} ends the waits {ended:?}, the model {:?}", model.ended()));
        }
        let left = self.state.waits().iter().map(|(id, wait)| (id.0, wait.askers.len()));
        if !left.eq(model.waits().iter().map(|(id, wait)| (*id, wait.claims.len()))) {
            return Err(format!("after {index} the model has waiting {:?}", model.waits()));
        }
        if !self.state.pop_waits().iter().map(pop_wait).eq(model.pop_waits().iter().cloned()) {
            return Err(format!("after {index} the model has waiting {:?}", model.pop_waits()));
        }
        let handed: BTreeMap<u64, _> = self.state.handed().iter().map(|(id, it)| hand_over(id, it)).collect();
        if handed != *model.handed() {
            let model = model.handed();
            return Err(format!("after {index} {handed:?} is handed over, the model has {model:?}"));
        }
        let told: Vec<(u64, u64)> = notices.iter().filter_map(confirmed).collect();
        if told != model.confirmed() {
            return Err(format!("entry {index} confirms {told:?}, the model {:?}", model.confirmed()));
        }
        if !told.is_empty() {
            coverage.saw("a hand-over is confirmed");
        }
        self.confirmed.extend(told.into_iter().map(|(claim, _)| claim));
        self.ended = model.ended().to_vec();
        for ended in &self.ended {
            match &ended.end {
                End::Granted { grants, .. } => {
                    coverage.saw("a wait is granted");
                    if grants.len() > 1 {
                        coverage.saw("a request for several locks waits and gets them");
                    }
                    self.granted.insert(ended.claim, ended.clone());
                }
                End::Delivered { .. } => {
                    coverage.saw("a QPOP waits and is served");
                    if self.began.get(&ended.claim).is_some_and(|term| *term != entry.term) {
                        coverage
                            .saw("a QPOP is served by another leader than the one it began to wait under");
                    }
                    self.delivered.insert(ended.claim, ended.clone());
                }
                End::Over if ended.is_time_out => coverage.saw("a wait times out"),
                End::Over => coverage.saw("a wait is cancelled"),
                End::Failed(_) => {}
            }
        }
        Ok(())
    }

    /// Which messages the entry handed out, by replies and by notices.
    fn note_hand_outs(&mut self, outcomes: &[BatchOutcome], notices: &[Notice]) {
        self.handed_out.clear();
        for outcome in outcomes {
            if let BatchOutcome::Done(replies) = outcome
                && !self.is_answered_again
            {
                replies.iter().for_each(|reply| find_receipts(reply, &mut self.handed_out));
            }
        }
        for notice in notices {
            if let Notice::ClaimHanded { end: ClaimEnd::Delivered(Delivered { messages, .. }), .. }
            | Notice::ClaimEnded { end: ClaimEnd::Delivered(Delivered { messages, .. }), .. } = notice
            {
                let receipts = messages.iter().map(|message| message.receipt);
                let receipts = receipts.map(|receipt| (receipt.id.to_string(), u64::from(receipt.delivery)));
                self.handed_out.extend(receipts);
            }
        }
    }

    /// The locks that the last entry changed.
    pub fn locks_touched(&self) -> BTreeSet<Vec<u8>> {
        let touched = self.model().touched().iter();
        touched.filter(|(_, key)| key.first() == Some(&b'l')).map(|(_, key)| key.clone()).collect()
    }

    /// A lock, as of the last entry.
    pub fn lock(&self, key: &[u8]) -> Option<&Lock> {
        lock_at(&self.state, 0, key).flatten()
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

/// Replies of QPOP: queue, receipt, payload and attempt.
fn find_receipts(reply: &Reply, into: &mut Vec<(String, u64)>) {
    let Reply::Array(items) = reply else { return };
    if let [Reply::Bulk(_), Reply::Bulk(receipt), Reply::Bulk(_), Reply::Integer(_), ..] = &items[..]
        && let Some((id, delivery)) = std::str::from_utf8(receipt).ok().and_then(|text| text.split_once(':'))
        && let Ok(delivery) = delivery.parse()
    {
        return into.push((id.to_owned(), delivery));
    }
    items.iter().for_each(|item| find_receipts(item, into));
}

/// The number of the operation that each batch of an entry carries.
fn ids_of(data: &[u8]) -> Vec<Option<u64>> {
    let mut ids = Vec::new();
    let Ok((_, mut reader)) = decode_stamps(data) else { return ids };
    while let Ok(Some(head)) = decode_batch_head(&mut reader) {
        let mut id = None;
        for at in 0..head.count {
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
