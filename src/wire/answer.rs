//! A MetaServer's answer to QueryConfig, checked before it is believed.
//!
//! Only as much is read as the proxy must know: whose answer it is, and whether it comes from a leader.
//! The result struct is kept as it came, because fields that this proxy has never heard of belong to
//! the client.

use std::fmt;

use thrift::protocol::{TInputProtocol, TMessageType, TType};

use super::config_view::{self, Address};
use super::error_code::{self, ERR_FORWARD_TO_OTHERS, ERR_OK};
use super::message::QUERY_CONFIG;
use super::reader;

/// Length of the length that starts an answer.
pub const LEN_BYTES: usize = 4;

/// A larger answer is a lie: 64 MiB hold the configuration of some 400,000 partitions.
pub const MAX_ANSWER_LEN: usize = 64 * 1024 * 1024;

/// A follower's answer names one leader; a larger one is a lie, and only followers' answers are read field by field.
const MAX_FOLLOWER_LEN: usize = 64 * 1024;

/// What a MetaServer said.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The leader's own answer, good or bad. Its result struct starts at this offset of the frame.
    Leader {
        /// Bytes before the result struct.
        result_at: usize,
        /// Its error, as a place in [`error_code::COUNTED`].
        counted_as: usize,
    },
    /// A follower's: ask the leader instead, if it knows one.
    Follower {
        /// Where it thinks the leader is.
        leader: Option<Address>,
    },
}

/// An answer that cannot be used. The link closes, another MetaServer is asked.
#[derive(Debug, PartialEq, Eq)]
pub enum BadAnswer {
    /// A length that no answer has.
    Len(i64),
    /// The frame or its message does not parse.
    Frame(String),
    /// The frame says an error and has no result. Passed on it would hang Go and Node clients.
    FrameError(String),
    /// It answers another question.
    Seq {
        /// As asked.
        want: i32,
        /// As answered.
        got: i32,
    },
    /// It answers another method.
    Method(String),
    /// The result struct does not start as a `query_cfg_response`.
    Result(String),
}

impl BadAnswer {
    /// A short name of the kind, for counters.
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

/// The seq of an answer: which question it is to. `frame` is whole, length and all.
pub fn seq_of(frame: &[u8]) -> Result<i32, BadAnswer> {
    let word = |at: usize| {
        let bytes = frame.get(at..)?.first_chunk::<4>()?;
        Some(i32::from_be_bytes(*bytes))
    };
    let behind_text = |at: usize| at.checked_add(4)?.checked_add(usize::try_from(word(at)?).ok()?);
    // total length | frame error | version and type | method | seq
    behind_text(LEN_BYTES)
        .and_then(|at| behind_text(at.checked_add(4)?))
        .and_then(word)
        .ok_or_else(|| BadAnswer::Frame("a message cut short".to_owned()))
}

/// Reads the answer to the question `seq`; `frame` is whole, length and all.
pub fn read_answer(frame: &[u8], seq: i32) -> Result<Answer, BadAnswer> {
    let frame_error = |e: thrift::Error| BadAnswer::Frame(e.to_string());
    let mut input = reader(&frame[LEN_BYTES..]);
    let error = input.read_string().map_err(frame_error)?;
    let begin = input.read_message_begin().map_err(frame_error)?;
    if begin.sequence_number != seq {
        return Err(BadAnswer::Seq { want: seq, got: begin.sequence_number });
    }
    if begin.name.strip_suffix("_ACK") != Some(QUERY_CONFIG) {
        return Err(BadAnswer::Method(begin.name));
    }
    if begin.message_type != TMessageType::Reply {
        return Err(BadAnswer::Frame(format!("message type {:?}", begin.message_type)));
    }
    if error != ERR_OK {
        return Err(BadAnswer::FrameError(error));
    }
    let result = input.transport;
    let err = result_error(result)?;
    if err != ERR_FORWARD_TO_OTHERS {
        let (result_at, counted_as) = (frame.len() - result.len(), error_code::counted_as(&err));
        return Ok(Answer::Leader { result_at, counted_as });
    }
    if result.len() > MAX_FOLLOWER_LEN {
        return Err(BadAnswer::Result(format!("a follower's of {} bytes", result.len())));
    }
    let view = config_view::read(result).map_err(|e| BadAnswer::Result(e.to_string()))?;
    let leader = view.partitions.into_iter().next().and_then(|p| p.primary);
    Ok(Answer::Follower { leader })
}

/// `query_cfg_response.err`, by reading no further than its first field, as every server writes it.
fn result_error(result: &[u8]) -> Result<String, BadAnswer> {
    let bad = |e: thrift::Error| BadAnswer::Result(e.to_string());
    let mut input = reader(result);
    for id in [0, 1] {
        let field = input.read_field_begin().map_err(bad)?;
        if (field.field_type, field.id) != (TType::Struct, Some(id)) {
            return Err(BadAnswer::Result(format!("no struct field {id} at its start")));
        }
    }
    input.read_string().map_err(bad)
}
