//! What was read of ZooKeeper, and what it means for the routes.
//!
//! ```text
//! root ──▶ how new the server's data is, and whether names are to be read
//! names ─▶ which tables there are
//! table ─▶ record with addresses ─────────────────────────▶ route
//!          record that names a cluster ─▶ the cluster's record ─▶ routes of all tables that name it
//! ```
//! Routes never go back: older data than was seen is of a server that lags, and not taken. A record that cannot be used
//! never replaces one that can.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{Level, info, log, warn};

use super::codec::{Op, Stat};
use super::flaps::Flaps;
use super::lag::is_older;
use super::planner::Verdict;
use super::read::{Found, Paths, ReadError, What};
use crate::logging::Throttle;
use crate::route::names::Names;
use crate::route::record::{self, BadRecord, Record, Target};
use crate::route::table::{Cached, Route, RouteWriter};
use crate::upstream::cluster::Clusters;
use crate::wire::message::is_table_name;

/// A znode that an ACL hides has no watch to tell when that ends.
const NO_AUTH_PAUSE: Duration = Duration::from_secs(5);
/// Tables remembered as deleted at most.
const MAX_DELETED: usize = 10_000;

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
    /// The last good one, if there was one.
    record: Option<Record>,
    mzxid: i64,
    sight: Sight,
    /// It is missing, or hidden.
    is_unreadable: bool,
    /// It is missing: its watch tells when it comes.
    is_missing: bool,
    /// Why it cannot be used as it was last read; the last good record counts.
    fault: Option<String>,
    /// Tables whose record names it.
    tables: HashMap<Box<str>, Naming>,
}

/// How far a cluster's record is known to the current client.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Sight {
    #[default]
    Unread,
    /// It is to be read.
    Asked,
    Read,
}

/// A table's record that names a cluster.
#[derive(Clone, Copy)]
struct Naming {
    mzxid: i64,
    /// It was read since the client came.
    is_current: bool,
    /// Not cached yet, and to be when the cluster is read.
    is_wanted: bool,
    /// The record that is there now cannot be used; the last good one named the cluster.
    has_fault: bool,
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
    /// The names are to be read, be it later.
    are_names_due: bool,
    /// The newest change that was ever seen.
    newest_zxid: i64,
    /// The newest creation or deletion below the root that was ever seen.
    newest_root_zxid: i64,
    /// The newest change that the current client's server is known to know of.
    server_zxid: i64,
    /// ZooKeeper was set up anew: what is cached is confirmed without regard to its zxids.
    is_anew: bool,
    /// When a watch told that a table or cluster changed, for the log.
    changed_at: HashMap<What, Instant>,
    /// Tables that were deleted, for the log: their return is no first sight.
    deleted: HashSet<Box<str>>,
    flaps: Flaps,
}

impl Routes {
    /// Of the tables below `root`, the clusters below `clusters_root`.
    pub fn new(
        root: String,
        clusters_root: Option<String>,
        writer: RouteWriter,
        clusters: Clusters,
    ) -> Self {
        let newest = |cached: Option<Cached>| match cached {
            Some(Cached::Route(route)) => route.mzxid,
            Some(Cached::Unusable) | None => 0,
        };
        let kept = writer.by_use().into_iter().map(|table| newest(writer.get(&table)));
        Routes {
            newest_zxid: kept.max().unwrap_or(0),
            newest_root_zxid: 0,
            server_zxid: 0,
            is_anew: false,
            root,
            clusters_root,
            writer,
            clusters,
            named: HashMap::new(),
            names_readable: true,
            root_of_names: Root::Unseen,
            are_names_due: false,
            changed_at: HashMap::new(),
            deleted: HashSet::new(),
            flaps: Flaps::default(),
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

    /// Whether the names of all tables are known, be it as they were a while ago.
    pub fn names_are_known(&self) -> bool {
        self.writer.names().0
    }

    /// Whether a table that is missing among the names is unknown.
    pub fn names_are_current(&self) -> bool {
        self.writer.names().1
    }

    /// Names came or went. Until they are read again, each that is not among them costs a read.
    pub fn names_changed(&mut self) {
        self.writer.set_names_current(false);
        self.root_of_names = Root::Unseen;
    }

    /// Names came or went while they were being read; they are read again.
    pub fn names_are_old(&mut self) {
        self.writer.set_names_current(false);
        self.are_names_due = true;
    }

    /// Whether anybody would miss a table or cluster.
    pub fn is_used(&self, what: &What) -> bool {
        match what {
            What::Table(table) => self.has(table) || self.naming(table).is_some(),
            What::Cluster(name) => self.named.contains_key(name),
            What::Root | What::Names => true,
        }
    }

    /// The request that sets watches again which another connection had.
    pub fn set_watches(&self, since: i64, set: &[What], paths: &Paths) -> Op {
        let (mut data, mut exist, mut child) = (Vec::new(), Vec::new(), Vec::new());
        for what in set {
            let is_missing = |name| self.named.get(name).is_some_and(|named| named.is_missing);
            let watches = match what {
                What::Names => &mut child,
                What::Cluster(name) if is_missing(name) => &mut exist,
                What::Root | What::Table(_) | What::Cluster(_) => &mut data,
            };
            watches.push(paths.of(what));
        }
        Op::SetWatches { since, data, exist, child }
    }

    /// The watch of a znode stands again, and it has not changed meanwhile. Tables of which it is now known where they
    /// live.
    pub fn rearmed(&mut self, what: &What) -> Vec<Box<str>> {
        match what {
            What::Table(table) => match self.naming(table) {
                Some((name, naming)) => self.follow(table, &name, naming).known,
                None => {
                    self.writer.confirm(table);
                    vec![table.clone()]
                }
            },
            What::Cluster(name) => match self.named.get_mut(name) {
                Some(cluster) => {
                    cluster.sight = Sight::Read;
                    self.put_tables_of(name)
                }
                None => Vec::new(),
            },
            What::Root | What::Names => Vec::new(),
        }
    }

    /// All tables cached, the busiest first.
    pub fn by_use(&self) -> Vec<Box<str>> {
        self.writer.by_use()
    }

    /// The clusters that tables name.
    pub fn named_clusters(&self) -> Vec<What> {
        self.named.keys().cloned().map(What::Cluster).collect()
    }

    /// The newest change that was ever seen: who does not know of it lags.
    pub fn newest_zxid(&self) -> i64 {
        self.newest_zxid
    }

    /// ZooKeeper was set up anew, and its zxids began again.
    pub fn set_up_anew(&mut self) {
        (self.newest_zxid, self.newest_root_zxid, self.is_anew) = (0, 0, true);
    }

    /// All that was cached when the client came has been read.
    pub fn all_confirmed(&mut self) {
        self.is_anew = false;
    }

    /// A new client, perhaps of another server, which is known to know of the change `server_zxid`.
    pub fn new_client(&mut self, server_zxid: i64) {
        self.writer.trust();
        self.server_zxid = server_zxid;
        for cluster in self.named.values_mut() {
            // Who gets a client reads all clusters that are named.
            cluster.sight = Sight::Asked;
            for naming in cluster.tables.values_mut() {
                // Who is wanted is missed anew: its record may be old by now.
                (naming.is_current, naming.is_wanted) = (false, false);
            }
        }
        self.forget_unnamed();
    }

    /// Without a client nobody can tell which tables there are not.
    pub fn lost_client(&mut self) {
        self.writer.distrust();
        self.writer.set_names_current(false);
        self.changed_at.clear();
    }

    /// What a watch's path is about; `None` if it is none of ours.
    pub fn what_is(&self, path: &str) -> Option<What> {
        if path == self.root {
            return Some(What::Root);
        }
        let (above, name) = path.rsplit_once('/')?;
        match above {
            above if above == self.root => Some(What::Table(name.into())),
            above if Some(above) == self.clusters_root.as_deref() => {
                Some(What::Cluster(name.into()))
            }
            _ => None,
        }
    }

    /// Tells of tables that change so often that not each change had a line.
    pub fn tell_of_flaps(&mut self, now: Instant) {
        for (table, hidden) in self.flaps.ended(now) {
            let to = self.route_of(&table).map_or("none".to_owned(), |r| r.cluster_name.clone());
            warn!("table={table} to={to}: {hidden} more changes of this table were not shown");
        }
    }

    /// A watch told of a change.
    pub fn changed(&mut self, what: &What, now: Instant) {
        if matches!(what, What::Table(_) | What::Cluster(_)) {
            // The first that was not taken yet: a change of a change took as long.
            self.changed_at.entry(what.clone()).or_insert(now);
        }
    }

    /// Forgets all clusters: their tables are read again, and name them anew.
    pub fn forget_named(&mut self) {
        self.named.clear();
    }

    /// Forgets clusters that no cached table names.
    pub fn forget_unnamed(&mut self) {
        for cluster in self.named.values_mut() {
            let is_cached = |table: &str| self.writer.get(table).is_some();
            cluster.tables.retain(|table, naming| naming.is_wanted || is_cached(table));
        }
        self.named.retain(|_, cluster| !cluster.tables.is_empty());
    }

    /// A read ended, and its client is not in doubt. A table that is not cached is now only if it `is_wanted`.
    /// `Err`: now the client is in doubt, its server lags.
    pub fn take(
        &mut self,
        what: &What,
        found: Result<Found, ReadError>,
        is_wanted: bool,
    ) -> Result<Taken, String> {
        match what {
            What::Root => self.take_root(found),
            What::Names => Ok(self.take_names(found)),
            What::Table(table) => {
                let taken = self.take_table(table, found, is_wanted);
                self.writer.count_read(table);
                // Who waits for his cluster has not changed yet.
                if !matches!(&taken, Ok(Taken { verdict: Verdict::Waits, .. })) {
                    self.changed_at.remove(what);
                }
                taken
            }
            What::Cluster(name) => {
                let taken = self.take_cluster(name, found);
                self.changed_at.remove(what);
                taken
            }
        }
    }

    /// The server knows of this change.
    pub fn knows(&mut self, zxid: i64) {
        self.server_zxid = self.server_zxid.max(zxid);
        self.newest_zxid = self.newest_zxid.max(zxid);
    }

    /// Whether what was read of a znode is as new as what was seen of it before.
    fn check(&self, znode: &str, zxid: i64, known: i64) -> Result<(), String> {
        match is_older(zxid, known) && !self.is_anew {
            true => Err(format!("it lags, znode {znode} zxid={zxid:#x} is behind {known:#x}")),
            false => Ok(()),
        }
    }

    fn take_root(&mut self, found: Result<Found, ReadError>) -> Result<Taken, String> {
        let mut taken = Taken::new(Verdict::Settled);
        let known = self.newest_root_zxid;
        let root = match found {
            Ok(Found::Root(Stat { pzxid, .. })) => {
                self.check(&self.root, pzxid, known)?;
                self.knows(pzxid);
                self.newest_root_zxid = pzxid.max(known);
                Root::There { pzxid }
            }
            found => {
                if let Ok(Found::NoRoot { pzxid }) = found {
                    self.knows(pzxid);
                }
                self.check(&self.root, self.server_zxid, known)?;
                Root::Missing
            }
        };
        // Their own watch only says that the root is to be read, and is not trusted even so far: ZooKeeper drops it
        // without a word when a table comes or goes while an ACL hides them.
        if root != self.root_of_names || (root != Root::Missing && !self.names_readable) {
            (self.root_of_names, self.are_names_due) = (root, true);
            self.writer.set_names_current(false);
            taken.read.push(What::Names);
        } else if !self.are_names_due {
            self.writer.set_names_current(true);
        }
        Ok(taken)
    }

    fn take_names(&mut self, found: Result<Found, ReadError>) -> Taken {
        let names: Result<Names, &str> = match found {
            Ok(Found::Names(names)) if names.iter().all(is_table_name) => Ok(names),
            Ok(Found::Names(names)) => {
                Ok(Names::new(names.iter().filter(|name| is_table_name(name)).collect()))
            }
            Err(ReadError::NoNode) => Err("it does not exist, so there are no tables"),
            _ => Err("its children may not be read, so each unknown table costs a read"),
        };
        self.are_names_due = false;
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

    fn take_table(
        &mut self,
        table: &str,
        found: Result<Found, ReadError>,
        is_wanted: bool,
    ) -> Result<Taken, String> {
        let before = self.route_of(table);
        let known = before.as_ref().map_or(0, |route| route.mzxid);
        let znode = format!("{}/{table}", self.root);
        let is_wanted = is_wanted || self.naming(table).is_some_and(|(_, n)| n.is_wanted);
        match found {
            Ok(Found::Record { data, stat: Stat { mzxid, .. } }) => {
                self.check(&znode, mzxid, known)?;
                self.knows(mzxid);
                match is_wanted || self.has(table) {
                    true => Ok(self.take_record(table, &data, mzxid, is_wanted)),
                    // It had to make room while it was read.
                    false => Ok(Taken::new(Verdict::Settled)),
                }
            }
            Ok(Found::Absent { .. }) => {
                // A server that knows of nothing as new as this route may only not have it yet.
                self.check(&znode, self.server_zxid, known)?;
                self.detach(table);
                self.writer.remove(table);
                if let Some(route) = before {
                    let took = self.took(table, None);
                    if self.flaps.shows(table, Instant::now()) {
                        info!("table={table} from={} to=none{took}", route.cluster_name);
                    }
                    if self.deleted.len() >= MAX_DELETED {
                        self.deleted.clear();
                    }
                    self.deleted.insert(table.into());
                }
                let mut taken = Taken::new(Verdict::Settled);
                taken.gone = Some(table.into());
                Ok(taken)
            }
            Ok(_) | Err(_) if !is_wanted && !self.has(table) => Ok(Taken::new(Verdict::Settled)),
            Ok(_) | Err(_) => {
                static HIDDEN: Throttle = Throttle::new();
                if let Some(hidden) = HIDDEN.pass() {
                    warn!("table={table}: an ACL forbids to read its znode{hidden}");
                }
                self.unusable(table, "an ACL forbids reading its znode");
                self.writer.doubt(table);
                let mut taken = Taken::new(Verdict::Again(NO_AUTH_PAUSE));
                taken.known.push(table.into());
                Ok(taken)
            }
        }
    }

    fn take_record(&mut self, table: &str, data: &[u8], mzxid: i64, is_wanted: bool) -> Taken {
        let target = match self.clusters_root {
            Some(_) => record::read_target(data),
            None => record::read(data).map(Target::Here),
        };
        match target {
            Ok(Target::Cluster(name)) => {
                let naming = Naming { mzxid, is_current: true, is_wanted, has_fault: false };
                self.detach(table);
                let cluster = self.named.entry(name.as_str().into()).or_default();
                cluster.tables.insert(table.into(), naming);
            }
            Ok(Target::Here(record)) => {
                self.detach(table);
                self.put(table, record, mzxid, None);
                self.note_fault(table, None);
            }
            Err(fault) => {
                self.warn_of(&format!("{}/{table}", self.root), mzxid, &fault);
                self.unusable(table, &fault.to_string());
            }
        }
        // Who has junk now still follows the cluster that its last good record named.
        if let Some((name, naming)) = self.naming(table) {
            return self.follow(table, &name, naming);
        }
        self.writer.confirm(table);
        let mut taken = Taken::new(Verdict::Settled);
        taken.known.push(table.into());
        taken
    }

    /// The cluster that a table names.
    fn naming(&self, table: &str) -> Option<(Box<str>, Naming)> {
        let of = |cluster: &NamedCluster| cluster.tables.get(table).copied();
        self.named.iter().find_map(|(name, cluster)| Some((name.clone(), of(cluster)?)))
    }

    /// A table lives where its cluster's record says, which is as new as the client only if the client has read it.
    fn follow(&mut self, table: &str, name: &str, naming: Naming) -> Taken {
        let cluster = self.named.entry(name.into()).or_default();
        let naming = Naming { is_current: true, ..naming };
        cluster.tables.insert(table.into(), naming);
        let mut taken = Taken::new(Verdict::Waits);
        match cluster.sight {
            Sight::Unread => {
                cluster.sight = Sight::Asked;
                taken.read.push(What::Cluster(name.into()));
            }
            Sight::Asked => {}
            Sight::Read => {
                self.put_named(name, table, naming);
                taken.verdict = Verdict::Settled;
                taken.known.push(table.into());
            }
        }
        taken
    }

    /// What a cluster's record, which has been read, means for a table that names it.
    fn put_named(&mut self, name: &str, table: &str, naming: Naming) {
        let Some(cluster) = self.named.get_mut(name) else {
            return;
        };
        cluster.tables.insert(table.into(), Naming { is_wanted: false, ..naming });
        let (is_unreadable, fault) = (cluster.is_unreadable, cluster.fault.clone());
        match cluster.record.clone() {
            Some(record) => self.put(table, record, naming.mzxid, Some(name)),
            None => self.put_unusable(table),
        }
        // The table's own fault counts more.
        if !naming.has_fault {
            self.note_fault(table, fault.as_deref());
        }
        match (is_unreadable, naming.is_current) {
            (true, _) => self.writer.doubt(table),
            (false, true) => self.writer.confirm(table),
            (false, false) => {} // by now it may name another
        }
    }

    fn take_cluster(
        &mut self,
        name: &str,
        found: Result<Found, ReadError>,
    ) -> Result<Taken, String> {
        let known = match self.named.get(name) {
            Some(cluster) => cluster.mzxid,
            None => return Ok(Taken::new(Verdict::Settled)), // nobody names it any more
        };
        let znode = format!("{}/{name}", self.clusters_root.as_deref().unwrap_or_default());
        let mut taken = Taken::new(Verdict::Settled);
        let (mut is_unreadable, mut is_missing) = (false, false);
        let record = match found {
            Ok(Found::Record { data, stat: Stat { mzxid, .. } }) => {
                self.check(&znode, mzxid, known)?;
                self.knows(mzxid);
                let record = record::read(&data).map_err(|fault| {
                    self.warn_of(&znode, mzxid, &fault);
                    format!("znode {znode}: {fault}")
                });
                record.map(|record| (record, mzxid))
            }
            unreadable => {
                // Of one that is missing a watch tells when it comes.
                is_missing = unreadable == Err(ReadError::NoNode);
                if !is_missing {
                    taken.verdict = Verdict::Again(NO_AUTH_PAUSE);
                }
                static UNREADABLE: Throttle = Throttle::new();
                if let Some(hidden) = UNREADABLE.pass() {
                    warn!("znode {znode}: tables name it, it cannot be read{hidden}");
                }
                is_unreadable = true;
                Err(format!("znode {znode} cannot be read"))
            }
        };
        let Some(cluster) = self.named.get_mut(name) else {
            return Ok(taken);
        };
        cluster.sight = Sight::Read;
        (cluster.is_unreadable, cluster.is_missing) = (is_unreadable, is_missing);
        cluster.fault = match record {
            Ok((record, mzxid)) => {
                cluster.record = Some(Record { cluster: name.to_owned(), ..record });
                cluster.mzxid = mzxid;
                None
            }
            Err(fault) => Some(fault),
        };
        taken.known = self.put_tables_of(name);
        Ok(taken)
    }

    /// A cluster's record is known. Tables of which it is now known where they live.
    fn put_tables_of(&mut self, name: &str) -> Vec<Box<str>> {
        let Some(cluster) = self.named.get_mut(name) else {
            return Vec::new();
        };
        // Tables that had to make room do not come back by it.
        cluster.tables.retain(|table, naming| naming.is_wanted || self.writer.get(table).is_some());
        let mut known = Vec::new();
        for (table, naming) in cluster.tables.clone() {
            self.put_named(name, &table, naming);
            if naming.is_current {
                known.push(table);
            }
        }
        known
    }

    /// The table's record does not name the cluster any more that it named.
    fn detach(&mut self, table: &str) {
        for cluster in self.named.values_mut() {
            cluster.tables.remove(table);
        }
    }

    fn warn_of(&mut self, znode: &str, mzxid: i64, fault: &BadRecord) {
        let name = znode.rsplit_once('/').map_or(znode, |(_, name)| name);
        if !self.flaps.shows(name, Instant::now()) {
            return;
        }
        warn!("znode {znode} zxid={mzxid:#x}: {fault}; the last good one counts, if there is one");
    }

    /// The table's record cannot be used. The last good route counts; what is wrong shows beside it.
    fn unusable(&mut self, table: &str, fault: &str) {
        for cluster in self.named.values_mut() {
            if let Some(naming) = cluster.tables.get_mut(table) {
                naming.has_fault = true;
            }
        }
        self.put_unusable(table);
        self.note_fault(table, Some(fault));
    }

    fn put_unusable(&self, table: &str) {
        if self.writer.get(table).is_none() {
            self.writer.put(table, Cached::Unusable);
        }
    }

    fn note_fault(&self, table: &str, fault: Option<&str>) {
        let bounded = |fault: &str| fault.floor_char_boundary(MAX_FAULT_BYTES);
        self.writer.set_fault(table, fault.map(|fault| &fault[..bounded(fault)]));
    }

    /// Caches a route, of its own record or of the cluster `named` in it.
    fn put(&mut self, table: &str, record: Record, mzxid: i64, named: Option<&str>) {
        let before = self.writer.get(table);
        let took = self.took(table, named);
        // Its change is taken, be it one to what it was.
        self.changed_at.remove(&What::Table(table.into()));
        let cluster_name = record.cluster.clone();
        let cluster = self.clusters.get(record);
        if let Some(Cached::Route(route)) = &before
            && Arc::ptr_eq(&route.cluster, &cluster)
            && route.mzxid == mzxid
        {
            return;
        }
        // First sights, thousands of them after a start, tell nobody anything.
        let is_news = self.deleted.remove(table) || before.is_some();
        let level = if is_news { Level::Info } else { Level::Debug };
        let from = match &before {
            Some(Cached::Route(route)) => &route.cluster_name,
            Some(Cached::Unusable) | None => "none",
        };
        let metas = &cluster.meta_addrs;
        let of_named = named.and_then(|name| self.named.get(name)).map_or(0, |named| named.mzxid);
        let zxid = mzxid.max(of_named);
        if !is_news || self.flaps.shows(table, Instant::now()) {
            log!(
                level,
                "table={table} from={from} to={cluster_name} zxid={zxid:#x} metas={metas:?}{took}"
            );
        }
        let route = Route { cluster_name, cluster, mzxid };
        self.writer.put(table, Cached::Route(Arc::new(route)));
    }

    /// How long ago a watch told of what a table's route comes of, if one did.
    fn took(&self, table: &str, named: Option<&str>) -> String {
        let own = self.changed_at.get(&What::Table(table.into()));
        let of_named = |name: &str| self.changed_at.get(&What::Cluster(name.into()));
        match own.or_else(|| named.and_then(of_named)) {
            Some(at) => format!(" took={:?}", at.elapsed()),
            None => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UpstreamLimits;
    use crate::patience::QueryTimeout;
    use crate::route::table::RouteTable;
    use crate::upstream::cluster::Upstream;
    use crate::upstream::resolver::Resolver;

    fn routes() -> Routes {
        routes_of_table().1
    }

    fn routes_of_table() -> (Arc<RouteTable>, Routes) {
        let limits = UpstreamLimits { max_calls: 1 };
        let query_timeout = Arc::new(QueryTimeout::new(Duration::from_secs(1)));
        let resolver = Resolver::start().unwrap();
        let clusters = Clusters::new(Arc::new(Upstream { resolver, limits, query_timeout }));
        let (table, writer) = RouteTable::new(10);
        (table, Routes::new("/r".to_owned(), Some("/c".to_owned()), writer, clusters))
    }

    #[test]
    fn a_path_is_a_table_or_a_cluster_by_the_znode_right_above_it() {
        let table = |name: &str| Some(What::Table(name.into()));
        let cluster = |name: &str| Some(What::Cluster(name.into()));
        for (root, clusters_root, path, want) in [
            ("/r", None, "/r", Some(What::Root)),
            ("/r", None, "/r/t", table("t")),
            ("/r", None, "/rr/t", None),
            ("/r", Some("/c"), "/c/c1", cluster("c1")),
            ("/r", Some("/c"), "/c", None),
            ("/p/tables", Some("/p"), "/p/tables", Some(What::Root)),
            ("/p/tables", Some("/p"), "/p/tables/t", table("t")),
            ("/p/tables", Some("/p"), "/p/c1", cluster("c1")),
            ("/p", Some("/p/clusters"), "/p/clusters/c1", cluster("c1")),
            ("/p", Some("/p/clusters"), "/p/t", table("t")),
        ] {
            let mut routes = routes();
            routes.root = root.to_owned();
            routes.clusters_root = clusters_root.map(str::to_owned);
            assert_eq!(routes.what_is(path), want, "{root} {clusters_root:?} {path}");
        }
    }

    #[test]
    fn names_are_read_when_the_root_is_another_than_it_was() {
        let mut routes = routes();
        let read_names = [What::Names];
        let mut beat = |root| !routes.take(&What::Root, root, false).unwrap().read.is_empty();
        let there = |pzxid| Ok(Found::Root(Stat { pzxid, ..Stat::default() }));
        for (why, root, want) in [
            ("a first look", there(7), true),
            ("nothing came or went", there(7), false),
            ("a table came", there(8), true),
            ("it is gone", Ok(Found::NoRoot { pzxid: 9 }), true),
            ("it is still gone", Ok(Found::NoRoot { pzxid: 9 }), false),
            ("it is back", there(10), true),
        ] {
            assert_eq!(beat(root), want, "{why}");
        }
        routes.new_client(0);
        let beat = |routes: &mut Routes| routes.take(&What::Root, there(10), false).unwrap().read;
        assert_eq!(beat(&mut routes), [], "another server, which knows no less");
        routes.take(&What::Names, Err(ReadError::NoAuth), false).unwrap();
        assert_eq!(beat(&mut routes), read_names, "they are hidden");
    }

    fn record(text: &str, mzxid: i64) -> Result<Found, ReadError> {
        Ok(Found::Record { data: text.into(), stat: Stat { mzxid, ..Stat::default() } })
    }

    #[test]
    fn a_table_that_waited_for_its_cluster_is_read_again_after_a_reconnect() {
        let mut routes = routes();
        let (table, cluster) = (What::Table("t".into()), What::Cluster("c1".into()));
        let names_cluster = || record(r#"{"cluster": "c1"}"#, 1);
        let taken = routes.take(&table, names_cluster(), true).unwrap();
        assert_eq!(taken.read, [What::Cluster("c1".into())]);
        routes.lost_client();
        routes.new_client(0);
        let metas = || record(r#"{"meta_addrs": "h:1"}"#, 2);
        let taken = routes.take(&cluster, metas(), false).unwrap();
        assert!(taken.known.is_empty() && !routes.has("t"), "its record may name another by now");
        routes.take(&table, names_cluster(), true).unwrap();
        let taken = routes.take(&cluster, metas(), false).unwrap();
        assert!(taken.known == ["t".into()] && routes.has("t"));
    }

    #[test]
    fn what_is_older_than_what_was_seen_is_not_taken() {
        let metas = || r#"{"meta_addrs": "h:1"}"#;
        let table = What::Table("t".into());
        let root = |pzxid| Ok(Found::Root(Stat { pzxid, ..Stat::default() }));
        let gone = || Ok(Found::Absent { root: None });
        let seen = || {
            let mut routes = routes();
            routes.new_client(0);
            routes.take(&What::Root, root(5), false).unwrap();
            routes.take(&table, record(metas(), 7), true).unwrap();
            routes.new_client(0);
            routes
        };
        for (why, what, found, want) in [
            ("an older record", &table, record(metas(), 6), false),
            ("the same record", &table, record(metas(), 7), true),
            ("a newer record", &table, record(metas(), 8), true),
            ("the table may have come since", &table, gone(), false),
            ("tables came or went since", &What::Root, root(4), false),
            ("the same root", &What::Root, root(5), true),
            ("the root may have come since", &What::Root, Ok(Found::NoRoot { pzxid: 4 }), false),
            ("the root went", &What::Root, Ok(Found::NoRoot { pzxid: 9 }), true),
        ] {
            let mut routes = seen();
            let taken = routes.take(what, found, false);
            assert_eq!(taken.is_ok(), want, "{why}: {:?}", taken.err());
            assert!(routes.newest_zxid() >= 7, "{why}");
        }
        for (why, server_zxid, root_zxid) in
            [("the server said so", 7, 5), ("its root shows it", 0, 8)]
        {
            let mut routes = seen();
            routes.new_client(server_zxid);
            routes.take(&What::Root, root(root_zxid), false).unwrap();
            let taken = routes.take(&table, gone(), false).unwrap();
            assert!(taken.gone.is_some() && !routes.has("t"), "{why}: it knows of the table");
            assert!(routes.take(&What::Root, root(root_zxid - 1), false).is_err(), "{why}");
        }
        let mut routes = seen();
        routes.set_up_anew();
        routes.take(&What::Root, root(1), false).unwrap();
        routes.take(&table, record(metas(), 2), false).unwrap();
        routes.all_confirmed();
        assert_eq!(routes.newest_zxid(), 2);
        assert!(routes.take(&table, record(metas(), 1), false).is_err(), "this is the history now");
    }

    const NAMES_C1: &str = r#"{"cluster": "c1"}"#;

    fn metas(host: &str, mzxid: i64) -> Result<Found, ReadError> {
        record(&format!(r#"{{"meta_addrs": "{host}:1"}}"#), mzxid)
    }

    fn host_of(routes: &Routes, table: &str) -> Option<String> {
        Some(routes.route_of(table)?.cluster.meta_addrs[0].clone())
    }

    #[test]
    fn a_table_is_confirmed_by_its_own_record_and_that_of_its_cluster() {
        let (table_of_routes, mut routes) = routes_of_table();
        let is_stale = || table_of_routes.list()[0].is_stale;
        routes.new_client(0);
        let (table, cluster) = (What::Table("t".into()), What::Cluster("c1".into()));
        routes.take(&table, record(NAMES_C1, 1), true).unwrap();
        routes.take(&cluster, metas("a", 2), false).unwrap();
        assert!(!is_stale());
        let again = |routes: &mut Routes| {
            routes.lost_client();
            // Times are in ms.
            while table_of_routes.list()[0].confirmed.is_some_and(|age| age.is_zero()) {}
            routes.new_client(0);
        };
        again(&mut routes);
        let taken = routes.take(&table, record(NAMES_C1, 1), false).unwrap();
        assert_eq!((taken.verdict, taken.read), (Verdict::Waits, vec![]), "it is being read");
        assert!(taken.known.is_empty() && is_stale(), "the cluster may have moved");
        let taken = routes.take(&cluster, metas("b", 3), false).unwrap();
        assert_eq!(taken.known, ["t".into()]);
        assert!(!is_stale() && host_of(&routes, "t").unwrap() == "b:1");

        again(&mut routes);
        let taken = routes.take(&cluster, metas("b", 3), false).unwrap();
        assert!(taken.known.is_empty() && is_stale(), "it may name another");
        let taken = routes.take(&table, record(NAMES_C1, 1), false).unwrap();
        assert_eq!((taken.verdict, taken.known), (Verdict::Settled, vec!["t".into()]));
        assert!(!is_stale());

        let taken = routes.take(&cluster, Err(ReadError::NoNode), false).unwrap();
        assert_eq!(taken.verdict, Verdict::Settled, "a watch tells when it comes");
        assert!(is_stale() && host_of(&routes, "t").unwrap() == "b:1");
    }

    #[test]
    fn a_table_with_junk_follows_the_cluster_that_it_named() {
        let mut routes = routes();
        let (table, cluster) = (What::Table("t".into()), What::Cluster("c1".into()));
        routes.take(&table, record(NAMES_C1, 1), true).unwrap();
        routes.take(&cluster, metas("a", 2), false).unwrap();
        routes.take(&table, record("junk", 3), false).unwrap();
        routes.take(&cluster, metas("b", 4), false).unwrap();
        assert_eq!(host_of(&routes, "t").unwrap(), "b:1");
    }

    #[test]
    fn tables_that_made_room_do_not_come_back_unless_they_are_wanted() {
        let mut routes = routes();
        let (table, cluster) = (What::Table("t".into()), What::Cluster("c1".into()));
        for found in [metas("a", 1), record(NAMES_C1, 1), record("junk", 1), Err(ReadError::NoAuth)]
        {
            let taken = routes.take(&table, found, false).unwrap();
            assert!(taken.verdict == Verdict::Settled && !routes.has("t"));
        }
        routes.take(&table, record(NAMES_C1, 1), true).unwrap();
        routes.forget_unnamed();
        assert!(!routes.has("t"), "it waits for its cluster");
        routes.take(&cluster, metas("a", 2), false).unwrap();
        assert!(routes.has("t"));
        routes.writer.remove("t");
        routes.take(&cluster, metas("b", 3), false).unwrap();
        assert!(!routes.has("t"));
    }

    #[test]
    fn a_fault_of_a_cluster_is_one_of_its_tables_and_their_own_counts_more() {
        let (table, mut routes) = routes_of_table();
        let (t, cluster) = (What::Table("t".into()), What::Cluster("c1".into()));
        let shown = || table.list()[0].fault.as_deref().unwrap_or("none").to_owned();
        let names_cluster = |mzxid| record(r#"{"cluster": "c1"}"#, mzxid);
        let metas = |mzxid| record(r#"{"meta_addrs": "h:1"}"#, mzxid);
        let mut take = |what, found| drop(routes.take(what, found, true).unwrap());
        take(&t, names_cluster(1));
        take(&cluster, metas(2));
        assert_eq!(shown(), "none");
        take(&cluster, record("junk", 3));
        assert!(shown().starts_with("znode /c/c1: want a JSON object, got "), "{}", shown());
        take(&t, names_cluster(1));
        assert!(shown().starts_with("znode /c/c1: "), "read again: {}", shown());
        take(&cluster, metas(4));
        assert_eq!(shown(), "none");
        take(&t, record("junk", 5));
        let own = shown();
        assert!(own.starts_with("want a JSON object"), "{own}");
        take(&cluster, record(r#"{"meta_addrs": "h:2"}"#, 6));
        assert_eq!(shown(), own, "its cluster is well, its own record is not");
        assert_eq!(*table.list()[0].route.as_ref().unwrap().cluster.meta_addrs, ["h:2"]);
        take(&t, names_cluster(7));
        assert_eq!(shown(), "none");
    }
}
