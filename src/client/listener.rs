//! The listening socket. It can listen beside another process of the same user, and closes without refusing a client.
//!
//! ```text
//! old process ─ listens ──────────────── SIGTERM ─ filter ── 200 ms ── accept what waits ─ close
//! new process ─────── binds beside it (SO_REUSEPORT) ─ listens ─────────────────────────────────▶
//! client ─ SYN ─▶ the kernel chooses one of both   SYN dropped ─ SYN again after 1 s ─▶ the new one
//! ```
//! The kernel resets clients that wait in the queue of a listener when it closes. So a filter first drops SYNs, which
//! lets no new handshake begin. The proxy then waits for handshakes under way, accepts them, and closes an empty queue.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::net::{self, IpAddr, SocketAddr};
use std::time::Duration;

use log::warn;
use mio::net::TcpListener;
use socket2::{Domain, SockFilter, SockRef, Socket, Type};

use crate::wire::host_port::HostPortFields;

/// The queue has room for all clients of a region that reconnect at once.
const BACKLOG: i32 = 16_384;

/// How long handshakes under way may take. This is far more than a round trip, and less than the second after which a
/// client repeats a SYN, which then reaches the other process.
pub const HANDSHAKES: Duration = Duration::from_millis(200);

/// Classic BPF over a TCP segment: drops a SYN without ACK, passes all else.
const DROP_SYNS: [SockFilter; 5] = [
    SockFilter::new(0x30, 0, 0, 13),       // load byte 13: the flags
    SockFilter::new(0x54, 0, 0, 0x12),     // keep SYN and ACK
    SockFilter::new(0x15, 0, 1, 0x02),     // SYN alone?
    SockFilter::new(0x06, 0, 0, 0),        // drop
    SockFilter::new(0x06, 0, 0, u32::MAX), // pass, whole
];

/// Listens at `addr`, beside other processes of this user that called this function.
pub fn bind(addr: SocketAddr) -> io::Result<net::TcpListener> {
    let socket = match new_socket(addr, false) {
        Err(e) if e.kind() == ErrorKind::AddrInUse => {
            let socket = new_socket(addr, true)?;
            warn!("another process listens at {addr} too: both get new clients until one stops");
            socket
        }
        other => other?,
    };
    // Also for a socket that is alone: the next process can bind only if both sockets have the option.
    socket.set_reuse_port(true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn new_socket(addr: SocketAddr, beside: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(beside)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

/// Whether another process also listens at `addr`. True if that is not known.
pub fn is_shared(addr: SocketAddr) -> bool {
    let table = if addr.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
    count(table, &in_table(addr)).map_or(true, |listeners| listeners > 1)
}

/// An address as in the kernel's tables: words as they are in memory, then the port.
fn in_table(addr: SocketAddr) -> String {
    let octets = match addr.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (words, _) = octets.as_chunks();
    let words = words.iter().map(|word| format!("{:08X}", u32::from_ne_bytes(*word)));
    format!("{}:{:04X}", words.collect::<String>(), addr.port())
}

/// Counts listeners at an address in a table of the kernel: `sl local_address:port rem_address:port state ...`, in
/// hexadecimal. Listeners come before connections, of which there may be very many.
fn count(table: &str, addr: &str) -> io::Result<usize> {
    const LISTEN: &str = "0A";
    let mut count = 0;
    for line in BufReader::new(File::open(table)?).lines().skip(1) {
        let line = line?;
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, state, ..] = fields[..] else { continue };
        if state != LISTEN {
            break;
        }
        count += usize::from(local == addr);
    }
    Ok(count)
}

pub struct Listener {
    pub socket: TcpListener,
    /// Whether the service manager owns it too, and goes on listening when this process has ended.
    pub is_lent: bool,
    /// Whether answers to clients that connect here keep the host_port fields.
    pub host_port_fields: HostPortFields,
}

impl Listener {
    /// `socket` is bound, by [`bind`] or by the service manager.
    pub fn new(
        socket: net::TcpListener,
        is_lent: bool,
        host_port_fields: HostPortFields,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Listener { socket: TcpListener::from_std(socket), is_lent, host_port_fields })
    }

    /// From now on no new handshake begins here. False: there is nothing to wait for, because no other process listens
    /// there, or because the service manager goes on listening.
    pub fn turn_newcomers_away(&self) -> bool {
        let is_shared = || self.socket.local_addr().is_ok_and(is_shared);
        if self.is_lent || !is_shared() {
            return false;
        }
        let filtered = SockRef::from(&self.socket).attach_filter(&DROP_SYNS);
        if let Err(e) = &filtered {
            warn!("cannot filter SYNs, clients that connect now may be refused: {e}");
        }
        filtered.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpStream};

    #[test]
    fn only_a_listener_at_the_same_address_shares_it() {
        for own in ["127.0.0.1:0", "[::1]:0"] {
            let listener = bind(own.parse().unwrap()).unwrap();
            let addr = listener.local_addr().unwrap();
            assert_eq!(count_at(addr), 1);
            let elsewhere = bind((Ipv4Addr::new(127, 0, 0, 2), addr.port()).into()).unwrap();
            assert!(!is_shared(addr), "{addr}, and {elsewhere:?}");
            let beside = bind(addr).unwrap();
            assert!(is_shared(addr), "{addr}, and {beside:?}");
        }
    }

    fn count_at(addr: SocketAddr) -> usize {
        let table = if addr.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
        count(table, &in_table(addr)).unwrap()
    }

    #[test]
    fn a_filtered_listener_drops_new_clients_and_keeps_earlier_ones() {
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let addr = listener.local_addr().unwrap();
        let before = TcpStream::connect(addr).unwrap();
        let listener = Listener::new(listener, false, HostPortFields::Keep).unwrap();
        assert!(!listener.turn_newcomers_away(), "nobody else listens there");
        let other = bind(addr).unwrap();
        assert!(listener.turn_newcomers_away());
        drop(other);
        let within = Duration::from_millis(300);
        let late = TcpStream::connect_timeout(&addr, within).unwrap_err();
        assert_eq!(late.kind(), ErrorKind::TimedOut, "neither accepted nor refused");
        let (_, peer) = listener.socket.accept().unwrap();
        assert_eq!(peer, before.local_addr().unwrap());
        assert_eq!(listener.socket.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn two_processes_of_a_user_share_a_port_and_another_program_does_not() {
        let first = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let addr = first.local_addr().unwrap();
        let second = bind(addr).unwrap();
        assert_eq!(second.local_addr().unwrap(), addr);
        let stranger = net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let taken = bind(stranger.local_addr().unwrap()).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AddrInUse);
    }
}
