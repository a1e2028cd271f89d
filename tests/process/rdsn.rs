//! Native C++ clients: frames of the real one, byte for byte, and what it must never be sent.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use harness::client::NoAnswer;
use harness::meta_server::{Behaviour, Lie, MetaServer};
use harness::proxy::Proxy;
use harness::rdsn::{Frame, RdsnClient, Verdict};
use harness::wait::eventually;
use harness::wire::{ERR_OK, NEGOTIATION, QUERY_CONFIG, Query, QueryCfgResponse};
use meta_proxy::wire::frame::{Cut, HeaderKind};
use meta_proxy::wire::message::{self, RequestId};
use meta_proxy::wire::protocol::Protocol;
use meta_proxy::wire::rdsn;
use serde_json::Value;

use crate::support::{Routes, SOON, addr, count_of, golden, meta_with, record};

const MAX_FRAME: usize = 64 * 1024;
const PRIMARY: &str = "10.0.0.1:34801";

/// The recorded exchanges with their descriptions.
fn exchanges() -> Vec<Value> {
    let all: Value = serde_json::from_slice(&golden("cpp.json")).unwrap();
    let exchanges = all.as_array().unwrap().iter().filter(|vector| vector["request"].is_string());
    exchanges.cloned().collect()
}

fn file(vector: &Value, key: &str) -> Vec<u8> {
    golden(vector[key].as_str().unwrap())
}

/// Other recorded requests of QueryConfig over RDSN.
const MORE_REQUESTS: [&str; 5] = [
    "real-table-8-partitions-rdsn",
    "real-unknown-table-rdsn",
    "52-SYNTHETIC-rdsn-existing",
    "53-SYNTHETIC-rdsn-existing-nocrc",
    "54-SYNTHETIC-rdsn-unknown",
];

/// Where a table's MetaServer may send a client: nowhere, at first.
fn behind_a_proxy(tables: &[&str]) -> (MetaServer, Proxy, Routes) {
    let meta = MetaServer::start();
    for table in tables {
        let config = QueryCfgResponse::table(1, 4, addr(PRIMARY)).with_host_ports();
        meta.put_table(table, config);
    }
    let routes = Routes::new(tables.iter().map(|table| (*table, record("c", &[meta.addr()]))));
    let proxy = routes.proxy();
    (meta, proxy, routes)
}

#[test]
fn requests_of_the_real_client_decode_to_what_it_asked() {
    let mut read = 0;
    for vector in exchanges() {
        let (name, want) = (vector["name"].as_str().unwrap(), &vector["request_fields"]);
        let bytes = file(&vector, "request");
        assert_eq!(Protocol::of(&bytes), Ok(Some(Protocol::Rdsn)), "{name}");
        if want["serialize_format"] != 1 {
            assert_eq!(rdsn::cut(&bytes, MAX_FRAME).map_err(|e| e.kind()), Err("rdsn_header"));
            continue;
        }
        let Ok(Cut::Whole(frame)) = rdsn::cut(&bytes, MAX_FRAME) else {
            panic!("{name} is no whole frame");
        };
        assert_eq!(frame.len, bytes.len(), "{name}");
        let HeaderKind::Rdsn { id, method } = frame.kind else { panic!("{name}") };
        assert_eq!((Some(id), Some(method)), (want["id"].as_u64(), want["rpc_name"].as_str()));
        let call = message::read_call(&frame).unwrap();
        assert_eq!(call.id, RequestId::Rdsn(id), "{name}");
        if method == QUERY_CONFIG {
            let (query, args) = (call.query().unwrap(), &want["args"]);
            let asked = Query::decode(&query.args).unwrap();
            let indices: Vec<_> = asked.indices.iter().flatten().copied().collect();
            assert_eq!(args["app_name"], *query.table, "{name}");
            assert_eq!(
                (&args["app_name"], &args["partition_indices"]),
                (&asked.table.into(), &indices.into())
            );
            read += 1;
        }
    }
    assert!(read >= 13, "only {read} queries were read");
    for name in MORE_REQUESTS {
        let bytes = golden(&format!("{name}.request.bin"));
        let Ok(Cut::Whole(frame)) = rdsn::cut(&bytes, MAX_FRAME) else { panic!("{name}") };
        assert_eq!(frame.len, bytes.len(), "{name}");
        let table = message::read_call(&frame).unwrap().query().unwrap().table;
        assert_eq!(*table, *Frame::decode(&bytes).unwrap().query_args().unwrap().table, "{name}");
    }
}

/// All that the client looks at, and zeros.
fn minimal(id: u64, error: &str, body: Vec<u8>) -> Frame {
    Frame {
        trace_id: 0,
        rpc_code: (0, 0),
        context: 0x40,
        from_address: 0,
        timeout_ms: 0,
        error_name: error.to_owned(),
        ..Frame::request("", id, body)
    }
}

#[test]
fn recorded_requests_are_answered_with_the_body_of_the_real_server() {
    let named = |name: &&str| {
        (name.to_string(), format!("{name}.request.bin"), format!("{name}.response.bin"))
    };
    let mut all: Vec<_> = MORE_REQUESTS[..2].iter().map(named).collect();
    for vector in exchanges() {
        let text = |key: &str| vector[key].as_str().unwrap().to_owned();
        all.push((text("name"), text("request"), text("response")));
    }
    let mut answered = 0;
    for (name, request, response) in all {
        let (bytes, real) = (golden(&request), Frame::decode(&golden(&response)).unwrap());
        let request = Frame::decode(&bytes).unwrap();
        // Followers and answers in JSON are tested by themselves.
        let is_leaders = real.error_name == ERR_OK && real.context & 0x3c0 == 0x40;
        let config = || QueryCfgResponse::decode(&real.body).unwrap();
        if request.rpc_name != QUERY_CONFIG
            || !is_leaders
            || config().err == "ERR_FORWARD_TO_OTHERS"
        {
            continue;
        }
        let asked = request.query_args().unwrap();
        let (meta, proxy, _routes) = behind_a_proxy(&[&asked.table]);
        meta.put_answer(&asked.table, real.body.clone());
        let mut client = RdsnClient::connect(proxy.addr());
        client.send(&bytes);
        let answer = client.read_answer();
        assert_eq!(answer, minimal(request.id, ERR_OK, real.body.clone()), "{name}");
        assert_eq!(answer.judge(request.id), Verdict::Takes(config()), "{name}");
        let upstream = &meta.requests()[0];
        assert_eq!(upstream.args, asked.encode(), "{name}: arguments go upstream as asked");
        assert_eq!(meta.violations(), [] as [String; 0], "{name}");
        answered += 1;
    }
    assert!(answered >= 12, "only {answered} exchanges");
}

#[test]
fn requests_made_by_hand_are_served_with_their_checksums() {
    for name in MORE_REQUESTS {
        let bytes = golden(&format!("{name}.request.bin"));
        let request = Frame::decode(&bytes).unwrap();
        let asked = request.query_args().unwrap();
        let (meta, proxy, _routes) = behind_a_proxy(&[&asked.table]);
        let mut client = RdsnClient::connect(proxy.addr());
        client.send(&bytes);
        let config = QueryCfgResponse::table(1, 4, addr(PRIMARY)).with_host_ports();
        let want = config.only(&asked.indices.unwrap());
        assert_eq!(client.read_answer().judge(request.id), Verdict::Takes(want), "{name}");
        assert_eq!(meta.violations(), [] as [String; 0], "{name}");
    }
}

#[test]
fn a_limit_is_an_error_after_which_the_client_tries_again() {
    let meta = meta_with("t", PRIMARY);
    meta.set(Behaviour::Mute);
    let routes = Routes::new([("t", record("c", &[meta.addr()]))]);
    let proxy = routes.proxy_with("limits: {max_pending_per_client: 2}");
    let mut client = RdsnClient::connect(proxy.addr());
    let ids: Vec<u64> = (0..5).map(|_| client.send_query("t", &[])).collect();
    let refused = QueryCfgResponse::error("ERR_SERVICE_NOT_ACTIVE").encode();
    // The three over the limit at once, then the two that were never answered.
    let answers: Vec<Frame> = ids.iter().map(|_| client.read_answer()).collect();
    let order: Vec<u64> = answers.iter().map(|answer| answer.id).collect();
    assert_eq!(order[..3], ids[2..]);
    for answer in answers {
        assert_eq!(answer, minimal(answer.id, ERR_OK, refused.clone()));
    }
    let shed = count_of(&proxy, "meta_proxy_requests_refused_total", "client_pending");
    assert_eq!(shed, 3.0);
}

#[test]
fn half_a_frame_closes_the_connection_in_time() {
    let meta = meta_with("t", PRIMARY);
    let routes = Routes::new([("t", record("c", &[meta.addr()]))]);
    let proxy = routes.proxy_with("limits: {frame_timeout_ms: 300}");
    let frame = Frame::query(1, "t", &[]).encode();
    let mut halves: Vec<_> = [1, 3, 4, 100, 192, frame.len() - 1]
        .map(|len| {
            let mut client = RdsnClient::connect(proxy.addr());
            client.send(&frame[..len]);
            client
        })
        .into();
    for half in &mut halves {
        assert_eq!(half.try_read_answer(SOON).unwrap_err(), NoAnswer::Closed);
    }
    assert_eq!(meta.calls(), 0);
}

#[test]
fn other_requests_are_refused_in_the_header_and_the_connection_goes_on() {
    let (meta, proxy, _routes) = behind_a_proxy(&["temp"]);
    let mut client = RdsnClient::connect(proxy.addr());
    for name in ["probe-unknown-rpc", "probe-no-handler", "real-unknown-method-rdsn"] {
        let request = golden(&format!("{name}.request.bin"));
        let real = Frame::decode(&golden(&format!("{name}.response.bin"))).unwrap();
        client.send(&request);
        let answer = client.read_answer();
        assert_eq!(answer, minimal(real.id, &real.error_name, real.body.clone()), "{name}");
        assert_eq!(answer.error_name, "ERR_HANDLER_NOT_FOUND", "{name}");
    }
    client.send(&Frame::request(NEGOTIATION, 90, vec![0x0c, 0, 0, 0, 0]).encode());
    assert_eq!(client.read_answer(), minimal(90, "ERR_HANDLER_NOT_FOUND", vec![]));
    assert!(matches!(client.ask("temp"), Verdict::Takes(_)));
    assert_eq!((meta.calls(), meta.requests().len()), (1, 1), "nothing else reached it");
}

#[test]
fn a_recorded_connection_gets_all_its_answers_however_its_bytes_arrive() {
    let bytes = golden("cpp-stream-replica-down.c2s.bin");
    let mut requests = Vec::new();
    let mut left = &bytes[..];
    while let Some(len) = Frame::frame_len(left).unwrap() {
        requests.push(Frame::decode(&left[..len]).unwrap());
        left = &left[len..];
    }
    assert_eq!(requests.len(), 26);
    let table = requests[0].query_args().unwrap().table;
    let (_meta, proxy, _routes) = behind_a_proxy(&[&table]);
    let config = QueryCfgResponse::table(1, 4, addr(PRIMARY)).with_host_ports();
    let want: BTreeMap<u64, Frame> = requests
        .iter()
        .map(|request| {
            let indices = request.query_args().unwrap().indices.unwrap();
            (request.id, minimal(request.id, ERR_OK, config.only(&indices).encode()))
        })
        .collect();
    let mut client = RdsnClient::connect(proxy.addr());
    client.send(&bytes);
    assert_eq!(client.read_answers(want.len()), want, "in one write");
    for byte in &bytes {
        client.send(&[*byte]);
        thread::yield_now();
    }
    assert_eq!(client.read_answers(want.len()), want, "byte by byte");
    for at in (0..bytes.len()).step_by(37) {
        let mut client = RdsnClient::connect(proxy.addr());
        client.send(&bytes[..at]);
        thread::yield_now();
        client.send(&bytes[at..]);
        client.finish_sending();
        assert_eq!(client.read_answers(want.len()), want, "split at {at}");
    }
}

#[test]
fn answers_come_in_any_order_on_four_connections() {
    let (slow, fast) = (meta_with("slow", PRIMARY), meta_with("fast", PRIMARY));
    slow.set(Behaviour::Slow(Duration::MAX));
    let routes =
        Routes::new([("slow", record("s", &[slow.addr()])), ("fast", record("f", &[fast.addr()]))]);
    let proxy = routes.proxy();
    let mut clients: Vec<_> = (0..4).map(|_| RdsnClient::connect(proxy.addr())).collect();
    for client in &mut clients {
        let frames = [(1, "slow"), (3, "fast"), (4, "nosuch")];
        client.send(&frames.map(|(id, table)| Frame::query(id, table, &[]).encode()).concat());
        assert_eq!(client.read_answers(2).into_keys().collect::<Vec<_>>(), [3, 4]);
    }
    slow.set(Behaviour::Leader);
    for client in &mut clients {
        assert_eq!(client.read_answer().id, 1);
    }
}

#[test]
fn clients_of_both_protocols_share_one_call() {
    let (meta, proxy, _routes) = behind_a_proxy(&["t"]);
    meta.set(Behaviour::Slow(Duration::MAX));
    let mut first = proxy.client();
    first.send_query(1, "t");
    eventually("the first call is under way", SOON, || meta.calls() == 1);
    let mut thft: Vec<_> = (0..20).map(|_| proxy.client()).collect();
    let mut cpp: Vec<_> = (0..20).map(|_| RdsnClient::connect(proxy.addr())).collect();
    // All have arrived when a query behind theirs has its answer.
    for (thft, cpp) in thft.iter_mut().zip(&mut cpp) {
        thft.send_query(7, "t");
        thft.send_query(8, "nosuch");
        assert_eq!(thft.read_answer().seq, 8);
        let id = cpp.send_query("t", &[]);
        assert_eq!(
            cpp.ask("nosuch"),
            Verdict::Takes(QueryCfgResponse::error("ERR_OBJECT_NOT_FOUND"))
        );
        assert_eq!(id, 2);
    }
    meta.set(Behaviour::Leader);
    let result = first.read_answer().result;
    for (thft, cpp) in thft.iter_mut().zip(&mut cpp) {
        assert_eq!(thft.read_answer().result, result);
        assert_eq!(cpp.read_answer(), minimal(2, ERR_OK, result.clone()));
    }
    assert_eq!(meta.calls(), 2, "one was under way, one is for all who came meanwhile");
}

#[test]
fn failures_come_in_a_header_that_is_ok() {
    let (meta, proxy, _routes) = behind_a_proxy(&["t"]);
    let mut client = RdsnClient::connect(proxy.addr());
    for (behaviour, table, err) in [
        (Behaviour::Leader, "nosuch", "ERR_OBJECT_NOT_FOUND"),
        (Behaviour::Leader, "a/b", "ERR_OBJECT_NOT_FOUND"),
        (Behaviour::NotReady("ERR_UNDER_RECOVERY"), "t", "ERR_UNDER_RECOVERY"),
        (Behaviour::FrameError("ERR_HANDLER_NOT_FOUND"), "t", "ERR_SERVICE_NOT_ACTIVE"),
        (Behaviour::Follower { leader: None }, "t", "ERR_SERVICE_NOT_ACTIVE"),
        (Behaviour::CloseOnRequest, "t", "ERR_SERVICE_NOT_ACTIVE"),
        (Behaviour::Mute, "t", "ERR_SERVICE_NOT_ACTIVE"),
    ] {
        meta.set(behaviour.clone());
        let id = client.send_query(table, &[]);
        let want = minimal(id, ERR_OK, QueryCfgResponse::error(err).encode());
        assert_eq!(client.read_answer(), want, "{behaviour:?}");
    }
}

#[test]
fn a_client_is_never_sent_round_the_proxy() {
    let leader = meta_with("t", PRIMARY);
    let follower = MetaServer::start();
    let routes = Routes::new([("t", record("c", &[follower.addr()]))]);
    let proxy = routes.proxy();
    let mut client = RdsnClient::connect(proxy.addr());
    for target in [Some(leader.addr()), Some(proxy.addr()), None] {
        follower.set(Behaviour::Follower { leader: target });
        let id = client.send_query("t", &[]);
        let answer = client.read_answer();
        assert_eq!(answer.error_name, ERR_OK, "{target:?}");
        let config = QueryCfgResponse::decode(&answer.body).unwrap();
        assert_ne!(config.err, "ERR_FORWARD_TO_OTHERS", "{target:?}");
        assert_eq!(answer.id, id);
    }
}

#[test]
fn answers_that_would_abort_a_client_do_not_reach_it() {
    let (meta, proxy, _routes) = behind_a_proxy(&["t"]);
    let good = QueryCfgResponse::table(1, 4, addr(PRIMARY)).with_host_ports();
    let bytes = good.encode();
    let host = |host: &str, kind| {
        let mut config = good.clone();
        let primary = config.partitions[3].hp_primary.as_mut().unwrap();
        (primary.host, primary.kind) = (host.to_owned(), kind);
        config.encode()
    };
    let patched = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        bytes
    };
    let list = bytes.windows(4).position(|field| field == [0x0f, 0, 5, 0x0c]).unwrap();
    let mut client = RdsnClient::connect(proxy.addr());
    let mut neighbour = proxy.client();
    for (why, result) in [
        ("one byte short", bytes[..bytes.len() - 1].to_vec()),
        ("half of it", bytes[..bytes.len() / 2].to_vec()),
        ("only the error", bytes[..16].to_vec()),
        ("bytes behind it", [&bytes[..], b"x"].concat()),
        ("junk behind the error", [&bytes[..16], &[0x77; 40]].concat()),
        ("two billion partitions", patched(list + 4, 0x7f)),
        ("-2 billion partitions", patched(list + 4, 0x80)),
        ("partitions of another type", patched(list + 3, 8)),
        ("partitions that are no list", patched(list, 0x0d)),
        (
            "no partitions at all",
            QueryCfgResponse { err: ERR_OK.into(), ..QueryCfgResponse::error("") }.encode(),
        ),
        ("an empty host", host("", 1)),
        ("a host that cannot be one", host("not a host", 1)),
        ("a host of another type", host("localhost", 2)),
    ] {
        meta.put_answer("t", result.clone());
        let want = QueryCfgResponse::error("ERR_SERVICE_NOT_ACTIVE");
        assert_eq!(client.ask("t"), Verdict::Takes(want), "{why}");
        assert_eq!(neighbour.ask("t").result, result, "{why}: others get it as it came");
    }
    let says = "table=t cluster=c: unexpected answer, it would abort C++ clients";
    proxy.wait_for_log(says, SOON);
    assert_eq!(count_of(&proxy, "meta_proxy_unfit_answers_total", "rdsn"), 13.0);
    for (why, result) in [
        ("no host yet", host("", 0)),
        ("fields of the future", good.clone().from_the_future().encode()),
        ("an error without partitions", QueryCfgResponse::error("ERR_BUSY_CREATING").encode()),
    ] {
        meta.put_answer("t", result.clone());
        let id = client.send_query("t", &[]);
        assert_eq!(client.read_answer(), minimal(id, ERR_OK, result), "{why}");
    }
}

#[test]
fn a_metaserver_that_lies_or_changes_its_mind_harms_no_client() {
    let meta = MetaServer::start();
    meta.put_table("t", QueryCfgResponse::table(1, 4, addr(PRIMARY)).with_host_ports());
    let routes = Routes::new([("t", record("c", &[meta.addr()]))]);
    let proxy = routes.proxy_with("query_timeout_ms: 300");
    let lies = [
        Lie::WrongSeq,
        Lie::WrongName,
        Lie::HugeLength,
        Lie::NegativeLength,
        Lie::TinyLength,
        Lie::Garbage,
        Lie::TruncatedFrame,
        Lie::JunkResult,
        Lie::NoResult,
    ];
    let behaviours = lies.map(Behaviour::Lie).into_iter().chain([
        Behaviour::CloseOnRequest,
        Behaviour::FrameError("ERR_FORWARD_TO_OTHERS"),
        Behaviour::NotReady("ERR_FORWARD_TO_OTHERS"),
        Behaviour::NotReady("ERR_NO_SUCH_ERROR"),
        Behaviour::Follower { leader: Some(proxy.addr()) },
        Behaviour::CloseAfterAnswer,
    ]);
    let mut clients: Vec<_> = (0..4).map(|_| RdsnClient::connect(proxy.addr())).collect();
    for behaviour in behaviours {
        meta.set(behaviour.clone());
        let ids: Vec<u64> = clients.iter_mut().map(|client| client.send_query("t", &[])).collect();
        for (client, id) in clients.iter_mut().zip(ids) {
            let verdict = client.read_answer().judge(id);
            let Verdict::Takes(config) = verdict else { panic!("{behaviour:?}: {verdict:?}") };
            assert_ne!(config.err, "ERR_FORWARD_TO_OTHERS", "{behaviour:?}");
        }
        meta.set(Behaviour::Leader);
        let want = QueryCfgResponse::table(1, 4, addr(PRIMARY)).with_host_ports();
        for client in &mut clients {
            eventually("it is served again", SOON, || {
                client.ask("t") == Verdict::Takes(want.clone())
            });
        }
    }
}

#[test]
fn a_request_that_kills_a_metaserver_or_is_odd_closes_the_connection() {
    let good = Frame::query(1, "temp", &[3]);
    let with = |change: fn(&mut Frame)| {
        let mut frame = good.clone();
        change(&mut frame);
        frame.encode()
    };
    let patched = |at: usize, bytes: &[u8]| {
        let mut frame = good.encode();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let crc = good.clone().with_crc();
    let cases = [
        ("a JSON body", golden("cpp-json.request.bin"), "got 3 (Thrift JSON)"),
        ("no format", with(|frame| frame.context = 0x401), "serialize_format"),
        ("an unknown format", with(|frame| frame.context = 0x641), "serialize_format"),
        ("a forwarded request", with(|frame| frame.context |= 2), "forwards"),
        ("an answer", golden("cpp-temp-first.response.bin"), "got an answer"),
        ("version 1", with(|frame| frame.version = 1), "version"),
        ("header_len 191", with(|frame| frame.header_len = 191), "header_len"),
        ("a wrong body CRC", with(|frame| frame.body_crc = 1), "CRC-32C of the RDSN body"),
        ("a wrong header CRC", with(|frame| frame.header_crc = 1), "CRC-32C of the RDSN header"),
        ("a CRC and another id", Frame { id: 9, ..crc.clone() }.encode(), "header"),
        ("a junk body", with(|frame| frame.body.fill(0xff)), "arguments"),
        ("an empty body", with(|frame| frame.body.clear()), "arguments"),
        ("a body one too short", with(|frame| _ = frame.body.pop()), "arguments"),
        ("a body one too long", with(|frame| frame.body.push(0)), "arguments"),
        ("body_len of 2 GB", patched(16, &[255, 255, 255, 127]), "at most 65536"),
        ("a frame over the limit", patched(16, &[0, 0, 1, 0]), "at most 65536"),
        ("THFT behind RDSN", [good.encode(), b"THFT".to_vec()].concat(), "magic"),
        ("4 unknown bytes", b"RDSM".to_vec(), "magic"),
    ];
    // A proxy for each few, for it shows a few such lines a second.
    for cases in cases.chunks(5) {
        let (meta, proxy, _routes) = behind_a_proxy(&["temp"]);
        for (why, bytes, says) in cases {
            let mut client = RdsnClient::connect(proxy.addr());
            client.send(bytes);
            let end = loop {
                match client.try_read_answer(SOON) {
                    Ok(answer) => assert_eq!(answer.error_name, ERR_OK, "{why}"),
                    Err(end) => break end,
                }
            };
            assert_eq!(end, NoAnswer::Closed, "{why}");
            eventually(&format!("{why} is logged with {says:?}"), SOON, || {
                let log = proxy.log();
                log.lines()
                    .last()
                    .is_some_and(|line| line.contains("malformed") && line.contains(says))
            });
        }
        let closed = count_of(&proxy, "meta_proxy_connections_closed_total", "malformed");
        assert_eq!(closed, cases.len() as f64);

        let mut client = RdsnClient::connect(proxy.addr());
        client.send(&crc.encode());
        assert!(matches!(client.read_answer().judge(1), Verdict::Takes(_)), "right CRCs");
        assert_eq!(meta.violations(), [] as [String; 0]);
        let args = Query { table: "temp".to_owned(), indices: Some(vec![3]) }.encode();
        assert!(meta.requests().iter().all(|request| request.args == args));
    }
}
