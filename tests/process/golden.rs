//! Frames of real clients and of a real MetaServer, byte for byte.

use std::thread;

use harness::client::Client;
use harness::meta_server::MetaServer;
use harness::proxy::Proxy;
use harness::wire::{QUERY_CONFIG, QueryCfgResponse, Request, Response};
use meta_proxy::ops::admin_rpc;
use meta_proxy::wire::answer::{self, Answer, BadAnswer};
use meta_proxy::wire::config_view;
use meta_proxy::wire::error_code::OwnError;
use meta_proxy::wire::frame::{self, Cut, HeaderKind, Malformed};
use meta_proxy::wire::message::{self, RequestId};
use meta_proxy::wire::reply::{self, QueryHead};
use serde_json::Value;

use crate::support::{Routes, golden, record};

const MAX_FRAME: usize = 64 * 1024;

fn index() -> Value {
    serde_json::from_slice(&golden("index.json")).unwrap()
}

fn text<'a>(vector: &'a Value, key: &str) -> &'a str {
    vector[key].as_str().unwrap_or_else(|| panic!("{key} of {vector}"))
}

#[test]
fn requests_of_real_clients_decode_to_what_they_asked() {
    let index = index();
    let mut read = 0;
    for vector in index["vectors"].as_array().unwrap() {
        let name = text(vector, "request");
        let bytes = golden(name);
        let kind = match text(vector, "header") {
            "THFT-v0" => HeaderKind::ThftV0,
            "THFT-v1" => HeaderKind::ThftV1,
            other => {
                assert_eq!((other, frame::cut(&bytes, MAX_FRAME)), ("RDSN", Err(Malformed::Magic)));
                continue;
            }
        };
        let Ok(Cut::Whole(frame)) = frame::cut(&bytes, MAX_FRAME) else {
            panic!("{name} is no whole frame");
        };
        assert_eq!((frame.kind, frame.len), (kind, bytes.len()), "{name}");
        let call = message::read_call(&frame).unwrap();
        assert_eq!(call.method, text(vector, "method"), "{name}");
        let seq = vector["seq"].as_i64().unwrap() as i32;
        assert_eq!(call.id, RequestId::Thft(seq), "{name}");
        if call.method == QUERY_CONFIG {
            assert_eq!(*call.query().unwrap().table, *text(vector, "app_name"), "{name}");
        }
        read += 1;
    }
    assert!(read >= 35, "only {read} vectors were read");
}

/// Every recorded answer to a QueryConfig: name of its vector, frame.
fn answers() -> Vec<(String, Vec<u8>)> {
    let index = index();
    let real: Value = serde_json::from_slice(&golden("real.json")).unwrap();
    let files = index["vectors"].as_array().unwrap().iter().chain(real.as_array().unwrap());
    files
        .filter_map(|vector| vector["response"].as_str())
        .map(|name| (name.to_owned(), golden(name)))
        .filter(|(_, frame)| {
            Response::decode(frame).is_ok_and(|answer| answer.name == format!("{QUERY_CONFIG}_ACK"))
        })
        .collect()
}

fn seq_of(frame: &[u8]) -> i32 {
    Response::decode(frame).unwrap().seq
}

fn read(frame: &[u8]) -> Result<Answer, BadAnswer> {
    answer::read_envelope(frame)?.read()
}

fn id_of(frame: &[u8]) -> RequestId {
    RequestId::Thft(seq_of(frame))
}

#[test]
fn a_reframed_answer_differs_in_its_seq_only() {
    let mut leaders = 0;
    for (name, frame) in answers() {
        let seq = seq_of(&frame);
        let Answer::Leader { result_at, .. } = read(&frame).unwrap() else {
            continue;
        };
        leaders += 1;
        let result = &frame[result_at..];
        let reframed =
            |seq| [QueryHead::new(RequestId::Thft(seq), result.len()).bytes(), result].concat();
        assert_eq!(reframed(seq), frame, "{name}");
        let other = reframed(!seq);
        let at = result_at - 4;
        assert_eq!(other[at..result_at], (!seq).to_be_bytes(), "{name}");
        assert_eq!((&other[..at], &other[result_at..]), (&frame[..at], result), "{name}");
    }
    assert!(leaders >= 20, "only {leaders} answers of leaders");
}

#[test]
fn answers_of_followers_are_understood() {
    let mut hints = Vec::new();
    for (name, frame) in answers() {
        if let Answer::Follower { leader } = read(&frame).unwrap() {
            hints.push((name, leader.map(|leader| leader.to_string())));
        }
    }
    let hint = |part: &str| {
        let found = hints.iter().find(|(name, _)| name.contains(part));
        found.unwrap_or_else(|| panic!("{part} in {hints:?}")).1.clone()
    };
    assert_eq!(hint("04-go"), Some("127.0.0.1:34711".to_owned()));
    assert_eq!(hint("05-go"), None);
    assert!(hint("real-follower-v0").is_some(), "{hints:?}");
}

#[test]
fn an_answer_is_believed_only_if_it_is_one() {
    let frame = golden("real-table-8-partitions-v0.response.bin");
    assert!(read(&frame).is_ok());
    assert_eq!(answer::read_envelope(&frame).unwrap().seq, seq_of(&frame));
    let change = |at: usize, byte: u8| {
        let mut bad = frame.clone();
        bad[at] = byte;
        read(&bad).map_err(|e| e.kind())
    };
    assert_eq!(change(8, b'X'), Err("frame_error"), "ERR_OK misspelled");
    assert_eq!(change(14, 0), Err("frame"), "Thrift version");
    assert_eq!(change(17, 1), Err("frame"), "a CALL");
    assert_eq!(change(40, b'x'), Err("method"));
    assert_eq!(change(68, 0), Err("result"), "no result at all");
    let err_at = frame.windows(6).rposition(|bytes| bytes == b"ERR_OK").unwrap();
    for byte in [b'x', b'\n', 0xff] {
        assert_eq!(change(err_at + 4, byte), Err("result"), "an error that no server has");
    }
    for n in 8..84 {
        assert!(read(&frame[..n]).is_err(), "cut at {n}");
    }
}

#[test]
fn the_proxys_own_answers_have_the_shape_of_a_metaservers() {
    let unknown = golden("03-go-apache-master-db756dc-unknown.response.bin");
    assert_eq!(reply::own_error(RequestId::Thft(1), OwnError::UnknownTable), unknown);
    let real = golden("real-unknown-table-v0.response.bin");
    assert_eq!(reply::own_error(id_of(&real), OwnError::UnknownTable), real);
    let real = golden("real-negotiation-v0.response.bin");
    assert_eq!(reply::negotiation(id_of(&real)), real);
    let real = golden("real-unknown-method-v0.response.bin");
    assert_eq!(reply::handler_not_found("RPC_NO_SUCH_CODE", id_of(&real)), real);
    for error in [OwnError::UnusableRoute, OwnError::Unavailable] {
        let answer = Response::decode(&reply::own_error(RequestId::Thft(9), error)).unwrap();
        assert_eq!(answer.config().unwrap(), QueryCfgResponse::error(error.name()));
    }
}

#[test]
fn people_are_shown_what_the_answer_says() {
    let frame = golden("02-go-apache-master-db756dc-existing-hostport.response.bin");
    let want = Response::decode(&frame).unwrap().config().unwrap();
    let Ok(Answer::Leader { result_at, .. }) = read(&frame) else {
        panic!("a leader's answer");
    };
    let view = config_view::read(&frame[result_at..]).unwrap();
    assert_eq!((view.err.as_str(), view.app_id), ("ERR_OK", want.app_id));
    assert_eq!(view.partitions.len(), want.partitions.len());
    for (shown, partition) in view.partitions.iter().zip(&want.partitions) {
        let primary = partition.primary.map(|addr| addr.to_string());
        assert_eq!(shown.primary.as_ref().map(ToString::to_string), primary);
        assert_eq!(shown.secondaries.len(), partition.secondaries.len());
    }
}

/// A MetaServer that gives the recorded answers, and a proxy before it.
fn behind_a_proxy(tables: &[(&str, &str)]) -> (MetaServer, Proxy, Routes) {
    let meta = MetaServer::start();
    for (table, response) in tables {
        let answer = Response::decode(&golden(response)).unwrap();
        meta.put_answer(table, answer.result);
    }
    let route = |table| (table, record("c", &[meta.addr()]));
    let routes = Routes::new(tables.iter().map(|(table, _)| route(*table)));
    let proxy = routes.proxy();
    (meta, proxy, routes)
}

#[test]
fn real_answers_pass_through_whole() {
    for name in
        ["table-8-partitions-v0", "table-8-partitions-v1", "one-index-v0", "unknown-table-v0"]
    {
        let request = golden(&format!("real-{name}.request.bin"));
        let want = golden(&format!("real-{name}.response.bin"));
        let asked = Request::decode(&request).unwrap();
        let table = asked.query().unwrap().table;
        let (meta, proxy, _routes) =
            behind_a_proxy(&[(&table, &format!("real-{name}.response.bin"))]);
        let mut client = proxy.client();
        client.send(&request);
        assert_eq!(client.read_answer().bytes, want, "{name}");
        let upstream = &meta.requests()[0];
        assert_eq!(upstream.args, asked.args, "{name}: arguments go upstream as asked");
        assert_eq!((upstream.app_id, upstream.partition), (0, 0), "{name}: the header is ours");
        assert_eq!(meta.violations(), [] as [String; 0], "{name}");
    }
}

/// The answer that the proxy must give to each request of a recorded session.
fn expected(requests: &[Request], known: &[(&str, &str)]) -> Vec<(i32, String, String)> {
    let say = |request: &Request| {
        let ack = format!("{}_ACK", request.method);
        let said = match request.query() {
            Ok(query) if request.method == QUERY_CONFIG => {
                match known.iter().any(|(table, _)| *table == query.table) {
                    true => "ERR_OK",
                    false => "ERR_OBJECT_NOT_FOUND",
                }
            }
            _ => "ERR_HANDLER_NOT_FOUND",
        };
        (request.seq, ack, said.to_owned())
    };
    let mut all: Vec<_> = requests.iter().map(say).collect();
    all.sort();
    all
}

fn heard(client: &mut Client, count: usize) -> Vec<(i32, String, String)> {
    let answers = client.read_answers(count);
    let say = |(seq, answer): (i32, harness::client::Answer)| {
        let said = answer.err.unwrap_or(answer.frame_error);
        (seq, answer.name, said)
    };
    answers.into_iter().map(say).collect()
}

fn requests_in(mut stream: &[u8]) -> Vec<Request> {
    let mut requests = Vec::new();
    while let Some(len) = Request::frame_len(stream).unwrap() {
        requests.push(Request::decode(&stream[..len]).unwrap());
        stream = &stream[len..];
    }
    requests
}

#[test]
fn recorded_sessions_get_all_their_answers_however_their_bytes_arrive() {
    let known = [("temp", "01-go-apache-master-db756dc-existing.response.bin")];
    let (_meta, proxy, _routes) = behind_a_proxy(&known);
    let index = index();
    for stream in index["streams"].as_array().unwrap() {
        let name = text(stream, "name");
        let bytes = golden(text(stream, "c2s"));
        let requests = requests_in(&bytes);
        let want = expected(&requests, &known);
        assert_eq!(requests.len(), stream["requests"].as_array().unwrap().len(), "{name}");

        let mut client = proxy.client();
        client.send(&bytes);
        assert_eq!(heard(&mut client, want.len()), want, "{name} in one write");
        for request in &requests {
            client.send(&request.encode());
            assert_eq!(heard(&mut client, 1).len(), 1, "{name} one by one");
        }
        assert_eq!(client.ask("temp").err.as_deref(), Some("ERR_OK"), "{name}: it goes on");

        let mut client = proxy.client();
        for byte in &bytes {
            client.send(std::slice::from_ref(byte));
            thread::yield_now();
        }
        assert_eq!(heard(&mut client, want.len()), want, "{name} byte by byte");

        for at in 0..bytes.len() {
            let mut client = proxy.client();
            client.send(&bytes[..at]);
            thread::yield_now();
            client.send(&bytes[at..]);
            assert_eq!(heard(&mut client, want.len()), want, "{name} split at {at}");
        }
    }
}

// ---- what administrators ask

#[test]
fn administrators_requests_are_those_that_a_real_metaserver_was_asked() {
    for (name, written) in [
        ("admin-01-cluster-info-leader-A", admin_rpc::cluster_info(1)),
        ("admin-05-list-apps-available", admin_rpc::list_apps(1)),
        ("admin-15-query-dup-DS_LOG", admin_rpc::query_duplication(1, "temp")),
        ("admin-10-query-dup-no-table", admin_rpc::query_duplication(1, "nosuch")),
    ] {
        assert_eq!(written, golden(&format!("{name}.request.bin")), "{name}");
    }
}

#[test]
fn a_real_metaservers_answers_to_administrators_are_understood() {
    let answer = |name: &str| golden(&format!("{name}.response.bin"));
    let info = admin_rpc::read_cluster_info(&answer("admin-01-cluster-info-leader-A"), 1).unwrap();
    assert_eq!(
        (info["cluster_name"].as_str(), info["zookeeper_root"].as_str()),
        ("A", "/pegasus/A")
    );
    let apps = admin_rpc::read_apps(&answer("admin-05-list-apps-available"), 1).unwrap();
    let names: Vec<_> = apps.iter().map(|app| (app.name.as_str(), app.app_id)).collect();
    assert_eq!(names, [("temp", 1), ("gone", 2), ("inc", 3)]);
    assert!(apps.iter().all(|app| app.is_available && app.partition_count == 4), "{apps:?}");
    assert!(apps.iter().all(|app| app.max_replica_count == 3 && app.denies().is_none()));
    let apps = admin_rpc::read_apps(&answer("admin-24-list-apps-pattern-with-env"), 1).unwrap();
    assert_eq!(apps[0].denies(), Some("timeout*write"));
    let apps = admin_rpc::read_apps(&answer("admin-43-list-apps-dropped"), 1).unwrap();
    assert!(!apps.is_empty() && apps.iter().all(|app| !app.is_available), "{apps:?}");
    let remotes = |name: &str| admin_rpc::read_remotes(&answer(name), 1);
    assert_eq!(remotes("admin-15-query-dup-DS_LOG"), Ok(vec!["B".to_owned()]));
    assert_eq!(remotes("admin-09-query-dup-none"), Ok(Vec::new()));
    let refused = |err: &str| admin_rpc::BadAnswer::Refused(err.to_owned());
    assert_eq!(remotes("admin-10-query-dup-no-table"), Err(refused("ERR_APP_NOT_EXIST")));
    let forward = refused("ERR_FORWARD_TO_OTHERS");
    assert_eq!(remotes("admin-19-query-dup-follower"), Err(forward.clone()));
    let follower = answer("admin-40-list-apps-follower");
    assert_eq!(admin_rpc::read_apps(&follower, 1), Err(forward.clone()));
    let follower = answer("admin-02-cluster-info-follower-A");
    assert_eq!(admin_rpc::read_cluster_info(&follower, 1), Err(forward));
}

#[test]
fn an_answer_to_an_administrator_is_believed_only_if_it_is_one() {
    let frame = golden("admin-05-list-apps-available.response.bin");
    for n in 0..frame.len() {
        assert!(admin_rpc::read_apps(&frame[..n], 1).is_err(), "cut at {n}");
    }
    assert!(admin_rpc::read_apps(&frame, 2).is_err(), "another seq");
    assert!(admin_rpc::read_cluster_info(&frame, 1).is_err(), "another method");
}

/// The stand-in's answers are those of a real one.
#[test]
fn the_stand_in_answers_administrators_as_a_real_metaserver_does() {
    use harness::admin_rpc::{App, cluster_info, list_apps, query_duplication};
    let result = |name: &str| {
        Response::decode(&golden(&format!("{name}.response.bin"))).expect("a whole frame").result
    };
    let app = |name: &str, app_id: i32, create_second: i64| App {
        name: name.to_owned(),
        app_id,
        partition_count: 4,
        create_second,
        ..App::default()
    };
    let temp = app("temp", 1, 1_795_569_160);
    let list = [temp.clone(), app("gone", 2, 1_795_569_160), app("inc", 3, 1_795_569_160)];
    assert_eq!(list_apps("ERR_OK", &list), result("admin-05-list-apps-available"));
    let mut denied = app("gone", 2, 1_795_569_160);
    denied.envs.insert("replica.deny_client_request".into(), "timeout*write".into());
    assert_eq!(list_apps("ERR_OK", &[denied]), result("admin-24-list-apps-pattern-with-env"));
    let forward = "ERR_FORWARD_TO_OTHERS";
    assert_eq!(list_apps(forward, &[]), result("admin-40-list-apps-follower"));
    assert_eq!(cluster_info(forward, &[]), result("admin-02-cluster-info-follower-A"));
    let count = "{\n  \"copy_pri\": 0,\n  \"copy_sec\": 0,\n  \"move_pri\": 0,\n  \"total\": 0\n}";
    let pairs = [
        ("meta_servers", "localhost:29101,localhost:29102"),
        ("primary_meta_server", "localhost:29101"),
        ("zookeeper_hosts", "127.0.0.1:29181"),
        ("zookeeper_root", "/pegasus/A"),
        ("meta_function_level", "steady"),
        ("balance_operation_count", count),
        ("primary_replica_count_stddev", "0.00"),
        ("total_replica_count_stddev", "0.00"),
        ("cluster_name", "A"),
    ];
    assert_eq!(cluster_info("ERR_OK", &pairs), result("admin-01-cluster-info-leader-A"));
    let to_b = [("B", 1_795_569_210, 1_795_569_210_156)];
    let written = query_duplication("ERR_OK", Some(&temp), &to_b, &[24, 24, 26, 26]);
    assert_eq!(written, result("admin-15-query-dup-DS_LOG"));
    let none = query_duplication("ERR_APP_NOT_EXIST", None, &[], &[]);
    assert_eq!(none, result("admin-10-query-dup-no-table"));
}
