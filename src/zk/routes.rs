//! Carries out what `zk::meaning` decides: the only place that writes routes which come from ZooKeeper.
//!
//! ```text
//! zk-watch ─ a read, an event ─▶ meaning ─ changes ─┬─▶ route table, clusters
//!     ▲                                             ├─▶ log (`route_log`)
//!     └──────────── what is known, or read next ◀───┘
//! ```

use std::mem;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use log::{info, warn};

use super::change::{Change, Named};
use super::meaning::Meaning;
use super::read::{Paths, What};
use super::route_log::{self, RouteLog, TARGET};
use crate::route::record::Record;
use crate::route::table::{Cached, Route, RouteWriter};
use crate::upstream::registry::Clusters;

/// Longer texts of faults are cut: they may quote the record.
const MAX_FAULT_BYTES: usize = 300;

/// The routes as ZooKeeper has them. Owned by `zk-watch`. All that is decided by can be read.
pub struct Routes {
    meaning: Meaning,
    writer: RouteWriter,
    clusters: Clusters,
    /// Lines of the log.
    pub log: RouteLog,
}

/// The part of what was decided that is for the plan, and for queries that wait.
#[derive(Default)]
pub struct News {
    /// Tables of which it is now known where they live, or that it cannot be known.
    pub known: Vec<Box<str>>,
    /// Tables that do not exist, as far as can be told while routes are held.
    pub gone: Vec<Box<str>>,
    /// Reads that must follow.
    pub read: Vec<What>,
    /// All that is cached must be read again.
    pub confirm_all: bool,
}

impl Deref for Routes {
    type Target = Meaning;

    fn deref(&self) -> &Meaning {
        &self.meaning
    }
}

impl Routes {
    /// With `may_hold` false every absence is believed.
    pub fn new(paths: Paths, may_hold: bool, writer: RouteWriter, clusters: Clusters) -> Self {
        let meaning = Meaning::new(paths, may_hold, writer.table(), Instant::now());
        let mut routes = Routes { meaning, writer, clusters, log: RouteLog::default() };
        routes.decide(|_| ());
        routes
    }

    /// Has something decided, and carries it out.
    pub fn decide<T>(&mut self, decide: impl FnOnce(&mut Meaning) -> T) -> (T, News) {
        let (decided, mut news) = (decide(&mut self.meaning), News::default());
        for change in mem::take(&mut self.meaning.records.changes) {
            self.carry_out(change, &mut news);
        }
        (decided, news)
    }

    /// Sets how many tables are cached at most.
    pub fn set_capacity(&self, capacity: usize) {
        if capacity != self.writer.capacity() {
            self.writer.set_capacity(capacity);
        }
    }

    fn carry_out(&mut self, change: Change, news: &mut News) {
        let Routes { meaning, writer, log, .. } = self;
        match change {
            Change::Lives { table, record, mzxid, named } => self.put(&table, record, mzxid, named),
            Change::Unusable(table) => put_if_none(writer, &table, Cached::Unusable),
            Change::Returned(table, cached, is_held) => {
                put_if_none(writer, &table, cached);
                writer.doubt(&table);
                writer.set_held(&table, is_held);
            }
            Change::Fault(table, fault) => {
                let bounded = |text: &String| text.floor_char_boundary(MAX_FAULT_BYTES);
                writer.set_fault(&table, fault.as_ref().map(|text| &text[..bounded(text)]));
            }
            Change::Written(table, stat) => writer.set_written(&table, stat.mzxid, stat.mtime_ms),
            Change::Confirmed(table) => writer.confirm(&table),
            Change::Doubtful(table) => writer.doubt(&table),
            Change::Held(table) => {
                writer.doubt(&table);
                writer.set_held(&table, true);
            }
            Change::NotHeld(table) => writer.set_held(&table, false),
            Change::Gone(table) => {
                let before = writer.route(&table);
                writer.remove(&table);
                if let Some(route) = before {
                    log.gone(&table, &route.cluster_name);
                }
            }
            Change::Names(names) => writer.set_names(names),
            Change::AreNamesCurrent(are_current) => writer.set_names_current(are_current),
            Change::IsTrusted(true) => writer.trust(),
            Change::IsTrusted(false) => {
                writer.distrust();
                writer.set_names_current(false);
            }
            Change::AnotherRoot => writer.set_another_root(),
            Change::Hold(view, absence, server) => {
                let before = writer.hold();
                writer.set_hold(view);
                writer.set_absence(absence);
                let root = &meaning.records.paths.root;
                route_log::hold(before, view, root, server, writer.len());
            }
            Change::Asked(what, is_taken) => {
                if is_taken {
                    log.taken(&what);
                }
                if let What::Table(table) = what {
                    writer.count_read(&table);
                }
            }
            Change::Known(table) => news.known.push(table),
            Change::Absent(table) => news.gone.push(table),
            Change::Read(what) => news.read.push(what),
            Change::ConfirmAll => news.confirm_all = true,
            Change::Info(line) => info!(target: TARGET, "{line}"),
            Change::Warning(line) => warn!(target: TARGET, "{line}"),
            Change::BadRecord(znode, mzxid, fault) => log.bad_record(&znode, mzxid, &fault),
            Change::Hidden(table) => route_log::hidden(&table),
            Change::Unreadable(znode) => route_log::unreadable(&znode),
        }
    }

    fn put(&mut self, table: &str, record: Record, mzxid: i64, named: Option<Named>) {
        let cluster_name = record.cluster.clone();
        let route = Route { cluster_name, cluster: self.clusters.get(record), mzxid };
        let before = self.writer.get(table);
        let from = before.as_ref().map(Cached::route);
        let is_same =
            |before: &Route| Arc::ptr_eq(&before.cluster, &route.cluster) && before.mzxid == mzxid;
        if !from.flatten().is_some_and(|before| is_same(before)) {
            let from = from.map(|before| before.map_or("none", |before| &before.cluster_name));
            self.log.lives(table, from, &route, named);
            self.writer.put(table, Cached::Route(Arc::new(route)));
        }
        // Its change is taken, be it one to what it was.
        self.log.taken(&What::Table(table.into()));
    }
}

fn put_if_none(writer: &RouteWriter, table: &str, cached: Cached) {
    if !writer.has(table) {
        writer.put(table, cached);
    }
}

#[cfg(test)]
mod tests;
