//! How large replies may become: a short request may ask for a thousand copies of a long value.
//!
//! What a connection sends at once is bounded by `client-output-buffer-limit`; a client above it is closed. That
//! comes too late for a reply that takes the memory while it is made, so the commands that return stored values are
//! looked at before: one that would pass the bound is refused.

use std::collections::HashMap;

use crate::commands::spec::CommandSpec;
use crate::commands::strings::MAX_STRING_BYTES;
use crate::commands::table;
use crate::config::Config;
use crate::machine::entry::Queued;
use crate::resp::Request;
use crate::resp::arguments::eq_ignore_case;
use crate::resp::arguments::parse_i64;
use crate::state::DbIndex;
use crate::state::Row;
use crate::state::State;

/// The bound where `client-output-buffer-limit` has none, in bytes.
const REPLY_BYTES_MAX: usize = 512 << 20;
/// What a value takes in a reply besides its bytes: its length, and two ends of line.
const HEADER_BYTES: usize = 16;
/// The longest integer, and more than INCRBYFLOAT ever makes, in bytes.
const INTEGER_BYTES_MAX: usize = 20;
const FLOAT_BYTES_MAX: usize = 6 << 10;

/// The most bytes that the values of one reply may take together.
pub fn bytes_max(config: &Config) -> usize {
    match config.output_limits.normal.hard {
        0 => REPLY_BYTES_MAX,
        hard => hard,
    }
}

/// True for a write that answers with the value it found.
#[inline]
pub fn is_write_with_value(row: &CommandSpec, request: &Request) -> bool {
    match row.name {
        "set" => request.len() > 3 && request.args().skip(3).any(|word| eq_ignore_case(word, "GET")),
        "getex" | "getset" | "getdel" => true,
        "qpop" => request.args().skip(1).any(|word| eq_ignore_case(word, "COUNT")),
        _ => false,
    }
}

/// True for a command that answers with stored values.
pub fn returns_values(row: &CommandSpec, request: &Request) -> bool {
    matches!(row.name, "get" | "mget" | "getrange" | "substr") || is_write_with_value(row, request)
}

/// Bytes that the reply to MGET takes. The name is the first word.
pub fn mget_bytes(state: &State, db: DbIndex, words: &[&[u8]]) -> usize {
    words.iter().skip(1).map(|key| HEADER_BYTES + string_bytes(state, db, key)).sum()
}

/// Bytes that the values in EXEC's reply take, at most: the commands run on the state as it stands, and on what the
/// commands before them make of it.
pub fn transaction_bytes(state: &State, commands: &[Queued]) -> usize {
    let mut lengths = Lengths { state, changed: HashMap::new() };
    commands.iter().fold(0, |sum, command| sum.saturating_add(lengths.run(command)))
}

fn string_bytes(state: &State, db: DbIndex, key: &[u8]) -> usize {
    state.row(db, key).and_then(Row::as_string).map_or(0, <[u8]>::len)
}

/// The lengths of strings in a transaction: of those that it changes, the most they may be.
struct Lengths<'a> {
    state: &'a State,
    changed: HashMap<(DbIndex, &'a [u8]), usize>,
}

impl<'a> Lengths<'a> {
    fn of(&self, db: DbIndex, key: &'a [u8]) -> usize {
        self.changed.get(&(db, key)).copied().unwrap_or_else(|| string_bytes(self.state, db, key))
    }

    /// The string may have this length now.
    fn grow(&mut self, db: DbIndex, key: &'a [u8], length: usize) {
        let length = length.max(self.of(db, key));
        self.changed.insert((db, key), length);
    }

    /// Notes what the command changes, and gives the bytes of values in its reply. A command that fails changes
    /// less and returns less.
    fn run(&mut self, command: &'a Queued) -> usize {
        let (db, words) = (command.db, &command.args);
        let (Some(row), Some(key)) = (words.first().and_then(|name| table::find(name)), words.get(1)) else {
            return 0;
        };
        let word = |at: usize| words.get(at).map_or(&[][..], |word| word.as_ref());
        match row.name {
            "get" | "getex" | "getdel" => HEADER_BYTES + self.of(db, key),
            "mget" => words[1..].iter().map(|key| HEADER_BYTES + self.of(db, key)).sum(),
            "getrange" | "substr" => HEADER_BYTES + range_bytes(self.of(db, key), word(2), word(3)),
            "getset" => {
                let old = self.of(db, key);
                self.changed.insert((db, key), word(2).len());
                HEADER_BYTES + old
            }
            "set" if words.len() == 3 => {
                self.changed.insert((db, key), word(2).len());
                0
            }
            "set" => {
                let old = self.of(db, key);
                self.grow(db, key, word(2).len());
                let gets = words[3..].iter().any(|word| eq_ignore_case(word, "GET"));
                if gets { HEADER_BYTES + old } else { 0 }
            }
            _ => {
                self.change(row.name, command, key);
                0
            }
        }
    }

    /// The commands that answer with no value.
    fn change(&mut self, name: &str, command: &'a Queued, key: &'a [u8]) {
        let (db, words) = (command.db, &command.args);
        let word = |at: usize| words.get(at).map_or(&[][..], |word| word.as_ref());
        match name {
            "setnx" => self.grow(db, key, word(2).len()),
            "setex" | "psetex" => self.grow(db, key, word(3).len()),
            "append" => self.grow(db, key, self.of(db, key).saturating_add(word(2).len())),
            "setrange" => {
                let offset = parse_i64(word(2)).and_then(|offset| usize::try_from(offset).ok()).unwrap_or(0);
                let length = offset.saturating_add(word(3).len());
                // Without a value, or beyond the longest string, it changes nothing.
                if !word(3).is_empty() && length <= MAX_STRING_BYTES {
                    self.grow(db, key, length);
                }
            }
            "mset" | "msetnx" => {
                words[1..].chunks_exact(2).for_each(|pair| self.grow(db, &pair[0], pair[1].len()));
            }
            "rename" | "renamenx" => self.grow(db, word(2), self.of(db, key)),
            "copy" => {
                let is_db = |pair: &&[bytes::Bytes]| eq_ignore_case(&pair[0], "DB");
                let to = words.windows(2).skip(3).find(is_db).map_or(Some(db), |pair| parse_db(&pair[1]));
                let length = self.of(db, key);
                if let Some(to) = to {
                    self.grow(to, word(2), length);
                }
            }
            "move" => {
                if let Some(to) = parse_db(word(2)) {
                    self.grow(to, key, self.of(db, key));
                }
            }
            "incr" | "decr" | "incrby" | "decrby" => self.grow(db, key, INTEGER_BYTES_MAX),
            "incrbyfloat" => self.grow(db, key, FLOAT_BYTES_MAX),
            _ => {}
        }
    }
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
    use bytes::Bytes;

    use super::*;

    fn state() -> State {
        let mut state = State::new(16);
        state.put_string(0, b"big", &[b'x'; 1_000_000], None);
        state.put_string(0, b"small", b"x", None);
        state
    }

    /// Millions of bytes that a transaction returns, rounded; commands are parted by `;`, and `BIG` is a value of
    /// a million bytes.
    fn megabytes(commands: &str) -> usize {
        let word = |word: &str| match word {
            "BIG" => Bytes::from(vec![b'y'; 1_000_000]),
            word => Bytes::copy_from_slice(word.as_bytes()),
        };
        let queued = |text: &str| Queued { db: 0, args: text.split_whitespace().map(word).collect() };
        let commands: Vec<Queued> = commands.split(';').map(queued).collect();
        (transaction_bytes(&state(), &commands) + 500_000) / 1_000_000
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
            assert_eq!(megabytes(commands), expected, "{commands}");
        }
    }

    #[test]
    fn a_value_that_the_transaction_itself_makes_counts() {
        for (commands, expected) in [
            ("SET k BIG; GET k; GET k", 2),
            ("SET big x; GET big", 0),
            ("SETNX k BIG; GET k", 1),
            ("SETEX k 10 BIG; GET k", 1),
            ("MSET a 1 k BIG; MGET a k", 1),
            ("APPEND big BIG; GET big", 2),
            ("SETRANGE k 3000000 x; GET k", 3),
            ("RENAME big k; GET k", 1),
            ("COPY big k; GET k", 1),
            ("MOVE big 1; GET none", 0),
            ("INCR k; GET k", 0),
        ] {
            assert_eq!(megabytes(commands), expected, "{commands}");
        }
        let copied = "COPY big k REPLACE DB 3";
        let args = |text: &str| text.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
        let commands = [Queued { db: 0, args: args(copied) }, Queued { db: 3, args: args("GET k") }];
        assert!(transaction_bytes(&state(), &commands) > 1_000_000);
    }

    #[test]
    fn mget_counts_every_key_as_often_as_it_is_named() {
        let words: [&[u8]; 5] = [b"MGET", b"big", b"small", b"none", b"big"];
        assert_eq!(mget_bytes(&state(), 0, &words), 2_000_001 + 4 * HEADER_BYTES);
    }

    #[test]
    fn writes_that_return_a_value_are_known() {
        let is =
            |words: &[&[u8]]| is_write_with_value(table::find(words[0]).unwrap(), &Request::from_args(words));
        assert!(is(&[b"GETEX", b"k"]) && is(&[b"getdel", b"k"]) && is(&[b"getset", b"k", b"v"]));
        assert!(is(&[b"SET", b"k", b"v", b"EX", b"5", b"get"]));
        assert!(!is(&[b"SET", b"k", b"get"]) && !is(&[b"SET", b"k", b"v", b"NX"]) && !is(&[b"incr", b"k"]));
    }

    #[test]
    fn without_an_output_limit_there_is_a_bound_all_the_same() {
        let mut config = Config::default();
        assert_eq!(bytes_max(&config), config.output_limits.normal.hard);
        config.output_limits.normal.hard = 0;
        assert_eq!(bytes_max(&config), REPLY_BYTES_MAX);
    }
}
