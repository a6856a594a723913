//! Guards of transactions (COMMANDS.md 2.1): FENCE, which asks whether a token is current, and ONCE, which gives a
//! transaction a name. What they do between MULTI and EXEC is in `machine::transaction`.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use crate::commands::error::CommandError;
use crate::commands::locks::read_token;
use crate::commands::spec::Args;
use crate::commands::spec::Categories;
use crate::commands::spec::CommandResult;
use crate::commands::spec::CommandSpec;
use crate::commands::spec::Execute;
use crate::commands::spec::Flags;
use crate::commands::spec::Group;
use crate::commands::spec::KeySpec;
use crate::commands::spec::ReadContext;
use crate::resp::Reply;
use crate::resp::arguments::eq_ignore_case;
use crate::resp::arguments::parse_i64;
use crate::state::DbIndex;
use crate::state::Object;
use crate::state::Row;
use crate::state::State;
use crate::state::locks::Hold;
use crate::state::locks::graph::shown;
use crate::state::queues::MessageState;
use crate::state::queues::Receipt;
use crate::types::ClusterTime;
use crate::types::Millis;
use crate::types::planted::Bug;
use crate::types::planted::is_planted;

/// Longest id of ONCE, in bytes.
const ID_BYTES_MAX: usize = 256;
/// How long ONCE remembers when the command gives no time, in milliseconds.
const ONCE_MS_DEFAULT: u64 = 600_000;
/// How long at most: a week.
const ONCE_MS_MAX: i64 = 7 * 86_400_000;

/// Tokens that were refused on this node since it started, by the type of the key: for the metrics.
static REJECTED: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// The types of [`rejected`], in its order.
pub const REJECTED_TYPES: [&str; 3] = ["lock", "queue", "string"];

/// How many tokens were refused on this node since it started, by type.
#[must_use]
pub fn rejected() -> [u64; 3] {
    [0, 1, 2].map(|at| REJECTED[at].load(Ordering::Relaxed))
}

/// Fails unless the token is current: the lock is held under it now, or the receipt is that of the message's current
/// hand-out. What is due of the key ended before.
pub fn check_fence(
    state: &State,
    db: DbIndex,
    key: &[u8],
    token: &[u8],
    now: ClusterTime,
) -> Result<(), CommandError> {
    let stale = |kind: usize, current: &str| {
        REJECTED[kind].fetch_add(1, Ordering::Relaxed);
        let (key, token) = (shown(key), shown(token));
        Err(CommandError::other(format!("STALETOKEN {key} {token} current={current}")))
    };
    if is_planted(Bug::FenceUnchecked) {
        return Ok(());
    }
    if token.contains(&b':') {
        let receipt = Receipt::parse(token).ok_or_else(malformed)?;
        let Some(Object::Queue(queue)) = state.row(db, key).map(Row::object) else { return stale(1, "none") };
        let Some(life) = queue.life(receipt.id) else { return stale(1, "none") };
        let delivery = life.delivery;
        return match life.state {
            MessageState::Leased { until, .. } if until <= now => stale(1, "none"),
            MessageState::Leased { .. } if delivery == receipt.delivery => Ok(()),
            MessageState::Leased { .. } => stale(1, &Receipt { delivery, ..receipt }.to_string()),
            MessageState::Ready | MessageState::Delayed { .. } | MessageState::Dead => stale(1, "none"),
        };
    }
    let token = read_token(token).map_err(|_| malformed())?;
    match state.row(db, key).map(Row::object) {
        Some(Object::Lock(lock)) => match lock.hold_under(token) {
            Some(hold) if hold.lease_until() > now => Ok(()),
            _ => {
                let current = lock.holds().last().map(Hold::token);
                stale(0, &current.map_or_else(|| "none".to_owned(), |token| token.0.to_string()))
            }
        },
        Some(Object::Queue(_)) => stale(1, "none"),
        // Nothing gives out tokens for strings yet.
        Some(Object::String) => stale(2, "none"),
        None => stale(0, "none"),
    }
}

fn malformed() -> CommandError {
    CommandError::other("ERR invalid token: want the number that LOCK gave, or the receipt that QPOP gave")
}

/// The keys and tokens of a FENCE's words.
pub fn pairs_of<'a>(args: Args<'a>) -> Result<impl Iterator<Item = (&'a [u8], &'a [u8])>, CommandError> {
    if args.len() < 3 || args.len().is_multiple_of(2) {
        return Err(CommandError::WrongArity("fence".to_owned()));
    }
    Ok(args[1..].chunks(2).map(|pair| (pair[0], pair[1])))
}

fn fence(context: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    for (key, token) in pairs_of(args)? {
        check_fence(context.state, context.db, key, token, context.now)?;
    }
    Ok(Reply::Ok)
}

/// The id and the time that ONCE names.
pub fn parse_once<'a>(args: Args<'a>) -> Result<(&'a [u8], Millis), CommandError> {
    let id = args.get(1).copied().unwrap_or(b"");
    if id.is_empty() || id.len() > ID_BYTES_MAX {
        return Err(CommandError::other("ERR ONCE id must be 1 to 256 bytes long"));
    }
    let kept = match args.get(2..) {
        None | Some([]) => ONCE_MS_DEFAULT,
        Some([word, number]) if eq_ignore_case(word, "PX") => {
            let number = parse_i64(number).ok_or(CommandError::NotAnInteger)?;
            let in_range = u64::try_from(number).ok().filter(|_| (1..=ONCE_MS_MAX).contains(&number));
            let text = || {
                CommandError::other(format!("ERR ONCE PX must be between 1 and {ONCE_MS_MAX} milliseconds"))
            };
            in_range.ok_or_else(text)?
        }
        Some(_) => return Err(CommandError::other("ERR syntax error: ONCE takes id and PX milliseconds")),
    };
    Ok((id, Millis(kept)))
}

fn once(_: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    parse_once(args)?;
    Err(CommandError::other("ERR ONCE must be the first command after MULTI"))
}

/// FENCE and ONCE.
pub static ROWS: &[CommandSpec] = &[
    CommandSpec {
        name: "fence",
        syntax: "FENCE key token [key token ...]",
        group: Group::Transactions,
        since: "0.1.0",
        summary: "Answers OK if every token is current; in a transaction, which does nothing otherwise, before all effects.",
        complexity: "O(N) with N being the number of tokens",
        arity: -3,
        flags: Flags::READONLY.and(Flags::FAST),
        keys: KeySpec::Range { first: 1, last: -2, step: 2 },
        acl: Categories::LOCK.and(Categories::QUEUE),
        execute: Execute::Read(fence),
        subcommands: &[],
    },
    CommandSpec {
        name: "once",
        syntax: "ONCE id [PX milliseconds]",
        group: Group::Transactions,
        since: "0.1.0",
        summary: "Names a transaction, as its first command: sent again under the name it is not executed but answered.",
        complexity: "O(log(N)) with N being the number of names that are kept",
        arity: -2,
        flags: Flags::FAST.and(Flags::DENYOOM).and(Flags::NAMES_TRANSACTION),
        keys: KeySpec::None,
        acl: Categories::TRANSACTION,
        execute: Execute::Read(once),
        subcommands: &[],
    },
];
