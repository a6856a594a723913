//! What must hold before a command runs: a list of small functions, tried in order.
//!
//! Each says in one place what it refuses and in which words; clients match on the texts, which are Redis 7.0's.
//! A command that was refused between MULTI and EXEC breaks its transaction.

use crate::commands::spec::CommandSpec;
use crate::commands::spec::Execute;
use crate::commands::spec::Flags;
use crate::commands::spec::SessionCommand;
use crate::commands::table;
use crate::resp::Reply;
use crate::resp::Request;
use crate::server::disk::DiskGate;
use crate::server::disk::DiskNeed;
use crate::server::errors;

/// The longest key, in bytes (COMMANDS.md 2.8).
pub const KEY_BYTES_MAX: usize = 64 << 10;

/// The row of a command, and of its subcommand if it has one.
#[derive(Clone, Copy)]
pub struct Found {
    pub row: &'static CommandSpec,
    /// The subcommand's place among the row's subcommands, and its row.
    pub sub: Option<(usize, &'static CommandSpec)>,
}

impl Found {
    /// The row whose arity and flags count.
    #[inline]
    pub fn leaf(&self) -> &'static CommandSpec {
        self.sub.map_or(self.row, |(_, sub)| sub)
    }

    /// As error texts name it: `get`, or `config|get`.
    pub fn full_name(&self) -> String {
        match self.sub {
            Some((_, sub)) => format!("{}|{}", self.row.name, sub.name),
            None => self.row.name.to_owned(),
        }
    }
}

/// What the gates look at.
pub struct Attempt<'a> {
    pub request: &'a Request,
    pub found: Found,
    pub standing: Standing,
}

/// How the client and the node stand.
#[derive(Clone, Copy, Default)]
pub struct Standing {
    /// The client must log in first.
    pub must_log_in: bool,
    /// The client is between MULTI and EXEC.
    pub in_transaction: bool,
    /// The client speaks RESP2 and is subscribed: its replies cannot be told from messages.
    pub is_subscriber: bool,
    /// A command queued since MULTI may take memory.
    pub exec_needs_memory: bool,
    /// The node takes more memory than `maxmemory`.
    pub is_memory_full: bool,
    /// What the disks of the cluster allow, and what the commands queued since MULTI want of them.
    pub disk_gate: DiskGate,
    pub exec_needs_disk: DiskNeed,
    /// The node has no data yet.
    pub is_loading: bool,
    /// The node's state was found to be wrong as of this index.
    pub diverged_at: Option<u64>,
}

type Gate = fn(&Attempt<'_>) -> Result<(), Reply>;

/// In Redis's order.
const GATES: [Gate; 9] = [
    arity_fits,
    client_is_logged_in,
    fits_a_subscriber,
    fits_a_transaction,
    memory_is_there,
    disks_have_room,
    data_is_loaded,
    state_is_right,
    keys_are_bounded,
];

/// Finds a request's row and passes it through the gates; the error is what to answer.
#[inline]
pub fn admit(request: &Request, standing: Standing) -> Result<Found, Reply> {
    let found = find(request)?;
    let attempt = Attempt { request, found, standing };
    for gate in GATES {
        gate(&attempt)?;
    }
    Ok(found)
}

/// The row of a request.
#[inline]
pub fn find(request: &Request) -> Result<Found, Reply> {
    let Some(row) = table::find(request.name()) else { return Err(unknown_command(request)) };
    if row.subcommands.is_empty() || request.len() < 2 {
        return Ok(Found { row, sub: None });
    }
    let word = request.arg(1);
    let is_meant = |sub: &CommandSpec| sub.name.as_bytes().eq_ignore_ascii_case(word);
    if let Some(at) = row.subcommands.iter().position(is_meant) {
        return Ok(Found { row, sub: Some((at, &row.subcommands[at])) });
    }
    Err(unknown_subcommand(row, word))
}

/// True for the first words of an HTTP request. A web page can make a browser send one to this port, with commands
/// in its body: a client that begins so is no client.
pub fn is_cross_protocol(request: &Request) -> bool {
    let name = request.name();
    name.eq_ignore_ascii_case(b"post") || name.eq_ignore_ascii_case(b"host:")
}

fn unknown_command(request: &Request) -> Reply {
    const QUOTED_MAX: usize = 128;
    let mut arguments = String::new();
    for word in request.args().skip(1) {
        if arguments.len() >= QUOTED_MAX {
            break;
        }
        arguments.push('\'');
        arguments.push_str(&errors::quoted(word, QUOTED_MAX - (arguments.len() - 1)));
        arguments.push_str("' ");
    }
    let name = errors::quoted(request.name(), QUOTED_MAX);
    Reply::error(format!("ERR unknown command '{name}', with args beginning with: {arguments}"))
}

fn unknown_subcommand(row: &CommandSpec, word: &[u8]) -> Reply {
    let word = errors::quoted(word, 128);
    Reply::error(format!("ERR unknown subcommand '{word}'. Try {} HELP.", row.name.to_ascii_uppercase()))
}

fn arity_fits(attempt: &Attempt<'_>) -> Result<(), Reply> {
    if attempt.found.leaf().arity_allows(attempt.request.len()) {
        return Ok(());
    }
    let name = attempt.found.full_name();
    Err(Reply::error(format!("ERR wrong number of arguments for '{name}' command")))
}

fn client_is_logged_in(attempt: &Attempt<'_>) -> Result<(), Reply> {
    if !attempt.standing.must_log_in || attempt.found.row.flags.has(Flags::NO_AUTH) {
        return Ok(());
    }
    Err(Reply::error("NOAUTH Authentication required."))
}

fn fits_a_subscriber(attempt: &Attempt<'_>) -> Result<(), Reply> {
    use SessionCommand::*;
    let is_allowed = matches!(
        attempt.found.row.execute,
        Execute::Session(Subscribe | Psubscribe | Unsubscribe | Punsubscribe | Ping | Quit | Reset)
    );
    if !attempt.standing.is_subscriber || is_allowed {
        return Ok(());
    }
    let name = attempt.found.full_name();
    Err(Reply::error(format!(
        "ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context"
    )))
}

fn fits_a_transaction(attempt: &Attempt<'_>) -> Result<(), Reply> {
    let is_refused =
        || attempt.found.leaf().flags.has(Flags::NO_MULTI) && !is_never_queued(attempt.found.row);
    if !attempt.standing.in_transaction || !is_refused() {
        return Ok(());
    }
    Err(Reply::error("ERR Command not allowed inside a transaction"))
}

/// Nothing is evicted, so what takes memory is refused, as by Redis's `noeviction`.
fn memory_is_there(attempt: &Attempt<'_>) -> Result<(), Reply> {
    if !attempt.standing.is_memory_full {
        return Ok(());
    }
    let is_exec = matches!(attempt.found.row.execute, Execute::Session(SessionCommand::Exec));
    let needs_memory =
        attempt.found.leaf().flags.has(Flags::DENYOOM) || (is_exec && attempt.standing.exec_needs_memory);
    if !needs_memory {
        return Ok(());
    }
    Err(Reply::error("OOM command not allowed when used memory > 'maxmemory'."))
}

/// Before a disk is full for good: a log that cannot be written ends its node.
fn disks_have_room(attempt: &Attempt<'_>) -> Result<(), Reply> {
    let gate = attempt.standing.disk_gate;
    if gate == DiskGate::Open {
        return Ok(());
    }
    let need = match attempt.found.row.execute {
        Execute::Session(SessionCommand::Exec) => attempt.standing.exec_needs_disk,
        _ => DiskNeed::of(attempt.found.leaf()),
    };
    if need.passes(gate) { Ok(()) } else { Err(errors::disk_full(gate)) }
}

fn data_is_loaded(attempt: &Attempt<'_>) -> Result<(), Reply> {
    if !attempt.standing.is_loading || attempt.found.leaf().flags.has(Flags::LOADING) {
        return Ok(());
    }
    Err(errors::loading())
}

fn state_is_right(attempt: &Attempt<'_>) -> Result<(), Reply> {
    let Some(index) = attempt.standing.diverged_at else { return Ok(()) };
    match attempt.found.leaf().execute {
        Execute::Read(_) | Execute::Write(_) => Err(errors::diverged(index)),
        Execute::Session(SessionCommand::Exec | SessionCommand::Watch) => Err(errors::diverged(index)),
        Execute::Session(_) => Ok(()),
    }
}

fn keys_are_bounded(attempt: &Attempt<'_>) -> Result<(), Reply> {
    // A request that is shorter as a whole has no longer key.
    if attempt.request.raw().len() <= KEY_BYTES_MAX {
        return Ok(());
    }
    let words: Vec<&[u8]> = attempt.request.args().collect();
    let is_too_long = |at: &usize| words[*at].len() > KEY_BYTES_MAX;
    if !attempt.found.leaf().keys.positions(&words).iter().any(is_too_long) {
        return Ok(());
    }
    Err(Reply::error(format!("ERR key is longer than {KEY_BYTES_MAX} bytes")))
}

/// Commands that run at once even between MULTI and EXEC: those that open, end or refuse a transaction.
pub fn is_never_queued(row: &CommandSpec) -> bool {
    use SessionCommand::*;
    matches!(row.execute, Execute::Session(Multi | Exec | Discard | Watch | Quit | Reset))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(words: &[&[u8]]) -> Request {
        Request::from_args(words)
    }

    fn refusal(words: &[&[u8]], must_log_in: bool, in_transaction: bool) -> String {
        refusal_at(words, Standing { must_log_in, in_transaction, ..Standing::default() })
    }

    fn refusal_at(words: &[&[u8]], standing: Standing) -> String {
        match admit(&request(words), standing) {
            Err(Reply::Error(text)) => text.into_owned(),
            Err(other) => panic!("{other:?}"),
            Ok(found) => found.full_name(),
        }
    }

    #[test]
    fn commands_are_refused_in_the_words_of_redis() {
        let long = [b'x'; 200];
        let cases: &[(&[&[u8]], &str)] = &[
            (&[b"foo"], "ERR unknown command 'foo', with args beginning with: "),
            (&[b"FoO", b"a", b"b"], "ERR unknown command 'FoO', with args beginning with: 'a' 'b' "),
            (&[b"get"], "ERR wrong number of arguments for 'get' command"),
            (&[b"GET", b"a", b"b"], "ERR wrong number of arguments for 'get' command"),
            (&[b"config"], "ERR wrong number of arguments for 'config' command"),
            (&[b"config", b"get"], "ERR wrong number of arguments for 'config|get' command"),
            (&[b"client", b"x"], "ERR unknown subcommand 'x'. Try CLIENT HELP."),
            (&[b"CLIENT", b"ID"], "client|id"),
            (&[b"client", b"TRACKINGINFO"], "client|trackinginfo"),
            (&[b"client", b"tracking"], "ERR wrong number of arguments for 'client|tracking' command"),
            (&[b"config", b"tracking"], "ERR unknown subcommand 'tracking'. Try CONFIG HELP."),
        ];
        for (words, text) in cases {
            assert_eq!(refusal(words, false, false), *text);
        }
        let quoted = "x".repeat(128);
        let expected = format!("ERR unknown command '{quoted}', with args beginning with: '{quoted}' ");
        assert_eq!(refusal(&[&long, &long, &long], false, false), expected);
    }

    #[test]
    fn only_logging_in_is_open_to_strangers() {
        assert_eq!(refusal(&[b"get", b"k"], true, false), "NOAUTH Authentication required.");
        assert_eq!(refusal(&[b"auth", b"p"], true, false), "auth");
        assert_eq!(refusal(&[b"hello", b"3"], true, false), "hello");
    }

    #[test]
    fn above_maxmemory_only_what_takes_no_memory_runs() {
        let full = Standing { is_memory_full: true, ..Standing::default() };
        let oom = "OOM command not allowed when used memory > 'maxmemory'.";
        for words in [&[&b"set"[..], b"k", b"v"][..], &[b"qpush", b"q", b"m"], &[b"lock", b"l", b"me"]] {
            assert_eq!(refusal_at(words, full), oom);
            assert_eq!(refusal_at(words, Standing { in_transaction: true, ..full }), oom);
        }
        for words in [&[&b"get"[..], b"k"][..], &[b"del", b"k"], &[b"ping"], &[b"exec"]] {
            assert_eq!(refusal_at(words, full).as_bytes(), words[0]);
        }
        let queued = Standing { in_transaction: true, exec_needs_memory: true, ..full };
        assert_eq!(refusal_at(&[b"exec"], queued), oom);
        assert_eq!(refusal_at(&[b"discard"], queued), "discard");
    }

    #[test]
    fn full_disks_take_what_adds_nothing_and_then_only_deletions() {
        let at = |disk_gate| Standing { disk_gate, ..Standing::default() };
        let (almost, full) = (at(DiskGate::NoGrowth), at(DiskGate::DeletesOnly));
        for words in [&[&b"set"[..], b"k", b"v"][..], &[b"qpush", b"q", b"m"], &[b"lock", b"l", b"me"]] {
            let (soft, hard) = (refusal_at(words, almost), refusal_at(words, full));
            assert!(
                soft.starts_with("MISCONF disk almost full: ") && soft.ends_with("not executed."),
                "{soft}"
            );
            assert!(hard.starts_with("MISCONF disk full: ") && hard.ends_with("not executed."), "{hard}");
        }
        for words in [&[&b"expire"[..], b"k", b"9"][..], &[b"rename", b"k", b"l"]] {
            assert_eq!(refusal_at(words, almost).as_bytes(), words[0]);
            assert!(refusal_at(words, full).starts_with("MISCONF "));
        }
        for words in [
            &[&b"get"[..], b"k"][..],
            &[b"del", b"k"],
            &[b"unlock", b"l", b"me"],
            &[b"qack", b"q", b"r"],
            &[b"qpop", b"from", b"q"],
            &[b"flushall"],
            &[b"ping"],
            &[b"exec"],
            &[b"multi"],
        ] {
            assert_eq!(refusal_at(words, full).as_bytes(), words[0]);
        }
        for (need, standing, passes) in [
            (DiskNeed::Growth, almost, false),
            (DiskNeed::Writes, almost, true),
            (DiskNeed::Writes, full, false),
            (DiskNeed::None, full, true),
        ] {
            let queued = Standing { in_transaction: true, exec_needs_disk: need, ..standing };
            assert_eq!(refusal_at(&[b"exec"], queued) == "exec", passes, "{need:?}");
        }
    }

    #[test]
    fn a_node_whose_state_is_wrong_serves_no_data() {
        let wrong = Standing { diverged_at: Some(9), ..Standing::default() };
        for words in
            [&[&b"get"[..], b"k"][..], &[b"set", b"k", b"v"], &[b"dbsize"], &[b"watch", b"k"], &[b"exec"]]
        {
            let refusal = refusal_at(words, wrong);
            assert!(
                refusal.starts_with("MISCONF this node's state differs from the others' at index 9"),
                "{refusal}"
            );
        }
        for words in [&[&b"ping"[..]][..], &[b"info"], &[b"raft", b"members"], &[b"multi"], &[b"shutdown"]] {
            assert_eq!(refusal_at(words, wrong).split('|').next().unwrap().as_bytes(), words[0]);
        }
    }

    #[test]
    fn while_it_loads_only_what_needs_no_data_runs() {
        let loading = Standing { is_loading: true, ..Standing::default() };
        for words in [&[&b"get"[..], b"k"][..], &[b"set", b"k", b"v"], &[b"ping"], &[b"raft", b"verify"]] {
            let refusal = refusal_at(words, loading);
            assert!(refusal.starts_with("LOADING "), "{refusal}");
        }
        for words in
            [&[&b"info"[..]][..], &[b"raft", b"info"], &[b"hello", b"3"], &[b"config", b"get", b"port"]]
        {
            assert_eq!(refusal_at(words, loading).split('|').next().unwrap().as_bytes(), words[0]);
        }
    }

    #[test]
    fn the_start_of_an_http_request_is_known() {
        assert!(is_cross_protocol(&request(&[b"POST", b"/", b"HTTP/1.1"])));
        assert!(is_cross_protocol(&request(&[b"Host:", b"localhost"])));
        assert!(!is_cross_protocol(&request(&[b"GET", b"post"])) && !is_cross_protocol(&request(&[b"host"])));
    }

    #[test]
    fn a_long_key_is_refused_and_a_long_value_is_not() {
        let long = vec![b'k'; KEY_BYTES_MAX + 1];
        assert_eq!(refusal(&[b"get", &long], false, false), "ERR key is longer than 65536 bytes");
        assert_eq!(refusal(&[b"set", b"k", &long], false, false), "set");
        assert_eq!(refusal(&[b"get", &long[1..]], false, false), "get");
    }

    #[test]
    fn what_ends_a_transaction_is_never_queued() {
        for name in ["multi", "exec", "discard", "watch", "quit", "reset"] {
            assert!(is_never_queued(table::find(name.as_bytes()).unwrap()), "{name}");
        }
        assert!(!is_never_queued(table::find(b"ping").unwrap()));
    }
}
