//! What EXEC does in the log (COMMANDS.md 2.1).
//!
//! ```text
//! ONCE known?  ──yes──► the stored reply; nothing is executed
//!   │ no
//! watched keys changed?  ──yes──► null
//!   │ no
//! guards: all tokens of FENCE and SET … FENCE current?  ──no──► -STALETOKEN
//!   │ yes
//! the commands, in order ──one fails, and the transaction is atomic──► everything is taken back, the error
//!   │                    ├─one passes the budget──► the same, in every mode, unless a database is flushed: then its error
//!   │                    └─else─► its error stands among the replies
//! ONCE: the reply is kept ──► the replies
//! ```
//! Transactions that only read do the same at the node of their client, under one guard, and leave nothing in the log.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_128;

use crate::commands::error::CommandError;
use crate::commands::guards;
use crate::commands::spec::CommandResult;
use crate::commands::spec::Execute;
use crate::commands::spec::ReadContext;
use crate::commands::strings::fence_of_set;
use crate::commands::weights::HEAVY;
use crate::commands::weights::Scales;
use crate::commands::weights::Weight;
use crate::commands::weights::run_read;
use crate::machine::answers::Answers;
use crate::machine::apply::Answer;
use crate::machine::apply::Caller;
use crate::machine::apply::apply_command;
use crate::machine::apply::expire_named;
use crate::machine::budget::Budget;
use crate::machine::budget::Command;
use crate::machine::budget::is_light;
use crate::machine::budget::row_of;
use crate::resp::Reply;
use crate::resp::arguments::eq_ignore_case;
use crate::resp::reply_codec;
use crate::state::DbIndex;
use crate::state::Row;
use crate::state::State;
use crate::state::once::OnceName;
use crate::state::once::OnceRecord;
use crate::state::sessions::HINT_BYTES_MAX;
use crate::types::ClusterTime;
use crate::types::LogIndex;
use crate::types::Millis;
use crate::types::bounds::Bounds;
use crate::types::codec::put_bytes;
use crate::types::planted::Bug;
use crate::types::planted::is_planted;

/// Replies of a named transaction up to this many bytes are kept.
const REPLY_BYTES_MAX: usize = 64 << 10;
/// Errors that say all by themselves why a transaction did nothing.
const SPEAKING: [&str; 5] = ["LOCKED", "STALETOKEN", "QFULL", "OOM", "TRYAGAIN"];

/// A key that was watched, with the index of its last change then.
pub type WatchedKey<'a> = (DbIndex, &'a [u8], Option<LogIndex>);

/// Runs a transaction; gives EXEC's reply. After an error nothing was done.
pub fn apply_transaction(
    state: &mut State,
    caller: &Caller<'_>,
    watched: &[WatchedKey<'_>],
    commands: &[Command<'_>],
    is_atomic: bool,
) -> Result<Answer, CommandError> {
    let caller = &Caller { in_transaction: true, ..*caller };
    let now = caller.stamps.clock;
    let named = match commands.first() {
        Some((_, words)) if is_named(words, "once") => Some(Named::parse(caller.user, words, commands)?),
        _ => None,
    };
    if let Some(named) = &named {
        if let Some(known) = state.once(&named.name, now) {
            return named.answer_again(known).map(Answer::from);
        }
        if state.once_len() as u64 >= state.settings().once_max_entries {
            return Err(CommandError::other(
                "OOM ONCE remembers no more than once-max-entries names. The transaction was not executed.",
            ));
        }
    }
    for (db, key, _) in watched {
        state.expire_touched(*db, key, now);
    }
    if !is_unchanged(state, watched) {
        return Ok(Reply::NullArray.into());
    }
    for (db, words) in commands {
        check_guards(state, caller, *db, words)?;
    }
    let is_light = is_light(state, caller.bounds, commands);
    if !is_light {
        caller.entry.check(Weight { reply: 0, copied: 1, walked: 1 })?;
    }
    let answer = if is_atomic || !(is_light || commands.iter().any(|(_, words)| flushes(words))) {
        state.begin_undo();
        match run_within_budget(state, caller, commands, is_atomic) {
            Ok(answers) => {
                state.end_undo();
                whole(answers)
            }
            Err(error) => {
                state.roll_back();
                return Err(error);
            }
        }
    } else if is_light {
        let mut answers = Answers::new(commands.len(), caller.is_wanted);
        for command in commands {
            let Answer { reply, bytes } = run_one(state, caller, command).unwrap_or_else(Reply::from).into();
            answers.push(reply, bytes);
        }
        whole(answers)
    } else {
        whole(run_what_fits(state, caller, commands))
    };
    if let Some(named) = named.filter(|_| !is_planted(Bug::OnceForgotten)) {
        named.keep(state, now, &answer);
    }
    Ok(answer)
}

/// The replies as EXEC answers them.
fn whole(answers: Answers) -> Answer {
    let bytes = Reply::Array(Vec::new()).size_hint() + answers.bytes();
    Answer { reply: Reply::Array(answers.into_replies()), bytes }
}

fn is_unchanged(state: &State, watched: &[WatchedKey<'_>]) -> bool {
    watched.iter().all(|(db, key, changed)| state.row(*db, key).map(Row::changed) == *changed)
}

fn is_named(words: &[&[u8]], name: &str) -> bool {
    words.first().is_some_and(|word| eq_ignore_case(word, name))
}

/// Every token that the command names must be current before anything is done.
fn check_guards(
    state: &mut State,
    caller: &Caller<'_>,
    db: DbIndex,
    words: &[&[u8]],
) -> Result<(), CommandError> {
    let now = caller.stamps.clock;
    if is_named(words, "fence") {
        expire_named(state, now, db, words);
        for (key, token) in guards::pairs_of(words)? {
            guards::check_fence(state, db, key, token, now)?;
        }
    } else if is_named(words, "set")
        && let Some((key, token)) = fence_of_set(words)
    {
        state.expire_touched(db, key, now);
        guards::check_fence(state, db, key, token, now)?;
    }
    Ok(())
}

/// Guards were checked before: they answer OK.
fn run_one(state: &mut State, caller: &Caller<'_>, (db, words): &Command<'_>) -> CommandResult {
    if is_named(words, "fence") || is_named(words, "once") {
        return Ok(Reply::Ok);
    }
    apply_command(state, caller, *db, words)
}

/// Runs the commands while everything can be taken back, which the caller does after an error.
fn run_within_budget(
    state: &mut State,
    caller: &Caller<'_>,
    commands: &[Command<'_>],
    is_atomic: bool,
) -> Result<Answers, CommandError> {
    let mut budget = Budget::new(caller.bounds, commands);
    let mut answers = Answers::new(commands.len(), caller.is_wanted);
    for (at, command) in commands.iter().enumerate() {
        let (db, words) = command;
        let abort = |error| CommandError::Aborted { at: at + 1, error: Box::new(error) };
        if flushes(words) {
            return Err(abort(CommandError::other("ERR a whole database is not flushed all or nothing")));
        }
        if is_heavy(words) {
            budget.charge(Scales::new(state, caller.user).weigh(*db, words)).map_err(abort)?;
        }
        let bounds = Bounds { reply: budget.reply_left(), ..caller.bounds };
        let reply = run_one(state, &Caller { bounds, ..*caller }, command);
        let Answer { reply, bytes } = judged(reply, &budget, is_atomic, at)?.into();
        budget.note_reply(bytes).map_err(abort)?;
        budget.check_changes(state.undo_cost()).map_err(abort)?;
        answers.push(reply, bytes);
    }
    caller.entry.note(budget.taken(state.undo_cost()));
    Ok(answers)
}

const NO_ROOM_BESIDE_FLUSH: &str = "ERR the commands of this transaction look at, copy or answer more than one may: this one \
                                    was not executed, others were, since a flush cannot be taken back";

/// The same for a transaction that flushes a database, which cannot be taken back, and need not: of its commands those that
/// pass the budget are refused, each by itself.
fn run_what_fits(state: &mut State, caller: &Caller<'_>, commands: &[Command<'_>]) -> Answers {
    let mut budget = Budget::new(caller.bounds, commands);
    let mut answers = Answers::new(commands.len(), caller.is_wanted);
    for command in commands {
        let (db, words) = command;
        let weight = if is_heavy(words) {
            Scales::new(state, caller.user).weigh(*db, words)
        } else {
            Weight::default()
        };
        let bounds = Bounds { reply: budget.reply_left(), ..caller.bounds };
        let reply = match budget.charge(weight) {
            Ok(()) => run_one(state, &Caller { bounds, ..*caller }, command),
            Err(_) => Err(CommandError::other(NO_ROOM_BESIDE_FLUSH)),
        };
        let Answer { reply, bytes } = reply.unwrap_or_else(Reply::from).into();
        // What is known beforehand fits; a number or an error more does no harm.
        let _ = budget.note_reply(bytes);
        answers.push(reply, bytes);
    }
    caller.entry.note(budget.taken((0, 0)));
    answers
}

fn flushes(words: &[&[u8]]) -> bool {
    is_named(words, "flushall") || is_named(words, "flushdb")
}

fn is_heavy(words: &[&[u8]]) -> bool {
    row_of(words).is_some_and(|row| row.flags.has_any(HEAVY))
}

/// What a command's reply means for its transaction: an error is one of its replies, or ends it.
fn judged(reply: CommandResult, budget: &Budget, is_atomic: bool, at: usize) -> Result<Reply, CommandError> {
    let text = match reply {
        Ok(Reply::Error(text)) => text.into_owned(),
        Ok(reply) => return Ok(reply),
        Err(error) => match error.room_wanted() {
            Some(bytes) => {
                let error = Box::new(budget.no_room_for(bytes));
                return Err(CommandError::Aborted { at: at + 1, error });
            }
            None => error.to_string(),
        },
    };
    if !is_atomic {
        return Ok(Reply::error(text));
    }
    let code = text.split(' ').next().unwrap_or("");
    let is_speaking = SPEAKING.contains(&code);
    Err(CommandError::other(if is_speaking { text } else { format!("EXECABORT cmd={} {text}", at + 1) }))
}

/// Runs a transaction that only reads, on a state in which nothing that it names is due; gives EXEC's reply.
///
/// The context is that of its first command; each has a database of its own.
pub fn read_transaction(
    context: &ReadContext<'_>,
    watched: &[WatchedKey<'_>],
    commands: &[Command<'_>],
    is_atomic: bool,
) -> Reply {
    read_all(context, watched, commands, is_atomic).unwrap_or_else(Reply::from)
}

fn read_all(
    context: &ReadContext<'_>,
    watched: &[WatchedKey<'_>],
    commands: &[Command<'_>],
    is_atomic: bool,
) -> CommandResult {
    let state = context.state;
    if !is_unchanged(state, watched) {
        return Ok(Reply::NullArray);
    }
    for (db, words) in commands.iter().filter(|(_, words)| is_named(words, "fence")) {
        for (key, token) in guards::pairs_of(words)? {
            guards::check_fence(state, *db, key, token, context.now)?;
        }
    }
    let mut budget = Budget::new(context.bounds, commands);
    let mut replies = Vec::with_capacity(commands.len().min(4096));
    for (at, (db, words)) in commands.iter().enumerate() {
        let abort = |error| CommandError::Aborted { at: at + 1, error: Box::new(error) };
        let Some(row) = row_of(words) else { continue };
        if row.flags.has_any(HEAVY) {
            budget.charge(Scales::new(state, context.user).weigh(*db, words)).map_err(abort)?;
        }
        let bounds = Bounds { reply: budget.reply_left(), ..context.bounds };
        let reply = match row.execute {
            _ if is_named(words, "fence") => Ok(Reply::Ok),
            Execute::Read(read) => run_read(row, read, &ReadContext { db: *db, bounds, ..*context }, words),
            Execute::Write(_) | Execute::Session(_) => unreachable!("the transaction only reads"),
        };
        let reply = judged(reply, &budget, is_atomic, at)?;
        budget.note_reply(reply.size_hint()).map_err(abort)?;
        replies.push(reply);
    }
    Ok(Reply::Array(replies))
}

/// A transaction with a name.
struct Named {
    name: OnceName,
    commands: u128,
    kept: Millis,
}

impl Named {
    fn parse(user: &[u8], words: &[&[u8]], commands: &[Command<'_>]) -> Result<Named, CommandError> {
        let (id, kept) = guards::parse_once(words)?;
        let mut bytes = Vec::new();
        // The time that the name is kept is not what is done.
        for (db, words) in &commands[1..] {
            bytes.push(*db);
            put_bytes(&mut bytes, &words.len().to_le_bytes());
            words.iter().for_each(|word| put_bytes(&mut bytes, word));
        }
        Ok(Named { name: (user.into(), id.into()), commands: xxh3_128(&bytes), kept })
    }

    fn answer_again(&self, known: &OnceRecord) -> Result<Reply, CommandError> {
        if known.commands != self.commands {
            return Err(CommandError::other("ERR ONCE id reused with a different transaction"));
        }
        let replies = known.reply.as_ref().and_then(|bytes| reply_codec::decode_replies(bytes).ok());
        let index = known.index;
        replies.and_then(|mut replies| replies.pop()).ok_or_else(|| {
            CommandError::other(format!(
                "REPLAYED {index} The transaction was executed; its reply was too large to be kept, or gone for newer ones."
            ))
        })
    }

    fn keep(self, state: &mut State, now: ClusterTime, answer: &Answer) {
        let mut bytes = Vec::new();
        // Larger ones may be left out where nobody waits for them.
        if answer.bytes <= HINT_BYTES_MAX {
            reply_codec::encode_replies(std::slice::from_ref(&answer.reply), &mut bytes);
        }
        let reply = (1..=REPLY_BYTES_MAX).contains(&bytes.len()).then(|| Bytes::from(bytes));
        let (index, until) = (state.meta().applied, now.after(self.kept));
        state.remember_once(self.name, OnceRecord { commands: self.commands, index, until, reply });
    }
}
