//! `/health`, `/ready`, `/leader` and `/metrics`, on a thread and a runtime of their own.
//!
//! Why apart from the clients' runtime: a probe must be answered while a long command keeps every client worker
//! busy, or a load balancer would take a node out that only has much to do.
//!
//! Connections are few, and nobody can shut out the probes: one more takes the place of the oldest, a request's head
//! has a deadline however its bytes trickle in, and a connection that asks for nothing is not kept for long.

use std::io;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::extract::RawQuery;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::routing::get;
use axum::serve::Listener;
use parking_lot::Mutex;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::Sleep;

use crate::telemetry::metrics;
use crate::types::waiting_room::WaitingRoom;

/// What connections may take.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// How many are served at once; one more takes the place of the oldest.
    connections: usize,
    /// How long a request's head, and what follows it, may take to arrive.
    head: Duration,
    /// How long a connection is kept for its next request, and how long it may take nothing of an answer.
    idle: Duration,
}

const BOUNDS: Bounds =
    Bounds { connections: 128, head: Duration::from_secs(5), idle: Duration::from_secs(30) };

/// How long a stop waits for requests that are being answered.
const STOP_WAIT_MAX: Duration = Duration::from_secs(1);

const INDEX: &str = "Holdfast\n\n\
    /health       200 while the process works\n\
    /ready        200 while it should get requests; /ready?write also asks for a quorum\n\
    /leader       200 on the node that leads\n\
    /metrics      figures for Prometheus\n";

/// What the pages ask the node. Called on the HTTP thread, so each must answer at once.
pub struct Probes {
    /// Why this process is broken, or `Ok`. Independent of quorum, leadership and load.
    pub health: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// Why no requests should come here, or `Ok`; with `true`, no writes.
    pub ready: Box<dyn Fn(bool) -> Result<(), Vec<String>> + Send + Sync>,
    /// Why this node is not the one that leads, or `Ok`.
    pub leader: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// All metrics, freshly sampled, in Prometheus's text format.
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
}

/// The running HTTP port. Dropping it stops the port as [`AdminHandle::stop`] does.
pub struct AdminHandle {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl AdminHandle {
    /// Accepts no more, lets requests in progress finish for at most a second, and returns when the port is closed.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Without a receiver the thread has ended already.
        let _ = self.stop.take().map(|stop| stop.send(()));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for AdminHandle {
    fn drop(&mut self) {
        self.end();
    }
}

/// Serves HTTP on `listener`. Fails when the thread or its runtime cannot be made.
pub fn start(listener: TcpListener, probes: Probes) -> io::Result<AdminHandle> {
    start_within(BOUNDS, listener, probes)
}

fn start_within(bounds: Bounds, listener: TcpListener, probes: Probes) -> io::Result<AdminHandle> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _inside = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        BoundedListener { listener, bounds, room: Arc::new(Mutex::new(WaitingRoom::new(bounds.connections))) }
    };
    let (stop, stopped) = oneshot::channel();
    let thread = thread::Builder::new().name("admin".to_owned()).spawn(move || {
        runtime.block_on(serve(listener, router(probes), stopped));
        // What is still being answered now had its second.
        runtime.shutdown_background();
    })?;
    Ok(AdminHandle { stop: Some(stop), thread: Some(thread) })
}

async fn serve(listener: BoundedListener, router: Router, stopped: oneshot::Receiver<()>) {
    let (told, telling) = oneshot::channel();
    let serving = axum::serve(listener, router).with_graceful_shutdown(async {
        let _ = stopped.await;
        let _ = told.send(());
    });
    let too_late = async {
        let _ = telling.await;
        tokio::time::sleep(STOP_WAIT_MAX).await;
    };
    tokio::select! {
        _ = serving => {}
        () = too_late => {}
    }
}

fn router(probes: Probes) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/leader", get(leader))
        .route("/metrics", get(render_metrics))
        .fallback(not_found)
        .with_state(Arc::new(probes))
}

async fn index() -> &'static str {
    INDEX
}

async fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "not found\n").into_response()
}

async fn health(State(probes): State<Arc<Probes>>) -> Response {
    plain((probes.health)())
}

async fn leader(State(probes): State<Arc<Probes>>) -> Response {
    plain((probes.leader)())
}

fn plain(outcome: Result<(), String>) -> Response {
    match outcome {
        Ok(()) => (StatusCode::OK, "ok\n").into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn ready(State(probes): State<Arc<Probes>>, RawQuery(query): RawQuery) -> Response {
    let write =
        query.unwrap_or_default().split('&').any(|word| word == "write" || word.starts_with("write="));
    let (status, body) = match (probes.ready)(write) {
        Ok(()) => (StatusCode::OK, "{\"ready\":true}\n".to_owned()),
        Err(reasons) => (StatusCode::SERVICE_UNAVAILABLE, not_ready(&reasons)),
    };
    (status, [(CONTENT_TYPE, "application/json")], body).into_response()
}

async fn render_metrics(State(probes): State<Arc<Probes>>) -> Response {
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], (probes.metrics)()).into_response()
}

fn not_ready(reasons: &[String]) -> String {
    let reasons: Vec<String> = reasons.iter().map(|reason| json_string(reason)).collect();
    format!("{{\"ready\":false,\"reasons\":[{}]}}\n", reasons.join(","))
}

/// `text` as a JSON string with its quotes (RFC 8259, section 7).
fn json_string(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c < ' ' => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// The connections, by age. Dropping a sender ends its connection.
type Room = Arc<Mutex<WaitingRoom<oneshot::Sender<()>>>>;

/// Accepts always, and keeps to the bounds.
struct BoundedListener {
    listener: tokio::net::TcpListener,
    bounds: Bounds,
    room: Room,
}

impl Listener for BoundedListener {
    type Io = BoundedStream;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, std::net::SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, from)) => return (BoundedStream::new(stream, self.bounds, &self.room), from),
                // Out of file descriptors, most likely: trying again at once would only burn the processor.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<std::net::SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that fails its reads and writes once its time is over or its place was given to another.
///
/// ```text
/// accepted ──► head: bounds.head, and no byte makes it longer ──first byte of an answer──► idle: bounds.idle
///              ▲────────────────────────────first byte of the next request──────────────────┘
/// ```
struct BoundedStream {
    stream: TcpStream,
    bounds: Bounds,
    deadline: Pin<Box<Sleep>>,
    is_idle: bool,
    room: Room,
    number: u64,
    /// `None`: it was.
    displaced: Option<oneshot::Receiver<()>>,
}

impl BoundedStream {
    fn new(stream: TcpStream, bounds: Bounds, room: &Room) -> BoundedStream {
        let (place, displaced) = oneshot::channel();
        let (number, _displaces) = room.lock().enter(place);
        let deadline = Box::pin(tokio::time::sleep(bounds.head));
        let (room, displaced) = (Arc::clone(room), Some(displaced));
        BoundedStream { stream, bounds, deadline, is_idle: false, room, number, displaced }
    }

    /// The error of a connection that has to go.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.displaced = self
            .displaced
            .take()
            .and_then(|mut displaced| Pin::new(&mut displaced).poll(cx).is_pending().then_some(displaced));
        if self.displaced.is_none() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if self.deadline.as_mut().poll(cx).is_ready() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    fn give_time(&mut self, is_idle: bool) {
        self.is_idle = is_idle;
        let time = if is_idle { self.bounds.idle } else { self.bounds.head };
        self.deadline = Box::pin(tokio::time::sleep(time));
    }
}

impl Drop for BoundedStream {
    fn drop(&mut self) {
        drop(self.room.lock().leave(self.number));
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() && self.is_idle {
            self.give_time(false);
        }
        match self.check(cx) {
            Ok(()) => read,
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        if written.is_ready() {
            self.give_time(true);
            // Nobody may read again before the time is over.
            let _not_yet = self.deadline.as_mut().poll(cx);
            return written;
        }
        match self.check(cx) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::io::Write;
    use std::net::SocketAddr;

    fn serve(health: Result<(), String>, write_reasons: Vec<String>) -> (AdminHandle, SocketAddr) {
        serve_within(BOUNDS, health, write_reasons)
    }

    fn serve_within(
        bounds: Bounds,
        health: Result<(), String>,
        write_reasons: Vec<String>,
    ) -> (AdminHandle, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let probes = Probes {
            health: Box::new(move || health.clone()),
            ready: Box::new(move |write| if write { Err(write_reasons.clone()) } else { Ok(()) }),
            leader: Box::new(|| Err("node 2 leads".to_owned())),
            metrics: Box::new(|| "holdfast_raft_term 3\n".to_owned()),
        };
        (start_within(bounds, listener, probes).unwrap(), at)
    }

    fn fetch(at: SocketAddr, path: &str) -> String {
        let mut stream = std::net::TcpStream::connect(at).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn a_healthy_node_says_so_on_every_page() {
        let (admin, at) = serve(Ok(()), vec!["no \"quorum\"".to_owned(), "draining".to_owned()]);
        let health = fetch(at, "/health");
        assert!(health.starts_with("HTTP/1.1 200 ") && health.ends_with("\r\n\r\nok\n"), "{health}");
        assert!(fetch(at, "/ready").ends_with("{\"ready\":true}\n"));
        let write = fetch(at, "/ready?write");
        assert!(write.starts_with("HTTP/1.1 503 "), "{write}");
        assert!(
            write.ends_with("{\"ready\":false,\"reasons\":[\"no \\\"quorum\\\"\",\"draining\"]}\n"),
            "{write}"
        );
        let leader = fetch(at, "/leader");
        assert!(leader.starts_with("HTTP/1.1 503 ") && leader.ends_with("node 2 leads\n"), "{leader}");
        let metrics = fetch(at, "/metrics");
        assert!(
            metrics.to_ascii_lowercase().contains("content-type: text/plain; version=0.0.4"),
            "{metrics}"
        );
        assert!(metrics.ends_with("holdfast_raft_term 3\n"), "{metrics}");
        assert!(fetch(at, "/").contains("/metrics"));
        assert!(fetch(at, "/nothing").starts_with("HTTP/1.1 404 "));
        admin.stop();
        assert!(std::net::TcpStream::connect(at).is_err());
    }

    #[test]
    fn a_broken_node_tells_why() {
        let (_admin, at) = serve(Err("the log writer has ended".to_owned()), Vec::new());
        let health = fetch(at, "/health");
        assert!(
            health.starts_with("HTTP/1.1 503 ") && health.ends_with("the log writer has ended\n"),
            "{health}"
        );
    }

    #[test]
    fn a_silent_connection_does_not_keep_the_port_from_stopping() {
        let (admin, at) = serve(Ok(()), Vec::new());
        let mut half = std::net::TcpStream::connect(at).unwrap();
        half.write_all(b"GET /health HTT").unwrap();
        assert!(fetch(at, "/health").starts_with("HTTP/1.1 200 "));
        admin.stop();
    }

    /// Reads until the other side hangs up; fails the test after long.
    fn read_to_end(mut stream: &std::net::TcpStream) -> String {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut text = String::new();
        match stream.read_to_string(&mut text) {
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => panic!("{error} after {text}"),
            _ => text,
        }
    }

    #[test]
    fn a_head_that_trickles_in_has_its_time_and_no_more() {
        let bounds = Bounds { head: Duration::from_millis(300), ..BOUNDS };
        let (_admin, at) = serve_within(bounds, Ok(()), Vec::new());
        let slow = std::net::TcpStream::connect(at).unwrap();
        let mut sender = slow.try_clone().unwrap();
        let trickle = thread::spawn(move || {
            // Every byte comes long before a silence of the same length would be over.
            (0..10_000).any(|_| {
                thread::sleep(Duration::from_millis(20));
                sender.write_all(b"G").is_err()
            })
        });
        assert_eq!(read_to_end(&slow), "");
        slow.shutdown(std::net::Shutdown::Both).unwrap_or_default();
        assert!(trickle.join().unwrap());
    }

    #[test]
    fn a_connection_is_kept_for_the_next_request_for_a_while() {
        let bounds = Bounds { idle: Duration::from_millis(300), ..BOUNDS };
        let (_admin, at) = serve_within(bounds, Ok(()), Vec::new());
        let mut kept = std::net::TcpStream::connect(at).unwrap();
        for _ in 0..3 {
            kept.write_all(b"GET /health HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
            let mut answer = [0; 15];
            kept.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200 OK");
            let mut rest = Vec::new();
            while !rest.ends_with(b"\r\n\r\nok\n") {
                let mut byte = [0];
                kept.read_exact(&mut byte).unwrap();
                rest.push(byte[0]);
            }
        }
        assert_eq!(read_to_end(&kept), "");
    }

    #[test]
    fn probes_get_their_turn_whoever_keeps_connections_open() {
        let bounds = Bounds { connections: 4, ..BOUNDS };
        let (_admin, at) = serve_within(bounds, Ok(()), Vec::new());
        let begin = || {
            let mut half = std::net::TcpStream::connect(at).unwrap();
            half.write_all(b"GET /health HTT").unwrap();
            half
        };
        let kept: Vec<std::net::TcpStream> = (0..20).map(|_| begin()).collect();
        for _ in 0..10 {
            assert!(fetch(at, "/health").starts_with("HTTP/1.1 200 "));
        }
        // The oldest had to go.
        assert_eq!(read_to_end(&kept[0]), "");
    }

    #[test]
    fn json_strings_are_escaped() {
        assert_eq!(json_string("a\"b\\c\nd\u{e9}"), "\"a\\\"b\\\\c\\u000ad\u{e9}\"");
    }
}
