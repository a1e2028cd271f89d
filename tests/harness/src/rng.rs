//! Decisions. One seed always makes equal decisions in equal order, in each thread for itself. Pure.

use std::ops::RangeInclusive;
use std::time::Duration;

/// A source of decisions: splitmix64, where any seed is a good one.
pub struct Rng(u64);

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

impl Rng {
    /// Threads of one run share the seed, each with a stream of its own.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = Rng(seed ^ stream.wrapping_mul(GOLDEN));
        // So that neighbouring streams are not each other's next step.
        let start = rng.next();
        Rng(start)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number less than `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// True in so many of a hundred cases.
    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// A time between these, in ms.
    pub fn ms(&mut self, range: RangeInclusive<u64>) -> Duration {
        let span = range.end() - range.start() + 1;
        Duration::from_millis(range.start() + self.next() % span)
    }

    /// A new order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_decides_the_same_and_streams_differ() {
        let decide = |seed, stream| {
            let mut rng = Rng::new(seed, stream);
            let mut order: Vec<usize> = (0..20).collect();
            rng.shuffle(&mut order);
            (order, rng.below(1000), rng.ms(5..=900))
        };
        assert_eq!(decide(7, 1), decide(7, 1));
        assert_ne!(decide(7, 1), decide(7, 2));
        assert_ne!(decide(7, 1), decide(8, 1));
        let mut sorted = decide(7, 1).0;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn ranges_are_kept() {
        let mut rng = Rng::new(1, 1);
        for _ in 0..1000 {
            assert!(rng.below(3) < 3);
            assert!((Duration::from_millis(2)..=Duration::from_millis(4)).contains(&rng.ms(2..=4)));
        }
        assert_eq!(rng.ms(9..=9), Duration::from_millis(9));
        assert!(!rng.percent(0) && rng.percent(100));
    }
}
