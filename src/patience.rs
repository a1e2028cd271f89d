//! How long a query waits: one setting, and the times that follow from it.
//!
//! ```text
//! the client's query arrives ── slow_after: another MetaServer is asked, too ── budget: refused ── the setting
//! ```

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// How often to check waiting queries: a refusal is at most this late.
pub const TICK: Duration = Duration::from_millis(20);

/// Stop waiting for an answer this long before the client must have one.
const MARGIN: Duration = Duration::from_millis(50);

/// The time in which the proxy answers a query; a setting that may change while the proxy runs.
pub struct QueryTimeout {
    ms: AtomicU32,
}

impl QueryTimeout {
    /// `timeout` may be some weeks at most.
    pub fn new(timeout: Duration) -> Self {
        let shared = QueryTimeout { ms: AtomicU32::new(0) };
        shared.set(timeout);
        shared
    }

    /// Changes the time for queries that arrive from now on.
    pub fn set(&self, timeout: Duration) {
        self.ms.store(timeout.as_millis().try_into().unwrap_or(u32::MAX), Relaxed);
    }

    pub fn get(&self) -> Duration {
        Duration::from_millis(self.ms.load(Relaxed).into())
    }

    /// How long to wait for an answer, from the arrival of the query. The rest of the time is for a tick, and for
    /// writing the refusal.
    pub fn budget(&self) -> Duration {
        self.get() - MARGIN.min(self.get() / 4)
    }

    /// A MetaServer that has not answered after this time is slow; another one is asked, too.
    pub fn slow_after(&self) -> Duration {
        self.budget() / 3
    }

    /// A query that ends without an answer counts against its MetaServers only if they had this time.
    pub fn fair(&self) -> Duration {
        2 * self.slow_after()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_time_out_leaves_servers_a_fair_chance() {
        for ms in [100, 1_500, 60_000] {
            let timeout = QueryTimeout::new(Duration::from_millis(ms));
            assert!(timeout.budget() < timeout.get(), "{ms}");
            assert!(
                timeout.fair() + TICK < timeout.budget() + MARGIN,
                "{ms}: {:?}",
                timeout.fair()
            );
            assert!(timeout.fair() < timeout.budget(), "{ms}");
        }
    }
}
