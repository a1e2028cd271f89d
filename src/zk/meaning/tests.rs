//! Decisions, and what they depend on.

use super::*;
use crate::route::table::RouteTable;

/// A root that was created at 1.
fn root_at(pzxid: i64) -> Result<Found, ReadError> {
    Ok(Found::Root(Stat { czxid: 1, ctime_ms: 1, pzxid, ..Stat::default() }))
}

fn no_root(above: i64) -> Result<Found, ReadError> {
    Ok(Found::NoRoot { pzxid: above })
}

fn server() -> SocketAddr {
    "127.0.0.1:2181".parse().unwrap()
}

/// Nothing is cached, and a connection has come.
fn meaning(now: Instant) -> Meaning {
    let paths = Paths { root: "/r".to_owned(), clusters_root: Some("/c".to_owned()) };
    let mut meaning = Meaning::new(paths, true, RouteTable::new(20).0, now);
    meaning.connected(server(), now);
    meaning
}

/// The reads that must follow, and nothing else that was decided.
fn reads(meaning: &mut Meaning) -> Vec<What> {
    let read = |change| match change {
        Change::Read(what) => Some(what),
        _ => None,
    };
    mem::take(&mut meaning.records.changes).into_iter().filter_map(read).collect()
}

#[test]
fn names_are_read_when_the_root_is_another_than_it_was() {
    let now = Instant::now();
    let mut meaning = meaning(now);
    meaning.seen.left = 20;
    let there = root_at;
    let beat = |meaning: &mut Meaning, root| {
        reads(meaning);
        meaning.take(&What::Root, root, false, now).unwrap();
        reads(meaning)
    };
    for (why, root, want) in [
        ("a first look", there(7), true),
        ("nothing came or went", there(7), false),
        ("a table came", there(8), true),
        ("it is gone", no_root(9), true),
        ("it is still gone", no_root(9), false),
        ("it is back", there(10), true),
    ] {
        assert_eq!(!beat(&mut meaning, root).is_empty(), want, "{why}");
    }
    meaning.connected(server(), now);
    assert_eq!(beat(&mut meaning, there(10)), [], "another server, which knows no less");
    meaning.take(&What::Names, Err(ReadError::NoAuth), false, now).unwrap();
    assert_eq!(beat(&mut meaning, there(10)), [What::Names], "they are hidden");
}

#[test]
fn a_server_without_the_right_root_is_left_for_another() {
    let now = Instant::now();
    let mut meaning = meaning(now);
    meaning.take(&What::Root, root_at(20), false, now).unwrap();
    let take = |meaning: &mut Meaning| meaning.take(&What::Root, no_root(90), false, now);
    for turn in 0..3 {
        let doubt = take(&mut meaning).unwrap_err();
        assert!(!doubt.lags && doubt.why.contains("does not exist there"), "{turn}: {doubt:?}");
        meaning.disconnected();
        assert!(meaning.hold.is_blind(), "a hold outlives its connection");
        meaning.connected(server(), now);
    }
    assert_eq!(take(&mut meaning).unwrap(), Verdict::Held, "the next one is kept for a while");
}
