//! The proxy's worst day: clusters that are gone or slow, clients that misbehave in crowds, descriptors that run out.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use harness::client::Client;
use harness::meta_server::{Behaviour, MetaServer};
use harness::proxy::Proxy;
use harness::relay::Relay;
use harness::scratch::Scratch;
use harness::wait::eventually;
use harness::wire::{QueryCfgResponse, Request, Version};

use crate::support::{BINARY, QUERY_TIMEOUT, Routes, SOON, addr, meta_with, record};

const PRIMARY: &str = "10.0.0.1:34801";

fn is_ok(client: &mut Client, table: &str) -> bool {
    client
        .try_ask(table, SOON)
        .is_ok_and(|answer| answer.is_ok() && answer.err.as_deref() == Some("ERR_OK"))
}

/// The slowest answer but one in a hundred, of clients that ask for `good` all the time.
fn p99(proxy: &Proxy, during: Duration) -> Duration {
    let end = Instant::now() + during;
    let ask = || {
        let mut client = proxy.client();
        let mut took = Vec::new();
        while Instant::now() < end {
            let start = Instant::now();
            assert!(is_ok(&mut client, "good"));
            took.push(start.elapsed());
        }
        took
    };
    let mut took: Vec<Duration> = thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    took.sort_unstable();
    assert!(took.len() > 100, "only {} answers", took.len());
    took[took.len() * 99 / 100]
}

#[test]
fn a_black_hole_and_a_slow_cluster_leave_others_as_they_were() {
    // Enough tables that their calls, one for each at once, would take every worker.
    const TABLES: usize = 50;
    let (gone, slow, good) = (MetaServer::start(), MetaServer::start(), meta_with("good", PRIMARY));
    let network = Relay::to(gone.addr());
    network.unreachable();
    let mut routes = Routes::new([("good", record("good", &[good.addr()]))]);
    for n in 0..TABLES {
        slow.put_table(&format!("slow{n}"), QueryCfgResponse::table(1, 4, addr(PRIMARY)));
        routes.put(&format!("slow{n}"), record("slow", &[slow.addr()]));
        routes.put(&format!("gone{n}"), record("gone", &[network.addr()]));
    }
    slow.set(Behaviour::Slow(Duration::from_secs(1)));
    let proxy = routes.proxy_with("workers: 16");
    let calm = p99(&proxy, Duration::from_secs(2));
    let is_over = AtomicBool::new(false);
    let faulty = thread::scope(|scope| {
        for kind in ["gone", "slow"] {
            for n in 0..TABLES {
                let (proxy, is_over) = (&proxy, &is_over);
                scope.spawn(move || {
                    let mut client = proxy.client();
                    let table = format!("{kind}{n}");
                    while !is_over.load(Relaxed) {
                        client.send_queries([table.as_str(); 4]);
                        assert_eq!(client.read_answers(4).len(), 4);
                        // Real clients wait a second before they ask again.
                        thread::sleep(Duration::from_millis(200));
                    }
                });
            }
        }
        eventually("the slow cluster is asked", SOON, || slow.calls() > 0);
        let faulty = p99(&proxy, Duration::from_secs(4));
        is_over.store(true, Relaxed);
        faulty
    });
    println!("p99 of the good cluster: {calm:?} alone, {faulty:?} beside the bad ones");
    let links = slow.max_open_connections();
    // Eight calls, as many slow links, the probe, and some that the server does not yet know to be closed.
    assert!(links < 24, "{links} links");
    // Wide, for a machine that does other things; a worker taken by a bad cluster costs a second.
    assert!(faulty < 5 * calm + Duration::from_millis(20), "{calm:?} became {faulty:?}");
}

#[test]
fn crowds_that_misbehave_at_a_full_house() {
    const EACH: usize = 100;
    let meta = meta_with("t", PRIMARY);
    meta.put_table("t", QueryCfgResponse::table(1, 500, addr(PRIMARY)));
    let routes = Routes::new([("t", record("c", &[meta.addr()]))]);
    let limits = format!(
        "max_connections: {}, frame_timeout_ms: 2000, max_unread_bytes: 100000, \
         max_unread_total_bytes: 8000000",
        4 * EACH
    );
    let proxy = routes.proxy_with(&format!("limits: {{{limits}}}"));
    let mut good: Vec<Client> = (0..20).map(|_| proxy.client()).collect();
    assert!(good.iter_mut().all(|client| is_ok(client, "t")));
    let before = proxy.rss_bytes();
    let frame = Request::query_config(Version::V0, 1, "t").encode();
    let mut lying = frame.clone();
    lying[16..20].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff]);
    let junk = [&[0xff; 512][..], &lying, b"GET / HTTP/1.1\r\n\r\n"];

    // Nothing at all; a byte of a frame now and then; queries whose answers nobody reads; garbage and lengths that lie.
    let mut crowds: [Vec<Client>; 4] = std::array::from_fn(|_| Vec::new());
    let (mut worst, mut closed, mut at) = (Duration::ZERO, 0, 0);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        for (kind, crowd) in crowds.iter_mut().enumerate() {
            // A client that is closed comes again: the house stays full.
            let is_there = |client: &mut Client| match kind {
                0 => true,
                1 => client.try_send(&frame[at % 40..at % 40 + 1]).is_ok(),
                2 => client.try_send(&frame).is_ok(),
                _ => client.try_send(junk[at % junk.len()]).is_ok(),
            };
            let before = crowd.len();
            crowd.retain_mut(is_there);
            closed += before - crowd.len();
            while crowd.len() < EACH
                && let Ok(client) = Client::try_connect(proxy.addr(), SOON)
            {
                client.stream().set_nonblocking(true).unwrap();
                crowd.push(client);
            }
        }
        at += 1;
        for client in &mut good {
            let asked = Instant::now();
            assert!(is_ok(client, "t"));
            worst = worst.max(asked.elapsed());
        }
    }
    let log = proxy.log();
    assert!(log.contains("max_connections"), "the house was full: {log}");
    drop(crowds);
    let grown = proxy.rss_bytes().saturating_sub(before);
    println!("worst answer {worst:?}, {closed} closed, RSS grew by {} KiB", grown >> 10);
    assert!(worst < QUERY_TIMEOUT, "{worst:?}");
    assert!(grown < 64 << 20, "{grown} bytes more");
    assert_eq!(meta.violations(), [] as [String; 0]);
    eventually("the house is empty again", SOON, || is_ok(&mut proxy.client(), "t"));
}

#[test]
fn running_out_of_descriptors() {
    let meta = meta_with("t", PRIMARY);
    let mut routes = Routes::new([("t", record("c", &[meta.addr()]))]);
    let scratch = Scratch::new("nofile");
    let script = scratch.write("few", format!("#!/bin/sh\nulimit -n 256\nexec {BINARY} \"$@\"\n"));
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let proxy = Proxy::builder(script).routes_file(routes.path()).start();
    let mut first = proxy.client();
    assert!(is_ok(&mut first, "t"));
    let crowd: Vec<Client> =
        (0..1_000).filter_map(|_| Client::try_connect(proxy.addr(), SOON).ok()).collect();
    assert!(is_ok(&mut first, "t"), "who is there is served");
    // A table of another cluster needs a new link: clients have not taken the last descriptor.
    let other = meta_with("other", PRIMARY);
    routes.put("other", record("d", &[other.addr()]));
    eventually("another cluster is reached", SOON, || is_ok(&mut first, "other"));
    drop(crowd);
    eventually("there is room again", SOON, || is_ok(&mut proxy.client(), "t"));
    println!("RSS {} KiB", proxy.rss_bytes() >> 10);
    let refusals = proxy.log().lines().filter(|line| line.contains("refused:")).count();
    assert!((1..50).contains(&refusals), "{refusals} lines for 1,000 clients");
}
