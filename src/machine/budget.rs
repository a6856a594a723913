//! What one transaction, and one entry, may take beyond its words.
//!
//! A transaction is applied at once, by every replica, and is in the log for good: one that took all the memory there is
//! would take it again at every start. So what it looks at, copies and answers is bounded by numbers that are the same
//! on every replica. One that passes them is ended with an error and leaves nothing behind.

use std::cell::Cell;

use smallvec::SmallVec;

use crate::commands::error::CommandError;
use crate::commands::spec::CommandSpec;
use crate::commands::spec::Flags;
use crate::commands::table;
use crate::commands::weights::HEADER_BYTES;
use crate::commands::weights::HEAVY;
use crate::commands::weights::Weight;
use crate::machine::entry::Words;
use crate::resp::arguments::parse_i64;
use crate::state::DbIndex;
use crate::state::Row;
use crate::state::State;
use crate::types::bounds::Bounds;

/// Keys, locks and messages that the commands of one transaction look at without naming them, at most: about a tenth of
/// a second.
const WALKED_MAX: usize = 250_000;
/// Rows and messages that they change without naming them, at most: each costs some microseconds. And how many changes
/// one word may bring about by naming something.
const TOUCHED_MAX: usize = 32_768;
const TOUCHED_PER_WORD: usize = 8;
/// Bytes of values that one transaction may copy, at most, unless a single value may be longer: COPY and RENAME, and
/// what is kept to take back what it overwrote.
const COPIED_MAX: usize = 128 << 20;
/// Bytes that the replies to one entry take together. What comes behind them in it is asked to come again.
pub const ENTRY_REPLIES_MAX: usize = 256 << 20;

/// What the commands of one entry look at or change without naming it, and copy, together. What comes behind them in it is
/// asked to come again, too; but a single batch may take all that its commands may.
const ENTRY_WALKED_MAX: usize = 250_000;
const ENTRY_COPIED_MAX: usize = 512 << 20;

/// What the batches of one entry took so far.
#[derive(Debug, Default)]
pub struct EntryBudget {
    taken: Cell<Taken>,
    /// Before the batch that is being executed.
    before: Cell<Taken>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Taken {
    walked: usize,
    copied: usize,
}

impl EntryBudget {
    /// Another batch begins.
    pub fn begin_batch(&self) {
        self.before.set(self.taken.get());
    }

    /// Takes what a command, or a transaction that is done, weighs.
    pub fn note(&self, weight: Weight) {
        let taken = self.taken.get();
        self.taken.set(Taken {
            walked: taken.walked.saturating_add(weight.walked),
            copied: taken.copied.saturating_add(weight.copied),
        });
    }

    /// Whether a command that weighs so much may run, or must come again since the batches before its own took much.
    ///
    /// # Errors
    ///
    /// It must come again.
    pub fn check(&self, weight: Weight) -> Result<(), CommandError> {
        let (before, taken) = (self.before.get(), self.taken.get());
        let is_over = |before: usize, taken: usize, more: usize, max: usize| {
            before > 0 && more > 0 && taken.saturating_add(more) > max
        };
        if is_over(before.walked, taken.walked, weight.walked, ENTRY_WALKED_MAX)
            || is_over(before.copied, taken.copied, weight.copied, ENTRY_COPIED_MAX)
        {
            return Err(CommandError::other(
                "TRYAGAIN Too much is being changed at once. The command was not executed.",
            ));
        }
        Ok(())
    }
}

/// A command, in its database.
pub type Command<'a> = (DbIndex, Words<'a>);

/// The row that says most about a command; `None` when there is no such command.
pub fn row_of(words: &[&[u8]]) -> Option<&'static CommandSpec> {
    words.first().and_then(|name| table::find(name)).map(|row| table::leaf(row, words))
}

/// What is left for a transaction.
#[derive(Debug)]
pub struct Budget {
    reply_max: usize,
    replied: usize,
    copied_max: usize,
    copied: usize,
    walked: usize,
    touched_max: usize,
}

impl Budget {
    /// For a transaction of these commands.
    #[must_use]
    pub fn new(bounds: Bounds, commands: &[Command<'_>]) -> Budget {
        let words: usize = commands.iter().map(|(_, words)| words.len()).sum();
        Budget {
            reply_max: bounds.reply,
            // The array's own head.
            replied: 2 * HEADER_BYTES,
            copied_max: COPIED_MAX.max(bounds.value.saturating_mul(2)),
            copied: 0,
            walked: 0,
            touched_max: TOUCHED_MAX + words.saturating_mul(TOUCHED_PER_WORD),
        }
    }

    /// What was taken from it, and what was changed besides.
    #[must_use]
    pub fn taken(&self, (touched, kept): (usize, usize)) -> Weight {
        let (walked, copied) = (self.walked.saturating_add(touched), self.copied.saturating_add(kept));
        Weight { reply: 0, copied, walked }
    }

    /// Bytes that the next reply may take.
    #[must_use]
    pub fn reply_left(&self) -> usize {
        self.reply_max.saturating_sub(self.replied)
    }

    /// Whether the next command may run. What it copies and walks over is taken from the budget.
    ///
    /// # Errors
    ///
    /// There is not enough left: the command must not run, and nothing was taken.
    pub fn charge(&mut self, weight: Weight) -> Result<(), CommandError> {
        if weight.reply > self.reply_left() {
            return Err(self.no_room_for(weight.reply));
        }
        let walked = self.walked.saturating_add(weight.walked);
        if walked > WALKED_MAX {
            return Err(walks_too_far());
        }
        self.check_copied(weight.copied)?;
        (self.walked, self.copied) = (walked, self.copied.saturating_add(weight.copied));
        Ok(())
    }

    /// A reply takes so many bytes.
    pub fn note_reply(&mut self, bytes: usize) -> Result<(), CommandError> {
        self.replied = self.replied.saturating_add(bytes);
        if self.replied > self.reply_max { Err(self.no_room_for(0)) } else { Ok(()) }
    }

    /// So much was changed so far, and so many bytes are kept to be put back.
    pub fn check_changes(&self, (touched, kept): (usize, usize)) -> Result<(), CommandError> {
        if touched > self.touched_max {
            return Err(CommandError::other(format!(
                "ERR a transaction changes {TOUCHED_MAX} locks or messages at most that it does not name. Nothing was \
                 executed: send it in parts"
            )));
        }
        self.check_copied(kept)
    }

    fn check_copied(&self, more: usize) -> Result<(), CommandError> {
        let max = self.copied_max;
        if self.copied.saturating_add(more) <= max {
            return Ok(());
        }
        Err(CommandError::other(format!(
            "ERR a transaction copies at most {max} bytes of values, what it may have to put back included. Nothing was \
             executed: send it in parts"
        )))
    }

    /// What is told when a reply of at least so many bytes does not fit.
    #[must_use]
    pub fn no_room_for(&self, bytes: usize) -> CommandError {
        CommandError::ReplyTooLarge { bytes: self.replied.saturating_add(bytes), max: self.reply_max }
    }
}

fn walks_too_far() -> CommandError {
    CommandError::other(format!(
        "ERR a transaction looks at {WALKED_MAX} keys, locks or messages at most that it does not name. Nothing was \
         executed: send it in parts, and KEYS and SCAN outside of MULTI"
    ))
}

/// True when these commands cannot pass what one transaction may take, whatever they make of each other's keys. Cheap,
/// and true of most transactions; where it is false they may keep to it all the same.
pub fn is_light(state: &State, bounds: Bounds, commands: &[Command<'_>]) -> bool {
    let rows: SmallVec<[Option<&CommandSpec>; 16]> =
        commands.iter().map(|(_, words)| row_of(words)).collect();
    let is_heavy = |row: &Option<&CommandSpec>| row.is_some_and(|row| row.flags.has_any(HEAVY));
    if !rows.iter().any(is_heavy) {
        return true;
    }
    // The longest value that any of them can meet, and how often one may be answered or copied.
    let (mut longest, mut brought, mut values, mut copies) = (0, 0, 0, 0);
    for ((db, words), row) in commands.iter().zip(rows) {
        brought += words.iter().map(|word| word.len()).sum::<usize>();
        let Some(row) = row.filter(|row| row.flags.has_any(HEAVY)) else { continue };
        // What is not a string has no length that is known beforehand.
        if row.flags.has(Flags::WALKS) || row.flags.has(Flags::BLOCKING) {
            return false;
        }
        let length = |at: usize| state.row(*db, words[at]).and_then(Row::as_string).map_or(0, <[u8]>::len);
        longest = row.keys.positions(words).into_iter().map(length).fold(longest, usize::max);
        values += if row.flags.has(Flags::VALUES) { words.len() } else { 0 };
        if row.flags.has(Flags::COPIES) {
            copies += 1;
            // An offset of SETRANGE; a number elsewhere does no harm.
            let offset = words.get(2).and_then(|word| parse_i64(word)).unwrap_or(0);
            longest = longest.max(usize::try_from(offset).unwrap_or(0));
        }
    }
    let longest = longest.saturating_add(brought);
    let replied = (longest + 2 * HEADER_BYTES).saturating_mul(values).saturating_add(commands.len() * 64);
    replied <= bounds.reply / 2 && longest.saturating_mul(copies) <= COPIED_MAX
}
