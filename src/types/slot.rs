//! Hash slots: which part of the key space a key belongs to, as Redis Cluster counts them.

use crc16::State;
use crc16::XMODEM;

/// Slots there are.
pub const SLOTS: u16 = 16_384;

/// The slot of a key: CRC16 of what stands between its first braces, or of all of it when there is nothing between
/// them (Redis Cluster specification, "Hash tags").
#[must_use]
pub fn hash_slot(key: &[u8]) -> u16 {
    State::<XMODEM>::calculate(hash_tag(key).unwrap_or(key)) % SLOTS
}

fn hash_tag(key: &[u8]) -> Option<&[u8]> {
    let open = key.iter().position(|byte| *byte == b'{')?;
    let length = key[open + 1..].iter().position(|byte| *byte == b'}')?;
    (length > 0).then(|| &key[open + 1..open + 1 + length])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis_cluster() {
        for (key, slot) in [
            (&b"123456789"[..], 0x31c3),
            (b"foo", 12_182),
            (b"{foo}bar", 12_182),
            (b"a{foo}{x}", 12_182),
            (b"", 0),
        ] {
            assert_eq!(hash_slot(key), slot, "{}", key.escape_ascii());
        }
        assert_eq!(hash_slot(b"{}foo"), State::<XMODEM>::calculate(b"{}foo") % SLOTS);
        assert_eq!(hash_slot(b"foo{bar"), State::<XMODEM>::calculate(b"foo{bar") % SLOTS);
    }
}
