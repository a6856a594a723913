//! A network between clients and a node that breaks: a proxy that cuts each connection after a number of bytes drawn at
//! random, in the middle of a request or of a reply.

use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;

use crate::support::Random;

/// A proxy before a port. Its threads end with the connections, the listening one with the process.
pub struct Cuts {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    target: SocketAddr,
    /// Bytes of a direction of a connection before the cut, on average.
    bytes: [u64; 2],
    is_healed: AtomicBool,
    made: AtomicU64,
    random: Mutex<Random>,
}

impl Cuts {
    /// Before `target`: connections pass on so many bytes from the client and to it, on average.
    pub fn before(target: SocketAddr, seed: u64, from_client: u64, to_client: u64) -> Cuts {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            target,
            bytes: [from_client, to_client],
            is_healed: AtomicBool::new(false),
            made: AtomicU64::new(0),
            random: Mutex::new(Random::new(seed)),
        });
        let kept = Arc::clone(&shared);
        thread::spawn(move || {
            for dialled in listener.incoming().flatten() {
                // A target that is down is a connection that closes at once.
                let Ok(target) = TcpStream::connect(shared.target) else { continue };
                let ends = [dialled.try_clone(), target.try_clone(), target.try_clone(), dialled.try_clone()];
                let [Ok(from), Ok(to), Ok(from_target), Ok(to_dialled)] = ends else { continue };
                for (direction, from, to) in [(0, from, to), (1, from_target, to_dialled)] {
                    let _ = to.set_nodelay(true);
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || shared.pass_on(direction, from, to));
                }
            }
        });
        Cuts { address, shared: kept }
    }

    /// Where clients find it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Nothing is cut any more.
    pub fn heal(&self) {
        self.shared.is_healed.store(true, Ordering::SeqCst);
    }

    /// Connections that were cut.
    pub fn count(&self) -> u64 {
        self.shared.made.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn pass_on(&self, direction: usize, mut from: TcpStream, mut to: TcpStream) {
        let mut left = 1 + self.random.lock().unwrap().below(2 * self.bytes[direction]);
        let mut bytes = vec![0; 1 << 14];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            let passed =
                if self.is_healed.load(Ordering::SeqCst) { count as u64 } else { left.min(count as u64) };
            if to.write_all(&bytes[..usize::try_from(passed).unwrap()]).is_err() {
                break;
            }
            left = left.saturating_sub(passed);
            if left == 0 && !self.is_healed.load(Ordering::SeqCst) {
                self.made.fetch_add(1, Ordering::SeqCst);
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}
