//! The process around the proxy: builds and stops its parts in order, has its phases, and talks to the service manager.

pub mod life;
pub mod memory;
pub mod reload;
pub mod server;
pub mod systemd;
pub mod watchdog;
