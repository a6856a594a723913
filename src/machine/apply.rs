//! Applies an entry: the one place where the replicated state changes.
//!
//! Deterministic: the entry's bytes and the state decide everything. The thinnest job there is, since
//! each command's own function does the work.

use crate::commands::spec::CommandSpec;
use crate::commands::spec::Execute;
use crate::commands::spec::ReadContext;
use crate::commands::spec::WriteContext;
use crate::commands::table;
use crate::machine::entry::Item;
use crate::machine::entry::LeaderStart;
use crate::machine::entry::Stamps;
use crate::machine::entry::decode_batch_head;
use crate::machine::entry::decode_item;
use crate::machine::entry::decode_stamps;
use crate::resp::Reply;
use crate::state::DbIndex;
use crate::state::EXPIRE_AT_MOST;
use crate::state::State;
use crate::types::LogIndex;
use crate::types::Term;
use crate::types::codec::CodecError;

/// Replies of one batch, in the order of its items.
pub type BatchReplies = Vec<Reply>;

/// Applies a committed entry and gives the replies of its batches, in order.
///
/// An empty entry (Raft's own, at the start of a term) only moves the applied index. An error means that
/// the log holds what this version cannot read: the caller must stop the process, since going on would
/// make this replica differ from the others.
pub fn apply_entry(
    state: &mut State,
    index: LogIndex,
    term: Term,
    data: &[u8],
) -> Result<Vec<BatchReplies>, CodecError> {
    if data.is_empty() {
        let meta = *state.meta();
        state.begin_entry(index, term, meta.clock, meta.wall);
        return Ok(Vec::new());
    }
    let (stamps, mut reader) = decode_stamps(data)?;
    state.begin_entry(index, term, stamps.clock, stamps.wall);
    let mut replies = Vec::new();
    while let Some((user, count)) = decode_batch_head(&mut reader)? {
        let mut batch = Vec::with_capacity(count.min(4096));
        for _ in 0..count {
            batch.push(apply_item(state, &stamps, user, decode_item(&mut reader)?));
        }
        replies.push(batch);
    }
    Ok(replies)
}

fn apply_item(state: &mut State, stamps: &Stamps, user: &[u8], item: Item<'_>) -> Reply {
    match item {
        Item::Command { db, words } => apply_command(state, stamps, user, db, &words),
        Item::Transaction { watched, commands } => {
            for (db, key, _) in &watched {
                state.expire_touched(*db, key, stamps.clock);
            }
            let unchanged = |(db, key, changed): &(DbIndex, &[u8], Option<LogIndex>)| {
                state.row(*db, key).map(crate::state::Row::changed) == *changed
            };
            if !watched.iter().all(unchanged) {
                return Reply::NullArray;
            }
            let run = |(db, words): (DbIndex, crate::machine::entry::Words<'_>)| {
                apply_command(state, stamps, user, db, &words)
            };
            Reply::Array(commands.into_iter().map(run).collect())
        }
        Item::Expire { keys } => {
            let ended = if keys.is_empty() {
                state.expire_due(stamps.clock, EXPIRE_AT_MOST)
            } else {
                let end = |(db, key)| state.expire_touched(db, key, stamps.clock);
                keys.into_iter().map(end).sum()
            };
            Reply::Integer(i64::try_from(ended).unwrap_or(i64::MAX))
        }
        Item::LeaderStart(start) => {
            apply_leader_start(state, stamps, &start);
            Reply::Ok
        }
    }
}

fn apply_leader_start(state: &mut State, stamps: &Stamps, start: &LeaderStart) {
    if state.settings().databases == 0 {
        state.set_settings(start.settings);
    }
    state.advance_key_clock(start.outage);
    state.grant_grace(stamps.clock);
}

fn apply_command(state: &mut State, stamps: &Stamps, user: &[u8], db: DbIndex, words: &[&[u8]]) -> Reply {
    let Some(spec) = words.first().and_then(|name| table::find(name)) else {
        return Reply::error("ERR unknown command in the log");
    };
    if !spec.arity_allows(words.len()) {
        return Reply::error("ERR malformed command in the log");
    }
    if state.anything_due(stamps.clock) {
        expire_named(state, stamps, spec, db, words);
    }
    let outcome = match spec.execute {
        Execute::Write(write) => {
            write(&mut WriteContext { state, db, user, now: stamps.clock, wall: stamps.wall }, words)
        }
        Execute::Read(read) => {
            let context =
                ReadContext { state, db, user, now: stamps.clock, wall: stamps.wall, seed: stamps.seed };
            read(&context, words)
        }
        Execute::Session(_) => return Reply::error("ERR a connection's own command in the log"),
    };
    outcome.unwrap_or_else(Reply::from)
}

/// What a command names and is due ends before the command runs (DESIGN.md D9).
fn expire_named(state: &mut State, stamps: &Stamps, spec: &CommandSpec, db: DbIndex, words: &[&[u8]]) {
    let row = words.get(1).and_then(|word| table::subcommand(spec, word)).unwrap_or(spec);
    for at in row.keys.positions(words) {
        state.expire_touched(db, words[at], stamps.clock);
    }
}
