//! The byte codec shared by log entries, rows and peer messages: varints and length-prefixed bytes.
//! Reading never panics and never allocates from a length that was only claimed.

use thiserror::Error;

/// The bytes do not decode: cut short, or a value out of its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("malformed record: {0}")]
pub struct CodecError(pub &'static str);

/// Appends an unsigned LEB128 varint (1 to 10 bytes).
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a length and the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a signed number as a varint in which numbers near zero, of either sign, are short.
pub fn put_zigzag(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends a number in 16 bytes, little endian.
pub fn put_u128(out: &mut Vec<u8>, value: u128) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends a byte, 1 for true.
pub fn put_bool(out: &mut Vec<u8>, value: bool) {
    out.push(u8::from(value));
}

/// Reads what the `put_` functions wrote.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the front of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// Bytes not read yet.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// True when everything was read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, CodecError> {
        let (&first, rest) = self.rest.split_first().ok_or(CodecError("cut short"))?;
        self.rest = rest;
        Ok(first)
    }

    /// A varint.
    pub fn varint(&mut self) -> Result<u64, CodecError> {
        let mut value = 0u64;
        let mut shift = 0u32;
        loop {
            let byte = self.u8()?;
            if shift == 63 && byte > 1 {
                return Err(CodecError("varint too large"));
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
            shift += 7;
            if shift > 63 {
                return Err(CodecError("varint too long"));
            }
        }
    }

    /// A varint that must fit 32 bits.
    pub fn varint32(&mut self) -> Result<u32, CodecError> {
        u32::try_from(self.varint()?).map_err(|_| CodecError("number out of range"))
    }

    /// A varint that says how many things follow: at most `max`, and no more than could stand in the bytes
    /// that are left when each takes at least `bytes_each`. Memory may be reserved for that many.
    pub fn count(&mut self, max: usize, bytes_each: usize) -> Result<usize, CodecError> {
        let count = usize::try_from(self.varint()?).map_err(|_| CodecError("count out of range"))?;
        if count > max || count > self.rest.len() / bytes_each.max(1) {
            return Err(CodecError("count out of range"));
        }
        Ok(count)
    }

    /// A signed number, as `put_zigzag` wrote it.
    pub fn zigzag(&mut self) -> Result<i64, CodecError> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A number in 16 bytes, little endian.
    pub fn u128(&mut self) -> Result<u128, CodecError> {
        let bytes = self.take(16)?.try_into().expect("16 bytes were taken");
        Ok(u128::from_le_bytes(bytes))
    }

    /// A byte that must be 0 or 1.
    pub fn bool(&mut self) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(CodecError("neither true nor false")),
        }
    }

    /// Length-prefixed bytes.
    pub fn bytes(&mut self) -> Result<&'a [u8], CodecError> {
        let length = usize::try_from(self.varint()?).map_err(|_| CodecError("length out of range"))?;
        self.take(length)
    }

    /// Exactly `length` bytes.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], CodecError> {
        if length > self.rest.len() {
            return Err(CodecError("cut short"));
        }
        let (head, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_and_bytes_round_trip() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            put_bytes(&mut out, b"abc");
            let mut reader = Reader::new(&out);
            assert_eq!(reader.varint(), Ok(value));
            assert_eq!(reader.bytes(), Ok(&b"abc"[..]));
            assert!(reader.is_empty());
        }
    }

    #[test]
    fn signed_wide_and_yes_or_no_values_round_trip() {
        for value in [0, -1, 1, -64, 63, 64, i64::MIN, i64::MAX] {
            let mut out = Vec::new();
            put_zigzag(&mut out, value);
            let zigzag_length = out.len();
            assert_eq!(zigzag_length == 1, (-64..64).contains(&value), "{value}");
            put_u128(&mut out, value as u128);
            put_bool(&mut out, value > 0);
            let mut reader = Reader::new(&out);
            assert_eq!(reader.zigzag(), Ok(value));
            assert_eq!(reader.u128(), Ok(value as u128));
            assert_eq!(reader.bool(), Ok(value > 0));
            assert!(reader.is_empty());
        }
        assert!(Reader::new(&[2]).bool().is_err());
        assert!(Reader::new(&[0; 15]).u128().is_err());
    }

    #[test]
    fn a_count_is_bounded_by_its_maximum_and_by_the_bytes_left() {
        let four_follow = |count| [count, 0, 0, 0, 0];
        assert_eq!(Reader::new(&four_follow(2)).count(9, 2), Ok(2));
        assert!(Reader::new(&four_follow(3)).count(9, 2).is_err());
        assert!(Reader::new(&four_follow(4)).count(3, 1).is_err());
    }

    #[test]
    fn a_claimed_length_beyond_the_end_is_an_error() {
        let mut reader = Reader::new(&[200, 1, 7]);
        assert_eq!(reader.bytes(), Err(CodecError("cut short")));
    }
}
