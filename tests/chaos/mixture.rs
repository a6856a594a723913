//! Everything that can go wrong, one after the other, in a random order.

use holdfast::clock::Clock;
use holdfast::clock::SystemClock;
use holdfast::types::Millis;

use crate::chaos::nemesis::DiskFault;
use crate::chaos::nemesis::Fault;
use crate::chaos::nemesis::Shape;
use crate::chaos::nemesis::Target;
use crate::chaos::nemesis::shuffle;
use crate::chaos::run::Figures;
use crate::chaos::run::Plan;
use crate::chaos::run::Verdict;
use crate::chaos::run::run;
use crate::chaos::run::run_and_judge;
use crate::chaos::seed;
use crate::support::Random;
use crate::support::cluster::WallClocks;
use crate::support::number_from_env;

/// Faults of a round of the form that goes by the clock.
const FAULTS_A_ROUND: u64 = 100;

/// What is done so many times in turn, for each family of faults.
const FAMILIES: [(&str, u64, &[Fault]); 8] = [
    (
        "CHAOS_KILLS",
        5,
        &[
            Fault::Kill(Target::Leader),
            Fault::Kill(Target::Follower),
            Fault::Kill(Target::All),
            Fault::Kill(Target::Leader),
            Fault::Kill(Target::Follower),
        ],
    ),
    (
        "CHAOS_POWER",
        5,
        &[
            Fault::Power(Target::Follower),
            Fault::Power(Target::Majority),
            Fault::Power(Target::All),
            Fault::Garbage,
            Fault::Power(Target::Follower),
        ],
    ),
    (
        "CHAOS_PARTITIONS",
        4,
        &[
            Fault::Cut(Shape::LeaderAlone),
            Fault::Cut(Shape::LeaderMute),
            Fault::Cut(Shape::Bridge),
            Fault::Cut(Shape::Swizzle),
            Fault::Cut(Shape::LeaderDeaf),
            Fault::Cut(Shape::Late),
            Fault::Cut(Shape::FollowerAlone),
        ],
    ),
    (
        "CHAOS_DISK",
        4,
        &[
            Fault::Disk(DiskFault::FailedSync),
            Fault::Disk(DiskFault::NoSpace),
            Fault::Disk(DiskFault::SlowSync),
            Fault::Disk(DiskFault::FailedWrite),
            Fault::Disk(DiskFault::ShortWrites),
        ],
    ),
    (
        "CHAOS_PAUSES",
        2,
        &[Fault::Pause(Target::Leader), Fault::Pause(Target::Follower), Fault::Pause(Target::All)],
    ),
    ("CHAOS_CLOCKS", 2, &[Fault::Clock(Target::Leader), Fault::Clock(Target::Follower)]),
    ("CHAOS_FLIPS", 2, &[Fault::Flip]),
    ("CHAOS_LOST_DISKS", 2, &[Fault::LoseDisk]),
];

/// So many of each family as the environment says, else the default, or none at all where others are named.
fn planned(random: &mut Random) -> Vec<Fault> {
    let is_named = FAMILIES.iter().any(|(name, _, _)| std::env::var(name).is_ok());
    let mut faults = Vec::new();
    for (name, default, family) in FAMILIES {
        let count = number_from_env(name, if is_named { 0 } else { default });
        faults.extend(family.iter().cycle().take(count as usize));
    }
    if is_named {
        // A run in which no leader or no follower was hit says too little, whatever else it has.
        faults.extend([Fault::Kill(Target::Leader), Fault::Kill(Target::Follower)]);
    }
    without_clocks_if_none(&mut faults);
    shuffle(&mut faults, random);
    faults
}

/// So many at random, each family as often as the others.
fn drawn(count: u64, random: &mut Random) -> Vec<Fault> {
    let mut faults = Vec::new();
    for _ in 0..count {
        let (_, _, family) = FAMILIES[random.below(FAMILIES.len() as u64) as usize];
        faults.push(family[random.below(family.len() as u64) as usize]);
    }
    without_clocks_if_none(&mut faults);
    faults
}

fn without_clocks_if_none(faults: &mut Vec<Fault>) {
    if WallClocks::find().is_none() {
        eprintln!("NOT TESTED: libfaketime is not installed (Debian's package libfaketime)");
        faults.retain(|fault| !matches!(fault, Fault::Clock(_)));
    }
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_else_is_there_whatever_goes_wrong() {
    let (minutes, nodes) = (number_from_env("CHAOS_MINUTES", 0), number_from_env("CHAOS_NODES", 3));
    let mut seed = seed();
    if minutes == 0 {
        let faults = planned(&mut Random::new(seed));
        run_and_judge(&Plan { seed, nodes, faults, appendfsync: "always" });
        return;
    }
    let clock = SystemClock::start();
    let (mut rounds, mut total) = (0, Figures::default());
    while clock.monotonic().since(Default::default()) < Millis(minutes * 60_000) {
        let faults = drawn(FAULTS_A_ROUND, &mut Random::new(seed));
        total.add(run_and_judge(&Plan { seed, nodes, faults, appendfsync: "always" }));
        (rounds, seed) = (rounds + 1, seed + 1_000);
        println!("after {rounds} rounds: {total}");
    }
}

#[test]
fn a_run_with_everysec_is_found_out_when_the_power_is_cut() {
    let seed = seed();
    let faults = vec![Fault::Power(Target::All); 5];
    let (figures, verdict) = run(&Plan { seed, nodes: 1, faults, appendfsync: "everysec" });
    println!("{figures}");
    assert!(matches!(verdict, Verdict::Violation(_)), "{verdict:?}");
}
