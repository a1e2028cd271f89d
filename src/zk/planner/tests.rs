use super::*;

fn table(name: &str) -> What {
    What::Table(name.into())
}

fn reads(planner: &mut Planner, now: Instant) -> Vec<What> {
    let mut reads = Vec::new();
    while let Some(action) = planner.next_action(now) {
        match action {
            Action::Read(what) => reads.push(what),
            Action::AllConfirmed(_) => {}
            other => panic!("{other:?}"),
        }
    }
    reads
}

fn boxed(names: &[&str]) -> Vec<Box<str>> {
    names.iter().map(|&name| name.into()).collect()
}

/// A plan over a new connection, with tables that were never read.
fn live(unread: &[&str], missing: &[&str]) -> (Planner, Instant) {
    let now = Instant::now();
    let mut planner = Planner::new(now, 7, "/root/".len());
    assert_eq!(planner.next_action(now), None, "there is no connection");
    planner.distrust(boxed(unread));
    missing.iter().for_each(|table| planner.miss(table));
    up(&mut planner, unread, now);
    (planner, now)
}

fn up(planner: &mut Planner, cached: &[&str], now: Instant) {
    planner.up(boxed(cached), Vec::new(), now);
    assert_eq!(planner.next_action(now), Some(Action::Read(What::Root)));
    assert_eq!(planner.next_action(now), None, "it may be another root");
    assert_eq!(planner.wake_at(), None);
    planner.done(What::Root, Verdict::Settled, now);
}

#[test]
fn a_first_connection_reads_what_queries_wait_for_then_confirms_all() {
    let (mut planner, now) = live(&["busy", "idle"], &["new"]);
    let want = [table("new"), table("busy"), table("idle")];
    assert_eq!(reads(&mut planner, now), want);
    assert_eq!(planner.unconfirmed.len(), 2);
    let later = now + Duration::from_millis(9);
    for what in want {
        assert!(planner.done(what, Verdict::Settled, later));
    }
    ["busy", "idle"].iter().for_each(|table| planner.confirmed(table, later));
    let took = Duration::from_millis(9);
    assert_eq!(planner.next_action(later), Some(Action::AllConfirmed(took)));
    assert_eq!(planner.next_action(later), None);
}

#[test]
fn reads_at_once_are_bounded_and_changes_come_first() {
    let names: Vec<String> = (0..100).map(|n| format!("t{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (mut planner, now) = live(&names, &[]);
    let first = reads(&mut planner, now);
    assert_eq!(first.len(), MAX_READS);
    planner.miss("missed");
    planner.changed(table("changed"));
    planner.done(first[0].clone(), Verdict::Settled, now);
    planner.done(first[1].clone(), Verdict::Settled, now);
    assert_eq!(reads(&mut planner, now), [table("changed"), table("missed")]);
}

#[test]
fn many_misses_keep_no_route_from_being_confirmed() {
    let (mut planner, now) = live(&["a", "b"], &["m0", "m1", "m2", "m3", "m4"]);
    let want = ["m0", "a", "m1", "b", "m2", "m3", "m4"].map(table);
    assert_eq!(reads(&mut planner, now), want);
}

#[test]
fn misses_that_nobody_waits_for_are_forgotten() {
    let (mut planner, now) = live(&[], &[]);
    (0..MAX_READS).for_each(|n| planner.changed(table(&format!("t{n}"))));
    let busy = reads(&mut planner, now);
    (0..1000).for_each(|n| planner.miss(&format!("m{n}")));
    planner.keep_misses(|table| table == "m7");
    for what in busy {
        planner.done(what, Verdict::Settled, now);
    }
    assert_eq!(reads(&mut planner, now), [table("m7")]);
}

#[test]
fn a_change_during_a_read_is_read_again() {
    let (mut planner, now) = live(&["t"], &[]);
    reads(&mut planner, now);
    planner.changed(table("t"));
    assert_eq!(reads(&mut planner, now), [], "one read of a znode at a time");
    assert!(!planner.done(table("t"), Verdict::Settled, now));
    assert_eq!(reads(&mut planner, now), [table("t")]);
}

#[test]
fn only_what_queries_wait_for_and_preloaded_tables_are_wanted() {
    let (mut planner, now) = live(&["cached"], &["missed"]);
    planner.preload(vec!["preloaded".into()]);
    planner.changed(table("changed"));
    reads(&mut planner, now);
    for (name, want) in
        [("cached", false), ("missed", true), ("preloaded", true), ("changed", false)]
    {
        assert_eq!(planner.wants(&table(name)), want, "{name}");
    }
    planner.miss("changed");
    assert_eq!(reads(&mut planner, now), [], "it is being read");
    assert!(planner.wants(&table("changed")));
}

#[test]
fn what_cannot_be_read_is_read_again_once_and_not_once_more_each_time() {
    let (mut planner, start) = live(&[], &[]);
    let pause = Duration::from_secs(5);
    let mut now = start;
    for round in 0..100 {
        now += Duration::from_millis(10);
        // As each round of the sweep does.
        planner.changed(What::Cluster("c".into()));
        planner.beat_at = now + 2 * pause;
        assert_eq!(reads(&mut planner, now), [What::Cluster("c".into())], "round {round}");
        planner.done(What::Cluster("c".into()), Verdict::Again(pause), now);
    }
    assert_eq!(reads(&mut planner, now + pause), [What::Cluster("c".into())]);
    assert_eq!(reads(&mut planner, now + pause), []);
}

#[test]
fn it_does_not_wake_up_for_what_cannot_be_done_yet() {
    let (mut planner, start) = live(&[], &[]);
    assert_eq!(reads(&mut planner, start + BEAT), [What::Root]);
    let now = start + BEAT + BEAT + Duration::from_millis(1);
    assert_eq!(reads(&mut planner, now), [], "the heartbeat is under way");
    assert!(planner.wake_at().unwrap() > now);
    planner.done(What::Root, Verdict::Settled, now);
    assert!(planner.wake_at().unwrap() <= now, "the next one is due");
    reads(&mut planner, now);
    (0..MAX_READS).for_each(|n| planner.changed(table(&format!("t{n}"))));
    assert_eq!(reads(&mut planner, now).len(), MAX_READS - 1);
    planner.sweep_round_at = now;
    assert_eq!(planner.wake_at(), None, "the end of a read is waited for");
}

#[test]
fn the_sweep_is_slow_and_never_ends() {
    let (mut planner, start) = live(&[], &[]);
    let mut now = start;
    let mut swept = Vec::new();
    let mut rounds = 0;
    while now < start + Duration::from_secs(100) {
        match planner.next_action(now) {
            Some(Action::StartSweep) => {
                rounds += 1;
                planner.sweep((0..100).map(|n| format!("t{n}").into()).collect());
            }
            Some(Action::Read(what)) => {
                if what != What::Root && what != What::Names {
                    swept.push(now);
                }
                planner.done(what, Verdict::Settled, now);
            }
            Some(_) => {}
            None => now = planner.wake_at().unwrap().max(now + Duration::from_millis(1)),
        }
    }
    assert!((2..=4).contains(&rounds), "{rounds} rounds in 100 s");
    assert_eq!(swept.len(), 100 * rounds);
    assert!(swept.windows(2).all(|pair| pair[1] - pair[0] >= SWEEP_STEP));
}
fn names(whats: &[What]) -> Vec<String> {
    let name = |what: &What| match what {
        What::Table(name) => name.to_string(),
        other => format!("{other:?}"),
    };
    let mut names: Vec<String> = whats.iter().map(name).collect();
    names.sort();
    names
}

/// Trap: a server that sets watches again says nothing of a znode whose watch had fired, or was being read.
#[test]
fn what_had_fired_or_was_being_read_at_the_cut_is_read_over_the_next_connection() {
    let (mut planner, now) = live(&["a", "b", "c", "d"], &[]);
    for what in reads(&mut planner, now) {
        planner.done(what, Verdict::Settled, now);
    }
    ["a", "b", "c", "d"].iter().for_each(|table| planner.confirmed(table, now));
    planner.changed(table("a"));
    planner.changed(table("b"));
    planner.miss("wanted");
    assert_eq!(planner.next_action(now), Some(Action::AllConfirmed(Duration::ZERO)));
    assert_eq!(planner.next_action(now), Some(Action::Read(table("a"))));
    planner.down();
    assert_eq!(planner.next_action(now), None);
    planner.changed(table("c")); // told before the cut, heard after it
    up(&mut planner, &["a", "b", "c", "d"], now);
    assert_eq!(planner.next_action(now), Some(Action::SetWatches(vec![table("d")])));
    let want = ["a", "b", "c", "wanted"];
    assert_eq!(names(&reads(&mut planner, now)), want);
    assert_eq!(planner.watches_set(vec![table("d")]), [table("d")]);
}

#[test]
fn what_queries_wait_for_is_read_until_they_are_served() {
    let (mut planner, now) = live(&[], &["named"]);
    assert_eq!(reads(&mut planner, now), [table("named")]);
    // Its record names a cluster, which is read next. The connection is cut before.
    planner.done(table("named"), Verdict::Waits, now);
    for round in 0..2 {
        planner.down();
        up(&mut planner, &[], now);
        assert_eq!(reads(&mut planner, now), [table("named")], "round {round}");
        assert!(planner.wants(&table("named")), "round {round}");
    }
    // There was no root when it was read; the root is looked at again, and is there.
    planner.done(table("named"), Verdict::Held, now);
    assert_eq!(reads(&mut planner, now), [table("named")]);
    planner.changed(table("named"));
    assert_eq!(reads(&mut planner, now), [], "it is being read");
    assert!(!planner.done(table("named"), Verdict::Settled, now));
    assert_eq!(reads(&mut planner, now), [table("named")]);
    assert!(planner.wants(&table("named")), "it changed while it was read, and is waited for");
    planner.done(table("named"), Verdict::Settled, now);
    planner.served("named");
    planner.down();
    up(&mut planner, &[], now);
    assert_eq!(reads(&mut planner, now), [], "nobody waits for it");
}

#[test]
fn a_watch_that_fires_while_it_is_set_again_confirms_nothing() {
    let (mut planner, now) = live(&[], &[]);
    planner.down();
    up(&mut planner, &["a", "b"], now);
    let set = vec![table("a"), table("b")];
    assert_eq!(planner.next_action(now), Some(Action::SetWatches(set.clone())));
    assert!(planner.is_resetting());
    planner.changed(table("a"));
    assert_eq!(planner.watches_set(set), [table("b")]);
    assert!(!planner.is_resetting());
}

#[test]
fn watches_are_set_again_in_requests_that_a_server_takes() {
    let (mut planner, now) = live(&[], &[]);
    planner.down();
    let tables: Vec<String> = (0..10_000).map(|n| format!("table_{n:05}")).collect();
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    up(&mut planner, &tables, now);
    let mut set = 0;
    while let Some(Action::SetWatches(chunk)) = planner.next_action(now) {
        let bytes: usize = chunk.len() * (LEN_BYTES + "/root/table_00000".len());
        assert!(bytes <= MAX_SET_WATCHES_BYTES && chunk.len() > 1000, "{bytes}");
        set += chunk.len();
    }
    assert_eq!(set, 10_000);
}

#[test]
fn a_long_list_of_names_is_not_read_for_each_change() {
    let (mut planner, start) = live(&[], &[]);
    for (count, at_least, at_most) in
        [(0, 0, 50), (1_000, 500, 500), (10_000, 5_000, 5_000), (1_000_000, 60_000, 60_000)]
    {
        let now = start + Duration::from_secs(1_000);
        planner.names_at = now;
        planner.sweep_round_at = now + Duration::from_secs(1_000);
        planner.beat_at = now + Duration::from_secs(1_000);
        planner.changed(What::Names);
        planner.changed(What::Names);
        assert_eq!(reads(&mut planner, now), [What::Names], "{count}");
        planner.done(What::Names, Verdict::Settled, now);
        planner.names_read(count, now);
        planner.changed(What::Names);
        if at_least > 0 {
            assert_eq!(
                reads(&mut planner, now + Duration::from_millis(at_least - 1)),
                [],
                "{count}"
            );
        }
        let later = now + Duration::from_millis(at_most);
        assert_eq!(reads(&mut planner, later), [What::Names], "{count}");
        planner.done(What::Names, Verdict::Settled, now);
    }
}

#[test]
fn without_the_right_root_only_what_tells_of_it_is_read() {
    let (mut planner, start) = live(&["a", "b"], &["m"]);
    for what in reads(&mut planner, start) {
        planner.done(what, Verdict::Settled, start);
    }
    planner.changed(What::Root);
    assert_eq!(reads(&mut planner, start), [What::Root]);
    planner.done(What::Root, Verdict::Held, start);
    planner.changed(table("a"));
    planner.changed(What::Names);
    planner.miss("n");
    assert_eq!(reads(&mut planner, start), [What::Names]);
    planner.done(What::Names, Verdict::Settled, start);
    let mut now = start;
    for _ in 0..100 {
        let wake_at = planner.wake_at().unwrap();
        assert!(wake_at > now, "it does not spin");
        now = wake_at;
        assert_eq!(reads(&mut planner, now), [What::Root], "no sweep either");
        planner.done(What::Root, Verdict::Held, now);
    }
    planner.sweep_round_at = now + SWEEP_ROUND;
    planner.changed(What::Root);
    assert_eq!(reads(&mut planner, now), [What::Root]);
    planner.done(What::Root, Verdict::Settled, now);
    planner.confirm_again(vec!["b".into(), "a".into()], now);
    assert_eq!(reads(&mut planner, now), [table("a"), table("b"), table("n")]);
}
