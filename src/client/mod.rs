//! Everything between a client's socket and a question that can be routed.
//!
//! ```text
//! accept ──readable──▶ readiness ─▶ lobby ─▶ worker: connection.drain ─▶ frames ─▶ query::router
//!   ▲ ▲                                         │
//!   │ └── closed, half a frame, unread ─────────┤ notes, seldom
//!   └── writable: unsent? flush ── outbox ◀─────┘ replies, written by the worker
//! ```

pub mod accept;
pub mod ask;
pub mod connection;
pub mod listener;
pub mod outbox;
pub mod readiness;
pub mod unsent;
pub mod usage;
