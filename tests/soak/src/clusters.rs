//! Do clients of healthy clusters notice that others are in trouble? 200 clusters, of which any may die, hang or slow down
//! at any time, alone or many in one instant.
//!
//! ```text
//! one thread: faults ─▶ clusters (stand-ins) ◀── proxy ◀── mixers: many tables in one write, of any clusters
//!    │ when each was in trouble                    ▲
//!    ▼                                             └────── watchers: one table after the other, of clusters that are well
//! judge, in each client: the answer, how long it took, and what was wrong with its cluster meanwhile
//! ```
//! Each answer must be there in time, one for each query, and of the cluster that was asked. From a cluster that was well
//! it must be its table, at once. In the end all clusters are well again without a client, and the proxy holds no more
//! than at the start.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use harness::client::{Answer, Client};
use harness::http::get;
use harness::meta_server::{Behaviour, MetaServer};
use harness::proxy::Proxy;
use harness::rng::Rng;
use harness::scratch::Scratch;
use harness::wait::poll;
use harness::wire::QueryCfgResponse;
use serde_json::{Map, Value, json};

use crate::arguments::Options;

const CLUSTERS: usize = 200;
const TABLES: usize = 2;
/// Clients that ask for many tables in one write, and how many.
const MIXERS: usize = 12;
const MIXED: usize = 24;
/// Clients that ask for tables of clusters that are well, and their pause between two queries.
const WATCHERS: usize = 4;
const PACE: Duration = Duration::from_millis(5);
/// Clusters that may be in trouble at once.
const MAX_TROUBLED: usize = 150;
/// Clusters that get into trouble in one instant, now and then.
const BURST: usize = 100;

/// In which a client of a healthy cluster is answered, on a machine that runs all of this beside.
const AT_ONCE: Duration = Duration::from_millis(500);
/// In which any query is answered: the proxy's `query_timeout_ms`.
const IN_TIME: Duration = Duration::from_millis(1_500);
/// In which a cluster that is repaired is well again, for the proxy.
const WELL_AGAIN: Duration = Duration::from_secs(2);
/// Idle links are closed after 10 s; the rest is for the machine.
const TIDY_WITHIN: Duration = Duration::from_secs(30);
/// More than at the start: probes under way, threads that look names up or wait for work.
const MORE_FDS: usize = 16;
const MORE_THREADS: usize = 2;

/// One cluster: a MetaServer, and a second address where nobody listens.
struct Cluster {
    number: usize,
    addr: SocketAddr,
    /// `None`: connections are refused.
    server: Mutex<Option<MetaServer>>,
    troubles: Mutex<Vec<Trouble>>,
}

/// From when to when something was wrong; `None`: it still is.
struct Trouble {
    fault: Fault,
    from: Instant,
    until: Option<Instant>,
}

impl Cluster {
    fn start(number: usize) -> Result<Self, String> {
        let server = start_server(number, ([127, 0, 0, 1], 0).into())?;
        let addr = server.addr();
        let (server, troubles) = (Mutex::new(Some(server)), Mutex::default());
        Ok(Cluster { number, addr, server, troubles })
    }

    fn troubles(&self) -> MutexGuard<'_, Vec<Trouble>> {
        self.troubles.lock().expect("nothing panics while holding it")
    }

    fn is_troubled(&self) -> bool {
        self.troubles().last().is_some_and(|trouble| trouble.until.is_none())
    }

    /// Whether nothing was wrong from then to then.
    fn was_well(&self, from: Instant, to: Instant) -> bool {
        let overlaps =
            |trouble: &Trouble| trouble.from <= to && trouble.until.is_none_or(|end| end >= from);
        !self.troubles().iter().any(overlaps)
    }

    /// The last trouble, and how long ago it was.
    fn story(&self, now: Instant) -> String {
        let ago = |at: Instant| format!("{:.3} s ago", (now - at).as_secs_f64());
        let tell = |trouble: &Trouble| {
            let until = trouble.until.map_or("now".to_owned(), ago);
            format!("{:?} from {} until {until}", trouble.fault, ago(trouble.from))
        };
        self.troubles().iter().map(tell).collect::<Vec<_>>().join("; ")
    }

    fn suffer(&self, fault: Fault) {
        self.troubles().push(Trouble { fault, from: Instant::now(), until: None });
        let mut server = self.server.lock().expect("nothing panics while holding it");
        match (fault, &*server) {
            (Fault::Dies, _) => *server = None,
            (Fault::Hangs, Some(server)) => server.set(Behaviour::Mute),
            (Fault::Closes, Some(server)) => server.set(Behaviour::CloseOnRequest),
            (Fault::SlowsDown(delay), Some(server)) => server.set(Behaviour::Slow(delay)),
            (_, None) => {}
        }
    }

    fn recover(&self) -> Result<(), String> {
        let mut server = self.server.lock().expect("nothing panics while holding it");
        match &*server {
            Some(server) => server.set(Behaviour::Leader),
            None => *server = Some(start_server(self.number, self.addr)?),
        }
        let mut troubles = self.troubles();
        if let Some(trouble) = troubles.last_mut() {
            trouble.until = Some(Instant::now());
        }
        // No query is under way for so long.
        let old = Instant::now().checked_sub(Duration::from_secs(60));
        troubles.retain(|trouble| trouble.until.is_none_or(|until| Some(until) > old));
        Ok(())
    }
}

fn start_server(number: usize, addr: SocketAddr) -> Result<MetaServer, String> {
    let server =
        MetaServer::start_on(addr).map_err(|e| format!("cluster {number}, {addr}: {e}"))?;
    server.keep_requests(false);
    for n in 0..TABLES {
        let primary = ([10, 0, 0, 1], 34801).into();
        server.put_table(&name(number, n), QueryCfgResponse::table(number as i32, 4, primary));
    }
    Ok(server)
}

fn name(cluster: usize, table: usize) -> String {
    format!("t{cluster}_{table}")
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Dies,
    Hangs,
    Closes,
    SlowsDown(Duration),
}

impl Fault {
    fn choose(rng: &mut Rng) -> Self {
        match rng.below(4) {
            0 => Fault::Dies,
            1 => Fault::Hangs,
            2 => Fault::Closes,
            _ => Fault::SlowsDown(rng.ms(50..=2_000)),
        }
    }
}

/// All that was seen.
#[derive(Default)]
struct Seen {
    answers: usize,
    refused: usize,
    /// How long answers of clusters that were well took.
    waits: Vec<Duration>,
    slowest: Duration,
}

impl Seen {
    fn add(&mut self, other: Seen) {
        self.answers += other.answers;
        self.refused += other.refused;
        self.waits.extend(other.waits);
        self.slowest = self.slowest.max(other.slowest);
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut waits = self.waits.clone();
        waits.sort_unstable();
        let quantile = |n: usize, of: usize| {
            waits.get((waits.len() * n / of).min(waits.len().saturating_sub(1))).copied()
        };
        let ms = |wait: Option<Duration>| wait.unwrap_or_default().as_secs_f64() * 1e3;
        write!(
            f,
            "answers={} refused={} of_well_clusters={} p50_ms={:.1} p99_ms={:.1} worst_ms={:.1} slowest_of_all_ms={:.1}",
            self.answers,
            self.refused,
            waits.len(),
            ms(quantile(1, 2)),
            ms(quantile(99, 100)),
            ms(waits.last().copied()),
            ms(Some(self.slowest)),
        )
    }
}

struct World<'a> {
    clusters: Vec<Cluster>,
    proxy: &'a Proxy,
    slack: Duration,
    is_over: AtomicBool,
}

/// Asks for the time that the options say.
pub fn soak(options: &Options) -> Result<(), String> {
    let clusters: Vec<Cluster> = (0..CLUSTERS).map(Cluster::start).collect::<Result<_, _>>()?;
    let scratch = Scratch::new("clusters");
    let proxy = start_proxy(&options.proxy, &scratch, &clusters);
    let before = (proxy.open_fds(), proxy.threads().len());
    let world =
        World { clusters, proxy: &proxy, slack: options.slack, is_over: AtomicBool::new(false) };
    let mut seen = Seen::default();
    let (faults, failed) = thread::scope(|scope| {
        let seed = options.seed;
        let world = &world;
        let mut clients: Vec<ScopedJoinHandle<'_, Result<Seen, String>>> = Vec::new();
        for n in 0..MIXERS {
            clients.push(scope.spawn(move || world.or_end(mix(world, Rng::new(seed, n as u64)))));
        }
        for n in MIXERS..MIXERS + WATCHERS {
            clients.push(scope.spawn(move || world.or_end(watch(world, Rng::new(seed, n as u64)))));
        }
        let faults = world.or_end(trouble(world, Rng::new(seed, 1_000), options.time));
        world.is_over.store(true, Relaxed);
        let mut failed = faults.clone().err();
        for client in clients {
            match client.join().unwrap_or_else(|_| Err("a client panicked".to_owned())) {
                Ok(one) => seen.add(one),
                Err(why) => failed = failed.take().or(Some(why)),
            }
        }
        (faults.unwrap_or_default(), failed)
    });
    println!("clusters={CLUSTERS} faults={faults} {seen}");
    failed.map_or(Ok(()), Err)?;
    world.assert_all_well()?;
    world.assert_tidy(before)?;
    let log = proxy.log();
    let odd = |line: &&str| line.contains("panicked") || line.contains("closed: ");
    log.lines().find(odd).map_or(Ok(()), |line| Err(format!("in the log: {line}")))
}

fn start_proxy(binary: &Path, scratch: &Scratch, clusters: &[Cluster]) -> Proxy {
    let mut routes = Map::new();
    for Cluster { number, addr, .. } in clusters {
        // Nobody listens at the second one.
        let nobody = format!("127.2.{}.{}:1", number / 250, 1 + number % 250);
        let record =
            json!({"cluster": format!("c{number}"), "meta-addrs": [addr.to_string(), nobody]});
        routes.extend((0..TABLES).map(|table| (name(*number, table), record.clone())));
    }
    let file = scratch.write("routes.json", Value::Object(routes).to_string());
    Proxy::builder(binary).routes_file(file).config_extra("probe_interval_s: 5").start()
}

/// One fault after the other, and now and then very many; returns how many.
fn trouble(world: &World<'_>, mut rng: Rng, during: Duration) -> Result<usize, String> {
    let (end, mut faults) = (Instant::now() + during, 0);
    // When each cluster that is in trouble is repaired.
    let mut repairs: HashMap<usize, Instant> = HashMap::new();
    while Instant::now() < end && !world.is_over.load(Relaxed) {
        let is_burst = rng.below(100) == 0;
        let fault = Fault::choose(&mut rng);
        for _ in 0..if is_burst { BURST } else { 1 } {
            let cluster = rng.below(CLUSTERS);
            if repairs.len() < MAX_TROUBLED && !repairs.contains_key(&cluster) {
                let fault = if is_burst { fault } else { Fault::choose(&mut rng) };
                world.clusters[cluster].suffer(fault);
                repairs.insert(cluster, Instant::now() + rng.ms(300..=8_000));
                faults += 1;
            }
        }
        let now = Instant::now();
        for (cluster, _) in repairs.extract_if(|_, at| *at <= now) {
            world.clusters[cluster].recover()?;
        }
        thread::sleep(rng.ms(10..=60));
    }
    for cluster in repairs.into_keys() {
        world.clusters[cluster].recover()?;
    }
    Ok(faults)
}

/// Asks for tables of any clusters, many in one write.
fn mix(world: &World<'_>, mut rng: Rng) -> Result<Seen, String> {
    let mut client = world.connect(&mut rng)?;
    let mut seen = Seen::default();
    while !world.is_over.load(Relaxed) {
        let clusters: Vec<usize> = (0..MIXED).map(|_| rng.below(CLUSTERS)).collect();
        let tables: Vec<String> =
            clusters.iter().map(|cluster| name(*cluster, rng.below(TABLES))).collect();
        let sent = Instant::now();
        let seqs = client.send_queries(tables.iter().map(String::as_str));
        let mut waiting: HashMap<i32, usize> = seqs.into_iter().zip(clusters).collect();
        while !waiting.is_empty() {
            let answer = client
                .try_read_answer(IN_TIME + 10 * world.slack)
                .map_err(|why| format!("{} of {MIXED} queries unanswered: {why}", waiting.len()))?;
            let cluster = waiting
                .remove(&answer.seq)
                .ok_or_else(|| format!("an answer that nobody waits for: {answer:?}"))?;
            world.judge(cluster, &answer, sent, &mut seen)?;
        }
    }
    Ok(seen)
}

/// Asks for tables of clusters that are well, one after the other.
fn watch(world: &World<'_>, mut rng: Rng) -> Result<Seen, String> {
    let mut client = world.connect(&mut rng)?;
    let mut seen = Seen::default();
    while !world.is_over.load(Relaxed) {
        let cluster = rng.below(CLUSTERS);
        if world.clusters[cluster].is_troubled() {
            continue;
        }
        let (table, sent) = (name(cluster, rng.below(TABLES)), Instant::now());
        let answer = client
            .try_ask(&table, IN_TIME + 10 * world.slack)
            .map_err(|why| format!("table {table}: {why}"))?;
        world.judge(cluster, &answer, sent, &mut seen)?;
        thread::sleep(PACE);
    }
    Ok(seen)
}

impl World<'_> {
    fn connect(&self, rng: &mut Rng) -> Result<Client, String> {
        let host = IpAddr::from([127, 0, 0, 2 + rng.below(8) as u8]);
        Client::connect_from(host, self.proxy.addr()).map_err(|e| format!("connect: {e}"))
    }

    /// The first failure ends the run for all.
    fn or_end<T>(&self, done: Result<T, String>) -> Result<T, String> {
        done.inspect_err(|_| self.is_over.store(true, Relaxed))
    }

    fn judge(
        &self,
        cluster: usize,
        answer: &Answer,
        sent: Instant,
        seen: &mut Seen,
    ) -> Result<(), String> {
        let now = Instant::now();
        let took = now - sent;
        let settled = sent.checked_sub(WELL_AGAIN + self.slack).unwrap_or(sent);
        let was_well = self.clusters[cluster].was_well(settled, now);
        let is_right = match answer.err.as_deref() {
            Some("ERR_OK") => answer.config().app_id == cluster as i32,
            Some("ERR_SERVICE_NOT_ACTIVE") => !was_well,
            _ => false,
        };
        let bound = self.slack + if was_well { AT_ONCE } else { IN_TIME };
        if !is_right || took > bound {
            let state = if was_well { "was well" } else { "was in trouble" };
            let troubles = self.clusters[cluster].story(now);
            let log = self.proxy.log();
            let of_it = format!("cluster=c{cluster} ");
            let lines: Vec<&str> = log.lines().filter(|line| line.contains(&of_it)).collect();
            return Err(format!(
                "cluster {cluster}, which {state}: {took:?} of at most {bound:?}, {answer:?}\n\
                 its troubles: {troubles}\nof it in the log:\n{}",
                lines.join("\n")
            ));
        }
        seen.answers += 1;
        seen.refused += usize::from(answer.err.as_deref() != Some("ERR_OK"));
        seen.slowest = seen.slowest.max(took);
        if was_well {
            seen.waits.push(took);
        }
        Ok(())
    }

    /// Without any client all are seen to be well, and then answer.
    fn assert_all_well(&self) -> Result<(), String> {
        let failing = || -> Result<Vec<String>, String> {
            let text = get(self.proxy.admin(), "/clusters");
            let page: Value = serde_json::from_str(&text).map_err(|e| format!("/clusters: {e}"))?;
            let clusters = page["clusters"].as_array().ok_or("/clusters: no list")?;
            if clusters.len() != CLUSTERS {
                return Err(format!("/clusters: {} of {CLUSTERS}", clusters.len()));
            }
            let is_failing = |cluster: &&Value| !cluster["failing_s"].is_null();
            Ok(clusters
                .iter()
                .filter(is_failing)
                .map(|cluster| cluster["name"].to_string())
                .collect())
        };
        let mut last = failing()?;
        poll(WELL_AGAIN + self.slack, || {
            last = failing().unwrap_or_default();
            last.is_empty().then_some(())
        })
        .ok_or_else(|| format!("still failing after {WELL_AGAIN:?}: {last:?}"))?;
        let mut client = self.connect(&mut Rng::new(0, 0))?;
        for Cluster { number, .. } in &self.clusters {
            let answer = client.try_ask(&name(*number, 0), IN_TIME).map_err(|e| e.to_string())?;
            if answer.err.as_deref() != Some("ERR_OK") {
                return Err(format!("cluster {number} is repaired: {answer:?}"));
            }
        }
        Ok(())
    }

    /// It holds what it held before the first client came.
    fn assert_tidy(&self, (fds, threads): (usize, usize)) -> Result<(), String> {
        let now = || (self.proxy.open_fds(), self.proxy.threads().len());
        let is_tidy =
            |now: (usize, usize)| now.0 <= fds + MORE_FDS && now.1 <= threads + MORE_THREADS;
        match poll(TIDY_WITHIN, || Some(now()).filter(|now| is_tidy(*now))) {
            Some((fds, threads)) => {
                println!("tidy fds={fds} threads={threads}");
                Ok(())
            }
            None => Err(format!(
                "(descriptors, threads): {:?} after {TIDY_WITHIN:?}, {:?} before",
                now(),
                (fds, threads)
            )),
        }
    }
}
