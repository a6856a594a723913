//! Every wrong option, number, type and combination of the queue verbs has one clear error, and changes nothing.

use crate::commands::queues_test::Bench;
use crate::types::LogIndex;

const INTEGER: &str = "ERR value is not an integer or out of range";
const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";

/// Fails unless each line is refused with its error and leaves the state as it was.
fn check(wrong: &[(&str, &str)]) {
    let mut bench = Bench::new();
    for line in [
        "SET s v",
        "LOCK l me",
        "QPUSH q p ID x",
        "QPUSH q p",
        "QPOP LEASE 1000 FROM q",
        "QCONFIG SET full MAXLEN 1",
        "QPUSH full p",
        "QCONFIG SET bytes MAXBYTES 3",
        "QCONFIG SET closed PAUSE in",
    ] {
        let reply = bench.run(0, line);
        assert!(!reply.starts_with('-'), "{line}: {reply}");
    }
    let (applied, before) = (bench.state.meta().applied, bench.state.digest());
    for (line, error) in wrong {
        assert_eq!(bench.run(0, line), format!("-{error}"), "{line}");
        bench.state.meta.applied = LogIndex(applied.0);
        assert_eq!(bench.state.digest(), before, "{line} changed something");
    }
}

fn syntax(what: &str) -> String {
    format!("ERR syntax error: {what}")
}

fn arity(verb: &str) -> String {
    format!("ERR wrong number of arguments for '{verb}' command")
}

fn no_option(verb: &str, word: &str) -> String {
    syntax(&format!("{verb} has no option '{word}'"))
}

fn between(name: &str, min: i64, max: i64) -> String {
    format!("ERR {name} must be between {min} and {max}")
}

fn millis(name: &str, min: i64, max: i64) -> String {
    between(name, min, max) + " milliseconds"
}

fn bytes(name: &str) -> String {
    format!("ERR {name} must be 1 to 256 bytes long")
}

fn receipt(text: &str) -> String {
    format!("ERR invalid receipt '{text}': want <id>:<delivery>")
}

fn id(text: &str) -> String {
    format!("ERR invalid id '{text}': want <index>-<n>")
}

fn no_state(text: &str) -> String {
    syntax(&format!("'{text}' is no state: want READY, DELAYED, LEASED or DEAD"))
}

const YEAR: i64 = 31_536_000_000;
const DAY: i64 = 86_400_000;
const NUMBER_MAX: i64 = 9_007_199_254_740_991;

#[test]
fn what_qpush_refuses() {
    let long = "x".repeat(257);
    check(&[
        ("QPUSH q", &arity("qpush")),
        ("QPUSH q p more", &no_option("QPUSH", "more")),
        ("QPUSH q p NX", &no_option("QPUSH", "NX")),
        ("QPUSH q p ''", &no_option("QPUSH", "")),
        (&format!("QPUSH q p {}", "7".repeat(1_000)), &no_option("QPUSH", &"7".repeat(64))),
        ("QPUSH q p \"tab\\tand\\nline\"", &no_option("QPUSH", "tab\\tand\\nline")),
        ("QPUSH q p ID", &syntax("ID needs a value")),
        ("QPUSH q p ID ''", &bytes("ID")),
        (&format!("QPUSH q p ID {long}"), &bytes("ID")),
        ("QPUSH q p ID a ID b", &syntax("ID is given twice")),
        ("QPUSH q p PRIORITY", &syntax("PRIORITY needs a value")),
        ("QPUSH q p PRIORITY x", INTEGER),
        ("QPUSH q p PRIORITY ''", INTEGER),
        ("QPUSH q p PRIORITY 1.5", INTEGER),
        ("QPUSH q p PRIORITY +1", INTEGER),
        ("QPUSH q p PRIORITY 9223372036854775808", INTEGER),
        ("QPUSH q p PRIORITY 10", &between("PRIORITY", 0, 9)),
        ("QPUSH q p PRIORITY -1", &between("PRIORITY", 0, 9)),
        ("QPUSH q p PRIORITY 1 priority 1", &syntax("PRIORITY is given twice")),
        ("QPUSH q p DELAY", &syntax("DELAY needs a value")),
        ("QPUSH q p DELAY soon", INTEGER),
        ("QPUSH q p DELAY -1", &millis("DELAY", 0, YEAR)),
        ("QPUSH q p DELAY 31536000001", &millis("DELAY", 0, YEAR)),
        ("QPUSH q p DELAY 1 DELAY 1", &syntax("DELAY is given twice")),
        ("QPUSH q p EX", &syntax("EX needs a value")),
        ("QPUSH q p EX x", INTEGER),
        ("QPUSH q p EX 0", &between("EX", 1, YEAR / 1_000)),
        ("QPUSH q p EX 31536001", &between("EX", 1, YEAR / 1_000)),
        ("QPUSH q p EX 1 EX 1", &syntax("EX is given twice")),
        ("QPUSH q p PX", &syntax("PX needs a value")),
        ("QPUSH q p PX x", INTEGER),
        ("QPUSH q p PX 0", &millis("PX", 1, YEAR)),
        ("QPUSH q p PX 31536000001", &millis("PX", 1, YEAR)),
        ("QPUSH q p PX 1 PX 1", &syntax("PX is given twice")),
        ("QPUSH q p EX 1 PX 1", &syntax("QPUSH takes either EX or PX")),
        ("QPUSH q p GROUP", &syntax("GROUP needs a value")),
        ("QPUSH q p GROUP ''", &bytes("GROUP")),
        (&format!("QPUSH q p GROUP {long}"), &bytes("GROUP")),
        ("QPUSH q p GROUP a GROUP a", &syntax("GROUP is given twice")),
        ("QPUSH q p MAXLEN", &syntax("MAXLEN needs a value")),
        ("QPUSH q p MAXLEN x", INTEGER),
        ("QPUSH q p MAXLEN -1", &between("MAXLEN", 0, NUMBER_MAX)),
        ("QPUSH q p MAXLEN 9007199254740992", &between("MAXLEN", 0, NUMBER_MAX)),
        ("QPUSH q p MAXLEN 1 MAXLEN 1", &syntax("MAXLEN is given twice")),
        ("QPUSH q p XX", &syntax("XX needs the ID of the message")),
        ("QPUSH q p ID x XX XX", &syntax("XX is given twice")),
        ("QPUSH q p ID x XX EX 1", &syntax("XX changes PRIORITY and DELAY only, not EX")),
        ("QPUSH q p PX 1 ID x XX", &syntax("XX changes PRIORITY and DELAY only, not PX")),
        ("QPUSH q p ID x XX GROUP g", &syntax("XX changes PRIORITY and DELAY only, not GROUP")),
        ("QPUSH q p ID x XX MAXLEN 1", &syntax("XX changes PRIORITY and DELAY only, not MAXLEN")),
        ("QPUSH s p", WRONG_TYPE),
        ("QPUSH l p", WRONG_TYPE),
        ("QPUSH s p ID x XX", WRONG_TYPE),
        ("QPUSH full p", "QFULL full holds 1 messages, MAXLEN 1"),
        ("QPUSH q p MAXLEN 2", "QFULL q holds 2 messages, MAXLEN 2"),
        ("QPUSH new p MAXLEN 0", "QFULL new holds 0 messages, MAXLEN 0"),
        ("QPUSH bytes four", "QFULL bytes would hold 4 bytes, MAXBYTES 3"),
        ("QPUSH closed p", "QFULL closed takes no messages: PAUSE is in"),
    ]);
}

#[test]
fn what_qpop_refuses() {
    let from = syntax("QPOP ends with FROM queue [queue ...]");
    check(&[
        ("QPOP q", &arity("qpop")),
        ("QPOP q q", &no_option("QPOP", "q")),
        ("QPOP COUNT 1", &from),
        ("QPOP NOACK WITHMETA", &from),
        ("QPOP NOACK FROM", &from),
        ("QPOP COUNT 1 q", &no_option("QPOP", "q")),
        ("QPOP COUNT FROM q", INTEGER),
        ("QPOP NOACK COUNT", &syntax("COUNT needs a value")),
        ("QPOP COUNT x FROM q", INTEGER),
        ("QPOP COUNT 0 FROM q", &between("COUNT", 1, 1_000)),
        ("QPOP COUNT -1 FROM q", &between("COUNT", 1, 1_000)),
        ("QPOP COUNT 1001 FROM q", &between("COUNT", 1, 1_000)),
        (&format!("QPOP FROM{}", " q".repeat(129)), "ERR QPOP takes at most 128 queues"),
        ("QPOP COUNT 1 COUNT 1 FROM q", &syntax("COUNT is given twice")),
        ("QPOP BLOCK x FROM q", INTEGER),
        ("QPOP BLOCK -1 FROM q", &millis("BLOCK", 0, YEAR)),
        ("QPOP BLOCK 31536000001 FROM q", &millis("BLOCK", 0, YEAR)),
        ("QPOP NOACK BLOCK", &syntax("BLOCK needs a value")),
        ("QPOP BLOCK 1 BLOCK 1 FROM q", &syntax("BLOCK is given twice")),
        ("QPOP LEASE x FROM q", INTEGER),
        ("QPOP LEASE 99 FROM q", &millis("LEASE", 100, DAY)),
        ("QPOP LEASE 86400001 FROM q", &millis("LEASE", 100, DAY)),
        ("QPOP WITHMETA LEASE", &syntax("LEASE needs a value")),
        ("QPOP LEASE 1000 LEASE 1000 FROM q", &syntax("LEASE is given twice")),
        ("QPOP CONSUMER '' FROM q", &bytes("CONSUMER")),
        (&format!("QPOP CONSUMER {} FROM q", "x".repeat(257)), &bytes("CONSUMER")),
        ("QPOP NOACK CONSUMER", &syntax("CONSUMER needs a value")),
        ("QPOP CONSUMER a CONSUMER a FROM q", &syntax("CONSUMER is given twice")),
        ("QPOP NOACK NOACK FROM q", &syntax("NOACK is given twice")),
        ("QPOP WITHMETA WITHMETA FROM q", &syntax("WITHMETA is given twice")),
        ("QPOP NOACK LEASE 1000 FROM q", &syntax("QPOP takes either LEASE or NOACK")),
        ("QPOP LEASE 1000 NOACK FROM q", &syntax("QPOP takes either LEASE or NOACK")),
        ("QPOP MAXLEN 1 FROM q", &no_option("QPOP", "MAXLEN")),
        ("QPOP FROM s", WRONG_TYPE),
        ("QPOP FROM l", WRONG_TYPE),
        ("QPOP FROM q s", WRONG_TYPE),
        ("QPOP BLOCK 0 FROM none s", WRONG_TYPE),
    ]);
}

#[test]
fn what_the_verbs_of_receipts_refuse() {
    let either = |one: &str, other: &str| syntax(&format!("QNACK takes either {one} or {other}"));
    check(&[
        ("QACK q", &arity("qack")),
        ("QACK q x", &receipt("x")),
        ("QACK q ''", &receipt("")),
        ("QACK q 1-0", &receipt("1-0")),
        ("QACK q 1-0:", &receipt("1-0:")),
        ("QACK q 3-0:01", &receipt("3-0:01")),
        ("QACK q 1:0-1", &receipt("1:0-1")),
        ("QACK q -1-0:1", &receipt("-1-0:1")),
        ("QACK q 3-0:1:2", &receipt("3-0:1:2")),
        ("QACK q 3-0:4294967296", &receipt("3-0:4294967296")),
        ("QACK q 3-4294967296:1", &receipt("3-4294967296:1")),
        ("QACK q 18446744073709551616-0:1", &receipt("18446744073709551616-0:1")),
        // One wrong receipt, and none is looked at.
        ("QACK q 3-0:1 3-0:x", &receipt("3-0:x")),
        (&format!("QACK q {}", "7".repeat(1_000)), &receipt(&"7".repeat(64))),
        ("QACK s 3-0:1", WRONG_TYPE),
        ("QACK l 3-0:1", WRONG_TYPE),
        ("QNACK q IDS 1", &arity("qnack")),
        ("QNACK q SILENT FAIL IDS 1 3-0:1", &either("SILENT", "FAIL")),
        ("QNACK q SILENT FATAL IDS 1 3-0:1", &either("SILENT", "FATAL")),
        ("QNACK q FATAL FAIL IDS 1 3-0:1", &either("FAIL", "FATAL")),
        ("QNACK q FATAL DELAY 1 IDS 1 3-0:1", &either("FATAL", "DELAY")),
        ("QNACK q FAIL FAIL IDS 1 3-0:1", &syntax("FAIL is given twice")),
        ("QNACK q SILENT SILENT IDS 1 3-0:1", &syntax("SILENT is given twice")),
        ("QNACK q DELAY x IDS 1 3-0:1", INTEGER),
        ("QNACK q DELAY -1 IDS 1 3-0:1", &millis("DELAY", 0, YEAR)),
        ("QNACK q DELAY 31536000001 IDS 1 3-0:1", &millis("DELAY", 0, YEAR)),
        ("QNACK q DELAY 1 DELAY 1 IDS 1 3-0:1", &syntax("DELAY is given twice")),
        ("QNACK q IDS 1 3-0:1 DELAY", &syntax("DELAY needs a value")),
        ("QNACK q IDS 1 3-0:1 REASON", &syntax("REASON needs a value")),
        ("QNACK q REASON a REASON b IDS 1 3-0:1", &syntax("REASON is given twice")),
        (
            &format!("QNACK q REASON {} IDS 1 3-0:1", "x".repeat(513)),
            "ERR REASON must be at most 512 bytes long",
        ),
        ("QNACK q FAIL DELAY 1", &syntax("QNACK needs IDS n receipt [receipt ...]")),
        ("QNACK q IDS 0 3-0:1", &between("IDS", 1, NUMBER_MAX)),
        ("QNACK q IDS -1 3-0:1", &between("IDS", 1, NUMBER_MAX)),
        ("QNACK q IDS x 3-0:1", INTEGER),
        ("QNACK q IDS 2 3-0:1", &syntax("IDS 2 is followed by 1 words")),
        ("QNACK q IDS 9007199254740991 3-0:1", &syntax("IDS 9007199254740991 is followed by 1 words")),
        ("QNACK q IDS 1 3-0:1 4-0:1", &no_option("QNACK", "4-0:1")),
        ("QNACK q IDS 1 3-0:1 IDS 1 3-0:1", &syntax("IDS is given twice")),
        ("QNACK q IDS 1 3-0", &receipt("3-0")),
        ("QNACK q 3-0:1 3-0:1 3-0:1", &no_option("QNACK", "3-0:1")),
        ("QNACK s IDS 1 3-0:1", WRONG_TYPE),
        ("QNACK l IDS 1 3-0:1", WRONG_TYPE),
        ("QEXTEND q 1000", &arity("qextend")),
        ("QEXTEND q x 3-0:1", INTEGER),
        ("QEXTEND q 99 3-0:1", &millis("the lease", 100, DAY)),
        ("QEXTEND q 86400001 3-0:1", &millis("the lease", 100, DAY)),
        ("QEXTEND q -1 3-0:1", &millis("the lease", 100, DAY)),
        ("QEXTEND q 3-0:1 1000", INTEGER),
        ("QEXTEND q 1000 3-0", &receipt("3-0")),
        ("QEXTEND q 1000 3-0:1 x", &receipt("x")),
        ("QEXTEND s 1000 3-0:1", WRONG_TYPE),
        ("QEXTEND l 1000 3-0:1", WRONG_TYPE),
    ]);
}

#[test]
fn what_the_verbs_that_look_refuse() {
    let one_state = syntax("QLEN takes a queue and one state");
    check(&[
        ("QLEN", &arity("qlen")),
        ("QLEN q SLEEPING", &no_state("SLEEPING")),
        ("QLEN q ''", &no_state("")),
        ("QLEN q READY READY", &one_state),
        ("QLEN q READY DEAD ALL", &one_state),
        ("QLEN s", WRONG_TYPE),
        ("QLEN l ALL", WRONG_TYPE),
        ("QINFO", &arity("qinfo")),
        ("QINFO q HALF", &syntax("QINFO takes a queue and FULL")),
        ("QINFO q FULL FULL", &syntax("QINFO takes a queue and FULL")),
        ("QINFO s", WRONG_TYPE),
        ("QINFO l FULL", WRONG_TYPE),
        ("QPEEK", &arity("qpeek")),
        ("QPEEK q 10", &no_option("QPEEK", "10")),
        ("QPEEK q STATE", &syntax("STATE needs a value")),
        ("QPEEK q STATE ALL", &no_state("ALL")),
        ("QPEEK q STATE READY STATE DEAD", &syntax("STATE is given twice")),
        ("QPEEK q COUNT", &syntax("COUNT needs a value")),
        ("QPEEK q COUNT x", INTEGER),
        ("QPEEK q COUNT 0", &between("COUNT", 1, 1_000)),
        ("QPEEK q COUNT 1001", &between("COUNT", 1, 1_000)),
        ("QPEEK q COUNT 1 COUNT 1", &syntax("COUNT is given twice")),
        ("QPEEK q CURSOR", &syntax("CURSOR needs a value")),
        ("QPEEK q CURSOR 1", &id("1")),
        ("QPEEK q CURSOR 00", &id("00")),
        ("QPEEK q CURSOR 3-0:1", &id("3-0:1")),
        ("QPEEK q CURSOR 0 CURSOR 0", &syntax("CURSOR is given twice")),
        ("QPEEK s", WRONG_TYPE),
        ("QPEEK l STATE DEAD", WRONG_TYPE),
        ("QTRACE q", &arity("qtrace")),
        ("QTRACE q 3-0 4-0", &arity("qtrace")),
        ("QTRACE q x", &id("x")),
        ("QTRACE q 3-0:1", &id("3-0:1")),
        ("QTRACE q 03-0", &id("03-0")),
        ("QTRACE s 3-0", WRONG_TYPE),
        ("QTRACE l 3-0", WRONG_TYPE),
        ("QCONFIG GET", &arity("get")),
        ("QCONFIG GET q LEASE", &arity("get")),
        ("QCONFIG GET s", WRONG_TYPE),
        ("QCONFIG GET l", WRONG_TYPE),
    ]);
}

#[test]
fn what_qdel_and_qredrive_refuse() {
    let behind =
        |word: &str| syntax(&format!("QDEL takes IDS, STATE or ALL, and then nothing like '{word}'"));
    check(&[
        ("QDEL q", &arity("qdel")),
        ("QDEL q 3-0", &no_option("QDEL", "3-0")),
        ("QDEL q IDS", &syntax("IDS needs a value")),
        ("QDEL q IDS x", INTEGER),
        ("QDEL q IDS 0", &between("IDS", 1, NUMBER_MAX)),
        ("QDEL q IDS 2 3-0", &syntax("IDS 2 is followed by 1 words")),
        ("QDEL q IDS 1 x", &id("x")),
        ("QDEL q IDS 2 3-0 x", &id("x")),
        ("QDEL q IDS 1 3-0:1", &id("3-0:1")),
        ("QDEL q IDS 1 3-0 4-0", &behind("4-0")),
        ("QDEL q IDS 1 3-0 ALL", &behind("ALL")),
        ("QDEL q STATE", &syntax("STATE needs a value")),
        ("QDEL q STATE ALL", &no_state("ALL")),
        ("QDEL q STATE READY DEAD", &behind("DEAD")),
        ("QDEL q ALL ALL", &behind("ALL")),
        ("QDEL q ALL 3-0", &behind("3-0")),
        ("QDEL s ALL", WRONG_TYPE),
        ("QDEL l IDS 1 3-0", WRONG_TYPE),
        ("QREDRIVE", &arity("qredrive")),
        ("QREDRIVE q ALL", &no_option("QREDRIVE", "ALL")),
        ("QREDRIVE q 3-0", &no_option("QREDRIVE", "3-0")),
        ("QREDRIVE q IDS", &syntax("IDS needs a value")),
        ("QREDRIVE q IDS 0", &between("IDS", 1, NUMBER_MAX)),
        ("QREDRIVE q IDS x 3-0", INTEGER),
        ("QREDRIVE q IDS 2 3-0", &syntax("IDS 2 is followed by 1 words")),
        ("QREDRIVE q IDS 1 x", &id("x")),
        ("QREDRIVE q IDS 1 3-0 4-0", &no_option("QREDRIVE", "4-0")),
        ("QREDRIVE q IDS 1 3-0 IDS 1 3-0", &syntax("IDS is given twice")),
        ("QREDRIVE q COUNT", &syntax("COUNT needs a value")),
        ("QREDRIVE q COUNT x", INTEGER),
        ("QREDRIVE q COUNT 0", &between("COUNT", 1, NUMBER_MAX)),
        ("QREDRIVE q COUNT -1", &between("COUNT", 1, NUMBER_MAX)),
        ("QREDRIVE q COUNT 1 COUNT 1", &syntax("COUNT is given twice")),
        ("QREDRIVE q COUNT 1 IDS 1 3-0", &syntax("QREDRIVE takes either IDS or COUNT")),
        ("QREDRIVE q IDS 1 3-0 COUNT 1", &syntax("QREDRIVE takes either IDS or COUNT")),
        ("QREDRIVE q TO", &syntax("TO needs a value")),
        ("QREDRIVE q TO a TO b", &syntax("TO is given twice")),
        ("QREDRIVE q TO s", WRONG_TYPE),
        ("QREDRIVE q TO l", WRONG_TYPE),
        ("QREDRIVE s", WRONG_TYPE),
        ("QREDRIVE l TO q", WRONG_TYPE),
        ("QREDRIVE none TO s", WRONG_TYPE),
    ]);
}

#[test]
fn what_qconfig_set_refuses() {
    let backoff = "ERR BACKOFF is 'min max factor jitter%', in milliseconds: '1000 300000 2 20'";
    let factor = "ERR BACKOFF factor must be between 1 and 1000";
    let pause = "ERR PAUSE must be none, in, out or all";
    let other = "ERR DEADLETTER must be another queue";
    let long = format!("QCONFIG SET q DEADLETTER {}", "k".repeat((64 << 10) + 1));
    check(&[
        ("QCONFIG", &arity("qconfig")),
        ("QCONFIG SET q", &arity("set")),
        ("QCONFIG SET q LEASE", &arity("set")),
        ("QCONFIG SET q LEASE 1000 MAXLEN", &syntax("MAXLEN needs a value")),
        ("QCONFIG SET q COLOUR red", &no_option("QCONFIG SET", "COLOUR")),
        ("QCONFIG SET q LEASE 1000 5", &no_option("QCONFIG SET", "5")),
        ("QCONFIG SET q LEASE 1000 lease 1000", &syntax("LEASE is given twice")),
        ("QCONFIG SET q LEASE x", INTEGER),
        ("QCONFIG SET q LEASE 99", &millis("LEASE", 100, DAY)),
        ("QCONFIG SET q LEASE 86400001", &millis("LEASE", 100, DAY)),
        ("QCONFIG SET q MAXDELIVER x", INTEGER),
        ("QCONFIG SET q MAXDELIVER -1", &between("MAXDELIVER", 0, 1_000_000)),
        ("QCONFIG SET q MAXDELIVER 1000001", &between("MAXDELIVER", 0, 1_000_000)),
        ("QCONFIG SET q BACKOFF 1000", backoff),
        ("QCONFIG SET q BACKOFF ''", backoff),
        ("QCONFIG SET q BACKOFF '1 2 3 4 5'", backoff),
        ("QCONFIG SET q BACKOFF 'x 2 3 4'", INTEGER),
        ("QCONFIG SET q BACKOFF '-1 2 3 4'", &millis("BACKOFF min", 0, YEAR)),
        ("QCONFIG SET q BACKOFF '1 x 3 4'", INTEGER),
        ("QCONFIG SET q BACKOFF '1 31536000001 3 4'", &millis("BACKOFF max", 0, YEAR)),
        ("QCONFIG SET q BACKOFF '5 4 3 2'", "ERR BACKOFF max must not be below min"),
        ("QCONFIG SET q BACKOFF '1 2 x 4'", factor),
        ("QCONFIG SET q BACKOFF '1 2 0.99 4'", factor),
        ("QCONFIG SET q BACKOFF '1 2 1001 4'", factor),
        ("QCONFIG SET q BACKOFF '1 2 nan 4'", factor),
        ("QCONFIG SET q BACKOFF '1 2 inf 4'", factor),
        ("QCONFIG SET q BACKOFF '1 2 3 x'", INTEGER),
        ("QCONFIG SET q BACKOFF '1 2 3 101'", &between("BACKOFF jitter", 0, 100)),
        ("QCONFIG SET q BACKOFF '1 2 3 -1%'", &between("BACKOFF jitter", 0, 100)),
        ("QCONFIG SET q BACKOFF '1 2 3 %'", INTEGER),
        ("QCONFIG SET q DEADLETTER q", other),
        (&long, "ERR DEADLETTER is longer than keys may be"),
        ("QCONFIG SET q DEDUP x", INTEGER),
        ("QCONFIG SET q DEDUP -1", &millis("DEDUP", 0, 30 * DAY)),
        ("QCONFIG SET q DEDUP 2592000001", &millis("DEDUP", 0, 30 * DAY)),
        ("QCONFIG SET q MAXLEN x", INTEGER),
        ("QCONFIG SET q MAXLEN -1", &between("MAXLEN", 0, NUMBER_MAX)),
        ("QCONFIG SET q MAXBYTES x", INTEGER),
        ("QCONFIG SET q MAXBYTES -1", &between("MAXBYTES", 0, NUMBER_MAX)),
        ("QCONFIG SET q MAXLEASED x", INTEGER),
        ("QCONFIG SET q MAXLEASED 9007199254740992", &between("MAXLEASED", 0, NUMBER_MAX)),
        ("QCONFIG SET q AGING x", INTEGER),
        ("QCONFIG SET q AGING -1", &millis("AGING", 0, YEAR)),
        ("QCONFIG SET q RETAIN x", INTEGER),
        ("QCONFIG SET q RETAIN 2592000001", &millis("RETAIN", 0, 30 * DAY)),
        ("QCONFIG SET q PAUSE", &arity("set")),
        ("QCONFIG SET q PAUSE maybe", pause),
        ("QCONFIG SET q PAUSE ''", pause),
        ("QCONFIG SET q TTL x", INTEGER),
        ("QCONFIG SET q TTL -1", &millis("TTL", 0, YEAR)),
        // All or nothing.
        ("QCONFIG SET q LEASE 1000 MAXLEN 5 PAUSE maybe", pause),
        ("QCONFIG SET new LEASE 1000 PAUSE maybe", pause),
        ("QCONFIG SET s LEASE 1000", WRONG_TYPE),
        ("QCONFIG SET l LEASE 1000", WRONG_TYPE),
    ]);
}
