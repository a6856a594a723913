//! What a connection is, apart from its socket: who is on it, which database, which protocol, which transaction.
//!
//! The commands that only concern this stand here as well: PING ECHO HELLO AUTH SELECT READONLY RESET QUIT. Others
//! that a connection answers by itself are sent on to `client_command`, `info`, `config_command`, `admin_commands` and
//! `raft_command`.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use bytes::BytesMut;
use subtle::ConstantTimeEq;

use crate::commands::command_docs;
use crate::commands::error::CommandError;
use crate::commands::spec::Execute;
use crate::commands::spec::SessionCommand;
use crate::config::Config;
use crate::resp::Protocol;
use crate::resp::Reply;
use crate::resp::Request;
use crate::resp::arguments::eq_ignore_case;
use crate::resp::arguments::parse_i64;
use crate::resp::render;
use crate::server::Services;
use crate::server::admin_commands;
use crate::server::client_command;
use crate::server::clients::ClientHandle;
use crate::server::config_command;
use crate::server::errors;
use crate::server::gates;
use crate::server::gates::Found;
use crate::server::info;
use crate::server::login_failures::Verdict;
use crate::server::pubsub::Subscriptions;
use crate::server::raft_command;
use crate::server::raft_command::Later;
use crate::server::transaction::Transaction;
use crate::state::DbIndex;
use crate::types::Millis;

/// The version of Redis whose behaviour clients may expect; they choose features by it.
pub const REDIS_VERSION: &str = "7.2.4";

const PUBSUB_HELP: &[&str] = &[
    "PUBSUB <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "CHANNELS [<pattern>]",
    "    Return the currently active channels matching a <pattern> (default: '*').",
    "NUMPAT",
    "    Return number of subscriptions to patterns.",
    "NUMSUB [<channel> ...]",
    "    Return the number of subscribers for the specified channels, excluding",
    "    pattern subscriptions(default: no channels).",
    "HELP",
    "    Print this help.",
];
const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";
const NO_PASSWORD_SET: &str = "ERR AUTH <password> called without any password configured for the default user. Are you \
                               sure your configuration is correct?";
const HELLO_NEEDS_AUTH: &str = "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO \
                                <proto> AUTH <user> <pass> option can be used to authenticate the client and select the \
                                RESP protocol version at the same time";

/// Which replies a client wants (CLIENT REPLY).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Replies {
    #[default]
    On,
    Off,
    /// All but the next one.
    SkipNext,
}

/// How old reads may be on a connection that asked for READONLY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaleReads {
    /// Reads are refused when no leader was heard for longer; `None` is no bound.
    pub max_lag: Option<Millis>,
}

/// What becomes of a command that the connection answers itself.
#[derive(Debug)]
pub enum Answer {
    Reply(Reply),
    /// One after the other.
    Many(Vec<Reply>),
    /// No reply at all.
    Nothing,
    /// The reply, after this time.
    After(Duration, Reply),
    /// The reply of what takes its time.
    Later(Later),
    /// The reply, and then the connection closes.
    Last(Reply),
    /// The connection closes without a reply.
    Close,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Answer {
        Answer::Reply(reply)
    }
}

/// One client's side of the server.
#[derive(Debug)]
pub struct Session {
    pub client: Arc<ClientHandle>,
    pub db: DbIndex,
    pub protocol: Protocol,
    /// The ACL user; the only one of this version is `default`.
    pub user: Box<[u8]>,
    pub is_logged_in: bool,
    pub transaction: Transaction,
    /// Since CLIENT EXECMODE: every transaction is all or nothing, or none is.
    pub exec_mode: Option<bool>,
    pub subscriptions: Subscriptions,
    pub replies: Replies,
    /// Since READONLY: this node answers reads from what it has applied.
    pub stale_reads: Option<StaleReads>,
    /// Nothing more is executed; the connection closes once its replies are sent.
    pub is_closing: bool,
    /// The reply to EXEC waits so long: a password among its commands was wrong.
    pub held_back: Duration,
    /// The configuration as of this batch of input.
    pub config: Arc<Config>,
    config_generation: u64,
}

impl Session {
    /// The session of a client that has just connected.
    pub fn new(client: Arc<ClientHandle>, services: &Services) -> Session {
        let config_generation = services.config.generation();
        let config = services.config.get();
        client.note_stranger(config.requirepass.is_some().then(|| services.clock.monotonic()));
        Session {
            client,
            db: 0,
            protocol: Protocol::Resp2,
            user: (*b"default").into(),
            is_logged_in: config.requirepass.is_none(),
            transaction: Transaction::default(),
            exec_mode: None,
            subscriptions: Subscriptions::default(),
            replies: Replies::On,
            stale_reads: None,
            is_closing: false,
            held_back: Duration::ZERO,
            config,
            config_generation,
        }
    }

    /// Looks whether the configuration was changed: one atomic load when it was not.
    #[inline]
    pub fn refresh_config(&mut self, services: &Services) {
        let generation = services.config.generation();
        if generation != self.config_generation {
            self.config = services.config.get();
            self.config_generation = generation;
        }
    }

    /// True when the client has to log in before anything else.
    #[inline]
    pub fn must_log_in(&self) -> bool {
        !self.is_logged_in && self.config.requirepass.is_some()
    }

    /// Renders a reply, unless the client asked for none.
    #[inline]
    pub fn emit(&mut self, reply: &Reply, out: &mut BytesMut) {
        match self.replies {
            Replies::On => render(reply, self.protocol, out),
            Replies::Off => {}
            Replies::SkipNext => self.replies = Replies::On,
        }
    }

    /// Renders what stands for a reply and is none: pushes, which come whatever replies the client wants, as in Redis.
    pub fn emit_pushes(&mut self, pushes: &[Reply], out: &mut BytesMut) {
        pushes.iter().for_each(|push| render(push, self.protocol, out));
        if self.replies == Replies::SkipNext {
            self.replies = Replies::On;
        }
    }

    /// Shows others where this session stands; once per batch of input.
    pub fn publish(&self) {
        let client = &self.client;
        let queued = self.transaction.queued().map_or(-1, |count| i64::try_from(count).unwrap_or(i64::MAX));
        client.db.store(self.db, Ordering::Relaxed);
        client.protocol.store(if self.protocol == Protocol::Resp3 { 3 } else { 2 }, Ordering::Relaxed);
        client.queued.store(queued, Ordering::Relaxed);
        client.watched.store(self.transaction.watched(), Ordering::Relaxed);
        client.is_readonly.store(self.stale_reads.is_some(), Ordering::Relaxed);
        client.transaction_bytes.store(self.transaction.bytes(), Ordering::Relaxed);
    }

    /// Runs a command that needs nothing of the log. MULTI, EXEC and their like never come here inside EXEC.
    pub fn run(&mut self, services: &Services, found: Found, request: &Request) -> Answer {
        let SessionCall { command, sub } = SessionCall::of(found);
        self.refresh_config(services);
        match command {
            SessionCommand::Ping if self.is_subscriber() => subscriber_ping(request).into(),
            SessionCommand::Ping => ping(request).into(),
            SessionCommand::Echo => Reply::bulk(request.arg(1)).into(),
            SessionCommand::Hello => self.hello(services, request),
            SessionCommand::Auth => self.auth(services, request),
            SessionCommand::Select => self.select(request).into(),
            SessionCommand::Quit => Answer::Last(Reply::Ok),
            SessionCommand::Reset => self.reset(services).into(),
            SessionCommand::Subscribe => self.subscribe(services, request, false),
            SessionCommand::Psubscribe => self.subscribe(services, request, true),
            SessionCommand::Unsubscribe => self.unsubscribe(services, request, false),
            SessionCommand::Punsubscribe => self.unsubscribe(services, request, true),
            SessionCommand::Pubsub => pubsub(services, sub, request).into(),
            SessionCommand::Client => client_command::run(self, services, sub, request),
            SessionCommand::Info => info::run(services, request).into(),
            SessionCommand::Config => config_command::run(services, sub, request).into(),
            SessionCommand::Command => describe_commands(sub, request).into(),
            SessionCommand::Time => admin_commands::time(services).into(),
            SessionCommand::Slowlog => admin_commands::slowlog(services, sub, request).into(),
            SessionCommand::Latency => admin_commands::latency(services, sub, request).into(),
            SessionCommand::Wait => admin_commands::wait(services, request).into(),
            SessionCommand::Raft => raft_command::run(services, sub, request),
            SessionCommand::Readonly => self.readonly(request).into(),
            SessionCommand::Readwrite => {
                self.stale_reads = None;
                Reply::Ok.into()
            }
            SessionCommand::Shutdown => admin_commands::shutdown(services, request),
            SessionCommand::Debug => admin_commands::debug(self, services, request),
            SessionCommand::Multi => self.transaction.begin(self.db).into(),
            SessionCommand::Discard => self.transaction.discard().into(),
            SessionCommand::Unwatch => {
                self.transaction.unwatch();
                Reply::Ok.into()
            }
            SessionCommand::Exec => Reply::error("ERR EXEC without MULTI").into(),
            SessionCommand::Watch => Reply::error("ERR WATCH inside MULTI is not allowed").into(),
        }
    }

    /// Runs a session command among EXEC's, where nothing waits and every command has a reply.
    pub fn run_in_exec(&mut self, services: &Services, request: &Request) -> Reply {
        let found = match gates::find(request) {
            Ok(found) => found,
            Err(refusal) => return refusal,
        };
        match self.run(services, found, request) {
            Answer::Reply(reply) => reply,
            Answer::After(wait, reply) => {
                self.held_back = self.held_back.max(wait);
                reply
            }
            Answer::Nothing => Reply::Ok,
            // The gates let nothing of the kind into a transaction.
            Answer::Later(_) | Answer::Many(_) => {
                Reply::error("ERR Command not allowed inside a transaction")
            }
            Answer::Last(reply) => {
                self.is_closing = true;
                reply
            }
            Answer::Close => {
                self.is_closing = true;
                Reply::Ok
            }
        }
    }

    /// The database that SELECT names.
    pub fn parse_db(&self, word: &[u8]) -> Result<DbIndex, Reply> {
        let number = parse_i64(word).ok_or(CommandError::NotAnInteger).map_err(Reply::from)?;
        if i32::try_from(number).is_err() {
            return Err(Reply::error(
                "ERR value is out of range, value must between -2147483648 and 2147483647",
            ));
        }
        let is_there = |db: &DbIndex| *db < self.config.databases;
        let db = DbIndex::try_from(number).ok().filter(is_there);
        db.ok_or(CommandError::DbOutOfRange).map_err(Reply::from)
    }

    fn select(&mut self, request: &Request) -> Reply {
        match self.parse_db(request.arg(1)) {
            Ok(db) => {
                self.db = db;
                Reply::Ok
            }
            Err(refusal) => refusal,
        }
    }

    fn readonly(&mut self, request: &Request) -> Reply {
        match parse_readonly(request) {
            Ok(stale_reads) => {
                self.stale_reads = Some(stale_reads);
                Reply::Ok
            }
            Err(error) => error.into(),
        }
    }

    fn reset(&mut self, services: &Services) -> Reply {
        self.end_subscriptions(services);
        self.exec_mode = None;
        self.stale_reads = None;
        self.transaction.reset();
        self.db = 0;
        self.protocol = Protocol::Resp2;
        // A reply that was to be skipped is that of RESET.
        if self.replies == Replies::Off {
            self.replies = Replies::On;
        }
        self.is_logged_in = self.config.requirepass.is_none();
        self.client.note_stranger((!self.is_logged_in).then(|| services.clock.monotonic()));
        self.client.is_unevictable.store(false, Ordering::Relaxed);
        self.client.leaves_keys_untouched.store(false, Ordering::Relaxed);
        self.client.take_losses(false);
        self.client.names.lock().name.clear();
        Reply::simple("RESET")
    }

    /// True in RESP2 while the connection is subscribed: then it takes few commands.
    pub fn is_subscriber(&self) -> bool {
        self.protocol == Protocol::Resp2 && !self.subscriptions.is_empty()
    }

    fn subscribe(&mut self, services: &Services, request: &Request, is_pattern: bool) -> Answer {
        let kind = if is_pattern { "psubscribe" } else { "subscribe" };
        let replies = request.args().skip(1).map(|name| {
            let name = Bytes::copy_from_slice(name);
            if services.pubsub.add(&self.client, &name, is_pattern) {
                services.group.tell_lock_changes(|| !services.pubsub.is_empty());
            }
            let known = &mut self.subscriptions;
            let names = if is_pattern { &mut known.patterns } else { &mut known.channels };
            if names.insert(name.clone()) {
                self.client.subscription_bytes.fetch_add(bytes_of_subscription(&name), Ordering::Relaxed);
            }
            let count = Reply::Integer(known.len() as i64);
            Reply::Push(vec![Reply::bulk(kind), Reply::Bulk(name), count])
        });
        let replies = replies.collect();
        self.count_subscriptions();
        Answer::Many(replies)
    }

    fn unsubscribe(&mut self, services: &Services, request: &Request, is_pattern: bool) -> Answer {
        let kind = if is_pattern { "punsubscribe" } else { "unsubscribe" };
        let known = &self.subscriptions;
        let all = if is_pattern { &known.patterns } else { &known.channels };
        let names: Vec<Bytes> = match request.len() {
            1 => all.iter().cloned().collect(),
            _ => request.args().skip(1).map(Bytes::copy_from_slice).collect(),
        };
        let mut replies = Vec::new();
        for name in &names {
            self.end_subscription(services, name, is_pattern);
            let count = Reply::Integer(self.subscriptions.len() as i64);
            replies.push(Reply::Push(vec![Reply::bulk(kind), Reply::Bulk(name.clone()), count]));
        }
        if names.is_empty() {
            let count = Reply::Integer(self.subscriptions.len() as i64);
            replies.push(Reply::Push(vec![Reply::bulk(kind), Reply::Null, count]));
        }
        self.count_subscriptions();
        Answer::Many(replies)
    }

    fn end_subscription(&mut self, services: &Services, name: &Bytes, is_pattern: bool) {
        let known = &mut self.subscriptions;
        let was_there = if is_pattern { &mut known.patterns } else { &mut known.channels }.remove(name);
        if !was_there {
            return;
        }
        self.client.subscription_bytes.fetch_sub(bytes_of_subscription(name), Ordering::Relaxed);
        if services.pubsub.remove(self.client.id, name, is_pattern) {
            services.group.tell_lock_changes(|| !services.pubsub.is_empty());
        }
    }

    /// The connection ends, or begins anew.
    pub fn end_subscriptions(&mut self, services: &Services) {
        let Subscriptions { channels, patterns } = &self.subscriptions;
        let names = channels.iter().map(|name| (name.clone(), false));
        let names: Vec<_> = names.chain(patterns.iter().map(|name| (name.clone(), true))).collect();
        for (name, is_pattern) in names {
            self.end_subscription(services, &name, is_pattern);
        }
        self.count_subscriptions();
    }

    fn count_subscriptions(&self) {
        self.client.channels.store(self.subscriptions.channels.len(), Ordering::Relaxed);
        self.client.patterns.store(self.subscriptions.patterns.len(), Ordering::Relaxed);
    }

    fn auth(&mut self, services: &Services, request: &Request) -> Answer {
        if request.len() > 3 {
            return Reply::from(CommandError::Syntax).into();
        }
        if request.len() == 2 && self.config.requirepass.is_none() {
            return Reply::error(NO_PASSWORD_SET).into();
        }
        let (user, given) = match request.len() {
            2 => (b"default".as_slice(), request.arg(1)),
            _ => (request.arg(1), request.arg(2)),
        };
        self.log_in(services, user, given).err().unwrap_or_else(|| Reply::Ok.into())
    }

    /// The error is what becomes of the answer to a wrong password, which may have to wait.
    fn log_in(&mut self, services: &Services, user: &[u8], given: &[u8]) -> Result<(), Answer> {
        let is_right = is_password(self.config.requirepass.as_deref(), given);
        if user == b"default" && is_right {
            self.is_logged_in = true;
            self.client.note_stranger(None);
            return Ok(());
        }
        let reply = Reply::error(WRONG_PASSWORD);
        Err(match services.note_login_failure(self.client.addr, user, self.config.auth_failures_free) {
            Verdict::After(Millis(0)) => reply.into(),
            Verdict::After(wait) => Answer::After(Duration::from_millis(wait.0), reply),
            Verdict::Close => Answer::Last(reply),
        })
    }

    fn hello(&mut self, services: &Services, request: &Request) -> Answer {
        match self.try_hello(services, request) {
            Ok(reply) => reply.into(),
            Err(refusal) => refusal,
        }
    }

    fn try_hello(&mut self, services: &Services, request: &Request) -> Result<Reply, Answer> {
        let wanted = Hello::parse(request)?;
        if let Some((user, given)) = wanted.login {
            self.log_in(services, user, given)?;
        }
        if self.must_log_in() {
            return Err(Reply::error(HELLO_NEEDS_AUTH).into());
        }
        if let Some(name) = wanted.name {
            client_command::set_name(self, name)?;
        }
        if let Some(protocol) = wanted.protocol {
            self.protocol = protocol;
        }
        Ok(self.greeting())
    }

    fn greeting(&self) -> Reply {
        let version = if self.protocol == Protocol::Resp3 { 3 } else { 2 };
        let id = i64::try_from(self.client.id.0).unwrap_or(i64::MAX);
        let pairs = [
            ("server", Reply::bulk("redis")),
            ("version", Reply::bulk(REDIS_VERSION)),
            ("proto", Reply::Integer(version)),
            ("id", Reply::Integer(id)),
            ("mode", Reply::bulk("standalone")),
            ("role", Reply::bulk("master")),
            ("modules", Reply::Array(Vec::new())),
        ];
        Reply::Map(pairs.into_iter().map(|(name, value)| (Reply::bulk(name), value)).collect())
    }
}

/// Memory that a subscription takes: its name, here and among everybody's, and the trees that hold it.
fn bytes_of_subscription(name: &Bytes) -> usize {
    const TREES_BYTES: usize = 256;
    name.len() + TREES_BYTES
}

/// A session command and its subcommand, in lower case.
struct SessionCall {
    command: SessionCommand,
    sub: &'static str,
}

impl SessionCall {
    fn of(found: Found) -> SessionCall {
        let Execute::Session(command) = found.row.execute else {
            unreachable!("only rows that the session executes are sent here")
        };
        SessionCall { command, sub: found.sub.map_or("", |(_, sub)| sub.name) }
    }
}

/// What HELLO asks for.
#[derive(Debug, Default, PartialEq)]
struct Hello<'a> {
    protocol: Option<Protocol>,
    login: Option<(&'a [u8], &'a [u8])>,
    name: Option<&'a [u8]>,
}

impl Hello<'_> {
    fn parse(request: &Request) -> Result<Hello<'_>, Reply> {
        let mut wanted = Hello::default();
        if let Some(word) = request.get(1) {
            wanted.protocol = match parse_i64(word) {
                Some(2) => Some(Protocol::Resp2),
                Some(3) => Some(Protocol::Resp3),
                Some(_) => return Err(Reply::error("NOPROTO unsupported protocol version")),
                None => {
                    return Err(Reply::error("ERR Protocol version is not an integer or out of range"));
                }
            };
        }
        let mut at = 2;
        while let Some(word) = request.get(at) {
            let left = request.len() - at - 1;
            if eq_ignore_case(word, "auth") && left >= 2 {
                wanted.login = Some((request.arg(at + 1), request.arg(at + 2)));
                at += 3;
            } else if eq_ignore_case(word, "setname") && left >= 1 {
                wanted.name = Some(request.arg(at + 1));
                at += 2;
            } else {
                let word = errors::quoted(word, 128);
                return Err(Reply::error(format!("ERR Syntax error in HELLO option '{word}'")));
            }
        }
        Ok(wanted)
    }
}

/// COMMAND and its subcommands.
fn describe_commands(sub: &str, request: &Request) -> Reply {
    let words: Vec<&[u8]> = request.args().skip(2).collect();
    let described = match sub {
        "count" => Ok(command_docs::count()),
        "info" => Ok(command_docs::info_named_commands(&words)),
        "docs" => Ok(command_docs::docs(&words)),
        "list" => command_docs::list(&words),
        "getkeys" => command_docs::getkeys(&words),
        "help" => Ok(command_docs::help()),
        _ => Ok(command_docs::info_all()),
    };
    described.unwrap_or_else(errors::command_error)
}

fn parse_readonly(request: &Request) -> Result<StaleReads, CommandError> {
    let max_lag = match (request.len(), request.get(1), request.get(2)) {
        (1, ..) => None,
        (3, Some(word), Some(value)) if eq_ignore_case(word, "maxlag") => {
            let millis = parse_i64(value).and_then(|millis| u64::try_from(millis).ok());
            Some(Millis(millis.ok_or(CommandError::NotAnInteger)?))
        }
        _ => return Err(CommandError::Syntax),
    };
    Ok(StaleReads { max_lag })
}

fn ping(request: &Request) -> Reply {
    match request.len() {
        1 => Reply::Simple(Cow::Borrowed("PONG")),
        2 => Reply::bulk(request.arg(1)),
        _ => CommandError::WrongArity("ping".to_owned()).into(),
    }
}

/// PING of a RESP2 connection that is subscribed.
fn subscriber_ping(request: &Request) -> Reply {
    match request.len() {
        1 | 2 => Reply::Array(vec![Reply::bulk("pong"), Reply::bulk(request.get(1).unwrap_or(b""))]),
        _ => CommandError::WrongArity("ping".to_owned()).into(),
    }
}

/// PUBSUB and its subcommands.
fn pubsub(services: &Services, sub: &str, request: &Request) -> Reply {
    match sub {
        "channels" if request.len() > 3 => {
            let word = errors::quoted(request.arg(1), 128);
            let what = "unknown subcommand or wrong number of arguments for";
            Reply::error(format!("ERR {what} '{word}'. Try PUBSUB HELP."))
        }
        "channels" => {
            Reply::Array(services.pubsub.channels(request.get(2)).into_iter().map(Reply::Bulk).collect())
        }
        "numsub" => {
            let count = |channel: &[u8]| Reply::Integer(services.pubsub.subscribers(channel) as i64);
            let pairs = request.args().skip(2).flat_map(|channel| [Reply::bulk(channel), count(channel)]);
            Reply::Array(pairs.collect())
        }
        "numpat" => Reply::Integer(services.pubsub.patterns() as i64),
        _ => client_command::help(PUBSUB_HELP),
    }
}

/// No password lets everybody in. The comparison takes as long for a near miss as for a far one.
fn is_password(password: Option<&str>, given: &[u8]) -> bool {
    password.is_none_or(|password| bool::from(password.as_bytes().ct_eq(given)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(words: &[&[u8]]) -> String {
        let request = Request::from_args(words);
        match Hello::parse(&request) {
            Err(Reply::Error(text)) => text.into_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn hello_takes_a_login_and_a_name() {
        let request = Request::from_args(&[b"HELLO", b"3", b"auth", b"u", b"p", b"SETNAME", b"n"]);
        let wanted = Hello::parse(&request).unwrap();
        assert_eq!(wanted.protocol, Some(Protocol::Resp3));
        assert_eq!(wanted.login, Some((b"u".as_slice(), b"p".as_slice())));
        assert_eq!(wanted.name, Some(b"n".as_slice()));
        assert_eq!(Hello::parse(&Request::from_args(&[b"hello"])).unwrap(), Hello::default());
    }

    #[test]
    fn hello_refuses_in_the_words_of_redis() {
        assert_eq!(refusal(&[b"hello", b"4"]), "NOPROTO unsupported protocol version");
        assert_eq!(refusal(&[b"hello", b"x"]), "ERR Protocol version is not an integer or out of range");
        assert_eq!(refusal(&[b"hello", b"3", b"auth", b"u"]), "ERR Syntax error in HELLO option 'auth'");
        assert_eq!(refusal(&[b"hello", b"3", b"foo"]), "ERR Syntax error in HELLO option 'foo'");
    }

    #[test]
    fn readonly_takes_a_bound() {
        let parsed = |words: &[&[u8]]| parse_readonly(&Request::from_args(words));
        assert_eq!(parsed(&[b"readonly"]), Ok(StaleReads { max_lag: None }));
        let bounded = Ok(StaleReads { max_lag: Some(Millis(1500)) });
        assert_eq!(parsed(&[b"readonly", b"MaxLag", b"1500"]), bounded);
        for (words, error) in [
            (&[&b"readonly"[..], b"maxlag"][..], CommandError::Syntax),
            (&[b"readonly", b"lag", b"1"], CommandError::Syntax),
            (&[b"readonly", b"maxlag", b"1", b"2"], CommandError::Syntax),
            (&[b"readonly", b"maxlag", b"-1"], CommandError::NotAnInteger),
            (&[b"readonly", b"maxlag", b"soon"], CommandError::NotAnInteger),
        ] {
            assert_eq!(parsed(words), Err(error));
        }
    }

    #[test]
    fn a_password_is_compared_as_a_whole() {
        assert!(is_password(None, b"anything"));
        assert!(is_password(Some("secret"), b"secret"));
        assert!(!is_password(Some("secret"), b"secre"));
        assert!(!is_password(Some("secret"), b""));
    }
}
