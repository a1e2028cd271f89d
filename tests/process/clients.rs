//! Clients beside each other: turns of reading, the clock of a query, clients that take their answers slowly or not at
//! all, what one host may have, and what a stop leaves behind.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use harness::client::{Client, NoAnswer};
use harness::greed::Greed;
use harness::http::{get, request};
use harness::meta_server::{Behaviour, MetaServer};
use harness::proxy::Proxy;
use harness::wait::eventually;
use harness::wire::{QueryCfgResponse, Request, Version};
use socket2::SockRef;

use crate::support::{QUERY_TIMEOUT, Routes, SOON, addr, meta_with, record};

const PRIMARY: &str = "10.0.0.1:34801";

/// Nobody waits longer for others in a test. Tests share the machine with JVMs, hence not the 50 ms of the bench.
const FOR_OTHERS: Duration = Duration::from_secs(1);

/// Partitions of a table whose answer has so many bytes: some 73 for each.
fn partitions(bytes: usize) -> i32 {
    (bytes / 73) as i32
}

fn table(bytes: usize) -> QueryCfgResponse {
    QueryCfgResponse::table(1, partitions(bytes), addr(PRIMARY))
}

/// A cluster with these tables of so many bytes each, and routes to it.
fn tables_of(bytes: usize, names: &[String]) -> (MetaServer, Routes) {
    let meta = MetaServer::start();
    meta.keep_requests(false);
    names.iter().for_each(|name| meta.put_table(name, table(bytes)));
    let routes = names.iter().map(|name| (name.as_str(), record("c", &[meta.addr()])));
    let routes = Routes::new(routes);
    (meta, routes)
}

fn frames(table: &str, count: i32) -> Vec<u8> {
    (0..count).flat_map(|seq| Request::query_config(Version::V0, seq, table).encode()).collect()
}

/// Bytes of the answer frames that are whole, and how many they are.
fn whole_frames(bytes: &[u8]) -> (usize, usize) {
    let (mut at, mut count) = (0, 0);
    while let Some(len) = bytes.get(at..at + 4) {
        let len = u32::from_be_bytes(len.try_into().unwrap()) as usize;
        if bytes.len() < at + len {
            break;
        }
        (at, count) = (at + len, count + 1);
    }
    (at, count)
}

/// The value of a metric that has one series.
fn metric(proxy: &Proxy, name: &str) -> f64 {
    let page = get(proxy.admin(), "/metrics");
    number(page.lines().find(|line| line.starts_with(name)).expect(name))
}

/// The value of a line of metrics.
fn number(line: &str) -> f64 {
    line.split(' ').next_back().and_then(|value| value.parse().ok()).expect(line)
}

fn unread_bytes(proxy: &Proxy) -> f64 {
    metric(proxy, "meta_proxy_unread_bytes")
}

// ---- turns

/// Clients of these hosts keep asking, and others ask for `t` meanwhile; returns the longest wait.
#[track_caller]
fn longest_wait_beside(greedy: &[IpAddr]) -> Duration {
    let meta = meta_with("t", PRIMARY);
    let routes = Routes::new([("t", record("c", &[meta.addr()]))]);
    let proxy = routes.proxy();
    let greedy = Greed::connect(proxy.addr(), greedy).expect("connections").start();
    eventually("they are answered", SOON, || greedy.answered_bytes() > 1 << 20);
    let mut client = client_of_host(&proxy, 99);
    let (start, mut worst) = (Instant::now(), Duration::ZERO);
    while start.elapsed() < Duration::from_secs(3) {
        let asked = Instant::now();
        assert!(client.try_ask("t", SOON).is_ok_and(|answer| answer.is_ok()));
        worst = worst.max(asked.elapsed());
    }
    println!("worst answer {worst:?} beside {} bytes of answers", greedy.answered_bytes());
    assert_eq!(greedy.stop(), Ok(()), "nobody is closed");
    worst
}

#[test]
fn clients_that_always_say_more_leave_others_as_they_were() {
    for clients in [1, 300] {
        let worst = longest_wait_beside(&vec![Ipv4Addr::LOCALHOST.into(); clients]);
        assert!(worst < FOR_OTHERS, "{worst:?} beside {clients} clients of one host");
    }
    let hosts: Vec<IpAddr> =
        (0..300).map(|n| [127, 0, 1 + (n / 250) as u8, (n % 250) as u8].into()).collect();
    let worst = longest_wait_beside(&hosts);
    assert!(worst < FOR_OTHERS, "{worst:?} beside {} hosts", hosts.len());
}

// ---- the clock

#[test]
fn time_that_a_query_waits_for_a_worker_counts() {
    let names: Vec<String> = (0..4).map(|n| format!("mute{n}")).collect();
    let mutes: Vec<MetaServer> = names.iter().map(|name| meta_with(name, PRIMARY)).collect();
    mutes.iter().for_each(|mute| mute.set(Behaviour::Mute));
    let records =
        names.iter().zip(&mutes).map(|(name, mute)| (name.as_str(), record(name, &[mute.addr()])));
    let routes = Routes::new(records);
    let proxy = routes.proxy_with("workers: 4");
    let mut first = proxy.client();
    first.send_queries(names.iter().map(String::as_str));
    eventually("all calls are under way", SOON, || mutes.iter().all(|mute| mute.calls() > 0));
    // With all workers taken the proxy may keep it waiting; the time that it waits is told.
    let (mut second, asked) = (proxy.client(), Instant::now());
    second.send_query(1, "no/table");
    second.read_answer();
    let took = asked.elapsed();
    assert!(took < QUERY_TIMEOUT + FOR_OTHERS, "{took:?}");
    let page = get(proxy.admin(), "/metrics");
    let is_quick = |line: &&str| {
        line.starts_with("meta_proxy_answer_latency_seconds_bucket") && line.contains("le=\"0.5\"")
    };
    let quick = number(page.lines().find(is_quick).expect("a histogram"));
    println!("waited {took:?}, {quick} answers count as quick");
    assert!(quick == 0.0 || took < Duration::from_millis(500), "{took:?} counts as quick");
}

// ---- unsent answers

#[test]
fn a_client_that_asks_for_much_at_once_and_reads_gets_all_of_it() {
    let names: Vec<String> = (0..64).map(|n| format!("t{n}")).collect();
    let (_meta, routes) = tables_of(256 << 10, &names);
    let proxy = routes.proxy_with("query_timeout_ms: 20000");
    let mut client = proxy.client();
    let seqs = client.send_queries(names.iter().map(String::as_str));
    let mut answered = 0;
    for _ in &seqs {
        let answer = client.try_read_answer(Duration::from_secs(20)).expect("an answer");
        assert!(answer.is_ok() && answer.bytes.len() > 250_000, "{answer:?}");
        answered += 1;
    }
    assert_eq!(answered, 64);
    assert!(client.ask("t0").is_ok(), "it goes on");
}

/// Clients that take so many bytes a second each, until they have `answers` answers; panics when one is closed.
fn take_slowly(clients: Vec<Client>, bytes_per_s: usize, answers: usize, within: Duration) {
    const TICK: Duration = Duration::from_millis(20);
    let portion = bytes_per_s / 50;
    let mut taken: Vec<(Client, Vec<u8>)> =
        clients.into_iter().map(|client| (client, Vec::new())).collect();
    let (start, mut left) = (Instant::now(), taken.len());
    for (client, _) in &taken {
        client.stream().set_nonblocking(true).unwrap();
    }
    let mut next = start;
    while left > 0 {
        assert!(start.elapsed() < within, "{left} clients have not got their answers");
        left = 0;
        for (n, (client, bytes)) in taken.iter_mut().enumerate() {
            let (_, count) = whole_frames(bytes);
            if count == answers {
                continue;
            }
            left += 1;
            let mut portion = vec![0; portion];
            match client.stream().read(&mut portion) {
                Ok(0) => panic!("client {n} is closed after {} bytes", bytes.len()),
                Ok(len) => bytes.extend(&portion[..len]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => panic!("client {n} is closed after {} bytes: {e}", bytes.len()),
            }
        }
        next += TICK;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let is_ok = |bytes: &[u8]| bytes.len() > 100_000;
    assert!(taken.iter().all(|(_, bytes)| is_ok(bytes)), "somebody was refused");
}

/// A client of another host, for the proxy.
fn client_of_host(proxy: &Proxy, n: u8) -> Client {
    Client::connect_from(Ipv4Addr::new(127, 0, 0, n).into(), proxy.addr()).unwrap()
}

/// A client whose kernel takes little for it, so that what it does not read is the proxy's to keep.
fn client_with_little_room(proxy: &Proxy) -> Client {
    let client = proxy.client();
    SockRef::from(client.stream()).set_recv_buffer_size(32 << 10).unwrap();
    client
}

#[test]
fn many_clients_that_take_one_big_table_slowly_are_all_served() {
    let names = ["big".to_owned()];
    let (meta, routes) = tables_of(5 << 20, &names);
    let proxy =
        routes.proxy_with("query_timeout_ms: 60000\nlimits: {max_unread_total_bytes: 40000000}");
    meta.set(Behaviour::Slow(Duration::MAX));
    let mut clients: Vec<Client> = (0..100).map(|_| client_with_little_room(&proxy)).collect();
    for client in &mut clients {
        client.send_query(1, "big");
        client.send_query(2, "nosuch");
    }
    // All are under way when the queries behind them have their answers. Theirs are 100 times 5 MB then, half of
    // which the kernel takes, and two or three times 5 MB of memory.
    clients.iter_mut().for_each(|client| assert_eq!(client.read_answer().seq, 2));
    meta.set(Behaviour::Leader);
    take_slowly(clients, 1_500_000, 1, Duration::from_secs(60));
    assert!(!proxy.log().contains("max_unread_total_bytes"), "{}", proxy.log());
}

#[test]
fn a_client_that_takes_its_answers_slowly_is_not_closed_and_then_read_again() {
    let names = ["t".to_owned()];
    let (meta, routes) = tables_of(70_000, &names);
    let limits = "limits: {max_unread_bytes: 200000, unread_timeout_ms: 1000}";
    let proxy = routes.proxy_with(&format!("query_timeout_ms: 60000\n{limits}"));
    let mut client = client_with_little_room(&proxy);
    client.send(&frames("t", 100));
    eventually("answers are unsent", SOON, || unread_bytes(&proxy) > 60e3);
    let calls = meta.calls();
    client.send(&frames("t", 200));
    thread::sleep(Duration::from_millis(300));
    assert_eq!(meta.calls(), calls, "it has enough to take, and is not read");
    take_slowly(vec![client], 7_000_000, 300, Duration::from_secs(60));
    assert!(meta.calls() > calls, "it was not read while it had enough to take");
}

#[test]
fn a_host_that_takes_nothing_costs_other_hosts_nothing() {
    let names: Vec<String> = (0..8).map(|n| format!("t{n}")).collect();
    let (_meta, routes) = tables_of(4 << 20, &names);
    let limits = "limits: {max_unread_total_bytes: 16000000, unread_timeout_ms: 600000}";
    let proxy = routes.proxy_with(&format!("query_timeout_ms: 20000\n{limits}"));
    let mut neighbour = client_of_host(&proxy, 2);
    let mut hungry: Vec<Client> = (0..8).map(|_| client_with_little_room(&proxy)).collect();
    // Each leaves another table of 4 MB unsent, in turn, until the host has its half of 16 MB.
    let mut refused = 0;
    for (client, name) in hungry.iter_mut().zip(&names) {
        let before = unread_bytes(&proxy);
        client.send_query(1, name);
        let is_refused = || client.stream().peek(&mut [0; 200]).is_ok_and(|len| len < 150);
        eventually("it is held or refused", SOON, || unread_bytes(&proxy) > before || is_refused());
        refused += usize::from(unread_bytes(&proxy) <= before);
    }
    assert!((1..=7).contains(&refused), "some are held and some refused, not {refused} of 8");
    assert!(unread_bytes(&proxy) < 16e6, "{}", unread_bytes(&proxy));
    let mut same_host = proxy.client();
    let answer = same_host.ask("t0");
    assert_eq!(answer.err.as_deref(), Some("ERR_SERVICE_NOT_ACTIVE"), "its host holds too much");
    for _ in 0..3 {
        assert!(neighbour.try_ask("t0", SOON).is_ok_and(|answer| answer.is_ok()));
    }
    let log = proxy.log();
    assert!(log.contains("max_unread_total_bytes, or half of it for one address"), "{log}");
    assert!(!log.contains("closed: "), "nobody is closed for it: {log}");
}

#[test]
fn clients_that_take_nothing_are_closed_when_all_hold_too_much_and_others_kept() {
    let names: Vec<String> = (0..24).map(|n| format!("t{n}")).collect();
    let (meta, routes) = tables_of(4 << 20, &names);
    let limits = "limits: {max_unread_total_bytes: 16000000, unread_timeout_ms: 600000}";
    let proxy = routes.proxy_with(&format!("query_timeout_ms: 60000\n{limits}"));
    // 24 tables of 4 MB each are under way before the first answer comes, from 12 hosts.
    meta.set(Behaviour::Slow(Duration::MAX));
    let mut clients: Vec<Client> = (0..24).map(|n| client_of_host(&proxy, 1 + n / 2)).collect();
    for (client, name) in clients.iter_mut().zip(&names) {
        SockRef::from(client.stream()).set_recv_buffer_size(32 << 10).unwrap();
        client.send_query(1, name);
        client.send_query(2, "nosuch");
        assert_eq!(client.read_answer().seq, 2);
    }
    let slow = clients.split_off(22);
    meta.set(Behaviour::Leader);
    // Two that take their answers are not closed, however much they are behind.
    take_slowly(slow, 2_000_000, 1, Duration::from_secs(60));
    eventually("there is room again", SOON, || unread_bytes(&proxy) < 16e6);
    proxy.wait_for_log("limit max_unread_total_bytes reached, and this client holds", SOON);
    assert!(client_of_host(&proxy, 99).ask("t0").is_ok(), "who comes now is served");
}

/// Numbers that look random and are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

#[test]
fn clients_that_write_and_read_at_any_pace_get_every_answer() {
    let names: Vec<String> = (0..4).map(|n| format!("t{n}")).collect();
    let (_meta, routes) = tables_of(60_000, &names);
    let limits = "limits: {max_unread_bytes: 150000, max_pending: 100000}";
    let proxy = routes.proxy_with(&format!("query_timeout_ms: 60000\n{limits}"));
    thread::scope(|scope| {
        for seed in 0..8 {
            let (names, mut client) = (&names, client_with_little_room(&proxy));
            let mut sending = client.stream().try_clone().unwrap();
            scope.spawn(move || {
                let mut numbers = Numbers(seed);
                let mut seq = 0;
                for _ in 0..6 {
                    let count = 1 + numbers.below(120) as usize;
                    let mut bytes = Vec::new();
                    for _ in 0..count {
                        seq += 1;
                        let name = &names[numbers.below(4) as usize];
                        bytes.extend(Request::query_config(Version::V0, seq, name).encode());
                    }
                    let mut pace = Numbers(seed + 1_000);
                    let writer = scope.spawn(move || {
                        while !bytes.is_empty() {
                            let len = bytes.len().min(1 + pace.below(6_000) as usize);
                            sending.write_all(&bytes[..len]).expect("it is read on");
                            bytes.drain(..len);
                            thread::sleep(Duration::from_micros(pace.below(3_000)));
                        }
                        sending
                    });
                    for n in 0..count {
                        if numbers.below(20) == 0 {
                            thread::sleep(Duration::from_millis(numbers.below(30)));
                        }
                        let answer = client.try_read_answer(SOON);
                        assert!(answer.is_ok_and(|answer| answer.is_ok()), "{n} of {count}");
                    }
                    sending = writer.join().expect("the writer wrote");
                }
            });
        }
    });
    eventually("nothing is held any more", SOON, || unread_bytes(&proxy) == 0.0);
}

#[test]
fn a_client_that_is_not_read_is_forgotten_when_it_goes() {
    let names = ["t".to_owned()];
    let (_meta, routes) = tables_of(1 << 20, &names);
    let proxy = routes.proxy_with("limits: {max_unread_bytes: 100000, unread_timeout_ms: 600000}");
    let before = proxy.open_fds();
    let mut clients: Vec<Client> = (0..10).map(|_| client_with_little_room(&proxy)).collect();
    for client in &mut clients {
        client.send(&frames("t", 200));
    }
    eventually("answers are unsent", SOON, || unread_bytes(&proxy) > 60e3);
    // Half of them by a reset, for their own input is unread.
    drop(clients);
    eventually("all are forgotten", SOON, || {
        unread_bytes(&proxy) == 0.0 && proxy.open_fds() <= before + 4
    });
}

#[test]
fn a_client_that_stops_sending_gets_its_answers_beside_other_clients() {
    let meta = meta_with("t", PRIMARY);
    let routes = Routes::new([("t", record("c", &[meta.addr()]))]);
    let proxy = routes.proxy();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Calls for the same table are under way all the time, so that its answer may come while its client is read.
        for _ in 0..3 {
            scope.spawn(|| {
                let mut client = proxy.client();
                while !is_over.load(SeqCst) {
                    assert!(client.ask("t").is_ok());
                }
            });
        }
        for _ in 0..300 {
            let mut client = proxy.client();
            SockRef::from(client.stream()).set_tcp_cork(true).unwrap();
            client.send_queries(["t", "nosuch", "t", "no/such/name"]);
            client.finish_sending();
            assert_eq!(client.read_answers(4).len(), 4);
            client.expect_closed(SOON);
        }
        is_over.store(true, SeqCst);
    });
}

// ---- hosts

#[test]
fn an_ipv4_client_of_an_ipv6_socket_is_an_ipv4_client() {
    let meta = meta_with("t", PRIMARY);
    let routes = Routes::new([("t", record("c", &[meta.addr()]))]);
    let proxy = routes.proxy_with("listen: \"[::]:0\"\nlimits: {max_connections_per_address: 3}");
    let port = proxy.addr().port();
    let connect =
        |ip: &str| Client::try_connect(SocketAddr::new(ip.parse().unwrap(), port), SOON).unwrap();
    let mut v4 = connect("127.0.0.1");
    assert!(v4.ask("t").is_ok());
    let page = get(proxy.admin(), "/clients");
    assert!(page.contains("\"127.0.0.1\"") && !page.contains("ffff"), "{page}");
    let others = [connect("127.0.0.1"), connect("127.0.0.1")];
    connect("127.0.0.1").expect_closed(SOON);
    assert!(connect("::1").ask("t").is_ok(), "another host");
    drop(others);
}

// ---- a stop

fn signal_int(proxy: &Proxy) -> Instant {
    proxy.process().signal("INT");
    Instant::now()
}

fn ends_within(proxy: &Proxy, since: Instant, within: Duration) {
    let status = proxy.process().wait(SOON + within).expect("it ends");
    let took = since.elapsed();
    assert_eq!(status.code(), Some(0));
    assert!(took < within, "{took:?}\n{}", proxy.log());
}

#[test]
fn a_stop_under_busy_clients_answers_what_was_read_and_ends() {
    let meta = meta_with("t", PRIMARY);
    // Longer than a stop takes when nobody new is read, shorter than the deadline of a query.
    meta.set(Behaviour::Slow(Duration::from_millis(100)));
    let routes = Routes::new([("t", record("c", &[meta.addr()]))]);
    let proxy = routes.proxy();
    let answered = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..64 {
            let mut client = proxy.client();
            let answered = &answered;
            scope.spawn(move || {
                loop {
                    match client.try_ask("t", SOON) {
                        Ok(answer) => assert!(answer.is_ok(), "{answer:?}"),
                        Err(NoAnswer::Closed) => return,
                        Err(other) => panic!("silence: {other}"),
                    }
                    answered.fetch_add(1, SeqCst);
                }
            });
        }
        eventually("all are busy", SOON, || answered.load(SeqCst) > 200);
        let since = signal_int(&proxy);
        ends_within(&proxy, since, Duration::from_millis(1_500));
    });
    let log = proxy.log();
    assert!(!log.contains("stay without an answer"), "{log}");
}

#[test]
fn an_answer_that_is_being_taken_is_not_cut_by_a_stop() {
    let names = ["big".to_owned()];
    let (_meta, routes) = tables_of(12 << 20, &names);
    for signals in [&["INT"][..], &["TERM", "TERM"]] {
        let proxy = routes.proxy_with("query_timeout_ms: 20000");
        let mut client = client_with_little_room(&proxy);
        // Unread input must not reset the connection when it closes: half a frame stays in the socket.
        client.send(&frames("big", 1));
        client.stream().peek(&mut [0]).expect("the answer begins");
        for (sent, signal) in signals.iter().enumerate() {
            // One that comes before the last was heard is none.
            if sent > 0 {
                proxy.wait_for_log("SIGTERM: stopping", SOON);
            }
            proxy.process().signal(signal);
        }
        proxy.wait_for_log("stopping: 1 clients are connected", SOON);
        client.send(&frames("big", 100));
        take_slowly(vec![client], 4_000_000, 1, Duration::from_secs(30));
        let status = proxy.process().wait(SOON).expect("it ends");
        assert_eq!(status.code(), Some(0));
    }
}

#[test]
fn a_stop_does_not_wait_for_clients_that_take_nothing_nor_for_mute_clusters() {
    let (meta, mute) = (MetaServer::start(), meta_with("mute", PRIMARY));
    meta.put_table("big", table(12 << 20));
    mute.set(Behaviour::Mute);
    let routes =
        Routes::new([("big", record("c", &[meta.addr()])), ("mute", record("m", &[mute.addr()]))]);
    let proxy = routes.proxy();
    let [mut stalled, mut waiting] = [client_with_little_room(&proxy), proxy.client()];
    stalled.send(&frames("big", 1));
    stalled.stream().peek(&mut [0]).expect("the answer begins");
    waiting.send_query(1, "mute");
    eventually("its call is under way", SOON, || mute.calls() > 0);
    let since = signal_int(&proxy);
    let answer = waiting.read_answer();
    assert_eq!(answer.err.as_deref(), Some("ERR_SERVICE_NOT_ACTIVE"), "in time, not silence");
    waiting.expect_closed(SOON);
    drop(waiting);
    ends_within(&proxy, since, QUERY_TIMEOUT + Duration::from_secs(3));
    assert!(
        proxy.log().contains("stopping: 0 queries stay without an answer, 1 clients"),
        "{}",
        proxy.log()
    );
}

#[test]
fn a_client_that_asks_when_it_is_let_go_is_not_reset() {
    let meta = meta_with("t", PRIMARY);
    let routes = Routes::new([("t", record("c", &[meta.addr()]))]);
    let proxy = routes.proxy_with("stop: {min_age: 0}");
    let mut client = proxy.client();
    assert!(client.ask("t").is_ok());
    assert_eq!(request(proxy.admin(), "POST", "/drain", "").body, "draining\n");
    let mut stream = client.stream().try_clone().unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(stream.peek(&mut [0]).unwrap(), 0, "it is told to leave");
    // As a query does that crosses with the goodbye.
    for _ in 0..3 {
        client.send(&frames("t", 1));
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(stream.read(&mut [0]).expect("closed, not reset"), 0);
    drop((client, stream));
    eventually("it is closed", SOON, || metric(&proxy, "client_connection_count") == 0.0);
}

#[test]
fn one_more_signal_ends_the_wait_for_clients() {
    let names = ["big".to_owned()];
    let (_meta, routes) = tables_of(12 << 20, &names);
    let proxy = routes.proxy_with("query_timeout_ms: 60000");
    let mut client = client_with_little_room(&proxy);
    client.send(&frames("big", 1));
    client.stream().peek(&mut [0]).expect("the answer begins");
    proxy.process().signal("INT");
    proxy.wait_for_log("stopping: 1 clients are connected", SOON);
    let since = signal_int(&proxy);
    ends_within(&proxy, since, Duration::from_millis(900));
}
