//! How old something is, by a clock that nobody sets: steps of the wall clock change no age.

use std::time::{Duration, Instant, SystemTime};

/// The age of something that happened in this process, or before it.
#[derive(Clone, Copy, Debug)]
pub struct Age {
    /// How old it was at `at`.
    then: Duration,
    at: Instant,
}

impl Age {
    /// The age of something that happens now.
    pub fn zero() -> Self {
        Age { then: Duration::ZERO, at: Instant::now() }
    }

    /// The age of something that the wall clock has dated, as a file is. Only this function reads the wall clock.
    pub fn since(date: SystemTime) -> Self {
        Age { then: date.elapsed().unwrap_or_default(), at: Instant::now() }
    }

    /// How old it is now.
    pub fn get(self) -> Duration {
        self.then + self.at.elapsed()
    }
}
