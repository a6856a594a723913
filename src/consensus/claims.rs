//! This node's clients that wait, for locks or for messages (COMMANDS.md 2.6).
//!
//! A request that waits is in the log; its client waits here, under the number of its claim, until this node applies
//! the entry that ends the wait. Two things come in either order, since the reply "you wait" may travel over the
//! network while the entry is applied here: that the wait began, and that the client knows of it.
//!
//! ```text
//! state        event                       next state      what is done
//! -            the wait began              BEGUN
//! -            the client claims it        CLAIMED
//! BEGUN        the client claims it        CLAIMED
//! BEGUN        the wait ended              ENDED
//! BEGUN        nobody claims it for long   ABANDONED
//! CLAIMED      the wait ended              -               the client is told
//! CLAIMED      the client is gone          ABANDONED
//! ENDED        the client claims it        -               the client is told
//! -            a snapshot is put in place  BEGUN           if it waits in the snapshot's state
//! -            the client claims it, from   -              the client is told that it is not known
//!              before a snapshot
//! ENDED        nobody claims it for long   TAKING BACK if it was given something, else gone
//! ABANDONED    time passes                 ABANDONED       CANCEL is proposed
//! ABANDONED    it was given something      TAKING BACK
//! ABANDONED    it ended otherwise          -
//! TAKING BACK  time passes                 TAKING BACK     TAKE-BACK is proposed
//! TAKING BACK  TAKE-BACK was executed      -
//! ```
//! So neither a lock nor a message is left with a client that did not hear of it, and nobody waits for a client that is
//! gone. Locks are taken back by TAKE-BACK, messages by QNACK SILENT. Messages that a QPOP was given at once go back in
//! the same way when their reply could not be written: TAKING BACK is their first state.

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
use crate::state::locks::ClaimId;
use crate::state::notices::ClaimEnd;
use crate::state::notices::Granted;
use crate::state::notices::Notice;
use crate::state::notices::Origin;
use crate::state::queues::Delivered;
use crate::types::Millis;
use crate::types::Monotonic;
use crate::types::NodeId;
use crate::types::planted::Bug;
use crate::types::planted::is_planted;

/// A claim that no client comes for within this time is nobody's.
const UNCLAIMED: Millis = Millis(15_000);
/// What was proposed and had no effect yet is proposed again after this time.
const AGAIN: Millis = Millis(1_000);

/// Waits that one entry's item cancels: each may hand locks over.
const CANCELLED_AT_ONCE: usize = 256;

/// How a client's wait ended; `None`: it is not known, since a snapshot took the place of the entries that tell.
pub type WaitOutcome = Option<ClaimEnd>;

#[derive(Debug)]
enum Entry {
    Begun { since: Monotonic },
    Claimed(oneshot::Sender<WaitOutcome>),
    Ended { end: ClaimEnd, since: Monotonic },
    Abandoned { asked: Option<Monotonic> },
    TakingBack { lost: Lost, asked: Option<Monotonic> },
}

/// What a client was given and did not hear of.
#[derive(Debug, Clone)]
enum Lost {
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

/// The claims of one process.
pub struct Claims {
    node: NodeId,
    life: u64,
    /// What is applied is of this life.
    is_open: AtomicBool,
    entries: Mutex<BTreeMap<ClaimId, Entry>>,
    /// A claim up to this one that has no entry ended among what a snapshot took the place of.
    skipped_to: AtomicU64,
    listener: RwLock<Option<Listener>>,
    has_work: Notify,
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
            entries: Mutex::default(),
            skipped_to: AtomicU64::new(0),
            listener: RwLock::new(None),
            has_work: Notify::new(),
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
        self.entries.lock().len()
    }

    /// True when nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.lock().is_empty()
    }

    /// Passes on what entries brought about that were applied here.
    pub fn publish(&self, notices: &[Notice], now: Monotonic) {
        for notice in notices {
            match notice {
                Notice::ClaimBegan { claim, origin } if self.is_own(origin) => {
                    self.entries.lock().entry(*claim).or_insert(Entry::Begun { since: now });
                }
                Notice::ClaimEnded { claim, origin, end } if self.is_own(origin) => {
                    self.ended(*claim, end, now);
                }
                Notice::ClaimBegan { .. } | Notice::ClaimEnded { .. } => {}
                Notice::Lock { .. } => {
                    if let Some(listener) = self.listener.read().as_ref() {
                        listener(notice);
                    }
                }
            }
        }
    }

    fn ended(&self, claim: ClaimId, end: &ClaimEnd, now: Monotonic) {
        let mut entries = self.entries.lock();
        match entries.remove(&claim) {
            Some(Entry::Claimed(client)) => {
                let is_told = client.send(Some(end.clone())).is_ok();
                if !is_told {
                    self.lose(&mut entries, claim, end);
                }
            }
            Some(Entry::Begun { .. }) => {
                entries.insert(claim, Entry::Ended { end: end.clone(), since: now });
            }
            Some(Entry::Abandoned { .. }) => self.lose(&mut entries, claim, end),
            // It ended before, or in an earlier life of this table.
            Some(entry @ (Entry::Ended { .. } | Entry::TakingBack { .. })) => {
                entries.insert(claim, entry);
            }
            None => {}
        }
    }

    /// Nobody hears of this end.
    fn lose(&self, entries: &mut BTreeMap<ClaimId, Entry>, claim: ClaimId, end: &ClaimEnd) {
        if let Some(lost) = Lost::of(end)
            && !is_planted(Bug::GrantUnheard)
        {
            entries.insert(claim, Entry::TakingBack { lost, asked: None });
            self.has_work.notify_one();
        }
    }

    /// A client waits for this claim. When the sender is dropped without a word, nothing is known of how it ended.
    pub fn claim(&self, claim: ClaimId) -> oneshot::Receiver<WaitOutcome> {
        let (client, receiver) = oneshot::channel();
        let mut entries = self.entries.lock();
        match entries.remove(&claim) {
            Some(Entry::Ended { end, .. }) => {
                if client.send(Some(end.clone())).is_err() {
                    self.lose(&mut entries, claim, &end);
                }
            }
            Some(entry @ Entry::TakingBack { .. }) => {
                // It came too late. Without a word from here it learns that nothing is known.
                entries.insert(claim, entry);
            }
            None if claim.0 <= self.skipped_to.load(Ordering::Relaxed) => {}
            Some(Entry::Begun { .. } | Entry::Claimed(_) | Entry::Abandoned { .. }) | None => {
                entries.insert(claim, Entry::Claimed(client));
            }
        }
        receiver
    }

    /// The client of this claim is gone, or wants it no more and is answered otherwise. What it was told of already,
    /// through `receiver`, and did not hear, is taken back.
    pub fn abandon(&self, claim: ClaimId, receiver: &mut oneshot::Receiver<WaitOutcome>) {
        let mut entries = self.entries.lock();
        if let Some(entry @ (Entry::Claimed(_) | Entry::Begun { .. })) = entries.get_mut(&claim) {
            *entry = Entry::Abandoned { asked: None };
            self.has_work.notify_one();
        } else if let Ok(Some(end)) = receiver.try_recv() {
            // It is sent under the same mutex, so there is no third case.
            self.lose(&mut entries, claim, &end);
        }
    }

    /// An end that a client was to be told of and was not: what it was given is taken back.
    pub fn take_back(&self, claim: ClaimId, end: &ClaimEnd) {
        self.lose(&mut self.entries.lock(), claim, end);
    }

    /// Messages that were handed out without a wait, in a reply that could not be written, are returned.
    pub fn give_back(&self, unheard: Unheard) {
        let mut entries = self.entries.lock();
        // They have no claim; they go by numbers down from the largest, which no claim reaches.
        let mut number = u64::MAX;
        while entries.contains_key(&ClaimId(number)) {
            number -= 1;
        }
        entries.insert(ClaimId(number), Entry::TakingBack { lost: Lost::Messages(unheard), asked: None });
        self.has_work.notify_one();
    }

    /// Waits until there may be something to propose.
    pub async fn work(&self) {
        self.has_work.notified().await;
    }

    /// What is to be proposed now, with the claim that it is about if its execution is to be told by
    /// [`Claims::taken_back`].
    pub fn on_time(&self, now: Monotonic) -> Vec<(Option<ClaimId>, Batch)> {
        let mut entries = self.entries.lock();
        let (mut batches, mut cancelled) = (Vec::new(), Vec::new());
        let is_late = |asked: &Option<Monotonic>| asked.is_none_or(|asked| now.since(asked) >= AGAIN);
        entries.retain(|claim, entry| {
            match entry {
                Entry::Begun { since } if now.since(*since) >= UNCLAIMED => {
                    *entry = Entry::Abandoned { asked: None };
                }
                Entry::Ended { end, since } if now.since(*since) >= UNCLAIMED => match Lost::of(end) {
                    Some(lost) => *entry = Entry::TakingBack { lost, asked: None },
                    None => return false,
                },
                _ => {}
            }
            match entry {
                Entry::Abandoned { asked } if is_late(asked) => {
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
        for cancelled in cancelled.chunks(CANCELLED_AT_ONCE) {
            let mut batch = Batch::new(b"");
            batch.push_cancel(cancelled);
            batches.push((None, batch));
        }
        batches
    }

    /// The TAKE-BACK of this claim was executed.
    pub fn taken_back(&self, claim: ClaimId) {
        let mut entries = self.entries.lock();
        if matches!(entries.get(&claim), Some(Entry::TakingBack { .. })) {
            entries.remove(&claim);
        }
    }

    /// A snapshot took the place of the state: what ended meanwhile is not told any more.
    pub fn reconcile(&self, state: &State, now: Monotonic) {
        let mut entries = self.entries.lock();
        self.skipped_to.store(state.meta().last_claim, Ordering::Relaxed);
        let claims: Vec<ClaimId> = entries.keys().copied().collect();
        for claim in claims {
            // What the snapshot does not know of yet is still to come.
            if claim.0 > state.meta().last_claim || state.is_waiting(claim) {
                continue;
            }
            match entries.remove(&claim) {
                Some(Entry::Claimed(client)) => {
                    // The client may be gone; then nobody wants to know.
                    let _ = client.send(None);
                }
                Some(entry @ (Entry::Ended { .. } | Entry::TakingBack { .. })) => {
                    entries.insert(claim, entry);
                }
                Some(Entry::Begun { .. } | Entry::Abandoned { .. }) | None => {}
            }
        }
        // Those that began meanwhile.
        for claim in state.claims().filter(|claim| self.is_own(&claim.origin)) {
            entries.entry(claim.id).or_insert(Entry::Begun { since: now });
        }
    }
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
    use crate::state::locks::OwnerName;
    use crate::state::notices::Grant;
    use crate::types::ClusterTime;
    use crate::types::FencingToken;
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

    fn ended(end: ClaimEnd) -> Notice {
        Notice::ClaimEnded { claim: ONE, origin: origin(), end }
    }

    fn claims() -> Claims {
        Claims::new(NodeId(2), 7)
    }

    #[test]
    fn a_client_is_told_in_whatever_order_it_all_comes() {
        for order in ["bce", "cbe", "bec"] {
            let claims = claims();
            let mut receiver = None;
            for step in order.chars() {
                match step {
                    'b' => claims.publish(&[began()], at(0)),
                    'e' => claims.publish(&[ended(granted())], at(0)),
                    _ => receiver = Some(claims.claim(ONE)),
                }
            }
            assert_eq!(receiver.unwrap().try_recv(), Ok(Some(granted())), "{order}");
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
        claims.publish(&[Notice::ClaimEnded { claim: ONE, origin: origin.clone(), end: granted() }], at(0));
        assert!(claims.is_empty());
        claims.open();
        claims.publish(&[Notice::ClaimBegan { claim: ONE, origin }], at(0));
        assert_eq!(claims.len(), 1);
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
    fn a_grant_that_nobody_hears_of_is_taken_back() {
        // The client left while it waited, or just before it was told, or never came.
        let left = claims();
        left.publish(&[began()], at(0));
        left.abandon(ONE, &mut left.claim(ONE));
        left.publish(&[ended(granted())], at(1));
        let deaf = claims();
        drop(deaf.claim(ONE));
        deaf.publish(&[began(), ended(granted())], at(1));
        // The client left when it was told already, and had not looked.
        let told = claims();
        let mut receiver = told.claim(ONE);
        told.publish(&[ended(granted())], at(1));
        told.abandon(ONE, &mut receiver);
        let never = claims();
        never.publish(&[began(), ended(granted())], at(1));
        for (claims, when) in [(left, 2), (deaf, 2), (told, 2), (never, 15_001)] {
            let work = claims.on_time(at(when));
            assert_eq!(work.iter().map(|(claim, _)| *claim).collect::<Vec<_>>(), [Some(ONE)]);
            assert!(claims.on_time(at(when + 500)).is_empty());
            assert_eq!(claims.on_time(at(when + 1_000)).len(), 1, "it was refused");
            claims.taken_back(ONE);
            assert!(claims.is_empty());
        }
    }

    #[test]
    fn messages_whose_reply_was_not_written_are_returned_until_that_is_done() {
        let claims = claims();
        let mut unheard = [Unheard::new(0), Unheard::new(3)];
        for unheard in &mut unheard {
            unheard.add(Bytes::from_static(b"q"), Bytes::from_static(b"5-0:1"));
        }
        unheard.iter().for_each(|unheard| claims.give_back(unheard.clone()));
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
    }

    #[test]
    fn a_wait_that_nobody_claims_is_cancelled() {
        let claims = claims();
        claims.publish(&[began()], at(0));
        assert!(claims.on_time(at(14_999)).is_empty());
        assert_eq!(claims.on_time(at(15_000)).len(), 1);
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

    #[test]
    fn what_began_and_what_ended_behind_a_snapshot_is_not_waited_for_for_ever() {
        let mut state = State::new(16);
        let stamps = Stamps { clock: ClusterTime(0), wall: WallMillis(0), seed: 0 };
        let session = SessionStamp { node: NodeId(2), epoch: 7 << 16, seq: 1, ack: 0 };
        let mut batch = Batch::new(b"default");
        for line in ["LOCK k a", "LOCK k b BLOCK 0", "LOCK k c BLOCK 0", "LOCKS RELEASE b"] {
            batch.push_command(0, line.split(' ').map(str::as_bytes).collect::<Vec<_>>().into_iter());
        }
        let entry = encode_entry(&stamps, [(Some(session), &batch)].into_iter());
        apply_entry(&mut state, LogIndex(1), Term(1), &entry).unwrap();
        let claims = claims();
        claims.reconcile(&state, at(0));
        // The replies come later: the first wait is over, the second is not.
        assert!(claims.claim(ONE).try_recv().is_err_and(|error| error == TryRecvError::Closed));
        assert_eq!(claims.len(), 1);
        assert_eq!(claims.on_time(at(15_000)).len(), 1, "nobody came for the second");
    }

    #[test]
    fn who_comes_for_a_grant_when_it_is_being_taken_back_gets_no_word() {
        let claims = claims();
        claims.publish(&[began(), ended(granted())], at(0));
        assert_eq!(claims.on_time(at(15_000)).len(), 1);
        assert!(claims.claim(ONE).try_recv().is_err_and(|error| error == TryRecvError::Closed));
        assert_eq!(claims.on_time(at(16_000)).len(), 1, "it is still taken back");
    }
}
