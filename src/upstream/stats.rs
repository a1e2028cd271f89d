//! Counters of all clusters of one name.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use parking_lot::Mutex;

use super::table_errors::TableErrors;
use crate::metrics::{Count, Latency};
use crate::wire::error_code::COUNTED;

/// Pairs of MetaServer and kind with their own count; the oldest failure makes room. Forwards can name many servers,
/// and servers are replaced.
const MAX_FAILURE_KINDS: usize = 128;

#[derive(Default)]
pub struct Stats {
    /// Answers that its leaders gave to queries, by `error_code::COUNTED`.
    pub answers: [Count; COUNTED.len()],
    /// Tables whose last answer was an error.
    pub table_errors: TableErrors,
    /// Queries that the proxy refused because no MetaServer answered.
    pub unanswered: Count,
    /// How long MetaServers took to answer a call.
    pub latency: Latency,
    failures: Mutex<BTreeMap<(SocketAddr, &'static str), Failures>>,
}

/// Failures of one MetaServer, of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Failures {
    /// Number since the start.
    pub count: u64,
    /// Time of the last.
    pub last: Instant,
}

impl Stats {
    /// Counts `queries` answers of a leader about the table. `counted_as` is an index into `error_code::COUNTED`.
    pub fn answered(&self, table: &str, counted_as: usize, queries: u64) {
        self.answers[counted_as].add(queries);
        self.table_errors.answered(table, counted_as, queries);
    }

    /// Counts a failure of `meta`.
    pub fn failed(&self, meta: SocketAddr, kind: &'static str) {
        let mut failures = self.failures.lock();
        let now = Instant::now();
        let counted = failures.entry((meta, kind)).or_insert(Failures { count: 0, last: now });
        *counted = Failures { count: counted.count + 1, last: now };
        if failures.len() > MAX_FAILURE_KINDS {
            let oldest = failures.iter().min_by_key(|(_, counted)| counted.last);
            let oldest = oldest.map(|(key, _)| *key);
            failures.retain(|key, _| Some(*key) != oldest);
        }
    }

    pub fn failures(&self) -> Vec<(SocketAddr, &'static str, Failures)> {
        let failures = self.failures.lock();
        failures.iter().map(|((meta, kind), counted)| (*meta, *kind, *counted)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_for_a_bounded_number_of_servers_the_latest() {
        let stats = Stats::default();
        let meta = |n| SocketAddr::from(([10, 0, 0, 1], n));
        for n in 0..2 * MAX_FAILURE_KINDS as u16 {
            stats.failed(meta(1), "refused");
            stats.failed(meta(2 + n), "timeout");
        }
        let failures = stats.failures();
        assert_eq!(failures.len(), MAX_FAILURE_KINDS);
        let (first, _, counted) = failures[0];
        assert_eq!((first, counted.count), (meta(1), 2 * MAX_FAILURE_KINDS as u64));
        assert_eq!(failures.last().unwrap().0, meta(1 + 2 * MAX_FAILURE_KINDS as u16));
    }
}
