//! A node as a process of its own: on free loopback ports, with a directory that goes away with it.

use std::fs;
use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Output;
use std::process::Stdio;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use holdfast::types::Millis;

use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::wait_for;

/// How long a node may take to start or to stop before the test fails.
const PATIENCE: Millis = Millis(30_000);

/// A running (or killed) node. Dropping it kills the process and removes its directory.
pub struct Node {
    process: Option<Guarded>,
    directory: Directory,
    ports: [u16; 3],
    args: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Node {
    /// Starts a node with these arguments after its own (`--port`, `--dir` …) and waits until it serves.
    pub fn start(args: &[&str]) -> Node {
        let mut node = Node::prepare(args);
        node.restart();
        node
    }

    /// A node that has not been started; [`Node::restart`] does.
    pub fn prepare(args: &[&str]) -> Node {
        let ports = [free_port(), free_port(), free_port()];
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Node { process: None, directory: Directory::new(), ports, args, environment: Vec::new() }
    }

    /// Other arguments for its next life.
    pub fn set_args(&mut self, args: &[&str]) {
        self.args = args.iter().map(|arg| (*arg).to_owned()).collect();
    }

    /// A variable of the environment of its next lives.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// A library that is loaded into the process before its own, after those that were named before.
    pub fn preload(&mut self, library: &Path) {
        const NAME: &str = "LD_PRELOAD";
        let library = library.display().to_string();
        match self.environment.iter_mut().find(|(name, _)| name == NAME) {
            Some((_, libraries)) => *libraries = format!("{libraries}:{library}"),
            None => self.set_env(NAME, &library),
        }
    }

    /// Starts it (again) on the same ports and data, and waits until it serves.
    pub fn restart(&mut self) {
        self.spawn();
        self.wait_until_serving();
    }

    /// Starts it without waiting.
    pub fn spawn(&mut self) {
        assert!(self.process.is_none(), "the node runs already");
        let log = File::options().create(true).append(true).open(self.log_path()).unwrap();
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Some(Guarded::spawn(command, self.directory.path()));
    }

    fn command(&self) -> Command {
        let [port, http_port, peer_port] = self.ports.map(|port| port.to_string());
        let mut command = binary();
        command.args(["--bind", "127.0.0.1", "--port", &port, "--http-port", &http_port]);
        command.args(["--peer-port", &peer_port, "--dir"]).arg(self.data_dir());
        // Many nodes share a disk here, which may be memory.
        command.args(["--disk-ballast", "no"]);
        command.args(&self.args);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Waits until PING is answered.
    pub fn wait_until_serving(&mut self) {
        let address = self.address();
        let process = &mut self.process;
        let log = self.directory.path().join("node.log");
        let tail = || fs::read_to_string(&log).unwrap_or_default();
        wait_for("the node to serve", PATIENCE, || {
            let running = process.as_mut().expect("the node was spawned");
            if let Some(status) = running.child.try_wait().unwrap() {
                panic!("the node ended with {status}:\n{}", tail());
            }
            let mut client = Client::try_connect(address).ok()?;
            client.try_send_raw(b"*1\r\n$4\r\nPING\r\n").ok()?;
            matches!(client.try_read(), Ok(Value::Simple(pong)) if pong == "PONG").then_some(())
        });
    }

    /// A new connection.
    pub fn client(&self) -> Client {
        Client::connect(self.address())
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports[0]))
    }

    pub fn port(&self) -> u16 {
        self.ports[0]
    }

    /// Its port for other nodes.
    pub fn peer_port(&self) -> u16 {
        self.ports[2]
    }

    /// The id of its process.
    pub fn process_id(&self) -> u32 {
        self.process.as_ref().expect("the node runs").child.id()
    }

    /// Removes all its data, as a lost disk does.
    pub fn wipe(&mut self) {
        assert!(self.process.is_none(), "the node still runs");
        fs::remove_dir_all(self.data_dir()).unwrap();
    }

    /// Where its data is.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// What it wrote to standard output and standard error in all its lives.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("node.log")
    }

    /// Ends it as `kill -9` does: at any instruction.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Asks it to end as `kill -TERM` does and waits until it has.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let running = self.process.as_ref().expect("the node runs");
        let command = format!("kill -{name} {}", running.child.id());
        assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
    }

    /// True while SIGSTOP holds every one of its threads.
    pub fn stands_still(&self) -> bool {
        let running = self.process.as_ref().expect("the node runs");
        let threads = std::fs::read_dir(format!("/proc/{}/task", running.child.id())).unwrap();
        threads.flatten().all(|thread| {
            // The state follows the name in parentheses. A thread that has ended meanwhile does nothing either.
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with(['T', 'X', 'Z']))
        })
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let running = self.process.as_mut().expect("the node runs");
        let status = wait_for("the node to end", PATIENCE, || running.child.try_wait().unwrap());
        self.process = None;
        status
    }

    /// How it ended, if it has ended by itself.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        let status = self.process.as_mut()?.child.try_wait().unwrap()?;
        self.process = None;
        Some(status)
    }

    /// Whether the process has not ended.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|running| running.child.try_wait().unwrap().is_none())
    }

    /// Resident memory of the process.
    pub fn resident_bytes(&self) -> u64 {
        let running = self.process.as_ref().expect("the node runs");
        let status = fs::read_to_string(format!("/proc/{}/status", running.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
    }

    /// Status and body of a page of the HTTP port.
    pub fn http(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports[1])).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        (status.expect("a status line"), body.expect("a body"))
    }
}

/// The binary under test.
pub fn binary() -> Command {
    Command::new(env!("CARGO_BIN_EXE_holdfast"))
}

/// Runs the binary until it ends by itself; kills it and fails the test after some patience.
pub fn run_to_end(args: &[&str]) -> Output {
    let mut command = binary();
    let mut child = command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ended = (0..PATIENCE.0 / 10).any(|_| {
        let ended = child.try_wait().unwrap().is_some();
        if !ended {
            thread::sleep(Duration::from_millis(10));
        }
        ended
    });
    if !ended {
        let _ = child.kill();
    }
    let output = child.wait_with_output().unwrap();
    assert!(ended, "holdfast {args:?} kept running: {output:?}");
    output
}

/// A child process that ends with this one, however this one ends: a shell waits for the closing of a pipe whose
/// other end only we hold. Needed because a node shared by several tests sits in a static, which is never dropped.
pub struct Guarded {
    pub child: Child,
    guard: Child,
}

impl Guarded {
    /// Starts `command`; `directory` is removed with it should nobody else come to that.
    pub fn spawn(mut command: Command, directory: &Path) -> Guarded {
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        // The process may still make a file while it dies, so its end is waited for.
        const GUARD: &str = r#"cat >/dev/null; kill -9 "$1"
            for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$1" 2>/dev/null || break; sleep 0.1; done
            rm -rf "$2""#;
        let guard = Command::new("sh")
            .args(["-c", GUARD, "guard", &child.id().to_string()])
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        Guarded { child, guard }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // The guard first: once the child is waited for, its id may be another process's.
        let _ = self.guard.kill();
        let _ = self.guard.wait();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A new directory, removed when dropped; kept when its test fails, for whoever looks into it.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Directory {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("holdfast-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("data")).unwrap();
        Directory(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("kept for a look: {}", self.0.display());
        } else {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// A loopback port nothing listens on, below the range that outgoing connections take theirs from, and not given
/// out twice by this process.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Another process that tests starts elsewhere, so that two hardly ever try the same port at once.
    let start = (std::process::id().wrapping_mul(97) % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let port = FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}
