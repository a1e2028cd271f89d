//! Measures what many tables and many proxies cost ZooKeeper when all connections break at once, and whether very many
//! tables with very long names can be served.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::http::get;
use harness::proxy::Proxy;
use harness::wait::poll;
use harness::zookeeper::Sessions;

use crate::arguments::Options;
use crate::checker::Told;
use crate::crowd::another_cluster;
use crate::history::Value;
use crate::weather::View;
use crate::world::{ROOT, World};
use harness::rng::Rng;

/// Reconnects that are measured.
const ROUNDS: usize = 3;
/// Many proxies on one machine: fewer threads each.
const SETTINGS: &str = "workers: 4";
/// A proxy logs this when it has read all again.
const CONFIRMED: &str = "cached routes are confirmed";
/// Two cores read a million tables in some minutes.
const CACHED_WITHIN: Duration = Duration::from_secs(600);
/// Far more than it should take.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(120);
/// Queries that are under way at once while a proxy is asked for all tables.
const AT_ONCE: usize = 200;
/// Tables asked for to see whether they are served.
const SAMPLE: usize = 500;
const SAMPLE_WITHIN: Duration = Duration::from_secs(30);

/// Prints what a reconnect costs.
pub fn reconnect(options: &Options) -> Result<(), String> {
    let names = (0..options.tables).map(|n| format!("table{n}"));
    let (tables, proxies) = (options.tables, options.proxies);
    let mut world = populated(options, names.collect(), 0);
    world.preload();
    let start = Instant::now();
    world.start_proxies(&options.proxy, proxies);
    all_cached(&world)?;
    println!(
        "scale tables={tables} proxies={proxies} cold_s={:.2} {}",
        seconds(start),
        memory(&world)
    );
    for round in 1..=ROUNDS {
        let confirmed = |proxy: &Proxy| proxy.log().matches(CONFIRMED).count();
        let before: Vec<usize> = world.proxies().iter().map(|proxy| confirmed(proxy)).collect();
        let (packets, reads, cpu) = (packets(&world), reads(&world), cpu_s(&world));
        let start = Instant::now();
        world.relays.iter().for_each(|relay| relay.cut());
        let mut first = None;
        let mut waiting: Vec<_> = world.proxies().into_iter().zip(before).collect();
        let done = poll(CONFIRMED_WITHIN, || {
            waiting.retain(|(proxy, before)| confirmed(proxy) == *before);
            if waiting.len() < proxies {
                first.get_or_insert(seconds(start));
            }
            waiting.is_empty().then(|| seconds(start))
        });
        let Some(last) = done else {
            return Err(format!(
                "{} proxies have not confirmed their routes in time",
                waiting.len()
            ));
        };
        let packets = self::packets(&world) - packets;
        let reads = self::reads(&world) - reads;
        println!(
            "scale tables={tables} proxies={proxies} round={round} packets={packets} reads={reads} \
             reads_per_route={:.3} zookeeper_cpu_s={:.2} first_confirmed_s={:.2} all_confirmed_s={last:.2} {}",
            reads as f64 / (tables * proxies) as f64,
            cpu_s(&world) - cpu,
            first.unwrap_or(last),
            memory(&world)
        );
    }
    served(&world)
}

/// Prints how very many tables with very long names fare.
pub fn long_names(options: &Options) -> Result<(), String> {
    let names: Vec<String> = (0..options.tables).map(|n| format!("{n:t>200}")).collect();
    let bytes: usize = names.iter().map(|name| name.len() + 4).sum();
    let world = populated(options, names, 1);
    let tables = options.tables;
    println!("long-names tables={tables} listing_mib={:.1}", bytes as f64 / f64::from(1 << 20));
    let start = Instant::now();
    let served = served(&world);
    println!(
        "long-names tables={tables} sample={SAMPLE} {} after_s={:.2} {}",
        if served.is_ok() { "served" } else { "NOT served" },
        seconds(start),
        memory(&world)
    );
    let start = Instant::now();
    let all = ask_for_all(&world);
    println!(
        "long-names tables={tables} all {} after_s={:.2} {}",
        if all.is_ok() { "served" } else { "NOT served" },
        seconds(start),
        memory(&world)
    );
    let log = world.proxy(0).log();
    let of_zookeeper: Vec<&str> = log.lines().filter(|line| line.contains("zk-watch")).collect();
    println!("its log of ZooKeeper, {} lines:", of_zookeeper.len());
    of_zookeeper.iter().take(12).for_each(|line| println!("  {line}"));
    served.and(all)
}

/// A world whose tables all exist when its proxies start, as theirs do.
fn populated(options: &Options, names: Vec<String>, proxies: usize) -> World {
    let mut world =
        World::start(names, options.tables, Sessions::Global, options.bounds(), SETTINGS);
    let mut rng = Rng::new(options.seed, 0);
    let start = Instant::now();
    for table in 0..options.tables {
        world.write(table, |history| another_cluster(history, &mut rng));
    }
    println!("{} tables are written, {:.1} s", options.tables, seconds(start));
    world.start_proxies(&options.proxy, proxies);
    world
}

/// Asks each proxy for all tables, so that all are cached; two proxies at a time.
fn ask_for_all(world: &World) -> Result<(), String> {
    let tables: Vec<usize> = (0..world.writable()).collect();
    let next = AtomicUsize::new(0);
    let ask = || -> Result<(), String> {
        loop {
            let proxy = next.fetch_add(1, Ordering::SeqCst);
            if proxy >= world.proxy_count() {
                return Ok(());
            }
            let mut client = world.connect(proxy)?;
            for tables in tables.chunks(AT_ONCE) {
                let answers = client.ask_all(tables.iter().map(|table| world.name(*table)));
                let failed = answers.iter().filter(|answer| !answer.is_ok()).count();
                if failed > 0 {
                    return Err(format!(
                        "proxy {proxy}: {failed} of {} tables failed",
                        tables.len()
                    ));
                }
            }
        }
    };
    thread::scope(|scope| {
        let both = [scope.spawn(ask), scope.spawn(ask)];
        both.map(|half| half.join().unwrap_or_else(|_| Err("a panic, see above".to_owned())))
            .into_iter()
            .collect()
    })
}

/// Waits until each proxy has cached all tables.
fn all_cached(world: &World) -> Result<(), String> {
    let all = format!("\"cached\": {},", world.writable());
    let mut waiting = world.proxies();
    poll(CACHED_WITHIN, || {
        waiting.retain(|proxy| {
            let page = get(proxy.admin(), "/clusters");
            !(page.contains(&all) && page.contains("\"unconfirmed\": 0"))
        });
        waiting.is_empty().then_some(())
    })
    .ok_or_else(|| format!("{} proxies have not cached all tables in time", waiting.len()))
}

/// Whether a sample of tables is served as it is written, each at last, and an unknown one is unknown.
fn served(world: &World) -> Result<(), String> {
    let step = world.writable().div_ceil(SAMPLE);
    let mut pending: Vec<usize> = (0..world.writable()).step_by(step).collect();
    let mut client = None;
    let mut last = None;
    poll(SAMPLE_WITHIN, || {
        pending.retain(|table| {
            let told = world.ask(View { proxy: 0, table: *table }, &mut client).told;
            let is_served = matches!(
                (&told, world.history(*table).last().value),
                (Told::Cluster(told), Value::Cluster(is)) if *told == is
            );
            if !is_served {
                last = Some(told);
            }
            !is_served
        });
        pending.is_empty().then_some(())
    });
    if !pending.is_empty() {
        return Err(format!(
            "{} tables are not served, the last is told as {last:?}",
            pending.len()
        ));
    }
    let unknown = world.proxy(0).ask("never-written").err;
    match unknown.as_deref() {
        Some("ERR_OBJECT_NOT_FOUND") => Ok(()),
        other => Err(format!("an unknown table is told as {other:?}")),
    }
}

fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

/// Processor time of all servers so far.
fn cpu_s(world: &World) -> f64 {
    sum(world, |server| world.server(server).cpu_ms()) as f64 / 1000.0
}

/// Packets of all kinds that all servers received so far.
fn packets(world: &World) -> u64 {
    sum(world, |server| world.server(server).counter("zk_packets_received").unwrap_or(0))
}

/// Reads of the root and below.
fn reads(world: &World) -> u64 {
    sum(world, |server| world.server(server).reads_served(ROOT))
}

fn sum(world: &World, of: impl Fn(usize) -> u64) -> u64 {
    (0..world.ensemble.servers().len()).map(of).sum()
}

/// The memory of the largest proxy.
fn memory(world: &World) -> String {
    let rss = world.proxies().iter().map(|proxy| proxy.rss_bytes()).max().unwrap_or(0);
    format!("rss_max_mib={:.1}", rss as f64 / f64::from(1 << 20))
}
