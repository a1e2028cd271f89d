//! `route move`, `finish` and `fence`: the real tool, real ZooKeeper, three real proxies, a real Go client that writes
//! numbered keys, and two stand-in clusters that keep data, deny late and ship to each other.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;

use harness::pegasus::writer::{Writer, Written};
use harness::pegasus::{Options, Pegasus};
use harness::proxy::Proxy;
use harness::relay::Relay;
use harness::scratch::Scratch;
use harness::wait::eventually;
use harness::zookeeper::ZooKeeper;
use meta_proxy::ops::admin_move;
use meta_proxy::ops::admin_rpc::{self, DENY_ENV};

use crate::pegasus::ask;
use crate::run::{Finished, run};
use crate::support::{BINARY, SOON, set_up};

mod trouble;

const ROOT: &str = "/pegasus-cluster";
const CONTROL: &str = "/pegasus-control";
const PARTITIONS: usize = 4;
const DENIED: &str = "reconfig*all";

/// All tables are in c3, which duplicates them to c4.
struct World {
    zk: ZooKeeper,
    /// Between the tool and ZooKeeper.
    relay: Relay,
    a: Pegasus,
    b: Pegasus,
    proxies: Vec<Proxy>,
    scratch: Scratch,
}

impl World {
    fn new(tables: &[&str]) -> Self {
        World::with(tables, Options::default(), Options::default())
    }

    fn with(tables: &[&str], of_a: Options, of_b: Options) -> Self {
        let (a, b) = (Pegasus::start("c3", of_a), Pegasus::start("c4", of_b));
        a.join(&b);
        let zk = ZooKeeper::start();
        zk.create(ROOT, "");
        for (index, table) in tables.iter().enumerate() {
            a.create_table(table, index as i32 + 1, PARTITIONS);
            b.create_table(table, index as i32 + 50, PARTITIONS);
            ask(a.leader(), &admin_move::add_duplication(1, table, "c4"));
            zk.create(&format!("{ROOT}/{table}"), record("c3", &a));
        }
        let addr = zk.addr();
        let settings = format!(
            "zookeeper: {{address: ['{addr}'], root: {ROOT}, timeout: 6000, control_root: {CONTROL}}}"
        );
        let proxy = |_| Proxy::builder(BINARY).config_extra(&settings).start();
        let proxies: Vec<Proxy> = (0..3).map(proxy).collect();
        let members = format!("{CONTROL}/members");
        eventually("all are members", SOON, || {
            zk.exists(&members) && zk.children(&members).len() == 3
        });
        let relay = Relay::to(zk.addr());
        let world = World { zk, relay, a, b, proxies, scratch: Scratch::new("moving") };
        for table in tables {
            eventually("all primaries ship", 3 * SOON, || {
                world.check(table).status.code() == Some(0)
            });
        }
        world
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.arg("route").args(args).current_dir(self.scratch.path());
        let zookeeper = self.relay.addr().to_string();
        command.args(["--zookeeper", &zookeeper, "--root", ROOT, "--timeout-ms", "1500"]);
        command.args(["--control-root", CONTROL]);
        command
    }

    #[track_caller]
    fn tool(&self, args: &[&str], code: i32) -> Finished {
        run(self.command(args), 12 * SOON).expect_code(code)
    }

    fn move_args<'a>(&self, table: &'a str, metas: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        [&["move", table, "--to", "c4", "--metas", metas], more].concat()
    }

    /// The checks of a move to c4.
    fn check(&self, table: &str) -> Finished {
        run(self.command(&self.move_args(table, &self.b.metas(), &[])), 6 * SOON)
    }

    #[track_caller]
    fn move_there(&self, table: &str, more: &[&str], code: i32) -> Finished {
        let more = [more, &["--apply"]].concat();
        self.tool(&self.move_args(table, &self.b.metas(), &more), code)
    }

    /// Starts a move, and returns when it has said this.
    fn start_move(&self, table: &str, more: &[&str], until: &str) -> Running {
        let more = [more, &["--apply"]].concat();
        let mut command = self.command(&self.move_args(table, &self.b.metas(), &more));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        while !said.lines().any(|line| line.starts_with(until)) {
            let read = out.read_line(&mut said).unwrap();
            assert!(read > 0, "it ended before it said {until:?}:\n{said}");
        }
        Running { child, out, said }
    }

    fn writer(&self, table: &str, proxy: usize) -> Writer {
        let addr = self.proxies[proxy].addr();
        let writer = Writer::start(&set_up("target/interop/go-apache"), addr, table);
        eventually("it writes", 3 * SOON, || writer.acknowledged() > 50);
        writer
    }

    fn record(&self, table: &str) -> String {
        String::from_utf8(self.zk.get(&format!("{ROOT}/{table}")).unwrap()).unwrap()
    }

    /// The id of its duplication from c3.
    fn duplication(&self, table: &str) -> i32 {
        let answer = ask(self.a.leader(), &admin_rpc::query_duplication(1, table));
        admin_move::read_duplications(&answer, 1).unwrap()[0].id
    }

    fn has_journal(&self, table: &str) -> bool {
        self.zk.exists(&format!("{CONTROL}/moves/{table}"))
    }

    fn denied(&self, table: &str, value: &str) -> bool {
        self.a.denied(table).iter().all(|denied| denied == value)
    }

    /// The table lives in c4, c3 is closed and ships no more, and c4 has all that was acknowledged.
    #[track_caller]
    fn is_moved(&self, table: &str, writer: Writer) {
        let before = writer.acknowledged();
        eventually("it goes on writing", 3 * SOON, || writer.acknowledged() > before + 50);
        assert!(self.denied(table, DENIED), "{:?}", self.a.denied(table));
        assert_eq!(self.record(table), record("c4", &self.b));
        assert_eq!(duplications(&self.a, table), 0);
        self.has_all(&self.b, table, &writer.stop());
    }

    /// The table lives in c3, takes writes and ships to c4, and nothing is left of the move.
    #[track_caller]
    fn is_back(&self, table: &str, writer: Writer) {
        eventually("nobody is denied", 3 * SOON, || self.denied(table, ""));
        let before = writer.acknowledged();
        eventually("it goes on writing", 3 * SOON, || writer.acknowledged() > before + 50);
        assert_eq!(self.record(table), record("c3", &self.a));
        assert_eq!((duplications(&self.a, table), duplications(&self.b, table)), (1, 0));
        assert!(!self.has_journal(table));
        self.has_all(&self.a, table, &writer.stop());
    }

    #[track_caller]
    fn has_all(&self, cluster: &Pegasus, table: &str, written: &Written) {
        println!(
            "{table}: {} keys, gap {:?}, errors {:?}",
            written.last.len(),
            written.longest_gap,
            written.errors
        );
        assert_eq!(written.missing_in(cluster, table), [] as [String; 0], "{}", cluster.name());
    }
}

struct Running {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
    said: String,
}

impl Running {
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// Its output, when it ends with this code.
    #[track_caller]
    fn end(mut self, code: i32) -> String {
        while self.out.read_line(&mut self.said).unwrap() > 0 {}
        let ended = self.child.wait_with_output().unwrap();
        let said = self.said + &String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(code), "{said}");
        said
    }
}

fn record(name: &str, cluster: &Pegasus) -> String {
    format!(r#"{{"cluster_name":"{name}","meta_addrs":"{}"}}"#, cluster.metas())
}

fn duplications(cluster: &Pegasus, table: &str) -> usize {
    let answer = ask(cluster.leader(), &admin_rpc::query_duplication(1, table));
    admin_move::read_duplications(&answer, 1).unwrap().len()
}

#[test]
fn a_table_moves_and_every_acknowledged_write_is_there() {
    let world = World::new(&["orders"]);
    let writer = world.writer("orders", 0);
    let shown = world.check("orders");
    assert!(shown.stdout.contains("ok   c3 -> c4: duplication in DS_LOG"), "{shown}");
    assert!(shown.stdout.contains("ok   c3: every primary answers a probe"), "{shown}");
    assert!(shown.stdout.contains("Nothing is changed"), "{shown}");
    assert!(!world.has_journal("orders") && world.denied("orders", ""), "{shown}");
    let small = world.move_there("orders", &["--max-refused", "1s"], 5);
    assert!(small.stdout.contains("STOP --max-refused: want 6 s at least"), "{small}");

    let moved = world.move_there("orders", &[], 0);
    assert_eq!(moved.stdout.matches(": serves it").count(), 3, "{moved}");
    let ls = world.tool(&["ls"], 0);
    assert!(ls.stderr.contains("c3 still denies clients of the table"), "{ls}");
    let again = world.move_there("orders", &[], 0);
    assert!(again.stdout.contains("it is routed to c4"), "{again}");
    let refused = world.tool(&["finish", "orders", "--apply"], 5);
    assert!(refused.stderr.contains("--clients-moved"), "{refused}");
    world.is_moved("orders", writer);
    world.tool(&["finish", "orders", "--clients-moved", "--apply"], 0);
    eventually("c3 takes clients", 3 * SOON, || world.denied("orders", ""));
    assert!(!world.has_journal("orders"));
}

#[test]
fn a_move_that_keeps_the_way_back_goes_there_and_back() {
    let world = World::new(&["orders"]);
    let writer = world.writer("orders", 1);
    let moved = world.move_there("orders", &["--keep-undo"], 0);
    assert!(moved.stdout.contains("1 c4 duplicates to c3"), "{moved}");
    let acknowledged = writer.acknowledged();
    eventually("c4 takes writes", 3 * SOON, || writer.acknowledged() > acknowledged + 50);
    let back = world.tool(&["move", "orders", "--back", "--apply"], 3);
    assert!(back.stderr.contains("route finish orders --clients-moved"), "{back}");
    world.tool(&["finish", "orders", "--clients-moved", "--apply"], 0);
    let metas = world.a.metas();
    eventually("c4 ships to c3", 3 * SOON, || {
        run(world.command(&["move", "orders", "--to", "c3", "--metas", &metas]), 6 * SOON)
            .status
            .success()
    });
    world.tool(&["move", "orders", "--to", "c3", "--metas", &metas, "--apply"], 0);
    let acknowledged = writer.acknowledged();
    eventually("c3 takes writes", 3 * SOON, || writer.acknowledged() > acknowledged + 50);
    assert_eq!(world.record("orders"), record("c3", &world.a));
    world.has_all(&world.a, "orders", &writer.stop());
}

#[test]
fn a_move_past_its_limit_or_with_a_signal_goes_back() {
    let world = World::new(&["items", "orders", "users"]);
    let writers = ["items", "orders", "users"].map(|table| world.writer(table, 2));
    let [items, orders, users] = writers;
    thread::scope(|scope| {
        scope.spawn(|| {
            let running = world.start_move("items", &["--max-refused", "7s"], "2 ");
            world.a.hold_shipping("items", true);
            let said = running.end(1);
            assert!(said.contains("writes were refused for 7 s, the limit"), "{said}");
            assert!(
                said.contains("everything is back") && said.contains("stay refused up to"),
                "{said}"
            );
            world.a.hold_shipping("items", false);
            world.is_back("items", items);
        });
        scope.spawn(|| {
            let running = world.start_move("orders", &["--keep-undo"], "2 ");
            running.signal("-TERM");
            let said = running.end(1);
            assert!(
                said.contains("a signal came") && said.contains("everything is back"),
                "{said}"
            );
            world.is_back("orders", orders);
        });
        scope.spawn(|| {
            world.start_move("users", &["--keep-undo"], "3 ").kill();
            let ls = world.tool(&["ls"], 0);
            assert!(
                ls.stderr.contains("users from c3 to c4") && ls.stderr.contains("--back --apply"),
                "{ls}"
            );
            let told = world.tool(&["move", "users", "--back", "--apply"], 0);
            assert!(told.stdout.contains("everything is back"), "{told}");
            world.is_back("users", users);
        });
    });
}

#[test]
#[ignore = "takes long: scripts/test --all runs it"]
fn a_move_to_a_cluster_that_is_lost_goes_back() {
    let world = World::new(&["items", "orders"]);
    let [items, orders] = ["items", "orders"].map(|table| world.writer(table, 2));
    let running = world.start_move("items", &["--max-refused", "6s"], "2 ");
    world.start_move("orders", &[], "3 ").kill();
    world.b.mute();
    world.tool(&["move", "orders", "--back", "--apply"], 0);
    let said = running.end(1);
    assert!(said.contains("everything is back"), "{said}");
    for table in ["items", "orders"] {
        eventually("nobody is denied", 3 * SOON, || world.denied(table, ""));
        assert!(!world.has_journal(table));
    }
    world.b.revive();
    world.is_back("items", items);
    world.is_back("orders", orders);
}

#[test]
#[ignore = "takes long: scripts/test --all runs it"]
fn a_tool_that_is_killed_after_any_step_goes_on_where_it_was() {
    let steps = ["1 ", "2 ", "3 ", "5 ", "6 ", "7 ", "8 "];
    let tables: Vec<String> = (0..steps.len()).map(|step| format!("t{step}")).collect();
    let names: Vec<&str> = tables.iter().map(String::as_str).collect();
    let world = World::new(&names);
    thread::scope(|scope| {
        for (table, step) in names.iter().zip(steps) {
            let world = &world;
            scope.spawn(move || {
                let writer = world.writer(table, 0);
                world.start_move(table, &["--keep-undo"], step).kill();
                let done = world.move_there(table, &["--keep-undo"], 0);
                assert!(done.stdout.contains("done: c4 has the table"), "{step}: {done}");
                assert_eq!(duplications(&world.b, table), 1, "{step}");
                world.is_moved(table, writer);
            });
        }
    });
}

#[test]
#[ignore = "takes long: scripts/test --all runs it"]
fn servers_that_fail_over_and_a_zookeeper_that_is_lost_do_not_hurt_a_move() {
    let world = World::new(&["items", "orders"]);
    let [items, orders] = ["items", "orders"].map(|table| world.writer(table, 0));
    let running = world.start_move("items", &[], "3 ");
    world.a.fail_over_primary("items", 1);
    world.a.fail_over_meta();
    world.b.fail_over_meta();
    running.end(0);
    world.is_moved("items", items);

    let running = world.start_move("orders", &[], "3 ");
    world.relay.refuse();
    world.relay.cut();
    thread::sleep(2 * world.a.config_sync_interval());
    world.relay.pass();
    running.end(0);
    world.is_moved("orders", orders);
}

#[test]
fn a_route_that_is_changed_by_hand_stops_a_move() {
    let world = World::new(&["items", "orders", "users"]);
    let items = world.writer("items", 0);
    let running = world.start_move("items", &[], "3 ");
    world.zk.set(&format!("{ROOT}/items"), record("c3", &world.a));
    let said = running.end(1);
    assert!(said.contains("somebody wrote the route"), "{said}");
    world.is_back("items", items);

    // Somebody has the clients go to c4 before c4 has all: nothing is lost, and it is said.
    let users = world.writer("users", 0);
    world.a.hold_shipping("users", true);
    let running = world.start_move("users", &[], "2 ");
    world.zk.set(&format!("{ROOT}/users"), record("c4", &world.b));
    eventually("it closes c3", 3 * SOON, || world.denied("users", DENIED));
    world.a.hold_shipping("users", false);
    let said = running.end(0);
    assert!(said.contains("WARN: somebody else wrote the route to c4"), "{said}");
    assert_eq!(duplications(&world.a, "users"), 0);
    drop(users);

    let orders = world.writer("orders", 0);
    let running = world.start_move("orders", &[], "3 ");
    world.zk.set(
        &format!("{ROOT}/orders"),
        r#"{"cluster_name":"c9","meta_addrs":"127.0.0.1:1,127.0.0.1:2"}"#,
    );
    let said = running.end(4);
    assert!(said.contains("somebody changed the route: c9"), "{said}");
    assert!(said.contains("goes on denying clients of the table"), "{said}");
    assert!(world.has_journal("orders"));
    // The way that it names.
    let way = said.split("to take it back: meta-proxy route ").nth(1).unwrap();
    let way: Vec<&str> = way.split(", then").next().unwrap().split(' ').collect();
    world.tool(&way, 0);
    let back = world.tool(&["move", "orders", "--back", "--apply"], 0);
    assert!(back.stdout.contains("WARN: somebody wrote the route"), "{back}");
    world.is_back("orders", orders);
}

#[test]
fn a_duplication_that_is_made_anew_or_a_table_that_is_dropped_takes_a_move_back() {
    let world = World::new(&["items", "orders"]);
    let items = world.writer("items", 0);
    let running = world.start_move("items", &[], "2 ");
    world.a.hold_shipping("items", true);
    let id = world.duplication("items");
    ask(world.a.leader(), &admin_move::remove_duplication(1, "items", id));
    ask(world.a.leader(), &admin_move::add_duplication(1, "items", "c4"));
    world.a.hold_shipping("items", false);
    let said = running.end(1);
    assert!(said.contains("was made anew") && said.contains("everything is back"), "{said}");
    world.is_back("items", items);

    let running = world.start_move("orders", &[], "2 ");
    world.b.drop_table("orders");
    let said = running.end(1);
    assert!(said.contains("dropped or made anew in the new cluster"), "{said}");
    assert!(!world.has_journal("orders"), "{said}");
    eventually("nobody is denied", 3 * SOON, || world.denied("orders", ""));
}

#[test]
fn metaservers_that_are_replaced_meanwhile_hurt_neither_a_move_nor_its_end() {
    let world = World::new(&["items", "orders"]);
    let items = world.writer("items", 0);
    let fewer = |cluster: &Pegasus| cluster.metas().rsplit_once(',').unwrap().0.to_owned();
    let route = |table: &str, cluster: &str, metas: &str| {
        let record = format!(r#"{{"cluster_name":"{cluster}","meta_addrs":"{metas}"}}"#);
        world.zk.set(&format!("{ROOT}/{table}"), record);
    };
    world.move_there("items", &[], 0);
    route("items", "c4", &fewer(&world.b));
    world.tool(&["finish", "items", "--clients-moved", "--apply"], 0);
    eventually("c3 takes clients", 3 * SOON, || world.denied("items", ""));
    world.has_all(&world.b, "items", &items.stop());

    // Other addresses of the same cluster are a write of the route all the same.
    let orders = world.writer("orders", 0);
    let running = world.start_move("orders", &[], "3 ");
    let refused = world.tool(&["set", "orders", "--cluster", "c3", "--metas", &world.a.metas()], 5);
    assert!(refused.stderr.contains("--moving-accepted"), "{refused}");
    route("orders", "c3", &fewer(&world.a));
    let said = running.end(1);
    assert!(said.contains("somebody wrote the route"), "{said}");
    route("orders", "c3", &world.a.metas());
    world.is_back("orders", orders);
}

#[test]
fn a_proxy_that_is_cut_off_from_zookeeper_is_not_forgotten() {
    let world = World::new(&["orders"]);
    let relay = Relay::to(world.zk.addr());
    let settings = format!(
        "zookeeper: {{address: ['{}'], root: {ROOT}, timeout: 3000, control_root: {CONTROL}}}",
        relay.addr()
    );
    let alone = Proxy::builder(BINARY).config_extra(&settings).start();
    let members = || world.zk.children(&format!("{CONTROL}/members")).len();
    eventually("it is a member", SOON, || members() == 4);
    let writer = world.writer("orders", 0);
    let running = world.start_move("orders", &["--wait-s", "2"], "2 ");
    relay.refuse();
    relay.cut();
    eventually("it is no member any more", 3 * SOON, || members() == 3);
    let said = running.end(4);
    let page = alone.admin().to_string();
    assert!(said.contains(&format!("{page}: DOES NOT SERVE IT")), "{said}");
    let again = world.move_there("orders", &["--wait-s", "2"], 4);
    assert!(again.stderr.contains(&page) && again.stderr.contains("--proxies"), "{again}");
    relay.pass();
    eventually("it is a member again", 3 * SOON, || members() == 4);
    world.move_there("orders", &[], 0);
    world.is_moved("orders", writer);

    relay.refuse();
    relay.cut();
    eventually("it is no member any more", 3 * SOON, || members() == 3);
    let finish = ["finish", "orders", "--clients-moved", "--apply", "--wait-s", "2"];
    let refused = world.tool(&finish, 5);
    assert!(refused.stderr.contains(&page), "{refused}");
    assert!(world.denied("orders", DENIED) && world.has_journal("orders"));
}

#[test]
fn a_move_whose_journal_is_lost_goes_back_and_what_is_left_can_be_opened_and_forgotten() {
    let world = World::new(&["items", "orders"]);
    let journal = |table: &str| format!("{CONTROL}/moves/{table}");
    let items = world.writer("items", 0);
    let running = world.start_move("items", &["--keep-undo"], "3 ");
    world.zk.delete(&journal("items"));
    let said = running.end(1);
    assert!(said.contains("everything is back"), "{said}");
    world.is_back("items", items);

    // The tool is killed, and then its journal is lost.
    let orders = world.writer("orders", 0);
    world.start_move("orders", &[], "3 ").kill();
    world.zk.delete(&journal("orders"));
    let none = world.tool(&["move", "orders", "--back", "--apply"], 1);
    assert!(none.stderr.contains("route finish orders --from"), "{none}");
    world.tool(&["finish", "orders", "--from", "c3", "--apply"], 0);
    world.is_back("orders", orders);

    // Its table is dropped: nothing can end the move, and it is forgotten.
    world.start_move("items", &[], "3 ").kill();
    world.a.drop_table("items");
    let told = world.tool(&["move", "items", "--back", "--apply"], 4);
    assert!(told.stderr.contains("c3 does not have the table any more"), "{told}");
    assert!(!world.has_journal("items"), "{told}");
    world.start_move("orders", &[], "3 ").kill();
    world.b.mute();
    let shown = world.tool(&["finish", "orders", "--forget"], 0);
    assert!(shown.stdout.contains("c3 DENIES its clients: reconfig*write"), "{shown}");
    assert!(shown.stdout.contains("it is not known what c4 does"), "{shown}");
    assert!(world.has_journal("orders"), "only shown");
    world.tool(&["finish", "orders", "--forget", "--apply"], 0);
    assert!(!world.has_journal("orders"));
    world.tool(&["finish", "orders", "--from", "c3", "--apply"], 0);
    eventually("nobody is denied", 3 * SOON, || world.denied("orders", ""));
}

#[test]
fn a_move_that_probes_goes_on_as_soon_as_every_primary_refuses_writes() {
    let world = World::new(&["orders"]);
    let writer = world.writer("orders", 0);
    let moved = world.move_there("orders", &["--probe", "--keep-undo"], 0);
    assert!(moved.stdout.contains("done: c4 has the table"), "{moved}");
    world.is_moved("orders", writer);
}

#[test]
fn a_check_stops_a_move_before_anything_is_changed() {
    let world = World::new(&["orders"]);
    let stops = |why: &str| {
        let stopped = world.move_there("orders", &[], 5);
        assert!(
            stopped.stdout.lines().any(|line| line.starts_with("STOP") && line.contains(why)),
            "{stopped}"
        );
        assert!(!world.has_journal("orders") && world.denied("orders", ""), "{why}");
        assert_eq!(world.record("orders"), record("c3", &world.a), "{why}");
    };
    world.a.set_bulk_loading("orders", true);
    stops("bulk loading");
    world.a.set_bulk_loading("orders", false);
    ask(world.b.leader(), &admin_move::set_env(1, "orders", DENY_ENV, "timeout*write"));
    stops("c4: the table denies its clients: timeout*write");
    ask(world.b.leader(), &admin_move::delete_env(1, "orders", DENY_ENV));
    let id = world.duplication("orders");
    ask(world.a.leader(), &admin_move::remove_duplication(1, "orders", id));
    stops("the table is not duplicated there");
    world.b.mute();
    stops("c4: no leader answers");
    world.b.revive();
}

#[test]
fn a_cluster_that_comes_back_is_fenced() {
    let world = World::new(&["items", "orders"]);
    world.zk.set(&format!("{ROOT}/orders"), record("c4", &world.b));
    let metas = world.a.metas();
    let args = ["fence", "c3", "--metas", &metas];
    let shown = world.tool(&args, 0);
    assert!(shown.stdout.contains("orders") && !shown.stdout.contains("items"), "{shown}");
    assert!(world.denied("orders", "") && duplications(&world.a, "orders") == 1);
    let fenced = world.tool(&[&args[..], &["--apply"]].concat(), 0);
    assert!(fenced.stdout.contains("WARN"), "{fenced}");
    eventually("denied", 3 * SOON, || world.denied("orders", DENIED));
    assert_eq!(duplications(&world.a, "orders"), 0);
    assert!(
        world.denied("items", "") && duplications(&world.a, "items") == 1,
        "it is routed to c3"
    );
    // One cluster by two names is not closed for its own clients.
    let record = record("c3-by-another-name", &world.a);
    world.zk.set(&format!("{ROOT}/items"), record);
    let own = world.tool(&args, 0);
    assert!(!own.stdout.contains("items: it is routed"), "{own}");
    world.zk.delete(&format!("{ROOT}/items"));
    // It is left so on purpose, and never silently, though no route names c3 any more.
    let verify = world.tool(&["verify"], 3);
    let told = "ENV      orders on c3 denies clients: reconfig*all (allowed: it is routed to c4";
    assert!(verify.stdout.contains(told), "{verify}");
    let open = ["finish", "orders", "--from", "c3", "--metas", &metas];
    world.tool(&[&open[..], &["--apply"]].concat(), 5);
    world.tool(&[&open[..], &["--clients-moved", "--apply"]].concat(), 0);
    eventually("c3 takes clients", 3 * SOON, || world.denied("orders", ""));
    assert!(world.zk.children(&format!("{CONTROL}/fenced")).is_empty());
}

#[test]
fn a_table_is_fenced_where_the_last_plan_took_it_from() {
    let world = World::new(&["items", "orders"]);
    let metas = world.b.metas();
    world.a.mute();
    let set = ["set", "orders", "--cluster", "c4", "--metas", &metas];
    world.tool(&set, 0);
    world.a.revive();
    world.tool(&["fence", "nosuch", "--apply"], 2);
    let fenced = world.tool(&["fence", "orders", "--apply"], 0);
    assert!(fenced.stdout.contains("orders: c3 denies its clients"), "{fenced}");
    eventually("denied", 3 * SOON, || world.denied("orders", DENIED));
    assert_eq!(duplications(&world.a, "orders"), 0);
    assert!(world.denied("items", ""));
}

#[test]
fn without_a_control_znode_the_move_is_in_a_file_and_ends_as_json() {
    let world = World::new(&["orders"]);
    let writer = world.writer("orders", 0);
    let pages: Vec<String> = world.proxies.iter().map(|proxy| proxy.admin().to_string()).collect();
    let tool = |args: &[&str], code| {
        let mut command = Command::new(BINARY);
        command.arg("route").args(args).current_dir(world.scratch.path());
        command.args(["--zookeeper", &world.zk.addr().to_string(), "--root", ROOT, "--json"]);
        command.args(["--timeout-ms", "1500", "--proxies", &pages.join(",")]);
        let done = run(command, 12 * SOON).expect_code(code);
        serde_json::from_str::<serde_json::Value>(&done.stdout)
            .unwrap_or_else(|e| panic!("{e}: {done}"))
    };
    let metas = world.b.metas();
    let planned = tool(&world.move_args("orders", &metas, &[]), 0);
    assert!(planned["checks"].is_array() || planned.is_object(), "{planned}");
    let file = world.scratch.path().join("route-move-orders.json");
    assert!(!file.exists(), "nothing is changed");
    let done = tool(&world.move_args("orders", &metas, &["--apply"]), 0);
    assert_eq!(done["exit_code"], 0, "{done}");
    assert!(file.exists(), "it tells that the old cluster denies its clients");
    eventually("the old cluster is closed", 3 * SOON, || world.denied("orders", DENIED));
    let written = writer.stop();
    assert_eq!(written.missing_in(&world.b, "orders"), [""; 0]);
    let ended = tool(&["finish", "orders", "--clients-moved", "--apply"], 0);
    assert!(ended.is_object(), "{ended}");
    assert!(!file.exists());
    eventually("the old cluster is open", 3 * SOON, || world.denied("orders", ""));
}
