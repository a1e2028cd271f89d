//! The routes that all workers read: an RwLock map, written by one thread.
//!
//! ```text
//! workers ─▶ find ──▶ entries: table -> route | unusable      ◀── put, remove, evict ──┐ RouteWriter,
//!                 └─▶ names:   names of all tables, if known  ◀── set_names ───────────┤ one thread
//! admin, state file ─▶ hold:   the hold of routes, if any     ◀── set_hold ────────────┘
//! ```
//! A reader holds the lock for a map lookup and an Arc clone. A table without an entry is unknown if the names are
//! known and do not have it. Otherwise it is missing, and the writer's thread must read it. While routes are held, no
//! table is unknown, because the names cannot be trusted.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::ops::Deref;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicI64, AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::evicted::{Evicted, EvictedRoutes};
use super::hold;
use super::names::Names;
use super::record::Record;
use crate::metrics::Tally;
use crate::upstream::cluster::{Cluster, Routes};

/// The cluster of a table, as the proxy knows it.
pub struct Route {
    /// Name of the cluster in the table's record.
    pub cluster_name: String,
    pub cluster: Arc<Cluster>,
    /// zxid of the change that wrote the record; 0 with a routes file.
    pub mzxid: i64,
}

/// The cached record of one table.
#[derive(Clone)]
pub enum Cached {
    /// The table lives in this cluster.
    Route(Arc<Route>),
    /// The proxy has never read a usable record of the table.
    Unusable,
}

impl Cached {
    pub fn route(&self) -> Option<&Arc<Route>> {
        match self {
            Cached::Route(route) => Some(route),
            Cached::Unusable => None,
        }
    }
}

/// Times are ms of the clock of the route table, which starts at 1.
struct Entry {
    cached: Cached,
    /// Why the present record is unusable; the cached route is then older.
    fault: Option<Box<str>>,
    /// When the cached route last changed.
    changed_ms: u64,
    /// When a read last confirmed the route; 0: never, the route comes from the state file.
    confirmed_ms: AtomicU64,
    /// The record can no longer be read.
    is_doubtful: AtomicBool,
    /// The record is absent, and the route is held.
    is_held: AtomicBool,
    /// When a query last used the entry; for eviction and for the order of re-reads.
    used_ms: AtomicU64,
    queries: AtomicU64,
    reads: AtomicU64,
    /// zxid and time, ms since 1970, of the change that wrote the present record, usable or not; 0: not known.
    record_zxid: AtomicI64,
    written_unix_ms: AtomicI64,
}

/// A copy of one entry, for the pages.
pub struct Listed {
    /// The table.
    pub table: Box<str>,
    /// `None`: the proxy has never read a usable record.
    pub route: Option<Arc<Route>>,
    /// Why the present record is unusable; the route, if there is one, is then the last good one.
    pub fault: Option<Box<str>>,
    /// Time since the cached route changed in this proxy.
    pub changed: Duration,
    /// Time since a read confirmed the route; `None`: never, it comes from the state file.
    pub confirmed: Option<Duration>,
    /// Whether the route may have changed unseen: it is not confirmed since watches were last known to work, or cannot
    /// be read.
    pub is_stale: bool,
    /// Whether the proxy serves the route although its record or its root is gone.
    pub is_held: bool,
    /// Queries for the table since it was cached.
    pub queries: u64,
    /// ZooKeeper reads for the table since it was cached.
    pub reads: u64,
    /// zxid of the change that wrote the present record, usable or not; 0: not known.
    pub record_zxid: i64,
    /// Time of that change by ZooKeeper's clock, ms since 1970; 0: not known.
    pub written_unix_ms: i64,
}

/// How much the list of names says about tables that are not cached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Absence {
    /// A table that is not among the names is unknown.
    #[default]
    Told,
    /// Routes are held: a table that is not among the names may exist.
    Held,
    /// No list of names can be read.
    Hidden,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<Box<str>, Entry>,
    evicted: EvictedRoutes,
    /// Entries last confirmed before this time come from another root.
    root_since_ms: u64,
    names: Option<Names>,
    /// No table was created since the names were read.
    are_names_current: bool,
    absence: Absence,
}

/// The outcome of a look-up.
pub enum Found {
    /// The table lives in this cluster.
    Cluster(Arc<Cluster>),
    /// The table has no usable record.
    Unusable,
    /// The table does not exist.
    Unknown,
    /// The table is not cached. Routes are held, so the proxy cannot know whether it exists.
    Held,
    /// The table is not cached, and must be read.
    Missing,
}

/// The reading side.
pub struct RouteTable {
    inner: RwLock<Inner>,
    start: Instant,
    /// Grows with each change of a cached route.
    version: AtomicU64,
    /// Routes confirmed since this time are known to be current; `u64::MAX`: no route is.
    trusted_since_ms: AtomicU64,
    capacity: AtomicUsize,
    /// Number of evicted entries.
    pub evicted: Tally,
    hold: Mutex<hold::View>,
}

/// The only writing side. It can also read.
pub struct RouteWriter {
    table: Arc<RouteTable>,
}

impl Routes for RouteTable {
    fn version(&self) -> u64 {
        RouteTable::version(self)
    }

    /// A deleted table has not moved: queries that came before the deletion may have the old cluster's answer.
    fn has_moved(&self, table: &str, cluster: &Cluster) -> bool {
        let inner = self.inner.read();
        let route = inner.entries.get(table).and_then(|entry| entry.cached.route());
        route.is_some_and(|route| !ptr::eq(Arc::as_ptr(&route.cluster), cluster))
    }
}

impl RouteTable {
    /// An empty route table for at most `capacity` entries, and its only writer.
    pub fn new(capacity: usize) -> (Arc<RouteTable>, RouteWriter) {
        let table = Arc::new(RouteTable {
            inner: RwLock::default(),
            start: Instant::now(),
            version: AtomicU64::new(0),
            trusted_since_ms: AtomicU64::new(u64::MAX),
            capacity: AtomicUsize::new(capacity),
            evicted: Tally::default(),
            hold: Mutex::default(),
        });
        (table.clone(), RouteWriter { table })
    }

    /// Looks a table up.
    pub fn find(&self, table: &str, now: Instant) -> Found {
        let inner = self.inner.read();
        match inner.entries.get(table) {
            Some(entry) => {
                entry.used_ms.store(self.ms(now), Relaxed);
                entry.queries.fetch_add(1, Relaxed);
                let route = entry.cached.route();
                route.map_or(Found::Unusable, |route| Found::Cluster(route.cluster.clone()))
            }
            None => match &inner.names {
                _ if inner.absence == Absence::Hidden => Found::Held,
                Some(names) if inner.are_names_current && !names.contains(table) => {
                    match inner.absence {
                        Absence::Told => Found::Unknown,
                        Absence::Held | Absence::Hidden => Found::Held,
                    }
                }
                _ => Found::Missing,
            },
        }
    }

    fn ms(&self, now: Instant) -> u64 {
        1 + now.saturating_duration_since(self.start).as_millis() as u64
    }

    /// The cached record of a table. Does not count as a use.
    pub fn get(&self, table: &str) -> Option<Cached> {
        self.inner.read().entries.get(table).map(|entry| entry.cached.clone())
    }

    /// The route of a table, if it is cached and usable.
    pub fn route(&self, table: &str) -> Option<Arc<Route>> {
        self.get(table)?.route().cloned()
    }

    /// Whether a table is cached.
    pub fn has(&self, table: &str) -> bool {
        self.inner.read().entries.contains_key(table)
    }

    /// A number that changes with every change of a cached route.
    pub fn version(&self) -> u64 {
        self.version.load(SeqCst)
    }

    /// All entries, by name.
    pub fn list(&self) -> Vec<Listed> {
        let now_ms = self.ms(Instant::now());
        let trusted_since_ms = self.trusted_since_ms.load(Relaxed);
        let age = |ms: u64| Duration::from_millis(now_ms.saturating_sub(ms));
        let are_all_held = self.hold().shown.is_some_and(|shown| shown.kind.is_of_root());
        let list = |table: &str, entry: &Entry| {
            let confirmed_ms = entry.confirmed_ms.load(Relaxed);
            Listed {
                table: table.into(),
                route: entry.cached.route().cloned(),
                fault: entry.fault.clone(),
                changed: age(entry.changed_ms),
                confirmed: (confirmed_ms > 0).then(|| age(confirmed_ms)),
                is_stale: confirmed_ms < trusted_since_ms || entry.is_doubtful.load(Relaxed),
                is_held: are_all_held || entry.is_held.load(Relaxed),
                queries: entry.queries.load(Relaxed),
                reads: entry.reads.load(Relaxed),
                record_zxid: entry.record_zxid.load(Relaxed),
                written_unix_ms: entry.written_unix_ms.load(Relaxed),
            }
        };
        let inner = self.inner.read();
        let entries = inner.entries.iter();
        let mut tables: Vec<Listed> = entries.map(|(table, entry)| list(table, entry)).collect();
        drop(inner);
        tables.sort_unstable_by(|a, b| a.table.cmp(&b.table));
        tables
    }

    /// Number of tables cached.
    pub fn len(&self) -> usize {
        self.inner.read().entries.len()
    }

    /// Number of tables that can be cached.
    pub fn capacity(&self) -> usize {
        self.capacity.load(Relaxed)
    }

    /// Whether nothing is cached.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The hold, and the root of the cached routes.
    pub fn hold(&self) -> hold::View {
        *self.hold.lock()
    }

    /// All routes by name, and whether each is held.
    pub fn snapshot(&self) -> Vec<(Box<str>, Arc<Route>, bool)> {
        let inner = self.inner.read();
        let mut routes: Vec<_> = inner
            .entries
            .iter()
            .filter_map(|(table, entry)| {
                let route = entry.cached.route()?.clone();
                Some((table.clone(), route, entry.is_held.load(Relaxed)))
            })
            .collect();
        drop(inner);
        routes.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        routes
    }

    /// The last known routes of evicted tables.
    pub fn evicted_routes(&self) -> Vec<(Box<str>, Evicted)> {
        self.inner.read().evicted.list()
    }

    /// All held tables.
    pub fn held(&self) -> Vec<Box<str>> {
        let inner = self.inner.read();
        let held = inner.entries.iter().filter(|(_, entry)| entry.is_held.load(Relaxed));
        held.map(|(table, _)| table.clone()).collect()
    }

    /// Whether the names are known, and whether they are current.
    pub fn names(&self) -> (bool, bool) {
        let inner = self.inner.read();
        (inner.names.is_some(), inner.are_names_current)
    }

    /// All cached tables, the last used first.
    pub fn by_use(&self) -> Vec<Box<str>> {
        let inner = self.inner.read();
        let mut tables: Vec<(u64, Box<str>)> = inner
            .entries
            .iter()
            .map(|(table, entry)| (entry.used_ms.load(Relaxed), table.clone()))
            .collect();
        drop(inner);
        tables.sort_unstable_by_key(|(used_ms, _)| Reverse(*used_ms));
        tables.into_iter().map(|(_, table)| table).collect()
    }

    /// Names that are not cached, as many as the cache has room for.
    pub fn names_not_cached(&self) -> Vec<Box<str>> {
        let inner = self.inner.read();
        let room = self.capacity().saturating_sub(inner.entries.len());
        let names = inner.names.iter().flat_map(Names::iter);
        names.filter(|name| !inner.entries.contains_key(*name)).take(room).map(Box::from).collect()
    }
}

impl Deref for RouteWriter {
    type Target = RouteTable;

    fn deref(&self) -> &RouteTable {
        &self.table
    }
}

impl RouteWriter {
    /// The reading side.
    pub fn table(&self) -> Arc<RouteTable> {
        self.table.clone()
    }

    /// Caches a table. A full cache evicts the tables that were used longest ago.
    pub fn put(&self, table: &str, cached: Cached) {
        let changed_ms = self.table.ms(Instant::now());
        let mut inner = self.table.inner.write();
        match inner.entries.get_mut(table) {
            Some(entry) => {
                (entry.cached, entry.changed_ms) = (cached, changed_ms);
            }
            None => {
                let capacity = self.table.capacity();
                if inner.entries.len() >= capacity {
                    let evicted = evict(&mut inner, capacity);
                    self.table.evicted.add(evicted as u64);
                }
                inner.evicted.forget(table);
                let entry = Entry {
                    cached,
                    fault: None,
                    changed_ms,
                    confirmed_ms: AtomicU64::new(0),
                    is_doubtful: AtomicBool::new(false),
                    is_held: AtomicBool::new(false),
                    used_ms: AtomicU64::new(changed_ms),
                    queries: AtomicU64::new(0),
                    reads: AtomicU64::new(0),
                    record_zxid: AtomicI64::new(0),
                    written_unix_ms: AtomicI64::new(0),
                };
                inner.entries.insert(table.into(), entry);
            }
        }
        self.table.version.fetch_add(1, SeqCst);
    }

    /// Records which change wrote the present record, and when.
    pub fn set_written(&self, table: &str, zxid: i64, unix_ms: i64) {
        if let Some(entry) = self.table.inner.read().entries.get(table) {
            entry.record_zxid.store(zxid, Relaxed);
            entry.written_unix_ms.store(unix_ms, Relaxed);
        }
    }

    /// Records why the present record is unusable, or that it is usable. The cached route stays.
    pub fn set_fault(&self, table: &str, fault: Option<&str>) {
        let is_same = |entry: &Entry| entry.fault.as_deref() == fault;
        // Every read of a record calls this, mostly with no change, so do not block the workers.
        if self.table.inner.read().entries.get(table).is_none_or(is_same) {
            return;
        }
        let fault = fault.map(Box::from);
        if let Some(entry) = self.table.inner.write().entries.get_mut(table) {
            entry.fault = fault;
        }
    }

    /// Confirms the cached record of a table: a read has found it unchanged.
    pub fn confirm(&self, table: &str) {
        if let Some(entry) = self.table.inner.read().entries.get(table) {
            entry.confirmed_ms.store(self.table.ms(Instant::now()), Relaxed);
            entry.is_doubtful.store(false, Relaxed);
        }
    }

    /// Marks the cached record of a table as stale: it can no longer be read, and may have changed.
    pub fn doubt(&self, table: &str) {
        if let Some(entry) = self.table.inner.read().entries.get(table) {
            entry.is_doubtful.store(true, Relaxed);
        }
    }

    /// Marks a table as held, or as present again. Held tables are evicted last.
    pub fn set_held(&self, table: &str, is_held: bool) {
        if let Some(entry) = self.table.inner.read().entries.get(table)
            && entry.is_held.swap(is_held, Relaxed) != is_held
        {
            self.table.version.fetch_add(1, Relaxed);
        }
    }

    /// Publishes the state of the hold.
    pub fn set_hold(&self, view: hold::View) {
        let before = std::mem::replace(&mut *self.table.hold.lock(), view);
        if before.known != view.known || before.shown.is_some() != view.shown.is_some() {
            self.table.version.fetch_add(1, Relaxed);
        }
    }

    /// Counts a ZooKeeper read for a table.
    pub fn count_read(&self, table: &str) {
        if let Some(entry) = self.table.inner.read().entries.get(table) {
            entry.reads.fetch_add(1, Relaxed);
        }
    }

    /// From now on the proxy notices changes: routes confirmed from now on are current.
    pub fn trust(&self) {
        self.table.trusted_since_ms.store(self.table.ms(Instant::now()), Relaxed);
    }

    /// Changes the capacity, and evicts the tables that were used longest ago.
    pub fn set_capacity(&self, capacity: usize) {
        self.table.capacity.store(capacity, Relaxed);
        let mut inner = self.table.inner.write();
        while inner.entries.len() > capacity {
            let evicted = evict(&mut inner, capacity);
            self.table.evicted.add(evicted as u64);
        }
        self.table.version.fetch_add(1, SeqCst);
    }

    /// Makes all routes stale: changes may go unseen.
    pub fn distrust(&self) {
        self.table.trusted_since_ms.store(u64::MAX, Relaxed);
    }

    /// Keeps a route that was evicted before the start, if the cache has no room for it. Otherwise gives it back.
    pub fn keep_evicted(&self, table: &str, route: Evicted) -> Option<Evicted> {
        let mut inner = self.table.inner.write();
        if inner.entries.len() < self.table.capacity() {
            return Some(route);
        }
        inner.evicted.keep(table, route, self.table.capacity());
        None
    }

    /// All that is known comes from another root. The proxy serves cached tables until it has read them again. It
    /// forgets evicted tables, and tables that are evicted before they are read.
    pub fn set_another_root(&self) {
        let mut inner = self.table.inner.write();
        inner.evicted = EvictedRoutes::default();
        inner.root_since_ms = self.table.ms(Instant::now());
        drop(inner);
        self.table.version.fetch_add(1, SeqCst);
    }

    /// Removes a deleted table.
    pub fn remove(&self, table: &str) {
        let mut inner = self.table.inner.write();
        inner.entries.remove(table);
        inner.evicted.forget(table);
        drop(inner);
        self.table.version.fetch_add(1, SeqCst);
    }

    /// Sets the names of all tables; `None`: not known.
    pub fn set_names(&self, names: Option<Names>) {
        let mut inner = self.table.inner.write();
        inner.are_names_current = names.is_some();
        let before = std::mem::replace(&mut inner.names, names);
        drop(inner);
        // Free the thousands of old names without the lock.
        drop(before);
    }

    /// Sets whether the names are current. If not, tables may have been created since they were read.
    pub fn set_names_current(&self, are_current: bool) {
        let mut inner = self.table.inner.write();
        inner.are_names_current = are_current && inner.names.is_some();
    }

    /// How much the list of names says about tables that are not cached.
    pub fn set_absence(&self, absence: Absence) {
        if self.table.inner.read().absence != absence {
            self.table.inner.write().absence = absence;
        }
    }
}

/// Evicts a sixty-fourth of the entries at once, so that a full cache does not search itself for each new table.
/// Returns the number of evicted entries.
fn evict(inner: &mut Inner, capacity: usize) -> usize {
    let Inner { entries, evicted, root_since_ms, .. } = inner;
    let room = (capacity / 64).max(1);
    // Held tables cannot be read again, so evict them last.
    let worth = |entry: &Entry| (entry.is_held.load(Relaxed), entry.used_ms.load(Relaxed));
    let mut used: Vec<(bool, u64)> = entries.values().map(worth).collect();
    let last = room.min(used.len()) - 1;
    let (_, limit, _) = used.select_nth_unstable(last);
    let limit = *limit;
    let mut left = room;
    entries.retain(|table, entry| {
        let goes = left > 0 && worth(entry) <= limit;
        left -= usize::from(goes);
        let known_ms = entry.changed_ms.max(entry.confirmed_ms.load(Relaxed));
        if goes
            && known_ms >= *root_since_ms
            && let Cached::Route(route) = &entry.cached
        {
            let (cluster, meta_addrs) =
                (route.cluster_name.clone(), route.cluster.meta_addrs.clone());
            let record = Record { cluster, meta_addrs };
            evicted.keep(table, Evicted { record, mzxid: route.mzxid }, capacity);
        }
        !goes
    });
    room - left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_cache_evicts_the_table_that_was_used_longest_ago() {
        let (table, writer) = RouteTable::new(3);
        for name in ["a", "b", "c"] {
            writer.put(name, Cached::Unusable);
        }
        let later = Instant::now() + Duration::from_secs(1);
        table.find("a", later);
        table.find("c", later + Duration::from_secs(1));
        writer.put("d", Cached::Unusable);
        assert_eq!(writer.len(), 3);
        assert!(writer.get("b").is_none());
        assert_eq!(&*writer.by_use()[0], "c");
        writer.put("c", Cached::Unusable);
        assert_eq!(writer.len(), 3, "one that is there takes no room");
    }

    #[test]
    fn held_tables_are_evicted_last() {
        let (_, writer) = RouteTable::new(3);
        for name in ["a", "b", "c"] {
            writer.put(name, Cached::Unusable);
        }
        writer.set_held("a", true);
        writer.set_held("b", true);
        writer.put("d", Cached::Unusable);
        assert_eq!(writer.held().len(), 2, "c went");
        writer.set_held("d", true);
        writer.put("e", Cached::Unusable);
        assert_eq!((writer.len(), writer.held().len()), (3, 2), "all were held");
    }

    #[test]
    fn a_route_not_confirmed_since_changes_are_seen_is_stale() {
        let (table, writer) = RouteTable::new(3);
        let stale = |name: &str| {
            table.list().into_iter().find(|listed| &*listed.table == name).unwrap().is_stale
        };
        writer.put("a", Cached::Unusable);
        writer.put("b", Cached::Unusable);
        assert!(stale("a"), "nobody watches");
        writer.trust();
        assert!(stale("a"), "of the state file");
        writer.confirm("a");
        assert!(!stale("a") && stale("b"));
        assert_eq!(table.list()[1].confirmed, None);
        writer.doubt("a");
        assert!(stale("a"), "hidden");
        writer.confirm("a");
        assert!(!stale("a"));
        writer.distrust();
        assert!(stale("a"));
    }

    #[test]
    fn counts_survive_a_change_of_the_route() {
        let (table, writer) = RouteTable::new(3);
        writer.put("a", Cached::Unusable);
        table.find("a", Instant::now());
        writer.count_read("a");
        writer.put("a", Cached::Unusable);
        assert_eq!((table.list()[0].queries, table.list()[0].reads), (1, 1));
    }

    #[test]
    fn a_fault_stays_until_a_record_can_be_used_again() {
        let (table, writer) = RouteTable::new(3);
        let fault = || table.list()[0].fault.as_deref().map(str::to_owned);
        writer.set_fault("a", Some("junk"));
        writer.put("a", Cached::Unusable);
        assert_eq!(fault(), None, "of a table that was not cached");
        writer.set_fault("a", Some("junk"));
        assert_eq!(fault().as_deref(), Some("junk"));
        writer.set_fault("a", None);
        assert_eq!(fault(), None);
    }

    #[test]
    fn a_table_is_unknown_only_if_the_current_names_do_not_have_it() {
        let (table, writer) = RouteTable::new(3);
        let now = Instant::now();
        assert!(matches!(table.find("a", now), Found::Missing));
        writer.set_names(Some(Names::new(vec!["b"])));
        assert!(matches!(table.find("a", now), Found::Unknown));
        assert!(matches!(table.find("b", now), Found::Missing));
        writer.set_names_current(false);
        assert!(matches!(table.find("a", now), Found::Missing), "it may have come since");
        writer.set_names_current(true);
        assert!(matches!(table.find("a", now), Found::Unknown));
        writer.put("a", Cached::Unusable);
        assert!(matches!(table.find("a", now), Found::Unusable), "what is cached counts more");
        writer.remove("a");
        writer.set_names(None);
        assert!(matches!(table.find("a", now), Found::Missing));
    }
}
