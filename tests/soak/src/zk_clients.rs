//! Three clients of ZooKeeper in the same trouble: the `zookeeper` crate, ours, and the official one for Java.
//!
//! ```text
//! soak zk-clients ──▶ ZooKeeper ◀── relay, which counts ◀── soak zk-client crate | ours, java Client
//! ```
//! Each client is a process of its own, so that its processor time can be told. It watches many znodes, and does what it
//! can to have its watches again after a cut.

use std::env;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use harness::process::Process;
use harness::relay::Relay;
use harness::wait::poll;
use harness::zookeeper::ZooKeeper;
use meta_proxy::zk::codec::Op;
use meta_proxy::zk::connection::{Connection, Event, Options as Connecting};
use zookeeper::{ZkState, ZooKeeper as CrateClient};

use crate::arguments::Options;

const ROOT: &str = "/watched";
const SESSION: Duration = Duration::from_secs(6);
/// How long a trouble lasts.
const TROUBLE: Duration = Duration::from_secs(10);
const WATCHED_WITHIN: Duration = Duration::from_secs(60);
/// Paths of one SetWatches.
const CHUNK: usize = 2_000;
const JAVA_CLIENT: &str = "tests/zookeeper/Client.java";

fn znode(number: usize) -> String {
    format!("{ROOT}/znode_{number:05}")
}

/// Begins, and returns what keeps it going.
type Trouble = fn(&ZooKeeper, &Relay) -> Vec<TcpStream>;

/// Prints what each client does in each trouble.
pub fn compare(options: &Options) -> Result<(), String> {
    let troubles: [(&str, Trouble); 3] = [
        ("full-server", |zk, relay| {
            let hold = || (0..4).filter_map(|_| TcpStream::connect(zk.addr()).ok());
            let mut others: Vec<TcpStream> = hold().collect();
            relay.cut();
            thread::sleep(Duration::from_millis(50));
            others.extend(hold());
            others
        }),
        ("accept-and-close", |_, relay| {
            relay.close_at_once();
            relay.cut();
            Vec::new()
        }),
        ("killed-server", |zk, _| {
            zk.kill();
            Vec::new()
        }),
    ];
    for client in ["crate", "ours", "java"] {
        for (trouble, begin) in troubles {
            let zk = ZooKeeper::start_with("maxClientCnxns=4\n");
            let relay = Relay::to(zk.addr());
            let process = watching(client, &zk, &relay, 100)?;
            let (cpu, connects) = (process.cpu_ms(), relay.connections());
            let others = begin(&zk, &relay);
            thread::sleep(TROUBLE);
            println!(
                "zk-clients client={client} trouble={trouble} connects_per_s={:.1} cpu_percent={:.1}",
                (relay.connections() - connects) as f64 / TROUBLE.as_secs_f64(),
                (process.cpu_ms() - cpu) as f64 / TROUBLE.as_millis() as f64 * 100.0
            );
            drop(others);
        }
        let zk = ZooKeeper::start();
        let relay = Relay::to(zk.addr());
        let process = watching(client, &zk, &relay, options.tables)?;
        let (cpu, zk_cpu) = (process.cpu_ms(), zk.cpu_ms());
        let packets = || zk.counter("zk_packets_received").unwrap_or(0);
        let before = packets();
        let start = Instant::now();
        relay.cut();
        poll(WATCHED_WITHIN, || (zk.watch_count() == 0).then_some(()));
        let again = poll(WATCHED_WITHIN, || {
            (zk.watch_count() >= options.tables as u64).then(|| start.elapsed())
        });
        println!(
            "zk-clients client={client} trouble=cut watches={} watched_again_s={} requests={} cpu_s={:.2} zookeeper_cpu_s={:.2}",
            options.tables,
            again.map_or("never".to_owned(), |span| format!("{:.2}", span.as_secs_f64())),
            packets() - before,
            (process.cpu_ms() - cpu) as f64 / 1000.0,
            (zk.cpu_ms() - zk_cpu) as f64 / 1000.0
        );
    }
    Ok(())
}

/// Starts a client; returns when it watches all.
fn watching(client: &str, zk: &ZooKeeper, relay: &Relay, count: usize) -> Result<Process, String> {
    zk.create(ROOT, "");
    let znodes: Vec<String> = (0..count).map(znode).collect();
    zk.create_many(&znodes, "data");
    let mut command = match client {
        "java" => {
            let mut java = Command::new("java");
            let jars =
                env::var("ZOOKEEPER_CLASSPATH").map_err(|_| "ZOOKEEPER_CLASSPATH is not set")?;
            java.args(["-Xmx128m", "-cp", &jars, JAVA_CLIENT]);
            java
        }
        own => {
            let this = env::current_exe().map_err(|e| e.to_string())?;
            let mut soak = Command::new(this);
            soak.args(["zk-client", own]);
            soak
        }
    };
    command.args([relay.addr().to_string(), count.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if client == "java" && !Path::new(JAVA_CLIENT).exists() {
        return Err(format!("{JAVA_CLIENT} is missing: run this in the project's directory"));
    }
    let process = Process::spawn(client, &mut command).map_err(|e| format!("{client}: {e}"))?;
    let watched = poll(WATCHED_WITHIN, || (zk.watch_count() >= count as u64).then_some(()));
    watched.map(|()| process).ok_or_else(|| format!("{client} does not watch {count} znodes"))
}

/// Is one of the clients, until it is killed.
pub fn be(kind: &str, addr: &str, count: usize) -> Result<(), String> {
    match kind {
        "crate" => be_the_crate(addr, count),
        "ours" => be_ours(addr, count),
        _ => Err(format!("want crate or ours, got {kind}")),
    }
}

/// It cannot set watches again, so all is read again.
fn be_the_crate(addr: &str, count: usize) -> Result<(), String> {
    let (tell, told) = mpsc::channel();
    let client = CrateClient::connect(addr, SESSION, |_| {}).map_err(|e| format!("{e:?}"))?;
    tell.send(()).map_err(|e| e.to_string())?;
    client.add_listener(move |state| {
        if state == ZkState::Connected {
            let _ = tell.send(());
        }
    });
    for () in told {
        let all = (0..count).map(znode);
        let _ = all.map(|path| client.get_data(&path, true)).take_while(Result::is_ok).count();
    }
    Ok(())
}

fn be_ours(addr: &str, count: usize) -> Result<(), String> {
    let resolve = Box::new(|name: &str| name.parse().ok().map(|addr| vec![addr]));
    let options = Connecting {
        address: vec![addr.to_owned()],
        timeout: SESSION,
        digests: Vec::new(),
        root: None,
    };
    let (connection, events) =
        Connection::start(options, resolve, 0, 7).map_err(|e| e.to_string())?;
    let all: Vec<String> = (0..count).map(znode).collect();
    let mut is_first = true;
    for event in events {
        let Event::Up { link, since, .. } = event else { continue };
        if std::mem::take(&mut is_first) {
            for path in &all {
                connection.ask(link, 0, Op::GetData { path: path.clone(), watch: true });
            }
        } else {
            for some in all.chunks(CHUNK) {
                let (exist, child) = (Vec::new(), Vec::new());
                connection.ask(
                    link,
                    0,
                    Op::SetWatches { since, data: some.to_vec(), exist, child },
                );
            }
        }
    }
    Ok(())
}
