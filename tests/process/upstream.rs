//! MetaServers that follow, move, die, stall and lie: the right answer or the right error, in time, and other tables
//! unaffected.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use harness::client::{Answer, Client};
use harness::http::get;
use harness::meta_server::{Behaviour, Lie, MetaServer};
use harness::proxy::Proxy;
use harness::relay::Relay;
use harness::wait::eventually;
use harness::wire::{QUERY_CONFIG, Query, QueryCfgResponse, Request, Version};

use crate::support::{QUERY_TIMEOUT, Routes, SOON, addr, meta_with, record};

const PRIMARY: &str = "10.0.0.1:34801";

/// Room for a busy machine above the time in which a query is answered.
const SLACK: Duration = Duration::from_millis(400);

fn follower(leader: Option<SocketAddr>) -> MetaServer {
    let meta = MetaServer::start();
    meta.set(Behaviour::Follower { leader });
    meta
}

/// A proxy that finds `t` at these MetaServers.
fn proxy_to(metas: &[&MetaServer]) -> (Proxy, Routes) {
    let addrs: Vec<SocketAddr> = metas.iter().map(|meta| meta.addr()).collect();
    let routes = Routes::new([("t", record("c", &addrs))]);
    (routes.proxy(), routes)
}

#[track_caller]
fn answered(answer: &Answer) {
    let config = answer.config();
    assert_eq!(config.err, "ERR_OK");
    assert_eq!(config.partitions[0].primary, Some(addr(PRIMARY)));
}

#[track_caller]
fn refused_in_time(proxy: &Proxy, table: &str) {
    let start = Instant::now();
    let answer = proxy.ask(table);
    let took = start.elapsed();
    assert_eq!(answer.err.as_deref(), Some("ERR_SERVICE_NOT_ACTIVE"));
    assert!(took < QUERY_TIMEOUT + SLACK, "{took:?}");
}

#[test]
fn a_follower_is_followed_inside() {
    let leader = meta_with("t", PRIMARY);
    for (why, metas) in [
        ("it names the leader", vec![&follower(Some(leader.addr())), &leader]),
        ("it knows no leader", vec![&follower(None), &follower(None), &leader]),
        ("the leader is not in the list", vec![&follower(Some(leader.addr()))]),
        ("it names a dead leader", vec![&follower(Some(addr("127.0.0.1:1"))), &leader]),
    ] {
        let (proxy, _routes) = proxy_to(&metas);
        answered(&proxy.ask("t"));
        let followers_asked =
            || metas[0].calls() + metas[1..].iter().map(|m| m.calls()).sum::<usize>();
        let before = followers_asked() + leader.calls();
        answered(&proxy.ask("t"));
        let more = followers_asked() + leader.calls() - before;
        assert!(more <= 2, "{why}: the leader is remembered, {more} calls");
    }
}

#[test]
fn followers_in_a_circle_are_not_passed_on() {
    let a = follower(None);
    let b = follower(Some(a.addr()));
    a.set(Behaviour::Follower { leader: Some(b.addr()) });
    let (proxy, _routes) = proxy_to(&[&a, &b]);
    refused_in_time(&proxy, "t");
}

#[test]
fn a_leader_that_comes_while_the_query_waits_is_asked() {
    let metas = [follower(None), follower(None)];
    metas[1].put_table("t", QueryCfgResponse::table(1, 4, addr(PRIMARY)));
    let (proxy, _routes) = proxy_to(&[&metas[0], &metas[1]]);
    let mut client = proxy.client();
    client.send_query(1, "t");
    eventually("both were asked", SOON, || metas.iter().all(|meta| meta.calls() > 0));
    metas[1].set(Behaviour::Leader);
    answered(&client.read_answer());
}

#[test]
fn the_answer_of_a_leader_is_passed_on() {
    let meta = meta_with("t", PRIMARY);
    let (proxy, _routes) = proxy_to(&[&meta]);
    for err in ["ERR_SERVICE_NOT_ACTIVE", "ERR_UNDER_RECOVERY", "ERR_BUSY_CREATING"] {
        meta.set(Behaviour::NotReady(err));
        let calls = meta.calls();
        assert_eq!(proxy.ask("t").err.as_deref(), Some(err));
        assert_eq!(meta.calls(), calls + 1, "{err} is the leader's own answer");
    }
    meta.set(Behaviour::Leader);
    meta.remove_table("t");
    assert_eq!(proxy.ask("t").err.as_deref(), Some("ERR_OBJECT_NOT_FOUND"));
}

#[test]
fn answers_of_newer_servers_arrive_byte_for_byte() {
    let meta = meta_with("t", PRIMARY);
    let (proxy, _routes) = proxy_to(&[&meta]);
    let table = QueryCfgResponse::table(7, 64, addr(PRIMARY));
    let future = table.clone().with_host_ports().from_the_future();
    for table in [table.clone(), table.with_host_ports(), future] {
        let result = table.encode();
        meta.put_answer("t", result.clone());
        assert_eq!(proxy.ask("t").result, result);
    }
    // This does not come in one read, does not leave in one write, and is more than a client may leave
    // unread of several answers.
    let huge = QueryCfgResponse::table(7, 100_000, addr(PRIMARY)).encode();
    assert!(huge.len() > 6_000_000, "{}", huge.len());
    meta.put_answer("t", huge.clone());
    assert_eq!(proxy.ask("t").result, huge);
}

#[test]
fn a_server_that_fails_is_replaced_by_another() {
    let dead = {
        let gone = MetaServer::start();
        gone.addr()
    };
    for behaviour in [
        Behaviour::Mute,
        Behaviour::CloseOnRequest,
        Behaviour::FrameError("ERR_BUSY"),
        Behaviour::Lie(Lie::WrongSeq),
        Behaviour::Lie(Lie::WrongName),
        Behaviour::Lie(Lie::HugeLength),
        Behaviour::Lie(Lie::NegativeLength),
        Behaviour::Lie(Lie::TinyLength),
        Behaviour::Lie(Lie::Garbage),
        Behaviour::Lie(Lie::TruncatedFrame),
        Behaviour::Lie(Lie::JunkResult),
        Behaviour::Lie(Lie::NoResult),
    ] {
        let what = format!("{behaviour:?}");
        let (bad, good) = (MetaServer::start(), meta_with("t", PRIMARY));
        bad.set(behaviour);
        let routes = Routes::new([
            ("t", record("c", &[dead, bad.addr(), good.addr()])),
            ("alone", record("d", &[bad.addr()])),
        ]);
        let proxy = routes.proxy();
        let start = Instant::now();
        answered(&proxy.ask("t"));
        assert!(start.elapsed() < QUERY_TIMEOUT, "{what}: {:?}", start.elapsed());
        refused_in_time(&proxy, "alone");
        answered(&proxy.ask("t"));
        assert_eq!(proxy.client().ask("t").err.as_deref(), Some("ERR_OK"), "{what}");
    }
}

#[test]
fn a_link_that_died_while_idle_costs_nothing() {
    let meta = meta_with("t", PRIMARY);
    let (proxy, _routes) = proxy_to(&[&meta]);
    meta.set(Behaviour::CloseAfterAnswer);
    for _ in 0..20 {
        answered(&proxy.ask("t"));
        eventually("the link is closed", SOON, || meta.open_connections() == 0);
    }
    assert_eq!(meta.calls(), 20, "each was asked once");
}

#[test]
fn a_link_that_went_deaf_costs_a_moment() {
    let (meta, other) = (meta_with("t", PRIMARY), meta_with("t", PRIMARY));
    let network = Relay::to(meta.addr());
    other.set(Behaviour::Follower { leader: Some(network.addr()) });
    let routes = Routes::new([("t", record("c", &[network.addr(), other.addr()]))]);
    let proxy = routes.proxy();
    answered(&proxy.ask("t"));
    let calls = meta.calls();
    network.black_hole();
    other.set(Behaviour::Leader);
    let start = Instant::now();
    answered(&proxy.ask("t"));
    assert!(start.elapsed() < QUERY_TIMEOUT, "{:?}", start.elapsed());
    assert_eq!(meta.calls(), calls, "the link is deaf");
}

#[test]
fn links_are_kept_and_few() {
    let meta = meta_with("t", PRIMARY);
    for n in 0..100 {
        meta.put_table(&format!("t{n}"), QueryCfgResponse::table(n, 1, addr(PRIMARY)));
    }
    let names: Vec<String> = (0..100).map(|n| format!("t{n}")).collect();
    let to_meta = record("c", &[meta.addr()]);
    let routes = Routes::new(names.iter().map(|name| (name.as_str(), to_meta.clone())));
    let proxy = routes.proxy();
    meta.set(Behaviour::Slow(Duration::from_millis(5)));
    for _ in 0..3 {
        let answers = proxy.client().ask_all(names.iter().map(String::as_str));
        assert!(answers.iter().all(|answer| answer.err.as_deref() == Some("ERR_OK")));
    }
    // Eight calls, and the probe's own connection.
    assert!(meta.max_open_connections() <= 9, "{} links", meta.max_open_connections());
    assert!(meta.max_open_connections() > 1, "calls are made side by side");
    assert_eq!(meta.violations(), [] as [String; 0]);
}

#[test]
fn a_slow_leader_is_waited_for() {
    let slow = meta_with("t", PRIMARY);
    slow.set(Behaviour::Slow(Duration::from_millis(1_000)));
    let (proxy, _routes) = proxy_to(&[&slow, &follower(Some(slow.addr())), &follower(None)]);
    for _ in 0..3 {
        answered(&proxy.ask("t"));
    }
}

#[test]
fn dead_and_mute_clusters_cost_other_tables_nothing() {
    let (mute, good) = (MetaServer::start(), meta_with("good", PRIMARY));
    mute.set(Behaviour::Mute);
    let routes = Routes::new([
        ("mute", record("mute", &[mute.addr()])),
        ("dead", record("dead", &[addr("127.0.0.1:1")])),
        ("good", record("good", &[good.addr()])),
    ]);
    let proxy = routes.proxy_with("workers: 8");
    let mut waiting = proxy.client();
    let many = |table| std::iter::repeat_n(table, 400);
    let seqs = waiting.send_queries(many("mute").chain(many("dead")));
    let mut client = proxy.client();
    let start = Instant::now();
    let mut asked = 0;
    while start.elapsed() < Duration::from_secs(1) {
        let answer = client.try_ask("good", Duration::from_millis(500)).expect("workers are free");
        assert_eq!(answer.err.as_deref(), Some("ERR_OK"));
        asked += 1;
    }
    assert!(asked > 50, "only {asked} queries");
    // Eight calls, as many slow links, and the probe's own connection.
    assert!(mute.max_open_connections() <= 17, "{} links", mute.max_open_connections());
    let answers = waiting.read_answers(seqs.len());
    let refused = |answer: &Answer| answer.err.as_deref() == Some("ERR_SERVICE_NOT_ACTIVE");
    assert!(answers.values().all(refused));
}

#[test]
fn a_call_moves_when_its_route_does() {
    let (mute, good) = (MetaServer::start(), meta_with("t", PRIMARY));
    mute.set(Behaviour::Mute);
    let mut routes = Routes::new([("t", record("old", &[mute.addr()]))]);
    let proxy = routes.proxy();
    let mut client = proxy.client();
    client.send_query(1, "t");
    eventually("the old cluster was asked", SOON, || mute.calls() > 0);
    routes.put("t", record("new", &[good.addr()]));
    answered(&client.read_answer());
}

#[test]
fn host_names_are_resolved_and_those_that_do_not_resolve_passed_over() {
    let good = meta_with("t", PRIMARY);
    let port = good.addr().port();
    let metas = format!("no-such-host.invalid:1,localhost:{port}");
    let routes = Routes::new([("t", format!(r#"{{"meta_addrs": "{metas}"}}"#))]);
    let proxy = routes.proxy();
    eventually("the host is known", SOON, || proxy.ask("t").err.as_deref() == Some("ERR_OK"));
    answered(&proxy.ask("t"));
}

#[test]
fn a_cluster_that_keeps_failing_is_refused_at_once_and_found_when_it_is_back() {
    let meta = meta_with("t", PRIMARY);
    meta.set(Behaviour::CloseOnRequest);
    let (proxy, _routes) = proxy_to(&[&meta]);
    proxy.client().ask_all(["t"; 3]);
    eventually("it is given up", SOON, || {
        proxy.ask("t");
        proxy.log().contains("queries are refused")
    });
    let calls = meta.calls();
    let mut client = proxy.client();
    client.send_queries(["t"; 500]);
    let answers = client.read_answers(500);
    assert!(answers.values().all(|a| a.err.as_deref() == Some("ERR_SERVICE_NOT_ACTIVE")));
    assert!(meta.calls() - calls < 100, "{} calls for 500 queries", meta.calls() - calls);
    meta.set(Behaviour::Leader);
    eventually("it is found again", SOON, || proxy.ask("t").err.as_deref() == Some("ERR_OK"));
    proxy.wait_for_log("answers again", SOON);
}

/// A server that reads a question and then says one byte of a long answer each 20 ms, for ever.
fn dripping() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let drip = |mut stream: TcpStream| {
        let _ = stream.read(&mut [0; 1024]);
        let mut bytes = [&1_000_000_u32.to_be_bytes()[..], &[0; 1_000]].concat();
        bytes.reverse();
        while let Some(byte) = bytes.pop()
            && stream.write_all(&[byte]).is_ok()
        {
            thread::sleep(Duration::from_millis(20));
        }
    };
    thread::spawn(move || {
        listener.incoming().flatten().for_each(|stream| drop(thread::spawn(move || drip(stream))));
    });
    addr
}

#[test]
fn a_server_that_answers_byte_by_byte_makes_no_other_query_wait() {
    let good = meta_with("good", PRIMARY);
    let routes = Routes::new([
        ("t", record("c", &[dripping()])),
        ("good", record("d", &[dripping(), good.addr()])),
    ]);
    let proxy = routes.proxy();
    refused_in_time(&proxy, "t");
    answered(&proxy.ask("good"));
}

#[test]
fn many_tables_of_a_slow_cluster_share_calls() {
    const COUNT: i32 = 1_000;
    let meta = MetaServer::start();
    let names: Vec<String> = (0..COUNT).map(|n| format!("t{n}")).collect();
    for name in &names {
        meta.put_table(name, QueryCfgResponse::table(1, 1, addr(PRIMARY)));
    }
    let to_meta = record("c", &[meta.addr()]);
    let routes = Routes::new(names.iter().map(|name| (name.as_str(), to_meta.clone())));
    let proxy = routes.proxy();
    meta.set(Behaviour::Slow(Duration::from_millis(20)));
    let mut client = proxy.client();
    let start = Instant::now();
    client.send_queries(names.iter().map(String::as_str));
    // Asked one by one, eight at a time, they would take 2.5 s, and most would be refused.
    let answers = client.read_answers(names.len());
    let took = start.elapsed();
    assert!(took < QUERY_TIMEOUT + SLACK, "{took:?}");
    answers.values().for_each(answered);
    assert!(!proxy.log().contains("in a row failed"), "it answers: {}", proxy.log());
}

#[test]
fn tables_that_wait_for_a_call_follow_their_route() {
    // Eight calls of 64 questions are under way, and the last table waits.
    const COUNT: usize = 8 * 64 + 1;
    let (mute, good) = (MetaServer::start(), meta_with("t512", PRIMARY));
    mute.set(Behaviour::Mute);
    let names: Vec<String> = (0..COUNT).map(|n| format!("t{n}")).collect();
    let to_mute = record("old", &[mute.addr()]);
    let mut routes = Routes::new(names.iter().map(|name| (name.as_str(), to_mute.clone())));
    let proxy = routes.proxy();
    let mut client = proxy.client();
    let start = Instant::now();
    let seqs = client.send_queries(names.iter().map(String::as_str));
    eventually("all places are taken", SOON, || mute.calls() >= COUNT - 1);
    routes.put("t512", record("new", &[good.addr()]));
    let first = client.read_answer();
    assert_eq!(
        first.seq,
        seqs[512],
        "the others wait for their time to end: {:?}",
        start.elapsed()
    );
    answered(&first);
}

#[test]
fn a_follower_that_says_too_much_is_not_believed() {
    let (liar, good) = (MetaServer::start(), meta_with("t", PRIMARY));
    // `err`, then a list of structs without fields, one byte each on the wire and many times as much in memory.
    let mut result = vec![0x0c, 0, 0, 0x0c, 0, 1, 0, 0, 0, 21];
    result.extend(b"ERR_FORWARD_TO_OTHERS");
    result.extend([0x0f, 0, 5, 0x0c]);
    result.extend(50_000_000_u32.to_be_bytes());
    result.resize(result.len() + 50_000_000 + 2, 0);
    liar.put_answer("t", result);
    let routes = Routes::new([("t", record("c", &[liar.addr(), good.addr()]))]);
    let proxy = routes.proxy();
    answered(&proxy.ask("t"));
    let peak = proxy.process().peak_rss_bytes();
    assert!(peak < 256 << 20, "{peak} bytes");
}

#[test]
fn servers_that_stay_mute_are_counted() {
    let (mute, good) = (MetaServer::start(), meta_with("t", PRIMARY));
    mute.set(Behaviour::Mute);
    let routes = Routes::new([
        ("t", record("c", &[mute.addr(), good.addr()])),
        ("alone", record("d", &[mute.addr()])),
    ]);
    let proxy = routes.proxy();
    let failures = || {
        let text = get(proxy.admin(), "/metrics");
        let of_timeouts = |line: &&str| {
            line.starts_with("meta_proxy_upstream_failures")
                && line.contains(&mute.addr().to_string())
                && line.contains("timeout")
        };
        let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
        // A line for each cluster.
        text.lines().filter(of_timeouts).filter_map(value).sum::<f64>()
    };
    answered(&proxy.ask("t"));
    let after_one = if mute.calls() > 0 { 1.0 } else { 0.0 };
    // The asker is answered first, then it is counted.
    eventually("another answered", SOON, || failures() == after_one);
    refused_in_time(&proxy, "alone");
    eventually("nobody answered", SOON, || failures() == after_one + 1.0);
}

#[test]
fn a_host_with_many_queries_waits_for_hosts_with_few() {
    let meta = meta_with("t", PRIMARY);
    let (proxy, _routes) = proxy_to(&[&meta]);
    answered(&proxy.ask("t"));
    meta.set(Behaviour::Slow(Duration::from_millis(20)));
    let mut greedy = proxy.client();
    let mut frames = Vec::new();
    for index in 0..1_000 {
        let args = Query { table: "t".to_owned(), indices: Some(vec![index, index]) }.encode();
        frames.extend(Request::new(Version::V0, QUERY_CONFIG, index, args).encode());
    }
    greedy.send(&frames);
    // Its first answer shows that all of it has been read, for the next takes 20 ms.
    greedy.read_answer();
    let mut modest = Client::connect_from(addr("127.0.0.2:0").ip(), proxy.addr()).unwrap();
    let start = Instant::now();
    answered(&modest.ask("t"));
    // All that the greedy one asks for would take 2.5 s, and more than a query may take.
    assert!(start.elapsed() < Duration::from_millis(800), "{:?}", start.elapsed());
}
