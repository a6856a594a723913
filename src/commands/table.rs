//! The one table of all commands, and the ways to find a row in it.

use std::fmt::Write;
use std::sync::LazyLock;

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

use crate::commands::guards;
use crate::commands::keys;
use crate::commands::lock_admin;
use crate::commands::locks;
use crate::commands::queue_admin;
use crate::commands::queues;
use crate::commands::session;
use crate::commands::spec::CommandSpec;
use crate::commands::spec::Group;
use crate::commands::strings;

/// No command's name is longer, in bytes.
const MAX_NAME: usize = 32;

static BY_NAME: LazyLock<HashTable<&'static CommandSpec>> = LazyLock::new(|| {
    let hash = |spec: &&CommandSpec| xxh3_64(spec.name.as_bytes());
    let mut table = HashTable::new();
    for spec in all() {
        table.insert_unique(hash(&spec), spec, hash);
    }
    table
});

/// Every command, family by family.
pub fn all() -> impl Iterator<Item = &'static CommandSpec> {
    [
        strings::ROWS,
        keys::ROWS,
        locks::ROWS,
        lock_admin::ROWS,
        guards::ROWS,
        queues::ROWS,
        queue_admin::ROWS,
        session::ROWS,
    ]
    .into_iter()
    .flatten()
}

/// The row of a command, whatever the case of its name. `None` when there is no such command.
#[must_use]
pub fn find(name: &[u8]) -> Option<&'static CommandSpec> {
    let mut buffer = [0; MAX_NAME];
    let lower = buffer.get_mut(..name.len())?;
    lower.copy_from_slice(name);
    lower.make_ascii_lowercase();
    BY_NAME.find(xxh3_64(lower), |spec| spec.name.as_bytes() == &*lower).copied()
}

/// The row of a container's subcommand, whatever the case of its name. `None` when there is no such one.
#[must_use]
pub fn subcommand(spec: &CommandSpec, name: &[u8]) -> Option<&'static CommandSpec> {
    spec.subcommands.iter().find(|row| name.eq_ignore_ascii_case(row.name.as_bytes()))
}

/// The row that says most about these words: a container's subcommand when they name one, else the command's own.
#[must_use]
pub fn leaf(spec: &'static CommandSpec, words: &[&[u8]]) -> &'static CommandSpec {
    words.get(1).and_then(|word| subcommand(spec, word)).unwrap_or(spec)
}

/// The commands as Markdown, a table per group: what the README shows. Containers show their subcommands.
#[must_use]
pub fn readme_table() -> String {
    let mut text = String::new();
    for (group, title) in [
        (Group::Locks, "Locks"),
        (Group::Queues, "Queues"),
        (Group::String, "Strings"),
        (Group::Generic, "Keys"),
        (Group::Transactions, "Transactions"),
        (Group::Pubsub, "Channels"),
        (Group::Connection, "Connections"),
        (Group::Server, "Server"),
    ] {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&format!("### {title}\n\n| command | what it does |\n|---|---|\n"));
        for spec in all().filter(|spec| spec.group == group) {
            let runs_alone = spec.subcommands.is_empty() || spec.arity == -1;
            let rows = runs_alone.then_some(spec).into_iter().chain(spec.subcommands);
            for row in rows.filter(|row| row.name != "help") {
                let syntax = row.syntax.replace('|', "\\|");
                writeln!(text, "| `{syntax}` | {} |", row.summary).expect("a String takes every write");
            }
        }
    }
    text
}

#[cfg(test)]
pub(crate) mod testing {
    //! A state to run commands on, for the tests of the command families.

    use super::find;
    use super::subcommand;
    use crate::commands::error::CommandError;
    use crate::commands::spec::Execute;
    use crate::commands::spec::ReadContext;
    use crate::commands::spec::WriteContext;
    use crate::resp::Reply;
    use crate::state::DbIndex;
    use crate::state::State;
    use crate::state::notices::Origin;
    use crate::types::ClusterTime;
    use crate::types::WallMillis;
    use crate::types::bounds::Bounds;

    /// A state, and the clocks and database that commands see.
    pub(crate) struct World {
        pub(crate) state: State,
        pub(crate) now: ClusterTime,
        pub(crate) wall: WallMillis,
        pub(crate) db: DbIndex,
        pub(crate) seed: u64,
        pub(crate) bounds: Bounds,
    }

    impl World {
        pub(crate) fn new() -> World {
            World {
                state: State::new(16),
                now: ClusterTime(1_000),
                wall: WallMillis(1_700_000_000_000),
                db: 0,
                seed: 0,
                bounds: Bounds::DEFAULT,
            }
        }

        /// Lets both clocks run.
        pub(crate) fn wait(&mut self, millis: u64) {
            self.now = ClusterTime(self.now.0 + millis);
            self.wall = WallMillis(self.wall.0 + millis);
        }

        /// Runs one command as the machine does: arity, then expiry of the named keys, then the function.
        pub(crate) fn run_words(&mut self, words: &[&[u8]]) -> Reply {
            let spec = find(words[0]).expect("a command of the table");
            if !spec.arity_allows(words.len()) {
                return CommandError::WrongArity(spec.name.to_owned()).into();
            }
            let inner = words.get(1).and_then(|word| subcommand(spec, word)).unwrap_or(spec);
            for at in inner.keys.positions(words) {
                self.state.expire_touched(self.db, words[at], self.now);
            }
            let (db, user, now, wall) = (self.db, &b"default"[..], self.now, self.wall);
            let bounds = self.bounds;
            let result = match inner.execute {
                Execute::Read(read) => read(
                    &ReadContext { state: &self.state, db, user, now, wall, seed: self.seed, bounds },
                    words,
                ),
                Execute::Write(write) => {
                    let (state, origin) = (&mut self.state, Origin::default());
                    let in_transaction = false;
                    write(
                        &mut WriteContext {
                            state,
                            db,
                            user,
                            now,
                            wall,
                            origin: &origin,
                            in_transaction,
                            bounds,
                            reply_later: bounds.reply,
                        },
                        words,
                    )
                }
                Execute::Session(_) => panic!("{} belongs to the connection", spec.name),
            };
            result.unwrap_or_else(Reply::from)
        }

        /// Runs words that are parted by blanks; `''` is an empty word.
        pub(crate) fn run(&mut self, command: &str) -> Reply {
            let words: Vec<&[u8]> =
                command.split(' ').map(|text| if text == "''" { &[][..] } else { text.as_bytes() }).collect();
            self.run_words(&words)
        }

        /// Runs commands in turn and compares their replies, written by [`show`].
        pub(crate) fn check(&mut self, steps: &[(&str, &str)]) {
            for (command, wanted) in steps {
                assert_eq!(show(&self.run(command)), *wanted, "{command}");
            }
        }
    }

    /// A reply in one line: `OK`, `+status`, `-error`, `:1`, a value as it is, `null`, `[a b]`, `{a: b}`.
    pub(crate) fn show(reply: &Reply) -> String {
        let join = |items: &[Reply]| items.iter().map(show).collect::<Vec<_>>().join(" ");
        match reply {
            Reply::Ok => "OK".to_owned(),
            Reply::Simple(text) => format!("+{text}"),
            Reply::Error(text) => format!("-{text}"),
            Reply::Integer(number) => format!(":{number}"),
            Reply::Double(number) => format!(",{number}"),
            Reply::Boolean(value) => format!("#{value}"),
            Reply::Bulk(value) => String::from_utf8_lossy(value).into_owned(),
            Reply::Null => "null".to_owned(),
            Reply::NullArray => "null-array".to_owned(),
            Reply::Array(items) | Reply::Set(items) | Reply::Push(items) => format!("[{}]", join(items)),
            Reply::Map(pairs) => {
                let pairs: Vec<_> =
                    pairs.iter().map(|(key, value)| show(key) + ": " + &show(value)).collect();
                format!("{{{}}}", pairs.join(", "))
            }
            Reply::Verbatim(_, text) => text.clone(),
            Reply::Waiting(claim) => format!("waiting {claim}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::commands::spec::Execute;
    use crate::commands::spec::Flags;
    use crate::commands::spec::KeySpec;

    fn with_subcommands() -> impl Iterator<Item = &'static CommandSpec> {
        all().flat_map(|spec| std::iter::once(spec).chain(spec.subcommands))
    }

    #[test]
    fn names_are_lower_case_short_and_unique() {
        let mut names = BTreeSet::new();
        for spec in all() {
            assert!(names.insert(spec.name), "{} has two rows", spec.name);
            let mut subcommands = BTreeSet::new();
            for row in spec.subcommands {
                assert!(subcommands.insert(row.name), "{} {} has two rows", spec.name, row.name);
            }
        }
        for spec in with_subcommands() {
            let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            assert!(!spec.name.is_empty() && spec.name.len() <= MAX_NAME, "{}", spec.name);
            assert!(spec.name.bytes().all(legal), "{}", spec.name);
        }
    }

    #[test]
    fn every_row_is_documented() {
        for spec in with_subcommands() {
            assert!(spec.summary.ends_with('.') && spec.summary.len() > 8, "summary of {}", spec.syntax);
            assert!(!spec.complexity.is_empty() && !spec.since.is_empty(), "{}", spec.syntax);
            assert!(spec.arity != 0, "{}", spec.syntax);
        }
    }

    /// Words that a syntax always wants, and whether more may follow: what is in brackets is optional, and
    /// of alternatives between angle brackets the shortest counts.
    fn arity_of(syntax: &str) -> i32 {
        let (mut depth, mut words, mut open) = (0, 0, false);
        let mut alternatives: Option<(i32, i32)> = None; // the shortest so far, the current one
        for token in syntax
            .replace('[', " [ ")
            .replace(']', " ] ")
            .replace('<', " < ")
            .replace('>', " > ")
            .split_whitespace()
        {
            match token {
                "[" => (depth, open) = (depth + 1, true),
                "]" => depth -= 1,
                "..." => open = true,
                "<" if depth == 0 => alternatives = Some((i32::MAX, 0)),
                "|" if depth == 0 => alternatives = alternatives.map(|(least, now)| (least.min(now), 0)),
                ">" if depth == 0 => {
                    if let Some((least, now)) = alternatives.take() {
                        open |= least != i32::MAX && least != now;
                        words += least.min(now);
                    }
                }
                _ if depth > 0 => {}
                _ => match &mut alternatives {
                    Some((_, now)) => *now += 1,
                    None => words += 1,
                },
            }
        }
        if open { -words } else { words }
    }

    #[test]
    fn the_arity_of_a_row_is_that_of_its_syntax() {
        assert_eq!(arity_of("GET key"), 2);
        assert_eq!(arity_of("CONFIG SET a b [a b ...]"), -4);
        for spec in with_subcommands().filter(|spec| spec.subcommands.is_empty()) {
            let (wanted, told) = (arity_of(spec.syntax), spec.arity);
            if told > 0 {
                assert_eq!(told, wanted, "{}", spec.syntax);
            } else {
                // Clients know some commands as "at least n", which the syntax narrows.
                assert!(wanted.abs() >= told.abs(), "{}: {told} or {wanted}", spec.syntax);
            }
        }
    }

    #[test]
    fn the_syntax_begins_with_the_name() {
        for spec in all() {
            assert_eq!(spec.syntax.split(' ').next(), Some(spec.name.to_ascii_uppercase().as_str()));
            for row in spec.subcommands {
                let wanted = format!("{} {}", spec.name, row.name).to_ascii_uppercase();
                assert!(row.syntax.starts_with(&wanted), "{}", row.syntax);
            }
        }
    }

    #[test]
    fn flags_and_functions_agree() {
        for spec in all() {
            match spec.execute {
                Execute::Read(_) => assert!(!spec.flags.has(Flags::WRITE), "{}", spec.name),
                Execute::Write(_) if spec.subcommands.is_empty() => {
                    assert!(
                        spec.flags.has(Flags::WRITE) && !spec.flags.has(Flags::READONLY),
                        "{}",
                        spec.name
                    );
                }
                Execute::Write(_) => {}
                Execute::Session(_) => assert!(!spec.flags.has(Flags::WRITE), "{}", spec.name),
            }
        }
    }

    #[test]
    fn a_command_is_found_in_any_case() {
        for name in ["get", "GET", "gEt"] {
            assert_eq!(find(name.as_bytes()).map(|spec| spec.name), Some("get"));
        }
        for name in [&b""[..], b"nope", b"get ", &[b'x'; 100], b"\xff\xfe"] {
            assert!(find(name).is_none());
        }
        assert!(all().all(|spec| find(spec.name.as_bytes()).is_some_and(|found| std::ptr::eq(found, spec))));
        let config = find(b"CONFIG").expect("a row");
        assert_eq!(subcommand(config, b"Get").map(|spec| spec.name), Some("get"));
        assert!(subcommand(config, b"nope").is_none());
    }

    #[test]
    fn keys_are_found_where_the_row_says() {
        let keys = |words: &[&str]| {
            let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
            let spec = find(words[0]).expect("a row");
            spec.keys.positions(&words).to_vec()
        };
        assert_eq!(keys(&["GET", "k"]), [1]);
        assert_eq!(keys(&["MSET", "a", "1", "b", "2"]), [1, 3]);
        assert_eq!(keys(&["DEL", "a", "b", "c"]), [1, 2, 3]);
        assert_eq!(keys(&["RENAME", "a", "b"]), [1, 2]);
        assert!(keys(&["PING"]).is_empty());
        let usage = subcommand(find(b"memory").expect("a row"), b"usage").expect("a row");
        assert_eq!(usage.keys, KeySpec::one(2));
    }

    #[test]
    fn the_readme_lists_every_command() {
        let table = readme_table();
        for spec in with_subcommands().filter(|spec| spec.name != "help" && spec.subcommands.is_empty()) {
            assert!(table.contains(&spec.syntax.replace('|', "\\|")), "{}", spec.syntax);
        }
    }
}
