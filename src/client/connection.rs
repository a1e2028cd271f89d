//! One client: its address, its turns of reading, its queries under way, its close. `sending` writes its answers.
//!
//! ```text
//! edge ─▶ notify ─▶ queue ─▶ drain: one read ─▶ frames ─▶ end_turn ─┬─ there may be more: the end of the queue
//!                     ▲        └─ too much is unsent: paused          └─ nothing left: accept waits for an edge
//!                     └── flush, send: enough is taken ◀──┘
//! ```
//! `accept` owns the connection; the worker that reads it and each query under way hold it too. Its socket never
//! blocks: a worker reads what is there, writes what the kernel takes, and leaves the rest to `accept`. The locks are
//! per connection. No lock is held during a system call, but for the non-blocking write of answers, which is a copy.

use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::time::{Duration, Instant};

use log::{debug, warn};
use mio::Token;
use mio::net::TcpStream;
use parking_lot::Mutex;

pub use super::close_reason::CloseReason;
use super::deadlines::{Wait, Waits};
use super::hub::ClientHub;
use super::inbox::{Half, Inbox};
use super::note::{ConnectionKey, Note};
use super::outbox::Outbox;
use super::readiness::Readiness;
use super::share::HostShare;
use super::unsent::Unsent;
use super::usage::Use;
use crate::config::ClientLimits;
use crate::logging::Throttle;
use crate::metrics::{Closed, Metrics, Reason, Shed};
use crate::wire::frame::{Frame, Malformed};
use crate::wire::host_port::HostPortFields;

/// Bytes of one turn: some 16 queries, which take some 50 µs. Then the client goes to the end of the queue: with 300
/// clients that always have more to read, each has its turn within 20 ms.
const TURN_BYTES: usize = 2 * 1024;

/// Keep a frame that has at most this many bytes so far, even if its host holds more bytes than it may.
const SMALL_BYTES: usize = 8 * 1024;

/// After the goodbye, discard at most this many reads at once.
const TURNS_TO_DISCARD: usize = 8;

/// A client is quick if its next query comes within this time of the answer. The time includes waking `accept` and a
/// worker.
const QUICK_US: u64 = 150;
/// A worker lingers at a client that was quick this many times in a row.
const QUICK_STREAK: u8 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There was nothing to read.
    Empty,
    /// Nothing is left to read.
    Drained,
    /// There may be more to read, but other clients have their turn.
    More,
    /// The proxy does not read the client until it takes some of its answers.
    Paused,
}

pub struct Connection {
    /// Number of the connection since the start, for the log.
    pub id: u64,
    pub peer: SocketAddr,
    /// Queries and bytes of all connections of this host.
    pub share: Arc<HostShare>,
    /// Decides which worker reads the connection.
    pub readiness: Readiness,
    /// Place in the registry of `accept`.
    token: Token,
    /// Whether answers keep the host_port fields; the port that the client connected to decides.
    pub host_port_fields: HostPortFields,
    pub(super) stream: TcpStream,
    pub(super) hub: Arc<ClientHub>,
    /// Limits at the time when the client was accepted.
    pub(super) limits: Arc<ClientLimits>,
    accepted_at_ms: u64,
    /// When `accept` noticed the bytes of the next turn, us of the hub's clock.
    noticed_at_us: AtomicU64,
    /// Whether the client has connected or sent a query since the last call of [`Connection::leave`].
    has_asked: AtomicBool,
    /// Only the worker that RUNNING names touches it.
    inbox: Mutex<Inbox>,
    /// Bytes of it that are counted as held.
    inbox_bytes: AtomicUsize,
    /// When the unfinished frame began, ms of the hub's clock; 0: there is none.
    half_frame_since_ms: AtomicU64,
    pub(super) outbox: Mutex<Outbox>,
    /// Bytes of it that are counted as held.
    pub(super) outbox_bytes: AtomicUsize,
    /// Whether anything waits in `outbox`.
    pub(super) unsent: Unsent,
    pending: AtomicU32,
    /// When a worker last answered a query that it had read itself, us of the hub's clock.
    served_at_us: AtomicU64,
    quick_streak: AtomicU8,
    /// The table of the last query, for `Usage`.
    last_use: Mutex<Option<Arc<Use>>>,
    /// The deadline that `accept` has for the connection, ms of the hub's clock; 0: none.
    watched_until_ms: AtomicU64,
    /// epoll has reported the end of the client's bytes; the socket may still have bytes before the end.
    eof_signalled: AtomicBool,
    /// A worker has read the client's bytes to their end.
    eof_read: AtomicBool,
    closed: AtomicBool,
}

impl Connection {
    /// `stream` is accepted and non-blocking; `key` is its place in the registry of `accept`.
    pub fn new(
        key: ConnectionKey,
        peer: SocketAddr,
        stream: TcpStream,
        host_port_fields: HostPortFields,
        share: Arc<HostShare>,
        hub: Arc<ClientHub>,
        limits: Arc<ClientLimits>,
    ) -> Self {
        Connection {
            id: key.id,
            peer,
            share,
            readiness: Readiness::default(),
            token: Token(key.slot),
            host_port_fields,
            stream,
            accepted_at_ms: hub.now_ms(),
            hub,
            limits,
            noticed_at_us: AtomicU64::new(0),
            has_asked: AtomicBool::new(true),
            inbox: Mutex::default(),
            inbox_bytes: AtomicUsize::new(0),
            half_frame_since_ms: AtomicU64::new(0),
            outbox: Mutex::default(),
            outbox_bytes: AtomicUsize::new(0),
            unsent: Unsent::default(),
            pending: AtomicU32::new(0),
            served_at_us: AtomicU64::new(0),
            quick_streak: AtomicU8::new(0),
            last_use: Mutex::new(None),
            watched_until_ms: AtomicU64::new(0),
            eof_signalled: AtomicBool::new(false),
            eof_read: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        }
    }

    /// Names the connection in notes.
    pub fn key(&self) -> ConnectionKey {
        ConnectionKey { slot: self.token.0, id: self.id }
    }

    /// The host that the connection counts for.
    pub fn host(&self) -> IpAddr {
        self.share.host
    }

    pub fn metrics(&self) -> &Metrics {
        &self.hub.metrics
    }

    /// Records that the client has used a table.
    pub fn record_use(&self, table: &str, now: Instant) {
        self.hub.usage.add(&self.last_use, self.peer.ip(), table, now);
    }

    // ---- turns of reading

    /// The socket is readable, as `accept` noticed at `now`. True: the caller must put the connection in the queue.
    pub fn notify(&self, now: Instant) -> bool {
        let is_queued = self.readiness.notify();
        if is_queued {
            self.set_noticed(now);
        }
        is_queued
    }

    /// A worker takes the connection without the queue. False: another worker has it, or will have it.
    pub fn resume(&self, now: Instant) -> bool {
        let is_taken = !self.hub.is_stopping() && self.readiness.resume();
        if is_taken {
            self.set_noticed(now);
        }
        is_taken
    }

    /// Only the thread that puts the connection in the queue, or reads it, may call this.
    pub(super) fn set_noticed(&self, now: Instant) {
        self.noticed_at_us.store(self.hub.us(now), Relaxed);
    }

    /// When `accept` noticed the bytes of this turn: the deadlines of their queries count from there. Only the worker
    /// that reads may call this.
    pub fn noticed_at(&self) -> Instant {
        self.hub.epoch() + Duration::from_micros(self.noticed_at_us.load(Relaxed))
    }

    /// Reads once and gives each whole frame to `on_frame`. `scratch` belongs to the worker: the connection keeps only
    /// an unfinished frame, and an idle connection keeps nothing. The caller sends its own replies, then calls
    /// [`Connection::end_turn`].
    pub fn drain(
        self: &Arc<Self>,
        scratch: &mut Vec<u8>,
        on_frame: impl FnMut(Frame<'_>) -> Result<(), Malformed>,
    ) -> Turn {
        if self.is_closed() {
            return Turn::Drained;
        }
        if self.pause_if_overfull() {
            return Turn::Paused;
        }
        scratch.resize(TURN_BYTES, 0);
        let read = loop {
            match (&self.stream).read(scratch) {
                Ok(0) => {
                    self.eof_read.store(true, SeqCst);
                    return Turn::Drained;
                }
                Ok(n) => break n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Turn::Empty,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    self.close(CloseReason::Io(e));
                    return Turn::Drained;
                }
            }
        };
        // Do not hold the lock: handling a frame takes other locks.
        let mut inbox = std::mem::take(&mut *self.inbox.lock());
        let half = match inbox.feed(&scratch[..read], self.limits.max_frame_bytes, on_frame) {
            Ok(half) => half,
            Err(malformed) => {
                self.close(CloseReason::Malformed(malformed));
                return Turn::Drained;
            }
        };
        self.share.set_held(&self.inbox_bytes, inbox.held_bytes());
        *self.inbox.lock() = inbox;
        self.watch_half_frame(half);
        // A short read means that the socket is empty (epoll(7)), unless the client has closed: no other edge would
        // report that.
        match read == TURN_BYTES || self.eof_signalled.load(SeqCst) {
            true => Turn::More,
            false => Turn::Drained,
        }
    }

    /// Gives the connection back after its turn. True: the caller must put it at the end of the queue.
    #[must_use]
    pub fn end_turn(&self, turn: Turn) -> bool {
        let is_again = match turn {
            Turn::Paused => false,
            Turn::More if !self.hub.is_stopping() && !self.is_closed() => {
                self.readiness.requeue();
                true
            }
            Turn::More | Turn::Drained | Turn::Empty => self.readiness.end(),
        };
        if is_again {
            self.set_noticed(Instant::now());
        }
        is_again
    }

    fn watch_half_frame(self: &Arc<Self>, half: Half) {
        match half {
            Half::None => return self.half_frame_since_ms.store(0, SeqCst),
            // The deadline counts from the first byte of a frame, however slowly the other bytes come.
            Half::New => self.restart_half_frame(self.hub.now_ms()),
            Half::Same => {}
        }
        // The proxy cannot drop an unfinished frame and keep the connection. Real frames are short.
        let held_bytes = self.inbox_bytes.load(SeqCst);
        if held_bytes > SMALL_BYTES && self.share.is_host_full(&self.limits) {
            return self.give_up(held_bytes);
        }
        self.hub.check_held(self.limits.max_unread_total_bytes);
    }

    fn restart_half_frame(self: &Arc<Self>, now_ms: u64) {
        self.half_frame_since_ms.store(now_ms, SeqCst);
        self.watch(now_ms, self.limits.frame_timeout);
    }

    /// Restarts the deadline of an unfinished frame: the client could not finish it while the proxy did not read.
    pub(super) fn forgive_half_frame(self: &Arc<Self>) {
        if self.half_frame_since_ms.load(SeqCst) != 0 {
            self.restart_half_frame(self.hub.now_ms());
        }
    }

    /// Records that epoll has reported the end of the client's bytes: a worker must read to the end.
    pub fn mark_eof_signalled(&self) {
        self.eof_signalled.store(true, SeqCst);
    }

    // ---- deadlines

    /// Asks `accept` to check the connection at this deadline, unless it checks earlier anyway.
    pub(super) fn watch(self: &Arc<Self>, since_ms: u64, timeout: Duration) {
        let until_ms = since_ms + timeout.as_millis() as u64;
        let is_nearer = |watched_ms| (watched_ms == 0 || until_ms < watched_ms).then_some(until_ms);
        if self.watched_until_ms.fetch_update(SeqCst, SeqCst, is_nearer).is_ok() {
            self.hub.tell(Note::Watch(self.key()));
        }
    }

    /// Closes the connection if a deadline is over. Otherwise returns the next deadline, at which `accept` must check
    /// again.
    pub fn check_deadlines(self: &Arc<Self>, now: Instant) -> Option<Instant> {
        self.watched_until_ms.store(0, SeqCst);
        let half_frame_since_ms = match self.readiness.is_paused() {
            true => 0,
            false => self.half_frame_since_ms.load(SeqCst),
        };
        let waits = Waits { half_frame_since_ms, unsent_since_ms: self.unsent.since_ms() };
        let limits = &self.limits;
        let next_ms =
            match waits.check(limits.frame_timeout, limits.unread_timeout, self.hub.ms(now)) {
                Wait::Until(next_ms) => next_ms,
                Wait::Nothing => return None,
                Wait::HalfFrame => {
                    self.close(CloseReason::HalfFrame);
                    return None;
                }
                Wait::Unread => {
                    self.close(CloseReason::Unread(self.outbox.lock().unread()));
                    return None;
                }
            };
        let is_alone = |watched_ms| (watched_ms == 0).then_some(next_ms);
        let is_listed = self.watched_until_ms.fetch_update(SeqCst, SeqCst, is_alone).is_ok();
        (!self.is_closed() && is_listed).then(|| self.hub.epoch() + Duration::from_millis(next_ms))
    }

    /// Since when the client has taken none of its unsent answers; `None` if there are none.
    pub fn unsent_since(&self) -> Option<Instant> {
        self.hub.instant(self.unsent.since_ms())
    }

    /// Since when the client has neither taken an answer nor finished its frame; `None` if the proxy holds nothing for
    /// it.
    pub fn stalled_since(&self) -> Option<Instant> {
        let half_frame_since = || self.hub.instant(self.half_frame_since_ms.load(SeqCst));
        self.unsent_since().or_else(half_frame_since)
    }

    // ---- queries under way

    /// Counts a query of this weight as under way. False: a limit is reached, and the caller must refuse the query.
    #[must_use]
    pub fn begin_query(&self, weight: u32) -> bool {
        static SHED: Throttle = Throttle::new();
        let limits = &self.limits;
        self.has_asked.store(true, Relaxed);
        let own = self.pending.fetch_add(weight, SeqCst) + weight;
        let begun = match own > limits.max_pending {
            true => Err(Shed::ClientPending),
            false => self.share.begin_query(weight as usize, limits),
        };
        let Err(shed) = begun else {
            return true;
        };
        self.pending.fetch_sub(weight, SeqCst);
        self.metrics().shed.at(shed).add(1);
        if let Some(hidden) = SHED.pass() {
            let (id, peer) = (self.id, self.peer);
            let limit = match shed {
                Shed::ClientPending => "max_pending_per_client",
                Shed::AddressPending => "a quarter of max_pending for one address",
                Shed::Unread => "max_unread_total_bytes, or half of it for one address",
                Shed::Pending | Shed::FailingCluster => "max_pending",
            };
            warn!("conn={id} client={peer}: query refused, limit {limit} reached{hidden}");
        }
        false
    }

    /// Uncounts queries that will never have an answer.
    pub fn end_queries(self: &Arc<Self>, weight: u32) {
        self.answered(weight);
        self.close_if_done();
    }

    pub(super) fn answered(&self, weight: u32) {
        self.share.end_query(weight as usize);
        self.pending.fetch_sub(weight, SeqCst);
    }

    /// Records that the client has its answers, for [`Connection::asks_again_at_once`].
    pub fn mark_served(&self) {
        self.served_at_us.store(self.hub.us(Instant::now()), SeqCst);
    }

    /// Whether this client usually sends its next query as soon as it has its answer. A worker should then look for
    /// that query itself, before it wakes another thread.
    pub fn asks_again_at_once(&self, now: Instant) -> bool {
        let is_quick = self.hub.us(now) < self.served_at_us.load(SeqCst) + QUICK_US;
        let streak = match is_quick {
            true => self.quick_streak.load(SeqCst).saturating_add(1),
            false => 0,
        };
        self.quick_streak.store(streak, SeqCst);
        streak >= QUICK_STREAK
    }

    /// Whether the client has no query under way and no unsent answer.
    pub fn is_quiet(&self) -> bool {
        self.owes_nothing() && self.half_frame_since_ms.load(SeqCst) == 0 && !self.is_closed()
    }

    /// Whether the client has all its answers.
    fn owes_nothing(&self) -> bool {
        self.pending.load(SeqCst) == 0 && self.outbox.lock().unread() == 0
    }

    /// Queries under way, by their weight.
    pub fn pending(&self) -> u32 {
        self.pending.load(SeqCst)
    }

    /// Bytes held for the client, including those shared with other clients.
    pub fn held_bytes(&self) -> usize {
        self.outbox.lock().unread() + self.inbox_bytes.load(SeqCst)
    }

    // ---- the end

    /// Closes the connection if the client has closed its side and has all its answers. A client that only closed its
    /// sending side still gets its answers.
    pub fn close_if_done(self: &Arc<Self>) {
        if self.eof_read.load(SeqCst) && self.owes_nothing() {
            self.close(CloseReason::Peer);
        }
    }

    /// Closes the connection because it holds more bytes than others, and frees these bytes at once.
    pub fn give_up(self: &Arc<Self>, held_bytes: usize) {
        self.close(CloseReason::HoldsMost(held_bytes));
        // A closed connection drops its answers in flush.
        self.flush();
        self.share.set_held(&self.inbox_bytes, 0);
    }

    /// Closes the connection, once.
    pub fn close(self: &Arc<Self>, reason: CloseReason) {
        // Each reason has its own throttle, so that a client that sends garbage hides no other fault.
        const KINDS: usize = <Closed as Reason>::ALL.len();
        static ODD: [Throttle; KINDS] = [const { Throttle::new() }; KINDS];
        if self.closed.swap(true, SeqCst) {
            return;
        }
        self.metrics().closed.at(reason.kind()).add(1);
        // The peer may have closed the socket already. The descriptor closes when the last holder drops the connection.
        let _ = self.stream.shutdown(Shutdown::Both);
        self.hub.tell(Note::Closed(self.key()));
        let (id, peer) = (self.id, self.peer);
        if !reason.is_odd() {
            debug!("conn={id} client={peer} closed: {reason}");
        } else if let Some(hidden) = ODD[reason.kind().index()].pass() {
            warn!("conn={id} client={peer} closed: {reason}{hidden}");
        }
    }

    /// Whether the connection is closed: answers to it are dropped.
    pub fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    /// Stops reading the client if it loses nothing: the connection is `min_age` old, no query is under way and no byte
    /// is in the socket. The client must also have sent nothing since the last call, or its next query may be on its
    /// way. True: the caller must say goodbye. Only for `accept`.
    pub fn leave(self: &Arc<Self>, min_age: Duration) -> bool {
        let age = Duration::from_millis(self.hub.now_ms() - self.accepted_at_ms);
        // No worker reads the connection between `resume` and `end`.
        if self.has_asked.swap(false, Relaxed)
            || age < min_age
            || !self.is_quiet()
            || !self.readiness.resume()
        {
            return false;
        }
        let peeked = self.stream.peek(&mut [0]);
        let may_leave = matches!(peeked, Err(e) if e.kind() == ErrorKind::WouldBlock);
        // Only `accept` notifies, so no readiness came in between; the bytes that `peek` saw have an edge of their own.
        let is_again = self.readiness.end();
        debug_assert!(!is_again, "only accept notifies");
        may_leave && self.readiness.seize()
    }

    /// Stops workers from reading the connection. True: the client has all its answers. Only for `accept`, at a stop.
    pub fn is_done(&self) -> bool {
        // Seize first: queries that a worker reads in its last turn count as under way when that turn ends.
        self.readiness.seize() && self.owes_nothing()
    }

    /// Tells the client that nothing more will be sent.
    pub fn end_sending(&self) {
        // The call fails only if the client has closed already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Reads and drops what the client still sends. True: the client has closed its side too.
    pub fn discard(&self) -> bool {
        let mut bytes = [0; TURN_BYTES];
        for _ in 0..TURNS_TO_DISCARD {
            match (&self.stream).read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
        false
    }

    // ---- the socket

    /// From now on `accept` gets events of this socket.
    pub fn watch_socket(&self) -> io::Result<()> {
        self.hub.register(self.stream.as_raw_fd(), self.token)
    }

    /// `accept` gets no events of this socket until [`Connection::watch_socket`], which reports what happened
    /// meanwhile.
    pub fn unwatch_socket(&self) -> io::Result<()> {
        self.hub.deregister(self.stream.as_raw_fd())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.share.set_held(&self.outbox_bytes, 0);
        self.share.set_held(&self.inbox_bytes, 0);
    }
}
