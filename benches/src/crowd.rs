//! How long does a client of a healthy cluster wait while others are in trouble, or greedy?
//!
//! ```text
//! watched: 4 clients at 127.0.0.2, an open loop over 10 tables ──▶ proxy ──▶ bench meta: the healthy cluster
//! others:  an open loop over the tables of clusters that are mute, slow, die, refuse ──▶ proxy ──▶ stand-in
//!          or clients that write as fast as their sockets take it ──▶ proxy
//!
//! time:    ── well ──│── the fault ───────────────│── well ──
//!          measured: └─ queries due from here on ────────────┘
//! ```
//! The watched clients ask from before the fault until after it, and each wait counts from when its query was due. Each
//! case is measured twice, with a proxy of its own each time: with the fault, and without it under the same load. How
//! late the generator itself was stands beside.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use harness::greed::Greed;
use harness::meta_server::{Behaviour, MetaServer};
use harness::proxy::Proxy;
use harness::scratch::Scratch;
use harness::wire::QueryCfgResponse;

use crate::frames::Question;
use crate::load::{Load, Open};

/// Clients that are watched, and how often all of them together ask in a second.
const WATCHED: usize = 4;
const WATCHED_RATE: f64 = 800.0;
/// Tables of the healthy cluster.
const TABLES: usize = 10;
/// Queries per second for tables of clusters in trouble, over all of them.
const OTHERS_RATE: f64 = 2_000.0;
/// Hosts of the clients that ask these. The watched clients come from one of them.
const OTHERS_HOSTS: usize = 16;

/// The trouble beside the healthy cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    Mute,
    Slow,
    Dying,
    Refusing,
    Greedy,
    GreedyHost,
    GreedyHosts,
}

impl Case {
    /// How many clusters are in trouble, and how many tables each has.
    fn clusters(self) -> (usize, usize) {
        match self {
            Case::Mute => (8, 8),
            Case::Slow => (10, 8),
            Case::Dying => (100, 1),
            Case::Refusing => (1_000, 1),
            Case::Greedy | Case::GreedyHost | Case::GreedyHosts => (0, 0),
        }
    }

    /// The hosts of the greedy clients.
    fn greedy(self) -> Vec<IpAddr> {
        match self {
            Case::Greedy => vec![Ipv4Addr::LOCALHOST.into()],
            Case::GreedyHost => vec![Ipv4Addr::LOCALHOST.into(); 300],
            Case::GreedyHosts => (0..300).map(|n| own_address(n).into()).collect(),
            Case::Mute | Case::Slow | Case::Dying | Case::Refusing => Vec::new(),
        }
    }
}

/// One of many addresses of this machine, none of them used for anything else.
fn own_address(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 1, (n / 250) as u8, 1 + (n % 250) as u8)
}

/// Measures a case, and the same without the fault, with proxies of `binary` and this MetaServer as the healthy cluster.
pub fn measure(
    case: Case,
    binary: &Path,
    healthy: SocketAddr,
    during: Duration,
) -> Result<Vec<(&'static str, f64)>, String> {
    let [p50, p99, worst, late_p99, late_worst] = run(case, false, binary, healthy, during)?;
    let mut values = vec![
        ("without_p50_ms", p50),
        ("without_p99_ms", p99),
        ("without_worst_ms", worst),
        ("without_late_p99_ms", late_p99),
        ("without_late_worst_ms", late_worst),
    ];
    let [p50, p99, worst, late_p99, late_worst] = run(case, true, binary, healthy, during)?;
    values.extend([
        ("p50_ms", p50),
        ("p99_ms", p99),
        ("worst_ms", worst),
        ("late_p99_ms", late_p99),
        ("late_worst_ms", late_worst),
    ]);
    Ok(values)
}

/// The clusters in trouble: one stand-in at many addresses, each of them a cluster of its own.
struct Others {
    port: u16,
    tables: Vec<String>,
    /// `None`: connections are refused.
    server: Option<MetaServer>,
}

impl Others {
    fn start(case: Case) -> Result<Self, String> {
        let (clusters, tables) = case.clusters();
        let name = |n: usize| format!("other{}_{}", n / tables, n % tables);
        let tables = (0..clusters * tables).map(name).collect();
        let mut others = Others { port: 0, tables, server: None };
        others.be_well()?;
        Ok(others)
    }

    fn be_well(&mut self) -> Result<(), String> {
        if self.server.is_none() {
            let addr = SocketAddr::from((Ipv4Addr::UNSPECIFIED, self.port));
            let server = MetaServer::start_on(addr).map_err(|e| format!("{addr}: {e}"))?;
            self.port = server.addr().port();
            server.keep_requests(false);
            for table in &self.tables {
                server.put_table(table, answer());
            }
            self.server = Some(server);
        }
        self.behave(Behaviour::Leader);
        Ok(())
    }

    fn suffer(&mut self, case: Case) {
        match case {
            Case::Mute | Case::Dying => self.behave(Behaviour::Mute),
            Case::Slow => self.behave(Behaviour::Slow(Duration::from_millis(400))),
            Case::Refusing => self.server = None,
            Case::Greedy | Case::GreedyHost | Case::GreedyHosts => {}
        }
    }

    fn behave(&self, behaviour: Behaviour) {
        if let Some(server) = &self.server {
            server.set(behaviour);
        }
    }

    fn routes(&self, case: Case) -> BTreeMap<String, String> {
        let (_, tables) = case.clusters();
        let route = |(n, table): (usize, &String)| {
            let cluster = n / tables;
            let meta = SocketAddr::from((own_address(cluster), self.port));
            (table.clone(), record(&format!("other{cluster}"), meta))
        };
        self.tables.iter().enumerate().map(route).collect()
    }
}

fn answer() -> QueryCfgResponse {
    QueryCfgResponse::table(1, 64, ([10, 0, 0, 1], 34801).into())
}

fn record(cluster: &str, meta: SocketAddr) -> String {
    format!(r#"{{"cluster_name": "{cluster}", "meta_addrs": "{meta}"}}"#)
}

/// p50, p99 and worst wait of the watched clients, p99 and worst lateness of their generator, ms.
fn run(
    case: Case,
    has_fault: bool,
    binary: &Path,
    healthy: SocketAddr,
    during: Duration,
) -> Result<[f64; 5], String> {
    let mut others = Others::start(case)?;
    let mut routes = others.routes(case);
    let watched_tables: Vec<String> = (0..TABLES).map(|n| format!("good{n}")).collect();
    routes.extend(watched_tables.iter().map(|table| (table.clone(), record("good", healthy))));
    let scratch = Scratch::new("crowd");
    let path = write_routes(&scratch, &routes)?;
    // As it is set unless an operator says otherwise.
    let proxy =
        Proxy::builder(binary).routes_file(path).config_extra("probe_interval_s: 10").start();
    let connect = |hosts: Vec<Ipv4Addr>, tables: &[String]| {
        let questions = tables.iter().map(|table| Question::new(table)).collect();
        Load::connect_from(proxy.addr(), hosts, questions).map_err(|e| format!("connect: {e}"))
    };
    let host = |n: usize| Ipv4Addr::new(127, 0, 0, 2 + (n % OTHERS_HOSTS) as u8);
    let mut watched = connect(vec![host(0); WATCHED], &watched_tables)?;
    let mut asking = connect((0..others.tables.len()).map(host).collect(), &others.tables)?;
    let greed = Greed::connect(proxy.addr(), &case.greedy()).map_err(|e| format!("greed: {e}"))?;
    let open = thread::scope(|scope| {
        let watched = scope.spawn(|| watched.open(WATCHED_RATE, during));
        let has_others = !others.tables.is_empty();
        let asking = has_others.then(|| scope.spawn(|| asking.open(OTHERS_RATE, during)));
        thread::sleep(during / 4);
        let fault_at = Instant::now();
        let mut greedy = None;
        if has_fault {
            others.suffer(case);
            greedy = Some(greed.start());
        }
        thread::sleep(during / 2);
        let well_again = others.be_well();
        if let Some(greedy) = greedy {
            greedy.stop()?;
        }
        let open = joined("a watched client", watched)?;
        if let Some(asking) = asking {
            joined("a client of the others", asking)?;
        }
        well_again?;
        Ok::<_, String>(Open {
            tally: open.tally.since(fault_at),
            lateness: open.lateness.since(fault_at),
        })
    })?;
    let (count, errors) = (open.tally.count(), open.tally.errors());
    if errors > 0 {
        return Err(format!("{errors} of {count} answers of the healthy cluster were errors"));
    }
    let [p50, p99, worst] = open.tally.quantiles_us([0.5, 0.99, 1.0]).map(|us| us / 1e3);
    let [late_p99, late_worst] = open.lateness.quantiles_us([0.99, 1.0]).map(|us| us / 1e3);
    Ok([p50, p99, worst, late_p99, late_worst])
}

fn joined(who: &str, load: ScopedJoinHandle<'_, io::Result<Open>>) -> Result<Open, String> {
    match load.join() {
        Ok(open) => open.map_err(|e| format!("{who}: {e}")),
        Err(_) => Err(format!("{who} panicked")),
    }
}

fn write_routes(
    scratch: &Scratch,
    routes: &BTreeMap<String, String>,
) -> Result<std::path::PathBuf, String> {
    let mut text = String::new();
    for (at, (name, record)) in routes.iter().enumerate() {
        let _ = write!(text, "{}\n  {name:?}: {record}", if at == 0 { "{" } else { "," });
    }
    let path = scratch.path().join("routes.json");
    fs::write(&path, text + "\n}\n").map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(path)
}
