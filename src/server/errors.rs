//! The one place where what went wrong below becomes a RESP error line (COMMANDS.md 2.7).
//!
//! The first word of a line is its code, and the code is a contract: it says whether the command was executed.
//! Of all codes only `INDOUBT` leaves that open.

use std::borrow::Cow;

use crate::commands::error::CommandError;
use crate::consensus::ProposeError;
use crate::resp::Reply;
use crate::server::disk::DiskGate;
use crate::types::Millis;

/// The reply to a write, or to a read that needed the group, which got no outcome.
pub fn propose_error(error: &ProposeError) -> Reply {
    match error {
        ProposeError::NotLeader { .. } => Reply::error(
            "READONLY No leader with a quorum is known to this node. The command was not executed.",
        ),
        ProposeError::OutcomeUnknown => Reply::error(
            "INDOUBT No answer from a leader in time. The command may or may not have been executed.",
        ),
        ProposeError::Overloaded => {
            Reply::error("TRYAGAIN Too many writes are waiting. The command was not executed.")
        }
        ProposeError::TooLarge { .. } => Reply::error(format!("ERR {error}. The command was not executed.")),
        ProposeError::NoRoom => Reply::error(
            "MISCONF disk full: there is no room to write at all, and only reads go on before there is. Make room on the \
             disk of dir. The command was not executed.",
        ),
        ProposeError::Stopped => {
            Reply::error("CLUSTERDOWN This node is shutting down. The command was not executed.")
        }
    }
}

/// The reply to a linearizable read for which there was no quorum, or no leader to ask.
pub fn read_error(error: &ProposeError) -> Reply {
    match error {
        ProposeError::NotLeader { .. } | ProposeError::OutcomeUnknown | ProposeError::Stopped => {
            Reply::error("CLUSTERDOWN No leader with a quorum is known to this node. Nothing was read.")
        }
        ProposeError::Overloaded | ProposeError::TooLarge { .. } | ProposeError::NoRoom => {
            propose_error(error)
        }
    }
}

/// The reply to a client that waits on a node which hears of no leader.
pub fn wait_without_leader() -> Reply {
    Reply::error(
        "CLUSTERDOWN No leader was heard for cluster-node-timeout. The wait was given up; a lock that is granted all \
         the same is released again.",
    )
}

/// The reply to a read in READONLY MAXLAG mode on a node that heard of no leader for `silence`; `None`: never.
pub fn stale_read_error(silence: Option<Millis>) -> Reply {
    match silence {
        Some(silence) => Reply::error(format!(
            "MASTERDOWN lag={} This node has not heard of a leader for longer than MAXLAG allows. Nothing was read.",
            silence.0
        )),
        None => {
            Reply::error("MASTERDOWN lag=unknown This node has not heard of a leader yet. Nothing was read.")
        }
    }
}

/// The reply to everything that wants data of a node whose state differs from that of the others as of `index`.
pub fn diverged(index: u64) -> Reply {
    Reply::error(format!(
        "MISCONF this node's state differs from the others' at index {index}. The command was not executed; the other \
         nodes serve."
    ))
}

/// The reply to a command for which the disks of the cluster have no room.
pub fn disk_full(gate: DiskGate) -> Reply {
    match gate {
        DiskGate::Open | DiskGate::NoGrowth => Reply::error(
            "MISCONF disk almost full: reads and deletions go on, and nothing is added before there is room. Make room, \
             delete what is not needed, or lower disk-free-soft. The command was not executed.",
        ),
        DiskGate::DeletesOnly => Reply::error(
            "MISCONF disk full: reads and deletions go on, and nothing else is written before there is room. Make room, \
             delete what is not needed, or lower disk-free-hard. The command was not executed.",
        ),
    }
}

/// The reply to everything that wants data of a node that has none yet.
pub fn loading() -> Reply {
    Reply::error(
        "LOADING This node is loading its data, or waits for the other nodes. The command was not executed.",
    )
}

/// The reply to a command that was refused; nothing was changed.
pub fn command_error(error: CommandError) -> Reply {
    Reply::from(error)
}

/// The code of an error line: its first word. Anything that is no error code counts as `ERR`.
pub fn code(text: &str) -> &str {
    match text.split(' ').next() {
        Some(word) if !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase()) => word,
        _ => "ERR",
    }
}

/// Bytes that a client sent, for quoting them in an error: cut to `at_most` bytes and to what comes before a NUL,
/// as Redis's `%.128s` does.
pub fn quoted(bytes: &[u8], at_most: usize) -> Cow<'_, str> {
    let end = bytes.iter().take(at_most).position(|byte| *byte == 0).unwrap_or(bytes.len().min(at_most));
    String::from_utf8_lossy(&bytes[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_an_error_is_its_first_word() {
        assert_eq!(code("WRONGTYPE Operation against"), "WRONGTYPE");
        assert_eq!(code("no code at all"), "ERR");
        assert_eq!(code(""), "ERR");
    }

    #[test]
    fn only_an_unknown_outcome_is_in_doubt() {
        assert!(
            matches!(propose_error(&ProposeError::OutcomeUnknown), Reply::Error(text) if text.starts_with("INDOUBT "))
        );
        assert!(
            matches!(propose_error(&ProposeError::Overloaded), Reply::Error(text) if text.starts_with("TRYAGAIN "))
        );
        assert!(
            matches!(read_error(&ProposeError::OutcomeUnknown), Reply::Error(text) if text.starts_with("CLUSTERDOWN "))
        );
    }

    fn text(reply: Reply) -> String {
        match reply {
            Reply::Error(text) => text.into_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_error_says_whether_the_command_was_executed() {
        let not_leader = ProposeError::NotLeader { leader: None };
        let too_large = ProposeError::TooLarge { bytes: 9, max: 8 };
        let cases = [
            (propose_error(&not_leader), "READONLY", "not executed"),
            (propose_error(&ProposeError::OutcomeUnknown), "INDOUBT", "may or may not have been executed"),
            (propose_error(&ProposeError::Overloaded), "TRYAGAIN", "not executed"),
            (propose_error(&too_large), "ERR", "not executed"),
            (propose_error(&ProposeError::Stopped), "CLUSTERDOWN", "not executed"),
            (read_error(&not_leader), "CLUSTERDOWN", "Nothing was read"),
            (read_error(&ProposeError::OutcomeUnknown), "CLUSTERDOWN", "Nothing was read"),
            (read_error(&ProposeError::Stopped), "CLUSTERDOWN", "Nothing was read"),
            (read_error(&ProposeError::Overloaded), "TRYAGAIN", "not executed"),
            (stale_read_error(Some(Millis(12))), "MASTERDOWN", "Nothing was read"),
            (stale_read_error(None), "MASTERDOWN", "Nothing was read"),
            (diverged(7), "MISCONF", "not executed"),
            (loading(), "LOADING", "not executed"),
            (disk_full(DiskGate::NoGrowth), "MISCONF", "not executed"),
            (disk_full(DiskGate::DeletesOnly), "MISCONF", "not executed"),
        ];
        for (reply, expected, says) in cases {
            let text = text(reply);
            assert_eq!(code(&text), expected, "{text}");
            assert!(text.contains(says) && text.ends_with('.'), "{text}");
        }
        assert!(text(stale_read_error(Some(Millis(12)))).starts_with("MASTERDOWN lag=12 "));
        let mine = "MISCONF this node's state differs from the others' at index 7";
        assert!(text(diverged(7)).starts_with(mine));
    }

    #[test]
    fn quoting_stops_at_a_nul_and_at_the_limit() {
        assert_eq!(quoted(b"abc\0def", 128), "abc");
        assert_eq!(quoted(b"abcdef", 3), "abc");
        assert_eq!(quoted(b"", 3), "");
    }
}
