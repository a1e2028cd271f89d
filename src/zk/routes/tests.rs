//! The routes after what was read.

use std::net::SocketAddr;

use super::*;
use crate::route::hold::Kind;
use crate::route::names::Names;
use crate::route::table::{Found as TableFound, RouteTable};
use crate::upstream::cluster::Upstream;
use crate::zk::codec::Stat;
use crate::zk::lag::Doubt;
use crate::zk::planner::Verdict;
use crate::zk::read::{Found, ReadError, ReadResult};

fn server() -> SocketAddr {
    "127.0.0.1:2181".parse().unwrap()
}

/// A connection to a server that knows of this change.
fn connect(routes: &mut Routes, zxid: i64) {
    routes.decide(|meaning| meaning.connected(server(), Instant::now()));
    routes.decide(|meaning| meaning.history.knows(zxid));
}

/// A server that knows less shows its root.
fn look(routes: &mut Routes, zxid: i64, root: Option<Stat>) -> bool {
    routes.decide(|meaning| meaning.looked(server(), zxid, root, Instant::now())).0
}

fn disconnect(routes: &mut Routes) {
    routes.decide(Meaning::disconnected);
}

/// The outcome of a read.
struct Taken {
    verdict: Verdict,
    known: Vec<Box<str>>,
    gone: Vec<Box<str>>,
    read: Vec<What>,
    confirm_all: bool,
}

fn take(
    routes: &mut Routes,
    what: &What,
    found: ReadResult,
    is_wanted: bool,
) -> Result<Taken, Doubt> {
    let take = |meaning: &mut Meaning| meaning.take(what, found, is_wanted, Instant::now());
    let (verdict, news) = routes.decide(take);
    let News { known, gone, read, confirm_all } = news;
    Ok(Taken { verdict: verdict?, known, gone, read, confirm_all })
}

fn names<'a>(names: impl IntoIterator<Item = &'a str>) -> ReadResult {
    Ok(Found::Names(Names::new(names.into_iter().collect())))
}

/// A read is sent, and answered before anything else.
fn read(
    routes: &mut Routes,
    what: &What,
    found: ReadResult,
    is_wanted: bool,
) -> Result<Taken, Doubt> {
    routes.decide(|meaning| meaning.asked(what));
    take(routes, what, found, is_wanted)
}

fn routes() -> Routes {
    routes_of_table().1
}

fn routes_of_table() -> (Arc<RouteTable>, Routes) {
    let clusters = Clusters::new(Upstream::unrouted());
    let (table, writer) = RouteTable::new(20);
    let paths = Paths { root: "/r".to_owned(), clusters_root: Some("/c".to_owned()) };
    (table, Routes::new(paths, true, writer, clusters))
}

fn record(text: &str, mzxid: i64) -> ReadResult {
    Ok(Found::Record { data: text.into(), stat: Stat { mzxid, ..Stat::default() } })
}

#[test]
fn a_table_that_waited_for_its_cluster_is_read_again_after_a_reconnect() {
    let mut routes = routes();
    let (table, cluster) = (What::Table("t".into()), What::Cluster("c1".into()));
    let names_cluster = || record(r#"{"cluster": "c1"}"#, 1);
    let taken = take(&mut routes, &table, names_cluster(), true).unwrap();
    assert_eq!(taken.read, [What::Cluster("c1".into())]);
    disconnect(&mut routes);
    connect(&mut routes, 0);
    let metas = || record(r#"{"meta_addrs": "h:1"}"#, 2);
    let taken = read(&mut routes, &cluster, metas(), false).unwrap();
    assert!(
        taken.known.is_empty() && !routes.cached.has("t"),
        "its record may name another by now"
    );
    take(&mut routes, &table, names_cluster(), true).unwrap();
    let taken = read(&mut routes, &cluster, metas(), false).unwrap();
    assert!(taken.known == ["t".into()] && routes.cached.has("t"));
}

#[test]
fn what_is_older_than_what_was_seen_is_not_taken() {
    let metas = || r#"{"meta_addrs": "h:1"}"#;
    let table = What::Table("t".into());
    let seen = || {
        let mut routes = routes();
        connect(&mut routes, 0);
        take(&mut routes, &What::Root, root_at(5), false).unwrap();
        take(&mut routes, &table, record(metas(), 7), true).unwrap();
        connect(&mut routes, 0);
        routes
    };
    for (why, what, found, want) in [
        ("an older record", &table, record(metas(), 6), false),
        ("the same record", &table, record(metas(), 7), true),
        ("a newer record", &table, record(metas(), 8), true),
        ("the table may have come since", &table, gone_at(6), false),
        ("the table went", &table, gone_at(8), true),
        ("tables came or went since", &What::Root, root_at(4), false),
        ("the same root", &What::Root, root_at(5), true),
        ("the root may have come since", &What::Root, no_root(4), false),
        // As long as nobody has looked for other servers.
        ("the root went", &What::Root, no_root(9), false),
    ] {
        let mut routes = seen();
        let taken = take(&mut routes, what, found, false);
        assert_eq!(taken.is_ok(), want, "{why}: {:?}", taken.err());
        assert!(routes.history.newest >= 7, "{why}");
        assert_eq!(routes.hold.is_blind(), why == "the root went", "{why}");
    }
}

/// The root as of the last creation or deletion below it.
fn root_at(pzxid: i64) -> ReadResult {
    Ok(Found::Root(OURS.at(pzxid)))
}

fn no_root(above: i64) -> ReadResult {
    Ok(Found::NoRoot { pzxid: above })
}

/// A table that is not there, and the root looked at after it.
fn gone_at(pzxid: i64) -> ReadResult {
    Ok(Found::Absent { root: Some(OURS.at(pzxid)) })
}

struct RootOf {
    czxid: i64,
}

impl RootOf {
    fn at(&self, pzxid: i64) -> Stat {
        Stat { czxid: self.czxid, ctime_ms: self.czxid, pzxid, ..Stat::default() }
    }
}

const OURS: RootOf = RootOf { czxid: 1 };
const OTHER: RootOf = RootOf { czxid: 50 };

/// A table's record that was created at `czxid`, below whatever root.
fn created(czxid: i64) -> ReadResult {
    let stat = Stat { czxid, mzxid: czxid, ..Stat::default() };
    Ok(Found::Record { data: br#"{"meta_addrs": "new:1"}"#.to_vec(), stat })
}

/// Ten tables are cached and confirmed.
fn with_ten_tables() -> (Arc<RouteTable>, Routes, Vec<What>) {
    let (table, mut routes) = routes_of_table();
    connect(&mut routes, 0);
    take(&mut routes, &What::Root, root_at(20), false).unwrap();
    let tables: Vec<What> = (0..10).map(|n| What::Table(format!("t{n}").into())).collect();
    for what in &tables {
        take(&mut routes, what, metas("a", 10), true).unwrap();
    }
    (table, routes, tables)
}

/// Times are in ms.
fn later(table: &RouteTable) {
    while table.list().iter().any(|listed| listed.confirmed.is_some_and(|age| age.is_zero())) {}
}

/// A root that is not ours is left at once for another server, the first times.
fn stay(routes: &mut Routes) {
    routes.decide(|meaning| meaning.seen.left = 20);
}

#[test]
fn nothing_of_another_root_is_used_until_ours_is_back() {
    let (table, mut routes, tables) = with_ten_tables();
    stay(&mut routes);
    let taken = take(&mut routes, &What::Root, Ok(Found::Root(OTHER.at(60))), false).unwrap();
    assert_eq!((taken.verdict, taken.read), (Verdict::Held, vec![What::Names]));
    take(&mut routes, &What::Names, names(["t3", "t4", "x"]), false).unwrap();
    let shown = table.hold().shown.unwrap();
    assert_eq!((shown.kind, shown.czxid(), shown.gone), (Kind::RootForeign, 50, 8));
    for found in [metas("b", 70), created(70), Ok(Found::Absent { root: Some(OTHER.at(60)) })] {
        let taken = take(&mut routes, &tables[3], found, true).unwrap();
        assert_eq!(taken.verdict, Verdict::Held);
        assert!(taken.known.is_empty() && taken.gone.is_empty());
    }
    assert_eq!(host_of(&routes, "t3").unwrap(), "a:1");
    assert!(table.list().iter().all(|listed| listed.is_held && listed.is_stale));
    for unknown in ["x", "nosuch"] {
        assert!(matches!(table.find(unknown, Instant::now()), TableFound::Held), "{unknown}");
    }
    later(&table);
    assert!(routes.history.newest <= 20, "zxids of another ensemble say nothing of ours");
    let taken = take(&mut routes, &What::Root, root_at(20), false).unwrap();
    assert!(taken.confirm_all && taken.verdict == Verdict::Settled);
    assert!(
        table.list().iter().all(|listed| !listed.is_held && listed.is_stale),
        "to be confirmed"
    );
    assert!(matches!(table.find("x", Instant::now()), TableFound::Missing));
}

#[test]
fn a_record_counts_only_if_the_root_was_seen_since_it_was_created() {
    for (why, root, is_used) in [("our root", root_at(30), true), ("another", no_root(70), false)] {
        let (_, mut routes, tables) = with_ten_tables();
        stay(&mut routes);
        let taken = take(&mut routes, &tables[0], created(30), false).unwrap();
        assert_eq!((taken.verdict, taken.read), (Verdict::Waits, vec![What::Root]), "{why}");
        assert_eq!(host_of(&routes, "t0").unwrap(), "a:1", "{why}");
        let taken = take(&mut routes, &What::Root, root, false).unwrap();
        assert_eq!(taken.known == ["t0".into()], is_used, "{why}");
        let want = if is_used { "new:1" } else { "a:1" };
        assert_eq!(host_of(&routes, "t0").unwrap(), want, "{why}");
    }
}

#[test]
fn tables_that_go_with_their_root_stay() {
    let (table, mut routes, tables) = with_ten_tables();
    stay(&mut routes);
    for what in &tables[..5] {
        assert_eq!(take(&mut routes, what, gone_at(30), false).unwrap().gone.len(), 1);
    }
    assert_eq!(table.len(), 5, "they went one by one");
    let taken = take(&mut routes, &tables[5], Ok(Found::Absent { root: None }), false).unwrap();
    assert_eq!((taken.verdict, taken.read), (Verdict::Held, vec![What::Root]));
    take(&mut routes, &What::Root, no_root(40), false).unwrap();
    assert_eq!(table.len(), 10, "all of them return");
    let shown = table.hold().shown.unwrap();
    assert_eq!((shown.kind, shown.gone), (Kind::RootMissing, 10));
}

#[test]
fn absent_tables_are_held_and_records_followed_when_many_go() {
    let (table, mut routes, tables) = with_ten_tables();
    for what in &tables {
        take(&mut routes, what, gone_at(40), false).unwrap();
    }
    let held = || table.list().iter().filter(|listed| listed.is_held).count();
    assert_eq!((table.len(), held()), (10, 10));
    assert!(routes.hold.is_holding() && !routes.hold.is_blind());
    // One is created anew, one more comes, and both are followed.
    take(&mut routes, &What::Root, root_at(44), false).unwrap();
    let taken = take(&mut routes, &What::Names, names(["t3", "new"]), false).unwrap();
    assert_eq!(taken.read, [tables[3].clone()], "it is there again");
    take(&mut routes, &tables[3], created(43), false).unwrap();
    take(&mut routes, &What::Table("new".into()), created(44), true).unwrap();
    assert_eq!((table.len(), held()), (11, 9));
    assert_eq!(host_of(&routes, "t3").unwrap(), "new:1");
    assert!(matches!(table.find("nosuch", Instant::now()), TableFound::Held));

    assert!(routes.decide(|meaning| meaning.accept(1, 10)).0.is_err(), "it was another number");
    routes.decide(|meaning| meaning.accept(1, 9)).0.unwrap();
    assert!(!routes.hold.is_holding() && held() == 0);
    for what in &tables {
        let found = if *what == tables[3] { created(43) } else { gone_at(44) };
        take(&mut routes, what, found, false).unwrap();
    }
    assert_eq!(table.len(), 2);
}

#[test]
fn what_is_accepted_of_another_root_is_used_and_the_rest_goes() {
    let (table, mut routes, tables) = with_ten_tables();
    stay(&mut routes);
    take(&mut routes, &What::Root, Ok(Found::Root(RootOf { czxid: 2 }.at(3))), false).unwrap();
    take(&mut routes, &What::Names, names(["t3"]), false).unwrap();
    routes.decide(|meaning| meaning.accept(2, 9)).0.unwrap();
    assert_eq!(table.len(), 10, "until they are read");
    disconnect(&mut routes);
    connect(&mut routes, 3);
    let other = || RootOf { czxid: 2 }.at(3);
    take(&mut routes, &What::Root, Ok(Found::Root(other())), false).unwrap();
    for what in &tables {
        let gone = || Ok(Found::Absent { root: Some(other()) });
        let found = if *what == tables[3] { metas("b", 3) } else { gone() };
        take(&mut routes, what, found, false).unwrap();
    }
    assert_eq!((table.len(), host_of(&routes, "t3").unwrap()), (1, "b:1".to_owned()));
    routes.decide(|meaning| meaning.history.is_anew = false);
    assert_eq!(routes.history.newest, 3, "this is the history now");
    assert!(take(&mut routes, &tables[3], metas("a", 2), false).is_err());
}

#[test]
fn a_server_that_knows_less_is_only_looked_at() {
    let (table, mut routes, tables) = with_ten_tables();
    disconnect(&mut routes);
    let newest = routes.history.newest;
    for (why, root, kind, czxid) in [
        ("a backup was restored", Some(OURS.at(3)), Kind::RootOlder, 1),
        ("it was set up anew", Some(RootOf { czxid: 2 }.at(3)), Kind::RootForeign, 2),
        ("it is empty", None, Kind::RootMissing, 0),
    ] {
        assert!(!look(&mut routes, 3, root), "{why}");
        let shown = table.hold().shown.unwrap();
        assert_eq!((shown.kind, shown.czxid(), shown.gone), (kind, czxid, 10), "{why}");
        take(&mut routes, &tables[0], metas("b", 3), false).unwrap();
        assert_eq!(host_of(&routes, "t0").unwrap(), "a:1", "{why}");
        assert_eq!(routes.history.newest, newest, "{why}: the next one must know more");
    }
    assert!(look(&mut routes, newest, Some(OURS.at(20))), "it is ours, and knows all");
    look(&mut routes, 3, None);
    connect(&mut routes, newest);
    assert!(take(&mut routes, &What::Root, root_at(20), false).unwrap().confirm_all);
}

#[test]
fn zxids_of_another_ensemble_are_not_those_of_ours() {
    let (_, mut routes, _) = with_ten_tables();
    let newest = routes.history.newest;
    disconnect(&mut routes);
    connect(&mut routes, 1_000);
    assert_eq!(routes.history.newest, newest, "its root was not seen yet");
    let _ = take(&mut routes, &What::Root, Ok(Found::Root(OTHER.at(900))), false);
    routes.decide(|meaning| meaning.history.knows(1_001));
    assert_eq!(routes.history.newest, newest);
    disconnect(&mut routes);
    connect(&mut routes, newest + 5);
    take(&mut routes, &What::Root, root_at(20), false).unwrap();
    assert_eq!(routes.history.newest, newest + 5);
}

#[test]
fn a_table_is_used_with_a_record_of_its_cluster_that_is_at_least_as_new() {
    let (_, mut routes) = routes_of_table();
    connect(&mut routes, 5);
    let cluster = |name: &str| What::Cluster(name.into());
    let (t, u) = (What::Table("t".into()), What::Table("u".into()));
    let names = |name: &str, mzxid| record(&format!(r#"{{"cluster": "{name}"}}"#), mzxid);
    take(&mut routes, &t, names("c1", 1), true).unwrap();
    take(&mut routes, &u, names("c2", 2), true).unwrap();
    read(&mut routes, &cluster("c1"), metas("old1", 3), false).unwrap();
    read(&mut routes, &cluster("c2"), metas("old2", 4), false).unwrap();
    // c2 gets new addresses at 6, the table names it at 7, and its record is read first.
    let taken = take(&mut routes, &t, names("c2", 7), false).unwrap();
    assert_eq!((taken.verdict, taken.read), (Verdict::Waits, vec![cluster("c2")]));
    assert_eq!(host_of(&routes, "t").unwrap(), "old1:1", "not replaced addresses");
    let taken = read(&mut routes, &cluster("c2"), metas("new2", 6), false).unwrap();
    assert!(taken.known.contains(&"t".into()));
    assert_eq!(host_of(&routes, "t").unwrap(), "new2:1");
    // A read of the cluster is under way when the table's record comes.
    routes.decide(|meaning| meaning.asked(&cluster("c1")));
    routes.decide(|meaning| meaning.asked(&cluster("c2")));
    let taken = take(&mut routes, &u, names("c1", 9), false).unwrap();
    assert_eq!(taken.read, [cluster("c1")], "the one under way may be too old");
    take(&mut routes, &cluster("c1"), metas("old1", 3), false).unwrap();
    assert_eq!(host_of(&routes, "u").unwrap(), "new2:1");
    read(&mut routes, &cluster("c1"), metas("new1", 8), false).unwrap();
    assert_eq!(host_of(&routes, "u").unwrap(), "new1:1");
    // A cluster that was read since then need not be read again.
    let taken = take(&mut routes, &t, names("c1", 9), false).unwrap();
    assert!(taken.read.is_empty() && host_of(&routes, "t").unwrap() == "new1:1");
}

const NAMES_C1: &str = r#"{"cluster": "c1"}"#;

fn metas(host: &str, mzxid: i64) -> ReadResult {
    record(&format!(r#"{{"meta_addrs": "{host}:1"}}"#), mzxid)
}

fn host_of(routes: &Routes, table: &str) -> Option<String> {
    Some(routes.cached.route(table)?.cluster.meta_addrs[0].clone())
}

#[test]
fn a_table_is_confirmed_by_its_own_record_and_that_of_its_cluster() {
    let (table_of_routes, mut routes) = routes_of_table();
    let is_stale = || table_of_routes.list()[0].is_stale;
    connect(&mut routes, 0);
    let (table, cluster) = (What::Table("t".into()), What::Cluster("c1".into()));
    take(&mut routes, &table, record(NAMES_C1, 1), true).unwrap();
    read(&mut routes, &cluster, metas("a", 2), false).unwrap();
    assert!(!is_stale());
    let again = |routes: &mut Routes| {
        disconnect(routes);
        // Times are in ms.
        while table_of_routes.list()[0].confirmed.is_some_and(|age| age.is_zero()) {}
        connect(routes, 9);
    };
    again(&mut routes);
    let taken = take(&mut routes, &table, record(NAMES_C1, 1), false).unwrap();
    assert_eq!((taken.verdict, taken.read), (Verdict::Waits, vec![]), "it is being read");
    assert!(taken.known.is_empty() && is_stale(), "the cluster may have moved");
    let taken = read(&mut routes, &cluster, metas("b", 3), false).unwrap();
    assert_eq!(taken.known, ["t".into()]);
    assert!(!is_stale() && host_of(&routes, "t").unwrap() == "b:1");

    again(&mut routes);
    let taken = read(&mut routes, &cluster, metas("b", 3), false).unwrap();
    assert!(taken.known.is_empty() && is_stale(), "it may name another");
    let taken = take(&mut routes, &table, record(NAMES_C1, 1), false).unwrap();
    assert_eq!((taken.verdict, taken.known), (Verdict::Settled, vec!["t".into()]));
    assert!(!is_stale());

    let taken = read(&mut routes, &cluster, Err(ReadError::NoNode), false).unwrap();
    assert_eq!(taken.verdict, Verdict::Settled, "a watch tells when it comes");
    assert!(is_stale() && host_of(&routes, "t").unwrap() == "b:1");
}

#[test]
fn a_table_with_junk_follows_the_cluster_that_it_named() {
    let mut routes = routes();
    let (table, cluster) = (What::Table("t".into()), What::Cluster("c1".into()));
    take(&mut routes, &table, record(NAMES_C1, 1), true).unwrap();
    read(&mut routes, &cluster, metas("a", 2), false).unwrap();
    take(&mut routes, &table, record("junk", 3), false).unwrap();
    read(&mut routes, &cluster, metas("b", 4), false).unwrap();
    assert_eq!(host_of(&routes, "t").unwrap(), "b:1");
}

#[test]
fn tables_that_made_room_do_not_come_back_unless_they_are_wanted() {
    let mut routes = routes();
    let (table, cluster) = (What::Table("t".into()), What::Cluster("c1".into()));
    for found in [metas("a", 1), record(NAMES_C1, 1), record("junk", 1), Err(ReadError::NoAuth)] {
        let taken = take(&mut routes, &table, found, false).unwrap();
        assert!(taken.verdict == Verdict::Settled && !routes.cached.has("t"));
    }
    take(&mut routes, &table, record(NAMES_C1, 1), true).unwrap();
    routes.decide(Meaning::forget_unnamed);
    assert!(!routes.cached.has("t"), "it waits for its cluster");
    read(&mut routes, &cluster, metas("a", 2), false).unwrap();
    assert!(routes.cached.has("t"));
    routes.writer.remove("t");
    read(&mut routes, &cluster, metas("b", 3), false).unwrap();
    assert!(!routes.cached.has("t"));
}

#[test]
fn a_fault_of_a_cluster_is_one_of_its_tables_and_their_own_counts_more() {
    let (table, mut routes) = routes_of_table();
    let (t, cluster) = (What::Table("t".into()), What::Cluster("c1".into()));
    let shown = || table.list()[0].fault.as_deref().unwrap_or("none").to_owned();
    let names_cluster = |mzxid| record(r#"{"cluster": "c1"}"#, mzxid);
    let metas = |mzxid| record(r#"{"meta_addrs": "h:1"}"#, mzxid);
    let mut take = |what, found| drop(read(&mut routes, what, found, true).unwrap());
    take(&t, names_cluster(1));
    take(&cluster, metas(2));
    assert_eq!(shown(), "none");
    take(&cluster, record("junk", 3));
    assert!(shown().starts_with("znode /c/c1: want a JSON object, got "), "{}", shown());
    take(&t, names_cluster(1));
    assert!(shown().starts_with("znode /c/c1: "), "read again: {}", shown());
    take(&cluster, metas(4));
    assert_eq!(shown(), "none");
    take(&t, record("junk", 5));
    let own = shown();
    assert!(own.starts_with("want a JSON object"), "{own}");
    take(&cluster, record(r#"{"meta_addrs": "h:2"}"#, 6));
    assert_eq!(shown(), own, "its cluster is well, its own record is not");
    assert_eq!(*table.list()[0].route.as_ref().unwrap().cluster.meta_addrs, ["h:2"]);
    take(&t, names_cluster(7));
    take(&cluster, record(r#"{"meta_addrs": "h:2"}"#, 6));
    assert_eq!(shown(), "none");
}
