//! Takes over new settings that can change while the proxy runs, and lists those that wait for its next start. Pure.

use crate::config::{Change, ClientLimits, Reload, Settings, ZooKeeperSettings};

/// The differences between two settings.
#[derive(Debug, Default)]
pub struct Changes {
    /// Changes that take effect at once.
    pub live: Vec<Change>,
    /// Changes that take effect after a restart.
    pub later: Vec<Change>,
}

/// Copies the settings that can change at once from `new` to `running`.
pub fn take_over(running: &mut Settings, new: Settings) -> Changes {
    let changes = running.values.changes(&new.values).into_iter();
    let (live, later) = changes.partition(|change| change.reload == Reload::Live);
    let changes = Changes { live, later };
    changes.live.iter().for_each(|change| running.values.take(&change.key, &new.values));
    running.query_timeout = new.query_timeout;
    running.accept = new.accept;
    let max_pending_total = running.client.max_pending_total;
    running.client = ClientLimits { max_pending_total, ..new.client };
    if let (Some(running), Some(new)) = (&mut running.zookeeper, new.zookeeper) {
        let state_file = running.state_file.take();
        *running = ZooKeeperSettings { state_file, ..new };
    }
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
    fn a_setting_takes_effect_at_once_or_after_a_restart_and_is_named_until_then() {
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

    /// In each section, a change that takes effect at once is in the settings, too.
    #[test]
    fn a_setting_reported_as_live_is_in_the_settings() {
        let root = "zookeeper: {root: /r, address: ['h:1']}\n";
        let new = "query_timeout_ms: 700\n\
            zookeeper: {root: /s, address: ['h:2'], timeout: 777, digest: 'u:p', preload: true, \
            table_watcher_cache_capacity: 7, clusters_root: /c, control_root: /d, control_digest: 'u:q', \
            hold: false}\n\
            limits: {max_connections: 7, max_connections_per_address: 7, keepalive_s: 7, \
            max_frame_bytes: 777, max_pending_per_client: 7, max_unread_bytes: 7777, \
            max_unread_total_bytes: 7777777, frame_timeout_ms: 777, unread_timeout_ms: 777}\n\
            log: {level: warn, format: json, max_file_mb: 7, max_file_age_days: 8, max_files: 7, \
            access_sample: 7}\n\
            stop: {delay: 7, min_age: 7, grace: 777}\n";
        let mut running = settings(root);
        let changes = take_over(&mut running, settings(new));
        let told: Vec<&str> = changes.live.iter().map(|change| change.key.as_str()).collect();
        let defaults = settings(root).values;
        let live = defaults.iter().filter(|(_, setting)| setting.reload == Reload::Live);
        let live: Vec<&str> = live.map(|(key, _)| key).collect();
        assert_eq!(told, live, "every live setting is changed here");
        assert!(changes.later.is_empty(), "{:?}", changes.later);
        assert_eq!(format!("{running:?}"), format!("{:?}", settings(new)));
    }
}
