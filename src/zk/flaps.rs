//! How many lines one table has in the log: one that changes without end must not fill the disk. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Lines of one table in [`SPAN`].
const MAX_LINES: u32 = 10;
const SPAN: Duration = Duration::from_secs(10);

struct Flap {
    since: Instant,
    lines: u32,
    hidden: u64,
}

/// The tables that had lines recently: at most those that changed in [`SPAN`].
#[derive(Default)]
pub struct Flaps(HashMap<Box<str>, Flap>);

impl Flaps {
    /// Whether a line of this table is shown. One that is not is counted.
    pub fn shows(&mut self, table: &str, now: Instant) -> bool {
        let new = || Flap { since: now, lines: 0, hidden: 0 };
        let flap = self.0.entry(table.into()).or_insert_with(new);
        let is_shown = flap.lines < MAX_LINES;
        match is_shown {
            true => flap.lines += 1,
            false => flap.hidden += 1,
        }
        is_shown
    }

    /// Tables whose time is over, and how many lines of each were not shown. To be called about once a second.
    pub fn ended(&mut self, now: Instant) -> Vec<(Box<str>, u64)> {
        let ended = self.0.extract_if(|_, flap| now >= flap.since + SPAN);
        ended
            .filter(|(_, flap)| flap.hidden > 0)
            .map(|(table, flap)| (table, flap.hidden))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_flaps_has_few_lines_and_the_others_theirs() {
        let (start, mut flaps) = (Instant::now(), Flaps::default());
        let shown = (0..1000).filter(|_| flaps.shows("a", start)).count();
        assert_eq!(shown, 10);
        assert!(flaps.shows("b", start));
        assert_eq!(flaps.ended(start + SPAN / 2), []);
        assert_eq!(flaps.ended(start + SPAN), [("a".into(), 990)], "of b nothing was hidden");
        assert!(flaps.shows("a", start + SPAN), "it begins anew");
        assert_eq!(flaps.0.len(), 1);
    }
}
