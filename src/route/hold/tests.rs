//! Holds: when one begins, which tables return with it, and what ends it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const OURS: Identity = Identity { czxid: 100, ctime_ms: 1 };
const OTHER: Identity = Identity { czxid: 200, ctime_ms: 2 };

fn there(identity: Identity) -> Seen {
    Seen::There { identity, is_older: false }
}

const OLDER: Seen = Seen::There { identity: OURS, is_older: true };

/// A cache that follows the decisions of a hold, as `zk::routes` does.
struct Cache {
    hold: Hold<u32>,
    tables: BTreeMap<Box<str>, u32>,
    now: Instant,
}

impl Cache {
    fn new(tables: usize) -> Self {
        Cache::with(Hold::new(true, Some(OURS), None), tables)
    }

    fn with(hold: Hold<u32>, tables: usize) -> Self {
        let tables = (0..tables).map(|n| (name(n), n as u32)).collect();
        Cache { hold, tables, now: Instant::now() }
    }

    fn see(&mut self, seen: Seen) -> Option<Kind> {
        let back = self.hold.see_root(seen, self.tables.len(), self.now);
        self.tables.extend(back);
        self.kind()
    }

    /// Reads a table that does not exist.
    fn absent(&mut self, table: &str) -> Option<Kind> {
        if !self.hold.is_blind()
            && let Some(value) = self.tables.get(table).copied()
        {
            match self.hold.absent(table, value, self.tables.len(), self.now) {
                Absence::Gone => drop(self.tables.remove(table)),
                Absence::Held(back) => self.tables.extend(back),
            }
        }
        self.kind()
    }

    fn all_absent(&mut self, tables: std::ops::Range<usize>) -> Option<Kind> {
        for n in tables {
            self.absent(&name(n));
        }
        self.kind()
    }

    fn present(&mut self, table: &str) -> Option<Kind> {
        if !self.hold.is_blind() {
            self.hold.present(table);
            self.tables.insert(table.into(), 7);
        }
        self.kind()
    }

    fn kind(&self) -> Option<Kind> {
        self.hold.view().shown.map(|shown| shown.kind)
    }

    fn accept(&mut self, czxid: i64, gone: usize) -> Result<Shown, Refusal> {
        self.hold.accept(czxid, gone, self.tables.keys().cloned().collect())
    }

    fn accept_shown(&mut self) {
        let shown = self.hold.view().shown.unwrap();
        self.accept(shown.czxid(), shown.gone).unwrap();
    }

    fn wait(&mut self, span: Duration) {
        self.now += span;
    }
}

fn name(n: usize) -> Box<str> {
    format!("t{n}").into()
}

#[test]
fn a_root_that_is_not_the_known_one_is_held_and_ends_when_that_is_back() {
    for (why, seen, want) in [
        ("it is there", there(OURS), None),
        ("it is missing", Seen::Missing, Some(Kind::RootMissing)),
        ("it was deleted and created at once", there(OTHER), Some(Kind::RootForeign)),
        (
            "the same zxid in another ensemble",
            there(Identity { ctime_ms: 9, ..OURS }),
            Some(Kind::RootForeign),
        ),
        ("a backup was restored", OLDER, Some(Kind::RootOlder)),
    ] {
        for tables in [0, 1, 100] {
            let mut cache = Cache::new(tables);
            assert_eq!(cache.see(seen), want, "{why}, {tables} tables");
            assert_eq!(cache.hold.is_blind(), want.is_some(), "{why}");
            assert_eq!(cache.tables.len(), tables, "{why}");
            cache.wait(100 * WINDOW);
            assert_eq!(cache.see(seen), want, "{why}: no time ends it");
            assert_eq!(cache.see(there(OURS)), None, "{why}: it is back");
        }
    }
}

#[test]
fn a_first_start_without_a_root_holds_nothing_and_takes_the_root_that_comes() {
    let mut cache = Cache::with(Hold::new(true, None, None), 0);
    assert_eq!(cache.see(Seen::Missing), None);
    assert!(cache.hold.is_blind() && cache.hold.view().is_rootless);
    assert_eq!(cache.see(there(OTHER)), None);
    assert!(!cache.hold.is_blind());
    assert_eq!(cache.see(there(OURS)), Some(Kind::RootForeign), "one is known by now");
}

#[test]
fn routes_of_a_file_that_does_not_name_their_root() {
    for (why, oldest_zxid, seen, want) in [
        ("they may be of this root", 150, there(OURS), None),
        ("a root that is younger never had them", 150, there(OTHER), Some(Kind::RootForeign)),
        ("there is none", 150, Seen::Missing, Some(Kind::RootMissing)),
        ("ZooKeeper knows less", 150, OLDER, Some(Kind::RootOlder)),
    ] {
        let mut cache = Cache::with(Hold::new(true, None, Some(oldest_zxid)), 3);
        assert_eq!(cache.see(seen), want, "{why}");
    }
}

#[test]
fn a_few_tables_go_and_many_are_held() {
    let held = Some(Kind::TablesGone);
    for (why, cached, gone, want) in [
        ("one of one", 1, 1, None),
        ("one of two", 2, 1, None),
        ("both of two", 2, 2, held),
        ("nine of ten", 10, 9, None),
        ("all of ten", 10, 10, held),
        ("ten of eleven are few", 11, 10, None),
        ("eleven of fifty are more than a fifth", 50, 11, held),
        ("eleven of fifty-five are not", 55, 11, None),
        ("a fifth of a thousand", 1_000, 200, None),
        ("more than a fifth", 1_000, 201, held),
    ] {
        let mut cache = Cache::new(cached);
        assert_eq!(cache.all_absent(0..gone), want, "{why}");
        let left = if want.is_some() { cached } else { cached - gone };
        assert_eq!(cache.tables.len(), left, "{why}: what went returns with the hold");
        if want.is_some() {
            assert_eq!(cache.hold.view().shown.unwrap().gone, gone, "{why}");
            assert!(!cache.hold.is_blind(), "{why}: records are followed");
        }
    }
}

#[test]
fn only_what_went_within_a_minute_counts_and_returns() {
    let mut cache = Cache::new(50);
    for n in 0..40 {
        assert_eq!(cache.absent(&name(n)), None, "slowly, {n}");
        cache.wait(WINDOW / 5);
    }
    // The last five disappeared within a minute.
    assert_eq!(cache.see(Seen::Missing), Some(Kind::RootMissing));
    assert_eq!(cache.tables.len(), 15 - 1, "four of them less than a minute ago");
    assert_eq!(cache.tables[&name(39)], 39, "with what was cached of it");
}

#[test]
fn a_deleteall_returns_what_it_took_before_the_root() {
    for tables in [1, 2, 9] {
        let mut cache = Cache::new(tables);
        cache.all_absent(0..tables);
        assert_eq!(cache.see(Seen::Missing), Some(Kind::RootMissing), "{tables}");
        assert_eq!(cache.tables.len(), tables);
        let shown = cache.hold.view().shown.unwrap();
        assert_eq!((shown.czxid(), shown.gone), (0, tables));
    }
}

#[test]
fn tables_that_are_recreated_one_by_one_are_not_many() {
    let mut cache = Cache::new(100);
    for n in 0..100 {
        assert_eq!(cache.absent(&name(n)), None, "{n}");
        let names: Vec<Box<str>> = (0..100).map(name).collect();
        assert!(
            cache.hold.found_among(|table| names.iter().any(|name| **name == *table)).is_empty()
        );
        assert_eq!(cache.present(&name(n)), None);
    }
}

#[test]
fn held_tables_end_the_hold_when_all_are_back() {
    let mut cache = Cache::new(3);
    assert_eq!(cache.all_absent(0..3), Some(Kind::TablesGone));
    assert_eq!(cache.present("new"), Some(Kind::TablesGone), "another one is followed");
    assert_eq!(cache.absent("new"), Some(Kind::TablesGone), "and held in its turn");
    assert_eq!(cache.hold.view().shown.unwrap().gone, 4);
    let mut back = cache.hold.found_among(|table| matches!(table, "t0" | "new" | "x"));
    back.sort_unstable();
    assert_eq!(back, ["new".into(), name(0)], "these are worth a read");
    cache.present("new");
    cache.all_absent(0..3);
    for (n, want) in [(0, Some(Kind::TablesGone)), (1, Some(Kind::TablesGone)), (2, None)] {
        assert_eq!(cache.present(&name(n)), want);
    }
    assert_eq!(cache.tables.len(), 4);
}

#[test]
fn a_held_table_that_left_the_cache_holds_nothing() {
    let mut cache = Cache::new(2);
    cache.all_absent(0..2);
    cache.hold.keep(|table| table == "t1");
    assert_eq!(cache.hold.view().shown.unwrap().gone, 1);
    cache.hold.keep(|_| false);
    assert_eq!(cache.kind(), None);
}

#[test]
fn a_root_that_goes_and_returns_leaves_tables_held() {
    let mut cache = Cache::new(3);
    cache.all_absent(0..3);
    cache.present("a");
    assert_eq!(cache.see(Seen::Missing), Some(Kind::RootMissing));
    assert_eq!(cache.see(there(OURS)), Some(Kind::TablesGone), "they are still gone");
    assert_eq!(cache.tables.len(), 4);
}

#[test]
fn a_hold_goes_on_after_a_restart() {
    let mut hold = Hold::new(true, Some(OURS), None);
    hold.restore([name(0), name(1)], Instant::now());
    let mut cache = Cache::with(hold, 60);
    assert_eq!(cache.see(there(OURS)), Some(Kind::TablesGone));
    assert_eq!(cache.all_absent(0..2), Some(Kind::TablesGone), "two of sixty would be few");
    assert_eq!(cache.tables.len(), 60);
}

#[test]
fn an_accept_counts_only_for_what_was_shown() {
    let mut cache = Cache::new(20);
    let five = || (0..5).map(name).collect();
    assert_eq!(cache.accept(0, 0), Err(Refusal::NotHeld));
    cache.see(there(OTHER));
    cache.hold.note_absent(five());
    for (why, czxid, gone) in
        [("the known root", 100, 5), ("no root", 0, 5), ("more tables", 200, 6), ("less", 200, 0)]
    {
        let Err(Refusal::Changed(shown)) = cache.accept(czxid, gone) else { panic!("{why}") };
        assert_eq!((shown.czxid(), shown.gone), (200, 5), "{why}");
    }
    cache.see(Seen::Missing);
    assert!(cache.accept(200, 5).is_err(), "it has changed");
    cache.see(there(OTHER));
    assert!(cache.accept(200, 5).is_err(), "they were not looked for again yet");
    cache.hold.note_absent(five());
    cache.accept(200, 5).unwrap();
    assert_eq!((cache.see(there(OTHER)), cache.all_absent(0..5)), (None, None));
    assert_eq!(cache.tables.len(), 15);
    assert_eq!(cache.see(there(OURS)), Some(Kind::RootForeign), "the other one is known now");
}

#[test]
fn all_tables_may_go_that_nobody_looked_for_below_an_accepted_root() {
    let mut cache = Cache::new(20);
    cache.see(there(OTHER));
    cache.accept_shown();
    assert_eq!(cache.all_absent(0..20), None);
    assert!(cache.tables.is_empty());
}

#[test]
fn accepted_tables_go_and_others_are_counted_anew() {
    let mut cache = Cache::new(50);
    cache.all_absent(0..11);
    cache.accept_shown();
    assert_eq!((cache.kind(), cache.tables.len()), (None, 50));
    assert_eq!(cache.all_absent(0..11), None);
    assert_eq!(cache.tables.len(), 39);
    assert_eq!(cache.all_absent(11..22), Some(Kind::TablesGone), "nobody accepted these");
    assert_eq!(cache.tables.len(), 39);
}

#[test]
fn an_accepted_table_that_came_back_is_not_expected_to_go() {
    let mut cache = Cache::new(2);
    cache.all_absent(0..2);
    cache.accept_shown();
    cache.present("t0");
    cache.present("t1");
    assert_eq!(cache.all_absent(0..2), Some(Kind::TablesGone));
}

#[test]
fn a_missing_root_that_is_accepted_is_followed_by_any_root() {
    let mut cache = Cache::new(3);
    cache.see(Seen::Missing);
    cache.accept_shown();
    cache.tables.clear();
    assert_eq!(cache.see(Seen::Missing), None);
    assert!(cache.hold.is_blind());
    assert_eq!(cache.see(there(OTHER)), None);
}

#[test]
fn another_zookeeper_that_an_operator_names_is_believed_unless_it_has_no_root() {
    for seen in [there(OURS), there(OTHER)] {
        let mut cache = Cache::new(50);
        cache.see(Seen::Missing);
        cache.hold.start_anew(cache.tables.keys().cloned().collect());
        assert_eq!(cache.kind(), None);
        assert_eq!(cache.see(Seen::Missing), Some(Kind::RootMissing), "an empty one is a mistake");
        assert_eq!(cache.see(seen), None);
        assert_eq!(cache.all_absent(0..50), None);
        assert!(cache.tables.is_empty());
    }
}

#[test]
fn without_holds_every_absence_is_believed() {
    let mut cache = Cache::with(Hold::new(false, Some(OURS), None), 50);
    cache.hold.restore([name(0)], cache.now);
    for seen in [Seen::Missing, there(OTHER), OLDER] {
        assert_eq!(cache.see(seen), None);
        assert!(!cache.hold.is_blind());
    }
    assert_eq!(cache.all_absent(0..50), None);
    assert!(cache.tables.is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    See(Seen),
    Absent(usize),
    Present(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let seen = prop_oneof![
        4 => Just(there(OURS)),
        1 => Just(Seen::Missing),
        1 => Just(there(OTHER)),
        1 => Just(OLDER),
    ];
    prop_oneof![
        3 => seen.prop_map(Step::See),
        12 => (0..30_usize).prop_map(Step::Absent),
        3 => (0..30_usize).prop_map(Step::Present),
        3 => (0..40_000_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever ZooKeeper shows, without an accept the cache loses a few tables a minute, and never all of several.
    #[test]
    fn no_history_empties_the_cache(
        tables in 0..30_usize,
        steps in prop::collection::vec(step(), 0..400),
    ) {
        let mut cache = Cache::new(tables);
        let mut sizes: Vec<(Instant, usize)> = vec![(cache.now, tables)];
        for step in steps {
            match step {
                Step::See(seen) => cache.see(seen),
                Step::Absent(n) => cache.absent(&name(n)),
                Step::Present(n) => cache.present(&name(n)),
                Step::Wait(ms) => {
                    cache.wait(Duration::from_millis(ms));
                    cache.kind()
                }
            };
            let size = cache.tables.len();
            // The largest size of the cache within the last minute.
            let last_old = sizes.iter().rposition(|(at, _)| *at + WINDOW <= cache.now).unwrap_or(0);
            sizes.drain(..last_old);
            let most = sizes.iter().map(|(_, size)| *size).max().unwrap_or(0);
            let may_go = FEW.max(most / SHARE);
            prop_assert!(size + may_go >= most, "{most} -> {size}");
            prop_assert!(size > 0 || most <= 1, "{most} -> none");
            if let Some(shown) = cache.hold.view().shown {
                prop_assert!(shown.gone <= size, "{shown:?}, {size} cached");
            }
            sizes.push((cache.now, size));
        }
    }

    /// A hold of tables ends by itself exactly when all of them are back.
    #[test]
    fn tables_that_are_back_end_the_hold(tables in 2..30_usize, order in any::<u64>()) {
        let mut cache = Cache::new(tables);
        prop_assert_eq!(cache.all_absent(0..tables), Some(Kind::TablesGone));
        for n in 0..tables {
            prop_assert_eq!(cache.kind(), Some(Kind::TablesGone));
            cache.present(&name((n + order as usize % tables) % tables));
        }
        prop_assert_eq!(cache.kind(), None);
    }
}
