//! Thread `routes-file`: routes from a file instead of ZooKeeper, for one machine, tests and first steps.
//!
//! ```json
//! {"orders": {"cluster_name": "c3", "meta_addrs": "127.0.0.1:34701"}, "users": {...}}
//! ```
//! The thread reads the file again when it changes. If the file has any fault, the proxy keeps all its routes, and the
//! log names every fault.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use log::{info, warn};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::names::Names;
use super::record::{self, Record};
use super::table::{Cached, Route, RouteWriter};
use crate::activity;
use crate::upstream::registry::Clusters;
use crate::wire::message::is_table_name;

/// How often to look whether the file has changed.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A larger file is not a routes file: 20,000 tables of long names need 10 MB.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// The faults of a routes file, one line each.
pub type Faults = Vec<String>;

/// Reads a routes file.
pub fn read(path: &Path) -> Result<BTreeMap<String, Record>, Faults> {
    let shown = path.display();
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text))
        .map_err(|e| vec![format!("{shown}: {e}")])?;
    if text.len() as u64 > MAX_BYTES {
        return Err(vec![format!("{shown}: want at most {MAX_BYTES} bytes, got more")]);
    }
    parse(&text).map_err(|faults| faults.iter().map(|fault| format!("{shown}: {fault}")).collect())
}

/// Whether a text looks like a routes file, with faults or without: one JSON object whose values are objects.
pub fn looks_like_routes(text: &str) -> bool {
    let tables = serde_json::from_str(text).map(|Tables(tables)| tables).unwrap_or_default();
    !tables.is_empty() && tables.iter().all(|(_, record)| record.get().starts_with('{'))
}

fn parse(text: &str) -> Result<BTreeMap<String, Record>, Faults> {
    let Tables(tables) = serde_json::from_str(text).map_err(|e| vec![e.to_string()])?;
    let mut routes = BTreeMap::new();
    let mut faults = Faults::new();
    let mut lines = Lines { text, at: 0, line: 1 };
    for (table, value) in tables {
        let line = lines.line_of(value.get());
        let mut fault = |what: String| faults.push(format!("line {line}: {table:?}: {what}"));
        match serde_json::from_str(value.get()) {
            _ if !is_table_name(&table) => {
                fault("want a name of 1-255 of [A-Za-z0-9_.:-]".to_owned());
            }
            _ if routes.contains_key(&table) => fault("want each table once".to_owned()),
            Ok(value) => match record::from_json(&value) {
                Ok(record) => drop(routes.insert(table, record)),
                Err(bad) => fault(bad.to_string()),
            },
            Err(e) => fault(e.to_string()),
        }
    }
    if faults.is_empty() { Ok(routes) } else { Err(faults) }
}

/// The tables of a file in order, with duplicates, each with its record as text.
struct Tables<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Tables<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Tables<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tables")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tables<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Tables(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// Counts lines while it goes through a text.
struct Lines<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

impl Lines<'_> {
    /// The line on which a part of the text starts. Parts must come in order.
    fn line_of(&mut self, part: &str) -> usize {
        let start = part.as_ptr() as usize - self.text.as_ptr() as usize;
        let between = &self.text.as_bytes()[self.at..start];
        self.line += between.iter().filter(|&&byte| byte == b'\n').count();
        self.at = start;
        self.line
    }
}

/// The running thread.
pub struct RoutesFile {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl RoutesFile {
    /// Fills the route table from `path`, and follows changes of the file from then on.
    pub fn start(path: PathBuf, writer: RouteWriter, clusters: Clusters) -> Result<Self, Faults> {
        let stamp = stamp(&path).ok();
        let mut source = Source { path, stamp, writer, clusters };
        source.apply(read(&source.path)?);
        let (stop, stopped) = bounded(0);
        let thread = thread::Builder::new()
            .name("routes-file".to_owned())
            .spawn(move || source.run(&stopped))
            .map_err(|e| vec![e.to_string()])?;
        Ok(RoutesFile { stop, thread })
    }

    /// Ends the thread.
    pub fn stop(self) {
        drop(self.stop);
        let _ = self.thread.join();
    }
}

struct Source {
    path: PathBuf,
    stamp: Option<Stamp>,
    writer: RouteWriter,
    clusters: Clusters,
}

impl Source {
    fn run(mut self, stopped: &Receiver<()>) {
        activity::now("looks for changes of the routes file", &[&self.path.display().to_string()]);
        while stopped.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
            let stamp = stamp(&self.path).ok();
            if stamp == self.stamp {
                continue;
            }
            self.stamp = stamp;
            match read(&self.path) {
                Ok(routes) => self.apply(routes),
                Err(faults) => {
                    faults.iter().for_each(|fault| warn!("{fault}"));
                    warn!("{}: the proxy keeps its routes", self.path.display());
                    self.writer.distrust();
                }
            }
        }
    }

    fn apply(&mut self, routes: BTreeMap<String, Record>) {
        self.writer.trust();
        let names = Names::new(routes.keys().map(String::as_str).collect());
        let cached = self.writer.by_use();
        let gone: Vec<_> =
            cached.into_iter().filter(|table| !routes.contains_key(&**table)).collect();
        for (table, record) in routes {
            let cluster_name = record.cluster.clone();
            let cluster = self.clusters.get(record);
            let before = self.writer.route(&table);
            if before.as_ref().is_some_and(|route| Arc::ptr_eq(&route.cluster, &cluster)) {
                self.writer.confirm(&table);
                continue;
            }
            let from = before.as_ref().map_or("none", |route| &route.cluster_name);
            info!("table={table} from={from} to={cluster_name} metas={:?}", cluster.meta_addrs);
            let route = Route { cluster_name, cluster, mzxid: 0 };
            self.writer.put(&table, Cached::Route(Arc::new(route)));
            self.writer.confirm(&table);
        }
        // A name without a route would be a table that must still be read, and no thread reads tables here. So set the
        // names after adding new routes, and before removing old ones.
        self.writer.set_names(Some(names));
        for table in gone {
            if let Some(route) = self.writer.route(&table) {
                info!("table={table} from={} to=none", route.cluster_name);
            }
            self.writer.remove(&table);
        }
    }
}

/// Inode and ctime, seconds and nanoseconds. They change when the file is written, and when another file is renamed
/// over it, whatever mtime that one has.
type Stamp = (u64, i64, i64);

fn stamp(path: &Path) -> io::Result<Stamp> {
    let meta = fs::metadata(path)?;
    Ok((meta.ino(), meta.ctime(), meta.ctime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_named_with_its_line_and_no_route_changes() {
        let text = r#"{
  "ok": {"meta_addrs": "h:1"},
  "a/b": {"meta_addrs": "h:1"},
  "bad": {"meta_addrs": "h"}, "ok":
    {"meta_addrs": "h:2"}
}"#;
        assert_eq!(
            parse(text).unwrap_err(),
            [
                r#"line 3: "a/b": want a name of 1-255 of [A-Za-z0-9_.:-]"#,
                r#"line 4: "bad": meta_addrs: want host:port, got "h""#,
                r#"line 5: "ok": want each table once"#,
            ]
        );
        assert_eq!(parse("{}").unwrap().len(), 0);
        for (text, want) in [
            ("{\n", "line 2"),
            ("[]", "want an object of tables"),
            ("{\"t\": {\"meta_addrs\": \"h:1\"}\n} x", "line 2"),
        ] {
            let faults = parse(text).unwrap_err();
            let want = want.strip_prefix("want ").unwrap_or(want);
            assert!(faults.len() == 1 && faults[0].contains(want), "{faults:?}");
        }
    }

    #[test]
    fn a_file_renamed_over_another_is_noticed_though_its_time_and_length_are_equal() {
        let dir = std::env::temp_dir().join(format!("meta-proxy-stamp-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (path, other) = (dir.join("routes"), dir.join("other"));
        let [before, after] = [&path, &other].map(|path| {
            fs::write(path, "{}").unwrap();
            let file = File::options().write(true).open(path).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
            stamp(path).unwrap()
        });
        fs::rename(&other, &path).unwrap();
        let renamed = stamp(&path).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert_ne!(renamed, before);
        assert_eq!(renamed.0, after.0, "it is the other");
    }
}
