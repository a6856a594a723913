//! The numbers of INCRBYFLOAT: x87's 80-bit extended precision, in software.
//!
//! Redis adds in the C type `long double` and prints 17 decimals, so that 0.1 + 0.2 answers 0.3, not
//! 0.30000000000000004. The sum is agreed on by replicas that may run on processors whose `long double`
//! differs (or is missing), so it is computed here, with integers only, and gives what Redis gives on
//! x86-64.

use std::cmp::Ordering;

/// Longest text that is read as a number, as in Redis.
const MAX_TEXT: usize = 5 * 1024 - 1;
/// Exponent of the last bit of the smallest number.
const MIN_EXPONENT: i32 = -16_445;
/// One above the exponent of the first bit of the largest number.
const MAX_BITS: i32 = 16_384;

/// A number with a 64-bit significand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LongDouble {
    /// `significand` × 2^`exponent`.
    Finite { negative: bool, significand: u64, exponent: i32 },
    /// Too large, or written as "inf".
    Infinite { negative: bool },
}

impl LongDouble {
    /// Zero.
    pub const ZERO: LongDouble = LongDouble::Finite { negative: false, significand: 0, exponent: 0 };

    /// Reads a decimal number or "inf" as `strtold` does. `None` for anything else: blanks, "nan", texts
    /// of 5 KiB and more, and numbers that are too large or vanish.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<LongDouble> {
        if text.len() > MAX_TEXT {
            return None;
        }
        let (negative, text) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            _ => (false, text),
        };
        if text.eq_ignore_ascii_case(b"inf") || text.eq_ignore_ascii_case(b"infinity") {
            return Some(LongDouble::Infinite { negative });
        }
        let (digits, power) = split_decimal(text)?;
        match from_decimal(negative, &digits, power) {
            LongDouble::Infinite { .. } => None,
            LongDouble::Finite { significand: 0, .. } if !digits.is_empty() => None,
            number => Some(number),
        }
    }

    /// The sum, rounded to the nearest number, ties to even. `None` for infinity minus infinity.
    #[must_use]
    pub fn plus(self, other: LongDouble) -> Option<LongDouble> {
        match (self, other) {
            (LongDouble::Infinite { negative: a }, LongDouble::Infinite { negative: b }) => {
                (a == b).then_some(self)
            }
            (LongDouble::Infinite { .. }, _) => Some(self),
            (_, LongDouble::Infinite { .. }) => Some(other),
            (
                LongDouble::Finite { negative: a, significand: x, exponent: i },
                LongDouble::Finite { negative: b, significand: y, exponent: j },
            ) => match (x, y) {
                (_, 0) => Some(self),
                (0, _) => Some(other),
                _ => Some(add_finite(normal(a, x, i), normal(b, y, j))),
            },
        }
    }

    /// With 17 decimals, without the zeros at the end, as INCRBYFLOAT answers. `None` for infinity.
    #[must_use]
    pub fn format(self) -> Option<String> {
        let LongDouble::Finite { negative, significand, exponent } = self else { return None };
        let mut text = String::new();
        if exponent >= 0 {
            let mut number = Natural::from_u64(significand);
            number.shift_left(exponent.unsigned_abs());
            text.push_str(&number.into_decimal());
        } else {
            let scaled = u128::from(significand) * 10u128.pow(17);
            let scaled = round_shift(scaled, exponent.unsigned_abs(), false);
            let (whole, fraction) = (scaled / 10u128.pow(17), scaled % 10u128.pow(17));
            text = format!("{whole}.{fraction:017}");
            text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
        }
        if negative && text != "0" {
            text.insert(0, '-');
        }
        Some(text)
    }
}

/// Cuts "12.50e3" into the digits without zeros in front (1250) and the power of ten (1).
fn split_decimal(text: &[u8]) -> Option<(Vec<u8>, i64)> {
    let mantissa_end = text.iter().position(|byte| matches!(byte, b'e' | b'E')).unwrap_or(text.len());
    let (mantissa, tail) = text.split_at(mantissa_end);
    let point = mantissa.iter().position(|byte| *byte == b'.').unwrap_or(mantissa.len());
    let (whole, fraction) = mantissa.split_at(point);
    let fraction = fraction.strip_prefix(b".").unwrap_or(fraction);
    let is_number = |text: &[u8]| text.iter().all(u8::is_ascii_digit);
    if whole.len() + fraction.len() == 0 || !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let mut power = 0i64;
    if let [_, exponent @ ..] = tail {
        let (negative, digits) = match exponent {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            _ => (false, exponent),
        };
        if digits.is_empty() || !is_number(digits) {
            return None;
        }
        power = digits.iter().fold(0i64, |sum, digit| (sum * 10 + i64::from(digit - b'0')).min(1_000_000));
        if negative {
            power = -power;
        }
    }
    let digits = whole.iter().chain(fraction).copied().skip_while(|digit| *digit == b'0').collect();
    Some((digits, power - i64::try_from(fraction.len()).ok()?))
}

/// The nearest number to `digits` × 10^`power`; zero or infinite when that is out of range.
fn from_decimal(negative: bool, digits: &[u8], power: i64) -> LongDouble {
    let magnitude = power + i64::try_from(digits.len()).expect("texts are bounded");
    if digits.is_empty() || magnitude < -5_000 {
        return LongDouble::Finite { negative, significand: 0, exponent: 0 };
    }
    if magnitude > 5_000 {
        return LongDouble::Infinite { negative };
    }
    let mut numerator = Natural::from_digits(digits);
    let mut denominator = Natural::from_u64(1);
    let scaled = if power < 0 { &mut denominator } else { &mut numerator };
    scaled.multiply_by_power_of_ten(power.unsigned_abs());
    // Long division, bit by bit, of two numbers of the same length: 66 bits tell the 64 that are kept,
    // the next one, and (with the remainder) whether anything follows.
    let (a, b) = (numerator.bits(), denominator.bits());
    numerator.shift_left(b.saturating_sub(a));
    denominator.shift_left(a.saturating_sub(b));
    let mut quotient = 0u128;
    for _ in 0..66 {
        quotient <<= 1;
        if numerator.compare(&denominator) != Ordering::Less {
            numerator.subtract(&denominator);
            quotient |= 1;
        }
        numerator.shift_left(1);
    }
    let exponent = i32::try_from(a).expect("bounded") - i32::try_from(b).expect("bounded") - 65;
    round(negative, quotient, !numerator.is_zero(), exponent)
}

/// Sign, significand with its first bit set, exponent.
type Normal = (bool, u64, i32);

fn normal(negative: bool, significand: u64, exponent: i32) -> Normal {
    let zeros = significand.leading_zeros();
    (negative, significand << zeros, exponent - i32::try_from(zeros).expect("at most 64"))
}

fn add_finite(a: Normal, b: Normal) -> LongDouble {
    let (large, small) = if (a.2, a.1) >= (b.2, b.1) { (a, b) } else { (b, a) };
    let x = u128::from(large.1) << 63;
    let y = u128::from(small.1) << 63;
    let shift = (large.2 - small.2).unsigned_abs();
    let (y, lost) = match shift {
        0..128 => (y >> shift, y & ((1u128 << shift) - 1) != 0),
        _ => (0, true),
    };
    let sum = if large.0 == small.0 { x + y } else { x - y - u128::from(lost) };
    if sum == 0 && !lost {
        return LongDouble::ZERO;
    }
    round(large.0, sum, lost, large.2 - 63)
}

/// Keeps 64 bits, fewer for the smallest numbers. `sticky`: something non-zero follows the last bit.
fn round(negative: bool, value: u128, sticky: bool, exponent: i32) -> LongDouble {
    let bits = 128 - i32::try_from(value.leading_zeros()).expect("at most 128");
    let shift = (bits - 64).max(MIN_EXPONENT - exponent).max(0);
    let mut exponent = exponent + shift;
    let rounded = round_shift(value, shift.unsigned_abs(), sticky);
    let significand = u64::try_from(rounded).unwrap_or_else(|_| {
        exponent += 1;
        1 << 63 // Rounding up carried into a 65th bit.
    });
    let bits = 64 - i32::try_from(significand.leading_zeros()).expect("at most 64");
    if bits + exponent > MAX_BITS {
        return LongDouble::Infinite { negative };
    }
    LongDouble::Finite { negative, significand, exponent }
}

/// `value` / 2^`shift`, to the nearest integer, ties to even.
fn round_shift(value: u128, shift: u32, sticky: bool) -> u128 {
    match shift {
        0 => value,
        1..128 => {
            let (kept, rest, half) = (value >> shift, value & ((1 << shift) - 1), 1u128 << (shift - 1));
            let up = rest > half || (rest == half && (sticky || kept & 1 == 1));
            kept + u128::from(up)
        }
        _ => 0,
    }
}

/// A natural number of any size, in 32-bit digits, least first, without zeros at the end.
#[derive(Debug)]
struct Natural(Vec<u32>);

impl Natural {
    fn from_u64(value: u64) -> Natural {
        let mut number = Natural(vec![value as u32, (value >> 32) as u32]);
        number.trim();
        number
    }

    fn from_digits(digits: &[u8]) -> Natural {
        let mut number = Natural(Vec::new());
        for group in digits.chunks(9) {
            let value = group.iter().fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
            number.multiply_add(10u32.pow(group.len() as u32), value);
        }
        number
    }

    fn multiply_by_power_of_ten(&mut self, power: u64) {
        for _ in 0..power / 9 {
            self.multiply_add(1_000_000_000, 0);
        }
        for _ in 0..power % 9 {
            self.multiply_add(10, 0);
        }
    }

    fn trim(&mut self) {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }

    fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    fn bits(&self) -> u32 {
        let whole = u32::try_from(self.0.len()).expect("texts are bounded") * 32;
        whole - self.0.last().map_or(0, |top| top.leading_zeros())
    }

    fn multiply_add(&mut self, factor: u32, add: u32) {
        let mut carry = u64::from(add);
        for digit in &mut self.0 {
            let product = u64::from(*digit) * u64::from(factor) + carry;
            *digit = product as u32;
            carry = product >> 32;
        }
        if carry > 0 {
            self.0.push(carry as u32);
        }
    }

    fn shift_left(&mut self, bits: u32) {
        let part = bits % 32;
        if part > 0 {
            self.multiply_add(1 << part, 0);
        }
        if bits >= 32 && !self.is_zero() {
            self.0.splice(0..0, std::iter::repeat_n(0, (bits / 32) as usize));
        }
    }

    fn compare(&self, other: &Natural) -> Ordering {
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.iter().rev().cmp(other.0.iter().rev()))
    }

    /// `other` must not be larger.
    fn subtract(&mut self, other: &Natural) {
        let mut borrow = 0i64;
        for (at, digit) in self.0.iter_mut().enumerate() {
            let rest = i64::from(*digit) - i64::from(other.0.get(at).copied().unwrap_or(0)) - borrow;
            *digit = rest as u32;
            borrow = i64::from(rest < 0);
        }
        self.trim();
    }

    fn into_decimal(mut self) -> String {
        let mut groups = Vec::new();
        while !self.is_zero() {
            let mut rest = 0u64;
            for digit in self.0.iter_mut().rev() {
                let value = (rest << 32) | u64::from(*digit);
                *digit = (value / 1_000_000_000) as u32;
                rest = value % 1_000_000_000;
            }
            groups.push(rest);
            self.trim();
        }
        let mut text = groups.pop().unwrap_or(0).to_string();
        for group in groups.iter().rev() {
            text.push_str(&format!("{group:09}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(a: &str, b: &str) -> Option<String> {
        LongDouble::parse(a.as_bytes())?.plus(LongDouble::parse(b.as_bytes())?)?.format()
    }

    #[test]
    fn sums_are_what_redis_answers() {
        // Taken from redis-server 7.0.15 on x86-64.
        for (a, b, wanted) in [
            ("0", "0.1", "0.1"),
            ("0.1", "0.2", "0.3"),
            ("10.50", "0.1", "10.6"),
            ("5.0e3", "2.0e2", "5200"),
            ("1", "-1.1", "-0.1"),
            ("17179869184", "1.5", "17179869185.5"),
            ("3.0", "1.000000000000000005", "4.00000000000000001"),
            ("-1", "1", "0"),
            ("1e20", "1", "100000000000000000000"),
            ("1e-20", "0", "0"),
            ("-1e-20", "0", "0"),
            ("1e30", "1e30", "2000000000000000000049392123904"),
            ("12345.1", "0.1", "12345.19999999999999929"),
            (".5", "5.", "5.5"),
            ("+1", "1E+1", "11"),
        ] {
            assert_eq!(sum(a, b).as_deref(), Some(wanted), "{a} + {b}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in ["", " 1", "1 ", "nan", "1e", "e5", ".", "1e5000", "1e-5000", "1..2", "--1", "1\0"] {
            assert_eq!(LongDouble::parse(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(LongDouble::parse(&[b'1'; 6000]), None);
    }

    #[test]
    fn infinity_is_read_and_spreads() {
        let infinite = LongDouble::parse(b"-INF").expect("a number");
        assert_eq!(infinite, LongDouble::Infinite { negative: true });
        assert_eq!(infinite.plus(LongDouble::ZERO), Some(infinite));
        assert_eq!(infinite.plus(LongDouble::Infinite { negative: false }), None);
        let largest = LongDouble::parse(b"1.18e4932").expect("a number");
        assert_eq!(largest.plus(largest), Some(LongDouble::Infinite { negative: false }));
    }

    #[test]
    fn the_smallest_numbers_keep_their_last_bits() {
        let smallest = LongDouble::parse(b"3.6451995318824746025e-4951").expect("a number");
        assert_eq!(smallest, LongDouble::Finite { negative: false, significand: 1, exponent: MIN_EXPONENT });
        assert_eq!(LongDouble::parse(b"1e-4951"), None);
    }
}
