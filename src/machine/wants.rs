//! What entries will want from disk, told before they are applied.
//!
//! Apply holds the writer's side of the state's lock, and everybody who reads waits for it: a slow disk must not hold them
//! up. So the payloads that a QPOP will hand out are asked for under the reader's side, read without either, and laid
//! ready. What is asked for is a guess and no part of the state: what it misses is read while its entry is applied.

use crate::commands::spec::Flags;
use crate::commands::spec::Group;
use crate::commands::table;
use crate::machine::entry::Item;
use crate::machine::entry::decode_batch_head;
use crate::machine::entry::decode_item;
use crate::machine::entry::decode_stamps;
use crate::state::DbIndex;
use crate::state::State;
use crate::state::queues::cold::Wanted;
use crate::types::codec::CodecError;

/// What these entries will want, as far as it can be told from the state that they find.
#[must_use]
pub fn wants<'a>(state: &State, entries: impl Iterator<Item = &'a [u8]>) -> Wanted {
    let mut wanted = Wanted::default();
    for entry in entries.filter(|entry| !entry.is_empty()) {
        // One that does not decode is told of when it is applied.
        if add(state, entry, &mut wanted).is_err() {
            break;
        }
    }
    wanted
}

fn add(state: &State, entry: &[u8], wanted: &mut Wanted) -> Result<(), CodecError> {
    let (_, mut reader) = decode_stamps(entry)?;
    while let Some(head) = decode_batch_head(&mut reader)? {
        for _ in 0..head.count {
            match decode_item(&mut reader)? {
                Item::Command { db, words } => add_command(state, db, &words, wanted),
                Item::Transaction { commands, .. } => {
                    commands.iter().for_each(|(db, words)| add_command(state, *db, words, wanted));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn add_command(state: &State, db: DbIndex, words: &[&[u8]], wanted: &mut Wanted) {
    let Some(row) = words.first().and_then(|name| table::find(name)) else { return };
    let spec = table::leaf(row, words);
    // Whoever may wait for messages is handed some.
    if row.group == Group::Queues && spec.flags.has(Flags::BLOCKING) {
        spec.keys.positions(words).iter().for_each(|at| state.want(db, words[*at], wanted));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::machine::entry::Batch;
    use crate::machine::entry::Queued;
    use crate::machine::entry::Stamps;
    use crate::machine::entry::encode_entry;
    use crate::state::queues;
    use crate::state::test_support::TestStore;
    use crate::types::ClusterTime;
    use crate::types::WallMillis;

    fn words(line: &str) -> Vec<&[u8]> {
        line.split(' ').map(str::as_bytes).collect()
    }

    /// Whether an entry with this command, alone or in a transaction, wants something.
    fn wants_something(state: &State, line: &str, in_transaction: bool) -> bool {
        let mut batch = Batch::new(b"default");
        if in_transaction {
            let args = words(line).into_iter().map(Bytes::copy_from_slice).collect();
            batch.push_transaction(&[], &[Queued { db: 0, args }], true);
        } else {
            batch.push_command(0, words(line).into_iter());
        }
        let stamps = Stamps { clock: ClusterTime(0), wall: WallMillis(0), seed: 0 };
        let entry = encode_entry(&stamps, [(None, &batch)].into_iter());
        // An empty entry stands before it, and one that does not decode behind.
        !wants(state, [&b""[..], &entry, b"?"].into_iter()).is_empty()
    }

    #[test]
    fn a_qpop_wants_the_payloads_of_its_queues_that_are_on_disk_only() {
        let store = TestStore::new();
        let mut state = State::new(16);
        let request = queues::PushRequest { payload: b"m", ..Default::default() };
        let by = queues::By { now: ClusterTime(0), node: 0, reason: b"" };
        assert!(queues::push(&mut state, 0, b"q", &request, by).is_ok());
        assert!(!wants_something(&state, "QPOP FROM q", false), "it is in memory");
        store.reopen_cold(&mut state);
        for in_transaction in [false, true] {
            for (line, is_wanted) in [
                ("QPOP FROM q", true),
                ("QPOP COUNT 3 BLOCK 0 FROM other q", true),
                ("QPOP FROM other", false),
                ("QPOP q", false),
                ("QPUSH q m", false),
                ("LOCK q me BLOCK 5", false),
                ("GET q", false),
            ] {
                assert_eq!(wants_something(&state, line, in_transaction), is_wanted, "{line}");
            }
        }
    }
}
