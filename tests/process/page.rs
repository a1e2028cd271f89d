//! The status page in a real browser, headless Chromium, which scripts/setup installs.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use harness::scratch::Scratch;
use meta_proxy::admin::http::Http;
use meta_proxy::admin::http_message::{Request, Response};
use meta_proxy::admin::status_page;
use meta_proxy::admin::verdict::{
    Clients, Cluster, Life, MetaFailure, Overview, Route, Trust, Upkeep, ZooKeeper,
};

use crate::run::{Finished, run};
use crate::support::addr;

/// A browser takes its time on a crowded machine.
const BROWSER_WITHIN: Duration = Duration::from_secs(120);

/// A proxy with so many clusters, and tables spread over them.
fn overview(clusters: usize, tables: usize) -> Overview {
    let clusters: Vec<Cluster> = (0..clusters)
        .map(|n| Cluster {
            name: format!("c{}srv-{}", n + 3, ["ad", "ml", "user", "feed"][n % 4]),
            metas: (1..=3).map(|host| format!("10.{n}.0.{host}:34601")).collect(),
            tables: tables / clusters,
            leader: Some(format!("10.{n}.0.2:34601")),
            links: 1 + n % 3,
            calls: n % 2,
            waiting: 0,
            failing_s: None,
            failures: 0,
            meta_failures: Vec::new(),
            probes: Vec::new(),
            usual_us: Some(380 + 170 * n as u64),
            answers_ok: 8_412_345 / (n as u64 + 1),
            answers_other: 3 * n as u64,
            unanswered: 0,
        })
        .collect();
    let route = |n: usize| {
        let cluster = &clusters[n % clusters.len()];
        Route {
            table: format!("{}_{:02}", ["orders", "users", "items", "feed_index"][n % 4], n / 4),
            cluster: Some(cluster.name.clone()),
            fault: None,
            metas: cluster.metas.clone(),
            zxid: 0x5_0000_1234 + n as i64,
            written_s: Some(7_200 * (n as u64 + 1)),
            age_s: 7_200 * (n as u64 + 1),
            confirmed_age_s: Some(3 + n as u64 % 27),
            source: "zookeeper",
            stale: false,
            held: false,
            queries: 2_345_678 / (n as u64 + 1),
            reads: 3,
            error: None,
            error_s: None,
            error_queries: 0,
        }
    };
    Overview {
        host: "proxy-07.example".to_owned(),
        version: "0.1.0",
        up_s: 259_200,
        life: Life::Serving,
        hold: None,
        zookeeper: Some(ZooKeeper {
            root: "/pegasus-cluster".to_owned(),
            root_czxid: None,
            root_ctime_ms: None,
            is_rootless: false,
            state: Trust::Confirmed,
            since_s: 86_400 * 3,
            server: Some("10.0.0.21:2181".to_owned()),
            session: None,
            asked_timeout_ms: 6_000,
            granted_timeout_ms: Some(6_000),
            rebuilds: 0,
            seen_zxid: 900_123,
            control: None,
            is_control_faulty: false,
            last_fault: None,
            cached: tables,
            unconfirmed: 0,
            capacity: 1_024,
            evicted: 0,
            evicted_s: None,
        }),
        routes: (0..tables).map(route).collect(),
        clusters,
        clients: Clients {
            connections: 9_871,
            pending: 3,
            unread_bytes: 0,
            queries: 12_345_678,
            queries_per_s: 1_412.0,
            errors_per_s: 0.4,
            latency_us: Some((200, 2_000)),
        },
        refused: Vec::new(),
        upkeep: Upkeep::default(),
    }
}

/// A proxy with ZooKeeper down, a cluster dead, and a broken record over a good one.
fn in_trouble() -> Overview {
    let mut overview = overview(5, 37);
    if let Some(zookeeper) = &mut overview.zookeeper {
        zookeeper.state = Trust::Down;
        zookeeper.since_s = 200;
        zookeeper.server = None;
        zookeeper.granted_timeout_ms = None;
        zookeeper.rebuilds = 4;
        zookeeper.last_fault = Some("10.0.0.21:2181: connection refused".to_owned());
        zookeeper.unconfirmed = 37;
    }
    let dead = &mut overview.clusters[3];
    (dead.failing_s, dead.failures, dead.waiting) = (Some(83), 17, 12);
    (dead.leader, dead.links) = (None, 0);
    dead.meta_failures = (1..=3)
        .map(|host| MetaFailure {
            meta: format!("10.3.0.{host}:34601"),
            kind: if host == 1 { "refused" } else { "timeout" },
            count: 6,
            last_s: host,
        })
        .collect();
    overview.clusters[1].failures = 1;
    overview.routes[1].fault = Some("meta_addrs: want host:port, got \"10.1.0.1\"".to_owned());
    overview.routes.iter_mut().take(4).for_each(|route| route.stale = true);
    overview
}

/// Serves a page of what `overview` says of the n-th request, from 0 on.
fn serve(overview: impl Fn(u64) -> Overview + Send + Sync + 'static) -> Http {
    let count = AtomicU64::new(0);
    let handler = move |request: &Request| {
        let n = count.fetch_add(1, SeqCst);
        status_page::response(&overview(n), request.query("q").unwrap_or(""), &format!("nonce{n}"))
    };
    let listener = TcpListener::bind(addr("127.0.0.1:0")).expect("a free port");
    Http::start(listener, Arc::new(handler)).expect("threads")
}

/// Opens the page in a browser of its own.
#[track_caller]
fn browse(server: SocketAddr, path: &str, arguments: &[&str]) -> Finished {
    let scratch = Scratch::new("browser");
    let mut command = Command::new("chromium");
    command
        .args("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run".split(' '))
        .args(
            "--disable-background-networking --disable-component-update --disable-sync".split(' '),
        )
        .args("--disable-dev-shm-usage --hide-scrollbars --enable-logging=stderr".split(' '))
        .arg(format!("--user-data-dir={}", scratch.path().display()))
        .args(arguments)
        .arg(format!("http://{server}{path}"));
    let done = run(command, BROWSER_WITHIN).expect_code(0);
    // Lines of what the page's policy forbids, and of what its script throws.
    for bad in ["Refused to", "Content Security Policy", "Uncaught", "\"SyntaxError"] {
        assert!(!done.stderr.contains(bad), "{bad}\n{done}");
    }
    done
}

#[test]
fn the_page_follows_the_proxy_by_itself() {
    let server = serve(|request| if request == 0 { overview(2, 5) } else { in_trouble() });
    let first = browse(server.addr(), "/", &["--dump-dom", "--virtual-time-budget=500"]);
    assert!(first.stdout.contains("All is well"), "{first}");
    server.stop();

    let server = serve(|request| if request == 0 { overview(2, 5) } else { in_trouble() });
    let later = browse(server.addr(), "/?q=feed", &["--dump-dom", "--virtual-time-budget=9000"]);
    for want in [
        "class=\"live bad\" role=\"status\">Cluster c6srv-feed does not answer",
        "<li>ZooKeeper is unreachable",
        "<title>! proxy-07.example - meta-proxy</title>",
        "value=\"feed\"",
        "d3322a",
    ] {
        assert!(later.stdout.contains(want), "{want}\n{later}");
    }
    assert!(!later.stdout.contains(">orders_00<"), "the search stays\n{later}");
    server.stop();
}

#[test]
fn the_page_says_when_it_is_out_of_date() {
    let server = serve(|request| {
        assert!(request == 0, "an answer of 500 stands for a proxy that does not answer");
        overview(2, 5)
    });
    let late = browse(server.addr(), "/", &["--dump-dom", "--virtual-time-budget=9000"]);
    assert!(late.stdout.contains("<body class=\"lost\">"), "{late}");
    assert!(late.stdout.contains("no answer since "), "{late}");
    server.stop();
}

#[test]
fn names_from_outside_stay_text() {
    let evil =
        "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>";
    let server = serve(move |_| {
        let mut overview = overview(1, 1);
        overview.clusters[0].name = evil.to_owned();
        overview.routes[0].cluster = Some(evil.to_owned());
        overview.upkeep.state_file_fault = Some(evil.to_owned());
        overview
    });
    let page = browse(server.addr(), "/", &["--dump-dom", "--virtual-time-budget=9000"]);
    assert!(page.stdout.contains("<title>! proxy-07.example"), "{page}");
    assert!(page.stdout.contains("&lt;img src=x onerror="), "{page}");
    assert!(!page.stdout.contains("<img"), "{page}");
    server.stop();
}

/// Sixty clusters and 2,000 tables, of which a dozen are broken, with names as long as names are.
fn large() -> Overview {
    let mut overview = overview(60, 2_000);
    for (n, route) in overview.routes.iter_mut().enumerate().take(12) {
        route.fault = Some("meta_addrs: want host:port, got \"10.1.0.1\"".to_owned());
        route.table = format!("a_table_with_a_name_that_is_rather_long_and_has_no_gap_{n:02}");
        if n % 2 == 0 {
            (route.cluster, route.metas, route.zxid) = (None, Vec::new(), 0);
        }
    }
    let dead = &mut overview.clusters[41];
    (dead.failing_s, dead.failures, dead.leader) = (Some(83), 17, None);
    overview.clusters[40].leader = Some("meta-01.c43srv.example.com:34601".to_owned());
    overview.clusters[40].failures = 1;
    overview
}

/// Wide as a screen, and narrow as a phone.
const WIDTHS: [u32; 2] = [1280, 400];

type Scene = (&'static str, fn() -> Overview);

const SCENES: [Scene; 3] =
    [("well", || overview(5, 37)), ("trouble", in_trouble), ("large", large)];

/// The page in a frame, for a browser's own window is never as narrow as 400 pixels. The title of the outer page tells how
/// wide the page in the frame is, how far the broken routes are below the headline, and how many addresses of leaders break.
fn serve_framed(width: u32, overview: fn() -> Overview) -> Http {
    let handler = move |request: &Request| match request.path.as_str() {
        "/" => {
            let script = "onload = () => { const page = frames[0].document; \
                const box = id => page.getElementById(id).getBoundingClientRect(); \
                const gap = Math.round(box('broken').top - box('verdict').bottom); \
                const lines = cell => { const range = page.createRange(); \
                    range.selectNodeContents(cell.firstChild); return range.getClientRects().length; }; \
                const breaks = [...page.querySelectorAll('td.leader')].filter(cell => lines(cell) > 1).length; \
                document.title = \
                    `width=${page.documentElement.scrollWidth} gap=${gap} breaks=${breaks}`; }";
            let frame =
                format!("<iframe src=/inner width={width} height=1600 style=border:0></iframe>");
            let html =
                format!("<title>-</title><body style=margin:0>{frame}<script>{script}</script>");
            Response::html(html, "default-src 'self' 'unsafe-inline'")
        }
        _ => {
            let page = status_page::response(&overview(), "", "n");
            Response::html(page.body, "default-src 'self' 'unsafe-inline' data:")
        }
    };
    let listener = TcpListener::bind(addr("127.0.0.1:0")).expect("a free port");
    Http::start(listener, Arc::new(handler)).expect("threads")
}

#[test]
fn nothing_runs_off_the_screen_and_broken_routes_follow_the_headline() {
    for (width, (scene, overview)) in WIDTHS.into_iter().flat_map(|w| SCENES.map(|s| (w, s))) {
        let server = serve_framed(width, overview);
        let done = browse(server.addr(), "/", &["--dump-dom", "--virtual-time-budget=2000"]);
        server.stop();
        let title = done.stdout.split_once("<title>width=").and_then(|(_, rest)| {
            let (width, rest) = rest.split_once("</title>")?.0.split_once(" gap=")?;
            let (gap, breaks) = rest.split_once(" breaks=")?;
            Some((width.parse::<u32>().ok()?, gap.parse::<i32>().ok()?, breaks.to_owned()))
        });
        let (drawn, gap, breaks) = title.unwrap_or_else(|| panic!("{scene} at {width}: {done}"));
        assert_eq!(drawn, width, "{scene}: what does not fit runs off the screen");
        assert_eq!(breaks, "0", "{scene} at {width}: addresses of leaders break");
        let follows = scene == "well" || (0..=40).contains(&gap);
        assert!(follows, "{scene} at {width}: {gap} px below the headline");
    }
}

#[test]
fn sixty_clusters_do_not_push_a_broken_record_out_of_sight() {
    let server = serve(|_| large());
    let page = browse(server.addr(), "/", &["--dump-dom", "--virtual-time-budget=500"]).stdout;
    let at = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text} in {page}"));
    assert!(at("a_table_with_a_name_that_is_rather_long_and_has_no_gap_11") < at("id=\"numbers\""));
    assert!(page.contains("<summary>58 clusters are well</summary>"), "{page}");
    let found = browse(server.addr(), "/?q=c50srv", &["--dump-dom", "--virtual-time-budget=500"]);
    assert!(found.stdout.contains("<summary>"), "{found}");
    assert!(!found.stdout.contains(">c43srv"), "the search covers clusters: {found}");
    server.stop();
}

/// For people to look at: target/tmp/page-*.png. scripts/picture takes one of them for the README.
#[test]
fn the_page_is_drawn_well_and_in_trouble_light_and_dark_wide_and_narrow() {
    let mut drawn: Vec<(String, Vec<u8>)> = Vec::new();
    for (width, (scene, overview)) in WIDTHS.into_iter().flat_map(|w| SCENES.map(|s| (w, s))) {
        let server = serve_framed(width, overview);
        for (scheme, number) in [("dark", 0), ("light", 1)] {
            let name = format!("page-{scene}-{scheme}-{width}.png");
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&name);
            let _ = fs::remove_file(&file);
            let shot = format!("--screenshot={}", file.display());
            let size = format!("--window-size={},{}", width.max(500), 1280 * 860 / width.max(860));
            let scheme = format!("--blink-settings=preferredColorScheme={number}");
            let done = browse(server.addr(), "/", &[&shot, &size, &scheme]);
            let picture = fs::read(&file).unwrap_or_default();
            assert!(picture.len() > 10_000, "{name}: {} bytes\n{done}", picture.len());
            // It differs by what is wrong, by the colours asked for, and by width.
            let same = drawn.iter().find(|(_, other)| *other == picture);
            assert!(same.is_none(), "{name} looks as {:?}", same.map(|(other, _)| other));
            drawn.push((name, picture));
        }
        server.stop();
    }
}
