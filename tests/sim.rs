//! The simulator: a cluster in one thread, from one seed, and the faults that real machines have.
//!
//! ```text
//! sim [--seeds N] [--from N] [--seconds N] [--threads N]    N seeds; the last line counts what they did
//! sim --seed N [--seconds N] [--only BUG]                   repeats one
//! sim --twice N                                             N seeds twice: their traces must be equal
//! sim --mutations [N] [--only BUG]                          plants each known bug, and must find it within N seeds
//! ```
//! SIM_STORY=1 with `--seed` tells what happened.
//! The status is 1 when something that must hold did not.

#[path = "sim/chance.rs"]
mod chance;
#[path = "sim/clients.rs"]
mod clients;
#[path = "sim/comparison.rs"]
mod comparison;
#[path = "sim/coverage.rs"]
mod coverage;
#[path = "sim/disk.rs"]
mod disk;
#[path = "sim/faults.rs"]
mod faults;
#[path = "sim/invariants/mod.rs"]
mod invariants;
#[path = "sim/journal.rs"]
mod journal;
#[path = "sim/machine.rs"]
mod machine;
#[path = "sim/model.rs"]
mod model;
#[path = "sim/node.rs"]
mod node;
#[path = "sim/plan.rs"]
mod plan;
#[path = "sim/replay.rs"]
mod replay;
#[path = "sim/seeds.rs"]
mod seeds;
#[path = "support/wgl.rs"]
#[allow(dead_code, reason = "each test binary has use for some of it")]
mod wgl;
#[path = "sim/world.rs"]
mod world;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use holdfast::types::planted::Bug;

use crate::coverage::Coverage;
use crate::world::Figures;
use crate::world::Outcome;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Simulated seconds of a seed, without the healing.
const SECONDS: u64 = 600;
/// A planted bug must be found within so many seeds.
const MUTATION_SEEDS: u64 = 500;
/// After so many seeds everything that happens sometimes must have happened.
const COVERED_AFTER: u64 = 1_000;

struct Options {
    seeds: u64,
    from: u64,
    seconds: u64,
    threads: u64,
    seed: Option<u64>,
    twice: Option<u64>,
    mutations: Option<u64>,
    only: Option<String>,
}

fn options() -> Result<Options, String> {
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let mut options = Options {
        seeds: 0,
        from: 1,
        seconds: SECONDS,
        threads,
        seed: None,
        twice: None,
        mutations: None,
        only: None,
    };
    let mut args = std::env::args().skip(1).peekable();
    while let Some(arg) = args.next() {
        if arg == "--only" {
            options.only = args.next();
            continue;
        }
        let number = args.next_if(|next| !next.starts_with("--"));
        let number = match &number {
            Some(text) => Some(text.parse::<u64>().map_err(|_| format!("{arg} {text}: want a number"))?),
            None => None,
        };
        match (arg.as_str(), number) {
            ("--seeds", Some(count)) => options.seeds = count,
            ("--from", Some(from)) => options.from = from,
            ("--seconds", Some(seconds)) => options.seconds = seconds,
            ("--threads", Some(threads)) => options.threads = threads.max(1),
            ("--seed", Some(seed)) => options.seed = Some(seed),
            ("--twice", Some(count)) => options.twice = Some(count),
            ("--mutations", count) => options.mutations = Some(count.unwrap_or(MUTATION_SEEDS)),
            _ => return Err(format!("{arg}: unknown, or without its number; see the top of tests/sim.rs")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    // A panic in a simulated node is a finding, and told as one.
    std::panic::set_hook(Box::new(|_| {}));
    let options = match options() {
        Ok(options) => options,
        Err(what) => {
            eprintln!("{what}");
            return ExitCode::from(2);
        }
    };
    let is_right = if let Some(seed) = options.seed {
        one(seed, &options)
    } else if let Some(count) = options.twice {
        twice(count, &options)
    } else if let Some(count) = options.mutations {
        mutations(count, &options)
    } else {
        many(&options)
    };
    if is_right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn options_tell() -> bool {
    std::env::var_os("SIM_STORY").is_some()
}

fn one(seed: u64, options: &Options) -> bool {
    let is_wanted = |bug: &Bug| options.only.as_ref().is_some_and(|only| *only == format!("{bug:?}"));
    let bug = Bug::ALL.into_iter().find(is_wanted);
    let outcome = world::run(seed, options.seconds, bug, options_tell());
    for (what, count) in outcome.coverage.counts() {
        println!("{count:8} {what}");
    }
    println!("seed {seed}: trace {:016x}, {:?}", outcome.trace, outcome.figures);
    match &outcome.failure {
        Some(failure) => println!("seed {seed}: {failure}"),
        None => println!("seed {seed}: nothing found"),
    }
    outcome.failure.is_none()
}

/// Runs seeds on all threads; gives their outcomes to `each`, in no order. Ends early when it says so.
fn on_threads(
    seeds: &[u64],
    options: &Options,
    bug: Option<Bug>,
    each: &(dyn Fn(u64, Outcome) -> bool + Sync),
) {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..options.threads {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(seed) = seeds.get(usize::try_from(at).unwrap_or(usize::MAX)) else { return };
                    if !each(*seed, world::run(*seed, options.seconds, bug, false)) {
                        next.store(u64::MAX / 2, Ordering::Relaxed);
                        return;
                    }
                }
            });
        }
    });
}

#[derive(Default)]
struct Sum {
    seeds: u64,
    figures: Figures,
    coverage: Coverage,
    failures: Vec<(u64, String)>,
}

fn many(options: &Options) -> bool {
    let mut seeds: Vec<u64> = seeds::REGRESSIONS.iter().map(|(seed, _)| *seed).collect();
    seeds.extend(options.from..options.from + options.seeds);
    let sum = Mutex::new(Sum::default());
    on_threads(&seeds, options, None, &|seed, outcome| {
        let mut sum = sum.lock().expect("nothing panics while it holds this");
        sum.seeds += 1;
        sum.figures.events += outcome.figures.events;
        sum.figures.messages += outcome.figures.messages;
        sum.figures.operations += outcome.figures.operations;
        sum.figures.faults += outcome.figures.faults;
        sum.coverage.add(&outcome.coverage);
        if let Some(failure) = outcome.failure {
            println!("seed {seed}: {failure}");
            sum.failures.push((seed, failure));
        }
        true
    });
    let sum = sum.into_inner().expect("nothing panicked while it held this");
    let missing = sum.coverage.missing();
    let is_covered = sum.seeds < COVERED_AFTER || missing.is_empty();
    for (what, count) in sum.coverage.counts() {
        println!("{count:10} times: {what}");
    }
    if !missing.is_empty() {
        println!("never happened: {}", missing.join(", "));
    }
    let Figures { events, messages, operations, faults } = sum.figures;
    println!("{events} events, {messages} messages, {operations} operations of clients");
    let hours = sum.seeds * options.seconds / 3_600;
    let violations = sum.failures.len() as u64 + u64::from(!is_covered);
    println!("{} seeds, {hours} simulated hours, {faults} faults, {violations} violations", sum.seeds);
    violations == 0
}

fn twice(count: u64, options: &Options) -> bool {
    let seeds: Vec<u64> = (options.from..options.from + count).collect();
    let traces = || {
        let traces = Mutex::new(vec![0; seeds.len()]);
        on_threads(&seeds, options, None, &|seed, outcome| {
            let at = (seed - options.from) as usize;
            traces.lock().expect("nothing panics while it holds this")[at] = outcome.trace;
            true
        });
        traces.into_inner().expect("nothing panicked while it held this")
    };
    let (first, second) = (traces(), traces());
    let differ: Vec<u64> = seeds
        .iter()
        .zip(first.iter().zip(&second))
        .filter(|(_, (a, b))| a != b)
        .map(|(seed, _)| *seed)
        .collect();
    let all = first.iter().fold(0_u64, |all, trace| all.rotate_left(7) ^ trace);
    println!("{count} seeds twice, traces {all:016x}, {} differ {differ:?}", differ.len());
    differ.is_empty()
}

fn mutations(count: u64, options: &Options) -> bool {
    let mut found = 0;
    let is_wanted = |bug: &Bug| options.only.as_ref().is_none_or(|only| *only == format!("{bug:?}"));
    let bugs: Vec<Bug> = Bug::ALL.into_iter().filter(is_wanted).collect();
    for bug in bugs.iter().copied() {
        let seeds: Vec<u64> = (options.from..options.from + count).collect();
        let result = Mutex::new((0, None));
        on_threads(&seeds, options, Some(bug), &|seed, outcome| {
            let mut result = result.lock().expect("nothing panics while it holds this");
            result.0 += 1;
            if let (Some(failure), None) = (outcome.failure, &result.1) {
                result.1 = Some((seed, failure));
            }
            result.1.is_none()
        });
        let (runs, finding) = result.into_inner().expect("nothing panicked while it held this");
        match finding {
            Some((seed, failure)) => {
                found += 1;
                let short: String = failure.chars().take(150).collect();
                println!("{bug:?}: found after {runs} seeds (seed {seed}): {short}");
            }
            None => println!("{bug:?}: NOT found in {runs} seeds"),
        }
    }
    println!("{found} of {} mutations found", bugs.len());
    found == bugs.len()
}
