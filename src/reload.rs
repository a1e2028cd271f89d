//! Which settings can change while the proxy runs, and which wait for its next start. Pure.

use crate::client::connection::ClientLimits;
use crate::config::{Change, Settings};

/// Settings that count at once, limits for who connects from then on.
const LIVE: &[&str] = &[
    "limits.frame_timeout_ms",
    "limits.keepalive_s",
    "limits.max_connections",
    "limits.max_connections_per_address",
    "limits.max_frame_bytes",
    "limits.max_pending_per_client",
    "limits.max_unread_bytes",
    "limits.max_unread_total_bytes",
    "limits.unread_timeout_ms",
    "log.access_sample",
    "log.format",
    "log.level",
    "log.max_file_age_days",
    "log.max_file_mb",
    "log.max_files",
    "query_timeout_ms",
    "stop.delay",
    "stop.grace",
    "stop.min_age",
];

/// What is different in the new settings.
#[derive(Debug, Default)]
pub struct Changes {
    /// What counts at once.
    pub live: Vec<Change>,
    /// What counts after a restart.
    pub later: Vec<Change>,
}

/// Takes what can change from `new`.
pub fn take_over(running: &mut Settings, new: Settings) -> Changes {
    let is_live = |change: &Change| LIVE.contains(&change.key.as_str());
    let (live, later) = running.values.changes(&new.values).into_iter().partition(is_live);
    let changes = Changes { live, later };
    changes.live.iter().for_each(|change| running.values.take(&change.key, &new.values));
    running.query_timeout = new.query_timeout;
    running.accept = new.accept;
    // The queue of queries that wait for ZooKeeper has its size from the start.
    let max_pending_total = running.client.max_pending_total;
    running.client = ClientLimits { max_pending_total, ..new.client };
    running.log = new.log;
    running.stop = new.stop;
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn settings(text: &str) -> Settings {
        parse(text, false).settings.unwrap()
    }

    #[test]
    fn a_setting_counts_at_once_or_after_a_restart_and_is_named_until_then() {
        let mut running = settings("");
        let text = "workers: 8\nquery_timeout_ms: 700\nlimits: {max_pending: 7, keepalive_s: 9}\n";
        for (why, live) in [
            ("first", &["limits.keepalive_s: 60 -> 9", "query_timeout_ms: 1500 -> 700"][..]),
            ("again", &[]),
        ] {
            let changes = take_over(&mut running, settings(text));
            let shown =
                |changes: &[Change]| -> Vec<_> { changes.iter().map(Change::to_string).collect() };
            assert_eq!(shown(&changes.live), live, "{why}");
            assert_eq!(
                shown(&changes.later),
                ["limits.max_pending: 100000 -> 7", "workers: 64 -> 8"],
                "{why}"
            );
        }
        assert_eq!(running.query_timeout.as_millis(), 700);
        assert_eq!(running.accept.keepalive.as_secs(), 9);
        assert_eq!((running.client.max_pending_total, running.workers), (100_000, 64));
    }

    #[test]
    fn every_live_setting_exists() {
        let changes = settings("").values.changes(&Default::default());
        for live in LIVE {
            assert!(changes.iter().any(|change| change.key == *live), "{live}");
        }
    }
}
