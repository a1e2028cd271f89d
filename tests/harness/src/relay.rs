//! A faulty network: a TCP relay in front of any address, whose faults are switched while it runs.
//!
//! ```text
//!            accept            pump "relay-up": to_server
//! client ──▶ listener ──▶ link ─────────────────────────▶ target
//!              │               ◀─────────────────────────
//!              │               pump "relay-down": to_client
//!              └ holder: bound to the same port, never listens; keeps the port while the listener is closed
//! ```
//! Stalled bytes are kept, as a network keeps them that drops packets: when the fault ends they arrive, in order, none
//! missing. All faults go with [`Relay::pass`].

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use crate::wait::{is_passing, poll};

/// Many links may stand at once; a pump needs little.
const STACK_BYTES: usize = 256 << 10;
const READ_BYTES: usize = 16 << 10;
/// Bytes that a delayed direction may keep on its way; beyond them the sender is slowed down, as by a network.
const MAX_UNDERWAY: usize = 4 << 20;
/// How often a pump that cannot write looks whether its link was cut.
const WRITE_LOOK: Duration = Duration::from_millis(50);
/// Between the pieces of [`Relay::chunk`], so that the reader has time to see each alone.
const CHUNK_PAUSE: Duration = Duration::from_micros(200);
/// How long to wait for a descriptor to become free before trying to accept again.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(20);
/// How often it is tried whether a target listens.
const TARGET_LOOK: Duration = Duration::from_millis(5);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const LINKS_GONE_WITHIN: Duration = Duration::from_secs(10);
/// As many as clients may connect at one moment.
const BACKLOG: i32 = 4096;

/// A running relay. Dropping it cuts all links and ends its threads.
pub struct Relay {
    addr: SocketAddr,
    shared: Arc<Shared>,
    door: Mutex<Door>,
    /// Keeps the port; a connection never reaches it, as it does not listen.
    _holder: Socket,
}

impl Relay {
    /// A relay on a free local port.
    pub fn to(target: SocketAddr) -> Self {
        Self::start(target, Duration::ZERO, None)
    }

    /// Like [`to`](Self::to), but the target sees connections from this address.
    pub fn from(source: Ipv4Addr, target: SocketAddr) -> Self {
        Self::start(target, Duration::ZERO, Some(source))
    }

    /// Starts before the target listens: a client that connects earlier waits for it for `within`.
    pub fn to_one_that_comes(target: SocketAddr, within: Duration) -> Self {
        Self::start(target, within, None)
    }

    fn start(target: SocketAddr, patience: Duration, source: Option<Ipv4Addr>) -> Self {
        let holder = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
        let addr = holder
            .local_addr()
            .ok()
            .and_then(|addr| addr.as_socket())
            .expect("it is bound to an IP address");
        let shared = Arc::new(Shared {
            faults: Mutex::new(Faults::none(target)),
            changed: Condvar::new(),
            patience,
            source,
            links: Mutex::default(),
            accepted: AtomicU64::new(0),
            bytes: Default::default(),
        });
        let relay = Relay { addr, shared, door: Mutex::new(Door::Closed), _holder: holder };
        relay.open();
        relay
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    // ---- switches

    /// No fault any more: what was stalled goes on, new connections are taken.
    pub fn pass(&self) {
        self.set(|faults| *faults = Faults::none(faults.target));
        self.open();
    }

    /// Bytes arrive this much later, both ways. Bytes that are under way already are not slowed down again.
    pub fn delay(&self, delay: Duration) {
        self.set(|faults| faults.delay = PerWay { to_server: delay, to_client: delay });
    }

    /// Requests arrive this much later.
    pub fn delay_to_server(&self, delay: Duration) {
        self.set(|faults| faults.delay.to_server = delay);
    }

    /// Answers arrive this much later.
    pub fn delay_to_client(&self, delay: Duration) {
        self.set(|faults| faults.delay.to_client = delay);
    }

    /// Requests stay under way.
    pub fn stall_to_server(&self) {
        self.set(|faults| faults.stall.to_server = true);
    }

    /// Answers stay under way.
    pub fn stall_to_client(&self) {
        self.set(|faults| faults.stall.to_client = true);
    }

    /// Nothing arrives either way, connections stay open; new ones are accepted and get no further. The end of a
    /// connection does not arrive either.
    pub fn black_hole(&self) {
        self.set(|faults| faults.stall = PerWay { to_server: true, to_client: true });
    }

    /// Bytes are written in pieces of `len`, both ways, each in a packet of its own.
    pub fn chunk(&self, len: usize) {
        assert!(len > 0, "a piece has at least one byte");
        self.set(|faults| faults.chunk = Some(len));
    }

    /// The links that stand die without a word: nothing arrives over them any more, not even their end. New connections
    /// pass. So it is when a firewall or an address translation restarts.
    pub fn forget_links(&self) {
        let links = self.shared.lock_links();
        links.values().for_each(|link| link.is_forgotten.store(true, Ordering::Relaxed));
        drop(links);
        self.shared.wake_pumps();
    }

    /// New connections are accepted and closed at once, as by a balancer without a server; links that stand stay.
    pub fn close_at_once(&self) {
        self.set(|faults| faults.closes = true);
    }

    /// Answers arrive no faster than this.
    pub fn bandwidth_to_client(&self, bytes_per_s: usize) {
        self.set(|faults| faults.bandwidth = Some(bytes_per_s));
    }

    /// Resets all links; new connections pass. Returns when both ends have been told.
    pub fn cut(&self) {
        let cut: Vec<u64> = {
            let links = self.shared.lock_links();
            links.values().for_each(|link| link.reset());
            links.keys().copied().collect()
        };
        self.shared.wake_pumps();
        // Not those that clients have opened since: some are back at once.
        let left = || {
            let links = self.shared.lock_links();
            cut.iter().filter(|id| links.contains_key(id)).count()
        };
        if poll(LINKS_GONE_WITHIN, || (left() == 0).then_some(())).is_none() {
            eprintln!("relay {}: {} links do not end", self.addr, left());
        }
    }

    /// Refuses new connections and resets all links, as if the server's process were gone.
    pub fn refuse(&self) {
        *self.lock_door() = Door::Closed;
        self.cut();
    }

    /// Like [`black_hole`](Self::black_hole), but new connections are not accepted either, nor refused: whoever connects
    /// waits, as for a host that is switched off.
    pub fn unreachable(&self) {
        self.black_hole();
        let mut door = self.lock_door();
        *door = Door::Closed; // first: two sockets cannot listen on one port
        *door = Door::Jammed(Jam::start(self.addr).expect("the port is ours"));
    }

    /// Where new connections lead; links that stand stay.
    pub fn set_target(&self, target: SocketAddr) {
        self.set(|faults| faults.target = target);
    }

    // ---- counters

    /// Connections taken so far.
    pub fn connections(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Links that stand now.
    pub fn open_links(&self) -> usize {
        self.shared.lock_links().len()
    }

    /// Bytes handed on to the server.
    pub fn bytes_to_server(&self) -> u64 {
        self.shared.bytes.to_server.load(Ordering::Relaxed)
    }

    /// Bytes handed on to clients.
    pub fn bytes_to_client(&self) -> u64 {
        self.shared.bytes.to_client.load(Ordering::Relaxed)
    }

    fn set(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.shared.lock_faults());
        self.shared.changed.notify_all();
    }

    fn open(&self) {
        let mut door = self.lock_door();
        if !matches!(*door, Door::Open(_)) {
            *door = Door::Closed; // first: two sockets cannot listen on one port
            let listener = Listener::start(self.addr, &self.shared);
            *door = Door::Open(listener.expect("the port is ours"));
        }
    }

    fn lock_door(&self) -> MutexGuard<'_, Door> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.refuse();
    }
}

/// Something for each of the two directions.
#[derive(Clone, Copy, Default)]
struct PerWay<T> {
    to_server: T,
    to_client: T,
}

#[derive(Clone, Copy)]
enum Way {
    ToServer,
    ToClient,
}

impl<T> PerWay<T> {
    fn of(&self, way: Way) -> &T {
        match way {
            Way::ToServer => &self.to_server,
            Way::ToClient => &self.to_client,
        }
    }
}

struct Faults {
    target: SocketAddr,
    delay: PerWay<Duration>,
    stall: PerWay<bool>,
    chunk: Option<usize>,
    /// Bytes per second to clients.
    bandwidth: Option<usize>,
    closes: bool,
}

/// In what pieces bytes are written, and how long after one another.
#[derive(Clone, Copy)]
struct Pieces {
    len: usize,
    pause: Duration,
}

impl Faults {
    fn none(target: SocketAddr) -> Self {
        Faults {
            target,
            delay: PerWay::default(),
            stall: PerWay::default(),
            chunk: None,
            bandwidth: None,
            closes: false,
        }
    }

    fn pieces(&self, way: Way) -> Pieces {
        const STEPS_PER_SECOND: u32 = 50;
        match (self.chunk, self.bandwidth, way) {
            (Some(len), _, _) => Pieces { len, pause: CHUNK_PAUSE },
            (None, Some(bytes_per_s), Way::ToClient) => Pieces {
                len: (bytes_per_s / STEPS_PER_SECOND as usize).max(1),
                pause: Duration::from_secs(1) / STEPS_PER_SECOND,
            },
            _ => Pieces { len: usize::MAX, pause: Duration::ZERO },
        }
    }
}

/// How new connections are treated.
enum Door {
    /// They are refused.
    Closed,
    Open(#[expect(dead_code, reason = "kept for its drop")] Listener),
    Jammed(#[expect(dead_code, reason = "kept for its drop")] Jam),
}

/// Accepts until dropped.
struct Listener {
    /// The listening socket once more. Shut down, it makes the blocked `accept` return (on Linux).
    waker: Socket,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    fn start(addr: SocketAddr, shared: &Arc<Shared>) -> io::Result<Self> {
        let socket = bind(addr)?;
        socket.listen(BACKLOG)?;
        let waker = socket.try_clone()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new().name("relay".to_owned()).spawn({
            let (shared, stopping) = (Arc::clone(shared), Arc::clone(&stopping));
            move || accept(&socket.into(), &stopping, &shared)
        })?;
        Ok(Listener { waker, stopping, thread: Some(thread) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Fails only if it was done before, and then accept has returned already.
        let _ = self.waker.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            // A panic in there was printed when it happened.
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, stopping: &AtomicBool, shared: &Arc<Shared>) {
    while !stopping.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((client, _)) => Shared::open_link(shared, client),
            // Out of descriptors, or a client that left at once; the pause is for the first.
            Err(_) => thread::sleep(ACCEPT_BACK_OFF),
        }
    }
}

/// A listening socket that accepts nothing and has no room in its queue: the kernel drops what asks to connect.
struct Jam {
    _socket: Socket,
    _filler: TcpStream,
}

impl Jam {
    fn start(addr: SocketAddr) -> io::Result<Self> {
        let socket = bind(addr)?;
        socket.listen(0)?; // room for one
        let filler = TcpStream::connect_timeout(&addr, CONNECT_WITHIN)?;
        Ok(Jam { _socket: socket, _filler: filler })
    }
}

/// Connects to `target`, from `source` if there is one.
pub fn connect(source: Option<Ipv4Addr>, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::from((source, 0)).into())?;
    }
    socket.connect_timeout(&target.into(), CONNECT_WITHIN)?;
    Ok(socket.into())
}

/// SO_REUSEADDR lets several sockets have the port as long as one at most listens.
fn bind(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

struct Shared {
    /// How long a target that refuses is waited for.
    patience: Duration,
    /// Where connections to the target come from.
    source: Option<Ipv4Addr>,
    faults: Mutex<Faults>,
    /// The faults have changed, or a link was cut.
    changed: Condvar,
    links: Mutex<HashMap<u64, Arc<Link>>>,
    accepted: AtomicU64,
    bytes: PerWay<AtomicU64>,
}

impl Shared {
    fn lock_faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_links(&self) -> MutexGuard<'_, HashMap<u64, Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes waiting pumps see that their link was reset.
    fn wake_pumps(&self) {
        // With the lock held nobody is between his look at the link and his wait.
        let faults = self.lock_faults();
        self.changed.notify_all();
        drop(faults);
    }

    fn open_link(shared: &Arc<Self>, client: TcpStream) {
        let id = shared.accepted.fetch_add(1, Ordering::Relaxed);
        if shared.lock_faults().closes {
            return;
        }
        let link = Arc::new(Link {
            client,
            server: OnceLock::new(),
            reset: AtomicBool::new(false),
            is_forgotten: AtomicBool::new(false),
        });
        shared.lock_links().insert(id, Arc::clone(&link));
        let spawned = spawn("relay-up", {
            let shared = Arc::clone(shared);
            move || {
                link.run(&shared);
                drop(link);
                // The last to hold the link: its sockets close here, with a reset if it was one.
                drop(shared.lock_links().remove(&id));
            }
        });
        if let Err(e) = spawned {
            eprintln!("relay: connection dropped, no thread for it: {e}");
            drop(shared.lock_links().remove(&id));
        }
    }

    /// Waits until bytes may go this way; how to cut them. `None` if the link was reset.
    fn wait_while_stalled(&self, link: &Link, way: Way) -> Option<Pieces> {
        let stalled = |faults: &mut Faults| {
            let is_forgotten = link.is_forgotten.load(Ordering::Relaxed);
            (*faults.stall.of(way) || is_forgotten) && !link.is_reset()
        };
        let faults = self.changed.wait_while(self.lock_faults(), stalled);
        let faults = faults.unwrap_or_else(PoisonError::into_inner);
        (!link.is_reset()).then(|| faults.pieces(way))
    }

    /// Waits, but not beyond the reset of the link.
    fn wait_for(&self, link: &Link, time: Duration) {
        let waits = |_: &mut Faults| !link.is_reset();
        drop(self.changed.wait_timeout_while(self.lock_faults(), time, waits));
    }
}

/// A client's connection and the one that was made for it.
struct Link {
    client: TcpStream,
    /// There is none while the way to the server is stalled.
    server: OnceLock<TcpStream>,
    reset: AtomicBool,
    is_forgotten: AtomicBool,
}

impl Link {
    fn run(self: &Arc<Self>, shared: &Arc<Shared>) {
        let Some(Ok(server)) = self.connect(shared) else {
            return self.reset();
        };
        let down = spawn("relay-down", {
            let (link, shared) = (Arc::clone(self), Arc::clone(shared));
            move || link.pump(&shared, Way::ToClient, link.server(), &link.client)
        });
        match down {
            Ok(down) => {
                self.pump(shared, Way::ToServer, &self.client, server);
                // A panic in there was printed when it happened.
                let _ = down.join();
            }
            Err(e) => {
                eprintln!("relay: connection dropped, no thread for it: {e}");
                self.reset();
            }
        }
    }

    /// `None` if the link was reset before.
    fn connect(&self, shared: &Shared) -> Option<io::Result<&TcpStream>> {
        shared.wait_while_stalled(self, Way::ToServer)?;
        let target = shared.lock_faults().target;
        let start = Instant::now();
        let connected = loop {
            match connect(shared.source, target) {
                Err(e)
                    if e.kind() == io::ErrorKind::ConnectionRefused
                        && start.elapsed() < shared.patience
                        && !self.is_reset() =>
                {
                    shared.wait_for(self, TARGET_LOOK);
                }
                connected => break connected,
            }
        };
        let server = connected.and_then(|server| {
            for stream in [&self.client, &server] {
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(WRITE_LOOK))?;
            }
            Ok(server)
        });
        // The lock under which links are reset: one that was while it connected must not start its pumps, as nobody
        // would wake them.
        let _links = shared.lock_links();
        let server = server.map(|server| self.server.get_or_init(|| server));
        (!self.is_reset()).then_some(server)
    }

    fn server(&self) -> &TcpStream {
        self.server.get().expect("pumps run when it is connected")
    }

    fn is_reset(&self) -> bool {
        self.reset.load(Ordering::Relaxed)
    }

    /// Both ends will see a reset, as soon as the pumps have let go of the sockets.
    fn reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
        for stream in [Some(&self.client), self.server.get()].into_iter().flatten() {
            // Closing with no linger is a reset. Shutting the reading side sends nothing, and wakes the pump.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
            let _ = stream.shutdown(Shutdown::Read);
        }
    }

    /// Carries bytes one way until their end, or the end of the link.
    fn pump(&self, shared: &Shared, way: Way, from: &TcpStream, to: &TcpStream) {
        if self.carry(shared, way, from, to).is_err() {
            self.reset();
            shared.wake_pumps();
        }
    }

    fn carry(
        &self,
        shared: &Shared,
        way: Way,
        mut from: &TcpStream,
        to: &TcpStream,
    ) -> io::Result<()> {
        let mut underway = Underway::default();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let now = Instant::now();
            match underway.first_due().map(|due| due.saturating_duration_since(now)) {
                Some(Duration::ZERO) => {
                    let Some(pieces) = shared.wait_while_stalled(self, way) else {
                        return Ok(());
                    };
                    let bytes = underway.take();
                    if bytes.is_empty() {
                        return to.shutdown(Shutdown::Write);
                    }
                    self.write(shared.bytes.of(way), to, &bytes, pieces)?;
                }
                Some(left) if underway.is_full() => shared.wait_for(self, left),
                left => {
                    from.set_read_timeout(left)?;
                    match from.read(&mut buffer) {
                        Ok(len) => {
                            let delay = *shared.lock_faults().delay.of(way);
                            underway.put(&buffer[..len], Instant::now() + delay);
                        }
                        Err(e) if is_passing(&e) => {}
                        Err(e) => return Err(e),
                    }
                }
            }
            if self.is_reset() {
                return Ok(());
            }
        }
    }

    fn write(
        &self,
        count: &AtomicU64,
        mut to: &TcpStream,
        bytes: &[u8],
        pieces: Pieces,
    ) -> io::Result<()> {
        for piece in bytes.chunks(pieces.len) {
            // Before the write: who has seen the answer must find it counted.
            count.fetch_add(piece.len() as u64, Ordering::Relaxed);
            let mut rest = piece;
            while !rest.is_empty() && !self.is_reset() {
                match to.write(rest) {
                    Ok(written) => rest = &rest[written..],
                    Err(e) if is_passing(&e) => {}
                    Err(e) => return Err(e),
                }
            }
            if !pieces.pause.is_zero() {
                thread::sleep(pieces.pause);
            }
        }
        Ok(())
    }
}

/// Bytes that were read and not written yet, with the time when they may be.
#[derive(Default)]
struct Underway {
    pieces: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// The end has been read; it is a piece without bytes.
    ended: bool,
}

impl Underway {
    fn put(&mut self, bytes: &[u8], due: Instant) {
        self.ended = bytes.is_empty();
        self.bytes += bytes.len();
        self.pieces.push_back((due, bytes.to_vec()));
    }

    fn first_due(&self) -> Option<Instant> {
        self.pieces.front().map(|(due, _)| *due)
    }

    fn take(&mut self) -> Vec<u8> {
        let (_, bytes) = self.pieces.pop_front().expect("first_due has seen it");
        self.bytes -= bytes.len();
        bytes
    }

    fn is_full(&self) -> bool {
        self.ended || self.bytes >= MAX_UNDERWAY
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(run)
}
