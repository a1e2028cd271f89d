//! From a frame of a client to its answer.

pub mod router;
