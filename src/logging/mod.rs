//! The log: one line per event that an operator decides on, and never more than a few per second of a kind
//! that a client can cause.
//!
//! ```text
//! log macros ─▶ Logger ─ filter ─▶ line (text, JSON) ─▶ queue, 4 MiB ─▶ thread log ─▶ stderr or file
//!                                     full: dropped, counted ─┘             └─ fails: the same
//! ```
//! Only one thread waits for the disk. A worker that wrote by itself would hang on a disk that stalls, and all
//! others behind it on the lock of the file; so it would on a stderr that is a pipe which nobody reads. The price: what
//! is logged just before SIGKILL may be lost. A panic and the end of the process wait until it is written, but
//! for [`FLUSH_LIMIT`] at most. Lines that were lost are told of as soon as one can be written again.
//!
//! A message has its fields as `key=value`, with the same keys everywhere: `table`, `cluster`, `meta`, `client`,
//! `conn`, `host`, `file`, `znode`, `zxid`. In JSON they stand under their names, too.

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

/// How long a panic, and the end of the process, wait for the log to be written.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

static LOGGER: OnceLock<Arc<Logger>> = OnceLock::new();

struct Logger {
    /// Only decides; what it lets through is written here.
    filter: RwLock<env_logger::Logger>,
    levels: Mutex<String>,
    is_json: AtomicBool,
    queue: Queue,
    lost: Mutex<Option<Lost>>,
}

/// Lines that were lost.
#[derive(Clone, Debug)]
pub struct Lost {
    /// Since the start.
    pub lines: u64,
    /// Why the last were.
    pub why: String,
    /// When the last were.
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
    /// As long as no settings are known.
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

    /// Lines of the log about itself.
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

/// The name by which the filter knows a module: its path in `src`, as `zk::watcher`.
fn module(target: &str) -> &str {
    target.strip_prefix("meta_proxy::").unwrap_or(target)
}

/// Sends the log to `file`, or to stderr: text, at level info, until [`apply`] says more. To be called once.
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

/// Logs by these levels until [`apply`] says otherwise, whatever the environment says.
pub fn set_levels(levels: &str) {
    if let Some(logger) = LOGGER.get() {
        logger.set_levels(levels);
    }
}

/// The levels in use.
pub fn levels() -> String {
    LOGGER.get().map(|logger| logger.levels.lock().clone()).unwrap_or_default()
}

/// Has the log file reopened, after all lines before: somebody has put it aside. Returns at once. If it cannot be
/// opened the old one goes on, and the log says so; nothing happens to stderr.
pub fn reopen() {
    if let Some(logger) = LOGGER.get() {
        logger.queue.order(|orders| orders.reopen = true);
    }
}

/// Lines that were lost, if any were.
pub fn lost() -> Option<Lost> {
    LOGGER.get()?.lost.lock().clone()
}

/// Waits until all that was logged is written, for a while.
pub fn flush() {
    log::logger().flush();
}

/// A panic is a fault of ours or of a library; the log names the thread and the place. One of the log's own thread
/// can only be told on stderr.
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

/// Whether this query is one of those that get a line.
pub fn is_access_sample() -> bool {
    static QUERIES: AtomicU64 = AtomicU64::new(0);
    let sample = ACCESS_SAMPLE.load(Relaxed);
    sample > 0 && QUERIES.fetch_add(1, Relaxed).is_multiple_of(sample)
}
