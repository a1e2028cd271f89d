//! All that can be decided about the routes, as values: `zk::meaning` decides it, `zk::routes` carries it out. Pure.

use std::net::SocketAddr;

use super::codec::Stat;
use super::read::What;
use crate::route::hold::View;
use crate::route::names::Names;
use crate::route::record::Record;
use crate::route::table::{Absence, Cached};

/// A cluster that a table names, and the change that wrote its record.
pub type Named = (Box<str>, i64);

/// One step of what was decided.
pub enum Change {
    /// A table lives there: its own record says so, or that of the cluster `named` in it.
    Lives { table: Box<str>, record: Record, mzxid: i64, named: Option<Named> },
    /// The record that decides cannot be used. A route that is cached stays.
    Unusable(Box<str>),
    /// Why the record that is there now cannot be used; `None`: it can be.
    Fault(Box<str>, Option<String>),
    /// The change that wrote the record that is there now.
    Written(Box<str>, Stat),
    /// A table's cached record is current.
    Confirmed(Box<str>),
    /// A table's record may not be the cached one any more.
    Doubtful(Box<str>),
    /// The proxy goes on serving a table that is absent.
    Held(Box<str>),
    /// A table does not.
    NotHeld(Box<str>),
    /// A table that went shortly before is cached again, and may have changed; whether its absence is held.
    Returned(Box<str>, Cached, bool),
    /// A table is no more.
    Gone(Box<str>),
    /// All tables that there are; `None`: it is not known.
    Names(Option<Names>),
    /// Whether a name that is not among them is unknown.
    AreNamesCurrent(bool),
    /// Whether changes are noticed from now on. If not, names are not current.
    IsTrusted(bool),
    /// All that was known is of another root.
    AnotherRoot,
    /// Whether routes are held, what that means for absent tables, and the server that was decided by.
    Hold(View, Absence, Option<SocketAddr>),
    /// ZooKeeper was asked for this; true: the event of its watch is handled.
    Asked(What, bool),

    /// For queries that wait: it is known where a table lives, or that it cannot be known.
    Known(Box<str>),
    /// For queries that wait: a table does not exist, as far as can be told while routes are held.
    Absent(Box<str>),
    /// For the plan: this must be read.
    Read(What),
    /// For the plan: all that is cached must be read again, the root is the right one now.
    ConfirmAll,

    /// For the log: something about the root.
    Info(String),
    /// For the log: something about the root that is to be noticed.
    Warning(String),
    /// For the log: the record of this znode, of this mzxid, cannot be used.
    BadRecord(String, i64, String),
    /// For the log: an ACL hides a table's record.
    Hidden(Box<str>),
    /// For the log: the record of a cluster cannot be read.
    Unreadable(String),
}
