//! Many bad clusters at once, and MetaServers that hang, move and come back: clients of other clusters notice nothing.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use harness::client::{Answer, Client};
use harness::http::get;
use harness::meta_server::{Behaviour, MetaServer};
use harness::proxy::Proxy;
use harness::wait::{eventually, poll};
use harness::wire::QueryCfgResponse;

use crate::support::{QUERY_TIMEOUT, Routes, SOON, addr, meta_with, record};

const PRIMARY: &str = "10.0.0.1:34801";

/// Nobody waits longer for others in a test. Tests share the machine with JVMs, hence not the 50 ms of the bench.
const FOR_OTHERS: Duration = Duration::from_secs(1);

fn is_ok(answer: &Answer) -> bool {
    answer.err.as_deref() == Some("ERR_OK")
}

/// Asks for a table all the time; returns the longest wait.
#[track_caller]
fn longest_wait(proxy: &Proxy, table: &str, want: &str, during: Duration) -> Duration {
    let mut client = proxy.client();
    let end = Instant::now() + during;
    let mut longest = Duration::ZERO;
    while Instant::now() < end {
        let start = Instant::now();
        let answer = client.try_ask(table, SOON).expect("an answer");
        assert_eq!(answer.err.as_deref(), Some(want), "{table}");
        longest = longest.max(start.elapsed());
    }
    longest
}

/// Clients ask for `tables` all the time, one connection each, and others ask for `good` and an unknown table meanwhile.
#[track_caller]
fn assert_others_do_not_wait(proxy: &Proxy, tables: &[String], during: Duration) {
    let is_over = AtomicBool::new(false);
    let [good, unknown] = thread::scope(|scope| {
        for tables in tables.chunks(tables.len().div_ceil(16)) {
            let is_over = &is_over;
            scope.spawn(move || {
                let mut client = proxy.client();
                while !is_over.load(Relaxed) {
                    let seqs = client.send_queries(tables.iter().map(String::as_str));
                    client.read_answers(seqs.len());
                }
            });
        }
        let waits = [("good", "ERR_OK"), ("nosuch", "ERR_OBJECT_NOT_FOUND")]
            .map(|(table, want)| scope.spawn(move || longest_wait(proxy, table, want, during)));
        let waits = waits.map(|wait| wait.join());
        is_over.store(true, Relaxed);
        waits.map(Result::unwrap)
    });
    println!("longest wait for a good table {good:?}, for an unknown one {unknown:?}");
    assert!(good < FOR_OTHERS, "{good:?}");
    assert!(unknown < FOR_OTHERS, "{unknown:?}");
}

#[test]
fn many_silent_slow_and_refusing_clusters_stop_no_other() {
    let good = meta_with("good", PRIMARY);
    let (mute, slow) = (MetaServer::start(), MetaServer::start());
    mute.set(Behaviour::Mute);
    slow.set(Behaviour::Slow(Duration::from_millis(400)));
    let mut routes = Routes::new([("good", record("good", &[good.addr()]))]);
    let mut tables = Vec::new();
    let mut add = |name: String, record: String| {
        routes.put(&name, record);
        tables.push(name);
    };
    // Another set of addresses is another cluster, so that one server can be many of them.
    let nobody = |n: usize| addr(&format!("127.0.{}.{}:1", 1 + n / 200, 1 + n % 200));
    for n in 0..40 {
        add(format!("mute{n}"), record(&format!("mute{n}"), &[mute.addr(), nobody(n)]));
    }
    for n in 0..1_000 {
        add(format!("refused{n}"), record(&format!("refused{n}"), &[nobody(n), nobody(n + 1)]));
    }
    for cluster in 0..10 {
        for n in 0..8 {
            let name = format!("slow{cluster}_{n}");
            slow.put_table(&name, QueryCfgResponse::table(1, 4, addr(PRIMARY)));
            add(name, record(&format!("slow{cluster}"), &[slow.addr(), nobody(100 + cluster)]));
        }
    }
    let proxy = routes.proxy_with("workers: 16");
    assert_others_do_not_wait(&proxy, &tables, Duration::from_secs(4));
}

#[test]
fn clusters_that_die_in_one_instant_stop_no_other() {
    const CLUSTERS: usize = 100;
    let (good, dying) = (meta_with("good", PRIMARY), MetaServer::start());
    let mut routes = Routes::new([("good", record("good", &[good.addr()]))]);
    let names: Vec<String> = (0..CLUSTERS).map(|n| format!("t{n}")).collect();
    for (n, name) in names.iter().enumerate() {
        dying.put_table(name, QueryCfgResponse::table(1, 4, addr(PRIMARY)));
        let own = addr(&format!("127.0.9.{}:1", 1 + n));
        routes.put(name, record(&format!("c{n}"), &[dying.addr(), own]));
    }
    let proxy = routes.proxy_with("workers: 16");
    let mut client = proxy.client();
    assert!(client.ask_all(names.iter().map(String::as_str)).iter().all(is_ok), "all are well");
    dying.set(Behaviour::Mute);
    assert_others_do_not_wait(&proxy, &names, Duration::from_secs(5));
}

/// A proxy whose cluster has been found to fail.
fn failing(meta: &MetaServer) -> (Proxy, Routes) {
    meta.set(Behaviour::Mute);
    let routes = Routes::new([("t", record("c", &[meta.addr()]))]);
    let proxy = routes.proxy();
    eventually("it is given up", 3 * SOON, || {
        proxy.ask("t");
        proxy.log().contains("queries are refused")
    });
    (proxy, routes)
}

#[test]
fn a_repaired_cluster_is_well_again_without_any_client() {
    let meta = meta_with("t", PRIMARY);
    let (proxy, _routes) = failing(&meta);
    let start = Instant::now();
    let refused = proxy.ask("t");
    assert_eq!(refused.err.as_deref(), Some("ERR_SERVICE_NOT_ACTIVE"));
    assert!(start.elapsed() < QUERY_TIMEOUT, "at once, unless it was the trial of this second");
    meta.set(Behaviour::Leader);
    proxy.wait_for_log("answers again", Duration::from_secs(3));
    assert!(is_ok(&proxy.ask("t")));
}

/// The request that it lost must not keep the proxy from asking it again.
#[test]
fn a_server_that_lost_a_request_is_asked_again_for_a_table_that_is_always_asked_for() {
    let meta = meta_with("t", PRIMARY);
    let routes = Routes::new([("t", record("c", &[meta.addr()]))]);
    let proxy = routes.proxy();
    assert!(is_ok(&proxy.ask("t")));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Their queries overlap, so that there is always somebody who waits.
        for _ in 0..6 {
            let (proxy, is_over) = (&proxy, &is_over);
            scope.spawn(move || {
                let mut client = proxy.client();
                while !is_over.load(Relaxed) {
                    client.ask("t");
                    thread::sleep(Duration::from_millis(30));
                }
            });
            thread::sleep(Duration::from_millis(40));
        }
        let before = meta.calls();
        meta.set(Behaviour::Mute);
        eventually("a request is lost", SOON, || meta.calls() > before);
        thread::sleep(Duration::from_millis(700));
        meta.set(Behaviour::Leader);
        let start = Instant::now();
        let well = poll(4 * QUERY_TIMEOUT, || is_ok(&proxy.ask("t")).then(|| start.elapsed()));
        is_over.store(true, Relaxed);
        println!("well again after {well:?}");
        assert!(well.is_some_and(|took| took < 2 * QUERY_TIMEOUT), "{well:?}");
    });
}

#[test]
fn a_dead_standby_is_seen_before_it_is_needed() {
    let (leader, standby) = (meta_with("t", PRIMARY), MetaServer::start());
    standby.set(Behaviour::Follower { leader: Some(leader.addr()) });
    let routes = Routes::new([("t", record("c", &[leader.addr(), standby.addr()]))]);
    let proxy = routes.proxy_with("probe_interval_s: 1");
    let said = |meta: &MetaServer| {
        let text = get(proxy.admin(), "/clusters");
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let probes = json["clusters"][0]["probes"].as_array().cloned().unwrap_or_default();
        let addr = meta.addr().to_string();
        let probe = probes.into_iter().find(|probe| probe["meta"] == *addr)?;
        probe["said"].as_str().map(str::to_owned)
    };
    eventually("both are known", SOON, || {
        said(&leader).as_deref() == Some("leader") && said(&standby).as_deref() == Some("follower")
    });
    let up = format!(
        r#"meta_proxy_meta_answers_probes{{region="test",pegasus_cluster="c",meta="{}"}} "#,
        standby.addr()
    );
    assert!(get(proxy.admin(), "/metrics").contains(&format!("{up}1")));
    standby.set(Behaviour::CloseOnRequest);
    eventually("it is seen without a query", SOON, || said(&standby).as_deref() == Some("closed"));
    assert!(get(proxy.admin(), "/metrics").contains(&format!("{up}0")));
    assert!(is_ok(&proxy.ask("t")), "the leader serves on");
    assert!(get(proxy.admin(), "/").contains(&standby.addr().to_string()), "the page names it");
}

#[test]
fn a_probe_alone_refuses_no_query() {
    let meta = meta_with("t", PRIMARY);
    let routes = Routes::new([("t", record("c", &[meta.addr(), addr("127.0.0.1:1")]))]);
    let proxy = routes.proxy_with("probe_interval_s: 1");
    let longest = longest_wait(&proxy, "t", "ERR_OK", Duration::from_secs(3));
    assert!(longest < FOR_OTHERS, "{longest:?}");
    assert!(!proxy.log().contains("queries are refused"), "{}", proxy.log());
}

#[test]
fn an_elected_leader_is_found_while_the_old_one_hangs() {
    let (old, new) = (meta_with("t", PRIMARY), MetaServer::start());
    new.put_table("t", QueryCfgResponse::table(1, 4, addr(PRIMARY)));
    new.set(Behaviour::Follower { leader: Some(old.addr()) });
    let routes = Routes::new([("t", record("c", &[old.addr(), new.addr()]))]);
    let proxy = routes.proxy();
    assert!(is_ok(&proxy.ask("t")));
    let before = new.calls();
    old.set(Behaviour::Mute);
    let mut client = proxy.client();
    let asked = Instant::now();
    client.send_query(1, "t");
    eventually("the follower is asked beside the silent leader", SOON, || new.calls() > before);
    thread::sleep(Duration::from_millis(800).saturating_sub(asked.elapsed()));
    new.set(Behaviour::Leader);
    let answer = client.try_read_answer(SOON).expect("an answer");
    assert!(is_ok(&answer), "the same query finds the new leader: {answer:?}");
}

#[test]
fn a_leader_that_a_follower_names_and_that_is_mute_is_asked_last() {
    let (old, follower, new) = (meta_with("t", PRIMARY), MetaServer::start(), MetaServer::start());
    new.put_table("t", QueryCfgResponse::table(1, 4, addr(PRIMARY)));
    follower.set(Behaviour::Follower { leader: Some(old.addr()) });
    new.set(Behaviour::Follower { leader: Some(old.addr()) });
    let metas = [old.addr(), follower.addr(), new.addr()];
    let routes = Routes::new([("t", record("c", &metas))]);
    let proxy = routes.proxy();
    assert!(is_ok(&proxy.ask("t")));
    // The follower has not heard of the election.
    old.set(Behaviour::Mute);
    new.set(Behaviour::Leader);
    let before = old.calls();
    assert!(is_ok(&proxy.ask("t")));
    assert_eq!(old.calls() - before, 1, "it was asked first, and not again");
}

#[test]
fn a_cluster_that_is_mute_for_most_tables_answers_the_others_and_is_not_failing() {
    let meta = meta_with("well", PRIMARY);
    let mute: Vec<String> = (0..12).map(|n| format!("mute{n}")).collect();
    mute.iter().for_each(|table| meta.mute_table(table));
    let tables = mute.iter().map(String::as_str).chain(["well"]);
    let routes = Routes::new(tables.map(|table| (table, record("c", &[meta.addr()]))));
    let proxy = routes.proxy();
    let is_over = AtomicBool::new(false);
    let longest = thread::scope(|scope| {
        for table in &mute {
            let (proxy, is_over) = (&proxy, &is_over);
            scope.spawn(move || {
                let mut client = proxy.client();
                while !is_over.load(Relaxed) {
                    let answer = client.ask(table);
                    assert_eq!(answer.err.as_deref(), Some("ERR_SERVICE_NOT_ACTIVE"), "{table}");
                }
            });
        }
        // Long enough for many queries in a row to fail.
        let longest = scope.spawn(|| longest_wait(&proxy, "well", "ERR_OK", 4 * QUERY_TIMEOUT));
        let longest = longest.join();
        is_over.store(true, Relaxed);
        longest.unwrap()
    });
    println!("longest wait {longest:?}");
    assert!(longest < FOR_OTHERS, "{longest:?}");
    assert!(!proxy.log().contains("queries are refused"), "{}", proxy.log());
    let text = get(proxy.admin(), "/clusters");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(json["clusters"][0]["failing_s"].is_null(), "{text}");
}

#[test]
fn links_that_rest_are_closed() {
    let meta = meta_with("t", PRIMARY);
    let routes = Routes::new([("t", record("c", &[meta.addr()]))]);
    let proxy = routes.proxy();
    assert!(is_ok(&proxy.ask("t")));
    assert_eq!(meta.open_connections(), 1);
    eventually("the link is closed", 2 * SOON, || meta.open_connections() == 0);
    assert!(is_ok(&proxy.ask("t")));
}

#[test]
fn a_cluster_with_a_short_time_out_is_found_to_fail() {
    let meta = meta_with("t", PRIMARY);
    meta.set(Behaviour::Mute);
    let routes = Routes::new([("t", record("c", &[meta.addr()]))]);
    let proxy = routes.proxy_with("query_timeout_ms: 100");
    eventually("it is given up", SOON, || {
        proxy.ask("t");
        proxy.log().contains("queries are refused")
    });
}

#[test]
fn clients_of_one_big_host_all_get_their_turn() {
    const CLIENTS: usize = 64;
    let meta = MetaServer::start();
    let names: Vec<String> = (0..CLIENTS).map(|n| format!("t{n}")).collect();
    names
        .iter()
        .for_each(|name| meta.put_table(name, QueryCfgResponse::table(1, 4, addr(PRIMARY))));
    meta.set(Behaviour::Slow(Duration::from_millis(2)));
    let to_meta = record("c", &[meta.addr()]);
    let routes = Routes::new(names.iter().map(|name| (name.as_str(), to_meta.clone())));
    let proxy = routes.proxy();
    let end = Instant::now() + Duration::from_secs(3);
    let ask = |name: &str| {
        let mut client: Client = proxy.client();
        let mut answers = 0;
        while Instant::now() < end {
            assert!(is_ok(&client.ask(name)), "{name}");
            answers += 1;
        }
        answers
    };
    let answers: Vec<usize> = thread::scope(|scope| {
        let clients: Vec<_> = names.iter().map(|name| scope.spawn(move || ask(name))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let (least, most) = (answers.iter().min().unwrap(), answers.iter().max().unwrap());
    println!("{least} to {most} answers each");
    assert!(least * 4 > *most, "{answers:?}");
}
