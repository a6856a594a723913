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
    use proptest::collection::vec;
    use proptest::prelude::Just;
    use proptest::prelude::Strategy;
    use proptest::prelude::any;
    use proptest::prop_oneof;
    use proptest::sample::select;

    use super::*;

    /// What a pattern is made of, as one means it.
    #[derive(Debug, Clone)]
    enum Part {
        Star,
        One,
        Literal(u8),
        Class { is_negated: bool, ranges: Vec<(u8, u8)> },
    }

    fn some_part() -> impl Strategy<Value = Part> {
        let byte = || select(&b"abcA*]\\-^"[..]);
        let class = (any::<bool>(), vec((byte(), byte()), 1..4))
            .prop_map(|(is_negated, ranges)| Part::Class { is_negated, ranges });
        prop_oneof![Just(Part::Star), Just(Part::One), byte().prop_map(Part::Literal), class]
    }

    /// The pattern as a careful person writes it: what could mean something else is escaped.
    fn written(parts: &[Part]) -> Vec<u8> {
        let part = |part: &Part| match part {
            Part::Star => b"*".to_vec(),
            Part::One => b"?".to_vec(),
            Part::Literal(byte) if b"*]\\".contains(byte) => vec![b'\\', *byte],
            Part::Literal(byte) => vec![*byte],
            Part::Class { is_negated, ranges } => {
                let mut text = if *is_negated { b"[^".to_vec() } else { b"[".to_vec() };
                for (from, to) in ranges {
                    // The ends of a range cannot be escaped, a single byte can.
                    if from == to
                        || b"]\\".contains(from)
                        || b"]\\".contains(to)
                        || (text.len() == 1 && *from == b'^')
                    {
                        text.extend([b'\\', *from]);
                    } else {
                        text.extend([*from, b'-', *to]);
                    }
                }
                text.push(b']');
                text
            }
        };
        parts.iter().flat_map(part).collect()
    }

    /// Tries every way.
    fn naive(parts: &[Part], text: &[u8]) -> bool {
        let Some((part, rest)) = parts.split_first() else { return text.is_empty() };
        if let Part::Star = part {
            return (0..=text.len()).any(|taken| naive(rest, &text[taken..]));
        }
        let Some((byte, after)) = text.split_first() else { return false };
        let is_match = match part {
            Part::Star | Part::One => true,
            Part::Literal(literal) => literal == byte,
            Part::Class { is_negated, ranges } => {
                let is_in = |(at, (from, to)): (usize, &(u8, u8))| {
                    let is_first = at == 0 && !is_negated && *from == b'^';
                    if from == to || b"]\\".contains(from) || b"]\\".contains(to) || is_first {
                        return from == byte;
                    }
                    (*from.min(to)..=*from.max(to)).contains(byte)
                };
                ranges.iter().enumerate().any(is_in) != *is_negated
            }
        };
        is_match && naive(rest, after)
    }

    proptest::proptest! {
        #[test]
        fn a_pattern_matches_what_trying_every_way_finds(
            parts in vec(some_part(), 0..8),
            text in vec(select(&b"abcA*]\\-^"[..]), 1..9),
        ) {
            // An empty text is Redis's oddity: no star matches it.
            let pattern = written(&parts);
            proptest::prop_assert_eq!(matches(&pattern, &text, false), naive(&parts, &text), "{:?}", pattern);
        }
    }

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
