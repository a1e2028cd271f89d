//! Ages by the monotonic clock: steps of the wall clock do not change them.

use std::time::{Duration, Instant, SystemTime};

/// The age of something that happened in this process, or before it.
#[derive(Clone, Copy, Debug)]
pub struct Age {
    /// The age at `at`.
    then: Duration,
    at: Instant,
}

impl Age {
    /// The age of something that happens now.
    pub fn zero() -> Self {
        Age { then: Duration::ZERO, at: Instant::now() }
    }

    /// The age of something with a date of the wall clock, such as a file. Only this function reads the wall clock.
    pub fn since(date: SystemTime) -> Self {
        Age { then: date.elapsed().unwrap_or_default(), at: Instant::now() }
    }

    /// The age now.
    pub fn get(self) -> Duration {
        self.then + self.at.elapsed()
    }
}
