//! One cluster: its MetaServers, who leads, who failed, the links, the flights.
//!
//! ```text
//! join ─▶ [health: refuse at once?] ─▶ [flight: share, or lead] ─▶ call:
//!
//!   round: leader first, then the others ─┬─ leader's answer ──────────────▶ Answered
//!     ▲                                   ├─ follower: its leader is next
//!     │                                   ├─ no link, no answer, a lie: next
//!     │                                   └─ slow: set aside, the next may know a new leader;
//!     │                                      if none does, the slow one is waited for after all
//!     └── short pause ◀── the round is over ──┘      nobody waits any more ─▶ Failed
//! ```
//! A call blocks its worker, and its worker looks up every slice: it answers those whose time is over, also those
//! who only wait for a later call, sends those whose table has moved where it is now, and leaves when it was the
//! one that is called for. What a call leaves without an answer says something of the cluster only if the
//! call had the time that a query usually has.
//!
//! The lock covers what calls share (flights, health, memory, idle links) and never any I/O. Calls at once
//! are few, and each holds one link to a server at a time: that bounds the links to a MetaServer and keeps
//! a dead cluster from taking all workers.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use parking_lot::Mutex;

use super::flight::{Flights, Key, Lead};
use super::health::Health;
use super::leader::{Memory, Plan};
use super::link::{Link, LinkError};
use super::stats::Stats;
use crate::client::ask::Ask;
use crate::client::outbox::Body;
use crate::config::UpstreamLimits;
use crate::logging::Throttle;
use crate::patience::{Meanwhile, QueryTimeout, SLICE};
use crate::route::record::Record;
use crate::upstream::resolver::Resolver;
use crate::wire::address::is_host_port;
use crate::wire::answer::Answer;
use crate::wire::error_code::OwnError;

/// A link idle for longer is not used again: a firewall between may have forgotten it, and then a request
/// on it is lost without a word.
const MAX_IDLE: Duration = Duration::from_secs(60);

/// Pause between two rounds of one call, doubled each time up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// See [`FIRST_PAUSE`]. A leader election takes seconds; asking more often does not shorten it.
const MAX_PAUSE: Duration = Duration::from_millis(200);

/// How long a call looks for an answer before it sleeps, where answers usually come sooner than that.
const SPIN: Duration = Duration::from_micros(60);

/// Stands for the usual time of answers before the first.
const NEVER_US: u32 = u32::MAX;

/// What all clusters share.
pub struct Upstream {
    /// Host names to addresses.
    pub resolver: Resolver,
    /// What calls may use.
    pub limits: UpstreamLimits,
    /// Also decides how long a call waits for one MetaServer before it asks another, too.
    pub query_timeout: Arc<QueryTimeout>,
}

/// What became of a query that wants an answer of a cluster.
pub enum Joined {
    /// Somebody's call will answer it.
    Waiting,
    /// The caller makes this call.
    Lead(Lead<Ask>),
    /// The cluster does not answer these days.
    Refused(Ask),
}

/// How a call ended.
#[derive(Debug)]
pub enum Outcome {
    /// With a leader's answer.
    Answered(Arc<Body>),
    /// Nobody answered, although there was time.
    Failed,
    /// The route moved away from this cluster; who still waits is to be asked for elsewhere.
    Moved,
    /// Nobody waits any more.
    Abandoned,
}

/// The routes, as calls see them.
pub trait Routes {
    /// Whether the table lives in another cluster than this one now.
    fn has_moved(&self, table: &str) -> bool;
    /// These are to be asked for where their table is now.
    fn ask_again(&self, asks: Vec<Ask>);
}

/// What is to be done after a call.
pub struct Landed {
    /// The caller makes this call next.
    pub next: Option<Lead<Ask>>,
    /// They waited for calls to a cluster that is asked no more.
    pub refused: Vec<Ask>,
}

/// A call to make, and to whom.
pub struct Flight {
    /// Whom to ask.
    pub cluster: Arc<Cluster>,
    /// `None` while the call is made, and once none is left to make.
    pub lead: Option<Lead<Ask>>,
}

impl Drop for Flight {
    /// A question whose call is never over would be mute for ever.
    fn drop(&mut self) {
        while let Some(Lead { key, .. }) = self.lead.take() {
            self.lead = self.cluster.land(&key, &Outcome::Abandoned).next;
        }
    }
}

/// All clusters that routes name, each once however many tables it holds. Owned by who writes the routes;
/// a cluster and its links go with its last route and call.
pub struct Clusters {
    upstream: Arc<Upstream>,
    by_addrs: HashMap<Vec<String>, Weak<Cluster>>,
    stats: HashMap<String, Weak<Stats>>,
}

impl Clusters {
    /// None yet.
    pub fn new(upstream: Arc<Upstream>) -> Self {
        Clusters { upstream, by_addrs: HashMap::new(), stats: HashMap::new() }
    }

    /// The cluster of a record.
    pub fn get(&mut self, record: Record) -> Arc<Cluster> {
        if let Some(cluster) = self.by_addrs.get(&record.meta_addrs).and_then(Weak::upgrade) {
            return cluster;
        }
        self.by_addrs.retain(|_, cluster| cluster.strong_count() > 0);
        self.stats.retain(|_, stats| stats.strong_count() > 0);
        let addrs = record.meta_addrs.clone();
        let mut cluster = Cluster::new(record.cluster, record.meta_addrs, self.upstream.clone());
        // With other MetaServers it is the same cluster to who counts.
        match self.stats.get(&cluster.name).and_then(Weak::upgrade) {
            Some(stats) => cluster.stats = stats,
            None => drop(self.stats.insert(cluster.name.clone(), Arc::downgrade(&cluster.stats))),
        }
        let cluster = Arc::new(cluster);
        self.by_addrs.insert(addrs, Arc::downgrade(&cluster));
        cluster
    }
}

/// How it stands with a cluster.
pub struct State {
    /// Who answered last as leader.
    pub leader: Option<SocketAddr>,
    /// Links that are idle now.
    pub idle_links: usize,
    /// Calls under way.
    pub calls: usize,
    /// Calls that failed since the last answer.
    pub failures: u32,
    /// Queries that wait for calls.
    pub waiting: usize,
    /// For how long queries are refused but for probes.
    pub failing: Option<Duration>,
    /// How long answers took of late; `None` before the first.
    pub usual: Option<Duration>,
}

struct Core {
    flights: Flights<Ask>,
    health: Health,
    memory: Memory,
    idle: HashMap<SocketAddr, Vec<Link>>,
    /// When to look again for those who wait and should not.
    next_look: Instant,
}

/// One cluster, known by the set of its MetaServer addresses.
pub struct Cluster {
    /// Its name in the first route that named it; for people.
    pub name: String,
    /// Its MetaServers, `host:port`, sorted.
    pub meta_addrs: Vec<String>,
    upstream: Arc<Upstream>,
    /// What is counted.
    pub stats: Arc<Stats>,
    /// How long answers took of late, us. Two calls that write it at once do no harm.
    usual_us: AtomicU32,
    core: Mutex<Core>,
}

impl Cluster {
    /// `meta_addrs` must not be empty.
    pub fn new(name: String, meta_addrs: Vec<String>, upstream: Arc<Upstream>) -> Self {
        let core = Core {
            flights: Flights::new(upstream.limits.max_calls),
            health: Health::default(),
            memory: Memory::default(),
            idle: HashMap::new(),
            next_look: Instant::now(),
        };
        let usual_us = AtomicU32::new(NEVER_US);
        let stats = Arc::new(Stats::default());
        Cluster { name, meta_addrs, upstream, stats, usual_us, core: Mutex::new(core) }
    }

    /// How it stands now.
    pub fn state(&self) -> State {
        let usual_us = self.usual_us.load(Relaxed);
        let core = self.core.lock();
        State {
            leader: core.memory.leader(),
            idle_links: core.idle.values().map(Vec::len).sum(),
            calls: self.upstream.limits.max_calls - core.flights.free_places(),
            failures: core.health.failures(),
            waiting: core.flights.waiting(),
            failing: core.health.failing_since().map(|since| since.elapsed()),
            usual: (usual_us < NEVER_US).then(|| Duration::from_micros(usual_us.into())),
        }
    }

    /// A query wants this cluster's answer.
    pub fn join(&self, ask: Ask) -> Joined {
        let mut core = self.core.lock();
        let is_called = core.flights.free_places() < self.upstream.limits.max_calls;
        if !core.health.admits(is_called, Instant::now()) {
            return Joined::Refused(ask);
        }
        match core.flights.join(ask.args.clone(), ask) {
            Some(lead) => Joined::Lead(lead),
            None => Joined::Waiting,
        }
    }

    /// The call is about to start: who came meanwhile is aboard, too. `Some`: there is no reason to make it.
    pub fn depart(&self, key: &Key, aboard: &mut Vec<Ask>, routes: &dyn Routes) -> Option<Outcome> {
        self.core.lock().flights.depart(key, aboard);
        self.look_after(aboard, routes)
    }

    /// Makes one call and blocks until it is over. Those `aboard` whose time ends before are answered here
    /// and taken out.
    pub fn call(
        &self,
        key: &Key,
        aboard: &mut Vec<Ask>,
        routes: &dyn Routes,
        meanwhile: &dyn Meanwhile,
    ) -> Outcome {
        let start = Instant::now();
        let unanswered = Vec::new();
        let mut call =
            Call { cluster: self, key, aboard, routes, meanwhile, start, unanswered, over: None };
        let outcome = match call.run() {
            Ok(body) => Outcome::Answered(body),
            Err(Over) => call.over.take().expect("Over is only said when it is set"),
        };
        if matches!(outcome, Outcome::Answered(_) | Outcome::Failed) {
            let mute = std::mem::take(&mut call.unanswered);
            mute.into_iter().for_each(|addr| call.failed(addr, &LinkError::GaveUp));
        }
        outcome
    }

    /// The call for `key` is over.
    pub fn land(&self, key: &Key, outcome: &Outcome) -> Landed {
        let mut refused = Vec::new();
        let mut core = self.core.lock();
        let is_news = match outcome {
            Outcome::Answered(_) => core.health.answered(),
            Outcome::Failed => core.health.failed(Instant::now()),
            Outcome::Moved | Outcome::Abandoned => false,
        };
        if core.health.is_failing() {
            refused = core.flights.take(|_| true);
        }
        let next = core.flights.land(key);
        let failures = core.health.failures();
        drop(core);
        let (name, metas) = (&self.name, &self.meta_addrs);
        match is_news {
            true if failures > 0 => warn!(
                "cluster={name} metas={metas:?}: {failures} calls in a row failed, \
                 queries are refused until a probe is answered"
            ),
            true => info!("cluster={name} answers again"),
            false => {}
        }
        Landed { next, refused }
    }

    /// Answers those whose time is over, also who waits for a later call. `Some`: there is no reason to make, or to
    /// go on with, the call of those aboard.
    fn look_after(&self, aboard: &mut Vec<Ask>, routes: &dyn Routes) -> Option<Outcome> {
        let now = Instant::now();
        for ask in aboard.extract_if(.., |ask| ask.deadline <= now) {
            self.stats.unanswered.add(1);
            ask.refuse(OwnError::Unavailable);
        }
        self.look_after_waiting(routes, now);
        match aboard.iter().find(|ask| !ask.is_gone()) {
            None => Some(Outcome::Abandoned),
            Some(ask) if routes.has_moved(&ask.table) => Some(Outcome::Moved),
            Some(_) => None,
        }
    }

    /// The same for those who wait for a later call than those under way.
    fn look_after_waiting(&self, routes: &dyn Routes, now: Instant) {
        let mut core = self.core.lock();
        if now < core.next_look {
            return;
        }
        core.next_look = now + SLICE / 2;
        let expired = core.flights.take(|ask| ask.deadline <= now || ask.is_gone());
        let tables: HashSet<Box<str>> =
            core.flights.first_waiters().map(|ask| ask.table.clone()).collect();
        drop(core);
        self.stats.unanswered.add(expired.len() as u64);
        expired.into_iter().for_each(|ask| ask.refuse(OwnError::Unavailable));
        let moved: HashSet<_> =
            tables.into_iter().filter(|table| routes.has_moved(table)).collect();
        if !moved.is_empty() {
            routes.ask_again(self.core.lock().flights.take(|ask| moved.contains(&ask.table)));
        }
    }

    /// Whether answers come so fast that sleeping would take longer.
    pub fn is_fast(&self) -> bool {
        self.usual_us.load(Relaxed) < SPIN.as_micros() as u32
    }

    fn worth_spinning(&self) -> Duration {
        if self.is_fast() { SPIN } else { Duration::ZERO }
    }

    /// Keeps the running mean of the time that answers take.
    fn answered_in(&self, took: Duration) {
        self.stats.latency.add(took, 1);
        let took_us = took.as_micros().min(1_000_000) as u32;
        let usual_us = match self.usual_us.load(Relaxed) {
            NEVER_US => took_us,
            usual_us => (7 * usual_us + took_us) / 8,
        };
        self.usual_us.store(usual_us, Relaxed);
    }

    fn idle_link(&self, addr: SocketAddr) -> Option<Link> {
        let link = self.core.lock().idle.get_mut(&addr)?.pop()?;
        if link.idle() < MAX_IDLE {
            return Some(link);
        }
        // The last in is the first out, so the others are all older.
        self.forget_links(addr);
        None
    }

    fn keep_link(&self, addr: SocketAddr, link: Link) {
        self.core.lock().idle.entry(addr).or_default().push(link);
    }

    fn forget_links(&self, addr: SocketAddr) {
        let links = self.core.lock().idle.remove(&addr);
        // They close without the lock.
        drop(links);
    }
}

/// The call is over, see `Call::over`.
struct Over;

/// What asking one MetaServer came to.
enum Said {
    Leader(Arc<Body>),
    Follower(Option<SocketAddr>),
    /// It has the question and no answer yet.
    NothingYet(Link),
    /// The link broke before the first byte of an answer.
    Lost(LinkError),
    Nothing(LinkError),
}

struct Call<'a> {
    cluster: &'a Cluster,
    key: &'a Key,
    aboard: &'a mut Vec<Ask>,
    routes: &'a dyn Routes,
    meanwhile: &'a dyn Meanwhile,
    start: Instant,
    /// Servers that have the question, and have not answered.
    unanswered: Vec<SocketAddr>,
    over: Option<Outcome>,
}

impl<'a> Call<'a> {
    /// Looks up: false when there is no reason to go on.
    fn goes_on(&mut self) -> bool {
        if self.over.is_some() {
            return false;
        }
        self.meanwhile.look_up();
        let fair = 2 * self.cluster.upstream.query_timeout.slow_after();
        self.over = match self.cluster.look_after(self.aboard, self.routes) {
            Some(Outcome::Abandoned) if self.start.elapsed() >= fair => Some(Outcome::Failed),
            other => other,
        };
        self.over.is_none()
    }

    fn run(&mut self) -> Result<Arc<Body>, Over> {
        let mut pause = FIRST_PAUSE;
        loop {
            let cluster: &'a Cluster = self.cluster;
            let servers = self.resolve(&cluster.meta_addrs);
            let plan = cluster.core.lock().memory.plan(&servers, Instant::now());
            if let Some(body) = self.round(plan)? {
                return Ok(body);
            }
            self.pause(pause)?;
            pause = MAX_PAUSE.min(2 * pause);
        }
    }

    fn pause(&mut self, pause: Duration) -> Result<(), Over> {
        let end = Instant::now() + pause;
        self.meanwhile.be_away();
        while self.goes_on() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(SLICE));
        }
        Err(Over)
    }

    /// The addresses that are known; names are only waited for where there are none, and no leader either.
    fn resolve(&mut self, host_ports: &[String]) -> Vec<SocketAddr> {
        let upstream = &self.cluster.upstream;
        let known = host_ports.iter().filter_map(|host_port| upstream.resolver.known(host_port));
        let mut found: Vec<SocketAddr> = known.flatten().collect();
        // With several names a slow one must not use up the time of the others.
        let end = Instant::now() + upstream.query_timeout.slow_after();
        for host_port in host_ports {
            if !found.is_empty() || self.cluster.core.lock().memory.leader().is_some() {
                break;
            }
            found = upstream.resolver.resolve(host_port, &mut || {
                self.meanwhile.be_away();
                self.goes_on() && Instant::now() < end
            });
        }
        found
    }

    /// Asks each server of the plan until one answers as leader.
    fn round(&mut self, mut plan: Plan) -> Result<Option<Arc<Body>>, Over> {
        let slow_after = self.cluster.upstream.query_timeout.slow_after();
        let mut slow: VecDeque<(SocketAddr, Link)> = VecDeque::new();
        while let Some(addr) = plan.next_server() {
            let wait = if plan.has_more() { slow_after } else { SLICE };
            match self.ask(addr, wait)? {
                Said::Leader(body) => {
                    self.learn_leader(addr);
                    return Ok(Some(body));
                }
                Said::Follower(Some(leader)) => plan.forward(leader),
                Said::Follower(None) => {}
                Said::NothingYet(link) => slow.push_back((addr, link)),
                Said::Lost(e) | Said::Nothing(e) => self.failed(addr, &e),
            }
        }
        // Everybody has the question. Who is only slow may answer yet: listen to each in turn.
        while let Some((addr, link)) = slow.pop_front() {
            match self.hear(addr, link, SLICE)? {
                Said::Leader(body) => {
                    self.learn_leader(addr);
                    return Ok(Some(body));
                }
                Said::Follower(_) => {}
                Said::NothingYet(link) => slow.push_back((addr, link)),
                Said::Lost(e) | Said::Nothing(e) => self.failed(addr, &e),
            }
        }
        Ok(None)
    }

    fn learn_leader(&self, leader: SocketAddr) {
        let is_new = self.cluster.core.lock().memory.led(leader);
        if is_new {
            info!("cluster={} leader={leader}", self.cluster.name);
        }
    }

    fn failed(&self, addr: SocketAddr, why: &LinkError) {
        static FAILED: Throttle = Throttle::new();
        self.cluster.stats.failed(addr, why.kind());
        let mut core = self.cluster.core.lock();
        core.memory.failed(addr, Instant::now());
        // Of a cluster that keeps failing one line has told, and one will when it is back.
        let is_news = !core.health.is_failing();
        drop(core);
        let name = &self.cluster.name;
        if !is_news {
            debug!("cluster={name} meta={addr}: {why}");
        } else if let Some(hidden) = FAILED.pass() {
            warn!("cluster={name} meta={addr}: {why}{hidden}");
        }
    }

    /// Asks one server, on a link that is there or on a fresh one, and waits a while for its answer.
    fn ask(&mut self, addr: SocketAddr, wait: Duration) -> Result<Said, Over> {
        if let Some(mut link) = self.cluster.idle_link(addr) {
            let said = match link.send(self.key, &mut || self.goes_on()) {
                Ok(()) => self.hear(addr, link, wait)?,
                Err(LinkError::GaveUp) => return Err(Over),
                Err(e) => Said::Lost(e),
            };
            match said {
                // It died while idle. Then its like died with it; a fresh one tells more.
                Said::Lost(_) => self.cluster.forget_links(addr),
                said => return Ok(said),
            }
        }
        self.meanwhile.be_away();
        let key = self.key;
        let mut patience = || self.goes_on();
        let fresh = Link::connect(addr, &mut patience)
            .and_then(|mut link| link.send(key, &mut patience).map(|()| link));
        match fresh {
            Ok(link) => self.hear(addr, link, wait),
            Err(LinkError::GaveUp) => Err(Over),
            Err(e) => Ok(Said::Nothing(e)),
        }
    }

    fn hear(&mut self, addr: SocketAddr, mut link: Link, wait: Duration) -> Result<Said, Over> {
        let (end, spin) = (Instant::now() + wait, self.cluster.worth_spinning());
        let meanwhile = self.meanwhile;
        let mut patience = || self.goes_on() && Instant::now() < end;
        let heard = link.receive(spin, meanwhile, &mut patience);
        self.unanswered.retain(|server| *server != addr);
        match heard {
            Ok((Answer::Leader { result_at, counted_as }, frame, took)) => {
                self.cluster.answered_in(took);
                self.cluster.keep_link(addr, link);
                Ok(Said::Leader(Arc::new(Body::new(frame, result_at, counted_as))))
            }
            Ok((Answer::Follower { leader }, ..)) => {
                self.cluster.keep_link(addr, link);
                self.cluster.core.lock().memory.deposed(addr);
                let named = leader.map(|leader| leader.to_string());
                let named = named.filter(|leader| is_host_port(leader));
                let found = named.map(|leader| self.resolve(&[leader]));
                Ok(Said::Follower(found.and_then(|found| found.first().copied())))
            }
            Err(LinkError::GaveUp) => {
                self.unanswered.push(addr);
                match self.over {
                    Some(_) => Err(Over),
                    None => Ok(Said::NothingYet(link)),
                }
            }
            Err(e @ (LinkError::Io(_) | LinkError::Closed)) if !link.has_received() => {
                Ok(Said::Lost(e))
            }
            Err(e) => Ok(Said::Nothing(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_keeps_its_counts_when_its_meta_servers_change() {
        let resolver = Resolver::start().unwrap();
        let query_timeout = Arc::new(QueryTimeout::new(Duration::from_secs(1)));
        let limits = UpstreamLimits { max_calls: 1 };
        let mut clusters = Clusters::new(Arc::new(Upstream { resolver, limits, query_timeout }));
        let mut get = |name: &str, addr: &str| {
            clusters.get(Record { cluster: name.to_owned(), meta_addrs: vec![addr.to_owned()] })
        };
        let old = get("c3", "h:1");
        old.stats.answers[0].add(7);
        let (new, other) = (get("c3", "h:2"), get("c4", "h:3"));
        drop(old);
        assert_eq!((new.stats.answers[0].get(), other.stats.answers[0].get()), (7, 0));
        drop(new);
        assert_eq!(get("c3", "h:4").stats.answers[0].get(), 0, "nobody remembers the old one");
    }
}
