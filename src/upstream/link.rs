//! One connection to one MetaServer, on which a worker blocks, with one request on it at a time: a MetaServer stays silent on
//! a valid request with other bytes behind it in one read.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::patience::{Meanwhile, Patience, SLICE};
use crate::wire::answer::{self, Answer, BadAnswer, LEN_BYTES};
use crate::wire::message;

/// Time for a connection to be made. A MetaServer stands in the same region; a SYN that is lost twice
/// is a server to leave for another.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);

/// Bytes for one read: most answers come whole in one.
const READ_BYTES: usize = 16 * 1024;

/// A larger answer grows as it comes: its length is only a claim.
const MAX_TRUSTED_BYTES: usize = 1024 * 1024;

/// Why there is no answer.
#[derive(Debug)]
pub enum LinkError {
    /// Patience ended. The answer may still come: `receive` can go on.
    GaveUp,
    /// The connection could not be made, or broke.
    Io(io::Error),
    /// The server closed the connection.
    Closed,
    /// What came is no answer to what was asked.
    Bad(BadAnswer),
}

impl LinkError {
    /// A short name of the kind, for counters.
    pub fn kind(&self) -> &'static str {
        match self {
            LinkError::GaveUp => "timeout",
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
            LinkError::GaveUp => write!(f, "no answer in time"),
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

/// A connection, made and idle, or with one question under way.
pub struct Link {
    stream: TcpStream,
    seq: i32,
    request: Vec<u8>,
    /// What has come of the answer.
    frame: Vec<u8>,
    chunk: Box<[u8]>,
    /// When the question was sent, or the last answer came.
    since: Instant,
}

impl Link {
    /// Connects to `addr`.
    pub fn connect(addr: SocketAddr, patience: &mut Patience<'_>) -> Result<Self, LinkError> {
        let stream = connect(addr, patience)?;
        stream.set_nodelay(true)?;
        Ok(Link {
            stream,
            seq: 0,
            request: Vec::new(),
            frame: Vec::new(),
            chunk: vec![0; READ_BYTES].into(),
            since: Instant::now(),
        })
    }

    /// Asks; `args` must have passed `read_table`.
    pub fn send(&mut self, args: &[u8], patience: &mut Patience<'_>) -> Result<(), LinkError> {
        self.seq = self.seq.wrapping_add(1);
        self.frame.clear();
        message::write_query(self.seq, args, &mut self.request);
        self.since = Instant::now();
        let mut written = 0;
        while written < self.request.len() {
            match self.stream.write(&self.request[written..]) {
                Ok(n) => written += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // The usual hundred bytes go into the empty buffer of the socket at once; very many partition
                // indices do not.
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.wait_until(PollFlags::OUT)?;
                    if !patience() {
                        return Err(LinkError::GaveUp);
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Whether anything of an answer has come.
    pub fn has_received(&self) -> bool {
        !self.frame.is_empty()
    }

    /// For how long nothing has been under way, if nothing is.
    pub fn idle(&self) -> Duration {
        self.since.elapsed()
    }

    /// The answer to what was asked, its frame, and the time that it took. It is looked for without sleeping during `spin`, and
    /// `meanwhile` may use that time: worth it where answers come sooner than a sleeping thread wakes up.
    pub fn receive(
        &mut self,
        spin: Duration,
        meanwhile: &dyn Meanwhile,
        patience: &mut Patience<'_>,
    ) -> Result<(Answer, Vec<u8>, Duration), LinkError> {
        let start = Instant::now();
        let (spin_end, mut look_up_at) = (start + spin, start + SLICE);
        loop {
            match self.stream.read(&mut self.chunk) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(n) => {
                    if self.add(n).map_err(LinkError::Bad)? {
                        let frame = mem::take(&mut self.frame);
                        let answer =
                            answer::read_answer(&frame, self.seq).map_err(LinkError::Bad)?;
                        let now = Instant::now();
                        let took = now - mem::replace(&mut self.since, now);
                        return Ok((answer, frame, took));
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    if !spin.is_zero() && Instant::now() < spin_end {
                        meanwhile.spin();
                        continue;
                    }
                    meanwhile.be_away();
                    self.wait_until(PollFlags::IN)?;
                }
                Err(e) => return Err(e.into()),
            }
            // Not only when nothing comes: a server that sends a byte now and then keeps nobody waiting for ever.
            let now = Instant::now();
            if now >= look_up_at {
                look_up_at = now + SLICE;
                if !patience() {
                    return Err(LinkError::GaveUp);
                }
            }
        }
    }

    /// Or until a slice is over.
    fn wait_until(&self, ready: PollFlags) -> Result<(), LinkError> {
        let slice = Timespec::try_from(SLICE).expect("a slice is short");
        let mut fds = [PollFd::new(&self.stream, ready)];
        match poll(&mut fds, Some(&slice)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(e) => Err(io::Error::from(e).into()),
        }
    }

    /// Adds what was read to the frame. True: it is whole.
    fn add(&mut self, n: usize) -> Result<bool, BadAnswer> {
        if self.frame.is_empty()
            && let Some(len) = claimed_len(&self.chunk[..n])?
        {
            self.frame.reserve_exact(len.min(MAX_TRUSTED_BYTES).max(n));
        }
        self.frame.extend(&self.chunk[..n]);
        match claimed_len(&self.frame)? {
            Some(len) if self.frame.len() > len => {
                let more = self.frame.len() - len;
                Err(BadAnswer::Frame(format!("{more} bytes behind the answer")))
            }
            Some(len) => Ok(self.frame.len() == len),
            None => Ok(false),
        }
    }
}

fn claimed_len(frame: &[u8]) -> Result<Option<usize>, BadAnswer> {
    frame.first_chunk::<LEN_BYTES>().map(|first| answer::frame_len(*first)).transpose()
}

/// A connect that looks up every slice, which connect_timeout(3) does not.
fn connect(addr: SocketAddr, patience: &mut Patience<'_>) -> Result<TcpStream, LinkError> {
    let mut stream = mio::net::TcpStream::connect(addr)?;
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1);
    poll.registry().register(&mut stream, Token(0), Interest::WRITABLE)?;
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    loop {
        match poll.poll(&mut events, Some(SLICE)) {
            Err(e) if e.kind() != ErrorKind::Interrupted => return Err(e.into()),
            _ => {}
        }
        if let Some(e) = stream.take_error()? {
            return Err(e.into());
        }
        if !events.is_empty() && stream.peer_addr().is_ok() {
            poll.registry().deregister(&mut stream)?;
            return Ok(stream.into());
        }
        if Instant::now() >= deadline {
            return Err(io::Error::from(ErrorKind::TimedOut).into());
        }
        if !patience() {
            return Err(LinkError::GaveUp);
        }
    }
}
