//! Thread `accept`: the listeners, and every client that no worker is reading.
//!
//! ```text
//! poll ─┬─ listener ─▶ accept until it would block ─▶ registry (token -> connection)
//!       ├─ readable ─▶ readiness.notify ─▶ lobby, where workers read
//!       ├─ writable ─▶ connection.flush
//!       ├─ waker ────▶ notes: closed, watch, overfull, life, limits, beat, stop
//!       └─ time ─────▶ deadlines of half frames and of answers not taken; accept again; what `life` has due
//! ```
//! It never blocks but in poll. A connection is registered once, edge-triggered, for both directions;
//! its registration ends with its descriptor, when the last query that holds it is answered. An event of
//! an earlier holder of a token only makes a worker find nothing to read.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use log::{info, warn};
use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;
use socket2::{SockRef, TcpKeepalive};

use super::connection::{CloseReason, Connection, Desk, Note};
use super::listener::{HANDSHAKES, Listener};
use crate::config::{AcceptLimits, ClientLimits};
use crate::logging::Throttle;
use crate::metrics::Refusal;
use crate::process::life::Life;
use crate::wire::host_port::HostPortFields;
use crate::work::lobby::Lobby;

/// Token of all listeners: an event says that one of them has somebody to accept.
const LISTENER: Token = Token(usize::MAX);
/// Token of the waker that the [`Desk`] holds.
pub const WAKER: Token = Token(usize::MAX - 1);

/// Pause after the system refused a connection for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts between two looks at the clients that are connected already.
const ACCEPTS_PER_TURN: usize = 256;

/// Idle clients that are let go at once, ten times a second. Other proxies take them: ten thousand that came in one
/// instant would be a burden.
const LEAVES_PER_TICK: usize = 100;

/// The state of the thread.
pub struct Acceptor {
    poll: Poll,
    /// Empty once they are closed.
    listeners: Vec<Listener>,
    /// The listeners take no new connections, and close then.
    closes_at: Option<Instant>,
    limits: AcceptLimits,
    client_limits: Arc<ClientLimits>,
    life: Arc<Life>,
    /// Look what is due, then.
    life_at: Option<Instant>,
    /// Says, once, that a stop has nothing to wait for any more.
    tell_over: Option<Box<dyn FnOnce() + Send>>,
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
    /// A listener has more to accept, from then on.
    accept_at: Option<Instant>,
    next_id: u64,
}

/// What the thread needs from others.
pub struct Parts {
    /// That of the desk's waker.
    pub poll: Poll,
    /// Where clients come in.
    pub listeners: Vec<Listener>,
    /// Who may connect.
    pub limits: AcceptLimits,
    /// What each of them may use.
    pub client_limits: Arc<ClientLimits>,
    /// Who may stay.
    pub life: Arc<Life>,
    /// Called when a stop has nothing to wait for any more.
    pub tell_over: Box<dyn FnOnce() + Send>,
    /// What connections share.
    pub desk: Arc<Desk>,
    /// The desk's notes.
    pub notes: Receiver<Note>,
    /// Where workers read.
    pub lobby: Arc<Lobby>,
}

impl Acceptor {
    /// Of these parts.
    pub fn new(mut parts: Parts) -> io::Result<Self> {
        let registry = parts.poll.registry();
        for listener in &mut parts.listeners {
            registry.register(&mut listener.socket, LISTENER, Interest::READABLE)?;
        }
        Ok(Acceptor {
            poll: parts.poll,
            listeners: parts.listeners,
            closes_at: None,
            limits: parts.limits,
            client_limits: parts.client_limits,
            life: parts.life,
            life_at: None,
            tell_over: Some(parts.tell_over),
            desk: parts.desk,
            notes: parts.notes,
            lobby: parts.lobby,
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
                    // Not before the end of a pause: there is an event for each client that knocks.
                    LISTENER => _ = self.accept_at.get_or_insert_with(Instant::now),
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
            if self.life_at.is_some_and(|at| at <= now) {
                self.follow_life(now);
            }
        }
        for connection in self.registry.drain() {
            connection.close(CloseReason::Stop);
        }
        Ok(())
    }

    fn timeout(&self) -> Option<Duration> {
        let deadline = self.deadlines.keys().next().map(|(at, _)| *at);
        let next = [deadline, self.accept_at, self.life_at].into_iter().flatten().min()?;
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
                Note::Overfull(max_bytes) => self.make_room(max_bytes),
                Note::Life => self.life_at = Some(Instant::now()),
                Note::Limits(limits, client_limits) => {
                    (self.limits, self.client_limits) = (limits, client_limits);
                }
                Note::Beat(heard) => self.lobby.beat(heard),
                Note::StopAccepting => self.close_listeners(|_| true),
                Note::Stop => return std::ops::ControlFlow::Break(()),
            }
        }
        std::ops::ControlFlow::Continue(())
    }

    /// Does what is due at this point of the proxy's life.
    fn follow_life(&mut self, now: Instant) {
        let due = self.life.due(now);
        self.life_at = due.next;
        if !due.accepts {
            self.hand_over(now);
        }
        if let Some(age) = due.leave_at_age {
            let leaving = self.registry.iter().filter(|(_, connection)| connection.leave(age));
            leaving.take(LEAVES_PER_TICK).for_each(drop);
        }
        let is_deserted = !due.accepts && self.listeners.is_empty() && self.registry.is_empty();
        if (is_deserted || due.is_over)
            && let Some(tell_over) = self.tell_over.take()
        {
            match self.registry.len() {
                0 => info!("all clients have left"),
                left => info!("the grace time is over, {left} clients are left"),
            }
            tell_over();
        }
    }

    /// Closes the listeners so that nobody is refused who can go to another process that listens there.
    fn hand_over(&mut self, now: Instant) {
        if self.listeners.is_empty() {
            return;
        }
        let listeners = &self.listeners;
        let closes_at = *self.closes_at.get_or_insert_with(|| {
            let filtered = listeners.iter().filter(|listener| listener.turn_newcomers_away());
            now + if filtered.count() > 0 { HANDSHAKES } else { Duration::ZERO }
        });
        if now < closes_at {
            self.life_at = self.life_at.map_or(Some(closes_at), |at| Some(at.min(closes_at)));
            return;
        }
        self.close_listeners(|listener| listener.is_lent);
        self.accept_at = Some(now);
        while self.accept_at.is_some_and(|at| at <= Instant::now()) {
            self.accept();
        }
        self.close_listeners(|_| true);
        info!("listening no more, {} clients are connected", self.registry.len());
    }

    fn close_listeners(&mut self, which: impl Fn(&Listener) -> bool) {
        for mut listener in self.listeners.extract_if(.., |listener| which(listener)) {
            // It fails only for what is not registered.
            let _ = self.poll.registry().deregister(&mut listener.socket);
        }
        if self.listeners.is_empty() {
            self.accept_at = None;
        }
    }

    fn forget(&mut self, connection: &Arc<Connection>) {
        self.unwatch(connection);
        let Token(slot) = connection.token;
        let is_it = |held: &Arc<Connection>| Arc::ptr_eq(held, connection);
        if !self.registry.get(slot).is_some_and(is_it) {
            return;
        }
        self.registry.remove(slot);
        if self.registry.is_empty() && self.listeners.is_empty() {
            self.life_at = Some(Instant::now());
        }
        let ip = connection.peer.ip();
        if let Some(count) = self.per_address.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                self.per_address.remove(&ip);
            }
        }
    }

    /// Closes those that hold most, until all together hold half of what they may: so this is seldom.
    fn make_room(&self, max_bytes: usize) {
        if !self.desk.is_overfull(max_bytes) {
            return;
        }
        let connections = self.registry.iter().map(|(_, connection)| connection);
        let mut holders: Vec<_> =
            connections.map(|connection| (connection.held(), connection)).collect();
        holders.sort_unstable_by_key(|(held, _)| Reverse(*held));
        // Not by the sum as it changes meanwhile: who begins to hold now must not cost those that hold little.
        let mut left: usize = holders.iter().map(|(held, _)| held).sum();
        for (held, connection) in holders {
            if left <= max_bytes / 2 {
                break;
            }
            connection.give_up(held);
            left -= held;
        }
    }

    fn watch(&mut self, connection: &Arc<Connection>, now: Instant) {
        self.unwatch(connection);
        if let Some(deadline) = connection.check_deadlines(now) {
            self.deadlines.insert((deadline, connection.id), connection.clone());
            self.deadline_of.insert(connection.id, deadline);
        }
    }

    fn unwatch(&mut self, connection: &Arc<Connection>) {
        if let Some(deadline) = self.deadline_of.remove(&connection.id) {
            self.deadlines.remove(&(deadline, connection.id));
        }
    }

    fn check_deadlines(&mut self, now: Instant) {
        while let Some(((deadline, _), connection)) = self.deadlines.first_key_value() {
            if *deadline > now {
                break;
            }
            let connection = connection.clone();
            self.watch(&connection, now);
        }
    }

    fn accept(&mut self) {
        self.accept_at = None;
        for n in 0..self.listeners.len() {
            let next_at = self.accept_from(n);
            self.accept_at = [self.accept_at, next_at].into_iter().flatten().min();
        }
    }

    /// Returns when the listener is to be tried again without an event.
    fn accept_from(&mut self, n: usize) -> Option<Instant> {
        static REFUSED: Throttle = Throttle::new();
        for _ in 0..ACCEPTS_PER_TURN {
            let listener = &self.listeners[n];
            let host_port_fields = listener.host_port_fields;
            match listener.socket.accept() {
                Ok((stream, peer)) => {
                    let Err((refusal, why)) = self.admit(stream, peer, host_port_fields) else {
                        continue;
                    };
                    self.desk.metrics.refused.at(refusal).add(1);
                    if let Some(hidden) = REFUSED.pass() {
                        warn!("client={peer} refused: {why}{hidden}");
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
                Err(e) if is_of_one_client(&e) => {}
                Err(e) => {
                    self.desk.metrics.refused.at(Refusal::System).add(1);
                    if let Some(hidden) = REFUSED.pass() {
                        warn!("cannot accept, trying again in {ACCEPT_PAUSE:?}: {e}{hidden}");
                    }
                    return Some(Instant::now() + ACCEPT_PAUSE);
                }
            }
        }
        Some(Instant::now())
    }

    fn admit(
        &mut self,
        stream: TcpStream,
        peer: SocketAddr,
        host_port_fields: HostPortFields,
    ) -> Result<(), (Refusal, String)> {
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
            .and_then(|()| self.register(stream, peer, host_port_fields))
            .map_err(|e| (Refusal::System, e.to_string()))?;
        self.desk.metrics.accepted.add(1);
        *self.per_address.entry(peer.ip()).or_default() += 1;
        Ok(())
    }

    fn register(
        &mut self,
        stream: TcpStream,
        peer: SocketAddr,
        host_port_fields: HostPortFields,
    ) -> io::Result<()> {
        let slot = self.registry.vacant_entry();
        let token = Token(slot.key());
        let (desk, limits) = (self.desk.clone(), self.client_limits.clone());
        let id = self.next_id;
        let connection = Connection::new(id, peer, token, stream, host_port_fields, desk, limits);
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
