//! What operators and their programs see: pages over HTTP, metrics.
//!
//! ```text
//! admin-N ─▶ pages ─┬─ /metrics ─▶ metrics ─▶ exposition (which text format?)
//!                   ├─ /routes /clusters / ─▶ inside ─▶ overview ─▶ JSON, or the page
//!                   └─ /healthz /readyz /drain /undrain ─▶ life
//! falcon ───────────── the same metrics, pushed
//! ```
//! Nothing here is on the way of a query: it reads what the parts of the proxy count and know.

pub mod exposition;
pub mod falcon;
pub mod http;
pub mod inside;
pub mod message;
pub mod metrics;
pub mod overview;
pub mod page;
pub mod pages;
