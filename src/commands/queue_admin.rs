//! The queue verbs of operators: QINFO, QPEEK, QTRACE, QDEL, QREDRIVE, QCONFIG (COMMANDS.md 2.3).

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::commands::error::CommandError;
use crate::commands::queues::LEASE_MS_MAX;
use crate::commands::queues::LEASE_MS_MIN;
use crate::commands::queues::NUMBER_MAX;
use crate::commands::queues::Options;
use crate::commands::queues::YEAR_MS;
use crate::commands::queues::by;
use crate::commands::queues::millis;
use crate::commands::queues::millis_within;
use crate::commands::queues::number;
use crate::commands::queues::number_within;
use crate::commands::queues::read_state;
use crate::commands::queues::shown;
use crate::commands::queues::syntax;
use crate::commands::queues::verb;
use crate::commands::spec::Args;
use crate::commands::spec::CommandResult;
use crate::commands::spec::CommandSpec;
use crate::commands::spec::Execute;
use crate::commands::spec::Flags;
use crate::commands::spec::KeySpec;
use crate::commands::spec::ReadContext;
use crate::commands::spec::WriteContext;
use crate::commands::spec::container;
use crate::resp::Reply;
use crate::resp::arguments::eq_ignore_case;
use crate::resp::arguments::parse_f64;
use crate::state::queues;
use crate::state::queues::Attributes;
use crate::state::queues::Backoff;
use crate::state::queues::Keyed;
use crate::state::queues::MessageId;
use crate::state::queues::MessageState;
use crate::state::queues::Pause;
use crate::state::queues::Queue;
use crate::state::queues::Slot;
use crate::state::queues::StateName;
use crate::state::queues::Which;
use crate::storage::StorageError;
use crate::types::ClusterTime;
use crate::types::Millis;
use crate::types::slot::hash_slot;

/// Messages that one QPEEK tells of, at most.
const PEEK_MAX: i64 = 1_000;
/// Messages that one QPEEK tells of when it does not say.
const PEEK_DEFAULT: usize = 10;
/// Payloads that one QPEEK tells, but for the first: they may have to be read from disk.
const PEEK_BYTES_MAX: usize = 1 << 20;
/// Messages that one QPEEK looks at, at most.
const LOOKED_AT_MAX: usize = 10_000;
/// Most attempts that MAXDELIVER allows.
const MAXDELIVER_MAX: i64 = 1_000_000;
/// Longest DEADLETTER, in bytes: as long as keys may be.
const KEY_BYTES_MAX: usize = 64 << 10;
/// Longest RETAIN and DEDUP, in milliseconds: 30 days.
const KEPT_MS_MAX: i64 = 30 * 86_400_000;

fn queue_of<'a>(context: &ReadContext<'a>, key: &[u8]) -> Result<Option<&'a Queue>, CommandError> {
    queues::queue_at(context.state, context.db, key).ok_or(CommandError::WrongType)
}

/// The same, with what is remembered of a queue that is gone.
fn known_queue_of<'a>(context: &ReadContext<'a>, key: &[u8]) -> Result<Option<&'a Queue>, CommandError> {
    queues::known_at(context.state, context.db, key).ok_or(CommandError::WrongType)
}

fn field(name: &str, value: Reply) -> (Reply, Reply) {
    (Reply::bulk(name), value)
}

fn qinfo(context: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    let is_full = match &args[2..] {
        [] => false,
        [word] if eq_ignore_case(word, "FULL") => true,
        _ => return Err(syntax("QINFO takes a queue and FULL".to_owned())),
    };
    let none = Queue::new(0);
    let queue = known_queue_of(context, args[1])?.unwrap_or(&none);
    let age = |since: Option<ClusterTime>| millis(since.map_or(Millis(0), |since| since.until(context.now)));
    let counters = queue.counters();
    let count = |state| number(queue.count(state) as u64);
    let waiting = context.state.pop_waits().count_of(&(context.db, args[1].into()));
    let mut fields = vec![
        field("ready", count(StateName::Ready)),
        field("delayed", count(StateName::Delayed)),
        field("leased", count(StateName::Leased)),
        field("dead", count(StateName::Dead)),
        field("bytes", number(queue.bytes())),
        field("oldest_ready_ms", age(queue.oldest_ready())),
        field("oldest_leased_ms", age(queue.oldest_leased())),
        field("pushed", number(counters.pushed)),
        field("delivered", number(counters.delivered)),
        field("redelivered", number(counters.redelivered)),
        field("acked", number(counters.acked)),
        field("nacked", number(counters.nacked)),
        field("expired_leases", number(counters.expired_leases)),
        field("duplicates", number(counters.duplicates)),
        field("died", number(counters.died)),
        field("deleted", number(counters.deleted)),
        field("moved", number(counters.moved)),
        field("blocked_clients", number(waiting as u64)),
        field("home", Reply::text(format!("slot {}", hash_slot(args[1])))),
        field("config", config_reply(queue.attributes())),
    ];
    if is_full {
        let levels = queue.by_priority().map(|count| number(count as u64));
        fields.push(field("priorities", Reply::Array(levels.to_vec())));
        let mut consumers: BTreeMap<&[u8], u64> = BTreeMap::new();
        for (_, lease) in queue.leases() {
            *consumers.entry(&lease.consumer).or_default() += 1;
        }
        let consumer = |(name, leased)| Reply::Array(vec![Reply::bulk(name), number(leased)]);
        fields.push(field("consumers", Reply::Array(consumers.into_iter().map(consumer).collect())));
    }
    Ok(Reply::Map(fields))
}

fn unreadable(error: &StorageError) -> CommandError {
    CommandError::other(format!("TRYAGAIN the rows cannot be read now: {error}"))
}

/// `QPEEK queue [STATE s] [COUNT n] [CURSOR id]`
fn qpeek(context: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    let mut options = Options::new("QPEEK", &args[2..]);
    let (mut state, mut count, mut cursor) = (None, PEEK_DEFAULT, MessageId::FIRST);
    while let Some(name) = options.next(&["STATE", "COUNT", "CURSOR"])? {
        match name {
            "STATE" => state = Some(read_state(options.word(name)?)?),
            "COUNT" => {
                count = usize::try_from(options.number(name, 1, PEEK_MAX)?).expect("it is at most 1000");
            }
            _ => {
                let word = options.word(name)?;
                cursor = if word == b"0" { MessageId::FIRST } else { read_id(word)? };
            }
        }
    }
    let Some(queue) = queue_of(context, args[1])? else {
        return Ok(Reply::Array(vec![Reply::bulk("0"), Reply::Array(Vec::new())]));
    };
    let mut found = Vec::new();
    let (mut looked_at, mut bytes, mut next) = (0, 0, None);
    let mut visit = |slot: &Slot| -> bool {
        if found.len() == count || looked_at == LOOKED_AT_MAX {
            next = Some(slot.id());
            return false;
        }
        looked_at += 1;
        if state.is_none_or(|state| state_of(queue, slot.id()) == Some(state)) {
            bytes += slot.payload_len();
            if bytes > PEEK_BYTES_MAX && !found.is_empty() {
                next = Some(slot.id());
                return false;
            }
            found.push(slot.id());
        }
        true
    };
    match state {
        // These have an order of their own.
        Some(state @ (StateName::Delayed | StateName::Leased | StateName::Dead)) => {
            let ids = queue.ids_from(state, cursor).filter_map(|id| queue.message(id));
            let _ = ids.take_while(|slot| visit(slot)).count();
        }
        _ => {
            let _ = queue.messages_from(cursor).take_while(|slot| visit(slot)).count();
        }
    }
    let next = next.map_or_else(|| "0".to_owned(), |id| id.to_string());
    let payloads = context.state.payloads(queue, &found).map_err(|error| unreadable(&error))?;
    let messages = found.iter().zip(payloads).map(|(id, payload)| peeked(context, queue, *id, payload));
    let messages = messages.collect();
    Ok(Reply::Array(vec![Reply::text(next), Reply::Array(messages)]))
}

fn state_of(queue: &Queue, id: MessageId) -> Option<StateName> {
    Some(match queue.life(id)?.state {
        MessageState::Delayed { .. } => StateName::Delayed,
        MessageState::Ready => StateName::Ready,
        MessageState::Leased { .. } => StateName::Leased,
        MessageState::Dead => StateName::Dead,
    })
}

/// `[id, payload, attempt, priority, due_ms, last_reason]`: in due_ms its delay or its lease ends.
fn peeked(context: &ReadContext<'_>, queue: &Queue, id: MessageId, payload: Bytes) -> Reply {
    let due = match queue.life(id).map(|life| life.state) {
        Some(MessageState::Delayed { due }) => context.now.until(due),
        Some(MessageState::Leased { until, .. }) => context.now.until(until),
        _ => Millis(0),
    };
    let reason = queue.extra(id).map_or(&b""[..], |extra| &extra.reason);
    Reply::Array(vec![
        Reply::text(id.to_string()),
        Reply::Bulk(payload),
        Reply::integer(queue.message(id).map_or(0, Slot::attempt)),
        Reply::integer(queue.message(id).map_or(0, Slot::priority)),
        millis(due),
        Reply::bulk(reason),
    ])
}

fn qtrace(context: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    let id = read_id(args[2])?;
    let Some(queue) = known_queue_of(context, args[1])? else { return Ok(Reply::Array(Vec::new())) };
    let events = context.state.trace(queue, id, context.now).map_err(|error| unreadable(&error))?;
    let event = |event: queues::trace::TraceEvent| {
        // The cluster's clock counts from its start; the wall clock of then is an estimate.
        let at = context.wall.0.saturating_sub(event.at.until(context.now).0);
        Reply::Map(vec![
            field("event", Reply::bulk(event.kind.name())),
            field("index", number(event.index)),
            field("delivery", Reply::integer(event.delivery)),
            field("attempt", Reply::integer(event.attempt)),
            field("consumer", Reply::bulk(&event.consumer)),
            field("node", number(event.node)),
            field("at_ms", number(at)),
            field("reason", Reply::bulk(&event.reason)),
        ])
    };
    Ok(Reply::Array(events.into_iter().map(event).collect()))
}

fn read_id(word: &[u8]) -> Result<MessageId, CommandError> {
    MessageId::parse(word)
        .ok_or_else(|| CommandError::other(format!("ERR invalid id '{}': want <index>-<n>", shown(word))))
}

fn read_ids(words: Args<'_>) -> Result<Which, CommandError> {
    Ok(Which::Ids(words.iter().map(|word| read_id(word)).collect::<Result<_, _>>()?))
}

/// `QDEL queue IDS n id [id ...] | STATE s | ALL`
fn qdel(context: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let mut options = Options::new("QDEL", &args[2..]);
    let which = match options.next(&["IDS", "STATE", "ALL"])? {
        Some("IDS") => read_ids(options.counted("IDS")?)?,
        Some("STATE") => Which::State(read_state(options.word("STATE")?)?),
        _ => Which::All,
    };
    if let Some(word) = options.take_rest().first() {
        return Err(syntax(format!("QDEL takes IDS, STATE or ALL, and then nothing like '{}'", shown(word))));
    }
    let by = by(context);
    Ok(number(queues::delete(context.state, context.db, args[1], &which, by)? as u64))
}

/// `QREDRIVE queue [IDS n id ... | COUNT n] [TO other]`
fn qredrive(context: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let mut options = Options::new("QREDRIVE", &args[2..]);
    let (mut which, mut to) = (Which::State(StateName::Dead), None);
    while let Some(name) = options.next(&["IDS", "COUNT", "TO"])? {
        match name {
            "IDS" => which = read_ids(options.counted(name)?)?,
            "COUNT" => {
                let count = options.number(name, 1, NUMBER_MAX)?;
                which = Which::Count(usize::try_from(count).unwrap_or(usize::MAX));
            }
            _ => to = Some(options.word(name)?),
        }
    }
    options.only_one_of(&["IDS", "COUNT"])?;
    let by = by(context);
    Ok(number(queues::redrive(context.state, context.db, args[1], &which, to, by)? as u64))
}

/// The attributes, as QCONFIG names them.
const ATTRIBUTES: [&str; 12] = [
    "LEASE",
    "MAXDELIVER",
    "BACKOFF",
    "DEADLETTER",
    "DEDUP",
    "MAXLEN",
    "MAXBYTES",
    "MAXLEASED",
    "AGING",
    "RETAIN",
    "PAUSE",
    "TTL",
];

fn config_reply(attributes: &Attributes) -> Reply {
    let Backoff { min, max, factor_percent, jitter_percent } = attributes.backoff;
    let factor = factor_percent as f64 / 100.0;
    let value = |name: &str| match name {
        "LEASE" => attributes.lease.0.to_string(),
        "MAXDELIVER" => attributes.max_deliver.to_string(),
        "BACKOFF" => format!("{min} {max} {factor} {jitter_percent}"),
        "DEDUP" => attributes.dedup.0.to_string(),
        "MAXLEN" => attributes.max_len.to_string(),
        "MAXBYTES" => attributes.max_bytes.to_string(),
        "MAXLEASED" => attributes.max_leased.to_string(),
        "AGING" => attributes.aging.0.to_string(),
        "RETAIN" => attributes.retain.0.to_string(),
        "PAUSE" => attributes.pause.name().to_owned(),
        _ => attributes.ttl.0.to_string(),
    };
    let fields = ATTRIBUTES.iter().map(|name| {
        let value = if *name == "DEADLETTER" {
            Reply::bulk(&attributes.dead_letter)
        } else {
            Reply::text(value(name))
        };
        (Reply::bulk(name), value)
    });
    Reply::Map(fields.collect())
}

fn config_get(context: &ReadContext<'_>, args: Args<'_>) -> CommandResult {
    let attributes = queue_of(context, args[2])?.map(Queue::attributes).cloned();
    Ok(config_reply(&attributes.unwrap_or_default()))
}

/// `QCONFIG SET queue attr value [attr value ...]`
fn config_set(context: &mut WriteContext<'_>, args: Args<'_>) -> CommandResult {
    let known = queues::queue_at(context.state, context.db, args[2]).ok_or(CommandError::WrongType)?;
    let mut attributes = known.map(Queue::attributes).cloned().unwrap_or_default();
    let mut options = Options::new("QCONFIG SET", &args[3..]);
    while let Some(name) = options.next(&ATTRIBUTES)? {
        let value = options.word(name)?;
        match name {
            "LEASE" => attributes.lease = millis_within(value, name, LEASE_MS_MIN, LEASE_MS_MAX)?,
            "MAXDELIVER" => {
                let most = number_within(value, name, 0, MAXDELIVER_MAX)?;
                attributes.max_deliver = u32::try_from(most).expect("it is at most a million");
            }
            "BACKOFF" => attributes.backoff = read_backoff(value)?,
            "DEADLETTER" => {
                if value == args[2] {
                    return Err(CommandError::other("ERR DEADLETTER must be another queue"));
                }
                if value.len() > KEY_BYTES_MAX {
                    return Err(CommandError::other("ERR DEADLETTER is longer than keys may be"));
                }
                attributes.dead_letter = value.into();
            }
            "DEDUP" => attributes.dedup = millis_within(value, name, 0, KEPT_MS_MAX)?,
            "MAXLEN" => attributes.max_len = number_within(value, name, 0, NUMBER_MAX)?,
            "MAXBYTES" => attributes.max_bytes = number_within(value, name, 0, NUMBER_MAX)?,
            "MAXLEASED" => attributes.max_leased = number_within(value, name, 0, NUMBER_MAX)?,
            "AGING" => attributes.aging = millis_within(value, name, 0, YEAR_MS)?,
            "RETAIN" => attributes.retain = millis_within(value, name, 0, KEPT_MS_MAX)?,
            "PAUSE" => {
                let pause = Pause::NAMES.iter().find(|(word, _)| eq_ignore_case(value, word));
                let text = "ERR PAUSE must be none, in, out or all";
                attributes.pause = pause.ok_or(CommandError::other(text))?.1;
            }
            _ => attributes.ttl = millis_within(value, name, 0, YEAR_MS)?,
        }
    }
    queues::configure(context.state, context.db, args[2], |_| attributes)?;
    Ok(Reply::Ok)
}

/// Reads `min max factor jitter%`.
fn read_backoff(value: &[u8]) -> Result<Backoff, CommandError> {
    let words: Vec<&[u8]> = value.split(|byte| *byte == b' ').filter(|word| !word.is_empty()).collect();
    let [min, max, factor, jitter] = words[..] else {
        let text = "ERR BACKOFF is 'min max factor jitter%', in milliseconds: '1000 300000 2 20'";
        return Err(CommandError::other(text));
    };
    let min = millis_within(min, "BACKOFF min", 0, YEAR_MS)?.0;
    let max = millis_within(max, "BACKOFF max", 0, YEAR_MS)?.0;
    if max < min {
        return Err(CommandError::other("ERR BACKOFF max must not be below min"));
    }
    let factor = parse_f64(factor).filter(|factor| (1.0..=1000.0).contains(factor));
    let factor = factor.ok_or(CommandError::other("ERR BACKOFF factor must be between 1 and 1000"))?;
    let jitter = number_within(jitter.strip_suffix(b"%").unwrap_or(jitter), "BACKOFF jitter", 0, 100)?;
    Ok(Backoff { min, max, factor_percent: (factor * 100.0).round() as u64, jitter_percent: jitter })
}

const fn admin(
    name: &'static str,
    syntax: &'static str,
    summary: &'static str,
    arity: i32,
    flags: Flags,
    execute: Execute,
) -> CommandSpec {
    CommandSpec {
        complexity: "O(M*log(N)) with M messages looked at or changed and N messages in the queue",
        ..verb(name, syntax, summary, arity, flags, execute)
    }
}

/// The verbs of operators.
pub static ROWS: &[CommandSpec] = &[
    admin(
        "qinfo",
        "QINFO queue [FULL]",
        "Returns counts, ages and attributes of a queue; FULL adds counts by priority and by consumer.",
        -2,
        Flags::READONLY.and(Flags::WALKS),
        Execute::Read(qinfo),
    ),
    admin(
        "qpeek",
        "QPEEK queue [STATE state] [COUNT count] [CURSOR id]",
        "Returns messages of a queue as they are, without handing them out, and where to go on.",
        -2,
        Flags::READONLY.and(Flags::WALKS),
        Execute::Read(qpeek),
    ),
    admin(
        "qtrace",
        "QTRACE queue id",
        "Returns what has happened to a message, also after it is gone.",
        3,
        Flags::READONLY.and(Flags::WALKS),
        Execute::Read(qtrace),
    ),
    admin(
        "qdel",
        "QDEL queue IDS count id [id ...] | STATE state | ALL",
        "Deletes messages, in flight or not, and returns how many; ALL removes the queue with its configuration, too.",
        -3,
        Flags::WRITE.and(Flags::WALKS),
        Execute::Write(qdel),
    ),
    CommandSpec {
        keys: KeySpec::OneAndAfter { at: 1, word: "TO", from: 2 },
        ..admin(
            "qredrive",
            "QREDRIVE queue [IDS count id [id ...] | COUNT count] [TO queue]",
            "Gives dead messages new attempts, here or in another queue, and returns how many; one whose ID another message \
             has there stays.",
            -2,
            Flags::WRITE.and(Flags::MOVABLE_KEYS).and(Flags::WALKS),
            Execute::Write(qredrive),
        )
    },
    CommandSpec {
        keys: KeySpec::None,
        subcommands: &[
            CommandSpec {
                keys: KeySpec::one(2),
                ..admin(
                    "get",
                    "QCONFIG GET queue",
                    "Returns the attributes of a queue.",
                    3,
                    Flags::READONLY,
                    Execute::Read(config_get),
                )
            },
            CommandSpec {
                keys: KeySpec::one(2),
                ..admin(
                    "set",
                    "QCONFIG SET queue attribute value [attribute value ...]",
                    "Sets attributes of a queue, which is created if it is not there, all at once.",
                    -5,
                    Flags::WRITE.and(Flags::ADMIN).and(Flags::DENYOOM),
                    Execute::Write(config_set),
                )
            },
        ],
        ..admin(
            "qconfig",
            "QCONFIG",
            "A container for commands that read and set the attributes of queues.",
            -2,
            Flags::NONE,
            Execute::Read(container),
        )
    },
];
