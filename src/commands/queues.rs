//! The queue verbs: QPUSH, QPOP, QACK, QLEN (COMMANDS.md 2.3).
//!
//! This version hands messages out, hides them for a lease and redelivers them. The options of what is
//! still to come are known and refused by name, so that a client learns the reason and not just of a
//! syntax error.

use crate::commands::error::CommandError;
use crate::commands::spec::Args;
use crate::commands::spec::Categories;
use crate::commands::spec::CommandResult;
use crate::commands::spec::CommandSpec;
use crate::commands::spec::Execute;
use crate::commands::spec::Flags;
use crate::commands::spec::Group;
use crate::commands::spec::KeySpec;
use crate::commands::spec::ReadContext;
use crate::commands::spec::WriteContext;
use crate::resp::Reply;
use crate::resp::arguments::eq_ignore_case;
use crate::resp::arguments::parse_i64;
use crate::state::queues;
use crate::state::queues::Popped;
use crate::state::queues::Queue;
use crate::state::queues::Receipt;
use crate::state::queues::Take;
use crate::types::Millis;

/// Most messages that one QPOP hands out.
const COUNT_MAX: i64 = 1_000;
/// Lease of a QPOP that names none, in milliseconds.
const LEASE_MS_DEFAULT: u64 = 30_000;
/// Shortest lease, in milliseconds.
const LEASE_MS_MIN: i64 = 100;
/// Longest lease, in milliseconds: 24 hours.
const LEASE_MS_MAX: i64 = 86_400_000;
/// How much of a malformed receipt its error repeats, in bytes.
const SHOWN_BYTES_MAX: usize = 64;
/// Options of QPUSH that later versions bring.
const LATER_PUSH_OPTIONS: [&str; 8] = ["ID", "PRIORITY", "DELAY", "EX", "PX", "GROUP", "MAXLEN", "XX"];
/// Options of QPOP that later versions bring.
const LATER_POP_OPTIONS: [&str; 3] = ["BLOCK", "CONSUMER", "WITHMETA"];

fn qpush(context: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    if let Some(word) = args.get(3) {
        return Err(refuse_option("QPUSH", &LATER_PUSH_OPTIONS, word));
    }
    let id = queues::push(context.state, context.db, args[1], args[2]).ok_or(CommandError::WrongType)?;
    Ok(Reply::text(id.to_string()))
}

/// What QPOP asks for.
#[derive(Debug, PartialEq, Eq)]
struct PopRequest<'a> {
    count: usize,
    take: Take,
    queues: Args<'a>,
}

fn qpop(context: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let request = pop_request(&args[1..])?;
    if request.queues.iter().any(|key| queues::queue_at(context.state, context.db, key).is_none()) {
        return Err(CommandError::WrongType);
    }
    let mut replies = Vec::new();
    for key in request.queues {
        let wanted = request.count - replies.len();
        if wanted == 0 {
            break;
        }
        let popped = queues::pop(context.state, context.db, key, wanted, request.take, context.now)
            .ok_or(CommandError::WrongType)?;
        replies.extend(popped.into_iter().map(|popped| popped_reply(key, popped)));
    }
    Ok(if replies.is_empty() { Reply::NullArray } else { Reply::Array(replies) })
}

/// Reads `[COUNT n] [LEASE ms] [NOACK] FROM queue [queue ...]`.
fn pop_request<'a>(words: Args<'a>) -> Result<PopRequest<'a>, CommandError> {
    let (mut count, mut lease, mut no_ack) = (None, None, None);
    let mut rest = words;
    while let [word, tail @ ..] = rest {
        rest = tail;
        let is_new = if eq_ignore_case(word, "FROM") {
            break;
        } else if eq_ignore_case(word, "COUNT") {
            count.replace(number_within(&mut rest, "COUNT", 1, COUNT_MAX)?).is_none()
        } else if eq_ignore_case(word, "LEASE") {
            lease.replace(number_within(&mut rest, "LEASE", LEASE_MS_MIN, LEASE_MS_MAX)?).is_none()
        } else if eq_ignore_case(word, "NOACK") {
            no_ack.replace(()).is_none()
        } else {
            return Err(refuse_option("QPOP", &LATER_POP_OPTIONS, word));
        };
        if !is_new {
            return Err(CommandError::Syntax);
        }
    }
    // Nothing is left when FROM is missing, too.
    if rest.is_empty() || (no_ack.is_some() && lease.is_some()) {
        return Err(CommandError::Syntax);
    }
    let take = match no_ack {
        Some(()) => Take::Remove,
        None => Take::Lease(Millis(lease.unwrap_or(LEASE_MS_DEFAULT))),
    };
    let count = usize::try_from(count.unwrap_or(1)).expect("COUNT is at most 1000");
    Ok(PopRequest { count, take, queues: rest })
}

/// Takes the number of an option off the front of the words that follow it.
fn number_within(rest: &mut Args<'_>, option: &str, min: i64, max: i64) -> Result<u64, CommandError> {
    let [number, tail @ ..] = *rest else { return Err(CommandError::Syntax) };
    *rest = tail;
    let number = parse_i64(number).ok_or(CommandError::NotAnInteger)?;
    let in_range = u64::try_from(number).ok().filter(|_| (min..=max).contains(&number));
    in_range.ok_or_else(|| CommandError::other(format!("ERR QPOP {option} must be between {min} and {max}")))
}

fn popped_reply(queue: &[u8], popped: Popped) -> Reply {
    Reply::Array(vec![
        Reply::bulk(queue),
        Reply::text(popped.receipt.to_string()),
        Reply::Bulk(popped.payload),
        Reply::integer(popped.attempt),
    ])
}

fn qack(context: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let receipts = args[2..].iter().map(|text| read_receipt(text)).collect::<Result<Vec<_>, _>>()?;
    let finished = queues::ack(context.state, context.db, args[1], &receipts, context.now)
        .ok_or(CommandError::WrongType)?;
    Ok(Reply::Integer(finished as i64))
}

fn read_receipt(text: &[u8]) -> Result<Receipt, CommandError> {
    Receipt::parse(text).ok_or_else(|| {
        let shown = text[..text.len().min(SHOWN_BYTES_MAX)].escape_ascii();
        CommandError::other(format!("ERR invalid receipt '{shown}': want <id>:<delivery>"))
    })
}

fn qlen(context: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    let count: fn(&Queue) -> usize = match &args[2..] {
        [] => Queue::ready_count,
        [word] if eq_ignore_case(word, "READY") => Queue::ready_count,
        [word] if eq_ignore_case(word, "LEASED") => Queue::leased_count,
        [word] if eq_ignore_case(word, "ALL") => Queue::len,
        // Nothing delays or buries messages in this version.
        [word] if eq_ignore_case(word, "DELAYED") || eq_ignore_case(word, "DEAD") => |_| 0,
        _ => return Err(CommandError::Syntax),
    };
    let queue = queues::queue_at(context.state, context.db, args[1]).ok_or(CommandError::WrongType)?;
    Ok(Reply::Integer(queue.map_or(0, count) as i64))
}

/// The error for a word that is no option of this version.
fn refuse_option(verb: &str, later: &[&str], word: &[u8]) -> CommandError {
    match later.iter().find(|option| eq_ignore_case(word, option)) {
        Some(option) => {
            CommandError::other(format!("ERR {verb} option {option} is not supported by this version"))
        }
        None => CommandError::Syntax,
    }
}

/// The queue verbs.
pub static ROWS: &[CommandSpec] = &[
    CommandSpec {
        name: "qpush",
        syntax: "QPUSH queue payload",
        group: Group::Queues,
        since: "0.1.0",
        summary: "Appends a message to a queue, which is created on first use, and returns the message's id.",
        complexity: "O(log(N)) with N being the number of messages in the queue",
        arity: -3,
        flags: Flags::WRITE.and(Flags::DENYOOM).and(Flags::FAST),
        keys: KeySpec::one(1),
        acl: Categories::QUEUE,
        execute: Execute::Write(qpush),
        subcommands: &[],
    },
    CommandSpec {
        name: "qpop",
        syntax: "QPOP [COUNT count] [LEASE milliseconds | NOACK] FROM queue [queue ...]",
        group: Group::Queues,
        since: "0.1.0",
        summary: "Hands out ready messages and hides them from others until they are acknowledged or their lease ends.",
        complexity: "O(Q+M*log(N)) with Q queues, M messages handed out and N messages in a queue",
        arity: -3,
        flags: Flags::WRITE.and(Flags::MOVABLE_KEYS),
        keys: KeySpec::Keyword("FROM"),
        acl: Categories::QUEUE,
        execute: Execute::Write(qpop),
        subcommands: &[],
    },
    CommandSpec {
        name: "qack",
        syntax: "QACK queue receipt [receipt ...]",
        group: Group::Queues,
        since: "0.1.0",
        summary: "Finishes messages by the receipts of their current hand-out, and returns how many it finished.",
        complexity: "O(M*log(N)) with M receipts and N messages in the queue",
        arity: -3,
        flags: Flags::WRITE.and(Flags::FAST),
        keys: KeySpec::one(1),
        acl: Categories::QUEUE,
        execute: Execute::Write(qack),
        subcommands: &[],
    },
    CommandSpec {
        name: "qlen",
        syntax: "QLEN queue [READY | DELAYED | LEASED | DEAD | ALL]",
        group: Group::Queues,
        since: "0.1.0",
        summary: "Returns how many messages of a queue are in a state, READY by default.",
        complexity: "O(1)",
        arity: -2,
        flags: Flags::READONLY.and(Flags::FAST),
        keys: KeySpec::one(1),
        acl: Categories::QUEUE,
        execute: Execute::Read(qlen),
        subcommands: &[],
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::State;
    use crate::state::notices::Origin;
    use crate::types::ClusterTime;
    use crate::types::LogIndex;
    use crate::types::Term;
    use crate::types::WallMillis;

    /// Runs one command line as the next entry, at this time.
    fn run(state: &mut State, now: u64, line: &str) -> CommandResult {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let spec = ROWS.iter().find(|spec| eq_ignore_case(args[0], spec.name)).unwrap();
        assert!(spec.arity_allows(args.len()), "{line}");
        let (now, wall) = (ClusterTime(now), WallMillis(0));
        state.begin_entry(LogIndex(state.meta().applied.0 + 1), Term(1), now, wall);
        for at in spec.keys.positions(&args) {
            state.expire_touched(0, args[at], now);
        }
        let user = b"default";
        match spec.execute {
            Execute::Write(execute) => {
                let origin = Origin::default();
                let in_transaction = false;
                let mut context =
                    WriteContext { state, db: 0, user, now, wall, origin: &origin, in_transaction };
                execute(&mut context, &args)
            }
            Execute::Read(execute) => execute(&ReadContext { state, db: 0, user, now, wall, seed: 0 }, &args),
            Execute::Session(_) => panic!("queue verbs need the state"),
        }
    }

    fn message(queue: &str, receipt: &str, payload: &str, attempt: i64) -> Reply {
        let attempt = Reply::Integer(attempt);
        Reply::Array(vec![Reply::bulk(queue), Reply::bulk(receipt), Reply::bulk(payload), attempt])
    }

    #[test]
    fn a_first_session_with_a_queue() {
        let mut state = State::new(1);
        for (now, line, reply) in [
            (0, "QPOP FROM jobs", Reply::NullArray),
            (0, "QLEN jobs", Reply::Integer(0)),
            (0, "QPUSH jobs one", Reply::bulk("3-0")),
            (0, "QPUSH jobs two", Reply::bulk("4-0")),
            (0, "QPUSH jobs three", Reply::bulk("5-0")),
            (0, "QLEN jobs", Reply::Integer(3)),
            (0, "QPOP LEASE 1000 FROM jobs", Reply::Array(vec![message("jobs", "3-0:1", "one", 1)])),
            (0, "QLEN jobs leased", Reply::Integer(1)),
            (0, "QLEN jobs READY", Reply::Integer(2)),
            (0, "QLEN jobs all", Reply::Integer(3)),
            (0, "QLEN jobs DELAYED", Reply::Integer(0)),
            (0, "QLEN jobs DEAD", Reply::Integer(0)),
            // The lease ends: the message goes back to its place, ahead of the others.
            (
                1_000,
                "qpop count 2 from jobs",
                Reply::Array(vec![message("jobs", "3-0:2", "one", 2), message("jobs", "4-0:1", "two", 1)]),
            ),
            (1_000, "QACK jobs 3-0:1", Reply::Integer(0)),
            (1_000, "QACK jobs 3-0:2 3-0:2 9-9:1 4-0:1", Reply::Integer(2)),
            (1_000, "QPOP NOACK FROM jobs", Reply::Array(vec![message("jobs", "5-0:1", "three", 1)])),
            (1_000, "QACK jobs 5-0:1", Reply::Integer(0)),
            (1_000, "QLEN jobs ALL", Reply::Integer(0)),
        ] {
            assert_eq!(run(&mut state, now, line), Ok(reply), "{line} at {now}");
        }
        assert!(state.row(0, b"jobs").is_none());
        assert_eq!(state.earliest_deadline(), ClusterTime::NEVER);
    }

    #[test]
    fn queues_are_served_from_left_to_right_until_the_count_is_reached() {
        let mut state = State::new(1);
        for line in ["QPUSH low a", "QPUSH low b", "QPUSH high c"] {
            assert!(run(&mut state, 0, line).is_ok());
        }
        let all = vec![message("high", "3-0:1", "c", 1), message("low", "1-0:1", "a", 1)];
        assert_eq!(run(&mut state, 0, "QPOP COUNT 2 FROM high empty low"), Ok(Reply::Array(all)));
        assert_eq!(run(&mut state, 0, "QLEN low"), Ok(Reply::Integer(1)));
    }

    #[test]
    fn messages_of_one_entry_have_ids_of_their_own() {
        let mut state = State::new(1);
        state.begin_entry(LogIndex(8), Term(1), ClusterTime(0), WallMillis(0));
        for id in ["8-0", "8-1"] {
            let pushed = queues::push(&mut state, 0, b"q", b"p").unwrap();
            assert_eq!(pushed.to_string(), id);
        }
    }

    #[test]
    fn every_wrong_use_has_its_error_and_changes_nothing() {
        let count = "ERR QPOP COUNT must be between 1 and 1000";
        let lease = "ERR QPOP LEASE must be between 100 and 86400000";
        let integer = "ERR value is not an integer or out of range";
        let syntax = "ERR syntax error";
        let wrong_type = "WRONGTYPE Operation against a key holding the wrong kind of value";
        let later = |option: &str| format!("ERR {option} is not supported by this version");
        let receipt = |text: &str| format!("ERR invalid receipt '{text}': want <id>:<delivery>");
        let mut state = State::new(1);
        state.put_string(0, b"s", b"v", None);
        assert_eq!(run(&mut state, 0, "QPUSH q p"), Ok(Reply::bulk("1-0")));
        let before = state.digest();
        for (line, error) in [
            ("QPUSH q p ID x", &*later("QPUSH option ID")),
            ("QPUSH q p priority 3", &later("QPUSH option PRIORITY")),
            ("QPUSH q p DELAY 3", &later("QPUSH option DELAY")),
            ("QPUSH q p EX 3", &later("QPUSH option EX")),
            ("QPUSH q p PX 3", &later("QPUSH option PX")),
            ("QPUSH q p GROUP g", &later("QPUSH option GROUP")),
            ("QPUSH q p MAXLEN 3", &later("QPUSH option MAXLEN")),
            ("QPUSH q p XX", &later("QPUSH option XX")),
            ("QPUSH q p more", syntax),
            ("QPUSH s p", wrong_type),
            ("QPOP COUNT 1", syntax),
            ("QPOP COUNT FROM q", integer),
            ("QPOP NOACK FROM", syntax),
            ("QPOP q q", syntax),
            ("QPOP COUNT 1 COUNT 1 FROM q", syntax),
            ("QPOP LEASE 1000 LEASE 1000 FROM q", syntax),
            ("QPOP NOACK NOACK FROM q", syntax),
            ("QPOP NOACK LEASE 1000 FROM q", syntax),
            ("QPOP COUNT x FROM q", integer),
            ("QPOP COUNT 0 FROM q", count),
            ("QPOP COUNT -1 FROM q", count),
            ("QPOP COUNT 1001 FROM q", count),
            ("QPOP LEASE x FROM q", integer),
            ("QPOP LEASE 99 FROM q", lease),
            ("QPOP LEASE 86400001 FROM q", lease),
            ("QPOP BLOCK 0 FROM q", &later("QPOP option BLOCK")),
            ("QPOP consumer c FROM q", &later("QPOP option CONSUMER")),
            ("QPOP WITHMETA FROM q", &later("QPOP option WITHMETA")),
            ("QPOP FROM q s", wrong_type),
            ("QACK q x", &receipt("x")),
            ("QACK q ", &receipt("")),
            ("QACK q 1-0", &receipt("1-0")),
            ("QACK q 1-0:", &receipt("1-0:")),
            ("QACK q 1-0:01", &receipt("1-0:01")),
            ("QACK q 1:0-1", &receipt("1:0-1")),
            ("QACK q -1-0:1", &receipt("-1-0:1")),
            ("QACK q 1-0:1:2", &receipt("1-0:1:2")),
            ("QACK q 1-0:4294967296", &receipt("1-0:4294967296")),
            ("QACK q 1-4294967296:1", &receipt("1-4294967296:1")),
            ("QACK q 18446744073709551616-0:1", &receipt("18446744073709551616-0:1")),
            ("QACK q 1-0:1 tab\tand\nline", &receipt("tab\\tand\\nline")),
            (&format!("QACK q {}", "7".repeat(1_000)), &receipt(&"7".repeat(64))),
            ("QACK s 1-0:1", wrong_type),
            ("QLEN q SLEEPING", syntax),
            ("QLEN q READY READY", syntax),
            ("QLEN s", wrong_type),
        ] {
            let refusal = run(&mut state, 0, line).map_err(|error| error.to_string());
            assert_eq!(refusal, Err(error.to_owned()), "{line}");
        }
        state.meta.applied = LogIndex(1);
        assert_eq!(state.digest(), before);
    }
}
