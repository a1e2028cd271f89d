//! The session as the server granted it: it may cut the time-out that was asked for, or stretch it.
//!
//! The crate does not tell, but it logs the server's answer at TRACE. The logger passes the crate's records on
//! to [`hear`], which keeps what the last answer granted, and nothing of the session's password.

use std::fmt::Write as _;
use std::time::Duration;

use log::Record;
use parking_lot::Mutex;

/// Target of the crate's records, and its prefix.
pub const TARGET: &str = "zookeeper";

/// What a server granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its number, as ZooKeeper's own tools show it in hexadecimal.
    pub id: i64,
    /// A session whose client is silent for longer expires.
    pub timeout: Duration,
}

static LAST: Mutex<Option<Session>> = Mutex::new(None);

/// The session that was granted last.
pub fn last() -> Option<Session> {
    *LAST.lock()
}

/// Reads one record of the crate.
pub fn hear(record: &Record<'_>) {
    // Most records are of packets; only this one is worth formatting.
    if record.file().is_some_and(|file| file.ends_with("io.rs")) {
        let mut text = String::new();
        if write!(text, "{}", record.args()).is_ok()
            && let Some(session) = parse(&text)
        {
            *LAST.lock() = Some(session);
        }
    }
}

fn parse(text: &str) -> Option<Session> {
    let fields = text.strip_prefix("Connected: ConnectResponse {")?;
    let number = |name: &str| {
        let (_, rest) = fields.split_once(name)?;
        rest.split([',', ' ', '}']).next()?.parse().ok()
    };
    let timeout_ms = u64::try_from(number("timeout: ")?).ok()?;
    Some(Session { id: number("session_id: ")?, timeout: Duration::from_millis(timeout_ms) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_servers_answer_counts() {
        let text = "Connected: ConnectResponse { protocol_version: 0, timeout: 4000, \
                    session_id: -72057, passwd: [1, 2], read_only: false }";
        let want = Session { id: -72057, timeout: Duration::from_secs(4) };
        assert_eq!(parse(text), Some(want));
        for other in
            ["", "Connected: ", "timeout: 1, session_id: 2", "Connected: ConnectResponse {"]
        {
            assert_eq!(parse(other), None, "{other:?}");
        }
    }
}
