//! Recent rates and latencies, from totals recorded from time to time. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::metrics::LATENCY_BOUNDS_US;

/// [`Rate`] is the mean over this time.
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// Keep totals at least this far apart.
const RATE_STEP: Duration = Duration::from_secs(1);

/// Recent events per second, from totals that each request of the page records.
pub struct Rate {
    /// Totals of the window, and one from before it; the oldest first.
    totals: VecDeque<(Instant, u64)>,
}

impl Rate {
    /// Starts with a total of 0 at `now`.
    pub fn new(now: Instant) -> Self {
        Rate { totals: [(now, 0)].into() }
    }

    /// Records the total and returns the mean rate of the last 10 s.
    pub fn tell(&mut self, now: Instant, total: u64) -> f64 {
        let is_old = |at: Instant| now.saturating_duration_since(at) >= RATE_WINDOW;
        while self.totals.get(1).is_some_and(|(at, _)| is_old(*at)) {
            self.totals.pop_front();
        }
        let (since, before) = self.totals.front().copied().unwrap_or((now, total));
        if self.totals.back().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= RATE_STEP)
        {
            self.totals.push_back((now, total));
        }
        let seconds = now.saturating_duration_since(since).as_secs_f64();
        if seconds > 0.0 { total.saturating_sub(before) as f64 / seconds } else { 0.0 }
    }
}

/// Recent answers by bucket of [`LATENCY_BOUNDS_US`].
pub struct RecentLatency {
    /// See [`Rate`].
    totals: VecDeque<(Instant, Buckets)>,
}

type Buckets = [u64; LATENCY_BOUNDS_US.len() + 1];

impl RecentLatency {
    /// Starts with a total of 0 at `now`.
    pub fn new(now: Instant) -> Self {
        RecentLatency { totals: [(now, [0; LATENCY_BOUNDS_US.len() + 1])].into() }
    }

    /// Records the totals, and returns the upper bounds of the median and of the 99th percentile since the window
    /// began, us; a time above the last bound counts as that.
    pub fn tell(&mut self, now: Instant, totals: Buckets) -> Option<(u64, u64)> {
        let is_old = |at: Instant| now.saturating_duration_since(at) >= RATE_WINDOW;
        while self.totals.get(1).is_some_and(|(at, _)| is_old(*at)) {
            self.totals.pop_front();
        }
        let before = self.totals.front().map_or(totals, |(_, before)| *before);
        if self.totals.back().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= RATE_STEP)
        {
            self.totals.push_back((now, totals));
        }
        let fresh = totals.iter().zip(&before).map(|(now, before)| now.saturating_sub(*before));
        let fresh: Vec<u64> = fresh.collect();
        let all: u64 = fresh.iter().sum();
        let bound = |percent: u64| {
            let rank = (all * percent).div_ceil(100);
            let mut below = 0;
            let bucket = fresh.iter().position(|n| {
                below += n;
                below >= rank
            });
            let last = LATENCY_BOUNDS_US.len() - 1;
            LATENCY_BOUNDS_US[bucket.unwrap_or(last).min(last)]
        };
        (all > 0).then(|| (bound(50), bound(99)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut latency = RecentLatency::new(start);
        let mut totals = [0; LATENCY_BOUNDS_US.len() + 1];
        assert_eq!(latency.tell(at(1), totals), None);
        (totals[1], totals[7]) = (98, 2);
        assert_eq!(latency.tell(at(2), totals), Some((100, 10_000)));
        totals[15] += 1;
        let last = LATENCY_BOUNDS_US[14];
        assert_eq!(latency.tell(at(20), totals), Some((last, last)), "slower than the last bound");
        assert_eq!(latency.tell(at(40), totals), None, "nobody asked of late");
    }

    #[test]
    fn a_rate_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut rate = Rate::new(start);
        assert_eq!(rate.tell(start, 0), 0.0);
        assert_eq!(rate.tell(at(2_000), 100), 50.0);
        assert_eq!(rate.tell(at(12_000), 100), 0.0, "the first seconds are forgotten");
        for ms in 12_000..100_000 {
            rate.tell(at(ms), 100);
        }
        assert!(rate.totals.len() <= 12, "{}", rate.totals.len());
        assert_eq!(rate.tell(at(1_000_000), 100), 0.0);
        assert_eq!(rate.tell(at(1_010_000), 200), 10.0);
    }
}
