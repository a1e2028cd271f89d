//! The settings: a YAML file to checked values, or to all its faults at once. Pure except for reading the file.
//!
//! ```text
//! text ─▶ tree with lines ─▶ Keys: each key taken once, checked, a fault noted and the default used
//!                                └─▶ keys nobody took: warnings       ─▶ Settings, or every fault
//! ```
//! The Go meta-proxy's file works as it is, in the ways its reader allows: keys in any case, numbers in
//! quotes, lists as text with commas. Each key is documented in README, Settings.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::mem;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use crate::wire::address::is_host_port;

/// A larger file is not a settings file.
const MAX_BYTES: u64 = 1024 * 1024;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Labels that metrics have of their own. None is called `cluster` or the like, which are good names for tags.
const OWN_LABELS: &[&str] =
    &["table", "pegasus_cluster", "err", "le", "why", "method", "meta", "kind", "version"];

/// All settings, checked, a part for each who needs them.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Threads that serve queries.
    pub workers: usize,
    /// Time in which a query is answered.
    pub query_timeout: Duration,
    /// Who may connect.
    pub accept: AcceptLimits,
    /// What one client may use.
    pub client: ClientLimits,
    /// What calls to a cluster may use.
    pub upstream: UpstreamLimits,
    /// Where the routes are, unless a routes file is given.
    pub zookeeper: Option<ZooKeeperSettings>,
    /// Where the pages for operators are; `None`: nowhere.
    pub admin: Option<SocketAddr>,
    /// What the proxy counts, and for whom.
    pub metric: MetricSettings,
    /// What is logged, and how the log file is kept.
    pub log: LogSettings,
    /// How the proxy stops.
    pub stop: StopSettings,
    /// Each key with its value, to tell what has changed.
    pub values: Values,
}

/// Values of settings by key, as text.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Values(BTreeMap<String, Value>);

#[derive(Clone, PartialEq, Eq)]
struct Value {
    text: String,
    is_secret: bool,
}

/// One setting that is another than before.
#[derive(Debug, PartialEq, Eq)]
pub struct Change {
    /// The key, `zookeeper.root`.
    pub key: String,
    /// What it was.
    pub old: String,
    /// What it is.
    pub new: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}", self.key, self.old, self.new)
    }
}

impl Values {
    fn note(&mut self, key: String, text: String, is_secret: bool) {
        self.0.insert(key, Value { text, is_secret });
    }

    fn shown(&self, key: &str) -> String {
        match self.0.get(key) {
            None => "nothing".to_owned(),
            Some(Value { is_secret: true, .. }) => "***".to_owned(),
            Some(Value { text, .. }) => text.clone(),
        }
    }

    /// What has changed, by key.
    pub fn changes(&self, new: &Values) -> Vec<Change> {
        let mut keys: Vec<&String> = self.0.keys().chain(new.0.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        keys.retain(|key| self.0.get(*key) != new.0.get(*key));
        let change =
            |key: &String| Change { key: key.clone(), old: self.shown(key), new: new.shown(key) };
        keys.into_iter().map(change).collect()
    }

    /// Takes the new value of one key.
    pub fn take(&mut self, key: &str, new: &Values) {
        match new.0.get(key) {
            Some(value) => self.0.insert(key.to_owned(), value.clone()),
            None => self.0.remove(key),
        };
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.keys().map(|key| (key, self.shown(key)))).finish()
    }
}

/// What the proxy counts, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricSettings {
    /// Who gets the metrics, besides those who fetch them.
    pub kind: MetricKind,
    /// Names and values that every metric has, no name twice.
    pub tags: Vec<(String, String)>,
    /// The open-falcon agent that gets them.
    pub falcon_agent: SocketAddr,
    /// It gets them this often.
    pub falcon_step: Duration,
}

impl MetricSettings {
    /// The tags as labels for Prometheus.
    pub fn labels(&self) -> Vec<(String, String)> {
        self.tags.iter().map(|(name, value)| (label_name(name), value.clone())).collect()
    }
}

/// Who gets the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Who fetches them.
    Prometheus,
    /// An open-falcon agent, too.
    Falcon,
}

/// What is logged, and how the log file is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Levels by target, `info,zk=debug`.
    pub level: String,
    /// An object a line instead of text.
    pub json: bool,
    /// How much of the log file is kept.
    pub keep: Keep,
    /// One of so many queries gets a line; 0: none does.
    pub access_sample: u64,
}

/// How the proxy stops when it is told to by SIGTERM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopSettings {
    /// Between `/readyz` turning bad and the listener closing.
    pub delay: Duration,
    /// An idle connection is closed at this age. A Go client that loses one of less than a minute does not dial again
    /// for a minute (its session keeps the time of its last dial, a little later than ours).
    pub min_age: Duration,
    /// All of it takes at most so long.
    pub grace: Duration,
}

/// Who may connect.
#[derive(Clone, Debug)]
pub struct AcceptLimits {
    /// Connections in all.
    pub max_connections: usize,
    /// Connections from one address.
    pub max_connections_per_address: usize,
    /// Idle time after which the kernel asks whether the client still lives.
    pub keepalive: Duration,
}

/// What one client may use.
#[derive(Clone, Debug)]
pub struct ClientLimits {
    /// Bytes of one request frame.
    pub max_frame_bytes: usize,
    /// Queries under way for one client; one with long arguments counts for several, see `Ask::weight`.
    pub max_pending: u32,
    /// The same in all.
    pub max_pending_total: usize,
    /// Bytes of answers that one client has not taken.
    pub max_unread_bytes: usize,
    /// Bytes of answers that all clients together have not taken, and of frames that they have begun.
    pub max_unread_total_bytes: usize,
    /// Time to finish a frame once it is begun.
    pub frame_timeout: Duration,
    /// Time in which a client must take some of its answers.
    pub unread_timeout: Duration,
}

/// What calls to a cluster may use.
#[derive(Clone, Debug)]
pub struct UpstreamLimits {
    /// Calls to one cluster at once, and so links to one MetaServer.
    pub max_calls: usize,
}

/// How much of the log is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Size at which the file is put aside, bytes.
    pub max_bytes: u64,
    /// Age at which files that were put aside are deleted.
    pub max_age: Duration,
    /// Files that were put aside and are kept.
    pub max_files: usize,
}

/// Where the routes are in ZooKeeper.
#[derive(Clone, PartialEq, Eq)]
pub struct ZooKeeperSettings {
    /// `host:port` of its servers.
    pub address: Vec<String>,
    /// The routes are the children of this znode.
    pub root: String,
    /// The session time-out asked for.
    pub timeout: Duration,
    /// Tables that are cached and watched at most.
    pub cache_capacity: usize,
    /// `user:password` of the digest scheme, if the tables are protected.
    pub digest: Option<String>,
    /// The znode above the clusters, if records of tables may only name theirs.
    pub clusters_root: Option<String>,
    /// Whether all tables are read at start, not only when first asked for.
    pub preload: bool,
    /// Where the last good routes are kept.
    pub state_file: Option<PathBuf>,
}

impl fmt::Debug for ZooKeeperSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZooKeeperSettings")
            .field("address", &self.address)
            .field("root", &self.root)
            .field("timeout", &self.timeout)
            .field("cache_capacity", &self.cache_capacity)
            .field("digest", &self.digest.as_ref().map(|_| "***"))
            .field("clusters_root", &self.clusters_root)
            .field("preload", &self.preload)
            .field("state_file", &self.state_file)
            .finish()
    }
}

/// What is wrong with the settings, or looks so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Line in the file; 0 for what is not there.
    pub line: u64,
    /// The key, `zookeeper.timeout`; empty for the file itself.
    pub key: String,
    /// What was wanted and what was found.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        self.what.fmt(f)
    }
}

/// What reading the settings came to.
#[derive(Debug)]
pub struct Checked {
    /// The settings, or every fault.
    pub settings: Result<Settings, Vec<Fault>>,
    /// Keys that mean nothing here.
    pub warnings: Vec<Fault>,
    /// Keys that were looked for, there or not: all that a settings file can say.
    pub known: Vec<String>,
}

/// Reads a settings file. Without `needs_zookeeper` its block may be missing.
pub fn read(path: &Path, needs_zookeeper: bool) -> Checked {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
    let unreadable = |what: String| Checked {
        settings: Err(vec![Fault { line: 0, key: String::new(), what }]),
        warnings: Vec::new(),
        known: Vec::new(),
    };
    match read {
        Err(e) => unreadable(e.to_string()),
        Ok(_) if text.len() as u64 > MAX_BYTES => {
            unreadable(format!("want at most {MAX_BYTES} bytes, got more"))
        }
        Ok(_) => parse(&text, needs_zookeeper),
    }
}

/// Checks the text of a settings file.
pub fn parse(text: &str, needs_zookeeper: bool) -> Checked {
    let mut notes = Notes::default();
    let tree = match serde_saphyr::from_str::<Spanned<Option<Node>>>(text) {
        Ok(root) => root.value.unwrap_or(Node::Map(Vec::new())),
        Err(e) => {
            let line = e.location().map_or(0, |at| at.line());
            let what = e.without_snippet().to_string();
            notes.faults.push(Fault { line, key: String::new(), what });
            Node::Map(Vec::new())
        }
    };
    let settings = match tree {
        _ if !notes.faults.is_empty() => None,
        Node::Map(entries) => Some(check(Keys::new("", entries), needs_zookeeper, &mut notes)),
        other => {
            notes.fault(1, "", format!("want keys and values, got {other}"));
            None
        }
    };
    let settings = match settings {
        Some(settings) if notes.faults.is_empty() => Ok(settings),
        _ => Err(notes.faults),
    };
    Checked { settings, warnings: notes.warnings, known: notes.known }
}

fn check(mut keys: Keys, needs_zookeeper: bool, notes: &mut Notes) -> Settings {
    let listen = keys.address("listen", "0.0.0.0:34601", notes);
    let workers = keys.number("workers", 4..=1024, 64, notes) as usize;
    let query_timeout = keys.ms("query_timeout_ms", 100..=60_000, 1_500, notes);
    let max_calls = keys.number("max_calls_per_cluster", 1..=64, 8, notes) as usize;

    let mut limits = keys.section("limits", notes);
    let accept = AcceptLimits {
        max_connections: limits.number("max_connections", 1..=1_000_000, 65_536, notes) as usize,
        max_connections_per_address: limits.number(
            "max_connections_per_address",
            1..=1_000_000,
            4_096,
            notes,
        ) as usize,
        keepalive: Duration::from_secs(limits.number("keepalive_s", 6..=7_200, 60, notes)),
    };
    let mib = 1024 * 1024;
    let client = ClientLimits {
        max_frame_bytes: limits.number("max_frame_bytes", 512..=mib, 65_536, notes) as usize,
        max_pending: limits.number("max_pending_per_client", 1..=65_536, 1_024, notes) as u32,
        max_pending_total: limits.number("max_pending", 1..=1_000_000, 100_000, notes) as usize,
        max_unread_bytes: limits.number("max_unread_bytes", 4_096..=64 * mib, 4 * mib, notes)
            as usize,
        max_unread_total_bytes: limits.number(
            "max_unread_total_bytes",
            mib..=64 * 1024 * mib,
            256 * mib,
            notes,
        ) as usize,
        frame_timeout: limits.ms("frame_timeout_ms", 100..=600_000, 10_000, notes),
        unread_timeout: limits.ms("unread_timeout_ms", 100..=600_000, 30_000, notes),
    };
    limits.warn_of_rest(notes);

    let has_zookeeper = keys.has("zookeeper");
    let mut zk = keys.section("zookeeper", notes);
    let zookeeper = (has_zookeeper || needs_zookeeper).then(|| {
        let address = zk.addresses("address", notes);
        let root = zk.znode_path("root", notes).unwrap_or_default();
        ZooKeeperSettings {
            timeout: zk.ms("timeout", 100..=600_000, 6_000, notes),
            cache_capacity: zk.number("table_watcher_cache_capacity", 1..=1_000_000, 1_024, notes)
                as usize,
            digest: zk.digest("digest", notes),
            clusters_root: zk.znode_path_beside("clusters_root", &root, notes),
            preload: zk.flag("preload", notes),
            state_file: zk.file("state_file", notes),
            address,
            root,
        }
    });
    zk.warn_of_rest(notes);

    let mut section = keys.section("admin", notes);
    // A Prometheus that scrapes the Go proxy knows this port.
    let admin = section.address_or_none("listen", "0.0.0.0:9091", notes);
    section.warn_of_rest(notes);

    let mut section = keys.section("metric", notes);
    let kind = section.metric_kind("type", notes);
    let metric = MetricSettings {
        kind,
        tags: section.tags("tags", kind, notes),
        falcon_agent: section.address("falcon_agent", "127.0.0.1:1988", notes),
        falcon_step: Duration::from_secs(section.number("falcon_step_s", 1..=3_600, 60, notes)),
    };
    section.warn_of_rest(notes);

    let mut section = keys.section("log", notes);
    let log = LogSettings {
        level: section.log_filter("level", "info", notes),
        json: section.one_of("format", &["text", "json"], notes) == 1,
        keep: Keep {
            max_bytes: mib * section.number("max_file_mb", 1..=1_000_000, 500, notes),
            max_age: DAY * section.number("max_file_age_days", 1..=36_500, 7, notes) as u32,
            max_files: section.number("max_files", 1..=10_000, 10, notes) as usize,
        },
        access_sample: section.number("access_sample", 0..=1_000_000_000, 0, notes),
    };
    section.warn_of_rest(notes);

    let mut section = keys.section("stop", notes);
    let stop = StopSettings {
        delay: section.ms("delay", 0..=600_000, 0, notes),
        min_age: section.ms("min_age", 0..=600_000, 61_000, notes),
        grace: section.ms("grace", 100..=3_600_000, 70_000, notes),
    };
    section.warn_of_rest(notes);
    keys.warn_of_rest(notes);

    let upstream = UpstreamLimits {
        // A quarter of the workers, so that no cluster can take them all.
        max_calls: max_calls.min((workers / 4).max(1)),
    };
    Settings {
        listen,
        workers,
        query_timeout,
        accept,
        client,
        upstream,
        zookeeper,
        admin,
        metric,
        log,
        stop,
        values: mem::take(&mut notes.values),
    }
}

#[derive(Default)]
struct Notes {
    faults: Vec<Fault>,
    warnings: Vec<Fault>,
    values: Values,
    known: Vec<String>,
}

impl Notes {
    fn fault(&mut self, line: u64, key: &str, what: String) {
        self.faults.push(Fault { line, key: key.to_owned(), what });
    }
}

/// One level of the file. Whoever takes a key checks it.
struct Keys {
    prefix: String,
    entries: Vec<(Spanned<String>, Node)>,
}

impl Keys {
    fn new(prefix: &str, entries: Vec<(Spanned<String>, Node)>) -> Self {
        Keys { prefix: prefix.to_owned(), entries }
    }

    fn full(&self, key: &str) -> String {
        match self.prefix.as_str() {
            "" => key.to_owned(),
            prefix => format!("{prefix}.{key}"),
        }
    }

    fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|(name, _)| name.value.eq_ignore_ascii_case(key))
    }

    fn take(&mut self, key: &str, notes: &mut Notes) -> Option<(u64, Node)> {
        notes.known.push(self.full(key));
        let at = self.entries.iter().position(|(name, _)| name.value.eq_ignore_ascii_case(key))?;
        let (name, node) = self.entries.remove(at);
        Some((name.referenced.line(), node))
    }

    /// The value that `read` makes of a key; the default without it, or with a fault.
    fn read<T: fmt::Debug>(
        &mut self,
        key: &str,
        want: &str,
        default: Option<T>,
        notes: &mut Notes,
        read: impl FnOnce(&Node) -> Option<T>,
    ) -> Option<T> {
        let value = self.read_node(key, want, default, notes, read);
        if let Some(value) = &value {
            notes.values.note(self.full(key), format!("{value:?}"), false);
        }
        value
    }

    fn read_node<T>(
        &mut self,
        key: &str,
        want: &str,
        default: Option<T>,
        notes: &mut Notes,
        read: impl FnOnce(&Node) -> Option<T>,
    ) -> Option<T> {
        let full = self.full(key);
        match self.take(key, notes) {
            Some((line, node)) => {
                let value = read(&node);
                if value.is_none() {
                    notes.fault(line, &full, format!("want {want}, got {node}"));
                }
                value.or(default)
            }
            None => {
                if default.is_none() {
                    notes.fault(0, &full, format!("want {want}, got nothing"));
                }
                default
            }
        }
    }

    fn section(&mut self, key: &str, notes: &mut Notes) -> Keys {
        let entries =
            self.read_node(key, "keys and values", Some(Vec::new()), notes, |node| match node {
                Node::Map(entries) => Some(entries.clone()),
                Node::Null => Some(Vec::new()),
                _ => None,
            });
        Keys::new(&self.full(key), entries.unwrap_or_default())
    }

    fn number(
        &mut self,
        key: &str,
        range: RangeInclusive<u64>,
        default: u64,
        notes: &mut Notes,
    ) -> u64 {
        let want = format!("{}..={}", range.start(), range.end());
        let read = |node: &Node| node.text()?.parse().ok().filter(|n| range.contains(n));
        self.read(key, &want, Some(default), notes, read).unwrap_or(default)
    }

    fn ms(
        &mut self,
        key: &str,
        range: RangeInclusive<u64>,
        default: u64,
        notes: &mut Notes,
    ) -> Duration {
        Duration::from_millis(self.number(key, range, default, notes))
    }

    fn address(&mut self, key: &str, default: &str, notes: &mut Notes) -> SocketAddr {
        let default = default.parse().expect("defaults are good");
        let read = |node: &Node| node.text()?.parse().ok();
        self.read(key, "IP:port", Some(default), notes, read).unwrap_or(default)
    }

    fn address_or_none(
        &mut self,
        key: &str,
        default: &str,
        notes: &mut Notes,
    ) -> Option<SocketAddr> {
        let default = default.parse().expect("defaults are good");
        let read = |node: &Node| match node.text()?.as_str() {
            "none" => Some(None),
            text => text.parse().ok().map(Some),
        };
        self.read(key, "IP:port or none", Some(Some(default)), notes, read).flatten()
    }

    fn addresses(&mut self, key: &str, notes: &mut Notes) -> Vec<String> {
        let read = |node: &Node| {
            let list = node.list()?;
            (!list.is_empty() && list.iter().all(|text| is_host_port(text))).then_some(list)
        };
        self.read(key, "a list of host:port", None, notes, read).unwrap_or_default()
    }

    fn znode_path(&mut self, key: &str, notes: &mut Notes) -> Option<String> {
        self.read(key, "a znode path, /a/b", None, notes, znode_path)
    }

    /// A znode with children that are not those of `root`, if there is one.
    fn znode_path_beside(&mut self, key: &str, root: &str, notes: &mut Notes) -> Option<String> {
        if !self.has(key) {
            return None;
        }
        let read = |node: &Node| znode_path(node).filter(|path| path != root);
        self.read(key, "a znode path, /a/b, and not that of the root", None, notes, read)
    }

    fn flag(&mut self, key: &str, notes: &mut Notes) -> bool {
        let read = |node: &Node| node.text()?.parse().ok();
        self.read(key, "true or false", Some(false), notes, read).unwrap_or(false)
    }

    fn file(&mut self, key: &str, notes: &mut Notes) -> Option<PathBuf> {
        let read = |node: &Node| node.text().filter(|text| !text.is_empty());
        let path = self.read(key, "a path", Some(String::new()), notes, read)?;
        (!path.is_empty()).then(|| path.into())
    }

    /// The value is a secret and never shown.
    fn digest(&mut self, key: &str, notes: &mut Notes) -> Option<String> {
        let (line, node) = self.take(key, notes)?;
        let good = |text: &String| text.split_once(':').is_some_and(|(user, _)| !user.is_empty());
        let digest = node.text().filter(good);
        if digest.is_none() {
            notes.fault(line, &self.full(key), "want user:password, got something else".to_owned());
        }
        notes.values.note(self.full(key), digest.clone().unwrap_or_default(), true);
        digest
    }

    /// Which of the names it is; the first without the key.
    fn one_of(&mut self, key: &str, names: &[&str], notes: &mut Notes) -> usize {
        let read = |node: &Node| {
            let text = node.text()?;
            names.iter().find(|name| **name == text)
        };
        let name = self.read(key, &names.join(" or "), names.first(), notes, read);
        names.iter().position(|known| Some(known) == name).unwrap_or(0)
    }

    fn log_filter(&mut self, key: &str, default: &str, notes: &mut Notes) -> String {
        let read =
            |node: &Node| node.list().map(|parts| parts.join(",")).filter(|text| is_filter(text));
        let want = "a level, or a list of target=level";
        let default = default.to_owned();
        self.read(key, want, Some(default.clone()), notes, read).unwrap_or(default)
    }

    fn metric_kind(&mut self, key: &str, notes: &mut Notes) -> MetricKind {
        let default = MetricKind::Prometheus;
        let read = |node: &Node| match node.text()?.as_str() {
            "prometheus" => Some(MetricKind::Prometheus),
            "falcon" => Some(MetricKind::Falcon),
            _ => None,
        };
        self.read(key, "prometheus or falcon", Some(default), notes, read).unwrap_or(default)
    }

    fn tags(&mut self, key: &str, kind: MetricKind, notes: &mut Notes) -> Vec<(String, String)> {
        let full = self.full(key);
        let Some((line, node)) = self.take(key, notes) else {
            notes.values.note(full, "[]".to_owned(), false);
            return Vec::new();
        };
        notes.values.note(full.clone(), node.to_string(), false);
        let list = if let Node::Null = node { Some(Vec::new()) } else { node.list() };
        let Some(list) = list else {
            notes.fault(line, &full, format!("want a list of name=value, got {node}"));
            return Vec::new();
        };
        let mut tags: Vec<(String, String)> = Vec::new();
        for tag in list {
            let want = match tag.split_once('=') {
                None => "name=value",
                Some((name, _)) if tags.iter().any(|(other, _)| is_same_label(other, name)) => {
                    "each name once"
                }
                Some((name, _)) if !is_tag_name(name, kind) => match kind {
                    MetricKind::Prometheus => {
                        "a label name, [A-Za-z_][A-Za-z0-9_]*, without __ before it"
                    }
                    MetricKind::Falcon => "a tag name, without spaces and commas, not `name`",
                },
                Some((name, _)) if OWN_LABELS.iter().any(|own| is_same_label(own, name)) => {
                    "another name than the proxy's own labels"
                }
                Some((name, value)) => {
                    tags.push((name.to_owned(), value.to_owned()));
                    continue;
                }
            };
            notes.fault(line, &full, format!("want {want}, got {tag:?}"));
        }
        tags
    }

    fn warn_of_rest(self, notes: &mut Notes) {
        for (name, _) in &self.entries {
            let what = "nothing reads this key".to_owned();
            let (line, key) = (name.referenced.line(), self.full(&name.value));
            notes.warnings.push(Fault { line, key, what });
        }
    }
}

/// An absolute path without empty or relative parts.
fn znode_path(node: &Node) -> Option<String> {
    let path = node.text()?;
    let good = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    let parts = path.strip_prefix('/')?;
    parts.split('/').all(good).then_some(path)
}

/// Whether it is `info`, `zk=debug` or several of them.
fn is_filter(text: &str) -> bool {
    text.split(',').all(|part| {
        let level = part.split_once('=').map_or(part, |(_, level)| level);
        level.trim().parse::<log::LevelFilter>().is_ok()
    })
}

/// Whether metrics may have a tag of this name, as far as their readers go.
fn is_tag_name(name: &str, kind: MetricKind) -> bool {
    match kind {
        MetricKind::Prometheus => {
            let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            let goes_on = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            starts && goes_on && !name.starts_with("__")
        }
        MetricKind::Falcon => {
            // The first tag of every metric is its name.
            !matches!(name, "" | "name") && !name.contains(|c: char| c == ',' || c.is_whitespace())
        }
    }
}

/// The label of a tag. What falcon allows in a name, Prometheus need not.
fn label_name(tag: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name: String = tag.chars().map(allowed).collect();
    // A digit may not come first, and what begins so is reserved.
    match name.starts_with(|c: char| c.is_ascii_digit()) || name.starts_with("__") {
        true => format!("tag_{name}"),
        false => name,
    }
}

fn is_same_label(tag: &str, other: &str) -> bool {
    label_name(tag) == label_name(other)
}

/// A value of the file, its scalars as text.
#[derive(Clone, Debug)]
enum Node {
    Null,
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<(Spanned<String>, Node)>),
}

impl Node {
    fn text(&self) -> Option<String> {
        match self {
            Node::Scalar(text) => Some(text.trim().to_owned()),
            _ => None,
        }
    }

    /// A list of scalars, or one text with commas.
    fn list(&self) -> Option<Vec<String>> {
        match self {
            Node::List(items) => items.iter().map(Node::text).collect(),
            Node::Scalar(text) => {
                Some(text.split(',').map(|part| part.trim().to_owned()).collect())
            }
            Node::Null | Node::Map(_) => None,
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::Null => write!(f, "nothing"),
            Node::Scalar(text) => write!(f, "{text:?}"),
            Node::List(items) => {
                let items: Vec<String> = items.iter().map(Node::to_string).collect();
                write!(f, "[{}]", items.join(", "))
            }
            Node::Map(_) => write!(f, "keys and values"),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a setting")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example that comes with the Go meta-proxy, to the letter.
    const GO: &str = "\
zookeeper:
  address: [127.0.0.1:22181,127.0.0.2:22181]
  root: /pegasus-cluster
  timeout: 1000 # ms
  table_watcher_cache_capacity: 1024

metric:
  type: falcon
  tags: [region=local_tst,service=meta_proxy]
";

    fn lines(faults: &[Fault]) -> Vec<String> {
        faults.iter().map(Fault::to_string).collect()
    }

    #[test]
    fn the_go_proxys_file_works_as_it_is() {
        let checked = parse(GO, true);
        assert_eq!(checked.warnings, []);
        let settings = checked.settings.unwrap();
        let want = ZooKeeperSettings {
            address: vec!["127.0.0.1:22181".into(), "127.0.0.2:22181".into()],
            root: "/pegasus-cluster".into(),
            timeout: Duration::from_secs(1),
            cache_capacity: 1024,
            digest: None,
            clusters_root: None,
            preload: false,
            state_file: None,
        };
        assert_eq!(settings.zookeeper, Some(want.clone()));
        assert_eq!(settings.listen.to_string(), "0.0.0.0:34601");
        let loose = GO
            .replace("[127.0.0.1:22181,127.0.0.2:22181]", "127.0.0.1:22181,127.0.0.2:22181")
            .replace("timeout: 1000", "Timeout: '1000'");
        assert_eq!(parse(&loose, true).settings.unwrap().zookeeper, Some(want));
    }

    #[test]
    fn all_faults_at_once_with_line_key_wanted_and_found() {
        let text = "\
listen: here
worker: 9
zookeeper:
  address: [zk1]
  timeout: 0
  extra: 1
metric: {type: statsd, tags: [region]}
limits:
  max_frame_bytes: many
";
        let checked = parse(text, true);
        assert_eq!(
            lines(&checked.settings.unwrap_err()),
            [
                r#"line 1: listen: want IP:port, got "here""#,
                r#"line 9: limits.max_frame_bytes: want 512..=1048576, got "many""#,
                r#"line 4: zookeeper.address: want a list of host:port, got ["zk1"]"#,
                "zookeeper.root: want a znode path, /a/b, got nothing",
                r#"line 5: zookeeper.timeout: want 100..=600000, got "0""#,
                r#"line 7: metric.type: want prometheus or falcon, got "statsd""#,
                r#"line 7: metric.tags: want name=value, got "region""#,
            ]
        );
        assert_eq!(
            lines(&checked.warnings),
            [
                "line 6: zookeeper.extra: nothing reads this key",
                "line 2: worker: nothing reads this key"
            ]
        );
    }

    #[test]
    fn files_that_are_no_settings() {
        for (why, text, want) in [
            ("a list", "- 1", "want keys and values, got [\"1\"]"),
            ("a word", "hello", "want keys and values, got \"hello\""),
            ("broken", "a: [1", "line "),
            ("a key twice", "workers: 8\nworkers: 9\n", "line 2: "),
            ("a section that is none", "limits: 7", "limits: want keys and values, got \"7\""),
        ] {
            let faults = parse(text, false).settings.unwrap_err();
            assert!(faults[0].to_string().contains(want), "{why}: {}", faults[0]);
        }
        assert!(parse("", false).settings.is_ok(), "all has defaults but ZooKeeper");
        let faults = parse("", true).settings.unwrap_err();
        assert_eq!(faults.len(), 2, "{faults:?}");
    }

    #[test]
    fn what_has_changed_is_told_by_key_and_secrets_are_not() {
        let values = |text: &str| parse(text, true).settings.unwrap().values;
        let zk = "zookeeper: {address: [h:1], root: /r, digest: 'u:old'}\n";
        let old = values(zk);
        let spelled = format!("{zk}workers: '64'\nmetric: {{type: prometheus}}\n");
        assert_eq!(old.changes(&values(&spelled)), [], "the defaults, spelled out");
        let mut new = values(
            "zookeeper: {address: [h:1], root: /s, digest: 'u:new', clusters_root: /c}\n\
             query_timeout_ms: 900\nlog: {format: json}\n",
        );
        let shown: Vec<_> = old.changes(&new).iter().map(Change::to_string).collect();
        assert_eq!(
            shown,
            [
                r#"log.format: "text" -> "json""#,
                "query_timeout_ms: 1500 -> 900",
                r#"zookeeper.clusters_root: nothing -> "/c""#,
                "zookeeper.digest: *** -> ***",
                r#"zookeeper.root: "/r" -> "/s""#,
            ]
        );
        assert!(!format!("{new:?}").contains("u:new"), "a secret");
        for change in old.changes(&new) {
            new.take(&change.key, &old);
        }
        assert_eq!(old.changes(&new), []);
    }

    #[test]
    fn optional_keys() {
        let text = "zookeeper: {address: 'h:1', root: /r, digest: 'u:p', clusters_root: /c, preload: true, state_file: /s}";
        let zookeeper = parse(text, true).settings.unwrap().zookeeper.unwrap();
        assert_eq!(zookeeper.digest.as_deref(), Some("u:p"));
        assert_eq!(zookeeper.clusters_root.as_deref(), Some("/c"));
        assert!(zookeeper.preload);
        assert_eq!(zookeeper.state_file, Some("/s".into()));
        assert!(!format!("{zookeeper:?}").contains("u:p"), "a secret");
        let text = "zookeeper: {address: 'h:1', root: /r, digest: secret, clusters_root: /r, preload: 7, state_file: []}";
        let faults = lines(&parse(text, true).settings.unwrap_err()).join("\n");
        for key in [
            "digest",
            "clusters_root: want a znode path, /a/b, and not that of the root",
            "preload",
            "state_file",
        ] {
            assert!(faults.contains(key), "{key} in {faults}");
        }
        assert!(!faults.contains("secret"), "{faults}");
    }

    #[test]
    fn logs_and_stops() {
        let settings = parse("", false).settings.unwrap();
        assert_eq!(settings.log.keep.max_bytes, 500 << 20);
        assert_eq!(settings.stop.min_age, Duration::from_secs(61));
        let text = "{stop: {grace: 100}, log: {level: 'info,zk=debug', format: json}}";
        let settings = parse(text, false).settings.unwrap();
        assert_eq!((settings.log.level.as_str(), settings.log.json), ("info,zk=debug", true));
        for bad in [
            "{log: {level: loud}}",
            "{log: {level: 'a=b=info'}}",
            "{log: {format: xml}}",
            "{stop: {grace: 0}}",
        ] {
            assert!(parse(bad, false).settings.is_err(), "{bad}");
        }
    }

    #[test]
    fn metrics_have_the_tags_of_the_file() {
        let metric = |text: &str| parse(text, false).settings.map(|settings| settings.metric);
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let default = MetricSettings {
            kind: MetricKind::Prometheus,
            tags: Vec::new(),
            falcon_agent: "127.0.0.1:1988".parse().unwrap(),
            falcon_step: Duration::from_secs(60),
        };
        assert_eq!(metric("").unwrap(), default);
        assert_eq!(metric("metric: {tags: }").unwrap(), default);
        let text = "metric: {type: falcon, tags: 'region=a b, x-y=b=c', falcon_agent: '10.0.0.1:1', falcon_step_s: 5}";
        let want = MetricSettings {
            kind: MetricKind::Falcon,
            tags: vec![pair("region", "a b"), pair("x-y", "b=c")],
            falcon_agent: "10.0.0.1:1".parse().unwrap(),
            falcon_step: Duration::from_secs(5),
        };
        assert_eq!(metric(text).unwrap(), want);

        let text = "metric: {type: falcon, tags: 'data-center=x, 9a=b, é=c, __d=e, f=g'}";
        let labels = metric(text).unwrap().labels();
        let want =
            [("data_center", "x"), ("tag_9a", "b"), ("_", "c"), ("tag___d", "e"), ("f", "g")];
        assert_eq!(labels, want.map(|(name, value)| pair(name, value)));

        for (why, kind, tags, want) in [
            ("no list", "prometheus", "{a: b}", "want a list of name=value, got keys and values"),
            ("no value", "prometheus", "[a]", r#"want name=value, got "a""#),
            ("a digit first", "prometheus", "[9a=b]", "want a label name"),
            ("a dash", "prometheus", "[x-y=b]", "want a label name"),
            ("no name", "prometheus", "['=b']", "want a label name"),
            ("reserved", "prometheus", "[__a=b]", "want a label name"),
            ("no name", "falcon", "['=b']", "want a tag name"),
            ("a space", "falcon", "[a b=c]", "want a tag name"),
            ("its own label", "prometheus", "[table=x]", "want another name"),
            ("the first tag", "falcon", "[name=x]", "want a tag name"),
            ("its own label", "falcon", "[pegasus-cluster=x]", "want another name"),
            ("twice as labels", "falcon", "[a-b=1, a_b=2]", r#"want each name once, got "a_b=2""#),
            ("twice", "prometheus", "[a=1, b=2, a=3]", r#"want each name once, got "a=3""#),
        ] {
            let text = format!("metric:\n  type: {kind}\n  tags: {tags}\n");
            let faults = lines(&metric(&text).unwrap_err());
            let want = format!("line 3: metric.tags: {want}");
            assert!(faults.len() == 1 && faults[0].starts_with(&want), "{why}: {faults:?}");
        }
    }

    #[test]
    fn pages_are_where_the_go_proxys_are_or_nowhere() {
        for (text, want) in [
            ("", Some("0.0.0.0:9091")),
            ("admin: {listen: '[::1]:80'}", Some("[::1]:80")),
            ("admin: {listen: none}", None),
        ] {
            let admin = parse(text, false).settings.unwrap().admin;
            assert_eq!(admin, want.map(|addr| addr.parse().unwrap()), "{text}");
        }
        let faults = lines(&parse("admin: {listen: 9091}", false).settings.unwrap_err());
        assert_eq!(faults, [r#"line 1: admin.listen: want IP:port or none, got "9091""#]);
    }

    #[test]
    fn znode_paths() {
        for (path, good) in [
            ("/a", true),
            ("/a/b-c.d", true),
            ("a", false),
            ("/", false),
            ("/a/", false),
            ("/a//b", false),
            ("/a/../b", false),
        ] {
            let text = format!("zookeeper: {{address: [h:1], root: {path}}}");
            assert_eq!(parse(&text, true).settings.is_ok(), good, "{path}");
        }
    }
}
