//! One ZooKeeper event, from the wire to the route table.
//!
//! ```text
//! misses of workers ─▶┐
//!                     │ zk-watch                  requests
//! events ────────────▶│ planner: what to read ────────────▶ zk-link: one socket, one session
//!   ▲                 └─ meaning ─▶ routes: route table       │
//!   └── up, down, answers, watches that fired ◀───────────────┘
//! ```

pub mod codec;

pub mod connection;
pub mod dial;
pub mod ended;
pub mod link;
pub mod session;

pub mod control;
pub mod planner;
pub mod read;
pub mod status;
pub mod watcher;

pub mod change;
pub mod lag;
pub mod meaning;
pub mod records;
pub mod root;

pub mod flaps;
pub mod route_log;
pub mod routes;
