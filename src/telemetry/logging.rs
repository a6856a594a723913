//! The log: one line an event, on standard output or in `logfile`, at a level that can change while the node runs.
//!
//! Levels have Redis's names. Libraries speak only from `warning` up, whatever the level, because `debug` is wanted
//! to follow this node and not its HTTP library.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::io::IsTerminal;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;

use thiserror::Error;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::Registry;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;

use crate::clock::Clock;
use crate::types::WallMillis;

/// How much is told (`loglevel`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Level {
    /// Everything; for development.
    Debug,
    /// Much, but not each command.
    Verbose,
    /// What an operator wants to know.
    #[default]
    Notice,
    /// Only what needs attention.
    Warning,
}

impl Level {
    /// Redis's word for it, in any case; `None` for another word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Level> {
        [Level::Debug, Level::Verbose, Level::Notice, Level::Warning]
            .into_iter()
            .find(|level| level.word().eq_ignore_ascii_case(word))
    }

    /// Redis's word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Verbose => "verbose",
            Level::Notice => "notice",
            Level::Warning => "warning",
        }
    }

    /// What passes: this crate's events up to the level, the libraries' only from warnings up.
    fn filter(self) -> Targets {
        let own = match self {
            Level::Debug => LevelFilter::TRACE,
            Level::Verbose => LevelFilter::DEBUG,
            Level::Notice => LevelFilter::INFO,
            Level::Warning => LevelFilter::WARN,
        };
        Targets::new().with_target("holdfast", own).with_default(LevelFilter::WARN)
    }
}

/// Why there is no log.
#[derive(Debug, Error)]
pub enum LoggingError {
    #[error("logfile {path} cannot be opened: {error}", path = path.display())]
    Open { path: PathBuf, error: io::Error },
    #[error("this process has a log already")]
    Installed,
}

/// The running log.
#[derive(Clone, Debug)]
pub struct Logging {
    filter: reload::Handle<Targets, Registry>,
}

impl Logging {
    /// Starts the log of this process; a second call is refused. Without `logfile` lines go to standard output. An
    /// existing file is continued.
    pub fn start(
        level: Level,
        logfile: Option<&Path>,
        clock: Arc<dyn Clock>,
    ) -> Result<Logging, LoggingError> {
        let (writer, colours) = match logfile {
            Some(path) => (BoxMakeWriter::new(Mutex::new(open(path)?)), false),
            None => (BoxMakeWriter::new(io::stdout), io::stdout().is_terminal()),
        };
        let (subscriber, logging) = build(level, writer, colours, clock);
        tracing::subscriber::set_global_default(subscriber).map_err(|_| LoggingError::Installed)?;
        Ok(logging)
    }

    /// Changes the level of all that follows (`CONFIG SET loglevel`).
    pub fn set_level(&self, level: Level) {
        // Fails only when the subscriber is gone, and then nobody reads the log.
        let _ = self.filter.reload(level.filter());
    }
}

fn open(path: &Path) -> Result<std::fs::File, LoggingError> {
    let options = OpenOptions::new().create(true).append(true).open(path);
    options.map_err(|error| LoggingError::Open { path: path.to_owned(), error })
}

fn build(
    level: Level,
    writer: BoxMakeWriter,
    colours: bool,
    clock: Arc<dyn Clock>,
) -> (impl Subscriber + Send + Sync, Logging) {
    let (filter, handle) = reload::Layer::new(level.filter());
    let lines =
        tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colours).with_timer(Utc { clock });
    (tracing_subscriber::registry().with(lines.with_filter(filter)), Logging { filter: handle })
}

/// Writes `2026-11-22T09:30:00.123Z`.
struct Utc {
    clock: Arc<dyn Clock>,
}

impl FormatTime for Utc {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        write!(w, "{}", UtcTime(self.clock.wall()))
    }
}

/// A wall clock reading that displays as UTC, with milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct UtcTime(pub WallMillis);

impl fmt::Display for UtcTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, millis) = (self.0.0 / 1000, self.0.0 % 1000);
        let (year, month, day) = civil_from_days(seconds / 86_400);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
///
/// Howard Hinnant's `civil_from_days`: years begin in March, so that the leap day is a year's last, and 400 years
/// (146,097 days) repeat.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // 0000-03-01 is day 0.
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::types::Millis;

    #[test]
    fn times_are_printed_in_utc() {
        for (millis, printed) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
            (1_709_251_200_000, "2024-03-01T00:00:00.000Z"),
            (4_102_444_799_001, "2099-12-31T23:59:59.001Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(UtcTime(WallMillis(millis)).to_string(), printed);
        }
    }

    #[test]
    fn levels_are_known_by_redis_words() {
        assert_eq!(Level::from_word("VERBOSE"), Some(Level::Verbose));
        assert_eq!(Level::from_word("info"), None);
        assert_eq!(Level::default().word(), "notice");
    }

    #[test]
    fn the_level_decides_what_is_written_and_can_be_changed() {
        let clock = Arc::new(ManualClock::default());
        clock.advance(Millis(1_709_251_199_999));
        let written = Written::default();
        let writer = written.clone();
        let writer = BoxMakeWriter::new(move || writer.clone());
        let (subscriber, logging) = build(Level::Notice, writer, false, clock);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(index = 7, "told");
            tracing::debug!("not told");
            tracing::info!(target: "hyper", "of a library");
            logging.set_level(Level::Verbose);
            tracing::debug!("told now");
            logging.set_level(Level::Warning);
            tracing::info!("no more");
        });
        let written = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = written.lines().collect();
        assert_eq!(lines.len(), 2, "{written}");
        assert!(lines[0].starts_with("2024-02-29T23:59:59.999Z  INFO"), "{written}");
        assert!(lines[0].ends_with("told index=7"), "{written}");
        assert!(lines[1].ends_with("told now"), "{written}");
    }

    /// Shared memory that lines are written to.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
