//! The root as it was seen: whether its names are to be read, and whether a server without the right one is left. Pure.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// This many servers without the right root are left at once: one address may lead to another team's ZooKeeper.
const LEFT_AT_ONCE: u32 = 3;
/// The next ones are kept for longer each time, at most for this.
const MAX_STAY: Duration = Duration::from_secs(30);

/// Starts with nothing seen.
#[derive(Default)]
pub struct RootSeen {
    /// The current connection's server, and since when there is that.
    pub server: Option<(SocketAddr, Instant)>,
    /// Servers left in a row because they have not the right root.
    pub left: u32,
    /// When the names were asked for: the root's czxid and pzxid, or that it is missing. `None`: it was not looked at.
    pub names_of: Option<Option<(i64, i64)>>,
    /// The names are to be read, be it later.
    pub are_names_due: bool,
    /// The names could not be read.
    pub are_names_hidden: bool,
}

impl RootSeen {
    /// A look at the root, `None`: it is missing. True: the names are to be read.
    pub fn look(&mut self, root: Option<(i64, i64)>) -> bool {
        // Their own watch only says that the root is to be read, and is not trusted even so far: ZooKeeper drops it
        // without a word when a table comes or goes while an ACL hides them.
        let is_news = self.names_of != Some(root) || (root.is_some() && self.are_names_hidden);
        if is_news {
            (self.names_of, self.are_names_due) = (Some(root), true);
        }
        is_news
    }

    /// The server has not the right root. True: it is left, for another may have it.
    pub fn is_left(&mut self, now: Instant) -> bool {
        let since = self.server.map_or(now, |(_, since)| since);
        let stay = match self.left.checked_sub(LEFT_AT_ONCE) {
            None => Duration::ZERO,
            Some(more) => MAX_STAY.min(Duration::from_secs(1 << more.min(6))),
        };
        let is_left = now.saturating_duration_since(since) >= stay;
        self.left = self.left.saturating_add(is_left.into());
        is_left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_the_right_root_is_left_at_once_and_later_after_a_while() {
        let (mut seen, mut now) = (RootSeen::default(), Instant::now());
        for (turn, stay_s) in [0, 0, 0, 1, 2, 4, 8, 16, 30, 30].into_iter().enumerate() {
            seen.server = Some(("127.0.0.1:2181".parse().unwrap(), now));
            if stay_s > 0 {
                now += Duration::from_millis(stay_s * 1000 - 1);
                assert!(!seen.is_left(now), "{turn}: it is kept for {stay_s} s");
                now += Duration::from_millis(1);
            }
            assert!(seen.is_left(now), "{turn}");
        }
    }
}
