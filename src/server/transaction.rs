//! MULTI, EXEC, DISCARD and WATCH as written states.
//!
//! ```text
//!            MULTI                      EXEC, DISCARD
//! Outside ─────────► Queuing ───────────────────────► Outside
//!                      │  a command that is refused      ▲
//!                      ▼                                  │ EXEC: EXECABORT; DISCARD
//!                    Broken ─────────────────────────────┘
//! ```
//! What was watched lives beside these: WATCH comes before MULTI, and both EXEC and DISCARD end it.

use std::borrow::Cow;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use bytes::Bytes;
use hashbrown::HashTable;

use crate::commands::spec::CommandSpec;
use crate::commands::spec::Execute;
use crate::commands::spec::Flags;
use crate::commands::spec::Group;
use crate::commands::weights::HEAVY;
use crate::machine::entry::Queued;
use crate::machine::entry::Watched;
use crate::resp::Reply;
use crate::resp::Request;
use crate::server::disk::DiskNeed;
use crate::server::reply_bounds::bounded;
use crate::server::reply_bounds::too_large;
use crate::state::DbIndex;
use crate::types::LogIndex;
use crate::types::bounds::Bounds;

/// Bytes that the commands of a transaction may take together (COMMANDS.md 2.8); those of watched keys, too.
pub const BYTES_MAX: usize = 64 << 20;
/// Keys that a connection may watch.
pub const WATCHED_MAX: usize = 1_000_000;
/// What a queued command takes besides its bytes, nearly; its arguments' places are counted one by one.
const QUEUED_OVERHEAD_BYTES: usize = 150;
/// What a watched key takes besides its bytes: its row and its place in the table.
const WATCHED_OVERHEAD_BYTES: usize = size_of::<Watched>() + 16;

/// A command between MULTI and EXEC.
#[derive(Debug)]
pub enum Step {
    /// Goes into the log with the others.
    Logged,
    /// Answered by the connection itself once the others were applied.
    Session(Request),
}

/// Everything that EXEC runs.
#[derive(Debug, Default)]
pub struct Plan {
    /// In the order in which they were sent.
    pub steps: Vec<Step>,
    /// The logged ones among them, in the same order.
    pub commands: Vec<Queued>,
    pub watched: Vec<Watched>,
    /// One of the commands writes.
    pub has_writes: bool,
    /// One of them may take memory, so that `maxmemory` stands against it.
    pub needs_memory: bool,
    /// One of the commands writes something that is no deletion.
    pub has_more_than_deletions: bool,
    /// One of them takes more than its words.
    pub is_heavy: bool,
    /// One of them is a guard, or a verb of locks or queues: all or nothing.
    pub is_atomic: bool,
    /// The log is to say which client sent them.
    pub names_client: bool,
    /// Its reply may hand out locks or messages that go back when it is not heard. A transaction with a name gives its reply
    /// again when it comes again, so what it was given stays.
    pub hands_out: bool,
    /// It has a name.
    pub is_named: bool,
}

/// What EXEC finds.
#[derive(Debug)]
pub enum Exec {
    /// There was no MULTI.
    WithoutMulti,
    /// A command was refused before; nothing runs.
    Aborted,
    Run(Plan),
}

impl Exec {
    /// What is to run, if anything is.
    #[must_use]
    pub fn into_plan(self) -> Option<Plan> {
        match self {
            Exec::Run(plan) => Some(plan),
            Exec::WithoutMulti | Exec::Aborted => None,
        }
    }
}

/// Where a connection stands between MULTI and EXEC.
#[derive(Debug, Default)]
enum Phase {
    #[default]
    Outside,
    Queuing {
        plan: Plan,
        bytes: usize,
        /// The database of the next command: SELECT among the queued commands moves it.
        db: DbIndex,
    },
    Broken,
}

/// The transaction of one connection.
#[derive(Debug, Default)]
pub struct Transaction {
    phase: Phase,
    watched: WatchedKeys,
}

/// The keys that are watched, in the order in which they came, each once.
#[derive(Debug, Default)]
struct WatchedKeys {
    rows: Vec<Watched>,
    /// Places in `rows` by database and key: a client may watch a million keys with one command.
    places: HashTable<usize>,
    /// Seeded, since it is the client who chooses the keys.
    hasher: RandomState,
    key_bytes: usize,
}

impl WatchedKeys {
    /// Adds a key unless it is there; false when there is no room for it.
    fn add(&mut self, db: DbIndex, key: &[u8], changed: Option<LogIndex>) -> bool {
        let (rows, hasher) = (&self.rows, &self.hasher);
        let hash = hasher.hash_one((db, key));
        let is_same = |at: &usize| rows[*at].db == db && *rows[*at].key == *key;
        if self.places.find(hash, is_same).is_some() {
            return true;
        }
        if rows.len() == WATCHED_MAX || self.key_bytes + key.len() > BYTES_MAX {
            return false;
        }
        let rehash = |at: &usize| hasher.hash_one((rows[*at].db, &*rows[*at].key));
        self.places.insert_unique(hash, rows.len(), rehash);
        self.key_bytes += key.len();
        self.rows.push(Watched { db, key: key.into(), changed });
        true
    }

    /// Takes them out and gives the memory of the table back.
    fn take(&mut self) -> Vec<Watched> {
        self.places = HashTable::new();
        self.key_bytes = 0;
        std::mem::take(&mut self.rows)
    }

    fn bytes(&self) -> usize {
        self.key_bytes + self.rows.len() * WATCHED_OVERHEAD_BYTES
    }
}

impl Transaction {
    /// True between MULTI and EXEC or DISCARD.
    #[inline]
    pub fn is_open(&self) -> bool {
        !matches!(self.phase, Phase::Outside)
    }

    /// Commands queued; `None` outside MULTI.
    pub fn queued(&self) -> Option<usize> {
        match &self.phase {
            Phase::Outside => None,
            Phase::Queuing { plan, .. } => Some(plan.steps.len()),
            Phase::Broken => Some(0),
        }
    }

    /// Keys watched.
    pub fn watched(&self) -> usize {
        self.watched.rows.len()
    }

    /// Memory that the queued commands and the watched keys take, nearly, in bytes.
    pub fn bytes(&self) -> usize {
        let queued = match &self.phase {
            Phase::Queuing { bytes, .. } => *bytes,
            Phase::Outside | Phase::Broken => 0,
        };
        queued + self.watched.bytes()
    }

    /// True when EXEC would write, so that a pause of writes holds it back.
    pub fn has_writes(&self) -> bool {
        matches!(&self.phase, Phase::Queuing { plan, .. } if plan.has_writes)
    }

    /// True when EXEC may take memory, so that it is refused above `maxmemory`.
    pub fn needs_memory(&self) -> bool {
        matches!(&self.phase, Phase::Queuing { plan, .. } if plan.needs_memory)
    }

    /// What the disks must allow for EXEC to run.
    pub fn needs_disk(&self) -> DiskNeed {
        match &self.phase {
            Phase::Queuing { plan, .. } if plan.needs_memory => DiskNeed::Growth,
            Phase::Queuing { plan, .. } if plan.has_more_than_deletions => DiskNeed::Writes,
            _ => DiskNeed::None,
        }
    }

    /// MULTI.
    pub fn begin(&mut self, db: DbIndex) -> Reply {
        if self.is_open() {
            return Reply::error("ERR MULTI calls can not be nested");
        }
        self.phase = Phase::Queuing { plan: Plan::default(), bytes: 0, db };
        Reply::Ok
    }

    /// Queues a command. Its bytes are copied: the transaction may live much longer than the read buffer.
    pub fn queue(&mut self, row: &'static CommandSpec, request: &Request) -> Reply {
        let Phase::Queuing { plan, bytes, db } = &mut self.phase else { return Reply::simple("QUEUED") };
        *bytes += request.raw().len() + QUEUED_OVERHEAD_BYTES + request.len() * size_of::<Bytes>();
        if *bytes > BYTES_MAX {
            self.phase = Phase::Broken;
            return Reply::error(format!("ERR a transaction may take {} MiB at most", BYTES_MAX >> 20));
        }
        let is_name = row.flags.has(Flags::NAMES_TRANSACTION);
        if is_name && !plan.steps.is_empty() {
            self.break_up();
            return Reply::error("ERR ONCE must be the first command after MULTI");
        }
        let kept = Bytes::copy_from_slice(request.raw());
        if let Execute::Session(_) = row.execute {
            let words: Vec<&[u8]> = request.args().collect();
            plan.steps.push(Step::Session(Request::from_args(&words)));
        } else {
            let args = (0..request.len()).map(|at| slice_of(&kept, request, at)).collect();
            plan.commands.push(Queued { db: *db, args });
            plan.steps.push(Step::Logged);
            plan.is_atomic |= makes_atomic(row);
            plan.names_client |= row.flags.has(Flags::ORIGIN);
            // What it keeps is written, too.
            plan.has_writes |= row.is_write() || is_name;
            plan.is_named |= is_name;
            plan.hands_out |=
                row.flags.has(Flags::HANDS_OUT_LOCKS) || row.flags.has(Flags::HANDS_OUT_MESSAGES);
            plan.needs_memory |= row.flags.has(Flags::DENYOOM);
            plan.has_more_than_deletions |= row.is_write() && !row.is_deletion();
            plan.is_heavy |= row.flags.has_any(HEAVY);
        }
        Reply::simple("QUEUED")
    }

    /// A SELECT was queued: later commands run in that database.
    pub fn select(&mut self, to: DbIndex) {
        if let Phase::Queuing { db, .. } = &mut self.phase {
            *db = to;
        }
    }

    /// A command was refused: EXEC will run nothing.
    pub fn break_up(&mut self) {
        if self.is_open() {
            self.phase = Phase::Broken;
        }
    }

    /// EXEC: takes what is to run; the connection stands outside again, and nothing is watched any more.
    pub fn exec(&mut self) -> Exec {
        if !self.is_open() {
            return Exec::WithoutMulti;
        }
        let watched = self.watched.take();
        match std::mem::take(&mut self.phase) {
            Phase::Outside => Exec::WithoutMulti,
            Phase::Broken => Exec::Aborted,
            Phase::Queuing { plan, .. } => Exec::Run(Plan { watched, ..plan }),
        }
    }

    /// DISCARD.
    pub fn discard(&mut self) -> Reply {
        if !self.is_open() {
            return Reply::error("ERR DISCARD without MULTI");
        }
        self.reset();
        Reply::Ok
    }

    /// WATCH of one key, with the index of its last change; `None` when it is absent. A key that is watched already
    /// keeps its first index: a change in between must be noticed. The error, when there is no room for it, is the
    /// reply; the keys before it stay watched.
    pub fn watch(&mut self, db: DbIndex, key: &[u8], changed: Option<LogIndex>) -> Result<(), Reply> {
        if self.watched.add(db, key, changed) {
            return Ok(());
        }
        let mib = BYTES_MAX >> 20;
        Err(Reply::error(format!("ERR a connection may watch {WATCHED_MAX} keys of {mib} MiB at most")))
    }

    /// UNWATCH.
    pub fn unwatch(&mut self) {
        self.watched.take();
    }

    /// Back to the start: RESET, and the end of the connection.
    pub fn reset(&mut self) {
        self.phase = Phase::Outside;
        self.watched.take();
    }
}

/// COMMANDS.md 2.1: a transaction with one of these is all or nothing.
fn makes_atomic(row: &CommandSpec) -> bool {
    let is_guard = row.name == "fence" || row.flags.has(Flags::NAMES_TRANSACTION);
    is_guard || (matches!(row.group, Group::Locks | Group::Queues) && row.is_write())
}

/// An error of the log that counts commands as the client sent them: it sent those of the connection, too.
pub fn told_as_sent(steps: &[Step], text: Cow<'static, str>) -> Cow<'static, str> {
    let Some((count, rest)) = text.strip_prefix("EXECABORT cmd=").and_then(|rest| rest.split_once(' '))
    else {
        return text;
    };
    let logged = steps.iter().enumerate().filter(|(_, step)| matches!(step, Step::Logged));
    let sent =
        count.parse().ok().and_then(|count: usize| logged.map(|(at, _)| at).nth(count.checked_sub(1)?));
    match sent {
        Some(at) => Cow::Owned(format!("EXECABORT cmd={} {rest}", at + 1)),
        None => text,
    }
}

/// The argument's bytes in the copy that was made of the whole request.
fn slice_of(kept: &Bytes, request: &Request, at: usize) -> Bytes {
    let arg = request.arg(at);
    let start = arg.as_ptr() as usize - request.raw().as_ptr() as usize;
    kept.slice(start..start + arg.len())
}

/// Puts EXEC's reply together: what the log answered, in the places of the logged commands, and what the connection
/// answers to its own, in order. Once they take more together than the bounds allow, the connection's own commands are
/// not executed any more, and an error says so in their places.
pub fn merge(
    steps: Vec<Step>,
    logged: Vec<Reply>,
    bounds: Bounds,
    mut answer: impl FnMut(&Request) -> Reply,
) -> Vec<Reply> {
    let mut bytes: usize = logged.iter().map(Reply::size_hint).sum();
    let mut logged = logged.into_iter();
    let missing = || Reply::error("ERR a reply of the transaction is missing");
    let reply = |step: Step| match step {
        Step::Logged => logged.next().unwrap_or_else(missing),
        Step::Session(_) if bytes > bounds.reply => too_large(bytes, bounds.reply),
        Step::Session(request) => {
            let reply = answer(&request);
            bytes = bytes.saturating_add(reply.size_hint());
            let left = bounds.reply.saturating_sub(bytes - reply.size_hint());
            bounded(reply, Bounds { reply: left, ..bounds })
        }
    };
    steps.into_iter().map(reply).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::table;

    fn row(name: &str) -> &'static CommandSpec {
        table::find(name.as_bytes()).unwrap()
    }

    fn queue(transaction: &mut Transaction, words: &[&str]) -> Reply {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        transaction.queue(row(std::str::from_utf8(words[0]).unwrap()), &Request::from_args(&words))
    }

    fn is_error(reply: &Reply, text: &str) -> bool {
        matches!(reply, Reply::Error(found) if found == text)
    }

    #[test]
    fn multi_queues_until_exec() {
        let mut transaction = Transaction::default();
        assert_eq!(transaction.queued(), None);
        assert_eq!(transaction.begin(0), Reply::Ok);
        assert!(is_error(&transaction.begin(0), "ERR MULTI calls can not be nested"));
        assert_eq!(queue(&mut transaction, &["set", "k", "v"]), Reply::simple("QUEUED"));
        assert!(transaction.has_writes());
        transaction.select(3);
        queue(&mut transaction, &["get", "k"]);
        queue(&mut transaction, &["ping"]);
        assert_eq!(transaction.queued(), Some(3));
        let Exec::Run(plan) = transaction.exec() else { panic!("runs") };
        let commands: Vec<(DbIndex, &[u8])> =
            plan.commands.iter().map(|c| (c.db, c.args[1].as_ref())).collect();
        assert_eq!(commands, [(0, b"k".as_slice()), (3, b"k")]);
        assert!(matches!(plan.steps[2], Step::Session(_)));
        assert!(!transaction.is_open());
    }

    #[test]
    fn a_refused_command_aborts_exec_once() {
        let mut transaction = Transaction::default();
        transaction.begin(0);
        transaction.break_up();
        assert_eq!(queue(&mut transaction, &["ping"]), Reply::simple("QUEUED"));
        assert!(matches!(transaction.exec(), Exec::Aborted));
        assert!(matches!(transaction.exec(), Exec::WithoutMulti));
    }

    #[test]
    fn exec_and_discard_end_what_was_watched() {
        let mut transaction = Transaction::default();
        assert!(is_error(&transaction.discard(), "ERR DISCARD without MULTI"));
        transaction.watch(0, b"k", Some(LogIndex(7))).unwrap();
        transaction.watch(0, b"k", Some(LogIndex(9))).unwrap();
        transaction.watch(1, b"k", None).unwrap();
        assert_eq!(transaction.watched(), 2);
        transaction.begin(0);
        let Exec::Run(plan) = transaction.exec() else { panic!("runs") };
        assert_eq!(plan.watched[0].changed, Some(LogIndex(7)));
        assert_eq!(transaction.watched(), 0);
        transaction.watch(0, b"k", None).unwrap();
        transaction.begin(0);
        assert_eq!(transaction.discard(), Reply::Ok);
        assert_eq!(transaction.watched(), 0);
    }

    #[test]
    fn an_exec_outside_multi_keeps_what_is_watched() {
        let mut transaction = Transaction::default();
        transaction.watch(0, b"k", None).unwrap();
        assert!(matches!(transaction.exec(), Exec::WithoutMulti));
        assert_eq!(transaction.watched(), 1);
    }

    #[test]
    fn many_keys_are_watched_once_each_up_to_a_bound() {
        let mut transaction = Transaction::default();
        for round in 0..2 {
            for n in 0..WATCHED_MAX {
                transaction.watch(0, &n.to_ne_bytes(), Some(LogIndex(round))).unwrap();
            }
        }
        assert_eq!(transaction.watched(), WATCHED_MAX);
        let Err(Reply::Error(text)) = transaction.watch(1, b"k", None) else { panic!("refused") };
        assert_eq!(text, "ERR a connection may watch 1000000 keys of 64 MiB at most");
        assert!(transaction.bytes() > 40 << 20);
        transaction.unwatch();
        assert_eq!((transaction.watched(), transaction.bytes()), (0, 0));
        transaction.watch(1, b"k", None).unwrap();
    }

    #[test]
    fn the_bytes_of_watched_keys_are_bounded() {
        let mut transaction = Transaction::default();
        let mut key = vec![b'k'; 1 << 20];
        for n in 0..64 {
            key[0] = n;
            transaction.watch(0, &key, None).unwrap();
        }
        assert!(transaction.watch(0, b"k", None).is_err());
        transaction.watch(0, &key, None).unwrap();
    }

    #[test]
    fn small_commands_count_for_the_memory_they_take() {
        let mut transaction = Transaction::default();
        transaction.begin(0);
        let queued =
            (0..1_000_000).take_while(|_| queue(&mut transaction, &["ping"]) == Reply::simple("QUEUED"));
        let queued = queued.count();
        assert!((200_000..500_000).contains(&queued), "{queued}");
        assert!(matches!(transaction.exec(), Exec::Aborted));
    }

    #[test]
    fn what_exec_needs_is_known_before_it_runs() {
        let mut transaction = Transaction::default();
        transaction.begin(0);
        queue(&mut transaction, &["del", "k"]);
        assert!(!transaction.needs_memory() && transaction.bytes() > 150);
        queue(&mut transaction, &["set", "k", "v"]);
        assert!(transaction.needs_memory());
        let Exec::Run(plan) = transaction.exec() else { panic!("runs") };
        assert!(plan.is_heavy && plan.has_writes);
        transaction.begin(0);
        queue(&mut transaction, &["get", "k"]);
        let Exec::Run(plan) = transaction.exec() else { panic!("runs") };
        assert!(plan.is_heavy && !plan.has_writes && !plan.needs_memory);
    }

    #[test]
    fn replies_stand_where_their_commands_stood() {
        let ping = Request::from_args(&[b"ping"]);
        let steps = vec![Step::Logged, Step::Session(ping), Step::Logged];
        let logged = vec![Reply::Integer(1), Reply::Integer(2)];
        let merged = merge(steps, logged, Bounds::DEFAULT, |_| Reply::simple("PONG"));
        assert_eq!(merged, [Reply::Integer(1), Reply::simple("PONG"), Reply::Integer(2)]);
    }

    #[test]
    fn what_a_connection_answers_in_exec_is_bounded_as_a_whole() {
        let steps = (0..9).map(|_| Step::Session(Request::from_args(&[b"ping"]))).collect();
        let bounds = Bounds { reply: 10_000, ..Bounds::DEFAULT };
        let mut executed = 0;
        let merged = merge(steps, Vec::new(), bounds, |_| {
            executed += 1;
            Reply::bulk([b'x'; 4_000])
        });
        let are_errors: Vec<bool> = merged.iter().map(Reply::is_error).collect();
        assert_eq!(are_errors, [false, false, true, true, true, true, true, true, true]);
        assert_eq!(executed, 3, "the rest was not even built");
    }
}
