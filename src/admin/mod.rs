//! What operators and their machines see: pages by HTTP, metrics, pushed or fetched.

pub mod http;
pub mod message;
