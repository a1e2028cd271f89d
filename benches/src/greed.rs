//! Clients that ask for tables which do not exist as fast as the proxy takes it: one thread writes whenever a socket has
//! room, another reads what comes and drops it. So no answer is ever waited for, and none left unread.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use harness::wire::{Request, Version};
use mio::net::TcpStream as Stream;
use mio::{Events, Interest, Poll, Token};

use crate::load::dial;

/// Requests in one write.
const REQUESTS: i32 = 256;
/// What one read takes.
const READ_BYTES: usize = 64 << 10;
/// How often a thread looks whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Such clients, connected and still silent.
pub struct Greed {
    /// Both halves of each connection.
    writing: Vec<TcpStream>,
    reading: Vec<TcpStream>,
}

/// Such clients at work.
pub struct Greedy<'scope> {
    is_over: Arc<AtomicBool>,
    threads: [ScopedJoinHandle<'scope, io::Result<()>>; 2],
}

impl Greed {
    /// Opens a connection from each of these hosts.
    pub fn connect(target: SocketAddr, hosts: &[Ipv4Addr]) -> io::Result<Self> {
        let (mut writing, mut reading) = (Vec::new(), Vec::new());
        for host in hosts {
            let stream = TcpStream::from(dial(*host, target)?);
            writing.push(stream.try_clone()?);
            reading.push(stream);
        }
        Ok(Greed { writing, reading })
    }

    /// They begin.
    pub fn start<'scope>(self, scope: &'scope Scope<'scope, '_>) -> Greedy<'scope> {
        let is_over = Arc::new(AtomicBool::new(false));
        let [for_writer, for_reader] = [is_over.clone(), is_over.clone()];
        let Greed { writing, reading } = self;
        let writer = scope.spawn(move || write(writing, &for_writer));
        let reader = scope.spawn(move || read(reading, &for_reader));
        Greedy { is_over, threads: [writer, reader] }
    }
}

impl Greedy<'_> {
    /// They end; or why they ended before.
    pub fn stop(self) -> Result<(), String> {
        self.is_over.store(true, Relaxed);
        for thread in self.threads {
            let ended = thread.join().map_err(|_| "a greedy client panicked".to_owned())?;
            ended.map_err(|e| format!("a greedy client: {e}"))?;
        }
        Ok(())
    }
}

/// What has been written of the frames, for each stream.
fn write(streams: Vec<TcpStream>, is_over: &AtomicBool) -> io::Result<()> {
    let frames: Vec<u8> = (0..REQUESTS)
        .flat_map(|seq| Request::query_config(Version::V0, seq, "nosuch").encode())
        .collect();
    let mut written = vec![0; streams.len()];
    each_ready(streams, Interest::WRITABLE, is_over, |at, mut stream| {
        let written = &mut written[at];
        let sent = stream.write(&frames[*written..])?;
        *written = (*written + sent) % frames.len();
        Ok(())
    })
}

fn read(streams: Vec<TcpStream>, is_over: &AtomicBool) -> io::Result<()> {
    let mut bytes = vec![0; READ_BYTES];
    each_ready(streams, Interest::READABLE, is_over, |_, mut stream| {
        match stream.read(&mut bytes)? {
            0 => Err(io::Error::other("the target closed a connection")),
            _ => Ok(()),
        }
    })
}

/// Calls `act` for every stream that is ready, once for each stream in turn, until it would block; the streams that are
/// not ready are waited for.
fn each_ready(
    streams: Vec<TcpStream>,
    interest: Interest,
    is_over: &AtomicBool,
    mut act: impl FnMut(usize, &Stream) -> io::Result<()>,
) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let mut ready = vec![false; streams.len()];
    let mut streams: Vec<Stream> = streams.into_iter().map(Stream::from_std).collect();
    for (at, stream) in streams.iter_mut().enumerate() {
        poll.registry().register(stream, Token(at), interest)?;
    }
    while !is_over.load(Relaxed) {
        let is_idle = !ready.contains(&true);
        match poll.poll(&mut events, Some(if is_idle { LOOK_EVERY } else { Duration::ZERO })) {
            Err(e) if e.kind() != ErrorKind::Interrupted => return Err(e),
            _ => {}
        }
        events.iter().for_each(|event| ready[event.token().0] = true);
        for (at, (stream, is_ready)) in streams.iter().zip(&mut ready).enumerate() {
            if !*is_ready {
                continue;
            }
            match act(at, stream) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => *is_ready = false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                acted => acted?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use harness::meta_server::MetaServer;
    use std::thread;

    #[test]
    fn greedy_clients_ask_on_without_waiting_for_answers() {
        let server = MetaServer::start();
        server.keep_requests(false);
        let hosts = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 1, 0, 1)];
        let greed = Greed::connect(server.addr(), &hosts).expect("the server listens");
        thread::scope(|scope| {
            let greedy = greed.start(scope);
            harness::wait::eventually("they ask", Duration::from_secs(30), || {
                server.calls() > 10 * REQUESTS as usize
            });
            greedy.stop().expect("nobody closed");
        });
        assert_eq!(server.max_open_connections(), 2);
    }

    #[test]
    fn a_target_that_closes_has_failed() {
        let server = MetaServer::start();
        let greed = Greed::connect(server.addr(), &[Ipv4Addr::LOCALHOST]).expect("it listens");
        drop(server);
        thread::scope(|scope| {
            let greedy = greed.start(scope);
            harness::wait::eventually("both have ended", Duration::from_secs(30), || {
                greedy.threads.iter().any(ScopedJoinHandle::is_finished)
            });
            assert!(greedy.stop().is_err());
        });
    }
}
