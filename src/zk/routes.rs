//! Decides what each read of ZooKeeper means for the routes.
//!
//! ```text
//! root ──▶ how new the server's data is, and whether names are to be read
//! names ─▶ which tables there are
//! table ─▶ record with addresses ─────────────────────────▶ route
//!          record that names a cluster ─▶ the cluster's record ─▶ routes of all tables that name it
//! ```
//! Routes never go back: older data than was seen is of a server that lags, and not taken. A record that cannot be used
//! never replaces one that can. `route::hold` decides whether an absence is believed: a table's is decided together with a
//! look at the root that came after it, and a record only counts if the root was seen since it was created. A cluster's
//! record only counts for a table if it was asked for after the table's record was known.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{Level, error, info, log, warn};

use super::codec::{Op, Stat};
use super::flaps::Flaps;
use super::lag::is_older;
use super::planner::Verdict;
use super::read::{Found, Paths, ReadError, What};
use crate::logging::Throttle;
use crate::mutant;
use crate::route::control::Word;
use crate::route::hold::{Absence, Hold, Identity, Kind, Refusal, Seen, Shown};
use crate::route::names::Names;
use crate::route::record::{self, BadRecord, Record, Target};
use crate::route::table::{Absence as Told, Cached, Route, RouteWriter};
use crate::upstream::registry::Clusters;
use crate::wire::message::is_table_name;

/// A znode that an ACL hides has no watch to tell when that ends.
const NO_AUTH_PAUSE: Duration = Duration::from_secs(5);
/// Tables remembered as deleted at most.
const MAX_DELETED: usize = 10_000;

/// Longer texts of faults are cut: they may quote the record.
const MAX_FAULT_BYTES: usize = 300;

/// This many servers without the right root are left at once: one address may lead to another team's ZooKeeper.
const LEFT_AT_ONCE: u32 = 3;
/// The next ones are kept for longer each time, at most for this.
const MAX_STAY: Duration = Duration::from_secs(30);

/// Why a connection is to be given up.
#[derive(Debug)]
pub struct Doubt {
    /// In words.
    pub why: String,
    /// Its server lags.
    pub lags: bool,
}

/// The outcome of a read.
pub struct Taken {
    /// For the plan.
    pub verdict: Verdict,
    /// Tables of which it is now known where they live, or that it cannot be known.
    pub known: Vec<Box<str>>,
    /// Tables that do not exist, as far as can be told, see [`Routes::is_holding`].
    pub gone: Vec<Box<str>>,
    /// Reads that must follow.
    pub read: Vec<What>,
    /// All that is cached must be read again: the root is the right one now.
    pub confirm_all: bool,
}

impl Taken {
    fn new(verdict: Verdict) -> Self {
        let (known, gone, read) = (Vec::new(), Vec::new(), Vec::new());
        Taken { verdict, known, gone, read, confirm_all: false }
    }

    /// Adds what another read came to.
    fn add(&mut self, other: Taken) {
        self.known.extend(other.known);
        self.gone.extend(other.gone);
        self.read.extend(other.read);
    }
}

/// A cluster that has a znode of its own, and who names it.
#[derive(Default)]
struct NamedCluster {
    /// The last good one, if there was one.
    record: Option<Record>,
    mzxid: i64,
    sight: Sight,
    /// The newest change that was known when the read was sent that found this.
    as_of: i64,
    /// The newest change that was known when the read was sent that is under way.
    asked_as_of: Option<i64>,
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
    There {
        czxid: i64,
        /// That of the last creation or deletion below it.
        pzxid: i64,
    },
}

/// The routes as ZooKeeper has them. Owned by `zk-watch`.
pub struct Routes {
    root: String,
    clusters_root: Option<String>,
    writer: RouteWriter,
    hold: Hold<Cached>,
    /// The operator's last word in the control znode.
    word: Word,
    /// Records of tables that were created after the root was seen last: they wait until it is seen again.
    early: Vec<(What, Found, bool)>,
    /// The current connection's server, and since when there is that.
    server: Option<(SocketAddr, Instant)>,
    /// The current connection has shown the right root: its zxids are those of our ZooKeeper.
    is_ours: bool,
    /// The newest change that was known when the current connection began to set watches again.
    watched_as_of: Option<i64>,
    /// Servers left in a row because they have not the right root.
    left: u32,
    clusters: Clusters,
    named: HashMap<Box<str>, NamedCluster>,
    /// The cluster that each table names. It may hold tables that are in no cluster's list any more.
    cluster_of: HashMap<Box<str>, Box<str>>,
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
    /// Tables are below `root`, clusters below `clusters_root`. With `may_hold` false every absence is believed.
    pub fn new(
        root: String,
        clusters_root: Option<String>,
        may_hold: bool,
        writer: RouteWriter,
        clusters: Clusters,
    ) -> Self {
        let newest = |cached: Option<Cached>| match cached {
            Some(Cached::Route(route)) => route.mzxid,
            Some(Cached::Unusable) | None => 0,
        };
        let kept: Vec<i64> =
            writer.by_use().into_iter().map(|table| newest(writer.get(&table))).collect();
        let oldest = kept.iter().copied().filter(|zxid| *zxid > 0).min();
        let mut hold = Hold::new(
            may_hold && !mutant::is("believes-an-empty-root"),
            writer.hold().known,
            oldest,
        );
        hold.restore(writer.held(), Instant::now());
        let mut routes = Routes {
            hold,
            word: Word::default(),
            early: Vec::new(),
            server: None,
            is_ours: false,
            watched_as_of: None,
            left: 0,
            newest_zxid: kept.into_iter().max().unwrap_or(0),
            newest_root_zxid: 0,
            server_zxid: 0,
            is_anew: false,
            root,
            clusters_root,
            writer,
            clusters,
            named: HashMap::new(),
            cluster_of: HashMap::new(),
            names_readable: true,
            root_of_names: Root::Unseen,
            are_names_due: false,
            changed_at: HashMap::new(),
            deleted: HashSet::new(),
            flaps: Flaps::default(),
        };
        routes.show_hold();
        routes
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
    pub fn set_watches(&mut self, since: i64, set: &[What], paths: &Paths) -> Op {
        self.watched_as_of.get_or_insert(self.server_zxid);
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

    /// The watch of a znode stands again, and it has not changed meanwhile.
    pub fn rearmed(&mut self, what: &What) -> Taken {
        let mut taken = Taken::new(Verdict::Settled);
        match what {
            _ if self.hold.is_blind() => {}
            What::Table(table) => match self.naming(table) {
                Some((name, naming)) => return self.follow(table, &name, naming),
                // It was read before, and is absent still.
                None if self.hold.holds(table) => taken.known.push(table.clone()),
                None => {
                    self.writer.confirm(table);
                    taken.known.push(table.clone());
                }
            },
            What::Cluster(name) => {
                if let Some(cluster) = self.named.get_mut(name) {
                    cluster.sight = Sight::Read;
                    cluster.as_of = self.watched_as_of.unwrap_or(0);
                    taken.known = self.put_tables_of(name);
                }
            }
            What::Root | What::Names => {}
        }
        taken
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

    /// No server lets us in that knows what was seen before, and one was asked for its root as by a newcomer. That is a
    /// reason to hold the routes, and nothing more. True: it counts as it is, and all is to be read of it.
    pub fn looked(&mut self, server: SocketAddr, zxid: i64, root: Option<Stat>) -> bool {
        if !self.hold.is_on() {
            self.start_anew();
            return true;
        }
        let is_older = is_older(zxid, self.newest_zxid);
        let there = |stat: Stat| Seen::There { identity: identity(&stat), is_older };
        self.server = Some((server, Instant::now()));
        self.decide(root.map_or(Seen::Missing, there), &mut Taken::new(Verdict::Settled));
        self.server = None;
        !self.hold.is_blind()
    }

    /// Servers let us in, and all of them lag, for long. True: what they have counts.
    pub fn all_lag(&mut self) -> bool {
        if !self.hold.is_on() {
            self.start_anew();
            return true;
        }
        if let Some(identity) = self.hold.view().known {
            let seen = Seen::There { identity, is_older: true };
            self.decide(seen, &mut Taken::new(Verdict::Settled));
        }
        false
    }

    /// zxids begin again.
    fn start_anew(&mut self) {
        (self.newest_zxid, self.newest_root_zxid, self.is_anew) = (0, 0, true);
    }

    /// Whether absences are not believed now, so that no table is unknown.
    pub fn is_holding(&self) -> bool {
        self.hold.is_holding()
    }

    /// Whether nothing below the root is used now.
    pub fn is_blind(&self) -> bool {
        self.hold.is_blind()
    }

    /// All that was cached when the client came has been read.
    pub fn all_confirmed(&mut self) {
        self.is_anew = false;
    }

    /// A new connection, perhaps to another server.
    pub fn new_client(&mut self, server: SocketAddr) {
        (self.server_zxid, self.is_ours, self.watched_as_of) = (0, false, None);
        self.server = Some((server, Instant::now()));
        self.begin_to_confirm();
    }

    /// From now on changes are seen: what is confirmed from here on is current.
    fn begin_to_confirm(&mut self) {
        if !self.hold.is_blind() {
            self.writer.trust();
        }
        for cluster in self.named.values_mut() {
            // All clusters that are named are read over a new connection.
            (cluster.sight, cluster.as_of, cluster.asked_as_of) = (Sight::Asked, 0, None);
            for naming in cluster.tables.values_mut() {
                // A wanted table is missed anew: its record may be old by now.
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
        self.early.clear();
        self.server = None;
        if self.hold.is_blind() {
            // The tables of a root that is held are counted over each connection.
            self.root_of_names = Root::Unseen;
        }
    }

    /// Tells from a watch's path what has changed; `None` if it is none of ours.
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

    /// A read of this is sent.
    pub fn asked(&mut self, what: &What) {
        if let What::Cluster(name) = what
            && let Some(cluster) = self.named.get_mut(name)
        {
            cluster.asked_as_of = Some(self.server_zxid);
        }
    }

    /// Forgets all clusters: their tables are read again, and name them anew.
    pub fn forget_named(&mut self) {
        self.named.clear();
        self.cluster_of.clear();
    }

    /// Forgets clusters that no cached table names.
    pub fn forget_unnamed(&mut self) {
        for cluster in self.named.values_mut() {
            let is_cached = |table: &str| self.writer.get(table).is_some();
            cluster.tables.retain(|table, naming| naming.is_wanted || is_cached(table));
        }
        self.named.retain(|_, cluster| !cluster.tables.is_empty());
        let named = &self.named;
        self.cluster_of.retain(|table, name| {
            named.get(name).is_some_and(|cluster| cluster.tables.contains_key(table))
        });
        let writer = &self.writer;
        self.hold.keep(|table| writer.get(table).is_some());
        self.show_hold();
    }

    /// A read ended, and its client is not in doubt. A table that is not cached is now only if it `is_wanted`.
    /// `Err`: now the client is in doubt.
    pub fn take(
        &mut self,
        what: &What,
        found: Result<Found, ReadError>,
        is_wanted: bool,
    ) -> Result<Taken, Doubt> {
        match what {
            What::Root => self.take_root(found),
            What::Names => Ok(self.take_names(found)),
            What::Table(_) | What::Cluster(_) if self.hold.is_blind() => {
                Ok(Taken::new(Verdict::Held))
            }
            What::Table(table) => {
                let taken = self.take_table(table, found, is_wanted);
                self.writer.count_read(table);
                // A table that waits for its cluster has not changed yet.
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
        // Those of another ensemble say nothing of ours.
        if self.is_ours {
            self.newest_zxid = self.newest_zxid.max(zxid);
        }
    }

    /// Whether what was read of a znode is as new as what was seen of it before.
    fn check(&self, znode: &str, zxid: i64, known: i64) -> Result<(), Doubt> {
        match is_older(zxid, known) && !self.is_anew {
            true => {
                let why = format!("it lags, znode {znode} zxid={zxid:#x} is behind {known:#x}");
                Err(Doubt { why, lags: true })
            }
            false => Ok(()),
        }
    }

    fn take_root(&mut self, found: Result<Found, ReadError>) -> Result<Taken, Doubt> {
        let mut taken = Taken::new(Verdict::Settled);
        let root = match found {
            Ok(Found::Root(stat)) => {
                self.see_root(&stat, &mut taken)?;
                Root::There { czxid: stat.czxid, pzxid: stat.pzxid }
            }
            found => {
                if let Ok(Found::NoRoot { pzxid }) = found {
                    self.knows(pzxid);
                }
                self.check(&self.root, self.server_zxid, self.newest_root_zxid)?;
                self.decide(Seen::Missing, &mut taken);
                Root::Missing
            }
        };
        // Their own watch only says that the root is to be read, and is not trusted even so far: ZooKeeper drops it
        // without a word when a table comes or goes while an ACL hides them.
        if root != self.root_of_names || (root != Root::Missing && !self.names_readable) {
            (self.root_of_names, self.are_names_due) = (root, true);
            self.writer.set_names_current(false);
            taken.read.push(What::Names);
        } else if !self.are_names_due && !self.hold.is_blind() {
            self.writer.set_names_current(true);
        }
        for (what, found, is_wanted) in mem::take(&mut self.early) {
            let more = self.take(&what, Ok(found), is_wanted)?;
            taken.add(more);
        }
        if self.hold.is_blind() {
            taken.verdict = Verdict::Held;
            self.leave_in_time()?;
        }
        Ok(taken)
    }

    /// The root is there. It may be another one, or an older one.
    fn see_root(&mut self, stat: &Stat, taken: &mut Taken) -> Result<(), Doubt> {
        let identity = identity(stat);
        if self.hold.may_be(identity) {
            self.check(&self.root, stat.pzxid, self.newest_root_zxid)?;
        }
        self.decide(Seen::There { identity, is_older: false }, taken);
        self.is_ours = !self.hold.is_blind();
        if self.is_ours {
            self.knows(self.server_zxid.max(stat.pzxid));
            self.newest_root_zxid = stat.pzxid.max(self.newest_root_zxid);
        }
        Ok(())
    }

    /// Decides what this root means for all routes.
    fn decide(&mut self, seen: Seen, taken: &mut Taken) {
        let was_rootless = self.hold.view().is_rootless;
        let was_blind = self.hold.is_blind();
        let back = self.hold.see_root(seen, self.writer.len(), Instant::now());
        self.bring_back(back);
        let view = self.hold.view();
        match (was_blind, self.hold.is_blind()) {
            (false, true) => {
                self.early.clear();
                self.is_ours = false;
                self.writer.distrust();
                self.writer.set_names_current(false);
            }
            (true, false) => {
                self.left = 0;
                self.names_changed();
                self.begin_to_confirm();
                taken.confirm_all = true;
            }
            _ => {}
        }
        if view.is_rootless && !was_rootless && view.shown.is_none() {
            warn!(
                "root {}: it does not exist on {}, so no table can be told",
                self.root,
                self.server()
            );
        }
        self.show_hold();
    }

    /// Puts routes back that went shortly before a hold began.
    fn bring_back(&mut self, back: Vec<(Box<str>, Cached)>) {
        for (table, cached) in back {
            if self.writer.get(&table).is_none() {
                self.writer.put(&table, cached);
            }
            self.writer.doubt(&table);
            self.writer.set_held(&table, self.hold.holds(&table));
        }
    }

    /// Another server may have the right root.
    fn leave_in_time(&mut self) -> Result<(), Doubt> {
        let since = self.server.map_or(Duration::ZERO, |(_, since)| since.elapsed());
        let stay = match self.left.checked_sub(LEFT_AT_ONCE) {
            None => Duration::ZERO,
            Some(more) => MAX_STAY.min(Duration::from_secs(1 << more.min(6))),
        };
        if since < stay {
            return Ok(());
        }
        self.left = self.left.saturating_add(1);
        let why = match self.hold.view() {
            view if view.is_rootless => "does not exist",
            view if view.shown.is_some_and(|shown| shown.kind == Kind::RootOlder) => "is older",
            _ => "is another one",
        };
        let why = format!("the root {} {why} there, another server may have it", self.root);
        Err(Doubt { why, lags: false })
    }

    fn server(&self) -> String {
        self.server.map_or_else(|| "no server".to_owned(), |(addr, _)| addr.to_string())
    }

    /// Tells others how it stands, and the log what has changed.
    fn show_hold(&mut self) {
        let (before, view) = (self.writer.hold(), self.hold.view());
        self.writer.set_hold(view);
        self.writer.set_absence(match (self.hold.is_blind(), self.hold.is_holding()) {
            (true, _) => Told::Hidden,
            (false, true) => Told::Held,
            (false, false) => Told::Told,
        });
        let kind = |shown: Option<Shown>| shown.map(|shown| (shown.kind, shown.root));
        if kind(before.shown) == kind(view.shown) {
            return;
        }
        let (root, server, cached) = (&self.root, self.server(), self.writer.len());
        let Some(shown) = view.shown else {
            return info!(
                "routes are not held any more: root={root} server={server} cached={cached}"
            );
        };
        let Shown { kind, gone, .. } = shown;
        let why = match kind {
            Kind::RootMissing => "the root is missing",
            Kind::RootForeign => "there is another root at its path",
            Kind::RootOlder => "ZooKeeper has forgotten changes that were seen before",
            Kind::TablesGone => "too many tables went within a minute",
        };
        let known = view.known.map_or(0, |known| known.czxid);
        error!(
            "routes are held: {why}; root={root} server={server} czxid={:#x} known_czxid={known:#x} cached={cached} \
             gone={gone}; clients are served what was known before, until it is back or accepted",
            shown.czxid()
        );
    }

    /// An operator names another root or ZooKeeper, and all that is cached is to be read again. Without a root there, it is held.
    pub fn believe_another(&mut self) {
        warn!(
            "root {}: the settings name another root or ZooKeeper, which is taken as it is",
            self.root
        );
        for table in self.writer.held() {
            self.writer.set_held(&table, false);
        }
        self.writer.set_another_root();
        self.hold.start_anew(self.writer.by_use());
        self.start_anew();
        self.left = 0;
        self.writer.set_names(None);
        self.names_changed();
        self.show_hold();
    }

    /// The hold, if there is one.
    pub fn held(&self) -> Option<Shown> {
        self.hold.view().shown
    }

    /// The operator has changed where tables and clusters are.
    pub fn set_paths(&mut self, paths: &Paths) {
        (self.root, self.clusters_root) = (paths.root.clone(), paths.clusters_root.clone());
        self.forget_named();
    }

    /// From now on at most so many tables are cached, and what is absent is held, or believed.
    pub fn set_limits(&mut self, capacity: usize, holds: bool) {
        if capacity != self.writer.capacity() {
            self.writer.set_capacity(capacity);
        }
        self.hold.set_on(holds);
    }

    /// An operator says by way of the control znode which routes will be deleted.
    pub fn hear(&mut self, word: Word) {
        self.word = word;
    }

    /// An operator accepts what he was shown. Then all that is cached is to be read again.
    pub fn accept(&mut self, czxid: i64, gone: usize) -> Result<Shown, Refusal> {
        let shown = self.hold.accept(czxid, gone, self.writer.by_use())?;
        for table in self.writer.held() {
            self.writer.set_held(&table, false);
        }
        if shown.kind.is_of_root() {
            self.writer.set_another_root();
        }
        match shown.kind {
            Kind::TablesGone => {}
            Kind::RootMissing => {
                for table in self.writer.by_use() {
                    self.remove(&table);
                }
                self.start_anew();
            }
            Kind::RootForeign | Kind::RootOlder => {
                self.start_anew();
                self.left = 0;
                // They are of the root before.
                self.writer.set_names(None);
                self.names_changed();
            }
        }
        let label = shown.kind.label();
        warn!("accepted: kind={label} root={} czxid={czxid:#x} gone={gone}", self.root);
        self.show_hold();
        Ok(shown)
    }

    fn take_names(&mut self, found: Result<Found, ReadError>) -> Taken {
        if self.hold.is_blind() {
            if let Ok(Found::Names(names)) = found {
                self.note_absent(&names);
            }
            return Taken::new(Verdict::Settled);
        }
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
        let mut taken = Taken::new(Verdict::Settled);
        if let Ok(names) = &names {
            let back = self.hold.found_among(|table| names.contains(table));
            taken.read.extend(back.into_iter().map(What::Table));
        }
        self.writer.set_names(names.ok());
        taken
    }

    /// Notes the cached tables that a root which is held does not have.
    fn note_absent(&mut self, names: &Names) {
        let mut absent = self.writer.by_use();
        absent.retain(|table| !names.contains(table));
        self.hold.note_absent(absent);
        self.show_hold();
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
    ) -> Result<Taken, Doubt> {
        let before = self.route_of(table);
        let known = before.as_ref().map_or(0, |route| route.mzxid);
        let znode = format!("{}/{table}", self.root);
        let is_wanted = is_wanted || self.naming(table).is_some_and(|(_, n)| n.is_wanted);
        match found {
            // It was created after the root was seen: perhaps below another one.
            Ok(Found::Record { stat, .. })
                if self.hold.is_on() && stat.czxid > self.newest_root_zxid =>
            {
                let what = What::Table(table.into());
                self.early.push((what, found.expect("it is a record"), is_wanted));
                let mut taken = Taken::new(Verdict::Waits);
                taken.read.push(What::Root);
                Ok(taken)
            }
            Ok(Found::Record { data, stat }) => {
                self.check(&znode, stat.mzxid, known)?;
                self.knows(stat.mzxid);
                self.hold.present(table);
                self.writer.set_held(table, false);
                self.show_hold();
                match is_wanted || self.has(table) {
                    true => {
                        let taken = self.take_record(table, &data, stat.mzxid, is_wanted);
                        self.writer.set_written(table, stat.mzxid, stat.mtime_ms);
                        Ok(taken)
                    }
                    // It had to make room while it was read.
                    false => Ok(Taken::new(Verdict::Settled)),
                }
            }
            Ok(Found::Absent { root }) => {
                let mut taken = Taken::new(Verdict::Settled);
                match root {
                    Some(stat) => {
                        self.see_root(&stat, &mut taken)?;
                        if self.hold.is_blind() {
                            taken.read.push(What::Root);
                            taken.verdict = Verdict::Held;
                            return Ok(taken);
                        }
                        // Its deletion is a change of the root that is newer than its record.
                        self.check(&znode, stat.pzxid, known)?;
                    }
                    None if self.hold.is_on() => {
                        taken.read.push(What::Root);
                        taken.verdict = Verdict::Held;
                        return Ok(taken);
                    }
                    None => self.check(&znode, self.server_zxid, known)?,
                }
                self.take_absence(table);
                taken.gone.push(table.into());
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

    /// A table is absent below the right root.
    fn take_absence(&mut self, table: &str) {
        let Some(cached) = self.writer.get(table) else {
            return self.detach(table);
        };
        let mzxid = match &cached {
            Cached::Route(route) => route.mzxid,
            Cached::Unusable => 0,
        };
        if self.word.deletes(table, mzxid) {
            self.hold.expect_gone(table.into());
        }
        let all = self.writer.len();
        match self.hold.absent(table, cached, all, Instant::now()) {
            Absence::Gone => self.remove(table),
            Absence::Held(back) => {
                self.bring_back(back);
                self.writer.set_held(table, true);
                self.writer.doubt(table);
            }
        }
        self.show_hold();
    }

    /// A cached table is no more.
    fn remove(&mut self, table: &str) {
        let before = self.route_of(table);
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
                self.cluster_of.insert(table.into(), name.into());
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
        // A table with junk still follows the cluster that its last good record named.
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
        let name = self.cluster_of.get(table)?;
        let naming = self.named.get(name)?.tables.get(table)?;
        Some((name.clone(), *naming))
    }

    /// A table lives where its cluster's record says, if that is at least as new as its own: who replaces a cluster's
    /// addresses and then points a table to it means the new ones.
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
            Sight::Read if cluster.as_of < naming.mzxid => {
                cluster.sight = Sight::Asked;
                taken.read.push(What::Cluster(name.into()));
            }
            Sight::Asked if cluster.asked_as_of.is_some_and(|as_of| as_of < naming.mzxid) => {
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

    /// Applies a cluster's record, which has been read, to a table that names it.
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
    ) -> Result<Taken, Doubt> {
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
                // A watch tells when one that is missing comes.
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
        cluster.as_of = cluster.asked_as_of.take().unwrap_or(0);
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
        let as_of = cluster.as_of;
        for (table, naming) in cluster.tables.clone() {
            // Its record came while the cluster's was read. The next read is on its way.
            if naming.is_current && naming.mzxid > as_of {
                continue;
            }
            self.put_named(name, &table, naming);
            if naming.is_current {
                known.push(table);
            }
        }
        known
    }

    /// The table's record does not name the cluster any more that it named.
    fn detach(&mut self, table: &str) {
        if let Some(name) = self.cluster_of.remove(table)
            && let Some(cluster) = self.named.get_mut(&name)
        {
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
        if let Some(name) = self.cluster_of.get(table)
            && let Some(cluster) = self.named.get_mut(name)
            && let Some(naming) = cluster.tables.get_mut(table)
        {
            naming.has_fault = true;
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

fn identity(stat: &Stat) -> Identity {
    Identity { czxid: stat.czxid, ctime_ms: stat.ctime_ms }
}

#[cfg(test)]
mod tests;
