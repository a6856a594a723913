//! Imports point downwards: the layers of the source tree, and the few words that may stand in one place only.
//!
//! `src/ARCHITECTURE.md` says why. Lower modules must not know higher ones, or nothing could be tested, simulated
//! or replaced alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

/// Modules and their layers. A module names itself and modules of lower layers; modules of one layer do not know
/// each other.
const LAYERS: &[(&str, u8)] = &[
    ("types", 0),
    ("clock", 1),
    ("config", 1),
    ("resp", 1),
    ("telemetry", 1),
    ("storage", 2),
    ("peer", 3),
    ("state", 3),
    ("commands", 4),
    ("machine", 5),
    ("consensus", 6),
    ("admin", 7),
    ("server", 7),
    ("node", 8),
];

/// The clock is below the rest of its layer: everybody is given one.
const SHARED_IN_ITS_LAYER: &str = "clock";

/// Words and the only place where they may stand.
const CONFINED: &[(&str, &str)] = &[
    ("Instant::now", "src/clock/"),
    ("SystemTime::now", "src/clock/"),
    ("rocksdb::", "src/storage/"),
    ("raft::", "src/consensus/"),
    ("raft_proto::", "src/consensus/"),
    ("axum::", "src/admin/"),
];

#[test]
fn modules_name_only_lower_layers() {
    let layers: BTreeMap<&str, u8> = LAYERS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let own = module_of(&path);
        if own == "lib" || own == "main" {
            continue;
        }
        let own_layer = *layers.get(own.as_str()).unwrap_or_else(|| panic!("{path} is in no layer"));
        for (line, code) in code_lines(&text) {
            for named in modules_named(code) {
                let layer = layers.get(named).copied().unwrap_or(u8::MAX);
                let may =
                    layer < own_layer || named == own || (named == SHARED_IN_ITS_LAYER && layer == own_layer);
                if !may {
                    wrong.push(format!("{path}:{line} names crate::{named}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "imports that do not point downwards:\n{}", wrong.join("\n"));
}

#[test]
fn lib_declares_the_modules_in_layer_order() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs is readable");
    let declared: Vec<&str> =
        lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.split(';').next()).collect();
    let listed: Vec<&str> = LAYERS.iter().map(|(name, _)| *name).collect();
    assert_eq!(declared, listed);
}

#[test]
fn imports_stand_one_module_a_line() {
    let grouped: Vec<String> = sources()
        .into_iter()
        .flat_map(|(path, text)| {
            let lines: Vec<usize> = code_lines(&text)
                .filter(|(_, code)| code.contains("crate::{"))
                .map(|(line, _)| line)
                .collect();
            lines.into_iter().map(move |line| format!("{path}:{line}"))
        })
        .collect();
    assert!(grouped.is_empty(), "crate::{{…}} groups hide what a module knows:\n{}", grouped.join("\n"));
}

#[test]
fn some_words_stand_in_one_place_only() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        for (line, code) in code_lines(&text) {
            for (word, home) in CONFINED {
                if !path.starts_with(home) && names_path(code, word) {
                    wrong.push(format!("{path}:{line} says {word}, which belongs under {home}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `word` as the start of a path, or at the end of one for `Type::function` words, but not as `crate::…::word`.
fn names_path(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = &code[..at];
        let inside_a_name = before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let below_another = before.ends_with("::") && !word.ends_with("now");
        !inside_a_name && !below_another
    })
}

/// The modules that follow `crate::` in a line of code.
fn modules_named(code: &str) -> impl Iterator<Item = &str> {
    code.match_indices("crate::").filter_map(|(at, _)| {
        // `$crate::` and `some_crate::` would be no module of ours.
        let own = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$');
        let rest = &code[at + "crate::".len()..];
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        own.then_some(&rest[..end]).filter(|name| !name.is_empty())
    })
}

/// Lines with their numbers, without comments. A string that holds `//` is cut short, which hides no import.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(at, line)| (at + 1, line.split("//").next().unwrap_or_default()))
}

/// `src/state/locks/mod.rs` is of `state`, `src/main.rs` of `main`.
fn module_of(path: &str) -> String {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    inside.split('/').next().unwrap_or_default().trim_end_matches(".rs").to_owned()
}

/// Every source file under `src`, by its path from the project's root.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder under src is readable") {
            let path = entry.expect("a folder under src is readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = fs::read_to_string(&path).expect("a source file is readable");
                let name =
                    path.strip_prefix(root()).expect("it is under the root").to_string_lossy().into_owned();
                found.push((name, text));
            }
        }
    }
    assert!(found.len() > 20, "the sources were not found");
    found.sort();
    found
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}
