//! Decides when to stop asking a cluster that does not answer. Pure: time comes in.
//!
//! ```text
//!           queries fail in a row       probes of all its MetaServers get no answer
//!  HEALTHY ───────────────────▶ DOUBTED ───────────────────────────────────▶ FAILING: queries are refused at once,
//!     ▲                            │                                            │     but for one each second
//!     └──── any answer, to a query or to a probe ───────────────────────────────┘
//! ```
//! A query to a dead cluster waits for its whole deadline; while the cluster is FAILING, the proxy refuses queries at
//! once. Probes alone refuse no query, and one real query goes through each second, so wrong probes never close a
//! healthy cluster. A cluster that is silent for some tables only still answers probes, so it never becomes FAILING.

use std::time::{Duration, Instant};

/// A cluster is doubted after this many failed queries in a row. One failure is not enough: a leader change easily
/// takes one query's deadline.
const FAILURES_TO_DOUBT: u32 = 3;

/// While the cluster fails, let one query through after each pause.
const TRIAL_PAUSE: Duration = Duration::from_secs(1);

/// First pause between two rounds of probes that got no answer, doubled up to [`MAX_PROBE_PAUSE`].
pub const FIRST_PROBE_PAUSE: Duration = Duration::from_millis(200);
/// See [`FIRST_PROBE_PAUSE`]. The proxy notices a repaired cluster within this time, without any query.
pub const MAX_PROBE_PAUSE: Duration = Duration::from_millis(1500);

/// The outcome of the last queries and probes of a cluster.
#[derive(Debug, Default)]
pub struct Health {
    failures: u32,
    failing_since: Option<Instant>,
    trial_at: Option<Instant>,
}

impl Health {
    /// Whether the cluster may be asked. While it fails, that is one trial query per second.
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

    /// Records that a MetaServer answered a query or a probe. True: the cluster was failing until now.
    pub fn answered(&mut self) -> bool {
        if self.failures == 0 {
            return false;
        }
        let was_failing = self.failing_since.is_some();
        *self = Health::default();
        was_failing
    }

    /// Records that a query got no answer although it had enough time. True: probe the cluster at once.
    pub fn failed(&mut self) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.is_doubted()
    }

    /// Whether queries failed in a row, and no probe has decided yet.
    pub fn is_doubted(&self) -> bool {
        self.failing_since.is_none() && self.failures >= FAILURES_TO_DOUBT
    }

    /// Records that all MetaServers were probed at once and none answered. True: the cluster fails from now on.
    pub fn probed_in_vain(&mut self, now: Instant) -> bool {
        let is_news = self.is_doubted();
        if is_news {
            self.failing_since = Some(now);
            self.trial_at = Some(now);
        }
        is_news
    }

    /// Since when the proxy refuses queries; `None`: it does not.
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
