//! The native C++ client as a stand-in: its frames, its connection, and how it judges what it is answered. It shares
//! no line with the proxy; frames of the real client and of real servers (`tests/golden/cpp-*`) hold it to the truth.
//!
//! ```text
//! | "RDSN" | version | header_len=192 | header_crc | body_len | body_crc | id u64 | trace u64 | rpc_name[48]
//! | code, hash | app_id, partition | context u64 | from u64 | timeout | hash | hash u64 | error_name[48] | code, hash | body
//! ```
//! All little-endian, 192 bytes before the body. Layout: incubator-pegasus `src/rpc/rpc_message.h`.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::peer::{ANSWER_WITHIN, NoAnswer, Peer};
use crate::wire::{ERR_OK, HostPort, MAX_BODY, Malformed, QUERY_CONFIG, Query, QueryCfgResponse};

/// Bytes before the body.
pub const HEADER: usize = 192;

/// As the client writes it: is_request, Thrift binary, is_forward_supported.
pub const REQUEST: u64 = 0x441;

/// A frame in either direction, taken apart. Public fields: a test that wants an odd frame changes one and encodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub version: u32,
    pub header_len: u32,
    pub header_crc: u32,
    pub body_crc: u32,
    pub id: u64,
    pub trace_id: u64,
    pub rpc_name: String,
    pub rpc_code: (u32, u32),
    pub app_id: i32,
    pub partition: i32,
    pub context: u64,
    pub from_address: u64,
    pub timeout_ms: i32,
    pub thread_hash: i32,
    pub partition_hash: u64,
    pub error_name: String,
    pub error_code: (u32, u32),
    pub body: Vec<u8>,
}

impl Frame {
    /// A request with nothing odd about it.
    pub fn request(rpc_name: &str, id: u64, body: Vec<u8>) -> Self {
        Frame {
            version: 0,
            header_len: HEADER as u32,
            header_crc: 0,
            body_crc: 0,
            id,
            trace_id: 0x1122_3344_5566_7788,
            rpc_name: rpc_name.to_owned(),
            rpc_code: (42, 0),
            app_id: 0,
            partition: 0,
            context: REQUEST,
            from_address: 0x7f00_0001_0001_0001, // 127.0.0.1:1
            timeout_ms: 5000,
            thread_hash: 0,
            partition_hash: 0,
            error_name: String::new(),
            error_code: (0, 0),
            body,
        }
    }

    /// QueryConfig, of all partitions or of some.
    pub fn query(id: u64, table: &str, indices: &[i32]) -> Self {
        let query = Query { table: table.to_owned(), indices: Some(indices.to_vec()) };
        let mut body = query.encode();
        body[2] = 0; // RDSN numbers the request 0, THFT 1
        Self::request(QUERY_CONFIG, id, body)
    }

    /// This frame with both CRCs.
    pub fn with_crc(mut self) -> Self {
        self.body_crc = crc32c(&self.body);
        self.header_crc = 0;
        self.header_crc = crc32c(&self.encode()[..HEADER]);
        self
    }

    /// The arguments, if it is a QueryConfig.
    pub fn query_args(&self) -> Result<Query, Malformed> {
        let mut args = self.body.clone();
        match args.get_mut(2) {
            Some(id @ 0) => *id = 1,
            other => return Err(Malformed(format!("want field 0 first, got {other:?}"))),
        }
        Query::decode(&args)
    }

    /// The whole frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = b"RDSN".to_vec();
        for word in
            [self.version, self.header_len, self.header_crc, self.body.len() as u32, self.body_crc]
        {
            out.extend(word.to_le_bytes());
        }
        out.extend(self.id.to_le_bytes());
        out.extend(self.trace_id.to_le_bytes());
        out.extend(padded(&self.rpc_name));
        out.extend(self.rpc_code.0.to_le_bytes());
        out.extend(self.rpc_code.1.to_le_bytes());
        out.extend(self.app_id.to_le_bytes());
        out.extend(self.partition.to_le_bytes());
        out.extend(self.context.to_le_bytes());
        out.extend(self.from_address.to_le_bytes());
        out.extend(self.timeout_ms.to_le_bytes());
        out.extend(self.thread_hash.to_le_bytes());
        out.extend(self.partition_hash.to_le_bytes());
        out.extend(padded(&self.error_name));
        out.extend(self.error_code.0.to_le_bytes());
        out.extend(self.error_code.1.to_le_bytes());
        assert_eq!(out.len(), HEADER);
        out.extend(&self.body);
        out
    }

    /// How long the frame at the start of `bytes` is; `None` while too little of it is there to tell.
    pub fn frame_len(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        let magic = &bytes[..bytes.len().min(4)];
        if *magic != b"RDSN"[..magic.len()] {
            return Err(Malformed(format!("no frame: want \"RDSN\", got {magic:02x?}")));
        }
        if bytes.len() < 20 {
            return Ok(None);
        }
        let body = u32::from_le_bytes(bytes[16..20].try_into().expect("four bytes")) as usize;
        match body <= MAX_BODY {
            true => Ok(Some(HEADER + body)),
            false => Err(Malformed(format!("a body of {body} bytes"))),
        }
    }

    /// Takes apart one frame, neither cut short nor followed by anything.
    pub fn decode(frame: &[u8]) -> Result<Self, Malformed> {
        match Self::frame_len(frame)? {
            Some(len) if len == frame.len() => {}
            want => {
                let got = frame.len();
                return Err(Malformed(format!("frame length: want {want:?}, got {got}")));
            }
        }
        let u32_at = |at: usize| u32::from_le_bytes(frame[at..at + 4].try_into().expect("four"));
        let u64_at = |at: usize| u64::from_le_bytes(frame[at..at + 8].try_into().expect("eight"));
        let text = |at: usize| {
            let name = frame[at..at + 48].split(|byte| *byte == 0).next().unwrap_or_default();
            String::from_utf8_lossy(name).into_owned()
        };
        Ok(Frame {
            version: u32_at(4),
            header_len: u32_at(8),
            header_crc: u32_at(12),
            body_crc: u32_at(20),
            id: u64_at(24),
            trace_id: u64_at(32),
            rpc_name: text(40),
            rpc_code: (u32_at(88), u32_at(92)),
            app_id: u32_at(96) as i32,
            partition: u32_at(100) as i32,
            context: u64_at(104),
            from_address: u64_at(112),
            timeout_ms: u32_at(120) as i32,
            thread_hash: u32_at(124) as i32,
            partition_hash: u64_at(128),
            error_name: text(136),
            error_code: (u32_at(184), u32_at(188)),
            body: frame[HEADER..].to_vec(),
        })
    }

    /// Tells what the real client makes of this answer to its request `id`, as was seen of one of 2026.
    pub fn judge(&self, id: u64) -> Verdict {
        let format = self.context >> 6 & 0xf;
        if self.header_len != HEADER as u32 || self.context & 1 == 1 || self.id != id {
            return Verdict::Dropped;
        }
        if self.error_name == "ERR_FORWARD_TO_OTHERS" {
            return Verdict::GoesElsewhere;
        }
        if self.error_name != ERR_OK {
            return Verdict::AsksAgain(self.error_name.clone());
        }
        let config = match QueryCfgResponse::decode(&self.body) {
            Ok(config) if format == 1 => config,
            _ => return Verdict::Aborts,
        };
        let unresolvable = |host: &HostPort| host.kind == 1 && host.host.is_empty();
        let primaries = || config.partitions.iter().map(|partition| &partition.hp_primary);
        if primaries().flatten().any(|host| host.kind > 1 || unresolvable(host)) {
            return Verdict::Aborts;
        }
        match config.err.as_str() {
            ERR_OK if primaries().any(|host| host.is_none()) => {
                Verdict::AsksAgain("no hp_primary".to_owned())
            }
            _ => Verdict::Takes(config),
        }
    }
}

/// The real client's view of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It reads this, be it an error.
    Takes(QueryCfgResponse),
    /// It waits for its time-out.
    Dropped,
    /// It asks again each second until its time-out.
    AsksAgain(String),
    /// It asks the server named there, round the proxy.
    GoesElsewhere,
    /// The process ends.
    Aborts,
}

fn padded(name: &str) -> [u8; 48] {
    let mut field = [0; 48];
    field[..name.len()].copy_from_slice(name.as_bytes());
    field
}

/// CRC-32C, bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

/// One of the connections of a C++ client.
pub struct RdsnClient {
    peer: Peer,
    last_id: u64,
}

impl RdsnClient {
    /// Connects.
    #[track_caller]
    pub fn connect(addr: SocketAddr) -> Self {
        let peer = TcpStream::connect_timeout(&addr, ANSWER_WITHIN).and_then(Peer::of);
        let peer = peer.unwrap_or_else(|e| panic!("cannot connect to {addr}: {e}"));
        RdsnClient { peer, last_id: 0 }
    }

    /// Any bytes.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.peer.send(bytes);
    }

    /// Says that nothing more will be sent; answers can still be read.
    pub fn finish_sending(&self) {
        self.peer.finish_sending();
    }

    /// One query, its answer left to be read; returns its id. Ids have holes, as those of the real client.
    #[track_caller]
    pub fn send_query(&mut self, table: &str, indices: &[i32]) -> u64 {
        self.last_id += 2;
        self.send(&Frame::query(self.last_id, table, indices).encode());
        self.last_id
    }

    /// One query, and what the real client would make of its answer.
    #[track_caller]
    pub fn ask(&mut self, table: &str) -> Verdict {
        let id = self.send_query(table, &[]);
        self.read_answer().judge(id)
    }

    /// The next answer, whichever query it belongs to.
    #[track_caller]
    pub fn read_answer(&mut self) -> Frame {
        self.try_read_answer(ANSWER_WITHIN).unwrap_or_else(|why| panic!("no answer: {why}"))
    }

    /// `count` answers by id, in whichever order they come. Two with the same id are a fault.
    #[track_caller]
    pub fn read_answers(&mut self, count: usize) -> BTreeMap<u64, Frame> {
        let mut answers = BTreeMap::new();
        while answers.len() < count {
            let answer = self.read_answer();
            if let Some(first) = answers.insert(answer.id, answer) {
                panic!("two answers with id {}", first.id);
            }
        }
        answers
    }

    /// The next answer, or why there is none.
    pub fn try_read_answer(&mut self, within: Duration) -> Result<Frame, NoAnswer> {
        let bytes = self.peer.frame(within, Frame::frame_len)?;
        Frame::decode(&bytes).map_err(|fault| NoAnswer::Malformed(fault.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn golden(name: &str) -> Vec<u8> {
        let path = format!("{}/../golden/{name}", env!("CARGO_MANIFEST_DIR"));
        fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    #[test]
    fn requests_are_byte_for_byte_those_of_the_real_client() {
        let bytes = golden("cpp-temp-first.request.bin");
        let frame = Frame::decode(&bytes).unwrap();
        assert_eq!(frame.encode(), bytes);
        let made =
            Frame { trace_id: frame.trace_id, timeout_ms: 4999, ..Frame::query(2, "temp", &[]) };
        assert_eq!(made, frame);

        let bytes = golden("cpp-crc.request.bin");
        let frame = Frame::decode(&bytes).unwrap();
        let query = Frame::query(2, "temp", &[]);
        let made = Frame { trace_id: frame.trace_id, timeout_ms: 3000, ..query }.with_crc();
        assert_eq!(made.encode(), bytes);
    }

    #[test]
    fn the_judge_says_what_was_seen() {
        for name in ["temp-first", "unknown-table", "one-index"] {
            let frame = Frame::decode(&golden(&format!("cpp-{name}.response.bin"))).unwrap();
            assert!(matches!(frame.judge(frame.id), Verdict::Takes(_)), "{name}");
            let change = |change: fn(&mut Frame)| {
                let mut other = frame.clone();
                change(&mut other);
                other.judge(frame.id)
            };
            assert_eq!(change(|frame| frame.id += 1), Verdict::Dropped);
            assert_eq!(change(|frame| frame.context |= 1), Verdict::Dropped);
            assert_eq!(change(|frame| frame.context = 0), Verdict::Aborts);
            assert_eq!(change(|frame| frame.body.clear()), Verdict::Aborts);
            assert_eq!(change(|frame| _ = frame.body.pop()), Verdict::Aborts);
            let busy = change(|frame| frame.error_name = "ERR_BUSY".to_owned());
            assert_eq!(busy, Verdict::AsksAgain("ERR_BUSY".to_owned()));
        }
        let follower = Frame::decode(&golden("cpp-follower.response.bin")).unwrap();
        assert_eq!(follower.judge(follower.id), Verdict::GoesElsewhere);
    }
}
