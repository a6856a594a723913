//! CLIENT: who is connected, under which name, and how to be rid of them.

use std::sync::atomic::Ordering;

use crate::commands::error::CommandError;
use crate::resp::Reply;
use crate::resp::Request;
use crate::resp::arguments::eq_ignore_case;
use crate::resp::arguments::parse_i64;
use crate::server::Services;
use crate::server::clients::ClientHandle;
use crate::server::clients::Paused;
use crate::server::errors;
use crate::server::session::Answer;
use crate::server::session::Replies;
use crate::server::session::Session;
use crate::types::ClientId;
use crate::types::Millis;
use crate::types::Monotonic;

const HELP: &[&str] = &[
    "CLIENT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "EXECMODE (ATOMIC|COMPAT|AUTO)",
    "    Choose whether transactions are all or nothing: AUTO, the default, makes those so that",
    "    contain FENCE, ONCE, or a verb of locks or queues.",
    "GETREDIR",
    "    Return the client ID we are redirecting to when tracking is enabled.",
    "GETNAME",
    "    Return the name of the current connection.",
    "ID",
    "    Return the ID of the current connection.",
    "INFO",
    "    Return information about the current client connection.",
    "KILL <ip:port>",
    "    Kill connection made from <ip:port>.",
    "KILL <option> <value> [<option> <value> [...]]",
    "    Kill connections. Options are:",
    "    * ADDR <ip:port> | LADDR <ip:port> | TYPE (NORMAL|MASTER|REPLICA|PUBSUB)",
    "    * USER <username> | SKIPME (YES|NO) | ID <client-id> | MAXAGE <seconds>",
    "LIST [TYPE (NORMAL|MASTER|REPLICA|PUBSUB)] [ID <client-id> ...]",
    "    Return information about client connections.",
    "NO-EVICT (ON|OFF)",
    "    Protect current client connection from eviction.",
    "NO-TOUCH (ON|OFF)",
    "    Will not touch LRU/LFU stats when this mode is on.",
    "PAUSE <timeout> [WRITE|ALL]",
    "    Suspend all, or just write, clients for <timeout> milliseconds.",
    "REPLY (ON|OFF|SKIP)",
    "    Control the replies sent to the current connection.",
    "SETINFO <option> <value>",
    "    Set client meta attributes. Options are: LIB-NAME, LIB-VER.",
    "SETNAME <name>",
    "    Assign the name <name> to the current connection.",
    "TRACKING (ON|OFF) [REDIRECT <id>] [BCAST] [PREFIX <prefix> [...]]",
    "         [OPTIN] [OPTOUT] [NOLOOP]",
    "    Control server assisted client side caching. This version knows OFF only.",
    "TRACKINGINFO",
    "    Report tracking status for the current connection.",
    "UNBLOCK <clientid> [TIMEOUT|ERROR]",
    "    Unblock the specified blocked client.",
    "UNPAUSE",
    "    Stop the current client pause, resuming traffic.",
    "HELP",
    "    Print this help.",
];

/// A HELP reply: its lines as statuses.
pub fn help(lines: &'static [&'static str]) -> Reply {
    Reply::Array(lines.iter().map(|line| Reply::simple(line)).collect())
}

/// Runs the subcommand `sub`.
pub fn run(session: &mut Session, services: &Services, sub: &str, request: &Request) -> Answer {
    if sub == "reply" {
        return set_replies(session, request);
    }
    match run_plain(session, services, sub, request) {
        Ok(reply) | Err(reply) => Answer::Reply(reply),
    }
}

fn run_plain(
    session: &mut Session,
    services: &Services,
    sub: &str,
    request: &Request,
) -> Result<Reply, Reply> {
    match sub {
        "id" => Ok(Reply::Integer(i64::try_from(session.client.id.0).unwrap_or(i64::MAX))),
        "getname" => {
            let name = session.client.names.lock().name.clone();
            Ok(if name.is_empty() { Reply::Null } else { Reply::text(name) })
        }
        "setname" => set_name(session, request.arg(2)).map(|()| Reply::Ok),
        "setinfo" => set_info(session, request),
        "info" => {
            session.publish();
            Ok(Reply::Verbatim("txt", session.client.describe(services.clock.monotonic()) + "\n"))
        }
        "list" => {
            session.publish();
            list(services, request)
        }
        "kill" => kill(session, services, request),
        "pause" => pause(services, request),
        "unpause" => {
            services.clients.unpause();
            Ok(Reply::Ok)
        }
        "unblock" => unblock(services, request),
        "execmode" => execmode(session, request),
        "no-evict" => switch(request.arg(2), |on| session.client.is_unevictable.store(on, Ordering::Relaxed)),
        "no-touch" => {
            switch(request.arg(2), |on| session.client.leaves_keys_untouched.store(on, Ordering::Relaxed))
        }
        // No connection of this version follows invalidations.
        "getredir" => Ok(Reply::Integer(-1)),
        "tracking" => tracking(request),
        "trackinginfo" => Ok(Reply::Map(vec![
            (Reply::bulk("flags"), Reply::Set(vec![Reply::bulk("off")])),
            (Reply::bulk("redirect"), Reply::Integer(-1)),
            (Reply::bulk("prefixes"), Reply::Array(Vec::new())),
        ])),
        "help" => Ok(help(HELP)),
        _ => Err(Reply::error("ERR this version does not know that CLIENT subcommand")),
    }
}

/// Why a CLIENT command may not stand in a transaction, if it may not: without a reply of its own it would take EXEC's
/// along.
pub fn why_not_queued(request: &Request) -> Option<Reply> {
    let is = |at: usize, word: &str| request.get(at).is_some_and(|given| eq_ignore_case(given, word));
    let is_silent = is(1, "reply") && (is(2, "off") || is(2, "skip"));
    is_silent.then(|| {
        Reply::error(
            "ERR CLIENT REPLY OFF and SKIP are not allowed inside a transaction: send them before MULTI",
        )
    })
}

fn set_replies(session: &mut Session, request: &Request) -> Answer {
    let mode = request.arg(2);
    if eq_ignore_case(mode, "on") {
        session.replies = Replies::On;
        return Reply::Ok.into();
    }
    if eq_ignore_case(mode, "off") {
        session.replies = Replies::Off;
    } else if eq_ignore_case(mode, "skip") {
        if session.replies == Replies::On {
            session.replies = Replies::SkipNext;
        }
    } else {
        return Reply::from(CommandError::Syntax).into();
    }
    Answer::Nothing
}

/// The longest name of a connection or of its library, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// Gives the connection a name; an empty one takes it away. The error is the reply.
pub fn set_name(session: &Session, name: &[u8]) -> Result<(), Reply> {
    session.client.names.lock().name = checked_name("Client names", name)?;
    Ok(())
}

fn set_info(session: &Session, request: &Request) -> Result<Reply, Reply> {
    let (attribute, value) = (request.arg(2), request.arg(3));
    let (is_name, is_version) = (eq_ignore_case(attribute, "lib-name"), eq_ignore_case(attribute, "lib-ver"));
    if !is_name && !is_version {
        let attribute = errors::quoted(attribute, 128);
        return Err(Reply::error(format!("ERR Unrecognized option '{attribute}'")));
    }
    let value = checked_name(if is_name { "lib-name" } else { "lib-ver" }, value)?;
    let mut names = session.client.names.lock();
    if is_name {
        names.library = value;
    } else {
        names.library_version = value;
    }
    Ok(Reply::Ok)
}

/// A name that fits a line of CLIENT LIST; the error is the reply.
fn checked_name(what: &str, name: &[u8]) -> Result<String, Reply> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Reply::error(format!("ERR {what} cannot be longer than {NAME_BYTES_MAX} bytes.")));
    }
    let why = || Reply::error(format!("ERR {what} cannot contain spaces, newlines or special characters."));
    printable(name).ok_or_else(why)
}

/// Text without blanks and control characters, which would break the lines of CLIENT LIST.
fn printable(text: &[u8]) -> Option<String> {
    let is_plain = text.iter().all(|byte| (b'!'..=b'~').contains(byte));
    is_plain.then(|| String::from_utf8_lossy(text).into_owned())
}

fn list(services: &Services, request: &Request) -> Result<Reply, Reply> {
    let wanted = Listed::parse(request)?;
    let now = services.clock.monotonic();
    let mut lines = String::new();
    for client in services.clients.all() {
        if wanted.includes(&client) {
            lines.push_str(&client.describe(now));
            lines.push('\n');
        }
    }
    Ok(Reply::Verbatim("txt", lines))
}

/// Whom CLIENT LIST shows.
#[derive(Debug, PartialEq)]
enum Listed {
    All,
    /// Clients of this type.
    Type(ClientType),
    Ids(Vec<ClientId>),
}

impl Listed {
    fn parse(request: &Request) -> Result<Listed, Reply> {
        let Some(option) = request.get(2) else { return Ok(Listed::All) };
        if eq_ignore_case(option, "type") && request.len() == 4 {
            return Ok(Listed::Type(parse_type(request.arg(3))?));
        }
        if eq_ignore_case(option, "id") && request.len() > 3 {
            let ids = request.args().skip(3).map(|word| parse_id(word).ok_or("ERR Invalid client ID"));
            return ids.collect::<Result<_, _>>().map(Listed::Ids).map_err(Reply::error);
        }
        Err(CommandError::Syntax.into())
    }

    fn includes(&self, client: &ClientHandle) -> bool {
        match self {
            Listed::All => true,
            Listed::Type(kind) => kind.includes(client),
            Listed::Ids(ids) => ids.contains(&client.id),
        }
    }
}

/// What clients are, as CLIENT LIST and CLIENT KILL tell them apart.
#[derive(Debug, Clone, Copy, PartialEq)]
enum ClientType {
    Normal,
    /// Subscribed to something.
    Pubsub,
    /// A kind that no client here is.
    Replication,
}

impl ClientType {
    fn includes(self, client: &ClientHandle) -> bool {
        match self {
            ClientType::Normal => !client.is_subscribed(),
            ClientType::Pubsub => client.is_subscribed(),
            ClientType::Replication => false,
        }
    }
}

fn parse_type(word: &[u8]) -> Result<ClientType, Reply> {
    let is = |name: &str| eq_ignore_case(word, name);
    match () {
        () if is("normal") => Ok(ClientType::Normal),
        () if is("pubsub") => Ok(ClientType::Pubsub),
        () if is("master") || is("replica") || is("slave") => Ok(ClientType::Replication),
        () => Err(Reply::error(format!("ERR Unknown client type '{}'", errors::quoted(word, 128)))),
    }
}

fn parse_id(word: &[u8]) -> Option<ClientId> {
    let id = parse_i64(word).and_then(|id| u64::try_from(id).ok())?;
    (id > 0).then_some(ClientId(id))
}

fn kill(session: &mut Session, services: &Services, request: &Request) -> Result<Reply, Reply> {
    let is_old_form = request.len() == 3;
    let wanted = if is_old_form { Kill::old_form(request.arg(2)) } else { Kill::parse(request)? };
    let now = services.clock.monotonic();
    let mut killed = 0;
    for client in services.clients.all() {
        let is_me = client.id == session.client.id;
        if !wanted.includes(&client, is_me, now) {
            continue;
        }
        killed += 1;
        if is_me {
            session.is_closing = true;
        } else {
            client.kill();
        }
    }
    match (is_old_form, killed) {
        (true, 0) => Err(Reply::error("ERR No such client")),
        (true, _) => Ok(Reply::Ok),
        (false, count) => Ok(Reply::Integer(count)),
    }
}

/// Whom CLIENT KILL closes: all conditions that were given must hold.
#[derive(Debug, Default, PartialEq)]
struct Kill {
    addr: Option<Vec<u8>>,
    laddr: Option<Vec<u8>>,
    id: Option<ClientId>,
    user: Option<Vec<u8>>,
    kind: Option<ClientType>,
    age_seconds_min: Option<u64>,
    skip_me: bool,
}

impl Kill {
    fn old_form(addr: &[u8]) -> Kill {
        Kill { addr: Some(addr.to_vec()), ..Kill::default() }
    }

    fn parse(request: &Request) -> Result<Kill, Reply> {
        let mut kill = Kill { skip_me: true, ..Kill::default() };
        let mut at = 2;
        while at < request.len() {
            let (option, value) = (request.arg(at), request.get(at + 1).ok_or(CommandError::Syntax)?);
            kill.set(option, value)?;
            at += 2;
        }
        Ok(kill)
    }

    fn set(&mut self, option: &[u8], value: &[u8]) -> Result<(), Reply> {
        if eq_ignore_case(option, "id") {
            let id = parse_id(value).ok_or(Reply::error("ERR client-id should be greater than 0"))?;
            self.id = Some(id);
        } else if eq_ignore_case(option, "type") {
            self.kind = Some(parse_type(value)?);
        } else if eq_ignore_case(option, "addr") {
            self.addr = Some(value.to_vec());
        } else if eq_ignore_case(option, "laddr") {
            self.laddr = Some(value.to_vec());
        } else if eq_ignore_case(option, "user") {
            if value != b"default" {
                return Err(Reply::error(format!("ERR No such user '{}'", errors::quoted(value, 128))));
            }
            self.user = Some(value.to_vec());
        } else if eq_ignore_case(option, "maxage") {
            let age = parse_i64(value).and_then(|age| u64::try_from(age).ok()).filter(|age| *age > 0);
            self.age_seconds_min =
                Some(age.ok_or(Reply::error("ERR maxage is not an integer or out of range"))?);
        } else if eq_ignore_case(option, "skipme") {
            self.skip_me = match () {
                () if eq_ignore_case(value, "yes") => true,
                () if eq_ignore_case(value, "no") => false,
                () => return Err(CommandError::Syntax.into()),
            };
        } else {
            return Err(CommandError::Syntax.into());
        }
        Ok(())
    }

    fn includes(&self, client: &ClientHandle, is_me: bool, now: Monotonic) -> bool {
        let is_at = |wanted: &Option<Vec<u8>>, addr: std::net::SocketAddr| {
            wanted.as_ref().is_none_or(|wanted| *wanted == addr.to_string().into_bytes())
        };
        let has_user = |user: &Vec<u8>| client.names.lock().user.as_bytes() == user.as_slice();
        is_at(&self.addr, client.addr)
            && is_at(&self.laddr, client.laddr)
            && self.id.is_none_or(|id| id == client.id)
            && self.kind.is_none_or(|kind| kind.includes(client))
            && self.user.as_ref().is_none_or(has_user)
            && self.age_seconds_min.is_none_or(|age| client.age_seconds(now) >= age)
            && !(self.skip_me && is_me)
    }
}

fn pause(services: &Services, request: &Request) -> Result<Reply, Reply> {
    let length =
        parse_i64(request.arg(2)).ok_or(Reply::error("ERR timeout is not an integer or out of range"))?;
    let length = u64::try_from(length).map_err(|_| Reply::error("ERR timeout is negative"))?;
    let what = match request.get(3) {
        None => Paused::All,
        Some(word) if eq_ignore_case(word, "all") => Paused::All,
        Some(word) if eq_ignore_case(word, "write") => Paused::Writes,
        Some(_) => return Err(Reply::error("ERR CLIENT PAUSE mode must be WRITE or ALL")),
    };
    services.clients.pause(what, services.clock.monotonic(), Millis(length));
    Ok(Reply::Ok)
}

fn unblock(services: &Services, request: &Request) -> Result<Reply, Reply> {
    let id = parse_i64(request.arg(2)).ok_or(CommandError::NotAnInteger)?;
    let with_error = match request.get(3) {
        None => false,
        Some(word) if eq_ignore_case(word, "timeout") => false,
        Some(word) if eq_ignore_case(word, "error") => true,
        Some(_) => return Err(Reply::error("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR")),
    };
    let client = u64::try_from(id).ok().and_then(|id| services.clients.get(ClientId(id)));
    Ok(Reply::Integer(i64::from(client.is_some_and(|client| client.unblock(with_error)))))
}

/// Which rule holds for all transactions of the connection (COMMANDS.md 2.1).
fn execmode(session: &mut Session, request: &Request) -> Result<Reply, Reply> {
    let word = request.arg(2);
    session.exec_mode = if eq_ignore_case(word, "atomic") {
        Some(true)
    } else if eq_ignore_case(word, "compat") {
        Some(false)
    } else if eq_ignore_case(word, "auto") {
        None
    } else {
        return Err(Reply::error("ERR CLIENT EXECMODE must be ATOMIC, COMPAT or AUTO"));
    };
    Ok(Reply::Ok)
}

/// Reads what Redis reads, and switches nothing: it is off.
fn tracking(request: &Request) -> Result<Reply, Reply> {
    let mut words = request.args().skip(3);
    while let Some(word) = words.next() {
        let is = |name: &str| eq_ignore_case(word, name);
        if is("redirect") || is("prefix") {
            let value = words.next().ok_or(CommandError::Syntax)?;
            if is("redirect") {
                parse_i64(value).ok_or(CommandError::NotAnInteger)?;
            }
        } else if !["bcast", "optin", "optout", "noloop"].iter().any(|name| is(name)) {
            return Err(CommandError::Syntax.into());
        }
    }
    let mode = request.arg(2);
    if eq_ignore_case(mode, "on") {
        return Err(Reply::error("ERR CLIENT TRACKING ON is not supported by this version yet"));
    }
    switch(mode, |_| {})
}

fn switch(word: &[u8], set: impl FnOnce(bool)) -> Result<Reply, Reply> {
    if eq_ignore_case(word, "on") {
        set(true);
    } else if eq_ignore_case(word, "off") {
        set(false);
    } else {
        return Err(CommandError::Syntax.into());
    }
    Ok(Reply::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::clients::Clients;
    use std::net::SocketAddr;

    fn request(words: &str) -> Request {
        let words: Vec<&[u8]> = words.split(' ').map(str::as_bytes).collect();
        Request::from_args(&words)
    }

    fn killed(words: &str) -> Vec<u64> {
        let clients = Clients::new();
        let local = SocketAddr::from(([127, 0, 0, 1], 6379));
        for port in [1001, 1002, 1003] {
            let since = Monotonic(u64::from(port - 1001) * 10_000_000_000);
            clients.add(SocketAddr::from(([127, 0, 0, 1], port)), local, 5, since);
        }
        let kill = Kill::parse(&request(words)).unwrap();
        let is_hit = |client: &ClientHandle| {
            kill.includes(client, client.id == ClientId(1), Monotonic(20_000_000_000))
        };
        clients.all().iter().filter(|client| is_hit(client)).map(|client| client.id.0).collect()
    }

    #[test]
    fn kill_takes_all_conditions_together() {
        let cases: &[(&str, &[u64])] = &[
            ("client kill id 2", &[2]),
            ("client kill id 1", &[]),
            ("client kill id 1 skipme no", &[1]),
            ("client kill addr 127.0.0.1:1003", &[3]),
            ("client kill laddr 127.0.0.1:6379", &[2, 3]),
            ("client kill laddr 127.0.0.1:6379 skipme no", &[1, 2, 3]),
            ("client kill type pubsub skipme no", &[]),
            ("client kill type normal", &[2, 3]),
            ("client kill user default id 3", &[3]),
            ("client kill maxage 10 skipme no", &[1, 2]),
            ("client kill id 2 addr 127.0.0.1:1003", &[]),
        ];
        for (words, expected) in cases {
            assert_eq!(killed(words), *expected, "{words}");
        }
    }

    #[test]
    fn kill_refuses_in_the_words_of_redis() {
        let cases = [
            ("client kill id 0", "ERR client-id should be greater than 0"),
            ("client kill type foo", "ERR Unknown client type 'foo'"),
            ("client kill user nobody", "ERR No such user 'nobody'"),
            ("client kill id 1 addr", "ERR syntax error"),
            ("client kill skipme maybe", "ERR syntax error"),
            ("client kill foo bar", "ERR syntax error"),
        ];
        for (words, text) in cases {
            assert_eq!(Kill::parse(&request(words)), Err(Reply::error(text)), "{words}");
        }
    }

    #[test]
    fn list_filters_by_type_and_id() {
        assert_eq!(Listed::parse(&request("client list")), Ok(Listed::All));
        assert_eq!(Listed::parse(&request("client list type normal")), Ok(Listed::Type(ClientType::Normal)));
        assert_eq!(
            Listed::parse(&request("client list type replica")),
            Ok(Listed::Type(ClientType::Replication))
        );
        let ids = Listed::Ids(vec![ClientId(1), ClientId(7)]);
        assert_eq!(Listed::parse(&request("client list id 1 7")), Ok(ids));
        assert_eq!(Listed::parse(&request("client list id x")), Err(Reply::error("ERR Invalid client ID")));
        assert_eq!(Listed::parse(&request("client list foo")), Err(Reply::error("ERR syntax error")));
    }

    #[test]
    fn tracking_is_off_and_stays_so() {
        let syntax = || Err(Reply::error("ERR syntax error"));
        assert_eq!(tracking(&request("client tracking off")), Ok(Reply::Ok));
        assert_eq!(tracking(&request("client tracking OFF BCAST prefix a")), Ok(Reply::Ok));
        let refused = Reply::error("ERR CLIENT TRACKING ON is not supported by this version yet");
        assert_eq!(tracking(&request("client tracking on redirect 5")), Err(refused));
        for words in ["maybe", "off foo", "off prefix", "on redirect"] {
            assert_eq!(tracking(&request(&format!("client tracking {words}"))), syntax(), "{words}");
        }
        let not_integer = Err(Reply::error("ERR value is not an integer or out of range"));
        assert_eq!(tracking(&request("client tracking on redirect x")), not_integer);
    }

    #[test]
    fn names_have_no_blanks() {
        assert_eq!(printable(b"worker-1"), Some("worker-1".into()));
        assert_eq!(printable(b"a b"), None);
        assert_eq!(printable(b""), Some(String::new()));
    }
}
