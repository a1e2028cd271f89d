//! The knowledge of a cluster: tables, their partitions with data and log, servers, duplications.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use super::Options;

pub(super) const DENY: &str = "replica.deny_client_request";

pub(super) const DS_PREPARE: i32 = 1;
pub(super) const DS_APP: i32 = 2;
pub(super) const DS_LOG: i32 = 3;
pub(super) const DS_PAUSE: i32 = 4;
pub(super) const DS_REMOVED: i32 = 5;

/// A cluster, shared by its servers and its clock.
pub(super) struct Core {
    pub name: String,
    pub is_before_2_6: bool,
    pub config_sync: Duration,
    pub duplication_sync: Duration,
    /// Without a write for so long, a partition gets an empty one.
    pub idle: Duration,
    /// From the start of a duplication with checkpoint to DS_APP, and to DS_LOG.
    pub checkpoint: [Duration; 2],
    state: Mutex<State>,
}

impl Core {
    pub fn new(name: &str, options: Options) -> Self {
        let scaled = |seconds: f64| Duration::from_secs_f64(seconds / options.time_scale);
        Core {
            name: name.to_owned(),
            is_before_2_6: options.is_before_2_6,
            config_sync: scaled(30.0),
            duplication_sync: scaled(10.0),
            idle: scaled(100.0),
            checkpoint: [scaled(48.0), scaled(68.0)],
            state: Mutex::default(),
        }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while holding it")
    }
}

#[derive(Default)]
pub(super) struct State {
    pub tables: BTreeMap<String, Table>,
    pub servers: Vec<Server>,
    pub metas: Vec<SocketAddr>,
    /// Index of the MetaServer that leads.
    pub leader: usize,
    pub remotes: BTreeMap<String, Weak<Core>>,
    pub last_duplication_id: i32,
    pub is_mute: bool,
    /// The args of UPDATE_APP_ENV wait here while the MetaServers' ZooKeeper is slow.
    pub env_queue: Option<Vec<Vec<u8>>>,
    pub is_stopping: bool,
}

impl State {
    /// The deny environment variable in force at a server for a table; empty: none.
    pub fn denied(&self, server: usize, app_id: i32) -> &str {
        self.servers[server].in_force.get(&app_id).map_or("", String::as_str)
    }

    pub fn table_of(&self, app_id: i32) -> Option<(&String, &Table)> {
        self.tables.iter().find(|(_, table)| table.app_id == app_id)
    }
}

/// A replica server.
pub(super) struct Server {
    pub addr: SocketAddr,
    /// The deny environment variables by app_id, as of its last config-sync.
    pub in_force: BTreeMap<i32, String>,
    /// When the next of each is due.
    pub config_sync: Instant,
    /// Config-syncs that will fail.
    pub misses: usize,
    pub duplication_sync: Instant,
}

pub(super) struct Table {
    pub app_id: i32,
    pub partitions: Vec<Partition>,
    pub envs: BTreeMap<String, String>,
    pub duplications: Vec<Duplication>,
    pub is_held: bool,
    pub is_splitting: bool,
    pub is_bulk_loading: bool,
}

impl Table {
    pub fn new(app_id: i32, partitions: Vec<Partition>) -> Self {
        Table {
            app_id,
            partitions,
            envs: BTreeMap::new(),
            duplications: Vec::new(),
            is_held: false,
            is_splitting: false,
            is_bulk_loading: false,
        }
    }

    /// The duplications that a MetaServer tells of.
    pub fn listed(&self) -> impl Iterator<Item = &Duplication> {
        self.duplications.iter().filter(|duplication| duplication.status != DS_REMOVED)
    }
}

#[derive(Clone)]
pub(super) struct Partition {
    /// Index of the server.
    pub primary: usize,
    pub ballot: i64,
    pub committed: i64,
    pub data: HashMap<Vec<u8>, Vec<u8>>,
    pub log: Vec<Mutation>,
    pub last_write: Instant,
    pub lag: Duration,
}

impl Partition {
    pub fn new(primary: usize) -> Self {
        Partition {
            primary,
            ballot: 3,
            committed: 0,
            data: HashMap::new(),
            log: Vec::new(),
            last_write: Instant::now(),
            lag: Duration::ZERO,
        }
    }

    /// Commits a write, or an empty mutation.
    pub fn commit(&mut self, write: Option<Write>, is_duplicate: bool) -> i64 {
        self.committed += 1;
        self.last_write = Instant::now();
        if let Some(write) = &write {
            self.data.insert(write.key.clone(), write.value.clone());
        }
        // Writes that came from another cluster are not shipped back.
        let write = write.filter(|_| !is_duplicate);
        self.log.push(Mutation { decree: self.committed, at: self.last_write, write });
        self.committed
    }
}

#[derive(Clone)]
pub(super) struct Mutation {
    pub decree: i64,
    pub at: Instant,
    /// `None`: nothing to ship.
    pub write: Option<Write>,
}

#[derive(Clone)]
pub(super) struct Write {
    /// The hash of the key, which chooses the partition.
    pub hash: u64,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

pub(super) struct Duplication {
    pub id: i32,
    pub status: i32,
    pub remote: String,
    pub remote_table: String,
    pub create_ms: i64,
    pub started: Instant,
    pub progress: Vec<Progress>,
}

/// How far a partition is.
#[derive(Clone, Default)]
pub(super) struct Progress {
    /// The primary has heard of the duplication.
    pub is_known: bool,
    /// Where the log starts that is shipped; `None` until the first primary has heard of an incremental duplication.
    pub start: Option<i64>,
    /// The decree that the other cluster has acknowledged.
    pub shipped: i64,
    /// As the primary told the MetaServer, which lists it for both decrees.
    pub reported: i64,
}

impl Progress {
    /// A new primary goes on from what the MetaServer knows.
    pub fn restart(&mut self) {
        self.is_known = false;
        self.shipped = self.start.map_or(0, |start| start.max(self.reported));
    }
}
