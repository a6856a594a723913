//! What a seed is about: every option is drawn, and most faults are absent from most seeds, so that each kind of
//! trouble is also met alone (swarm testing).

use crate::chance::Chance;

pub const MICRO: u64 = 1_000;
pub const MILLI: u64 = 1_000_000;
pub const SECOND: u64 = 1_000_000_000;

/// Kinds of fault, by their place in [`Plan::weights`].
pub const FAULTS: [&str; 17] = [
    "crash",
    "crash of several",
    "pause",
    "suspend",
    "partition",
    "one-way cut",
    "bridge",
    "swizzle",
    "slow node",
    "slow disk",
    "failed sync",
    "full disk",
    "lost disk",
    "lost end of the log",
    "wall clock jump",
    "hand-over",
    "late words",
];

#[derive(Debug)]
pub struct Plan {
    pub nodes: usize,
    pub loss: u64,
    pub twice: u64,
    /// Of a message on its way.
    pub delay: u64,
    /// Of a write of the log, and of rows.
    pub sync: u64,
    pub apply: u64,
    pub always: bool,
    pub read_index: bool,
    pub election_ms: u64,
    pub heartbeat_ms: u64,
    /// How much smaller the product's bounds are.
    pub scale: u64,
    pub purge_entries: u64,
    pub flush_ms: u64,
    /// Clocks run that much too fast or slow, in parts of a million.
    pub drift: u64,
    pub clients: usize,
    pub client_gap: u64,
    /// Keys of each kind: few, so that clients meet.
    pub keys: u64,
    pub chaos_gap: u64,
    pub weights: [u64; FAULTS.len()],
    /// How likely each kind of command is.
    pub commands: [u64; 6],
    /// So many clients go by one owner, as threads of a process may.
    pub clients_each_owner: usize,
    pub deadlock_victim: &'static str,
    /// Receipts of finished messages that are remembered.
    pub ack_memory: u64,
}

impl Plan {
    pub fn draw(chance: &mut Chance) -> Plan {
        let timing = chance.of(&[(500, 100), (500, 150), (300, 50), (1_000, 200)]);
        let mut weights = [0; FAULTS.len()];
        for weight in &mut weights {
            *weight = if chance.is(500_000) { 0 } else { chance.between(1, 10) };
        }
        // What leaves deadlines behind makes the group write at times when it would be quiet without it.
        let often = |chance: &mut Chance, most| match chance.is(250_000) {
            true => 0,
            false => chance.between(1, most),
        };
        // Without any fault nothing is found.
        weights[0] += 2;
        weights[4] += 1;
        Plan {
            nodes: if chance.is(750_000) { 3 } else { 5 },
            loss: if chance.is(400_000) { 0 } else { chance.below(60_000) },
            twice: if chance.is(400_000) { 0 } else { chance.below(60_000) },
            delay: chance.between(200 * MICRO, 5 * MILLI),
            sync: chance.between(100 * MICRO, 10 * MILLI),
            apply: chance.between(50 * MICRO, 5 * MILLI),
            always: chance.is(850_000),
            read_index: chance.is(300_000),
            election_ms: timing.0,
            heartbeat_ms: timing.1,
            scale: chance.of(&[1, 20, 100, 1_000]),
            purge_entries: chance.of(&[50, 100, 300, 1_000, 100_000]),
            flush_ms: chance.of(&[20, 100, 500, 2_000]),
            drift: if chance.is(300_000) { 50_000 } else { chance.below(2_000) },
            clients: chance.between(3, 8) as usize,
            client_gap: chance.between(80 * MILLI, 400 * MILLI),
            keys: chance.between(1, 4),
            chaos_gap: chance.between(500 * MILLI, 8 * SECOND),
            weights,
            commands: [
                chance.between(1, 10),
                chance.between(1, 10),
                chance.between(1, 10),
                often(chance, 10),
                often(chance, 10),
                often(chance, 6),
            ],
            clients_each_owner: chance.of(&[1, 1, 1, 2]),
            deadlock_victim: chance.of(&["requester", "requester", "youngest", "fewest-locks"]),
            ack_memory: chance.of(&[3, 1_000_000]),
        }
    }
}
