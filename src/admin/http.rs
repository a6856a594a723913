//! `/health`, `/ready`, `/leader` and `/metrics`, on a thread and a runtime of their own.
//!
//! Why apart from the clients' runtime: a probe must be answered while a long command keeps every client worker
//! busy, or a load balancer would take a node out that only has much to do.
//!
//! Connections are few and their silence is bounded, so that nobody who forgets one here can shut out the probes.

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
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::sync::oneshot;
use tokio::time::Sleep;

use crate::telemetry::metrics;

/// How many HTTP connections are served at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 128;

/// A connection that sends nothing for so long is closed.
const SILENCE_MAX: Duration = Duration::from_secs(60);

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
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    let (stop, stopped) = oneshot::channel();
    let thread = thread::Builder::new().name("admin".to_owned()).spawn(move || {
        runtime.block_on(serve(listener, router(probes), stopped));
        // What is still being answered now had its second.
        runtime.shutdown_background();
    })?;
    Ok(AdminHandle { stop: Some(stop), thread: Some(thread) })
}

async fn serve(listener: tokio::net::TcpListener, router: Router, stopped: oneshot::Receiver<()>) {
    let (told, telling) = oneshot::channel();
    let listener = BoundedListener { listener, permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)) };
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

/// Accepts while fewer than [`CONNECTIONS_MAX`] connections are open.
struct BoundedListener {
    listener: tokio::net::TcpListener,
    permits: Arc<Semaphore>,
}

impl Listener for BoundedListener {
    type Io = BoundedStream;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, std::net::SocketAddr) {
        loop {
            let permit = Arc::clone(&self.permits).acquire_owned().await;
            let permit = permit.expect("the semaphore is never closed");
            match self.listener.accept().await {
                Ok((stream, from)) => {
                    let silence = Box::pin(tokio::time::sleep(SILENCE_MAX));
                    return (BoundedStream { stream, silence, _permit: permit }, from);
                }
                // Out of file descriptors, most likely: trying again at once would only burn the processor.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<std::net::SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that holds its permit, and fails a read after [`SILENCE_MAX`] without a byte.
struct BoundedStream {
    stream: TcpStream,
    silence: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for BoundedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, buf) {
            self.silence = Box::pin(tokio::time::sleep(SILENCE_MAX));
            return Poll::Ready(read);
        }
        self.silence.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
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
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let probes = Probes {
            health: Box::new(move || health.clone()),
            ready: Box::new(move |write| if write { Err(write_reasons.clone()) } else { Ok(()) }),
            leader: Box::new(|| Err("node 2 leads".to_owned())),
            metrics: Box::new(|| "holdfast_raft_term 3\n".to_owned()),
        };
        (start(listener, probes).unwrap(), at)
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

    #[test]
    fn json_strings_are_escaped() {
        assert_eq!(json_string("a\"b\\c\nd\u{e9}"), "\"a\\\"b\\\\c\\u000ad\u{e9}\"");
    }
}
