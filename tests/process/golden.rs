//! Frames of real clients and of a real MetaServer, byte for byte.

use std::thread;

use harness::client::Client;
use harness::meta_server::MetaServer;
use harness::proxy::Proxy;
use harness::wire::{QUERY_CONFIG, QueryCfgResponse, Request, Response};
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
fn what_followers_say_is_understood() {
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
