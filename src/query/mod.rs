//! From a client's frame to its answer.

pub mod router;
