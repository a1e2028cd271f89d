//! Calls to MetaServers that do all that may go wrong, many questions on each link: every query has one answer, its own,
//! and none that is older than it.

use std::env;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use harness::client::{Client, NoAnswer};
use harness::rdsn::{RdsnClient, Verdict};
use harness::rng::Rng;
use harness::wait::eventually;
use harness::wild_cluster::WildCluster;
use harness::wire::QueryCfgResponse;

use crate::support::{Routes, SOON, addr, record};

const TABLES: usize = 24;
const CLIENTS: usize = 8;
const MAX_ASKED_AT_ONCE: usize = 12;
/// How long the servers are wild.
const WILD: Duration = Duration::from_secs(8);

/// Its length tells it from the others.
fn table(n: usize) -> String {
    "t".repeat(n + 1)
}

/// A client of either protocol.
enum Asker {
    Thft(Client),
    Rdsn(RdsnClient),
}

impl Asker {
    fn connect(n: usize, proxy: SocketAddr) -> Self {
        match n % 2 {
            0 => Asker::Thft(Client::connect(proxy)),
            _ => Asker::Rdsn(RdsnClient::connect(proxy)),
        }
    }

    /// Asks for all in a row; what came back, by table in the order of asking.
    fn ask(&mut self, tables: &[String]) -> Vec<QueryCfgResponse> {
        match self {
            Asker::Thft(client) => {
                let answers = client.ask_all(tables.iter().map(String::as_str));
                let honest = |answer: harness::client::Answer| {
                    assert_eq!(answer.frame_error, "ERR_OK");
                    let config = answer.config();
                    assert_eq!(config.encode(), answer.result, "the bytes are the MetaServer's");
                    config
                };
                answers.into_iter().map(honest).collect()
            }
            Asker::Rdsn(client) => {
                let ids: Vec<u64> = tables.iter().map(|t| client.send_query(t, &[])).collect();
                let mut answers = client.read_answers(ids.len());
                let take = |id: u64| match answers.remove(&id).map(|answer| answer.judge(id)) {
                    Some(Verdict::Takes(config)) => config,
                    other => panic!("query {id}: {other:?}"),
                };
                ids.into_iter().map(take).collect()
            }
        }
    }

    /// Nothing more comes.
    fn expect_nothing_more(self) {
        let within = Duration::from_millis(200);
        let more = match self {
            Asker::Thft(mut client) => client.try_read_answer(within).map(|answer| answer.seq),
            Asker::Rdsn(mut client) => {
                client.try_read_answer(within).map(|answer| answer.id as i32)
            }
        };
        assert!(
            matches!(more, Err(NoAnswer::Silence { unread: 0, .. })),
            "a second answer: {more:?}"
        );
    }
}

#[test]
fn wild_servers_neither_lose_nor_mix_nor_age_answers() {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let seed = env::var("SEED").map_or(clock.as_secs(), |seed| seed.parse().expect("a number"));
    eprintln!("SEED={seed} repeats the decisions of this run");

    let cluster = WildCluster::start(3, seed, addr("10.0.0.1:34801")).expect("free ports");
    let names: Vec<String> = (0..TABLES).map(table).collect();
    let record = record("wild", &cluster.metas());
    let routes = Routes::new(names.iter().map(|name| (name.as_str(), record.clone())));
    let proxy = routes.proxy();

    let (served, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let end = Instant::now() + WILD;
    let ask_wildly = |n: usize| {
        let mut rng = Rng::new(seed, 1_000 + n as u64);
        let mut asker = Asker::connect(n, proxy.addr());
        while Instant::now() < end {
            let count = 1 + rng.below(MAX_ASKED_AT_ONCE);
            let asked: Vec<String> = (0..count).map(|_| table(rng.below(TABLES))).collect();
            let clock = cluster.clock();
            for (name, config) in asked.iter().zip(asker.ask(&asked)) {
                match config.err.as_str() {
                    "ERR_OK" => {
                        assert_eq!(config, cluster.answer(name, config.app_id));
                        let read_at = config.app_id;
                        assert!(read_at >= clock, "{name}: asked at {clock}, answer of {read_at}");
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                    "ERR_SERVICE_NOT_ACTIVE" => _ = refused.fetch_add(1, Ordering::Relaxed),
                    other => panic!("{name}: {other}"),
                }
            }
        }
        asker.expect_nothing_more();
    };
    thread::scope(|scope| {
        let spawn = |n| scope.spawn(move || ask_wildly(n));
        let askers: Vec<_> = (0..CLIENTS).map(spawn).collect();
        for (n, asker) in askers.into_iter().enumerate() {
            assert!(asker.join().is_ok(), "client {n} found a fault, see above; SEED={seed}");
        }
    });
    let (served, refused) = (served.into_inner(), refused.into_inner());
    eprintln!("{served} answered, {refused} refused");
    assert!(served > 10 * refused, "{served} answered, {refused} refused: others have the answer");

    assert!(!proxy.log().contains("panicked"), "the proxy panicked, see its log; SEED={seed}");

    cluster.calm_down();
    let mut client = proxy.client();
    eventually("all tables are answered", SOON, || {
        client.ask_all(names.iter().map(String::as_str)).iter().all(harness::client::Answer::is_ok)
    });
}
