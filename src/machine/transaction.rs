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
//!   │                    └─else─► its error stands among the replies
//! ONCE: the reply is kept ──► the replies
//! ```

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_128;

use crate::commands::error::CommandError;
use crate::commands::guards;
use crate::commands::strings::fence_of_set;
use crate::machine::apply::Caller;
use crate::machine::apply::apply_command;
use crate::machine::apply::expire_named;
use crate::machine::entry::Words;
use crate::resp::Reply;
use crate::resp::arguments::eq_ignore_case;
use crate::resp::reply_codec;
use crate::state::DbIndex;
use crate::state::Row;
use crate::state::State;
use crate::state::once::OnceName;
use crate::state::once::OnceRecord;
use crate::types::ClusterTime;
use crate::types::LogIndex;
use crate::types::Millis;
use crate::types::codec::put_bytes;
use crate::types::planted::Bug;
use crate::types::planted::is_planted;

/// Replies of a named transaction up to this many bytes are kept.
const REPLY_BYTES_MAX: usize = 64 << 10;
/// Errors that say all by themselves why a transaction did nothing.
const SPEAKING: [&str; 5] = ["LOCKED", "STALETOKEN", "QFULL", "OOM", "TRYAGAIN"];

/// A key that was watched, with the index of its last change then.
type WatchedKey<'a> = (DbIndex, &'a [u8], Option<LogIndex>);
/// A command, in its database.
type Command<'a> = (DbIndex, Words<'a>);

/// Runs a transaction; gives EXEC's reply.
pub fn apply_transaction(
    state: &mut State,
    caller: &Caller<'_>,
    watched: &[WatchedKey<'_>],
    commands: &[Command<'_>],
    is_atomic: bool,
) -> Reply {
    let caller = &Caller { in_transaction: true, ..*caller };
    match run(state, caller, watched, commands, is_atomic) {
        Ok(reply) => reply,
        Err(error) => error.into(),
    }
}

fn run(
    state: &mut State,
    caller: &Caller<'_>,
    watched: &[WatchedKey<'_>],
    commands: &[Command<'_>],
    is_atomic: bool,
) -> Result<Reply, CommandError> {
    let now = caller.stamps.clock;
    let named = match commands.first() {
        Some((_, words)) if is_named(words, "once") => Some(Named::parse(caller.user, words, commands)?),
        _ => None,
    };
    if let Some(named) = &named {
        if let Some(known) = state.once(&named.name, now) {
            return named.answer_again(known);
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
    let is_unchanged =
        |(db, key, changed): &WatchedKey<'_>| state.row(*db, key).map(Row::changed) == *changed;
    if !watched.iter().all(is_unchanged) {
        return Ok(Reply::NullArray);
    }
    for (db, words) in commands {
        check_guards(state, caller, *db, words)?;
    }
    let reply = if is_atomic {
        state.begin_undo();
        match run_all_or_nothing(state, caller, commands) {
            Ok(replies) => {
                state.end_undo();
                Reply::Array(replies)
            }
            Err(error) => {
                state.roll_back();
                return Err(error);
            }
        }
    } else {
        Reply::Array(commands.iter().map(|command| run_one(state, caller, command)).collect())
    };
    if let Some(named) = named.filter(|_| !is_planted(Bug::OnceForgotten)) {
        named.keep(state, now, &reply);
    }
    Ok(reply)
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
fn run_one(state: &mut State, caller: &Caller<'_>, (db, words): &Command<'_>) -> Reply {
    if is_named(words, "fence") || is_named(words, "once") {
        return Reply::Ok;
    }
    apply_command(state, caller, *db, words)
}

fn run_all_or_nothing(
    state: &mut State,
    caller: &Caller<'_>,
    commands: &[Command<'_>],
) -> Result<Vec<Reply>, CommandError> {
    let mut replies = Vec::with_capacity(commands.len());
    for (at, command) in commands.iter().enumerate() {
        if is_named(&command.1, "flushall") || is_named(&command.1, "flushdb") {
            let text = format!("EXECABORT cmd={} ERR a whole database is not flushed all or nothing", at + 1);
            return Err(CommandError::other(text));
        }
        match run_one(state, caller, command) {
            Reply::Error(text) => {
                let code = text.split(' ').next().unwrap_or("");
                let is_speaking = SPEAKING.contains(&code);
                let text =
                    if is_speaking { text.into_owned() } else { format!("EXECABORT cmd={} {text}", at + 1) };
                return Err(CommandError::other(text));
            }
            reply => replies.push(reply),
        }
    }
    Ok(replies)
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

    fn keep(self, state: &mut State, now: ClusterTime, reply: &Reply) {
        let mut bytes = Vec::new();
        if reply.size_hint() <= 16 * REPLY_BYTES_MAX {
            reply_codec::encode_replies(std::slice::from_ref(reply), &mut bytes);
        }
        let reply = (1..=REPLY_BYTES_MAX).contains(&bytes.len()).then(|| Bytes::from(bytes));
        let (index, until) = (state.meta().applied, now.after(self.kept));
        state.remember_once(self.name, OnceRecord { commands: self.commands, index, until, reply });
    }
}
