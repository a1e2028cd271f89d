//! Decides how many calls to one cluster may run at once. Pure.
//!
//! ```text
//! 2 at the start ──answered──▶ one more each time, up to max_calls
//!                ──a call outlives its slice──▶ 1
//! ```
//! A worker waits for a running call for a slice, then parks the call and is free. So a cluster that goes silent costs
//! one worker one slice; its next calls are parked as soon as they are sent.

/// Calls at once before the first answer of the cluster.
const FIRST: usize = 2;

/// The calls of one cluster.
#[derive(Debug)]
pub struct SlowStart {
    max: usize,
    allowed: usize,
    running: usize,
    parked: usize,
    is_silent: bool,
}

impl SlowStart {
    /// At most `max` calls at once.
    pub fn new(max: usize) -> Self {
        SlowStart { max, allowed: FIRST.min(max), running: 0, parked: 0, is_silent: false }
    }

    /// Takes a place for a call. False: none is free.
    #[must_use]
    pub fn begin(&mut self) -> bool {
        let is_free = self.running < self.allowed && self.running + self.parked < self.max;
        self.running += usize::from(is_free);
        is_free
    }

    /// Gives the place back.
    pub fn end(&mut self) {
        self.running -= 1;
    }

    /// Parks a running call; its place is free while fewer than `max` calls are parked.
    pub fn park(&mut self) {
        (self.running, self.parked) = (self.running - 1, self.parked + 1);
        (self.allowed, self.is_silent) = (1, true);
    }

    /// Uncounts a parked call that has ended or is too slow to count.
    pub fn unpark(&mut self) {
        self.parked -= 1;
    }

    /// Counts a parked call as running again.
    pub fn resume(&mut self) {
        (self.running, self.parked) = (self.running + 1, self.parked - 1);
    }

    /// A call got all its answers. `is_quick`: a worker did not have to park it.
    pub fn answered(&mut self, is_quick: bool) {
        self.allowed = (self.allowed + 1).min(self.max);
        self.is_silent &= !is_quick;
    }

    /// Whether the last call was not quick, so that the next one is parked at once.
    pub fn is_silent(&self) -> bool {
        self.is_silent
    }

    /// Number of calls that workers wait for.
    pub fn running(&self) -> usize {
        self.running
    }

    /// Number of calls under way, running or parked.
    pub fn calls(&self) -> usize {
        self.running + self.parked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_gains_calls_one_by_one_and_loses_them_at_once() {
        let mut calls = SlowStart::new(8);
        assert!(calls.begin() && calls.begin());
        assert!(!calls.begin(), "two at the start");
        calls.answered(true);
        assert!(calls.begin());
        for _ in 0..20 {
            calls.answered(true);
        }
        assert_eq!((0..20).filter(|_| calls.begin()).count(), 5, "eight at most");
        calls.park();
        assert!(calls.is_silent());
        (0..7).for_each(|_| calls.end());
        assert!(calls.begin() && !calls.begin(), "one after a silence");
        calls.end();
        for parked in 1..8 {
            assert!(calls.begin(), "{parked}");
            calls.park();
        }
        assert!(!calls.begin(), "as many are parked as may be");
        calls.resume();
        calls.answered(true);
        calls.end();
        assert!(!calls.is_silent() && calls.begin());
    }
}
