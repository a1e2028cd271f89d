//! The ground of a run: a real ensemble behind a network that can fail, real proxies, stand-in clusters, the true
//! history of every table, the weather, and one clock for all of them.
//!
//! ```text
//!            writes, directly                  relays
//! hand ─────────────────────▶ ZooKeeper ×3 ◀──────────── proxies ◀─── askers
//!   └─▶ histories                                          └────────▶ clusters: stand-in MetaServers
//! ```
//! Every cluster has all tables, and its answers name it and the table: so an answer tells which route the proxy followed.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use harness::client::{Answer, Client};
use harness::meta_server::MetaServer;
use harness::proxy::Proxy;
use harness::relay::Relay;
use harness::scratch::Scratch;
use harness::wire::QueryCfgResponse;
use harness::zookeeper::{Ensemble, Sessions, ZooKeeper};

use zookeeper::ZooKeeper as Stranger;

use crate::checker::{Asked, Told};
use crate::history::{History, Time, Value};
use crate::weather::{Bounds, Excuse, Ticket, View, Weather, Whom};
use harness::rng::Rng;

/// Tables are its children.
pub const ROOT: &str = "/pegasus-cluster";
/// Clusters that have a znode of their own are its children.
pub const CLUSTERS_ROOT: &str = "/pegasus-clusters";
/// Servers of the ensemble.
const SERVERS: usize = 3;
/// Stand-in clusters: enough that a table need not soon come back to one, for then the answers of both times would look
/// alike.
pub const CLUSTERS: usize = 6;
/// A client waits for an answer so long; far beyond what is allowed, so that an answer that is late is told from none.
const GIVE_UP_AFTER: Duration = Duration::from_secs(6);
/// The relays connect to servers from this address, so that a test can fill a server up for them alone.
pub const RELAYS_FROM: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 77);
/// A server takes this many connections from one address.
pub const MAX_CLIENT_CONNECTIONS: usize = 200;
/// Records that no proxy can use.
const JUNK: [&[u8]; 5] = [
    b"",
    b"{",
    br#"{"meta_addrs": "m1"}"#,
    &[0xff, 0xfe],
    br#"{"cluster_name": 7, "meta_addrs": {}}"#,
];

/// A table, or a name that never becomes one.
struct Table {
    name: String,
    /// Held during a write, so that writes of one table come one after the other.
    pen: Mutex<()>,
    history: Mutex<History>,
}

/// A connection to a proxy that is kept between queries.
pub struct Kept {
    client: Client,
    /// The process that it leads to.
    pid: u32,
}

/// All of it.
pub struct World {
    /// Three servers.
    pub ensemble: Ensemble,
    /// The proxies' way to each of them.
    pub relays: Vec<Relay>,
    /// Routes lead to these.
    pub clusters: Vec<MetaServer>,
    /// Those under test. One that was started again is another process.
    proxies: Vec<Mutex<Arc<Proxy>>>,
    binary: PathBuf,
    /// The proxies' settings.
    settings: String,
    /// Where their state files are, if they have any.
    states: Option<Scratch>,
    /// The logs of proxies that were ended.
    earlier_logs: Mutex<String>,
    /// Each answer is told here, to be judged.
    judge: Mutex<Option<Sender<Asked>>>,
    tables: Vec<Table>,
    /// How many of `tables` may exist.
    writable: usize,
    weather: Mutex<Weather>,
    /// Connections that the soak itself has made by way of `relays`.
    pub probes: AtomicU64,
    /// The server that writes go to: one that is not about to be hurt.
    hand: AtomicUsize,
    /// Held for reading by who writes, for writing by who wants no writes.
    gate: RwLock<()>,
    /// The fault under way, or the last one.
    fault: Mutex<&'static str>,
    /// When this process itself did not run, from when to when.
    stalls: Mutex<Vec<(Time, Time)>>,
    start: Instant,
    started_at: SystemTime,
    /// When the run is over, and why.
    pub end: End,
}

impl World {
    /// Starts everything but the proxies. `names` are of tables, of which the first `writable` may exist; none does yet,
    /// but the root. `settings` are YAML, more settings of the proxies.
    pub fn start(
        names: Vec<String>,
        writable: usize,
        sessions: Sessions,
        bounds: Bounds,
        settings: &str,
    ) -> Self {
        let max = format!("maxClientCnxns={MAX_CLIENT_CONNECTIONS}");
        let ensemble = Ensemble::start_read_only(SERVERS, sessions, &max);
        let from = |addr| Relay::from(RELAYS_FROM, addr);
        let relays: Vec<Relay> = ensemble.addrs().into_iter().map(from).collect();
        ensemble[0].create(ROOT, "");
        let clusters = (0..CLUSTERS).map(|cluster| cluster_with(cluster, &names)).collect();
        let addrs: Vec<String> = relays.iter().map(|relay| relay.addr().to_string()).collect();
        // More than there are tables: an eviction would look like a fault.
        let capacity = names.len() + 1000;
        let settings = format!(
            "zookeeper: {{address: {addrs:?}, root: {ROOT}, clusters_root: {CLUSTERS_ROOT}, timeout: 6000, \
             table_watcher_cache_capacity: {capacity}STATE_FILE}}\n{settings}"
        );
        let table =
            |name| Table { name, pen: Mutex::default(), history: Mutex::new(History::new()) };
        World {
            ensemble,
            relays,
            clusters,
            proxies: Vec::new(),
            binary: PathBuf::new(),
            settings,
            states: None,
            earlier_logs: Mutex::default(),
            judge: Mutex::default(),
            tables: names.into_iter().map(table).collect(),
            writable,
            weather: Mutex::new(Weather::new(bounds)),
            probes: AtomicU64::new(0),
            hand: AtomicUsize::new(0),
            gate: RwLock::default(),
            fault: Mutex::new("none"),
            stalls: Mutex::default(),
            start: Instant::now(),
            started_at: SystemTime::now(),
            end: End::default(),
        }
    }

    /// From now on each proxy that starts has a state file.
    pub fn keep_states(&mut self) {
        self.states = Some(Scratch::new("states"));
    }

    /// Starts this many proxies.
    /// Proxies that are started from now on cache all tables by themselves.
    pub fn preload(&mut self) {
        self.settings = self.settings.replace("STATE_FILE", ", preload: trueSTATE_FILE");
    }

    pub fn start_proxies(&mut self, binary: &Path, count: usize) {
        self.binary = binary.to_owned();
        let start = |number| Mutex::new(Arc::new(self.start_proxy(number)));
        self.proxies = (0..count).map(start).collect();
    }

    fn start_proxy(&self, number: usize) -> Proxy {
        let state_file =
            self.state_file(number).map(|path| format!(", state_file: {}", path.display()));
        let settings = self.settings.replace("STATE_FILE", &state_file.unwrap_or_default());
        let proxy = Proxy::builder(&self.binary).config_extra(&settings);
        // With an arena for every few threads memory grows for many minutes, and hides what is lost.
        proxy.env("MALLOC_ARENA_MAX", "1").start()
    }

    fn state_file(&self, number: usize) -> Option<PathBuf> {
        Some(self.states.as_ref()?.path().join(format!("proxy{number}")))
    }

    /// The text of a proxy's state file; nothing if there is none.
    pub fn state_of(&self, number: usize) -> String {
        let path = self.state_file(number).unwrap_or_default();
        fs::read_to_string(path).unwrap_or_default()
    }

    /// Ends a proxy this way, and starts another with the same state file. It answers nobody meanwhile.
    pub fn restart_proxy(&self, number: usize, what: &str, end: impl FnOnce(&Proxy)) {
        let mute = self.begin(what, Whom::Proxy(number), Excuse::Mute);
        let before = self.proxy(number);
        end(&before);
        lock(&self.earlier_logs).push_str(&before.log());
        *lock(&self.proxies[number]) = Arc::new(self.start_proxy(number));
        self.over(mute);
    }

    /// How many proxies there are.
    pub fn proxy_count(&self) -> usize {
        self.proxies.len()
    }

    /// The process that is this proxy now.
    pub fn proxy(&self, number: usize) -> Arc<Proxy> {
        Arc::clone(&lock(&self.proxies[number]))
    }

    /// All of them, as they are now.
    pub fn proxies(&self) -> Vec<Arc<Proxy>> {
        (0..self.proxies.len()).map(|number| self.proxy(number)).collect()
    }

    // ---- time and words

    /// Since the run began.
    pub fn now(&self) -> Time {
        self.start.elapsed()
    }

    /// A line of the run's own log.
    pub fn say(&self, what: &str) {
        println!("{:9.3} {what}", self.now().as_secs_f64());
    }

    /// The time of day of a moment of the run, UTC, as the proxies' logs have it.
    pub fn time_of_day(&self, time: Time) -> String {
        let since = (self.started_at + time).duration_since(UNIX_EPOCH).unwrap_or_default();
        let (s, ms) = (since.as_secs() % 86_400, since.subsec_millis());
        format!("{:02}:{:02}:{:02}.{ms:03}Z", s / 3600, s / 60 % 60, s % 60)
    }

    // ---- tables

    /// How many tables may exist.
    pub fn writable(&self) -> usize {
        self.writable
    }

    /// How many names there are, those that never become tables among them.
    pub fn names(&self) -> usize {
        self.tables.len()
    }

    /// A table's name.
    pub fn name(&self, table: usize) -> &str {
        &self.tables[table].name
    }

    /// Its history so far.
    pub fn history(&self, table: usize) -> MutexGuard<'_, History> {
        lock(&self.tables[table].history)
    }

    /// Its znode.
    pub fn znode(&self, table: usize) -> String {
        format!("{ROOT}/{}", self.name(table))
    }

    /// Writes to a table what `choose` makes of its history. Waits while the gate is shut.
    pub fn write(&self, table: usize, choose: impl FnOnce(&History) -> Value) {
        let _gate = self.open_gate();
        self.write_past_gate(table, choose);
    }

    /// Does so while the caller has shut the gate.
    pub fn write_past_gate(&self, table: usize, choose: impl FnOnce(&History) -> Value) {
        let Table { pen, history, .. } = &self.tables[table];
        let _pen = lock(pen);
        let (value, version) = {
            let mut history = lock(history);
            let value = choose(&history);
            // Deleting nothing is no write.
            if value == Value::Absent && history.last().value == Value::Absent {
                return;
            }
            history.sent(value, self.now());
            (value, history.versions().len())
        };
        let zk = &self.ensemble[self.hand.load(Ordering::SeqCst)];
        let znode = self.znode(table);
        let mzxid = match value {
            Value::Absent => {
                zk.delete(&znode);
                None
            }
            Value::Junk => Some(zk.put(&znode, JUNK[version % JUNK.len()])),
            // Every second table names a cluster, by turns one of two. The one that it names next still has the addresses
            // of before, and gets new ones just before the table names it.
            Value::Cluster(cluster) if table % 2 == 1 => {
                let name = format!("of-{}-{}", self.name(table), version % 2);
                zk.put(&format!("{CLUSTERS_ROOT}/{name}"), self.record(cluster));
                Some(zk.put(&znode, format!(r#"{{"cluster": "{name}"}}"#)))
            }
            Value::Cluster(cluster) => Some(zk.put(&znode, self.record(cluster))),
        };
        lock(history).returned(mzxid, self.now());
    }

    /// Moves a table that exists by another client's hand, for who has shut the gate.
    pub fn write_as_stranger(&self, table: usize, cluster: usize, stranger: &Stranger) {
        let Table { pen, history, .. } = &self.tables[table];
        let _pen = lock(pen);
        lock(history).sent(Value::Cluster(cluster), self.now());
        let record = self.record(cluster).into_bytes();
        let stat = stranger.set_data(&self.znode(table), record, None);
        let mzxid = stat.expect("the table exists, and ZooKeeper is well").mzxid;
        lock(history).returned(Some(mzxid), self.now());
    }

    /// Tables that another client sees otherwise than they were written, for who has shut the gate.
    pub fn seen_otherwise(&self, stranger: &Stranger) -> Vec<String> {
        let is_otherwise = |table: &usize| {
            let read = |path: &str| stranger.get_data(path, false).ok().map(|(data, _)| data);
            let seen = read(&self.znode(*table));
            // A table that names a cluster lives where that cluster's record says.
            let named = seen.as_deref().and_then(|data| {
                let record: serde_json::Value = serde_json::from_slice(data).ok()?;
                read(&format!("{CLUSTERS_ROOT}/{}", record["cluster"].as_str()?))
            });
            let seen = named.or(seen);
            match (self.history(*table).last().value, seen) {
                (Value::Absent, seen) => seen.is_some(),
                (Value::Cluster(cluster), seen) => seen != Some(self.record(cluster).into_bytes()),
                (Value::Junk, seen) => seen.is_none_or(|data| !JUNK.contains(&data.as_slice())),
            }
        };
        (0..self.writable).filter(is_otherwise).map(|table| self.name(table).to_owned()).collect()
    }

    /// The record of a table in this cluster.
    fn record(&self, cluster: usize) -> String {
        let meta = self.clusters[cluster].addr();
        format!(r#"{{"cluster_name": "cluster{cluster}", "meta_addrs": "{meta}"}}"#)
    }

    /// From now on writes go to this server; returns when none is under way to another.
    pub fn write_through(&self, server: usize) {
        let _no_writes = self.shut_gate();
        self.hand.store(server, Ordering::SeqCst);
    }

    fn open_gate(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is written while this is held, but by [`World::write_past_gate`].
    pub fn shut_gate(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- queries

    /// From now on all answers are told to the judge.
    pub fn tell_judge(&self, judge: Sender<Asked>) {
        *lock(&self.judge) = Some(judge);
    }

    /// No more answers are judged.
    pub fn dismiss_judge(&self) {
        *lock(&self.judge) = None;
    }

    /// A connection to a proxy.
    pub fn connect(&self, proxy: usize) -> Result<Client, String> {
        Client::try_connect(self.proxy(proxy).addr(), GIVE_UP_AFTER)
            .map_err(|e| format!("cannot connect: {e}"))
    }

    /// One query over a kept connection, which is replaced when it gave no answer. The judge hears of it.
    pub fn ask(&self, view: View, kept: &mut Option<Kept>) -> Asked {
        let sent = self.now();
        let pid = self.proxy(view.proxy).pid();
        // A connection to a process that was replaced is of no use.
        let client = kept.take().filter(|kept| kept.pid == pid).map(|kept| kept.client);
        let told = match client.map_or_else(|| self.connect(view.proxy), Ok) {
            Ok(mut client) => match client.try_ask(self.name(view.table), GIVE_UP_AFTER) {
                Ok(answer) => {
                    *kept = Some(Kept { client, pid });
                    told(view.table, &answer)
                }
                Err(why) => Told::Other(why.to_string()),
            },
            Err(why) => Told::Other(why),
        };
        let asked = Asked { view, sent, answered: self.now(), told };
        if let Some(judge) = &*lock(&self.judge) {
            // Fails when the judge has ended the run.
            let _ = judge.send(asked.clone());
        }
        asked
    }

    // ---- weather

    /// The troubles so far.
    pub fn weather(&self) -> MutexGuard<'_, Weather> {
        lock(&self.weather)
    }

    /// This fault begins.
    pub fn set_fault(&self, fault: &'static str) {
        *lock(&self.fault) = fault;
        self.say(&format!("fault={fault}"));
    }

    /// The fault under way, or the last one.
    pub fn fault(&self) -> &'static str {
        *lock(&self.fault)
    }

    /// Something is about to go wrong.
    pub fn begin(&self, what: &str, whom: Whom, excuse: Excuse) -> Ticket {
        let who =
            if let Whom::Proxy(proxy) = whom { format!(", proxy {proxy}") } else { String::new() };
        self.say(&format!("  {what}{who}"));
        self.weather().begin(what, whom, excuse, self.now())
    }

    /// It is over.
    pub fn over(&self, ticket: Ticket) {
        self.weather().end(ticket, self.now());
    }

    /// Does something that disturbs the connections of all proxies until it is done.
    pub fn disturb(&self, what: &str, act: impl FnOnce(&World)) {
        let ticket = self.begin(what, Whom::All, Excuse::Stale);
        act(self);
        self.over(ticket);
    }

    /// This process was to run at `from`, and did at `to`.
    pub fn stalled(&self, from: Time, to: Time) {
        lock(&self.stalls).push((from, to));
    }

    /// Its stalls in this time.
    pub fn stalls_in(&self, from: Time, to: Time) -> Vec<(Time, Time)> {
        let overlaps = |stall: &&(Time, Time)| stall.0 <= to && stall.1 >= from;
        lock(&self.stalls).iter().filter(overlaps).copied().collect()
    }

    /// Lets time pass, as long as the run goes on.
    pub fn hold(&self, time: Duration) {
        self.end.wait(time);
    }

    /// How often a proxy found that a server lags which had let it in.
    pub fn lags_noticed(&self) -> usize {
        let mut logs: Vec<String> = self.proxies().iter().map(|proxy| proxy.log()).collect();
        logs.push(lock(&self.earlier_logs).clone());
        logs.iter().map(|log| log.matches("it lags").count()).sum()
    }

    // ---- servers

    /// A server that is up and does not lead.
    pub fn follower(&self, rng: &mut Rng) -> usize {
        let leader = self.ensemble.leader();
        (leader + 1 + rng.below(SERVERS - 1)) % SERVERS
    }

    /// Any server but this one.
    pub fn another(&self, than: usize, rng: &mut Rng) -> usize {
        (than + 1 + rng.below(SERVERS - 1)) % SERVERS
    }

    /// All servers in a new order.
    pub fn servers_shuffled(&self, rng: &mut Rng) -> Vec<usize> {
        let mut servers: Vec<usize> = (0..SERVERS).collect();
        rng.shuffle(&mut servers);
        servers
    }

    /// The server's own view.
    pub fn server(&self, server: usize) -> &ZooKeeper {
        &self.ensemble[server]
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked has ended the run already.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stand-in for a cluster that has all tables.
fn cluster_with(cluster: usize, names: &[String]) -> MetaServer {
    let meta = MetaServer::start();
    meta.keep_requests(false);
    for (table, name) in names.iter().enumerate() {
        meta.put_table(name, QueryCfgResponse::table(app_id(table), 1, primary_of(cluster)));
    }
    meta
}

/// The meaning of an answer about a table.
fn told(table: usize, answer: &Answer) -> Told {
    let other = || Told::Other(format!("{answer:?}"));
    let Ok(config) = QueryCfgResponse::decode(&answer.result) else { return other() };
    let primary = config.partitions.first().and_then(|partition| partition.primary);
    match (answer.frame_error.as_str(), config.err.as_str(), primary) {
        ("ERR_OK", "ERR_OK", Some(primary)) => {
            let cluster = (0..CLUSTERS).find(|cluster| primary_of(*cluster) == primary);
            match cluster {
                Some(cluster) if config.app_id == app_id(table) => Told::Cluster(cluster),
                _ => Told::Other(format!("app_id {}, primary {primary}", config.app_id)),
            }
        }
        ("ERR_OK", "ERR_OBJECT_NOT_FOUND", None) => Told::Unknown,
        ("ERR_OK", "ERR_INVALID_DATA", None) => Told::Unusable,
        ("ERR_OK", "ERR_SERVICE_NOT_ACTIVE", None) => Told::Unavailable,
        _ => other(),
    }
}

/// Names the cluster in its answers.
fn primary_of(cluster: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, cluster as u8 + 1], 34801))
}

/// Names the table in answers.
fn app_id(table: usize) -> i32 {
    i32::try_from(table).expect("tables are few") + 1
}

/// Ends the run, early when something is wrong.
#[derive(Default)]
pub struct End {
    state: Mutex<EndState>,
    changed: Condvar,
}

#[derive(Default)]
struct EndState {
    over: bool,
    /// The first thing that was wrong.
    failure: Option<String>,
}

impl End {
    /// Waits until the run is over, but not longer than this; whether it is over.
    pub fn wait(&self, at_most: Duration) -> bool {
        let goes_on = |state: &mut EndState| !state.over;
        let waited = self.changed.wait_timeout_while(lock(&self.state), at_most, goes_on);
        waited.unwrap_or_else(PoisonError::into_inner).0.over
    }

    /// Whether the run is over.
    pub fn is_over(&self) -> bool {
        lock(&self.state).over
    }

    /// The run is over.
    pub fn set(&self) {
        lock(&self.state).over = true;
        self.changed.notify_all();
    }

    /// The run is over because of this. Only the first such reason counts.
    pub fn fail(&self, why: impl FnOnce() -> String) {
        if !self.has_failed() {
            let why = why();
            lock(&self.state).failure.get_or_insert(why);
        }
        self.set();
    }

    /// Whether something was wrong.
    pub fn has_failed(&self) -> bool {
        lock(&self.state).failure.is_some()
    }

    /// The fault.
    pub fn failure(&self) -> Option<String> {
        lock(&self.state).failure.clone()
    }

    /// For a thread of the run: if it panics, the run fails.
    pub fn guard<'a>(&'a self, thread: &'a str) -> Guard<'a> {
        Guard { end: self, thread }
    }
}

/// See [`End::guard`].
pub struct Guard<'a> {
    end: &'a End,
    thread: &'a str,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.end.fail(|| format!("thread {} panicked, see above", self.thread));
        }
    }
}
