//! A move as one look sees it. Pure.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::ops::admin_move::{Duplication, Replica, Shipping};

/// The ids stay the same while a table moves: one that was made anew lacks what the one before it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// The table in A.
    pub old_app: i32,
    /// The table in B.
    pub new_app: i32,
    /// A->B.
    pub duplication: i32,
}

/// Where the route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// To A, and this is the znode's version.
    Old { version: i32 },
    /// To B.
    New,
    /// To A, after it led to B.
    WasNew,
    /// Elsewhere, or nowhere: somebody changed it.
    Elsewhere(String),
}

/// The table in one cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// The table's id; `None`: the cluster has no such table that is available.
    pub app_id: Option<i32>,
    /// The value of the environment variable that denies its clients.
    pub denies: Option<String>,
    /// Its duplication to the other side.
    pub duplication: Option<Duplication>,
}

/// A partition by its primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    pub server: SocketAddr,
    pub replica: Replica,
    /// `None`: the primary does not know of the duplication.
    pub shipping: Option<Shipping>,
    /// The answer to a probe after all else was read, if there was one: whether writes are refused.
    pub refuses: Option<bool>,
}

impl Partition {
    pub fn is_duplicating(&self) -> bool {
        self.shipping.as_ref().is_some_and(|shipping| shipping.is_duplicating)
    }

    pub fn unsent(&self) -> Option<i64> {
        self.shipping.as_ref().map(|shipping| shipping.unsent)
    }

    /// A write is on its way through its replicas.
    pub fn is_writing(&self) -> bool {
        self.replica.prepared != self.replica.committed
    }
}

/// One look. The route is read first, then the sides, then the decrees, then how much is unsent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When the route and both sides had been read, before any decree. Monotonic.
    pub now_ms: u64,
    /// When all had been read.
    pub end_ms: u64,
    pub route: Route,
    pub old: Side,
    pub new: Side,
    /// All partitions in A, in order.
    pub partitions: Vec<Partition>,
    /// All partitions in B, in order, with the duplication back; empty unless it is wanted.
    pub reverse: Vec<Partition>,
}

impl Seen {
    /// Mutations that B lacks. `None`: a primary does not know.
    pub fn unsent(&self) -> Option<i64> {
        self.partitions.iter().map(Partition::unsent).sum()
    }
}
