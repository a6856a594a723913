//! What full disks mean for clients: any node takes any command, so it has to know the disks of the others too.
//!
//! ```text
//! Open     ──► NoGrowth      a disk is AlmostFull, or too few voters' disks are Ok for a majority
//! NoGrowth ──► DeletesOnly   the leader's disk is Full, or too few voters' disks are less than Full
//! ```
//! A voter that is heard and whose disk is AlmostFull lets nothing be added: it gets every entry, and would be full soon,
//! with room for nothing that gives room back. One follower with a full disk stops nobody: it takes no entries, as if they
//! were lost, until there is room again.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use crate::commands::spec::CommandSpec;
use crate::commands::spec::Flags;
use crate::consensus::Role;
use crate::server::Services;
use crate::server::members::Liveness;
use crate::server::members::Member;
use crate::server::members::members;
use crate::storage::disk::DiskState;
use crate::storage::disk::PLENTY;
use crate::types::Millis;
use crate::types::NodeId;

/// Which commands the disks of the cluster allow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskGate {
    /// All.
    #[default]
    Open,
    /// None that add data.
    NoGrowth,
    /// Of those that write only those that take data away.
    DeletesOnly,
}

impl DiskGate {
    /// As a number, for sharing.
    pub fn code(self) -> u8 {
        match self {
            DiskGate::Open => 0,
            DiskGate::NoGrowth => 1,
            DiskGate::DeletesOnly => 2,
        }
    }

    /// What a number stands for.
    #[inline]
    pub fn of(code: u8) -> DiskGate {
        match code {
            0 => DiskGate::Open,
            1 => DiskGate::NoGrowth,
            _ => DiskGate::DeletesOnly,
        }
    }
}

/// What a command wants of the disks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskNeed {
    /// It reads, or takes data away.
    #[default]
    None,
    /// It writes, but adds no data to speak of.
    Writes,
    /// It adds data.
    Growth,
}

impl DiskNeed {
    /// What a command by itself wants: the same commands add data that take memory.
    pub fn of(leaf: &CommandSpec) -> DiskNeed {
        if leaf.flags.has(Flags::DENYOOM) {
            DiskNeed::Growth
        } else if leaf.is_write() && !leaf.is_deletion() {
            DiskNeed::Writes
        } else {
            DiskNeed::None
        }
    }

    /// True when the gate lets it through.
    #[inline]
    pub fn passes(self, gate: DiskGate) -> bool {
        match gate {
            DiskGate::Open => true,
            DiskGate::NoGrowth => self < DiskNeed::Growth,
            DiskGate::DeletesOnly => self == DiskNeed::None,
        }
    }
}

/// How much data the clients of this node may still add before the next look at the disks. A small disk fills between
/// two looks, so what was let through since counts as if it were written.
#[derive(Debug, Default)]
pub struct Allowance {
    /// What is refused; [`PLENTY`] and more are not counted.
    refused: AtomicU64,
    /// What was let through since the window began, and in the one before.
    current: AtomicU64,
    previous: AtomicU64,
}

/// A byte of a command is one of the log and one of the rows; and the log's is there twice for a while, until its
/// memtable has become a table.
const COST: u64 = 3;
/// What a command takes beside its bytes.
const OVERHEAD: u64 = 128;

impl Allowance {
    /// True when a command of so many bytes may add data. It counts then.
    #[inline]
    pub fn take(&self, bytes: usize) -> bool {
        let room = u64::MAX - self.refused.load(Ordering::Relaxed);
        room >= PLENTY || self.take_of(room, bytes)
    }

    fn take_of(&self, room: u64, bytes: usize) -> bool {
        let cost = (bytes as u64).saturating_add(OVERHEAD).saturating_mul(COST);
        let before = self.current.fetch_add(cost, Ordering::Relaxed);
        let fits = before.saturating_add(self.previous.load(Ordering::Relaxed)).saturating_add(cost) <= room;
        if !fits {
            self.current.fetch_sub(cost, Ordering::Relaxed);
        }
        fits
    }

    /// So much is there as of now. A new window begins when what was let through in the one before the last has reached
    /// the disks, and the figures of all of them.
    fn refresh(&self, room: u64, is_new_window: bool) {
        if is_new_window {
            self.previous.store(self.current.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        }
        self.refused.store(u64::MAX - room, Ordering::Relaxed);
    }
}

/// What follows from the disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    pub gate: DiskGate,
    /// Bytes of data that the clients of this node may add; `u64::MAX` without a limit.
    pub room: u64,
    /// This node takes no entries: its disk is full, and the others are a majority without it.
    pub drops_entries: bool,
    /// The others are a majority without this node, which does not lead.
    pub others_suffice: bool,
    /// This node leads, its disk is full, and that voter could lead.
    pub successor: Option<NodeId>,
}

impl Default for Verdict {
    fn default() -> Verdict {
        Verdict {
            gate: DiskGate::Open,
            room: u64::MAX,
            drops_entries: false,
            others_suffice: false,
            successor: None,
        }
    }
}

/// One member as far as it matters here.
#[derive(Debug, Clone, Copy)]
struct Seat {
    node: NodeId,
    is_voter: bool,
    is_own: bool,
    matched: u64,
    /// `None` when it is not heard: then it can store nothing either.
    disk: Option<DiskState>,
    /// Bytes of data that its disk still takes.
    takes: u64,
}

/// Looks at the members as this node knows them now; `own` is its own disk.
#[must_use]
pub fn judge(services: &Services, own: DiskState) -> Verdict {
    let election_timeout = services.config.get().election_timeout;
    let seats: Vec<Seat> =
        members(services).iter().map(|member| seat(member, own, election_timeout)).collect();
    let status = services.group.status();
    decide(&seats, status.leader, status.role == Role::Leader)
}

/// Takes the verdict into effect: for the gates, for the replica, and for who leads. `hard` is this node's limit.
pub fn carry_out(services: &Arc<Services>, verdict: Verdict, hard: u64, is_new_window: bool) {
    services.set_disk_gate(verdict.gate);
    services.allowance.refresh(verdict.room, is_new_window);
    services.disk.set_drops_entries(verdict.drops_entries, if verdict.others_suffice { hard } else { 0 });
    if let Some(successor) = verdict.successor {
        tracing::warn!("the disk of this node is full: node {successor} is asked to lead");
        // What comes of it shows at the next look.
        drop(services.group.transfer(Some(successor)));
    }
}

fn seat(member: &Member, own: DiskState, election_timeout: Millis) -> Seat {
    let is_alive = Liveness::after(member.heard(), election_timeout) == Liveness::Alive;
    let heard = member.info.as_ref().filter(|_| member.is_connected() && is_alive);
    Seat {
        node: member.node,
        is_voter: member.is_voter,
        is_own: member.is_own,
        matched: member.info.as_ref().and_then(|info| info.matched).map_or(0, |matched| matched.0),
        disk: if member.is_own { Some(own) } else { heard.map(|info| info.disk) },
        takes: member.info.as_ref().map_or(u64::MAX, |info| info.disk_room),
    }
}

fn decide(seats: &[Seat], leader: Option<NodeId>, leads: bool) -> Verdict {
    let voters: Vec<&Seat> = seats.iter().filter(|seat| seat.is_voter).collect();
    let majority = voters.len() / 2 + 1;
    let with =
        |wanted: fn(DiskState) -> bool| voters.iter().filter(|seat| seat.disk.is_some_and(wanted)).count();
    let leads_with = voters.iter().find(|seat| Some(seat.node) == leader).and_then(|seat| seat.disk);
    // Without a majority that is heard it is not the disks that keep anybody from writing.
    let some_full = with(|disk| disk == DiskState::Full) > 0;
    let some_almost_full = with(|disk| disk == DiskState::AlmostFull) > 0;
    let not_full_majority = with(|disk| disk != DiskState::Full) >= majority;
    let gate = if leads_with == Some(DiskState::Full) || (some_full && !not_full_majority) {
        DiskGate::DeletesOnly
    } else if some_almost_full || (some_full && with(|disk| disk == DiskState::Ok) < majority) {
        DiskGate::NoGrowth
    } else {
        DiskGate::Open
    };
    let room = room(&voters);
    let not_full_others =
        voters.iter().filter(|seat| !seat.is_own && seat.disk.is_some_and(|disk| disk < DiskState::Full));
    let others_suffice = !leads && not_full_others.count() >= majority;
    let own_is_full = seats.iter().any(|seat| seat.is_own && seat.disk == Some(DiskState::Full));
    let able =
        voters.iter().filter(|seat| !seat.is_own && seat.disk.is_some_and(|disk| disk < DiskState::Full));
    // The one with the most room, and of these the one that has the most.
    let best = able.max_by_key(|seat| (seat.disk == Some(DiskState::Ok), seat.matched));
    Verdict {
        gate,
        room,
        drops_entries: own_is_full && !leads && not_full_majority,
        others_suffice,
        successor: best.filter(|_| leads && own_is_full).map(|seat| seat.node),
    }
}

/// What the disks take of those that take entries; each node lets its part of it through.
fn room(voters: &[&Seat]) -> u64 {
    let taking = voters.iter().filter(|seat| seat.disk.is_some_and(|disk| disk < DiskState::Full));
    match taking.map(|seat| seat.takes).min() {
        None | Some(u64::MAX) => u64::MAX,
        Some(least) => least / voters.len() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Option<DiskState> = Some(DiskState::Ok);
    const ALMOST: Option<DiskState> = Some(DiskState::AlmostFull);
    const FULL: Option<DiskState> = Some(DiskState::Full);
    const DEAD: Option<DiskState> = None;

    /// Voters 1, 2, … with these disks; this is node `own`, and node 1 leads.
    fn verdict(own: u64, disks: &[Option<DiskState>]) -> Verdict {
        let seats: Vec<Seat> = disks
            .iter()
            .zip(1..)
            .map(|(disk, node)| Seat {
                node: NodeId(node),
                is_voter: true,
                is_own: node == own,
                matched: 100 - node,
                disk: *disk,
                takes: u64::MAX,
            })
            .collect();
        decide(&seats, Some(NodeId(1)), own == 1)
    }

    #[test]
    fn writes_need_room_at_the_leader_and_at_a_majority() {
        use DiskGate::*;
        for (disks, gate) in [
            (&[OK][..], Open),
            (&[ALMOST], NoGrowth),
            (&[FULL], DeletesOnly),
            (&[OK, OK, OK], Open),
            (&[OK, ALMOST, OK], NoGrowth),
            (&[OK, FULL, OK], Open),
            (&[OK, FULL, ALMOST], NoGrowth),
            (&[OK, ALMOST, ALMOST], NoGrowth),
            (&[ALMOST, OK, OK], NoGrowth),
            (&[OK, FULL, FULL], DeletesOnly),
            (&[FULL, OK, OK], DeletesOnly),
            // A node that is not heard stores nothing.
            (&[OK, OK, DEAD], Open),
            (&[OK, ALMOST, DEAD], NoGrowth),
            (&[OK, FULL, DEAD], DeletesOnly),
            // There is no majority, and that is another error.
            (&[OK, DEAD, DEAD], Open),
            (&[OK, OK, OK, FULL, FULL], Open),
            (&[OK, OK, ALMOST, FULL, FULL], NoGrowth),
            (&[OK, OK, FULL, FULL, FULL], DeletesOnly),
        ] {
            for own in 1..=disks.len() as u64 {
                assert_eq!(verdict(own, disks).gate, gate, "{disks:?} at node {own}");
            }
        }
        let nobody_leads = decide(&[], None, false);
        assert_eq!(nobody_leads, Verdict::default());
    }

    #[test]
    fn a_follower_with_a_full_disk_takes_no_entries_while_the_others_suffice() {
        assert!(verdict(2, &[OK, FULL, OK]).drops_entries);
        assert!(verdict(2, &[OK, FULL, ALMOST]).drops_entries);
        assert!(!verdict(3, &[OK, FULL, OK]).drops_entries);
        assert!(!verdict(2, &[OK, FULL, FULL]).drops_entries, "deletions need a majority");
        assert!(!verdict(2, &[OK, FULL, DEAD]).drops_entries);
        assert!(!verdict(1, &[FULL, OK, OK]).drops_entries, "it leads");
        assert!(!verdict(1, &[FULL]).drops_entries);
    }

    #[test]
    fn a_leader_with_a_full_disk_looks_for_one_that_has_room() {
        let successor = |disks: &[Option<DiskState>]| verdict(1, disks).successor.map(|node| node.0);
        assert_eq!(successor(&[FULL, OK, OK]), Some(2), "it has more of the log");
        assert_eq!(successor(&[FULL, ALMOST, OK]), Some(3));
        assert_eq!(successor(&[FULL, ALMOST, FULL]), Some(2));
        assert_eq!(successor(&[FULL, FULL, DEAD]), None);
        assert_eq!(successor(&[FULL]), None);
        assert_eq!(successor(&[ALMOST, OK, OK]), None);
        assert_eq!(verdict(2, &[FULL, OK, OK]).successor, None, "it does not lead");
    }

    #[test]
    fn each_node_lets_through_its_part_of_what_the_least_disk_takes() {
        let room = |takes: &[(Option<DiskState>, u64)]| {
            let seat = |((disk, takes), node): (&(Option<DiskState>, u64), u64)| Seat {
                node: NodeId(node),
                is_voter: true,
                is_own: node == 1,
                matched: 0,
                disk: *disk,
                takes: *takes,
            };
            let seats: Vec<Seat> = takes.iter().zip(1..).map(seat).collect();
            decide(&seats, Some(NodeId(1)), true).room
        };
        assert_eq!(room(&[(OK, 900)]), 900);
        assert_eq!(room(&[(OK, u64::MAX)]), u64::MAX);
        assert_eq!(room(&[(OK, 900), (OK, 600), (OK, 300)]), 100);
        assert_eq!(room(&[(OK, 900), (OK, 600), (FULL, 0)]), 200, "it is left behind");
        assert_eq!(room(&[(OK, 900), (OK, 600), (DEAD, 0)]), 200);
        assert_eq!(room(&[(OK, 900), (ALMOST, 0), (OK, 900)]), 0);
    }

    #[test]
    fn what_was_let_through_counts_until_it_shows() {
        let allowance = Allowance::default();
        assert!(allowance.take(usize::MAX), "no limit is known");
        let each = 1_000;
        let cost = (1_000 + OVERHEAD) * COST;
        allowance.refresh(3 * cost, true);
        let taken = |wanted: u32| (0..wanted).filter(|_| allowance.take(each)).count();
        assert_eq!(taken(5), 3);
        allowance.refresh(2 * cost, true);
        assert_eq!(taken(5), 0, "it may not have reached the disk");
        allowance.refresh(2 * cost, false);
        assert_eq!(taken(5), 0);
        allowance.refresh(2 * cost, true);
        assert_eq!(taken(5), 2);
        assert!(!allowance.take(usize::MAX));
        allowance.refresh(PLENTY, false);
        assert!(allowance.take(usize::MAX));
    }

    #[test]
    fn gates_come_back_from_their_numbers() {
        for gate in [DiskGate::Open, DiskGate::NoGrowth, DiskGate::DeletesOnly] {
            assert_eq!(DiskGate::of(gate.code()), gate);
        }
    }
}
