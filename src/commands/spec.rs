//! What is known about a command, in one row (DESIGN.md D1).
//!
//! COMMAND, COMMAND DOCS, arity errors, key extraction, ACL categories, routing and the README's table
//! are all read from here; nothing else knows a command's name.

use crate::commands::error::CommandError;
use crate::resp::Reply;
use crate::state::DbIndex;
use crate::state::State;
use crate::state::notices::Origin;
use crate::types::ClusterTime;
use crate::types::WallMillis;
use crate::types::bounds::Bounds;

/// The words of a command, its name first.
pub type Args<'a> = &'a [&'a [u8]];

/// What a command answers; an error reply for `Err`.
pub type CommandResult = Result<Reply, CommandError>;

/// What a read sees: the state as it stands, shared.
#[derive(Clone, Copy)]
pub struct ReadContext<'a> {
    pub state: &'a State,
    /// The database the connection has selected.
    pub db: DbIndex,
    /// The ACL user ("default" when nobody logged in).
    pub user: &'a [u8],
    /// Cluster time: the entry's inside apply, the leader's clock outside.
    pub now: ClusterTime,
    /// Wall time: the entry's stamp inside apply.
    pub wall: WallMillis,
    /// For answers that want chance (RANDOMKEY): the entry's inside apply, so that replicas agree; else the connection's own.
    pub seed: u64,
    /// How large the reply may become.
    pub bounds: Bounds,
}

/// What a write sees inside apply: the state to change.
pub struct WriteContext<'a> {
    pub state: &'a mut State,
    pub db: DbIndex,
    pub user: &'a [u8],
    /// The entry's cluster time.
    pub now: ClusterTime,
    /// The entry's wall stamp: for turning absolute expiries into remaining time, and for nothing else.
    pub wall: WallMillis,
    /// Where the command came from.
    pub origin: &'a Origin,
    /// It is one of a transaction's, which never waits.
    pub in_transaction: bool,
    /// How large values and the reply may become.
    pub bounds: Bounds,
    /// How large a reply may become that comes when the client has waited; this entry has no part in that.
    pub reply_later: usize,
}

/// How a command runs.
#[derive(Clone, Copy)]
pub enum Execute {
    /// On a shared borrow of the state: on the connection's own task, or inside a transaction's apply.
    Read(fn(&ReadContext<'_>, Args<'_>) -> CommandResult),
    /// Inside apply, on every replica.
    Write(fn(&mut WriteContext<'_>, Args<'_>) -> CommandResult),
    /// By the connection itself; it needs nothing of the replicated state.
    Session(SessionCommand),
}

/// The commands that the server layer answers itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionCommand {
    Ping,
    Echo,
    Hello,
    Auth,
    Select,
    Quit,
    Reset,
    Client,
    Info,
    Config,
    Command,
    Time,
    Slowlog,
    Latency,
    Wait,
    Raft,
    Readonly,
    Readwrite,
    Shutdown,
    Debug,
    Multi,
    Exec,
    Discard,
    Watch,
    Unwatch,
    Subscribe,
    Unsubscribe,
    Psubscribe,
    Punsubscribe,
    Pubsub,
}

/// What a container without a known subcommand would run; the gates let nobody so far.
pub fn container(_: &ReadContext<'_>, _: Args<'_>) -> CommandResult {
    Err(CommandError::Syntax)
}

/// Properties of a command, as Redis's command flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flags(pub u32);

impl Flags {
    pub const NONE: Flags = Flags(0);
    pub const WRITE: Flags = Flags(1);
    pub const READONLY: Flags = Flags(1 << 1);
    pub const DENYOOM: Flags = Flags(1 << 2);
    pub const ADMIN: Flags = Flags(1 << 3);
    pub const PUBSUB: Flags = Flags(1 << 4);
    pub const NOSCRIPT: Flags = Flags(1 << 5);
    pub const BLOCKING: Flags = Flags(1 << 6);
    pub const LOADING: Flags = Flags(1 << 7);
    pub const STALE: Flags = Flags(1 << 8);
    pub const FAST: Flags = Flags(1 << 9);
    pub const NO_AUTH: Flags = Flags(1 << 10);
    pub const NO_MULTI: Flags = Flags(1 << 11);
    pub const MOVABLE_KEYS: Flags = Flags(1 << 12);
    pub const ALLOW_BUSY: Flags = Flags(1 << 13);
    /// The log says which client sent it.
    pub const ORIGIN: Flags = Flags(1 << 14);
    /// Its reply hands out locks, to the owner that stands behind the last key.
    pub const HANDS_OUT_LOCKS: Flags = Flags(1 << 20);
    /// Its reply hands out messages.
    pub const HANDS_OUT_MESSAGES: Flags = Flags(1 << 21);
    /// What it answers when there is nothing is a null array, since it answers with an array.
    pub const ANSWERS_ARRAY: Flags = Flags(1 << 22);
    /// It gives the transaction a name, as its first command.
    pub const NAMES_TRANSACTION: Flags = Flags(1 << 23);
    /// Answers with what is stored, which may be a million times as long as the request (see `weights`).
    pub const VALUES: Flags = Flags(1 << 28);
    /// Makes or moves a value that is not in the request.
    pub const COPIES: Flags = Flags(1 << 29);
    /// Looks at keys, locks or messages that the request does not name.
    pub const WALKS: Flags = Flags(1 << 30);

    /// Both sets together.
    #[must_use]
    pub const fn and(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }

    /// True when every flag of `other` is set.
    #[must_use]
    pub const fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// True when one of the flags of `other` is set.
    #[must_use]
    pub const fn has_any(self, other: Flags) -> bool {
        self.0 & other.0 != 0
    }
}

/// ACL categories (`@string`, `@lock` …); `@read`, `@write`, `@fast`, `@slow`, `@admin`, `@dangerous`,
/// `@blocking` also follow from the flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Categories(pub u32);

impl Categories {
    pub const NONE: Categories = Categories(0);
    pub const KEYSPACE: Categories = Categories(1);
    pub const STRING: Categories = Categories(1 << 1);
    pub const CONNECTION: Categories = Categories(1 << 2);
    pub const TRANSACTION: Categories = Categories(1 << 3);
    pub const DANGEROUS: Categories = Categories(1 << 4);
    pub const LOCK: Categories = Categories(1 << 5);
    pub const QUEUE: Categories = Categories(1 << 6);
    pub const CACHE: Categories = Categories(1 << 7);
    pub const ADMIN: Categories = Categories(1 << 8);

    /// Both sets together.
    #[must_use]
    pub const fn and(self, other: Categories) -> Categories {
        Categories(self.0 | other.0)
    }

    /// True when every category of `other` is in the set.
    #[must_use]
    pub const fn has(self, other: Categories) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Where a command's keys stand among its words (the name is word 0).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeySpec {
    /// No key.
    None,
    /// `first`, then every `step`-th word up to `last`; a negative `last` counts from the end (-1 is the last word).
    Range { first: usize, last: isize, step: usize },
    /// A count at word `at`, then that many keys.
    NumKeys { at: usize },
    /// Every word after this keyword (QPOP … FROM queue [queue …]).
    Keyword(&'static str),
    /// A count after this keyword (LOCKEXTEND … KEYS numkeys key …), looked for from word `from` on, since a word
    /// before may read the same; the keyword may be absent.
    KeywordNumKeys { word: &'static str, from: usize },
    /// One key at word `at`, and the one behind this keyword from word `from` on, if that is there
    /// (QREDRIVE queue … TO queue).
    OneAndAfter { at: usize, word: &'static str, from: usize },
}

impl KeySpec {
    /// One key at word `at`.
    #[must_use]
    pub const fn one(at: usize) -> KeySpec {
        KeySpec::Range { first: at, last: at as isize, step: 1 }
    }

    /// The positions of the keys among `args`; positions beyond the words are left out.
    pub fn positions(&self, args: Args<'_>) -> smallvec::SmallVec<[usize; 4]> {
        let count = args.len();
        let numbered = |at: usize| {
            let wanted = args.get(at).and_then(|word| crate::resp::arguments::parse_i64(word)).unwrap_or(0);
            let wanted = usize::try_from(wanted).unwrap_or(0).min(count.saturating_sub(at + 1));
            (at + 1..at + 1 + wanted).collect()
        };
        let find = |word: &str, from: usize| {
            let is_word = |arg: &&[u8]| arg.eq_ignore_ascii_case(word.as_bytes());
            args.iter().skip(from).position(is_word).map(|at| at + from)
        };
        match *self {
            KeySpec::None => smallvec::SmallVec::new(),
            KeySpec::Range { first, last, step } => {
                let last = if last < 0 { count.saturating_sub(last.unsigned_abs()) } else { last as usize };
                (first..=last.min(count.saturating_sub(1))).step_by(step.max(1)).collect()
            }
            KeySpec::NumKeys { at } => numbered(at),
            KeySpec::Keyword(word) => {
                find(word, 1).map_or_else(smallvec::SmallVec::new, |at| (at + 1..count).collect())
            }
            KeySpec::OneAndAfter { at, word, from } => {
                let is_word = |arg: &&[u8]| arg.eq_ignore_ascii_case(word.as_bytes());
                let behind = args.iter().skip(from).position(is_word).map(|place| place + from + 1);
                [Some(at), behind].into_iter().flatten().filter(|at| *at < count).collect()
            }
            KeySpec::KeywordNumKeys { word, from } => {
                find(word, from).map_or_else(smallvec::SmallVec::new, |at| numbered(at + 1))
            }
        }
    }
}

/// The family a command is listed under in COMMAND DOCS and the README.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    String,
    Generic,
    Connection,
    Server,
    Transactions,
    Pubsub,
    Locks,
    Queues,
}

impl Group {
    /// As COMMAND DOCS names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Group::String => "string",
            Group::Generic => "generic",
            Group::Connection => "connection",
            Group::Server => "server",
            Group::Transactions => "transactions",
            Group::Pubsub => "pubsub",
            Group::Locks => "locks",
            Group::Queues => "queues",
        }
    }
}

/// Everything that is known about a command.
pub struct CommandSpec {
    /// Lower case; a subcommand's is only its own word ("get" of CONFIG GET).
    pub name: &'static str,
    /// In Redis's documentation syntax, with the name.
    pub syntax: &'static str,
    pub group: Group,
    /// The Holdfast version that brought it.
    pub since: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// As Redis documents it ("O(1)").
    pub complexity: &'static str,
    /// Number of words with the name; negative: at least that many.
    pub arity: i32,
    pub flags: Flags,
    pub keys: KeySpec,
    pub acl: Categories,
    pub execute: Execute,
    /// CONFIG GET, CLIENT LIST …: rows of their own; they run through the parent's `execute`.
    pub subcommands: &'static [CommandSpec],
}

impl CommandSpec {
    /// True when `words` (name included) is a legal number of words.
    #[must_use]
    pub fn arity_allows(&self, words: usize) -> bool {
        let wanted = self.arity.unsigned_abs() as usize;
        if self.arity < 0 { words >= wanted } else { words == wanted }
    }

    /// True for a write that takes data away, or that is needed to do so: a message is acknowledged by the receipt that
    /// QPOP gave. These run on a full disk.
    #[must_use]
    pub fn is_deletion(&self) -> bool {
        const NAMES: [&str; 13] = [
            "del", "unlink", "delex", "getdel", "flushdb", "flushall", "unlock", "release", "kill", "qpop",
            "qack", "qnack", "qdel",
        ];
        NAMES.contains(&self.name)
    }

    /// True when the command goes through the log.
    #[must_use]
    pub fn is_write(&self) -> bool {
        matches!(self.execute, Execute::Write(_))
    }
}
