//! The lock verbs: LOCK, MLOCK, UNLOCK, LOCKEXTEND (COMMANDS.md 2.2). Who looks at locks and breaks them is in
//! `lock_admin`.

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
use crate::state::locks::Acquired;
use crate::state::locks::CHANGED_AT_ONCE;
use crate::state::locks::HOLDERS_MAX;
use crate::state::locks::LockRequest;
use crate::state::locks::Mode;
use crate::state::locks::OwnerName;
use crate::state::locks::Wanted;
use crate::state::locks::graph::shown;
use crate::state::notices::Grant;
use crate::types::ClusterTime;
use crate::types::FencingToken;
use crate::types::Millis;

/// Shortest lease of a lock, in milliseconds.
const LEASE_MS_MIN: i64 = 100;
/// Longest lease of a lock, in milliseconds: 24 hours.
const LEASE_MS_MAX: i64 = 86_400_000;
/// Longest BLOCK, in milliseconds: a year. 0 is for ever.
const BLOCK_MS_MAX: i64 = 365 * 86_400_000;
/// Longest owner, in bytes.
const OWNER_BYTES_MAX: usize = 256;
/// Longest DATA, in bytes.
const DATA_BYTES_MAX: usize = 1024;
/// Most keys of one MLOCK.
const MLOCK_KEYS_MAX: i64 = 128;
/// Tokens are below this, so that every client's numbers hold them exactly.
const TOKEN_END: u64 = 1 << 53;
/// How much of an unknown option its error repeats, in bytes.
const SHOWN_BYTES_MAX: usize = 64;

/// What LOCK and MLOCK are asked for besides keys and owner.
#[derive(Debug, Default)]
struct Options {
    is_shared: bool,
    limit: Option<u32>,
    lease: Option<Millis>,
    block: Option<Millis>,
    grace: Option<Millis>,
    data: Option<Box<[u8]>>,
}

impl Options {
    /// Reads the words behind the owner. `allowed` names the options that the verb takes.
    fn parse(verb: &str, allowed: &[&str], words: Args<'_>) -> Result<Options, CommandError> {
        let mut options = Options::default();
        let mut rest = words;
        while let [word, tail @ ..] = rest {
            rest = tail;
            let Some(name) = allowed.iter().find(|name| eq_ignore_case(word, name)) else {
                let shown = word[..word.len().min(SHOWN_BYTES_MAX)].escape_ascii();
                return Err(syntax(format!("{verb} has no option '{shown}'")));
            };
            if *name == "SHARED" {
                if std::mem::replace(&mut options.is_shared, true) {
                    return Err(twice(name));
                }
                continue;
            }
            let [value, tail @ ..] = rest else { return Err(syntax(format!("{name} needs a value"))) };
            rest = tail;
            let is_new = match *name {
                "LIMIT" => options.limit.replace(read_limit(value)?).is_none(),
                "BLOCK" => options.block.replace(read_within(value, "BLOCK", 0, BLOCK_MS_MAX)?).is_none(),
                "GRACE" => options.grace.replace(read_within(value, "GRACE", 0, LEASE_MS_MAX)?).is_none(),
                "DATA" => options.data.replace(read_data(value)?).is_none(),
                "EX" => options.lease.replace(read_lease(value, 1000)?).is_none(),
                _ => options.lease.replace(read_lease(value, 1)?).is_none(),
            };
            if !is_new {
                return Err(twice(name));
            }
        }
        if options.limit.is_some() && !options.is_shared {
            return Err(syntax("LIMIT needs SHARED".to_owned()));
        }
        Ok(options)
    }

    fn until(&self, now: ClusterTime) -> Option<ClusterTime> {
        self.block.map(|block| if block.0 == 0 { ClusterTime::NEVER } else { now.after(block) })
    }

    fn wanted(self, default_lease: Millis) -> Wanted {
        Wanted {
            mode: if self.is_shared { Mode::Shared } else { Mode::Exclusive },
            limit: self.limit.unwrap_or(0),
            lease: self.lease.unwrap_or(default_lease),
            grace: self.grace.unwrap_or(Millis(0)),
            data: self.data,
        }
    }
}

fn lock(context: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let owner = owner_name(context.user, args[2])?;
    let allowed = ["SHARED", "LIMIT", "EX", "PX", "BLOCK", "GRACE", "DATA"];
    let options = Options::parse("LOCK", &allowed, &args[3..])?;
    match acquire(context, &[args[1]], None, &owner, options)? {
        Got::Grants(grants) => Ok(token_reply(grants[0].token)),
        Got::Waiting(reply) => Ok(reply),
        Got::Nothing => Ok(Reply::Null),
    }
}

fn mlock(context: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let count = parse_i64(args[1]).ok_or(CommandError::NotAnInteger)?;
    if !(1..=MLOCK_KEYS_MAX).contains(&count) {
        let text = format!("ERR MLOCK numkeys must be between 1 and {MLOCK_KEYS_MAX}");
        return Err(CommandError::other(text));
    }
    let count = usize::try_from(count).expect("it was found to be small");
    let (Some(named), Some(owner)) = (args.get(2..2 + count), args.get(2 + count)) else {
        return Err(CommandError::other(
            "ERR MLOCK numkeys does not match the number of keys: an owner follows them",
        ));
    };
    let owner = owner_name(context.user, owner)?;
    let options = Options::parse("MLOCK", &["SHARED", "EX", "PX", "BLOCK"], &args[3 + count..])?;
    let mut keys: Vec<&[u8]> = Vec::new();
    let mut order = Vec::with_capacity(count);
    for key in named {
        let place = keys.iter().position(|known| known == key).unwrap_or_else(|| {
            keys.push(key);
            keys.len() - 1
        });
        order.push(u32::try_from(place).expect("there are few keys"));
    }
    match acquire(context, &keys, Some(&order), &owner, options)? {
        Got::Grants(grants) => Ok(tokens_reply(&grants, &order)),
        Got::Waiting(reply) => Ok(reply),
        Got::Nothing => Ok(Reply::NullArray),
    }
}

/// What LOCK and MLOCK answer to a grant that came later.
#[must_use]
pub fn granted_reply(grants: &[Grant], order: Option<&[u32]>) -> Reply {
    match order {
        Some(order) => tokens_reply(grants, order),
        None => grants.first().map_or(Reply::Null, |grant| token_reply(grant.token)),
    }
}

fn tokens_reply(grants: &[Grant], order: &[u32]) -> Reply {
    let token = |place: &u32| grants.get(*place as usize).map(|grant| token_reply(grant.token));
    Reply::Array(order.iter().filter_map(token).collect())
}

enum Got {
    Grants(Vec<Grant>),
    Waiting(Reply),
    Nothing,
}

fn acquire(
    context: &mut WriteContext<'_>,
    keys: &[&[u8]],
    order: Option<&[u32]>,
    owner: &OwnerName,
    options: Options,
) -> Result<Got, CommandError> {
    // A transaction never waits.
    let until = options.until(context.now).filter(|_| !context.in_transaction);
    let wanted = options.wanted(context.state.settings().lock_default_ttl);
    let request =
        LockRequest { db: context.db, keys, order, owner, wanted: &wanted, until, origin: context.origin };
    let error = |text: String| Err(CommandError::other(text));
    match locks::acquire(context.state, &request, context.now) {
        Acquired::Held(grants) => Ok(Got::Grants(grants)),
        Acquired::Waiting(claim) => Ok(Got::Waiting(Reply::Waiting(claim.0))),
        Acquired::Taken { key, holder } if context.in_transaction => {
            let (holder, ttl) = match holder {
                Some((owner, until)) => (shown(&owner.owner), context.now.until(until).0),
                // Somebody who waits for another lock as well is before it.
                None => ("none".to_owned(), 0),
            };
            error(format!("LOCKED {} holder={holder} ttl={ttl}", shown(&key)))
        }
        Acquired::Taken { .. } => Ok(Got::Nothing),
        Acquired::WrongType => Err(CommandError::WrongType),
        Acquired::LimitDiffers { limit } => error(locks::limit_differs(limit)),
        Acquired::OtherMode => error("ERR this owner waits for this already, in another mode".to_owned()),
        Acquired::Deadlock(text) => error(text),
        Acquired::TooMany => error("TRYAGAIN too many requests wait for this lock".to_owned()),
        Acquired::GraphTooLarge => {
            error("TRYAGAIN more wait for each other than lock-graph-max allows to look at".to_owned())
        }
    }
}

fn unlock(context: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let owner = owner_name(context.user, args[2])?;
    let token = match &args[3..] {
        [] => None,
        [word, token] if eq_ignore_case(word, "TOKEN") => Some(read_token(token)?),
        _ => return Err(syntax("UNLOCK takes key, owner and TOKEN token".to_owned())),
    };
    let outcome = locks::release(context.state, context.db, args[1], &owner, token, context.now);
    Ok(Reply::Integer(i64::from(outcome.ok_or(CommandError::WrongType)?)))
}

fn lockextend(context: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let owner = owner_name(context.user, args[1])?;
    let lease = read_lease(args[2], 1)?;
    let (extended, lost) = match named_keys(&args[3..])? {
        None => {
            let origin = context.origin;
            let all = locks::extend_all(context.state, context.db, &owner, lease, origin, context.now);
            (all.ok_or_else(too_many_locks)?, Vec::new())
        }
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
        _ => return Err(syntax("LOCKEXTEND takes owner, milliseconds and KEYS numkeys key ...".to_owned())),
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

fn too_many_locks() -> CommandError {
    let text = format!("ERR LOCKEXTEND extends {CHANGED_AT_ONCE} locks at most: name some of them with KEYS");
    CommandError::other(text)
}

/// Extends the named locks and lists those that were lost; a key named twice counts once.
fn extend_named(
    context: &mut WriteContext<'_>,
    owner: &OwnerName,
    lease: Millis,
    keys: Args<'_>,
) -> Result<(usize, Vec<Reply>), CommandError> {
    if keys.len() > CHANGED_AT_ONCE {
        return Err(too_many_locks());
    }
    if keys.iter().any(|key| locks::lock_at(context.state, context.db, key).is_none()) {
        return Err(CommandError::WrongType);
    }
    let mut seen = BTreeSet::new();
    let mut extended = 0;
    let mut lost = Vec::new();
    for key in keys.iter().filter(|key| seen.insert(**key)) {
        let outcome =
            locks::extend(context.state, context.db, key, owner, lease, context.origin, context.now);
        if outcome.ok_or(CommandError::WrongType)? {
            extended += 1;
        } else {
            lost.push(Reply::bulk(key));
        }
    }
    Ok((extended, lost))
}

fn syntax(what: String) -> CommandError {
    CommandError::other(format!("ERR syntax error: {what}"))
}

fn twice(option: &str) -> CommandError {
    match option {
        "EX" | "PX" => syntax("the lease is given twice".to_owned()),
        option => syntax(format!("{option} is given twice")),
    }
}

/// An owner as a command names it.
pub(super) fn owner_name(user: &[u8], owner: &[u8]) -> Result<OwnerName, CommandError> {
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

fn read_within(number: &[u8], option: &str, min: i64, max: i64) -> Result<Millis, CommandError> {
    let number = parse_i64(number).ok_or(CommandError::NotAnInteger)?;
    let in_range = u64::try_from(number).ok().filter(|_| (min..=max).contains(&number));
    let text = || CommandError::other(format!("ERR {option} must be between {min} and {max} milliseconds"));
    in_range.map(Millis).ok_or_else(text)
}

fn read_limit(number: &[u8]) -> Result<u32, CommandError> {
    let number = parse_i64(number).ok_or(CommandError::NotAnInteger)?;
    let limit = usize::try_from(number).ok().filter(|limit| (1..=HOLDERS_MAX).contains(limit));
    let text = || CommandError::other(format!("ERR LIMIT must be between 1 and {HOLDERS_MAX}"));
    limit.and_then(|limit| u32::try_from(limit).ok()).ok_or_else(text)
}

fn read_data(data: &[u8]) -> Result<Box<[u8]>, CommandError> {
    if data.len() > DATA_BYTES_MAX {
        return Err(CommandError::other(format!("ERR DATA must be at most {DATA_BYTES_MAX} bytes long")));
    }
    Ok(data.into())
}

/// A fencing token as a command names it.
pub(super) fn read_token(number: &[u8]) -> Result<FencingToken, CommandError> {
    let token = parse_i64(number).and_then(|token| u64::try_from(token).ok());
    token.filter(|token| (1..TOKEN_END).contains(token)).map(FencingToken).ok_or(CommandError::NotAnInteger)
}

/// A token as replies show it.
pub(super) fn token_reply(token: FencingToken) -> Reply {
    Reply::Integer(i64::try_from(token.0).expect("tokens are below 2^53"))
}

/// The lock verbs.
pub static ROWS: &[CommandSpec] = &[
    CommandSpec {
        name: "lock",
        syntax: "LOCK key owner [SHARED [LIMIT limit]] [EX seconds | PX milliseconds] [BLOCK milliseconds] [GRACE milliseconds] [DATA value]",
        group: Group::Locks,
        since: "0.1.0",
        summary: "Takes a lock for a while and returns its fencing token, or null if it is not to be had, in time with BLOCK.",
        complexity: "O(log(N)) with N being the number of locks held; O(E) more with the E edges that are searched for a deadlock",
        arity: -3,
        flags: Flags::WRITE
            .and(Flags::DENYOOM)
            .and(Flags::BLOCKING)
            .and(Flags::ORIGIN)
            .and(Flags::HANDS_OUT_LOCKS),
        keys: KeySpec::one(1),
        acl: Categories::LOCK,
        execute: Execute::Write(lock),
        subcommands: &[],
    },
    CommandSpec {
        name: "mlock",
        syntax: "MLOCK numkeys key [key ...] owner [SHARED] [EX seconds | PX milliseconds] [BLOCK milliseconds]",
        group: Group::Locks,
        since: "0.1.0",
        summary: "Takes several locks at once or none of them, and returns their fencing tokens.",
        complexity: "O(K*log(N)) with K keys and N locks held",
        arity: -4,
        flags: Flags::WRITE
            .and(Flags::DENYOOM)
            .and(Flags::BLOCKING)
            .and(Flags::MOVABLE_KEYS)
            .and(Flags::ORIGIN)
            .and(Flags::HANDS_OUT_LOCKS)
            .and(Flags::ANSWERS_ARRAY),
        keys: KeySpec::NumKeys { at: 1 },
        acl: Categories::LOCK,
        execute: Execute::Write(mlock),
        subcommands: &[],
    },
    CommandSpec {
        name: "unlock",
        syntax: "UNLOCK key owner [TOKEN token]",
        group: Group::Locks,
        since: "0.1.0",
        summary: "Releases a lock that the owner holds and returns 1, or 0 if the owner does not hold it.",
        complexity: "O(log(N)) with N being the number of locks held",
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
        summary: "Sets the remaining lease of the owner's locks in this database, all or the named ones, 10000 at most.",
        complexity: "O(N*log(M)) with N being the number of locks and M that of all locks held",
        arity: -3,
        flags: Flags::WRITE.and(Flags::FAST).and(Flags::MOVABLE_KEYS).and(Flags::ORIGIN).and(Flags::WALKS),
        keys: KeySpec::KeywordNumKeys { word: "KEYS", from: 3 },
        acl: Categories::LOCK,
        execute: Execute::Write(lockextend),
        subcommands: &[],
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::guards;
    use crate::commands::lock_admin;
    use crate::commands::spec::ReadContext;
    use crate::commands::table;
    use crate::commands::table::testing::show;
    use crate::state::State;
    use crate::state::confirm::test_support::confirm_handed;
    use crate::state::notices::ClaimEnd;
    use crate::state::notices::Notice;
    use crate::state::notices::Origin;
    use crate::types::LogIndex;
    use crate::types::Term;
    use crate::types::WallMillis;
    use crate::types::bounds::Bounds;

    /// A state and what was told of it.
    struct Bench {
        state: State,
    }

    impl Bench {
        fn new() -> Bench {
            Bench { state: State::new(16) }
        }

        /// Runs one command line as an entry of its own at this time, as a user.
        fn run_as(&mut self, user: &str, now: u64, line: &str) -> String {
            let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            let rows = [ROWS, lock_admin::ROWS, guards::ROWS].into_iter().flatten();
            let row = rows.into_iter().find(|spec| eq_ignore_case(args[0], spec.name)).unwrap();
            let spec = table::leaf(row, &args);
            if !spec.arity_allows(args.len()) {
                return "arity".to_owned();
            }
            let (now, wall) = (ClusterTime(now), WallMillis(0));
            let state = &mut self.state;
            state.begin_entry(LogIndex(state.meta().applied.0 + 1), Term(1), now, wall);
            for at in spec.keys.positions(&args) {
                state.expire_touched(0, args[at], now);
            }
            let (user, origin) = (user.as_bytes(), Origin { address: "addr".into(), ..Origin::default() });
            let result = match spec.execute {
                Execute::Write(execute) => {
                    let mut context = WriteContext {
                        state,
                        db: 0,
                        user,
                        now,
                        wall,
                        origin: &origin,
                        in_transaction: false,
                        bounds: Bounds::DEFAULT,
                        reply_later: Bounds::DEFAULT.reply,
                    };
                    execute(&mut context, &args)
                }
                Execute::Read(execute) => execute(
                    &ReadContext { state, db: 0, user, now, wall, seed: 0, bounds: Bounds::DEFAULT },
                    &args,
                ),
                Execute::Session(_) => panic!("lock verbs need the state"),
            };
            show(&result.unwrap_or_else(Reply::from))
        }

        fn run(&mut self, now: u64, line: &str) -> String {
            self.run_as("default", now, line)
        }

        /// Ends what is due.
        fn expire(&mut self, now: u64) -> usize {
            let (index, now) = (LogIndex(self.state.meta().applied.0 + 1), ClusterTime(now));
            self.state.begin_entry(index, Term(1), now, WallMillis(0));
            std::iter::from_fn(|| Some(self.state.expire_due(now)).filter(|ended| *ended > 0)).sum()
        }

        /// How waits ended since the last call: "claim: reply". What was handed to them is confirmed.
        fn ends(&mut self) -> Vec<String> {
            let told = |notice| match notice {
                Notice::ClaimHanded { claim, end, .. } | Notice::ClaimEnded { claim, end, .. } => {
                    let end = match end {
                        ClaimEnd::Granted(granted) => {
                            show(&granted_reply(&granted.grants, granted.order.as_deref()))
                        }
                        ClaimEnd::Over => "null".to_owned(),
                        ClaimEnd::Failed(text) => format!("-{text}"),
                        ClaimEnd::Delivered(_) => panic!("nobody waits for messages"),
                    };
                    Some(format!("{}: {end}", claim.0))
                }
                Notice::ClaimBegan { .. } | Notice::ClaimConfirmed { .. } | Notice::Lock { .. } => None,
            };
            let notices = self.state.take_notices().0;
            confirm_handed(&mut self.state, &notices);
            notices.into_iter().filter_map(told).collect()
        }

        fn check(&mut self, steps: &[(u64, &str, &str)]) {
            for (now, line, reply) in steps {
                assert_eq!(self.run(*now, line), *reply, "{line} at {now}");
            }
        }
    }

    #[test]
    fn a_first_session_with_locks() {
        Bench::new().check(&[
            (0, "LOCK jobs a PX 1000", ":1"),
            (10, "lock jobs a ex 2", ":1"),
            (20, "LOCK jobs b", "null"),
            (20, "LOCK other b", ":2"),
            (30, "UNLOCK jobs b", ":0"),
            (30, "UNLOCK jobs a TOKEN 2", ":0"),
            (2_009, "LOCK jobs b", "null"),
            (2_010, "LOCK jobs b", ":3"),
            (2_010, "UNLOCK jobs a", ":0"),
            (2_020, "UNLOCK jobs b token 3", ":1"),
            (2_030, "UNLOCK jobs b TOKEN 3", ":1"),
            (2_030, "UNLOCK jobs c TOKEN 3", ":0"),
            (602_019, "UNLOCK jobs b TOKEN 3", ":1"),
            (602_020, "UNLOCK jobs b TOKEN 3", ":0"),
            (602_020, "LOCK other c", ":4"),
        ]);
    }

    #[test]
    fn lockextend_says_what_it_extended_and_what_was_lost() {
        let mut bench = Bench::new();
        for key in ["x", "y", "z"] {
            bench.run(0, &format!("LOCK {key} a PX 1000"));
        }
        bench.check(&[
            (0, "LOCK w b PX 1000", ":4"),
            (10, "LOCKEXTEND a 5000 KEYS 4 x nowhere w x", "{extended: :1, lost: [nowhere w]}"),
            (20, "LOCKEXTEND a 2000", "{extended: :3, lost: []}"),
            (2_019, "LOCKEXTEND a 100 keys 1 x", "{extended: :1, lost: []}"),
            (2_020, "LOCKEXTEND a 9000", "{extended: :1, lost: []}"),
            (2_021, "LOCKEXTEND a 9000 KEYS 2 x y", "{extended: :1, lost: [y]}"),
            (2_022, "LOCKEXTEND nobody 9000", "{extended: :0, lost: []}"),
        ]);
    }

    #[test]
    fn a_lock_with_many_sharers_goes_on_as_one_with_few() {
        let mut bench = Bench::new();
        for n in 0..60 {
            let lease = 1_000 + 100 * (n % 7);
            assert_eq!(bench.run(0, &format!("LOCK k o{n} SHARED PX {lease}")), format!(":{}", n + 1));
        }
        bench.check(&[
            (10, "LOCK k o9 SHARED PX 9000", ":10"),
            (
                10,
                "LOCK k o9 SHARED LIMIT 70",
                "-ERR this lock is shared without a LIMIT; ask for it without one",
            ),
            (20, "UNLOCK k o7 TOKEN 9", ":0"),
            (20, "UNLOCK k o7 TOKEN 8", ":1"),
            (20, "UNLOCK k o7", ":0"),
            (20, "LOCK k o7 SHARED PX 9000", ":61"),
            (30, "LOCKEXTEND o11 9000 KEYS 1 k", "{extended: :1, lost: []}"),
            (30, "LOCK k w BLOCK 0", "waiting 1"),
            (40, "FENCE k 30", "OK"),
        ]);
        // Each seventh of the others ends first, and so on; three live on.
        assert_eq!(bench.expire(1_000), 8);
        assert_eq!(bench.expire(1_599), 49 - 8);
        assert_eq!(bench.expire(1_600), 8);
        assert_eq!(bench.run(1_600, "LOCK k o9"), "null", "an upgrade waits for the others");
        bench.check(&[
            (1_600, "UNLOCK k o7", ":1"),
            (1_600, "UNLOCK k o11", ":1"),
            (1_600, "UNLOCK k o9", ":1"),
        ]);
        assert_eq!(bench.ends(), ["1: :62"]);
    }

    #[test]
    fn no_command_extends_or_releases_more_locks_than_others_can_wait_for() {
        let mut bench = Bench::new();
        for n in 0..=CHANGED_AT_ONCE {
            bench.run(0, &format!("LOCK k{n} me PX 60000"));
        }
        let refused = "-ERR LOCKEXTEND extends 10000 locks at most: name some of them with KEYS";
        let named = (0..=CHANGED_AT_ONCE).map(|n| format!(" k{n}")).collect::<String>();
        bench.check(&[
            (0, "LOCK k0 you PX 60000 BLOCK 0", "waiting 1"),
            (0, "LOCK k1 me PX 60000", ":2"),
            (1, "LOCKEXTEND me 90000", refused),
            (1, &format!("LOCKEXTEND me 90000 KEYS 10001{named}"), refused),
            (1, "LOCKEXTEND me 90000 KEYS 2 k0 k1", "{extended: :2, lost: []}"),
            (2, "LOCKS RELEASE me", ":10000"),
            (2, "LOCKEXTEND me 90000", "{extended: :1, lost: []}"),
            (2, "LOCKS RELEASE me", ":1"),
            (2, "LOCKS RELEASE me", ":0"),
        ]);
        assert_eq!(bench.ends(), ["1: :10002"]);
    }

    #[test]
    fn the_graph_is_cut_at_its_limit_and_says_so() {
        let mut bench = Bench::new();
        for n in 0..3 {
            bench.run(0, &format!("LOCK k o{n} SHARED"));
        }
        bench.run(0, "LOCK k w BLOCK 0");
        bench.run(0, "LOCK k v SHARED BLOCK 0");
        bench.check(&[
            (0, "LOCKS GRAPH", "[:6 [[w k o0] [w k o1] [w k o2] [v k w]]]"),
            (0, "LOCKS GRAPH LIMIT 4", "[:7 [[w k o0] [w k o1] [w k o2] [v k w]]]"),
            (0, "LOCKS GRAPH FORMAT LIST LIMIT 2", "[:8 [[w k o0] [w k o1]] more]"),
            (0, "LOCKS GRAPH LIMIT 0", "-ERR LIMIT must be between 1 and 10000"),
        ]);
        let dot = bench.run(0, "LOCKS GRAPH LIMIT 3 FORMAT DOT");
        assert!(dot.contains("// more\n}") && !dot.contains("\"v\""), "{dot}");
    }

    #[test]
    fn an_owner_is_known_within_its_user_only() {
        let mut bench = Bench::new();
        assert_eq!(bench.run_as("alice", 0, "LOCK k o"), ":1");
        assert_eq!(bench.run_as("bob", 0, "LOCK k o"), "null");
        assert_eq!(bench.run_as("bob", 0, "UNLOCK k o TOKEN 1"), ":0");
        assert_eq!(bench.run_as("bob", 0, "LOCKEXTEND o 1000"), "{extended: :0, lost: []}");
    }

    #[test]
    fn who_waits_gets_the_lock_in_order_whatever_the_modes() {
        let mut bench = Bench::new();
        bench.check(&[
            (0, "LOCK k a", ":1"),
            (1, "LOCK k r1 SHARED BLOCK 0", "waiting 1"),
            (2, "LOCK k r2 SHARED BLOCK 0", "waiting 2"),
            (3, "LOCK k w BLOCK 0", "waiting 3"),
            (4, "LOCK k r3 SHARED BLOCK 0", "waiting 4"),
            (5, "UNLOCK k a", ":1"),
        ]);
        assert_eq!(bench.ends(), ["1: :2", "2: :3"], "the writer comes before the last reader");
        bench.check(&[(6, "LOCK k r4 SHARED", "null"), (6, "UNLOCK k r1", ":1"), (7, "UNLOCK k r2", ":1")]);
        assert_eq!(bench.ends(), ["3: :4"]);
        bench.check(&[(8, "UNLOCK k w", ":1")]);
        assert_eq!(bench.ends(), ["4: :5"]);
        assert_eq!(bench.run(9, "UNLOCK k r3"), ":1");
        assert_eq!(bench.run(9, "LOCKS INFO k"), "null");
    }

    #[test]
    fn a_wait_ends_in_time_and_the_lease_begins_with_the_grant() {
        let mut bench = Bench::new();
        bench.check(&[
            (0, "LOCK k a PX 1000", ":1"),
            (0, "LOCK k b PX 500 BLOCK 900", "waiting 1"),
            (0, "LOCK k c PX 500 BLOCK 5000", "waiting 2"),
        ]);
        assert_eq!(bench.expire(899), 0);
        assert_eq!(bench.expire(900), 1);
        assert_eq!(bench.ends(), ["1: null"]);
        assert_eq!(bench.expire(1_000), 1);
        assert_eq!(bench.ends(), ["2: :2"]);
        bench.check(&[(1_499, "FENCE k 2", "OK"), (1_500, "FENCE k 2", "-STALETOKEN k 2 current=none")]);
    }

    #[test]
    fn who_asks_again_joins_its_own_wait() {
        let mut bench = Bench::new();
        bench.check(&[
            (0, "LOCK k a", ":1"),
            (0, "LOCK k b BLOCK 1000", "waiting 1"),
            (0, "LOCK k c BLOCK 0", "waiting 2"),
            (1, "LOCK k b BLOCK 9000", "waiting 3"),
            (1, "LOCK k b SHARED BLOCK 9000", "-ERR this owner waits for this already, in another mode"),
        ]);
        assert_eq!(bench.expire(1_000), 1);
        assert_eq!(bench.ends(), ["1: null"]);
        assert_eq!(bench.run(1_001, "UNLOCK k a"), ":1");
        assert_eq!(bench.ends(), ["3: :2"], "it kept its place");
        assert_eq!(bench.run(1_002, "UNLOCK k c"), ":0");
        assert_eq!(bench.ends(), ["2: null"], "UNLOCK ends a wait");
    }

    #[test]
    fn a_request_of_another_shape_waits_by_itself_and_gets_its_own_reply() {
        let mut bench = Bench::new();
        bench.check(&[
            (0, "LOCK k a", ":1"),
            (0, "MLOCK 1 k b BLOCK 0", "waiting 1"),
            (0, "LOCK k b BLOCK 0", "waiting 2"),
            (0, "MLOCK 2 k k b BLOCK 0", "waiting 3"),
            (1, "UNLOCK k a", ":1"),
        ]);
        assert_eq!(bench.ends(), ["1: [:2]", "2: :2", "3: [:2 :2]"]);
    }

    #[test]
    fn a_grant_that_another_client_was_told_of_too_is_not_taken_back() {
        let mut bench = Bench::new();
        bench.check(&[
            (0, "LOCK k a", ":1"),
            (0, "LOCK k b BLOCK 0", "waiting 1"),
            (0, "LOCK k b BLOCK 0", "waiting 2"),
            (1, "UNLOCK k a", ":1"),
        ]);
        let notices = bench.state.take_notices().0;
        let granted = notices.iter().filter_map(|notice| match notice {
            Notice::ClaimHanded { end: ClaimEnd::Granted(granted), .. } => Some(granted),
            _ => None,
        });
        let granted: Vec<_> = granted.collect();
        assert_eq!(granted.len(), 2);
        // The first client is gone, the second holds it.
        for grant in &granted[0].grants {
            let grant = (&*grant.key, grant.token, grant.touches);
            let owner = granted[0].owner.clone();
            assert!(!locks::take_back(&mut bench.state, 0, &owner, grant, ClusterTime(2)));
        }
        assert_eq!(bench.run(3, "UNLOCK k b TOKEN 2"), ":1");
    }

    #[test]
    fn a_semaphore_has_so_many_places() {
        let mut bench = Bench::new();
        bench.check(&[
            (0, "LOCK s a SHARED LIMIT 2", ":1"),
            (0, "LOCK s b SHARED LIMIT 2", ":2"),
            (0, "LOCK s c SHARED LIMIT 2", "null"),
            (
                0,
                "LOCK s c SHARED LIMIT 3",
                "-ERR this lock is shared with LIMIT 2; ask for it with the same one",
            ),
            (0, "LOCK s c SHARED", "-ERR this lock is shared with LIMIT 2; ask for it with the same one"),
            (0, "LOCK s c SHARED LIMIT 2 BLOCK 0", "waiting 1"),
            (1, "UNLOCK s a", ":1"),
        ]);
        assert_eq!(bench.ends(), ["1: :3"]);
        assert_eq!(bench.run(2, "LOCK r a SHARED"), ":4");
        assert_eq!(
            bench.run(2, "LOCK r b SHARED LIMIT 2"),
            "-ERR this lock is shared without a LIMIT; ask for it without one"
        );
    }

    #[test]
    fn an_upgrade_goes_before_all_others_and_two_of_them_are_a_deadlock() {
        let mut bench = Bench::new();
        bench.check(&[
            (0, "LOCK k a SHARED", ":1"),
            (0, "LOCK k b SHARED", ":2"),
            (0, "LOCK k w BLOCK 0", "waiting 1"),
            (1, "LOCK k a BLOCK 0", "waiting 2"),
            (2, "LOCK k b BLOCK 0", "-DEADLOCK victim=b cycle=\"b -[k]-> a -[k]-> b\""),
            (3, "UNLOCK k b", ":1"),
        ]);
        assert_eq!(bench.ends(), ["2: :3"]);
        bench.check(&[
            (4, "FENCE k 1", "-STALETOKEN k 1 current=3"),
            (4, "LOCK k a SHARED", ":3"),
            (5, "LOCK k r SHARED", "null"),
            (6, "UNLOCK k a", ":1"),
        ]);
        assert_eq!(bench.ends(), ["1: :4"]);
    }

    #[test]
    fn a_downgrade_lets_readers_in() {
        let mut bench = Bench::new();
        bench.check(&[
            (0, "LOCK k a", ":1"),
            (0, "LOCK k r SHARED BLOCK 0", "waiting 1"),
            (1, "LOCK k a SHARED", ":1"),
        ]);
        assert_eq!(bench.ends(), ["1: :2"]);
    }

    #[test]
    fn a_cycle_of_owners_has_one_victim_and_the_rest_goes_on() {
        let mut bench = Bench::new();
        for n in 0..5 {
            bench.run(0, &format!("LOCK k{n} o{n}"));
        }
        for n in 0..4 {
            bench.run(1, &format!("LOCK k{} o{n} BLOCK 0", n + 1));
        }
        assert_eq!(
            bench.run(2, "LOCK k0 o4 BLOCK 0"),
            "-DEADLOCK victim=o4 cycle=\"o4 -[k0]-> o0 -[k1]-> o1 -[k2]-> o2 -[k3]-> o3 -[k4]-> o4\""
        );
        assert_eq!(bench.run(3, "LOCKS GRAPH"), "[:11 [[o0 k1 o1] [o1 k2 o2] [o2 k3 o3] [o3 k4 o4]]]");
        assert!(bench.ends().is_empty());
        assert_eq!(bench.run(4, "UNLOCK k4 o4"), ":1");
        assert_eq!(bench.ends(), ["4: :6"]);
        assert!(bench.run(5, "LOCKS DEADLOCKS COUNT 1").starts_with("[{index: :10, age_ms: :3, victim: o4"));
    }

    #[test]
    fn another_victim_can_be_chosen() {
        use crate::state::Settings;
        use crate::state::locks::graph::VictimChoice;
        for (choice, ends) in [
            // The youngest is who holds the greatest token; b holds fewer locks.
            (VictimChoice::Youngest, ["1: -DEADLOCK victim=b"]),
            (VictimChoice::FewestLocks, ["1: -DEADLOCK victim=b"]),
        ] {
            let mut bench = Bench::new();
            bench.state.set_settings(Settings {
                databases: 16,
                lock_deadlock_victim: choice,
                ..Settings::default()
            });
            bench.check(&[
                (0, "LOCK k1 a", ":1"),
                (0, "LOCK k3 a", ":2"),
                (0, "LOCK k2 b", ":3"),
                (1, "LOCK k1 b BLOCK 0", "waiting 1"),
                (2, "LOCK k2 a BLOCK 0", "waiting 2"),
            ]);
            let told = bench.ends();
            assert!(told.iter().zip(ends).all(|(told, end)| told.starts_with(end)), "{told:?}");
            assert_eq!(told.len(), 1);
            assert_eq!(bench.run(3, "UNLOCK k2 b"), ":1");
            assert_eq!(bench.ends(), ["2: :4"]);
        }
    }

    #[test]
    fn a_full_semaphore_is_a_deadlock_only_when_no_place_can_come_free() {
        let mut bench = Bench::new();
        bench.check(&[
            (0, "LOCK s a SHARED LIMIT 2", ":1"),
            (0, "LOCK s b SHARED LIMIT 2", ":2"),
            (0, "LOCK k c", ":3"),
            (1, "LOCK k a BLOCK 0", "waiting 1"),
            // b may still give its place back.
            (2, "LOCK s c SHARED LIMIT 2 BLOCK 0", "waiting 2"),
            (3, "LOCK k b BLOCK 0", "-DEADLOCK victim=b cycle=\"b -[k]-> c -[s]-> b\""),
        ]);
    }

    #[test]
    fn an_upgrade_at_once_may_close_a_cycle_through_another_wait_of_its_owner() {
        let mut bench = Bench::new();
        bench.check(&[
            (0, "LOCK k1 x", ":1"),
            (0, "LOCK k0 b SHARED", ":2"),
            // It goes with b's shared hold, and waits for x.
            (1, "MLOCK 2 k0 k1 a SHARED BLOCK 0", "waiting 1"),
            (2, "LOCK k1 b BLOCK 0", "waiting 2"),
            (3, "LOCK k0 b", ":3"),
        ]);
        assert_eq!(bench.ends(), ["2: -DEADLOCK victim=b cycle=\"b -[k1]-> a -[k0]-> b\""]);
    }

    #[test]
    fn who_comes_back_to_a_delayed_lock_may_close_a_cycle_through_another_wait() {
        let mut bench = Bench::new();
        bench.check(&[
            (0, "LOCK k0 a PX 100 GRACE 60000", ":1"),
            (0, "LOCK k1 b", ":2"),
            (200, "LOCK k0 b BLOCK 0", "waiting 1"),
            (200, "LOCK k1 a BLOCK 0", "waiting 2"),
            (200, "LOCK k0 a", ":3"),
        ]);
        assert_eq!(bench.ends(), ["2: -DEADLOCK victim=a cycle=\"a -[k1]-> b -[k0]-> a\""]);
    }

    #[test]
    fn several_locks_are_taken_at_once_or_not_at_all() {
        let mut bench = Bench::new();
        bench.check(&[
            (0, "MLOCK 3 a b a me", "[:1 :2 :1]"),
            (0, "MLOCK 3 a b a me", "[:1 :2 :1]"),
            (0, "MLOCK 2 b c you", "null-array"),
            (0, "MLOCK 2 b c you BLOCK 0", "waiting 1"),
            // Nobody passes by, though c is free.
            (0, "LOCK c other", "null"),
            (0, "LOCK c other BLOCK 0", "waiting 2"),
            (0, "MLOCK 2 c b third BLOCK 100", "waiting 3"),
            (1, "UNLOCK b me", ":1"),
        ]);
        assert_eq!(bench.ends(), ["1: [:3 :4]"]);
        assert_eq!(bench.expire(100), 1);
        assert_eq!(bench.run(101, "UNLOCK c you"), ":1");
        assert_eq!(bench.ends(), ["3: null", "2: :5"]);
    }

    #[test]
    fn multi_locks_in_any_order_never_deadlock() {
        let mut bench = Bench::new();
        bench.run(0, "MLOCK 2 a b o0 BLOCK 0");
        for n in 1..20 {
            let line = match n % 3 {
                0 => format!("MLOCK 2 a b o{n} BLOCK 0"),
                1 => format!("MLOCK 2 b a o{n} BLOCK 0"),
                _ => format!("MLOCK 3 b c a o{n} BLOCK 0 SHARED"),
            };
            assert_eq!(bench.run(1, &line), format!("waiting {n}"));
        }
        let mut granted = 0;
        for n in 0..20 {
            granted += bench.ends().len();
            bench.run(2, &format!("LOCKS RELEASE o{n}"));
        }
        assert_eq!(granted + bench.ends().len(), 19);
    }

    #[test]
    fn a_lock_with_grace_is_nobodys_for_a_while_after_it_expired() {
        let mut bench = Bench::new();
        bench.check(&[(0, "LOCK k a PX 1000 GRACE 500", ":1"), (0, "LOCK k b BLOCK 0", "waiting 1")]);
        assert_eq!(bench.expire(1_000), 1);
        assert_eq!(bench.run(1_100, "LOCKS INFO k").split(',').next(), Some("{mode: delayed"));
        assert_eq!(bench.run(1_100, "FENCE k 1"), "-STALETOKEN k 1 current=none");
        assert_eq!(bench.expire(1_499), 0);
        assert!(bench.ends().is_empty());
        assert_eq!(bench.expire(1_500), 1);
        assert_eq!(bench.ends(), ["1: :2"]);
        bench.check(&[(1_600, "UNLOCK k b", ":1"), (1_600, "LOCK k c", ":3")]);
    }

    #[test]
    fn who_left_a_delay_comes_back_at_once_and_the_delay_is_over() {
        let mut bench = Bench::new();
        bench.check(&[
            (0, "LOCK k a PX 1000 GRACE 86400000", ":1"),
            (0, "LOCK k b BLOCK 0", "waiting 1"),
            (1_000, "LOCK k c", "null"),
            (1_001, "LOCK k a PX 1000", ":2"),
            (1_002, "UNLOCK k a", ":1"),
        ]);
        assert_eq!(bench.ends(), ["1: :3"], "a released it, so nobody need wait any more");
        // Those who shared it and may both be at work wait for each other, too.
        bench.check(&[
            (2_000, "LOCK s a SHARED PX 1000 GRACE 5000", ":4"),
            (2_000, "LOCK s b SHARED PX 1000 GRACE 3000", ":5"),
            (3_000, "LOCK s a", "null"),
            (3_000, "LOCK s b SHARED", "null"),
        ]);
        // Who comes back to share lets others in.
        bench.check(&[
            (9_000, "LOCK r a PX 1000 GRACE 5000", ":6"),
            (9_000, "LOCK r b SHARED BLOCK 0", "waiting 2"),
            (10_001, "LOCK r a SHARED", ":7"),
        ]);
        assert_eq!(bench.ends(), ["2: :8"]);
    }

    #[test]
    fn killing_a_lock_ends_the_delay_after_its_hold() {
        let mut bench = Bench::new();
        bench.check(&[
            (0, "LOCK k a PX 100 GRACE 86400000", ":1"),
            (0, "LOCK k b PX 100 GRACE 86400000 BLOCK 0", "waiting 1"),
            (100, "LOCKS KILL k OWNER nobody", ":0"),
            (101, "LOCKS KILL k OWNER a", ":1"),
        ]);
        assert_eq!(bench.ends(), ["1: :2"]);
        assert_eq!(bench.expire(201), 1);
        bench.check(&[
            (300, "LOCK k c", "null"),
            (301, "LOCKS KILL k", ":1"),
            (302, "LOCKS KILL k", ":0"),
            (303, "LOCK k c", ":3"),
        ]);
    }

    #[test]
    fn those_who_wait_together_hold_for_as_long_as_any_of_them_asked() {
        let mut bench = Bench::new();
        bench.check(&[
            (0, "LOCK l h PX 60000", ":1"),
            (0, "LOCK l me PX 1000 BLOCK 500 DATA first", "waiting 1"),
            (1, "LOCK l me PX 60000 BLOCK 0 DATA second", "waiting 2"),
            (2, "LOCK l me PX 500 GRACE 700 BLOCK 0", "waiting 3"),
            (3, "UNLOCK l h", ":1"),
        ]);
        assert_eq!(bench.ends(), ["1: :2", "2: :2", "3: :2"]);
        let info = bench.run(3, "LOCKS INFO l");
        assert!(info.contains("[me :2 :60000 ") && info.contains("data: second"), "{info}");
        // Who gave up takes its part along.
        bench.check(&[
            (4, "LOCK m h PX 60000", ":3"),
            (4, "LOCK m me PX 60000 BLOCK 100", "waiting 4"),
            (4, "LOCK m me PX 1000 BLOCK 0", "waiting 5"),
        ]);
        assert_eq!(bench.expire(104), 1);
        assert_eq!(bench.run(105, "UNLOCK m h"), ":1");
        assert_eq!(bench.ends(), ["4: null", "5: :4"]);
        assert!(bench.run(105, "LOCKS INFO m").contains("[me :4 :1000 "));
        // The same of several locks.
        bench.check(&[
            (200, "MLOCK 2 x y h PX 60000", "[:5 :6]"),
            (200, "MLOCK 2 x y me PX 1000 BLOCK 0", "waiting 6"),
            (200, "MLOCK 2 x y me PX 30000 BLOCK 0", "waiting 7"),
            (201, "LOCKS RELEASE h", ":2"),
        ]);
        assert!(bench.run(201, "LOCKS INFO y").contains("[me :8 :30000 "));
    }

    #[test]
    fn an_operator_sees_who_holds_and_breaks_it() {
        let mut bench = Bench::new();
        bench.check(&[
            (0, "LOCK k a PX 5000 DATA http://a", ":1"),
            (100, "LOCK k b BLOCK 0", "waiting 1"),
            (
                200,
                "LOCKS INFO k",
                "{mode: exclusive, limit: :0, holders: [[a :1 :4800 default addr :200]], waiters: [[b exclusive :100 addr]], \
                 grants: :1, expiries: :0, delay_ms: :0, data: http://a}",
            ),
            (200, "LOCKS LIST 0 COUNT 100000 OWNER b", "[0 [k]]"),
            (200, "LOCKS LIST 0 COUNT 100000 MATCH x*", "[0 []]"),
            (200, "LOCKS KILL k OWNER nobody", ":0"),
            (200, "LOCKS KILL k OWNER a REASON stuck", ":1"),
        ]);
        assert_eq!(bench.ends(), ["1: :2"]);
        bench.check(&[
            (201, "FENCE k 1", "-STALETOKEN k 1 current=2"),
            (201, "UNLOCK k a TOKEN 1", ":0"),
            (202, "LOCKS RELEASE b", ":1"),
            (202, "LOCKS RELEASE b", ":0"),
        ]);
    }

    #[test]
    fn every_wrong_use_has_its_error_and_changes_nothing() {
        let range = "ERR lock lease must be between 100 milliseconds and 24 hours";
        let integer = "ERR value is not an integer or out of range";
        let syntax = |what: &str| format!("ERR syntax error: {what}");
        let numkeys = "ERR LOCKEXTEND numkeys does not match the number of keys";
        let owner = "ERR lock owner must be 1 to 256 bytes long";
        let wrong_type = "WRONGTYPE Operation against a key holding the wrong kind of value";
        let block = "ERR BLOCK must be between 0 and 31536000000 milliseconds";
        let grace = "ERR GRACE must be between 0 and 86400000 milliseconds";
        let limit = "ERR LIMIT must be between 1 and 100000";
        let mkeys = "ERR MLOCK numkeys must be between 1 and 128";
        let mcount = "ERR MLOCK numkeys does not match the number of keys: an owner follows them";
        let token = "ERR invalid token: want the number that LOCK gave, or the receipt that QPOP gave";
        let long = format!("LOCK k {}", "o".repeat(257));
        let data = format!("LOCK k o DATA {}", "d".repeat(1025));
        let reason = format!("LOCKS KILL k REASON {}", "r".repeat(513));
        let many = format!("MLOCK 129{} o", " k".repeat(129));
        let mut bench = Bench::new();
        bench.state.put_string(0, b"s", b"v", None);
        let before = bench.state.digest();
        for (line, error) in [
            ("LOCK k ", owner.to_owned()),
            (&long, owner.to_owned()),
            ("LOCK k o PX", syntax("PX needs a value")),
            ("LOCK k o NX", syntax("LOCK has no option 'NX'")),
            ("LOCK k o PX 1000 PX 1000", syntax("the lease is given twice")),
            ("LOCK k o PX 1000 EX 1", syntax("the lease is given twice")),
            ("LOCK k o PX ten", integer.to_owned()),
            ("LOCK k o PX 1.5", integer.to_owned()),
            ("LOCK k o PX 99999999999999999999", integer.to_owned()),
            ("LOCK k o PX 99", range.to_owned()),
            ("LOCK k o PX 0", range.to_owned()),
            ("LOCK k o PX -1000", range.to_owned()),
            ("LOCK k o PX 86400001", range.to_owned()),
            ("LOCK k o EX 86401", range.to_owned()),
            ("LOCK k o EX 9223372036854775807", range.to_owned()),
            ("LOCK k o SHARED SHARED", syntax("SHARED is given twice")),
            ("LOCK k o LIMIT 3", syntax("LIMIT needs SHARED")),
            ("LOCK k o SHARED LIMIT", syntax("LIMIT needs a value")),
            ("LOCK k o SHARED LIMIT 0", limit.to_owned()),
            ("LOCK k o SHARED LIMIT 100001", limit.to_owned()),
            ("LOCK k o SHARED LIMIT x", integer.to_owned()),
            ("LOCK k o SHARED LIMIT 2 LIMIT 2", syntax("LIMIT is given twice")),
            ("LOCK k o BLOCK", syntax("BLOCK needs a value")),
            ("LOCK k o BLOCK -1", block.to_owned()),
            ("LOCK k o BLOCK 31536000001", block.to_owned()),
            ("LOCK k o BLOCK soon", integer.to_owned()),
            ("LOCK k o BLOCK 1 BLOCK 1", syntax("BLOCK is given twice")),
            ("LOCK k o GRACE -1", grace.to_owned()),
            ("LOCK k o GRACE 86400001", grace.to_owned()),
            ("LOCK k o GRACE 1 GRACE 1", syntax("GRACE is given twice")),
            ("LOCK k o DATA", syntax("DATA needs a value")),
            ("LOCK k o DATA a DATA b", syntax("DATA is given twice")),
            (&data, "ERR DATA must be at most 1024 bytes long".to_owned()),
            ("LOCK s o", wrong_type.to_owned()),
            ("LOCK s o BLOCK 0", wrong_type.to_owned()),
            ("MLOCK x k o", integer.to_owned()),
            ("MLOCK 0 k o", mkeys.to_owned()),
            ("MLOCK -1 k o", mkeys.to_owned()),
            (&many, mkeys.to_owned()),
            ("MLOCK 2 k o", mcount.to_owned()),
            ("MLOCK 3 k o", mcount.to_owned()),
            ("MLOCK 1 k o LIMIT 2", syntax("MLOCK has no option 'LIMIT'")),
            ("MLOCK 1 k o GRACE 2", syntax("MLOCK has no option 'GRACE'")),
            ("MLOCK 1 k o DATA d", syntax("MLOCK has no option 'DATA'")),
            ("MLOCK 1 k o extra", syntax("MLOCK has no option 'extra'")),
            ("MLOCK 2 k s o", wrong_type.to_owned()),
            ("UNLOCK k ", owner.to_owned()),
            ("UNLOCK k o 7", syntax("UNLOCK takes key, owner and TOKEN token")),
            ("UNLOCK k o TOKEN", syntax("UNLOCK takes key, owner and TOKEN token")),
            ("UNLOCK k o TOKEN 1 TOKEN 1", syntax("UNLOCK takes key, owner and TOKEN token")),
            ("UNLOCK k o TOKEN x", integer.to_owned()),
            ("UNLOCK k o TOKEN 0", integer.to_owned()),
            ("UNLOCK k o TOKEN 9007199254740992", integer.to_owned()),
            ("UNLOCK s o", wrong_type.to_owned()),
            ("LOCKEXTEND  1000", owner.to_owned()),
            ("LOCKEXTEND o x", integer.to_owned()),
            ("LOCKEXTEND o 99", range.to_owned()),
            ("LOCKEXTEND o 86400001", range.to_owned()),
            ("LOCKEXTEND o 1000 k", syntax("LOCKEXTEND takes owner, milliseconds and KEYS numkeys key ...")),
            (
                "LOCKEXTEND o 1000 KEYS",
                syntax("LOCKEXTEND takes owner, milliseconds and KEYS numkeys key ..."),
            ),
            ("LOCKEXTEND o 1000 KEYS x k", integer.to_owned()),
            ("LOCKEXTEND o 1000 KEYS 0", "ERR numkeys should be greater than 0".to_owned()),
            ("LOCKEXTEND o 1000 KEYS -1 k", "ERR numkeys should be greater than 0".to_owned()),
            ("LOCKEXTEND o 1000 KEYS 2 k", numkeys.to_owned()),
            ("LOCKEXTEND o 1000 KEYS 1 k l", numkeys.to_owned()),
            ("LOCKEXTEND o 1000 KEYS 2 k s", wrong_type.to_owned()),
            ("LOCKS LIST x", "ERR invalid cursor".to_owned()),
            ("LOCKS LIST 0 COUNT", syntax("LOCKS LIST takes MATCH, OWNER and COUNT")),
            ("LOCKS LIST 0 TYPE lock", syntax("LOCKS LIST takes MATCH, OWNER and COUNT")),
            ("LOCKS LIST 0 COUNT x", integer.to_owned()),
            ("LOCKS INFO s", wrong_type.to_owned()),
            ("LOCKS GRAPH DOT", syntax("LOCKS GRAPH takes FORMAT LIST or FORMAT DOT, and LIMIT limit")),
            (
                "LOCKS GRAPH FORMAT svg",
                syntax("LOCKS GRAPH takes FORMAT LIST or FORMAT DOT, and LIMIT limit"),
            ),
            ("LOCKS DEADLOCKS 3", syntax("LOCKS DEADLOCKS takes COUNT count")),
            ("LOCKS DEADLOCKS COUNT 0", "ERR COUNT must be between 1 and 128".to_owned()),
            ("LOCKS DEADLOCKS COUNT 129", "ERR COUNT must be between 1 and 128".to_owned()),
            ("LOCKS DEADLOCKS COUNT x", integer.to_owned()),
            ("LOCKS RELEASE ", owner.to_owned()),
            ("LOCKS KILL k a", syntax("LOCKS KILL takes OWNER owner and REASON text")),
            ("LOCKS KILL k OWNER a OWNER b", syntax("LOCKS KILL takes OWNER owner and REASON text")),
            (&reason, "ERR REASON must be at most 512 bytes long".to_owned()),
            ("LOCKS KILL s", wrong_type.to_owned()),
            ("FENCE k x", token.to_owned()),
            ("FENCE k 0", token.to_owned()),
            ("FENCE k 1-1:x", token.to_owned()),
            ("FENCE k 1 l", "ERR wrong number of arguments for 'fence' command".to_owned()),
            ("FENCE s 1", "STALETOKEN s 1 current=none".to_owned()),
            ("FENCE k 1-1:1", "STALETOKEN k 1-1:1 current=none".to_owned()),
            ("ONCE id", "ERR ONCE must be the first command after MULTI".to_owned()),
            ("ONCE ", "ERR ONCE id must be 1 to 256 bytes long".to_owned()),
            ("ONCE id PX 0", "ERR ONCE PX must be between 1 and 604800000 milliseconds".to_owned()),
            ("ONCE id EX 5", syntax("ONCE takes id and PX milliseconds")),
        ] {
            assert_eq!(bench.run(0, line), format!("-{error}"), "{line}");
        }
        for line in
            ["LOCK k", "MLOCK 1 k", "UNLOCK k", "LOCKEXTEND o", "LOCKS INFO", "LOCKS KILL", "FENCE k", "ONCE"]
        {
            assert_eq!(bench.run(0, line), "arity", "{line}");
        }
        bench.state.meta.applied = LogIndex(0);
        bench.state.meta.applied_term = Term(0);
        assert_eq!(bench.state.digest(), before);
    }

    #[test]
    fn the_limits_of_every_number_are_allowed() {
        let mut bench = Bench::new();
        let owner = "o".repeat(256);
        for line in [
            format!("LOCK k {owner} PX 100"),
            format!("LOCK k {owner} PX 86400000"),
            format!("LOCK k {owner} EX 1 BLOCK 31536000000 GRACE 86400000"),
            format!("LOCK k {owner} EX 86400 DATA {}", "d".repeat(1024)),
        ] {
            assert_eq!(bench.run(0, &line), ":1", "{line}");
        }
        assert_eq!(bench.run(0, "UNLOCK k o TOKEN 9007199254740991"), ":0");
        assert_eq!(bench.run(0, &format!("MLOCK 128{} o", " m".repeat(128))).split(' ').count(), 128);
    }
}
