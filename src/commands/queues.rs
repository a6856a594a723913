//! The queue verbs of producers and consumers: QPUSH, QPOP, QACK, QNACK, QEXTEND, QLEN (COMMANDS.md 2.3). Those of
//! operators are in `queue_admin`.

use crate::commands::error::CommandError;
use crate::commands::spec::Args;
use crate::commands::spec::Categories;
use crate::commands::spec::CommandResult;
use crate::commands::spec::CommandSpec;
use crate::commands::spec::Execute;
use crate::commands::spec::Flags;
use crate::commands::spec::Group;
use crate::commands::spec::KeySpec;
use crate::commands::spec::ReadContext;
use crate::commands::spec::WriteContext;
use crate::resp::Reply;
use crate::resp::arguments::eq_ignore_case;
use crate::resp::arguments::parse_i64;
use crate::state::queues;
use crate::state::queues::By;
use crate::state::queues::Nack;
use crate::state::queues::PRIORITIES;
use crate::state::queues::PopRefusal;
use crate::state::queues::PopRequest;
use crate::state::queues::Popped;
use crate::state::queues::PushRequest;
use crate::state::queues::Pushed;
use crate::state::queues::Queue;
use crate::state::queues::REASON_BYTES_MAX;
use crate::state::queues::Receipt;
use crate::state::queues::StateName;
use crate::state::queues::WrongType;
use crate::types::ClusterTime;
use crate::types::Millis;
use crate::types::bounds::Bounds;

/// Most queues of one QPOP.
const QUEUES_MAX: usize = 128;
/// Most messages that one QPOP hands out.
const COUNT_MAX: i64 = 1_000;
/// Shortest lease, in milliseconds.
pub(super) const LEASE_MS_MIN: i64 = 100;
/// Longest lease, in milliseconds: 24 hours.
pub(super) const LEASE_MS_MAX: i64 = 86_400_000;
/// Longest delay, lifetime and BLOCK, in milliseconds: a year.
pub(super) const YEAR_MS: i64 = 365 * 86_400_000;
/// Longest ID, group and consumer, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// Above this, clients' numbers are not exact any more.
pub(super) const NUMBER_MAX: i64 = (1 << 53) - 1;
/// How much of a malformed word its error repeats, in bytes.
const SHOWN_BYTES_MAX: usize = 64;

/// The options of a command, read from left to right; each may be given once.
pub(super) struct Options<'a> {
    verb: &'static str,
    rest: Args<'a>,
    seen: Vec<&'static str>,
}

impl<'a> Options<'a> {
    /// Of this command, standing in these words.
    pub(super) fn new(verb: &'static str, words: Args<'a>) -> Options<'a> {
        Options { verb, rest: words, seen: Vec::new() }
    }

    /// The next option, one of `names`; `None` behind the last.
    pub(super) fn next(&mut self, names: &[&'static str]) -> Result<Option<&'static str>, CommandError> {
        let [word, tail @ ..] = self.rest else { return Ok(None) };
        self.rest = tail;
        let Some(name) = names.iter().find(|name| eq_ignore_case(word, name)) else {
            return Err(syntax(format!("{} has no option '{}'", self.verb, shown(word))));
        };
        if self.seen.contains(name) {
            return Err(syntax(format!("{name} is given twice")));
        }
        self.seen.push(name);
        Ok(Some(name))
    }

    /// Whether an option was given.
    pub(super) fn has(&self, name: &str) -> bool {
        self.seen.contains(&name)
    }

    /// Options that exclude each other.
    pub(super) fn only_one_of(&self, names: &[&str]) -> Result<(), CommandError> {
        let given: Vec<&str> = names.iter().copied().filter(|name| self.has(name)).collect();
        if given.len() > 1 {
            return Err(syntax(format!("{} takes either {} or {}", self.verb, given[0], given[1])));
        }
        Ok(())
    }

    /// The words that are not read yet.
    pub(super) fn take_rest(&mut self) -> Args<'a> {
        std::mem::take(&mut self.rest)
    }

    /// The word behind an option.
    pub(super) fn word(&mut self, name: &str) -> Result<&'a [u8], CommandError> {
        let [word, tail @ ..] = self.rest else { return Err(syntax(format!("{name} needs a value"))) };
        self.rest = tail;
        Ok(word)
    }

    /// The number behind an option.
    pub(super) fn number(&mut self, name: &str, min: i64, max: i64) -> Result<u64, CommandError> {
        let word = self.word(name)?;
        number_within(word, name, min, max)
    }

    /// The duration behind an option, in milliseconds.
    fn millis(&mut self, name: &str, min: i64, max: i64) -> Result<Millis, CommandError> {
        let word = self.word(name)?;
        millis_within(word, name, min, max)
    }

    /// The name behind an option, 1 to 256 bytes.
    fn name(&mut self, option: &str) -> Result<&'a [u8], CommandError> {
        let name = self.word(option)?;
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            let text = format!("ERR {option} must be 1 to {NAME_BYTES_MAX} bytes long");
            return Err(CommandError::other(text));
        }
        Ok(name)
    }

    /// `n word [word ...]` behind IDS, which end the command or not.
    pub(super) fn counted(&mut self, name: &str) -> Result<Args<'a>, CommandError> {
        let count = self.number(name, 1, NUMBER_MAX)?;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let Some(words) = self.rest.get(..count) else {
            return Err(syntax(format!("{name} {count} is followed by {} words", self.rest.len())));
        };
        self.rest = &self.rest[count..];
        Ok(words)
    }
}

pub(super) fn number_within(word: &[u8], name: &str, min: i64, max: i64) -> Result<u64, CommandError> {
    let number = parse_i64(word).ok_or(CommandError::NotAnInteger)?;
    let in_range = u64::try_from(number).ok().filter(|_| (min..=max).contains(&number));
    in_range.ok_or_else(|| CommandError::other(format!("ERR {name} must be between {min} and {max}")))
}

pub(super) fn millis_within(word: &[u8], name: &str, min: i64, max: i64) -> Result<Millis, CommandError> {
    let number = parse_i64(word).ok_or(CommandError::NotAnInteger)?;
    let in_range = u64::try_from(number).ok().filter(|_| (min..=max).contains(&number));
    let text = || CommandError::other(format!("ERR {name} must be between {min} and {max} milliseconds"));
    in_range.map(Millis).ok_or_else(text)
}

pub(super) fn syntax(what: String) -> CommandError {
    CommandError::other(format!("ERR syntax error: {what}"))
}

pub(super) fn shown(word: &[u8]) -> String {
    word[..word.len().min(SHOWN_BYTES_MAX)].escape_ascii().to_string()
}

impl From<PopRefusal> for CommandError {
    fn from(refusal: PopRefusal) -> CommandError {
        match refusal {
            PopRefusal::WrongType => CommandError::WrongType,
            PopRefusal::TooLarge(message) => CommandError::MessageTooLarge(message),
        }
    }
}

impl From<WrongType> for CommandError {
    fn from(_: WrongType) -> CommandError {
        CommandError::WrongType
    }
}

/// Who does it, and when.
pub(super) fn by<'a>(context: &WriteContext<'a>) -> By<'a> {
    By { now: context.now, node: context.origin.node.0, reason: b"" }
}

fn qpush(context: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let mut options = Options::new("QPUSH", &args[3..]);
    let mut request = PushRequest { payload: args[2], ..PushRequest::default() };
    let names = ["ID", "PRIORITY", "DELAY", "EX", "PX", "GROUP", "MAXLEN", "XX"];
    while let Some(name) = options.next(&names)? {
        match name {
            "ID" => request.id = Some(options.name(name)?),
            "PRIORITY" => {
                let priority = options.number(name, 0, PRIORITIES as i64 - 1)?;
                request.priority = Some(u8::try_from(priority).expect("it is at most 9"));
            }
            "DELAY" => request.delay = Some(options.millis(name, 0, YEAR_MS)?),
            "EX" => {
                let seconds = options.number(name, 1, YEAR_MS / 1_000)?;
                request.lifetime = Some(Millis(seconds * 1_000));
            }
            "PX" => request.lifetime = Some(options.millis(name, 1, YEAR_MS)?),
            "GROUP" => request.group = Some(options.name(name)?),
            "MAXLEN" => request.max_len = Some(options.number(name, 0, NUMBER_MAX)?),
            _ => request.only_update = true,
        }
    }
    options.only_one_of(&["EX", "PX"])?;
    if request.only_update {
        if request.id.is_none() {
            return Err(syntax("XX needs the ID of the message".to_owned()));
        }
        if let Some(name) = ["EX", "PX", "GROUP", "MAXLEN"].iter().find(|name| options.has(name)) {
            return Err(syntax(format!("XX changes PRIORITY and DELAY only, not {name}")));
        }
    }
    let by = by(context);
    match queues::push(context.state, context.db, args[1], &request, by)? {
        Pushed::New(id) | Pushed::Known(id) => Ok(Reply::text(id.to_string())),
        Pushed::Nothing => Ok(Reply::Null),
        Pushed::Full(text) => Err(CommandError::other(text)),
    }
}

/// Reads `[COUNT n] [BLOCK ms] [LEASE ms] [CONSUMER name] [NOACK] [WITHMETA] FROM queue [queue ...]`.
fn pop_request(
    words: Args<'_>,
    db: crate::state::DbIndex,
    bounds: Bounds,
) -> Result<(PopRequest, Option<Millis>), CommandError> {
    let mut options = Options::new("QPOP", words);
    let mut request = PopRequest {
        db,
        queues: Vec::new(),
        count: 1,
        lease: None,
        no_ack: false,
        with_meta: false,
        consumer: Box::default(),
        reply_max: bounds.reply,
    };
    let mut block = None;
    let names = ["FROM", "COUNT", "BLOCK", "LEASE", "CONSUMER", "NOACK", "WITHMETA"];
    while let Some(name) = options.next(&names)? {
        match name {
            "FROM" => {
                let queues = options.take_rest();
                if queues.len() > QUEUES_MAX {
                    let text = format!("ERR QPOP takes at most {QUEUES_MAX} queues");
                    return Err(CommandError::other(text));
                }
                for queue in queues {
                    if !request.queues.iter().any(|known| **known == **queue) {
                        request.queues.push((*queue).into());
                    }
                }
            }
            "COUNT" => {
                let count = options.number(name, 1, COUNT_MAX)?;
                request.count = usize::try_from(count).expect("it is at most 1000");
            }
            "BLOCK" => block = Some(options.millis(name, 0, YEAR_MS)?),
            "LEASE" => request.lease = Some(options.millis(name, LEASE_MS_MIN, LEASE_MS_MAX)?),
            "CONSUMER" => request.consumer = options.name(name)?.into(),
            "NOACK" => request.no_ack = true,
            _ => request.with_meta = true,
        }
    }
    options.only_one_of(&["LEASE", "NOACK"])?;
    if request.queues.is_empty() {
        return Err(syntax("QPOP ends with FROM queue [queue ...]".to_owned()));
    }
    Ok((request, block))
}

fn qpop(context: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let (mut request, block) = pop_request(&args[1..], context.db, context.bounds)?;
    let popped = queues::pop(context.state, &request, context.origin, context.now)?;
    if !popped.is_empty() {
        return Ok(popped_reply(&popped, request.with_meta));
    }
    // A transaction never waits.
    let Some(block) = block.filter(|_| !context.in_transaction) else { return Ok(Reply::NullArray) };
    let until = if block.0 == 0 { ClusterTime::NEVER } else { context.now.after(block) };
    request.reply_max = context.reply_later;
    match queues::wait(context.state, request, context.origin, until, context.now) {
        Some(claim) => Ok(Reply::Waiting(claim.0)),
        None => Err(CommandError::other("TRYAGAIN too many clients wait for this queue")),
    }
}

/// What QPOP answers.
#[must_use]
pub fn popped_reply(popped: &[Popped], with_meta: bool) -> Reply {
    let message = |popped: &Popped| {
        let mut fields = vec![
            Reply::bulk(&popped.queue),
            Reply::text(popped.receipt.to_string()),
            Reply::Bulk(popped.payload.clone()),
            Reply::integer(popped.attempt),
        ];
        if with_meta {
            let meta = &popped.meta;
            let group = meta.group.as_ref().map_or(Reply::Null, Reply::bulk);
            fields.push(Reply::Map(vec![
                (Reply::bulk("id"), Reply::text(popped.receipt.id.to_string())),
                (Reply::bulk("priority"), Reply::integer(meta.priority)),
                (Reply::bulk("group"), group),
                (Reply::bulk("age_ms"), millis(meta.age)),
                (Reply::bulk("lease_ms"), millis(meta.lease)),
                (Reply::bulk("last_reason"), Reply::bulk(&meta.last_reason)),
            ]));
        }
        Reply::Array(fields)
    };
    Reply::Array(popped.iter().map(message).collect())
}

/// A number that stays far below 2^63.
pub(super) fn number(value: u64) -> Reply {
    Reply::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

pub(super) fn millis(value: Millis) -> Reply {
    number(value.0)
}

fn qack(context: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let receipts = read_receipts(&args[2..])?;
    let by = by(context);
    Ok(number(queues::ack(context.state, context.db, args[1], &receipts, by)? as u64))
}

/// `QNACK queue [SILENT | FAIL | FATAL] [DELAY ms] [REASON text] IDS n receipt [receipt ...]`
fn qnack(context: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let mut options = Options::new("QNACK", &args[2..]);
    let (mut delay, mut reason, mut receipts) = (None, &b""[..], None);
    while let Some(name) = options.next(&["SILENT", "FAIL", "FATAL", "DELAY", "REASON", "IDS"])? {
        match name {
            "DELAY" => delay = Some(options.millis(name, 0, YEAR_MS)?),
            "REASON" => {
                reason = options.word(name)?;
                if reason.len() > REASON_BYTES_MAX {
                    let text = format!("ERR REASON must be at most {REASON_BYTES_MAX} bytes long");
                    return Err(CommandError::other(text));
                }
            }
            "IDS" => receipts = Some(read_receipts(options.counted(name)?)?),
            _ => {}
        }
    }
    options.only_one_of(&["SILENT", "FAIL", "FATAL"])?;
    options.only_one_of(&["FATAL", "DELAY"])?;
    let Some(receipts) = receipts else {
        return Err(syntax("QNACK needs IDS n receipt [receipt ...]".to_owned()));
    };
    let how = if options.has("SILENT") {
        Nack::Silent { delay: delay.unwrap_or(Millis(0)) }
    } else if options.has("FATAL") {
        Nack::Fatal
    } else {
        Nack::Fail { delay }
    };
    let by = By { reason, ..by(context) };
    Ok(number(queues::nack(context.state, context.db, args[1], &receipts, how, by)? as u64))
}

fn qextend(context: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let lease = millis_within(args[2], "the lease", LEASE_MS_MIN, LEASE_MS_MAX)?;
    let receipts = read_receipts(&args[3..])?;
    let by = by(context);
    Ok(number(queues::extend(context.state, context.db, args[1], &receipts, lease, by)? as u64))
}

fn read_receipts(words: Args<'_>) -> Result<Vec<Receipt>, CommandError> {
    let read = |text: &&[u8]| {
        Receipt::parse(text).ok_or_else(|| {
            CommandError::other(format!("ERR invalid receipt '{}': want <id>:<delivery>", shown(text)))
        })
    };
    words.iter().map(read).collect()
}

/// A state as commands name it.
pub(super) fn read_state(word: &[u8]) -> Result<StateName, CommandError> {
    let known = StateName::ALL.iter().find(|(name, _)| eq_ignore_case(word, name));
    known
        .map(|(_, state)| *state)
        .ok_or_else(|| syntax(format!("'{}' is no state: want READY, DELAYED, LEASED or DEAD", shown(word))))
}

fn qlen(context: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    let count: Box<dyn Fn(&Queue) -> usize> = match &args[2..] {
        [] => Box::new(|queue| queue.count(StateName::Ready)),
        [word] if eq_ignore_case(word, "ALL") => Box::new(Queue::len),
        [word] => {
            let state = read_state(word)?;
            Box::new(move |queue| queue.count(state))
        }
        _ => return Err(syntax("QLEN takes a queue and one state".to_owned())),
    };
    let queue = queues::queue_at(context.state, context.db, args[1]).ok_or(CommandError::WrongType)?;
    Ok(number(queue.map_or(0, count) as u64))
}

/// A row of the queue verbs, with one key.
pub(super) const fn verb(
    name: &'static str,
    syntax: &'static str,
    summary: &'static str,
    arity: i32,
    flags: Flags,
    execute: Execute,
) -> CommandSpec {
    CommandSpec {
        name,
        syntax,
        group: Group::Queues,
        since: "0.1.0",
        summary,
        complexity: "O(M*log(N)) with M messages named or handed out and N messages in the queue",
        arity,
        flags,
        keys: KeySpec::one(1),
        acl: Categories::QUEUE,
        execute,
        subcommands: &[],
    }
}

/// The verbs of producers and consumers.
pub static ROWS: &[CommandSpec] = &[
    verb(
        "qpush",
        "QPUSH queue payload [ID dedup-id] [PRIORITY priority] [DELAY milliseconds] [EX seconds | PX milliseconds] \
         [GROUP group] [MAXLEN count] [XX]",
        "Appends a message to a queue, which is created on first use, and returns the message's id.",
        -3,
        Flags::WRITE.and(Flags::DENYOOM).and(Flags::FAST),
        Execute::Write(qpush),
    ),
    CommandSpec {
        keys: KeySpec::Keyword("FROM"),
        ..verb(
            "qpop",
            "QPOP [COUNT count] [BLOCK milliseconds] [LEASE milliseconds | NOACK] [CONSUMER name] [WITHMETA] \
             FROM queue [queue ...]",
            "Hands out ready messages and hides them from others until they are acknowledged or their lease ends.",
            -3,
            Flags::WRITE
                .and(Flags::BLOCKING)
                .and(Flags::MOVABLE_KEYS)
                .and(Flags::ORIGIN)
                .and(Flags::VALUES)
                .and(Flags::HANDS_OUT_MESSAGES)
                .and(Flags::ANSWERS_ARRAY),
            Execute::Write(qpop),
        )
    },
    verb(
        "qack",
        "QACK queue receipt [receipt ...]",
        "Finishes messages by the receipts of their current hand-out, and returns how many it finished.",
        -3,
        Flags::WRITE.and(Flags::FAST),
        Execute::Write(qack),
    ),
    verb(
        "qnack",
        "QNACK queue [SILENT | FAIL | FATAL] [DELAY milliseconds] [REASON text] IDS count receipt [receipt ...]",
        "Gives messages back: not counted, to be tried again after a while, or as dead; returns how many.",
        -5,
        Flags::WRITE.and(Flags::FAST),
        Execute::Write(qnack),
    ),
    verb(
        "qextend",
        "QEXTEND queue milliseconds receipt [receipt ...]",
        "Sets the remaining lease of messages in flight, and returns how many.",
        -4,
        Flags::WRITE.and(Flags::FAST),
        Execute::Write(qextend),
    ),
    CommandSpec {
        complexity: "O(1)",
        ..verb(
            "qlen",
            "QLEN queue [READY | DELAYED | LEASED | DEAD | ALL]",
            "Returns how many messages of a queue are in a state, READY by default.",
            -2,
            Flags::READONLY.and(Flags::FAST),
            Execute::Read(qlen),
        )
    },
];
