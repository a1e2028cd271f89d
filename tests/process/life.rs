//! Stop, reload, upgrade: real processes that end, change and take over from each other, under clients that ask.

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use harness::client::{ANSWER_WITHIN, Client};
use harness::freeze::Frozen;
use harness::http::request;
use harness::meta_server::{Behaviour, MetaServer};
use harness::proxy::{Builder, Proxy};
use harness::scratch::Scratch;
use harness::wait::eventually;

use crate::support::{BINARY, Routes, SOON, meta_with, record};

const PRIMARY: &str = "10.0.0.1:34801";

/// Ten minutes: what has to wait so long never happens in a test.
const NEVER_MS: u32 = 600_000;

/// A cluster with the table `orders`, and routes to it.
fn orders() -> (MetaServer, Routes) {
    let meta = meta_with("orders", PRIMARY);
    let routes = Routes::new([("orders", record("a", &[meta.addr()]))]);
    (meta, routes)
}

fn builder(routes: &Routes, yaml: &str) -> Builder {
    Proxy::builder(BINARY).routes_file(routes.path()).config_extra(yaml)
}

fn stop(min_age_ms: u32, grace_ms: u32) -> String {
    format!("stop: {{min_age: {min_age_ms}, grace: {grace_ms}}}")
}

#[track_caller]
fn ends(proxy: &Proxy) {
    let status = proxy.process().wait(SOON).expect("it ends");
    assert_eq!(status.code(), Some(0));
}

/// Status and text of `/readyz`.
fn readiness(admin: SocketAddr) -> (u16, String) {
    let page = request(admin, "GET", "/readyz", "");
    (page.status, page.body)
}

fn refuses(addr: SocketAddr) -> bool {
    Client::try_connect(addr, SOON).is_err()
}

// ---- stop

#[test]
fn a_client_is_served_until_it_is_old_enough_to_leave() {
    let (_meta, routes) = orders();
    let min_age = Duration::from_millis(3_000);
    let proxy = routes.proxy_with(&stop(3_000, NEVER_MS));
    let mut old = proxy.client();
    thread::sleep(min_age);
    let connected = Instant::now();
    let mut young = proxy.client();
    assert!(young.ask("orders").is_ok());

    proxy.process().signal("TERM");
    eventually("nobody new can connect", SOON, || refuses(proxy.addr()));
    old.expect_closed(SOON);
    assert_eq!(proxy.process().ended(), None, "a young client is left");
    match young.try_ask("orders", ANSWER_WITHIN) {
        Ok(answer) => {
            assert!(answer.is_ok(), "it is served: {answer:?}");
            young.expect_closed(min_age + SOON);
        }
        // On a machine this slow it has become old enough.
        Err(e) => assert!(connected.elapsed() >= min_age, "cut before its age: {e}"),
    }
    assert!(connected.elapsed() >= min_age, "after {:?}", connected.elapsed());
    proxy.wait_for_log("all clients have left", SOON);
    ends(&proxy);
}

#[test]
fn a_stop_takes_no_longer_than_its_grace() {
    let (_meta, routes) = orders();
    let proxy = routes.proxy_with(&stop(NEVER_MS, 500));
    let mut client = proxy.client();
    assert!(client.ask("orders").is_ok());
    proxy.process().signal("TERM");
    client.expect_closed(SOON);
    proxy.wait_for_log("the grace time is over, 1 clients are left", SOON);
    ends(&proxy);
}

#[test]
fn all_is_as_ever_before_the_delay_is_over_and_a_second_signal_ends_it() {
    for second in ["TERM", "INT"] {
        let (_meta, routes) = orders();
        let proxy = routes.proxy_with(&format!("stop: {{delay: {NEVER_MS}, grace: {NEVER_MS}}}"));
        proxy.process().signal("TERM");
        proxy.wait_for_log("SIGTERM: stopping", SOON);
        let mut client = proxy.client();
        assert!(client.ask("orders").is_ok(), "a new client is served");
        assert_eq!(readiness(proxy.admin()), (503, "stopping\n".to_owned()));
        proxy.process().signal(second);
        client.expect_closed(SOON);
        ends(&proxy);
    }
}

#[test]
fn many_clients_do_not_leave_in_one_instant() {
    let (_meta, routes) = orders();
    let proxy = routes.proxy_with(&stop(0, NEVER_MS));
    let clients: Vec<Client> = (0..450).map(|_| proxy.client()).collect();
    eventually("all are accepted", SOON, || proxy.process().open_fds() > 450);
    let start = Instant::now();
    proxy.process().signal("TERM");
    for mut client in clients {
        client.expect_closed(SOON);
    }
    // 100 at once and then ten times a second.
    assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
    ends(&proxy);
}

#[test]
fn a_drained_proxy_serves_and_lets_idle_clients_go_until_it_is_undrained() {
    let (_meta, routes) = orders();
    let proxy = routes.proxy_with(&stop(0, NEVER_MS));
    let mut client = proxy.client();
    assert!(client.ask("orders").is_ok());
    assert_eq!(readiness(proxy.admin()), (200, "ready\n".to_owned()));

    assert_eq!(request(proxy.admin(), "POST", "/drain", "").body, "draining\n");
    assert_eq!(readiness(proxy.admin()), (503, "draining\n".to_owned()));
    client.expect_closed(SOON);
    proxy.client().expect_closed(SOON);

    assert_eq!(request(proxy.admin(), "POST", "/undrain", "").body, "in service\n");
    assert_eq!(readiness(proxy.admin()), (200, "ready\n".to_owned()));
    let mut client = proxy.client();
    assert!(client.ask("orders").is_ok());
    client.expect_silence(Duration::from_millis(300));
    assert!(client.ask("orders").is_ok());
}

// ---- reload

#[test]
fn sighup_changes_what_can_change_and_names_what_cannot() {
    let (meta, routes) = orders();
    let proxy = routes.proxy_with("query_timeout_ms: 20000\nworkers: 8");
    let mut early = proxy.client();
    assert!(early.ask("orders").is_ok());
    let good = "query_timeout_ms: 300\nworkers: 9\nlimits: {max_connections: 2}";
    proxy.rewrite_config(good);
    proxy.process().signal("HUP");
    let line = proxy.wait_for_log("SIGHUP: ", SOON);
    assert!(
        line.ends_with(
            "SIGHUP: limits.max_connections: 65536 -> 2, query_timeout_ms: 20000 -> 300"
        ),
        "{line}"
    );
    assert!(
        proxy.log().contains("WARN  main serve: workers changed; takes effect after a restart")
    );

    let mut second = proxy.client();
    assert!(second.ask("orders").is_ok());
    proxy.client().expect_closed(SOON);
    meta.set(Behaviour::Mute);
    let err = early.ask("orders").err;
    assert_eq!(err.as_deref(), Some("ERR_SERVICE_NOT_ACTIVE"), "soon, not after 20 s");

    proxy.rewrite_config("query_timeout_ms: never\nlimits: {max_connections: 0, keepalive_s: 77}");
    proxy.process().signal("HUP");
    proxy.wait_for_log("SIGHUP: all settings stay as they were", SOON);
    for fault in [
        r#"query_timeout_ms: want 100..=60000, got "never""#,
        r#"limits.max_connections: want 1..=1000000, got "0""#,
    ] {
        assert!(proxy.log().contains(fault), "{fault}");
    }
    assert!(!proxy.log().contains("keepalive_s: 60 -> 77"));
    meta.set(Behaviour::Leader);
    eventually("it serves on", SOON, || second.ask("orders").is_ok());

    proxy.rewrite_config(good);
    proxy.process().signal("HUP");
    proxy.wait_for_log("SIGHUP: no reloadable setting changed", SOON);
}

#[test]
fn a_client_keeps_the_limits_of_its_time() {
    let (_meta, routes) = orders();
    let proxy = routes.proxy_with("limits: {frame_timeout_ms: 600000}");
    let mut patient = proxy.client();
    patient.send(b"THFT");
    assert!(proxy.ask("orders").is_ok(), "so that both are accepted in this order");
    proxy.rewrite_config("limits: {frame_timeout_ms: 100}");
    proxy.process().signal("HUP");
    proxy.wait_for_log("SIGHUP: limits.frame_timeout_ms: 600000 -> 100", SOON);
    let mut hasty = proxy.client();
    hasty.send(b"THFT");
    hasty.expect_closed(SOON);
    patient.expect_silence(Duration::from_millis(200));
}

// ---- upgrade

/// Clients that connect, ask once and close, all the time.
#[derive(Default)]
struct Crowd {
    is_over: AtomicBool,
    served: AtomicUsize,
}

impl Crowd {
    fn run(&self, addr: SocketAddr) -> Vec<String> {
        let mut failed = Vec::new();
        while !self.is_over.load(SeqCst) {
            let asked = Client::try_connect(addr, ANSWER_WITHIN).map_err(|e| e.to_string());
            let asked = asked.and_then(|mut client| {
                client.try_ask("orders", ANSWER_WITHIN).map_err(|e| e.to_string())
            });
            match asked {
                Ok(answer) if answer.is_ok() => drop(self.served.fetch_add(1, SeqCst)),
                Ok(answer) => failed.push(format!("{answer:?}")),
                Err(e) => failed.push(e),
            }
        }
        failed
    }

    fn waits_for(&self, more: usize) {
        let goal = self.served.load(SeqCst) + more;
        eventually("clients are served", 3 * SOON, || self.served.load(SeqCst) >= goal);
    }
}

#[test]
fn an_upgrade_in_place_refuses_no_client() {
    let (_meta, routes) = orders();
    let yaml = stop(0, NEVER_MS);
    let mut running = routes.proxy_with(&format!("listeners: [{{listen: 127.0.0.1:0}}]\n{yaml}"));
    let (addr, further, admin) = (running.addr(), running.further_addr(0), running.admin());
    let crowd = Crowd::default();
    let failed: Vec<String> = thread::scope(|scope| {
        let run = |addr: SocketAddr| crowd.run(addr);
        let addrs = [addr, further].into_iter().cycle();
        let clients: Vec<_> = addrs.take(8).map(|addr| scope.spawn(move || run(addr))).collect();
        // Ends the clients also when an assert in here fails.
        let upgraded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..3 {
                crowd.waits_for(2_000);
                let same = format!(
                    "listen: {addr}\nlisteners: [{{listen: {further}}}]\n\
                     admin: {{listen: {admin}}}\n{yaml}"
                );
                let next = builder(&routes, &same).start();
                for shared in [addr, further, admin] {
                    next.wait_for_log(&format!("another process listens at {shared} too"), SOON);
                }
                crowd.waits_for(500);
                running.process().signal("TERM");
                ends(&running);
                running = next;
            }
            crowd.waits_for(2_000);
        }));
        crowd.is_over.store(true, SeqCst);
        let failed = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        upgraded.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        failed
    });
    let served = crowd.served.load(SeqCst);
    assert!(failed.is_empty(), "{} of {served} failed: {:?}", failed.len(), &failed[..1]);
}

// ---- systemd

/// Stands for the service manager.
struct Manager {
    socket: UnixDatagram,
    name: String,
    _scratch: Scratch,
}

impl Manager {
    fn new(is_abstract: bool) -> Self {
        let scratch = Scratch::new("notify");
        let path = scratch.path().join("notify");
        let (socket, name) = if is_abstract {
            let name = path.to_str().expect("scratch directories have plain names");
            let addr = UnixAddr::from_abstract_name(name).unwrap();
            (UnixDatagram::bind_addr(&addr), format!("@{name}"))
        } else {
            (UnixDatagram::bind(&path), path.display().to_string())
        };
        let socket = socket.expect("a new name");
        socket.set_read_timeout(Some(SOON)).unwrap();
        Manager { socket, name, _scratch: scratch }
    }

    #[track_caller]
    fn hears(&self) -> String {
        let mut text = [0; 1024];
        let len = self.socket.recv(&mut text).expect("it is told something");
        String::from_utf8_lossy(&text[..len]).into_owned()
    }

    /// Whether nothing is told for so long.
    fn hears_nothing(&self, during: Duration) -> bool {
        self.socket.set_read_timeout(Some(during)).unwrap();
        let heard = self.socket.recv(&mut [0; 1024]);
        self.socket.set_read_timeout(Some(SOON)).unwrap();
        heard.is_err()
    }
}

#[test]
fn the_service_manager_hears_of_start_reload_and_stop() {
    for is_abstract in [false, true] {
        let manager = Manager::new(is_abstract);
        let (_meta, routes) = orders();
        let proxy = builder(&routes, "").env("NOTIFY_SOCKET", &manager.name).start();
        let ready = format!("READY=1\nSTATUS=listening on {}, 64 workers\n", proxy.addr());
        assert_eq!(manager.hears(), ready);
        proxy.process().signal("HUP");
        let reloading = manager.hears();
        let us = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&reloading);
        let uptime = fs::read_to_string("/proc/uptime").unwrap();
        let uptime_s: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let told_s = us.trim_end().parse::<f64>().expect("a number") / 1e6;
        assert!((uptime_s - told_s).abs() < 60.0, "{uptime_s} {told_s}");
        assert_eq!(manager.hears(), ready);
        proxy.process().signal("TERM");
        assert_eq!(manager.hears(), "STOPPING=1\nSTATUS=clients leave\n");
        ends(&proxy);
    }
}

#[test]
fn the_watchdog_hears_nothing_from_a_proxy_that_hangs() {
    let manager = Manager::new(false);
    let (_meta, routes) = orders();
    let interval = Duration::from_millis(600);
    let proxy = builder(&routes, "workers: 4")
        .env("NOTIFY_SOCKET", &manager.name)
        .env("WATCHDOG_USEC", interval.as_micros().to_string())
        .start();
    assert!(manager.hears().starts_with("READY=1"));
    for hanging in ["accept", "worker-"] {
        for _ in 0..3 {
            assert_eq!(manager.hears(), "WATCHDOG=1\n");
        }
        let frozen = Frozen::threads(proxy.process(), hanging);
        // One beat may have been through.
        eventually("no beats", SOON, || manager.hears_nothing(2 * interval));
        proxy.wait_for_log("the accept loop or all workers hang", SOON);
        assert!(proxy.process().ended().is_none());
        drop(frozen);
    }
    assert_eq!(manager.hears(), "WATCHDOG=1\n");
    assert!(proxy.ask("orders").is_ok());

    let other = Manager::new(false);
    let proxy = builder(&routes, "")
        .env("NOTIFY_SOCKET", &other.name)
        .env("WATCHDOG_USEC", interval.as_micros().to_string())
        .env("WATCHDOG_PID", "1")
        .start();
    assert!(other.hears().starts_with("READY=1"));
    assert!(!proxy.threads().contains(&"watchdog".to_owned()), "it is meant for another process");
}

/// Does what a service manager does for a socket unit: listens, becomes the service, and keeps the socket, so that who
/// comes when the service has ended waits for the next.
const SOCKET_UNIT: &str = "
import os, socket, sys, time
s = socket.create_server(('127.0.0.1', 0))
print('given', s.getsockname()[1], flush=True)
service = os.getpid()
if os.fork() == 0:
    while os.getppid() == service:
        time.sleep(0.02)
    s.settimeout(10)
    s.accept()[0].sendall(b'next')
    os._exit(0)
os.dup2(s.fileno(), 3) if s.fileno() != 3 else os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(service))
os.execv(sys.argv[1], sys.argv[1:])
";

/// A descriptor that is no socket is refused.
const PIPE_UNIT: &str = "
import os, sys
os.dup2(os.pipe()[0], 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[1], sys.argv[1:])
";

#[test]
fn a_socket_of_the_service_manager_is_used_and_left_to_it() {
    let (_meta, routes) = orders();
    // Nobody can listen at this address: the socket counts.
    let proxy = builder(&routes, &format!("listen: 192.0.2.1:1\n{}", stop(0, NEVER_MS)))
        .wrapper(["python3", "-c", SOCKET_UNIT])
        .start();
    let given = proxy.wait_for_log("given ", SOON);
    assert_eq!(given, format!("given {}", proxy.addr().port()));
    assert!(proxy.ask("orders").is_ok());
    assert_eq!(proxy.terminate().code(), Some(0));
    let mut next = TcpStream::connect_timeout(&proxy.addr(), SOON).expect("it waits, unrefused");
    next.set_read_timeout(Some(SOON)).unwrap();
    let mut told = String::new();
    next.read_to_string(&mut told).unwrap();
    assert_eq!(told, "next");

    let proxy = builder(&routes, "").wrapper(["python3", "-c", PIPE_UNIT]).launch();
    proxy.wait_for_log("LISTEN_FDS: fd 3 is not a socket", SOON);
    assert_eq!(proxy.process().wait(SOON).and_then(|status| status.code()), Some(1));
}
