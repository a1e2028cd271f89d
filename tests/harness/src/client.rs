//! A client of Pegasus as bare as it gets: one connection, frames out, answers in, every wait with a deadline. It does
//! what a test tells it to, odd bytes and pipelining included, and judges nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::peer::Peer;
pub use crate::peer::{ANSWER_WITHIN, NoAnswer};
use crate::wire::{ERR_OK, QueryCfgResponse, Request, Response, Version};

/// One connection to a MetaServer, or to a proxy that stands for one.
pub struct Client {
    peer: Peer,
    version: Version,
    last_seq: i32,
}

/// The answer to one query.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    /// `ERR_OK`, or the reason why there is no result.
    pub frame_error: String,
    pub name: String,
    pub seq: i32,
    /// The result struct, as it stood in the frame.
    pub result: Vec<u8>,
    /// The `err` of the QueryConfig answer, if the result is one.
    pub err: Option<String>,
    /// The whole frame.
    pub bytes: Vec<u8>,
}

impl Client {
    /// Connects; will ask with v0 headers, as most clients do.
    #[track_caller]
    pub fn connect(addr: SocketAddr) -> Self {
        Self::try_connect(addr, ANSWER_WITHIN)
            .unwrap_or_else(|e| panic!("cannot connect to {addr}: {e}"))
    }

    /// Connects, or says why not.
    pub fn try_connect(addr: SocketAddr, within: Duration) -> io::Result<Self> {
        Self::of(TcpStream::connect_timeout(&addr, within)?)
    }

    /// Connects from another address of this host, such as 127.0.0.2: a client on another host, for the proxy.
    pub fn connect_from(source: IpAddr, addr: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.connect_timeout(&addr.into(), ANSWER_WITHIN)?;
        Self::of(socket.into())
    }

    fn of(stream: TcpStream) -> io::Result<Self> {
        Ok(Client { peer: Peer::of(stream)?, version: Version::V0, last_seq: 0 })
    }

    /// Asks with headers of another version.
    pub fn with_version(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// The socket, for what this type has no method for.
    pub fn stream(&self) -> &TcpStream {
        self.peer.stream()
    }

    /// The own end of the connection: what the peer sees as the client's address.
    #[track_caller]
    pub fn local_addr(&self) -> SocketAddr {
        self.stream().local_addr().expect("it is connected")
    }

    // ---- out

    /// Any bytes.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.peer.send(bytes);
    }

    /// Any bytes; fails when the peer is gone, or takes nothing for 5 s.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.peer.try_send(bytes)
    }

    /// One query, its answer left to be read.
    #[track_caller]
    pub fn send_query(&mut self, seq: i32, table: &str) {
        self.send(&Request::query_config(self.version, seq, table).encode());
    }

    /// Queries in one write, numbered on; returns their numbers in the same order.
    #[track_caller]
    pub fn send_queries<'a>(&mut self, tables: impl IntoIterator<Item = &'a str>) -> Vec<i32> {
        let mut bytes = Vec::new();
        let mut seqs = Vec::new();
        for table in tables {
            let seq = self.next_seq();
            bytes.extend(Request::query_config(self.version, seq, table).encode());
            seqs.push(seq);
        }
        self.send(&bytes);
        seqs
    }

    /// Says that nothing more will be sent; answers can still be read.
    pub fn finish_sending(&self) {
        self.peer.finish_sending();
    }

    // ---- in

    /// One query and its answer.
    #[track_caller]
    pub fn ask(&mut self, table: &str) -> Answer {
        match self.try_ask(table, ANSWER_WITHIN) {
            Ok(answer) => answer,
            Err(why) => panic!("no answer for table {table:?}: {why}"),
        }
    }

    /// One query and its answer, or why there is none. An answer to an earlier query is taken as it comes.
    pub fn try_ask(&mut self, table: &str, within: Duration) -> Result<Answer, NoAnswer> {
        let seq = self.next_seq();
        let request = Request::query_config(self.version, seq, table).encode();
        self.try_send(&request).map_err(|_| NoAnswer::Closed)?;
        self.try_read_answer(within)
    }

    /// The next answer, whichever query it belongs to.
    #[track_caller]
    pub fn read_answer(&mut self) -> Answer {
        match self.try_read_answer(ANSWER_WITHIN) {
            Ok(answer) => answer,
            Err(why) => panic!("no answer: {why}"),
        }
    }

    /// The next answer, or why there is none.
    pub fn try_read_answer(&mut self, within: Duration) -> Result<Answer, NoAnswer> {
        let bytes = self.peer.frame(within, Response::frame_len)?;
        let response =
            Response::decode(&bytes).map_err(|fault| NoAnswer::Malformed(fault.to_string()))?;
        Ok(Answer {
            err: response.config().ok().map(|config| config.err),
            frame_error: response.error,
            name: response.name,
            seq: response.seq,
            result: response.result,
            bytes,
        })
    }

    /// `count` answers by seq, in whichever order they come. Two with the same seq are a fault.
    #[track_caller]
    pub fn read_answers(&mut self, count: usize) -> BTreeMap<i32, Answer> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        let mut answers = BTreeMap::new();
        while answers.len() < count {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = self.try_read_answer(left).unwrap_or_else(|why| {
                let seen: Vec<i32> = answers.keys().copied().collect();
                panic!("{} of {count} answers, {seen:?}, then: {why}", seen.len())
            });
            if let Some(first) = answers.insert(answer.seq, answer) {
                panic!("two answers with seq {}", first.seq);
            }
        }
        answers
    }

    /// Sends all in one write and collects all answers, in the order of the tables.
    #[track_caller]
    pub fn ask_all<'a>(&mut self, tables: impl IntoIterator<Item = &'a str>) -> Vec<Answer> {
        let seqs = self.send_queries(tables);
        let mut answers = self.read_answers(seqs.len());
        seqs.iter()
            .map(|seq| match answers.remove(seq) {
                Some(answer) => answer,
                None => panic!("no answer with seq {seq}, but others: {answers:?}"),
            })
            .collect()
    }

    /// The peer closes the connection, in order or by a reset, and sends nothing before.
    #[track_caller]
    pub fn expect_closed(&mut self, within: Duration) {
        self.peer.expect_closed(within, Response::frame_len);
    }

    /// The peer sends nothing and keeps the connection.
    #[track_caller]
    pub fn expect_silence(&mut self, during: Duration) {
        match self.try_read_answer(during) {
            Err(NoAnswer::Silence { unread: 0, .. }) => {}
            other => panic!("want {during:?} of silence, got {other:?}"),
        }
    }

    fn next_seq(&mut self) -> i32 {
        self.last_seq += 1;
        self.last_seq
    }
}

impl Answer {
    /// Whether it tells of a table, not of a failure.
    pub fn is_ok(&self) -> bool {
        self.frame_error == ERR_OK && self.err.as_deref() == Some(ERR_OK)
    }

    /// The QueryConfig answer in it.
    #[track_caller]
    pub fn config(&self) -> QueryCfgResponse {
        QueryCfgResponse::decode(&self.result)
            .unwrap_or_else(|e| panic!("no QueryConfig answer: {e}: {self:?}"))
    }
}

impl fmt::Debug for Answer {
    /// Without the bytes, which nobody reads in a message of a failed assert.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("frame_error", &self.frame_error)
            .field("name", &self.name)
            .field("seq", &self.seq)
            .field("err", &self.err)
            .field("result_len", &self.result.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{QUERY_CONFIG, append_response};
    use std::io::Write;
    use std::net::TcpListener;

    fn pair() -> (Client, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let client = Client::connect(listener.local_addr().expect("it is bound"));
        let (server, _) = listener.accept().expect("the client has connected");
        (client, server)
    }

    fn answers(seqs: &[i32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for seq in seqs {
            let result = QueryCfgResponse::error("ERR_OBJECT_NOT_FOUND").encode();
            append_response(&mut bytes, ERR_OK, QUERY_CONFIG, *seq, &result);
        }
        bytes
    }

    #[test]
    fn pipelined_answers_are_told_apart_by_seq() {
        let (mut client, mut server) = pair();
        server.write_all(&answers(&[3, 1, 2])).expect("room for it");
        let got = client.ask_all(["a", "b", "c"]);
        let seqs: Vec<i32> = got.iter().map(|answer| answer.seq).collect();
        assert_eq!(seqs, [1, 2, 3]);
        assert_eq!(got[0].err.as_deref(), Some("ERR_OBJECT_NOT_FOUND"));
        assert_eq!(got[0].bytes, answers(&[1]));
        assert!(!got[0].is_ok());
    }

    #[test]
    fn silence_half_an_answer_and_the_end_are_three_things() {
        let (mut client, mut server) = pair();
        client.expect_silence(Duration::from_millis(20));
        server.write_all(&answers(&[1])[..10]).expect("room for it");
        let within = Duration::from_millis(50);
        assert_eq!(
            client.try_read_answer(within),
            Err(NoAnswer::Silence { after: within, unread: 10 })
        );
        server.write_all(&answers(&[1])[10..]).expect("room for it");
        assert_eq!(client.read_answer().seq, 1);
        server.write_all(b"HTTP").expect("room for it");
        drop(server);
        assert!(matches!(client.try_read_answer(within), Err(NoAnswer::Malformed(_))));

        let (mut client, server) = pair();
        drop(server);
        client.expect_closed(ANSWER_WITHIN);
    }
}
