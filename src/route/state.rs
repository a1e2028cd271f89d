//! The last good routes on disk, so that a proxy that starts while ZooKeeper is down serves at once.
//!
//! ```text
//! {"version":1,"root":"/pegasus-cluster","tables":2,"checksum":"89ab..."}
//! {"table":"orders","cluster":"c3","meta_addrs":["10.0.0.1:34601"],"mzxid":4294967302}
//! {"table":"users", ...}
//! ```
//! Thread `state-file` writes it, beside the old one and then over it, when routes have changed. It is read
//! once, at start; what it says counts until ZooKeeper says otherwise. A file that is damaged, or of another
//! root, is reported and not used.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use log::{info, warn};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::record::{self, Record};
use super::table::{Cached, Route, RouteTable, RouteWriter};
use crate::age::Age;
use crate::upstream::cluster::Clusters;
use crate::wire::message::is_table_name;

/// How often it is looked whether routes have changed.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often it is told that it cannot be written.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// A larger file is not ours: 100,000 tables need some 30 MB.
const MAX_BYTES: u64 = 256 * 1024 * 1024;
const VERSION: u64 = 1;

/// How it stands with the file, for whoever wants to see it.
#[derive(Clone, Default)]
pub struct Status(Arc<Mutex<View>>);

/// What is known of the file.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Since it was written last; `None`: there is none yet.
    pub written: Option<Age>,
    /// Why the routes as they are now are not in it.
    pub fault: Option<String>,
}

impl Status {
    /// As it is now.
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

/// One route as it is kept.
#[derive(Debug, PartialEq, Eq)]
struct Kept {
    table: String,
    record: Record,
    mzxid: i64,
}

/// Fills the route table from `path`. A proxy that has never run has no such file, that is no fault.
pub fn load(path: &Path, root: &str, writer: &RouteWriter, clusters: &mut Clusters) {
    let shown = path.display();
    let kept = match read(path) {
        Ok(bytes) => parse(&bytes, root),
        Err(e) if e.kind() == ErrorKind::NotFound => return info!("state file {shown}: none yet"),
        Err(e) => Err(e.to_string()),
    };
    match kept {
        Ok(kept) => {
            info!("state file {shown}: {} routes, to be confirmed by ZooKeeper", kept.len());
            for Kept { table, record, mzxid } in kept {
                let cluster_name = record.cluster.clone();
                let route = Route { cluster_name, cluster: clusters.get(record), mzxid };
                writer.put(&table, Cached::Route(Arc::new(route)));
            }
        }
        Err(why) => warn!("state file {shown}: not used: {why}"),
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

fn parse(bytes: &[u8], root: &str) -> Result<Vec<Kept>, String> {
    let end = bytes.iter().position(|&byte| byte == b'\n').ok_or("no first line")?;
    let (first, rest) = (&bytes[..end], &bytes[end + 1..]);
    let head: Value = serde_json::from_slice(first).map_err(|e| format!("line 1: {e}"))?;
    let want = [
        ("version", json!(VERSION)),
        ("root", json!(root)),
        ("checksum", json!(format!("{:016x}", checksum(rest)))),
    ];
    for (key, want) in want {
        if head[key] != want {
            return Err(format!("{key}: want {want}, got {}", head[key]));
        }
    }
    let lines = rest.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let kept: Vec<Kept> = lines
        .zip(2..)
        .map(|(line, number)| {
            read_line(line)
                .ok_or_else(|| format!("line {number}: want a route, got something else"))
        })
        .collect::<Result<_, _>>()?;
    match head["tables"] == json!(kept.len()) {
        true => Ok(kept),
        false => Err(format!("tables: want {}, got {}", head["tables"], kept.len())),
    }
}

fn read_line(line: &[u8]) -> Option<Kept> {
    let value: Value = serde_json::from_slice(line).ok()?;
    let table = value["table"].as_str().filter(|table| is_table_name(table))?.to_owned();
    let record = record::from_json(&value).ok()?;
    Some(Kept { table, record, mzxid: value["mzxid"].as_i64()? })
}

fn render(routes: &[(Box<str>, Arc<Route>)], root: &str) -> String {
    let mut lines = String::new();
    for (table, route) in routes {
        let line = json!({
            "table": table,
            "cluster": route.cluster_name,
            "meta_addrs": route.cluster.meta_addrs,
            "mzxid": route.mzxid,
        });
        let _ = writeln!(lines, "{line}");
    }
    let checksum = format!("{:016x}", checksum(lines.as_bytes()));
    let head =
        json!({"version": VERSION, "root": root, "tables": routes.len(), "checksum": checksum});
    format!("{head}\n{lines}")
}

/// FNV-1a, 64 bits: against half-written and flipped bits, not against malice.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The running thread.
pub struct StateFile {
    stop: Sender<()>,
    thread: JoinHandle<()>,
    status: Status,
}

impl StateFile {
    /// Keeps `path` up to date from now on. It has what the table had at version `written`.
    pub fn start(
        path: PathBuf,
        root: String,
        routes: Arc<RouteTable>,
        written: u64,
    ) -> io::Result<Self> {
        let (stop, stopped) = bounded(0);
        let status = Status::default();
        if let Ok(date) = fs::metadata(&path).and_then(|file| file.modified()) {
            status.set(Ok(Age::since(date)));
        }
        let keeper = Keeper { path, root, written, routes, told_at: None, status: status.clone() };
        let thread = thread::Builder::new()
            .name("state-file".to_owned())
            .spawn(move || keeper.run(&stopped))?;
        Ok(StateFile { stop, thread, status })
    }

    /// How it stands with the file.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Writes what has changed and ends the thread.
    pub fn stop(self) {
        drop(self.stop);
        let _ = self.thread.join();
    }
}

struct Keeper {
    path: PathBuf,
    root: String,
    /// Version of the route table that the file has.
    written: u64,
    routes: Arc<RouteTable>,
    /// When it was last told that the file cannot be written; `None`: it can.
    told_at: Option<Instant>,
    status: Status,
}

impl Keeper {
    fn run(mut self, stopped: &Receiver<()>) {
        loop {
            let ends = stopped.recv_timeout(LOOK_EVERY) != Err(RecvTimeoutError::Timeout);
            let version = self.routes.version();
            if version != self.written {
                let written = self.write();
                match &written {
                    Ok(()) => self.written(version),
                    Err(e) => self.not_written(e, Instant::now()),
                }
                self.status.set(written.map(|()| Age::zero()));
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

    fn write(&self) -> io::Result<()> {
        let text = render(&self.routes.snapshot(), &self.root);
        let mut beside = self.path.clone().into_os_string();
        // During an upgrade two processes keep the same file.
        beside.push(format!(".{}", process::id()));
        let mut file = File::create(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        // A rename lasts when the directory is on disk.
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty());
        File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_is_told_from_a_good_one() {
        let line =
            r#"{"table":"t","cluster":"c","meta_addrs":["h:1"],"mzxid":7}"#.to_owned() + "\n";
        let head = |version: u64, root: &str, tables: u64, lines: &str| {
            let checksum = format!("{:016x}", checksum(lines.as_bytes()));
            let head =
                json!({"version": version, "root": root, "tables": tables, "checksum": checksum});
            format!("{head}\n{lines}")
        };
        let good = head(1, "/r", 1, &line);
        let kept = parse(good.as_bytes(), "/r").unwrap();
        let record = Record { cluster: "c".into(), meta_addrs: vec!["h:1".into()] };
        assert_eq!(kept, [Kept { table: "t".into(), record, mzxid: 7 }]);
        for n in 0..good.len() - 1 {
            assert!(parse(&good.as_bytes()[..n], "/r").is_err(), "cut at {n}");
        }
        for at in 0..good.len() {
            let mut flipped = good.clone().into_bytes();
            flipped[at] ^= 4;
            assert!(parse(&flipped, "/r").is_err(), "a bit flipped at {at}");
        }
        for (why, text, want) in [
            ("another root", head(1, "/other", 1, &line), "root"),
            ("another version", head(2, "/r", 1, &line), "version"),
            ("another number", head(1, "/r", 2, &line), "tables"),
            ("no route", head(1, "/r", 1, "{}\n"), "line 2"),
        ] {
            let fault = parse(text.as_bytes(), "/r").unwrap_err();
            assert!(fault.starts_with(want), "{why}: {fault}");
        }
    }
}
