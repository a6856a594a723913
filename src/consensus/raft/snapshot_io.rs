//! The thread that moves snapshots between disks and peers.
//!
//! What to send and what to take is decided in `transfer`; here are the files, the clock and the link. One
//! thread for all transfers of the node: it never waits for a peer, and long work (checksums of a checkpoint)
//! is done in pieces, so that every transfer is served within a fraction of a second.
//!
//! ```text
//! Send ──► checksums ──► Offer … chunks ──► sent(ok)            once per Send, unless it was replaced
//! Offer ──► files written, each synced ──► names synced ──► received(name) ──► Finished
//! ```
//!
//! A disk error ends the transfer it happened in. Nothing here is the only copy of anything, so unlike an
//! error of the log it is no reason to stop the process.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Clock;
use crate::config::DiskSize;
use crate::consensus::mailbox::Mailbox;
use crate::consensus::raft::replica::spawn;
use crate::consensus::raft::transfer;
use crate::consensus::raft::transfer::ChunkOutcome;
use crate::consensus::raft::transfer::Incoming;
use crate::consensus::raft::transfer::IncomingState;
use crate::consensus::raft::transfer::Offer;
use crate::consensus::raft::transfer::OfferOutcome;
use crate::consensus::raft::transfer::Outgoing;
use crate::consensus::raft::transfer::OutgoingState;
use crate::consensus::raft::transfer::TransferMessage;
use crate::storage;
use crate::storage::FileLister;
use crate::storage::IncomingDir;
use crate::storage::SnapshotReader;
use crate::storage::StorageError;
use crate::storage::disk::DiskLimits;
use crate::types::GroupId;
use crate::types::LogIndex;
use crate::types::Millis;
use crate::types::Monotonic;
use crate::types::NodeId;
use crate::types::Term;

/// How much of a checkpoint is read for its checksums before the other transfers have their turn.
const LIST_BYTES: u64 = 8 << 20;
/// How long to wait before a full link is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(5);
/// How often the clock is looked at while there are transfers.
const TICK: Duration = Duration::from_millis(100);
/// Without transfers only a message wakes the thread.
const IDLE: Duration = Duration::from_secs(3600);
/// How often it is told that a transfer moves.
const MOVED_INTERVAL: Millis = Millis(1_000);
/// Transfers that are remembered as finished, for senders that missed the answer.
const FINISHED_MAX: usize = 64;

/// What the thread is told.
#[derive(Debug)]
pub enum SnapshotEvent {
    /// Send the files of `checkpoint` and then `message` (at most [`transfer::MESSAGE_BYTES_MAX`]) to a
    /// replica. The checkpoint must stay until [`SnapshotPort::sent`]. Replaces a transfer of the group to
    /// that replica, which is then not reported.
    Send {
        to: NodeId,
        to_replica: u64,
        group: GroupId,
        index: u64,
        term: u64,
        checkpoint: PathBuf,
        message: Vec<u8>,
    },
    /// A payload of `Channel::Snapshot`.
    Message { from: NodeId, payload: Bytes },
    /// The link is down: what is sent to this node has failed. What it was sending is kept for a while.
    PeerDown(NodeId),
    /// Do not send to this replica any more. Reported as not sent.
    Cancel { to_replica: u64 },
    /// A directory that was given to [`SnapshotPort::received`] is no longer needed: its rows are installed and
    /// the install marker is cleared, or they never will be. What there is of it is deleted. Until then the
    /// same snapshot is refused: a marker must never find another transfer's files under its name.
    Release { incoming_dir: String },
    /// End the thread. Nothing is reported any more.
    Stop,
}

/// What the thread tells. Called on it, so nothing here may block.
pub trait SnapshotPort: Send {
    /// Sends a payload on `Channel::Snapshot`. False when it was not taken (no link, or a full one): it is
    /// tried again later.
    fn send(&self, to: NodeId, payload: Vec<u8>) -> bool;

    /// Some of a `Send` moved; told about once a second while it does.
    fn moved(&self, group: GroupId, to_replica: u64);

    /// A `Send` is over. With `ok`, the receiver has the snapshot and the message.
    fn sent(&self, group: GroupId, to_replica: u64, ok: bool);

    /// A snapshot has arrived, whole and durable, in `<dir>/incoming/<incoming_dir>/`, which is the callee's
    /// from now on. Called once for each; `Finished` is sent after it.
    fn received(&self, group: GroupId, from: NodeId, message: Vec<u8>, incoming_dir: String);
}

/// Counts since the start, for metrics.
#[derive(Debug, Default)]
pub struct SnapshotCounters {
    /// Bytes of files given to the link, repeated ones too.
    pub bytes_sent: AtomicU64,
    /// Bytes of files written.
    pub bytes_received: AtomicU64,
    /// Snapshots that the other side confirmed.
    pub sent: AtomicU64,
    /// Snapshots that arrived whole.
    pub received: AtomicU64,
    /// Transfers in either direction that ended otherwise.
    pub failed: AtomicU64,
}

/// Starts the thread. `dir` is the data directory.
pub fn start(
    dir: PathBuf,
    mailbox: Arc<Mailbox<SnapshotEvent>>,
    clock: Arc<dyn Clock>,
    counters: Arc<SnapshotCounters>,
    port: Box<dyn SnapshotPort>,
) -> io::Result<JoinHandle<()>> {
    // Numbers of transfers must differ from those of this node's earlier processes.
    let next_transfer = clock.wall().0 << 16;
    let mut snapshots = SnapshotIo {
        dir,
        clock,
        counters,
        port,
        outgoing: BTreeMap::new(),
        incoming: BTreeMap::new(),
        finished: VecDeque::new(),
        handed_over: BTreeSet::new(),
        next_transfer,
    };
    spawn("snapshot-io", move || {
        let mut events = Vec::new();
        let mut pause = IDLE;
        loop {
            mailbox.receive(&mut events, pause);
            for event in events.drain(..) {
                if matches!(event, SnapshotEvent::Stop) {
                    return;
                }
                snapshots.on_event(event);
            }
            pause = snapshots.turn();
        }
    })
}

/// State of the thread.
struct SnapshotIo {
    dir: PathBuf,
    clock: Arc<dyn Clock>,
    counters: Arc<SnapshotCounters>,
    port: Box<dyn SnapshotPort>,
    /// By the number of the transfer.
    outgoing: BTreeMap<u64, Sending>,
    incoming: BTreeMap<GroupId, Receiving>,
    /// The last transfers that were received, oldest first.
    finished: VecDeque<(NodeId, u64)>,
    /// Directories that were given to `received` and not released.
    handed_over: BTreeSet<String>,
    next_transfer: u64,
}

/// A snapshot on its way to a peer.
struct Sending {
    to: NodeId,
    to_replica: u64,
    group: GroupId,
    reader: SnapshotReader,
    stage: Stage,
    /// When it was last told that something moved.
    told: Monotonic,
}

impl Sending {
    fn tell_moved(&mut self, port: &dyn SnapshotPort, now: Monotonic) {
        if now.since(self.told) >= MOVED_INTERVAL {
            self.told = now;
            port.moved(self.group, self.to_replica);
        }
    }
}

enum Stage {
    /// The checksums are being computed; the offer has no files yet.
    Listing {
        lister: FileLister,
        offer: Offer,
    },
    Sending(Outgoing),
}

/// A snapshot on its way to here.
struct Receiving {
    transfer: Incoming,
    /// The name of the directory.
    name: String,
    files: IncomingDir,
}

impl SnapshotIo {
    fn on_event(&mut self, event: SnapshotEvent) {
        match event {
            SnapshotEvent::Send { to, to_replica, group, index, term, checkpoint, message } => {
                self.outgoing.retain(|_, sending| (sending.group, sending.to_replica) != (group, to_replica));
                self.next_transfer += 1;
                let transfer = self.next_transfer;
                let offer = Offer { transfer, group, to_replica, index, term, message, files: Vec::new() };
                match FileLister::new(&checkpoint) {
                    Ok(lister) => {
                        let reader = SnapshotReader::new(&checkpoint);
                        let stage = Stage::Listing { lister, offer };
                        let told = self.clock.monotonic();
                        self.outgoing
                            .insert(transfer, Sending { to, to_replica, group, reader, stage, told });
                    }
                    Err(error) => self.report(group, to, to_replica, Err(error.to_string())),
                }
            }
            SnapshotEvent::Message { from, payload } => match TransferMessage::decode(&payload) {
                Ok(message) => self.on_message(from, message),
                Err(error) => tracing::warn!("node {from} sent a snapshot message that is none: {error}"),
            },
            SnapshotEvent::PeerDown(node) => {
                self.fail_sending("the link is down", |sending| sending.to == node);
                for receiving in self.incoming.values_mut() {
                    if receiving.transfer.from() == node {
                        receiving.files.close();
                    }
                }
            }
            SnapshotEvent::Cancel { to_replica } => {
                self.fail_sending("cancelled", |sending| sending.to_replica == to_replica);
            }
            SnapshotEvent::Release { incoming_dir } => {
                if self.handed_over.remove(&incoming_dir) {
                    self.remove(&incoming_dir);
                }
            }
            SnapshotEvent::Stop => {}
        }
    }

    fn on_message(&mut self, from: NodeId, message: TransferMessage) {
        let transfer = match message {
            TransferMessage::Offer(offer) => return self.on_offer(from, offer),
            TransferMessage::Chunk { transfer, file, offset, data } => {
                return self.on_chunk(from, transfer, file, offset, &data);
            }
            TransferMessage::Want { transfer, .. }
            | TransferMessage::Ack { transfer, .. }
            | TransferMessage::Finished { transfer }
            | TransferMessage::Refused { transfer, .. } => transfer,
        };
        let now = self.clock.monotonic();
        if let Some(sending) = self.outgoing.get_mut(&transfer).filter(|sending| sending.to == from)
            && let Stage::Sending(outgoing) = &mut sending.stage
        {
            let before = outgoing.acked();
            outgoing.on_message(&message, now);
            if outgoing.acked() > before {
                sending.tell_moved(&*self.port, now);
            }
        }
    }

    /// Does what can be done now and says how long to wait for messages after it.
    fn turn(&mut self) -> Duration {
        let mut pause = if self.outgoing.is_empty() && self.incoming.is_empty() { IDLE } else { TICK };
        for transfer in self.outgoing.keys().copied().collect::<Vec<_>>() {
            pause = pause.min(self.turn_of(transfer));
        }
        let now = self.clock.monotonic();
        let abandoned = |receiving: &Receiving| receiving.transfer.is_abandoned(now);
        let groups: Vec<_> = self
            .incoming
            .iter()
            .filter(|(_, receiving)| abandoned(receiving))
            .map(|(group, _)| *group)
            .collect();
        for group in groups {
            self.end_receiving(group, "its sender went away");
        }
        pause
    }

    /// One turn of an outgoing transfer.
    fn turn_of(&mut self, transfer: u64) -> Duration {
        let Some(mut sending) = self.outgoing.remove(&transfer) else { return IDLE };
        let now = self.clock.monotonic();
        let (pause, result) = match sending.stage {
            Stage::Listing { mut lister, mut offer } => match lister.step(LIST_BYTES) {
                Ok(false) => {
                    sending.stage = Stage::Listing { lister, offer };
                    sending.tell_moved(&*self.port, now);
                    self.outgoing.insert(transfer, sending);
                    return Duration::ZERO;
                }
                Ok(true) => {
                    offer.files = lister.into_files();
                    match Outgoing::new(offer, now) {
                        Ok(outgoing) => {
                            sending.stage = Stage::Sending(outgoing);
                            self.outgoing.insert(transfer, sending);
                            return Duration::ZERO;
                        }
                        Err(error) => (IDLE, Err(error.to_string())),
                    }
                }
                Err(error) => (IDLE, Err(error.to_string())),
            },
            Stage::Sending(mut outgoing) => {
                let pause = self.push(sending.to, &mut outgoing, &mut sending.reader);
                match outgoing.state() {
                    OutgoingState::Offered | OutgoingState::Streaming => {
                        sending.stage = Stage::Sending(outgoing);
                        self.outgoing.insert(transfer, sending);
                        return pause;
                    }
                    OutgoingState::Done => (IDLE, Ok(())),
                    OutgoingState::Failed(reason) => (IDLE, Err(reason.clone())),
                }
            }
        };
        self.report(sending.group, sending.to, sending.to_replica, result);
        pause
    }

    /// Gives the link what it takes: the offer when it is due, and chunks up to the window.
    fn push(&self, to: NodeId, outgoing: &mut Outgoing, reader: &mut SnapshotReader) -> Duration {
        let now = self.clock.monotonic();
        if outgoing.on_time(now) {
            if !self.port.send(to, TransferMessage::Offer(outgoing.offer().clone()).encode()) {
                return FULL_PAUSE;
            }
            outgoing.offer_sent(now);
        }
        while let Some(place) = outgoing.next_chunk() {
            let offer = outgoing.offer();
            let name = offer.files.get(place.file as usize).map_or("", |file| file.name.as_str());
            let data = match reader.read_at(name, place.offset, place.length) {
                Ok(data) => data,
                Err(error) => {
                    outgoing.fail(error.to_string());
                    break;
                }
            };
            let payload = transfer::encode_chunk(offer.transfer, place.file, place.offset, &data);
            if !self.port.send(to, payload) {
                return FULL_PAUSE;
            }
            self.counters.bytes_sent.fetch_add(place.length as u64, Ordering::Relaxed);
            outgoing.chunk_sent(place);
        }
        TICK
    }

    fn fail_sending(&mut self, reason: &str, is_meant: impl Fn(&Sending) -> bool) {
        let transfers: Vec<_> = self
            .outgoing
            .iter()
            .filter(|(_, sending)| is_meant(sending))
            .map(|(transfer, _)| *transfer)
            .collect();
        for transfer in transfers {
            if let Some(sending) = self.outgoing.remove(&transfer) {
                self.report(sending.group, sending.to, sending.to_replica, Err(reason.to_owned()));
            }
        }
    }

    fn report(&self, group: GroupId, to: NodeId, to_replica: u64, result: Result<(), String>) {
        match &result {
            Ok(()) => {
                self.counters.sent.fetch_add(1, Ordering::Relaxed);
                tracing::info!("group {}: node {to} has received a snapshot", group.0);
            }
            Err(reason) => {
                self.counters.failed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!("group {}: sending a snapshot to node {to} failed: {reason:?}", group.0);
            }
        }
        self.port.sent(group, to_replica, result.is_ok());
    }

    fn on_offer(&mut self, from: NodeId, offer: Offer) {
        if self.finished.contains(&(from, offer.transfer)) {
            self.answer(from, TransferMessage::Finished { transfer: offer.transfer });
            return;
        }
        let now = self.clock.monotonic();
        let (group, number) = (offer.group, offer.transfer);
        let current = self.incoming.get_mut(&group).map(|receiving| &mut receiving.transfer);
        match transfer::on_offer(current.as_deref(), from, &offer, now) {
            OfferOutcome::GoOn => {
                let Some(current) = current else { return };
                current.adopt(from, offer, now);
                let want = current.want();
                self.answer(from, want);
            }
            OfferOutcome::Refuse(reason) => self.refuse(from, number, reason.to_owned()),
            OfferOutcome::Begin => {
                if self.incoming.contains_key(&group) {
                    self.end_receiving(group, "another one takes its place");
                }
                if let Err(reason) = self.begin(from, offer) {
                    self.refuse(from, number, reason);
                }
            }
        }
    }

    /// Begins to receive; the error is the reason to refuse.
    fn begin(&mut self, from: NodeId, offer: Offer) -> Result<(), String> {
        let text = |error: StorageError| error.to_string();
        let (group, transfer) = (offer.group, offer.transfer);
        let name = storage::incoming_name(group, LogIndex(offer.index), Term(offer.term));
        if self.handed_over.contains(&name) {
            return Err("this snapshot was received and is not installed yet".to_owned());
        }
        let mut transfer_in = Incoming::new(from, offer, self.clock.monotonic());
        let (free, total) = storage::disk::room(&self.dir).map_err(text)?;
        // What the log needs to go on is not for snapshots.
        let free = free.saturating_sub(DiskLimits::of(DiskSize::Auto, DiskSize::Auto, total).hard);
        if transfer_in.missing() > free {
            return Err(format!("{} bytes are too many: {free} are free", transfer_in.missing()));
        }
        let mut files = IncomingDir::create(&self.dir, &name).map_err(text)?;
        // No chunk will come for these.
        for file in transfer_in.offer().files.iter().filter(|file| file.size == 0) {
            files.sync_file(&file.name).map_err(text)?;
        }
        tracing::info!("group {}: node {from} sends a snapshot of {} bytes", group.0, transfer_in.missing());
        let is_complete = *transfer_in.state() == IncomingState::Complete;
        let want = transfer_in.want();
        self.incoming.insert(group, Receiving { transfer: transfer_in, name, files });
        if is_complete {
            self.complete(group, transfer);
        } else {
            self.answer(from, want);
        }
        Ok(())
    }

    fn on_chunk(&mut self, from: NodeId, number: u64, file: u32, offset: u64, data: &[u8]) {
        let is_it = |receiving: &Receiving| {
            (receiving.transfer.from(), receiving.transfer.offer().transfer) == (from, number)
        };
        let now = self.clock.monotonic();
        let Some((group, receiving)) = self.incoming.iter_mut().find(|(_, receiving)| is_it(receiving))
        else {
            if self.finished.contains(&(from, number)) {
                self.answer(from, TransferMessage::Finished { transfer: number });
            } else {
                self.refuse(from, number, "this transfer is over".to_owned());
            }
            return;
        };
        let group = *group;
        let answer = match receiving.transfer.on_chunk(file, offset, data, now) {
            ChunkOutcome::Write { ends_file } => match write(receiving, file, offset, data, ends_file) {
                Ok(()) => {
                    self.counters.bytes_received.fetch_add(data.len() as u64, Ordering::Relaxed);
                    receiving.transfer.written()
                }
                Err(error) => return self.refuse_rest(group, &error.to_string()),
            },
            ChunkOutcome::Answer(answer) => answer,
            ChunkOutcome::Failed => None,
        };
        match receiving.transfer.state().clone() {
            IncomingState::WaitingForData => {
                if let Some(answer) = answer {
                    self.answer(from, answer);
                }
            }
            IncomingState::Complete => self.complete(group, number),
            IncomingState::Failed(reason) => self.refuse_rest(group, &reason),
        }
    }

    /// All files are there and synced.
    fn complete(&mut self, group: GroupId, number: u64) {
        let Some(receiving) = self.incoming.get_mut(&group) else { return };
        if let Err(error) = receiving.files.sync() {
            return self.refuse_rest(group, &error.to_string());
        }
        let Some(Receiving { transfer, name, .. }) = self.incoming.remove(&group) else { return };
        let from = transfer.from();
        self.counters.received.fetch_add(1, Ordering::Relaxed);
        tracing::info!("group {}: a snapshot of node {from} is complete", group.0);
        self.handed_over.insert(name.clone());
        self.finished.push_back((from, number));
        if self.finished.len() > FINISHED_MAX {
            self.finished.pop_front();
        }
        self.port.received(group, from, transfer.offer().message.clone(), name);
        self.answer(from, TransferMessage::Finished { transfer: number });
    }

    /// Ends what arrives for a group, and tells its sender.
    fn refuse_rest(&mut self, group: GroupId, reason: &str) {
        let sender = self.incoming.get(&group).map(|receiving| &receiving.transfer);
        let sender = sender.map(|transfer| (transfer.from(), transfer.offer().transfer));
        self.end_receiving(group, reason);
        if let Some((from, number)) = sender {
            self.refuse(from, number, reason.to_owned());
        }
    }

    /// Ends what arrives for a group and deletes it.
    fn end_receiving(&mut self, group: GroupId, reason: &str) {
        let Some(receiving) = self.incoming.remove(&group) else { return };
        self.counters.failed.fetch_add(1, Ordering::Relaxed);
        let from = receiving.transfer.from();
        tracing::warn!("group {}: receiving a snapshot of node {from} ended: {reason:?}", group.0);
        drop(receiving.files);
        self.remove(&receiving.name);
    }

    /// Deletes a directory below `incoming/`. What cannot be deleted now is deleted at the next start.
    fn remove(&self, name: &str) {
        if let Err(error) = IncomingDir::remove(&self.dir, name) {
            tracing::warn!("the received snapshot {name} cannot be deleted: {error}");
        }
    }

    fn refuse(&self, to: NodeId, transfer: u64, reason: String) {
        self.answer(to, TransferMessage::Refused { transfer, reason });
    }

    /// An answer that the link does not take is lost: the sender will ask again.
    fn answer(&self, to: NodeId, message: TransferMessage) {
        let _ = self.port.send(to, message.encode());
    }
}

/// Writes a chunk that was taken; a file that it ends is durable after it.
fn write(
    receiving: &mut Receiving,
    file: u32,
    offset: u64,
    data: &[u8],
    ends_file: bool,
) -> Result<(), StorageError> {
    let Some(file) = receiving.transfer.file(file) else { return Ok(()) };
    receiving.files.write_at(&file.name, offset, data)?;
    if ends_file { receiving.files.sync_file(&file.name) } else { Ok(()) }
}

#[cfg(test)]
#[path = "snapshot_io_test.rs"]
mod tests;
