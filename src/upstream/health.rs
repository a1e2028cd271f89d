//! When to stop asking a cluster that does not answer. Pure: time comes in.
//!
//! ```text
//!           calls fail in a row                 the pause is over: one query is let through
//!  HEALTHY ─────────────────────▶ FAILING ────────────────────────────────────▶ its call is under way
//!     ▲                              ▲  all others are refused at once             │
//!     │                              └──────────────── it fails ───────────────────┤
//!     └──────────────────────────────────── it is answered ────────────────────────┘
//! ```
//! A dead cluster costs a call its whole deadline. Without this its queries would pile up behind few
//! places, each to fail as late as it may.

use std::time::{Duration, Instant};

/// Calls in a row that must fail before queries are refused. Several, because one can fail on its own:
/// a leader change takes one call's deadline easily.
const FAILURES_TO_REFUSE: u32 = 3;

/// Pause between a failed probe and the next: short against the second after which clients ask again.
const PROBE_PAUSE: Duration = Duration::from_millis(200);

/// What the last calls to a cluster came to.
#[derive(Debug, Default)]
pub struct Health {
    failures: u32,
    last_failure: Option<Instant>,
    failing_since: Option<Instant>,
}

impl Health {
    /// Whether a query may start or join a call. `is_called`: one is under way; while the cluster fails, that is the
    /// probe.
    pub fn admits(&self, is_called: bool, now: Instant) -> bool {
        let is_paused = || self.last_failure.is_some_and(|at| now < at + PROBE_PAUSE);
        !self.is_failing() || !(is_called || is_paused())
    }

    /// A call was answered by a leader. True: the cluster had been failing.
    pub fn answered(&mut self) -> bool {
        let was_failing = self.is_failing();
        *self = Health::default();
        was_failing
    }

    /// A call ended without an answer. True: from now on queries are refused.
    pub fn failed(&mut self, now: Instant) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.last_failure = Some(now);
        let is_news = self.failures == FAILURES_TO_REFUSE;
        if is_news {
            self.failing_since = Some(now);
        }
        is_news
    }

    /// Since when queries are refused but for probes.
    pub fn failing_since(&self) -> Option<Instant> {
        self.failing_since
    }

    /// Whether queries are refused but for probes.
    pub fn is_failing(&self) -> bool {
        self.failures >= FAILURES_TO_REFUSE
    }

    /// Calls that failed since the last answer.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_cluster_is_probed_by_one_query_at_a_time() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut health = Health::default();
        assert!(!health.failed(at(0)));
        assert!(!health.failed(at(1)));
        assert!(health.admits(true, at(1)), "two failures may be chance");
        assert!(health.failed(at(2)), "told once");
        assert!(!health.failed(at(3)));
        assert!(!health.admits(false, at(4)));
        assert!(!health.admits(true, at(300)), "one at a time");
        assert!(health.admits(false, at(300)), "the probe");
        health.failed(at(400));
        assert!(!health.admits(false, at(599)));
        assert!(health.admits(false, at(600)));
        assert!(health.answered(), "told that it is well again");
        assert!(!health.answered());
        assert!(health.admits(true, at(601)));
    }
}
