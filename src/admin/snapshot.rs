//! Reads the state of the parts of the proxy at one moment.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::bounded;
use parking_lot::Mutex;

use super::falcon;
use super::rates::{Rate, RecentLatency};
use super::verdict::{
    self, LostLines, MetaFailure, MetaProbe, Overview, Refusable, Refused, Shed, Upkeep,
};
use crate::age::Age;
use crate::client::hub::ClientHub;
use crate::config::Values;
use crate::logging;
use crate::metrics::{Metrics, Tally};
use crate::process::life::{Life, Phase};
use crate::route::hold::{Refusal, Shown};
use crate::route::state;
use crate::route::table::{Listed, RouteTable};
use crate::upstream::cluster::{Cluster, Probed, Server, State};
use crate::upstream::stats::Failures;
use crate::version;
use crate::wire::error_code::{COUNTED, ERR_OK};
use crate::work::job::Jobs;
use crate::zk::status::{Membership, Status, Trust};
use crate::zk::watcher::{Accept, Accepts};

/// Wait this long for `zk-watch` to decide an accept. It decides at once unless the machine is in trouble.
const ACCEPT_LIMIT: Duration = Duration::from_secs(2);

/// The parts of the proxy that the pages show.
pub struct Inside {
    pub metrics: Arc<Metrics>,
    pub hub: Arc<ClientHub>,
    pub jobs: Arc<Jobs>,
    pub routes: Arc<RouteTable>,
    /// ZooKeeper; `None` with a routes file.
    pub zookeeper: Option<Status>,
    /// Sends accepts to `zk-watch`; `None` with a routes file.
    pub accepts: Option<Accepts>,
    /// The state file, if there is one.
    pub state_file: Option<state::Status>,
    /// Age of the state file with which this proxy started.
    pub restored: Option<Age>,
    /// The settings file.
    pub settings: Mutex<SettingsFile>,
    /// Whether metrics have series by table.
    pub has_table_series: bool,
    /// When the proxy started, by the wall clock at that time.
    pub started: SystemTime,
    pub up: Age,
    /// The phase of the proxy.
    pub life: Arc<Life>,
    /// Rate of queries.
    pub rate: Mutex<Rate>,
    /// Rate of errors.
    pub error_rate: Mutex<Rate>,
    /// Recent latency.
    pub latency: Mutex<RecentLatency>,
}

impl Inside {
    /// Whether clients should use this proxy, or why not.
    pub fn is_ready(&self) -> Result<(), &'static str> {
        self.life.is_ready()?;
        if !self.routes.is_empty() {
            return Ok(());
        }
        let down = |status: &Status| status.view().trust == Trust::Down;
        let hold = self.routes.hold();
        match &self.zookeeper {
            Some(_) if hold.is_rootless => {
                Err("the root of the routes does not exist in ZooKeeper")
            }
            Some(_) if hold.shown.is_some() => Err("routes are held, and the proxy has no route"),
            Some(status) if !down(status) => Ok(()),
            _ => Err("the proxy has no routes"),
        }
    }

    /// Accepts a hold as an operator was shown it. `None`: there is no `zk-watch`, or it did not decide in time.
    pub fn accept(&self, czxid: i64, gone: usize) -> Option<Result<Shown, Refusal>> {
        let (answer, answered) = bounded(1);
        self.accepts.as_ref()?.send(Accept { czxid, gone, answer });
        answered.recv_timeout(ACCEPT_LIMIT).ok()
    }

    /// The present hold, for the pages.
    pub fn hold(&self) -> Option<verdict::Hold> {
        let view = self.routes.hold();
        let Shown { kind, since, root, gone } = view.shown?;
        Some(verdict::Hold {
            kind,
            since_s: since.elapsed().as_secs(),
            root: self.zookeeper.as_ref().map(|status| status.view().root).unwrap_or_default(),
            czxid: root.map(|root| format!("{:#x}", root.czxid)),
            ctime_ms: root.map(|root| root.ctime_ms),
            known_czxid: view.known.map(|root| format!("{:#x}", root.czxid)),
            held: if kind.is_of_root() { self.routes.len() } else { gone },
            gone,
        })
    }

    /// Time since the cached route of a table changed in this proxy; for a route from the state file, at most the age
    /// of that file.
    pub fn age(&self, listed: &Listed) -> Duration {
        let restored = self.restored.filter(|_| listed.confirmed.is_none());
        let restored = restored.map(Age::get);
        restored.unwrap_or_default().max(listed.changed)
    }

    /// The state of all parts now.
    pub fn overview(&self) -> Overview {
        let routes = self.routes.list();
        let (now, answered) = (Instant::now(), self.metrics.latency.get().0);
        let queries = answered.iter().sum();
        let clusters: Vec<verdict::Cluster> = clusters(&routes).into_iter().map(cluster).collect();
        let own: u64 = self.metrics.own_errors.all().map(|(_, n)| n.get()).sum();
        let errors = own + clusters.iter().map(|cluster| cluster.answers_other).sum::<u64>();
        Overview {
            host: falcon::host_name(),
            version: version::VERSION,
            up_s: self.up.get().as_secs(),
            life: match self.life.phase() {
                Phase::Starting => verdict::Life::Starting,
                Phase::Serving => verdict::Life::Serving,
                Phase::Draining => verdict::Life::Draining,
                Phase::Stopping { .. } => verdict::Life::Stopping,
            },
            zookeeper: self.zookeeper.as_ref().map(|status| self.zookeeper(status, &routes)),
            hold: self.hold(),
            clusters,
            routes: routes.iter().map(|listed| self.route(listed)).collect(),
            clients: verdict::Clients {
                connections: self.metrics.connections(),
                pending: self.hub.sums().pending(),
                unread_bytes: self.hub.sums().held_bytes(),
                queries,
                queries_per_s: self.rate.lock().tell(now, queries),
                errors_per_s: self.error_rate.lock().tell(now, errors),
                latency_us: self.latency.lock().tell(now, answered),
            },
            refused: refused(&self.metrics),
            upkeep: self.upkeep(),
        }
    }

    fn route(&self, listed: &Listed) -> verdict::Route {
        let route = listed.route.as_ref();
        let error = route.and_then(|route| route.cluster.stats.table_errors.get(&listed.table));
        verdict::Route {
            table: listed.table.to_string(),
            cluster: route.map(|route| route.cluster_name.clone()),
            fault: listed.fault.as_deref().map(str::to_owned),
            metas: route.map(|route| route.cluster.meta_addrs.clone()).unwrap_or_default(),
            zxid: match listed.record_zxid {
                0 => route.map_or(0, |route| route.mzxid),
                zxid => zxid,
            },
            written_s: written_s(listed.written_unix_ms),
            age_s: self.age(listed).as_secs(),
            confirmed_age_s: listed.confirmed.map(|span| span.as_secs()),
            source: match listed.confirmed {
                None => "state file",
                Some(_) if self.zookeeper.is_some() => "zookeeper",
                Some(_) => "file",
            },
            stale: listed.is_stale,
            held: listed.is_held,
            queries: listed.queries,
            reads: listed.reads,
            error: error.map(|error| error.err),
            error_s: error.map(|error| error.last.as_secs()),
            error_queries: error.map_or(0, |error| error.queries),
        }
    }

    fn zookeeper(&self, status: &Status, routes: &[Listed]) -> verdict::ZooKeeper {
        let view = status.view();
        let known = self.routes.hold().known;
        verdict::ZooKeeper {
            root: view.root,
            root_czxid: known.map(|root| format!("{:#x}", root.czxid)),
            root_ctime_ms: known.map(|root| root.ctime_ms),
            is_rootless: self.routes.hold().is_rootless,
            state: view.trust,
            since_s: view.since.elapsed().as_secs(),
            server: view.server.map(|server| server.to_string()),
            session: view.session.map(|session| format!("{:#x}", session.id)),
            asked_timeout_ms: view.asked_timeout.as_millis() as u64,
            granted_timeout_ms: view.session.map(|session| session.timeout.as_millis() as u64),
            rebuilds: view.built.saturating_sub(1),
            seen_zxid: view.seen_zxid,
            is_control_faulty: matches!(view.membership, Membership::Fault(_)),
            control: match view.membership {
                Membership::Off => None,
                Membership::Due => Some("due".to_owned()),
                Membership::Member => Some("member".to_owned()),
                Membership::Fault(why) => Some(why),
            },
            last_fault: view.fault,
            cached: routes.len(),
            unconfirmed: routes.iter().filter(|listed| listed.is_stale).count(),
            capacity: self.routes.capacity(),
            evicted: self.routes.evicted.get(),
            evicted_s: self.routes.evicted.last().map(|span| span.as_secs()),
        }
    }

    fn upkeep(&self) -> Upkeep {
        let upkeep = self.settings.lock();
        Upkeep {
            rejected_settings: upkeep
                .rejected
                .as_ref()
                .map(|(why, at)| (why.clone(), at.elapsed().as_secs())),
            waiting_settings: upkeep.waiting.clone(),
            state_file_fault: self.state_file.as_ref().and_then(|file| file.view().fault),
            falcon_fails: self.metrics.falcon_fails.load(Relaxed),
            lost_lines: logging::lost().map(|lost| LostLines {
                lines: lost.lines,
                why: lost.why,
                last_s: lost.at.elapsed().as_secs(),
            }),
        }
    }
}

/// The settings in use, and how the settings file differs.
#[derive(Default)]
pub struct SettingsFile {
    /// Why the last SIGHUP changed nothing, and when that was.
    pub rejected: Option<(String, Instant)>,
    /// Settings that wait for a restart.
    pub waiting: Vec<String>,
    /// The settings in use.
    pub running: Values,
    /// Limits in use, as far as the system allows them, by the name of the setting without its section.
    pub limits: Vec<(&'static str, u64)>,
}

fn refused(metrics: &Metrics) -> Vec<Refused> {
    let connections = metrics.refused.all().map(|(why, n)| (Refusable::Connection(why), n));
    // A failing cluster has its own line, which covers refused queries.
    let queries = metrics.shed.all().filter(|(why, _)| *why != Shed::FailingCluster);
    let queries = queries.map(|(why, n)| (Refusable::Query(why), n));
    let refused = |(what, n): (_, &Tally)| {
        Some(Refused { what, count: n.get(), last_s: n.last()?.as_secs() })
    };
    connections.chain(queries).filter_map(refused).collect()
}

/// A cluster that cached routes name.
pub struct Named {
    pub cluster: Arc<Cluster>,
    pub state: State,
    /// Number of tables whose routes name the cluster.
    pub tables: usize,
}

/// The clusters that routes name: failing ones first, then those with some failures, then slow ones, then by name.
pub fn clusters(routes: &[Listed]) -> Vec<Named> {
    let clusters = routes.iter().filter_map(|listed| listed.route.as_ref());
    let mut clusters: Vec<&Arc<Cluster>> = clusters.map(|route| &route.cluster).collect();
    clusters.sort_unstable_by_key(|cluster| Arc::as_ptr(cluster));
    let same = clusters.chunk_by(|a, b| Arc::ptr_eq(a, b));
    let mut named: Vec<Named> = same
        .map(|same| {
            let cluster = same[0].clone();
            Named { state: cluster.state(), cluster, tables: same.len() }
        })
        .collect();
    named.sort_by(|a, b| {
        let trouble = |of: &Named| (of.state.failing.is_some(), of.state.failures, of.state.usual);
        trouble(b).cmp(&trouble(a)).then_with(|| a.cluster.name.cmp(&b.cluster.name))
    });
    named
}

/// Time since `unix_ms` by the wall clock, the only clock that ZooKeeper and this host share.
fn written_s(unix_ms: i64) -> Option<u64> {
    let at = u64::try_from(unix_ms).ok().filter(|ms| *ms > 0)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Some(now.saturating_sub(Duration::from_millis(at)).as_secs())
}

fn cluster(named: Named) -> verdict::Cluster {
    let Named { cluster, state, tables } = named;
    let answers = || COUNTED.iter().zip(&cluster.stats.answers);
    let sum = |ok: bool| {
        answers().filter(|(err, _)| (**err == ERR_OK) == ok).map(|(_, count)| count.get()).sum()
    };
    let failure = |(meta, kind, failures): (SocketAddr, &'static str, Failures)| MetaFailure {
        meta: meta.to_string(),
        kind,
        count: failures.count,
        last_s: failures.last.elapsed().as_secs(),
    };
    let probe = |server: &Server| MetaProbe {
        meta: server.addr.to_string(),
        said: server.probed.map(Probed::name),
        since_s: server.since.as_secs(),
    };
    verdict::Cluster {
        name: cluster.name.clone(),
        metas: cluster.meta_addrs.clone(),
        tables,
        leader: state.leader.map(|leader| leader.to_string()),
        links: state.idle_links,
        calls: state.calls,
        waiting: state.waiting,
        failing_s: state.failing.map(|span| span.as_secs()),
        failures: state.failures,
        meta_failures: cluster.meta_failures().into_iter().map(failure).collect(),
        probes: state.servers.iter().map(probe).collect(),
        usual_us: state.usual.map(|usual| usual.as_micros() as u64),
        answers_ok: sum(true),
        answers_other: sum(false),
        unanswered: cluster.stats.unanswered.get(),
    }
}
