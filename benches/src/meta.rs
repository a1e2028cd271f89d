//! A stand-in MetaServer that costs much less than any proxy in front of it: one thread, one answer encoded beforehand,
//! a few microseconds a query over any number of connections. A process of its own, so that its processor time is not
//! taken for that of others.
//!
//! ```text
//! bench all ── spawns ──▶ bench meta ─┬─ main: epoll ─▶ read, cut, answer with one write
//!     │                               └─ control: one line in, one line of counters out; ends the process at end of file
//!     └── a line on stdin ─▶ "calls=.. connections=.. faults=.."
//! ```
//! It gives every table the same answer, and does not look at what is asked beyond the method.

use std::io::{self, BufRead, BufReader, ErrorKind, PipeReader, PipeWriter, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{env, process, thread};

use harness::process::Process;
use harness::wire::Request;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;
use socket2::{Domain, Socket, Type};

use crate::connection::{Connection, READ_BYTES, Ready, Taken};
use crate::frames::{Reply, request_seq};

const LISTENER: Token = Token(usize::MAX);
const LISTENING: &str = "listening on ";
/// More than a proxy may have waiting for connections in a herd; the kernel lowers it to its own limit.
const BACKLOG: i32 = 16_384;
/// A connection whose peer leaves so much unread is not read from until it has taken it.
const MAX_UNSENT: usize = 4 << 20;

/// The arguments of `bench meta`.
pub struct Options {
    /// Where to listen.
    pub listen: SocketAddr,
    /// In the answers.
    pub app_id: i32,
    /// In the answers.
    pub partitions: i32,
}

/// Runs until stdin ends.
pub fn run(options: &Options) -> io::Result<()> {
    rlimit::increase_nofile_limit(u64::MAX)?;
    let socket = Socket::new(Domain::for_address(options.listen), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&options.listen.into())?;
    socket.listen(BACKLOG)?;
    let mut listener = TcpListener::from_std(socket.into());
    let poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;

    let counters = Arc::new(Counters::default());
    println!("{LISTENING}{}", listener.local_addr()?);
    thread::Builder::new().name("control".to_owned()).spawn({
        let counters = Arc::clone(&counters);
        move || control(&counters)
    })?;
    Server {
        poll,
        listener,
        links: Slab::new(),
        reply: Reply::new(options.app_id, options.partitions),
        counters,
        scratch: vec![0; READ_BYTES],
        answers: Vec::new(),
    }
    .serve()
}

#[derive(Default)]
struct Counters {
    calls: AtomicU64,
    connections: AtomicU64,
    faults: AtomicU64,
}

/// When stdin ends, the process that started this one has ended, or wants it to end.
fn control(counters: &Counters) -> ! {
    let mut line = String::new();
    let mut stdin = io::stdin().lock();
    while let Ok(1..) = stdin.read_line(&mut line) {
        let [calls, connections, faults] =
            [&counters.calls, &counters.connections, &counters.faults]
                .map(|counter| counter.load(Ordering::Relaxed));
        println!("calls={calls} connections={connections} faults={faults}");
        line.clear();
    }
    process::exit(0)
}

struct Server {
    poll: Poll,
    listener: TcpListener,
    links: Slab<Connection>,
    reply: Reply,
    counters: Arc<Counters>,
    scratch: Vec<u8>,
    /// Answers to what one read took.
    answers: Vec<u8>,
}

/// The fate of a connection.
#[derive(PartialEq, Eq)]
enum Fate {
    Stays,
    Ends,
}

impl Server {
    fn serve(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(e) if e.kind() != ErrorKind::Interrupted => return Err(e),
                _ => {}
            }
            for event in &events {
                let Token(at) = event.token();
                if event.token() == LISTENER {
                    self.accept()?;
                } else if self.attend(at, event.into()) == Fate::Ends {
                    self.links.remove(at);
                    self.counters.connections.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::ConnectionAborted => continue,
                // Out of descriptors: a measurement would go wrong without a word.
                Err(e) => return Err(e),
            };
            stream.set_nodelay(true)?;
            let slot = self.links.vacant_entry();
            let token = Token(slot.key());
            slot.insert(Connection::register(stream, self.poll.registry(), token)?);
            self.counters.connections.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn attend(&mut self, at: usize, ready: Ready) -> Fate {
        let Some(link) = self.links.get_mut(at) else {
            return Fate::Stays; // it ended earlier in this turn
        };
        let was_full = link.unsent() > MAX_UNSENT;
        if link.flush().is_err() {
            return Fate::Ends;
        }
        if ready.readable || was_full { self.answer(at, ready.ending) } else { Fate::Stays }
    }

    /// Reads and answers what has come, unless the peer takes no answers.
    fn answer(&mut self, at: usize, ending: bool) -> Fate {
        let link = &mut self.links[at];
        while link.unsent() <= MAX_UNSENT {
            let mut calls = 0;
            self.answers.clear();
            let taken = link.read(&mut self.scratch, ending, Request::frame_len, |frame| {
                self.reply.append(request_seq(frame)?, &mut self.answers);
                calls += 1;
                Ok(())
            });
            self.counters.calls.fetch_add(calls, Ordering::Relaxed);
            if let Err(e) = &taken
                && e.kind() == ErrorKind::Other
            {
                self.counters.faults.fetch_add(1, Ordering::Relaxed);
                eprintln!("bench meta: {e}");
            }
            match (taken, link.send(&self.answers)) {
                (Ok(Taken::All), Ok(())) => break,
                (Ok(Taken::Some), Ok(())) => {}
                _ => return Fate::Ends,
            }
        }
        Fate::Stays
    }
}

/// `bench meta` as a child process. Killed on drop.
pub struct MetaProcess {
    addr: SocketAddr,
    partitions: i32,
    process: Process,
    stdin: PipeWriter,
    stdout: BufReader<PipeReader>,
}

impl MetaProcess {
    /// Starts it on a free port of 127.0.0.1; returns when it listens.
    pub fn start(app_id: i32, partitions: i32) -> io::Result<Self> {
        let (child_in, stdin) = io::pipe()?;
        let (stdout, child_out) = io::pipe()?;
        let mut command = Command::new(env::current_exe()?);
        command
            .args(["meta", "--app-id", &app_id.to_string()])
            .args(["--partitions", &partitions.to_string()])
            .args(["--listen", &SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).to_string()])
            .stdin(Stdio::from(child_in))
            .stdout(Stdio::from(child_out));
        let process = Process::spawn("bench meta", &mut command)?;
        drop(command); // with our copies of its ends of the pipes
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let addr = line
            .trim_end()
            .strip_prefix(LISTENING)
            .and_then(|addr| addr.parse().ok())
            .ok_or_else(|| io::Error::other(format!("bench meta: no address in {line:?}")))?;
        Ok(MetaProcess { addr, partitions, process, stdin, stdout })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The number that the table has in its answers.
    pub fn partitions(&self) -> i32 {
        self.partitions
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// How many queries it has answered. A request that it could not read is the asker's fault, and an error here.
    pub fn calls(&mut self) -> io::Result<u64> {
        self.stdin.write_all(b"\n")?;
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        let value = |key: &str| -> Option<u64> {
            line.split_whitespace()
                .find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))?
                .parse()
                .ok()
        };
        match (value("calls"), value("faults")) {
            (Some(calls), Some(0)) => Ok(calls),
            _ => Err(io::Error::other(format!("bench meta: {:?}", line.trim_end()))),
        }
    }
}
