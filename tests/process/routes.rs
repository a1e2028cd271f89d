//! Routes in a real ZooKeeper: what happens to it, and what clients are told meanwhile.

use std::fs;
use std::time::{Duration, Instant};

use harness::client::Answer;
use harness::http::{get, request};
use harness::meta_server::MetaServer;
use harness::proxy::{Builder, Proxy};
use harness::relay::Relay;
use harness::scratch::Scratch;
use harness::wait::eventually;
use harness::wire::QueryCfgResponse;
use harness::zookeeper::ZooKeeper;
use serde_json::Value;

use crate::support::{BINARY, QUERY_TIMEOUT, SOON, addr, meta_with, record};

const ROOT: &str = "/pegasus-cluster";

/// A change must be served in this time; the sweep, which finds it without a watch, takes 24 s and more.
const BY_WATCH: Duration = Duration::from_secs(5);

/// Once ZooKeeper can be reached, routes are current.
const AFTER_TROUBLE: Duration = Duration::from_secs(6);

/// ZooKeeper behind a network that can fail, and two clusters that both have the table `orders`.
struct World {
    zk: ZooKeeper,
    network: Relay,
    a: MetaServer,
    b: MetaServer,
}

const A: &str = "10.0.0.1:34801";
const B: &str = "10.0.0.2:34801";

impl World {
    fn new() -> Self {
        let zk = ZooKeeper::start();
        let network = Relay::to(zk.addr());
        World { zk, network, a: meta_with("orders", A), b: meta_with("orders", B) }
    }

    fn builder(&self) -> Builder {
        Proxy::builder(BINARY).zookeeper([self.network.addr()], ROOT)
    }

    fn to_a(&self) -> String {
        record("a", &[self.a.addr()])
    }

    fn to_b(&self) -> String {
        record("b", &[self.b.addr()])
    }
}

fn znode(table: &str) -> String {
    format!("{ROOT}/{table}")
}

/// The first primary of an answer, or its error.
fn told(answer: &Answer) -> String {
    let config = answer.config();
    match config.partitions.first().and_then(|partition| partition.primary) {
        Some(primary) => primary.to_string(),
        None => config.err,
    }
}

fn page(proxy: &Proxy, path: &str) -> Value {
    serde_json::from_str(&get(proxy.admin(), path)).expect("it is JSON")
}

#[track_caller]
fn follows(proxy: &Proxy, table: &str, want: &str, within: Duration) {
    let mut client = proxy.client();
    let what = format!("{table} is told as {want}");
    eventually(&what, within, || told(&client.ask(table)) == want);
}

#[test]
fn a_table_follows_its_znode() {
    let world = World::new();
    world.zk.create(ROOT, "");
    let proxy = world.builder().start();
    follows(&proxy, "orders", "ERR_OBJECT_NOT_FOUND", AFTER_TROUBLE);
    world.zk.create(&znode("orders"), world.to_a());
    follows(&proxy, "orders", A, BY_WATCH);
    // Each change uses up a watch: the second and third show that it was set again.
    for (record, want) in [(world.to_b(), B), (world.to_a(), A), (world.to_b(), B)] {
        world.zk.set(&znode("orders"), record);
        follows(&proxy, "orders", want, BY_WATCH);
    }
    for _ in 0..2 {
        world.zk.delete(&znode("orders"));
        follows(&proxy, "orders", "ERR_OBJECT_NOT_FOUND", BY_WATCH);
        world.zk.create(&znode("orders"), world.to_a());
        follows(&proxy, "orders", A, BY_WATCH);
    }
    let older = format!(r#"{{"cluster": "b", "meta-addrs": ["{}"], "more": 1}}"#, world.b.addr());
    world.zk.set(&znode("orders"), older);
    follows(&proxy, "orders", B, BY_WATCH);
}

#[test]
fn each_change_of_a_route_has_its_line() {
    let world = World::new();
    let clusters = "/pegasus-metas";
    let znode_of_c1 = format!("{clusters}/c1");
    world.zk.create(&znode_of_c1, format!(r#"{{"meta_addrs": "{}"}}"#, world.a.addr()));
    world.zk.create(&znode("orders"), world.to_a());
    let settings = format!(
        "zookeeper: {{address: ['{}'], root: {ROOT}, clusters_root: {clusters}}}",
        world.network.addr()
    );
    let proxy = Proxy::builder(BINARY).config_extra(&settings).start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    let a_and_b = [world.a.addr(), world.b.addr()].map(|addr| format!(r#"metas=["{addr}"]"#));
    let [of_a, of_b] = &a_and_b;
    let line = |what: &str| {
        let line = format!(" INFO  zk-watch routes: table=orders {what}");
        proxy.wait_for_log(&line, BY_WATCH);
        let log = proxy.log();
        let lines: Vec<&str> = log.lines().filter(|shown| shown.contains(&line)).collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines[0].split_once(&line).unwrap().1.to_owned()
    };
    let is_time = |rest: &str| {
        let number = rest.strip_prefix(" took=").unwrap_or_default();
        number.trim_end_matches(['m', 'µ', 's']).parse::<f64>().is_ok() && number.ends_with('s')
    };
    let zxid = world.zk.set(&znode("orders"), world.to_b());
    let took = line(&format!("from=a to=b zxid={zxid:#x} {of_b}"));
    assert!(is_time(&took), "{took}");
    let zxid = world.zk.set(&znode("orders"), r#"{"cluster": "c1"}"#);
    let took = line(&format!("from=b to=c1 zxid={zxid:#x} {of_a}"));
    assert!(is_time(&took), "{took}");
    let zxid = world.zk.set(&znode_of_c1, format!(r#"{{"meta_addrs": "{}"}}"#, world.b.addr()));
    let took = line(&format!("from=c1 to=c1 zxid={zxid:#x} {of_b}"));
    assert!(is_time(&took), "{took}");
    world.zk.delete(&znode("orders"));
    let took = line("from=c1 to=none");
    assert!(is_time(&took), "{took}");
    let zxid = world.zk.create(&znode("orders"), world.to_a());
    follows(&proxy, "orders", A, BY_WATCH);
    assert_eq!(line(&format!("from=none to=a zxid={zxid:#x} {of_a}")), "", "no watch told of it");
    world.network.refuse();
    let zxid = world.zk.set(&znode("orders"), world.to_b());
    world.network.pass();
    let took = line(&format!("from=a to=b zxid={zxid:#x} {of_b}"));
    assert!(is_time(&took), "it is told when the watch is set again: {took}");
}

#[test]
fn in_calm_a_change_is_served_within_100_ms() {
    let world = World::new();
    world.zk.create(&znode("orders"), world.to_a());
    let proxy = world.builder().start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    let mut client = proxy.client();
    let mut took: Vec<Duration> = (0..11)
        .map(|turn| {
            let (to, want) = if turn % 2 == 0 { (world.to_b(), B) } else { (world.to_a(), A) };
            let start = Instant::now();
            world.zk.set(&znode("orders"), to);
            while told(&client.ask("orders")) != want {
                assert!(start.elapsed() < BY_WATCH, "no change {turn}");
            }
            start.elapsed()
        })
        .collect();
    took.sort_unstable();
    // Most of them, so that a machine which was busy for a moment says nothing of the proxy.
    assert!(took[took.len() / 2] < Duration::from_millis(100), "{took:?}");
}

#[test]
fn the_granted_session_time_out_is_shown() {
    let world = World::new();
    let asked =
        format!("zookeeper: {{address: [{}], root: {ROOT}, timeout: 90000}}", world.zk.addr());
    let proxy = Proxy::builder(BINARY).config_extra(&asked).start();
    // No server of the tests grants more than a minute.
    proxy.wait_for_log("session_timeout=60s", AFTER_TROUBLE);
}

#[test]
fn a_bad_record_never_replaces_a_good_one() {
    let world = World::new();
    world.zk.create(&znode("orders"), world.to_a());
    let proxy = world.builder().start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    let mut big = br#"{"cluster_name": "#.to_vec();
    big.resize(1024 * 1024 - 200, b'x');
    for (number, (why, junk)) in [
        ("empty", b"".to_vec()),
        ("wrong types", br#"{"cluster_name": 7, "meta_addrs": {}}"#.to_vec()),
        ("1 MB", big),
        ("not UTF-8", vec![0xff, 0xfe, 0x00, b'{']),
        ("no port", br#"{"cluster_name": "a", "meta_addrs": "m1"}"#.to_vec()),
    ]
    .into_iter()
    .enumerate()
    {
        world.zk.put(&znode("orders"), &junk);
        let warned = format!("znode {}", znode("orders"));
        let seen = || proxy.log().lines().filter(|line| line.contains(&warned)).count();
        eventually(&format!("{why} is seen"), BY_WATCH, || seen() > number);
        assert_eq!(told(&proxy.ask("orders")), A, "{why}: the last good one counts");

        let fresh = format!("fresh{number}");
        world.zk.create(&znode(&fresh), &junk);
        follows(&proxy, &fresh, "ERR_INVALID_DATA", BY_WATCH);
        world.a.put_table(&fresh, QueryCfgResponse::table(9, 1, addr(A)));
        world.zk.set(&znode(&fresh), world.to_a());
        follows(&proxy, &fresh, A, BY_WATCH);
    }
    world.zk.set(&znode("orders"), world.to_b());
    follows(&proxy, "orders", B, BY_WATCH);
}

/// Does something to ZooKeeper, and shows that a cached table is served all the while, one that is not cached gets its
/// error in time, and after it the next change is served.
fn survives(trouble: impl FnOnce(&World), recovery: impl FnOnce(&World)) -> (World, Proxy) {
    survives_with(|world, _| trouble(world), recovery)
}

fn survives_with(
    trouble: impl FnOnce(&World, &Proxy),
    recovery: impl FnOnce(&World),
) -> (World, Proxy) {
    let world = World::new();
    world.zk.create(&znode("orders"), world.to_a());
    let proxy = world.builder().start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    let threads = proxy.threads().len();
    trouble(&world, &proxy);
    let mut client = proxy.client();
    let start = Instant::now();
    let mut asked = 0;
    while start.elapsed() < Duration::from_secs(4) {
        let answer = client.try_ask("orders", QUERY_TIMEOUT).expect("cached routes serve");
        assert_eq!(told(&answer), A);
        asked += 1;
    }
    assert!(asked > 100, "only {asked} queries in 4 s");
    recovery(&world);
    world.zk.set(&znode("orders"), world.to_b());
    follows(&proxy, "orders", B, AFTER_TROUBLE);
    world.zk.set(&znode("orders"), world.to_a());
    follows(&proxy, "orders", A, BY_WATCH);
    let back = || proxy.threads().len() <= threads;
    eventually("no thread of a lost connection is left", Duration::from_secs(20), back);
    (world, proxy)
}

#[test]
fn a_restart_of_zookeeper() {
    survives(|world| world.zk.kill(), |world| world.zk.restart());
}

#[test]
fn an_expired_session() {
    let expire = |world: &World, proxy: &Proxy| {
        let expired = world.zk.expire_sessions_of(&[proxy.process()]);
        assert_eq!(expired, 1, "the proxy's");
    };
    let (_, proxy) = survives_with(expire, |_| {});
    assert!(proxy.log().contains("the session has expired"), "it did");
}

#[test]
fn a_zookeeper_that_says_nothing() {
    survives(|world| world.zk.pause(), |world| world.zk.resume());
}

#[test]
fn a_network_that_swallows_everything() {
    survives(|world| world.network.black_hole(), |world| world.network.pass());
}

#[test]
fn a_network_that_refuses() {
    survives(|world| world.network.refuse(), |world| world.network.pass());
}

#[test]
fn links_that_are_cut() {
    let (_, proxy) = survives(|world| world.network.cut(), |_| {});
    assert!(proxy.log().contains("connection lost"), "the link was in use");
}

/// Servers that lag are passed over; after so long without any other, ZooKeeper was set up anew.
const LAG_LIMIT: Duration = Duration::from_secs(30);

#[test]
fn a_server_that_knows_less_is_passed_over_until_an_operator_says_that_it_counts() {
    let world = World::new();
    world.zk.create(&znode("orders"), world.to_a());
    world.zk.create(&znode("users"), world.to_a());
    world.zk.set(&znode("orders"), world.to_b());
    world.zk.delete(&znode("users"));
    let proxy = world.builder().start();
    follows(&proxy, "orders", B, AFTER_TROUBLE);

    let behind = ZooKeeper::start();
    behind.create(&znode("orders"), world.to_a());
    behind.create(&znode("users"), world.to_a());
    let show = |zk: &ZooKeeper| {
        world.network.set_target(zk.addr());
        world.network.cut();
    };
    show(&behind);
    proxy.wait_for_log("knows less than was seen before", SOON);
    let mut client = proxy.client();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        assert_eq!(told(&client.ask("orders")), B);
        let users = told(&client.ask("users"));
        assert_eq!(users, "ERR_SERVICE_NOT_ACTIVE", "nobody who can tell is in reach");
    }
    show(&world.zk);
    world.zk.set(&znode("orders"), world.to_a());
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    follows(&proxy, "users", "ERR_OBJECT_NOT_FOUND", BY_WATCH);

    behind.set(&znode("orders"), world.to_b());
    show(&behind);
    let hold = || page(&proxy, "/routes")["hold"].clone();
    eventually("it is looked at", LAG_LIMIT + AFTER_TROUBLE, || hold()["kind"] == "root_foreign");
    assert!(proxy.log().contains("it was restored or set up anew"));
    assert_eq!(told(&proxy.ask("orders")), A, "and not believed");
    let shown = hold();
    let czxid = shown["czxid"].as_str().unwrap();
    let path = format!("/routes/accept?czxid={czxid}&gone={}", shown["gone"]);
    assert_eq!(request(proxy.admin(), "POST", &path, "").status, 200);
    follows(&proxy, "orders", B, AFTER_TROUBLE);
    behind.set(&znode("orders"), world.to_a());
    follows(&proxy, "orders", A, BY_WATCH);
}

#[test]
fn a_change_while_zookeeper_cannot_tell_of_it() {
    let world = World::new();
    world.zk.create(&znode("orders"), world.to_a());
    let proxy = world.builder().start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    // The proxy is frozen past its session: its watches are gone when it wakes up.
    proxy.pause();
    world.zk.set(&znode("orders"), world.to_b());
    eventually("the session expires", SOON, || world.zk.connections().is_empty());
    proxy.resume();
    follows(&proxy, "orders", B, AFTER_TROUBLE);
}

#[test]
fn a_proxy_that_starts_before_zookeeper() {
    let world = World::new();
    world.zk.create(&znode("orders"), world.to_a());
    world.zk.stop();
    let proxy = world.builder().start();
    let mut client = proxy.client();
    let start = Instant::now();
    assert_eq!(told(&client.ask("orders")), "ERR_SERVICE_NOT_ACTIVE");
    assert!(start.elapsed() < QUERY_TIMEOUT + Duration::from_millis(300), "{:?}", start.elapsed());
    world.zk.restart();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
}

#[test]
fn misses_hold_no_worker() {
    let world = World::new();
    world.zk.create(&znode("orders"), world.to_a());
    for n in 0..100 {
        world.zk.create(&znode(&format!("cold{n}")), world.to_a());
    }
    let proxy = world.builder().config_extra("workers: 4").start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    world.zk.pause();
    let mut waiting = proxy.client();
    let names: Vec<String> = (0..100).map(|n| format!("cold{n}")).collect();
    let seqs = waiting.send_queries(names.iter().map(String::as_str));
    let mut client = proxy.client();
    for _ in 0..100 {
        let answer = client.try_ask("orders", QUERY_TIMEOUT).expect("workers are free");
        assert_eq!(told(&answer), A);
    }
    let answers = waiting.read_answers(seqs.len());
    assert!(answers.values().all(|answer| told(answer) == "ERR_SERVICE_NOT_ACTIVE"));
    world.zk.resume();
}

#[test]
fn unknown_tables_cost_zookeeper_nothing() {
    let world = World::new();
    world.zk.create(&znode("orders"), world.to_a());
    let proxy = world.builder().start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    let received = || world.zk.connections().iter().map(|c| c.received).sum::<u64>();
    let before = received();
    let mut client = proxy.client();
    let start = Instant::now();
    for n in 0..500 {
        assert_eq!(told(&client.ask(&format!("nosuch{n}"))), "ERR_OBJECT_NOT_FOUND");
    }
    let long = "t".repeat(256);
    for odd in ["", ".", "..", "../orders", "a/b", "/", "orders ", "caf\u{e9}", "a\0b", &long] {
        assert_eq!(told(&client.ask(odd)), "ERR_OBJECT_NOT_FOUND", "{odd:?}");
    }
    let heartbeats = 2 * (1 + start.elapsed().as_secs());
    let reads = received() - before;
    assert!(reads <= heartbeats, "{reads} requests to ZooKeeper for 510 unknown tables");
}

#[test]
fn hidden_names_cost_a_read_for_each_unknown_table_now_and_then() {
    let world = World::new();
    world.zk.create(&znode("orders"), world.to_a());
    world.zk.set_acl_denied(ROOT);
    let proxy = world.builder().start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    proxy.wait_for_log("each unknown table costs a read", SOON);
    let received = || world.zk.connections().iter().map(|c| c.received).sum::<u64>();
    let mut client = proxy.client();
    let (start, before) = (Instant::now(), received());
    for _ in 0..500 {
        assert_eq!(told(&client.ask("nosuch")), "ERR_OBJECT_NOT_FOUND");
    }
    // One read a second, and with each heartbeat another try to list the names.
    let allowed = 4 * (2 + start.elapsed().as_secs());
    let reads = received() - before;
    assert!(reads <= allowed, "{reads} requests to ZooKeeper for an unknown table");
}

#[test]
fn a_client_that_asks_while_a_routes_file_changes_is_answered() {
    // There are enough of them for the change to take a while.
    const OTHERS: usize = 20_000;
    let meta = meta_with("zz", "10.0.0.1:34801");
    let to_meta = record("c", &[meta.addr()]);
    let others: Vec<String> = (0..OTHERS).map(|n| format!("t{n}")).collect();
    let text = |last: Option<&str>| {
        let names = others.iter().map(String::as_str).chain(last);
        let lines: Vec<String> = names.map(|name| format!("{name:?}: {to_meta}")).collect();
        format!("{{{}}}", lines.join(",\n"))
    };
    let scratch = Scratch::new("routes");
    let replace = |text: String| {
        let new = scratch.write("routes.new", text);
        fs::rename(new, scratch.path().join("routes")).unwrap();
    };
    replace(text(None));
    let proxy = Proxy::builder(BINARY).routes_file(scratch.path().join("routes")).start();
    let mut client = proxy.client();
    for (last, want) in [Some("zz"), None, Some("zz"), None]
        .map(|last| (last, if last.is_some() { "ERR_OK" } else { "ERR_OBJECT_NOT_FOUND" }))
    {
        replace(text(last));
        eventually("the change is seen", SOON, || {
            let answer = client.ask("zz").err.expect("one of both");
            assert!(["ERR_OK", "ERR_OBJECT_NOT_FOUND"].contains(&&*answer), "{answer}");
            answer == want
        });
    }
}

#[test]
fn a_bad_edit_of_a_routes_file_changes_nothing_and_is_logged_with_line_and_key() {
    let (a, b) = (meta_with("orders", A), meta_with("orders", B));
    let scratch = Scratch::new("edited");
    let write = |text: String| {
        // As an editor does, which leaves no half-written file.
        scratch.write("beside", text);
        fs::rename(scratch.path().join("beside"), scratch.path().join("routes")).unwrap();
    };
    let orders = |meta: &MetaServer| format!(r#""orders": {}"#, record("c", &[meta.addr()]));
    write(format!("{{{}}}", orders(&a)));
    let proxy = Proxy::builder(BINARY).routes_file(scratch.path().join("routes")).start();
    follows(&proxy, "orders", A, SOON);
    write(format!("{{\n{},\n\"users\": {{\"meta_addrs\": \"m1\"}}\n}}", orders(&b)));
    proxy.wait_for_log(r#"line 3: "users": meta_addrs: want host:port, got "m1""#, SOON);
    proxy.wait_for_log("the proxy keeps its routes", SOON);
    assert_eq!(told(&proxy.ask("orders")), A);
    assert_eq!(page(&proxy, "/routes")["routes"][0]["stale"], true);
    write(format!("{{{}}}", orders(&b)));
    follows(&proxy, "orders", B, SOON);
}

#[test]
fn a_root_that_comes_later_and_one_whose_children_are_hidden() {
    let world = World::new();
    let proxy = world.builder().start();
    follows(&proxy, "orders", "ERR_SERVICE_NOT_ACTIVE", AFTER_TROUBLE);
    world.zk.create(ROOT, "");
    world.zk.create(&znode("orders"), world.to_a());
    follows(&proxy, "orders", A, AFTER_TROUBLE);

    world.zk.set_acl_denied(ROOT);
    world.b.put_table("users", QueryCfgResponse::table(2, 1, addr(B)));
    let proxy = world.builder().start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    follows(&proxy, "users", "ERR_OBJECT_NOT_FOUND", BY_WATCH);
    world.zk.set_acl_open(ROOT);
    world.zk.create(&znode("users"), world.to_b());
    follows(&proxy, "users", B, BY_WATCH);
}

#[test]
fn a_table_that_comes_while_the_names_are_hidden() {
    let world = World::new();
    world.zk.create(&znode("orders"), world.to_a());
    let proxy = world.builder().start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    follows(&proxy, "users", "ERR_OBJECT_NOT_FOUND", BY_WATCH);
    // ZooKeeper uses the watch on the names up, and tells nobody who may not read them.
    world.zk.set_acl_denied(ROOT);
    world.b.put_table("users", QueryCfgResponse::table(2, 1, addr(B)));
    world.zk.create(&znode("users"), world.to_b());
    follows(&proxy, "users", B, BY_WATCH);
}

#[test]
fn tables_that_a_digest_protects() {
    let world = World::new();
    world.zk.create(&znode("orders"), world.to_a());
    world.zk.set_acl_digest(&znode("orders"), "proxy:secret");
    let stranger = world.builder().start();
    follows(&stranger, "orders", "ERR_INVALID_DATA", AFTER_TROUBLE);
    let zk = world.zk.addr();
    let settings =
        format!("zookeeper: {{address: ['{zk}'], root: {ROOT}, digest: 'proxy:secret'}}");
    let proxy = Proxy::builder(BINARY).config_extra(&settings).start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    assert!(!proxy.log().contains("secret"));
}

#[test]
fn servers_that_are_dead_silent_or_unknown_do_no_harm() {
    let world = World::new();
    world.zk.create(&znode("orders"), world.to_a());
    let mute = ZooKeeper::start();
    mute.pause();
    let addrs = [
        "no-such-host.invalid:2181".to_owned(),
        "127.0.0.1:1".to_owned(),
        mute.addr().to_string(),
        format!("localhost:{}", world.zk.addr().port()),
    ];
    let proxy = Proxy::builder(BINARY).zookeeper(addrs, ROOT).start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    world.zk.set(&znode("orders"), world.to_b());
    follows(&proxy, "orders", B, BY_WATCH);
    mute.resume();
}

#[test]
fn a_proxy_that_starts_without_zookeeper_serves_its_last_good_routes() {
    let world = World::new();
    world.zk.create(&znode("orders"), world.to_a());
    let scratch = Scratch::new("state");
    let state = scratch.path().join("state");
    let start = || {
        let settings = format!(
            "zookeeper: {{address: ['{}'], root: {ROOT}, state_file: {}}}",
            world.network.addr(),
            state.display()
        );
        Proxy::builder(BINARY).config_extra(&settings).start()
    };
    let proxy = start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    proxy.terminate();
    assert!(fs::read_to_string(&state).unwrap().contains("orders"));

    world.network.refuse();
    let proxy = start();
    assert_eq!(told(&proxy.ask("orders")), A);
    // It is true again as soon as ZooKeeper is there.
    world.zk.set(&znode("orders"), world.to_b());
    world.network.pass();
    follows(&proxy, "orders", B, AFTER_TROUBLE);
    proxy.terminate();

    // With ZooKeeper at hand nobody is told of a route that changed meanwhile, and neither is the next proxy.
    world.zk.set(&znode("orders"), world.to_a());
    let proxy = start();
    assert_eq!(told(&proxy.ask("orders")), A);
    proxy.terminate();
    let kept = fs::read_to_string(&state).unwrap();
    assert!(kept.contains(&world.a.addr().to_string()), "{kept}");
    let unfinished = scratch.path().join(format!("state.{}", proxy.pid()));
    assert!(!unfinished.exists(), "nothing is left beside it");

    let mut damaged = fs::read(&state).unwrap();
    damaged.truncate(damaged.len() - 3);
    fs::write(&state, damaged).unwrap();
    let proxy = start();
    proxy.wait_for_log("not used: checksum", SOON);
    follows(&proxy, "orders", A, AFTER_TROUBLE);
}

#[test]
fn tables_that_name_a_cluster_follow_its_znode() {
    let world = World::new();
    let clusters = "/pegasus-metas";
    let meta_of = |meta: &MetaServer| format!(r#"{{"meta_addrs": "{}"}}"#, meta.addr());
    world.zk.create(&format!("{clusters}/c1"), meta_of(&world.a));
    world.zk.create(&znode("orders"), r#"{"cluster": "c1"}"#);
    world.zk.create(&znode("direct"), world.to_b());
    world.b.put_table("direct", QueryCfgResponse::table(3, 1, addr(B)));
    let settings = format!(
        "zookeeper: {{address: ['{}'], root: {ROOT}, clusters_root: {clusters}}}",
        world.network.addr()
    );
    let proxy = Proxy::builder(BINARY).config_extra(&settings).start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    follows(&proxy, "direct", B, BY_WATCH);
    // One znode moves all its tables; three times, so that its watch is set again.
    for (meta, want) in [(&world.b, B), (&world.a, A), (&world.b, B)] {
        world.zk.set(&format!("{clusters}/c1"), meta_of(meta));
        follows(&proxy, "orders", want, BY_WATCH);
    }
    world.zk.set(&format!("{clusters}/c1"), "junk");
    proxy.wait_for_log("the last good one counts", SOON);
    assert_eq!(told(&proxy.ask("orders")), B);
    // The table itself moves: to a cluster that comes later, then to addresses of its own.
    world.zk.create(&znode("late"), r#"{"cluster": "c2"}"#);
    follows(&proxy, "late", "ERR_INVALID_DATA", BY_WATCH);
    world.a.put_table("late", QueryCfgResponse::table(4, 1, addr(A)));
    world.zk.create(&format!("{clusters}/c2"), meta_of(&world.a));
    follows(&proxy, "late", A, BY_WATCH);
    world.zk.set(&znode("orders"), r#"{"cluster": "c2"}"#);
    follows(&proxy, "orders", A, BY_WATCH);
    world.zk.set(&znode("orders"), world.to_b());
    follows(&proxy, "orders", B, BY_WATCH);
    world.zk.set(&format!("{clusters}/c2"), meta_of(&world.a));
    // A change that no watch told of, because the connection was cut.
    world.network.refuse();
    world.zk.set(&format!("{clusters}/c2"), meta_of(&world.b));
    world.b.put_table("late", QueryCfgResponse::table(4, 1, addr(B)));
    world.network.pass();
    follows(&proxy, "late", B, AFTER_TROUBLE);
}

#[test]
fn clusters_above_the_tables() {
    let world = World::new();
    let root = "/pegasus/tables";
    let meta_of = |meta: &MetaServer| format!(r#"{{"meta_addrs": "{}"}}"#, meta.addr());
    world.zk.create("/pegasus/c1", meta_of(&world.a));
    world.zk.create(&format!("{root}/orders"), r#"{"cluster": "c1"}"#);
    let addr = world.network.addr();
    let settings =
        format!("zookeeper: {{address: ['{addr}'], root: {root}, clusters_root: /pegasus}}");
    let proxy = Proxy::builder(BINARY).config_extra(&settings).start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    world.zk.set("/pegasus/c1", meta_of(&world.b));
    follows(&proxy, "orders", B, BY_WATCH);
    world.zk.set(&format!("{root}/orders"), world.to_a());
    follows(&proxy, "orders", A, BY_WATCH);
}

#[test]
fn a_hidden_table_keeps_no_other_from_being_confirmed() {
    let world = World::new();
    for table in ["orders", "users"] {
        world.zk.create(&znode(table), world.to_a());
        world.a.put_table(table, QueryCfgResponse::table(2, 1, addr(A)));
    }
    world.zk.set_acl_denied(&znode("users"));
    let proxy = world.builder().start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    follows(&proxy, "users", "ERR_INVALID_DATA", BY_WATCH);
    world.network.cut();
    proxy.wait_for_log("all 2 cached routes are confirmed", AFTER_TROUBLE);
    eventually("it is confirmed", SOON, || {
        page(&proxy, "/clusters")["zookeeper"]["state"] == "confirmed"
    });
    for (table, stale) in [("users", true), ("orders", false)] {
        let listed = &page(&proxy, &format!("/routes?table={table}"))["routes"][0];
        assert_eq!(listed["stale"], stale, "{listed}");
    }
}

#[test]
fn tables_that_made_room_stay_away_and_come_back_when_asked_for() {
    let world = World::new();
    let names: Vec<String> = (0..4).map(|n| format!("t{n}")).collect();
    for name in &names {
        world.zk.create(&znode(name), world.to_a());
        [&world.a, &world.b].iter().zip([A, B]).for_each(|(meta, told)| {
            meta.put_table(name, QueryCfgResponse::table(2, 1, addr(told)))
        });
    }
    let settings = format!(
        "zookeeper: {{address: ['{}'], root: {ROOT}, table_watcher_cache_capacity: 2}}",
        world.network.addr()
    );
    let proxy = Proxy::builder(BINARY).config_extra(&settings).start();
    for name in &names {
        follows(&proxy, name, A, AFTER_TROUBLE);
    }
    // All four have a watch, the last two are cached.
    for name in &names[..3] {
        world.zk.set(&znode(name), world.to_b());
    }
    follows(&proxy, "t2", B, BY_WATCH);
    let routes = page(&proxy, "/routes");
    let cached = routes["routes"].as_array().unwrap().iter().map(|listed| &listed["table"]);
    assert_eq!(cached.collect::<Vec<_>>(), ["t2", "t3"]);
    for (name, want) in names.iter().zip([B, B, B, A]) {
        follows(&proxy, name, want, BY_WATCH);
    }
}

#[test]
fn preloaded_tables_are_served_though_zookeeper_went_before_they_were_asked_for() {
    let world = World::new();
    world.zk.create(&znode("orders"), world.to_a());
    let settings = format!(
        "zookeeper: {{address: ['{}'], root: {ROOT}, preload: true}}",
        world.network.addr()
    );
    let proxy = Proxy::builder(BINARY).config_extra(&settings).env("RUST_LOG", "debug").start();
    proxy.wait_for_log("table=orders from=none to=a", SOON);
    world.network.refuse();
    assert_eq!(told(&proxy.ask("orders")), A);
}

#[test]
fn tables_that_made_room_for_others_stay_in_the_state_file() {
    let world = World::new();
    let tables: Vec<String> = (0..12).map(|n| format!("t{n:02}")).collect();
    for table in &tables {
        world.a.put_table(table, QueryCfgResponse::table(1, 1, A.parse().unwrap()));
        world.zk.create(&znode(table), world.to_a());
    }
    let scratch = Scratch::new("evicted");
    let state = scratch.path().join("routes");
    let with_room_for = |capacity: usize| {
        let zookeeper = format!(
            "zookeeper: {{address: ['{}'], root: {ROOT}, table_watcher_cache_capacity: {capacity}, \
             state_file: {}}}",
            world.network.addr(),
            state.display()
        );
        world.builder().config_extra(&zookeeper).start()
    };
    let in_file = || {
        let text = fs::read_to_string(&state).unwrap_or_default();
        tables.iter().filter(|table| text.contains(&format!("\"table\":\"{table}\""))).count()
    };
    let proxy = with_room_for(3);
    for table in &tables {
        eventually("it is served", SOON, || proxy.ask(table).is_ok());
    }
    proxy.terminate();
    assert_eq!(in_file(), tables.len());

    // A start that has no room for them either, and no ZooKeeper, loses none.
    world.network.refuse();
    let proxy = with_room_for(4);
    proxy.terminate();
    assert_eq!(in_file(), tables.len());

    // One that has room serves them all.
    let proxy = with_room_for(100);
    for table in &tables {
        assert_eq!(told(&proxy.ask(table)), A, "{table}");
    }

    // Each is there once when ZooKeeper is back, and one that is deleted goes.
    world.network.pass();
    world.zk.delete(&znode("t00"));
    eventually("it is gone", AFTER_TROUBLE, || !proxy.ask("t00").is_ok());
    proxy.terminate();
    let text = fs::read_to_string(&state).unwrap();
    assert_eq!((in_file(), text.lines().count()), (tables.len() - 1, tables.len()), "{text}");
}
