//! This node's clients that wait, for locks or for messages (COMMANDS.md 2.6).
//!
//! A request that waits is in the log; its client waits here, under the number of its claim, until this node applies
//! the entry that ends the wait. Two things come in either order, since the reply "you wait" may travel over the
//! network while the entry is applied here: that the wait began, and that the client knows of it.
//!
//! What a wait ends with is told in two steps, so that the log knows what a client may have been told of
//! (`state::handed`): an entry hands it to the claim, the node proposes CONFIRM, and when that is applied it tells.
//!
//! ```text
//! state        event                       next state      what is done
//! -            the wait began              BEGUN
//! -            the client claims it        CLAIMED
//! BEGUN        the client claims it        CLAIMED
//! BEGUN        it is handed something      HANDED
//! BEGUN        the wait ended              ENDED
//! BEGUN        nobody claims it for long   ABANDONED
//! CLAIMED      it is handed something      CONFIRMING
//! CLAIMED      the wait ended              -               the client is told
//! CLAIMED      the client is gone          ABANDONED
//! HANDED       the client claims it        CONFIRMING
//! HANDED       nobody claims it for long   ABANDONED
//! CONFIRMING   at once, and time passes    CONFIRMING      CONFIRM is proposed, for all that wait for it together
//! CONFIRMING   it is confirmed             -               the client is told of what it was handed
//! CONFIRMING   the wait ended              -               the client is told
//! CONFIRMING   the client is gone          ABANDONED
//! ENDED        the client claims it        -               the client is told
//! ENDED        nobody claims it for long   -
//! ABANDONED    time passes                 ABANDONED       CANCEL is proposed: what it was handed goes back
//! ABANDONED    the client claims it        ABANDONED       it is told when the wait ended
//! ABANDONED    it is confirmed             TAKING BACK
//! ABANDONED    the wait ended              -
//! TAKING BACK  time passes                 TAKING BACK     TAKE-BACK is proposed
//! TAKING BACK  TAKE-BACK was executed      -
//! ```
//! A snapshot takes the place of entries that nobody will see here any more. In its state a claim
//!
//! ```text
//! waits                                        BEGUN if it was not known, else as before
//! was handed something, and that is known      as before
//! was handed something, and that was skipped   ABANDONED, with its client: CANCEL; then the client is told that it is over
//! is none any more, and was CONFIRMING         the client is told of what it was handed if it has it, else that it is over
//! is none any more, and was CLAIMED            the client is told that it is not known
//! is none any more, and was ABANDONED          TAKING BACK if it was handed something: it may have been confirmed
//! ```
//! So neither a lock nor a message is left with a client that did not hear of it, and nobody waits for a client that is
//! gone. Locks are taken back by TAKE-BACK, messages by QNACK SILENT. What was handed out at once goes back in the same way
//! when its reply could not be written: TAKING BACK is its first state.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::Mutex;
use parking_lot::RwLock;
use tokio::sync::Notify;
use tokio::sync::oneshot;

use crate::machine::entry::Batch;
use crate::state::DbIndex;
use crate::state::State;
use crate::state::confirm::end_given_until;
use crate::state::locks::ClaimId;
use crate::state::locks::OwnerName;
use crate::state::notices::ClaimEnd;
use crate::state::notices::Grant;
use crate::state::notices::Granted;
use crate::state::notices::Notice;
use crate::state::notices::Origin;
use crate::state::queues::Delivered;
use crate::types::ClusterTime;
use crate::types::FencingToken;
use crate::types::Millis;
use crate::types::Monotonic;
use crate::types::NodeId;
use crate::types::planted::Bug;
use crate::types::planted::is_planted;

/// A claim that no client comes for within this time is nobody's.
const UNCLAIMED: Millis = Millis(15_000);
/// What was proposed and had no effect yet is proposed again after this time.
const AGAIN: Millis = Millis(1_000);

/// Claims that one entry's item cancels or confirms: each may hand locks over.
const CLAIMS_AT_ONCE: usize = 256;

/// How a client's wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub end: ClaimEnd,
    /// Until when it has what it was given, in cluster time; NEVER when nothing ends by itself.
    pub until: ClusterTime,
}

impl Told {
    fn over(end: ClaimEnd) -> Told {
        Told { end, until: ClusterTime::NEVER }
    }
}

/// How a client's wait ended; `None`: it is not known, since a snapshot took the place of the entries that tell.
pub type WaitOutcome = Option<Told>;

type Client = oneshot::Sender<WaitOutcome>;

#[derive(Debug)]
enum Entry {
    Begun {
        since: Monotonic,
    },
    Claimed(Client),
    Handed {
        end: ClaimEnd,
        since: Monotonic,
    },
    Confirming {
        client: Client,
        end: ClaimEnd,
        asked: Option<Monotonic>,
    },
    Ended {
        end: ClaimEnd,
        since: Monotonic,
    },
    Abandoned {
        /// What it was handed, if that is known.
        handed: Option<ClaimEnd>,
        /// Who is to be told that it is over.
        client: Option<Client>,
        asked: Option<Monotonic>,
    },
    TakingBack {
        lost: Lost,
        asked: Option<Monotonic>,
    },
}

impl Entry {
    fn abandoned(handed: Option<ClaimEnd>) -> Entry {
        Entry::Abandoned { handed, client: None, asked: None }
    }
}

/// What a client was given and did not hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    Locks(Granted),
    Messages(Unheard),
}

/// Messages that were handed out in a reply that nobody got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unheard {
    db: DbIndex,
    /// Their receipts, by queue.
    receipts: BTreeMap<Bytes, Vec<Bytes>>,
}

impl Unheard {
    /// None yet, of this database.
    #[must_use]
    pub fn new(db: DbIndex) -> Unheard {
        Unheard { db, receipts: BTreeMap::new() }
    }

    /// Adds a message by its queue and its receipt.
    pub fn add(&mut self, queue: Bytes, receipt: Bytes) {
        self.receipts.entry(queue).or_default().push(receipt);
    }

    fn of(delivered: &Delivered) -> Unheard {
        let mut unheard = Unheard::new(delivered.db);
        for message in &delivered.messages {
            unheard.add(Bytes::copy_from_slice(&message.queue), message.receipt.to_string().into());
        }
        unheard
    }
}

impl Lost {
    /// Locks that were granted at once, with their tokens, and in how many replies nobody heard of each. Those of them are
    /// taken back that nobody ever heard of: they have as many touches.
    #[must_use]
    pub fn locks(
        db: DbIndex,
        user: &[u8],
        owner: &[u8],
        locks: impl Iterator<Item = (Bytes, u64, u64)>,
    ) -> Lost {
        let grant = |(key, token, touches): (Bytes, u64, u64)| Grant {
            key: key.as_ref().into(),
            token: FencingToken(token),
            touches,
        };
        let (owner, grants) = (OwnerName::new(user, owner), locks.map(grant).collect());
        Lost::Locks(Granted { db, owner, grants, order: None })
    }

    /// `None` when there is nothing to take back.
    fn of(end: &ClaimEnd) -> Option<Lost> {
        match end {
            ClaimEnd::Granted(granted) => Some(Lost::Locks(granted.clone())),
            // What was handed out at most once is gone.
            ClaimEnd::Delivered(delivered) if !delivered.no_ack => {
                Some(Lost::Messages(Unheard::of(delivered)))
            }
            ClaimEnd::Delivered(_) | ClaimEnd::Over | ClaimEnd::Failed(_) => None,
        }
    }
}

type Listener = Box<dyn Fn(&Notice) + Send + Sync>;

/// The claims that are of concern, and those among them that want to be confirmed and were not proposed yet.
#[derive(Default)]
struct Table {
    entries: BTreeMap<ClaimId, Entry>,
    to_confirm: Vec<ClaimId>,
    /// How much was given back that has no claim.
    given_back: u64,
    /// Nobody comes for a claim any more.
    is_closed: bool,
}

/// The claims of one process.
pub struct Claims {
    node: NodeId,
    life: u64,
    /// What is applied is of this life.
    is_open: AtomicBool,
    table: Mutex<Table>,
    /// A claim up to this one that has no entry ended among what a snapshot took the place of.
    skipped_to: AtomicU64,
    listener: RwLock<Option<Listener>>,
    has_work: Notify,
    has_handed: Notify,
}

impl Claims {
    /// No claims yet, of this life of this node; node 0 is a cluster of one.
    #[must_use]
    pub fn new(node: NodeId, life: u64) -> Claims {
        Claims {
            node,
            life,
            // The lives of a cluster of one have the same name: what its log tells again is of an earlier one.
            is_open: AtomicBool::new(node != NodeId(0)),
            table: Mutex::default(),
            skipped_to: AtomicU64::new(0),
            listener: RwLock::new(None),
            has_work: Notify::new(),
            has_handed: Notify::new(),
        }
    }

    /// Who hears of changes of locks.
    pub fn listen(&self, listener: impl Fn(&Notice) + Send + Sync + 'static) {
        *self.listener.write() = Some(Box::new(listener));
    }

    /// What the log holds from earlier lives is applied.
    pub fn open(&self) {
        self.is_open.store(true, Ordering::Release);
    }

    /// True of what clients of this process asked for.
    #[must_use]
    pub fn is_own(&self, origin: &Origin) -> bool {
        (origin.node, origin.life) == (self.node, self.life) && self.is_open.load(Ordering::Acquire)
    }

    /// How many clients wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.lock().entries.len()
    }

    /// True when nobody waits, and nothing is left to be cancelled or taken back.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.lock().entries.is_empty()
    }

    /// Passes on what entries brought about that were applied here.
    pub fn publish(&self, notices: &[Notice], now: Monotonic) {
        for notice in notices {
            match notice {
                Notice::ClaimBegan { claim, origin } if self.is_own(origin) => {
                    let mut table = self.table.lock();
                    let is_closed = table.is_closed;
                    let begun = if is_closed { Entry::abandoned(None) } else { Entry::Begun { since: now } };
                    table.entries.entry(*claim).or_insert(begun);
                    if is_closed {
                        self.has_work.notify_one();
                    }
                }
                Notice::ClaimHanded { claim, origin, end } if self.is_own(origin) => {
                    self.handed(*claim, end, now);
                }
                Notice::ClaimConfirmed { claim, origin, until } if self.is_own(origin) => {
                    self.confirmed(*claim, *until);
                }
                Notice::ClaimEnded { claim, origin, end } if self.is_own(origin) => {
                    self.ended(*claim, end, now);
                }
                Notice::ClaimBegan { .. }
                | Notice::ClaimHanded { .. }
                | Notice::ClaimConfirmed { .. }
                | Notice::ClaimEnded { .. } => {}
                Notice::Lock { .. } => {
                    if let Some(listener) = self.listener.read().as_ref() {
                        listener(notice);
                    }
                }
            }
        }
    }

    fn handed(&self, claim: ClaimId, end: &ClaimEnd, now: Monotonic) {
        let mut table = self.table.lock();
        match table.entries.remove(&claim) {
            Some(Entry::Claimed(client)) => self.confirm(&mut table, claim, client, end.clone()),
            Some(Entry::Begun { .. }) => {
                table.entries.insert(claim, Entry::Handed { end: end.clone(), since: now });
            }
            Some(Entry::Abandoned { client, asked, .. }) => {
                let handed = Some(end.clone());
                table.entries.insert(claim, Entry::Abandoned { handed, client, asked });
            }
            Some(entry) => drop(table.entries.insert(claim, entry)),
            None => {}
        }
    }

    fn confirm(&self, table: &mut Table, claim: ClaimId, client: Client, end: ClaimEnd) {
        table.entries.insert(claim, Entry::Confirming { client, end, asked: None });
        table.to_confirm.push(claim);
        self.has_handed.notify_one();
    }

    fn confirmed(&self, claim: ClaimId, until: ClusterTime) {
        let mut table = self.table.lock();
        match table.entries.remove(&claim) {
            Some(Entry::Confirming { client, end, .. }) => {
                if let Err(Some(Told { end, .. })) = client.send(Some(Told { end, until })) {
                    self.lose(&mut table, claim, &end);
                }
            }
            Some(Entry::Abandoned { handed: Some(end), .. } | Entry::Handed { end, .. }) => {
                self.lose(&mut table, claim, &end);
            }
            Some(entry) => drop(table.entries.insert(claim, entry)),
            None => {}
        }
    }

    fn ended(&self, claim: ClaimId, end: &ClaimEnd, now: Monotonic) {
        let mut table = self.table.lock();
        match table.entries.remove(&claim) {
            Some(
                Entry::Claimed(client)
                | Entry::Confirming { client, .. }
                | Entry::Abandoned { client: Some(client), .. },
            ) => tell(client, Told::over(end.clone())),
            Some(Entry::Begun { .. } | Entry::Handed { .. }) => {
                table.entries.insert(claim, Entry::Ended { end: end.clone(), since: now });
            }
            Some(Entry::Abandoned { client: None, .. }) => {}
            // It ended before, or in an earlier life of this table.
            Some(entry @ (Entry::Ended { .. } | Entry::TakingBack { .. })) => {
                table.entries.insert(claim, entry);
            }
            None => {}
        }
    }

    /// Nobody hears of this end, which was confirmed if it had to be.
    fn lose(&self, table: &mut Table, claim: ClaimId, end: &ClaimEnd) {
        if let Some(lost) = Lost::of(end)
            && !is_planted(Bug::GrantUnheard)
        {
            table.entries.insert(claim, Entry::TakingBack { lost, asked: None });
            self.has_work.notify_one();
        }
    }

    /// A client waits for this claim. When the sender is dropped without a word, nothing is known of how it ended.
    pub fn claim(&self, claim: ClaimId) -> oneshot::Receiver<WaitOutcome> {
        let (client, receiver) = oneshot::channel();
        let mut table = self.table.lock();
        match table.entries.remove(&claim) {
            Some(Entry::Ended { end, .. }) => tell(client, Told::over(end)),
            Some(Entry::Handed { end, .. }) => self.confirm(&mut table, claim, client, end),
            Some(entry @ Entry::TakingBack { .. }) => {
                // It came too late. Without a word from here it learns that nothing is known.
                table.entries.insert(claim, entry);
            }
            Some(Entry::Abandoned { handed, asked, .. }) => {
                table.entries.insert(claim, Entry::Abandoned { handed, client: Some(client), asked });
            }
            None if claim.0 <= self.skipped_to.load(Ordering::Relaxed) => {}
            Some(Entry::Begun { .. } | Entry::Claimed(_) | Entry::Confirming { .. }) | None => {
                table.entries.insert(claim, Entry::Claimed(client));
            }
        }
        receiver
    }

    /// The client of this claim is gone, or wants it no more and is answered otherwise. What it was told of already,
    /// through `receiver`, and did not hear, is taken back.
    pub fn abandon(&self, claim: ClaimId, receiver: &mut oneshot::Receiver<WaitOutcome>) {
        let mut table = self.table.lock();
        match table.entries.remove(&claim) {
            Some(Entry::Claimed(_) | Entry::Begun { .. }) => {
                table.entries.insert(claim, Entry::abandoned(None));
                self.has_work.notify_one();
            }
            Some(Entry::Confirming { end, .. } | Entry::Handed { end, .. }) => {
                table.entries.insert(claim, Entry::abandoned(Some(end)));
                self.has_work.notify_one();
            }
            Some(Entry::Abandoned { handed, asked, .. }) => {
                table.entries.insert(claim, Entry::Abandoned { handed, client: None, asked });
            }
            entry @ (Some(Entry::Ended { .. } | Entry::TakingBack { .. }) | None) => {
                if let Some(entry) = entry {
                    table.entries.insert(claim, entry);
                }
                // It is sent under the same mutex, so there is no further case.
                if let Ok(Some(Told { end, .. })) = receiver.try_recv() {
                    self.lose(&mut table, claim, &end);
                }
            }
        }
    }

    /// No client comes any more: what nobody came for is nobody's. Those who wait leave by themselves.
    pub fn close(&self) {
        let mut table = self.table.lock();
        table.is_closed = true;
        table.entries.retain(|_, entry| !matches!(entry, Entry::Ended { .. }));
        for entry in table.entries.values_mut() {
            match entry {
                Entry::Begun { .. } => *entry = Entry::abandoned(None),
                Entry::Handed { end, .. } => *entry = Entry::abandoned(Some(end.clone())),
                Entry::Claimed(_)
                | Entry::Confirming { .. }
                | Entry::Ended { .. }
                | Entry::Abandoned { .. }
                | Entry::TakingBack { .. } => {}
            }
        }
        self.has_work.notify_one();
    }

    /// An end that a client was to be told of and was not: what it was given is taken back.
    pub fn take_back(&self, claim: ClaimId, end: &ClaimEnd) {
        self.lose(&mut self.table.lock(), claim, end);
    }

    /// What was handed out without a wait, in a reply that could not be written, is taken back.
    pub fn give_back(&self, lost: Lost) {
        if is_planted(Bug::GivenUnheard) {
            return;
        }
        let mut table = self.table.lock();
        // It has no claim; it goes by a number down from the largest, which no claim reaches.
        let number = u64::MAX - table.given_back;
        table.given_back += 1;
        table.entries.insert(ClaimId(number), Entry::TakingBack { lost, asked: None });
        self.has_work.notify_one();
    }

    /// Waits until there may be something to cancel or to take back.
    pub async fn work(&self) {
        self.has_work.notified().await;
    }

    /// Waits until there may be something to confirm.
    pub async fn handed_over(&self) {
        self.has_handed.notified().await;
    }

    /// The CONFIRMs to be proposed at once: of what was handed to this node's clients since the last call.
    pub fn confirmations(&self, now: Monotonic) -> Vec<Batch> {
        let mut table = self.table.lock();
        let mut fresh = std::mem::take(&mut table.to_confirm);
        fresh.retain(|claim| match table.entries.get_mut(claim) {
            Some(Entry::Confirming { asked: asked @ None, .. }) => {
                *asked = Some(now);
                true
            }
            _ => false,
        });
        confirmations_of(&fresh)
    }

    /// What is to be proposed now, with the claim that it is about if its execution is to be told by
    /// [`Claims::taken_back`].
    pub fn on_time(&self, now: Monotonic) -> Vec<(Option<ClaimId>, Batch)> {
        let mut table = self.table.lock();
        let (mut batches, mut cancelled, mut confirmed) = (Vec::new(), Vec::new(), Vec::new());
        let is_late = |asked: &Option<Monotonic>| asked.is_none_or(|asked| now.since(asked) >= AGAIN);
        table.to_confirm.clear();
        table.entries.retain(|claim, entry| {
            match entry {
                Entry::Begun { since } if now.since(*since) >= UNCLAIMED => *entry = Entry::abandoned(None),
                Entry::Handed { end, since } if now.since(*since) >= UNCLAIMED => {
                    *entry = Entry::abandoned(Some(end.clone()));
                }
                Entry::Ended { since, .. } if now.since(*since) >= UNCLAIMED => return false,
                _ => {}
            }
            match entry {
                Entry::Confirming { asked, .. } if is_late(asked) => {
                    *asked = Some(now);
                    confirmed.push(*claim);
                }
                Entry::Abandoned { handed: Some(_), .. } if is_planted(Bug::GrantUnheard) => {}
                Entry::Abandoned { asked, .. } if is_late(asked) => {
                    *asked = Some(now);
                    cancelled.push(claim.0);
                }
                Entry::TakingBack { lost, asked } if is_late(asked) => {
                    *asked = Some(now);
                    let batch = match lost {
                        Lost::Locks(granted) => take_back_of(granted),
                        Lost::Messages(unheard) => return_of(unheard),
                    };
                    batches.push((Some(*claim), batch));
                }
                _ => {}
            }
            true
        });
        for cancelled in cancelled.chunks(CLAIMS_AT_ONCE) {
            let mut batch = Batch::new(b"");
            batch.push_cancel(cancelled);
            batches.push((None, batch));
        }
        batches.extend(confirmations_of(&confirmed).into_iter().map(|batch| (None, batch)));
        batches
    }

    /// The TAKE-BACK of this claim was executed.
    pub fn taken_back(&self, claim: ClaimId) {
        let mut table = self.table.lock();
        if matches!(table.entries.get(&claim), Some(Entry::TakingBack { .. })) {
            table.entries.remove(&claim);
        }
    }

    /// A snapshot took the place of the state: what ended meanwhile is not told any more.
    pub fn reconcile(&self, state: &State, now: Monotonic) {
        let mut table = self.table.lock();
        self.skipped_to.store(state.meta().last_claim, Ordering::Relaxed);
        let claims: Vec<ClaimId> = table.entries.keys().copied().collect();
        for claim in claims {
            // What the snapshot does not know of yet is still to come.
            if claim.0 > state.meta().last_claim {
                continue;
            }
            let Some(entry) = table.entries.remove(&claim) else { continue };
            let is_handed = state.handed().of_claim(claim).is_some();
            let next = match entry {
                _ if state.is_waiting(claim) && !is_handed => Some(entry),
                Entry::Claimed(client) if is_handed => {
                    Some(Entry::Abandoned { handed: None, client: Some(client), asked: None })
                }
                Entry::Begun { .. } if is_handed => Some(Entry::abandoned(None)),
                _ if is_handed => Some(entry),
                Entry::Claimed(client) => {
                    // The client may be gone; then nobody wants to know.
                    let _ = client.send(None);
                    None
                }
                Entry::Confirming { client, end, .. } => {
                    let until = end_given_until(state, &end, state.meta().clock);
                    let told = match until {
                        Some(until) => Told { end, until },
                        None => Told::over(ClaimEnd::Over),
                    };
                    if let Err(Some(Told { end, .. })) = client.send(Some(told)) {
                        self.lose(&mut table, claim, &end);
                    }
                    None
                }
                Entry::Abandoned { handed, client, .. } => {
                    client.into_iter().for_each(|client| tell(client, Told::over(ClaimEnd::Over)));
                    handed.iter().for_each(|end| self.lose(&mut table, claim, end));
                    None
                }
                Entry::Handed { since, .. } => Some(Entry::Ended { end: ClaimEnd::Over, since }),
                Entry::Ended { .. } | Entry::TakingBack { .. } => Some(entry),
                Entry::Begun { .. } => None,
            };
            if let Some(next) = next {
                table.entries.insert(claim, next);
            }
        }
        // Those that began meanwhile.
        for claim in state.claims().filter(|claim| self.is_own(&claim.origin)) {
            table.entries.entry(claim.id).or_insert(Entry::Begun { since: now });
        }
        for (_, hand_over) in state.handed().iter() {
            for (claim, _) in hand_over.clients.iter().filter(|(_, origin)| self.is_own(origin)) {
                table.entries.entry(*claim).or_insert(Entry::abandoned(None));
            }
        }
    }
}

/// Tells a client of an end that gave it nothing.
fn tell(client: Client, told: Told) {
    // The client may be gone; then nobody wants to know.
    let _ = client.send(Some(told));
}

fn confirmations_of(claims: &[ClaimId]) -> Vec<Batch> {
    let batch = |claims: &[ClaimId]| {
        let mut batch = Batch::new(b"");
        batch.push_confirm(&claims.iter().map(|claim| claim.0).collect::<Vec<_>>());
        batch
    };
    claims.chunks(CLAIMS_AT_ONCE).map(batch).collect()
}

fn take_back_of(granted: &Granted) -> Batch {
    let mut batch = Batch::new(&granted.owner.user);
    let grants = granted.grants.iter().map(|grant| (&*grant.key, grant.token.0, grant.touches));
    batch.push_take_back(granted.db, &granted.owner.owner, grants);
    batch
}

/// Messages go back to their queues, and the hand-out does not count.
fn return_of(unheard: &Unheard) -> Batch {
    let mut batch = Batch::new(b"");
    for (queue, receipts) in &unheard.receipts {
        let count = receipts.len().to_string();
        let mut words = vec![&b"QNACK"[..], queue, b"SILENT", b"IDS", count.as_bytes()];
        words.extend(receipts.iter().map(Bytes::as_ref));
        batch.push_command(unheard.db, words.into_iter());
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::apply::apply_entry;
    use crate::machine::entry::SessionStamp;
    use crate::machine::entry::Stamps;
    use crate::machine::entry::encode_entry;
    use crate::types::LogIndex;
    use crate::types::Term;
    use crate::types::WallMillis;
    use tokio::sync::oneshot::error::TryRecvError;

    const ONE: ClaimId = ClaimId(1);

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1_000_000)
    }

    fn origin() -> Origin {
        Origin { node: NodeId(2), life: 7, client: 3, address: "a".into() }
    }

    fn granted() -> ClaimEnd {
        let grants = vec![Grant { key: (*b"k").into(), token: FencingToken(9), touches: 1 }];
        ClaimEnd::Granted(Granted { db: 0, owner: OwnerName::new(b"default", b"me"), grants, order: None })
    }

    fn began() -> Notice {
        Notice::ClaimBegan { claim: ONE, origin: origin() }
    }

    fn handed() -> Notice {
        Notice::ClaimHanded { claim: ONE, origin: origin(), end: granted() }
    }

    fn confirmed() -> Notice {
        Notice::ClaimConfirmed { claim: ONE, origin: origin(), until: UNTIL }
    }

    fn ended(end: ClaimEnd) -> Notice {
        Notice::ClaimEnded { claim: ONE, origin: origin(), end }
    }

    fn claims() -> Claims {
        Claims::new(NodeId(2), 7)
    }

    const UNTIL: ClusterTime = ClusterTime(70);

    fn told() -> WaitOutcome {
        Some(Told { end: granted(), until: UNTIL })
    }

    fn over() -> WaitOutcome {
        Some(Told::over(ClaimEnd::Over))
    }

    fn confirm() -> Batch {
        let mut batch = Batch::new(b"");
        batch.push_confirm(&[1]);
        batch
    }

    fn cancel() -> Batch {
        let mut batch = Batch::new(b"");
        batch.push_cancel(&[1]);
        batch
    }

    #[test]
    fn a_client_is_told_in_whatever_order_it_all_comes() {
        // Began, claimed, handed, confirmed; or began, claimed, ended.
        for order in ["bchf", "cbhf", "bhcf"] {
            let claims = claims();
            let mut receiver = None;
            for step in order.chars() {
                match step {
                    'b' => claims.publish(&[began()], at(0)),
                    'h' => claims.publish(&[handed()], at(0)),
                    'f' => {
                        assert_eq!(claims.confirmations(at(0)), [confirm()], "{order}");
                        assert!(
                            receiver
                                .as_mut()
                                .is_some_and(|it: &mut oneshot::Receiver<_>| it.try_recv().is_err())
                        );
                        claims.publish(&[confirmed()], at(0));
                    }
                    _ => receiver = Some(claims.claim(ONE)),
                }
            }
            assert_eq!(receiver.unwrap().try_recv(), Ok(told()), "{order}");
            assert!(claims.is_empty(), "{order}");
        }
        for order in ["bce", "cbe", "bec"] {
            let claims = claims();
            let mut receiver = None;
            for step in order.chars() {
                match step {
                    'b' => claims.publish(&[began()], at(0)),
                    'e' => claims.publish(&[ended(ClaimEnd::Over)], at(0)),
                    _ => receiver = Some(claims.claim(ONE)),
                }
            }
            assert_eq!(receiver.unwrap().try_recv(), Ok(over()), "{order}");
            assert!(claims.is_empty(), "{order}");
        }
    }

    #[test]
    fn what_other_nodes_and_other_lives_wait_for_is_nothing_to_this_one() {
        let claims = claims();
        for origin in [Origin { life: 6, ..origin() }, Origin { node: NodeId(1), ..origin() }] {
            claims.publish(&[Notice::ClaimBegan { claim: ONE, origin }], at(0));
        }
        assert!(claims.is_empty());
    }

    #[test]
    fn a_cluster_of_one_hears_nothing_again_that_its_log_tells_of_earlier_lives() {
        let claims = Claims::new(NodeId(0), 0);
        let origin = Origin { address: "a".into(), ..Origin::default() };
        claims.publish(&[Notice::ClaimBegan { claim: ONE, origin: origin.clone() }], at(0));
        claims.publish(&[Notice::ClaimHanded { claim: ONE, origin: origin.clone(), end: granted() }], at(0));
        assert!(claims.is_empty());
        claims.open();
        claims.publish(&[Notice::ClaimBegan { claim: ONE, origin }], at(0));
        assert_eq!(claims.len(), 1);
    }

    #[test]
    fn many_hand_overs_are_confirmed_together_and_again_until_it_is_known() {
        let claims = claims();
        let mut receivers = Vec::new();
        for number in 1..=300 {
            let claim = ClaimId(number);
            receivers.push(claims.claim(claim));
            claims.publish(&[Notice::ClaimHanded { claim, origin: origin(), end: granted() }], at(0));
        }
        assert_eq!(claims.confirmations(at(0)).len(), 2, "each item holds 256");
        assert!(claims.confirmations(at(1)).is_empty());
        assert!(claims.on_time(at(900)).is_empty());
        assert_eq!(claims.on_time(at(1_000)).len(), 2);
        claims.publish(&[confirmed(), ended(ClaimEnd::Over)], at(1_000));
        assert_eq!(receivers[0].try_recv(), Ok(told()), "the first word counts");
        assert_eq!(claims.len(), 299);
    }

    #[test]
    fn what_is_not_given_any_more_when_it_is_confirmed_is_not_told() {
        let claims = claims();
        let mut receiver = claims.claim(ONE);
        claims.publish(&[began(), handed()], at(0));
        claims.publish(&[ended(ClaimEnd::Over)], at(1));
        assert_eq!(receiver.try_recv(), Ok(over()));
        assert!(claims.is_empty() && claims.confirmations(at(1)).is_empty());
    }

    #[test]
    fn a_wait_that_is_abandoned_is_cancelled_until_it_ends() {
        let claims = claims();
        claims.publish(&[began()], at(0));
        claims.abandon(ONE, &mut claims.claim(ONE));
        assert_eq!(claims.on_time(at(0)).len(), 1);
        assert!(claims.on_time(at(900)).is_empty());
        assert_eq!(claims.on_time(at(1_000)).len(), 1);
        claims.publish(&[ended(ClaimEnd::Over)], at(1_100));
        assert!(claims.is_empty());
    }

    #[test]
    fn what_was_handed_to_a_client_that_left_is_cancelled_and_not_confirmed() {
        // The client left while it waited, while it was to be confirmed, or never came, or the node stops.
        let left = claims();
        left.publish(&[began()], at(0));
        left.abandon(ONE, &mut left.claim(ONE));
        left.publish(&[handed()], at(1));
        let late = claims();
        let mut receiver = late.claim(ONE);
        late.publish(&[handed()], at(1));
        late.abandon(ONE, &mut receiver);
        let never = claims();
        never.publish(&[began(), handed()], at(1));
        let stops = claims();
        stops.publish(&[began(), handed()], at(1));
        stops.close();
        for (claims, when) in [(left, 2), (late, 2), (never, 15_001), (stops, 2)] {
            assert!(claims.confirmations(at(when)).is_empty());
            assert_eq!(claims.on_time(at(when)), [(None, cancel())]);
            assert!(claims.on_time(at(when + 500)).is_empty());
            assert_eq!(claims.on_time(at(when + 1_000)), [(None, cancel())], "it was refused");
            claims.publish(&[ended(ClaimEnd::Over)], at(when + 1_000));
            assert!(claims.is_empty());
        }
    }

    #[test]
    fn a_grant_that_is_confirmed_and_that_nobody_hears_of_is_taken_back() {
        // The client left when its grant was about to be confirmed.
        let left = claims();
        let mut receiver = left.claim(ONE);
        left.publish(&[handed()], at(1));
        left.abandon(ONE, &mut receiver);
        left.publish(&[confirmed()], at(2));
        // Or nobody looks at the word.
        let deaf = claims();
        drop(deaf.claim(ONE));
        deaf.publish(&[handed(), confirmed()], at(1));
        // Or it was told already, and had not looked.
        let told = claims();
        let mut receiver = told.claim(ONE);
        told.publish(&[handed(), confirmed()], at(1));
        told.abandon(ONE, &mut receiver);
        for claims in [left, deaf, told] {
            let work = claims.on_time(at(2));
            assert_eq!(work.iter().map(|(claim, _)| *claim).collect::<Vec<_>>(), [Some(ONE)]);
            assert!(claims.on_time(at(502)).is_empty());
            assert_eq!(claims.on_time(at(1_002)).len(), 1, "it was refused");
            claims.taken_back(ONE);
            assert!(claims.is_empty());
        }
    }

    #[test]
    fn what_was_given_in_a_reply_that_was_not_written_is_returned_until_that_is_done() {
        let claims = claims();
        let mut unheard = [Unheard::new(0), Unheard::new(3)];
        for unheard in &mut unheard {
            unheard.add(Bytes::from_static(b"q"), Bytes::from_static(b"5-0:1"));
        }
        unheard.iter().for_each(|unheard| claims.give_back(Lost::Messages(unheard.clone())));
        let batches = |work: Vec<(Option<ClaimId>, Batch)>| {
            work.into_iter().map(|(claim, batch)| (claim.unwrap(), batch)).unzip::<_, _, Vec<_>, Vec<_>>()
        };
        let (names, first) = batches(claims.on_time(at(0)));
        assert_eq!(first, [&unheard[1], &unheard[0]].map(return_of));
        claims.taken_back(names[1]);
        // The other was refused. A snapshot that knows nothing of it changes nothing.
        claims.reconcile(&State::new(16), at(1));
        assert_eq!(batches(claims.on_time(at(1_000))).1, [return_of(&unheard[1])]);
        claims.taken_back(names[0]);
        assert!(claims.is_empty());
        let ClaimEnd::Granted(granted) = granted() else { panic!("a grant") };
        claims.give_back(Lost::Locks(granted.clone()));
        assert_eq!(batches(claims.on_time(at(2_000))).1, [take_back_of(&granted)]);
    }

    #[test]
    fn a_wait_that_nobody_claims_is_cancelled() {
        let claims = claims();
        claims.publish(&[began()], at(0));
        assert!(claims.on_time(at(14_999)).is_empty());
        assert_eq!(claims.on_time(at(15_000)).len(), 1);
        let mut late = claims.claim(ONE);
        claims.publish(&[ended(ClaimEnd::Over)], at(15_001));
        assert_eq!(late.try_recv(), Ok(over()), "who comes late is told when it is over");
    }

    #[test]
    fn after_a_snapshot_the_end_of_a_wait_is_unknown() {
        let claims = claims();
        let mut receiver = claims.claim(ONE);
        let mut state = State::new(16);
        claims.reconcile(&state, at(0));
        assert!(receiver.try_recv().is_err(), "the snapshot is older than the wait");
        state.meta.last_claim = 1;
        claims.reconcile(&state, at(0));
        assert_eq!(receiver.try_recv(), Ok(None));
        assert!(claims.is_empty());
    }

    /// A state after an entry of these lines and items, of this node and life.
    fn state_after(lines: &[&str], more: impl FnOnce(&mut Batch)) -> State {
        let mut state = State::new(16);
        let stamps = Stamps { clock: ClusterTime(0), wall: WallMillis(0), seed: 0 };
        let session = SessionStamp { node: NodeId(2), epoch: 7 << 16, seq: 1, ack: 0 };
        let mut batch = Batch::new(b"default");
        for line in lines {
            batch.push_command(0, line.split(' ').map(str::as_bytes).collect::<Vec<_>>().into_iter());
        }
        more(&mut batch);
        let entry = encode_entry(&stamps, [(Some(session), &batch)].into_iter());
        apply_entry(&mut state, LogIndex(1), Term(1), &entry).unwrap();
        state
    }

    #[test]
    fn what_began_and_what_ended_behind_a_snapshot_is_not_waited_for_for_ever() {
        let lines = ["LOCK k a", "LOCK k b BLOCK 0", "LOCK k c BLOCK 0", "LOCKS RELEASE b"];
        let state = state_after(&lines, |_| {});
        let claims = claims();
        claims.reconcile(&state, at(0));
        // The replies come later: the first wait is over, the second is not.
        assert!(claims.claim(ONE).try_recv().is_err_and(|error| error == TryRecvError::Closed));
        assert_eq!(claims.len(), 1);
        assert_eq!(claims.on_time(at(15_000)).len(), 1, "nobody came for the second");
    }

    #[test]
    fn what_was_handed_behind_a_snapshot_goes_back_and_its_client_is_told_that_it_is_over() {
        let lines = ["LOCK k a", "LOCK k b BLOCK 0", "UNLOCK k a"];
        let state = state_after(&lines, |_| {});
        let (waits, unknown) = (claims(), claims());
        let mut receiver = waits.claim(ONE);
        for claims in [&waits, &unknown] {
            claims.reconcile(&state, at(0));
            assert_eq!(claims.on_time(at(0)), [(None, cancel())]);
            claims.publish(&[ended(ClaimEnd::Over)], at(1));
            assert!(claims.is_empty());
        }
        assert_eq!(receiver.try_recv(), Ok(over()));
        // One that was known goes on.
        let known = claims();
        let mut receiver = known.claim(ONE);
        known.publish(&[handed()], at(0));
        known.reconcile(&state, at(0));
        assert_eq!(known.confirmations(at(1)), [confirm()]);
        known.publish(&[confirmed()], at(2));
        assert_eq!(receiver.try_recv(), Ok(told()));
    }

    #[test]
    fn what_was_confirmed_behind_a_snapshot_is_told_if_it_is_still_given() {
        let lines = ["LOCK k a", "LOCK k b PX 1000 BLOCK 0", "UNLOCK k a"];
        let grants = vec![Grant { key: (*b"k").into(), token: FencingToken(2), touches: 1 }];
        let owner = OwnerName::new(b"default", b"b");
        let end = ClaimEnd::Granted(Granted { db: 0, owner, grants, order: None });
        for (is_held, line) in [(true, "EXISTS k"), (false, "LOCKS KILL k")] {
            let state = state_after(&lines, |batch| {
                batch.push_confirm(&[1]);
                batch.push_command(0, line.split(' ').map(str::as_bytes).collect::<Vec<_>>().into_iter());
            });
            let claims = claims();
            let mut receiver = claims.claim(ONE);
            claims.publish(&[Notice::ClaimHanded { claim: ONE, origin: origin(), end: end.clone() }], at(0));
            claims.reconcile(&state, at(0));
            let told = Some(Told { end: end.clone(), until: ClusterTime(1_000) });
            assert_eq!(receiver.try_recv(), Ok(if is_held { told } else { over() }));
        }
    }

    #[test]
    fn who_comes_for_a_grant_when_it_is_being_taken_back_gets_no_word() {
        let claims = claims();
        claims.publish(&[began(), handed(), confirmed()], at(0));
        assert_eq!(claims.on_time(at(1)).len(), 1);
        assert!(claims.claim(ONE).try_recv().is_err_and(|error| error == TryRecvError::Closed));
        assert_eq!(claims.on_time(at(1_001)).len(), 1, "it is still taken back");
    }
}
