use super::*;

fn znode(data: &str, version: i32, mzxid: i64) -> Znode {
    Znode { data: data.as_bytes().to_vec(), stat: Stat { version, mzxid, ..Stat::default() } }
}

fn change(before: Option<(&str, i32, i64)>, after: Option<&str>) -> Change {
    let data = |text: &str| Data(text.as_bytes().to_vec());
    let acl = vec![Right { permissions: 31, scheme: "world".into(), id: "anyone".into() }];
    Change {
        znode: "/r/orders".to_owned(),
        before: before.map(|(text, version, mzxid)| Before {
            data: data(text),
            version,
            mzxid,
            acl: if after.is_none() { acl.clone() } else { Vec::new() },
        }),
        after: after.map(|text| After {
            data: data(text),
            acl: if before.is_none() { acl } else { Vec::new() },
        }),
    }
}

fn plan(changes: Vec<Change>) -> Plan {
    Plan {
        form: FORM,
        id: "1".into(),
        kind: "switch".into(),
        made: "2026-01-01T00:00:00Z".into(),
        by: "u@h".into(),
        zookeeper: vec!["zk:2181".into()],
        root: "/r".into(),
        clusters_root: None,
        why: None,
        undoes: None,
        accepted: vec![Accepted::SplitBrain],
        changes,
    }
}

#[test]
fn a_change_is_done_due_or_in_conflict() {
    let (set, create, delete) = (
        change(Some(("a", 3, 30)), Some("b")),
        change(None, Some("b")),
        change(Some(("a", 3, 30)), None),
    );
    for (why, change, now, want) in [
        ("set: as it was seen", &set, Some(znode("a", 3, 30)), State::Due),
        ("set: done, by whomever", &set, Some(znode("b", 9, 90)), State::Done(90)),
        ("set: another version", &set, Some(znode("a", 4, 40)), State::Conflict),
        ("set: deleted and made again alike", &set, Some(znode("a", 3, 31)), State::Conflict),
        ("set: something else", &set, Some(znode("c", 4, 40)), State::Conflict),
        ("set: gone", &set, None, State::Conflict),
        ("create: not there", &create, None, State::Due),
        ("create: done", &create, Some(znode("b", 0, 50)), State::Done(50)),
        ("create: another", &create, Some(znode("x", 0, 50)), State::Conflict),
        ("delete: as it was seen", &delete, Some(znode("a", 3, 30)), State::Due),
        ("delete: done", &delete, None, State::Done(0)),
        ("delete: changed", &delete, Some(znode("a", 4, 40)), State::Conflict),
    ] {
        assert_eq!(state(change, now.as_ref()), want, "{why}");
    }
}

#[test]
fn an_undo_takes_back_what_the_plan_wrote_and_nothing_else() {
    let changes = vec![
        change(Some(("a", 3, 30)), Some("b")),
        change(None, Some("b")),
        change(Some(("a", 3, 30)), None),
    ];
    let plan = plan(changes);
    let done = [Some(znode("b", 4, 40)), Some(znode("b", 0, 41)), None];
    let back = undo(&plan, &done).unwrap();
    let ops: Vec<Op> = back.iter().map(Change::op).collect();
    let acl = vec![Acl { permissions: 31, scheme: "world".into(), id: "anyone".into() }];
    let path = || "/r/orders".to_owned();
    assert_eq!(
        ops,
        [
            Op::SetData { path: path(), data: b"a".to_vec(), version: 4 },
            Op::Delete { path: path(), version: 0 },
            Op::Create { path: path(), data: b"a".to_vec(), acl, is_ephemeral: false },
        ]
    );
    let undone = [Some(znode("a", 5, 50)), None, Some(znode("a", 0, 52))];
    assert_eq!(undo(&plan, &undone), Ok(Vec::new()), "twice");
    let half = [Some(znode("b", 4, 40)), None, Some(znode("a", 3, 30))];
    assert_eq!(undo(&plan, &half).unwrap().len(), 1, "a run that was stopped");
    let odd = [Some(znode("x", 4, 40)), None, None];
    let conflicts = undo(&plan, &odd).unwrap_err();
    let want = "/r/orders: shown a (version 3)\n  planned b\n  there now x (version 4)";
    assert_eq!(conflicts, [want]);
}

#[test]
fn a_plan_is_read_back_as_it_was_written_and_touches_children_of_the_root_only() {
    let mut whole = plan(vec![change(Some(("a", 3, 30)), Some("b")), change(None, Some("b"))]);
    whole.changes[0].before.as_mut().unwrap().data = Data(vec![0xff, 0]);
    assert!(Plan::from_file(&whole.to_file()).unwrap_err().contains("twice"));
    whole.changes[1].znode = "/r/items".to_owned();
    let file = whole.to_file();
    assert_eq!(Plan::from_file(&file), Ok(whole.clone()));
    assert_eq!(file.lines().filter(|line| line.contains("\"/r/")).count(), 2, "{file}");
    let none = plan(Vec::new());
    assert_eq!(Plan::from_file(&none.to_file()), Ok(none));
    for (why, znode) in [
        ("the root", "/r"),
        ("beside it", "/s/orders"),
        ("deeper", "/r/orders/x"),
        ("no name", "/r/"),
        ("up", "/r/.."),
    ] {
        let mut bad = whole.clone();
        bad.changes[0].znode = znode.to_owned();
        assert!(Plan::from_file(&bad.to_file()).is_err(), "{why}");
    }
    let newer = Plan { form: 2, ..whole };
    assert!(Plan::from_file(&newer.to_file()).unwrap_err().contains("form"));
}
