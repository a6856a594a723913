//! The commands that are sent to both servers, and the words they are made of.

use proptest::collection::vec;
use proptest::prelude::Strategy;
use proptest::prelude::any;
use proptest::sample::select;

/// A word of a command; not always text.
pub type Word = Vec<u8>;

/// Commands; a one-letter word stands for one of a pool: K a key, V a value, I an integer, F a float, T a time to
/// live, U and W a far moment in seconds and milliseconds, O an offset, P a pattern, X an option of any command,
/// N a number of a database.
pub const TEMPLATES: &[&str] = &[
    // Strings.
    "GET K",
    "GET K",
    "SET K V",
    "SET K V",
    "SET K I",
    "SET K F",
    "SET K V NX",
    "SET K V XX",
    "SET K V GET",
    "SET K V NX GET",
    "SET K V XX GET",
    "SET K V EX T",
    "SET K V PX T",
    "SET K V EX T NX",
    "SET K V KEEPTTL",
    "SET K V KEEPTTL EX T",
    "SET K V EXAT U",
    "SET K V PXAT W",
    "SET K V PXAT T",
    "SET K V NX XX",
    "SET K V X",
    "SET K V X X",
    "SET K V X T X",
    "SET K V X T X T",
    "SETNX K V",
    "SETEX K T V",
    "PSETEX K T V",
    "GETSET K V",
    "GETDEL K",
    "GETEX K",
    "GETEX K EX T",
    "GETEX K PX T",
    "GETEX K PERSIST",
    "GETEX K EXAT U",
    "GETEX K PXAT W",
    "GETEX K EX T PERSIST",
    "GETEX K X",
    "GETEX K X T",
    "GETEX K X T X",
    "MGET K K",
    "MGET K K K",
    "MSET K V K V",
    "MSET K I",
    "MSET K V K",
    "MSETNX K V K V",
    "MSETNX K V",
    "MSETNX K V K",
    "APPEND K V",
    "APPEND K I",
    "STRLEN K",
    "GETRANGE K O O",
    "GETRANGE K I I",
    "SUBSTR K O O",
    "SETRANGE K O V",
    "INCR K",
    "INCR K",
    "DECR K",
    "INCRBY K I",
    "DECRBY K I",
    "INCRBYFLOAT K F",
    "INCRBYFLOAT K F",
    "INCRBYFLOAT K I",
    // Keys.
    "DEL K",
    "DEL K K",
    "UNLINK K K",
    "EXISTS K",
    "EXISTS K K",
    "TYPE K",
    "TOUCH K K",
    "EXPIRE K T",
    "EXPIRE K T NX",
    "EXPIRE K T XX",
    "EXPIRE K T GT",
    "EXPIRE K T LT",
    "EXPIRE K T NX XX",
    "EXPIRE K T GT LT",
    "EXPIRE K T X",
    "EXPIRE K T X X",
    "PEXPIRE K T",
    "PEXPIRE K T GT",
    "PEXPIRE K T X",
    "EXPIREAT K U",
    "EXPIREAT K T",
    "EXPIREAT K U X",
    "PEXPIREAT K W",
    "PEXPIREAT K T",
    "PEXPIREAT K W X",
    "TTL K",
    "PTTL K",
    "EXPIRETIME K",
    "PEXPIRETIME K",
    "PERSIST K",
    "RENAME K K",
    "RENAMENX K K",
    "COPY K K",
    "COPY K K REPLACE",
    "COPY K K DB 1",
    "COPY K K DB N REPLACE",
    "COPY K K DB N",
    "COPY K K X",
    "MOVE K 1",
    "MOVE K N",
    "MOVE K I",
    "KEYS P",
    "KEYS P",
    "SCAN 0 COUNT 1000",
    "SCAN 0 MATCH P COUNT 1000",
    "SCAN 0 COUNT 1000 TYPE string",
    "SCAN 0 COUNT 1000 TYPE list",
    "SCAN abc",
    "SCAN 0 COUNT O",
    "SCAN 0 X 1000",
    "RANDOMKEY",
    "DBSIZE",
    "FLUSHDB",
    "FLUSHDB SYNC",
    "FLUSHDB X",
    "FLUSHALL ASYNC",
    "FLUSHALL X",
    "OBJECT ENCODING K",
    "OBJECT REFCOUNT K",
    "OBJECT IDLETIME K",
    "OBJECT FREQ K",
    "OBJECT NOSUCH K",
    "MEMORY USAGE K",
    "MEMORY USAGE K SAMPLES O",
    "MEMORY USAGE K X O",
    "WAIT 0 0",
    "WAIT O 1",
    "WAIT 0 O",
    // Transactions.
    "MULTI",
    "MULTI",
    "EXEC",
    "EXEC",
    "EXEC",
    "DISCARD",
    "WATCH K",
    "WATCH K",
    "WATCH K K",
    "UNWATCH",
    // Connections.
    "SELECT 0",
    "SELECT 0",
    "SELECT 1",
    "SELECT N",
    "SELECT I",
    "ECHO V",
    "PING",
    "PING V",
    "PING V V",
    "HELLO",
    "HELLO 2",
    "HELLO 3",
    "HELLO I",
    "HELLO 3 AUTH default V",
    "HELLO 3 AUTH nobody V",
    "HELLO 3 AUTH default",
    "HELLO 2 SETNAME K",
    "HELLO 2 X",
    "AUTH V",
    "AUTH default V",
    "AUTH nobody V",
    "AUTH a b c",
    "RESET",
    "PUBSUB CHANNELS",
    "PUBSUB CHANNELS K",
    "PUBSUB NUMSUB",
    "PUBSUB NUMSUB K K",
    "PUBSUB NUMPAT",
    "PUBSUB NUMPAT V",
    "CLIENT ID",
    "CLIENT GETNAME",
    "CLIENT SETNAME K",
    "CLIENT SETNAME V",
    "CLIENT REPLY ON",
    "CLIENT REPLY X",
    "CLIENT NO-EVICT ON",
    "CLIENT NO-EVICT OFF",
    "CLIENT NO-EVICT X",
    "CLIENT TRACKING OFF",
    "CLIENT TRACKING nosuch",
    "CLIENT TRACKINGINFO",
    "CLIENT GETREDIR",
    "CLIENT KILL ID 987654321",
    "CLIENT KILL ID abc",
    "CLIENT KILL ID 0",
    "CLIENT KILL USER nobody",
    "CLIENT KILL ADDR V",
    "CLIENT KILL NOSUCH V",
    "CLIENT KILL 1.2.3.4:5",
    "CLIENT UNBLOCK 987654321",
    "CLIENT UNBLOCK 987654321 ERROR",
    "CLIENT UNBLOCK 987654321 X",
    "CLIENT UNPAUSE",
    "CLIENT LIST ID 987654321",
    "CLIENT LIST TYPE X",
    "CLIENT LIST X",
    "CLIENT NOSUCH",
    // The server.
    "COMMAND COUNT",
    "COMMAND INFO nosuch",
    "COMMAND DOCS nosuch",
    "COMMAND LIST FILTERBY PATTERN getr*",
    "COMMAND LIST FILTERBY PATTERN nosuch*",
    "COMMAND LIST FILTERBY MODULE nosuch",
    "COMMAND LIST FILTERBY X V",
    "COMMAND LIST X",
    "COMMAND GETKEYS GET K",
    "COMMAND GETKEYS MSET K V K V",
    "COMMAND GETKEYS SET K V X X",
    "COMMAND GETKEYS RENAME K K",
    "COMMAND GETKEYS PING",
    "COMMAND GETKEYS GET",
    "COMMAND GETKEYS NOSUCH K",
    "COMMAND NOSUCH",
    "CONFIG GET nosuch",
    "CONFIG GET nosuch NoSuch",
    "CONFIG SET nosuch V",
    "CONFIG SET nosuch",
    "CONFIG SET maxmemory-policy nosuch",
    "CONFIG RESETSTAT",
    "CONFIG REWRITE",
    "CONFIG NOSUCH",
    "SLOWLOG LEN",
    "SLOWLOG GET O",
    "SLOWLOG GET -2",
    "SLOWLOG RESET",
    "SLOWLOG NOSUCH",
    "LATENCY LATEST",
    "LATENCY HISTORY nosuch",
    "LATENCY RESET",
    "LATENCY RESET nosuch",
    "LATENCY NOSUCH",
    "INFO nosuch",
    "TIME",
    "NOSUCH K I K F K I K F K I K F K I K F K I K F K I K F",
    "LCS",
];

pub const KEYS: &[&str] = &["a", "b", "c", "d", "{t}e", "", "a b", "[x]"];
const VALUES: &[&[u8]] = &[
    b"",
    b"v",
    b"value",
    b"Hello World",
    b"3",
    b"-7",
    b"3.0",
    b" 1",
    b"1 ",
    b"+1",
    b"\r\n",
    b"\0",
    b"\xc3\xa9",
    b"\xff\xfe",
    b"01234567890123456789012345678901234567890123",
    b"012345678901234567890123456789012345678901234",
];
const INTEGERS: &[&str] = &[
    "0",
    "1",
    "-1",
    "7",
    "10",
    "-10",
    "100",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "01",
    "1.0",
    "abc",
    "-0",
    "+5",
    "",
];
const FLOATS: &[&str] = &[
    "0.1",
    "-0.1",
    "1.5",
    "3.0e3",
    "1e-5",
    "0",
    "-0",
    "100000000000000000000",
    "1.1234567890123456",
    "inf",
    "-inf",
    "nan",
    "abc",
    "1e5000",
    "0.5 ",
    "",
    "17179869184.25",
    "1e4932",
    ".5",
    "5.",
    "1e",
];
const OFFSETS: &[&str] = &["0", "1", "2", "5", "10", "-1", "-2", "-5", "-100", "100", "abc", "536870912"];
const DATABASES: &[&str] = &["0", "1", "1", "15", "16", "-1", "99", "abc"];
const PATTERNS: &[&str] =
    &["*", "a", "?", "[a-c]", "[^a]", "{t}*", "", "\\a", "*e", "nosuch*", "\\[x\\]", "[[]*"];
/// No number above zero is among them: as a time to live it would end while the test runs.
const OPTIONS: &[&str] = &[
    "NX", "XX", "GET", "EX", "PX", "EXAT", "PXAT", "KEEPTTL", "PERSIST", "GT", "LT", "nx", "Ex", "DB",
    "REPLACE", "MATCH", "COUNT", "TYPE", "ASYNC", "SYNC", "SAMPLES", "nosuch", "", "0", "-1", "abc", "ON",
    "NORMAL", "ID", "SKIPME",
];

/// One command, before its pools are drawn from.
#[derive(Debug, Clone)]
pub struct Draft {
    template: &'static str,
    picks: Vec<usize>,
    /// 0 drops the last word, 1 adds one, 2 spells the name otherwise; more is as it stands.
    twist: u8,
    /// Which of the connections sends it; mostly the first.
    pub connection: usize,
    noise: Noise,
}

/// Values outside of every pool.
#[derive(Debug, Clone)]
struct Noise {
    pattern: String,
    float: String,
    integer: i64,
    bytes: Word,
}

impl Draft {
    /// Its words; `at` is its place in the sequence. No time to live comes twice in a sequence, so that which of two
    /// is longer does not depend on how long the commands between them took.
    pub fn words(&self, at: usize) -> Vec<Word> {
        let mut picks = self.picks.iter().copied().cycle();
        let mut words: Vec<Word> = self
            .template
            .split(' ')
            .map(|word| {
                let mut pick = || picks.next().unwrap_or(0);
                match word {
                    "K" => from(KEYS, pick()),
                    "V" => match pick() % (VALUES.len() + 3) {
                        choice if choice < VALUES.len() => VALUES[choice].to_vec(),
                        _ => self.noise.bytes.clone(),
                    },
                    "I" => match pick() % (INTEGERS.len() + 3) {
                        choice if choice < INTEGERS.len() => from(INTEGERS, choice),
                        _ => self.noise.integer.to_string().into_bytes(),
                    },
                    "F" => match pick() % (FLOATS.len() + 20) {
                        choice if choice < FLOATS.len() => from(FLOATS, choice),
                        _ => self.noise.float.clone().into_bytes(),
                    },
                    "P" => match pick() % (PATTERNS.len() + 12) {
                        choice if choice < PATTERNS.len() => from(PATTERNS, choice),
                        _ => self.noise.pattern.clone().into_bytes(),
                    },
                    "T" => lifetime(pick(), at),
                    "U" => (33_177_117_420 + at * 60).to_string().into_bytes(),
                    "W" => (33_177_117_420_000 + at * 60_000).to_string().into_bytes(),
                    "O" => from(OFFSETS, pick()),
                    "N" => from(DATABASES, pick()),
                    "X" => from(OPTIONS, pick()),
                    word => word.as_bytes().to_vec(),
                }
            })
            .collect();
        match self.twist {
            0 if words.len() > 1 => drop(words.pop()),
            // Redis has set the name by the time it meets the wrong word; ours looks at all words first.
            1 if self.template.contains("SETNAME") => {}
            1 => words.push(b"extra".to_vec()),
            2 => words[0].make_ascii_lowercase(),
            _ => {}
        }
        words
    }
}

fn from(pool: &[&str], choice: usize) -> Word {
    pool[choice % pool.len()].as_bytes().to_vec()
}

/// Half of them long enough for the slowest test; the others at the edges of what is legal.
fn lifetime(choice: usize, at: usize) -> Word {
    const EDGES: &[&str] = &["0", "-1", "-100", "abc", "-9223372036854775808", "1.5", ""];
    match choice % (EDGES.len() + 10) {
        0..=7 => (10_000_000 + at * 60_000).to_string().into_bytes(),
        8 => (9_223_372_036_854_775 - at * 100_000).to_string().into_bytes(),
        9 => (i64::MAX as usize - at * 100_000).to_string().into_bytes(),
        choice => from(EDGES, choice - 10),
    }
}

/// Sequences of 1 to 200 commands, and whether they begin in RESP3.
pub fn sequences() -> impl Strategy<Value = (Vec<Draft>, bool)> {
    let noise = (
        // Of the letters that mean something, and of those in the names of the keys.
        vec(select(&b"ab*?[]^-\\tx "[..]), 0..9),
        "[-+]?[0-9]{0,20}(\\.[0-9]{0,20})?(e[-+]?[0-9]{1,4})?",
        proptest::prop_oneof![any::<i64>(), -20_000..20_000_i64],
        vec(any::<u8>(), 0..70),
    );
    let noise = noise.prop_map(|(pattern, float, integer, bytes)| Noise {
        pattern: pattern.into_iter().map(char::from).collect(),
        float,
        integer,
        bytes,
    });
    let draft = (select(TEMPLATES), vec(0_usize..1000, 6), 0_u8..40, 0_usize..6, noise);
    let draft = draft.prop_map(|(template, picks, twist, connection, noise)| Draft {
        template,
        picks,
        twist,
        connection: usize::from(connection == 5),
        noise,
    });
    (vec(draft, 1..=200), any::<bool>())
}
