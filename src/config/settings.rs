//! The checked settings, one part for each module that uses them.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::listeners::ListenerSettings;
use super::tags::{self, MetricKind};
use super::values::Values;

#[derive(Clone, Debug)]
pub struct Settings {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Further ports for clients.
    pub listeners: Vec<ListenerSettings>,
    /// Threads that serve queries.
    pub workers: usize,
    /// Time in which the proxy answers a query.
    pub query_timeout: Duration,
    pub accept: AcceptLimits,
    pub client: ClientLimits,
    pub upstream: UpstreamLimits,
    /// The source of the routes, unless a routes file is given.
    pub zookeeper: Option<ZooKeeperSettings>,
    /// Address of the pages for operators; `None`: no pages.
    pub admin: Option<SocketAddr>,
    /// `host:port` by which the route tool reaches the pages; `None`: this host's name.
    pub advertise: Option<String>,
    pub metric: MetricSettings,
    pub log: LogSettings,
    pub stop: StopSettings,
    /// Each key with its value, to find changes.
    pub values: Values,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricSettings {
    /// Whether metrics also go to a falcon agent.
    pub kind: MetricKind,
    /// Names and values that every metric gets; names are unique.
    pub tags: Vec<(String, String)>,
    /// Whether there are series per table.
    pub by_table: bool,
    /// Address of the open-falcon agent.
    pub falcon_agent: SocketAddr,
    /// Time between two pushes.
    pub falcon_step: Duration,
}

impl MetricSettings {
    /// The tags as labels for Prometheus.
    pub fn labels(&self) -> Vec<(String, String)> {
        self.tags.iter().map(|(name, value)| (tags::label_name(name), value.clone())).collect()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Levels by target, for example `info,zk=debug`.
    pub level: String,
    /// Whether lines are JSON objects instead of text.
    pub json: bool,
    /// How much of the log to keep.
    pub keep: Keep,
    /// 1 in this many queries gets a line; 0: none.
    pub access_sample: u64,
}

/// How the proxy stops at SIGTERM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopSettings {
    /// Time between `/readyz` becoming 503 and the listener closing.
    pub delay: Duration,
    /// A stop closes an idle connection at this age. A Go client that loses a connection younger than a minute does not
    /// reconnect for a minute (its session keeps the time of its last connect, a little later than the proxy does).
    pub min_age: Duration,
    /// The longest time that a stop waits for clients.
    pub grace: Duration,
}

#[derive(Clone, Debug)]
pub struct AcceptLimits {
    pub max_connections: usize,
    /// Connections from one address.
    pub max_connections_per_address: usize,
    /// Idle time after which the kernel checks that the client is alive.
    pub keepalive: Duration,
}

#[derive(Clone, Debug)]
pub struct ClientLimits {
    /// Most bytes of one request frame.
    pub max_frame_bytes: usize,
    /// Queries under way for one client, by weight, see `Ask::weight`.
    pub max_pending: u32,
    /// Queries under way for all clients, by weight.
    pub max_pending_total: usize,
    /// Bytes of unsent answers to one client.
    pub max_unread_bytes: usize,
    /// Bytes of unsent answers and unfinished frames of all clients.
    pub max_unread_total_bytes: usize,
    /// Time in which a client must finish a frame.
    pub frame_timeout: Duration,
    /// Time in which a client must take some of its answers.
    pub unread_timeout: Duration,
}

#[derive(Clone, Debug)]
pub struct UpstreamLimits {
    /// Calls to one cluster at once.
    pub max_calls: usize,
    /// Time between two probes of a MetaServer; zero: probe only clusters in trouble.
    pub probe_interval: Duration,
}

/// How much of the log to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Size at which the file is rotated, bytes.
    pub max_bytes: u64,
    /// Age at which rotated files are deleted.
    pub max_age: Duration,
    /// Number of rotated files to keep.
    pub max_files: usize,
}

#[derive(Clone, PartialEq, Eq)]
pub struct ZooKeeperSettings {
    /// `host:port` of the servers.
    pub address: Vec<String>,
    /// The routes are the children of this znode.
    pub root: String,
    /// The session time-out that the proxy asks for.
    pub timeout: Duration,
    /// Most tables to cache and watch.
    pub cache_capacity: usize,
    /// `user:password` of the digest scheme, if the tables are protected.
    pub digest: Option<String>,
    /// The znode above the clusters, if records may name only a cluster.
    pub clusters_root: Option<String>,
    /// The znode where the proxy registers, and where the route tool leaves its orders.
    pub control_root: Option<String>,
    /// `user:password` that protects the control znode.
    pub control_digest: Option<String>,
    /// Whether to read all tables at start, and not each at its first query.
    pub preload: bool,
    /// Whether to hold routes when the root or many tables disappear.
    pub hold: bool,
    /// The file for the last good routes.
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
