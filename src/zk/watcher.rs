//! Thread `zk-watch`: the only writer of the routes when they come from ZooKeeper.
//!
//! ```text
//! misses ──┐                    ┌─▶ planner ─▶ Dial, Read, GiveUp ...
//! events ──┼─ select! ─ handle ─┤
//! dialed ──┤                    └─▶ routes: put, remove, names ─▶ Retry / Refuse jobs for who waited
//! time  ───┘
//! ```
//! It never does I/O itself, so nothing that ZooKeeper does can hold it up, and it holds queries that wait
//! for a table as values, until the table is read or their time is over.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};
use log::{error, info, warn};

use super::client::{Alive, Client, ClientEvent, ConnectOptions, Found, ReadError, Told, What};
use super::dial::{Dialed, Dialer, NoClient};
use super::lag::{LAG_LIMIT, Lag};
use super::planner::{Action, Planner, Verdict};
use super::routes::Routes;
use super::status::Status;
use crate::client::ask::Ask;
use crate::config::ZooKeeperSettings;
use crate::patience::SLICE;
use crate::route::table::RouteWriter;
use crate::upstream::cluster::{Clusters, Upstream};
use crate::wire::error_code::OwnError;
use crate::work::job::Job;
use crate::work::jobs::Jobs;

/// How often it is told that there is still no connection.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How long a table counts as unknown after ZooKeeper said so, while the names of all tables cannot
/// be read.
const ABSENT_FOR: Duration = Duration::from_secs(1);
/// Tables remembered as absent at most.
const MAX_ABSENT: usize = 10_000;

/// The running thread.
pub struct ZkWatch {
    stop: Sender<()>,
    thread: JoinHandle<()>,
    all_confirmed: Receiver<()>,
    status: Status,
}

impl ZkWatch {
    /// Starts it. `missed` are queries for tables that are not cached; they come back as `jobs`.
    pub fn start(
        settings: ZooKeeperSettings,
        writer: RouteWriter,
        clusters: Clusters,
        upstream: Arc<Upstream>,
        missed: Receiver<Ask>,
        jobs: Jobs<Job>,
    ) -> io::Result<Self> {
        let (stop, stopped) = bounded(0);
        let (confirmed, all_confirmed) = bounded(1);
        // Unbounded, so that no thread of the crate ever blocks on it; one watch per znode bounds it.
        let (events, told) = unbounded();
        let (dials, dialed) = unbounded();
        let options = ConnectOptions {
            root: settings.root.clone(),
            clusters_root: settings.clusters_root.clone(),
            timeout: settings.timeout,
            digest: settings.digest,
        };
        let alive: Alive = Arc::new(AtomicUsize::new(0));
        let dialer = Dialer { address: settings.address, options, upstream, events, alive };
        let routes = Routes::new(settings.root, settings.clusters_root, writer, clusters);
        let status = Status::new(settings.timeout);
        let shown = status.clone();
        let mut watch = Watch::new(routes, dialer, dials, jobs, settings.preload, confirmed, shown);
        let thread = thread::Builder::new()
            .name("zk-watch".to_owned())
            .spawn(move || watch.run_on(|watch| watch.run(&missed, &told, &dialed, &stopped)))?;
        Ok(ZkWatch { stop, thread, all_confirmed, status })
    }

    /// How it stands.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Waits until ZooKeeper has confirmed all routes that were there at start; false: not within `limit`.
    pub fn wait_until_confirmed(&self, limit: Duration) -> bool {
        self.all_confirmed.recv_timeout(limit).is_ok()
    }

    /// Ends the thread.
    pub fn stop(self) {
        drop(self.stop);
        let _ = self.thread.join();
    }
}

struct Watch {
    routes: Routes,
    jobs: Jobs<Job>,
    dialer: Dialer,
    dials: Sender<Dialed>,
    planner: Planner,
    client: Option<Client>,
    /// The server of the client given up last.
    avoid: Option<SocketAddr>,
    /// The last generation whose client has answered anything.
    greeted: u64,
    lag: Lag,
    /// Bounded by `limits.max_pending`, as all queries are.
    waiting: HashMap<Box<str>, Vec<Ask>>,
    absent: HashMap<Box<str>, Instant>,
    /// When it was last told that there is no connection.
    told_at: Option<Instant>,
    /// All tables are to be cached, those that there are when a client comes.
    preloads: bool,
    /// The current client has yet to do so.
    preload_is_due: bool,
    /// Told when all routes that were cached at start are confirmed.
    confirmed: Sender<()>,
    status: Status,
}

impl Watch {
    /// With no client yet.
    fn new(
        routes: Routes,
        dialer: Dialer,
        dials: Sender<Dialed>,
        jobs: Jobs<Job>,
        preloads: bool,
        confirmed: Sender<()>,
        status: Status,
    ) -> Self {
        let seed = RandomState::new().hash_one(std::process::id());
        Watch {
            routes,
            jobs,
            dialer,
            dials,
            planner: Planner::new(Instant::now(), seed),
            client: None,
            avoid: None,
            greeted: 0,
            lag: Lag::default(),
            waiting: HashMap::new(),
            absent: HashMap::new(),
            told_at: None,
            preloads,
            preload_is_due: false,
            confirmed,
            status,
        }
    }

    /// Runs until that returns, also through a panic, which is a fault of ours: without this thread routes would be
    /// served for ever that nobody knows to be old.
    fn run_on(&mut self, mut run: impl FnMut(&mut Self)) {
        while catch_unwind(AssertUnwindSafe(|| run(self))).is_err() {
            self.start_over();
        }
    }

    /// What was going on is given up. All that is cached serves on, and is read again by a new client.
    fn start_over(&mut self) {
        error!("zk-watch panicked, and starts over");
        let action = self.planner.doubt("zk-watch panicked".to_owned(), Instant::now());
        self.act(action, Instant::now());
        self.status.down("zk-watch panicked");
        self.routes.forget_named();
        let asks: Vec<Ask> = self.waiting.drain().flat_map(|(_, asks)| asks).collect();
        self.jobs.send(Job::Refuse(asks, OwnError::Unavailable));
    }

    fn run(
        &mut self,
        missed: &Receiver<Ask>,
        told: &Receiver<ClientEvent>,
        dialed: &Receiver<Dialed>,
        stopped: &Receiver<()>,
    ) {
        let mut next_expiry = Instant::now();
        loop {
            let now = Instant::now();
            while let Some(action) = self.planner.next_action(now) {
                self.act(action, now);
            }
            if next_expiry <= now {
                self.expire(now);
                next_expiry = now + SLICE / 2;
            }
            let mut wake_at = self.planner.wake_at();
            if !self.waiting.is_empty() {
                wake_at = wake_at.min(next_expiry);
            }
            let timer = crossbeam_channel::at(wake_at);
            select! {
                recv(told) -> event => event.into_iter().for_each(|event| self.hear(event)),
                recv(missed) -> ask => match ask {
                    Ok(ask) => self.miss(ask),
                    Err(_) => return,
                },
                recv(dialed) -> dialed => dialed.into_iter().for_each(|dialed| self.dialed(dialed)),
                recv(timer) -> _ => {}
                recv(stopped) -> _ => return,
            }
        }
    }

    fn act(&mut self, action: Action, now: Instant) {
        match action {
            Action::Dial(generation) => {
                let (newest_zxid, dials) = (self.routes.newest_zxid(), self.dials.clone());
                if let Err(e) = self.dialer.start(generation, self.avoid, newest_zxid, dials) {
                    let client = Err(e.to_string().into());
                    self.dialed(Dialed { generation, client });
                }
            }
            Action::GiveUp(why) => self.give_up(&why),
            Action::Read(what) => {
                let is_taken = self.client.as_ref().is_some_and(|client| client.read(what));
                if !is_taken {
                    let action = self.planner.doubt("its readers are stuck".to_owned(), now);
                    self.act(action, now);
                }
            }
            Action::StartSweep => {
                self.routes.forget_unnamed();
                self.planner.sweep(self.routes.by_use());
                let clusters = self.routes.named_clusters();
                clusters.into_iter().for_each(|what| self.planner.changed(what));
            }
            Action::AllConfirmed(took) => {
                let cached = self.routes.cached();
                if cached > 0 {
                    info!("zookeeper: all {cached} cached routes are confirmed, took={took:?}");
                }
                self.lag.ended();
                self.routes.all_confirmed();
                self.status.confirmed();
                let _ = self.confirmed.try_send(());
            }
        }
    }

    fn give_up(&mut self, why: &str) {
        self.routes.lost_client();
        self.absent.clear();
        let Some(client) = self.client.take() else {
            return;
        };
        let cached = self.routes.cached();
        let addr = client.server.addr;
        warn!("zookeeper: {addr} given up: {why}; {cached} cached routes serve on, maybe stale");
        self.avoid = Some(addr);
        self.status.down(&format!("{addr} given up: {why}"));
    }

    fn dialed(&mut self, dialed: Dialed) {
        let now = Instant::now();
        if !self.planner.awaits(dialed.generation) {
            return;
        }
        match dialed.client {
            Ok(client) => {
                self.status.connected(client.server.addr);
                self.told_at = None;
                self.preload_is_due = self.preloads;
                self.routes.new_client(client.server.zxid);
                self.client = Some(client);
                let missing = self.waiting.keys().cloned().collect();
                self.planner.dialed(self.routes.by_use(), missing, now);
                let clusters = self.routes.named_clusters();
                clusters.into_iter().for_each(|what| self.planner.changed(what));
            }
            Err(NoClient { why, lags }) => {
                // An outage of hours is tried every second and told now and then.
                if self.told_at.is_none_or(|at| now >= at + TELL_EVERY) {
                    self.told_at = Some(now);
                    let cached = self.routes.cached();
                    warn!("zookeeper: no connection, {cached} cached routes serve: {why}");
                }
                self.status.down(&why);
                self.planner.dial_failed(now);
                if lags { self.lags(now) } else { self.lag.ended() }
            }
        }
    }

    fn miss(&mut self, ask: Ask) {
        let now = Instant::now();
        if self.routes.has(&ask.table) {
            self.jobs.send(Job::Retry(vec![ask]));
        } else if !self.routes.names_are_readable()
            && self.absent.get(&ask.table).is_some_and(|until| now < *until)
        {
            self.jobs.send(Job::Refuse(vec![ask], OwnError::UnknownTable));
        } else {
            let waiting = self.waiting.entry(ask.table.clone()).or_default();
            // Misses of one table share one read.
            if waiting.is_empty() {
                self.planner.miss(&ask.table);
            }
            waiting.push(ask);
        }
    }

    /// Those whose time is over are told so; a table that nobody waits for then is not read.
    fn expire(&mut self, now: Instant) {
        let mut expired = Vec::new();
        self.waiting.retain(|_, asks| {
            expired.extend(asks.extract_if(.., |ask| ask.deadline <= now || ask.is_gone()));
            !asks.is_empty()
        });
        if !expired.is_empty() {
            self.planner.keep_misses(|table| self.waiting.contains_key(table));
            self.jobs.send(Job::Refuse(expired, OwnError::Unavailable));
        }
    }

    fn hear(&mut self, event: ClientEvent) {
        let now = Instant::now();
        if self.planner.live() != Some(event.generation) {
            return;
        }
        match event.told {
            Told::Doubt(why) => {
                let action = self.planner.doubt(why, now);
                self.act(action, now);
            }
            Told::Changed(path) => match self.routes.what_is(&path) {
                Some(what) => {
                    self.routes.changed(&what, now);
                    self.planner.changed(what);
                }
                None => warn!("zookeeper: a watch told of {path}, which is not watched"),
            },
            Told::Read(_, Err(ReadError::Lost(why))) => {
                let action = self.planner.doubt(why, now);
                self.act(action, now);
            }
            Told::Read(what, found) => {
                self.greet(event.generation);
                self.take(what, found, now);
            }
        }
    }

    fn greet(&mut self, generation: u64) {
        if let Some(client) = &self.client
            && mem::replace(&mut self.greeted, generation) != generation
        {
            let cached = self.routes.cached();
            let timeout = self.status.greeted().map(|session| session.timeout);
            info!(
                "zookeeper: connected to {}, session_timeout={:?}, {cached} cached routes to confirm",
                client.server.addr,
                timeout.unwrap_or_default()
            );
        }
    }

    /// No server is in reach but ones that lag.
    fn lags(&mut self, now: Instant) {
        if self.lag.seen(now) {
            warn!(
                "zookeeper: no server knows what was seen before, for {LAG_LIMIT:?}: it was set up anew, and is taken \
                 as it is now"
            );
            self.routes.set_up_anew();
        }
    }

    fn take(&mut self, what: What, found: Result<Found, ReadError>, now: Instant) {
        let is_wanted = self.planner.wants(&what);
        let taken = match self.routes.take(&what, found, is_wanted) {
            Ok(taken) => taken,
            Err(why) => {
                let action = self.planner.doubt(why, now);
                self.act(action, now);
                return self.lags(now);
            }
        };
        let is_names = what == What::Names;
        let own = match &what {
            What::Table(table) if taken.verdict != Verdict::Waits => Some(table.clone()),
            _ => None,
        };
        if self.planner.done(what, taken.verdict, now) {
            let known = taken.known.iter().chain(&own);
            known.for_each(|table| self.planner.confirmed(table, now));
        }
        for table in taken.known {
            if let Some(asks) = self.waiting.remove(&table) {
                self.jobs.send(Job::Retry(asks));
            }
        }
        if let Some(table) = taken.gone {
            if let Some(asks) = self.waiting.remove(&table) {
                self.jobs.send(Job::Refuse(asks, OwnError::UnknownTable));
            }
            if self.absent.len() >= MAX_ABSENT {
                self.absent.clear();
            }
            self.absent.insert(table, now + ABSENT_FOR);
        }
        if is_names {
            self.absent.clear();
            if mem::take(&mut self.preload_is_due) {
                self.planner.preload(self.routes.names_to_preload());
            }
        }
        taken.read.into_iter().for_each(|what| self.planner.changed(what));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UpstreamLimits;
    use crate::patience::QueryTimeout;
    use crate::route::table::{Cached, RouteTable};
    use crate::upstream::resolver::Resolver;
    use crate::zk::status::Trust;

    #[test]
    fn after_a_panic_it_starts_over_and_all_that_is_cached_is_stale() {
        let upstream = Arc::new(Upstream {
            resolver: Resolver::start().unwrap(),
            limits: UpstreamLimits { max_calls: 1 },
            query_timeout: Arc::new(QueryTimeout::new(Duration::from_secs(1))),
        });
        let (table, writer) = RouteTable::new(10);
        writer.put("orders", Cached::Unusable);
        writer.trust();
        writer.confirm("orders");
        let clusters = Clusters::new(upstream.clone());
        let routes = Routes::new("/r".to_owned(), None, writer, clusters);
        let options = ConnectOptions {
            root: "/r".to_owned(),
            clusters_root: None,
            timeout: Duration::from_secs(6),
            digest: None,
        };
        let (events, alive) = (unbounded().0, Alive::default());
        let dialer = Dialer { address: Vec::new(), options, upstream, events, alive };
        let status = Status::new(Duration::from_secs(6));
        let (dials, confirmed, shown) = (unbounded().0, bounded(1).0, status.clone());
        let jobs = Jobs::default();
        let mut watch = Watch::new(routes, dialer, dials, jobs, false, confirmed, shown);
        let mut runs = 0;
        watch.run_on(|watch| {
            runs += 1;
            let now = Instant::now();
            if runs == 1 {
                assert_eq!(watch.planner.next_action(now), Some(Action::Dial(1)));
                watch.planner.dialed(watch.routes.by_use(), Vec::new(), now);
                watch.status.connected("127.0.0.1:1".parse().unwrap());
                watch.status.confirmed();
                assert!(!table.list()[0].is_stale);
                panic!("a fault of ours");
            }
            assert_eq!(watch.planner.live(), None);
            let later = now + Duration::from_secs(2);
            assert_eq!(watch.planner.next_action(later), Some(Action::Dial(2)));
        });
        assert_eq!(runs, 2);
        assert!(table.list()[0].is_stale);
        let view = status.view();
        assert_eq!((view.trust, view.fault.as_deref()), (Trust::Down, Some("zk-watch panicked")));
    }
}
