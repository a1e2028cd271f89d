//! `meta-proxy route` with plans of many tables: switched, undone, imported, verified, and stopped in the middle.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::relay::Relay;
use harness::wait::eventually;
use serde_json::Value;

use crate::route_tool::{ROOT, World, json};
use crate::run::{Finished, run};
use crate::support::SOON;

/// Names of so many tables.
fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("t{n:04}")).collect()
}

fn as_strs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

/// How many of the tables are routed to the cluster of this record.
fn routed(world: &World, tables: &[&str], record: &str) -> usize {
    tables.iter().filter(|table| world.record(table).as_deref() == Some(record)).count()
}

/// Plans a switch of all tables of c3 to c4, whose addresses no route names yet. Returns the plan's file.
fn plan(world: &World, name: &str) -> String {
    let metas = world.c4.metas();
    let args = ["switch", "--from", "c3", "--to", "c4", "--metas", &metas, "--save", name];
    let planned = world.look(&args, 0);
    assert!(planned.stdout.contains("nothing is written"), "{planned}");
    name.to_owned()
}

fn yes(count: usize) -> [String; 2] {
    ["--yes-tables".to_owned(), count.to_string()]
}

#[track_caller]
fn apply(world: &World, plan: &str, count: usize, code: i32) -> Finished {
    let yes = yes(count);
    world.write(&["switch", "--plan", plan, "--apply", &yes[0], &yes[1]], code)
}

#[test]
fn a_switch_is_planned_then_applied_then_undone() {
    let world = World::new(&["items", "orders", "users"]);
    for table in ["items", "orders", "users"] {
        world.all_serve(table, "c3");
    }
    let metas = world.c4.metas();
    let all = ["switch", "--from", "c3", "--to", "c4", "--metas", &metas];
    let alive = world.look(&all, 5);
    assert!(alive.stderr.contains("the leader of c3 answers at"), "{alive}");
    assert_eq!(world.plans(), Vec::<String>::new(), "nothing is saved of what is refused");
    world.c3.die();

    let all = [&all[..], &["--exclude", "items", "--why", "c3 burns"]].concat();
    let planned = world.look(&all, 0);
    let want = format!("- {}\n+ {}\n", world.c3.record(), world.c4.record());
    assert_eq!(planned.stdout.matches(&want).count(), 2, "{planned}");
    let [plan] = &world.plans()[..] else { panic!("{planned}") };
    assert!(planned.stdout.contains(&format!("route switch --plan {plan} --apply")), "{planned}");
    assert_eq!(world.record("orders").unwrap(), world.c3.record(), "nothing is written");

    let unconfirmed = world.write(&["switch", "--plan", plan, "--apply"], 2);
    assert!(unconfirmed.stderr.contains("want --yes-tables 2"), "{unconfirmed}");
    apply(&world, plan, 3, 2);
    let done = apply(&world, plan, 2, 0);
    assert_eq!(done.stdout.matches(": serves it, after ").count(), 3, "{done}");
    for (table, cluster) in [("orders", "c4"), ("users", "c4")] {
        world.all_serve(table, cluster);
    }
    assert_eq!(world.record("items").unwrap(), world.c3.record(), "it was left out");
    // Twice: all of it is done already.
    apply(&world, plan, 2, 0);
    // The tables that are there already are no part of another switch.
    let named = world.look(&["switch", "orders", "--to", "c4"], 0);
    assert!(named.stdout.contains("all of them are routed to c4"), "{named}");

    world.c3.revive();
    world.c3.leader.set_env("orders", "replica.deny_client_request", "reconfig*all");
    let shown = world.look(&["undo", plan], 0);
    assert!(shown.stdout.contains("nothing is written"), "{shown}");
    assert!(shown.stdout.contains("orders: c3 denies clients of the table"), "{shown}");
    world.c3.leader.set_env("orders", "replica.deny_client_request", "");
    world.write(&["undo", plan, "--apply", "--yes-tables", "2"], 0);
    for table in ["items", "orders", "users"] {
        world.all_serve(table, "c3");
        assert_eq!(world.record(table).unwrap(), world.c3.record());
    }
    let again = world.write(&["undo", plan, "--apply", "--yes-tables", "2"], 0);
    assert!(again.stdout.contains("nothing of it is to be undone"), "{again}");
}

#[test]
fn a_switch_chooses_its_tables_by_file_and_knows_where_the_cluster_is() {
    let world = World::new(&["items", "orders", "users"]);
    world.c3.die();
    let file = world.scratch.write("tables", "# those of the shop\norders\n\n items \n");
    let by_file = ["switch", "--tables-file", file.to_str().unwrap(), "--to", "c4"];
    let unknown = world.look(&by_file, 2);
    assert!(unknown.stderr.contains("no route names c4: want --metas"), "{unknown}");
    world.zk.set(&format!("{ROOT}/users"), world.c4.record());
    let planned = json(&world.look(&[&by_file[..], &["--json"]].concat(), 0));
    assert_eq!((&planned["changes"], &planned["applied"]), (&2.into(), &false.into()), "{planned}");
    for (why, args, told) in [
        ("no table", vec!["switch", "--to", "c4"], "want TABLE, --tables-file FILE or --from"),
        (
            "a table without a route",
            vec!["switch", "nosuch", "--to", "c4"],
            "no such route: nosuch",
        ),
        (
            "a cluster without tables",
            vec!["switch", "--from", "c9", "--to", "c4"],
            "is routed to c9",
        ),
        ("at once", vec!["switch", "orders", "--to", "c4", "--apply"], "a switch is planned first"),
        ("no target", vec!["switch", "orders"], "want --to CLUSTER"),
    ] {
        let refused = world.look(&args, 2);
        assert!(refused.stderr.contains(told), "{why}: {refused}");
    }
}

#[test]
fn a_znode_that_changed_by_hand_stops_a_plan_and_an_undo() {
    let tables = names(3);
    let tables = as_strs(&tables);
    let world = World::new(&tables);
    world.c3.die();
    let plan = plan(&world, "plan.json");
    let by_hand = r#"{"cluster_name":"c9","meta_addrs":"127.0.0.9:1,127.0.0.9:2"}"#;
    world.zk.set(&format!("{ROOT}/t0001"), by_hand);
    let stopped = apply(&world, &plan, 3, 3);
    for shown in [&world.c3.record(), &world.c4.record(), by_hand] {
        assert!(stopped.stderr.contains(shown), "both sides are shown: {stopped}");
    }
    assert_eq!(routed(&world, &tables, &world.c3.record()), 2, "nothing was written");
    // Made again alike, it is another znode than the one that was shown.
    world.zk.set(&format!("{ROOT}/t0001"), world.c3.record());
    apply(&world, &plan, 3, 3);

    let plan = self::plan(&world, "again.json");
    apply(&world, &plan, 3, 0);
    world.zk.set(&format!("{ROOT}/t0002"), by_hand);
    let stopped = world.write(&["undo", &plan, "--apply", "--yes-tables", "2"], 3);
    assert!(
        stopped.stderr.contains("changed since") && stopped.stderr.contains(by_hand),
        "{stopped}"
    );
    assert_eq!(routed(&world, &tables, &world.c4.record()), 2, "nothing was taken back");
}

/// The tool as a child process, over a slow way to ZooKeeper.
fn start(world: &World, relay: &Relay, args: &[&str]) -> Child {
    let mut command = Command::new(crate::support::BINARY);
    let zookeeper = relay.addr().to_string();
    command.arg("route").args(args).current_dir(world.scratch.path());
    command.args(["--zookeeper", &zookeeper, "--root", ROOT, "--proxies", &world.pages()]);
    command.args(["--timeout-ms", "1500", "--wait-s", "10"]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
#[ignore = "takes long: scripts/test --all runs it"]
fn a_tool_that_is_killed_anywhere_leaves_a_plan_that_goes_on_or_back() {
    let tables = names(400);
    let tables = as_strs(&tables);
    let world = World::without_proxies(&tables);
    let (old, new) = (world.c3.record(), world.c4.record());
    world.c3.die();
    // Two windows of requests, a little, and nearly all.
    for (round, killed_at) in [1, 130, 200, 390].into_iter().enumerate() {
        let plan = plan(&world, &format!("plan{round}.json"));
        let relay = Relay::to(world.zk.addr());
        relay.bandwidth_to_client(20_000);
        let yes = yes(400);
        let args = ["switch", "--plan", &plan, "--apply", &yes[0], &yes[1]];
        let mut tool = start(&world, &relay, &args);
        eventually("the tool writes", 3 * SOON, || routed(&world, &tables, &new) >= killed_at);
        tool.kill().unwrap();
        tool.wait().unwrap();
        let done = routed(&world, &tables, &new);
        println!("killed when {done} of 400 were written");
        assert_eq!(done + routed(&world, &tables, &old), 400, "each is the old or the new one");
        if round % 2 == 0 {
            apply(&world, &plan, 400, 0);
            assert_eq!(routed(&world, &tables, &new), 400);
        }
        let left = routed(&world, &tables, &new).to_string();
        world.write(&["undo", &plan, "--apply", "--yes-tables", &left], 0);
        assert_eq!(routed(&world, &tables, &old), 400);
    }
}

#[test]
fn a_tool_that_is_killed_before_the_proxies_serve_it_is_run_again() {
    let world = World::new(&["orders"]);
    world.all_serve("orders", "c3");
    world.c3.die();
    let plan = plan(&world, "plan.json");
    let relay = Relay::to(world.zk.addr());
    world.proxies[1].pause();
    let mut tool = start(&world, &relay, &["switch", "--plan", &plan, "--apply"]);
    eventually("it is written", SOON, || world.record("orders") == Some(world.c4.record()));
    tool.kill().unwrap();
    tool.wait().unwrap();
    let args = ["switch", "--plan", &plan, "--apply", "--wait-s", "2"];
    let behind = world.write(&args, 4);
    assert!(behind.stdout.contains("DOES NOT SERVE IT"), "{behind}");
    world.proxies[1].resume();
    apply(&world, &plan, 1, 0);
    world.all_serve("orders", "c4");
}

#[test]
fn zookeeper_lost_in_the_middle_leaves_a_plan_that_goes_on() {
    let tables = names(400);
    let tables = as_strs(&tables);
    let world = World::without_proxies(&tables);
    world.c3.die();
    let plan = plan(&world, "plan.json");
    let relay = Relay::to(world.zk.addr());
    relay.bandwidth_to_client(20_000);
    let yes = yes(400);
    let mut tool = start(&world, &relay, &["switch", "--plan", &plan, "--apply", &yes[0], &yes[1]]);
    eventually("it writes", 3 * SOON, || routed(&world, &tables, &world.c4.record()) >= 100);
    relay.refuse();
    relay.cut();
    let status = tool.wait().unwrap();
    assert_eq!(status.code(), Some(4), "it is done in part");
    let done = routed(&world, &tables, &world.c4.record());
    assert_eq!(done + routed(&world, &tables, &world.c3.record()), 400);
    assert!(done < 400, "it was stopped in the middle");
    apply(&world, &plan, 400, 0);
    assert_eq!(routed(&world, &tables, &world.c4.record()), 400);
}

#[test]
fn of_two_tools_at_once_none_writes_over_the_other() {
    let tables = names(300);
    let tables = as_strs(&tables);
    let world = World::without_proxies(&tables);
    world.c3.die();
    let (old, new) = (world.c3.record(), world.c4.record());
    let one = plan(&world, "one.json");
    // The other one is of another place: the follower alone.
    let alone = world.c4.leader.addr().to_string();
    let args = ["switch", "--from", "c3", "--to", "c4", "--metas", &alone, "--not-for-go"];
    world.look(&[&args[..], &["--save", "other.json"]].concat(), 0);
    let other = format!(r#"{{"cluster_name":"c4","meta_addrs":"{alone}"}}"#);
    let yes = yes(300);
    let relay = Relay::to(world.zk.addr());
    let run = |plan: &str| {
        start(&world, &relay, &["switch", "--plan", plan, "--apply", &yes[0], &yes[1]])
    };
    let mut tools = [run(&one), run("other.json")];
    let codes = tools.each_mut().map(|tool| tool.wait().unwrap().code().unwrap());
    println!("exit codes: {codes:?}");
    assert!(codes.iter().any(|code| [3, 4].contains(code)), "one was stopped: {codes:?}");
    let counts = [&old, &new, &other].map(|record| routed(&world, &tables, record));
    assert_eq!(counts.iter().sum::<usize>(), 300, "each is one of three places: {counts:?}");
}

#[test]
fn where_an_acl_denies_it_the_tool_says_so_and_nothing_is_written() {
    let world = World::new(&["items", "orders"]);
    world.c3.die();
    let plan = plan(&world, "plan.json");
    world.zk.set_acl_digest(&format!("{ROOT}/items"), "admin:secret");
    let denied = apply(&world, &plan, 2, 1);
    assert!(denied.stderr.contains("items: an ACL forbids it"), "{denied}");
    assert_eq!(world.record("orders").unwrap(), world.c3.record());
    let digest = world.scratch.write("digest", "admin:secret\n");
    let digest = digest.to_str().unwrap();
    let args = ["switch", "--plan", &plan, "--apply", "--yes-tables", "2", "--digest-file", digest];
    world.write(&args, 0);
    assert_eq!(world.record("orders").unwrap(), world.c4.record());
    let got = world.look(&["get", "items", "--digest-file", digest], 0);
    assert!(got.stdout.contains("digest:admin:"), "the ACL is kept: {got}");
}

#[test]
#[ignore = "takes long: scripts/test --all runs it"]
fn five_thousand_tables_are_switched_in_seconds() {
    let tables = names(5_000);
    let tables = as_strs(&tables);
    let world = World::without_proxies(&tables);
    let proxy = world.proxy(", table_watcher_cache_capacity: 10000, preload: true");
    let world = World { proxies: vec![proxy], ..world };
    world.all_serve("t0000", "c3");
    world.c3.die();
    let plan = plan(&world, "plan.json");
    let start = Instant::now();
    apply(&world, &plan, 5_000, 0);
    println!("5,000 tables switched and seen at the proxy within {:?}", start.elapsed());
    world.all_serve("t4999", "c4");
    assert_eq!(routed(&world, &tables, &world.c4.record()), 5_000);
}

#[test]
fn a_metaserver_is_replaced_in_all_routes_that_list_it() {
    let world = World::new(&["items", "orders"]);
    let one =
        |addr: String| format!(r#"{{"cluster_name":"c3","meta_addrs":"{addr}","owner":"x"}}"#);
    world.zk.set(&format!("{ROOT}/items"), one(world.c3.follower.addr().to_string()));
    world.zk.create(&format!("{ROOT}/users"), world.c4.record());
    let leader = world.c3.leader.addr();
    let spare = harness::meta_server::MetaServer::start();
    let (old, new) = (world.c3.follower.addr().to_string(), spare.addr().to_string());
    let replace = |new: &str| format!("{old}={new}");
    let metas = |new: &str, more: &[&str], code| {
        let pair = replace(new);
        world.write(&[&["metas", "--cluster", "c3", "--replace", &pair], more].concat(), code)
    };
    let foreign = metas(&world.c4.leader.addr().to_string(), &[], 5);
    assert!(foreign.stderr.contains("is of the cluster c4"), "{foreign}");
    spare.set(harness::meta_server::Behaviour::Follower { leader: Some(leader) });
    let planned = metas(&new, &[], 0);
    assert_eq!(planned.stdout.matches(&format!("{ROOT}/")).count(), 2, "{planned}");
    metas(&new, &["--apply", "--yes-tables", "2"], 0);
    assert_eq!(world.record("items").unwrap(), one(new.clone()), "unknown keys are kept");
    let record = world.record("orders").unwrap();
    assert!(record.contains(&new) && record.contains(&leader.to_string()), "{record}");
    assert_eq!(world.record("users").unwrap(), world.c4.record());
    let again = metas(&new, &["--apply"], 0);
    assert!(again.stdout.contains("is in its routes"), "{again}");
    world.all_serve("orders", "c3");
}

#[test]
fn import_makes_the_reversed_mapping_and_stops_at_a_table_in_two_clusters() {
    let world = World::new(&["orders"]);
    world.c4.leader.remove_table("orders");
    world.c3.put("items", 4);
    world.c4.put("users", 4);
    for cluster in [&world.c3, &world.c4] {
        cluster.put("both", 4);
    }
    let named =
        |cluster: &crate::route_tool::Cluster| format!("{}={}", cluster.name, cluster.metas());
    let (c3, c4) = (named(&world.c3), named(&world.c4));
    let import = ["import", "--cluster", &c3, "--cluster", &c4];
    let conflict = world.look(&import, 3);
    assert!(conflict.stdout.contains("2 new, 1 the same, 1 in conflict"), "{conflict}");
    assert!(conflict.stdout.contains("CONFLICT both: it is in c3 and in c4"), "{conflict}");
    let told = json(&world.look(&[&import[..], &["--json"]].concat(), 3));
    assert_eq!(told["new"], Value::from(vec!["items", "users"]));

    let import = [&import[..], &["--exclude", "both"]].concat();
    world.look(&import, 3);
    assert_eq!(world.record("items"), None, "nothing is written");
    world.write(&[&import[..], &["--apply", "--yes-tables", "2"]].concat(), 0);
    assert_eq!(world.record("items").unwrap(), world.c3.record());
    assert_eq!(world.record("users").unwrap(), world.c4.record());
    world.look(&import, 0);
    // A cluster of which nobody answers has no list, which is not an empty one.
    world.c4.die();
    let dead = world.look(&import, 1);
    assert!(dead.stderr.contains("no leader of c4 answers"), "{dead}");
}

#[test]
fn what_export_wrote_is_imported_and_prune_has_a_limit() {
    let world = World::new(&["items", "orders"]);
    let file = world.scratch.write("r.json", world.look(&["export"], 0).stdout);
    let file = file.to_str().unwrap();
    let same = world.look(&["import", "--file", file, "--prune"], 0);
    assert!(same.stdout.contains("0 to write, 2 the same, 0 to delete"), "{same}");
    world.zk.set(&format!("{ROOT}/items"), world.c4.record());
    world.zk.delete(&format!("{ROOT}/orders"));
    for n in 0..6 {
        world.zk.create(&format!("{ROOT}/more{n}"), world.c4.record());
    }
    let accepted = ["--split-brain-accepted", "--target-accepted"];
    let import = [&["import", "--file", file][..], &accepted].concat();
    let kept = world.look(&import, 3);
    assert!(
        kept.stdout.contains("2 to write, 0 the same, 0 to delete, 6 not in the file"),
        "{kept}"
    );
    let prune = [&import[..], &["--prune"]].concat();
    let much = world.look(&prune, 5);
    assert!(much.stderr.contains("want at most 5 (--max-delete)"), "{much}");
    let prune = [&prune[..], &["--max-delete", "6", "--apply", "--yes-tables", "8"]].concat();
    world.write(&prune, 0);
    assert_eq!(world.look(&["export"], 0).stdout, std::fs::read_to_string(file).unwrap());
    world.look(&["import", "--file", "/nosuch"], 2);
}

#[test]
fn verify_tells_what_does_not_go_together_once_and_as_metrics() {
    let world = World::new(&["orders", "users"]);
    let c4 = format!("c4={}", world.c4.metas());
    let verify = ["verify", "--cluster", &c4];
    let found = world.look(&verify, 3);
    for told in ["TWICE    orders -> c3, also available in c4", "TWICE    users -> c3"] {
        assert!(found.stdout.contains(told), "{found}");
    }
    world.c3.leader.duplicate("orders", "c4");
    world.c4.leader.remove_table("users");
    world.c3.leader.remove_table("users");
    world.c3.put("items2", 4);
    world.c3.leader.set_env("orders", "replica.deny_client_request", "reconfig*all");
    world.c4.leader.set_cluster("c4srv");
    let odd = format!(r#"{{"cluster_name":"c4","meta_addrs":"{}"}}"#, world.c4.leader.addr());
    world.zk.create(&format!("{ROOT}/alias"), odd);
    world.c4.put("alias", 4);
    world.zk.create(&format!("{ROOT}/broken"), "{");
    world.c3.follower.set(harness::meta_server::Behaviour::Mute);
    let found = world.look(&verify, 3);
    let told: Vec<&str> =
        found.stdout.lines().filter_map(|line| line.split_whitespace().next()).collect();
    for (kind, what) in [
        ("NOWHERE", "users -> c3: the cluster does not have it"),
        ("TWICE", "orders -> c3, also available in c4 (allowed: duplication c3->c4)"),
        ("UNROUTED", "items2 in c3, no znode"),
        ("ALIAS", "c4 has 2 address sets"),
        ("META", &format!("c3 lists {}", world.c3.follower.addr())),
        ("NAME", "c4 is what the route says, c4srv is what the cluster says"),
        ("ENV", "orders on c3 denies clients: reconfig*all"),
        ("BROKEN", "broken"),
    ] {
        assert!(told.contains(&kind) && found.stdout.contains(what), "{kind}: {found}");
    }

    let args = [&verify[..], &["--every", "1s", "--listen", "127.0.0.1:0"]].concat();
    let mut command = world.command(&args);
    let log = world.scratch.path().join("verify.log");
    command.stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
    let mut tool = command.spawn().unwrap();
    let mut addr = None;
    eventually("it listens", SOON, || {
        let text = std::fs::read_to_string(&log).unwrap();
        let url = text.lines().find_map(|line| line.split_once("metrics at http://"));
        addr = url.and_then(|(_, url)| url.strip_suffix("/metrics")?.parse().ok());
        addr.is_some()
    });
    let metric = |name: &str| {
        let page = harness::http::get(addr.unwrap(), "/metrics");
        let line = page.lines().find(|line| line.starts_with(name))?.to_owned();
        line.rsplit_once(' ')?.1.parse::<f64>().ok()
    };
    let nowhere = r#"meta_proxy_route_findings{kind="NOWHERE"}"#;
    eventually("a finding is shown", SOON, || metric(nowhere) == Some(1.0));
    world.zk.delete(&format!("{ROOT}/users"));
    eventually("it is no more", SOON, || metric(nowhere) == Some(0.0));
    assert_eq!(metric("meta_proxy_route_verify_up"), Some(1.0));
    world.zk.stop();
    let limit = SOON + Duration::from_secs(5);
    eventually("ZooKeeper is down", limit, || metric("meta_proxy_route_verify_up") == Some(0.0));
    tool.kill().unwrap();
    tool.wait().unwrap();
}

#[test]
fn a_cluster_that_has_a_znode_is_changed_there() {
    let world = World::without_proxies(&["orders"]);
    world.zk.create("/clusters", "");
    world.zk.create("/clusters/c3", world.c3.record());
    world.zk.create("/clusters/c4", world.c4.record());
    world.zk.set(&format!("{ROOT}/orders"), r#"{"cluster":"c3"}"#);
    let proxy = world.proxy(", clusters_root: /clusters");
    let world = World { proxies: vec![proxy], ..world };
    world.all_serve("orders", "c3");
    fn with<'a>(args: &[&'a str]) -> Vec<&'a str> {
        [args, &["--clusters-root", "/clusters"]].concat()
    }
    let metas = world.c3.follower.addr().to_string();
    let spare = harness::meta_server::MetaServer::start();
    spare.set(harness::meta_server::Behaviour::Follower { leader: Some(world.c3.leader.addr()) });
    let pair = format!("{metas}={}", spare.addr());
    world.write(&with(&["metas", "--cluster", "c3", "--replace", &pair, "--apply"]), 0);
    let record = String::from_utf8(world.zk.get("/clusters/c3").unwrap()).unwrap();
    assert!(record.contains(&spare.addr().to_string()) && !record.contains(&metas), "{record}");
    world.c3.die();
    spare.set(harness::meta_server::Behaviour::Mute);
    world.look(&with(&["switch", "--from", "c3", "--to", "c4", "--save", "plan.json"]), 0);
    let args = with(&["switch", "--plan", "plan.json", "--apply"]);
    let done = run(
        {
            let mut command = world.command(&args);
            command.args(["--proxies", &world.pages()]);
            command
        },
        6 * SOON,
    );
    done.expect_code(0);
    assert_eq!(world.record("orders").unwrap(), r#"{"cluster":"c4"}"#);
    world.all_serve("orders", "c4");
}

#[test]
fn at_a_terminal_the_name_of_the_cluster_is_the_word() {
    let world = World::without_proxies(&["items", "orders"]);
    world.c3.die();
    let plan = plan(&world, "plan.json");
    let at_terminal = |typed: &str| {
        let mut tool = world.command(&["switch", "--plan", &plan, "--apply", "--proxies", "none"]);
        let zookeeper = tool.get_args().map(|arg| arg.to_str().unwrap().to_owned());
        let words: Vec<String> =
            [crate::support::BINARY.to_owned()].into_iter().chain(zookeeper).collect();
        tool = Command::new("sh");
        // script gives it a terminal.
        let line = format!("printf '%s\\n' {typed} | script -qec '{}' /dev/null", words.join(" "));
        tool.args(["-c", &line]).current_dir(world.scratch.path());
        run(tool, 6 * SOON)
    };
    let wrong = at_terminal("c3");
    assert_eq!(wrong.status.code(), Some(1), "{wrong}");
    assert!(wrong.stdout.contains("2 tables change. Type c4 to write it"), "{wrong}");
    assert!(wrong.stdout.contains("not confirmed, nothing is written"), "{wrong}");
    assert_eq!(world.record("orders").unwrap(), world.c3.record());
    let right = at_terminal("c4");
    assert_eq!(right.status.code(), Some(0), "{right}");
    assert_eq!(world.record("orders").unwrap(), world.c4.record());
}

#[test]
fn every_end_is_json_where_json_is_wanted() {
    let world = World::without_proxies(&["items", "orders"]);
    let metas = world.c4.metas();
    let c4 = format!("c4={metas}");
    let switch = ["switch", "orders", "--to", "c4", "--metas", &metas];
    for (code, args) in [
        (5, &switch[..]),
        (2, &["switch", "orders"]),
        (1, &["get", "nosuch"]),
        (3, &["verify", "--cluster", &c4]),
        (0, &["ls"]),
        (0, &["get", "orders"]),
        (3, &["set", "orders", "--cluster", "c4", "--metas", &metas, "--if-version", "7"]),
        (2, &["history"]),
    ] {
        let told = json(&world.look(&[args, &["--json"]].concat(), code));
        let has_error = !told["error"].is_null();
        assert!(code == 0 || code == 3 || has_error, "{args:?}: {told}");
        assert!(!has_error || told["exit_code"] == code, "{args:?}: {told}");
    }
    world.c3.die();
    let plan = plan(&world, "plan.json");
    let nothing = ["undo", &plan, "--apply", "--proxies", "none"];
    let told = json(&world.look(&[&nothing[..], &["--json"]].concat(), 0));
    assert_eq!(told["changes"], 0, "{told}");
    let lost = world.look_with(&["export"], "/dev/full", 1);
    assert!(lost.contains("stdout: ") && lost.contains("not all printed"), "{lost}");
    // A disk without room for the plan leaves nothing that looks like one.
    let full = world.look(&[&switch[..], &["--save", "/dev/full"]].concat(), 1);
    assert!(full.stderr.contains("/dev/full"), "{full}");
}

#[test]
fn a_proxy_of_another_root_or_zookeeper_is_not_taken_for_one_that_serves_it() {
    let world = World::without_proxies(&["orders"]);
    let other_zk = harness::zookeeper::ZooKeeper::start();
    other_zk.create(ROOT, "");
    world.zk.create("/other", "");
    // Far ahead, so that what it has seen is newer than anything here.
    for n in 0..50 {
        other_zk.create(&format!("{ROOT}/t{n}"), world.c3.record());
    }
    let elsewhere = |addr: std::net::SocketAddr, root: &str| {
        harness::proxy::Proxy::builder(crate::support::BINARY)
            .config_extra(&format!("zookeeper: {{address: ['{addr}'], root: {root}}}"))
            .start()
    };
    world.c3.die();
    let metas = world.c4.metas();
    for (why, proxy) in [
        ("its root is /other", elsewhere(world.zk.addr(), "/other")),
        ("it is at another ZooKeeper", elsewhere(other_zk.addr(), ROOT)),
    ] {
        eventually("it knows its root", SOON, || {
            !harness::http::get(proxy.admin(), "/clusters").contains("\"root_czxid\": null")
        });
        let mut command = world.command(&["set", "orders", "--cluster", "c4", "--metas", &metas]);
        command.args(["--wait-s", "1", "--proxies", &proxy.admin().to_string()]);
        let done = run(command, 6 * SOON).expect_code(4);
        assert!(done.stdout.contains(&format!("DOES NOT SERVE IT: {why}")), "{done}");
    }
}

#[test]
fn a_proxy_that_does_not_say_whether_it_holds_is_named() {
    let world = World::new(&["orders"]);
    world.c3.die();
    world.proxies[2].pause();
    let metas = world.c4.metas();
    let set = ["set", "orders", "--cluster", "c4", "--metas", &metas, "--wait-s", "1"];
    let done = world.write(&set, 4);
    let told = format!("WARN: {} does not say whether it holds", world.proxies[2].admin());
    assert!(done.stdout.contains(&told), "{done}");
    world.proxies[2].resume();
}
