//! The log: one line per event that matters to an operator, and only a few lines per second of a kind that a client can
//! cause.
//!
//! ```text
//! log macros ─▶ Logger ─ filter ─▶ line (text, JSON) ─▶ queue, 4 MiB ─▶ thread log ─▶ stderr or file
//!                                     full: dropped, counted ─┘             └─ fails: the same
//! ```
//! Only one thread waits for the disk. If each worker wrote by itself, a stalled disk, or a stderr pipe without a
//! reader, would block that worker, and all others behind it at the lock of the file. The price: lines logged just
//! before SIGKILL may be lost. A panic and the end of the process wait until the log is written, at most for
//! [`FLUSH_LIMIT`]. When writing works again, the log says how many lines were lost.
//!
//! A message has fields as `key=value`, with the same keys everywhere: `table`, `cluster`, `meta`, `client`, `conn`,
//! `host`, `file`, `znode`, `zxid`. JSON also has them under their names.

mod clock;
mod file;
pub mod line;
mod queue;
mod throttle;
mod writer;

use std::env;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use env_logger::{Builder, DEFAULT_FILTER_ENV};
use log::{Level, Log, Metadata, Record};
use parking_lot::{Mutex, RwLock};

use self::queue::Queue;
pub use self::throttle::{Hidden, Throttle};
use crate::config::LogSettings;

/// A panic and the end of the process wait this long for the log to be written.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

static LOGGER: OnceLock<Arc<Logger>> = OnceLock::new();

struct Logger {
    /// Only decides which records pass; this logger writes them.
    filter: RwLock<env_logger::Logger>,
    levels: Mutex<String>,
    is_json: AtomicBool,
    queue: Queue,
    lost: Mutex<Option<Lost>>,
}

#[derive(Clone, Debug)]
pub struct Lost {
    /// Number since the start.
    pub lines: u64,
    /// Why the last lines were lost.
    pub why: String,
    /// When the last lines were lost.
    pub at: Instant,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let target = module(metadata.target());
        let named = Metadata::builder().level(metadata.level()).target(target).build();
        self.filter.read().enabled(&named)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.queue.push(&self.line(record));
        }
    }

    fn flush(&self) {
        self.queue.flush(FLUSH_LIMIT);
    }
}

impl Logger {
    /// The logger before the settings are known.
    fn new() -> Self {
        Logger {
            filter: RwLock::new(filter(&levels_in_use("info"))),
            levels: Mutex::new(levels_in_use("info")),
            is_json: AtomicBool::new(false),
            queue: Queue::default(),
            lost: Mutex::new(None),
        }
    }

    fn lost(&self, lines: u64, why: &str) {
        let mut lost = self.lost.lock();
        let before = lost.as_ref().map_or(0, |lost| lost.lines);
        let (why, at) = (why.to_owned(), Instant::now());
        *lost = Some(Lost { lines: before + lines, why, at });
    }

    fn apply(&self, settings: &LogSettings) {
        self.set_levels(&levels_in_use(&settings.level));
        self.is_json.store(settings.json, Relaxed);
        self.queue.order(|orders| orders.keep = Some(settings.keep));
    }

    fn set_levels(&self, levels: &str) {
        let filter = filter(levels);
        log::set_max_level(filter.filter());
        *self.filter.write() = filter;
        levels.clone_into(&mut self.levels.lock());
    }

    fn line(&self, record: &Record<'_>) -> String {
        if self.is_json.load(Relaxed) { line::json(record) } else { line::text(record) }
    }

    /// Logs a line about the log itself.
    fn say(&self, level: Level, what: &str) {
        let args = format_args!("{what}");
        self.log(&Record::builder().args(args).level(level).target(module_path!()).build());
    }
}

fn filter(levels: &str) -> env_logger::Logger {
    Builder::new().parse_filters(levels).build()
}

/// The levels of the settings, unless the environment has others.
fn levels_in_use(levels: &str) -> String {
    levels_of_env().unwrap_or(levels.to_owned())
}

/// `RUST_LOG`, which takes precedence over the levels in the settings.
pub fn levels_of_env() -> Option<String> {
    env::var(DEFAULT_FILTER_ENV).ok().filter(|levels| !levels.is_empty())
}

/// The target of a module in the filter: its path in `src`, for example `zk::watcher`.
fn module(target: &str) -> &str {
    target.strip_prefix("meta_proxy::").unwrap_or(target)
}

/// Sends the log to `file`, or to stderr: text, at level info, until [`apply`] changes that. Call this once.
pub fn start(file: Option<&Path>) -> io::Result<()> {
    let out = writer::open(file)?;
    let logger = LOGGER.get_or_init(|| Arc::new(Logger::new()));
    writer::start(logger.clone(), out)?;
    log::set_boxed_logger(Box::new(logger.clone())).map_err(io::Error::other)?;
    log::set_max_level(logger.filter.read().filter());
    log_panics();
    Ok(())
}

/// Sets which lines are logged from now on, and how. See [`levels_of_env`].
pub fn apply(settings: &LogSettings) {
    if let Some(logger) = LOGGER.get() {
        logger.apply(settings);
    }
    ACCESS_SAMPLE.store(settings.access_sample, Relaxed);
}

/// Sets the levels until the next [`apply`], whatever the environment says.
pub fn set_levels(levels: &str) {
    if let Some(logger) = LOGGER.get() {
        logger.set_levels(levels);
    }
}

pub fn levels() -> String {
    LOGGER.get().map(|logger| logger.levels.lock().clone()).unwrap_or_default()
}

/// Lets the thread reopen the log file after all earlier lines, because an external log rotation has renamed it.
/// Returns at once. If the open fails, the log goes on in the old file and says so. Does nothing if the log goes to
/// stderr.
pub fn reopen() {
    if let Some(logger) = LOGGER.get() {
        logger.queue.order(|orders| orders.reopen = true);
    }
}

/// The lost lines, if there are any.
pub fn lost() -> Option<Lost> {
    LOGGER.get()?.lost.lock().clone()
}

/// Waits until all earlier lines are written, at most for [`FLUSH_LIMIT`].
pub fn flush() {
    log::logger().flush();
}

/// Logs panics, with thread and place: each is a bug of the proxy or of a library. A panic of the log's own thread can
/// only go to stderr.
fn log_panics() {
    let to_stderr = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let thread = thread::current();
        if thread.name() == Some(writer::THREAD) {
            return to_stderr(panic);
        }
        let backtrace = std::backtrace::Backtrace::capture();
        log::error!("panic in thread {}: {panic}\n{backtrace}", thread.name().unwrap_or("?"));
        flush();
    }));
}

static ACCESS_SAMPLE: AtomicU64 = AtomicU64::new(0);

/// Whether to write a line for this query to the access log.
pub fn is_access_sample() -> bool {
    static QUERIES: AtomicU64 = AtomicU64::new(0);
    let sample = ACCESS_SAMPLE.load(Relaxed);
    sample > 0 && QUERIES.fetch_add(1, Relaxed).is_multiple_of(sample)
}
