//! Many queries on one connection: side by side, answered in any order, each once.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::mem;
use std::thread;
use std::time::{Duration, Instant};

use harness::meta_server::{Behaviour, MetaServer};
use harness::wait::eventually;
use harness::wire::{QueryCfgResponse, Request, Version};
use socket2::SockRef;

use crate::support::{Routes, SOON, addr, meta_with, record};

const PRIMARY: &str = "10.0.0.1:34801";

#[test]
fn a_slow_answer_does_not_hold_up_the_next() {
    let (slow, fast) = (meta_with("slow", PRIMARY), meta_with("fast", PRIMARY));
    slow.set(Behaviour::Slow(Duration::MAX));
    let routes =
        Routes::new([("slow", record("s", &[slow.addr()])), ("fast", record("f", &[fast.addr()]))]);
    let proxy = routes.proxy();
    for version in [Version::V0, Version::V1] {
        slow.set(Behaviour::Slow(Duration::MAX));
        let mut client = proxy.client().with_version(version);
        client.send_query(1, "slow");
        client.send_query(2, "fast");
        client.send_query(3, "nosuch");
        let first: BTreeSet<i32> = [client.read_answer().seq, client.read_answer().seq].into();
        assert_eq!(first, [2, 3].into());
        slow.set(Behaviour::Leader);
        let last = client.read_answer();
        assert_eq!((last.seq, last.err.as_deref()), (1, Some("ERR_OK")));
    }
}

#[test]
fn queries_of_one_table_share_calls() {
    let meta = meta_with("t", PRIMARY);
    meta.set(Behaviour::Slow(Duration::MAX));
    let routes = Routes::new([("t", record("c", &[meta.addr()]))]);
    let proxy = routes.proxy();
    let mut first = proxy.client();
    first.send_query(1, "t");
    eventually("the first call is under way", SOON, || meta.calls() == 1);
    let mut clients: Vec<_> = (0..50).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send_queries(["t"; 4]);
    }
    // All have arrived when a query behind them on each connection has its answer.
    for client in &mut clients {
        client.send_query(100, "nosuch");
        assert_eq!(client.read_answer().seq, 100);
    }
    meta.set(Behaviour::Leader);
    assert_eq!(first.read_answer().err.as_deref(), Some("ERR_OK"));
    for client in &mut clients {
        assert_eq!(client.read_answers(4).len(), 4);
    }
    assert_eq!(meta.calls(), 2, "200 queries joined the call after the first");
}

#[test]
fn no_answer_is_older_than_its_question() {
    let meta = meta_with("t", PRIMARY);
    let routes = Routes::new([("t", record("c", &[meta.addr()]))]);
    let proxy = routes.proxy();
    // Others keep calls under way all the time.
    let mut others: Vec<_> = (0..4).map(|_| proxy.client()).collect();
    let mut client = proxy.client();
    for app_id in 1..200 {
        for other in &mut others {
            other.send_queries(["t"; 8]);
        }
        meta.put_table("t", QueryCfgResponse::table(app_id, 1, addr(PRIMARY)));
        assert_eq!(client.ask("t").config().app_id, app_id);
        for other in &mut others {
            other.read_answers(8);
        }
    }
}

#[test]
fn a_client_that_only_stops_sending_gets_its_answers() {
    let meta = meta_with("t", PRIMARY);
    meta.set(Behaviour::Slow(Duration::from_millis(200)));
    let routes = Routes::new([("t", record("c", &[meta.addr()]))]);
    let proxy = routes.proxy();
    let mut client = proxy.client();
    client.send_queries(["t", "nosuch", "t"]);
    client.finish_sending();
    assert_eq!(client.read_answers(3).len(), 3);
    client.expect_closed(SOON);
}

#[test]
fn a_pipelining_client_gets_the_proxys_own_answers_too() {
    let meta = meta_with("t", PRIMARY);
    let routes = Routes::new([("t", record("c", &[meta.addr()]))]);
    let proxy = routes.proxy();
    let frames = [
        Request::new(Version::V0, "RPC_CM_LIST_APPS", 1, vec![0]).encode(),
        Request::new(Version::V0, "RPC_NEGOTIATION", 2, vec![0]).encode(),
        Request::query_config(Version::V0, 3, "no/such/name").encode(),
    ];
    for frame in frames {
        // Both in one packet, so that the proxy sees the end as soon as the question.
        let mut client = proxy.client();
        SockRef::from(client.stream()).set_tcp_cork(true).unwrap();
        client.send(&frame);
        client.finish_sending();
        client.read_answer();
        client.expect_closed(SOON);
    }
}

#[test]
fn a_hundred_thousand_pipelined_queries_are_all_answered() {
    let meta = MetaServer::start();
    meta.keep_requests(false);
    meta.put_table("t", QueryCfgResponse::table(1, 1, addr(PRIMARY)));
    let routes = Routes::new([("t", record("c", &[meta.addr()]))]);
    let proxy = routes.proxy();
    let before = proxy.rss_bytes();
    let mut client = proxy.client();
    let mut answered = 0;
    let start = Instant::now();
    // A thousand at a time on the way, read as they come.
    for _ in 0..100 {
        client.send_queries(["t"; 1_000]);
        let answers = client.read_answers(1_000);
        answered += answers.values().filter(|a| a.err.as_deref() == Some("ERR_OK")).count();
    }
    println!("{answered} answers in {:?}, {} calls", start.elapsed(), meta.calls());
    assert_eq!(answered, 100_000);
    let grown = proxy.rss_bytes().saturating_sub(before);
    println!("RSS grew by {} KiB", grown >> 10);
    assert!(grown < 32 << 20, "{grown} bytes more");
}

#[test]
fn a_hundred_thousand_queries_in_one_go_all_get_an_answer() {
    const COUNT: usize = 100_000;
    let meta = meta_with("t", PRIMARY);
    let routes = Routes::new([("t", record("c", &[meta.addr()]))]);
    let proxy = routes.proxy();
    let before = proxy.rss_bytes();
    let mut client = proxy.client();
    let mut sending = client.stream().try_clone().unwrap();
    // Until it is full: more than may be under way.
    meta.set(Behaviour::Slow(Duration::MAX));
    let mut errors: BTreeMap<Option<String>, usize> = BTreeMap::new();
    thread::scope(|scope| {
        scope.spawn(move || {
            for seq in 0..COUNT as i32 {
                let frame = Request::query_config(Version::V0, seq, "t").encode();
                sending.write_all(&frame).expect("the proxy reads on");
            }
        });
        let mut answered = vec![false; COUNT];
        for n in 0..COUNT {
            if n == COUNT / 2 {
                meta.set(Behaviour::Leader);
            }
            let answer = client.read_answer();
            assert!(!mem::replace(&mut answered[answer.seq as usize], true), "{}", answer.seq);
            *errors.entry(answer.err).or_default() += 1;
        }
    });
    let grown = proxy.rss_bytes().saturating_sub(before);
    println!("{errors:?}, RSS grew by {} KiB", grown >> 10);
    let of = |err: &str| errors.get(&Some(err.to_owned())).copied().unwrap_or(0);
    assert_eq!(of("ERR_OK") + of("ERR_SERVICE_NOT_ACTIVE"), COUNT, "{errors:?}");
    assert!(of("ERR_OK") > 0 && of("ERR_SERVICE_NOT_ACTIVE") > 0, "{errors:?}");
    assert!(grown < 32 << 20, "{grown} bytes more");
}

#[test]
fn a_client_that_always_asks_at_once_is_not_held_up_by_its_own_slow_query() {
    let (slow, fast) = (meta_with("slow", PRIMARY), meta_with("fast", PRIMARY));
    let routes =
        Routes::new([("slow", record("s", &[slow.addr()])), ("fast", record("f", &[fast.addr()]))]);
    let proxy = routes.proxy();
    let mut client = proxy.client();
    for _ in 0..5 {
        slow.set(Behaviour::Leader);
        // Often enough for a worker to linger at this client.
        for _ in 0..200 {
            assert_eq!(client.ask("slow").err.as_deref(), Some("ERR_OK"));
        }
        slow.set(Behaviour::Slow(Duration::MAX));
        let calls = slow.calls();
        client.send_query(1_000_001, "slow");
        eventually("its call is under way", SOON, || slow.calls() > calls);
        client.send_query(1_000_002, "fast");
        assert_eq!(client.read_answer().seq, 1_000_002);
        slow.set(Behaviour::Leader);
        assert_eq!(client.read_answer().seq, 1_000_001);
    }
}

#[test]
fn the_memory_of_one_batch_of_answers_serves_the_next() {
    let names: Vec<String> = (0..64).map(|n| format!("t{n}")).collect();
    let meta = MetaServer::start();
    let routes = Routes::new(names.iter().map(|name| {
        meta.put_table(name, QueryCfgResponse::table(1, 64, addr(PRIMARY)));
        (name.as_str(), record("c", &[meta.addr()]))
    }));
    let proxy = routes.proxy();
    let mut client = proxy.client();
    let mut ask = |times: usize| {
        for _ in 0..times {
            client.ask_all(names.iter().map(String::as_str));
        }
    };
    ask(100);
    let before = proxy.process().page_faults();
    ask(200);
    let faults = proxy.process().page_faults() - before;
    assert!(faults < 1_500, "{faults} page faults for 12,800 answers");
}
