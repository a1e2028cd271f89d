//! The operators' view: pages over HTTP, and metrics.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, SystemTime};

use harness::http::{self, get, request};
use harness::meta_server::{Behaviour, MetaServer};
use harness::proxy::Proxy;
use harness::scratch::Scratch;
use harness::wait::eventually;
use harness::wire::QueryCfgResponse;
use harness::zookeeper::ZooKeeper;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::package::read;
use crate::run::run;
use crate::scrape::series;
use crate::support::{BINARY, Routes, SOON, addr, meta_with, record};

const ROOT: &str = "/pegasus-cluster";

fn json(proxy: &Proxy, path: &str) -> Value {
    let page = request(proxy.admin(), "GET", path, "");
    assert_eq!((page.status, page.content_type.as_str()), (200, "application/json"));
    serde_json::from_str(&page.body).unwrap_or_else(|e| panic!("{path}: {e}: {}", page.body))
}

/// The number of a line of `/metrics`.
fn metric(proxy: &Proxy, series: &str) -> Option<f64> {
    let text = get(proxy.admin(), "/metrics");
    text.lines().find_map(|line| {
        line.strip_prefix(series.trim_end_matches("{}"))?.strip_prefix(' ')?.parse().ok()
    })
}

#[test]
fn pages_tell_of_routes_clusters_and_clients() {
    let meta = meta_with("orders", "10.1.1.1:34801");
    let zk = ZooKeeper::start();
    zk.create(&format!("{ROOT}/orders"), record("a", &[meta.addr()]));
    zk.create(&format!("{ROOT}/junk"), "{}");
    let proxy = Proxy::builder(BINARY).zookeeper([zk.addr()], ROOT).start();
    eventually("orders is served", SOON, || proxy.ask("orders").is_ok());
    proxy.ask("junk");

    let routes = json(&proxy, "/routes");
    let [junk, orders] = routes["routes"].as_array().unwrap().as_slice() else {
        panic!("{routes}");
    };
    assert_eq!((&junk["table"], &junk["cluster"]), (&"junk".into(), &Value::Null));
    assert_eq!((&orders["table"], &orders["cluster"]), (&"orders".into(), &"a".into()));
    assert_eq!((&orders["source"], &orders["stale"]), (&"zookeeper".into(), &false.into()));
    assert_eq!(orders["metas"][0], meta.addr().to_string());
    assert!(orders["reads"].as_u64() >= Some(1), "{orders}");
    assert_eq!(json(&proxy, "/routes?table=orders")["routes"].as_array().unwrap().len(), 1);

    let clusters = json(&proxy, "/clusters");
    let cluster = &clusters["clusters"][0];
    assert_eq!((&cluster["name"], &cluster["failing_s"]), (&"a".into(), &Value::Null));
    assert_eq!(cluster["leader"], meta.addr().to_string());
    let zookeeper = &clusters["zookeeper"];
    assert_eq!(
        (&zookeeper["state"], &zookeeper["server"]),
        (&"confirmed".into(), &zk.addr().to_string().into())
    );
    assert_eq!(zookeeper["granted_timeout_ms"], 6_000);

    let clients = json(&proxy, "/clients?table=orders");
    assert_eq!(clients["uses"][0]["client"], "127.0.0.1");
    let asked = clients["uses"][0]["queries"].as_u64().unwrap();
    proxy.ask("orders");
    let clients = json(&proxy, "/clients?client=127.0.0.1");
    assert_eq!(clients["uses"][0]["queries"].as_u64(), Some(asked + 1));

    zk.pause();
    eventually("routes are known to be stale", SOON, || {
        json(&proxy, "/routes?table=orders")["routes"][0]["stale"] == true
    });
    assert_eq!(json(&proxy, "/clusters")["zookeeper"]["state"], "down");
    assert_eq!(metric(&proxy, r#"meta_proxy_zookeeper_connected{region="test"}"#), Some(0.0));
    assert!(proxy.ask("orders").is_ok(), "stale routes serve");
    zk.resume();
    eventually("routes are confirmed again", SOON, || {
        metric(&proxy, r#"meta_proxy_routes_unconfirmed{region="test"}"#) == Some(0.0)
    });
}

#[test]
fn a_broken_record_over_a_good_one_is_seen() {
    let meta = meta_with("orders", "10.1.1.1:34801");
    let zk = ZooKeeper::start();
    let znode = format!("{ROOT}/orders");
    let good = record("a", &[meta.addr()]);
    zk.create(&znode, &good);
    let proxy = Proxy::builder(BINARY).zookeeper([zk.addr()], ROOT).start();
    eventually("orders is served", SOON, || proxy.ask("orders").is_ok());
    let route = || json(&proxy, "/routes?table=orders")["routes"][0].clone();
    let unusable = || {
        ["unusable", "unserved"].map(|what| {
            metric(&proxy, &format!(r#"meta_proxy_routes_{what}{{region="test"}}"#)).unwrap()
        })
    };
    assert_eq!((&route()["fault"], unusable()), (&Value::Null, [0.0, 0.0]));

    let good_zxid = route()["zxid"].clone();
    zk.set(&znode, "junk");
    eventually("the fault is told", SOON, || route()["fault"].is_string());
    assert!(route()["fault"].as_str().unwrap().contains("want a JSON object"), "{}", route());
    assert_ne!(route()["zxid"], good_zxid, "that of the broken record");
    assert!(route()["written_s"].as_u64().is_some_and(|s| s < 120), "{}", route());
    assert_eq!((&route()["cluster"], unusable()), (&"a".into(), [1.0, 0.0]));
    let page = get(proxy.admin(), "/");
    assert!(page.contains("The record of table orders cannot be used: want"), "{page}");
    assert!(proxy.ask("orders").is_ok(), "the last good one serves");

    zk.set(&znode, &good);
    eventually("it is good again", SOON, || route()["fault"].is_null());
    assert_eq!(unusable(), [0.0, 0.0]);

    zk.create(&format!("{ROOT}/users"), "junk");
    eventually("users has no record", SOON, || {
        proxy.ask("users").err.as_deref() == Some("ERR_INVALID_DATA")
    });
    assert_eq!(unusable(), [1.0, 1.0]);
}

#[test]
fn a_route_to_the_wrong_cluster_is_seen() {
    let (right, wrong) =
        (meta_with("orders", "10.1.1.1:34801"), meta_with("users", "10.1.1.1:34801"));
    let zk = ZooKeeper::start();
    let znode = format!("{ROOT}/orders");
    zk.create(&znode, record("b", &[wrong.addr()]));
    zk.create(&format!("{ROOT}/users"), record("b", &[wrong.addr()]));
    let proxy = Proxy::builder(BINARY).zookeeper([zk.addr()], ROOT).start();
    eventually("users is served", SOON, || proxy.ask("users").is_ok());
    let refused = || {
        let err = r#"meta_proxy_tables_refused{region="test",err="ERR_OBJECT_NOT_FOUND"}"#;
        metric(&proxy, err)
    };
    assert_eq!(refused(), Some(0.0));
    for _ in 0..5 {
        assert_eq!(proxy.ask("orders").err.as_deref(), Some("ERR_OBJECT_NOT_FOUND"));
    }
    let route = || json(&proxy, "/routes?table=orders")["routes"][0].clone();
    assert_eq!(
        (&route()["error"], &route()["error_queries"]),
        (&"ERR_OBJECT_NOT_FOUND".into(), &5.into())
    );
    assert_eq!(refused(), Some(1.0));
    let page = get(proxy.admin(), "/");
    let told = "Cluster b does not have table orders: 5 queries answered ERR_OBJECT_NOT_FOUND";
    assert!(page.contains(told), "{page}");
    assert!(page.contains("class=\"live bad\" role=\"status\""), "{page}");

    zk.set(&znode, record("a", &[right.addr()]));
    eventually("orders is served", SOON, || proxy.ask("orders").is_ok());
    assert_eq!((&route()["error"], refused()), (&Value::Null, Some(0.0)));
    assert!(get(proxy.admin(), "/").contains("All is well"));

    // Records that were written by hand: one name for two clusters.
    zk.set(&znode, record("b", &[right.addr()]));
    eventually("it is told", SOON, || {
        get(proxy.admin(), "/").contains("Cluster b has 2 different sets of MetaServers")
    });
}

#[test]
fn a_cache_that_overflows_is_seen() {
    let meta = MetaServer::start();
    let zk = ZooKeeper::start();
    let tables = ["a", "b", "c", "d"];
    for table in tables {
        meta.put_table(table, QueryCfgResponse::table(1, 1, "10.1.1.1:34801".parse().unwrap()));
        zk.create(&format!("{ROOT}/{table}"), record("a", &[meta.addr()]));
    }
    let capacity = format!(
        "zookeeper: {{address: '{}', root: {ROOT}, table_watcher_cache_capacity: 2}}",
        zk.addr()
    );
    let proxy = Proxy::builder(BINARY).zookeeper([zk.addr()], ROOT).config_extra(&capacity).start();
    for table in tables {
        eventually("it is served", SOON, || proxy.ask(table).is_ok());
    }
    let evicted = metric(&proxy, r#"meta_proxy_routes_evicted_total{region="test"}"#);
    assert!(evicted >= Some(2.0), "{evicted:?}");
    let limit = r#"meta_proxy_limit{region="test",limit="table_watcher_cache_capacity"}"#;
    assert_eq!(metric(&proxy, limit), Some(2.0));
    let page = get(proxy.admin(), "/");
    let told = "The cache is too small: zookeeper.table_watcher_cache_capacity is 2, and ";
    assert!(page.contains(told), "{page}");
    assert_eq!(json(&proxy, "/clusters")["zookeeper"]["capacity"], 2);
}

#[test]
fn series_by_table_can_be_turned_off() {
    let meta = meta_with("orders", "10.1.1.1:34801");
    let routes = Routes::new([("orders", record("a", &[meta.addr()]))]);
    let proxy = routes.proxy_with("metric: {by_table: false}");
    assert!(proxy.ask("orders").is_ok());
    let text = get(proxy.admin(), "/metrics");
    assert!(!text.contains("table=") && text.contains("client_connection_count"), "{text}");
    assert!(text.contains("meta_proxy_build_info{version=") && text.contains("commit="), "{text}");
    assert!(text.contains("\nprocess_open_fds "), "{text}");
    let called = r#"meta_proxy_call_latency_seconds_count{pegasus_cluster="a"}"#;
    assert_eq!(metric(&proxy, called), Some(1.0));
}

#[test]
fn the_page_shows_what_an_operator_must_act_on() {
    let meta = meta_with("orders", "10.1.1.1:34801");
    let zk = ZooKeeper::start();
    zk.create(&format!("{ROOT}/orders"), record("a", &[meta.addr()]));
    let scratch = Scratch::new("page");
    let good = format!(
        "zookeeper: {{address: '{}', root: {ROOT}, state_file: {}/no/such/folder}}\n\
         metric: {{type: falcon, falcon_agent: '127.0.0.1:1', falcon_step_s: 1}}\n\
         limits: {{max_connections_per_address: 3}}\n",
        zk.addr(),
        scratch.path().display()
    );
    let proxy = Proxy::builder(BINARY).config_extra(&good).start();
    let page = || get(proxy.admin(), "/");
    let shows = |what: &str| eventually(what, SOON, || page().contains(what));
    eventually("orders is served", SOON, || proxy.ask("orders").is_ok());
    shows("The state file cannot be written: No such file");
    shows("The falcon agent takes no metrics");
    assert_eq!(metric(&proxy, "meta_proxy_state_file_failing{}"), Some(1.0));

    let mut held: Vec<_> = (0..3).map(|_| proxy.client()).collect();
    assert!(held.iter_mut().all(|client| client.ask("orders").is_ok()));
    proxy.client().expect_closed(SOON);
    shows("Clients are refused: limits.max_connections_per_address is reached, 1 times");
    drop(held);

    proxy.rewrite_config(&format!("{good}workers: 8"));
    proxy.process().signal("HUP");
    shows("Changed settings that wait for a restart: workers");
    assert_eq!(metric(&proxy, "meta_proxy_settings_waiting{}"), Some(1.0));
    proxy.rewrite_config(&format!("{good}workers: many"));
    proxy.process().signal("HUP");
    shows("SIGHUP changed nothing, ");
    shows("workers: want 4..=1024, got &quot;many&quot;");
    shows("Changed settings that wait for a restart: workers");
    assert_eq!(metric(&proxy, "meta_proxy_settings_rejected{}"), Some(1.0));
    proxy.rewrite_config(&good);
    proxy.process().signal("HUP");
    eventually("it is good again", SOON, || {
        !page().contains("SIGHUP") && !page().contains("wait for a restart")
    });
    assert_eq!(metric(&proxy, "meta_proxy_settings_rejected{}"), Some(0.0));
}

#[test]
fn a_route_of_an_old_state_file_is_old() {
    let meta = meta_with("orders", "10.1.1.1:34801");
    let zk = ZooKeeper::start();
    zk.create(&format!("{ROOT}/orders"), record("a", &[meta.addr()]));
    let scratch = Scratch::new("state");
    let state = scratch.path().join("routes");
    let config = format!(
        "zookeeper: {{address: '{}', root: {ROOT}, state_file: {}}}",
        zk.addr(),
        state.display()
    );
    let start = || Proxy::builder(BINARY).config_extra(&config).start();
    let proxy = start();
    eventually("orders is served", SOON, || proxy.ask("orders").is_ok());
    eventually("it is kept", SOON, || state.exists());
    proxy.kill();
    let hours = Duration::from_secs(3 * 3600);
    let file = fs::File::options().write(true).open(&state).unwrap();
    file.set_modified(SystemTime::now() - hours).unwrap();
    zk.pause();
    let proxy = start();
    assert!(proxy.ask("orders").is_ok(), "of the state file");
    let age = || metric(&proxy, r#"meta_proxy_oldest_unconfirmed_route_seconds{region="test"}"#);
    assert!(age() >= Some(hours.as_secs_f64()), "{:?}", age());
    let route = &json(&proxy, "/routes")["routes"][0];
    assert!(route["age_s"].as_u64() >= Some(hours.as_secs()), "{route}");
    assert_eq!(route["source"], "state file");
    zk.resume();
    eventually("it is confirmed", SOON, || age() == Some(0.0));
}

#[test]
fn a_proxy_without_any_route_is_not_ready() {
    let zk = ZooKeeper::start();
    zk.create(ROOT, "");
    let proxy = Proxy::builder(BINARY).zookeeper([zk.addr()], ROOT).start();
    let ready = || request(proxy.admin(), "GET", "/readyz", "");
    eventually("it is ready, ZooKeeper will tell of tables", SOON, || ready().status == 200);
    zk.pause();
    eventually("it knows no table and cannot learn of one", SOON, || ready().status == 503);
    assert_eq!(ready().body, "the proxy has no routes\n");
    zk.resume();
    eventually("it is ready again", SOON, || ready().status == 200);
}

#[test]
fn metrics_count_what_happened() {
    let meta = meta_with("orders", "10.1.1.1:34801");
    let routes = Routes::new([("orders", record("a", &[meta.addr()]))]);
    let proxy = routes.proxy();
    let mut client = proxy.client();
    for _ in 0..3 {
        assert!(client.ask("orders").is_ok());
    }
    client.ask("nosuch");
    let mut odd = proxy.client();
    odd.send(b"GET / HTTP/1.1\r\n\r\n");
    odd.expect_closed(SOON);
    for (series, want) in [
        (r#"client_connection_count{region="test"}"#, 1.0),
        (r#"client_query_config_count{region="test",table="orders"}"#, 3.0),
        (r#"meta_proxy_answers_total{region="test",pegasus_cluster="a",err="ERR_OK"}"#, 3.0),
        (
            r#"meta_proxy_answers_total{region="test",pegasus_cluster="",err="ERR_OBJECT_NOT_FOUND"}"#,
            1.0,
        ),
        (r#"meta_proxy_answer_latency_seconds_count{region="test"}"#, 4.0),
        (r#"meta_proxy_malformed_total{region="test"}"#, 1.0),
        (r#"meta_proxy_connections_closed_total{region="test",why="malformed"}"#, 1.0),
        (r#"meta_proxy_flights_led_total{region="test"}"#, 3.0),
        (r#"meta_proxy_pending_queries{region="test"}"#, 0.0),
        (r#"meta_proxy_clusters_failing{region="test"}"#, 0.0),
    ] {
        assert_eq!(metric(&proxy, series), Some(want), "{series}");
    }
    let text = get(proxy.admin(), "/metrics");
    assert!(!text.contains("nosuch"), "a label for a table that does not exist");

    meta.set(Behaviour::Mute);
    let mut waiting = proxy.client();
    waiting.send_queries(["orders"; 2]);
    eventually("queries wait", SOON, || {
        metric(&proxy, r#"meta_proxy_pending_queries{region="test"}"#) == Some(2.0)
    });
    assert_eq!(metric(&proxy, r#"meta_proxy_flights_joined_total{region="test"}"#), Some(1.0));
    waiting.read_answers(2);
    let failed = format!(
        r#"meta_proxy_answers_total{{region="test",pegasus_cluster="",err="{}"}}"#,
        "ERR_SERVICE_NOT_ACTIVE"
    );
    assert_eq!(metric(&proxy, &failed), Some(2.0));
}

#[test]
fn prometheus_reads_the_metrics_in_both_formats() {
    let meta = meta_with("orders", "10.1.1.1:34801");
    let routes = Routes::new([("orders", record("a", &[meta.addr()]))]);
    let proxy = routes.proxy();
    assert!(proxy.ask("orders").is_ok());
    for accept in ["application/openmetrics-text", "text/plain"] {
        let page = request(proxy.admin(), "GET", "/metrics", accept);
        let found = series(&page.content_type, &page.body);
        for (name, want) in [
            (r#"client_query_config_count{region="test",table="orders"}"#, 1.0),
            (r#"zk_request_count{region="test",table="orders"}"#, 0.0),
            (r#"meta_proxy_ready{region="test"}"#, 1.0),
            (r#"meta_proxy_answer_latency_seconds_count{region="test"}"#, 1.0),
        ] {
            assert_eq!(found.get(name), Some(&want), "{accept}: {name} in {found:#?}");
        }
    }
}

#[test]
fn clusters_that_need_a_look_come_first_and_have_their_reason() {
    let [fast, slow, dead] = [1, 2, 3].map(|host| meta_with("t", &format!("10.1.1.{host}:34801")));
    slow.set(Behaviour::Slow(Duration::from_millis(100)));
    let gone = dead.addr();
    drop(dead);
    let mut routes = Routes::new([
        ("t", record("a-fast", &[fast.addr()])),
        ("u", record("b-slow", &[slow.addr()])),
        ("v", record("c-dead", &[gone])),
        ("w", record("c-dead", &[gone])),
    ]);
    let proxy = routes.proxy();
    let order = || -> Vec<String> {
        let clusters = json(&proxy, "/clusters");
        let clusters = clusters["clusters"].as_array().unwrap().clone();
        clusters.iter().map(|cluster| cluster["name"].as_str().unwrap().to_owned()).collect()
    };
    proxy.ask("u");
    eventually("the slower comes first", SOON, || {
        // Again, should the machine have stood still at the first answer.
        proxy.ask("t");
        order() == ["b-slow", "a-fast", "c-dead"]
    });
    let failing = |cluster: &str| {
        let labels = format!(r#"region="test",pegasus_cluster="{cluster}""#);
        metric(&proxy, &format!("meta_proxy_cluster_failing{{{labels}}}"))
    };
    eventually("the dead one before it", 3 * SOON, || {
        proxy.ask("v");
        failing("c-dead") == Some(1.0)
    });
    assert_eq!(order(), ["c-dead", "b-slow", "a-fast"]);
    assert_eq!(failing("a-fast"), Some(0.0));
    let page = get(proxy.admin(), "/");
    assert!(page.contains("Cluster c-dead does not answer: "), "{page}");
    assert!(page.contains(&format!(", 2 tables affected; {gone} refused")), "{page}");

    // Counts of a cluster go on when its MetaServers change.
    let ok = r#"region="test",pegasus_cluster="a-fast",err="ERR_OK""#;
    let answers = || metric(&proxy, &format!("meta_proxy_answers_total{{{ok}}}"));
    let before = answers();
    assert!(before >= Some(1.0), "{before:?}");
    routes.put("t", record("a-fast", &[slow.addr(), fast.addr()]));
    eventually("it has two MetaServers", SOON, || {
        json(&proxy, "/routes?table=t")["routes"][0]["metas"].as_array().unwrap().len() == 2
    });
    assert_eq!(answers(), before);
}

#[test]
fn a_metaserver_that_was_replaced_is_no_trouble_any_more() {
    let (old, live) = (meta_with("t", "10.1.1.1:34801"), meta_with("t", "10.1.1.2:34801"));
    let gone = old.addr();
    drop(old);
    let mut routes = Routes::new([("t", record("a", &[gone, live.addr()]))]);
    let proxy = routes.proxy_with("probe_interval_s: 1");
    let page = || get(proxy.admin(), "/");
    eventually("it is told of", 3 * SOON, || {
        proxy.ask("t");
        page().contains(&format!("MetaServer {gone} of a gave no usable answer: refused"))
    });
    routes.put("t", record("a", &[live.addr()]));
    eventually("it is not any more", SOON, || {
        proxy.ask("t");
        page().contains("All is well")
    });
    let failures = format!(r#"region="test",pegasus_cluster="a",meta="{gone}",kind="refused""#);
    let counted = metric(&proxy, &format!("meta_proxy_upstream_failures_total{{{failures}}}"));
    assert!(counted >= Some(1.0), "a counter never goes back: {counted:?}");
}

#[test]
fn a_falcon_agent_gets_the_metrics() {
    let agent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let routes = Routes::new([]);
    let tell = format!(
        "{{type: falcon, tags: [region=test, data-center=x], falcon_agent: '{}', falcon_step_s: 1}}",
        agent.local_addr().unwrap()
    );
    let proxy = routes.proxy_with(&format!("metric: {tell}"));
    let _client = proxy.client();
    let (mut stream, _) = agent.accept().unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut request = Vec::new();
    let body = loop {
        let mut chunk = [0; 4096];
        let len = stream.read(&mut chunk).unwrap();
        assert!(len > 0, "a whole request, got {:?}", String::from_utf8_lossy(&request));
        request.extend(&chunk[..len]);
        let text = String::from_utf8_lossy(&request);
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && let Ok(numbers) = serde_json::from_str::<Value>(body)
        {
            assert!(head.starts_with("POST /v1/push HTTP/1.1"), "{head}");
            break numbers;
        }
    };
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
    let numbers = body.as_array().unwrap();
    let connections = numbers.iter().find(|number| {
        number["tags"].as_str().is_some_and(|tags| tags.contains("name=client_connection_count"))
    });
    let connections = connections.unwrap_or_else(|| panic!("{body:#}"));
    let tags = connections["tags"].as_str().unwrap();
    assert!(tags.contains("region=test") && tags.contains("data-center=x"), "{connections}");
    let page = http::request(proxy.admin(), "GET", "/metrics", "");
    let labels = r#"{data_center="x",region="test"}"#;
    let found = series(&page.content_type, &page.body);
    assert!(found.contains_key(&format!("client_connection_count{labels}")), "{found:#?}");
    assert_eq!((&connections["step"], &connections["counterType"]), (&1.into(), &"GAUGE".into()));
}

/// An address of this host by which others reach it.
fn own_address() -> IpAddr {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    // Sends nothing: only asks which address it would be sent from.
    socket.connect((Ipv4Addr::new(198, 51, 100, 1), 9)).expect("a route to others");
    socket.local_addr().unwrap().ip()
}

#[test]
fn only_this_host_may_drain() {
    let own = own_address();
    assert!(!own.is_loopback(), "{own}");
    let routes = Routes::new([("orders", record("a", &[addr("127.0.0.1:1")]))]);
    let everywhere = routes.proxy_with("admin: {listen: 0.0.0.0:0}");
    let port = everywhere.admin().port();
    // From one of this host's addresses to another: to the proxy as good as from elsewhere.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(own, 0).into()).unwrap();
    socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).unwrap();
    let mut foreign = TcpStream::from(socket);
    foreign.set_read_timeout(Some(SOON)).unwrap();
    foreign.write_all(b"POST /drain HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    foreign.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    assert_eq!(request(local, "GET", "/readyz", "").status, 200);

    // Where the pages are only at the host's own address, who is on the host comes from there.
    let at_own = routes.proxy_with(&format!("admin: {{listen: '{own}:0'}}"));
    assert_eq!(request(at_own.admin(), "POST", "/drain", "").body, "draining\n");
    assert_eq!(request(at_own.admin(), "GET", "/readyz", "").status, 503);
}

#[test]
fn no_page_of_another_site_can_change_anything() {
    let proxy = Routes::new([]).proxy();
    for (why, host, header, status) in [
        ("what an operator sends", "localhost", "X-Meta-Proxy: yes\r\n", 200),
        ("by address", "127.0.0.1", "X-Meta-Proxy: yes\r\n", 200),
        ("a form of another site", "127.0.0.1", "", 403),
        ("DNS rebinding", "evil.example", "X-Meta-Proxy: yes\r\n", 403),
        ("the same, seen by Origin", "evil.example", "Origin: http://evil.example\r\n", 403),
    ] {
        let mut stream = TcpStream::connect(proxy.admin()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        write!(stream, "POST /undrain HTTP/1.1\r\nHost: {host}\r\n{header}\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{why}: {answer}");
    }
}

#[test]
fn threads_tell_what_they_do_and_for_whom() {
    let meta = meta_with("orders", "10.1.1.1:34801");
    let routes = Routes::new([("orders", record("a", &[meta.addr()]))]);
    let proxy = routes.proxy_with("query_timeout_ms: 4000");
    meta.set(Behaviour::Mute);
    let mut client = proxy.client();
    client.send_query(1, "orders");
    let threads = || json(&proxy, "/threads")["threads"].as_array().cloned().unwrap();
    let waits = "waits for a silent MetaServer";
    let calls = || threads().into_iter().find(|thread| thread["doing"] == waits);
    eventually("a call is silent", SOON, || calls().is_some());
    let calling = calls().expect("the MetaServer is mute");
    assert_eq!(calling["name"], "meta-watch");
    assert_eq!(calling["subject"], "a orders");
    assert_eq!(calling["state"], "waiting");
    let names: Vec<String> =
        threads().iter().map(|thread| thread["name"].as_str().unwrap().to_owned()).collect();
    for name in ["accept", "admin-1", "log", "worker-000"] {
        assert!(names.iter().any(|other| other == name), "{name} in {names:?}");
    }
    // It moves on, and the listing with it.
    client.read_answer();
    eventually("nobody waits", SOON, || calls().is_none());
}

#[test]
fn every_thread_tells_what_it_does_and_for_whom() {
    let meta = meta_with("orders", "10.1.1.1:34801");
    let zk = ZooKeeper::start();
    zk.create(&format!("{ROOT}/orders"), record("a", &[meta.addr()]));
    let scratch = Scratch::new("threads");
    let state = scratch.path().join("routes");
    let proxy = Proxy::builder(BINARY)
        .config_extra(&format!(
            "zookeeper: {{address: 'localhost:{}', root: {ROOT}, state_file: {}}}\n\
             metric: {{type: falcon, falcon_agent: '127.0.0.1:1', falcon_step_s: 60}}",
            zk.addr().port(),
            state.display()
        ))
        .start();
    eventually("it is served", SOON, || proxy.ask("orders").is_ok());
    let threads = || json(&proxy, "/threads")["threads"].as_array().cloned().unwrap();
    let zookeeper = zk.addr().to_string();
    for (name, doing, subject) in [
        ("accept", "polls the sockets of clients", ""),
        ("zk-watch", "waits for changes of routes", zookeeper.as_str()),
        ("zk-link", "carries requests and answers", &zookeeper),
        ("state-file", "waits for routes to change", ""),
        ("meta-watch", "probes MetaServers", ""),
        ("log", "waits for lines", ""),
        ("falcon", "waits for the next push", "127.0.0.1:1"),
        ("meta-proxy", "waits for signals", ""),
    ] {
        eventually(&format!("{name} {doing}"), SOON, || {
            threads().iter().any(|thread| {
                thread["name"] == name
                    && thread["doing"] == doing
                    && thread["subject"].as_str().unwrap_or("") == subject
            })
        });
    }
    let threads = threads();
    for thread in &threads {
        assert!(thread["doing"].is_string() && thread["since_s"].is_number(), "{thread}");
    }
    let is_resolver = |thread: &Value| thread["name"].as_str().unwrap().starts_with("resolve");
    assert!(threads.iter().any(is_resolver), "{threads:?}");
    let answers = |thread: &&Value| thread["doing"] == "answers a request";
    let answering: Vec<_> = threads.iter().filter(answers).collect();
    assert!(answering.iter().any(|thread| thread["subject"] == "/threads"), "{threads:?}");
    // Without ZooKeeper both of its threads say so.
    zk.stop();
    for (name, doing) in [
        ("zk-watch", "waits for a connection to ZooKeeper"),
        ("zk-link", "waits until it may connect to ZooKeeper"),
    ] {
        eventually(&format!("{name} {doing}"), SOON, || {
            let threads = json(&proxy, "/threads");
            let threads = threads["threads"].as_array().cloned().unwrap();
            threads.iter().any(|thread| thread["name"] == name && thread["doing"] == doing)
        });
    }
}

#[test]
fn proxies_agree_on_the_newest_zxid_whatever_they_cache() {
    let meta = meta_with("orders", "10.1.1.1:34801");
    let zk = ZooKeeper::start();
    zk.create(&format!("{ROOT}/orders"), record("a", &[meta.addr()]));
    let start = || Proxy::builder(BINARY).zookeeper([zk.addr()], ROOT).start();
    let (one, other) = (start(), start());
    eventually("it is served", SOON, || one.ask("orders").is_ok());
    let newest = |proxy: &Proxy| metric(proxy, r#"meta_proxy_newest_zxid{region="test"}"#);
    // A table that none of them caches.
    let zxid = zk.create(&format!("{ROOT}/users"), record("a", &[meta.addr()])) as f64;
    eventually("both have seen it", SOON, || {
        newest(&one) >= Some(zxid) && newest(&one) == newest(&other)
    });
}

/// The recipe of the runbooks, on a binary without symbols as packages have it.
#[test]
fn gdb_names_the_threads_of_a_stripped_binary() {
    let runbooks = read("docs/runbooks.md");
    let recipe = runbooks.lines().find_map(|line| line.strip_prefix("# gdb -p")).expect("a recipe");
    let scratch = Scratch::new("gdb");
    let binary = scratch.path().join("meta-proxy");
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&binary).arg(BINARY);
    run(strip, SOON).expect_code(0);
    let routes = Routes::new([]);
    let binary = binary.to_str().expect("scratch directories have plain names");
    let proxy = Proxy::builder(binary).routes_file(routes.path()).start();
    let script =
        format!("gdb -p{}", recipe.replace("$(pidof meta-proxy)", &proxy.pid().to_string()));
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]);
    let done = run(shell, Duration::from_secs(60)).expect_code(0);
    for thread in ["\"accept\"", "\"worker-000\"", "\"admin-1\"", "\"log\""] {
        assert!(done.stdout.contains(thread), "{thread} in {done}");
    }
    assert!(done.stdout.matches("#0 ").count() > 60, "a stack for each thread: {done}");
    assert_eq!(request(proxy.admin(), "GET", "/healthz", "").status, 200, "it goes on");
}

#[test]
fn settings_in_use_are_shown_without_secrets() {
    let zk = ZooKeeper::start();
    let digest =
        format!("zookeeper: {{address: '{}', root: {ROOT}, digest: 'u:hunter2'}}", zk.addr());
    let proxy = Proxy::builder(BINARY).zookeeper([zk.addr()], ROOT).config_extra(&digest).start();
    let text = get(proxy.admin(), "/settings");
    assert!(!text.contains("hunter2"), "{text}");
    let page: Value = serde_json::from_str(&text).unwrap();
    let setting = |key: &str| {
        let settings = page["settings"].as_array().unwrap();
        settings.iter().find(|setting| setting["key"] == key).expect(key).clone()
    };
    let workers = setting("workers");
    assert_eq!(
        (&workers["value"], &workers["is_default"], &workers["needs_restart"]),
        (&64.into(), &true.into(), &true.into())
    );
    assert_eq!(setting("zookeeper.root")["value"], ROOT);
    assert_eq!(setting("zookeeper.root")["is_default"], false);
    assert_eq!(setting("zookeeper.digest")["value"], "***");
    assert_eq!(setting("query_timeout_ms")["needs_restart"], false);
}

#[test]
fn log_levels_change_at_run_time_until_sighup() {
    let meta = meta_with("orders", "10.1.1.1:34801");
    let routes = Routes::new([("orders", record("a", &[meta.addr()]))]);
    let proxy = routes.proxy_with("log: {level: info}");
    let levels = || get(proxy.admin(), "/log");
    assert_eq!(levels(), "info\n");
    let set = |query: &str| request(proxy.admin(), "POST", query, "");
    assert_eq!(set("/log?level=loud").status, 400);
    assert_eq!(set("/log").status, 400);
    let page = set("/log?level=info,client%3Ddebug");
    assert_eq!((page.status, page.body.as_str()), (200, "info,client=debug\n"));
    assert!(proxy.client().ask("orders").is_ok());
    proxy.wait_for_log("DEBUG", SOON);
    proxy.process().signal("HUP");
    eventually("the settings count again", SOON, || levels() == "info\n");
}

#[test]
fn metrics_are_compressed_for_clients_that_accept_gzip() {
    let proxy = Routes::new([]).proxy();
    let ask = |encoding: &str| {
        let mut stream = TcpStream::connect(proxy.admin()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\nAccept-Encoding: {encoding}\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
        let body = answer.split_off(end + 4);
        (String::from_utf8(answer).unwrap(), body)
    };
    let (head, plain) = ask("identity");
    assert!(!head.contains("Content-Encoding"), "{head}");
    let (head, small) = ask("gzip, deflate");
    assert!(
        head.contains("Content-Encoding: gzip\r\n") && head.contains("Vary: Accept-Encoding\r\n"),
        "{head}"
    );
    assert!(head.contains(&format!("Content-Length: {}\r\n", small.len())), "{head}");
    assert!(small.starts_with(&[0x1f, 0x8b]) && small.len() * 3 < plain.len());
}

#[test]
fn an_unknown_page_gets_a_list_of_pages() {
    let routes = Routes::new([]);
    let proxy = routes.proxy();
    for (method, path, status) in [
        ("GET", "/", 200),
        ("GET", "/?q=orders", 200),
        ("GET", "/healthz", 200),
        ("HEAD", "/healthz", 200),
        ("GET", "/nosuch", 404),
        ("GET", "/drain", 405),
        ("POST", "/routes", 405),
        ("DELETE", "/routes", 405),
    ] {
        if method != "HEAD" {
            assert_eq!(
                http::request(proxy.admin(), method, path, "").status,
                status,
                "{method} {path}"
            );
        }
    }
    let missing = http::request(proxy.admin(), "GET", "/nosuch", "").body;
    for page in ["/metrics", "/routes", "/threads", "/settings", "/log"] {
        assert!(missing.contains(&format!("\n{page} ")), "{page} in {missing}");
    }
    let nowhere = routes.proxy_with("admin: {listen: none}");
    nowhere.wait_for_log("listening on", Duration::from_secs(1));
    assert!(!nowhere.log().contains("pages for operators"));
}
