//! Real clients of Pegasus, set and get through the real proxy. The programs: `tests/interop`.
//!
//! Their quirks are the reason for much of what the proxy does, so nothing here is played by a stand-in but the
//! clusters behind it.

use std::fmt;
use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::Duration;

use harness::cluster::Cluster;
use harness::meta_server::{Behaviour, MetaServer};
use harness::proxy::Proxy;
use harness::scratch::Scratch;
use harness::wait::eventually;
use harness::wire::QueryCfgResponse;
use harness::zookeeper::ZooKeeper;

use crate::run::{Finished, run};
use crate::support::{BINARY, Routes, SOON, addr, record, set_up};

/// More than the programs themselves allow for all that they do.
const RUN_WITHIN: Duration = Duration::from_secs(60);

/// app_ids of the stand-in clusters start with this one.
const FIRST: i32 = 1;

#[derive(Clone, Copy)]
enum RealClient {
    GoApache,
    GoXiaomi,
    Python,
}

const CLIENTS: [RealClient; 3] = [RealClient::GoApache, RealClient::GoXiaomi, RealClient::Python];

impl RealClient {
    fn command(self) -> Command {
        match self {
            RealClient::GoApache => Command::new(set_up("target/interop/go-apache")),
            RealClient::GoXiaomi => Command::new(set_up("target/interop/go-xiaomi")),
            RealClient::Python => {
                let mut command = Command::new(set_up("target/interop-venv/bin/python"));
                command.arg(set_up("tests/interop/python/client.py"));
                command
            }
        }
    }

    /// Sets and gets in each of these tables.
    #[track_caller]
    fn works(self, meta: SocketAddr, tables: &[&str]) {
        let mut command = self.command();
        command.arg(meta.to_string()).args(tables);
        let done = run(command, RUN_WITHIN).expect_code(0);
        assert_eq!(told(&done), all_ok(tables), "{self}\n{done}");
    }

    /// Neither sets nor gets, and says so.
    #[track_caller]
    fn fails(self, meta: SocketAddr, table: &str) {
        let mut command = self.command();
        command.args([&meta.to_string(), table]);
        let done = run(command, RUN_WITHIN).expect_code(1);
        assert_eq!(told(&done), [""; 0], "{self}\n{done}");
        assert!(done.stdout.contains(&format!("failed: table {table}: ")), "{self}\n{done}");
    }

    /// Sets and gets all the time, and asks for one table after the other; all must go well.
    #[track_caller]
    fn works_during(self, load: Duration, metas: &[SocketAddr], tables: &[&str]) {
        let load_s = load.as_secs().to_string();
        let unit = if matches!(self, RealClient::Python) { "" } else { "s" };
        let metas: Vec<String> = metas.iter().map(SocketAddr::to_string).collect();
        let mut command = self.command();
        command.args(["-load", &format!("{load_s}{unit}"), &metas.join(",")]).args(tables);
        let done = run(command, load + RUN_WITHIN).expect_code(0);
        let end = done.stdout.lines().last().unwrap_or_default();
        assert!(end.starts_with("load ok=") && end.ends_with(" failed=0"), "{self}\n{done}");
        println!("{self}: {end}");
    }

    /// Runs it, then opens one more table, which must fail with `err`, and soon.
    #[track_caller]
    fn is_refused(self, meta: SocketAddr, tables: &[&str], refused: &str, err: &str) {
        let mut command = self.command();
        command.args(["-expect-error", refused]).arg(meta.to_string()).args(tables);
        let done = run(command, RUN_WITHIN).expect_code(0);
        let mut told = told(&done);
        let last = told.pop().unwrap_or_default();
        assert_eq!(told, all_ok(tables), "{self}\n{done}");
        assert!(last.starts_with(&format!("error {refused}: ")), "{self}\n{done}");
        assert!(last.contains(err), "want {err}, {self}\n{done}");
    }
}

impl fmt::Display for RealClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RealClient::GoApache => "the Go client of Apache",
            RealClient::GoXiaomi => "the Go client of XiaoMi",
            RealClient::Python => "the Python client",
        })
    }
}

/// The lines of a program about tables; its client may log others.
fn told(done: &Finished) -> Vec<String> {
    let about_tables = |line: &&str| line.starts_with("ok ") || line.starts_with("error ");
    done.stdout.lines().filter(about_tables).map(str::to_owned).collect()
}

fn all_ok(tables: &[&str]) -> Vec<String> {
    tables.iter().map(|table| format!("ok {table}")).collect()
}

fn to(name: &str, cluster: &Cluster) -> String {
    record(name, &[cluster.meta.addr()])
}

#[track_caller]
fn is_served(proxy: &Proxy, table: &str, app_id: i32) {
    let what = format!("{table} is served as app {app_id}");
    eventually(&what, SOON, || {
        let answer = proxy.ask(table);
        answer.err.as_deref() == Some("ERR_OK") && answer.config().app_id == app_id
    });
}

#[test]
fn one_client_has_tables_on_two_clusters() {
    for client in CLIENTS {
        let (a, b) = (Cluster::start(&[("orders", 4)]), Cluster::start(&[("users", 8)]));
        let routes = Routes::new([("orders", to("a", &a)), ("users", to("b", &b))]);
        let proxy = routes.proxy();
        client.works(proxy.addr(), &["orders", "users"]);
        for (why, cluster, own, other) in
            [("a", &a, "orders", "users"), ("b", &b, "users", "orders")]
        {
            assert_eq!(cluster.replica.keys(FIRST), 1, "{client}: cluster {why} has its data");
            assert!(cluster.meta.calls_for(own) > 0, "{client}: cluster {why} was asked");
            assert_eq!(cluster.meta.calls_for(other), 0, "{client}: cluster {why}");
            assert_eq!(cluster.meta.violations(), [""; 0], "{client}: cluster {why}");
        }
    }
}

#[test]
fn an_unknown_table_is_an_error_with_a_name() {
    let a = Cluster::start(&[("orders", 4), ("nosuch", 4)]);
    let routes = Routes::new([("orders", to("a", &a))]);
    let proxy = routes.proxy();
    for client in CLIENTS {
        client.is_refused(proxy.addr(), &["orders"], "nosuch", "ERR_OBJECT_NOT_FOUND");
    }
    assert_eq!(a.meta.calls_for("nosuch"), 0, "no route leads there");
}

#[test]
fn a_follower_may_be_first_in_the_list() {
    for (why, knows_leader) in [("it names the leader", true), ("it knows no leader", false)] {
        // First whether the proxy asks in the order of the record, or in that of the addresses.
        let follower = MetaServer::start();
        let a = Cluster::start_on(addr("127.0.0.2:0"), &[("orders", 4)]).expect("a free port");
        let leader = knows_leader.then(|| a.meta.addr());
        follower.set(Behaviour::Follower { leader });
        let metas = [follower.addr(), a.meta.addr()];
        for (count, client) in (1..).zip(CLIENTS) {
            // A proxy of its own for each, which knows no leader yet.
            let routes = Routes::new([("orders", record("a", &metas))]);
            let proxy = routes.proxy();
            client.works(proxy.addr(), &["orders"]);
            assert_eq!(a.replica.keys(FIRST), count, "{why}");
        }
        assert!(follower.calls() > 0, "{why}: it was asked");
    }
}

/// These clients are from before servers sent host_port fields.
#[test]
fn old_clients_work_on_a_new_cluster_at_the_port_without_host_port_fields() {
    let a = Cluster::start(&[("orders", 4)]);
    let table = QueryCfgResponse::table(FIRST, 4, a.replica.addr()).with_host_ports();
    a.meta.put_table("orders", table);
    let routes = Routes::new([("orders", to("a", &a))]);
    let proxy = routes.proxy_with("listeners: [{listen: '127.0.0.1:0', host_port_fields: remove}]");
    for (count, client) in (1..).zip(CLIENTS) {
        client.fails(proxy.addr(), "orders");
        client.works(proxy.further_addr(0), &["orders"]);
        assert_eq!(a.replica.keys(FIRST), count, "{client}");
    }
}

#[test]
fn a_table_moves_between_two_runs() {
    for client in CLIENTS {
        let (a, b) = (
            Cluster::start(&[("orders", 4), ("users", 4)]),
            Cluster::start(&[("other", 1), ("orders", 8)]),
        );
        let (in_a, in_b) = (FIRST, FIRST + 1);
        let mut routes = Routes::new([("orders", to("a", &a)), ("users", to("a", &a))]);
        let proxy = routes.proxy();
        client.works(proxy.addr(), &["orders", "users"]);
        assert_eq!((a.replica.keys(in_a), b.replica.keys(in_b)), (1, 0), "{client}");

        routes.put("orders", to("b", &b));
        is_served(&proxy, "orders", in_b);
        client.works(proxy.addr(), &["orders", "users"]);
        assert_eq!((a.replica.keys(in_a), b.replica.keys(in_b)), (1, 1), "{client}");
        assert_eq!(a.replica.keys(FIRST + 1), 2, "{client}: users has stayed");
    }
}

/// The disaster by the route tool: the cluster is dead, its table is switched and later taken back.
#[test]
fn clients_go_through_a_switch_and_its_undo_by_the_route_tool() {
    let root = "/pegasus-cluster";
    let a = Cluster::start(&[("orders", 4)]);
    let b = Cluster::start(&[("other", 1), ("orders", 4)]);
    for (cluster, name) in [(&a, "a"), (&b, "b")] {
        cluster.meta.set_cluster(name);
    }
    let zk = ZooKeeper::start();
    zk.create(&format!("{root}/orders"), to("a", &a));
    let settings =
        format!("zookeeper: {{address: ['{}'], root: {root}, control_root: /control}}", zk.addr());
    let proxies = [1, 2, 3].map(|_| Proxy::builder(BINARY).config_extra(&settings).start());
    eventually("all are members", SOON, || {
        zk.exists("/control/members") && zk.children("/control/members").len() == 3
    });
    let scratch = Scratch::new("route");
    let route = |args: &[&str], code| {
        let mut command = Command::new(BINARY);
        command.arg("route").args(args).current_dir(scratch.path());
        command.args(["--zookeeper", &zk.addr().to_string(), "--root", root]);
        command.args(["--control-root", "/control"]);
        run(command, 6 * SOON).expect_code(code)
    };
    let clients = [RealClient::GoApache, RealClient::GoXiaomi];
    let all_work = |cluster: &Cluster, app_id: i32| {
        for client in clients {
            for proxy in &proxies {
                let before = cluster.replica.keys(app_id);
                client.works(proxy.addr(), &["orders"]);
                assert!(cluster.replica.keys(app_id) > before, "{client} wrote there");
            }
        }
    };
    all_work(&a, FIRST);
    let metas = b.meta.addr().to_string();
    let plan = ["switch", "orders", "--to", "b", "--metas", &metas, "--save", "plan.json"];
    let plan = [&plan[..], &["--not-for-go"]].concat();
    route(&plan, 5);
    a.meta.set(Behaviour::Mute);
    route(&plan, 0);
    let done = route(&["switch", "--plan", "plan.json", "--apply"], 0);
    assert_eq!(done.stdout.matches(": serves it, after ").count(), 3, "{done}");
    all_work(&b, FIRST + 1);
    a.meta.set(Behaviour::Leader);
    route(&["undo", "plan.json", "--apply"], 0);
    all_work(&a, FIRST);
}

#[test]
fn a_dead_cluster_is_an_error_with_a_name_and_others_work() {
    let alive = Cluster::start(&[("orders", 4)]);
    let silent = Cluster::start(&[("silent", 4)]);
    silent.meta.set(Behaviour::Mute);
    let gone = Cluster::start(&[("gone", 4)]);
    let address = gone.meta.addr();
    let routes = Routes::new([
        ("orders", to("alive", &alive)),
        ("silent", to("silent", &silent)),
        ("gone", to("gone", &gone)),
    ]);
    drop(gone);
    let proxy = routes.proxy();
    for client in CLIENTS {
        for dead in ["silent", "gone"] {
            client.is_refused(proxy.addr(), &["orders"], dead, "ERR_SERVICE_NOT_ACTIVE");
            client.works(proxy.addr(), &["orders"]);
        }
    }

    silent.meta.set(Behaviour::Leader);
    let gone = Cluster::start_on(address, &[("gone", 4)]).expect("its port is still free");
    for table in ["silent", "gone"] {
        is_served(&proxy, table, FIRST);
    }
    for client in CLIENTS {
        client.works(proxy.addr(), &["orders", "silent", "gone"]);
    }
    assert_eq!((silent.replica.keys(FIRST), gone.replica.keys(FIRST)), (3, 3));
}

#[test]
fn routes_are_znodes_in_both_forms() {
    let (a, b) = (Cluster::start(&[("orders", 4)]), Cluster::start(&[("users", 8)]));
    let zk = ZooKeeper::start();
    let older = format!(r#"{{"cluster": "b", "meta-addrs": ["{}"]}}"#, b.meta.addr());
    zk.create("/pegasus-cluster/orders", to("a", &a));
    zk.create("/pegasus-cluster/users", older);
    let proxy = Proxy::builder(BINARY).zookeeper([zk.addr()], "/pegasus-cluster").start();
    // So that no route is cached: the proxy has to find both when the client asks.
    eventually("the proxy has read the tables' names", SOON, || {
        proxy.ask("nosuch").err.as_deref() == Some("ERR_OBJECT_NOT_FOUND")
    });

    let client = RealClient::GoApache;
    client.is_refused(proxy.addr(), &["orders", "users"], "nosuch", "ERR_OBJECT_NOT_FOUND");
    assert_eq!((a.replica.keys(FIRST), b.replica.keys(FIRST)), (1, 1));

    a.put_table("users", FIRST + 1, 4);
    zk.set("/pegasus-cluster/users", to("a", &a));
    is_served(&proxy, "users", FIRST + 1);
    client.works(proxy.addr(), &["orders", "users"]);
    assert_eq!((a.replica.keys(FIRST), a.replica.keys(FIRST + 1)), (2, 1));
    assert_eq!(b.replica.keys(FIRST), 1, "nothing more is written there");
}

/// Many tables of one cluster, so that clients always have one left to ask for.
struct Many {
    cluster: Cluster,
    names: Vec<String>,
}

impl Many {
    fn new(count: usize) -> Self {
        let names: Vec<String> = (0..count).map(|n| format!("table-{n:03}")).collect();
        let tables: Vec<(&str, i32)> = names.iter().map(|name| (name.as_str(), 2)).collect();
        Many { cluster: Cluster::start(&tables), names }
    }

    fn names(&self) -> Vec<&str> {
        self.names.iter().map(String::as_str).collect()
    }

    fn routes(&self) -> Routes {
        Routes::new(self.names().into_iter().map(|name| (name, to("a", &self.cluster))))
    }

    /// Waits until clients have asked for so many more tables.
    fn wait_for_asks(&self, more: usize, within: Duration) {
        let asked = self.cluster.meta.calls() + more;
        eventually("clients go on", within, || self.cluster.meta.calls() >= asked);
    }

    /// All clients at once, under load while `meanwhile` happens; what it starts lives until they are done.
    fn under_load<T>(&self, load: Duration, metas: &[SocketAddr], meanwhile: impl FnOnce() -> T) {
        let names = self.names();
        thread::scope(|scope| {
            let run = |client: RealClient| {
                let names = &names;
                scope.spawn(move || client.works_during(load, metas, names))
            };
            let clients = CLIENTS.map(run);
            let _started = meanwhile();
            clients.into_iter().for_each(|client| client.join().unwrap());
        });
    }
}

#[test]
fn one_of_two_proxies_stops_and_no_client_notices() {
    let many = Many::new(100);
    let routes = many.routes();
    let [first, second] = [1, 2].map(|_| routes.proxy_with("stop: {min_age: 0}"));
    let metas = [first.addr(), second.addr()];
    many.under_load(Duration::from_secs(12), &metas, || {
        many.wait_for_asks(30, SOON);
        assert_eq!(first.terminate().code(), Some(0));
        many.wait_for_asks(100, SOON);
    });
}

/// As long as it takes until a Go client may be disconnected.
#[test]
#[ignore = "takes 80 s: scripts/test runs it beside another step"]
fn a_proxy_is_upgraded_in_place_and_no_client_notices() {
    let many = Many::new(200);
    let routes = many.routes();
    let old = routes.proxy();
    many.under_load(Duration::from_secs(80), &[old.addr()], || {
        many.wait_for_asks(10, SOON);
        let listen = format!("listen: {}", old.addr());
        let new = Proxy::builder(BINARY).routes_file(routes.path()).config_extra(&listen).start();
        old.process().signal("TERM");
        let within = Duration::from_secs(75);
        let status = old.process().wait(within).expect("its clients leave");
        assert_eq!(status.code(), Some(0));
        assert!(!old.log().contains("the grace time is over"), "{}", old.log());
        many.wait_for_asks(10, SOON);
        new
    });
}
