//! Pseudo-random numbers, to spread over time what many would do at once. Pure.

use std::time::Duration;

/// A sequence that depends only on its seed.
pub struct Spread(u64);

impl Spread {
    pub fn new(seed: u64) -> Self {
        Spread(seed | 1)
    }

    /// The next number, by xorshift64: any spread will do.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A time near `span`, at most a fifth longer or shorter.
    pub fn around(&mut self, span: Duration) -> Duration {
        span.mul_f64(0.8 + 0.4 * (self.number() % 1024) as f64 / 1024.0)
    }
}
