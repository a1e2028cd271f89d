//! From a readable client, or a job, to a worker.
//!
//! ```text
//! accept ──readable──▶ queue ─▶ worker-NNN ─▶ query ─▶ upstream
//! zk-watch, meta-watch ──job──▶    └── linger: a client that sends its next query at once
//! ```

pub mod job;
pub mod linger;
pub mod queue;
pub mod worker;
