//! From text to values and back: the words of a redis.conf line, and each kind of directive.
//!
//! Pure, so that the file, the command line, CONFIG SET and CONFIG REWRITE cannot disagree about what a text
//! means. Texts of refusals are Redis's where CONFIG SET shows them to clients.

use std::time::Duration;

use super::OutputLimit;
use super::OutputLimits;
use super::options::Kind;

/// A checked value of one directive. Which variant it is follows from the directive's [`Kind`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Of `Kind::Bool`.
    Bool(bool),
    /// Of `Kind::Integer`, `Memory`, `MemoryOr` and `MemoryOrPercent` (bytes), `Millis` and `Seconds`.
    Integer(i64),
    /// Of `Kind::MemoryOrPercent`, from 1 to 100.
    Percent(u8),
    /// Of `Kind::Enum` and `MemoryOr`: the word as its row spells it.
    Choice(&'static str),
    /// Of `Kind::Text`.
    Text(String),
    /// Of `Kind::Words`.
    Words(Vec<String>),
    /// Of `Kind::Lines`: one list of words for each entry.
    Lines(Vec<Vec<String>>),
    /// Of `Kind::OutputLimits`.
    Limits(OutputLimits),
}

impl Value {
    /// The value as CONFIG GET shows it: sizes in plain bytes, yes or no, lists separated by blanks.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Value::Bool(is_set) => if *is_set { "yes" } else { "no" }.to_owned(),
            Value::Integer(number) => number.to_string(),
            Value::Percent(share) => format!("{share}%"),
            Value::Choice(word) => (*word).to_owned(),
            Value::Text(text) => text.clone(),
            Value::Words(words) => words.join(" "),
            Value::Lines(lines) => lines.concat().join(" "),
            // CONFIG GET keeps the name that Redis's tools read; files may say `replica`.
            Value::Limits(limits) => limits.words("slave").concat().join(" "),
        }
    }

    /// The value as lines of a configuration file, without the directive's name.
    #[must_use]
    pub fn file_lines(&self, kind: Kind) -> Vec<String> {
        let quoted = |words: &Vec<String>| words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ");
        match self {
            Value::Integer(number)
                if matches!(kind, Kind::Memory { .. } | Kind::MemoryOr(_) | Kind::MemoryOrPercent) =>
            {
                vec![format_memory(*number)]
            }
            Value::Bool(_) | Value::Integer(_) | Value::Percent(_) | Value::Choice(_) => vec![self.text()],
            Value::Text(text) => vec![quote(text)],
            Value::Words(words) if !words.is_empty() => vec![quoted(words)],
            Value::Lines(lines) if !lines.is_empty() => lines.iter().map(quoted).collect(),
            Value::Words(_) | Value::Lines(_) => vec![quote("")],
            Value::Limits(limits) => limits.words("replica").iter().map(quoted).collect(),
        }
    }
}

impl Kind {
    /// Reads the words given to a directive. `current` is what they change: output buffer limits that are
    /// not named keep their values. The error says what is wrong, in Redis's words.
    pub fn parse(&self, words: &[String], current: &Value) -> Result<Value, String> {
        if words.is_empty() {
            return Err("wrong number of arguments: a value is missing".to_owned());
        }
        match self {
            Kind::Bool => match one(words)?.to_ascii_lowercase().as_str() {
                "yes" => Ok(Value::Bool(true)),
                "no" => Ok(Value::Bool(false)),
                _ => Err("argument must be 'yes' or 'no'".to_owned()),
            },
            Kind::Integer { min, max } | Kind::Millis { min, max } | Kind::Seconds { min, max } => {
                let number =
                    parse_integer(one(words)?).ok_or("argument couldn't be parsed into an integer")?;
                bounded(number, *min, *max)
            }
            Kind::Memory { min, max } => {
                let number = parse_memory(one(words)?).ok_or("argument must be a memory value")?;
                bounded(number, *min, *max)
            }
            Kind::MemoryOr(choices) => {
                let word = one(words)?;
                let choice = choices.iter().find(|choice| choice.eq_ignore_ascii_case(word));
                let size = || parse_memory(word).map(Value::Integer);
                let why = || format!("argument must be a memory value or one of {}", choices.join(", "));
                choice.map(|choice| Value::Choice(choice)).or_else(size).ok_or_else(why)
            }
            Kind::MemoryOrPercent => {
                let word = one(words)?;
                let share = word.strip_suffix('%').map(|number| {
                    parse_integer(number)
                        .and_then(|share| u8::try_from(share).ok())
                        .filter(|share| (1..=100).contains(share))
                });
                match share {
                    Some(Some(share)) => Ok(Value::Percent(share)),
                    Some(None) => Err("argument must be a share from 1% to 100%".to_owned()),
                    None => parse_memory(word)
                        .map(Value::Integer)
                        .ok_or_else(|| "argument must be a memory or percent value".to_owned()),
                }
            }
            Kind::Enum(choices) => {
                let word = one(words)?;
                let choice = choices.iter().find(|choice| choice.eq_ignore_ascii_case(word));
                let why = || format!("argument(s) must be one of the following: {}", choices.join(", "));
                Ok(Value::Choice(choice.ok_or_else(why)?))
            }
            Kind::Text => Ok(Value::Text(one(words)?.to_owned())),
            Kind::Words => Ok(Value::Words(several(words))),
            Kind::Lines { words: length } => {
                let words = several(words);
                if !words.len().is_multiple_of(*length) {
                    return Err(format!("wrong number of arguments: they come in groups of {length}"));
                }
                Ok(Value::Lines(words.chunks(*length).map(<[String]>::to_vec).collect()))
            }
            Kind::OutputLimits => {
                let mut limits = match current {
                    Value::Limits(limits) => *limits,
                    _ => OutputLimits::default(),
                };
                limits.merge(&several(words))?;
                Ok(Value::Limits(limits))
            }
        }
    }
}

impl OutputLimits {
    /// Takes over the classes that `words` name: `class hard soft seconds`, repeated.
    fn merge(&mut self, words: &[String]) -> Result<(), String> {
        if !words.len().is_multiple_of(4) {
            return Err("Wrong number of arguments in buffer limit configuration.".to_owned());
        }
        for group in words.chunks(4) {
            let class = match group[0].to_ascii_lowercase().as_str() {
                "normal" => &mut self.normal,
                "slave" | "replica" => &mut self.replica,
                "pubsub" => &mut self.pubsub,
                _ => return Err("Invalid client class specified in buffer limit configuration.".to_owned()),
            };
            let size = |word: &str| parse_memory(word).and_then(|bytes| usize::try_from(bytes).ok());
            let seconds = parse_integer(&group[3]).and_then(|seconds| u64::try_from(seconds).ok());
            let (Some(hard), Some(soft), Some(seconds)) = (size(&group[1]), size(&group[2]), seconds) else {
                let why = "Error in hard, soft or soft_seconds setting in buffer limit configuration.";
                return Err(why.to_owned());
            };
            *class = OutputLimit { hard, soft, soft_for: Duration::from_secs(seconds) };
        }
        Ok(())
    }

    /// The limits as words, one list for each class; `replica` is how to call that class.
    fn words(&self, replica: &str) -> Vec<Vec<String>> {
        let classes = [("normal", self.normal), (replica, self.replica), ("pubsub", self.pubsub)];
        let words = |(name, limit): (&str, OutputLimit)| {
            let seconds = limit.soft_for.as_secs();
            vec![name.to_owned(), limit.hard.to_string(), limit.soft.to_string(), seconds.to_string()]
        };
        classes.into_iter().map(words).collect()
    }
}

/// The only word, for directives that take one.
fn one(words: &[String]) -> Result<&str, String> {
    match words {
        [word] => Ok(word),
        more => {
            let hint = if more.iter().any(|word| word.starts_with('#')) {
                "; a comment needs a line of its own"
            } else {
                ""
            };
            Err(format!("wrong number of arguments: one value expected, {} given{hint}", more.len()))
        }
    }
}

/// The words of a list; one quoted text is split at blanks, as CONFIG SET gives lists. `""` is no word.
fn several(words: &[String]) -> Vec<String> {
    match words {
        [text] => text.split_whitespace().map(str::to_owned).collect(),
        more => more.to_vec(),
    }
}

fn bounded(number: i64, min: i64, max: i64) -> Result<Value, String> {
    if (min..=max).contains(&number) {
        return Ok(Value::Integer(number));
    }
    Err(format!("argument must be between {min} and {max} inclusive"))
}

/// A decimal number without `+` or blanks.
fn parse_integer(word: &str) -> Option<i64> {
    if word.starts_with('+') { None } else { word.parse().ok() }
}

/// A size in Redis's units: `1k` is 1000 bytes, `1kb` is 1024, likewise m, mb, g, gb; never negative.
fn parse_memory(word: &str) -> Option<i64> {
    let digits = word.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = word.split_at(digits);
    let factor: i64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" => 1000,
        "kb" => 1 << 10,
        "m" => 1_000_000,
        "mb" => 1 << 20,
        "g" => 1_000_000_000,
        "gb" => 1 << 30,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(factor)
}

/// The shortest exact way to write a size: `64mb`, or plain bytes.
#[must_use]
pub fn format_memory(bytes: i64) -> String {
    for (shift, unit) in [(30, "gb"), (20, "mb"), (10, "kb")] {
        if bytes > 0 && bytes % (1 << shift) == 0 {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// Splits a line into words as Redis does (`sdssplitargs`): blanks separate; `"…"` knows `\xHH`, `\n`, `\r`,
/// `\t`, `\b`, `\a` and `\` before any other character; `'…'` knows only `\'`. The error says what is wrong.
pub fn split_words(line: &str) -> Result<Vec<String>, String> {
    let mut rest = line.as_bytes();
    let mut words = Vec::new();
    loop {
        // The same blanks that end a word: one that ended it and is not passed over would be found for ever.
        let blanks = rest.iter().take_while(|byte| is_blank(**byte)).count();
        rest = &rest[blanks..];
        if rest.is_empty() {
            return Ok(words);
        }
        let mut word = Vec::new();
        rest = take_word(rest, &mut word)?;
        words.push(String::from_utf8(word).map_err(|_| "a quoted value is not UTF-8 text".to_owned())?);
    }
}

/// Reads one word, which may change between bare and quoted, and gives what follows it.
fn take_word<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Result<&'a [u8], String> {
    while let Some((&byte, after)) = rest.split_first() {
        match byte {
            b'"' | b'\'' => {
                let is_double = byte == b'"';
                rest = if is_double { take_double(after, word) } else { take_single(after, word) }
                    .ok_or("unbalanced quotes")?;
                if rest.first().is_some_and(|byte| !is_blank(*byte)) {
                    return Err("a closing quote must be followed by a blank".to_owned());
                }
                return Ok(rest);
            }
            _ if is_blank(byte) => return Ok(rest),
            _ => {
                word.push(byte);
                rest = after;
            }
        }
    }
    Ok(rest)
}

fn is_blank(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0
}

/// Inside `"…"`; `None` when it is not closed.
fn take_double<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        match rest {
            [] => return None,
            [b'"', after @ ..] => return Some(after),
            [b'\\', b'x', high, low, after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                word.push(hex(*high) << 4 | hex(*low));
                rest = after;
            }
            [b'\\', escaped, after @ ..] => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'a' => 0x07,
                    other => *other,
                });
                rest = after;
            }
            [byte, after @ ..] => {
                word.push(*byte);
                rest = after;
            }
        }
    }
}

/// Inside `'…'`; `None` when it is not closed.
fn take_single<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        match rest {
            [] => return None,
            [b'\'', after @ ..] => return Some(after),
            [b'\\', b'\'', after @ ..] => {
                word.push(b'\'');
                rest = after;
            }
            [byte, after @ ..] => {
                word.push(*byte);
                rest = after;
            }
        }
    }
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

/// A word as [`split_words`] reads it back; quoted only where it must be.
#[must_use]
pub fn quote(word: &str) -> String {
    let is_plain =
        |character: char| character.is_alphanumeric() || "_-.:/*[]@+=,%$~!?&;()".contains(character);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    let mut quoted = String::from('"');
    for character in word.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            control if control.is_ascii_control() => quoted.push_str(&format!("\\x{:02x}", control as u32)),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::any;

    use super::*;

    proptest::proptest! {
        #[test]
        fn any_words_read_back_as_themselves(words in vec(any::<String>(), 0..5)) {
            let quoted: Vec<String> = words.iter().map(|word| quote(word)).collect();
            proptest::prop_assert_eq!(split_words(&quoted.join(" ")), Ok(words));
        }
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    fn parse(kind: Kind, given: &[&str]) -> Result<Value, String> {
        kind.parse(&words(given), &Value::Bool(false))
    }

    #[test]
    fn lines_are_split_as_redis_splits_them() {
        let cases: &[(&str, &[&str])] = &[
            ("", &[]),
            ("  port\t6379  ", &["port", "6379"]),
            (r#"requirepass "a b""#, &["requirepass", "a b"]),
            (r#"x "\x41\n\"\\\q""#, &["x", "A\n\"\\q"]),
            (r#"x "\xzz""#, &["x", "xzz"]),
            (r"x 'a\'b\n'", &["x", "a'b\\n"]),
            (r#"x """#, &["x", ""]),
            (r#"x ab"cd" e"#, &["x", "abcd", "e"]),
            (r#"x "\xc3\xa9""#, &["x", "é"]),
        ];
        for (line, expected) in cases {
            assert_eq!(split_words(line).unwrap(), words(expected), "{line}");
        }
    }

    #[test]
    fn bad_quotes_are_refused() {
        for line in [r#"x "abc"#, "x 'abc", r#"x "a"b"#, r"x 'a'b", r#"x "a\"#, r#"x "\xff""#] {
            assert!(split_words(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_quoted_word_reads_back_as_itself() {
        for word in ["", "plain", "a b", "#x", "\"'\\", "\n\r\t\u{1}\u{7f}", "é ü", "[::1]:7000"] {
            let line = format!("x {}", quote(word));
            assert_eq!(split_words(&line).unwrap(), words(&["x", word]), "{line}");
            assert!(!line.contains('\n'));
        }
    }

    #[test]
    fn sizes_have_redis_units() {
        let cases = [
            ("0", Some(0)),
            ("1b", Some(1)),
            ("1k", Some(1000)),
            ("1Kb", Some(1024)),
            ("2m", Some(2_000_000)),
            ("2MB", Some(2 << 20)),
            ("3g", Some(3_000_000_000)),
            ("3gb", Some(3 << 30)),
            ("-1", None),
            ("1t", None),
            ("mb", None),
            ("1.5gb", None),
            ("", None),
            ("99999999999gb", None),
        ];
        for (word, bytes) in cases {
            assert_eq!(parse_memory(word), bytes, "{word}");
        }
        for bytes in [0, 1, 1000, 1024, 64 << 20, 3 << 30, (1 << 20) + 1] {
            assert_eq!(parse_memory(&format_memory(bytes)), Some(bytes));
        }
    }

    #[test]
    fn a_wrong_value_of_each_kind_says_what_is_wrong() {
        let number = Kind::Integer { min: 1, max: 9 };
        let cases: &[(Kind, &[&str], &str)] = &[
            (Kind::Bool, &["maybe"], "argument must be 'yes' or 'no'"),
            (number, &["x"], "argument couldn't be parsed into an integer"),
            (number, &["+5"], "argument couldn't be parsed into an integer"),
            (number, &["10"], "argument must be between 1 and 9 inclusive"),
            (number, &[], "wrong number of arguments: a value is missing"),
            (number, &["1", "2"], "wrong number of arguments: one value expected, 2 given"),
            (
                number,
                &["1", "#", "one"],
                "wrong number of arguments: one value expected, 3 given; a comment needs a line of its own",
            ),
            (Kind::Millis { min: 0, max: 5 }, &["6"], "argument must be between 0 and 5 inclusive"),
            (Kind::Seconds { min: 0, max: 5 }, &["1s"], "argument couldn't be parsed into an integer"),
            (Kind::Memory { min: 0, max: 5 }, &["1tb"], "argument must be a memory value"),
            (Kind::MemoryOrPercent, &["101%"], "argument must be a share from 1% to 100%"),
            (Kind::MemoryOrPercent, &["-5"], "argument must be a memory or percent value"),
            (Kind::Enum(&["a", "b"]), &["c"], "argument(s) must be one of the following: a, b"),
            (Kind::Words, &[], "wrong number of arguments: a value is missing"),
            (Kind::Lines { words: 2 }, &["1"], "wrong number of arguments: they come in groups of 2"),
            (
                Kind::OutputLimits,
                &["normal", "0", "0"],
                "Wrong number of arguments in buffer limit configuration.",
            ),
            (
                Kind::OutputLimits,
                &["master", "0", "0", "0"],
                "Invalid client class specified in buffer limit configuration.",
            ),
            (
                Kind::OutputLimits,
                &["normal", "0", "x", "0"],
                "Error in hard, soft or soft_seconds setting in buffer limit configuration.",
            ),
        ];
        for (kind, given, why) in cases {
            assert_eq!(parse(*kind, given), Err((*why).to_owned()), "{kind:?} {given:?}");
        }
    }

    #[test]
    fn values_are_shown_as_redis_shows_them() {
        let memory = Kind::Memory { min: 0, max: i64::MAX };
        assert_eq!(parse(memory, &["64mb"]).unwrap().text(), "67108864");
        assert_eq!(parse(memory, &["64mb"]).unwrap().file_lines(memory), ["64mb"]);
        assert_eq!(parse(Kind::Bool, &["YES"]).unwrap().text(), "yes");
        let save = Kind::Lines { words: 2 };
        assert_eq!(parse(save, &["900", "1", "300", "10"]).unwrap().text(), "900 1 300 10");
        assert_eq!(parse(save, &["900 1 300 10"]).unwrap().file_lines(save), ["900 1", "300 10"]);
        assert_eq!(parse(save, &[""]).unwrap().file_lines(save), ["\"\""]);
        let limits = parse(Kind::OutputLimits, &["replica", "1mb", "0", "60"]).unwrap();
        assert_eq!(limits.text(), "normal 0 0 0 slave 1048576 0 60 pubsub 0 0 0");
    }
}
