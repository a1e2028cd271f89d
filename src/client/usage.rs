//! Which client uses which table: by client address and table, the last time and the number of queries. The list is
//! bounded; the pair with the oldest query is forgotten first.
//!
//! A connection keeps a pointer to the pair that it used last, so a client that always queries one table costs no
//! lookup.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Number of pairs to remember: at some 150 bytes each, 10 MB.
const MAX_USES: usize = 65_536;

/// One client's use of one table.
#[derive(Debug)]
pub struct Use {
    /// The client's address, without its port.
    pub client: IpAddr,
    /// The table.
    pub table: Box<str>,
    queries: AtomicU64,
    last_ms: AtomicU64,
}

/// A copy of one pair for the pages.
#[derive(Clone, Debug)]
pub struct Seen {
    pub what: Arc<Use>,
    /// Number of answers from MetaServers.
    pub queries: u64,
    /// Time since the last answer.
    pub last: Duration,
}

pub struct Usage {
    start: Instant,
    uses: Mutex<Uses>,
    max: usize,
}

#[derive(Default)]
struct Uses {
    by_client: HashMap<IpAddr, HashMap<Box<str>, Arc<Use>>>,
    count: usize,
}

impl Default for Usage {
    fn default() -> Self {
        Usage { start: Instant::now(), uses: Mutex::default(), max: MAX_USES }
    }
}

impl Usage {
    /// Records that `client` has used `table`. `last` is the pointer that the connection keeps.
    pub fn add(&self, last: &Mutex<Option<Arc<Use>>>, client: IpAddr, table: &str, now: Instant) {
        let mut last = last.lock();
        let used = match &*last {
            Some(used) if *used.table == *table => used,
            _ => last.insert(self.find(client, table)),
        };
        used.queries.fetch_add(1, Relaxed);
        used.last_ms.store(self.ms(now), Relaxed);
    }

    fn ms(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_millis() as u64
    }

    fn find(&self, client: IpAddr, table: &str) -> Arc<Use> {
        let mut uses = self.uses.lock();
        if let Some(used) = uses.by_client.get(&client).and_then(|tables| tables.get(table)) {
            return used.clone();
        }
        if uses.count >= self.max {
            uses.forget_oldest(self.max / 16 + 1);
        }
        let (queries, last_ms) = (AtomicU64::new(0), AtomicU64::new(self.ms(Instant::now())));
        let used = Arc::new(Use { client, table: table.into(), queries, last_ms });
        uses.by_client.entry(client).or_default().insert(table.into(), used.clone());
        uses.count += 1;
        used
    }

    /// All pairs, the latest first.
    pub fn list(&self) -> Vec<Seen> {
        let now_ms = self.ms(Instant::now());
        let uses = self.uses.lock();
        let all: Vec<Arc<Use>> =
            uses.by_client.values().flat_map(HashMap::values).cloned().collect();
        drop(uses);
        let see = |what: Arc<Use>| Seen {
            queries: what.queries.load(Relaxed),
            last: Duration::from_millis(now_ms.saturating_sub(what.last_ms.load(Relaxed))),
            what,
        };
        let mut seen: Vec<Seen> = all.into_iter().map(see).collect();
        seen.sort_unstable_by_key(|seen| seen.last);
        seen
    }
}

impl Uses {
    fn forget_oldest(&mut self, n: usize) {
        let last_ms = |used: &Arc<Use>| used.last_ms.load(Relaxed);
        let mut times: Vec<u64> =
            self.by_client.values().flat_map(HashMap::values).map(last_ms).collect();
        let at = n.min(times.len()) - 1;
        let (_, limit_ms, _) = times.select_nth_unstable(at);
        let limit_ms = *limit_ms;
        for tables in self.by_client.values_mut() {
            tables.retain(|_, used| last_ms(used) > limit_ms);
        }
        self.by_client.retain(|_, tables| !tables.is_empty());
        self.count = self.by_client.values().map(HashMap::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn uses_are_counted_by_client_and_table_and_the_oldest_forgotten() {
        let usage = Usage { max: 4, ..Usage::default() };
        let clients: Vec<IpAddr> = (0..4).map(|n| Ipv4Addr::new(10, 0, 0, n).into()).collect();
        let at = |ms| usage.start + Duration::from_millis(ms);
        let connection = Mutex::default();
        for (ms, table) in [(1, "orders"), (2, "orders"), (3, "users"), (4, "orders")] {
            usage.add(&connection, clients[0], table, at(ms));
        }
        let counts = || {
            let list = usage.list();
            let mut counts: Vec<_> = list
                .iter()
                .map(|seen| (seen.what.client, &*seen.what.table, seen.queries))
                .collect();
            counts.sort();
            counts.iter().map(|(c, t, n)| (*c, (*t).to_owned(), *n)).collect::<Vec<_>>()
        };
        assert_eq!(
            counts(),
            [(clients[0], "orders".to_owned(), 3), (clients[0], "users".to_owned(), 1)]
        );
        for (client, ms) in clients[1..].iter().zip(10..) {
            usage.add(&Mutex::default(), *client, "orders", at(ms));
        }
        let left: Vec<_> = counts().into_iter().map(|(client, table, _)| (client, table)).collect();
        assert!(left.contains(&(clients[3], "orders".to_owned())), "{left:?}");
        assert!(!left.contains(&(clients[0], "users".to_owned())), "{left:?}");
        assert!(left.len() <= 4);
    }
}
