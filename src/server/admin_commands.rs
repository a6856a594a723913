//! SLOWLOG LATENCY TIME WAIT SHUTDOWN DEBUG: what operators and tests ask of one node.

use std::time::Duration;

use crate::commands::error::CommandError;
use crate::resp::Reply;
use crate::resp::Request;
use crate::resp::arguments::eq_ignore_case;
use crate::resp::arguments::parse_f64;
use crate::resp::arguments::parse_i64;
use crate::server::Services;
use crate::server::client_command::help;
use crate::server::session::Answer;
use crate::server::session::Session;
use crate::types::glob;

/// SLOWLOG GET without a count.
const SLOWLOG_GET_DEFAULT: usize = 10;
/// The longest DEBUG SLEEP, in seconds.
const SLEEP_SECONDS_MAX: f64 = 3600.0;

const SLOWLOG_HELP: &[&str] = &[
    "SLOWLOG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "GET [<count>]",
    "    Return top <count> entries from the slowlog (default: 10, -1 mean all).",
    "    Entries are made of:",
    "    id, timestamp, time in microseconds, arguments array, client IP and port, client name",
    "LEN",
    "    Return the length of the slowlog.",
    "RESET",
    "    Reset the slowlog.",
    "HELP",
    "    Print this help.",
];

const LATENCY_HELP: &[&str] = &[
    "LATENCY <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "DOCTOR",
    "    Return a human readable latency analysis report.",
    "HISTORY <event>",
    "    Return time-latency samples for the <event> class.",
    "LATEST",
    "    Return the latest latency samples for all events.",
    "RESET [<event> ...]",
    "    Reset latency data of one or more <event> classes.",
    "HELP",
    "    Print this help.",
];

const DEBUG_HELP: &[&str] = &[
    "DEBUG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "CHANGE-REPL-ID",
    "    Accepted, without effect.",
    "DIGEST",
    "    Return a hex digest of everything that replicas must agree on.",
    "JMAP",
    "    Accepted, without effect.",
    "OBJECT <key>",
    "    Show low level info about <key> and its value.",
    "QUICKLIST-PACKED-THRESHOLD <size>",
    "    Accepted, without effect.",
    "RELOAD",
    "    Accepted, without effect: every write is on disk when it is answered.",
    "SET-ACTIVE-EXPIRE <0|1>",
    "    Accepted, without effect.",
    "SLEEP <seconds>",
    "    Let this client wait for <seconds>. Decimals allowed. Others are served meanwhile.",
    "STRINGMATCH-LEN <length> <pattern>",
    "    Match a text of <length> letters 'a' against <pattern>.",
    "HELP",
    "    Print this help.",
];

fn number(value: u64) -> Reply {
    Reply::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

/// SLOWLOG.
pub fn slowlog(services: &Services, sub: &str, request: &Request) -> Reply {
    match sub {
        "get" => {
            let count = request.get(2).map(|word| parse_i64(word).filter(|count| *count >= -1));
            match count {
                None => services.slowlog.get(SLOWLOG_GET_DEFAULT),
                Some(Some(count)) => services.slowlog.get(usize::try_from(count).unwrap_or(usize::MAX)),
                Some(None) => Reply::error("ERR count should be greater than or equal to -1"),
            }
        }
        "len" => number(services.slowlog.len() as u64),
        "reset" => {
            services.slowlog.reset();
            Reply::Ok
        }
        "help" => help(SLOWLOG_HELP),
        _ => Reply::error("ERR this version does not know that SLOWLOG subcommand"),
    }
}

/// LATENCY.
pub fn latency(services: &Services, sub: &str, request: &Request) -> Reply {
    match sub {
        "latest" => services.slowlog.latency_latest(),
        "history" => services.slowlog.latency_history(request.arg(2)),
        "reset" => {
            let events: Vec<&[u8]> = request.args().skip(2).collect();
            Reply::Integer(services.slowlog.latency_reset(&events))
        }
        "doctor" => Reply::Verbatim("txt", services.slowlog.latency_doctor()),
        "help" => help(LATENCY_HELP),
        _ => Reply::error("ERR this version does not know that LATENCY subcommand"),
    }
}

/// TIME: seconds and microseconds of this node's wall clock, which counts milliseconds.
pub fn time(services: &Services) -> Reply {
    let wall = services.clock.wall().0;
    Reply::Array(vec![Reply::text((wall / 1000).to_string()), Reply::text((wall % 1000 * 1000).to_string())])
}

/// WAIT: at once, since what was answered before is on a majority of the nodes already. The number is that of the
/// other nodes of a majority, and a node alone has none.
pub fn wait(services: &Services, request: &Request) -> Reply {
    let voters = services.group.read_applied().membership().voters.len();
    wait_with(voters, request)
}

fn wait_with(voters: usize, request: &Request) -> Reply {
    if parse_i64(request.arg(1)).is_none() {
        return CommandError::NotAnInteger.into();
    }
    match parse_i64(request.arg(2)) {
        None => Reply::error("ERR timeout is not an integer or out of range"),
        Some(timeout) if timeout < 0 => Reply::error("ERR timeout is negative"),
        Some(_) => number((voters / 2) as u64),
    }
}

/// SHUTDOWN: asks the node to stop, as SIGTERM does. There is no reply: the connection closes.
pub fn shutdown(services: &Services, request: &Request) -> Answer {
    for word in request.args().skip(1) {
        if eq_ignore_case(word, "abort") {
            return Reply::error("ERR No shutdown in progress.").into();
        }
        if !["nosave", "save", "now", "force"].iter().any(|known| eq_ignore_case(word, known)) {
            return Reply::from(CommandError::Syntax).into();
        }
    }
    services.shutdown.request();
    Answer::Close
}

/// DEBUG.
pub fn debug(session: &Session, services: &Services, request: &Request) -> Answer {
    let sub = String::from_utf8_lossy(request.arg(1)).to_ascii_lowercase();
    match (sub.as_str(), request.len()) {
        ("sleep", 3) => match parse_f64(request.arg(2)) {
            Some(seconds) => {
                let length = Duration::from_secs_f64(seconds.clamp(0.0, SLEEP_SECONDS_MAX));
                Answer::After(length, Reply::Ok)
            }
            None => Reply::from(CommandError::NotAFloat).into(),
        },
        ("object", 3) => debug_object(session, services, request.arg(2)).into(),
        ("digest", 2) => {
            let digest = services.group.read_applied().digest();
            Reply::Simple(format!("{digest:040x}").into()).into()
        }
        ("stringmatch-len", 4) => stringmatch_len(request).into(),
        ("set-active-expire" | "quicklist-packed-threshold", 3) => Reply::Ok.into(),
        ("jmap" | "change-repl-id", 2) | ("reload", 2..) => Reply::Ok.into(),
        ("help", 2) => help(DEBUG_HELP).into(),
        (name, _) => {
            let text = "ERR unknown subcommand or wrong number of arguments for";
            Reply::error(format!("{text} '{name}'. Try DEBUG HELP.")).into()
        }
    }
}

fn debug_object(session: &Session, services: &Services, key: &[u8]) -> Reply {
    let state = services.group.read_applied();
    let Some(row) = state.row(session.db, key) else { return CommandError::NoSuchKey.into() };
    let (bytes, kind) = (row.memory_bytes(), row.object().type_name());
    let encoding = if kind == "string" { "raw" } else { kind };
    let text = format!(
        "Value at:0x0 refcount:1 encoding:{encoding} serializedlength:{bytes} lru:0 lru_seconds_idle:0 changed:{}",
        row.changed()
    );
    Reply::Simple(text.into())
}

/// For tests of hostile patterns.
fn stringmatch_len(request: &Request) -> Reply {
    const LENGTH_MAX: usize = 1 << 20;
    let length = parse_i64(request.arg(2)).and_then(|length| usize::try_from(length).ok());
    let Some(length) = length else { return CommandError::NotAnInteger.into() };
    let text = vec![b'a'; length.min(LENGTH_MAX)];
    Reply::Integer(i64::from(glob::matches(request.arg(3), &text, false)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_answers_at_once_and_checks_its_words() {
        let wait = |voters, words: &[&[u8]]| wait_with(voters, &Request::from_args(words));
        assert_eq!(wait(1, &[b"wait", b"1", b"100"]), Reply::Integer(0));
        assert_eq!(wait(3, &[b"wait", b"2", b"100"]), Reply::Integer(1));
        assert_eq!(wait(5, &[b"wait", b"0", b"0"]), Reply::Integer(2));
        assert!(wait(1, &[b"wait", b"x", b"100"]).is_error());
        let negative = wait(1, &[b"wait", b"1", b"-1"]);
        assert_eq!(negative, Reply::error("ERR timeout is negative"));
    }

    #[test]
    fn patterns_can_be_tried_on_long_texts() {
        let reply = stringmatch_len(&Request::from_args(&[b"debug", b"stringmatch-len", b"100", b"a*a"]));
        assert_eq!(reply, Reply::Integer(1));
    }
}
