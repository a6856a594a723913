//! Glob patterns as Redis matches them (`stringmatchlen`): KEYS, SCAN MATCH, PSUBSCRIBE, CONFIG GET.
//!
//! A line by line counterpart of Redis's function, its oddities included (an unclosed `[` ends with the
//! pattern, an escaped byte in a class is compared with its case, `*` does not match an empty text), because
//! clients' patterns were written against those. Two bounds keep a hostile pattern cheap: once the rest of a
//! pattern was found nowhere in a text, earlier stars are not tried longer, and stars nest at most
//! [`NESTING_MAX`] deep.

/// Stars that may be open at once. Redis answers "no match" beyond this too (CVE-2024-31228).
pub const NESTING_MAX: u32 = 1000;

/// True when `text` matches `pattern`: `*`, `?`, `[abc]`, `[a-z]`, `[^a]`, and `\` before a byte that is meant
/// as itself. `nocase` compares ASCII letters without their case.
#[must_use]
pub fn matches(pattern: &[u8], text: &[u8], nocase: bool) -> bool {
    let mut is_hopeless = false;
    matches_from(pattern, text, nocase, &mut is_hopeless, 0)
}

/// `is_hopeless` is Redis's `skipLongerMatches`: set when the rest of the pattern matches nowhere in the rest
/// of the text, so that no star before it can help by taking more.
fn matches_from(
    mut pattern: &[u8],
    mut text: &[u8],
    nocase: bool,
    is_hopeless: &mut bool,
    nesting: u32,
) -> bool {
    if nesting > NESTING_MAX {
        return false;
    }
    while let (Some(&head), Some(&byte)) = (pattern.first(), text.first()) {
        match head {
            b'*' => return matches_star(pattern, text, nocase, is_hopeless, nesting),
            b'?' => pattern = &pattern[1..],
            b'[' => {
                let (is_match, rest) = matches_class(&pattern[1..], byte, nocase);
                if !is_match {
                    return false;
                }
                pattern = rest;
            }
            _ => {
                let is_escape = head == b'\\' && pattern.len() >= 2;
                let literal = if is_escape { pattern[1] } else { head };
                if !is_same(literal, byte, nocase) {
                    return false;
                }
                pattern = &pattern[1 + usize::from(is_escape)..];
            }
        }
        text = &text[1..];
        if text.is_empty() {
            let stars = pattern.iter().take_while(|&&byte| byte == b'*').count();
            pattern = &pattern[stars..];
            break;
        }
    }
    pattern.is_empty() && text.is_empty()
}

/// `pattern` starts with a star, `text` is not empty.
fn matches_star(pattern: &[u8], text: &[u8], nocase: bool, is_hopeless: &mut bool, nesting: u32) -> bool {
    let stars = pattern.iter().take_while(|&&byte| byte == b'*').count();
    let rest = &pattern[stars..];
    if rest.is_empty() {
        return true;
    }
    for start in 0..text.len() {
        if matches_from(rest, &text[start..], nocase, is_hopeless, nesting + 1) {
            return true;
        }
        if *is_hopeless {
            return false;
        }
    }
    *is_hopeless = true;
    false
}

/// Whether `byte` is in the class whose text after `[` is `class`, and the pattern after its `]`.
fn matches_class(class: &[u8], byte: u8, nocase: bool) -> (bool, &[u8]) {
    let is_negated = class.first() == Some(&b'^');
    let mut rest = &class[usize::from(is_negated)..];
    let mut is_match = false;
    loop {
        match rest {
            [] => break,
            [b'\\', literal, ..] => {
                is_match |= *literal == byte;
                rest = &rest[2..];
            }
            [b']', ..] => {
                rest = &rest[1..];
                break;
            }
            [start, b'-', end, ..] => {
                is_match |= is_in_range(*start, *end, byte, nocase);
                rest = &rest[3..];
            }
            [literal, ..] => {
                is_match |= is_same(*literal, byte, nocase);
                rest = &rest[1..];
            }
        }
    }
    (is_match != is_negated, rest)
}

/// Ranges may be given backwards. Bytes are compared signed, as C's `char` is on the machines Redis runs on.
fn is_in_range(start: u8, end: u8, byte: u8, nocase: bool) -> bool {
    let signed = |byte: u8| byte.cast_signed();
    let (low, high) = if signed(start) > signed(end) { (end, start) } else { (start, end) };
    let fold = |byte: u8| signed(if nocase { byte.to_ascii_lowercase() } else { byte });
    (fold(low)..=fold(high)).contains(&fold(byte))
}

fn is_same(left: u8, right: u8, nocase: bool) -> bool {
    if nocase { left.eq_ignore_ascii_case(&right) } else { left == right }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_redis() {
        let cases: &[(&str, &str, bool)] = &[
            ("*", "anything", true),
            ("*", "", false),
            ("", "", true),
            ("", "a", false),
            ("a", "", false),
            ("abc", "abc", true),
            ("abc", "abd", false),
            ("abc", "abcd", false),
            ("abcd", "abc", false),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h*llo", "hllo", true),
            ("h*llo", "heeeello", true),
            ("a*", "a", true),
            ("a***", "a", true),
            ("***b", "aab", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-b]llo", "hbllo", true),
            ("h[b-a]llo", "hallo", true),
            ("h[a-b]llo", "hcllo", false),
            ("h[", "hx", false),
            ("h[^", "hx", true),
            ("h[a", "ha", true),
            ("[]a", "]a", false),
            ("[\\]]", "]", true),
            ("[a-]", "-", false),
            ("[a\\-z]", "-", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("a\\", "a\\", true),
            ("\\a", "a", true),
            ("é?", "é1", true),
        ];
        for &(pattern, text, expected) in cases {
            let found = matches(pattern.as_bytes(), text.as_bytes(), false);
            assert_eq!(found, expected, "{pattern:?} against {text:?}");
        }
    }

    #[test]
    fn the_case_of_letters_counts_only_when_asked() {
        let cases: &[(&str, &str, bool, bool)] = &[
            ("MAX*", "maxmemory", false, true),
            ("[M-O]ax", "max", false, true),
            ("[mx]AX", "MAX", false, true),
            ("[\\m]ax", "Max", false, false),
        ];
        for &(pattern, text, with_case, without_case) in cases {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes(), false), with_case, "{pattern:?}");
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes(), true), without_case, "{pattern:?}");
        }
    }

    #[test]
    fn a_hostile_pattern_ends_soon_and_does_not_exhaust_the_stack() {
        let text = "a".repeat(300);
        assert!(!matches(format!("{}b", "a*".repeat(100)).as_bytes(), text.as_bytes(), false));
        let deep = "a*".repeat(500_000);
        assert!(!matches(deep.as_bytes(), "a".repeat(1_000_000).as_bytes(), false));
    }
}
