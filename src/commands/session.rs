//! The rows of the commands that a connection answers itself; the server layer has their functions.
//!
//! They are here so that one table knows every command (DESIGN.md D1): arity errors, COMMAND DOCS and ACL
//! categories make no difference between a command that needs the replicated state and one that does not.

use crate::commands::spec::Categories;
use crate::commands::spec::CommandSpec;
use crate::commands::spec::Execute;
use crate::commands::spec::Flags;
use crate::commands::spec::Group;
use crate::commands::spec::KeySpec;
use crate::commands::spec::SessionCommand;

/// Also while data is loaded and while no leader is known.
const ANYTIME: Flags = Flags::LOADING.and(Flags::STALE);
const ANYTIME_FAST: Flags = ANYTIME.and(Flags::FAST);
const CONNECTION: Flags = ANYTIME.and(Flags::NOSCRIPT);
const ADMIN: Flags = CONNECTION.and(Flags::ADMIN);
const ADMIN_ANYWHERE: Flags = ANYTIME.and(Flags::ADMIN);
const TRANSACTION: Flags = CONNECTION.and(Flags::FAST).and(Flags::ALLOW_BUSY);
/// Before a login, too.
const HANDSHAKE: Flags = TRANSACTION.and(Flags::NO_AUTH);

const fn row(
    name: &'static str,
    syntax: &'static str,
    summary: &'static str,
    arity: i32,
    flags: Flags,
    command: SessionCommand,
) -> CommandSpec {
    CommandSpec {
        name,
        syntax,
        group: Group::Server,
        since: "0.1.0",
        summary,
        complexity: "O(1)",
        arity,
        flags,
        keys: KeySpec::None,
        acl: Categories::NONE,
        execute: Execute::Session(command),
        subcommands: &[],
    }
}

const fn channels(
    name: &'static str,
    syntax: &'static str,
    summary: &'static str,
    arity: i32,
    command: SessionCommand,
) -> CommandSpec {
    CommandSpec {
        group: Group::Pubsub,
        complexity: "O(N) with N being the number of channels.",
        ..row(name, syntax, summary, arity, CONNECTION.and(Flags::PUBSUB).and(Flags::NO_MULTI), command)
    }
}

const fn pubsub(name: &'static str, syntax: &'static str, summary: &'static str, arity: i32) -> CommandSpec {
    CommandSpec {
        group: Group::Pubsub,
        ..row(name, syntax, summary, arity, ANYTIME.and(Flags::PUBSUB), SessionCommand::Pubsub)
    }
}

/// The commands that need nothing of the replicated state.
pub static ROWS: &[CommandSpec] = &[
    channels(
        "subscribe",
        "SUBSCRIBE channel [channel ...]",
        "Sends the connection what is published on channels, as __lock__:key tells of a lock.",
        -2,
        SessionCommand::Subscribe,
    ),
    channels(
        "psubscribe",
        "PSUBSCRIBE pattern [pattern ...]",
        "Sends the connection what is published on channels that match.",
        -2,
        SessionCommand::Psubscribe,
    ),
    channels(
        "unsubscribe",
        "UNSUBSCRIBE [channel [channel ...]]",
        "Ends subscriptions to channels, all or the named ones.",
        -1,
        SessionCommand::Unsubscribe,
    ),
    channels(
        "punsubscribe",
        "PUNSUBSCRIBE [pattern [pattern ...]]",
        "Ends subscriptions to patterns, all or the named ones.",
        -1,
        SessionCommand::Punsubscribe,
    ),
    CommandSpec {
        complexity: "Depends on subcommand.",
        subcommands: &[
            pubsub(
                "channels",
                "PUBSUB CHANNELS [pattern]",
                "Returns the channels of this node with subscribers.",
                -2,
            ),
            pubsub(
                "numsub",
                "PUBSUB NUMSUB [channel [channel ...]]",
                "Counts this node's subscribers of channels.",
                -2,
            ),
            pubsub("numpat", "PUBSUB NUMPAT", "Counts the patterns subscribed to on this node.", 2),
            pubsub("help", "PUBSUB HELP", "Lists the subcommands.", 2),
        ],
        ..pubsub("pubsub", "PUBSUB", "A container for commands about subscriptions.", -2)
    },
    CommandSpec {
        group: Group::Connection,
        acl: Categories::CONNECTION,
        ..row(
            "ping",
            "PING [message]",
            "Answers PONG, or the message.",
            -1,
            Flags::FAST,
            SessionCommand::Ping,
        )
    },
    CommandSpec {
        group: Group::Connection,
        acl: Categories::CONNECTION,
        ..row("echo", "ECHO message", "Answers the message.", 2, ANYTIME_FAST, SessionCommand::Echo)
    },
    CommandSpec {
        group: Group::Connection,
        acl: Categories::CONNECTION,
        ..row(
            "hello",
            "HELLO [protover [AUTH username password] [SETNAME clientname]]",
            "Chooses the protocol, logs in, and tells about the server.",
            -1,
            HANDSHAKE,
            SessionCommand::Hello,
        )
    },
    CommandSpec {
        group: Group::Connection,
        complexity: "O(N) where N is the number of passwords of the user.",
        acl: Categories::CONNECTION,
        ..row(
            "auth",
            "AUTH [username] password",
            "Logs a connection in.",
            -2,
            HANDSHAKE,
            SessionCommand::Auth,
        )
    },
    CommandSpec {
        group: Group::Connection,
        acl: Categories::CONNECTION,
        ..row(
            "select",
            "SELECT index",
            "Chooses the connection's database.",
            2,
            ANYTIME_FAST,
            SessionCommand::Select,
        )
    },
    CommandSpec {
        group: Group::Connection,
        acl: Categories::CONNECTION,
        ..row("quit", "QUIT", "Closes the connection.", -1, HANDSHAKE, SessionCommand::Quit)
    },
    CommandSpec {
        group: Group::Connection,
        acl: Categories::CONNECTION,
        ..row(
            "reset",
            "RESET",
            "Puts the connection back to how it began.",
            1,
            HANDSHAKE,
            SessionCommand::Reset,
        )
    },
    CommandSpec {
        group: Group::Connection,
        acl: Categories::CONNECTION,
        ..row(
            "readonly",
            "READONLY [MAXLAG milliseconds]",
            "Lets this node answer the connection's reads from what it has applied, which may be old.",
            -1,
            ANYTIME_FAST,
            SessionCommand::Readonly,
        )
    },
    CommandSpec {
        group: Group::Connection,
        acl: Categories::CONNECTION,
        ..row(
            "readwrite",
            "READWRITE",
            "Ends READONLY: reads see every write that was answered before them.",
            1,
            ANYTIME_FAST,
            SessionCommand::Readwrite,
        )
    },
    CommandSpec {
        group: Group::Connection,
        complexity: "Depends on subcommand.",
        subcommands: CLIENT_SUBCOMMANDS,
        ..row(
            "client",
            "CLIENT",
            "Looks at connections and steers them.",
            -2,
            Flags::NONE,
            SessionCommand::Client,
        )
    },
    CommandSpec {
        acl: Categories::DANGEROUS,
        ..row(
            "info",
            "INFO [section [section ...]]",
            "Returns numbers about the server.",
            -1,
            ANYTIME,
            SessionCommand::Info,
        )
    },
    CommandSpec {
        complexity: "Depends on subcommand.",
        subcommands: CONFIG_SUBCOMMANDS,
        ..row("config", "CONFIG", "Reads and changes directives.", -2, Flags::NONE, SessionCommand::Config)
    },
    CommandSpec {
        complexity: "O(N) where N is the number of commands.",
        acl: Categories::CONNECTION,
        subcommands: COMMAND_SUBCOMMANDS,
        ..row("command", "COMMAND", "Describes all commands.", -1, ANYTIME, SessionCommand::Command)
    },
    row("time", "TIME", "Returns the server's wall-clock time.", 1, ANYTIME_FAST, SessionCommand::Time),
    CommandSpec {
        complexity: "Depends on subcommand.",
        subcommands: SLOWLOG_SUBCOMMANDS,
        ..row(
            "slowlog",
            "SLOWLOG",
            "Looks at the slowest commands.",
            -2,
            Flags::NONE,
            SessionCommand::Slowlog,
        )
    },
    CommandSpec {
        complexity: "Depends on subcommand.",
        subcommands: LATENCY_SUBCOMMANDS,
        ..row("latency", "LATENCY", "Looks at latency spikes.", -2, Flags::NONE, SessionCommand::Latency)
    },
    CommandSpec {
        group: Group::Generic,
        acl: Categories::CONNECTION,
        ..row(
            "wait",
            "WAIT numreplicas timeout",
            "Answers at once: what was answered before is on a majority of the nodes already.",
            3,
            Flags::NOSCRIPT,
            SessionCommand::Wait,
        )
    },
    CommandSpec {
        complexity: "Depends on subcommand.",
        subcommands: RAFT_SUBCOMMANDS,
        ..row(
            "raft",
            "RAFT",
            "Looks at the nodes of the cluster and at who leads, and steers them.",
            -2,
            Flags::NONE,
            SessionCommand::Raft,
        )
    },
    row(
        "shutdown",
        "SHUTDOWN [NOSAVE | SAVE] [NOW] [FORCE] [ABORT]",
        "Stops the server.",
        -1,
        ADMIN.and(Flags::ALLOW_BUSY).and(Flags::NO_MULTI),
        SessionCommand::Shutdown,
    ),
    CommandSpec {
        complexity: "Depends on subcommand.",
        ..row(
            "debug",
            "DEBUG subcommand [argument [argument ...]]",
            "Helps with tests of the server.",
            -2,
            ADMIN,
            SessionCommand::Debug,
        )
    },
    CommandSpec {
        group: Group::Transactions,
        acl: Categories::TRANSACTION,
        ..row("multi", "MULTI", "Begins a transaction.", 1, TRANSACTION, SessionCommand::Multi)
    },
    CommandSpec {
        group: Group::Transactions,
        complexity: "Depends on the commands in the transaction.",
        acl: Categories::TRANSACTION,
        ..row(
            "exec",
            "EXEC",
            "Runs the commands of the transaction, all at once.",
            1,
            CONNECTION,
            SessionCommand::Exec,
        )
    },
    CommandSpec {
        group: Group::Transactions,
        complexity: "O(N) where N is the number of commands.",
        acl: Categories::TRANSACTION,
        ..row(
            "discard",
            "DISCARD",
            "Drops the commands of the transaction.",
            1,
            TRANSACTION,
            SessionCommand::Discard,
        )
    },
    CommandSpec {
        group: Group::Transactions,
        complexity: "O(1) for every key.",
        acl: Categories::TRANSACTION,
        keys: KeySpec::Range { first: 1, last: -1, step: 1 },
        ..row(
            "watch",
            "WATCH key [key ...]",
            "Lets the next transaction run only if these keys do not change before it.",
            -2,
            TRANSACTION,
            SessionCommand::Watch,
        )
    },
    CommandSpec {
        group: Group::Transactions,
        acl: Categories::TRANSACTION,
        ..row("unwatch", "UNWATCH", "Forgets the watched keys.", 1, TRANSACTION, SessionCommand::Unwatch)
    },
];

/// A subcommand of CLIENT that looks at the connection alone.
const fn client(name: &'static str, syntax: &'static str, summary: &'static str, arity: i32) -> CommandSpec {
    CommandSpec {
        group: Group::Connection,
        acl: Categories::CONNECTION,
        ..row(name, syntax, summary, arity, CONNECTION, SessionCommand::Client)
    }
}

const CLIENT_SUBCOMMANDS: &[CommandSpec] = &[
    client("id", "CLIENT ID", "Returns the connection's number.", 2),
    client("getname", "CLIENT GETNAME", "Returns the connection's name.", 2),
    client("setname", "CLIENT SETNAME connection-name", "Names the connection.", 3),
    client(
        "setinfo",
        "CLIENT SETINFO <LIB-NAME libname | LIB-VER libver>",
        "Records which client library the connection uses.",
        4,
    ),
    client("info", "CLIENT INFO", "Describes the connection.", 2),
    CommandSpec {
        group: Group::Connection,
        complexity: "O(N) where N is the number of connections.",
        acl: Categories::CONNECTION,
        ..row(
            "list",
            "CLIENT LIST [TYPE <NORMAL | MASTER | REPLICA | PUBSUB>] [ID client-id [client-id ...]]",
            "Lists the connections.",
            -2,
            ADMIN,
            SessionCommand::Client,
        )
    },
    CommandSpec {
        group: Group::Connection,
        complexity: "O(N) where N is the number of connections.",
        acl: Categories::CONNECTION,
        ..row(
            "kill",
            "CLIENT KILL <ip:port | filter value [filter value ...]>",
            "Closes connections.",
            -3,
            ADMIN,
            SessionCommand::Client,
        )
    },
    CommandSpec {
        group: Group::Connection,
        acl: Categories::CONNECTION,
        ..row(
            "pause",
            "CLIENT PAUSE timeout [WRITE | ALL]",
            "Holds commands back for a while.",
            -3,
            ADMIN,
            SessionCommand::Client,
        )
    },
    CommandSpec {
        group: Group::Connection,
        complexity: "O(N) where N is the number of connections.",
        acl: Categories::CONNECTION,
        ..row("unpause", "CLIENT UNPAUSE", "Ends CLIENT PAUSE.", 2, ADMIN, SessionCommand::Client)
    },
    CommandSpec {
        group: Group::Connection,
        acl: Categories::CONNECTION,
        ..row(
            "unblock",
            "CLIENT UNBLOCK client-id [TIMEOUT | ERROR]",
            "Ends another connection's wait.",
            -3,
            ADMIN,
            SessionCommand::Client,
        )
    },
    client(
        "execmode",
        "CLIENT EXECMODE <ATOMIC | COMPAT | AUTO>",
        "Chooses whether the connection's transactions are all or nothing.",
        3,
    ),
    client("reply", "CLIENT REPLY <ON | OFF | SKIP>", "Chooses whether commands are answered.", 3),
    CommandSpec {
        group: Group::Connection,
        acl: Categories::CONNECTION,
        ..row(
            "no-evict",
            "CLIENT NO-EVICT <ON | OFF>",
            "Keeps the connection when memory is short.",
            3,
            ADMIN,
            SessionCommand::Client,
        )
    },
    client(
        "no-touch",
        "CLIENT NO-TOUCH <ON | OFF>",
        "Keeps the connection's reads out of the eviction statistics.",
        3,
    ),
    client(
        "tracking",
        "CLIENT TRACKING <ON | OFF> [REDIRECT client-id] [PREFIX prefix [PREFIX prefix ...]] [BCAST] [OPTIN] [OPTOUT] [NOLOOP]",
        "Switches the invalidation of what the client caches; only OFF in this version.",
        -3,
    ),
    client("trackinginfo", "CLIENT TRACKINGINFO", "Tells whether invalidations are sent.", 2),
    client("getredir", "CLIENT GETREDIR", "Returns where the connection's invalidations go.", 2),
    CommandSpec {
        group: Group::Connection,
        acl: Categories::CONNECTION,
        ..row("help", "CLIENT HELP", "Lists the subcommands.", 2, ANYTIME, SessionCommand::Client)
    },
];

const CONFIG_SUBCOMMANDS: &[CommandSpec] = &[
    CommandSpec {
        complexity: "O(N) where N is the number of directives.",
        ..row(
            "get",
            "CONFIG GET parameter [parameter ...]",
            "Returns directives by pattern.",
            -3,
            ADMIN,
            SessionCommand::Config,
        )
    },
    CommandSpec {
        complexity: "O(N) where N is the number of directives.",
        ..row(
            "set",
            "CONFIG SET parameter value [parameter value ...]",
            "Changes directives.",
            -4,
            ADMIN,
            SessionCommand::Config,
        )
    },
    row(
        "rewrite",
        "CONFIG REWRITE",
        "Writes the directives back to the configuration file.",
        2,
        ADMIN,
        SessionCommand::Config,
    ),
    row(
        "resetstat",
        "CONFIG RESETSTAT",
        "Sets the counters of INFO to zero.",
        2,
        ADMIN,
        SessionCommand::Config,
    ),
    row("help", "CONFIG HELP", "Lists the subcommands.", 2, ANYTIME, SessionCommand::Config),
];

const COMMAND_SUBCOMMANDS: &[CommandSpec] = &[
    CommandSpec {
        acl: Categories::CONNECTION,
        ..row(
            "count",
            "COMMAND COUNT",
            "Returns the number of commands.",
            2,
            ANYTIME,
            SessionCommand::Command,
        )
    },
    CommandSpec {
        complexity: "O(N) where N is the number of commands.",
        acl: Categories::CONNECTION,
        ..row(
            "info",
            "COMMAND INFO [command-name [command-name ...]]",
            "Describes commands for client libraries.",
            -2,
            ANYTIME,
            SessionCommand::Command,
        )
    },
    CommandSpec {
        complexity: "O(N) where N is the number of commands.",
        acl: Categories::CONNECTION,
        ..row(
            "docs",
            "COMMAND DOCS [command-name [command-name ...]]",
            "Returns the documentation of commands.",
            -2,
            ANYTIME,
            SessionCommand::Command,
        )
    },
    CommandSpec {
        complexity: "O(N) where N is the number of commands.",
        acl: Categories::CONNECTION,
        ..row(
            "list",
            "COMMAND LIST [FILTERBY <MODULE module-name | ACLCAT category | PATTERN pattern>]",
            "Lists the names of commands.",
            -2,
            ANYTIME,
            SessionCommand::Command,
        )
    },
    CommandSpec {
        complexity: "O(N) where N is the number of words.",
        acl: Categories::CONNECTION,
        ..row(
            "getkeys",
            "COMMAND GETKEYS command arg [arg ...]",
            "Returns the keys among the words of a command.",
            -4,
            ANYTIME,
            SessionCommand::Command,
        )
    },
    CommandSpec {
        acl: Categories::CONNECTION,
        ..row("help", "COMMAND HELP", "Lists the subcommands.", 2, ANYTIME, SessionCommand::Command)
    },
];

const SLOWLOG_SUBCOMMANDS: &[CommandSpec] = &[
    CommandSpec {
        complexity: "O(N) where N is the number of entries returned.",
        ..row(
            "get",
            "SLOWLOG GET [count]",
            "Returns the latest entries.",
            -2,
            ADMIN_ANYWHERE,
            SessionCommand::Slowlog,
        )
    },
    row("len", "SLOWLOG LEN", "Returns the number of entries.", 2, ADMIN_ANYWHERE, SessionCommand::Slowlog),
    CommandSpec {
        complexity: "O(N) where N is the number of entries.",
        ..row("reset", "SLOWLOG RESET", "Deletes all entries.", 2, ADMIN_ANYWHERE, SessionCommand::Slowlog)
    },
    row("help", "SLOWLOG HELP", "Lists the subcommands.", 2, ANYTIME, SessionCommand::Slowlog),
];

/// A subcommand of RAFT that only looks.
const RAFT_LOOK: Flags = ADMIN_ANYWHERE.and(Flags::NO_MULTI);
/// A subcommand of RAFT that wants something of the group.
const RAFT_STEER: Flags = Flags::ADMIN.and(Flags::STALE).and(Flags::NO_MULTI);

const RAFT_SUBCOMMANDS: &[CommandSpec] = &[
    row(
        "info",
        "RAFT INFO",
        "Tells where this node stands: its role, the leader, what is committed and applied.",
        2,
        RAFT_LOOK,
        SessionCommand::Raft,
    ),
    CommandSpec {
        complexity: "O(N) where N is the number of members.",
        ..row(
            "members",
            "RAFT MEMBERS",
            "Lists the members of the cluster and what this node knows of each.",
            2,
            RAFT_LOOK,
            SessionCommand::Raft,
        )
    },
    row(
        "transfer",
        "RAFT TRANSFER [node-id]",
        "Hands the lead over to a node, or to the one that is most up to date.",
        -2,
        RAFT_STEER,
        SessionCommand::Raft,
    ),
    CommandSpec {
        complexity: "O(1); the snapshot is made in the background.",
        ..row(
            "snapshot",
            "RAFT SNAPSHOT",
            "Lets this node make a snapshot for nodes that are far behind.",
            2,
            RAFT_STEER,
            SessionCommand::Raft,
        )
    },
    CommandSpec {
        complexity: "O(N) where N is the size of the data, at every node.",
        ..row(
            "verify",
            "RAFT VERIFY",
            "Compares the states of all nodes as of one place in the log; null for `equal` names those that gave no answer as `unproven`.",
            2,
            RAFT_STEER,
            SessionCommand::Raft,
        )
    },
    row("help", "RAFT HELP", "Lists the subcommands.", 2, ANYTIME, SessionCommand::Raft),
];

const LATENCY_SUBCOMMANDS: &[CommandSpec] = &[
    row(
        "latest",
        "LATENCY LATEST",
        "Returns the latest spike of every event.",
        2,
        ADMIN,
        SessionCommand::Latency,
    ),
    row(
        "history",
        "LATENCY HISTORY event",
        "Returns the spikes of an event.",
        3,
        ADMIN,
        SessionCommand::Latency,
    ),
    row(
        "reset",
        "LATENCY RESET [event [event ...]]",
        "Deletes the spikes of events.",
        -2,
        ADMIN,
        SessionCommand::Latency,
    ),
    row("doctor", "LATENCY DOCTOR", "Explains the spikes.", 2, ADMIN, SessionCommand::Latency),
    row("help", "LATENCY HELP", "Lists the subcommands.", 2, ANYTIME, SessionCommand::Latency),
];
