//! The process around the proxy: its parts built and stopped in order, its life, what the service manager is told.

pub mod life;
pub mod memory;
pub mod reload;
pub mod server;
pub mod systemd;
pub mod watchdog;
