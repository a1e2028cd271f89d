//! Clients that ask for tables which do not exist as fast as the proxy takes it: one thread writes whenever a socket has
//! room, another reads what comes and drops it. So no answer is ever waited for, and none left unread.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::client::Client;
use crate::wire::{Request, Version};

/// Requests in one write.
const REQUESTS: i32 = 256;
/// Bytes that one read takes.
const READ_BYTES: usize = 64 << 10;
/// How often a thread looks whether it is to end.
const LOOK_EVERY_MS: u8 = 50;

/// Such clients, connected and still silent.
pub struct Greed {
    /// Both halves of each connection.
    writing: Vec<TcpStream>,
    reading: Vec<TcpStream>,
}

/// Such clients at work.
pub struct Greedy {
    is_over: Arc<AtomicBool>,
    answered_bytes: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Greed {
    /// Opens a connection from each of these addresses.
    pub fn connect(target: SocketAddr, hosts: &[IpAddr]) -> io::Result<Self> {
        let (mut writing, mut reading) = (Vec::new(), Vec::new());
        for host in hosts {
            let client = Client::connect_from(*host, target)?;
            client.stream().set_nonblocking(true)?;
            writing.push(client.stream().try_clone()?);
            reading.push(client.stream().try_clone()?);
        }
        Ok(Greed { writing, reading })
    }

    /// They begin.
    pub fn start(self) -> Greedy {
        let (is_over, answered_bytes) = (Arc::<AtomicBool>::default(), Arc::default());
        let Greed { writing, reading } = self;
        let writer = {
            let is_over = is_over.clone();
            thread::spawn(move || write(&writing, &is_over))
        };
        let reader = {
            let (is_over, answered_bytes) = (is_over.clone(), Arc::clone(&answered_bytes));
            thread::spawn(move || read(&reading, &is_over, &answered_bytes))
        };
        Greedy { is_over, answered_bytes, threads: vec![writer, reader] }
    }
}

impl Greedy {
    /// Bytes of the answers that came so far.
    pub fn answered_bytes(&self) -> usize {
        self.answered_bytes.load(Relaxed)
    }

    /// They end; or why they ended before.
    pub fn stop(mut self) -> Result<(), String> {
        self.is_over.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join().map_err(|_| "a greedy client panicked".to_owned())?;
            ended.map_err(|e| format!("a greedy client: {e}"))?;
        }
        Ok(())
    }
}

impl Drop for Greedy {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            // Whoever wants to know how it ended calls `stop`.
            let _ = thread.join();
        }
    }
}

fn write(streams: &[TcpStream], is_over: &AtomicBool) -> io::Result<()> {
    let frames: Vec<u8> = (0..REQUESTS)
        .flat_map(|seq| Request::query_config(Version::V0, seq, "nosuch").encode())
        .collect();
    // Bytes of the frames that each stream has taken.
    let mut written = vec![0; streams.len()];
    each_ready(streams, PollFlags::POLLOUT, is_over, |at, mut stream| {
        let written = &mut written[at];
        *written = (*written + stream.write(&frames[*written..])?) % frames.len();
        Ok(())
    })
}

fn read(
    streams: &[TcpStream],
    is_over: &AtomicBool,
    answered_bytes: &AtomicUsize,
) -> io::Result<()> {
    let mut bytes = vec![0; READ_BYTES];
    each_ready(streams, PollFlags::POLLIN, is_over, |_, mut stream| {
        match stream.read(&mut bytes)? {
            0 => Err(io::Error::other("the peer closed a connection")),
            len => {
                answered_bytes.fetch_add(len, Relaxed);
                Ok(())
            }
        }
    })
}

/// Calls `act` once for every stream that is ready, and again as long as it is.
fn each_ready(
    streams: &[TcpStream],
    flags: PollFlags,
    is_over: &AtomicBool,
    mut act: impl FnMut(usize, &TcpStream) -> io::Result<()>,
) -> io::Result<()> {
    let mut polled: Vec<PollFd<'_>> =
        streams.iter().map(|stream| PollFd::new(stream.as_fd(), flags)).collect();
    while !is_over.load(Relaxed) {
        match poll(&mut polled, PollTimeout::from(LOOK_EVERY_MS)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        for (at, stream) in streams.iter().enumerate() {
            if polled[at].any() != Some(true) {
                continue;
            }
            match act(at, stream) {
                Err(e) if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&e.kind()) => {}
                acted => acted?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta_server::MetaServer;
    use crate::wait::eventually;
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(30);

    #[test]
    fn greedy_clients_ask_on_without_waiting_for_answers() {
        let server = MetaServer::start();
        server.keep_requests(false);
        let hosts = [[127, 0, 0, 1], [127, 1, 0, 1]].map(IpAddr::from);
        let greedy = Greed::connect(server.addr(), &hosts).expect("it listens").start();
        eventually("they ask", SOON, || server.calls() > 10 * REQUESTS as usize);
        eventually("they read", SOON, || greedy.answered_bytes() > READ_BYTES);
        assert_eq!(greedy.stop(), Ok(()));
        assert_eq!(server.max_open_connections(), 2);
    }

    #[test]
    fn a_target_that_closes_is_told_of() {
        let server = MetaServer::start();
        let greed = Greed::connect(server.addr(), &[[127, 0, 0, 1].into()]).expect("it listens");
        drop(server);
        let greedy = greed.start();
        eventually("one has ended", SOON, || greedy.threads.iter().any(JoinHandle::is_finished));
        assert!(greedy.stop().is_err());
    }
}
