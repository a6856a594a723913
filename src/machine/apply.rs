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
fn expire_named(
    state: &mut State,
    stamps: &Stamps,
    spec: &'static CommandSpec,
    db: DbIndex,
    words: &[&[u8]],
) {
    for at in table::leaf(spec, words).keys.positions(words) {
        state.expire_touched(db, words[at], stamps.clock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::entry::Batch;
    use crate::machine::entry::encode_entry;
    use crate::types::ClusterTime;
    use crate::types::Millis;
    use crate::types::WallMillis;

    fn apply(state: &mut State, index: u64, clock: u64, fill: impl FnOnce(&mut Batch)) -> Vec<Reply> {
        let mut batch = Batch::new(b"default");
        fill(&mut batch);
        let stamps = Stamps { clock: ClusterTime(clock), wall: WallMillis(clock), seed: 1 };
        let entry = encode_entry(&stamps, &[batch]);
        apply_entry(state, LogIndex(index), Term(1), &entry).unwrap().remove(0)
    }

    fn push(batch: &mut Batch, words: &[&str]) {
        batch.push_command(0, words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>().into_iter());
    }

    #[test]
    fn an_expire_that_names_a_key_ends_that_key_first_however_many_are_due() {
        let mut state = State::new(16);
        apply(&mut state, 1, 0, |batch| {
            for n in 0..3_000 {
                push(batch, &["SET", &format!("k{n}"), "v", "PX", "100"]);
            }
        });
        let last = [&b"k2999"[..]];
        assert_eq!(
            apply(&mut state, 2, 100, |batch| batch.push_expire(0, last.into_iter())),
            [Reply::Integer(1)]
        );
        assert!(state.row(0, b"k2999").is_none() && state.row(0, b"k2998").is_some());
        for (index, ended) in [(3, 1_024), (4, 1_024), (5, 951), (6, 0)] {
            let replies = apply(&mut state, index, 100, |batch| batch.push_expire(0, std::iter::empty()));
            assert_eq!(replies, [Reply::Integer(ended)]);
        }
    }

    #[test]
    fn a_receipt_whose_lease_is_due_finishes_nothing_even_when_many_are_due() {
        let mut state = State::new(16);
        apply(&mut state, 1, 0, |batch| (0..2_000).for_each(|_| push(batch, &["QPUSH", "q", "p"])));
        apply(&mut state, 2, 0, |batch| {
            (0..2).for_each(|_| push(batch, &["QPOP", "COUNT", "1000", "LEASE", "100", "FROM", "q"]));
        });
        let replies = apply(&mut state, 3, 100, |batch| push(batch, &["QACK", "q", "1-1999:1"]));
        assert_eq!(replies, [Reply::Integer(0)]);
        let replies = apply(&mut state, 4, 100, |batch| push(batch, &["QLEN", "q", "ALL"]));
        assert_eq!(replies, [Reply::Integer(2_000)]);
    }

    #[test]
    fn only_the_first_leader_start_of_a_log_brings_settings() {
        let mut state = State::new(0);
        let settings = |databases| crate::state::Settings { databases, ..crate::state::Settings::default() };
        for (index, databases) in [(1, 16), (2, 4)] {
            let start = LeaderStart { outage: Millis(0), settings: settings(databases) };
            apply(&mut state, index, 0, |batch| batch.push_leader_start(&start));
            assert_eq!(state.databases(), 16);
        }
    }

    #[test]
    fn keys_age_over_an_outage_and_locks_do_not() {
        let mut state = State::new(16);
        apply(&mut state, 1, 0, |batch| {
            push(batch, &["SET", "k", "v", "PX", "60000"]);
            push(batch, &["LOCK", "l", "me", "PX", "60000"]);
        });
        let start = LeaderStart { outage: Millis(60_000), settings: *state.settings() };
        apply(&mut state, 2, 10, |batch| batch.push_leader_start(&start));
        let replies = apply(&mut state, 3, 10, |batch| {
            push(batch, &["GET", "k"]);
            push(batch, &["LOCK", "l", "you"]);
        });
        assert_eq!(replies, [Reply::Null, Reply::Null]);
    }
}
