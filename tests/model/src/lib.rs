//! Model checks: files of meta-proxy that threads share, compiled against loom, with their tests. A package of its own,
//! so that nothing but these files and loom is built for it:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release -p model --target-dir target/model
//! ```
//! Without `--cfg loom` there is nothing here.
#![cfg(loom)]
#![forbid(unsafe_code)]

#[path = "../../../src/client/readiness.rs"]
pub mod readiness;

#[path = "../../../src/client/unsent.rs"]
pub mod unsent;

#[path = "../../../src/turns.rs"]
pub mod turns;

#[path = "../../../src/upstream/sharing.rs"]
pub mod sharing;

#[path = "../../../src/work/queue.rs"]
pub mod queue;

mod locks;

#[cfg(test)]
mod questions;
#[cfg(test)]
mod workers;
