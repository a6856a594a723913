//! Requests that wait for locks: a part of the state, so that they survive the leader and whoever asked.
//!
//! A request is a [`Wait`]; each client that waits for it has a [`Claim`] on it. There is more than one claim when an
//! owner asks again, through another connection, for what it waits for already: it joins, and keeps its place. A wait
//! without claims is gone.
//!
//! Whoever is told of the grant has what it asked for: the lease and the delay after it (GRACE) are the longest that any of
//! those who wait asked for, DATA is what the newest of them gave. Who leaves takes its part along. Mode and LIMIT cannot
//! differ.
//!
//! ```text
//! wait(parts)   a client joins with its part   wait(parts + its part)
//! wait(parts)   a client leaves                wait(parts − its part); without parts it is gone
//! wait(parts)   it is granted                  lease max(parts), GRACE max(parts), DATA of the newest part that has any
//! ```

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
use crate::types::codec::put_bool;
use crate::types::codec::put_bytes;
use crate::types::codec::put_varint;
use crate::types::planted::Bug;
use crate::types::planted::is_planted;

const FORMAT: u8 = 2;

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

/// What one client asks of a request that others may wait for with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub lease: Millis,
    pub grace: Millis,
    pub data: Option<Box<[u8]>>,
}

impl Part {
    /// What this request would ask for alone.
    #[must_use]
    pub fn of(wanted: &Wanted) -> Part {
        Part { lease: wanted.lease, grace: wanted.grace, data: wanted.data.clone() }
    }
}

/// What is asked for in this mode by all of them together, in the order in which they came.
#[must_use]
pub fn together<'a>(mode: Mode, limit: u32, parts: impl Iterator<Item = &'a Part>) -> Wanted {
    let (mut lease, mut grace, mut data) = (Millis(0), Millis(0), None);
    for part in parts {
        (lease, grace) = (lease.max(part.lease), grace.max(part.grace));
        data = part.data.as_ref().or(data);
    }
    Wanted { mode, limit, lease, grace, data: data.cloned() }
}

/// A client that waits for locks, and what it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    pub claim: Claim,
    pub part: Part,
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
    /// What all who wait ask for together.
    pub wanted: Wanted,
    /// Since when.
    pub since: ClusterTime,
    /// In the order in which they came; never empty.
    pub askers: Vec<Asker>,
}

impl Wait {
    /// The clients that wait, in the order in which they came.
    pub fn claims(&self) -> impl DoubleEndedIterator<Item = &Claim> {
        self.askers.iter().map(|asker| &asker.claim)
    }

    /// Somebody came.
    fn ask_more(&mut self, part: &Part) {
        let wanted = &mut self.wanted;
        (wanted.lease, wanted.grace) = (wanted.lease.max(part.lease), wanted.grace.max(part.grace));
        if part.data.is_some() {
            wanted.data.clone_from(&part.data);
        }
    }

    /// Somebody left who asked for this. Most change nothing by that; the others are asked again.
    fn ask_less(&mut self, part: &Part) {
        let wanted = &self.wanted;
        if part.lease == wanted.lease || part.grace == wanted.grace || part.data.is_some() {
            let parts = self.askers.iter().map(|asker| &asker.part);
            self.wanted = together(wanted.mode, wanted.limit, parts);
        }
    }

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
        put_bool(out, self.wanted.mode == Mode::Shared);
        put_varint(out, u64::from(self.wanted.limit));
        put_varint(out, self.since.0);
        put_varint(out, self.askers.len() as u64);
        for Asker { claim, part } in &self.askers {
            for number in [claim.id.0, claim.until.0, part.lease.0, part.grace.0] {
                put_varint(out, number);
            }
            encode_data(part.data.as_deref(), out);
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
        let mode = if reader.bool()? { Mode::Shared } else { Mode::Exclusive };
        let (limit, since) = (reader.varint32()?, ClusterTime(reader.varint()?));
        let mut askers = Vec::new();
        for _ in 0..reader.varint()? {
            let (id, until) = (ClaimId(reader.varint()?), ClusterTime(reader.varint()?));
            let (lease, grace) = (Millis(reader.varint()?), Millis(reader.varint()?));
            let part = Part { lease, grace, data: decode_data(reader)? };
            askers.push(Asker { claim: Claim { id, until, origin: decode_origin(reader)? }, part });
        }
        if !reader.is_empty() || keys.is_empty() || askers.is_empty() {
            return Err(CodecError("a waiting request is not whole"));
        }
        let wanted = together(mode, limit, askers.iter().map(|asker| &asker.part));
        Ok(Wait { owner, db, keys, order, wanted, since, askers })
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
    ends: Ends,
}

/// When the claims of those who wait for a lock end.
type EndsOfLock = BTreeSet<(ClusterTime, ClaimId)>;

/// The same of all locks; claims that wait for ever are not among them.
#[derive(Debug, Default)]
struct Ends(BTreeMap<DbIndex, BTreeMap<Box<[u8]>, EndsOfLock>>);

impl Ends {
    fn of(&self, db: DbIndex, key: &[u8]) -> impl Iterator<Item = (ClusterTime, ClaimId)> {
        self.0.get(&db).and_then(|locks| locks.get(key)).into_iter().flatten().copied()
    }

    fn insert(&mut self, wait: &Wait, claim: &Claim) {
        if claim.until == ClusterTime::NEVER {
            return;
        }
        let (locks, end) = (self.0.entry(wait.db).or_default(), (claim.until, claim.id));
        for WaitKey { key, .. } in &wait.keys {
            match locks.get_mut(key) {
                Some(ends) => drop(ends.insert(end)),
                None => drop(locks.insert(key.clone(), BTreeSet::from([end]))),
            }
        }
    }

    fn remove(&mut self, wait: &Wait, claim: &Claim) {
        let Some(locks) = self.0.get_mut(&wait.db) else { return };
        for WaitKey { key, .. } in &wait.keys {
            let Some(ends) = locks.get_mut(key) else { continue };
            ends.remove(&(claim.until, claim.id));
            if ends.is_empty() {
                locks.remove(key);
            }
        }
    }
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

    /// The claims on a lock whose time is over, earliest first.
    pub fn due(&self, db: DbIndex, key: &[u8], now: ClusterTime) -> impl Iterator<Item = ClaimId> {
        self.ends.of(db, key).take_while(move |(until, _)| *until <= now).map(|(_, claim)| claim)
    }

    /// Everybody who waits, in a fixed order.
    pub fn owners(&self) -> impl ExactSizeIterator<Item = &OwnerName> {
        self.by_owner.keys()
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
        for claim in wait.claims() {
            self.index_claim(id, claim);
            self.ends.insert(&wait, claim);
        }
        self.by_owner.entry(wait.owner.clone()).or_default().insert(id);
        self.by_id.insert(id, wait);
    }

    pub(in crate::state) fn remove(&mut self, id: WaitId) -> Option<Wait> {
        let wait = self.by_id.remove(&id)?;
        for claim in wait.claims() {
            self.unindex_claim(claim);
            self.ends.remove(&wait, claim);
        }
        if let Some(ids) = self.by_owner.get_mut(&wait.owner) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_owner.remove(&wait.owner);
            }
        }
        Some(wait)
    }

    pub(super) fn add(&mut self, id: WaitId, asker: Asker) {
        if self.by_id.contains_key(&id) {
            self.index_claim(id, &asker.claim);
        }
        if let Some(wait) = self.by_id.get_mut(&id) {
            self.ends.insert(wait, &asker.claim);
            if !is_planted(Bug::JoinAsksForNothing) {
                wait.ask_more(&asker.part);
            }
            wait.askers.push(asker);
        }
    }

    /// Takes one claim out of a request, which stays.
    pub(super) fn remove_claim(&mut self, claim: ClaimId) -> Option<Claim> {
        let wait = self.by_id.get_mut(self.claims.get(&claim)?)?;
        let at = wait.claims().position(|known| known.id == claim)?;
        let Asker { claim, part } = wait.askers.remove(at);
        wait.ask_less(&part);
        self.ends.remove(wait, &claim);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn part(lease: u64, grace: u64, data: Option<&str>) -> Part {
        let data = data.map(|data| data.as_bytes().into());
        Part { lease: Millis(lease), grace: Millis(grace), data }
    }

    #[test]
    fn those_who_wait_together_ask_for_the_longest_lease_and_grace_and_the_newest_data() {
        let parts = [part(9, 0, Some("a")), part(3, 7, Some("b")), part(5, 2, None)];
        let wanted = together(Mode::Shared, 4, parts.iter());
        assert_eq!((wanted.mode, wanted.limit), (Mode::Shared, 4));
        assert_eq!(Part::of(&wanted), part(9, 7, Some("b")));
        assert_eq!(Part::of(&together(Mode::Exclusive, 0, parts[2..].iter())), part(5, 2, None));
    }

    #[test]
    fn a_client_that_leaves_takes_its_part_along() {
        let claim = |id| Claim { id: ClaimId(id), origin: Origin::default(), until: ClusterTime::NEVER };
        let asker = |id, lease| Asker { claim: claim(id), part: part(lease, 0, None) };
        let wanted = together(Mode::Exclusive, 0, [part(60, 0, None)].iter());
        let keys = vec![WaitKey { key: (*b"k").into(), is_first: false }];
        let owner = OwnerName::new(b"default", b"me");
        let wait = Wait {
            owner,
            db: 0,
            keys,
            order: None,
            wanted,
            since: ClusterTime(1),
            askers: vec![asker(1, 60)],
        };
        let mut waits = Waits::default();
        waits.insert(WaitId(1), wait);
        waits.add(WaitId(1), asker(2, 90));
        let lease = |waits: &Waits| waits.get(WaitId(1)).unwrap().wanted.lease;
        assert_eq!(lease(&waits), Millis(90));
        let mut row = Vec::new();
        waits.get(WaitId(1)).unwrap().encode(&mut row);
        assert_eq!(Wait::decode(&mut Reader::new(&row)).as_ref(), Ok(waits.get(WaitId(1)).unwrap()));
        assert_eq!(waits.remove_claim(ClaimId(2)), Some(claim(2)));
        assert_eq!(lease(&waits), Millis(60));
    }
}
