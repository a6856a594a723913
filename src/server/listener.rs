//! Accepts clients, turns away those that may not come in, and counts those whose task panics.

use std::future::pending;
use std::io;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::SockRef;
use socket2::TcpKeepalive;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::task::JoinError;
use tokio::task::JoinSet;

use crate::config::Config;
use crate::server::Services;
use crate::server::clients::ClientHandle;
use crate::server::clients::Clients;
use crate::server::clients::Patience;
use crate::server::clients::Together;
use crate::server::connection::Connection;
use crate::server::info;
use crate::server::verify;
use crate::telemetry::process;
use crate::types::Millis;

/// How long connections have to finish when the node shuts down.
const GRACE: Duration = Duration::from_secs(10);
/// How long sent data may stay unacknowledged before the peer counts as gone.
const USER_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause after an accept that failed for want of something, such as file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often the memory of the process is looked at, and after how many looks the clients.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
const LOOKS_PER_SECOND: u32 = 10;
/// How often it is logged that clients were closed for memory.
const EVICTION_TOLD_EVERY: Millis = Millis(1_000);

const TOO_MANY_CLIENTS: &str = "-ERR max number of clients reached\r\n";
const PROTECTED: &str = "-DENIED Holdfast is running in protected mode because protected mode is enabled and no password \
    is set for the default user. In this mode connections are only accepted from the loopback interface. If you want to \
    connect from external computers to Holdfast you may adopt one of the following solutions: 1) Just disable protected \
    mode sending the command 'CONFIG SET protected-mode no' from the loopback interface by connecting to Holdfast from \
    the same host the server is running, however MAKE SURE Holdfast is not publicly accessible from internet if you do \
    so. Use CONFIG REWRITE to make this change permanent. 2) Alternatively you can just disable the protected mode by \
    editing the configuration file, and setting the protected mode option to 'no', and then restarting the server. 3) \
    If you started the server manually just for testing, restart it with the '--protected-mode no' option. 4) Set up an \
    authentication password for the default user. NOTE: You only need to do one of the above things in order for the \
    server to start accepting connections from the outside.\r\n";

/// Accepts on one listener until the node shuts down, then waits for its connections, ten seconds at most.
pub async fn accept_loop(services: Arc<Services>, listener: TcpListener) {
    let mut tasks = JoinSet::new();
    let mut stopped = services.shutdown.subscribe();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => admit(&services, stream, &mut tasks),
                Err(error) => on_accept_error(&error).await,
            },
            Some(ended) = tasks.join_next() => note_end(&services, ended),
            () = stopped.requested() => break,
        }
    }
    drop(listener);
    // What a pause holds back was read before, so it is answered.
    services.clients.unpause();
    services.clients.wake_all();
    let finish = async {
        while let Some(ended) = tasks.join_next().await {
            note_end(&services, ended);
        }
    };
    if tokio::time::timeout(GRACE, finish).await.is_err() {
        tracing::warn!(connections = tasks.len(), "closed connections that did not finish in time");
        tasks.shutdown().await;
    }
}

async fn on_accept_error(error: &io::Error) {
    if matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted
    ) {
        return;
    }
    tracing::warn!(%error, "cannot accept a connection");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// A panic closes its own client only; it is a bug all the same.
fn note_end(services: &Services, ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        services.stats.panics.fetch_add(1, Ordering::Relaxed);
        tracing::error!(%error, "a panic while serving a client; the client was closed");
    }
}

fn admit(services: &Arc<Services>, stream: TcpStream, tasks: &mut JoinSet<()>) {
    let (Ok(addr), Ok(laddr)) = (stream.peer_addr(), stream.local_addr()) else { return };
    let config = services.config.get();
    services.stats.connections.fetch_add(1, Ordering::Relaxed);
    let refusal = if services.clients.len() >= config.max_clients {
        Some(TOO_MANY_CLIENTS)
    } else if is_protected(&config, addr.ip()) {
        Some(PROTECTED)
    } else {
        None
    };
    if let Some(text) = refusal {
        services.stats.rejected_connections.fetch_add(1, Ordering::Relaxed);
        turn_away(stream, text);
        return;
    }
    if let Err(error) = prepare(&stream, &config) {
        tracing::debug!(%error, "cannot set a socket option");
    }
    let fd = stream.as_raw_fd();
    let client = services.clients.add(addr, laddr, fd, services.clock.monotonic());
    let entered = Entered { clients: services.clients.clone(), client: Arc::clone(&client) };
    let services = Arc::clone(services);
    tasks.spawn(async move {
        let _entered = entered;
        Connection::new(stream, client, services).run().await;
    });
}

/// Takes the client out of the registry when its task ends, in whatever way.
struct Entered {
    clients: Clients,
    client: Arc<ClientHandle>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.clients.remove(self.client.id);
    }
}

/// One line into the socket's empty send buffer; whoever does not take it has lost nothing.
fn turn_away(stream: TcpStream, text: &'static str) {
    if let Ok(stream) = stream.into_std() {
        let _sent = io::Write::write(&mut &stream, text.as_bytes());
        let _closed = stream.shutdown(std::net::Shutdown::Write);
    }
}

fn is_protected(config: &Config, peer: IpAddr) -> bool {
    config.protected_mode && config.requirepass.is_none() && !peer.to_canonical().is_loopback()
}

fn prepare(stream: &TcpStream, config: &Config) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    if !config.tcp_keepalive.is_zero() {
        let interval = (config.tcp_keepalive / 3).max(Duration::from_secs(1));
        let keepalive =
            TcpKeepalive::new().with_time(config.tcp_keepalive).with_interval(interval).with_retries(3);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// Ten times a second: the memory of the process and of its clients. Once a second: clients whose time is over, the rate
/// of commands, and whether this node's state is that of the others.
pub async fn look_after_node(services: Arc<Services>) {
    let mut before = services.stats.commands.load(Ordering::Relaxed);
    let mut stopped = services.shutdown.subscribe();
    let mut looks = 0;
    let mut freed = Freed::default();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            () = stopped.requested() => pending::<()>().await,
        }
        look_at_memory(&services);
        looks += 1;
        if looks == LOOKS_PER_SECOND {
            looks = 0;
            freed.look(&services);
            before = look_after_clients(&services, before);
            verify::look(&services);
        }
    }
}

/// What was freed stays with the allocator until somebody asks for memory, and counts for `maxmemory`. So it is given
/// back, once a second, while that matters: near `maxmemory`, and for a while after clients gave up much.
#[derive(Default)]
struct Freed {
    /// The most that clients took since the last fall.
    peak: u64,
    /// How often it is still to be done: the allocator keeps what was freed less than a second ago.
    times: u32,
}

impl Freed {
    fn look(&mut self, services: &Services) {
        const MUCH_BYTES: u64 = 16 << 20;
        const TIMES: u32 = 3;
        let taken = services.client_memory.load(Ordering::Relaxed);
        self.peak = self.peak.max(taken);
        self.times = self.times.saturating_sub(1);
        if self.peak - taken > MUCH_BYTES {
            (self.peak, self.times) = (taken, TIMES);
        }
        if self.times > 0 || services.is_memory_full(services.config.get().max_memory / 2) {
            process::give_memory_back();
        }
    }
}

fn look_at_memory(services: &Services) {
    services.used_memory.store(info::resident_bytes(), Ordering::Relaxed);
    let (config, now) = (services.config.get(), services.clock.monotonic());
    let together = Together::new(services.client_memory_max(&config), config.max_clients);
    let found = services.clients.look_after_memory(now, &config.output_limits, &together);
    services.client_memory.store(found.bytes, Ordering::Relaxed);
    services.stats.evicted_clients.fetch_add(found.evicted, Ordering::Relaxed);
    if found.evicted > 0 && services.told_of_eviction.is_due(now, EVICTION_TOLD_EVERY) {
        tracing::warn!(
            "closed {} clients that took {} bytes: all together took more than maxmemory-clients, {} bytes",
            found.evicted,
            found.evicted_bytes,
            together.max
        );
    }
}

/// Gives the number of commands so far; `before` is what it was a second ago.
fn look_after_clients(services: &Services, before: u64) -> u64 {
    let (stats, config) = (&services.stats, services.config.get());
    let commands = stats.commands.load(Ordering::Relaxed);
    stats.commands_per_second.store(commands.saturating_sub(before), Ordering::Relaxed);
    let millis = |time: Duration| Millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let patience = Patience {
        idle: millis(config.timeout),
        login: millis(if config.requirepass.is_some() { config.login_timeout } else { Duration::ZERO }),
        request: millis(config.request_stall_timeout),
    };
    let closed = services.clients.look_after_idle(services.clock.monotonic(), &patience);
    stats.login_timeouts.fetch_add(closed.strangers, Ordering::Relaxed);
    stats.stalled_requests.fetch_add(closed.stalled, Ordering::Relaxed);
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_password_only_this_machine_is_served() {
        let config = Config::default();
        for (peer, is_refused) in [
            ("127.0.0.1", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("10.0.0.7", true),
            ("2001:db8::1", true),
        ] {
            assert_eq!(is_protected(&config, peer.parse().unwrap()), is_refused, "{peer}");
        }
    }
}
