//! One question to one cluster, answered or given up within its deadline.
//!
//! ```text
//! Ask ─▶ cluster.join ─▶ flight (shares a call) ─▶ cluster.call ─▶ leader plan ─▶ link ─▶ MetaServer
//! ```

pub mod cluster;
pub mod flight;
pub mod health;
pub mod leader;
pub mod link;
pub mod resolver;
pub mod stats;
pub mod table_errors;
