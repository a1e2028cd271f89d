//! One cluster: its MetaServers, the leader, failures, links, and the questions that wait.
//!
//! ```text
//! join ─▶ [health: refuse at once?] ─▶ sharing ─▶ a place is free? ─▶ Place: the right to make calls (`upstream::call`)
//!                                         ▲  │
//!    meta-watch, tick: expired, moved,    │  └─▶ next_call: many questions for one server, with one write on one link
//!    due again, a place to give           └───── no answer: another server, or later
//! ```
//! The lock covers what calls share (questions, health, memory, idle links), and never any I/O. A cluster has at most
//! `max_calls` calls under way, as many slow links, as many idle links to a server, and a limited number of pending
//! queries.
//!
//! A question that cannot be asked now waits here, without a thread. However slow a cluster is, it blocks a worker only
//! for [`Cluster::patience`].

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

/// Most questions of one call. Twice as many are no faster: the write is then a small part of the work.
const MAX_TOGETHER: usize = 64;

/// Close a link that is idle for longer: a firewall on the way may have forgotten it, and would drop the next request
/// silently.
const MAX_IDLE: Duration = Duration::from_secs(10);

/// A worker waits this long for an answer before it parks the call. If a hundred clusters go silent in one instant,
/// that costs 64 workers 8 ms.
pub(super) const SLICE: Duration = Duration::from_millis(5);

/// Answers that usually come sooner than this need no second call beside the one under way.
const NEAR: Duration = Duration::from_millis(1);

/// How often to look up the addresses of names.
const RESOLVE_EVERY: Duration = Duration::from_secs(1);
/// How often to look up names while there is no address yet.
const RESOLVE_AGAIN: Duration = Duration::from_millis(20);

/// The usual answer time before the first answer.
const NEVER_US: u32 = u32::MAX;

/// The part of the routes that calls need.
pub trait Routes: Send + Sync {
    /// Grows with each change.
    fn version(&self) -> u64;
    /// Whether the table's route names another cluster now.
    fn has_moved(&self, table: &str, cluster: &Cluster) -> bool;
}

/// Work that calls hand to workers.
pub trait Work: Send + Sync {
    /// Make the calls of this place.
    fn call(&self, place: Place);
    /// Continue a parked call.
    fn resume(&self, parked: Parked);
    /// Route these queries again: their route has moved.
    fn ask_again(&self, asks: Vec<Ask>);
    /// Refuse these queries.
    fn refuse(&self, asks: Vec<Ask>, error: OwnError);
}

/// Work that calls hand to the thread `meta-watch` (`upstream::watch`).
pub trait Watch: Send + Sync {
    /// Wait for bytes on this link.
    fn park(&self, parked: Parked);
    /// Tick for this cluster: queries wait in it.
    fn busy(&self, cluster: &Arc<Cluster>);
    /// Probe this cluster as long as a route names it.
    fn add(&self, cluster: &Arc<Cluster>);
}

/// The parts that all clusters share.
pub struct Upstream {
    pub resolver: Resolver,
    pub limits: UpstreamLimits,
    /// How long queries wait.
    pub query_timeout: Arc<QueryTimeout>,
    pub metrics: Arc<Metrics>,
    pub work: Arc<dyn Work>,
    /// The routes; they hold the clusters, hence weak.
    pub routes: Weak<dyn Routes>,
    /// The thread `meta-watch`.
    pub watch: Arc<dyn Watch>,
}

/// The right to make calls to a cluster, one at a time; `upstream::call` makes them. A place that is dropped is given
/// back.
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

    /// Returns the place, unless it has ended.
    pub(super) fn if_held(self) -> Option<Self> {
        self.is_held.then_some(self)
    }

    /// Parks the silent call on this link. The call keeps the place, and the worker is free.
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

/// A call that no worker waits for any more.
pub struct Parked {
    pub(super) cluster: Arc<Cluster>,
    pub(super) link: Link,
    /// Another server has the questions, too, so this link does not count as a call under way.
    pub(super) is_slow: bool,
}

pub enum Joined {
    /// A call that is under way, or will start, answers the query.
    Waiting,
    /// The caller must make calls.
    Call(Place),
    /// The caller must refuse the query, for this reason.
    Refused(Ask, Shed),
}

/// A MetaServer's answer to the last probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probed {
    Leader,
    /// The server follows another leader, or knows none.
    Follower,
    /// No usable answer, for this reason.
    Silent(&'static str),
}

impl Probed {
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

/// A MetaServer, and its answer to probes.
#[derive(Clone, Debug)]
pub struct Server {
    /// The MetaServer.
    pub addr: SocketAddr,
    /// Its last answer; `None`: not probed yet.
    pub probed: Option<Probed>,
    /// For how long it has given this answer.
    pub since: Duration,
}

/// A copy of a cluster's state, for the pages.
pub struct State {
    /// The server that answered last as leader.
    pub leader: Option<SocketAddr>,
    /// Links that are idle now.
    pub idle_links: usize,
    /// Calls under way.
    pub calls: usize,
    /// Number of queries that failed since the last answer.
    pub failures: u32,
    /// Queries that wait for an answer.
    pub waiting: usize,
    /// For how long the proxy has refused queries; `None`: it does not.
    pub failing: Option<Duration>,
    /// Recent answer time; `None` before the first answer.
    pub usual: Option<Duration>,
    /// Its MetaServers whose addresses are known.
    pub servers: Vec<Server>,
}

pub(super) struct Core {
    pub(super) sharing: Sharing<Ask>,
    pub(super) health: Health,
    pub(super) memory: Memory,
    pub(super) calls: SlowStart,
    idle: HashMap<SocketAddr, Vec<Link>>,
    /// Slow links, which wait for answers beside the calls under way.
    slow_links: usize,
    /// When the running call began; means nothing if no call runs.
    running_since: Instant,
    resolve_at: Instant,
    /// Whether the look-up of each name has ended, with or without an address.
    is_resolved: bool,
    /// Version of the routes at which all questions belonged to this cluster.
    routes_version: u64,
    /// Whether `meta-watch` ticks for this cluster.
    is_watched: bool,
    probed: HashMap<SocketAddr, (Probed, Instant)>,
}

/// One cluster, known by the set of its MetaServer addresses.
pub struct Cluster {
    /// Unique in this process.
    pub(super) id: u64,
    /// Name in the first route that named it; for logs and pages.
    pub name: String,
    /// Its MetaServers, `host:port`, sorted.
    pub meta_addrs: Vec<String>,
    pub stats: Arc<Stats>,
    pub(super) upstream: Arc<Upstream>,
    /// Recent answer time, us. Two calls may write it at once, which does no harm.
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

    /// The present state.
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

    /// Failures of the present MetaServers, and of leaders that they named. `stats` also counts earlier MetaServers,
    /// and other clusters of this name.
    pub fn meta_failures(&self) -> Vec<(SocketAddr, &'static str, Failures)> {
        let mut failures = self.stats.failures();
        let core = self.core.lock();
        failures.retain(|(meta, ..)| core.memory.is_known(meta));
        failures
    }

    /// Adds a query to the cluster's questions. `routes_version` is the version before the query's route was looked up.
    pub fn join(self: &Arc<Self>, ask: Ask, routes_version: u64) -> Joined {
        let mut core = self.core.lock();
        if core.health.failing_since().is_some() && !core.health.admits(Instant::now()) {
            return Joined::Refused(ask, Shed::FailingCluster);
        }
        // Each cluster leaves as many free queries as it takes. So however many clusters are slow, the others have
        // room.
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

    /// Returns a place if there is a question to ask and one more call is useful.
    pub(super) fn place(self: &Arc<Self>, core: &mut Core) -> Option<Place> {
        if !core.sharing.is_ready() {
            return None;
        }
        if core.calls.running() > 0 {
            // While a fast call is under way, new questions wait and share the next call.
            let usual = self.usual();
            let is_near = usual < NEAR && core.running_since.elapsed() < 2 * usual + NEAR;
            if is_near {
                return None;
            }
        }
        core.calls.begin().then(|| Place { cluster: self.clone(), is_held: true })
    }

    /// Returns a place if there is a question to ask and one more call is useful.
    pub(super) fn begin(self: &Arc<Self>) -> Option<Place> {
        self.place(&mut self.core.lock())
    }

    /// Counts a parked call as running in a worker again.
    pub(super) fn unpark(self: &Arc<Self>) -> Place {
        self.core.lock().calls.resume();
        Place { cluster: self.clone(), is_held: true }
    }

    fn usual(&self) -> Duration {
        Duration::from_micros(self.usual_us.load(Relaxed).into())
    }

    /// Whether answers usually come sooner than `spin`, so that sleeping would take longer.
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

    /// How long a worker may wait for a call that starts now: not at all if the last call was parked.
    pub(super) fn patience(&self) -> Duration {
        match self.core.lock().calls.is_silent() {
            true => Duration::ZERO,
            false => SLICE,
        }
    }

    /// Puts the questions of the next call on a link. `None`: there is no question to ask, and `place` is given back.
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

    /// `server` does not answer these questions: another server must.
    pub(super) fn no_answer(&self, server: SocketAddr, questions: &[Sent], why: &LinkError) {
        let mut core = self.core.lock();
        questions.iter().for_each(|sent| core.sharing.unanswered(sent, server));
        drop(core);
        self.server_failed(server, why);
    }

    /// Counts and logs a failure of a MetaServer.
    pub(super) fn server_failed(&self, server: SocketAddr, why: &LinkError) {
        static FAILED: Throttle = Throttle::new();
        self.stats.failed(server, why.kind());
        let mut core = self.core.lock();
        core.memory.failed(server, Instant::now());
        // While the whole cluster fails, one log line says so, and another when it answers again.
        let is_news = core.health.failing_since().is_none();
        drop(core);
        if is_news && let Some(hidden) = FAILED.pass() {
            warn!("cluster={} meta={server}: {why}{hidden}", self.name);
        }
    }

    /// Keeps an idle link for the next call.
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
            // Close the link without the lock.
            drop(core);
            drop(link);
        }
    }

    /// Drops the idle links to `server`, which have died.
    pub(super) fn forget_links(&self, server: SocketAddr) {
        let links = self.core.lock().idle.remove(&server);
        // Close the links without the lock.
        drop(links);
    }

    /// Looks up the names of the MetaServers, without waiting.
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

    /// The address of a leader that a follower names, if it is known already.
    pub(super) fn address_of(&self, leader: &Address) -> Option<SocketAddr> {
        let name = leader.to_string();
        let is_good = crate::wire::address::is_host_port(&name);
        let known = is_good.then(|| self.upstream.resolver.known(&name)).flatten()?;
        known.first().copied()
    }

    /// Routes questions again whose table now has another cluster.
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

    /// Wakes due questions, refuses expired queries, and starts a call if one is useful.
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

    /// A parked call has been silent for long: lets another server answer its questions, too. False: the cluster has as
    /// many slow links as it may have, and the caller must drop this one.
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
        // A server that has answered other questions is silent for these tables only, and has not failed.
        if !link.has_received() {
            self.server_failed(link.addr, &LinkError::TimedOut);
        }
        is_kept
    }

    /// Uncounts a slow link.
    pub(super) fn forget_slow_link(&self) {
        self.core.lock().slow_links -= 1;
    }

    /// Whether a query waits for an answer on this link.
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

    /// Records the answer of `server` to a probe.
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
            // Count the failure, so that an operator sees a dead standby before it is needed.
            self.stats.failed(server, why);
        }
        let is_well_again = !matches!(said, Probed::Silent(_)) && core.health.answered();
        let is_leader_new = match said {
            // Probes do not replace a known leader: if two servers claim to lead, queries find out which one does.
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

    /// Logs that the cluster answers again, or has a new leader.
    pub(super) fn tell(&self, is_well_again: bool, new_leader: Option<SocketAddr>) {
        // If several servers claim to lead, the leader changes with each answer.
        static LED: Throttle = Throttle::new();
        if is_well_again {
            info!("cluster={} answers again", self.name);
        }
        if let Some(leader) = new_leader
            && let Some(hidden) = LED.pass()
        {
            info!("cluster={} leader={leader}: new leader{hidden}", self.name);
        }
    }

    /// All servers were probed at once, and none answered. If queries failed, too, the cluster fails from now on.
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

    /// Whether the cluster fails or is doubted.
    pub(super) fn is_in_trouble(&self) -> bool {
        let core = self.core.lock();
        core.health.failing_since().is_some() || core.health.is_doubted()
    }
}

pub(super) struct Ticked {
    /// Queries still wait.
    pub(super) is_busy: bool,
    /// Queries failed in a row: probe the cluster at once.
    pub(super) is_doubted: bool,
}

impl Core {
    fn idle_link(&mut self, addr: SocketAddr, now: Instant) -> Option<Link> {
        // The newest link comes first; `close_idle_links` closes those that are idle for long.
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
        /// For tests that make no calls.
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
