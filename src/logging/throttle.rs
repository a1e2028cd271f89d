//! Limits lines that a client can cause to a few per second, and counts the rest.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// Lets a kind of line through five times a second, and counts the rest.
pub struct Throttle {
    /// Second of the process << 32 | lines in that second, shown or hidden.
    state: AtomicU64,
}

/// Lines of one kind in one second.
const LINES_PER_SECOND: u64 = 5;

/// Number of lines of this kind that were not shown; prints nothing if there are none.
pub struct Hidden(u64);

impl fmt::Display for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            n => write!(f, " ({n} more like this were not shown)"),
        }
    }
}

impl Throttle {
    /// For a `static` beside the log line.
    pub const fn new() -> Self {
        Throttle { state: AtomicU64::new(0) }
    }

    /// `Some`: log the line, with the number of lines hidden before it.
    pub fn pass(&self) -> Option<Hidden> {
        static START: OnceLock<Instant> = OnceLock::new();
        self.pass_at(1 + START.get_or_init(Instant::now).elapsed().as_secs())
    }

    fn pass_at(&self, second: u64) -> Option<Hidden> {
        let next = |state: u64| match state >> 32 == second {
            true => state + 1,
            false => second << 32 | 1,
        };
        let before = self
            .state
            .fetch_update(Relaxed, Relaxed, |state| Some(next(state)))
            .expect("every state has a next one");
        let count = before & 0xffff_ffff;
        if before >> 32 != second {
            return Some(Hidden(count.saturating_sub(LINES_PER_SECOND)));
        }
        (count < LINES_PER_SECOND).then_some(Hidden(0))
    }
}

impl Default for Throttle {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_is_counted_not_shown() {
        let throttle = Throttle::new();
        let shown = (0..1000).filter(|_| throttle.pass_at(1).is_some()).count();
        assert_eq!(shown, 5);
        assert_eq!(throttle.pass_at(2).unwrap().0, 995);
        assert_eq!(throttle.pass_at(2).unwrap().0, 0);
        assert_eq!(throttle.pass_at(9).unwrap().to_string(), "");
    }
}
