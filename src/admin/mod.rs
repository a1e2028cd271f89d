//! What operators and their programs see: pages over HTTP, metrics.
//!
//! ```text
//! admin-N ─▶ pages ─┬─ /metrics ─▶ metrics ─▶ exposition (which text format?)
//!                   ├─ /routes /clusters /clients / ─▶ JSON, or the page
//!                   └─ /healthz /readyz /drain /undrain ─▶ life
//! falcon ───────────── the same metrics, pushed
//! ```
//! Nothing here is on the way of a query: it reads what the parts of the proxy count and know.

pub mod exposition;
pub mod falcon;
pub mod http;
pub mod message;
pub mod metrics;
pub mod pages;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::client::connection::Desk;
use crate::jobs::Jobs;
use crate::metrics::Metrics;
use crate::query::Job;
use crate::route::table::RouteTable;
use crate::upstream::cluster::Cluster;
use crate::zk::status::Status;

/// The parts of the proxy that are looked into.
pub struct Inside {
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The clients.
    pub desk: Arc<Desk>,
    /// What waits for workers.
    pub jobs: Jobs<Job>,
    /// The routes.
    pub routes: Arc<RouteTable>,
    /// ZooKeeper, if the routes are there.
    pub zookeeper: Option<Status>,
    /// Where the last good routes are kept.
    pub state_file: Option<PathBuf>,
    /// When the proxy started.
    pub started: SystemTime,
    /// Whether clients should come here, and why not.
    pub ready: Box<dyn Fn() -> Result<(), &'static str> + Send + Sync>,
    /// Takes the proxy out of service, or back.
    pub drain: Box<dyn Fn(bool) + Send + Sync>,
}

impl Inside {
    /// The clusters that cached routes name, by name.
    pub fn clusters(&self) -> Vec<Arc<Cluster>> {
        let routes = self.routes.list().into_iter().filter_map(|listed| listed.route);
        let mut clusters: Vec<Arc<Cluster>> = routes.map(|route| route.cluster.clone()).collect();
        clusters.sort_unstable_by_key(Arc::as_ptr);
        clusters.dedup_by(|a, b| Arc::ptr_eq(a, b));
        clusters.sort_by(|a, b| a.name.cmp(&b.name));
        clusters
    }

    /// Time since the last good routes were written to disk.
    pub fn state_file_age(&self) -> Option<Duration> {
        let written = self.state_file.as_ref()?.metadata().and_then(|file| file.modified()).ok()?;
        Some(written.elapsed().unwrap_or_default())
    }
}
