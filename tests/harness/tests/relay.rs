//! Does the faulty network of the harness do to real connections what its switches say?

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use harness::relay::Relay;
use harness::wait::{eventually, is_timeout};

/// Bounds a hang; nothing here takes so long.
const SOON: Duration = Duration::from_secs(10);
/// How long nothing must come where nothing should.
const A_WHILE: Duration = Duration::from_millis(80);

/// Answers with the same bytes; tells the length of each read. Its threads end with their connections.
fn echo() -> (SocketAddr, Receiver<usize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let addr = listener.local_addr().expect("it is bound");
    let (lengths, reads) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, lengths) = (stream.expect("a connection"), lengths.clone());
            thread::spawn(move || {
                let mut bytes = [0; 65536];
                while let Ok(len @ 1..) = stream.read(&mut bytes) {
                    let _ = lengths.send(len); // the test may have ended
                    if stream.write_all(&bytes[..len]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    (addr, reads)
}

fn connect(relay: &Relay) -> TcpStream {
    let stream = TcpStream::connect_timeout(&relay.addr(), SOON).expect("the relay accepts");
    stream.set_read_timeout(Some(SOON)).expect("not zero");
    stream
}

fn send(mut stream: &TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).expect("room for a few bytes");
}

fn receive(mut stream: &TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).expect("as many bytes");
    bytes
}

fn expect_nothing(mut stream: &TcpStream) {
    stream.set_read_timeout(Some(A_WHILE)).expect("not zero");
    let read = stream.read(&mut [0]);
    assert!(matches!(&read, Err(e) if is_timeout(e)), "{read:?}");
    stream.set_read_timeout(Some(SOON)).expect("not zero");
}

fn expect_reset(mut stream: &TcpStream) {
    assert_reset(stream.read(&mut [0]));
}

fn assert_reset(read: io::Result<usize>) {
    assert!(matches!(&read, Err(e) if e.kind() == io::ErrorKind::ConnectionReset), "{read:?}");
}

#[test]
fn passes_bytes_counts_them_and_passes_their_end() {
    let relay = Relay::to(echo().0);
    let stream = connect(&relay);
    send(&stream, b"hello");
    assert_eq!(receive(&stream, 5), b"hello");
    assert_eq!((relay.connections(), relay.open_links()), (1, 1));
    assert_eq!((relay.bytes_to_server(), relay.bytes_to_client()), (5, 5));

    stream.shutdown(std::net::Shutdown::Write).expect("it is open");
    assert_eq!((&stream).read(&mut [0]).expect("an orderly end"), 0);
    eventually("the link ends", SOON, || relay.open_links() == 0);
}

#[test]
fn delays_each_direction_and_keeps_the_order() {
    let relay = Relay::to(echo().0);
    let stream = connect(&relay);
    let took = || {
        let asked = Instant::now();
        send(&stream, b"one");
        send(&stream, b"two");
        assert_eq!(receive(&stream, 6), b"onetwo");
        asked.elapsed()
    };
    type Fault = fn(&Relay);
    const DELAY: Duration = Duration::from_millis(100);
    for (why, fault, want) in [
        ("requests", (|r| r.delay_to_server(DELAY)) as Fault, DELAY),
        ("both", |r| r.delay(DELAY), 2 * DELAY),
        ("answers", |r| r.delay_to_client(DELAY), DELAY),
    ] {
        relay.pass();
        fault(&relay);
        let took = took();
        assert!(took >= want, "{why}: want {want:?}, got {took:?}");
    }
    relay.pass();
    assert!(took() < DELAY);
}

#[test]
fn stalls_and_swallows_nothing_for_good() {
    let relay = Relay::to(echo().0);
    let before = connect(&relay);
    send(&before, b"a");
    assert_eq!(receive(&before, 1), b"a");

    relay.stall_to_client();
    send(&before, b"b");
    eventually("the request arrives", SOON, || relay.bytes_to_server() == 2);
    expect_nothing(&before);
    relay.pass();
    assert_eq!(receive(&before, 1), b"b");

    relay.stall_to_server();
    send(&before, b"c");
    expect_nothing(&before);
    assert_eq!(relay.bytes_to_server(), 2);
    relay.pass();
    assert_eq!(receive(&before, 1), b"c");

    relay.black_hole();
    let after = connect(&relay);
    send(&before, b"d");
    send(&after, b"e");
    expect_nothing(&before);
    expect_nothing(&after);
    assert_eq!(relay.bytes_to_server(), 3);
    relay.pass();
    assert_eq!(receive(&before, 1), b"d");
    assert_eq!(receive(&after, 1), b"e");
}

#[test]
fn cuts_links_and_takes_new_ones_even_while_stalled() {
    let relay = Relay::to(echo().0);
    let (first, second) = (connect(&relay), connect(&relay));
    for stream in [&first, &second] {
        send(stream, b"a");
        assert_eq!(receive(stream, 1), b"a");
    }
    relay.black_hole();
    send(&first, b"b");
    let third = connect(&relay);
    eventually("the third is taken", SOON, || relay.open_links() == 3);
    relay.cut();
    assert_eq!(relay.open_links(), 0);
    for stream in [&first, &second, &third] {
        expect_reset(stream);
    }
    relay.pass();
    let fourth = connect(&relay);
    send(&fourth, b"c");
    assert_eq!(receive(&fourth, 1), b"c");
}

#[test]
fn refuses_and_comes_back_at_the_same_address() {
    let relay = Relay::to(echo().0);
    for _ in 0..3 {
        let stream = connect(&relay);
        send(&stream, b"a");
        assert_eq!(receive(&stream, 1), b"a");
        relay.refuse();
        expect_reset(&stream);
        let refused = TcpStream::connect_timeout(&relay.addr(), SOON).map(drop);
        assert!(
            matches!(&refused, Err(e) if e.kind() == io::ErrorKind::ConnectionRefused),
            "{refused:?}"
        );
        relay.pass();
    }
}

#[test]
fn unreachable_neither_accepts_nor_refuses() {
    let relay = Relay::to(echo().0);
    relay.unreachable();
    let unanswered = TcpStream::connect_timeout(&relay.addr(), A_WHILE).map(drop);
    assert!(matches!(&unanswered, Err(e) if e.kind() == io::ErrorKind::TimedOut), "{unanswered:?}");
    relay.pass();
    let stream = connect(&relay);
    send(&stream, b"a");
    assert_eq!(receive(&stream, 1), b"a");
}

#[test]
fn chunks_reach_the_reader_one_by_one() {
    let (target, reads) = echo();
    let relay = Relay::to(target);
    relay.chunk(3);
    let stream = connect(&relay);
    let bytes = [7; 300];
    send(&stream, &bytes);
    assert_eq!(receive(&stream, bytes.len()), bytes);
    assert!(reads.try_iter().count() >= 2, "all came in one read");
}

#[test]
fn follows_its_target() {
    let (first, second) = (echo().0, echo().0);
    let relay = Relay::to(first);
    let old = connect(&relay);
    relay.set_target(second);
    let new = connect(&relay);
    for stream in [&old, &new] {
        send(stream, b"a");
        assert_eq!(receive(stream, 1), b"a");
    }
    // A port where nobody listens: the connection is taken, and reset, maybe before `connect` returns.
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|gone| gone.local_addr());
    relay.set_target(nobody.expect("a free port"));
    assert_reset(TcpStream::connect(relay.addr()).and_then(|mut stream| {
        stream.set_read_timeout(Some(SOON))?;
        stream.read(&mut [0])
    }));
}

#[test]
fn a_big_stream_arrives_whole_through_delay_and_chunks() {
    let relay = Relay::to(echo().0);
    relay.delay(Duration::from_millis(5));
    relay.chunk(5000);
    let stream = connect(&relay);
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    thread::scope(|scope| {
        scope.spawn(|| send(&stream, &bytes));
        assert!(receive(&stream, bytes.len()) == bytes, "not the same bytes");
    });
}
