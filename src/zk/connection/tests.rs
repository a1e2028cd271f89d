//! The connection against a server that follows a script: each trap of the protocol has a test.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc;

use super::*;
use crate::zk::codec::LEN_BYTES;

const SOON: Duration = Duration::from_secs(20);
/// The least patience, a second, goes with it.
const TIMEOUT: Duration = Duration::from_secs(3);

/// A server's end of one connection.
struct Peer(TcpStream);

impl Peer {
    fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        Peer(stream)
    }

    fn frame(&mut self) -> Vec<u8> {
        let mut len = [0; LEN_BYTES];
        self.0.read_exact(&mut len).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(len) as usize];
        self.0.read_exact(&mut frame).unwrap();
        frame
    }

    fn send(&mut self, frame: &[u8]) {
        self.0.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
        self.0.write_all(frame).unwrap();
    }

    /// Last zxid and session of the handshake, which is answered with this session.
    fn greet(&mut self, timeout_ms: i32, id: i64) -> (i64, i64) {
        let asked = self.frame();
        let granted = [
            &[0; 4][..],
            &timeout_ms.to_be_bytes(),
            &id.to_be_bytes(),
            &16i32.to_be_bytes(),
            &[5; 16],
        ];
        self.send(&granted.concat());
        (long(&asked, 4), long(&asked, 16))
    }

    /// xid and operation of a request.
    fn request(&mut self) -> (i32, i32) {
        let frame = self.frame();
        (int(&frame, 0), int(&frame, 4))
    }

    fn reply(&mut self, xid: i32, zxid: i64, error: i32) {
        let frame = [&xid.to_be_bytes()[..], &zxid.to_be_bytes(), &error.to_be_bytes()].concat();
        self.send(&frame);
    }

    fn is_closed(&mut self) -> bool {
        matches!(self.0.read(&mut [0]), Ok(0) | Err(_))
    }
}

fn int(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn options(addr: SocketAddr, digest: Option<&str>) -> Options {
    let digests = digest.map(str::to_owned).into_iter().collect();
    Options {
        address: vec![addr.to_string()],
        timeout: TIMEOUT,
        digests,
        root: Some("/r".to_owned()),
    }
}

struct Client {
    connection: Connection,
    events: Receiver<Event>,
}

impl Client {
    fn of(listener: &TcpListener, digest: Option<&str>) -> Self {
        let resolve = Box::new(|name: &str| Some(vec![name.parse().unwrap()]));
        let options = options(listener.local_addr().unwrap(), digest);
        let (connection, events) = Connection::start(options, resolve, 0, 7).unwrap();
        Client { connection, events }
    }

    fn next(&self) -> Event {
        self.events.recv_timeout(SOON).unwrap()
    }

    fn up(&self) -> (u64, i64) {
        loop {
            if let Event::Up { link, since, .. } = self.next() {
                return (link, since);
            }
        }
    }

    fn down(&self) -> String {
        loop {
            if let Event::Down(why) = self.next() {
                return why;
            }
        }
    }
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// Runs this script as a server, in a thread of its own.
fn serve(
    script: impl FnOnce(TcpListener) + Send + 'static,
) -> (TcpListener, thread::JoinHandle<()>) {
    let listener = listener();
    let shared = listener.try_clone().unwrap();
    (listener, thread::spawn(move || script(shared)))
}

const EXISTS: i32 = 3;
const SYNC: i32 = 9;
const AUTH: i32 = 100;
const CLOSE: i32 = -11;

fn sync() -> Op {
    Op::Sync { path: "/r".to_owned() }
}

/// Trap: a notification has the zxid -1, which is no news of anything. Only answers tell what was seen.
#[test]
fn session_and_newest_zxid_are_kept_over_a_cut_and_notifications_do_not_count() {
    let (listener, server) = serve(|listener| {
        let mut peer = Peer::accept(&listener);
        assert_eq!(peer.greet(3000, 77), (0, 0));
        let (xid, operation) = peer.request();
        assert_eq!(operation, SYNC);
        peer.reply(xid, 0x50, 0);
        let event = [
            &(-1i32).to_be_bytes()[..],
            &(-1i64).to_be_bytes(),
            &[0; 4],
            &[0, 0, 0, 3],
            &[0, 0, 0, 3],
        ]
        .concat();
        peer.send(&[&event[..], &[0, 0, 0, 2, b'/', b'r']].concat());
        drop(peer);
        let mut peer = Peer::accept(&listener);
        assert_eq!(peer.greet(3000, 77), (0x50, 77));
        peer.is_closed();
    });
    let client = Client::of(&listener, None);
    let (link, since) = client.up();
    assert_eq!(since, 0);
    client.connection.ask(link, 1, sync());
    assert!(matches!(
        client.next(),
        Event::Reply { ticket: 1, zxid: 0x50, result: Ok(Answer::Done) }
    ));
    let Event::Fired { event: Fired::Changed, path, .. } = client.next() else {
        panic!("no event")
    };
    assert_eq!(path, "/r");
    assert!(client.down().contains("it closed the connection"));
    let (next, since) = client.up();
    assert_eq!(since, 0x50, "watches are set again since then");
    assert_ne!(next, link);
    client.connection.ask(link, 2, sync()); // over the link that is gone
    drop(client);
    server.join().unwrap();
}

/// Trap: watches need the rights again, so the proof goes before all else, on each connection.
#[test]
fn the_digest_comes_first_on_each_connection_and_a_refusal_is_told() {
    let (listener, server) = serve(|listener| {
        for (number, error) in [(1, 0), (2, -115)] {
            let mut peer = Peer::accept(&listener);
            peer.greet(3000, 77);
            assert_eq!(peer.request(), (-4, AUTH), "{number}");
            peer.reply(-4, 0, error);
            if error == 0 {
                let (xid, operation) = peer.request();
                assert_eq!(operation, SYNC);
                peer.reply(xid, 1, 0);
            }
        }
    });
    let client = Client::of(&listener, Some("u:secret"));
    client.connection.ask(client.up().0, 1, sync());
    assert!(client.down().contains("it closed the connection"));
    let why = client.down();
    assert!(why.contains("zookeeper.digest: authentication failed"), "{why}");
    assert!(!why.contains("secret"), "{why}");
    server.join().unwrap();
}

#[test]
fn an_expired_session_is_replaced_and_what_was_seen_still_counts() {
    let (listener, server) = serve(|listener| {
        let mut peer = Peer::accept(&listener);
        peer.greet(3000, 77);
        let (xid, _) = peer.request();
        peer.reply(xid, 0x50, 0);
        drop(peer);
        assert_eq!(
            Peer::accept(&listener).greet(0, 0),
            (0x50, 77),
            "it is told that it has expired"
        );
        let mut peer = Peer::accept(&listener);
        assert_eq!(peer.greet(3000, 78), (0x50, 0));
        peer.is_closed();
    });
    let client = Client::of(&listener, None);
    client.connection.ask(client.up().0, 1, sync());
    client.down();
    assert!(client.down().contains("the session has expired"));
    assert_eq!(client.up().1, 0x50);
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_slow_answer_is_waited_for_and_a_mute_server_is_not() {
    let (listener, server) = serve(|listener| {
        let mut peer = Peer::accept(&listener);
        peer.greet(3000, 77);
        let (xid, _) = peer.request();
        let mut answer = vec![0, 0, 0, 16];
        answer.extend(xid.to_be_bytes());
        answer.extend([0; 12]);
        // Three seconds in all, with a patience of one.
        for byte in answer {
            thread::sleep(Duration::from_millis(150));
            peer.0.write_all(&[byte]).unwrap();
        }
        // Whatever it asks and however often it pings, nothing is answered; it is shut, not only forgotten.
        io::copy(&mut peer.0, &mut io::sink()).unwrap();
    });
    let client = Client::of(&listener, None);
    let (link, _) = client.up();
    client.connection.ask(link, 1, sync());
    assert!(matches!(client.next(), Event::Reply { ticket: 1, .. }));
    client.connection.ask(link, 2, sync());
    let why = client.down();
    let addr = listener.local_addr().unwrap();
    assert!(
        why.starts_with(&format!("no answer from {addr} in 1 s; the next try is in ")),
        "{why}"
    );
    drop(client);
    server.join().unwrap();
}

#[test]
fn who_closes_early_is_tried_within_the_budget_and_told_of() {
    let (told, closed) = mpsc::channel();
    let (listener, _server) = serve(move |listener| {
        while let Ok((stream, _)) = listener.accept() {
            drop(stream);
            if told.send(()).is_err() {
                return;
            }
        }
    });
    let client = Client::of(&listener, None);
    let why = client.down();
    assert!(why.contains("closes the connection instead of granting a session"), "{why}");
    assert!(!why.contains("os error"), "{why}");
    thread::sleep(Duration::from_secs(3));
    drop(client);
    let tries = closed.try_iter().count();
    assert!((3..=5 + 3).contains(&tries), "{tries} in 3 s");
}

#[test]
fn what_is_no_answer_ends_the_connection() {
    let (listener, server) = serve(|listener| {
        for number in 0..3 {
            let mut peer = Peer::accept(&listener);
            peer.greet(3000, 77);
            let (xid, _) = peer.request();
            match number {
                0 => peer.reply(xid + 1, 1, 0),
                1 => peer.0.write_all(&[0x7f, 0, 0, 0]).unwrap(),
                _ => peer.send(b"HTTP"),
            }
            assert!(peer.is_closed(), "{number}");
        }
    });
    let client = Client::of(&listener, None);
    for want in ["answers out of order", "the length of a frame", "a frame too short"] {
        client.connection.ask(client.up().0, 1, sync());
        let why = client.down();
        assert!(why.contains(want), "{why}");
    }
    drop(client);
    server.join().unwrap();
}

#[test]
fn the_end_says_goodbye_and_leaves_no_thread() {
    let (listener, server) = serve(|listener| {
        let mut peer = Peer::accept(&listener);
        peer.greet(3000, 77);
        let (xid, operation) = peer.request();
        assert_eq!(operation, CLOSE);
        peer.reply(xid, 1, 0);
        assert!(peer.is_closed());
    });
    let client = Client::of(&listener, None);
    client.up();
    let start = Instant::now();
    drop(client.events);
    drop(client.connection); // joins its thread
    assert!(start.elapsed() < SOON);
    server.join().unwrap();
}

#[test]
fn an_idle_connection_is_kept_alive_by_pings() {
    let (listener, server) = serve(|listener| {
        let mut peer = Peer::accept(&listener);
        peer.greet(600, 77);
        for _ in 0..3 {
            assert_eq!(peer.request(), (-2, 11));
            peer.reply(-2, 0x99, 0);
        }
    });
    let client = Client::of(&listener, None);
    client.up();
    server.join().unwrap();
    assert!(client.down().contains("it closed the connection"));
    assert_eq!(client.events.try_iter().count(), 0);
}

#[test]
fn other_options_connect_anew_with_the_session_and_a_fresh_start_without() {
    let (first, at_first) = serve(|listener| {
        let mut peer = Peer::accept(&listener);
        peer.greet(3000, 77);
        let (xid, operation) = peer.request();
        assert_eq!(operation, EXISTS);
        peer.send(&[&xid.to_be_bytes()[..], &0x50i64.to_be_bytes(), &[0; 4], &[0; 68]].concat());
        assert!(peer.is_closed());
    });
    let (second, at_second) = serve(|listener| {
        assert_eq!(Peer::accept(&listener).greet(3000, 77), (0x50, 77));
        let mut peer = Peer::accept(&listener);
        peer.greet(3000, 77);
        assert!(peer.is_closed());
        let mut peer = Peer::accept(&listener);
        assert_eq!(peer.greet(3000, 5), (0, 0));
        peer.is_closed();
    });
    let client = Client::of(&first, None);
    client.connection.ask(client.up().0, 1, Op::Exists { path: "/r".to_owned(), watch: true });
    assert!(matches!(client.next(), Event::Reply { result: Ok(Answer::Stat(_)), .. }));
    let others = options(second.local_addr().unwrap(), None);
    client.connection.tell(Command::Configure(others));
    assert!(client.down().contains("the settings changed"));
    client.up();
    client.up(); // the first was cut
    client.connection.tell(Command::StartOver);
    assert_eq!(client.up().1, 0);
    drop(client);
    at_first.join().unwrap();
    at_second.join().unwrap();
}
