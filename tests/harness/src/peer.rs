//! A connection to a server, as tests need it: any bytes out, whole frames in, every wait with a deadline.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::wait::is_timeout;
use crate::wire::Malformed;

/// How long a wait lasts unless the test says otherwise; far beyond what a proxy may take to answer.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Tells the length of the frame at the start of bytes; `None`: too little of it is there.
pub type FrameLen = fn(&[u8]) -> Result<Option<usize>, Malformed>;

/// One connection.
pub struct Peer {
    stream: TcpStream,
    /// Bytes that came and are no whole frame yet.
    unread: Vec<u8>,
}

/// Why no answer came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// The peer closed the connection, in order or by a reset.
    Closed,
    /// Nothing, or not a whole frame, within the time.
    Silence { after: Duration, unread: usize },
    /// Bytes that are no frame.
    Malformed(String),
}

impl Peer {
    /// Takes over a connected socket.
    pub fn of(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(ANSWER_WITHIN))?;
        Ok(Peer { stream, unread: Vec::new() })
    }

    /// The socket.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Any bytes.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        if let Err(e) = self.try_send(bytes) {
            panic!("cannot send {} bytes: {e}", bytes.len());
        }
    }

    /// Any bytes; fails when the peer is gone, or takes nothing for 5 s.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Says that nothing more will be sent; frames can still be read.
    pub fn finish_sending(&self) {
        // Fails only if the peer has closed already, and then nothing more can be sent either.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The next whole frame, or why there is none.
    pub fn frame(&mut self, within: Duration, frame_len: FrameLen) -> Result<Vec<u8>, NoAnswer> {
        let deadline = Instant::now() + within;
        loop {
            let len =
                frame_len(&self.unread).map_err(|fault| NoAnswer::Malformed(fault.to_string()))?;
            if let Some(len) = len.filter(|len| *len <= self.unread.len()) {
                return Ok(self.unread.drain(..len).collect());
            }
            match self.read_some(deadline) {
                Ok(0) => return Err(NoAnswer::Closed),
                Ok(_) => {}
                Err(e) if is_timeout(&e) => {
                    let unread = self.unread.len();
                    return Err(NoAnswer::Silence { after: within, unread });
                }
                // A read with a timeout ends so when this process was stopped and goes on: signal(7).
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(NoAnswer::Closed),
            }
        }
    }

    /// The peer closes the connection, in order or by a reset, and sends nothing before.
    #[track_caller]
    pub fn expect_closed(&mut self, within: Duration, frame_len: FrameLen) {
        match self.frame(within, frame_len) {
            Err(NoAnswer::Closed) if self.unread.is_empty() => {}
            other => {
                panic!("want the connection closed, got {other:?} and {} bytes", self.unread.len())
            }
        }
    }

    /// Appends what has come to `unread`; 0 at the end of the stream.
    fn read_some(&mut self, deadline: Instant) -> io::Result<usize> {
        // Zero would mean to wait for ever.
        let left = deadline.saturating_duration_since(Instant::now());
        self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let mut bytes = [0; 16 << 10];
        let len = self.stream.read(&mut bytes)?;
        self.unread.extend(&bytes[..len]);
        Ok(len)
    }
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoAnswer::Closed => f.write_str("the peer closed the connection"),
            NoAnswer::Silence { after, unread: 0 } => write!(f, "silence for {after:?}"),
            NoAnswer::Silence { after, unread } => {
                write!(f, "after {after:?} only {unread} bytes of an answer")
            }
            NoAnswer::Malformed(why) => write!(f, "bytes that are no answer: {why}"),
        }
    }
}

impl std::error::Error for NoAnswer {}
