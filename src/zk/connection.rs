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
use std::io;
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

use super::codec::{self, Answer, Code, Event as Fired, Frame, Granted, Malformed, Op, Stat};
use super::dial::Dialing;
use super::ended::{Ended, Host};
use super::link::Link;
use crate::activity;
use crate::mutant;

/// Events that wait for their reader.
const MAX_EVENTS: usize = 1024;
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
    /// There is a connection and a session. Requests name the connection by its number, and watches are set again since
    /// the newest zxid that was seen before.
    Up { link: u64, server: SocketAddr, session: Granting, since: i64 },
    /// There is none, and why; also after each try that fails.
    Down(String),
    /// The request of this ticket was answered, by a server that knew of changes up to `zxid`.
    Reply { ticket: u64, zxid: i64, result: Result<Answer, Code> },
    /// A ping was answered: all watches that fired up to this zxid have been told.
    Pong { zxid: i64 },
    /// A watch fired, and is used up. The server's word was read at this time.
    Fired { event: Fired, path: String, at: Instant },
    /// All servers have closed early for long, and one was asked as by a client that has never seen anything: the root
    /// as it is there. `zxid`: the newest change that the server knows of.
    Looked { server: SocketAddr, zxid: i64, root: Result<Stat, Code> },
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
            // The poll was interrupted, or memory was short. The caller looks again.
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
        // The other end learns of it at once, before it has read everything.
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

#[cfg(test)]
mod tests;
