//! From the command line to a checked configuration: `holdfast [file.conf] [--directive value ...]`.
//!
//! Every error is one line that names the place, the directive, what is wrong and what to do. Nothing here
//! changes anything on disk.

use std::fmt;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use thiserror::Error;

use super::Config;
use super::Values;
use super::options;
use super::options::DIRECTIVES;
use super::options::Group;
use super::options::Kind;
use super::parse;
use super::parse::Value;

/// How deep files may include files.
const INCLUDE_DEPTH_MAX: usize = 16;

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// Run a node.
    Run(Loaded),
    /// Print [`help_text`].
    Help,
    /// Print the version.
    Version,
    /// Print a part of the README that is generated: `commands`.
    Generate(String),
    /// Only check the configuration, and say that it is good.
    CheckConfig(Loaded),
}

/// A configuration that was read.
#[derive(Debug)]
pub struct Loaded {
    /// What holds.
    pub config: Config,
    /// The absolute path of the file, if one was given.
    pub file: Option<PathBuf>,
    /// What the operator should know, one line each.
    pub warnings: Vec<String>,
}

/// Why there is no configuration, or why it was not rewritten. `Display` is one line.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// No directive of this name.
    #[error("{place}: unknown directive '{name}': {advice}")]
    Unknown {
        /// File and line, or the command line.
        place: String,
        /// As it was given.
        name: String,
        /// The name that was probably meant, or where to find all names.
        advice: String,
    },
    /// A directive with a value that it does not take.
    #[error("{place}: {name}: {why}")]
    Directive {
        /// File and line, or the command line.
        place: String,
        /// The directive.
        name: String,
        /// What is wrong, and what it takes.
        why: String,
    },
    /// A line that cannot be read, or a word that is no option.
    #[error("{place}: {why}")]
    Syntax {
        /// File and line, or the command line.
        place: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The file cannot be read or written.
    #[error("{path}: {action} failed: {source}: {advice}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// CONFIG REWRITE without a file.
    #[error("The server is running without a config file")]
    NoFile,
}

/// Reads the arguments, without the program's name. Nothing on disk is changed.
pub fn parse_arguments(args: &[String]) -> Result<Invocation, ConfigError> {
    match args.first().map(String::as_str) {
        Some("-h") => return Ok(Invocation::Help),
        Some("-v") => return Ok(Invocation::Version),
        Some("--generate") if args.len() == 2 => return Ok(Invocation::Generate(args[1].clone())),
        _ => {}
    }
    if args.iter().any(|arg| arg == "--help") {
        return Ok(Invocation::Help);
    }
    if args.iter().any(|arg| arg == "--version") {
        return Ok(Invocation::Version);
    }
    let is_check = |arg: &&String| arg.as_str() == "--check-config";
    if !args.iter().any(|arg| is_check(&arg)) {
        return Ok(Invocation::Run(load(args)?));
    }
    let others: Vec<String> = args.iter().filter(|arg| !is_check(arg)).cloned().collect();
    Ok(Invocation::CheckConfig(load(&others)?))
}

/// See [`Config::load`].
pub(super) fn load(args: &[String]) -> Result<Loaded, ConfigError> {
    let mut draft = Draft::new();
    let (file, options) = match args.split_first() {
        Some((first, rest)) if !first.starts_with('-') => (Some(Path::new(first)), rest),
        _ => (None, args),
    };
    if let Some(file) = file {
        draft.read_file(file, 0)?;
    }
    draft.read_options(options)?;
    // The path is kept for CONFIG REWRITE: absolute, and a link's target rather than the link.
    let file = file.map(|file| fs::canonicalize(file).unwrap_or_else(|_| file.to_owned()));
    draft.finish(file)
}

/// Where a line stands.
#[derive(Clone, Debug)]
enum Place {
    File { path: PathBuf, line: usize },
    CommandLine,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { path, line } => write!(f, "{}:{line}", path.display()),
            Place::CommandLine => f.write_str("command line"),
        }
    }
}

/// A configuration while it is being read.
pub(super) struct Draft {
    values: Values,
    /// Where each directive was last given, in the order of the table.
    places: Vec<Option<Place>>,
    warnings: Vec<String>,
}

impl Draft {
    fn new() -> Draft {
        Draft { values: Values::defaults(), places: vec![None; DIRECTIVES.len()], warnings: Vec::new() }
    }

    fn read_file(&mut self, path: &Path, depth: usize) -> Result<(), ConfigError> {
        let text = fs::read(path).map_err(|source| ConfigError::File {
            path: path.to_owned(),
            action: "reading the configuration",
            source,
            advice: "name a file that exists and that this user may read",
        })?;
        for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
            let place = Place::File { path: path.to_owned(), line: index + 1 };
            let why = |why: String| ConfigError::Syntax { place: place.to_string(), why };
            let line = str::from_utf8(line).map_err(|_| why("this line is not UTF-8 text".to_owned()))?;
            if let Some(words) = line_words(line).map_err(why)? {
                self.take(&words, &place, depth)?;
            }
        }
        Ok(())
    }

    /// All words up to the next `--` belong to one directive.
    fn read_options(&mut self, args: &[String]) -> Result<(), ConfigError> {
        let mut rest = args;
        while let Some((option, after)) = rest.split_first() {
            let name = option.strip_prefix("--").filter(|name| !name.is_empty()).ok_or_else(|| {
                let why = format!(
                    "'{option}' is not an option: write [file.conf] [--directive value ...], or --help"
                );
                ConfigError::Syntax { place: Place::CommandLine.to_string(), why }
            })?;
            let count = after.iter().take_while(|word| !word.starts_with("--")).count();
            let mut words = vec![name.to_owned()];
            words.extend_from_slice(&after[..count]);
            self.take(&words, &Place::CommandLine, 0)?;
            rest = &after[count..];
        }
        Ok(())
    }

    /// Takes over one line: a directive's name and its words.
    fn take(&mut self, words: &[String], place: &Place, depth: usize) -> Result<(), ConfigError> {
        let (name, given) = words.split_first().expect("a line has a first word");
        if name.eq_ignore_ascii_case("include") {
            return self.include(given, place, depth);
        }
        let row = options::find(name).ok_or_else(|| unknown(name, place))?;
        let value = DIRECTIVES[row].parse(given, &self.values.0[row]).map_err(|why| {
            let directive = &DIRECTIVES[row];
            let shown =
                if directive.secret { "a hidden value".to_owned() } else { format!("'{}'", given.join(" ")) };
            let takes = directive.kind.describe();
            let why = format!("{why} (given {shown}; it takes {takes}; default '{}')", directive.default);
            ConfigError::Directive { place: place.to_string(), name: directive.name.to_owned(), why }
        })?;
        self.set(row, value, place).map_err(|why| {
            let name = DIRECTIVES[row].name.to_owned();
            ConfigError::Directive { place: place.to_string(), name, why }
        })
    }

    /// Lines of a repeated directive add up; the first one replaces the default, an empty one all before it.
    fn set(&mut self, row: usize, value: Value, place: &Place) -> Result<(), String> {
        let directive = &DIRECTIVES[row];
        let is_again = self.places[row].is_some();
        self.values.0[row] = match (value, &self.values.0[row]) {
            (Value::Lines(new), Value::Lines(old)) if is_again && !new.is_empty() => {
                let all = Value::Lines([old.as_slice(), &new].concat());
                (directive.check)(&all)?;
                all
            }
            (value, _) => value,
        };
        self.places[row] = Some(place.clone());
        Ok(())
    }

    fn include(&mut self, given: &[String], place: &Place, depth: usize) -> Result<(), ConfigError> {
        let wrong = |why: String| ConfigError::Directive {
            place: place.to_string(),
            name: "include".to_owned(),
            why,
        };
        let [path] = given else { return Err(wrong("takes the path of one file".to_owned())) };
        if depth >= INCLUDE_DEPTH_MAX {
            let why = format!("files include each other deeper than {INCLUDE_DEPTH_MAX}: is it a circle?");
            return Err(wrong(why));
        }
        self.read_file(Path::new(path), depth + 1).map_err(|error| match error {
            ConfigError::File { path, source, .. } => {
                wrong(format!("cannot read '{}': {source}", path.display()))
            }
            other => other,
        })
    }

    /// Checks the values together.
    fn finish(mut self, file: Option<PathBuf>) -> Result<Loaded, ConfigError> {
        self.warn();
        let places = self.places;
        let config = Config::new(self.values).map_err(|conflict| {
            let place_of = |name: &&str| options::find(name).and_then(|row| places[row].clone());
            let given = conflict.names.iter().find_map(|name| place_of(name).map(|place| (*name, place)));
            let (name, place) = given.map_or((conflict.names[0], "defaults".to_owned()), |(name, place)| {
                (name, place.to_string())
            });
            ConfigError::Directive { place, name: name.to_owned(), why: conflict.why }
        })?;
        Ok(Loaded { config, file, warnings: self.warnings })
    }

    /// Notes what is accepted for Redis's sake and does not do what it says.
    fn warn(&mut self) {
        for (name, warning) in [
            (
                "appendonly",
                "Holdfast always keeps every write in its log; appendfsync says when it is synced",
            ),
            ("save", "without effect: Holdfast keeps every write in its log"),
        ] {
            let row = options::find(name).expect("a directive of the table");
            let is_quiet = self.values.0[row] == DIRECTIVES[row].default_value();
            if let (false, Some(place)) = (is_quiet, &self.places[row]) {
                self.warnings.push(format!("{place}: {name}: {warning}"));
            }
        }
        let row = options::find("appendonly").expect("a directive of the table");
        self.values.0[row] = Value::Bool(true);
    }
}

/// The words of a line of a file; `None` for a comment or an empty line.
pub(super) fn line_words(line: &str) -> Result<Option<Vec<String>>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let words = parse::split_words(line).map_err(|why| format!("{why}: check the quotes of this line"))?;
    Ok(Some(words).filter(|words| words.first().is_some_and(|name| !name.is_empty())))
}

/// What one file alone says about a directive: `None` when it is wrong or says nothing.
pub(super) fn value_of_lines(row: usize, lines: &[Vec<String>]) -> Option<Value> {
    let mut draft = Draft::new();
    for given in lines {
        let value = DIRECTIVES[row].parse(given, &draft.values.0[row]).ok()?;
        draft.set(row, value, &Place::CommandLine).ok()?;
    }
    draft.places[row].is_some().then(|| draft.values.0.swap_remove(row))
}

fn unknown(name: &str, place: &Place) -> ConfigError {
    let advice = match options::nearest(name) {
        Some(near) => format!("did you mean '{near}'?"),
        None => "remove it; holdfast --help lists all directives".to_owned(),
    };
    ConfigError::Unknown { place: place.to_string(), name: name.escape_debug().to_string(), advice }
}

/// What `holdfast --help` prints: usage, then every directive with its values, its default and what it does.
#[must_use]
pub fn help_text() -> String {
    let mut text = String::from(
        "Usage: holdfast [file.conf] [--directive value ...]\n\
         \x20      holdfast --check-config [file.conf] [--directive value ...]\n\
         \x20      holdfast --help | --version\n\n\
         Without arguments: a complete node on 127.0.0.1:6379 with its data in ./data.\n\
         A file holds one directive a line, as redis.conf does; 'include path' reads another file there.\n\
         The command line comes after the file. CONFIG SET changes directives marked * while the node runs.\n",
    );
    for group in Group::ALL {
        let _ = writeln!(text, "\n{}:", group.title());
        for row in DIRECTIVES.iter().filter(|row| row.group == group) {
            let mark = if row.settable { "*" } else { "" };
            let default = if row.default.is_empty() { "none" } else { row.default };
            let unit = match row.kind {
                Kind::Integer { .. } if !row.unit.is_empty() => format!(" ({})", row.unit),
                _ => String::new(),
            };
            let takes = row.kind.describe();
            let head = format!("--{}{mark}  {takes}{unit}; default {default}", row.name);
            for (i, line) in wrapped(&head, 92).iter().enumerate() {
                let indent = if i == 0 { 2 } else { 8 };
                let _ = writeln!(text, "{:indent$}{line}", "");
            }
            for line in wrapped(row.doc, 92) {
                let _ = writeln!(text, "      {line}");
            }
        }
    }
    text
}

/// `text` in lines of at most `width` characters, broken at blanks.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is always a line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.len() + 1 + word.len() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::AppendFsync;
    use super::super::ClusterNode;
    use super::*;
    use crate::types::NodeId;

    /// A directory of its own for one test, removed with it.
    pub struct Scratch(pub PathBuf);

    impl Scratch {
        pub fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("holdfast-config-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Scratch(fs::canonicalize(path).unwrap())
        }

        pub fn file(&self, name: &str, text: impl AsRef<[u8]>) -> String {
            let path = self.0.join(name);
            fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn words(line: &str) -> Vec<String> {
        parse::split_words(line).unwrap()
    }

    fn load_line(line: &str) -> Result<Loaded, String> {
        let loaded = load(&words(line)).map_err(|error| error.to_string());
        if let Err(error) = &loaded {
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        loaded
    }

    #[test]
    fn options_take_all_words_up_to_the_next_one() {
        let config = load_line("--port 7000 --bind 127.0.0.1 -::1 10.0.0.1 --APPENDFSYNC no --save ''")
            .unwrap()
            .config;
        assert_eq!((config.port, config.http_port, config.peer_port), (7000, 9000, 17000));
        assert_eq!(config.bind.len(), 3);
        assert_eq!(config.appendfsync, AppendFsync::No);
        assert_eq!(load_line("").unwrap().config.port, 6379);
    }

    #[test]
    fn the_command_line_comes_after_the_file() {
        let scratch = Scratch::new("order");
        let text =
            "# a comment\n\n  port 7001  \r\nrequirepass \"a \\\"b\\x21\"\nmaxmemory 1gb\nmaxmemory 2gb\n";
        let file = scratch.file("holdfast.conf", text);
        let loaded = load_line(&format!("{file} --port 7002")).unwrap();
        assert_eq!(loaded.config.port, 7002);
        assert_eq!(loaded.config.requirepass.as_deref(), Some("a \"b!"));
        assert_eq!(loaded.config.max_memory, 2 << 30);
        assert_eq!(loaded.file, Some(PathBuf::from(file)));
        assert!(loaded.warnings.is_empty());
    }

    #[test]
    fn one_line_names_the_place_the_directive_and_what_to_do() {
        let scratch = Scratch::new("errors");
        let cases: &[(&str, &str)] = &[
            ("port 1\nprot 7000", ":2: unknown directive 'prot': did you mean 'port'?"),
            ("rdbcompression yes", ":1: unknown directive 'rdbcompression': remove it; holdfast --help"),
            (
                "port",
                ":1: port: wrong number of arguments: a value is missing (given ''; it takes a number from 1",
            ),
            (
                "port x",
                ":1: port: argument couldn't be parsed into an integer (given 'x'; it takes a number from",
            ),
            ("port 1 # one", "a comment needs a line of its own"),
            ("port 65536", "argument must be between 1 and 65535 inclusive"),
            (
                "port 60000\ncluster-node 1 a:1\ncluster-node 2 b:2",
                ":1: port: peer-port would be 60000 + 10000, above 65535: set peer-port too",
            ),
            ("port 64000", ":1: port: http-port would be 64000 + 2000, above 65535: set http-port too"),
            ("port 7000\nhttp-port 7000", ":2: http-port: http-port and port are both 7000"),
            (
                "heartbeat-interval 300",
                ":1: heartbeat-interval: heartbeat-interval 300 is more than a third of",
            ),
            ("election-timeout 150", ":1: election-timeout: heartbeat-interval 100 is more than a third of"),
            ("requirepass \"abc", ":1: unbalanced quotes: check the quotes of this line"),
            ("cluster-node 1 a:1\ncluster-node 1 b:2", ":2: cluster-node: node 1 has two lines: give each"),
            (
                "cluster-node 1 a:1\ncluster-node 2 a:1",
                ":2: cluster-node: nodes 1 and 2 are both at a:1: each needs its own address or port",
            ),
            ("indoubt-timeout 600001", "argument must be between 100 and 600000 inclusive"),
            ("cluster-node 2 a:1", ":1: cluster-node: no line names this node: node-id is 1"),
            ("cluster-node 1 a", "'a' is not <host>:<peer-port>"),
            ("include", ":1: include: takes the path of one file"),
            ("include /no/such/file", ":1: include: cannot read '/no/such/file': No such file"),
        ];
        for (text, expected) in cases {
            let file = scratch.file("bad.conf", text);
            let error = load_line(&file).unwrap_err();
            assert!(error.starts_with(&file) && error.contains(expected), "{text:?}: {error}");
        }
        let not_text = scratch.file("bytes.conf", b"port 1\nlogfile \xff\n");
        assert!(load_line(&not_text).unwrap_err().contains(":2: this line is not UTF-8 text"));
    }

    #[test]
    fn a_node_alone_needs_no_port_for_others() {
        for line in [
            "--port 63535",
            "--port 60000 --cluster-node 1 a:1",
            "--port 7000 --http-port 17000",
            "--port 65535 --http-port 1",
        ] {
            assert!(!load_line(line).unwrap().config.has_peers(), "{line}");
        }
        let several = "--cluster-node 1 a:1 2 b:2 --port 7000 --http-port 17000";
        assert!(load_line(several).unwrap_err().contains("peer-port and http-port are both 17000"));
    }

    #[test]
    fn a_wrong_command_line_is_refused() {
        for (line, expected) in [
            ("--nod-id 1", "command line: unknown directive 'nod-id': did you mean 'node-id'?"),
            ("--port 1 --", "command line: '--' is not an option"),
            ("-x", "command line: '-x' is not an option"),
            ("/no/such.conf", "/no/such.conf: reading the configuration failed: No such file"),
            ("--requirepass secret word", "given a hidden value"),
        ] {
            let error = load_line(line).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }

    #[test]
    fn files_include_files_but_not_themselves() {
        let scratch = Scratch::new("include");
        let inner = scratch.file("inner.conf", "port 7003\nmaxclients 5");
        let outer = scratch.file("outer.conf", format!("port 7004\ninclude \"{inner}\"\nmaxclients 6"));
        let config = load_line(&outer).unwrap().config;
        assert_eq!((config.port, config.max_clients), (7003, 6));
        let circle = scratch.0.join("circle.conf");
        let circle = scratch.file("circle.conf", format!("include \"{}\"", circle.display()));
        assert!(load_line(&circle).unwrap_err().contains("is it a circle?"));
    }

    #[test]
    fn repeated_lines_add_up_and_an_empty_one_starts_again() {
        let scratch = Scratch::new("repeated");
        let shown =
            |text: &str| load_line(&scratch.file("r.conf", text)).unwrap().config.shown("save").unwrap();
        assert_eq!(shown("save 900 1\nsave 300 10"), "900 1 300 10");
        assert_eq!(shown("save 900 1\nsave \"\"\nsave 60 5 30 1"), "60 5 30 1");
    }

    #[test]
    fn the_first_members_are_named_by_lines_of_their_own_or_on_one() {
        let member =
            |id, host: &str, peer_port| ClusterNode { id: NodeId(id), host: host.to_owned(), peer_port };
        let expected = [member(7, "db", 17000), member(8, "db", 17001), member(9, "::1", 17000)];
        let scratch = Scratch::new("members");
        let text = "port 7000\nnode-id 7\ncluster-node 7 db:17000\ncluster-node 8 db:17001\n\
                    cluster-node 9 [::1]:17000";
        let loaded = load_line(&scratch.file("m.conf", text)).unwrap();
        assert_eq!(loaded.config.cluster_nodes, expected);
        let line = "--node-id 7 --port 7000 --cluster-node 7 db:17000 8 db:17001 9 [::1]:17000";
        assert_eq!(load_line(line).unwrap().config.cluster_nodes, expected);
        let alone = "--node-id 9 --peer-port 17000 --peer-protected-mode no --cluster-node 9 [::1]:17000";
        let config = load_line(alone).unwrap().config;
        assert_eq!((config.cluster_nodes.as_slice(), config.peer_protected_mode), (&expected[2..], false));
        // Quick elections, for tests and good networks.
        let config = load_line("--election-timeout 150 --heartbeat-interval 50").unwrap().config;
        assert_eq!((config.election_timeout.0, config.heartbeat_interval.0), (150, 50));
    }

    #[test]
    fn what_does_not_apply_is_warned_about_and_not_obeyed() {
        let loaded = load_line("--appendonly no --save 900 1").unwrap();
        assert_eq!(loaded.config.shown("appendonly").as_deref(), Some("yes"));
        assert_eq!(loaded.warnings.len(), 2);
        assert!(loaded.warnings[0].starts_with("command line: appendonly: Holdfast always keeps"));
    }

    #[test]
    fn arguments_name_what_to_do() {
        let parsed = |line: &str| parse_arguments(&words(line));
        assert!(matches!(parsed("--help"), Ok(Invocation::Help)));
        assert!(matches!(parsed("-h"), Ok(Invocation::Help)));
        assert!(matches!(parsed("-v"), Ok(Invocation::Version)));
        assert!(matches!(parsed("--port 1 --version"), Ok(Invocation::Version)));
        assert!(matches!(parsed("--port 7000"), Ok(Invocation::Run(loaded)) if loaded.config.port == 7000));
        for line in ["--check-config --port 7000", "--port 7000 --check-config"] {
            assert!(
                matches!(parsed(line), Ok(Invocation::CheckConfig(loaded)) if loaded.config.port == 7000),
                "{line}"
            );
        }
        assert!(parsed("--check-config --port x").is_err());
    }

    #[test]
    fn the_help_names_every_directive_once() {
        let help = help_text();
        for row in DIRECTIVES {
            let starts = |line: &&str| {
                line.strip_prefix("  --").is_some_and(|rest| rest.split(['*', ' ']).next() == Some(row.name))
            };
            assert_eq!(help.lines().filter(starts).count(), 1, "{}", row.name);
        }
        assert!(help.lines().all(|line| line.len() <= 100), "{help}");
    }
}
