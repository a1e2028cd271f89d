//! Thread `accept`: the listeners, and every client that no worker is reading.
//!
//! ```text
//! poll ─┬─ listener ─▶ accept until it would block ─▶ registry (token -> connection)
//!       ├─ readable ─▶ connection.notify ─▶ queue, where workers read
//!       ├─ writable ─▶ connection.flush
//!       ├─ waker ────▶ notes: closed, watch, readable, overfull, life, limits, beat, stop
//!       └─ time ─────▶ deadlines of unfinished frames and unsent answers; clients that hold most; accept
//!                      again; what `life` has due; a stop
//! ```
//! The thread blocks only in poll. It registers a connection once, edge-triggered, for both directions. The
//! registration ends with the descriptor, when the last query of the connection is answered. Tokens are reused, so an
//! event may be for an earlier connection; a worker then finds nothing to read.

use std::cmp::Reverse;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
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

use super::connection::{CloseReason, Connection};
use super::deadlines::Deadlines;
use super::host;
use super::hosts::Hosts;
use super::hub::ClientHub;
use super::listener::{HANDSHAKES, Listener};
use super::note::{ConnectionKey, Note, StopBy};
use super::stop::{Goodbyes, Stop};
use crate::config::{AcceptLimits, ClientLimits};
use crate::logging::Throttle;
use crate::metrics::Refusal;
use crate::process::life::Life;
use crate::wire::host_port::HostPortFields;
use crate::work::job::{Job, Jobs};

/// Token of all listeners: an event says that a client waits to be accepted at one of them.
const LISTENER: Token = Token(usize::MAX);
/// Token of the waker that the [`ClientHub`] holds.
pub const WAKER: Token = Token(usize::MAX - 1);

/// Pause after the system refused a connection because it has no descriptors or memory left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accept at most this many clients before connected clients have their turn again.
const ACCEPTS_PER_TURN: usize = 256;

/// Close at most this many idle clients at once, ten times a second. They go to other proxies, for which ten thousand
/// in one instant would be a burden.
const LEAVES_PER_TICK: usize = 100;

/// While clients hold too many bytes, check this often.
const OVERFULL_TICK: Duration = Duration::from_millis(100);
/// When clients together hold more bytes than they may, close those that have taken nothing for this long. A process
/// can stop for this long to collect garbage.
const STALLED: Duration = Duration::from_secs(5);
/// When clients hold twice as many bytes as they may, close those that have taken nothing for this long.
const STALLED_AT_WORST: Duration = Duration::from_secs(1);

/// During a stop, check this often whether clients have left.
const STOP_TICK: Duration = Duration::from_millis(10);

pub struct Acceptor {
    poll: Poll,
    /// Empty once all are closed.
    listeners: Vec<Listener>,
    /// When the listeners close; until then they accept no new handshakes.
    closes_at: Option<Instant>,
    limits: AcceptLimits,
    client_limits: Arc<ClientLimits>,
    life: Arc<Life>,
    /// When to look what `life` has due.
    life_at: Option<Instant>,
    /// Called once, when a drain has nothing to wait for any more.
    on_drained: Option<Box<dyn FnOnce() + Send>>,
    hub: Arc<ClientHub>,
    notes: Receiver<Note>,
    jobs: Arc<Jobs>,
    registry: Slab<Arc<Connection>>,
    hosts: Hosts,
    deadlines: Deadlines<ConnectionKey>,
    /// Connections to put in the queue.
    readable: Vec<Arc<Connection>>,
    /// When to accept again: at once after an event, later after an error.
    accept_at: Option<Instant>,
    /// When to close clients that take nothing, because clients hold too many bytes.
    overfull_at: Option<Instant>,
    goodbyes: Goodbyes,
    stop: Option<Stop>,
    /// When to look what a stop still waits for.
    stop_at: Option<Instant>,
    next_id: u64,
}

pub struct Parts {
    /// The poll of the hub's waker.
    pub poll: Poll,
    pub listeners: Vec<Listener>,
    pub limits: AcceptLimits,
    pub client_limits: Arc<ClientLimits>,
    /// Decides which clients stay.
    pub life: Arc<Life>,
    /// Called when a drain has nothing to wait for any more.
    pub on_drained: Box<dyn FnOnce() + Send>,
    pub hub: Arc<ClientHub>,
    /// Notes that the hub sends.
    pub notes: Receiver<Note>,
    /// Where workers read.
    pub jobs: Arc<Jobs>,
}

impl Acceptor {
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
            on_drained: Some(parts.on_drained),
            hosts: Hosts::new(parts.hub.sums().clone()),
            hub: parts.hub,
            notes: parts.notes,
            jobs: parts.jobs,
            registry: Slab::new(),
            deadlines: Deadlines::default(),
            readable: Vec::new(),
            accept_at: None,
            overfull_at: None,
            goodbyes: Goodbyes::default(),
            stop: None,
            stop_at: None,
            next_id: 1,
        })
    }

    /// Runs until a stop is over.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            if let Err(e) = self.poll.poll(&mut events, self.timeout())
                && e.kind() != ErrorKind::Interrupted
            {
                return Err(e);
            }
            let now = Instant::now();
            for event in &events {
                match event.token() {
                    // The pause after an error must end first: each waiting client makes an event.
                    LISTENER => _ = self.accept_at.get_or_insert(now),
                    WAKER => {}
                    Token(slot) => self.client_event(slot, event, now),
                }
            }
            self.take_notes(now);
            if !self.readable.is_empty() {
                let readable = self.readable.drain(..);
                self.jobs.arrive(readable.map(|connection| (connection.host(), connection)));
                // On busy processors, the workers that read and answer these clients run first. Meanwhile more clients
                // become readable, and the next poll reports all of them.
                thread::yield_now();
            }
            let now = Instant::now();
            self.check_deadlines(now);
            if self.accept_at.is_some_and(|at| at <= now) {
                self.accept();
            }
            if self.life_at.is_some_and(|at| at <= now) {
                self.follow_life(now);
            }
            if self.overfull_at.is_some_and(|at| at <= now) {
                self.make_room(now);
            }
            if self.follow_stop(now).is_break() {
                return Ok(());
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let times = [
            self.deadlines.first(),
            self.accept_at,
            self.life_at,
            self.overfull_at,
            self.stop_at,
            self.goodbyes.first(),
        ];
        let next = times.into_iter().flatten().min()?;
        // Poll counts in milliseconds and rounds down. Without one more, the loop would spin through the last.
        let left = next.saturating_duration_since(Instant::now());
        Some(if left.is_zero() { left } else { left + Duration::from_millis(1) })
    }

    fn client_event(&mut self, slot: usize, event: &Event, now: Instant) {
        let Some(connection) = self.registry.get(slot) else {
            return;
        };
        if event.is_writable() {
            connection.flush();
        }
        let ends = event.is_read_closed() || event.is_error();
        if ends {
            connection.mark_eof_signalled();
        }
        if !event.is_readable() && !ends {
            return;
        }
        if !self.goodbyes.hear(connection) && self.stop.is_none() && connection.notify(now) {
            self.readable.push(connection.clone());
        }
    }

    fn take_notes(&mut self, now: Instant) {
        while let Ok(note) = self.notes.try_recv() {
            match note {
                Note::Closed(key) => self.forget(key),
                Note::Watch(key) => self.watch(key, now),
                Note::Readable(key) => self.readable.extend(self.find(key).cloned()),
                Note::Overfull => self.overfull_at = Some(now),
                Note::Life => self.life_at = Some(now),
                Note::Limits(limits, client_limits) => {
                    (self.limits, self.client_limits) = (limits, client_limits);
                }
                Note::Beat(heard) => self.jobs.send(Job::Beat(heard)),
                Note::Stop(by) => self.begin_stop(by, now),
            }
        }
    }

    fn find(&self, key: ConnectionKey) -> Option<&Arc<Connection>> {
        self.registry.get(key.slot).filter(|connection| connection.id == key.id)
    }

    /// Does what `life` has due: closes listeners, lets idle clients go, ends a drain.
    fn follow_life(&mut self, now: Instant) {
        if self.stop.is_some() {
            self.life_at = None;
            return;
        }
        let due = self.life.due(now);
        self.life_at = due.next;
        if !due.accepts {
            self.stop_listening(now);
        }
        if let Some(age) = due.leave_at_age {
            let leaving = self.registry.iter().filter(|(_, connection)| connection.leave(age));
            for (_, connection) in leaving.take(LEAVES_PER_TICK) {
                self.goodbyes.say(connection, now);
            }
        }
        let is_deserted = !due.accepts && self.listeners.is_empty() && self.registry.is_empty();
        if (is_deserted || due.is_over)
            && let Some(on_drained) = self.on_drained.take()
        {
            match self.registry.len() {
                0 => info!("all clients have left"),
                left => info!("the grace time is over, {left} clients are left"),
            }
            on_drained();
        }
    }

    /// Closes the listeners. If another process listens at the same address, new clients go there and none is refused.
    fn stop_listening(&mut self, now: Instant) {
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
        info!("no longer listening, {} clients are connected", self.registry.len());
    }

    fn close_listeners(&mut self, which: impl Fn(&Listener) -> bool) {
        for mut listener in self.listeners.extract_if(.., |listener| which(listener)) {
            // Deregistering fails only for a socket that is not registered.
            let _ = self.poll.registry().deregister(&mut listener.socket);
        }
        if self.listeners.is_empty() {
            self.accept_at = None;
        }
    }

    fn forget(&mut self, key: ConnectionKey) {
        self.deadlines.set(key, None);
        self.goodbyes.forget(key);
        if self.find(key).is_none() {
            return;
        }
        let connection = self.registry.remove(key.slot);
        if self.registry.is_empty() && self.listeners.is_empty() {
            self.life_at = Some(Instant::now());
        }
        self.hosts.disconnected(connection.host());
    }

    // ---- clients that hold too much

    /// Closes clients that take nothing, the one with the most bytes first, until all clients together hold no more
    /// than they may.
    fn make_room(&mut self, now: Instant) {
        self.overfull_at = None;
        self.hub.overfull_seen();
        let max_bytes = self.client_limits.max_unread_total_bytes;
        let sums = self.hub.sums().clone();
        if sums.held_bytes() <= max_bytes {
            return;
        }
        self.overfull_at = Some(now + OVERFULL_TICK);
        let patience = match sums.held_bytes() / 2 > max_bytes {
            true => STALLED_AT_WORST,
            false => STALLED,
        };
        let is_stalled = |connection: &Arc<Connection>| {
            connection.stalled_since().is_some_and(|since| now >= since + patience)
        };
        let connections = self.registry.iter().map(|(_, connection)| connection);
        let mut stalled: Vec<_> = connections
            .filter(|connection| is_stalled(connection))
            .map(|connection| (connection.held_bytes(), connection))
            .collect();
        stalled.sort_unstable_by_key(|(held_bytes, _)| Reverse(*held_bytes));
        for (held_bytes, connection) in stalled {
            if sums.held_bytes() <= max_bytes {
                break;
            }
            connection.give_up(held_bytes);
        }
    }

    // ---- deadlines

    fn watch(&mut self, key: ConnectionKey, now: Instant) {
        let deadline = self.find(key).and_then(|connection| connection.check_deadlines(now));
        self.deadlines.set(key, deadline);
    }

    fn check_deadlines(&mut self, now: Instant) {
        while let Some(key) = self.deadlines.pop_over(now) {
            self.watch(key, now);
        }
        while let Some(key) = self.goodbyes.pop_over(now) {
            if let Some(connection) = self.find(key) {
                connection.close(CloseReason::Stop);
            }
        }
    }

    // ---- a stop

    /// From now on no client is accepted or read. A second stop only shortens the first.
    fn begin_stop(&mut self, by: StopBy, now: Instant) {
        self.close_listeners(|_| true);
        self.hub.stop_reading();
        let (count, pending) = (self.registry.len(), self.hub.sums().pending());
        match &mut self.stop {
            Some(stop) => stop.hasten(by),
            None => {
                info!("stopping: {count} clients are connected, {pending} queries are under way");
                self.stop = Some(Stop::new(by));
            }
        }
        self.stop_at = Some(now);
    }

    /// Breaks when a stop has nothing to wait for any more: all clients have left.
    fn follow_stop(&mut self, now: Instant) -> ControlFlow<()> {
        let Some(stop) = &mut self.stop else {
            return ControlFlow::Continue(());
        };
        if self.stop_at.is_some_and(|at| at <= now) {
            self.stop_at = Some(now + STOP_TICK);
            for (_, connection) in &self.registry {
                stop.look_after(connection, &mut self.goodbyes, now);
            }
        }
        if !self.registry.is_empty() {
            return ControlFlow::Continue(());
        }
        stop.log_end();
        ControlFlow::Break(())
    }

    // ---- new clients

    fn accept(&mut self) {
        self.accept_at = None;
        for n in 0..self.listeners.len() {
            let next_at = self.accept_from(n);
            self.accept_at = [self.accept_at, next_at].into_iter().flatten().min();
        }
    }

    /// Returns when to try the listener again without an event.
    fn accept_from(&mut self, n: usize) -> Option<Instant> {
        static REFUSED: Throttle = Throttle::new();
        for _ in 0..ACCEPTS_PER_TURN {
            let listener = &self.listeners[n];
            let host_port_fields = listener.host_port_fields;
            match listener.socket.accept() {
                Ok((stream, peer)) => {
                    let peer = host::canonical(peer);
                    let Err((refusal, why)) = self.admit(stream, peer, host_port_fields) else {
                        continue;
                    };
                    self.hub.metrics.refused.at(refusal).add(1);
                    if let Some(hidden) = REFUSED.pass() {
                        warn!("client={peer} refused: {why}{hidden}");
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
                Err(e) if is_of_one_client(&e) => {}
                Err(e) => {
                    self.hub.metrics.refused.at(Refusal::System).add(1);
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
        let host_ip = host::host_of(peer.ip());
        if self.hosts.connections(host_ip) >= max_connections_per_address {
            let most = max_connections_per_address;
            let why = format!("max_connections_per_address {most} are open from there");
            return Err((Refusal::MaxPerAddress, why));
        }
        let socket = SockRef::from(&stream);
        let keepalive = TcpKeepalive::new().with_time(keepalive).with_interval(keepalive / 6);
        socket
            .set_tcp_nodelay(true)
            .and_then(|()| socket.set_tcp_keepalive(&keepalive))
            .and_then(|()| self.register(stream, peer, host_ip, host_port_fields))
            .map_err(|e| (Refusal::System, e.to_string()))?;
        self.hub.metrics.accepted.add(1);
        Ok(())
    }

    fn register(
        &mut self,
        stream: TcpStream,
        peer: SocketAddr,
        host_ip: IpAddr,
        host_port_fields: HostPortFields,
    ) -> io::Result<()> {
        let share = self.hosts.share(host_ip);
        let slot = self.registry.vacant_entry();
        let key = ConnectionKey { slot: slot.key(), id: self.next_id };
        let (hub, limits) = (self.hub.clone(), self.client_limits.clone());
        let connection = Connection::new(key, peer, stream, host_port_fields, share, hub, limits);
        connection.watch_socket()?;
        self.next_id += 1;
        slot.insert(Arc::new(connection));
        self.hosts.connected(host_ip);
        Ok(())
    }
}

/// Errors of accept(2) that are about the client, not about this host.
fn is_of_one_client(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted
    )
}
