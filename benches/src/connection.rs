//! One non-blocking connection, the same at both ends of a measurement: frames come in, bytes go out, and one that is
//! idle holds no memory. Registered edge-triggered, with as few system calls as that allows.

use std::io::{self, ErrorKind, Read, Write};

use harness::wire;
use mio::event::Event;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use crate::frames::{Cutter, Malformed};

/// Room for what one read takes; shared by all connections of a thread.
pub const READ_BYTES: usize = 256 << 10;

/// A stream with the half frame that came and the bytes that could not be sent yet.
pub struct Connection {
    stream: TcpStream,
    cutter: Cutter,
    unsent: Vec<u8>,
}

/// The outcome of a read.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// All that is there.
    All,
    /// There may be more.
    Some,
    /// The peer has closed, and all it sent was taken.
    End,
}

/// The wishes of an event.
#[derive(Clone, Copy)]
pub struct Ready {
    /// There is something to read.
    pub readable: bool,
    /// And it is followed by the end.
    pub ending: bool,
}

impl From<&Event> for Ready {
    fn from(event: &Event) -> Self {
        let ending = event.is_read_closed() || event.is_error();
        Ready { readable: event.is_readable() || ending, ending }
    }
}

impl Connection {
    /// Takes a stream into a poll.
    pub fn register(mut stream: TcpStream, registry: &Registry, token: Token) -> io::Result<Self> {
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Connection { stream, cutter: Cutter::default(), unsent: Vec::new() })
    }

    /// Reads once, and calls `each` for every frame that is whole by then. After a read that did not fill the buffer
    /// nothing is left, unless the peer is `ending`: then only a read of nothing says so.
    pub fn read(
        &mut self,
        scratch: &mut [u8],
        ending: bool,
        frame_len: impl Fn(&[u8]) -> Result<Option<usize>, wire::Malformed>,
        each: impl FnMut(&[u8]) -> Result<(), Malformed>,
    ) -> io::Result<Taken> {
        match self.stream.read(scratch) {
            Ok(0) => Ok(Taken::End),
            Ok(len) => {
                self.cutter.feed(&scratch[..len], frame_len, each).map_err(io::Error::other)?;
                Ok(if len == scratch.len() || ending { Taken::Some } else { Taken::All })
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(Taken::All),
            Err(e) => Err(e),
        }
    }

    /// Sends, after what is still unsent; what the socket does not take is kept.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.unsent.is_empty() {
            let sent = self.write(bytes)?;
            self.unsent.extend_from_slice(&bytes[sent..]);
            return Ok(());
        }
        self.unsent.extend_from_slice(bytes);
        self.flush()
    }

    /// Sends what is unsent, as far as the socket takes it.
    pub fn flush(&mut self) -> io::Result<()> {
        if !self.unsent.is_empty() {
            let unsent = std::mem::take(&mut self.unsent);
            let sent = self.write(&unsent)?;
            self.unsent.extend_from_slice(&unsent[sent..]);
        }
        Ok(())
    }

    /// How much the socket has not taken.
    pub fn unsent(&self) -> usize {
        self.unsent.len()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut sent = 0;
        while sent < bytes.len() {
            match self.stream.write(&bytes[sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(len) => sent += len,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break, // full, or not connected yet
                Err(e) => return Err(e),
            }
        }
        Ok(sent)
    }
}
