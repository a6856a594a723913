//! Where replies may differ from those of Redis 7.0.15, each with the reason. What is not here must be equal to the
//! byte.

use holdfast::commands::table;

use crate::support::client::Value;

/// A difference that is as it should be.
pub struct Explained {
    /// The command, in upper case; of a container, with its subcommand.
    pub command: &'static str,
    /// Whether this is that difference: our reply, then Redis's.
    pub is_it: fn(&Value, &Value) -> bool,
    pub why: &'static str,
}

const fn row(command: &'static str, is_it: fn(&Value, &Value) -> bool, why: &'static str) -> Explained {
    Explained { command, is_it, why }
}

const TIME_PASSES: &str = "time passes between the two answers";
const MORE_COMMANDS: &str = "Redis has more commands; a test of its own compares the rows of those in common";
const LATE: &str =
    "SET with a moment that is past leaves a key that Redis removes when it is touched or found";
/// Why the commands of subscribers are in no template.
const SUBSCRIBED: &str =
    "it changes what the connection may send; `subscribers_are_answered_as_in_redis` compares it";
const OWN_TEXT: &str = "a text for people about the server itself";

pub const EXPLAINED: &[Explained] = &[
    row("TTL", seconds_apart, TIME_PASSES),
    row("EXPIRETIME", seconds_apart, TIME_PASSES),
    row("PTTL", millis_apart, TIME_PASSES),
    row("PEXPIRETIME", millis_apart, TIME_PASSES),
    row("TIME", same_type, TIME_PASSES),
    row("KEYS", same_members, "keys come in no order"),
    row("SCAN", same_page, "keys come in no order"),
    row("RANDOMKEY", same_type, "some key, drawn by chance"),
    row(
        "OBJECT ENCODING",
        same_type,
        "how a string is kept depends in Redis on what wrote it, here on what it is",
    ),
    row("OBJECT REFCOUNT", same_type, "whether an integer is shared depends in Redis on what wrote it"),
    row("OBJECT IDLETIME", same_type, "reads are not recorded: always 0"),
    row("MEMORY USAGE", same_type, "the bytes are those of another data structure"),
    row("MEMORY USAGE", only_in_redis, LATE),
    row("DBSIZE", redis_counts_more, LATE),
    row("HELLO", same_fields, "the name, the version and the connection's number are the server's own"),
    row("CLIENT ID", same_type, "each server counts its connections"),
    row("CLIENT LIST", same_type, "each server has its own connections"),
    row("COMMAND", redis_has_more, MORE_COMMANDS),
    row("COMMAND COUNT", same_type, MORE_COMMANDS),
    row("COMMAND INFO", redis_has_more, MORE_COMMANDS),
    row("COMMAND DOCS", redis_has_more, MORE_COMMANDS),
    row("COMMAND LIST", redis_has_more, MORE_COMMANDS),
    row("INFO", same_type, OWN_TEXT),
    row("SLOWLOG LEN", same_type, "each server has its own slow commands"),
    row("SLOWLOG GET", same_type, "each server has its own slow commands"),
    row(
        "CONFIG SET",
        both_errors,
        "an odd number of words is refused by the arity, and values that are no text by a text of ours",
    ),
    row(
        "CLIENT UNBLOCK",
        too_many_words,
        "Redis has a text of its own for words too many; ours passes over them",
    ),
    row(
        "SLOWLOG GET",
        too_many_words,
        "Redis has a text of its own for words too many; ours passes over them",
    ),
    row("HELLO", both_errors, "ours reads all words before it looks at the password, Redis one by one"),
    row("LCS", both_errors, "known to Redis and not to this version"),
];

/// Commands of the table that no template sends, with the reason.
pub const NOT_COMPARED: &[(&str, &str)] = &[
    ("lock", "not in Redis"),
    ("unlock", "not in Redis"),
    ("lockextend", "not in Redis"),
    ("mlock", "not in Redis"),
    ("locks list", "not in Redis"),
    ("locks info", "not in Redis"),
    ("locks graph", "not in Redis"),
    ("locks deadlocks", "not in Redis"),
    ("locks release", "not in Redis"),
    ("locks kill", "not in Redis"),
    ("fence", "not in Redis"),
    ("once", "not in Redis"),
    ("client execmode", "not in Redis"),
    ("subscribe", SUBSCRIBED),
    ("psubscribe", SUBSCRIBED),
    ("unsubscribe", SUBSCRIBED),
    ("punsubscribe", SUBSCRIBED),
    ("qpush", "not in Redis"),
    ("qpop", "not in Redis"),
    ("qack", "not in Redis"),
    ("qnack", "not in Redis"),
    ("qextend", "not in Redis"),
    ("qinfo", "not in Redis"),
    ("qpeek", "not in Redis"),
    ("qtrace", "not in Redis"),
    ("qdel", "not in Redis"),
    ("qredrive", "not in Redis"),
    ("qconfig get", "not in Redis"),
    ("qconfig set", "not in Redis"),
    ("qlen", "not in Redis"),
    ("delex", "not in Redis 7.0"),
    ("client setinfo", "not in Redis 7.0"),
    ("client no-touch", "not in Redis 7.0"),
    ("raft info", "not in Redis"),
    ("raft members", "not in Redis"),
    ("raft transfer", "not in Redis"),
    ("raft snapshot", "not in Redis"),
    ("raft verify", "not in Redis"),
    ("readonly", "in Redis of a cluster's replica only, here of any node"),
    ("readwrite", "in Redis of a cluster's replica only, here of any node"),
    ("client info", OWN_TEXT),
    ("client pause", "holds every connection back, those of the test too"),
    ("memory doctor", OWN_TEXT),
    ("memory stats", "the figures of another data structure"),
    ("latency doctor", OWN_TEXT),
    ("command", MORE_COMMANDS),
    ("quit", "closes the connection"),
    ("shutdown", "ends the server"),
    ("debug", "Redis refuses it unless it is configured otherwise"),
];

/// Commands that say another arity or other keys of themselves than in Redis, with the reason.
pub const OWN_ROWS: &[(&str, &str)] = &[("readonly", "takes MAXLAG")];

/// True when both replies are as they should be.
pub fn is_explained(command: &[Vec<u8>], ours: &Value, theirs: &Value) -> bool {
    let upper = |at: usize| {
        let word = command.get(at).map(|word| String::from_utf8_lossy(word).to_ascii_uppercase());
        word.unwrap_or_default()
    };
    let is_container = table::find(&command[0]).is_some_and(|spec| !spec.subcommands.is_empty());
    let name =
        if is_container && command.len() > 1 { format!("{} {}", upper(0), upper(1)) } else { upper(0) };
    let covers = |row: &&Explained| row.command == name;
    EXPLAINED.iter().filter(covers).any(|row| (row.is_it)(ours, theirs))
}

/// What may lie between the two answers, in milliseconds.
const APART_MS: u64 = 5_000;

/// Only of keys that have a deadline: -1 and -2 are no times.
fn apart(ours: &Value, theirs: &Value) -> Option<u64> {
    match (ours, theirs) {
        (Value::Integer(ours), Value::Integer(theirs)) if *ours >= 0 && *theirs >= 0 => {
            Some(ours.abs_diff(*theirs))
        }
        _ => None,
    }
}

fn seconds_apart(ours: &Value, theirs: &Value) -> bool {
    apart(ours, theirs).is_some_and(|seconds| seconds <= APART_MS / 1000)
}

fn millis_apart(ours: &Value, theirs: &Value) -> bool {
    apart(ours, theirs).is_some_and(|millis| millis <= APART_MS)
}

/// The same kind of reply; of an array, the same kind throughout.
fn same_type(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Value::Integer(_), Value::Integer(_))
        | (Value::Bulk(_), Value::Bulk(_))
        | (Value::Verbatim(..), Value::Verbatim(..))
        | (Value::Null, Value::Null)
        | (Value::Array(_), Value::Array(_)) => true,
        _ => ours == theirs,
    }
}

fn redis_has_more(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Value::Array(ours), Value::Array(theirs)) => ours.len() < theirs.len(),
        (Value::Map(ours), Value::Map(theirs)) => ours.len() < theirs.len(),
        _ => false,
    }
}

fn only_in_redis(ours: &Value, theirs: &Value) -> bool {
    matches!((ours, theirs), (Value::Null, Value::Integer(_)))
}

fn redis_counts_more(ours: &Value, theirs: &Value) -> bool {
    matches!((ours, theirs), (Value::Integer(ours), Value::Integer(theirs)) if ours < theirs)
}

fn too_many_words(_ours: &Value, theirs: &Value) -> bool {
    matches!(theirs, Value::Error(text) if text.contains("unknown subcommand or wrong number of arguments"))
}

fn both_errors(ours: &Value, theirs: &Value) -> bool {
    ours.is_error() && theirs.is_error()
}

fn sorted(values: &[Value]) -> Vec<String> {
    let mut shown: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
    shown.sort();
    shown
}

fn same_members(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Value::Array(ours), Value::Array(theirs)) => sorted(ours) == sorted(theirs),
        _ => false,
    }
}

/// Only pages that hold all there is are compared within a sequence; the others show what their cursor says.
fn same_page(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Value::Array(ours), Value::Array(theirs)) => match (&ours[..], &theirs[..]) {
            ([our_cursor, our_keys], [their_cursor, their_keys]) => {
                let is_whole = |cursor: &Value| cursor.text() == "0";
                !is_whole(our_cursor) || !is_whole(their_cursor) || same_members(our_keys, their_keys)
            }
            _ => false,
        },
        _ => false,
    }
}

fn same_fields(ours: &Value, theirs: &Value) -> bool {
    let is_own = |name: &str| matches!(name, "server" | "version" | "id");
    let kept = |reply: &Value| -> Option<Vec<(String, Value)>> {
        match reply {
            Value::Map(_) | Value::Array(_) => {
                let pairs = reply.pairs().into_iter().map(|(name, value)| (name.text(), value));
                Some(pairs.filter(|(name, _)| !is_own(name)).collect())
            }
            _ => None,
        }
    };
    let is_same_kind = matches!(ours, Value::Map(_)) == matches!(theirs, Value::Map(_));
    is_same_kind && kept(ours).is_some() && kept(ours) == kept(theirs)
}
