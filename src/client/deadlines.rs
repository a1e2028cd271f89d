//! Deadlines of clients: finish a frame, take an answer. Pure: times come in, the nearest goes out.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// One deadline per key, ordered by time.
pub struct Deadlines<K> {
    by_time: BTreeSet<(Instant, K)>,
    by_key: HashMap<K, Instant>,
}

impl<K> Default for Deadlines<K> {
    fn default() -> Self {
        Deadlines { by_time: BTreeSet::new(), by_key: HashMap::new() }
    }
}

impl<K: Copy + Ord + Hash> Deadlines<K> {
    /// Replaces the deadline of `key`; `None` removes it.
    pub fn set(&mut self, key: K, at: Option<Instant>) {
        if let Some(old) = self.by_key.remove(&key) {
            self.by_time.remove(&(old, key));
        }
        if let Some(at) = at {
            self.by_time.insert((at, key));
            self.by_key.insert(key, at);
        }
    }

    pub fn contains(&self, key: K) -> bool {
        self.by_key.contains_key(&key)
    }

    /// The nearest deadline.
    pub fn first(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Removes a deadline that is over at `now`, and returns its key.
    pub fn pop_over(&mut self, now: Instant) -> Option<K> {
        let (_, key) = *self.by_time.first().filter(|(at, _)| *at <= now)?;
        self.set(key, None);
        Some(key)
    }
}

/// Since when the proxy waits for a client, and for what. Times are ms of one clock; 0: the proxy does not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// When the client began an unfinished frame.
    pub half_frame_since_ms: u64,
    /// Since when the client has taken none of its unsent answers.
    pub unsent_since_ms: u64,
}

/// The outcome of a check of how long the proxy has waited for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The proxy does not wait for the client.
    Nothing,
    /// Look again at this time, ms.
    Until(u64),
    /// The client did not finish its frame in time.
    HalfFrame,
    /// The client took none of its answers in time.
    Unread,
}

impl Waits {
    pub fn check(self, frame_timeout: Duration, unread_timeout: Duration, now_ms: u64) -> Wait {
        let until = |since_ms, timeout: Duration| match since_ms {
            0 => None,
            since_ms => Some(since_ms + timeout.as_millis() as u64),
        };
        let frame_ms = until(self.half_frame_since_ms, frame_timeout);
        let unread_ms = until(self.unsent_since_ms, unread_timeout);
        let is_over = |ms: Option<u64>| ms.is_some_and(|ms| ms <= now_ms);
        if is_over(frame_ms) {
            return Wait::HalfFrame;
        }
        if is_over(unread_ms) {
            return Wait::Unread;
        }
        match [frame_ms, unread_ms].into_iter().flatten().min() {
            Some(ms) => Wait::Until(ms),
            None => Wait::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wait_for_a_client_has_its_own_timeout() {
        let (frame, unread) = (Duration::from_millis(10), Duration::from_millis(30));
        for (why, half_frame_since_ms, unsent_since_ms, now_ms, want) in [
            ("nothing to wait for", 0, 0, 1_000, Wait::Nothing),
            ("a frame that has time", 100, 0, 109, Wait::Until(110)),
            ("a frame that has had it", 100, 0, 110, Wait::HalfFrame),
            ("answers that have time", 0, 100, 129, Wait::Until(130)),
            ("answers that have had it", 0, 100, 130, Wait::Unread),
            ("both: the nearer counts", 105, 100, 112, Wait::Until(115)),
            ("both over: one reason is enough", 100, 100, 200, Wait::HalfFrame),
        ] {
            let waits = Waits { half_frame_since_ms, unsent_since_ms };
            assert_eq!(waits.check(frame, unread, now_ms), want, "{why}");
        }
    }

    #[test]
    fn each_key_has_one_deadline_and_the_nearest_is_first() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut deadlines = Deadlines::default();
        for (key, ms) in [('a', 30), ('b', 20), ('c', 20), ('a', 10)] {
            deadlines.set(key, Some(at(ms)));
        }
        assert_eq!((deadlines.first(), deadlines.pop_over(at(9))), (Some(at(10)), None));
        deadlines.set('b', None);
        let over: Vec<char> = std::iter::from_fn(|| deadlines.pop_over(at(100))).collect();
        assert_eq!((over, deadlines.first()), (vec!['a', 'c'], None));
    }
}
