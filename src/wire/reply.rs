//! Envelopes: the bytes around a result on its way to a client.
//!
//! ```text
//! i32 total_len, these 4 bytes included | i32 n + frame error | i32 80 01 00 02
//! | i32 n + method + "_ACK" | i32 seq, as asked | result struct (not behind a frame error)
//! ```
//! Answers to THFT v0 and v1 are equal; RDSN has the header of `rdsn` before the same result. Source: incubator-pegasus
//! `src/rpc/thrift_message_parser.cpp`, `prepare_on_send`.

use std::sync::LazyLock;

use super::error_code::{ERR_HANDLER_NOT_FOUND, ERR_OK, OwnError};
use super::message::{NEGOTIATION, QUERY_CONFIG, RequestId};
use super::rdsn;

/// The answer of the C++ MetaServer to `RPC_NEGOTIATION` without authentication: status SASL_AUTH_DISABLE (9), empty
/// message. Clients then continue without Kerberos.
const NEGOTIATION_RESULT: &[u8] =
    &[0x0c, 0, 0, 0x08, 0, 1, 0, 0, 0, 9, 0x0c, 0, 2, 0, 0, 0, 0, 0, 0];

/// Bytes before the result of a QueryConfig answer in THFT.
const THFT_HEAD_LEN: usize = 4 + 4 + ERR_OK.len() + 4 + 4 + QUERY_CONFIG.len() + 4 + 4;

/// The bytes before the result of a QueryConfig answer.
#[derive(Clone, Debug)]
pub enum QueryHead {
    /// For a client that speaks THFT.
    Thft([u8; THFT_HEAD_LEN]),
    /// For a C++ client. Boxed: such clients are few, and their headers long.
    Rdsn(Box<rdsn::Head>),
}

impl QueryHead {
    /// The envelope of a result of `result_len` bytes for this request.
    pub fn new(id: RequestId, result_len: usize) -> Self {
        static TEMPLATE: LazyLock<[u8; THFT_HEAD_LEN]> = LazyLock::new(|| {
            let bytes = head_bytes(ERR_OK, QUERY_CONFIG, 0, 0);
            bytes.try_into().expect("THFT_HEAD_LEN adds up its parts")
        });
        let seq = match id {
            RequestId::Thft(seq) => seq,
            RequestId::Rdsn(id) => {
                return QueryHead::Rdsn(rdsn::answer_head(id, ERR_OK, result_len).into());
            }
        };
        let total = THFT_HEAD_LEN + result_len;
        let total = u32::try_from(total).expect("answers are limited to 64 MiB");
        let mut head = *TEMPLATE;
        head[..4].copy_from_slice(&total.to_be_bytes());
        head[THFT_HEAD_LEN - 4..].copy_from_slice(&seq.to_be_bytes());
        QueryHead::Thft(head)
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            QueryHead::Thft(head) => head,
            QueryHead::Rdsn(head) => &head[..],
        }
    }
}

/// The proxy's own answer to a QueryConfig: it has the form in which a MetaServer answers for an unknown table, with
/// the given error.
pub fn own_error(id: RequestId, error: OwnError) -> Vec<u8> {
    let name = error.name();
    let mut result = vec![0x0c, 0, 0, 0x0c, 0, 1];
    result.extend((name.len() as u32).to_be_bytes());
    result.extend(name.as_bytes());
    result.extend([0x08, 0, 2, 0, 0, 0, 0]); // app_id
    result.extend([0x08, 0, 3, 0, 0, 0, 0]); // partition_count
    result.extend([0x02, 0, 4, 0]); // is_stateful
    result.extend([0x0f, 0, 5, 0x0c, 0, 0, 0, 0]); // partitions
    result.extend([0, 0]);
    [QueryHead::new(id, result.len()).bytes(), &result].concat()
}

/// The answer to an unknown method: an error of the frame or header, no result.
pub fn handler_not_found(method: &str, id: RequestId) -> Vec<u8> {
    match id {
        RequestId::Thft(seq) => head_bytes(ERR_HANDLER_NOT_FOUND, method, seq, 0),
        RequestId::Rdsn(id) => rdsn::answer_head(id, ERR_HANDLER_NOT_FOUND, 0).into(),
    }
}

/// The answer to `RPC_NEGOTIATION`: authentication is off. For a C++ client, the error of a server without
/// authentication means the same.
pub fn negotiation(id: RequestId) -> Vec<u8> {
    match id {
        RequestId::Thft(seq) => with_result(NEGOTIATION, seq, NEGOTIATION_RESULT),
        RequestId::Rdsn(_) => handler_not_found(NEGOTIATION, id),
    }
}

fn with_result(method: &str, seq: i32, result: &[u8]) -> Vec<u8> {
    let mut bytes = head_bytes(ERR_OK, method, seq, result.len());
    bytes.extend(result);
    bytes
}

fn head_bytes(frame_error: &str, method: &str, seq: i32, result_len: usize) -> Vec<u8> {
    let ack_len = method.len() + "_ACK".len();
    let head_len = 4 + 4 + frame_error.len() + 4 + 4 + ack_len + 4;
    let total = u32::try_from(head_len + result_len).expect("answers are limited far below 4 GB");
    let mut bytes = Vec::with_capacity(head_len + result_len.min(256));
    bytes.extend(total.to_be_bytes());
    bytes.extend((frame_error.len() as u32).to_be_bytes());
    bytes.extend(frame_error.as_bytes());
    bytes.extend([0x80, 0x01, 0x00, 0x02]);
    bytes.extend((ack_len as u32).to_be_bytes());
    bytes.extend(method.as_bytes());
    bytes.extend(b"_ACK");
    bytes.extend(seq.to_be_bytes());
    bytes
}
