//! Threads `admin-N`: a small HTTP server, for health checks, scrapers and people.
//!
//! ```text
//! admin-1..4, each: poll ─┬─ listener ─▶ one more exchange; with all places taken the oldest one goes
//!                         ├─ exchange ─▶ HEAD ──handler──▶ ANSWER ─▶ LINGER ─▶ over
//!                         └─ 250 ms ───▶ deadlines, stop
//! ```
//! A thread waits for all its sockets at once, so a client that sends half a request, or does not read its answer,
//! holds a place and no thread. When places run out, the newest connection gets one, so a health check, which is over
//! at once, is always served. Only a handler can hold a thread: it must not block.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::{error, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::http_message::{MAX_BODY_BYTES, MAX_HEAD_BYTES, Request, Response, read_request};
use crate::activity;
use crate::logging::Throttle;

/// More than one, so that a health check does not wait for a page that takes long to write.
const THREADS: usize = 4;
/// Exchanges of one thread at once.
const PLACES: usize = 32;
/// Most unread answers of one thread; beyond it the oldest exchange is dropped. A page of metrics of very many tables
/// has a few MB.
const MAX_UNREAD_BYTES: usize = 32 * 1024 * 1024;
/// Time for a whole exchange, in and out.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// A thread checks this often whether it must stop, or a deadline is over.
const SLICE: Duration = Duration::from_millis(250);
/// Pause after the system refused a connection because it has no descriptors or memory left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes for one read.
const READ_BYTES: usize = 4 * 1024;

/// Answers requests. A handler must not block, because there are few threads. If it panics, the answer is 500.
pub type Handler = dyn Fn(&Request) -> Response + Send + Sync;

/// The running server.
pub struct Http {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Http {
    /// Serves clients that connect to `listener`.
    pub fn start(listener: TcpListener, handler: Arc<Handler>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let (listener, stop) = (Arc::new(listener), Arc::new(AtomicBool::new(false)));
        let start = |index| {
            let server = Server {
                listener: listener.clone(),
                handler: handler.clone(),
                stop: stop.clone(),
                exchanges: Vec::new(),
                accept_at: Instant::now(),
            };
            thread::Builder::new().name(format!("admin-{index}")).spawn(move || server.run())
        };
        let threads = (1..=THREADS).map(start).collect::<io::Result<_>>()?;
        Ok(Http { addr, stop, threads })
    }

    /// The listening address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Stops within a slice, and drops exchanges under way.
    pub fn stop(self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

struct Server {
    listener: Arc<TcpListener>,
    handler: Arc<Handler>,
    stop: Arc<AtomicBool>,
    /// Exchanges under way, the oldest first.
    exchanges: Vec<Exchange>,
    /// When to accept again after an error.
    accept_at: Instant,
}

impl Server {
    fn run(mut self) {
        while !self.stop.load(Relaxed) {
            activity::go_on("waits for requests", &[]);
            let (may_accept, ready) = self.wait();
            let mut ready = ready.into_iter();
            let (handler, now) = (self.handler.clone(), Instant::now());
            self.exchanges.retain_mut(|exchange| {
                let is_ready = ready.next().unwrap_or(false);
                now < exchange.deadline && (!is_ready || exchange.go_on(&*handler))
            });
            self.drop_unread();
            if may_accept {
                self.accept();
            }
        }
    }

    /// Waits for a slice at most. Returns whether a client may wait to be accepted, and which exchanges can continue.
    fn wait(&self) -> (bool, Vec<bool>) {
        let accepts = Instant::now() >= self.accept_at;
        let slice = if accepts { SLICE } else { ACCEPT_PAUSE };
        let slice = Timespec::try_from(slice).expect("a slice is short");
        let wanted = if accepts { PollFlags::IN } else { PollFlags::empty() };
        let mut fds = vec![PollFd::new(&*self.listener, wanted)];
        fds.extend(
            self.exchanges
                .iter()
                .map(|exchange| PollFd::new(&exchange.stream, exchange.waits_for())),
        );
        match poll(&mut fds, Some(&slice)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => {
                // Poll fails only without memory; all exchanges have a deadline.
                log_throttled(&format!("cannot poll: {e}"));
                thread::sleep(ACCEPT_PAUSE);
            }
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        (ready.next().unwrap_or(false), ready.collect())
    }

    /// Accepts one client a turn, so that the threads share clients that come at once.
    fn accept(&mut self) {
        match self.listener.accept() {
            Ok((stream, peer)) => match Exchange::new(stream, peer) {
                Ok(exchange) => {
                    if self.exchanges.len() >= PLACES {
                        let oldest = self.exchanges.remove(0);
                        log_throttled(&format!("{PLACES} at once, closed client={}", oldest.peer));
                    }
                    self.exchanges.push(exchange);
                }
                Err(e) => log_throttled(&format!("client={peer}: {e}")),
            },
            // Another thread has accepted the client.
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => {
                log_throttled(&format!("cannot accept, trying again in {ACCEPT_PAUSE:?}: {e}"));
                self.accept_at = Instant::now() + ACCEPT_PAUSE;
            }
        }
    }

    /// Drops the oldest exchanges until the unread answers are few enough, or only one is left.
    fn drop_unread(&mut self) {
        let mut unread: usize = self.exchanges.iter().map(Exchange::unread).sum();
        while unread > MAX_UNREAD_BYTES
            && let Some(first) = self.exchanges.iter().position(|exchange| exchange.unread() > 0)
            && self.exchanges[first].unread() < unread
        {
            let slow = self.exchanges.remove(first);
            unread -= slow.unread();
            log_throttled(&format!("client={} closed, it reads its answer too slowly", slow.peer));
        }
    }
}

fn log_throttled(what: &str) {
    static WARNED: Throttle = Throttle::new();
    if let Some(hidden) = WARNED.pass() {
        warn!("{what}{hidden}");
    }
}

/// One request and its answer, on its own connection.
struct Exchange {
    stream: TcpStream,
    peer: SocketAddr,
    at: SocketAddr,
    deadline: Instant,
    phase: Phase,
}

enum Phase {
    /// The head of a request, as far as it has come.
    Head(Vec<u8>),
    /// The answer, and how many bytes of it are sent.
    Answer(Vec<u8>, usize),
    /// The answer is sent. The thread reads and discards further bytes of the client, counted here: closing with unread
    /// input would reset the connection, and the client might lose the answer.
    Linger(u64),
}

impl Exchange {
    fn new(stream: TcpStream, peer: SocketAddr) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let (at, deadline) = (stream.local_addr()?, Instant::now() + EXCHANGE_TIMEOUT);
        Ok(Exchange { stream, peer, at, deadline, phase: Phase::Head(Vec::new()) })
    }

    fn waits_for(&self) -> PollFlags {
        match self.phase {
            Phase::Answer(..) => PollFlags::OUT,
            Phase::Head(_) | Phase::Linger(_) => PollFlags::IN,
        }
    }

    fn unread(&self) -> usize {
        match &self.phase {
            Phase::Answer(bytes, gone) => bytes.len() - gone,
            Phase::Head(_) | Phase::Linger(_) => 0,
        }
    }

    /// Reads or writes as much as possible now. False: the exchange is over.
    fn go_on(&mut self, handler: &Handler) -> bool {
        match self.step(handler) {
            Ok(goes_on) => goes_on,
            Err(e) => matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }

    fn step(&mut self, handler: &Handler) -> io::Result<bool> {
        let mut chunk = [0; READ_BYTES];
        if let Phase::Head(head) = &mut self.phase {
            let room = READ_BYTES.min(MAX_HEAD_BYTES - head.len());
            let n = self.stream.read(&mut chunk[..room])?;
            head.extend(&chunk[..n]);
            let answer = match read_request(head, self.peer, self.at) {
                Ok(None) => return Ok(n > 0),
                Ok(Some(request)) => answer(handler, &request).to_bytes(request.is_head),
                Err(refusal) => refusal.to_bytes(false),
            };
            self.phase = Phase::Answer(answer, 0);
        }
        if let Phase::Answer(bytes, gone) = &mut self.phase {
            while *gone < bytes.len() {
                *gone += self.stream.write(&bytes[*gone..])?;
            }
            self.stream.shutdown(Shutdown::Write)?;
            self.phase = Phase::Linger(0);
        }
        if let Phase::Linger(ignored) = &mut self.phase {
            let n = self.stream.read(&mut chunk)?;
            *ignored += n as u64;
            return Ok(n > 0 && *ignored <= MAX_BODY_BYTES);
        }
        Ok(true)
    }
}

fn answer(handler: &Handler, request: &Request) -> Response {
    activity::now("answers a request", &[&request.path]);
    catch_unwind(AssertUnwindSafe(|| handler(request))).unwrap_or_else(|_| {
        // The panic hook has logged thread and place.
        error!("client={} path={:?}: no answer because of a panic", request.peer, request.path);
        Response::text(500, "this is a bug of the proxy, see its log\n")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::http_message::Method;
    use crate::client::listener::bind;
    use crossbeam_channel::{Receiver, bounded};

    /// The longest that a health check waits: less than an exchange may take.
    const PATIENCE: Duration = Duration::from_secs(4);

    const MIB: usize = 1024 * 1024;

    /// Blocks at `/stuck` until `release` closes.
    fn start(release: Receiver<()>) -> Http {
        let handler = move |request: &Request| match (request.method, request.path.as_str()) {
            (Method::Get, "/healthz") => Response::text(200, "ok\n"),
            (Method::Get, "/big") => Response::text(200, vec![b'x'; 8 * MIB]),
            (Method::Get, "/stuck") => {
                let _ = release.recv();
                Response::text(200, "")
            }
            (Method::Get, "/panic") => panic!("a handler may be wrong"),
            (Method::Post, "/drain") => Response::text(202, ""),
            (_, "/drain") => Response::wrong_method("POST"),
            _ => Response::not_found(""),
        };
        Http::start(bind("127.0.0.1:0".parse().unwrap()).unwrap(), Arc::new(handler)).unwrap()
    }

    fn connect(http: &Http) -> TcpStream {
        let stream = TcpStream::connect(http.addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends `request` and reads until the server closes.
    fn ask(http: &Http, request: &[u8]) -> String {
        let mut stream = connect(http);
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Clients that send this and do nothing more, twice as many as there are places.
    fn crowd(http: &Http, request: &[u8]) -> Vec<TcpStream> {
        let clients = (0..2 * THREADS * PLACES).map(|_| {
            let mut stream = connect(http);
            stream.write_all(request).unwrap();
            stream
        });
        clients.collect()
    }

    #[track_caller]
    fn is_healthy(http: &Http) {
        let answer = ask(http, b"GET /healthz HTTP/1.1\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nok\n"), "{answer}");
    }

    #[test]
    fn requests_are_answered_each_on_its_connection() {
        let http = start(bounded(0).1);
        is_healthy(&http);
        for (request, want) in [
            ("HEAD /healthz HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK"),
            ("GET /nothing HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found"),
            ("GET /drain HTTP/1.1\r\n\r\n", "HTTP/1.1 405 Method Not Allowed"),
            ("POST /drain HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", "HTTP/1.1 202 Accepted"),
            ("GET /panic HTTP/1.1\r\n\r\n", "HTTP/1.1 500 Internal Server Error"),
            ("nonsense\r\n\r\n", "HTTP/1.1 400 Bad Request"),
            ("GET /healthz HTTP/1.1\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK"),
        ] {
            let answer = ask(&http, request.as_bytes());
            assert!(answer.starts_with(want), "{request}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{request}: {answer}");
            assert_eq!(
                answer.ends_with("\r\n\r\n"),
                request.contains("HEAD") || want.contains("202")
            );
        }
        http.stop();
    }

    #[test]
    fn an_answer_reaches_a_client_that_sends_too_much() {
        let http = start(bounded(0).1);
        for (head, want) in [
            (format!("GET / HTTP/1.1\r\nCookie: {}", "c".repeat(2 * MAX_HEAD_BYTES)), "431"),
            (format!("POST /drain HTTP/1.1\r\n\r\n{}", "x".repeat(60_000)), "202"),
            (
                format!("POST / HTTP/1.1\r\nContent-Length: 70000\r\n\r\n{}", "x".repeat(60_000)),
                "413",
            ),
        ] {
            let answer = ask(&http, head.as_bytes());
            assert!(answer.starts_with(&format!("HTTP/1.1 {want}")), "{answer}");
        }
        http.stop();
    }

    #[test]
    fn a_head_may_come_byte_by_byte_until_the_deadline() {
        let http = start(bounded(0).1);
        let mut slow = connect(&http);
        for byte in b"GET /healthz HTTP/1.1\r\n\r\n" {
            slow.write_all(&[*byte]).unwrap();
            thread::sleep(Duration::from_millis(5));
        }
        let mut answer = String::new();
        slow.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("ok\n"), "{answer}");

        let mut silent = connect(&http);
        silent.set_read_timeout(Some(4 * EXCHANGE_TIMEOUT)).unwrap();
        assert_eq!(silent.read(&mut [0]).unwrap(), 0, "closed without a word");
        http.stop();
    }

    #[test]
    fn clients_that_send_half_a_request_keep_no_other_out() {
        let http = start(bounded(0).1);
        let slow = crowd(&http, b"GET /healthz HTTP/1.1\r\n");
        is_healthy(&http);
        // All clients without a place are closed: end of file, or a reset.
        let is_open = |mut stream: &TcpStream| {
            stream.set_nonblocking(true).unwrap();
            matches!(stream.read(&mut [0]), Err(e) if e.kind() == ErrorKind::WouldBlock)
        };
        let open = slow.iter().filter(|stream| is_open(stream)).count();
        assert!(open < THREADS * PLACES, "{open} are open, and one more was served");
        http.stop();
    }

    #[test]
    fn clients_that_do_not_read_keep_no_other_out_and_hold_little_memory() {
        let http = start(bounded(0).1);
        let slow = crowd(&http, b"GET /big HTTP/1.1\r\n\r\n");
        is_healthy(&http);
        let answer = ask(&http, b"GET /big HTTP/1.1\r\n\r\n");
        assert!(answer.len() > 8 * MIB, "who reads gets all: {}", answer.len());
        drop(slow);
        http.stop();
    }

    #[test]
    fn unread_answers_are_bounded() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = listener.local_addr().unwrap();
        let exchange = |unread| {
            let stream = TcpStream::connect(addr).unwrap();
            let peer = listener.accept().unwrap().1;
            Exchange {
                phase: Phase::Answer(vec![0; unread], 0),
                ..Exchange::new(stream, peer).unwrap()
            }
        };
        let exchanges = vec![
            exchange(MAX_UNREAD_BYTES / 2),
            exchange(0),
            exchange(MAX_UNREAD_BYTES / 2),
            exchange(1),
        ];
        let mut server = Server {
            listener: Arc::new(listener.try_clone().unwrap()),
            handler: Arc::new(|_: &Request| Response::not_found("")),
            stop: Arc::default(),
            exchanges,
            accept_at: Instant::now(),
        };
        let left = |server: &Server| -> Vec<usize> {
            server.exchanges.iter().map(Exchange::unread).collect()
        };
        server.drop_unread();
        assert_eq!(left(&server), [0, MAX_UNREAD_BYTES / 2, 1], "the oldest that is not read goes");
        server.exchanges.push(exchange(2 * MAX_UNREAD_BYTES));
        server.drop_unread();
        assert_eq!(left(&server), [0, 2 * MAX_UNREAD_BYTES], "one may be as large as it is");
    }

    #[test]
    fn a_stuck_handler_keeps_no_client_out() {
        let (release, released) = bounded(0);
        let http = start(released);
        let mut stuck = connect(&http);
        stuck.write_all(b"GET /stuck HTTP/1.1\r\n\r\n").unwrap();
        (0..2 * THREADS).for_each(|_| is_healthy(&http));
        drop(release);
        http.stop();
    }
}
