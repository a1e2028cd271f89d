//! How long does a client of a healthy cluster wait while others are in trouble, or greedy?
//!
//! ```text
//! 4 clients at 127.0.0.2: a query each 5 ms, over 10 tables of a healthy cluster ──▶ proxy ──▶ stand-in
//! others at 127.0.0.1 or 127.0.1.x: clusters that are mute, slow, dying, refusing; clients that keep sending
//! ```
//! Each case has a proxy of its own. The case `calm` has no others: what the machine itself costs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use harness::client::Client;
use harness::meta_server::{Behaviour, MetaServer};
use harness::proxy::Proxy;
use harness::scratch::Scratch;
use harness::wire::{QueryCfgResponse, Request, Version};

use crate::tally::quantiles;

/// Clients that are watched, and the time between two queries of each.
const WATCHED: usize = 4;
const PACE: Duration = Duration::from_millis(5);
const TABLES: usize = 10;
/// Requests of a greedy client in one write.
const GREED: usize = 64;
/// Troubles last so long before anybody is watched: long enough to be in the middle of it.
const BEFORE: Duration = Duration::from_millis(200);

/// What happens beside the healthy cluster.
#[derive(Clone, Copy, PartialEq)]
enum Case {
    Calm,
    Mute,
    Slow,
    Dying,
    Refusing,
    Greedy,
    GreedyHost,
    GreedyHosts,
}

/// The names of the values: p99 and worst of each case.
const CASES: [(Case, &str, &str); 8] = [
    (Case::Calm, "calm_p99_ms", "calm_worst_ms"),
    (Case::Mute, "mute_p99_ms", "mute_worst_ms"),
    (Case::Slow, "slow_p99_ms", "slow_worst_ms"),
    (Case::Dying, "dying_p99_ms", "dying_worst_ms"),
    (Case::Refusing, "refusing_p99_ms", "refusing_worst_ms"),
    (Case::Greedy, "greedy_p99_ms", "greedy_worst_ms"),
    (Case::GreedyHost, "greedy_host_p99_ms", "greedy_host_worst_ms"),
    (Case::GreedyHosts, "greedy_hosts_p99_ms", "greedy_hosts_worst_ms"),
];

impl Case {
    /// How many clusters are in trouble, and how many tables each has.
    fn clusters(self) -> (usize, usize) {
        match self {
            Case::Mute => (8, 8),
            Case::Slow => (10, 8),
            Case::Dying => (100, 1),
            Case::Refusing => (1_000, 1),
            Case::Calm | Case::Greedy | Case::GreedyHost | Case::GreedyHosts => (0, 0),
        }
    }

    /// The hosts of the greedy clients.
    fn greedy(self) -> Vec<IpAddr> {
        let host = |n: usize| IpAddr::from([127, 0, 1 + (n / 250) as u8, 1 + (n % 250) as u8]);
        match self {
            Case::Greedy => vec![Ipv4Addr::LOCALHOST.into()],
            Case::GreedyHost => vec![Ipv4Addr::LOCALHOST.into(); 300],
            Case::GreedyHosts => (0..300).map(host).collect(),
            _ => Vec::new(),
        }
    }
}

/// Measures every case with a proxy of `binary`.
pub fn measure(binary: &Path, phase: Duration) -> Result<Vec<(&'static str, f64)>, String> {
    let mut values = Vec::new();
    for (case, p99_name, worst_name) in CASES {
        let mut waits = run(case, binary, 2 * phase)?;
        let [p99, worst] = quantiles(&mut waits, [0.99, 1.0]);
        values.extend([(p99_name, p99), (worst_name, worst)]);
    }
    Ok(values)
}

/// The waits of the watched clients, ms.
fn run(case: Case, binary: &Path, during: Duration) -> Result<Vec<f64>, String> {
    let (good, bad) = (MetaServer::start(), MetaServer::start());
    good.keep_requests(false);
    bad.keep_requests(false);
    let mut routes = BTreeMap::new();
    let record = |name: &str, metas: &[SocketAddr]| {
        let metas: Vec<String> = metas.iter().map(SocketAddr::to_string).collect();
        format!(r#"{{"cluster_name": "{name}", "meta_addrs": "{}"}}"#, metas.join(","))
    };
    let answer = || QueryCfgResponse::table(1, 64, ([10, 0, 0, 1], 34801).into());
    let healthy: Vec<String> = (0..TABLES).map(|n| format!("good{n}")).collect();
    for name in &healthy {
        good.put_table(name, answer());
        routes.insert(name.clone(), record("good", &[good.addr()]));
    }
    let (clusters, tables) = case.clusters();
    let mut troubled = Vec::new();
    for cluster in 0..clusters {
        // Nobody listens there. Another set of addresses is another cluster, so that one stand-in can be many of them.
        let nobody = ([127, 1, (cluster / 250) as u8, 1 + (cluster % 250) as u8], 1).into();
        let metas = if case == Case::Refusing { vec![nobody] } else { vec![bad.addr(), nobody] };
        for table in 0..tables {
            let name = format!("bad{cluster}_{table}");
            bad.put_table(&name, answer());
            routes.insert(name.clone(), record(&format!("bad{cluster}"), &metas));
            troubled.push(name);
        }
    }
    let scratch = Scratch::new("crowd");
    let mut text = String::new();
    for (at, (name, record)) in routes.iter().enumerate() {
        let _ = write!(text, "{}\n  {name:?}: {record}", if at == 0 { "{" } else { "," });
    }
    let path = scratch.path().join("routes.json");
    fs::write(&path, text + "\n}\n").map_err(|e| format!("{}: {e}", path.display()))?;
    let proxy = Proxy::builder(binary).routes_file(path).start();
    match case {
        Case::Mute => bad.set(Behaviour::Mute),
        Case::Slow => bad.set(Behaviour::Slow(Duration::from_millis(400))),
        _ => {}
    }
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (proxy, is_over) = (&proxy, &is_over);
        for tables in troubled.chunks(troubled.len().div_ceil(8).max(1)) {
            scope.spawn(move || ask_for(proxy, tables, is_over));
        }
        for hosts in case.greedy().chunks(50) {
            let hosts = hosts.to_vec();
            scope.spawn(move || be_greedy(proxy, &hosts, is_over));
        }
        thread::sleep(BEFORE);
        if case == Case::Dying {
            bad.set(Behaviour::Mute);
        }
        let watched: Vec<_> =
            (0..WATCHED).map(|_| scope.spawn(|| watch(proxy, &healthy, during))).collect();
        let waits: Result<Vec<Vec<f64>>, String> = watched
            .into_iter()
            .map(|client| client.join().unwrap_or_else(|_| Err("a client panicked".to_owned())))
            .collect();
        is_over.store(true, Relaxed);
        Ok(waits?.concat())
    })
}

fn watch(proxy: &Proxy, tables: &[String], during: Duration) -> Result<Vec<f64>, String> {
    let mut client = Client::connect_from(Ipv4Addr::new(127, 0, 0, 2).into(), proxy.addr())
        .map_err(|e| e.to_string())?;
    let (start, mut waits) = (Instant::now(), Vec::new());
    for table in tables.iter().cycle() {
        let asked = Instant::now();
        let answer =
            client.try_ask(table, Duration::from_secs(30)).map_err(|e| format!("{e:?}"))?;
        waits.push(asked.elapsed().as_secs_f64() * 1e3);
        if answer.err.as_deref() != Some("ERR_OK") {
            return Err(format!("{table}: {:?}", answer.err));
        }
        if start.elapsed() >= during {
            break;
        }
        thread::sleep(PACE.saturating_sub(asked.elapsed()));
    }
    Ok(waits)
}

/// Asks for all of these, again as soon as the last is answered.
fn ask_for(proxy: &Proxy, tables: &[String], is_over: &AtomicBool) {
    let mut client = proxy.client();
    while !is_over.load(Relaxed) {
        let seqs = client.send_queries(tables.iter().map(String::as_str));
        client.read_answers(seqs.len());
    }
}

/// Keeps asking for tables that do not exist, from each of these hosts, as fast as the proxy takes it.
fn be_greedy(proxy: &Proxy, hosts: &[IpAddr], is_over: &AtomicBool) {
    let frames: Vec<u8> = (0..GREED as i32)
        .flat_map(|seq| Request::query_config(Version::V0, seq, "nosuch").encode())
        .collect();
    let connect = |host: &IpAddr| Client::connect_from(*host, proxy.addr()).expect("a connection");
    let mut clients: Vec<Client> = hosts.iter().map(connect).collect();
    while !is_over.load(Relaxed) {
        clients.iter_mut().for_each(|client| client.send(&frames));
        for client in &mut clients {
            client.read_answers(GREED);
        }
    }
}
