//! One cluster: its MetaServers, who leads, who failed, the links, and the questions that wait.
//!
//! ```text
//! join ─▶ [health: refuse at once?] ─▶ sharing ─▶ a place is free? ─▶ Place: the right to make calls (`upstream::call`)
//!                                         ▲  │
//!    watch, every tick: expired, moved,   │  └─▶ next_call: many questions for one server, with one write on one link
//!    due again, a place to give           └───── no answer: another server, or later
//! ```
//! The lock covers what calls share (questions, health, memory, idle links) and never any I/O. The bounds of a cluster: at
//! most `max_calls` calls under way, as many slow links, as many idle links to a server, and the pending queries.
//!
//! A question that cannot be asked now waits here, not in a thread: whatever a cluster does, it costs a worker no more
//! than the time for which [`Cluster::patience`] lets it block.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use log::{info, warn};
use parking_lot::Mutex;

use super::health::Health;
use super::leader::Memory;
use super::link::{Link, LinkError};
use super::resolver::Resolver;
use super::sharing::{Batch, Sent, Sharing};
use super::slow_start::SlowStart;
use super::stats::{Failures, Stats};
use crate::client::ask::Ask;
use crate::config::UpstreamLimits;
use crate::logging::Throttle;
use crate::metrics::{Metrics, Shed};
use crate::patience::QueryTimeout;
use crate::wire::config_view::Address;
use crate::wire::error_code::OwnError;

/// Questions that one call asks at most. Twice as many are no faster: by then the write is a small part of it.
const MAX_TOGETHER: usize = 64;

/// A link idle for longer is closed: a firewall between may have forgotten it, and then a request on it is lost without
/// a word.
const MAX_IDLE: Duration = Duration::from_secs(10);

/// How long a worker blocks on a call before the call is parked. Hundred clusters that go silent in one instant so
/// cost 64 workers 8 ms.
pub(super) const SLICE: Duration = Duration::from_millis(5);

/// Answers usually come sooner than this: a second call beside the one under way would bring them no sooner.
const NEAR: Duration = Duration::from_millis(1);

/// How often the addresses behind names are looked at.
const RESOLVE_EVERY: Duration = Duration::from_secs(1);
/// How often names are looked at while there is no address yet.
const RESOLVE_AGAIN: Duration = Duration::from_millis(20);

/// Stands for the usual time of answers before the first.
const NEVER_US: u32 = u32::MAX;

/// The routes, as calls need them.
pub trait Routes: Send + Sync {
    /// Grows with each change.
    fn version(&self) -> u64;
    /// Whether the table lives in another cluster than this one now.
    fn has_moved(&self, table: &str, cluster: &Cluster) -> bool;
}

/// The work that calls leave to workers.
pub trait Work: Send + Sync {
    /// Make the calls of this place.
    fn call(&self, place: Place);
    /// Go on with a call that was parked.
    fn resume(&self, parked: Parked);
    /// Look these up again: their route has moved.
    fn ask_again(&self, asks: Vec<Ask>);
    /// Tell these that there is no answer.
    fn refuse(&self, asks: Vec<Ask>, error: OwnError);
}

/// The work that calls leave to the thread that watches over time (`upstream::watch`).
pub trait Watch: Send + Sync {
    /// Listen to this link.
    fn park(&self, parked: Parked);
    /// Queries wait in this cluster.
    fn busy(&self, cluster: &Arc<Cluster>);
    /// A cluster to probe, as long as a route names it.
    fn add(&self, cluster: &Arc<Cluster>);
}

/// The parts that all clusters share.
pub struct Upstream {
    /// Host names to addresses.
    pub resolver: Resolver,
    /// Limits on calls.
    pub limits: UpstreamLimits,
    /// How long queries wait.
    pub query_timeout: Arc<QueryTimeout>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Workers.
    pub work: Arc<dyn Work>,
    /// The routes, which hold the clusters.
    pub routes: Weak<dyn Routes>,
    /// Listens to slow links, watches over time, probes.
    pub watch: Arc<dyn Watch>,
}

/// The right to make calls to a cluster, one at a time; what is done with it stands in `upstream::call`. Dropped, it is
/// given back.
pub struct Place {
    cluster: Arc<Cluster>,
    is_held: bool,
}

impl Place {
    pub(super) fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Gives the place back, under the lock that the caller holds.
    pub(super) fn end(&mut self, core: &mut Core) {
        if mem::take(&mut self.is_held) {
            core.calls.end();
        }
    }

    /// The place, unless it has ended.
    pub(super) fn if_held(self) -> Option<Self> {
        self.is_held.then_some(self)
    }

    /// The call on this link is silent: the place goes on with it, without a worker.
    pub(super) fn park(mut self, link: Link) {
        debug_assert!(self.is_held, "a silent call has its place");
        self.is_held = false;
        let cluster = self.cluster.clone();
        cluster.core.lock().calls.park();
        let watch = cluster.upstream.watch.clone();
        watch.park(Parked { cluster, link, is_slow: false });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_held {
            self.cluster.core.lock().calls.end();
        }
    }
}

/// A call whose worker has left it.
pub struct Parked {
    pub(super) cluster: Arc<Cluster>,
    pub(super) link: Link,
    /// Others are asked, too; it does not count as a call under way.
    pub(super) is_slow: bool,
}

/// The outcome for a query that joins a cluster.
pub enum Joined {
    /// A call under way, or one that will start, answers it.
    Waiting,
    /// The caller makes calls.
    Call(Place),
    /// It is refused, for this reason.
    Refused(Ask, Shed),
}

/// A MetaServer's answer to the last probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probed {
    /// It leads.
    Leader,
    /// It knows another leader, or none.
    Follower,
    /// No usable answer; why, in a word.
    Silent(&'static str),
}

impl Probed {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Probed::Leader => "leader",
            Probed::Follower => "follower",
            Probed::Silent(why) => why,
        }
    }

    /// Whether the MetaServer answers.
    pub fn is_answer(self) -> bool {
        !matches!(self, Probed::Silent(_))
    }
}

/// A MetaServer as its probes see it.
#[derive(Clone, Debug)]
pub struct Server {
    /// The MetaServer.
    pub addr: SocketAddr,
    /// Its last answer; `None`: it was not probed yet.
    pub probed: Option<Probed>,
    /// For how long it has said so.
    pub since: Duration,
}

/// How it stands with a cluster.
pub struct State {
    /// The server that answered last as leader.
    pub leader: Option<SocketAddr>,
    /// Links that are idle now.
    pub idle_links: usize,
    /// Calls under way.
    pub calls: usize,
    /// Queries that failed since the last answer.
    pub failures: u32,
    /// Queries that wait for an answer.
    pub waiting: usize,
    /// For how long queries are refused.
    pub failing: Option<Duration>,
    /// How long answers took of late; `None` before the first.
    pub usual: Option<Duration>,
    /// Its MetaServers, as far as their addresses are known.
    pub servers: Vec<Server>,
}

pub(super) struct Core {
    pub(super) sharing: Sharing<Ask>,
    pub(super) health: Health,
    pub(super) memory: Memory,
    pub(super) calls: SlowStart,
    idle: HashMap<SocketAddr, Vec<Link>>,
    /// Links that are listened to beside the calls under way.
    slow_links: usize,
    /// When the running call began, if one runs.
    running_since: Instant,
    resolve_at: Instant,
    /// Each name of the list has an address, or is known to have none.
    is_resolved: bool,
    /// The routes as they were when all questions were known to belong here.
    routes_version: u64,
    /// `watch` looks at it each tick.
    is_watched: bool,
    probed: HashMap<SocketAddr, (Probed, Instant)>,
}

/// One cluster, known by the set of its MetaServer addresses.
pub struct Cluster {
    /// No other cluster of this process has it.
    pub(super) id: u64,
    /// Its name in the first route that named it; for people.
    pub name: String,
    /// Its MetaServers, `host:port`, sorted.
    pub meta_addrs: Vec<String>,
    /// Counters.
    pub stats: Arc<Stats>,
    pub(super) upstream: Arc<Upstream>,
    /// How long answers took of late, us. Two calls that write it at once do no harm.
    usual_us: AtomicU32,
    pub(super) core: Mutex<Core>,
}

impl Cluster {
    /// `meta_addrs` must not be empty.
    pub fn new(
        name: String,
        meta_addrs: Vec<String>,
        stats: Arc<Stats>,
        upstream: Arc<Upstream>,
    ) -> Arc<Self> {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let (id, now) = (IDS.fetch_add(1, Relaxed), Instant::now());
        let core = Core {
            sharing: Sharing::default(),
            health: Health::default(),
            memory: Memory::default(),
            calls: SlowStart::new(upstream.limits.max_calls),
            idle: HashMap::new(),
            slow_links: 0,
            running_since: now,
            resolve_at: now,
            is_resolved: false,
            routes_version: 0,
            is_watched: false,
            probed: HashMap::new(),
        };
        let usual_us = AtomicU32::new(NEVER_US);
        let core = Mutex::new(core);
        let cluster = Arc::new(Cluster { id, name, meta_addrs, stats, upstream, usual_us, core });
        cluster.upstream.watch.add(&cluster);
        cluster
    }

    /// How it stands now.
    pub fn state(&self) -> State {
        let usual_us = self.usual_us.load(Relaxed);
        let core = self.core.lock();
        let server = |addr: &SocketAddr| {
            let probed = core.probed.get(addr);
            Server {
                addr: *addr,
                probed: probed.map(|(probed, _)| *probed),
                since: probed.map_or(Duration::ZERO, |(_, since)| since.elapsed()),
            }
        };
        State {
            leader: core.memory.leader(),
            idle_links: core.idle.values().map(Vec::len).sum(),
            calls: core.calls.calls(),
            failures: core.health.failures(),
            waiting: core.sharing.waiting(),
            failing: core.health.failing_since().map(|since| since.elapsed()),
            usual: (usual_us < NEVER_US).then(|| Duration::from_micros(usual_us.into())),
            servers: core.memory.servers().iter().map(server).collect(),
        }
    }

    /// Failures of the MetaServers that it has now, and of leaders that they named. Those of the past, and of other clusters
    /// with its name, are counted in `stats` only.
    pub fn meta_failures(&self) -> Vec<(SocketAddr, &'static str, Failures)> {
        let mut failures = self.stats.failures();
        let core = self.core.lock();
        failures.retain(|(meta, ..)| core.memory.is_known(meta));
        failures
    }

    /// A query wants this cluster's answer. `routes_version` is that of before its route was looked up.
    pub fn join(self: &Arc<Self>, ask: Ask, routes_version: u64) -> Joined {
        let mut core = self.core.lock();
        if core.health.failing_since().is_some() && !core.health.admits(Instant::now()) {
            return Joined::Refused(ask, Shed::FailingCluster);
        }
        // However many clusters are slow, each leaves as much free as it takes, so there is room for the others.
        if core.sharing.waiting() >= ask.free_queries() {
            return Joined::Refused(ask, Shed::Pending);
        }
        core.routes_version = core.routes_version.min(routes_version);
        core.sharing.join(ask.args.clone(), ask);
        let is_new = !mem::replace(&mut core.is_watched, true);
        let place = self.place(&mut core);
        drop(core);
        if is_new {
            self.upstream.watch.busy(self);
        }
        place.map_or(Joined::Waiting, Joined::Call)
    }

    /// A place for a call, if there is a question to ask and a call of use.
    pub(super) fn place(self: &Arc<Self>, core: &mut Core) -> Option<Place> {
        if !core.sharing.is_ready() {
            return None;
        }
        if core.calls.running() > 0 {
            // A question that comes while a fast call is under way shares the next one.
            let usual = self.usual();
            let is_near = usual < NEAR && core.running_since.elapsed() < 2 * usual + NEAR;
            if is_near {
                return None;
            }
        }
        core.calls.begin().then(|| Place { cluster: self.clone(), is_held: true })
    }

    /// A place for a call, if there is a question to ask and a call of use.
    pub(super) fn begin(self: &Arc<Self>) -> Option<Place> {
        self.place(&mut self.core.lock())
    }

    /// A parked call goes on in a worker.
    pub(super) fn unpark(self: &Arc<Self>) -> Place {
        self.core.lock().calls.resume();
        Place { cluster: self.clone(), is_held: true }
    }

    fn usual(&self) -> Duration {
        Duration::from_micros(self.usual_us.load(Relaxed).into())
    }

    /// Whether answers come so fast that sleeping would take longer.
    pub fn is_fast(&self, spin: Duration) -> bool {
        self.usual() < spin
    }

    /// Keeps the running mean of the time that answers take.
    pub(super) fn answered_in(&self, took: Duration) {
        self.stats.latency.add(took, 1);
        let took_us = took.as_micros().min(1_000_000) as u32;
        let usual_us = match self.usual_us.load(Relaxed) {
            NEVER_US => took_us,
            usual_us => (7 * usual_us + took_us) / 8,
        };
        self.usual_us.store(usual_us, Relaxed);
    }

    /// How long a worker may block on a call that starts now: not at all if the last one was parked.
    pub(super) fn patience(&self) -> Duration {
        match self.core.lock().calls.is_silent() {
            true => Duration::ZERO,
            false => SLICE,
        }
    }

    /// The next call, its questions put on a link. `None`: nothing is to be asked now, and `place` is given back.
    pub(super) fn next_call(&self, place: &mut Place) -> Option<Link> {
        self.move_questions();
        self.resolve();
        loop {
            let now = Instant::now();
            let mut core = self.core.lock();
            let Core { sharing, memory, .. } = &mut *core;
            let batch = sharing.next(MAX_TOGETHER, now, |tried, sends| {
                let has_it = |addr: &SocketAddr| sends.iter().any(|(_, server)| server == addr);
                memory.choose(|addr| tried.contains(addr) || has_it(addr), now)
            });
            let left = sharing.take_left();
            let Some(Batch { server, questions, queries }) = batch else {
                place.end(&mut core);
                drop(core);
                drop(left);
                return None;
            };
            core.running_since = now;
            let idle = core.idle_link(server, now);
            drop(core);
            drop(left);
            self.upstream.metrics.calls.add(1);
            self.upstream.metrics.flights_joined.add(queries as u64 - 1);
            match idle.map_or_else(|| Link::connect(server), Ok) {
                Ok(mut link) => {
                    link.ask(questions);
                    return Some(link);
                }
                Err(e) => self.no_answer(server, &questions, &e),
            }
        }
    }

    /// These questions have no answer of `server`.
    pub(super) fn no_answer(&self, server: SocketAddr, questions: &[Sent], why: &LinkError) {
        let mut core = self.core.lock();
        questions.iter().for_each(|sent| core.sharing.unanswered(sent, server));
        drop(core);
        self.server_failed(server, why);
    }

    /// Counts a failure of a MetaServer, and tells of it.
    pub(super) fn server_failed(&self, server: SocketAddr, why: &LinkError) {
        static FAILED: Throttle = Throttle::new();
        self.stats.failed(server, why.kind());
        let mut core = self.core.lock();
        core.memory.failed(server, Instant::now());
        // While a cluster fails, one line has told of it, and one will when it is back.
        let is_news = core.health.failing_since().is_none();
        drop(core);
        if is_news && let Some(hidden) = FAILED.pass() {
            warn!("cluster={} meta={server}: {why}{hidden}", self.name);
        }
    }

    /// All on the link is answered: it is kept for the next call.
    pub(super) fn keep_link(&self, mut link: Link) {
        link.rest(Instant::now());
        let mut core = self.core.lock();
        let max = self.upstream.limits.max_calls;
        let is_known =
            core.memory.servers().contains(&link.addr) || core.memory.leader() == Some(link.addr);
        let links = core.idle.entry(link.addr).or_default();
        if is_known && links.len() < max {
            links.push(link);
        } else {
            // It closes without the lock.
            drop(core);
            drop(link);
        }
    }

    /// The idle links to `server` died.
    pub(super) fn forget_links(&self, server: SocketAddr) {
        let links = self.core.lock().idle.remove(&server);
        // They close without the lock.
        drop(links);
    }

    /// Looks up what the list names, without waiting for it.
    pub(super) fn resolve(&self) {
        let now = Instant::now();
        let mut core = self.core.lock();
        if now < core.resolve_at {
            return;
        }
        core.resolve_at = now + RESOLVE_EVERY;
        drop(core);
        let known: Vec<_> =
            self.meta_addrs.iter().map(|name| self.upstream.resolver.known(name)).collect();
        let is_resolved = known.iter().all(Option::is_some);
        let mut servers: Vec<SocketAddr> = known.into_iter().flatten().flatten().collect();
        servers.sort_unstable();
        servers.dedup();
        let mut core = self.core.lock();
        core.is_resolved = is_resolved;
        if servers.is_empty() || !is_resolved {
            core.resolve_at = now + RESOLVE_AGAIN;
        }
        let mut closed = Vec::new();
        if core.memory.set_servers(servers) {
            let Core { idle, memory, probed, .. } = &mut *core;
            probed.retain(|addr, _| memory.servers().contains(addr));
            idle.retain(|addr, links| {
                let is_kept = memory.servers().contains(addr);
                if !is_kept {
                    closed.append(links);
                }
                is_kept
            });
        }
        drop(core);
        drop(closed);
    }

    /// The address of a leader that a follower names, if it is known.
    pub(super) fn address_of(&self, leader: &Address) -> Option<SocketAddr> {
        let name = leader.to_string();
        let is_good = crate::wire::address::is_host_port(&name);
        let known = is_good.then(|| self.upstream.resolver.known(&name)).flatten()?;
        known.first().copied()
    }

    /// Questions whose table lives elsewhere now are looked up again.
    pub(super) fn move_questions(&self) {
        let Some(routes) = self.upstream.routes.upgrade() else {
            return;
        };
        let version = routes.version();
        let mut core = self.core.lock();
        if core.routes_version == version {
            return;
        }
        core.routes_version = version;
        let tables: HashSet<Box<str>> =
            core.sharing.first_waiters().map(|ask| ask.table.clone()).collect();
        drop(core);
        let moved: HashSet<_> =
            tables.into_iter().filter(|table| routes.has_moved(table, self)).collect();
        if !moved.is_empty() {
            let asks = self.core.lock().sharing.take(|ask| moved.contains(&ask.table));
            self.upstream.work.ask_again(asks);
        }
    }

    /// Does what time has made due. False: nobody waits any more.
    pub(super) fn tick(self: &Arc<Self>, now: Instant) -> Ticked {
        self.move_questions();
        self.resolve();
        let fair = self.upstream.query_timeout.fair();
        let mut core = self.core.lock();
        core.sharing.wake(now);
        let expired = core.sharing.expire(now);
        let had_time = |asked_at: Option<Instant>| asked_at.is_some_and(|at| now >= at + fair);
        let is_doubted =
            expired.iter().any(|expired| had_time(expired.asked_at)) && core.health.failed();
        let place = self.place(&mut core);
        let is_empty = core.sharing.is_empty();
        core.is_watched = !is_empty;
        drop(core);
        let expired: Vec<Ask> = expired.into_iter().map(|expired| expired.waiter).collect();
        if !expired.is_empty() {
            self.stats.unanswered.add(expired.len() as u64);
            self.upstream.work.refuse(expired, OwnError::Unavailable);
        }
        place.into_iter().for_each(|place| self.upstream.work.call(place));
        Ticked { is_busy: !is_empty, is_doubted }
    }

    /// A parked call has been silent for long: its questions are asked elsewhere, too. False: as many slow links are
    /// listened to as may be, and this one is given up.
    #[must_use]
    pub(super) fn set_aside(&self, link: &mut Link) -> bool {
        let is_kept = {
            let mut core = self.core.lock();
            core.calls.unpark();
            let is_kept = core.slow_links < self.upstream.limits.max_calls;
            if is_kept {
                core.slow_links += 1;
                link.pending().for_each(|sent| core.sharing.slow(sent, link.addr));
            } else {
                let questions = link.take_unanswered();
                questions.iter().for_each(|sent| core.sharing.unanswered(sent, link.addr));
            }
            is_kept
        };
        // A server that answers others is mute for these tables only.
        if !link.has_received() {
            self.server_failed(link.addr, &LinkError::TimedOut);
        }
        is_kept
    }

    /// A slow link is over.
    pub(super) fn forget_slow_link(&self) {
        self.core.lock().slow_links -= 1;
    }

    /// Whether anybody waits for an answer on this link.
    pub(super) fn is_wanted(&self, link: &Link) -> bool {
        let core = self.core.lock();
        link.pending().any(|sent| core.sharing.is_wanted(sent))
    }

    /// Closes links that have been idle for long.
    pub(super) fn close_idle_links(&self, now: Instant) {
        let mut closed = Vec::new();
        self.core.lock().idle.retain(|_, links| {
            closed.extend(links.extract_if(.., |link| now >= link.since() + MAX_IDLE));
            !links.is_empty()
        });
        drop(closed);
    }

    /// The servers to probe now.
    pub(super) fn servers(&self) -> Vec<SocketAddr> {
        self.resolve();
        self.core.lock().memory.servers().to_vec()
    }

    /// A probe of `server` came to this.
    pub(super) fn probed(&self, server: SocketAddr, said: Probed) {
        let mut core = self.core.lock();
        if !core.memory.servers().contains(&server) {
            return;
        }
        let now = Instant::now();
        let before = core.probed.get(&server).map(|(before, _)| *before);
        if before != Some(said) {
            core.probed.insert(server, (said, now));
        }
        if let Probed::Silent(why) = said {
            // So a dead standby is seen before it is needed.
            self.stats.failed(server, why);
        }
        let is_well_again = !matches!(said, Probed::Silent(_)) && core.health.answered();
        let is_leader_new = match said {
            // Two that say so take no turns: queries find out who is right.
            Probed::Leader => core.memory.leader().is_none() && core.memory.led(server),
            Probed::Follower => {
                core.memory.deposed(server);
                false
            }
            Probed::Silent(_) => false,
        };
        let is_failing = core.health.failing_since().is_some();
        drop(core);
        let name = &self.name;
        match (before, said) {
            (Some(Probed::Silent(_)), Probed::Silent(_)) => {}
            (_, Probed::Silent(why)) if !is_failing => {
                warn!("cluster={name} meta={server}: no answer to a probe: {why}");
            }
            (Some(Probed::Silent(_)), _) => {
                info!("cluster={name} meta={server}: answers probes again");
            }
            _ => {}
        }
        self.tell(is_well_again, is_leader_new.then_some(server));
    }

    /// Logs what answers changed.
    pub(super) fn tell(&self, is_well_again: bool, new_leader: Option<SocketAddr>) {
        // Servers that all claim to lead take turns with each answer.
        static LED: Throttle = Throttle::new();
        if is_well_again {
            info!("cluster={} answers again", self.name);
        }
        if let Some(leader) = new_leader
            && let Some(hidden) = LED.pass()
        {
            info!("cluster={} leader={leader}{hidden}", self.name);
        }
    }

    /// All servers were probed at once, and none answered: if queries failed, too, the cluster fails from now on.
    pub(super) fn probed_in_vain(&self) {
        let mut core = self.core.lock();
        if !core.health.probed_in_vain(Instant::now()) {
            return;
        }
        let failures = core.health.failures();
        let refused = core.sharing.take(|_| true);
        drop(core);
        let (name, metas) = (&self.name, &self.meta_addrs);
        warn!(
            "cluster={name} metas={metas:?}: {failures} queries in a row failed and no MetaServer answers a probe, \
             queries are refused until one does"
        );
        self.stats.unanswered.add(refused.len() as u64);
        self.upstream.metrics.shed.at(Shed::FailingCluster).add(refused.len() as u64);
        self.upstream.work.refuse(refused, OwnError::Unavailable);
    }

    /// Whether the cluster fails, or is doubted.
    pub(super) fn is_in_trouble(&self) -> bool {
        let core = self.core.lock();
        core.health.failing_since().is_some() || core.health.is_doubted()
    }
}

/// The outcome of a tick.
pub(super) struct Ticked {
    /// Somebody waits.
    pub(super) is_busy: bool,
    /// Queries failed in a row: probe it at once.
    pub(super) is_doubted: bool,
}

impl Core {
    fn idle_link(&mut self, addr: SocketAddr, now: Instant) -> Option<Link> {
        // The last in is the first out; those that rest for long are closed by `close_idle_links`.
        let link = self.idle.get_mut(&addr)?.pop()?;
        (now < link.since() + MAX_IDLE).then_some(link)
    }
}

#[cfg(test)]
mod unrouted {
    use super::*;

    struct Nobody;

    impl Work for Nobody {
        fn call(&self, _: Place) {}
        fn resume(&self, _: Parked) {}
        fn ask_again(&self, _: Vec<Ask>) {}
        fn refuse(&self, _: Vec<Ask>, _: OwnError) {}
    }

    impl Routes for Nobody {
        fn version(&self) -> u64 {
            0
        }

        fn has_moved(&self, _: &str, _: &Cluster) -> bool {
            false
        }
    }

    impl Watch for Nobody {
        fn park(&self, _: Parked) {}
        fn busy(&self, _: &Arc<Cluster>) {}
        fn add(&self, _: &Arc<Cluster>) {}
    }

    impl Upstream {
        /// For tests in which nothing is asked.
        pub fn unrouted() -> Arc<Self> {
            Arc::new(Upstream {
                resolver: Resolver::start(),
                limits: UpstreamLimits { max_calls: 1, probe_interval: Duration::ZERO },
                query_timeout: Arc::new(QueryTimeout::new(Duration::from_secs(1))),
                metrics: Arc::default(),
                work: Arc::new(Nobody),
                routes: Weak::<Nobody>::new(),
                watch: Arc::new(Nobody),
            })
        }
    }
}
