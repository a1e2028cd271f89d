//! When to stop asking a cluster that does not answer. Pure: time comes in.
//!
//! ```text
//!           queries fail in a row       probes of all its MetaServers get no answer
//!  HEALTHY ───────────────────▶ DOUBTED ───────────────────────────────────▶ FAILING: queries are refused at once,
//!     ▲                            │                                            │     but for one each second
//!     └──── any answer, to a query or to a probe ───────────────────────────────┘
//! ```
//! A dead cluster costs a query its whole deadline; while it fails, clients learn of it at once. Probes alone refuse
//! nobody, and one real query each second goes on: a wrong probe never closes a healthy cluster. A cluster that is mute for
//! some tables answers its probes, so that it is never failing.

use std::time::{Duration, Instant};

/// Queries in a row that must fail before the cluster is doubted. Several, because one can fail on its own: a leader
/// change takes one query's deadline easily.
const FAILURES_TO_DOUBT: u32 = 3;

/// Pause between two queries that are let through while the cluster fails.
const TRIAL_PAUSE: Duration = Duration::from_secs(1);

/// Pause between two rounds of probes of a cluster without an answer, doubled up to [`MAX_PROBE_PAUSE`].
pub const FIRST_PROBE_PAUSE: Duration = Duration::from_millis(200);
/// See [`FIRST_PROBE_PAUSE`]. A repaired cluster is well again within this time, without any client.
pub const MAX_PROBE_PAUSE: Duration = Duration::from_millis(1500);

/// The outcome of the last queries and probes of a cluster.
#[derive(Debug, Default)]
pub struct Health {
    failures: u32,
    failing_since: Option<Instant>,
    trial_at: Option<Instant>,
}

impl Health {
    /// Whether a query may be asked. While the cluster fails that is a trial, one each second.
    pub fn admits(&mut self, now: Instant) -> bool {
        if self.failing_since.is_none() {
            return true;
        }
        let is_trial = self.trial_at.is_none_or(|at| now >= at + TRIAL_PAUSE);
        if is_trial {
            self.trial_at = Some(now);
        }
        is_trial
    }

    /// A MetaServer answered a query, or a probe. True: the cluster had been failing.
    pub fn answered(&mut self) -> bool {
        if self.failures == 0 {
            return false;
        }
        let was_failing = self.failing_since.is_some();
        *self = Health::default();
        was_failing
    }

    /// A query that had the time for an answer ended without one. True: the cluster is to be probed at once.
    pub fn failed(&mut self) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.is_doubted()
    }

    /// Whether queries failed in a row, and no probe has told more yet.
    pub fn is_doubted(&self) -> bool {
        self.failing_since.is_none() && self.failures >= FAILURES_TO_DOUBT
    }

    /// All MetaServers were probed at once, and none answered. True: the cluster fails from now on.
    pub fn probed_in_vain(&mut self, now: Instant) -> bool {
        let is_news = self.is_doubted();
        if is_news {
            self.failing_since = Some(now);
            self.trial_at = Some(now);
        }
        is_news
    }

    /// Since when queries are refused.
    pub fn failing_since(&self) -> Option<Instant> {
        self.failing_since
    }

    /// Queries that failed since the last answer.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_and_probes_must_fail_both() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut health = Health::default();
        assert!(!health.probed_in_vain(at(0)), "no query has failed");
        assert!(!health.failed());
        assert!(!health.failed());
        assert!(!health.probed_in_vain(at(0)), "two failures may be chance");
        assert!(health.failed(), "it is doubted");
        assert!(health.admits(at(1)) && health.admits(at(1)), "until the probes are back");
        assert!(health.probed_in_vain(at(2)));
        assert!(!health.probed_in_vain(at(3)), "told once");
        assert!(!health.admits(at(4)));
        assert!(health.admits(at(1002)), "one each second");
        assert!(!health.admits(at(1003)));
        assert!(!health.failed(), "it is known to fail");
        assert!(health.answered(), "told that it is well again");
        assert!(!health.answered());
        assert!(health.admits(at(1004)));
    }

    #[test]
    fn an_answer_to_a_probe_takes_doubt_away() {
        let mut health = Health::default();
        (0..FAILURES_TO_DOUBT).for_each(|_| _ = health.failed());
        assert!(!health.answered(), "it was doubted only");
        assert!(!health.probed_in_vain(Instant::now()), "the answer came meanwhile");
    }
}
