//! Whether a server knows what this proxy has seen of ZooKeeper before. Pure.
//!
//! ```text
//! dial ──▶ zxid of the server ─▶ older than the newest that was seen? it is passed over
//! reads ─▶ zxid of a znode ────▶ older than this znode was?           its client is given up
//!                                    └── nothing newer for LAG_LIMIT: ZooKeeper was set up anew
//! ```
//! While we stay with one server its data only gets newer, so it is when a server is chosen that routes could go
//! back: with local sessions a follower answers at once that has yet to learn what others have told us.

use crate::mutant;
use std::time::{Duration, Instant};

/// When all servers in reach lag for so long they do not lag: ZooKeeper was set up anew, and its zxids began again.
pub const LAG_LIMIT: Duration = Duration::from_secs(30);

/// Whether data of `zxid` is older than what is known.
pub fn is_older(zxid: i64, known: i64) -> bool {
    zxid < known && !mutant::is("believes-servers-that-lag")
}

/// For how long only servers that lag have been in reach. Starts with none.
#[derive(Default)]
pub struct Lag {
    since: Option<Instant>,
}

impl Lag {
    /// A server lags. True: for so long that it does not.
    pub fn seen(&mut self, now: Instant) -> bool {
        let is_over = now >= *self.since.get_or_insert(now) + LAG_LIMIT;
        if is_over {
            self.since = None;
        }
        is_over
    }

    /// A server does not lag, or none can be reached.
    pub fn ended(&mut self) {
        self.since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lag_without_end_is_none() {
        let (start, mut lag) = (Instant::now(), Lag::default());
        assert!(!lag.seen(start));
        assert!(!lag.seen(start + LAG_LIMIT / 2));
        lag.ended();
        assert!(!lag.seen(start + LAG_LIMIT), "it begins again");
        assert!(lag.seen(start + 2 * LAG_LIMIT));
    }
}
