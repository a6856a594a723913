//! What the replicated state machine should do, written a second time: the yardstick of the log-replay check.
//!
//! It knows how entries are encoded and nothing else of Holdfast: no state, no commands, no apply. Their mistakes are
//! what it is there to find, so it shares none of their code. Plain maps; where something is due it looks at everything.
//!
//! ```text
//! entry (index, bytes)                     what the model does
//! empty, or a change of members            only the index moves
//! stamps                                   clock and wall time: the greater of what was and what is stamped
//!   batch of a session (node, epoch, seq)  executed when it is the next one; else Repeated, Replayed, Gap or Ended
//!   batch without one                      executed
//!     command, transaction                 first ends what is due of the keys that are named, then does it
//!     atomic transaction                   the same, or nothing: then all is as it was
//!     EXPIRE                               ends what is due, what somebody waits for first, a bounded number of items
//!     CANCEL, TAKE-BACK, END-CLAIMS        ends waits, and grants that nobody heard of
//!     CONFIRM                              what was handed to clients stays theirs, if it is still given
//!     LEADER-START                         settings of a new log, key time goes on by the outage, leases get grace
//! ```
//! Strings live in key time (cluster time and all outages), locks and messages in cluster time.

#![allow(dead_code, unused_imports, reason = "each test binary asks its own questions")]

#[path = "model_handed.rs"]
mod handed;
#[path = "model_locks.rs"]
mod locks;
#[path = "model_queues.rs"]
mod queues;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

use bytes::Bytes;
use holdfast::machine::entry::Item;
use holdfast::machine::entry::LeaderStart;
use holdfast::machine::entry::SessionStamp;
use holdfast::machine::entry::decode_batch_head;
use holdfast::machine::entry::decode_item;
use holdfast::machine::entry::decode_stamps;
use holdfast::machine::entry::skip_item;
use holdfast::resp::Reply;
use holdfast::state::Settings;
use holdfast::types::NodeId;
use holdfast::types::codec::CodecError;
use holdfast::types::codec::Reader;

#[allow(unused_imports, reason = "each test binary asks its own questions")]
pub use handed::HandOver;
#[allow(unused_imports, reason = "each test binary asks its own questions")]
pub use locks::Claim;
pub use locks::End;
pub use locks::Ended;
pub use locks::Hold;
pub use locks::Lock;
pub use locks::Tally;
pub use locks::Wait;
pub use locks::Who;
#[allow(unused_imports, reason = "each test binary asks its own questions")]
pub use queues::Config;
#[allow(unused_imports, reason = "each test binary asks its own questions")]
pub use queues::Message;
pub use queues::MessageId;
pub use queues::Place;
#[allow(unused_imports, reason = "each test binary asks its own questions")]
pub use queues::Pop;
pub use queues::PopWait;
pub use queues::Popped;
pub use queues::Queue;
#[allow(unused_imports, reason = "each test binary asks its own questions")]
pub use queues::Totals;

/// At most this many items end in one EXPIRE, or of one queue before a command; less where the simulator makes bounds
/// smaller.
fn expire_at_most() -> usize {
    (holdfast::types::planted::scaled(64) as usize).max(4)
}
/// Replies that take more bytes than this between nodes are not remembered.
const REMEMBERED_BYTES_MAX: usize = 64 << 10;
/// A session remembers this many bytes of replies, and 80 for each batch besides.
const SESSION_BYTES_MAX: usize = 32 << 20;
/// See [`SESSION_BYTES_MAX`].
const SESSION_BYTES_EACH: usize = 80;
/// The first replica id that ALLOCATE-REPLICA gives.
const FIRST_REPLICA: u64 = 1_000;
/// Longest string that APPEND makes.
const STRING_BYTES_MAX: usize = 64 << 20;

/// A key that begins like this, the only one of an EXISTS that stands first in a batch, names the batch's operation.
pub const MARKER: &[u8] = b"#op:";

const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";
const SYNTAX: &str = "ERR syntax error";
const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
const IS_A_LOCK: &str = "WRONGTYPE this key is a lock; use UNLOCK or wait for its lease to end";
const IS_A_QUEUE: &str = "WRONGTYPE this key is a queue; use QPOP and QACK";

/// A reply, or the error line.
type Outcome = Result<Reply, Cow<'static, str>>;

// ---- what applying gives ------------------------------------------------------------------------------

/// What came of one batch of an entry.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchResult {
    /// The batch's user field.
    pub user: Vec<u8>,
    /// From the batch's first command, if that is a marker (see [`MARKER`]); only known of executed batches.
    pub marker: Option<u64>,
    /// Which batch of which node it was: (node, epoch, seq).
    pub session: Option<(NodeId, u64, u64)>,
    pub verdict: Verdict,
}

impl BatchResult {
    /// The operation that the batch carries out: its marker's, or its user field's when that is a decimal number.
    pub fn operation(&self) -> Option<u64> {
        self.marker.or_else(|| u64::try_from(integer(&self.user)?).ok())
    }
}

/// Whether a batch was executed.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Now, with these replies.
    Executed(Vec<Reply>),
    /// By an earlier entry; its replies are remembered.
    Repeated,
    /// By an earlier entry; its replies are not remembered.
    Replayed,
    /// Not: batches before it are missing.
    Gap,
    /// Not: its session is over.
    Ended,
}

// ---- what can be asked --------------------------------------------------------------------------------

/// What is under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "a model may be slow")]
pub enum Thing {
    /// A string and its deadline in key time.
    String(Bytes, Option<u64>),
    Lock(Lock),
    Queue(Queue),
}

#[derive(Debug, Clone)]
struct Slot {
    /// Index of the entry that changed it last.
    changed: u64,
    thing: Thing,
}

/// What a reading command can see of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// A string and its deadline in key time.
    String(Bytes, Option<u64>),
    Lock,
    /// Ready, delayed, leased and dead messages.
    Queue([usize; 4]),
}

/// A state as reading commands look at it: the present one, or that of an earlier index.
pub trait View {
    /// What is under a key.
    fn look(&self, db: u8, key: &[u8]) -> Option<Seen>;
    /// What deadlines of strings are compared with.
    fn key_now(&self) -> u64;
}

/// The model at a moment.
struct Present<'a> {
    model: &'a Model,
    now: u64,
}

impl View for Present<'_> {
    fn look(&self, db: u8, key: &[u8]) -> Option<Seen> {
        self.model.seen(db, key)
    }

    fn key_now(&self) -> u64 {
        self.now.saturating_add(self.model.ahead)
    }
}

/// What one node has had executed.
#[derive(Debug, Clone, Default)]
struct Session {
    epoch: u64,
    last: u64,
    /// Bytes of the replies that are remembered, by number of the batch; `None`: they were too large.
    replies: BTreeMap<u64, Option<usize>>,
    bytes: usize,
}

/// A transaction that was named by ONCE.
#[derive(Debug, Clone)]
struct Named {
    commands: Vec<(u8, Vec<Vec<u8>>)>,
    index: u64,
    until: u64,
    /// `None`: too large to be kept, or gone for newer ones.
    reply: Option<Reply>,
}

impl Named {
    /// Bytes of the reply as it is kept: a list of one.
    fn bytes(&self) -> u64 {
        self.reply.as_ref().map_or(0, |reply| 1 + reply_bytes(reply) as u64)
    }
}

/// A command, in its database.
type Queued<'a> = (u8, Vec<&'a [u8]>);

/// A lock that was released: its database and key, and by whom.
type Released = (u8, Vec<u8>, Who);

/// The state machine.
#[derive(Debug, Clone)]
pub struct Model {
    settings: Settings,
    index: u64,
    clock: u64,
    wall: u64,
    /// How far key time is ahead of cluster time.
    ahead: u64,
    last_token: u64,
    last_claim: u64,
    waits: BTreeMap<u64, Wait>,
    /// What was handed to those who waited and is not confirmed, by the number of the wait.
    handed: BTreeMap<u64, HandOver>,
    /// By the last entry: claims that were confirmed, and until when their clients have what they were handed.
    confirmed: Vec<(u64, u64)>,
    /// By the last entry: waits that ended, or came to their turn.
    ended: Vec<Ended>,
    /// The tokens that it took back.
    taken_back: Vec<u64>,
    /// When a token was released, and what.
    releases: BTreeMap<u64, (u64, Released)>,
    /// By user and name.
    once: BTreeMap<(Vec<u8>, Vec<u8>), Named>,
    tally: Tally,
    pushed_in_entry: u32,
    databases: BTreeMap<u8, BTreeMap<Vec<u8>, Slot>>,
    last_queue: u64,
    /// Queues that are no keys, by database and name: what is remembered of them.
    resting: BTreeMap<(u8, Vec<u8>), Queue>,
    pop_waits: Vec<PopWait>,
    /// Receipts that finished messages, oldest first.
    finishes: Vec<queues::Finish>,
    /// By the last entry: receipts of messages that nobody heard of.
    given_back: Vec<(MessageId, u32)>,
    sessions: BTreeMap<u64, Session>,
    next_replica: u64,
    /// The last replica id of each node, with the nonce it was asked for.
    replicas: BTreeMap<u64, (u64, u64)>,
    touched: Vec<(u8, Vec<u8>)>,
}

/// Something that ends by time, in the order in which such things end at one moment.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    String(u8, Vec<u8>),
    Lock(u8, Vec<u8>),
    Claim(u64),
    Once((Vec<u8>, Vec<u8>)),
    Queue(u8, Vec<u8>),
}

/// A command that is to be carried out; the name is word 0.
#[derive(Clone, Copy)]
struct Call<'a> {
    user: &'a [u8],
    db: u8,
    words: &'a [&'a [u8]],
    in_transaction: bool,
    /// Where it comes from; node 0 is a cluster of one.
    node: u64,
    life: u64,
}

// ---- entries ------------------------------------------------------------------------------------------

impl Model {
    /// A state in which nothing happened. With `databases` 0 the first LEADER-START brings the settings.
    pub fn new(settings: Settings) -> Model {
        Model {
            settings,
            index: 0,
            clock: 0,
            wall: 0,
            ahead: 0,
            last_token: 0,
            last_claim: 0,
            waits: BTreeMap::new(),
            handed: BTreeMap::new(),
            confirmed: Vec::new(),
            ended: Vec::new(),
            taken_back: Vec::new(),
            releases: BTreeMap::new(),
            once: BTreeMap::new(),
            tally: Tally::default(),
            pushed_in_entry: 0,
            databases: BTreeMap::new(),
            last_queue: 0,
            resting: BTreeMap::new(),
            pop_waits: Vec::new(),
            finishes: Vec::new(),
            given_back: Vec::new(),
            sessions: BTreeMap::new(),
            next_replica: FIRST_REPLICA,
            replicas: BTreeMap::new(),
            touched: Vec::new(),
        }
    }

    /// Applies the committed entry of this index. An entry that changes the members is given as an empty one. An error
    /// means that the bytes are no entry, or that the model does not know a command; then it is of no use any more.
    pub fn apply(&mut self, index: u64, entry: &[u8]) -> Result<Vec<BatchResult>, String> {
        if index <= self.index {
            return Err(format!("entry {index} after entry {}", self.index));
        }
        self.index = index;
        self.touched.clear();
        self.ended.clear();
        self.confirmed.clear();
        self.taken_back.clear();
        self.given_back.clear();
        if entry.is_empty() {
            return Ok(Vec::new());
        }
        let broken = |error: CodecError| format!("entry {index}: {error}");
        let (stamps, mut reader) = decode_stamps(entry).map_err(broken)?;
        let since_last = stamps.wall.0.saturating_sub(self.wall);
        self.clock = self.clock.max(stamps.clock.0);
        self.wall = self.wall.max(stamps.wall.0);
        self.pushed_in_entry = 0;
        let mut results = Vec::new();
        while let Some(head) = decode_batch_head(&mut reader).map_err(broken)? {
            let (user, count, session) = (head.user, head.count, head.session);
            let mut marker = None;
            let verdict = match session.map_or(Ok(()), |session| self.admit(&session)) {
                Ok(()) => {
                    marker = marker_of(reader, count);
                    let (node, life) = session.map_or((0, 0), |stamp| (stamp.node.0, stamp.epoch >> 16));
                    if session.is_some_and(|stamp| stamp.seq == 1) {
                        self.end_claims_before(node, life);
                        self.serve_pops();
                    }
                    let call = Call { user, db: 0, words: &[], in_transaction: false, node, life };
                    let replies = self.execute(&call, count, since_last, &mut reader)?;
                    if let Some(session) = session {
                        self.remember(&session, &replies);
                    }
                    Verdict::Executed(replies)
                }
                Err(verdict) => {
                    for _ in 0..count {
                        skip_item(&mut reader).map_err(broken)?;
                    }
                    verdict
                }
            };
            let session = session.map(|session| (session.node, session.epoch, session.seq));
            results.push(BatchResult { user: user.to_vec(), marker, session, verdict });
        }
        Ok(results)
    }

    /// Ok when the batch is to be executed now.
    fn admit(&mut self, stamp: &SessionStamp) -> Result<(), Verdict> {
        let session = self.sessions.entry(stamp.node.0).or_default();
        if stamp.epoch < session.epoch {
            return Err(Verdict::Ended);
        }
        // Epoch 0 with nothing executed is a node that was never heard of.
        let is_new = stamp.epoch > session.epoch || session.last == 0;
        if is_new {
            if stamp.seq != 1 {
                return Err(Verdict::Gap);
            }
            *session = Session { epoch: stamp.epoch, last: 1, ..Session::default() };
            return Ok(());
        }
        while session.replies.first_key_value().is_some_and(|(seq, _)| *seq <= stamp.ack) {
            session.forget_oldest();
        }
        if stamp.seq <= session.last {
            let is_remembered = session.replies.get(&stamp.seq).is_some_and(Option::is_some);
            return Err(if is_remembered { Verdict::Repeated } else { Verdict::Replayed });
        }
        if stamp.seq != session.last + 1 {
            return Err(Verdict::Gap);
        }
        session.last = stamp.seq;
        Ok(())
    }

    fn remember(&mut self, stamp: &SessionStamp, replies: &[Reply]) {
        let session = self.sessions.entry(stamp.node.0).or_default();
        let is_all_ok = replies.len() <= 4096 && replies.iter().all(|reply| *reply == Reply::Ok);
        let bytes = match varint_bytes(replies.len() as u64) + replies.iter().map(reply_bytes).sum::<usize>()
        {
            _ if is_all_ok => Some(0),
            bytes if bytes > REMEMBERED_BYTES_MAX => None,
            bytes => Some(bytes),
        };
        session.replies.insert(stamp.seq, bytes);
        session.bytes += bytes.unwrap_or(0) + SESSION_BYTES_EACH;
        while session.bytes > SESSION_BYTES_MAX {
            session.forget_oldest();
        }
    }

    /// A change of members took this node out of the cluster: its remembered replies are forgotten.
    pub fn node_is_gone(&mut self, node: NodeId) {
        if let Some(session) = self.sessions.get_mut(&node.0) {
            session.replies.clear();
            session.bytes = 0;
        }
    }

    fn execute(
        &mut self,
        from: &Call<'_>,
        count: usize,
        since_last: u64,
        reader: &mut Reader<'_>,
    ) -> Result<Vec<Reply>, String> {
        let mut replies = Vec::new();
        for _ in 0..count {
            let item = decode_item(reader).map_err(|error| format!("entry {}: {error}", self.index))?;
            replies.push(match item {
                Item::Command { db, words } => self.command(&Call { db, words: &words, ..*from })?,
                Item::Transaction { watched, commands, is_atomic } => {
                    let watched: Vec<(u8, &[u8], Option<u64>)> = watched
                        .iter()
                        .map(|(db, key, changed)| (*db, *key, changed.map(|index| index.0)))
                        .collect();
                    let commands: Vec<Queued<'_>> =
                        commands.iter().map(|(db, words)| (*db, words.to_vec())).collect();
                    let from = Call { in_transaction: true, ..*from };
                    reply_of(self.transaction(&from, &watched, &commands, is_atomic)?)
                }
                Item::Expire { keys } if keys.is_empty() => count_reply(self.end_whatever_is_due()),
                Item::Expire { keys } => {
                    count_reply(keys.iter().map(|(db, key)| self.end_due(*db, key, expire_at_most())).sum())
                }
                Item::LeaderStart(start) => {
                    self.start_leader(&start, since_last);
                    Reply::Ok
                }
                Item::Verify => count_reply(self.index as usize),
                Item::AllocateReplica { node, nonce } => count_reply(self.allocate_replica(node.0, nonce)),
                Item::Cancel { claims } => {
                    count_reply(claims.iter().filter(|claim| self.end_claim(**claim)).count())
                }
                Item::TakeBack { db, owner, grants } => {
                    let grants: Vec<(&[u8], u64, u64)> = grants.to_vec();
                    count_reply(self.take_back(db, &(from.user.to_vec(), owner.to_vec()), &grants))
                }
                Item::EndClaims { node, life } => count_reply(self.end_claims_before(node.0, life)),
                Item::Confirm { claims } => {
                    count_reply(claims.iter().filter(|claim| self.confirm(**claim)).count())
                }
            });
            self.serve_pops();
        }
        Ok(replies)
    }

    // ---- transactions -----------------------------------------------------------------------------------

    /// The outer error is the model's own.
    fn transaction(
        &mut self,
        from: &Call<'_>,
        watched: &[(u8, &[u8], Option<u64>)],
        commands: &[Queued<'_>],
        is_atomic: bool,
    ) -> Result<Outcome, String> {
        let now = self.clock;
        let mut named = None;
        if let Some((_, words)) = commands.first().filter(|(_, words)| is(words[0], "ONCE")) {
            let (id, kept) = match once_of(words) {
                Ok(parsed) => parsed,
                Err(error) => return Ok(Err(error)),
            };
            let name = (from.user.to_vec(), id.to_vec());
            let rest: Vec<(u8, Vec<Vec<u8>>)> = commands[1..]
                .iter()
                .map(|(db, words)| (*db, words.iter().map(|word| word.to_vec()).collect()))
                .collect();
            if let Some(known) = self.once.get(&name).filter(|known| known.until > now) {
                if known.commands != rest {
                    return Ok(Err("ERR ONCE id reused with a different transaction".into()));
                }
                let index = known.index;
                let replayed = || {
                    let text = "The transaction was executed; its reply was too large to be kept, or gone for newer ones.";
                    Cow::from(format!("REPLAYED {index} {text}"))
                };
                let reply = known.reply.clone().ok_or_else(replayed);
                self.tally.answered_again += 1;
                return Ok(reply);
            }
            if self.once.len() as u64 >= self.settings.once_max_entries {
                let text = "OOM ONCE remembers no more than once-max-entries names. The transaction was not executed.";
                return Ok(Err(text.into()));
            }
            named = Some((name, rest, kept));
        }
        for (db, key, _) in watched {
            self.end_due(*db, key, expire_at_most());
        }
        let is_unchanged = |(db, key, changed): &(u8, &[u8], Option<u64>)| self.changed(*db, key) == *changed;
        if !watched.iter().all(is_unchanged) {
            return Ok(Ok(Reply::NullArray));
        }
        for (db, words) in commands {
            if let Err(error) = self.check_guards(*db, words) {
                return Ok(Err(error));
            }
        }
        let before = is_atomic.then(|| self.clone());
        let mut replies = Vec::new();
        for (at, (db, words)) in commands.iter().enumerate() {
            let is_guard = is(words[0], "FENCE") || is(words[0], "ONCE");
            let reply = match is_guard {
                true => Reply::Ok,
                false => self.command(&Call { db: *db, words, ..*from })?,
            };
            if let (Some(before), Reply::Error(text)) = (&before, &reply) {
                let speaks = ["LOCKED", "STALETOKEN", "QFULL", "OOM", "TRYAGAIN"];
                let is_said = speaks.iter().any(|code| text.split(' ').next() == Some(*code));
                let text =
                    if is_said { text.to_string() } else { format!("EXECABORT cmd={} {text}", at + 1) };
                let mut touched = std::mem::take(&mut self.touched);
                *self = before.clone();
                self.tally.rollbacks += 1;
                // They are as they were, but perhaps looked different for a while.
                self.touched.append(&mut touched);
                return Ok(Err(text.into()));
            }
            replies.push(reply);
        }
        let reply = Reply::Array(replies);
        if let Some((name, commands, kept)) = named {
            let is_small = reply_bytes(&reply) < REMEMBERED_BYTES_MAX;
            let reply = is_small.then(|| reply.clone());
            let until = now.saturating_add(kept);
            self.once.insert(name, Named { commands, index: self.index, until, reply });
            self.drop_old_once_replies();
        }
        Ok(Ok(reply))
    }

    /// The oldest replies go while all together are too large.
    fn drop_old_once_replies(&mut self) {
        while self.once.values().map(Named::bytes).sum::<u64>() > self.settings.once_max_bytes {
            let kept = self.once.iter_mut().filter(|(_, known)| known.reply.is_some());
            let oldest = kept.min_by_key(|(name, known)| (known.index, (*name).clone()));
            oldest.expect("what takes bytes is a reply").1.reply = None;
        }
    }

    /// Tokens are looked at before anything is done.
    fn check_guards(&mut self, db: u8, words: &[&[u8]]) -> Result<(), Cow<'static, str>> {
        if is(words[0], "FENCE") {
            if words.len() < 3 || words.len().is_multiple_of(2) {
                return Err("ERR wrong number of arguments for 'fence' command".into());
            }
            for pair in words[1..].chunks(2) {
                self.end_due(db, pair[0], expire_at_most());
            }
            for pair in words[1..].chunks(2) {
                self.check_token(db, pair[0], pair[1])?;
            }
        } else if is(words[0], "SET")
            && let Some(Ok(SetOptions { fence: Some((key, token)), .. })) =
                words.get(3..).map(SetOptions::parse)
        {
            self.end_due(db, key, expire_at_most());
            self.check_token(db, key, token)?;
        }
        Ok(())
    }

    /// ONCE by itself.
    fn once(&mut self, call: &Call<'_>) -> Outcome {
        once_of(call.words)?;
        Err("ERR ONCE must be the first command after MULTI".into())
    }

    fn start_leader(&mut self, start: &LeaderStart, since_last: u64) {
        if self.settings.databases == 0 {
            self.settings = start.settings;
        }
        self.ahead = self.ahead.saturating_add(start.outage.0.min(since_last));
        let (now, grace) = (self.clock, self.settings.lease_failover_grace.0);
        let with_grace = |until: u64, set_until: u64| {
            let budget = set_until.saturating_add(grace).saturating_add(grace);
            until.max(now.saturating_add(grace).min(budget))
        };
        for slot in self.databases.values_mut().flat_map(BTreeMap::values_mut) {
            match &mut slot.thing {
                Thing::String(..) => {}
                Thing::Lock(lock) => {
                    if Model::grace_of_lock(lock, with_grace) {
                        slot.changed = self.index;
                    }
                }
                Thing::Queue(queue) => {
                    if Model::grace_of_queue(queue, with_grace) {
                        slot.changed = self.index;
                    }
                }
            }
        }
    }

    /// Ids that ALLOCATE-REPLICA gives. Of the members only this is known here: a change of members that names ids of
    /// 1000 and more by itself would make a difference.
    fn allocate_replica(&mut self, node: u64, nonce: u64) -> usize {
        match self.replicas.get(&node) {
            Some((known, replica)) if *known == nonce => *replica as usize,
            _ => {
                let replica = self.next_replica;
                self.next_replica += 1;
                self.replicas.insert(node, (nonce, replica));
                replica as usize
            }
        }
    }

    // ---- slots and deadlines --------------------------------------------------------------------------

    fn slot(&self, db: u8, key: &[u8]) -> Option<&Slot> {
        self.databases.get(&db)?.get(key)
    }

    /// A slot that is about to change.
    fn slot_mut(&mut self, db: u8, key: &[u8]) -> Option<&mut Slot> {
        let slot = self.databases.get_mut(&db)?.get_mut(key)?;
        slot.changed = self.index;
        self.touched.push((db, key.to_vec()));
        Some(slot)
    }

    fn put(&mut self, db: u8, key: &[u8], thing: Thing) {
        let slot = Slot { changed: self.index, thing };
        self.databases.entry(db).or_default().insert(key.to_vec(), slot);
        self.touched.push((db, key.to_vec()));
    }

    fn remove(&mut self, db: u8, key: &[u8]) -> bool {
        let is_there = self.databases.get_mut(&db).is_some_and(|slots| slots.remove(key).is_some());
        if is_there {
            self.touched.push((db, key.to_vec()));
        }
        is_there
    }

    fn key_clock(&self) -> u64 {
        self.clock.saturating_add(self.ahead)
    }

    /// Ends what is due of one key and says how many items: the string, the hold, or leases of messages.
    fn end_due(&mut self, db: u8, key: &[u8], at_most: usize) -> usize {
        let key_now = self.key_clock();
        let Some(slot) = self.slot(db, key) else { return self.end_touched_of_queue(db, key, at_most) };
        match &slot.thing {
            Thing::String(_, deadline) if deadline.is_some_and(|at| at <= key_now) => {
                self.remove(db, key);
                1
            }
            Thing::Lock(_) => self.end_due_of_lock(db, key, at_most),
            Thing::Queue(_) => self.end_touched_of_queue(db, key, at_most),
            Thing::String(..) => 0,
        }
    }

    fn end_touched_of_queue(&mut self, db: u8, key: &[u8], at_most: usize) -> usize {
        let awaited = self.end_due_of_queue(db, key, true, at_most);
        awaited + self.end_due_of_queue(db, key, false, at_most - awaited)
    }

    /// An EXPIRE that names nothing: what somebody waits for, then a quarter as many of what nobody does; as many when
    /// nothing that somebody waits for is due.
    fn end_whatever_is_due(&mut self) -> usize {
        let most = expire_at_most();
        let awaited = self.end_some(true, most);
        awaited + self.end_some(false, if awaited == 0 { most } else { most / 4 })
    }

    /// The earliest of what somebody waits for, or of the rest, again and again; with a queue all that are due of it,
    /// if they are not too many.
    fn end_some(&mut self, is_awaited: bool, at_most: usize) -> usize {
        let mut ended = 0;
        while ended < at_most
            && let Some((_, due)) = self.first_due(is_awaited)
        {
            ended += match due {
                Due::String(db, key) => self.end_due(db, &key, 1),
                Due::Lock(db, key) => self.end_first_of_lock(db, &key),
                Due::Claim(claim) => usize::from(self.end_claim(claim)),
                Due::Once(name) => usize::from(self.once.remove(&name).is_some()),
                Due::Queue(db, key) => self.end_due_of_queue(db, &key, is_awaited, at_most - ended),
            };
        }
        ended
    }

    /// When what somebody waits for ends next; never is the largest number.
    pub fn awaited_until(&self) -> u64 {
        self.first_due(true).map_or(u64::MAX, |(at, _)| at)
    }

    fn first_due(&self, is_awaited: bool) -> Option<(u64, Due)> {
        let mut due: BTreeSet<(u64, Due)> = BTreeSet::new();
        for (db, slots) in &self.databases {
            for (key, slot) in slots {
                let key = key.clone();
                match &slot.thing {
                    Thing::String(_, deadline) => {
                        let at = deadline.filter(|_| !is_awaited).map(|at| at.saturating_sub(self.ahead));
                        due.extend(at.map(|at| (at, Due::String(*db, key))));
                    }
                    Thing::Lock(lock) if lock.queue.is_empty() != is_awaited => {
                        due.extend(lock.first_end().map(|(at, _)| (at, Due::Lock(*db, key))));
                    }
                    Thing::Lock(_) => {}
                    Thing::Queue(queue) => {
                        due.insert((queue.earliest(is_awaited), Due::Queue(*db, key)));
                    }
                }
            }
        }
        let resting = self.resting.iter();
        due.extend(
            resting.map(|((db, key), queue)| (queue.earliest(is_awaited), Due::Queue(*db, key.clone()))),
        );
        if is_awaited {
            let claims = self.waits.values().flat_map(|wait| &wait.claims);
            due.extend(claims.map(|claim| (claim.until, Due::Claim(claim.id))));
            due.extend(self.pop_waits.iter().map(|wait| (wait.claim.until, Due::Claim(wait.claim.id))));
        } else {
            due.extend(self.once.iter().map(|(name, known)| (known.until, Due::Once(name.clone()))));
        }
        due.pop_first().filter(|(at, _)| *at <= self.clock)
    }

    // ---- questions ------------------------------------------------------------------------------------

    /// The last entry that was applied.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Cluster time, in milliseconds, of the last entry.
    pub fn clock(&self) -> u64 {
        self.clock
    }

    /// How far key time is ahead of cluster time.
    pub fn ahead(&self) -> u64 {
        self.ahead
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The last fencing token that was given out.
    pub fn last_token(&self) -> u64 {
        self.last_token
    }

    /// What is under a key, due or not.
    pub fn thing(&self, db: u8, key: &[u8]) -> Option<&Thing> {
        self.slot(db, key).map(|slot| &slot.thing)
    }

    /// Everything there is, by database and key.
    pub fn things(&self) -> impl Iterator<Item = (u8, &[u8], &Thing)> {
        self.databases
            .iter()
            .flat_map(|(db, slots)| slots.iter().map(|(key, slot)| (*db, key.as_slice(), &slot.thing)))
    }

    /// The index of the entry that changed a key last.
    pub fn changed(&self, db: u8, key: &[u8]) -> Option<u64> {
        self.slot(db, key).map(|slot| slot.changed)
    }

    /// The string under a key, as of the last entry.
    pub fn value(&self, db: u8, key: &[u8]) -> Option<&[u8]> {
        match self.thing(db, key)? {
            Thing::String(value, _) => Some(value),
            Thing::Lock(_) | Thing::Queue(_) => None,
        }
    }

    /// What a node has had executed: its epoch, the last batch of it, and of how many batches the replies are
    /// remembered.
    pub fn session(&self, node: NodeId) -> Option<(u64, u64, usize)> {
        let session = self.sessions.get(&node.0).filter(|session| session.last > 0)?;
        Some((session.epoch, session.last, session.replies.len()))
    }

    /// The keys that the last entry changed, perhaps more than once.
    pub fn touched(&self) -> &[(u8, Vec<u8>)] {
        &self.touched
    }

    /// What reading commands see of a key.
    pub fn seen(&self, db: u8, key: &[u8]) -> Option<Seen> {
        Some(match self.thing(db, key)? {
            Thing::String(value, deadline) => Seen::String(value.clone(), *deadline),
            Thing::Lock(_) => Seen::Lock,
            Thing::Queue(queue) => Seen::Queue(queue.counts()),
        })
    }

    /// What a reading command replies on this state at a cluster time in milliseconds. `None`: no reading command that
    /// the model knows.
    pub fn read(&self, db: u8, words: &[&[u8]], now: u64) -> Option<Reply> {
        read(&Present { model: self, now }, db, words)
    }
}

/// What a reading command replies on a state; nothing ends by it. `None`: no reading command that the model knows.
pub fn read(view: &dyn View, db: u8, words: &[&[u8]]) -> Option<Reply> {
    let (arity, _, run) = verb(words.first()?)?;
    let Run::Read(run) = run else { return None };
    if !has_arity(arity, words.len()) {
        return None;
    }
    let call = Call { user: b"", db, words, in_transaction: false, node: 0, life: 0 };
    Some(reply_of(run(view, &call)))
}

/// Which words of a command are keys. Empty for what the model does not know.
pub fn keys_of<'a>(words: &[&'a [u8]]) -> Vec<&'a [u8]> {
    let Some((_, keys, _)) = words.first().and_then(|name| verb(name)) else { return Vec::new() };
    keys.of(words)
}

impl Session {
    fn forget_oldest(&mut self) {
        if let Some((_, bytes)) = self.replies.pop_first() {
            self.bytes -= bytes.unwrap_or(0) + SESSION_BYTES_EACH;
        }
    }
}

/// Bytes of a reply between nodes.
fn reply_bytes(reply: &Reply) -> usize {
    let text = |bytes: usize| 1 + varint_bytes(bytes as u64) + bytes;
    let all = |replies: &[Reply]| {
        1 + varint_bytes(replies.len() as u64) + replies.iter().map(reply_bytes).sum::<usize>()
    };
    match reply {
        Reply::Ok | Reply::Null | Reply::NullArray | Reply::Boolean(_) => 1,
        Reply::Simple(line) | Reply::Error(line) => text(line.len()),
        Reply::Integer(number) => 1 + varint_bytes(number.unsigned_abs().saturating_mul(2)),
        Reply::Double(_) => 9,
        Reply::Waiting(claim) => 1 + varint_bytes(*claim),
        Reply::Bulk(bytes) => text(bytes.len()),
        Reply::Verbatim(_, line) => 1 + text(line.len()),
        Reply::Array(replies) | Reply::Set(replies) | Reply::Push(replies) => all(replies),
        Reply::Map(pairs) => {
            let pair = |(key, value): &(Reply, Reply)| reply_bytes(key) + reply_bytes(value);
            1 + varint_bytes(pairs.len() as u64) + pairs.iter().map(pair).sum::<usize>()
        }
    }
}

fn varint_bytes(number: u64) -> usize {
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}

/// The operation that the first item of a batch names, if it is a marker.
fn marker_of(mut reader: Reader<'_>, count: usize) -> Option<u64> {
    if count == 0 {
        return None;
    }
    match decode_item(&mut reader).ok()? {
        Item::Command { words, .. } => match &words[..] {
            [name, key] if name.eq_ignore_ascii_case(b"EXISTS") => {
                u64::try_from(integer(key.strip_prefix(MARKER)?)?).ok()
            }
            _ => None,
        },
        _ => None,
    }
}

// ---- commands -----------------------------------------------------------------------------------------

/// Which words are keys.
#[derive(Debug, Clone, Copy)]
enum Keys {
    First,
    Second,
    All,
    EverySecond,
    /// All words after the first FROM.
    BehindFrom,
    /// The first, and the one behind TO.
    FirstAndTo,
    /// As many as the word after the first KEYS says; KEYS is looked for behind the milliseconds.
    Numbered,
    /// As many as the first word says.
    Counted,
    /// Every second one, but for the last if it is one too many.
    Pairs,
    /// Of LOCKS KILL the word behind it; of LOCKS RELEASE none.
    OfLocks,
    None,
}

impl Keys {
    fn of<'a>(self, words: &[&'a [u8]]) -> Vec<&'a [u8]> {
        let rest = words.get(1..).unwrap_or_default();
        match self {
            Keys::First => rest.iter().take(1).copied().collect(),
            Keys::Second => rest.iter().skip(1).take(1).copied().collect(),
            Keys::All => rest.to_vec(),
            Keys::FirstAndTo => {
                let mut others = rest.iter().skip(1).skip_while(|word| !is(word, "TO")).skip(1);
                rest.iter().take(1).chain(others.next()).copied().collect()
            }
            Keys::EverySecond => rest.iter().step_by(2).copied().collect(),
            Keys::BehindFrom => rest.iter().skip_while(|word| !is(word, "FROM")).skip(1).copied().collect(),
            Keys::Numbered => {
                let mut words = words.iter().skip(3).skip_while(|word| !is(word, "KEYS")).skip(1);
                let count = words.next().and_then(|word| integer(word)).unwrap_or(0);
                words.take(usize::try_from(count).unwrap_or(0)).copied().collect()
            }
            Keys::Counted => {
                let count = rest.first().and_then(|word| integer(word)).unwrap_or(0);
                rest.iter().skip(1).take(usize::try_from(count).unwrap_or(0)).copied().collect()
            }
            Keys::Pairs => rest.chunks(2).filter(|pair| pair.len() == 2).map(|pair| pair[0]).collect(),
            Keys::OfLocks if rest.first().is_some_and(|word| is(word, "KILL")) => {
                rest.iter().skip(1).take(1).copied().collect()
            }
            Keys::OfLocks | Keys::None => Vec::new(),
        }
    }
}

enum Run {
    Read(fn(&dyn View, &Call<'_>) -> Outcome),
    Write(fn(&mut Model, &Call<'_>) -> Outcome),
}

/// How many words a command has (negative: at least), which of them are keys, and what it does.
fn verb(name: &[u8]) -> Option<(i32, Keys, Run)> {
    let name = name.to_ascii_uppercase();
    Some(match name.as_slice() {
        b"GET" => (2, Keys::First, Run::Read(get)),
        b"MGET" => (-2, Keys::All, Run::Read(mget)),
        b"STRLEN" => (2, Keys::First, Run::Read(strlen)),
        b"EXISTS" => (-2, Keys::All, Run::Read(exists)),
        b"TYPE" => (2, Keys::First, Run::Read(type_of)),
        b"PTTL" => (2, Keys::First, Run::Read(pttl)),
        b"QLEN" => (-2, Keys::First, Run::Read(qlen)),
        b"SET" => (-3, Keys::First, Run::Write(Model::set)),
        b"SETNX" => (3, Keys::First, Run::Write(Model::setnx)),
        b"GETSET" => (3, Keys::First, Run::Write(Model::getset)),
        b"GETDEL" => (2, Keys::First, Run::Write(Model::getdel)),
        b"DEL" | b"UNLINK" => (-2, Keys::All, Run::Write(Model::del)),
        b"INCR" => (2, Keys::First, Run::Write(|model, call| model.add(call, 1))),
        b"DECR" => (2, Keys::First, Run::Write(|model, call| model.add(call, -1))),
        b"INCRBY" => (3, Keys::First, Run::Write(Model::incrby)),
        b"APPEND" => (3, Keys::First, Run::Write(Model::append)),
        b"MSET" => (-3, Keys::EverySecond, Run::Write(Model::mset)),
        b"PEXPIRE" => (-3, Keys::First, Run::Write(Model::pexpire)),
        b"PERSIST" => (2, Keys::First, Run::Write(Model::persist)),
        b"LOCK" => (-3, Keys::First, Run::Write(Model::lock)),
        b"UNLOCK" => (-3, Keys::First, Run::Write(Model::unlock)),
        b"LOCKEXTEND" => (-3, Keys::Numbered, Run::Write(Model::lockextend)),
        b"MLOCK" => (-4, Keys::Counted, Run::Write(Model::mlock)),
        b"LOCKS" => (-3, Keys::OfLocks, Run::Write(Model::locks)),
        b"FENCE" => (-3, Keys::Pairs, Run::Write(Model::fence)),
        b"ONCE" => (-2, Keys::None, Run::Write(Model::once)),
        b"QPUSH" => (-3, Keys::First, Run::Write(Model::qpush)),
        b"QPOP" => (-3, Keys::BehindFrom, Run::Write(Model::qpop)),
        b"QACK" => (-3, Keys::First, Run::Write(Model::qack)),
        b"QNACK" => (-5, Keys::First, Run::Write(Model::qnack)),
        b"QEXTEND" => (-4, Keys::First, Run::Write(Model::qextend)),
        b"QDEL" => (-3, Keys::First, Run::Write(Model::qdel)),
        b"QREDRIVE" => (-2, Keys::FirstAndTo, Run::Write(Model::qredrive)),
        b"QCONFIG" => (-5, Keys::Second, Run::Write(Model::qconfig)),
        _ => return None,
    })
}

fn has_arity(arity: i32, words: usize) -> bool {
    let wanted = arity.unsigned_abs() as usize;
    if arity < 0 { words >= wanted } else { words == wanted }
}

fn reply_of(outcome: Outcome) -> Reply {
    outcome.unwrap_or_else(Reply::Error)
}

fn count_reply(count: usize) -> Reply {
    Reply::Integer(i64::try_from(count).unwrap_or(i64::MAX))
}

fn is(word: &[u8], name: &str) -> bool {
    word.eq_ignore_ascii_case(name.as_bytes())
}

/// A number as Redis reads it: digits without leading zeros, perhaps a minus before them.
fn integer(word: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(word).ok()?;
    let number: i64 = text.parse().ok()?;
    // Only the one way to write it counts: no plus, no zeros before it, no minus zero.
    let mut plain = itoa::Buffer::new();
    (plain.format(number) == text).then_some(number)
}

fn integer_or_error(word: &[u8]) -> Result<i64, Cow<'static, str>> {
    integer(word).ok_or(Cow::Borrowed(NOT_AN_INTEGER))
}

fn bulk_or_null(value: Option<&Bytes>) -> Reply {
    value.map_or(Reply::Null, |value| Reply::Bulk(value.clone()))
}

impl Model {
    fn command(&mut self, call: &Call<'_>) -> Result<Reply, String> {
        let Some((arity, keys, run)) = call.words.first().and_then(|name| verb(name)) else {
            let name = call.words.first().map_or(String::new(), |name| name.escape_ascii().to_string());
            return Err(format!("entry {}: the model does not know {name:?}", self.index));
        };
        if call.db >= self.settings.databases {
            return Ok(Reply::error("ERR a database out of range in the log"));
        }
        if !has_arity(arity, call.words.len()) {
            return Ok(Reply::error("ERR malformed command in the log"));
        }
        for key in keys.of(call.words) {
            self.end_due(call.db, key, expire_at_most());
        }
        Ok(reply_of(match run {
            Run::Read(run) => run(&Present { model: self, now: self.clock }, call),
            Run::Write(run) => run(self, call),
        }))
    }

    // ---- strings ----------------------------------------------------------------------------------------

    /// The string under a key with its deadline; an error when it is a lock or a queue.
    fn string(&self, db: u8, key: &[u8]) -> Result<Option<(Bytes, Option<u64>)>, Cow<'static, str>> {
        match self.thing(db, key) {
            None => Ok(None),
            Some(Thing::String(value, deadline)) => Ok(Some((value.clone(), *deadline))),
            Some(Thing::Lock(_) | Thing::Queue(_)) => Err(WRONG_TYPE.into()),
        }
    }

    /// Locks and queues are changed by their own verbs only.
    fn refuse_lock_or_queue(&self, db: u8, key: &[u8]) -> Result<(), Cow<'static, str>> {
        match self.thing(db, key) {
            None | Some(Thing::String(..)) => Ok(()),
            Some(Thing::Lock(_)) => Err(IS_A_LOCK.into()),
            Some(Thing::Queue(_)) => Err(IS_A_QUEUE.into()),
        }
    }

    fn put_string(&mut self, db: u8, key: &[u8], value: &[u8], deadline: Option<u64>) {
        self.put(db, key, Thing::String(Bytes::copy_from_slice(value), deadline));
    }

    fn set(&mut self, call: &Call<'_>) -> Outcome {
        let (db, key, value) = (call.db, call.words[1], call.words[2]);
        let options = SetOptions::parse(&call.words[3..])?;
        let left = options.lifetime.map(|(unit, word)| self.time_left(unit, word)).transpose()?;
        self.refuse_lock_or_queue(db, key)?;
        if let Some((fence, token)) = options.fence.filter(|_| !call.in_transaction) {
            self.end_due(db, fence, expire_at_most());
            self.check_token(db, fence, token)?;
        }
        let (old, old_deadline) = self.string(db, key)?.unzip();
        let is_wanted = match options.condition {
            None => true,
            Some(Condition::Absent) => old.is_none(),
            Some(Condition::Present) => old.is_some(),
            Some(Condition::Equal(wanted)) => old.as_deref() == Some(wanted),
            Some(Condition::NotEqual(unwanted)) => old.as_deref() != Some(unwanted),
        };
        if is_wanted {
            match left {
                // An absolute time that is over already.
                Some(left) if left <= 0 => {
                    self.remove(db, key);
                }
                Some(left) => self.put_string(db, key, value, Some(self.deadline_in(left))),
                None if options.keep => self.put_string(db, key, value, old_deadline.flatten()),
                None => self.put_string(db, key, value, None),
            }
        }
        Ok(match (options.get, is_wanted) {
            (true, _) => bulk_or_null(old.as_ref()),
            (false, true) => Reply::Ok,
            (false, false) => Reply::Null,
        })
    }

    /// Milliseconds that SET's time to live gives.
    fn time_left(&self, unit: Unit, word: &[u8]) -> Result<i64, Cow<'static, str>> {
        let given = integer_or_error(word)?;
        let invalid = Cow::Borrowed("ERR invalid expire time in 'set' command");
        let (factor, is_unix) = match unit {
            Unit::Seconds => (1000, false),
            Unit::Milliseconds => (1, false),
            Unit::UnixSeconds => (1000, true),
            Unit::UnixMilliseconds => (1, true),
        };
        let (given, wall) = (i128::from(given) * factor, i128::from(self.wall));
        // The moment must be one that a wall clock can show.
        let moment = if is_unix { given } else { given + wall };
        if given <= 0 || moment > i128::from(i64::MAX) {
            return Err(invalid);
        }
        i64::try_from(moment - wall).map_err(|_| invalid)
    }

    fn deadline_in(&self, left: i64) -> u64 {
        self.key_clock().saturating_add(u64::try_from(left).unwrap_or(0))
    }

    fn setnx(&mut self, call: &Call<'_>) -> Outcome {
        self.refuse_lock_or_queue(call.db, call.words[1])?;
        if self.slot(call.db, call.words[1]).is_some() {
            return Ok(Reply::Integer(0));
        }
        self.put_string(call.db, call.words[1], call.words[2], None);
        Ok(Reply::Integer(1))
    }

    fn getset(&mut self, call: &Call<'_>) -> Outcome {
        let old = self.string(call.db, call.words[1])?;
        self.put_string(call.db, call.words[1], call.words[2], None);
        Ok(bulk_or_null(old.as_ref().map(|(value, _)| value)))
    }

    fn getdel(&mut self, call: &Call<'_>) -> Outcome {
        let old = self.string(call.db, call.words[1])?;
        self.remove(call.db, call.words[1]);
        Ok(bulk_or_null(old.as_ref().map(|(value, _)| value)))
    }

    fn del(&mut self, call: &Call<'_>) -> Outcome {
        for key in &call.words[1..] {
            self.refuse_lock_or_queue(call.db, key)?;
        }
        let mut removed = 0;
        for key in &call.words[1..] {
            removed += usize::from(self.remove(call.db, key));
        }
        Ok(count_reply(removed))
    }

    fn incrby(&mut self, call: &Call<'_>) -> Outcome {
        self.add(call, integer_or_error(call.words[2])?)
    }

    fn add(&mut self, call: &Call<'_>, by: i64) -> Outcome {
        let (old, deadline) = self.string(call.db, call.words[1])?.unzip();
        let old = old.map_or(Ok(0), |value| integer_or_error(&value))?;
        let sum = old.checked_add(by).ok_or("ERR increment or decrement would overflow")?;
        self.put_string(call.db, call.words[1], sum.to_string().as_bytes(), deadline.flatten());
        Ok(Reply::Integer(sum))
    }

    fn append(&mut self, call: &Call<'_>) -> Outcome {
        let (old, deadline) = self.string(call.db, call.words[1])?.unzip();
        let whole = [&old.clone().unwrap_or_default(), call.words[2]].concat();
        if old.is_some() && whole.len() > STRING_BYTES_MAX {
            return Err("ERR string exceeds maximum allowed size (proto-max-bulk-len)".into());
        }
        self.put_string(call.db, call.words[1], &whole, deadline.flatten());
        Ok(count_reply(whole.len()))
    }

    fn mset(&mut self, call: &Call<'_>) -> Outcome {
        let pairs = &call.words[1..];
        if pairs.len() % 2 == 1 {
            return Err("ERR wrong number of arguments for 'mset' command".into());
        }
        for pair in pairs.chunks(2) {
            self.refuse_lock_or_queue(call.db, pair[0])?;
        }
        for pair in pairs.chunks(2) {
            self.put_string(call.db, pair[0], pair[1], None);
        }
        Ok(Reply::Ok)
    }

    fn pexpire(&mut self, call: &Call<'_>) -> Outcome {
        let mut flags = [false; 4];
        for word in &call.words[3..] {
            let at = ["NX", "XX", "GT", "LT"].iter().position(|name| is(word, name));
            let unknown = || format!("ERR Unsupported option {}", String::from_utf8_lossy(word));
            flags[at.ok_or_else(unknown)?] = true;
        }
        let [nx, xx, gt, lt] = flags;
        if nx && (xx || gt || lt) {
            return Err("ERR NX and XX, GT or LT options at the same time are not compatible".into());
        }
        if gt && lt {
            return Err("ERR GT and LT options at the same time are not compatible".into());
        }
        let left = integer_or_error(call.words[2])?;
        if i128::from(left) + i128::from(self.wall) > i128::from(i64::MAX) {
            return Err("ERR invalid expire time in 'pexpire' command".into());
        }
        self.refuse_lock_or_queue(call.db, call.words[1])?;
        let Some((value, deadline)) = self.string(call.db, call.words[1])? else {
            return Ok(Reply::Integer(0));
        };
        // What has no deadline lives longest.
        let now_left = deadline.map(|at| i128::from(at) - i128::from(self.key_clock()));
        let wanted = i128::from(left);
        let is_refused = (nx && deadline.is_some())
            || (xx && deadline.is_none())
            || (gt && now_left.is_none_or(|now_left| wanted <= now_left))
            || (lt && now_left.is_some_and(|now_left| wanted >= now_left));
        if is_refused {
            return Ok(Reply::Integer(0));
        }
        if left <= 0 {
            self.remove(call.db, call.words[1]);
        } else {
            self.put_string(call.db, call.words[1], &value, Some(self.deadline_in(left)));
        }
        Ok(Reply::Integer(1))
    }

    fn persist(&mut self, call: &Call<'_>) -> Outcome {
        self.refuse_lock_or_queue(call.db, call.words[1])?;
        match self.string(call.db, call.words[1])? {
            Some((value, Some(_))) => {
                self.put_string(call.db, call.words[1], &value, None);
                Ok(Reply::Integer(1))
            }
            Some((_, None)) | None => Ok(Reply::Integer(0)),
        }
    }
}

// ---- commands that read -------------------------------------------------------------------------------

fn string_seen(view: &dyn View, call: &Call<'_>) -> Result<Option<(Bytes, Option<u64>)>, Cow<'static, str>> {
    match view.look(call.db, call.words[1]) {
        None => Ok(None),
        Some(Seen::String(value, deadline)) => Ok(Some((value, deadline))),
        Some(Seen::Lock | Seen::Queue(_)) => Err(WRONG_TYPE.into()),
    }
}

fn get(view: &dyn View, call: &Call<'_>) -> Outcome {
    Ok(string_seen(view, call)?.map_or(Reply::Null, |(value, _)| Reply::Bulk(value)))
}

fn mget(view: &dyn View, call: &Call<'_>) -> Outcome {
    let value = |key: &&[u8]| match view.look(call.db, key) {
        Some(Seen::String(value, _)) => Reply::Bulk(value),
        Some(Seen::Lock | Seen::Queue(_)) | None => Reply::Null,
    };
    Ok(Reply::Array(call.words[1..].iter().map(value).collect()))
}

fn strlen(view: &dyn View, call: &Call<'_>) -> Outcome {
    Ok(count_reply(string_seen(view, call)?.map_or(0, |(value, _)| value.len())))
}

fn exists(view: &dyn View, call: &Call<'_>) -> Outcome {
    Ok(count_reply(call.words[1..].iter().filter(|key| view.look(call.db, key).is_some()).count()))
}

fn type_of(view: &dyn View, call: &Call<'_>) -> Outcome {
    Ok(Reply::simple(match view.look(call.db, call.words[1]) {
        None => "none",
        Some(Seen::String(..)) => "string",
        Some(Seen::Lock) => "lock",
        Some(Seen::Queue(_)) => "queue",
    }))
}

fn pttl(view: &dyn View, call: &Call<'_>) -> Outcome {
    Ok(Reply::Integer(match view.look(call.db, call.words[1]) {
        None => -2,
        Some(Seen::String(_, Some(deadline))) => {
            i64::try_from(deadline.saturating_sub(view.key_now())).unwrap_or(i64::MAX)
        }
        Some(Seen::String(_, None) | Seen::Lock | Seen::Queue(_)) => -1,
    }))
}

fn qlen(view: &dyn View, call: &Call<'_>) -> Outcome {
    let state = match &call.words[2..] {
        [] => "READY",
        [word] => {
            let states = ["READY", "LEASED", "ALL", "DELAYED", "DEAD"];
            states.into_iter().find(|state| is(word, state)).ok_or_else(|| queues::no_state(word))?
        }
        _ => return Err("ERR syntax error: QLEN takes a queue and one state".into()),
    };
    let [ready, delayed, leased, dead] = match view.look(call.db, call.words[1]) {
        None => [0; 4],
        Some(Seen::Queue(counts)) => counts,
        Some(Seen::String(..) | Seen::Lock) => return Err(WRONG_TYPE.into()),
    };
    Ok(count_reply(match state {
        "READY" => ready,
        "DELAYED" => delayed,
        "LEASED" => leased,
        "DEAD" => dead,
        _ => ready + delayed + leased + dead,
    }))
}

// ---- options ------------------------------------------------------------------------------------------

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Seconds,
    Milliseconds,
    UnixSeconds,
    UnixMilliseconds,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition<'a> {
    Absent,
    Present,
    Equal(&'a [u8]),
    NotEqual(&'a [u8]),
}

#[derive(Debug, Default)]
struct SetOptions<'a> {
    condition: Option<Condition<'a>>,
    lifetime: Option<(Unit, &'a [u8])>,
    keep: bool,
    get: bool,
    fence: Option<(&'a [u8], &'a [u8])>,
}

impl<'a> SetOptions<'a> {
    fn parse(words: &[&'a [u8]]) -> Result<SetOptions<'a>, Cow<'static, str>> {
        const UNITS: [(&str, Unit); 4] = [
            ("EX", Unit::Seconds),
            ("PX", Unit::Milliseconds),
            ("EXAT", Unit::UnixSeconds),
            ("PXAT", Unit::UnixMilliseconds),
        ];
        let mut options = SetOptions::default();
        let mut at = 0;
        while at < words.len() {
            let word = words[at];
            let unit = UNITS.iter().find(|(name, _)| is(word, name)).map(|(_, unit)| *unit);
            let has_operand = unit.is_some() || is(word, "IFEQ") || is(word, "IFNE");
            let operand: &[u8] = match words.get(at + 1) {
                Some(operand) => operand,
                None if has_operand => return Err(SYNTAX.into()),
                None => b"",
            };
            at += if has_operand { 2 } else { 1 };
            if let Some(unit) = unit {
                // The same unit may come again, and the last one counts.
                if options.keep || options.lifetime.is_some_and(|(before, _)| before != unit) {
                    return Err(SYNTAX.into());
                }
                options.lifetime = Some((unit, operand));
            } else if is(word, "KEEPTTL") && options.lifetime.is_none() {
                options.keep = true;
            } else if is(word, "GET") {
                options.get = true;
            } else if is(word, "FENCE") {
                let Some([key, token]) = words.get(at..at + 2) else { return Err(SYNTAX.into()) };
                at += 2;
                if options.fence.replace((key, token)).is_some() {
                    return Err(SYNTAX.into());
                }
            } else {
                let condition = match () {
                    () if is(word, "NX") => Condition::Absent,
                    () if is(word, "XX") => Condition::Present,
                    () if is(word, "IFEQ") => Condition::Equal(operand),
                    () if is(word, "IFNE") => Condition::NotEqual(operand),
                    () => return Err(SYNTAX.into()),
                };
                let may_repeat = matches!(condition, Condition::Absent | Condition::Present);
                match options.condition {
                    None => options.condition = Some(condition),
                    Some(before) if before == condition && may_repeat => {}
                    Some(_) => return Err(SYNTAX.into()),
                }
            }
        }
        Ok(options)
    }
}

fn owner(word: &[u8]) -> Result<&[u8], Cow<'static, str>> {
    if (1..=256).contains(&word.len()) {
        Ok(word)
    } else {
        Err("ERR lock owner must be 1 to 256 bytes long".into())
    }
}

/// A lease in units of `factor` milliseconds: 100 ms to a day.
fn lease_ms(word: &[u8], factor: i64) -> Result<u64, Cow<'static, str>> {
    let lease = i128::from(integer_or_error(word)?) * i128::from(factor);
    if (100..=86_400_000).contains(&lease) {
        Ok(lease as u64)
    } else {
        Err("ERR lock lease must be between 100 milliseconds and 24 hours".into())
    }
}

/// The name and the time of ONCE.
fn once_of<'a>(words: &[&'a [u8]]) -> Result<(&'a [u8], u64), Cow<'static, str>> {
    let id = words.get(1).copied().unwrap_or_default();
    if !(1..=256).contains(&id.len()) {
        return Err("ERR ONCE id must be 1 to 256 bytes long".into());
    }
    let kept = match words.get(2..).unwrap_or_default() {
        [] => 600_000,
        [word, number] if is(word, "PX") => {
            let number = integer_or_error(number)?;
            if !(1..=604_800_000).contains(&number) {
                return Err("ERR ONCE PX must be between 1 and 604800000 milliseconds".into());
            }
            number as u64
        }
        _ => return Err("ERR syntax error: ONCE takes id and PX milliseconds".into()),
    };
    Ok((id, kept))
}

/// `<index>-<n>:<delivery>`, numbers in plain digits.
fn receipt(word: &[u8]) -> Option<(MessageId, u32)> {
    let text = std::str::from_utf8(word).ok()?;
    let (id, delivery) = text.split_once(':')?;
    let (index, n) = id.split_once('-')?;
    let receipt = ((index.parse().ok()?, n.parse().ok()?), delivery.parse().ok()?);
    let ((index, n), delivery) = receipt;
    // Plus signs and zeros in front read as the same numbers, but are no receipts.
    (format!("{index}-{n}:{delivery}") == text).then_some(((index, n), delivery))
}
