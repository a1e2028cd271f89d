//! Which record a table lives by, and what is read for it.

use std::sync::Arc;

use super::*;
use crate::route::table::Cached;
use crate::zk::codec::Stat;

const NAMES_C: &str = r#"{"cluster": "c"}"#;
const DUE: &str = r#"read Cluster("c")"#;

fn records() -> Records {
    Records::new(Paths { root: "/r".to_owned(), clusters_root: Some("/c".to_owned()) })
}

fn metas(host: &str) -> String {
    format!(r#"{{"meta_addrs": "{host}:1"}}"#)
}

/// A table's record is read, while queries wait for it; what was decided.
fn table(records: &mut Records, text: &str, mzxid: i64) -> (Verdict, Vec<String>) {
    let verdict = records.table("t", text.as_bytes(), mzxid, true);
    (verdict, decided(records))
}

/// A cluster's record is read, and nothing is cached; what was decided.
fn cluster(records: &mut Records, text: &str, mzxid: i64) -> Vec<String> {
    let stat = Stat { mzxid, ..Stat::default() };
    let found = Ok(Found::Record { data: text.into(), stat });
    assert_eq!(records.cluster("c", found, &cache(false)), Verdict::Settled);
    decided(records)
}

/// The cache, with the table or without.
fn cache(has_table: bool) -> Arc<RouteTable> {
    let (cached, writer) = RouteTable::new(1);
    if has_table {
        writer.put("t", Cached::Unusable);
    }
    cached
}

/// A read of the cluster is sent, when the newest known change is this.
fn ask(records: &mut Records, as_of: i64) {
    records.clusters.get_mut("c").unwrap().asked_as_of = Some(as_of);
}

/// All that was decided since the last call.
fn decided(records: &mut Records) -> Vec<String> {
    let none = || "none".to_owned();
    let name = |change| match change {
        Change::Lives { table, record, mzxid, named } => {
            let by = named.map_or_else(none, |(name, mzxid)| format!("{name}@{mzxid}"));
            format!("{table}@{mzxid} lives in {} by {by}", record.cluster)
        }
        Change::Unusable(table) => format!("{table} unusable"),
        Change::Fault(table, fault) => format!("{table} fault={}", fault.unwrap_or_else(none)),
        Change::Confirmed(table) => format!("{table} confirmed"),
        Change::Doubtful(table) => format!("{table} doubtful"),
        Change::Known(table) => format!("{table} known"),
        Change::Read(what) => format!("read {what:?}"),
        Change::BadRecord(znode, mzxid, _) => format!("bad {znode}@{mzxid}"),
        Change::Unreadable(znode) => format!("unreadable {znode}"),
        _ => panic!("records say nothing else"),
    };
    mem::take(&mut records.changes).into_iter().map(name).collect()
}

#[test]
fn a_table_lives_by_its_last_good_record_and_its_own_fault_shows() {
    let mut records = records();
    let (verdict, changes) = table(&mut records, &metas("a"), 2);
    let own = ["t@2 lives in a:1 by none", "t fault=none", "t confirmed", "t known"];
    assert_eq!((verdict, changes), (Verdict::Settled, own.map(str::to_owned).to_vec()));
    let (verdict, changes) = table(&mut records, "[]", 3);
    let fault = "t fault=want a JSON object, got []";
    let junk = ["bad /r/t@3", "t unusable", fault, "t confirmed", "t known"];
    assert_eq!((verdict, changes), (Verdict::Settled, junk.map(str::to_owned).to_vec()));

    assert_eq!(table(&mut records, NAMES_C, 4), (Verdict::Waits, vec![DUE.to_owned()]));
    ask(&mut records, 9);
    let by_cluster = ["t@4 lives in c by c@1", "t fault=none", "t confirmed", "t known"];
    assert_eq!(cluster(&mut records, &metas("b"), 1), by_cluster);
    let (verdict, changes) = table(&mut records, "[]", 5);
    let [lives, _, confirmed, known] = by_cluster;
    let junk = ["bad /r/t@5", "t unusable", fault, lives, confirmed, known];
    assert_eq!((verdict, changes), (Verdict::Settled, junk.map(str::to_owned).to_vec()));
}

#[test]
fn a_cluster_that_cannot_be_used_leaves_its_last_good_record() {
    let junk = Found::Record { data: b"[]".to_vec(), stat: Stat { mzxid: 6, ..Stat::default() } };
    let (bad, hidden) = ("want a JSON object, got []", "cannot be read");
    for (why, found, verdict, line, fault, stands) in [
        ("junk", Ok(junk), Verdict::Settled, "bad /c/c@6", format!(": {bad}"), "confirmed"),
        (
            "a watch tells when it comes",
            Err(ReadError::NoNode),
            Verdict::Settled,
            "unreadable /c/c",
            format!(" {hidden}"),
            "doubtful",
        ),
        (
            "no watch tells",
            Err(ReadError::NoAuth),
            Verdict::Again(NO_AUTH_PAUSE),
            "unreadable /c/c",
            format!(" {hidden}"),
            "doubtful",
        ),
    ] {
        let mut records = records();
        table(&mut records, NAMES_C, 3);
        ask(&mut records, 4);
        cluster(&mut records, &metas("b"), 1);
        ask(&mut records, 5);
        let is_missing = found == Err(ReadError::NoNode);
        assert_eq!(records.cluster("c", found, &cache(true)), verdict, "{why}");
        let fault = format!("t fault=znode /c/c{fault}");
        let stands = format!("t {stands}");
        let want = [line, "t@3 lives in c by c@1", &fault, &stands, "t known"];
        assert_eq!(decided(&mut records), want, "{why}");
        let paths = || vec!["/c/c".to_owned()];
        let (data, exist) = if is_missing { (vec![], paths()) } else { (paths(), vec![]) };
        let watches = records.set_watches(7, &[What::Cluster("c".into())]);
        let want = Op::SetWatches { since: 7, data, exist, child: vec![] };
        assert_eq!(watches, want, "{why}");
    }
}

#[test]
fn a_cluster_counts_for_a_table_if_it_was_asked_for_when_the_table_was_known() {
    let mut records = records();
    assert_eq!(table(&mut records, NAMES_C, 5).1, [DUE], "a first look");
    assert_eq!(table(&mut records, NAMES_C, 5), (Verdict::Waits, Vec::new()), "it is due");
    ask(&mut records, 4);
    assert_eq!(table(&mut records, NAMES_C, 5).1, [DUE], "the read under way may be too old");
    assert!(cluster(&mut records, &metas("a"), 3).is_empty(), "it is");
    assert_eq!(table(&mut records, NAMES_C, 5).1, [DUE]);
    ask(&mut records, 5);
    let known = ["t@5 lives in c by c@4", "t fault=none", "t confirmed", "t known"];
    assert_eq!(cluster(&mut records, &metas("b"), 4), known);
    assert_eq!(records.follow("t"), Verdict::Settled);
    assert_eq!(decided(&mut records), known);
    cluster(&mut records, &metas("b"), 4);
    assert!(!records.tables.contains_key("t"), "it is not cached, and not wanted any more");
}

#[test]
fn over_a_new_connection_nothing_counts_until_it_is_read_or_its_watch_stands() {
    let mut records = records();
    table(&mut records, NAMES_C, 5);
    ask(&mut records, 9);
    cluster(&mut records, &metas("a"), 3);
    records.begin_to_confirm();
    records.known_as_of("c", 7, &cache(true));
    let lives = ["t@5 lives in c by c@3", "t fault=none"];
    assert_eq!(decided(&mut records), lives, "by now it may name another");
    records.begin_to_confirm();
    assert_eq!(records.follow("t"), Verdict::Waits, "all clusters are read");
    records.known_as_of("c", 7, &cache(true));
    assert_eq!(decided(&mut records), [lives[0], lives[1], "t confirmed", "t known"]);
    records.keep(&cache(false));
    assert!(records.clusters.is_empty() && !records.tables.contains_key("t"));
}
