//! Whether a server knows what this proxy has seen of ZooKeeper before. Pure.
//!
//! ```text
//! dial ──▶ zxid of the server ─▶ older than the newest that was seen? it is passed over
//! reads ─▶ zxid of a znode ────▶ older than this znode was?           its client is given up
//!                                    └── nothing newer for LAG_LIMIT: ZooKeeper was set up anew
//! ```
//! While we stay with one server its data only gets newer, so it is when a server is chosen that routes could go
//! back: with local sessions a follower answers at once that has yet to learn what others have told us.

use std::time::{Duration, Instant};

use crate::mutant;

/// When all servers in reach lag for so long they do not lag: ZooKeeper was set up anew, and its zxids began again.
pub const LAG_LIMIT: Duration = Duration::from_secs(30);

/// Why a connection is to be given up.
#[derive(Debug)]
pub struct Doubt {
    /// In words.
    pub why: String,
    /// Its server lags.
    pub lags: bool,
}

/// The changes that were seen, by their zxids. Starts with none.
#[derive(Default)]
pub struct History {
    /// The newest change that was ever seen: a server that does not know of it lags.
    pub newest: i64,
    /// The newest creation or deletion below the root that was ever seen.
    pub newest_of_root: i64,
    /// The newest change that the current connection's server is known to know of.
    pub server: i64,
    /// The current connection has shown the right root: its zxids are those of our ZooKeeper.
    pub is_ours: bool,
    /// `server` when the current connection began to set watches again.
    pub watched_as_of: Option<i64>,
    /// ZooKeeper was set up anew: until all that is cached is confirmed, this has no regard to zxids.
    pub is_anew: bool,
}

impl History {
    /// A new connection, perhaps to another server.
    pub fn connected(&mut self) {
        (self.server, self.is_ours, self.watched_as_of) = (0, false, None);
    }

    /// The server knows of this change.
    pub fn knows(&mut self, zxid: i64) {
        self.server = self.server.max(zxid);
        // Those of another ensemble say nothing of ours.
        if self.is_ours {
            self.newest = self.newest.max(zxid);
        }
    }

    /// The server has shown the right root, or another one. `pzxid`: of the last creation or deletion below it.
    pub fn saw_root(&mut self, is_ours: bool, pzxid: i64) {
        self.is_ours = is_ours;
        if is_ours {
            self.knows(self.server.max(pzxid));
            self.newest_of_root = self.newest_of_root.max(pzxid);
        }
    }

    /// Whether what was read of a znode is as new as what was seen of it before.
    pub fn check(&self, zxid: i64, known: i64, znode: impl Fn() -> String) -> Result<(), Doubt> {
        if self.is_anew || !is_older(zxid, known) {
            return Ok(());
        }
        let why = format!("it lags, znode {} zxid={zxid:#x} is behind {known:#x}", znode());
        Err(Doubt { why, lags: true })
    }

    /// zxids begin again.
    pub fn start_anew(&mut self) {
        (self.newest, self.newest_of_root, self.is_anew) = (0, 0, true);
    }
}

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
    fn zxids_of_another_ensemble_or_of_an_older_one_do_not_count() {
        let mut history = History::default();
        let check = |history: &History, zxid| history.check(zxid, 6, || "/r/t".to_owned());
        history.connected();
        history.knows(1_000);
        assert_eq!((history.server, history.newest), (1_000, 0), "its root was not seen yet");
        history.saw_root(false, 900);
        assert_eq!((history.newest, history.newest_of_root), (0, 0), "it is another one");
        history.connected();
        history.knows(20);
        history.saw_root(true, 7);
        assert_eq!((history.newest, history.newest_of_root), (20, 7));
        let doubt = check(&history, 5).unwrap_err();
        assert_eq!(doubt.why, "it lags, znode /r/t zxid=0x5 is behind 0x6");
        assert!(doubt.lags && check(&history, 6).is_ok());
        history.start_anew();
        assert!(check(&history, 5).is_ok());
        history.is_anew = false;
        assert!(check(&history, 5).is_err());
    }

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
