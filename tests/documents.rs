//! The documents agree with the code: every example configuration loads, the README's table of commands is the
//! code's, and its first session answers as printed.

#![expect(clippy::unwrap_used, reason = "a test stops where a fact does not hold")]

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
