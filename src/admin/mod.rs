//! What operators and their machines see: pages by HTTP, metrics, pushed or fetched.

pub mod exposition;
pub mod falcon;
pub mod http;
pub mod message;
pub mod overview;
pub mod page;
