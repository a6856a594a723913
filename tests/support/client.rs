//! A RESP client of its own, small enough to be believed: the server is not tested with the code it is made of.

use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;

/// A reply as it stands on the wire.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    /// `$-1` and RESP3's `_`.
    Null,
    /// `*-1`.
    NullArray,
    Array(Vec<Value>),
    Map(Vec<(Value, Value)>),
    Set(Vec<Value>),
    Push(Vec<Value>),
    Double(f64),
    Boolean(bool),
    /// The format's three letters and the text.
    Verbatim(String, String),
}

/// A bulk string.
pub fn bulk(text: &str) -> Value {
    Value::Bulk(text.as_bytes().to_vec())
}

/// `+OK`.
pub fn ok() -> Value {
    Value::Simple("OK".to_owned())
}

/// A status line.
pub fn simple(text: &str) -> Value {
    Value::Simple(text.to_owned())
}

/// An error line.
pub fn error(text: &str) -> Value {
    Value::Error(text.to_owned())
}

/// An integer.
pub fn int(value: i64) -> Value {
    Value::Integer(value)
}

/// An array of bulk strings.
pub fn bulks(texts: &[&str]) -> Value {
    Value::Array(texts.iter().map(|text| bulk(text)).collect())
}

impl Value {
    /// The text of a bulk, simple or verbatim string or of an error; fails the test for anything else.
    pub fn text(&self) -> String {
        match self {
            Value::Simple(text) | Value::Error(text) | Value::Verbatim(_, text) => text.clone(),
            Value::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            other => panic!("not a text: {other:?}"),
        }
    }

    pub fn integer(&self) -> i64 {
        match self {
            Value::Integer(value) => *value,
            other => panic!("not an integer: {other:?}"),
        }
    }

    /// The elements of an array, set or push.
    pub fn items(&self) -> &[Value] {
        match self {
            Value::Array(items) | Value::Set(items) | Value::Push(items) => items,
            other => panic!("not an array: {other:?}"),
        }
    }

    /// The value of `name` in a map or in RESP2's flat array of pairs.
    pub fn field(&self, name: &str) -> &Value {
        let found = match self {
            Value::Map(pairs) => pairs.iter().find(|(key, _)| key.text() == name).map(|(_, value)| value),
            other => other.items().chunks(2).find(|pair| pair[0].text() == name).map(|pair| &pair[1]),
        };
        found.unwrap_or_else(|| panic!("no field {name} in {self:?}"))
    }

    /// The entries of a map, of RESP2's flat array of pairs or of an empty one.
    pub fn pairs(&self) -> Vec<(Value, Value)> {
        match self {
            Value::Map(pairs) => pairs.clone(),
            other => other.items().chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect(),
        }
    }

    /// As [`Value::field`], `None` when there is no such field.
    pub fn optional(&self, name: &str) -> Option<Value> {
        self.pairs().into_iter().find(|(key, _)| key.text() == name).map(|(_, value)| value)
    }

    /// The number of an integer or of a text that is one.
    pub fn number(&self) -> u64 {
        match self {
            Value::Integer(value) => u64::try_from(*value).unwrap_or_else(|_| panic!("negative: {value}")),
            other => other.text().parse().unwrap_or_else(|_| panic!("not a number: {other:?}")),
        }
    }

    pub fn is_error(&self) -> bool {
        matches!(self, Value::Error(_))
    }

    /// The first word of an error: its code.
    pub fn error_code(&self) -> Option<&str> {
        match self {
            Value::Error(text) => text.split(' ').next(),
            _ => None,
        }
    }
}

/// A connection. Reads fail after ten seconds, so that no test hangs.
pub struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(to: SocketAddr) -> Client {
        Client::try_connect(to).unwrap_or_else(|error| panic!("cannot connect to {to}: {error}"))
    }

    pub fn try_connect(to: SocketAddr) -> io::Result<Client> {
        let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        Ok(Client { reader: BufReader::with_capacity(1 << 16, stream) })
    }

    /// How long a read may take from now on.
    pub fn set_timeout(&self, timeout: Duration) {
        self.reader.get_ref().set_read_timeout(Some(timeout)).unwrap();
    }

    /// Another handle to the same socket, for writing from a second thread.
    pub fn writer(&self) -> TcpStream {
        self.reader.get_ref().try_clone().unwrap()
    }

    /// Sends a command and reads its reply.
    pub fn cmd(&mut self, words: &[&str]) -> Value {
        self.send(words);
        self.read()
    }

    /// As [`Client::cmd`]; an error is a broken connection or one that gave no reply in time.
    pub fn try_cmd(&mut self, words: &[&str]) -> io::Result<Value> {
        let mut request = Vec::new();
        encode(words.iter().map(|word| word.as_bytes()), &mut request);
        self.try_send_raw(&request)?;
        self.try_read()
    }

    /// As [`Client::cmd`], with words that need not be text.
    pub fn cmd_bytes(&mut self, words: &[&[u8]]) -> Value {
        let mut request = Vec::new();
        encode(words.iter().copied(), &mut request);
        self.send_raw(&request);
        self.read()
    }

    /// Sends a command.
    pub fn send(&mut self, words: &[&str]) {
        let mut request = Vec::new();
        encode(words.iter().map(|word| word.as_bytes()), &mut request);
        self.send_raw(&request);
    }

    /// Sends all commands at once and reads all replies.
    pub fn pipeline<W: AsRef<str>>(&mut self, commands: &[Vec<W>]) -> Vec<Value> {
        self.pipeline_only(commands);
        commands.iter().map(|_| self.read()).collect()
    }

    /// Sends all commands at once.
    pub fn pipeline_only<W: AsRef<str>>(&mut self, commands: &[Vec<W>]) {
        let mut requests = Vec::new();
        for words in commands {
            encode(words.iter().map(|word| word.as_ref().as_bytes()), &mut requests);
        }
        self.send_raw(&requests);
    }

    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.try_send_raw(bytes).unwrap_or_else(|error| panic!("cannot send: {error}"));
    }

    pub fn try_send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    pub fn read(&mut self) -> Value {
        self.try_read().unwrap_or_else(|error| panic!("no reply: {error}"))
    }

    pub fn try_read(&mut self) -> io::Result<Value> {
        let line = self.read_line()?;
        let (kind, rest) = line.split_at_checked(1).ok_or_else(|| broken("an empty line"))?;
        let number = || rest.parse::<i64>().map_err(|_| broken(&line));
        Ok(match kind {
            "+" => Value::Simple(rest.to_owned()),
            "-" => Value::Error(rest.to_owned()),
            ":" => Value::Integer(number()?),
            "," => Value::Double(rest.parse().map_err(|_| broken(&line))?),
            "#" => Value::Boolean(rest == "t"),
            "_" => Value::Null,
            "$" if rest == "-1" => Value::Null,
            "$" => Value::Bulk(self.read_bytes(number()?)?),
            "=" => {
                let text = String::from_utf8_lossy(&self.read_bytes(number()?)?).into_owned();
                let (format, text) =
                    text.split_once(':').ok_or_else(|| broken("a verbatim string without format"))?;
                Value::Verbatim(format.to_owned(), text.to_owned())
            }
            "*" if rest == "-1" => Value::NullArray,
            "*" => Value::Array(self.read_items(number()?)?),
            "~" => Value::Set(self.read_items(number()?)?),
            ">" => Value::Push(self.read_items(number()?)?),
            "%" => {
                let items = self.read_items(number()? * 2)?;
                Value::Map(items.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect())
            }
            _ => return Err(broken(&line)),
        })
    }

    /// Everything until the server closes the connection. A reset counts as a close: a server that refuses the rest
    /// of what was sent cannot help it.
    pub fn read_to_close(&mut self) -> String {
        let mut bytes = Vec::new();
        match self.reader.read_to_end(&mut bytes) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the connection was not closed: {error}; it sent {bytes:?}"),
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Nothing has come that was not read, and the connection is open.
    pub fn is_quiet(&mut self) -> bool {
        self.set_timeout(Duration::from_millis(50));
        let quiet = match self.reader.fill_buf() {
            Ok(bytes) => bytes.is_empty(),
            Err(error) => {
                return matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) && {
                    self.set_timeout(Duration::from_secs(10));
                    true
                };
            }
        };
        assert!(!quiet, "the connection was closed");
        false
    }

    fn read_line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let text = line.strip_suffix(b"\r\n").ok_or_else(|| broken("a line without CR LF"))?;
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    fn read_bytes(&mut self, count: i64) -> io::Result<Vec<u8>> {
        let count = usize::try_from(count).map_err(|_| broken("a negative length"))?;
        let mut bytes = vec![0; count + 2];
        self.reader.read_exact(&mut bytes)?;
        if bytes.split_off(count) != b"\r\n" {
            return Err(broken("a bulk string without CR LF"));
        }
        Ok(bytes)
    }

    fn read_items(&mut self, count: i64) -> io::Result<Vec<Value>> {
        (0..count).map(|_| self.try_read()).collect()
    }
}

/// Appends one request in RESP.
pub fn encode<'a>(words: impl ExactSizeIterator<Item = &'a [u8]>, into: &mut Vec<u8>) {
    into.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        into.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        into.extend_from_slice(word);
        into.extend_from_slice(b"\r\n");
    }
}

/// Whether a node sent something that is no reply, which no fault excuses.
pub fn is_garbled(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not RESP: {what}"))
}
