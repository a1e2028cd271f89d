//! One QueryConfig as a C++ client asks it, over a connection of its own. It blocks, until a deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::wire::answer::MAX_ANSWER_LEN;
use crate::wire::rdsn::{self, HEADER_LEN};

/// Time for a connection to be made, so that a host with several addresses has time for the next.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The result struct of the answer. `args` as THFT has them.
pub fn ask(addr: SocketAddr, args: &[u8], end: Instant) -> Result<Vec<u8>, String> {
    const ID: u64 = 1;
    let mut stream = TcpStream::connect_timeout(&addr, left(end)?.min(CONNECT_TIMEOUT))
        .map_err(|e| e.to_string())?;
    // So little fits into the empty buffer of the socket.
    stream.write_all(&rdsn::write_query(ID, args)).map_err(|e| e.to_string())?;
    let head = read(&mut stream, HEADER_LEN, end)?;
    let head = head.first_chunk().expect("as long as was asked for");
    match rdsn::read_answer_head(head, ID)? {
        len if len <= MAX_ANSWER_LEN => read(&mut stream, len, end),
        len => Err(format!("want an answer of at most {MAX_ANSWER_LEN} bytes, got {len}")),
    }
}

fn read(stream: &mut TcpStream, len: usize, end: Instant) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        let within = left(end)?;
        let got =
            stream.set_read_timeout(Some(within)).and_then(|()| stream.read(&mut bytes[filled..]));
        match got {
            Ok(0) => return Err("closed before the answer".to_owned()),
            Ok(n) => filled += n,
            Err(e) if is_to_be_repeated(&e) => {}
            Err(e) => return Err(e.to_string()),
        }
    }
    Ok(bytes)
}

fn is_to_be_repeated(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Never zero, which would mean for ever.
fn left(end: Instant) -> Result<Duration, String> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() { Err("no answer in time".to_owned()) } else { Ok(left) }
}
