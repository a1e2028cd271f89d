//! From a client's socket to a query that can be routed, and back.
//!
//! ```text
//! accept ──readable──▶ readiness ─▶ queue ─▶ worker: connection.drain ─▶ inbox ─▶ frames ─▶ query::router
//!   ▲ ▲                                         │
//!   │ └── closed, unfinished frame, unsent ─────┤ notes, seldom
//!   └── writable: unsent? flush ── outbox ◀─────┘ replies, written by the worker (sending)
//! ```

pub mod accept;
pub mod listener;

pub mod connection;
pub mod inbox;
pub mod readiness;

pub mod outbox;
pub mod sending;
pub mod unsent;

pub mod ask;
pub mod close_reason;
pub mod deadlines;
pub mod host;
pub mod hosts;
pub mod hub;
pub mod note;
pub mod share;
pub mod stop;
pub mod usage;
