//! Moves of tables in trouble: requests that are carried out late, journals that nobody can read, routes that hands change,
//! servers that miss a config-sync, old servers, a terminal that takes no output.

use std::io::Write;

use super::*;

const ELSEWHERE: &str = r#"{"cluster_name":"c9","meta_addrs":"127.0.0.1:1,127.0.0.1:2"}"#;

impl World {
    /// A move with the way back that c4 has taken writes after.
    fn start_and_write_to_c4(&self, table: &str) -> (Running, Written) {
        let writer = self.writer(table, 0);
        let running = self.start_move(table, &["--keep-undo"], "7 ");
        let before = writer.acknowledged();
        eventually("c4 takes writes", 3 * SOON, || writer.acknowledged() > before + 100);
        (running, writer.stop())
    }
}

#[test]
fn once_the_new_cluster_took_writes_there_is_no_way_back() {
    let world = World::new(&["items", "orders", "users"]);
    let set = |table: &str, record: &str| world.zk.set(&format!("{ROOT}/{table}"), record);
    for (table, by_hand) in [("items", ELSEWHERE), ("orders", &record("c3", &world.a))] {
        let (running, written) = world.start_and_write_to_c4(table);
        set(table, by_hand);
        let said = running.end(4);
        assert!(said.contains("to go on: meta-proxy route set"), "{table}: {said}");
        let back = world.tool(&["move", table, "--back", "--apply"], 3);
        assert!(back.stderr.contains("lacks what clients wrote since"), "{table}: {back}");
        let way = said.split("to go on: meta-proxy route ").nth(1).unwrap();
        let way: Vec<&str> = way.split(", then").next().unwrap().split(' ').collect();
        world.tool(&way, 0);
        world.move_there(table, &["--keep-undo"], 0);
        assert_eq!(duplications(&world.b, table), 1, "{table}: what c4 took is not forgotten");
        world.has_all(&world.b, table, &written);
    }
    let users = world.writer("users", 0);
    world.start_move("users", &[], "6 ").kill();
    world.tool(&["move", "users", "--back", "--apply"], 3);
    world.move_there("users", &[], 0);
    world.is_moved("users", users);
}

#[test]
fn a_request_that_is_carried_out_late_is_waited_for_and_told() {
    let world = World::new(&["orders"]);
    world.a.stall_env(true);
    let running = world.start_move("orders", &[], "2 ");
    eventually("the request is under way", SOON, || world.a.stalled_envs() > 0);
    running.signal("-TERM");
    let said = running.end(4);
    assert!(said.contains("the answer to a request was lost"), "{said}");
    world.a.stall_env(false);
    assert_eq!(world.a.env("orders").as_deref(), Some("reconfig*write"));
    let ls = world.tool(&["ls"], 0);
    assert!(ls.stderr.contains("route move orders --back --apply"), "{ls}");
    world.tool(&["move", "orders", "--back", "--apply"], 4);
    assert_eq!(world.a.env("orders"), None);
    assert!(world.has_journal("orders"), "another one may come");
}

#[test]
fn servers_before_2_6_and_one_that_misses_a_config_sync_are_waited_for() {
    let old = Options { is_before_2_6: true, ..Options::default() };
    let world = World::with(&["orders"], old, old);
    let writer = world.writer("orders", 0);
    let running = world.start_move("orders", &[], "2 ");
    world.a.miss_syncs(0, 4);
    running.end(0);
    world.is_moved("orders", writer);
}

#[test]
fn a_journal_that_nobody_can_read_hides_nothing_and_stops_no_way_back() {
    let world = World::new(&["items", "orders"]);
    world.start_move("items", &[], "3 ").kill();
    let other = format!("{CONTROL}/moves/zzz");
    world.zk.create(&other, r#"{"form":2}"#);
    let ls = world.tool(&["ls"], 0);
    assert!(ls.stderr.contains("items from c3") && ls.stderr.contains("moves/zzz"), "{ls}");
    let verify = world.tool(&["verify"], 3);
    assert!(verify.stdout.contains("ENV      items on c3 denies clients"), "{verify}");
    world.tool(&["finish", "zzz", "--forget", "--apply"], 0);
    assert!(!world.zk.exists(&other));

    let running = world.start_move("orders", &[], "3 ");
    world.zk.set(&format!("{CONTROL}/moves/orders"), "garbage");
    let said = running.end(1);
    assert!(said.contains("everything is back"), "{said}");
    assert_eq!(world.a.env("orders"), None);
    for args in [&["move", "orders", "--back", "--apply"][..], &["finish", "orders", "--apply"]] {
        let refused = world.tool(args, 1);
        assert!(refused.stderr.contains("finish orders --forget"), "{refused}");
    }
    world.tool(&["finish", "orders", "--from", "c3", "--apply"], 0);
    world.tool(&["finish", "orders", "--forget", "--apply"], 0);
    assert!(!world.has_journal("orders"));
}

#[test]
fn a_table_without_a_route_is_told_and_opened() {
    let world = World::new(&["items", "orders"]);
    let running = world.start_move("orders", &[], "3 ");
    world.zk.delete(&format!("{ROOT}/orders"));
    let said = running.end(4);
    assert!(said.contains("route finish orders --forget"), "{said}");
    let verify = world.tool(&["verify"], 3);
    assert!(verify.stdout.contains("ENV      orders on c3 denies clients"), "{verify}");
    world.tool(&["finish", "orders", "--forget", "--apply"], 0);
    world.tool(&["finish", "orders", "--from", "c3", "--apply"], 0);
    assert_eq!(world.a.env("orders"), None);

    // A table that is renamed behind a move still denies its clients.
    let running = world.start_move("items", &[], "7 ");
    world.a.rename_table("items", "items_old");
    let said = running.end(0);
    assert!(said.contains("c3 does not have it any more"), "{said}");
    let finished = world.tool(&["finish", "items", "--clients-moved", "--apply"], 0);
    assert!(finished.stdout.contains("route verify shows it as ENV"), "{finished}");
    let verify = world.tool(&["verify"], 3);
    assert!(verify.stdout.contains("ENV      items_old on c3 denies clients"), "{verify}");
}

#[test]
fn a_cluster_that_its_tables_home_ships_to_is_not_fenced_by_mistake() {
    let world = World::new(&["orders"]);
    let metas = world.b.metas();
    let named = world.tool(&["fence", "c99", "--metas", &metas, "--apply"], 5);
    assert!(named.stderr.contains("c99 calls itself c4"), "{named}");
    let shown = world.tool(&["fence", "c4", "--metas", &metas, "--apply"], 0);
    assert!(shown.stdout.contains("duplicates it to c4"), "{shown}");
    assert_eq!(world.b.env("orders"), None);
    world.tool(&["fence", "c4", "--metas", &metas, "--table", "orders", "--apply"], 0);
    let verify = world.tool(&["verify"], 3);
    assert!(verify.stdout.contains("whose duplication c3->c4 stalls"), "{verify}");
}

#[test]
fn a_terminal_that_takes_no_output_does_not_hold_a_move_up() {
    let world = World::new(&["orders"]);
    world.a.hold_shipping("orders", true);
    let metas = world.b.metas();
    let (output, input) = std::io::pipe().unwrap();
    let args = world.move_args("orders", &metas, &["--max-refused", "7s", "--apply"]);
    let mut command = world.command(&args);
    command.stdout(input.try_clone().unwrap()).stderr(input.try_clone().unwrap());
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut output = BufReader::new(output);
    let mut line = String::new();
    while !line.starts_with("2 ") {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0, "it ended");
    }
    // From now on nothing more fits in.
    let mut input = input;
    let filler = thread::spawn(move || while input.write_all(&[b'.'; 4096]).is_ok() {});
    eventually("it refuses writes", SOON, || world.a.env("orders").is_some());
    eventually("it goes back", 6 * SOON, || world.a.env("orders").is_none());
    eventually("all of it", 3 * SOON, || !world.has_journal("orders"));
    child.kill().unwrap();
    child.wait().unwrap();
    drop(output);
    filler.join().unwrap();
}

#[test]
fn a_resumed_move_keeps_what_it_was_begun_with() {
    let world = World::new(&["orders"]);
    world.start_move("orders", &[], "3 ").kill();
    let undo = world.move_there("orders", &["--keep-undo"], 3);
    assert!(undo.stderr.contains("begun without --keep-undo"), "{undo}");
    let small = world.move_there("orders", &["--max-refused", "1s"], 5);
    assert!(small.stderr.contains("want 6 s at least"), "{small}");
    world.tool(&["move", "orders", "--back", "--apply"], 0);
    assert_eq!(world.a.env("orders"), None);
}
