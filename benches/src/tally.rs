//! Times of queries, kept one by one: a phase has some hundred thousand, and sorting them is cheaper than doubting a
//! histogram's edges. Pure.

use std::time::{Duration, Instant};

/// The answers of one phase.
pub struct Tally {
    start: Instant,
    last: Instant,
    answers: Vec<Answered>,
}

/// Nanoseconds from the tally's start to when a query counts from, and from there to its answer.
struct Answered {
    since: u64,
    took: u64,
    is_ok: bool,
}

impl Tally {
    /// Empty, with room for some.
    pub fn starting(start: Instant, room: usize) -> Self {
        Tally { start, last: start, answers: Vec::with_capacity(room) }
    }

    /// One answer: the time it took, and whether it was no error.
    pub fn add(&mut self, since: Instant, at: Instant, ok: bool) {
        let nanos = |from, to: Instant| to.saturating_duration_since(from).as_nanos() as u64;
        self.answers.push(Answered {
            since: nanos(self.start, since),
            took: nanos(since, at),
            is_ok: ok,
        });
        self.last = self.last.max(at);
    }

    /// Only what counts from `at` or later.
    pub fn since(mut self, at: Instant) -> Self {
        let from = at.saturating_duration_since(self.start).as_nanos() as u64;
        self.answers.retain(|answered| answered.since >= from);
        self.start = self.start.max(at);
        self.answers.iter_mut().for_each(|answered| answered.since -= from);
        self
    }

    /// How many were answered.
    pub fn count(&self) -> u64 {
        self.answers.len() as u64
    }

    /// How many of them with an error.
    pub fn errors(&self) -> u64 {
        self.answers.iter().filter(|answered| !answered.is_ok).count() as u64
    }

    /// From the start to the last answer.
    pub fn elapsed(&self) -> Duration {
        self.last - self.start
    }

    /// Answers in a second.
    pub fn rate(&self) -> f64 {
        self.count() as f64 / self.elapsed().as_secs_f64()
    }

    /// The time within which so many of 1 were answered, in microseconds.
    pub fn quantiles_us<const N: usize>(self, wanted: [f64; N]) -> [f64; N] {
        let mut us: Vec<f64> =
            self.answers.iter().map(|answered| answered.took as f64 / 1e3).collect();
        quantiles(&mut us, wanted)
    }
}

/// The values which so many of 1 do not exceed; NaN if there are none.
pub fn quantiles<const N: usize>(values: &mut [f64], wanted: [f64; N]) -> [f64; N] {
    values.sort_unstable_by(f64::total_cmp);
    wanted.map(|q| match values.len() {
        0 => f64::NAN,
        len => values[((len as f64 * q).ceil() as usize).clamp(1, len) - 1],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_rates_and_quantiles() {
        let start = Instant::now();
        let mut tally = Tally::starting(start, 0);
        for ms in (1..=100).rev() {
            tally.add(start, start + Duration::from_millis(ms), ms != 7);
        }
        assert_eq!((tally.count(), tally.errors()), (100, 1));
        assert_eq!(tally.elapsed(), Duration::from_millis(100));
        assert!((tally.rate() - 1000.0).abs() < 1e-6);
        assert_eq!(tally.quantiles_us([0.5, 0.99, 1.0]), [50_000.0, 99_000.0, 100_000.0]);
        let late = start + Duration::from_millis(50);
        let mut tally = Tally::starting(start, 0);
        for since in [start, late] {
            tally.add(since, since + Duration::from_millis(10), since == late);
        }
        let tally = tally.since(late);
        assert_eq!((tally.count(), tally.errors()), (1, 0));
        assert_eq!(tally.elapsed(), Duration::from_millis(10));
        assert!(Tally::starting(start, 0).quantiles_us([0.5])[0].is_nan());
    }
}
