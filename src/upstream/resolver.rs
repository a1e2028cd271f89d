//! Host names to addresses, without a thread of the main job ever waiting for a name server.
//!
//! ```text
//! worker, zk-link ──▶ cache ──miss or old──▶ names ──▶ resolve-N (getaddrinfo, which has no deadline)
//!        ◀── all addresses ──┘ ◀──────────────────────────┘
//! ```
//! An old result serves while a new one is fetched, and when none can be had: a name server's trouble
//! is not ours.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use log::{info, warn};
use parking_lot::{Condvar, Mutex};

use crate::activity;
use crate::logging::Throttle;
use crate::patience::{Patience, SLICE};

/// Age at which a result is fetched anew: what a MetaServer's move costs at most.
const FRESH: Duration = Duration::from_secs(10);
/// The same for a failure.
const FRESH_FAILURE: Duration = Duration::from_secs(1);
/// How often it is told that a name is still not resolved.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Names nobody asked for in this time are forgotten.
const FORGET: Duration = Duration::from_secs(600);
/// Names remembered: more than all clusters have. MetaServers can name leaders as they like.
const MAX_NAMES: usize = 65_536;
/// Lookups at once. More than one, so that a name whose server is mute does not stop the others.
const THREADS: usize = 4;

struct Entry {
    addrs: Vec<SocketAddr>,
    /// When `addrs`, or the failure to get them, came.
    fetched_at: Option<Instant>,
    used_at: Instant,
    under_way: bool,
    trouble: Trouble,
}

/// What the log tells of a lookup.
enum Tells {
    /// Other addresses than before, or some again after a failure.
    Found(Vec<SocketAddr>),
    /// Why there are none, and the last that were known.
    Failed(String, Vec<SocketAddr>),
}

impl Entry {
    /// A lookup ended.
    fn fetched(&mut self, found: io::Result<Vec<SocketAddr>>, now: Instant) -> Option<Tells> {
        self.under_way = false;
        self.fetched_at = Some(now);
        match found {
            Ok(addrs) if !addrs.is_empty() => {
                let is_news = self.trouble.ended() || addrs != self.addrs;
                self.addrs = addrs;
                is_news.then(|| Tells::Found(self.addrs.clone()))
            }
            failed => {
                let why = failed.err().map_or("no addresses".to_owned(), |e| e.to_string());
                self.trouble.failed(now).then(|| Tells::Failed(why, self.addrs.clone()))
            }
        }
    }
}

/// Whether a name's failures are told of: the first at once, then one now and then.
#[derive(Default)]
struct Trouble {
    /// When one was told; `None`: the last lookup was good.
    told_at: Option<Instant>,
}

impl Trouble {
    /// A lookup failed. True: tell of it.
    fn failed(&mut self, now: Instant) -> bool {
        let is_due = self.told_at.is_none_or(|at| now >= at + TELL_EVERY);
        if is_due {
            self.told_at = Some(now);
        }
        is_due
    }

    /// A lookup was good. True: the one before was not.
    fn ended(&mut self) -> bool {
        self.told_at.take().is_some()
    }
}

#[derive(Default)]
struct Shared {
    cache: Mutex<HashMap<String, Entry>>,
    changed: Condvar,
}

/// The cache and its threads. They end when it is dropped.
pub struct Resolver {
    shared: Arc<Shared>,
    names: Sender<String>,
}

impl Resolver {
    /// Starts the threads.
    pub fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        // A name is under way once; more than so many at a time wait for their next query.
        let (names, inbox) = bounded(1024);
        for index in 0..THREADS {
            let (shared, inbox) = (shared.clone(), inbox.clone());
            thread::Builder::new()
                .name(format!("resolve-{index}"))
                .spawn(move || look_up_all(&shared, &inbox))?;
        }
        Ok(Resolver { shared, names })
    }

    /// All addresses of `host:port`; none if there is none, or patience ended.
    pub fn resolve(&self, host_port: &str, patience: &mut Patience<'_>) -> Vec<SocketAddr> {
        loop {
            if let Some(addrs) = self.known(host_port) {
                return addrs;
            }
            // Before the wait, for it may take a while, and without the lock.
            if !patience() {
                return Vec::new();
            }
            let mut cache = self.shared.cache.lock();
            if self.look(&mut cache, host_port).is_none() {
                self.shared.changed.wait_for(&mut cache, SLICE);
            }
        }
    }

    /// The same without waiting; `None` while it is looked up for the first time.
    pub fn known(&self, host_port: &str) -> Option<Vec<SocketAddr>> {
        if let Ok(addr) = host_port.parse() {
            return Some(vec![addr]);
        }
        self.look(&mut self.shared.cache.lock(), host_port)
    }

    /// Looks into the cache, and has a lookup made if it is time.
    fn look(&self, cache: &mut HashMap<String, Entry>, host_port: &str) -> Option<Vec<SocketAddr>> {
        if cache.len() >= MAX_NAMES && !cache.contains_key(host_port) {
            return Some(Vec::new());
        }
        let now = Instant::now();
        let entry = cache.entry(host_port.to_owned()).or_insert(Entry {
            addrs: Vec::new(),
            fetched_at: None,
            used_at: now,
            under_way: false,
            trouble: Trouble::default(),
        });
        entry.used_at = now;
        let fresh = if entry.addrs.is_empty() { FRESH_FAILURE } else { FRESH };
        let is_fresh = entry.fetched_at.is_some_and(|at| now < at + fresh);
        if !is_fresh && !entry.under_way {
            entry.under_way = self.names.try_send(host_port.to_owned()).is_ok();
        }
        (is_fresh || !entry.addrs.is_empty()).then(|| entry.addrs.clone())
    }
}

fn look_up_all(shared: &Shared, inbox: &Receiver<String>) {
    static FAILED: Throttle = Throttle::new();
    for name in inbox {
        activity::now("looks up a host", &[&name]);
        let found = name.to_socket_addrs().map(|addrs| {
            let mut addrs: Vec<SocketAddr> = addrs.collect();
            addrs.sort_unstable();
            addrs.dedup();
            addrs
        });
        activity::now("waits for a host to look up", &[]);
        let now = Instant::now();
        let mut cache = shared.cache.lock();
        cache.retain(|_, entry| now < entry.used_at + FORGET);
        let tells = cache.get_mut(&name).and_then(|entry| entry.fetched(found, now));
        drop(cache);
        match tells {
            Some(Tells::Found(addrs)) => info!("host={name} addrs={addrs:?}"),
            Some(Tells::Failed(why, last_known)) => {
                if let Some(hidden) = FAILED.pass() {
                    warn!("host={name} last_known={last_known:?}: not resolved: {why}{hidden}");
                }
            }
            None => {}
        }
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_addresses_and_nonsense() {
        let resolver = Resolver::start().unwrap();
        let ip: SocketAddr = "127.0.0.1:7".parse().unwrap();
        assert_eq!(resolver.resolve("127.0.0.1:7", &mut || false), [ip]);
        assert!(resolver.resolve("localhost:7", &mut || true).contains(&ip));
        assert!(resolver.resolve("localhost:7", &mut || false).contains(&ip), "cached");
        let mut slices = 0;
        let none = resolver.resolve("no-such-host.invalid:7", &mut || {
            slices += 1;
            slices < 200
        });
        assert!(none.is_empty());
    }

    #[test]
    fn who_only_looks_does_not_wait_and_who_waits_has_patience_first() {
        let resolver = Resolver::start().unwrap();
        assert_eq!(resolver.known("localhost:7"), None, "it is being looked up");
        let is_asked_before_it_waits = std::cell::Cell::new(false);
        resolver.resolve("no-such-host.invalid:7", &mut || {
            is_asked_before_it_waits.set(true);
            // This would wait for ever if the cache were locked meanwhile.
            resolver.known("10.0.0.1:7");
            resolver.known("localhost:7");
            false
        });
        assert!(is_asked_before_it_waits.get());
    }

    #[test]
    fn names_are_remembered_up_to_a_number() {
        let resolver = Resolver::start().unwrap();
        let now = Instant::now();
        let entry = || Entry {
            addrs: Vec::new(),
            fetched_at: Some(now),
            used_at: now,
            under_way: false,
            trouble: Trouble::default(),
        };
        let names = (0..MAX_NAMES).map(|n| (format!("h{n}:1"), entry()));
        resolver.shared.cache.lock().extend(names);
        assert_eq!(resolver.known("one-more.invalid:1"), Some(Vec::new()));
        assert_eq!(resolver.shared.cache.lock().len(), MAX_NAMES);
    }

    #[test]
    fn a_failure_is_told_once_then_now_and_then_and_so_is_its_end() {
        let (start, mut trouble) = (Instant::now(), Trouble::default());
        let mut failed = |secs| trouble.failed(start + Duration::from_secs(secs));
        let told: Vec<u64> = (0..25).filter(|secs| failed(*secs)).collect();
        assert_eq!(told, [0, 10, 20]);
        assert!(trouble.ended());
        assert!(!trouble.ended(), "nothing was wrong");
        assert!(trouble.failed(start), "that is news again");
    }
}
