//! The locks of the model: who holds, who waits, and who waits for whom. Written from COMMANDS.md 2.2 and the table of
//! `state::locks::rules`, slowly: whatever is asked is looked for among everything there is.

use super::*;

/// An owner within its user.
pub type Who = (Vec<u8>, Vec<u8>);

/// Never, as the end of a wait.
const NEVER: u64 = u64::MAX;
/// At most this many share a lock without LIMIT.
const HOLDERS_MAX: usize = 100_000;
/// A release under its token is remembered so long.
const RELEASES_KEPT: u64 = 600_000;

/// One owner's part of a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    pub user: Vec<u8>,
    pub owner: Vec<u8>,
    pub token: u64,
    /// Cluster time in milliseconds.
    pub until: u64,
    /// Where the owner last set `until`; grace is counted from here.
    pub set_until: u64,
    /// When the hold began.
    pub since: u64,
    /// How often the owner set it.
    pub touches: u64,
    /// Nobody else gets the lock for so long when the lease ends.
    pub grace: u64,
    pub data: Option<Vec<u8>>,
}

impl Hold {
    fn who(&self) -> Who {
        (self.user.clone(), self.owner.clone())
    }
}

/// A lock that is held, waited for or delayed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lock {
    pub is_shared: bool,
    pub limit: u32,
    /// By their tokens.
    pub holds: Vec<Hold>,
    /// Who waits, in order, by the numbers of [`Wait`]s.
    pub queue: Vec<u64>,
    /// 0: not delayed.
    pub delayed_until: u64,
    /// Who left the delay, if it was one owner, and may take the lock all the same.
    pub delayed_by: Option<Who>,
}

impl Lock {
    fn hold_of(&self, who: &Who) -> Option<&Hold> {
        self.holds.iter().find(|hold| hold.who() == *who)
    }

    /// What ends first by time, and when: a hold by its token, or the delay.
    pub(super) fn first_end(&self) -> Option<(u64, Option<u64>)> {
        let hold = self.holds.iter().map(|hold| (hold.until, hold.token)).min();
        match hold {
            Some((until, token)) if self.delayed_until == 0 || until <= self.delayed_until => {
                Some((until, Some(token)))
            }
            _ => (self.delayed_until != 0).then_some((self.delayed_until, None)),
        }
    }

    fn is_full(&self) -> bool {
        self.holds.len() >= if self.limit == 0 { HOLDERS_MAX } else { self.limit as usize }
    }
}

/// What is asked of each lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub is_shared: bool,
    pub limit: u32,
    pub lease: u64,
    pub grace: u64,
    pub data: Option<Vec<u8>>,
}

/// A client that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub id: u64,
    pub until: u64,
    pub node: u64,
    pub life: u64,
}

/// A request that waits; its number is that of its first claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    pub who: Who,
    pub db: u8,
    /// Each lock once, and whether the owner held it when it asked: then it waits before all others.
    pub keys: Vec<(Vec<u8>, bool)>,
    /// Of a request for several locks: the place in `keys` of each that was named.
    pub order: Option<Vec<u32>>,
    /// What each of its clients asked for, by claim.
    pub asked: BTreeMap<u64, Wanted>,
    pub claims: Vec<Claim>,
}

impl Wait {
    /// What those ask for who still wait: for as long as any of them, with the newest data.
    pub fn wanted(&self) -> Wanted {
        let mut parts = self.claims.iter().map(|claim| &self.asked[&claim.id]);
        let mut wanted = parts.next().expect("somebody waits").clone();
        for part in parts {
            wanted.lease = wanted.lease.max(part.lease);
            wanted.grace = wanted.grace.max(part.grace);
            wanted.data = part.data.clone().or(wanted.data);
        }
        wanted
    }
}

/// How a wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Key, token and touches of each lock.
    Granted {
        grants: Vec<(Vec<u8>, u64, u64)>,
        order: Option<Vec<u32>>,
    },
    /// Messages for a QPOP.
    Delivered {
        db: u8,
        with_meta: bool,
        no_ack: bool,
        messages: Vec<Popped>,
    },
    Over,
    Failed(String),
}

/// The end of a client's wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub claim: u64,
    pub node: u64,
    pub life: u64,
    /// Of the request.
    pub who: Who,
    pub keys: Vec<Vec<u8>>,
    pub is_time_out: bool,
    pub end: End,
}

/// How often what happens rarely happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Shared holds that became exclusive.
    pub upgrades: u64,
    /// Cycles.
    pub deadlocks: u64,
    /// Guards that were refused.
    pub stale_tokens: u64,
    /// Atomic transactions that came to nothing.
    pub rollbacks: u64,
    /// Named transactions that came again.
    pub answered_again: u64,
    /// Waits that ended because their node's life was over.
    pub lives_ended: u64,
    /// Grants that nobody had heard of.
    pub taken_back: u64,
    /// Messages that were put aside, and those of them that went to another queue.
    pub died: u64,
    pub buried: u64,
    pub redriven: u64,
    /// Queues that were no keys any more, with nothing in them.
    pub rested: u64,
    /// Pushes whose ID was known.
    pub duplicates: u64,
    pub extended: u64,
    /// QACKs that came again.
    pub acked_again: u64,
    /// Messages that nobody had heard of.
    pub given_back: u64,
    /// Clients that joined a wait.
    pub joined: u64,
    /// Hand-overs that came to nothing.
    pub handed_back: u64,
}

/// Whether a request can have a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Yes,
    No,
    /// It is shared with another LIMIT.
    OtherLimit(u32),
}

/// What came of LOCK or MLOCK.
enum Got {
    Tokens(Vec<u64>),
    Nothing,
    Waiting(u64),
}

/// One of these owners must go on first.
#[derive(Debug, Clone)]
struct Need {
    wait: u64,
    key: Vec<u8>,
    of: Vec<Who>,
}

/// What a request wants, with the words behind the owner read.
struct LockOptions {
    wanted: Wanted,
    block: Option<u64>,
}

fn syntax(what: &str) -> Cow<'static, str> {
    format!("ERR syntax error: {what}").into()
}

fn shown(name: &[u8]) -> String {
    name[..name.len().min(256)].escape_ascii().to_string()
}

fn other_limit(limit: u32) -> String {
    if limit == 0 {
        return "ERR this lock is shared without a LIMIT; ask for it without one".to_owned();
    }
    format!("ERR this lock is shared with LIMIT {limit}; ask for it with the same one")
}

fn within(word: &[u8], name: &str, most: i64) -> Result<u64, Cow<'static, str>> {
    let number = integer_or_error(word)?;
    if !(0..=most).contains(&number) {
        return Err(format!("ERR {name} must be between 0 and {most} milliseconds").into());
    }
    Ok(number as u64)
}

fn token_of(word: &[u8]) -> Option<u64> {
    integer(word).filter(|token| (1..1 << 53).contains(token)).map(|token| token as u64)
}

impl LockOptions {
    fn parse(verb: &str, words: &[&[u8]], default_lease: u64) -> Result<LockOptions, Cow<'static, str>> {
        let all: &[&str] = match verb {
            "LOCK" => &["SHARED", "LIMIT", "EX", "PX", "BLOCK", "GRACE", "DATA"],
            _ => &["SHARED", "EX", "PX", "BLOCK"],
        };
        let mut given: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
        let (mut limit, mut lease, mut block, mut grace) = (None, None, None, None);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some(name) = all.iter().find(|name| is(word, name)) else {
                let shown = word[..word.len().min(64)].escape_ascii();
                return Err(syntax(&format!("{verb} has no option '{shown}'")));
            };
            let mut value: &[u8] = b"";
            if *name != "SHARED" {
                value = words.next().ok_or_else(|| syntax(&format!("{name} needs a value")))?;
            }
            match *name {
                "LIMIT" => {
                    let number = integer_or_error(value)?;
                    if !(1..=100_000).contains(&number) {
                        return Err("ERR LIMIT must be between 1 and 100000".into());
                    }
                    limit = Some(number as u32);
                }
                "EX" => lease = Some(lease_ms(value, 1000)?),
                "PX" => lease = Some(lease_ms(value, 1)?),
                "BLOCK" => block = Some(within(value, "BLOCK", 365 * 86_400_000)?),
                "GRACE" => grace = Some(within(value, "GRACE", 86_400_000)?),
                "DATA" if value.len() > 1024 => {
                    return Err("ERR DATA must be at most 1024 bytes long".into());
                }
                _ => {}
            }
            let slot = if matches!(*name, "EX" | "PX") { "lease" } else { *name };
            if given.insert(slot, value.to_vec()).is_some() {
                return Err(match slot {
                    "lease" => syntax("the lease is given twice"),
                    slot => syntax(&format!("{slot} is given twice")),
                });
            }
        }
        let is_shared = given.contains_key("SHARED");
        if limit.is_some() && !is_shared {
            return Err(syntax("LIMIT needs SHARED"));
        }
        let wanted = Wanted {
            is_shared,
            limit: limit.unwrap_or(0),
            lease: lease.unwrap_or(default_lease),
            grace: grace.unwrap_or(0),
            data: given.remove("DATA"),
        };
        Ok(LockOptions { wanted, block })
    }
}

/// Whether the owner can have the lock when its turn has come.
fn turn(lock: &Lock, who: &Who, wanted: &Wanted, now: u64) -> Turn {
    let is_own = lock.hold_of(who).is_some();
    let others = lock.holds.len() - usize::from(is_own);
    if is_own && !lock.is_shared {
        return Turn::Yes;
    }
    if !is_own && lock.delayed_until > now && lock.delayed_by.as_ref() != Some(who) {
        return Turn::No;
    }
    if others == 0 && !(is_own && wanted.is_shared) {
        return Turn::Yes;
    }
    if !wanted.is_shared || !lock.is_shared {
        return Turn::No;
    }
    if wanted.limit != lock.limit {
        return Turn::OtherLimit(lock.limit);
    }
    if is_own || !lock.is_full() { Turn::Yes } else { Turn::No }
}

impl Model {
    // ---- questions ------------------------------------------------------------------------------------

    /// The lock under a key, as of the last entry.
    pub fn lock_of(&self, db: u8, key: &[u8]) -> Option<&Lock> {
        match self.thing(db, key)? {
            Thing::Lock(lock) => Some(lock),
            Thing::String(..) | Thing::Queue(_) => None,
        }
    }

    /// Who holds a lock, as of the last entry; of several that share it the first.
    pub fn hold(&self, db: u8, key: &[u8]) -> Option<&Hold> {
        self.lock_of(db, key)?.holds.first()
    }

    /// Everybody who waits, by number.
    pub fn waits(&self) -> &BTreeMap<u64, Wait> {
        &self.waits
    }

    /// Whose waits the last entry ended, in order.
    pub fn ended(&self) -> &[Ended] {
        &self.ended
    }

    /// The tokens that the last entry took back.
    pub fn taken_back(&self) -> &[u64] {
        &self.taken_back
    }

    /// How often what happens rarely happened so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// The first that waits for a lock although it is its turn everywhere: nobody told it. Also whoever waits for a
    /// lock that does not know it.
    pub fn forgotten_wait(&self) -> Option<u64> {
        let is_turn = |(id, wait): &(&u64, &Wait)| {
            wait.keys.iter().all(|(key, _)| {
                self.lock_of(wait.db, key).is_none_or(|lock| {
                    // The end of a delay is an entry, too.
                    !lock.queue.contains(id)
                        || (lock.delayed_until == 0
                            && lock.queue.first() == Some(*id)
                            && turn(lock, &wait.who, &wait.wanted(), self.clock) != Turn::No)
                })
            })
        };
        self.waits.iter().find(is_turn).map(|(id, _)| *id)
    }

    /// Everybody who can never go on: in a cycle, or behind one.
    pub fn stuck(&self) -> BTreeSet<Who> {
        let mut stuck: BTreeSet<Who> = self.waits.values().map(|wait| wait.who.clone()).collect();
        loop {
            let can_go_on = |who: &Who| {
                self.needs_of(who).iter().all(|need| need.of.iter().any(|other| !stuck.contains(other)))
            };
            let free: Vec<Who> = stuck.iter().filter(|who| can_go_on(who)).cloned().collect();
            if free.is_empty() {
                return stuck;
            }
            free.iter().for_each(|who| {
                stuck.remove(who);
            });
        }
    }

    // ---- rows -------------------------------------------------------------------------------------------

    fn lock_or_error(&self, db: u8, key: &[u8]) -> Result<Option<&Lock>, Cow<'static, str>> {
        match self.thing(db, key) {
            None => Ok(None),
            Some(Thing::Lock(lock)) => Ok(Some(lock)),
            Some(Thing::String(..) | Thing::Queue(_)) => Err(WRONG_TYPE.into()),
        }
    }

    /// A lock that is about to change; a new one when there is none.
    fn lock_mut(&mut self, db: u8, key: &[u8]) -> &mut Lock {
        if self.slot(db, key).is_none() {
            self.put(db, key, Thing::Lock(Lock::default()));
        }
        match self.slot_mut(db, key).map(|slot| &mut slot.thing) {
            Some(Thing::Lock(lock)) => lock,
            _ => unreachable!("nobody waits for a key of another type"),
        }
    }

    /// The locks of an owner in a database.
    fn held_by(&self, db: u8, who: &Who) -> Vec<Vec<u8>> {
        let slots = self.databases.get(&db).into_iter().flatten();
        let is_held = |slot: &Slot| match &slot.thing {
            Thing::Lock(lock) => lock.hold_of(who).is_some(),
            Thing::String(..) | Thing::Queue(_) => false,
        };
        slots.filter(|(_, slot)| is_held(slot)).map(|(key, _)| key.clone()).collect()
    }

    // ---- LOCK and MLOCK ---------------------------------------------------------------------------------

    pub(super) fn lock(&mut self, call: &Call<'_>) -> Outcome {
        let owner = owner(call.words[2])?;
        let options = LockOptions::parse("LOCK", &call.words[3..], self.settings.lock_default_ttl.0)?;
        Ok(match self.acquire(call, &[call.words[1]], None, owner, &options)? {
            Got::Tokens(tokens) => count_reply(tokens[0] as usize),
            Got::Nothing => Reply::Null,
            Got::Waiting(claim) => Reply::Waiting(claim),
        })
    }

    pub(super) fn mlock(&mut self, call: &Call<'_>) -> Outcome {
        let count = integer_or_error(call.words[1])?;
        if !(1..=128).contains(&count) {
            return Err("ERR MLOCK numkeys must be between 1 and 128".into());
        }
        let count = count as usize;
        let Some(owner_word) = call.words.get(2 + count) else {
            return Err("ERR MLOCK numkeys does not match the number of keys: an owner follows them".into());
        };
        let owner = owner(owner_word)?;
        let options =
            LockOptions::parse("MLOCK", &call.words[3 + count..], self.settings.lock_default_ttl.0)?;
        let (mut keys, mut order): (Vec<&[u8]>, Vec<u32>) = (Vec::new(), Vec::new());
        for key in &call.words[2..2 + count] {
            if !keys.contains(key) {
                keys.push(key);
            }
            order.push(keys.iter().position(|known| known == key).unwrap_or(0) as u32);
        }
        Ok(match self.acquire(call, &keys, Some(order.clone()), owner, &options)? {
            Got::Tokens(tokens) => {
                Reply::Array(order.iter().map(|at| count_reply(tokens[*at as usize] as usize)).collect())
            }
            Got::Nothing => Reply::NullArray,
            Got::Waiting(claim) => Reply::Waiting(claim),
        })
    }

    fn acquire(
        &mut self,
        call: &Call<'_>,
        keys: &[&[u8]],
        order: Option<Vec<u32>>,
        owner: &[u8],
        options: &LockOptions,
    ) -> Result<Got, Cow<'static, str>> {
        let (db, wanted, now) = (call.db, &options.wanted, self.clock);
        let who: Who = (call.user.to_vec(), owner.to_vec());
        let (mut missing, mut makes_room) = (None, false);
        let mut named = Vec::new();
        for key in keys {
            let lock = self.lock_or_error(db, key)?.cloned().unwrap_or_default();
            let is_own = lock.hold_of(&who).is_some();
            makes_room |= is_own && !lock.is_shared && wanted.is_shared;
            match turn(&lock, &who, wanted, now) {
                Turn::OtherLimit(limit) => return Err(other_limit(limit).into()),
                Turn::Yes if is_own || lock.queue.is_empty() => {}
                // They wait until its delay is over.
                Turn::Yes if lock.delayed_until > now => makes_room = true,
                Turn::Yes | Turn::No => missing = missing.or(Some((*key, lock))),
            }
            named.push((key.to_vec(), is_own));
        }
        let Some((missing, lock)) = missing else {
            let tokens = keys.iter().map(|key| self.grant(db, key, &who, wanted).1).collect();
            // A delay that is over ends by itself: only who shares now what was his alone lets others in.
            keys.iter().filter(|_| makes_room).for_each(|key| self.hand_over(db, key));
            // Becoming exclusive may have closed a cycle through another wait of the owner.
            while let Some(cycle) = self.cycle_of(&who) {
                let (wait, text) = self.victim_and_text(&cycle);
                self.end_wait(wait, false, &End::Failed(text));
            }
            return Ok(Got::Tokens(tokens));
        };
        if call.in_transaction {
            let (holder, left) = match lock.holds.first() {
                Some(hold) => (shown(&hold.owner), hold.until.saturating_sub(now)),
                None => ("none".to_owned(), 0),
            };
            return Err(format!("LOCKED {} holder={holder} ttl={left}", shown(missing)).into());
        }
        let Some(block) = options.block else { return Ok(Got::Nothing) };
        let until = if block == 0 { NEVER } else { now.saturating_add(block) };
        let is_same = |wait: &Wait| {
            wait.who == who
                && wait.db == db
                && wait.order == order
                && wait.keys.len() == keys.len()
                && wait.keys.iter().zip(keys).all(|((known, _), key)| known == key)
        };
        let joined = self.waits.iter().find(|(_, wait)| is_same(wait)).map(|(id, _)| *id);
        if let Some(id) = joined {
            let wait = self.waits.get_mut(&id).expect("it was found just now");
            let known = wait.wanted();
            if (known.is_shared, known.limit) != (wanted.is_shared, wanted.limit) {
                return Err("ERR this owner waits for this already, in another mode".into());
            }
            self.last_claim += 1;
            wait.asked.insert(self.last_claim, wanted.clone());
            self.tally.joined += 1;
            wait.claims.push(Claim { id: self.last_claim, until, node: call.node, life: call.life });
            return Ok(Got::Waiting(self.last_claim));
        }
        self.last_claim += 1;
        let id = self.last_claim;
        let claims = vec![Claim { id, until, node: call.node, life: call.life }];
        for (key, is_first) in &named {
            let firsts = self.lock_of(db, key).map_or(0, |lock| {
                let is_first = |id: &&u64| self.waits[*id].keys.iter().any(|(of, first)| of == key && *first);
                lock.queue.iter().filter(is_first).count()
            });
            let queue = &mut self.lock_mut(db, key).queue;
            queue.insert(if *is_first { firsts } else { queue.len() }, id);
        }
        let asked = BTreeMap::from([(id, wanted.clone())]);
        self.waits.insert(id, Wait { who, db, keys: named, order, asked, claims });
        self.resolve(id)?;
        Ok(Got::Waiting(id))
    }

    /// Gives a lock to an owner whose turn it is; its token and touches.
    fn grant(&mut self, db: u8, key: &[u8], who: &Who, wanted: &Wanted) -> (Vec<u8>, u64, u64) {
        let now = self.clock;
        let until = now.saturating_add(wanted.lease);
        let next = self.last_token + 1;
        let lock = self.lock_mut(db, key);
        let at = lock.holds.iter().position(|hold| hold.who() == *who);
        let is_upgrade = lock.is_shared && !wanted.is_shared;
        let (mut old_data, mut touches) = (None, 1);
        if lock.delayed_by.as_ref() == Some(who) && at.is_none() {
            (lock.delayed_until, lock.delayed_by) = (0, None);
        }
        if let Some(at) = at {
            if !is_upgrade {
                (lock.is_shared, lock.limit) = (wanted.is_shared, wanted.limit);
                let hold = &mut lock.holds[at];
                (hold.until, hold.set_until, hold.grace) = (until, until, wanted.grace);
                hold.touches += 1;
                if wanted.data.is_some() {
                    hold.data.clone_from(&wanted.data);
                }
                return (key.to_vec(), hold.token, hold.touches);
            }
            let old = lock.holds.remove(at);
            (old_data, touches) = (old.data, old.touches + 1);
        }
        (lock.is_shared, lock.limit) = (wanted.is_shared, wanted.limit);
        lock.holds.push(Hold {
            user: who.0.clone(),
            owner: who.1.clone(),
            token: next,
            until,
            set_until: until,
            since: now,
            touches,
            grace: wanted.grace,
            data: wanted.data.clone().or(old_data),
        });
        self.last_token = next;
        self.tally.upgrades += u64::from(at.is_some());
        (key.to_vec(), next, touches)
    }

    // ---- ends -------------------------------------------------------------------------------------------

    /// Whoever is the first now and can have the lock gets it, then the next one. A request for several locks that
    /// goes on makes room in its other queues.
    fn hand_over(&mut self, db: u8, key: &[u8]) {
        let mut keys = vec![key.to_vec()];
        while let Some(key) = keys.pop() {
            while let Some(lock) = self.lock_of(db, &key) {
                let Some(id) = lock.queue.first().copied() else {
                    if lock.holds.is_empty() && lock.delayed_until == 0 {
                        self.remove(db, &key);
                    }
                    break;
                };
                let wait = self.waits[&id].clone();
                let mut turns = wait.keys.iter().map(|(key, _)| match self.lock_of(db, key) {
                    Some(lock) if lock.queue.first() == Some(&id) => {
                        turn(lock, &wait.who, &wait.wanted(), self.clock)
                    }
                    Some(_) | None => Turn::No,
                });
                let others = wait.keys.iter().map(|(key, _)| key.clone()).filter(|other| *other != key);
                match turns.find(|turn| *turn != Turn::Yes) {
                    Some(Turn::No) => break,
                    Some(Turn::OtherLimit(limit)) => {
                        self.leave(id);
                        self.tell(&wait, &wait.claims, false, &End::Failed(other_limit(limit)));
                        keys.extend(others);
                        continue;
                    }
                    Some(Turn::Yes) | None => {}
                }
                let due: Vec<Claim> =
                    wait.claims.iter().filter(|claim| claim.until <= self.clock).cloned().collect();
                if due.len() == wait.claims.len() {
                    self.leave(id);
                    self.tell(&wait, &due, true, &End::Over);
                    keys.extend(others);
                    continue;
                }
                if !due.is_empty() {
                    self.waits.get_mut(&id).expect("it waits").claims.retain(|claim| !due.contains(claim));
                    self.tell(&wait, &due, true, &End::Over);
                    continue;
                }
                self.leave(id);
                let (mut grants, mut locks) = (Vec::new(), Vec::new());
                for (key, _) in &wait.keys {
                    let held = self.lock_of(db, key).and_then(|lock| lock.hold_of(&wait.who)).cloned();
                    let (key, token, touches) = self.grant(db, key, &wait.who, &wait.wanted());
                    let goes_back = held.as_ref().is_none_or(|held| self.is_unheard(held));
                    locks.push((key.clone(), token, if goes_back { touches } else { 0 }));
                    // When one of its clients may hear of it, or held it before, no other can take it back.
                    let is_for_one = wait.claims.len() == 1 && held.is_none();
                    grants.push((key, token, if is_for_one { touches } else { 0 }));
                }
                let end = End::Granted { grants, order: wait.order.clone() };
                self.tell(&wait, &wait.claims, false, &end);
                let hand_over = HandOver { db, who: wait.who.clone(), locks, ..HandOver::default() };
                self.hand(id, &wait.claims, hand_over);
                keys.extend(others);
            }
        }
    }

    fn tell(&mut self, wait: &Wait, claims: &[Claim], is_time_out: bool, end: &End) {
        for claim in claims {
            self.ended.push(Ended {
                claim: claim.id,
                node: claim.node,
                life: claim.life,
                who: wait.who.clone(),
                keys: wait.keys.iter().map(|(key, _)| key.clone()).collect(),
                is_time_out,
                end: end.clone(),
            });
        }
    }

    /// Takes a request out of its queues.
    fn leave(&mut self, id: u64) -> Option<Wait> {
        let wait = self.waits.remove(&id)?;
        for (key, _) in &wait.keys {
            self.lock_mut(wait.db, key).queue.retain(|other| *other != id);
        }
        Some(wait)
    }

    fn end_wait(&mut self, id: u64, is_time_out: bool, end: &End) {
        let Some(wait) = self.leave(id) else { return };
        self.tell(&wait, &wait.claims, is_time_out, end);
        wait.keys.iter().for_each(|(key, _)| self.hand_over(wait.db, key));
    }

    /// A client waits no more. False when it did not.
    pub(super) fn end_claim(&mut self, claim: u64) -> bool {
        let has = |wait: &&mut Wait| wait.claims.iter().any(|known| known.id == claim);
        let Some(wait) = self.waits.values_mut().find(has) else {
            return self.end_pop(claim) || self.leave_handed(claim);
        };
        let is_time_out = wait.claims.iter().any(|known| known.id == claim && known.until <= self.clock);
        if wait.claims.len() == 1 {
            let id = *self.waits.iter().find(|(_, wait)| wait.claims[0].id == claim).expect("it waits").0;
            self.end_wait(id, is_time_out, &End::Over);
            return true;
        }
        let gone: Vec<Claim> = wait.claims.extract_if(.., |known| known.id == claim).collect();
        let wait = wait.clone();
        self.tell(&wait, &gone, is_time_out, &End::Over);
        true
    }

    /// Clients of a node in lives before this one are gone.
    pub(super) fn end_claims_before(&mut self, node: u64, life: u64) -> usize {
        let claims = self.waits.values().flat_map(|wait| &wait.claims);
        let mut gone: Vec<(u64, u64)> = claims
            .filter(|claim| claim.node == node && claim.life < life)
            .map(|claim| (claim.life, claim.id))
            .collect();
        gone.sort_unstable();
        let pops = self.pop_waits.iter().map(|wait| &wait.claim);
        let pops = pops.filter(|claim| claim.node == node && claim.life < life);
        let mut pops: Vec<(u64, u64)> = pops.map(|claim| (claim.life, claim.id)).collect();
        pops.sort_unstable();
        gone.extend(pops);
        gone.extend(self.handed_before(node, life));
        let count = gone.into_iter().filter(|(_, claim)| self.end_claim(*claim)).count();
        self.tally.lives_ended += count as u64;
        count
    }

    fn end_hold(&mut self, db: u8, key: &[u8], token: u64, is_expired: bool) {
        let is_held = |lock: &Lock| lock.holds.iter().any(|hold| hold.token == token);
        if !self.lock_of(db, key).is_some_and(is_held) {
            return;
        }
        let now = self.clock;
        let mut gone: Vec<Hold> =
            self.lock_mut(db, key).holds.extract_if(.., |hold| hold.token == token).collect();
        // Whoever was not told of it is not at work.
        gone.retain(|hold| is_expired && hold.grace > 0 && !self.is_unheard(hold));
        let lock = self.lock_mut(db, key);
        for hold in gone {
            let is_alone = lock.delayed_until <= now || lock.delayed_by == Some(hold.who());
            lock.delayed_by = is_alone.then(|| hold.who());
            lock.delayed_until = lock.delayed_until.max(now.saturating_add(hold.grace));
        }
        self.hand_over(db, key);
    }

    /// Ends what of a lock ends first.
    pub(super) fn end_first_of_lock(&mut self, db: u8, key: &[u8]) -> usize {
        match self.lock_of(db, key).and_then(Lock::first_end) {
            Some((_, Some(token))) => self.end_hold(db, key, token, true),
            Some((_, None)) => self.end_delay(db, key),
            None => return 0,
        }
        1
    }

    fn end_delay(&mut self, db: u8, key: &[u8]) {
        let lock = self.lock_mut(db, key);
        (lock.delayed_until, lock.delayed_by) = (0, None);
        self.hand_over(db, key);
    }

    /// Ends what is due of one lock: claims, the delay, then holds; claims and holds by their ends.
    pub(super) fn end_due_of_lock(&mut self, db: u8, key: &[u8], at_most: usize) -> usize {
        let Some(lock) = self.lock_of(db, key).cloned() else { return 0 };
        let now = self.clock;
        let first = |mut ends: Vec<(u64, u64)>, at_most| -> Vec<u64> {
            ends.sort_unstable();
            ends.into_iter().filter(|(until, _)| *until <= now).map(|(_, id)| id).take(at_most).collect()
        };
        let waiting = lock.queue.iter().flat_map(|id| &self.waits[id].claims);
        let claims = first(waiting.map(|claim| (claim.until, claim.id)).collect(), at_most);
        let holds = lock.holds.iter().map(|hold| (hold.until, hold.token)).collect();
        let holds = first(holds, at_most - claims.len());
        let mut ended = claims.into_iter().filter(|claim| self.end_claim(*claim)).count();
        if lock.delayed_until != 0 && lock.delayed_until <= now {
            self.end_delay(db, key);
            ended += 1;
        }
        for token in holds {
            self.end_hold(db, key, token, true);
            ended += 1;
        }
        ended
    }

    /// A new leader: each hold lives a while longer, within its budget.
    pub(super) fn grace_of_lock(lock: &mut Lock, with_grace: impl Fn(u64, u64) -> u64) -> bool {
        let mut is_changed = false;
        for hold in &mut lock.holds {
            let until = with_grace(hold.until, hold.set_until);
            is_changed |= until != hold.until;
            hold.until = until;
        }
        is_changed
    }

    // ---- other verbs ------------------------------------------------------------------------------------

    pub(super) fn unlock(&mut self, call: &Call<'_>) -> Outcome {
        let (db, key, owner) = (call.db, call.words[1], owner(call.words[2])?);
        let token = match &call.words[3..] {
            [] => None,
            [word, token] if is(word, "TOKEN") => Some(token_of(token).ok_or(NOT_AN_INTEGER)?),
            _ => return Err(syntax("UNLOCK takes key, owner and TOKEN token")),
        };
        let who = (call.user.to_vec(), owner.to_vec());
        Ok(Reply::Integer(i64::from(self.release(db, key, &who, token)?)))
    }

    fn release(
        &mut self,
        db: u8,
        key: &[u8],
        who: &Who,
        token: Option<u64>,
    ) -> Result<bool, Cow<'static, str>> {
        let held = self.lock_or_error(db, key)?.and_then(|lock| lock.hold_of(who)).map(|hold| hold.token);
        if token.is_none() {
            let is_meant = |wait: &Wait| {
                wait.who == *who && wait.db == db && wait.keys.iter().any(|(waited, _)| waited == key)
            };
            let ids: Vec<u64> =
                self.waits.iter().filter(|(_, wait)| is_meant(wait)).map(|(id, _)| *id).collect();
            ids.into_iter().for_each(|id| self.end_wait(id, false, &End::Over));
        }
        let now = self.clock;
        let name = (db, key.to_vec(), who.clone());
        match (held, token) {
            (Some(held), None) => self.end_hold(db, key, held, false),
            (Some(held), Some(token)) if held == token => {
                self.end_hold(db, key, held, false);
                self.releases.insert(token, (now, name));
                // A few of the oldest make room.
                for _ in 0..4 {
                    let (at, oldest) =
                        self.releases.iter().map(|(token, (at, _))| (*at, *token)).min().expect("one");
                    let is_over = at.saturating_add(RELEASES_KEPT) <= now;
                    if is_over || self.releases.len() as u64 > self.settings.lock_release_memory {
                        self.releases.remove(&oldest);
                    }
                    if self.releases.is_empty() {
                        break;
                    }
                }
            }
            (_, Some(token)) => {
                let known = self.releases.get(&token);
                return Ok(
                    known.is_some_and(|(at, known)| at.saturating_add(RELEASES_KEPT) > now && *known == name)
                );
            }
            (None, None) => return Ok(false),
        }
        Ok(true)
    }

    pub(super) fn lockextend(&mut self, call: &Call<'_>) -> Outcome {
        let (db, owner) = (call.db, owner(call.words[1])?);
        let lease = lease_ms(call.words[2], 1)?;
        let who: Who = (call.user.to_vec(), owner.to_vec());
        let named = match &call.words[3..] {
            [] => None,
            [word, count, keys @ ..] if is(word, "KEYS") => {
                let count = integer_or_error(count)?;
                if count < 1 {
                    return Err("ERR numkeys should be greater than 0".into());
                }
                if usize::try_from(count) != Ok(keys.len()) {
                    return Err("ERR LOCKEXTEND numkeys does not match the number of keys".into());
                }
                Some(keys)
            }
            _ => return Err(syntax("LOCKEXTEND takes owner, milliseconds and KEYS numkeys key ...")),
        };
        let mut keys: Vec<Vec<u8>> = Vec::new();
        for key in named.unwrap_or_default() {
            self.lock_or_error(db, key)?;
            if !keys.iter().any(|known| known == key) {
                keys.push(key.to_vec());
            }
        }
        if named.is_none() {
            keys = self.held_by(db, &who);
        }
        let (mut extended, mut lost) = (0, Vec::new());
        let now = self.clock;
        let until = now.saturating_add(lease);
        for key in keys {
            if named.is_none() {
                self.end_due(db, &key, expire_at_most());
            }
            let is_held = |lock: &Lock| lock.hold_of(&who).is_some_and(|hold| hold.until > now);
            if self.lock_of(db, &key).is_some_and(is_held) {
                let hold = self.lock_mut(db, &key).holds.iter_mut().find(|hold| hold.who() == who);
                let hold = hold.expect("it was looked at just now");
                (hold.until, hold.set_until) = (until, until);
                hold.touches += 1;
                extended += 1;
            } else if named.is_some() {
                lost.push(Reply::bulk(&key));
            }
        }
        Ok(Reply::Map(vec![
            (Reply::bulk("extended"), count_reply(extended)),
            (Reply::bulk("lost"), Reply::Array(lost)),
        ]))
    }

    /// LOCKS RELEASE and LOCKS KILL.
    pub(super) fn locks(&mut self, call: &Call<'_>) -> Outcome {
        let db = call.db;
        if is(call.words[1], "RELEASE") {
            let who: Who = (call.user.to_vec(), owner(call.words[2])?.to_vec());
            let is_own = |wait: &Wait| wait.who == who && wait.db == db;
            let ids: Vec<u64> =
                self.waits.iter().filter(|(_, wait)| is_own(wait)).map(|(id, _)| *id).collect();
            let mut ended = 0;
            for id in ids {
                ended += usize::from(self.waits.contains_key(&id));
                self.end_wait(id, false, &End::Over);
            }
            for key in self.held_by(db, &who) {
                self.end_due(db, &key, expire_at_most());
                ended += usize::from(self.release(db, &key, &who, None)?);
            }
            return Ok(count_reply(ended));
        }
        let (mut owner, mut reason) = (None, None);
        for pair in call.words[3..].chunks(2) {
            let place = match pair {
                [word, _] if is(word, "OWNER") => &mut owner,
                [word, _] if is(word, "REASON") => &mut reason,
                _ => return Err(syntax("LOCKS KILL takes OWNER owner and REASON text")),
            };
            if place.replace(pair[1]).is_some() {
                return Err(syntax("LOCKS KILL takes OWNER owner and REASON text"));
            }
        }
        if reason.is_some_and(|reason: &[u8]| reason.len() > 512) {
            return Err("ERR REASON must be at most 512 bytes long".into());
        }
        let lock = self.lock_or_error(db, call.words[2])?.cloned().unwrap_or_default();
        let is_meant = |name: &[u8]| owner.is_none_or(|owner: &[u8]| owner == name);
        let tokens: Vec<u64> =
            lock.holds.iter().filter(|hold| is_meant(&hold.owner)).map(|hold| hold.token).collect();
        let is_left_by = lock.delayed_by.as_ref().is_some_and(|by| is_meant(&by.1));
        let ends_delay = lock.delayed_until != 0 && (owner.is_none() || is_left_by);
        if !tokens.is_empty() || ends_delay {
            let lock = self.lock_mut(db, call.words[2]);
            lock.holds.retain(|hold| !tokens.contains(&hold.token));
            if ends_delay {
                (lock.delayed_until, lock.delayed_by) = (0, None);
            }
            self.hand_over(db, call.words[2]);
        }
        Ok(count_reply(if tokens.is_empty() { usize::from(ends_delay) } else { tokens.len() }))
    }

    /// A grant that nobody heard of.
    pub(super) fn take_back(&mut self, db: u8, who: &Who, grants: &[(&[u8], u64, u64)]) -> usize {
        let mut ended = 0;
        for (key, token, touches) in grants {
            let is_it = |hold: &Hold| hold.who() == *who && hold.token == *token && hold.touches == *touches;
            if self.lock_of(db, key).is_some_and(|lock| lock.holds.iter().any(is_it)) {
                self.end_hold(db, key, *token, false);
                self.taken_back.push(*token);
                ended += 1;
            }
        }
        self.tally.taken_back += ended as u64;
        ended
    }

    // ---- guards -----------------------------------------------------------------------------------------

    pub(super) fn fence(&mut self, call: &Call<'_>) -> Outcome {
        if call.words.len().is_multiple_of(2) {
            return Err("ERR wrong number of arguments for 'fence' command".into());
        }
        for pair in call.words[1..].chunks(2) {
            self.check_token(call.db, pair[0], pair[1])?;
        }
        Ok(Reply::Ok)
    }

    /// An error unless the token is current.
    pub(super) fn check_token(&mut self, db: u8, key: &[u8], token: &[u8]) -> Result<(), Cow<'static, str>> {
        let malformed = "ERR invalid token: want the number that LOCK gave, or the receipt that QPOP gave";
        let now = self.clock;
        let mut current = "none".to_owned();
        if token.contains(&b':') {
            let (id, delivery) = receipt(token).ok_or(malformed)?;
            if let Some(Thing::Queue(queue)) = self.thing(db, key)
                && let Some(message) = queue.message(id)
                && matches!(message.place, Place::Leased(until, _) if until > now)
            {
                if message.delivery == delivery {
                    return Ok(());
                }
                current = format!("{}-{}:{}", id.0, id.1, message.delivery);
            }
        } else {
            let token = token_of(token).ok_or(malformed)?;
            if let Some(Thing::Lock(lock)) = self.thing(db, key) {
                if lock.holds.iter().any(|hold| hold.token == token && hold.until > now) {
                    return Ok(());
                }
                current = lock.holds.last().map_or(current, |hold| hold.token.to_string());
            }
        }
        self.tally.stale_tokens += 1;
        Err(format!("STALETOKEN {} {} current={current}", shown(key), shown(token)).into())
    }

    // ---- deadlocks --------------------------------------------------------------------------------------

    /// Who must go on before this owner can.
    fn needs_of(&self, who: &Who) -> Vec<Need> {
        let mut needs = Vec::new();
        for (id, wait) in self.waits.iter().filter(|(_, wait)| wait.who == *who) {
            for (key, _) in &wait.keys {
                let Some(lock) = self.lock_of(wait.db, key) else { continue };
                let others: Vec<Who> =
                    lock.holds.iter().map(Hold::who).filter(|holder| holder != who).collect();
                let need = |of: Vec<Who>| Need { wait: *id, key: key.clone(), of };
                let before = lock.queue.iter().position(|other| other == id).and_then(|at| at.checked_sub(1));
                let before = before.map(|at| self.waits[&lock.queue[at]].who.clone());
                let before = before.filter(|before| before != who).map(|before| need(vec![before]));
                if lock.is_shared && wait.wanted().is_shared {
                    needs.extend(before);
                    // Any place will do.
                    if lock.is_full() && !others.is_empty() {
                        needs.push(need(others));
                    }
                } else {
                    needs.extend(others.into_iter().map(|holder| need(vec![holder])));
                    needs.extend(before);
                }
            }
        }
        needs
    }

    /// The first way, depth first, from an owner through what can never come back to it.
    fn cycle_of(&self, start: &Who) -> Option<Vec<(Who, Need)>> {
        let stuck = self.stuck();
        let mut seen = BTreeSet::from([start.clone()]);
        let mut way = Vec::new();
        self.search(start, start, &stuck, &mut seen, &mut way).then_some(way)
    }

    fn search(
        &self,
        at: &Who,
        goal: &Who,
        stuck: &BTreeSet<Who>,
        seen: &mut BTreeSet<Who>,
        way: &mut Vec<(Who, Need)>,
    ) -> bool {
        for need in self.needs_of(at) {
            if need.of.iter().any(|other| !stuck.contains(other)) {
                continue;
            }
            for next in &need.of {
                way.push((at.clone(), need.clone()));
                if next == goal || (seen.insert(next.clone()) && self.search(next, goal, stuck, seen, way)) {
                    return true;
                }
                way.pop();
            }
        }
        false
    }

    /// Ends waits until the one that came just now closes no cycle; an error when it is the victim itself.
    fn resolve(&mut self, id: u64) -> Result<(), Cow<'static, str>> {
        while let Some(wait) = self.waits.get(&id) {
            let Some(cycle) = self.cycle_of(&wait.who) else { return Ok(()) };
            let (victim, text) = self.victim_and_text(&cycle);
            if victim == id {
                let wait = self.leave(id).expect("it waits");
                wait.keys.iter().for_each(|(key, _)| self.hand_over(wait.db, key));
                return Err(text.into());
            }
            self.end_wait(victim, false, &End::Failed(text));
        }
        Ok(())
    }

    /// The wait that a cycle costs, and what its clients are told.
    fn victim_and_text(&mut self, cycle: &[(Who, Need)]) -> (u64, String) {
        self.tally.deadlocks += 1;
        let (victim, need) = &cycle[self.victim_of(cycle)];
        let mut text = format!("DEADLOCK victim={} cycle=\"", shown(&victim.1));
        for (who, need) in cycle {
            text.push_str(&format!("{} -[{}]-> ", shown(&who.1), shown(&need.key)));
        }
        text.push_str(&format!("{}\"", shown(&cycle[0].0.1)));
        (need.wait, text)
    }

    /// Whom it costs its wait, of several alike the first.
    fn victim_of(&self, cycle: &[(Who, Need)]) -> usize {
        let tokens = |who: &Who| {
            let locks = self.things().filter_map(|(_, _, thing)| match thing {
                Thing::Lock(lock) => Some(lock),
                Thing::String(..) | Thing::Queue(_) => None,
            });
            locks.filter_map(|lock| lock.hold_of(who)).map(|hold| hold.token).collect::<Vec<u64>>()
        };
        let mut best = 0;
        for at in 1..cycle.len() {
            let (this, that) = (tokens(&cycle[at].0), tokens(&cycle[best].0));
            let is_better = match self.settings.lock_deadlock_victim.code() {
                0 => false,
                1 => this.iter().min().unwrap_or(&u64::MAX) > that.iter().min().unwrap_or(&u64::MAX),
                _ => this.len() < that.len(),
            };
            if is_better {
                best = at;
            }
        }
        best
    }
}
