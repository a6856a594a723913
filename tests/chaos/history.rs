//! What clients asked for and what they were told, as it is checked afterwards and as lines of JSON for people.

use std::fs;
use std::fs::File;
use std::io::BufWriter;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;

use serde::Serialize;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Get,
    /// Values are unique within a register.
    Set {
        value: u64,
    },
    Incr,
    /// Each attempt has an owner of its own.
    Lock {
        owner: String,
        lease_ms: u64,
    },
    /// Without a token after a LOCK in doubt.
    Unlock {
        owner: String,
        token: Option<u64>,
    },
    /// Payloads are unique.
    Push {
        payload: String,
    },
    Pop {
        lease_ms: u64,
    },
    Ack {
        receipt: String,
    },
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Ok(Answer),
    /// Certainly not executed, or a read without an answer.
    Fail(String),
    /// It may be executed at any time from its invocation on, or never.
    Info(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Done,
    /// No value, no grant, no message.
    Nothing,
    /// A value, a count or a token.
    Number(u64),
    /// The id of a message.
    Id(String),
    Message {
        id: String,
        deliveries: u64,
        payload: String,
    },
}

/// One operation of one client. Times are nanoseconds of the harness's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    pub client: u64,
    pub node: u64,
    pub key: String,
    pub action: Action,
    pub invoked: u64,
    /// When the reply was there, or when the client gave up.
    pub returned: u64,
    pub outcome: Outcome,
}

impl Operation {
    /// The reply, if there was one.
    pub fn answer(&self) -> Option<&Answer> {
        match &self.outcome {
            Outcome::Ok(answer) => Some(answer),
            Outcome::Fail(_) | Outcome::Info(_) => None,
        }
    }

    /// The number that was answered.
    pub fn number(&self) -> Option<u64> {
        match self.answer()? {
            Answer::Number(number) => Some(*number),
            Answer::Nothing => Some(0),
            Answer::Done | Answer::Id(_) | Answer::Message { .. } => None,
        }
    }

    pub fn is_in_doubt(&self) -> bool {
        matches!(self.outcome, Outcome::Info(_))
    }

    /// It may have been executed.
    pub fn may_count(&self) -> bool {
        !matches!(self.outcome, Outcome::Fail(_))
    }
}

/// A line of the file.
#[derive(Serialize)]
struct Event<'a> {
    at: u64,
    event: &'a str,
    client: u64,
    node: u64,
    op: &'a str,
    key: &'a str,
    value: String,
}

/// The file of a part of a run. It goes away when it is dropped, unless the test fails.
pub struct Journal {
    path: PathBuf,
    file: Mutex<BufWriter<File>>,
}

impl Journal {
    pub fn new(directory: &Path, part: u64) -> Journal {
        let path = directory.join(format!("history-{part}.jsonl"));
        let file = Mutex::new(BufWriter::new(File::create(&path).unwrap()));
        Journal { path, file }
    }

    pub fn invoked(&self, at: u64, client: u64, node: u64, key: &str, action: &Action) {
        let (op, value) = in_words(action);
        self.write(&Event { at, event: "invoke", client, node, op, key, value });
    }

    pub fn returned(&self, operation: &Operation) {
        let Operation { client, node, key, action, returned, outcome, .. } = operation;
        let (event, value) = match outcome {
            Outcome::Ok(Answer::Done) => ("ok", String::new()),
            Outcome::Ok(Answer::Nothing) => ("ok", "null".to_owned()),
            Outcome::Ok(Answer::Number(number)) => ("ok", number.to_string()),
            Outcome::Ok(Answer::Id(id)) => ("ok", id.clone()),
            Outcome::Ok(Answer::Message { id, deliveries, payload }) => {
                ("ok", format!("{id}:{deliveries} {payload}"))
            }
            Outcome::Fail(why) => ("fail", why.clone()),
            Outcome::Info(why) => ("info", why.clone()),
        };
        let (op, _) = in_words(action);
        self.write(&Event { at: *returned, event, client: *client, node: *node, op, key, value });
    }

    /// What the nemesis did, between what the clients did.
    pub fn note(&self, at: u64, what: &str) {
        self.write(&Event {
            at,
            event: "nemesis",
            client: 0,
            node: 0,
            op: "",
            key: "",
            value: what.to_owned(),
        });
    }

    fn write(&self, event: &Event<'_>) {
        let mut line = serde_json::to_vec(event).unwrap();
        line.push(b'\n');
        self.file.lock().unwrap().write_all(&line).unwrap();
    }

    /// Writes what is still in memory and keeps the file; gives its name.
    pub fn keep(&self) -> PathBuf {
        self.file.lock().unwrap().flush().unwrap();
        let kept = self.path.with_extension("kept.jsonl");
        fs::copy(&self.path, &kept).unwrap();
        kept
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("the history up to here: {}", self.keep().display());
        }
        let _ = fs::remove_file(&self.path);
    }
}

fn in_words(action: &Action) -> (&'static str, String) {
    match action {
        Action::Get => ("get", String::new()),
        Action::Set { value } => ("set", value.to_string()),
        Action::Incr => ("incr", String::new()),
        Action::Lock { owner, lease_ms } => ("lock", format!("{owner} {lease_ms}")),
        Action::Unlock { owner, token } => ("unlock", format!("{owner} {}", token.unwrap_or(0))),
        Action::Push { payload } => ("push", payload.clone()),
        Action::Pop { lease_ms } => ("pop", lease_ms.to_string()),
        Action::Ack { receipt } => ("ack", receipt.clone()),
    }
}
