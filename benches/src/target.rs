//! The targets of a measurement: no proxy at all, HAProxy, another proxy, meta-proxy. Each is started anew for each measurement, as
//! a child process that is looked at from outside through /proc.
//!
//! ```text
//! load ──▶ Target ──▶ bench meta
//!            │ HAProxy copies bytes to it; a proxy learns of it from ZooKeeper or a routes file
//!            └─ /proc/PID: processor time, context switches, memory, descriptors
//! ```

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::client::Client;
use harness::process::Process;
use harness::proxy::Proxy;
use harness::scratch::{Scratch, tail};
use harness::wait::poll;
use harness::wire::QueryCfgResponse;
use socket2::{Domain, Socket, Type};

use crate::meta::MetaProcess;
use crate::routes::{FILE, ROOT, Routes};

/// Where the Go meta-proxy listens; it has no setting for that.
const PEER_PORT: u16 = 34_601;
const START_WITHIN: Duration = Duration::from_secs(15);
/// As long as a closed connection is remembered.
const PORT_WITHIN: Duration = Duration::from_secs(70);
const LOOK_WITHIN: Duration = Duration::from_secs(1);
const LOG_LINES: usize = 20;

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The stand-in MetaServer itself.
    Direct,
    HaProxy,
    Peer,
    MetaProxy,
}

impl Kind {
    /// From the least to the most interesting.
    pub const ALL: [Kind; 4] = [Kind::Direct, Kind::HaProxy, Kind::Peer, Kind::MetaProxy];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Direct => "direct",
            Kind::HaProxy => "haproxy",
            Kind::Peer => "peer",
            Kind::MetaProxy => "meta-proxy",
        })
    }
}

/// How the targets are started.
pub struct Launcher {
    /// The `haproxy` binary.
    pub haproxy: PathBuf,
    /// Its `nbthread`; without it, its default: as many as there are processors.
    pub haproxy_threads: Option<u16>,
    /// The `meta-proxy` binary.
    pub meta_proxy: PathBuf,
    /// The command of the peer, which is run in a folder of its own; `{config}` and `{log}` in it are replaced by paths.
    pub peer: Option<String>,
}

impl Launcher {
    /// Starts one; returns when it has answered a query for `table`, which that MetaServer has.
    pub fn start(
        &self,
        kind: Kind,
        meta: &MetaProcess,
        routes: &Routes,
        table: &str,
    ) -> Result<Target, String> {
        let start = Instant::now();
        let (child, addr) = match kind {
            Kind::Direct => (Child::None, meta.addr()),
            Kind::HaProxy => self.start_haproxy(meta.addr())?,
            Kind::Peer => self.start_peer(routes)?,
            Kind::MetaProxy => {
                let builder = Proxy::builder(&self.meta_proxy);
                let proxy = match routes {
                    Routes::ZooKeeper(zk) => builder.zookeeper([zk.addr()], ROOT).start(),
                    Routes::File(folder) => builder.routes_file(folder.path().join(FILE)).start(),
                };
                let addr = proxy.addr();
                (Child::MetaProxy(Box::new(proxy)), addr)
            }
        };
        let mut target = Target { addr, child, took: Duration::ZERO };
        let mut last = String::new();
        let answered = poll(START_WITHIN, || match ask_once(addr, table, meta.partitions()) {
            Ok(()) => Some(()),
            Err(why) => {
                last = why;
                None
            }
        });
        match answered {
            Some(()) => {
                target.took = start.elapsed();
                Ok(target)
            }
            None => Err(format!("no answer within {START_WITHIN:?}: {last}{}", target.log_tail())),
        }
    }

    fn start_haproxy(&self, meta: SocketAddr) -> Result<(Child, SocketAddr), String> {
        let addr = free_addr().map_err(|e| format!("a free port: {e}"))?;
        // Two descriptors a connection, and some for itself: more than that it would refuse to start with.
        let descriptors = rlimit::Resource::NOFILE.get_soft().map_err(|e| e.to_string())?;
        let maxconn = (descriptors.saturating_sub(180) / 2).min(20_000);
        let threads = self.haproxy_threads.map_or_else(String::new, |n| format!("nbthread {n}"));
        let config = format!(
            "global\n  maxconn {maxconn}\n  {threads}\n\
             defaults\n  mode tcp\n  maxconn {maxconn}\n  timeout connect 10s\n  \
             timeout client 1h\n  timeout server 1h\n\
             listen bench\n  bind {addr} backlog 16384\n  server meta {meta}\n"
        );
        let scratch = Scratch::new("haproxy");
        let mut command = Command::new(&self.haproxy);
        command.arg("-db").arg("-f").arg(scratch.write("haproxy.cfg", config));
        Ok((Child::logged("haproxy", command, scratch)?, addr))
    }

    fn start_peer(&self, routes: &Routes) -> Result<(Child, SocketAddr), String> {
        let Routes::ZooKeeper(zk) = routes else {
            return Err("a peer needs its routes in ZooKeeper".to_owned());
        };
        let peer = self.peer.as_ref().ok_or("no peer is given")?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, PEER_PORT));
        if TcpStream::connect_timeout(&addr, LOOK_WITHIN).is_ok() {
            return Err(format!("somebody else listens on port {PEER_PORT}"));
        }
        let scratch = Scratch::new("peer");
        let config = scratch.write(
            "peer.yaml",
            format!(
                "zookeeper:\n  address: [\"{}\"]\n  root: {ROOT}\n  timeout: 6000\n  \
                 table_watcher_cache_capacity: 1024\n\
                 metric:\n  type: prometheus\n  tags: [region=bench,service=meta_proxy]\n",
                zk.addr()
            ),
        );
        let command_line = peer
            .replace("{config}", &config.display().to_string())
            .replace("{log}", &scratch.path().join("peer.log").display().to_string());
        let mut command = Command::new("sh");
        // In place of the shell, so that its process id is that of the peer.
        command.arg("-c").arg(format!("exec {command_line}"));
        command.current_dir(scratch.path()); // where it may leave files of its own
        Ok((Child::logged("peer", command, scratch)?, addr))
    }
}

/// The answer must be a whole table; from here on it is only counted.
fn ask_once(addr: SocketAddr, table: &str, partitions: i32) -> Result<(), String> {
    let mut client = Client::try_connect(addr, LOOK_WITHIN).map_err(|e| e.to_string())?;
    let answer = client.try_ask(table, LOOK_WITHIN).map_err(|e| e.to_string())?;
    match QueryCfgResponse::decode(&answer.result) {
        Ok(config) if answer.is_ok() && config.partitions.len() as i32 == partitions => Ok(()),
        _ => Err(format!("{answer:?}")),
    }
}

/// Keeps the peer's port, which lies among those that Linux gives to outgoing connections, from being given to one: a
/// bound socket that does not listen is in nobody's way but that of `connect`.
pub fn hold_peer_port() -> Result<Socket, String> {
    let addr = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PEER_PORT));
    let bind = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&addr.into())?;
        Ok(socket)
    };
    poll(PORT_WITHIN, || bind().ok())
        .ok_or_else(|| format!("port {PEER_PORT}, where the peer is to listen, is not free"))
}

fn free_addr() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// One that runs. Killed on drop.
pub struct Target {
    /// Where clients connect.
    pub addr: SocketAddr,
    /// From its start to its first answer.
    pub took: Duration,
    child: Child,
}

enum Child {
    None,
    Logged { process: Process, scratch: Scratch },
    MetaProxy(Box<Proxy>),
}

impl Child {
    fn logged(name: &str, mut command: Command, scratch: Scratch) -> Result<Self, String> {
        let spawned = File::create(scratch.path().join("output")).and_then(|output| {
            command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
            Process::spawn(name, &mut command)
        });
        match spawned {
            Ok(process) => Ok(Child::Logged { process, scratch }),
            Err(e) => Err(format!("cannot run {command:?}: {e}")),
        }
    }
}

impl Target {
    /// Its process, if it has one.
    pub fn process(&self) -> Option<&Process> {
        match &self.child {
            Child::None => None,
            Child::Logged { process, .. } => Some(process),
            Child::MetaProxy(proxy) => Some(proxy.process()),
        }
    }

    /// Its use of the machine so far; nothing, if there is no process.
    pub fn usage(&self) -> Option<Usage> {
        Usage::of(Path::new("/proc").join(self.process()?.pid().to_string()).as_path())
    }

    /// Memory that is its own, or its share of it, in bytes.
    pub fn pss_bytes(&self) -> Option<u64> {
        let rollup = format!("/proc/{}/smaps_rollup", self.process()?.pid());
        let text = fs::read_to_string(rollup).ok()?;
        let kilobytes = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        Some(kilobytes.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
    }

    /// Size of the file that it runs, in bytes.
    pub fn binary_bytes(&self) -> Option<u64> {
        let exe = format!("/proc/{}/exe", self.process()?.pid());
        Some(fs::metadata(exe).ok()?.len())
    }

    fn log_tail(&self) -> String {
        match &self.child {
            Child::None => String::new(),
            Child::Logged { scratch, .. } => {
                let log = fs::read_to_string(scratch.path().join("output")).unwrap_or_default();
                format!("\n{}", tail(&log, LOG_LINES))
            }
            Child::MetaProxy(proxy) => format!("\n{}", tail(&proxy.log(), LOG_LINES)),
        }
    }
}

/// Processor time and context switches of a process, over all its threads that still run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Time on a processor.
    pub cpu_ns: u64,
    /// It had nothing to do.
    pub voluntary: u64,
    /// Another took the processor.
    pub involuntary: u64,
}

impl Usage {
    /// The use of the process with this folder in /proc.
    pub fn of(proc: &Path) -> Option<Self> {
        let mut usage = Usage::default();
        for task in fs::read_dir(proc.join("task")).ok()?.flatten() {
            let read = |file| fs::read_to_string(task.path().join(file));
            let (Ok(times), Ok(status)) = (read("schedstat"), read("status")) else {
                continue; // it has ended since the folder was listed
            };
            // The first number is nanoseconds; /proc/PID/stat has steps of 10 ms.
            usage.cpu_ns += times.split_whitespace().next()?.parse::<u64>().ok()?;
            let value = |key: &str| -> Option<u64> {
                status.lines().find_map(|line| line.strip_prefix(key))?.trim().parse().ok()
            };
            usage.voluntary += value("voluntary_ctxt_switches:")?;
            usage.involuntary += value("nonvoluntary_ctxt_switches:")?;
        }
        Some(usage)
    }

    /// The use between then and now.
    pub fn since(self, before: Self) -> Self {
        Usage {
            cpu_ns: self.cpu_ns.saturating_sub(before.cpu_ns),
            voluntary: self.voluntary.saturating_sub(before.voluntary),
            involuntary: self.involuntary.saturating_sub(before.involuntary),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use harness::wait::eventually;

    #[test]
    fn work_is_seen_as_processor_time() {
        let used_since = |before: Usage| {
            Usage::of(Path::new("/proc/self")).expect("Linux has it").since(before).cpu_ns
        };
        let before = Usage::of(Path::new("/proc/self")).expect("Linux has it");
        // As long as it takes: a busy machine may let this thread wait.
        eventually("the time spent here", Duration::from_secs(30), || {
            let worked: u64 = (0..1_000_000).map(std::hint::black_box).sum();
            worked > 0 && used_since(before) > 5_000_000
        });
    }
}
