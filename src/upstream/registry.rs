//! All clusters that routes name, each once, however many tables it holds.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::cluster::{Cluster, Upstream};
use super::stats::Stats;
use crate::route::record::Record;

/// The clusters. Owned by whoever writes the routes; a cluster and its links go with its last route and call.
pub struct Clusters {
    upstream: Arc<Upstream>,
    by_addrs: HashMap<Vec<String>, Weak<Cluster>>,
    stats: HashMap<String, Weak<Stats>>,
}

impl Clusters {
    /// None yet.
    pub fn new(upstream: Arc<Upstream>) -> Self {
        Clusters { upstream, by_addrs: HashMap::new(), stats: HashMap::new() }
    }

    /// The cluster of a record.
    pub fn get(&mut self, record: Record) -> Arc<Cluster> {
        if let Some(cluster) = self.by_addrs.get(&record.meta_addrs).and_then(Weak::upgrade) {
            return cluster;
        }
        self.by_addrs.retain(|_, cluster| cluster.strong_count() > 0);
        self.stats.retain(|_, stats| stats.strong_count() > 0);
        // With other MetaServers it is counted as the same cluster.
        let known = self.stats.get(&record.cluster).and_then(Weak::upgrade);
        let stats = known.unwrap_or_default();
        self.stats.insert(record.cluster.clone(), Arc::downgrade(&stats));
        let addrs = record.meta_addrs.clone();
        let cluster = Cluster::new(record.cluster, record.meta_addrs, stats, self.upstream.clone());
        self.by_addrs.insert(addrs, Arc::downgrade(&cluster));
        cluster
    }
}
