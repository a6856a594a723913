//! Applies an entry: the one place where the replicated state changes.
//!
//! Deterministic: the entry's bytes and the state decide everything. The thinnest job there is, since
//! each command's own function does the work.

use bytes::Bytes;

use crate::commands::error::CommandError;
use crate::commands::spec::CommandResult;
use crate::commands::spec::Execute;
use crate::commands::spec::Flags;
use crate::commands::spec::ReadContext;
use crate::commands::spec::WriteContext;
use crate::commands::table;
use crate::commands::weights::Scales;
use crate::commands::weights::run_read;
use crate::machine::answers::Answers;
use crate::machine::budget::ENTRY_REPLIES_MAX;
use crate::machine::budget::EntryBudget;
use crate::machine::entry::BatchHead;
use crate::machine::entry::Item;
use crate::machine::entry::LeaderStart;
use crate::machine::entry::SessionStamp;
use crate::machine::entry::Stamps;
use crate::machine::entry::decode_batch_head;
use crate::machine::entry::decode_item;
use crate::machine::entry::decode_stamps;
use crate::machine::entry::life_of;
use crate::machine::entry::skip_item;
use crate::machine::transaction::apply_transaction;
use crate::resp::Reply;
use crate::state::DbIndex;
use crate::state::State;
use crate::state::Timing;
use crate::state::confirm::confirm;
use crate::state::locks::ClaimId;
use crate::state::locks::OwnerName;
use crate::state::locks::end_claim;
use crate::state::locks::end_claims_before;
use crate::state::locks::take_back;
use crate::state::membership::Membership;
use crate::state::notices::Notice;
use crate::state::notices::Origin;
use crate::state::queues::serve_waits;
use crate::state::sessions::Admission;
use crate::state::sessions::Remembered;
use crate::types::ClusterTime;
use crate::types::FencingToken;
use crate::types::LogIndex;
use crate::types::Millis;
use crate::types::Term;
use crate::types::bounds::Bounds;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::planted::Bug;
use crate::types::planted::is_planted;

/// Replies of one batch, in the order of its items.
pub type BatchReplies = Vec<Reply>;

/// What applying an entry gave.
#[derive(Debug, Default, PartialEq)]
pub struct Applied {
    /// One for each batch, in order.
    pub outcomes: Vec<BatchOutcome>,
    /// The session and number of each of these batches; `None` for a proposal of a node itself.
    pub sessions: Vec<Option<SessionStamp>>,
    /// The entry asks that the replicas be compared as of this index: the caller should freeze the state now.
    pub verify: bool,
    /// What came about besides, in order.
    pub notices: Vec<Notice>,
    pub timings: Vec<Timing>,
}

/// What came of one batch. Only the first executed anything now.
#[derive(Debug, Clone, PartialEq)]
pub enum BatchOutcome {
    /// Executed, with these replies; none for a batch that nobody here waits for.
    Done(BatchReplies),
    /// Executed by an earlier entry, with these replies (see `resp::reply_codec`).
    Repeated(Bytes),
    /// Executed by an earlier entry; what it replied is not known any more.
    Replayed,
    /// Not executed: batches of its session before it are missing. It may come again behind them.
    Gap,
    /// Not executed, and never will be: its session is over or did not begin. An earlier entry may have.
    Ended,
}

/// Applies a committed entry and gives what came of its batches, in order.
///
/// An empty entry (Raft's own, at the start of a term) only moves the applied index. An error means that
/// the log holds what this version cannot read: the caller must stop the process, since going on would
/// make this replica differ from the others.
pub fn apply_entry(
    state: &mut State,
    index: LogIndex,
    term: Term,
    data: &[u8],
) -> Result<Applied, CodecError> {
    apply_entry_for(state, index, term, data, |_, _| true)
}

/// The same on a replica where nobody waits for the replies of some batches: they are not kept. `is_wanted` is given a
/// batch's place in the entry and its session; the state does not depend on what it says.
pub fn apply_entry_for(
    state: &mut State,
    index: LogIndex,
    term: Term,
    data: &[u8],
    is_wanted: impl Fn(usize, Option<SessionStamp>) -> bool,
) -> Result<Applied, CodecError> {
    let mut applied = Applied::default();
    if data.is_empty() {
        begin_without_stamps(state, index, term);
        return Ok(applied);
    }
    let (stamps, mut reader) = decode_stamps(data)?;
    let since_last = Millis(stamps.wall.0.saturating_sub(state.meta().wall.0));
    state.begin_entry(index, term, stamps.clock, stamps.wall);
    // Whatever a leader stamped, time does not go back within the log.
    let stamps = Stamps { clock: state.meta().clock, wall: state.meta().wall, ..stamps };
    let (mut scratch, mut replied) = (Vec::new(), 0);
    let entry = EntryBudget::default();
    while let Some(head) = decode_batch_head(&mut reader)? {
        let origin = origin_of(&head);
        let is_wanted = is_wanted(applied.outcomes.len(), head.session);
        let (user, bounds) = (head.user, head.bounds);
        let (stamps, origin, entry, in_transaction) = (&stamps, &origin, &entry, false);
        entry.begin_batch();
        let reply_later = bounds.reply;
        let caller = Caller { stamps, user, origin, in_transaction, bounds, reply_later, entry, is_wanted };
        let (count, verify, replied) = (head.count, &mut applied.verify, &mut replied);
        let mut batch = OpenBatch { caller, since_last, count, verify, replied };
        let outcome = match head.session {
            None => BatchOutcome::Done(batch.execute(state, &mut reader)?.into_replies()),
            Some(session) => batch.execute_once(state, &mut reader, session, &mut scratch)?,
        };
        applied.outcomes.push(outcome);
        applied.sessions.push(head.session);
    }
    (applied.notices, applied.timings) = state.take_notices();
    Ok(applied)
}

/// Applies an entry that changes the group's configuration, whose outcome is `membership`.
pub fn apply_membership(state: &mut State, index: LogIndex, term: Term, membership: Membership) {
    begin_without_stamps(state, index, term);
    state.set_membership(membership);
}

fn begin_without_stamps(state: &mut State, index: LogIndex, term: Term) {
    let meta = *state.meta();
    state.begin_entry(index, term, meta.clock, meta.wall);
}

/// Where a batch came from; node 0 is a cluster of one.
fn origin_of(head: &BatchHead<'_>) -> Origin {
    let mut origin = Origin::default();
    if let Some(session) = head.session {
        (origin.node, origin.life) = (session.node, life_of(session.epoch));
    }
    if let Some((client, address)) = head.client {
        (origin.client, origin.address) = (client, address.into());
    }
    origin
}

/// A batch whose head was read; its items come next.
struct OpenBatch<'a> {
    caller: Caller<'a>,
    /// How far the wall stamp went on since the entry before.
    since_last: Millis,
    count: usize,
    verify: &'a mut bool,
    /// Bytes of the replies to the entry so far.
    replied: &'a mut usize,
}

impl OpenBatch<'_> {
    fn execute_once(
        &mut self,
        state: &mut State,
        reader: &mut Reader<'_>,
        session: SessionStamp,
        scratch: &mut Vec<u8>,
    ) -> Result<BatchOutcome, CodecError> {
        let SessionStamp { node, epoch, seq, ack } = session;
        let outcome = match state.admit_batch(node, epoch, seq, ack) {
            Admission::Execute => {
                if seq == 1 {
                    // The clients of the node's earlier lives are gone.
                    end_claims_before(state, node, life_of(epoch), self.caller.stamps.clock);
                    // What they had not heard of went back, also when the batch has nothing to do itself.
                    serve_waits(state, self.caller.stamps.clock);
                }
                let answers = self.execute(state, reader)?;
                let bytes = answers.bytes();
                let mut replies = answers.into_replies();
                state.remember_replies(node, seq, Remembered::of(&replies, bytes, scratch));
                if !self.caller.is_wanted {
                    replies = Vec::new();
                }
                return Ok(BatchOutcome::Done(replies));
            }
            Admission::Repeated(_) if is_planted(Bug::RepeatedExecuted) => {
                return Ok(BatchOutcome::Done(self.execute(state, reader)?.into_replies()));
            }
            Admission::Repeated(replies) => BatchOutcome::Repeated(replies),
            Admission::Replayed => BatchOutcome::Replayed,
            Admission::Gap => BatchOutcome::Gap,
            Admission::Ended => BatchOutcome::Ended,
        };
        for _ in 0..self.count {
            skip_item(reader)?;
        }
        Ok(outcome)
    }

    fn execute(&mut self, state: &mut State, reader: &mut Reader<'_>) -> Result<Answers, CodecError> {
        let mut answers = Answers::new(self.count, self.caller.is_wanted);
        for _ in 0..self.count {
            let item = decode_item(reader)?;
            *self.verify |= matches!(item, Item::Verify);
            let Answer { reply, bytes } = match item {
                Item::LeaderStart(start) => {
                    // Two leaders that both slept through the outage must not both age the keys by it.
                    let outage = start.outage.min(self.since_last);
                    apply_leader_start(state, self.caller.stamps, &LeaderStart { outage, ..start });
                    Reply::Ok.into()
                }
                item => self.execute_item(state, item),
            };
            *self.replied = self.replied.saturating_add(bytes);
            answers.push(reply, bytes);
            serve_waits(state, self.caller.stamps.clock);
        }
        Ok(answers)
    }

    /// What stands behind large replies in an entry has less room for its own, and may have to come again.
    #[inline]
    fn execute_item(&self, state: &mut State, item: Item<'_>) -> Answer {
        let whole = self.caller.bounds.reply;
        let room = match *self.replied {
            0 => whole,
            replied => whole.min(ENTRY_REPLIES_MAX.saturating_sub(replied)),
        };
        let caller = Caller { bounds: Bounds { reply: room, ..self.caller.bounds }, ..self.caller };
        match apply_item(state, &caller, item) {
            Ok(answer) => answer,
            Err(error) if error.room_wanted().is_some() && room < whole => Reply::error(TRY_AGAIN).into(),
            Err(error) => Reply::from(error).into(),
        }
    }
}

const TRY_AGAIN: &str = "TRYAGAIN Too much is being answered at once. The command was not executed.";

/// A reply and the bytes that it takes by [`Reply::size_hint`], which is what counts where it is not wanted and parts
/// of it are left out.
pub struct Answer {
    pub reply: Reply,
    pub bytes: usize,
}

impl From<Reply> for Answer {
    #[inline]
    fn from(reply: Reply) -> Answer {
        Answer { bytes: reply.size_hint(), reply }
    }
}

#[inline]
fn apply_item(state: &mut State, caller: &Caller<'_>, item: Item<'_>) -> Result<Answer, CommandError> {
    match item {
        Item::Command { db, words } => Ok(apply_command(state, caller, db, &words)?.into()),
        Item::Transaction { watched, commands, is_atomic } => {
            apply_transaction(state, caller, &watched, &commands, is_atomic)
        }
        item => Ok(apply_own_item(state, caller, item).into()),
    }
}

/// What no command says.
fn apply_own_item(state: &mut State, caller: &Caller<'_>, item: Item<'_>) -> Reply {
    let now = caller.stamps.clock;
    match item {
        Item::Command { .. } | Item::Transaction { .. } => unreachable!("these are commands"),
        Item::Expire { keys } => {
            let ended = if keys.is_empty() {
                state.expire_due(now)
            } else {
                let end = |(db, key)| state.expire_touched(db, key, now);
                keys.into_iter().map(end).sum()
            };
            Reply::Integer(i64::try_from(ended).unwrap_or(i64::MAX))
        }
        Item::LeaderStart(_) => Reply::error("ERR a LEADER-START in the wrong place"),
        Item::Verify => integer(state.meta().applied.0),
        Item::AllocateReplica { node, nonce } => state
            .allocate_replica(node, nonce)
            .map_or_else(|| Reply::error("ERR no replica id is left"), integer),
        Item::Cancel { claims } => {
            let cancelled = claims.into_iter().filter(|claim| end_claim(state, ClaimId(*claim), now)).count();
            integer(cancelled as u64)
        }
        Item::TakeBack { db, owner, grants } => {
            let owner = OwnerName::new(caller.user, owner);
            let grants = grants.into_iter().map(|(key, token, touches)| (key, FencingToken(token), touches));
            integer(grants.filter(|grant| take_back(state, db, &owner, *grant, now)).count() as u64)
        }
        Item::EndClaims { node, life } => integer(end_claims_before(state, node, life, now) as u64),
        Item::Confirm { claims } => {
            let confirmed = claims.into_iter().filter(|claim| confirm(state, ClaimId(*claim), now)).count();
            integer(confirmed as u64)
        }
    }
}

/// Indices and ids stay far below 2^63.
fn integer(value: u64) -> Reply {
    Reply::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

fn apply_leader_start(state: &mut State, stamps: &Stamps, start: &LeaderStart) {
    if state.settings().databases == 0 {
        state.set_settings(start.settings);
    }
    state.advance_key_clock(start.outage);
    state.grant_grace(stamps.clock);
}

/// Who wants a command done, and when.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    pub stamps: &'a Stamps,
    pub user: &'a [u8],
    pub origin: &'a Origin,
    pub in_transaction: bool,
    /// How large values and replies may become.
    pub bounds: Bounds,
    /// How large a reply may become that comes later.
    pub reply_later: usize,
    /// What its entry may take besides.
    pub entry: &'a EntryBudget,
    /// A client of this node waits for the reply. Nothing that is replicated may depend on it.
    pub is_wanted: bool,
}

const WALKS_OR_COPIES: Flags = Flags::WALKS.and(Flags::COPIES);

/// Runs one command.
pub(super) fn apply_command(
    state: &mut State,
    caller: &Caller<'_>,
    db: DbIndex,
    words: &[&[u8]],
) -> CommandResult {
    let Some(row) = words.first().and_then(|name| table::find(name)) else {
        return Ok(Reply::error("ERR unknown command in the log"));
    };
    if usize::from(db) >= state.databases() {
        return Ok(Reply::error("ERR a database out of range in the log"));
    }
    let spec = table::leaf(row, words);
    if !spec.arity_allows(words.len()) || !row.arity_allows(words.len()) {
        return Ok(Reply::error("ERR malformed command in the log"));
    }
    let Caller { stamps, user, origin, in_transaction, bounds, reply_later, entry, .. } = *caller;
    if spec.flags.has_any(WALKS_OR_COPIES) && !in_transaction {
        let weight = Scales::new(state, user).weigh(db, words);
        entry.check(weight)?;
        entry.note(weight);
    }
    if state.anything_due(stamps.clock) {
        expire_named(state, stamps.clock, db, words);
    }
    let (now, wall, seed) = (stamps.clock, stamps.wall, stamps.seed);
    match spec.execute {
        Execute::Write(write) => {
            let mut context =
                WriteContext { state, db, user, now, wall, origin, in_transaction, bounds, reply_later };
            write(&mut context, words)
        }
        Execute::Read(read) => {
            state.reads_in_log(true);
            let context = ReadContext { state, db, user, now, wall, seed, bounds };
            let reply = run_read(spec, read, &context, words);
            state.reads_in_log(false);
            reply
        }
        Execute::Session(_) => Ok(Reply::error("ERR a connection's own command in the log")),
    }
}

/// What a command names and is due ends before the command runs (DESIGN.md D9).
pub(super) fn expire_named(state: &mut State, now: ClusterTime, db: DbIndex, words: &[&[u8]]) {
    let Some(row) = words.first().and_then(|name| table::find(name)) else { return };
    for at in table::leaf(row, words).keys.positions(words) {
        state.expire_touched(db, words[at], now);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::ProptestConfig;
    use proptest::prelude::any;
    use proptest::proptest;

    use super::*;
    use crate::machine::entry::Batch;
    use crate::machine::entry::Queued;
    use crate::machine::entry::encode_entry;
    use crate::resp::reply_codec::encode_replies;
    use crate::state::expiry::Track;
    use crate::state::membership::FIRST_ALLOCATED;
    use crate::state::membership::NodeAddress;
    use crate::state::test_support::TestStore;
    use crate::types::ClusterTime;
    use crate::types::NodeId;
    use crate::types::WallMillis;

    fn apply(state: &mut State, index: u64, clock: u64, fill: impl FnOnce(&mut Batch)) -> Vec<Reply> {
        let mut batch = Batch::new(b"default");
        fill(&mut batch);
        let stamps = Stamps { clock: ClusterTime(clock), wall: WallMillis(clock), seed: 1 };
        let entry = encode_entry(&stamps, [(None, &batch)].into_iter());
        let applied = apply_entry(state, LogIndex(index), Term(1), &entry).unwrap();
        match &applied.outcomes[..] {
            [BatchOutcome::Done(replies)] => replies.clone(),
            other => panic!("one batch that is done, not {other:?}"),
        }
    }

    fn push(batch: &mut Batch, words: &[&str]) {
        batch.push_command(0, words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>().into_iter());
    }

    /// The replies to a transaction of these lines at this time, all or nothing.
    fn transaction(state: &mut State, index: u64, clock: u64, lines: &[&str]) -> Vec<Reply> {
        let words =
            |line: &str| line.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
        let commands: Vec<Queued> = lines.iter().map(|line| Queued { db: 0, args: words(line) }).collect();
        apply(state, index, clock, |batch| batch.push_transaction(&[], &commands, true))
    }

    #[test]
    fn a_queue_at_rest_that_was_forgotten_for_a_string_comes_back_with_its_deadline() {
        let store = TestStore::new();
        let mut state = State::new(16);
        apply(&mut state, 1, 0, |batch| push(batch, &["QPUSH", "q", "m"]));
        apply(&mut state, 2, 0, |batch| push(batch, &["QPOP", "NOACK", "FROM", "q"]));
        let hour = ClusterTime(3_600_000);
        assert_eq!(state.earliest_deadline(), hour, "an empty queue is forgotten after an hour");
        let lines = ["SET q x", "QPUSH new m", "QPUSH new m", "INCRBY zz x"];
        let replies = transaction(&mut state, 3, hour.0, &lines);
        assert!(
            matches!(&replies[..], [Reply::Error(text)] if text.starts_with("EXECABORT cmd=4 ")),
            "{replies:?}"
        );
        let counters =
            crate::state::queues::known_at(&state, 0, b"q").unwrap().map(|queue| *queue.counters());
        assert_eq!(counters.map(|counters| (counters.pushed, counters.acked)), Some((1, 1)));
        assert_eq!(state.earliest_deadline(), hour);
        store.reopen(&mut state);
        assert_eq!(state.earliest_deadline(), hour);
        let replies = apply(&mut state, 4, hour.0, |batch| {
            batch.push_expire(0, std::iter::empty());
            push(batch, &["EXISTS", "q", "new"]);
        });
        assert_eq!(replies, [Reply::Integer(1), Reply::Integer(0)]);
    }

    #[test]
    fn a_queue_and_who_took_its_name_are_as_they_were_when_a_transaction_fails() {
        // What is there before, and what the transaction does until it fails.
        for (before, lines) in [
            ("QPUSH q m ID i|QCONFIG SET q MAXLEN 9", "QDEL q ALL|SET q x"),
            ("QPUSH q m ID i|QCONFIG SET q MAXLEN 9", "QDEL q ALL|LOCK q me|UNLOCK q me|QPUSH q n ID i"),
            ("QPUSH q m ID i|QPOP NOACK FROM q", "QPUSH q n|QPUSH q o ID i|QCONFIG SET q MAXLEN 1"),
            ("QPUSH q m ID i|QPOP NOACK FROM q", "QPUSH q n|QPOP NOACK FROM q|SET q x"),
            ("QPUSH q m ID i|QPOP NOACK FROM q|SET q x", "DEL q|QPUSH q n|QPOP FROM q"),
            ("QPUSH q m ID i|QPOP NOACK FROM q|SET q x", "DEL q|QPUSH q n|QDEL q ALL|LOCK q me"),
            ("SET q x", "DEL q|QPUSH q m|QPOP NOACK FROM q"),
            ("QPUSH q m", "QPOP NOACK FROM q|QPUSH q n"),
            ("QPUSH q m ID i|QPOP FROM q|QNACK q FATAL IDS 1 1-0:1", "QREDRIVE q TO r|SET q x|QDEL r ALL"),
        ] {
            let store = TestStore::new();
            let mut state = State::new(16);
            let mut index = 0;
            for line in before.split('|') {
                index += 1;
                let words: Vec<&str> = line.split(' ').collect();
                let replies = apply(&mut state, index, 0, |batch| push(batch, &words));
                assert!(!replies[0].is_error(), "{line}: {replies:?}");
            }
            let told = |state: &State| {
                let queue = crate::state::queues::known_at(state, 0, b"q").flatten();
                (
                    state.row(0, b"q").map(|row| (row.changed(), row.object().type_name())),
                    queue.map(|it| it.len()),
                )
            };
            let seen = told(&state);
            let lines: Vec<&str> = lines.split('|').chain(["INCRBY zz x"]).collect();
            let replies = transaction(&mut state, index + 1, 0, &lines);
            let failed = format!("EXECABORT cmd={} ", lines.len());
            assert!(
                matches!(&replies[..], [Reply::Error(text)] if text.starts_with(&failed)),
                "{lines:?}: {replies:?}"
            );
            assert_eq!(told(&state), seen, "{before} {lines:?}");
            store.reopen(&mut state);
            assert_eq!(told(&state), seen, "{before} {lines:?}");
        }
    }

    #[test]
    fn an_expire_that_names_a_key_ends_that_key_first_however_many_are_due() {
        let mut state = State::new(16);
        apply(&mut state, 1, 0, |batch| {
            for n in 0..160 {
                push(batch, &["SET", &format!("k{n}"), "v", "PX", "100"]);
            }
        });
        let last = [&b"k159"[..]];
        assert_eq!(
            apply(&mut state, 2, 100, |batch| batch.push_expire(0, last.into_iter())),
            [Reply::Integer(1)]
        );
        assert!(state.row(0, b"k159").is_none() && state.row(0, b"k158").is_some());
        for (index, ended) in [(3, 64), (4, 64), (5, 31), (6, 0)] {
            let replies = apply(&mut state, index, 100, |batch| batch.push_expire(0, std::iter::empty()));
            assert_eq!(replies, [Reply::Integer(ended)]);
        }
    }

    /// How many keys and idle locks are left, and what became of those who wait: `[l's holder, messages ready in q]`.
    fn left(state: &State) -> (usize, usize, [String; 2]) {
        let lock = crate::state::locks::lock_at(state, 0, b"l").flatten();
        let holder = lock.and_then(|lock| lock.holds().first()).map(|hold| hold.owner().owner.escape_ascii());
        let queue = crate::state::queues::queue_at(state, 0, b"q").flatten();
        let ready = queue.map_or(0, |queue| queue.count(crate::state::queues::StateName::Ready));
        let waited = [holder.map_or_else(String::new, |holder| holder.to_string()), ready.to_string()];
        (state.expiring_keys(0), state.locks_held(), waited)
    }

    #[test]
    fn what_somebody_waits_for_ends_before_whatever_else_is_due() {
        let store = TestStore::new();
        let mut state = State::new(16);
        let expire = |state: &mut State, index, clock| {
            apply(state, index, clock, |batch| batch.push_expire(0, std::iter::empty()))
        };
        apply(&mut state, 1, 0, |batch| {
            for n in 0..100 {
                push(batch, &["SET", &format!("k{n}"), "v", "PX", "100"]);
                push(batch, &["LOCK", &format!("idle{n}"), "o", "PX", "100"]);
            }
            push(batch, &["LOCK", "l", "h", "PX", "200"]);
            push(batch, &["LOCK", "other", "h", "PX", "60000"]);
            push(batch, &["QPUSH", "q", "m", "DELAY", "200"]);
            push(batch, &["QPUSH", "q", "m"]);
            push(batch, &["QPOP", "LEASE", "200", "FROM", "q"]);
        });
        for line in [["LOCK", "l", "w", "BLOCK", "60000"], ["LOCK", "other", "w", "BLOCK", "200"]] {
            let index = state.meta().applied.0 + 1;
            apply(&mut state, index, 0, |batch| push(batch, &line));
        }
        store.reopen(&mut state);
        state.check_deadlines();
        assert_eq!(left(&state), (100, 102, ["h".to_owned(), "0".to_owned()]));
        // The hold of l, the wait for other, both messages; then a quarter of the rest, keys first among equals.
        assert_eq!(expire(&mut state, 4, 200), [Reply::Integer(4 + 16)]);
        assert_eq!(left(&state), (84, 102, ["w".to_owned(), "2".to_owned()]));
        assert_eq!(state.waits().len(), 0);
        // Nobody waits for what is left.
        for (index, ended, keys, holds) in [(5, 64, 20, 102), (6, 64, 0, 58), (7, 56, 0, 2), (8, 0, 0, 2)] {
            assert_eq!(expire(&mut state, index, 200), [Reply::Integer(ended)]);
            let (keys_left, holds_left, _) = left(&state);
            assert_eq!((keys_left, holds_left), (keys, holds));
        }
        assert_eq!(state.keys_expired(), 100);
    }

    #[test]
    fn a_lock_is_waited_for_from_the_first_that_waits_to_the_last() {
        let store = TestStore::new();
        let mut state = State::new(16);
        let awaited = |state: &State| {
            state.check_deadlines();
            state.earliest_on(Track::Awaited)
        };
        let run = |state: &mut State, lines: &[&str], is_atomic| {
            let index = state.meta().applied.0 + 1;
            let words =
                |line: &str| line.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
            let commands: Vec<Queued> =
                lines.iter().map(|line| Queued { db: 0, args: words(line) }).collect();
            apply(state, index, 0, |batch| match is_atomic {
                true => batch.push_transaction(&[], &commands, true),
                false => lines.iter().for_each(|line| push(batch, &line.split(' ').collect::<Vec<_>>())),
            })
        };
        run(&mut state, &["LOCK l h PX 500 GRACE 1000", "LOCK m h PX 700 SHARED"], false);
        assert_eq!(awaited(&state), ClusterTime::NEVER);
        run(&mut state, &["LOCK l a BLOCK 0", "MLOCK 2 l m b BLOCK 0"], false);
        assert_eq!(awaited(&state), ClusterTime(500));
        store.reopen(&mut state);
        assert_eq!(awaited(&state), ClusterTime(500));
        // What is taken back leaves no trace.
        run(&mut state, &["UNLOCK l a", "UNLOCK m b", "UNLOCK l h", "INCR x", "LOCK m x"], true);
        assert_eq!(awaited(&state), ClusterTime(500));
        run(&mut state, &["UNLOCK l a"], false);
        assert_eq!(awaited(&state), ClusterTime(500), "the other waits for both");
        run(&mut state, &["UNLOCK l h"], false);
        assert_eq!(awaited(&state), ClusterTime(700));
        run(&mut state, &["UNLOCK m b"], false);
        assert_eq!(awaited(&state), ClusterTime::NEVER);
        assert_eq!(state.earliest_on(Track::Idle), ClusterTime(700));
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
        // Two leaders that both slept through it age the keys once: between their stamps no time went by.
        let start = LeaderStart { outage: Millis(40_000), settings: *state.settings() };
        for index in [2, 3] {
            let mut batch = Batch::new(b"");
            batch.push_leader_start(&start);
            let stamps = Stamps { clock: ClusterTime(10), wall: WallMillis(40_010), seed: 1 };
            let entry = encode_entry(&stamps, [(None, &batch)].into_iter());
            apply_entry(&mut state, LogIndex(index), Term(1), &entry).unwrap();
        }
        let replies = apply(&mut state, 4, 10, |batch| push(batch, &["PTTL", "k"]));
        assert_eq!(replies, [Reply::Integer(60_000 - 40_000 - 10)]);
        let replies = apply(&mut state, 5, 20_000, |batch| {
            push(batch, &["GET", "k"]);
            push(batch, &["LOCK", "l", "you"]);
        });
        assert_eq!(replies, [Reply::Null, Reply::Null]);
    }

    fn command(words: &[&str]) -> Batch {
        let mut batch = Batch::new(b"default");
        push(&mut batch, words);
        batch
    }

    fn stamps(clock: u64) -> Stamps {
        Stamps { clock: ClusterTime(clock), wall: WallMillis(clock), seed: 1 }
    }

    fn session(seq: u64, ack: u64) -> Option<SessionStamp> {
        Some(SessionStamp { node: NodeId(2), epoch: 1, seq, ack })
    }

    /// The outcomes of an entry of these batches.
    fn outcomes(state: &mut State, batches: &[(Option<SessionStamp>, Batch)]) -> Vec<BatchOutcome> {
        let entry = encode_entry(&stamps(0), batches.iter().map(|(session, batch)| (*session, batch)));
        let index = state.meta().applied.next();
        let applied = apply_entry(state, index, Term(1), &entry).unwrap();
        assert!(
            applied.sessions.iter().eq(batches.iter().map(|(session, _)| session)),
            "one for each, in order"
        );
        applied.outcomes
    }

    fn encoded(replies: &[Reply]) -> Bytes {
        let mut out = Vec::new();
        encode_replies(replies, &mut out);
        Bytes::from(out)
    }

    #[test]
    fn a_batch_of_a_session_executes_once_and_one_without_always() {
        let mut state = State::new(16);
        let incr = || command(&["INCR", "n"]);
        let done = |n| BatchOutcome::Done(vec![Reply::Integer(n)]);
        let all = [
            (session(1, 0), incr()),
            (None, incr()),
            (session(1, 0), incr()),
            (session(3, 0), incr()),
            (session(2, 0), incr()),
            (None, incr()),
            (session(3, 2), incr()),
            (session(2, 0), incr()),
        ];
        let expected = [
            done(1),
            done(2),
            BatchOutcome::Repeated(encoded(&[Reply::Integer(1)])),
            BatchOutcome::Gap,
            done(3),
            done(4),
            done(5),
            BatchOutcome::Replayed,
        ];
        assert_eq!(outcomes(&mut state, &all), expected);
        let late = SessionStamp { node: NodeId(3), epoch: 1, seq: 2, ack: 1 };
        assert_eq!(outcomes(&mut state, &[(Some(late), incr())]), [BatchOutcome::Gap]);
        assert_eq!(outcomes(&mut state, &[(None, incr())]), [done(6)]);
    }

    #[test]
    fn a_batch_without_items_has_its_place_in_a_session() {
        let mut state = State::new(16);
        let all =
            [(session(1, 0), Batch::default()), (None, Batch::default()), (session(1, 0), Batch::default())];
        let expected =
            [BatchOutcome::Done(vec![]), BatchOutcome::Done(vec![]), BatchOutcome::Repeated(encoded(&[]))];
        assert_eq!(outcomes(&mut state, &all), expected);
    }

    #[test]
    fn a_verification_is_told_to_the_caller_and_changes_nothing() {
        let verify = || {
            let mut batch = Batch::default();
            batch.push_verify();
            batch
        };
        let run = |batches: &[(Option<SessionStamp>, Batch)]| {
            let mut state = State::new(16);
            outcomes(&mut state, &[(session(1, 0), command(&["SET", "k", "v"]))]);
            let entry = encode_entry(&stamps(0), batches.iter().map(|(session, batch)| (*session, batch)));
            let applied = apply_entry(&mut state, LogIndex(2), Term(1), &entry).unwrap();
            (applied, state.digest())
        };
        let (applied, digest) = run(&[(None, Batch::default()), (None, verify())]);
        assert!(applied.verify);
        assert_eq!(applied.outcomes[1], BatchOutcome::Done(vec![Reply::Integer(2)]));
        let (plain, same) = run(&[(None, Batch::default())]);
        assert_eq!((plain.verify, same), (false, digest));
        let (repeated, _) = run(&[(session(1, 0), verify())]);
        assert!(!repeated.verify, "what is not executed asks for nothing");
    }

    #[test]
    fn a_configuration_change_sets_the_membership_at_its_index() {
        let mut state = State::new(16);
        apply(&mut state, 1, 700, |batch| push(batch, &["SET", "k", "v"]));
        let address = NodeAddress { node: NodeId(1), host: "a".to_owned(), port: 17_000 };
        let membership =
            Membership { voters: vec![1], nodes: [(1, address)].into(), ..Membership::default() };
        apply_membership(&mut state, LogIndex(2), Term(3), membership);
        let meta = state.meta();
        assert_eq!((meta.applied, meta.applied_term, meta.clock), (LogIndex(2), Term(3), ClusterTime(700)));
        assert_eq!(state.membership().replica_of(NodeId(1)), Some(1));
        let first = i64::try_from(FIRST_ALLOCATED).unwrap();
        let replies = apply(&mut state, 3, 700, |batch| {
            for (node, nonce) in [(4, 1), (4, 1), (4, 2), (5, 1)] {
                batch.push_allocate_replica(NodeId(node), nonce);
            }
        });
        assert_eq!(replies, [first, first, first + 1, first + 2].map(Reply::Integer));
    }

    #[test]
    fn time_does_not_go_back_whatever_a_leader_stamps() {
        let mut state = State::new(16);
        apply(&mut state, 1, 5_000, |batch| push(batch, &["LOCK", "l", "me", "PX", "1000"]));
        apply(&mut state, 2, 100, |batch| push(batch, &["LOCK", "m", "me", "PX", "1000"]));
        assert_eq!(state.earliest_deadline(), ClusterTime(6_000));
    }

    /// Sends batches as a node does that restarts, loses some, repeats and mixes up others.
    struct Origin {
        node: NodeId,
        epoch: u64,
        made: u64,
        /// All up to here were answered.
        ack: u64,
        /// Every batch of every epoch.
        history: Vec<(u64, u64)>,
    }

    impl Origin {
        fn make(&mut self) -> (u64, u64) {
            self.made += 1;
            self.history.push((self.epoch, self.made));
            (self.epoch, self.made)
        }

        fn unanswered(&self) -> Vec<(u64, u64)> {
            (self.ack + 1..=self.made).map(|seq| (self.epoch, seq)).collect()
        }

        /// What it sends next; may be nothing.
        fn send(&mut self, draw: u64) -> Vec<(u64, u64)> {
            if (draw >> 8).is_multiple_of(20) {
                (self.epoch, self.made, self.ack) = (self.epoch + 1 + (draw >> 16) % 2, 0, 0);
            }
            match (draw >> 1) % 10 {
                0..=3 => vec![self.make()],
                4 => {
                    self.make();
                    Vec::new()
                }
                5 | 6 => self.unanswered(),
                7 => self.unanswered().into_iter().rev().collect(),
                8 => [self.make(), self.make()].into_iter().rev().collect(),
                _ => {
                    let at = (draw >> 16) as usize % self.history.len().max(1);
                    self.history.get(at).copied().into_iter().collect()
                }
            }
        }

        fn stamp(&self, (epoch, seq): (u64, u64), draw: u64) -> SessionStamp {
            let ack = match (draw >> 24) % 8 {
                0 => 0,
                1 => u64::MAX,
                _ if epoch == self.epoch => self.ack,
                _ => 1,
            };
            SessionStamp { node: self.node, epoch, seq, ack }
        }
    }

    /// What a batch says depends on its name alone, and shows when it is executed twice.
    fn content(node: NodeId, (epoch, seq): (u64, u64)) -> Batch {
        let name = format!("{node}.{epoch}.{seq} ");
        match seq % 3 {
            0 => command(&["SET", &name, "1", "NX"]),
            1 => command(&["APPEND", &format!("log{node}"), &name]),
            _ => Batch::default(),
        }
    }

    /// What must be true of the outcomes, whatever was sent.
    #[derive(Default)]
    struct Seen {
        /// The replies of every batch that was executed.
        done: BTreeMap<(NodeId, u64, u64), Vec<Reply>>,
        /// Where each node's session stands.
        at: BTreeMap<NodeId, (u64, u64)>,
        /// The highest ack of the session's epoch, within what had been executed.
        acked: BTreeMap<NodeId, u64>,
        log: BTreeMap<NodeId, String>,
    }

    impl Seen {
        fn take(&mut self, stamp: &SessionStamp, outcome: &BatchOutcome) {
            let SessionStamp { node, epoch, seq, ack } = *stamp;
            let (open, last) = self.at.get(&node).copied().unwrap_or((0, 0));
            if epoch == open {
                let acked = self.acked.entry(node).or_default();
                *acked = (*acked).max(ack.min(last));
            }
            match outcome {
                BatchOutcome::Done(replies) => {
                    let is_next = epoch == open && seq == last + 1;
                    assert!(is_next || (epoch > open && seq == 1), "{stamp:?} after {open}, {last}");
                    if epoch > open {
                        self.acked.insert(node, 0);
                    }
                    let expected = match seq % 3 {
                        0 => vec![Reply::Ok],
                        1 => {
                            let log = self.log.entry(node).or_default();
                            log.push_str(&format!("{node}.{epoch}.{seq} "));
                            vec![Reply::Integer(log.len() as i64)]
                        }
                        _ => Vec::new(),
                    };
                    assert_eq!(*replies, expected);
                    self.at.insert(node, (epoch, seq));
                    assert_eq!(self.done.insert((node, epoch, seq), expected), None, "{stamp:?} twice");
                }
                BatchOutcome::Repeated(bytes) => {
                    assert_eq!(*bytes, encoded(&self.done[&(node, epoch, seq)]), "{stamp:?}");
                    assert!(epoch == open && seq > self.acked[&node]);
                }
                BatchOutcome::Replayed => {
                    assert!(self.done.contains_key(&(node, epoch, seq)), "{stamp:?}");
                    assert!(epoch == open && seq <= self.acked[&node]);
                }
                BatchOutcome::Gap => assert!(epoch > open || seq > last + 1, "{stamp:?}"),
                BatchOutcome::Ended => assert!(epoch < open, "{stamp:?}"),
            }
        }
    }

    /// Keys that share a part of the keyspace: the order in which one walks over them is that of a hash table.
    fn keys_of_one_part(count: usize) -> Vec<String> {
        let part = |key: &str| {
            let mut state = State::new(16);
            state.put_string(0, key.as_bytes(), b"", None);
            (0..crate::state::PARTS).find(|part| state.database(0).part(*part).next().is_some())
        };
        let first = part("k0");
        let alike = (0..).map(|n| format!("k{n}")).filter(|key| xxh3_part(key) == first.unwrap());
        let keys: Vec<String> = alike.take(count).collect();
        assert!(keys.iter().all(|key| part(key) == first), "the test knows how parts are chosen");
        keys
    }

    fn xxh3_part(key: &str) -> usize {
        (xxhash_rust::xxh3::xxh3_64(key.as_bytes()) >> 24) as usize % crate::state::PARTS
    }

    /// A command of any family; K is a key, T a time, R a receipt.
    fn line(draw: u64, keys: &[String], receipts: &[String]) -> Vec<Bytes> {
        const LINES: &[&str] = &[
            "SET K 7",
            "SET K value PX T",
            "SET K v NX GET",
            "APPEND K more",
            "SETRANGE K 5 v",
            "INCR K",
            "GETDEL K",
            "GETEX K PX T",
            "DEL K K",
            "PEXPIRE K T",
            "PERSIST K",
            "RENAME K K",
            "COPY K K DB 1 REPLACE",
            "MOVE K 1",
            "MSETNX K 1 K 2",
            "FLUSHDB",
            "LOCK K me PX T",
            "LOCK K you PX T",
            "UNLOCK K me",
            "LOCKEXTEND me T",
            "LOCK K me BLOCK T PX T",
            "LOCK K you BLOCK 0 SHARED DATA d",
            "LOCK K they BLOCK T SHARED LIMIT 2 GRACE T",
            "LOCK K they SHARED",
            "MLOCK 2 K K me BLOCK T",
            "MLOCK 3 K K K you SHARED PX T",
            "UNLOCK K you TOKEN 3",
            "UNLOCK K they",
            "LOCKS RELEASE you",
            "LOCKS KILL K",
            "LOCKS INFO K",
            "LOCKS GRAPH",
            "LOCKS DEADLOCKS",
            "FENCE K 5",
            "SET K fenced FENCE K 4",
            "QPUSH K payload",
            "QPUSH K payload",
            "QPOP COUNT 2 LEASE T FROM K K",
            "QPOP NOACK FROM K",
            "QACK K R R",
            "QLEN K ALL",
            "GET K",
            "PTTL K",
            "DBSIZE",
            "TYPE K",
            "KEYS *",
            "SCAN 0 COUNT 100000",
            "RANDOMKEY",
            "MEMORY USAGE K",
            "MEMORY STATS",
        ];
        let mut rest = draw / LINES.len() as u64;
        let mut pick = |pool: usize| {
            let choice = rest % pool as u64;
            rest /= pool as u64;
            choice as usize
        };
        let words = LINES[(draw % LINES.len() as u64) as usize].split(' ');
        let word = |word: &str| match word {
            "K" => keys[pick(keys.len())].clone(),
            "T" => ["100", "500", "5000", "60000"][pick(4)].to_owned(),
            // Mostly of those that were handed out last.
            "R" => receipts[receipts.len() - 1 - pick(receipts.len().min(8))].clone(),
            word => word.to_owned(),
        };
        words.map(word).map(Bytes::from).collect()
    }

    /// Receipts stand in replies as `index-n:count`.
    fn receipts_in(text: &str) -> Vec<String> {
        let is_of_one = |character: char| character.is_ascii_digit() || "-:".contains(character);
        let words = text.split(|character| !is_of_one(character));
        words.filter(|word| word.contains('-') && word.contains(':')).map(str::to_owned).collect()
    }

    /// Commands alone, as a transaction, or with what a leader adds.
    fn batch_of(draw: u64, clock: u64, lines: &[Vec<Bytes>]) -> Batch {
        let mut batch = Batch::new(b"default");
        match (draw >> 16) % 8 {
            0 => batch.push_leader_start(&LeaderStart {
                outage: Millis(clock % 50),
                settings: crate::state::Settings::default(),
            }),
            1 => batch.push_expire(0, std::iter::empty()),
            2 => batch.push_allocate_replica(NodeId(draw >> 40 & 3), draw >> 48 & 3),
            3 => batch.push_cancel(&[draw >> 40 & 31]),
            4 => batch.push_end_claims(NodeId(1), draw >> 40 & 7),
            5 => batch.push_confirm(&[draw >> 40 & 31, draw >> 48 & 31]),
            _ => {}
        }
        if (draw >> 20).is_multiple_of(2) {
            let queued = |args: &Vec<Bytes>| Queued { db: 0, args: args.clone() };
            let is_atomic = (draw >> 21).is_multiple_of(2);
            batch.push_transaction(&[], &lines.iter().map(queued).collect::<Vec<_>>(), is_atomic);
        } else {
            lines.iter().for_each(|line| {
                batch.push_command(0, line.iter().map(Bytes::as_ref).collect::<Vec<_>>().into_iter());
            });
        }
        batch
    }

    /// What is due later ends alike on both, whatever they know of when that is: the index of deadlines may have a
    /// queue before its first timer.
    fn end_alike(first: &mut State, second: &mut State, index: u64, mut clock: u64) {
        first.check_deadlines();
        second.check_deadlines();
        for (passes, index) in
            [0, 1, 500, 5_000, 60_000, 5_000_000].into_iter().cycle().take(60).zip(index + 1..)
        {
            clock += passes;
            let mut batch = Batch::new(b"default");
            batch.push_expire(0, std::iter::empty());
            let entry = encode_entry(&stamps(clock), [(None, &batch)].into_iter());
            let apply = |state: &mut State| apply_entry(state, LogIndex(index), Term(1), &entry).unwrap();
            assert_eq!(apply(first), apply(second));
            assert_eq!(first.digest(), second.digest());
        }
        assert_eq!(first.earliest_deadline(), second.earliest_deadline());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn a_replica_that_restarts_or_takes_a_snapshot_goes_on_as_one_that_replays_the_whole_log(
            draws in proptest::collection::vec(proptest::collection::vec(any::<u64>(), 2..6), 1..120),
        ) {
            let store = TestStore::new();
            let keys = keys_of_one_part(6);
            let (mut whole, mut restarted) = (State::new(16), State::new(16));
            let (mut clock, mut receipts) = (0, vec!["1-0:1".to_owned()]);
            for (index, draw) in (1..).zip(&draws) {
                clock += [0, 1, 300, 4_000][(draw[0] >> 8) as usize % 4];
                let lines: Vec<Vec<Bytes>> =
                    draw[1..].iter().map(|draw| line(*draw, &keys, &receipts)).collect();
                let batch = batch_of(draw[0], clock, &lines);
                // What was answered is part of the state until its origin has it.
                let ack = (index as u64).saturating_sub(3);
                let entry = encode_entry(&stamps(clock), [(session(index as u64, ack), &batch)].into_iter());
                let apply = |state: &mut State| apply_entry(state, LogIndex(index as u64), Term(1), &entry);
                let (applied, again) = (apply(&mut whole).unwrap(), apply(&mut restarted).unwrap());
                assert_eq!(applied, again, "{lines:?}");
                receipts.extend(receipts_in(&format!("{applied:?}")));
                assert_eq!(whole.digest(), restarted.digest(), "{lines:?}");
                match draw[0] % 8 {
                    0 | 1 => store.reopen(&mut restarted),
                    2 => store.write(&mut restarted),
                    _ => {}
                }
            }
            store.reopen(&mut restarted);
            assert_eq!(whole.digest(), restarted.digest());
            assert_eq!(whole.locks_held(), restarted.locks_held());
            end_alike(&mut whole, &mut restarted, draws.len() as u64, clock);
            assert_eq!(whole.queues().count(), restarted.queues().count());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn a_transaction_that_fails_leaves_no_trace(
            draws in proptest::collection::vec(proptest::collection::vec(any::<u64>(), 2..7), 1..60),
        ) {
            let store = TestStore::new();
            let keys = keys_of_one_part(5);
            // One has the transactions that fail in its log, the other has nothing in their places.
            let (mut with, mut without) = (State::new(16), State::new(16));
            let (mut clock, mut receipts, mut failed) = (0, vec!["1-0:1".to_owned()], 0);
            for (index, draw) in (1..).zip(&draws) {
                clock += [0, 1, 300, 4_000][(draw[0] >> 8) as usize % 4];
                let lines: Vec<Vec<Bytes>> =
                    draw[1..].iter().map(|draw| line(*draw, &keys, &receipts)).collect();
                let entry = |batch: &Batch| encode_entry(&stamps(clock), [(None, batch)].into_iter());
                let apply = |state: &mut State, entry: &[u8]| apply_entry(state, LogIndex(index), Term(1), entry).unwrap();
                if draw[0].is_multiple_of(2) {
                    // A guard ends what is due before anything is done.
                    let has_guard = |line: &Vec<Bytes>| line.iter().any(|word| word == "FENCE" || word == "FLUSHDB");
                    let queued = |args: &Vec<Bytes>| Queued { db: 0, args: args.clone() };
                    let mut commands: Vec<Queued> = lines.iter().filter(|line| !has_guard(line)).map(queued).collect();
                    commands.push(Queued { db: 0, args: vec![Bytes::from_static(b"INCRBY"), Bytes::from_static(b"n"), Bytes::from_static(b"x")] });
                    let mut batch = Batch::new(b"default");
                    batch.push_transaction(&[], &commands, true);
                    let applied = apply(&mut with, &entry(&batch));
                    let [BatchOutcome::Done(replies)] = &applied.outcomes[..] else { panic!("done") };
                    assert!(matches!(replies[..], [Reply::Error(_)]), "{replies:?}");
                    assert!(applied.notices.is_empty(), "{:?}", applied.notices);
                    let mut nothing = Batch::new(b"default");
                    nothing.push_verify();
                    apply(&mut without, &entry(&nothing));
                    failed += 1;
                } else {
                    let entry = entry(&batch_of(draw[0], clock, &lines));
                    let (applied, again) = (apply(&mut with, &entry), apply(&mut without, &entry));
                    assert_eq!(applied, again, "{lines:?}");
                    receipts.extend(receipts_in(&format!("{applied:?}")));
                }
                assert_eq!(with.digest(), without.digest(), "{lines:?}");
                match draw[0] % 16 {
                    1 | 2 => store.reopen(&mut with),
                    3 => store.write(&mut with),
                    _ => {}
                }
            }
            store.reopen(&mut with);
            assert_eq!(with.digest(), without.digest(), "after {failed} that failed");
            assert_eq!(with.locks_held(), without.locks_held());
            assert_eq!(with.lock_figures().held_shared, without.lock_figures().held_shared);
            end_alike(&mut with, &mut without, draws.len() as u64, clock);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn every_batch_is_executed_once_at_most_and_in_order_however_it_is_sent(
            draws in proptest::collection::vec(any::<u64>(), 1..120),
        ) {
            let store = TestStore::new();
            let (mut state, mut reloaded) = (State::new(16), State::new(16));
            let mut seen = Seen::default();
            let mut origins = [1, 2].map(|node| {
                Origin { node: NodeId(node), epoch: 1, made: 0, ack: 0, history: Vec::new() }
            });
            // In the end everything that is not answered is sent once more.
            let last = draws.len();
            let draws = draws.into_iter().map(|draw| (draw, false)).chain([(0, true), (1, true)]);
            for (at, (draw, is_end)) in draws.enumerate() {
                let origin = &mut origins[(draw % 2) as usize];
                let sent = if is_end { origin.unanswered() } else { origin.send(draw) };
                let stamped: Vec<SessionStamp> = sent.iter().map(|name| origin.stamp(*name, draw)).collect();
                let batches: Vec<Batch> = sent.iter().map(|name| content(origin.node, *name)).collect();
                let entry =
                    encode_entry(&stamps(at as u64), stamped.iter().copied().map(Some).zip(&batches));
                let (index, term) = (LogIndex(at as u64 + 1), Term(1));
                let applied = apply_entry(&mut state, index, term, &entry).unwrap();
                let again = apply_entry(&mut reloaded, index, term, &entry).unwrap();
                assert_eq!(applied, again);
                for (stamp, outcome) in stamped.iter().zip(&applied.outcomes) {
                    seen.take(stamp, outcome);
                }
                // Some answers reach the origin, whose ack follows.
                while (draw >> 32) % 3 > 0 && seen.done.contains_key(&(origin.node, origin.epoch, origin.ack + 1)) {
                    origin.ack += 1;
                }
                match (draw >> 40) % 12 {
                    0 | 1 => store.reopen(&mut reloaded),
                    2 | 3 => store.write(&mut reloaded),
                    _ => {}
                }
                assert_eq!(state.digest(), reloaded.digest());
            }
            store.reopen(&mut reloaded);
            for origin in &origins {
                let log = state.row(0, format!("log{}", origin.node).as_bytes()).and_then(|row| row.as_string());
                let expected = seen.log.get(&origin.node).map(|log| log.as_bytes());
                assert_eq!(log, expected, "what was executed is what outcomes said");
                let is_done = |seq| seen.done.contains_key(&(origin.node, origin.epoch, seq));
                assert!((1..=origin.made).all(is_done), "nothing is left behind after {last} draws");
            }
        }

        #[test]
        fn whatever_batch_is_let_in_can_be_applied(
            draws in proptest::collection::vec((any::<usize>(), proptest::collection::vec(any::<usize>(), 0..7)), 1..40),
        ) {
            const WORDS: &[&str] = &[
                "k", "q", "l", "", "0", "1", "-1", "3", "1000", "9223372036854775807", "-9223372036854775808", "x y",
                "PX", "EX", "PXAT", "FROM", "COUNT", "LEASE", "MATCH", "NX", "GET", "KEEPTTL", "TYPE", "ALL", "DB",
                "1-1:1", "1-1", "\u{e9}", "[", "1e400", "help",
            ];
            let specs: Vec<&crate::commands::spec::CommandSpec> = table::all().collect();
            let mut state = State::new(16);
            for (at, (spec, words)) in draws.iter().enumerate() {
                let spec = specs[spec % specs.len()];
                let mut line = vec![spec.name];
                if let Some(first) = words.first() && !spec.subcommands.is_empty() {
                    line.push(spec.subcommands[first % spec.subcommands.len()].name);
                }
                line.extend(words.iter().map(|word| WORDS[word % WORDS.len()]));
                let mut batch = Batch::new(b"\xff");
                let bytes = line.iter().map(|word| word.as_bytes()).collect::<Vec<_>>();
                batch.push_command(255 - (at % 3) as u8, bytes.into_iter());
                let batch = Batch::from_bytes(&batch.to_bytes()).unwrap();
                let entry = encode_entry(&stamps(at as u64 * 100), [(None, &batch)].into_iter());
                let applied = apply_entry(&mut state, LogIndex(at as u64 + 1), Term(1), &entry).unwrap();
                assert!(matches!(&applied.outcomes[..], [BatchOutcome::Done(replies)] if replies.len() == 1));
            }
        }
    }
}
