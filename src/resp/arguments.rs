//! Numbers and keywords in a request's arguments, read and written the way Redis does.
//!
//! Redis is stricter than Rust's own parsers (no `+1`, no `007`, no spaces, no `nan`), and clients rely on its
//! errors, so every command reads its numbers through these functions.

use std::fmt::Write;

/// Reads a signed integer as Redis's `string2ll`: an optional minus and digits without leading zeros, nothing else.
///
/// `None` for everything else: empty, `+1`, `01`, `-0`, spaces, or a value outside `i64`.
pub fn parse_i64(text: &[u8]) -> Option<i64> {
    let (is_negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [b'0'] if !is_negative => return Some(0),
        [b'1'..=b'9', ..] => {}
        _ => return None,
    }
    // Summed as a negative number, because `i64::MIN` has no positive counterpart.
    let mut value = 0i64;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value.checked_mul(10)?.checked_sub(i64::from(digit - b'0'))?;
    }
    if is_negative { Some(value) } else { value.checked_neg() }
}

/// Reads a floating-point number as Redis does: decimal, with an optional sign and exponent, or `inf`, `+inf`,
/// `-inf`, `infinity` in any case.
///
/// `None` for empty, spaces, `nan`, and numbers that overflow to infinity or underflow to zero. Hexadecimal
/// floats, which Redis accepts because C does, are refused.
pub fn parse_f64(text: &[u8]) -> Option<f64> {
    let value: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    let says_infinity = text.iter().any(|byte| matches!(byte, b'i' | b'I'));
    if value.is_nan() || (value.is_infinite() && !says_infinity) {
        return None;
    }
    if value == 0.0 {
        let mantissa = text.split(|byte| matches!(byte, b'e' | b'E')).next().unwrap_or_default();
        if mantissa.iter().any(|byte| matches!(byte, b'1'..=b'9')) {
            return None;
        }
    }
    Some(value)
}

/// Writes a number for people, as INCRBYFLOAT and HINCRBYFLOAT store it: no exponent, at most 17 decimals, no
/// trailing zeros, no `.0`, no `-0`; `inf`, `-inf` and `nan` for what is no number.
///
/// Redis computes with `long double`, which hides the error of binary fractions; the shortest text that reads
/// back as the same `f64` does the same for a number that was written by a client.
pub fn format_double(value: f64) -> String {
    if !value.is_finite() {
        return format_g17(value);
    }
    let mut text = value.to_string();
    if text.split_once('.').is_some_and(|(_, decimals)| decimals.len() > 17) {
        text = trim_decimals(&format!("{value:.17}")).to_owned();
    }
    if text == "-0" { "0".to_owned() } else { text }
}

/// Writes a number as C's `%.17g`, Redis 7.0's text of a score or any other double in a reply: 17 significant
/// digits without trailing zeros, an exponent outside 1e-4 ≤ |x| < 1e17; `inf`, `-inf`, `nan`. At most 24 bytes.
pub fn format_g17(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    // `d.dddddddddddddddde±x`: one digit, a point, sixteen digits.
    let scientific = format!("{value:.16e}");
    let (mantissa, exponent) = scientific.split_once('e').expect("the e format has an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent of the e format is an integer");
    if (-4..17).contains(&exponent) {
        let decimals = usize::try_from(16 - exponent).expect("the exponent is at most 16");
        return trim_decimals(&format!("{value:.decimals$}")).to_owned();
    }
    let mut text = trim_decimals(mantissa).to_owned();
    let sign = if exponent < 0 { '-' } else { '+' };
    write!(text, "e{sign}{:02}", exponent.abs()).expect("a String takes every write");
    text
}

/// Whether an argument is this keyword; ASCII letters match in either case.
pub fn eq_ignore_case(argument: &[u8], keyword: &str) -> bool {
    argument.eq_ignore_ascii_case(keyword.as_bytes())
}

/// Cuts the zeros at the end of a number's decimals, and the point if none is left.
fn trim_decimals(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_read_as_strictly_as_redis_does() {
        for value in [0, 1, -1, 10, 42, i64::MAX, i64::MIN, i64::MIN + 1] {
            assert_eq!(parse_i64(value.to_string().as_bytes()), Some(value));
        }
        for text in [
            "",
            "-",
            "+1",
            "-0",
            "00",
            "01",
            "-01",
            " 1",
            "1 ",
            "1.0",
            "0x1",
            "1e3",
            "a",
            "9223372036854775808",
            "-9223372036854775809",
            "99999999999999999999999",
            "1\0",
        ] {
            assert_eq!(parse_i64(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn floats_are_read_as_strictly_as_redis_does() {
        for (text, value) in [
            ("0", 0.0),
            ("-0", 0.0),
            ("0e5", 0.0),
            ("3.0e3", 3000.0),
            ("+1.5", 1.5),
            (".5", 0.5),
            ("5.", 5.0),
            ("-1E-2", -0.01),
            ("inf", f64::INFINITY),
            ("+Inf", f64::INFINITY),
            ("-infinity", f64::NEG_INFINITY),
        ] {
            assert_eq!(parse_f64(text.as_bytes()), Some(value), "{text:?}");
        }
        for text in
            ["", " 1", "1 ", "nan", "-NaN", "1e400", "-1e400", "1e-400", "e", ".", "1e", "abc", "1,5", "1\0"]
        {
            assert_eq!(parse_f64(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(parse_f64(b"1\xff"), None);
    }

    #[test]
    fn sums_print_as_in_the_documentation_of_incrbyfloat() {
        for (value, text) in [
            (10.50 + 0.1, "10.6"),
            (10.6 + -5.0, "5.6"),
            (5.0e3 + 2.0e2, "5200"),
            (3.0e3, "3000"),
            (0.0, "0"),
            (-0.0, "0"),
            (-1.5, "-1.5"),
            (1e-17, "0.00000000000000001"),
            (1e-30, "0"),
            (-1e-30, "0"),
            (1e20, "100000000000000000000"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(format_double(value), text, "{value:e}");
        }
    }

    #[test]
    fn doubles_print_as_percent_17g() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (-3.0, "-3"),
            (100.0, "100"),
            (1.5, "1.5"),
            (0.1, "0.10000000000000001"),
            (3.3, "3.2999999999999998"),
            (0.0001, "0.0001"),
            (0.00001, "1.0000000000000001e-05"),
            (1e16, "10000000000000000"),
            (12345678901234567890.0, "1.2345678901234567e+19"),
            (1e17, "1e+17"),
            (1e100, "1e+100"),
            (f64::MAX, "1.7976931348623157e+308"),
            (5e-324, "4.9406564584124654e-324"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ] {
            assert_eq!(format_g17(value), text);
        }
    }

    #[test]
    fn keywords_match_in_either_case() {
        assert!(eq_ignore_case(b"px", "PX") && eq_ignore_case(b"Px", "PX"));
        assert!(!eq_ignore_case(b"pxx", "PX") && !eq_ignore_case(b"", "PX"));
    }
}
