//! The holds of one lock: few of most locks, many thousands of some.
//!
//! Few stand in a list and are looked through, which costs no memory and is faster than any tree. From
//! [`FEW_MAX`] on they stand in trees, by token, by owner and by the end of their leases, so that a grant, a release
//! and an end cost the same however many others hold the lock too.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::state::locks::Hold;
use crate::state::locks::OwnerName;
use crate::types::ClusterTime;
use crate::types::FencingToken;

/// Up to so many holds are looked through.
const FEW_MAX: usize = 16;

/// Holds, by their tokens; one for each owner.
#[derive(Debug, Clone)]
pub struct Holds(Kept);

#[derive(Debug, Clone)]
enum Kept {
    /// Sorted by token.
    Few(Vec<Hold>),
    Many(Box<Trees>),
}

#[derive(Debug, Clone, Default)]
struct Trees {
    by_token: BTreeMap<FencingToken, Hold>,
    by_owner: BTreeMap<OwnerName, FencingToken>,
    by_end: BTreeSet<(ClusterTime, FencingToken)>,
}

impl Trees {
    fn insert(&mut self, hold: Hold) {
        self.by_owner.insert(hold.owner.clone(), hold.token);
        self.by_end.insert((hold.lease_until, hold.token));
        self.by_token.insert(hold.token, hold);
    }

    fn remove(&mut self, token: FencingToken) -> Option<Hold> {
        let hold = self.by_token.remove(&token)?;
        self.by_owner.remove(&hold.owner);
        self.by_end.remove(&(hold.lease_until, token));
        Some(hold)
    }
}

impl Default for Holds {
    fn default() -> Holds {
        Holds(Kept::Few(Vec::new()))
    }
}

/// What is held, however it is kept.
impl PartialEq for Holds {
    fn eq(&self, other: &Holds) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Holds {}

impl Holds {
    /// All of them, by token.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Hold> {
        let (few, many) = match &self.0 {
            Kept::Few(few) => (&few[..], None),
            Kept::Many(trees) => (&[][..], Some(trees.by_token.values())),
        };
        few.iter().chain(many.into_iter().flatten())
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Kept::Few(few) => few.len(),
            Kept::Many(trees) => trees.by_token.len(),
        }
    }

    /// True when nobody holds the lock.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The one with the smallest token.
    #[must_use]
    pub fn first(&self) -> Option<&Hold> {
        self.iter().next()
    }

    /// The one with the greatest token.
    #[must_use]
    pub fn last(&self) -> Option<&Hold> {
        self.iter().next_back()
    }

    /// The hold of an owner.
    #[must_use]
    pub fn of(&self, owner: &OwnerName) -> Option<&Hold> {
        match &self.0 {
            Kept::Few(few) => few.iter().find(|hold| hold.owner == *owner),
            Kept::Many(trees) => trees.by_token.get(trees.by_owner.get(owner)?),
        }
    }

    /// The hold under a token.
    #[must_use]
    pub fn under(&self, token: FencingToken) -> Option<&Hold> {
        match &self.0 {
            Kept::Few(few) => few.binary_search_by_key(&token, Hold::token).ok().map(|at| &few[at]),
            Kept::Many(trees) => trees.by_token.get(&token),
        }
    }

    /// When the first lease ends, and under which token; of several that end together the smallest.
    #[must_use]
    pub fn first_end(&self) -> Option<(ClusterTime, FencingToken)> {
        match &self.0 {
            Kept::Few(few) => few.iter().map(|hold| (hold.lease_until, hold.token)).min(),
            Kept::Many(trees) => trees.by_end.first().copied(),
        }
    }

    /// The tokens of up to `at_most` holds whose leases end before this time, in that order.
    #[must_use]
    pub fn ending_before(&self, end: ClusterTime, at_most: usize) -> Vec<FencingToken> {
        let few;
        let ends = match &self.0 {
            Kept::Few(holds) => {
                few = holds.iter().map(|hold| (hold.lease_until, hold.token)).collect();
                &few
            }
            Kept::Many(trees) => &trees.by_end,
        };
        ends.iter().take_while(|(until, _)| *until < end).map(|(_, token)| *token).take(at_most).collect()
    }

    /// Adds one, of an owner that has none; its token is greater than all others.
    pub(super) fn push(&mut self, hold: Hold) {
        match &mut self.0 {
            Kept::Few(few) if few.len() < FEW_MAX => few.push(hold),
            Kept::Few(few) => {
                let mut trees = Box::<Trees>::default();
                few.drain(..).for_each(|hold| trees.insert(hold));
                trees.insert(hold);
                self.0 = Kept::Many(trees);
            }
            Kept::Many(trees) => trees.insert(hold),
        }
    }

    /// Takes one out.
    pub(super) fn remove(&mut self, token: FencingToken) -> Option<Hold> {
        match &mut self.0 {
            Kept::Few(few) => {
                let at = few.binary_search_by_key(&token, Hold::token).ok()?;
                Some(few.remove(at))
            }
            Kept::Many(trees) => {
                let hold = trees.remove(token);
                // Not at once below the bound: a lock whose holds come and go there would be rebuilt each time.
                if trees.by_token.len() <= FEW_MAX / 2 {
                    self.0 = Kept::Few(std::mem::take(&mut trees.by_token).into_values().collect());
                }
                hold
            }
        }
    }

    /// Changes the hold under a token; neither its token nor its owner.
    pub(super) fn change<T>(
        &mut self,
        token: FencingToken,
        change: impl FnOnce(&mut Hold) -> T,
    ) -> Option<T> {
        match &mut self.0 {
            Kept::Few(few) => {
                let at = few.binary_search_by_key(&token, Hold::token).ok()?;
                Some(change(&mut few[at]))
            }
            Kept::Many(trees) => {
                let hold = trees.by_token.get_mut(&token)?;
                let before = hold.lease_until;
                let result = change(hold);
                let after = hold.lease_until;
                if before != after {
                    trees.by_end.remove(&(before, token));
                    trees.by_end.insert((after, token));
                }
                Some(result)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::ProptestConfig;
    use proptest::prelude::any;
    use proptest::proptest;

    use super::*;
    use crate::state::notices::Origin;
    use crate::types::Millis;

    fn hold(owner: u64, token: u64, until: u64) -> Hold {
        Hold {
            owner: OwnerName::new(b"user", owner.to_string().as_bytes()),
            token: FencingToken(token),
            lease_until: ClusterTime(until),
            set_until: ClusterTime(until),
            since: ClusterTime(0),
            touches: 1,
            grace: Millis(0),
            data: None,
            origin: Origin::default(),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn many_holds_are_found_as_few_are(draws in proptest::collection::vec(any::<u64>(), 1..300)) {
            let (mut holds, mut list): (Holds, Vec<Hold>) = (Holds::default(), Vec::new());
            for (token, draw) in (1..).zip(draws) {
                let (owner, until) = (draw % 40, (draw >> 8) % 20);
                let token = FencingToken(token);
                match list.iter().position(|hold| *hold.owner.owner == *owner.to_string().as_bytes()) {
                    None => {
                        list.push(hold(owner, token.0, until));
                        holds.push(hold(owner, token.0, until));
                    }
                    Some(at) if (draw >> 16).is_multiple_of(2) => {
                        let gone = list.remove(at);
                        assert_eq!(holds.remove(gone.token), Some(gone));
                    }
                    Some(at) => {
                        list[at].lease_until = ClusterTime(until);
                        let known = list[at].token;
                        assert!(holds.change(known, |hold| hold.lease_until = ClusterTime(until)).is_some());
                    }
                }
                assert!(holds.iter().eq(&list));
                assert_eq!((holds.len(), holds.first(), holds.last()), (list.len(), list.first(), list.last()));
                let mut ends: Vec<_> = list.iter().map(|hold| (hold.lease_until, hold.token)).collect();
                ends.sort_unstable();
                assert_eq!(holds.first_end(), ends.first().copied());
                let soon = ends.iter().filter(|(end, _)| *end < ClusterTime(10)).map(|(_, token)| *token);
                assert_eq!(holds.ending_before(ClusterTime(10), 7), soon.take(7).collect::<Vec<_>>());
                for known in &list {
                    assert_eq!((holds.of(&known.owner), holds.under(known.token)), (Some(known), Some(known)));
                }
                assert!(holds.under(FencingToken(0)).is_none() && holds.remove(FencingToken(0)).is_none());
                assert_eq!(holds.of(&OwnerName::new(b"", b"0")), None);
            }
        }
    }
}
