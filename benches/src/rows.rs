//! The measurements: one function for each row of the report, each over one target that was just started.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use std::{io, mem};

use harness::client::Client;
use harness::wait::poll;
use harness::wire::QueryCfgResponse;

use crate::crowd::{self, Case};
use crate::frames::Question;
use crate::load::Load;
use crate::meta::MetaProcess;
use crate::routes::{self, MOVING, Routes, TABLE};
use crate::syscalls::{self, Counter, TOTAL};
use crate::tally::{Tally, quantiles};
use crate::target::{Kind, Target, Usage};

/// Connections of most rows.
const CLIENTS: usize = 64;
/// Queries under way while many connections are made sure of, one after the other.
const PACED: usize = 32;
/// Connections over which many tables are asked for.
const LIST_CLIENTS: usize = 8;
/// Memory settles, threads that were busy go to sleep.
const SETTLE: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(10);
/// `app_id` in the answers of the two clusters.
pub const FIRST_CLUSTER: i32 = 1;
const SECOND_CLUSTER: i32 = 2;

/// One number that was measured, by name.
pub type Value = (&'static str, f64);
type Values = Result<Vec<Value>, String>;

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Time of a steady load.
    pub phase: Duration,
    /// Before it.
    pub warm_up: Duration,
    /// Time of an open loop, whose tail needs more.
    pub open_phase: Duration,
    /// Time of a crowd; half of it is trouble.
    pub crowd_phase: Duration,
    /// Clients that ask at once.
    pub herd: usize,
    /// How often they do.
    pub herds: usize,
    /// Connections that do nothing.
    pub idle: usize,
    /// Changes of a route.
    pub switches: usize,
    /// Names asked for that no table has.
    pub unknown: usize,
    /// Connections that come and go, at most.
    pub churn: usize,
}

impl Sizes {
    /// For numbers that are to be believed.
    pub fn full() -> Self {
        Sizes {
            phase: Duration::from_millis(2_000),
            warm_up: Duration::from_millis(300),
            open_phase: Duration::from_millis(3_000),
            crowd_phase: Duration::from_millis(12_000),
            herd: 9_900,
            herds: 3,
            idle: 9_900,
            switches: 200,
            unknown: 2_000,
            churn: 10_000,
        }
    }

    /// To see whether it works.
    pub fn quick() -> Self {
        Sizes {
            phase: Duration::from_millis(500),
            warm_up: Duration::from_millis(100),
            open_phase: Duration::from_millis(1_000),
            crowd_phase: Duration::from_millis(2_000),
            herds: 1,
            switches: 40,
            unknown: 500,
            churn: 3_000,
            ..Self::full()
        }
    }
}

/// All that is around a target.
pub struct Bed {
    /// Behind every target.
    pub meta: MetaProcess,
    /// Changes places with it for the rows whose tables have many partitions, and back.
    spare_meta: MetaProcess,
    /// Where a table moves to.
    pub other_meta: MetaProcess,
    /// How proxies find them.
    pub routes: Routes,
    /// How much is measured.
    pub sizes: Sizes,
    /// Queries per second of the open loop.
    pub open_rate: f64,
    /// Names used up, so that each is asked for only once.
    pub unknown_names: usize,
}

impl Bed {
    /// Starts the MetaServers and writes the routes.
    pub fn new(sizes: Sizes, partitions: i32, zookeeper: bool) -> io::Result<Self> {
        let meta = MetaProcess::start(FIRST_CLUSTER, partitions)?;
        let wide = MetaProcess::start(FIRST_CLUSTER, WIDE_PARTITIONS)?;
        let tables = routes::all(meta.addr(), wide.addr());
        Ok(Bed {
            other_meta: MetaProcess::start(SECOND_CLUSTER, partitions)?,
            routes: if zookeeper {
                Routes::in_zookeeper(&tables)
            } else {
                Routes::in_file(&tables)
            },
            meta,
            spare_meta: wide,
            sizes,
            open_rate: 0.0,
            unknown_names: 0,
        })
    }

    /// Has the MetaServer whose tables have many partitions behind every target, while `measure` runs.
    pub fn with_many_partitions<T>(&mut self, measure: impl FnOnce(&mut Self) -> T) -> T {
        mem::swap(&mut self.meta, &mut self.spare_meta);
        let measured = measure(self);
        mem::swap(&mut self.meta, &mut self.spare_meta);
        measured
    }
}

/// A measurement.
pub struct Row {
    /// For `--only`.
    pub id: &'static str,
    /// The targets that it is about.
    pub about: About,
    /// Measures once.
    pub measure: fn(&mut Bed, &Target) -> Values,
}

/// Which targets a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    All,
    /// Those that are a process of their own.
    Proxies,
    /// The proxy of this project.
    Ours,
    /// Those that know more than one cluster; their routes must stand in ZooKeeper.
    Routers,
}

impl About {
    /// Whether it is one of them.
    pub fn includes(self, kind: Kind) -> bool {
        match self {
            About::All => true,
            About::Proxies => kind != Kind::Direct,
            About::Ours => kind == Kind::MetaProxy,
            About::Routers => matches!(kind, Kind::Peer | Kind::MetaProxy),
        }
    }
}

/// The row that is measured only if asked for: neither perf nor strace is everywhere.
pub const SYSCALLS: &str = "syscalls";

/// The row that is measured with [`Bed::with_many_partitions`].
pub const WIDE: &str = "wide";
/// As the largest tables have.
const WIDE_PARTITIONS: i32 = 256;

/// Stands for all rows whose names begin so.
pub const CROWD: &str = "crowd";

/// All of them, in the order in which they are measured: the open loop wants to know what `clients` found.
pub const ROWS: &[Row] = &[
    Row { id: "start", about: About::Proxies, measure: start },
    Row { id: "one-client", about: About::All, measure: one_client },
    Row { id: "clients", about: About::All, measure: clients },
    Row { id: "ten", about: About::All, measure: ten },
    Row { id: WIDE, about: About::All, measure: wide },
    Row { id: "spread", about: About::All, measure: spread },
    Row { id: "pipelined", about: About::All, measure: pipelined },
    Row { id: "pipelined-ten", about: About::All, measure: pipelined_ten },
    Row { id: "open-loop", about: About::All, measure: open_loop },
    Row { id: "herd", about: About::All, measure: herd },
    Row { id: "churn", about: About::All, measure: churn },
    Row { id: "idle", about: About::Proxies, measure: idle },
    Row { id: "switch", about: About::Routers, measure: switch },
    Row { id: "cold", about: About::Routers, measure: cold },
    Row { id: "unknown", about: About::Routers, measure: unknown },
    Row { id: "crowd-mute", about: About::Ours, measure: |b, t| crowd(b, t, Case::Mute) },
    Row { id: "crowd-slow", about: About::Ours, measure: |b, t| crowd(b, t, Case::Slow) },
    Row { id: "crowd-dying", about: About::Ours, measure: |b, t| crowd(b, t, Case::Dying) },
    Row { id: "crowd-refusing", about: About::Ours, measure: |b, t| crowd(b, t, Case::Refusing) },
    Row { id: "crowd-greedy", about: About::Ours, measure: |b, t| crowd(b, t, Case::Greedy) },
    Row {
        id: "crowd-greedy-host",
        about: About::Ours,
        measure: |b, t| crowd(b, t, Case::GreedyHost),
    },
    Row {
        id: "crowd-greedy-hosts",
        about: About::Ours,
        measure: |b, t| crowd(b, t, Case::GreedyHosts),
    },
    Row { id: SYSCALLS, about: About::Proxies, measure: system_calls },
];

// ---- start

/// It has just been started, with a MetaServer that answers and its routes at hand.
fn start(_bed: &mut Bed, target: &Target) -> Values {
    let process = target.process().ok_or("no process")?;
    Ok(vec![
        ("ms", target.took.as_secs_f64() * 1e3),
        ("rss_bytes", process.rss_bytes() as f64),
        ("binary_bytes", target.binary_bytes().ok_or("no exe in /proc")? as f64),
    ])
}

// ---- steady load

fn one_client(bed: &mut Bed, target: &Target) -> Values {
    steady(bed, target, 1, 1, &[TABLE.to_owned()])
}

fn clients(bed: &mut Bed, target: &Target) -> Values {
    steady(bed, target, CLIENTS, 1, &[TABLE.to_owned()])
}

/// As real clients: each opens several tables.
fn ten(bed: &mut Bed, target: &Target) -> Values {
    steady(bed, target, CLIENTS, 1, &routes::spread()[..10])
}

/// Answers of a few KiB cost more to copy than to ask for.
fn wide(bed: &mut Bed, target: &Target) -> Values {
    steady(bed, target, CLIENTS, 1, &routes::wide())
}

fn spread(bed: &mut Bed, target: &Target) -> Values {
    steady(bed, target, CLIENTS, 1, &routes::spread())
}

fn pipelined(bed: &mut Bed, target: &Target) -> Values {
    steady(bed, target, 4, 16, &[TABLE.to_owned()])
}

fn pipelined_ten(bed: &mut Bed, target: &Target) -> Values {
    steady(bed, target, 4, 16, &routes::spread()[..10])
}

fn steady(
    bed: &mut Bed,
    target: &Target,
    clients: usize,
    depth: usize,
    tables: &[String],
) -> Values {
    let Sizes { phase, warm_up, .. } = bed.sizes;
    let mut load = connect(target, clients, tables)?;
    all_ok(load.closed(depth, warm_up))?;
    metered(bed, target, || load.closed(depth, phase))
}

fn open_loop(bed: &mut Bed, target: &Target) -> Values {
    let Sizes { open_phase, warm_up, .. } = bed.sizes;
    let rate = bed.open_rate;
    let mut load = connect(target, CLIENTS, &[TABLE.to_owned()])?;
    all_ok(load.open(rate, warm_up).map(|open| open.tally))?;
    let mut lateness = None;
    let mut values = metered(bed, target, || {
        let open = load.open(rate, open_phase)?;
        lateness = Some(open.lateness);
        Ok(open.tally)
    })?;
    let [late_p99] = lateness.map_or([f64::NAN], |late| late.quantiles_us([0.99]));
    values.extend([("wanted_rate", rate), ("late_p99_us", late_p99)]);
    Ok(values)
}

// ---- many bad clusters, and greedy clients

fn crowd(bed: &mut Bed, target: &Target, case: Case) -> Values {
    let pid = target.process().ok_or("no process")?.pid();
    let binary = fs::read_link(format!("/proc/{pid}/exe")).map_err(|e| e.to_string())?;
    crowd::measure(case, &binary, bed.meta.addr(), bed.sizes.crowd_phase)
}

// ---- many connections

fn herd(bed: &mut Bed, target: &Target) -> Values {
    let mut load = connect(target, bed.sizes.herd, &[TABLE.to_owned()])?;
    // Now all of them are known to be open all the way.
    all_ok(load.each_client(PACED))?;
    thread::sleep(SETTLE);
    let mut times = Vec::new();
    let mut upstream = Vec::new();
    for _ in 0..bed.sizes.herds {
        let before = calls(bed)?;
        let tally = all_ok(load.herd())?;
        times.push(tally.elapsed().as_secs_f64() * 1e3);
        upstream.push((calls(bed)? - before) as f64);
    }
    let ([ms], [upstream]) = (quantiles(&mut times, [0.5]), quantiles(&mut upstream, [0.5]));
    Ok(vec![("ms", ms), ("upstream", upstream)])
}

fn churn(bed: &mut Bed, target: &Target) -> Values {
    let Sizes { phase, churn, .. } = bed.sizes;
    let mut load = connect(target, CLIENTS, &[TABLE.to_owned()])?;
    metered(bed, target, || load.churn(churn, phase))
}

fn idle(bed: &mut Bed, target: &Target) -> Values {
    // Memory that a busy target holds for itself does not count as that of connections.
    all_ok(connect(target, CLIENTS, &[TABLE.to_owned()])?.closed(1, bed.sizes.warm_up))?;
    thread::sleep(SETTLE);
    let process = target.process().ok_or("no process")?;
    let bytes = pss(target)?;

    let count = bed.sizes.idle;
    let mut load = connect(target, count, &[TABLE.to_owned()])?;
    poll(PATIENCE, || (process.open_fds() >= count).then_some(()))
        .ok_or_else(|| format!("{} descriptors open for {count} clients", process.open_fds()))?;
    thread::sleep(SETTLE);
    let fresh = pss(target)?;
    let before = target.usage().ok_or("no /proc")?;
    thread::sleep(Duration::from_secs(1));
    let idle_cpu = target.usage().ok_or("no /proc")?.since(before).cpu_ns;

    all_ok(load.each_client(PACED))?;
    thread::sleep(SETTLE);
    let asked = pss(target)?;
    let each = |now: u64| (now as f64 - bytes as f64) / count as f64;
    Ok(vec![
        ("bytes", each(fresh)),
        ("bytes_asked", each(asked)),
        ("start_kib", bytes as f64 / 1024.0),
        ("cpu_ms_per_s", idle_cpu as f64 / 1e6),
    ])
}

// ---- routes

fn switch(bed: &mut Bed, target: &Target) -> Values {
    let zk = bed.routes.zookeeper()?;
    let (seen, changes) = mpsc::channel();
    let asker = Asker::start(target, seen)?;
    let next_change = || changes.recv_timeout(PATIENCE).map_err(|_| "no other answer any more");
    let (mut cluster, _) = next_change()?;
    let (mut from_set, mut from_before) = (Vec::new(), Vec::new());
    let mut back = 0.0;
    for at in 0..bed.sizes.switches {
        // Changes must not keep step with anything that a proxy does by the clock.
        thread::sleep(Duration::from_micros(5_000 + 700 * (at as u64 % 11)));
        let meta = match cluster {
            FIRST_CLUSTER => &bed.other_meta,
            _ => &bed.meta,
        };
        cluster = FIRST_CLUSTER + SECOND_CLUSTER - cluster;
        let before = Instant::now();
        zk.set(&routes::path(MOVING), routes::record(meta.addr()));
        let set = Instant::now();
        let switched = loop {
            match next_change()? {
                (seen, when) if seen == cluster => break when,
                _ => back += 1.0, // an answer from the old cluster after one from the new
            }
        };
        let ms = |since: Instant| switched.saturating_duration_since(since).as_secs_f64() * 1e3;
        from_set.push(ms(set));
        from_before.push(ms(before));
    }
    asker.stop()?;
    let [p50, p99] = quantiles(&mut from_set, [0.5, 0.99]);
    let [p50_with_set, p99_with_set] = quantiles(&mut from_before, [0.5, 0.99]);
    Ok(vec![
        ("p50_ms", p50),
        ("p99_ms", p99),
        ("p50_ms_with_set", p50_with_set),
        ("p99_ms_with_set", p99_with_set),
        ("went_back", back),
    ])
}

/// A client in a closed loop, in a thread of its own.
struct Asker {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Result<(), String>>,
}

impl Asker {
    /// `seen` is told which cluster answers, whenever that changes.
    fn start(target: &Target, seen: mpsc::Sender<(i32, Instant)>) -> Result<Self, String> {
        let mut client =
            Client::try_connect(target.addr, PATIENCE).map_err(|e| format!("connect: {e}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let ask_on = move || {
            let mut last = None;
            while !stopped.load(Ordering::Relaxed) {
                let answer = client.try_ask(MOVING, PATIENCE).map_err(|e| e.to_string())?;
                let at = Instant::now();
                if !answer.is_ok() {
                    return Err(format!("{answer:?}"));
                }
                let config = QueryCfgResponse::decode(&answer.result).map_err(|e| e.to_string())?;
                let cluster = config.app_id;
                if last.replace(cluster) != Some(cluster) && seen.send((cluster, at)).is_err() {
                    break;
                }
            }
            Ok(())
        };
        let thread = thread::Builder::new().name("asker".to_owned()).spawn(ask_on);
        thread.map(|thread| Asker { stop, thread }).map_err(|e| e.to_string())
    }

    fn stop(self) -> Result<(), String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the asking thread panicked")?
    }
}

fn cold(bed: &mut Bed, target: &Target) -> Values {
    let zk = bed.routes.zookeeper()?;
    let mut load = connect(target, LIST_CLIENTS, &routes::cold())?;
    let before = packets(zk)?;
    let tally = all_ok(load.list())?;
    let reads = (packets(zk)? - before - 1.0) / tally.count() as f64;
    let rate = tally.rate();
    let [p50, p99] = tally.quantiles_us([0.5, 0.99]);
    Ok(vec![("tables_per_s", rate), ("zk_packets", reads), ("p50_us", p50), ("p99_us", p99)])
}

fn unknown(bed: &mut Bed, target: &Target) -> Values {
    let names: Vec<String> = (0..bed.sizes.unknown)
        .map(|number| format!("nosuch{}", bed.unknown_names + number))
        .collect();
    bed.unknown_names += names.len();
    let zk = bed.routes.zookeeper()?;
    let mut load = connect(target, LIST_CLIENTS, &names)?;

    // Asking for the counter is a packet as well.
    let start = packets(zk)?;
    let quiet = Duration::from_secs(1);
    thread::sleep(quiet);
    let idle_per_s = (packets(zk)? - start - 1.0) / quiet.as_secs_f64();

    let before = packets(zk)?;
    let tally = load.list().map_err(|e| e.to_string())?;
    let elapsed = tally.elapsed().as_secs_f64();
    let packets = packets(zk)? - before - 1.0 - idle_per_s * elapsed;
    if tally.errors() != tally.count() {
        return Err(format!("{} of {} have no error", tally.errors(), tally.count()));
    }
    let reads = (packets / tally.count() as f64).max(0.0);
    Ok(vec![("zk_reads", reads), ("zk_idle_packets_per_s", idle_per_s), ("rate", tally.rate())])
}

// ---- system calls

/// A row of its own, because to count them costs the target time.
fn system_calls(bed: &mut Bed, target: &Target) -> Values {
    let process = target.process().ok_or("no process")?;
    let mut load = connect(target, CLIENTS, &[TABLE.to_owned()])?;
    all_ok(load.closed(1, bed.sizes.warm_up))?;
    let counter = Counter::attach(process.pid())?;
    let queries = all_ok(load.closed(1, bed.sizes.phase))?.count();
    let counts = counter.finish()?;
    let each = |name: &str| counts.get(name).copied().unwrap_or(0.0) / queries as f64;
    let mut values = vec![("per_query", each(TOTAL))];
    values.extend(syscalls::NAMES.map(|name| (name, each(name))));
    Ok(values)
}

// ---- parts

fn connect(target: &Target, clients: usize, tables: &[String]) -> Result<Load, String> {
    let questions = tables.iter().map(|table| Question::new(table)).collect();
    Load::connect(target.addr, clients, questions).map_err(|e| format!("connect: {e}"))
}

fn all_ok(tally: io::Result<Tally>) -> Result<Tally, String> {
    match tally {
        Err(e) => Err(e.to_string()),
        Ok(tally) if tally.errors() > 0 => {
            Err(format!("{} of {} answers were errors", tally.errors(), tally.count()))
        }
        Ok(tally) => Ok(tally),
    }
}

fn calls(bed: &mut Bed) -> Result<u64, String> {
    bed.meta.calls().map_err(|e| e.to_string())
}

fn pss(target: &Target) -> Result<u64, String> {
    target.pss_bytes().ok_or_else(|| "no Pss in /proc".to_owned())
}

fn packets(zk: &harness::zookeeper::ZooKeeper) -> Result<f64, String> {
    let packets = zk.counter("zk_packets_received").ok_or("mntr has no zk_packets_received")?;
    Ok(packets as f64)
}

/// Runs a phase: how fast it was, and what each query cost.
fn metered(bed: &mut Bed, target: &Target, phase: impl FnOnce() -> io::Result<Tally>) -> Values {
    let before = Meter::read(bed, target)?;
    let tally = all_ok(phase())?;
    let mut values = vec![("rate", tally.rate())];
    values.extend(Meter::read(bed, target)?.per_query(&before, tally.count()));
    let [p50, p99, p999] = tally.quantiles_us([0.5, 0.99, 0.999]);
    values.extend([("p50_us", p50), ("p99_us", p99), ("p999_us", p999)]);
    Ok(values)
}

/// Processor time of all that take part, so far.
struct Meter {
    target: Option<Usage>,
    meta: Usage,
    load: Usage,
    calls: u64,
}

impl Meter {
    fn read(bed: &mut Bed, target: &Target) -> Result<Self, String> {
        let meta = Path::new("/proc").join(bed.meta.pid().to_string());
        Ok(Meter {
            target: target.usage(),
            meta: Usage::of(&meta).ok_or("no /proc")?,
            load: Usage::of(Path::new("/proc/self")).ok_or("no /proc")?,
            calls: calls(bed)?,
        })
    }

    fn per_query(&self, before: &Self, count: u64) -> Vec<Value> {
        let each = |value: u64| value as f64 / count as f64;
        let us = |now: Usage, before: Usage| each(now.since(before).cpu_ns) / 1e3;
        let mut values = vec![
            ("meta_cpu_us", us(self.meta, before.meta)),
            ("load_cpu_us", us(self.load, before.load)),
            ("upstream", each(self.calls - before.calls)),
        ];
        if let (Some(now), Some(then)) = (self.target, before.target) {
            let used = now.since(then);
            values.extend([
                ("cpu_us", us(now, then)),
                ("voluntary", each(used.voluntary)),
                ("involuntary", each(used.involuntary)),
            ]);
        }
        values
    }
}
