//! QPOPs that wait: a part of the state, so that they survive the leader and are served in the order in which they came.
//!
//! A message goes to whoever waits first in the very entry that makes it ready.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::state::DbIndex;
use crate::state::expiry::KeyName;
use crate::state::locks::Claim;
use crate::state::locks::ClaimId;
use crate::state::locks::waits::decode_origin;
use crate::state::locks::waits::encode_origin;
use crate::state::queues::Take;
use crate::types::ClusterTime;
use crate::types::Millis;
use crate::types::NodeId;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_bool;
use crate::types::codec::put_bytes;
use crate::types::codec::put_varint;

const FORMAT: u8 = 1;

/// What a QPOP asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PopRequest {
    pub db: DbIndex,
    /// Looked at from left to right; each once.
    pub queues: Vec<Box<[u8]>>,
    pub count: usize,
    /// `None`: as each queue's attributes say.
    pub lease: Option<Millis>,
    /// At most once.
    pub no_ack: bool,
    pub with_meta: bool,
    pub consumer: Box<[u8]>,
    /// Bytes that its reply may take.
    pub reply_max: usize,
}

impl PopRequest {
    /// How messages of a queue with this default lease are taken.
    #[must_use]
    pub fn take(&self, default_lease: Millis) -> Take {
        if self.no_ack { Take::Remove } else { Take::Lease(self.lease.unwrap_or(default_lease)) }
    }
}

/// A QPOP that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PopWait {
    pub request: PopRequest,
    pub claim: Claim,
    pub since: ClusterTime,
}

impl PopWait {
    /// Appends the wait as its row keeps it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let PopRequest { db, queues, count, lease, no_ack, with_meta, consumer, reply_max } = &self.request;
        out.push(FORMAT);
        out.push(*db);
        put_varint(out, queues.len() as u64);
        queues.iter().for_each(|queue| put_bytes(out, queue));
        put_varint(out, *count as u64);
        put_varint(out, lease.map_or(0, |lease| lease.0 + 1));
        put_bool(out, *no_ack);
        put_bool(out, *with_meta);
        put_bytes(out, consumer);
        put_varint(out, *reply_max as u64);
        put_varint(out, self.since.0);
        put_varint(out, self.claim.until.0);
        encode_origin(&self.claim.origin, out);
    }

    /// Reads what [`PopWait::encode`] wrote, to the end of the value.
    pub fn decode(claim: ClaimId, reader: &mut Reader<'_>) -> Result<PopWait, CodecError> {
        if reader.u8()? != FORMAT {
            return Err(CodecError("a waiting QPOP of an unknown format"));
        }
        let db = reader.u8()?;
        let mut queues = Vec::new();
        for _ in 0..reader.varint()? {
            queues.push(reader.bytes()?.into());
        }
        let count = reader.varint32()? as usize;
        let lease = reader.varint()?.checked_sub(1).map(Millis);
        let (no_ack, with_meta) = (reader.bool()?, reader.bool()?);
        let consumer = reader.bytes()?.into();
        let reply_max = usize::try_from(reader.varint()?).map_err(|_| CodecError("a bound out of range"))?;
        let (since, until) = (ClusterTime(reader.varint()?), ClusterTime(reader.varint()?));
        let claim = Claim { id: claim, until, origin: decode_origin(reader)? };
        if !reader.is_empty() || queues.is_empty() {
            return Err(CodecError("a waiting QPOP is not whole"));
        }
        let request = PopRequest { db, queues, count, lease, no_ack, with_meta, consumer, reply_max };
        Ok(PopWait { request, claim, since })
    }
}

/// All QPOPs that wait.
#[derive(Debug, Default)]
pub struct PopWaits {
    by_claim: BTreeMap<ClaimId, PopWait>,
    by_queue: BTreeMap<KeyName, BTreeSet<ClaimId>>,
    by_node: BTreeMap<(NodeId, u64), BTreeSet<ClaimId>>,
}

impl PopWaits {
    /// One of them.
    #[must_use]
    pub fn get(&self, claim: ClaimId) -> Option<&PopWait> {
        self.by_claim.get(&claim)
    }

    /// All, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &PopWait> {
        self.by_claim.values()
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_claim.len()
    }

    /// True when nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_claim.is_empty()
    }

    /// Who waits for a queue, oldest first.
    pub fn of_queue(&self, queue: &KeyName) -> impl Iterator<Item = ClaimId> {
        self.by_queue.get(queue).into_iter().flatten().copied()
    }

    /// How many wait for a queue.
    #[must_use]
    pub fn count_of(&self, queue: &KeyName) -> usize {
        self.by_queue.get(queue).map_or(0, BTreeSet::len)
    }

    /// The nodes, by life, whose clients wait.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, u64)> {
        self.by_node.keys().copied()
    }

    /// The claims of clients of a node in lives before this one.
    #[must_use]
    pub fn claims_before(&self, node: NodeId, life: u64) -> Vec<ClaimId> {
        self.by_node.range((node, 0)..(node, life)).flat_map(|(_, claims)| claims.iter().copied()).collect()
    }

    pub(in crate::state) fn insert(&mut self, wait: PopWait) {
        let (id, origin) = (wait.claim.id, &wait.claim.origin);
        for queue in &wait.request.queues {
            self.by_queue.entry((wait.request.db, queue.clone())).or_default().insert(id);
        }
        self.by_node.entry((origin.node, origin.life)).or_default().insert(id);
        self.by_claim.insert(id, wait);
    }

    pub(in crate::state) fn remove(&mut self, claim: ClaimId) -> Option<PopWait> {
        let wait = self.by_claim.remove(&claim)?;
        for queue in &wait.request.queues {
            drop_from(&mut self.by_queue, &(wait.request.db, queue.clone()), claim);
        }
        let origin = &wait.claim.origin;
        drop_from(&mut self.by_node, &(origin.node, origin.life), claim);
        Some(wait)
    }
}

fn drop_from<K: Ord>(sets: &mut BTreeMap<K, BTreeSet<ClaimId>>, key: &K, claim: ClaimId) {
    if let Some(claims) = sets.get_mut(key) {
        claims.remove(&claim);
        if claims.is_empty() {
            sets.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::notices::Origin;

    #[test]
    fn a_wait_comes_back_from_its_row() {
        let request = PopRequest {
            db: 3,
            queues: vec![(*b"a").into(), (*b"b").into()],
            count: 9,
            lease: Some(Millis(0)),
            no_ack: true,
            with_meta: false,
            consumer: (*b"me").into(),
            reply_max: 1 << 20,
        };
        let origin = Origin { node: NodeId(2), life: 7, client: 3, address: "x:1".into() };
        let claim = Claim { id: ClaimId(5), until: ClusterTime::NEVER, origin };
        let wait = PopWait { request, claim, since: ClusterTime(4) };
        let mut row = Vec::new();
        wait.encode(&mut row);
        assert_eq!(PopWait::decode(ClaimId(5), &mut Reader::new(&row)).as_ref(), Ok(&wait));
        row.push(0);
        assert!(PopWait::decode(ClaimId(5), &mut Reader::new(&row)).is_err());
        let mut waits = PopWaits::default();
        waits.insert(wait.clone());
        assert_eq!(waits.of_queue(&(3, (*b"b").into())).collect::<Vec<_>>(), [ClaimId(5)]);
        assert_eq!(waits.claims_before(NodeId(2), 8), [ClaimId(5)]);
        assert_eq!(waits.remove(ClaimId(5)), Some(wait));
        assert!(waits.is_empty() && waits.nodes().next().is_none() && waits.by_queue.is_empty());
    }
}
