//! A stand-in Pegasus cluster that keeps data as a real one does: several MetaServers and replica servers, decrees, the
//! deny environment variable that comes into force late, and duplication to another cluster that really ships.
//!
//! ```text
//! Pegasus ─┬─ MetaServer 0.. ── meta.rs: tables, nodes, environment variables, duplications ─┐
//!          ├─ Listener 0..   ── replica.rs: set, get, decrees, pages ────────────────────────┤ one lock: state.rs
//!          └─ thread pegasus-clock, every 2 ms ── ship.rs: config-sync, shipping, idle writes ┘
//! ```
//! The clock never holds the locks of two clusters at once. All intervals of a real cluster are divided by
//! `Options::time_scale`. Dropping the cluster ends its threads.
//!
//! A partition's data is kept once, whichever server is its primary, so that a fail-over loses nothing. Its log is never
//! cut. Splits and bulk loads are flags without an effect on data.

mod answers;
mod meta;
mod replica;
mod ship;
mod state;
pub mod writer;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::listener::Listener;
use crate::meta_server::{Behaviour, MetaServer};
use state::{Core, Partition, Server, Table};

/// How the cluster is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// MetaServers; the first is the leader.
    pub metas: usize,
    /// Replica servers, between which the primaries are spread.
    pub replicas: usize,
    /// How many times faster than a real one its clocks run.
    pub time_scale: f64,
    /// Neither lists decrees of duplications nor ships the last mutation of a partition before another follows.
    pub is_before_2_6: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { metas: 2, replicas: 3, time_scale: 30.0, is_before_2_6: false }
    }
}

/// The cluster.
pub struct Pegasus {
    core: Arc<Core>,
    metas: Vec<MetaServer>,
    /// Held for their drop.
    _replicas: Vec<Listener>,
    clock: Option<JoinHandle<()>>,
}

impl Pegasus {
    /// Starts without tables, on free ports of 127.0.0.1.
    pub fn start(name: &str, options: Options) -> Self {
        let core = Arc::new(Core::new(name, options));
        let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        let mut replicas = Vec::new();
        for index in 0..options.replicas {
            let listener = Listener::start("pegasus-replica", any, {
                let core = Arc::clone(&core);
                move |link| replica::serve(&core, index, link)
            });
            let listener = listener.expect("127.0.0.1 has a free port");
            // Each server has a phase of its own.
            let part = (index + 1) as f64 / options.replicas as f64;
            let now = Instant::now();
            core.state().servers.push(Server {
                addr: listener.addr(),
                in_force: BTreeMap::new(),
                misses: 0,
                config_sync: now + core.config_sync.mul_f64(part),
                duplication_sync: now + core.duplication_sync.mul_f64(part),
            });
            replicas.push(listener);
        }
        let metas: Vec<MetaServer> = (0..options.metas).map(|_| MetaServer::start()).collect();
        for server in &metas {
            let core = Arc::clone(&core);
            server.set_cluster(name);
            server.answer_by(move |method, args, err| meta::answer(&core, method, args, err));
        }
        core.state().metas = metas.iter().map(MetaServer::addr).collect();
        let clock = thread::Builder::new().name("pegasus-clock".to_owned()).spawn({
            let core = Arc::clone(&core);
            move || ship::run(&core)
        });
        let clock = Some(clock.expect("a thread can be started"));
        let cluster = Pegasus { core, metas, _replicas: replicas, clock };
        cluster.revive();
        cluster
    }

    /// Makes two clusters known to each other by name, as `[pegasus.clusters]` does.
    pub fn join(&self, other: &Pegasus) {
        for (one, two) in [(self, other), (other, self)] {
            let weak: Weak<Core> = Arc::downgrade(&two.core);
            one.core.state().remotes.insert(two.core.name.clone(), weak);
        }
    }

    /// Its own name.
    pub fn name(&self) -> &str {
        &self.core.name
    }

    /// Adds an empty table.
    pub fn create_table(&self, name: &str, app_id: i32, partition_count: usize) {
        let mut state = self.core.state();
        let servers = state.servers.len();
        let partitions = (0..partition_count).map(|index| Partition::new(index % servers));
        let table = Table::new(app_id, partitions.collect());
        state.tables.insert(name.to_owned(), table);
    }

    /// The MetaServers' ZooKeeper is slow: changes of envs are refused with a time-out, and carried out when this ends.
    pub fn stall_env(&self, is_stalled: bool) {
        let mut state = self.core.state();
        if is_stalled {
            state.env_queue = Some(Vec::new());
        } else {
            for raw in state.env_queue.take().unwrap_or_default() {
                meta::apply_env(&mut state, &raw);
            }
        }
    }

    /// Changes of envs that wait.
    pub fn stalled_envs(&self) -> usize {
        self.core.state().env_queue.as_ref().map_or(0, Vec::len)
    }

    /// The next config-syncs of a server fail, as while a MetaServer is elected.
    pub fn miss_syncs(&self, index: usize, count: usize) {
        self.core.state().servers[index].misses = count;
    }

    /// A table gets another name.
    pub fn rename_table(&self, name: &str, to: &str) {
        let mut state = self.core.state();
        let table = state.tables.remove(name).expect("there is such a table");
        state.tables.insert(to.to_owned(), table);
    }

    /// The deny environment variable as the MetaServers have it.
    pub fn env(&self, table: &str) -> Option<String> {
        let state = self.core.state();
        state.tables.get(table).and_then(|table| table.envs.get(state::DENY).cloned())
    }

    /// Drops a table.
    pub fn drop_table(&self, name: &str) {
        self.core.state().tables.remove(name);
    }

    /// A MetaServer, for its faults and for what it was asked.
    pub fn meta(&self, index: usize) -> &MetaServer {
        &self.metas[index]
    }

    /// All addresses of MetaServers, as `--metas` and a route take them.
    pub fn metas(&self) -> String {
        let mut metas: Vec<String> =
            self.metas.iter().map(|meta| meta.addr().to_string()).collect();
        metas.sort();
        metas.join(",")
    }

    /// The MetaServer that leads.
    pub fn leader(&self) -> SocketAddr {
        self.metas[self.core.state().leader].addr()
    }

    /// The replica servers.
    pub fn replicas(&self) -> Vec<SocketAddr> {
        self.core.state().servers.iter().map(|server| server.addr).collect()
    }

    /// The interval of config-sync as scaled, within which a change of a variable comes into force.
    pub fn config_sync_interval(&self) -> Duration {
        self.core.config_sync
    }

    /// A table's keys and values. A key is two bytes for the length of the hash key, the hash key, the sort key.
    pub fn data(&self, table: &str) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let state = self.core.state();
        let partitions = state.tables[table].partitions.iter();
        partitions.flat_map(|partition| partition.data.clone()).collect()
    }

    /// The last committed decree of each partition.
    pub fn decrees(&self, table: &str) -> Vec<i64> {
        let state = self.core.state();
        state.tables[table].partitions.iter().map(|partition| partition.committed).collect()
    }

    /// The deny environment variable in force at the primary of each partition; empty: none.
    pub fn denied(&self, table: &str) -> Vec<String> {
        let state = self.core.state();
        let table = &state.tables[table];
        let denied = |partition: &Partition| state.denied(partition.primary, table.app_id);
        table.partitions.iter().map(|partition| denied(partition).to_owned()).collect()
    }

    /// The next MetaServer leads from now on.
    pub fn fail_over_meta(&self) {
        {
            let mut state = self.core.state();
            state.leader = (state.leader + 1) % self.metas.len();
        }
        self.revive();
    }

    /// Another server is the primary of a partition from now on. It hears of duplications at its own next sync.
    pub fn fail_over_primary(&self, table: &str, index: usize) {
        let mut state = self.core.state();
        let servers = state.servers.len();
        let table = state.tables.get_mut(table).expect("the table is there");
        let partition = &mut table.partitions[index];
        partition.primary = (partition.primary + 1) % servers;
        partition.ballot += 1;
        for duplication in &mut table.duplications {
            duplication.progress[index].restart();
        }
    }

    /// Reads what comes from now on, and answers nothing; ships nothing either.
    pub fn mute(&self) {
        self.core.state().is_mute = true;
        self.metas.iter().for_each(|meta| meta.set(Behaviour::Mute));
    }

    /// Answers again after [`Self::mute`].
    pub fn revive(&self) {
        let leader = {
            let mut state = self.core.state();
            state.is_mute = false;
            state.leader
        };
        let follower = Behaviour::Follower { leader: Some(self.metas[leader].addr()) };
        for (index, meta) in self.metas.iter().enumerate() {
            meta.set(if index == leader { Behaviour::Leader } else { follower.clone() });
        }
    }

    /// A partition's mutations are shipped this much after they were committed.
    pub fn set_lag(&self, table: &str, index: usize, lag: Duration) {
        self.with_table(table, |table| table.partitions[index].lag = lag);
    }

    /// Ships nothing of this table for as long as it is so, as if the network between the clusters were cut.
    pub fn hold_shipping(&self, table: &str, is_held: bool) {
        self.with_table(table, |table| table.is_held = is_held);
    }

    /// The table is being split, or no longer.
    pub fn set_splitting(&self, table: &str, is_splitting: bool) {
        self.with_table(table, |table| table.is_splitting = is_splitting);
    }

    /// The table is being bulk loaded, or no longer.
    pub fn set_bulk_loading(&self, table: &str, is_bulk_loading: bool) {
        self.with_table(table, |table| table.is_bulk_loading = is_bulk_loading);
    }

    fn with_table(&self, table: &str, change: impl FnOnce(&mut Table)) {
        let mut state = self.core.state();
        change(state.tables.get_mut(table).expect("the table is there"));
    }
}

impl Drop for Pegasus {
    fn drop(&mut self) {
        self.core.state().is_stopping = true;
        let clock = self.clock.take().expect("dropped once");
        if clock.join().is_err() && !thread::panicking() {
            panic!("pegasus-clock panicked, see above");
        }
    }
}
