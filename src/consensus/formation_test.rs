//! Formation: single steps, and random worlds in which links break, messages are lost and overtake each other,
//! and nodes crash between any two outputs and come back with their data or without it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use super::formation::Announcement;
use super::formation::Formation;
use super::formation::Input;
use super::formation::Invitation;
use super::formation::Member;
use super::formation::Output;
use super::formation::Record;
use super::formation::Standing;
use crate::types::NodeId;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn wide(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }
}

fn nodes(ids: &[u64]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

fn announced(listed: &[u64], disk: u128, standing: Standing) -> Announcement {
    Announcement { listed: nodes(listed), disk, standing }
}

fn say(from: u64, announcement: Announcement) -> Input {
    Input::Message { from: NodeId(from), announcement }
}

fn invitation(round: u64, cluster: u128, members: &[(u64, u128)]) -> Invitation {
    let members = members.iter().map(|&(node, disk)| Member { node: NodeId(node), disk }).collect();
    Invitation { round, cluster, members }
}

fn warnings(outputs: &[Output]) -> Vec<&str> {
    let mut texts = Vec::new();
    for output in outputs {
        if let Output::Warn(text) = output {
            texts.push(text.as_str());
        }
    }
    texts
}

fn persisted(outputs: &[Output]) -> Vec<Standing> {
    let standing = |output: &Output| {
        if let Output::Persist(record) = output { Some(record.standing.clone()) } else { None }
    };
    outputs.iter().filter_map(standing).collect()
}

#[test]
fn a_node_alone_forms_at_once_and_stays_formed() {
    let mut formation = Formation::new(None, NodeId(7), &[], 42);
    let outputs = formation.step(Input::Tick);
    let cluster = formation.cluster().unwrap();
    assert_eq!(outputs.last(), Some(&Output::Formed { cluster, replica: 7, initial: true }));
    let Some(Output::Persist(record)) = outputs.iter().rev().nth(1) else { panic!("{outputs:?}") };
    assert_eq!(formation.members(), [NodeId(7)]);
    assert_eq!(formation.step(Input::Tick), []);

    let mut again = Formation::new(Some(record.clone()), NodeId(7), &[], 43);
    assert_eq!(again.step(Input::Tick), [Output::Formed { cluster, replica: 7, initial: true }]);
}

#[test]
fn a_node_promises_on_disk_before_it_says_so() {
    let mut second = Formation::new(None, NodeId(2), &nodes(&[1, 2, 3]), 22);
    let _ = second.step(Input::PeerUp(NodeId(1)));
    let offered = invitation(1, 9, &[(1, 11), (2, 22), (3, 33)]);
    let outputs = second.step(say(1, announced(&[1, 2, 3], 11, Standing::Joined(offered.clone()))));
    let promised = Standing::Joined(offered);
    assert_eq!(persisted(&outputs), std::slice::from_ref(&promised));
    assert!(matches!(&outputs[0], Output::Persist(_)));
    assert!(
        matches!(&outputs[1], Output::Send { to: NodeId(1), announcement } if announcement.standing == promised)
    );
}

#[test]
fn an_invitation_is_refused_unless_it_names_this_disk_and_is_later() {
    let listed = [1, 2, 3];
    let start = || {
        let mut second = Formation::new(None, NodeId(2), &nodes(&listed), 22);
        let _ = second.step(say(
            1,
            announced(&listed, 11, Standing::Joined(invitation(5, 9, &[(1, 11), (2, 22), (3, 33)]))),
        ));
        assert_eq!(second.describe(), "the cluster is not formed yet: waiting for node 3");
        second
    };
    let others = [
        ("the same round", 1, 11, &listed, invitation(5, 8, &[(1, 11), (2, 22), (3, 33)])),
        ("an earlier round", 1, 11, &listed, invitation(4, 8, &[(1, 11), (2, 22), (3, 33)])),
        ("a disk that is gone", 1, 11, &listed, invitation(6, 8, &[(1, 11), (2, 21), (3, 33)])),
        ("another's invitation", 1, 11, &listed, invitation(6, 8, &[(1, 10), (2, 22), (3, 33)])),
        ("not the lowest node", 3, 33, &listed, invitation(6, 8, &[(1, 11), (2, 22), (3, 33)])),
        ("other members", 1, 11, &listed, invitation(6, 8, &[(1, 11), (2, 22), (4, 44)])),
        ("another list", 1, 11, &[1, 2, 4], invitation(6, 8, &[(1, 11), (2, 22), (3, 33)])),
    ];
    for (what, from, disk, list, offered) in others {
        let outputs = start().step(say(from, announced(list, disk, Standing::Joined(offered))));
        assert_eq!(persisted(&outputs), [], "{what}");
    }
    let later = Standing::Joined(invitation(6, 8, &[(1, 11), (2, 22), (3, 34)]));
    assert_eq!(persisted(&start().step(say(1, announced(&listed, 11, later.clone())))), [later]);
}

#[test]
fn different_lists_are_refused_with_both() {
    let mut first = Formation::new(None, NodeId(1), &nodes(&[3, 2, 1]), 11);
    let _ = first.step(say(2, announced(&[1, 2, 3], 22, Standing::Fresh)));
    let other = announced(&[1, 2, 3, 4], 33, Standing::Fresh);
    let outputs = first.step(say(3, other.clone()));
    let expected = "node 3 lists the nodes 1, 2, 3, 4, this node lists 1, 2, 3: the cluster does not form before \
                    the cluster-node lines of all nodes name the same";
    assert_eq!(warnings(&outputs), [expected]);
    assert_eq!(persisted(&outputs), []);
    // Said once, until it changes.
    assert_eq!(first.step(say(3, other)), []);
    let outputs = first.step(say(3, announced(&[1, 2, 3], 34, Standing::Fresh)));
    assert_eq!(persisted(&outputs).len(), 1);
}

#[test]
fn a_changed_list_does_not_undo_a_promise() {
    let promise = Standing::Joined(invitation(1, 9, &[(1, 11), (2, 22), (3, 33)]));
    let record = Record { disk: 11, replica: 1, standing: promise.clone() };
    let mut first = Formation::new(Some(record), NodeId(1), &nodes(&[1, 2]), 12);
    let outputs = first.step(Input::Tick);
    assert!(warnings(&outputs)[0].contains("list the nodes 1, 2, and listed 1, 2, 3"), "{outputs:?}");
    assert_eq!(persisted(&first.step(say(2, announced(&[1, 2], 23, Standing::Fresh)))), []);
    let _ = first.step(say(2, announced(&[1, 2, 3], 22, promise.clone())));
    let outputs = first.step(say(3, announced(&[1, 2, 3], 33, promise)));
    assert!(outputs.contains(&Output::Formed { cluster: 9, replica: 1, initial: true }), "{outputs:?}");
}

#[test]
fn a_promise_is_left_only_when_what_it_was_for_can_never_form() {
    let listed = [1, 2, 3];
    let joined = |round| Standing::Joined(invitation(round, 8, &[(1, 11), (2, 22), (3, 33)]));
    let record = Record { disk: 11, replica: 1, standing: joined(2) };
    let after = |disk, standing| {
        let mut first = Formation::new(Some(record.clone()), NodeId(1), &nodes(&listed), 12);
        let _ = first.step(say(2, announced(&listed, 22, Standing::Fresh)));
        first.step(say(3, announced(&listed, disk, standing)))
    };
    let formed = |round, own| Standing::Formed(invitation(round, 9, &[(1, own), (2, 21), (3, 33)]));
    assert_eq!(persisted(&after(33, formed(1, 11))), [formed(1, 11)]);
    // This may be the last word of a directory that is gone: the present one may have promised.
    assert_eq!(after(34, formed(1, 11)), []);
    // Not a first member, or one that does not remember its promise: the directory was restored from a copy.
    let rejoin = [Output::Rejoin { cluster: 9, through: NodeId(3) }];
    assert_eq!(after(33, formed(1, 10)), rejoin);
    assert_eq!(after(33, formed(3, 11)), rejoin);
}

#[test]
fn a_node_of_another_cluster_is_told_apart() {
    let formed = |cluster| Standing::Formed(invitation(1, cluster, &[(1, 11), (2, 22)]));
    let record = Record { disk: 11, replica: 1, standing: formed(9) };
    let mut first = Formation::new(Some(record), NodeId(1), &nodes(&[1, 2]), 12);
    let outputs = first.step(say(2, announced(&[1, 2], 22, formed(10))));
    assert!(warnings(&outputs)[0].starts_with("node 2 belongs to another cluster: 0"), "{outputs:?}");
    assert_eq!(first.cluster(), Some(9));
    // Who is asked by two clusters goes to neither.
    let mut third = Formation::new(None, NodeId(3), &nodes(&[1, 2, 3]), 33);
    let outputs = third.step(say(1, announced(&[1, 2], 11, formed(9))));
    assert!(outputs.contains(&Output::Rejoin { cluster: 9, through: NodeId(1) }));
    let outputs = third.step(say(2, announced(&[1, 2], 22, formed(10))));
    assert!(warnings(&outputs)[0].contains("belongs to another cluster"), "{outputs:?}");
    assert!(!outputs.iter().any(|output| matches!(output, Output::Rejoin { .. })));
}

#[test]
fn a_node_without_its_data_asks_for_a_replica_id_and_asks_another_when_that_one_is_gone() {
    let formed = Standing::Formed(invitation(1, 9, &[(1, 11), (2, 22), (3, 33)]));
    let listed = [1, 2, 3];
    let mut third = Formation::new(None, NodeId(3), &nodes(&listed), 34);
    assert_eq!(third.joined_as(7), []);
    let outputs = third.step(say(1, announced(&listed, 11, formed.clone())));
    assert_eq!(outputs, [Output::Rejoin { cluster: 9, through: NodeId(1) }]);
    assert_eq!(third.step(say(2, announced(&listed, 22, formed.clone()))), []);
    let outputs = third.step(Input::PeerDown(NodeId(1)));
    assert_eq!(outputs, [Output::Rejoin { cluster: 9, through: NodeId(2) }]);
    let outputs = third.joined_as(4);
    let record = Record { disk: 34, replica: 4, standing: formed };
    assert_eq!(outputs[0], Output::Persist(record.clone()));
    assert_eq!(outputs[1], Output::Formed { cluster: 9, replica: 4, initial: false });
    let mut again = Formation::new(Some(record), NodeId(3), &nodes(&listed), 35);
    assert_eq!(again.step(Input::Tick), [Output::Formed { cluster: 9, replica: 4, initial: false }]);
}

#[test]
fn a_formed_node_answers_who_is_not_and_is_silent_otherwise() {
    let formed = Standing::Formed(invitation(1, 9, &[(1, 11), (2, 22)]));
    let record = Record { disk: 11, replica: 1, standing: formed.clone() };
    let mut first = Formation::new(Some(record), NodeId(1), &nodes(&[1, 2]), 12);
    let _ = first.step(Input::Tick);
    let own = Output::Send { to: NodeId(2), announcement: announced(&[1, 2], 11, formed.clone()) };
    assert_eq!(first.step(Input::PeerUp(NodeId(2))), std::slice::from_ref(&own));
    assert_eq!(first.step(say(2, announced(&[1, 2], 23, Standing::Fresh))), [own]);
    assert_eq!(first.step(say(2, announced(&[1, 2], 23, formed))), []);
    assert_eq!(first.step(Input::Tick), []);
}

#[test]
fn records_and_announcements_round_trip_and_damage_is_refused() {
    let mut random = Random(3);
    let wide = invitation(1 << 48, u128::MAX, &[(1, 0), (300, u128::MAX), (65_535, 5)]);
    for standing in [Standing::Fresh, Standing::Joined(wide.clone()), Standing::Formed(wide)] {
        let said = announced(&[1, 2, 65_535], u128::MAX - 1, standing.clone());
        let bytes = said.encode();
        assert_eq!(Announcement::decode(&bytes), Ok(said));
        for length in 0..bytes.len() {
            assert!(Announcement::decode(&bytes[..length]).is_err(), "{length} bytes");
        }
        assert!(Announcement::decode(&[bytes.as_slice(), &[0]].concat()).is_err());
        let record = Record { disk: 7, replica: u64::MAX, standing };
        let decoded = Record::decode(&record.encode());
        assert_eq!(decoded.ok(), (record.standing != Standing::Fresh).then_some(record));
        for _ in 0..2_000 {
            let mut bent = bytes.clone();
            let at = random.below(bent.len());
            bent[at] ^= 1 << random.below(8);
            // Whatever is read is in range: it can be taken and said again.
            if let Ok(read) = Announcement::decode(&bent) {
                assert_eq!(Announcement::decode(&read.encode()), Ok(read));
            }
        }
    }
    let disordered = announced(&[2, 1], 1, Standing::Fresh);
    let too_many = announced(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 1, Standing::Fresh);
    for bad in [disordered, too_many, announced(&[], 1, Standing::Fresh), announced(&[0], 1, Standing::Fresh)]
    {
        assert!(Announcement::decode(&bad.encode()).is_err(), "{bad:?}");
    }
    for bad in
        [invitation(0, 1, &[(1, 1)]), invitation(1, 0, &[(1, 1)]), invitation((1 << 48) + 1, 1, &[(1, 1)])]
    {
        assert!(Announcement::decode(&announced(&[1], 1, Standing::Joined(bad)).encode()).is_err());
    }
}

/// How unfriendly a world is.
#[derive(Clone, Copy)]
struct Faults {
    /// Messages are lost, links break.
    network: bool,
    /// Nodes crash; what they stored is kept.
    crashes: bool,
    /// Nodes that may lose their data, at most so many different ones.
    wiped: usize,
    /// A bug to be found: a node that lost its data draws the same disk number again.
    same_disk: bool,
}

const QUIET: Faults = Faults { network: false, crashes: false, wiped: 0, same_disk: false };
const CRASHES: Faults = Faults { network: true, crashes: true, wiped: 0, same_disk: false };

/// A message on a link. It is lost when its receiver ends, or sees a later link from its sender.
struct InFlight {
    from: usize,
    to: usize,
    link: u64,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Machine {
    process: Option<Formation>,
    record: Option<Vec<u8>>,
    /// Counts data directories, whatever the node says of them.
    directory: u64,
    /// Links that it sees, by peer.
    links: BTreeMap<usize, u64>,
    rejoin: Option<u128>,
}

struct World {
    random: Random,
    faults: Faults,
    machines: Vec<Machine>,
    in_flight: Vec<InFlight>,
    links_made: u64,
    replicas_given: u64,
    wiped: BTreeSet<usize>,
    /// Who held a replica id of a cluster.
    holders: BTreeMap<(u128, u64), (usize, u64)>,
    /// Directories that were formed as first members, by cluster.
    first_members: BTreeMap<u128, BTreeSet<(usize, u64)>>,
    violation: Option<String>,
}

impl World {
    fn new(seed: u64, size: usize, faults: Faults) -> World {
        World {
            random: Random(seed),
            faults,
            machines: (0..size).map(|_| Machine::default()).collect(),
            in_flight: Vec::new(),
            links_made: 0,
            replicas_given: 1000,
            wiped: BTreeSet::new(),
            holders: BTreeMap::new(),
            first_members: BTreeMap::new(),
            violation: None,
        }
    }

    fn size(&self) -> usize {
        self.machines.len()
    }

    fn majority(&self) -> usize {
        self.size() / 2 + 1
    }

    fn formed(&self, at: usize) -> Option<u128> {
        let record = Record::decode(self.machines[at].record.as_ref()?).unwrap();
        if let Standing::Formed(formed) = record.standing { Some(formed.cluster) } else { None }
    }

    fn start(&mut self, at: usize) {
        let listed: Vec<NodeId> = (1..=self.size() as u64).map(NodeId).collect();
        let random = if self.faults.same_disk { at as u128 + 1 } else { self.random.wide() };
        let machine = &mut self.machines[at];
        let record = machine.record.as_ref().map(|bytes| Record::decode(bytes).unwrap());
        machine.process = Some(Formation::new(record, listed[at], &listed, random));
        self.step(at, Input::Tick);
    }

    fn crash(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        machine.process = None;
        machine.rejoin = None;
        machine.links.clear();
        self.in_flight.retain(|message| message.to != at);
    }

    fn wipe(&mut self, at: usize) {
        self.crash(at);
        if self.machines[at].record.take().is_some() {
            self.wiped.insert(at);
        }
        self.machines[at].directory += 1;
    }

    fn step(&mut self, at: usize, input: Input) {
        let Some(process) = &mut self.machines[at].process else { return };
        let outputs = process.step(input);
        self.carry_out(at, outputs);
    }

    fn carry_out(&mut self, at: usize, outputs: Vec<Output>) {
        for output in outputs {
            if self.faults.crashes && self.random.one_in(60) {
                return self.crash(at);
            }
            match output {
                Output::Persist(record) => self.machines[at].record = Some(record.encode()),
                Output::Send { to, announcement } => self.send(at, to.0 as usize - 1, announcement.encode()),
                Output::Formed { cluster, replica, initial } => self.on_formed(at, cluster, replica, initial),
                Output::Rejoin { cluster, .. } => self.machines[at].rejoin = Some(cluster),
                Output::Warn(_) => {}
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        let Some(&link) = self.machines[from].links.get(&to) else { return };
        if !self.faults.network || !self.random.one_in(6) {
            self.in_flight.push(InFlight { from, to, link, bytes });
        }
    }

    /// Both ends are there, but each sees the link for itself, the other perhaps with its first message.
    fn link(&mut self, from: usize, to: usize) {
        if self.machines[from].process.is_none() || self.machines[to].process.is_none() {
            return;
        }
        self.links_made += 1;
        let link = self.links_made;
        self.see_link(from, to, link);
        if !self.faults.network || self.random.one_in(2) {
            self.see_link(to, from, link);
        }
    }

    fn see_link(&mut self, at: usize, peer: usize, link: u64) {
        if self.machines[at].process.is_none() {
            return;
        }
        let id = NodeId(peer as u64 + 1);
        if self.machines[at].links.remove(&peer).is_some() {
            self.step(at, Input::PeerDown(id));
        }
        if self.machines[at].process.is_some() {
            self.machines[at].links.insert(peer, link);
            self.step(at, Input::PeerUp(id));
        }
    }

    fn unlink(&mut self, at: usize, peer: usize) {
        if self.machines[at].links.remove(&peer).is_some() {
            self.step(at, Input::PeerDown(NodeId(peer as u64 + 1)));
        }
    }

    /// Hands on any of the messages, not the oldest.
    fn deliver(&mut self) {
        if self.in_flight.is_empty() {
            return;
        }
        let at = self.random.below(self.in_flight.len());
        let InFlight { from, to, link, bytes } = self.in_flight.swap_remove(at);
        let seen = self.machines[to].links.get(&from).copied().unwrap_or(0);
        if seen > link {
            return;
        }
        if seen < link {
            self.see_link(to, from, link);
        }
        let announcement = Announcement::decode(&bytes).unwrap();
        self.step(to, Input::Message { from: NodeId(from as u64 + 1), announcement });
    }

    /// The cluster gives a replica id when a majority of it can agree on one.
    fn give_replica(&mut self, at: usize) {
        let Some(cluster) = self.machines[at].rejoin else { return };
        let is_member =
            |other: &usize| self.machines[*other].process.is_some() && self.formed(*other) == Some(cluster);
        if (0..self.size()).filter(is_member).count() < self.majority() {
            return;
        }
        self.replicas_given += 1;
        let replica = self.replicas_given;
        if let Some(process) = &mut self.machines[at].process {
            let outputs = process.joined_as(replica);
            self.machines[at].rejoin = None;
            self.carry_out(at, outputs);
        }
    }

    fn on_formed(&mut self, at: usize, cluster: u128, replica: u64, initial: bool) {
        let directory = (at, self.machines[at].directory);
        assert_eq!(self.formed(at), Some(cluster), "Raft would run before the record is stored");
        if initial != (replica == at as u64 + 1) {
            self.violate(format!("{directory:?} is first member: {initial}, under replica id {replica}"));
        }
        let holder = *self.holders.entry((cluster, replica)).or_insert(directory);
        if holder != directory {
            self.violate(format!("replica {replica} of {cluster:x} is {directory:?} and was {holder:?}"));
        }
        if initial {
            self.first_members.entry(cluster).or_default().insert(directory);
        }
        if self.wiped.len() >= self.majority() {
            return;
        }
        let majority = self.majority();
        let real = self.first_members.iter().find(|(_, members)| members.len() >= majority);
        if let Some((real, _)) = real
            && *real != cluster
        {
            self.violate(format!("{directory:?} is of {cluster:x}, while {real:x} had a majority"));
        }
        for other in 0..self.size() {
            if self.formed(other).is_some_and(|theirs| theirs != cluster) {
                self.violate(format!("{directory:?} is of {cluster:x}, node {other} is not"));
            }
        }
    }

    fn violate(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    fn anything(&mut self) {
        let (at, peer) = (self.random.below(self.size()), self.random.below(self.size()));
        match self.random.below(40) {
            0..=5 if self.machines[at].process.is_none() => self.start(at),
            6..=11 if at != peer => self.link(at, peer),
            12 if self.faults.network => self.unlink(at, peer),
            13 if self.faults.crashes => self.crash(at),
            14 if self.wiped.contains(&at) || self.wiped.len() < self.faults.wiped => self.wipe(at),
            15..=17 => self.step(at, Input::Tick),
            18 => self.give_replica(at),
            _ => self.deliver(),
        }
    }

    /// No more faults, everybody but `missing` is there.
    fn heal(&mut self, missing: Option<usize>) {
        self.faults = Faults { network: false, crashes: false, wiped: 0, ..self.faults };
        let present: Vec<usize> = (0..self.size()).filter(|at| Some(*at) != missing).collect();
        for &at in &present {
            if self.machines[at].process.is_none() {
                self.start(at);
            }
        }
        for _ in 0..8 {
            for &at in &present {
                for &peer in &present {
                    let is_linked = self.machines[at].links.get(&peer) == self.machines[peer].links.get(&at);
                    if at < peer && !(is_linked && self.machines[at].links.contains_key(&peer)) {
                        self.link(at, peer);
                    }
                }
                self.step(at, Input::Tick);
            }
            while !self.in_flight.is_empty() {
                self.deliver();
            }
            present.iter().for_each(|at| self.give_replica(*at));
        }
    }

    fn clusters(&self) -> BTreeSet<Option<u128>> {
        (0..self.size()).map(|at| self.formed(at)).collect()
    }
}

/// Runs one world, heals it, and says what was wrong.
fn run(seed: u64, size: usize, steps: usize, faults: Faults) -> Result<World, String> {
    let mut world = World::new(seed, size, faults);
    for _ in 0..steps {
        world.anything();
    }
    world.heal(None);
    let failed = |what: &str| Err(format!("seed {seed}, {size} nodes: {what}"));
    if let Some(violation) = &world.violation {
        return failed(violation);
    }
    let clusters = world.clusters();
    if world.wiped.len() < world.majority() && (clusters.len() != 1 || clusters.contains(&None)) {
        let said: Vec<String> =
            world.machines.iter().filter_map(|machine| Some(machine.process.as_ref()?.describe())).collect();
        return failed(&format!("not of one cluster when all is well: {said:?}"));
    }
    Ok(world)
}

#[test]
fn without_faults_everybody_forms_one_cluster_in_the_first_round() {
    for seed in 0..500 {
        for size in [1, 2, 3, 5, 9] {
            let world = run(seed, size, 60, QUIET).unwrap_or_else(|why| panic!("{why}"));
            assert_eq!(world.first_members.len(), 1, "seed {seed}, {size} nodes");
            assert_eq!(world.first_members.values().next().map(BTreeSet::len), Some(size), "seed {seed}");
        }
    }
}

#[test]
fn with_one_node_missing_nobody_forms() {
    for seed in 0..500 {
        for size in [2, 3, 5] {
            let mut world = World::new(seed, size, QUIET);
            let missing = seed as usize % size;
            world.heal(Some(missing));
            assert_eq!(world.clusters(), BTreeSet::from([None]), "seed {seed}, {size} nodes");
            world.heal(None);
            assert_eq!(world.first_members.len(), 1, "seed {seed}, {size} nodes");
            assert!(!world.clusters().contains(&None), "seed {seed}, {size} nodes");
        }
    }
}

#[test]
fn crashes_and_lost_messages_leave_one_cluster() {
    for seed in 0..4_000 {
        for (size, steps) in [(3, 300), (5, 600)] {
            let world = run(seed, size, steps, CRASHES).unwrap_or_else(|why| panic!("{why}"));
            assert_eq!(world.first_members.len(), 1, "seed {seed}, {size} nodes");
        }
    }
}

#[test]
fn a_minority_that_loses_its_data_comes_back_under_new_replica_ids() {
    let (mut rejoined, mut drawn_again) = (0, 0);
    for seed in 0..6_000 {
        for (size, steps, wiped) in [(3, 300, 1), (5, 600, 2)] {
            let world =
                run(seed, size, steps, Faults { wiped, ..CRASHES }).unwrap_or_else(|why| panic!("{why}"));
            rejoined += usize::from(world.holders.keys().any(|(_, replica)| *replica > 1000));
            drawn_again += usize::from(world.first_members.len() > 1);
        }
    }
    // The worlds are rough enough to mean something.
    assert!(
        rejoined > 1_000 && drawn_again < rejoined / 10,
        "{rejoined} rejoined, {drawn_again} drawn again"
    );
}

#[test]
fn even_when_most_lose_their_data_no_replica_id_is_held_twice() {
    for seed in 0..4_000 {
        for (size, steps) in [(3, 300), (5, 600)] {
            let faults = Faults { wiped: size, ..CRASHES };
            run(seed, size, steps, faults).unwrap_or_else(|why| panic!("{why}"));
        }
    }
}

#[test]
fn the_simulation_notices_a_node_that_votes_under_its_old_name() {
    let faults = Faults { wiped: 1, same_disk: true, ..CRASHES };
    let found =
        (0..2_000).filter_map(|seed| run(seed, 3, 300, faults).err()).find(|why| why.contains("and was"));
    assert!(found.is_some());
}

#[test]
fn a_node_that_gave_up_its_data_begins_no_cluster_and_joins_none_that_begins() {
    let listed = [1, 2, 3];
    for own in [1, 2] {
        let new_disk = 1_000 + u128::from(own);
        let disk = |node: u64, own_disk| (node, if node == own { own_disk } else { u128::from(node) * 11 });
        let all = |own_disk| invitation(1, 9, &[disk(1, own_disk), disk(2, own_disk), disk(3, own_disk)]);
        let mut node = Formation::new(None, NodeId(own), &nodes(&listed), new_disk).only_to_rejoin();
        for other in [1, 2, 3].into_iter().filter(|other| *other != own) {
            let standing = if other == 1 { Standing::Joined(all(new_disk)) } else { Standing::Fresh };
            let outputs = node.step(say(other, announced(&listed, u128::from(other) * 11, standing)));
            assert_eq!(persisted(&outputs), [], "node {own}");
        }
        assert!(node.describe().contains("waiting for a node that still belongs"), "{}", node.describe());
        let formed = Standing::Formed(all(u128::from(own) * 11));
        let outputs = node.step(say(3, announced(&listed, 33, formed)));
        assert!(outputs.contains(&Output::Rejoin { cluster: 9, through: NodeId(3) }), "{outputs:?}");
        let outputs = node.joined_as(1_000);
        assert!(
            outputs.contains(&Output::Formed { cluster: 9, replica: 1_000, initial: false }),
            "{outputs:?}"
        );
    }
}
