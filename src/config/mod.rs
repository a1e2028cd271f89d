//! Turns a YAML file into checked settings, or into a list of all its faults. Pure except for [`read`] and
//! [`missing_folders`].
//!
//! ```text
//! text ─▶ yaml: key -> (line, value) ─▶ keys: each taken once, checked, noted ─▶ Settings, or every fault
//!                                            └─▶ contradictions; unknown keys: warnings
//! ```
//! A settings file of the Go meta-proxy works unchanged, with all variants that its reader allows: keys in any case,
//! numbers in quotes, lists as text with commas. README, Settings documents each key.

mod contradictions;
mod fault;
mod keys;
mod listeners;
mod settings;
pub mod spelling;
mod tags;
#[cfg(test)]
mod tests;
mod values;
mod yaml;

use std::fs::File;
use std::io::{self, Read};
use std::mem;
use std::path::Path;
use std::time::Duration;

pub use self::fault::Fault;
use self::keys::Keys;
pub use self::keys::is_filter;
pub use self::listeners::ListenerSettings;
pub use self::settings::{
    AcceptLimits, ClientLimits, Keep, LogSettings, MetricSettings, Settings, StopSettings,
    UpstreamLimits, ZooKeeperSettings,
};
pub use self::tags::MetricKind;
pub use self::values::{Change, Reload, Setting, Values};
use Reload::{Live, NeedsRestart};

const MAX_BYTES: u64 = 1024 * 1024;

const MIB: usize = 1024 * 1024;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The outcome of reading the settings.
#[derive(Debug)]
pub struct Checked {
    /// The settings, or every fault.
    pub settings: Result<Settings, Vec<Fault>>,
    /// Warnings: keys that work, but perhaps not as the operator expects.
    pub warnings: Vec<Fault>,
    /// All keys that a settings file can have.
    pub known: Vec<String>,
}

impl Checked {
    fn unreadable(line: u64, what: String) -> Self {
        let faults = vec![Fault { line, key: String::new(), what }];
        Checked { settings: Err(faults), warnings: Vec::new(), known: Vec::new() }
    }
}

/// Reads a settings file. Without `needs_zookeeper` the block `zookeeper` may be missing.
pub fn read(path: &Path, needs_zookeeper: bool) -> Checked {
    match File::open(path) {
        Ok(file) => read_from(file, needs_zookeeper),
        Err(e) => Checked::unreadable(0, e.to_string()),
    }
}

/// Reads settings from an open file or a pipe.
pub fn read_from(source: impl io::Read, needs_zookeeper: bool) -> Checked {
    let mut text = String::new();
    match source.take(MAX_BYTES + 1).read_to_string(&mut text) {
        Err(e) => Checked::unreadable(0, e.to_string()),
        Ok(_) if text.len() as u64 > MAX_BYTES => {
            Checked::unreadable(0, format!("want at most {MAX_BYTES} bytes, got more"))
        }
        Ok(_) => parse(&text, needs_zookeeper),
    }
}

/// Checks the text of a settings file.
pub fn parse(text: &str, needs_zookeeper: bool) -> Checked {
    let entries = match yaml::read(text) {
        Ok(entries) => entries,
        Err((line, what)) => return Checked::unreadable(line, what),
    };
    let mut keys = Keys::new(entries);
    let mut settings = all(&mut keys, needs_zookeeper);
    contradictions::check(&settings, &mut keys);
    keys.report_rest();
    settings.values = mem::take(&mut keys.values);
    let Keys { faults, warnings, known, .. } = keys;
    let settings = if faults.is_empty() { Ok(settings) } else { Err(faults) };
    Checked { settings, warnings, known }
}

/// Whether most keys of a text are settings, which is never so in a log.
pub fn looks_like_settings(text: &str) -> bool {
    let entries = yaml::read(text).unwrap_or_default();
    let known = parse("", false).known;
    let is_known =
        |key: &str| known.iter().any(|known| known == key || known.starts_with(&format!("{key}.")));
    let keys: Vec<String> = entries.iter().map(|entry| entry.key.to_lowercase()).collect();
    let keys: Vec<&String> = keys.iter().filter(|key| !key.contains('.')).collect();
    let settings = keys.iter().filter(|key| is_known(key)).count();
    2 * settings > keys.len()
}

/// Every setting: its key, its range, its default, and whether a change needs a restart.
fn all(s: &mut Keys, needs_zookeeper: bool) -> Settings {
    let workers = s.number("workers", 4..=1024, 64, NeedsRestart);
    let max_connections_per_address =
        s.number("limits.max_connections_per_address", 1..=1_000_000, 4_096, Live);
    let max_unread_total_bytes =
        s.number("limits.max_unread_total_bytes", MIB..=64 * 1024 * MIB, 256 * MIB, Live);
    let has_zookeeper = s.has("zookeeper") || needs_zookeeper;
    let address = s.host_ports("zookeeper.address", has_zookeeper, Live);
    let root = s.znode_path("zookeeper.root", has_zookeeper, Live);
    let cache = "zookeeper.table_watcher_cache_capacity";
    let zookeeper = ZooKeeperSettings {
        timeout: s.ms("zookeeper.timeout", 100..=600_000, 6_000, Live),
        cache_capacity: s.number(cache, 1..=1_000_000, 1_024, Live),
        digest: s.digest("zookeeper.digest", Live),
        clusters_root: s.znode_path_beside("zookeeper.clusters_root", &root, Live),
        control_root: s.znode_path_beside("zookeeper.control_root", &root, Live),
        control_digest: s.digest("zookeeper.control_digest", Live),
        preload: s.flag("zookeeper.preload", false, Live),
        hold: s.flag("zookeeper.hold", true, Live),
        state_file: s.file("zookeeper.state_file", NeedsRestart),
        address,
        root,
    };
    let kind = match s.one_of("metric.type", &["prometheus", "falcon"], NeedsRestart) {
        0 => MetricKind::Prometheus,
        _ => MetricKind::Falcon,
    };
    Settings {
        listen: s.address("listen", "0.0.0.0:34601", NeedsRestart),
        listeners: s.listeners("listeners", NeedsRestart),
        workers,
        query_timeout: s.ms("query_timeout_ms", 100..=60_000, 1_500, Live),
        accept: AcceptLimits {
            max_connections: s.number("limits.max_connections", 1..=1_000_000, 65_536, Live),
            max_connections_per_address,
            keepalive: s.seconds("limits.keepalive_s", 6..=7_200, 60, Live),
        },
        client: ClientLimits {
            max_frame_bytes: s.number("limits.max_frame_bytes", 512..=MIB, 65_536, Live),
            max_pending: s.number("limits.max_pending_per_client", 1..=65_536, 1_024, Live),
            // Its size also sets the size of the queue to `zk-watch`, which cannot change.
            max_pending_total: s.number("limits.max_pending", 1..=1_000_000, 100_000, NeedsRestart),
            max_unread_bytes: s.number("limits.max_unread_bytes", 4_096..=64 * MIB, 4 * MIB, Live),
            max_unread_total_bytes,
            frame_timeout: s.ms("limits.frame_timeout_ms", 100..=600_000, 10_000, Live),
            unread_timeout: s.ms("limits.unread_timeout_ms", 100..=600_000, 30_000, Live),
        },
        upstream: UpstreamLimits {
            max_calls: s.number("max_calls_per_cluster", 1..=64, 8, NeedsRestart),
            probe_interval: s.seconds("probe_interval_s", 0..=3_600, 10, NeedsRestart),
        },
        zookeeper: has_zookeeper.then_some(zookeeper),
        // The Go proxy uses this port for Prometheus.
        admin: s.address_or_none("admin.listen", "0.0.0.0:9091", NeedsRestart),
        advertise: s.host_port("admin.advertise", NeedsRestart),
        metric: MetricSettings {
            kind,
            tags: s.tags("metric.tags", kind, NeedsRestart),
            by_table: s.flag("metric.by_table", true, NeedsRestart),
            falcon_agent: s.address("metric.falcon_agent", "127.0.0.1:1988", NeedsRestart),
            falcon_step: s.seconds("metric.falcon_step_s", 1..=3_600, 60, NeedsRestart),
        },
        log: LogSettings {
            level: s.log_filter("log.level", "info", Live),
            json: s.one_of("log.format", &["text", "json"], Live) == 1,
            keep: Keep {
                max_bytes: MIB as u64 * s.number("log.max_file_mb", 1..=1_000_000, 500, Live),
                max_age: DAY * s.number("log.max_file_age_days", 1..=36_500, 7, Live),
                max_files: s.number("log.max_files", 1..=10_000, 10, Live),
            },
            access_sample: s.number("log.access_sample", 0..=1_000_000_000, 0, Live),
        },
        stop: StopSettings {
            delay: s.ms("stop.delay", 0..=600_000, 0, Live),
            min_age: s.ms("stop.min_age", 0..=600_000, 61_000, Live),
            grace: s.ms("stop.grace", 100..=3_600_000, 70_000, Live),
        },
        values: Values::default(),
    }
}

/// Settings that name a file in a folder that does not exist.
pub fn missing_folders(settings: &Settings) -> Vec<Fault> {
    let state_file = settings.zookeeper.as_ref().and_then(|zk| zk.state_file.as_deref());
    let parent = state_file.and_then(Path::parent).filter(|path| !path.as_os_str().is_empty());
    let missing = parent.filter(|folder| !folder.is_dir());
    let fault = |folder: &Path| {
        let key = "zookeeper.state_file";
        let what = format!("want a file in a folder that is there, got {}", folder.display());
        Fault { line: settings.values.line(key), key: key.to_owned(), what }
    };
    missing.map(fault).into_iter().collect()
}
