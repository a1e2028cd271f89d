//! Checks a MetaServer's answer to QueryConfig before the proxy uses it.
//!
//! The proxy reads only what it must know: which question the answer is for, and whether it comes from a leader. It
//! keeps the result struct unchanged, because the client may know fields that the proxy does not.

use std::fmt;

use thrift::protocol::{TInputProtocol, TMessageType, TType};

use super::config_view::{self, Address};
use super::error_code::{self, ERR_FORWARD_TO_OTHERS, ERR_OK};
use super::message::QUERY_CONFIG;
use super::{message_begin, reader, text};

/// Bytes of the length field at the start of an answer.
pub const LEN_BYTES: usize = 4;

/// A larger length is wrong: 64 MiB hold the configuration of some 400,000 partitions.
pub const MAX_ANSWER_LEN: usize = 64 * 1024 * 1024;

/// Largest answer of a follower, which names one leader. The proxy reads followers' answers field by field.
const MAX_FOLLOWER_LEN: usize = 64 * 1024;

/// The content of a MetaServer's answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The leader's own answer, good or bad. Its result struct starts at this offset of the frame.
    Leader {
        /// Bytes before the result struct.
        result_at: usize,
        /// Index of its error in [`error_code::COUNTED`].
        counted_as: usize,
    },
    /// A follower's answer: ask the leader instead, if the follower knows it.
    Follower {
        /// The leader, according to the follower.
        leader: Option<Address>,
    },
}

/// Why an answer is unusable. The link closes, and the proxy asks another MetaServer.
#[derive(Debug, PartialEq, Eq)]
pub enum BadAnswer {
    /// A length that no answer has.
    Len(i64),
    /// The frame or its message does not parse.
    Frame(String),
    /// The frame has an error and no result. It would hang Go and Node clients.
    FrameError(String),
    /// The answer is for another question.
    Seq {
        /// The seq of the question.
        want: i32,
        /// The seq of the answer.
        got: i32,
    },
    /// The answer is for another method.
    Method(String),
    /// The result struct does not start as a `query_cfg_response`.
    Result(String),
}

impl BadAnswer {
    /// A short name for counters.
    pub fn kind(&self) -> &'static str {
        match self {
            BadAnswer::Len(_) => "len",
            BadAnswer::Frame(_) => "frame",
            BadAnswer::FrameError(_) => "frame_error",
            BadAnswer::Seq { .. } => "seq",
            BadAnswer::Method(_) => "method",
            BadAnswer::Result(_) => "result",
        }
    }
}

impl fmt::Display for BadAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadAnswer::Len(got) => {
                write!(f, "want an answer of at most {MAX_ANSWER_LEN} bytes, got {got}")
            }
            BadAnswer::Frame(why) => write!(f, "want an answer frame, got {why}"),
            BadAnswer::FrameError(name) => write!(f, "want a result, got frame error {name}"),
            BadAnswer::Seq { want, got } => write!(f, "want seq {want}, got {got}"),
            BadAnswer::Method(got) => write!(f, "want an answer to {QUERY_CONFIG}, got {got}"),
            BadAnswer::Result(why) => write!(f, "want a query_cfg_response, got {why}"),
        }
    }
}

impl std::error::Error for BadAnswer {}

/// Length of a whole answer from its first bytes.
pub fn frame_len(first: [u8; LEN_BYTES]) -> Result<usize, BadAnswer> {
    let len = i32::from_be_bytes(first);
    match usize::try_from(len) {
        Ok(n) if (LEN_BYTES + 4..=MAX_ANSWER_LEN).contains(&n) => Ok(n),
        _ => Err(BadAnswer::Len(i64::from(len))),
    }
}

/// An answer whose question is not known yet.
pub struct Envelope<'a> {
    /// The seq of its question.
    pub seq: i32,
    frame: &'a [u8],
    pub error: &'a str,
    pub method: &'a str,
    pub kind: TMessageType,
    pub result: &'a [u8],
}

/// Reads the parts before the result. `frame` is whole, with its length.
pub fn read_envelope(frame: &[u8]) -> Result<Envelope<'_>, BadAnswer> {
    let bad = |e: thrift::Error| BadAnswer::Frame(e.to_string());
    let mut input = reader(&frame[LEN_BYTES..]);
    let error = text(&mut input).map_err(bad)?;
    let (method, kind, seq) = message_begin(&mut input).map_err(bad)?;
    Ok(Envelope { seq, frame, error, method, kind, result: input.transport })
}

impl Envelope<'_> {
    /// Reads the answer to QueryConfig.
    pub fn read(&self) -> Result<Answer, BadAnswer> {
        if self.method.strip_suffix("_ACK") != Some(QUERY_CONFIG) {
            return Err(BadAnswer::Method(self.method.to_owned()));
        }
        if self.kind != TMessageType::Reply {
            return Err(BadAnswer::Frame(format!("message type {:?}", self.kind)));
        }
        if self.error != ERR_OK {
            return Err(BadAnswer::FrameError(self.error.to_owned()));
        }
        let result = self.result;
        let err = result_error(result)?;
        // A Java client hangs on an unknown name; all names of servers have this form.
        let is_name = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
        if !err.starts_with("ERR_") || !err.bytes().all(is_name) {
            return Err(BadAnswer::Result(format!("an error named {err:?}")));
        }
        if err != ERR_FORWARD_TO_OTHERS {
            let result_at = self.frame.len() - result.len();
            return Ok(Answer::Leader { result_at, counted_as: error_code::counted_as(err) });
        }
        if result.len() > MAX_FOLLOWER_LEN {
            return Err(BadAnswer::Result(format!("a follower's of {} bytes", result.len())));
        }
        let view = config_view::read(result).map_err(|e| BadAnswer::Result(e.to_string()))?;
        let leader = view.partitions.into_iter().next().and_then(|p| p.primary);
        Ok(Answer::Follower { leader })
    }
}

/// Reads `query_cfg_response.err`, which is the first field of every server's result, and nothing else.
fn result_error(result: &[u8]) -> Result<&str, BadAnswer> {
    let bad = |e: thrift::Error| BadAnswer::Result(e.to_string());
    let mut input = reader(result);
    for id in [0, 1] {
        let field = input.read_field_begin().map_err(bad)?;
        if (field.field_type, field.id) != (TType::Struct, Some(id)) {
            return Err(BadAnswer::Result(format!("no struct field {id} at its start")));
        }
    }
    text(&mut input).map_err(bad)
}
