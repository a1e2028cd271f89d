//! A real ZooKeeper in trouble, or far away, or of another version: what the proxy costs it, and what it costs the proxy.

use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use harness::client::Answer;
use harness::http::get;
use harness::meta_server::MetaServer;
use harness::proxy::{Builder, Proxy};
use harness::relay::Relay;
use harness::wait::eventually;
use harness::wire::QueryCfgResponse;
use harness::zookeeper::{Ensemble, Sessions, ZooKeeper};
use meta_proxy::zk::codec::{Acl, Answer as ZkAnswer, Code, Op};
use meta_proxy::zk::session::{Failed, Session};
use serde_json::Value;

use crate::support::{BINARY, SOON, addr, meta_with, record};

const ROOT: &str = "/pegasus-cluster";
const A: &str = "10.0.0.1:34801";
const B: &str = "10.0.0.2:34801";

/// Once ZooKeeper can be reached, routes are current.
const AFTER_TROUBLE: Duration = Duration::from_secs(10);
/// A change must be served in this time; the sweep, which finds it without a watch, takes 24 s and more.
const BY_WATCH: Duration = Duration::from_secs(5);

/// The connects that a proxy may make in a time, with one more for a grant at each end.
fn allowed(span: Duration) -> u64 {
    5 + 2 + span.as_secs()
}

/// Two clusters, and a network to ZooKeeper that can fail.
struct World {
    network: Relay,
    a: MetaServer,
    b: MetaServer,
}

impl World {
    fn before(zk: SocketAddr) -> Self {
        World { network: Relay::to(zk), a: meta_with("orders", A), b: meta_with("orders", B) }
    }

    fn settings(&self, more: &str) -> Builder {
        let addr = self.network.addr();
        let zookeeper = format!("zookeeper: {{address: ['{addr}'], root: {ROOT}{more}}}");
        Proxy::builder(BINARY).config_extra(&zookeeper)
    }

    fn to_a(&self) -> String {
        record("a", &[self.a.addr()])
    }

    fn to_b(&self) -> String {
        record("b", &[self.b.addr()])
    }

    /// Both clusters have these tables.
    fn put_tables(&self, names: &[String]) {
        for name in names {
            self.a.put_table(name, QueryCfgResponse::table(2, 1, addr(A)));
            self.b.put_table(name, QueryCfgResponse::table(2, 1, addr(B)));
        }
    }
}

fn znode(table: &str) -> String {
    format!("{ROOT}/{table}")
}

fn znodes(tables: &[String]) -> Vec<String> {
    tables.iter().map(|table| znode(table)).collect()
}

fn tables(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("table_{n:05}")).collect()
}

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

fn is_confirmed(proxy: &Proxy) -> bool {
    page(proxy, "/clusters")["zookeeper"]["state"] == "confirmed"
}

#[track_caller]
fn follows(proxy: &Proxy, table: &str, want: &str, within: Duration) {
    let mut client = proxy.client();
    let what = format!("{table} is told as {want}");
    eventually(&what, within, || told(&client.ask(table)) == want);
}

/// Asks for all of them, pipelined, until each is told as `want`.
#[track_caller]
fn all_follow(proxy: &Proxy, tables: &[String], want: &str, within: Duration) {
    let mut client = proxy.client();
    eventually("all tables follow", within, || {
        tables.chunks(500).all(|some| {
            let seqs = client.send_queries(some.iter().map(String::as_str));
            client.read_answers(seqs.len()).values().all(|answer| told(answer) == want)
        })
    });
}

/// Counts what connects to the network while cached routes are served, then ends the trouble.
fn connects_in_trouble(zk: &ZooKeeper, world: &World, proxy: &Proxy, end: impl FnOnce()) {
    const SPAN: Duration = Duration::from_secs(8);
    let (start, before) = (Instant::now(), world.network.connections());
    let mut client = proxy.client();
    while start.elapsed() < SPAN {
        assert_eq!(told(&client.ask("orders")), A, "cached routes serve");
        thread::sleep(Duration::from_millis(5));
    }
    let connects = world.network.connections() - before;
    assert!(connects >= 2, "it tries: {connects}");
    assert!(connects <= allowed(SPAN), "{connects} connects in {SPAN:?}");
    end();
    zk.set(&znode("orders"), world.to_b());
    follows(proxy, "orders", B, AFTER_TROUBLE);
}

#[test]
fn a_server_that_is_full_is_not_attacked() {
    let zk = ZooKeeper::start_with("maxClientCnxns=4\n");
    let world = World::before(zk.addr());
    zk.create(&znode("orders"), world.to_a());
    let proxy = world.settings("").start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    // The test's own hand is one, these take all other places as soon as the proxy's is free.
    let hold = || (0..4).map(|_| TcpStream::connect(zk.addr()).unwrap()).collect::<Vec<_>>();
    let mut others = hold();
    world.network.cut();
    thread::sleep(Duration::from_millis(50));
    others.extend(hold());
    connects_in_trouble(&zk, &world, &proxy, || drop(others));
    assert!(proxy.log().contains("it is full (maxClientCnxns)"));
}

#[test]
fn who_accepts_and_closes_is_not_attacked() {
    let zk = ZooKeeper::start();
    let world = World::before(zk.addr());
    zk.create(&znode("orders"), world.to_a());
    let proxy = world.settings(", timeout: 40000").start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    world.network.close_at_once();
    world.network.cut();
    connects_in_trouble(&zk, &world, &proxy, || world.network.pass());
}

#[test]
fn a_zookeeper_killed_under_a_young_connection_is_not_attacked() {
    let zk = ZooKeeper::start();
    let world = World::before(zk.addr());
    zk.create(&znode("orders"), world.to_a());
    let proxy = world.settings("").start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    zk.kill();
    // The relay accepts, finds nobody behind it, and closes.
    connects_in_trouble_of_dead(&world, &proxy);
    zk.restart();
    zk.set(&znode("orders"), world.to_b());
    follows(&proxy, "orders", B, AFTER_TROUBLE);
}

fn connects_in_trouble_of_dead(world: &World, proxy: &Proxy) {
    let (start, before) = (Instant::now(), world.network.connections());
    while start.elapsed() < Duration::from_secs(5) {
        assert_eq!(told(&proxy.ask("orders")), A, "cached routes serve");
        thread::sleep(Duration::from_millis(20));
    }
    let connects = world.network.connections() - before;
    assert!(connects <= allowed(start.elapsed()), "{connects} connects");
}

#[test]
fn a_read_only_minority_is_no_zookeeper_and_is_not_attacked() {
    let ensemble = Ensemble::start_read_only(3, Sessions::Global, "");
    let survivor = (ensemble.leader() + 1) % 3;
    let zk = &ensemble[survivor];
    let world = World::before(zk.addr());
    zk.create(&znode("orders"), world.to_a());
    let proxy = world.settings("").start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    let others: Vec<usize> = (0..3).filter(|index| *index != survivor).collect();
    others.iter().for_each(|index| ensemble[*index].kill());
    eventually("it is read-only", Duration::from_secs(60), || {
        zk.mode().as_deref() == Some("read-only")
    });
    connects_in_trouble(zk, &world, &proxy, || {
        others.iter().for_each(|index| ensemble[*index].launch());
        ensemble.leader();
    });
}

#[test]
fn a_backup_that_was_restored_takes_no_route_back() {
    let zk = ZooKeeper::start();
    let world = World::before(zk.addr());
    zk.create(&znode("orders"), world.to_b());
    zk.stop();
    let backup = zk.back_up();
    zk.restart();
    zk.set(&znode("orders"), world.to_a());
    let proxy = world.settings("").start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    zk.stop();
    zk.restore(&backup);
    zk.restart();
    proxy.wait_for_log("knows less than was seen before", AFTER_TROUBLE);
    connects_in_trouble_of_dead(&world, &proxy);
}

#[test]
fn links_that_die_without_a_word_leave_no_thread_and_no_descriptor() {
    let zk = ZooKeeper::start();
    let world = World::before(zk.addr());
    zk.create(&znode("orders"), world.to_a());
    let proxy = world.settings(", timeout: 3000").start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    let sizes = || (proxy.threads().len(), proxy.open_fds());
    let before = sizes();
    for turn in 0..20 {
        let built = page(&proxy, "/clusters")["zookeeper"]["rebuilds"].as_u64().unwrap();
        world.network.forget_links();
        eventually(&format!("link {turn} is replaced"), AFTER_TROUBLE, || {
            let zookeeper = &page(&proxy, "/clusters")["zookeeper"];
            zookeeper["rebuilds"].as_u64().unwrap() > built && zookeeper["state"] == "confirmed"
        });
    }
    zk.set(&znode("orders"), world.to_b());
    follows(&proxy, "orders", B, BY_WATCH);
    eventually("no thread and no descriptor is left", SOON, || {
        let (threads, fds) = sizes();
        threads <= before.0 && fds <= before.1 + 2
    });
    assert!(proxy.log().contains("no answer from"));
}

#[test]
fn a_long_list_of_names_comes_over_a_slow_link() {
    let zk = ZooKeeper::start();
    let world = World::before(zk.addr());
    zk.create(&znode("orders"), world.to_a());
    // 1.5 MB, two and a half seconds.
    let names: Vec<String> = (0..20_000).map(|n| format!("{}{n:05}", "n".repeat(66))).collect();
    zk.create_many(&znodes(&names), "");
    world.network.bandwidth_to_client(600_000);
    let proxy = world.settings("").start();
    follows(&proxy, "orders", A, Duration::from_secs(30));
    follows(&proxy, "nosuch", "ERR_OBJECT_NOT_FOUND", Duration::from_secs(30));
    eventually("all is confirmed", SOON, || is_confirmed(&proxy));
    assert_eq!(world.network.connections(), 1, "{}", proxy.log());
}

#[test]
fn answers_that_are_late_by_more_than_a_second_are_waited_for() {
    let zk = ZooKeeper::start();
    let world = World::before(zk.addr());
    zk.create(&znode("orders"), world.to_a());
    world.network.delay_to_client(Duration::from_millis(1_200));
    let proxy = world.settings(", timeout: 30000").start();
    follows(&proxy, "orders", A, Duration::from_secs(20));
    zk.set(&znode("orders"), world.to_b());
    follows(&proxy, "orders", B, SOON);
    assert_eq!(world.network.connections(), 1);
}

#[test]
fn creations_beside_many_tables_cost_little_and_are_served_at_once() {
    let zk = ZooKeeper::start();
    let world = World::before(zk.addr());
    zk.create(&znode("orders"), world.to_a());
    zk.create_many(&znodes(&tables(10_000)), world.to_a());
    let proxy = world.settings("").start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    let new: Vec<String> = (0..250).map(|n| format!("new_{n:03}")).collect();
    world.put_tables(&new);
    // Each is asked for before, so that its absence is known.
    follows(&proxy, "new_000", "ERR_OBJECT_NOT_FOUND", BY_WATCH);
    let (before, mut client) = (world.network.bytes_to_client(), proxy.client());
    for name in &new {
        zk.create(&znode(name), world.to_a());
        let created = Instant::now();
        while told(&client.ask(name)) != A {
            assert!(created.elapsed() < BY_WATCH, "{name}");
        }
        thread::sleep(Duration::from_millis(20));
    }
    let bytes = world.network.bytes_to_client() - before;
    // One list has 170 KB.
    assert!(bytes < 2_000_000, "{bytes} bytes for 250 tables");
    follows(&proxy, "nosuch", "ERR_OBJECT_NOT_FOUND", BY_WATCH);
}

#[test]
fn tables_that_made_room_cost_nothing_when_they_change() {
    let zk = ZooKeeper::start();
    let world = World::before(zk.addr());
    let names = tables(1_000);
    world.put_tables(&names);
    zk.create(ROOT, "");
    zk.create_many(&znodes(&names), world.to_a());
    let proxy = world.settings(", table_watcher_cache_capacity: 100").start();
    follows(&proxy, &names[0], A, AFTER_TROUBLE);
    all_follow(&proxy, &names, A, AFTER_TROUBLE);
    let received = || zk.connections().iter().map(|c| c.received).sum::<u64>();
    let (start, before) = (Instant::now(), received());
    zk.set_many(&znodes(&names), world.to_b());
    follows(&proxy, &names[999], B, BY_WATCH);
    eventually("the cached ones follow", BY_WATCH, || {
        let routes = page(&proxy, "/routes");
        routes["routes"].as_array().unwrap().iter().all(|route| route["cluster"] == "b")
    });
    let reads = received() - before;
    // A cached table is read once for its change; heartbeats and the sweep go on.
    let others = 30 * (2 + start.elapsed().as_secs());
    assert!(reads <= 110 + others, "{reads} requests");

    // Nor are their watches set again.
    world.network.cut();
    eventually("the watches of those that are cached are set again, and no other", SOON, || {
        is_confirmed(&proxy) && (90..=110).contains(&zk.watch_count())
    });
}

#[test]
fn where_nothing_changed_no_route_is_read_again() {
    let zk = ZooKeeper::start();
    let world = World::before(zk.addr());
    let names = tables(1_000);
    world.put_tables(&names);
    zk.create(ROOT, "");
    zk.create_many(&znodes(&names), world.to_a());
    let proxy = world.settings(", preload: true").start();
    all_follow(&proxy, &names, A, AFTER_TROUBLE);
    for kind in ["the session lives on", "a new session"] {
        let confirmed = |log: &str| log.matches("cached routes are confirmed").count();
        let before = confirmed(&proxy.log());
        match kind {
            "a new session" => drop(zk.expire_sessions_of(&[proxy.process()])),
            _ => world.network.cut(),
        }
        eventually(kind, AFTER_TROUBLE, || confirmed(&proxy.log()) > before);
        let received: u64 = zk.connections().iter().map(|c| c.received).sum();
        assert!(received < 100, "{kind}: {received} requests");
        zk.set(&znode(&names[7]), world.to_b());
        follows(&proxy, &names[7], B, BY_WATCH);
        zk.set(&znode(&names[7]), world.to_a());
        follows(&proxy, &names[7], A, BY_WATCH);
    }
    // Znodes that change while nobody can tell are read, and nothing else.
    world.network.refuse();
    zk.set(&znode(&names[3]), world.to_b());
    zk.delete(&znode(&names[4]));
    world.network.pass();
    follows(&proxy, &names[3], B, AFTER_TROUBLE);
    follows(&proxy, &names[4], "ERR_OBJECT_NOT_FOUND", BY_WATCH);
}

#[test]
fn a_znode_that_flaps_has_few_lines() {
    let zk = ZooKeeper::start();
    let world = World::before(zk.addr());
    zk.create(&znode("orders"), world.to_a());
    let proxy = world.settings("").start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    let start = Instant::now();
    for turn in 0..1_000 {
        let record = match turn % 3 {
            0 => world.to_b(),
            1 => "junk".to_owned(),
            _ => world.to_a(),
        };
        zk.set(&znode("orders"), record);
    }
    zk.set(&znode("orders"), world.to_b());
    follows(&proxy, "orders", B, BY_WATCH);
    let log = proxy.log();
    let lines = log.lines().filter(|line| line.contains("orders")).count() as u64;
    let allowed = 15 + 2 * start.elapsed().as_secs();
    assert!(lines <= allowed, "{lines} lines\n{log}");
    proxy.wait_for_log("more changes of this table were not shown", Duration::from_secs(20));
}

#[test]
fn other_addresses_and_another_digest_are_taken_without_losing_a_route() {
    let zk = ZooKeeper::start();
    let world = World::before(zk.addr());
    zk.create(&znode("orders"), world.to_a());
    let secret = znode("secret");
    zk.create(&secret, world.to_a());
    zk.set_acl_digest(&secret, "user:new");
    world.put_tables(&["secret".to_owned()]);
    let proxy = world.settings(", digest: 'user:old'").start();
    follows(&proxy, "orders", A, AFTER_TROUBLE);
    follows(&proxy, "secret", "ERR_INVALID_DATA", BY_WATCH);
    let next = Relay::to(zk.addr());
    let (addr, mut client) = (next.addr(), proxy.client());
    proxy.rewrite_config(&format!(
        "zookeeper: {{address: ['{addr}'], root: {ROOT}, digest: 'user:new', timeout: 9000}}"
    ));
    proxy.process().signal("HUP");
    proxy.wait_for_log("SIGHUP: zookeeper.address: ", SOON);
    eventually("the new address is used", SOON, || {
        assert_eq!(told(&client.ask("orders")), A, "no route is lost");
        next.open_links() == 1 && world.network.open_links() == 0
    });
    follows(&proxy, "secret", A, SOON);
    let zookeeper = &page(&proxy, "/clusters")["zookeeper"];
    assert_eq!(zookeeper["granted_timeout_ms"], 9_000, "{zookeeper}");
    zk.set(&znode("orders"), world.to_b());
    follows(&proxy, "orders", B, BY_WATCH);
    assert!(!proxy.log().contains("user:"), "no secret is logged");
}

#[test]
fn a_session_for_commands_reads_writes_and_is_told_why_not() {
    let zk = ZooKeeper::start();
    let address = [zk.addr().to_string()];
    let connect =
        |digests: &[String]| Session::connect(&address, Duration::from_secs(6), digests, SOON);
    let mut session = connect(&["tool:secret".to_owned()]).unwrap();
    let path = || "/own".to_owned();
    let acl = vec![Acl { permissions: 31, scheme: "auth".to_owned(), id: String::new() }];
    let create =
        || Op::Create { path: path(), data: b"1".to_vec(), acl: acl.clone(), is_ephemeral: false };
    session.request(create()).unwrap();
    let refused = |done: Result<ZkAnswer, Failed>| match done {
        Err(Failed::Code(code)) => code,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(session.request(create())), Code::NODE_EXISTS);
    let set = |version| Op::SetData { path: path(), data: b"2".to_vec(), version };
    let ZkAnswer::Stat(stat) = session.request(set(0)).unwrap() else { panic!("no stat") };
    assert_eq!(stat.version, 1);
    assert_eq!(refused(session.request(set(0))), Code::BAD_VERSION);
    session.request(Op::Sync { path: path() }).unwrap();
    let data = session.request(Op::GetData { path: path(), watch: false }).unwrap();
    assert!(matches!(data, ZkAnswer::Data(data, stat) if data == b"2" && stat.version == 1));
    let ZkAnswer::Acl(acl, _) = session.request(Op::GetAcl { path: path() }).unwrap() else {
        panic!("no ACL")
    };
    assert_eq!((acl[0].scheme.as_str(), acl[0].permissions), ("digest", 31));
    let mut stranger = connect(&[]).unwrap();
    let read = stranger.request(Op::GetData { path: path(), watch: false });
    assert_eq!(refused(read), Code::NO_AUTH);
    assert_eq!(
        refused(session.request(Op::Delete { path: path(), version: 7 })),
        Code::BAD_VERSION
    );
    session.request(Op::Delete { path: path(), version: 1 }).unwrap();
    assert_eq!(refused(session.request(set(-1))), Code::NO_NODE);
    let gone =
        Op::Create { path: "/mine".to_owned(), data: vec![], acl: open(), is_ephemeral: true };
    session.request(gone).unwrap();
    drop(session);
    eventually("an ephemeral znode ends with its session", SOON, || !zk.exists("/mine"));
}

fn open() -> Vec<Acl> {
    vec![Acl { permissions: 31, scheme: "world".to_owned(), id: "anyone".to_owned() }]
}
