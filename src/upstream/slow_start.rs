//! How many calls to one cluster may run at once. Pure.
//!
//! ```text
//! 2 at the start ──answered──▶ one more each time, up to max_calls
//!                ──a call outlives its slice──▶ 1
//! ```
//! A worker blocks on a running call for a slice, then the call is parked and its worker is free. A cluster that has just
//! gone silent so costs one worker one slice, and the next of its calls are parked as soon as they are sent.

/// Calls at once before anything is known of the cluster.
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

    /// Takes a place for a call. False: there is none.
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

    /// A running call is parked; its place is free while fewer than `max` calls are parked.
    pub fn park(&mut self) {
        (self.running, self.parked) = (self.running - 1, self.parked + 1);
        (self.allowed, self.is_silent) = (1, true);
    }

    /// A parked call is over, or so slow that it is not counted any more.
    pub fn unpark(&mut self) {
        self.parked -= 1;
    }

    /// A parked call runs again.
    pub fn resume(&mut self) {
        (self.running, self.parked) = (self.running + 1, self.parked - 1);
    }

    /// A call was answered whole. `is_quick`: within the time for which a worker blocks on it.
    pub fn answered(&mut self, is_quick: bool) {
        self.allowed = (self.allowed + 1).min(self.max);
        self.is_silent &= !is_quick;
    }

    /// Whether calls were not quick of late: the next one is parked at once.
    pub fn is_silent(&self) -> bool {
        self.is_silent
    }

    /// Calls on which workers block.
    pub fn running(&self) -> usize {
        self.running
    }

    /// Calls under way, running or parked.
    pub fn calls(&self) -> usize {
        self.running + self.parked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_earns_its_calls_and_loses_them_at_once() {
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
