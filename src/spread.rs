//! Chance enough to spread over time what many would do at once. Pure.

use std::time::Duration;

/// Numbers that look like chance; the same ones for the same seed.
pub struct Spread(u64);

impl Spread {
    /// Begins with this seed.
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

    /// A span, give or take a fifth.
    pub fn around(&mut self, span: Duration) -> Duration {
        span.mul_f64(0.8 + 0.4 * (self.number() % 1024) as f64 / 1024.0)
    }
}
