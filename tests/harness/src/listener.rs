//! The base of every stand-in server: a listener with a thread per connection, where dropping the listener ends it
//! all, sockets first, then threads.
//!
//! ```text
//! Listener ── thread ROLE: accept ─┬─ thread ROLE-1: serve(link) ─▶ Inbox: bytes to requests
//!     │                            └─ thread ROLE-2: serve(link)         Link: answers, from any thread
//!     └─ drop: shuts the listening socket and every link down, joins the threads
//! ```

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::wire::{Malformed, Request};

/// Thousands of clients may connect to one server in a bench.
const STACK_BYTES: usize = 256 << 10;
/// The most that Linux grants (net.core.somaxconn).
const BACKLOG: i32 = 4096;
/// A peer that reads nothing for so long is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the head of a request over HTTP.
const MAX_HEAD: usize = 8 << 10;
/// How long to wait for a descriptor to become free before trying to accept again.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(50);

/// Accepts until dropped.
pub(crate) struct Listener {
    addr: SocketAddr,
    /// The listening socket once more. Shut down, it makes the blocked `accept` return (on Linux).
    waker: TcpStream,
    links: Arc<Links>,
    accept: Option<JoinHandle<()>>,
}

impl Listener {
    /// Calls `serve` for each connection, on a thread of its own; the connection is closed when it returns.
    pub(crate) fn start(
        role: &'static str,
        addr: SocketAddr,
        serve: impl Fn(&Arc<Link>) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = listen(addr)?;
        let addr = listener.local_addr()?;
        let waker = TcpStream::from(OwnedFd::from(listener.try_clone()?));
        let links = Arc::new(Links::default());
        let accept = thread::Builder::new().name(role.to_owned()).spawn({
            let links = Arc::clone(&links);
            move || accept(role, &listener, &links, &serve)
        })?;
        Ok(Listener { addr, waker, links, accept: Some(accept) })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn open_connections(&self) -> usize {
        self.links.lock().open.len()
    }

    pub(crate) fn max_open_connections(&self) -> usize {
        self.links.lock().max_open
    }

    /// Ends everything; returns when no thread is left.
    pub(crate) fn stop(&mut self) {
        let Some(accept) = self.accept.take() else {
            return;
        };
        {
            let mut links = self.links.lock();
            links.stopping = true;
            links.open.values().for_each(|link| link.close());
        }
        self.links.one_less.notify_all();
        // Fails only if it was done before, and then accept has returned already.
        let _ = self.waker.shutdown(Shutdown::Both);
        if accept.join().is_err() && !thread::panicking() {
            panic!("a thread of the stand-in server at {} panicked, see above", self.addr);
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop();
    }
}

/// As `TcpListener::bind`, but for the backlog: with 128, a thousand clients that connect at once wait for seconds.
fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn accept(
    role: &str,
    listener: &TcpListener,
    links: &Links,
    serve: &(impl Fn(&Arc<Link>) + Send + Sync),
) {
    // The scope joins the threads of all links.
    thread::scope(|scope| {
        while !links.lock().stopping {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(_) => {
                    links.wait_for_one_less();
                    continue;
                }
            };
            let Some(open) = Link::new(stream).ok().and_then(|link| links.open(link)) else {
                continue; // the peer left at once, or the server is stopping
            };
            let spawned = thread::Builder::new()
                .name(format!("{role}-{}", open.id))
                .stack_size(STACK_BYTES)
                .spawn_scoped(scope, move || serve(&open.link));
            if let Err(e) = spawned {
                eprintln!("{role}: connection refused, no thread for it: {e}");
            }
        }
    });
}

#[derive(Default)]
struct Links {
    state: Mutex<LinksState>,
    one_less: Condvar,
}

#[derive(Default)]
struct LinksState {
    stopping: bool,
    open: HashMap<u64, Arc<Link>>,
    max_open: usize,
    last_id: u64,
}

impl Links {
    fn lock(&self) -> MutexGuard<'_, LinksState> {
        self.state.lock().expect("nothing panics while holding it")
    }

    /// `None` when stopping: nobody would close the link later.
    fn open(&self, link: Link) -> Option<Open<'_>> {
        let mut state = self.lock();
        if state.stopping {
            return None;
        }
        let link = Arc::new(link);
        state.last_id += 1;
        let id = state.last_id;
        state.open.insert(id, Arc::clone(&link));
        state.max_open = state.max_open.max(state.open.len());
        Some(Open { id, link, links: self })
    }

    fn wait_for_one_less(&self) {
        let state = self.lock();
        if !state.stopping {
            let waited = self.one_less.wait_timeout(state, ACCEPT_BACK_OFF);
            drop(waited.expect("nothing panics while holding it"));
        }
    }
}

/// An open link; dropping it closes the link and forgets it.
struct Open<'a> {
    id: u64,
    link: Arc<Link>,
    links: &'a Links,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.links.lock().open.remove(&self.id);
        self.links.one_less.notify_all();
        self.link.close();
    }
}

/// One connection. Its own thread reads; any thread may answer.
pub(crate) struct Link {
    stream: TcpStream,
    peer: SocketAddr,
    /// Held while an answer is written, so that answers do not mix; keeps its memory from one to the next.
    out: Mutex<Vec<u8>>,
}

impl Link {
    fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let peer = stream.peer_addr()?;
        Ok(Link { stream, peer, out: Mutex::default() })
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Writes one answer, which `fill` puts into an empty buffer. A peer that has gone is no error here: its thread
    /// sees that for itself.
    pub(crate) fn answer(&self, fill: impl FnOnce(&mut Vec<u8>)) {
        let mut out = self.out.lock().expect("nothing panics while holding it");
        out.clear();
        fill(&mut out);
        if (&self.stream).write_all(&out).is_err() {
            self.close();
        }
    }

    /// The path that is asked for, if the peer speaks HTTP; it has read the head then. Blocks for the first bytes.
    pub(crate) fn http_path(&self) -> Option<String> {
        let mut first = [0; 4];
        if self.stream.peek(&mut first).ok()? == 0 || first[0] != b'G' {
            return None;
        }
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_HEAD {
            (&self.stream).read_exact(&mut byte).ok()?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).ok()?;
        head.split(' ').nth(1).map(str::to_owned)
    }

    pub(crate) fn close(&self) {
        // Fails only if the peer was faster.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// The requests that come in over a link.
pub(crate) struct Inbox<'a> {
    link: &'a Link,
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl<'a> Inbox<'a> {
    /// Room for any QueryConfig request, so that it takes one read.
    const FIRST_BYTES: usize = 4096;

    pub(crate) fn new(link: &'a Link) -> Self {
        Inbox { link, bytes: vec![0; Self::FIRST_BYTES], start: 0, end: 0 }
    }

    /// Whether the next request, or a fault, is there without a read.
    pub(crate) fn has_frame(&self) -> bool {
        let bytes = &self.bytes[self.start..self.end];
        Request::frame_len(bytes).map_or(true, |len| len.is_some_and(|len| len <= bytes.len()))
    }

    /// More bytes; `false` when there will be none.
    fn read(&mut self) -> bool {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.bytes.len() {
            self.bytes.resize(2 * self.end, 0);
        }
        loop {
            match (&self.link.stream).read(&mut self.bytes[self.end..]) {
                Ok(len) => {
                    self.end += len;
                    return len > 0;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }
}

impl Iterator for Inbox<'_> {
    type Item = Result<Request, Malformed>;

    /// Blocks for the next request. After a malformed one there is no telling where the next starts.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let bytes = &self.bytes[self.start..self.end];
            match Request::frame_len(bytes) {
                Ok(Some(len)) if len <= bytes.len() => {
                    let request = Request::decode(&bytes[..len]);
                    self.start += len;
                    return Some(request);
                }
                Ok(_) => {
                    if !self.read() {
                        return None;
                    }
                }
                Err(malformed) => return Some(Err(malformed)),
            }
        }
    }
}
