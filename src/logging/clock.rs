//! Decides whether the wall clock is good enough to delete files by age. Pure.
//!
//! If the clock jumps by a year, every file becomes a year older at once. The jump shows as a difference between the
//! wall clock and the monotonic clock. For a day after a jump no file is deleted by age, so that an operator can
//! correct the clock. Meanwhile the limit on the number of files bounds them.

use std::time::{Duration, Instant};

/// Between two looks the clocks may differ by this much: adjusted clocks run a little faster or slower.
const TOLERANCE: Duration = Duration::from_secs(60);
/// For this long after a jump, files are not deleted by age.
const DISTRUST: Duration = Duration::from_secs(24 * 3600);

/// The wall clock at the last look.
pub struct WallClock {
    wall: Duration,
    at: Instant,
    /// When the last jump was noticed.
    stepped_at: Option<Instant>,
}

impl WallClock {
    /// `wall` is the time since 1970 at `now`.
    pub fn new(wall: Duration, now: Instant) -> Self {
        WallClock { wall, at: now, stepped_at: None }
    }

    /// Looks at the clock. Returns the seconds by which it has jumped since the last look, if it has.
    pub fn look(&mut self, wall: Duration, now: Instant) -> Option<i128> {
        let due = self.wall + now.saturating_duration_since(self.at);
        let apart_ms = wall.as_millis() as i128 - due.as_millis() as i128;
        (self.wall, self.at) = (wall, now);
        let has_stepped = apart_ms.unsigned_abs() > TOLERANCE.as_millis();
        if has_stepped {
            self.stepped_at = Some(now);
        }
        has_stepped.then_some(apart_ms / 1_000)
    }

    /// Whether ages by this clock are good enough to delete files.
    pub fn is_trusted(&self, now: Instant) -> bool {
        self.stepped_at.is_none_or(|at| now.saturating_duration_since(at) >= DISTRUST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_is_noticed_and_the_clock_distrusted_for_a_day() {
        let start = Instant::now();
        let (hour, day) = (Duration::from_secs(3_600), Duration::from_secs(86_400));
        let mut clock = WallClock::new(400 * day, start);
        assert_eq!(
            clock.look(400 * day + hour + Duration::from_secs(2), start + hour),
            None,
            "adjusted"
        );
        assert!(clock.is_trusted(start + hour));
        assert_eq!(clock.look(800 * day + 2 * hour, start + 2 * hour), Some(400 * 86_400 - 2));
        assert!(!clock.is_trusted(start + 2 * hour + day - hour));
        assert!(clock.is_trusted(start + 2 * hour + day));
        let back = clock.look(400 * day + 3 * hour, start + 3 * hour);
        assert_eq!(back, Some(-400 * 86_400));
        assert!(!clock.is_trusted(start + 2 * hour + day), "the day begins anew");
    }
}
