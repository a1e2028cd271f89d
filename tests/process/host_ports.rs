//! Ports for clients that do not know the host_port fields of servers from 2.6 on.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::client::{Answer, Client};
use harness::meta_server::{Behaviour, MetaServer};
use harness::proxy::Proxy;
use harness::rdsn::{Frame, RdsnClient, Verdict};
use harness::scratch::Scratch;
use harness::wait::eventually;
use harness::wire::{Partition, QUERY_CONFIG, QueryCfgResponse, Response};
use meta_proxy::wire::host_port::remove;
use meta_proxy::wire::result;
use serde_json::Value;

use crate::run::run;
use crate::support::{BINARY, Routes, SOON, addr, count_of, golden, record};

const PRIMARY: &str = "10.0.0.1:34801";
const LISTENERS: &str = "\
listeners:
  - {listen: '127.0.0.1:0', host_port_fields: remove}
  - {listen: '127.0.0.1:0', host_port_fields: keep}
";

/// The result structs of all recorded answers to QueryConfig, THFT and RDSN, with the names of their files.
fn recorded_results() -> Vec<(String, Vec<u8>)> {
    let mut results = Vec::new();
    for list in ["real.json", "cpp.json", "index.json"] {
        let list: Value = serde_json::from_slice(&golden(list)).unwrap();
        let vectors = list.get("vectors").unwrap_or(&list);
        for name in
            vectors.as_array().unwrap().iter().filter_map(|vector| vector["response"].as_str())
        {
            let frame = golden(name);
            let result = match frame.starts_with(b"RDSN") {
                true => Frame::decode(&frame).ok().map(|answer| answer.body),
                false => Response::decode(&frame)
                    .ok()
                    .filter(|answer| answer.name == format!("{QUERY_CONFIG}_ACK"))
                    .map(|answer| answer.result),
            };
            results.extend(result.map(|result| (name.to_owned(), result)));
        }
    }
    results
}

/// This answer as far as old clients know it.
fn without_host_ports(mut config: QueryCfgResponse) -> QueryCfgResponse {
    for partition in &mut config.partitions {
        let Partition { hp_primary, hp_secondaries, hp_last_drops, .. } = partition;
        (*hp_primary, *hp_secondaries, *hp_last_drops) = (None, None, None);
    }
    config
}

#[test]
fn recorded_answers_lose_these_fields_and_nothing_else() {
    let (mut stripped, mut same) = (0, 0);
    for (name, result) in recorded_results() {
        let Ok(config) = QueryCfgResponse::decode(&result) else {
            // JSON, the address in a follower's forward, and no result at all.
            assert!(remove(&result).is_err(), "{name}");
            continue;
        };
        match remove(&result).unwrap() {
            Some(rest) => {
                stripped += 1;
                assert_eq!(
                    QueryCfgResponse::decode(&rest),
                    Ok(without_host_ports(config.clone())),
                    "{name}"
                );
                // Byte for byte what a server without these fields writes.
                assert_eq!(rest, without_host_ports(config).encode(), "{name}");
                assert_eq!(remove(&rest), Ok(None), "{name}");
            }
            None => {
                same += 1;
                assert_eq!(without_host_ports(config.clone()), config, "{name}");
            }
        }
    }
    assert!(stripped >= 15 && same >= 10, "{stripped} with these fields, {same} without");
}

#[test]
fn anything_unexpected_is_left_alone() {
    let config = QueryCfgResponse::table(1, 2, addr(PRIMARY)).with_host_ports();
    let bytes = config.encode();
    for n in 0..bytes.len() {
        assert!(remove(&bytes[..n]).is_err(), "cut at {n}");
    }
    let at = |pattern: &[u8]| bytes.windows(pattern.len()).position(|w| w == pattern).unwrap();
    let patched = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        bytes
    };
    let host_port = at(&[12, 0, 9]);
    let inserted = |field: &[u8]| [&bytes[..host_port], field, &bytes[host_port..]].concat();
    for (why, result) in [
        ("fields of the future", config.clone().from_the_future().encode()),
        ("one of a bare type before them", inserted(&[12, 0, 12, 0, 0, 0, 1, b'h', 1, 1, 1])),
        ("a plain one before them", inserted(&[8, 0, 12, 0, 0, 0, 1])),
        ("hp_primary twice", inserted(&[12, 0, 9, 0, 0, 0, 1, b'h', 1, 1, 1])),
        ("hp_primary of another type", patched(host_port, 11)),
        ("hp_secondaries of another type", patched(at(&[15, 0, 10]) + 3, 11)),
        ("a host longer than the answer", patched(host_port + 3, 0x7f)),
        ("a host of negative length", patched(host_port + 3, 0xff)),
        ("bytes behind", [&bytes[..], &[0]].concat()),
    ] {
        assert!(remove(&result).is_err(), "{why}");
    }
    assert_eq!(remove(&[0]).unwrap_err().to_string(), "no query_cfg_response");
    let found = result::walk(&bytes).unwrap();
    assert_eq!((found.err, found.partition_count, found.host_ports.len()), (&b"ERR_OK"[..], 2, 2));
}

fn table() -> QueryCfgResponse {
    QueryCfgResponse::table(1, 4, addr(PRIMARY)).with_host_ports()
}

fn proxy_with_listeners() -> (MetaServer, Proxy, Routes) {
    let meta = MetaServer::start();
    meta.put_table("t", table());
    let routes = Routes::new([("t", record("c", &[meta.addr()]))]);
    let proxy = routes.proxy_with(LISTENERS);
    (meta, proxy, routes)
}

fn ask_at(addr: SocketAddr) -> Answer {
    Client::connect(addr).ask("t")
}

#[test]
fn each_port_has_its_answers_and_all_share_the_call() {
    let (meta, proxy, _routes) = proxy_with_listeners();
    let (remove, keep) = (proxy.further_addr(0), proxy.further_addr(1));
    for (addr, want) in
        [(proxy.addr(), table()), (keep, table()), (remove, without_host_ports(table()))]
    {
        let answer = ask_at(addr);
        assert_eq!(answer.result, want.encode());
        // The envelope fits what is in it.
        assert_eq!(Response::decode(&answer.bytes).unwrap().config(), Ok(want));
    }
    for (via, has) in [(proxy.addr(), true), (keep, true), (remove, false)] {
        let mut command = Command::new(BINARY);
        command.args(["query", "t", "--via", &via.to_string()]);
        let told = run(command, SOON).expect_code(0).stdout;
        let end = if has { "4 partitions, with host_port fields" } else { "4 partitions" };
        assert_eq!(told.lines().next(), Some(&*format!("t: ERR_OK, app id 1, {end}")));
    }
    meta.set(Behaviour::Slow(Duration::MAX));
    let calls = meta.calls();
    let mut first = proxy.client();
    first.send_query(1, "t");
    eventually("the first call is under way", SOON, || meta.calls() == calls + 1);
    let addrs = [proxy.addr(), remove, keep];
    let mut clients: Vec<_> =
        addrs.iter().cycle().take(30).map(|addr| Client::connect(*addr)).collect();
    let mut cpp: Vec<_> = addrs.iter().map(|addr| RdsnClient::connect(*addr)).collect();
    for client in &mut clients {
        client.send_query(1, "t");
        client.send_query(2, "nosuch");
        assert_eq!(client.read_answer().seq, 2);
    }
    for client in &mut cpp {
        client.send_query("t", &[]);
        assert!(matches!(client.ask("nosuch"), Verdict::Takes(_)));
    }
    meta.set(Behaviour::Leader);
    for (client, addr) in clients.iter_mut().zip(addrs.iter().cycle()) {
        let want = if *addr == remove { without_host_ports(table()) } else { table() };
        assert_eq!(client.read_answer().result, want.encode());
    }
    for client in &mut cpp {
        // It reads no other addresses.
        assert_eq!(client.read_answer().judge(2), Verdict::Takes(table()), "at every port");
    }
    assert_eq!(meta.calls(), calls + 2);
    assert_eq!(meta.violations(), [] as [String; 0]);
}

#[test]
fn an_unexpected_answer_passes_as_it_came_and_is_counted_once_a_call() {
    let (meta, proxy, _routes) = proxy_with_listeners();
    let result = table().from_the_future().encode();
    meta.put_answer("t", result.clone());
    meta.set(Behaviour::Slow(Duration::MAX));
    let mut clients: Vec<_> = (0..10).map(|_| Client::connect(proxy.further_addr(0))).collect();
    for client in &mut clients {
        client.send_queries(["t"; 3]);
        client.send_query(100, "nosuch");
        assert_eq!(client.read_answer().seq, 100, "all have arrived");
    }
    meta.set(Behaviour::Leader);
    for client in &mut clients {
        for answer in client.read_answers(3).into_values() {
            assert_eq!(answer.result, result);
        }
    }
    let says = "table=t cluster=c: unexpected answer, its host_port fields stay in it: want known \
                fields, got partition_configuration field 50";
    proxy.wait_for_log(says, SOON);
    let unfit = |why| count_of(&proxy, "meta_proxy_unfit_answers_total", why);
    assert_eq!((unfit("host_port_fields"), unfit("rdsn")), (meta.calls() as f64, 0.0));
    assert!(meta.calls() <= 3, "{} calls for 30 queries", meta.calls());
    // Nobody wants it without at the other port.
    assert_eq!(proxy.ask("t").result, result);
}

#[test]
fn all_ports_close_together_and_limits_count_over_all() {
    let (_meta, proxy, _routes) = {
        let meta = MetaServer::start();
        meta.put_table("t", table());
        let routes = Routes::new([("t", record("c", &[meta.addr()]))]);
        let limits = "limits: {max_connections: 3}\nstop: {min_age: 0}";
        let proxy = routes.proxy_with(&format!("{LISTENERS}{limits}"));
        (meta, proxy, routes)
    };
    let addrs = [proxy.addr(), proxy.further_addr(0), proxy.further_addr(1)];
    let mut clients: Vec<_> = addrs.iter().map(|addr| Client::connect(*addr)).collect();
    for client in &mut clients {
        assert!(client.ask("t").is_ok());
    }
    for addr in addrs {
        Client::connect(addr).expect_closed(SOON);
    }
    drop(clients);
    assert_eq!(proxy.terminate().code(), Some(0));
    for addr in addrs {
        assert!(std::net::TcpStream::connect(addr).is_err(), "{addr} is closed");
    }
}

#[test]
fn an_address_as_argument_takes_the_place_of_all_ports() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let routes = Routes::new([]);
    let scratch = Scratch::new("listen");
    let yaml = format!(
        "listeners: [{{listen: {}}}]\nadmin: {{listen: none}}\n",
        taken.local_addr().unwrap()
    );
    let file = scratch.write("settings.yaml", yaml);
    let mut command = Command::new(BINARY);
    command.args(["--listen", "127.0.0.1:0", "--routes"]).arg(routes.path()).arg(file);
    let mut proxy = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // It would end without a line like this if it wanted the port that is taken.
    let log = BufReader::new(proxy.stderr.take().unwrap());
    let listens = log.lines().any(|line| line.unwrap().contains("listening on 127.0.0.1:"));
    proxy.kill().unwrap();
    proxy.wait().unwrap();
    assert!(listens);
}

#[test]
fn a_port_that_cannot_be_had_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let routes = Routes::new([]);
    let extra = format!("listeners: [{{listen: {addr}, host_port_fields: remove}}]");
    let proxy = Proxy::builder(BINARY).routes_file(routes.path()).config_extra(&extra).launch();
    let status = proxy.process().wait(SOON).expect("it does not start");
    assert_eq!(status.code(), Some(1));
    proxy.wait_for_log(&format!("listen on {addr}: Address already in use"), SOON);
}
