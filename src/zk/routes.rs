//! What was read of ZooKeeper, and what it means for the routes.
//!
//! ```text
//! root ──▶ how new the server's data is, and whether names are to be read
//! names ─▶ which tables there are
//! table ─▶ record with addresses ─────────────────────────▶ route
//!          record that names a cluster ─▶ the cluster's record ─▶ routes of all tables that name it
//! ```
//! Routes never go back: older data than is cached is a server that lags behind the one asked before. A record that
//! cannot be used never replaces one that can.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{Level, info, log, warn};

use super::client::{Found, ReadError, What};
use super::planner::Verdict;
use crate::logging::Throttle;
use crate::route::record::{self, BadRecord, Record, Target};
use crate::route::table::{Cached, Route, RouteWriter};
use crate::upstream::cluster::Clusters;
use crate::wire::message::is_table_name;

/// A server that lags is asked again so much later.
const LAG_PAUSE: Duration = Duration::from_millis(200);
/// A server that lags for longer does not lag: its zxids went back, because ZooKeeper was set up anew.
const LAG_LIMIT: Duration = Duration::from_secs(30);
/// A znode that an ACL hides has no watch to tell when that ends.
const NO_AUTH_PAUSE: Duration = Duration::from_secs(5);
/// A cluster's znode that is missing has no watch either.
const NO_CLUSTER_PAUSE: Duration = Duration::from_secs(1);

/// Of a fault so much is kept: it may quote the record.
const MAX_FAULT_BYTES: usize = 300;

/// What a read came to.
pub struct Taken {
    /// For the plan.
    pub verdict: Verdict,
    /// Tables of which it is now known where they live, or that it cannot be known.
    pub known: Vec<Box<str>>,
    /// A table that does not exist.
    pub gone: Option<Box<str>>,
    /// What must be read because of it.
    pub read: Vec<What>,
}

impl Taken {
    fn new(verdict: Verdict) -> Self {
        Taken { verdict, known: Vec::new(), gone: None, read: Vec::new() }
    }
}

/// A cluster that has a znode of its own, and who names it.
#[derive(Default)]
struct NamedCluster {
    record: Option<Record>,
    mzxid: i64,
    /// Why it cannot be used as it was last read; the last good record counts.
    fault: Option<String>,
    /// Tables whose record names it, and the zxid of that record.
    tables: HashMap<Box<str>, i64>,
}

/// The znode above the tables.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Root {
    /// Not looked at yet.
    Unseen,
    Missing,
    /// `pzxid` is that of the last creation or deletion below it.
    There {
        pzxid: i64,
    },
}

/// The routes as ZooKeeper has them. Owned by `zk-watch`.
pub struct Routes {
    root: String,
    clusters_root: Option<String>,
    writer: RouteWriter,
    clusters: Clusters,
    named: HashMap<Box<str>, NamedCluster>,
    names_readable: bool,
    /// As it was when the names were asked for.
    root_of_names: Root,
    /// The newest change that the current client's server is known to know of.
    newest_zxid: i64,
    lagging_since: HashMap<What, Instant>,
    /// When a watch told that a table changed, for the log.
    changed_at: HashMap<Box<str>, Instant>,
}

impl Routes {
    /// Of the tables below `root`, the clusters below `clusters_root`.
    pub fn new(
        root: String,
        clusters_root: Option<String>,
        writer: RouteWriter,
        clusters: Clusters,
    ) -> Self {
        Routes {
            root,
            clusters_root,
            writer,
            clusters,
            named: HashMap::new(),
            names_readable: true,
            root_of_names: Root::Unseen,
            newest_zxid: 0,
            lagging_since: HashMap::new(),
            changed_at: HashMap::new(),
        }
    }

    /// Number of tables cached.
    pub fn cached(&self) -> usize {
        self.writer.len()
    }

    /// Whether a table is cached.
    pub fn has(&self, table: &str) -> bool {
        self.writer.get(table).is_some()
    }

    /// Whether the names of all tables are known, so that one that is missing among them is unknown.
    pub fn names_are_readable(&self) -> bool {
        self.names_readable
    }

    /// All tables cached, the busiest first.
    pub fn by_use(&self) -> Vec<Box<str>> {
        self.writer.by_use()
    }

    /// The clusters that tables name.
    pub fn named_clusters(&self) -> Vec<What> {
        self.named.keys().cloned().map(What::Cluster).collect()
    }

    /// A new client, perhaps of another server: nothing is known of how new its data is.
    pub fn new_client(&mut self) {
        self.writer.trust();
        self.newest_zxid = 0;
        self.names_readable = true;
        self.root_of_names = Root::Unseen;
        // A table that waits for its cluster is not cached, and so not read again: its record may be old by now.
        self.forget_unnamed();
    }

    /// Without a client nobody can tell which tables there are not.
    pub fn lost_client(&mut self) {
        self.writer.distrust();
        self.writer.set_names(None);
        self.changed_at.clear();
    }

    /// What a watch's path is about; `None` if it is none of ours.
    pub fn what_is(&self, path: &str) -> Option<What> {
        let below = |root: &str| path.strip_prefix(root)?.strip_prefix('/').map(Box::from);
        if let Some(cluster) = self.clusters_root.as_deref().and_then(below) {
            return Some(What::Cluster(cluster));
        }
        match path == self.root {
            true => Some(What::Names),
            false => below(&self.root).map(What::Table),
        }
    }

    /// A watch told of a change.
    pub fn changed(&mut self, what: &What, now: Instant) {
        if let What::Table(table) = what {
            self.changed_at.insert(table.clone(), now);
        }
    }

    /// Forgets clusters that no cached table names.
    pub fn forget_unnamed(&mut self) {
        for cluster in self.named.values_mut() {
            cluster.tables.retain(|table, _| self.writer.get(table).is_some());
        }
        self.named.retain(|_, cluster| !cluster.tables.is_empty());
        let cached = |what: &What| match what {
            What::Table(table) => self.writer.get(table).is_some(),
            other => matches!(other, What::Cluster(name) if self.named.contains_key(name)),
        };
        self.lagging_since.retain(|what, _| cached(what));
    }

    /// A read ended, and its client is not in doubt.
    pub fn take(&mut self, what: &What, found: Result<Found, ReadError>, now: Instant) -> Taken {
        match what {
            What::Root => self.take_root(found),
            What::Names => self.take_names(found),
            What::Table(table) => {
                let taken = self.take_table(table, found, now);
                self.writer.count_read(table);
                if taken.verdict == Verdict::Settled {
                    self.writer.confirm(table);
                }
                taken
            }
            What::Cluster(name) => self.take_cluster(name, found, now),
        }
    }

    fn take_root(&mut self, found: Result<Found, ReadError>) -> Taken {
        let mut taken = Taken::new(Verdict::Settled);
        let root = match found {
            Ok(Found::Root { pzxid }) => {
                self.newest_zxid = self.newest_zxid.max(pzxid);
                Root::There { pzxid }
            }
            _ => Root::Missing,
        };
        // The watch on the names is not to be trusted blindly: ZooKeeper drops it without a word when a table comes or
        // goes while an ACL hides them.
        if root != self.root_of_names || (root != Root::Missing && !self.names_readable) {
            self.root_of_names = root;
            taken.read.push(What::Names);
        }
        taken
    }

    fn take_names(&mut self, found: Result<Found, ReadError>) -> Taken {
        let names: Result<HashSet<Box<str>>, &str> = match found {
            Ok(Found::Names(names)) => {
                let names = names.into_iter().filter(|name| is_table_name(name));
                Ok(names.map(Box::from).collect())
            }
            Err(ReadError::NoNode) => Err("it does not exist, so there are no tables"),
            _ => Err("its children may not be read, so each unknown table costs a read"),
        };
        let was_readable = mem::replace(&mut self.names_readable, names.is_ok());
        match &names {
            Ok(names) if !was_readable => info!("root {}: {} tables", self.root, names.len()),
            Err(why) if was_readable => warn!("root {}: {why}", self.root),
            _ => {}
        }
        self.writer.set_names(names.ok());
        Taken::new(Verdict::Settled)
    }

    /// The names of tables that are not cached, as many as there is room for.
    pub fn names_to_preload(&self) -> Vec<Box<str>> {
        self.writer.names_not_cached()
    }

    fn route_of(&self, table: &str) -> Option<Arc<Route>> {
        match self.writer.get(table) {
            Some(Cached::Route(route)) => Some(route),
            Some(Cached::Unusable) | None => None,
        }
    }

    /// Whether data of `zxid` is to be taken for that of a server that lags behind, `known` being cached.
    fn lags(&mut self, what: What, zxid: i64, known: i64, now: Instant) -> bool {
        if zxid >= known {
            self.lagging_since.remove(&what);
            return false;
        }
        let since = *self.lagging_since.entry(what.clone()).or_insert(now);
        let lags = now < since + LAG_LIMIT;
        if !lags {
            warn!("{what:?}: its zxid went back for {LAG_LIMIT:?}; taken as it is now");
            self.lagging_since.remove(&what);
        }
        lags
    }

    fn take_table(&mut self, table: &str, found: Result<Found, ReadError>, now: Instant) -> Taken {
        let before = self.route_of(table);
        let known_zxid = before.as_ref().map_or(0, |route| route.mzxid);
        let what = What::Table(table.into());
        match found {
            Ok(Found::Record { data, mzxid }) => {
                self.newest_zxid = self.newest_zxid.max(mzxid);
                if self.lags(what, mzxid, known_zxid, now) {
                    return Taken::new(Verdict::Again(LAG_PAUSE));
                }
                self.take_record(table, &data, mzxid)
            }
            Err(ReadError::NoNode) => {
                // A server that knows of nothing as new as this route may only not have it yet.
                if self.lags(what, self.newest_zxid, known_zxid, now) {
                    return Taken::new(Verdict::Again(LAG_PAUSE));
                }
                self.detach(table);
                self.writer.remove(table);
                self.changed_at.remove(table);
                if let Some(route) = before {
                    info!("table={table} from={} to=none", route.cluster_name);
                }
                let mut taken = Taken::new(Verdict::Settled);
                taken.gone = Some(table.into());
                taken
            }
            Ok(_) | Err(_) => {
                static HIDDEN: Throttle = Throttle::new();
                if let Some(hidden) = HIDDEN.pass() {
                    warn!("table={table}: an ACL forbids to read its znode{hidden}");
                }
                self.unusable(table, "an ACL forbids to read its znode");
                let mut taken = Taken::new(Verdict::Again(NO_AUTH_PAUSE));
                taken.known.push(table.into());
                taken
            }
        }
    }

    fn take_record(&mut self, table: &str, data: &[u8], mzxid: i64) -> Taken {
        let target = match self.clusters_root {
            Some(_) => record::read_target(data),
            None => record::read(data).map(Target::Here),
        };
        let mut taken = Taken::new(Verdict::Settled);
        self.detach(table);
        match target {
            Ok(Target::Here(record)) => {
                self.put(table, record, mzxid);
                self.note_fault(table, None);
            }
            Ok(Target::Cluster(name)) => {
                let cluster = self.named.entry(name.as_str().into()).or_default();
                cluster.tables.insert(table.into(), mzxid);
                match (cluster.record.clone(), cluster.fault.clone()) {
                    (Some(record), fault) => {
                        self.put(table, record, mzxid);
                        self.note_fault(table, fault.as_deref());
                    }
                    (None, Some(fault)) => self.unusable(table, &fault),
                    (None, None) => {
                        // The table is known when its cluster is.
                        taken.read.push(What::Cluster(name.into()));
                        return taken;
                    }
                }
            }
            Err(fault) => {
                self.warn_of(&format!("{}/{table}", self.root), mzxid, &fault);
                self.unusable(table, &fault.to_string());
            }
        }
        taken.known.push(table.into());
        taken
    }

    fn take_cluster(&mut self, name: &str, found: Result<Found, ReadError>, now: Instant) -> Taken {
        let known_zxid = match self.named.get(name) {
            Some(cluster) => cluster.mzxid,
            None => return Taken::new(Verdict::Settled), // nobody names it any more
        };
        let clusters_root = self.clusters_root.clone().unwrap_or_default();
        let (record, verdict) = match found {
            Ok(Found::Record { data, mzxid }) => {
                self.newest_zxid = self.newest_zxid.max(mzxid);
                if self.lags(What::Cluster(name.into()), mzxid, known_zxid, now) {
                    return Taken::new(Verdict::Again(LAG_PAUSE));
                }
                let record = record::read(&data).map_err(|fault| {
                    self.warn_of(&format!("{clusters_root}/{name}"), mzxid, &fault);
                    format!("znode {clusters_root}/{name}: {fault}")
                });
                let named = record.map(|record| Record { cluster: name.to_owned(), ..record });
                (named.map(|record| (record, mzxid)), Verdict::Settled)
            }
            Ok(_) | Err(_) => {
                static MISSING: Throttle = Throttle::new();
                if let Some(hidden) = MISSING.pass() {
                    warn!(
                        "znode {clusters_root}/{name}: tables name it, it cannot be read{hidden}"
                    );
                }
                let fault = format!("znode {clusters_root}/{name} cannot be read");
                (Err(fault), Verdict::Again(NO_CLUSTER_PAUSE))
            }
        };
        let mut taken = Taken::new(verdict);
        let Some(cluster) = self.named.get_mut(name) else {
            return taken;
        };
        match record {
            Ok((record, mzxid)) => {
                cluster.mzxid = mzxid;
                (cluster.record, cluster.fault) = (Some(record), None);
            }
            Err(fault) => cluster.fault = Some(fault),
        }
        let tables: Vec<(Box<str>, i64)> =
            cluster.tables.iter().map(|(table, mzxid)| (table.clone(), *mzxid)).collect();
        let (record, fault) = (cluster.record.clone(), cluster.fault.clone());
        for (table, mzxid) in tables {
            if let Some(record) = &record {
                self.put(&table, record.clone(), mzxid);
            }
            match &fault {
                Some(fault) => self.unusable(&table, fault),
                None => self.note_fault(&table, None),
            }
            taken.known.push(table);
        }
        taken
    }

    /// The table's record does not name the cluster any more that it named.
    fn detach(&mut self, table: &str) {
        for cluster in self.named.values_mut() {
            cluster.tables.remove(table);
        }
    }

    fn warn_of(&self, znode: &str, mzxid: i64, fault: &BadRecord) {
        warn!("znode {znode} zxid={mzxid:#x}: {fault}; the last good one counts, if there is one");
    }

    /// The last good route counts; what is wrong with the record shows beside it.
    fn unusable(&self, table: &str, fault: &str) {
        if !self.has(table) {
            self.writer.put(table, Cached::Unusable);
        }
        self.note_fault(table, Some(fault));
    }

    fn note_fault(&self, table: &str, fault: Option<&str>) {
        let bounded = |fault: &str| fault.floor_char_boundary(MAX_FAULT_BYTES);
        self.writer.set_fault(table, fault.map(|fault| &fault[..bounded(fault)]));
    }

    fn put(&mut self, table: &str, record: Record, mzxid: i64) {
        let before = self.route_of(table);
        let cluster_name = record.cluster.clone();
        let cluster = self.clusters.get(record);
        let took = self.changed_at.remove(table).map(|at| at.elapsed());
        if let Some(route) = &before
            && Arc::ptr_eq(&route.cluster, &cluster)
            && route.mzxid == mzxid
        {
            return;
        }
        // First sights, thousands of them after a start, tell nobody anything.
        let level = if before.is_some() { Level::Info } else { Level::Debug };
        let from = before.as_ref().map_or("none", |route| &route.cluster_name);
        let metas = &cluster.meta_addrs;
        log!(
            level,
            "table={table} from={from} to={cluster_name} zxid={mzxid:#x} metas={metas:?} took={took:?}"
        );
        let route = Route { cluster_name, cluster, mzxid };
        self.writer.put(table, Cached::Route(Arc::new(route)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patience::QueryTimeout;
    use crate::resolve::Resolver;
    use crate::route::table::RouteTable;
    use crate::upstream::cluster::{Upstream, UpstreamLimits};

    fn routes() -> Routes {
        table_and_routes().1
    }

    fn table_and_routes() -> (Arc<RouteTable>, Routes) {
        let limits = UpstreamLimits { max_calls: 1 };
        let query_timeout = Arc::new(QueryTimeout::new(Duration::from_secs(1)));
        let resolver = Resolver::start().unwrap();
        let clusters = Clusters::new(Arc::new(Upstream { resolver, limits, query_timeout }));
        let (table, writer) = RouteTable::new(10);
        (table, Routes::new("/r".to_owned(), Some("/c".to_owned()), writer, clusters))
    }

    #[test]
    fn names_are_read_when_the_root_is_another_than_it_was() {
        let mut routes = routes();
        let now = Instant::now();
        let read_names = [What::Names];
        let mut beat = |root| !routes.take(&What::Root, root, now).read.is_empty();
        let there = |pzxid| Ok(Found::Root { pzxid });
        for (why, root, want) in [
            ("a first look", there(7), true),
            ("nothing came or went", there(7), false),
            ("a table came", there(8), true),
            ("it is gone", Err(ReadError::NoNode), true),
            ("it is still gone", Err(ReadError::NoNode), false),
            ("it is back", there(9), true),
        ] {
            assert_eq!(beat(root), want, "{why}");
        }
        routes.new_client();
        assert_eq!(routes.take(&What::Root, there(9), now).read, read_names, "another server");
        routes.take(&What::Names, Err(ReadError::NoAuth), now);
        assert_eq!(routes.take(&What::Root, there(9), now).read, read_names, "they are hidden");
    }

    fn record(text: &str, mzxid: i64) -> Result<Found, ReadError> {
        Ok(Found::Record { data: text.into(), mzxid })
    }

    #[test]
    fn a_table_that_waited_for_its_cluster_is_read_again_after_a_reconnect() {
        let mut routes = routes();
        let (table, cluster) = (What::Table("t".into()), What::Cluster("c1".into()));
        let names_cluster = || record(r#"{"cluster": "c1"}"#, 1);
        let now = Instant::now();
        let taken = routes.take(&table, names_cluster(), now);
        assert_eq!(taken.read, [What::Cluster("c1".into())]);
        routes.lost_client();
        routes.new_client();
        let metas = || record(r#"{"meta_addrs": "h:1"}"#, 2);
        let taken = routes.take(&cluster, metas(), now);
        assert!(taken.known.is_empty() && !routes.has("t"), "its record may name another by now");
        routes.take(&table, names_cluster(), now);
        let taken = routes.take(&cluster, metas(), now);
        assert!(taken.known == ["t".into()] && routes.has("t"));
    }

    #[test]
    fn a_fault_of_a_cluster_is_one_of_its_tables() {
        let (table, mut routes) = table_and_routes();
        let (t, cluster) = (What::Table("t".into()), What::Cluster("c1".into()));
        let now = Instant::now();
        let shown = || table.list()[0].fault.as_deref().map(str::to_owned);
        let names_cluster = || record(r#"{"cluster": "c1"}"#, 1);
        routes.take(&t, names_cluster(), now);
        routes.take(&cluster, record(r#"{"meta_addrs": "h:1"}"#, 2), now);
        assert_eq!(shown(), None);
        let fault = "znode /c/c1: want a JSON object, got ";
        routes.take(&cluster, record("junk", 3), now);
        assert!(shown().is_some_and(|shown| shown.starts_with(fault)), "{:?}", shown());
        routes.take(&t, names_cluster(), now);
        assert!(shown().is_some_and(|shown| shown.starts_with(fault)), "read again: {:?}", shown());
        routes.take(&cluster, record(r#"{"meta_addrs": "h:1"}"#, 4), now);
        assert_eq!(shown(), None);
    }
}
