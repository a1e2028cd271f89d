//! One client: what it has half said, what it has not taken yet, its limits, and why it closed.
//!
//! Owned by `accept`; a worker that reads it and each query under way hold it too. Its socket never blocks
//! anybody: a worker reads what is there, writes what the kernel takes, and leaves the rest to `accept`.
//! The locks are per connection and cover at most one non-blocking system call, which is a copy.

use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use log::{debug, warn};
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token, Waker};
use parking_lot::Mutex;

use super::accept::AcceptLimits;
use super::outbox::{Outbox, Reply};
use super::readiness::Readiness;
use super::usage::{Usage, Use};
use crate::logging::Throttle;
use crate::metrics::{Closed, Metrics, Shed};
use crate::wire::frame::{self, Cut, Frame, Malformed};

/// Reads for one turn of a connection. A client that always has more to say then goes to the end of
/// the queue, so that it costs the others nothing.
const READS_PER_TURN: usize = 8;

/// A client that asks again within this time of its answer does so at once: the time that waking `accept` and a
/// worker takes is in it.
const QUICK_US: u64 = 150;
/// So many times in a row make it a habit.
const QUICK_STREAK: u8 = 4;

/// What one client may use.
#[derive(Clone, Debug)]
pub struct ClientLimits {
    /// Bytes of one request frame.
    pub max_frame_bytes: usize,
    /// Queries under way for one client.
    pub max_pending: u32,
    /// Queries under way in all.
    pub max_pending_total: usize,
    /// Bytes of answers that one client has not taken.
    pub max_unread_bytes: usize,
    /// Bytes of answers that all clients together have not taken.
    pub max_unread_total_bytes: usize,
    /// Time to finish a frame once it is begun.
    pub frame_timeout: Duration,
    /// Time in which a client must take some of its answers.
    pub unread_timeout: Duration,
}

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
            CloseReason::Unread(_) => Closed::Unread,
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
    /// Queries under way in all.
    pending: AtomicUsize,
    unread: AtomicUsize,
    epoch: Instant,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who uses which table.
    pub usage: Usage,
}

impl Desk {
    /// Notes go to `notes`; `waker` makes their reader look. The channel is unbounded, what it holds is
    /// not: a connection has at most one note of each kind under way, and operators and the watchdog send few.
    pub fn new(
        notes: Sender<Note>,
        waker: Waker,
        registry: Registry,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (pending, unread) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Desk {
            notes,
            waker,
            registry,
            pending,
            unread,
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

    /// Bytes of answers that clients have not taken.
    pub fn unread(&self) -> usize {
        self.unread.load(SeqCst)
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
    stream: TcpStream,
    desk: Arc<Desk>,
    /// Those of the time when it was accepted.
    limits: Arc<ClientLimits>,
    accepted_at_ms: u64,
    /// Whether the client has come or asked since [`Connection::leave`] looked.
    asked: AtomicBool,
    /// The start of a frame. Only the worker that RUNNING names touches it.
    partial: Mutex<Vec<u8>>,
    /// When the frame in `partial` was begun, ms of the desk; 0: there is none.
    partial_since_ms: AtomicU64,
    outbox: Mutex<Outbox>,
    /// When the client last took some of what waits in `outbox`; 0: nothing waits.
    unread_since_ms: AtomicU64,
    pending: AtomicU32,
    /// When it had its last answer from the worker that read its question, us of the desk.
    served_at_us: AtomicU64,
    quick_streak: AtomicU8,
    /// What it asked for last, for [`Usage`].
    last_use: Mutex<Option<Arc<Use>>>,
    /// Whether it is on `accept`'s list of deadlines.
    watched: AtomicBool,
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
        desk: Arc<Desk>,
        limits: Arc<ClientLimits>,
    ) -> Self {
        Connection {
            id,
            peer,
            readiness: Readiness::default(),
            token,
            stream,
            accepted_at_ms: desk.now_ms(),
            desk,
            limits,
            asked: AtomicBool::new(true),
            partial: Mutex::default(),
            partial_since_ms: AtomicU64::new(0),
            outbox: Mutex::default(),
            unread_since_ms: AtomicU64::new(0),
            pending: AtomicU32::new(0),
            served_at_us: AtomicU64::new(0),
            quick_streak: AtomicU8::new(0),
            last_use: Mutex::new(None),
            watched: AtomicBool::new(false),
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
        let mut partial = self.partial.lock();
        let had_partial = !partial.is_empty();
        let mut filled = partial.len();
        scratch.resize(2 * max, 0);
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
                    self.close_if_done();
                    turn = Turn::Drained;
                    break;
                }
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::WouldBlock && turns == 0 => return Turn::Empty,
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
            match take_frames(&scratch[..filled], max, &mut take) {
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
        *partial = scratch[..filled].to_vec();
        drop(partial);
        self.watch_partial(filled > 0, had_partial && frames == 0);
        turn
    }

    fn watch_partial(self: &Arc<Self>, half: bool, same_frame: bool) {
        if !half {
            self.partial_since_ms.store(0, SeqCst);
        } else if !same_frame {
            // The deadline counts from the first byte of a frame, however slowly the others come.
            self.partial_since_ms.store(self.desk.now_ms(), SeqCst);
            self.watch();
        }
    }

    /// Puts the connection on `accept`'s list of deadlines, where it stands at most once.
    fn watch(self: &Arc<Self>) {
        if !self.watched.swap(true, SeqCst) {
            self.desk.tell(Note::Watch(self.clone()));
        }
    }

    /// `accept` took the connection from its list of deadlines: closes it if one is over. `Some`: it
    /// is on the list again, until then.
    pub fn check_deadlines(self: &Arc<Self>, now: Instant) -> Option<Instant> {
        self.watched.store(false, SeqCst);
        let deadline = |since_ms: &AtomicU64, timeout| match since_ms.load(SeqCst) {
            0 => None,
            ms => Some(self.desk.epoch + Duration::from_millis(ms) + timeout),
        };
        let frame = deadline(&self.partial_since_ms, self.limits.frame_timeout);
        let unread = deadline(&self.unread_since_ms, self.limits.unread_timeout);
        if frame.is_some_and(|at| at <= now) {
            self.close(CloseReason::HalfFrame);
        } else if unread.is_some_and(|at| at <= now) {
            self.close(CloseReason::Unread(self.outbox.lock().unread()));
        }
        let next = [frame, unread].into_iter().flatten().min()?;
        (!self.is_closed() && !self.watched.swap(true, SeqCst)).then_some(next)
    }

    /// The socket told that the client sends no more: it must be read to its end.
    pub fn hang_up(&self) {
        self.hang_up.store(true, SeqCst);
    }

    /// It has used a table.
    pub fn note_use(&self, table: &str, now: Instant) {
        self.desk.usage.note(&self.last_use, self.peer.ip(), table, now);
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.desk.metrics
    }

    /// A query is under way from now on. False: over a limit, it must be refused.
    #[must_use]
    pub fn begin_query(self: &Arc<Self>) -> bool {
        static SHED: Throttle = Throttle::new();
        let limits = &self.limits;
        self.asked.store(true, Relaxed);
        let mine = self.pending.fetch_add(1, SeqCst);
        let all = self.desk.pending.fetch_add(1, SeqCst);
        let (shed, limit) = if mine >= limits.max_pending {
            (Shed::ClientPending, "max_pending_per_client")
        } else if all >= limits.max_pending_total {
            (Shed::Pending, "max_pending")
        } else {
            return true;
        };
        self.desk.metrics.shed.at(shed).add(1);
        if let Some(hidden) = SHED.pass() {
            let (id, peer) = (self.id, self.peer);
            warn!("conn={id} client={peer}: a query is refused, {limit} are under way{hidden}");
        }
        self.end_queries(1);
        false
    }

    /// So many queries have their answers in the outbox, or never will.
    pub fn end_queries(self: &Arc<Self>, n: u32) {
        self.desk.pending.fetch_sub(n as usize, SeqCst);
        self.pending.fetch_sub(n, SeqCst);
        self.close_if_done();
    }

    /// Writes replies as far as the client takes them; the rest waits for `accept`. A client may leave one
    /// answer of any size unread, but not ask for more before it has read.
    pub fn send(self: &Arc<Self>, replies: impl IntoIterator<Item = Reply>) {
        let limits = &self.limits;
        let mut outbox = self.outbox.lock();
        let mut is_greedy = false;
        for reply in replies {
            if outbox.unread() > limits.max_unread_bytes {
                self.write(&mut outbox);
            }
            is_greedy |= outbox.unread() > limits.max_unread_bytes;
            if !is_greedy {
                let before = outbox.unread();
                outbox.push(reply);
                self.desk.unread.fetch_add(outbox.unread() - before, SeqCst);
            }
        }
        self.write(&mut outbox);
        let unread = outbox.unread();
        drop(outbox);
        let all_unread = self.desk.unread.load(SeqCst);
        if is_greedy || (unread > 0 && all_unread > limits.max_unread_total_bytes) {
            self.close(CloseReason::Unread(unread));
        }
    }

    /// The socket takes bytes again.
    pub fn flush(self: &Arc<Self>) {
        if self.unread_since_ms.load(SeqCst) != 0 {
            self.write(&mut self.outbox.lock());
            self.close_if_done();
        }
    }

    fn write(self: &Arc<Self>, outbox: &mut Outbox) {
        let before = outbox.unread();
        let result = match self.closed.load(SeqCst) {
            true => Ok(()),
            false => outbox.write_to(&mut &self.stream),
        };
        if result.is_err() || self.closed.load(SeqCst) {
            *outbox = Outbox::default();
        }
        let after = outbox.unread();
        self.desk.unread.fetch_sub(before - after, SeqCst);
        if after == 0 {
            self.unread_since_ms.store(0, SeqCst);
        } else if after < before || self.unread_since_ms.load(SeqCst) == 0 {
            self.unread_since_ms.store(self.desk.now_ms(), SeqCst);
            self.watch();
        }
        if let Err(e) = result {
            self.close(CloseReason::Io(e));
        }
    }

    /// A client that only closed its sending side still gets what it asked for.
    fn close_if_done(self: &Arc<Self>) {
        if self.peer_closed.load(SeqCst)
            && self.pending.load(SeqCst) == 0
            && self.unread_since_ms.load(SeqCst) == 0
        {
            self.close(CloseReason::Peer);
        }
    }

    /// Closes the connection, once.
    pub fn close(self: &Arc<Self>, reason: CloseReason) {
        static ODD: Throttle = Throttle::new();
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
                if let Some(hidden) = ODD.pass() {
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
        self.pending.load(SeqCst) == 0
            && self.unread_since_ms.load(SeqCst) == 0
            && self.partial_since_ms.load(SeqCst) == 0
            && !self.is_closed()
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
        self.desk.unread.fetch_sub(self.outbox.get_mut().unread(), SeqCst);
    }
}

/// Gives all whole frames to `take`; returns their bytes and number.
fn take_frames(
    bytes: &[u8],
    max_frame_bytes: usize,
    take: &mut impl FnMut(Frame<'_>) -> Result<(), Malformed>,
) -> Result<(usize, usize), Malformed> {
    let (mut used, mut count) = (0, 0);
    while used < bytes.len() {
        match frame::cut(&bytes[used..], max_frame_bytes)? {
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
