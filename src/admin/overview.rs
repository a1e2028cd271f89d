//! The state of the proxy as plain values, for the status page and the JSON pages. Pure.
//!
//! `snapshot` fills it from the parts of the proxy; `verdict` decides what it means for an operator.

use serde::Serialize;

pub use crate::metrics::{Refusal, Shed};
pub use crate::route::hold::Kind;
pub use crate::zk::status::Trust;

/// The state at one moment.
#[derive(Clone, Debug)]
pub struct Overview {
    /// Name of the host.
    pub host: String,
    /// Version of the proxy.
    pub version: &'static str,
    /// Time since the proxy started.
    pub up_s: u64,
    /// Phase of the process.
    pub life: Life,
    /// The state of ZooKeeper; `None` with a routes file.
    pub zookeeper: Option<ZooKeeper>,
    /// The hold, if there is one.
    pub hold: Option<Hold>,
    /// The clusters that routes name.
    pub clusters: Vec<Cluster>,
    /// The cached routes.
    pub routes: Vec<Route>,
    /// Connections and queries of clients.
    pub clients: Clients,
    /// Refusals since the start.
    pub refused: Vec<Refused>,
    /// Work for which no query waits.
    pub upkeep: Upkeep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// The proxy is not ready for clients yet.
    Starting,
    Serving,
    /// The proxy serves, but clients should use other proxies.
    Draining,
    /// The proxy only finishes the queries under way.
    Stopping,
}

/// Held routes: the proxy serves them although ZooKeeper does not have them any more.
#[derive(Clone, Debug, Serialize)]
pub struct Hold {
    pub kind: Kind,
    /// How long the hold has lasted, in seconds.
    pub since_s: u64,
    /// The znode above the tables.
    pub root: String,
    /// czxid of the present root; `None`: the root is missing.
    pub czxid: Option<String>,
    /// When that root was created, ms since 1970.
    pub ctime_ms: Option<i64>,
    /// czxid of the root whose routes are held.
    pub known_czxid: Option<String>,
    /// Number of held tables.
    pub held: usize,
    /// Number of tables that an accept removes.
    pub gone: usize,
}

#[derive(Clone, Debug, Serialize)]
pub struct ZooKeeper {
    /// The znode above the tables.
    pub root: String,
    /// czxid of the root whose routes are cached, if known; proxies of one ZooKeeper show equal values.
    pub root_czxid: Option<String>,
    /// When that root was created, ms since 1970.
    pub root_ctime_ms: Option<i64>,
    /// Whether the root does not exist.
    #[serde(skip)]
    pub is_rootless: bool,
    /// Whether the proxy notices changes.
    pub state: Trust,
    /// How long the state has lasted, in seconds.
    pub since_s: u64,
    /// The server, while there is a connection.
    pub server: Option<String>,
    /// The session, as ZooKeeper's tools show it.
    pub session: Option<String>,
    /// The session time-out that the proxy asks for.
    pub asked_timeout_ms: u64,
    /// The session time-out that the server granted.
    pub granted_timeout_ms: Option<u64>,
    /// Number of connections after the first.
    pub rebuilds: u64,
    /// zxid of the server's last answer over this connection.
    pub seen_zxid: i64,
    /// `member`, `due`, or why the route tool does not find this proxy; `None`: there is no control znode.
    pub control: Option<String>,
    /// Whether the route tool does not find this proxy because of a fault.
    #[serde(skip)]
    pub is_control_faulty: bool,
    /// Why the last connection ended, or could not be made.
    pub last_fault: Option<String>,
    /// Number of cached tables.
    pub cached: usize,
    /// Number of cached tables that are not confirmed since the connection was lost.
    pub unconfirmed: usize,
    /// Number of tables that the cache can hold.
    pub capacity: usize,
    /// Tables evicted since the start.
    pub evicted: u64,
    /// Time since the last eviction.
    pub evicted_s: Option<u64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Cluster {
    pub name: String,
    pub metas: Vec<String>,
    /// Number of tables whose routes name the cluster.
    pub tables: usize,
    /// The leader, if known.
    pub leader: Option<String>,
    /// Idle links.
    pub links: usize,
    /// Calls under way.
    pub calls: usize,
    /// Queries that wait for calls.
    pub waiting: usize,
    /// For how long the cluster has been failing, in seconds; the proxy refuses its queries and only probes it.
    pub failing_s: Option<u64>,
    /// Calls that failed since the last answer.
    pub failures: u32,
    /// Failures since the start.
    pub meta_failures: Vec<MetaFailure>,
    /// Answers of the MetaServers to probes.
    pub probes: Vec<MetaProbe>,
    /// Recent answer time.
    pub usual_us: Option<u64>,
    /// Answers ERR_OK since the start.
    pub answers_ok: u64,
    /// Other answers since the start.
    pub answers_other: u64,
    /// Queries that the proxy answered ERR_SERVICE_NOT_ACTIVE because no MetaServer answered.
    pub unanswered: u64,
}

/// A MetaServer's answer to the last probe.
#[derive(Clone, Debug, Serialize)]
pub struct MetaProbe {
    pub meta: String,
    /// `leader`, `follower`, or why there was no answer; `None`: not probed yet.
    pub said: Option<&'static str>,
    /// For how long it has given this answer.
    pub since_s: u64,
}

/// Failures of a MetaServer of one kind.
#[derive(Clone, Debug, Serialize)]
pub struct MetaFailure {
    pub meta: String,
    /// `refused`, `timeout`, ...
    pub kind: &'static str,
    /// Number since the start.
    pub count: u64,
    pub last_s: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Route {
    pub table: String,
    /// Name of the cluster; `None`: the proxy has never read a usable record.
    pub cluster: Option<String>,
    /// Why the present record is unusable; `cluster` is then that of the last good one.
    pub fault: Option<String>,
    /// MetaServers of the cluster.
    pub metas: Vec<String>,
    /// zxid of the change that wrote the present record, usable or not.
    pub zxid: i64,
    /// Time since that change, by the clocks of ZooKeeper and of this host.
    pub written_s: Option<u64>,
    /// Time since the route changed in this proxy.
    pub age_s: u64,
    /// Time since a read confirmed the route, if one has.
    pub confirmed_age_s: Option<u64>,
    /// `zookeeper`, `state file`, `file`.
    pub source: &'static str,
    /// Whether the route may have changed unseen.
    pub stale: bool,
    /// Whether the proxy serves the table although its record or the root is gone.
    pub held: bool,
    /// Queries for the table since it was cached.
    pub queries: u64,
    /// ZooKeeper reads for the table since it was cached.
    pub reads: u64,
    /// The last answer of the cluster, if it was an error.
    pub error: Option<&'static str>,
    /// Time since the last such answer.
    pub error_s: Option<u64>,
    /// Number of such answers in a row.
    pub error_queries: u64,
}

/// Connections and queries of clients.
#[derive(Clone, Debug)]
pub struct Clients {
    pub connections: u64,
    /// Queries under way.
    pub pending: usize,
    /// Bytes held for clients: unsent answers and unfinished requests.
    pub unread_bytes: usize,
    /// Queries since the start.
    pub queries: u64,
    /// Recent queries per second, see `rates`.
    pub queries_per_s: f64,
    /// Recent answers other than ERR_OK per second.
    pub errors_per_s: f64,
    /// Median and 99th percentile of recent answer times.
    pub latency_us: Option<(u64, u64)>,
}

/// Refusals of clients.
#[derive(Clone, Debug)]
pub struct Refused {
    /// The refused thing, and why.
    pub what: Refusable,
    /// Number since the start.
    pub count: u64,
    pub last_s: u64,
}

#[derive(Clone, Copy, Debug)]
pub enum Refusable {
    Connection(Refusal),
    Query(Shed),
}

/// Work beside queries: no query waits for it, but an operator needs it later.
#[derive(Clone, Debug, Default)]
pub struct Upkeep {
    /// Why the last SIGHUP changed nothing, and how long ago, in seconds.
    pub rejected_settings: Option<(String, u64)>,
    /// Changed settings that wait for a restart.
    pub waiting_settings: Vec<String>,
    /// Why the state file cannot be written.
    pub state_file_fault: Option<String>,
    /// Whether the last push to the falcon agent failed.
    pub falcon_fails: bool,
    pub lost_lines: Option<LostLines>,
}

#[derive(Clone, Debug)]
pub struct LostLines {
    /// Number since the start.
    pub lines: u64,
    /// Why the last lines were lost.
    pub why: String,
    /// Time since the last lines were lost.
    pub last_s: u64,
}
