//! Which cluster holds a table: the table of routes that all workers read and one thread writes, and the
//! record that a route is made of.

pub mod control;
pub mod evicted;
pub mod file;
pub mod hold;
pub mod names;
pub mod record;
pub mod state;
pub mod table;
