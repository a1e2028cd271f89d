//! Which cluster has a table: the table of routes, which all workers read and one thread writes, and the records that
//! routes come from.

pub mod control;
pub mod evicted;
pub mod file;
pub mod hold;
pub mod names;
pub mod record;
pub mod state;
pub mod table;
