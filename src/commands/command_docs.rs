//! COMMAND and its subcommands, answered from the rows of the table.
//!
//! Client libraries read COMMAND INFO for key positions, redis-cli reads COMMAND DOCS for its help and
//! hints. Nothing is written down twice for them: flags, categories, key specs and arguments all follow
//! from what a row says.

use crate::commands::error::CommandError;
use crate::commands::spec::Args;
use crate::commands::spec::Categories;
use crate::commands::spec::CommandResult;
use crate::commands::spec::CommandSpec;
use crate::commands::spec::Flags;
use crate::commands::spec::KeySpec;
use crate::commands::table;
use crate::resp::Reply;
use crate::resp::arguments::eq_ignore_case;
use crate::types::glob;

const FLAG_NAMES: [(Flags, &str); 14] = [
    (Flags::WRITE, "write"),
    (Flags::READONLY, "readonly"),
    (Flags::DENYOOM, "denyoom"),
    (Flags::ADMIN, "admin"),
    (Flags::PUBSUB, "pubsub"),
    (Flags::NOSCRIPT, "noscript"),
    (Flags::BLOCKING, "blocking"),
    (Flags::LOADING, "loading"),
    (Flags::STALE, "stale"),
    (Flags::FAST, "fast"),
    (Flags::NO_AUTH, "no_auth"),
    (Flags::NO_MULTI, "no_multi"),
    (Flags::MOVABLE_KEYS, "movablekeys"),
    (Flags::ALLOW_BUSY, "allow_busy"),
];

const CATEGORY_NAMES: [(Categories, &str); 9] = [
    (Categories::KEYSPACE, "keyspace"),
    (Categories::STRING, "string"),
    (Categories::CONNECTION, "connection"),
    (Categories::TRANSACTION, "transaction"),
    (Categories::LOCK, "lock"),
    (Categories::QUEUE, "queue"),
    (Categories::CACHE, "cache"),
    (Categories::ADMIN, "admin"),
    (Categories::DANGEROUS, "dangerous"),
];

const HELP: &[&str] = &[
    "COMMAND <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "(no subcommand)",
    "    Return details about all commands.",
    "COUNT",
    "    Return the total number of commands in this server.",
    "LIST [FILTERBY <MODULE|ACLCAT|PATTERN> <value>]",
    "    Return a list of all commands in this server.",
    "INFO [<command-name> ...]",
    "    Return details about multiple commands.",
    "    If no command names are given, documentation details for all",
    "    commands are returned.",
    "DOCS [<command-name> ...]",
    "    Return documentation details about multiple commands.",
    "    If no command names are given, documentation details for all",
    "    commands are returned.",
    "GETKEYS <full-command>",
    "    Return the keys from a full command.",
    "HELP",
    "    Prints this help.",
];

/// The ACL categories of a command without their `@`, those that follow from its flags included.
#[must_use]
pub fn categories(spec: &CommandSpec) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = CATEGORY_NAMES
        .iter()
        .filter(|(category, _)| spec.acl.has(*category))
        .map(|(_, name)| *name)
        .collect();
    let mut add = |holds: bool, name: &'static str| {
        if holds && !names.contains(&name) {
            names.push(name);
        }
    };
    add(spec.flags.has(Flags::WRITE), "write");
    add(spec.flags.has(Flags::READONLY), "read");
    add(spec.flags.has(Flags::ADMIN), "admin");
    add(spec.flags.has(Flags::ADMIN), "dangerous");
    add(spec.flags.has(Flags::PUBSUB), "pubsub");
    add(spec.flags.has(Flags::BLOCKING), "blocking");
    add(spec.flags.has(Flags::FAST), "fast");
    add(!spec.flags.has(Flags::FAST), "slow");
    names
}

/// A row by the name that COMMAND INFO and COMMAND DOCS take ("get", "config|get"), with its full name in
/// lower case.
fn lookup(name: &[u8]) -> Option<(String, &'static CommandSpec)> {
    let mut parts = name.splitn(2, |byte| *byte == b'|');
    let spec = table::find(parts.next()?)?;
    match parts.next() {
        None => Some((spec.name.to_owned(), spec)),
        Some(word) => table::subcommand(spec, word).map(|row| (full_name(spec, row), row)),
    }
}

fn full_name(parent: &CommandSpec, row: &CommandSpec) -> String {
    format!("{}|{}", parent.name, row.name)
}

// ---- COMMAND INFO -------------------------------------------------------------------------------------

/// What COMMAND INFO says about one command of the table.
#[must_use]
pub fn info(spec: &CommandSpec) -> Reply {
    info_named(spec.name, spec)
}

/// COMMAND without a subcommand, and COMMAND INFO without names: every command.
#[must_use]
pub fn info_all() -> Reply {
    Reply::Array(table::all().map(info).collect())
}

/// COMMAND INFO with names ("get", "config|get"): null for those that do not exist.
#[must_use]
pub fn info_named_commands(names: Args<'_>) -> Reply {
    if names.is_empty() {
        return info_all();
    }
    let one = |name: &&[u8]| lookup(name).map_or(Reply::Null, |(name, spec)| info_named(&name, spec));
    Reply::Array(names.iter().map(one).collect())
}

fn info_named(name: &str, spec: &CommandSpec) -> Reply {
    let (first, last, step) = match spec.keys {
        KeySpec::Range { first, last, step } => (signed(first), signed(last), signed(step)),
        KeySpec::OneAndAfter { at, .. } => (signed(at), signed(at), 1),
        KeySpec::None | KeySpec::NumKeys { .. } | KeySpec::Keyword(_) | KeySpec::KeywordNumKeys { .. } => {
            (0, 0, 0)
        }
    };
    let movable = !matches!(spec.keys, KeySpec::None | KeySpec::Range { .. });
    let flags = if movable { spec.flags.and(Flags::MOVABLE_KEYS) } else { spec.flags };
    let flag_names =
        FLAG_NAMES.iter().filter(|(flag, _)| flags.has(*flag)).map(|(_, name)| Reply::simple(name));
    let category_names = categories(spec).into_iter().map(|name| Reply::Simple(format!("@{name}").into()));
    let subcommands = spec.subcommands.iter().map(|row| info_named(&full_name(spec, row), row));
    Reply::Array(vec![
        Reply::bulk(name),
        Reply::Integer(i64::from(spec.arity)),
        Reply::Set(flag_names.collect()),
        Reply::Integer(first),
        Reply::Integer(last),
        Reply::Integer(step),
        Reply::Set(category_names.collect()),
        Reply::Array(Vec::new()),
        Reply::Array(key_spec(spec).into_iter().collect()),
        Reply::Array(subcommands.collect()),
    ])
}

/// A position or a distance as the protocol's integer.
fn signed(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

fn map<const N: usize>(pairs: [(&str, Reply); N]) -> Reply {
    Reply::Map(pairs.into_iter().map(|(name, value)| (Reply::bulk(name), value)).collect())
}

/// `{type, spec}`, as Redis writes both halves of a key spec.
fn typed(kind: &str, spec: Reply) -> Reply {
    map([("type", Reply::bulk(kind)), ("spec", spec)])
}

/// Where a command's keys are, in Redis 7's form.
fn key_spec(spec: &CommandSpec) -> Option<Reply> {
    let index = |at: usize| typed("index", map([("index", Reply::Integer(signed(at)))]));
    let keyword = |word: &str| {
        typed("keyword", map([("keyword", Reply::bulk(word)), ("startfrom", Reply::Integer(1))]))
    };
    let range = |last: i64, step: i64| {
        let limits = [
            ("lastkey", Reply::Integer(last)),
            ("keystep", Reply::Integer(step)),
            ("limit", Reply::Integer(0)),
        ];
        typed("range", map(limits))
    };
    let counted = || {
        let places = [
            ("keynumidx", Reply::Integer(0)),
            ("firstkey", Reply::Integer(1)),
            ("keystep", Reply::Integer(1)),
        ];
        typed("keynum", map(places))
    };
    let (begin, find) = match spec.keys {
        KeySpec::None => return None,
        KeySpec::Range { first, last, step } => {
            // Redis counts the last key from the first one.
            let last = if last < 0 { signed(last) } else { signed(last) - signed(first) };
            (index(first), range(last, signed(step)))
        }
        KeySpec::NumKeys { at } => (index(at), counted()),
        // The other key is left to COMMAND GETKEYS, as `movablekeys` says.
        KeySpec::OneAndAfter { at, .. } => (index(at), range(0, 1)),
        KeySpec::Keyword(word) => (keyword(word), range(-1, 1)),
        KeySpec::KeywordNumKeys { word, .. } => (keyword(word), counted()),
    };
    let access: &[&str] =
        if spec.flags.has(Flags::WRITE) { &["RW", "access", "update"] } else { &["RO", "access"] };
    let access = Reply::Set(access.iter().map(|name| Reply::simple(name)).collect());
    Some(map([("flags", access), ("begin_search", begin), ("find_keys", find)]))
}

// ---- COMMAND DOCS -------------------------------------------------------------------------------------

/// COMMAND DOCS: the documentation of these commands ("get", "config|get"), or of all when none is named.
/// Names that do not exist are left out.
#[must_use]
pub fn docs(names: Args<'_>) -> Reply {
    let entry = |name: String, spec: &CommandSpec| {
        let is_subcommand = name.contains('|');
        (Reply::text(name), documentation(spec, is_subcommand))
    };
    if names.is_empty() {
        return Reply::Map(table::all().map(|spec| entry(spec.name.to_owned(), spec)).collect());
    }
    Reply::Map(names.iter().filter_map(|name| lookup(name)).map(|(name, spec)| entry(name, spec)).collect())
}

fn documentation(spec: &CommandSpec, is_subcommand: bool) -> Reply {
    let mut fields = vec![
        (Reply::bulk("summary"), Reply::bulk(spec.summary)),
        (Reply::bulk("since"), Reply::bulk(spec.since)),
        (Reply::bulk("group"), Reply::bulk(spec.group.name())),
        (Reply::bulk("complexity"), Reply::bulk(spec.complexity)),
    ];
    if spec.subcommands.is_empty() {
        let arguments = Syntax::arguments_of(spec.syntax, 1 + usize::from(is_subcommand));
        if !arguments.is_empty() {
            fields.push((Reply::bulk("arguments"), Argument::replies(&arguments)));
        }
    } else {
        let rows = spec.subcommands.iter();
        let rows = rows.map(|row| (Reply::text(full_name(spec, row)), documentation(row, true)));
        fields.push((Reply::bulk("subcommands"), Reply::Map(rows.collect())));
    }
    Reply::Map(fields)
}

/// One argument of a command, as COMMAND DOCS shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Argument {
    /// The placeholder of a value, or the token in lower case; empty for alternatives and blocks.
    name: String,
    /// The literal word, if there is one.
    token: Option<String>,
    /// A value is wanted (after the token, if there is one).
    has_value: bool,
    optional: bool,
    multiple: bool,
    /// The parts are alternatives, not a sequence.
    one_of: bool,
    parts: Vec<Argument>,
}

impl Argument {
    fn kind(&self) -> &'static str {
        if self.one_of {
            return "oneof";
        }
        if !self.parts.is_empty() {
            return "block";
        }
        if !self.has_value {
            return "pure-token";
        }
        match self.name.as_str() {
            "key" | "newkey" | "source" | "destination" | "queue" | "dead-letter-queue" => "key",
            "pattern" => "pattern",
            "seconds" | "milliseconds" | "increment" | "decrement" | "offset" | "start" | "end" | "count"
            | "numkeys" | "index" | "db" | "destination-db" | "cursor" | "n" | "token" | "priority"
            | "timeout" | "client-id" => "integer",
            name if name.starts_with("unix-time") => "unix-time",
            _ => "string",
        }
    }

    fn replies(arguments: &[Argument]) -> Reply {
        Reply::Array(arguments.iter().map(Argument::reply).collect())
    }

    fn reply(&self) -> Reply {
        let kind = self.kind();
        let name = match (self.name.as_str(), kind) {
            ("", "oneof") => "option",
            ("", _) => "group",
            (name, _) => name,
        };
        let mut fields =
            vec![(Reply::bulk("name"), Reply::bulk(name)), (Reply::bulk("type"), Reply::bulk(kind))];
        if kind == "key" {
            fields.push((Reply::bulk("key_spec_index"), Reply::Integer(0)));
        }
        if let Some(token) = &self.token {
            fields.push((Reply::bulk("token"), Reply::bulk(token)));
        }
        let flags = [(self.optional, "optional"), (self.multiple, "multiple")];
        let flags: Vec<Reply> =
            flags.iter().filter(|(holds, _)| *holds).map(|(_, name)| Reply::simple(name)).collect();
        if !flags.is_empty() {
            fields.push((Reply::bulk("flags"), Reply::Set(flags)));
        }
        if !self.parts.is_empty() {
            fields.push((Reply::bulk("arguments"), Argument::replies(&self.parts)));
        }
        Reply::Map(fields)
    }
}

/// Reads a row's syntax. Brackets mean "optional", angle brackets group, `|` parts alternatives, capitals
/// are literal words, and `a b [a b ...]` means "one or more times".
struct Syntax<'a> {
    tokens: std::iter::Peekable<std::vec::IntoIter<&'a str>>,
}

impl<'a> Syntax<'a> {
    /// The arguments after the first `name_words` words, which name the command.
    fn arguments_of(syntax: &'a str, name_words: usize) -> Vec<Argument> {
        let mut tokens = Vec::new();
        for word in syntax.split_ascii_whitespace().skip(name_words) {
            let inner = word.trim_matches(['[', ']', '<', '>']);
            let (before, after) = word.split_once(inner).unwrap_or((word, ""));
            tokens.extend(before.split_inclusive(|_| true));
            if !inner.is_empty() {
                tokens.push(inner);
            }
            tokens.extend(after.split_inclusive(|_| true));
        }
        Syntax { tokens: tokens.into_iter().peekable() }.sequence()
    }

    /// Arguments up to a closing bracket, a bar or the end.
    fn sequence(&mut self) -> Vec<Argument> {
        let mut arguments: Vec<Argument> = Vec::new();
        while let Some(token) = self.tokens.next_if(|token| !matches!(*token, "]" | ">" | "|")) {
            match token {
                "[" | "<" => {
                    let group = self.group();
                    self.tokens.next();
                    if token == "<" {
                        arguments.push(group);
                    } else {
                        push_optional(&mut arguments, group);
                    }
                }
                "..." => {
                    if let Some(last) = arguments.last_mut() {
                        last.multiple = true;
                    }
                }
                word if is_literal(word) => {
                    let value = self.tokens.next_if(|next| is_placeholder(next));
                    let name = value.map_or_else(|| word.to_ascii_lowercase(), str::to_owned);
                    let token = Some(word.to_owned());
                    arguments.push(Argument {
                        name,
                        token,
                        has_value: value.is_some(),
                        ..Argument::default()
                    });
                }
                word => {
                    arguments.push(Argument {
                        name: word.to_owned(),
                        has_value: true,
                        ..Argument::default()
                    });
                }
            }
        }
        arguments
    }

    /// What stands between two brackets: a sequence, or alternatives.
    fn group(&mut self) -> Argument {
        let mut alternatives = vec![block(self.sequence())];
        while self.tokens.next_if_eq(&"|").is_some() {
            alternatives.push(block(self.sequence()));
        }
        match alternatives.len() {
            1 => alternatives.remove(0),
            _ => Argument { one_of: true, parts: alternatives, ..Argument::default() },
        }
    }
}

fn is_literal(word: &str) -> bool {
    word.starts_with(|first: char| first.is_ascii_uppercase())
        && !word.contains(|each: char| each.is_lowercase())
}

fn is_placeholder(word: &str) -> bool {
    !is_literal(word) && !matches!(word, "[" | "]" | "<" | ">" | "|" | "...")
}

/// A sequence as one argument.
fn block(mut parts: Vec<Argument>) -> Argument {
    match parts.len() {
        1 => parts.remove(0),
        _ => Argument { parts, ..Argument::default() },
    }
}

/// Adds a group in brackets; one that repeats what stands before it makes that "multiple" instead.
fn push_optional(arguments: &mut Vec<Argument>, group: Argument) {
    let repeated: Vec<&str> = match group.parts.as_slice() {
        [] => vec![&group.name],
        parts => parts.iter().map(|part| part.name.as_str()).collect(),
    };
    let repeats = group.multiple || group.parts.last().is_some_and(|part| part.multiple);
    let start = arguments.len().checked_sub(repeated.len());
    let same = start
        .is_some_and(|start| arguments[start..].iter().map(|argument| argument.name.as_str()).eq(repeated));
    match start.filter(|_| repeats && same) {
        Some(start) => {
            let mut whole = block(arguments.split_off(start));
            whole.multiple = true;
            arguments.push(whole);
        }
        None => arguments.push(Argument { optional: true, ..group }),
    }
}

// ---- COMMAND COUNT, LIST, GETKEYS, HELP ---------------------------------------------------------------

/// COMMAND COUNT: how many commands there are, subcommands not counted.
#[must_use]
pub fn count() -> Reply {
    Reply::Integer(signed(table::all().count()))
}

/// COMMAND LIST; `words` are those after LIST: none, or `FILTERBY MODULE|ACLCAT|PATTERN value`. Only a filter
/// by pattern or category looks at subcommands, as in Redis.
///
/// # Errors
///
/// A syntax error for anything else.
pub fn list(words: Args<'_>) -> CommandResult {
    let mut names: Vec<String> = Vec::new();
    match *words {
        [] => names.extend(table::all().map(|spec| spec.name.to_owned())),
        [by, _, _] if !eq_ignore_case(by, "FILTERBY") => return Err(CommandError::Syntax),
        [_, kind, _] if eq_ignore_case(kind, "MODULE") => {}
        [_, kind, wanted] if eq_ignore_case(kind, "ACLCAT") => {
            let in_category =
                |spec: &CommandSpec| categories(spec).iter().any(|name| eq_ignore_case(wanted, name));
            collect_names(&mut names, |_, spec| in_category(spec));
        }
        [_, kind, pattern] if eq_ignore_case(kind, "PATTERN") => {
            collect_names(&mut names, |name, _| glob::matches(pattern, name.as_bytes(), true));
        }
        _ => return Err(CommandError::Syntax),
    }
    Ok(Reply::Array(names.into_iter().map(Reply::text).collect()))
}

fn collect_names(names: &mut Vec<String>, wanted: impl Fn(&str, &CommandSpec) -> bool) {
    for spec in table::all() {
        if wanted(spec.name, spec) {
            names.push(spec.name.to_owned());
        }
        for row in spec.subcommands {
            let name = full_name(spec, row);
            if wanted(&name, row) {
                names.push(name);
            }
        }
    }
}

/// COMMAND GETKEYS; `words` are those of the command in question, its name first.
///
/// # Errors
///
/// Redis's texts: no such command, no keys, a wrong number of words.
pub fn getkeys(words: Args<'_>) -> CommandResult {
    let invalid = || CommandError::other("ERR Invalid command specified");
    let parent = words.first().and_then(|name| table::find(name)).ok_or_else(invalid)?;
    let spec = match words.get(1) {
        Some(word) if !parent.subcommands.is_empty() => {
            table::subcommand(parent, word).ok_or_else(invalid)?
        }
        _ => parent,
    };
    if spec.keys == KeySpec::None {
        return Err(CommandError::other("ERR The command has no key arguments"));
    }
    if !spec.arity_allows(words.len()) {
        return Err(CommandError::other("ERR Invalid number of arguments specified for command"));
    }
    let keys: Vec<Reply> = spec.keys.positions(words).iter().map(|at| Reply::bulk(words[*at])).collect();
    if keys.is_empty() {
        return Err(CommandError::other("ERR Invalid arguments specified for command"));
    }
    Ok(Reply::Array(keys))
}

/// COMMAND HELP.
#[must_use]
pub fn help() -> Reply {
    Reply::Array(HELP.iter().map(|line| Reply::simple(line)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::table::testing::show;

    fn words(text: &str) -> Vec<&[u8]> {
        text.split_ascii_whitespace().map(str::as_bytes).collect()
    }

    fn shown(result: CommandResult) -> String {
        show(&result.unwrap_or_else(Reply::from))
    }

    #[test]
    fn info_has_redis_seven_fields() {
        let get = "[get :2 [+readonly +fast] :1 :1 :1 [+@string +@read +@fast] [] \
                   [{flags: [+RO +access], begin_search: {type: index, spec: {index: :1}}, \
                   find_keys: {type: range, spec: {lastkey: :0, keystep: :1, limit: :0}}}] []]";
        assert_eq!(show(&info_named_commands(&words("GET"))), format!("[{get}]"));
        let mset = show(&info_named_commands(&words("mset")));
        assert!(mset.contains(" :1 :-1 :2 ") && mset.contains("lastkey: :-1, keystep: :2"), "{mset}");
        assert_eq!(show(&info_named_commands(&words("nope get|x"))), "[null null]");
        let config = show(&info_named_commands(&words("CONFIG|GET")));
        assert!(config.starts_with("[[config|get :-3 "), "{config}");
        assert!(config.contains("+@admin +@dangerous +@slow"), "{config}");
    }

    #[test]
    fn info_without_names_has_every_command() {
        let Reply::Array(rows) = info_named_commands(&[]) else { panic!("an array") };
        assert_eq!(Reply::Integer(signed(rows.len())), count());
    }

    #[test]
    fn keys_behind_a_keyword_are_described_so() {
        let spec = table::find(b"qpop").expect("a row");
        assert!(matches!(spec.keys, KeySpec::Keyword(_)));
        let told = show(&info(spec));
        assert!(told.contains("movablekeys") && told.contains("keyword: FROM, startfrom: :1"), "{told}");
    }

    #[test]
    fn docs_tell_what_the_row_says() {
        let told = show(&docs(&words("get nope CONFIG|RESETSTAT")));
        let wanted = "{get: {summary: Returns the value of a key, or null if there is none., since: 0.1.0, \
                      group: string, complexity: O(1), arguments: [{name: key, type: key, key_spec_index: :0}]}, \
                      config|resetstat: {summary: Sets the counters of INFO to zero., since: 0.1.0, \
                      group: server, complexity: O(1)}}";
        assert_eq!(told, wanted);
        let Reply::Map(all) = docs(&[]) else { panic!("a map") };
        assert_eq!(all.len(), table::all().count());
        assert!(show(&docs(&words("object"))).contains("subcommands: {object|encoding: {summary:"));
    }

    /// An argument as a short text: `TOKEN name`, `(parts)`, `a|b`, `?` optional, `+` multiple.
    fn brief(argument: &Argument) -> String {
        let parts: Vec<String> = argument.parts.iter().map(brief).collect();
        let mut text = match (&argument.token, argument.has_value) {
            _ if argument.one_of => format!("({})", parts.join("|")),
            _ if !parts.is_empty() => format!("({})", parts.join(" ")),
            (Some(token), true) => format!("{token} {}", argument.name),
            (Some(token), false) => token.clone(),
            (None, _) => argument.name.clone(),
        };
        text.extend(argument.optional.then_some('?'));
        text.extend(argument.multiple.then_some('+'));
        text
    }

    #[test]
    fn arguments_are_read_from_the_syntax() {
        for (syntax, name_words, wanted) in [
            ("PING [message]", 1, "message?"),
            ("GET key", 1, "key"),
            ("DEL key [key ...]", 1, "key+"),
            ("MSET key value [key value ...]", 1, "(key value)+"),
            ("SET key value [NX | XX] [EX s | KEEPTTL]", 1, "key value (NX|XX)? (EX s|KEEPTTL)?"),
            ("LOCK key owner [SHARED [LIMIT n]]", 1, "key owner (SHARED LIMIT n?)?"),
            ("CONFIG SET parameter value [parameter value ...]", 2, "(parameter value)+"),
            ("MEMORY USAGE key [SAMPLES count]", 2, "key SAMPLES count?"),
            ("CLIENT REPLY <ON | OFF>", 2, "(ON|OFF)"),
            ("COMMAND INFO [name [name ...]]", 2, "name?+"),
            ("CONFIG RESETSTAT", 2, ""),
            ("QPOP [COUNT n] FROM queue [queue ...]", 1, "COUNT n? FROM queue+"),
        ] {
            let told: Vec<String> = Syntax::arguments_of(syntax, name_words).iter().map(brief).collect();
            assert_eq!(told.join(" "), wanted, "{syntax}");
        }
    }

    #[test]
    fn list_filters() {
        assert_eq!(shown(list(&words("FILTERBY MODULE json"))), "[]");
        assert_eq!(shown(list(&words("filterby aclcat nope"))), "[]");
        assert_eq!(
            shown(list(&words("FILTERBY ACLCAT transaction"))),
            "[once multi exec discard watch unwatch]"
        );
        assert_eq!(shown(list(&words("FILTERBY PATTERN CONFIG|RES*"))), "[config|resetstat]");
        for wrong in ["x", "FILTERBY x y", "FILTERBY PATTERN", "x PATTERN y"] {
            assert_eq!(shown(list(&words(wrong))), "-ERR syntax error", "{wrong}");
        }
        let Ok(Reply::Array(names)) = list(&[]) else { panic!("an array") };
        assert_eq!(Reply::Integer(signed(names.len())), count());
    }

    #[test]
    fn getkeys_finds_the_keys_of_a_command() {
        for (command, wanted) in [
            ("get k", "[k]"),
            ("MSET a 1 b 2", "[a b]"),
            ("object encoding k", "[k]"),
            ("QPOP COUNT 2 FROM a b", "[a b]"),
            ("nope k", "-ERR Invalid command specified"),
            ("config nope k", "-ERR Invalid command specified"),
            ("ping", "-ERR The command has no key arguments"),
            ("config get x", "-ERR The command has no key arguments"),
            ("get", "-ERR Invalid number of arguments specified for command"),
            ("get a b", "-ERR Invalid number of arguments specified for command"),
            ("QPOP COUNT 2 TO", "-ERR Invalid arguments specified for command"),
        ] {
            assert_eq!(shown(getkeys(&words(command))), wanted, "{command}");
        }
    }

    #[test]
    fn help_lists_the_subcommands() {
        assert!(show(&help()).contains("GETKEYS <full-command>"));
    }
}
