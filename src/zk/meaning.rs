//! Decides what each read of ZooKeeper means for the routes. Pure: what was read and the time come in, [`Change`]s come out.
//!
//! ```text
//! root ──▶ how new the server's data is, whether names are to be read, whether routes are held
//! names ─▶ which tables there are
//! table ─▶ absent: gone or held; a record, as a cluster's: where tables live (`records`)
//! ```
//! Routes never go back: older data than was seen is of a server that lags, and not taken (`lag`). `route::hold` decides
//! whether an absence is believed: a table's is decided together with a look at the root that came after it, and a record
//! only counts if the root was seen since it was created.

use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::change::Change;
use super::codec::{Op, Stat};
use super::lag::{Doubt, History, is_older};
use super::planner::Verdict;
use super::read::{Found, Paths, ReadError, ReadResult, What};
use super::records::{NO_AUTH_PAUSE, Records};
use super::root::RootSeen;
use crate::mutant;
use crate::route::control::Word;
use crate::route::hold::{Absence, Hold, Identity, Kind, Refusal, Seen, Shown};
use crate::route::names::Names;
use crate::route::table::{Absence as Told, Cached, RouteTable};
use crate::wire::message::is_table_name;

/// The meaning of a read for the plan, or why its connection is in doubt.
pub type Taken = Result<Verdict, Doubt>;

/// All that is decided by.
pub struct Meaning {
    /// The cache, to look into.
    pub cached: Arc<RouteTable>,
    /// Whether an absence is believed.
    pub hold: Hold<Cached>,
    /// How new what was seen is.
    pub history: History,
    /// Where tables live.
    pub records: Records,
    /// The root, and servers by their root.
    pub seen: RootSeen,
    /// The operator's last word in the control znode.
    pub word: Word,
    /// Tables whose records were created after the root was seen last: they wait until it is seen again.
    early: Vec<(Box<str>, ReadResult, bool)>,
}

impl Meaning {
    /// With `may_hold` false every absence is believed.
    pub fn new(paths: Paths, may_hold: bool, cached: Arc<RouteTable>, now: Instant) -> Self {
        let routes = cached.snapshot();
        let zxids = || routes.iter().map(|(_, route, _)| route.mzxid);
        let may_hold = may_hold && !mutant::is("believes-an-empty-root");
        let oldest = zxids().filter(|zxid| *zxid > 0).min();
        let mut hold = Hold::new(may_hold, cached.hold().known, oldest);
        hold.restore(cached.held(), now);
        let newest = zxids().max().unwrap_or(0);
        let mut meaning = Meaning {
            cached,
            hold,
            history: History { newest, ..History::default() },
            records: Records::new(paths),
            seen: RootSeen::default(),
            word: Word::default(),
            early: Vec::new(),
        };
        meaning.show_hold();
        meaning
    }

    /// Whether anybody would miss a table or cluster.
    pub fn is_used(&self, what: &What) -> bool {
        match what {
            What::Table(table) => self.cached.has(table) || self.records.tables.contains_key(table),
            What::Cluster(name) => self.records.clusters.contains_key(name),
            What::Root | What::Names => true,
        }
    }

    /// The clusters that tables name.
    pub fn named_clusters(&self) -> Vec<What> {
        self.records.clusters.keys().cloned().map(What::Cluster).collect()
    }

    /// A new connection, perhaps to another server.
    pub fn connected(&mut self, server: SocketAddr, now: Instant) {
        self.history.connected();
        self.seen.server = Some((server, now));
        self.begin_to_confirm();
    }

    /// Without a connection nobody can tell which tables there are not.
    pub fn disconnected(&mut self) {
        self.change(Change::IsTrusted(false));
        self.early.clear();
        self.seen.server = None;
        if self.hold.is_blind() {
            // The tables of a root that is held are counted over each connection.
            self.seen.names_of = None;
        }
    }

    /// Names came or went. Until they are read again, each that is not among them costs a read.
    pub fn names_changed(&mut self) {
        self.change(Change::AreNamesCurrent(false));
        self.seen.names_of = None;
    }

    /// Names came or went while they were being read; they are read again.
    pub fn names_are_old(&mut self) {
        self.change(Change::AreNamesCurrent(false));
        self.seen.are_names_due = true;
    }

    /// A read of this is sent.
    pub fn asked(&mut self, what: &What) {
        if let What::Cluster(name) = what
            && let Some(cluster) = self.records.clusters.get_mut(name)
        {
            cluster.asked_as_of = Some(self.history.server);
        }
    }

    /// The request that sets watches again which another connection had.
    pub fn set_watches(&mut self, since: i64, set: &[What]) -> Op {
        self.history.watched_as_of.get_or_insert(self.history.server);
        self.records.set_watches(since, set)
    }

    /// The watch of a znode stands again, and it has not changed meanwhile.
    pub fn rearmed(&mut self, what: &What) {
        match what {
            _ if self.hold.is_blind() => {}
            // It was read before, and is absent still.
            What::Table(table)
                if self.hold.holds(table) && !self.records.tables.contains_key(table) =>
            {
                self.change(Change::Known(table.clone()));
            }
            What::Table(table) => drop(self.records.follow(table)),
            What::Cluster(name) => {
                let as_of = self.history.watched_as_of.unwrap_or(0);
                self.records.known_as_of(name, as_of, &self.cached);
            }
            What::Root | What::Names => {}
        }
    }

    /// Forgets clusters that no cached table names.
    pub fn forget_unnamed(&mut self) {
        self.records.keep(&self.cached);
        self.hold.keep(|table| self.cached.has(table));
        self.show_hold();
    }

    /// No server lets us in that knows what was seen before, and one was asked for its root as by a newcomer. That is a
    /// reason to hold the routes, and nothing more. True: it counts as it is, and all is to be read of it.
    pub fn looked(
        &mut self,
        server: SocketAddr,
        zxid: i64,
        root: Option<Stat>,
        now: Instant,
    ) -> bool {
        if self.starts_anew() {
            return true;
        }
        let is_older = is_older(zxid, self.history.newest);
        let there = |stat| Seen::There { identity: identity(&stat), is_older };
        self.seen.server = Some((server, now));
        self.see(root.map_or(Seen::Missing, there), now);
        self.seen.server = None;
        !self.hold.is_blind()
    }

    /// Servers let us in, and all of them lag, for long. True: what they have counts.
    pub fn all_lag(&mut self, now: Instant) -> bool {
        if self.starts_anew() {
            return true;
        }
        if let Some(identity) = self.hold.view().known {
            self.see(Seen::There { identity, is_older: true }, now);
        }
        false
    }

    /// A read ended, and its connection is not in doubt. A table that is not cached is now only if it `is_wanted`.
    pub fn take(&mut self, what: &What, found: ReadResult, is_wanted: bool, now: Instant) -> Taken {
        let verdict = match what {
            What::Root => return self.root(found, now),
            What::Names => return Ok(self.names(found)),
            What::Table(_) | What::Cluster(_) if self.hold.is_blind() => return Ok(Verdict::Held),
            What::Table(table) => self.table(table, found, is_wanted, now),
            What::Cluster(name) => self.cluster(name, found),
        };
        // A table that waits for its cluster has not changed yet.
        let is_taken = !matches!(&verdict, Ok(Verdict::Waits));
        self.change(Change::Asked(what.clone(), is_taken));
        verdict
    }

    /// An operator names another root or ZooKeeper, and all that is cached is to be read again. Without a root there, it is held.
    pub fn believe_another(&mut self) {
        self.warn("the settings name another root or ZooKeeper, which is taken as it is");
        self.release();
        self.change(Change::AnotherRoot);
        self.hold.start_anew(self.cached.by_use());
        self.forget_root();
        self.show_hold();
    }

    /// An operator accepts what he was shown. Then all that is cached is to be read again.
    pub fn accept(&mut self, czxid: i64, gone: usize) -> Result<Shown, Refusal> {
        let shown = self.hold.accept(czxid, gone, self.cached.by_use())?;
        self.release();
        if shown.kind.is_of_root() {
            self.change(Change::AnotherRoot);
        }
        match shown.kind {
            Kind::TablesGone => {}
            Kind::RootMissing => {
                self.cached.by_use().iter().for_each(|table| self.remove(table));
                self.history.start_anew();
            }
            Kind::RootForeign | Kind::RootOlder => self.forget_root(),
        }
        let (label, root) = (shown.kind.label(), &self.records.paths.root);
        let line = format!("accepted: kind={label} root={root} czxid={czxid:#x} gone={gone}");
        self.change(Change::Warning(line));
        self.show_hold();
        Ok(shown)
    }

    fn change(&mut self, change: Change) {
        self.records.changes.push(change);
    }

    fn warn(&mut self, of_root: &str) {
        let root = &self.records.paths.root;
        self.change(Change::Warning(format!("root {root}: {of_root}")));
    }

    /// zxids begin again, if nothing is ever held.
    fn starts_anew(&mut self) -> bool {
        let starts = !self.hold.is_on();
        if starts {
            self.history.start_anew();
        }
        starts
    }

    /// No table is held any more.
    fn release(&mut self) {
        let held = self.cached.held();
        held.into_iter().for_each(|table| self.change(Change::NotHeld(table)));
    }

    /// All that was seen, and the names, are of the root before.
    fn forget_root(&mut self) {
        self.history.start_anew();
        self.seen.left = 0;
        self.change(Change::Names(None));
        self.names_changed();
    }

    /// From now on changes are seen: what is confirmed from here on is current.
    fn begin_to_confirm(&mut self) {
        if !self.hold.is_blind() {
            self.change(Change::IsTrusted(true));
        }
        self.records.begin_to_confirm();
        self.forget_unnamed();
    }

    fn root(&mut self, found: ReadResult, now: Instant) -> Taken {
        let root = match found {
            Ok(Found::Root(stat)) => {
                self.see_root(&stat, now)?;
                Some((stat.czxid, stat.pzxid))
            }
            found => {
                if let Ok(Found::NoRoot { pzxid }) = found {
                    self.history.knows(pzxid);
                }
                self.check(&What::Root, self.history.server, self.history.newest_of_root)?;
                self.see(Seen::Missing, now);
                None
            }
        };
        if self.seen.look(root) {
            self.change(Change::AreNamesCurrent(false));
            self.change(Change::Read(What::Names));
        } else if !self.seen.are_names_due && !self.hold.is_blind() {
            self.change(Change::AreNamesCurrent(true));
        }
        for (table, found, is_wanted) in mem::take(&mut self.early) {
            self.take(&What::Table(table), found, is_wanted, now)?;
        }
        if !self.hold.is_blind() {
            return Ok(Verdict::Settled);
        }
        if !self.seen.is_left(now) {
            return Ok(Verdict::Held);
        }
        let why = match self.hold.view() {
            view if view.is_rootless => "does not exist",
            view if view.shown.is_some_and(|shown| shown.kind == Kind::RootOlder) => "is older",
            _ => "is another one",
        };
        let root = &self.records.paths.root;
        let why = format!("the root {root} {why} there, another server may have it");
        Err(Doubt { why, lags: false })
    }

    /// Whether what was read is as new as what was seen of it before.
    fn check(&self, what: &What, zxid: i64, known: i64) -> Result<(), Doubt> {
        self.history.check(zxid, known, || self.records.paths.of(what))
    }

    /// The root is there. It may be another one, or an older one.
    fn see_root(&mut self, stat: &Stat, now: Instant) -> Result<(), Doubt> {
        let identity = identity(stat);
        if self.hold.may_be(identity) {
            self.check(&What::Root, stat.pzxid, self.history.newest_of_root)?;
        }
        self.see(Seen::There { identity, is_older: false }, now);
        self.history.saw_root(!self.hold.is_blind(), stat.pzxid);
        Ok(())
    }

    /// Decides what this root means for all routes.
    fn see(&mut self, seen: Seen, now: Instant) {
        let (was_rootless, was_blind) = (self.hold.view().is_rootless, self.hold.is_blind());
        let back = self.hold.see_root(seen, self.cached.len(), now);
        self.bring_back(back);
        match (was_blind, self.hold.is_blind()) {
            (false, true) => {
                self.early.clear();
                self.history.is_ours = false;
                self.change(Change::IsTrusted(false));
            }
            (true, false) => {
                self.seen.left = 0;
                self.names_changed();
                self.begin_to_confirm();
                self.change(Change::ConfirmAll);
            }
            _ => {}
        }
        let view = self.hold.view();
        if view.is_rootless && !was_rootless && view.shown.is_none() {
            let server = name_of(self.seen.server.map(|(server, _)| server));
            self.warn(&format!("it does not exist on {server}, so no table can be told"));
        }
        self.show_hold();
    }

    /// Puts routes back that went shortly before a hold began.
    fn bring_back(&mut self, back: Vec<(Box<str>, Cached)>) {
        for (table, cached) in back {
            let is_held = self.hold.holds(&table);
            self.change(Change::Returned(table, cached, is_held));
        }
    }

    fn show_hold(&mut self) {
        let told = match (self.hold.is_blind(), self.hold.is_holding()) {
            (true, _) => Told::Hidden,
            (false, true) => Told::Held,
            (false, false) => Told::Told,
        };
        let server = self.seen.server.map(|(server, _)| server);
        self.change(Change::Hold(self.hold.view(), told, server));
    }

    fn names(&mut self, found: ReadResult) -> Verdict {
        if self.hold.is_blind() {
            if let Ok(Found::Names(names)) = found {
                let mut absent = self.cached.by_use();
                absent.retain(|table| !names.contains(table));
                self.hold.note_absent(absent);
                self.show_hold();
            }
            return Verdict::Settled;
        }
        self.seen.are_names_due = false;
        let is_hidden = !matches!(found, Ok(Found::Names(_)));
        let was_hidden = mem::replace(&mut self.seen.are_names_hidden, is_hidden);
        let names = match found {
            Ok(Found::Names(names)) => {
                let are_all = names.iter().all(is_table_name);
                let tables = || names.iter().filter(|name| is_table_name(name)).collect();
                let names = if are_all { names } else { Names::new(tables()) };
                if was_hidden {
                    let (root, count) = (&self.records.paths.root, names.len());
                    self.change(Change::Info(format!("root {root}: {count} tables")));
                }
                let back = self.hold.found_among(|table| names.contains(table));
                back.into_iter().for_each(|table| self.change(Change::Read(What::Table(table))));
                Some(names)
            }
            found => {
                if !was_hidden {
                    self.warn(match found {
                        Err(ReadError::NoNode) => "it does not exist, so there are no tables",
                        _ => "its children may not be read, so each unknown table costs a read",
                    });
                }
                None
            }
        };
        self.change(Change::Names(names));
        Verdict::Settled
    }

    fn table(&mut self, table: &str, found: ReadResult, is_wanted: bool, now: Instant) -> Taken {
        let cached = self.cached.get(table);
        // The change that wrote what is cached.
        let known = cached.as_ref().and_then(Cached::route).map_or(0, |route| route.mzxid);
        let what = What::Table(table.into());
        let is_wanted =
            is_wanted || self.records.tables.get(table).is_some_and(|naming| naming.is_wanted);
        let is_used = is_wanted || cached.is_some();
        match found {
            // It was created after the root was seen: perhaps below another one.
            Ok(Found::Record { stat, .. })
                if self.hold.is_on() && stat.czxid > self.history.newest_of_root =>
            {
                self.early.push((table.into(), found, is_wanted));
                self.change(Change::Read(What::Root));
                Ok(Verdict::Waits)
            }
            Ok(Found::Record { data, stat }) => {
                self.check(&what, stat.mzxid, known)?;
                self.history.knows(stat.mzxid);
                self.hold.present(table);
                self.change(Change::NotHeld(table.into()));
                self.show_hold();
                // The table was evicted while it was read.
                if !is_used {
                    return Ok(Verdict::Settled);
                }
                let verdict = self.records.table(table, &data, stat.mzxid, is_wanted);
                self.change(Change::Written(table.into(), stat));
                Ok(verdict)
            }
            Ok(Found::Absent { root }) => {
                if let Some(stat) = &root {
                    self.see_root(stat, now)?;
                }
                if self.hold.is_blind() || (root.is_none() && self.hold.is_on()) {
                    self.change(Change::Read(What::Root));
                    return Ok(Verdict::Held);
                }
                // Its deletion is a change of the root that is newer than its record.
                let as_of = root.map_or(self.history.server, |stat| stat.pzxid);
                self.check(&what, as_of, known)?;
                match cached {
                    Some(cached) => self.absent(table, cached, known, now),
                    None => self.records.detach(table),
                }
                self.change(Change::Absent(table.into()));
                Ok(Verdict::Settled)
            }
            Ok(_) | Err(_) if !is_used => Ok(Verdict::Settled),
            Ok(_) | Err(_) => {
                self.change(Change::Hidden(table.into()));
                self.records.unusable(table, "an ACL forbids reading its znode".to_owned());
                self.change(Change::Doubtful(table.into()));
                self.change(Change::Known(table.into()));
                Ok(Verdict::Again(NO_AUTH_PAUSE))
            }
        }
    }

    /// A cached table is absent below the right root.
    fn absent(&mut self, table: &str, cached: Cached, mzxid: i64, now: Instant) {
        if self.word.deletes(table, mzxid) {
            self.hold.expect_gone(table.into());
        }
        match self.hold.absent(table, cached, self.cached.len(), now) {
            Absence::Gone => self.remove(table),
            Absence::Held(back) => {
                self.bring_back(back);
                self.change(Change::Held(table.into()));
            }
        }
        self.show_hold();
    }

    fn remove(&mut self, table: &str) {
        self.records.detach(table);
        self.change(Change::Gone(table.into()));
    }

    fn cluster(&mut self, name: &str, found: ReadResult) -> Taken {
        let Some(known) = self.records.clusters.get(name).map(|cluster| cluster.mzxid) else {
            return Ok(Verdict::Settled); // nobody names it any more
        };
        if let Ok(Found::Record { stat, .. }) = &found {
            self.check(&What::Cluster(name.into()), stat.mzxid, known)?;
            self.history.knows(stat.mzxid);
        }
        Ok(self.records.cluster(name, found, &self.cached))
    }
}

/// A server as the log names it.
pub fn name_of(server: Option<SocketAddr>) -> String {
    server.map_or_else(|| "no server".to_owned(), |server| server.to_string())
}

fn identity(stat: &Stat) -> Identity {
    Identity { czxid: stat.czxid, ctime_ms: stat.ctime_ms }
}

#[cfg(test)]
mod tests;
