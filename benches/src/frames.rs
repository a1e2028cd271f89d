//! Frames, as cheaply as they can be had: a request is made once and only its seq changes, an answer is looked at only
//! as far as its seq and its error code. Both ends of every measurement run on the processors of what is measured.
//!
//! ```text
//! request  | header | 80 01 00 01 | n + method     | seq | args
//! answer   | total_len | n + frame error | 80 01 00 02 | n + method_ACK | seq | 0c 0000 | 0c 0001 | n + err | ...
//! ```
//! Pure: no socket, no clock. `harness::wire` tells what the bytes mean, and made every frame sent here.

use std::net::SocketAddr;

use harness::wire::{self, ERR_OK, QUERY_CONFIG, QueryCfgResponse, Request, Version};

const V0_HEADER: usize = 48;
const V1_HEADER: usize = 16;
/// Part of the result struct, up to the error code's length: field 0 STRUCT, field 1 STRUCT.
const RESULT_START: &[u8] = b"\x0c\0\0\x0c\0\x01";

/// Bytes that are not what they should be.
pub type Malformed = String;

/// A QueryConfig for one table, whole but for its seq.
pub struct Question(Vec<u8>);

impl Question {
    /// As Go, Python and Node ask it.
    pub fn new(table: &str) -> Self {
        Question(Request::query_config(Version::V0, 0, table).encode())
    }

    /// Appends the frame.
    pub fn append(&self, seq: i32, out: &mut Vec<u8>) {
        append_with_seq(&self.0, V0_HEADER + 8 + QUERY_CONFIG.len(), seq, out);
    }
}

/// The answer to every question, whole but for its seq.
pub struct Reply {
    frame: Vec<u8>,
    seq_at: usize,
}

impl Reply {
    /// A healthy table of `partitions` partitions. `app_id` is what tells one cluster from another.
    pub fn new(app_id: i32, partitions: i32) -> Self {
        let primary = SocketAddr::from(([10, 0, 0, 1], 34801));
        let table = QueryCfgResponse::table(app_id, partitions, primary);
        let mut frame = Vec::new();
        wire::append_response(&mut frame, ERR_OK, QUERY_CONFIG, 0, &table.encode());
        let seq_at = 4 + (4 + ERR_OK.len()) + 4 + (4 + QUERY_CONFIG.len() + "_ACK".len());
        Reply { frame, seq_at }
    }

    /// Appends the frame.
    pub fn append(&self, seq: i32, out: &mut Vec<u8>) {
        append_with_seq(&self.frame, self.seq_at, seq, out);
    }
}

fn append_with_seq(frame: &[u8], seq_at: usize, seq: i32, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(frame);
    out[start + seq_at..start + seq_at + 4].copy_from_slice(&seq.to_be_bytes());
}

/// The seq of one whole QueryConfig request.
pub fn request_seq(frame: &[u8]) -> Result<i32, Malformed> {
    let mut at = Cursor(frame);
    at.take(4)?;
    let header = match at.u32()? {
        0 => V0_HEADER,
        _ => V1_HEADER + at.u32()? as usize,
    };
    let mut at = Cursor(frame);
    at.take(header + 4)?;
    match at.string()? {
        method if method == QUERY_CONFIG.as_bytes() => Ok(at.u32()? as i32),
        other => {
            Err(format!("method: want {QUERY_CONFIG}, got {}", String::from_utf8_lossy(other)))
        }
    }
}

/// The part of an answer that a client needs.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The seq of the request.
    pub seq: i32,
    /// The frame error or, if that is `ERR_OK`, the error code of the result.
    pub err: &'a [u8],
}

impl<'a> Answer<'a> {
    /// Looks at one whole frame.
    pub fn read(frame: &'a [u8]) -> Result<Self, Malformed> {
        let mut at = Cursor(frame);
        at.take(4)?;
        let frame_error = at.string()?;
        at.take(4)?;
        at.string()?;
        let seq = at.u32()? as i32;
        if frame_error != ERR_OK.as_bytes() {
            return Ok(Answer { seq, err: frame_error });
        }
        match at.take(RESULT_START.len())? {
            RESULT_START => Ok(Answer { seq, err: at.string()? }),
            other => Err(format!("result: want an error code first, got {other:02x?}")),
        }
    }

    /// Whether it holds a table.
    pub fn is_ok(&self) -> bool {
        self.err == ERR_OK.as_bytes()
    }
}

/// Bytes not read yet.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        match self.0.split_at_checked(len) {
            Some((taken, rest)) => {
                self.0 = rest;
                Ok(taken)
            }
            None => Err(format!("frame: want {len} more bytes, {} are left", self.0.len())),
        }
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes(bytes.try_into().expect("four bytes were taken")))
    }

    fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.u32()? as usize;
        self.take(len)
    }
}

/// Cuts a stream into frames. It keeps only the half frame at the end of what came, so that a connection without one
/// holds no memory.
#[derive(Default)]
pub struct Cutter {
    half: Vec<u8>,
}

impl Cutter {
    /// Calls `each` for every frame that `bytes` complete. `frame_len` is that of the kind of frame expected.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        frame_len: impl Fn(&[u8]) -> Result<Option<usize>, wire::Malformed>,
        mut each: impl FnMut(&[u8]) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        let joined;
        let mut rest = if self.half.is_empty() {
            bytes
        } else {
            self.half.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.half);
            &joined
        };
        while let Some(len) = frame_len(rest).map_err(|e| e.0)?
            && let Some((frame, after)) = rest.split_at_checked(len)
        {
            each(frame)?;
            rest = after;
        }
        if !rest.is_empty() {
            self.half = rest.to_vec();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use harness::wire::Response;

    #[test]
    fn a_question_is_what_a_client_asks_and_its_seq_is_found() {
        let mut frame = Vec::new();
        Question::new("temp").append(7, &mut frame);
        assert_eq!(frame, Request::query_config(Version::V0, 7, "temp").encode());
        for version in [Version::V0, Version::V1] {
            let frame = Request::query_config(version, -5, "temp").encode();
            assert_eq!(request_seq(&frame), Ok(-5), "{version:?}");
        }
        let other = Request::new(Version::V0, "RPC_NEGOTIATION", 1, Vec::new()).encode();
        assert!(request_seq(&other).is_err());
        assert!(request_seq(&frame[..60]).is_err());
    }

    #[test]
    fn a_reply_is_a_whole_table() {
        let reply = Reply::new(3, 64);
        let mut frame = Vec::new();
        reply.append(9, &mut frame);
        assert_eq!(Answer::read(&frame), Ok(Answer { seq: 9, err: b"ERR_OK" }));
        let config = Response::decode(&frame).expect("a frame").config().expect("a table");
        assert_eq!((config.app_id, config.partitions.len()), (3, 64));
    }

    #[test]
    fn errors_of_both_kinds_are_read() {
        let mut frame = Vec::new();
        wire::append_response(&mut frame, "ERR_TIMEOUT", QUERY_CONFIG, 1, b"");
        assert_eq!(Answer::read(&frame), Ok(Answer { seq: 1, err: b"ERR_TIMEOUT" }));
        frame.clear();
        let result = QueryCfgResponse::error("ERR_OBJECT_NOT_FOUND").encode();
        wire::append_response(&mut frame, ERR_OK, QUERY_CONFIG, 2, &result);
        let answer = Answer::read(&frame).expect("an answer");
        assert_eq!((answer.err, answer.is_ok()), (&b"ERR_OBJECT_NOT_FOUND"[..], false));
    }

    #[test]
    fn frames_are_cut_wherever_the_stream_is_torn() {
        let mut stream = Vec::new();
        for seq in 0..3 {
            Reply::new(1, 2).append(seq, &mut stream);
        }
        for piece in [1, 3, 50, 150, stream.len()] {
            let (mut cutter, mut seqs) = (Cutter::default(), Vec::new());
            for bytes in stream.chunks(piece) {
                cutter
                    .feed(bytes, Response::frame_len, |frame| {
                        seqs.push(Answer::read(frame)?.seq);
                        Ok(())
                    })
                    .expect("nothing is wrong with them");
            }
            assert_eq!(seqs, [0, 1, 2], "pieces of {piece}");
            assert!(cutter.half.is_empty());
        }
    }
}
