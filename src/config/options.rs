//! The one table of directives. The file, the command line, CONFIG GET, SET and REWRITE, `--help` and the
//! README's table all read these rows; [`super::Config`] holds the checked values.
//!
//! Names and meanings are Redis's wherever the meaning is the same. A directive stands here only when this
//! version does something with it, or when Redis's own tools ask for it.

use super::ClusterNode;
use super::parse::Value;

/// One directive.
#[derive(Clone, Copy, Debug)]
pub struct Directive {
    /// As the file, the command line and CONFIG GET spell it; letter case does not count when it is given.
    pub name: &'static str,
    /// The heading under which `--help` lists it.
    pub group: Group,
    /// What values it takes.
    pub kind: Kind,
    /// The default, as a file would say it.
    pub default: &'static str,
    /// What a bare number means; empty when it is a count or no number.
    pub unit: &'static str,
    /// Whom the value concerns.
    pub scope: Scope,
    /// True when CONFIG SET may change it while the node runs.
    pub settable: bool,
    /// True when CONFIG GET must not show the value.
    pub secret: bool,
    /// What it does, in a sentence or two.
    pub doc: &'static str,
    /// Refuses what the kind alone cannot; the error says what to do instead.
    pub check: fn(&Value) -> Result<(), String>,
}

/// What values a directive takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `yes` or `no`.
    Bool,
    /// A number from `min` to `max`.
    Integer { min: i64, max: i64 },
    /// Bytes, or a number with a unit: `1k` is 1000, `1kb` is 1024, likewise m, mb, g, gb.
    Memory { min: i64, max: i64 },
    /// As `Memory`, or one of these words.
    MemoryOr(&'static [&'static str]),
    /// As `Memory`, or a share such as `25%`, from 1 to 100.
    MemoryOrPercent,
    /// A length of time in milliseconds.
    Millis { min: i64, max: i64 },
    /// A length of time in seconds.
    Seconds { min: i64, max: i64 },
    /// One of these words.
    Enum(&'static [&'static str]),
    /// Any text; `""` is none.
    Text,
    /// Words separated by blanks; given again, the last line counts.
    Words,
    /// Entries of this many words; each line adds to those before it, and `""` removes them.
    Lines { words: usize },
    /// `class hard soft seconds`, where class is normal, replica or pubsub; a line changes its class only.
    OutputLimits,
}

/// Whom a directive concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// This node only.
    Node,
    /// All nodes alike: what commands do may depend on it, so it is agreed on when the cluster forms.
    Cluster,
}

/// The headings of `--help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Where clients connect.
    Network,
    /// Who may connect.
    Security,
    /// What is kept on disk, and when.
    Durability,
    /// Bounds.
    Limits,
    /// Logs and measurements.
    Logging,
    /// Nodes, shards and consensus.
    Cluster,
    /// Locks.
    Locks,
    /// Queues.
    Queues,
    /// The process.
    Process,
    /// Known so that Redis's tools and files work.
    Compatibility,
}

impl Group {
    /// In the order of `--help`.
    pub const ALL: [Group; 10] = [
        Group::Network,
        Group::Security,
        Group::Durability,
        Group::Limits,
        Group::Logging,
        Group::Cluster,
        Group::Locks,
        Group::Queues,
        Group::Process,
        Group::Compatibility,
    ];

    /// The heading.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Group::Network => "Network",
            Group::Security => "Security",
            Group::Durability => "Durability",
            Group::Limits => "Limits",
            Group::Logging => "Logs and measurements",
            Group::Cluster => "Cluster",
            Group::Locks => "Locks",
            Group::Queues => "Queues",
            Group::Process => "Process",
            Group::Compatibility => "Compatibility with Redis",
        }
    }
}

impl Kind {
    /// What to write, for `--help` and for errors.
    #[must_use]
    pub fn describe(&self) -> String {
        let range = |min: i64, max: i64, what: &str| {
            if max == i64::MAX {
                format!("{what}, at least {min}")
            } else {
                format!("{what} from {min} to {max}")
            }
        };
        match *self {
            Kind::Bool => "yes or no".to_owned(),
            Kind::Integer { min, max } => range(min, max, "a number"),
            Kind::Millis { min, max } => range(min, max, "milliseconds"),
            Kind::Seconds { min, max } => range(min, max, "seconds"),
            Kind::Memory { min: 0, .. } => "a size such as 64mb".to_owned(),
            Kind::Memory { min, .. } => {
                format!("a size such as 64mb, at least {}", super::parse::format_memory(min))
            }
            Kind::MemoryOr(words) => format!("a size such as 64mb, or one of {}", words.join(", ")),
            Kind::MemoryOrPercent => "a size such as 64mb, or a share such as 25%".to_owned(),
            Kind::Enum(choices) => format!("one of {}", choices.join(", ")),
            Kind::Text => "a text".to_owned(),
            Kind::Words => "words separated by blanks".to_owned(),
            Kind::Lines { words } => format!("{words} words, may be given several times"),
            Kind::OutputLimits => "<normal|replica|pubsub> <hard> <soft> <seconds>".to_owned(),
        }
    }
}

impl Directive {
    const fn new(
        name: &'static str,
        group: Group,
        kind: Kind,
        default: &'static str,
        doc: &'static str,
    ) -> Directive {
        let unit = match kind {
            Kind::Memory { .. } | Kind::MemoryOr(_) | Kind::MemoryOrPercent => "bytes",
            Kind::Millis { .. } => "ms",
            Kind::Seconds { .. } => "s",
            _ => "",
        };
        let scope = Scope::Node;
        let check = no_check;
        Directive { name, group, kind, default, unit, scope, settable: false, secret: false, doc, check }
    }

    const fn settable(self) -> Directive {
        Directive { settable: true, ..self }
    }

    const fn cluster(self) -> Directive {
        Directive { scope: Scope::Cluster, ..self }
    }

    const fn secret(self) -> Directive {
        Directive { secret: true, ..self }
    }

    const fn unit(self, unit: &'static str) -> Directive {
        Directive { unit, ..self }
    }

    const fn check(self, check: fn(&Value) -> Result<(), String>) -> Directive {
        Directive { check, ..self }
    }

    /// The default as a value.
    #[must_use]
    pub fn default_value(&self) -> Value {
        self.default_words()
            .and_then(|words| self.parse(&words, &Value::Bool(false)))
            .expect("every row parses its own default")
    }

    fn default_words(&self) -> Result<Vec<String>, String> {
        let words = super::parse::split_words(self.default)?;
        Ok(if words.is_empty() { vec![String::new()] } else { words })
    }

    /// Reads the words given to this directive and checks them; see [`Kind::parse`].
    pub fn parse(&self, words: &[String], current: &Value) -> Result<Value, String> {
        let value = self.kind.parse(words, current)?;
        (self.check)(&value)?;
        Ok(value)
    }
}

/// The row of `name`, in any letter case.
#[must_use]
pub fn find(name: &str) -> Option<usize> {
    DIRECTIVES.iter().position(|row| row.name.eq_ignore_ascii_case(name))
}

/// The directive that was probably meant by `name`, if one is near enough.
#[must_use]
pub fn nearest(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    let reach = name.len().div_ceil(2).min(3);
    let names = DIRECTIVES.iter().map(|row| row.name).chain(["include"]);
    let distances = names.map(|candidate| (edit_distance(&name, candidate), candidate));
    let (distance, candidate) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= reach).then_some(candidate)
}

/// Levenshtein's distance in bytes, with one row of the matrix.
fn edit_distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

fn no_check(_: &Value) -> Result<(), String> {
    Ok(())
}

fn only(value: &Value, word: &str, otherwise: &str) -> Result<(), String> {
    if value.text() == word { Ok(()) } else { Err(otherwise.to_owned()) }
}

fn some_address(value: &Value) -> Result<(), String> {
    if value.text().is_empty() { Err("at least one address is needed".to_owned()) } else { addresses(value) }
}

fn addresses(value: &Value) -> Result<(), String> {
    let Value::Words(words) = value else { return Ok(()) };
    let is_bad = |word: &&String| word.trim_start_matches('-').is_empty();
    match words.iter().find(is_bad) {
        Some(word) => Err(format!("'{word}' is no address")),
        None => Ok(()),
    }
}

fn directory(value: &Value) -> Result<(), String> {
    if value.text().is_empty() { Err("a directory is needed".to_owned()) } else { Ok(()) }
}

fn save_points(value: &Value) -> Result<(), String> {
    let Value::Lines(lines) = value else { return Ok(()) };
    let is_number = |word: &String| word.parse::<u32>().is_ok();
    if lines.iter().all(|line| line.iter().all(is_number)) {
        return Ok(());
    }
    Err("Invalid save parameters".to_owned())
}

fn cluster_nodes(value: &Value) -> Result<(), String> {
    let Value::Lines(lines) = value else { return Ok(()) };
    if lines.len() > CLUSTER_NODES_MAX {
        return Err(format!("a cluster begins with at most {CLUSTER_NODES_MAX} nodes"));
    }
    let nodes: Vec<ClusterNode> =
        lines.iter().map(|line| ClusterNode::parse(line)).collect::<Result<_, _>>()?;
    for (i, node) in nodes.iter().enumerate() {
        let before = &nodes[..i];
        if before.iter().any(|other| other.id == node.id) {
            return Err(format!("node {} has two lines: give each node one", node.id));
        }
        let is_there = |other: &&ClusterNode| {
            other.peer_port == node.peer_port && other.host.eq_ignore_ascii_case(&node.host)
        };
        if let Some(other) = before.iter().find(is_there) {
            return Err(format!(
                "nodes {} and {} are both at {}:{}: each needs its own address or port",
                other.id, node.id, node.host, node.peer_port
            ));
        }
    }
    Ok(())
}

/// Lines of `cluster-node`.
const CLUSTER_NODES_MAX: usize = 9;
/// What may stand in the place of a size on disk.
const DISK_SIZE_WORDS: &[&str] = &["auto", "no"];
const COUNT_MAX: i64 = i32::MAX as i64;
const MIB: i64 = 1 << 20;
const DAY_MS: i64 = 86_400_000;

/// Every directive, in the order of CONFIG GET.
pub static DIRECTIVES: &[Directive] = &[
    Directive::new(
        "port",
        Group::Network,
        Kind::Integer { min: 1, max: 65535 },
        "6379",
        "TCP port for clients.",
    ),
    Directive::new(
        "bind",
        Group::Network,
        Kind::Words,
        "127.0.0.1 -::1",
        "Addresses to listen on for clients. One that starts with '-' may be missing on this machine; '*' is \
         all of IPv4 and '::*' all of IPv6.",
    )
    .check(some_address),
    Directive::new(
        "tcp-backlog",
        Group::Network,
        Kind::Integer { min: 1, max: COUNT_MAX },
        "511",
        "Connections that may wait to be accepted; the kernel's somaxconn bounds it too.",
    ),
    Directive::new(
        "timeout",
        Group::Network,
        Kind::Seconds { min: 0, max: COUNT_MAX },
        "0",
        "Closes clients that were idle this long; 0 is never.",
    )
    .settable(),
    Directive::new(
        "tcp-keepalive",
        Group::Network,
        Kind::Seconds { min: 0, max: COUNT_MAX },
        "15",
        "Probes silent connections after this long, so that clients that are gone are noticed; 0 is never.",
    )
    .settable(),
    Directive::new(
        "http-port",
        Group::Network,
        Kind::Integer { min: 0, max: 65535 },
        "0",
        "TCP port of /health, /ready and /metrics; 0 is port + 2000.",
    ),
    Directive::new(
        "http-bind",
        Group::Network,
        Kind::Words,
        "",
        "Addresses to listen on for HTTP; none is the addresses of bind.",
    )
    .check(addresses),
    Directive::new(
        "requirepass",
        Group::Security,
        Kind::Text,
        "",
        "The password of the default user; none lets everybody in.",
    )
    .settable()
    .secret(),
    Directive::new(
        "login-timeout",
        Group::Security,
        Kind::Seconds { min: 0, max: COUNT_MAX },
        "30",
        "Closes clients that have to log in and have not this long after they connected; 0 is never.",
    )
    .settable(),
    Directive::new(
        "auth-failures-free",
        Group::Security,
        Kind::Integer { min: 0, max: 1_000_000 },
        "20",
        "Wrong passwords a minute, by address and user, that are answered at once. The answers to more of them wait, from \
         0.1 to 5 seconds; the right password never waits. 0 never lets them wait.",
    )
    .settable(),
    Directive::new(
        "protected-mode",
        Group::Security,
        Kind::Bool,
        "yes",
        "Without a password, serves only clients of this machine.",
    )
    .settable(),
    Directive::new(
        "dir",
        Group::Durability,
        Kind::Text,
        "./data",
        "The directory of all data; it is made when it is missing.",
    )
    .check(directory),
    Directive::new(
        "appendfsync",
        Group::Durability,
        Kind::Enum(&["everysec", "always", "no"]),
        "always",
        "When a write is synced to disk: before it is answered (always), once a second, or when the system \
         sees fit. After a power cut only 'always' has kept every answered write.",
    )
    .settable(),
    Directive::new(
        "log-max-bytes",
        Group::Durability,
        Kind::Memory { min: MIB, max: i64::MAX },
        "256mb",
        "Size of the log that sets off its purge. Less on a small disk: a sixth of the automatic disk-free-hard.",
    ),
    Directive::new(
        "flush-interval",
        Group::Durability,
        Kind::Millis { min: 10, max: 60_000 },
        "1000",
        "How often changed rows go to the data files in the background. The log keeps every write meanwhile.",
    ),
    Directive::new(
        "disk-free-soft",
        Group::Durability,
        Kind::MemoryOr(DISK_SIZE_WORDS),
        "auto",
        "With less room than this on the disk of dir, commands that add data are refused with MISCONF; so is one that would \
         leave less, at three times its length. auto, or 0, is 5% of the file system and at least 1gb, but no more than 15%; \
         no is no limit. A disk of less than 64mb is refused at the start.",
    )
    .settable(),
    Directive::new(
        "disk-free-hard",
        Group::Durability,
        Kind::MemoryOr(DISK_SIZE_WORDS),
        "auto",
        "With less room than this, all writes but deletions are refused, and the node does not lead if another can. \
         auto, or 0, is 1% of the file system and at least 384mb, but no more than 7.5%; no is no limit. The log, the \
         memtables and what compaction takes at once are made so small that three quarters of the automatic size hold \
         them all, and half of it a start.",
    )
    .settable(),
    Directive::new(
        "disk-ballast",
        Group::Durability,
        Kind::MemoryOr(DISK_SIZE_WORDS),
        "auto",
        "Size of a file in dir that is deleted when less than disk-free-hard is free, so that there is room to delete \
         and to start. auto, or 0, is 256mb; never more than 2% of the file system; no is none.",
    )
    .settable(),
    Directive::new(
        "maxclients",
        Group::Limits,
        Kind::Integer { min: 1, max: COUNT_MAX },
        "10000",
        "Clients connected at the same time; one more is refused.",
    )
    .settable(),
    Directive::new(
        "maxmemory",
        Group::Limits,
        Kind::Memory { min: 0, max: i64::MAX },
        "0",
        "Memory that the process may take: above it, commands that need more are refused with OOM. Nothing is \
         evicted. 0 is no bound.",
    )
    .settable(),
    Directive::new(
        "maxmemory-clients",
        Group::Limits,
        Kind::MemoryOrPercent,
        "25%",
        "Memory that requests, replies and messages of all clients may take together: above it the clients that take most \
         are closed, but for those with CLIENT NO-EVICT. A share is one of maxmemory, or of the memory of the machine or \
         its cgroup while there is no maxmemory. 0 is no bound.",
    )
    .settable(),
    Directive::new(
        "maxmemory-policy",
        Group::Limits,
        Kind::Enum(&[
            "volatile-lru",
            "volatile-lfu",
            "volatile-random",
            "volatile-ttl",
            "allkeys-lru",
            "allkeys-lfu",
            "allkeys-random",
            "noeviction",
        ]),
        "noeviction",
        "What goes at maxmemory. This version evicts nothing: it refuses commands that need memory.",
    )
    .settable()
    .check(|value| {
        only(value, "noeviction", "this version does not evict keys yet: only noeviction can be chosen")
    }),
    Directive::new(
        "proto-max-bulk-len",
        Group::Limits,
        Kind::Memory { min: MIB, max: i64::MAX },
        "64mb",
        "The longest single argument of a command.",
    )
    .settable(),
    Directive::new(
        "client-query-buffer-limit",
        Group::Limits,
        Kind::Memory { min: MIB, max: i64::MAX },
        "1gb",
        "Bytes of unanswered requests that a client may pile up; one with more is closed.",
    )
    .settable(),
    Directive::new(
        "request-stall-timeout",
        Group::Limits,
        Kind::Seconds { min: 0, max: COUNT_MAX },
        "60",
        "Closes clients that began a request and have sent nothing more of it for this long; 0 is never.",
    )
    .settable(),
    Directive::new(
        "client-output-buffer-limit",
        Group::Limits,
        Kind::OutputLimits,
        "normal 65mb 0 0 replica 256mb 64mb 60 pubsub 32mb 8mb 60",
        "Bytes of replies and messages that a client may leave unread: closed at once above hard, or after so many \
         seconds above soft; 0 is no bound. A single reply above hard is refused, and nothing is done. While nobody \
         sets it, hard of normal is 1mb above proto-max-bulk-len if that is raised: what was accepted can be read back.",
    )
    .settable(),
    Directive::new(
        "databases",
        Group::Limits,
        Kind::Integer { min: 1, max: 255 },
        "16",
        "How many databases SELECT can choose from.",
    )
    .cluster(),
    Directive::new(
        "loglevel",
        Group::Logging,
        Kind::Enum(&["debug", "verbose", "notice", "warning"]),
        "notice",
        "The least important lines that are logged.",
    )
    .settable(),
    Directive::new(
        "logfile",
        Group::Logging,
        Kind::Text,
        "",
        "The file that log lines are appended to; none is standard output.",
    ),
    Directive::new(
        "slowlog-log-slower-than",
        Group::Logging,
        Kind::Integer { min: -1, max: i64::MAX },
        "10000",
        "SLOWLOG keeps commands that took longer; 0 is all, -1 none.",
    )
    .unit("us")
    .settable(),
    Directive::new(
        "slowlog-max-len",
        Group::Logging,
        Kind::Integer { min: 0, max: COUNT_MAX },
        "128",
        "Commands that SLOWLOG remembers.",
    )
    .settable(),
    Directive::new(
        "latency-monitor-threshold",
        Group::Logging,
        Kind::Millis { min: 0, max: i64::MAX },
        "0",
        "LATENCY keeps events that took at least this long; 0 is none.",
    )
    .settable(),
    Directive::new(
        "node-id",
        Group::Cluster,
        Kind::Integer { min: 1, max: 65535 },
        "1",
        "The name of this node in its cluster. A data directory belongs to one node for ever.",
    ),
    Directive::new(
        "cluster-node",
        Group::Cluster,
        Kind::Lines { words: 2 },
        "",
        "'<id> <host>:<peer-port>', a first member of the cluster, which forms by itself, once, when all of them \
         are there. All nodes have the same lines, at most 9, this node's among them. None is a cluster of \
         this node alone.",
    )
    .check(cluster_nodes),
    Directive::new(
        "peer-port",
        Group::Cluster,
        Kind::Integer { min: 0, max: 65535 },
        "0",
        "TCP port for other nodes; 0 is port + 10000. It is the port of this node's cluster-node line, and is not opened \
         while there is no other node.",
    ),
    Directive::new(
        "peer-bind",
        Group::Cluster,
        Kind::Words,
        "",
        "Addresses to listen on for other nodes; none is the addresses of bind.",
    )
    .check(addresses),
    Directive::new(
        "peer-protected-mode",
        Group::Cluster,
        Kind::Bool,
        "yes",
        "Takes links only from nodes of this machine: links have no password and no TLS yet. 'no' is for a network \
         in which nobody but the nodes reaches peer-port.",
    ),
    Directive::new(
        "consensus",
        Group::Cluster,
        Kind::Enum(&["raft", "pbft"]),
        "raft",
        "How the nodes agree. This version knows Raft only.",
    )
    .cluster()
    .check(|value| only(value, "raft", "pbft comes with a later version: only raft can be chosen")),
    Directive::new(
        "shards",
        Group::Cluster,
        Kind::Integer { min: 1, max: 1024 },
        "1",
        "Groups that the hash slots are divided among. This version takes 1 only.",
    )
    .cluster()
    .check(|value| only(value, "1", "several shards come with a later version: only 1 can be chosen")),
    Directive::new(
        "replication-factor",
        Group::Cluster,
        Kind::Integer { min: 1, max: 9 },
        "3",
        "Nodes that keep each shard, as far as the cluster has so many.",
    )
    .cluster(),
    Directive::new(
        "virtual-nodes",
        Group::Cluster,
        Kind::Integer { min: 1, max: 4096 },
        "160",
        "Points of each node on the ring that places shards on nodes.",
    )
    .cluster(),
    Directive::new(
        "routing",
        Group::Cluster,
        Kind::Enum(&["proxy", "redirect"]),
        "proxy",
        "What a node does with a command that another node has to run: forward it, or tell the client where to \
         go. This version knows proxy only.",
    )
    .check(|value| only(value, "proxy", "redirect comes with a later version: only proxy can be chosen")),
    Directive::new(
        "read-consistency",
        Group::Cluster,
        Kind::Enum(&["lease", "readindex"]),
        "lease",
        "How the leader knows that it still leads when it answers a read: by its lease, or by asking a \
         majority. Both are linearizable.",
    ),
    Directive::new(
        "election-timeout",
        Group::Cluster,
        Kind::Millis { min: 50, max: 60_000 },
        "500",
        "A node that hears no leader stands for election after one to two of these.",
    ),
    Directive::new(
        "heartbeat-interval",
        Group::Cluster,
        Kind::Millis { min: 10, max: 30_000 },
        "100",
        "How often a leader reports to its followers; at most a third of the election timeout.",
    ),
    Directive::new(
        "indoubt-timeout",
        Group::Cluster,
        Kind::Millis { min: 100, max: 600_000 },
        "5000",
        "A write that no leader has answered for this long is answered with INDOUBT: it may still take effect.",
    )
    .settable(),
    Directive::new(
        "cluster-node-timeout",
        Group::Cluster,
        Kind::Millis { min: 100, max: 600_000 },
        "5000",
        "Clients that wait for a lock are told CLUSTERDOWN when no leader was heard for so long.",
    )
    .settable(),
    Directive::new(
        "lock-default-ttl",
        Group::Locks,
        Kind::Millis { min: 100, max: DAY_MS },
        "30000",
        "How long LOCK holds when the command gives no time.",
    )
    .cluster(),
    Directive::new(
        "lease-failover-grace",
        Group::Locks,
        Kind::Millis { min: 0, max: 600_000 },
        "3000",
        "Time that a new leader adds to running leases, for the renewals that were lost with the old one.",
    )
    .cluster(),
    Directive::new(
        "lock-deadlock-victim",
        Group::Locks,
        Kind::Enum(&["requester", "youngest", "fewest-locks"]),
        "requester",
        "Whom a deadlock costs its wait: who closed the cycle, who began last, or who holds the fewest locks.",
    )
    .cluster(),
    Directive::new(
        "lock-graph-max",
        Group::Locks,
        Kind::Integer { min: 100, max: 100_000_000 },
        "100000",
        "Edges of the wait-for graph that a LOCK which would wait looks at; beyond it is refused with TRYAGAIN.",
    )
    .cluster(),
    Directive::new(
        "lock-release-memory",
        Group::Locks,
        Kind::Integer { min: 0, max: 100_000_000 },
        "1000000",
        "Releases under a token that are remembered for ten minutes, so that a repetition is told the same.",
    )
    .cluster(),
    Directive::new(
        "once-max-entries",
        Group::Locks,
        Kind::Integer { min: 1, max: 100_000_000 },
        "1000000",
        "Transactions named by ONCE that are remembered; new names are refused beyond.",
    )
    .cluster(),
    Directive::new(
        "once-max-bytes",
        Group::Locks,
        Kind::Memory { min: MIB, max: 1 << 40 },
        "256mb",
        "Replies to transactions named by ONCE that are kept, together. Beyond it the oldest go: who repeats such a \
         transaction is told that it was executed (REPLAYED), and no more.",
    )
    .cluster(),
    Directive::new(
        "queue-ack-memory",
        Group::Queues,
        Kind::Integer { min: 1, max: 100_000_000 },
        "1000000",
        "Acknowledged receipts that are remembered for ten minutes, so that a repeated QACK is told the same.",
    )
    .cluster(),
    Directive::new(
        "queue-memory",
        Group::Queues,
        Kind::Memory { min: 1 << 20, max: 1 << 50 },
        "256mb",
        "Payloads of waiting messages stay in memory up to this many bytes; beyond it they are read from disk.",
    ),
    Directive::new(
        "metrics-max-queues",
        Group::Logging,
        Kind::Integer { min: 0, max: 100_000 },
        "1000",
        "Queues that /metrics names; the others are told together as _other.",
    ),
    Directive::new(
        "io-threads",
        Group::Process,
        Kind::Integer { min: 0, max: 128 },
        "0",
        "Threads that serve clients; 0 is chosen by the number of processors.",
    ),
    Directive::new(
        "pidfile",
        Group::Process,
        Kind::Text,
        "",
        "The file that the process id is written to; none writes none.",
    ),
    Directive::new(
        "daemonize",
        Group::Process,
        Kind::Bool,
        "no",
        "Holdfast stays in the foreground: a service manager does the rest.",
    )
    .check(|value| {
        only(value, "no", "Holdfast stays in the foreground: run it under systemd or another service manager")
    }),
    Directive::new(
        "supervised",
        Group::Process,
        Kind::Enum(&["no", "upstart", "systemd", "auto"]),
        "no",
        "Holdfast sends no start-up signal to a supervisor.",
    )
    .check(|value| only(value, "no", "Holdfast signals no supervisor: use 'no', in systemd with Type=exec")),
    Directive::new(
        "appendonly",
        Group::Compatibility,
        Kind::Bool,
        "yes",
        "Always yes: Holdfast keeps every write in its log.",
    ),
    Directive::new(
        "save",
        Group::Compatibility,
        Kind::Lines { words: 2 },
        "",
        "'<seconds> <changes>', known to Redis's tools and without effect here.",
    )
    .settable()
    .check(save_points),
    Directive::new(
        "lfu-log-factor",
        Group::Compatibility,
        Kind::Integer { min: 0, max: COUNT_MAX },
        "10",
        "How slowly a key's use counter grows; without effect until this version evicts.",
    )
    .settable(),
    Directive::new(
        "lfu-decay-time",
        Group::Compatibility,
        Kind::Integer { min: 0, max: COUNT_MAX },
        "1",
        "How fast a key's use counter sinks; without effect until this version evicts.",
    )
    .unit("minutes")
    .settable(),
    Directive::new(
        "hz",
        Group::Compatibility,
        Kind::Integer { min: 1, max: 500 },
        "10",
        "Known to Redis's tools and without effect here.",
    )
    .settable(),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_parses_its_own_default() {
        for row in DIRECTIVES {
            let value = row.default_value();
            let again: Vec<Vec<String>> = value
                .file_lines(row.kind)
                .iter()
                .map(|line| super::super::parse::split_words(line).unwrap())
                .collect();
            // What CONFIG REWRITE writes reads back as the same value.
            assert_eq!(row.parse(&again.concat(), &Value::Bool(false)), Ok(value), "{}", row.name);
        }
    }

    #[test]
    fn names_are_unique_and_every_row_is_documented() {
        for (i, row) in DIRECTIVES.iter().enumerate() {
            assert_eq!(find(&row.name.to_uppercase()), Some(i), "{}", row.name);
            assert!(row.doc.ends_with('.'), "{}", row.name);
            assert!(Group::ALL.contains(&row.group));
        }
    }

    #[test]
    fn the_nearest_name_is_suggested() {
        for (given, meant) in [
            ("prot", Some("port")),
            ("max-clients", Some("maxclients")),
            ("APPENDFSYNCH", Some("appendfsync")),
            ("includ", Some("include")),
            ("rdbcompression", None),
            ("x", None),
        ] {
            assert_eq!(nearest(given), meant, "{given}");
        }
    }

    #[test]
    fn what_this_version_cannot_do_is_refused_with_what_it_can() {
        for (name, given, advice) in [
            ("maxmemory-policy", "allkeys-lru", "noeviction"),
            ("shards", "4", "only 1"),
            ("consensus", "pbft", "only raft"),
            ("routing", "redirect", "only proxy"),
            ("daemonize", "yes", "service manager"),
            ("supervised", "systemd", "Type=exec"),
            ("cluster-node", "1 a:16379 1 b:16379", "node 1 has two lines"),
            ("cluster-node", "1 a:16379 2 A:16379", "nodes 1 and 2 are both at A:16379"),
            ("cluster-node", "1 a:1 2 a:2 3 a:3 4 a:4 5 a:5 6 a:6 7 a:7 8 a:8 9 a:9 10 a:10", "at most 9"),
            ("indoubt-timeout", "99", "between 100 and 600000"),
            ("bind", "", "at least one"),
            ("dir", "", "a directory"),
            ("save", "a b", "Invalid save"),
        ] {
            let row = &DIRECTIVES[find(name).unwrap()];
            let why = row.parse(&[given.to_owned()], &Value::Bool(false)).unwrap_err();
            assert!(why.contains(advice), "{name}: {why}");
        }
    }
}
