//! Threads `zk-dial`: find a ZooKeeper server that serves, and make a client of it.
//!
//! ```text
//! addresses ─resolve─▶ shuffled ─▶ preflight each, 100 ms apart ─▶ first that serves and does not lag
//!                                                                      └─▶ Client ─▶ event Dialed
//! ```
//! The crate tries one host at a time, resolves each before it starts, and fails with the first that does
//! not resolve. So it only ever gets one address, and one that has just answered: a dead, mute or unknown
//! host costs the others 100 ms, and so do names that a name server does not answer for.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use log::info;

use super::client::{Alive, Client, ClientEvent, ConnectOptions, Server};
use super::lag::is_older;
use crate::upstream::cluster::Upstream;

/// Time for the first name to resolve.
const RESOLVE_LIMIT: Duration = Duration::from_secs(1);
/// Time for all names to resolve once there is an address; who is not resolved by then is left out this time.
const RESOLVE_SOON: Duration = Duration::from_millis(100);
/// Time for one server to connect, and again to answer.
const PREFLIGHT_LIMIT: Duration = Duration::from_secs(1);
/// Time given to one server before the next is tried beside it.
const STAGGER: Duration = Duration::from_millis(100);
/// What `srvr` is answered has some 300 bytes.
const MAX_ANSWER_BYTES: u64 = 4096;
/// More addresses than any ensemble has.
const MAX_ADDRS: usize = 32;

/// Clients given up that a mute server keeps from closing: a few threads and some MB each.
const MAX_ALIVE: usize = 16;

/// What dialing needs to know.
#[derive(Clone)]
pub struct Dialer {
    /// `host:port` of the servers.
    pub address: Vec<String>,
    /// How to connect.
    pub options: ConnectOptions,
    /// Who resolves.
    pub upstream: Arc<Upstream>,
    /// Where the new client tells what happens.
    pub events: Sender<ClientEvent>,
    /// Clients not closed yet.
    pub alive: Alive,
}

/// How a dial ended.
pub struct Dialed {
    /// As asked for.
    pub generation: u64,
    /// The client, or why there is none.
    pub client: Result<Client, NoClient>,
}

/// Why a dial made no client.
#[derive(Debug)]
pub struct NoClient {
    /// In words.
    pub why: String,
    /// There would be one, of a server that lags.
    pub lags: bool,
}

impl From<String> for NoClient {
    fn from(why: String) -> Self {
        NoClient { why, lags: false }
    }
}

impl Dialer {
    /// Dials in a thread of its own, which sends what came of it. `avoid` is tried last, and who does not know of
    /// `newest_zxid` is passed over.
    pub fn start(
        &self,
        generation: u64,
        avoid: Option<SocketAddr>,
        newest_zxid: i64,
        done: Sender<Dialed>,
    ) -> io::Result<()> {
        let dialer = self.clone();
        thread::Builder::new().name("zk-dial".to_owned()).spawn(move || {
            let client = dialer.dial(generation, avoid, newest_zxid);
            // Nobody listens when the proxy stops; the client is dropped and closes.
            let _ = done.send(Dialed { generation, client });
        })?;
        Ok(())
    }

    fn dial(
        &self,
        generation: u64,
        avoid: Option<SocketAddr>,
        newest_zxid: i64,
    ) -> Result<Client, NoClient> {
        let closing = self.alive.load(SeqCst);
        if closing >= MAX_ALIVE {
            return Err(format!("{closing} clients that were given up are not closed yet").into());
        }
        let addrs = self.resolve(avoid);
        if addrs.is_empty() {
            return Err(format!("no address of {:?} is known", self.address).into());
        }
        let server = first_that_serves(&addrs, newest_zxid)?;
        Client::connect(server, &self.options, generation, &self.events, &self.alive)
            .map_err(|e| format!("{}: {e}", server.addr).into())
    }

    /// All addresses in a new order each time, so that many proxies spread over the servers.
    fn resolve(&self, avoid: Option<SocketAddr>) -> Vec<SocketAddr> {
        let resolver = &self.upstream.resolver;
        let start = Instant::now();
        // First a look that starts all lookups, then the wait for those that take time.
        let known = self.address.iter().filter_map(|name| resolver.known(name));
        let mut addrs: Vec<SocketAddr> = known.flatten().collect();
        for name in &self.address {
            let limit = if addrs.is_empty() { RESOLVE_LIMIT } else { RESOLVE_SOON };
            addrs.extend(resolver.resolve(name, &mut || start.elapsed() < limit));
        }
        addrs.sort_unstable();
        addrs.dedup();
        let random = RandomState::new();
        addrs.sort_by_cached_key(|addr| (Some(*addr) == avoid, random.hash_one(addr)));
        addrs.truncate(MAX_ADDRS);
        addrs
    }
}

fn first_that_serves(addrs: &[SocketAddr], newest_zxid: i64) -> Result<Server, NoClient> {
    let (tell, told) = bounded(addrs.len());
    let mut whys = Vec::new();
    let mut lags = false;
    for (started, addr) in addrs.iter().copied().enumerate() {
        let tell = tell.clone();
        thread::Builder::new()
            .name("zk-preflight".to_owned())
            .spawn(move || {
                let _ = tell.send((addr, preflight(addr)));
            })
            .map_err(|e| e.to_string())?;
        let wait = if started + 1 == addrs.len() { 2 * PREFLIGHT_LIMIT } else { STAGGER };
        let end = Instant::now() + wait;
        // One that fails at once need not be waited for.
        while whys.len() <= started {
            match told.recv_deadline(end) {
                Ok((addr, Ok(Some(zxid)))) if is_older(zxid, newest_zxid) => {
                    lags = true;
                    whys.push(format!(
                        "{addr}: it lags, zxid={zxid:#x} is behind {newest_zxid:#x}"
                    ));
                }
                Ok((addr, Ok(zxid))) => {
                    if lags {
                        info!("zookeeper: passed over {}", whys.join("; "));
                    }
                    return Ok(Server { addr, zxid: zxid.unwrap_or(0) });
                }
                Ok((addr, Err(why))) => whys.push(format!("{addr}: {why}")),
                Err(_) => break,
            }
        }
    }
    let why = match whys.is_empty() {
        true => format!("none of {addrs:?} answers"),
        false => whys.join("; "),
    };
    Err(NoClient { why, lags })
}

/// Whether a server answers anything to `srvr`: also "not in the whitelist" tells that it is alive, and a
/// connection closed without a word that it may be. Mute ones and those without a quorum do not serve. The newest
/// change that it knows of, if it tells.
fn preflight(addr: SocketAddr) -> Result<Option<i64>, String> {
    let mut answer: Vec<u8> = Vec::new();
    let mut talk = || -> io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&addr, PREFLIGHT_LIMIT)?;
        stream.set_read_timeout(Some(PREFLIGHT_LIMIT))?;
        stream.write_all(b"srvr")?;
        stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer)?;
        Ok(())
    };
    talk().map_err(|e| e.to_string())?;
    let answer = String::from_utf8_lossy(&answer);
    if answer.contains("not currently serving") {
        return Err("it does not serve now, its ensemble has no quorum".to_owned());
    }
    Ok(zxid_of(&answer))
}

/// From the line `Zxid: 0x100000002`.
fn zxid_of(answer: &str) -> Option<i64> {
    let digits = answer.lines().find_map(|line| line.strip_prefix("Zxid: 0x"))?;
    i64::from_str_radix(digits.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A server that answers one `srvr`.
    fn server(answer: &str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let answer = answer.to_owned();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 4]).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        });
        addr
    }

    fn srvr(zxid: &str) -> String {
        // As long as a real one before the line that counts.
        let version = "3.8.0-".to_owned() + &"5a02a05eddb59aee6ac762f7ea82e92a68eb9c0f".repeat(6);
        format!("Zookeeper version: {version}\nOutstanding: 0\nZxid: {zxid}\nMode: follower\n")
    }

    #[test]
    fn a_server_that_lags_is_passed_over() {
        let (old, current) = (server(&srvr("0x1fffffffe")), server(&srvr("0x1ffffffff")));
        let found = first_that_serves(&[old, current], 0x1_ffff_ffff).unwrap();
        assert_eq!(found, Server { addr: current, zxid: 0x1_ffff_ffff });
        let failed = first_that_serves(&[server(&srvr("0x5"))], 6).unwrap_err();
        assert!(failed.lags && failed.why.contains("zxid=0x5 is behind 0x6"), "{}", failed.why);
    }

    #[test]
    fn a_server_that_does_not_tell_how_new_it_is_may_serve() {
        for answer in ["srvr is not executed because it is not in the whitelist.\n", ""] {
            let addr = server(answer);
            let found = first_that_serves(&[addr], 6).unwrap();
            assert_eq!(found, Server { addr, zxid: 0 }, "{answer:?}");
        }
        let mute = server("This ZooKeeper instance is not currently serving requests\n");
        let failed = first_that_serves(&[mute], 6).unwrap_err();
        assert!(!failed.lags && failed.why.contains("no quorum"), "{}", failed.why);
    }
}
