//! Replays the committed log through the model and holds what clients saw against it.
//!
//! ```text
//!  invoke(id) ──────────────► answer(id): replies, "executed", "not done", unknown
//!      │   commit(index, entry) ──► the model's replies of every batch, by operation id
//!      │   read(id, index, words) ─► the model's reply at that index
//! ```
//! What must hold:
//! - replies are the model's; so is what a read returns, of the state at the index it was read at
//! - an operation is executed once at most, an acknowledged one before its answer, one that was "not done" never,
//!   and none that nobody invoked
//! - indices respect real time: an operation invoked after another had returned comes after it in the log, and a read
//!   not before it
//!
//! Entries are fed as they are committed, before the answers they cause; operations in order of time. A history that
//! was recorded can be fed after the fact: first all entries, then what the clients saw.

#![allow(dead_code, reason = "each test binary asks its own questions")]

use std::collections::BTreeMap;

use holdfast::resp::Reply;
use holdfast::state::Settings;

use super::model::BatchResult;
use super::model::Model;
use super::model::Seen;
use super::model::Verdict;
use super::model::View;
use super::model::keys_of;
use super::model::read;

/// Names an operation of a client; never used twice.
pub type OperationId = u64;

/// What a client was told about a write.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// It was executed, with these replies.
    Replies(Vec<Reply>),
    /// It was executed, but what it replied is not known any more.
    Executed,
    /// It was not executed and never will be.
    NotDone,
    /// Nothing; it may still be executed.
    Unknown,
}

/// What a client got by reading at a node.
#[derive(Debug, Clone)]
pub struct ReadAnswer<'a> {
    /// The last entry in the state that was read.
    pub index: u64,
    /// The cluster time, in milliseconds, that the node took it to be; 0 when no command asks for it.
    pub now: u64,
    pub db: u8,
    pub words: &'a [&'a [u8]],
    pub reply: &'a Reply,
}

/// How much was checked: a run that checked nothing proves nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Entries applied.
    pub entries: u64,
    /// Batches of clients that were executed.
    pub executed: u64,
    /// Batches that had been executed before, and were not again.
    pub repeated: u64,
    /// Batches that were not executed, since others were missing before them or their session was over.
    pub refused_by_session: u64,
    /// Writes whose replies were compared.
    pub replies: u64,
    /// Writes whose client only learnt that they were executed.
    pub executed_without_replies: u64,
    /// Writes that were not done.
    pub not_done: u64,
    /// Writes whose outcome the client does not know.
    pub unknown: u64,
    /// Of these, those that were executed.
    pub unknown_executed: u64,
    /// Reads that were compared.
    pub reads: u64,
    /// Of these, those of a state older than the newest.
    pub reads_behind: u64,
}

/// Where an operation stands with its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Nobody invoked it yet.
    Not,
    /// All that had returned before it was invoked had an index up to `floor`.
    Waiting {
        floor: u64,
    },
    Answered,
    Refused,
    Unknown,
}

#[derive(Debug, Clone)]
struct Operation {
    asked: Asked,
    /// The index at which it was executed, or read.
    index: Option<u64>,
    /// Until the client was answered.
    replies: Option<Vec<Reply>>,
}

/// A key's content from an index on; `None`: it is absent.
type Version = (u64, Option<Seen>);

/// What reading commands could see at every index since one.
#[derive(Debug, Clone, Default)]
struct Past {
    databases: BTreeMap<u8, BTreeMap<Vec<u8>, Vec<Version>>>,
    /// How far key time was ahead, from an index on.
    ahead: Vec<(u64, u64)>,
    /// Nothing before this index is asked for any more.
    since: u64,
}

impl Past {
    fn note(&mut self, model: &Model) {
        let index = model.index();
        for (db, key) in model.touched() {
            let keys = self.databases.entry(*db).or_default();
            if !keys.contains_key(key) {
                keys.insert(key.clone(), Vec::new());
            }
            let Some(versions) = keys.get_mut(key) else { continue };
            versions.pop_if(|(at, _)| *at == index);
            versions.push((index, model.seen(*db, key)));
            let unused = versions.partition_point(|(at, _)| *at <= self.since).saturating_sub(1);
            // One by one it would move the rest for every version.
            if unused > versions.len() / 2 {
                versions.drain(..unused);
            }
        }
        if self.ahead.last().map_or(0, |(_, ahead)| *ahead) != model.ahead() {
            self.ahead.push((index, model.ahead()));
        }
    }
}

/// A state of the past.
struct At<'a> {
    past: &'a Past,
    index: u64,
    now: u64,
}

impl View for At<'_> {
    fn look(&self, db: u8, key: &[u8]) -> Option<Seen> {
        let versions = self.past.databases.get(&db)?.get(key)?;
        let after = versions.partition_point(|(at, _)| *at <= self.index);
        versions[after.checked_sub(1)?].1.clone()
    }

    fn key_now(&self) -> u64 {
        let after = self.past.ahead.partition_point(|(at, _)| *at <= self.index);
        let ahead = after.checked_sub(1).map_or(0, |last| self.past.ahead[last].1);
        self.now.saturating_add(ahead)
    }
}

/// The check, fed step by step. Every error is a violation with its story; after one the replay is of no more use.
#[derive(Debug, Clone)]
pub struct Replay {
    model: Model,
    past: Past,
    operations: BTreeMap<OperationId, Operation>,
    /// The highest index of operations that returned before `latest`, and of those that returned then.
    before: u64,
    then: u64,
    latest: u64,
    counts: Counts,
}

impl Replay {
    /// A log of which nothing is known yet; with `databases` 0 its first LEADER-START brings the settings.
    pub fn new(settings: Settings) -> Replay {
        Replay {
            model: Model::new(settings),
            past: Past::default(),
            operations: BTreeMap::new(),
            before: 0,
            then: 0,
            latest: 0,
            counts: Counts::default(),
        }
    }

    /// The model, as of the last entry.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// How much was checked so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The next committed entry; empty bytes for one that changes the members. Gives what the model says of its
    /// batches.
    pub fn commit(&mut self, index: u64, entry: &[u8]) -> Result<Vec<BatchResult>, String> {
        let results = self.model.apply(index, entry)?;
        self.past.note(&self.model);
        self.counts.entries += 1;
        for result in &results {
            let Some(id) = result.operation() else { continue };
            match &result.verdict {
                Verdict::Executed(replies) => self.executed(id, index, replies)?,
                Verdict::Repeated | Verdict::Replayed => self.counts.repeated += 1,
                Verdict::Gap | Verdict::Ended => self.counts.refused_by_session += 1,
            }
        }
        Ok(results)
    }

    fn executed(&mut self, id: OperationId, index: u64, replies: &[Reply]) -> Result<(), String> {
        let fresh = Operation { asked: Asked::Not, index: None, replies: None };
        let operation = self.operations.entry(id).or_insert(fresh);
        if let Some(before) = operation.index {
            return Err(format!("operation {id} was executed at {before} and again at {index}"));
        }
        match operation.asked {
            Asked::Not => {}
            Asked::Waiting { floor } if index > floor => {}
            Asked::Waiting { floor } => return Err(too_early(id, index, floor)),
            Asked::Refused => {
                return Err(format!("operation {id} was not done, and was executed at {index}"));
            }
            Asked::Answered => return Err(format!("operation {id} is a read, and was executed at {index}")),
            Asked::Unknown => self.counts.unknown_executed += 1,
        }
        operation.index = Some(index);
        // A client that gave up will not compare them.
        operation.replies = (operation.asked != Asked::Unknown).then(|| replies.to_vec());
        self.counts.executed += 1;
        Ok(())
    }

    /// A client sends an operation, a write or a read, at this time (in any unit, never going back).
    pub fn invoke(&mut self, id: OperationId, at: u64) -> Result<(), String> {
        self.pass_time(at)?;
        let floor = self.before;
        let fresh = Operation { asked: Asked::Not, index: None, replies: None };
        let operation = self.operations.entry(id).or_insert(fresh);
        if operation.asked != Asked::Not {
            return Err(format!("operation {id} was invoked twice"));
        }
        operation.asked = Asked::Waiting { floor };
        match operation.index {
            Some(index) if index <= floor => Err(too_early(id, index, floor)),
            Some(_) | None => Ok(()),
        }
    }

    /// A client that wrote is answered, or gives up, at this time.
    pub fn answer(&mut self, id: OperationId, at: u64, answer: &Answer) -> Result<(), String> {
        self.pass_time(at)?;
        let operation = self.waiting(id)?;
        let replies = operation.replies.take();
        let index = operation.index;
        let executed_at =
            || index.ok_or(format!("operation {id} was acknowledged, but is not in the log: {answer:?}"));
        match answer {
            Answer::Replies(seen) => {
                let index = executed_at()?;
                operation.asked = Asked::Answered;
                if replies.as_ref() != Some(seen) {
                    return Err(format!("operation {id} at {index} replied {seen:?}, the model {replies:?}"));
                }
                self.counts.replies += 1;
                self.then = self.then.max(index);
            }
            Answer::Executed => {
                let index = executed_at()?;
                operation.asked = Asked::Answered;
                self.counts.executed_without_replies += 1;
                self.then = self.then.max(index);
            }
            Answer::NotDone => {
                if let Some(index) = index {
                    return Err(format!("operation {id} was not done, but was executed at {index}"));
                }
                operation.asked = Asked::Refused;
                self.counts.not_done += 1;
            }
            Answer::Unknown => {
                operation.asked = Asked::Unknown;
                self.counts.unknown += 1;
                self.counts.unknown_executed += u64::from(index.is_some());
            }
        }
        Ok(())
    }

    /// A client that read is answered at this time. A read without an answer is just left.
    pub fn read(&mut self, id: OperationId, at: u64, answer: &ReadAnswer<'_>) -> Result<(), String> {
        self.pass_time(at)?;
        let operation = self.waiting(id)?;
        let index = answer.index;
        if let Some(index) = operation.index {
            return Err(format!("operation {id} is a read, and was executed at {index}"));
        }
        let Asked::Waiting { floor } = operation.asked else {
            return Err(format!("operation {id} did not wait"));
        };
        operation.asked = Asked::Answered;
        let words: Vec<String> = answer.words.iter().map(|word| word.escape_ascii().to_string()).collect();
        let told = format!("operation {id}, {words:?} at {index},");
        if index < floor {
            return Err(format!(
                "{told} read what was there before {floor}, which others had seen when it began"
            ));
        }
        if index > self.model.index() {
            return Err(format!("{told} read more than is committed, which is up to {}", self.model.index()));
        }
        if index < self.past.since {
            return Err(format!("{told} is before {}, and that was to be forgotten", self.past.since));
        }
        let view = At { past: &self.past, index, now: answer.now };
        for key in keys_of(answer.words) {
            if let Some(Seen::String(_, Some(deadline))) = view.look(answer.db, key)
                && deadline <= view.key_now()
            {
                return Err(format!(
                    "{told} read a key that had ended at {deadline}, in key time {}",
                    view.key_now()
                ));
            }
        }
        let Some(wanted) = read(&view, answer.db, answer.words) else {
            return Err(format!("{told} is no read that the model knows"));
        };
        if wanted != *answer.reply {
            return Err(format!("{told} replied {:?}, the model {wanted:?}", answer.reply));
        }
        self.counts.reads += 1;
        self.counts.reads_behind += u64::from(index < self.model.index());
        self.then = self.then.max(index);
        Ok(())
    }

    /// No read of a state before this index will be answered any more: what only such reads could see is forgotten.
    pub fn forget_before(&mut self, index: u64) {
        self.past.since = self.past.since.max(index);
    }

    /// At the end: no operation was executed that nobody invoked.
    pub fn finish(&self) -> Result<Counts, String> {
        let invented = self.operations.iter().find(|(_, operation)| operation.asked == Asked::Not);
        match invented {
            Some((id, operation)) => {
                Err(format!("operation {id} was executed at {:?}, and nobody invoked it", operation.index))
            }
            None => Ok(self.counts),
        }
    }

    /// Where an operation that was invoked was executed; `None`: not, as far as the log is known.
    pub fn index_of(&self, id: OperationId) -> Option<u64> {
        self.operations.get(&id)?.index
    }

    fn waiting(&mut self, id: OperationId) -> Result<&mut Operation, String> {
        let operation = self.operations.get_mut(&id);
        let is_waiting = |operation: &&mut Operation| matches!(operation.asked, Asked::Waiting { .. });
        operation.filter(is_waiting).ok_or(format!("operation {id} was answered, but does not wait for it"))
    }

    /// What returned before this moment counts as before it from now on.
    fn pass_time(&mut self, at: u64) -> Result<(), String> {
        if at < self.latest {
            return Err(format!("time went back from {} to {at}", self.latest));
        }
        if at > self.latest {
            self.latest = at;
            self.before = self.before.max(self.then);
        }
        Ok(())
    }
}

fn too_early(id: OperationId, index: u64, floor: u64) -> String {
    format!("operation {id} was executed at {index}, but was invoked after {floor} had been answered")
}
