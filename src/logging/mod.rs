//! The log: one line per event that an operator decides on, and never more than a few per second of a kind
//! that a client can cause.
//!
//! ```text
//! log macros ─▶ Logger ─┬─ filter by level and target ─▶ line (text or JSON) ─▶ thread log ─▶ stderr or file
//!                       └─ the zookeeper crate's ─▶ zk::session, which reads what a server granted
//! ```

mod file;
mod line;
mod throttle;

use std::io;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use env_logger::{Builder, DEFAULT_FILTER_ENV, Target};
use log::{LevelFilter, Log, Metadata, Record};
use parking_lot::RwLock;

use self::file::{Keep, Writer};
pub use self::throttle::{Hidden, Throttle};
use crate::config::LogSettings;
use crate::zk::session;

static LOGGER: OnceLock<Logger> = OnceLock::new();

struct Logger {
    filter: RwLock<env_logger::Logger>,
    writer: Writer,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.read().enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        // The crate logs each event of its connections, and each packet; what they mean to us is logged
        // where it is decided.
        match record.target().starts_with(session::TARGET) {
            true => session::hear(record),
            false => self.filter.read().log(record),
        }
    }

    fn flush(&self) {
        self.writer.flush();
    }
}

/// Sends the log to `file`, or to stderr, as it is by default. To be called once.
pub fn start(file: Option<&Path>, settings: &LogSettings) -> io::Result<()> {
    let writer = Writer::start(file, Keep::from(settings))?;
    let filter = RwLock::new(build(settings, &writer));
    let logger = LOGGER.get_or_init(|| Logger { filter, writer });
    log::set_logger(logger).map_err(io::Error::other)?;
    // All that the crate tells; the filter decides on ours.
    log::set_max_level(LevelFilter::Trace);
    log_panics();
    apply(settings);
    Ok(())
}

/// What is logged from now on, and how. `RUST_LOG` counts more than the levels in the settings.
pub fn apply(settings: &LogSettings) {
    if let Some(logger) = LOGGER.get() {
        *logger.filter.write() = build(settings, &logger.writer);
        logger.writer.keep(Keep::from(settings));
    }
    ACCESS_SAMPLE.store(settings.access_sample, Relaxed);
}

/// Opens the log file anew.
pub fn reopen() {
    if let Some(logger) = LOGGER.get() {
        logger.writer.reopen();
    }
}

/// Waits until all that was logged is written, for a while.
pub fn flush() {
    log::logger().flush();
}

fn build(settings: &LogSettings, writer: &Writer) -> env_logger::Logger {
    let format = if settings.json { line::json } else { line::text };
    let levels = std::env::var(DEFAULT_FILTER_ENV).unwrap_or_else(|_| settings.level.clone());
    Builder::new()
        .parse_filters(&levels)
        .format(move |out, record| format(out, record))
        .target(Target::Pipe(Box::new(writer.clone())))
        .build()
}

/// A panic is a fault of ours or of a library; the log names the thread and the place.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        let backtrace = std::backtrace::Backtrace::capture();
        log::error!("panic in thread {}: {panic}\n{backtrace}", thread.name().unwrap_or("?"));
    }));
}

static ACCESS_SAMPLE: AtomicU64 = AtomicU64::new(0);

/// Whether this query is one of those that get a line.
pub fn is_access_sample() -> bool {
    static QUERIES: AtomicU64 = AtomicU64::new(0);
    let sample = ACCESS_SAMPLE.load(Relaxed);
    sample > 0 && QUERIES.fetch_add(1, Relaxed).is_multiple_of(sample)
}
