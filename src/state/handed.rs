//! What was handed to clients that waited, and is not confirmed yet: a part of the state.
//!
//! A lock or a message that a client was told of must stay its own while its lease runs, and one that it was not told of
//! must go back. When the client's node dies, nobody can say which of both it was. So a node does not tell its client what
//! it was handed before the log says that it may: it proposes CONFIRM, and tells the client once that is applied.
//!
//! The life of one hand-over, which has as many clients as waited for the same request:
//!
//! ```text
//! states   UNHEARD(clients)          nobody was told of it
//!          KNOWN(clients)            one client was told, or may have been; these were not yet
//!          (gone)                    no client is left; no row
//!
//! state    event                                       next state            what is done
//! -        a wait comes to its turn                    UNHEARD(its clients)  each client's node proposes CONFIRM
//! any      CONFIRM c, and it is all still given        KNOWN(… without c)    c is told of it
//! KNOWN    CONFIRM c, and not all of it is             KNOWN(… without c)    c is told that its wait is over
//! UNHEARD  CONFIRM c, and not all of it is             gone                  all are told so; what is left goes back
//! KNOWN    c leaves (CANCEL, END-CLAIMS)               KNOWN(… without c)    c's wait is over
//! UNHEARD  c leaves, others stay                       UNHEARD(… without c)  c's wait is over
//! UNHEARD  c leaves, and is the last                   gone                  c's wait is over; it goes back
//! UNHEARD  its lease ends by time                      UNHEARD               as if it had been given back
//! ```
//! *Still given*: the owner holds each lock under that token, each receipt is current, and no lease is over. *Goes back*:
//! locks are released without GRACE unless their owner touched them since, messages are ready without a counted attempt.
//!
//! An owner may have several requests of different shapes for one lock, and be handed one hold by all of them. The hold
//! goes back with the newest hand-over, and with none once one of them was confirmed.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::state::DbIndex;
use crate::state::locks::ClaimId;
use crate::state::locks::OwnerName;
use crate::state::locks::WaitId;
use crate::state::locks::waits::decode_origin;
use crate::state::locks::waits::encode_origin;
use crate::state::notices::Origin;
use crate::state::queues::MessageId;
use crate::state::queues::Receipt;
use crate::types::FencingToken;
use crate::types::NodeId;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_bool;
use crate::types::codec::put_bytes;
use crate::types::codec::put_varint;

const FORMAT: u8 = 1;
const LOCKS: u8 = 0;
const MESSAGES: u8 = 1;

/// What happens to one client of a hand-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Its node confirms, and it is all still given.
    Confirmed,
    /// Its node confirms, and something of it is not given any more.
    Lost,
    /// It waits no more.
    Left,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The client is told of what it was given.
    Tell,
    /// The client's wait is over.
    TellOver,
    /// The waits of all clients are over, and what is left goes back.
    GoBack,
}

/// Decides on one event of one of so many clients (from 1). `is_known`: a client was told, or may have been.
#[must_use]
pub fn step(is_known: bool, clients: usize, event: Event) -> Step {
    match (event, is_known) {
        (Event::Confirmed, _) => Step::Tell,
        (Event::Lost, true) => Step::TellOver,
        (Event::Lost, false) => Step::GoBack,
        (Event::Left, false) if clients == 1 => Step::GoBack,
        (Event::Left, _) => Step::TellOver,
    }
}

/// A lock that was handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandedLock {
    pub key: Box<[u8]>,
    pub token: FencingToken,
    /// Touches of the hold at which it goes back; 0 is never: the owner held it before, or was told of it.
    pub touches: u64,
}

/// What was handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handed {
    Locks {
        owner: OwnerName,
        locks: Vec<HandedLock>,
    },
    /// By queue and receipt.
    Messages(Vec<(Box<[u8]>, Receipt)>),
}

/// One hand-over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandOver {
    pub db: DbIndex,
    pub handed: Handed,
    /// Those who did not confirm yet; never empty.
    pub clients: BTreeMap<ClaimId, Origin>,
    /// One of its clients confirmed.
    pub is_known: bool,
}

impl HandOver {
    /// Appends the hand-over as its row keeps it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(FORMAT);
        out.push(self.db);
        put_bool(out, self.is_known);
        put_varint(out, self.clients.len() as u64);
        for (claim, origin) in &self.clients {
            put_varint(out, claim.0);
            encode_origin(origin, out);
        }
        match &self.handed {
            Handed::Locks { owner, locks } => {
                out.push(LOCKS);
                put_bytes(out, &owner.user);
                put_bytes(out, &owner.owner);
                put_varint(out, locks.len() as u64);
                for lock in locks {
                    put_bytes(out, &lock.key);
                    put_varint(out, lock.token.0);
                    put_varint(out, lock.touches);
                }
            }
            Handed::Messages(messages) => {
                out.push(MESSAGES);
                put_varint(out, messages.len() as u64);
                for (queue, receipt) in messages {
                    put_bytes(out, queue);
                    put_varint(out, receipt.id.index);
                    put_varint(out, u64::from(receipt.id.n));
                    put_varint(out, u64::from(receipt.delivery));
                }
            }
        }
    }

    /// Reads what [`HandOver::encode`] wrote, to the end of the value.
    pub fn decode(reader: &mut Reader<'_>) -> Result<HandOver, CodecError> {
        if reader.u8()? != FORMAT {
            return Err(CodecError("a hand-over of an unknown format"));
        }
        let (db, is_known) = (reader.u8()?, reader.bool()?);
        let mut clients = BTreeMap::new();
        for _ in 0..reader.varint()? {
            let claim = ClaimId(reader.varint()?);
            clients.insert(claim, decode_origin(reader)?);
        }
        let handed = match reader.u8()? {
            LOCKS => {
                let owner = OwnerName::new(reader.bytes()?, reader.bytes()?);
                let mut locks = Vec::new();
                for _ in 0..reader.varint()? {
                    let (key, token) = (reader.bytes()?.into(), FencingToken(reader.varint()?));
                    locks.push(HandedLock { key, token, touches: reader.varint()? });
                }
                Handed::Locks { owner, locks }
            }
            MESSAGES => {
                let mut messages = Vec::new();
                for _ in 0..reader.varint()? {
                    let queue = reader.bytes()?.into();
                    let id = MessageId { index: reader.varint()?, n: reader.varint32()? };
                    messages.push((queue, Receipt { id, delivery: reader.varint32()? }));
                }
                Handed::Messages(messages)
            }
            _ => return Err(CodecError("a hand-over of an unknown kind")),
        };
        if !reader.is_empty() || clients.is_empty() {
            return Err(CodecError("a hand-over is not whole"));
        }
        Ok(HandOver { db, handed, clients, is_known })
    }
}

/// All hand-overs with clients that did not confirm yet. Each has the number of the wait that it ended.
#[derive(Debug, Default)]
pub struct HandOvers {
    by_id: BTreeMap<WaitId, HandOver>,
    claims: BTreeMap<ClaimId, WaitId>,
    /// The claims of each life of a node.
    by_node: BTreeMap<(NodeId, u64), BTreeSet<ClaimId>>,
    /// With which of them a hold goes back.
    answering: BTreeMap<FencingToken, WaitId>,
    receipts: BTreeMap<Receipt, WaitId>,
}

impl HandOvers {
    /// One of them.
    #[must_use]
    pub fn get(&self, id: WaitId) -> Option<&HandOver> {
        self.by_id.get(&id)
    }

    /// The hand-over of a client that did not confirm yet.
    #[must_use]
    pub fn of_claim(&self, claim: ClaimId) -> Option<WaitId> {
        self.claims.get(&claim).copied()
    }

    /// All, oldest wait first.
    pub fn iter(&self) -> impl Iterator<Item = (WaitId, &HandOver)> {
        self.by_id.iter().map(|(id, hand_over)| (*id, hand_over))
    }

    /// The nodes, by life, whose clients did not confirm yet.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, u64)> {
        self.by_node.keys().copied()
    }

    /// The claims of clients of a node in lives before this one.
    #[must_use]
    pub fn claims_before(&self, node: NodeId, life: u64) -> Vec<ClaimId> {
        self.by_node.range((node, 0)..(node, life)).flat_map(|(_, claims)| claims.iter().copied()).collect()
    }

    /// The one with which the hold under this token goes back.
    #[must_use]
    pub fn answering(&self, token: FencingToken) -> Option<WaitId> {
        self.answering.get(&token).copied()
    }

    /// True when nobody was told of this hold, and its owner did not touch it since it was handed over.
    #[must_use]
    pub fn is_unheard(&self, token: FencingToken, touches: u64) -> bool {
        let hand_over = self.answering(token).and_then(|id| self.by_id.get(&id));
        match hand_over.map(|hand_over| &hand_over.handed) {
            Some(Handed::Locks { locks, .. }) => {
                locks.iter().any(|lock| (lock.token, lock.touches) == (token, touches))
            }
            Some(Handed::Messages(_)) | None => false,
        }
    }

    /// True when nobody was told of this hand-out.
    #[must_use]
    pub fn is_unheard_message(&self, receipt: Receipt) -> bool {
        let hand_over = self.receipts.get(&receipt).and_then(|id| self.by_id.get(id));
        hand_over.is_some_and(|hand_over| !hand_over.is_known)
    }

    pub(super) fn insert(&mut self, id: WaitId, hand_over: HandOver) {
        self.remove(id);
        for (claim, origin) in &hand_over.clients {
            self.claims.insert(*claim, id);
            self.by_node.entry((origin.node, origin.life)).or_default().insert(*claim);
        }
        match &hand_over.handed {
            Handed::Locks { locks, .. } => {
                for lock in locks.iter().filter(|lock| lock.touches > 0) {
                    self.answering.insert(lock.token, id);
                }
            }
            Handed::Messages(messages) => {
                self.receipts.extend(messages.iter().map(|(_, receipt)| (*receipt, id)));
            }
        }
        self.by_id.insert(id, hand_over);
    }

    pub(super) fn remove(&mut self, id: WaitId) -> Option<HandOver> {
        let hand_over = self.by_id.remove(&id)?;
        for (claim, origin) in &hand_over.clients {
            self.claims.remove(claim);
            drop_from(&mut self.by_node, &(origin.node, origin.life), claim);
        }
        match &hand_over.handed {
            Handed::Locks { locks, .. } => {
                for lock in locks.iter().filter(|lock| lock.touches > 0) {
                    self.answering.remove(&lock.token);
                }
            }
            Handed::Messages(messages) => {
                for (_, receipt) in messages {
                    self.receipts.remove(receipt);
                }
            }
        }
        Some(hand_over)
    }

    /// One client is done with; without clients the hand-over is gone.
    pub(super) fn remove_client(&mut self, id: WaitId, claim: ClaimId) {
        let Some(hand_over) = self.by_id.get_mut(&id) else { return };
        let Some(origin) = hand_over.clients.remove(&claim) else { return };
        self.claims.remove(&claim);
        drop_from(&mut self.by_node, &(origin.node, origin.life), &claim);
        if hand_over.clients.is_empty() {
            self.remove(id);
        }
    }

    /// A client was told of it.
    pub(super) fn set_known(&mut self, id: WaitId) {
        if let Some(hand_over) = self.by_id.get_mut(&id) {
            hand_over.is_known = true;
        }
    }

    /// The hold under this token goes back with no hand-over.
    pub(super) fn release(&mut self, token: FencingToken) {
        let hand_over = self.answering.remove(&token).and_then(|id| self.by_id.get_mut(&id));
        if let Some(Handed::Locks { locks, .. }) = hand_over.map(|hand_over| &mut hand_over.handed) {
            locks.iter_mut().filter(|lock| lock.token == token).for_each(|lock| lock.touches = 0);
        }
    }
}

fn drop_from<K: Ord, V: Ord>(sets: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(values) = sets.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            sets.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(life: u64) -> Origin {
        Origin { node: NodeId(2), life, client: 3, address: "x:1".into() }
    }

    fn locks(touches: u64) -> Handed {
        let locks = vec![HandedLock { key: (*b"k").into(), token: FencingToken(9), touches }];
        Handed::Locks { owner: OwnerName::new(b"default", b"me"), locks }
    }

    fn hand_over(handed: Handed, claims: &[u64]) -> HandOver {
        let client = |claim: &u64| (ClaimId(*claim), origin(*claim));
        HandOver { db: 3, handed, clients: claims.iter().map(client).collect(), is_known: false }
    }

    #[test]
    fn what_nobody_was_told_of_goes_back_with_its_last_client_and_what_somebody_knows_stays() {
        for (is_known, clients, event, expected) in [
            (false, 1, Event::Confirmed, Step::Tell),
            (true, 1, Event::Confirmed, Step::Tell),
            (false, 2, Event::Lost, Step::GoBack),
            (true, 2, Event::Lost, Step::TellOver),
            (false, 1, Event::Left, Step::GoBack),
            (false, 2, Event::Left, Step::TellOver),
            (true, 1, Event::Left, Step::TellOver),
        ] {
            assert_eq!(step(is_known, clients, event), expected, "{is_known} {clients} {event:?}");
        }
    }

    #[test]
    fn a_hand_over_comes_back_from_its_row() {
        let receipt = Receipt { id: MessageId { index: 7, n: 1 }, delivery: 2 };
        for handed in [locks(1), Handed::Messages(vec![((*b"q").into(), receipt)])] {
            let hand_over = HandOver { is_known: true, ..hand_over(handed, &[4, 5]) };
            let mut row = Vec::new();
            hand_over.encode(&mut row);
            assert_eq!(HandOver::decode(&mut Reader::new(&row)).as_ref(), Ok(&hand_over));
            row.push(0);
            assert!(HandOver::decode(&mut Reader::new(&row)).is_err());
        }
    }

    #[test]
    fn clients_leave_one_by_one_and_a_hold_goes_back_with_one_hand_over_at_most() {
        let mut all = HandOvers::default();
        all.insert(WaitId(4), hand_over(locks(1), &[4, 5]));
        all.release(FencingToken(9));
        all.insert(WaitId(6), hand_over(locks(2), &[6]));
        assert_eq!(all.answering(FencingToken(9)), Some(WaitId(6)));
        assert!(all.is_unheard(FencingToken(9), 2) && !all.is_unheard(FencingToken(9), 1));
        all.remove_client(WaitId(4), ClaimId(4));
        assert_eq!((all.of_claim(ClaimId(4)), all.of_claim(ClaimId(5))), (None, Some(WaitId(4))));
        all.remove_client(WaitId(4), ClaimId(5));
        assert_eq!((all.get(WaitId(4)), all.answering(FencingToken(9))), (None, Some(WaitId(6))));
        all.set_known(WaitId(6));
        assert!(all.get(WaitId(6)).is_some_and(|hand_over| hand_over.is_known));
        all.remove_client(WaitId(6), ClaimId(6));
        assert!(all.nodes().next().is_none() && all.answering(FencingToken(9)).is_none());
    }

    #[test]
    fn hand_overs_are_found_by_claim_node_token_and_receipt() {
        let receipt = Receipt { id: MessageId { index: 7, n: 1 }, delivery: 2 };
        let mut all = HandOvers::default();
        all.insert(WaitId(4), hand_over(locks(1), &[4, 5]));
        all.insert(WaitId(6), hand_over(Handed::Messages(vec![((*b"q").into(), receipt)]), &[6]));
        assert_eq!((all.of_claim(ClaimId(5)), all.of_claim(ClaimId(7))), (Some(WaitId(4)), None));
        assert_eq!(all.claims_before(NodeId(2), 6), [ClaimId(4), ClaimId(5)]);
        assert!(all.is_unheard(FencingToken(9), 1) && !all.is_unheard(FencingToken(9), 2));
        assert!(all.is_unheard_message(receipt));
        assert!(!all.is_unheard_message(Receipt { delivery: 3, ..receipt }));
        let known = HandOver { is_known: true, ..all.remove(WaitId(6)).unwrap() };
        all.insert(WaitId(6), known);
        assert!(!all.is_unheard_message(receipt));
        for id in [WaitId(4), WaitId(6)] {
            assert!(all.remove(id).is_some() && all.remove(id).is_none());
        }
        assert!(all.nodes().next().is_none() && all.answering.is_empty() && all.receipts.is_empty());
    }
}
