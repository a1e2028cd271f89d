//! Builds the parts in order, owns them, and stops them in reverse. Only this file knows all parts.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::unbounded;
use log::{error, info, warn};
use mio::{Poll, Waker};
use parking_lot::Mutex;

use crate::activity;
use crate::admin::endpoints::Pages;
use crate::admin::falcon::{self, Falcon, FalconOptions};
use crate::admin::http::Http;
use crate::admin::http_message::Request;
use crate::admin::metrics;
use crate::admin::rates::{Rate, RecentLatency};
use crate::admin::snapshot::{Inside, SettingsFile};
use crate::age::Age;
use crate::client::accept::{self, Acceptor, Parts};
use crate::client::hub::ClientHub;
use crate::client::listener::{self, Listener};
use crate::client::note::{Note, StopBy};
use crate::config::{AcceptLimits, MetricKind, MetricSettings, Settings, ZooKeeperSettings};
use crate::logging::line::Utc;
use crate::metrics::Metrics;
use crate::patience::QueryTimeout;
use crate::process::life::Life;
use crate::process::memory;
use crate::process::systemd::Given;
use crate::process::watchdog::Pulse;
use crate::query::router::Router;
use crate::route::control::Member;
use crate::route::file::RoutesFile;
use crate::route::state::{self, Origin, StateFile};
use crate::route::table::RouteTable;
use crate::upstream::cluster::Upstream;
use crate::upstream::registry::Clusters;
use crate::upstream::resolver::Resolver;
use crate::upstream::watch::{MetaWatch, Watching};
use crate::version::VERSION;
use crate::wire::host_port::HostPortFields;
use crate::work::job::Jobs;
use crate::work::worker::Workers;
use crate::zk::watcher::ZkWatch;

/// Where the routes come from.
pub enum Source {
    /// A file on this machine.
    File(PathBuf),
    ZooKeeper(ZooKeeperSettings),
}

/// Why the proxy does not start.
#[derive(Debug)]
pub enum StartError {
    /// The system refuses an operation: which one, and why.
    Io(&'static str, io::Error),
    /// The proxy cannot listen at this address.
    Listen(SocketAddr, io::Error),
    /// The routes file has these faults.
    Routes(Vec<String>),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Io(what, e) => write!(f, "{what}: {e}"),
            StartError::Listen(addr, e) => write!(f, "listen on {addr}: {e}"),
            StartError::Routes(faults) => f.write_str(&faults.join("\n")),
        }
    }
}

impl std::error::Error for StartError {}

/// The answers that a stop waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Queries under way and unsent answers.
    ForAnswers,
    /// Nothing.
    ForNobody,
}

enum RouteSource {
    File(RoutesFile),
    ZooKeeper(ZkWatch, Option<StateFile>),
}

/// At start, clients wait this long for ZooKeeper to confirm the routes of the state file. If ZooKeeper is down, the
/// proxy then serves from the file.
const CONFIRM_LIMIT: Duration = Duration::from_secs(1);

/// A stop waits for queries until this long after their deadline.
const QUERY_SLACK: Duration = Duration::from_millis(500);

/// The running proxy.
pub struct Server {
    addr: SocketAddr,
    life: Arc<Life>,
    inside: Arc<Inside>,
    query_timeout: Arc<QueryTimeout>,
    hub: Arc<ClientHub>,
    accept: JoinHandle<io::Result<()>>,
    workers: Workers,
    watching: Watching,
    source: RouteSource,
    admin: Option<Http>,
    falcon: Option<Falcon>,
}

impl Server {
    /// Starts all threads. When it returns, clients can connect, to the `given` sockets if there are some. Fails if the
    /// system refuses a socket or a thread, or the routes file has a fault. Calls `on_drained` when only
    /// [`Server::stop`] is left to do.
    pub fn start(
        settings: &Settings,
        source: Source,
        given: Given,
        on_drained: impl Fn() + Clone + Send + 'static,
    ) -> Result<Self, StartError> {
        memory::keep_freed();
        let io = |what| move |e| StartError::Io(what, e);
        let life = Arc::new(Life::new(settings.stop.clone()));
        let query_timeout = Arc::new(QueryTimeout::new(settings.query_timeout));

        let resolver = Resolver::start();
        // Pending queries and calls under way bound the number of jobs, and of misses.
        let jobs = Arc::new(Jobs::default());
        let metrics = Arc::new(Metrics::default());
        let (misses, missed) = unbounded();
        let capacity = match &source {
            Source::ZooKeeper(zookeeper) => zookeeper.cache_capacity,
            Source::File(_) => usize::MAX,
        };
        let (routes, writer) = RouteTable::new(capacity);
        let shown_routes = routes.clone();
        let watch = Arc::new(MetaWatch::new());
        let weak: Weak<RouteTable> = Arc::downgrade(&routes);
        let upstream = Arc::new(Upstream {
            resolver,
            limits: settings.upstream.clone(),
            query_timeout: query_timeout.clone(),
            metrics: metrics.clone(),
            work: jobs.clone(),
            routes: weak,
            watch: watch.clone(),
        });
        let watching =
            watch.start(settings.upstream.probe_interval).map_err(io("start meta-watch"))?;
        let mut clusters = Clusters::new(upstream.clone());
        // With a routes file all tables are known, so no query goes to `missed` and no thread reads it.
        let source = match source {
            Source::File(path) => RoutesFile::start(path, writer, clusters)
                .map(RouteSource::File)
                .map_err(StartError::Routes)?,
            Source::ZooKeeper(zookeeper) => {
                let path = zookeeper.state_file.clone();
                let origin = origin(&zookeeper);
                let loaded = path
                    .as_ref()
                    .map(|path| state::load(path, &origin, &writer, &mut clusters))
                    .unwrap_or_default();
                // The state file does not have changes in ZooKeeper from here on.
                let written = routes.version();
                let has_old_routes = !writer.is_empty();
                let watch =
                    ZkWatch::start(zookeeper, writer, clusters, upstream, missed, jobs.clone())
                        .map_err(io("start zk-watch"))?;
                if has_old_routes && !watch.wait_until_confirmed(CONFIRM_LIMIT) {
                    warn!(
                        "ZooKeeper has not confirmed the routes of the state file, the proxy serves them"
                    );
                }
                let keeper = path
                    .map(|path| StateFile::start(path, origin, loaded, routes.clone(), written))
                    .transpose()
                    .map_err(io("start state-file"))?;
                RouteSource::ZooKeeper(watch, keeper)
            }
        };
        let (timeout, count) = (query_timeout.clone(), metrics.clone());
        let router = Arc::new(Router::new(routes, misses, jobs.clone(), count, timeout));
        let workers =
            Workers::start(settings.workers, jobs.clone(), &router).map_err(io("start workers"))?;

        let poll = Poll::new().map_err(io("epoll"))?;
        let waker = Waker::new(poll.registry(), accept::WAKER).map_err(io("eventfd"))?;
        let (notes, noted) = unbounded();
        let registry = poll.registry().try_clone().map_err(io("epoll"))?;
        let hub = Arc::new(ClientHub::new(notes, waker, registry, metrics.clone()));
        let is_lent = given.clients.is_some();
        let socket = given
            .clients
            .map_or_else(|| listener::bind(settings.listen), Ok)
            .map_err(|e| StartError::Listen(settings.listen, e))?;
        let addr = socket.local_addr().map_err(io("getsockname"))?;
        let listener = Listener::new(socket, is_lent, HostPortFields::Keep);
        let mut listeners = vec![listener.map_err(io("listener"))?];
        for further in &settings.listeners {
            let socket = listener::bind(further.listen);
            let socket = socket.map_err(|e| StartError::Listen(further.listen, e))?;
            let at = socket.local_addr().map_err(io("getsockname"))?;
            info!("listening also on {at}, host_port_fields: {}", further.host_port_fields.name());
            let listener = Listener::new(socket, false, further.host_port_fields);
            listeners.push(listener.map_err(io("listener"))?);
        }
        let fitted = fit_to_descriptors(&settings.accept);
        let acceptor = Acceptor::new(Parts {
            poll,
            listeners,
            limits: fitted.clone(),
            client_limits: Arc::new(settings.client.clone()),
            life: life.clone(),
            on_drained: Box::new(on_drained.clone()),
            hub: hub.clone(),
            notes: noted,
            jobs: jobs.clone(),
        })
        .map_err(io("epoll"))?;
        let accept = thread::Builder::new()
            .name("accept".to_owned())
            .spawn(move || accept_or_stop(acceptor, on_drained))
            .map_err(io("start accept"))?;
        let (zookeeper, accepts, state_file) = match &source {
            RouteSource::ZooKeeper(watch, keeper) => {
                let keeper = keeper.as_ref().map(|keeper| keeper.status().clone());
                (Some(watch.status().clone()), Some(watch.accepts()), keeper)
            }
            RouteSource::File(_) => (None, None, None),
        };
        let inside = Arc::new(Inside {
            metrics,
            hub: hub.clone(),
            jobs,
            routes: shown_routes,
            zookeeper,
            accepts,
            restored: state_file.as_ref().and_then(|file| file.view().written),
            state_file,
            settings: Mutex::new(SettingsFile {
                running: settings.values.clone(),
                limits: limits_in_use(settings, &fitted),
                ..SettingsFile::default()
            }),
            has_table_series: settings.metric.by_table,
            started: SystemTime::now(),
            up: Age::zero(),
            life: life.clone(),
            rate: Mutex::new(Rate::new(Instant::now())),
            error_rate: Mutex::new(Rate::new(Instant::now())),
            latency: Mutex::new(RecentLatency::new(Instant::now())),
        });
        let falcon = start_falcon(&inside, &settings.metric)?;
        let pages = Pages { inside: inside.clone(), labels: settings.metric.labels() };
        let admin = start_admin(settings.admin, given.admin, pages)?;
        if let RouteSource::ZooKeeper(watch, _) = &source {
            watch.serves(member(settings, addr, admin.as_ref().map(Http::addr)));
        }
        let wakes = hub.clone();
        life.serve(move || wakes.tell(Note::Life));
        // The proxy is ready once this line is logged.
        info!("listening on {addr}, {} workers", settings.workers);
        Ok(Server {
            addr,
            life,
            inside,
            query_timeout,
            hub,
            accept,
            workers,
            watching,
            source,
            admin,
            falcon,
        })
    }

    /// The phase of the proxy.
    pub fn life(&self) -> &Arc<Life> {
        &self.life
    }

    /// The heartbeat for the watchdog.
    pub fn pulse(&self) -> Pulse {
        Pulse::new(self.hub.clone())
    }

    /// Begins an orderly stop: clients leave. If another process also serves the pages, this one closes its pages,
    /// because they would show the readiness of a process that stops.
    pub fn leave(&mut self) {
        self.life.stop();
        if self.admin.as_ref().is_some_and(|admin| listener::is_shared(admin.addr())) {
            self.admin.take().into_iter().for_each(Http::stop);
        }
    }

    /// Takes over the settings that can change, see `reload`. New limits apply to clients that connect later.
    pub fn apply(&self, settings: &Settings) {
        self.query_timeout.set(settings.query_timeout);
        let limits = fit_to_descriptors(&settings.accept);
        let mut shown = self.inside.settings.lock();
        shown.limits = limits_in_use(settings, &limits);
        shown.running = settings.values.clone();
        drop(shown);
        self.hub.tell(Note::Limits(limits, Arc::new(settings.client.clone())));
        self.life.set(settings.stop.clone());
        if let (RouteSource::ZooKeeper(watch, keeper), Some(zookeeper)) =
            (&self.source, &settings.zookeeper)
        {
            watch.apply(zookeeper.clone());
            keeper.iter().for_each(|keeper| keeper.set_origin(origin(zookeeper)));
        }
    }

    /// Records that a SIGHUP changed nothing, because the settings file has this fault.
    pub fn reject_settings(&self, fault: String) {
        self.inside.settings.lock().rejected = Some((fault, Instant::now()));
    }

    /// Records that the settings file is good, and that these settings wait for a restart.
    pub fn accept_settings(&self, waiting: Vec<String>) {
        let mut settings = self.inside.settings.lock();
        (settings.rejected, settings.waiting) = (None, waiting);
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Accepts and reads no client any more. Answers queries under way, and waits for clients that take their unsent
    /// answers, for the grace time at most. Then closes all connections.
    pub fn end_clients(&self, wait: Wait) {
        let now = Instant::now();
        let answered = now + self.query_timeout.get() + QUERY_SLACK;
        let by = match wait {
            Wait::ForAnswers => StopBy { answered, taken: answered.max(self.life.grace_end(now)) },
            Wait::ForNobody => StopBy { answered: now, taken: now },
        };
        self.hub.tell(Note::Stop(by));
    }

    /// Ends all threads, clients first, see [`Server::end_clients`]. False: the accept loop had failed.
    pub fn stop(self) -> bool {
        self.end_clients(Wait::ForAnswers);
        let is_good = self.accept.join().is_ok_and(|ran| ran.is_ok());
        self.workers.stop();
        self.watching.stop();
        match self.source {
            RouteSource::File(file) => file.stop(),
            RouteSource::ZooKeeper(watch, keeper) => {
                watch.stop();
                keeper.into_iter().for_each(StateFile::stop);
            }
        }
        // Stop the pages last, so that operators can watch the stop.
        self.admin.into_iter().for_each(Http::stop);
        self.falcon.into_iter().for_each(Falcon::stop);
        is_good
    }
}

fn start_falcon(
    inside: &Arc<Inside>,
    settings: &MetricSettings,
) -> Result<Option<Falcon>, StartError> {
    if settings.kind != MetricKind::Falcon {
        return Ok(None);
    }
    let options = FalconOptions {
        agent: settings.falcon_agent,
        step: settings.falcon_step,
        endpoint: falcon::host_name(),
        tags: settings.tags.clone(),
    };
    let (inside, counts) = (inside.clone(), inside.metrics.clone());
    let gather = move || metrics::gather(&inside);
    let pushed = move |is_good: bool| {
        counts.falcon_fails.store(!is_good, Relaxed);
        counts.falcon_failures.add(u64::from(!is_good));
    };
    let falcon = Falcon::start(options, gather, pushed);
    falcon.map(Some).map_err(|e| StartError::Io("start falcon", e))
}

/// The entry of this proxy below the control znode.
fn member(settings: &Settings, clients: SocketAddr, pages: Option<SocketAddr>) -> Member {
    let host = falcon::host_name();
    let pages = pages.map(|at| match (&settings.advertise, at.ip().is_unspecified()) {
        (Some(advertise), _) => advertise.clone(),
        (None, true) => format!("{host}:{}", at.port()),
        (None, false) => at.to_string(),
    });
    let started = Utc::now().0.as_millis();
    let id = format!("{host}-{}-{started}", std::process::id());
    Member { id, pages, listen: clients.to_string(), version: VERSION.to_owned(), host }
}

/// Starts the pages at the address of the settings, or at the socket that the service manager has opened.
fn start_admin(
    addr: Option<SocketAddr>,
    given: Option<TcpListener>,
    pages: Pages,
) -> Result<Option<Http>, StartError> {
    let bind = |addr| listener::bind(addr).map_err(|e| StartError::Listen(addr, e));
    let Some(listener) = given.map(Ok).or_else(|| addr.map(bind)).transpose()? else {
        return Ok(None);
    };
    let admin = Http::start(listener, Arc::new(move |request: &Request| pages.answer(request)));
    let admin = admin.map_err(|e| StartError::Io("start admin", e))?;
    info!("pages for operators at http://{}/", admin.addr());
    Ok(Some(admin))
}

/// The origin of the routes in the state file.
fn origin(settings: &ZooKeeperSettings) -> Origin {
    Origin { root: settings.root.clone(), zookeeper: settings.address.clone() }
}

/// Limits by the name of their setting, for the metrics.
fn limits_in_use(settings: &Settings, accept: &AcceptLimits) -> Vec<(&'static str, u64)> {
    let client = &settings.client;
    let mut limits = vec![
        ("max_connections", accept.max_connections as u64),
        ("max_connections_per_address", accept.max_connections_per_address as u64),
        ("max_pending", client.max_pending_total as u64),
        ("max_pending_per_client", client.max_pending.into()),
        ("max_unread_total_bytes", client.max_unread_total_bytes as u64),
        ("workers", settings.workers as u64),
    ];
    let cache = settings.zookeeper.as_ref().map(|zookeeper| zookeeper.cache_capacity as u64);
    limits.extend(cache.map(|capacity| ("table_watcher_cache_capacity", capacity)));
    limits
}

/// Runs the accept loop. If it fails, the proxy cannot serve: it stops in order, and the service manager restarts it.
fn accept_or_stop(acceptor: Acceptor, on_drained: impl Fn()) -> io::Result<()> {
    activity::now("polls the sockets of clients", &[]);
    let ran = acceptor.run();
    if let Err(e) = &ran {
        error!("the accept loop failed: {e}");
    }
    on_drained();
    ran
}

/// Raises the limit of descriptors as far as possible, and reserves some: without a descriptor for a MetaServer or
/// ZooKeeper, a client connection is of no use.
fn fit_to_descriptors(limits: &AcceptLimits) -> AcceptLimits {
    let wanted = limits.max_connections;
    let limit = match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
        Err(e) => {
            warn!("cannot raise RLIMIT_NOFILE: {e}");
            rlimit::Resource::NOFILE.get_soft().map_or(1024, |limit| limit as usize)
        }
    };
    let own = (limit / 4).min(1024);
    let room = limit.saturating_sub(own).max(1);
    if room < wanted {
        warn!(
            "max_connections is {room}, not {wanted}: RLIMIT_NOFILE {limit} has no room for more"
        );
    }
    AcceptLimits { max_connections: wanted.min(room), ..limits.clone() }
}
