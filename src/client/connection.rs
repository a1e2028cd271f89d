//! One client: what it has half said, what it has not taken yet, its limits, and why it closed.
//!
//! Owned by `accept`; a worker that reads it and each query under way hold it too. Its socket never blocks
//! anybody: a worker reads what is there, writes what the kernel takes, and leaves the rest to `accept`.
//! The locks are per connection and cover no system call but the non-blocking write of answers, which is a copy.

use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use log::{debug, warn};
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token, Waker};
use parking_lot::{Mutex, MutexGuard};

use super::outbox::{Outbox, Reply};
use super::readiness::Readiness;
use super::unsent::Unsent;
use super::usage::{Usage, Use};
use crate::config::{AcceptLimits, ClientLimits};
use crate::logging::Throttle;
use crate::metrics::{Closed, Metrics, Reason, Shed};
use crate::wire::frame::{Cut, Frame, Malformed};
use crate::wire::host_port::HostPortFields;
use crate::wire::protocol::Protocol;

/// Reads for one turn of a connection. A client that always has more to say then goes to the end of
/// the queue, so that it costs the others nothing.
const READS_PER_TURN: usize = 8;

/// A client that asks again within this time of its answer does so at once: the time that waking `accept` and a
/// worker takes is in it.
const QUICK_US: u64 = 150;
/// So many times in a row make it a habit.
const QUICK_STREAK: u8 = 4;

/// Why a connection closed.
#[derive(Debug)]
pub enum CloseReason {
    /// The client closed it and has all its answers.
    Peer,
    /// Reading or writing failed.
    Io(io::Error),
    /// The client sent what can never become a request.
    Malformed(Malformed),
    /// A frame was begun and not finished in time.
    HalfFrame,
    /// The client does not take its answers.
    Unread(usize),
    /// Clients hold more than they may together, and this one most.
    HoldsMost(usize),
    /// A query was lost by a fault of ours; closing tells the client, silence would not.
    QueryLost,
    /// The proxy drains or stops.
    Stop,
}

impl CloseReason {
    fn kind(&self) -> Closed {
        match self {
            CloseReason::Peer => Closed::Client,
            CloseReason::Io(_) => Closed::Io,
            CloseReason::Malformed(_) => Closed::Malformed,
            CloseReason::HalfFrame => Closed::HalfFrame,
            CloseReason::Unread(_) | CloseReason::HoldsMost(_) => Closed::Unread,
            CloseReason::QueryLost => Closed::QueryLost,
            CloseReason::Stop => Closed::Stop,
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::Peer => write!(f, "closed by the client"),
            CloseReason::Io(e) => write!(f, "{e}"),
            CloseReason::Malformed(why) => write!(f, "malformed: {why}"),
            CloseReason::HalfFrame => write!(f, "half a frame, not finished in time"),
            CloseReason::Unread(bytes) => write!(f, "{bytes} bytes of answers not taken"),
            CloseReason::HoldsMost(bytes) => write!(
                f,
                "limit max_unread_total_bytes reached, and this client holds {bytes} bytes of \
                 answers not taken and of a frame not finished"
            ),
            CloseReason::QueryLost => write!(f, "a query was lost"),
            CloseReason::Stop => write!(f, "the proxy drains or stops"),
        }
    }
}

/// What `accept` must know of a connection without an event of its socket.
pub enum Note {
    /// It is closed: forget it.
    Closed(Arc<Connection>),
    /// It holds half a frame, or answers not taken: see to its deadline.
    Watch(Arc<Connection>),
    /// Clients hold more than this together: close those that hold most.
    Overfull(usize),
    /// Life has changed: see what is due.
    Life,
    /// Take these limits for who comes from now on.
    Limits(AcceptLimits, Arc<ClientLimits>),
    /// Have a worker tell that it took a job.
    Beat(Sender<()>),
    /// Accept nobody any more.
    StopAccepting,
    /// Close all that is left and end.
    Stop,
}

/// What all connections share: their way to `accept`, their sums.
pub struct Desk {
    notes: Sender<Note>,
    waker: Waker,
    registry: Registry,
    /// Queries under way in all, by their weight.
    pending: AtomicUsize,
    /// Bytes that connections hold for their clients: answers not taken, frames not finished.
    held: AtomicUsize,
    /// Whether `accept` has been told that it is too much.
    overfull: AtomicBool,
    epoch: Instant,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who uses which table.
    pub usage: Usage,
}

impl Desk {
    /// Notes go to `notes`; `waker` makes their reader look. The channel is unbounded, what it holds is
    /// not: a connection has one note of each kind under way, or two, and operators and the watchdog send few.
    pub fn new(
        notes: Sender<Note>,
        waker: Waker,
        registry: Registry,
        metrics: Arc<Metrics>,
    ) -> Self {
        Desk {
            notes,
            waker,
            registry,
            pending: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            overfull: AtomicBool::new(false),
            epoch: Instant::now(),
            metrics,
            usage: Usage::default(),
        }
    }

    /// Tells `accept`.
    pub fn tell(&self, note: Note) {
        // Both fail only when `accept` has ended, and then every connection is closed.
        if self.notes.send(note).is_ok() {
            let _ = self.waker.wake();
        }
    }

    /// Queries under way in all.
    pub fn pending(&self) -> usize {
        self.pending.load(SeqCst)
    }

    /// Bytes that connections hold for their clients: answers not taken, frames not finished.
    pub fn held(&self) -> usize {
        self.held.load(SeqCst)
    }

    /// Whether connections hold more than this, for `accept`, which has been told so.
    pub fn is_overfull(&self, max_bytes: usize) -> bool {
        self.overfull.store(false, SeqCst);
        self.held() > max_bytes
    }

    /// What `counted` counts is so many bytes now. Added first, so that the sum is never less than nothing, whoever
    /// counts at the same time.
    fn hold(&self, counted: &AtomicUsize, bytes: usize) {
        if bytes > 0 || counted.load(SeqCst) > 0 {
            self.held.fetch_add(bytes, SeqCst);
            self.held.fetch_sub(counted.swap(bytes, SeqCst), SeqCst);
        }
    }

    /// Somebody holds more than before.
    fn check_held(&self, limits: &ClientLimits) {
        let max = limits.max_unread_total_bytes;
        if self.held() > max && !self.overfull.swap(true, SeqCst) {
            self.tell(Note::Overfull(max));
        }
    }

    fn now_ms(&self) -> u64 {
        // 0 means never.
        1 + self.epoch.elapsed().as_millis() as u64
    }
}

/// How a turn of reading ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// There was nothing to read.
    Empty,
    /// Nothing is left to read.
    Drained,
    /// There may be more, but it is others' turn.
    More,
}

/// One client connection.
pub struct Connection {
    /// Number of the connection since the start, for the log.
    pub id: u64,
    /// The client's address.
    pub peer: SocketAddr,
    /// Who may read.
    pub readiness: Readiness,
    /// Its place in `accept`'s registry.
    pub token: Token,
    /// What becomes of those fields in its answers: a matter of the port where it came in.
    pub host_port_fields: HostPortFields,
    stream: TcpStream,
    desk: Arc<Desk>,
    /// Those of the time when it was accepted.
    limits: Arc<ClientLimits>,
    accepted_at_ms: u64,
    /// What its first four bytes say that it speaks.
    protocol: OnceLock<Protocol>,
    /// Whether the client has come or asked since [`Connection::leave`] looked.
    asked: AtomicBool,
    /// The start of a frame. Only the worker that RUNNING names touches it.
    partial: Mutex<Vec<u8>>,
    /// Its bytes that are counted as held.
    partial_bytes: AtomicUsize,
    /// When the frame in `partial` was begun, ms of the desk; 0: there is none.
    partial_since_ms: AtomicU64,
    outbox: Mutex<Outbox>,
    /// Its bytes that are counted as held.
    outbox_bytes: AtomicUsize,
    /// Whether anything waits in `outbox`.
    unsent: Unsent,
    pending: AtomicU32,
    /// When it had its last answer from the worker that read its question, us of the desk.
    served_at_us: AtomicU64,
    quick_streak: AtomicU8,
    /// What it asked for last, for [`Usage`].
    last_use: Mutex<Option<Arc<Use>>>,
    /// The deadline for which it is on `accept`'s list, ms of the desk; 0: it is not on it.
    watched_until_ms: AtomicU64,
    /// The end of the client's bytes is in the socket, perhaps behind others.
    hang_up: AtomicBool,
    /// The client's bytes are read to their end.
    peer_closed: AtomicBool,
    closed: AtomicBool,
}

impl Connection {
    /// Of an accepted, non-blocking socket.
    pub fn new(
        id: u64,
        peer: SocketAddr,
        token: Token,
        stream: TcpStream,
        host_port_fields: HostPortFields,
        desk: Arc<Desk>,
        limits: Arc<ClientLimits>,
    ) -> Self {
        Connection {
            id,
            peer,
            readiness: Readiness::default(),
            token,
            host_port_fields,
            stream,
            accepted_at_ms: desk.now_ms(),
            desk,
            limits,
            protocol: OnceLock::new(),
            asked: AtomicBool::new(true),
            partial: Mutex::default(),
            partial_bytes: AtomicUsize::new(0),
            partial_since_ms: AtomicU64::new(0),
            outbox: Mutex::default(),
            outbox_bytes: AtomicUsize::new(0),
            unsent: Unsent::default(),
            pending: AtomicU32::new(0),
            served_at_us: AtomicU64::new(0),
            quick_streak: AtomicU8::new(0),
            last_use: Mutex::new(None),
            watched_until_ms: AtomicU64::new(0),
            hang_up: AtomicBool::new(false),
            peer_closed: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        }
    }

    /// Reads what is there and gives each whole frame to `take`. `scratch` is the worker's: the
    /// connection keeps only the start of a frame, and an idle one keeps nothing.
    pub fn drain(
        self: &Arc<Self>,
        scratch: &mut Vec<u8>,
        mut take: impl FnMut(Frame<'_>) -> Result<(), Malformed>,
    ) -> Turn {
        let max = self.limits.max_frame_bytes;
        if scratch.len() != 2 * max {
            // Zeroed by the system, so that only pages that are read into take memory.
            *scratch = vec![0; 2 * max];
        }
        let partial = std::mem::take(&mut *self.partial.lock());
        let had_partial = !partial.is_empty();
        let mut filled = partial.len();
        scratch[..filled].copy_from_slice(&partial);
        let mut frames = 0;
        let mut turn = Turn::More;
        for turns in 0..READS_PER_TURN {
            if self.closed.load(SeqCst) {
                return Turn::Drained;
            }
            let room = scratch.len() - filled;
            let read = match (&self.stream).read(&mut scratch[filled..]) {
                Ok(0) => {
                    self.peer_closed.store(true, SeqCst);
                    turn = Turn::Drained;
                    break;
                }
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::WouldBlock && turns == 0 => {
                    *self.partial.lock() = partial;
                    return Turn::Empty;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    turn = Turn::Drained;
                    break;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => {
                    self.close(CloseReason::Io(e));
                    return Turn::Drained;
                }
            };
            filled += read;
            match self.take_frames(&scratch[..filled], &mut take) {
                Ok((0, _)) => {}
                Ok((used, count)) => {
                    frames += count;
                    scratch.copy_within(used..filled, 0);
                    filled -= used;
                }
                Err(malformed) => {
                    self.close(CloseReason::Malformed(malformed));
                    return Turn::Drained;
                }
            }
            // A short read empties a stream socket (epoll(7)), unless the client has closed: then
            // no other edge would tell of its end.
            if read < room && !self.hang_up.load(SeqCst) {
                turn = Turn::Drained;
                break;
            }
        }
        *self.partial.lock() = scratch[..filled].to_vec();
        self.desk.hold(&self.partial_bytes, filled);
        self.watch_partial(filled > 0, had_partial && frames == 0);
        turn
    }

    fn watch_partial(self: &Arc<Self>, half: bool, same_frame: bool) {
        if !half {
            self.partial_since_ms.store(0, SeqCst);
            return;
        }
        self.desk.check_held(&self.limits);
        if !same_frame {
            // The deadline counts from the first byte of a frame, however slowly the others come.
            let now_ms = self.desk.now_ms();
            self.partial_since_ms.store(now_ms, SeqCst);
            self.watch(now_ms, self.limits.frame_timeout);
        }
    }

    /// Puts the connection on `accept`'s list of deadlines, where it stands once, for the first.
    fn watch(self: &Arc<Self>, since_ms: u64, timeout: Duration) {
        let until_ms = since_ms + timeout.as_millis() as u64;
        let is_nearer = |watched_ms| (watched_ms == 0 || until_ms < watched_ms).then_some(until_ms);
        if self.watched_until_ms.fetch_update(SeqCst, SeqCst, is_nearer).is_ok() {
            self.desk.tell(Note::Watch(self.clone()));
        }
    }

    /// `accept` took the connection from its list of deadlines: closes it if one is over. `Some`: it
    /// is on the list again, until then.
    pub fn check_deadlines(self: &Arc<Self>, now: Instant) -> Option<Instant> {
        self.watched_until_ms.store(0, SeqCst);
        let until_ms = |since_ms, timeout: Duration| match since_ms {
            0 => None,
            since_ms => Some(since_ms + timeout.as_millis() as u64),
        };
        let at = |ms| self.desk.epoch + Duration::from_millis(ms);
        let frame_ms = until_ms(self.partial_since_ms.load(SeqCst), self.limits.frame_timeout);
        let unread_ms = until_ms(self.unsent.since_ms(), self.limits.unread_timeout);
        if frame_ms.is_some_and(|ms| at(ms) <= now) {
            self.close(CloseReason::HalfFrame);
        } else if unread_ms.is_some_and(|ms| at(ms) <= now) {
            self.close(CloseReason::Unread(self.outbox.lock().unread()));
        }
        let next_ms = [frame_ms, unread_ms].into_iter().flatten().min()?;
        let is_alone = |watched_ms| (watched_ms == 0).then_some(next_ms);
        let is_listed = self.watched_until_ms.fetch_update(SeqCst, SeqCst, is_alone).is_ok();
        (!self.is_closed() && is_listed).then(|| at(next_ms))
    }

    /// The socket told that the client sends no more: it must be read to its end.
    pub fn hang_up(&self) {
        self.hang_up.store(true, SeqCst);
    }

    /// It has used a table.
    pub fn note_use(&self, table: &str, now: Instant) {
        self.desk.usage.note(&self.last_use, self.peer.ip(), table, now);
    }

    /// Gives all whole frames to `take`; returns their bytes and number.
    fn take_frames(
        &self,
        bytes: &[u8],
        take: &mut impl FnMut(Frame<'_>) -> Result<(), Malformed>,
    ) -> Result<(usize, usize), Malformed> {
        let (mut used, mut count) = (0, 0);
        let protocol = match self.protocol.get() {
            Some(protocol) => *protocol,
            None => match Protocol::of(bytes)? {
                Some(protocol) => *self.protocol.get_or_init(|| protocol),
                None => return Ok((used, count)),
            },
        };
        while used < bytes.len() {
            match protocol.cut(&bytes[used..], self.limits.max_frame_bytes)? {
                Cut::Incomplete => break,
                Cut::Whole(frame) => {
                    used += frame.len;
                    count += 1;
                    take(frame)?;
                }
            }
        }
        Ok((used, count))
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.desk.metrics
    }

    /// A query of this weight is under way from now on. False: over a limit, it must be refused.
    #[must_use]
    pub fn begin_query(self: &Arc<Self>, weight: u32) -> bool {
        static SHED: Throttle = Throttle::new();
        let limits = &self.limits;
        self.asked.store(true, Relaxed);
        let mine = self.pending.fetch_add(weight, SeqCst) + weight;
        let all = self.desk.pending.fetch_add(weight as usize, SeqCst) + weight as usize;
        let (shed, limit) = if mine > limits.max_pending {
            (Shed::ClientPending, "max_pending_per_client")
        } else if all > limits.max_pending_total {
            (Shed::Pending, "max_pending")
        } else {
            return true;
        };
        self.desk.metrics.shed.at(shed).add(1);
        if let Some(hidden) = SHED.pass() {
            let (id, peer) = (self.id, self.peer);
            warn!("conn={id} client={peer}: query refused, limit {limit} reached{hidden}");
        }
        self.end_queries(weight);
        false
    }

    /// Queries of this weight will never have an answer.
    pub fn end_queries(self: &Arc<Self>, weight: u32) {
        self.answered(weight);
        self.close_if_done();
    }

    fn answered(&self, weight: u32) {
        self.desk.pending.fetch_sub(weight as usize, SeqCst);
        self.pending.fetch_sub(weight, SeqCst);
    }

    /// Writes replies, answers to queries of this weight, as far as the client takes them; the rest waits for
    /// `accept`. A client may leave one answer of any size unread, but not ask for more before it has read.
    pub fn send(self: &Arc<Self>, replies: impl IntoIterator<Item = Reply>, weight: u32) {
        let limits = &self.limits;
        let mut outbox = self.outbox.lock();
        let (mut result, mut is_greedy) = (Ok(()), false);
        for reply in replies {
            if outbox.unread() > limits.max_unread_bytes {
                result = result.and_then(|()| self.write(&mut outbox));
            }
            is_greedy |= outbox.unread() > limits.max_unread_bytes;
            if !is_greedy {
                outbox.push(reply);
            }
        }
        // Before the client can read them and ask again, and with the lock, for who sees that nothing is under way
        // looks into the outbox next.
        self.answered(weight);
        result = result.and_then(|()| self.write(&mut outbox));
        let unread = outbox.unread();
        self.settle(outbox, result);
        if is_greedy {
            self.close(CloseReason::Unread(unread));
        }
        self.close_if_done();
    }

    /// The socket takes bytes again.
    pub fn flush(self: &Arc<Self>) {
        if !self.unsent.is_none() {
            let mut outbox = self.outbox.lock();
            let result = self.write(&mut outbox);
            self.settle(outbox, result);
            self.close_if_done();
        }
    }

    fn write(&self, outbox: &mut Outbox) -> io::Result<()> {
        loop {
            let before = outbox.unread();
            let result = match self.is_closed() {
                true => Ok(()),
                false => outbox.write_to(&mut &self.stream),
            };
            if result.is_err() || self.is_closed() {
                outbox.clear();
            }
            if !self.unsent.note(before, outbox.unread(), || self.desk.now_ms()) {
                return result;
            }
        }
    }

    /// What follows from a write, without the lock.
    fn settle(self: &Arc<Self>, outbox: MutexGuard<'_, Outbox>, result: io::Result<()>) {
        let unread = outbox.unread();
        self.desk.hold(&self.outbox_bytes, unread);
        drop(outbox);
        if unread > 0 {
            self.desk.check_held(&self.limits);
            self.watch(self.unsent.since_ms(), self.limits.unread_timeout);
        }
        if let Err(e) = result {
            self.close(CloseReason::Io(e));
        }
    }

    /// Bytes that are held for the client.
    pub fn held(&self) -> usize {
        self.outbox_bytes.load(SeqCst) + self.partial_bytes.load(SeqCst)
    }

    /// Closes the connection because it holds more than others, and what it holds is free at once. Only for `accept`.
    pub fn give_up(self: &Arc<Self>, held: usize) {
        self.close(CloseReason::HoldsMost(held));
        // Closed, it drops what it held.
        self.flush();
        self.desk.hold(&self.partial_bytes, 0);
    }

    /// A client that only closed its sending side still gets what it asked for.
    pub fn close_if_done(self: &Arc<Self>) {
        if self.peer_closed.load(SeqCst) && self.owes_nothing() {
            self.close(CloseReason::Peer);
        }
    }

    /// Whether the client has all its answers.
    fn owes_nothing(&self) -> bool {
        self.pending.load(SeqCst) == 0 && self.outbox.lock().unread() == 0
    }

    /// Closes the connection, once.
    pub fn close(self: &Arc<Self>, reason: CloseReason) {
        // One each, so that who sends garbage hides no other fault.
        const KINDS: usize = <Closed as Reason>::ALL.len();
        static ODD: [Throttle; KINDS] = [const { Throttle::new() }; KINDS];
        if self.closed.swap(true, SeqCst) {
            return;
        }
        self.desk.metrics.closed.at(reason.kind()).add(1);
        // It may be closed by the peer already; the descriptor goes with the last holder.
        let _ = self.stream.shutdown(Shutdown::Both);
        self.desk.tell(Note::Closed(self.clone()));
        let (id, peer) = (self.id, self.peer);
        match reason {
            CloseReason::Peer | CloseReason::Io(_) | CloseReason::Stop => {
                debug!("conn={id} client={peer} closed: {reason}");
            }
            _ => {
                if let Some(hidden) = ODD[reason.kind().index()].pass() {
                    warn!("conn={id} client={peer} closed: {reason}{hidden}");
                }
            }
        }
    }

    /// The client has its answers; for [`Connection::asks_again_at_once`].
    pub fn is_served(&self) {
        self.served_at_us.store(self.desk.epoch.elapsed().as_micros() as u64, SeqCst);
    }

    /// Whether this client asks again as soon as it has its answer, so that a worker should look for its next
    /// query before anybody else is woken for it.
    pub fn asks_again_at_once(&self, now: Instant) -> bool {
        let now_us = now.saturating_duration_since(self.desk.epoch).as_micros() as u64;
        let is_quick = now_us < self.served_at_us.load(SeqCst) + QUICK_US;
        let streak = match is_quick {
            true => self.quick_streak.load(SeqCst).saturating_add(1),
            false => 0,
        };
        self.quick_streak.store(streak, SeqCst);
        streak >= QUICK_STREAK
    }

    /// Whether nothing is under way for the client.
    pub fn is_quiet(&self) -> bool {
        self.owes_nothing() && self.partial_since_ms.load(SeqCst) == 0 && !self.is_closed()
    }

    /// Closes the connection if its client loses nothing by it: it is so old, nothing is under way for the client nor
    /// in the socket, and since the last such look it has neither come nor asked, for then its next question may be on
    /// its way. True: it is closed. Only for `accept`.
    pub fn leave(self: &Arc<Self>, min_age: Duration) -> bool {
        let age = Duration::from_millis(self.desk.now_ms() - self.accepted_at_ms);
        // While it is resumed here no worker reads.
        if self.asked.swap(false, Relaxed)
            || age < min_age
            || !self.is_quiet()
            || !self.readiness.resume()
        {
            return false;
        }
        let peeked = self.stream.peek(&mut [0]);
        let leaves = matches!(peeked, Err(e) if e.kind() == ErrorKind::WouldBlock);
        if leaves {
            self.close(CloseReason::Stop);
        }
        // Nobody but `accept` notifies, so no readiness came in between; what was peeked at has an edge of its own.
        self.readiness.end();
        leaves
    }

    /// `accept` is told of this connection's readiness.
    pub fn watch_socket(&self) -> io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        self.desk.registry.register(&mut SourceFd(&self.stream.as_raw_fd()), self.token, both)
    }

    /// `accept` is told nothing more, until [`Connection::watch_socket`]; what happens meanwhile is told then.
    pub fn unwatch_socket(&self) -> io::Result<()> {
        self.desk.registry.deregister(&mut SourceFd(&self.stream.as_raw_fd()))
    }

    /// Whether it is closed: answers to it go nowhere.
    pub fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.desk.hold(&self.outbox_bytes, 0);
        self.desk.hold(&self.partial_bytes, 0);
    }
}
