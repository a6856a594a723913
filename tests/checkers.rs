//! The checkers of histories and logs, on histories whose verdict is known, on random ones, and against each other: a
//! checker that passes everything would pass every run.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod sim {
    pub mod model;
    pub mod replay;
}
mod support;

mod checks {
    mod history;
    mod linearizability;
    mod replay;
}
