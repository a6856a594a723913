//! Many owners take and release a few locks while the leader is killed, again and again: no lock is held twice, and
//! nothing but time is lost (redisson#775, curator#1121).
//!
//! What is checked, all by what clients saw:
//!
//! - A hold is certain from the reply that gave the token until its release is sent. No two certain holds of a lock
//!   overlap unless both are shared, and in the order of their tokens each begins after those before it, that it
//!   excludes, were released.
//! - A token is never given twice, and is larger than all that were known before the request for it was sent.
//! - A register that each exclusive holder reads and writes one more to (`SET … FENCE`) loses no update, a counter
//!   under `MULTI FENCE` rises with the tokens, and who shares a lock sees no write.
//! - A refusal says TRYAGAIN, CLUSTERDOWN, INDOUBT or READONLY; STALETOKEN only after the lease.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use holdfast::clock::Clock;
use holdfast::clock::SystemClock;
use holdfast::types::Millis;
use holdfast::types::Monotonic;

use crate::locks::common::wait_until_no_lock_is_left;
use crate::locks::seed;
use crate::support::Random;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::cluster::Cluster;
use crate::support::micros;
use crate::support::number_from_env;
use crate::support::spread;

const OWNERS: u64 = 64;
const KEYS: u64 = 16;
const LEASE: Millis = Millis(10_000);
const BLOCK: &str = "5000";
const KILL_INTERVAL: Millis = Millis(5_000);
const DOWN: Millis = Millis(1_500);
const ALLOWED: [&str; 4] = ["TRYAGAIN", "CLUSTERDOWN", "INDOUBT", "READONLY"];

/// What a client knows of a hold of its own.
#[derive(Debug, Clone)]
struct Hold {
    key: u64,
    token: i64,
    is_shared: bool,
    asked: Monotonic,
    /// When the token came.
    begun: Monotonic,
    /// When its release was sent, or for the last time something under the token was acknowledged.
    ended: Monotonic,
    /// The counter after its one step, if that was acknowledged.
    counted: Option<i64>,
}

/// What a client saw.
#[derive(Default)]
struct Seen {
    holds: Vec<Hold>,
    /// When anything was acknowledged.
    acknowledged: Vec<Monotonic>,
    refusals: BTreeMap<String, u64>,
    breaks: u64,
    timeouts: u64,
    stale: u64,
    /// By key: register writes that were acknowledged, and that are in doubt.
    written: BTreeMap<u64, (i64, i64)>,
    wrong: Vec<String>,
}

/// Why a request has no reply that counts.
enum Lost {
    Refused,
    Broken,
}

struct Owner {
    number: u64,
    /// Counts the names: a name whose request is in doubt is not used again.
    life: u64,
    addresses: Vec<SocketAddr>,
    at: usize,
    client: Option<Client>,
    clock: SystemClock,
    random: Random,
    seen: Seen,
}

impl Owner {
    fn name(&self) -> String {
        format!("owner:{}:{}", self.number, self.life)
    }

    fn ask(&mut self, words: &[&str]) -> Result<Value, Lost> {
        if self.client.is_none() {
            self.at = (self.at + 1) % self.addresses.len();
            self.client = Client::try_connect(self.addresses[self.at]).ok();
        }
        let Some(client) = &mut self.client else {
            thread::sleep(Duration::from_millis(20));
            return Err(Lost::Broken);
        };
        client.set_timeout(Duration::from_secs(20));
        let Ok(reply) = client.try_cmd(words) else {
            self.client = None;
            self.seen.breaks += 1;
            return Err(Lost::Broken);
        };
        if let Some(code) = reply.error_code() {
            *self.seen.refusals.entry(code.to_owned()).or_default() += 1;
            if ALLOWED.contains(&code) {
                thread::sleep(Duration::from_millis(5));
                return Err(Lost::Refused);
            }
            if code != "STALETOKEN" {
                self.seen.wrong.push(format!("{words:?}: {reply:?}"));
            }
            return Ok(reply);
        }
        self.seen.acknowledged.push(self.clock.monotonic());
        Ok(reply)
    }

    fn run(mut self, stop: &AtomicBool) -> Seen {
        while !stop.load(Ordering::Relaxed) {
            self.turn();
        }
        self.seen
    }

    /// Takes one lock or some, uses them, releases them.
    fn turn(&mut self) {
        let is_shared = self.random.below(3) == 0;
        let count = if self.random.below(10) == 0 { 3 } else { 1 };
        let mut keys: Vec<u64> = Vec::new();
        while keys.len() < count {
            let key = self.random.below(KEYS);
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        let asked = self.clock.monotonic();
        let tokens = match self.take(&keys, is_shared) {
            Ok(tokens) => tokens,
            Err(_) => return self.begin_a_new_life(),
        };
        let Some(tokens) = tokens else { return };
        let begun = self.clock.monotonic();
        let owner = self.name();
        let mut holds: Vec<Hold> = keys
            .iter()
            .zip(tokens)
            .map(|(key, token)| Hold {
                key: *key,
                token,
                is_shared,
                asked,
                begun,
                ended: begun,
                counted: None,
            })
            .collect();
        let used = holds.iter_mut().try_for_each(|hold| self.work(hold));
        let mut is_whole = used.is_ok();
        for hold in &mut holds {
            if is_whole {
                hold.ended = self.clock.monotonic();
                let key = format!("lock:{}", hold.key);
                let released = self.ask(&["UNLOCK", &key, &owner, "TOKEN", &hold.token.to_string()]);
                match released {
                    Ok(Value::Integer(1)) => {}
                    Ok(other) => self.after_the_lease(hold, &format!("UNLOCK gave {other:?}")),
                    Err(_) => is_whole = false,
                }
            }
        }
        // A hold whose lease may have ended before its owner noticed is certain no longer than the lease.
        for hold in &mut holds {
            let certain = Monotonic(hold.asked.0 + LEASE.0 * 990_000);
            hold.ended = hold.ended.min(certain).max(hold.begun);
        }
        self.seen.holds.extend(holds);
        if !is_whole {
            self.begin_a_new_life();
        }
    }

    /// The tokens; `None` when it took too long.
    fn take(&mut self, keys: &[u64], is_shared: bool) -> Result<Option<Vec<i64>>, Lost> {
        let (owner, lease) = (self.name(), LEASE.0.to_string());
        let names: Vec<String> = keys.iter().map(|key| format!("lock:{key}")).collect();
        let count = names.len().to_string();
        let mut words = if names.len() == 1 { vec!["LOCK"] } else { vec!["MLOCK", &count] };
        words.extend(names.iter().map(String::as_str));
        words.push(&owner);
        words.extend(is_shared.then_some("SHARED"));
        words.extend(["PX", &lease, "BLOCK", BLOCK]);
        match self.ask(&words)? {
            Value::Integer(token) if keys.len() == 1 => Ok(Some(vec![token])),
            Value::Array(tokens) if tokens.len() == keys.len() => {
                Ok(Some(tokens.iter().map(Value::integer).collect()))
            }
            Value::Null | Value::NullArray => {
                self.seen.timeouts += 1;
                Ok(None)
            }
            other => {
                self.seen.wrong.push(format!("{words:?}: {other:?}"));
                Err(Lost::Refused)
            }
        }
    }

    /// What a holder does under the lock.
    fn work(&mut self, hold: &mut Hold) -> Result<(), Lost> {
        let (lock, token) = (format!("lock:{}", hold.key), hold.token.to_string());
        let register = format!("register:{}", hold.key);
        let before = self.ask(&["GET", &register])?;
        if hold.is_shared {
            let after = self.ask(&["GET", &register])?;
            let is_held = self.clock.monotonic().since(hold.asked).0 < LEASE.0 * 99 / 100;
            if before != after && is_held {
                self.seen.wrong.push(format!("{before:?} became {after:?} under {hold:?}"));
            }
            return Ok(());
        }
        let before: i64 = if before == Value::Null { 0 } else { before.text().parse().unwrap() };
        let written = self.ask(&["SET", &register, &(before + 1).to_string(), "FENCE", &lock, &token]);
        let (sure, doubtful) = self.seen.written.entry(hold.key).or_default();
        match written {
            Ok(Value::Simple(_)) => *sure += 1,
            Ok(other) => {
                self.after_the_lease(hold, &format!("SET gave {other:?}"));
                return Err(Lost::Refused);
            }
            Err(lost) => {
                *doubtful += 1;
                return Err(lost);
            }
        }
        hold.ended = self.clock.monotonic();
        let counter = format!("counter:{}", hold.key);
        self.ask(&["MULTI"])?;
        for words in [&["FENCE", &lock, &token][..], &["INCR", &counter]] {
            if let Err(lost) = self.ask(words) {
                self.client = None;
                return Err(lost);
            }
        }
        match self.ask(&["EXEC"])? {
            Value::Array(replies) => hold.counted = Some(replies[1].integer()),
            other => {
                self.after_the_lease(hold, &format!("EXEC gave {other:?}"));
                return Err(Lost::Refused);
            }
        }
        hold.ended = self.clock.monotonic();
        Ok(())
    }

    /// Something was refused because the lock is held no more: right only when the lease is over.
    fn after_the_lease(&mut self, hold: &Hold, what: &str) {
        self.seen.stale += 1;
        let age = self.clock.monotonic().since(hold.asked);
        if age.0 < LEASE.0 * 99 / 100 {
            self.seen.wrong.push(format!("{what} after {} ms of {hold:?}", age.0));
        }
    }

    /// Whatever became of the requests of this name, another one goes on.
    fn begin_a_new_life(&mut self) {
        let owner = self.name();
        // Waits too: UNLOCK ends the wait for one lock, but not that of MLOCK for some. Should this be lost as well,
        // what is left ends with its lease.
        let _ = self.ask(&["LOCKS", "RELEASE", &owner]);
        self.life += 1;
    }
}

/// What is wrong with the holds of one lock.
fn check_lock(key: u64, holds: &[&Hold]) -> Result<(), String> {
    let mut by_token = holds.to_vec();
    by_token.sort_by_key(|hold| hold.token);
    if let Some(twice) = by_token.windows(2).find(|pair| pair[0].token == pair[1].token) {
        return Err(format!("a token of lock {key} was given twice: {twice:?}"));
    }
    // Those that were released last, of all before and of the exclusive ones.
    let (mut last, mut last_exclusive): (Option<&Hold>, Option<&Hold>) = (None, None);
    let mut counted = 0;
    for hold in by_token {
        let before = if hold.is_shared { last_exclusive } else { last };
        if let Some(before) = before.filter(|before| before.ended > hold.begun) {
            return Err(format!("two hold lock {key}:\n{before:?}\n{hold:?}"));
        }
        let is_later = |known: Option<&Hold>| known.is_none_or(|known| known.ended < hold.ended);
        if is_later(last) {
            last = Some(hold);
        }
        if !hold.is_shared && is_later(last_exclusive) {
            last_exclusive = Some(hold);
        }
        if let Some(count) = hold.counted {
            if count <= counted {
                return Err(format!("counter {key} was {counted} and is {count} under {hold:?}"));
            }
            counted = count;
        }
    }
    // A request that was sent after a token was known got a larger one.
    let (mut by_begin, mut by_asked) = (holds.to_vec(), holds.to_vec());
    by_begin.sort_by_key(|hold| hold.begun);
    by_asked.sort_by_key(|hold| hold.asked);
    let (mut known, mut largest) = (0, 0);
    for hold in by_asked {
        while known < by_begin.len() && by_begin[known].begun < hold.asked {
            largest = largest.max(by_begin[known].token);
            known += 1;
        }
        if hold.token <= largest {
            return Err(format!("{hold:?} after token {largest} of lock {key} was known"));
        }
    }
    Ok(())
}

fn hold(token: i64, is_shared: bool, begun: u64, ended: u64) -> Hold {
    let (begun, ended) = (Monotonic(begun), Monotonic(ended));
    Hold { key: 0, token, is_shared, asked: begun, begun, ended, counted: None }
}

#[test]
fn the_checker_sees_overlaps_and_tokens_that_fall() {
    let is_good = |holds: &[Hold]| check_lock(0, &holds.iter().collect::<Vec<_>>()).is_ok();
    assert!(is_good(&[
        hold(1, false, 0, 10),
        hold(2, true, 10, 20),
        hold(3, true, 11, 15),
        hold(4, false, 20, 30)
    ]));
    assert!(!is_good(&[hold(1, false, 0, 10), hold(2, false, 9, 20)]), "two exclusive");
    assert!(!is_good(&[hold(1, false, 0, 10), hold(2, true, 9, 20)]), "shared after exclusive");
    assert!(
        !is_good(&[hold(1, true, 0, 30), hold(2, true, 1, 5), hold(3, false, 6, 9)]),
        "a long one before"
    );
    assert!(!is_good(&[hold(2, false, 0, 10), hold(1, false, 11, 20)]), "a token that falls");
    assert!(!is_good(&[hold(2, true, 0, 10), hold(2, true, 11, 20)]), "a token twice");
    let counted =
        |token, count| Hold { counted: Some(count), ..hold(token, false, token as u64, token as u64 + 1) };
    assert!(is_good(&[counted(1, 1), counted(2, 3)]));
    assert!(!is_good(&[counted(1, 3), counted(2, 3)]), "a step of the counter is lost");
}

#[test]
fn locks_are_held_once_while_leaders_are_killed() {
    let length = Millis(1_000 * number_from_env("LOCKS_SECONDS", 17));
    let seed = seed();
    let clock = SystemClock::start();
    let mut cluster = Cluster::start(&[]);
    let addresses: Vec<SocketAddr> = cluster.ids().into_iter().map(|id| cluster.address(id)).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let owners: Vec<_> = (0..OWNERS)
        .map(|number| {
            let owner = Owner {
                number,
                life: 0,
                addresses: addresses.clone(),
                at: number as usize % 3,
                client: None,
                clock,
                random: Random::new(seed.wrapping_mul(1_000).wrapping_add(number)),
                seen: Seen::default(),
            };
            let stop = Arc::clone(&stop);
            thread::spawn(move || owner.run(&stop))
        })
        .collect();
    let begun = clock.monotonic();
    let mut kills = Vec::new();
    let mut random = Random::new(seed);
    let sleep_until = |at: u64| {
        while clock.monotonic().since(begun).0 < at {
            thread::sleep(Duration::from_millis(5));
        }
    };
    for round in 1.. {
        let next = round * KILL_INTERVAL.0 - random.below(500);
        if next + DOWN.0 >= length.0 {
            break;
        }
        sleep_until(next);
        let leader = cluster.leader();
        kills.push(clock.monotonic());
        cluster.kill(leader);
        sleep_until(next + DOWN.0);
        cluster.start_node(leader);
    }
    sleep_until(length.0);
    stop.store(true, Ordering::Relaxed);
    let all: Vec<Seen> = owners.into_iter().map(|owner| owner.join().unwrap()).collect();

    let wrong: Vec<&String> = all.iter().flat_map(|seen| &seen.wrong).collect();
    assert!(wrong.is_empty(), "{} wrong replies: {:#?}", wrong.len(), &wrong[..wrong.len().min(10)]);
    let holds: Vec<&Hold> = all.iter().flat_map(|seen| &seen.holds).collect();
    let tokens: BTreeSet<i64> = holds.iter().map(|hold| hold.token).collect();
    assert_eq!(tokens.len(), holds.len(), "a token was given twice");
    let mut observer = cluster.client(1);
    for key in 0..KEYS {
        let of_key: Vec<&Hold> = holds.iter().copied().filter(|hold| hold.key == key).collect();
        assert!(!of_key.is_empty(), "nobody had lock {key}");
        check_lock(key, &of_key).unwrap_or_else(|what| panic!("{what}"));
        let written = all.iter().filter_map(|seen| seen.written.get(&key));
        let (sure, doubtful) = written.fold((0, 0), |(sure, doubtful), (s, d)| (sure + s, doubtful + d));
        let register = observer.cmd(&["GET", &format!("register:{key}")]);
        let register: i64 = if register == Value::Null { 0 } else { register.text().parse().unwrap() };
        assert!(
            (sure..=sure + doubtful).contains(&register),
            "register {key} is {register}, after {sure} writes and {doubtful} in doubt"
        );
    }
    // What a kill cost: the longest time without any acknowledgement in the seconds after it.
    let mut acknowledged: Vec<Monotonic> = all.iter().flat_map(|seen| seen.acknowledged.clone()).collect();
    acknowledged.sort_unstable();
    let cost_of = |killed: &Monotonic| {
        let window = acknowledged.iter().filter(|at| **at >= *killed && at.since(*killed) < Millis(4_500));
        let mut from = *killed;
        let mut longest = 0;
        for at in window {
            longest = longest.max(micros(from, *at));
            from = *at;
        }
        longest.max(if from == *killed { KILL_INTERVAL.0 * 1_000 } else { 0 })
    };
    let costs: Vec<u64> = kills.iter().map(cost_of).collect();
    let mut refusals: BTreeMap<&str, u64> = BTreeMap::new();
    for (code, count) in all.iter().flat_map(|seen| &seen.refusals) {
        *refusals.entry(code).or_default() += count;
    }
    let sum = |of: fn(&Seen) -> u64| all.iter().map(of).sum::<u64>();
    println!(
        "{OWNERS} owners, {KEYS} locks, {} s, {} leaders killed: {} holds ({} shared), 0 overlaps, {} tokens rising; \
         {} waits timed out, {} connections broke, refusals {refusals:?}, {} leases outlived; without any reply per kill {}",
        length.0 / 1_000,
        kills.len(),
        holds.len(),
        holds.iter().filter(|hold| hold.is_shared).count(),
        tokens.len(),
        sum(|seen| seen.timeouts),
        sum(|seen| seen.breaks),
        sum(|seen| seen.stale),
        spread(costs)
    );
    wait_until_no_lock_is_left(&mut observer);
    cluster.check_digests();
    cluster.check_alive();
}
