//! One request and its answer over its own blocking connection, until a deadline. Commands use it, the proxy does not.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Time for one connect, so that a host with several addresses has time for the next address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

pub struct Exchange {
    stream: TcpStream,
    end: Instant,
}

impl Exchange {
    /// Connects and sends the request. Reads end at `end`, too.
    pub fn begin(addr: SocketAddr, request: &[u8], end: Instant) -> Result<Self, String> {
        let stream = TcpStream::connect_timeout(&addr, left(end)?.min(CONNECT_TIMEOUT));
        let mut stream = stream.map_err(|e| plain(&e))?;
        stream.set_write_timeout(Some(left(end)?)).map_err(|e| plain(&e))?;
        stream.write_all(request).map_err(|e| plain(&e))?;
        Ok(Exchange { stream, end })
    }

    /// Reads the next `len` bytes of the answer.
    pub fn read(&mut self, len: usize) -> Result<Vec<u8>, String> {
        let mut bytes = vec![0; len];
        let mut filled = 0;
        while filled < len {
            match self.read_some(&mut bytes[filled..])? {
                0 => return Err("closed before the answer".to_owned()),
                n => filled += n,
            }
        }
        Ok(bytes)
    }

    /// Reads until the answer is whole or the other side closes, `max` bytes at most.
    pub fn read_until(
        &mut self,
        max: usize,
        is_whole: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<u8>, String> {
        const CHUNK_BYTES: usize = 64 * 1024;
        let (mut bytes, mut chunk) = (Vec::new(), vec![0; CHUNK_BYTES]);
        while !is_whole(&bytes) {
            match self.read_some(&mut chunk)? {
                0 => break,
                n if bytes.len() + n > max => {
                    return Err(format!("want an answer of at most {max} bytes, got more"));
                }
                n => bytes.extend_from_slice(&chunk[..n]),
            }
        }
        Ok(bytes)
    }

    fn read_some(&mut self, room: &mut [u8]) -> Result<usize, String> {
        loop {
            let within = left(self.end)?;
            let read = self.stream.set_read_timeout(Some(within));
            match read.and_then(|()| self.stream.read(room)) {
                Ok(n) => return Ok(n),
                Err(e) if is_to_be_repeated(&e) => {}
                Err(e) => return Err(plain(&e)),
            }
        }
    }
}

fn is_to_be_repeated(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Never zero: a time-out of zero would mean no time-out.
fn left(end: Instant) -> Result<Duration, String> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() { Err("no answer in time".to_owned()) } else { Ok(left) }
}

/// The error without the system's number, which tells an operator nothing.
fn plain(e: &io::Error) -> String {
    let text = e.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
