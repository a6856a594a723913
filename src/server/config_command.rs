//! CONFIG: looks at directives and changes them while the node runs.

use crate::commands::error::CommandError;
use crate::config::ConfigError;
use crate::resp::Reply;
use crate::resp::Request;
use crate::server::Services;
use crate::server::client_command::help;

const HELP: &[&str] = &[
    "CONFIG <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "GET <pattern>",
    "    Return parameters matching the glob-like <pattern> and their values.",
    "SET <directive> <value>",
    "    Set the configuration <directive> to <value>.",
    "RESETSTAT",
    "    Reset statistics reported by the INFO command.",
    "REWRITE",
    "    Rewrite the configuration file.",
    "HELP",
    "    Print this help.",
];

/// Runs the subcommand `sub`.
pub fn run(services: &Services, sub: &str, request: &Request) -> Reply {
    match sub {
        "get" => get(services, request),
        "set" => set(services, request),
        "rewrite" => match services.config.config_rewrite() {
            Ok(()) => Reply::Ok,
            Err(error @ ConfigError::NoFile) => Reply::error(format!("ERR {error}")),
            Err(error) => Reply::error(format!("ERR Rewriting config file: {error}")),
        },
        "resetstat" => {
            services.stats.reset(services.group.read_applied().keys_expired());
            Reply::Ok
        }
        "help" => help(HELP),
        _ => Reply::error("ERR this version does not know that CONFIG subcommand"),
    }
}

fn get(services: &Services, request: &Request) -> Reply {
    // A pattern that is no text matches nothing: all names are ASCII.
    let patterns: Vec<&str> =
        request.args().skip(2).filter_map(|word| std::str::from_utf8(word).ok()).collect();
    let found = services.config.config_get(&patterns);
    Reply::Map(found.into_iter().map(|(name, value)| (Reply::text(name), Reply::text(value))).collect())
}

fn set(services: &Services, request: &Request) -> Reply {
    if !request.len().is_multiple_of(2) {
        return CommandError::WrongArity("config|set".to_owned()).into();
    }
    let words: Result<Vec<&str>, _> = request.args().skip(2).map(std::str::from_utf8).collect();
    let Ok(words) = words else { return Reply::error("ERR CONFIG SET takes text only") };
    let pairs: Vec<(&str, &str)> = words.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
    match services.config.config_set(&pairs) {
        Ok(_changed) => Reply::Ok,
        Err(error) => Reply::error(error.to_string()),
    }
}
