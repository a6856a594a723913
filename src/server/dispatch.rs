//! Runs a pipeline of requests in order, as far as it goes without waiting.
//!
//! ```text
//! requests   GET a  GET b │ SET c  SET d  INCR e │ GET c │ PING
//!            one guard    │ one batch, one await │ guard │ no guard
//! ```
//! Reads that follow each other share one read guard on the state, writes share one batch of the log. [`Pipeline`]
//! does all of this without an await, so that no guard can be held across one; where it has to wait it says for
//! what ([`Step`]), the connection waits, and the pipeline goes on.
//!
//! A transaction that only reads is a read like others: it runs here, under a guard of its own.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use bytes::BytesMut;
use smallvec::SmallVec;

use crate::commands::gift::Gift;
use crate::commands::gift::messages_of;
use crate::commands::spec::CommandResult;
use crate::commands::spec::CommandSpec;
use crate::commands::spec::Execute;
use crate::commands::spec::Flags;
use crate::commands::spec::Group as Family;
use crate::commands::spec::KeySpec;
use crate::commands::spec::ReadContext;
use crate::commands::spec::SessionCommand;
use crate::commands::table;
use crate::commands::weights;
use crate::commands::weights::Sharing;
use crate::consensus::ProposeError;
use crate::consensus::StateGuard;
use crate::consensus::claims::Lost;
use crate::consensus::claims::Unheard;
use crate::machine::entry::Batch;
use crate::machine::entry::Queued;
use crate::machine::transaction::WatchedKey;
use crate::machine::transaction::read_transaction;
use crate::resp::Protocol;
use crate::resp::Reply;
use crate::resp::Request;
use crate::resp::arguments::eq_ignore_case;
use crate::server::Services;
use crate::server::client_command;
use crate::server::clients::Paused;
use crate::server::disk::DiskGate;
use crate::server::disk::DiskNeed;
use crate::server::errors;
use crate::server::gates;
use crate::server::gates::Found;
use crate::server::gates::Standing;
use crate::server::raft_command::Later;
use crate::server::reply_bounds;
use crate::server::session::Answer;
use crate::server::session::Session;
use crate::server::session::StaleReads;
use crate::server::stats::Tally;
use crate::server::transaction;
use crate::server::transaction::Exec;
use crate::server::transaction::Plan;
use crate::state::DbIndex;
use crate::state::EXPIRE_AT_MOST;
use crate::state::State;
use crate::types::ClusterTime;
use crate::types::Monotonic;
use crate::types::WallMillis;

/// Reads under one guard, at most: apply waits for the guard's end.
const READS_PER_GUARD: u32 = 64;
/// A batch of writes is proposed once it is this large, in bytes.
const BATCH_BYTES: usize = 1 << 20;
/// Replies are sent once they are this many bytes, even if the pipeline goes on.
pub const FLUSH_BYTES: usize = 64 << 10;
/// Commands of a batch that may copy the longest value each.
const COPIES_PER_BATCH: usize = 8;
/// Messages of one batch are to take about so many bytes together, and are so many before it is known how long they are.
const POPPED_BYTES: usize = 16 << 20;
const POPS_AT_FIRST: usize = 4;
const POPS_MAX: usize = 256;
/// Due keys of a transaction that one EXPIRE names.
const DUE_NAMED_MAX: usize = 1024;
/// Fast commands are timed one by one only below this threshold of the slow log, in microseconds: reading the clock
/// costs as much as they do.
const TIMED_BELOW_MICROS: u64 = 100;
/// Entries of the slow log that one slow batch may make.
const SLOW_PER_BATCH_MAX: usize = 16;

/// The words of a request.
type Words<'a> = SmallVec<[&'a [u8]; 8]>;

/// What the pipeline waits for.
#[derive(Debug)]
pub enum Step {
    /// Every request has its reply.
    Done,
    /// The replies so far want to be sent.
    Flush,
    /// The collected writes want to be proposed.
    Propose,
    /// This node holds no lease now: a read barrier is wanted.
    Barrier,
    /// What the next read names is due: an EXPIRE entry is wanted.
    Expire,
    /// CLIENT PAUSE holds the next command back.
    Paused,
    /// A transaction is to run.
    Exec(Plan),
    /// This time passes, then the reply is due.
    Wait(Duration, Reply),
    /// Something else comes to its end, then its reply is due.
    Later(Later),
}

/// The requests of one batch of input and how far they got.
pub struct Pipeline {
    pub requests: Vec<Request>,
    /// The first request without a reply, but for those in `writes`.
    next: usize,
    /// The writes collected, which are the requests just before `next`.
    batch: Option<Batch>,
    writes: Vec<&'static CommandSpec>,
    /// How many of them share the batch only with a few of their kind.
    sparse: usize,
    /// How many QPOPs may, as the messages were that the client took last.
    pops_at_most: usize,
    /// A transaction that only reads, on its way.
    reads: Option<Plan>,
    /// What is due of what it names.
    due: Vec<(DbIndex, Bytes)>,
    /// How many of `writes` were answered, and the replies to the others, once the batch was applied: large ones are
    /// sent before the next are rendered.
    answered: usize,
    replies: std::vec::IntoIter<Reply>,
    /// What replies hand out that were rendered and not yet written, in order.
    given: Vec<Given>,
    /// Those in replies to a client that had closed its side, which may be all of it or what it asks only.
    doubted: Vec<Given>,
    /// A barrier was passed and nothing was awaited since.
    is_after_barrier: bool,
    /// The last EXPIRE entry ended nothing: the read goes on whatever is due.
    is_expired_out: bool,
    tally: Tally,
    started: Monotonic,
    /// A request of this input was timed by itself.
    was_timed: bool,
    last: Option<Found>,
    /// For answers that want chance; steps on with every use.
    seed: u64,
}

/// What was given at once, without a wait.
struct Given {
    db: DbIndex,
    /// Where its reply ends in the output.
    end: usize,
    what: What,
}

enum What {
    Message {
        queue: Bytes,
        receipt: Bytes,
    },
    /// What a reply to this request gives; it is read when it is wanted, which is seldom.
    Locks {
        request: Request,
        reply: Reply,
    },
    Gift(Gift),
}

/// What nobody heard of, as it is collected: messages by database, locks by command.
#[derive(Default)]
struct Collected {
    messages: BTreeMap<DbIndex, Unheard>,
    locks: BTreeMap<(DbIndex, Box<[u8]>, Bytes), TouchedLocks>,
}

/// How many replies told of a lock, by key and token.
type TouchedLocks = BTreeMap<(Bytes, u64), u64>;

impl Collected {
    fn add_message(&mut self, db: DbIndex, queue: Bytes, receipt: Bytes) {
        self.messages.entry(db).or_insert_with(|| Unheard::new(db)).add(queue, receipt);
    }

    fn add(&mut self, db: DbIndex, user: &[u8], gift: Gift) {
        match gift {
            Gift::Messages(messages) => {
                messages.into_iter().for_each(|(queue, receipt)| self.add_message(db, queue, receipt));
            }
            Gift::Locks { owner, locks } => {
                let known = self.locks.entry((db, user.into(), owner)).or_default();
                // A command touches a lock once, however often it names it.
                for lock in locks.into_iter().collect::<BTreeSet<_>>() {
                    *known.entry(lock).or_default() += 1;
                }
            }
        }
    }

    fn add_reply(&mut self, db: DbIndex, user: &[u8], request: &Request, reply: &Reply) {
        let words: Words<'_> = request.args().collect();
        let gift = table::find(request.name()).and_then(|row| Gift::of(row, &words, reply));
        if let Some(gift) = gift {
            self.add(db, user, gift);
        }
    }

    fn take(self) -> Vec<Lost> {
        let locks = self.locks.into_iter().map(|((db, user, owner), locks)| {
            let locks = locks.into_iter().map(|((key, token), touches)| (key, token, touches));
            Lost::locks(db, &user, &owner, locks)
        });
        self.messages.into_values().map(Lost::Messages).chain(locks).collect()
    }
}

/// A read guard and what goes with it.
struct Reading<'a> {
    state: StateGuard<'a>,
    now: ClusterTime,
    wall: WallMillis,
    is_anything_due: bool,
    left: u32,
}

impl Pipeline {
    /// Without requests. `seed` should differ from connection to connection.
    pub fn new(seed: u64) -> Pipeline {
        Pipeline {
            requests: Vec::new(),
            next: 0,
            batch: None,
            writes: Vec::new(),
            sparse: 0,
            pops_at_most: POPS_AT_FIRST,
            reads: None,
            due: Vec::new(),
            answered: 0,
            replies: Vec::new().into_iter(),
            given: Vec::new(),
            doubted: Vec::new(),
            is_after_barrier: false,
            is_expired_out: false,
            tally: Tally::default(),
            started: Monotonic(0),
            was_timed: false,
            last: None,
            seed,
        }
    }

    /// Begins with the requests that were put in.
    pub fn begin(&mut self, now: Monotonic) {
        self.started = now;
        self.was_timed = false;
    }

    /// Goes on until something has to be waited for. The guard of its reads ends with the call.
    pub fn advance(&mut self, session: &mut Session, services: &Services, out: &mut BytesMut) -> Step {
        if !self.answer_writes(session, services, out) {
            return Step::Flush;
        }
        let is_after_barrier = std::mem::take(&mut self.is_after_barrier);
        let is_memory_full = services.is_memory_full(session.config.max_memory);
        let (is_loading, diverged_at) = (services.is_loading(), services.diverged_at());
        let disk_gate = services.disk_gate();
        let mut reading: Option<Reading<'_>> = None;
        while self.next < self.requests.len() && !session.is_closing {
            if out.len() > FLUSH_BYTES {
                return Step::Flush;
            }
            if self.reads.is_some() {
                drop(reading.take());
                if let Some(step) = self.run_reads(session, services, is_after_barrier, out) {
                    return step;
                }
                continue;
            }
            let in_transaction = session.transaction.is_open();
            let standing = Standing {
                must_log_in: session.must_log_in(),
                in_transaction,
                is_subscriber: session.is_subscriber(),
                exec_needs_memory: is_memory_full && session.transaction.needs_memory(),
                is_memory_full,
                disk_gate,
                exec_needs_disk: session.transaction.needs_disk(),
                is_loading,
                diverged_at,
            };
            let found = match gates::admit(&self.requests[self.next], standing) {
                Ok(found) => found,
                Err(_) if self.batch.is_some() => return Step::Propose,
                Err(refusal) => {
                    self.refuse(session, services, refusal, out);
                    continue;
                }
            };
            if services.clients.paused() != Paused::Nothing
                && is_held_back(services.clients.paused(), found, session)
                && !services.shutdown.is_requested()
            {
                return if self.batch.is_some() { Step::Propose } else { Step::Paused };
            }
            if in_transaction && !gates::is_never_queued(found.row) {
                self.enqueue(session, services, found, out);
                continue;
            }
            if let Execute::Write(_) = found.leaf().execute {
                drop(reading.take());
                // What waits for a lock holds up what follows it, and nothing before it.
                let is_waiting = is_blocking(found, &self.requests[self.next]);
                // What may be too large for an entry is refused alone.
                let is_large = self.requests[self.next].raw().len() > BATCH_BYTES;
                if (is_waiting || is_large) && self.batch.is_some() {
                    return Step::Propose;
                }
                let length = self.requests[self.next].raw().len();
                if DiskNeed::of(found.leaf()) == DiskNeed::Growth && !services.allowance.take(length) {
                    if self.batch.is_some() {
                        return Step::Propose;
                    }
                    self.refuse(session, services, errors::disk_full(DiskGate::NoGrowth), out);
                    continue;
                }
                let sharing = weights::sharing(found.leaf(), self.requests[self.next].args());
                if self.collect(session, services, found) > BATCH_BYTES || self.is_last(sharing) || is_waiting
                {
                    return Step::Propose;
                }
                continue;
            }
            if self.batch.is_some() {
                return Step::Propose;
            }
            if matches!(found.row.execute, Execute::Session(SessionCommand::Exec))
                && session.transaction.needs_disk() == DiskNeed::Growth
                && !services.allowance.take(session.transaction.bytes())
            {
                self.refuse(session, services, errors::disk_full(DiskGate::NoGrowth), out);
                continue;
            }
            // A token that is checked on old data proves nothing.
            let is_fence = found.row.name == "fence";
            if is_fence && session.stale_reads.is_some() {
                drop(reading.take());
            }
            let stale_reads = session.stale_reads.filter(|_| !is_fence);
            let waits_for = match found.leaf().execute {
                Execute::Read(read) => match open(&mut reading, services, stale_reads, is_after_barrier) {
                    Ok(guard) => match self.read(session, services, found, read, guard) {
                        Ok(reply) => {
                            if is_long(&reply) {
                                // Others need not wait until it is written out.
                                drop(reading.take());
                            }
                            self.answer(session, services, found.row, &reply, out);
                            None
                        }
                        Err(step) => Some(step),
                    },
                    Err(Unreadable::NeedsBarrier) => Some(Step::Barrier),
                    Err(Unreadable::TooOld(refusal)) => self.fail(session, services, &refusal, out),
                },
                Execute::Session(SessionCommand::Watch) if !in_transaction => {
                    match open(&mut reading, services, session.stale_reads, is_after_barrier) {
                        Ok(guard) => self.watch(session, services, found, guard, out),
                        Err(Unreadable::NeedsBarrier) => Some(Step::Barrier),
                        Err(Unreadable::TooOld(refusal)) => self.fail(session, services, &refusal, out),
                    }
                }
                Execute::Session(command) => {
                    // Some of these look at the state themselves; a second guard could wait for a writer that waits
                    // for the first.
                    drop(reading.take());
                    self.run_session(session, services, found, command, out)
                }
                Execute::Write(_) => unreachable!("writes were collected above"),
            };
            if let Some(step) = waits_for {
                return step;
            }
        }
        if self.batch.is_some() { Step::Propose } else { Step::Done }
    }

    /// Ends the batch of input: counts it, and notes in the slow log a command that was alone and slow.
    pub fn finish(&mut self, session: &Session, services: &Services) {
        let now = services.clock.monotonic();
        let micros = now.micros_since(self.started);
        if let (1, false, Some(found)) = (self.requests.len(), self.was_timed, self.last) {
            note_duration(session, services, found.row, &self.requests[0], micros);
        }
        self.tally.flush(&services.stats, micros);
        session.client.note_activity(now, self.last);
        session.publish();
        self.requests.clear();
        self.next = 0;
    }

    /// Shows others the command that the client waits in.
    pub fn show_last(&self, session: &Session, services: &Services) {
        session.client.note_activity(services.clock.monotonic(), self.last);
    }

    /// The collected writes, for proposing them.
    pub fn take_batch(&mut self) -> Option<Batch> {
        self.sparse = 0;
        self.batch.take()
    }

    /// True when nothing more may be added behind a write that shares its batch so: the replies to all of it come at
    /// once.
    #[inline]
    fn is_last(&mut self, sharing: Sharing) -> bool {
        let at_most = match sharing {
            Sharing::Any => return false,
            Sharing::Alone => return true,
            Sharing::Few => COPIES_PER_BATCH,
            Sharing::Messages => self.pops_at_most,
        };
        self.sparse += 1;
        self.sparse >= at_most
    }

    /// Learns from the messages of a batch how many may share the next one.
    fn note_popped(&mut self, replies: &[Reply]) {
        let takes_messages = |row: &CommandSpec| row.flags.has(Flags::VALUES.and(Flags::BLOCKING));
        let (mut count, mut bytes) = (0, 0);
        for (_, reply) in self.writes.iter().zip(replies).filter(|(row, _)| takes_messages(row)) {
            count += 1;
            bytes += reply.size_hint();
        }
        if let Some(average) = bytes.checked_div(count) {
            self.pops_at_most = (POPPED_BYTES / average.max(1)).clamp(1, POPS_MAX);
        }
    }

    /// True when the writes that were proposed are one command that answers with an array.
    pub fn awaits_array(&self) -> bool {
        self.writes.last().is_some_and(|row| row.flags.has(Flags::ANSWERS_ARRAY))
    }

    /// Answers the writes that were proposed. `micros` is how long the proposal took.
    pub fn on_proposed(
        &mut self,
        session: &mut Session,
        services: &Services,
        outcome: Result<Vec<Reply>, ProposeError>,
        micros: u64,
        out: &mut BytesMut,
    ) {
        self.was_timed = true;
        let first = self.next - self.writes.len();
        for (at, row) in self.writes.iter().enumerate().take(SLOW_PER_BATCH_MAX) {
            note_duration(session, services, row, &self.requests[first + at], micros);
        }
        let replies = match outcome {
            Ok(replies) => replies,
            Err(error) => vec![errors::propose_error(&error); self.writes.len()],
        };
        assert_eq!(replies.len(), self.writes.len(), "every item of a batch gets one reply");
        self.note_popped(&replies);
        self.replies = replies.into_iter();
        // What does not fit follows when the pipeline goes on.
        self.answer_writes(session, services, out);
    }

    /// Answers the writes that were applied until `out` wants to be sent; true when all of them are answered.
    #[inline]
    fn answer_writes(&mut self, session: &mut Session, services: &Services, out: &mut BytesMut) -> bool {
        while out.len() <= FLUSH_BYTES {
            let Some(reply) = self.replies.next() else { break };
            let (row, before) = (self.writes[self.answered], out.len());
            self.answer(session, services, row, &reply, out);
            // A client that wants no replies is told of nothing, and keeps what it was given.
            if out.len() > before {
                self.note_given(session.db, row, reply, out.len());
            }
            self.answered += 1;
        }
        if self.replies.len() > 0 {
            return false;
        }
        if self.answered > 0 {
            self.answered = 0;
            self.writes.clear();
            self.replies = Vec::new().into_iter();
        }
        true
    }

    /// Notes what the reply to the write that is being answered hands out; it ends here in the output.
    #[inline]
    fn note_given(&mut self, db: DbIndex, row: &CommandSpec, reply: Reply, end: usize) {
        if row.flags.has(Flags::HANDS_OUT_MESSAGES) {
            let given = |(queue, receipt)| Given { db, end, what: What::Message { queue, receipt } };
            self.given.extend(messages_of(&reply).map(given));
        } else if row.flags.has(Flags::HANDS_OUT_LOCKS)
            && matches!(reply, Reply::Integer(_) | Reply::Array(_))
        {
            let at = self.next - self.writes.len() + self.answered;
            let request = std::mem::take(&mut self.requests[at]);
            self.given.push(Given { db, end, what: What::Locks { request, reply } });
        }
    }

    /// True when the output holds what was handed out.
    #[inline]
    pub fn has_given(&self) -> bool {
        !self.given.is_empty()
    }

    /// So many bytes from the front of the output were written.
    #[inline]
    pub fn note_written(&mut self, count: usize) {
        if self.given.is_empty() {
            return;
        }
        let written = self.given.partition_point(|given| given.end <= count);
        self.given.drain(..written);
        self.given.iter_mut().for_each(|given| given.end -= count);
    }

    /// Whether what the output gives reaches anybody is known when the connection ends, and not as it is written.
    pub fn doubt_given(&mut self) {
        self.doubted.append(&mut self.given);
    }

    /// True when there is something of that.
    pub fn has_doubted(&self) -> bool {
        !self.doubted.is_empty()
    }

    /// It reached the client.
    pub fn forget_doubted(&mut self) {
        self.doubted.clear();
    }

    /// Somebody else answers for what the output gives.
    pub fn forget_given(&mut self) {
        self.given.clear();
    }

    /// What all replies hand out that were not written whole, or to nobody, when no more will be.
    pub fn unheard(&mut self, session: &Session) -> Vec<Lost> {
        let (mut lost, user) = (Collected::default(), &session.user);
        for Given { db, what, .. } in self.doubted.drain(..).chain(self.given.drain(..)) {
            match what {
                What::Message { queue, receipt } => lost.add_message(db, queue, receipt),
                What::Locks { request, reply } => lost.add_reply(db, user, &request, &reply),
                What::Gift(gift) => lost.add(db, user, gift),
            }
        }
        // A batch is of one database, and SELECT comes behind its replies.
        let first = (self.next + self.answered).saturating_sub(self.writes.len());
        for (request, reply) in self.requests.iter().skip(first).zip(self.replies.as_slice()) {
            lost.add_reply(session.db, user, request, reply);
        }
        lost.take()
    }

    /// Goes on after a read barrier, or answers the read that wanted it with the error.
    pub fn on_barrier(
        &mut self,
        session: &mut Session,
        services: &Services,
        outcome: Result<(), ProposeError>,
        out: &mut BytesMut,
    ) {
        match outcome {
            Ok(()) => self.is_after_barrier = true,
            Err(error) => {
                self.fail(session, services, &errors::read_error(&error), out);
            }
        }
    }

    /// The EXPIRE that the next request waits for: of the keys it names.
    pub fn expire_batch(&mut self, session: &Session) -> Batch {
        if self.reads.is_some() {
            let mut batch = Batch::new(&session.user);
            for (db, key) in std::mem::take(&mut self.due) {
                batch.push_expire(db, [key.as_ref()].into_iter());
            }
            return batch;
        }
        let words: Words<'_> = self.requests[self.next].args().collect();
        let leaf = table::find(words[0]).map(|row| table::leaf(row, &words));
        let positions = leaf.map(|leaf| leaf.keys.positions(&words)).unwrap_or_default();
        let mut batch = Batch::new(&session.user);
        batch.push_expire(session.db, positions.iter().map(|at| words[*at]));
        batch
    }

    /// Goes on after an EXPIRE entry, or answers the read that wanted it with the error.
    pub fn on_expired(
        &mut self,
        session: &mut Session,
        services: &Services,
        outcome: Result<Vec<Reply>, ProposeError>,
        out: &mut BytesMut,
    ) {
        match outcome {
            Ok(replies) => {
                let ended = |reply: &Reply| match reply {
                    Reply::Integer(ended) => u64::try_from(*ended).unwrap_or(0),
                    _ => 0,
                };
                let ended: u64 = replies.iter().map(ended).sum();
                // Fewer than an EXPIRE ends at most: everything that was due then ended. What became due since does not
                // concern a read that began before.
                self.is_expired_out = ended < EXPIRE_AT_MOST as u64;
            }
            Err(error) => {
                self.fail(session, services, &errors::read_error(&error), out);
            }
        }
    }

    /// Answers EXEC with what the log gave, and runs the session's own commands among it.
    pub fn on_executed(
        &mut self,
        session: &mut Session,
        services: &Services,
        plan: Plan,
        outcome: Result<Reply, ProposeError>,
        micros: u64,
        out: &mut BytesMut,
    ) {
        self.was_timed = true;
        let row = self.last.map(|found| found.row);
        if let Some(row) = row {
            note_duration(session, services, row, &self.requests[self.next - 1], micros);
        }
        let mut gifts = Vec::new();
        let reply = match outcome {
            Ok(Reply::Array(logged)) => {
                self.count_logged(&plan, &logged);
                if plan.hands_out && !plan.is_named {
                    gifts = gifts_of(&plan, &logged);
                }
                let bounds = reply_bounds::of(&session.config);
                Reply::Array(transaction::merge(plan.steps, logged, bounds, |request| {
                    session.run_in_exec(services, request)
                }))
            }
            Ok(Reply::Error(text)) => Reply::error(transaction::told_as_sent(&plan.steps, text)),
            Ok(other) => other,
            Err(error) => errors::propose_error(&error),
        };
        if let Some(row) = row {
            let before = out.len();
            self.answer(session, services, row, &reply, out);
            let end = out.len();
            if end > before {
                let given = |(db, gift)| Given { db, end, what: What::Gift(gift) };
                self.given.extend(gifts.into_iter().map(given));
            }
        }
    }

    fn count_logged(&mut self, plan: &Plan, logged: &[Reply]) {
        for (command, reply) in plan.commands.iter().zip(logged) {
            if let Some(row) = command.args.first().and_then(|name| table::find(name)) {
                self.tally.add(row, reply.is_error());
            }
        }
    }

    /// Answers a command whose wait is over.
    pub fn on_waited(
        &mut self,
        session: &mut Session,
        services: &Services,
        reply: &Reply,
        micros: u64,
        out: &mut BytesMut,
    ) {
        self.was_timed = true;
        if let Some(found) = self.last {
            note_duration(session, services, found.row, &self.requests[self.next - 1], micros);
            self.answer(session, services, found.row, reply, out);
        }
    }

    // ---- one request ------------------------------------------------------------------------------

    /// Renders a reply and counts it.
    #[inline]
    fn answer(
        &mut self,
        session: &mut Session,
        services: &Services,
        row: &'static CommandSpec,
        reply: &Reply,
        out: &mut BytesMut,
    ) {
        if let Reply::Error(text) = reply {
            services.stats.note_error(text);
        }
        self.tally.add(row, reply.is_error());
        session.emit(reply, out);
    }

    /// Answers a request that did not pass the gates.
    #[cold]
    fn refuse(&mut self, session: &mut Session, services: &Services, refusal: Reply, out: &mut BytesMut) {
        let request = &self.requests[self.next];
        self.next += 1;
        if gates::is_cross_protocol(request) {
            services.warn_of_cross_protocol(&session.client);
            session.is_closing = true;
            return;
        }
        let row = table::find(request.name());
        if let Some(row) = row {
            services.stats.note_rejected(row);
        }
        let is_exec = row.is_some_and(|row| matches!(row.execute, Execute::Session(SessionCommand::Exec)));
        let reply = match refusal {
            Reply::Error(text) if is_exec => {
                session.transaction.reset();
                let text = text.strip_prefix("ERR ").unwrap_or(&text);
                Reply::error(format!("EXECABORT Transaction discarded because of: {text}"))
            }
            other => {
                session.transaction.break_up();
                other
            }
        };
        if let Reply::Error(text) = &reply {
            services.stats.note_error(text);
        }
        session.emit(&reply, out);
    }

    /// Answers the next request with an error of the group; nothing is waited for.
    #[cold]
    fn fail(
        &mut self,
        session: &mut Session,
        services: &Services,
        reply: &Reply,
        out: &mut BytesMut,
    ) -> Option<Step> {
        self.next += 1;
        self.is_expired_out = false;
        self.reads = None;
        if let Reply::Error(text) = reply {
            services.stats.note_error(text);
        }
        session.emit(reply, out);
        None
    }

    /// Takes a write into the batch; gives the batch's size in bytes.
    #[inline]
    fn collect(&mut self, session: &Session, services: &Services, found: Found) -> usize {
        if found.leaf().flags.has(Flags::ADMIN) {
            note_admin(session, &self.requests[self.next]);
        }
        let bounds = reply_bounds::of(&session.config);
        let batch = self.batch.get_or_insert_with(|| Batch::within(&session.user, bounds));
        if found.leaf().flags.has(Flags::ORIGIN) {
            let client = &session.client;
            batch.name_client(services.client_number(client.id), &client.address);
            note_lock(session, found.leaf());
        }
        batch.push_command(session.db, self.requests[self.next].args());
        self.writes.push(found.row);
        self.next += 1;
        self.last = Some(found);
        batch.bytes()
    }

    fn enqueue(&mut self, session: &mut Session, services: &Services, found: Found, out: &mut BytesMut) {
        let request = &self.requests[self.next];
        if found.leaf().flags.has(Flags::ADMIN) && found.leaf().is_write() {
            note_admin(session, request);
        }
        note_lock(session, found.leaf());
        let refusal = match found.row.execute {
            Execute::Session(SessionCommand::Client) => client_command::why_not_queued(request),
            _ => None,
        };
        let reply = match refusal {
            Some(refusal) => {
                session.transaction.break_up();
                refusal
            }
            None => session.transaction.queue(found.leaf(), request),
        };
        if let Execute::Session(SessionCommand::Select) = found.row.execute
            && let Ok(db) = session.parse_db(request.arg(1))
        {
            session.transaction.select(db);
        }
        self.next += 1;
        self.last = Some(found);
        if let Reply::Error(text) = &reply {
            services.stats.note_error(text);
        }
        session.emit(&reply, out);
    }

    #[inline]
    fn read(
        &mut self,
        session: &mut Session,
        services: &Services,
        found: Found,
        read: fn(&ReadContext<'_>, &[&[u8]]) -> CommandResult,
        reading: &mut Reading<'_>,
    ) -> Result<Reply, Step> {
        let words: Words<'_> = self.requests[self.next].args().collect();
        let leaf = found.leaf();
        if reading.is_anything_due && !self.is_expired_out && names_due(reading, session, leaf.keys, &words) {
            return Err(Step::Expire);
        }
        let from = is_timed(session, leaf).then(|| services.clock.monotonic());
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let context = ReadContext {
            state: &reading.state,
            db: session.db,
            user: &session.user,
            now: reading.now,
            wall: reading.wall,
            seed: self.seed,
            bounds: reply_bounds::of(&session.config),
        };
        let reply = weights::run_read(leaf, read, &context, &words).unwrap_or_else(errors::command_error);
        drop(words);
        self.step_over(session, services, found, from);
        if found.row.group == Family::String {
            let is_miss = reply == Reply::Null;
            self.tally.misses += u64::from(is_miss);
            self.tally.hits += u64::from(!is_miss);
        }
        Ok(reply)
    }

    fn watch(
        &mut self,
        session: &mut Session,
        services: &Services,
        found: Found,
        reading: &mut Reading<'_>,
        out: &mut BytesMut,
    ) -> Option<Step> {
        let words: Words<'_> = self.requests[self.next].args().collect();
        if reading.is_anything_due
            && !self.is_expired_out
            && names_due(reading, session, found.row.keys, &words)
        {
            return Some(Step::Expire);
        }
        let watched = words.iter().skip(1).try_for_each(|key| {
            let changed = reading.state.row(session.db, key).map(crate::state::Row::changed);
            session.transaction.watch(session.db, key, changed)
        });
        let reply = watched.err().unwrap_or(Reply::Ok);
        drop(words);
        self.step_over(session, services, found, None);
        self.answer(session, services, found.row, &reply, out);
        None
    }

    fn run_session(
        &mut self,
        session: &mut Session,
        services: &Services,
        found: Found,
        command: SessionCommand,
        out: &mut BytesMut,
    ) -> Option<Step> {
        if command == SessionCommand::Exec {
            return self.exec(session, services, found, out);
        }
        let from = is_timed(session, found.leaf()).then(|| services.clock.monotonic());
        if command == SessionCommand::Client {
            // CLIENT LIST shows itself as the last command.
            session.client.note_activity(services.clock.monotonic(), Some(found));
        }
        let answer = session.run(services, found, &self.requests[self.next]);
        let from = if matches!(answer, Answer::After(..) | Answer::Later(_)) { None } else { from };
        self.step_over(session, services, found, from);
        match answer {
            Answer::Reply(reply) => {
                let reply = reply_bounds::bounded(reply, reply_bounds::of(&session.config));
                self.answer(session, services, found.row, &reply, out);
            }
            Answer::After(length, reply) => return Some(Step::Wait(length, reply)),
            Answer::Later(later) => return Some(Step::Later(later)),
            Answer::Many(replies) => {
                self.tally.add(found.row, false);
                session.emit_pushes(&replies, out);
            }
            Answer::Nothing => self.tally.add(found.row, false),
            Answer::Last(reply) => {
                self.answer(session, services, found.row, &reply, out);
                session.is_closing = true;
            }
            Answer::Close => session.is_closing = true,
        }
        None
    }

    fn exec(
        &mut self,
        session: &mut Session,
        services: &Services,
        found: Found,
        out: &mut BytesMut,
    ) -> Option<Step> {
        let outcome = session.transaction.exec();
        if let Exec::Run(plan) = &outcome
            && !plan.has_writes
        {
            self.last = Some(found);
            self.reads = outcome.into_plan();
            return None;
        }
        self.step_over(session, services, found, None);
        let refusal = match outcome {
            Exec::Run(plan) => match refuse_large(&plan, session, services) {
                None => return Some(Step::Exec(plan)),
                Some(refusal) => refusal,
            },
            Exec::Aborted => Reply::error("EXECABORT Transaction discarded because of previous errors."),
            Exec::WithoutMulti => Reply::error("ERR EXEC without MULTI"),
        };
        self.answer(session, services, found.row, &refusal, out);
        None
    }

    /// EXEC of a transaction that only reads. Whatever it has to wait for, it is whole when it comes again.
    fn run_reads(
        &mut self,
        session: &mut Session,
        services: &Services,
        is_after_barrier: bool,
        out: &mut BytesMut,
    ) -> Option<Step> {
        let plan = self.reads.as_ref()?;
        if plan.commands.is_empty() && plan.watched.is_empty() {
            // The connection answers everything by itself.
            return self.answer_reads(session, services, Reply::Array(Vec::new()), 0, out);
        }
        // A token, or a watched key, that is compared on old data proves nothing.
        let may_be_stale = plan.watched.is_empty() && !plan.is_atomic;
        let stale_reads = session.stale_reads.filter(|_| may_be_stale);
        let reading = match open_anew(services, stale_reads, is_after_barrier) {
            Ok(reading) => reading,
            Err(Unreadable::NeedsBarrier) => return Some(Step::Barrier),
            Err(Unreadable::TooOld(refusal)) => return self.fail(session, services, &refusal, out),
        };
        if reading.is_anything_due && !self.is_expired_out {
            let due = named_due(&reading.state, reading.now, plan);
            if !due.is_empty() {
                self.due = due;
                return Some(Step::Expire);
            }
        }
        let from = services.clock.monotonic();
        let commands = reply_bounds::commands_of(&plan.commands);
        let watched: Vec<WatchedKey<'_>> =
            plan.watched.iter().map(|watched| (watched.db, &*watched.key, watched.changed)).collect();
        let context = ReadContext {
            state: &reading.state,
            db: session.db,
            user: &session.user,
            now: reading.now,
            wall: reading.wall,
            seed: self.seed,
            bounds: reply_bounds::of(&session.config),
        };
        let is_atomic = session.exec_mode.unwrap_or(plan.is_atomic);
        let reply = read_transaction(&context, &watched, &commands, is_atomic);
        drop((reading, commands, watched));
        let micros = services.clock.monotonic().micros_since(from);
        self.answer_reads(session, services, reply, micros, out)
    }

    fn answer_reads(
        &mut self,
        session: &mut Session,
        services: &Services,
        reply: Reply,
        micros: u64,
        out: &mut BytesMut,
    ) -> Option<Step> {
        let plan = self.reads.take()?;
        self.next += 1;
        self.is_expired_out = false;
        self.on_executed(session, services, plan, Ok(reply), micros, out);
        None
    }

    /// The next request is done but for its reply. `from` is when it began, if it was timed by itself.
    #[inline]
    fn step_over(&mut self, session: &Session, services: &Services, found: Found, from: Option<Monotonic>) {
        if let Some(from) = from {
            self.was_timed = true;
            let micros = services.clock.monotonic().micros_since(from);
            note_duration(session, services, found.row, &self.requests[self.next], micros);
        }
        self.next += 1;
        self.last = Some(found);
        self.is_expired_out = false;
    }
}

/// Why a read cannot run now.
enum Unreadable {
    /// This node holds no lease: a read barrier comes first.
    NeedsBarrier,
    /// What this node has is older than the client allows: the reply.
    TooOld(Reply),
}

/// The guard for the next read: the one at hand, or a new one when that served its share. Requests of one pipeline
/// were all received before a barrier that it waited for, so what is applied after the barrier is fresh enough for
/// each of them.
///
/// With READONLY it is what is applied here, however old. What is due there ends when the leader says so: a node that
/// hears of none cannot know.
#[inline]
fn open<'g, 'a>(
    reading: &'g mut Option<Reading<'a>>,
    services: &'a Services,
    stale_reads: Option<StaleReads>,
    is_after_barrier: bool,
) -> Result<&'g mut Reading<'a>, Unreadable> {
    if reading.as_ref().is_some_and(|reading| reading.left == 0) {
        *reading = None;
    }
    let reading = match reading {
        Some(reading) => reading,
        None => reading.insert(open_anew(services, stale_reads, is_after_barrier)?),
    };
    reading.left -= 1;
    Ok(reading)
}

fn open_anew(
    services: &Services,
    stale_reads: Option<StaleReads>,
    is_after_barrier: bool,
) -> Result<Reading<'_>, Unreadable> {
    let group = &services.group;
    let state = match stale_reads {
        Some(StaleReads { max_lag }) => {
            if let Some(max_lag) = max_lag {
                let silence = services.group.leader_silence();
                if silence.is_none_or(|silence| silence > max_lag) {
                    return Err(Unreadable::TooOld(errors::stale_read_error(silence)));
                }
            }
            group.read_applied()
        }
        None => match group.try_read() {
            Some(state) => state,
            None if is_after_barrier => group.read_applied(),
            None => return Err(Unreadable::NeedsBarrier),
        },
    };
    let now = group.now();
    let is_anything_due = stale_reads.is_none() && state.anything_due(now);
    Ok(Reading { state, now, wall: group.wall(), is_anything_due, left: READS_PER_GUARD })
}

/// True when a key that the command names is due. Commands without keys (SCAN, KEYS …) pass over due ones by
/// themselves; DBSIZE counts them, as Redis does.
fn names_due(reading: &Reading<'_>, session: &Session, keys: KeySpec, words: &[&[u8]]) -> bool {
    keys.positions(words).iter().any(|at| reading.state.is_due(session.db, words[*at], reading.now))
}

/// What a transaction's replies hand out, in which databases.
fn gifts_of(plan: &Plan, logged: &[Reply]) -> Vec<(DbIndex, Gift)> {
    let gift = |(command, reply): (&Queued, &Reply)| {
        let words: Words<'_> = command.args.iter().map(Bytes::as_ref).collect();
        let row = words.first().and_then(|name| table::find(name))?;
        Gift::of(row, &words, reply).map(|gift| (command.db, gift))
    };
    plan.commands.iter().zip(logged).filter_map(gift).collect()
}

/// What is due of all that a transaction names.
fn named_due(state: &State, now: ClusterTime, plan: &Plan) -> Vec<(DbIndex, Bytes)> {
    let of_command = |command: &Queued| {
        let words: Words<'_> = command.args.iter().map(Bytes::as_ref).collect();
        let row = table::find(words[0]).map(|row| table::leaf(row, &words));
        let positions = row.map(|row| row.keys.positions(&words)).unwrap_or_default();
        positions.into_iter().map(|at| (command.db, command.args[at].clone())).collect::<Vec<_>>()
    };
    let watched = plan.watched.iter().map(|watched| (watched.db, Bytes::copy_from_slice(&watched.key)));
    let named = watched.chain(plan.commands.iter().flat_map(of_command));
    named.filter(|(db, key)| state.is_due(*db, key, now)).take(DUE_NAMED_MAX).collect()
}

/// True for a reply that takes a while to be written out.
fn is_long(reply: &Reply) -> bool {
    match reply {
        Reply::Bulk(value) => value.len() > FLUSH_BYTES,
        Reply::Array(items) => items.len() > 1_000,
        _ => false,
    }
}

/// Why a transaction may not run: it would take too much.
fn refuse_large(plan: &Plan, session: &Session, services: &Services) -> Option<Reply> {
    if !plan.is_heavy {
        return None;
    }
    let bounds = reply_bounds::of(&session.config);
    match reply_bounds::refuse_large(&services.group.read_applied(), &session.user, bounds, &plan.commands)? {
        Reply::Error(text) => Some(Reply::error(transaction::told_as_sent(&plan.steps, text))),
        other => Some(other),
    }
}

fn is_held_back(paused: Paused, found: Found, session: &Session) -> bool {
    let writes = match found.leaf().execute {
        Execute::Session(SessionCommand::Exec) => session.transaction.has_writes(),
        // Whoever paused the others must be able to end it.
        Execute::Session(SessionCommand::Client) => return false,
        Execute::Write(_) => true,
        Execute::Read(_) | Execute::Session(_) => false,
    };
    match paused {
        Paused::Nothing => false,
        Paused::Writes => writes,
        Paused::All => true,
    }
}

/// How much of such a command the log shows: words, and bytes of each.
const ADMIN_WORDS: usize = 16;
const ADMIN_WORD_BYTES: usize = 512;

/// Who breaks what others hold is told in the log.
#[cold]
fn note_admin(session: &Session, request: &Request) {
    let shown = |word: &[u8]| word[..word.len().min(ADMIN_WORD_BYTES)].escape_ascii().to_string();
    let words: Vec<String> = request.args().take(ADMIN_WORDS).map(shown).collect();
    let user = session.user.escape_ascii();
    tracing::info!("{} by user {user} from {}", words.join(" "), session.client.address);
}

/// Who takes a lock and understands pushes is told when it is lost.
fn note_lock(session: &Session, leaf: &CommandSpec) {
    let takes_lock = leaf.flags.has(Flags::ORIGIN) && leaf.group == Family::Locks;
    if takes_lock && session.protocol == Protocol::Resp3 {
        session.client.take_losses(true);
    }
}

/// True when the command may wait for others: a LOCK with BLOCK.
fn is_blocking(found: Found, request: &Request) -> bool {
    found.leaf().flags.has(Flags::BLOCKING)
        && request.args().skip(first_option(found.leaf().keys)).any(|word| eq_ignore_case(word, "BLOCK"))
}

/// Where the options of a command that may wait begin: behind its name, or behind key and owner.
fn first_option(keys: KeySpec) -> usize {
    if matches!(keys, KeySpec::Keyword(_)) { 1 } else { 3 }
}

/// Commands that may take long are timed one by one, fast ones only for a very low threshold.
#[inline]
fn is_timed(session: &Session, leaf: &CommandSpec) -> bool {
    let threshold = session.config.slowlog_slower_than;
    threshold.is_some_and(|threshold| threshold < TIMED_BELOW_MICROS) || !leaf.flags.has(Flags::FAST)
}

/// Tells the slow log and the latency monitor how long a command took.
fn note_duration(session: &Session, services: &Services, row: &CommandSpec, request: &Request, micros: u64) {
    let config = &session.config;
    if config.latency_threshold.0 > 0 {
        let event = if row.flags.has(Flags::FAST) { "fast-command" } else { "command" };
        services.slowlog.note_latency(
            event,
            services.clock.wall(),
            micros / 1000,
            config.latency_threshold.0,
        );
    }
    let is_slow = config.slowlog_slower_than.is_some_and(|threshold| micros >= threshold);
    if is_slow && config.slowlog_max_len > 0 && !has_secrets(row) {
        let words: Vec<&[u8]> = match row.execute {
            // A directive may be a password.
            Execute::Session(SessionCommand::Config) => request.args().take(3).collect(),
            _ => request.args().collect(),
        };
        let name = session.client.names.lock().name.clone();
        let client = (session.client.addr.to_string(), name);
        services.slowlog.add(
            services.clock.wall(),
            micros,
            words.into_iter(),
            client,
            config.slowlog_max_len,
        );
    }
}

fn has_secrets(row: &CommandSpec) -> bool {
    matches!(row.execute, Execute::Session(SessionCommand::Auth | SessionCommand::Hello))
}
