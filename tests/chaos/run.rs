//! A run: clients all the time, one fault after the other, checks in between, and a verdict.
//!
//! ```text
//! rate before ─► part: fault, whole, fault, whole … ─► clients stop ─► last reads, queues drained, digests ─► checks
//!                  ▲                                                                                          │
//!                  └──────────────────────────── keys of their own ───────────────────────────────────────────┘
//! ```
//! A run that saw too little is invalid: neither passed nor failed. It is repeated once.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::Duration;

use holdfast::clock::Clock;
use holdfast::clock::SystemClock;

use crate::chaos::checks::Violation;
use crate::chaos::checks::check;
use crate::chaos::clients::Actor;
use crate::chaos::clients::COUNTERS;
use crate::chaos::clients::PINNED;
use crate::chaos::clients::QUEUES;
use crate::chaos::clients::REGISTERS;
use crate::chaos::clients::ROAMING;
use crate::chaos::clients::Shared;
use crate::chaos::clients::key;
use crate::chaos::history::Action;
use crate::chaos::history::Answer;
use crate::chaos::history::Journal;
use crate::chaos::history::Operation;
use crate::chaos::history::Outcome;
use crate::chaos::nemesis::Fault;
use crate::chaos::nemesis::Rig;
use crate::chaos::nemesis::Tally;
use crate::support::Random;
use crate::support::cluster::PATIENCE;
use crate::support::wait_for;

/// Faults between two checks.
const FAULTS_A_PART: usize = 25;
/// Parts that a cluster lives.
const PARTS_A_CLUSTER: u64 = 4;
/// Operations a second that a healthy cluster must acknowledge for the run to say anything.
const RATE_FLOOR: u64 = 50;
/// Operations that must be acknowledged while something is wrong.
const ACKNOWLEDGED_IN_FAULTS_MIN: u64 = 20;
/// Refused starts that are shown.
const REFUSALS_SHOWN: usize = 5;
/// The clients of the last reads and of the draining have numbers from here on.
const LAST_READER: u64 = 100;

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    pub nodes: u64,
    pub faults: Vec<Fault>,
    /// `always`, but to see what is found otherwise.
    pub appendfsync: &'static str,
}

/// What is to be said of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Valid,
    /// A promise was broken.
    Violation(Vec<String>),
    /// It does not show anything, and why.
    Invalid(Vec<String>),
}

/// The figures of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    pub tally: Tally,
    pub acknowledged: u64,
    pub acknowledged_in_faults: u64,
    pub in_doubt: u64,
    pub refused: u64,
    pub rate_before: u64,
    pub violations: Vec<Violation>,
    /// Kinds of violations that no checker reports.
    pub strange: Vec<String>,
    pub parts: u64,
    pub seconds: u64,
}

impl Figures {
    /// Takes in those of another run.
    pub fn add(&mut self, other: Figures) {
        // The rate is that of the slowest.
        let is_first = self.parts == 0;
        self.rate_before = if is_first { other.rate_before } else { self.rate_before.min(other.rate_before) };
        self.tally.add(other.tally);
        self.acknowledged += other.acknowledged;
        self.acknowledged_in_faults += other.acknowledged_in_faults;
        self.in_doubt += other.in_doubt;
        self.refused += other.refused;
        self.violations.extend(other.violations);
        self.strange.extend(other.strange);
        self.parts += other.parts;
        self.seconds += other.seconds;
    }

    fn verdict(&self) -> Verdict {
        let violations = self.violations.iter().map(ToString::to_string).chain(self.strange.clone());
        let violations: Vec<String> = violations.collect();
        if !violations.is_empty() {
            return Verdict::Violation(violations);
        }
        let tally = &self.tally;
        let mut why = Vec::new();
        if !tally.without_effect.is_empty() {
            why.push(format!("without effect: {:?}", tally.without_effect));
        }
        if tally.leaders_hit == 0 || tally.followers_hit == 0 {
            why.push(format!("{} leaders and {} followers were hit", tally.leaders_hit, tally.followers_hit));
        }
        if self.acknowledged_in_faults < ACKNOWLEDGED_IN_FAULTS_MIN {
            why.push(format!(
                "{} operations acknowledged while something was wrong",
                self.acknowledged_in_faults
            ));
        }
        if self.rate_before < RATE_FLOOR {
            why.push(format!("{} operations a second before the first fault", self.rate_before));
        }
        if why.is_empty() { Verdict::Valid } else { Verdict::Invalid(why) }
    }
}

/// What a percentage of the lengths is not above.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let place = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(place).copied().unwrap_or(0)
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tally = &self.tally;
        let mut failovers = tally.failovers.clone();
        failovers.sort_unstable();
        let lost = self.violations.iter().filter(|violation| violation.is_loss).count();
        write!(
            f,
            "{} faults in {} s {:?}; leaders hit {}, followers {}; acknowledged {} ({} during faults, {}/s before), in \
             doubt {}, refused {}; lost acknowledged {lost}, violations {}; power cuts took {} bytes and {} directory \
             changes, garbled {} bytes; flips served {}, starts refused {}; failover p50 {} p99 {} max {} ms (n={})",
            tally.by_fault.values().sum::<u64>(),
            self.seconds,
            tally.by_fault,
            tally.leaders_hit,
            tally.followers_hit,
            self.acknowledged,
            self.acknowledged_in_faults,
            self.rate_before,
            self.in_doubt,
            self.refused,
            self.violations.len() + self.strange.len(),
            tally.loss.bytes,
            tally.loss.changes,
            tally.loss.garbled,
            tally.flips_served,
            tally.refused_starts.len(),
            percentile(&failovers, 50),
            percentile(&failovers, 99),
            failovers.last().copied().unwrap_or(0),
            failovers.len()
        )
    }
}

/// Ends the clients however the test ends; a failed one would wait for them for ever.
struct StopAtEnd<'a>(&'a Shared);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Runs a plan to its end or to the first violation.
pub fn run(plan: &Plan) -> (Figures, Verdict) {
    let clock = SystemClock::start();
    let mut random = Random::new(plan.seed);
    let mut figures = Figures::default();
    let mut rig = None;
    let parts: Vec<&[Fault]> = plan.faults.chunks(FAULTS_A_PART).collect();
    for (part, faults) in parts.into_iter().enumerate() {
        let part = part as u64;
        if part.is_multiple_of(PARTS_A_CLUSTER) {
            close(rig.take(), &mut figures);
            rig = Some(start(plan, &mut random));
        }
        let rig = rig.as_mut().expect("the first part starts a cluster");
        play(rig, part, faults, &mut random, clock, &mut figures);
        figures.parts += 1;
        if !figures.violations.is_empty() || !figures.strange.is_empty() {
            break;
        }
    }
    close(rig.take(), &mut figures);
    figures.seconds = clock.monotonic().since(Default::default()).0 / 1_000;
    let verdict = figures.verdict();
    (figures, verdict)
}

/// A cluster with settings that let things happen sooner than they do with the defaults.
fn start(plan: &Plan, random: &mut Random) -> Rig {
    let mut choose = |from: &[&'static str]| from[random.below(from.len() as u64) as usize];
    let args = [
        ["--read-consistency", choose(&["lease", "readindex"])],
        ["--log-max-bytes", choose(&["1mb", "1mb", "256mb"])],
        // Without syncs of the log a flush of the rows is what syncs it.
        [
            "--flush-interval",
            choose(if plan.appendfsync == "always" { &["20", "200", "1000"] } else { &["1000"] }),
        ],
        ["--lease-failover-grace", choose(&["0", "200"])],
        ["--indoubt-timeout", "2000"],
        ["--appendfsync", plan.appendfsync],
    ];
    println!("a cluster of {}: {args:?}", plan.nodes);
    Rig::start(plan.nodes, args.as_flattened(), random.next())
}

/// Adds what a cluster's faults came to.
fn close(rig: Option<Rig>, figures: &mut Figures) {
    let Some(mut rig) = rig else { return };
    rig.cluster.check_alive();
    figures.tally.add(rig.tally);
}

/// Lets clients act while faults happen, and checks what they saw.
fn play(
    rig: &mut Rig,
    part: u64,
    faults: &[Fault],
    random: &mut Random,
    clock: SystemClock,
    figures: &mut Figures,
) {
    let journal = Journal::new(Path::new(env!("CARGO_TARGET_TMPDIR")), part);
    let prefix = format!("part{part}");
    let shared = Shared::new(clock);
    let nodes: Vec<(u64, SocketAddr)> =
        rig.cluster.ids().into_iter().map(|id| (id, rig.cluster.address(id))).collect();
    let mut operations = thread::scope(|scope| {
        let end = StopAtEnd(&shared);
        let mut threads = Vec::new();
        for number in 1..=PINNED * nodes.len() as u64 + ROAMING {
            let place = (number as usize - 1) % nodes.len();
            let is_pinned = number <= PINNED * nodes.len() as u64;
            let own = if is_pinned { vec![nodes[place]] } else { nodes.clone() };
            let actor = Actor::new(number, own, &shared, &journal, &prefix, random.next());
            threads.push(scope.spawn(move || actor.run()));
        }
        shared.wait_for_more(20);
        if part == 0 {
            let (before, since) = (shared.acknowledged(), shared.now());
            thread::sleep(Duration::from_secs(1));
            figures.rate_before =
                (shared.acknowledged() - before) * 1_000_000_000 / (shared.now() - since).max(1);
        }
        for fault in faults {
            let begin = shared.now();
            journal.note(begin, &format!("{fault:?} begins"));
            rig.inject(*fault, &shared);
            journal.note(shared.now(), &format!("{fault:?} is over"));
            println!("{:7} ms: {fault:?} took {} ms", begin / 1_000_000, (shared.now() - begin) / 1_000_000);
            shared.wait_for_more(20);
        }
        drop(end);
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    rig.wait_until_whole();
    operations.extend(finish(&nodes, &shared, &journal, &prefix));
    rig.cluster.check_digests();
    let violations = check(&operations);
    figures.acknowledged += shared.acknowledged();
    figures.acknowledged_in_faults += shared.acknowledged_in_faults();
    figures.in_doubt += shared.in_doubt();
    figures.refused += shared.refused();
    figures.strange.extend(shared.strange());
    figures.violations.extend(violations);
    if !figures.violations.is_empty() || !figures.strange.is_empty() {
        println!("the history of this part: {}", journal.keep().display());
    }
}

/// Reads everything at every node and takes all messages out.
fn finish(nodes: &[(u64, SocketAddr)], shared: &Shared, journal: &Journal, part: &str) -> Vec<Operation> {
    let mut operations = Vec::new();
    for (number, node) in nodes.iter().enumerate() {
        let mut actor = Actor::new(LAST_READER + number as u64, vec![*node], shared, journal, part, 0);
        let registers = (0..REGISTERS).map(|n| key(part, "register", n));
        for key in registers.chain((0..COUNTERS).map(|n| key(part, "counter", n))) {
            wait_for("a last read", PATIENCE, || {
                let outcome = actor.act(&key, Action::Get);
                matches!(outcome, Some(Outcome::Ok(_))).then_some(())
            });
        }
        operations.extend(actor.operations());
    }
    let mut actor = Actor::new(LAST_READER - 1, nodes.to_vec(), shared, journal, part, 0);
    for n in 0..QUEUES {
        let key = key(part, "queue", n);
        let mut turn = 0;
        wait_for("a queue to be empty", PATIENCE, || {
            turn += 1;
            actor.go_to(turn % nodes.len());
            drain_one(&mut actor, &key);
            actor.is_empty(&key).then_some(())
        });
    }
    operations.extend(actor.operations());
    operations
}

/// Takes the messages out that nobody has leased now.
fn drain_one(actor: &mut Actor<'_>, key: &str) {
    while let Some(Outcome::Ok(Answer::Message { id, deliveries, .. })) =
        actor.act(key, Action::Pop { lease_ms: 2_000 })
    {
        let _ = actor.act(key, Action::Ack { receipt: format!("{id}:{deliveries}") });
    }
}

/// Runs a plan; one that was invalid once more. Fails the test unless it is valid then, and prints the figures.
pub fn run_and_judge(plan: &Plan) -> Figures {
    let mut plan = plan.clone();
    for is_last in [false, true] {
        println!("seed {}, {} nodes, {} faults", plan.seed, plan.nodes, plan.faults.len());
        let (figures, verdict) = run(&plan);
        println!("{figures}");
        for line in figures.tally.refused_starts.iter().take(REFUSALS_SHOWN) {
            println!("start refused: {line}");
        }
        match verdict {
            Verdict::Valid => return figures,
            Verdict::Violation(what) => {
                panic!("seed {}: {} violations:\n{}", plan.seed, what.len(), what.join("\n"))
            }
            Verdict::Invalid(why) if is_last => panic!("seed {}: invalid again: {why:?}", plan.seed),
            Verdict::Invalid(why) => println!("seed {}: invalid, once more: {why:?}", plan.seed),
        }
        plan.seed += 1;
    }
    unreachable!("the last round returns or fails");
}
