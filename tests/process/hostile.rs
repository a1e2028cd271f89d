//! Clients that are broken, slow, greedy or hostile: none of it reaches a MetaServer, and others are served.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use harness::client::{Client, NoAnswer};
use harness::meta_server::{Behaviour, MetaServer};
use harness::proxy::Proxy;
use harness::wait::eventually;
use harness::wire::{
    EXCEPTION, ONEWAY, QUERY_CONFIG, Query, QueryCfgResponse, REPLY, Request, Version,
};

use crate::support::{Routes, SOON, addr, golden, meta_with, record};

const PRIMARY: &str = "10.0.0.1:34801";

fn proxy_with(yaml: &str) -> (MetaServer, Proxy, Routes) {
    let meta = meta_with("t", PRIMARY);
    let routes = Routes::new([("t", record("c", &[meta.addr()]))]);
    let proxy = routes.proxy_with(yaml);
    (meta, proxy, routes)
}

fn is_served(client: &mut Client) -> bool {
    client.try_ask("t", SOON).is_ok_and(|answer| answer.err.as_deref() == Some("ERR_OK"))
}

/// A client of another host, for the proxy.
fn client_of_host(proxy: &Proxy, n: u8) -> Client {
    Client::connect_from(Ipv4Addr::new(127, 0, 0, n).into(), proxy.addr()).unwrap()
}

fn query() -> Request {
    Request::query_config(Version::V0, 1, "t")
}

/// A good request with bytes written over it.
fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = query().encode();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

fn with_args(args: &[u8]) -> Vec<u8> {
    Request::new(Version::V0, QUERY_CONFIG, 1, args.to_vec()).encode()
}

fn of_type(message_type: u8) -> Vec<u8> {
    Request { message_type, ..query() }.encode()
}

#[test]
fn requests_that_kill_or_silence_a_metaserver_never_reach_it() {
    let (meta, proxy, _routes) = proxy_with("");
    let mut neighbour = proxy.client();
    assert!(is_served(&mut neighbour));
    let good = query().encode();
    let args = query().args;
    let body_len = (good.len() - 48) as u32;
    let end = args.len() - 2;
    // Thrift 0.9.3 consumes nothing of a field of type 16, and would read the name of another table in it.
    let of_type_16 = [&[0x10, 0, 9][..], &[0x0b, 0, 1, 0, 0, 0, 1, b'u'], &[0; 8]].concat();
    let rdsn = golden("52-SYNTHETIC-rdsn-existing.request.bin");
    let mut junk_rdsn = rdsn.clone();
    junk_rdsn[192..].fill(0xff);
    for (why, bytes) in [
        ("body_len one too short", patched(16, &(body_len - 1).to_be_bytes())),
        ("an empty body", [&patched(16, &[0; 4])[..48], &good[..]].concat()),
        ("a truncated method name", patched(52, &200u32.to_be_bytes())),
        ("a bad Thrift version", patched(48, &[0x80, 0x02])),
        ("no arguments", with_args(&[])),
        ("missing arguments", with_args(&[0])),
        ("truncated arguments", with_args(&args[..args.len() - 3])),
        ("junk arguments", with_args(&[0xff; 30])),
        (
            "two billion indices",
            with_args(&[&args[..14], &[0x0f, 0, 2, 8, 0x7f, 255, 255, 255, 0, 0]].concat()),
        ),
        (
            "a type that is skipped otherwise",
            with_args(&[&args[..end], &of_type_16, &[0, 0]].concat()),
        ),
        ("RDSN with a junk body", junk_rdsn),
        ("4 unknown bytes", b"GET ".to_vec()),
        ("THFT version 2", patched(4, &[0, 0, 0, 2])),
        ("v0 header_len 49", patched(8, &[0, 0, 0, 49])),
        ("a REPLY", of_type(REPLY)),
        ("an EXCEPTION", of_type(EXCEPTION)),
        ("a body of 2 GB", patched(16, &[0x7f, 255, 255, 255])),
        ("a frame over the limit", patched(16, &[0, 1, 0, 0])),
    ] {
        let mut client = proxy.client();
        client.send(&bytes);
        println!("{why}");
        client.expect_closed(SOON);
        assert!(is_served(&mut neighbour), "{why}");
    }
    // A good request with other bytes behind it is answered, or its connection closes; never silence.
    let mut client = proxy.client();
    client.send(&[&good[..], b"other bytes"].concat());
    assert_ne!(
        client.try_read_answer(SOON).err().map(|e| matches!(e, NoAnswer::Silence { .. })),
        Some(true)
    );

    for (why, bytes) in [
        ("app_id > 0 in the header", Request { app_id: 7, partition: 3, ..query() }.encode()),
        ("ONEWAY is answered like CALL", of_type(ONEWAY)),
        ("a CRC, which nobody checks", patched(12, &[1, 2, 3, 4])),
    ] {
        let mut client = proxy.client();
        client.send(&bytes);
        assert_eq!(client.read_answer().err.as_deref(), Some("ERR_OK"), "{why}");
    }
    assert_eq!(meta.violations(), [] as [String; 0]);
    assert!(meta.requests().iter().all(|request| request.args == args));
}

#[test]
fn a_client_that_does_not_finish_a_frame_is_closed_and_others_are_served() {
    let (_meta, proxy, _routes) = proxy_with("limits: {frame_timeout_ms: 400}\nworkers: 4");
    let frame = query().encode();
    let mut halves: Vec<Client> = (0..200).map(|_| proxy.client()).collect();
    for (n, half) in halves.iter_mut().enumerate() {
        half.send(&frame[..1 + n % (frame.len() - 1)]);
    }
    let mut silent = proxy.client();
    let mut good = proxy.client();
    let mut dripping = proxy.client();
    let start = Instant::now();
    // A byte now and then does not move the deadline.
    for byte in &frame {
        if dripping.try_send(&[*byte]).is_err() {
            break;
        }
        assert!(is_served(&mut good));
        thread::sleep(Duration::from_millis(20));
    }
    dripping.expect_closed(SOON);
    for half in &mut halves {
        half.expect_closed(SOON);
    }
    assert!(start.elapsed() >= Duration::from_millis(400));
    assert!(is_served(&mut silent), "an idle connection is kept");
    assert!(is_served(&mut good));
}

#[test]
fn a_client_that_does_not_read_is_closed_and_memory_stays_bounded() {
    let limits = "limits: {max_unread_bytes: 1000000, max_unread_total_bytes: 8000000, \
                  unread_timeout_ms: 2000}";
    let (meta, proxy, _routes) = proxy_with(limits);
    meta.put_table("t", QueryCfgResponse::table(1, 1_000, addr(PRIMARY)));
    let mut good = proxy.client();
    assert!(is_served(&mut good));
    let before = proxy.rss_bytes();
    let mut greedy: Vec<Client> = (0..20).map(|_| proxy.client()).collect();
    for client in &mut greedy {
        client.send_queries(["t"; 500]);
    }
    for client in &mut greedy {
        eventually("it is closed", SOON, || client.try_send(&query().encode()).is_err());
    }
    assert!(is_served(&mut good));
    let grown = proxy.rss_bytes().saturating_sub(before);
    println!("RSS grew by {grown} bytes");
    assert!(grown < 64 << 20, "{grown} bytes more");
    proxy.wait_for_log("bytes of answers not taken", SOON);
}

#[test]
fn a_client_that_stops_reading_for_too_long_is_closed() {
    let (meta, proxy, _routes) =
        proxy_with(&format!("limits: {{unread_timeout_ms: 3000, max_unread_bytes: {}}}", 64 << 20));
    meta.put_table("t", QueryCfgResponse::table(1, 10_000, addr(PRIMARY)));
    let mut client = proxy.client();
    // 22 MB: more than the kernel takes, less than the limit.
    client.send_queries(["t"; 30]);
    proxy.wait_for_log("bytes of answers not taken", SOON);
    let mut reader = proxy.client();
    reader.send_queries(["t"; 30]);
    assert_eq!(reader.read_answers(30).len(), 30, "who reads gets all");
}

#[test]
fn more_queries_than_allowed_are_refused_at_once() {
    let (meta, proxy, _routes) = proxy_with("limits: {max_pending_per_client: 4}");
    meta.set(Behaviour::Slow(Duration::MAX));
    let mut client = proxy.client();
    client.send_queries(["t"; 10]);
    let refused = client.read_answers(6);
    assert!(refused.values().all(|a| a.err.as_deref() == Some("ERR_SERVICE_NOT_ACTIVE")));
    meta.set(Behaviour::Leader);
    let answered = client.read_answers(4);
    assert!(answered.values().all(|a| a.err.as_deref() == Some("ERR_OK")));
    assert!(is_served(&mut client), "it goes on");
}

#[test]
fn a_slow_cluster_leaves_room_for_queries_to_others() {
    let (slow, well) = (meta_with("slow", PRIMARY), meta_with("t", PRIMARY));
    slow.set(Behaviour::Slow(Duration::MAX));
    let routes =
        Routes::new([("slow", record("s", &[slow.addr()])), ("t", record("c", &[well.addr()]))]);
    let proxy = routes.proxy_with("limits: {max_pending: 16}");
    let mut clients: Vec<Client> = (1..=3).map(|n| client_of_host(&proxy, n)).collect();
    let (last, first) = clients.split_last_mut().unwrap();
    for client in &mut *first {
        client.send_queries(["slow"; 4]);
        // They are under way when a query behind them is refused: the host has its quarter.
        client.send_query(100, "slow");
        let refused = client.read_answer();
        assert_eq!((refused.seq, refused.err.as_deref()), (100, Some("ERR_SERVICE_NOT_ACTIVE")));
    }
    let answer = last.ask("slow");
    assert_eq!(answer.err.as_deref(), Some("ERR_SERVICE_NOT_ACTIVE"), "no more than are left");
    for _ in 0..20 {
        assert!(is_served(last), "another cluster has room");
    }
    slow.set(Behaviour::Leader);
    for client in first {
        assert_eq!(client.read_answers(4).len(), 4);
    }
    assert!(last.ask("slow").is_ok());
}

#[test]
fn one_host_cannot_have_all_queries_under_way() {
    let (meta, slow) = (meta_with("t", PRIMARY), meta_with("slow", PRIMARY));
    slow.set(Behaviour::Slow(Duration::MAX));
    let routes =
        Routes::new([("t", record("c", &[meta.addr()])), ("slow", record("s", &[slow.addr()]))]);
    let proxy = routes.proxy_with("query_timeout_ms: 60000\nlimits: {max_pending: 400}");
    let mut neighbour = client_of_host(&proxy, 2);
    let mut greedy: Vec<Client> = (0..20).map(|_| client_of_host(&proxy, 1)).collect();
    for client in &mut greedy {
        client.send_queries(["slow"; 50]);
        // All are read when the query behind them has its answer.
        client.send_query(100, "nosuch");
    }
    let mut refused = 0;
    for client in &mut greedy {
        while client.read_answer().seq != 100 {
            refused += 1;
        }
    }
    assert_eq!(refused, 900, "a quarter of all may wait");
    for _ in 0..20 {
        assert!(is_served(&mut neighbour), "another host is served meanwhile");
    }
    let mut answer = neighbour.try_ask("slow", Duration::from_millis(200));
    assert!(answer.is_err(), "and may wait for the same cluster: {answer:?}");
    slow.set(Behaviour::Leader);
    answer = neighbour.try_read_answer(SOON);
    assert!(answer.is_ok_and(|answer| answer.is_ok()));
}

#[test]
fn a_query_counts_for_the_length_of_its_arguments() {
    let (meta, proxy, _routes) = proxy_with("limits: {max_pending_per_client: 100}");
    let long = |seq| {
        let indices = Some((0..15_000).collect());
        let args = Query { table: "t".to_owned(), indices }.encode();
        Request::new(Version::V0, QUERY_CONFIG, seq, args).encode()
    };
    let mut client = proxy.client();
    client.send(&long(1));
    assert_eq!(client.read_answer().err.as_deref(), Some("ERR_OK"));
    assert_eq!(meta.requests()[0].query().unwrap().indices.map(|i| i.len()), Some(15_000));
    meta.set(Behaviour::Slow(Duration::MAX));
    let calls = meta.calls();
    client.send(&long(2));
    eventually("it is under way", SOON, || meta.calls() > calls);
    client.send(&long(3));
    let refused = client.read_answer();
    assert_eq!((refused.seq, refused.err.as_deref()), (3, Some("ERR_SERVICE_NOT_ACTIVE")));
    meta.set(Behaviour::Leader);
    assert_eq!(client.read_answer().seq, 2);
    assert_eq!(meta.violations(), [] as [String; 0]);
}

#[test]
fn the_client_with_most_bytes_is_closed_when_all_hold_too_many() {
    let (_meta, proxy, _routes) = proxy_with("limits: {max_unread_total_bytes: 1048576}");
    let mut modest = client_of_host(&proxy, 2);
    let frame = query().encode();
    modest.send(&frame[..50]);
    let long = [&patched(16, &60_000_u32.to_be_bytes())[..], &[0; 50_000]].concat();
    let mut greedy: Vec<Client> = (0..40).map(|_| proxy.client()).collect();
    for client in &mut greedy {
        client.send(&long);
    }
    proxy.wait_for_log("limit max_unread_total_bytes reached", SOON);
    modest.send(&frame[50..]);
    assert_eq!(modest.read_answer().err.as_deref(), Some("ERR_OK"), "it held next to nothing");
    let closed = |client: &mut Client| client.try_send(&[0]).is_err();
    eventually("half of it is free again", SOON, || {
        greedy.iter_mut().filter_map(|client| closed(client).then_some(())).count() >= 20
    });
}

#[test]
fn connections_over_the_limits_are_refused_and_those_that_are_there_served() {
    for limits in ["limits: {max_connections: 20}", "limits: {max_connections_per_address: 20}"] {
        let (_meta, proxy, _routes) = proxy_with(limits);
        let mut clients: Vec<Client> = (0..20).map(|_| proxy.client()).collect();
        assert!(clients.iter_mut().all(is_served), "{limits}");
        for _ in 0..50 {
            proxy.client().expect_closed(SOON);
        }
        assert!(clients.iter_mut().all(is_served), "{limits}");
        clients.truncate(10);
        eventually("there is room again", SOON, || is_served(&mut proxy.client()));
    }
}

#[test]
fn connections_that_come_and_go_leave_nothing() {
    let (_meta, proxy, _routes) = proxy_with("");
    let mut good = proxy.client();
    assert!(is_served(&mut good));
    let before = proxy.open_fds();
    for n in 0..500 {
        let mut client = proxy.client();
        match n % 3 {
            0 => drop(client),
            1 => client.send(&query().encode()[..20]),
            _ => assert!(is_served(&mut client)),
        }
    }
    // Long before the deadlines of the frames that were begun are over.
    let at_once = Duration::from_secs(5);
    eventually("all descriptors are closed", at_once, || proxy.open_fds() <= before + 2);
    assert!(is_served(&mut good));
}
