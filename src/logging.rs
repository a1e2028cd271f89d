//! The log: one line per event that an operator decides on, and never more than a few per second of a kind
//! that a client can cause.
//!
//! ```text
//! 2026-11-23T08:00:00.123Z WARN  worker-007 query: table=orders ...
//! ```

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use env_logger::{Builder, Env, Target};

/// Sends the log to `file`, or to stderr. `RUST_LOG` chooses levels and targets, `info` without it.
pub fn start(file: Option<&Path>) -> io::Result<()> {
    // The zookeeper crate logs each event of its connections at INFO and above, what they mean to us
    // is logged where it is decided.
    let mut builder = Builder::from_env(Env::default().default_filter_or("info"));
    builder.filter_module("zookeeper", log::LevelFilter::Off);
    if let Some(path) = file {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        builder.target(Target::Pipe(Box::new(file)));
    }
    builder.format(|out, record| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let target = record.target().rsplit("::").next().unwrap_or_default();
        let thread = thread::current();
        let name = thread.name().unwrap_or("?");
        let level = record.level();
        writeln!(out, "{} {level:<5} {name} {target}: {}", Utc(now), record.args())
    });
    builder.init();
    log_panics();
    Ok(())
}

/// A panic is a fault of ours or of a library; the log names the thread and the place.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        let backtrace = std::backtrace::Backtrace::capture();
        log::error!("panic in thread {}: {panic}\n{backtrace}", thread.name().unwrap_or("?"));
    }));
}

/// A time as RFC 3339 in UTC, with milliseconds.
struct Utc(Duration);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (secs, ms) = (self.0.as_secs(), self.0.subsec_millis());
        let (year, month, day) = civil(secs / 86_400);
        let (h, m, s) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z")
    }
}

/// Year, month and day of a day since 1970, in eras of 400 years that start on March 1st, so that the leap
/// day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Lets a kind of line through five times a second and counts the rest.
pub struct Throttle {
    /// Second of the process << 32 | lines of that second, shown or hidden.
    state: AtomicU64,
}

/// Lines of one kind in one second.
const LINES_PER_SECOND: u64 = 5;

/// Lines of the same kind that were not shown; prints nothing if there were none.
pub struct Hidden(u64);

impl fmt::Display for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            n => write!(f, " ({n} more like this were not shown)"),
        }
    }
}

impl Throttle {
    /// For a `static` beside the line that it throttles.
    pub const fn new() -> Self {
        Throttle { state: AtomicU64::new(0) }
    }

    /// `Some`: log the line, and the number of those hidden before it.
    pub fn pass(&self) -> Option<Hidden> {
        static START: OnceLock<Instant> = OnceLock::new();
        self.pass_at(1 + START.get_or_init(Instant::now).elapsed().as_secs())
    }

    fn pass_at(&self, second: u64) -> Option<Hidden> {
        let next = |state: u64| match state >> 32 == second {
            true => state + 1,
            false => second << 32 | 1,
        };
        let before = self
            .state
            .fetch_update(Relaxed, Relaxed, |state| Some(next(state)))
            .expect("every state has a next one");
        let count = before & 0xffff_ffff;
        if before >> 32 != second {
            return Some(Hidden(count.saturating_sub(LINES_PER_SECOND)));
        }
        (count < LINES_PER_SECOND).then_some(Hidden(0))
    }
}

impl Default for Throttle {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (secs, want) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_399, "2000-02-28T23:59:59.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (1_709_251_200, "2024-03-01T00:00:00.007Z"),
            (4_107_542_399, "2100-02-28T23:59:59.007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.007Z"),
        ] {
            assert_eq!(Utc(Duration::from_millis(secs * 1000 + 7)).to_string(), want);
        }
    }

    #[test]
    fn a_flood_of_lines_is_counted_not_shown() {
        let throttle = Throttle::new();
        let shown = (0..1000).filter(|_| throttle.pass_at(1).is_some()).count();
        assert_eq!(shown, 5);
        assert_eq!(throttle.pass_at(2).unwrap().0, 995);
        assert_eq!(throttle.pass_at(2).unwrap().0, 0);
        assert_eq!(throttle.pass_at(9).unwrap().to_string(), "");
    }
}
