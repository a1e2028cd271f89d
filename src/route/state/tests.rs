//! Reads state files, and checks the copies beside them.

use super::*;

fn origin(root: &str, zookeeper: &[&str]) -> Origin {
    let zookeeper = zookeeper.iter().map(|&server| server.to_owned()).collect();
    Origin { root: root.to_owned(), zookeeper }
}

fn ours() -> Origin {
    origin("/r", &["zk1:2181", "zk2:2181"])
}

const LINE: &str = "{\"table\":\"t\",\"cluster\":\"c\",\"meta_addrs\":[\"h:1\"],\"mzxid\":7}\n";

/// A file as versions before holds wrote it.
fn old_file(version: u64, root: &str, tables: u64, lines: &str) -> String {
    let checksum = checksum(lines.as_bytes());
    let head = json!({"version": version, "root": root, "tables": tables, "checksum": checksum});
    format!("{head}\n{lines}")
}

/// A file as this version writes it.
fn new_file() -> String {
    let mut head: Value = json!({
        "version": 1, "root": "/r", "tables": 1, "checksum": checksum(LINE.as_bytes()),
        "root_czxid": 5, "root_ctime_ms": 6, "zookeeper": ["zk2:2181", "zk3:2181"],
    });
    head["origin_checksum"] = origin_checksum(&head);
    format!("{head}\n{LINE}")
}

#[test]
fn a_damaged_file_is_told_from_a_good_one() {
    let record = || Record { cluster: "c".into(), meta_addrs: vec!["h:1".into()] };
    let kept = || {
        let (is_held, is_evicted) = (false, false);
        vec![Kept { table: "t".into(), record: record(), mzxid: 7, is_held, is_evicted }]
    };
    for (why, good, root) in [
        ("of an older version", old_file(1, "/r", 1, LINE), None),
        ("of this version", new_file(), Some(Identity { czxid: 5, ctime_ms: 6 })),
    ] {
        assert_eq!(parse(good.as_bytes(), &ours()), Ok(Contents { root, routes: kept() }), "{why}");
        for n in 0..good.len() - 1 {
            assert!(parse(&good.as_bytes()[..n], &ours()).is_err(), "{why}, cut at {n}");
        }
        for at in 0..good.len() {
            let mut flipped = good.clone().into_bytes();
            flipped[at] ^= 4;
            assert!(parse(&flipped, &ours()).is_err(), "{why}, a bit flipped at {at}");
        }
    }
    for (why, text, want) in [
        ("another version", old_file(2, "/r", 1, LINE), "version"),
        ("another number", old_file(1, "/r", 2, LINE), "tables"),
        ("no route", old_file(1, "/r", 1, "{}\n"), "line 2"),
    ] {
        let fault = parse(text.as_bytes(), &ours()).unwrap_err();
        assert!(
            matches!(&fault, Unused::Damaged(got) if got.starts_with(want)),
            "{why}: {fault:?}"
        );
    }
}

#[test]
fn a_file_is_ignored_only_if_the_operator_has_changed_where_the_routes_are() {
    for (why, settings, is_used) in [
        ("nothing changed", ours(), true),
        ("one server stayed", origin("/r", &["zk9:2181", "zk3:2181"]), true),
        ("all servers changed", origin("/r", &["zk9:2181"]), false),
        ("the root changed", origin("/other", &["zk2:2181"]), false),
    ] {
        let read = parse(new_file().as_bytes(), &settings);
        assert_eq!(read.is_ok(), is_used, "{why}");
        assert!(is_used || matches!(read, Err(Unused::NotOurs(_))), "{why}: {read:?}");
    }
    let read = parse(old_file(1, "/r", 1, LINE).as_bytes(), &origin("/r", &["zk9:2181"]));
    assert!(read.is_ok(), "an older version does not say of which servers it is");
}

/// A folder of its own with a state file in it.
fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("meta-proxy-state-{name}-{}", process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir.join("state")
}

#[test]
fn a_file_of_an_hour_and_one_of_a_day_ago_are_kept() {
    let path = scratch("kept");
    let mut older = Older::of(&path);
    let kept = |suffix: &str| -> Option<i64> {
        fs::read_to_string(with_suffix(&path, suffix)).ok()?.parse().ok()
    };
    let minutes = 2 * 24 * 60;
    for n in 0..minutes {
        if n > 0 {
            older.keep(&path, 60 * (n - 1), 60 * n);
        }
        // As a rename would do: the name leads to another file from now on.
        let _ = fs::remove_file(&path);
        fs::write(&path, n.to_string()).unwrap();
        if n >= 130 {
            let age = n - kept(".1h").unwrap();
            assert!((60..=130).contains(&age), "at {n}: {age} min");
        }
        if n > 24 * 60 + 10 {
            let age = n - kept(".1d").unwrap();
            assert!(age >= 24 * 60, "at {n}: {age} min");
        }
    }
    // A file that was not written for days is old enough at once.
    let late = 60 * minutes + 10 * 24 * 60 * 60;
    older.keep(&path, 60 * (minutes - 1), late);
    assert_eq!([kept(".1h"), kept(".1d")], [Some(minutes - 1); 2]);
    // A new process knows the age of the copies from their dates.
    let young = with_suffix(&path, ".1h.next");
    fs::write(&young, "young").unwrap();
    let mut older = Older::of(&path);
    older.keep(&path, 0, 10);
    assert!(young.exists() && kept(".1h") == Some(minutes - 1));
    fs::remove_dir_all(folder_of(&path)).unwrap();
}

#[test]
fn what_dead_processes_left_is_removed_and_nothing_else() {
    let path = scratch("leftovers");
    let beside = |suffix: &str| with_suffix(&path, suffix);
    let own = format!(".{}", process::id());
    // No process has such a high pid.
    let (dead, kept) = (".4999999", ["", &own, ".1h", ".1h.next", ".bak", ".", ".12x"]);
    for suffix in kept.iter().chain([&dead]) {
        fs::write(beside(suffix), "").unwrap();
    }
    remove_leftovers(&path).unwrap();
    assert!(!beside(dead).exists());
    kept.iter().for_each(|suffix| assert!(beside(suffix).exists(), "{suffix:?}"));
    fs::remove_dir_all(folder_of(&path)).unwrap();
}

#[test]
fn a_link_leads_to_its_target_also_before_that_is_there() {
    let path = scratch("links");
    let dir = folder_of(&path);
    std::os::unix::fs::symlink("there", &path).unwrap();
    std::os::unix::fs::symlink(dir.join("target"), dir.join("there")).unwrap();
    assert_eq!(follow_links(&path), dir.join("target"));
    std::os::unix::fs::symlink("loop", dir.join("loop")).unwrap();
    assert_eq!(follow_links(&dir.join("loop")), dir.join("loop"), "a circle ends");
    fs::remove_dir_all(dir).unwrap();
}
