//! How large replies may become on a connection: a short request may ask for a thousand copies of a long value.
//!
//! What a client leaves unread is bounded by `client-output-buffer-limit`. A reply that is larger all by itself is
//! refused before anything is handed out or changed: the commands know the bounds. Smaller ones are sent one after the
//! other, however many a pipeline asks for, and the next is made when there is room for it.

use crate::commands::weights::Scales;
use crate::config::Config;
use crate::machine::budget::Budget;
use crate::machine::budget::Command;
use crate::machine::entry::Queued;
use crate::resp::Reply;
use crate::state::State;
use crate::types::bounds::Bounds;
use crate::types::bounds::FRAMING_BYTES;

/// The bound where `client-output-buffer-limit` has none, in bytes, unless arguments may be longer.
const REPLY_BYTES_MAX: usize = 512 << 20;

/// What the commands of this node's clients may make and answer.
#[inline]
pub fn of(config: &Config) -> Bounds {
    let value = config.proto_max_bulk_len;
    let reply = match config.output_limits.normal.hard {
        0 => REPLY_BYTES_MAX.max(value.saturating_add(FRAMING_BYTES)),
        hard => hard,
    };
    Bounds { value, reply }
}

/// The commands of a transaction, as the machine takes them.
pub fn commands_of(queued: &[Queued]) -> Vec<Command<'_>> {
    queued.iter().map(|command| (command.db, command.args.iter().map(AsRef::as_ref).collect())).collect()
}

/// Why a transaction that writes must not go into the log: as the state stands, it would take more than one may. What
/// cannot be known now is judged as it is applied.
pub fn refuse_large(state: &State, user: &[u8], bounds: Bounds, queued: &[Queued]) -> Option<Reply> {
    let commands = commands_of(queued);
    let (mut scales, mut budget) = (Scales::new(state, user), Budget::new(bounds, &commands));
    commands.iter().enumerate().find_map(|(at, (db, words))| {
        let weight = scales.weigh(*db, words);
        let charged = budget.charge(weight).and_then(|()| budget.note_reply(weight.reply));
        charged.err().map(|error| Reply::error(format!("EXECABORT cmd={} {error}", at + 1)))
    })
}

/// The reply, unless the bounds do not allow it. For what a connection answers by itself.
pub fn bounded(reply: Reply, bounds: Bounds) -> Reply {
    let bytes = reply.size_hint();
    if bytes <= bounds.reply { reply } else { too_large(bytes, bounds.reply) }
}

/// What stands in the place of a reply of so many bytes.
pub fn too_large(bytes: usize, max: usize) -> Reply {
    Reply::error(format!(
        "ERR the reply takes {bytes} bytes, and client-output-buffer-limit allows {max}: ask for less, or raise the limit"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SharedConfig;

    #[test]
    fn without_an_output_limit_there_is_a_bound_all_the_same() {
        let config = SharedConfig::new(Config::default(), None);
        assert_eq!(of(&config.get()), Bounds::DEFAULT, "nothing is said of it in the log");
        config.config_set(&[("client-output-buffer-limit", "normal 0 0 0")]).unwrap();
        assert_eq!(of(&config.get()).reply, REPLY_BYTES_MAX);
        config.config_set(&[("proto-max-bulk-len", "1gb")]).unwrap();
        assert_eq!(of(&config.get()).reply, (1 << 30) + FRAMING_BYTES);
        config.config_set(&[("client-output-buffer-limit", "normal 1mb 0 0")]).unwrap();
        assert_eq!(of(&config.get()), Bounds { value: 1 << 30, reply: 1 << 20 });
    }

    #[test]
    fn what_a_connection_answers_by_itself_keeps_to_the_bounds() {
        let bounds = Bounds { reply: 100, ..Bounds::DEFAULT };
        assert_eq!(bounded(Reply::Ok, bounds), Reply::Ok);
        assert!(bounded(Reply::bulk([b'x'; 100]), bounds).is_error());
    }
}
