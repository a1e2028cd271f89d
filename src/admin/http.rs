//! A small HTTP server for operators and their programs: one request a connection, everything bounded.
//!
//! ```text
//! admin-0 ─┐                    ┌─ head ─▶ handler ─▶ answer ─▶ close
//! admin-1 ─┼─ accept, in turns ─┤
//! ...      ┘                    └─ no whole head in time, too long, not HTTP ─▶ 4xx, close
//! ```
//! The small servers among the crates give a connection no deadline and as many threads as it likes; this one
//! has both bounded, so that clients that dawdle keep a health check waiting for a moment and no longer.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::{debug, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Requests at once.
const THREADS: usize = 16;
/// A longer head is not of a client of ours.
const MAX_HEAD_BYTES: usize = 8 * 1024;
const MAX_HEADERS: usize = 64;
/// Time for a request to come whole: from elsewhere in the region that is long.
const HEAD_LIMIT: Duration = Duration::from_millis(500);
/// Time for an answer to be taken.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long a thread blocks without looking whether the server stops.
const SLICE: Duration = Duration::from_millis(100);
/// Pause after the system refused a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `HEAD` or `POST`.
    pub method: String,
    /// Without the query.
    pub path: String,
    /// What stands behind the `?`, if there is one.
    pub query: String,
    /// The `Accept` header.
    pub accept: String,
    /// Who asks.
    pub peer: IpAddr,
}

impl Request {
    /// The value of a parameter of the query, decoded.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| decode(value))
    }
}

/// The answer.
#[derive(Debug)]
pub struct Response {
    /// 200, 404...
    pub status: u16,
    /// `application/json`...
    pub content_type: &'static str,
    /// The rest.
    pub body: Vec<u8>,
}

impl Response {
    /// A line for people and programs.
    pub fn text(status: u16, line: &str) -> Self {
        let body = format!("{line}\n").into_bytes();
        Response { status, content_type: "text/plain; charset=utf-8", body }
    }
}

/// Who answers.
pub type Handler = dyn Fn(&Request) -> Response + Send + Sync;

/// The running server.
pub struct Http {
    stops: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Http {
    /// Starts its threads.
    pub fn start(listener: TcpListener, handler: Arc<Handler>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let (listener, stops) = (Arc::new(listener), Arc::new(AtomicBool::new(false)));
        let start = |index| {
            let (listener, stops, handler) = (listener.clone(), stops.clone(), handler.clone());
            thread::Builder::new()
                .name(format!("admin-{index}"))
                .spawn(move || run(&listener, &stops, &*handler))
        };
        let threads = (0..THREADS).map(start).collect::<io::Result<_>>()?;
        Ok(Http { stops, threads })
    }

    /// Ends it; who is being answered gets the answer.
    pub fn stop(self) {
        self.stops.store(true, SeqCst);
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

fn run(listener: &TcpListener, stops: &AtomicBool, handler: &Handler) {
    let slice = Timespec::try_from(SLICE).expect("a slice is short");
    while !stops.load(SeqCst) {
        let mut fds = [PollFd::new(listener, PollFlags::IN)];
        if !matches!(poll(&mut fds, Some(&slice)), Ok(1..)) {
            continue;
        }
        match listener.accept() {
            Ok((stream, peer)) => {
                if let Err(e) = serve(stream, peer, handler) {
                    debug!("client={peer}: {e}");
                }
            }
            // Another thread was faster, or the client has left.
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) => {}
            Err(e) => {
                debug!("cannot accept: {e}");
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

fn serve(mut stream: TcpStream, peer: SocketAddr, handler: &Handler) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    let request = read_head(&mut stream, Instant::now() + HEAD_LIMIT)?;
    let (response, is_head) = match request.and_then(|head| parse(&head, peer.ip())) {
        Ok(request) => {
            let answer = catch_unwind(AssertUnwindSafe(|| handler(&request)));
            let fault = |_| {
                warn!("client={peer} path={}: its handler panicked", request.path);
                Response::text(500, "a fault of meta-proxy, see its log")
            };
            (answer.unwrap_or_else(fault), request.method == "HEAD")
        }
        Err(refusal) => (refusal, false),
    };
    let head = format!(
        "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\
         Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\
         Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'; connect-src 'self'\r\n\r\n",
        response.status,
        reason(response.status),
        response.content_type,
        response.body.len()
    );
    let end = Instant::now() + ANSWER_LIMIT;
    write_until(&mut stream, head.as_bytes(), end)?;
    if !is_head {
        write_until(&mut stream, &response.body, end)?;
    }
    // What the client still sends must not turn the end of the answer into a reset.
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(SLICE))?;
    let mut rest = [0; 4096];
    let _ = stream.read(&mut rest);
    Ok(())
}

fn left(end: Instant) -> io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// The bytes up to the empty line; or what to answer instead.
fn read_head(stream: &mut TcpStream, end: Instant) -> io::Result<Result<Vec<u8>, Response>> {
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        stream.set_read_timeout(Some(left(end)?))?;
        match stream.read(&mut chunk) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => head.extend(&chunk[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        }
        if head.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
            return Ok(Ok(head));
        }
        if head.len() > MAX_HEAD_BYTES {
            return Ok(Err(Response::text(431, "want a head of at most 8 KiB")));
        }
    }
}

fn write_until(stream: &mut TcpStream, mut bytes: &[u8], end: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(left(end)?))?;
        match stream.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn parse(head: &[u8], peer: IpAddr) -> Result<Request, Response> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Response::text(431, "want at most 64 headers"));
        }
        Ok(httparse::Status::Partial) | Err(_) => {
            return Err(Response::text(400, "want an HTTP/1.1 request"));
        }
    }
    let (method, target) = (parsed.method.unwrap_or_default(), parsed.path.unwrap_or_default());
    if !["GET", "HEAD", "POST"].contains(&method) {
        return Err(Response::text(405, "want GET, HEAD or POST"));
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let accept = parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case("accept"));
    let accept = accept.map_or(&b""[..], |header| header.value);
    Ok(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        accept: String::from_utf8_lossy(accept).into_owned(),
        peer,
    })
}

/// `%41+b` to `A b`. What is no escape stays as it is.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], escape) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                at += 2;
            }
            (b'+', _) => decoded.push(b' '),
            (byte, _) => decoded.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const SOON: Duration = Duration::from_secs(10);

    fn server() -> (Http, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let handler = |request: &Request| match request.path.as_str() {
            "/panic" => panic!("as asked"),
            "/big" => Response { status: 200, content_type: "x/y", body: vec![b'x'; 32 << 20] },
            path => Response::text(
                200,
                &format!("{} {path} {:?}", request.method, request.parameter("q")),
            ),
        };
        (Http::start(listener, Arc::new(handler)).unwrap(), addr)
    }

    fn ask(addr: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect_timeout(&addr, SOON).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn requests_and_what_is_none() {
        let (http, addr) = server();
        let long = format!("GET / HTTP/1.1\r\nx: {}\r\n", "y".repeat(9000));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(65));
        for (why, request, status, body) in [
            (
                "a page",
                "GET /a?b=1&q=%41+%zz HTTP/1.1\r\n\r\n",
                "200 OK",
                "GET /a Some(\"A %zz\")\n",
            ),
            ("posted", "POST /a HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi", "200", "POST /a None\n"),
            ("only its head", "HEAD /a HTTP/1.1\r\n\r\n", "200", ""),
            ("another method", "PUT / HTTP/1.1\r\n\r\n", "405", "want GET, HEAD or POST\n"),
            ("not HTTP", "hello\r\n\r\n", "400", "want an HTTP/1.1 request\n"),
            ("too long", &long, "431", "want a head of at most 8 KiB\n"),
            ("too many headers", &many, "431", "want at most 64 headers\n"),
            (
                "a fault of ours",
                "GET /panic HTTP/1.1\r\n\r\n",
                "500",
                "a fault of meta-proxy, see its log\n",
            ),
        ] {
            let answer = ask(addr, request.as_bytes());
            let (head, found) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{why}: {head}");
            assert_eq!(found, body, "{why}");
        }
        http.stop();
    }

    #[test]
    fn who_dawdles_is_let_go_and_others_are_answered() {
        let (http, addr) = server();
        let connect = || TcpStream::connect_timeout(&addr, SOON).unwrap();
        let mute: Vec<TcpStream> = (0..4 * THREADS).map(|_| connect()).collect();
        let mut greedy = connect();
        greedy.write_all(b"GET /big HTTP/1.1\r\n\r\n").unwrap();
        assert!(ask(addr, b"GET /a HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200"));
        for mut stream in mute {
            stream.set_read_timeout(Some(SOON)).unwrap();
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "closed");
        }
        http.stop();
    }
}
