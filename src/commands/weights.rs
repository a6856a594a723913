//! What commands weigh beyond their words: values that they answer with, copies that they make, and what they walk over.
//!
//! Most commands cost as much as they are long. A few cost as much as what is stored, and a request of a few bytes may
//! name them a thousand times; their rows carry [`Flags::VALUES`], [`Flags::COPIES`] or [`Flags::WALKS`]. What each of
//! them takes is known here before it runs, so that a transaction can be refused before it has done anything, and so
//! that nothing is built that nobody can be sent.

use std::collections::BTreeMap;

use crate::commands::error::CommandError;
use crate::commands::spec::Args;
use crate::commands::spec::CommandResult;
use crate::commands::spec::CommandSpec;
use crate::commands::spec::Flags;
use crate::commands::spec::ReadContext;
use crate::commands::table;
use crate::resp::Reply;
use crate::resp::arguments::eq_ignore_case;
use crate::resp::arguments::parse_i64;
use crate::state::DbIndex;
use crate::state::Object;
use crate::state::Row;
use crate::state::State;
use crate::state::locks;
use crate::state::locks::OwnerName;
use crate::state::queues::CHANGED_AT_ONCE;
use crate::state::queues::Queue;
use crate::state::queues::StateName;
use crate::types::bounds::Bounds;

/// The flags of rows that weigh something.
pub const HEAVY: Flags = Flags::VALUES.and(Flags::COPIES).and(Flags::WALKS);

/// What a value takes in a reply besides its bytes: its length, and two ends of line.
pub const HEADER_BYTES: usize = 16;
/// The longest integer, and more than INCRBYFLOAT ever makes, in bytes.
const INTEGER_BYTES_MAX: usize = 20;
const FLOAT_BYTES_MAX: usize = 6 << 10;
/// A walk over an empty database looks at its parts: as much work as looking at so many keys.
const WALK_AT_LEAST: usize = 256;
/// Keys that RANDOMKEY looks at, nearly at most.
const RANDOM_WALK_MAX: usize = 8_192;
/// Messages that one QPEEK looks at, and events that one QTRACE tells, at most.
const PEEK_MAX: usize = 10_000;
const TRACE_MAX: usize = 1_000;

/// What a command takes beyond its words, at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weight {
    /// Bytes of stored values in its reply. Replies that are built piece by piece keep to the bounds by themselves and
    /// are not counted here.
    pub reply: usize,
    /// Bytes of values that it makes or moves.
    pub copied: usize,
    /// Keys, locks and messages that it looks at and does not name.
    pub walked: usize,
}

/// How many commands like this one may stand in one batch of the log: their replies come all at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// As many as there are.
    Any,
    /// A few: it may copy the longest value, or change what it does not name.
    Few,
    /// As many as the messages allow that it takes.
    Messages,
    /// None beside it: it may answer with the longest value.
    Alone,
}

/// How many commands like this one may stand in one batch.
#[inline]
pub fn sharing<'a>(row: &CommandSpec, words: impl ExactSizeIterator<Item = &'a [u8]>) -> Sharing {
    if !row.flags.has_any(HEAVY) { Sharing::Any } else { sharing_of_heavy(row, words) }
}

fn sharing_of_heavy<'a>(row: &CommandSpec, words: impl ExactSizeIterator<Item = &'a [u8]>) -> Sharing {
    match row.name {
        // What they name is as long as they are.
        "lockextend" if words.len() > 3 => Sharing::Any,
        "qdel" | "qredrive" => {
            if has_ids(words) {
                Sharing::Any
            } else {
                Sharing::Few
            }
        }
        _ if !row.flags.has(Flags::VALUES) => Sharing::Few,
        "set" if words.len() == 3 => Sharing::Any,
        "set" => {
            let gets = words.skip(3).any(|word| eq_ignore_case(word, "GET"));
            if gets { Sharing::Alone } else { Sharing::Any }
        }
        "qpop" => {
            let has_count = words.skip(1).any(|word| eq_ignore_case(word, "COUNT"));
            if has_count { Sharing::Alone } else { Sharing::Messages }
        }
        _ => Sharing::Alone,
    }
}

/// Whether a command of a queue names messages, behind the queue's own name.
fn has_ids<'a>(words: impl Iterator<Item = &'a [u8]>) -> bool {
    words.skip(2).any(|word| eq_ignore_case(word, "IDS"))
}

/// Refuses a reply of so many bytes, or more, that the bounds do not allow.
#[inline]
pub fn fits(bytes: usize, bounds: Bounds) -> Result<(), CommandError> {
    if bytes <= bounds.reply {
        return Ok(());
    }
    Err(CommandError::ReplyTooLarge { bytes, max: bounds.reply })
}

/// Runs a read; a reply that the bounds do not allow is an error.
#[inline]
pub fn run_read(
    row: &CommandSpec,
    read: fn(&ReadContext<'_>, Args<'_>) -> CommandResult,
    context: &ReadContext<'_>,
    words: Args<'_>,
) -> CommandResult {
    let reply = read(context, words)?;
    // Fast ones answer with a few bytes, or look at the bounds themselves.
    if !row.flags.has(Flags::FAST) {
        fits(reply.size_hint(), context.bounds)?;
    }
    Ok(reply)
}

/// An array of bulk strings that grows as far as the bounds allow.
pub struct Bulks {
    items: Vec<Reply>,
    bytes: usize,
    bounds: Bounds,
}

impl Bulks {
    /// An empty one.
    #[must_use]
    pub fn within(bounds: Bounds) -> Bulks {
        Bulks { items: Vec::new(), bytes: 2 * HEADER_BYTES, bounds }
    }

    /// Adds a copy of this string.
    pub fn push(&mut self, value: &[u8]) -> Result<(), CommandError> {
        self.push_reply(value.len(), || Reply::bulk(value))
    }

    /// Adds a reply whose strings take so many bytes.
    pub fn push_reply(&mut self, bytes: usize, reply: impl FnOnce() -> Reply) -> Result<(), CommandError> {
        self.bytes = self.bytes.saturating_add(bytes + HEADER_BYTES);
        fits(self.bytes, self.bounds)?;
        self.items.push(reply());
        Ok(())
    }

    /// The array.
    #[must_use]
    pub fn into_reply(self) -> Reply {
        Reply::Array(self.items)
    }
}

fn string_bytes(state: &State, db: DbIndex, key: &[u8]) -> usize {
    state.row(db, key).and_then(Row::as_string).map_or(0, <[u8]>::len)
}

/// Weighs commands that run one after the other: of strings that those before them may change, the most they may be.
pub struct Scales<'a> {
    state: &'a State,
    user: &'a [u8],
    changed: BTreeMap<(DbIndex, &'a [u8]), usize>,
}

impl<'a> Scales<'a> {
    /// For commands of this user that run on this state.
    #[must_use]
    pub fn new(state: &'a State, user: &'a [u8]) -> Scales<'a> {
        Scales { state, user, changed: BTreeMap::new() }
    }

    fn of(&self, db: DbIndex, key: &'a [u8]) -> usize {
        self.changed.get(&(db, key)).copied().unwrap_or_else(|| string_bytes(self.state, db, key))
    }

    /// The string may have this length now.
    fn grow(&mut self, db: DbIndex, key: &'a [u8], length: usize) {
        let length = length.max(self.of(db, key));
        self.changed.insert((db, key), length);
    }

    /// What the next command takes at most; notes what it changes. A command that fails changes less and takes less.
    pub fn weigh(&mut self, db: DbIndex, words: &[&'a [u8]]) -> Weight {
        let Some(row) = words.first().and_then(|name| table::find(name)) else { return Weight::default() };
        let word = |at: usize| words.get(at).copied().unwrap_or_default();
        let key = word(1);
        let mut weight = Weight::default();
        match row.name {
            "get" | "getex" | "getdel" => weight.reply = HEADER_BYTES + self.of(db, key),
            "mget" => weight.reply = words[1..].iter().map(|key| HEADER_BYTES + self.of(db, key)).sum(),
            "getrange" | "substr" => {
                weight.reply = HEADER_BYTES + range_bytes(self.of(db, key), word(2), word(3));
            }
            "getset" => {
                weight.reply = HEADER_BYTES + self.of(db, key);
                self.changed.insert((db, key), word(2).len());
            }
            "set" if words.len() == 3 => {
                self.changed.insert((db, key), word(2).len());
            }
            "set" => {
                if words.iter().skip(3).any(|word| eq_ignore_case(word, "GET")) {
                    weight.reply = HEADER_BYTES + self.of(db, key);
                }
                self.grow(db, key, word(2).len());
            }
            name => {
                weight.copied = self.change(name, db, words);
                weight.walked = self.walked(row, db, words);
            }
        }
        weight
    }

    /// The commands that answer with no value; gives the bytes that they make or move.
    fn change(&mut self, name: &str, db: DbIndex, words: &[&'a [u8]]) -> usize {
        let word = |at: usize| words.get(at).copied().unwrap_or_default();
        let key = word(1);
        match name {
            "setnx" => self.grow(db, key, word(2).len()),
            "setex" | "psetex" => self.grow(db, key, word(3).len()),
            "append" => self.grow(db, key, self.of(db, key).saturating_add(word(2).len())),
            "setrange" => {
                let offset = parse_i64(word(2)).and_then(|offset| usize::try_from(offset).ok()).unwrap_or(0);
                let length = offset.saturating_add(word(3).len());
                // Without a value it changes nothing, and beyond the longest string neither.
                if !word(3).is_empty() && length <= crate::types::bounds::STRING_BYTES_MAX {
                    let made = length.saturating_sub(self.of(db, key));
                    self.grow(db, key, length);
                    return made;
                }
            }
            "mset" | "msetnx" => {
                words[1..].chunks_exact(2).for_each(|pair| self.grow(db, pair[0], pair[1].len()));
            }
            "rename" | "renamenx" => {
                let length = self.of(db, key);
                self.grow(db, word(2), length);
                return length;
            }
            "copy" => {
                let is_db = |pair: &&[&[u8]]| eq_ignore_case(pair[0], "DB");
                let to = words.windows(2).skip(3).find(is_db).map_or(Some(db), |pair| parse_db(pair[1]));
                let length = self.of(db, key);
                if let Some(to) = to {
                    self.grow(to, word(2), length);
                }
                return length;
            }
            "move" => {
                let length = self.of(db, key);
                if let Some(to) = parse_db(word(2)) {
                    self.grow(to, key, length);
                }
                return length;
            }
            "incr" | "decr" | "incrby" | "decrby" => self.grow(db, key, INTEGER_BYTES_MAX),
            "incrbyfloat" => self.grow(db, key, FLOAT_BYTES_MAX),
            _ => {}
        }
        0
    }

    /// What the commands look at that walk.
    fn walked(&self, row: &'static CommandSpec, db: DbIndex, words: &[&[u8]]) -> usize {
        if !table::leaf(row, words).flags.has(Flags::WALKS) {
            return 0;
        }
        let keys = self.state.database(db).len();
        let object = |at: usize| words.get(at).and_then(|key| self.state.row(db, key)).map(Row::object);
        let of_queue = |count: fn(&Queue) -> usize| match object(1) {
            Some(Object::Queue(queue)) => count(queue),
            _ => 0,
        };
        let locks = self.state.locks_held().saturating_add(self.state.waits().len());
        let walked = match row.name {
            "scan" => keys.min(count_in(words.get(2..).unwrap_or_default())),
            "randomkey" => keys.min(RANDOM_WALK_MAX),
            "lockextend" if words.len() > 3 => return 0,
            "lockextend" => self.of_owner(words.get(1)),
            "locks" => match (table::leaf(row, words).name, object(2)) {
                ("list", _) => keys.min(count_in(words.get(3..).unwrap_or_default())),
                ("release", _) => self.of_owner(words.get(2)),
                ("info" | "kill", Some(Object::Lock(lock))) => lock.holds().len() + lock.waiters().count(),
                ("info" | "kill", _) => 0,
                _ => locks,
            },
            "qpeek" => of_queue(Queue::len).min(PEEK_MAX),
            "qinfo" if words.len() == 2 => return 0,
            "qinfo" => of_queue(|queue| queue.count(StateName::Leased)),
            "qtrace" => TRACE_MAX,
            // Those that it names are in the request.
            "qdel" | "qredrive" if has_ids(words.iter().copied()) => return 0,
            "qdel" | "qredrive" => of_queue(Queue::len).min(CHANGED_AT_ONCE),
            _ => keys,
        };
        walked.saturating_add(WALK_AT_LEAST)
    }

    /// Locks and waits of an owner that one command ends or extends.
    fn of_owner(&self, owner: Option<&&[u8]>) -> usize {
        let owner = OwnerName::new(self.user, owner.copied().unwrap_or_default());
        self.state.locks_of(&owner).min(locks::CHANGED_AT_ONCE)
    }
}

/// The number behind COUNT among the options of SCAN and its relatives; a part more may be looked at.
fn count_in(options: &[&[u8]]) -> usize {
    let count = options.windows(2).rev().find(|pair| eq_ignore_case(pair[0], "COUNT"));
    let count = count.and_then(|pair| parse_i64(pair[1])).and_then(|count| usize::try_from(count).ok());
    count.unwrap_or(10).saturating_mul(2)
}

/// A database's number, if it can be one of a state's.
fn parse_db(word: &[u8]) -> Option<DbIndex> {
    parse_i64(word).and_then(|number| DbIndex::try_from(number).ok())
}

/// Bytes between two positions, both included, of a string that is at most `length` bytes long; negative ones count
/// from its end.
fn range_bytes(length: usize, start: &[u8], end: &[u8]) -> usize {
    let (Some(start), Some(end)) = (parse_i64(start), parse_i64(end)) else { return 0 };
    let count = i64::try_from(length).unwrap_or(i64::MAX);
    let between = |start: i64, end: i64| end.saturating_sub(start).saturating_add(1);
    let bytes = match (start < 0, end < 0) {
        (false, false) => between(start, end.min(count - 1)),
        (false, true) => between(start, count.saturating_add(end)),
        (true, true) => between(start, end),
        (true, false) => start.saturating_neg().min(end.saturating_add(1)),
    };
    usize::try_from(bytes).unwrap_or(0).min(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    static BIG: [u8; 1_000_000] = [b'y'; 1_000_000];

    fn state() -> State {
        let mut state = State::new(16);
        state.put_string(0, b"big", &[b'x'; 1_000_000], None);
        state.put_string(0, b"small", b"x", None);
        state
    }

    fn words(command: &str) -> Vec<&[u8]> {
        let word = |word| if word == "BIG" { &BIG[..] } else { str::as_bytes(word) };
        command.split_whitespace().map(word).collect()
    }

    /// What the commands weigh together, bytes in millions, rounded; they are parted by `;`, and `BIG` is a value of a
    /// million bytes.
    fn weight(commands: &str) -> Weight {
        let state = state();
        let mut scales = Scales::new(&state, b"default");
        let mut sum = Weight::default();
        for command in commands.split(';') {
            let weight = scales.weigh(0, &words(command));
            sum.reply += weight.reply;
            sum.copied += weight.copied;
            sum.walked += weight.walked;
        }
        let millions = |bytes: usize| (bytes + 500_000) / 1_000_000;
        Weight { reply: millions(sum.reply), copied: millions(sum.copied), ..sum }
    }

    #[test]
    fn values_of_a_transaction_are_added_up() {
        for (commands, expected) in [
            ("GET big", 1),
            ("get small; GET none; DEL big; STRLEN big", 0),
            ("GET big; GETEX big PERSIST; GETDEL big; MGET big small big", 5),
            ("GETRANGE big 0 499999; GETRANGE big 500000 10000000; SUBSTR big 0 -1", 2),
            ("GETRANGE big -500000 -1; GETRANGE big 0 -500001; GETRANGE big -1000000 499999", 2),
            ("GETRANGE big -9 -1; GETRANGE big -3 2000000; GETRANGE big 999999 -1; GETRANGE big -1 -9", 0),
            ("GETRANGE big -9223372036854775808 9223372036854775807", 1),
            ("GETRANGE big 0 x; GETRANGE big 5 3; GETRANGE big 9000000 9000001", 0),
            ("SET small BIG GET; SET small x", 0),
            ("SET big x GET; GETSET big x", 2),
            ("GETSET big x; GET big", 1),
        ] {
            assert_eq!(weight(commands).reply, expected, "{commands}");
        }
    }

    #[test]
    fn a_value_that_the_transaction_itself_makes_counts() {
        for (commands, replied, copied) in [
            ("SET k BIG; GET k; GET k", 2, 0),
            ("SET big x; GET big", 0, 0),
            ("SETNX k BIG; GET k", 1, 0),
            ("SETEX k 10 BIG; GET k", 1, 0),
            ("MSET a 1 k BIG; MGET a k", 1, 0),
            ("APPEND big BIG; GET big", 2, 0),
            ("SETRANGE k 3000000 x; GET k", 3, 3),
            ("SETRANGE k 67108864 ''; SETRANGE big 5 x; SETRANGE big 0 BIG", 0, 0),
            ("RENAME big k; GET k", 1, 1),
            ("RENAMENX small k; RENAMENX none k", 0, 0),
            ("COPY big k; GET k", 1, 1),
            ("COPY big k; COPY k l; COPY l m DB 3", 0, 3),
            ("MOVE big 1; GET none", 0, 1),
            ("INCR k; GET k", 0, 0),
        ] {
            let found = weight(&commands.replace("''", ""));
            assert_eq!((found.reply, found.copied), (replied, copied), "{commands}");
        }
        let state = state();
        let mut scales = Scales::new(&state, b"default");
        scales.weigh(0, &words("COPY big k REPLACE DB 3"));
        assert!(scales.weigh(3, &words("GET k")).reply > 1_000_000, "in the other database");
    }

    #[test]
    fn walks_are_counted_by_what_there_is_to_look_at() {
        let mut state = state();
        for n in 0..1_000 {
            state.put_string(1, format!("k{n}").as_bytes(), b"", None);
        }
        let walked = |command: &str| Scales::new(&state, b"default").weigh(1, &words(command)).walked;
        for command in ["GET k1", "DBSIZE", "LOCKEXTEND me 5 KEYS 1 k1", "QINFO k1", "QDEL k1 IDS 1 1-1"] {
            assert_eq!(walked(command), 0, "{command}");
        }
        for (command, expected) in [
            ("KEYS none", 1_000),
            ("SCAN 0", 20),
            ("SCAN 0 MATCH COUNT COUNT 100", 200),
            ("SCAN 0 COUNT 9223372036854775807", 1_000),
            ("SCAN", 20),
            ("RANDOMKEY", 1_000),
            ("LOCKS LIST 0 COUNT 400", 800),
            ("LOCKS RELEASE me", 0),
            ("LOCKEXTEND me 1000", 0),
            ("LOCKS KILL k1", 0),
            ("LOCKS INFO k1", 0),
            ("LOCKS GRAPH", 0),
            ("QPEEK k1", 0),
            ("QDEL k1 ALL", 0),
        ] {
            assert_eq!(walked(command), expected + WALK_AT_LEAST, "{command}");
        }
    }

    #[test]
    fn what_may_answer_with_a_value_stands_alone_in_its_batch() {
        let sharing = |command: &str| {
            let words = words(command);
            sharing(table::find(words[0]).unwrap(), words.iter().copied())
        };
        for command in ["GETEX k", "getdel k", "getset k v", "SET k v EX 5 get", "QPOP COUNT 2 FROM q"] {
            assert_eq!(sharing(command), Sharing::Alone, "{command}");
        }
        for command in ["SET k get", "SET k v NX", "incr k", "QACK q 1-1:1", "APPEND k v"] {
            assert_eq!(sharing(command), Sharing::Any, "{command}");
        }
        assert_eq!(sharing("QPOP FROM q"), Sharing::Messages);
        for command in
            ["COPY a b", "RENAME a b", "SETRANGE a 9 x", "QDEL q ALL", "QDEL ids ALL", "LOCKEXTEND me 9"]
        {
            assert_eq!(sharing(command), Sharing::Few, "{command}");
        }
        for command in ["QDEL q IDS 1 1-1", "QREDRIVE q IDS 1 1-1", "LOCKEXTEND me 1000 KEYS 1 k"] {
            assert_eq!(sharing(command), Sharing::Any, "{command}");
        }
    }

    #[test]
    fn an_array_grows_as_far_as_the_bounds_allow() {
        let mut array = Bulks::within(Bounds { reply: 100, ..Bounds::DEFAULT });
        assert!(array.push(&[b'x'; 20]).is_ok() && array.push(b"").is_ok());
        let refused = array.push(b"y");
        assert_eq!(refused, Err(CommandError::ReplyTooLarge { bytes: 101, max: 100 }));
        let reply = array.into_reply();
        assert!(matches!(&reply, Reply::Array(items) if items.len() == 2) && reply.size_hint() <= 100);
    }
}
