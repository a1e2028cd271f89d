//! The load generator: one thread, any number of connections, and the ways in which clients come.
//!
//! ```text
//! closed   each connection asks again when it is answered, `depth` queries at a time
//! open     a query is due each 1/rate s, whatever became of those before; its time counts from when it was due
//! herd     all connections ask at once, once
//! list     each of many tables is asked once, by whichever connection is free
//! churn    connect, ask once, close
//! ```
//! A phase is bounded in count or time, and one in which nothing comes back for [`SILENCE`] has failed.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use harness::wire::Response;
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use socket2::{Domain, Socket, Type};

use crate::connection::{Connection, READ_BYTES, Ready, Taken};
use crate::frames::{Answer, Question};
use crate::tally::Tally;

/// A target that answers nothing for so long has failed; meta-proxy itself answers within 1.5 s, whatever happens.
const SILENCE: Duration = Duration::from_secs(5);
/// Time that a phase may take beyond the time it was given.
const OVERTIME: Duration = Duration::from_secs(30);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Connections from one source address: meta-proxy takes 4,096 of each.
const PER_SOURCE: usize = 2_000;
/// Source addresses of connections that come and go, so that ports in TIME_WAIT are not missed.
const CHURN_SOURCES: usize = 16;
const TIMER: Token = Token(usize::MAX);

/// Connections to one target, and what they can ask.
pub struct Load {
    target: SocketAddr,
    poll: Poll,
    events: Events,
    clients: Vec<Client>,
    questions: Vec<Question>,
    /// Queries asked and not answered.
    pending: usize,
    /// When the phase has failed.
    deadline: Instant,
    scratch: Vec<u8>,
    frames: Vec<u8>,
}

struct Client {
    connection: Connection,
    last_seq: i32,
    /// The queries under way, oldest first: seq, and the time it counts from.
    asked: VecDeque<(i32, Instant)>,
}

/// A query: which connection asks which question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    pub client: usize,
    pub question: usize,
}

/// One answer that came.
pub struct Answered {
    /// To which connection.
    pub client: usize,
    /// When.
    pub at: Instant,
}

impl Load {
    /// Opens so many connections, one after the other.
    pub fn connect(
        target: SocketAddr,
        clients: usize,
        questions: Vec<Question>,
    ) -> io::Result<Self> {
        let hosts = (0..clients).map(|at| source(at / PER_SOURCE));
        Self::connect_from(target, hosts, questions)
    }

    /// Opens a connection from each of these addresses.
    pub fn connect_from(
        target: SocketAddr,
        hosts: impl IntoIterator<Item = Ipv4Addr>,
        questions: Vec<Question>,
    ) -> io::Result<Self> {
        let mut load = Load {
            target,
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            clients: Vec::new(),
            questions,
            pending: 0,
            deadline: Instant::now(),
            scratch: vec![0; READ_BYTES],
            frames: Vec::new(),
        };
        for (at, host) in hosts.into_iter().enumerate() {
            let client = load.client(at, dial(host, target)?)?;
            load.clients.push(client);
        }
        Ok(load)
    }

    /// Each connection keeps `depth` queries under way. Connections share the questions out among them.
    pub fn closed(&mut self, depth: usize, during: Duration) -> io::Result<Tally> {
        let end = Instant::now() + during;
        let (clients, questions) = (self.clients.len(), self.questions.len());
        let ask = |client| Ask { client, question: client % questions };
        let first: Vec<Ask> = (0..clients * depth).map(|at| ask(at / depth)).collect();
        self.exchange(during, first, |answered| (answered.at < end).then(|| ask(answered.client)))
    }

    /// Every connection asks the first question once, all at the same time.
    pub fn herd(&mut self) -> io::Result<Tally> {
        self.each_client(self.clients.len())
    }

    /// Every connection asks the first question once, so many at a time.
    pub fn each_client(&mut self, at_once: usize) -> io::Result<Tally> {
        let mut left = (0..self.clients.len()).map(|client| Ask { client, question: 0 });
        let first: Vec<Ask> = left.by_ref().take(at_once).collect();
        self.exchange(Duration::ZERO, first, |_| left.next())
    }

    /// Every question is asked once; a connection that has its answer takes the next one.
    pub fn list(&mut self) -> io::Result<Tally> {
        let mut questions = 0..self.questions.len();
        let first: Vec<Ask> = (0..self.clients.len())
            .zip(questions.by_ref())
            .map(|(client, question)| Ask { client, question })
            .collect();
        self.exchange(Duration::ZERO, first, |answered| {
            let question = questions.next()?;
            Some(Ask { client: answered.client, question })
        })
    }

    /// Asks at a steady rate, over all connections in turn. The tally's time of each query counts from when it was due,
    /// so that a target which makes the generator wait does not get away with it; `lateness` is the generator's own.
    pub fn open(&mut self, per_second: f64, during: Duration) -> io::Result<Open> {
        let (clients, questions) = (self.clients.len(), self.questions.len());
        let count = (per_second * during.as_secs_f64()) as usize;
        let period = Duration::from_secs_f64(1.0 / per_second);
        let timer = self.start_timer(period)?;
        let start = self.begin(during);
        let mut tally = Tally::starting(start, count);
        let mut lateness = Tally::starting(start, count);
        let mut sent = 0;
        while sent < count || self.pending > 0 {
            self.turn(&mut tally, |_| None)?;
            // Must be read for the timer to go on; what it says is known better by the clock.
            match rustix::io::read(&timer, &mut [0; 8]) {
                Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
                Err(e) => return Err(e.into()),
            }
            let now = Instant::now();
            let due = count.min(((now - start).as_secs_f64() * per_second) as usize);
            for at in sent..due {
                let intended = start + Duration::from_secs_f64((at + 1) as f64 / per_second);
                let ask = Ask { client: at % clients, question: at % questions };
                lateness.add(intended, now, true);
                self.ask([ask], intended)?;
            }
            sent = sent.max(due);
        }
        self.poll.registry().deregister(&mut SourceFd(&timer.as_raw_fd()))?;
        Ok(Open { tally, lateness })
    }

    /// As many connections as there are clients are always on their way: made, asked over once, closed. Ends after
    /// `count` of them or when the time is over. The tally's times are those from connect to answer.
    pub fn churn(&mut self, count: usize, during: Duration) -> io::Result<Tally> {
        let start = self.begin(during);
        let mut tally = Tally::starting(start, count);
        let mut free: Vec<usize> = (0..self.clients.len()).collect();
        let mut made = 0;
        loop {
            let now = Instant::now();
            for client in free.drain(..) {
                if made < count && now - start < during {
                    self.clients[client] = self.redial(client, source(made % CHURN_SOURCES))?;
                    self.ask([Ask { client, question: 0 }], Instant::now())?;
                    made += 1;
                }
            }
            if self.pending == 0 {
                return Ok(tally);
            }
            self.turn(&mut tally, |answered| {
                free.push(answered.client);
                None
            })?;
        }
    }

    /// Asks `first`, then what `next` says to each answer, until nothing is under way.
    fn exchange(
        &mut self,
        during: Duration,
        first: Vec<Ask>,
        mut next: impl FnMut(&Answered) -> Option<Ask>,
    ) -> io::Result<Tally> {
        let start = self.begin(during);
        let mut tally = Tally::starting(start, 0);
        self.ask(first, start)?;
        while self.pending > 0 {
            self.turn(&mut tally, &mut next)?;
        }
        Ok(tally)
    }

    fn begin(&mut self, during: Duration) -> Instant {
        let start = Instant::now();
        self.deadline = start + during + OVERTIME;
        start
    }

    /// Sends queries, those of one connection that follow each other with one write. Their times count from `since`.
    fn ask(&mut self, asks: impl IntoIterator<Item = Ask>, since: Instant) -> io::Result<()> {
        let mut asks = asks.into_iter().peekable();
        self.frames.clear();
        while let Some(Ask { client, question }) = asks.next() {
            let asker = &mut self.clients[client];
            asker.last_seq = asker.last_seq.wrapping_add(1);
            asker.asked.push_back((asker.last_seq, since));
            self.questions[question].append(asker.last_seq, &mut self.frames);
            self.pending += 1;
            if asks.peek().is_none_or(|next| next.client != client) {
                asker.connection.send(&self.frames)?;
                self.frames.clear();
            }
        }
        Ok(())
    }

    /// Waits for something to happen, and takes what came.
    fn turn(
        &mut self,
        tally: &mut Tally,
        mut next: impl FnMut(&Answered) -> Option<Ask>,
    ) -> io::Result<()> {
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        let polled_at = Instant::now();
        match self.poll.poll(&mut events, Some(SILENCE)) {
            Err(e) if e.kind() != ErrorKind::Interrupted => return Err(e),
            _ => {}
        }
        let silent = events.is_empty() && polled_at.elapsed() >= SILENCE;
        if silent || polled_at > self.deadline {
            let pending = self.pending;
            return Err(io::Error::other(format!("gave up with {pending} queries unanswered")));
        }
        for event in &events {
            let Token(client) = event.token();
            if event.token() != TIMER {
                self.attend(client, event.into(), tally, &mut next)?;
            }
        }
        self.events = events;
        Ok(())
    }

    fn attend(
        &mut self,
        client: usize,
        ready: Ready,
        tally: &mut Tally,
        next: &mut impl FnMut(&Answered) -> Option<Ask>,
    ) -> io::Result<()> {
        self.clients[client].connection.flush()?;
        if !ready.readable {
            return Ok(());
        }
        loop {
            let Client { connection, asked, .. } = &mut self.clients[client];
            let mut asks: Vec<Ask> = Vec::new();
            let mut at = None;
            let pending = &mut self.pending;
            let taken =
                connection.read(&mut self.scratch, ready.ending, Response::frame_len, |frame| {
                    let at = *at.get_or_insert_with(Instant::now);
                    let answer = Answer::read(frame)?;
                    let known = asked.iter().position(|(seq, _)| *seq == answer.seq);
                    let Some((_, since)) = known.and_then(|known| asked.remove(known)) else {
                        return Err(format!("an answer with seq {}, not asked", answer.seq));
                    };
                    *pending -= 1;
                    tally.add(since, at, answer.is_ok());
                    asks.extend(next(&Answered { client, at }));
                    Ok(())
                })?;
            if !asks.is_empty() {
                self.ask(asks, Instant::now())?;
            }
            match taken {
                Taken::All => return Ok(()),
                Taken::Some => {}
                Taken::End => return Err(io::Error::other("the target closed a connection")),
            }
        }
    }

    /// A connection that is still being made; what it asks is sent when it is.
    fn redial(&self, at: usize, source: Ipv4Addr) -> io::Result<Client> {
        let socket = socket_from(source)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&self.target.into()) {
            Err(e) if e.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
                Err(e)
            }
            _ => self.client(at, socket),
        }
    }

    fn client(&self, at: usize, socket: Socket) -> io::Result<Client> {
        let stream = TcpStream::from_std(socket.into());
        let connection = Connection::register(stream, self.poll.registry(), Token(at))?;
        Ok(Client { connection, last_seq: 0, asked: VecDeque::new() })
    }

    fn start_timer(&self, period: Duration) -> io::Result<OwnedFd> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
        let period =
            Timespec { tv_sec: period.as_secs() as i64, tv_nsec: period.subsec_nanos() as _ };
        let times = Itimerspec { it_interval: period, it_value: period };
        timerfd_settime(timer.as_fd(), TimerfdTimerFlags::empty(), &times)?;
        let raw = timer.as_raw_fd();
        self.poll.registry().register(&mut SourceFd(&raw), TIMER, Interest::READABLE)?;
        Ok(timer)
    }
}

/// The outcome of an open loop.
pub struct Open {
    /// Counts and times of the queries.
    pub tally: Tally,
    /// How long after they were due the generator sent them.
    pub lateness: Tally,
}

/// 127.0.0.2 and on: any of 127.0.0.0/8 can be a source on loopback.
fn source(at: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + 1 + at as u32)
}

/// A connection from this address, which does not block.
fn dial(host: Ipv4Addr, target: SocketAddr) -> io::Result<Socket> {
    let socket = socket_from(host)?;
    socket.connect_timeout(&target.into(), CONNECT_WITHIN)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn socket_from(source: Ipv4Addr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use harness::meta_server::{Behaviour, MetaServer};
    use harness::wire::QueryCfgResponse;

    const SHORT: Duration = Duration::from_millis(100);

    fn server() -> MetaServer {
        let server = MetaServer::start();
        let primary = "127.0.0.1:34801".parse().expect("an address");
        for table in ["a", "b"] {
            server.put_table(table, QueryCfgResponse::table(1, 4, primary));
        }
        server
    }

    fn load(server: &MetaServer, clients: usize, tables: &[&str]) -> Load {
        let questions = tables.iter().map(|table| Question::new(table)).collect();
        Load::connect(server.addr(), clients, questions).expect("the server listens")
    }

    #[test]
    fn a_closed_loop_goes_on_for_its_time_and_leaves_nothing_under_way() {
        let server = server();
        let mut load = load(&server, 3, &["a", "b"]);
        for depth in [1, 5] {
            let tally = load.closed(depth, SHORT).expect("answers");
            assert!(tally.elapsed() >= SHORT && tally.count() > 15, "{}", tally.count());
            assert_eq!((tally.errors(), load.pending), (0, 0));
        }
        assert!(server.calls_for("b") > 0);
    }

    #[test]
    fn an_open_loop_asks_as_often_as_it_was_told_and_counts_from_when_it_was_due() {
        let server = server();
        let delay = Duration::from_millis(30);
        server.set(Behaviour::Slow(delay));
        let open = load(&server, 2, &["a"]).open(200.0, SHORT).expect("answers");
        assert_eq!((open.tally.count(), open.lateness.count(), server.calls()), (20, 20, 20));
        let [least, p50] = open.tally.quantiles_us([0.0, 0.5]);
        assert!(least >= delay.as_micros() as f64 && p50 >= least, "{least} {p50}");
    }

    #[test]
    fn everyone_asks_once() {
        let server = server();
        let mut load = load(&server, 7, &["a"]);
        for at_once in [1, 3, 7, 100] {
            assert_eq!(load.each_client(at_once).expect("answers").count(), 7, "{at_once}");
        }
        assert_eq!(load.herd().expect("answers").count(), 7);
        assert_eq!(server.calls(), 35);
    }

    #[test]
    fn every_table_of_a_list_is_asked_for_once() {
        let server = server();
        let tally = load(&server, 2, &["a", "nosuch", "b"]).list().expect("answers");
        assert_eq!((tally.count(), tally.errors()), (3, 1));
        for table in ["a", "nosuch", "b"] {
            assert_eq!(server.calls_for(table), 1, "{table}");
        }
    }

    #[test]
    fn connections_come_and_go() {
        let server = server();
        let tally = load(&server, 4, &["a"]).churn(50, SHORT * 100).expect("answers");
        assert_eq!((tally.count(), tally.errors(), server.calls()), (50, 0, 50));
    }

    #[test]
    fn a_target_that_closes_has_failed() {
        let server = server();
        server.set(Behaviour::CloseOnRequest);
        let failed = load(&server, 1, &["a"]).herd().err().expect("no answer");
        assert!(failed.to_string().contains("closed"), "{failed}");
    }
}
