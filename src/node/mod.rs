//! A node: the parts wired together, its ports, its signals, and its end.
//!
//! ```text
//! STARTING ports opened ─► data directory locked ─► clients accepted, and told that it is LOADING
//!          ─► data found whole, or put aside ─► cluster formed ─► rows and log loaded ─► led and applied ─► SERVING
//! SERVING  SIGTERM, SIGINT, SHUTDOWN ─► STOPPING clients answered ─► log synced, rows flushed ─► exit 0
//! any      damaged data, a node alone ─► exit 65, or 66 when it is shorter than what was synced
//! any      damaged data, a node with peers; entries lost, as the leader says ─► STARTING, in the same process
//! any      another storage error, broken invariant ─► exit 70
//! ```

mod cluster;
mod disk;
mod figures;
mod limits;
mod listen;
mod recovery;
#[cfg(test)]
mod recovery_test;
mod standstill;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

use crate::admin;
use crate::clock::Clock;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::config::Loaded;
use crate::config::LogLevel;
use crate::config::SharedConfig;
use crate::consensus::Group;
use crate::consensus::raft::replica::BootError;
use crate::consensus::raft::replica::Replica;
use crate::consensus::raft::replica::ReplicaParts;
use crate::consensus::raft::replica::stop_process;
use crate::consensus::raft::restart;
use crate::node::listen::listen_on;
use crate::server;
use crate::server::Services;
use crate::server::Shutdown;
use crate::server::lock_waits;
use crate::state::locks::graph::VictimChoice;
use crate::storage::DataStore;
use crate::storage::DirLock;
use crate::storage::Identity;
use crate::storage::LogStore;
use crate::storage::SharedCaches;
use crate::storage::SharedData;
use crate::storage::Watermark;
use crate::storage::disk::DiskGauge;
use crate::storage::geometry::Geometry;
use crate::storage::open_dir;
use crate::storage::rejoin;
use crate::storage::snapshot;
use crate::telemetry::logging::Level;
use crate::telemetry::logging::Logging;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::process;
use crate::types::GroupId;

pub use recovery::exit_status;

/// The state is in memory; RocksDB's cache serves little but the loading of it.
const BLOCK_CACHE_BYTES: usize = 32 << 20;
/// How often it is looked whether the data directory is still there.
const DIRECTORY_LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How often a level that CONFIG SET changed is looked for.
const CONFIG_LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Runs a node until it is told to stop.
///
/// # Errors
/// One line that says why it could not start. Nothing on disk was changed by a start that failed on the
/// configuration, the ports, or a data directory that is not this node's.
pub fn run(loaded: Loaded) -> anyhow::Result<()> {
    let Loaded { config, file, warnings } = loaded;
    limits::check_address_space(worker_threads(&config))?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let clients = listen_on(&config.bind, config.port, config.tcp_backlog, "port")?;
    let http = listen_on(&config.http_bind, config.http_port, config.tcp_backlog, "http-port")?;
    let peers = if config.has_peers() {
        listen_on(&config.peer_bind, config.peer_port, config.tcp_backlog, "peer-port")?
    } else {
        Vec::new()
    };
    let dir = Arc::new(open_dir(&config.dir, Identity { node_id: config.node_id })?);
    recovery::check_size(dir.path())?;
    let logging = Logging::start(level(config.log_level), config.log_file.as_deref(), Arc::clone(&clock))?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!("Holdfast {} starts, pid {}", env!("CARGO_PKG_VERSION"), std::process::id());
    let shared = SharedConfig::new(config, file);
    limits::make_room_for_clients(&shared)?;
    let config = shared.get();
    let metrics = Metrics::install()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(worker_threads(&config))
        .thread_name("client-io")
        .enable_all()
        .build()
        .context("cannot start the client threads")?;
    let shutdown = Shutdown::new();
    let services = Arc::new(Services::new(shared.clone(), Arc::clone(&clock), shutdown.clone()));
    let http = start_http(http, &services, metrics)?;
    let (signals, serving) = {
        let _inside = runtime.enter();
        let serving = server::serve(Arc::clone(&services), tokio_listeners(clients)?);
        (runtime.spawn(stop_on_signals(shutdown.clone())?), runtime.spawn(serving))
    };
    let impatient = runtime.spawn(stop_while_loading(Arc::clone(&services)));
    disk::first_look(dir.path(), &config, &services.disk);
    standstill::wait_for_room(dir.path(), &shared, &clock, &services)?;
    let replica = start_replica(&dir, &shared, &clock, peers, &services.disk)?;
    services.group.set(replica.group());
    let telling = runtime.spawn(lock_waits::tell_clients(Arc::clone(&services)));
    let waits = runtime.spawn(lock_waits::look_after(Arc::clone(&services)));
    disk::watch(Arc::clone(&services), dir.path())?;
    impatient.abort();
    write_pid_file(&config)?;
    runtime.block_on(async {
        tokio::select! {
            () = wait_until_serving(&services.group, config.has_peers()) => {
                adopt_cluster_settings(&shared, &services.group);
                services.set_loaded();
                // Whatever this node gave up before: it has its data again.
                if let Err(error) = rejoin::finish(dir.path()) {
                    stop_process("the order to rejoin cannot be removed", &error);
                }
                tracing::info!("Ready to accept connections on port {}", config.port);
            }
            () = shutdown.requested() => {}
        }
        let levels = tokio::spawn(follow_log_level(shared.clone(), logging));
        let watch = tokio::spawn(watch_directory(Arc::clone(&dir)));
        serving.await.context("the clients' loop ended")?;
        levels.abort();
        watch.abort();
        signals.abort();
        lock_waits::wind_up(&services).await;
        waits.abort();
        telling.abort();
        Ok::<_, anyhow::Error>(())
    })?;
    tracing::info!("Clients are served; bringing everything to disk");
    http.into_iter().for_each(admin::AdminHandle::stop);
    replica.stop();
    if let Some(pid_file) = &config.pid_file {
        // Gone or not ours: the node is down either way.
        let _ = std::fs::remove_file(pid_file);
    }
    tracing::info!("Bye");
    // A store that is still read by somebody is open, and may be compacting.
    process::exit_now(0)
}

/// Starts the replica on what is on disk. A node with peers that finds its data damaged does not come back from here:
/// it starts over without it.
fn start_replica(
    dir: &DirLock,
    config: &SharedConfig,
    clock: &Arc<dyn Clock>,
    peers: Vec<TcpListener>,
    disk: &Arc<DiskGauge>,
) -> anyhow::Result<Replica> {
    match open_replica(dir, config, clock, peers, disk) {
        Err(error) if recovery::is_damage(&error) && config.get().has_peers() => {
            restart::rejoin(dir.path(), &format!("{error:#}"))
        }
        started => started,
    }
}

fn open_replica(
    dir: &DirLock,
    config: &SharedConfig,
    clock: &Arc<dyn Clock>,
    peers: Vec<TcpListener>,
    disk: &Arc<DiskGauge>,
) -> anyhow::Result<Replica> {
    let path = dir.path();
    let group = GroupId(0);
    restart::stand_on(path, config.get().has_peers());
    let write_buffers = 2 * Geometry::at(path).data_memtable;
    let caches = SharedCaches::new(BLOCK_CACHE_BYTES, usize::try_from(write_buffers)?);
    let started = clock.monotonic();
    recovery::prepare(path, &config.get())?;
    let log = Arc::new(LogStore::open(path)?);
    // Before anything else looks at the rows: a snapshot may be half in place.
    for group in snapshot::finish_installs(path, &log)? {
        tracing::info!("finished installing a snapshot of group {}", group.0);
    }
    cluster::check(&config.get(), &log)?;
    let peers = match config.get().has_peers() {
        true => Some(cluster::join(config, &log, clock, peers, disk)?),
        false => None,
    };
    // Nothing is changed before all of it was read and found good.
    let data = match DataStore::examine(path, group, &caches)? {
        Some(data) => data,
        None => DataStore::open(path, group, &caches)?,
    };
    let started_replica = Replica::start(ReplicaParts {
        group,
        dir: path.to_path_buf(),
        log,
        data: SharedData::new(data),
        caches,
        watermark: Watermark::open(path)?,
        config: config.clone(),
        clock: Arc::clone(clock),
        peers,
    });
    let replica = started_replica.map_err(|error| match error {
        BootError::Storage(error) => BootError::Storage(error.in_place(path)),
        other => other,
    })?;
    let keys: usize = {
        let group = replica.group();
        let state = group.read_applied();
        (0..state.databases()).map(|db| state.database(db as u8).len()).sum()
    };
    let took = clock.monotonic().since(started).0;
    tracing::info!("Loaded {keys} keys from {} in {took} ms, before the replay of the log", path.display());
    Ok(replica)
}

/// Directives of scope `cluster` are what the cluster was formed with, whatever this node's file says.
fn adopt_cluster_settings(config: &SharedConfig, group: &Group) {
    let settings = *group.read_applied().settings();
    let formed_with = [
        ("databases", u64::from(settings.databases)),
        ("lock-default-ttl", settings.lock_default_ttl.0),
        ("lease-failover-grace", settings.lease_failover_grace.0),
        ("lock-graph-max", settings.lock_graph_max),
        ("lock-release-memory", settings.lock_release_memory),
        ("once-max-entries", settings.once_max_entries),
        ("once-max-bytes", settings.once_max_bytes),
        ("queue-ack-memory", settings.queue_ack_memory),
    ]
    .map(|(name, value)| (name, value.to_string()));
    let victim = VictimChoice::ALL.iter().find(|(_, choice)| *choice == settings.lock_deadlock_victim);
    let victim = victim.map(|(word, _)| ("lock-deadlock-victim", (*word).to_owned()));
    for (name, value) in formed_with.into_iter().chain(victim) {
        let given = config.get().shown(name).unwrap_or_default();
        if given != value {
            tracing::warn!(
                "{name} is {value}, as the cluster was formed with; {given} in this node's file is ignored"
            );
        }
        config.adopt(name, &value);
    }
}

/// Ends the node when it is told to stop while it still loads or waits for others: it answered nothing that is not on disk.
async fn stop_while_loading(services: Arc<Services>) {
    services.shutdown.requested().await;
    if !services.group.is_set() {
        tracing::info!("Told to stop before it served");
        process::exit_now(0);
    }
}

/// Ends the node when its data directory is removed or replaced: writes would be answered and lost.
async fn watch_directory(dir: Arc<DirLock>) {
    loop {
        tokio::time::sleep(DIRECTORY_LOOK_INTERVAL).await;
        if !dir.is_in_place() {
            let path = dir.path().display();
            stop_process("the data directory is gone", &format!("{path} was removed or replaced"));
        }
    }
}

/// Until the first LEADER-START is applied, and on a lone node everything that the log held. A node with peers
/// serves from then on whether there is a leader or not: each command says what it needs.
async fn wait_until_serving(group: &Group, has_peers: bool) {
    let is_ready = || {
        let is_begun = group.read_applied().databases() > 0;
        is_begun && (has_peers || group.try_read().is_some())
    };
    while !is_ready() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn start_http(
    listeners: Vec<TcpListener>,
    services: &Arc<Services>,
    metrics: Metrics,
) -> anyhow::Result<Vec<admin::AdminHandle>> {
    let start = |listener| {
        let probes = figures::probes(Arc::clone(services), metrics.clone());
        admin::start(listener, probes).context("cannot start the HTTP port")
    };
    listeners.into_iter().map(start).collect()
}

fn tokio_listeners(listeners: Vec<TcpListener>) -> anyhow::Result<Vec<tokio::net::TcpListener>> {
    let convert = |listener| tokio::net::TcpListener::from_std(listener).context("cannot watch a port");
    listeners.into_iter().map(convert).collect()
}

/// Both signals that people and service managers send; the handlers stand before the first client comes.
fn stop_on_signals(shutdown: Shutdown) -> anyhow::Result<impl Future<Output = ()> + Send> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("Asked to stop by a signal");
        shutdown.request();
    })
}

async fn follow_log_level(config: SharedConfig, logging: Logging) {
    let mut known = config.get().log_level;
    loop {
        tokio::time::sleep(CONFIG_LOOK_INTERVAL).await;
        let wanted = config.get().log_level;
        if wanted != known {
            logging.set_level(level(wanted));
            known = wanted;
        }
    }
}

fn level(level: LogLevel) -> Level {
    match level {
        LogLevel::Debug => Level::Debug,
        LogLevel::Verbose => Level::Verbose,
        LogLevel::Notice => Level::Notice,
        LogLevel::Warning => Level::Warning,
    }
}

/// Half of the processors, unless the configuration says: the log, apply and the kernel want the others.
fn worker_threads(config: &Config) -> usize {
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    if config.io_threads == 0 { (processors / 2).max(1) } else { config.io_threads }
}

fn write_pid_file(config: &Config) -> anyhow::Result<()> {
    let Some(path) = &config.pid_file else { return Ok(()) };
    std::fs::write(path, format!("{}\n", std::process::id()))
        .with_context(|| format!("cannot write pidfile {}", path.display()))
}
