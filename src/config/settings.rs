//! The checked settings, a part for each who needs them.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::listeners::ListenerSettings;
use super::tags::{self, MetricKind};
use super::values::Values;

/// All settings, checked, a part for each who needs them.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where they connect, too.
    pub listeners: Vec<ListenerSettings>,
    /// Threads that serve queries.
    pub workers: usize,
    /// Time in which a query is answered.
    pub query_timeout: Duration,
    /// Limits on connections.
    pub accept: AcceptLimits,
    /// Limits on one client.
    pub client: ClientLimits,
    /// Limits on calls to a cluster.
    pub upstream: UpstreamLimits,
    /// Where the routes are, unless a routes file is given.
    pub zookeeper: Option<ZooKeeperSettings>,
    /// Where the pages for operators are; `None`: nowhere.
    pub admin: Option<SocketAddr>,
    /// `host:port` by which others reach them; `None`: by this host's name.
    pub advertise: Option<String>,
    /// Metrics, and where they go.
    pub metric: MetricSettings,
    /// The log: its level, and how its file is kept.
    pub log: LogSettings,
    /// How the proxy stops.
    pub stop: StopSettings,
    /// Each key with its value, to tell what has changed.
    pub values: Values,
}

/// Metrics, and where they go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricSettings {
    /// The agent to which metrics are pushed, besides the programs that fetch them.
    pub kind: MetricKind,
    /// Names and values that every metric has, no name twice.
    pub tags: Vec<(String, String)>,
    /// Whether there are series by table.
    pub by_table: bool,
    /// The open-falcon agent that gets them.
    pub falcon_agent: SocketAddr,
    /// It gets them this often.
    pub falcon_step: Duration,
}

impl MetricSettings {
    /// The tags as labels for Prometheus.
    pub fn labels(&self) -> Vec<(String, String)> {
        self.tags.iter().map(|(name, value)| (tags::label_name(name), value.clone())).collect()
    }
}

/// The log: its level, and how its file is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Levels by target, `info,zk=debug`.
    pub level: String,
    /// An object a line instead of text.
    pub json: bool,
    /// How much of the log file is kept.
    pub keep: Keep,
    /// One of so many queries gets a line; 0: none does.
    pub access_sample: u64,
}

/// How the proxy stops when it is told to by SIGTERM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopSettings {
    /// Between `/readyz` turning bad and the listener closing.
    pub delay: Duration,
    /// An idle connection is closed at this age. A Go client that loses one of less than a minute does not dial again
    /// for a minute (its session keeps the time of its last dial, a little later than ours).
    pub min_age: Duration,
    /// All of it takes at most so long.
    pub grace: Duration,
}

/// Limits on connections.
#[derive(Clone, Debug)]
pub struct AcceptLimits {
    /// Connections in all.
    pub max_connections: usize,
    /// Connections from one address.
    pub max_connections_per_address: usize,
    /// Idle time after which the kernel asks whether the client still lives.
    pub keepalive: Duration,
}

/// Limits on one client.
#[derive(Clone, Debug)]
pub struct ClientLimits {
    /// Bytes of one request frame.
    pub max_frame_bytes: usize,
    /// Queries under way for one client; one with long arguments counts for several, see `Ask::weight`.
    pub max_pending: u32,
    /// The limit over all clients.
    pub max_pending_total: usize,
    /// Bytes of answers that one client has not taken.
    pub max_unread_bytes: usize,
    /// Bytes of answers that all clients together have not taken, and of frames that they have begun.
    pub max_unread_total_bytes: usize,
    /// Time to finish a frame once it is begun.
    pub frame_timeout: Duration,
    /// Time in which a client must take some of its answers.
    pub unread_timeout: Duration,
}

/// Limits on calls to a cluster.
#[derive(Clone, Debug)]
pub struct UpstreamLimits {
    /// Calls to one cluster at once.
    pub max_calls: usize,
    /// Time between two probes of a MetaServer; zero: only those of clusters in trouble are probed.
    pub probe_interval: Duration,
}

/// How much of the log is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Size at which the file is put aside, bytes.
    pub max_bytes: u64,
    /// Age at which files that were put aside are deleted.
    pub max_age: Duration,
    /// Files that were put aside and are kept.
    pub max_files: usize,
}

/// Where the routes are in ZooKeeper.
#[derive(Clone, PartialEq, Eq)]
pub struct ZooKeeperSettings {
    /// `host:port` of its servers.
    pub address: Vec<String>,
    /// The routes are the children of this znode.
    pub root: String,
    /// The session time-out asked for.
    pub timeout: Duration,
    /// Tables that are cached and watched at most.
    pub cache_capacity: usize,
    /// `user:password` of the digest scheme, if the tables are protected.
    pub digest: Option<String>,
    /// The znode above the clusters, if records of tables may only name theirs.
    pub clusters_root: Option<String>,
    /// The znode where the proxy tells that it is there, and where the route tool's word is heard.
    pub control_root: Option<String>,
    /// `user:password` that protects it.
    pub control_digest: Option<String>,
    /// Whether all tables are read at start, not only when first asked for.
    pub preload: bool,
    /// Whether routes are held when the root or many tables go.
    pub hold: bool,
    /// Where the last good routes are kept.
    pub state_file: Option<PathBuf>,
}

impl ZooKeeperSettings {
    /// The control znode, and whether a digest protects it.
    pub fn control(&self) -> Option<(String, bool)> {
        let has_digest = self.digest.is_some() || self.control_digest.is_some();
        Some((self.control_root.clone()?, has_digest))
    }
}

impl fmt::Debug for ZooKeeperSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZooKeeperSettings")
            .field("address", &self.address)
            .field("root", &self.root)
            .field("timeout", &self.timeout)
            .field("cache_capacity", &self.cache_capacity)
            .field("digest", &self.digest.as_ref().map(|_| "***"))
            .field("clusters_root", &self.clusters_root)
            .field("control_root", &self.control_root)
            .field("control_digest", &self.control_digest.as_ref().map(|_| "***"))
            .field("preload", &self.preload)
            .field("hold", &self.hold)
            .field("state_file", &self.state_file)
            .finish()
    }
}
