//! What the operator decided: one table of directives ([`options`]), read from a redis.conf file and the
//! command line ([`load`]), changed by CONFIG SET and written back by CONFIG REWRITE.
//!
//! A [`Config`] is checked as a whole and never changes. CONFIG SET makes another one and puts it in the place
//! of the old ([`SharedConfig`]), so that a reader sees all of a change or nothing of it.

pub mod load;
pub mod options;
pub mod parse;
mod rewrite;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use parking_lot::RwLock;
use thiserror::Error;

pub use load::ConfigError;
pub use load::Invocation;
pub use load::Loaded;
pub use load::help_text;
pub use load::parse_arguments;
pub use options::DIRECTIVES;
pub use options::Directive;

use crate::types::Millis;
use crate::types::NodeId;
use crate::types::bounds::Bounds;
use crate::types::bounds::FRAMING_BYTES;
use crate::types::glob;
use options::Scope;
use parse::Value;

/// The directive whose default depends on another one.
const OUTPUT_LIMIT: &str = "client-output-buffer-limit";

/// One checked configuration. The fields follow the directives of [`DIRECTIVES`], whose rows say what they
/// mean; `Config::default()` is a node without file and options.
#[derive(Clone)]
pub struct Config {
    /// TCP port for clients.
    pub port: u16,
    /// Where to listen for clients; at least one.
    pub bind: Vec<BindAddress>,
    /// Connections that may wait to be accepted.
    pub tcp_backlog: u32,
    /// Idle clients are closed after this; zero is never.
    pub timeout: Duration,
    /// Silence before the first keepalive probe; zero is none.
    pub tcp_keepalive: Duration,
    /// TCP port for HTTP, with the default (port + 2000) filled in.
    pub http_port: u16,
    /// Where to listen for HTTP; at least one.
    pub http_bind: Vec<BindAddress>,
    /// The password of the default user; `None` lets everybody in.
    pub requirepass: Option<String>,
    /// How long a client may take to log in; zero is for ever.
    pub login_timeout: Duration,
    /// Wrong passwords a minute that are answered at once; 0 is all.
    pub auth_failures_free: u32,
    /// Whether only clients of this machine are served while there is no password.
    pub protected_mode: bool,
    /// The directory of all data, as given.
    pub dir: PathBuf,
    /// When writes are synced.
    pub appendfsync: AppendFsync,
    /// Size of the log that sets off its purge.
    pub log_max_bytes: u64,
    /// How often changed rows go to the data files.
    pub flush_interval: Millis,
    /// Free room on the disk of `dir` below which no more data is taken.
    pub disk_free_soft: DiskSize,
    /// Free room below which nothing is written but deletions.
    pub disk_free_hard: DiskSize,
    /// Room that is kept by a file, to be given back when the disk is full.
    pub disk_ballast: DiskSize,
    /// Clients connected at the same time, at least 1.
    pub max_clients: usize,
    /// Bytes of memory above which commands that need more are refused; 0 is no bound.
    pub max_memory: u64,
    /// What the buffers of all clients may take together.
    pub max_memory_clients: MemoryShare,
    /// The longest argument of a command, in bytes.
    pub proto_max_bulk_len: usize,
    /// Bytes of requests that a client may pile up.
    pub query_buffer_limit: usize,
    /// How long a client may send nothing more of a request it began; zero is for ever.
    pub request_stall_timeout: Duration,
    /// Bytes of replies that a client may leave unread, by class.
    pub output_limits: OutputLimits,
    /// How many databases there are, at least 1.
    pub databases: u8,
    /// The least important lines that are logged.
    pub log_level: LogLevel,
    /// Where log lines go; `None` is standard output.
    pub log_file: Option<PathBuf>,
    /// Microseconds above which a command is kept by SLOWLOG; `None` keeps none, 0 all.
    pub slowlog_slower_than: Option<u64>,
    /// Commands that SLOWLOG remembers.
    pub slowlog_max_len: usize,
    /// Events at least this long are kept by LATENCY; zero keeps none.
    pub latency_threshold: Millis,
    /// The name of this node in its cluster.
    pub node_id: NodeId,
    /// The first members of the cluster, this node among them, each id and each address once; empty is this node
    /// alone.
    pub cluster_nodes: Vec<ClusterNode>,
    /// TCP port for other nodes, with the default (port + 10000) filled in; 0 when there is none and no other node.
    pub peer_port: u16,
    /// Where to listen for other nodes; at least one.
    pub peer_bind: Vec<BindAddress>,
    /// Whether only nodes of this machine may make links.
    pub peer_protected_mode: bool,
    /// How many groups the hash slots are divided among.
    pub shards: u32,
    /// Nodes that keep each shard.
    pub replication_factor: u32,
    /// Points of each node on the ring.
    pub virtual_nodes: u32,
    /// How the leader knows that it still leads when it answers a read.
    pub read_consistency: ReadConsistency,
    /// A node that hears no leader stands for election after one to two of these.
    pub election_timeout: Millis,
    /// How often a leader reports to its followers; at most a third of `election_timeout`.
    pub heartbeat_interval: Millis,
    /// A write that no leader has answered for this long is answered with INDOUBT.
    pub indoubt_timeout: Millis,
    /// How long LOCK holds when the command gives no time.
    pub lock_default_ttl: Millis,
    /// Time that a new leader adds to running leases.
    pub lease_failover_grace: Millis,
    /// Whom a deadlock of locks costs its wait; as the state knows it by code.
    pub lock_deadlock_victim: u8,
    /// Edges of the wait-for graph that one search looks at, at most.
    pub lock_graph_max: u64,
    /// Releases of locks that are remembered, at most.
    pub lock_release_memory: u64,
    /// Named transactions that are remembered, at most.
    pub once_max_entries: u64,
    /// Bytes of replies to them that are kept, at most.
    pub once_max_bytes: u64,
    /// Acknowledged receipts that are remembered.
    pub queue_ack_memory: u64,
    /// Queues that metrics name, at most.
    pub metrics_max_queues: u64,
    /// Bytes of payloads of waiting messages that stay in memory.
    pub queue_memory: u64,
    /// How long nothing may be heard of a leader before clients that wait are told so.
    pub cluster_node_timeout: Millis,
    /// Threads that serve clients; 0 is chosen by the number of processors.
    pub io_threads: usize,
    /// Where to write the process id; `None` writes none.
    pub pid_file: Option<PathBuf>,
    values: Values,
}

/// When writes are synced (`appendfsync`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendFsync {
    /// Before they are answered.
    Always,
    /// Once a second.
    EverySec,
    /// When the operating system does.
    No,
}

/// A size on disk (`disk-free-soft`, `disk-free-hard`, `disk-ballast`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskSize {
    /// By the size of the file system.
    #[default]
    Auto,
    /// None.
    Off,
    /// So many bytes.
    Bytes(u64),
}

/// How much memory something may take (`maxmemory-clients`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryShare {
    /// So many bytes; 0 is no bound.
    Bytes(u64),
    /// A share in percent, from 1 to 100.
    Percent(u8),
}

impl MemoryShare {
    /// In bytes, if it is a share of `whole` bytes; `None` is no bound. A share of what is not known is no bound.
    #[must_use]
    pub fn bytes(self, whole: u64) -> Option<u64> {
        let bytes = match self {
            MemoryShare::Bytes(bytes) => bytes,
            MemoryShare::Percent(share) => whole / 100 * u64::from(share),
        };
        (bytes > 0).then_some(bytes)
    }
}

/// The least important lines that are logged (`loglevel`), from most to fewest lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// What helps to follow a node closely.
    Verbose,
    /// What an operator wants to see.
    Notice,
    /// What an operator has to look at.
    Warning,
}

/// How the leader knows that it still leads when it answers a read (`read-consistency`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadConsistency {
    /// By its lease.
    Lease,
    /// By asking a majority each time.
    ReadIndex,
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindAddress {
    /// A name or an address; `*` and `::*` are already `0.0.0.0` and `::`.
    pub host: String,
    /// True when it was given with a leading `-`: an address that this machine lacks is passed over.
    pub is_optional: bool,
}

/// A first member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterNode {
    /// Its `node-id`.
    pub id: NodeId,
    /// Its name or address.
    pub host: String,
    /// Its port for other nodes.
    pub peer_port: u16,
}

/// Bounds on the unread replies of a client. `default()` is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputLimit {
    /// Bytes above which the client is closed at once; 0 is no bound.
    pub hard: usize,
    /// Bytes above which it is closed when it stays so for `soft_for`; 0 is no bound.
    pub soft: usize,
    /// How long it may stay above `soft`.
    pub soft_for: Duration,
}

/// Bounds on unread replies by class of client. `default()` is no bounds; the directive's default is in its row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputLimits {
    /// Clients that send commands.
    pub normal: OutputLimit,
    /// Nodes that follow; known to Redis's tools, and without effect here.
    pub replica: OutputLimit,
    /// Clients that subscribed to something.
    pub pubsub: OutputLimit,
}

impl BindAddress {
    fn parse(word: &str) -> BindAddress {
        let (is_optional, host) = match word.strip_prefix('-') {
            Some(host) => (true, host),
            None => (false, word),
        };
        let host = match host {
            "*" => "0.0.0.0",
            "::*" => "::",
            other => other.trim_start_matches('[').trim_end_matches(']'),
        };
        BindAddress { host: host.to_owned(), is_optional }
    }
}

impl ClusterNode {
    /// Reads `<id> <host>:<port>`; the error says what is wrong.
    fn parse(line: &[String]) -> Result<ClusterNode, String> {
        let [id, address] = line else { return Err("expected '<id> <host>:<peer-port>'".to_owned()) };
        let id = id.parse().ok().filter(|id| (1..=65535).contains(id));
        let id = id.ok_or("the id must be a number from 1 to 65535: '<id> <host>:<peer-port>'")?;
        let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let peer_port = port.parse().ok().filter(|&port| port > 0 && !host.is_empty());
        let peer_port = peer_port.ok_or_else(|| format!("'{address}' is not <host>:<peer-port>"))?;
        Ok(ClusterNode { id: NodeId(id), host, peer_port })
    }
}

/// The values of all directives, in the order of [`DIRECTIVES`].
#[derive(Clone)]
struct Values(Vec<Value>);

/// Values that are right one by one and wrong together: the directives concerned, the likeliest first.
#[derive(Debug)]
struct Conflict {
    names: &'static [&'static str],
    why: String,
}

impl Values {
    fn defaults() -> Values {
        Values(DIRECTIVES.iter().map(Directive::default_value).collect())
    }

    fn of(&self, name: &str) -> &Value {
        let row = options::find(name).expect("the code asks for directives of the table only");
        &self.0[row]
    }

    fn number<T: TryFrom<i64>>(&self, name: &str) -> T {
        let Value::Integer(number) = *self.of(name) else { unreachable!("{name} is a number in its row") };
        T::try_from(number).unwrap_or_else(|_| unreachable!("the range of {name} fits its field"))
    }

    /// Which of its words a directive has, from 0.
    fn place(&self, name: &str) -> u8 {
        let Value::Choice(word) = *self.of(name) else { unreachable!("{name} is a word in its row") };
        let directive = options::find(name).expect("the row is there");
        let options::Kind::Enum(words) = options::DIRECTIVES[directive].kind else {
            unreachable!("{name} is a choice in its row")
        };
        words.iter().position(|known| *known == word).map_or(0, |place| place as u8)
    }

    fn flag(&self, name: &str) -> bool {
        *self.of(name) == Value::Bool(true)
    }

    fn millis(&self, name: &str) -> Millis {
        Millis(self.number(name))
    }

    fn seconds(&self, name: &str) -> Duration {
        Duration::from_secs(self.number(name))
    }

    fn some_text(&self, name: &str) -> Option<String> {
        Some(self.of(name).text()).filter(|text| !text.is_empty())
    }

    /// The addresses of `name`, or those of `bind` when it names none.
    fn addresses(&self, name: &str) -> Vec<BindAddress> {
        match self.of(name) {
            Value::Words(words) if !words.is_empty() => {
                words.iter().map(|word| BindAddress::parse(word)).collect()
            }
            _ => self.addresses("bind"),
        }
    }

    /// The port of `name`; 0 stands for the client port plus `offset`.
    fn port(&self, name: &'static str, offset: u16) -> Result<u16, Conflict> {
        let (port, given): (u16, u16) = (self.number("port"), self.number(name));
        if given != 0 {
            return Ok(given);
        }
        let why = || format!("{name} would be {port} + {offset}, above 65535: set {name} too");
        port.checked_add(offset).ok_or_else(|| Conflict { names: &["port"], why: why() })
    }

    /// As [`Values::port`]. A node that has no peers needs no such port, so 0 stays 0 where there is none.
    fn peer_port(&self) -> Result<u16, Conflict> {
        let own = self.of("node-id").text();
        let names_others = |lines: &Vec<Vec<String>>| lines.iter().any(|line| line.first() != Some(&own));
        match self.port("peer-port", 10_000) {
            Err(_) if !matches!(self.of("cluster-node"), Value::Lines(lines) if names_others(lines)) => Ok(0),
            port => port,
        }
    }

    fn memory_share(&self, name: &str) -> MemoryShare {
        match *self.of(name) {
            Value::Percent(share) => MemoryShare::Percent(share),
            _ => MemoryShare::Bytes(self.number(name)),
        }
    }

    fn cluster_nodes(&self) -> Result<Vec<ClusterNode>, Conflict> {
        let Value::Lines(lines) = self.of("cluster-node") else { return Ok(Vec::new()) };
        let parsed = lines.iter().map(|line| ClusterNode::parse(line)).collect::<Result<_, _>>();
        let nodes: Vec<ClusterNode> = parsed.map_err(|why| Conflict { names: &["cluster-node"], why })?;
        let own: NodeId = NodeId(self.number("node-id"));
        if !nodes.is_empty() && nodes.iter().all(|node| node.id != own) {
            let why = format!("no line names this node: node-id is {own}");
            return Err(Conflict { names: &["cluster-node", "node-id"], why });
        }
        Ok(nodes)
    }

    fn appendfsync(&self) -> AppendFsync {
        match self.of("appendfsync") {
            Value::Choice("everysec") => AppendFsync::EverySec,
            Value::Choice("no") => AppendFsync::No,
            _ => AppendFsync::Always,
        }
    }

    fn disk_size(&self, name: &str) -> DiskSize {
        match *self.of(name) {
            Value::Choice("no") => DiskSize::Off,
            Value::Integer(bytes @ 1..) => DiskSize::Bytes(bytes.unsigned_abs()),
            _ => DiskSize::Auto,
        }
    }

    fn log_level(&self) -> LogLevel {
        match self.of("loglevel") {
            Value::Choice("debug") => LogLevel::Debug,
            Value::Choice("verbose") => LogLevel::Verbose,
            Value::Choice("warning") => LogLevel::Warning,
            _ => LogLevel::Notice,
        }
    }

    fn output_limits(&self) -> OutputLimits {
        let Value::Limits(mut limits) = *self.of(OUTPUT_LIMIT) else { return OutputLimits::default() };
        // What was accepted can be read back: a limit that nobody set follows the longest argument.
        if limits.normal.hard == Bounds::DEFAULT.reply {
            let longest: usize = self.number("proto-max-bulk-len");
            limits.normal.hard = limits.normal.hard.max(longest.saturating_add(FRAMING_BYTES));
        }
        limits
    }

    fn read_consistency(&self) -> ReadConsistency {
        match self.of("read-consistency") {
            Value::Choice("readindex") => ReadConsistency::ReadIndex,
            _ => ReadConsistency::Lease,
        }
    }
}

impl Config {
    /// Reads `[file.conf] [--directive value ...]`, as redis-server takes them, without the program's name.
    /// Nothing on disk is changed.
    pub fn load(args: &[String]) -> Result<Loaded, ConfigError> {
        load::load(args)
    }

    /// Checks the values together and makes the fields of them.
    fn new(values: Values) -> Result<Config, Conflict> {
        let config = Config {
            port: values.number("port"),
            bind: values.addresses("bind"),
            tcp_backlog: values.number("tcp-backlog"),
            timeout: values.seconds("timeout"),
            tcp_keepalive: values.seconds("tcp-keepalive"),
            http_port: values.port("http-port", 2000)?,
            http_bind: values.addresses("http-bind"),
            requirepass: values.some_text("requirepass"),
            login_timeout: values.seconds("login-timeout"),
            auth_failures_free: values.number("auth-failures-free"),
            protected_mode: values.flag("protected-mode"),
            dir: PathBuf::from(values.of("dir").text()),
            appendfsync: values.appendfsync(),
            log_max_bytes: values.number("log-max-bytes"),
            flush_interval: values.millis("flush-interval"),
            disk_free_soft: values.disk_size("disk-free-soft"),
            disk_free_hard: values.disk_size("disk-free-hard"),
            disk_ballast: values.disk_size("disk-ballast"),
            max_clients: values.number("maxclients"),
            max_memory: values.number("maxmemory"),
            max_memory_clients: values.memory_share("maxmemory-clients"),
            proto_max_bulk_len: values.number("proto-max-bulk-len"),
            query_buffer_limit: values.number("client-query-buffer-limit"),
            request_stall_timeout: values.seconds("request-stall-timeout"),
            output_limits: values.output_limits(),
            databases: values.number("databases"),
            log_level: values.log_level(),
            log_file: values.some_text("logfile").map(PathBuf::from),
            slowlog_slower_than: u64::try_from(values.number::<i64>("slowlog-log-slower-than")).ok(),
            slowlog_max_len: values.number("slowlog-max-len"),
            latency_threshold: values.millis("latency-monitor-threshold"),
            node_id: NodeId(values.number("node-id")),
            cluster_nodes: values.cluster_nodes()?,
            peer_port: values.peer_port()?,
            peer_bind: values.addresses("peer-bind"),
            peer_protected_mode: values.flag("peer-protected-mode"),
            shards: values.number("shards"),
            replication_factor: values.number("replication-factor"),
            virtual_nodes: values.number("virtual-nodes"),
            read_consistency: values.read_consistency(),
            election_timeout: values.millis("election-timeout"),
            heartbeat_interval: values.millis("heartbeat-interval"),
            indoubt_timeout: values.millis("indoubt-timeout"),
            lock_default_ttl: values.millis("lock-default-ttl"),
            lease_failover_grace: values.millis("lease-failover-grace"),
            lock_deadlock_victim: values.place("lock-deadlock-victim"),
            lock_graph_max: values.number("lock-graph-max"),
            lock_release_memory: values.number("lock-release-memory"),
            once_max_entries: values.number("once-max-entries"),
            once_max_bytes: values.number("once-max-bytes"),
            queue_ack_memory: values.number("queue-ack-memory"),
            queue_memory: values.number("queue-memory"),
            metrics_max_queues: values.number("metrics-max-queues"),
            cluster_node_timeout: values.millis("cluster-node-timeout"),
            io_threads: values.number("io-threads"),
            pid_file: values.some_text("pidfile").map(PathBuf::from),
            values,
        };
        config.check()?;
        Ok(config)
    }

    /// True when the configuration names other nodes.
    #[must_use]
    pub fn has_peers(&self) -> bool {
        self.cluster_nodes.iter().any(|node| node.id != self.node_id)
    }

    fn check(&self) -> Result<(), Conflict> {
        // A node without peers opens no port for them.
        let peers = self.has_peers();
        let ports = [
            (true, self.port, self.http_port, &["http-port", "port"], "http-port and port"),
            (peers, self.port, self.peer_port, &["peer-port", "port"], "peer-port and port"),
            (peers, self.http_port, self.peer_port, &["peer-port", "http-port"], "peer-port and http-port"),
        ];
        for (are_opened, left, right, names, which) in ports {
            if are_opened && left == right {
                return Err(Conflict { names, why: format!("{which} are both {left}: each needs its own") });
            }
        }
        let (heartbeat, election) = (self.heartbeat_interval.0, self.election_timeout.0);
        if heartbeat * 3 > election {
            let names = &["heartbeat-interval", "election-timeout"];
            let why = format!(
                "heartbeat-interval {heartbeat} is more than a third of election-timeout {election}: followers \
                 would stand for election when one or two heartbeats are late"
            );
            return Err(Conflict { names, why });
        }
        Ok(())
    }

    /// The value of a directive as CONFIG GET shows it, secrets hidden; `None` for an unknown name.
    #[must_use]
    pub fn shown(&self, name: &str) -> Option<String> {
        options::find(name).map(|row| self.shown_row(row))
    }

    fn shown_row(&self, row: usize) -> String {
        let text = match DIRECTIVES[row].name {
            OUTPUT_LIMIT => Value::Limits(self.output_limits).text(),
            _ => self.values.0[row].text(),
        };
        if DIRECTIVES[row].secret && !text.is_empty() { "(redacted)".to_owned() } else { text }
    }

    /// The directives of the scope `cluster` with their values, in the order of the table.
    pub fn cluster_scope(&self) -> impl Iterator<Item = (&'static str, String)> {
        let rows = DIRECTIVES.iter().enumerate().filter(|(_, row)| row.scope == Scope::Cluster);
        rows.map(|(i, row)| (row.name, self.shown_row(i)))
    }
}

impl Default for Config {
    fn default() -> Config {
        Config::new(Values::defaults()).expect("the defaults of the table agree with each other")
    }
}

/// Shows every directive as CONFIG GET does, so that no password reaches a log.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = DIRECTIVES.iter().enumerate().map(|(i, row)| (row.name, self.shown_row(i)));
        f.debug_map().entries(shown).finish()
    }
}

/// Why CONFIG SET changed nothing. `Display` is the whole RESP error line, in Redis's words.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigSetError {
    /// No directive of this name.
    #[error("ERR Unknown option or number of arguments for CONFIG SET - '{0}'")]
    Unknown(String),
    /// The directive cannot be changed, or not to this value.
    #[error("ERR CONFIG SET failed (possibly related to argument '{name}') - {why}")]
    Refused {
        /// The directive.
        name: String,
        /// What is wrong with it.
        why: String,
    },
}

/// The configuration of a running node. Clones share it.
#[derive(Clone, Debug)]
pub struct SharedConfig {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    current: RwLock<Arc<Config>>,
    generation: AtomicU64,
    file: Option<PathBuf>,
    /// Held during a rewrite, so that two of them do not write one temporary file.
    rewriting: Mutex<()>,
}

impl SharedConfig {
    /// Shares `config`; `file` is what CONFIG REWRITE writes, the absolute path of the file it came from.
    #[must_use]
    pub fn new(config: Config, file: Option<PathBuf>) -> SharedConfig {
        let current = RwLock::new(Arc::new(config));
        let shared = Shared { current, generation: AtomicU64::new(0), file, rewriting: Mutex::new(()) };
        SharedConfig { shared: Arc::new(shared) }
    }

    /// The configuration as it is now. It costs a lock and a count; a hot path keeps its own copy and asks
    /// [`SharedConfig::generation`] whether that is still the newest.
    #[must_use]
    pub fn get(&self) -> Arc<Config> {
        Arc::clone(&self.shared.current.read())
    }

    /// Grows with every change. Read it before [`SharedConfig::get`]: then a copy kept under this number is at
    /// least as new as the number says.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Acquire)
    }

    /// The configuration file, if the node was started with one.
    #[must_use]
    pub fn file(&self) -> Option<&PathBuf> {
        self.shared.file.as_ref()
    }

    /// CONFIG GET: the directives that match any of the glob `patterns`, each once, in the order of the table.
    #[must_use]
    pub fn config_get(&self, patterns: &[&str]) -> Vec<(String, String)> {
        let config = self.get();
        let is_asked = |row: &Directive| {
            patterns.iter().any(|pattern| glob::matches(pattern.as_bytes(), row.name.as_bytes(), true))
        };
        let rows = DIRECTIVES.iter().enumerate().filter(|(_, row)| is_asked(row));
        rows.map(|(i, row)| (row.name.to_owned(), config.shown_row(i))).collect()
    }

    /// CONFIG SET: all of `pairs`, or none of them. Gives the names whose values are others now.
    pub fn config_set(&self, pairs: &[(&str, &str)]) -> Result<Vec<&'static str>, ConfigSetError> {
        let rows = settable_rows(pairs)?;
        // The writer's side is held from reading to replacing, so that no change is lost to another.
        let mut current = self.shared.current.write();
        let mut values = current.values.clone();
        for (&row, (name, text)) in rows.iter().zip(pairs) {
            let value = DIRECTIVES[row].parse(&[(*text).to_owned()], &values.0[row]);
            values.0[row] = value.map_err(|why| ConfigSetError::Refused { name: printable(name), why })?;
        }
        let config = Config::new(values).map_err(|conflict| ConfigSetError::Refused {
            name: conflict.names[0].to_owned(),
            why: conflict.why,
        })?;
        let is_changed = |row: &usize| config.values.0[*row] != current.values.0[*row];
        let changed: Vec<&str> =
            rows.into_iter().filter(is_changed).map(|row| DIRECTIVES[row].name).collect();
        *current = Arc::new(config);
        self.shared.generation.fetch_add(1, Ordering::Release);
        Ok(changed)
    }

    /// Takes over what the cluster says of a directive of scope `cluster`. A value that this version cannot take
    /// is left as it is.
    pub fn adopt(&self, name: &str, text: &str) {
        let Some(row) = options::find(name) else { return };
        let mut current = self.shared.current.write();
        let mut values = current.values.clone();
        let Ok(value) = DIRECTIVES[row].parse(&[text.to_owned()], &values.0[row]) else { return };
        values.0[row] = value;
        if let Ok(config) = Config::new(values) {
            *current = Arc::new(config);
            self.shared.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// CONFIG REWRITE: makes the file say what holds now. Comments and the order of lines stay; the file is
    /// replaced as a whole or not at all.
    pub fn config_rewrite(&self) -> Result<(), ConfigError> {
        let file = self.shared.file.as_ref().ok_or(ConfigError::NoFile)?;
        let _alone = self.shared.rewriting.lock();
        rewrite::rewrite_file(file, &self.get().values)
    }
}

/// The rows that `pairs` name, in their order, if all of them may be set.
fn settable_rows(pairs: &[(&str, &str)]) -> Result<Vec<usize>, ConfigSetError> {
    let mut rows = Vec::with_capacity(pairs.len());
    for (name, _) in pairs {
        let row = options::find(name).ok_or_else(|| ConfigSetError::Unknown(printable(name)))?;
        let refused = |why: &str| ConfigSetError::Refused { name: printable(name), why: why.to_owned() };
        if !DIRECTIVES[row].settable {
            return Err(refused("can't set immutable config"));
        }
        if rows.contains(&row) {
            return Err(refused("duplicate parameter"));
        }
        rows.push(row);
    }
    Ok(rows)
}

/// A client's text for an error line: RESP errors end at a line break.
fn printable(text: &str) -> String {
    text.chars().take(128).map(|character| if character.is_control() { ' ' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> SharedConfig {
        SharedConfig::new(Config::default(), None)
    }

    fn get(config: &SharedConfig, name: &str) -> String {
        let found = config.config_get(&[name]);
        assert_eq!(found.len(), 1, "{name}");
        found[0].1.clone()
    }

    #[test]
    fn the_defaults_are_a_node_that_is_complete_alone() {
        let config = Config::default();
        assert_eq!((config.port, config.http_port, config.peer_port), (6379, 8379, 16379));
        let address = |host: &str, is_optional| BindAddress { host: host.to_owned(), is_optional };
        assert_eq!(config.bind, [address("127.0.0.1", false), address("::1", true)]);
        assert_eq!(config.http_bind, config.bind);
        assert_eq!(config.dir, PathBuf::from("./data"));
        assert_eq!(config.requirepass, None);
        assert_eq!(config.appendfsync, AppendFsync::Always);
        assert_eq!(config.slowlog_slower_than, Some(10_000));
        assert_eq!(config.proto_max_bulk_len, 64 << 20);
        assert_eq!(config.output_limits.normal.hard, 65 << 20);
        assert_eq!(config.output_limits.pubsub.soft_for, Duration::from_secs(60));
        assert_eq!(config.lock_default_ttl, Millis(30_000));
        assert!(config.cluster_nodes.is_empty());
        assert_eq!(config.peer_bind, config.bind);
        assert!(config.peer_protected_mode);
        assert_eq!((config.election_timeout, config.heartbeat_interval), (Millis(500), Millis(100)));
        assert_eq!(config.indoubt_timeout, Millis(5_000));
    }

    #[test]
    fn config_get_gives_each_match_once_in_redis_formats() {
        let config = shared();
        assert_eq!(get(&config, "SAVE"), "");
        assert_eq!(get(&config, "appendonly"), "yes");
        assert_eq!(get(&config, "proto-max-bulk-len"), "67108864");
        assert_eq!(get(&config, "bind"), "127.0.0.1 -::1");
        let limits = "normal 68157440 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60";
        assert_eq!(get(&config, "client-output-buffer-limit"), limits);
        let names: Vec<String> =
            config.config_get(&["max*", "maxmemory", "MAXMEM*"]).into_iter().map(|pair| pair.0).collect();
        assert_eq!(names, ["maxclients", "maxmemory", "maxmemory-clients", "maxmemory-policy"]);
        assert_eq!(config.config_get(&["*"]).len(), DIRECTIVES.len());
        assert!(config.config_get(&["nothing"]).is_empty());
    }

    #[test]
    fn config_set_changes_what_readers_get() {
        let config = shared();
        let before = config.generation();
        let changed = config.config_set(&[("AppendFsync", "EVERYSEC"), ("maxmemory", "1gb"), ("hz", "10")]);
        assert_eq!(changed.unwrap(), ["appendfsync", "maxmemory"]);
        assert_eq!(config.get().appendfsync, AppendFsync::EverySec);
        assert_eq!(config.get().max_memory, 1 << 30);
        assert!(config.generation() > before);
        config.config_set(&[("indoubt-timeout", "250")]).unwrap();
        assert_eq!(config.get().indoubt_timeout, Millis(250));
        config.config_set(&[("slowlog-log-slower-than", "-1"), ("save", "900 1 300 10")]).unwrap();
        assert_eq!(config.get().slowlog_slower_than, None);
        assert_eq!(get(&config, "save"), "900 1 300 10");
    }

    #[test]
    fn output_limits_are_merged_by_class() {
        let config = shared();
        config.config_set(&[("client-output-buffer-limit", "replica 1mb 0 5")]).unwrap();
        let expected = "normal 68157440 0 0 slave 1048576 0 5 pubsub 33554432 8388608 60";
        assert_eq!(get(&config, "client-output-buffer-limit"), expected);
    }

    #[test]
    fn an_output_limit_that_nobody_set_follows_the_longest_argument() {
        let config = shared();
        let hard = |config: &SharedConfig| config.get().output_limits.normal.hard;
        for (longest, expected) in [("1mb", 65 << 20), ("64mb", 65 << 20), ("300mb", 301 << 20)] {
            config.config_set(&[("proto-max-bulk-len", longest)]).unwrap();
            assert_eq!(hard(&config), expected, "{longest}");
        }
        assert!(get(&config, "client-output-buffer-limit").starts_with("normal 315621376 0 0 slave "));
        config.config_set(&[("client-output-buffer-limit", "pubsub 1mb 0 0")]).unwrap();
        assert_eq!(hard(&config), 301 << 20, "another class was set");
        config.config_set(&[("client-output-buffer-limit", "normal 2mb 0 0")]).unwrap();
        assert_eq!(hard(&config), 2 << 20);
    }

    #[test]
    fn a_refused_config_set_changes_nothing_and_says_why_in_redis_words() {
        let config = shared();
        let failed = "ERR CONFIG SET failed (possibly related to argument";
        let cases: &[(&[(&str, &str)], String)] = &[
            (
                &[("maxclients", "5"), ("no-such\r\n", "1")],
                "ERR Unknown option or number of arguments for CONFIG SET - 'no-such  '".to_owned(),
            ),
            (&[("maxclients", "5"), ("port", "1")], format!("{failed} 'port') - can't set immutable config")),
            (
                &[("maxclients", "5"), ("MAXCLIENTS", "6")],
                format!("{failed} 'MAXCLIENTS') - duplicate parameter"),
            ),
            (
                &[("maxclients", "5"), ("timeout", "x")],
                format!("{failed} 'timeout') - argument couldn't be parsed into an integer"),
            ),
            (
                &[("maxclients", "5"), ("appendfsync", "sometimes")],
                format!(
                    "{failed} 'appendfsync') - argument(s) must be one of the following: everysec, always, no"
                ),
            ),
        ];
        for (pairs, expected) in cases {
            assert_eq!(config.config_set(pairs).unwrap_err().to_string(), *expected);
            assert_eq!(config.get().max_clients, 10_000);
            assert_eq!(config.generation(), 0);
        }
    }

    #[test]
    fn every_settable_directive_takes_what_config_get_gave() {
        let config = shared();
        for row in DIRECTIVES.iter().filter(|row| row.settable) {
            let shown = get(&config, row.name);
            assert_eq!(config.config_set(&[(row.name, &shown)]).unwrap(), [""; 0], "{}", row.name);
        }
    }

    #[test]
    fn the_password_is_not_shown() {
        let config = shared();
        assert_eq!(get(&config, "requirepass"), "");
        config.config_set(&[("requirepass", "hunter2")]).unwrap();
        assert_eq!(config.get().requirepass.as_deref(), Some("hunter2"));
        assert_eq!(get(&config, "requirepass"), "(redacted)");
        assert!(!format!("{:?}", config.get()).contains("hunter2"));
        config.config_set(&[("requirepass", "")]).unwrap();
        assert_eq!(config.get().requirepass, None);
    }

    #[test]
    fn a_share_of_memory_is_of_what_is_known() {
        assert_eq!(Config::default().max_memory_clients, MemoryShare::Percent(25));
        for (share, whole, bytes) in [
            (MemoryShare::Percent(25), 4_000, Some(1_000)),
            (MemoryShare::Percent(25), 0, None),
            (MemoryShare::Bytes(0), 4_000, None),
            (MemoryShare::Bytes(7), 4_000, Some(7)),
        ] {
            assert_eq!(share.bytes(whole), bytes, "{share:?} of {whole}");
        }
        let config = shared();
        config.config_set(&[("maxmemory-clients", "100mb")]).unwrap();
        assert_eq!(config.get().max_memory_clients, MemoryShare::Bytes(100 << 20));
        config.config_set(&[("maxmemory-clients", "5%")]).unwrap();
        assert_eq!(get(&config, "maxmemory-clients"), "5%");
    }

    #[test]
    fn a_rewrite_needs_a_file() {
        let error = shared().config_rewrite().unwrap_err();
        assert_eq!(error.to_string(), "The server is running without a config file");
    }

    #[test]
    fn addresses_are_read_as_redis_reads_them() {
        for (word, host, is_optional) in [
            ("10.0.0.1", "10.0.0.1", false),
            ("*", "0.0.0.0", false),
            ("-::*", "::", true),
            ("[::1]", "::1", false),
        ] {
            assert_eq!(BindAddress::parse(word), BindAddress { host: host.to_owned(), is_optional });
        }
        let line = |address: &str| ["1".to_owned(), address.to_owned()];
        let node = ClusterNode::parse(&line("[::1]:16379")).unwrap();
        assert_eq!((node.host.as_str(), node.peer_port), ("::1", 16379));
        for bad in ["host", "host:", ":1", "host:0", "host:70000"] {
            assert!(ClusterNode::parse(&line(bad)).is_err(), "{bad}");
        }
    }
}
