//! LOCKS: who holds what, who waits for whom, and how to break what is stuck (COMMANDS.md 2.2).

use crate::commands::error::CommandError;
use crate::commands::keys::scan_keys;
use crate::commands::locks::owner_name;
use crate::commands::locks::token_reply;
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
use crate::commands::spec::container;
use crate::commands::weights::HEADER_BYTES;
use crate::commands::weights::fits;
use crate::resp::Reply;
use crate::resp::arguments::eq_ignore_case;
use crate::resp::arguments::parse_i64;
use crate::state::DEADLOCKS_KEPT;
use crate::state::Object;
use crate::state::Row;
use crate::state::locks;
use crate::state::locks::Hold;
use crate::state::locks::Lock;
use crate::state::locks::Wait;
use crate::state::locks::graph;
use crate::state::locks::graph::shown;
use crate::types::ClusterTime;
use crate::types::glob::matches;

/// Longest REASON, in bytes.
const REASON_BYTES_MAX: usize = 512;
/// Pairs that LOCKS GRAPH shows without LIMIT: nobody reads more, and writes wait while it looks.
const GRAPH_EDGES: usize = 1_000;
/// And at most.
const GRAPH_EDGES_MAX: usize = 10_000;
const GRAPH_SYNTAX: &str = "ERR syntax error: LOCKS GRAPH takes FORMAT LIST or FORMAT DOT, and LIMIT limit";

const HELP: &[&str] = &[
    "LOCKS <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "LIST <cursor> [MATCH <pattern>] [OWNER <owner>] [COUNT <count>]",
    "    Iterate over the locks that somebody holds or waits for.",
    "INFO <key>",
    "    Return who holds a lock, for how long, and who waits for it.",
    "GRAPH [FORMAT LIST|DOT] [LIMIT <limit>]",
    "    Return who waits for whom, with the log index as of which it is so. There is a third",
    "    element, the word more, when there are more pairs than LIMIT: 1000, or up to 10000.",
    "DEADLOCKS [COUNT <count>]",
    "    Return the last deadlocks, the newest first.",
    "RELEASE <owner>",
    "    Cancel the waits of an owner and release its locks, 10000 of both at most, and return how",
    "    many: 0 when none are left.",
    "KILL <key> [OWNER <owner>] [REASON <text>]",
    "    Break the holds of a lock, and end the delay after one. Tokens are void from then on.",
    "HELP",
    "    Print this help.",
];

fn help(_: &ReadContext<'_>, _: Args<'_>) -> CommandResult {
    Ok(Reply::Array(HELP.iter().map(|line| Reply::simple(line)).collect()))
}

fn millis(value: u64) -> Reply {
    Reply::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

fn list(context: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    let (mut pattern, mut owner, mut count) = (None, None, 10);
    for pair in args[3..].chunks(2) {
        match pair {
            [word, value] if eq_ignore_case(word, "MATCH") => pattern = Some(*value),
            [word, value] if eq_ignore_case(word, "OWNER") => owner = Some(*value),
            [word, value] if eq_ignore_case(word, "COUNT") => {
                let number = parse_i64(value).ok_or(CommandError::NotAnInteger)?;
                count =
                    usize::try_from(number).ok().filter(|count| *count > 0).ok_or(CommandError::Syntax)?;
            }
            _ => {
                return Err(CommandError::other("ERR syntax error: LOCKS LIST takes MATCH, OWNER and COUNT"));
            }
        }
    }
    let is_owners = |lock: &Lock| {
        let waits = |id| context.state.waits().get(id).map(|wait| &wait.owner);
        let owners = lock.holds().iter().map(Hold::owner).chain(lock.waiters().filter_map(waits));
        owner.is_none_or(|owner| owners.into_iter().any(|known| *known.owner == *owner))
    };
    let wanted = |row: &Row| match row.object() {
        Object::Lock(lock) => {
            pattern.is_none_or(|pattern| matches(pattern, row.key(), false)) && is_owners(lock)
        }
        Object::String | Object::Queue(_) => false,
    };
    scan_keys(context, args[2], count, wanted)
}

fn info(context: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    let lock = locks::lock_at(context.state, context.db, args[2]).ok_or(CommandError::WrongType)?;
    let Some(lock) = lock else { return Ok(Reply::Null) };
    let age = |since: ClusterTime| millis(since.until(context.now).0);
    let holder = |hold: &Hold| {
        Reply::Array(vec![
            Reply::bulk(&hold.owner().owner),
            token_reply(hold.token()),
            millis(context.now.until(hold.lease_until()).0),
            Reply::bulk(&hold.owner().user),
            Reply::bulk(hold.origin().address.as_bytes()),
            age(hold.since()),
        ])
    };
    let waiter = |wait: &Wait| {
        let address = wait.claims().next_back().map_or(&b""[..], |claim| claim.origin.address.as_bytes());
        Reply::Array(vec![
            Reply::bulk(&wait.owner.owner),
            Reply::bulk(wait.wanted.mode.name()),
            age(wait.since),
            Reply::bulk(address),
        ])
    };
    let mode = match lock.holds().is_empty() {
        true if lock.delayed_until() > context.now => "delayed",
        true => "free",
        false => lock.mode().name(),
    };
    let waiters = lock.waiters().filter_map(|id| context.state.waits().get(id)).map(waiter);
    let data = lock.holds().iter().find_map(Hold::data);
    let (grants, expiries) = lock.counts();
    Ok(Reply::Map(vec![
        (Reply::bulk("mode"), Reply::bulk(mode)),
        (Reply::bulk("limit"), Reply::integer(lock.limit())),
        (Reply::bulk("holders"), Reply::Array(lock.holds().iter().map(holder).collect())),
        (Reply::bulk("waiters"), Reply::Array(waiters.collect())),
        (Reply::bulk("grants"), millis(grants)),
        (Reply::bulk("expiries"), millis(expiries)),
        (Reply::bulk("delay_ms"), millis(context.now.until(lock.delayed_until()).0)),
        (Reply::bulk("data"), data.map_or(Reply::Null, Reply::bulk)),
    ]))
}

fn graph(context: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    let (mut form, mut limit) = (None, None);
    for pair in args[2..].chunks(2) {
        match pair {
            [word, value] if eq_ignore_case(word, "FORMAT") && form.is_none() => form = Some(*value),
            [word, value] if eq_ignore_case(word, "LIMIT") && limit.is_none() => limit = Some(*value),
            _ => return Err(CommandError::other(GRAPH_SYNTAX)),
        }
    }
    let is_dot = match form {
        None => false,
        Some(form) if eq_ignore_case(form, "LIST") => false,
        Some(form) if eq_ignore_case(form, "DOT") => true,
        Some(_) => return Err(CommandError::other(GRAPH_SYNTAX)),
    };
    let most = match limit {
        None => GRAPH_EDGES,
        Some(limit) => {
            let number = parse_i64(limit).ok_or(CommandError::NotAnInteger)?;
            let in_range = usize::try_from(number).ok().filter(|limit| (1..=GRAPH_EDGES_MAX).contains(limit));
            let text = || CommandError::other(format!("ERR LIMIT must be between 1 and {GRAPH_EDGES_MAX}"));
            in_range.ok_or_else(text)?
        }
    };
    let index = context.state.meta().applied.0;
    let (mut edges, mut bytes): (Vec<graph::Edge>, usize) = (Vec::new(), 0);
    for edge in graph::edges(context.state).take(most + 1) {
        let names = [&edge.waiter.owner, &edge.key, &edge.holder.owner];
        bytes += names.iter().map(|name| name.len() + HEADER_BYTES).sum::<usize>();
        fits(bytes, context.bounds)?;
        edges.push(edge);
    }
    let is_cut = edges.len() > most;
    edges.truncate(most);
    if is_dot {
        let mut text = format!("// log index {index}\ndigraph locks {{\n");
        for edge in edges {
            let style = if edge.is_held { "" } else { ", style=dashed" };
            let [waiter, key, holder] =
                [&edge.waiter.owner, &edge.key, &edge.holder.owner].map(|name| shown(name));
            text.push_str(&format!("  \"{waiter}\" -> \"{holder}\" [label=\"{key}\"{style}];\n"));
        }
        if is_cut {
            text.push_str("  // more\n");
        }
        return Ok(Reply::Verbatim("txt", text + "}\n"));
    }
    let edge = |edge: graph::Edge| {
        let names = [&edge.waiter.owner, &edge.key, &edge.holder.owner];
        Reply::Array(names.into_iter().map(Reply::bulk).collect())
    };
    let mut reply = vec![millis(index), Reply::Array(edges.into_iter().map(edge).collect())];
    reply.extend(is_cut.then(|| Reply::bulk("more")));
    Ok(Reply::Array(reply))
}

fn deadlocks(context: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    let count = match &args[2..] {
        [] => DEADLOCKS_KEPT,
        [word, count] if eq_ignore_case(word, "COUNT") => {
            let number = parse_i64(count).ok_or(CommandError::NotAnInteger)?;
            let in_range = usize::try_from(number).ok().filter(|count| (1..=DEADLOCKS_KEPT).contains(count));
            let text = || CommandError::other(format!("ERR COUNT must be between 1 and {DEADLOCKS_KEPT}"));
            in_range.ok_or_else(text)?
        }
        _ => return Err(CommandError::other("ERR syntax error: LOCKS DEADLOCKS takes COUNT count")),
    };
    let deadlock = |known: &crate::state::DeadlockRecord| {
        Reply::Map(vec![
            (Reply::bulk("index"), millis(known.index.0)),
            (Reply::bulk("age_ms"), millis(known.at.until(context.now).0)),
            (Reply::bulk("victim"), Reply::bulk(&known.victim)),
            (Reply::bulk("cycle"), Reply::bulk(known.cycle())),
        ])
    };
    Ok(Reply::Array(context.state.deadlocks().rev().take(count).map(deadlock).collect()))
}

fn release(context: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let owner = owner_name(context.user, args[2])?;
    Ok(millis(locks::release_all(context.state, context.db, &owner, context.now) as u64))
}

fn kill(context: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let (mut owner, mut reason) = (None, None);
    for pair in args[3..].chunks(2) {
        match pair {
            [word, value] if eq_ignore_case(word, "OWNER") && owner.is_none() => owner = Some(*value),
            [word, value] if eq_ignore_case(word, "REASON") && reason.is_none() => reason = Some(*value),
            _ => {
                return Err(CommandError::other(
                    "ERR syntax error: LOCKS KILL takes OWNER owner and REASON text",
                ));
            }
        }
    }
    if reason.is_some_and(|reason| reason.len() > REASON_BYTES_MAX) {
        let text = format!("ERR REASON must be at most {REASON_BYTES_MAX} bytes long");
        return Err(CommandError::other(text));
    }
    let broken = locks::kill(context.state, context.db, args[2], owner, context.now);
    Ok(millis(broken.ok_or(CommandError::WrongType)? as u64))
}

const fn sub(
    name: &'static str,
    syntax: &'static str,
    summary: &'static str,
    arity: i32,
    flags: Flags,
    execute: Execute,
) -> CommandSpec {
    CommandSpec {
        name,
        syntax,
        group: Group::Locks,
        since: "0.1.0",
        summary,
        complexity: "O(N) with N being the number of locks looked at",
        arity,
        flags,
        keys: KeySpec::None,
        acl: Categories::LOCK,
        execute,
        subcommands: &[],
    }
}

/// LOCKS.
pub static ROWS: &[CommandSpec] = &[CommandSpec {
    name: "locks",
    syntax: "LOCKS",
    group: Group::Locks,
    since: "0.1.0",
    summary: "A container for commands that look at locks and break them.",
    complexity: "Depends on subcommand.",
    arity: -2,
    flags: Flags::NONE,
    keys: KeySpec::None,
    acl: Categories::LOCK,
    execute: Execute::Read(container),
    subcommands: &[
        sub(
            "list",
            "LOCKS LIST cursor [MATCH pattern] [OWNER owner] [COUNT count]",
            "Iterates over the locks of this database that somebody holds or waits for.",
            -3,
            Flags::READONLY.and(Flags::WALKS),
            Execute::Read(list),
        ),
        CommandSpec {
            keys: KeySpec::one(2),
            ..sub(
                "info",
                "LOCKS INFO key",
                "Returns who holds a lock, for how long, and who waits for it; null if it is free.",
                3,
                Flags::READONLY.and(Flags::WALKS),
                Execute::Read(info),
            )
        },
        sub(
            "graph",
            "LOCKS GRAPH [FORMAT LIST | FORMAT DOT] [LIMIT limit]",
            "Returns the log index and the wait-for graph: who waits for whom because of which key, 1000 pairs or as many as LIMIT says, and the word more when there are others.",
            -2,
            Flags::READONLY.and(Flags::WALKS),
            Execute::Read(graph),
        ),
        sub(
            "deadlocks",
            "LOCKS DEADLOCKS [COUNT count]",
            "Returns the last deadlocks that were resolved, the newest first.",
            -2,
            Flags::READONLY,
            Execute::Read(deadlocks),
        ),
        sub(
            "release",
            "LOCKS RELEASE owner",
            "Cancels an owner's waits in this database, releases its locks, and returns how many of both, 10000 at most; 0 when none are left.",
            3,
            Flags::WRITE.and(Flags::WALKS),
            Execute::Write(release),
        ),
        CommandSpec {
            keys: KeySpec::one(2),
            acl: Categories::LOCK.and(Categories::ADMIN).and(Categories::DANGEROUS),
            ..sub(
                "kill",
                "LOCKS KILL key [OWNER owner] [REASON text]",
                "Breaks the holds of a lock, whose tokens are void from then on, and returns how many; ends its GRACE delay too, \
                 which alone counts as one.",
                -3,
                Flags::WRITE.and(Flags::ADMIN).and(Flags::WALKS),
                Execute::Write(kill),
            )
        },
        sub(
            "help",
            "LOCKS HELP",
            "Returns helpful text about the subcommands.",
            2,
            Flags::READONLY,
            Execute::Read(help),
        ),
    ],
}];
