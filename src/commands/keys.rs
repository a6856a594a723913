//! Keys of any type: names, lifetimes, copies, iteration, inspection, with Redis's semantics and texts.
//!
//! Locks and queues are keys like others to whoever looks, and closed to whoever changes: only their own
//! verbs may (COMMANDS.md 2.0). The number of words of every command was checked against its row before
//! it runs here, and a due key that it names was expired; only commands that walk over keys must pass by
//! those that are due themselves.

use smallvec::SmallVec;

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
use crate::commands::strings::TimeForm;
use crate::commands::strings::deadline_in;
use crate::commands::strings::refuse_lock_or_queue;
use crate::commands::strings::wall_millis;
use crate::commands::weights::Bulks;
use crate::resp::Reply;
use crate::resp::arguments::eq_ignore_case;
use crate::resp::arguments::parse_i64;
use crate::state::DbIndex;
use crate::state::Form;
use crate::state::Keyspace;
use crate::state::Object;
use crate::state::PARTS;
use crate::state::Row;
use crate::state::State;
use crate::types::ClusterTime;
use crate::types::glob;

const SAME_OBJECT: &str = "ERR source and destination objects are the same";

/// Longest string that Redis keeps beside its header ("embstr").
const EMBEDDED_BYTES: usize = 44;

fn integer(count: usize) -> Reply {
    Reply::Integer(i64::try_from(count).unwrap_or(i64::MAX))
}

// ---- deleting -----------------------------------------------------------------------------------------

fn del(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let keys = &args[1..];
    keys.iter().try_for_each(|key| refuse_lock_or_queue(ctx.state, ctx.db, key))?;
    let deleted = keys.iter().filter(|key| ctx.state.remove(ctx.db, key)).count();
    Ok(integer(deleted))
}

fn delex(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let key = args[1];
    let wanted_equal = match args[2..] {
        [] => return del(ctx, args),
        [option, _] if eq_ignore_case(option, "IFEQ") => true,
        [option, _] if eq_ignore_case(option, "IFNE") => false,
        _ => return Err(CommandError::Syntax),
    };
    refuse_lock_or_queue(ctx.state, ctx.db, key)?;
    let value = ctx.state.row(ctx.db, key).and_then(Row::as_string);
    let holds = value.is_some_and(|value| (value == args[3]) == wanted_equal);
    if holds {
        ctx.state.remove(ctx.db, key);
    }
    Ok(Reply::Integer(i64::from(holds)))
}

/// FLUSHDB and FLUSHALL take ASYNC and SYNC and do the same for both.
fn check_flush_option(args: Args<'_>) -> Result<(), CommandError> {
    match args[1..] {
        [] => Ok(()),
        [option] if eq_ignore_case(option, "ASYNC") || eq_ignore_case(option, "SYNC") => Ok(()),
        _ => Err(CommandError::Syntax),
    }
}

fn flushdb(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    check_flush_option(args)?;
    ctx.state.flush_database(ctx.db);
    Ok(Reply::Ok)
}

fn flushall(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    check_flush_option(args)?;
    for db in 0..ctx.state.databases() {
        let db = DbIndex::try_from(db).expect("there are at most 255 databases");
        if !ctx.state.database(db).is_empty() {
            ctx.state.flush_database(db);
        }
    }
    Ok(Reply::Ok)
}

// ---- looking ------------------------------------------------------------------------------------------

/// EXISTS and TOUCH: how many of the keys exist; one that is named twice counts twice.
fn exists(ctx: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    Ok(integer(args[1..].iter().filter(|key| ctx.state.row(ctx.db, key).is_some()).count()))
}

fn type_of(ctx: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    let row = ctx.state.row(ctx.db, args[1]);
    Ok(Reply::simple(row.map_or("none", |row| row.object().type_name())))
}

fn dbsize(ctx: &ReadContext<'_>, _args: Args<'_>) -> CommandResult {
    Ok(integer(ctx.state.database(ctx.db).len()))
}

/// Rows of one part of a database in the order of their keys.
///
/// A hash table's own order depends on what it held before, so it differs between replicas of which one was restarted.
/// In a transaction these commands run inside apply, and what they answer is remembered in the session: part of what
/// replicas must agree on.
fn rows_of_part(space: &Keyspace, part: usize, wanted: impl Fn(&Row) -> bool) -> SmallVec<[&Row; 16]> {
    let mut rows: SmallVec<[&Row; 16]> = space.part(part).filter(|row| wanted(row)).collect();
    rows.sort_unstable_by(|a, b| a.key().cmp(b.key()));
    rows
}

fn keys(ctx: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    let key_now = ctx.state.key_now(ctx.now);
    let wanted = |row: &Row| row.deadline().is_none_or(|at| at > key_now) && matches(args[1], row.key());
    let space = ctx.state.database(ctx.db);
    let mut found = Bulks::within(ctx.bounds);
    for part in 0..PARTS {
        rows_of_part(space, part, wanted).iter().try_for_each(|row| found.push(row.key()))?;
    }
    Ok(found.into_reply())
}

/// Below this many keys RANDOMKEY counts them, so that each is as likely as the others.
const COUNTED_KEYS_MAX: usize = 4096;
/// How often RANDOMKEY looks into a part of a large database before it takes the next key there is.
const RANDOM_LOOKS: u32 = 100;

fn randomkey(ctx: &ReadContext<'_>, _args: Args<'_>) -> CommandResult {
    let key_now = ctx.state.key_now(ctx.now);
    let is_alive = |row: &Row| row.deadline().is_none_or(|at| at > key_now);
    let space = ctx.state.database(ctx.db);
    let mut seed = ctx.seed;
    let mut below = |bound: usize| {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(seed) as usize % bound
    };
    let key = if space.len() < COUNTED_KEYS_MAX {
        let count = space.iter().filter(|row| is_alive(row)).count();
        let all = || (0..PARTS).flat_map(|part| rows_of_part(space, part, is_alive));
        (count > 0).then(|| all().nth(below(count))).flatten()
    } else {
        // Parts are not equally full. A look takes the row at a random place of a random part, and nothing where the
        // part ends before: so every row is as likely as any other. Hardly a part has more rows than places.
        let mean = space.len() as f64 / PARTS as f64;
        let places = (mean + 5.0 * mean.sqrt()) as usize + 4;
        let look = |part: usize, place: usize| rows_of_part(space, part, |_| true).get(place).copied();
        let looked =
            (0..RANDOM_LOOKS).find_map(|_| look(below(PARTS), below(places)).filter(|row| is_alive(row)));
        looked.or_else(|| {
            let start = below(PARTS);
            let mut parts = (start..PARTS).chain(0..start);
            parts.find_map(|part| rows_of_part(space, part, is_alive).first().copied())
        })
    };
    Ok(key.map_or(Reply::Null, |row| Reply::bulk(row.key())))
}

/// SplitMix64's last step: every bit of the seed touches every bit of the number.
fn mixed(seed: u64) -> u64 {
    let once = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let twice = (once ^ (once >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    twice ^ (twice >> 31)
}

/// What SCAN was asked for.
struct Scan<'a> {
    cursor: usize,
    pattern: Option<&'a [u8]>,
    type_name: Option<&'a [u8]>,
    count: usize,
}

fn parse_scan<'a>(args: Args<'a>) -> Result<Scan<'a>, CommandError> {
    let cursor = parse_cursor(args[1]).ok_or(CommandError::other("ERR invalid cursor"))?;
    // There is nothing behind the last part: the walk is over.
    let cursor = usize::try_from(cursor).unwrap_or(PARTS);
    let mut scan = Scan { cursor, pattern: None, type_name: None, count: 10 };
    for pair in args[2..].chunks(2) {
        let [option, value] = *pair else { return Err(CommandError::Syntax) };
        if eq_ignore_case(option, "COUNT") {
            let count = parse_i64(value).ok_or(CommandError::NotAnInteger)?;
            scan.count =
                usize::try_from(count).ok().filter(|count| *count > 0).ok_or(CommandError::Syntax)?;
        } else if eq_ignore_case(option, "MATCH") {
            scan.pattern = Some(value);
        } else if eq_ignore_case(option, "TYPE") {
            scan.type_name = Some(value);
        } else {
            return Err(CommandError::Syntax);
        }
    }
    Ok(scan)
}

/// Reads a cursor as Redis does, with C's `strtoul`: a sign may stand before it, a negative number counts down from
/// 2^64, and no word at all is 0. `None` for anything else, and for what is out of range.
fn parse_cursor(word: &[u8]) -> Option<u64> {
    let (is_negative, digits) = match word {
        [] => return Some(0),
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(if is_negative { number.wrapping_neg() } else { number })
}

/// The cursor is the number of the part to begin with. A key never changes its part, so one that is there
/// from the first call to the last is returned, and returned once.
fn scan(ctx: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    let scan = parse_scan(args)?;
    let key_now = ctx.state.key_now(ctx.now);
    let wanted = |row: &Row| {
        row.deadline().is_none_or(|at| at > key_now)
            && scan.pattern.is_none_or(|pattern| matches(pattern, row.key()))
            && scan.type_name.is_none_or(|name| eq_ignore_case(name, row.object().type_name()))
    };
    walk(ctx, scan.cursor, scan.count, wanted)
}

/// SCAN's walk over the keys of other families: those that are wanted, from a cursor on.
pub(super) fn scan_keys(
    ctx: &ReadContext<'_>,
    cursor: &[u8],
    count: usize,
    wanted: impl Fn(&Row) -> bool,
) -> CommandResult {
    let cursor = parse_cursor(cursor).ok_or(CommandError::other("ERR invalid cursor"))?;
    walk(ctx, usize::try_from(cursor).unwrap_or(PARTS), count, wanted)
}

fn walk(ctx: &ReadContext<'_>, cursor: usize, count: usize, wanted: impl Fn(&Row) -> bool) -> CommandResult {
    let space = ctx.state.database(ctx.db);
    let (mut found, mut seen, mut part) = (Bulks::within(ctx.bounds), 0, cursor);
    while part < PARTS && seen < count {
        seen += space.part(part).count();
        rows_of_part(space, part, &wanted).iter().try_for_each(|row| found.push(row.key()))?;
        part += 1;
    }
    let next = if part < PARTS { part } else { 0 };
    Ok(Reply::Array(vec![Reply::text(next.to_string()), found.into_reply()]))
}

// ---- lifetimes ----------------------------------------------------------------------------------------

/// When EXPIRE and its relatives apply.
#[derive(Debug, Default, Clone, Copy)]
struct ExpireOptions {
    nx: bool,
    xx: bool,
    gt: bool,
    lt: bool,
}

fn parse_expire_options(words: Args<'_>) -> Result<ExpireOptions, CommandError> {
    let mut options = ExpireOptions::default();
    for word in words {
        let flag = [
            ("NX", &mut options.nx),
            ("XX", &mut options.xx),
            ("GT", &mut options.gt),
            ("LT", &mut options.lt),
        ]
        .into_iter()
        .find_map(|(name, flag)| eq_ignore_case(word, name).then_some(flag));
        let Some(flag) = flag else {
            let text = format!("ERR Unsupported option {}", String::from_utf8_lossy(word));
            return Err(CommandError::other(text));
        };
        *flag = true;
    }
    if options.nx && (options.xx || options.gt || options.lt) {
        return Err(CommandError::other(
            "ERR NX and XX, GT or LT options at the same time are not compatible",
        ));
    }
    if options.gt && options.lt {
        return Err(CommandError::other("ERR GT and LT options at the same time are not compatible"));
    }
    Ok(options)
}

fn expire(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    set_lifetime(ctx, args, "expire", TimeForm::Seconds)
}

fn pexpire(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    set_lifetime(ctx, args, "pexpire", TimeForm::Milliseconds)
}

fn expireat(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    set_lifetime(ctx, args, "expireat", TimeForm::UnixSeconds)
}

fn pexpireat(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    set_lifetime(ctx, args, "pexpireat", TimeForm::UnixMilliseconds)
}

fn set_lifetime(
    ctx: &mut WriteContext<'_>,
    args: Args<'_>,
    command: &'static str,
    form: TimeForm,
) -> CommandResult {
    let (db, key) = (ctx.db, args[1]);
    let options = parse_expire_options(&args[3..])?;
    let given = parse_i64(args[2]).ok_or(CommandError::NotAnInteger)?;
    let invalid = CommandError::InvalidExpire(command);
    let millis = if form.is_seconds() { given.checked_mul(1000) } else { Some(given) };
    let millis = millis.ok_or(invalid.clone())?;
    let wall = wall_millis(ctx.wall);
    // Negative times are legal and delete the key.
    let remaining = if form.is_unix() {
        millis.saturating_sub(wall)
    } else if millis > i64::MAX - wall {
        return Err(invalid);
    } else {
        millis
    };
    refuse_lock_or_queue(ctx.state, db, key)?;
    let Some(row) = ctx.state.row(db, key) else { return Ok(Reply::Integer(0)) };
    let current = row.deadline().map(|deadline| remaining_until(ctx.state, ctx.now, deadline));
    let refused = match current {
        None => options.xx || options.gt, // Without a deadline a key lives for ever, which is longest.
        Some(current) => {
            options.nx || (options.gt && remaining <= current) || (options.lt && remaining >= current)
        }
    };
    if refused {
        return Ok(Reply::Integer(0));
    }
    if remaining <= 0 {
        ctx.state.remove(db, key);
    } else {
        let deadline = deadline_in(ctx.state, ctx.now, remaining);
        ctx.state.set_deadline(db, key, Some(deadline));
    }
    Ok(Reply::Integer(1))
}

fn remaining_until(state: &State, now: ClusterTime, deadline: ClusterTime) -> i64 {
    i64::try_from(state.key_now(now).until(deadline).0).unwrap_or(i64::MAX)
}

fn persist(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    refuse_lock_or_queue(ctx.state, ctx.db, args[1])?;
    let ends = ctx.state.row(ctx.db, args[1]).is_some_and(|row| row.deadline().is_some());
    if ends {
        ctx.state.set_deadline(ctx.db, args[1], None);
    }
    Ok(Reply::Integer(i64::from(ends)))
}

/// The milliseconds a key has left, or what TTL and its relatives answer without: -2 for no key, -1 for no
/// deadline.
fn time_left(ctx: &ReadContext<'_>, key: &[u8]) -> Result<i64, Reply> {
    let row = ctx.state.row(ctx.db, key).ok_or(Reply::Integer(-2))?;
    let deadline = row.deadline().ok_or(Reply::Integer(-1))?;
    Ok(remaining_until(ctx.state, ctx.now, deadline))
}

fn rounded_seconds(millis: i64) -> i64 {
    millis.saturating_add(500) / 1000
}

fn ttl(ctx: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    Ok(time_left(ctx, args[1]).map_or_else(|absent| absent, |left| Reply::Integer(rounded_seconds(left))))
}

fn pttl(ctx: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    Ok(time_left(ctx, args[1]).map_or_else(|absent| absent, Reply::Integer))
}

/// EXPIRETIME and PEXPIRETIME are estimates: deadlines run on the cluster clock, not on the wall clock.
fn expiretime(ctx: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    let at = |left: i64| Reply::Integer(rounded_seconds(wall_millis(ctx.wall).saturating_add(left)));
    Ok(time_left(ctx, args[1]).map_or_else(|absent| absent, at))
}

fn pexpiretime(ctx: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    let at = |left: i64| Reply::Integer(wall_millis(ctx.wall).saturating_add(left));
    Ok(time_left(ctx, args[1]).map_or_else(|absent| absent, at))
}

// ---- names and copies ---------------------------------------------------------------------------------

/// Checks both names of RENAME and its relatives.
fn refuse_both(ctx: &WriteContext<'_>, from: &[u8], to_db: DbIndex, to: &[u8]) -> Result<(), CommandError> {
    refuse_lock_or_queue(ctx.state, ctx.db, from)?;
    refuse_lock_or_queue(ctx.state, to_db, to)
}

fn rename(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let (from, to) = (args[1], args[2]);
    refuse_both(ctx, from, ctx.db, to)?;
    if ctx.state.row(ctx.db, from).is_none() {
        return Err(CommandError::NoSuchKey);
    }
    if from != to {
        ctx.state.rename(ctx.db, from, to);
    }
    Ok(Reply::Ok)
}

fn renamenx(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let (from, to) = (args[1], args[2]);
    refuse_both(ctx, from, ctx.db, to)?;
    if ctx.state.row(ctx.db, from).is_none() {
        return Err(CommandError::NoSuchKey);
    }
    let free = ctx.state.row(ctx.db, to).is_none();
    if free {
        ctx.state.rename(ctx.db, from, to);
    }
    Ok(Reply::Integer(i64::from(free)))
}

/// A database number among a command's words.
fn parse_db(state: &State, word: &[u8]) -> Result<DbIndex, CommandError> {
    let number = parse_i64(word).ok_or(CommandError::NotAnInteger)?;
    if i32::try_from(number).is_err() {
        return Err(CommandError::other(
            "ERR value is out of range, value must between -2147483648 and 2147483647",
        ));
    }
    let db = DbIndex::try_from(number).ok().filter(|db| usize::from(*db) < state.databases());
    db.ok_or(CommandError::DbOutOfRange)
}

fn copy(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let (from, to) = (args[1], args[2]);
    let (mut to_db, mut replace) = (ctx.db, false);
    let mut words = args[3..].iter();
    while let Some(word) = words.next() {
        if eq_ignore_case(word, "REPLACE") {
            replace = true;
        } else if eq_ignore_case(word, "DB") {
            to_db = parse_db(ctx.state, words.next().ok_or(CommandError::Syntax)?)?;
        } else {
            return Err(CommandError::Syntax);
        }
    }
    if to_db == ctx.db && from == to {
        return Err(CommandError::other(SAME_OBJECT));
    }
    ctx.state.expire_touched(to_db, to, ctx.now);
    refuse_both(ctx, from, to_db, to)?;
    let copied = (replace || ctx.state.row(to_db, to).is_none()) && ctx.state.copy(ctx.db, from, to_db, to);
    Ok(Reply::Integer(i64::from(copied)))
}

fn move_key(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let key = args[1];
    let to_db = parse_db(ctx.state, args[2])?;
    if to_db == ctx.db {
        return Err(CommandError::other(SAME_OBJECT));
    }
    ctx.state.expire_touched(to_db, key, ctx.now);
    refuse_both(ctx, key, to_db, key)?;
    let moved = ctx.state.row(to_db, key).is_none() && ctx.state.copy(ctx.db, key, to_db, key);
    if moved {
        ctx.state.remove(ctx.db, key);
    }
    Ok(Reply::Integer(i64::from(moved)))
}

// ---- containers ---------------------------------------------------------------------------------------

/// The row of a container's subcommand, with its number of words checked. `container` is in lower case.
fn subcommand<'a>(
    container: &str,
    rows: &'a [CommandSpec],
    args: Args<'_>,
) -> Result<&'a CommandSpec, CommandError> {
    let word = args[1];
    let Some(row) = rows.iter().find(|row| eq_ignore_case(word, row.name)) else {
        let text = format!(
            "ERR unknown subcommand '{}'. Try {} HELP.",
            String::from_utf8_lossy(&word[..word.len().min(128)]),
            container.to_ascii_uppercase(),
        );
        return Err(CommandError::other(text));
    };
    if !row.arity_allows(args.len()) {
        return Err(CommandError::WrongArity(format!("{container}|{}", row.name)));
    }
    Ok(row)
}

fn help(lines: &'static [&'static str]) -> Reply {
    Reply::Array(lines.iter().map(|line| Reply::simple(line)).collect())
}

const OBJECT_HELP: &[&str] = &[
    "OBJECT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "ENCODING <key>",
    "    Return the kind of internal representation used in order to store the value",
    "    associated with a <key>.",
    "FREQ <key>",
    "    Return the access frequency index of the <key>. Keys carry none in this version.",
    "IDLETIME <key>",
    "    Return the idle time of the <key> in seconds. Reads are not recorded in this",
    "    version: always 0.",
    "REFCOUNT <key>",
    "    Return the number of references of the value associated with the specified",
    "    <key>.",
    "HELP",
    "    Prints this help.",
];

fn object(ctx: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    let wanted = subcommand("object", OBJECT_SUBCOMMANDS, args)?.name;
    if wanted == "help" {
        return Ok(help(OBJECT_HELP));
    }
    let Some(row) = ctx.state.row(ctx.db, args[2]) else { return Ok(Reply::Null) };
    match wanted {
        "encoding" => Ok(Reply::bulk(encoding(row))),
        "refcount" => Ok(Reply::Integer(references(row))),
        "idletime" => Ok(Reply::Integer(0)),
        _ => Err(CommandError::other(
            "ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please note that \
             when switching between policies at runtime LRU and LFU data will take some time to adjust.",
        )),
    }
}

/// Redis keeps one object for each of the small integers, and says of it that it has the most references there can be.
fn references(row: &Row) -> i64 {
    const SHARED_INTEGERS: std::ops::Range<i64> = 0..10_000;
    let number = row.as_string().filter(|_| row.form() == Form::Value).and_then(parse_i64);
    if number.is_some_and(|number| SHARED_INTEGERS.contains(&number)) { i64::from(i32::MAX) } else { 1 }
}

/// What Redis would call the way a value is kept.
fn encoding(row: &Row) -> &'static str {
    match (row.object(), row.as_string()) {
        (Object::Lock(_) | Object::Queue(_), _) => row.object().type_name(),
        (Object::String, _) if row.form() == Form::Changed => "raw",
        (Object::String, Some(value)) if row.form() == Form::Value && parse_i64(value).is_some() => "int",
        (Object::String, Some(value)) if value.len() <= EMBEDDED_BYTES => "embstr",
        (Object::String, _) => "raw",
    }
}

const MEMORY_HELP: &[&str] = &[
    "MEMORY <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "DOCTOR",
    "    Return memory problems reports.",
    "STATS",
    "    Return information about the memory usage of the keyspace.",
    "USAGE <key> [SAMPLES <count>]",
    "    Return memory in bytes used by <key> and its value. All of it is counted,",
    "    whatever <count> says.",
    "HELP",
    "    Prints this help.",
];

fn memory(ctx: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    match subcommand("memory", MEMORY_SUBCOMMANDS, args)?.name {
        "usage" => memory_usage(ctx, args),
        "stats" => Ok(memory_stats(ctx.state)),
        "doctor" => {
            let text = "No memory problems were found: keys and values are all that grows.";
            Ok(Reply::Verbatim("txt", text.to_owned()))
        }
        _ => Ok(help(MEMORY_HELP)),
    }
}

fn memory_usage(ctx: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    for pair in args[3..].chunks(2) {
        match *pair {
            [option, samples] if eq_ignore_case(option, "SAMPLES") => {
                if parse_i64(samples).ok_or(CommandError::NotAnInteger)? < 0 {
                    return Err(CommandError::Syntax);
                }
            }
            _ => return Err(CommandError::Syntax),
        }
    }
    let Some(row) = ctx.state.row(ctx.db, args[2]) else { return Ok(Reply::Null) };
    // The room behind a string is left out: it depends on how the string came to be, and replicas must agree on what
    // a transaction answers.
    let bytes = match row.as_string() {
        Some(value) => size_of::<Row>() + row.key().len() + value.len(),
        None => row.memory_bytes(),
    };
    Ok(integer(bytes + TABLE_BYTES_PER_KEY))
}

/// Redis's pattern language; a bare `*` matches the empty key too, which the pattern alone would not.
fn matches(pattern: &[u8], key: &[u8]) -> bool {
    pattern == b"*" || glob::matches(pattern, key, false)
}

/// A pointer and a control byte in a hash table that is about two thirds full.
const TABLE_BYTES_PER_KEY: usize = 14;

fn memory_stats(state: &State) -> Reply {
    let (mut keys, mut overhead, mut databases) = (0, 0, Vec::new());
    for db in 0..state.databases() {
        let space = state.database(DbIndex::try_from(db).expect("there are at most 255 databases"));
        if space.is_empty() {
            continue;
        }
        // Not the tables' own size, which depends on what they held before.
        let bytes = space.len() * TABLE_BYTES_PER_KEY;
        keys += space.len();
        overhead += bytes;
        let tables = vec![(Reply::simple("overhead.hashtable.main"), integer(bytes))];
        databases.push((Reply::text(format!("db.{db}")), Reply::Map(tables)));
    }
    databases.push((Reply::bulk("overhead.total"), integer(overhead)));
    databases.push((Reply::bulk("keys.count"), integer(keys)));
    Reply::Map(databases)
}

// ---- rows ---------------------------------------------------------------------------------------------

const READ: Flags = Flags::READONLY;
const READ_FAST: Flags = READ.and(Flags::FAST);
const WRITE: Flags = Flags::WRITE;
const WRITE_FAST: Flags = WRITE.and(Flags::FAST);
const LOOK: Flags = Flags::LOADING.and(Flags::STALE);
const ONE: KeySpec = KeySpec::one(1);
const TWO: KeySpec = KeySpec::Range { first: 1, last: 2, step: 1 };
const ALL: KeySpec = KeySpec::Range { first: 1, last: -1, step: 1 };

const fn row(
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
        group: Group::Generic,
        since: "0.1.0",
        summary,
        complexity: "O(1)",
        arity,
        flags,
        keys: KeySpec::None,
        acl: Categories::KEYSPACE,
        execute,
        subcommands: &[],
    }
}

/// The commands on keys of any type.
pub static ROWS: &[CommandSpec] = &[
    CommandSpec {
        keys: ALL,
        complexity: "O(N) where N is the number of keys.",
        ..row("del", "DEL key [key ...]", "Deletes keys.", -2, WRITE, Execute::Write(del))
    },
    CommandSpec {
        keys: ALL,
        complexity: "O(N) where N is the number of keys.",
        ..row(
            "unlink",
            "UNLINK key [key ...]",
            "Deletes keys; the same as DEL.",
            -2,
            WRITE_FAST,
            Execute::Write(del),
        )
    },
    CommandSpec {
        keys: ONE,
        ..row(
            "delex",
            "DELEX key [IFEQ comparison-value | IFNE comparison-value]",
            "Deletes a key, if its value equals or differs from another.",
            -2,
            WRITE_FAST,
            Execute::Write(delex),
        )
    },
    CommandSpec {
        keys: ALL,
        complexity: "O(N) where N is the number of keys.",
        ..row(
            "exists",
            "EXISTS key [key ...]",
            "Counts which of the keys exist.",
            -2,
            READ_FAST,
            Execute::Read(exists),
        )
    },
    CommandSpec {
        keys: ONE,
        ..row(
            "type",
            "TYPE key",
            "Returns the type of a key: string, lock, queue or none.",
            2,
            READ_FAST,
            Execute::Read(type_of),
        )
    },
    CommandSpec {
        keys: ALL,
        complexity: "O(N) where N is the number of keys.",
        ..row(
            "touch",
            "TOUCH key [key ...]",
            "Counts which of the keys exist.",
            -2,
            READ_FAST,
            Execute::Read(exists),
        )
    },
    CommandSpec {
        keys: ONE,
        ..row(
            "expire",
            "EXPIRE key seconds [NX | XX | GT | LT]",
            "Sets a key's time to live in seconds.",
            -3,
            WRITE_FAST,
            Execute::Write(expire),
        )
    },
    CommandSpec {
        keys: ONE,
        ..row(
            "pexpire",
            "PEXPIRE key milliseconds [NX | XX | GT | LT]",
            "Sets a key's time to live in milliseconds.",
            -3,
            WRITE_FAST,
            Execute::Write(pexpire),
        )
    },
    CommandSpec {
        keys: ONE,
        ..row(
            "expireat",
            "EXPIREAT key unix-time-seconds [NX | XX | GT | LT]",
            "Lets a key live until a Unix time in seconds.",
            -3,
            WRITE_FAST,
            Execute::Write(expireat),
        )
    },
    CommandSpec {
        keys: ONE,
        ..row(
            "pexpireat",
            "PEXPIREAT key unix-time-milliseconds [NX | XX | GT | LT]",
            "Lets a key live until a Unix time in milliseconds.",
            -3,
            WRITE_FAST,
            Execute::Write(pexpireat),
        )
    },
    CommandSpec {
        keys: ONE,
        ..row(
            "ttl",
            "TTL key",
            "Returns the seconds a key has left, -1 if it has no deadline, -2 if it does not exist.",
            2,
            READ_FAST,
            Execute::Read(ttl),
        )
    },
    CommandSpec {
        keys: ONE,
        ..row(
            "pttl",
            "PTTL key",
            "Returns the milliseconds a key has left, -1 if it has no deadline, -2 if it does not exist.",
            2,
            READ_FAST,
            Execute::Read(pttl),
        )
    },
    CommandSpec {
        keys: ONE,
        ..row(
            "expiretime",
            "EXPIRETIME key",
            "Estimates the Unix time in seconds at which a key expires.",
            2,
            READ_FAST,
            Execute::Read(expiretime),
        )
    },
    CommandSpec {
        keys: ONE,
        ..row(
            "pexpiretime",
            "PEXPIRETIME key",
            "Estimates the Unix time in milliseconds at which a key expires.",
            2,
            READ_FAST,
            Execute::Read(pexpiretime),
        )
    },
    CommandSpec {
        keys: ONE,
        ..row("persist", "PERSIST key", "Removes a key's deadline.", 2, WRITE_FAST, Execute::Write(persist))
    },
    CommandSpec {
        keys: TWO,
        ..row(
            "rename",
            "RENAME key newkey",
            "Gives a key another name, over whatever string has it.",
            3,
            WRITE.and(Flags::COPIES),
            Execute::Write(rename),
        )
    },
    CommandSpec {
        keys: TWO,
        ..row(
            "renamenx",
            "RENAMENX key newkey",
            "Gives a key another name if no key has it.",
            3,
            WRITE_FAST.and(Flags::COPIES),
            Execute::Write(renamenx),
        )
    },
    CommandSpec {
        keys: TWO,
        ..row(
            "copy",
            "COPY source destination [DB destination-db] [REPLACE]",
            "Copies a key with its deadline.",
            -3,
            WRITE.and(Flags::DENYOOM).and(Flags::COPIES),
            Execute::Write(copy),
        )
    },
    CommandSpec {
        keys: ONE,
        ..row(
            "move",
            "MOVE key db",
            "Moves a key to another database if no key has its name there.",
            3,
            WRITE_FAST.and(Flags::COPIES),
            Execute::Write(move_key),
        )
    },
    CommandSpec {
        complexity: "O(1) for every call, O(N) for all of them, where N is the number of keys.",
        ..row(
            "scan",
            "SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]",
            "Iterates over the keys of the database, some at a time.",
            -2,
            READ.and(Flags::WALKS),
            Execute::Read(scan),
        )
    },
    CommandSpec {
        complexity: "O(N) where N is the number of keys.",
        acl: Categories::KEYSPACE.and(Categories::DANGEROUS),
        ..row(
            "keys",
            "KEYS pattern",
            "Returns all keys that match a pattern.",
            2,
            READ.and(Flags::WALKS),
            Execute::Read(keys),
        )
    },
    row(
        "randomkey",
        "RANDOMKEY",
        "Returns some key of the database, or null if it has none.",
        1,
        READ.and(Flags::WALKS),
        Execute::Read(randomkey),
    ),
    CommandSpec {
        group: Group::Server,
        ..row(
            "dbsize",
            "DBSIZE",
            "Returns the number of keys in the database.",
            1,
            READ_FAST,
            Execute::Read(dbsize),
        )
    },
    CommandSpec {
        group: Group::Server,
        complexity: "O(N) where N is the number of keys.",
        acl: Categories::KEYSPACE.and(Categories::DANGEROUS),
        ..row(
            "flushdb",
            "FLUSHDB [ASYNC | SYNC]",
            "Deletes all keys of the database but locks and queues.",
            -1,
            WRITE,
            Execute::Write(flushdb),
        )
    },
    CommandSpec {
        group: Group::Server,
        complexity: "O(N) where N is the number of keys.",
        acl: Categories::KEYSPACE.and(Categories::DANGEROUS),
        ..row(
            "flushall",
            "FLUSHALL [ASYNC | SYNC]",
            "Deletes all keys of all databases but locks and queues.",
            -1,
            WRITE,
            Execute::Write(flushall),
        )
    },
    CommandSpec {
        complexity: "Depends on subcommand.",
        acl: Categories::NONE,
        subcommands: OBJECT_SUBCOMMANDS,
        ..row("object", "OBJECT", "Tells how a key is kept.", -2, Flags::NONE, Execute::Read(object))
    },
    CommandSpec {
        group: Group::Server,
        complexity: "Depends on subcommand.",
        acl: Categories::NONE,
        subcommands: MEMORY_SUBCOMMANDS,
        ..row("memory", "MEMORY", "Tells what takes memory.", -2, Flags::NONE, Execute::Read(memory))
    },
];

const OBJECT_SUBCOMMANDS: &[CommandSpec] = &[
    CommandSpec {
        keys: KeySpec::one(2),
        ..row(
            "encoding",
            "OBJECT ENCODING key",
            "Returns the name of the representation of a key's value.",
            3,
            READ,
            Execute::Read(object),
        )
    },
    CommandSpec {
        keys: KeySpec::one(2),
        ..row(
            "freq",
            "OBJECT FREQ key",
            "Returns how often a key is used, where an LFU policy counts it.",
            3,
            READ,
            Execute::Read(object),
        )
    },
    CommandSpec {
        keys: KeySpec::one(2),
        ..row(
            "idletime",
            "OBJECT IDLETIME key",
            "Returns the seconds since a key was used.",
            3,
            READ,
            Execute::Read(object),
        )
    },
    CommandSpec {
        keys: KeySpec::one(2),
        ..row(
            "refcount",
            "OBJECT REFCOUNT key",
            "Returns the number of references to a key's value.",
            3,
            READ,
            Execute::Read(object),
        )
    },
    row("help", "OBJECT HELP", "Lists the subcommands.", 2, LOOK, Execute::Read(object)),
];

const fn memory_row(
    name: &'static str,
    syntax: &'static str,
    summary: &'static str,
    arity: i32,
    flags: Flags,
) -> CommandSpec {
    CommandSpec {
        group: Group::Server,
        acl: Categories::NONE,
        ..row(name, syntax, summary, arity, flags, Execute::Read(memory))
    }
}

const MEMORY_SUBCOMMANDS: &[CommandSpec] = &[
    memory_row("doctor", "MEMORY DOCTOR", "Reports problems with memory.", 2, Flags::NONE),
    memory_row("stats", "MEMORY STATS", "Returns the memory of the keyspace by database.", 2, Flags::NONE),
    CommandSpec {
        keys: KeySpec::one(2),
        ..memory_row("usage", "MEMORY USAGE key [SAMPLES count]", "Returns the bytes a key takes.", -3, READ)
    },
    memory_row("help", "MEMORY HELP", "Lists the subcommands.", 2, LOOK),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::collections::BTreeSet;

    use super::*;
    use crate::commands::table::testing::World;
    use crate::commands::table::testing::show;
    use crate::types::Millis;

    const SYNTAX: &str = "-ERR syntax error";
    const NOT_INTEGER: &str = "-ERR value is not an integer or out of range";

    #[test]
    fn keys_are_deleted_and_counted() {
        World::new().check(&[
            ("MSET a 1 b 2 c 3", "OK"),
            ("EXISTS a a none", ":2"),
            ("TOUCH a b none", ":2"),
            ("DEL a none a", ":1"),
            ("UNLINK b", ":1"),
            ("TYPE c", "+string"),
            ("TYPE none", "+none"),
            ("DELEX c IFEQ 4", ":0"),
            ("DELEX c IFNE 3", ":0"),
            ("DELEX none IFNE 3", ":0"),
            ("DELEX c foo 3", SYNTAX),
            ("DELEX c IFEQ", SYNTAX),
            ("DELEX c IFEQ 3", ":1"),
            ("SET c 1", "OK"),
            ("DELEX c IFNE 3", ":1"),
            ("SET c 1", "OK"),
            ("DELEX c", ":1"),
            ("DBSIZE", ":0"),
        ]);
    }

    #[test]
    fn expire_and_its_conditions() {
        World::new().check(&[
            ("EXPIRE k 10", ":0"),
            ("SET k v", "OK"),
            ("EXPIRE k 10 XX", ":0"),
            ("EXPIRE k 10 GT", ":0"),
            ("EXPIRE k 100 LT", ":1"),
            ("EXPIRE k 200 NX", ":0"),
            ("EXPIRE k 100 GT", ":0"),
            ("EXPIRE k 101 GT", ":1"),
            ("EXPIRE k 101 LT", ":0"),
            ("PEXPIRE k 1500 XX LT", ":1"),
            ("TTL k", ":2"),
            ("PTTL k", ":1500"),
            ("EXPIREAT k 1700000009", ":1"),
            ("EXPIRETIME k", ":1700000009"),
            ("PEXPIREAT k 1700000000400", ":1"),
            ("TTL k", ":0"),
            ("PEXPIRETIME k", ":1700000000400"),
            ("PERSIST k", ":1"),
            ("PERSIST k", ":0"),
            ("TTL k", ":-1"),
            ("EXPIRETIME k", ":-1"),
            ("TTL none", ":-2"),
            ("PEXPIRETIME none", ":-2"),
            ("EXPIREAT k 1 GT", ":0"),
            ("EXPIREAT k 1", ":1"),
            ("EXISTS k", ":0"),
            ("SET k v", "OK"),
            ("EXPIRE k -1", ":1"),
            ("EXISTS k", ":0"),
        ]);
    }

    #[test]
    fn expire_refuses_what_redis_refuses() {
        World::new().check(&[
            ("SET k v", "OK"),
            ("EXPIRE k x", NOT_INTEGER),
            ("EXPIRE k 10 foo", "-ERR Unsupported option foo"),
            ("EXPIRE k 10 NX XX", "-ERR NX and XX, GT or LT options at the same time are not compatible"),
            ("EXPIRE k 10 LT GT", "-ERR GT and LT options at the same time are not compatible"),
            ("EXPIRE k 9223372036854775807", "-ERR invalid expire time in 'expire' command"),
            ("PEXPIRE k 9223372036854775807", "-ERR invalid expire time in 'pexpire' command"),
            ("EXPIREAT k -9223372036854775808", "-ERR invalid expire time in 'expireat' command"),
            ("PEXPIREAT k 9223372036854775807", ":1"),
            ("PEXPIREAT k -9223372036854775808", ":1"),
            ("EXISTS k", ":0"),
        ]);
    }

    #[test]
    fn deadlines_run_in_key_time() {
        let mut world = World::new();
        world.check(&[("SET k v PX 1000", "OK")]);
        world.state.advance_key_clock(Millis(400));
        world.check(&[("PTTL k", ":600"), ("PEXPIRE k 500", ":1"), ("PTTL k", ":500")]);
        world.wait(500);
        world.check(&[("EXISTS k", ":0")]);
    }

    #[test]
    fn names_change_with_their_deadline() {
        World::new().check(&[
            ("RENAME a b", "-ERR no such key"),
            ("RENAMENX a a", "-ERR no such key"),
            ("SET a 1 EX 10", "OK"),
            ("RENAME a a", "OK"),
            ("RENAMENX a a", ":0"),
            ("RENAME a b", "OK"),
            ("TTL b", ":10"),
            ("SET c 2", "OK"),
            ("RENAMENX b c", ":0"),
            ("RENAME c b", "OK"),
            ("TTL b", ":-1"),
            ("RENAMENX b d", ":1"),
            ("KEYS *", "[d]"),
        ]);
    }

    #[test]
    fn keys_are_copied_and_moved_between_databases() {
        let mut world = World::new();
        world.check(&[
            ("SET a 1 EX 10", "OK"),
            ("COPY none b", ":0"),
            ("COPY a b", ":1"),
            ("TTL b", ":10"),
            ("COPY a b", ":0"),
            ("COPY a b REPLACE", ":1"),
            ("COPY a a DB 1", ":1"),
            ("COPY a a", "-ERR source and destination objects are the same"),
            ("COPY a a DB 16", "-ERR DB index is out of range"),
            ("COPY a a DB x", NOT_INTEGER),
            (
                "COPY a a DB 99999999999",
                "-ERR value is out of range, value must between -2147483648 and 2147483647",
            ),
            ("COPY a b DB", SYNTAX),
            ("COPY a b foo", SYNTAX),
            ("MOVE a 0", "-ERR source and destination objects are the same"),
            ("MOVE a 99", "-ERR DB index is out of range"),
            ("MOVE a 1", ":0"),
            ("MOVE a 2", ":1"),
            ("MOVE a 2", ":0"),
            ("EXISTS a", ":0"),
        ]);
        world.db = 2;
        world.check(&[("GET a", "1"), ("TTL a", ":10")]);
    }

    #[test]
    fn a_due_key_is_no_obstacle_in_another_database() {
        let mut world = World::new();
        world.check(&[("SET a old PX 100", "OK"), ("MOVE a 1", ":1"), ("SET a new", "OK")]);
        world.wait(100);
        world.check(&[("COPY a a DB 1", ":1")]);
        world.db = 1;
        world.check(&[("GET a", "new")]);
    }

    #[test]
    fn locks_and_queues_change_only_by_their_own_verbs() {
        const LOCK: &str = "-WRONGTYPE this key is a lock; use UNLOCK or wait for its lease to end";
        const QUEUE: &str = "-WRONGTYPE this key is a queue; use QPOP and QACK";
        let mut world = World::new();
        world.run("LOCK l me");
        world.run("QPUSH q job");
        world.check(&[("SET s 1", "OK")]);
        let commands = [
            "DEL s k",
            "UNLINK k s",
            "DELEX k",
            "DELEX k IFEQ 1",
            "EXPIRE k 1",
            "PEXPIREAT k 1",
            "PERSIST k",
            "RENAME k s",
            "RENAME s k",
            "RENAMENX s k",
            "COPY k x",
            "COPY s k REPLACE",
            "MOVE k 1",
        ];
        for (key, verb) in [("l", LOCK), ("q", QUEUE)] {
            for command in commands {
                let words: Vec<&str> =
                    command.split(' ').map(|word| if word == "k" { key } else { word }).collect();
                world.check(&[(words.join(" ").as_str(), verb)]);
            }
        }
        world.check(&[
            ("GET s", "1"),
            ("TTL l", ":-1"),
            ("OBJECT ENCODING l", "lock"),
            ("OBJECT ENCODING q", "queue"),
            ("FLUSHALL", "OK"),
            ("EXISTS s l q", ":2"),
            ("SCAN 0 TYPE lock COUNT 100", "[0 [l]]"),
        ]);
    }

    #[test]
    fn flushing_takes_an_option_and_one_or_all_databases() {
        let mut world = World::new();
        world.check(&[("SET a 1 EX 10", "OK"), ("COPY a a DB 3", ":1")]);
        world.check(&[("FLUSHDB foo", SYNTAX), ("FLUSHALL ASYNC SYNC", SYNTAX), ("FLUSHDB ASYNC", "OK")]);
        world.check(&[("DBSIZE", ":0")]);
        world.db = 3;
        world.check(&[("DBSIZE", ":1"), ("FLUSHALL sync", "OK"), ("DBSIZE", ":0")]);
    }

    #[test]
    fn scan_refuses_what_redis_refuses() {
        World::new().check(&[
            ("SCAN x", "-ERR invalid cursor"),
            ("SCAN 99999999999999999999999", "-ERR invalid cursor"),
            ("SCAN 0 COUNT 0", SYNTAX),
            ("SCAN 0 COUNT x", NOT_INTEGER),
            ("SCAN 0 COUNT", SYNTAX),
            ("SCAN 0 foo 1", SYNTAX),
            ("SCAN 0", "[0 []]"),
            ("SCAN 18446744073709551615", "[0 []]"),
        ]);
    }

    #[test]
    fn scan_reads_its_cursor_as_redis_does() {
        let mut world = World::new();
        world.run("SET k v");
        world.check(&[
            ("SCAN -1 COUNT 100000", "[0 []]"),
            ("SCAN -9223372036854775808 COUNT 100000", "[0 []]"),
            ("SCAN 16384 COUNT 100000", "[0 []]"),
            ("SCAN '' COUNT 100000", "[0 [k]]"),
            ("SCAN -0 COUNT 100000", "[0 [k]]"),
            ("SCAN +0 COUNT 100000", "[0 [k]]"),
            ("SCAN 000 COUNT 100000", "[0 [k]]"),
        ]);
        for word in
            ["-", "+", "--1", "+-1", "1x", "0x1", "18446744073709551616", "-18446744073709551616", "1.0"]
        {
            world.check(&[(format!("SCAN {word}").as_str(), "-ERR invalid cursor")]);
        }
        for word in [" 1", "1 ", "\t1"] {
            assert_eq!(show(&world.run_words(&[b"SCAN", word.as_bytes()])), "-ERR invalid cursor");
        }
    }

    #[test]
    fn scan_filters_by_pattern_type_and_deadline() {
        let mut world = World::new();
        world.check(&[("MSET a1 1 a2 2 b1 3", "OK"), ("SET a3 1 PX 10", "OK")]);
        world.wait(10);
        world.check(&[
            ("SCAN 0 MATCH b* COUNT 100", "[0 [b1]]"),
            ("SCAN 0 MATCH b* TYPE STRING COUNT 100", "[0 [b1]]"),
            ("SCAN 0 TYPE hash COUNT 100", "[0 []]"),
            ("SCAN 0 MATCH a3 COUNT 100", "[0 []]"),
            ("KEYS a3", "[]"),
            ("KEYS *1x", "[]"),
        ]);
        let Reply::Array(found) = world.run("KEYS a*") else { panic!("an array") };
        assert_eq!(found.iter().map(show).collect::<BTreeSet<_>>(), ["a1", "a2"].map(str::to_owned).into());
    }

    #[test]
    fn scan_visits_every_lasting_key_once_while_others_come_and_go() {
        let mut world = World::new();
        for n in 0..500 {
            world.run(&format!("SET stay:{n} 1"));
            world.run(&format!("SET go:{n} 1"));
        }
        let (mut cursor, mut round, mut visits) = ("0".to_owned(), 0, BTreeMap::<String, u32>::new());
        loop {
            let Reply::Array(answer) = world.run(&format!("SCAN {cursor} COUNT 7")) else {
                panic!("an array")
            };
            let [next, Reply::Array(keys)] = answer.as_slice() else { panic!("a cursor and keys") };
            for key in keys {
                *visits.entry(show(key)).or_default() += 1;
            }
            cursor = show(next);
            if cursor == "0" {
                break;
            }
            world.run(&format!("DEL go:{round}"));
            for n in 0..20 {
                world.run(&format!("SET come:{round}:{n} 1"));
            }
            round += 1;
        }
        assert!(round > 50, "the walk took {round} calls");
        assert_eq!(visits.keys().filter(|key| key.starts_with("stay:")).count(), 500);
        assert!(visits.values().all(|count| *count == 1));
    }

    #[test]
    fn randomkey_reaches_every_key_that_is_not_due() {
        let mut world = World::new();
        world.check(&[("RANDOMKEY", "null"), ("MSET a 1 b 2 c 3", "OK"), ("SET d 4 PX 10", "OK")]);
        world.wait(10);
        let mut found = BTreeSet::new();
        for n in 0..2_000u64 {
            world.seed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            found.insert(show(&world.run("RANDOMKEY")));
        }
        assert_eq!(found, ["a", "b", "c"].map(str::to_owned).into());
        world.check(&[("DEL a b c", ":3"), ("RANDOMKEY", "null")]);
    }

    #[test]
    fn randomkey_of_a_small_database_prefers_no_key() {
        let mut world = World::new();
        (0..100).for_each(|n| assert_eq!(world.run(&format!("SET {n} v")), Reply::Ok));
        let mut counts = BTreeMap::<String, u32>::new();
        for n in 0..5_000 {
            world.seed = n;
            *counts.entry(show(&world.run("RANDOMKEY"))).or_default() += 1;
        }
        // The mean is 50, and five standard deviations are 35.
        assert_eq!(counts.len(), 100);
        assert!(counts.values().all(|count| (15..=85).contains(count)), "{counts:?}");
    }

    #[test]
    fn randomkey_of_a_large_database_prefers_no_part() {
        let mut world = World::new();
        (0..8_192).for_each(|n| assert_eq!(world.run(&format!("SET {n} v")), Reply::Ok));
        let space = world.state.database(0);
        let alone: BTreeSet<String> = (0..PARTS)
            .filter(|part| space.part(*part).count() == 1)
            .filter_map(|part| space.part(part).next())
            .map(|row| String::from_utf8_lossy(row.key()).into_owned())
            .collect();
        let expected = alone.len() as f64 / 8_192.0;
        let draws = 20_000;
        let mut hits = 0;
        for n in 0..draws {
            world.seed = n;
            hits += u32::from(alone.contains(&show(&world.run("RANDOMKEY"))));
        }
        let share = f64::from(hits) / draws as f64;
        assert!((share - expected).abs() < 0.03, "{share} of the draws for {expected} of the keys");
    }

    #[test]
    fn object_tells_the_encoding_of_strings() {
        let mut world = World::new();
        world.run_words(&[b"SET", b"raw", &[b'x'; 45]]);
        world.run_words(&[b"SET", b"embstr", &[b'x'; 44]]);
        world.check(&[
            ("SET int -12", "OK"),
            ("OBJECT ENCODING int", "int"),
            ("OBJECT encoding embstr", "embstr"),
            ("OBJECT ENCODING raw", "raw"),
            ("OBJECT ENCODING none", "null"),
            ("OBJECT REFCOUNT raw", ":1"),
            ("OBJECT REFCOUNT int", ":1"),
            ("MSET zero 0 small 9999 large 10000 text 07", "OK"),
            ("OBJECT REFCOUNT zero", ":2147483647"),
            ("OBJECT REFCOUNT small", ":2147483647"),
            ("OBJECT REFCOUNT large", ":1"),
            ("OBJECT REFCOUNT text", ":1"),
            ("OBJECT REFCOUNT none", "null"),
            ("OBJECT IDLETIME raw", ":0"),
            ("SET n 10", "OK"),
            ("INCRBYFLOAT n 1", "11"),
            ("OBJECT ENCODING n", "embstr"),
            ("OBJECT REFCOUNT n", ":1"),
            ("COPY n copy", ":1"),
            ("RENAME copy m", "OK"),
            ("OBJECT ENCODING m", "embstr"),
            ("INCR n", ":12"),
            ("OBJECT ENCODING n", "int"),
            ("APPEND n 3", ":3"),
            ("OBJECT ENCODING n", "raw"),
            ("OBJECT REFCOUNT n", ":1"),
            ("SET n 12 KEEPTTL", "OK"),
            ("OBJECT ENCODING n", "int"),
            ("SETRANGE n 0 3", ":2"),
            ("OBJECT ENCODING n", "raw"),
            ("GETSET n 3", "32"),
            ("OBJECT ENCODING n", "int"),
            ("APPEND new 12", ":2"),
            ("OBJECT ENCODING new", "int"),
            ("SETRANGE gap 0 12", ":2"),
            ("OBJECT ENCODING gap", "raw"),
            ("OBJECT foo raw", "-ERR unknown subcommand 'foo'. Try OBJECT HELP."),
            ("OBJECT ENCODING", "-ERR wrong number of arguments for 'object|encoding' command"),
            ("OBJECT HELP x", "-ERR wrong number of arguments for 'object|help' command"),
        ]);
        assert!(
            show(&world.run("OBJECT FREQ raw")).starts_with("-ERR An LFU maxmemory policy is not selected,")
        );
        assert!(show(&world.run("OBJECT HELP")).contains("REFCOUNT <key>"));
    }

    #[test]
    fn memory_counts_a_key_and_its_share_of_the_table() {
        let mut world = World::new();
        world.run_words(&[b"SET", b"k", &[b'x'; 10_000]]);
        let Reply::Integer(bytes) = world.run("MEMORY USAGE k SAMPLES 0") else { panic!("an integer") };
        assert!(bytes > 10_000);
        world.check(&[
            ("MEMORY USAGE none", "null"),
            ("MEMORY USAGE k SAMPLES", SYNTAX),
            ("MEMORY USAGE k SAMPLES -1", SYNTAX),
            ("MEMORY USAGE k SAMPLES x", NOT_INTEGER),
            ("MEMORY USAGE k foo 1", SYNTAX),
            ("MEMORY USAGE", "-ERR wrong number of arguments for 'memory|usage' command"),
            ("MEMORY foo", "-ERR unknown subcommand 'foo'. Try MEMORY HELP."),
        ]);
        assert!(show(&world.run("MEMORY STATS")).contains("keys.count: :1"));
        assert!(show(&world.run("MEMORY DOCTOR")).starts_with("No memory problems"));
        assert!(show(&world.run("MEMORY HELP")).contains("USAGE <key>"));
    }
}
