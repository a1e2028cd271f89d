//! From a query for one cluster to its answer, or to the end of its time.
//!
//! ```text
//! Ask ─▶ cluster.join ─▶ sharing ─▶ Place::run ─▶ call ─▶ link ─▶ MetaServer
//!                          ▲                        └─ silent ─▶ watch ─▶ resume
//!                          └── no answer: the next server (leader), or later
//! ```

pub mod registry;

pub mod call;
pub mod cluster;
pub mod link;
pub mod watch;

pub mod health;
pub mod leader;
pub mod sharing;
pub mod slow_start;

pub mod exchange;
pub mod probe;
pub mod resolver;

pub mod stats;
pub mod table_errors;
