//! How the proxy is doing, as plain values: what the status page shows and the JSON pages print. Pure.
//!
//! Whoever fills it only reads what the proxy knows; `verdict` decides what that means for an operator.

use serde::Serialize;

pub use crate::metrics::{Refusal, Shed};
pub use crate::route::hold::Kind;
pub use crate::zk::status::Trust;

/// Everything at one moment.
#[derive(Clone, Debug)]
pub struct Overview {
    /// Name of the host.
    pub host: String,
    /// Version of the proxy.
    pub version: &'static str,
    /// Time since the proxy started.
    pub up_s: u64,
    /// Where the process is in its life.
    pub life: Life,
    /// How it stands with ZooKeeper; nothing with a routes file.
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
    /// How it stands with what no query waits for.
    pub upkeep: Upkeep,
}

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It is not ready for clients yet.
    Starting,
    /// It serves.
    Serving,
    /// It serves, and clients should go elsewhere.
    Draining,
    /// It only finishes what is under way.
    Stopping,
}

/// Routes that are held: they serve on although ZooKeeper does not have them any more.
#[derive(Clone, Debug, Serialize)]
pub struct Hold {
    /// Why.
    pub kind: Kind,
    /// Since when, in seconds.
    pub since_s: u64,
    /// The znode above the tables.
    pub root: String,
    /// czxid of the root as it is now; none if it is missing.
    pub czxid: Option<String>,
    /// When that root was created, ms since 1970.
    pub ctime_ms: Option<i64>,
    /// czxid of the root whose routes are held.
    pub known_czxid: Option<String>,
    /// Tables that are held.
    pub held: usize,
    /// Tables that an accept takes away.
    pub gone: usize,
}

/// How it stands with ZooKeeper.
#[derive(Clone, Debug, Serialize)]
pub struct ZooKeeper {
    /// The znode above the tables.
    pub root: String,
    /// czxid of the root whose routes are cached, as far as it is known: proxies of one ZooKeeper have the same.
    pub root_czxid: Option<String>,
    /// When that root was created, ms since 1970.
    pub root_ctime_ms: Option<i64>,
    /// It does not exist.
    #[serde(skip)]
    pub is_rootless: bool,
    /// Whether changes are noticed.
    pub state: Trust,
    /// Since when it is so, in seconds.
    pub since_s: u64,
    /// The server, while there is a connection.
    pub server: Option<String>,
    /// The session, as ZooKeeper's tools show it.
    pub session: Option<String>,
    /// The session time-out asked for.
    pub asked_timeout_ms: u64,
    /// The one that the server grants.
    pub granted_timeout_ms: Option<u64>,
    /// Connections built anew since the first.
    pub rebuilds: u64,
    /// The newest change that the server is known to know, of this connection.
    pub seen_zxid: i64,
    /// `member`, `due`, or why the route tool does not find this proxy; none: there is no control znode.
    pub control: Option<String>,
    /// It does not find it.
    #[serde(skip)]
    pub is_control_faulty: bool,
    /// Why the last connection was given up, or not made.
    pub last_fault: Option<String>,
    /// Tables cached.
    pub cached: usize,
    /// Those of them that were not read again since the connection was lost.
    pub unconfirmed: usize,
    /// Tables that can be cached.
    pub capacity: usize,
    /// Tables that had to make room for others, since the start.
    pub evicted: u64,
    /// Time since the last one had to.
    pub evicted_s: Option<u64>,
}

/// One cluster.
#[derive(Clone, Debug, Serialize)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Its MetaServers.
    pub metas: Vec<String>,
    /// Tables whose routes name it.
    pub tables: usize,
    /// The leader among them, if that is known.
    pub leader: Option<String>,
    /// Connections to MetaServers that wait for use.
    pub links: usize,
    /// Calls under way.
    pub calls: usize,
    /// Queries that wait for calls.
    pub waiting: usize,
    /// It fails for so long, in seconds, and queries are refused except for probes.
    pub failing_s: Option<u64>,
    /// Calls that failed since the last answer.
    pub failures: u32,
    /// Failures since the start.
    pub meta_failures: Vec<MetaFailure>,
    /// The MetaServers as probes see them.
    pub probes: Vec<MetaProbe>,
    /// How long answers take of late.
    pub usual_us: Option<u64>,
    /// Answers ERR_OK since the start.
    pub answers_ok: u64,
    /// All others.
    pub answers_other: u64,
    /// Queries that the proxy answered ERR_SERVICE_NOT_ACTIVE because no MetaServer answered.
    pub unanswered: u64,
}

/// A MetaServer's answer to the last probe.
#[derive(Clone, Debug, Serialize)]
pub struct MetaProbe {
    /// The MetaServer.
    pub meta: String,
    /// `leader`, `follower`, or why there was no answer; `None`: it was not probed yet.
    pub said: Option<&'static str>,
    /// Time since it first said so.
    pub since_s: u64,
}

/// How often a MetaServer failed in one way.
#[derive(Clone, Debug, Serialize)]
pub struct MetaFailure {
    /// The MetaServer.
    pub meta: String,
    /// `refused`, `timeout`, ...
    pub kind: &'static str,
    /// Since the start.
    pub count: u64,
    /// Time since the last.
    pub last_s: u64,
}

/// One cached table.
#[derive(Clone, Debug, Serialize)]
pub struct Route {
    /// The table.
    pub table: String,
    /// Its cluster; none if no record of it could ever be used.
    pub cluster: Option<String>,
    /// Why the record that is there now cannot be used; a cluster that is there nevertheless is the last good one's.
    pub fault: Option<String>,
    /// The MetaServers of its cluster.
    pub metas: Vec<String>,
    /// zxid of the change that wrote its record, good or not.
    pub zxid: i64,
    /// Time since its record was written, by the clocks of ZooKeeper and of this host.
    pub written_s: Option<u64>,
    /// Time since it changed here.
    pub age_s: u64,
    /// Time since it was found to be current, if it was.
    pub confirmed_age_s: Option<u64>,
    /// `zookeeper`, `state file`, `file`.
    pub source: &'static str,
    /// Whether it may have changed unseen.
    pub stale: bool,
    /// Whether it serves on although its record or the root is gone.
    pub held: bool,
    /// Queries for it since it is cached.
    pub queries: u64,
    /// Reads of ZooKeeper for it since it is cached.
    pub reads: u64,
    /// The last answer of its cluster, if that was an error.
    pub error: Option<&'static str>,
    /// Time since the last such answer.
    pub error_s: Option<u64>,
    /// Queries that were answered so, one after the other.
    pub error_queries: u64,
}

/// Connections and queries of clients.
#[derive(Clone, Debug)]
pub struct Clients {
    /// Connections.
    pub connections: u64,
    /// Queries under way.
    pub pending: usize,
    /// Answers that clients have not read yet.
    pub unread_bytes: usize,
    /// Queries since the start.
    pub queries: u64,
    /// Queries per second of late, see `rates`.
    pub queries_per_s: f64,
    /// Answers other than ERR_OK per second of late.
    pub errors_per_s: f64,
    /// Within which half of the answers of late came, and 99 % of them.
    pub latency_us: Option<(u64, u64)>,
}

/// Refusals of clients.
#[derive(Clone, Debug)]
pub struct Refused {
    /// The thing that is refused, and why.
    pub what: Refusable,
    /// Since the start.
    pub count: u64,
    /// Time since the last.
    pub last_s: u64,
}

/// Each kind of refusal, and why.
#[derive(Clone, Copy, Debug)]
pub enum Refusable {
    /// A connection.
    Connection(Refusal),
    /// A query.
    Query(Shed),
}

/// Work beside queries: none waits for it, but an operator misses it later.
#[derive(Clone, Debug, Default)]
pub struct Upkeep {
    /// Why the settings file was not taken at the last SIGHUP, and how long ago that was, in seconds.
    pub rejected_settings: Option<(String, u64)>,
    /// Settings that have changed and wait for a restart.
    pub waiting_settings: Vec<String>,
    /// Why the state file cannot be written.
    pub state_file_fault: Option<String>,
    /// Whether the falcon agent did not take the last push.
    pub falcon_fails: bool,
    /// Log lines that were lost.
    pub lost_lines: Option<LostLines>,
}

/// Log lines that were lost.
#[derive(Clone, Debug)]
pub struct LostLines {
    /// Since the start.
    pub lines: u64,
    /// Why the last were.
    pub why: String,
    /// Time since then.
    pub last_s: u64,
}
