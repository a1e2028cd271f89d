//! Thread `zk-link`: one connection to ZooKeeper at a time, and one session kept over them.
//!
//! ```text
//!               commands + waker                       non-blocking socket
//! zk-watch ────────────────────▶ zk-link, in poll(2) ───────────────────────▶ one server
//!          ◀────────────────────  │  dial: addresses by turns, within a budget (`dial`)
//!            events: Up, Down,    │  handshake: session, password, newest zxid seen
//!            Reply, Fired, Looked │  serve: requests pipelined, pings, a deadline on progress
//! ```
//! Nobody else touches the socket. When no byte has come for a third of the session's time-out (1 s at least, 4 s at
//! most) while an answer is due, the connection is given up: the socket is shut and dropped, what was asked is forgotten,
//! `Down` says so, and the asker asks again what it still wants. Session, password and the newest zxid are kept, so a
//! server that knows less than what was seen closes the connection instead of answering.
//!
//! Bounds: answers as long as [`codec::MAX_FRAME_BYTES`], events that wait as many as [`MAX_EVENTS`] (then the socket is
//! not read), requests as many as the asker has under way.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, unbounded};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use serde::Serialize;
use socket2::{Domain, Socket, Type};

use super::codec::{
    self, Answer, Code, Event as Fired, Frame, Granted, Kind, LEN_BYTES, Malformed, Op, Stat,
};
use super::dial::{Dialing, Failure};
use crate::activity;
use crate::mutant;

/// Events that wait for their reader.
const MAX_EVENTS: usize = 1024;
/// Bytes for one read.
const READ_BYTES: usize = 64 * 1024;
/// A buffer that is larger when it is empty gives its memory back.
const KEPT_BYTES: usize = 256 * 1024;
/// How often it is looked whether a name has been resolved.
const RESOLVE_LOOK: Duration = Duration::from_millis(50);
/// When no name has been resolved for so long, that is told.
const RESOLVE_LIMIT: Duration = Duration::from_secs(1);
/// Addresses of all names together: more than any ensemble has.
const MAX_ADDRS: usize = 32;
/// While other addresses are left, one that takes no connection is waited for so long at first.
const FIRST_CONNECT_LIMIT: Duration = Duration::from_millis(500);
/// A link that lived for less did not end the trouble that the one before had.
const STABLE: Duration = Duration::from_secs(2);
/// Pause after a panic.
const PANIC_PAUSE: Duration = Duration::from_secs(1);
/// Time for a goodbye to be sent.
const CLOSE_LIMIT: Duration = Duration::from_millis(200);

/// How to connect.
#[derive(Clone, PartialEq, Eq)]
pub struct Options {
    /// `host:port` of the servers.
    pub address: Vec<String>,
    /// The session time-out to ask for.
    pub timeout: Duration,
    /// `user:password` of each who may touch protected znodes.
    pub digests: Vec<String>,
    /// The znode whose identity is looked at when ZooKeeper may have been rebuilt; none: it is not.
    pub root: Option<String>,
}

/// All addresses of a `host:port`, without waiting; `None`: it is being looked up.
pub type Resolve = Box<dyn Fn(&str) -> Option<Vec<SocketAddr>> + Send>;

/// A session as the server granted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Granting {
    /// Its number, as ZooKeeper's own tools show it in hexadecimal.
    pub id: i64,
    /// A session whose client is silent for longer expires.
    pub timeout: Duration,
}

/// An event of a connection.
#[derive(Debug)]
pub enum Event {
    /// There is a connection and a session.
    Up {
        /// Number of the connection; requests name it.
        link: u64,
        /// The server.
        server: SocketAddr,
        /// The session.
        session: Granting,
        /// The newest zxid seen before: watches are set again since then.
        since: i64,
    },
    /// There is none, and why; also after each try that fails.
    Down(String),
    /// A request was answered, by a server that knew of changes up to `zxid`.
    Reply {
        /// The number of the request.
        ticket: u64,
        /// The newest change that the server knew of.
        zxid: i64,
        /// The answer.
        result: Result<Answer, Code>,
    },
    /// A ping was answered: all watches that fired up to this zxid have been told.
    Pong {
        /// The newest change that the server knew of.
        zxid: i64,
    },
    /// A watch fired, and is used up.
    Fired {
        /// The change.
        event: Fired,
        /// The znode.
        path: String,
        /// When the server's word was read.
        at: Instant,
    },
    /// All servers have closed early for long, and one was asked as by a client that has never seen anything: the root
    /// as it is there.
    Looked {
        /// The server.
        server: SocketAddr,
        /// The newest change that it knows of.
        zxid: i64,
        /// The root.
        root: Result<Stat, Code>,
    },
}

/// An order to the thread.
pub enum Command {
    /// Asks over this link. The answer comes as an event with the ticket, or `Down` does.
    Ask { link: u64, ticket: u64, op: Op },
    /// Gives this link up, whose server is not to be believed, and tries others first.
    GiveUp { link: u64, why: String },
    /// Connects anew, if these options are others, with the session that there is.
    Configure(Options),
    /// Forgets the session and all that was seen: ZooKeeper is taken as it is now.
    StartOver,
    /// Forgets the session and what was seen after this zxid: that was another ZooKeeper. Counts for the next link.
    ForgetSince(i64),
}

/// The thread, and the way to it. It ends when this is dropped, after a goodbye to the server.
pub struct Connection {
    commands: Option<Sender<Command>>,
    waker: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Connection {
    /// Starts to dial. `last_zxid` is the newest change known: a server that knows less is not believed.
    pub fn start(
        options: Options,
        resolve: Resolve,
        last_zxid: i64,
        seed: u64,
    ) -> io::Result<(Self, Receiver<Event>)> {
        let (commands, inbox) = unbounded();
        let (events, told) = bounded(MAX_EVENTS);
        let waker = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut dialer = Dialer {
            inbox: Inbox {
                commands: inbox,
                waker: waker.clone(),
                asked: VecDeque::new(),
                options,
                link: 0,
                is_changed: false,
                starts_over: false,
                forgets_since: None,
                given_up: None,
            },
            events,
            dialing: Dialing::new(Instant::now(), seed),
            resolve,
            session: Granted::NONE,
            last_zxid,
        };
        let run = move || {
            // Ends when it is told to, or nobody listens any more. A panic is a fault of ours, and one of this link.
            while catch_unwind(AssertUnwindSafe(|| dialer.run())).is_err() {
                dialer.inbox.link += 1;
                if dialer.tell(Event::Down("zk-link panicked".to_owned())).is_err() {
                    return;
                }
                thread::sleep(PANIC_PAUSE);
            }
        };
        let thread = thread::Builder::new().name("zk-link".to_owned()).spawn(run)?;
        Ok((Connection { commands: Some(commands), waker, thread: Some(thread) }, told))
    }

    /// Asks over this link.
    pub fn ask(&self, link: u64, ticket: u64, op: Op) {
        self.tell(Command::Ask { link, ticket, op });
    }

    /// Orders something.
    pub fn tell(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // The thread lives as long as this does; if it panicked, its end is seen as the end of the events.
            let _ = commands.send(command);
            self.wake();
        }
    }

    fn wake(&self) {
        // Full only if it has been woken 2^64 times.
        let _ = rustix::io::write(&*self.waker, &1u64.to_ne_bytes());
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.commands = None;
        self.wake();
        if let Some(thread) = self.thread.take() {
            // A panic in there was logged when it happened.
            let _ = thread.join();
        }
    }
}

/// Orders to the thread.
struct Inbox {
    commands: Receiver<Command>,
    waker: Arc<OwnedFd>,
    asked: VecDeque<(u64, Op)>,
    options: Options,
    /// The link that requests are taken for.
    link: u64,
    /// The link that there is was made with other options.
    is_changed: bool,
    starts_over: bool,
    /// All that was seen after this zxid was of another ZooKeeper.
    forgets_since: Option<i64>,
    /// Why the link that there is is given up.
    given_up: Option<String>,
}

impl Inbox {
    /// Sleeps until the socket is ready, something is asked, or the time is over. True: the socket is ready.
    fn wait(
        &mut self,
        socket: Option<(&dyn AsFd, PollFlags)>,
        until: Instant,
    ) -> Result<bool, Ended> {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut fds = vec![PollFd::new(&*self.waker, PollFlags::IN)];
        if let Some((fd, wanted)) = &socket {
            fds.push(PollFd::new(fd, *wanted));
        }
        if poll(&mut fds, Some(&left)).is_err() {
            // Interrupted, or for want of memory: whoever waits looks again.
            thread::sleep(Duration::from_millis(1));
        }
        let is_woken = !fds[0].revents().is_empty();
        let is_ready = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        if is_woken {
            let _ = rustix::io::read(&*self.waker, &mut [0; 8]);
        }
        loop {
            match self.commands.try_recv() {
                Ok(Command::Ask { link, ticket, op }) if link == self.link => {
                    self.asked.push_back((ticket, op));
                }
                Ok(Command::GiveUp { link, why }) if link == self.link => self.given_up = Some(why),
                Ok(Command::Ask { .. } | Command::GiveUp { .. }) => {} // over a link that is gone: `Down` has told
                Ok(Command::Configure(options)) => {
                    self.is_changed |= options != self.options;
                    self.options = options;
                }
                Ok(Command::ForgetSince(zxid)) => self.forgets_since = Some(zxid),
                Ok(Command::StartOver) => (self.is_changed, self.starts_over) = (true, true),
                Err(TryRecvError::Empty) => return Ok(is_ready),
                Err(TryRecvError::Disconnected) => return Err(Ended::Stopped),
            }
        }
    }
}

/// Why there is no link, or none any more.
enum Ended {
    Stopped,
    /// It is to be made with other options.
    Changed,
    /// The session is no more.
    Expired,
    /// Nobody takes a connection.
    Unreachable,
    /// No byte came for so long, while one was due.
    Mute(Duration),
    Io(io::Error),
    Foreign(Malformed),
    /// The digest is refused.
    Unproved(Code),
    /// The asker does not believe the server, for this reason.
    Distrusted(String),
}

impl From<io::Error> for Ended {
    fn from(e: io::Error) -> Self {
        Ended::Io(e)
    }
}

impl From<Malformed> for Ended {
    fn from(malformed: Malformed) -> Self {
        Ended::Foreign(malformed)
    }
}

impl Ended {
    /// In words, and what it means for the address. `was_up`: a session had been granted.
    fn told(&self, host: &Host, was_up: bool) -> (Failure, String) {
        let other = |why: &dyn fmt::Display| (Failure::Other, format!("{host}: {why}"));
        match self {
            Ended::Stopped => other(&"the proxy stops"),
            Ended::Changed => other(&"the settings changed"),
            Ended::Expired => other(&"the session has expired"),
            Ended::Unreachable => other(&"takes no connection"),
            Ended::Mute(span) => {
                (Failure::Other, format!("no answer from {host} in {} s", span.as_secs_f64()))
            }
            Ended::Io(e) if is_end(e) && was_up => other(&"it closed the connection"),
            Ended::Io(e) if is_end(e) => {
                let why = "it closes the connection instead of granting a session: it is full (maxClientCnxns), has no \
                           quorum, knows less than was seen before, or is no ZooKeeper";
                (Failure::Early, format!("{host}: {why}"))
            }
            Ended::Io(e) => {
                let is_refused = e.kind() == ErrorKind::ConnectionRefused;
                let failure = if is_refused { Failure::Refused } else { Failure::Other };
                (failure, format!("{host}: {}", plain(e)))
            }
            Ended::Foreign(malformed) => other(malformed),
            Ended::Unproved(code) => other(&format!("zookeeper.digest: {code}")),
            Ended::Distrusted(why) => other(why),
        }
    }
}

/// An address, and how it is told: with the name that it has in the settings.
#[derive(Clone)]
struct Host {
    addr: SocketAddr,
    name: String,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.parse() == Ok(self.addr) {
            true => write!(f, "{}", self.addr),
            false => write!(f, "{} ({})", self.name, self.addr),
        }
    }
}

struct Dialer {
    inbox: Inbox,
    events: Sender<Event>,
    dialing: Dialing,
    resolve: Resolve,
    session: Granted,
    /// The newest zxid of an answer. Notifications have none.
    last_zxid: i64,
}

impl Dialer {
    fn run(&mut self) -> Result<Infallible, Ended> {
        loop {
            let (host, hosts) = self.next_host()?;
            let addrs: Vec<SocketAddr> = hosts.iter().map(|host| host.addr).collect();
            let has_root = self.inbox.options.root.is_some();
            let mut up_at = None;
            let ended = match has_root && self.dialing.is_rebuilt(&addrs, Instant::now()) {
                true => self.look(&host),
                false => self.connect(&host, hosts.len() > 1).and_then(|mut link| {
                    up_at = Some(Instant::now());
                    Err(self.serve(&mut link, &host))
                }),
            };
            let Err(ended) = ended else {
                continue;
            };
            // Requests for this link, also those that are still to come, find it gone.
            self.inbox.link += 1;
            self.inbox.asked.clear();
            self.inbox.given_up = None;
            let now = Instant::now();
            let (failure, mut why) = ended.told(&host, up_at.is_some());
            match ended {
                Ended::Stopped => return Err(ended),
                Ended::Changed => {}
                Ended::Expired => self.session = Granted::NONE,
                _ => {
                    match up_at {
                        Some(at) if now >= at + STABLE => self.dialing.lost(host.addr, now),
                        _ => self.dialing.failed(host.addr, failure, now),
                    }
                    let pause = self.dialing.ready_at(&addrs, now) - now;
                    why += &format!("; the next try is in {:.1} s", pause.as_secs_f64());
                }
            }
            self.tell(Event::Down(why))?;
        }
    }

    fn tell(&self, event: Event) -> Result<(), Ended> {
        self.events.send(event).map_err(|_| Ended::Stopped)
    }

    /// Without a byte for so long, while one is due, a server is given up.
    fn patience(&self) -> Duration {
        let timeout = match self.session.timeout() {
            Duration::ZERO => self.inbox.options.timeout,
            granted => granted,
        };
        (timeout / 3).clamp(Duration::from_secs(1), Duration::from_secs(4))
    }

    /// Waits for the time of the next try; who is tried, and all there are.
    fn next_host(&mut self) -> Result<(Host, Vec<Host>), Ended> {
        let mut unresolved_at = Instant::now() + RESOLVE_LIMIT;
        loop {
            // While there is no link they count at once.
            self.inbox.is_changed = false;
            if let Some(zxid) = self.inbox.forgets_since.take() {
                (self.session, self.last_zxid) = (Granted::NONE, self.last_zxid.min(zxid));
            }
            if mem::take(&mut self.inbox.starts_over) {
                (self.session, self.last_zxid) = (Granted::NONE, 0);
                self.dialing.start_over();
            }
            let hosts = self.hosts();
            let addrs: Vec<SocketAddr> = hosts.iter().map(|host| host.addr).collect();
            let now = Instant::now();
            let (doing, wake_at) = if addrs.is_empty() {
                if unresolved_at <= now {
                    let names = self.inbox.options.address.join(", ");
                    self.tell(Event::Down(format!("no address of {names} is known")))?;
                    unresolved_at = now + 10 * RESOLVE_LIMIT;
                }
                ("waits for an address of ZooKeeper", now + RESOLVE_LOOK)
            } else {
                match self.dialing.next(&addrs, now) {
                    Ok(index) => return Ok((hosts[index].clone(), hosts)),
                    Err(at) => {
                        ("waits until it may connect to ZooKeeper", at.min(now + RESOLVE_LIMIT))
                    }
                }
            };
            activity::go_on(doing, &[]);
            self.inbox.wait(None, wake_at)?;
        }
    }

    fn hosts(&self) -> Vec<Host> {
        let mut hosts: Vec<Host> = Vec::new();
        for name in &self.inbox.options.address {
            for addr in (self.resolve)(name).into_iter().flatten() {
                if hosts.len() < MAX_ADDRS && hosts.iter().all(|host| host.addr != addr) {
                    hosts.push(Host { addr, name: name.clone() });
                }
            }
        }
        hosts
    }

    /// Makes a connection, and keeps or gets a session over it.
    fn connect(&mut self, host: &Host, has_others: bool) -> Result<Link, Ended> {
        let mut limit = self.patience();
        if has_others {
            let doublings = self.dialing.failures(host.addr).min(8);
            limit = limit.min(FIRST_CONNECT_LIMIT * 2u32.pow(doublings));
        }
        let is_believed = mutant::is("believes-servers-that-lag");
        let (session, last_zxid) = (self.session, if is_believed { 0 } else { self.last_zxid });
        let (link, granted) = self.shake_hands(host, limit, &session, last_zxid)?;
        self.session = granted;
        self.dialing.granted();
        Ok(link)
    }

    fn shake_hands(
        &mut self,
        host: &Host,
        limit: Duration,
        session: &Granted,
        last_zxid: i64,
    ) -> Result<(Link, Granted), Ended> {
        activity::now("connects to ZooKeeper", &[&host.addr.to_string()]);
        let mut link = Link::new(self.open(host.addr, Instant::now() + limit)?);
        let timeout_ms = self.inbox.options.timeout.as_millis().try_into().unwrap_or(i32::MAX);
        codec::write_handshake(&mut link.out, last_zxid, timeout_ms, session.id, &session.password);
        let frame = self.frame(&mut link)?;
        let granted = codec::read_granted(&link.input[frame.clone()])?;
        link.consume(frame.end);
        if granted.timeout().is_zero() {
            return Err(Ended::Expired);
        }
        self.inbox.options.digests.iter().for_each(|digest| link.prove(digest));
        Ok((link, granted))
    }

    fn open(&mut self, addr: SocketAddr, until: Instant) -> Result<TcpStream, Ended> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        let under_way = Some(rustix::io::Errno::INPROGRESS.raw_os_error());
        match socket.connect(&addr.into()) {
            Err(e) if e.raw_os_error() != under_way => return Err(e.into()),
            _ => {}
        }
        while !self.inbox.wait(Some((&socket, PollFlags::OUT)), until)? {
            if self.inbox.is_changed {
                return Err(Ended::Changed);
            }
            if Instant::now() >= until {
                return Err(Ended::Unreachable);
            }
        }
        socket.take_error()?.map_or(Ok(socket.into()), |e| Err(e.into()))
    }

    /// Waits for the next frame, and nothing else.
    fn frame(&mut self, link: &mut Link) -> Result<Range<usize>, Ended> {
        let patience = self.patience();
        let until = Instant::now() + patience;
        loop {
            if self.inbox.is_changed {
                return Err(Ended::Changed);
            }
            let moved = link.flush().and_then(|()| link.fill());
            if let Some(frame) = link.frame_at(0)? {
                return Ok(frame);
            }
            moved?;
            if Instant::now() >= until {
                return Err(Ended::Mute(patience));
            }
            self.inbox.wait(Some((&link.stream, link.wants())), until)?;
        }
    }

    /// Carries requests and answers until the link ends.
    fn serve(&mut self, link: &mut Link, host: &Host) -> Ended {
        self.inbox.link += 1;
        activity::now("carries requests and answers", &[&host.addr.to_string()]);
        let (server, id, timeout) = (host.addr, self.session.id, self.session.timeout());
        let (session, since) = (Granting { id, timeout }, self.last_zxid);
        let up = Event::Up { link: self.inbox.link, server, session, since };
        let Err(ended) = self.tell(up).and_then(|()| self.carry(link, timeout));
        if matches!(ended, Ended::Stopped) {
            link.say_goodbye();
        }
        // Whoever holds the other end learns of it now, whatever it has not read.
        let _ = link.stream.shutdown(Shutdown::Both);
        ended
    }

    fn carry(&mut self, link: &mut Link, timeout: Duration) -> Result<Infallible, Ended> {
        let patience = self.patience();
        let mut sent_at = Instant::now();
        loop {
            if self.inbox.is_changed {
                return Err(Ended::Changed);
            }
            while let Some((ticket, op)) = self.inbox.asked.pop_front() {
                link.ask(ticket, &op);
                sent_at = Instant::now();
            }
            if Instant::now() >= sent_at + timeout / 3 {
                link.ping();
                sent_at = Instant::now();
            }
            let moved = link.flush().and_then(|()| link.fill());
            // Frames that came before the end count.
            self.take_frames(link)?;
            moved?;
            if let Some(why) = self.inbox.given_up.take() {
                return Err(Ended::Distrusted(why));
            }
            let mut wake_at = sent_at + timeout / 3;
            if let Some(late_at) = link.late_at(patience) {
                if Instant::now() >= late_at {
                    return Err(Ended::Mute(patience));
                }
                wake_at = wake_at.min(late_at);
            }
            self.inbox.wait(Some((&link.stream, link.wants())), wake_at)?;
        }
    }

    fn take_frames(&mut self, link: &mut Link) -> Result<(), Ended> {
        let mut read = 0;
        while let Some(frame) = link.frame_at(read)? {
            read = frame.end;
            match codec::read_frame(&link.input[frame])? {
                Frame::Reply { xid, zxid, result } => {
                    let due = link.due.pop_front().ok_or(Malformed("an answer to nothing"))?;
                    if due.xid != xid {
                        return Err(Malformed("answers out of order").into());
                    }
                    self.last_zxid = self.last_zxid.max(zxid);
                    let result = match result {
                        Ok(result) => Ok(codec::read_answer(due.kind, result)?),
                        Err(Code::SESSION_EXPIRED) => return Err(Ended::Expired),
                        Err(code) => Err(code),
                    };
                    self.tell(Event::Reply { ticket: due.ticket, zxid, result })?;
                }
                Frame::Pong(zxid) => {
                    link.is_pong_due = false;
                    self.tell(Event::Pong { zxid })?;
                }
                Frame::Auth(Ok(())) => link.is_auth_due = false,
                Frame::Auth(Err(code)) => return Err(Ended::Unproved(code)),
                Frame::Event(event, path) => {
                    self.tell(Event::Fired { event, path, at: Instant::now() })?;
                }
                Frame::Other => {}
            }
        }
        link.consume(read);
        Ok(())
    }

    /// Asks for the root as one who has never seen anything. Nothing else is read: it may be another ZooKeeper.
    fn look(&mut self, host: &Host) -> Result<(), Ended> {
        let (mut link, _) = self.shake_hands(host, self.patience(), &Granted::NONE, 0)?;
        let path = self.inbox.options.root.clone().unwrap_or_default();
        link.ask(0, &Op::Exists { path, watch: false });
        link.ask(0, &Op::Close);
        loop {
            let frame = self.frame(&mut link)?;
            if let Frame::Reply { zxid, result, .. } =
                codec::read_frame(&link.input[frame.clone()])?
            {
                let root = match result {
                    Ok(result) => Ok(codec::read_stat(result)?),
                    Err(code) => Err(code),
                };
                self.dialing.looked(Instant::now());
                return self.tell(Event::Looked { server: host.addr, zxid, root });
            }
            link.consume(frame.end);
        }
    }
}

/// A request that is to be answered.
struct Due {
    xid: i32,
    ticket: u64,
    kind: Kind,
}

/// A connection, its buffers, and what is due over it.
struct Link {
    stream: TcpStream,
    out: Vec<u8>,
    written: usize,
    input: Vec<u8>,
    last_xid: i32,
    /// Requests, in the order of their answers.
    due: VecDeque<Due>,
    is_pong_due: bool,
    is_auth_due: bool,
    /// When a byte came last, or what is due was asked although nothing was.
    progress_at: Instant,
}

impl Link {
    fn new(stream: TcpStream) -> Self {
        Link {
            stream,
            out: Vec::new(),
            written: 0,
            input: Vec::new(),
            last_xid: 0,
            due: VecDeque::new(),
            is_pong_due: false,
            is_auth_due: false,
            progress_at: Instant::now(),
        }
    }

    fn ask(&mut self, ticket: u64, op: &Op) {
        self.begin();
        // Negative ones mean something else.
        self.last_xid = self.last_xid.checked_add(1).unwrap_or(1);
        let kind = codec::write_request(&mut self.out, self.last_xid, op);
        self.due.push_back(Due { xid: self.last_xid, ticket, kind });
    }

    fn ping(&mut self) {
        self.begin();
        codec::write_ping(&mut self.out);
        self.is_pong_due = true;
    }

    fn prove(&mut self, digest: &str) {
        self.begin();
        codec::write_auth(&mut self.out, digest);
        self.is_auth_due = true;
    }

    /// Something is about to be due.
    fn begin(&mut self) {
        if !self.is_due() {
            self.progress_at = Instant::now();
        }
    }

    fn is_due(&self) -> bool {
        self.is_pong_due || self.is_auth_due || !self.due.is_empty()
    }

    /// When it is late, if no byte comes before.
    fn late_at(&self, patience: Duration) -> Option<Instant> {
        self.is_due().then_some(self.progress_at + patience)
    }

    /// Ends the session, so that the server need not wait for its end.
    fn say_goodbye(&mut self) {
        self.ask(0, &Op::Close);
        let until = Instant::now() + CLOSE_LIMIT;
        // The server closes the connection behind its answer.
        while self.flush().and_then(|()| self.fill()).is_ok() && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn is_flushed(&self) -> bool {
        self.written == self.out.len()
    }

    fn wants(&self) -> PollFlags {
        if self.is_flushed() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.is_flushed() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(len) => self.written += len,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.out.clear();
        self.out.shrink_to(KEPT_BYTES);
        self.written = 0;
        Ok(())
    }

    /// Reads what has come, as much as one read takes.
    fn fill(&mut self) -> io::Result<()> {
        let start = self.input.len();
        self.input.resize(start + READ_BYTES, 0);
        let read = loop {
            match self.stream.read(&mut self.input[start..]) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.input.truncate(start + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => {
                self.progress_at = Instant::now();
                Ok(())
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Where the frame stands that begins there, if it has come.
    fn frame_at(&self, start: usize) -> Result<Option<Range<usize>>, Malformed> {
        let Some(len) = codec::frame_len(&self.input[start..])? else {
            return Ok(None);
        };
        let start = start + LEN_BYTES;
        Ok((self.input.len() >= start + len).then_some(start..start + len))
    }

    fn consume(&mut self, end: usize) {
        self.input.drain(..end);
        if self.input.is_empty() {
            self.input.shrink_to(KEPT_BYTES);
        }
    }
}

fn is_end(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        ErrorKind::UnexpectedEof
            | ErrorKind::ConnectionReset
            | ErrorKind::BrokenPipe
            | ErrorKind::ConnectionAborted
    )
}

/// Without the system's number for it, which tells an operator nothing.
fn plain(e: &io::Error) -> String {
    let text = e.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

#[cfg(test)]
mod tests;
