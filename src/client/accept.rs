//! Thread `accept`: the listener, and every client that no worker is reading.
//!
//! ```text
//! poll ─┬─ listener ─▶ accept until it would block ─▶ registry (token -> connection)
//!       ├─ readable ─▶ readiness.notify ─▶ lobby, where workers read
//!       ├─ writable ─▶ connection.flush
//!       ├─ waker ────▶ notes: closed, watch, stop
//!       └─ time ─────▶ deadlines of half frames and of answers not taken; accept again
//! ```
//! It never blocks but in poll. A connection is registered once, edge-triggered, for both directions;
//! its registration ends with its descriptor, when the last query that holds it is answered. An event of
//! an earlier holder of a token only makes a worker find nothing to read.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use log::warn;
use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;
use socket2::{SockRef, TcpKeepalive};

use super::connection::{CloseReason, Connection, Desk, Note};
use super::lobby::Lobby;
use crate::logging::Throttle;
use crate::metrics::Refusal;

const LISTENER: Token = Token(usize::MAX);
/// Token of the waker that the [`Desk`] holds.
pub const WAKER: Token = Token(usize::MAX - 1);

/// Pause after the system refused a connection for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts between two looks at the clients that are connected already.
const ACCEPTS_PER_TURN: usize = 256;

/// Who may connect.
#[derive(Clone, Debug)]
pub struct AcceptLimits {
    /// Connections in all.
    pub max_connections: usize,
    /// Connections from one address.
    pub max_connections_per_address: usize,
    /// Idle time after which the kernel asks whether the client still lives.
    pub keepalive: Duration,
}

/// The state of the thread.
pub struct Acceptor {
    poll: Poll,
    listener: Option<TcpListener>,
    limits: AcceptLimits,
    desk: Arc<Desk>,
    notes: Receiver<Note>,
    lobby: Arc<Lobby>,
    registry: Slab<Arc<Connection>>,
    per_address: HashMap<IpAddr, usize>,
    deadlines: BTreeMap<(Instant, u64), Arc<Connection>>,
    /// The same by connection, so that one that closes is held no longer, nor its descriptor.
    deadline_of: HashMap<u64, Instant>,
    /// Connections that one poll found readable.
    readable: Vec<Arc<Connection>>,
    /// The listener has more to accept, from then on.
    accept_at: Option<Instant>,
    next_id: u64,
}

impl Acceptor {
    /// `poll` is that of the desk's waker.
    pub fn new(
        poll: Poll,
        mut listener: TcpListener,
        limits: AcceptLimits,
        desk: Arc<Desk>,
        notes: Receiver<Note>,
        lobby: Arc<Lobby>,
    ) -> io::Result<Self> {
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Acceptor {
            poll,
            listener: Some(listener),
            limits,
            desk,
            notes,
            lobby,
            registry: Slab::new(),
            per_address: HashMap::new(),
            deadlines: BTreeMap::new(),
            deadline_of: HashMap::new(),
            readable: Vec::new(),
            accept_at: None,
            next_id: 1,
        })
    }

    /// Runs until it is told to stop.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            if let Err(e) = self.poll.poll(&mut events, self.timeout())
                && e.kind() != ErrorKind::Interrupted
            {
                return Err(e);
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept_at = Some(Instant::now()),
                    WAKER => {}
                    Token(slot) => self.client_event(slot, event),
                }
            }
            if !self.readable.is_empty() {
                self.lobby.arrive(self.readable.drain(..));
                // Where the processors are busy, those who read them and who answer come first; meanwhile more
                // clients become readable, and one poll tells of them all.
                thread::yield_now();
            }
            if self.take_notes().is_break() {
                break;
            }
            let now = Instant::now();
            self.check_deadlines(now);
            if self.accept_at.is_some_and(|at| at <= now) {
                self.accept();
            }
        }
        for connection in self.registry.drain() {
            connection.close(CloseReason::Stop);
        }
        Ok(())
    }

    fn timeout(&self) -> Option<Duration> {
        let deadline = self.deadlines.keys().next().map(|(at, _)| *at);
        let next = [deadline, self.accept_at].into_iter().flatten().min()?;
        // Poll counts in milliseconds and rounds down; one more, or it would spin through the last.
        let left = next.saturating_duration_since(Instant::now());
        Some(if left.is_zero() { left } else { left + Duration::from_millis(1) })
    }

    fn client_event(&mut self, slot: usize, event: &Event) {
        let Some(connection) = self.registry.get(slot) else {
            return;
        };
        if event.is_writable() {
            connection.flush();
        }
        let ends = event.is_read_closed() || event.is_error();
        if ends {
            connection.hang_up();
        }
        if (event.is_readable() || ends) && connection.readiness.notify() {
            self.readable.push(connection.clone());
        }
    }

    fn take_notes(&mut self) -> std::ops::ControlFlow<()> {
        while let Ok(note) = self.notes.try_recv() {
            match note {
                Note::Closed(connection) => self.forget(&connection),
                Note::Watch(connection) => self.watch(&connection, Instant::now()),
                Note::StopAccepting => {
                    self.accept_at = None;
                    if let Some(mut listener) = self.listener.take() {
                        let _ = self.poll.registry().deregister(&mut listener);
                    }
                }
                Note::Stop => return std::ops::ControlFlow::Break(()),
            }
        }
        std::ops::ControlFlow::Continue(())
    }

    fn forget(&mut self, connection: &Arc<Connection>) {
        if let Some(deadline) = self.deadline_of.remove(&connection.id) {
            self.deadlines.remove(&(deadline, connection.id));
        }
        let Token(slot) = connection.token;
        let is_it = |held: &Arc<Connection>| Arc::ptr_eq(held, connection);
        if !self.registry.get(slot).is_some_and(is_it) {
            return;
        }
        self.registry.remove(slot);
        let ip = connection.peer.ip();
        if let Some(count) = self.per_address.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                self.per_address.remove(&ip);
            }
        }
    }

    fn watch(&mut self, connection: &Arc<Connection>, now: Instant) {
        if let Some(deadline) = connection.check_deadlines(now) {
            self.deadlines.insert((deadline, connection.id), connection.clone());
            self.deadline_of.insert(connection.id, deadline);
        }
    }

    fn check_deadlines(&mut self, now: Instant) {
        while let Some(first) = self.deadlines.first_entry() {
            if first.key().0 > now {
                break;
            }
            let connection = first.remove();
            self.deadline_of.remove(&connection.id);
            self.watch(&connection, now);
        }
    }

    fn accept(&mut self) {
        static REFUSED: Throttle = Throttle::new();
        self.accept_at = None;
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(listener) = &self.listener else {
                return;
            };
            match listener.accept() {
                Ok((stream, peer)) => {
                    let Err((refusal, why)) = self.admit(stream, peer) else {
                        continue;
                    };
                    self.desk.metrics.refused.at(refusal as usize).add(1);
                    if let Some(hidden) = REFUSED.pass() {
                        warn!("client={peer} refused: {why}{hidden}");
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if is_of_one_client(&e) => {}
                Err(e) => {
                    self.desk.metrics.refused.at(Refusal::System as usize).add(1);
                    if let Some(hidden) = REFUSED.pass() {
                        warn!("cannot accept, trying again in {ACCEPT_PAUSE:?}: {e}{hidden}");
                    }
                    self.accept_at = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
        self.accept_at = Some(Instant::now());
    }

    fn admit(&mut self, stream: TcpStream, peer: SocketAddr) -> Result<(), (Refusal, String)> {
        let AcceptLimits { max_connections, max_connections_per_address, keepalive } = self.limits;
        if self.registry.len() >= max_connections {
            let why = format!("max_connections {max_connections} are open");
            return Err((Refusal::MaxConnections, why));
        }
        let same_address = self.per_address.get(&peer.ip()).copied().unwrap_or(0);
        if same_address >= max_connections_per_address {
            let most = max_connections_per_address;
            let why = format!("max_connections_per_address {most} are open from there");
            return Err((Refusal::MaxPerAddress, why));
        }
        let socket = SockRef::from(&stream);
        let keepalive = TcpKeepalive::new().with_time(keepalive).with_interval(keepalive / 6);
        socket
            .set_tcp_nodelay(true)
            .and_then(|()| socket.set_tcp_keepalive(&keepalive))
            .and_then(|()| self.register(stream, peer))
            .map_err(|e| (Refusal::System, e.to_string()))?;
        self.desk.metrics.accepted.add(1);
        *self.per_address.entry(peer.ip()).or_default() += 1;
        Ok(())
    }

    fn register(&mut self, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        let slot = self.registry.vacant_entry();
        let token = Token(slot.key());
        let connection = Connection::new(self.next_id, peer, token, stream, self.desk.clone());
        connection.watch_socket()?;
        self.next_id += 1;
        slot.insert(Arc::new(connection));
        Ok(())
    }
}

/// Errors of accept(2) that tell of the client that was to be accepted, not of this host.
fn is_of_one_client(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted
    )
}

/// A listener at `addr` with a backlog for all clients of a region that come back at once.
pub fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(16_384)?;
    Ok(TcpListener::from_std(socket.into()))
}
