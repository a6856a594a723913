//! Several nodes as processes of their own that form a cluster, and what can happen to them.
//!
//! Nodes go by their `node-id`, from 1. One cluster runs at a time in a test binary, whatever the number of test
//! threads: elections of starved processes would test the machine.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;

use holdfast::types::Millis;

use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::ok;
use crate::support::node::Directory;
use crate::support::node::Node;
use crate::support::wait_for;

/// How long the cluster may take for anything before the test fails.
pub const PATIENCE: Millis = Millis(60_000);

/// How long a node may take to answer a question about itself; a stopped one never does.
const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// A log in which nothing came for this long stands still.
const SETTLED: Duration = Duration::from_millis(400);

/// Bytes of each node's output that a failed test shows.
const OUTPUT_SHOWN: usize = 6_000;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The nodes of a cluster. Dropping it kills them and removes their directories.
pub struct Cluster {
    nodes: Vec<Node>,
    /// What follows each node's own arguments.
    args: Vec<String>,
    /// Ports under which nodes are known to the others, where these are not their own.
    advertised: BTreeMap<u64, u16>,
    /// Ports under which single nodes know others, by who dials and who is dialled.
    dialled: BTreeMap<(u64, u64), u16>,
    /// Nodes that SIGSTOP holds.
    held: BTreeSet<u64>,
    _alone: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Three nodes with these arguments after their own; each answers writes.
    pub fn start(args: &[&str]) -> Cluster {
        let mut cluster = Cluster::prepare(3, args);
        cluster.start_all();
        cluster
    }

    /// Nodes that were not started; [`Cluster::start_all`] does.
    pub fn prepare(count: u64, args: &[&str]) -> Cluster {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        Cluster {
            nodes: (0..count).map(|_| Node::prepare(&[])).collect(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            advertised: BTreeMap::new(),
            dialled: BTreeMap::new(),
            held: BTreeSet::new(),
            _alone: alone,
        }
    }

    /// The ids of all nodes, running or not.
    pub fn ids(&self) -> Vec<u64> {
        (1..=self.nodes.len() as u64).collect()
    }

    /// All but this one.
    pub fn others(&self, than: u64) -> Vec<u64> {
        self.ids().into_iter().filter(|id| *id != than).collect()
    }

    pub fn node(&self, id: u64) -> &Node {
        &self.nodes[place(id)]
    }

    pub fn node_mut(&mut self, id: u64) -> &mut Node {
        &mut self.nodes[place(id)]
    }

    /// Lets the others know the node under this port, from its next start on: that of a [`Proxy`].
    pub fn advertise(&mut self, id: u64, port: u16) {
        self.advertised.insert(id, port);
    }

    /// Lets one node know another under this port, from its next start on: that of a link that can be cut.
    pub fn advertise_to(&mut self, by: u64, id: u64, port: u16) {
        self.dialled.insert((by, id), port);
    }

    fn arguments(&self, id: u64) -> Vec<String> {
        let mut args = vec!["--node-id".to_owned(), id.to_string()];
        for other in self.ids() {
            let dialled = self.dialled.get(&(id, other)).or(self.advertised.get(&other));
            let port = dialled.copied().unwrap_or(self.node(other).peer_port());
            args.extend(["--cluster-node".to_owned(), other.to_string(), format!("127.0.0.1:{port}")]);
        }
        args.extend(self.args.iter().cloned());
        args
    }

    /// Starts a node without waiting.
    pub fn spawn(&mut self, id: u64) {
        let args = self.arguments(id);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let node = self.node_mut(id);
        node.set_args(&args);
        node.spawn();
    }

    /// Starts a node and waits until it answers writes, which takes a majority.
    pub fn start_node(&mut self, id: u64) {
        self.spawn(id);
        self.wait_until_serving(id);
    }

    /// Starts all that do not run and waits until every node answers writes.
    pub fn start_all(&mut self) {
        for id in self.ids() {
            if !self.node_mut(id).is_running() {
                self.spawn(id);
            }
        }
        self.ids().into_iter().for_each(|id| self.wait_until_serving(id));
    }

    /// Waits until this node answers a write.
    pub fn wait_until_serving(&mut self, id: u64) {
        wait_for(&format!("node {id} to serve"), PATIENCE, || {
            let node = self.node_mut(id);
            if !node.is_running() {
                let status = node.wait();
                panic!("node {id} ended with {status}:\n{}", tail(&node.log()));
            }
            let mut client = Client::try_connect(node.address()).ok()?;
            let answer = client.try_cmd(&["SET", &format!("serving:{id}"), "yes"]).ok()?;
            (answer == ok()).then_some(())
        });
    }

    pub fn address(&self, id: u64) -> SocketAddr {
        self.node(id).address()
    }

    /// A new connection to a node.
    pub fn client(&self, id: u64) -> Client {
        self.node(id).client()
    }

    /// Ends a node as `kill -9` does.
    pub fn kill(&mut self, id: u64) {
        self.held.remove(&id);
        self.node_mut(id).kill();
    }

    /// Kills the leader and waits until the others have one.
    pub fn kill_leader(&mut self) -> u64 {
        let killed = self.leader();
        self.kill(killed);
        wait_for("another leader", PATIENCE, || self.leader_now().filter(|now| *now != killed));
        killed
    }

    /// Ends all of them at once as `kill -9` does.
    pub fn kill_all(&mut self) {
        let ids = self.ids().into_iter();
        let running: Vec<u64> = ids.filter(|id| self.node_mut(*id).is_running()).collect();
        let processes: Vec<String> =
            running.iter().map(|id| self.node(*id).process_id().to_string()).collect();
        let command = format!("kill -9 {}", processes.join(" "));
        assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
        running.into_iter().for_each(|id| self.kill(id));
    }

    /// Holds a node as SIGSTOP does: its sockets stay open and nothing is answered.
    pub fn hold(&mut self, id: u64) {
        self.node(id).signal("STOP");
        self.held.insert(id);
        // The signal is delivered thread by thread.
        let node = self.node(id);
        wait_for("the node to stand still", Millis(10_000), || node.stands_still().then_some(()));
    }

    /// Lets a held node go on.
    pub fn resume(&mut self, id: u64) {
        self.node(id).signal("CONT");
        self.held.remove(&id);
    }

    /// Removes the data of a node that does not run.
    pub fn wipe(&mut self, id: u64) {
        self.node_mut(id).wipe();
    }

    /// The nodes that run and are not held.
    pub fn running(&mut self) -> Vec<u64> {
        let held = self.held.clone();
        self.ids().into_iter().filter(|id| !held.contains(id) && self.node_mut(*id).is_running()).collect()
    }

    /// What a node says about its part in the group; `None` when it does not say.
    pub fn raft_info(&self, id: u64) -> Option<RaftInfo> {
        let mut client = Client::try_connect(self.address(id)).ok()?;
        client.set_timeout(ANSWER_WAIT);
        let answer = client.try_cmd(&["RAFT", "INFO"]).ok()?;
        (!answer.is_error()).then(|| RaftInfo::read(&answer))
    }

    /// The node that says it leads, if any; of two that say so, the one of the later term.
    pub fn leader_now(&mut self) -> Option<u64> {
        let leading = self.running().into_iter().filter_map(|id| {
            let info = self.raft_info(id)?;
            (info.role == "leader").then_some((info.term, id))
        });
        leading.max().map(|(_, id)| id)
    }

    /// The node that leads, once there is one.
    pub fn leader(&mut self) -> u64 {
        wait_for("a leader", PATIENCE, || self.leader_now())
    }

    /// A node that does not lead.
    pub fn follower(&mut self) -> u64 {
        let leader = self.leader();
        let running = self.running();
        running.into_iter().find(|id| *id != leader).expect("a second node runs")
    }

    /// Waits until a node has applied all that the leader had committed when this was called.
    pub fn wait_until_caught_up(&mut self, id: u64) {
        let commit = wait_for("the leader's commit index", PATIENCE, || {
            let leader = self.leader_now()?;
            self.raft_info(leader).map(|info| info.commit)
        });
        wait_for(&format!("node {id} to apply {commit}"), PATIENCE, || {
            self.raft_info(id).filter(|info| info.applied >= commit).map(drop)
        });
    }

    /// Waits until nothing comes into the log that nodes may still try for clients that were answered INDOUBT or left.
    pub fn settle(&mut self) {
        let mut commit = || {
            let leader = self.leader_now()?;
            self.raft_info(leader).map(|info| info.commit)
        };
        wait_for("the log to stand still", PATIENCE, || {
            let before = commit()?;
            thread::sleep(SETTLED);
            (commit()? == before).then_some(())
        });
    }

    /// What the leader knows of the members.
    pub fn members(&mut self) -> Vec<Member> {
        wait_for("RAFT MEMBERS", PATIENCE, || {
            let leader = self.leader_now()?;
            let mut client = Client::try_connect(self.address(leader)).ok()?;
            let answer = client.try_cmd(&["RAFT", "MEMBERS"]).ok()?;
            (!answer.is_error()).then(|| Member::read_all(&answer))
        })
    }

    /// The digests of the nodes' states at one index, asked of node `by`. `None`: not answered, or with an error.
    pub fn digests(&self, by: u64) -> Option<Digests> {
        let mut client = Client::try_connect(self.address(by)).ok()?;
        let answer = client.try_cmd(&["RAFT", "VERIFY"]).ok()?;
        (!answer.is_error()).then(|| Digests::read(&answer))
    }

    /// Every running node has the same state at the same index. Waits for those that lag; a difference fails at once.
    pub fn check_digests(&mut self) {
        let running = self.running();
        let mut asked = running.clone().into_iter().cycle();
        let digests = wait_for("the digests of all nodes", PATIENCE, || {
            let digests = self.digests(asked.next()?)?;
            assert!(!digests.differ(), "states differ: {digests:?}");
            running.iter().all(|id| digests.by_node.contains_key(id)).then_some(digests)
        });
        // Of a node that is down nothing is known.
        assert!(digests.is_equal || running.len() < self.nodes.len(), "not equal: {digests:?}");
    }

    /// All nodes run, or are held, and none reported a panic.
    pub fn check_alive(&mut self) {
        for id in self.ids() {
            let node = self.node_mut(id);
            assert!(node.is_running(), "node {id} ended:\n{}", tail(&node.log()));
            let log = node.log();
            assert!(!log.contains("panicked at"), "node {id} panicked:\n{}", tail(&log));
        }
    }

    /// Resident memory of all nodes together.
    pub fn resident_bytes(&self) -> Vec<u64> {
        self.nodes.iter().map(Node::resident_bytes).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            for (node, id) in self.nodes.iter().zip(1..) {
                println!("-- the last output of node {id}:\n{}", tail(&node.log()));
            }
        }
    }
}

fn place(id: u64) -> usize {
    usize::try_from(id - 1).unwrap()
}

fn tail(log: &str) -> &str {
    let start = log.len().saturating_sub(OUTPUT_SHOWN);
    let start = (start..log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or(start);
    &log[start..]
}

/// The reply of RAFT INFO.
#[derive(Debug, Clone, PartialEq)]
pub struct RaftInfo {
    /// `leader`, `follower` …
    pub role: String,
    pub term: u64,
    /// The node it takes for the leader.
    pub leader: Option<u64>,
    pub commit: u64,
    pub applied: u64,
    pub snapshots_installed: Option<u64>,
}

impl RaftInfo {
    pub fn read(answer: &Value) -> RaftInfo {
        let number = |name: &str| answer.field(name).number();
        let leader = match answer.field("leader") {
            Value::Null => None,
            Value::Bulk(text) if text.is_empty() => None,
            known => Some(known.number()).filter(|id| *id != 0),
        };
        RaftInfo {
            role: answer.field("role").text().to_lowercase(),
            term: number("term"),
            leader,
            commit: number("commit"),
            applied: number("applied"),
            snapshots_installed: answer.optional("snapshots_installed").map(|count| count.number()),
        }
    }
}

/// A member of the reply of RAFT MEMBERS.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    pub node: u64,
    /// Its name in the group: never given twice, not even to the same node.
    pub replica: u64,
    pub is_voter: bool,
}

impl Member {
    pub fn read_all(answer: &Value) -> Vec<Member> {
        answer.items().iter().map(Member::read).collect()
    }

    fn read(answer: &Value) -> Member {
        let says_voter = |value: &Value| match value {
            Value::Bulk(_) | Value::Simple(_) => value.text().eq_ignore_ascii_case("voter"),
            _ => false,
        };
        Member {
            node: answer.field("node").number(),
            replica: answer.field("replica").number(),
            is_voter: answer.pairs().iter().any(|(_, value)| says_voter(value)),
        }
    }
}

/// The reply of RAFT VERIFY.
#[derive(Debug, Clone, PartialEq)]
pub struct Digests {
    pub index: u64,
    /// All nodes have the same state, and every one of them said so.
    pub is_equal: bool,
    pub by_node: BTreeMap<u64, String>,
}

impl Digests {
    pub fn read(answer: &Value) -> Digests {
        let by_node = answer.field("digests").pairs();
        let known = by_node.iter().filter(|(_, digest)| !matches!(digest, Value::Null));
        Digests {
            index: answer.field("index").number(),
            is_equal: *answer.field("equal") == Value::Integer(1),
            by_node: known.map(|(node, digest)| (node.number(), digest.text())).collect(),
        }
    }

    /// Two of the nodes have different states at the index.
    pub fn differ(&self) -> bool {
        self.by_node.values().collect::<BTreeSet<_>>().len() > 1
    }
}

/// What went through a connection of a [`Proxy`], from its begin on.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    /// From the side that dialled.
    pub sent: Vec<u8>,
    pub answered: Vec<u8>,
}

/// Stands before a port, passes everything on and records the first bytes of every connection. Its threads end with
/// the connections, the listening one with the process.
pub struct Proxy {
    port: u16,
    recordings: Arc<Mutex<Vec<Recording>>>,
}

/// Bytes of a direction of a connection that are kept.
const RECORDED: usize = 64 << 10;

impl Proxy {
    pub fn before(target: u16) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let recordings = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&recordings);
        thread::spawn(move || {
            for dialled in listener.incoming().flatten() {
                // A target that is down is a connection that closes at once.
                let Ok(target) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)) else { continue };
                let number = {
                    let mut recordings = shared.lock().unwrap();
                    recordings.push(Recording::default());
                    recordings.len() - 1
                };
                let _ = pass_on(&dialled, &target, &shared, number, |recording| &mut recording.sent);
                let _ = pass_on(&target, &dialled, &shared, number, |recording| &mut recording.answered);
            }
        });
        Proxy { port, recordings }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn recordings(&self) -> Vec<Recording> {
        self.recordings.lock().unwrap().clone()
    }
}

/// Copies one direction on a thread of its own until either side closes.
fn pass_on(
    from: &TcpStream,
    to: &TcpStream,
    recordings: &Arc<Mutex<Vec<Recording>>>,
    number: usize,
    side: fn(&mut Recording) -> &mut Vec<u8>,
) -> io::Result<()> {
    let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
    to.set_nodelay(true)?;
    let recordings = Arc::clone(recordings);
    thread::spawn(move || {
        let mut bytes = vec![0; 1 << 16];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            {
                let mut recordings = recordings.lock().unwrap();
                let kept = side(&mut recordings[number]);
                let room = RECORDED - kept.len();
                kept.extend_from_slice(&bytes[..count.min(room)]);
            }
            if to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    });
    Ok(())
}

/// The wall clocks of nodes, each set by a file that libfaketime reads at every look at the clock. Monotonic clocks
/// stay as they are.
pub struct WallClocks {
    library: PathBuf,
    directory: Directory,
}

impl WallClocks {
    /// `None` when libfaketime is not installed.
    pub fn find() -> Option<WallClocks> {
        // The first is made for processes with threads.
        const NAMES: [&str; 2] = ["libfaketimeMT.so.1", "libfaketime.so.1"];
        let mut places: Vec<PathBuf> =
            std::env::var("FAKETIME_DIRECTORY").into_iter().map(PathBuf::from).collect();
        for base in ["/usr/lib", "/usr/lib64", "/usr/local/lib"] {
            places.push(PathBuf::from(base).join("faketime"));
            let below = std::fs::read_dir(base).into_iter().flatten().flatten();
            places.extend(below.map(|entry| entry.path().join("faketime")));
        }
        let mut files = NAMES.iter().flat_map(|name| places.iter().map(move |place| place.join(name)));
        let library = files.find(|file| file.exists())?;
        Some(WallClocks { library, directory: Directory::new() })
    }

    /// Gives a node that was not started a wall clock of its own, which goes right at first.
    pub fn give(&self, id: u64, node: &mut Node) {
        self.set(id, 0);
        node.preload(&self.library);
        node.set_env("FAKETIME_TIMESTAMP_FILE", &self.file(id).display().to_string());
        node.set_env("FAKETIME_NO_CACHE", "1");
        node.set_env("DONT_FAKE_MONOTONIC", "1");
        node.set_env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }

    /// Moves a node's wall clock to so many seconds from the true time.
    pub fn set(&self, id: u64, seconds: i64) {
        let new = self.directory.path().join(format!("{id}.new"));
        std::fs::write(&new, format!("{seconds:+}\n")).unwrap();
        // A rename, so that nobody reads half of it.
        std::fs::rename(&new, self.file(id)).unwrap();
    }

    fn file(&self, id: u64) -> PathBuf {
        self.directory.path().join(id.to_string())
    }
}

/// Seconds since the Unix epoch as a node sees them.
pub fn wall_seconds(client: &mut Client) -> i64 {
    i64::try_from(client.cmd(&["TIME"]).items()[0].number()).unwrap()
}
