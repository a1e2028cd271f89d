//! Resolves host names without making a worker, `meta-watch` or `zk-link` wait for a name server.
//!
//! ```text
//! worker, meta-watch, zk-link ─▶ cache ──miss or old─▶ waiting names ──▶ resolve-NN (getaddrinfo, which has no deadline)
//!        ◀── all addresses ────────┘ ◀───────────────────────┘
//! ```
//! The resolver returns an old result while it fetches a new one, and keeps it if the look-up fails: trouble with a
//! name server does not affect queries.
//!
//! A look-up in a zone whose name server is silent occupies its thread for many seconds. So names that never failed
//! come first. Names that failed wait longer each time and get at most half of the threads; the names of one zone get a
//! quarter. The names of other zones always find a thread. Threads start when they are needed, up to a limit.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};
use parking_lot::{Condvar, Mutex};

use crate::activity;
use crate::logging::Throttle;

/// Age at which a result is fetched again: the proxy notices within this time that a MetaServer has moved.
const FRESH: Duration = Duration::from_secs(10);
/// Pause after the first failure, doubled with each failure up to [`MAX_FAILURE_PAUSE`].
const FIRST_FAILURE_PAUSE: Duration = Duration::from_secs(1);
/// See [`FIRST_FAILURE_PAUSE`].
const MAX_FAILURE_PAUSE: Duration = Duration::from_secs(30);
/// How often to log that a name is still not resolved.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Forget names that were not used for this long.
const FORGET: Duration = Duration::from_secs(600);
/// Names to remember: more than all clusters have. The limit is needed because MetaServers can name any leader.
const MAX_NAMES: usize = 65_536;
const MAX_THREADS: usize = 32;
/// Look-ups of names that failed before, at once.
const MAX_FAILING: usize = MAX_THREADS / 2;
/// Look-ups of one zone at once.
const MAX_OF_ZONE: usize = MAX_THREADS / 4;
/// A thread without work ends after this time.
const IDLE: Duration = Duration::from_secs(60);

/// Looks a name up; may block as long as the name server is silent.
type LookUp = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;

struct Entry {
    addrs: Vec<SocketAddr>,
    /// When the last look-up ended, with `addrs` or a failure.
    fetched_at: Option<Instant>,
    used_at: Instant,
    /// A look-up is queued or under way.
    under_way: bool,
    /// Failed look-ups since the last good one.
    failures: u32,
    trouble: Trouble,
}

/// The log line about a look-up.
enum Tells {
    /// The addresses changed, or are known again after a failure.
    Addresses(Vec<SocketAddr>),
    /// The look-up failed: the reason, and the last known addresses.
    Failed(String, Vec<SocketAddr>),
}

impl Entry {
    fn new(now: Instant) -> Self {
        Entry {
            addrs: Vec::new(),
            fetched_at: None,
            used_at: now,
            under_way: false,
            failures: 0,
            trouble: Trouble::default(),
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        let pause = match self.failures {
            0 => FRESH,
            n => MAX_FAILURE_PAUSE.min(FIRST_FAILURE_PAUSE * 2u32.pow((n - 1).min(8))),
        };
        !self.under_way && self.fetched_at.is_none_or(|at| now >= at + pause)
    }

    /// Records the end of a look-up. Returns what to log.
    fn fetched(&mut self, found: io::Result<Vec<SocketAddr>>, now: Instant) -> Option<Tells> {
        self.under_way = false;
        self.fetched_at = Some(now);
        match found {
            Ok(addrs) if !addrs.is_empty() => {
                let is_news = self.trouble.ended() || addrs != self.addrs;
                (self.addrs, self.failures) = (addrs, 0);
                is_news.then(|| Tells::Addresses(self.addrs.clone()))
            }
            failed => {
                self.failures = self.failures.saturating_add(1);
                let why = failed.err().map_or("no addresses".to_owned(), |e| e.to_string());
                self.trouble.failed(now).then(|| Tells::Failed(why, self.addrs.clone()))
            }
        }
    }
}

/// Decides which failures of a name to log: the first at once, then one every [`TELL_EVERY`].
#[derive(Default)]
struct Trouble {
    /// When a failure was last logged; `None`: the last look-up was good.
    told_at: Option<Instant>,
}

impl Trouble {
    /// Records a failed look-up. True: log it.
    fn failed(&mut self, now: Instant) -> bool {
        let is_due = self.told_at.is_none_or(|at| now >= at + TELL_EVERY);
        if is_due {
            self.told_at = Some(now);
        }
        is_due
    }

    /// Records a good look-up. True: the one before failed.
    fn ended(&mut self) -> bool {
        self.told_at.take().is_some()
    }
}

#[derive(Default)]
struct State {
    cache: HashMap<String, Entry>,
    /// Names to look up whose last look-up did not fail; each once.
    good: VecDeque<String>,
    /// Names to look up whose last look-up failed.
    failing: VecDeque<String>,
    /// Look-ups under way, by zone.
    by_zone: HashMap<String, usize>,
    failing_under_way: usize,
    threads: usize,
    idle: usize,
    is_stopping: bool,
}

/// A look-up for a thread.
struct Task {
    name: String,
    zone: String,
    is_failing: bool,
}

impl State {
    /// The next name that may have a thread, by the limits for zones and failing names.
    fn next(&mut self) -> Option<Task> {
        let has_room = |by_zone: &HashMap<String, usize>, name: &str| {
            by_zone.get(zone(name)).is_none_or(|count| *count < MAX_OF_ZONE)
        };
        let place = self.good.iter().position(|name| has_room(&self.by_zone, name));
        let (name, is_failing) = match place {
            Some(place) => (self.good.remove(place)?, false),
            None if self.failing_under_way < MAX_FAILING => {
                let place = self.failing.iter().position(|name| has_room(&self.by_zone, name))?;
                (self.failing.remove(place)?, true)
            }
            None => return None,
        };
        let zone = zone(&name).to_owned();
        *self.by_zone.entry(zone.clone()).or_default() += 1;
        self.failing_under_way += usize::from(is_failing);
        Some(Task { name, zone, is_failing })
    }

    fn ended(&mut self, task: &Task) {
        self.failing_under_way -= usize::from(task.is_failing);
        if let Some(count) = self.by_zone.get_mut(&task.zone) {
            *count -= 1;
            if *count == 0 {
                self.by_zone.remove(&task.zone);
            }
        }
    }
}

/// The zone of a name: all labels after the first. Names of one zone probably have the same name server.
fn zone(host_port: &str) -> &str {
    let host = host_port.rsplit_once(':').map_or(host_port, |(host, _)| host);
    host.split_once('.').map_or("", |(_, zone)| zone)
}

struct Shared {
    state: Mutex<State>,
    /// Signals a result.
    changed: Condvar,
    /// Signals a name to look up, or the end.
    wanted: Condvar,
    look_up: Box<LookUp>,
}

/// The cache and its threads, which end when it is dropped.
pub struct Resolver {
    shared: Arc<Shared>,
}

impl Resolver {
    /// Resolves by getaddrinfo.
    pub fn start() -> Self {
        Self::with(Box::new(|name| Ok(name.to_socket_addrs()?.collect())))
    }

    /// Resolves by `look_up`, which may block.
    pub fn with(look_up: Box<LookUp>) -> Self {
        let (changed, wanted) = (Condvar::new(), Condvar::new());
        let shared = Shared { state: Mutex::default(), changed, wanted, look_up };
        Resolver { shared: Arc::new(shared) }
    }

    /// All addresses of `host:port`; empty if it has none, or the look-up did not end by `end`. Blocks.
    pub fn resolve(&self, host_port: &str, end: Instant) -> Vec<SocketAddr> {
        loop {
            if let Some(addrs) = self.known(host_port) {
                return addrs;
            }
            let mut state = self.shared.state.lock();
            if state.cache.get(host_port).is_some_and(|entry| entry.under_way)
                && self.shared.changed.wait_until(&mut state, end).timed_out()
            {
                return Vec::new();
            }
        }
    }

    /// The known addresses of `host:port`, without waiting; `None` while the first look-up is under way.
    pub fn known(&self, host_port: &str) -> Option<Vec<SocketAddr>> {
        if let Ok(addr) = host_port.parse() {
            return Some(vec![addr]);
        }
        let mut state = self.shared.state.lock();
        if state.cache.len() >= MAX_NAMES && !state.cache.contains_key(host_port) {
            return Some(Vec::new());
        }
        let now = Instant::now();
        let entry = state.cache.entry(host_port.to_owned()).or_insert_with(|| Entry::new(now));
        entry.used_at = now;
        let known = entry.fetched_at.is_some().then(|| entry.addrs.clone());
        if entry.is_due(now) {
            entry.under_way = true;
            let is_failing = entry.failures > 0;
            let names = if is_failing { &mut state.failing } else { &mut state.good };
            names.push_back(host_port.to_owned());
            self.want_thread(&mut state);
        }
        known
    }

    fn want_thread(&self, state: &mut State) {
        if state.idle > 0 || state.threads == MAX_THREADS {
            self.shared.wanted.notify_one();
            return;
        }
        let (shared, name) = (self.shared.clone(), format!("resolve-{:02}", state.threads));
        match thread::Builder::new().name(name).spawn(move || look_up_all(&shared)) {
            Ok(_) => state.threads += 1,
            // The existing threads make the look-up later.
            Err(e) => warn!("cannot start another thread for name look-ups: {e}"),
        }
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.shared.state.lock().is_stopping = true;
        self.shared.wanted.notify_all();
    }
}

fn look_up_all(shared: &Shared) {
    let mut state = shared.state.lock();
    while !state.is_stopping {
        let Some(task) = state.next() else {
            state.idle += 1;
            let waited = shared.wanted.wait_for(&mut state, IDLE);
            state.idle -= 1;
            if waited.timed_out() && state.good.is_empty() && state.failing.is_empty() {
                break;
            }
            continue;
        };
        drop(state);
        activity::now("looks up a host", &[&task.name]);
        let found = (shared.look_up)(&task.name).map(|mut addrs| {
            addrs.sort_unstable();
            addrs.dedup();
            addrs
        });
        activity::now("waits for a host to look up", &[]);
        let now = Instant::now();
        state = shared.state.lock();
        state.ended(&task);
        state.cache.retain(|_, entry| now < entry.used_at + FORGET || entry.under_way);
        let tells = state.cache.get_mut(&task.name).and_then(|entry| entry.fetched(found, now));
        drop(state);
        tell(&task.name, tells);
        shared.changed.notify_all();
        // The end of this look-up may make room for names of its zone, or for failing names.
        shared.wanted.notify_one();
        state = shared.state.lock();
    }
    state.threads -= 1;
}

fn tell(name: &str, tells: Option<Tells>) {
    static FAILED: Throttle = Throttle::new();
    match tells {
        Some(Tells::Addresses(addrs)) => info!("host={name} addrs={addrs:?}: resolved"),
        Some(Tells::Failed(why, last_known)) => {
            if let Some(hidden) = FAILED.pass() {
                warn!("host={name} last_known={last_known:?}: not resolved: {why}{hidden}");
            }
        }
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{Sender, bounded, unbounded};

    const SOON: Duration = Duration::from_secs(10);

    fn soon() -> Instant {
        Instant::now() + SOON
    }

    #[test]
    fn names_addresses_and_nonsense() {
        let resolver = Resolver::start();
        let ip: SocketAddr = "127.0.0.1:7".parse().unwrap();
        assert_eq!(resolver.resolve("127.0.0.1:7", Instant::now()), [ip]);
        assert!(resolver.resolve("localhost:7", soon()).contains(&ip));
        assert!(resolver.resolve("localhost:7", Instant::now()).contains(&ip), "cached");
        assert!(resolver.resolve("no-such-host.invalid:7", soon()).is_empty());
    }

    /// A resolver whose look-ups of `*.mute` block until the channel closes.
    fn half_mute() -> (Resolver, Sender<()>, crossbeam_channel::Receiver<String>) {
        let (mute, ends) = bounded::<()>(0);
        let (begun, begins) = unbounded();
        let look_up = move |name: &str| {
            begun.send(name.to_owned()).unwrap();
            if name.contains(".mute:") {
                let _ = ends.recv();
                return Err(io::Error::other("mute"));
            }
            Ok(vec!["10.0.0.1:1".parse().unwrap()])
        };
        (Resolver::with(Box::new(look_up)), mute, begins)
    }

    #[test]
    fn a_mute_zone_leaves_the_others_their_threads() {
        let (resolver, mute, begins) = half_mute();
        for n in 0..100 {
            assert_eq!(resolver.known(&format!("meta{n}.mute:1")), None);
        }
        for _ in 0..MAX_OF_ZONE {
            begins.recv_timeout(SOON).unwrap();
        }
        assert_eq!(resolver.resolve("meta.good:1", soon()).len(), 1);
        assert_eq!(begins.recv_timeout(SOON).unwrap(), "meta.good:1");
        assert!(begins.try_recv().is_err(), "no more of the mute zone");
        drop(mute);
    }

    #[test]
    fn failing_names_pause_longer_each_time_and_come_last() {
        let now = Instant::now();
        let after = |ms| now + Duration::from_millis(ms);
        let mut entry = Entry::new(now);
        assert!(entry.is_due(now));
        for (failures, pause_ms) in [(1, 1_000), (2, 2_000), (3, 4_000), (9, 30_000)] {
            while entry.failures < failures {
                entry.fetched(Err(io::Error::other("mute")), now);
            }
            assert!(
                !entry.is_due(after(pause_ms - 1)) && entry.is_due(after(pause_ms)),
                "{failures}"
            );
        }
        let mut state = State::default();
        state.failing.extend((0..100).map(|n| format!("bad{n}.zone{n}:1")));
        state.good.push_back("new.zone0:1".to_owned());
        assert_eq!(state.next().unwrap().name, "new.zone0:1");
        assert_eq!(std::iter::from_fn(|| state.next()).count(), MAX_FAILING);
        state.good.push_back("another.zone9:1".to_owned());
        assert_eq!(state.next().unwrap().name, "another.zone9:1");
    }

    #[test]
    fn names_are_remembered_up_to_a_number() {
        let resolver = Resolver::start();
        let now = Instant::now();
        let entry = || Entry { fetched_at: Some(now), ..Entry::new(now) };
        let names = (0..MAX_NAMES).map(|n| (format!("h{n}:1"), entry()));
        resolver.shared.state.lock().cache.extend(names);
        assert_eq!(resolver.known("one-more.invalid:1"), Some(Vec::new()));
        assert_eq!(resolver.shared.state.lock().cache.len(), MAX_NAMES);
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
