//! Routes that were evicted from the full cache. The state file keeps them, so that a proxy that starts without
//! ZooKeeper, and with a larger cache, has them again. The last known route of each table stays, even if the table
//! changes unseen.
//!
//! At most `limit` routes are kept; the one that was evicted longest ago goes first.

use std::collections::{BTreeMap, HashMap};

use super::record::Record;

/// Evicted routes to keep per place in the cache. Each needs some 200 bytes.
const PER_PLACE: usize = 8;

/// A route without a `Cluster` object, so that nothing probes the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evicted {
    pub record: Record,
    pub mzxid: i64,
}

#[derive(Default)]
pub struct EvictedRoutes {
    by_table: HashMap<Box<str>, (u64, Evicted)>,
    /// Tables in the order of their evictions.
    order: BTreeMap<u64, Box<str>>,
    next: u64,
}

impl EvictedRoutes {
    /// Keeps a route, in a cache for `capacity` tables.
    pub fn keep(&mut self, table: &str, route: Evicted, capacity: usize) {
        self.forget(table);
        self.order.insert(self.next, table.into());
        self.by_table.insert(table.into(), (self.next, route));
        self.next += 1;
        while self.order.len() > capacity.saturating_mul(PER_PLACE) {
            let oldest = self.order.pop_first();
            oldest.and_then(|(_, table)| self.by_table.remove(&table));
        }
    }

    /// Forgets a table that is cached again, or gone.
    pub fn forget(&mut self, table: &str) {
        if let Some((at, _)) = self.by_table.remove(table) {
            self.order.remove(&at);
        }
    }

    /// All routes, in the order of their evictions.
    pub fn list(&self) -> Vec<(Box<str>, Evicted)> {
        let routes = self.order.values().filter_map(|table| {
            let (_, route) = self.by_table.get(table)?;
            Some((table.clone(), route.clone()))
        });
        routes.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_evicted_longest_ago_go_first() {
        let mut evicted = EvictedRoutes::default();
        let route = |mzxid| {
            let record = Record { cluster: "c".to_owned(), meta_addrs: Vec::new() };
            Evicted { record, mzxid }
        };
        for n in 0..=PER_PLACE {
            evicted.keep(&n.to_string(), route(1), 1);
        }
        evicted.keep("1", route(2), 1);
        evicted.forget("2");
        let left: Vec<_> =
            evicted.list().into_iter().map(|(table, of)| (table, of.mzxid)).collect();
        assert_eq!(left.len(), PER_PLACE - 1, "{left:?}");
        assert_eq!(left.first().map(|(table, _)| &**table), Some("3"));
        assert_eq!(left.last(), Some(&("1".into(), 2)));
        assert_eq!(evicted.by_table.len(), evicted.order.len());
    }
}
