//! What QCONFIG sets for a queue (COMMANDS.md 2.3).

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::state::queues::MessageId;
use crate::types::Millis;
use crate::types::codec::CodecError;
use crate::types::codec::Reader;
use crate::types::codec::put_bytes;
use crate::types::codec::put_varint;

/// What a queue does not do for the time being.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pause {
    #[default]
    None,
    /// Takes no messages in.
    In,
    /// Hands none out.
    Out,
    All,
}

impl Pause {
    /// Every value, as it is named.
    pub const NAMES: [(&'static str, Pause); 4] =
        [("none", Pause::None), ("in", Pause::In), ("out", Pause::Out), ("all", Pause::All)];

    /// As QCONFIG names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        Pause::NAMES.iter().find(|(_, pause)| *pause == self).map_or("", |(name, _)| name)
    }

    /// No messages come in.
    #[must_use]
    pub fn stops_pushes(self) -> bool {
        matches!(self, Pause::In | Pause::All)
    }

    /// No messages go out.
    #[must_use]
    pub fn stops_pops(self) -> bool {
        matches!(self, Pause::Out | Pause::All)
    }
}

/// How long a failed message waits for its next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure, in milliseconds.
    pub min: u64,
    /// However many there were.
    pub max: u64,
    /// Each failure multiplies the wait by this many hundredths.
    pub factor_percent: u64,
    /// The wait is up to this many hundredths shorter or longer, by chance.
    pub jitter_percent: u64,
}

impl Backoff {
    /// The wait after this many failures, drawn by `seed`: the same on every replica.
    #[must_use]
    pub fn wait(&self, attempt: u32, id: MessageId, seed: u64) -> Millis {
        let mut wait = u128::from(self.min.min(self.max));
        for _ in 1..attempt {
            if wait >= u128::from(self.max) || self.factor_percent <= 100 {
                break;
            }
            // From nothing no factor leads away.
            wait = (wait * u128::from(self.factor_percent) / 100).max(wait + 1);
        }
        let wait = u64::try_from(wait.min(u128::from(self.max))).unwrap_or(self.max);
        let spread = u64::try_from(u128::from(wait) * u128::from(self.jitter_percent) / 100).unwrap_or(0);
        if spread == 0 {
            return Millis(wait);
        }
        let draw = xxh3_64_with_seed(&id.index.to_le_bytes(), seed ^ u64::from(id.n)) % (2 * spread + 1);
        Millis((wait - spread).saturating_add(draw))
    }
}

/// Everything that QCONFIG sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Lease of a QPOP that names none.
    pub lease: Millis,
    /// Attempts of a message; 0 is any number.
    pub max_deliver: u32,
    pub backoff: Backoff,
    /// The queue that dead messages go to; empty: they stay here as DEAD.
    pub dead_letter: Box<[u8]>,
    /// How long the ID of a finished message is remembered.
    pub dedup: Millis,
    /// Messages that are ready, delayed or leased, at most; 0 is any number.
    pub max_len: u64,
    /// Bytes of their payloads, at most; 0 is any number.
    pub max_bytes: u64,
    /// Messages in flight, at most; 0 is any number.
    pub max_leased: u64,
    /// Each time a message has waited for this long it counts one priority more; 0: it never does.
    pub aging: Millis,
    /// How long the trace of a finished message is kept.
    pub retain: Millis,
    pub pause: Pause,
    /// Lifetime of messages that bring none; 0: they have none.
    pub ttl: Millis,
}

impl Default for Attributes {
    fn default() -> Attributes {
        Attributes {
            lease: Millis(30_000),
            max_deliver: 20,
            backoff: Backoff { min: 1_000, max: 300_000, factor_percent: 200, jitter_percent: 20 },
            dead_letter: Box::default(),
            dedup: Millis(300_000),
            max_len: 0,
            max_bytes: 0,
            max_leased: 0,
            aging: Millis(0),
            retain: Millis(3_600_000),
            pause: Pause::None,
            ttl: Millis(0),
        }
    }
}

impl Attributes {
    /// Appends them, as the queue's row keeps them.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let Backoff { min, max, factor_percent, jitter_percent } = self.backoff;
        for number in [
            self.lease.0,
            u64::from(self.max_deliver),
            min,
            max,
            factor_percent,
            jitter_percent,
            self.dedup.0,
            self.max_len,
            self.max_bytes,
            self.max_leased,
            self.aging.0,
            self.retain.0,
            self.ttl.0,
        ] {
            put_varint(out, number);
        }
        out.push(self.pause as u8);
        put_bytes(out, &self.dead_letter);
    }

    /// Reads what [`Attributes::encode`] wrote.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Attributes, CodecError> {
        Ok(Attributes {
            lease: Millis(reader.varint()?),
            max_deliver: reader.varint32()?,
            backoff: Backoff {
                min: reader.varint()?,
                max: reader.varint()?,
                factor_percent: reader.varint()?,
                jitter_percent: reader.varint()?,
            },
            dedup: Millis(reader.varint()?),
            max_len: reader.varint()?,
            max_bytes: reader.varint()?,
            max_leased: reader.varint()?,
            aging: Millis(reader.varint()?),
            retain: Millis(reader.varint()?),
            ttl: Millis(reader.varint()?),
            pause: match Pause::NAMES.get(usize::from(reader.u8()?)) {
                Some((_, pause)) => *pause,
                None => return Err(CodecError("an unknown pause")),
            },
            dead_letter: reader.bytes()?.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: MessageId = MessageId { index: 7, n: 1 };

    #[test]
    fn waits_grow_by_the_factor_up_to_the_maximum() {
        let backoff = Backoff { min: 100, max: 1_000, factor_percent: 250, jitter_percent: 0 };
        let waits: Vec<u64> = (0..6).map(|attempt| backoff.wait(attempt, ID, 1).0).collect();
        assert_eq!(waits, [100, 100, 250, 625, 1_000, 1_000]);
        let none = Backoff { min: 0, max: 0, factor_percent: 200, jitter_percent: 20 };
        assert_eq!(none.wait(9, ID, 1), Millis(0));
        let widest = Backoff { min: u64::MAX, max: u64::MAX, factor_percent: u64::MAX, jitter_percent: 100 };
        assert!(widest.wait(u32::MAX, ID, 1).0 > 0 || widest.jitter_percent == 100);
    }

    #[test]
    fn jitter_stays_within_its_share_and_is_drawn_alike() {
        let backoff = Backoff { min: 1_000, max: 300_000, factor_percent: 200, jitter_percent: 20 };
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..1_000 {
            let wait = backoff.wait(3, ID, seed);
            assert!((3_200..=4_800).contains(&wait.0), "{wait:?}");
            assert_eq!(wait, backoff.wait(3, ID, seed));
            seen.insert(wait.0);
        }
        assert!(seen.len() > 300);
    }

    #[test]
    fn attributes_come_back_from_their_row() {
        let attributes = Attributes {
            dead_letter: (*b"dead").into(),
            pause: Pause::Out,
            max_len: 1 << 40,
            ..Attributes::default()
        };
        let mut out = Vec::new();
        attributes.encode(&mut out);
        assert_eq!(Attributes::decode(&mut Reader::new(&out)), Ok(attributes));
        out[13] ^= 0x7f;
        assert!((0..out.len()).all(|end| Attributes::decode(&mut Reader::new(&out[..end])).is_err()));
    }
}
