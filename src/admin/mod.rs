//! Pages for operators and their programs: pages over HTTP, metrics.
//!
//! ```text
//! admin-N ─▶ endpoints ─┬─ /metrics ─▶ metrics ─▶ families ─▶ exposition (which text format?)
//!                   ├─ /routes /clusters / ─▶ snapshot ─▶ overview ─▶ JSON, or verdict and the page
//!                   └─ /healthz /readyz /drain /undrain ─▶ life
//! falcon ───────────── the same families, pushed
//! ```
//! No query passes through this module: it only reads the counters and the state of the other parts.

pub mod endpoints;
pub mod exposition;
pub mod falcon;
pub mod family;
pub mod gzip;
pub mod http;
pub mod http_message;
pub mod metrics;
pub mod overview;
pub mod process_stats;
pub mod rates;
pub mod snapshot;
pub mod status_page;
pub mod verdict;
pub mod words;
