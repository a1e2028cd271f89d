//! Where tables live as records say: their own ones, or those of the clusters that they name. Pure.
//!
//! ```text
//! table's record ─┬─ addresses ───────────────────────────────▶ route
//!                 └─ names a cluster ─▶ the cluster's record ─▶ routes of all tables that name it
//! ```
//! A record that cannot be used never replaces one that can. A cluster's record counts for a table only if it was asked for
//! after the table's record was known: an operator who replaces a cluster's addresses and then points a table to it means
//! the new ones.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::time::Duration;

use super::change::Change;
use super::codec::Op;
use super::planner::Verdict;
use super::read::{Found, Paths, ReadError, ReadResult, What};
use crate::route::record::{self, Record, Target};
use crate::route::table::RouteTable;

/// A znode that an ACL hides has no watch to tell when that ends.
pub const NO_AUTH_PAUSE: Duration = Duration::from_secs(5);

/// Which table names which cluster, and what the clusters' records say.
pub struct Records {
    /// Where tables and clusters are.
    pub paths: Paths,
    /// All that was decided, in its order; `zk::meaning` adds its own.
    pub changes: Vec<Change>,
    /// The clusters that tables name.
    pub clusters: HashMap<Box<str>, Cluster>,
    /// The tables that name a cluster: each is among the tables of that.
    pub tables: HashMap<Box<str>, Naming>,
}

/// A cluster that has a znode of its own.
#[derive(Default)]
pub struct Cluster {
    /// The last good one, if there was one.
    record: Option<Record>,
    /// The change that wrote it.
    pub mzxid: i64,
    /// Why it cannot be used as it was last read; the last good record counts.
    fault: Option<String>,
    /// Why it could not even be read. If it is missing, its watch tells when it comes.
    unread: Option<ReadError>,
    /// The newest change that was known when the read was sent that found this; 0: it must be read.
    as_of: i64,
    /// It is to be read.
    is_due: bool,
    /// The newest change that was known when the read was sent that is under way.
    pub asked_as_of: Option<i64>,
    tables: HashSet<Box<str>>,
}

/// A table's record that names a cluster.
pub struct Naming {
    cluster: Box<str>,
    mzxid: i64,
    /// It was read since the connection came.
    is_current: bool,
    /// The table is not cached yet, and to be when the cluster is read.
    pub is_wanted: bool,
    /// The record that is there now cannot be used; the last good one named the cluster.
    has_fault: bool,
}

impl Records {
    /// Nothing was read yet.
    pub fn new(paths: Paths) -> Self {
        let (clusters, tables) = (HashMap::new(), HashMap::new());
        Records { paths, changes: Vec::new(), clusters, tables }
    }

    /// A table's record was read.
    pub fn table(&mut self, table: &str, data: &[u8], mzxid: i64, is_wanted: bool) -> Verdict {
        let target = match self.paths.clusters_root {
            Some(_) => record::read_target(data),
            None => record::read(data).map(Target::Here),
        };
        match target {
            Ok(Target::Cluster(name)) => {
                self.detach(table);
                let cluster: Box<str> = name.into();
                self.clusters.entry(cluster.clone()).or_default().tables.insert(table.into());
                let (is_current, has_fault) = (true, false);
                let naming = Naming { cluster, mzxid, is_current, is_wanted, has_fault };
                self.tables.insert(table.into(), naming);
            }
            Ok(Target::Here(record)) => {
                self.detach(table);
                let lives = Change::Lives { table: table.into(), record, mzxid, named: None };
                self.changes.extend([lives, Change::Fault(table.into(), None)]);
            }
            Err(fault) => {
                let znode = self.paths.of(&What::Table(table.into()));
                let fault = fault.to_string();
                self.changes.push(Change::BadRecord(znode, mzxid, fault.clone()));
                self.unusable(table, fault);
            }
        }
        // A table with junk still follows the cluster that its last good record named.
        self.follow(table)
    }

    /// The table's record cannot be used. The last good route counts; the fault shows beside it.
    pub fn unusable(&mut self, table: &str, fault: String) {
        if let Some(naming) = self.tables.get_mut(table) {
            naming.has_fault = true;
        }
        let fault = Change::Fault(table.into(), Some(fault));
        self.changes.extend([Change::Unusable(table.into()), fault]);
    }

    /// The table's own record is current. If it names a cluster, that one's decides.
    pub fn follow(&mut self, table: &str) -> Verdict {
        let Some(naming) = self.tables.get_mut(table) else {
            self.changes.extend([Change::Confirmed(table.into()), Change::Known(table.into())]);
            return Verdict::Settled;
        };
        naming.is_current = true;
        let cluster = self.clusters.entry(naming.cluster.clone()).or_default();
        let is_old = match cluster.is_due {
            true => cluster.asked_as_of.is_some_and(|as_of| as_of < naming.mzxid),
            false => cluster.as_of < naming.mzxid,
        };
        if !is_old && !cluster.is_due {
            settle(table, naming, cluster, &mut self.changes);
            return Verdict::Settled;
        }
        if is_old {
            self.changes.push(Change::Read(What::Cluster(naming.cluster.clone())));
        }
        cluster.is_due = true;
        Verdict::Waits
    }

    /// A cluster was read.
    pub fn cluster(&mut self, name: &str, found: ReadResult, cached: &RouteTable) -> Verdict {
        let Some(cluster) = self.clusters.get_mut(name) else {
            return Verdict::Settled;
        };
        let znode = self.paths.of(&What::Cluster(name.into()));
        cluster.unread = None;
        cluster.fault = match found {
            Ok(Found::Record { data, stat }) => match record::read(&data) {
                Ok(record) => {
                    cluster.record = Some(Record { cluster: name.to_owned(), ..record });
                    cluster.mzxid = stat.mzxid;
                    None
                }
                Err(fault) => {
                    let text = format!("znode {znode}: {fault}");
                    self.changes.push(Change::BadRecord(znode, stat.mzxid, fault.to_string()));
                    Some(text)
                }
            },
            found => {
                cluster.unread = Some(found.err().unwrap_or(ReadError::NoAuth));
                let text = format!("znode {znode} cannot be read");
                self.changes.push(Change::Unreadable(znode));
                Some(text)
            }
        };
        // A watch tells when one that is missing comes.
        let verdict = match cluster.unread {
            Some(ReadError::NoAuth) => Verdict::Again(NO_AUTH_PAUSE),
            Some(ReadError::NoNode) | None => Verdict::Settled,
        };
        let as_of = cluster.asked_as_of.take().unwrap_or(0);
        self.known_as_of(name, as_of, cached);
        verdict
    }

    /// A cluster's record is what was read of it last, as it was when the newest known change was this.
    pub fn known_as_of(&mut self, name: &str, as_of: i64, cached: &RouteTable) {
        let Some(cluster) = self.clusters.get_mut(name) else {
            return;
        };
        (cluster.is_due, cluster.as_of) = (false, as_of);
        for table in mem::take(&mut cluster.tables) {
            let naming = self.tables.get_mut(&table);
            let Some(naming) = naming.filter(|naming| naming.is_wanted || cached.has(&table))
            else {
                // The table was evicted, and this does not bring it back.
                self.tables.remove(&table);
                continue;
            };
            // If not, its record came while the cluster's was read. The next read is on its way.
            if !naming.is_current || naming.mzxid <= as_of {
                settle(&table, naming, cluster, &mut self.changes);
            }
            cluster.tables.insert(table);
        }
    }

    /// The request that sets watches again which another connection had.
    pub fn set_watches(&self, since: i64, set: &[What]) -> Op {
        let (mut data, mut exist, mut child) = (Vec::new(), Vec::new(), Vec::new());
        for what in set {
            let is_missing =
                |name| self.clusters.get(name).is_some_and(|c| c.unread == Some(ReadError::NoNode));
            let watches = match what {
                What::Names => &mut child,
                What::Cluster(name) if is_missing(name) => &mut exist,
                What::Root | What::Table(_) | What::Cluster(_) => &mut data,
            };
            watches.push(self.paths.of(what));
        }
        Op::SetWatches { since, data, exist, child }
    }

    /// A table names no cluster any more.
    pub fn detach(&mut self, table: &str) {
        if let Some(naming) = self.tables.remove(table)
            && let Some(cluster) = self.clusters.get_mut(&naming.cluster)
        {
            cluster.tables.remove(table);
        }
    }

    /// Over a new connection all clusters are read, and tables that are wanted are missed anew: their records may be old.
    pub fn begin_to_confirm(&mut self) {
        for cluster in self.clusters.values_mut() {
            (cluster.is_due, cluster.as_of, cluster.asked_as_of) = (true, 0, None);
        }
        for naming in self.tables.values_mut() {
            (naming.is_current, naming.is_wanted) = (false, false);
        }
    }

    /// Forgets clusters that no cached table names.
    pub fn keep(&mut self, cached: &RouteTable) {
        self.tables.retain(|table, naming| naming.is_wanted || cached.has(table));
        self.clusters.retain(|_, cluster| {
            cluster.tables.retain(|table| self.tables.contains_key(table));
            !cluster.tables.is_empty()
        });
    }

    /// Forgets all clusters: their tables are read again, and name them anew.
    pub fn forget(&mut self) {
        self.clusters.clear();
        self.tables.clear();
    }
}

/// Applies a cluster's record, which has been read, to a table that names it.
fn settle(table: &str, naming: &mut Naming, cluster: &Cluster, changes: &mut Vec<Change>) {
    naming.is_wanted = false;
    let mzxid = naming.mzxid;
    changes.push(match cluster.record.clone() {
        Some(record) => {
            let named = Some((naming.cluster.clone(), cluster.mzxid));
            Change::Lives { table: table.into(), record, mzxid, named }
        }
        None => Change::Unusable(table.into()),
    });
    // The table's own fault counts more.
    if !naming.has_fault {
        changes.push(Change::Fault(table.into(), cluster.fault.clone()));
    }
    match cluster.unread {
        Some(_) => changes.push(Change::Doubtful(table.into())),
        None if naming.is_current => changes.push(Change::Confirmed(table.into())),
        None => {} // it may name another one since
    }
    if naming.is_current {
        changes.push(Change::Known(table.into()));
    }
}

#[cfg(test)]
mod tests;
