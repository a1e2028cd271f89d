//! How long a query waits: one setting, and what follows from it.
//!
//! ```text
//! the client's question arrives ── slow_after: another MetaServer is asked, too ── budget: refused ── the setting
//! ```

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// How often waiting queries are looked at: they are answered so late at most.
pub const TICK: Duration = Duration::from_millis(20);

/// Time between the last moment at which an answer is waited for and the moment at which the client must have one.
const MARGIN: Duration = Duration::from_millis(50);

/// The time in which a query is answered; a setting that may change while the proxy runs.
pub struct QueryTimeout {
    ms: AtomicU32,
}

impl QueryTimeout {
    /// A time-out of at most some weeks.
    pub fn new(timeout: Duration) -> Self {
        let shared = QueryTimeout { ms: AtomicU32::new(0) };
        shared.set(timeout);
        shared
    }

    /// For the queries that come from now on.
    pub fn set(&self, timeout: Duration) {
        self.ms.store(timeout.as_millis().try_into().unwrap_or(u32::MAX), Relaxed);
    }

    /// The time as it is now.
    pub fn get(&self) -> Duration {
        Duration::from_millis(self.ms.load(Relaxed).into())
    }

    /// How long an answer is waited for, counted from the arrival of the question. The rest is for a tick, and for
    /// writing the refusal.
    pub fn budget(&self) -> Duration {
        self.get() - MARGIN.min(self.get() / 4)
    }

    /// A MetaServer that has not answered after this time is slow, and another is asked.
    pub fn slow_after(&self) -> Duration {
        self.budget() / 3
    }

    /// A query whose MetaServers have had this time says something of them when it ends without an answer.
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
