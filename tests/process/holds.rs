//! Absence is not deletion: what happens to routes when their root or many tables go, in a real ZooKeeper, and how an
//! operator ends it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use harness::http::{get, request};
use harness::meta_server::MetaServer;
use harness::proxy::{Builder, Proxy};
use harness::relay::Relay;
use harness::scratch::Scratch;
use harness::wait::eventually;
use harness::wire::QueryCfgResponse;
use harness::zookeeper::ZooKeeper;
use serde_json::Value;

use crate::support::{BINARY, SOON, addr, record};

const ROOT: &str = "/pegasus-cluster";
const A: &str = "10.0.0.1:34801";
const B: &str = "10.0.0.2:34801";

/// For so long only servers that lag must have been in reach, before one of them is looked at.
const LOOK: Duration = Duration::from_secs(30 + 10);
/// A client whose server has not the right root is kept for so long at most.
const STAY: Duration = Duration::from_secs(30 + 10);

/// ZooKeeper behind a network, tables in it, and two clusters that have all of them.
struct World {
    zk: ZooKeeper,
    network: Relay,
    a: MetaServer,
    b: MetaServer,
    tables: Vec<String>,
    scratch: Scratch,
}

impl World {
    /// All tables live in cluster `a`.
    fn new(tables: usize) -> Self {
        let zk = ZooKeeper::start();
        let network = Relay::to(zk.addr());
        let tables: Vec<String> = (0..tables).map(|n| format!("t{n}")).collect();
        let (a, b) = (MetaServer::start(), MetaServer::start());
        for table in tables.iter().map(String::as_str).chain(["new"]) {
            a.put_table(table, QueryCfgResponse::table(1, 1, addr(A)));
            b.put_table(table, QueryCfgResponse::table(1, 1, addr(B)));
        }
        let world = World { zk, network, a, b, tables, scratch: Scratch::new("holds") };
        world.fill(&world.zk, &world.a);
        world
    }

    /// Writes all tables into a ZooKeeper, with this cluster.
    fn fill(&self, zk: &ZooKeeper, meta: &MetaServer) {
        for table in &self.tables {
            zk.create(&znode(table), record("c", &[meta.addr()]));
        }
    }

    fn state(&self) -> PathBuf {
        self.scratch.path().join("state")
    }

    fn builder(&self) -> Builder {
        self.builder_of(&[self.network.addr().to_string()], ROOT)
    }

    fn builder_of(&self, addrs: &[String], root: &str) -> Builder {
        let state = self.state();
        Proxy::builder(BINARY).config_extra(&format!(
            "zookeeper: {{address: {addrs:?}, root: {root}, timeout: 6000, preload: true, state_file: {}}}",
            state.display()
        ))
    }

    /// A proxy that has read all tables.
    fn start(&self) -> Proxy {
        let proxy = self.builder().start();
        self.all_are(&proxy, A, SOON);
        eventually("the routes are confirmed", SOON, || self.stale(&proxy) == 0);
        proxy
    }

    fn stale(&self, proxy: &Proxy) -> usize {
        let routes = page(proxy, "/routes");
        routes["routes"].as_array().unwrap().iter().filter(|route| route["stale"] == true).count()
    }

    #[track_caller]
    fn all_are(&self, proxy: &Proxy, want: &str, within: Duration) {
        let mut client = proxy.client();
        for table in &self.tables {
            eventually(&format!("{table} is told as {want}"), within, || {
                told(&client.ask(table)) == want
            });
        }
    }

    /// All tables are told so now.
    #[track_caller]
    fn all_are_now(&self, proxy: &Proxy, want: &str) {
        let mut client = proxy.client();
        for table in &self.tables {
            assert_eq!(told(&client.ask(table)), want, "{table}");
        }
    }

    fn kept(&self) -> usize {
        tables_in(&self.state())
    }
}

/// Another ensemble, whose zxids are higher, so that it does not look like one that lags.
fn busy_zookeeper() -> ZooKeeper {
    let other = ZooKeeper::start();
    other.create("/busy", "");
    for n in 0..100 {
        other.set("/busy", n.to_string());
    }
    other
}

fn znode(table: &str) -> String {
    format!("{ROOT}/{table}")
}

fn told(answer: &harness::client::Answer) -> String {
    let config = answer.config();
    match config.partitions.first().and_then(|partition| partition.primary) {
        Some(primary) => primary.to_string(),
        None => config.err,
    }
}

fn page(proxy: &Proxy, path: &str) -> Value {
    serde_json::from_str(&get(proxy.admin(), path)).expect("it is JSON")
}

fn hold(proxy: &Proxy) -> Value {
    page(proxy, "/routes")["hold"].clone()
}

#[track_caller]
fn is_held(proxy: &Proxy, kind: &str, gone: usize, within: Duration) {
    eventually(&format!("{kind}, {gone} gone"), within, || {
        let hold = hold(proxy);
        hold["kind"] == kind && hold["gone"] == gone
    });
}

#[track_caller]
fn is_not_held(proxy: &Proxy, within: Duration) {
    eventually("nothing is held", within, || hold(proxy).is_null());
}

fn ready(proxy: &Proxy) -> u16 {
    request(proxy.admin(), "GET", "/readyz", "").status
}

fn accept(proxy: &Proxy, czxid: &str, gone: usize) -> (u16, String) {
    let path = format!("/routes/accept?czxid={czxid}&gone={gone}");
    let page = request(proxy.admin(), "POST", &path, "");
    (page.status, page.body)
}

/// As an operator does: what the page shows is what he accepts.
#[track_caller]
fn accept_shown(proxy: &Proxy) {
    let hold = hold(proxy);
    let gone = hold["gone"].as_u64().expect("something is held") as usize;
    let (status, body) = accept(proxy, hold["czxid"].as_str().unwrap_or("none"), gone);
    assert_eq!((status, body.as_str()), (200, "accepted\n"), "{hold}");
}

fn tables_in(state: &Path) -> usize {
    let text = fs::read_to_string(state).unwrap_or_default();
    let head = text.lines().next().unwrap_or("{}");
    serde_json::from_str::<Value>(head).unwrap()["tables"].as_u64().unwrap_or(0) as usize
}

fn metric(proxy: &Proxy, kind: &str) -> f64 {
    let series = format!(r#"meta_proxy_routes_held{{region="test",kind="{kind}"}} "#);
    let text = get(proxy.admin(), "/metrics");
    let value = text.lines().find_map(|line| line.strip_prefix(series.as_str()));
    value.unwrap_or_else(|| panic!("no {series} in {text}")).parse().unwrap()
}

#[test]
fn a_root_that_is_deleted_takes_no_route_with_it() {
    let world = World::new(5);
    let proxy = world.start();
    eventually("they are kept", SOON, || world.kept() == 5);
    world.zk.delete_all(ROOT);
    is_held(&proxy, "root_missing", 5, SOON);
    world.all_are_now(&proxy, A);
    let mut client = proxy.client();
    let start = Instant::now();
    assert_eq!(told(&client.ask("nosuch")), "ERR_SERVICE_NOT_ACTIVE");
    assert!(start.elapsed() < Duration::from_secs(1), "nobody waits for what cannot be told");
    assert_eq!((ready(&proxy), metric(&proxy, "root_missing")), (200, 5.0));
    let routes = page(&proxy, "/routes");
    let routes = routes["routes"].as_array().unwrap();
    assert!(
        routes.iter().all(|route| route["held"] == true && route["stale"] == true),
        "{routes:?}"
    );
    let html = get(proxy.admin(), "/");
    let headline = format!(
        "class=\"live bad\" role=\"status\">Routes are held for 0 s: the root {ROOT} is missing"
    );
    let headline = headline.split(" for ").next().unwrap();
    for want in [headline, "is missing", "POST /routes/accept?czxid=none&amp;gone=5"] {
        assert!(html.contains(want), "{want} in {html}");
    }
    let log = proxy.log();
    let line = log.lines().find(|line| line.contains("routes are held: the root is missing"));
    let line = line.unwrap_or_else(|| panic!("{log}"));
    for want in [" ERROR ", &format!("root={ROOT}"), "server=127.0.0.1:", "czxid=0x0", "gone=5"] {
        assert!(line.contains(want), "{want} in {line}");
    }

    // A restart changes nothing, and so does an accept of something else.
    drop(client);
    let status = proxy.terminate();
    assert!(status.success() && world.kept() == 5);
    let proxy = world.builder().start();
    is_held(&proxy, "root_missing", 5, SOON);
    world.all_are_now(&proxy, A);
    assert_eq!(accept(&proxy, "none", 4).0, 409);
    assert_eq!(accept(&proxy, "0x1", 5).0, 409);
    assert_eq!(accept(&proxy, "yes", 5).0, 400);
    assert_eq!(request(proxy.admin(), "GET", "/routes/accept?czxid=none&gone=5", "").status, 405);
    world.all_are_now(&proxy, A);

    // Another root in its place: what was shown before is refused, and nothing of it is used.
    world.zk.create(&znode("t0"), record("c", &[world.b.addr()]));
    world.zk.create(&znode("new"), record("c", &[world.b.addr()]));
    is_held(&proxy, "root_foreign", 4, STAY);
    assert_eq!(accept(&proxy, "none", 5).0, 409);
    world.all_are_now(&proxy, A);
    assert_eq!(told(&proxy.ask("new")), "ERR_SERVICE_NOT_ACTIVE");

    accept_shown(&proxy);
    eventually("t0 follows", SOON, || told(&proxy.ask("t0")) == B);
    eventually("new is served", SOON, || told(&proxy.ask("new")) == B);
    eventually("t1 is gone", SOON, || told(&proxy.ask("t1")) == "ERR_OBJECT_NOT_FOUND");
    is_not_held(&proxy, SOON);
    eventually("the file follows", SOON, || world.kept() == 2);
    assert!(proxy.log().contains("accepted: kind=root_foreign"), "{}", proxy.log());
}

#[test]
fn a_root_that_is_accepted_as_missing_is_followed_by_the_next() {
    let world = World::new(3);
    let proxy = world.start();
    world.zk.delete_all(ROOT);
    is_held(&proxy, "root_missing", 3, SOON);
    accept_shown(&proxy);
    world.all_are_now(&proxy, "ERR_SERVICE_NOT_ACTIVE");
    assert_eq!(ready(&proxy), 503);
    world.fill(&world.zk, &world.b);
    world.all_are(&proxy, B, STAY);
    assert_eq!(ready(&proxy), 200);
}

#[test]
fn without_a_root_at_the_first_start_nothing_is_told() {
    let world = World::new(0);
    let proxy = world.builder().start();
    eventually("it is seen", SOON, || {
        request(proxy.admin(), "GET", "/readyz", "")
            .body
            .contains("the root of the routes does not exist")
    });
    assert_eq!(told(&proxy.ask("t0")), "ERR_SERVICE_NOT_ACTIVE");
    assert!(get(proxy.admin(), "/").contains(&format!("ZooKeeper has no root {ROOT}")));
    assert!(hold(&proxy).is_null());
    world.zk.create(ROOT, "");
    eventually("it is ready", STAY, || ready(&proxy) == 200);
    assert_eq!(told(&proxy.ask("t0")), "ERR_OBJECT_NOT_FOUND");
}

#[test]
fn a_zookeeper_that_comes_back_empty_is_held_and_so_is_what_is_written_into_it() {
    let world = World::new(5);
    let proxy = world.start();
    world.zk.lose_data();
    world.zk.restart();
    is_held(&proxy, "root_missing", 5, LOOK);
    world.all_are_now(&proxy, A);
    world.fill(&world.zk, &world.b);
    is_held(&proxy, "root_foreign", 5, STAY + LOOK);
    world.all_are_now(&proxy, A);
    assert_eq!(world.kept(), 5);
    accept_shown(&proxy);
    world.all_are(&proxy, B, SOON);
    world.zk.set(&znode("t0"), record("c", &[world.a.addr()]));
    eventually("changes are seen", SOON, || told(&proxy.ask("t0")) == A);
}

#[test]
fn another_ensemble_is_not_believed() {
    let world = World::new(5);
    let other = busy_zookeeper();
    other.create(&znode("t0"), record("c", &[world.b.addr()]));
    let proxy = world.start();
    let show = |zk: &ZooKeeper| {
        world.network.set_target(zk.addr());
        world.network.cut();
    };
    show(&other);
    is_held(&proxy, "root_foreign", 4, SOON);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        world.all_are_now(&proxy, A);
        assert_eq!(told(&proxy.ask("nosuch")), "ERR_SERVICE_NOT_ACTIVE");
    }
    assert_eq!(world.kept(), 5);
    // Ours is back, and what happened in it meanwhile is seen.
    world.zk.set(&znode("t1"), record("c", &[world.b.addr()]));
    world.zk.delete(&znode("t2"));
    show(&world.zk);
    is_not_held(&proxy, STAY);
    eventually("t1 follows", SOON, || told(&proxy.ask("t1")) == B);
    eventually("t2 is gone", SOON, || told(&proxy.ask("t2")) == "ERR_OBJECT_NOT_FOUND");
    assert_eq!(told(&proxy.ask("t0")), A);
    assert!(proxy.log().contains("routes are not held any more"));
}

#[test]
fn a_file_of_the_old_ensemble_is_served_and_held_when_a_new_one_takes_its_place() {
    let world = World::new(3);
    let proxy = world.start();
    proxy.terminate();
    let new = busy_zookeeper();
    new.create(&znode("t0"), record("c", &[world.b.addr()]));
    world.network.set_target(new.addr());
    let proxy = world.builder().start();
    world.all_are_now(&proxy, A);
    is_held(&proxy, "root_foreign", 2, SOON);
    world.all_are_now(&proxy, A);
    assert_eq!((world.kept(), ready(&proxy)), (3, 200));
    accept_shown(&proxy);
    eventually("t0 follows", SOON, || told(&proxy.ask("t0")) == B);
    eventually("t1 is gone", SOON, || told(&proxy.ask("t1")) == "ERR_OBJECT_NOT_FOUND");
}

#[test]
fn another_ensemble_behind_one_of_the_addresses_costs_a_moment() {
    let world = World::new(3);
    let other = busy_zookeeper();
    let proxy = world.start();
    proxy.terminate();
    let addrs = [world.network.addr(), other.addr()].map(|addr| addr.to_string());
    let proxy = world.builder_of(&addrs, ROOT).start();
    for _ in 0..5 {
        world.all_are_now(&proxy, A);
        eventually("ours is found", STAY, || {
            hold(&proxy).is_null() && page(&proxy, "/clusters")["zookeeper"]["state"] == "confirmed"
        });
        world.network.cut();
    }
}

#[test]
fn another_zookeeper_that_the_settings_name_is_believed() {
    let world = World::new(3);
    let proxy = world.start();
    eventually("they are kept", SOON, || world.kept() == 3);
    let other = busy_zookeeper();
    other.create(&znode("t0"), record("c", &[world.b.addr()]));
    let settings = |addr: std::net::SocketAddr| {
        let state = world.state();
        format!(
            "zookeeper: {{address: ['{addr}'], root: {ROOT}, timeout: 6000, preload: true, state_file: {}}}",
            state.display()
        )
    };
    proxy.rewrite_config(&settings(other.addr()));
    proxy.process().signal("HUP");
    eventually("t0 follows", SOON, || told(&proxy.ask("t0")) == B);
    eventually("t1 is gone", SOON, || told(&proxy.ask("t1")) == "ERR_OBJECT_NOT_FOUND");
    assert!(hold(&proxy).is_null());
    eventually("the file follows", SOON, || world.kept() == 1);
    proxy.terminate();
    // The file is of the other one by now.
    let proxy = Proxy::builder(BINARY).config_extra(&settings(other.addr())).start();
    assert_eq!(told(&proxy.ask("t0")), B);
    assert!(!proxy.log().contains("not used"));
}

#[test]
fn a_root_in_the_settings_that_does_not_exist_is_told_and_the_file_is_not_of_it() {
    let world = World::new(3);
    let proxy = world.start();
    proxy.terminate();
    let addrs = [world.network.addr().to_string()];
    let proxy = world.builder_of(&addrs, "/wrong").start();
    proxy.wait_for_log("not used, the settings have changed: root", SOON);
    eventually("it is not ready", SOON, || ready(&proxy) == 503);
    assert_eq!(told(&proxy.ask("t0")), "ERR_SERVICE_NOT_ACTIVE");
    proxy.terminate();
    assert_eq!(world.kept(), 3, "the file stays");
    let proxy = world.builder().start();
    world.all_are_now(&proxy, A);
}

#[test]
fn one_table_is_gone_at_once_and_many_are_held() {
    let world = World::new(30);
    let proxy = world.start();
    let mut client = proxy.client();
    let mut took: Vec<Duration> = (0..5)
        .map(|n| {
            let (table, start) = (&world.tables[n], Instant::now());
            world.zk.delete(&znode(table));
            while told(&client.ask(table)) != "ERR_OBJECT_NOT_FOUND" {
                assert!(start.elapsed() < SOON);
            }
            start.elapsed()
        })
        .collect();
    took.sort_unstable();
    assert!(took[2] < Duration::from_millis(100), "{took:?}");
    // Six more within the minute are too many. The first five return.
    world.tables[5..11].iter().for_each(|table| world.zk.delete(&znode(table)));
    is_held(&proxy, "tables_gone", 11, SOON);
    world.all_are_now(&proxy, A);
    assert_eq!(metric(&proxy, "tables_gone"), 11.0);
    let held =
        |table: &str| page(&proxy, &format!("/routes?table={table}"))["routes"][0]["held"].clone();
    assert_eq!((held("t0"), held("t29")), (true.into(), false.into()));
    assert_eq!(told(&client.ask("nosuch")), "ERR_SERVICE_NOT_ACTIVE");

    // Records that are there are followed: a change, a new table, one that is created anew.
    world.zk.set(&znode("t20"), record("c", &[world.b.addr()]));
    eventually("t20 follows", SOON, || told(&client.ask("t20")) == B);
    world.zk.create(&znode("new"), record("c", &[world.b.addr()]));
    eventually("new is served", SOON, || told(&client.ask("new")) == B);
    world.zk.create(&znode("t3"), record("c", &[world.b.addr()]));
    eventually("t3 is there again", SOON, || told(&client.ask("t3")) == B);
    is_held(&proxy, "tables_gone", 10, SOON);
    eventually("all is in the file", SOON, || world.kept() == 31);

    // The hold goes on after a restart.
    drop(client);
    proxy.terminate();
    let proxy = world.builder().start();
    is_held(&proxy, "tables_gone", 10, SOON);
    assert_eq!(told(&proxy.ask("t0")), A);
    assert_eq!(
        accept(&proxy, hold(&proxy)["czxid"].as_str().unwrap(), 11).0,
        409,
        "what was shown once"
    );
    accept_shown(&proxy);
    eventually("t0 is gone", SOON, || told(&proxy.ask("t0")) == "ERR_OBJECT_NOT_FOUND");
    is_not_held(&proxy, SOON);
    assert_eq!((told(&proxy.ask("t3")), told(&proxy.ask("t29"))), (B.to_owned(), A.to_owned()));
    eventually("the file follows", SOON, || world.kept() == 21);
}

#[test]
fn tables_that_all_come_back_end_the_hold() {
    let world = World::new(3);
    let proxy = world.start();
    world.tables.iter().for_each(|table| world.zk.delete(&znode(table)));
    is_held(&proxy, "tables_gone", 3, SOON);
    world.all_are_now(&proxy, A);
    world.fill(&world.zk, &world.b);
    is_not_held(&proxy, SOON);
    world.all_are(&proxy, B, SOON);
}

#[test]
fn without_holds_what_is_gone_is_gone() {
    let world = World::new(3);
    let settings = format!(
        "zookeeper: {{address: ['{}'], root: {ROOT}, preload: true, hold: false}}",
        world.network.addr()
    );
    let proxy = Proxy::builder(BINARY).config_extra(&settings).start();
    world.all_are(&proxy, A, SOON);
    world.tables.iter().for_each(|table| world.zk.delete(&znode(table)));
    world.all_are(&proxy, "ERR_OBJECT_NOT_FOUND", SOON);
    world.zk.delete(ROOT);
    world.fill(&world.zk, &world.b);
    world.all_are(&proxy, B, SOON);
}

#[test]
fn an_older_file_is_put_back_as_the_runbook_says() {
    let world = World::new(3);
    let proxy = world.start();
    eventually("they are kept", SOON, || world.kept() == 3);
    // Somebody deletes all tables, and somebody else accepts it too early.
    world.tables.iter().for_each(|table| world.zk.delete(&znode(table)));
    is_held(&proxy, "tables_gone", 3, SOON);
    accept_shown(&proxy);
    eventually("it is too late", SOON, || world.kept() == 0);
    proxy.terminate();
    let older = world.scratch.path().join("state.1h.next");
    assert_eq!(tables_in(&older), 3, "the file of before is kept");
    fs::copy(&older, world.state()).unwrap();
    let proxy = world.builder().start();
    world.all_are_now(&proxy, A);
    is_held(&proxy, "tables_gone", 3, SOON);
    world.all_are_now(&proxy, A);
}

#[test]
fn a_state_file_on_a_full_disk_leaves_nothing_behind_and_the_old_one_stays() {
    let world = World::new(40);
    let proxy = world.start();
    eventually("they are kept", SOON, || world.kept() == 40);
    proxy.terminate();
    // A process that was killed while it wrote.
    let leftover = world.scratch.path().join("state.4999999");
    fs::write(&leftover, "half").unwrap();
    // No file may have more than some KiB, so that writing fails in the middle, as on a full disk.
    let limited = ["sh", "-c", "ulimit -f 1; exec \"$@\"", "sh"];
    let proxy = world.builder().wrapper(limited).start();
    world.all_are_now(&proxy, A);
    assert!(!leftover.exists(), "{}", proxy.log());
    world.zk.set(&znode("t0"), record("c", &[world.b.addr()]));
    eventually("t0 follows", SOON, || told(&proxy.ask("t0")) == B);
    proxy.wait_for_log("not written: File too large", SOON);
    let files: Vec<String> = fs::read_dir(world.scratch.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(!files.contains(&format!("state.{}", proxy.pid())), "{files:?}");
    proxy.terminate();
    assert_eq!(world.kept(), 40);
}

#[test]
fn a_state_file_that_is_a_link_stays_one() {
    let world = World::new(1);
    let folder = world.scratch.path().join("elsewhere");
    fs::create_dir(&folder).unwrap();
    symlink(folder.join("routes"), world.state()).unwrap();
    let proxy = world.start();
    eventually("it is written", SOON, || world.kept() == 1);
    proxy.terminate();
    assert!(fs::symlink_metadata(world.state()).unwrap().is_symlink());
    assert_eq!(tables_in(&folder.join("routes")), 1);
}

#[test]
fn a_table_never_gets_the_replaced_addresses_of_its_new_cluster() {
    let zk = ZooKeeper::start();
    let clusters = "/pegasus-clusters";
    let metas: Vec<MetaServer> = (0..3).map(|_| MetaServer::start()).collect();
    let primaries = [A, B, "10.0.0.3:34801"];
    for (meta, primary) in metas.iter().zip(primaries) {
        meta.put_table("orders", QueryCfgResponse::table(1, 1, addr(primary)));
    }
    let of = |meta: &MetaServer| format!(r#"{{"meta_addrs": "{}"}}"#, meta.addr());
    zk.create(&format!("{clusters}/c1"), of(&metas[2]));
    zk.create(&format!("{clusters}/c2"), of(&metas[0]));
    zk.create(&znode("orders"), r#"{"cluster": "c1"}"#);
    zk.create(&znode("users"), r#"{"cluster": "c2"}"#);
    let settings = format!(
        "zookeeper: {{address: ['{}'], root: {ROOT}, clusters_root: {clusters}, preload: true}}",
        zk.addr()
    );
    let proxy = Proxy::builder(BINARY).config_extra(&settings).start();
    let mut client = proxy.client();
    for turn in 0..300 {
        let new = (turn + 1) % 2;
        eventually("it is in c1", SOON, || told(&client.ask("orders")) == primaries[2]);
        zk.set(&format!("{clusters}/c2"), of(&metas[new]));
        zk.set(&znode("orders"), r#"{"cluster": "c2"}"#);
        let start = Instant::now();
        let first = loop {
            let told = told(&client.ask("orders"));
            if told != primaries[2] {
                break told;
            }
            assert!(start.elapsed() < SOON, "turn {turn}: it does not move");
        };
        assert_eq!(first, primaries[new], "turn {turn}: replaced addresses");
        zk.set(&znode("orders"), r#"{"cluster": "c1"}"#);
    }
}

#[test]
fn clusters_that_are_gone_leave_the_tables_that_name_them() {
    let world = World::new(0);
    let clusters = "/pegasus-clusters";
    world
        .zk
        .create(&format!("{clusters}/c1"), format!(r#"{{"meta_addrs": "{}"}}"#, world.a.addr()));
    world.zk.create(&znode("new"), r#"{"cluster": "c1"}"#);
    let start = || {
        let settings = format!(
            "zookeeper: {{address: ['{}'], root: {ROOT}, clusters_root: {clusters}, state_file: {}}}",
            world.network.addr(),
            world.state().display()
        );
        Proxy::builder(BINARY).config_extra(&settings).start()
    };
    let proxy = start();
    eventually("it is served", SOON, || told(&proxy.ask("new")) == A);
    eventually("it is kept", SOON, || world.kept() == 1);
    world.zk.delete_all(clusters);
    eventually("that is seen", SOON, || page(&proxy, "/routes")["routes"][0]["stale"] == true);
    assert_eq!(told(&proxy.ask("new")), A);
    proxy.terminate();
    let proxy = start();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(told(&proxy.ask("new")), A);
    world
        .zk
        .create(&format!("{clusters}/c1"), format!(r#"{{"meta_addrs": "{}"}}"#, world.b.addr()));
    eventually("it follows", SOON, || told(&proxy.ask("new")) == B);
}

/// Ends a client, also when the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Each setting of ZooKeeper but the state file is taken at SIGHUP, and no client of a table that is in both places notices.
#[test]
fn other_znodes_in_the_settings_are_taken_without_losing_a_route() {
    let world = World::new(20);
    let (a, b) = (record("c", &[world.a.addr()]), record("d", &[world.b.addr()]));
    let other = "/other-root";
    for table in &world.tables[..15] {
        world.zk.create(&format!("{other}/{table}"), &b);
    }
    world.zk.create("/clusters/c", &a);
    world.zk.create("/clusters/e", record("e", &[world.b.addr()]));
    world.zk.create(&format!("{other}/named"), r#"{"cluster":"c"}"#);
    let proxy = world.start();
    let settings = |root: &str, more: &str| {
        let (addr, state) = (world.network.addr(), world.state());
        format!(
            "zookeeper: {{address: ['{addr}'], root: {root}, timeout: 6000, state_file: {}{more}}}",
            state.display()
        )
    };
    let reload = |settings: String| {
        proxy.rewrite_config(&settings);
        proxy.process().signal("HUP");
    };
    for (meta, primary) in [(&world.a, A), (&world.b, B)] {
        meta.put_table("named", QueryCfgResponse::table(1, 1, addr(primary)));
    }
    let stops = AtomicBool::new(false);
    let asks = thread::scope(|scope| {
        let end = End(&stops);
        let asking = scope.spawn(|| {
            let (mut client, mut asks) = (proxy.client(), 0);
            while !stops.load(SeqCst) {
                for table in &world.tables[..15] {
                    let told = told(&client.ask(table));
                    assert!(told == A || told == B, "{table}: {told}");
                    asks += 1;
                }
            }
            asks
        });
        reload(settings(other, ""));
        for table in &world.tables[..15] {
            eventually("it is that of the other root", SOON, || told(&proxy.ask(table)) == B);
        }
        for table in &world.tables[15..] {
            let is_gone = || told(&proxy.ask(table)) == "ERR_OBJECT_NOT_FOUND";
            eventually("it is not there", SOON, is_gone);
        }
        assert!(hold(&proxy).is_null());
        assert_eq!(page(&proxy, "/clusters")["zookeeper"]["root"], other);
        // A record that names its cluster only.
        assert_eq!(told(&proxy.ask("named")), "ERR_INVALID_DATA");
        // Both at once.
        reload(settings(other, ", clusters_root: /clusters, control_root: /control"));
        eventually("clusters have znodes", SOON, || told(&proxy.ask("named")) == A);
        let is_member = || {
            world.zk.exists("/control/members") && world.zk.children("/control/members").len() == 1
        };
        eventually("it tells that it is there", SOON, is_member);
        world.zk.set(&format!("{other}/named"), r#"{"cluster":"e"}"#);
        eventually("it follows", SOON, || told(&proxy.ask("named")) == B);
        reload(settings(other, ", clusters_root: /clusters, table_watcher_cache_capacity: 16"));
        eventually("it is none", SOON, || world.zk.children("/control/members").is_empty());
        drop(end);
        asking.join().unwrap()
    });
    println!("{asks} queries while the settings changed");
    eventually("few are cached", SOON, || {
        page(&proxy, "/routes")["routes"].as_array().unwrap().len() <= 16
    });
    // Without holds what is gone is gone.
    reload(settings(other, ", clusters_root: /clusters, hold: false"));
    proxy.wait_for_log("zookeeper.hold: true -> false", SOON);
    world.zk.delete_all(other);
    for table in &world.tables[..15] {
        let served = || told(&proxy.ask(table));
        eventually("it is gone", SOON, || !served().starts_with("10.") && hold(&proxy).is_null());
    }
    proxy.terminate();
    let state = std::fs::read_to_string(world.state()).unwrap();
    assert!(state.lines().next().unwrap().contains(other), "{state}");
}

/// A hold ends with another root in the settings, and takes no table with it that is below both. Without holds from the
/// same moment on, too.
#[test]
fn another_root_in_the_settings_ends_a_hold_and_no_table_that_is_in_both_is_lost() {
    let world = World::new(20);
    let other = "/other-root";
    for table in &world.tables {
        world.zk.create(&format!("{other}/{table}"), record("d", &[world.b.addr()]));
    }
    let proxy = world.start();
    world.zk.delete_all(ROOT);
    is_held(&proxy, "root_missing", 20, SOON);
    let stops = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = End(&stops);
        let asking = scope.spawn(|| {
            let mut client = proxy.client();
            while !stops.load(SeqCst) {
                for table in &world.tables {
                    let told = told(&client.ask(table));
                    assert!(told == A || told == B, "{table}: {told}");
                }
            }
        });
        let (addr, state) = (world.network.addr(), world.state());
        proxy.rewrite_config(&format!(
            "zookeeper: {{address: ['{addr}'], root: {other}, timeout: 6000, hold: false, state_file: {}}}",
            state.display()
        ));
        world.network.black_hole();
        proxy.process().signal("HUP");
        eventually("it connects anew", SOON, || {
            page(&proxy, "/clusters")["zookeeper"]["root"] == other
        });
        world.all_are_now(&proxy, A);
        world.network.pass();
        world.all_are(&proxy, B, SOON);
        drop(end);
        asking.join().unwrap();
    });
    is_not_held(&proxy, SOON);
}

/// Routes that made room are in the state file, and they are of the root before.
#[test]
fn tables_that_made_room_are_not_held_below_another_root() {
    let world = World::new(40);
    let other = "/other-root";
    world.zk.create(&format!("{other}/t0"), record("d", &[world.b.addr()]));
    let settings = |root: &str, capacity: usize| {
        let (addr, state) = (world.network.addr(), world.state());
        format!(
            "zookeeper: {{address: ['{addr}'], root: {root}, timeout: 6000, state_file: {}, \
             table_watcher_cache_capacity: {capacity}}}",
            state.display()
        )
    };
    let proxy = Proxy::builder(BINARY).config_extra(&settings(ROOT, 10)).start();
    world.all_are(&proxy, A, SOON);
    eventually("all are in the file", SOON, || world.kept() == 40);
    proxy.rewrite_config(&settings(other, 10));
    proxy.process().signal("HUP");
    eventually("it is that of the other root", SOON, || told(&proxy.ask("t0")) == B);
    for table in &world.tables[1..] {
        eventually("it is gone", SOON, || told(&proxy.ask(table)) == "ERR_OBJECT_NOT_FOUND");
    }
    proxy.terminate();
    assert_eq!(world.kept(), 1);
    drop(proxy);
    let proxy = Proxy::builder(BINARY).config_extra(&settings(other, 100)).start();
    eventually("it is served", SOON, || told(&proxy.ask("t0")) == B && world.stale(&proxy) == 0);
    assert!(hold(&proxy).is_null());
    assert_eq!(told(&proxy.ask("t7")), "ERR_OBJECT_NOT_FOUND");
}
