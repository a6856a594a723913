//! Requests that wait for locks: a part of the state, so that they survive the leader and whoever asked.
//!
//! A request is a [`Wait`]; each client that waits for it has a [`Claim`] on it. There is more than one claim when an
//! owner asks again, through another connection, for what it waits for already: it joins, and keeps its place. A wait
//! without claims is gone.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::state::DbIndex;
use crate::state::locks::Mode;
use crate::state::locks::OwnerName;
use crate::state::locks::Wanted;
use crate::state::notices::Origin;
use crate::types::ClusterTime;
use crate::types::Millis;
use crate::types::NodeId;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_bytes;
use crate::types::codec::put_varint;

const FORMAT: u8 = 1;

/// Names one client's wait for ever; rising.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimId(pub u64);

/// Names a request that waits: the number of its first claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaitId(pub u64);

/// One client that waits for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub id: ClaimId,
    pub origin: Origin,
    /// When it waits no more; NEVER for BLOCK 0.
    pub until: ClusterTime,
}

/// A lock that a request waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitKey {
    pub key: Box<[u8]>,
    /// It goes before all others in this lock's queue, since it holds the lock already.
    pub is_first: bool,
}

/// A request that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    pub owner: OwnerName,
    pub db: DbIndex,
    /// Each once, in the order in which they were named.
    pub keys: Vec<WaitKey>,
    /// For a request of several locks the place in `keys` of each key that it named.
    pub order: Option<Vec<u32>>,
    pub wanted: Wanted,
    /// Since when.
    pub since: ClusterTime,
    /// Never empty.
    pub claims: Vec<Claim>,
}

impl Wait {
    /// Appends the wait as its row keeps it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(FORMAT);
        put_bytes(out, &self.owner.user);
        put_bytes(out, &self.owner.owner);
        out.push(self.db);
        put_varint(out, self.keys.len() as u64);
        for key in &self.keys {
            put_bytes(out, &key.key);
            out.push(u8::from(key.is_first));
        }
        put_varint(out, self.order.as_ref().map_or(0, |order| order.len() as u64 + 1));
        for place in self.order.iter().flatten() {
            put_varint(out, u64::from(*place));
        }
        encode_wanted(&self.wanted, out);
        put_varint(out, self.since.0);
        put_varint(out, self.claims.len() as u64);
        for claim in &self.claims {
            put_varint(out, claim.id.0);
            put_varint(out, claim.until.0);
            encode_origin(&claim.origin, out);
        }
    }

    /// Reads what [`Wait::encode`] wrote, to the end of the value.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Wait, CodecError> {
        if reader.u8()? != FORMAT {
            return Err(CodecError("a waiting request of an unknown format"));
        }
        let owner = OwnerName::new(reader.bytes()?, reader.bytes()?);
        let db = reader.u8()?;
        let mut keys = Vec::new();
        for _ in 0..reader.varint()? {
            keys.push(WaitKey { key: reader.bytes()?.into(), is_first: reader.bool()? });
        }
        let order = match reader.varint()? {
            0 => None,
            count => {
                let mut order = Vec::new();
                for _ in 1..count {
                    let place = reader.varint32()?;
                    if place as usize >= keys.len() {
                        return Err(CodecError("a waiting request without one of its locks"));
                    }
                    order.push(place);
                }
                Some(order)
            }
        };
        let wanted = decode_wanted(reader)?;
        let since = ClusterTime(reader.varint()?);
        let mut claims = Vec::new();
        for _ in 0..reader.varint()? {
            let (id, until) = (ClaimId(reader.varint()?), ClusterTime(reader.varint()?));
            claims.push(Claim { id, until, origin: decode_origin(reader)? });
        }
        if !reader.is_empty() || keys.is_empty() || claims.is_empty() {
            return Err(CodecError("a waiting request is not whole"));
        }
        Ok(Wait { owner, db, keys, order, wanted, since, claims })
    }

    /// True when it waits for this lock, and maybe for others.
    #[must_use]
    pub fn is_for_one(&self, db: DbIndex, key: &[u8]) -> bool {
        self.db == db && self.keys.iter().any(|known| *known.key == *key)
    }

    /// True when it waits for exactly these locks.
    #[must_use]
    pub fn is_for(&self, db: DbIndex, keys: &[&[u8]]) -> bool {
        self.db == db
            && self.keys.len() == keys.len()
            && self.keys.iter().zip(keys).all(|(known, key)| *known.key == **key)
    }
}

fn encode_wanted(wanted: &Wanted, out: &mut Vec<u8>) {
    out.push(u8::from(wanted.mode == Mode::Shared));
    for number in [u64::from(wanted.limit), wanted.lease.0, wanted.grace.0] {
        put_varint(out, number);
    }
    encode_data(wanted.data.as_deref(), out);
}

fn decode_wanted(reader: &mut Reader<'_>) -> Result<Wanted, CodecError> {
    Ok(Wanted {
        mode: if reader.bool()? { Mode::Shared } else { Mode::Exclusive },
        limit: reader.varint32()?,
        lease: Millis(reader.varint()?),
        grace: Millis(reader.varint()?),
        data: decode_data(reader)?,
    })
}

/// Appends DATA, which may be absent.
pub(super) fn encode_data(data: Option<&[u8]>, out: &mut Vec<u8>) {
    out.push(u8::from(data.is_some()));
    if let Some(data) = data {
        put_bytes(out, data);
    }
}

/// Reads what [`encode_data`] wrote.
pub(super) fn decode_data(reader: &mut Reader<'_>) -> Result<Option<Box<[u8]>>, CodecError> {
    Ok(if reader.bool()? { Some(reader.bytes()?.into()) } else { None })
}

/// Appends where a request came from.
pub(in crate::state) fn encode_origin(origin: &Origin, out: &mut Vec<u8>) {
    for number in [origin.node.0, origin.life, origin.client] {
        put_varint(out, number);
    }
    put_bytes(out, origin.address.as_bytes());
}

/// Reads what [`encode_origin`] wrote.
pub(in crate::state) fn decode_origin(reader: &mut Reader<'_>) -> Result<Origin, CodecError> {
    let (node, life, client) = (NodeId(reader.varint()?), reader.varint()?, reader.varint()?);
    let address = std::str::from_utf8(reader.bytes()?).map_err(|_| CodecError("an address is not UTF-8"))?;
    Ok(Origin { node, life, client, address: address.into() })
}

/// All requests that wait.
#[derive(Debug, Default)]
pub struct Waits {
    by_id: BTreeMap<WaitId, Wait>,
    claims: BTreeMap<ClaimId, WaitId>,
    by_owner: BTreeMap<OwnerName, BTreeSet<WaitId>>,
    /// The claims of each life of a node.
    by_node: BTreeMap<(NodeId, u64), BTreeSet<ClaimId>>,
}

impl Waits {
    /// A request.
    #[must_use]
    pub fn get(&self, id: WaitId) -> Option<&Wait> {
        self.by_id.get(&id)
    }

    /// The request that a client waits for.
    #[must_use]
    pub fn of_claim(&self, claim: ClaimId) -> Option<WaitId> {
        self.claims.get(&claim).copied()
    }

    /// What an owner waits for, oldest first.
    pub fn of(&self, owner: &OwnerName) -> impl Iterator<Item = WaitId> {
        self.by_owner.get(owner).into_iter().flatten().copied()
    }

    /// Every request, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (WaitId, &Wait)> {
        self.by_id.iter().map(|(id, wait)| (*id, wait))
    }

    /// How many requests wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// True when nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
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

    pub(in crate::state) fn insert(&mut self, id: WaitId, wait: Wait) {
        for claim in &wait.claims {
            self.index_claim(id, claim);
        }
        self.by_owner.entry(wait.owner.clone()).or_default().insert(id);
        self.by_id.insert(id, wait);
    }

    pub(in crate::state) fn remove(&mut self, id: WaitId) -> Option<Wait> {
        let wait = self.by_id.remove(&id)?;
        for claim in &wait.claims {
            self.unindex_claim(claim);
        }
        if let Some(ids) = self.by_owner.get_mut(&wait.owner) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_owner.remove(&wait.owner);
            }
        }
        Some(wait)
    }

    pub(super) fn add_claim(&mut self, id: WaitId, claim: Claim) {
        if self.by_id.contains_key(&id) {
            self.index_claim(id, &claim);
        }
        if let Some(wait) = self.by_id.get_mut(&id) {
            wait.claims.push(claim);
        }
    }

    /// Takes one claim out of a request, which stays.
    pub(super) fn remove_claim(&mut self, claim: ClaimId) -> Option<Claim> {
        let wait = self.by_id.get_mut(self.claims.get(&claim)?)?;
        let at = wait.claims.iter().position(|known| known.id == claim)?;
        let claim = wait.claims.remove(at);
        self.unindex_claim(&claim);
        Some(claim)
    }

    fn index_claim(&mut self, id: WaitId, claim: &Claim) {
        self.claims.insert(claim.id, id);
        self.by_node.entry((claim.origin.node, claim.origin.life)).or_default().insert(claim.id);
    }

    fn unindex_claim(&mut self, claim: &Claim) {
        self.claims.remove(&claim.id);
        let node = (claim.origin.node, claim.origin.life);
        if let Some(claims) = self.by_node.get_mut(&node) {
            claims.remove(&claim.id);
            if claims.is_empty() {
                self.by_node.remove(&node);
            }
        }
    }
}
