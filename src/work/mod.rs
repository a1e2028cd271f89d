//! From a readable client to a worker that reads it.
//!
//! ```text
//! accept ─▶ lobby ──job: read──▶ jobs ─▶ worker-NNN ─▶ query ─▶ upstream
//! zk-watch ──────job: retry──────▲          └── linger: a client that asks again at once
//! ```

pub mod job;
pub mod jobs;
pub mod linger;
pub mod lobby;
pub mod workers;
