//! Clients that fill a disk, and what they were told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;

use holdfast::types::Millis;

use crate::support::Random;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::ok;
use crate::support::wait_for;

/// Rounds in a row of which little was taken after which a writer is done: a burst may be refused before the disk is full,
/// and a full one takes a little whenever its node found some more to give back.
const REFUSED_MAX: u32 = 40;
/// One part in so many is little.
const LITTLE_PART: u64 = 10;
/// How long a command that must go on may take on a full disk.
const PATIENCE: Millis = Millis(60_000);

/// What was acknowledged.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Filled {
    pub keys: u64,
    pub messages: u64,
    /// Of values and payloads.
    pub bytes: u64,
    pub refused: u64,
}

/// Fills the disks of these nodes with small values, large ones, and messages, until nearly nothing more is taken. `round`
/// keeps keys apart. Every refusal must be one for want of room.
pub fn fill(nodes: &[SocketAddr], round: usize) -> Filled {
    let writers: Vec<JoinHandle<Filled>> = (0..6)
        .map(|writer| {
            let to = nodes[writer % nodes.len()];
            thread::spawn(move || write_until_refused(to, round, writer))
        })
        .collect();
    let mut all = Filled::default();
    for writer in writers {
        let filled = writer.join().unwrap();
        all.keys += filled.keys;
        all.messages += filled.messages;
        all.bytes += filled.bytes;
        all.refused += filled.refused;
    }
    all
}

fn write_until_refused(to: SocketAddr, round: usize, writer: usize) -> Filled {
    let mut client = Client::connect(to);
    let mut filled = Filled::default();
    let text = incompressible((round * 100 + writer) as u64);
    let part = |at: usize, n: usize, length: usize| {
        let from = (at * 7_919 + n * 104_729) % (text.len() - length + 1);
        text[from..from + length].to_owned()
    };
    let mut refused_in_a_row = 0;
    for at in 0.. {
        let key = |n: usize| format!("{round}:{writer}:{at}:{n}");
        let commands: Vec<Vec<String>> = match writer % 3 {
            0 => (0..200).map(|n| vec!["SET".to_owned(), key(n), part(at, n, 100)]).collect(),
            1 => vec![vec!["SET".to_owned(), key(0), part(at, 0, 1_000_000)]],
            _ => (0..20).map(|n| vec!["QPUSH".to_owned(), "queue".to_owned(), part(at, n, 10_000)]).collect(),
        };
        let replies = client.pipeline(&commands);
        let is_refused = |reply: &&Value| reply.error_code() == Some("MISCONF");
        let refused = replies.iter().filter(is_refused).count();
        let taken = (replies.len() - refused) as u64;
        for reply in &replies {
            let is_taken = *reply == ok() || matches!(reply, Value::Bulk(_));
            assert!(is_taken || is_refused(&reply), "{reply:?}");
        }
        filled.bytes += taken * commands[0].last().map_or(0, |value| value.len() as u64);
        match writer % 3 {
            0 | 1 => filled.keys += taken,
            _ => filled.messages += taken,
        }
        filled.refused += refused as u64;
        let is_little = taken * LITTLE_PART <= replies.len() as u64;
        refused_in_a_row = if is_little { refused_in_a_row + 1 } else { 0 };
        if refused_in_a_row >= REFUSED_MAX {
            return filled;
        }
        if refused > 0 {
            // It has to be looked at the disk again.
            thread::sleep(std::time::Duration::from_millis(25));
        }
    }
    filled
}

/// Text that compression makes little of.
fn incompressible(seed: u64) -> String {
    let mut random = Random::new(seed);
    (0..1 << 20).map(|_| char::from(b'0' + (random.next() % 64) as u8)).collect()
}

/// Removes all that was written, in parts that each must be taken.
pub fn empty(to: SocketAddr) {
    let mut client = Client::connect(to);
    client.set_timeout(std::time::Duration::from_millis(PATIENCE.0));
    let deleted = client.cmd(&["QDEL", "queue", "ALL"]);
    assert!(!deleted.is_error(), "{deleted:?}");
    assert_eq!(client.cmd(&["FLUSHALL"]), ok());
}

/// Waits until data is taken again.
pub fn wait_until_taken(to: SocketAddr) {
    let mut client = Client::connect(to);
    wait_for("data to be taken again", PATIENCE, || {
        let answer = client.cmd(&["SET", "again", "value"]);
        assert!(answer == ok() || answer.error_code() == Some("MISCONF"), "{answer:?}");
        (answer == ok()).then_some(())
    });
}

/// A client that reads one key all the while.
pub struct Reader {
    stop: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Reader {
    /// Reads `key`, which must have this value as long as this lives.
    pub fn start(from: SocketAddr, key: &'static str, value: &'static str) -> Reader {
        let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&reads));
        let thread = thread::spawn(move || {
            let mut client = Client::connect(from);
            while !stopped.load(Ordering::SeqCst) {
                assert_eq!(client.cmd(&["GET", key]), crate::support::client::bulk(value));
                counted.fetch_add(1, Ordering::SeqCst);
                thread::sleep(std::time::Duration::from_millis(2));
            }
        });
        Reader { stop, reads, thread }
    }

    /// How often it read.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
        self.reads.load(Ordering::SeqCst)
    }
}
