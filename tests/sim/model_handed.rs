//! What was handed to those who waited, of the model: written from the table of `state::handed`, slowly.
//!
//! A hand-over is nobody's until one of its clients is confirmed. What nobody was told of goes back when the last of its
//! clients leaves, or when one is confirmed too late; and when its lease ends by time it is as if it had gone back.

use super::locks::Claim;
use super::locks::End;
use super::locks::Ended;
use super::locks::Hold;
use super::locks::Who;
use super::*;

/// Something that was handed over, and whose clients did not confirm it yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HandOver {
    pub db: u8,
    pub who: Who,
    /// Key, token, and the touches of the hold at which it goes back; 0: it does not.
    pub locks: Vec<(Vec<u8>, u64, u64)>,
    /// Queue and receipt.
    pub messages: Vec<(Vec<u8>, MessageId, u32)>,
    /// Claim, node and life.
    pub clients: Vec<(u64, u64, u64)>,
    pub is_known: bool,
}

impl Model {
    /// What was handed over and is not confirmed by all.
    pub fn handed(&self) -> &BTreeMap<u64, HandOver> {
        &self.handed
    }

    /// The claims that the last entry confirmed, in order, with the times until which their clients have what they got.
    pub fn confirmed(&self) -> &[(u64, u64)] {
        &self.confirmed
    }

    pub(super) fn hand(&mut self, id: u64, claims: &[Claim], mut hand_over: HandOver) {
        hand_over.clients = claims.iter().map(|claim| (claim.id, claim.node, claim.life)).collect();
        for (_, token, touches) in &hand_over.locks {
            if *touches > 0 {
                self.keep(*token);
            }
        }
        self.handed.insert(id, hand_over);
    }

    /// A hold goes back with none of the hand-overs there are.
    fn keep(&mut self, token: u64) {
        for (_, of, touches) in self.handed.values_mut().flat_map(|hand_over| &mut hand_over.locks) {
            if *of == token {
                *touches = 0;
            }
        }
    }

    /// Nobody was told of this hold, which its owner did not touch since.
    pub(super) fn is_unheard(&self, hold: &Hold) -> bool {
        let mut locks = self.handed.values().flat_map(|hand_over| &hand_over.locks);
        locks.any(|(_, token, touches)| (*token, *touches) == (hold.token, hold.touches))
    }

    /// Nobody was told of this hand-out.
    pub(super) fn is_unheard_message(&self, id: MessageId, delivery: u32) -> bool {
        let unknown = self.handed.values().filter(|hand_over| !hand_over.is_known);
        let mut messages = unknown.flat_map(|hand_over| &hand_over.messages);
        messages.any(|(_, of, number)| (*of, *number) == (id, delivery))
    }

    fn handed_to(&self, claim: u64) -> Option<u64> {
        let is_its = |hand_over: &HandOver| hand_over.clients.iter().any(|(of, _, _)| *of == claim);
        self.handed.iter().find(|(_, hand_over)| is_its(hand_over)).map(|(id, _)| *id)
    }

    /// Until when everything is given; `None` when something is not.
    fn given_until(&self, hand_over: &HandOver) -> Option<u64> {
        let now = self.clock;
        let mut until = u64::MAX;
        for (key, token, _) in &hand_over.locks {
            let lock = self.lock_of(hand_over.db, key)?;
            let is_it = |hold: &&Hold| {
                hold.token == *token && (&hold.user, &hold.owner) == (&hand_over.who.0, &hand_over.who.1)
            };
            until = until.min(lock.holds.iter().find(is_it)?.until);
        }
        for (queue, id, delivery) in &hand_over.messages {
            let message = self.queue_of(hand_over.db, queue)?.message(*id)?;
            match message.place {
                Place::Leased(end, _) if message.delivery == *delivery => until = until.min(end),
                _ => return None,
            }
        }
        (until > now).then_some(until)
    }

    /// CONFIRM of one claim. False when it was handed nothing, or not all of it is given any more.
    pub(super) fn confirm(&mut self, claim: u64) -> bool {
        let Some(id) = self.handed_to(claim) else { return false };
        let hand_over = self.handed[&id].clone();
        match self.given_until(&hand_over) {
            Some(until) => {
                self.confirmed.push((claim, until));
                self.drop_client(id, claim);
                hand_over.locks.iter().for_each(|(_, token, _)| self.keep(*token));
                if let Some(hand_over) = self.handed.get_mut(&id) {
                    hand_over.is_known = true;
                }
                true
            }
            None if hand_over.is_known => {
                self.drop_client(id, claim);
                self.tell_over(&hand_over, Some(claim));
                false
            }
            None => {
                self.go_back(id);
                false
            }
        }
    }

    /// A client waits no more that did not confirm. False when it was handed nothing.
    pub(super) fn leave_handed(&mut self, claim: u64) -> bool {
        let Some(id) = self.handed_to(claim) else { return false };
        let hand_over = self.handed[&id].clone();
        if hand_over.is_known || hand_over.clients.len() > 1 {
            self.drop_client(id, claim);
            self.tell_over(&hand_over, Some(claim));
        } else {
            self.go_back(id);
        }
        true
    }

    fn drop_client(&mut self, id: u64, claim: u64) {
        let Some(hand_over) = self.handed.get_mut(&id) else { return };
        hand_over.clients.retain(|(of, _, _)| *of != claim);
        if hand_over.clients.is_empty() {
            self.handed.remove(&id);
        }
    }

    fn tell_over(&mut self, hand_over: &HandOver, only: Option<u64>) {
        for (claim, node, life) in &hand_over.clients {
            if only.is_none_or(|only| only == *claim) {
                let who = hand_over.who.clone();
                let (claim, node, life) = (*claim, *node, *life);
                let (keys, is_time_out) = (Vec::new(), false);
                self.ended.push(Ended { claim, node, life, who, keys, is_time_out, end: End::Over });
            }
        }
    }

    fn go_back(&mut self, id: u64) {
        let hand_over = self.handed[&id].clone();
        self.tally.handed_back += 1;
        self.tell_over(&hand_over, None);
        for (key, token, touches) in &hand_over.locks {
            if *touches > 0 {
                self.take_back(hand_over.db, &hand_over.who, &[(key.as_slice(), *token, *touches)]);
            }
        }
        for (queue, message, delivery) in &hand_over.messages {
            self.return_silently(hand_over.db, queue, *message, *delivery);
        }
        self.handed.remove(&id);
    }

    /// The claims of clients of a node in lives before this one that did not confirm, by life and number.
    pub(super) fn handed_before(&self, node: u64, life: u64) -> Vec<(u64, u64)> {
        let clients = self.handed.values().flat_map(|hand_over| &hand_over.clients);
        let gone = clients.filter(|(_, of, in_life)| *of == node && *in_life < life);
        let mut gone: Vec<(u64, u64)> = gone.map(|(claim, _, life)| (*life, *claim)).collect();
        gone.sort_unstable();
        gone
    }
}
