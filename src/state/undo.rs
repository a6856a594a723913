//! Takes back what the commands of a transaction did, when one of them fails (COMMANDS.md 2.1).
//!
//! While an undo is open, every change saves what it changes, once: a row as it was before the transaction, of a queue
//! the messages, and what stands beside the rows. [`State::roll_back`] puts it all back. What waits for the next flush
//! may list rows that did not change after all; they are written once more as they are.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;

use crate::state::DbIndex;
use crate::state::DeadlockRecord;
use crate::state::Form;
use crate::state::Object;
use crate::state::Row;
use crate::state::State;
use crate::state::changes::LISTED;
use crate::state::expiry::KeyName;
use crate::state::handed::HandOver;
use crate::state::locks::Lock;
use crate::state::locks::Wait;
use crate::state::locks::WaitId;
use crate::state::locks::releases::Release;
use crate::state::queues::Attributes;
use crate::state::queues::Counters;
use crate::state::queues::Dedup;
use crate::state::queues::MessageId;
use crate::state::queues::Queue;
use crate::state::queues::Record;
use crate::state::queues::finished::FinishedBefore;
use crate::state::queues::queue_row;
use crate::types::ClusterTime;
use crate::types::FencingToken;
use crate::types::LogIndex;
use crate::types::planted::Bug;
use crate::types::planted::is_planted;

/// A row as it was.
#[derive(Debug)]
struct SavedRow {
    changed: LogIndex,
    deadline: ClusterTime,
    content: Saved,
}

#[derive(Debug)]
enum Saved {
    String(Vec<u8>, Form),
    Lock(Box<Lock>),
    /// Its messages and IDs are saved one by one.
    Queue(Box<QueueHead>),
}

/// What a queue's row says of it.
#[derive(Debug)]
struct QueueHead {
    number: u64,
    counters: Counters,
    attributes: Attributes,
    remembered_until: ClusterTime,
}

/// What stood under a name.
#[derive(Debug)]
struct Before {
    row: Option<SavedRow>,
    /// A queue that was at rest there.
    at_rest: Option<Box<QueueHead>>,
}

impl QueueHead {
    fn of(queue: &Queue) -> QueueHead {
        QueueHead {
            number: queue.number(),
            counters: *queue.counters(),
            attributes: queue.attributes().clone(),
            remembered_until: queue.remembered_until(),
        }
    }
}

/// What a transaction changed, as it was.
#[derive(Debug, Default)]
pub(super) struct Undo {
    rows: Vec<(KeyName, Before)>,
    /// Where each of them stands in `rows`.
    known_rows: BTreeMap<KeyName, usize>,
    messages: Vec<(KeyName, MessageId, Option<Record>)>,
    known_messages: BTreeSet<(KeyName, MessageId)>,
    dedups: Vec<(KeyName, Box<[u8]>, Option<Dedup>)>,
    pub(super) finished: FinishedBefore,
    traces: usize,
    last_queue: u64,
    waits: Vec<(WaitId, Wait)>,
    known_waits: BTreeSet<WaitId>,
    handed: BTreeMap<WaitId, Option<HandOver>>,
    releases: Vec<(FencingToken, Option<Release>)>,
    deadlocks: Option<VecDeque<DeadlockRecord>>,
    last_token: FencingToken,
    notices: usize,
    pushed: u32,
    /// How often something was about to change, and bytes of values that were copied to be put back.
    touched: usize,
    copied: usize,
    keys_expired: u64,
}

impl Undo {
    /// A queue's message is about to change; `None`: it is not there yet.
    pub(super) fn save_message(&mut self, db: DbIndex, key: &[u8], id: MessageId, message: Option<Record>) {
        self.touched += 1;
        let name: KeyName = (db, key.into());
        if self.known_messages.insert((name.clone(), id)) {
            self.messages.push((name, id, message));
        }
    }

    /// What is known of an ID of a queue is about to change.
    pub(super) fn save_dedup(&mut self, db: DbIndex, key: &[u8], name: &[u8], dedup: Option<Dedup>) {
        self.dedups.push(((db, key.into()), name.into(), dedup));
    }
}

impl State {
    /// From here on everything can be taken back.
    pub(crate) fn begin_undo(&mut self) {
        self.undo = Some(Box::new(Undo {
            last_token: self.meta.last_token,
            notices: self.notices.len(),
            pushed: self.pushed_in_entry,
            keys_expired: self.keys_expired,
            finished: self.finished.before(),
            traces: self.traces.len(),
            last_queue: self.meta.last_queue,
            ..Undo::default()
        }));
    }

    /// How often something was about to change since [`State::begin_undo`], and the bytes of values that are kept to be
    /// put back: what the transaction costs so far.
    pub(crate) fn undo_cost(&self) -> (usize, usize) {
        self.undo.as_ref().map_or((0, 0), |undo| (undo.touched, undo.copied))
    }

    /// What was done stays done.
    pub(crate) fn end_undo(&mut self) {
        self.undo = None;
    }

    /// A row is about to change.
    #[inline]
    pub(super) fn save_row(&mut self, db: DbIndex, key: &[u8]) {
        if self.undo.is_some() {
            self.save_row_now(db, key);
        }
    }

    #[cold]
    fn save_row_now(&mut self, db: DbIndex, key: &[u8]) {
        let Some(undo) = &mut self.undo else { return };
        undo.touched += 1;
        let name: KeyName = (db, key.into());
        if undo.known_rows.contains_key(&name) {
            return;
        }
        undo.known_rows.insert(name.clone(), undo.rows.len());
        let saved = self.databases[usize::from(db)].get(key).map(|row| SavedRow {
            changed: row.changed,
            deadline: row.deadline,
            content: match &row.object {
                Object::String => {
                    undo.copied += row.string_bytes().len();
                    Saved::String(row.string_bytes().to_vec(), row.form())
                }
                Object::Lock(lock) => {
                    undo.copied += lock.memory_bytes();
                    Saved::Lock(lock.clone())
                }
                Object::Queue(queue) => Saved::Queue(Box::new(QueueHead::of(queue))),
            },
        });
        let at_rest = self.resting[usize::from(db)].get(key).and_then(|row| match row.object() {
            Object::Queue(queue) => Some(Box::new(QueueHead::of(queue))),
            Object::String | Object::Lock(_) => None,
        });
        undo.rows.push((name, Before { row: saved, at_rest }));
    }

    /// A request that waits is about to change or to go.
    pub(super) fn save_wait(&mut self, id: WaitId) {
        if let Some(undo) = &mut self.undo
            && let Some(wait) = self.waits.get(id)
            && undo.known_waits.insert(id)
        {
            undo.waits.push((id, wait.clone()));
        }
    }

    /// A hand-over is about to come, to change or to go.
    pub(super) fn save_handed(&mut self, id: WaitId) {
        if let Some(undo) = &mut self.undo {
            undo.handed.entry(id).or_insert_with(|| self.handed.get(id).cloned());
        }
    }

    /// A deadlock is about to be noted.
    pub(super) fn save_deadlocks(&mut self) {
        if let Some(undo) = &mut self.undo
            && undo.deadlocks.is_none()
        {
            undo.deadlocks = Some(self.deadlocks.clone());
        }
    }

    /// A release is about to be remembered, or forgotten.
    pub(super) fn save_release(&mut self, token: FencingToken, before: Option<Release>) {
        if let Some(undo) = &mut self.undo {
            undo.releases.push((token, before));
        }
    }

    /// Takes back what was done since [`State::begin_undo`].
    pub(crate) fn roll_back(&mut self) {
        let Some(undo) = self.undo.take() else { return };
        let Undo {
            rows,
            messages,
            dedups,
            finished,
            traces,
            last_queue,
            waits,
            handed,
            releases,
            deadlocks,
            last_token,
            notices,
            pushed,
            keys_expired,
            ..
        } = *undo;
        // Queues come back before their messages do.
        for ((db, key), Before { row: saved, at_rest }) in rows {
            let is_queue = saved.as_ref().is_some_and(|row| matches!(row.content, Saved::Queue(_)));
            match at_rest {
                Some(head) => self.put_queue_at_rest_back(db, &key, *head),
                None if is_queue => {}
                // It was new, and is at rest already.
                None => self.forget_queue(db, &key),
            }
            let is_lock = saved.as_ref().is_some_and(|row| matches!(row.content, Saved::Lock(_)));
            if is_planted(Bug::RollBackForgetsLocks) && is_lock {
                continue;
            }
            self.put_row_back(db, &key, saved);
        }
        // A row that was new went with all its messages.
        for (name, id, message) in messages.into_iter().rev() {
            self.put_message_back(&name, id, message);
        }
        for (name, id, dedup) in dedups.into_iter().rev() {
            self.put_dedup_back(&name, &id, dedup);
        }
        self.finished.roll_back(finished);
        self.traces.truncate(traces);
        self.meta.last_queue = last_queue;
        for (id, wait) in waits {
            if let Some(now) = self.waits.remove(id) {
                self.unindex_claims(now.claims());
            }
            self.index_claims(wait.claims());
            self.waits.insert(id, wait);
            self.changes.waits.push(id);
        }
        for (id, before) in handed {
            self.handed.remove(id);
            if let Some(hand_over) = before {
                self.handed.insert(id, hand_over);
            }
            self.changes.handed.push(id);
        }
        for (token, before) in releases.into_iter().rev() {
            self.releases.remove(token);
            if let Some(release) = before {
                self.releases.insert(token, release);
            }
            self.changes.releases.push(token);
        }
        if let Some(deadlocks) = deadlocks {
            self.deadlocks = deadlocks;
        }
        self.meta.last_token = last_token;
        self.notices.truncate(notices);
        self.pushed_in_entry = pushed;
        self.keys_expired = keys_expired;
    }

    fn put_message_back(&mut self, name: &KeyName, id: MessageId, message: Option<Record>) {
        if is_planted(Bug::RollBackForgetsMessages) {
            return;
        }
        let Some(queue) = self.queue_named(name) else { return };
        let number = queue.number();
        let is_there = message.is_some();
        match message {
            Some(message) => queue.restore(message),
            None => drop(queue.take_out(id)),
        }
        let changed = if is_there { &mut self.changes.messages } else { &mut self.changes.gone };
        changed.push((number, id));
        self.index_queue(name);
    }

    fn put_dedup_back(&mut self, name: &KeyName, id: &[u8], dedup: Option<Dedup>) {
        let Some(queue) = self.queue_named(name) else { return };
        let number = queue.number();
        queue.set_dedup(id, dedup);
        self.changes.dedups.push((number, id.into()));
        self.index_queue(name);
    }

    fn queue_named(&mut self, (db, key): &KeyName) -> Option<&mut Queue> {
        queue_row(&mut self.databases, &mut self.resting, *db, key)
    }

    /// The queue that was at rest under a name is so again.
    fn put_queue_at_rest_back(&mut self, db: DbIndex, key: &[u8], head: QueueHead) {
        let number = head.number;
        match self.row(db, key).map(Row::object) {
            Some(Object::Queue(queue)) if queue.number() == number => self.lay_queue_to_rest(db, key),
            // Another one of its name.
            Some(Object::Queue(_)) => drop(self.remove(db, key)),
            Some(Object::String | Object::Lock(_)) | None => {}
        }
        if self.queue_at_rest(db, key).is_none_or(|queue| queue.number() != number) {
            self.forget_queue(db, key);
            let row = Row::with_object(key, Object::Queue(Box::new(Queue::new(number))));
            self.index_row(db, &row);
            self.resting[usize::from(db)].insert_new(row);
        }
        self.restore_head(db, key, head);
        if let Some(queue) = queue_row(&mut self.databases, &mut self.resting, db, key) {
            self.changes.note_rest(queue, self.meta.applied);
        }
    }

    /// The head of the queue of this name is as it was.
    fn restore_head(&mut self, db: DbIndex, key: &[u8], head: QueueHead) {
        let name: KeyName = (db, key.into());
        let QueueHead { counters, attributes, remembered_until, .. } = head;
        if let Some(queue) = self.queue_named(&name) {
            queue.counters = counters;
            queue.set_remembered_until(remembered_until);
            queue.set_attributes(attributes);
        }
        // One that was made anew stands in no index yet.
        self.index_queue(&name);
    }

    fn put_row_back(&mut self, db: DbIndex, key: &[u8], saved: Option<SavedRow>) {
        let Some(saved) = saved else {
            self.remove(db, key);
            return;
        };
        if let Saved::Queue(head) = saved.content {
            let number = head.number;
            // It was removed or is at rest, and maybe something else took its name.
            let is_there = matches!(self.row(db, key).map(Row::object), Some(Object::Queue(queue)) if queue.number() == number);
            if !is_there {
                self.remove(db, key);
                if self.queue_at_rest(db, key).is_some_and(|queue| queue.number() == number) {
                    self.wake_queue(db, key);
                } else {
                    self.forget_queue(db, key);
                    self.insert_object(db, key, Object::Queue(Box::new(Queue::new(number))));
                }
            }
            self.restore_head(db, key, *head);
        } else {
            self.remove(db, key);
            let mut row = match saved.content {
                Saved::String(value, form) => {
                    let mut row = Row::string(key, &value);
                    row.set_form(form);
                    row
                }
                Saved::Lock(lock) => Row::with_object(key, Object::Lock(lock)),
                Saved::Queue(_) => unreachable!("queues were looked at above"),
            };
            row.deadline = saved.deadline;
            self.insert_row(db, row);
        }
        // Nothing has happened to it: WATCH must not see a change. It is written once more with the next flush.
        let space = &mut self.databases[usize::from(db)];
        if let Some(row) = space.get_mut(key) {
            self.changes.keys.push((db, key.into()));
            self.changes.forget_mark(row);
            row.changed = saved.changed;
            row.mark = LISTED;
        }
    }
}
