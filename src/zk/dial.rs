//! Threads `zk-dial`: find a ZooKeeper server that serves, and make a client of it.
//!
//! ```text
//! addresses ─resolve─▶ shuffled ─▶ preflight each, 100 ms apart ─▶ first that says something sensible
//!                                                                      └─▶ Client ─▶ event Dialed
//! ```
//! The crate tries one host at a time, resolves each before it starts, and fails with the first that does
//! not resolve. So it only ever gets one address, and one that has just answered: a dead, mute or unknown
//! host costs the others 100 ms.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use super::client::{Alive, Client, ClientEvent, ConnectOptions};
use crate::upstream::cluster::Upstream;

/// Time for all names to resolve; who is not resolved by then is left out this time.
const RESOLVE_LIMIT: Duration = Duration::from_secs(1);
/// Time for one server to connect, and again to answer.
const PREFLIGHT_LIMIT: Duration = Duration::from_secs(1);
/// Time given to one server before the next is tried beside it.
const STAGGER: Duration = Duration::from_millis(100);
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
    pub client: Result<Client, String>,
}

impl Dialer {
    /// Dials in a thread of its own, which sends what came of it. `avoid` is tried last.
    pub fn start(
        &self,
        generation: u64,
        avoid: Option<SocketAddr>,
        done: Sender<Dialed>,
    ) -> io::Result<()> {
        let dialer = self.clone();
        thread::Builder::new().name("zk-dial".to_owned()).spawn(move || {
            let client = dialer.dial(generation, avoid);
            // Nobody listens when the proxy stops; the client is dropped and closes.
            let _ = done.send(Dialed { generation, client });
        })?;
        Ok(())
    }

    fn dial(&self, generation: u64, avoid: Option<SocketAddr>) -> Result<Client, String> {
        let closing = self.alive.load(SeqCst);
        if closing >= MAX_ALIVE {
            return Err(format!("{closing} clients that were given up are not closed yet"));
        }
        let addrs = self.resolve(avoid);
        if addrs.is_empty() {
            return Err(format!("no address of {:?} is known", self.address));
        }
        let addr = first_that_serves(&addrs)?;
        Client::connect(addr, &self.options, generation, &self.events, &self.alive)
            .map_err(|e| format!("{addr}: {e}"))
    }

    /// All addresses in a new order each time, so that many proxies spread over the servers.
    fn resolve(&self, avoid: Option<SocketAddr>) -> Vec<SocketAddr> {
        let resolver = &self.upstream.resolver;
        let end = Instant::now() + RESOLVE_LIMIT;
        let mut addrs: Vec<SocketAddr> = Vec::new();
        // First a look that starts all lookups, then the wait for those that take time.
        for host_port in &self.address {
            resolver.resolve(host_port, &mut || false);
        }
        for host_port in &self.address {
            addrs.extend(resolver.resolve(host_port, &mut || Instant::now() < end));
        }
        addrs.sort_unstable();
        addrs.dedup();
        let random = RandomState::new();
        addrs.sort_by_cached_key(|addr| (Some(*addr) == avoid, random.hash_one(addr)));
        addrs.truncate(MAX_ADDRS);
        addrs
    }
}

fn first_that_serves(addrs: &[SocketAddr]) -> Result<SocketAddr, String> {
    let (tell, told) = bounded(addrs.len());
    let mut whys = Vec::new();
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
                Ok((addr, Ok(()))) => return Ok(addr),
                Ok((addr, Err(why))) => whys.push(format!("{addr}: {why}")),
                Err(_) => break,
            }
        }
    }
    match whys.is_empty() {
        true => Err(format!("none of {addrs:?} answers")),
        false => Err(whys.join("; ")),
    }
}

/// Whether a server answers anything to `srvr`: also "not in the whitelist" tells that it is alive, and a
/// connection closed without a word that it may be. Mute ones and those without a quorum do not serve.
fn preflight(addr: SocketAddr) -> Result<(), String> {
    let mut answer: Vec<u8> = Vec::new();
    let mut talk = || -> io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&addr, PREFLIGHT_LIMIT)?;
        stream.set_read_timeout(Some(PREFLIGHT_LIMIT))?;
        stream.write_all(b"srvr")?;
        stream.take(256).read_to_end(&mut answer)?;
        Ok(())
    };
    talk().map_err(|e| e.to_string())?;
    if answer.windows(21).any(|words| words == b"not currently serving") {
        return Err("it does not serve now, its ensemble has no quorum".to_owned());
    }
    Ok(())
}
