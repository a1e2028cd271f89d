//! A non-blocking connection to one MetaServer, with many questions under way on it. The worker that holds the link
//! decides how long it waits, then parks it (`upstream::watch`).
//!
//! ```text
//! connect ─▶ ask(questions): one write ─▶ progress: writes and reads without waiting ─▶ answers, by seq
//!    │                                        └── nothing yet: wait (poll), or park
//!    └── refused, or not made within CONNECT_TIMEOUT: LinkError
//! ```
//! A MetaServer answers several requests of one write in any order. An answer to no question breaks the link.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::event::Source;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::sharing::Sent;
use crate::wire::answer::{self, Answer, BadAnswer, LEN_BYTES};
use crate::wire::message;

/// Time for one connect. A MetaServer is in the same region; if a SYN to it is lost twice, ask another server.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);

/// Bytes for one read: dozens of answers, or a part of a large one.
const READ_BYTES: usize = 16 * 1024;

/// Most bytes to read in one go, so that a server that sends without end does not hold a worker.
const MAX_BYTES_PER_PROGRESS: usize = 4 * 1024 * 1024;

/// Allocate at most this many bytes before an answer arrives: its length field may be wrong.
const MAX_TRUSTED_BYTES: usize = 1024 * 1024;

#[derive(Debug)]
pub enum LinkError {
    /// No answer came in time.
    TimedOut,
    /// The connection could not be made, or broke.
    Io(io::Error),
    /// The server closed the connection.
    Closed,
    /// The answer does not fit the question.
    Bad(BadAnswer),
}

impl LinkError {
    /// A short name for counters.
    pub fn kind(&self) -> &'static str {
        match self {
            LinkError::TimedOut => "timeout",
            LinkError::Io(e) if e.kind() == ErrorKind::TimedOut => "timeout",
            LinkError::Io(e) if e.kind() == ErrorKind::ConnectionRefused => "refused",
            LinkError::Io(e) if e.kind() == ErrorKind::NetworkUnreachable => "unreachable",
            LinkError::Io(e) if e.kind() == ErrorKind::HostUnreachable => "unreachable",
            LinkError::Io(_) => "io",
            LinkError::Closed => "closed",
            LinkError::Bad(why) => why.kind(),
        }
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkError::TimedOut => write!(f, "no answer in time"),
            LinkError::Io(e) => e.fmt(f),
            LinkError::Closed => write!(f, "closed by the MetaServer"),
            LinkError::Bad(why) => why.fmt(f),
        }
    }
}

impl std::error::Error for LinkError {}

impl From<io::Error> for LinkError {
    fn from(e: io::Error) -> Self {
        LinkError::Io(e)
    }
}

pub struct Answered {
    /// The question.
    pub sent: Sent,
    pub answer: Answer,
    pub frame: Vec<u8>,
}

/// A connection, idle or with questions under way.
pub struct Link {
    stream: TcpStream,
    pub addr: SocketAddr,
    is_connected: bool,
    /// Whether the link was used before the questions under way.
    is_used: bool,
    /// The seq of the next question.
    seq: i32,
    /// The questions under way, the one of `first_seq` first; `None`: answered.
    pending: Vec<Option<Sent>>,
    first_seq: i32,
    unanswered: usize,
    out: Vec<u8>,
    written: usize,
    /// Bytes of unfinished answers.
    input: Vec<u8>,
    chunk: Box<[u8]>,
    /// When the questions under way were sent, or the link became idle.
    since: Instant,
    has_received: bool,
}

impl Link {
    /// Begins to connect to `addr`; [`Link::progress`] returns the outcome.
    pub fn connect(addr: SocketAddr) -> Result<Self, LinkError> {
        Ok(Link {
            stream: TcpStream::connect(addr)?,
            addr,
            is_connected: false,
            is_used: false,
            seq: 1,
            pending: Vec::new(),
            first_seq: 1,
            unanswered: 0,
            out: Vec::new(),
            written: 0,
            input: Vec::new(),
            chunk: vec![0; READ_BYTES].into(),
            since: Instant::now(),
            has_received: false,
        })
    }

    /// Sends these questions; their arguments must have passed `read_table`. The link must be idle.
    pub fn ask(&mut self, questions: Vec<Sent>) {
        debug_assert_eq!(self.unanswered, 0);
        (self.first_seq, self.unanswered) = (self.seq, questions.len());
        self.out.clear();
        self.written = 0;
        for sent in &questions {
            message::write_query(self.seq, &sent.key, &mut self.out);
            self.seq = self.seq.wrapping_add(1);
        }
        self.pending.clear();
        self.pending.extend(questions.into_iter().map(Some));
        (self.since, self.has_received) = (Instant::now(), false);
    }

    /// Writes and reads without waiting, and adds answers to `answers`. True: bytes came.
    pub fn progress(&mut self, answers: &mut Vec<Answered>) -> Result<bool, LinkError> {
        if !self.is_connected && !self.finish_connect()? {
            return match self.since.elapsed() >= CONNECT_TIMEOUT {
                true => Err(io::Error::from(ErrorKind::TimedOut).into()),
                false => Ok(false),
            };
        }
        self.write()?;
        let mut received = 0;
        while self.unanswered > 0 && received < MAX_BYTES_PER_PROGRESS {
            match self.stream.read(&mut self.chunk) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(n) => {
                    self.has_received = true;
                    received += n;
                    let chunk = mem::take(&mut self.chunk);
                    let taken = self.cut(&chunk[..n], answers);
                    let is_all = n < chunk.len();
                    self.chunk = chunk;
                    taken.map_err(LinkError::Bad)?;
                    if is_all {
                        break;
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(received > 0)
    }

    /// Returns true when the connection is made.
    fn finish_connect(&mut self) -> Result<bool, LinkError> {
        if let Some(e) = self.stream.take_error()? {
            return Err(e.into());
        }
        self.is_connected = self.stream.peer_addr().is_ok();
        if self.is_connected {
            self.stream.set_nodelay(true)?;
        }
        Ok(self.is_connected)
    }

    fn write(&mut self) -> Result<(), LinkError> {
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(n) => self.written += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Cuts whole answers out of the bytes that came.
    fn cut(&mut self, mut bytes: &[u8], answers: &mut Vec<Answered>) -> Result<(), BadAnswer> {
        while !bytes.is_empty() {
            // Most answers come whole and need no copy; `input` collects the pieces of the others.
            if self.input.is_empty()
                && let Some(len) = claimed_len(bytes)?
                && len <= bytes.len()
            {
                let (frame, rest) = bytes.split_at(len);
                answers.push(self.read_answer(frame.to_vec())?);
                bytes = rest;
                continue;
            }
            let claimed = claimed_len(&self.input)?;
            let missing = claimed.unwrap_or(LEN_BYTES) - self.input.len();
            let (more, rest) = bytes.split_at(missing.min(bytes.len()));
            self.input.extend_from_slice(more);
            bytes = rest;
            if claimed == Some(self.input.len()) {
                let frame = mem::take(&mut self.input);
                answers.push(self.read_answer(frame)?);
            } else if let Some(len) = claimed_len(&self.input)? {
                self.input.reserve_exact(len.min(MAX_TRUSTED_BYTES) - LEN_BYTES.min(len));
            }
        }
        Ok(())
    }

    fn read_answer(&mut self, frame: Vec<u8>) -> Result<Answered, BadAnswer> {
        let envelope = answer::read_envelope(&frame)?;
        let seq = envelope.seq;
        let index = seq.wrapping_sub(self.first_seq) as usize;
        let sent = self.pending.get_mut(index).and_then(Option::take);
        let sent = sent.ok_or(BadAnswer::Seq { want: self.first_seq, got: seq })?;
        match envelope.read() {
            Ok(answer) => {
                self.unanswered -= 1;
                Ok(Answered { sent, answer, frame })
            }
            Err(bad) => {
                // Count the question among those without an answer.
                self.pending[index] = Some(sent);
                Err(bad)
            }
        }
    }

    /// Number of questions under way.
    pub fn unanswered(&self) -> usize {
        self.unanswered
    }

    /// Removes and returns the questions under way.
    pub fn take_unanswered(&mut self) -> Vec<Sent> {
        self.unanswered = 0;
        self.pending.drain(..).flatten().collect()
    }

    /// The questions under way.
    pub fn pending(&self) -> impl Iterator<Item = &Sent> {
        self.pending.iter().flatten()
    }

    /// The table of one of the questions under way, for logs and pages.
    pub fn table(&self) -> String {
        let first = self.pending().next();
        first.and_then(|sent| message::read_table(&sent.key).ok()).unwrap_or_default().to_owned()
    }

    /// Whether the connection is made.
    pub fn is_connected(&self) -> bool {
        self.is_connected
    }

    /// Whether bytes have come since the questions were sent.
    pub fn has_received(&self) -> bool {
        self.has_received
    }

    /// Whether the link probably died while it was idle: it was used before, and no bytes came since.
    pub fn died_idle(&self) -> bool {
        self.is_used && !self.has_received
    }

    /// When the questions under way were sent, or the link became idle.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Makes the link idle: all questions are answered.
    pub fn rest(&mut self, now: Instant) {
        (self.since, self.is_used) = (now, true);
        // Free the memory of a large batch or a large answer.
        self.out = Vec::new();
        self.input = Vec::new();
    }

    fn interest(&self) -> (bool, bool) {
        let writes = !self.is_connected || self.written < self.out.len();
        (self.is_connected, writes)
    }

    /// Blocks until the socket is readable or writable, or the time is over.
    pub fn wait(&self, at_most: Duration) -> Result<(), LinkError> {
        let limit = Timespec::try_from(at_most).expect("waits are short");
        let (reads, writes) = self.interest();
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, reads);
        flags.set(PollFlags::OUT, writes);
        match poll(&mut [PollFd::new(&self.stream, flags)], Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(e) => Err(io::Error::from(e).into()),
        }
    }

    /// Registers the link for the events that [`Link::wait`] would wait for.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interest = self.mio_interest();
        self.stream.register(registry, token, interest)
    }

    /// Registers the link again after these events have changed.
    pub fn reregister(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interest = self.mio_interest();
        self.stream.reregister(registry, token, interest)
    }

    fn mio_interest(&self) -> Interest {
        match self.interest() {
            (true, true) => Interest::READABLE | Interest::WRITABLE,
            (true, false) => Interest::READABLE,
            (false, _) => Interest::WRITABLE,
        }
    }

    pub fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.stream.deregister(registry)
    }
}

fn claimed_len(frame: &[u8]) -> Result<Option<usize>, BadAnswer> {
    frame.first_chunk::<LEN_BYTES>().map(|first| answer::frame_len(*first)).transpose()
}

/// Asks one server one question and waits for its answer until `end`. Commands use it, the proxy does not.
pub fn ask_once(addr: SocketAddr, args: &[u8], end: Instant) -> Result<Answered, LinkError> {
    let mut link = Link::connect(addr)?;
    link.ask(vec![Sent { key: args.into(), number: 0 }]);
    let mut answers = Vec::new();
    loop {
        link.progress(&mut answers)?;
        if let Some(answered) = answers.pop() {
            return Ok(answered);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LinkError::TimedOut);
        }
        link.wait(left.min(CONNECT_TIMEOUT))?;
    }
}
