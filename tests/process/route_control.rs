//! The control znode, by real ZooKeeper, real proxies and the real tool: who is there, what was done, what is accepted.

use std::process::Command;

use harness::proxy::Proxy;
use harness::relay::Relay;
use harness::wait::eventually;
use harness::zookeeper::ZooKeeper;

use crate::route_tool::{Cluster, ROOT, World, json};
use crate::run::{Finished, run};
use crate::support::{BINARY, SOON};

const CONTROL: &str = "/pegasus-control";

/// A world whose proxies have a control znode.
fn world(tables: &[&str]) -> World {
    let world = World::without_proxies(tables);
    let control = format!(", control_root: {CONTROL}");
    let proxies: Vec<Proxy> = (0..3).map(|_| world.proxy(&control)).collect();
    eventually("all are members", SOON, || members(&world.zk).len() == 3);
    World { proxies, ..world }
}

fn members(zk: &ZooKeeper) -> Vec<String> {
    let parent = format!("{CONTROL}/members");
    if zk.exists(&parent) { zk.children(&parent) } else { Vec::new() }
}

fn command(world: &World, args: &[&str]) -> Command {
    let mut command = world.command(args);
    command.args(["--control-root", CONTROL]);
    command
}

#[track_caller]
fn tool(world: &World, args: &[&str], code: i32) -> Finished {
    run(command(world, args), 6 * SOON).expect_code(code)
}

fn holding(proxy: &Proxy) -> bool {
    harness::http::get(proxy.admin(), "/routes").contains("\"kind\"")
}

#[test]
fn the_tool_finds_the_proxies_by_themselves_also_those_that_come_and_go() {
    let world = world(&["orders"]);
    world.all_serve("orders", "c3");
    world.c3.die();
    let metas = world.c4.metas();
    let set = ["set", "orders", "--cluster", "c4", "--metas", &metas, "--why", "c3 is gone"];
    let done = tool(&world, &set, 0);
    assert_eq!(done.stdout.matches(": serves it, after ").count(), 3, "{done}");
    for proxy in &world.proxies {
        assert!(done.stdout.contains(&proxy.admin().to_string()), "{done}");
    }
    world.all_serve("orders", "c4");
    // One that stops is no member any more, one that was killed is none when its session has expired.
    assert!(world.proxies[0].terminate().success());
    eventually("it has gone", SOON, || members(&world.zk).len() == 2);
    world.proxies[1].kill();
    let set = ["set", "orders", "--cluster", "c4", "--metas", &metas];
    let done = tool(&world, &set, 0);
    assert_eq!(done.stdout.matches(": serves it, after ").count(), 1, "{done}");
    // Somebody deletes its znode, and those above it.
    world.zk.delete_all(CONTROL);
    eventually("it tells again that it is there", SOON, || members(&world.zk).len() == 1);
    // Its session goes on over a cut, and is made anew when it has expired.
    let before = members(&world.zk);
    world.zk.expire_sessions_of(&[world.proxies[2].process()]);
    eventually("it is a member again", SOON, || {
        let now = members(&world.zk);
        now.len() == 1 && now != before
    });
}

#[test]
fn only_those_with_the_digest_may_read_what_is_there() {
    let world = World::without_proxies(&["orders"]);
    let digest = "tool:secret";
    world.scratch.write("digest", digest);
    let proxy = world.proxy(&format!(", control_root: {CONTROL}, control_digest: '{digest}'"));
    let with = ["get", "orders", "--control-digest-file", "digest"];
    let page = proxy.admin().to_string();
    eventually("it is a member", SOON, || {
        world.zk.exists(&format!("{CONTROL}/members"))
            && tool(&world, &with, 0).stdout.contains(&page)
    });
    let denied = tool(&world, &["get", "orders"], 1);
    assert!(denied.stderr.contains("an ACL forbids it"), "{denied}");
    let no_control = world.look(&["history"], 2);
    assert!(no_control.stderr.contains("want --control-root"), "{no_control}");
}

#[test]
fn history_tells_who_wrote_what_and_a_plan_is_undone_from_another_host() {
    let world = world(&["items", "orders"]);
    world.c3.die();
    let metas = world.c4.metas();
    let args = ["switch", "--from", "c3", "--to", "c4", "--metas", &metas, "--why", "c3 burns"];
    let planned = json(&tool(&world, &[&args[..], &["--json"]].concat(), 0));
    let (plan, id) = (planned["file"].as_str().unwrap(), planned["id"].as_str().unwrap());
    assert_eq!(tool(&world, &["history"], 0).stdout.lines().count(), 1, "nothing was written");
    tool(&world, &["switch", "--plan", plan, "--apply", "--yes-tables", "2"], 0);
    let history = tool(&world, &["history"], 0).stdout;
    let line = history.lines().nth(1).unwrap();
    assert!(
        line.contains(" done ") && line.contains(id) && line.ends_with("c3 burns"),
        "{history}"
    );
    let of_table = tool(&world, &["history", "orders"], 0).stdout;
    let diff = format!("- {}\n+ {}\n", world.c3.record(), world.c4.record());
    assert!(of_table.contains(&diff) && !of_table.contains("/items"), "{of_table}");
    assert_eq!(tool(&world, &["history", "users"], 0).stdout, "");

    // Its file is on a host that burns.
    std::fs::remove_file(world.scratch.path().join(plan)).unwrap();
    tool(&world, &["undo", id, "--apply", "--yes-tables", "2"], 0);
    assert_eq!(world.record("orders").unwrap(), world.c3.record());
    let told = json(&tool(&world, &["history", "--json", "--last", "1"], 0));
    assert_eq!(told["plans"][0]["undoes"], id, "{told}");
    tool(&world, &["undo", "no-such-plan", "--apply"], 1);
}

#[test]
fn a_plan_that_did_not_end_is_told_first_by_every_command() {
    let tables: Vec<String> = (0..300).map(|n| format!("t{n:03}")).collect();
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    let world = World::without_proxies(&tables);
    world.c3.die();
    let metas = world.c4.metas();
    let args = ["switch", "--from", "c3", "--to", "c4", "--metas", &metas, "--save", "p.json"];
    let id = json(&tool(&world, &[&args[..], &["--json"]].concat(), 0))["id"].clone();
    let relay = Relay::to(world.zk.addr());
    relay.bandwidth_to_client(20_000);
    let mut child = Command::new(BINARY);
    child.args(["route", "switch", "--plan", "p.json", "--apply", "--yes-tables", "300"]);
    child.args(["--zookeeper", &relay.addr().to_string(), "--root", ROOT]);
    child.args(["--control-root", CONTROL, "--proxies", "none"]);
    let mut child = child.current_dir(world.scratch.path()).spawn().unwrap();
    let is_begun = || world.record("t010").as_ref() == Some(&world.c4.record());
    eventually("it writes", 3 * SOON, is_begun);
    child.kill().unwrap();
    child.wait().unwrap();
    let id = id.as_str().unwrap();
    let warned = tool(&world, &["ls", "--like", "t000"], 0);
    let told = format!("route undo {id} --apply");
    assert!(warned.stderr.contains("did not end") && warned.stderr.contains(&told), "{warned}");
    // From another host, by what the journal has.
    std::fs::remove_file(world.scratch.path().join("p.json")).unwrap();
    let again = ["switch", "--plan", id, "--apply", "--yes-tables", "300"];
    let nobody = tool(&world, &again, 1);
    assert!(nobody.stderr.contains("no proxy has told"), "{nobody}");
    tool(&world, &[&again[..], &["--proxies", "none"]].concat(), 0);
    assert_eq!(tool(&world, &["ls", "--cluster", "c3"], 0).stdout.lines().count(), 1);
    let quiet = tool(&world, &["ls", "--like", "t000"], 0);
    assert_eq!(quiet.stderr, "", "{quiet}");
}

#[test]
fn deletions_by_the_tool_are_not_held_and_others_are() {
    let tables: Vec<String> = (0..30).map(|n| format!("t{n:02}")).collect();
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    let world = world(&tables);
    for table in &tables {
        world.all_serve(table, "c3");
    }
    let left: String =
        tables[20..].iter().map(|table| format!("\"{table}\":{},", world.c3.record())).collect();
    world.scratch.write("r.json", format!("{{{}}}", left.trim_end_matches(',')));
    let prune = ["import", "--file", "r.json", "--prune", "--max-delete", "20"];
    tool(&world, &[&prune[..], &["--apply", "--yes-tables", "20"]].concat(), 0);
    for proxy in &world.proxies {
        assert!(!holding(proxy), "{}", proxy.log());
        assert_eq!(proxy.ask("t00").err.as_deref(), Some("ERR_OBJECT_NOT_FOUND"));
    }
    // The word was about those records only.
    for table in &tables[..20] {
        world.zk.create(&format!("{ROOT}/{table}"), world.c3.record());
    }
    for table in &tables[..20] {
        eventually("it is back", SOON, || world.served(table) == ["c3", "c3", "c3"]);
    }
    for table in &tables[..20] {
        world.zk.delete(&format!("{ROOT}/{table}"));
    }
    for proxy in &world.proxies {
        eventually("it holds", SOON, || holding(proxy));
        assert_eq!(proxy.ask("t00").err.as_deref(), Some("ERR_OK"));
    }
    // While a proxy holds, nothing is written.
    let refused = tool(&world, &["rm", "t25"], 5);
    assert!(refused.stderr.contains("holds routes: tables_gone"), "{refused}");
}

#[test]
fn accept_ends_what_the_proxies_hold_as_it_was_shown() {
    let tables = ["items", "orders", "users"];
    let world = world(&tables);
    for table in tables {
        world.all_serve(table, "c3");
    }
    let none = tool(&world, &["accept"], 0);
    assert!(none.stdout.contains("no proxy holds routes"), "{none}");
    world.zk.delete_all(ROOT);
    for proxy in &world.proxies {
        eventually("it holds", SOON, || holding(proxy));
    }
    world.all_serve("orders", "c3");
    let shown = tool(&world, &["accept"], 3);
    assert_eq!(shown.stdout.matches("holds routes: root_missing").count(), 3, "{shown}");
    assert!(shown.stdout.contains("nothing is accepted"), "{shown}");
    tool(&world, &["accept", "--apply", "--yes-tables", "2"], 2);
    let done = tool(&world, &["accept", "--apply", "--yes-tables", "3"], 0);
    assert_eq!(done.stdout.matches("holds nothing any more").count(), 3, "{done}");
    for served in world.served("orders") {
        assert!(served.starts_with("ERR_"), "{served}");
    }
    // A word that was heard stays, and is not heard again: not by a proxy that reads it after a cut.
    world.zk.create(ROOT, "");
    world.zk.create(&format!("{ROOT}/orders"), world.c3.record());
    world.zk.create(&format!("{ROOT}/items"), world.c3.record());
    for table in ["items", "orders"] {
        eventually("it is served", SOON, || world.served(table) == ["c3", "c3", "c3"]);
    }
    world.zk.delete_all(ROOT);
    for proxy in &world.proxies {
        eventually("it holds again", SOON, || holding(proxy));
    }
    world.zk.restart();
    for proxy in &world.proxies {
        proxy.wait_for_log("zookeeper: connected", SOON);
        assert!(holding(proxy));
    }
    world.all_serve("orders", "c3");
}

#[test]
fn a_control_znode_that_cannot_be_had_costs_nothing_else() {
    let zk = ZooKeeper::start();
    let c3 = Cluster::start("c3", "10.0.0.3:34801", &["orders"]);
    zk.create(&format!("{ROOT}/orders"), c3.record());
    let addr = zk.addr();
    let start = |control: &str| {
        let zookeeper = format!(
            "zookeeper: {{address: ['{addr}'], root: {ROOT}, timeout: 6000, control_root: {control}}}"
        );
        Proxy::builder(BINARY).config_extra(&zookeeper).start()
    };
    let nowhere = start("/no/such/parent");
    nowhere.wait_for_log("control: /no/such/parent: the znode above it does not exist", SOON);
    zk.create("/denied", "");
    zk.set_acl_digest("/denied", "admin:secret");
    let denied = start("/denied");
    denied.wait_for_log("an ACL forbids it", SOON);
    for proxy in [&nowhere, &denied] {
        let page = harness::http::get(proxy.admin(), "/");
        assert!(page.contains("The route tool does not see this proxy"), "{page}");
        let metrics = harness::http::get(proxy.admin(), "/metrics");
        assert!(metrics.contains("meta_proxy_control_fault{region=\"test\"} 1"), "{metrics}");
        assert_eq!(proxy.ask("orders").err.as_deref(), Some("ERR_OK"), "{}", proxy.log());
    }
}
