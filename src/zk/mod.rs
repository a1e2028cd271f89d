//! One ZooKeeper event, from the wire to the route table.
//!
//! ```text
//! misses of workers ─▶┐                       ┌─▶ zk-read-N: blocking reads on one disposable client
//!                     │ zk-watch              │        │ results
//! events ────────────▶│ planner: what to do ──┤        ▼
//!   ▲                 └──▶ route table        └─▶ zk-dial: find a server that serves, make a client
//!   └── watches, states, results, dials ◀──────────────┘
//! ```

pub mod client;
pub mod dial;
pub mod lag;
pub mod planner;
pub mod routes;
pub mod session;
pub mod status;
pub mod watcher;
