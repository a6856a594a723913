//! The lock verbs: LOCK, UNLOCK, LOCKEXTEND (COMMANDS.md 2.2).
//!
//! This version has exclusive locks that do not wait. The options of what is still to come are known
//! and refused by name, so that a client learns the reason and not just of a syntax error.

use std::collections::BTreeSet;

use crate::commands::error::CommandError;
use crate::commands::spec::Args;
use crate::commands::spec::Categories;
use crate::commands::spec::CommandResult;
use crate::commands::spec::CommandSpec;
use crate::commands::spec::Execute;
use crate::commands::spec::Flags;
use crate::commands::spec::Group;
use crate::commands::spec::KeySpec;
use crate::commands::spec::WriteContext;
use crate::resp::Reply;
use crate::resp::arguments::eq_ignore_case;
use crate::resp::arguments::parse_i64;
use crate::state::locks;
use crate::state::locks::Acquire;
use crate::state::locks::ExtendOutcome;
use crate::state::locks::LockOutcome;
use crate::state::locks::OwnerName;
use crate::state::locks::ReleaseOutcome;
use crate::types::FencingToken;
use crate::types::Millis;

/// Shortest lease of a lock, in milliseconds.
const LEASE_MS_MIN: i64 = 100;
/// Longest lease of a lock, in milliseconds: 24 hours.
const LEASE_MS_MAX: i64 = 86_400_000;
/// Longest owner, in bytes.
const OWNER_BYTES_MAX: usize = 256;
/// Tokens are below this, so that every client's numbers hold them exactly.
const TOKEN_END: u64 = 1 << 53;
/// Options of LOCK that later versions bring.
const LATER_OPTIONS: [&str; 5] = ["SHARED", "LIMIT", "BLOCK", "GRACE", "DATA"];

fn lock(context: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let owner = owner_name(context.user, args[2])?;
    let lease = lock_options(&args[3..])?.unwrap_or(context.state.settings().lock_default_ttl);
    let wanted = Acquire { owner, lease };
    let outcome = locks::acquire(context.state, context.db, args[1], &wanted, context.now)
        .ok_or(CommandError::WrongType)?;
    Ok(match outcome {
        LockOutcome::Granted { token, .. } | LockOutcome::Renewed { token, .. } => token_reply(token),
        LockOutcome::HeldBy { .. } => Reply::Null,
    })
}

/// Reads `[EX seconds | PX milliseconds]`.
fn lock_options(words: Args<'_>) -> Result<Option<Millis>, CommandError> {
    let mut lease = None;
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if let Some(option) = LATER_OPTIONS.iter().find(|option| eq_ignore_case(word, option)) {
            let text = format!("ERR LOCK option {option} is not supported by this version");
            return Err(CommandError::other(text));
        }
        let factor = match word {
            word if eq_ignore_case(word, "EX") => 1000,
            word if eq_ignore_case(word, "PX") => 1,
            _ => return Err(CommandError::Syntax),
        };
        let number = words.next().ok_or(CommandError::Syntax)?;
        if lease.replace(read_lease(number, factor)?).is_some() {
            return Err(CommandError::Syntax);
        }
    }
    Ok(lease)
}

fn unlock(context: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let owner = owner_name(context.user, args[2])?;
    let token = match &args[3..] {
        [] => None,
        [word, token] if eq_ignore_case(word, "TOKEN") => Some(read_token(token)?),
        _ => return Err(CommandError::Syntax),
    };
    let outcome =
        locks::release(context.state, context.db, args[1], &owner, token).ok_or(CommandError::WrongType)?;
    Ok(match outcome {
        ReleaseOutcome::Released => Reply::Integer(1),
        ReleaseOutcome::NotHeld => Reply::Integer(0),
    })
}

fn lockextend(context: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let owner = owner_name(context.user, args[1])?;
    let lease = read_lease(args[2], 1)?;
    let (extended, lost) = match named_keys(&args[3..])? {
        None => (locks::extend_all(context.state, context.db, &owner, lease, context.now), Vec::new()),
        Some(keys) => extend_named(context, &owner, lease, keys)?,
    };
    Ok(Reply::Map(vec![
        (Reply::bulk("extended"), Reply::Integer(extended as i64)),
        (Reply::bulk("lost"), Reply::Array(lost)),
    ]))
}

/// Reads `[KEYS numkeys key [key ...]]`.
fn named_keys<'a>(words: Args<'a>) -> Result<Option<Args<'a>>, CommandError> {
    let (count, keys) = match words {
        [] => return Ok(None),
        [word, count, keys @ ..] if eq_ignore_case(word, "KEYS") => (count, keys),
        _ => return Err(CommandError::Syntax),
    };
    let count = parse_i64(count).ok_or(CommandError::NotAnInteger)?;
    if count < 1 {
        return Err(CommandError::other("ERR numkeys should be greater than 0"));
    }
    if usize::try_from(count) != Ok(keys.len()) {
        return Err(CommandError::other("ERR LOCKEXTEND numkeys does not match the number of keys"));
    }
    Ok(Some(keys))
}

/// Extends the named locks and lists those that were lost; a key named twice counts once.
fn extend_named(
    context: &mut WriteContext<'_>,
    owner: &OwnerName,
    lease: Millis,
    keys: Args<'_>,
) -> Result<(usize, Vec<Reply>), CommandError> {
    if keys.iter().any(|key| locks::lock_at(context.state, context.db, key).is_none()) {
        return Err(CommandError::WrongType);
    }
    let mut seen = BTreeSet::new();
    let mut extended = 0;
    let mut lost = Vec::new();
    for key in keys.iter().filter(|key| seen.insert(**key)) {
        let outcome = locks::extend(context.state, context.db, key, owner, lease, context.now);
        match outcome.ok_or(CommandError::WrongType)? {
            ExtendOutcome::Extended { .. } => extended += 1,
            ExtendOutcome::Lost => lost.push(Reply::bulk(key)),
        }
    }
    Ok((extended, lost))
}

fn owner_name(user: &[u8], owner: &[u8]) -> Result<OwnerName, CommandError> {
    if owner.is_empty() || owner.len() > OWNER_BYTES_MAX {
        return Err(CommandError::other("ERR lock owner must be 1 to 256 bytes long"));
    }
    Ok(OwnerName::new(user, owner))
}

/// A lease in units of `factor` milliseconds.
fn read_lease(number: &[u8], factor: i64) -> Result<Millis, CommandError> {
    let number = parse_i64(number).ok_or(CommandError::NotAnInteger)?;
    let in_range = number.checked_mul(factor).filter(|ms| (LEASE_MS_MIN..=LEASE_MS_MAX).contains(ms));
    let ms = in_range.and_then(|ms| u64::try_from(ms).ok());
    let text = "ERR lock lease must be between 100 milliseconds and 24 hours";
    ms.map(Millis).ok_or_else(|| CommandError::other(text))
}

fn read_token(number: &[u8]) -> Result<FencingToken, CommandError> {
    let token = parse_i64(number).and_then(|token| u64::try_from(token).ok());
    token.filter(|token| (1..TOKEN_END).contains(token)).map(FencingToken).ok_or(CommandError::NotAnInteger)
}

fn token_reply(token: FencingToken) -> Reply {
    Reply::Integer(i64::try_from(token.0).expect("tokens are below 2^53"))
}

/// The lock verbs.
pub static ROWS: &[CommandSpec] = &[
    CommandSpec {
        name: "lock",
        syntax: "LOCK key owner [EX seconds | PX milliseconds]",
        group: Group::Locks,
        since: "0.1.0",
        summary: "Takes a lock for a while and returns its fencing token, or null if another owner holds it.",
        complexity: "O(1)",
        arity: -3,
        flags: Flags::WRITE.and(Flags::DENYOOM).and(Flags::FAST),
        keys: KeySpec::one(1),
        acl: Categories::LOCK,
        execute: Execute::Write(lock),
        subcommands: &[],
    },
    CommandSpec {
        name: "unlock",
        syntax: "UNLOCK key owner [TOKEN token]",
        group: Group::Locks,
        since: "0.1.0",
        summary: "Releases a lock that the owner holds and returns 1, or 0 if the owner does not hold it.",
        complexity: "O(1)",
        arity: -3,
        flags: Flags::WRITE.and(Flags::FAST),
        keys: KeySpec::one(1),
        acl: Categories::LOCK,
        execute: Execute::Write(unlock),
        subcommands: &[],
    },
    CommandSpec {
        name: "lockextend",
        syntax: "LOCKEXTEND owner milliseconds [KEYS numkeys key [key ...]]",
        group: Group::Locks,
        since: "0.1.0",
        summary: "Sets the remaining lease of the owner's locks in this database, all or the named ones.",
        complexity: "O(N) with N being the number of locks",
        arity: -3,
        flags: Flags::WRITE.and(Flags::FAST).and(Flags::MOVABLE_KEYS),
        keys: KeySpec::KeywordNumKeys { word: "KEYS", from: 3 },
        acl: Categories::LOCK,
        execute: Execute::Write(lockextend),
        subcommands: &[],
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::State;
    use crate::types::ClusterTime;
    use crate::types::LogIndex;
    use crate::types::Term;
    use crate::types::WallMillis;

    /// Runs one command line as an entry of its own at this time, as a user.
    fn run_as(state: &mut State, user: &str, now: u64, line: &str) -> CommandResult {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let spec = ROWS.iter().find(|spec| eq_ignore_case(args[0], spec.name)).unwrap();
        assert!(spec.arity_allows(args.len()), "{line}");
        let now = ClusterTime(now);
        state.begin_entry(LogIndex(state.meta().applied.0 + 1), Term(1), now, WallMillis(0));
        for at in spec.keys.positions(&args) {
            state.expire_touched(0, args[at], now);
        }
        let mut context = WriteContext { state, db: 0, user: user.as_bytes(), now, wall: WallMillis(0) };
        match spec.execute {
            Execute::Write(execute) => execute(&mut context, &args),
            Execute::Read(_) | Execute::Session(_) => panic!("lock verbs are writes"),
        }
    }

    fn run(state: &mut State, now: u64, line: &str) -> CommandResult {
        run_as(state, "default", now, line)
    }

    fn extended(count: i64, lost: &[&str]) -> CommandResult {
        Ok(Reply::Map(vec![
            (Reply::bulk("extended"), Reply::Integer(count)),
            (Reply::bulk("lost"), Reply::Array(lost.iter().map(Reply::bulk).collect())),
        ]))
    }

    #[test]
    fn a_first_session_with_locks() {
        let mut state = State::new(1);
        for (now, line, reply) in [
            (0, "LOCK jobs a PX 1000", Reply::Integer(1)),
            (10, "lock jobs a ex 2", Reply::Integer(1)),
            (20, "LOCK jobs b", Reply::Null),
            (20, "LOCK other b", Reply::Integer(2)),
            (30, "UNLOCK jobs b", Reply::Integer(0)),
            (30, "UNLOCK jobs a TOKEN 2", Reply::Integer(0)),
            (2_009, "LOCK jobs b", Reply::Null),
            (2_010, "LOCK jobs b", Reply::Integer(3)),
            (2_010, "UNLOCK jobs a", Reply::Integer(0)),
            (2_020, "UNLOCK jobs b token 3", Reply::Integer(1)),
            (2_030, "UNLOCK jobs b TOKEN 3", Reply::Integer(0)),
            (30_019, "LOCK other c", Reply::Null),
            (30_020, "LOCK other c", Reply::Integer(4)),
        ] {
            assert_eq!(run(&mut state, now, line), Ok(reply), "{line} at {now}");
        }
    }

    #[test]
    fn lockextend_says_what_it_extended_and_what_was_lost() {
        let mut state = State::new(1);
        for key in ["x", "y", "z"] {
            assert!(run(&mut state, 0, &format!("LOCK {key} a PX 1000")).is_ok());
        }
        assert_eq!(run(&mut state, 0, "LOCK w b PX 1000"), Ok(Reply::Integer(4)));
        assert_eq!(
            run(&mut state, 10, "LOCKEXTEND a 5000 KEYS 4 x nowhere w x"),
            extended(1, &["nowhere", "w"])
        );
        assert_eq!(run(&mut state, 20, "LOCKEXTEND a 2000"), extended(3, &[]));
        assert_eq!(run(&mut state, 2_019, "LOCKEXTEND a 100 keys 1 x"), extended(1, &[]));
        assert_eq!(run(&mut state, 2_020, "LOCKEXTEND a 9000"), extended(1, &[]));
        assert_eq!(run(&mut state, 2_021, "LOCKEXTEND a 9000 KEYS 2 x y"), extended(1, &["y"]));
        assert_eq!(run(&mut state, 2_022, "LOCKEXTEND nobody 9000"), extended(0, &[]));
    }

    #[test]
    fn an_owner_is_known_within_its_user_only() {
        let mut state = State::new(1);
        assert_eq!(run_as(&mut state, "alice", 0, "LOCK k o"), Ok(Reply::Integer(1)));
        assert_eq!(run_as(&mut state, "bob", 0, "LOCK k o"), Ok(Reply::Null));
        assert_eq!(run_as(&mut state, "bob", 0, "UNLOCK k o TOKEN 1"), Ok(Reply::Integer(0)));
        assert_eq!(run_as(&mut state, "bob", 0, "LOCKEXTEND o 1000"), extended(0, &[]));
    }

    #[test]
    fn every_wrong_use_has_its_error_and_changes_nothing() {
        let range = "ERR lock lease must be between 100 milliseconds and 24 hours";
        let integer = "ERR value is not an integer or out of range";
        let syntax = "ERR syntax error";
        let numkeys = "ERR LOCKEXTEND numkeys does not match the number of keys";
        let owner = "ERR lock owner must be 1 to 256 bytes long";
        let wrong_type = "WRONGTYPE Operation against a key holding the wrong kind of value";
        let later = |option: &str| format!("ERR LOCK option {option} is not supported by this version");
        let long = format!("LOCK k {}", "o".repeat(257));
        let mut state = State::new(1);
        state.put_string(0, b"s", b"v", None);
        let before = state.digest();
        for (line, error) in [
            ("LOCK k ", owner),
            (&long, owner),
            ("LOCK k o PX", syntax),
            ("LOCK k o NX", syntax),
            ("LOCK k o PX 1000 PX 1000", syntax),
            ("LOCK k o PX 1000 EX 1", syntax),
            ("LOCK k o PX ten", integer),
            ("LOCK k o PX 1.5", integer),
            ("LOCK k o PX 99999999999999999999", integer),
            ("LOCK k o PX 99", range),
            ("LOCK k o PX 0", range),
            ("LOCK k o PX -1000", range),
            ("LOCK k o PX 86400001", range),
            ("LOCK k o EX 86401", range),
            ("LOCK k o EX 9223372036854775807", range),
            ("LOCK k o SHARED", &later("SHARED")),
            ("LOCK k o PX 1000 limit 3", &later("LIMIT")),
            ("LOCK k o BLOCK 0", &later("BLOCK")),
            ("LOCK k o GRACE 5", &later("GRACE")),
            ("LOCK k o DATA d", &later("DATA")),
            ("LOCK s o", wrong_type),
            ("UNLOCK k ", owner),
            ("UNLOCK k o 7", syntax),
            ("UNLOCK k o TOKEN", syntax),
            ("UNLOCK k o TOKEN 1 TOKEN 1", syntax),
            ("UNLOCK k o TOKEN x", integer),
            ("UNLOCK k o TOKEN 0", integer),
            ("UNLOCK k o TOKEN 9007199254740992", integer),
            ("UNLOCK s o", wrong_type),
            ("LOCKEXTEND  1000", owner),
            ("LOCKEXTEND o x", integer),
            ("LOCKEXTEND o 99", range),
            ("LOCKEXTEND o 86400001", range),
            ("LOCKEXTEND o 1000 k", syntax),
            ("LOCKEXTEND o 1000 KEYS", syntax),
            ("LOCKEXTEND o 1000 KEYS x k", integer),
            ("LOCKEXTEND o 1000 KEYS 0", "ERR numkeys should be greater than 0"),
            ("LOCKEXTEND o 1000 KEYS -1 k", "ERR numkeys should be greater than 0"),
            ("LOCKEXTEND o 1000 KEYS 2 k", numkeys),
            ("LOCKEXTEND o 1000 KEYS 1 k l", numkeys),
            ("LOCKEXTEND o 1000 KEYS 2 k s", wrong_type),
        ] {
            let refusal = run(&mut state, 0, line).map_err(|error| error.to_string());
            assert_eq!(refusal, Err(error.to_owned()), "{line}");
        }
        state.meta.applied = LogIndex(0);
        state.meta.applied_term = Term(0);
        assert_eq!(state.digest(), before);
    }

    #[test]
    fn the_limits_of_every_number_are_allowed() {
        let mut state = State::new(1);
        let owner = "o".repeat(256);
        for line in [
            format!("LOCK k {owner} PX 100"),
            format!("LOCK k {owner} PX 86400000"),
            format!("LOCK k {owner} EX 1"),
            format!("LOCK k {owner} EX 86400"),
        ] {
            assert_eq!(run(&mut state, 0, &line), Ok(Reply::Integer(1)), "{line}");
        }
        assert_eq!(run(&mut state, 0, "UNLOCK k o TOKEN 9007199254740991"), Ok(Reply::Integer(0)));
    }
}
