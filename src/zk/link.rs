//! One connection to a server of ZooKeeper: its buffers, and what is due over it. It never blocks, but for a goodbye.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::codec::{self, Kind, LEN_BYTES, Malformed, Op};

/// Bytes for one read.
const READ_BYTES: usize = 64 * 1024;
/// A buffer that is larger when it is empty gives its memory back.
const KEPT_BYTES: usize = 256 * 1024;
/// Time for a goodbye to be sent.
const CLOSE_LIMIT: Duration = Duration::from_millis(200);

/// A request that is to be answered.
pub struct Due {
    /// Answers come in the order of these.
    pub xid: i32,
    /// The asker's number of it.
    pub ticket: u64,
    /// By it the answer is read.
    pub kind: Kind,
}

/// A connection, its buffers, and what is due over it.
pub struct Link {
    /// The socket.
    pub stream: TcpStream,
    /// Bytes to be written.
    pub out: Vec<u8>,
    written: usize,
    /// Bytes that were read, from the start of a frame.
    pub input: Vec<u8>,
    last_xid: i32,
    /// Requests, in the order of their answers.
    pub due: VecDeque<Due>,
    /// A ping is to be answered.
    pub is_pong_due: bool,
    /// A digest is to be answered.
    pub is_auth_due: bool,
    /// When a byte came last, or what is due was asked although nothing was.
    progress_at: Instant,
}

impl Link {
    /// Nothing is due yet.
    pub fn new(stream: TcpStream) -> Self {
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

    /// Writes a request.
    pub fn ask(&mut self, ticket: u64, op: &Op) {
        self.begin();
        // Negative ones mean something else.
        self.last_xid = self.last_xid.checked_add(1).unwrap_or(1);
        let kind = codec::write_request(&mut self.out, self.last_xid, op);
        self.due.push_back(Due { xid: self.last_xid, ticket, kind });
    }

    /// Keeps the session alive.
    pub fn ping(&mut self) {
        self.begin();
        codec::write_ping(&mut self.out);
        self.is_pong_due = true;
    }

    /// Proves who we are.
    pub fn prove(&mut self, digest: &str) {
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
    pub fn late_at(&self, patience: Duration) -> Option<Instant> {
        self.is_due().then_some(self.progress_at + patience)
    }

    /// Ends the session, so that the server need not wait for its end.
    pub fn say_goodbye(&mut self) {
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

    /// The events of the socket that something is to be done at.
    pub fn wants(&self) -> PollFlags {
        if self.is_flushed() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }

    /// Writes what the socket takes.
    pub fn flush(&mut self) -> io::Result<()> {
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
    pub fn fill(&mut self) -> io::Result<()> {
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
    pub fn frame_at(&self, start: usize) -> Result<Option<Range<usize>>, Malformed> {
        let Some(len) = codec::frame_len(&self.input[start..])? else {
            return Ok(None);
        };
        let start = start + LEN_BYTES;
        Ok((self.input.len() >= start + len).then_some(start..start + len))
    }

    /// Forgets bytes that were taken.
    pub fn consume(&mut self, end: usize) {
        self.input.drain(..end);
        if self.input.is_empty() {
            self.input.shrink_to(KEPT_BYTES);
        }
    }
}
