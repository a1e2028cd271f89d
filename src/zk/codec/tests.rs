use super::*;

fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    assert_eq!(frame_len(&out), Ok(Some(out.len() - LEN_BYTES)));
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As ZooKeeper's own command-line client 3.8 sends them.
#[test]
fn requests_are_laid_out_as_other_clients_do() {
    let new = Password::NONE;
    let path = || "/r".to_owned();
    let request = |op: Op| {
        let mut kind = Kind::Done;
        let bytes = written(|out| kind = write_request(out, 7, &op));
        (hex(&bytes[LEN_BYTES..]), kind)
    };
    let handshake = written(|out| write_handshake(out, 0x10, 6000, 0, &new));
    assert_eq!(
        hex(&handshake),
        "0000002d000000000000000000000010000017700000000000000000\
         000000100000000000000000000000000000000000"
    );
    assert_eq!(hex(&written(write_ping)), "00000008fffffffe0000000b");
    assert_eq!(
        hex(&written(|out| write_auth(out, "u:p"))),
        "0000001dfffffffc0000006400000000\
         00000006646967657374\
         00000003753a70"
    );
    for (op, bytes, kind) in [
        (Op::Exists { path: path(), watch: true }, "0000000700000003000000022f7201", Kind::Stat),
        (Op::GetData { path: path(), watch: false }, "0000000700000004000000022f7200", Kind::Data),
        (
            Op::GetChildren { path: path(), watch: true },
            "000000070000000c000000022f7201",
            Kind::Children,
        ),
        (
            Op::SetWatches {
                since: 9,
                data: vec![path()],
                exist: vec![],
                child: vec![path(), path()],
            },
            "00000007000000650000000000000009\
             00000001000000022f72\
             00000000\
             00000002000000022f72000000022f72",
            Kind::Done,
        ),
        (
            Op::SetData { path: path(), data: b"x".to_vec(), version: 3 },
            "0000000700000005000000022f72000000017800000003",
            Kind::Stat,
        ),
        (
            Op::Delete { path: path(), version: -1 },
            "0000000700000002000000022f72ffffffff",
            Kind::Done,
        ),
        (Op::GetAcl { path: path() }, "0000000700000006000000022f72", Kind::Acl),
        (Op::Sync { path: path() }, "0000000700000009000000022f72", Kind::Done),
        (Op::Close, "00000007fffffff5", Kind::Done),
        (
            Op::Create {
                path: path(),
                data: vec![],
                acl: vec![Acl { permissions: 31, scheme: "auth".to_owned(), id: String::new() }],
                is_ephemeral: true,
            },
            "0000000700000001000000022f7200000000\
             000000010000001f000000046175746800000000\
             00000001",
            Kind::Done,
        ),
    ] {
        assert_eq!(request(op.clone()), (bytes.to_owned(), kind), "{op:?}");
    }
}

fn stat_bytes() -> Vec<u8> {
    let mut out = Vec::new();
    let mut w = Writer(&mut out);
    (1..=4).for_each(|n| w.long(n));
    (5..=7).for_each(|n| w.int(n));
    w.long(8);
    (9..=10).for_each(|n| w.int(n));
    w.long(11);
    out
}

fn reply(xid: i32, error: i32, result: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut w = Writer(&mut out);
    w.int(xid);
    w.long(0x20);
    w.int(error);
    out.extend(result);
    out
}

#[test]
fn answers_events_and_errors_are_read() {
    let stat = Stat { czxid: 1, mzxid: 2, ctime_ms: 3, mtime_ms: 4, version: 5, pzxid: 11 };
    assert_eq!(read_answer(Kind::Stat, &stat_bytes()), Ok(Answer::Stat(stat)));
    let mut data = vec![0, 0, 0, 2, b'h', b'i'];
    data.extend(stat_bytes());
    assert_eq!(read_answer(Kind::Data, &data), Ok(Answer::Data(b"hi".to_vec(), stat)));
    data[..4].copy_from_slice(&(-1i32).to_be_bytes());
    data.drain(4..6);
    assert_eq!(read_answer(Kind::Data, &data), Ok(Answer::Data(vec![], stat)), "none is empty");
    let mut names = vec![0, 0, 0, 2, 0, 0, 0, 1, b'b', 0, 0, 0, 1, b'a'];
    names.extend(stat_bytes());
    let want = Answer::Children(Names::new(vec!["a", "b"]), stat);
    assert_eq!(read_answer(Kind::Children, &names), Ok(want));
    let good = reply(7, 0, b"rest");
    assert_eq!(read_frame(&good), Ok(Frame::Reply { xid: 7, zxid: 0x20, result: Ok(b"rest") }));
    let refused = reply(7, -101, b"");
    let result = Err(Code::NO_NODE);
    assert_eq!(read_frame(&refused), Ok(Frame::Reply { xid: 7, zxid: 0x20, result }));
    assert_eq!(read_frame(&reply(-2, 0, b"")), Ok(Frame::Pong(32)));
    assert_eq!(read_frame(&reply(-4, -115, b"")), Ok(Frame::Auth(Err(Code::AUTH_FAILED))));
    for (kind, want) in [
        (1, Frame::Event(Event::Created, "/r".to_owned())),
        (2, Frame::Event(Event::Deleted, "/r".to_owned())),
        (3, Frame::Event(Event::Changed, "/r".to_owned())),
        (4, Frame::Event(Event::ChildrenChanged, "/r".to_owned())),
        (-1, Frame::Other),
        (99, Frame::Other),
    ] {
        let mut event = Vec::new();
        let mut w = Writer(&mut event);
        w.int(kind);
        w.int(3);
        w.text("/r");
        assert_eq!(read_frame(&reply(-1, 0, &event)), Ok(want), "{kind}");
    }
    let mut granted = Vec::new();
    let mut w = Writer(&mut granted);
    w.int(0);
    w.int(4000);
    w.long(77);
    w.bytes(&[9; 16]);
    let read = read_granted(&granted).unwrap();
    assert_eq!((read.timeout_ms, read.id), (4000, 77));
    let again = written(|out| write_handshake(out, 0, 0, read.id, &read.password));
    assert!(hex(&again).contains(&hex(&[9; 16])), "the password goes back as it came");
}

#[test]
fn nothing_that_a_peer_sends_is_allocated_before_it_came_or_read_beyond_its_end() {
    assert_eq!(frame_len(&[0, 0, 0]), Ok(None));
    for len in [-1, i32::MIN, i32::MAX, MAX_FRAME_BYTES as i32 + 1] {
        assert!(frame_len(&len.to_be_bytes()).is_err(), "{len}");
    }
    assert_eq!(frame_len(&(MAX_FRAME_BYTES as i32).to_be_bytes()), Ok(Some(MAX_FRAME_BYTES)));
    for count in [i32::MAX, i32::MIN, -2, 1] {
        for kind in [Kind::Children, Kind::Acl, Kind::Data] {
            let read = read_answer(kind, &count.to_be_bytes());
            assert!(read.is_err(), "{kind:?} {count}: {read:?}");
        }
    }
    let mut granted = vec![0; 16];
    granted.extend(65i32.to_be_bytes());
    granted.extend([0; 65]);
    assert_eq!(read_granted(&granted), Err(Malformed("the length of a password")));
    // Any start, and any damage, of what is well formed.
    let mut names = vec![0, 0, 0, 1, 0, 0, 0, 1, b'a'];
    names.extend(stat_bytes());
    let frame = reply(7, 0, &names);
    for len in 0..frame.len() {
        if let Ok(Frame::Reply { result: Ok(result), .. }) = read_frame(&frame[..len]) {
            assert!(read_answer(Kind::Children, result).is_err(), "{len}");
        }
    }
    for at in 0..frame.len() {
        for byte in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bad = frame.clone();
            bad[at] = byte;
            if let Ok(Frame::Reply { result: Ok(result), .. }) = read_frame(&bad) {
                for kind in [Kind::Stat, Kind::Data, Kind::Children, Kind::Acl, Kind::Done] {
                    let _ = read_answer(kind, result);
                }
            }
            let _ = read_granted(&bad);
        }
    }
}
