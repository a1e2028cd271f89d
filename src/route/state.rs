//! The last good routes on disk, so that a proxy that starts while ZooKeeper is down serves at once.
//!
//! ```text
//! {"version":1,"root":"/pegasus-cluster","tables":2,"checksum":"89ab...",
//!  "root_czxid":4294967298,"root_ctime_ms":1795445773925,"zookeeper":["zk1:2181","zk2:2181"]}    (one line)
//! {"table":"orders","cluster":"c3","meta_addrs":["10.0.0.1:34601"],"mzxid":4294967302}
//! {"table":"users", ..., "held":true}
//! {"table":"items", ..., "evicted":true}
//! ```
//! Thread `state-file` writes the file when routes have changed: first beside the old file, then renamed over it. The
//! proxy reads the file once, at start, and uses its routes until ZooKeeper has others. If ZooKeeper has another root,
//! the proxy holds the routes of the file. The file also has evicted routes. The proxy reports a damaged file and does
//! not use it. It also does not use a file of another root or of entirely different servers, because the operator has
//! changed the settings. Older versions neither write nor read the keys that have to do with holds.
//!
//! Older copies stay beside the file: `FILE.1h` was written at least an hour ago, `FILE.1d` at least a day ago;
//! `FILE.1h.next` and `FILE.1d.next` will replace them. While routes are held, the proxy replaces no copy, and does not
//! replace the file itself by one with fewer tables.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write as _};
use std::mem;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use log::{info, warn};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::evicted::Evicted;
use super::hold::{self, Identity};
use super::record::{self, Record};
use super::table::{Cached, Route, RouteTable, RouteWriter};
use crate::activity;
use crate::age::Age;
use crate::logging::Throttle;
use crate::upstream::registry::Clusters;
use crate::wire::message::is_table_name;

/// How often to look whether routes have changed.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often to log that the file cannot be written.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// A larger file is no state file: 100,000 tables need some 30 MB.
const MAX_BYTES: u64 = 256 * 1024 * 1024;
const VERSION: u64 = 1;
/// Older copies to keep: their minimum age in seconds, and the suffix of their name.
const KEPT: [(i64, &str); 2] = [(60 * 60, ".1h"), (24 * 60 * 60, ".1d")];
/// Follow at most this many links of a path.
const MAX_LINKS: usize = 40;

/// The state of the file, for pages and metrics.
#[derive(Clone, Default)]
pub struct Status(Arc<Mutex<View>>);

#[derive(Clone, Debug, Default)]
pub struct View {
    /// Time since the last write; `None`: there is no file yet.
    pub written: Option<Age>,
    /// Why the file does not have the present routes.
    pub fault: Option<String>,
}

impl Status {
    pub fn view(&self) -> View {
        self.0.lock().clone()
    }

    fn set(&self, written: io::Result<Age>) {
        let mut view = self.0.lock();
        match written {
            Ok(at) => *view = View { written: Some(at), fault: None },
            Err(e) => view.fault = Some(e.to_string()),
        }
    }
}

/// Where the routes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The znode above the tables.
    pub root: String,
    /// `host:port` of the servers of ZooKeeper.
    pub zookeeper: Vec<String>,
}

/// One route of the file.
#[derive(Debug, PartialEq, Eq)]
struct Kept {
    table: String,
    record: Record,
    mzxid: i64,
    is_held: bool,
    is_evicted: bool,
}

/// The contents of a file.
#[derive(Debug, PartialEq, Eq)]
struct Contents {
    root: Option<Identity>,
    routes: Vec<Kept>,
}

/// The outcome of a load.
#[derive(Clone, Copy, Debug, Default)]
pub struct Loaded {
    /// Number of tables in the file, if it was used.
    pub tables: usize,
    /// Whether the file is undamaged, used or not.
    pub is_good: bool,
}

/// Why a file is not used.
#[derive(Debug, PartialEq, Eq)]
enum Unused {
    /// The file is damaged.
    Damaged(String),
    /// The file belongs to another root or to other servers.
    NotOurs(String),
}

/// Fills the route table from `path`. A missing file is no fault: the proxy may run for the first time.
pub fn load(path: &Path, origin: &Origin, writer: &RouteWriter, clusters: &mut Clusters) -> Loaded {
    let shown = path.display();
    let contents = match read(path) {
        Ok(bytes) => parse(&bytes, origin),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            info!("state file {shown}: does not exist yet");
            return Loaded::default();
        }
        Err(e) => Err(Unused::Damaged(e.to_string())),
    };
    match contents {
        Ok(Contents { root, mut routes }) => {
            // Held and cached routes come first; evicted ones get the room that is left.
            routes.sort_by_key(|kept| (!kept.is_held, kept.is_evicted));
            let tables = routes.len();
            info!("state file {shown}: {tables} routes, to be confirmed by ZooKeeper");
            for Kept { table, record, mzxid, is_held, .. } in routes {
                let evicted = Evicted { record, mzxid };
                let Some(Evicted { record, mzxid }) = writer.keep_evicted(&table, evicted) else {
                    continue;
                };
                let cluster_name = record.cluster.clone();
                let route = Route { cluster_name, cluster: clusters.get(record), mzxid };
                writer.put(&table, Cached::Route(Arc::new(route)));
                writer.set_held(&table, is_held);
            }
            writer.set_hold(hold::View { known: root, ..hold::View::default() });
            Loaded { tables, is_good: true }
        }
        Err(Unused::NotOurs(why)) => {
            warn!("state file {shown}: not used, the settings have changed: {why}");
            Loaded { tables: 0, is_good: true }
        }
        Err(Unused::Damaged(why)) => {
            warn!("state file {shown}: not used: {why}");
            Loaded::default()
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MAX_BYTES {
        true => Err(io::Error::other(format!("want at most {MAX_BYTES} bytes, got more"))),
        false => Ok(bytes),
    }
}

/// Whether a text begins like a state file.
pub fn looks_like_state(text: &str) -> bool {
    let first = text.lines().next().unwrap_or_default();
    let head: Value = serde_json::from_str(first).unwrap_or_default();
    head.get("origin_checksum").is_some()
}

fn parse(bytes: &[u8], origin: &Origin) -> Result<Contents, Unused> {
    let damaged = Unused::Damaged;
    let end = bytes.iter().position(|&byte| byte == b'\n');
    let end = end.ok_or_else(|| damaged("no first line".to_owned()))?;
    let (first, rest) = (&bytes[..end], &bytes[end + 1..]);
    let head: Value = serde_json::from_slice(first).map_err(|e| damaged(format!("line 1: {e}")))?;
    let want = [
        ("version", json!(VERSION)),
        ("checksum", json!(checksum(rest))),
        ("origin_checksum", origin_checksum(&head)),
    ];
    let differs = |key: &str, want: &Value| {
        (head[key] != *want).then(|| format!("{key}: want {want}, got {}", head[key]))
    };
    for (key, want) in want {
        if let Some(why) = differs(key, &want) {
            return Err(damaged(why));
        }
    }
    if let Some(why) = differs("root", &json!(origin.root)) {
        return Err(Unused::NotOurs(why));
    }
    if let Some(servers) = head["zookeeper"].as_array()
        && !servers.iter().any(|server| origin.zookeeper.iter().any(|ours| server == ours))
    {
        let why =
            format!("zookeeper: want one of {:?}, got {}", origin.zookeeper, head["zookeeper"]);
        return Err(Unused::NotOurs(why));
    }
    let lines = rest.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let routes: Vec<Kept> = lines
        .zip(2..)
        .map(|(line, number)| {
            read_line(line)
                .ok_or_else(|| format!("line {number}: want a route, got something else"))
        })
        .collect::<Result<_, _>>()
        .map_err(damaged)?;
    let root = match (head["root_czxid"].as_i64(), head["root_ctime_ms"].as_i64()) {
        (Some(czxid), Some(ctime_ms)) => Some(Identity { czxid, ctime_ms }),
        _ => None,
    };
    match head["tables"] == json!(routes.len()) {
        true => Ok(Contents { root, routes }),
        false => Err(damaged(format!("tables: want {}, got {}", head["tables"], routes.len()))),
    }
}

fn read_line(line: &[u8]) -> Option<Kept> {
    let value: Value = serde_json::from_slice(line).ok()?;
    let table = value["table"].as_str().filter(|table| is_table_name(table))?.to_owned();
    let record = record::from_json(&value).ok()?;
    let [is_held, is_evicted] = ["held", "evicted"].map(|key| value[key] == json!(true));
    Some(Kept { table, record, mzxid: value["mzxid"].as_i64()?, is_held, is_evicted })
}

fn render(
    routes: &[(Box<str>, Arc<Route>, bool)],
    evicted: &[(Box<str>, Evicted)],
    origin: &Origin,
    known: Option<Identity>,
) -> String {
    let mut lines = String::new();
    let mut add = |table: &str, cluster: &str, meta_addrs: &[String], mzxid, mark: Option<&str>| {
        let mut line = json!({
            "table": table,
            "cluster": cluster,
            "meta_addrs": meta_addrs,
            "mzxid": mzxid,
        });
        if let Some(mark) = mark {
            line[mark] = json!(true);
        }
        let _ = writeln!(lines, "{line}");
    };
    for (table, route, is_held) in routes {
        let Route { cluster_name, cluster, mzxid } = &**route;
        add(table, cluster_name, &cluster.meta_addrs, *mzxid, is_held.then_some("held"));
    }
    for (table, Evicted { record, mzxid }) in evicted {
        add(table, &record.cluster, &record.meta_addrs, *mzxid, Some("evicted"));
    }
    let mut head = json!({
        "version": VERSION,
        "root": origin.root,
        "tables": routes.len() + evicted.len(),
        "checksum": checksum(lines.as_bytes()),
        "zookeeper": origin.zookeeper,
    });
    if let Some(Identity { czxid, ctime_ms }) = known {
        head["root_czxid"] = json!(czxid);
        head["root_ctime_ms"] = json!(ctime_ms);
    }
    head["origin_checksum"] = origin_checksum(&head);
    format!("{head}\n{lines}")
}

/// FNV-1a, 64 bits: detects half-written files and flipped bits, not malice.
fn checksum(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// A checksum over the keys of line 1 about ZooKeeper. Files of older versions have neither these keys nor the
/// checksum.
fn origin_checksum(head: &Value) -> Value {
    let said = ["root_czxid", "root_ctime_ms", "zookeeper"].map(|key| &head[key]);
    match said.iter().all(|value| value.is_null()) {
        true => Value::Null,
        false => json!(checksum(json!(said).to_string().as_bytes())),
    }
}

/// The running thread.
pub struct StateFile {
    stop: Sender<()>,
    thread: JoinHandle<()>,
    status: Status,
    origin: Arc<Mutex<Origin>>,
}

impl StateFile {
    /// Keeps `path` up to date from now on. The file has the `loaded` tables, which the route table had at version
    /// `written`.
    pub fn start(
        path: PathBuf,
        origin: Origin,
        loaded: Loaded,
        routes: Arc<RouteTable>,
        written: u64,
    ) -> io::Result<Self> {
        let (stop, stopped) = bounded(0);
        let status = Status::default();
        if let Ok(date) = fs::metadata(&path).and_then(|file| file.modified()) {
            status.set(Ok(Age::since(date)));
        }
        let found = follow_links(&path);
        if let Err(e) = remove_leftovers(&found) {
            warn!("state file {}: cannot remove unfinished files: {e}", path.display());
        }
        let set = Arc::new(Mutex::new(origin.clone()));
        let keeper = Keeper {
            path,
            set: set.clone(),
            origin,
            written,
            in_file: loaded.tables,
            file_s: written_s(&found).filter(|_| loaded.is_good),
            older: Older::of(&found),
            start: Instant::now(),
            routes,
            told_at: None,
            status: status.clone(),
        };
        let thread = thread::Builder::new()
            .name("state-file".to_owned())
            .spawn(move || keeper.run(&stopped))?;
        Ok(StateFile { stop, thread, status, origin: set })
    }

    pub fn status(&self) -> &Status {
        &self.status
    }

    /// From now on the routes come from this origin.
    pub fn set_origin(&self, origin: Origin) {
        *self.origin.lock() = origin;
    }

    /// Writes what has changed and ends the thread.
    pub fn stop(self) {
        drop(self.stop);
        let _ = self.thread.join();
    }
}

struct Keeper {
    path: PathBuf,
    /// The origin that the file has.
    origin: Origin,
    /// The origin of the present settings.
    set: Arc<Mutex<Origin>>,
    /// Version of the route table that the file has.
    written: u64,
    /// Number of tables in the file.
    in_file: usize,
    /// When the file was written, if it is worth a copy.
    file_s: Option<i64>,
    older: Older,
    start: Instant,
    routes: Arc<RouteTable>,
    /// When the log last said that the file cannot be written; `None`: it can.
    told_at: Option<Instant>,
    status: Status,
}

impl Keeper {
    fn run(mut self, stopped: &Receiver<()>) {
        loop {
            activity::go_on("waits for routes to change", &[]);
            let ends = stopped.recv_timeout(LOOK_EVERY) != Err(RecvTimeoutError::Timeout);
            let version = self.routes.version();
            let set = self.set.lock().clone();
            if version != self.written || set != self.origin {
                let before = mem::replace(&mut self.origin, set);
                activity::now("writes the state file", &[&self.path.display().to_string()]);
                match self.write() {
                    Ok(Write::Done) => {
                        self.written(version);
                        self.status.set(Ok(Age::zero()));
                    }
                    Ok(Write::Held) => self.written = version,
                    Err(e) => {
                        // The file still has the old origin, so write it again.
                        self.origin = before;
                        self.not_written(&e, Instant::now());
                        self.status.set(Err(e));
                    }
                }
            }
            if ends {
                return;
            }
        }
    }

    fn written(&mut self, version: u64) {
        self.written = version;
        if self.told_at.take().is_some() {
            info!("state file {}: written again", self.path.display());
        }
    }

    fn not_written(&mut self, why: &io::Error, now: Instant) {
        if self.told_at.is_none_or(|at| now >= at + TELL_EVERY) {
            self.told_at = Some(now);
            warn!("state file {}: not written: {why}", self.path.display());
        }
    }

    fn now_s(&self) -> i64 {
        self.start.elapsed().as_secs() as i64
    }

    /// Writes the present routes, unless they are held and the file has more tables.
    fn write(&mut self) -> io::Result<Write> {
        // Read the hold first: routes that return with a hold are in the table before the hold is shown.
        let hold = self.routes.hold();
        let (routes, evicted) = (self.routes.snapshot(), self.routes.evicted_routes());
        let tables = routes.len() + evicted.len();
        let is_held = hold.shown.is_some();
        if is_held && tables < self.in_file {
            return Ok(Write::Held);
        }
        let path = follow_links(&self.path);
        let text = render(&routes, &evicted, &self.origin, hold.known);
        // During an upgrade two processes write the same file.
        let beside = with_suffix(&path, &format!(".{}", process::id()));
        let written = write_beside(&beside, &text).and_then(|()| {
            if let Some(file_s) = self.file_s.filter(|_| !is_held) {
                self.older.keep(&path, file_s, self.now_s());
            }
            fs::rename(&beside, &path)
        });
        if written.is_err() {
            // Remove the unfinished file: it would keep a full disk full.
            let _ = fs::remove_file(&beside);
        }
        written?;
        (self.in_file, self.file_s) = (tables, Some(self.now_s()));
        // A rename is durable once the directory is on disk.
        File::open(folder_of(&path))?.sync_all()?;
        Ok(Write::Done)
    }
}

/// The outcome of a write that did not fail.
enum Write {
    Done,
    /// Not written: routes are held, and the present file has more tables.
    Held,
}

fn write_beside(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = OsString::from(path);
    path.push(suffix);
    path.into()
}

/// Follows the links of a path to its file, which need not exist yet.
fn follow_links(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = folder_of(&path).join(target),
            Err(_) => break,
        }
    }
    path
}

/// Removes unfinished files of processes that have ended.
fn remove_leftovers(path: &Path) -> io::Result<()> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return Ok(());
    };
    for entry in fs::read_dir(folder_of(path))? {
        let entry = entry?;
        let file = entry.file_name();
        let pid = file.to_str().and_then(|file| file.strip_prefix(name)?.strip_prefix('.'));
        let is_pid = |pid: &&str| !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit());
        if let Some(pid) = pid.filter(is_pid)
            && !Path::new("/proc").join(pid).exists()
        {
            info!("removing {}, unfinished by ended process {pid}", entry.path().display());
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The older copies beside `path`. Times are seconds since the process started, so that a step of the wall clock does
/// not make a young file old.
struct Older(Vec<Kin>);

/// A copy, and the one that will replace it.
struct Kin {
    min_age_s: i64,
    suffix: &'static str,
    /// When the next copy was written.
    next_s: Option<i64>,
}

impl Older {
    /// Reads the present copies.
    fn of(path: &Path) -> Self {
        let kin = |(min_age_s, suffix)| {
            let next_s = written_s(&with_suffix(path, &format!("{suffix}.next")));
            Kin { min_age_s, suffix, next_s }
        };
        Older(KEPT.into_iter().map(kin).collect())
    }

    /// Keeps a copy of the file, which was written at `file_s`, before it is replaced.
    fn keep(&mut self, path: &Path, file_s: i64, now_s: i64) {
        for kin in &mut self.0 {
            if let Err(e) = kin.keep(path, file_s, now_s) {
                static TOLD: Throttle = Throttle::new();
                if let Some(hidden) = TOLD.pass() {
                    let (shown, suffix) = (path.display(), kin.suffix);
                    warn!("state file {shown}: cannot keep the copy {suffix}: {e}{hidden}");
                }
            }
        }
    }
}

impl Kin {
    fn keep(&mut self, path: &Path, file_s: i64, now_s: i64) -> io::Result<()> {
        let kept = with_suffix(path, self.suffix);
        let next = with_suffix(path, &format!("{}.next", self.suffix));
        if let Some(next_s) = self.next_s {
            if now_s - next_s < self.min_age_s {
                return Ok(());
            }
            self.next_s = None;
            match fs::rename(&next, &kept) {
                // During an upgrade the other process may be faster.
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        // The present file becomes the next copy, or is old enough already.
        copy(path, &next)?;
        match now_s - file_s < self.min_age_s {
            true => self.next_s = Some(file_s),
            false => fs::rename(&next, &kept)?,
        }
        Ok(())
    }
}

/// When a file was written, in seconds before now. Only the start uses the wall clock.
fn written_s(path: &Path) -> Option<i64> {
    let date = fs::metadata(path).and_then(|file| file.modified()).ok()?;
    Some(-(Age::since(date).get().as_secs() as i64))
}

/// Links the file under another name, or copies it if that fails. A link needs no room and keeps the time.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(_) => {
            let modified = fs::metadata(from)?.modified()?;
            fs::copy(from, to)?;
            File::options().write(true).open(to)?.set_modified(modified)
        }
    }
}

#[cfg(test)]
mod tests;
