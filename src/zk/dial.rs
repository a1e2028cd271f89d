//! Which address of ZooKeeper is tried next, and when. Pure.
//!
//! ```text
//! addresses ─▶ those whose pause is over ─▶ fewest failures first, then by chance ─▶ budget ─▶ try
//!    ▲                                                                                │
//!    └── pause: 100 ms, doubled with each failure, up to 2 s, a fifth more or less ◀── failed
//! ```
//! The budget holds for all addresses together, whatever they do: five connects at once after a calm time, then one a
//! second. An ensemble in trouble must not be attacked by its clients.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::spread::Spread;

/// Connects at once after a calm time.
const BURST: u32 = 5;
/// Time in which one more connect is granted.
const GRANT_EVERY: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// When every address in reach has closed each handshake early for so long, ZooKeeper may have been rebuilt.
pub const EARLY_LIMIT: Duration = Duration::from_secs(30);

/// How a try ended badly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nobody listens there.
    Refused,
    /// It closed the connection where it should have granted a session.
    Early,
    /// Anything else.
    Other,
}

struct Trouble {
    failures: u32,
    last: Failure,
    retry_at: Instant,
}

/// Owned by the connection's thread.
pub struct Dialing {
    troubles: HashMap<SocketAddr, Trouble>,
    /// Connects that may be made now.
    grants: u32,
    /// When the last of them was granted.
    granted_at: Instant,
    early_since: Option<Instant>,
    spread: Spread,
}

impl Dialing {
    /// Nothing has been tried. `seed` spreads proxies that do the same at the same time.
    pub fn new(now: Instant, seed: u64) -> Self {
        Dialing {
            troubles: HashMap::new(),
            grants: BURST,
            granted_at: now,
            early_since: None,
            spread: Spread::new(seed),
        }
    }

    /// When the next try may be made. There is at least one address.
    pub fn ready_at(&self, addrs: &[SocketAddr], now: Instant) -> Instant {
        let retry_at = |addr| self.troubles.get(addr).map_or(now, |trouble| trouble.retry_at);
        let retry_at = addrs.iter().map(retry_at).min().unwrap_or(now);
        let grant_at = if self.grants > 0 { now } else { self.granted_at + GRANT_EVERY };
        retry_at.max(grant_at)
    }

    /// The address to try now, by index; the try is counted. `Err`: when to ask again.
    pub fn next(&mut self, addrs: &[SocketAddr], now: Instant) -> Result<usize, Instant> {
        while self.grants < BURST && self.granted_at + GRANT_EVERY <= now {
            (self.grants, self.granted_at) = (self.grants + 1, self.granted_at + GRANT_EVERY);
        }
        self.troubles.retain(|addr, _| addrs.contains(addr));
        let ready_at = self.ready_at(addrs, now);
        if ready_at > now {
            return Err(ready_at);
        }
        let due = |addr| self.troubles.get(addr).is_none_or(|trouble| trouble.retry_at <= now);
        let due: Vec<usize> = (0..addrs.len()).filter(|index| due(&addrs[*index])).collect();
        let random = self.spread.number();
        // Any order will do that is another one each time.
        let order = |index: &usize| {
            (self.failures(addrs[*index]), random.rotate_left(*index as u32) % 1024)
        };
        let chosen = due.into_iter().min_by_key(order);
        if self.grants == BURST {
            self.granted_at = now;
        }
        self.grants -= 1;
        Ok(chosen.expect("an address is due"))
    }

    /// Tries of this address that failed since it was last well.
    pub fn failures(&self, addr: SocketAddr) -> u32 {
        self.troubles.get(&addr).map_or(0, |trouble| trouble.failures)
    }

    /// A try failed, or a link that had just been made did.
    pub fn failed(&mut self, addr: SocketAddr, failure: Failure, now: Instant) {
        if failure == Failure::Early {
            self.early_since.get_or_insert(now);
        }
        let failures = 1 + self.failures(addr);
        let pause = MAX_PAUSE.min(FIRST_PAUSE * 2u32.pow(failures.min(8) - 1));
        let retry_at = now + self.spread.around(pause);
        self.troubles.insert(addr, Trouble { failures, last: failure, retry_at });
    }

    /// A session was granted.
    pub fn granted(&mut self) {
        self.early_since = None;
    }

    /// A link that had lasted ended: its address is tried again, after the others.
    pub fn lost(&mut self, addr: SocketAddr, now: Instant) {
        self.troubles.clear();
        self.failed(addr, Failure::Other, now);
    }

    /// Whether all that can be reached have closed early for [`EARLY_LIMIT`]. One that is mute may be well behind a bad
    /// network; one that refuses is not there.
    pub fn is_rebuilt(&self, addrs: &[SocketAddr], now: Instant) -> bool {
        let last = |addr: &SocketAddr| self.troubles.get(addr).map(|trouble| trouble.last);
        self.early_since.is_some_and(|since| now >= since + EARLY_LIMIT)
            && addrs.iter().all(|a| matches!(last(a), Some(Failure::Early | Failure::Refused)))
    }

    /// A look at what is there came to nothing new, or to something: the next is due as much later.
    pub fn looked(&mut self, now: Instant) {
        self.early_since = Some(now);
    }

    /// All addresses are as good as new. The budget stays.
    pub fn start_over(&mut self) {
        self.troubles.clear();
        self.early_since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(count: u16) -> Vec<SocketAddr> {
        (1..=count).map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect()
    }

    /// When each connect happens, in ms, if each fails at once.
    fn tries(addrs: &[SocketAddr], failure: Failure, span: Duration) -> Vec<u64> {
        let start = Instant::now();
        let mut dialing = Dialing::new(start, 7);
        let mut now = start;
        let mut tries = Vec::new();
        while now < start + span {
            match dialing.next(addrs, now) {
                Ok(index) => {
                    tries.push((now - start).as_millis() as u64);
                    dialing.failed(addrs[index], failure, now);
                }
                Err(at) => {
                    assert!(at > now, "it waits for a time that has come");
                    now = at;
                }
            }
        }
        tries
    }

    #[test]
    fn five_connects_in_the_first_second_then_one_a_second_whoever_fails() {
        for count in [1, 3, 32] {
            for failure in [Failure::Refused, Failure::Early, Failure::Other] {
                let tries = tries(&addrs(count), failure, Duration::from_secs(60));
                let first = tries.iter().filter(|at| **at < 1000).count();
                assert!(first <= 5, "{count} {failure:?}: {tries:?}");
                assert!(tries.len() <= 65, "{count} {failure:?}: {}", tries.len());
                assert!(tries.len() >= 30, "{count} {failure:?}: {}", tries.len());
                for window in tries.windows(7) {
                    assert!(window[6] - window[0] >= 1000, "{count} {failure:?}: {window:?}");
                }
            }
        }
    }

    #[test]
    fn links_that_are_lost_at_once_are_within_the_budget() {
        let (start, addrs) = (Instant::now(), addrs(3));
        let mut dialing = Dialing::new(start, 7);
        let (mut now, mut tries) = (start, 0);
        while now < start + Duration::from_secs(60) {
            match dialing.next(&addrs, now) {
                Ok(index) => {
                    tries += 1;
                    dialing.granted();
                    dialing.lost(addrs[index], now);
                }
                Err(at) => now = at,
            }
        }
        assert!(tries <= 65, "{tries}");
    }

    #[test]
    fn who_failed_least_is_tried_first() {
        let (now, addrs) = (Instant::now(), addrs(2));
        let mut dialing = Dialing::new(now, 7);
        dialing.failed(addrs[0], Failure::Refused, now);
        assert_eq!(dialing.next(&addrs, now), Ok(1));
        dialing.lost(addrs[1], now);
        assert_eq!(dialing.next(&addrs, now), Ok(0));
        let pause = dialing.next(&addrs[1..], now).unwrap_err() - now;
        assert!(pause < 2 * FIRST_PAUSE, "{pause:?}: a link that had lasted");
    }

    #[test]
    fn rebuilt_is_only_what_closed_early_everywhere_for_long() {
        use Failure::{Early, Other, Refused};
        let (start, addrs) = (Instant::now(), addrs(3));
        let late = start + EARLY_LIMIT;
        for (why, outcomes, want) in [
            ("all close early", [Early, Early, Early], true),
            ("one is not there", [Early, Refused, Early], true),
            ("one is mute", [Early, Early, Other], false),
            ("none is there", [Refused, Refused, Refused], false),
        ] {
            let mut dialing = Dialing::new(start, 7);
            for at in [start, late] {
                for (addr, failure) in addrs.iter().zip(outcomes) {
                    dialing.failed(*addr, failure, at);
                }
            }
            assert!(!dialing.is_rebuilt(&addrs, late - Duration::from_secs(1)), "{why}");
            assert_eq!(dialing.is_rebuilt(&addrs, late), want, "{why}");
            dialing.looked(late);
            assert!(!dialing.is_rebuilt(&addrs, late), "{why}: it has just been looked at");
            dialing.granted();
            assert!(!dialing.is_rebuilt(&addrs, late + EARLY_LIMIT), "{why}: it was well since");
        }
    }
}
