//! What goes wrong, one thing at a time: each fault is made, seen to take effect, and taken back; then the cluster must
//! become whole.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use holdfast::clock::Clock;
use holdfast::types::Millis;

use crate::chaos::clients::Shared;
use crate::support::Random;
use crate::support::client::Client;
use crate::support::client::Value;
use crate::support::client::ok;
use crate::support::cluster::Cluster;
use crate::support::cluster::PATIENCE;
use crate::support::cluster::WallClocks;
use crate::support::links::Links;
use crate::support::power::Count;
use crate::support::power::Disk;
use crate::support::power::Loss;
use crate::support::power::Setting;
use crate::support::power::Tail;
use crate::support::wait_for;

/// Exit status of a node whose disk failed.
const EXIT_FATAL: i32 = 70;

/// Which nodes a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Leader,
    Follower,
    Majority,
    All,
}

/// What is cut or slowed down between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The leader has nobody.
    LeaderAlone,
    /// A follower has nobody.
    FollowerAlone,
    /// The leader hears and is not heard.
    LeaderMute,
    /// The leader is heard and does not hear.
    LeaderDeaf,
    /// Two nodes do not have each other, the others have both.
    Bridge,
    /// Links are cut one after the other and healed in another order.
    Swizzle,
    /// Everything comes late, and not evenly.
    Late,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFault {
    SlowSync,
    FailedSync,
    FailedWrite,
    NoSpace,
    ShortWrites,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Kill(Target),
    Pause(Target),
    Cut(Shape),
    Power(Target),
    /// As [`Fault::Power`] of one node, and the end of what was not synced is garbage.
    Garbage,
    Disk(DiskFault),
    Clock(Target),
    /// A bit of a file of a stopped follower is another.
    Flip,
    /// A follower comes back without its data.
    LoseDisk,
}

/// What came of the faults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    pub by_fault: BTreeMap<String, u64>,
    /// Faults that did not take effect.
    pub without_effect: Vec<String>,
    pub leaders_hit: u64,
    pub followers_hit: u64,
    /// Milliseconds from the kill of a leader to the next acknowledged write.
    pub failovers: Vec<u64>,
    pub loss: Loss,
    /// Nodes that refused to start on what a fault had left, and were emptied.
    pub refused_starts: Vec<String>,
    /// Flips after which the node served.
    pub flips_served: u64,
}

impl Tally {
    /// Takes in what came of others.
    pub fn add(&mut self, other: Tally) {
        for (fault, count) in other.by_fault {
            *self.by_fault.entry(fault).or_default() += count;
        }
        self.without_effect.extend(other.without_effect);
        self.leaders_hit += other.leaders_hit;
        self.followers_hit += other.followers_hit;
        self.failovers.extend(other.failovers);
        self.loss.add(other.loss);
        self.refused_starts.extend(other.refused_starts);
        self.flips_served += other.flips_served;
    }
}

/// A cluster with everything that faults need.
pub struct Rig {
    pub cluster: Cluster,
    links: Links,
    disks: BTreeMap<u64, Disk>,
    clocks: Option<WallClocks>,
    random: Random,
    pub tally: Tally,
}

impl Rig {
    /// Starts a cluster of so many nodes with these arguments.
    pub fn start(nodes: u64, args: &[&str], seed: u64) -> Rig {
        let mut cluster = Cluster::prepare(nodes, args);
        let links = Links::between(&mut cluster);
        let clocks = WallClocks::find();
        let mut disks = BTreeMap::new();
        for id in cluster.ids() {
            if let Some(clocks) = &clocks {
                clocks.give(id, cluster.node_mut(id));
            }
            let disk = Disk::new(&cluster.node(id).data_dir());
            disk.give(cluster.node_mut(id));
            disks.insert(id, disk);
        }
        cluster.start_all();
        Rig { cluster, links, disks, clocks, random: Random::new(seed), tally: Tally::default() }
    }

    /// All nodes run, serve, count in elections, each under one name, and have applied what is committed.
    pub fn wait_until_whole(&mut self) {
        let ids = self.cluster.ids();
        for id in &ids {
            self.cluster.wait_until_serving(*id);
        }
        if ids.len() > 1 {
            wait_for("every node to be a voter", PATIENCE, || {
                let members = self.cluster.members();
                let voters: BTreeSet<u64> =
                    members.iter().filter(|member| member.is_voter).map(|member| member.node).collect();
                (members.len() == ids.len() && voters.len() == ids.len()).then_some(())
            });
        }
        for id in self.cluster.ids() {
            self.cluster.wait_until_caught_up(id);
        }
    }

    /// Makes a fault and takes it back. The cluster is whole before and after.
    pub fn inject(&mut self, fault: Fault, shared: &Shared) {
        let name = format!("{fault:?}");
        shared.set_fault(true);
        let has_effect = match fault {
            Fault::Kill(target) => self.kill(target, shared),
            Fault::Pause(target) => self.pause(target, shared),
            Fault::Cut(shape) => self.cut(shape, shared),
            Fault::Power(target) => self.cut_power(target, Tail::AtRandom, shared),
            Fault::Garbage => self.cut_power(Target::Follower, Tail::Garbage, shared),
            Fault::Disk(DiskFault::SlowSync) => self.slow_disk(shared),
            Fault::Disk(DiskFault::ShortWrites) => self.short_writes(shared),
            Fault::Disk(DiskFault::NoSpace) => self.fill_disk(shared),
            Fault::Disk(fault) => self.fail_disk(fault, shared),
            Fault::Clock(target) => self.move_clock(target, shared),
            Fault::Flip => self.flip(shared),
            Fault::LoseDisk => self.lose_disk(shared),
        };
        shared.set_fault(false);
        self.wait_until_whole();
        *self.tally.by_fault.entry(name.clone()).or_default() += 1;
        if !has_effect {
            self.tally.without_effect.push(name);
        }
    }

    /// The nodes that a fault hits; counts them.
    fn victims(&mut self, target: Target) -> Vec<u64> {
        let leader = self.cluster.leader();
        let mut others = self.cluster.others(leader);
        let first = self.random.below(others.len().max(1) as u64) as usize;
        others.rotate_left(first);
        let ids = self.cluster.ids();
        let victims = match target {
            Target::Leader => vec![leader],
            Target::Follower => vec![others[0]],
            Target::All => ids,
            Target::Majority => {
                let mut all: Vec<u64> = others.into_iter().chain([leader]).collect();
                let start = self.random.below(all.len() as u64) as usize;
                all.rotate_left(start);
                all.truncate(ids.len() / 2 + 1);
                all
            }
        };
        let hits_leader = victims.contains(&leader);
        self.tally.leaders_hit += u64::from(hits_leader);
        self.tally.followers_hit += victims.len() as u64 - u64::from(hits_leader);
        victims
    }

    /// Ends nodes at once as `kill -9` does; tells when, and whether they are gone.
    fn kill_nodes(&mut self, victims: &[u64], shared: &Shared) -> (u64, bool) {
        for id in victims {
            let node = self.cluster.node_mut(*id);
            assert!(node.is_running(), "node {id} ended by itself:\n{}", node.log());
        }
        // Not always at the same point of an entry's way.
        thread::sleep(Duration::from_micros(self.random.below(5_000)));
        let killed_at = shared.now();
        if victims.len() == self.cluster.ids().len() {
            self.cluster.kill_all();
        } else {
            victims.iter().for_each(|id| self.cluster.kill(*id));
        }
        (killed_at, victims.iter().all(|id| !self.cluster.node_mut(*id).is_running()))
    }

    fn spawn_nodes(&mut self, victims: &[u64]) {
        for id in victims {
            self.disks[id].compact();
            self.cluster.spawn(*id);
        }
    }

    fn sleep_up_to(&mut self, at_most_ms: u64) {
        thread::sleep(Duration::from_millis(self.random.below(at_most_ms + 1)));
    }

    fn kill(&mut self, target: Target, shared: &Shared) -> bool {
        let victims = self.victims(target);
        let (killed_at, is_gone) = self.kill_nodes(&victims, shared);
        match target {
            Target::Leader => self.tally.failovers.push(shared.wait_for_write(killed_at)),
            Target::Follower => shared.wait_for_more(20),
            Target::Majority | Target::All => {}
        }
        self.sleep_up_to(200);
        self.spawn_nodes(&victims);
        while self.random.below(4) == 0 {
            // While it starts, and perhaps before it is heard.
            self.sleep_up_to(400);
            self.kill_nodes(&victims, shared);
            self.spawn_nodes(&victims);
        }
        is_gone
    }

    /// Holds nodes for shorter and longer than an election takes.
    fn pause(&mut self, target: Target, shared: &Shared) -> bool {
        let victims = self.victims(target);
        for id in &victims {
            self.cluster.hold(*id);
        }
        let is_stopped = victims.iter().all(|id| {
            wait_for("the node to stand still", PATIENCE, || {
                (self.state_of(*id) == Some('T')).then_some(true)
            })
        });
        let longest = if self.random.below(5) == 0 { 5_000 } else { 1_500 };
        let length = 300 + self.random.below(longest);
        thread::sleep(Duration::from_millis(length));
        victims.iter().for_each(|id| self.cluster.resume(*id));
        shared.wait_for_more(10);
        is_stopped
    }

    /// The state of a node's process as the system tells it: `T` is stopped.
    fn state_of(&self, id: u64) -> Option<char> {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.cluster.node(id).process_id())).ok()?;
        status.lines().find_map(|line| line.strip_prefix("State:"))?.trim().chars().next()
    }

    fn cut(&mut self, shape: Shape, shared: &Shared) -> bool {
        let victim = self.victims(match shape {
            Shape::FollowerAlone | Shape::Bridge => Target::Follower,
            _ => Target::Leader,
        })[0];
        let others = self.cluster.others(victim);
        let everywhere = |ids: Vec<u64>| {
            ids.iter()
                .flat_map(|a| ids.iter().map(move |b| (*a, *b)))
                .filter(|(a, b)| a != b)
                .collect::<Vec<_>>()
        };
        let out: Vec<(u64, u64)> = others.iter().map(|other| (victim, *other)).collect();
        let back: Vec<(u64, u64)> = others.iter().map(|other| (*other, victim)).collect();
        let mut ways = match shape {
            Shape::LeaderAlone | Shape::FollowerAlone => [out, back].concat(),
            Shape::LeaderMute => out,
            Shape::LeaderDeaf => back,
            Shape::Bridge => vec![out[0], back[0]],
            Shape::Swizzle | Shape::Late => everywhere(self.cluster.ids()),
        };
        let before = self.held_on(&ways);
        if shape == Shape::Late {
            let (delay, jitter) = (Millis(5 + self.random.below(40)), Millis(self.random.below(60)));
            ways.iter().for_each(|(from, to)| self.links.delay(*from, *to, delay, jitter));
        } else {
            shuffle(&mut ways, &mut self.random);
            for (from, to) in &ways {
                self.links.cut(*from, *to);
                if shape == Shape::Swizzle {
                    thread::sleep(Duration::from_millis(self.random.below(150)));
                }
            }
        }
        thread::sleep(Duration::from_millis(500 + self.random.below(700)));
        if self.random.below(3) == 0 {
            // And then a power cut, on whichever side.
            let place = self.random.below(self.cluster.ids().len() as u64) as usize;
            let id = self.cluster.ids()[place];
            self.take_power(&[id], Tail::AtRandom, shared);
            self.spawn_nodes(&[id]);
        }
        thread::sleep(Duration::from_millis(200 + self.random.below(600)));
        // Heartbeats alone suffice, but a link that was down before the cut is dialled now and then only.
        let has_effect =
            wait_for("the cut to take effect", PATIENCE, || (self.held_on(&ways) > before).then_some(true));
        shuffle(&mut ways, &mut self.random);
        for (from, to) in &ways {
            self.links.delay(*from, *to, Millis(0), Millis(0));
            self.links.heal(*from, *to);
            // What was held arrives, or the connection has been given up.
            if self.random.below(2) == 0 {
                self.links.break_connections(*from, *to);
            }
            if shape == Shape::Swizzle {
                thread::sleep(Duration::from_millis(self.random.below(150)));
            }
        }
        shared.wait_for_more(10);
        has_effect
    }

    /// Pieces that were held or late on the way between nodes.
    fn held_on(&self, ways: &[(u64, u64)]) -> u64 {
        ways.iter().map(|(from, to)| self.links.held(*from, *to) + self.links.delayed(*from, *to)).sum()
    }

    /// Kills nodes and takes what they had not synced. Slow syncs see to it that there is something, mostly.
    fn cut_power(&mut self, target: Target, tail: Tail, shared: &Shared) -> bool {
        let target = match target {
            Target::Follower if self.random.below(2) == 0 => Target::Leader,
            target => target,
        };
        let victims = self.victims(target);
        let is_garbled = tail == Tail::Garbage;
        let delay = if is_garbled { 100 } else { [0, 2, 20, 60][self.random.below(4) as usize] };
        shared.wait_for_more(50);
        for id in &victims {
            let disk = &self.disks[id];
            let before = disk.count(Count::Delayed);
            disk.set(Setting::SyncDelay, delay);
            wait_for("a sync that is late", PATIENCE, || {
                (delay == 0 || disk.count(Count::Delayed) > before).then_some(())
            });
        }
        let is_gone = self.take_power(&victims, tail, shared);
        if victims.len() <= (self.cluster.ids().len() - 1) / 2 {
            shared.wait_for_more(10);
        }
        self.sleep_up_to(200);
        self.spawn_nodes(&victims);
        if is_garbled {
            victims.iter().for_each(|id| self.serve_or_empty(*id, "garbage after a power cut"));
        }
        while !is_garbled && self.random.below(3) == 0 {
            self.sleep_up_to(400);
            self.take_power(&victims, Tail::AtRandom, shared);
            self.spawn_nodes(&victims);
        }
        is_gone
    }

    /// Ends nodes as a power cut does.
    fn take_power(&mut self, victims: &[u64], tail: Tail, shared: &Shared) -> bool {
        let (_, is_gone) = self.kill_nodes(victims, shared);
        for id in victims {
            let loss = self.disks[id].cut_power(&mut self.random, tail);
            self.tally.loss.add(loss);
            self.disks[id].repair();
        }
        is_gone
    }

    /// A follower loses its disk, and then its power, or all lose it, while it comes back.
    fn lose_disk(&mut self, shared: &Shared) -> bool {
        let id = self.victims(Target::Follower)[0];
        let (_, is_gone) = self.kill_nodes(&[id], shared);
        self.cluster.wipe(id);
        self.disks[&id].settle();
        shared.wait_for_more(10);
        self.spawn_nodes(&[id]);
        for _ in 0..self.random.below(4) {
            self.sleep_up_to(700);
            let victims = if self.random.below(4) == 0 { self.cluster.ids() } else { vec![id] };
            self.take_power(&victims, Tail::AtRandom, shared);
            self.spawn_nodes(&victims);
        }
        is_gone
    }

    /// Waits until a node serves. One that refuses what is on its disk, and says why, is emptied and started anew.
    fn serve_or_empty(&mut self, id: u64, why: &str) {
        let address = self.cluster.address(id);
        let status = wait_for("the node to serve or to refuse", PATIENCE, || {
            if let Some(status) = self.cluster.node_mut(id).try_wait() {
                return Some(Some(status));
            }
            let answer = Client::try_connect(address).ok()?.try_cmd(&["SET", "serving", "yes"]).ok()?;
            (answer == ok()).then_some(None)
        });
        let Some(status) = status else { return };
        let log = self.cluster.node(id).log();
        let last = log.lines().rev().find(|line| line.contains("holdfast: ")).unwrap_or_default().to_owned();
        assert!(
            status.code().is_some() && !last.is_empty(),
            "node {id} ended with {status} after {why}:\n{log}"
        );
        self.empty(id, format!("{why}: {status}: {last}"));
    }

    /// Starts a node that ended, and could not go on with its data, without them.
    fn empty(&mut self, id: u64, why: String) {
        self.tally.refused_starts.push(why);
        self.cluster.wipe(id);
        self.disks[&id].settle();
        self.cluster.spawn(id);
    }

    fn one_of_any(&mut self) -> u64 {
        let target = [Target::Leader, Target::Follower][self.random.below(2) as usize];
        self.victims(target)[0]
    }

    fn slow_disk(&mut self, shared: &Shared) -> bool {
        let id = self.one_of_any();
        let before = self.disks[&id].count(Count::Delayed);
        self.disks[&id].set(Setting::SyncDelay, 300);
        thread::sleep(Duration::from_millis(900 + self.random.below(600)));
        shared.wait_for_more(5);
        self.disks[&id].repair();
        self.disks[&id].count(Count::Delayed) > before
    }

    fn short_writes(&mut self, shared: &Shared) -> bool {
        let id = self.one_of_any();
        let before = self.disks[&id].count(Count::Shortened);
        self.disks[&id].set(Setting::ShortWrites, 1);
        shared.wait_for_more(200);
        self.disks[&id].repair();
        self.disks[&id].count(Count::Shortened) > before
    }

    /// Nothing can be written, and nobody foresaw it. The node waits, and goes on when there is room; or it is killed
    /// while it waits, as when the power goes.
    fn fill_disk(&mut self, shared: &Shared) -> bool {
        let id = self.one_of_any();
        let disk = &self.disks[&id];
        let before = disk.count(Count::NoSpace);
        disk.set(Setting::Budget, self.random.below(20_000));
        disk.set(Setting::HasBudget, 1);
        wait_for("a write that finds no room", PATIENCE, || {
            (disk.count(Count::NoSpace) > before).then_some(())
        });
        shared.wait_for_more(10);
        if self.random.below(2) == 0 {
            self.kill_nodes(&[id], shared);
            let loss = self.disks[&id].cut_power(&mut self.random, Tail::AtRandom);
            self.tally.loss.add(loss);
            self.disks[&id].repair();
            self.spawn_nodes(&[id]);
        } else {
            self.disks[&id].repair();
            self.cluster.wait_until_caught_up(id);
            assert!(self.cluster.node_mut(id).is_running(), "{}", self.cluster.node(id).log());
        }
        true
    }

    /// The node ends by itself with the status that says so, and comes back when the disk is well again. What was
    /// not synced may be gone by then.
    fn fail_disk(&mut self, fault: DiskFault, shared: &Shared) -> bool {
        let id = self.one_of_any();
        let disk = &self.disks[&id];
        let (count, setting) = match fault {
            DiskFault::FailedSync => (Count::SyncsFailed, Setting::FailSyncs),
            _ => (Count::WritesFailed, Setting::FailWrites),
        };
        let before = disk.count(count);
        disk.set(setting, 1);
        let status = self.cluster.node_mut(id).wait();
        assert_eq!(status.code(), Some(EXIT_FATAL), "{fault:?}:\n{}", self.cluster.node(id).log());
        let has_effect = self.disks[&id].count(count) > before;
        if self.random.below(3) == 0 {
            // The one who looks after it starts it too early: it ends again, orderly.
            self.cluster.spawn(id);
            let status = self.cluster.node_mut(id).wait();
            assert!(status.code().is_some_and(|code| code != 0), "{fault:?}, again: {status}");
        }
        if self.random.below(2) == 0 {
            let loss = self.disks[&id].cut_power(&mut self.random, Tail::AtRandom);
            self.tally.loss.add(loss);
        }
        self.disks[&id].repair();
        shared.wait_for_more(10);
        self.spawn_nodes(&[id]);
        has_effect
    }

    /// A wall clock goes wrong, by different lengths, and right again.
    fn move_clock(&mut self, target: Target, shared: &Shared) -> bool {
        let id = self.victims(target)[0];
        let Some(clocks) = &self.clocks else { return false };
        let random = &mut self.random;
        let sign = [1, -1][random.below(2) as usize];
        let mut offset = sign * [3_600, 86_400][random.below(2) as usize];
        let mut is_seen = true;
        for _ in 0..1 + random.below(3) {
            clocks.set(id, offset);
            is_seen &= wait_for("the clock to be seen wrong", PATIENCE, || {
                (wall_offset(&self.cluster, id, shared)? - offset).abs().lt(&60).then_some(true)
            });
            thread::sleep(Duration::from_millis(200 + random.below(400)));
            shared.wait_for_more(50);
            offset = -offset;
        }
        clocks.set(id, 0);
        wait_for("the clock to be right", PATIENCE, || {
            wall_offset(&self.cluster, id, shared)?.abs().lt(&60).then_some(())
        });
        is_seen
    }

    /// One bit of a file that the node must read when it starts, or may never read.
    fn flip(&mut self, shared: &Shared) -> bool {
        let id = self.victims(Target::Follower)[0];
        self.kill_nodes(&[id], shared);
        let Some((path, at, mask)) = self.choose_bit(id) else { return false };
        let file = fs::File::options().read(true).write(true).open(&path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ mask], at).unwrap();
        drop(file);
        shared.wait_for_more(10);
        let refused = self.tally.refused_starts.len();
        let said = self.cluster.node(id).log().len();
        self.spawn_nodes(&[id]);
        let why = format!("a flipped bit at {at} of {}", path.display());
        self.serve_or_empty(id, &why);
        // What it synced once and has no more may show only when the leader speaks to it.
        let takes_part = wait_for("the node to catch up or to say that it cannot", PATIENCE, || {
            if self.cluster.node(id).log()[said..].contains("it takes no part") {
                return Some(false);
            }
            let leader = self.cluster.leader_now()?;
            let commit = self.cluster.raft_info(leader)?.commit;
            (self.cluster.raft_info(id)?.applied >= commit).then_some(true)
        });
        if !takes_part {
            self.kill_nodes(&[id], shared);
            self.empty(id, format!("{why}: it takes no part"));
        }
        self.tally.flips_served += u64::from(self.tally.refused_starts.len() == refused);
        self.wait_until_whole();
        self.cluster.check_digests();
        true
    }

    /// A bit of the log, of a table or of a list of tables; not of RocksDB's diary.
    fn choose_bit(&mut self, id: u64) -> Option<(PathBuf, u64, u8)> {
        let mut files: Vec<PathBuf> = Vec::new();
        for directory in ["log", "data/0"] {
            let entries = fs::read_dir(self.cluster.node(id).data_dir().join(directory)).ok();
            files.extend(entries.into_iter().flatten().flatten().map(|entry| entry.path()));
        }
        files.retain(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_data = name.ends_with(".log") || name.ends_with(".sst") || name.starts_with("MANIFEST");
            is_data && fs::metadata(path).is_ok_and(|found| found.len() > 0)
        });
        files.sort();
        if self.random.below(2) == 0 {
            files.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
        }
        let path = files.get(self.random.below(files.len().max(1) as u64) as usize)?.clone();
        let length = fs::metadata(&path).ok()?.len();
        // The last record of a log, which a power cut may tear, is where harm is mistaken for that.
        let from = if self.random.below(2) == 0 { length.saturating_sub(200) } else { 0 };
        Some((path, from + self.random.below(length - from), 1 << self.random.below(8)))
    }
}

/// By how many seconds a node's wall clock is off.
fn wall_offset(cluster: &Cluster, id: u64, shared: &Shared) -> Option<i64> {
    let mut client = Client::try_connect(cluster.address(id)).ok()?;
    let Ok(Value::Array(parts)) = client.try_cmd(&["TIME"]) else { return None };
    let true_time = i64::try_from(shared.clock.wall().0 / 1_000).ok()?;
    Some(parts.first()?.text().parse::<i64>().ok()? - true_time)
}

/// Puts things in a random order.
pub fn shuffle<T>(things: &mut [T], random: &mut Random) {
    for at in (1..things.len()).rev() {
        things.swap(at, random.below(at as u64 + 1) as usize);
    }
}
