//! Inline commands: a line of words instead of a RESP array, as typed into `nc` or sent by `redis-benchmark`.
//!
//! The rules are those of Redis's `sdssplitargs`. A word never gets longer by removing its quotes and escapes, so
//! they are removed in place and the arguments stay ranges of the received line, without an allocation.

use crate::resp::request::Ranges;

/// The line has a quote without its end, or text right behind a closing quote.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UnbalancedQuotes;

/// Splits `line` (without its line end) into words; quoted ones are rewritten in place.
///
/// `"…"` knows `\n \r \t \b \a \xHH` and takes any other escaped byte as itself; `'…'` knows only `\'`. After an
/// error the line's content is unspecified.
pub(super) fn split(line: &mut [u8]) -> Result<Ranges, UnbalancedQuotes> {
    let mut ranges = Ranges::new();
    let mut read = 0;
    loop {
        while read < line.len() && is_space(line[read]) {
            read += 1;
        }
        if read == line.len() {
            return Ok(ranges);
        }
        let start = read;
        let (next, end) = word(line, start).ok_or(UnbalancedQuotes)?;
        // The reader bounds a line far below 4 GiB.
        ranges.push((start as u32, end as u32));
        read = next;
    }
}

/// One word from `start`: where reading goes on, and where the word, rewritten in place, ends.
fn word(line: &mut [u8], start: usize) -> Option<(usize, usize)> {
    let mut read = start;
    while read < line.len() {
        match line[read] {
            b' ' | b'\t' | b'\r' | b'\n' => break,
            quote @ (b'"' | b'\'') => return quoted(line, read, quote),
            _ => read += 1,
        }
    }
    Some((read, read))
}

/// The rest of a word whose quote opens at `open`; the text is moved one to the left, over the quote.
fn quoted(line: &mut [u8], open: usize, quote: u8) -> Option<(usize, usize)> {
    let (mut read, mut write) = (open + 1, open);
    loop {
        let byte = *line.get(read)?;
        let (value, width) = match byte {
            b'\\' if quote == b'"' => double_quoted_escape(&line[read..]),
            b'\\' if line.get(read + 1) == Some(&b'\'') => (b'\'', 2),
            _ if byte == quote => break,
            _ => (byte, 1),
        };
        line[write] = value;
        write += 1;
        read += width;
    }
    // A closing quote ends the word, so a space or the line's end must follow.
    match line.get(read + 1) {
        Some(byte) if !is_space(*byte) => None,
        _ => Some((read + 1, write)),
    }
}

/// The byte that an escape stands for and how many bytes it took; `text` begins with the backslash.
fn double_quoted_escape(text: &[u8]) -> (u8, usize) {
    match text {
        [_, b'x', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
            (hex_value(*high) << 4 | hex_value(*low), 4)
        }
        [_, b'n', ..] => (b'\n', 2),
        [_, b'r', ..] => (b'\r', 2),
        [_, b't', ..] => (b'\t', 2),
        [_, b'b', ..] => (0x08, 2),
        [_, b'a', ..] => (0x07, 2),
        [_, byte, ..] => (*byte, 2),
        // A backslash at the end of the line; the missing quote is found next.
        _ => (b'\\', 1),
    }
}

fn hex_value(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit - b'A' + 10,
    }
}

/// C's `isspace`.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[u8]) -> Option<Vec<Vec<u8>>> {
        let mut line = line.to_vec();
        let ranges = split(&mut line).ok()?;
        Some(ranges.iter().map(|(start, end)| line[*start as usize..*end as usize].to_vec()).collect())
    }

    #[test]
    fn words_are_split_and_unquoted_as_sdssplitargs_does() {
        let cases: &[(&[u8], &[&[u8]])] = &[
            (b"", &[]),
            (b"   \t ", &[]),
            (b"PING", &[b"PING"]),
            (b"  set  a\tb ", &[b"set", b"a", b"b"]),
            (br#"set "" ''"#, &[b"set", b"", b""]),
            (br#"set "a b" 'c d'"#, &[b"set", b"a b", b"c d"]),
            (br#"x "\x41\x7fz" "\n\r\t\b\a\q\"\\""#, &[b"x", b"A\x7fz", b"\n\r\t\x08\x07q\"\\"]),
            (br#"x "\xZZ" "\x4""#, &[b"x", b"xZZ", b"x4"]),
            (br#"x 'it\'s' '\n'"#, &[b"x", b"it's", br"\n"]),
            (br#"foo"bar" x"#, &[b"foobar", b"x"]),
            (br"back\slash", &[br"back\slash"]),
            (b"a\0b \xff", &[b"a\0b", b"\xff"]),
            (br#""a" "b"  c"#, &[b"a", b"b", b"c"]),
        ];
        for (line, expected) in cases {
            let got = words(line).unwrap();
            assert_eq!(got, expected.iter().map(|word| word.to_vec()).collect::<Vec<_>>(), "{line:?}");
        }
    }

    #[test]
    fn a_quote_without_its_end_is_refused() {
        for line in [
            &br#"set """a""" b"#[..],
            br#""foo"#,
            br#""foo"bar"#,
            br#"'foo"#,
            br#"'foo'bar"#,
            br#"'foo\'"#,
            br#""foo\"#,
            br#""foo\""#,
            br#"a""b"#,
        ] {
            assert_eq!(words(line), None, "{}", line.escape_ascii());
        }
    }
}
