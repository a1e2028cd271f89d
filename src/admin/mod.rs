//! What operators and their programs see: pages over HTTP, metrics.
//!
//! ```text
//! admin-N ─▶ pages ─┬─ /metrics ─▶ metrics ─▶ exposition (which text format?)
//!                   ├─ /routes /clusters /clients / ─▶ overview ─▶ JSON, or the page
//!                   └─ /healthz /readyz /drain /undrain ─▶ life
//! falcon ───────────── the same metrics, pushed
//! ```

pub mod http;
