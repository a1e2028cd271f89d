//! `meta-proxy route`: the real binary against real ZooKeeper, real proxies and clusters that speak as real ones do.

use std::net::SocketAddr;
use std::process::Command;

use harness::meta_server::{Behaviour, MetaServer};
use harness::proxy::Proxy;
use harness::scratch::Scratch;
use harness::wait::eventually;
use harness::wire::QueryCfgResponse;
use harness::zookeeper::ZooKeeper;
use serde_json::Value;

use crate::run::{Finished, run};
use crate::support::{BINARY, SOON, addr};

pub const ROOT: &str = "/pegasus-cluster";

/// A cluster of two MetaServers, the first of them its leader.
pub struct Cluster {
    pub name: String,
    pub leader: MetaServer,
    pub follower: MetaServer,
    primary: SocketAddr,
}

impl Cluster {
    pub fn start(name: &str, primary: &str, tables: &[&str]) -> Self {
        Cluster::start_at(name, ["127.0.0.1:0", "127.0.0.1:0"], primary, tables)
    }

    /// With its MetaServers at these addresses.
    pub fn start_at(name: &str, metas: [&str; 2], primary: &str, tables: &[&str]) -> Self {
        let [leader, follower] = metas.map(|meta| MetaServer::start_on(addr(meta)).unwrap());
        follower.set(Behaviour::Follower { leader: Some(leader.addr()) });
        let cluster = Cluster { name: name.to_owned(), leader, follower, primary: addr(primary) };
        cluster.leader.set_cluster(name);
        tables.iter().for_each(|table| cluster.put(table, 4));
        cluster
    }

    pub fn put(&self, table: &str, partition_count: i32) {
        self.leader.put_table(table, QueryCfgResponse::table(1, partition_count, self.primary));
    }

    /// Its addresses, as `--metas` takes them.
    pub fn metas(&self) -> String {
        let mut metas = [self.leader.addr().to_string(), self.follower.addr().to_string()];
        metas.sort();
        metas.join(",")
    }

    pub fn record(&self) -> String {
        format!(r#"{{"cluster_name":"{}","meta_addrs":"{}"}}"#, self.name, self.metas())
    }

    /// Nobody answers any more.
    pub fn die(&self) {
        self.leader.set(Behaviour::Mute);
        self.follower.set(Behaviour::Mute);
    }

    pub fn revive(&self) {
        self.leader.set(Behaviour::Leader);
        self.follower.set(Behaviour::Follower { leader: Some(self.leader.addr()) });
    }
}

/// ZooKeeper, two clusters, three proxies.
pub struct World {
    pub zk: ZooKeeper,
    pub c3: Cluster,
    pub c4: Cluster,
    pub proxies: Vec<Proxy>,
    pub scratch: Scratch,
}

impl World {
    /// All tables are in both clusters, and routed to the first.
    pub fn new(tables: &[&str]) -> Self {
        let world = World::without_proxies(tables);
        World { proxies: (0..3).map(|_| world.proxy("")).collect(), ..world }
    }

    pub fn without_proxies(tables: &[&str]) -> Self {
        let zk = ZooKeeper::start();
        let c3 = Cluster::start("c3", "10.0.0.3:34801", tables);
        let c4 = Cluster::start("c4", "10.0.0.4:34801", tables);
        zk.create(ROOT, "");
        for table in tables {
            zk.create(&format!("{ROOT}/{table}"), c3.record());
        }
        World { zk, c3, c4, proxies: Vec::new(), scratch: Scratch::new("route") }
    }

    pub fn proxy(&self, more: &str) -> Proxy {
        let addr = self.zk.addr();
        Proxy::builder(BINARY)
            .config_extra(&format!(
                "zookeeper: {{address: ['{addr}'], root: {ROOT}, timeout: 6000{more}}}"
            ))
            .start()
    }

    /// `--proxies` for all of them.
    pub fn pages(&self) -> String {
        let pages: Vec<String> =
            self.proxies.iter().map(|proxy| proxy.admin().to_string()).collect();
        if pages.is_empty() { "none".to_owned() } else { pages.join(",") }
    }

    /// The command, in a folder of its own.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        let zookeeper = self.zk.addr().to_string();
        command.arg("route").args(args).current_dir(self.scratch.path());
        command.args(["--zookeeper", &zookeeper, "--root", ROOT, "--timeout-ms", "1500"]);
        command
    }

    /// Runs a command that writes nothing.
    #[track_caller]
    pub fn look(&self, args: &[&str], code: i32) -> Finished {
        run(self.command(args), 3 * SOON).expect_code(code)
    }

    /// Runs a command whose output goes to a file. Returns what it says beside that.
    #[track_caller]
    pub fn look_with(&self, args: &[&str], stdout: &str, code: i32) -> String {
        let mut command = self.command(args);
        let stdout = std::fs::OpenOptions::new().write(true).open(stdout).unwrap();
        let done = command.stdout(stdout).output().unwrap();
        assert_eq!(done.status.code(), Some(code), "{done:?}");
        String::from_utf8(done.stderr).unwrap()
    }

    /// Runs one that may.
    #[track_caller]
    pub fn write(&self, args: &[&str], code: i32) -> Finished {
        let mut command = self.command(args);
        command.args(["--proxies", &self.pages()]);
        run(command, 6 * SOON).expect_code(code)
    }

    /// The cluster that a table's clients are sent to, by each proxy.
    pub fn served(&self, table: &str) -> Vec<String> {
        let primary = |proxy: &Proxy| {
            let config = proxy.ask(table).config();
            match config.partitions.first().and_then(|partition| partition.primary) {
                Some(primary) if primary == self.c3.primary => "c3".to_owned(),
                Some(primary) if primary == self.c4.primary => "c4".to_owned(),
                other => format!("{} {other:?}", config.err),
            }
        };
        self.proxies.iter().map(primary).collect()
    }

    #[track_caller]
    pub fn all_serve(&self, table: &str, cluster: &str) {
        let want = vec![cluster.to_owned(); self.proxies.len()];
        assert_eq!(self.served(table), want, "{table}");
    }

    pub fn record(&self, table: &str) -> Option<String> {
        let data = self.zk.get(&format!("{ROOT}/{table}"))?;
        Some(String::from_utf8(data).unwrap())
    }

    /// The plan's file that the last command saved.
    pub fn plans(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.scratch.path()).unwrap();
        let mut names: Vec<String> =
            files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name.starts_with("route-"));
        names.sort();
        names
    }
}

pub fn json(done: &Finished) -> Value {
    serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}: {done}"))
}

#[test]
fn ls_get_and_export_show_what_is_there() {
    let world = World::new(&["items", "orders"]);
    world.zk.create(&format!("{ROOT}/odd"), "{");
    world.all_serve("orders", "c3");
    let ls = world.look(&["ls"], 0).stdout;
    let lines: Vec<Vec<&str>> = ls.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["TABLE", "CLUSTER", "METAS", "VERSION", "CHANGED"]);
    let names: Vec<&str> = lines[1..].iter().map(|line| line[0]).collect();
    assert_eq!(names, ["items", "odd", "orders"], "{ls}");
    assert_eq!(lines[3][1..4], ["c3", &world.c3.metas(), "0"]);
    let tables = |args: &[&str]| -> Vec<String> {
        let args = [&["ls", "--json"], args].concat();
        let told = json(&world.look(&args, 0));
        let routes = told["routes"].as_array().unwrap().iter();
        routes.map(|route| route["table"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(tables(&["--like", "o*s"]), ["orders"]);
    assert_eq!(tables(&["--cluster", "c3"]), ["items", "orders"]);
    assert_eq!(tables(&["--broken"]), ["odd"]);
    assert_eq!(tables(&["--cluster", "c9"]), Vec::<String>::new());

    let got = world.write(&["get", "orders"], 0).stdout;
    assert!(got.contains(&world.c3.record()) && got.contains("world:anyone:cdrwa"), "{got}");
    for proxy in &world.proxies {
        let line = got.lines().find(|line| line.starts_with(&proxy.admin().to_string())).unwrap();
        assert!(line.contains("c3 (") && line.contains("mzxid 0x"), "{line}");
    }
    let told = json(&world.write(&["get", "items", "--json"], 0));
    assert_eq!(told["proxies"][0]["serves"], "not cached");
    let none = world.look(&["get", "nosuch"], 1);
    assert!(none.stderr.contains("/pegasus-cluster/nosuch: no such znode"), "{none}");

    let export = world.look(&["export"], 3);
    assert!(export.stderr.contains("odd: left out"), "{export}");
    let routes = world.scratch.write("r.json", &export.stdout);
    let mut check = Command::new(BINARY);
    check.args(["check", "--routes"]).arg(&routes);
    run(check, SOON).expect_code(0);
    let exported: Value = serde_json::from_str(&export.stdout).unwrap();
    assert_eq!(exported["orders"].to_string(), world.c3.record());
}

#[test]
fn set_and_rm_write_one_table_and_wait_until_every_proxy_serves_it() {
    let world = World::new(&["orders"]);
    world.all_serve("orders", "c3");
    world.c3.leader.remove_table("orders");
    let before =
        format!(r#"{{"cluster":"c3","meta-addrs":["{}"],"owner":"pay"}}"#, world.c3.leader.addr());
    world.zk.set(&format!("{ROOT}/orders"), &before);
    world.zk.create(&format!("{ROOT}/fresh"), world.c4.record());
    world.c4.put("fresh", 4);
    let metas = world.c4.metas();

    let set = ["set", "orders", "--cluster", "c4", "--metas", &metas];
    let stale = world.write(&[&set[..], &["--if-version", "0"]].concat(), 3);
    assert!(stale.stderr.contains("want version 0, got 1"), "{stale}");
    let done = world.write(&set, 0);
    let after = format!(r#"{{"cluster_name":"c4","meta_addrs":"{metas}","owner":"pay"}}"#);
    assert!(done.stdout.contains(&format!("- {before}\n+ {after}\n")), "{done}");
    assert_eq!(world.record("orders").unwrap(), after, "unknown keys are kept");
    assert_eq!(done.stdout.matches(": serves it, after ").count(), 3, "{done}");
    world.all_serve("orders", "c4");
    // Twice: it is so already, and the tool looks at the proxies again.
    let again = json(&world.write(&[&set[..], &["--json"]].concat(), 0));
    assert_eq!((&again["done"], &again["exit_code"]), (&1.into(), &0.into()), "{again}");
    assert_eq!(again["proxies"].as_array().unwrap().len(), 3);

    // Its addresses are known by the routes that name it.
    let new = world.write(&["set", "items", "--cluster", "c4"], 5);
    assert!(
        new.stderr.contains("does not have the table") && new.stderr.contains("--target-accepted"),
        "{new}"
    );
    assert_eq!(world.record("items"), None, "refused, nothing is written");
    world.c4.put("items", 4);
    world.write(&["set", "items", "--cluster", "c4"], 0);
    world.all_serve("items", "c4");

    world.write(&["rm", "orders"], 0);
    assert_eq!(world.record("orders"), None);
    for served in world.served("orders") {
        assert!(served.starts_with("ERR_OBJECT_NOT_FOUND"), "{served}");
    }
    world.write(&["rm", "orders"], 1);
}

#[test]
fn a_proxy_that_does_not_serve_it_keeps_the_tool_from_saying_done() {
    let world = World::new(&["orders"]);
    world.all_serve("orders", "c3");
    world.c3.die();
    world.proxies[1].pause();
    let metas = world.c4.metas();
    let set = ["set", "orders", "--cluster", "c4", "--metas", &metas, "--wait-s", "2"];
    let done = world.write(&set, 4);
    assert_eq!(done.stdout.matches(": serves it, after ").count(), 2, "{done}");
    let told = format!("{}: DOES NOT SERVE IT", world.proxies[1].admin());
    assert!(done.stdout.contains(&told), "{done}");
    world.proxies[1].resume();
    world.write(&set, 0);
    world.all_serve("orders", "c4");
    // Nobody said which proxies there are: nothing is written.
    let unknown = world.look(&["rm", "orders"], 2);
    assert!(unknown.stderr.contains("--proxies"), "{unknown}");
    assert!(world.record("orders").is_some());
}

#[test]
fn the_rules_refuse_a_set_that_would_hurt_and_each_can_be_set_aside() {
    let world = World::new(&["orders"]);
    let metas = world.c4.metas();
    let one = world.c4.leader.addr().to_string();
    let set = |more: &[&str], metas: &str, code| {
        let args = [&["set", "orders", "--cluster", "c4", "--metas", metas], more].concat();
        world.write(&args, code)
    };
    let refused = set(&[], &metas, 5);
    assert!(refused.stderr.contains("the leader of c3 answers at"), "{refused}");
    world.c4.put("orders", 8);
    let refused = set(&["--split-brain-accepted"], &metas, 5);
    assert!(refused.stderr.contains("it has 4 partitions, and 8 in c4"), "{refused}");
    world.c3.die();
    let refused = set(&[], &one, 5);
    assert!(refused.stderr.contains("is one address"), "{refused}");
    world.c4.leader.set_env("orders", "replica.deny_client_request", "reconfig*all");
    let refused = set(&[], &metas, 5);
    assert!(refused.stderr.contains("c4 denies clients of the table: reconfig*all"), "{refused}");
    world.c4.leader.set_cluster("c5");
    let refused = set(&["--target-accepted"], &metas, 5);
    assert!(refused.stderr.contains("the route says c4, the cluster says c5"), "{refused}");
    world.c4.die();
    let refused = set(&["--other-name"], &metas, 5);
    assert!(refused.stderr.contains("no leader of c4 answers"), "{refused}");
    assert_eq!(world.record("orders").unwrap(), world.c3.record(), "nothing was written");
    assert_eq!(world.plans(), Vec::<String>::new());
    world.c4.revive();
    set(&["--target-accepted", "--other-name"], &metas, 0);
    world.all_serve("orders", "c4");
    // Other addresses of one cluster.
    world.c4.leader.set_cluster("c4");
    world.c4.leader.set_env("orders", "replica.deny_client_request", "");
    set(&["--not-for-go"], &one, 0);
    eventually("all serve it", SOON, || world.served("orders").iter().all(|served| served == "c4"));
}
