//! The fuzz targets in the time of an ordinary test: every committed input, then inputs made from those by chance.
//!
//! `FUZZ_RUNS=20000000` goes on for minutes (the default takes seconds), `FUZZ_SEED` begins elsewhere,
//! `FUZZ_TARGET=glob` stays with one target. `make fuzz` hands the same functions to libFuzzer, which sees which
//! inputs reach new code. An input that failed once is put into `tests/fuzz/corpus/<target>/` under a name that says
//! what it found; `FUZZ_WRITE_CORPUS=yes` writes the inputs of `seeds.rs` there.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "fuzz/seeds.rs"]
mod seeds;
mod support;
#[path = "fuzz/targets.rs"]
mod targets;

use std::fmt::Write;
use std::fs;
use std::panic;
use std::path::Path;
use std::path::PathBuf;

use crate::support::Random;
use crate::support::number_from_env;
use crate::targets::TARGETS;
use crate::targets::Target;

/// Inputs longer than this are cut: most of what they would show, shorter ones show.
const BYTES_MAX: usize = 4_096;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

/// The committed inputs of a target, by name.
fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<PathBuf> = fs::read_dir(directory().join("corpus").join(target))
        .unwrap_or_else(|error| panic!("corpus/{target}: {error}"))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Runs one input. What fails is shown so that it can be kept.
fn run(target: &Target, input: &[u8], origin: &str) {
    let outcome = panic::catch_unwind(|| (target.run)(input));
    if let Err(cause) = outcome {
        let hex = input.iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").unwrap();
            hex
        });
        println!("{} failed on {origin}, {} bytes: {hex}", target.name, input.len());
        println!("keep it: echo {hex} | xxd -r -p > tests/fuzz/corpus/{}/<what it found>", target.name);
        panic::resume_unwind(cause);
    }
}

#[test]
fn every_committed_input_passes() {
    for target in TARGETS {
        if std::env::var_os("FUZZ_WRITE_CORPUS").is_some() {
            write_seeds(target.name);
        }
        let corpus = corpus(target.name);
        assert!(!corpus.is_empty(), "{} has no input", target.name);
        for (path, input) in corpus {
            run(target, &input, &path.display().to_string());
        }
        for seed in seeds::seeds(target.name) {
            run(target, &seed, "seeds.rs");
        }
        run(target, b"", "nothing");
    }
}

fn write_seeds(target: &str) {
    let directory = directory().join("corpus").join(target);
    fs::create_dir_all(&directory).unwrap();
    for (number, seed) in seeds::seeds(target).into_iter().enumerate() {
        fs::write(directory.join(format!("seed-{number:02}")), seed).unwrap();
    }
}

#[test]
fn the_corpus_is_small_and_every_target_is_one_of_libfuzzer() {
    const CORPUS_BYTES_MAX: usize = 1 << 20;
    let manifest = fs::read_to_string(directory().join("Cargo.toml")).unwrap();
    let mut bytes = 0;
    for Target { name, .. } in TARGETS {
        bytes += corpus(name).iter().map(|(_, input)| input.len()).sum::<usize>();
        assert!(
            manifest.contains(&format!("name = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"")),
            "{name}"
        );
        let source = fs::read_to_string(directory().join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(source.contains(&format!("targets::{name}(data)")), "{name}");
    }
    assert!(bytes < CORPUS_BYTES_MAX, "{bytes} bytes");
    assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len());
    let grouped = [CLIENTS, PEERS, LOG, FILES].concat();
    assert!(TARGETS.iter().all(|target| grouped.contains(&target.name)), "a target stands in no group");
}

/// In groups, so that they use more than one processor.
const CLIENTS: &[&str] = &["resp_stream", "resp_roundtrip", "inline_command", "reply_codec", "long_double"];
const PEERS: &[&str] = &["peer_frame", "handshake", "raft_message", "request", "snapshot_chunk"];
const LOG: &[&str] = &["log_entry", "log_apply", "commands"];
const FILES: &[&str] = &["membership", "watermark", "config_file", "glob"];

#[test]
fn what_clients_might_send_passes() {
    fuzz(CLIENTS);
}

#[test]
fn what_peers_might_send_passes() {
    fuzz(PEERS);
}

#[test]
fn what_the_log_might_hold_passes() {
    fuzz(LOG);
}

#[test]
fn what_files_might_hold_passes() {
    fuzz(FILES);
}

fn fuzz(names: &[&str]) {
    let only = std::env::var("FUZZ_TARGET").ok();
    let runs = number_from_env("FUZZ_RUNS", 200_000);
    let seed = number_from_env("FUZZ_SEED", 1);
    for name in names.iter().filter(|name| only.as_ref().is_none_or(|only| only == *name)) {
        let target = TARGETS.iter().find(|target| target.name == *name).unwrap();
        let mut known: Vec<Vec<u8>> = corpus(name).into_iter().map(|(_, input)| input).collect();
        known.extend(seeds::seeds(name));
        let runs = runs / target.cost;
        println!("{name}: {runs} inputs from seed {seed}");
        for number in 0..runs {
            // Every input has a seed of its own, so that one can be made again without those before it.
            let mut random = Random::new(seed.wrapping_mul(0x0001_0000_0000_01b3).wrapping_add(number));
            let input = made_input(&known, &mut random);
            run(target, &input, &format!("input {number} of seed {seed}"));
        }
    }
}

/// One in eight is random, the others are known ones with a few changes.
fn made_input(known: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = if random.below(8) == 0 {
        let length = random.below(64);
        (0..length).map(|_| random.next() as u8).collect()
    } else {
        known[random.below(known.len() as u64) as usize].clone()
    };
    for _ in 0..=random.below(6) {
        change(&mut input, known, random);
    }
    input.truncate(BYTES_MAX);
    input
}

fn change(input: &mut Vec<u8>, known: &[Vec<u8>], random: &mut Random) {
    const TELLING: &[u8] =
        &[0, 1, 2, 127, 128, 255, b'\r', b'\n', b' ', b'"', b'\\', b'*', b'$', b'-', b'0', b'9'];
    let mut place = |length: usize| random.below(length as u64 + 1) as usize;
    let (from, to) = (place(input.len()), place(input.len()));
    let (from, to) = (from.min(to), from.max(to).min(from.min(to) + 64));
    match random.below(9) {
        0 if from < input.len() => input[from] ^= 1 << random.below(8),
        1 if from < input.len() => input[from] = TELLING[random.below(TELLING.len() as u64) as usize],
        2 if from < input.len() => {
            input[from] = input[from].wrapping_add(random.below(9) as u8).wrapping_sub(4)
        }
        3 => input.insert(from, TELLING[random.below(TELLING.len() as u64) as usize]),
        4 => drop(input.drain(from..to)),
        5 => {
            let copy = input[from..to].to_vec();
            let at = random.below(input.len() as u64 + 1) as usize;
            input.splice(at..at, copy);
        }
        6 => {
            let other = &known[random.below(known.len() as u64) as usize];
            let start = random.below(other.len() as u64 + 1) as usize;
            let end = (start + 1 + random.below(64) as usize).min(other.len());
            input.splice(from..to, other[start..end].iter().copied());
        }
        7 => input.truncate(from),
        _ => input.insert(from, random.next() as u8),
    }
}
