//! MetaServers by name: names that move, and name servers that say nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use harness::client::Answer;
use harness::http::get;
use harness::meta_server::{Behaviour, MetaServer};
use harness::names::Names;
use harness::proxy::Proxy;
use harness::wait::{eventually, poll};
use harness::wire::QueryCfgResponse;

use crate::support::{BINARY, Routes, SOON, addr, meta_with};

const OLD_PRIMARY: &str = "10.0.0.1:34801";
const NEW_PRIMARY: &str = "10.0.0.2:34801";

/// Nobody waits longer for others in a test, as in `crowd`.
const FOR_OTHERS: Duration = Duration::from_secs(1);

/// A result is fetched anew after 10 s, and looked at each second.
const NAMES_ARE_SEEN: Duration = Duration::from_secs(30);

fn proxy_with(names: &Names, routes: &Routes, yaml: &str) -> Proxy {
    let builder = Proxy::builder(BINARY).routes_file(routes.path()).config_extra(yaml);
    names.known_to(builder).start()
}

fn record(cluster: &str, metas: &str) -> String {
    format!(r#"{{"cluster_name": "{cluster}", "meta_addrs": "{metas}"}}"#)
}

/// A MetaServer with table `t` at another address of this host, and the same port as `other`.
fn beside(other: SocketAddr, primary: &str) -> MetaServer {
    let host = IpAddr::from([127, 0, 7, 1]);
    let meta = MetaServer::start_on((host, other.port()).into()).expect("the port is free there");
    meta.put_table("t", QueryCfgResponse::table(1, 4, addr(primary)));
    meta
}

fn is_of(answer: &Answer, primary: &str) -> bool {
    answer.err.as_deref() == Some("ERR_OK")
        && answer
            .config()
            .partitions
            .iter()
            .all(|partition| partition.primary == Some(addr(primary)))
}

/// Every query must be answered by the new cluster from now on.
#[track_caller]
fn assert_only_the_new_one_is_asked(proxy: &Proxy, old: &MetaServer) {
    let calls = old.calls();
    let mut client = proxy.client();
    for _ in 0..50 {
        assert!(is_of(&client.ask("t"), NEW_PRIMARY));
    }
    assert_eq!(old.calls(), calls, "the old address is asked");
}

/// A MetaServer by a name, and `metas` for a record with it.
fn named(meta: &MetaServer) -> (Names, String) {
    let mut names = Names::new();
    names.set("meta.example", meta.addr().ip());
    (names, format!("meta.example:{}", meta.addr().port()))
}

#[test]
fn a_name_that_moves_takes_its_queries_along_though_the_old_address_answers_on() {
    let old = meta_with("t", OLD_PRIMARY);
    let new = beside(old.addr(), NEW_PRIMARY);
    let (mut names, metas) = named(&old);
    let routes = Routes::new([("t", record("c", &metas))]);
    let proxy = proxy_with(&names, &routes, "");
    eventually("the name is known", SOON, || is_of(&proxy.ask("t"), OLD_PRIMARY));
    // The host at the old address is another cluster's MetaServer by now, and leads there.
    names.set("meta.example", new.addr().ip());
    eventually("queries move", NAMES_ARE_SEEN, || is_of(&proxy.ask("t"), NEW_PRIMARY));
    assert_only_the_new_one_is_asked(&proxy, &old);
    proxy.process().signal("HUP");
    proxy.wait_for_log("SIGHUP", SOON);
    assert_only_the_new_one_is_asked(&proxy, &old);
}

/// The answers of the old address that are on their way when the name moves must not bring it back.
#[test]
fn a_name_that_moves_under_load_takes_all_queries_along() {
    let old = meta_with("t", OLD_PRIMARY);
    let new = beside(old.addr(), NEW_PRIMARY);
    let (mut names, metas) = named(&old);
    // Different tables, so that several calls are under way all the time.
    let tables: Vec<String> = (0..12).map(|n| format!("t{n}")).collect();
    for meta in [&old, &new] {
        let table = QueryCfgResponse::table(1, 4, addr(OLD_PRIMARY));
        tables.iter().for_each(|name| meta.put_table(name, table.clone()));
    }
    let names_of_tables = tables.iter().map(String::as_str).chain(["t"]);
    let routes = Routes::new(names_of_tables.map(|name| (name, record("c", &metas))));
    let proxy = proxy_with(&names, &routes, "");
    eventually("the name is known", SOON, || is_of(&proxy.ask("t"), OLD_PRIMARY));
    old.set(Behaviour::Slow(Duration::from_millis(100)));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for table in &tables {
            let (proxy, is_over) = (&proxy, &is_over);
            scope.spawn(move || {
                let mut client = proxy.client();
                while !is_over.load(Relaxed) {
                    assert!(client.try_ask(table, SOON).is_ok_and(|answer| answer.is_ok()));
                }
            });
        }
        names.set("meta.example", new.addr().ip());
        let moved = poll(NAMES_ARE_SEEN, || is_of(&proxy.ask("t"), NEW_PRIMARY).then_some(()));
        is_over.store(true, Relaxed);
        moved.expect("queries move");
    });
    old.set(Behaviour::Leader);
    assert_only_the_new_one_is_asked(&proxy, &old);
}

#[test]
fn a_leader_ends_with_the_address_list_of_the_route() {
    let old_leader = meta_with("t", OLD_PRIMARY);
    let (follower, new) = (MetaServer::start(), meta_with("t", NEW_PRIMARY));
    follower.set(Behaviour::Follower { leader: Some(old_leader.addr()) });
    let mut routes = Routes::new([("t", record("c", &follower.addr().to_string()))]);
    let proxy = routes.proxy();
    assert!(is_of(&proxy.ask("t"), OLD_PRIMARY));
    routes.put("t", record("c", &new.addr().to_string()));
    eventually("queries move", SOON, || is_of(&proxy.ask("t"), NEW_PRIMARY));
    assert_only_the_new_one_is_asked(&proxy, &old_leader);
}

#[test]
fn a_leader_that_a_follower_named_is_forgotten_with_that_follower() {
    // Not in the list: only the follower at the name's first address knows it.
    let old_leader = meta_with("t", OLD_PRIMARY);
    let follower = MetaServer::start();
    follower.set(Behaviour::Follower { leader: Some(old_leader.addr()) });
    let new = beside(follower.addr(), NEW_PRIMARY);
    let (mut names, metas) = named(&follower);
    let routes = Routes::new([("t", record("c", &metas))]);
    let proxy = proxy_with(&names, &routes, "");
    eventually("the leader is found", SOON, || is_of(&proxy.ask("t"), OLD_PRIMARY));
    names.set("meta.example", new.addr().ip());
    eventually("queries move", NAMES_ARE_SEEN, || is_of(&proxy.ask("t"), NEW_PRIMARY));
    assert_only_the_new_one_is_asked(&proxy, &old_leader);
}

#[test]
fn a_zone_whose_name_server_is_mute_costs_other_clusters_nothing() {
    const CLUSTERS: usize = 40;
    let good = meta_with("good", NEW_PRIMARY);
    let mut names = Names::new();
    names.mute("dead.example");
    names.set("meta.good.example", good.addr().ip());
    let dead: Vec<String> = (0..CLUSTERS).map(|n| format!("dead{n}")).collect();
    let mut routes = Routes::new(dead.iter().enumerate().map(|(n, table)| {
        (table.as_str(), record(table, &format!("m{n}.dead.example:34601,b{n}.dead.example:34601")))
    }));
    // Names are looked up for probes, too.
    let proxy = proxy_with(&names, &routes, "probe_interval_s: 10");
    let mut waiting = proxy.client();
    let seqs = waiting.send_queries(dead.iter().map(String::as_str));
    let refused = waiting.read_answers(seqs.len());
    assert!(refused.values().all(|a| a.err.as_deref() == Some("ERR_SERVICE_NOT_ACTIVE")));
    routes.put("good", record("good", &format!("meta.good.example:{}", good.addr().port())));
    // The first answer that knows the table must be its cluster's, and come at once.
    let mut client = proxy.client();
    let (start, answer) = loop {
        let start = Instant::now();
        let answer = client.ask("good");
        if answer.err.as_deref() != Some("ERR_OBJECT_NOT_FOUND") {
            break (start, answer);
        }
    };
    assert!(is_of(&answer, NEW_PRIMARY), "{answer:?}");
    assert!(start.elapsed() < FOR_OTHERS, "{:?}", start.elapsed());
    let log = proxy.log();
    let is_blamed = |line: &str| line.contains("WARN") && line.contains("cluster=good");
    assert!(!log.lines().any(is_blamed), "{log}");
}

#[test]
fn a_cluster_without_an_address_has_not_failed() {
    let good = meta_with("t", NEW_PRIMARY);
    let mut names = Names::new();
    names.mute("example");
    let metas = format!("meta.example:{}", good.addr().port());
    let routes = Routes::new([("t", record("c", &metas))]);
    let proxy = proxy_with(&names, &routes, "");
    for _ in 0..4 {
        assert_eq!(proxy.ask("t").err.as_deref(), Some("ERR_SERVICE_NOT_ACTIVE"));
    }
    let page = get(proxy.admin(), "/clusters");
    assert!(!proxy.log().contains("queries are refused"), "{}\n{page}", proxy.log());
    // The name server is back, and says so to the look-up that waits for it.
    names.set("meta.example", good.addr().ip());
    names.unmute("example");
    eventually("it is answered", SOON, || is_of(&proxy.ask("t"), NEW_PRIMARY));
}
