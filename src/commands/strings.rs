//! Strings: values, counters and parts of values, with Redis's semantics and error texts.
//!
//! The number of words of every command was checked against its row before it runs here. Deadlines are
//! kept in key time; what a client names as a wall-clock moment is turned into remaining time, once,
//! with the entry's wall stamp (COMMANDS.md 3.2, rule 9).

use crate::commands::error::CommandError;
use crate::commands::guards::check_fence;
use crate::commands::long_double::LongDouble;
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
use crate::commands::weights::Bulks;
use crate::commands::weights::HEADER_BYTES;
use crate::commands::weights::fits;
use crate::resp::Reply;
use crate::resp::arguments::eq_ignore_case;
use crate::resp::arguments::parse_i64;
use crate::state::DbIndex;
use crate::state::Object;
use crate::state::State;
use crate::types::ClusterTime;
use crate::types::Millis;
use crate::types::WallMillis;
use crate::types::bounds::Bounds;
use crate::types::bounds::STRING_BYTES_MAX;

// ---- shared with the commands on keys -----------------------------------------------------------------

/// Refuses a key that is a lock or a queue, which only their own verbs may change.
pub(crate) fn refuse_lock_or_queue(state: &State, db: DbIndex, key: &[u8]) -> Result<(), CommandError> {
    match state.row(db, key).map(|row| row.object()) {
        None | Some(Object::String) => Ok(()),
        Some(Object::Lock(_)) => {
            Err(CommandError::WrongVerb("this key is a lock; use UNLOCK or wait for its lease to end"))
        }
        Some(Object::Queue(_)) => Err(CommandError::WrongVerb("this key is a queue; use QPOP and QACK")),
    }
}

/// How a client gives a time: seconds or milliseconds, from now or since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimeForm {
    Seconds,
    Milliseconds,
    UnixSeconds,
    UnixMilliseconds,
}

impl TimeForm {
    pub(crate) fn is_seconds(self) -> bool {
        matches!(self, TimeForm::Seconds | TimeForm::UnixSeconds)
    }

    pub(crate) fn is_unix(self) -> bool {
        matches!(self, TimeForm::UnixSeconds | TimeForm::UnixMilliseconds)
    }
}

/// Wall time as a signed number, in which times before the epoch can be written.
pub(crate) fn wall_millis(wall: WallMillis) -> i64 {
    i64::try_from(wall.0).unwrap_or(i64::MAX)
}

/// The deadline that many milliseconds from now, in key time.
pub(crate) fn deadline_in(state: &State, now: ClusterTime, remaining: i64) -> ClusterTime {
    state.key_now(now).after(Millis(u64::try_from(remaining).unwrap_or(0)))
}

/// Milliseconds that remain until a time to live ends, as SET and its relatives take it: positive, and
/// representable as a wall-clock moment. Zero or less when an absolute time has passed.
fn remaining(
    command: &'static str,
    form: TimeForm,
    word: &[u8],
    wall: WallMillis,
) -> Result<i64, CommandError> {
    let given = parse_i64(word).ok_or(CommandError::NotAnInteger)?;
    let invalid = CommandError::InvalidExpire(command);
    if given <= 0 {
        return Err(invalid);
    }
    let millis = if form.is_seconds() { given.checked_mul(1000) } else { Some(given) };
    let wall = wall_millis(wall);
    match millis {
        Some(millis) if form.is_unix() => Ok(millis - wall),
        Some(millis) if millis <= i64::MAX - wall => Ok(millis),
        _ => Err(invalid),
    }
}

/// The string under a key; `None` when there is none.
fn string<'a>(state: &'a State, db: DbIndex, key: &[u8]) -> Result<Option<&'a [u8]>, CommandError> {
    match state.row(db, key) {
        None => Ok(None),
        Some(row) => row.as_string().map(Some).ok_or(CommandError::WrongType),
    }
}

/// The value as a reply, if the bounds allow it.
#[inline]
fn bulk_or_null(value: Option<&[u8]>, bounds: Bounds) -> CommandResult {
    let Some(value) = value else { return Ok(Reply::Null) };
    fits(value.len() + HEADER_BYTES, bounds)?;
    Ok(Reply::bulk(value))
}

fn length(bytes: usize) -> Reply {
    Reply::Integer(i64::try_from(bytes).unwrap_or(i64::MAX))
}

// ---- SET, GETEX and their relatives -------------------------------------------------------------------

/// What SET asks of the value that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition<'a> {
    Always,
    Absent,
    Present,
    Equal(&'a [u8]),
    NotEqual(&'a [u8]),
}

impl Condition<'_> {
    /// `old` is the string under the key. A missing key differs from every value.
    fn holds(self, old: Option<&[u8]>) -> bool {
        match self {
            Condition::Always => true,
            Condition::Absent => old.is_none(),
            Condition::Present => old.is_some(),
            Condition::Equal(value) => old == Some(value),
            Condition::NotEqual(value) => old != Some(value),
        }
    }
}

/// What becomes of a key's time to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lifetime<'a> {
    /// The command's default: SET clears it, GETEX leaves it.
    Default,
    Keep,
    Persist,
    For(TimeForm, &'a [u8]),
}

fn time_form(option: &[u8]) -> Option<TimeForm> {
    [
        ("EX", TimeForm::Seconds),
        ("PX", TimeForm::Milliseconds),
        ("EXAT", TimeForm::UnixSeconds),
        ("PXAT", TimeForm::UnixMilliseconds),
    ]
    .into_iter()
    .find_map(|(name, form)| eq_ignore_case(option, name).then_some(form))
}

#[derive(Debug)]
struct SetOptions<'a> {
    condition: Condition<'a>,
    lifetime: Lifetime<'a>,
    get: bool,
    /// A key and the token that must be current of it.
    fence: Option<(&'a [u8], &'a [u8])>,
}

fn parse_set_options<'a>(words: Args<'a>) -> Result<SetOptions<'a>, CommandError> {
    let mut options =
        SetOptions { condition: Condition::Always, lifetime: Lifetime::Default, get: false, fence: None };
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        let mut operand = || words.next().ok_or(CommandError::Syntax);
        let is = |name: &str| eq_ignore_case(word, name);
        if let Some(form) = time_form(word) {
            let value = operand()?;
            // Redis lets the same option come twice, and the last one count.
            match options.lifetime {
                Lifetime::Default => {}
                Lifetime::For(earlier, _) if earlier == form => {}
                Lifetime::For(..) | Lifetime::Keep | Lifetime::Persist => return Err(CommandError::Syntax),
            }
            options.lifetime = Lifetime::For(form, value);
        } else if is("KEEPTTL") && matches!(options.lifetime, Lifetime::Default | Lifetime::Keep) {
            options.lifetime = Lifetime::Keep;
        } else if is("GET") {
            options.get = true;
        } else if is("FENCE") {
            let fence = (operand()?, operand()?);
            if options.fence.replace(fence).is_some() {
                return Err(CommandError::Syntax);
            }
        } else {
            let wanted = if is("NX") {
                Condition::Absent
            } else if is("XX") {
                Condition::Present
            } else if is("IFEQ") {
                Condition::Equal(operand()?)
            } else if is("IFNE") {
                Condition::NotEqual(operand()?)
            } else {
                return Err(CommandError::Syntax);
            };
            let repeated =
                options.condition == wanted && matches!(wanted, Condition::Absent | Condition::Present);
            if options.condition != Condition::Always && !repeated {
                return Err(CommandError::Syntax);
            }
            options.condition = wanted;
        }
    }
    Ok(options)
}

fn set(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let (key, value) = (args[1], args[2]);
    if args.len() > 3 {
        return set_with_options(ctx, key, value, &args[3..]);
    }
    if !ctx.state.put_string(ctx.db, key, value, None) {
        refuse_lock_or_queue(ctx.state, ctx.db, key)?;
    }
    Ok(Reply::Ok)
}

fn set_with_options(ctx: &mut WriteContext<'_>, key: &[u8], value: &[u8], words: Args<'_>) -> CommandResult {
    let options = parse_set_options(words)?;
    let remaining = match options.lifetime {
        Lifetime::For(form, word) => Some(remaining("set", form, word, ctx.wall)?),
        Lifetime::Default | Lifetime::Keep | Lifetime::Persist => None,
    };
    refuse_lock_or_queue(ctx.state, ctx.db, key)?;
    if let Some((fence, token)) = options.fence
        && !ctx.in_transaction
    {
        ctx.state.expire_touched(ctx.db, fence, ctx.now);
        check_fence(ctx.state, ctx.db, fence, token, ctx.now)?;
    }
    let row = ctx.state.row(ctx.db, key);
    let kept = row.and_then(|row| row.deadline()).filter(|_| options.lifetime == Lifetime::Keep);
    let old = row.and_then(|row| row.as_string());
    let holds = options.condition.holds(old);
    let reply = match (options.get, holds) {
        (true, _) => bulk_or_null(old, ctx.bounds)?,
        (false, true) => Reply::Ok,
        (false, false) => Reply::Null,
    };
    if holds {
        put(ctx, key, value, remaining, kept);
    }
    Ok(reply)
}

/// The key and the token of `SET … FENCE key token`; a transaction looks at them before it does anything.
#[must_use]
pub fn fence_of_set<'a>(words: Args<'a>) -> Option<(&'a [u8], &'a [u8])> {
    parse_set_options(words.get(3..)?).ok()?.fence
}

/// Sets a string that lives for `remaining` milliseconds, or until `kept`, or for ever. One whose time is
/// over already is as good as expired.
fn put(
    ctx: &mut WriteContext<'_>,
    key: &[u8],
    value: &[u8],
    remaining: Option<i64>,
    kept: Option<ClusterTime>,
) {
    match remaining {
        Some(remaining) if remaining <= 0 => {
            ctx.state.remove(ctx.db, key);
        }
        Some(remaining) => {
            let deadline = deadline_in(ctx.state, ctx.now, remaining);
            ctx.state.put_string(ctx.db, key, value, Some(deadline));
        }
        None => {
            ctx.state.put_string(ctx.db, key, value, kept);
        }
    }
}

fn setnx(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    refuse_lock_or_queue(ctx.state, ctx.db, args[1])?;
    let absent = ctx.state.row(ctx.db, args[1]).is_none();
    if absent {
        ctx.state.put_string(ctx.db, args[1], args[2], None);
    }
    Ok(Reply::Integer(i64::from(absent)))
}

fn setex(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    set_for(ctx, args, "setex", TimeForm::Seconds)
}

fn psetex(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    set_for(ctx, args, "psetex", TimeForm::Milliseconds)
}

fn set_for(
    ctx: &mut WriteContext<'_>,
    args: Args<'_>,
    command: &'static str,
    form: TimeForm,
) -> CommandResult {
    let remaining = remaining(command, form, args[2], ctx.wall)?;
    refuse_lock_or_queue(ctx.state, ctx.db, args[1])?;
    put(ctx, args[1], args[3], Some(remaining), None);
    Ok(Reply::Ok)
}

fn getset(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let old = bulk_or_null(string(ctx.state, ctx.db, args[1])?, ctx.bounds)?;
    ctx.state.put_string(ctx.db, args[1], args[2], None);
    Ok(old)
}

fn getdel(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let old = bulk_or_null(string(ctx.state, ctx.db, args[1])?, ctx.bounds)?;
    ctx.state.remove(ctx.db, args[1]);
    Ok(old)
}

fn parse_getex_option<'a>(words: Args<'a>) -> Result<Lifetime<'a>, CommandError> {
    let mut lifetime = Lifetime::Default;
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        let wanted = match time_form(word) {
            Some(form) => Lifetime::For(form, words.next().ok_or(CommandError::Syntax)?),
            None if eq_ignore_case(word, "PERSIST") => Lifetime::Persist,
            None => return Err(CommandError::Syntax),
        };
        match (lifetime, wanted) {
            (Lifetime::Default, _) | (Lifetime::Persist, Lifetime::Persist) => {}
            (Lifetime::For(earlier, _), Lifetime::For(later, _)) if earlier == later => {}
            _ => return Err(CommandError::Syntax),
        }
        lifetime = wanted;
    }
    Ok(lifetime)
}

fn getex(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let (db, key) = (ctx.db, args[1]);
    let lifetime = parse_getex_option(&args[2..])?;
    let Some(value) = string(ctx.state, db, key)? else { return Ok(Reply::Null) };
    let reply = bulk_or_null(Some(value), ctx.bounds)?;
    match lifetime {
        Lifetime::Default | Lifetime::Keep => {}
        Lifetime::Persist => {
            // A key without a deadline is not changed: WATCH must not see a read.
            if ctx.state.row(db, key).is_some_and(|row| row.deadline().is_some()) {
                ctx.state.set_deadline(db, key, None);
            }
        }
        Lifetime::For(form, word) => {
            let remaining = remaining("getex", form, word, ctx.wall)?;
            if remaining <= 0 {
                ctx.state.remove(db, key);
            } else {
                let deadline = deadline_in(ctx.state, ctx.now, remaining);
                ctx.state.set_deadline(db, key, Some(deadline));
            }
        }
    }
    Ok(reply)
}

// ---- reading ------------------------------------------------------------------------------------------

fn get(ctx: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    bulk_or_null(string(ctx.state, ctx.db, args[1])?, ctx.bounds)
}

fn mget(ctx: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    let mut values = Bulks::within(ctx.bounds);
    for key in &args[1..] {
        match ctx.state.row(ctx.db, key).and_then(|row| row.as_string()) {
            Some(value) => values.push(value)?,
            None => values.push_reply(0, || Reply::Null)?,
        }
    }
    Ok(values.into_reply())
}

fn strlen(ctx: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    Ok(length(string(ctx.state, ctx.db, args[1])?.map_or(0, <[u8]>::len)))
}

fn getrange(ctx: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    let start = parse_i64(args[2]).ok_or(CommandError::NotAnInteger)?;
    let end = parse_i64(args[3]).ok_or(CommandError::NotAnInteger)?;
    let value = string(ctx.state, ctx.db, args[1])?.unwrap_or_default();
    bulk_or_null(Some(range(value, start, end)), ctx.bounds)
}

/// The bytes from `start` to `end`, both included; negative positions count from the end.
fn range(value: &[u8], start: i64, end: i64) -> &[u8] {
    let count = i64::try_from(value.len()).unwrap_or(i64::MAX);
    if start < 0 && end < 0 && start > end {
        return &[];
    }
    let from_front = |at: i64| if at < 0 { (count + at).max(0) } else { at };
    let (start, end) = (from_front(start), from_front(end).min(count - 1));
    if start > end {
        return &[];
    }
    &value[start as usize..=end as usize]
}

// ---- changing parts -----------------------------------------------------------------------------------

/// Refuses a string that would be too long.
fn check_length(length: usize, bounds: Bounds) -> Result<(), CommandError> {
    if length > bounds.value.min(STRING_BYTES_MAX) {
        let text = "ERR string exceeds maximum allowed size (proto-max-bulk-len)";
        return Err(CommandError::other(text));
    }
    Ok(())
}

fn append(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let (key, value) = (args[1], args[2]);
    let Some(old) = string(ctx.state, ctx.db, key)? else {
        ctx.state.put_string(ctx.db, key, value, None);
        return Ok(length(value.len()));
    };
    check_length(old.len().saturating_add(value.len()), ctx.bounds)?;
    let new_length = ctx.state.append_string(ctx.db, key, value);
    Ok(length(new_length.expect("the key was found to be a string")))
}

fn setrange(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let (key, value) = (args[1], args[3]);
    let offset = parse_i64(args[2]).ok_or(CommandError::NotAnInteger)?;
    let offset = usize::try_from(offset).map_err(|_| CommandError::OffsetOutOfRange)?;
    let old = string(ctx.state, ctx.db, key)?;
    if value.is_empty() {
        return Ok(length(old.map_or(0, <[u8]>::len)));
    }
    check_length(offset.saturating_add(value.len()), ctx.bounds)?;
    if old.is_none() {
        ctx.state.put_string(ctx.db, key, b"", None);
    }
    let new_length = ctx.state.write_string_at(ctx.db, key, offset, value);
    Ok(length(new_length.expect("the key was found to be a string, or made one")))
}

// ---- counters -----------------------------------------------------------------------------------------

fn incr(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    add(ctx, args[1], 1)
}

fn decr(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    add(ctx, args[1], -1)
}

fn incrby(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let by = parse_i64(args[2]).ok_or(CommandError::NotAnInteger)?;
    add(ctx, args[1], by)
}

fn decrby(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let by = parse_i64(args[2]).ok_or(CommandError::NotAnInteger)?;
    let by = by.checked_neg().ok_or(CommandError::other("ERR decrement would overflow"))?;
    add(ctx, args[1], by)
}

/// Adds to a counter; its time to live stays.
fn add(ctx: &mut WriteContext<'_>, key: &[u8], by: i64) -> CommandResult {
    let old = string(ctx.state, ctx.db, key)?;
    let present = old.is_some();
    let number = old.map_or(Some(0), parse_i64).ok_or(CommandError::NotAnInteger)?;
    let number = number.checked_add(by).ok_or(CommandError::Overflow)?;
    store_number(ctx, key, itoa::Buffer::new().format(number).as_bytes(), present);
    Ok(Reply::Integer(number))
}

fn store_number(ctx: &mut WriteContext<'_>, key: &[u8], text: &[u8], present: bool) {
    if present {
        ctx.state.replace_string(ctx.db, key, text).expect("the key was found to be a string");
    } else {
        ctx.state.put_string(ctx.db, key, text, None);
    }
}

fn incrbyfloat(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let old = string(ctx.state, ctx.db, args[1])?;
    let present = old.is_some();
    let number = old.map_or(Some(LongDouble::ZERO), LongDouble::parse).ok_or(CommandError::NotAFloat)?;
    let by = LongDouble::parse(args[2]).ok_or(CommandError::NotAFloat)?;
    let text = number.plus(by).and_then(LongDouble::format);
    let text = text.ok_or(CommandError::other("ERR increment would produce NaN or Infinity"))?;
    store_number(ctx, args[1], text.as_bytes(), present);
    ctx.state.set_text(ctx.db, args[1]);
    Ok(Reply::text(text))
}

// ---- several keys -------------------------------------------------------------------------------------

/// The keys of MSET and MSETNX, checked: pairs only, and no lock or queue among them.
fn check_pairs(ctx: &WriteContext<'_>, args: Args<'_>, command: &str) -> Result<(), CommandError> {
    if args.len().is_multiple_of(2) {
        return Err(CommandError::WrongArity(command.to_owned()));
    }
    args[1..].iter().step_by(2).try_for_each(|key| refuse_lock_or_queue(ctx.state, ctx.db, key))
}

fn put_pairs(ctx: &mut WriteContext<'_>, args: Args<'_>) {
    for pair in args[1..].chunks_exact(2) {
        ctx.state.put_string(ctx.db, pair[0], pair[1], None);
    }
}

fn mset(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    check_pairs(ctx, args, "mset")?;
    put_pairs(ctx, args);
    Ok(Reply::Ok)
}

fn msetnx(ctx: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    check_pairs(ctx, args, "msetnx")?;
    let absent = args[1..].iter().step_by(2).all(|key| ctx.state.row(ctx.db, key).is_none());
    if absent {
        put_pairs(ctx, args);
    }
    Ok(Reply::Integer(i64::from(absent)))
}

// ---- rows ---------------------------------------------------------------------------------------------

const READ: Flags = Flags::READONLY;
const READ_FAST: Flags = Flags::READONLY.and(Flags::FAST);
const WRITE: Flags = Flags::WRITE.and(Flags::DENYOOM);
const WRITE_FAST: Flags = WRITE.and(Flags::FAST);
const PAIRS: KeySpec = KeySpec::Range { first: 1, last: -1, step: 2 };

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
        group: Group::String,
        since: "0.1.0",
        summary,
        complexity: "O(1)",
        arity,
        flags,
        keys: KeySpec::one(1),
        acl: Categories::STRING,
        execute,
        subcommands: &[],
    }
}

/// The commands on strings.
pub static ROWS: &[CommandSpec] = &[
    row(
        "get",
        "GET key",
        "Returns the value of a key, or null if there is none.",
        2,
        READ_FAST.and(Flags::VALUES),
        Execute::Read(get),
    ),
    row(
        "set",
        "SET key value [NX | XX | IFEQ comparison-value | IFNE comparison-value] [GET] \
         [EX seconds | PX milliseconds | EXAT unix-time-seconds | PXAT unix-time-milliseconds | KEEPTTL]",
        "Sets a key to a value, under a condition and for a while if wanted.",
        -3,
        WRITE.and(Flags::VALUES),
        Execute::Write(set),
    ),
    row(
        "setnx",
        "SETNX key value",
        "Sets a key that does not exist yet.",
        3,
        WRITE_FAST,
        Execute::Write(setnx),
    ),
    row(
        "setex",
        "SETEX key seconds value",
        "Sets a key for a number of seconds.",
        4,
        WRITE,
        Execute::Write(setex),
    ),
    row(
        "psetex",
        "PSETEX key milliseconds value",
        "Sets a key for a number of milliseconds.",
        4,
        WRITE,
        Execute::Write(psetex),
    ),
    row(
        "getset",
        "GETSET key value",
        "Sets a key and returns the value it had.",
        3,
        WRITE_FAST.and(Flags::VALUES),
        Execute::Write(getset),
    ),
    row(
        "getdel",
        "GETDEL key",
        "Deletes a key and returns the value it had.",
        2,
        Flags::WRITE.and(Flags::FAST).and(Flags::VALUES),
        Execute::Write(getdel),
    ),
    row(
        "getex",
        "GETEX key \
         [EX seconds | PX milliseconds | EXAT unix-time-seconds | PXAT unix-time-milliseconds | PERSIST]",
        "Returns the value of a key and changes its time to live.",
        -2,
        Flags::WRITE.and(Flags::FAST).and(Flags::VALUES),
        Execute::Write(getex),
    ),
    CommandSpec {
        keys: KeySpec::Range { first: 1, last: -1, step: 1 },
        complexity: "O(N) where N is the number of keys.",
        ..row(
            "mget",
            "MGET key [key ...]",
            "Returns the values of several keys, null where there is none.",
            -2,
            READ_FAST.and(Flags::VALUES),
            Execute::Read(mget),
        )
    },
    CommandSpec {
        keys: PAIRS,
        complexity: "O(N) where N is the number of keys.",
        ..row(
            "mset",
            "MSET key value [key value ...]",
            "Sets several keys at once.",
            -3,
            WRITE,
            Execute::Write(mset),
        )
    },
    CommandSpec {
        keys: PAIRS,
        complexity: "O(N) where N is the number of keys.",
        ..row(
            "msetnx",
            "MSETNX key value [key value ...]",
            "Sets several keys at once if none of them exists.",
            -3,
            WRITE,
            Execute::Write(msetnx),
        )
    },
    row(
        "append",
        "APPEND key value",
        "Appends to a string and returns its new length.",
        3,
        WRITE_FAST,
        Execute::Write(append),
    ),
    row(
        "strlen",
        "STRLEN key",
        "Returns the length of a string in bytes.",
        2,
        READ_FAST,
        Execute::Read(strlen),
    ),
    CommandSpec {
        complexity: "O(N) where N is the length of the part.",
        ..row(
            "getrange",
            "GETRANGE key start end",
            "Returns a part of a string.",
            4,
            READ.and(Flags::VALUES),
            Execute::Read(getrange),
        )
    },
    CommandSpec {
        complexity: "O(N) where N is the length of the part.",
        ..row(
            "substr",
            "SUBSTR key start end",
            "Returns a part of a string; the old name of GETRANGE.",
            4,
            READ.and(Flags::VALUES),
            Execute::Read(getrange),
        )
    },
    CommandSpec {
        complexity: "O(N) where N is the length of the value and of the gap before it.",
        ..row(
            "setrange",
            "SETRANGE key offset value",
            "Overwrites a part of a string and returns its new length.",
            4,
            WRITE.and(Flags::COPIES),
            Execute::Write(setrange),
        )
    },
    row("incr", "INCR key", "Adds one to a counter.", 2, WRITE_FAST, Execute::Write(incr)),
    row("decr", "DECR key", "Subtracts one from a counter.", 2, WRITE_FAST, Execute::Write(decr)),
    row(
        "incrby",
        "INCRBY key increment",
        "Adds an integer to a counter.",
        3,
        WRITE_FAST,
        Execute::Write(incrby),
    ),
    row(
        "decrby",
        "DECRBY key decrement",
        "Subtracts an integer from a counter.",
        3,
        WRITE_FAST,
        Execute::Write(decrby),
    ),
    row(
        "incrbyfloat",
        "INCRBYFLOAT key increment",
        "Adds a decimal number to a counter and returns the sum.",
        3,
        WRITE_FAST,
        Execute::Write(incrbyfloat),
    ),
];

#[cfg(test)]
mod tests {
    use crate::commands::table::testing::World;

    #[test]
    fn set_takes_conditions_and_answers_the_old_value() {
        World::new().check(&[
            ("SET a 1", "OK"),
            ("SET a 2 NX", "null"),
            ("SET b 2 XX", "null"),
            ("SET a 2 XX XX", "OK"),
            ("SET a 3 NX GET", "2"),
            ("GET a", "2"),
            ("SET a 3 IFEQ 1", "null"),
            ("SET a 3 IFEQ 2", "OK"),
            ("SET a 4 IFNE 3 GET", "3"),
            ("SET a 4 IFNE 1 GET", "3"),
            ("GET a", "4"),
            ("SET c 1 IFEQ 1", "null"),
            ("SET c 1 IFNE 1", "OK"),
            ("SETNX c 2", ":0"),
            ("SETNX d 2", ":1"),
            ("GETSET d 3", "2"),
            ("GETSET e 3", "null"),
            ("GETDEL d", "3"),
            ("GETDEL d", "null"),
        ]);
    }

    #[test]
    fn set_refuses_what_redis_refuses() {
        const SYNTAX: &str = "-ERR syntax error";
        const INVALID: &str = "-ERR invalid expire time in 'set' command";
        World::new().check(&[
            ("SET a", "-ERR wrong number of arguments for 'set' command"),
            ("SET a 1 NX XX", SYNTAX),
            ("SET a 1 NX IFEQ 1", SYNTAX),
            ("SET a 1 IFEQ", SYNTAX),
            ("SET a 1 IFEQ 1 IFNE 1", SYNTAX),
            ("SET a 1 EX", SYNTAX),
            ("SET a 1 EX 10 PX 10", SYNTAX),
            ("SET a 1 EX 10 KEEPTTL", SYNTAX),
            ("SET a 1 KEEPTTL EX 10", SYNTAX),
            ("SET a 1 PERSIST", SYNTAX),
            ("SET a 1 EX 0", INVALID),
            ("SET a 1 PXAT -1", INVALID),
            ("SET a 1 EX 9223372036854775807", INVALID),
            ("SET a 1 PX 9223372036854775807", INVALID),
            ("SET a 1 EX x", "-ERR value is not an integer or out of range"),
            ("SET a 1 FENCE k 7", "-STALETOKEN k 7 current=none"),
            ("SETEX a 0 v", "-ERR invalid expire time in 'setex' command"),
            ("PSETEX a -1 v", "-ERR invalid expire time in 'psetex' command"),
            ("EXISTS a", ":0"),
        ]);
    }

    #[test]
    fn set_gives_a_key_its_time_to_live() {
        let mut world = World::new();
        world.check(&[
            ("SET a 1 EX 10", "OK"),
            ("PTTL a", ":10000"),
            ("SET a 2 KEEPTTL", "OK"),
            ("PTTL a", ":10000"),
            ("SET a 3", "OK"),
            ("PTTL a", ":-1"),
            ("SET a 3 PXAT 1700000000500", "OK"),
            ("PTTL a", ":500"),
            ("PEXPIRETIME a", ":1700000000500"),
            ("SET a 4 EX 10 EX 20", "OK"),
            ("TTL a", ":20"),
            ("SETEX a 30 v", "OK"),
            ("TTL a", ":30"),
            ("PSETEX b 700 v", "OK"),
        ]);
        world.wait(699);
        world.check(&[("GET b", "v")]);
        world.wait(1);
        world.check(&[
            ("GET b", "null"),
            ("SET a x EXAT 1 GET", "v"),
            ("EXISTS a", ":0"),
            ("SET a x PXAT 1", "OK"),
        ]);
        world.check(&[("EXISTS a", ":0")]);
    }

    #[test]
    fn getex_changes_the_deadline_it_is_told_to() {
        World::new().check(&[
            ("GETEX a EX 0", "null"),
            ("SET a 1 EX 10", "OK"),
            ("GETEX a", "1"),
            ("TTL a", ":10"),
            ("GETEX a PERSIST PERSIST", "1"),
            ("TTL a", ":-1"),
            ("GETEX a EX 10 EX 20", "1"),
            ("TTL a", ":20"),
            ("GETEX a PX 0", "-ERR invalid expire time in 'getex' command"),
            ("GETEX a EX 1 PERSIST", "-ERR syntax error"),
            ("GETEX a KEEPTTL", "-ERR syntax error"),
            ("GETEX a EX", "-ERR syntax error"),
            ("GETEX a EXAT 1", "1"),
            ("EXISTS a", ":0"),
        ]);
    }

    #[test]
    fn parts_of_strings_are_read_and_written() {
        const TOO_LONG: &str = "-ERR string exceeds maximum allowed size (proto-max-bulk-len)";
        World::new().check(&[
            ("APPEND q foo", ":3"),
            ("APPEND q bar", ":6"),
            ("STRLEN q", ":6"),
            ("STRLEN none", ":0"),
            ("GETRANGE q 0 -1", "foobar"),
            ("GETRANGE q -3 -2", "ba"),
            ("GETRANGE q 5 100", "r"),
            ("GETRANGE q 6 100", ""),
            ("GETRANGE q -2 -3", ""),
            ("GETRANGE q -100 -100", "f"),
            ("GETRANGE q -9223372036854775808 9223372036854775807", "foobar"),
            ("SUBSTR q 1 2", "oo"),
            ("GETRANGE q x 1", "-ERR value is not an integer or out of range"),
            ("GETRANGE none 0 -1", ""),
            ("SETRANGE q 2 XX", ":6"),
            ("SETRANGE q 8 YY", ":10"),
            ("GET q", "foXXar\0\0YY"),
            ("SETRANGE none 5 ''", ":0"),
            ("EXISTS none", ":0"),
            ("SETRANGE none 1 a", ":2"),
            ("SETRANGE q -1 a", "-ERR offset is out of range"),
            ("SETRANGE q 536870912 a", TOO_LONG),
            ("SETRANGE q 9223372036854775807 a", TOO_LONG),
        ]);
    }

    #[test]
    fn counters_count_and_keep_their_deadline() {
        const NOT_INTEGER: &str = "-ERR value is not an integer or out of range";
        const OVERFLOW: &str = "-ERR increment or decrement would overflow";
        World::new().check(&[
            ("INCR i", ":1"),
            ("DECR i", ":0"),
            ("DECR i", ":-1"),
            ("INCRBY i 10", ":9"),
            ("DECRBY i 3", ":6"),
            ("INCRBY i 1.5", NOT_INTEGER),
            ("DECRBY i -9223372036854775808", "-ERR decrement would overflow"),
            ("INCRBY i 9223372036854775807", OVERFLOW),
            ("SET i -9223372036854775808 EX 9", "OK"),
            ("DECR i", OVERFLOW),
            ("INCR i", ":-9223372036854775807"),
            ("TTL i", ":9"),
            ("SET i 011", "OK"),
            ("INCR i", NOT_INTEGER),
        ]);
    }

    #[test]
    fn incrbyfloat_adds_as_redis_does() {
        const NOT_FLOAT: &str = "-ERR value is not a valid float";
        World::new().check(&[
            ("INCRBYFLOAT f 0.1", "0.1"),
            ("INCRBYFLOAT f 0.2", "0.3"),
            ("INCRBYFLOAT f 50e-1", "5.3"),
            ("INCRBYFLOAT f x", NOT_FLOAT),
            ("INCRBYFLOAT f nan", NOT_FLOAT),
            ("INCRBYFLOAT f inf", "-ERR increment would produce NaN or Infinity"),
            ("GET f", "5.3"),
            ("SET f 1 EX 9", "OK"),
            ("INCRBYFLOAT f -1", "0"),
            ("TTL f", ":9"),
            ("SET f word", "OK"),
            ("INCRBYFLOAT f 1", NOT_FLOAT),
        ]);
    }

    #[test]
    fn several_keys_are_set_all_or_none() {
        World::new().check(&[
            ("MSET a 1 b 2", "OK"),
            ("MGET a b none", "[1 2 null]"),
            ("MSETNX a 9 c 9", ":0"),
            ("MSETNX c 3 d 4", ":1"),
            ("MGET a c d", "[1 3 4]"),
            ("MSET a 1 b", "-ERR wrong number of arguments for 'mset' command"),
            ("MSETNX a 1 b", "-ERR wrong number of arguments for 'msetnx' command"),
        ]);
    }

    #[test]
    fn locks_and_queues_are_not_overwritten() {
        const LOCK: &str = "-WRONGTYPE this key is a lock; use UNLOCK or wait for its lease to end";
        const QUEUE: &str = "-WRONGTYPE this key is a queue; use QPOP and QACK";
        const WRONG: &str = "-WRONGTYPE Operation against a key holding the wrong kind of value";
        let mut world = World::new();
        world.run("LOCK l me");
        world.run("QPUSH q job");
        world.check(&[("TYPE l", "+lock"), ("TYPE q", "+queue")]);
        for (key, verb) in [("l", LOCK), ("q", QUEUE)] {
            let commands =
                ["SET k v", "SET k v NX GET", "SETNX k v", "SETEX k 1 v", "MSET a 1 k v", "MSETNX a 1 k v"];
            for command in commands {
                let command = command.replace(" k ", &format!(" {key} "));
                world.check(&[(command.as_str(), verb)]);
            }
            let commands = ["GET k", "GETSET k v", "GETDEL k", "GETEX k", "APPEND k v", "STRLEN k", "INCR k"];
            for command in commands.iter().chain(&["SETRANGE k 0 v", "GETRANGE k 0 1", "INCRBYFLOAT k 1"]) {
                let command = command.replacen(" k", &format!(" {key}"), 1);
                world.check(&[(command.as_str(), WRONG)]);
            }
        }
        world.check(&[
            ("MGET l q", "[null null]"),
            ("EXISTS a", ":0"),
            ("TYPE l", "+lock"),
            ("TYPE q", "+queue"),
        ]);
    }
}
