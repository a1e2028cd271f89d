//! Lines of the log on routes: which changed, how long that took, and what cannot be used.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Instant;

use log::{Level, error, info, log, warn};

use super::change::Named;
use super::flaps::Flaps;
use super::meaning::name_of;
use super::read::What;
use crate::logging::Throttle;
use crate::route::hold::{Kind, Shown, View};
use crate::route::table::{Route, RouteTable};

/// Lines name the module that operators know.
pub const TARGET: &str = "meta_proxy::zk::routes";
/// Tables remembered as deleted at most.
const MAX_DELETED: usize = 10_000;

/// The past that lines depend on. Starts with none.
#[derive(Default)]
pub struct RouteLog {
    /// When a watch told that a table or cluster changed.
    changed_at: HashMap<What, Instant>,
    /// Tables that were deleted: their return is no first sight.
    deleted: HashSet<Box<str>>,
    flaps: Flaps,
}

impl RouteLog {
    /// A watch reported a change.
    pub fn changed(&mut self, what: &What, at: Instant) {
        // The first that was not taken yet: a change of a change took as long.
        self.changed_at.entry(what.clone()).or_insert(at);
    }

    /// The change that a watch reported is handled.
    pub fn taken(&mut self, what: &What) {
        self.changed_at.remove(what);
    }

    /// The connection is gone: nothing tells how long what follows takes.
    pub fn disconnected(&mut self) {
        self.changed_at.clear();
    }

    /// A table lives there now, by its own record or by that of the cluster `named` in it. `from`: where it lived before,
    /// if it was cached.
    pub fn lives(&mut self, table: &str, from: Option<&str>, to: &Route, named: Option<Named>) {
        let (named, of_named) = named.unzip();
        let took = self.took(table, named);
        // First sights, thousands of them after a start, tell nobody anything.
        let is_news = self.deleted.remove(table) || from.is_some();
        if is_news && !self.flaps.shows(table, Instant::now()) {
            return;
        }
        let level = if is_news { Level::Info } else { Level::Debug };
        let (from, name) = (from.unwrap_or("none"), &to.cluster_name);
        let (zxid, metas) = (to.mzxid.max(of_named.unwrap_or(0)), &to.cluster.meta_addrs);
        log!(target: TARGET, level, "table={table} from={from} to={name} zxid={zxid:#x} metas={metas:?}{took}");
    }

    /// A table that lived there is no more.
    pub fn gone(&mut self, table: &str, from: &str) {
        let took = self.took(table, None);
        if self.flaps.shows(table, Instant::now()) {
            info!(target: TARGET, "table={table} from={from} to=none{took}");
        }
        if self.deleted.len() >= MAX_DELETED {
            self.deleted.clear();
        }
        self.deleted.insert(table.into());
    }

    /// Tells of tables that change so often that not each change had a line, and where they live now.
    pub fn tell_of_flaps(&mut self, now: Instant, cached: &RouteTable) {
        for (table, hidden) in self.flaps.ended(now) {
            let route = cached.route(&table);
            let to = route.as_ref().map_or("none", |route| &route.cluster_name);
            warn!(target: TARGET, "table={table} to={to}: {hidden} more changes of this table were not shown");
        }
    }

    /// A record cannot be used.
    pub fn bad_record(&mut self, znode: &str, mzxid: i64, fault: &str) {
        let name = znode.rsplit_once('/').map_or(znode, |(_, name)| name);
        if self.flaps.shows(name, Instant::now()) {
            warn!(target: TARGET, "znode {znode} zxid={mzxid:#x}: {fault}; the last good one counts, if there is one");
        }
    }

    /// Time since a watch reported the change that a table's route comes from, if one did.
    fn took(&mut self, table: &str, named: Option<Box<str>>) -> String {
        let own = self.changed_at.get(&What::Table(table.into()));
        let of_named = |name| self.changed_at.get(&What::Cluster(name));
        let at = own.or_else(|| named.and_then(of_named));
        at.map_or(String::new(), |at| format!(" took={:?}", at.elapsed()))
    }
}

/// A table's record may not be read.
pub fn hidden(table: &str) {
    static HIDDEN: Throttle = Throttle::new();
    if let Some(hidden) = HIDDEN.pass() {
        warn!(target: TARGET, "table={table}: an ACL forbids to read its znode{hidden}");
    }
}

/// A cluster's record cannot be read.
pub fn unreadable(znode: &str) {
    static UNREADABLE: Throttle = Throttle::new();
    if let Some(hidden) = UNREADABLE.pass() {
        warn!(target: TARGET, "znode {znode}: tables name it, it cannot be read{hidden}");
    }
}

/// Whether routes are held has changed, if it has.
pub fn hold(before: View, view: View, root: &str, server: Option<SocketAddr>, cached: usize) {
    let kind = |shown: Option<Shown>| shown.map(|shown| (shown.kind, shown.root));
    if kind(before.shown) == kind(view.shown) {
        return;
    }
    let place = format!("root={root} server={}", name_of(server));
    let Some(shown) = view.shown else {
        return info!(target: TARGET, "routes are not held any more: {place} cached={cached}");
    };
    let why = match shown.kind {
        Kind::RootMissing => "the root is missing",
        Kind::RootForeign => "there is another root at its path",
        Kind::RootOlder => "ZooKeeper has forgotten changes that were seen before",
        Kind::TablesGone => "too many tables went within a minute",
    };
    let (czxid, gone) = (shown.czxid(), shown.gone);
    let known = view.known.map_or(0, |known| known.czxid);
    error!(target: TARGET, "routes are held: {why}; {place} czxid={czxid:#x} known_czxid={known:#x} cached={cached} gone={gone}; \
             clients are served what was known before, until it is back or accepted");
}
