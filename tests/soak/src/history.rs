//! The history of a table's znode: the truth that answers are held against. Pure.
//!
//! ```text
//! version      n                    n+1
//! writer   sent ── returned      sent ── returned
//!            ├── may be current ─────────────┤
//! ```
//! A write takes effect at some moment between its being sent and its answer, and nobody can know when. So
//! a version may be current from the moment it was sent until the next one's answer was back.

use std::ops::Range;
use std::time::Duration;

/// Since the run began.
pub type Time = Duration;

/// The record in a table's znode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// The table lives in this cluster.
    Cluster(usize),
    /// Nothing that can be used.
    Junk,
    /// There is no znode.
    Absent,
}

/// One write.
#[derive(Clone, Debug)]
pub struct Version {
    /// Just before it was sent.
    pub sent: Time,
    /// Just after its answer came; `None` while it is under way.
    pub returned: Option<Time>,
    /// The record that was written.
    pub value: Value,
    /// Which change of ZooKeeper it was; `None` where that is not told.
    pub mzxid: Option<i64>,
}

/// All writes to one table, one after the other.
#[derive(Clone, Debug)]
pub struct History {
    versions: Vec<Version>,
}

impl History {
    /// The history of a table that does not exist. That is its version 0.
    pub fn new() -> Self {
        let never = Version {
            sent: Time::ZERO,
            returned: Some(Time::ZERO),
            value: Value::Absent,
            mzxid: None,
        };
        History { versions: vec![never] }
    }

    /// A write is about to be sent.
    pub fn sent(&mut self, value: Value, now: Time) {
        assert!(self.last().returned.is_some(), "one write of a table at a time");
        self.versions.push(Version { sent: now, returned: None, value, mzxid: None });
    }

    /// Its answer came.
    pub fn returned(&mut self, mzxid: Option<i64>, now: Time) {
        let last = self.versions.last_mut().expect("there is a version 0");
        (last.returned, last.mzxid) = (Some(now), mzxid);
    }

    /// The version written last.
    pub fn last(&self) -> &Version {
        self.versions.last().expect("there is a version 0")
    }

    /// All versions; an index into them is what is called a version's number.
    pub fn versions(&self) -> &[Version] {
        &self.versions
    }

    /// Numbers of the versions that may have been current at some moment of this time.
    pub fn current_in(&self, from: Time, to: Time) -> Range<usize> {
        let end = self.versions.partition_point(|version| version.sent <= to).max(1);
        // The last one that was there for certain before the time began, and those after it.
        let settled = |version: &Version| version.returned.is_some_and(|at| at < from);
        let start = self.versions[..end].partition_point(settled).saturating_sub(1);
        start..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Time {
        Time::from_millis(ms)
    }

    #[test]
    fn a_version_is_current_from_its_sending_to_the_answer_of_the_next() {
        let mut history = History::new();
        for (sent, returned) in [(100, 110), (200, 210)] {
            history.sent(Value::Cluster(0), ms(sent));
            history.returned(Some(1), ms(returned));
        }
        history.sent(Value::Junk, ms(300));
        for (why, from, to, want) in [
            ("before all", 0, 50, 0..1),
            ("while the first is written", 105, 107, 0..2),
            ("as the first is answered", 110, 110, 0..2),
            ("just after", 111, 150, 1..2),
            ("across the second", 150, 250, 1..3),
            ("the third is under way", 250, 400, 2..4),
            ("and stays so", 900, 999, 2..4),
        ] {
            assert_eq!(history.current_in(ms(from), ms(to)), want, "{why}");
        }
    }
}
