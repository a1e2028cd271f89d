//! Whether the wall clock can be believed when files are deleted by their age. Pure.
//!
//! A step of the clock by a year makes every file a year older at once. It shows as a difference between the wall clock and
//! the monotonic one. For a day from then on nothing is deleted by age, so that whoever set the clock wrongly
//! can correct it; the number of files bounds them meanwhile.

use std::time::{Duration, Instant};

/// The two clocks may part by this much between two looks: adjusted clocks run a little faster or slower.
const TOLERANCE: Duration = Duration::from_secs(60);
/// So long after a step files are not deleted by age.
const DISTRUST: Duration = Duration::from_secs(24 * 3600);

/// The wall clock as it was last seen.
pub struct WallClock {
    wall: Duration,
    at: Instant,
    /// When the last step was seen.
    stepped_at: Option<Instant>,
}

impl WallClock {
    /// `wall` is the time since 1970 at `now`.
    pub fn new(wall: Duration, now: Instant) -> Self {
        WallClock { wall, at: now, stepped_at: None }
    }

    /// Looks at the clock, and returns by how many seconds it has jumped since the last look, if it has.
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
    fn a_step_is_seen_and_distrusted_for_a_day() {
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
