//! All clusters that routes name, each once, however many tables name it.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::cluster::{Cluster, Upstream};
use super::stats::Stats;
use crate::route::record::Record;

/// The clusters. The writer of the routes owns this; a cluster and its links end with its last route and call.
pub struct Clusters {
    upstream: Arc<Upstream>,
    by_addrs: HashMap<Vec<String>, Weak<Cluster>>,
    stats: HashMap<String, Weak<Stats>>,
}

impl Clusters {
    pub fn new(upstream: Arc<Upstream>) -> Self {
        Clusters { upstream, by_addrs: HashMap::new(), stats: HashMap::new() }
    }

    /// Returns the cluster of a record, and creates it if it is new.
    pub fn get(&mut self, record: Record) -> Arc<Cluster> {
        if let Some(cluster) = self.by_addrs.get(&record.meta_addrs).and_then(Weak::upgrade) {
            return cluster;
        }
        self.by_addrs.retain(|_, cluster| cluster.strong_count() > 0);
        self.stats.retain(|_, stats| stats.strong_count() > 0);
        // A cluster with the same name and other MetaServers shares the counters.
        let known = self.stats.get(&record.cluster).and_then(Weak::upgrade);
        let stats = known.unwrap_or_default();
        self.stats.insert(record.cluster.clone(), Arc::downgrade(&stats));
        let addrs = record.meta_addrs.clone();
        let cluster = Cluster::new(record.cluster, record.meta_addrs, stats, self.upstream.clone());
        self.by_addrs.insert(addrs, Arc::downgrade(&cluster));
        cluster
    }
}
